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
)

// maxStreams bounds what one harness can make a vantage hold.
const maxStreams = 4096

// lingerFor is how long a connection that the harness has closed may take to
// deliver what was sent on it before.
const lingerFor = 10 * time.Second

// Serve dials for whoever speaks on in and out, until in ends, ctx ends or
// something is sent that is no frame. It returns nil when in ends between
// frames. Every connection is closed, and every goroutine gone, when it
// returns; but a Read of in that blocks is only ended by whoever owns in.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	s := &server{out: out, ctx: ctx, cancel: cancel, streams: map[uint32]*served{}}
	s.send(frameHello, 0, []byte{version})
	read := make(chan error, 1)
	go func() { read <- s.readAll(in) }()
	var err error
	select {
	case err = <-read:
	case <-ctx.Done():
		err = ctx.Err()
	}
	cancel()
	s.mu.Lock()
	s.closed = true
	for _, st := range s.streams {
		st.abort()
	}
	s.mu.Unlock()
	s.wg.Wait()
	if err == nil {
		s.outMu.Lock()
		defer s.outMu.Unlock()
		err = s.outErr
	}
	return err
}

type server struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	outMu  sync.Mutex
	out    io.Writer
	outErr error

	mu      sync.Mutex
	streams map[uint32]*served
	closed  bool
}

// send writes one frame. When the harness is gone everything ends.
func (s *server) send(typ frameType, stream uint32, payload []byte) {
	s.outMu.Lock()
	defer s.outMu.Unlock()
	if s.outErr != nil {
		return
	}
	if _, err := s.out.Write(appendFrame(make([]byte, 0, headerLen+len(payload)), typ, stream, payload)); err != nil {
		s.outErr = err
		s.cancel()
	}
}

func (s *server) readAll(in io.Reader) error {
	buf := make([]byte, maxPayload)
	for {
		f, err := readFrame(in, buf)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := s.take(f); err != nil {
			return err
		}
	}
}

func (s *server) take(f frame) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	st := s.streams[f.stream]
	if f.typ == frameDial {
		if st != nil {
			return fmt.Errorf("not a vantage's stream: stream %d is dialled twice", f.stream)
		}
		to, err := netip.ParseAddrPort(string(f.payload))
		if err != nil {
			return fmt.Errorf("not a vantage's stream: dial %q: %w", f.payload, err)
		}
		if len(s.streams) >= maxStreams {
			s.wg.Go(func() {
				s.send(frameFailed, f.stream, failure(syscall.EMFILE, fmt.Sprintf("the vantage has %d connections open already", maxStreams)))
			})
			return nil
		}
		st = newServed(s, f.stream, to)
		s.streams[f.stream] = st
		s.wg.Go(st.run)
		return nil
	}
	if st == nil {
		return nil // it has ended here; its last frames have crossed
	}
	switch f.typ {
	case frameData:
		return st.push(f.payload)
	case frameFIN:
		st.finish(false)
	case frameClose:
		st.finish(true)
	case frameReset:
		st.abort()
	case frameWindow:
		n, _, err := cut(f.payload)
		if err != nil {
			return err
		}
		st.allow(int(n))
	default:
		return fmt.Errorf("not a vantage's stream: a frame of type %d from the harness", f.typ)
	}
	return nil
}

// A served is one connection of the vantage.
type served struct {
	s    *server
	id   uint32
	to   netip.AddrPort
	ctx  context.Context
	stop context.CancelFunc

	mu      sync.Mutex
	changed *sync.Cond
	queue   []byte // to the peer
	fin     bool   // after queue, half close
	closing bool   // after queue, close
	aborted bool
	credit  int // how much may be sent to the harness
	conn    *net.TCPConn
}

func newServed(s *server, id uint32, to netip.AddrPort) *served {
	st := &served{s: s, id: id, to: to, credit: window}
	st.changed = sync.NewCond(&st.mu)
	st.ctx, st.stop = context.WithCancel(s.ctx)
	return st
}

// push queues octets to the peer; more than the window is a broken harness.
func (st *served) push(b []byte) error {
	st.mu.Lock()
	defer st.mu.Unlock()
	if len(st.queue)+len(b) > window {
		return fmt.Errorf("not a vantage's stream: more than %d octets unasked on stream %d", window, st.id)
	}
	st.queue = append(st.queue, b...)
	st.changed.Broadcast()
	return nil
}

func (st *served) finish(all bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.fin = true
	if all {
		st.closing = true
		if st.conn == nil {
			st.stop() // the dial
		} else {
			st.conn.SetReadDeadline(time.Unix(1, 0))
			st.conn.SetWriteDeadline(time.Now().Add(lingerFor))
		}
	}
	st.changed.Broadcast()
}

// abort ends the connection with RST.
func (st *served) abort() {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.aborted = true
	st.stop()
	if st.conn != nil {
		st.conn.SetLinger(0)
		st.conn.Close()
	}
	st.changed.Broadcast()
}

func (st *served) allow(n int) {
	st.mu.Lock()
	defer st.mu.Unlock()
	st.credit += n
	st.changed.Broadcast()
}

func (st *served) run() {
	defer func() {
		st.stop()
		st.s.mu.Lock()
		delete(st.s.streams, st.id)
		st.s.mu.Unlock()
		st.s.send(frameGone, st.id, nil)
	}()
	d := net.Dialer{Control: oneHop, KeepAlive: -1}
	nc, err := d.DialContext(st.ctx, "tcp", st.to.String())
	if err != nil {
		st.s.send(frameFailed, st.id, failureOf(err))
		return
	}
	conn := nc.(*net.TCPConn)
	st.mu.Lock()
	if st.aborted || st.closing {
		st.mu.Unlock()
		conn.SetLinger(0)
		conn.Close()
		return
	}
	st.conn = conn
	st.mu.Unlock()
	st.s.send(frameOpened, st.id, []byte(conn.LocalAddr().String()))

	done := make(chan struct{})
	go func() {
		defer close(done)
		st.fromPeer()
	}()
	st.toPeer()
	<-done
	conn.Close()
}

// toPeer writes what is queued until the harness half closes or closes, or the
// peer is gone.
func (st *served) toPeer() {
	buf := make([]byte, 0, maxPayload)
	for {
		st.mu.Lock()
		for len(st.queue) == 0 && !st.fin && !st.aborted {
			st.changed.Wait()
		}
		if st.aborted {
			st.mu.Unlock()
			return
		}
		buf = append(buf[:0], st.queue[:min(len(st.queue), maxPayload)]...)
		st.queue = st.queue[:copy(st.queue, st.queue[len(buf):])]
		fin := st.fin && len(st.queue) == 0
		st.mu.Unlock()
		if len(buf) > 0 {
			if _, err := st.conn.Write(buf); err != nil {
				// The reader sees the same and reports it; until the harness
				// lets go, what it still sends goes nowhere.
				st.drain()
				return
			}
			st.s.send(frameWindow, st.id, number(uint32(len(buf))))
		}
		if fin {
			st.conn.CloseWrite()
			st.waitClose()
			return
		}
	}
}

// waitClose holds a half-closed connection until the harness closes it.
func (st *served) waitClose() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for !st.closing && !st.aborted {
		st.changed.Wait()
	}
}

func (st *served) drain() {
	st.mu.Lock()
	defer st.mu.Unlock()
	for !st.closing && !st.aborted {
		st.queue = st.queue[:0]
		st.changed.Wait()
	}
}

// fromPeer sends what the peer says, as far as the harness has room for it.
func (st *served) fromPeer() {
	buf := make([]byte, maxPayload)
	for {
		st.mu.Lock()
		for st.credit == 0 && !st.aborted && !st.closing {
			st.changed.Wait()
		}
		n := min(st.credit, len(buf))
		st.mu.Unlock()
		if n == 0 {
			return
		}
		got, err := st.conn.Read(buf[:n])
		if got > 0 {
			st.mu.Lock()
			st.credit -= got
			st.mu.Unlock()
			st.s.send(frameData, st.id, buf[:got])
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF):
			st.s.send(frameFIN, st.id, nil)
			return
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, net.ErrClosed):
			return // the harness has closed it
		default:
			st.s.send(frameReset, st.id, failureOf(err))
			return
		}
	}
}

// failureOf is an error as it travels: the system's number, and the words.
func failureOf(err error) []byte {
	var no syscall.Errno
	if !errors.As(err, &no) {
		no = 0
	}
	return failure(no, err.Error())
}

func failure(no syscall.Errno, words string) []byte {
	if len(words) > 1000 {
		words = words[:1000]
	}
	return append(number(wireErrno(no)), words...)
}
