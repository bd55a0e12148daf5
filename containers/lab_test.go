package containers

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"go.uber.org/goleak"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/run"
)

// within bounds everything that one test does with the engine.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

func spec1(name, release, profile string, layers ...fixtures.Layer) harness.SourceSpec {
	return harness.SourceSpec{Name: name, Kind: fixtures.DovecotPostfix, Version: release, Profile: profile, Layers: layers}
}

func startLab(ctx context.Context, t *testing.T, o Options) *Lab {
	t.Helper()
	began := time.Now()
	// A program that was built before saves each test the building.
	o.Program = os.Getenv("MAILPROOF_PROGRAM")
	if o.Progress == nil {
		o.Progress = func(s string) { t.Logf("%5.1fs %s", time.Since(began).Seconds(), s) }
	}
	l, err := Start(ctx, o)
	assert.NilError(t, err)
	t.Logf("the lab was up after %v", time.Since(began).Round(time.Millisecond))
	t.Cleanup(func() {
		began := time.Now()
		assert.NilError(t, l.Close(context.WithoutCancel(ctx)))
		t.Logf("it was gone after %v", time.Since(began).Round(time.Millisecond))
	})
	return l
}

// remaining lists what the labs of a process have left on the engine.
func remaining(ctx context.Context, t *testing.T, pid int) []string {
	t.Helper()
	e, err := openEngine(ctx)
	assert.NilError(t, err)
	defer e.close()
	cs, ns, err := e.remains(ctx, "")
	assert.NilError(t, err)
	mine := fmt.Sprintf("(process %d of ", pid)
	var out []string
	for _, c := range cs {
		if strings.Contains(c.Labels[labelOwner], mine) {
			out = append(out, c.Names...)
		}
	}
	for _, n := range ns {
		if strings.Contains(n.Labels[labelOwner], mine) {
			out = append(out, n.Name)
		}
	}
	return out
}

var families = []run.Family{run.IP4, run.IP6}

// dialFrom connects from a vantage to an endpoint of a source.
func dialFrom(ctx context.Context, l *Lab, s *run.Source, vantage, endpoint string, f run.Family) (net.Conn, error) {
	ep, ok := s.Endpoint(endpoint)
	if !ok {
		return nil, fmt.Errorf("%s has no endpoint %s", s.Name, endpoint)
	}
	nc, err := l.Target().Vantages[vantage].Dial(ctx, netip.AddrPortFrom(s.Addr(vantage, f), ep.Port))
	if err != nil {
		return nil, err
	}
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	if ep.TLS != "implicit" {
		return nc, nil
	}
	tc := tls.Client(nc, &tls.Config{RootCAs: s.Roots, ServerName: s.ServerName})
	if err := tc.HandshakeContext(ctx); err != nil {
		nc.Close()
		return nil, err
	}
	return tc, nil
}

func TestLab(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 3*time.Minute)
	told := make(chan string, 100)
	l := startLab(ctx, t, Options{Progress: func(s string) { told <- s }, Sources: []harness.SourceSpec{
		spec1("bookworm-shipped", "bookworm", fixtures.AsShipped),
		spec1("trixie-shipped", "trixie", fixtures.AsShipped),
		spec1("bookworm", "bookworm", fixtures.Instrumented),
		spec1("trixie", "trixie", fixtures.Instrumented),
		spec1("bad-dovecot", "trixie", fixtures.Instrumented, fixtures.Layer{Name: "overlay", Files: map[string]string{"dovecot/x.conf": "login_trusted_netwroks = 1.2.3.4\n"}}),
		spec1("bad-postfix", "bookworm", fixtures.Instrumented, fixtures.Layer{Name: "overlay", Files: map[string]string{"postfix/master.cf": "smtpd/inet/x=y\n"}}),
		spec1("bad-start", "bookworm", fixtures.Instrumented, fixtures.Layer{Name: "overlay", Files: map[string]string{"postfix/main.cf": "inet_interfaces = 192.0.2.1\n"}}),
	}})
	assert.Equal(t, len(l.Target().Sources), 4)

	t.Run("what does not start is named in the server's words", func(t *testing.T) {
		got := map[string]*StartError{}
		for _, f := range l.Failures() {
			got[f.Source] = f
		}
		assert.Equal(t, len(got), 3)
		assert.Equal(t, got["bad-dovecot"].Stage, StageOverlay)
		assert.Assert(t, cmp.Contains(got["bad-dovecot"].Words, "Unknown setting: login_trusted_netwroks"))
		assert.Assert(t, cmp.Contains(got["bad-dovecot"].Words, "overlay/dovecot/x.conf"))
		assert.Equal(t, got["bad-postfix"].Stage, StageOverlay)
		assert.Equal(t, got["bad-postfix"].Where, "postfix/master.cf of the layer overlay")
		assert.Assert(t, cmp.Contains(got["bad-postfix"].Words, "smtpd/inet"))
		assert.Equal(t, got["bad-start"].Stage, StageStart)
		assert.Assert(t, cmp.Contains(got["bad-start"].Words, "inet_interfaces"))
		assert.Equal(t, len(l.Target().Problems), 3)
	})

	t.Run("every endpoint answers every vantage in both families", func(t *testing.T) {
		var wg sync.WaitGroup
		for _, s := range l.Target().Sources {
			for _, v := range run.Vantages() {
				for _, f := range families {
					wg.Go(func() {
						for _, ep := range s.Endpoints {
							nc, err := dialFrom(ctx, l, s, v, ep.Name, f)
							if err != nil {
								t.Errorf("%s from %s to %s over %s: %v", s.Name, v, ep.Name, f, err)
								continue
							}
							b := make([]byte, 64)
							n, err := nc.Read(b)
							want := map[string]string{"imap": "* OK ", "pop3": "+OK ", "smtp": "220 ", "managesieve": `"IMPLEMENTATION"`}[ep.Protocol]
							if err != nil || !strings.HasPrefix(string(b[:n]), want) {
								t.Errorf("%s from %s to %s over %s: %q, %v", s.Name, v, ep.Name, f, b[:n], err)
							}
							nc.Close()
						}
					})
				}
			}
		}
		wg.Wait()
	})

	t.Run("a source sees the vantage's own address", func(t *testing.T) {
		for _, s := range l.Target().Sources {
			log, err := s.Logs["mail"](ctx)
			assert.NilError(t, err)
			want := map[string]string{}
			for _, v := range run.Vantages() {
				for _, f := range families {
					nc, err := dialFrom(ctx, l, s, v, "smtp", f)
					assert.NilError(t, err)
					h, _ := fixtures.HostOf(v)
					assert.Equal(t, nc.LocalAddr().(*net.TCPAddr).AddrPort().Addr(), h.Of(string(f)))
					want["["+h.Of(string(f)).String()+"]"] = v
					_, err = bufio.NewReader(nc).ReadString('\n')
					assert.NilError(t, err)
					nc.Close()
				}
			}
			re := regexp.MustCompile(`postfix/smtpd\[\d+\]: connect from unknown(\[[^]]*\])`)
			err = eachLine(log, func(line string) (bool, error) {
				if m := re.FindStringSubmatch(line); m != nil {
					delete(want, m[1])
				}
				return len(want) == 0, nil
			})
			assert.NilError(t, err)
			assert.Equal(t, len(want), 0, "%v", want)
			assert.NilError(t, log.Close())
		}
	})

	t.Run("the networks are apart", func(t *testing.T) {
		s := l.Target().Sources[3]
		var wg sync.WaitGroup
		for _, v := range run.Vantages() {
			for _, other := range run.Vantages() {
				from, _ := fixtures.HostOf(v)
				to, _ := fixtures.HostOf(other)
				if from.Network == to.Network || v == run.Proxy && to.Network == fixtures.ClientNet {
					continue // it stands there
				}
				for _, f := range families {
					wg.Go(func() {
						late, cancel := context.WithTimeout(ctx, 5*time.Second)
						defer cancel()
						nc, err := l.Target().Vantages[v].Dial(late, netip.AddrPortFrom(s.Addr(other, f), 25))
						if err == nil {
							nc.Close()
							t.Errorf("from %s the source's address in %s is reached over %s", v, to.Network, f)
						} else if refused(err) {
							t.Errorf("from %s the source's address in %s refuses over %s: it was reached", v, to.Network, f)
						}
					})
				}
			}
		}
		wg.Wait()
	})

	t.Run("an account signs in and reads what the new server delivers", func(t *testing.T) {
		for _, s := range l.Target().Sources {
			accounts, release, err := s.Accounts.Take(ctx, 1)
			assert.NilError(t, err)
			deliver(ctx, t, l, s, accounts[0])
			nc, err := dialFrom(ctx, l, s, run.Client, "imaps", run.IP6)
			assert.NilError(t, err)
			c := imapclient.New(nc, nil)
			assert.NilError(t, c.Login(accounts[0].Address, accounts[0].Password).Wait())
			box, err := c.Select("INBOX", nil).Wait()
			assert.NilError(t, err)
			assert.Equal(t, box.NumMessages, uint32(1))
			section := &imap.FetchItemBodySection{}
			msgs, err := c.Fetch(imap.SeqSetNum(1), &imap.FetchOptions{BodySection: []*imap.FetchItemBodySection{section}}).Collect()
			assert.NilError(t, err)
			assert.Assert(t, cmp.Contains(string(msgs[0].FindBodySection(section)), "Message-ID: <lab-test@remote.example>"))
			assert.NilError(t, c.Logout().Wait())
			c.Close()
			release()
		}
	})

	t.Run("the configuration in force is evidence without secrets", func(t *testing.T) {
		s := l.Target().Sources[3]
		files, err := s.Config(ctx)
		assert.NilError(t, err)
		at := map[string]string{}
		for _, f := range files {
			at[f.Path] = f.Text
		}
		assert.Assert(t, cmp.Contains(at["doveconf -n"], "login_trusted_networks = 203.0.113.10 2001:db8:113::10"))
		assert.Assert(t, cmp.Contains(at["postconf -n"], "smtpd_authorized_xclient_hosts = 203.0.113.10 [2001:db8:113::10]"))
		assert.Assert(t, cmp.Contains(at["postconf -P"], "submissions/inet/smtpd_tls_wrappermode = yes"))
		assert.Assert(t, cmp.Contains(at["/etc/mailproof/03-guide/dovecot/50-proxy.conf"], "login_trusted_networks = 203.0.113.10 2001:db8:113::10"))
		accounts, release, err := s.Accounts.Take(ctx, 1)
		assert.NilError(t, err)
		defer release()
		for path, text := range at {
			assert.Assert(t, !strings.Contains(text, accounts[0].Password), path)
			assert.Assert(t, !strings.Contains(text, "PRIVATE KEY"), path)
		}
	})

	t.Run("a second lab waits and names the first", func(t *testing.T) {
		waiting, cancel := context.WithCancel(ctx)
		defer cancel()
		var said []string
		_, err := Start(waiting, Options{
			Program: os.Getenv("MAILPROOF_PROGRAM"),
			Sources: []harness.SourceSpec{spec1("trixie", "trixie", fixtures.Instrumented)},
			Progress: func(s string) {
				said = append(said, s)
				if strings.HasPrefix(s, "waiting for the lab of ") {
					cancel()
				}
			},
		})
		assert.ErrorIs(t, err, context.Canceled)
		assert.Assert(t, cmp.Contains(said[len(said)-1], fmt.Sprintf("process %d of ", os.Getpid())))
		assert.Assert(t, cmp.Contains(err.Error(), "another lab stands on this engine"))
		// The first stands as before.
		nc, err := dialFrom(ctx, l, l.Target().Sources[0], run.Client, "imap", run.IP4)
		assert.NilError(t, err)
		nc.Close()
	})

	t.Run("a source that ends is told of", func(t *testing.T) {
		// The command may end with the container: its status says nothing.
		l.e.exec(ctx, "mailproof-source0-bookworm-shipped", "sh", "-c", "kill -TERM 1")
		want := "bookworm-shipped has ended; its last words:\n"
		for {
			select {
			case s := <-told:
				if strings.HasPrefix(s, want) {
					assert.Assert(t, cmp.Contains(s, "postfix"))
					return
				}
			case <-ctx.Done():
				t.Fatal(ctx.Err())
			}
		}
	})

	t.Run("the doctor sees the lab", func(t *testing.T) {
		for _, c := range Doctor(ctx) {
			t.Logf("%-15s %-5v %s; %s", c.Name, c.OK, c.Found, c.Missing)
			if c.Name == "lab" {
				assert.Assert(t, cmp.Contains(c.Found, fmt.Sprintf("process %d of ", os.Getpid())))
			}
			assert.Assert(t, c.OK, c.Name)
		}
	})
}

// deliver relays one message as the new server.
func deliver(ctx context.Context, t *testing.T, l *Lab, s *run.Source, to run.Account) {
	t.Helper()
	log, err := s.Logs["mail"](ctx)
	assert.NilError(t, err)
	defer log.Close()
	nc, err := dialFrom(ctx, l, s, run.Relay, "smtp", run.IP4)
	assert.NilError(t, err)
	defer nc.Close()
	br := bufio.NewReader(nc)
	for _, step := range []struct{ say, want string }{
		{"", "220 "}, {"EHLO new.example.test", "250 "}, {"MAIL FROM:<sender@remote.example>", "250 "}, {"RCPT TO:<" + to.Address + ">", "250 "},
		{"DATA", "354 "}, {"From: sender@remote.example\r\nMessage-ID: <lab-test@remote.example>\r\n\r\nbody\r\n.", "250 "}, {"QUIT", "221 "},
	} {
		if step.say != "" {
			_, err := io.WriteString(nc, step.say+"\r\n")
			assert.NilError(t, err)
		}
		for {
			line, err := br.ReadString('\n')
			assert.NilError(t, err, step.say)
			if line[3] == ' ' {
				assert.Equal(t, line[:4], step.want, line)
				break
			}
		}
	}
	assert.NilError(t, eachLine(log, func(line string) (bool, error) {
		return strings.Contains(line, "to=<"+to.Address+">") && strings.Contains(line, "status=sent"), nil
	}))
}

func TestACancelledStartLeavesNothing(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 3*time.Minute)
	starting, cancel := context.WithCancel(ctx)
	defer cancel()
	_, err := Start(starting, Options{
		Program: os.Getenv("MAILPROOF_PROGRAM"),
		Sources: []harness.SourceSpec{spec1("a", "trixie", fixtures.Instrumented), spec1("b", "bookworm", fixtures.AsShipped)},
		Progress: func(s string) {
			if strings.HasPrefix(s, "starting a") {
				cancel()
			}
		},
	})
	assert.ErrorIs(t, err, context.Canceled)
	assert.DeepEqual(t, remaining(ctx, t, os.Getpid()), []string(nil))
}

func TestALabEndsWithItsContext(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 3*time.Minute)
	running, cancel := context.WithCancel(ctx)
	l := startLab(running, t, Options{Sources: []harness.SourceSpec{spec1("a", "trixie", fixtures.Instrumented)}})
	log, err := l.Target().Sources[0].Logs["mail"](ctx)
	assert.NilError(t, err)
	cancel()
	_, err = io.Copy(io.Discard, log) // it ends with the source
	assert.NilError(t, err)
	assert.NilError(t, l.Close(ctx)) // waits for the closing that is under way
	assert.DeepEqual(t, remaining(ctx, t, os.Getpid()), []string(nil))
	_, err = l.Target().Vantages[run.Client].Dial(ctx, netip.MustParseAddrPort("198.51.100.100:25"))
	var gone *run.VantageError
	assert.Assert(t, errors.As(err, &gone), "%v", err)
}

// TestHelperLab is no test: it is the process that the next one kills.
func TestHelperLab(t *testing.T) {
	if os.Getenv("MAILPROOF_TEST_HELPER") != "1" {
		t.Skip("it is started, and killed, by TestADeadLabIsRemoved")
	}
	_, err := Start(within(t, 3*time.Minute), Options{
		Program: os.Getenv("MAILPROOF_PROGRAM"),
		Sources: []harness.SourceSpec{spec1("dead", "trixie", fixtures.Instrumented)},
	})
	fmt.Println("\nlab:", err)
	select {}
}

func TestADeadLabIsRemoved(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 3*time.Minute)
	exe, err := os.Executable()
	assert.NilError(t, err)
	cmd := exec.CommandContext(ctx, exe, "-test.run=^TestHelperLab$", "-test.v")
	cmd.Env = append(os.Environ(), "MAILPROOF_TEST_HELPER=1")
	out, err := cmd.StdoutPipe()
	assert.NilError(t, err)
	assert.NilError(t, cmd.Start())
	said := ""
	assert.NilError(t, eachLine(out, func(line string) (bool, error) {
		said = line
		return strings.HasPrefix(line, "lab: "), nil
	}))
	assert.Equal(t, said, "lab: <nil>")
	assert.NilError(t, cmd.Process.Kill())
	cmd.Wait()
	dead := cmd.Process.Pid
	left := remaining(ctx, t, dead)
	assert.Assert(t, slices.Contains(left, "/mailproof-source0-dead"), "%v", left)
	l := startLab(ctx, t, Options{Sources: []harness.SourceSpec{spec1("alive", "trixie", fixtures.Instrumented)}})
	assert.Equal(t, len(l.Failures()), 0)
	assert.DeepEqual(t, remaining(ctx, t, dead), []string(nil))
	assert.NilError(t, l.Close(ctx))
	assert.DeepEqual(t, remaining(ctx, t, os.Getpid()), []string(nil))
}

// TestANetworkThatTheEngineKeepsIsTakenOver: engines miscount endpoints at
// times, and then remove a network only when they are restarted.
func TestANetworkThatTheEngineKeepsIsTakenOver(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 2*time.Minute)
	l := startLab(ctx, t, Options{Sources: []harness.SourceSpec{spec1("alone", "trixie", fixtures.Instrumented)}}) // it holds the lock
	own := fixtures.Network{Name: "kept", IP4: netip.MustParsePrefix("198.18.240.0/29"), IP6: netip.MustParsePrefix("2001:db8:f0::/64")}
	e, err := openEngine(ctx)
	assert.NilError(t, err)
	defer e.close()
	named := func() []string {
		_, ns, err := e.remains(ctx, l.id)
		assert.NilError(t, err)
		var ids []string
		for _, n := range ns {
			if n.Name == "mailproof-kept" {
				ids = append(ids, n.ID)
			}
		}
		return ids
	}
	assert.NilError(t, e.makeNetwork(ctx, "mailproof-kept", own, l.labels()))
	first := named()
	assert.Equal(t, len(first), 1)
	assert.NilError(t, e.makeNetwork(ctx, "mailproof-kept", own, l.labels()))
	assert.DeepEqual(t, named(), first)
	other := own
	other.IP4 = netip.MustParsePrefix("198.18.240.8/29")
	assert.Assert(t, cmp.ErrorContains(e.makeNetwork(ctx, "mailproof-kept", other, l.labels()), "mailproof-kept"))

	// What is only stuck is told, and is no failure of the lab; all else is.
	broken := errors.New("no space left")
	var told []string
	l.progress = func(s string) { told = append(told, s) }
	assert.NilError(t, l.tellStuck(errors.Join(fmt.Errorf("removing: %w", &stuckNetwork{"mailproof-kept"}))))
	assert.Assert(t, cmp.Contains(strings.Join(told, "\n"), "it goes when the engine is restarted"))
	assert.ErrorIs(t, l.tellStuck(errors.Join(errors.Join(broken), &stuckNetwork{"a"})), broken)
	assert.NilError(t, l.tellStuck(nil))
}

func TestAKeptLabStandsUntilItIsRemoved(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 3*time.Minute)
	l := startLab(ctx, t, Options{Keep: true, Sources: []harness.SourceSpec{spec1("kept", "trixie", fixtures.Instrumented)}})
	told := strings.Join(l.Kept(), "\n")
	assert.Assert(t, cmp.Contains(told, "kept stands at 203.0.113.100 and 2001:db8:113::100"))
	assert.Assert(t, cmp.Contains(told, "remove it with: docker rm -f "))
	assert.NilError(t, l.Close(ctx))
	t.Cleanup(func() {
		e, err := openEngine(ctx)
		assert.NilError(t, err)
		defer e.close()
		assert.NilError(t, e.remove(ctx, l.id, "", func(map[string]string) bool { return true }))
	})
	assert.Assert(t, slices.Contains(remaining(ctx, t, os.Getpid()), "/mailproof-source0-kept"))
	_, err := Start(ctx, Options{Program: os.Getenv("MAILPROOF_PROGRAM"), Sources: []harness.SourceSpec{spec1("a", "trixie", fixtures.Instrumented)}})
	var kept *KeptError
	assert.Assert(t, errors.As(err, &kept), "%v", err)
	assert.Assert(t, cmp.Contains(err.Error(), "docker network rm"))
	assert.Assert(t, slices.Contains(remaining(ctx, t, os.Getpid()), "/mailproof-source0-kept"))
}

// TestTheProxyStandsBeforeItsSource signs in at the proxy's public port, as a
// client does.
func TestTheProxyStandsBeforeItsSource(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 3*time.Minute)
	specs := []harness.SourceSpec{spec1("trixie", "trixie", fixtures.Instrumented)}
	l := startLab(ctx, t, Options{Sources: specs, Proxy: ReferenceProxy(specs)})
	s, p := l.Target().Sources[0], l.Target().Proxy
	accounts, release, err := s.Accounts.Take(ctx, 1)
	assert.NilError(t, err)
	defer release()
	log, err := s.Logs["mail"](ctx)
	assert.NilError(t, err)
	defer log.Close()
	ep, ok := p.Endpoint("imaps")
	assert.Assert(t, ok)
	for _, f := range families {
		nc, err := l.Target().Vantages[run.Client].Dial(ctx, netip.AddrPortFrom(p.Addr(f), ep.Port))
		assert.NilError(t, err)
		nc.SetDeadline(time.Now().Add(20 * time.Second))
		c := imapclient.New(tls.Client(nc, &tls.Config{RootCAs: p.Roots, ServerName: p.ServerName}), nil)
		assert.NilError(t, c.Login(accounts[0].Address, accounts[0].Password).Wait())
		assert.NilError(t, c.Logout().Wait())
		c.Close()
		want := "rip=" + l.Target().Vantages[run.Client].Addr(f).String() + ","
		assert.NilError(t, eachLine(log, func(line string) (bool, error) {
			return strings.Contains(line, "user=<"+accounts[0].Address+">") && strings.Contains(line, want), nil
		}))
	}
}

func TestAProxyThatDoesNotStartSaysWhy(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 3*time.Minute)
	_, err := Start(ctx, Options{
		Program: os.Getenv("MAILPROOF_PROGRAM"),
		Sources: []harness.SourceSpec{spec1("trixie", "trixie", fixtures.Instrumented)},
		Proxy:   &Proxy{Config: "[server]\nfrobnicate = 1\n"},
	})
	var se *StartError
	assert.Assert(t, errors.As(err, &se), "%v", err)
	assert.Equal(t, se.Stage, StageProxy)
	assert.Assert(t, cmp.Contains(se.Words, "frobnicate"))
	assert.DeepEqual(t, remaining(ctx, t, os.Getpid()), []string(nil))
}

// TestRemediesAndDefectsOfOneReleaseStart lays our remedies, and those defects
// whose files differ between releases, over a release: each is a legal
// configuration of a server that runs. The other defects are started by
// "prove --lab docker".
func TestRemediesAndDefectsOfOneReleaseStart(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 5*time.Minute)
	defects, err := fixtures.Defects()
	assert.NilError(t, err)
	var specs []harness.SourceSpec
	for _, r := range fixtures.Releases(fixtures.DovecotPostfix) {
		layer, err := fixtures.Remedies(fixtures.DovecotPostfix, r)
		assert.NilError(t, err)
		specs = append(specs, spec1("remedies@"+r, r, fixtures.AsShipped, layer))
		for _, d := range defects {
			if len(d.Releases) < 2 {
				continue
			}
			one, err := d.Layer(d.Releases[0])
			assert.NilError(t, err)
			other, err := d.Layer(d.Releases[1])
			assert.NilError(t, err)
			if maps.Equal(one.Files, other.Files) {
				continue
			}
			layer, err := d.Layer(r)
			assert.NilError(t, err)
			specs = append(specs, spec1(d.Name+"@"+r, r, d.Profile, layer))
		}
	}
	for some := range slices.Chunk(specs, fixtures.MaxSources) {
		l := startLab(ctx, t, Options{Sources: some, Progress: func(string) {}})
		for _, f := range l.Failures() {
			t.Error(f)
		}
		assert.NilError(t, l.Close(ctx))
	}
}

// TestMain builds the command that stands at the vantages once for all tests,
// unless MAILPROOF_PROGRAM names one, and sees that no lab leaves a goroutine
// behind.
func TestMain(m *testing.M) {
	flag.Parse()
	if os.Getenv("MAILPROOF_TEST_HELPER") == "1" {
		os.Exit(m.Run())
	}
	dir, err := buildProgram()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(status int) {
		os.RemoveAll(dir)
		os.Exit(status)
	}))
}

// buildProgram makes the command and names it in MAILPROOF_PROGRAM, for this
// process and those that it starts. Without an engine nobody needs it.
func buildProgram() (dir string, err error) {
	ctx := context.Background()
	if os.Getenv("MAILPROOF_PROGRAM") != "" || Answers(ctx) != nil {
		return "", nil
	}
	e, err := openEngine(ctx)
	if err != nil {
		return "", err
	}
	defer e.close()
	if dir, err = os.MkdirTemp("", "mailproof-test-"); err != nil {
		return "", err
	}
	path, err := findProgram(ctx, e.arch, dir, func(string) {})
	if err != nil {
		os.RemoveAll(dir)
		return "", err
	}
	return dir, os.Setenv("MAILPROOF_PROGRAM", path)
}
