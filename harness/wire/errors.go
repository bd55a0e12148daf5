package wire

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Timeout says that the peer did not do in time what was waited for.
type Timeout struct {
	Conn    string        // the connection's name in the scenario
	Waiting string        // "the greeting", "a reply"
	After   time.Duration // how long was waited
	Partial string        // what had arrived of an unfinished line, redacted and cut
}

func (e *Timeout) Error() string {
	return fmt.Sprintf("%s: nothing complete came within %s while waiting for %s", e.Conn, e.After, e.Waiting)
}

// Timeout makes the error a net.Error of that kind.
func (e *Timeout) Timeout() bool { return true }

// Closed says that the peer ended the connection. FIN and RST are both
// "closed"; Reset tells them apart for whoever asks.
type Closed struct {
	Conn    string
	Waiting string
	Reset   bool
	Partial string // what had arrived of an unfinished line, redacted and cut
}

func (e *Closed) Error() string {
	how := "closed"
	if e.Reset {
		how = "reset"
	}
	s := fmt.Sprintf("%s: the peer %s the connection while waiting for %s", e.Conn, how, e.Waiting)
	if e.Partial != "" {
		s += fmt.Sprintf(" (unfinished line %q)", e.Partial)
	}
	return s
}

// TooLong says that the peer sent more than a reader takes.
type TooLong struct {
	Conn  string
	What  string // "line", "reply", "literal"
	Limit int    // octets or lines
}

func (e *TooLong) Error() string {
	return fmt.Sprintf("%s: the peer sent a %s beyond the limit of %d", e.Conn, e.What, e.Limit)
}

// TLSError says that a TLS handshake failed.
type TLSError struct {
	Conn string
	Err  error
}

func (e *TLSError) Error() string { return fmt.Sprintf("%s: TLS handshake: %v", e.Conn, e.Err) }
func (e *TLSError) Unwrap() error { return e.Err }

// Residue says that octets had arrived in clear text before a TLS handshake
// and would have been taken for part of the session inside it.
type Residue struct {
	Conn   string
	Octets int
}

func (e *Residue) Error() string {
	return fmt.Sprintf("%s: %d octets arrived in clear text after the reply to STARTTLS and before the handshake", e.Conn, e.Octets)
}

// classify turns what a read or write returned into the errors of this package.
func (c *Conn) classify(err error, waiting string, after time.Duration, partial string) error {
	switch {
	case err == nil:
		return nil
	case c.ctxErr() != nil:
		return fmt.Errorf("%s: waiting for %s: %w", c.name, waiting, c.ctxErr())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &Timeout{Conn: c.name, Waiting: waiting, After: after, Partial: clip(c.tr.Redact(partial), 200)}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &Closed{Conn: c.name, Waiting: waiting, Partial: clip(c.tr.Redact(partial), 200)}
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return &Closed{Conn: c.name, Waiting: waiting, Reset: true, Partial: clip(c.tr.Redact(partial), 200)}
	case errors.Is(err, net.ErrClosed):
		return &Closed{Conn: c.name, Waiting: waiting}
	}
	return fmt.Errorf("%s: waiting for %s: %w", c.name, waiting, err)
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + fmt.Sprintf("… (%d octets)", len(s))
}
