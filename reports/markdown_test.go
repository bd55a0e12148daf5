package reports

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/mailproof/mailproof/harness/result"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/golden"
)

func markdownOf(t *testing.T, run *result.Run) string {
	t.Helper()
	var b bytes.Buffer
	assert.NilError(t, WriteMarkdown(&b, run))
	return b.String()
}

func TestMarkdownGolden(t *testing.T) {
	golden.Assert(t, markdownOf(t, sampleRun()), "sample.md")
}

func TestMarkdownOfAGoodRunIsThreeLines(t *testing.T) {
	run := &result.Run{Seconds: 1.23, Target: result.Target{Kind: "reference", Sources: []result.Source{{Name: trixie, Origin: result.FromReference}}},
		Results: []result.Result{passing(claims[0], trixie, facet("imap", "ip4", "as-proxy"), 1)}}
	assert.Equal(t, markdownOf(t, run), `## mailproof: No claim that must hold fails: 1 of 1 results pass

Reference lab (practice, not evidence): dovecot-postfix\@trixie. 1 result in 1.2 s: 1 pass. Exit status 0: everything selected was judged, and nothing failed.
`)
}

func TestMarkdownEscapes(t *testing.T) {
	assert.Equal(t, mdText("a_b* <x> `c` [l](u) @team \\ &amp; #1"), "a\\_b\\* \\<x\\> \\`c\\` \\[l\\](u) \\@team \\\\ \\&amp; \\#1")
	assert.Equal(t, mdCode("plain"), "`plain`")
	assert.Equal(t, mdCode("a `` b"), "```a `` b```")
	assert.Equal(t, mdCode("`a"), "`` `a ``")
	assert.Equal(t, mdCode(""), "`  `")
	assert.Equal(t, mdCode("a\nb"), "`a\\nb`")
}

// No line of the summary is begun, and no block or row ended, by what a server
// sent: its words stand in code spans and blocks, on the lines they belong to.
func TestMarkdownTablesAndBlocksHold(t *testing.T) {
	for seed := range uint64(60) {
		run := randomRun(seed, 60)
		run.Diagnoses = []result.Diagnosis{{Code: "DX-14", Title: hostile, Means: hostile, Remedy: result.Remedy{Text: hostile, Changes: []result.Change{{File: hostile, Text: "```\n````\n| x"}}}}}
		fence, columns := "", 0
		for line := range strings.Lines(markdownOf(t, run)) {
			line = strings.TrimSuffix(line, "\n")
			trimmed := strings.TrimLeft(line, " ")
			switch {
			case fence != "":
				if trimmed == fence {
					fence = ""
				}
			case strings.HasPrefix(trimmed, "```") && strings.Trim(trimmed, "`") == "":
				fence = trimmed
			case strings.HasPrefix(line, "|"):
				n := strings.Count(strings.ReplaceAll(line, `\|`, ""), "|")
				if columns == 0 {
					columns = n
				}
				assert.Equal(t, n, columns, line)
				continue
			}
			columns = 0
		}
		assert.Equal(t, fence, "", "a block is open at the end")
	}
}

func TestMarkdownIsBounded(t *testing.T) {
	long := strings.Repeat("long | `` <b> ", 5000)
	run := &result.Run{Exit: 1, Notices: []string{long}}
	for i := range 300 {
		r := failing(passing(claims[0], long, facet("imap", "ip4", "as-proxy"), i), claims[0], result.Finding{Wanted: long, Found: long})
		r.ID = fmt.Sprintf("a.%d", i)
		run.Results = append(run.Results, r)
		r.ID, r.Verdict, r.Reason = fmt.Sprintf("b.%d", i), result.Inconclusive, fmt.Sprint(i, long)
		run.Results = append(run.Results, r)
		change := result.Change{File: long, Text: long, Setting: long, Found: long}
		run.Diagnoses = append(run.Diagnoses, result.Diagnosis{Code: fmt.Sprintf("DX-%d", i), Title: long, Means: long, Source: long,
			Remedy: result.Remedy{Text: long, Changes: make([]result.Change, 0, 30), Apply: []string{long}}})
		for range 30 {
			run.Diagnoses[i].Remedy.Changes = append(run.Diagnoses[i].Remedy.Changes, change)
		}
	}
	text := markdownOf(t, run)
	assert.Assert(t, len(text) < 1<<20, "%d octets", len(text))
}
