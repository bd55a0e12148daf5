package proxy

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/mailproof/mailproof/harness/reference/memnet"
)

// fuzzProxy takes credentials in clear text, so that fuzzing gets as far, and
// reaches sources through dial. It is not served: sessions are run one by one.
func fuzzProxy(tb testing.TB, f Forwarding, dial func(to netip.AddrPort) (net.Conn, error)) *Proxy {
	cfg := labConfig(f, Plain)
	cfg.Server.LogLevel = "off"
	cfg.Capabilities = map[Protocol]Capabilities{}
	for _, p := range interactive {
		cfg.Capabilities[p] = Capabilities{AllowCleartext: true}
	}
	p, err := New(cfg, Options{Dial: func(_ context.Context, _ netip.Addr, to netip.AddrPort) (net.Conn, error) { return dial(to) }})
	if err != nil {
		tb.Fatal(err)
	}
	return p
}

// run gives a session of a listener all that its client says, and returns all
// that the proxy says.
func (p *Proxy) run(name string, said []byte) []byte {
	var l *listener
	for i := range p.cfg.Listeners {
		if p.cfg.Listeners[i].Name == name {
			l = &listener{Listener: &p.cfg.Listeners[i]}
		}
	}
	client, server := memnet.Pipe(netip.AddrPortFrom(client4, 40000), netip.AddrPortFrom(public4, 143))
	done := make(chan []byte)
	go func() {
		client.Write(said)
		client.CloseWrite()
		b, _ := io.ReadAll(client)
		client.Close()
		done <- b
	}()
	p.session(context.Background(), l, server)
	return <-done
}

// fuzzClient feeds a protocol with whatever a client may say. The proxy must
// come to an end, answer in whole lines, and dial at most once.
func fuzzClient(f *testing.F, name string, seeds ...string) {
	var dials atomic.Int32
	p := fuzzProxy(f, ForwardXCLIENT, func(netip.AddrPort) (net.Conn, error) {
		dials.Add(1)
		return nil, syscall.ECONNREFUSED
	})
	for _, s := range seeds {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, said []byte) {
		if len(said) > 512<<10 {
			return
		}
		dials.Store(0)
		answer := p.run(name, said)
		if len(answer) > 0 && !bytes.HasSuffix(answer, []byte("\r\n")) {
			t.Fatalf("the answer ends in the middle of a line: %q", answer)
		}
		if n := dials.Load(); n > 1 {
			t.Fatalf("%d dials", n)
		}
		if dials.Load() == 1 && !bytes.Contains(answer, []byte("unavailable")) {
			t.Fatalf("dialled, and the answer is %q", answer)
		}
	})
}

func FuzzIMAPClient(f *testing.F) {
	fuzzClient(f, "imap", "a LOGIN x y\r\n", "a CAPABILITY\r\nb ID (\"x-proxy-ttl\" \"1\" \"a\" NIL)\r\nc AUTHENTICATE PLAIN\r\nAGEAYg==\r\n",
		"a LOGIN {1}\r\nx {1+}\r\ny\r\n", "a AUTHENTICATE LOGIN eA==\r\n*\r\nb AUTHENTICATE XOAUTH2 =\r\nc STARTTLS\r\nx", "a LOGOUT\r\n", "(\r\n\"\r\n+ x\r\n")
}

func FuzzPOP3Client(f *testing.F) {
	fuzzClient(f, "pop3", "USER x\r\nPASS y\r\n", "CAPA\r\nAUTH\r\nAUTH PLAIN\r\nAGEAYg==\r\n", "AUTH LOGIN eA==\r\neQ==\r\n", "STLS\r\nx", "APOP\r\nUTF8\r\nQUIT\r\n")
}

func FuzzSubmissionClient(f *testing.F) {
	fuzzClient(f, "submission", "EHLO x\r\nAUTH PLAIN AGEAYg==\r\n", "HELO x\r\nAUTH LOGIN\r\neA==\r\neQ==\r\n", "EHLO [IPv6:::1]\r\nMAIL FROM:<>\r\nSTARTTLS\r\nx", "QUIT\r\n",
		"EHLO x\r\nAUTH OAUTHBEARER bixhPXgsAWF1dGg9QmVhcmVyIHQBAQ==\r\n")
}

func FuzzManageSieveClient(f *testing.F) {
	fuzzClient(f, "sieve", "AUTHENTICATE \"PLAIN\" \"AGEAYg==\"\r\n", "AUTHENTICATE \"PLAIN\"\r\n{8+}\r\nAGEAYg==\r\n", "NOOP {3+}\r\na\r\n\r\nCAPABILITY\r\nLOGOUT\r\n", "STARTTLS\r\nx", "AUTHENTICATE \"LOGIN\" \"eA==\"\r\n\"*\"\r\n")
}

// FuzzSource answers a sign-in with whatever a source may say. Credentials
// must not come before the words that accept the announcement.
func FuzzSource(f *testing.F) {
	names := []string{"imap", "pop3", "submission", "sieve"}
	said := [][]byte{
		[]byte("a LOGIN x secret\r\nb NOOP\r\n"), []byte("USER x\r\nPASS secret\r\nSTAT\r\n"),
		[]byte("EHLO x\r\nAUTH PLAIN " + plainResponse("x", "secret") + "\r\nMAIL\r\n"), []byte(`AUTHENTICATE "PLAIN" "` + plainResponse("x", "secret") + "\"\r\nLOGOUT\r\n"),
	}
	accepts := []string{"F1 OK", "+OK Updated", "220", `OK "Updated"`}
	f.Add(0, []byte("* OK [CAPABILITY ID] x\r\n* ID NIL\r\nF1 OK x\r\n* X\r\na OK x\r\nmore"))
	f.Add(0, []byte("* OK x\r\n* CAPABILITY ID\r\nP0 OK\r\nF1 OK x\r\n+ \r\na NO x\r\n"))
	f.Add(1, []byte("+OK [XCLIENT] x\r\n+OK Updated\r\n+ \r\n+OK in\r\nmore"))
	f.Add(2, []byte("220 x\r\n250-x\r\n250 XCLIENT ADDR PORT\r\n220 x\r\n250 x\r\n334 \r\n235 x\r\nmore"))
	f.Add(3, []byte("\"XCLIENT\"\r\n\"SIEVE\" {1}\r\nx\r\nOK \"x\"\r\nOK \"Updated\"\r\n\"\"\r\nOK (X) {1}\r\ny\r\nmore"))
	f.Fuzz(func(t *testing.T, i int, source []byte) {
		if i < 0 || i >= len(names) || len(source) > 512<<10 {
			return
		}
		var far *memnet.Conn
		p := fuzzProxy(t, ForwardXCLIENT, func(to netip.AddrPort) (net.Conn, error) {
			near, end := memnet.Pipe(netip.AddrPortFrom(egress4, 40000), to)
			far = end
			end.Write(source)
			end.CloseWrite()
			return near, nil
		})
		answer := p.run(names[i], said[i])
		if far == nil {
			t.Fatalf("not dialled: %q", answer)
		}
		got, _ := io.ReadAll(far)
		far.Close()
		if strings.Contains(string(got), "AUTH") && !strings.Contains(strings.ToUpper(string(source)), strings.ToUpper(accepts[i])) {
			t.Fatalf("credentials came after %q: %q", source, got)
		}
		for _, line := range strings.Split(string(got), "\r\n") {
			if strings.Contains(line, "XCLIENT") && !strings.Contains(strings.ToUpper(string(source)), "XCLIENT") {
				t.Fatalf("XCLIENT came after %q: %q", source, got)
			}
		}
	})
}
