// Package memnet is an in-memory TCP: hosts with addresses of their own,
// listeners, and buffered connections with deadlines, half close and reset.
//
// It promises what the reference lab needs of a network and no more: the
// addresses that both ends see are the ones that were dialled from and to,
// nothing is lost or reordered, a reset discards what the peer has not read,
// and no goroutine, socket or privilege is used. A write blocks once
// [Window] octets are unread, as TCP's does.
//
// A server that is slow on purpose says so with [Conn.Lag], one that waits for
// a client that says nothing with [Conn.ReadQuiet], and one that would wait for
// ever with [Conn.ReadPatient]: all pass time that nobody has to wait for, and
// fail a peer whose deadline does not allow for it.
package memnet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Window is how many unread octets one direction of a connection holds.
const Window = 1 << 20

// firstPort is where ephemeral ports begin.
const firstPort = 32768

// A Network is a set of hosts that can reach each other. The zero value is
// not usable; call [New].
type Network struct {
	mu        sync.Mutex
	listeners map[netip.AddrPort]*Listener
	nextPort  map[netip.Addr]uint16
	refuse    func(from netip.Addr, to netip.AddrPort) error
}

// New returns an empty network.
func New() *Network {
	return &Network{
		listeners: make(map[netip.AddrPort]*Listener),
		nextPort:  make(map[netip.Addr]uint16),
	}
}

// Filter installs a packet filter: a dial it returns an error for fails with
// that error. A nil filter lets everything pass.
func (n *Network) Filter(f func(from netip.Addr, to netip.AddrPort) error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuse = f
}

// Listen starts to listen on an address and port.
func (n *Network) Listen(at netip.AddrPort) (*Listener, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if _, ok := n.listeners[at]; ok {
		return nil, &net.OpError{Op: "listen", Net: "tcp", Addr: net.TCPAddrFromAddrPort(at), Err: os.NewSyscallError("bind", syscall.EADDRINUSE)}
	}
	l := &Listener{net: n, at: at, backlog: make(chan *Conn, 1024), done: make(chan struct{})}
	n.listeners[at] = l
	return l, nil
}

// Dial connects from an address to an address and port.
func (n *Network) Dial(ctx context.Context, from netip.Addr, to netip.AddrPort) (*Conn, error) {
	fail := func(err error) (*Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	if err := ctx.Err(); err != nil {
		return fail(err)
	}
	if from.Unmap().Is4() != to.Addr().Unmap().Is4() {
		return fail(os.NewSyscallError("connect", syscall.EAFNOSUPPORT))
	}
	n.mu.Lock()
	if n.refuse != nil {
		if err := n.refuse(from, to); err != nil {
			n.mu.Unlock()
			return fail(err)
		}
	}
	l := n.listeners[to]
	if l == nil {
		n.mu.Unlock()
		return fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	}
	port := n.nextPort[from]
	if port < firstPort {
		port = firstPort
	}
	n.nextPort[from] = port + 1
	n.mu.Unlock()

	client, server := pair(netip.AddrPortFrom(from, port), to)
	if l.hand(server) {
		return client, nil
	}
	select {
	case <-l.done:
		return fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	default:
	}
	select {
	case l.backlog <- server:
		return client, nil
	case <-l.done:
		return fail(os.NewSyscallError("connect", syscall.ECONNREFUSED))
	case <-ctx.Done():
		return fail(ctx.Err())
	}
}

// A Host is one address of a network, as something to dial from.
type Host struct {
	Net  *Network
	Addr netip.Addr
}

// Dial connects from the host.
func (h Host) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := h.Net.Dial(ctx, h.Addr, to)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// A Listener accepts connections. It implements [net.Listener].
type Listener struct {
	net     *Network
	at      netip.AddrPort
	backlog chan *Conn
	done    chan struct{}
	once    sync.Once

	mu     sync.Mutex // held while serve is called
	serve  func(net.Conn)
	closed bool
}

// Serve has every connection from now on given to handle, and none to
// [Listener.Accept]: a listener that waits needs no goroutine. Whoever dials
// calls handle, which must return at once. When Close has returned, handle is
// not called any more.
func (l *Listener) Serve(handle func(net.Conn)) {
	l.mu.Lock()
	l.serve = handle
	l.mu.Unlock()
}

// hand gives a connection to whoever serves, and says whether anybody does.
func (l *Listener) hand(c *Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.serve == nil || l.closed {
		return false
	}
	l.serve(c)
	return true
}

// Accept waits for the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	default:
	}
	select {
	case c := <-l.backlog:
		return c, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: "tcp", Addr: l.Addr(), Err: net.ErrClosed}
	}
}

// Close stops listening and resets what was never accepted.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.net.mu.Lock()
		delete(l.net.listeners, l.at)
		l.net.mu.Unlock()
		l.mu.Lock()
		l.closed = true
		l.mu.Unlock()
		close(l.done)
		for {
			select {
			case c := <-l.backlog:
				c.Reset()
			default:
				return
			}
		}
	})
	return nil
}

// Addr is where the listener listens.
func (l *Listener) Addr() net.Addr { return net.TCPAddrFromAddrPort(l.at) }

// pair returns the two ends of a new connection.
func pair(client, server netip.AddrPort) (*Conn, *Conn) {
	mu := new(sync.Mutex)
	up, down := newFlow(mu), newFlow(mu)
	c := &Conn{in: down, out: up, local: net.TCPAddrFromAddrPort(client), remote: net.TCPAddrFromAddrPort(server)}
	s := &Conn{in: up, out: down, local: c.remote, remote: c.local}
	return c, s
}

// Pipe returns the two ends of a connection between two addresses outside any
// network.
func Pipe(client, server netip.AddrPort) (*Conn, *Conn) { return pair(client, server) }

// Conn is one end of a connection. It implements [net.Conn].
type Conn struct {
	in, out       *flow
	local, remote *net.TCPAddr
}

// Read reads what has arrived. It returns [io.EOF] once the peer has closed
// and everything was read, and an error that matches [syscall.ECONNRESET] at
// once when the peer reset the connection.
func (c *Conn) Read(b []byte) (int, error) {
	n, err := c.in.read(b, c.out)
	if err != nil && err != io.EOF {
		err = c.fail("read", err)
	}
	return n, err
}

// Write queues b for the peer.
func (c *Conn) Write(b []byte) (int, error) {
	n, err := c.out.write(b)
	if err != nil {
		err = c.fail("write", err)
	}
	return n, err
}

// Close closes both directions: the peer reads what was written and then EOF.
// If the peer had sent octets that were never read, it sees a reset, as with TCP.
func (c *Conn) Close() error {
	if unread := c.in.closeRead(); unread {
		c.out.reset()
		return nil
	}
	c.out.closeWrite()
	return nil
}

// CloseWrite closes this end's direction: the peer reads EOF and may still write.
func (c *Conn) CloseWrite() error {
	c.out.closeWrite()
	return nil
}

// Reset aborts the connection: the peer's next read or write fails with ECONNRESET.
func (c *Conn) Reset() error {
	c.in.closeRead()
	c.out.reset()
	return nil
}

// LocalAddr is this end's address.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	c.in.setReadDeadline(t)
	c.out.setWriteDeadline(t)
	return nil
}

// SetReadDeadline sets the deadline of reads.
func (c *Conn) SetReadDeadline(t time.Time) error { c.in.setReadDeadline(t); return nil }

// SetWriteDeadline sets the deadline of writes.
func (c *Conn) SetWriteDeadline(t time.Time) error { c.out.setWriteDeadline(t); return nil }

func (c *Conn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.local, Addr: c.remote, Err: err}
}

// Lag says that whatever this end sends from now on arrives d later than it
// would. No time passes: a reader whose deadline leaves it no more than d
// fails with [os.ErrDeadlineExceeded] as soon as it has read what was sent
// before, and any other reads on at once. Calling it again adds to it.
func (c *Conn) Lag(d time.Duration) { c.out.lagBy(d) }

// ReadQuiet reads like Read, but waits no longer than d for a peer that says
// nothing: when the peer is itself waiting to read from this connection and
// nothing is under way, d has passed, without anybody's waiting for it. It
// then fails with [os.ErrDeadlineExceeded], and what this end sends afterwards
// arrives d later.
func (c *Conn) ReadQuiet(b []byte, d time.Duration) (int, error) {
	n, err := c.in.readQuiet(b, c.out, true)
	if errors.Is(err, errQuiet) {
		c.out.lagBy(d)
		err = os.ErrDeadlineExceeded
	}
	if err != nil && err != io.EOF {
		err = c.fail("read", err)
	}
	return n, err
}

// ReadPatient reads like Read, on behalf of a server that waits for its client
// longer than any client waits for it. While it waits, and nothing is under
// way, a peer that reads with a deadline finds the deadline passed at once.
// The peer must not write from another goroutine while it reads.
func (c *Conn) ReadPatient(b []byte) (int, error) {
	c.out.setPatient(true)
	defer c.out.setPatient(false)
	return c.Read(b)
}

// maxCuts is how many writes [Conn.Cuts] remembers.
const maxCuts = 32

// Cuts says where the peer's first writes ended, in octets from the beginning:
// how what it sent was cut into segments, however it was read.
func (c *Conn) Cuts() []int {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	return slices.Clone(c.in.cuts)
}

var errQuiet = errors.New("the peer says nothing")

// flow is one direction of a connection.
type flow struct {
	mu         *sync.Mutex // both directions'
	cond       *sync.Cond
	buf        []byte
	off        int // buf[off:] is unread
	eof        bool
	err        error // reset
	readClosed bool
	rd, wd     deadline

	lag      time.Duration // what comes after the next lagAfter octets is late by this
	lagAfter int
	blocked  int        // readers that wait for something to come
	watcher  *sync.Cond // told when a reader begins to wait
	patient  bool       // the writer says nothing before it has read something
	written  int        // octets
	cuts     []int      // where the first writes ended, in octets from the beginning
}

type deadline struct {
	at    time.Time
	timer *time.Timer
}

func newFlow(mu *sync.Mutex) *flow {
	return &flow{mu: mu, cond: sync.NewCond(mu)}
}

func (f *flow) read(b []byte, other *flow) (int, error) { return f.readQuiet(b, other, false) }

// readQuiet reads, and if quiet fails with errQuiet when the reader of the
// other direction waits while nothing is under way in either.
func (f *flow) readQuiet(b []byte, other *flow, quiet bool) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if quiet {
		other.watcher = f.cond
		defer func() { other.watcher = nil }()
	}
	for {
		switch {
		case f.readClosed:
			return 0, net.ErrClosed
		case f.err != nil:
			return 0, f.err
		case f.rd.passed(), f.late():
			return 0, os.ErrDeadlineExceeded
		case f.off < len(f.buf):
			end := len(f.buf)
			if f.lag > 0 {
				if f.lagAfter == 0 {
					f.lag = 0
				} else {
					end = min(end, f.off+f.lagAfter)
				}
			}
			n := copy(b, f.buf[f.off:end])
			f.off += n
			if f.lag > 0 {
				f.lagAfter -= n
			}
			if f.off == len(f.buf) {
				f.buf, f.off = f.buf[:0], 0
			}
			f.cond.Broadcast()
			return n, nil
		case f.eof:
			return 0, io.EOF
		case len(b) == 0:
			return 0, nil
		case quiet && other.blocked > 0 && other.off == len(other.buf):
			return 0, errQuiet
		case f.patient && !f.rd.at.IsZero() && other.blocked > 0 && other.off == len(other.buf) && !other.eof:
			return 0, os.ErrDeadlineExceeded
		}
		f.blocked++
		if f.watcher != nil {
			f.watcher.Broadcast()
		}
		if other.patient {
			other.cond.Broadcast()
		}
		f.cond.Wait()
		f.blocked--
	}
}

// late says whether the next octet comes only after the reader's deadline.
func (f *flow) late() bool {
	return f.lag > 0 && f.lagAfter == 0 && !f.rd.at.IsZero() && time.Until(f.rd.at) <= f.lag
}

func (f *flow) setPatient(on bool) {
	f.mu.Lock()
	f.patient = on
	f.mu.Unlock()
}

func (f *flow) lagBy(d time.Duration) {
	if d <= 0 {
		return
	}
	f.mu.Lock()
	if f.lag == 0 {
		f.lagAfter = len(f.buf) - f.off
	}
	f.lag += d
	f.cond.Broadcast()
	f.mu.Unlock()
}

func (f *flow) write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.written += len(b); len(f.cuts) < maxCuts {
		f.cuts = append(f.cuts, f.written)
	}
	written := 0
	for {
		switch {
		case f.err != nil:
			return written, f.err
		case f.eof:
			return written, net.ErrClosed
		case f.readClosed:
			// The peer is gone: TCP would answer with RST.
			return written, os.NewSyscallError("write", syscall.EPIPE)
		case f.wd.passed():
			return written, os.ErrDeadlineExceeded
		case len(b) == 0:
			return written, nil
		}
		if room := Window - (len(f.buf) - f.off); room > 0 {
			n := min(room, len(b))
			if f.off > 0 && len(f.buf)+n > cap(f.buf) {
				f.buf = append(f.buf[:0], f.buf[f.off:]...)
				f.off = 0
			}
			f.buf = append(f.buf, b[:n]...)
			b = b[n:]
			written += n
			f.cond.Broadcast()
			continue
		}
		f.cond.Wait()
	}
}

func (f *flow) closeWrite() {
	f.mu.Lock()
	f.eof = true
	f.wd.stop()
	f.cond.Broadcast()
	f.mu.Unlock()
}

// closeRead ends reading and says whether something was left unread.
func (f *flow) closeRead() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	unread := !f.readClosed && f.err == nil && f.off < len(f.buf)
	f.readClosed = true
	f.buf, f.off = nil, 0
	f.rd.stop()
	f.cond.Broadcast()
	return unread
}

func (f *flow) reset() {
	f.mu.Lock()
	if f.err == nil && !f.eof {
		f.err = os.NewSyscallError("read", syscall.ECONNRESET)
		f.buf, f.off = nil, 0
	}
	f.wd.stop()
	f.cond.Broadcast()
	f.mu.Unlock()
}

func (f *flow) setReadDeadline(t time.Time)  { f.setDeadline(&f.rd, t) }
func (f *flow) setWriteDeadline(t time.Time) { f.setDeadline(&f.wd, t) }

func (f *flow) setDeadline(d *deadline, t time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d.stop()
	d.at = t
	if !t.IsZero() {
		d.timer = time.AfterFunc(time.Until(t), func() {
			f.mu.Lock()
			f.cond.Broadcast()
			f.mu.Unlock()
		})
	}
	f.cond.Broadcast()
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

func (d *deadline) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

// String names both ends.
func (c *Conn) String() string { return fmt.Sprintf("%s>%s", c.local, c.remote) }
