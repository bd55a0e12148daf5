// Package proto reads each protocol's units and spells each announcement.
//
// A unit is what the protocol's document calls one reply: an SMTP multiline
// reply, an IMAP tagged reply with the untagged ones before it, a POP3 status
// with its dot-stuffed body, a ManageSieve response with its capability lines.
// Units are read whole, so how a peer's octets were cut into segments never
// matters. The announcements (PROXY v1 and v2, XCLIENT, IMAP ID) are values
// that know the syntax of each server they are for.
//
// The package promises that every reader is bounded and that malformed input
// is an error of its own type, never a guess. It does not decide what a reply
// means.
package proto

import (
	"fmt"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/wire"
)

// Protocol is a mail protocol by its usual name.
type Protocol string

// The protocols that have units.
const (
	IMAP        Protocol = "imap"        // RFC 3501, RFC 9051
	POP3        Protocol = "pop3"        // RFC 1939, RFC 2449
	ManageSieve Protocol = "managesieve" // RFC 5804
	SMTP        Protocol = "smtp"        // RFC 5321
	LMTP        Protocol = "lmtp"        // RFC 2033
)

// Known says whether p is one of them.
func (p Protocol) Known() bool {
	switch p {
	case IMAP, POP3, ManageSieve, SMTP, LMTP:
		return true
	}
	return false
}

// Bounds of one unit.
const (
	MaxUnitLines   = 4096
	MaxUnitOctets  = 4 << 20
	MaxLiteral     = 2 << 20
	maxOutstanding = 1024 // POP3 commands whose replies are still to come
)

// A Unit is one whole reply.
type Unit struct {
	// Lines are all lines of the unit in the order in which they came. IMAP and
	// ManageSieve literals stand inside their line, after "{n}" and CRLF. SMTP
	// lines have a space after the code, whether or not more lines followed.
	// The lines of a POP3 body are unstuffed.
	Lines []string
	// Status is the line that decides: the tagged line, the +OK, the last line
	// of an SMTP reply.
	Status string
	// Bare says that some line ended in LF without CR.
	Bare bool
	// Ended says that the peer closed right after an IMAP or ManageSieve BYE.
	Ended bool
}

// Text is the whole unit as lines.
func (u Unit) Text() string { return strings.Join(u.Lines, "\n") }

// Malformed says that what came is no unit of the protocol.
type Malformed struct {
	Conn     string
	Protocol Protocol
	Line     string // what came, redacted and cut
	Want     string // what the document demands there
}

func (e *Malformed) Error() string {
	return fmt.Sprintf("%s: not %s: %q came where %s must stand", e.Conn, e.Protocol, e.Line, e.Want)
}

// A Conversation reads units from a connection.
type Conversation struct {
	p        Protocol
	c        *wire.Conn
	greeted  bool
	commands []string // POP3: verbs whose replies have not been read
}

// NewConversation begins with the server's greeting.
func NewConversation(p Protocol, c *wire.Conn) *Conversation {
	return &Conversation{p: p, c: c}
}

// Conn is the connection under the conversation.
func (v *Conversation) Conn() *wire.Conn { return v.c }

// Protocol is what the conversation speaks.
func (v *Conversation) Protocol() Protocol { return v.p }

// Greeted says whether the greeting has been read.
func (v *Conversation) Greeted() bool { return v.greeted }

// Resume continues after a greeting that was read elsewhere.
func (v *Conversation) Resume() { v.greeted = true }

// Sent tells the conversation a command line that was sent: POP3 replies have
// no form of their own that tells whether a body follows.
func (v *Conversation) Sent(line string) {
	if v.p != POP3 || len(v.commands) >= maxOutstanding {
		return
	}
	v.commands = append(v.commands, strings.ToUpper(line))
}

// Next reads one unit. It fails with a [*wire.Timeout] after d.
func (v *Conversation) Next(d time.Duration) (Unit, error) {
	waiting := "a reply"
	if !v.greeted {
		waiting = "the greeting"
	}
	if err := v.c.Await(d); err != nil {
		return Unit{}, err
	}
	r := &unitReader{v: v, waiting: waiting, d: d}
	var err error
	switch v.p {
	case IMAP:
		err = r.imap()
	case POP3:
		err = r.pop3()
	case ManageSieve:
		err = r.managesieve()
	default:
		err = r.smtp()
	}
	if err == nil {
		v.greeted = true
	}
	return r.u, err
}

// unitReader reads one unit.
type unitReader struct {
	v       *Conversation
	waiting string
	d       time.Duration
	u       Unit
	octets  int
}

// line reads one line within the unit's bounds.
func (r *unitReader) line() (string, error) {
	l, err := r.v.c.ReadLine(r.waiting, r.d)
	if err != nil {
		return "", err
	}
	r.u.Bare = r.u.Bare || l.Bare
	r.octets += len(l.Text)
	if len(r.u.Lines) >= MaxUnitLines {
		return "", &wire.TooLong{Conn: r.v.c.Name(), What: "reply (lines)", Limit: MaxUnitLines}
	}
	if r.octets > MaxUnitOctets {
		return "", &wire.TooLong{Conn: r.v.c.Name(), What: "reply (octets)", Limit: MaxUnitOctets}
	}
	return l.Text, nil
}

// logical reads one line with its literals inside.
func (r *unitReader) logical() (string, error) {
	text, err := r.line()
	if err != nil {
		return "", err
	}
	last := text
	for {
		n, ok := literalAtEnd(last)
		if !ok {
			return text, nil
		}
		if n > MaxLiteral || r.octets+n > MaxUnitOctets {
			return "", &wire.TooLong{Conn: r.v.c.Name(), What: "literal", Limit: MaxLiteral}
		}
		body, err := r.v.c.ReadFull(n, r.waiting, r.d)
		if err != nil {
			return "", err
		}
		r.octets += n
		if last, err = r.line(); err != nil {
			return "", err
		}
		text += "\r\n" + string(body) + last
	}
}

// literalAtEnd returns the size of a literal that a line ends with.
func literalAtEnd(line string) (int, bool) {
	if !strings.HasSuffix(line, "}") {
		return 0, false
	}
	i := strings.LastIndexByte(line, '{')
	if i < 0 {
		return 0, false
	}
	digits := strings.TrimSuffix(line[i+1:len(line)-1], "+")
	if digits == "" || len(digits) > 9 {
		return 0, false
	}
	n := 0
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}

func (r *unitReader) malformed(line, want string) error {
	line = r.v.c.Transcript().Redact(line)
	if len(line) > 200 {
		line = line[:200] + "…"
	}
	return &Malformed{Conn: r.v.c.Name(), Protocol: r.v.p, Line: line, Want: want}
}

// add appends a line that ends the unit.
func (r *unitReader) end(line string) {
	r.u.Lines = append(r.u.Lines, line)
	r.u.Status = line
}
