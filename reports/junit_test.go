package reports

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/mailproof/mailproof/harness/result"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/golden"
)

func junitOf(t *testing.T, run *result.Run) string {
	t.Helper()
	var b bytes.Buffer
	assert.NilError(t, WriteJUnit(&b, run))
	return b.String()
}

func TestJUnitGolden(t *testing.T) {
	golden.Assert(t, junitOf(t, sampleRun()), "sample.junit.xml")
}

func TestJUnitReadersAgree(t *testing.T) {
	readers := map[string]func(*node) (tally, error){"jenkins": jenkins, "dorny": dorny, "mikepenz": mikepenz, "enricomi": enricoMi, "gitlab": gitlab}
	check := func(t *testing.T, run *result.Run) {
		t.Helper()
		root, err := readXML(strings.NewReader(junitOf(t, run)))
		assert.NilError(t, err)
		assert.NilError(t, shape(root))
		want := ours(run)
		for name, count := range readers {
			got, err := count(root)
			assert.NilError(t, err)
			assert.Equal(t, got, want, name)
		}
	}
	check(t, sampleRun())
	check(t, &result.Run{Exit: result.ExitEmpty})
	check(t, &result.Run{Exit: result.ExitEmpty, Excluded: []result.Excluded{{ID: "trust.x", Reason: "named"}}})
	check(t, &result.Run{Exit: result.ExitUnjudged, Problems: []result.Problem{{}, {}}})
	for seed := range uint64(60) {
		check(t, randomRun(seed, 1+int(seed)))
	}
}

// The models find the mistakes that they are there for.
func TestJUnitReadersDisagreeAboutBadFiles(t *testing.T) {
	read := func(text string) *node {
		root, err := readXML(strings.NewReader(text))
		assert.NilError(t, err)
		return root
	}
	nested := read(`<testsuites><testsuite name="a" time="0"><testsuite name="b" time="0"><testcase name="c" classname="k"/></testsuite></testsuite></testsuites>`)
	j, _ := jenkins(nested)
	d, _ := dorny(nested)
	assert.Assert(t, j != d, "nested suites")
	both := read(`<testsuites><testsuite name="a" time="0"><testcase name="c" classname="k"><failure/><skipped/></testcase></testsuite></testsuites>`)
	j, _ = jenkins(both)
	d, _ = dorny(both)
	assert.Assert(t, j != d, "failure and skipped")
	_, err := dorny(read(`<testsuites><testsuite name="a" time="0"><testcase/></testsuite></testsuites>`))
	assert.ErrorContains(t, err, "has no name")
	twice := read(`<testsuites><testsuite name="a"><testcase name="c" classname="k"/><testcase name="c" classname="k"/></testsuite></testsuites>`)
	g, _ := gitlab(twice)
	j, _ = jenkins(twice)
	assert.Assert(t, j != g, "duplicates")
	_, err = enricoMi(read(`<testsuites><testsuite name="a" tests="2" failures="0" errors="0" skipped="0"><testcase name="c" classname="k"/></testsuite></testsuites>`))
	assert.ErrorContains(t, err, "are not those of the cases")
	_, err = readXML(strings.NewReader("<a>\x00</a>"))
	assert.Assert(t, err != nil)
}

func TestJUnitRefusesDuplicates(t *testing.T) {
	run := sampleRun()
	run.Results = append(run.Results, run.Results[3])
	var b bytes.Buffer
	err := WriteJUnit(&b, run)
	var dup *DuplicateError
	assert.Assert(t, errors.As(err, &dup))
	assert.Equal(t, dup.Key, run.Results[3].Key())
	assert.Equal(t, b.Len(), 0)
}

func TestJUnitRepeats(t *testing.T) {
	c := claims[0]
	r := passing(c, trixie, facet("imap", "ip4", "as-proxy"), 1)
	r.Repeats = []result.Verdict{result.Fail, result.Error, result.Pass}
	r.Unstable = true
	text := junitOf(t, &result.Run{Results: []result.Result{r}})
	root, err := readXML(strings.NewReader(text))
	assert.NilError(t, err)
	assert.Equal(t, len(root.children), 2)
	one := root.children[0].all("testcase")[0]
	assert.Equal(t, len(one.all("flakyFailure")), 2)
	assert.Equal(t, one.all("flakyFailure")[0].attrs["message"], "repeat 1 of 3: fail")
	assert.Assert(t, !one.has("failure", "error", "skipped"))
	assert.Equal(t, root.children[1].attrs["name"], "instability")
	assert.Equal(t, root.children[1].all("testcase")[0].all("failure")[0].attrs["message"], "3 repeats gave different verdicts: 1 fail, 1 error, 1 pass")

	r.Verdict = result.Fail // already a failure: it is not counted twice
	root, err = readXML(strings.NewReader(junitOf(t, &result.Run{Results: []result.Result{r}})))
	assert.NilError(t, err)
	assert.Equal(t, len(root.children), 1)
}

func TestJUnitSizeIsBounded(t *testing.T) {
	c := claims[0]
	r := failing(passing(c, trixie, facet("imap", "ip4", "as-proxy"), 1), c, result.Finding{Wanted: strings.Repeat("w", 1<<20), Found: strings.Repeat("f", 1<<20)})
	r.Transcript = strings.Repeat("A    +0.0001 <- "+strings.Repeat("x", 2000)+"\n", 4000)
	r.Witness = []result.Witness{{Line: strings.Repeat("y", 1<<20)}, {Line: "never shown"}}
	text := junitOf(t, &result.Run{Results: []result.Result{r}})
	assert.Assert(t, len(text) < 100<<10, "%d octets", len(text))
	assert.Assert(t, strings.Contains(text, "earlier lines are not shown"))
}

// FuzzJUnitText demands that whatever a server sent comes back from an XML
// reader as the visible text of it.
func FuzzJUnitText(f *testing.F) {
	for _, s := range []string{"", hostile, "]]>", "<![CDATA[", "&#0;", "&amp;", "a\nb", "\u0085\u2028", "\xc0\x80", "\ud7ff\ue000\ufffd\U00010000"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := result.Result{ID: "a.b" + s, Source: s, Verdict: result.Fail, Claim: s, Transcript: s,
			Findings: []result.Finding{{Wanted: s, Found: s, Evidence: []string{s}}}}
		run := &result.Run{Results: []result.Result{r}, Notices: []string{s}}
		var b bytes.Buffer
		if err := WriteJUnit(&b, run); err != nil {
			t.Fatal(err)
		}
		root, err := readXML(&b)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		one := root.children[0].all("testcase")[0]
		if got, want := one.attrs["name"], visible(r.Key()); got != want {
			t.Fatalf("the name is %q, not %q", got, want)
		}
		if got, want := root.children[0].all("system-out")[0].text, visibleText(s); s != "" && got != want {
			t.Fatalf("the text is %q, not %q", got, want)
		}
		if err := shape(root); err != nil {
			t.Fatal(err)
		}
	})
}

func ExampleWriteJUnit() {
	run := &result.Run{Results: []result.Result{{ID: "relay.greets", Source: "dovecot-postfix", Verdict: result.Unsupported, Reason: "no port 25",
		File: "scenarios/relay/greets.txtar", Line: 1, Facet: result.Facet{Endpoint: "smtp", Family: "ip4", Driver: "direct"}}}}
	var b bytes.Buffer
	if err := WriteJUnit(&b, run); err != nil {
		fmt.Println(err)
	}
	for line := range strings.Lines(b.String()) {
		if strings.Contains(line, "skipped message") {
			fmt.Println(strings.TrimSpace(line))
		}
	}
	// Output: <skipped message="unsupported: no port 25">unsupported: no port 25
}
