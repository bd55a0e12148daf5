package harness_test

import (
	"fmt"
	"os"
	"strconv"
	"testing"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/wire"
)

// repeatsVariable says how often the corpus is repeated in each combination;
// "make stability" sets it to 20.
const repeatsVariable = "MAILPROOF_STABILITY"

// However many scenarios run at a time, and however their writes reach the
// network, no verdict and no finding differs from one run to the next. Under the
// race detector two of the nine combinations are run.
func TestStability(t *testing.T) {
	repeats := 1
	if v := os.Getenv(repeatsVariable); v != "" {
		n, err := strconv.Atoi(v)
		assert.NilError(t, err, repeatsVariable)
		assert.Assert(t, n > 0, repeatsVariable)
		repeats = n
	}
	var specs []harness.SourceSpec
	for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
		specs = append(specs, harness.SourceSpec{Name: "good " + release, Kind: fixtures.DovecotPostfix, Version: release, Profile: fixtures.Instrumented})
	}
	// A failing source must fail the same way each time.
	bad := harness.SourceSpec{Name: "bad", Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.Instrumented, Bugs: []string{"imap-id-reapplies", "delivers-to-junk", "xclient-authenticates"}}
	specs = append(specs, bad)
	target := reference(t, specs...)
	first := make(map[string]string)
	for i, jobs := range []int{16, 4, 1} {
		for k, name := range []string{"normal", "one-byte", "joined"} {
			if sample && (i+k != 1) {
				continue
			}
			shape, ok := wire.ShapeNamed(name)
			assert.Assert(t, ok, name)
			t.Run(fmt.Sprintf("%d jobs/%s", jobs, name), func(t *testing.T) {
				found, err := harness.Run(t.Context(), target, harness.Jobs(jobs), harness.Shape(shape), harness.Repeat(repeats))
				assert.NilError(t, err)
				assert.Equal(t, found.Exit, result.ExitFailed)
				for i := range found.Results {
					r := &found.Results[i]
					assert.Assert(t, !r.Unstable, "%s: %v", r.Key(), r.Repeats)
					if r.Source != bad.Name {
						assert.Equal(t, r.Verdict, result.Pass, "%s: %s %+v", r.Key(), r.Reason, r.Findings)
					}
					verdict := string(r.Verdict)
					for _, f := range r.Findings {
						verdict += " " + f.Code + " " + f.At.File + ":" + strconv.Itoa(f.At.Line)
					}
					if was, seen := first[r.Key()]; seen {
						assert.Equal(t, verdict, was, r.Key())
					}
					first[r.Key()] = verdict
				}
			})
		}
	}
}
