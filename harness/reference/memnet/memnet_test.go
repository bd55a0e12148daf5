package memnet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/mailproof/mailproof/harness/reference/memnet"
	"gotest.tools/v3/assert"
)

var (
	here  = netip.MustParseAddr("198.51.100.10")
	there = netip.MustParseAddrPort("198.51.100.100:143")
)

func connect(t *testing.T) (client, server net.Conn) {
	t.Helper()
	n := memnet.New()
	l, err := n.Listen(there)
	assert.NilError(t, err)
	t.Cleanup(func() { l.Close() })
	c, err := n.Dial(t.Context(), here, there)
	assert.NilError(t, err)
	s, err := l.Accept()
	assert.NilError(t, err)
	return c, s
}

func TestBothEndsSeeTheAddressesThatWereDialled(t *testing.T) {
	c, s := connect(t)
	assert.Equal(t, c.RemoteAddr().String(), "198.51.100.100:143")
	assert.Equal(t, s.RemoteAddr().String(), c.LocalAddr().String())
	assert.Equal(t, c.LocalAddr().(*net.TCPAddr).IP.String(), "198.51.100.10")
}

func TestCloseAndResetDiffer(t *testing.T) {
	c, s := connect(t)
	_, err := s.Write([]byte("bye"))
	assert.NilError(t, err)
	s.Close()
	b, err := io.ReadAll(c)
	assert.NilError(t, err)
	assert.Equal(t, string(b), "bye")

	c, s = connect(t)
	s.Write([]byte("lost"))
	s.(*memnet.Conn).Reset()
	_, err = c.Read(make([]byte, 8))
	assert.Assert(t, errors.Is(err, syscall.ECONNRESET), "%v", err)
}

// A close with unread octets is a reset, as it is in TCP.
func TestCloseWithUnreadOctetsResets(t *testing.T) {
	c, s := connect(t)
	_, err := c.Write([]byte("never read"))
	assert.NilError(t, err)
	s.Close()
	_, err = c.Read(make([]byte, 8))
	assert.Assert(t, errors.Is(err, syscall.ECONNRESET), "%v", err)
}

func TestHalfCloseKeepsTheOtherDirection(t *testing.T) {
	c, s := connect(t)
	assert.NilError(t, c.(*memnet.Conn).CloseWrite())
	_, err := s.Read(make([]byte, 1))
	assert.Equal(t, err, io.EOF)
	_, err = s.Write([]byte("still"))
	assert.NilError(t, err)
	b := make([]byte, 5)
	_, err = io.ReadFull(c, b)
	assert.NilError(t, err)
	assert.Equal(t, string(b), "still")
}

func TestDeadlines(t *testing.T) {
	c, _ := connect(t)
	assert.NilError(t, c.SetReadDeadline(time.Now().Add(time.Millisecond)))
	_, err := c.Read(make([]byte, 1))
	assert.Assert(t, errors.Is(err, os.ErrDeadlineExceeded), "%v", err)
	var ne net.Error
	assert.Assert(t, errors.As(err, &ne) && ne.Timeout())

	assert.NilError(t, c.SetWriteDeadline(time.Now().Add(time.Millisecond)))
	_, err = c.Write(make([]byte, 2*memnet.Window))
	assert.Assert(t, errors.Is(err, os.ErrDeadlineExceeded), "%v", err)
}

// A writer waits for room, and everything arrives in order.
func TestAFullWindowBlocksAndDrains(t *testing.T) {
	c, s := connect(t)
	data := make([]byte, 3*memnet.Window)
	for i := range data {
		data[i] = byte(i >> 8)
	}
	errs := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		c.Close()
		errs <- err
	}()
	got, err := io.ReadAll(s)
	assert.NilError(t, err)
	assert.NilError(t, <-errs)
	assert.Equal(t, string(got) == string(data), true)
}

func TestDialFailures(t *testing.T) {
	n := memnet.New()
	_, err := n.Dial(t.Context(), here, there)
	assert.Assert(t, errors.Is(err, syscall.ECONNREFUSED), "%v", err)
	_, err = n.Dial(t.Context(), netip.MustParseAddr("2001:db8::1"), there)
	assert.Assert(t, errors.Is(err, syscall.EAFNOSUPPORT), "%v", err)
	n.Filter(func(netip.Addr, netip.AddrPort) error { return syscall.EHOSTUNREACH })
	_, err = n.Dial(t.Context(), here, there)
	assert.Assert(t, errors.Is(err, syscall.EHOSTUNREACH), "%v", err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = n.Dial(ctx, here, there)
	assert.Assert(t, errors.Is(err, context.Canceled), "%v", err)
}

func TestListenTwiceAndClose(t *testing.T) {
	n := memnet.New()
	l, err := n.Listen(there)
	assert.NilError(t, err)
	_, err = n.Listen(there)
	assert.Assert(t, errors.Is(err, syscall.EADDRINUSE), "%v", err)
	waiting, err := n.Dial(t.Context(), here, there)
	assert.NilError(t, err)
	l.Close()
	_, err = l.Accept()
	assert.Assert(t, errors.Is(err, net.ErrClosed), "%v", err)
	_, err = waiting.Read(make([]byte, 1))
	assert.Assert(t, errors.Is(err, syscall.ECONNRESET), "%v", err)
	l, err = n.Listen(there)
	assert.NilError(t, err)
	l.Close()
}
