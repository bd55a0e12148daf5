package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
)

// Test judges a target and reports each result as a subtest: a failed must
// fails it, what the target was declared not to have skips it, and what could
// not be judged fails it with the reason. Scenario, requirements and facet are
// attributes of the subtest; the transcript and the witnesses are written to
// its artifact directory when it does not pass.
func Test(t *testing.T, target *Target, opts ...Option) *result.Run {
	t.Helper()
	strict := false
	opts = append(opts, func(o *run.Options) { strict = o.Strict })
	found, err := Run(t.Context(), target, opts...)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range found.Problems {
		t.Errorf("%s: %s: %s: %s", p.Source, p.Stage, p.Where, p.Words)
	}
	for _, d := range found.Diagnoses {
		t.Logf("%s %s at %s: %s", d.Code, d.Title, d.Source, d.Remedy.Text)
	}
	for i := range found.Results {
		res := &found.Results[i]
		t.Run(res.ID+"/"+res.Source+"/"+res.Facet.String(), func(t *testing.T) { report(t, res, strict) })
	}
	return found
}

func report(t *testing.T, res *result.Result, strict bool) {
	t.Helper()
	t.Attr("scenario", res.ID)
	t.Attr("requirements", strings.Join(res.Requirements, " "))
	t.Attr("source", res.Source)
	t.Attr("origin", string(res.Origin))
	t.Attr("facet", res.Facet.String())
	t.Attr("verdict", string(res.Verdict))
	if res.Verdict != result.Pass && res.Verdict != result.Unsupported {
		evidence(t, res)
	}
	switch res.Verdict {
	case result.Fail:
		text := Describe(res)
		if res.Level == result.Must || strict {
			t.Error(text)
		} else {
			t.Log("a " + string(res.Level) + " that does not hold: " + text)
		}
	case result.Unsupported:
		t.Skip(res.Reason)
	case result.Inconclusive, result.Error:
		t.Errorf("%s: %s: %s", res.ID, res.Verdict, res.Reason)
	}
	if res.Unstable {
		t.Errorf("%s: the verdicts of %d runs differ: %v", res.ID, len(res.Repeats), res.Repeats)
	}
}

// Describe says in a few lines what a failed result found.
func Describe(res *result.Result) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n", res.Claim)
	for _, f := range res.Findings {
		fmt.Fprintf(&b, "%s:%d\n  wanted  %s\n  found   %s\n  means   %s\n", f.At.File, f.At.Line, f.Wanted, f.Found, f.Means)
		if f.Remedy != "" {
			fmt.Fprintf(&b, "  change  %s\n", f.Remedy)
		}
		for _, e := range f.Evidence {
			fmt.Fprintf(&b, "  log     %s\n", e)
		}
	}
	if res.ExplainedBy != "" {
		fmt.Fprintf(&b, "  cause   %s\n", res.ExplainedBy)
	}
	return b.String()
}

func evidence(t *testing.T, res *result.Result) {
	var b strings.Builder
	b.WriteString(res.Transcript)
	for _, w := range res.Witness {
		fmt.Fprintf(&b, "\n%s joined by %s\n%s\n", w.Kind, w.JoinedBy, w.Line)
	}
	path := filepath.Join(t.ArtifactDir(), "transcript.txt")
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		t.Logf("the evidence could not be written: %v", err)
	}
}
