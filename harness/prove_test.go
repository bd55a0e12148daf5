package harness_test

import (
	"strings"
	"testing"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
)

// The kill matrix on the reference lab: every defect is caught, diagnosed and
// cured, every assertion is killed, every wire defect is noticed, and good
// targets are clean. Under the race detector, which makes it ten times as long,
// a sample of the defects is tried, and the assertions are not counted.
func TestProve(t *testing.T) {
	o := harness.ProveOptions{Lab: "reference", Start: harness.ReferenceStarter, Releases: fixtures.Releases(fixtures.DovecotPostfix),
		Batch: 8, Faults: true, Progress: func(s string) { t.Log(s) }}
	if sample {
		o.Faults = false
		o.Defects = []string{"trust-missing", "trust-subnet", "open-relay", "slow-authentication", "mixes-up-sessions", "log-drops-lines", "delivers-twice"}
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
	assert.Assert(t, tt.Good >= 6 && tt.Defects >= 10, "%+v", tt)
	if !sample {
		assert.Assert(t, tt.Defects >= 150 && tt.Assertions >= 200 && tt.Faults >= 1000, "%+v", tt)
	}
}

// TestLargePacketsAreNamed: a path that loses packets of full size has a cause
// of its own, in both directions, and a source that answers nothing has another.
func TestLargePacketsAreNamed(t *testing.T) {
	for bug, want := range map[string]string{
		"large-packets-in-lost":           "MP-LARGE-PACKETS",
		"large-packets-out-lost":          "MP-LARGE-PACKETS",
		"stalwart-large-packets-in-lost":  "MP-LARGE-PACKETS",
		"stalwart-large-packets-out-lost": "MP-LARGE-PACKETS",
		"answers-late":                    "DX-23",
	} {
		spec := harness.SourceSpec{Name: bug, Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.Instrumented, Bugs: []string{bug}}
		if strings.HasPrefix(bug, "stalwart-") {
			spec.Kind, spec.Version = fixtures.Stalwart, "0.15.5"
		}
		found, err := harness.Run(t.Context(), reference(t, spec), harness.Select("lifecycle.large-transfer", "lifecycle.sign-in-imap", "client-address.imap"))
		assert.NilError(t, err)
		assert.Assert(t, len(found.Diagnoses) > 0, "%s: %+v", bug, found.Results)
		assert.Equal(t, found.Diagnoses[0].Code, want, "%s: %+v", bug, found.Diagnoses[0])
		for _, r := range found.Results {
			assert.Assert(t, r.Verdict == result.Pass || r.ExplainedBy != "", "%s: %s %+v", bug, r.Key(), r.Findings)
		}
	}
}

// TestEveryDiagnosisIsExplained: what a run names, `mailproof explain` explains.
func TestEveryDiagnosisIsExplained(t *testing.T) {
	ds, err := fixtures.Defects()
	assert.NilError(t, err)
	for _, d := range ds {
		_, ok := run.ExplainCode(d.Diagnosis)
		assert.Assert(t, ok, "%s is what %s is diagnosed as, and run.Codes does not list it", d.Diagnosis, d.Name)
	}
}
