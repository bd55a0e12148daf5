package harness_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf8"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/reference/memnet"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/wire"
)

// played is a target whose one source is played by a test.
type played struct {
	*harness.Target
	net *memnet.Network
}

// play makes a target of a trixie source at whose declared ports a test's own
// server stands. A nil server leaves the ports closed.
func play(t testing.TB, serve func(e run.Endpoint, c *memnet.Conn)) *played {
	t.Helper()
	target, err := harness.Blueprint("reference", []harness.SourceSpec{{Name: "played", Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.Instrumented}}, false)
	assert.NilError(t, err)
	p := &played{target, memnet.New()}
	for _, h := range fixtures.Hosts() {
		target.Vantages[h.Vantage] = host{p.net, h.Pair}
	}
	target.Sources[0].Accounts = harness.NewAccountPool(0)
	if serve == nil {
		return p
	}
	var served sync.WaitGroup
	for _, e := range target.Sources[0].Endpoints {
		for _, n := range fixtures.Networks() {
			for _, a := range []netip.Addr{n.Source(0).IP4, n.Source(0).IP6} {
				l, err := p.net.Listen(netip.AddrPortFrom(a, e.Port))
				assert.NilError(t, err)
				l.Serve(func(c net.Conn) { served.Go(func() { serve(e, c.(*memnet.Conn)) }) })
				t.Cleanup(func() { l.Close() })
			}
		}
	}
	t.Cleanup(served.Wait)
	return p
}

// host is a vantage on a test's network.
type host struct {
	net *memnet.Network
	fixtures.Pair
}

func (h host) Addr(f run.Family) netip.Addr { return h.Of(string(f)) }

func (h host) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return memnet.Host{Net: h.net, Addr: h.Of(string(run.FamilyOf(to.Addr())))}.Dial(ctx, to)
}

// judge runs scenarios and demands that it ends in bounded time.
func judge(t *testing.T, target *harness.Target, opts ...harness.Option) *result.Run {
	t.Helper()
	done := make(chan struct{})
	var found *result.Run
	var err error
	go func() {
		defer close(done)
		found, err = harness.Run(t.Context(), target, opts...)
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("the run has no end")
	}
	assert.NilError(t, err)
	return found
}

// hang says no more on a connection until the other end closes it: whoever
// waits for more has waited out its deadline at once.
func hang(c *memnet.Conn) {
	c.Lag(time.Hour)
	keep(c)
}

// keep says no more on a connection until the other end closes it.
func keep(c net.Conn) {
	_, _ = io.Copy(io.Discard, c)
	c.Close()
}

func flood(c net.Conn, unit string) {
	b := []byte(strings.Repeat(unit, 1+4096/len(unit)))
	for {
		if _, err := c.Write(b); err != nil {
			break
		}
	}
	c.Close()
}

// greeting is how a good server of the protocol begins.
func greeting(protocol string) string {
	switch protocol {
	case "imap":
		return "* OK [CAPABILITY IMAP4rev1 STARTTLS ID] ready.\r\n"
	case "pop3":
		return "+OK ready.\r\n"
	case "managesieve":
		return "\"SIEVE\" \"fileinto\"\r\n\"STARTTLS\"\r\nOK \"ready.\"\r\n"
	}
	return "220 source.example.test ESMTP\r\n"
}

// A server that is hostile or dead fails each claim that meets it with one
// finding that says what was wanted, what came instead, where, and what it
// means; nothing waits longer than its deadline, and nothing is left running.
func TestHostileServers(t *testing.T) {
	junk := string([]byte{0x16, 0x03, 0x01, 0xff, 0xff, 0x00, 0x80, 0xfe, '\r', '\n'})
	for _, h := range []struct {
		name  string
		serve func(e run.Endpoint, c *memnet.Conn)
		plain []string // what may be found where the server begins in clear text
		tls   []string // what may be found where TLS comes first
	}{
		{"accepts and never speaks", func(_ run.Endpoint, c *memnet.Conn) { hang(c) },
			[]string{"timeout: nothing within"}, []string{"tls: the handshake failed: A: nothing complete came within 10s"}},
		{"speaks first, and wrong", func(_ run.Endpoint, c *memnet.Conn) {
			io.WriteString(c, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
			hang(c)
		}, []string{"malformed: A: not ", "mismatch: HTTP/1.1 400 Bad Request", "timeout: nothing within"}, []string{"tls: the handshake failed"}},
		{"an endless line", func(_ run.Endpoint, c *memnet.Conn) { flood(c, "x") },
			[]string{"malformed: A: the peer sent a line beyond the limit of"}, []string{"tls: the handshake failed"}},
		{"an endless reply", func(e run.Endpoint, c *memnet.Conn) {
			flood(c, map[string]string{"imap": "* more\r\n", "pop3": "more\r\n", "managesieve": "\"MORE\"\r\n", "smtp": "220-more\r\n"}[e.Protocol])
		}, []string{"malformed: A: ", "mismatch: * more", "timeout: nothing"}, []string{"tls: the handshake failed"}},
		{"an endless literal", func(e run.Endpoint, c *memnet.Conn) { io.WriteString(c, "* OK {999999999}\r\n"); flood(c, "x") },
			[]string{"malformed: A: "}, []string{"tls: the handshake failed"}},
		{"invalid UTF-8", func(_ run.Endpoint, c *memnet.Conn) { io.WriteString(c, "\xff\xfe\xc3\x28 ready\r\n"); hang(c) },
			[]string{`\xff\xfe\xc3( ready`, "timeout: nothing within"}, []string{"tls: the handshake failed"}},
		{"TLS junk", func(_ run.Endpoint, c *memnet.Conn) { io.WriteString(c, junk); hang(c) },
			[]string{`\x16\x03\x01`, "timeout: nothing within"}, []string{"tls: the handshake failed"}},
		{"closes at once", func(_ run.Endpoint, c *memnet.Conn) { c.Close() },
			[]string{"closed: the peer closed the connection"}, []string{"tls: the handshake failed: A: the peer closed", "tls: the handshake failed: A: the peer reset", "closed: the peer closed", "closed: the peer reset"}},
		{"resets at once", func(_ run.Endpoint, c *memnet.Conn) { c.Reset() },
			[]string{"closed: the peer reset the connection"}, []string{"tls: the handshake failed: A: the peer reset", "closed: the peer reset"}},
		{"resets in the middle of a line", func(e run.Endpoint, c *memnet.Conn) {
			io.WriteString(c, greeting(e.Protocol)[:4])
			waitRead(c)
			c.Reset()
		}, []string{"closed: the peer reset the connection"}, []string{"tls: the handshake failed"}},
		{"closes in the middle of a line", func(e run.Endpoint, c *memnet.Conn) {
			io.WriteString(c, greeting(e.Protocol)[:4])
			c.CloseWrite()
			keep(c)
		}, []string{"closed: the peer closed the connection in the middle of the line "}, []string{"tls: the handshake failed"}},
		{"greets and is silent for ever", func(e run.Endpoint, c *memnet.Conn) { io.WriteString(c, greeting(e.Protocol)); hang(c) },
			[]string{"timeout: nothing within"}, []string{"tls: the handshake failed"}},
		{"greets and resets at the first command", func(e run.Endpoint, c *memnet.Conn) {
			io.WriteString(c, greeting(e.Protocol))
			c.Read(make([]byte, 1))
			c.Reset()
		}, []string{"closed: the peer reset the connection"}, []string{"tls: the handshake failed"}},
		{"greets and never reads", func(e run.Endpoint, c *memnet.Conn) {
			io.WriteString(c, greeting(e.Protocol))
			c.Lag(time.Hour)
		}, []string{"timeout: nothing within"}, []string{"tls: the handshake failed"}},
	} {
		t.Run(h.name, func(t *testing.T) {
			t.Parallel()
			p := play(t, h.serve)
			found := judge(t, p.Target, harness.Select("lifecycle.greeting-*"))
			assert.Equal(t, found.Exit, result.ExitFailed)
			assert.Equal(t, len(found.Results), 16)
			for i := range found.Results {
				r := &found.Results[i]
				want := h.plain
				if r.Facet.TLS == "implicit" {
					want = h.tls
				}
				clear(t, r, want)
			}
			for _, d := range found.Diagnoses {
				assert.Assert(t, d.Remedy.Text != "", "%s says what to do", d.Code)
			}
		})
	}
}

// waitRead gives the other end time to read what was sent: a reset would
// discard it.
func waitRead(c *memnet.Conn) {
	c.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	c.Read(make([]byte, 1))
}

// clear demands that a result failed with one finding that a reader can act on.
func clear(t *testing.T, r *result.Result, want []string) {
	t.Helper()
	assert.Equal(t, r.Verdict, result.Fail, "%s: %s", r.Key(), r.Reason)
	assert.Equal(t, len(r.Findings), 1, r.Key())
	f := r.Findings[0]
	text := f.Code + ": " + f.Found
	ok := false
	for _, w := range want {
		ok = ok || strings.Contains(text, w)
	}
	assert.Assert(t, ok, "%s: %q is none of %q", r.Key(), text, want)
	assert.Assert(t, f.Wanted != "" && f.Means != "" && f.Remedy != "" && f.At.File != "" && f.At.Line > 0, "%s: %+v", r.Key(), f)
	for _, s := range []string{f.Wanted, f.Found, r.Transcript} {
		assert.Assert(t, utf8.ValidString(s) && !strings.ContainsAny(s, "\x00\x1b\r"), "%q", s)
	}
	assert.Assert(t, len(f.Found) < 2000, "%d octets of what was found", len(f.Found))
	assert.Assert(t, len(r.Transcript) < 1<<20, "%d octets of transcript", len(r.Transcript))
}

// A handshake may fail in many ways after STARTTLS was agreed.
func TestHostileHandshakes(t *testing.T) {
	for name, upgrade := range map[string]func(c *memnet.Conn){
		"silence": func(c *memnet.Conn) { hang(c) },
		"junk":    func(c *memnet.Conn) { io.WriteString(c, "250 ok\r\n"); hang(c) },
		"close":   func(c *memnet.Conn) { c.Read(make([]byte, 512)); c.Close() },
		"alert": func(c *memnet.Conn) {
			s := tls.Server(c, &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10})
			_ = s.Handshake()
			c.Close()
		},
		"flood": func(c *memnet.Conn) { flood(c, "\x16\x03\x03\x40\x00") },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := play(t, func(e run.Endpoint, c *memnet.Conn) {
				if e.TLS != "implicit" {
					io.WriteString(c, greeting(e.Protocol))
					b := make([]byte, 512)
					for {
						n, err := c.Read(b)
						if err != nil {
							c.Close()
							return
						}
						line := strings.ToUpper(string(b[:n]))
						switch {
						case strings.HasPrefix(line, "EHLO"):
							io.WriteString(c, "250-source.example.test\r\n250 STARTTLS\r\n")
							continue
						case e.Protocol == "imap":
							tag, _, _ := strings.Cut(string(b[:n]), " ")
							io.WriteString(c, tag+" OK begin\r\n")
						case e.Protocol == "pop3":
							io.WriteString(c, "+OK begin\r\n")
						case e.Protocol == "managesieve":
							io.WriteString(c, "OK \"begin\"\r\n")
						default:
							io.WriteString(c, "220 begin\r\n")
						}
						break
					}
				}
				upgrade(c)
			})
			found := judge(t, p.Target, harness.Select("lifecycle.greeting-*"))
			for i := range found.Results {
				r := &found.Results[i]
				clear(t, r, []string{"tls: the handshake failed", "octets in clear text after the reply to STARTTLS", "closed: "})
			}
		})
	}
}

// A scenario that takes longer than it may is an error that names the flag.
func TestTimeout(t *testing.T) {
	p := play(t, func(_ run.Endpoint, c *memnet.Conn) { keep(c) })
	began := time.Now()
	found := judge(t, p.Target, harness.Select("lifecycle.greeting-*"), harness.Timeout(50*time.Millisecond))
	assert.Assert(t, time.Since(began) < 20*time.Second)
	assert.Equal(t, found.Exit, result.ExitUnjudged)
	for i := range found.Results {
		r := &found.Results[i]
		assert.Equal(t, r.Verdict, result.Error, r.Key())
		assert.Equal(t, r.Reason, "the scenario took longer than the 50ms that one may take (--timeout)", r.Key())
	}
}

// A source that is down altogether is not judged; a port that is closed on one
// that is up fails.
func TestClosedPorts(t *testing.T) {
	down := judge(t, play(t, nil).Target, harness.Select("lifecycle.greeting-*"))
	assert.Equal(t, down.Exit, result.ExitUnjudged)
	for i := range down.Results {
		r := &down.Results[i]
		assert.Equal(t, r.Verdict, result.Error, r.Key())
		assert.Assert(t, cmp.Contains(r.Reason, "the source played is down: no declared endpoint of it accepts a connection"))
	}
	p := play(t, func(e run.Endpoint, c *memnet.Conn) { io.WriteString(c, greeting(e.Protocol)); hang(c) })
	p.net.Filter(func(_ netip.Addr, to netip.AddrPort) error {
		if to.Port() == 587 {
			return errors.New("no route to host")
		}
		return nil
	})
	up := judge(t, p.Target, harness.Select("lifecycle.greeting-smtp"))
	refused := 0
	for i := range up.Results {
		if r := &up.Results[i]; r.Facet.Port == 587 {
			clear(t, r, []string{"unreachable: "})
			assert.Assert(t, cmp.Contains(r.Findings[0].Wanted, "a connection from proxy to submission, port 587"))
			refused++
		}
	}
	assert.Equal(t, refused, 2)
}

// A vantage that is gone is the harness's own trouble, and no source's.
func TestADeadVantage(t *testing.T) {
	p := play(t, func(_ run.Endpoint, c *memnet.Conn) { hang(c) })
	p.Vantages[run.Proxy] = gone{p.Vantages[run.Proxy]}
	found := judge(t, p.Target, harness.Select("lifecycle.greeting-*"))
	assert.Equal(t, found.Exit, result.ExitUnjudged)
	for i := range found.Results {
		r := &found.Results[i]
		assert.Equal(t, r.Verdict, result.Error, r.Key())
		assert.Equal(t, r.Reason, "the vantage proxy is gone: its container ended", r.Key())
	}
	delete(p.Vantages, run.Proxy)
	found = judge(t, p.Target, harness.Select("lifecycle.greeting-*"))
	for i := range found.Results {
		r := &found.Results[i]
		assert.Equal(t, r.Verdict, result.Inconclusive, r.Key())
		assert.Assert(t, cmp.Contains(r.Reason, `no vantage "proxy"`))
	}
}

type gone struct{ run.Vantage }

func (gone) Dial(context.Context, netip.AddrPort) (net.Conn, error) {
	return nil, &run.VantageError{Vantage: run.Proxy, Err: errors.New("its container ended")}
}

// A layer that a server refuses is a problem in the server's own words; the
// other sources are judged.
func TestASourceThatDoesNotStart(t *testing.T) {
	for name, layer := range map[string]fixtures.Layer{
		"dovecot":       {Name: "yours", Files: map[string]string{"dovecot/99.conf": "login_trusted_netwroks = 203.0.113.10\n"}},
		"postfix":       {Name: "yours", Files: map[string]string{"postfix/master.cf": "smtp inet n -\n"}},
		"unknown name":  {Name: "yours", Files: map[string]string{"postfix/main.cf": "mynetworks = @proxy5@\n"}},
		"broken braces": {Name: "yours", Files: map[string]string{"dovecot/99.conf": "service imap-login {\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			good := harness.SourceSpec{Name: "good", Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.Instrumented}
			bad := good
			bad.Name, bad.Layers = "bad", []fixtures.Layer{layer}
			lab, err := harness.StartReference(t.Context(), []harness.SourceSpec{bad, good}, true)
			assert.NilError(t, err)
			defer lab.Close(t.Context())
			found, err := harness.Run(t.Context(), lab.Target(), harness.Select("relay.greets"))
			assert.NilError(t, err)
			assert.Equal(t, found.Exit, result.ExitUnjudged)
			assert.Equal(t, len(found.Problems), 1)
			p := found.Problems[0]
			assert.Equal(t, p.Source, "bad")
			assert.Assert(t, p.Words != "" && p.Where != "" && p.Stage != "", "%+v", p)
			t.Logf("%s, %s: %s", p.Stage, p.Where, p.Words)
			assert.Equal(t, len(found.Results), 2)
			for i := range found.Results {
				assert.Equal(t, found.Results[i].Source, "good")
				assert.Equal(t, found.Results[i].Verdict, result.Pass)
			}
			alone, err := harness.StartReference(t.Context(), []harness.SourceSpec{bad}, true)
			assert.NilError(t, err)
			defer alone.Close(t.Context())
			found, err = harness.Run(t.Context(), alone.Target(), harness.Select("relay.greets"))
			assert.NilError(t, err)
			assert.Equal(t, found.Exit, result.ExitUnjudged, "a problem, and not an empty selection")
		})
	}
}

// reference starts a reference lab of one good source.
func reference(t *testing.T, specs ...harness.SourceSpec) *harness.Target {
	t.Helper()
	if len(specs) == 0 {
		specs = []harness.SourceSpec{{Name: "dovecot-postfix@trixie", Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.Instrumented}}
	}
	lab, err := harness.StartReference(t.Context(), specs, true)
	assert.NilError(t, err)
	t.Cleanup(func() { assert.NilError(t, lab.Close(context.Background())) })
	return lab.Target()
}

// What a log can and cannot show decides between fail and inconclusive.
func TestLogs(t *testing.T) {
	const seed = "lgtst"
	selection := harness.Select("client-address.imap", "client-address.helo-name", "relay.delivers-data")
	for _, c := range []struct {
		name    string
		log     func(run.LogFunc) run.LogFunc
		verdict result.Verdict
		says    string
	}{
		{"whole", func(l run.LogFunc) run.LogFunc { return l }, result.Pass, ""},
		{"not named", func(run.LogFunc) run.LogFunc { return nil }, result.Inconclusive, "no log of dovecot-postfix@trixie was named: to judge this claim, say where its mail log can be read"},
		{"unreadable", func(run.LogFunc) run.LogFunc {
			return func(context.Context) (io.ReadCloser, error) {
				return nil, errors.New("open /var/log/mail.log: permission denied")
			}
		}, result.Inconclusive, "cannot be read: log dovecot-postfix@trixie: open /var/log/mail.log: permission denied"},
		{"ends at once", func(run.LogFunc) run.LogFunc {
			return func(context.Context) (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("")), nil }
		}, result.Inconclusive, "the stream ended"},
		{"of another server", func(l run.LogFunc) run.LogFunc { return sieveLog(l, func(string) bool { return false }) },
			result.Inconclusive, "the log of dovecot-postfix@trixie proves nothing: "},
		{"without our lines", func(l run.LogFunc) run.LogFunc {
			return sieveLog(l, func(line string) bool { return !strings.Contains(line, "mp"+seed) })
		}, result.Fail, "none, although lines that were caused later are there"},
		{"with lines cut", func(l run.LogFunc) run.LogFunc {
			return func(ctx context.Context) (io.ReadCloser, error) {
				r, err := l(ctx)
				if err != nil {
					return nil, err
				}
				return struct {
					io.Reader
					io.Closer
				}{io.LimitReader(r, 100), r}, nil
			}
		}, result.Inconclusive, "the stream ended"},
	} {
		t.Run(c.name, func(t *testing.T) {
			target := reference(t)
			src := target.Sources[0]
			if l := c.log(src.Logs["mail"]); l != nil {
				src.Logs = map[string]run.LogFunc{"mail": l}
			} else {
				src.Logs = nil
			}
			d := wire.Lab()
			d.Witness = 500 * time.Millisecond
			if c.verdict != result.Inconclusive {
				d.Witness = 10 * time.Second
			}
			found := judge(t, target, selection, func(o *run.Options) { o.Deadlines, o.Seed = d, seed })
			logged := 0
			for i := range found.Results {
				r := &found.Results[i]
				if strings.HasPrefix(r.ID, "relay.") {
					// A delivered message is a witness of its own.
					assert.Assert(t, r.Verdict == result.Pass || r.Verdict == c.verdict, "%s: %s", r.Key(), r.Reason)
					continue
				}
				logged++
				assert.Equal(t, r.Verdict, c.verdict, "%s: %s", r.Key(), r.Reason)
				text := r.Reason
				for _, f := range r.Findings {
					text += f.Found
				}
				assert.Assert(t, cmp.Contains(text, c.says), r.Key())
			}
			assert.Assert(t, logged > 4)
		})
	}
}

// sieveLog keeps the lines of a log that pass.
func sieveLog(l run.LogFunc, pass func(string) bool) run.LogFunc {
	return editLog(l, func(line string) []string {
		if pass(line) {
			return []string{line}
		}
		return nil
	})
}

// editLog puts other lines in the place of each line of a log.
func editLog(l run.LogFunc, edit func(string) []string) run.LogFunc {
	return func(ctx context.Context) (io.ReadCloser, error) {
		in, err := l(ctx)
		if err != nil {
			return nil, err
		}
		pr, pw := io.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			buf, rest := make([]byte, 64<<10), ""
			for {
				n, err := in.Read(buf)
				rest += string(buf[:n])
				for {
					line, more, whole := strings.Cut(rest, "\n")
					if !whole {
						break
					}
					rest = more
					for _, line := range edit(line) {
						fmt.Fprintln(pw, line)
					}
				}
				if err != nil {
					pw.CloseWithError(err)
					return
				}
			}
		})
		return &sieved{pr, func() { in.Close(); pr.Close(); wg.Wait() }}, nil
	}
}

type sieved struct {
	io.Reader
	close func()
}

func (s *sieved) Close() error { s.close(); return nil }
