package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/mailproof/mailproof/harness/reference/memnet"
)

// benchSource is the least that a sign-in needs of an IMAP source; after it,
// what comes is thrown away, or sent back where echo is set.
func benchSource(b *testing.B, n *memnet.Network, mode TLSMode, echo bool) {
	nl, err := n.Listen(netip.AddrPortFrom(source4, innerPort(IMAP, mode)))
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	cfg := &tls.Config{Certificates: []tls.Certificate{pki().inner}}
	wg.Go(func() {
		for {
			nc, err := nl.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				if mode == Implicit {
					nc = tls.Server(nc, cfg)
				}
				br := bufio.NewReaderSize(nc, 1024)
				io.WriteString(nc, "* OK [CAPABILITY IMAP4rev1 SASL-IR ID AUTH=PLAIN] ready.\r\n")
				for _, reply := range []string{"* ID NIL\r\nF1 OK ID completed.\r\n", "a1 OK Logged in\r\n"} {
					if _, err := br.ReadSlice('\n'); err != nil {
						return
					}
					io.WriteString(nc, reply)
				}
				if echo {
					io.Copy(nc, br)
					return
				}
				io.Copy(io.Discard, br)
			})
		}
	})
	b.Cleanup(func() { nl.Close(); wg.Wait() })
}

type benchLab struct {
	net  *memnet.Network
	name string
	mode TLSMode
}

// newBenchLab serves a proxy without a log.
func newBenchLab(b *testing.B, mode TLSMode, echo bool) *benchLab {
	cfg := labConfig(ForwardXCLIENT, mode)
	cfg.Server.LogLevel = "off"
	name := "imaps"
	if mode == Plain {
		name = "imap"
		cfg.Capabilities = map[Protocol]Capabilities{IMAP: {AllowCleartext: true}}
	}
	n := memnet.New()
	benchSource(b, n, mode, echo)
	p, err := New(cfg, Options{
		Listen: func(at netip.AddrPort) (net.Listener, error) { return n.Listen(at) },
		Dial: func(ctx context.Context, _ netip.Addr, to netip.AddrPort) (net.Conn, error) {
			return n.Dial(ctx, egress4, to)
		},
		Roots: pki().roots,
	})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx) }()
	<-p.Ready()
	b.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	})
	return &benchLab{net: n, name: name, mode: mode}
}

var benchClientTLS = sync.OnceValue(func() *tls.Config {
	return &tls.Config{RootCAs: pki().roots, ServerName: "mail.example.org"}
})

// signIn connects and signs in; br and scratch are reused.
func (l *benchLab) signIn(b *testing.B, br *bufio.Reader) net.Conn {
	nc, err := l.net.Dial(context.Background(), client4, netip.AddrPortFrom(public4, publicPorts[l.name]))
	if err != nil {
		b.Fatal(err)
	}
	var conn net.Conn = nc
	if l.mode != Plain {
		conn = tls.Client(nc, benchClientTLS())
	}
	br.Reset(conn)
	line := func(begin string) {
		got, err := br.ReadSlice('\n')
		if err != nil || !bytes.HasPrefix(got, []byte(begin)) {
			b.Fatalf("%q, %v", got, err)
		}
	}
	line("* OK")
	io.WriteString(conn, "a1 LOGIN alice@example.org secret\r\n")
	line("a1 OK")
	return conn
}

// BenchmarkSignIn is one whole IMAP sign-in through the proxy: greeting,
// LOGIN, dial, ID, AUTHENTICATE, splice, end. In clear text it is the cost
// beyond TLS, of the proxy, its client and its source together.
func BenchmarkSignIn(b *testing.B) {
	for name, mode := range map[string]TLSMode{"clear": Plain, "tls": Implicit} {
		b.Run(name, func(b *testing.B) {
			l := newBenchLab(b, mode, false)
			br := bufio.NewReaderSize(nil, 1024)
			b.ReportAllocs()
			for b.Loop() {
				conn := l.signIn(b, br)
				conn.Close()
				io.Copy(io.Discard, conn)
			}
		})
	}
}

// BenchmarkHandshakes is what BenchmarkSignIn/tls spends on TLS alone: the
// same two handshakes.
func BenchmarkHandshakes(b *testing.B) {
	inner := &tls.Config{RootCAs: pki().roots, ServerName: "source.example.org"}
	b.ReportAllocs()
	for b.Loop() {
		for _, leg := range []struct {
			client *tls.Config
			cert   tls.Certificate
		}{{benchClientTLS(), pki().public}, {inner, pki().inner}} {
			a, z := memnet.Pipe(netip.AddrPortFrom(client4, 1), netip.AddrPortFrom(public4, 2))
			done := make(chan error, 1)
			go func() { done <- tls.Server(z, &tls.Config{Certificates: []tls.Certificate{leg.cert}}).Handshake() }()
			if err := tls.Client(a, leg.client).Handshake(); err != nil {
				b.Fatal(err)
			}
			if err := <-done; err != nil {
				b.Fatal(err)
			}
			a.Close()
			z.Close()
		}
	}
}

// BenchmarkSplice is the throughput of a joined session, there and back.
func BenchmarkSplice(b *testing.B) {
	for name, mode := range map[string]TLSMode{"clear": Plain, "tls": Implicit} {
		b.Run(name, func(b *testing.B) {
			l := newBenchLab(b, mode, true)
			br := bufio.NewReaderSize(nil, 64<<10)
			conn := l.signIn(b, br)
			defer conn.Close()
			block := make([]byte, 64<<10)
			back := make([]byte, len(block))
			b.SetBytes(int64(2 * len(block)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := conn.Write(block); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(br, back); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
