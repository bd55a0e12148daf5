package source_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
)

// Sessions as scenarios have them: what a scenario costs beside its own work.
func BenchmarkSession(b *testing.B) {
	for _, c := range []struct {
		name, endpoint string
		tls            bool
		lines          []string
	}{
		{"imap", "imap", false, []string{"a1 CAPABILITY", announceIMAP, "a2 LOGIN " + alice + " " + secret, "a3 LOGOUT"}},
		{"pop3", "pop3", false, []string{"XCLIENT ADDR=198.51.100.21", "AUTH PLAIN " + plain(alice, secret), "QUIT"}},
		{"sieve", "sieve", false, []string{"XCLIENT ADDR=198.51.100.21", `AUTHENTICATE "PLAIN" "` + plain(alice, secret) + `"`, "LOGOUT"}},
		{"smtp", "smtp", false, []string{"EHLO x.test", "MAIL FROM:<a@b.test>", "RCPT TO:<x@remote.example>", "QUIT"}},
		{"delivery", "smtp", false, []string{"EHLO x.test", "MAIL FROM:<a@b.test>", "RCPT TO:<" + alice + ">", "DATA", mailText + "\r\n.", "QUIT"}},
		{"submission-tls", "submissions", true, []string{"EHLO x.test", "XCLIENT ADDR=198.51.100.21", "EHLO x.test", "AUTH PLAIN " + plain(alice, secret), "QUIT"}},
		{"imap-tls", "imaps", true, []string{announceIMAP, "a2 AUTHENTICATE PLAIN " + plain(alice, secret), "a3 LOGOUT"}},
	} {
		b.Run(c.name, func(b *testing.B) {
			l := startLab(b, labOptions{})
			h, _ := fixtures.HostOf("proxy")
			to := netip.AddrPortFrom(fixtures.NetworkNamed(h.Network).Source(0).IP4, ports[c.endpoint])
			cfg := &tls.Config{InsecureSkipVerify: true}
			br := bufio.NewReaderSize(nil, 4096)
			b.ReportAllocs()
			for b.Loop() {
				var nc net.Conn
				nc, err := l.net.Dial(context.Background(), h.IP4, to)
				assert.NilError(b, err)
				if c.tls {
					nc = tls.Client(nc, cfg)
				}
				br.Reset(nc)
				br.ReadSlice('\n')
				for _, s := range c.lines {
					io.WriteString(nc, s+"\r\n")
					br.ReadSlice('\n')
				}
				io.Copy(io.Discard, br)
				nc.Close()
			}
		})
	}
}

// TestSessionsAreCheap holds sessions without TLS to a bound that leaves room
// for slow machines: some hundred must not be felt.
func TestSessionsAreCheap(t *testing.T) {
	if testing.Short() {
		t.Skip("it measures: run without -short")
	}
	l := startLab(t, labOptions{})
	session := func() {
		c := &client{t: t, nc: l.dial("proxy", "imap", "ip4")}
		c.br = newReader(c.nc)
		c.line()
		c.say(announceIMAP, "a1 LOGIN "+alice+" "+secret, "a2 LOGOUT")
		for !strings.HasPrefix(c.line(), "a2 OK") {
		}
		c.nc.Close()
	}
	session()
	const n = 500
	start := time.Now()
	for range n {
		session()
	}
	if per := time.Since(start) / n; per > 5*time.Millisecond {
		t.Errorf("a session takes %s", per)
	}
	allocs := testing.AllocsPerRun(100, session)
	if allocs > 600 {
		t.Errorf("a session makes %.0f allocations", allocs)
	}
}
