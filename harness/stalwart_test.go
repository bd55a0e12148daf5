package harness_test

import (
	"slices"
	"testing"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
)

// judgedStalwart judges a reference Stalwart with layers over the guide's recipe.
func judgedStalwart(t *testing.T, layers []fixtures.Layer, opts ...harness.Option) *result.Run {
	t.Helper()
	spec := harness.SourceSpec{Name: "stalwart@0.15.5", Kind: fixtures.Stalwart, Version: "0.15.5", Profile: fixtures.Instrumented, Layers: layers}
	lab, err := harness.StartReference(t.Context(), []harness.SourceSpec{spec}, true)
	assert.NilError(t, err)
	defer func() { assert.NilError(t, lab.Close(t.Context())) }()
	found, err := harness.Run(t.Context(), lab.Target(), opts...)
	assert.NilError(t, err)
	return found
}

// A good Stalwart passes the whole corpus, and is left as it was found: the
// scenarios that change its settings put them back.
func TestAGoodStalwart(t *testing.T) {
	found := judgedStalwart(t, nil)
	assert.Assert(t, len(found.Results) > 250, "%d results", len(found.Results))
	for i := range found.Results {
		r := &found.Results[i]
		if r.Verdict != result.Pass && r.Verdict != result.Unsupported {
			t.Errorf("%s: %s %s %+v", r.Key(), r.Verdict, r.Reason, r.Findings)
		}
		for _, id := range r.Requirements {
			assert.Assert(t, id != "A-03" && id != "A-05" && id != "A-08", "%s names %s, which is about another kind of source", r.Key(), id)
		}
	}
	assert.Equal(t, len(found.Problems), 0)
}

// What is wrong with a Stalwart is told by its first diagnosis; what its reload
// rejects is a problem beside it.
func TestStalwartsDiagnoses(t *testing.T) {
	for name, rejected := range map[string]bool{"networks-not-restarted": false, "networks-subnet": false, "public-url-unquoted": true, "new-server-banned": false, "networks-zero": true} {
		t.Run(name, func(t *testing.T) {
			d, err := fixtures.DefectNamed(name)
			assert.NilError(t, err)
			layer, err := d.Layer("0.15.5")
			assert.NilError(t, err)
			found := judgedStalwart(t, []fixtures.Layer{layer}, harness.Select("trust.*", "relay.greets", "client-address.ban", "client-address.imap", "discovery.jmap-*"))
			assert.Assert(t, len(found.Diagnoses) > 0)
			assert.Equal(t, found.Diagnoses[0].Code, d.Diagnosis)
			assert.Equal(t, slices.ContainsFunc(found.Problems, func(p result.Problem) bool { return p.Stage == harness.StageReload }), rejected, "%+v", found.Problems)
			for i := range found.Results {
				if r := &found.Results[i]; r.Verdict == result.Fail && r.ExplainedBy == "" {
					t.Errorf("no diagnosis explains %s", r.Key())
				}
			}
		})
	}
}

// Both kinds of sources stand in one lab, and the proxy before them announces
// to each as it must be announced to.
func TestBothKindsOfSourcesInOneLab(t *testing.T) {
	specs := []harness.SourceSpec{
		{Name: "dovecot-postfix@trixie", Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.Instrumented},
		{Name: "stalwart@0.15.5", Kind: fixtures.Stalwart, Version: "0.15.5", Profile: fixtures.Instrumented},
	}
	lab, err := harness.StartReference(t.Context(), specs, true)
	assert.NilError(t, err)
	defer func() { assert.NilError(t, lab.Close(t.Context())) }()
	found, err := harness.Run(t.Context(), lab.Target(), harness.Select("proxy.*", "client-address.*", "discovery.jmap-session"))
	assert.NilError(t, err)
	sources := map[string]int{}
	for i := range found.Results {
		r := &found.Results[i]
		sources[r.Source]++
		assert.Assert(t, r.Verdict == result.Pass || r.Verdict == result.Unsupported, "%s: %s %s %+v", r.Key(), r.Verdict, r.Reason, r.Findings)
	}
	assert.Assert(t, sources["dovecot-postfix@trixie"] > 20 && sources["stalwart@0.15.5"] > 20, "%v", sources)
}

// The kill matrix of the reference Stalwart, as [TestProve] has it of the other
// kind.
func TestProveStalwart(t *testing.T) {
	o := harness.ProveOptions{Lab: "reference", Start: harness.ReferenceStarter, Releases: fixtures.Releases(fixtures.Stalwart),
		Batch: 8, Faults: true, Progress: func(s string) { t.Log(s) }}
	if sample {
		o.Faults = false
		o.Defects = []string{"networks-missing", "networks-not-restarted", "public-url-missing", "stalwart-header-from-anyone", "stalwart-log-drops-lines"}
	}
	m, err := harness.Prove(t.Context(), o)
	assert.NilError(t, err)
	if sample {
		m.Assertions = nil
	}
	for _, f := range m.Failures() {
		t.Error(f)
	}
	tt := m.Totals
	t.Logf("%d of %d good targets clean; %d of %d defects caught, %d diagnosed, %d remedied; %d of %d assertions killed; %d of %d wire defects noticed",
		tt.Clean, tt.Good, tt.Caught, tt.Defects, tt.Diagnosed, tt.Remedied, tt.Killed, tt.Assertions, tt.Noticed, tt.Faults)
	if !sample {
		assert.Assert(t, tt.Good >= 6 && tt.Defects >= 80 && tt.Assertions >= 400 && tt.Faults >= 2000, "%+v", tt)
	}
}
