package wire

import (
	"fmt"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// Direction is who did what an [Event] records.
type Direction uint8

// The directions of events.
const (
	Sent       Direction = iota // -> or ~> by us
	Received                    // <- or <~ by the peer
	Note                        // == about the connection
	PeerClosed                  // <x
	WeClosed                    // >x
)

// An Event is one line of a transcript, redacted.
type Event struct {
	Conn string
	At   time.Duration // since the transcript began
	Dir  Direction
	TLS  bool // inside TLS
	Text string
}

// Limits of a transcript. What goes beyond is counted, not kept.
const (
	maxEvents    = 4000
	maxEventText = 2000
)

// A Transcript records both directions of all connections of one execution,
// in order, redacted as it is written. It may be used by many goroutines.
type Transcript struct {
	redact *Redactor
	begun  time.Time

	mu      sync.Mutex
	events  []Event
	dropped int
}

// NewTranscript begins a transcript now.
func NewTranscript(r *Redactor) *Transcript {
	return &Transcript{redact: r, begun: time.Now()}
}

// Add records an event. A nil transcript records nothing.
func (t *Transcript) Add(conn string, dir Direction, tls bool, text string) {
	if t == nil {
		return
	}
	at := time.Since(t.begun)
	text = clip(t.redact.Redact(text), maxEventText) // a secret that was cut would not be known
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.events) >= maxEvents {
		t.dropped++
		return
	}
	t.events = append(t.events, Event{Conn: conn, At: at, Dir: dir, TLS: tls, Text: text})
}

// Events returns a copy of what was recorded.
func (t *Transcript) Events() []Event {
	t.mu.Lock()
	defer t.mu.Unlock()
	return append([]Event(nil), t.events...)
}

// Len is the number of events recorded so far.
func (t *Transcript) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.events)
}

// String renders the transcript, one event a line:
//
//	A    +0.0042 <~ a2 OK Logged in
//
// with the connection's name, seconds since the beginning and a direction:
// -> and <- in clear text, ~> and <~ inside TLS, == a note, <x closed by the
// peer, >x closed by us. Control characters are made visible.
func (t *Transcript) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b strings.Builder
	b.Grow(len(t.events) * 64)
	for _, e := range t.events {
		fmt.Fprintf(&b, "%-4s +%.4f %s %s\n", e.Conn, e.At.Seconds(), e.arrow(), Visible(e.Text))
	}
	if t.dropped > 0 {
		fmt.Fprintf(&b, "%-4s +%.4f == %d more events were not kept\n", "", time.Since(t.begun).Seconds(), t.dropped)
	}
	return b.String()
}

func (e Event) arrow() string {
	switch {
	case e.Dir == Sent && e.TLS:
		return "~>"
	case e.Dir == Sent:
		return "->"
	case e.Dir == Received && e.TLS:
		return "<~"
	case e.Dir == Received:
		return "<-"
	case e.Dir == PeerClosed:
		return "<x"
	case e.Dir == WeClosed:
		return ">x"
	}
	return "=="
}

// Visible returns s with control characters, invalid UTF-8 and characters
// that reorder text written as \r, \x1b or \u202e.
func Visible(s string) string {
	clean := true
	for i := 0; i < len(s); i++ {
		if s[i] < 0x20 || s[i] >= 0x7f {
			clean = false
			break
		}
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r >= 0x80 && r < 0xa0, r >= 0x200b && r <= 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0xfeff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// Redact applies the transcript's redaction to text that goes elsewhere.
func (t *Transcript) Redact(s string) string {
	if t == nil {
		return s
	}
	return t.redact.Redact(s)
}
