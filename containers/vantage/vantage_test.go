package vantage

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/harness/run"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type duplex struct {
	io.Reader
	io.Writer
	close func() error
}

func (d duplex) Close() error { return d.close() }

// pair starts a vantage on loopback and a client that speaks to it.
func pair(t *testing.T) *Client {
	t.Helper()
	aIn, hOut := io.Pipe()
	hIn, aOut := io.Pipe()
	served := make(chan error, 1)
	go func() {
		served <- Serve(context.Background(), aIn, aOut)
		aOut.Close()
	}()
	c := New("client", netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("::1"), duplex{hIn, hOut, hOut.Close})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	assert.NilError(t, c.Ready(ctx))
	t.Cleanup(func() {
		c.Close()
		assert.NilError(t, <-served)
	})
	return c
}

// listen accepts connections and hands each to serve, on loopback.
func listen(t *testing.T, serve func(*net.TCPConn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				serve(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func dial(t *testing.T, c *Client, to netip.AddrPort) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	nc, err := c.Dial(ctx, to)
	assert.NilError(t, err)
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	return nc
}

func TestPeerSeesTheReportedAddress(t *testing.T) {
	c := pair(t)
	to := listen(t, func(p *net.TCPConn) { io.WriteString(p, p.RemoteAddr().String()) })
	nc := dial(t, c, to)
	defer nc.Close()
	b, err := io.ReadAll(nc)
	assert.NilError(t, err)
	assert.Equal(t, string(b), nc.LocalAddr().String())
	assert.Equal(t, nc.RemoteAddr().String(), to.String())
}

func TestHalfClose(t *testing.T) {
	c := pair(t)
	to := listen(t, func(p *net.TCPConn) {
		b, _ := io.ReadAll(p) // until our FIN
		p.Write(bytes.ToUpper(b))
	})
	nc := dial(t, c, to)
	defer nc.Close()
	_, err := io.WriteString(nc, "quit")
	assert.NilError(t, err)
	assert.NilError(t, nc.(*Conn).CloseWrite())
	_, err = nc.Write([]byte("x"))
	assert.ErrorIs(t, err, syscall.EPIPE)
	b, err := io.ReadAll(nc)
	assert.NilError(t, err)
	assert.Equal(t, string(b), "QUIT")
}

func TestResetByThePeerIsNoFIN(t *testing.T) {
	c := pair(t)
	to := listen(t, func(p *net.TCPConn) {
		io.WriteString(p, "220 half a gree")
		io.ReadFull(p, make([]byte, 1))
		p.SetLinger(0)
	})
	nc := dial(t, c, to)
	defer nc.Close()
	b := make([]byte, 64)
	n, err := nc.Read(b)
	assert.NilError(t, err)
	assert.Equal(t, string(b[:n]), "220 half a gree")
	nc.Write([]byte("x"))
	_, err = nc.Read(b)
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	_, err = nc.Write([]byte("x"))
	assert.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestOurResetReachesThePeer(t *testing.T) {
	c := pair(t)
	got := make(chan error, 1)
	to := listen(t, func(p *net.TCPConn) {
		_, err := p.Read(make([]byte, 1))
		got <- err
	})
	nc := dial(t, c, to)
	assert.NilError(t, nc.(*Conn).Reset())
	assert.ErrorIs(t, <-got, syscall.ECONNRESET)
	_, err := nc.Read(make([]byte, 1))
	assert.ErrorIs(t, err, net.ErrClosed)
}

func TestCloseDeliversWhatWasWritten(t *testing.T) {
	c := pair(t)
	got := make(chan []byte, 1)
	to := listen(t, func(p *net.TCPConn) {
		b, _ := io.ReadAll(p)
		got <- b
	})
	nc := dial(t, c, to)
	want := bytes.Repeat([]byte("0123456789"), 20000)
	_, err := nc.Write(want)
	assert.NilError(t, err)
	assert.NilError(t, nc.Close())
	assert.Assert(t, bytes.Equal(<-got, want))
}

func TestRefusedAndUnreachable(t *testing.T) {
	c := pair(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	to := l.Addr().(*net.TCPAddr).AddrPort()
	l.Close()
	_, err = c.Dial(context.Background(), to)
	assert.ErrorIs(t, err, syscall.ECONNREFUSED)
	assert.Assert(t, cmp.Contains(err.Error(), "connection refused"))
}

func TestDialEndsWithItsContext(t *testing.T) {
	c := pair(t)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := c.Dial(ctx, netip.MustParseAddrPort("127.0.0.1:9"))
	assert.ErrorIs(t, err, context.Canceled)
}

func TestDeadlines(t *testing.T) {
	c := pair(t)
	hold := make(chan struct{})
	to := listen(t, func(*net.TCPConn) { <-hold })
	defer close(hold)
	nc := dial(t, c, to)
	defer nc.Close()
	nc.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	_, err := nc.Read(make([]byte, 1))
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	// A deadline in the past wakes a reader that waits.
	nc.SetReadDeadline(time.Time{})
	got := make(chan error, 1)
	go func() {
		_, err := nc.Read(make([]byte, 1))
		got <- err
	}()
	nc.SetReadDeadline(time.Unix(1, 0))
	assert.ErrorIs(t, <-got, os.ErrDeadlineExceeded)
	// A peer that does not read stops a writer, no more.
	nc.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
	n, err := nc.Write(make([]byte, 64<<20))
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.Assert(t, n > 0 && n < 64<<20, "%d octets were taken", n)
}

// A connection that nobody reads holds no more than its window and does not
// stop the others.
func TestAStalledConnectionIsBounded(t *testing.T) {
	c := pair(t)
	to := listen(t, func(p *net.TCPConn) {
		b := make([]byte, 1<<16)
		for {
			if _, err := p.Write(b); err != nil {
				return
			}
		}
	})
	echo := listen(t, func(p *net.TCPConn) { io.Copy(p, p) })
	stalled := dial(t, c, to)
	defer stalled.Close()
	b := make([]byte, 1)
	_, err := stalled.Read(b) // it flows
	assert.NilError(t, err)
	for range 50 {
		nc := dial(t, c, echo)
		io.WriteString(nc, "hello")
		_, err := io.ReadFull(nc, make([]byte, 5))
		assert.NilError(t, err)
		nc.Close()
	}
	cn := stalled.(*Conn)
	cn.mu.Lock()
	held := len(cn.in)
	cn.mu.Unlock()
	assert.Assert(t, held <= window, "%d octets are held", held)
}

func TestManyConnectionsKeepTheirOctetsApart(t *testing.T) {
	c := pair(t)
	echo := listen(t, func(p *net.TCPConn) { io.Copy(p, p); p.CloseWrite() })
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			data := make([]byte, 700<<10)
			rand.Read(data)
			nc := dial(t, c, echo)
			defer nc.Close()
			wg.Go(func() {
				nc.Write(data)
				nc.(*Conn).CloseWrite()
			})
			h := sha256.New()
			n, err := io.Copy(h, nc)
			if err != nil || n != int64(len(data)) || [32]byte(h.Sum(nil)) != sha256.Sum256(data) {
				t.Errorf("%d octets of %d came back, %v", n, len(data), err)
			}
		})
	}
	wg.Wait()
}

func TestADeadVantageIsNamed(t *testing.T) {
	hIn, aOut := io.Pipe()
	var sink bytes.Buffer
	c := New("relay", netip.Addr{}, netip.Addr{}, duplex{hIn, &sink, hIn.Close})
	aOut.Write(appendFrame(nil, frameHello, 0, []byte{version}))
	assert.NilError(t, c.Ready(context.Background()))
	got := make(chan error, 1)
	go func() {
		_, err := c.Dial(context.Background(), netip.MustParseAddrPort("127.0.0.1:25"))
		got <- err
	}()
	aOut.Close()
	err := <-got
	var gone *run.VantageError
	assert.Assert(t, errors.As(err, &gone), "%v", err)
	assert.Equal(t, gone.Vantage, "relay")
	c.Close()
}

func TestWhatIsNoVantageIsSaid(t *testing.T) {
	for _, said := range []string{"", "exec: not found\n", string(appendFrame(nil, frameHello, 0, []byte{99}))} {
		c := New("relay", netip.Addr{}, netip.Addr{}, duplex{strings.NewReader(said), io.Discard, func() error { return nil }})
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		assert.Assert(t, cmp.ErrorContains(c.Ready(ctx), "the vantage relay is gone"))
		cancel()
		c.Close()
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add(appendFrame(nil, frameData, 7, []byte("abc")))
	f.Add(appendFrame(appendFrame(nil, frameHello, 0, []byte{1}), frameFIN, 9, nil))
	f.Add([]byte{4, 0, 0, 0, 1, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		buf := make([]byte, maxPayload)
		var again []byte
		for {
			fr, err := readFrame(r, buf)
			if err != nil {
				break
			}
			again = appendFrame(again, fr.typ, fr.stream, fr.payload)
		}
		assert.Assert(t, bytes.HasPrefix(b, again))
	})
}

// Whatever arrives, a vantage ends with its stream and holds nothing back.
func FuzzServe(f *testing.F) {
	f.Add(appendFrame(appendFrame(nil, frameData, 7, []byte("abc")), frameWindow, 7, number(9)))
	f.Add(appendFrame(nil, frameClose, 1, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if bytes.IndexByte(b, byte(frameDial)) >= 0 {
			t.Skip("it might dial somewhere")
		}
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		Serve(ctx, bytes.NewReader(b), io.Discard)
		assert.NilError(t, ctx.Err())
	})
}
