//go:build unix

package harness_test

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/netip"
	"net/textproto"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"github.com/emersion/go-smtp"
	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/reference/memnet"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/scenarios"
)

// lab starts the reference lab of both suites for a benchmark.
func lab(b *testing.B) *harness.Target {
	b.Helper()
	var specs []harness.SourceSpec
	for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
		specs = append(specs, harness.SourceSpec{Name: release, Kind: fixtures.DovecotPostfix, Version: release, Profile: fixtures.Instrumented})
	}
	l, err := harness.StartReference(context.Background(), specs, true)
	assert.NilError(b, err)
	b.Cleanup(func() { l.Close(context.Background()) })
	return l.Target()
}

// spent is what something took: the process's own time on all processors, which
// a busy machine lengthens less than the clock's, and what it allocated.
type spent struct {
	cpu    time.Duration
	octets float64
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func measure(n int, do func()) spent {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := cpuTime()
	for range n {
		do()
	}
	cpu := cpuTime() - began
	runtime.ReadMemStats(&after)
	return spent{cpu / time.Duration(n), float64(after.TotalAlloc-before.TotalAlloc) / float64(n)}
}

// handshake is one TLS handshake on the in-memory network and nothing else,
// both sides, the certificate checked.
func handshake(b *testing.B) func() {
	b.Helper()
	ca, err := fixtures.NewAuthority()
	assert.NilError(b, err)
	cert, err := ca.Certificate(fixtures.SourceHost(0))
	assert.NilError(b, err)
	server := &tls.Config{Certificates: []tls.Certificate{cert}}
	client := &tls.Config{RootCAs: ca.Pool(), ServerName: fixtures.SourceHost(0), MinVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.CurveP256}}
	at := netip.MustParseAddrPort("203.0.113.1:993")
	return func() {
		near, far := memnet.Pipe(at, at)
		done := make(chan error, 1)
		go func() {
			s := tls.Server(far, server)
			err := s.Handshake()
			io.Copy(io.Discard, s)
			s.Close()
			done <- err
		}()
		c := tls.Client(near, client)
		if err := c.Handshake(); err != nil {
			b.Fatal(err)
		}
		c.Close()
		if err := <-done; err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkHandshake(b *testing.B) {
	do := handshake(b)
	b.ReportAllocs()
	for b.Loop() {
		do()
	}
}

// handshakes counts the TLS handshakes of a run: those of its connections, those
// of the proxy to the source, and those of the reader of delivered messages.
func handshakes(found *result.Run) int {
	n := 0
	for i := range found.Results {
		r := &found.Results[i]
		own := strings.Count(r.Transcript, " == TLS 1.")
		n += own
		if r.Facet.Driver == "through" {
			n += own
		}
		for _, w := range r.Witness {
			if w.Kind == "message" {
				n++
			}
		}
	}
	return n
}

// The whole corpus, both suites. Beside the time and the octets of one run it
// reports what is left for each result without the TLS handshakes, which are
// measured bare between one run and the next: a busy machine slows both.
func BenchmarkCorpus(b *testing.B) {
	for _, jobs := range []int{1, 4} {
		b.Run(map[int]string{1: "1 job", 4: "4 jobs"}[jobs], func(b *testing.B) {
			target := lab(b)
			shake := handshake(b)
			all, err := scenarios.All()
			assert.NilError(b, err)
			var found *result.Run
			one := func() {
				found, err = harness.Run(context.Background(), target, harness.Scenarios(all), harness.Jobs(jobs))
				if err != nil || found.Exit != 0 {
					b.Fatalf("%v %+v", err, found)
				}
			}
			one()
			b.ReportAllocs()
			var total, bare spent
			for b.Loop() {
				s := measure(1, one)
				total.cpu += s.cpu
				total.octets += s.octets
				b.StopTimer()
				s = measure(100, shake)
				bare.cpu += s.cpu
				bare.octets += s.octets
				b.StartTimer()
			}
			bare.cpu /= time.Duration(b.N)
			bare.octets /= float64(b.N)
			n, tlsCount := float64(len(found.Results)), float64(handshakes(found))
			octets := total.octets / float64(b.N)
			b.ReportMetric(n, "results/op")
			b.ReportMetric(tlsCount, "handshakes/op")
			b.ReportMetric((octets-tlsCount*bare.octets)/n/1000, "kB-beyond-TLS/result")
			cpu := float64(total.cpu.Microseconds()) / float64(b.N)
			b.ReportMetric(float64(bare.cpu.Microseconds()), "us/bare-handshake")
			b.ReportMetric((cpu-tlsCount*float64(bare.cpu.Microseconds()))/n, "us-beyond-TLS/result")
			b.ReportMetric(cpu/(tlsCount*float64(bare.cpu.Microseconds())), "x-bare-TLS")
		})
	}
}

// saslPlain is SASL PLAIN (RFC 4616) as the libraries take it.
type saslPlain run.Account

func (a saslPlain) Start() (string, []byte, error) {
	return "PLAIN", []byte("\x00" + a.Address + "\x00" + a.Password), nil
}

func (a saslPlain) Next([]byte) ([]byte, error) { return nil, nil }

// One scenario for each protocol beside a library's own client that holds the
// same dialogue with the same server: the ratio is what the harness adds.
func BenchmarkScenario(b *testing.B) {
	for _, c := range []struct {
		name, scenario, endpoint string
		peer                     func(nc net.Conn, cfg *tls.Config, a run.Account) error
	}{
		{"imap beside go-imap", "client-address.imap", "imaps", func(nc net.Conn, cfg *tls.Config, a run.Account) error {
			c := imapclient.New(tls.Client(nc, cfg), nil)
			defer c.Close()
			if _, err := c.ID(&imap.IDData{Name: "peer"}).Wait(); err != nil {
				return err
			}
			if err := c.Authenticate(saslPlain(a)); err != nil {
				return err
			}
			return c.Logout().Wait()
		}},
		{"pop3 beside net-textproto", "client-address.pop3", "pop3s", func(nc net.Conn, cfg *tls.Config, a run.Account) error {
			c := textproto.NewConn(tls.Client(nc, cfg))
			defer c.Close()
			if _, err := c.ReadLine(); err != nil {
				return err
			}
			for _, line := range []string{"USER " + a.Address, "PASS " + a.Password, "QUIT"} {
				if err := c.PrintfLine("%s", line); err != nil {
					return err
				}
				if _, err := c.ReadLine(); err != nil {
					return err
				}
			}
			return nil
		}},
		{"submission beside go-smtp", "client-address.submission", "submissions", func(nc net.Conn, cfg *tls.Config, a run.Account) error {
			c := smtp.NewClient(tls.Client(nc, cfg))
			defer c.Close()
			if err := c.Hello("peer.example"); err != nil {
				return err
			}
			if err := c.Auth(saslPlain(a)); err != nil {
				return err
			}
			_ = c.Quit() // the server closes first, and does not wait for TLS's own goodbye
			return nil
		}},
	} {
		b.Run(c.name, func(b *testing.B) {
			target := lab(b)
			src := target.Sources[0]
			target.Sources = target.Sources[:1]
			accounts, release, err := src.Accounts.Take(context.Background(), 1)
			assert.NilError(b, err)
			defer release()
			ep, _ := src.Endpoint(c.endpoint)
			cfg := &tls.Config{RootCAs: src.Roots, ServerName: src.ServerName, MinVersion: tls.VersionTLS12, CurvePreferences: []tls.CurveID{tls.CurveP256}}
			peer := func() {
				nc, err := target.Vantages[run.Client].Dial(context.Background(), netip.AddrPortFrom(src.Addr(run.Client, run.IP4), ep.Port))
				if err == nil {
					err = c.peer(nc, cfg, accounts[0])
				}
				if err != nil {
					b.Fatal(err)
				}
			}
			all, err := scenarios.All()
			assert.NilError(b, err)
			results := 0
			ours := func() {
				found, err := harness.Run(context.Background(), target, harness.Scenarios(all), harness.Select(c.scenario), harness.Jobs(1))
				if err != nil || found.Exit != 0 {
					b.Fatalf("%v %+v", err, found)
				}
				results = len(found.Results)
			}
			peer()
			ours()
			b.ReportAllocs()
			var own, other spent
			for b.Loop() {
				o, p := measure(1, ours), measure(results, peer)
				own.cpu += o.cpu
				own.octets += o.octets
				other.cpu += p.cpu * time.Duration(results)
				other.octets += p.octets * float64(results)
			}
			b.ReportMetric(float64(own.cpu.Microseconds())/float64(b.N*results), "us/result")
			b.ReportMetric(float64(other.cpu.Microseconds())/float64(b.N*results), "us/peer")
			b.ReportMetric(float64(own.cpu)/float64(other.cpu), "x-peer-time")
			b.ReportMetric(own.octets/other.octets, "x-peer-octets")
		})
	}
}

const negative = `id: wait.closes
claim: The source closes.
level: must
requirements: E-02
spec: none
means: It does not.
needs: dovecot-postfix
over: smtp
families: ip4
witness: effect

# the port answers
open B smtp source from relay
B <- 220 {}

# and does not close
open A smtp source from relay
A <- 220 {}
A within 200ms <x
`

// Waits for what does not come overlap: k of them take as long as one.
func BenchmarkNegatives(b *testing.B) {
	lib, err := scenarios.Library()
	assert.NilError(b, err)
	for _, k := range []int{1, 4, 16} {
		b.Run(map[int]string{1: "k=1", 4: "k=4", 16: "k=16"}[k], func(b *testing.B) {
			var list []*script.Scenario
			for i := range k {
				id := "wait.closes" + string(rune('a'+i))
				s, err := script.Parse("wait/closes.txtar", []byte(strings.Replace(negative, "wait.closes", id, 1)), lib)
				assert.NilError(b, err)
				list = append(list, s)
			}
			p := play(b, func(e run.Endpoint, c *memnet.Conn) { io.WriteString(c, greeting(e.Protocol)); keep(c) })
			for b.Loop() {
				found, err := harness.Run(context.Background(), p.Target, harness.Scenarios(list))
				if err != nil || found.Counts.Fail != k {
					b.Fatalf("%v %+v", err, found)
				}
			}
			b.ReportMetric(float64(b.Elapsed())/float64(b.N)/float64(200*time.Millisecond), "x-longest-wait")
		})
	}
}
