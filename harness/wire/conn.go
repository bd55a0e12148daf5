// Package wire carries the harness's own connections: they keep a transcript
// of both directions with times and TLS state, redacted as it is written; they
// wait by one table of named deadlines; and they can write one octet at a
// time, joined, with pauses, or split inside CRLF.
//
// It promises that every read is bounded, that a peer's FIN and RST both
// surface as [*Closed], that no octet read in clear text is ever taken for
// part of a TLS session, and that a connection whose context has ended never
// blocks. It knows no protocol.
package wire

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"
)

// Limits of the reader, in octets.
const (
	MaxLine    = 64 << 10
	bufferSize = 4 << 10
)

// A Shape is how a connection's writes reach the network. The zero Shape
// writes each command with one write.
type Shape struct {
	Name string
	// Chunk is how many octets one write carries; 0 for all of them.
	Chunk int
	// Pause is waited between two chunks.
	Pause time.Duration
	// SplitCRLF ends a write between the CR and the LF.
	SplitCRLF bool
	// Joined holds writes back until something is to be read, so that
	// commands, and a header and what follows it, leave together.
	Joined bool
}

// Shapes lists the shapes that scenarios name.
func Shapes() []Shape {
	return []Shape{
		{Name: "normal"},
		{Name: "one-byte", Chunk: 1},
		{Name: "joined", Joined: true},
		{Name: "split-crlf", SplitCRLF: true},
		{Name: "paused", Chunk: 7, Pause: time.Millisecond},
	}
}

// ShapeNamed returns the shape of that name.
func ShapeNamed(name string) (Shape, bool) {
	for _, s := range Shapes() {
		if s.Name == name {
			return s, true
		}
	}
	return Shape{}, false
}

// A Conn is one connection of the harness. It is used by one goroutine at a
// time; its transcript may be shared.
type Conn struct {
	name  string
	raw   net.Conn // what was dialled
	nc    net.Conn // raw, or the TLS session on it
	br    *bufio.Reader
	tr    *Transcript
	dl    Deadlines
	shape Shape
	ctx   context.Context
	stop  func() bool
	tls   bool
	held  []byte // joined writes that have not left yet
	done  bool   // closed by us
	over  bool   // the peer's end was recorded
}

// New takes over a connection. When ctx ends, every operation on it fails.
func New(ctx context.Context, nc net.Conn, name string, tr *Transcript, dl Deadlines, shape Shape) *Conn {
	c := &Conn{name: name, raw: nc, nc: nc, tr: tr, dl: dl, shape: shape, ctx: ctx}
	c.br = bufio.NewReaderSize(nc, bufferSize)
	c.stop = context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	return c
}

// Name is the connection's name in its scenario.
func (c *Conn) Name() string { return c.name }

// Deadlines is the table the connection waits by.
func (c *Conn) Deadlines() Deadlines { return c.dl }

// Transcript is where the connection records.
func (c *Conn) Transcript() *Transcript { return c.tr }

// SetShape changes how later writes reach the network.
func (c *Conn) SetShape(s Shape) { c.shape = s }

// TLS says whether the session is inside TLS.
func (c *Conn) TLS() bool { return c.tls }

// TLSState is the state of the TLS session; ok is false in clear text.
func (c *Conn) TLSState() (state tls.ConnectionState, ok bool) {
	if t, is := c.nc.(*tls.Conn); is {
		return t.ConnectionState(), true
	}
	return tls.ConnectionState{}, false
}

// Local is the address and port the connection left from.
func (c *Conn) Local() netip.AddrPort { return addrPort(c.raw.LocalAddr()) }

// Remote is the address and port it was dialled to.
func (c *Conn) Remote() netip.AddrPort { return addrPort(c.raw.RemoteAddr()) }

func addrPort(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// Note records a remark in the transcript.
func (c *Conn) Note(format string, args ...any) {
	c.tr.Add(c.name, Note, c.tls, fmt.Sprintf(format, args...))
}

func (c *Conn) ctxErr() error { return c.ctx.Err() }

// Send writes data and records it as show, which may stand for a secret.
func (c *Conn) Send(show string, data []byte) error {
	c.tr.Add(c.name, Sent, c.tls, show)
	if c.shape.Joined {
		c.held = append(c.held, data...)
		return nil
	}
	return c.write(data)
}

// SendLine writes a line and CRLF, and records it as show.
func (c *Conn) SendLine(show, line string) error {
	return c.Send(show, append([]byte(line), '\r', '\n'))
}

// Flush lets held writes leave.
func (c *Conn) Flush() error {
	if len(c.held) == 0 {
		return nil
	}
	data := c.held
	c.held = nil
	return c.write(data)
}

func (c *Conn) write(data []byte) error {
	const waiting = "room to write"
	if err := c.deadline(c.nc.SetWriteDeadline, c.dl.Reply); err != nil {
		return c.classify(err, waiting, 0, "")
	}
	for len(data) > 0 {
		n := len(data)
		if c.shape.Chunk > 0 && c.shape.Chunk < n {
			n = c.shape.Chunk
		}
		if c.shape.SplitCRLF {
			for i := 0; i+1 < n; i++ {
				if data[i] == '\r' && data[i+1] == '\n' {
					n = i + 1
					break
				}
			}
		}
		if _, err := c.nc.Write(data[:n]); err != nil {
			return c.classify(err, waiting, c.dl.Reply, "")
		}
		data = data[n:]
		if len(data) > 0 && c.shape.Pause > 0 {
			select {
			case <-time.After(c.shape.Pause):
			case <-c.ctx.Done():
				return c.classify(c.ctx.Err(), waiting, 0, "")
			}
		}
	}
	return nil
}

// deadline sets a deadline d from now, unless the context has ended.
func (c *Conn) deadline(set func(time.Time) error, d time.Duration) error {
	if err := set(time.Now().Add(d)); err != nil {
		return err
	}
	// The context's own deadline in the past must not be overwritten.
	if err := c.ctx.Err(); err != nil {
		c.raw.SetDeadline(time.Unix(1, 0))
		return err
	}
	return nil
}

// Await prepares reading one unit: held writes leave, and every read until the
// next Await must be over within d.
func (c *Conn) Await(d time.Duration) error {
	if err := c.Flush(); err != nil {
		return err
	}
	return c.classify(c.deadline(c.nc.SetReadDeadline, d), "a reply", d, "")
}

// A Line is one line without its end.
type Line struct {
	Text string
	// Bare says that it ended in LF without CR.
	Bare bool
}

// ReadLine reads one line. It must be preceded by [Conn.Await]; waiting and d
// only word the error.
func (c *Conn) ReadLine(waiting string, d time.Duration) (Line, error) {
	b, err := c.br.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		long := append([]byte(nil), b...)
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(long) > MaxLine {
				c.tr.Add(c.name, Received, c.tls, clip(c.tr.Redact(string(long)), 200))
				return Line{}, &TooLong{Conn: c.name, What: "line", Limit: MaxLine}
			}
			b, err = c.br.ReadSlice('\n')
			long = append(long, b...)
		}
		b = long
	}
	if err != nil {
		if len(b) > 0 {
			c.tr.Add(c.name, Received, c.tls, string(b))
		}
		return Line{}, c.ended(c.classify(err, waiting, d, string(b)))
	}
	if len(b) > MaxLine {
		return Line{}, &TooLong{Conn: c.name, What: "line", Limit: MaxLine}
	}
	l := Line{Text: string(b[:len(b)-1]), Bare: true}
	if n := len(l.Text); n > 0 && l.Text[n-1] == '\r' {
		l = Line{Text: l.Text[:n-1]}
	}
	c.tr.Add(c.name, Received, c.tls, l.Text)
	return l, nil
}

// ReadFull reads exactly n octets, which the caller has bounded.
func (c *Conn) ReadFull(n int, waiting string, d time.Duration) ([]byte, error) {
	b := make([]byte, n)
	m, err := io.ReadFull(c.br, b)
	if err != nil {
		return b[:m], c.ended(c.classify(err, waiting, d, string(b[:m])))
	}
	c.tr.Add(c.name, Received, c.tls, string(b))
	return b, nil
}

// ended records once that the peer ended the connection.
func (c *Conn) ended(err error) error {
	var closed *Closed
	if errors.As(err, &closed) && !c.over {
		c.over = true
		how := "closed"
		if closed.Reset {
			how = "reset"
		}
		c.tr.Add(c.name, PeerClosed, c.tls, how)
	}
	return err
}

// Buffered is how many octets have been read from the network and not yet by us.
func (c *Conn) Buffered() int { return c.br.Buffered() }

// WaitClose waits until the peer closes. Octets that arrive first are the
// error's business: it returns them, cut, with a nil error only when none came.
func (c *Conn) WaitClose(d time.Duration) (extra string, reset bool, err error) {
	if err := c.Await(d); err != nil {
		var closed *Closed
		if errors.As(err, &closed) {
			return "", closed.Reset, nil
		}
		return "", false, err
	}
	l, err := c.ReadLine("the peer to close", d)
	var closed *Closed
	switch {
	case err == nil:
		return clip(c.tr.Redact(l.Text), 200), false, nil
	case errors.As(err, &closed) && closed.Partial == "":
		return "", closed.Reset, nil
	case errors.As(err, &closed):
		return closed.Partial, closed.Reset, nil
	}
	return "", false, err
}

// StartTLS upgrades the connection as a client. Octets that arrived in clear
// text and were not read are a [*Residue] error: they must not enter the session.
func (c *Conn) StartTLS(cfg *tls.Config) error {
	if err := c.Flush(); err != nil && c.shape.Joined {
		return err
	}
	if n := c.br.Buffered(); n > 0 {
		return &Residue{Conn: c.name, Octets: n}
	}
	t := tls.Client(c.raw, cfg)
	if err := c.deadline(c.raw.SetDeadline, c.dl.Handshake); err != nil {
		return c.classify(err, "the TLS handshake", c.dl.Handshake, "")
	}
	if err := t.HandshakeContext(c.ctx); err != nil {
		c.tr.Add(c.name, Note, false, "TLS handshake failed: "+err.Error())
		cause := c.classify(err, "the TLS handshake", c.dl.Handshake, "")
		return &TLSError{Conn: c.name, Err: cause}
	}
	c.nc, c.tls = t, true
	c.br.Reset(t)
	if c.tr != nil {
		s := t.ConnectionState()
		c.tr.Add(c.name, Note, true, tls.VersionName(s.Version)+" "+tls.CipherSuiteName(s.CipherSuite))
	}
	return nil
}

// CloseWrite sends FIN and keeps reading.
func (c *Conn) CloseWrite() error {
	c.Flush()
	if cw, ok := c.nc.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return nil
}

// Close ends the connection. It may be called more than once.
func (c *Conn) Close() error {
	if c.done {
		return nil
	}
	c.done = true
	c.Flush()
	c.stop()
	if !c.over {
		c.tr.Add(c.name, WeClosed, c.tls, "closed")
	}
	// A TLS close waits for a peer that may be gone: bound it.
	c.raw.SetWriteDeadline(time.Now().Add(time.Second))
	return c.nc.Close()
}
