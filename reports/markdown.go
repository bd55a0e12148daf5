package reports

import (
	"bufio"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/result"
)

// Limits of the summary. GitHub takes at most 1 MiB of it, and a person less.
const (
	maxMarkdownCauses = 20
	maxMarkdownRows   = 50
	maxMarkdownCell   = 200
	maxMarkdownBlock  = 1500
)

// WriteMarkdown writes the short of a run in GitHub's Markdown, fit for a job
// summary: the answer, the causes with what to change, and what failed or
// could not be judged. It stays well below 1 MiB whatever the run holds.
func WriteMarkdown(w io.Writer, run *result.Run) error {
	d := digestOf(run)
	m := &markdown{w: bufio.NewWriter(w)}
	m.put("## mailproof: %s\n\n", mdText(d.headline()))
	m.put("%s. %s in %.1f s: %s. Exit status %d: %s.\n", mdText(clip(targetWords(run), 500)),
		counted(d.counts.Total(), "result", "results"), run.Seconds, d.countWords(), run.Exit, mdText(d.exitWords()))
	if run.Answer != nil {
		m.put("\n**%s**\n", mdText(clip(sentence(run.Answer), 2000)))
	}
	for i, n := range run.Notices {
		if i == maxMarkdownRows {
			break
		}
		m.put("\n> **Note:** %s\n", mdText(clip(n, 1000)))
	}
	m.todo(d)
	m.failed(d)
	m.open(d)
	return m.w.Flush()
}

type markdown struct{ w *bufio.Writer }

func (m *markdown) put(format string, args ...any) { fmt.Fprintf(m.w, format, args...) }

func (m *markdown) todo(d *digest) {
	if len(d.run.Problems)+len(d.causes) == 0 {
		return
	}
	m.put("\n### What to change\n")
	n := 0
	more := func(left int) bool {
		if n < maxMarkdownCauses {
			n++
			return false
		}
		m.put("\n… and %d more.\n", left)
		return true
	}
	for i := range d.run.Problems {
		if more(len(d.run.Problems) - i + len(d.causes)) {
			return
		}
		p := &d.run.Problems[i]
		m.put("\n%d. **Problem:** %s\n", n, mdText(clip(problemTitle(p), maxMarkdownCell)))
		m.block(p.Words)
		if p.Remedy != nil {
			m.remedy(p.Remedy)
		}
	}
	for i := range d.causes {
		if more(len(d.causes) - i) {
			return
		}
		c := &d.causes[i]
		about := []string{}
		if c.Source != "" {
			about = append(about, mdCode(clip(c.Source, maxMarkdownCell)))
		}
		if c.Level != "" {
			about = append(about, mdText(string(c.Level)))
		}
		m.put("\n%d. **%s: %s** (%s)\n\n   %s\n", n, mdText(clip(c.Code, 40)), mdText(clip(c.Title, maxMarkdownCell)), strings.Join(about, ", "), mdText(clip(c.Means, 1000)))
		m.remedy(&c.Remedy)
		if len(c.results) > 0 {
			m.put("\n   Explains %s: %s.\n", counted(len(c.results), "result", "results"), mdText(clip(named(c.results, maxShownIDs), 600)))
		}
	}
}

func (m *markdown) remedy(r *result.Remedy) {
	if r.Text != "" {
		m.put("\n   **Change:** %s\n", mdText(clip(r.Text, 1000)))
	}
	for i := range r.Changes {
		if i == maxMarkdownCauses/2 {
			m.put("\n   … and %d more changes.\n", len(r.Changes)-i)
			break
		}
		c := &r.Changes[i]
		m.put("\n   In %s%s:\n", mdCode(clip(changeWhere(c), maxMarkdownCell)), mdText(clip(changeNow(c), maxMarkdownCell)))
		m.block(c.Text)
	}
	if len(r.Apply) > 0 {
		m.put("\n   Then run:\n")
		m.block(strings.Join(r.Apply, "\n"))
	}
}

// block writes a fenced block within a list item.
func (m *markdown) block(text string) {
	text = clip(visibleText(strings.TrimRight(text, "\n")), maxMarkdownBlock)
	fence := strings.Repeat("`", max(3, longestRun(text)+1))
	m.put("\n   %s\n   %s\n   %s\n", fence, strings.ReplaceAll(text, "\n", "\n   "), fence)
}

func (m *markdown) failed(d *digest) {
	rows := slices.Concat(d.failed, d.warned)
	if len(rows)+len(d.unstable) == 0 {
		return
	}
	title := "Failed"
	if len(d.causes) > 0 {
		title = "Failed for another reason"
	}
	m.put("\n### %s\n\n| result | level | wanted | found |\n| --- | --- | --- | --- |\n", title)
	for i, r := range rows {
		if i == maxMarkdownRows {
			m.put("\n… and %d more.\n", len(rows)-i)
			break
		}
		wanted, found := "", ""
		if len(r.Findings) > 0 {
			wanted, found = r.Findings[0].Wanted, r.Findings[0].Found
		}
		m.row(mdCode(clip(r.Key(), maxMarkdownCell)), mdText(string(r.Level)), cellCode(wanted), cellCode(found))
	}
	if len(d.unstable) == 0 {
		return
	}
	m.put("\n### Unstable\n\n| result | repeats |\n| --- | --- |\n")
	for i, r := range d.unstable {
		if i == maxMarkdownRows {
			m.put("\n… and %d more.\n", len(d.unstable)-i)
			break
		}
		m.row(mdCode(clip(r.Key(), maxMarkdownCell)), repeatWords(r))
	}
}

func (m *markdown) open(d *digest) {
	if d.unjudgedCount() > 0 {
		m.put("\n### Could not be judged\n\n| results | verdict | reason |\n| --- | --- | --- |\n")
		for i, g := range d.unjudged {
			if i == maxMarkdownRows {
				m.put("\n… and %d more reasons.\n", len(d.unjudged)-i)
				break
			}
			m.row(mdText(fmt.Sprintf("%d: %s", len(g.results), clip(namedBySource(g.results, maxShownIDs), 2*maxMarkdownCell))), string(g.verdict), mdText(clip(g.reason, 2*maxMarkdownCell)))
		}
	}
	if n := d.counts.Unsupported; n > 0 {
		m.put("\n%s unsupported: %s.\n", counted(n, "result", "results"), mdText(firstReasons(d.lacking, 3)))
	}
	if n := len(d.run.Excluded); n > 0 {
		m.put("\n%s left out by name.\n", counted(n, "scenario", "scenarios"))
	}
}

// row writes a table row; within it a bar would end a cell, even in code.
func (m *markdown) row(cells ...string) {
	for _, c := range cells {
		m.put("| %s ", strings.ReplaceAll(c, "|", `\|`))
	}
	m.put("|\n")
}

func cellCode(s string) string {
	if s == "" {
		return ""
	}
	return mdCode(clip(s, maxMarkdownCell))
}

// mdText escapes everything that means something in Markdown or HTML, except
// the bar, which only means something in a row.
func mdText(s string) string {
	var b strings.Builder
	for _, r := range visible(s) {
		switch r {
		case '\\', '`', '*', '_', '[', ']', '<', '>', '~', '&', '#', '!', '$', '@':
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// mdCode is a code span that holds exactly the visible text.
func mdCode(s string) string {
	s = visible(s)
	fence := strings.Repeat("`", longestRun(s)+1)
	if s == "" || strings.HasPrefix(s, "`") || strings.HasSuffix(s, "`") || strings.HasPrefix(s, " ") && strings.HasSuffix(s, " ") {
		s = " " + s + " "
	}
	return fence + s + fence
}

// longestRun is the length of the longest run of backticks.
func longestRun(s string) int {
	longest, run := 0, 0
	for i := range len(s) {
		if s[i] != '`' {
			run = 0
			continue
		}
		run++
		longest = max(longest, run)
	}
	return longest
}
