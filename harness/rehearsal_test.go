package harness_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/harness/site"
	"github.com/mailproof/mailproof/scenarios"
)

// A rehearsal is the reference lab, standing as a foreign operator's servers:
// they are reached through a site.toml alone.
type rehearsal struct {
	lab  *harness.Reference
	dir  string
	text string // the site.toml
	// tells, where it is set, is what the log says in the place of a line.
	tells func(line string) string
	env   map[string]string
}

// rehearse starts the lab with defects of one source, and writes its site file.
func rehearse(t *testing.T, release string, defects ...string) *rehearsal {
	t.Helper()
	spec := harness.SourceSpec{Name: "dovecot-postfix@" + release, Kind: fixtures.DovecotPostfix, Version: release, Profile: "instrumented"}
	for _, name := range defects {
		if _, ok := harness.BugNamed(name); ok {
			spec.Bugs = append(spec.Bugs, name)
			continue
		}
		d, err := fixtures.DefectNamed(name)
		assert.NilError(t, err)
		layer, err := d.Layer(release)
		assert.NilError(t, err)
		spec.Layers = append(spec.Layers, layer)
	}
	return rehearseSpec(t, spec)
}

// rehearseSpec starts the lab with one source, and writes its site file.
func rehearseSpec(t *testing.T, spec harness.SourceSpec) *rehearsal {
	t.Helper()
	release := spec.Version
	r, src := startRehearsal(t, spec)

	at := fixtures.NetworkNamed(fixtures.ProxyNet).Source(0)
	var b strings.Builder
	fmt.Fprintf(&b, "domain = %q\n\n[proxy]\nip4 = %q\nip6 = %q\ntls = \"unchecked:the lab's own authority\"\n", fixtures.Domain, fixtures.Public().IP4, fixtures.Public().IP6)
	for _, e := range harness.ProxyEndpoints() {
		fmt.Fprintf(&b, "%s = %d\n", e.Name, e.Port)
	}
	b.WriteString("\n[vantage]\n")
	for _, h := range fixtures.Hosts() {
		fmt.Fprintf(&b, "%s = \"bind:%s,%s\"\n", h.Vantage, h.IP4, h.IP6)
	}
	fmt.Fprintf(&b, "\n[source.old]\nkind = \"dovecot-postfix\"\nversion = %q\nip4 = %q\nip6 = %q\ntls = \"unchecked:the lab's own authority\"\nlog = \"file:mail.log\"\n", release, at.IP4, at.IP6)
	for _, e := range harness.Endpoints() {
		fmt.Fprintf(&b, "%s = %d\n", e.Name, e.Port)
	}
	r.nameAccounts(&b, src)
	r.text = b.String()
	return r
}

// startRehearsal starts the lab with one source, and copies its log.
func startRehearsal(t *testing.T, spec harness.SourceSpec) (*rehearsal, *harness.Source) {
	t.Helper()
	lab, err := harness.StartReference(t.Context(), []harness.SourceSpec{spec}, true)
	assert.NilError(t, err)
	assert.Equal(t, len(lab.Target().Sources), 1, "%+v", lab.Target().Problems)
	r := &rehearsal{lab: lab, dir: t.TempDir(), env: map[string]string{}}
	src := lab.Target().Sources[0]
	logged := r.copyLog(t, src)
	t.Cleanup(func() {
		assert.Check(t, lab.Close(context.Background()))
		logged()
	})
	return r, src
}

// nameAccounts writes twenty accounts of the source into its site file.
func (r *rehearsal) nameAccounts(b *strings.Builder, src *harness.Source) {
	for i, a := range src.Accounts.(*harness.AccountPool).All()[:20] {
		key := fmt.Sprintf("MAILPROOF_TEST_%d", i)
		r.env[key] = a.Password
		fmt.Fprintf(b, "\n[account.probe%d]\naddress = %q\npassword = \"env:%s\"\n", i, a.Address, key)
	}
}

// copyLog writes the source's log to a file, as an operator's server does.
func (r *rehearsal) copyLog(t *testing.T, src *harness.Source) (wait func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(r.dir, "mail.log"))
	assert.NilError(t, err)
	in, err := src.Logs["mail"](context.Background())
	assert.NilError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		s := bufio.NewScanner(in)
		for s.Scan() {
			line := s.Text()
			if r.tells != nil {
				line = r.tells(line)
			}
			fmt.Fprintln(f, line)
		}
	}()
	return func() { in.Close(); <-done }
}

// options reach the lab's network, and nothing else.
func (r *rehearsal) options() site.Options {
	return site.Options{
		Env:     func(name string) (string, bool) { v, ok := r.env[name]; return v, ok },
		Resolve: func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no name service here") },
		Dial: func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
			for _, v := range r.lab.Target().Vantages {
				if v.Addr(run.FamilyOf(from)) == from {
					return v.Dial(ctx, to)
				}
			}
			return nil, &run.VantageError{Err: fmt.Errorf("this machine does not have the address %s", from)}
		},
	}
}

func (r *rehearsal) target(t *testing.T) *harness.Target {
	t.Helper()
	f, err := site.Parse(filepath.Join(r.dir, "site.toml"), []byte(r.text))
	assert.NilError(t, err)
	target, err := site.Open(t.Context(), f, r.options())
	assert.NilError(t, err)
	return target
}

// judge runs what the options allow against the site.
func (r *rehearsal) judge(t *testing.T, opts ...harness.Option) *result.Run {
	t.Helper()
	quick := func(o *run.Options) {
		o.Rate = 10000
		o.Deadlines.Dial, o.Deadlines.Handshake, o.Deadlines.Greeting = 2*time.Second, 5*time.Second, 2*time.Second
		o.Deadlines.Reply, o.Deadlines.Close, o.Deadlines.Witness = 3*time.Second, time.Second, 2*time.Second
	}
	found, err := harness.Run(t.Context(), r.target(t), append([]harness.Option{quick}, opts...)...)
	assert.NilError(t, err)
	return found
}

// everything lets a run deliver messages, and be blamed.
func everything() []harness.Option {
	return []harness.Option{harness.MaxRisk(script.R4), harness.Allow(run.Allowances()...)}
}

func TestGoodSiteIsReady(t *testing.T) {
	for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
		t.Run(release, func(t *testing.T) {
			found := rehearse(t, release).judge(t, everything()...)
			for i := range found.Results {
				if r := &found.Results[i]; r.Verdict != result.Pass && r.Verdict != result.Unsupported {
					t.Logf("%s: %s %s%s", r.Key(), r.Verdict, r.Reason, harness.Describe(r))
				}
			}
			t.Logf("%s; %d results in %.1f s", found.Answer.Sentence, len(found.Results), found.Seconds)
			assert.Equal(t, found.Answer.Verdict, result.Ready, found.Answer.Sentence)
		})
	}
}

func TestDefectsOfASiteAreFound(t *testing.T) {
	for defect, code := range map[string]string{
		"trust-missing": "DX-14", "trust-missing-imap": "DX-14", "trust-missing-postfix": "DX-14", "trust-ip4-only": "DX-14",
		"trust-subnet": "DX-27", "trust-everyone": "DX-27", "trust-new-server-included": "MP-TRUST-NEW-SERVER",
		"inet-protocols-ipv4": "DX-19", "haproxy-listener": "DX-02", "submission-forgotten": "DX-14",
		"relay-refused": "DX-08", "open-relay": "MP-OPEN-RELAY", "proxy-in-mynetworks": "DX-28", "helo-rule": "DX-07",
		"no-sasl-plain": "MP-SASL-PLAIN", "address-translation": "MP-NAT", "service-missing": "DX-16",
	} {
		t.Run(defect, func(t *testing.T) {
			t.Parallel()
			found := rehearse(t, "trixie", defect).judge(t, everything()...)
			assert.Equal(t, found.Answer.Verdict, result.NotReady, found.Answer.Sentence)
			assert.Assert(t, len(found.Diagnoses) > 0, found.Answer.Sentence)
			t.Logf("%s (%.1f s)", found.Answer.Sentence, found.Seconds)
			assert.Equal(t, found.Diagnoses[0].Code, code, found.Answer.Sentence)
		})
	}
}

// without takes lines out of a site file: those that begin with the words, and
// with "[" a whole table.
func (r *rehearsal) without(words string) {
	var out []string
	skip := false
	for _, line := range strings.Split(r.text, "\n") {
		if strings.HasPrefix(line, "[") {
			skip = strings.HasPrefix(words, "[") && strings.HasPrefix(line, words)
		}
		if skip || !strings.HasPrefix(words, "[") && strings.HasPrefix(line, words) {
			continue
		}
		out = append(out, line)
	}
	r.text = strings.Join(out, "\n")
}

// Whatever is missing is named, and the answer is never "ready", and never
// "not ready" for that alone.
func TestWhatIsMissingAtASiteIsNamed(t *testing.T) {
	r := rehearse(t, "bookworm")
	whole := r.text
	for _, tc := range []struct{ without, names string }{
		{"client = ", "client to [vantage]"},
		{"proxy = ", "proxy to [vantage]"},
		{"relay = ", "relay to [vantage]"},
		{"neighbour = ", "neighbour to [vantage]"},
		{"stranger = ", "stranger to [vantage]"},
		{"log = ", "to [source.old]"},
		{"[account.", "2 accounts of old"},
		{"[proxy]", "[proxy]"},
	} {
		t.Run(strings.Trim(tc.without, "[ =."), func(t *testing.T) {
			r.text = whole
			r.without(tc.without)
			found := r.judge(t, everything()...)
			assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged, found.Answer.Sentence)
			assert.Check(t, strings.Contains(found.Answer.Sentence, tc.names), found.Answer.Sentence)
			assert.Equal(t, found.Exit, result.ExitUnjudged)
			assert.Check(t, found.Counts.Pass > 0, "what does not need it is judged all the same")
			t.Logf("%+v %.1f s: %s", found.Counts, found.Seconds, found.Answer.Sentence)
		})
	}
	t.Run("a password", func(t *testing.T) {
		r.text = whole
		delete(r.env, "MAILPROOF_TEST_3")
		found := r.judge(t, everything()...)
		assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged, found.Answer.Sentence)
		assert.Check(t, strings.Contains(found.Answer.Sentence, "MAILPROOF_TEST_3"), found.Answer.Sentence)
	})
}

// A log that dies, starts late, prints old lines first, is never ours or is of
// another time zone and clock is either read rightly or said to prove nothing.
func TestLogsOfASite(t *testing.T) {
	r := rehearse(t, "bookworm")
	whole := r.text
	only := []harness.Option{harness.Select("client-address.imap", "proxy.imap", "trust.imap-stranger", "relay.greets")}
	log := func(command string) {
		r.text = strings.Replace(whole, "log = \"file:mail.log\"", fmt.Sprintf("log = %q", "command:"+strings.ReplaceAll(command, "LOG", filepath.Join(r.dir, "mail.log"))), 1)
	}
	for name, tc := range map[string]struct {
		command string
		reason  string // why what rests on it is not judged, or "" where it is
	}{
		"all of it from its beginning": {"tail -n +1 -F LOG", ""},
		"starts late":                  {"sleep 1; tail -n 0 -F LOG", ""},
		"another clock":                {"tail -n 0 -F LOG | sed -u 's/^....-..-..T..:/1999-12-31T23:/'", ""},
		"two lines in one":             {"tail -n 0 -F LOG | sed -u 's/^/Nov 24 10:00:00 host other: x\\n/'", ""},
		"dies at once":                 {"exit 7", "the command ended with exit status 7"},
		"dies":                         {"tail -n 0 -F LOG | sed -u 8q", "the command ended"},
		"says nothing":                 {"sleep 600", "did not appear in it"},
		"is another server's":          {"while sleep 0.1; do echo 'Nov 24 10:00:00 host postfix/smtpd[1]: connect from x[192.0.2.1]'; done", "did not appear in it"},
		"is not there":                 {"tail -n 0 -f LOG.none", "the command ended"},
	} {
		t.Run(name, func(t *testing.T) {
			log(tc.command)
			found := r.judge(t, only...)
			witnessed, reasons := 0, ""
			for i := range found.Results {
				res := &found.Results[i]
				assert.Check(t, res.Verdict != result.Fail, "%s: %s", res.Key(), harness.Describe(res))
				if len(res.Witness) > 0 {
					witnessed++
				}
				reasons += res.Reason + "\n"
			}
			if tc.reason == "" {
				assert.Equal(t, found.Counts.Inconclusive, 0, reasons)
				assert.Check(t, witnessed > 0)
				return
			}
			assert.Check(t, found.Counts.Inconclusive > 0)
			assert.Check(t, strings.Contains(reasons, tc.reason), reasons)
			assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged)
		})
	}
}

// What an operator's other users do is in no report, whatever the log says of them.
func TestOtherPeoplesLinesAreNotKept(t *testing.T) {
	r := rehearse(t, "bookworm", "trust-missing")
	command := fmt.Sprintf("tail -n 0 -F %s | sed -u 's/^/Nov 24 10:00:00 host dovecot: imap-login: Login: user=<nosy.neighbour@example.test>, method=PLAIN, rip=192.0.2.55, lip=192.0.2.1, TLS, session=<abcdefgh>\\n/'", filepath.Join(r.dir, "mail.log"))
	r.text = strings.Replace(r.text, "log = \"file:mail.log\"", fmt.Sprintf("log = %q", "command:"+command), 1)
	found := r.judge(t)
	text, err := json.Marshal(found)
	assert.NilError(t, err)
	assert.Check(t, found.Counts.Fail > 0)
	assert.Check(t, !strings.Contains(string(text), "nosy.neighbour") && !strings.Contains(string(text), "192.0.2.55"))
	for _, secret := range r.env {
		assert.Check(t, !strings.Contains(string(text), secret), "a password was told")
	}
}

// A run that is interrupted takes away what it has delivered, and hangs nowhere.
func TestInterruptAtASiteLeavesNoMessage(t *testing.T) {
	r := rehearse(t, "trixie")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	delivered := 0
	stop := func(o *run.Options) {
		o.Rate = 10000
		o.Observer = func(res result.Result) {
			if strings.HasPrefix(res.ID, "relay.delivers") && res.Verdict == result.Pass {
				if delivered++; delivered == 2 {
					cancel()
				}
			}
		}
	}
	found, err := harness.Run(ctx, r.target(t), append(everything(), stop)...)
	assert.NilError(t, err)
	assert.Equal(t, found.Exit, result.ExitInterrupted)
	assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged)
	assert.Check(t, strings.Contains(found.Answer.Sentence, "a run to its end"), found.Answer.Sentence)
	assert.Check(t, !strings.Contains(found.Answer.Sentence, "waiting for"), found.Answer.Sentence)
	assert.Check(t, strings.Contains(strings.Join(found.Notices, "\n"), "none is left"), "%v %+v", found.Notices, found.Problems)
	for i := range found.Results {
		if res := &found.Results[i]; res.Verdict == result.Error {
			assert.Equal(t, res.Reason, "interrupted")
		}
	}
}

// As many accounts as the plan says are needed are enough, and one fewer is not.
func TestAccountsThatAPlanSaysAreNeeded(t *testing.T) {
	all, err := scenarios.All()
	assert.NilError(t, err)
	for name, r := range map[string]*rehearsal{"dovecot-postfix": rehearse(t, "bookworm"), "stalwart": rehearseStalwart(t), "stalwart at debug": rehearseStalwart(t).atDebug()} {
		whole := r.text
		plan := func(accounts int) *run.Plan {
			r.text = whole[:strings.Index(whole, fmt.Sprintf("[account.probe%d]", accounts))]
			p, err := run.MakePlan(r.target(t), run.Options{Scenarios: all, MaxRisk: script.R4, Allow: run.Allowances()})
			assert.NilError(t, err)
			assert.Equal(t, p.Demand.Accounts[0].Named, accounts)
			return p
		}
		short := func(p *run.Plan) (n int) {
			for _, it := range p.Items {
				for _, why := range append(it.NotRun, it.Blocked) {
					if strings.Contains(why, "no account may fail more than") {
						n++
					}
				}
			}
			return n
		}
		needed := plan(2).Demand.Accounts[0].Needed
		t.Logf("%s: %d accounts", name, needed)
		assert.Check(t, needed <= 10, "%s: %d", name, needed)
		assert.Equal(t, short(plan(needed)), 0, name)
		assert.Check(t, short(plan(needed-1)) > 0, name)
	}
}
