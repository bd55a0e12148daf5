package reports

import (
	"bytes"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/mailproof/mailproof/harness/result"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/golden"
)

func htmlOf(t testing.TB, run *result.Run) string {
	t.Helper()
	var b bytes.Buffer
	assert.NilError(t, WriteHTML(&b, run))
	return b.String()
}

func TestHTMLGolden(t *testing.T) {
	golden.Assert(t, htmlOf(t, sampleRun()), "sample.html")
}

func TestHTMLIsSoundWhateverServersSay(t *testing.T) {
	runs := []*result.Run{sampleRun(), {Exit: result.ExitEmpty}, {Exit: result.ExitUnjudged, Problems: []result.Problem{{}}}}
	for seed := range uint64(25) {
		runs = append(runs, randomRun(seed, 30))
	}
	for _, run := range runs {
		checkPage(t, htmlOf(t, run))
	}
}

// checkPage demands of a page that it is well formed, holds nothing but the
// elements and attributes that we write, refers only to places of its own,
// and can be read by somebody who does not see it.
func checkPage(t *testing.T, text string) {
	t.Helper()
	root, err := readXML(strings.NewReader(text))
	assert.NilError(t, err)
	elements := strings.Fields("html head meta title style body header main section article footer nav div p h1 h2 h3 ul ol li a span strong code pre mark br table caption colgroup col thead tbody tr th td dl dt dd details summary svg rect")
	attributes := strings.Fields("id class href lang charset name content http-equiv open scope rowspan colspan role aria-label aria-labelledby aria-hidden tabindex data-source viewBox preserveAspectRatio width height x y fill")
	ids := map[string]int{}
	var refs []string
	level := 0
	var walk func(n *node, within []string)
	walk = func(n *node, within []string) {
		assert.Assert(t, slices.Contains(elements, n.name), "<%s> in %v", n.name, within)
		for name, value := range n.attrs {
			assert.Assert(t, slices.Contains(attributes, name), "<%s %s=%q>", n.name, name, value)
			switch name {
			case "id":
				ids[value]++
			case "href":
				ref, ok := strings.CutPrefix(value, "#")
				assert.Assert(t, ok, "a link leads away: %q", value)
				refs = append(refs, ref)
			case "aria-labelledby":
				refs = append(refs, value)
			}
		}
		if len(n.name) == 2 && n.name[0] == 'h' && n.name[1] >= '1' && n.name[1] <= '6' {
			now := int(n.name[1] - '0')
			assert.Assert(t, now <= level+1, "a heading of level %d follows one of level %d", now, level)
			level = now
		}
		switch n.name {
		case "th":
			assert.Assert(t, n.attrs["scope"] != "", "a heading cell without scope")
		case "svg":
			assert.Assert(t, n.attrs["aria-label"] != "" || n.attrs["aria-hidden"] == "true", "a picture without words")
		case "table":
			assert.Assert(t, n.has("caption") || slices.Contains(within, "section"), "a table without a name")
		case "details":
			assert.Assert(t, n.has("summary"), "details without a summary")
		}
		for _, c := range n.children {
			walk(c, append(within, n.name))
		}
	}
	walk(root, nil)
	for id, n := range ids {
		assert.Equal(t, n, 1, "id %s", id)
	}
	for _, ref := range refs {
		assert.Equal(t, ids[ref], 1, "a link leads nowhere: #%s", ref)
	}
}

// A page has a size that browsers and artifact stores take.
func TestHTMLSize(t *testing.T) {
	run := sampleRun()
	big := *run
	big.Results = nil
	for i := 0; len(big.Results) < 300; i++ {
		for _, r := range run.Results {
			r.ID = fmt.Sprintf("%s-%d", r.ID, i)
			r.Transcript = strings.Repeat(r.Transcript, 3)
			big.Results = append(big.Results, r)
		}
	}
	big.Results = big.Results[:300]
	text := htmlOf(t, &big)
	t.Logf("300 results of %d octets of dialogue: %d octets", len(big.Results[0].Transcript), len(text))
	assert.Assert(t, len(text) < 2_000_000, "%d octets", len(text))
	checkPage(t, text)

	long := passing(claims[0], trixie, facet("imap", "ip4", "as-proxy"), 1)
	long.Transcript = strings.Repeat("A    +0.0001 <- "+strings.Repeat("x", 2000)+"\n", 4000)
	text = htmlOf(t, &result.Run{Results: []result.Result{long}})
	assert.Assert(t, len(text) < 200_000, "%d octets", len(text))
	assert.Assert(t, strings.Contains(text, "3880 events are not shown"))
}

func TestHTMLWithTwoConnections(t *testing.T) {
	r := passing(claims[0], trixie, facet("imap", "ip4", "as-proxy"), 1)
	r.Transcript = "A    +0.0001 == 203.0.113.10:1 -> 203.0.113.100:143 proxy to imap\nB    +0.0002 -> b1 NOOP\n     +0.0003 == 5 more events were not kept\nno event at all\n"
	text := htmlOf(t, &result.Run{Results: []result.Result{r}})
	checkPage(t, text)
	for _, want := range []string{">connection</span>", `<td>B</td><td colspan="2">-&gt; b1 NOOP</td>`, "5 more events were not kept", "no event at all"} {
		assert.Assert(t, strings.Contains(text, want), want)
	}
}

func TestHTMLAnswersFirst(t *testing.T) {
	good := passing(claims[0], trixie, facet("imap", "ip4", "as-proxy"), 1)
	bad := failing(good, claims[0], result.Finding{Code: "mismatch"})
	bad.Facet.Family = "ip6"
	open := good
	open.Verdict, open.Facet.Family = result.Inconclusive, "ip6"
	mixed := good
	mixed.Unstable, mixed.Repeats = true, []result.Verdict{result.Fail, result.Pass}
	warning := bad
	warning.Level = result.Should
	for want, run := range map[string]result.Run{
		"No claim that must hold fails: 1 of 1 results pass":                          {Results: []result.Result{good}},
		"No claim that must hold fails: 1 of 2 results pass, with 1 warning":          {Results: []result.Result{good, warning}},
		"Not ready: 1 claim fails (1 of 2 results)":                                   {Exit: 1, Results: []result.Result{good, bad}},
		"Not ready: 1 gave different verdicts when repeated":                          {Exit: 1, Results: []result.Result{mixed}},
		"Not fully judged: 1 of 2 could not be judged; no claim that must hold fails": {Exit: 3, Results: []result.Result{good, open}},
		"No claim that must hold fails, but there was 1 problem (without a name)":     {Exit: 3, Results: []result.Result{good}, Problems: []result.Problem{{}}},
		"Nothing was judged: nothing was selected":                                    {Exit: 4},
		"Interrupted: 0 of 2 did not finish; 1 of 2 results fail":                     {Exit: 130, Results: []result.Result{good, bad}},
	} {
		text := htmlOf(t, &run)
		_, h1, _ := strings.Cut(text, "<h1>")
		h1, _, _ = strings.Cut(h1, "</h1>")
		assert.Equal(t, h1, want)
		assert.Assert(t, !strings.Contains(text, "script"))
	}
}

// Text can be told from its background by everybody (WCAG 2.1, 1.4.3), in
// both colour schemes.
func TestHTMLContrast(t *testing.T) {
	schemes := regexp.MustCompile(`(?s):root \{(.*?)\}`).FindAllStringSubmatch(pageCSS, -1)
	assert.Equal(t, len(schemes), 2)
	for _, s := range schemes {
		vars := map[string]string{}
		for _, m := range regexp.MustCompile(`--([a-z-]+): #([0-9a-f]+);`).FindAllStringSubmatch(s[1], -1) {
			vars[m[1]] = m[2]
		}
		for _, pair := range strings.Fields("fg/bg soft/bg soft/card fg/card link/bg link/card pass/pass-bg fail/fail-bg open/open-bg none/none-bg fail/bg fail/card fg/mark fg/open-bg") {
			a, b, _ := strings.Cut(pair, "/")
			assert.Assert(t, vars[a] != "" && vars[b] != "", pair)
			la, lb := luminance(t, vars[a]), luminance(t, vars[b])
			ratio := (math.Max(la, lb) + .05) / (math.Min(la, lb) + .05)
			assert.Assert(t, ratio >= 4.5, "%s: #%s on #%s is %.2f", pair, vars[a], vars[b], ratio)
		}
	}
}

func luminance(t *testing.T, hex string) float64 {
	t.Helper()
	if len(hex) == 3 {
		hex = string([]byte{hex[0], hex[0], hex[1], hex[1], hex[2], hex[2]})
	}
	sum := 0.0
	for i, weight := range []float64{.2126, .7152, .0722} {
		n, err := strconv.ParseUint(hex[2*i:2*i+2], 16, 8)
		assert.NilError(t, err)
		c := float64(n) / 255
		if c <= .03928 {
			c /= 12.92
		} else {
			c = math.Pow((c+.055)/1.055, 2.4)
		}
		sum += weight * c
	}
	return sum
}

func FuzzHTML(f *testing.F) {
	for _, s := range []string{"", hostile, "</style><script>", "<secret:", "<secret:a>", "A    +1 -> x", "\" onload=\"x"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r := result.Result{ID: s, Source: s, Claim: s, Spec: s, Reason: s, File: s, Verdict: result.Fail, Transcript: s, Facet: result.Facet{Endpoint: s, Family: s},
			Findings: []result.Finding{{Wanted: s, Found: s, Means: s, Evidence: []string{s}}}, Witness: []result.Witness{{Line: s, JoinedBy: s}}}
		run := &result.Run{Results: []result.Result{r}, Notices: []string{s}, Problems: []result.Problem{{Words: s, Remedy: &result.Remedy{Text: s, Changes: []result.Change{{File: s, Text: s}}}}},
			Diagnoses: []result.Diagnosis{{Code: s, Title: s, Source: s, Results: []string{r.Key()}}}, Excluded: []result.Excluded{{ID: s, Reason: s}}}
		checkPage(t, htmlOf(t, run))
	})
}
