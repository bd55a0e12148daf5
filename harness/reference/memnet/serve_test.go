package memnet_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"testing"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/harness/reference/memnet"
)

func TestServeIsGivenEveryConnection(t *testing.T) {
	n := memnet.New()
	at := netip.MustParseAddrPort("203.0.113.100:25")
	l, err := n.Listen(at)
	assert.NilError(t, err)
	got := make(chan net.Conn, 1)
	l.Serve(func(c net.Conn) { got <- c })
	c, err := n.Dial(context.Background(), netip.MustParseAddr("203.0.113.10"), at)
	assert.NilError(t, err)
	s := <-got
	assert.Equal(t, s.RemoteAddr().String(), c.LocalAddr().String())
	_, err = io.WriteString(s, "220 there\r\n")
	assert.NilError(t, err)
	s.Close()
	b, err := io.ReadAll(c)
	assert.NilError(t, err)
	assert.Equal(t, string(b), "220 there\r\n")

	assert.NilError(t, l.Close())
	_, err = n.Dial(context.Background(), netip.MustParseAddr("203.0.113.10"), at)
	assert.Assert(t, errors.Is(err, syscall.ECONNREFUSED), "%v", err)
	assert.Equal(t, len(got), 0)
}
