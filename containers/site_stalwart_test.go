package containers

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
)

// shippedStalwart is a real Stalwart as it is shipped, with the guide's recipe,
// our remedies and perhaps a defect.
func shippedStalwart(t *testing.T, path string, defects ...string) harness.SourceSpec {
	t.Helper()
	remedies, err := fixtures.Remedies(fixtures.Stalwart, "0.15.5")
	assert.NilError(t, err)
	s := stalwartSpec("stalwart"+strings.Join(append([]string{""}, defects...), "-"), fixtures.AsShipped, "exec:"+path, remedies)
	for _, name := range defects {
		d, err := fixtures.DefectNamed(name)
		assert.NilError(t, err)
		layer, err := d.Layer(s.Version)
		assert.NilError(t, err)
		s.Layers = append(s.Layers, layer)
	}
	return s
}

// A real Stalwart of a stranger's: a good one is ready, its log is read by a
// command and by its own API alike, and what is wrong with others is named.
func TestForeignStalwart(t *testing.T) {
	path := realStalwart(t)
	rehearsal(t)
	ctx := within(t, 9*time.Minute)
	cases := []struct{ defect, code string }{
		{"networks-missing-imap", "DX-01"}, {"networks-subnet", "DX-27"}, {"networks-new-server", "MP-TRUST-NEW-SERVER"},
		{"public-url-missing", "DX-13"}, {"relays-for-all", "MP-OPEN-RELAY"}, {"networks-port-25", "DX-06"},
	}
	specs := []harness.SourceSpec{shippedStalwart(t, path)}
	for _, c := range cases {
		specs = append(specs, shippedStalwart(t, path, c.defect))
	}
	talkative := shippedStalwart(t, path)
	talkative.Name += "-debug"
	talkative.Layers = append(talkative.Layers, fixtures.Layer{Name: "debug", Files: map[string]string{"stalwart/99-debug.toml": "tracer.out.level = \"debug\"\n"}})
	specs = append(specs, talkative)
	f := standForeign(ctx, t, specs...)
	sites := make([]string, len(specs))
	for i := range specs {
		sites[i] = f.site(t, i)
	}
	t.Run("first look", func(t *testing.T) {
		found := f.judge(ctx, t, sites[0], func(o *run.Options) { o.MaxRisk, o.Brief = script.R1, true })
		tell(t, found)
		assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged, found.Answer.Sentence)
		assert.Equal(t, found.Counts.Fail+found.Counts.Error, 0)
	})
	t.Run("log by its API", func(t *testing.T) {
		f.env["MAILPROOF_TEST_LOGS"] = f.lab.Target().Sources[0].Admin.(*stalwart).secret
		at := fixtures.NetworkNamed(fixtures.ProxyNet).Source(0).IP4
		old := sites[0][strings.Index(sites[0], "log = "):]
		old = old[:strings.Index(old, "\n")]
		text := strings.Replace(sites[0], old, fmt.Sprintf("log = \"api:http://%s:%d\"\nlog-user = %q\nlog-secret = \"env:MAILPROOF_TEST_LOGS\"\nlog-from = \"client\"", at, fixtures.StalwartManagementPort, harness.StalwartAdmin), 1)
		found := f.judge(ctx, t, text, func(o *run.Options) { o.MaxRisk, o.Brief = script.R1, true })
		tell(t, found)
		assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged, found.Answer.Sentence)
		assert.Equal(t, found.Counts.Fail+found.Counts.Error, 0)
		witnessed := 0
		for i := range found.Results {
			witnessed += len(found.Results[i].Witness)
		}
		assert.Check(t, witnessed > 10)
	})
	// Its log at DEBUG shows refused sign-ins as well.
	t.Run("log at DEBUG", func(t *testing.T) {
		text := strings.Replace(sites[len(specs)-1], "log = ", "log-level = \"debug\"\nlog = ", 1)
		found := f.judge(ctx, t, text, append(everything(), harness.Select("client-address.imap", "client-address.pop3", "client-address.sieve", "client-address.submission", "client-address.http", "client-address.failed-*", "trust.forwarded"))...)
		tell(t, found)
		assert.Equal(t, found.Counts.Pass, len(found.Results)-found.Counts.Unsupported, "%+v", found.Counts)
		assert.Check(t, slices.ContainsFunc(found.Results, func(r result.Result) bool { return r.ID == "client-address.failed-imap" && r.Verdict == result.Pass }))
	})
	t.Run("defects", func(t *testing.T) {
		for i, c := range cases {
			t.Run(c.defect, func(t *testing.T) {
				t.Parallel()
				found := f.judge(ctx, t, sites[i+1], harness.MaxRisk(script.R4), harness.Allow(run.AllowProtocolErrors, run.AllowBadRecipients), harness.Jobs(16))
				t.Logf("%s (%.1f s)", found.Answer.Sentence, found.Seconds)
				assert.Equal(t, found.Answer.Verdict, result.NotReady, found.Answer.Sentence)
				assert.Assert(t, len(found.Diagnoses) > 0, found.Answer.Sentence)
				assert.Equal(t, found.Diagnoses[0].Code, c.code, found.Answer.Sentence)
			})
		}
	})
	t.Run("whole", func(t *testing.T) {
		found := f.judge(ctx, t, sites[0], everything()...)
		tell(t, found)
		assert.Equal(t, found.Answer.Verdict, result.Ready, found.Answer.Sentence)
		assert.Check(t, slices.ContainsFunc(found.Notices, func(n string) bool { return strings.Contains(n, "none is left") }), "%q", found.Notices)
	})
}
