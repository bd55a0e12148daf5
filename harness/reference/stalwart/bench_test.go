package stalwart_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"testing"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/harness/reference/memnet"
	"github.com/mailproof/mailproof/harness/reference/stalwart"
)

// Sessions as scenarios have them: what a scenario costs beside its own work.
func BenchmarkSession(b *testing.B) {
	p := plain("alice@example.test", "alicepw")
	for _, c := range []struct {
		name  string
		port  uint16
		tls   bool
		lines []string
	}{
		{"imap", 143, false, []string{"a1 CAPABILITY", "a2 AUTHENTICATE PLAIN " + p, "a3 LOGOUT"}},
		{"imap-tls", 993, true, []string{"a2 AUTHENTICATE PLAIN " + p, "a3 LOGOUT"}},
		{"pop3-tls", 995, true, []string{"AUTH PLAIN " + p, "QUIT"}},
		{"smtp", 25, false, []string{"EHLO x.test", "MAIL FROM:<a@b.test>", "RCPT TO:<alice@example.test>", "QUIT"}},
		{"delivery", 25, false, []string{"EHLO x.test", "MAIL FROM:<a@b.test>", "RCPT TO:<alice@example.test>", "DATA", "Subject: x\r\n\r\nx\r\n.", "QUIT"}},
		{"session-document", 8080, false, []string{"GET /jmap/session HTTP/1.0", ""}},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := startLab(b, labOptions{keys: "server.proxy.trusted-networks = \"172.30.1.1\"\n"})
			h := header("203.0.113.7:40001", "198.51.100.1:143")
			cfg := &tls.Config{InsecureSkipVerify: true}
			br := bufio.NewReaderSize(nil, 4096)
			b.ReportAllocs()
			for b.Loop() {
				nc, err := l.net.Dial(context.Background(), netip.MustParseAddr(proxyAt), netip.AddrPortFrom(netip.MustParseAddr("172.30.1.10"), c.port))
				assert.NilError(b, err)
				nc.Write(h)
				var s net.Conn = nc
				if c.tls {
					s = tls.Client(nc, cfg)
				}
				br.Reset(s)
				if c.port != 8080 {
					br.ReadSlice('\n')
				}
				for _, line := range c.lines {
					io.WriteString(s, line+"\r\n")
					if c.port != 8080 {
						br.ReadSlice('\n')
					}
				}
				io.Copy(io.Discard, br)
				s.Close()
			}
		})
	}
}

// BenchmarkStart is a server with as many accounts as a lab's.
func BenchmarkStart(b *testing.B) {
	for _, accounts := range []int{0, 120} {
		b.Run(fmt.Sprint(accounts), func(b *testing.B) {
			for b.Loop() {
				srv, err := stalwart.New(configOf(b, labOptions{}))
				assert.NilError(b, err)
				l := &lab{t: b, net: memnet.New(), srv: srv}
				assert.NilError(b, srv.Start(context.Background(), func(at netip.AddrPort) (net.Listener, error) { return l.net.Listen(at) }))
				for i := range accounts {
					l.api("POST", "/api/principal", fmt.Sprintf(`{"type":"individual","name":"u%d","secrets":["x"],"roles":["user"]}`, i))
				}
				assert.NilError(b, srv.Close())
			}
		})
	}
}

// BenchmarkRestart is what a row of the table of settings costs.
func BenchmarkRestart(b *testing.B) {
	l := startLab(b, labOptions{})
	for b.Loop() {
		assert.NilError(b, l.srv.Restart(context.Background()))
	}
}
