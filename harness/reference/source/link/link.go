// Package link is a server's end of one connection: bounded lines, replies
// that leave when the server is about to wait, TLS, and delays that cost
// nobody any time.
package link

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailproof/mailproof/harness/proto"
)

// MaxLine is the longest line that any of the servers reads, in octets.
const MaxLine = 64 << 10

const bufferSize = 4 << 10

// ErrTooLong says that a line went beyond its bound; its rest was not read.
var ErrTooLong = proto.ErrTooLong

// A Delay passes time on a connection. An error ends the session.
type Delay func(ctx context.Context, c net.Conn, d time.Duration) error

// Virtual lets a connection of the in-memory network be late without anybody's
// waiting for it; on any other connection it waits.
func Virtual(ctx context.Context, c net.Conn, d time.Duration) error {
	if l, ok := c.(interface{ Lag(time.Duration) }); ok {
		l.Lag(d)
		return nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// A Pool keeps the buffers of connections that have ended.
type Pool struct{ readers, writers sync.Pool }

// Options are what all connections of a server share.
type Options struct {
	Pool  *Pool
	Delay Delay // nil is [Virtual]
	// BareLF ends lines in LF alone.
	BareLF bool
	// LargeInLost and LargeOutLost lose what goes on for more than four kilobytes
	// in one direction, and all that comes after it: so it looks where packets
	// of full size do not pass, and small ones do.
	LargeInLost, LargeOutLost bool
}

// A Conn is used by one goroutine at a time.
type Conn struct {
	// Peer and Host are the ends of the connection; v4-mapped addresses are IPv4.
	Peer, Host netip.AddrPort

	ctx    context.Context
	opts   *Options
	raw    net.Conn
	nc     net.Conn // raw, or the TLS session on it
	br     *bufio.Reader
	bw     *bufio.Writer
	tls    *tls.Conn
	passed time.Duration
	read   int // octets that came
	wrote  int // octets that left

	patient bool
	reads   int

	// Two goroutines count where somebody else has taken the session over.
	inRun  atomic.Int64 // octets that came since anything left
	outRun atomic.Int64 // octets that left since anything came
	lost   atomic.Bool  // what is written reaches nobody any more
}

// New takes over a connection. When ctx ends, every operation on it fails.
func New(ctx context.Context, nc net.Conn, opts *Options) *Conn {
	c := &Conn{ctx: ctx, opts: opts, raw: nc, nc: nc, Peer: addrPort(nc.RemoteAddr()), Host: addrPort(nc.LocalAddr())}
	if r, ok := opts.Pool.readers.Get().(*bufio.Reader); ok {
		r.Reset(source{c})
		c.br = r
	} else {
		c.br = bufio.NewReaderSize(source{c}, bufferSize)
	}
	if w, ok := opts.Pool.writers.Get().(*bufio.Writer); ok {
		w.Reset(sink{c})
		c.bw = w
	} else {
		c.bw = bufio.NewWriterSize(sink{c}, bufferSize)
	}
	return c
}

func addrPort(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	ap := t.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// source reads from the network, and lets replies leave first.
type source struct{ c *Conn }

func (s source) Read(b []byte) (int, error) {
	if err := s.c.bw.Flush(); err != nil {
		return 0, err
	}
	n, err := s.c.nc.Read(b)
	s.c.read += n
	s.c.reads++
	s.c.outRun.Store(0)
	if in := s.c.inRun.Add(int64(n)); s.c.opts.LargeInLost && in > bufferSize {
		if err := s.c.pass(endless); err != nil {
			return 0, err
		}
		io.Copy(io.Discard, s.c.nc)
		return 0, io.EOF
	}
	return n, err
}

// endless is longer than anybody waits.
const endless = 24 * time.Hour

// CutWithin says whether the first n octets came in more than one segment.
func (c *Conn) CutWithin(n int) bool {
	m, ok := c.raw.(interface{ Cuts() []int })
	if !ok {
		return c.reads > 1
	}
	for _, at := range m.Cuts() {
		if at < n {
			return true
		}
	}
	return false
}

// patience reads from the network beneath the session and beneath TLS.
type patience struct {
	net.Conn
	c *Conn
}

func (p patience) Read(b []byte) (int, error) {
	if r, ok := p.Conn.(interface{ ReadPatient([]byte) (int, error) }); ok && p.c.patient {
		return r.ReadPatient(b)
	}
	return p.Conn.Read(b)
}

// Patient says that the server waits for its client longer than any client
// waits for it: on the in-memory network a client that waits too, with a
// deadline, then finds it passed at once.
func (c *Conn) Patient(on bool) {
	c.patient = on
	if c.tls == nil {
		c.nc = patience{c.raw, c}
	}
}

type sink struct{ c *Conn }

func (s sink) Write(b []byte) (int, error) {
	s.c.wrote += len(b)
	return s.c.send(b)
}

// send writes to the network.
func (c *Conn) send(b []byte) (int, error) {
	c.inRun.Store(0)
	if out := c.outRun.Add(int64(len(b))); c.opts.LargeOutLost && out > bufferSize && !c.lost.Swap(true) {
		if err := c.pass(endless); err != nil {
			return 0, err
		}
	}
	if c.lost.Load() {
		return len(b), nil
	}
	return c.nc.Write(b)
}

// Counts are how many octets of the session were read and written by now,
// inside TLS if there is one.
func (c *Conn) Counts() (in, out int) {
	return c.read - c.br.Buffered(), c.wrote + c.bw.Buffered()
}

// Reader is the buffered input.
func (c *Conn) Reader() *bufio.Reader { return c.br }

// Buffered is how many octets have arrived and were not read yet.
func (c *Conn) Buffered() int { return c.br.Buffered() }

// ReadLine reads one line of at most limit octets, without its end.
func (c *Conn) ReadLine(limit int) (string, error) { return proto.ReadLine(c.br, limit) }

// Line writes the parts as one line.
func (c *Conn) Line(parts ...string) {
	for _, p := range parts {
		c.bw.WriteString(p)
	}
	if c.opts.BareLF {
		c.bw.WriteByte('\n')
	} else {
		c.bw.WriteString("\r\n")
	}
}

// Write writes octets as they are.
func (c *Conn) Write(b []byte) (int, error) { return c.bw.Write(b) }

// Flush lets everything leave.
func (c *Conn) Flush() error { return c.bw.Flush() }

// Wait lets what was said leave and passes time before what follows.
func (c *Conn) Wait(d time.Duration) error {
	if d <= 0 {
		return nil
	}
	if err := c.bw.Flush(); err != nil {
		return err
	}
	return c.pass(d)
}

// pass passes time before what follows.
func (c *Conn) pass(d time.Duration) error {
	c.passed += d
	delay := c.opts.Delay
	if delay == nil {
		delay = Virtual
	}
	return delay(c.ctx, c.raw, d)
}

// Passed is how much time was passed with Wait without anybody's waiting: a
// session's own clock is that much ahead.
func (c *Conn) Passed() time.Duration {
	if _, ok := c.raw.(interface{ Lag(time.Duration) }); !ok || c.opts.Delay != nil {
		return 0
	}
	return c.passed
}

// Silence says nothing more until the peer closes or the context ends.
func (c *Conn) Silence() {
	c.Wait(endless)
	c.bw.Reset(io.Discard)
	io.Copy(io.Discard, source{c})
}

// ReadQuiet fills the buffer from a peer that may say nothing for d. It fails
// with a deadline error when the peer said nothing.
func (c *Conn) ReadQuiet(d time.Duration) error {
	if c.br.Buffered() > 0 {
		return nil
	}
	q, ok := c.raw.(interface {
		ReadQuiet([]byte, time.Duration) (int, error)
	})
	if !ok {
		c.raw.SetReadDeadline(time.Now().Add(d))
		_, err := c.br.Peek(1)
		c.raw.SetReadDeadline(time.Time{})
		return err
	}
	if err := c.bw.Flush(); err != nil {
		return err
	}
	b := make([]byte, bufferSize)
	n, err := q.ReadQuiet(b, d)
	if n > 0 {
		c.read += n
		c.br.Reset(io.MultiReader(&first{b: b[:n]}, source{c}))
		_, err = c.br.Peek(1)
	}
	return err
}

// first yields what was read already.
type first struct{ b []byte }

func (f *first) Read(p []byte) (int, error) {
	if len(f.b) == 0 {
		return 0, io.EOF
	}
	n := copy(p, f.b)
	f.b = f.b[n:]
	return n, nil
}

// Residue says what becomes of octets that came in clear text after STARTTLS.
type Residue int

const (
	// Discard throws them away, as Postfix does.
	Discard Residue = iota
	// Feed gives them to the TLS session, which fails on them, as Dovecot does.
	Feed
)

// StartTLS makes the connection a TLS session.
func (c *Conn) StartTLS(cfg *tls.Config, residue Residue) error {
	if err := c.bw.Flush(); err != nil {
		return err
	}
	raw := c.raw
	if c.patient {
		raw = patience{c.raw, c}
	}
	if n := c.br.Buffered(); n > 0 {
		b, _ := c.br.Peek(n)
		if residue == Feed {
			raw = &prefixed{Conn: raw, rest: append([]byte(nil), b...)}
		}
	}
	t := tls.Server(raw, cfg)
	c.br.Reset(source{c})
	if err := t.HandshakeContext(c.ctx); err != nil {
		return &HandshakeError{Err: err}
	}
	c.tls, c.nc = t, t
	return nil
}

// A HandshakeError says that a TLS handshake failed.
type HandshakeError struct{ Err error }

func (e *HandshakeError) Error() string { return "TLS handshake: " + e.Err.Error() }
func (e *HandshakeError) Unwrap() error { return e.Err }

// prefixed is a connection of which the first octets were read already.
type prefixed struct {
	net.Conn
	rest []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.rest) > 0 {
		n := copy(b, p.rest)
		p.rest = p.rest[n:]
		return n, nil
	}
	return p.Conn.Read(b)
}

// TLS is the state of the TLS session, or nil in clear text.
func (c *Conn) TLS() *tls.ConnectionState {
	if c.tls == nil {
		return nil
	}
	s := c.tls.ConnectionState()
	return &s
}

// Secure says whether the session is inside TLS.
func (c *Conn) Secure() bool { return c.tls != nil }

// Forget makes the server believe that it never was: a bug.
func (c *Conn) Forget() { c.tls = nil }

// Session is the connection for whoever takes the session over: what was read
// ahead is read first, and what was written has left.
func (c *Conn) Session() net.Conn {
	c.bw.Flush()
	return &handed{Conn: c.nc, c: c}
}

type handed struct {
	net.Conn
	c *Conn
}

func (h *handed) Read(b []byte) (int, error)  { return h.c.br.Read(b) }
func (h *handed) Write(b []byte) (int, error) { return h.c.send(b) }

// SetTimeout bounds how long the client may keep the server waiting.
func (c *Conn) SetTimeout(d time.Duration) { c.raw.SetReadDeadline(time.Now().Add(d)) }

// Close ends the connection after everything has left.
func (c *Conn) Close() error {
	c.bw.Flush()
	return c.nc.Close()
}

// Reset ends the connection with RST where the network can.
func (c *Conn) Reset() error {
	if r, ok := c.raw.(interface{ Reset() error }); ok {
		return r.Reset()
	}
	return c.raw.Close()
}

// Release gives the buffers back. The connection must not be used afterwards.
func (c *Conn) Release() {
	c.br.Reset(nil)
	c.bw.Reset(nil)
	c.opts.Pool.readers.Put(c.br)
	c.opts.Pool.writers.Put(c.bw)
	c.br, c.bw = nil, nil
}

// IsTimeout says whether a read failed because the client said nothing.
func IsTimeout(err error) bool {
	var ne net.Error
	return errors.As(err, &ne) && ne.Timeout()
}

// Unread gives octets back that were taken from the reader: they are read
// before anything else.
func (c *Conn) Unread(b []byte) {
	ahead := append([]byte(nil), b...)
	if n := c.br.Buffered(); n > 0 {
		more, _ := c.br.Peek(n)
		ahead = append(ahead, more...)
	}
	c.br.Reset(io.MultiReader(&first{b: ahead}, source{c}))
}

// Linger says that nothing more will be said, and reads what the peer has sent
// or still sends for d at most: a close at once could take back what the peer
// has not read yet.
func (c *Conn) Linger(d time.Duration) {
	c.bw.Flush()
	w, ok := c.raw.(interface{ CloseWrite() error })
	if !ok {
		return
	}
	w.CloseWrite()
	c.raw.SetReadDeadline(time.Now().Add(d))
	io.CopyN(io.Discard, c.raw, 1<<20)
}
