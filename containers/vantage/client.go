package vantage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/mailproof/mailproof/harness/run"
)

// A Client is the harness's side of one vantage. It implements [run.Vantage].
type Client struct {
	name   string
	ip4    netip.Addr
	ip6    netip.Addr
	stream io.ReadWriteCloser
	ready  chan struct{} // closed by the vantage's hello
	done   chan struct{} // closed when the reader has ended

	outMu sync.Mutex

	mu      sync.Mutex
	next    uint32
	streams map[uint32]*Conn
	err     error // why the vantage is gone
}

// New speaks to the vantage at the other end of stream, which the client then
// owns. Wait for it with [Client.Ready].
func New(name string, ip4, ip6 netip.Addr, stream io.ReadWriteCloser) *Client {
	c := &Client{
		name: name, ip4: ip4, ip6: ip6, stream: stream,
		ready: make(chan struct{}), done: make(chan struct{}),
		streams: map[uint32]*Conn{},
	}
	go c.readAll()
	return c
}

// Ready waits for the vantage to say that it is there.
func (c *Client) Ready(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	case <-c.done:
		return c.gone()
	case <-ctx.Done():
		return &run.VantageError{Vantage: c.name, Err: fmt.Errorf("it has not said that it is there: %w", ctx.Err())}
	}
}

// Addr is the vantage's address in the family.
func (c *Client) Addr(f run.Family) netip.Addr {
	if f == run.IP6 {
		return c.ip6
	}
	return c.ip4
}

// Done is closed when the vantage is gone.
func (c *Client) Done() <-chan struct{} { return c.done }

// Close ends the vantage and every connection from it, and waits for that.
func (c *Client) Close() error {
	c.fail(net.ErrClosed)
	err := c.stream.Close()
	<-c.done
	return err
}

func (c *Client) gone() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &run.VantageError{Vantage: c.name, Err: c.err}
}

// fail ends every connection with err; the first reason stays.
func (c *Client) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	conns := make([]*Conn, 0, len(c.streams))
	for _, cn := range c.streams {
		conns = append(conns, cn)
	}
	c.mu.Unlock()
	for _, cn := range conns {
		cn.fail(c.gone())
	}
}

func (c *Client) send(typ frameType, stream uint32, payload []byte) error {
	c.outMu.Lock()
	defer c.outMu.Unlock()
	_, err := c.stream.Write(appendFrame(make([]byte, 0, headerLen+len(payload)), typ, stream, payload))
	if err != nil {
		c.fail(err)
		return c.gone()
	}
	return nil
}

func (c *Client) readAll() {
	defer close(c.done)
	buf := make([]byte, maxPayload)
	hello := false
	for {
		f, err := readFrame(c.stream, buf)
		if err == nil && !hello {
			if f.typ != frameHello || len(f.payload) != 1 || f.payload[0] != version {
				err = errors.New("what stands there speaks no version of this stream that is known here: build the agent of this version")
			}
		}
		if err == nil {
			if !hello {
				hello = true
				close(c.ready)
				continue
			}
			err = c.take(f)
		}
		if err != nil {
			if err == io.EOF {
				err = errors.New("it has ended")
			}
			c.fail(err)
			return
		}
	}
}

func (c *Client) take(f frame) error {
	c.mu.Lock()
	cn := c.streams[f.stream]
	if f.typ == frameGone || f.typ == frameFailed {
		delete(c.streams, f.stream)
	}
	c.mu.Unlock()
	if cn == nil {
		return nil
	}
	switch f.typ {
	case frameOpened:
		local, err := netip.ParseAddrPort(string(f.payload))
		if err != nil {
			return fmt.Errorf("not a vantage's stream: %w", err)
		}
		cn.open(local)
	case frameFailed, frameReset:
		e, err := parseFailure(f.payload)
		if err != nil {
			return err
		}
		cn.fail(e)
	case frameData:
		return cn.push(f.payload)
	case frameFIN:
		cn.eof()
	case frameWindow:
		n, _, err := cut(f.payload)
		if err != nil {
			return err
		}
		cn.allow(int(n))
	case frameGone:
		cn.fail(net.ErrClosed)
	default:
		return fmt.Errorf("not a vantage's stream: a frame of type %d from the vantage", f.typ)
	}
	return nil
}

// Dial connects from the vantage.
func (c *Client) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	failed := func(err error) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Source: &net.TCPAddr{IP: c.Addr(run.FamilyOf(to.Addr())).AsSlice()}, Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	if err := ctx.Err(); err != nil {
		return failed(err)
	}
	cn := &Conn{c: c, remote: to, opened: make(chan struct{}), change: make(chan struct{}), credit: window}
	cn.readLate, cn.writeLate = newAlarm(), newAlarm()
	c.mu.Lock()
	if c.err != nil {
		c.mu.Unlock()
		return failed(c.gone())
	}
	c.next++
	cn.id = c.next
	c.streams[cn.id] = cn
	c.mu.Unlock()
	if err := c.send(frameDial, cn.id, []byte(to.String())); err != nil {
		c.forget(cn.id)
		return failed(err)
	}
	select {
	case <-cn.opened:
	case <-ctx.Done():
		c.send(frameClose, cn.id, nil)
		c.forget(cn.id)
		return failed(ctx.Err())
	}
	cn.mu.Lock()
	local, err := cn.local, cn.err
	cn.mu.Unlock()
	if !local.IsValid() {
		return failed(err)
	}
	return cn, nil
}

func (c *Client) forget(id uint32) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.streams, id)
}

// A Conn is one connection from a vantage.
type Conn struct {
	c      *Client
	id     uint32
	remote netip.AddrPort
	opened chan struct{} // closed when the dial has an outcome

	readLate  *alarm
	writeLate *alarm

	mu       sync.Mutex
	change   chan struct{} // closed and replaced by whatever a waiter may want to see
	local    netip.AddrPort
	in       []byte
	taken    int // octets read and not yet credited
	credit   int
	ended    bool  // the peer has sent FIN
	err      error // the connection is gone
	closed   bool
	finished bool // we have sent FIN
}

var _ net.Conn = (*Conn)(nil)

// signal wakes every waiter; mu is held.
func (cn *Conn) signal() {
	close(cn.change)
	cn.change = make(chan struct{})
}

func (cn *Conn) open(local netip.AddrPort) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.local.IsValid() || cn.err != nil {
		return
	}
	cn.local = netip.AddrPortFrom(local.Addr().Unmap(), local.Port())
	close(cn.opened)
}

func (cn *Conn) fail(err error) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.err != nil {
		return
	}
	cn.err = err
	if !cn.local.IsValid() {
		close(cn.opened)
	}
	cn.signal()
}

func (cn *Conn) eof() {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	cn.ended = true
	cn.signal()
}

func (cn *Conn) push(b []byte) error {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	if cn.closed {
		return nil
	}
	if len(cn.in)+len(b) > window {
		return fmt.Errorf("not a vantage's stream: more than %d octets unasked on stream %d", window, cn.id)
	}
	cn.in = append(cn.in, b...)
	cn.signal()
	return nil
}

func (cn *Conn) allow(n int) {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	cn.credit += n
	cn.signal()
}

func (cn *Conn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: cn.LocalAddr(), Addr: cn.RemoteAddr(), Err: err}
}

// Read reads what the peer sent. After it come io.EOF for the peer's FIN, or
// an error that matches syscall.ECONNRESET for its reset.
func (cn *Conn) Read(b []byte) (int, error) {
	for {
		cn.mu.Lock()
		switch {
		case cn.closed:
			cn.mu.Unlock()
			return 0, cn.opError("read", net.ErrClosed)
		case cn.readLate.passed():
			cn.mu.Unlock()
			return 0, cn.opError("read", os.ErrDeadlineExceeded)
		case len(b) == 0:
			cn.mu.Unlock()
			return 0, nil
		case len(cn.in) > 0:
			n := copy(b, cn.in)
			cn.in = cn.in[:copy(cn.in, cn.in[n:])]
			cn.taken += n
			credit := 0
			if cn.taken >= window/4 && !cn.ended && cn.err == nil {
				credit, cn.taken = cn.taken, 0
			}
			cn.mu.Unlock()
			if credit > 0 {
				cn.c.send(frameWindow, cn.id, number(uint32(credit)))
			}
			return n, nil
		case cn.ended:
			cn.mu.Unlock()
			return 0, io.EOF
		case cn.err != nil:
			err := cn.err
			cn.mu.Unlock()
			return 0, cn.opError("read", err)
		}
		change := cn.change
		cn.mu.Unlock()
		select {
		case <-change:
		case <-cn.readLate.done():
		}
	}
}

// Write sends octets to the peer, as fast as it takes them.
func (cn *Conn) Write(b []byte) (int, error) {
	sent := 0
	for {
		cn.mu.Lock()
		switch {
		case cn.closed:
			cn.mu.Unlock()
			return sent, cn.opError("write", net.ErrClosed)
		case cn.writeLate.passed():
			cn.mu.Unlock()
			return sent, cn.opError("write", os.ErrDeadlineExceeded)
		case cn.finished:
			cn.mu.Unlock()
			return sent, cn.opError("write", syscall.EPIPE)
		case cn.err != nil:
			err := cn.err
			cn.mu.Unlock()
			return sent, cn.opError("write", err)
		case sent == len(b):
			cn.mu.Unlock()
			return sent, nil
		}
		n := min(cn.credit, len(b)-sent, maxPayload)
		cn.credit -= n
		change := cn.change
		cn.mu.Unlock()
		if n > 0 {
			if err := cn.c.send(frameData, cn.id, b[sent:sent+n]); err != nil {
				return sent, cn.opError("write", err)
			}
			sent += n
			continue
		}
		select {
		case <-change:
		case <-cn.writeLate.done():
		}
	}
}

// CloseWrite sends FIN and keeps reading.
func (cn *Conn) CloseWrite() error {
	cn.mu.Lock()
	if cn.closed {
		cn.mu.Unlock()
		return cn.opError("close", net.ErrClosed)
	}
	first := !cn.finished
	cn.finished = true
	cn.signal()
	cn.mu.Unlock()
	if !first {
		return nil
	}
	return cn.c.send(frameFIN, cn.id, nil)
}

// Close closes the connection; what was written is delivered.
func (cn *Conn) Close() error { return cn.end(frameClose) }

// Reset aborts the connection with RST; what was written may be lost.
func (cn *Conn) Reset() error { return cn.end(frameReset) }

func (cn *Conn) end(typ frameType) error {
	cn.mu.Lock()
	if cn.closed {
		cn.mu.Unlock()
		return cn.opError("close", net.ErrClosed)
	}
	cn.closed = true
	cn.in = nil
	gone := cn.err != nil && errors.As(cn.err, new(*run.VantageError))
	cn.signal()
	cn.mu.Unlock()
	cn.readLate.set(time.Time{})
	cn.writeLate.set(time.Time{})
	if gone {
		cn.c.forget(cn.id)
		return nil
	}
	return cn.c.send(typ, cn.id, nil)
}

// LocalAddr is the address and port that left the vantage.
func (cn *Conn) LocalAddr() net.Addr {
	cn.mu.Lock()
	defer cn.mu.Unlock()
	return net.TCPAddrFromAddrPort(cn.local)
}

// RemoteAddr is what was dialled.
func (cn *Conn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(cn.remote) }

// SetDeadline sets both deadlines.
func (cn *Conn) SetDeadline(t time.Time) error {
	cn.readLate.set(t)
	cn.writeLate.set(t)
	return nil
}

// SetReadDeadline bounds reads, those that wait now too.
func (cn *Conn) SetReadDeadline(t time.Time) error { cn.readLate.set(t); return nil }

// SetWriteDeadline bounds writes, those that wait now too.
func (cn *Conn) SetWriteDeadline(t time.Time) error { cn.writeLate.set(t); return nil }

// An alarm is a deadline that can be waited for.
type alarm struct {
	mu    sync.Mutex
	timer *time.Timer
	turn  int // counts settings, so that a timer that was stopped too late rings nothing
	ch    chan struct{}
}

func newAlarm() *alarm { return &alarm{ch: make(chan struct{})} }

func (a *alarm) set(t time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.timer != nil {
		a.timer.Stop()
		a.timer = nil
	}
	a.turn++
	select {
	case <-a.ch:
		a.ch = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	d := time.Until(t)
	if d <= 0 {
		close(a.ch)
		return
	}
	turn := a.turn
	a.timer = time.AfterFunc(d, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.turn == turn {
			close(a.ch)
		}
	})
}

func (a *alarm) done() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ch
}

func (a *alarm) passed() bool {
	select {
	case <-a.done():
		return true
	default:
		return false
	}
}
