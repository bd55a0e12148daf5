package proto

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mailproof/mailproof/harness/reference/memnet"
	"github.com/mailproof/mailproof/harness/wire"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"
)

// pipe is a connection with room for what is on its way, as TCP has it: with
// net.Pipe, a deadline cannot be set any more once the far end has closed.
func pipe() (ours, theirs net.Conn) {
	return memnet.Pipe(netip.MustParseAddrPort("203.0.113.10:1"), netip.MustParseAddrPort("203.0.113.100:2"))
}

// answered reads one response from a peer that says text and closes.
func answered(t *testing.T, request, text string) (Unit, error) {
	t.Helper()
	ours, theirs := pipe()
	t.Cleanup(func() { ours.Close() })
	written := make(chan struct{})
	go func() {
		defer close(written)
		theirs.Write([]byte(text))
		theirs.Close()
	}()
	c := wire.New(t.Context(), ours, "A", wire.NewTranscript(wire.NewRedactor()), wire.Lab(), wire.Shape{})
	v := NewConversation(HTTP, c)
	v.Sent(request)
	u, err := v.Next(time.Second)
	ours.Close()
	<-written
	return u, err
}

func TestHTTPResponses(t *testing.T) {
	for _, c := range []struct{ name, request, text, lines string }{
		{"length", "GET / HTTP/1.1", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A:b\r\n\r\na\r\nb\n", "HTTP/1.1 200 OK|content-length: 5|x-a: b||a|b"},
		{"chunks", "GET / HTTP/1.1", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", "HTTP/1.1 200 OK|transfer-encoding: chunked||abcde"},
		{"until the end", "GET / HTTP/1.1", "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\none\r\ntwo", "HTTP/1.1 200 OK|connection: close||one|two"},
		{"no body", "GET / HTTP/1.1", "HTTP/1.1 307 Temporary Redirect\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "HTTP/1.1 307 Temporary Redirect|location: /x|content-length: 0"},
		{"upgrade", "GET / HTTP/1.1", "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", "HTTP/1.1 101 Switching Protocols|upgrade: websocket"},
		{"head", "HEAD / HTTP/1.1", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 200 OK|content-length: 5"},
	} {
		u, err := answered(t, c.request, c.text)
		assert.NilError(t, err, c.name)
		assert.Equal(t, strings.Join(u.Lines, "|"), c.lines, c.name)
		assert.Equal(t, u.Status, u.Lines[0])
	}
	u, err := answered(t, "GET / HTTP/1.1", "HTTP/1.1 101 Switching Protocols\r\n\r\n\x81\x02hi")
	assert.NilError(t, err)
	assert.Equal(t, u.Status, "HTTP/1.1 101 Switching Protocols")
	assert.Equal(t, string(WebSocketFrame("hi")), "\x81\x82\x00\x00\x00\x00hi")
	assert.Equal(t, string(WebSocketFrame(strings.Repeat("x", 300))[:4]), "\x81\xfe\x01\x2c")
	for _, c := range []struct{ text, want string }{
		{"* OK ready\r\n", "HTTP/1.1 and a status code"},
		{"HTTP/1.1 2000 OK\r\n", "HTTP/1.1 and a status code"},
		{"HTTP/1.1 200 OK\r\nno field\r\n", "a header field"},
		{"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n", "a length"},
		{"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", "beyond the limit"},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "the size of a chunk"},
		{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n", "the end of a chunk"},
		{"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab", "closed"},
	} {
		_, err := answered(t, "GET / HTTP/1.1", c.text)
		assert.Assert(t, cmp.ErrorContains(err, c.want), "%q", c.text)
	}
}

func TestWebSocketMessages(t *testing.T) {
	read := func(frames string) (Unit, error) {
		ours, theirs := pipe()
		defer ours.Close()
		written := make(chan struct{})
		go func() {
			defer close(written)
			theirs.Write([]byte("HTTP/1.1 101 Switching Protocols\r\n\r\n" + frames))
			theirs.Close()
		}()
		v := NewConversation(HTTP, wire.New(t.Context(), ours, "A", wire.NewTranscript(wire.NewRedactor()), wire.Lab(), wire.Shape{}))
		_, err := v.Next(time.Second)
		assert.NilError(t, err)
		assert.Assert(t, v.WebSocket())
		u, err := v.Next(time.Second)
		ours.Close()
		<-written
		return u, err
	}
	u, err := read("\x89\x01p\x01\x02{\"\x80\x02a}")
	assert.NilError(t, err)
	assert.Equal(t, u.Status, `{"a}`)
	u, err = read("\x81\x7e\x01\x2c" + strings.Repeat("y", 300))
	assert.NilError(t, err)
	assert.Equal(t, len(u.Status), 300)
	u, err = read("\x88\x00")
	assert.NilError(t, err)
	assert.Equal(t, u.Status, "close")
	for _, bad := range []string{"\x81\xff", "\xf1\x00", "\x81\x7f\xff\xff\xff\xff\xff\xff\xff\xff", "\x81", strings.Repeat("\x89\x00", 65)} {
		_, err := read(bad)
		assert.Assert(t, err != nil, "%q", bad)
	}
}
