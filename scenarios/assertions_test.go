package scenarios_test

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/golden"

	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/scenarios"
)

const assertionsFile = "testdata/assertions.txt"

// An asserted is an assertion of a scenario at one kind of source.
type asserted struct{ kind, id, text string }

// The kill matrix shows that every assertion can fail. That none has gone, or
// is asked of fewer kinds of sources than before, is shown here: whoever takes
// one away says so by writing the list again (go test ./scenarios -update).
// New ones need not be listed at once.
func TestNoAssertionIsLost(t *testing.T) {
	all, err := scenarios.All()
	assert.NilError(t, err)
	has := make(map[asserted]int)
	for kind, releases := range map[string][]script.Release{
		"dovecot-postfix": {{Kind: "dovecot-postfix", Version: "bookworm"}, {Kind: "dovecot-postfix", Version: "trixie"}},
		"stalwart":        {{Kind: "stalwart", Version: "0.15.5"}},
	} {
		for _, s := range all {
			for _, a := range s.AssertionsAt(releases...) {
				has[asserted{kind, s.ID, a.Text}]++
			}
		}
	}
	if golden.FlagUpdate() {
		lines := make([]string, 0, len(has))
		for a, n := range has {
			lines = append(lines, fmt.Sprintf("%s\t%s\t%d\t%s\n", a.id, a.kind, n, a.text))
		}
		slices.Sort(lines)
		assert.NilError(t, os.WriteFile(assertionsFile, []byte(strings.Join(lines, "")), 0o644))
	}
	list, err := os.ReadFile(assertionsFile)
	assert.NilError(t, err)
	listed := 0
	for line := range strings.Lines(string(list)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 4)
		assert.Equal(t, len(f), 4, line)
		n, err := strconv.Atoi(f[2])
		assert.NilError(t, err)
		listed += n
		if got := has[asserted{f[1], f[0], f[3]}]; got < n {
			t.Errorf("%s has %d of %d assertions %q at %s: if it is meant, go test ./scenarios -update", f[0], got, n, f[3], f[1])
		}
	}
	assert.Assert(t, listed > 650, "%d assertions are listed", listed)
}
