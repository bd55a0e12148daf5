package harness_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/manage"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/scenarios"
)

// stalwartLayers are a Stalwart as it is shipped, with the guide's recipe, our
// remedies for what the guide leaves as it was, and defects.
func stalwartLayers(t *testing.T, defects ...string) harness.SourceSpec {
	t.Helper()
	spec := harness.SourceSpec{Name: "stalwart@0.15.5", Kind: fixtures.Stalwart, Version: "0.15.5", Profile: fixtures.AsShipped}
	layer, err := fixtures.Remedies(spec.Kind, spec.Version)
	assert.NilError(t, err)
	spec.Layers = append(spec.Layers, layer)
	for _, name := range defects {
		if _, ok := harness.BugNamed(name); ok {
			spec.Bugs = append(spec.Bugs, name)
			continue
		}
		d, err := fixtures.DefectNamed(name)
		assert.NilError(t, err)
		layer, err := d.Layer(spec.Version)
		assert.NilError(t, err)
		spec.Layers = append(spec.Layers, layer)
	}
	return spec
}

// rehearseStalwart starts a reference Stalwart, and writes its site file.
func rehearseStalwart(t *testing.T, defects ...string) *rehearsal {
	t.Helper()
	return rehearseStalwartSpec(t, stalwartLayers(t, defects...))
}

func rehearseStalwartSpec(t *testing.T, spec harness.SourceSpec) *rehearsal {
	t.Helper()
	r, src := startRehearsal(t, spec)
	at := fixtures.NetworkNamed(fixtures.ProxyNet).Source(0)
	var b strings.Builder
	fmt.Fprintf(&b, "domain = %q\n\n[proxy]\nhost = %q\nip4 = %q\nip6 = %q\ntls = \"unchecked:the lab's own authority\"\n", fixtures.Domain, fixtures.PublicHost, fixtures.Public().IP4, fixtures.Public().IP6)
	for _, e := range harness.ProxyEndpoints() {
		fmt.Fprintf(&b, "%s = %d\n", e.Name, e.Port)
	}
	b.WriteString("\n[vantage]\n")
	for _, h := range fixtures.Hosts() {
		fmt.Fprintf(&b, "%s = \"bind:%s,%s\"\n", h.Vantage, h.IP4, h.IP6)
	}
	fmt.Fprintf(&b, "\n[source.old]\nkind = \"stalwart\"\nversion = \"0.15.5\"\nhost = %q\nip4 = %q\nip6 = %q\ntls = \"unchecked:the lab's own authority\"\nlog = \"file:mail.log\"\n", fixtures.SourceHost(0), at.IP4, at.IP6)
	for _, e := range harness.SourceEndpoints(fixtures.Stalwart) {
		fmt.Fprintf(&b, "%s = %d\n", e.Name, e.Port)
	}
	r.nameAccounts(&b, src)
	r.text = b.String()
	return r
}

// patient waits as long as a Stalwart does before it refuses a recipient, and
// as a machine that is busy with other tests.
func patient(o *run.Options) {
	d := &o.Deadlines
	d.Dial, d.Handshake, d.Greeting = 10*time.Second, 20*time.Second, 20*time.Second
	d.Reply, d.Close, d.Witness = 20*time.Second, 10*time.Second, 8*time.Second
}

func TestGoodStalwartAtASiteIsReady(t *testing.T) {
	r := rehearseStalwart(t)
	found := r.judge(t, append(everything(), patient)...)
	for i := range found.Results {
		if r := &found.Results[i]; r.Verdict != result.Pass && r.Verdict != result.Unsupported {
			t.Logf("%s: %s %s%s", r.Key(), r.Verdict, r.Reason, harness.Describe(r))
		}
	}
	t.Logf("%s; %+v %d results in %.1f s", found.Answer.Sentence, found.Counts, len(found.Results), found.Seconds)
	assert.Equal(t, found.Answer.Verdict, result.Ready, found.Answer.Sentence)
	assert.Check(t, slices.ContainsFunc(found.Notices, func(n string) bool { return strings.Contains(n, "none is left") }), "%q %+v", found.Notices, found.Problems)
}

// blameless allows what needs no sign-in to fail and nothing to be flooded.
func blameless() []harness.Option {
	return []harness.Option{harness.MaxRisk(script.R4), harness.Allow(run.AllowProtocolErrors, run.AllowBadRecipients), harness.Jobs(16), patient}
}

// atOnce runs subtests side by side. What they do is mostly to wait, as a
// Stalwart makes them, and not to compute.
func atOnce[C any](t *testing.T, cases map[string]C, test func(t *testing.T, c C)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, 8)
	for name, c := range cases {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			t.Run(name, func(t *testing.T) { test(t, c) })
		})
	}
	wg.Wait()
}

func TestDefectsOfAStalwartAtASiteAreFound(t *testing.T) {
	atOnce(t, map[string][2]string{
		"no networks": {"networks-missing", "DX-01"}, "none for imap": {"networks-missing-imap", "DX-01"}, "whole network": {"networks-subnet", "DX-27"},
		"new server": {"networks-new-server", "MP-TRUST-NEW-SERVER"}, "port 25": {"networks-port-25", "DX-06"}, "no public url": {"public-url-missing", "DX-13"},
		"open relay": {"relays-for-all", "MP-OPEN-RELAY"}, "no plain": {"submission-no-plain", "MP-SASL-PLAIN"}, "no tls": {"tls-off-imap", "DX-17"},
		"no sieve": {"listener-missing-sieve", "DX-16"}, "translation": {"address-translation", "MP-NAT"},
	}, func(t *testing.T, c [2]string) {
		found := rehearseStalwart(t, c[0]).judge(t, blameless()...)
		assert.Equal(t, found.Answer.Verdict, result.NotReady, found.Answer.Sentence)
		assert.Assert(t, len(found.Diagnoses) > 0, found.Answer.Sentence)
		t.Logf("%s (%.1f s)", found.Answer.Sentence, found.Seconds)
		assert.Equal(t, found.Diagnoses[0].Code, c[1], found.Answer.Sentence)
	})
}

// Whatever is missing at a Stalwart's site is named, and the rest is judged.
func TestWhatIsMissingAtAStalwartsSiteIsNamed(t *testing.T) {
	type missing struct{ without, names string }
	atOnce(t, map[string]missing{
		"client":    {"client = ", "client to [vantage]"},
		"proxy":     {"proxy = ", "proxy to [vantage]"},
		"relay":     {"relay = ", "relay to [vantage]"},
		"neighbour": {"neighbour = ", "neighbour to [vantage]"},
		"stranger":  {"stranger = ", "stranger to [vantage]"},
		"log":       {"log = ", "to [source.old]"},
		"host":      {"host = ", "host to [proxy]"},
		"accounts":  {"[account.", "2 accounts of old"},
		"[proxy]":   {"[proxy]", "[proxy]"},
	}, func(t *testing.T, c missing) {
		r := rehearseStalwart(t)
		r.without(c.without)
		found := r.judge(t, blameless()...)
		for i := range found.Results {
			res := &found.Results[i]
			assert.Check(t, res.Verdict != result.Fail, "%s%s\n%s", res.Key(), harness.Describe(res), res.Transcript)
		}
		assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged, found.Answer.Sentence)
		assert.Check(t, strings.Contains(found.Answer.Sentence, c.names), found.Answer.Sentence)
		assert.Equal(t, found.Exit, result.ExitUnjudged)
		assert.Check(t, found.Counts.Pass > 0, "what does not need it is judged all the same")
		t.Logf("%+v %.1f s: %s", found.Counts, found.Seconds, found.Answer.Sentence)
	})
}

// A first look at a Stalwart keeps to its numbers, and blames nobody.
func TestFirstLookAtAStalwart(t *testing.T) {
	r := rehearseStalwart(t)
	found := r.judge(t, func(o *run.Options) { o.MaxRisk, o.Brief = script.R1, true }, patient)
	assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged, found.Answer.Sentence)
	assert.Check(t, strings.Contains(found.Answer.Sentence, "--max-risk R4"), found.Answer.Sentence)
	assert.Equal(t, found.Counts.Fail+found.Counts.Error, 0)
	through, seen := 0, 0
	for i := range found.Results {
		if res := &found.Results[i]; len(res.Witness) > 0 {
			if seen++; res.Facet.Driver == "through" {
				through++
			}
		}
	}
	t.Logf("%+v, %d witnessed, %d of them through the proxy, in %.1f s", found.Counts, seen, through, found.Seconds)
	assert.Check(t, through >= 6 && seen > through)
	all, err := scenarios.All()
	assert.NilError(t, err)
	p, err := run.MakePlan(r.target(t), run.Options{Scenarios: all, MaxRisk: script.R1, Brief: true})
	assert.NilError(t, err)
	assert.Check(t, p.Demand.Connections <= 60 && p.Demand.SignIns+p.Demand.Again <= 25 && p.Demand.FailedSignIns == 0 && p.Demand.UnknownUsers == 0, "%+v", *p.Demand)
	for _, v := range []string{run.Proxy, run.Relay} {
		assert.Check(t, p.Blame[v].Zero(), "%s: %+v", v, p.Blame[v])
	}
}

// atDebug says of a Stalwart that its log is at DEBUG.
func (r *rehearsal) atDebug() *rehearsal {
	r.text = strings.Replace(r.text, "log = \"file:mail.log\"\n", "log = \"file:mail.log\"\nlog-level = \"debug\"\n", 1)
	return r
}

// A Stalwart whose log is at DEBUG, and is said to be, is also judged by the
// sign-ins that it refuses. What is said wrongly is seen, and fails nothing.
func TestLogOfAStalwartAtDebug(t *testing.T) {
	refused := []harness.Option{harness.Select("client-address.imap", "client-address.pop3", "client-address.sieve", "client-address.submission", "client-address.http", "client-address.failed-*"), patient}
	for name, c := range map[string]struct {
		layer  string
		defect []string
		want   string // the verdict of refused sign-ins
	}{
		"as it is said":  {"tracer.out.level = \"debug\"\n", nil, "pass"},
		"at INFO":        {"", nil, "inconclusive"},
		"with a bug too": {"tracer.out.level = \"debug\"\n", []string{"stalwart-failed-login-logs-proxy"}, "fail"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			spec := stalwartLayers(t, c.defect...)
			if c.layer != "" {
				spec.Layers = append(spec.Layers, fixtures.Layer{Name: "debug", Files: map[string]string{"stalwart/99-debug.toml": c.layer}})
			}
			r := rehearseStalwartSpec(t, spec).atDebug()
			found := r.judge(t, append(everything(), refused...)...)
			tellFailures(t, found)
			if c.want == "fail" {
				assert.Equal(t, found.Answer.Verdict, result.NotReady, found.Answer.Sentence)
				assert.Check(t, strings.Contains(found.Answer.Sentence, "client-address.failed-"), found.Answer.Sentence)
				return
			}
			n := 0
			for i := range found.Results {
				res := &found.Results[i]
				switch {
				case !strings.HasPrefix(res.ID, "client-address.failed-"):
					assert.Equal(t, string(res.Verdict), "pass", res.Key())
				case res.Verdict != result.Unsupported:
					n++
					assert.Equal(t, string(res.Verdict), c.want, "%s: %s", res.Key(), res.Reason)
				}
			}
			assert.Check(t, n >= 8, "%d", n)
			if c.want == "inconclusive" {
				assert.Check(t, strings.Contains(found.Answer.Sentence, "a tracer of old at DEBUG"), found.Answer.Sentence)
			}
		})
	}
}

// The log of a Stalwart is also read by its own management API, which is asked
// for nothing else.
func TestLogOfAStalwartByItsAPI(t *testing.T) {
	r := rehearseStalwart(t)
	whole := r.text
	at := fixtures.NetworkNamed(fixtures.ClientNet).Source(0).IP4
	admin := r.lab.Target().Sources[0].Admin.(interface {
		Create(context.Context, manage.Principal) error
	})
	assert.NilError(t, admin.Create(t.Context(), manage.Principal{Type: "individual", Name: "watcher", Secrets: []string{"the watcher's own password"}, Roles: []string{"admin"}}))
	by := func(more string) {
		r.text = strings.Replace(whole, "log = \"file:mail.log\"\n", fmt.Sprintf("log = \"api:http://%s:%d\"\nlog-user = \"watcher\"\nlog-from = \"client\"\n%s\n", at, fixtures.StalwartManagementPort, more), 1)
	}
	only := []harness.Option{harness.Select("client-address.imap", "client-address.http", "proxy.imap", "trust.header-imap-stranger", "relay.greets"), patient}
	for name, tc := range map[string]struct{ secret, reason string }{
		"right": {"the watcher's own password", ""},
		"wrong": {"wrong-password", "permission logs-view"},
	} {
		t.Run(name, func(t *testing.T) {
			by("log-secret = \"env:MAILPROOF_TEST_LOGS\"")
			r.env["MAILPROOF_TEST_LOGS"] = tc.secret
			found := r.judge(t, only...)
			reasons, witnessed := "", 0
			for i := range found.Results {
				res := &found.Results[i]
				assert.Check(t, res.Verdict != result.Fail, "%s: %s", res.Key(), harness.Describe(res))
				reasons += res.Reason + "\n"
				witnessed += len(res.Witness)
			}
			if tc.reason == "" {
				assert.Equal(t, found.Counts.Inconclusive, 0, reasons)
				assert.Check(t, witnessed > 0)
				return
			}
			assert.Check(t, strings.Contains(reasons, tc.reason), reasons)
			assert.Check(t, !strings.Contains(reasons, tc.secret))
			assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged)
		})
	}
	t.Run("no secret", func(t *testing.T) {
		by("log-secret = \"env:MAILPROOF_TEST_NOWHERE\"")
		found := r.judge(t, only...)
		assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged)
		assert.Check(t, strings.Contains(found.Answer.Sentence, "MAILPROOF_TEST_NOWHERE"), found.Answer.Sentence)
	})
}
