package reports

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/mailproof/mailproof/harness/result"
	"golang.org/x/term"
)

// ConsoleOptions say what the console can show.
type ConsoleOptions struct {
	Terminal bool       // the last line may be rewritten: progress is one line that changes
	Colour   bool       // ANSI colours may be used
	Width    func() int // columns of the terminal; nil stands for 100
	Verbose  bool       // one line for each result, and what a cause was told from
}

// ConsoleOptionsFor asks a file what it can show: nothing but lines unless it
// is a terminal that TERM does not call dumb, and no colours with NO_COLOR.
func ConsoleOptionsFor(f *os.File, verbose bool) ConsoleOptions {
	o := ConsoleOptions{Verbose: verbose}
	fd := int(f.Fd())
	if !term.IsTerminal(fd) || os.Getenv("TERM") == "dumb" {
		return o
	}
	o.Terminal = true
	o.Colour = os.Getenv("NO_COLOR") == ""
	o.Width = func() int {
		if w, _, err := term.GetSize(fd); err == nil {
			return w
		}
		return 0
	}
	return o
}

// A Console tells a person how a run goes and what it found. Its methods may
// be called by several goroutines. An error of the writer is kept, and
// returned by End.
type Console struct {
	w io.Writer
	o ConsoleOptions

	mu       sync.Mutex
	err      error
	total    int
	done     int
	failed   int
	unjudged int
	drawn    bool // a progress line stands on the terminal
}

// NewConsole makes a console that writes to w, usually standard error.
func NewConsole(w io.Writer, o ConsoleOptions) *Console { return &Console{w: w, o: o} }

// Limits of the final report. What goes beyond is counted and left to the
// other reports.
const (
	maxShownFull   = 20 // failed results in full
	maxShownShort  = 80 // failed results as one line
	maxShownGroups = 15 // reasons of what could not be judged
	maxShownIDs    = 6  // scenarios in a list
	maxShownLines  = 8  // of a dialogue
)

// Begin says how many results are to come. It may be called again for the next
// part of a run.
func (c *Console) Begin(total int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total += total
	if !c.o.Terminal {
		c.line(counted(total, "result is planned", "results are planned"))
	}
}

// Progress tells what happens before and between results, such as a container
// that starts.
func (c *Console) Progress(sentence string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.o.Terminal {
		c.status(visible(sentence))
		return
	}
	c.line(visible(clip(sentence, 2000)))
}

// Problem tells at once what the final report will tell in full.
func (c *Console) Problem(p result.Problem) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clear()
	c.line(c.paint(red, "problem") + ": " + c.cut(visible(problemTitle(&p)+": "+firstLine(p.Words)), 9))
}

// Result tells that a result is there: on a terminal by the progress line,
// elsewhere by a line for every fifth part of the run, with Verbose by a line
// of its own.
func (c *Console) Result(r result.Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.done++
	switch r.Verdict {
	case result.Fail:
		c.failed++
	case result.Inconclusive, result.Error:
		c.unjudged++
	}
	if c.o.Verbose {
		c.clear()
		c.line(c.verdict(r.Verdict) + "  " + c.cut(visible(r.Key()+c.brief(&r)), 14))
	}
	switch every := max(25, (c.total+4)/5); {
	case c.o.Terminal:
		c.status(c.standing() + "  " + visible(r.Key()))
	case c.done == c.total || c.done%every == 0:
		c.line(c.standing())
	}
}

// standing is how far a run is.
func (c *Console) standing() string {
	s := fmt.Sprintf("%d judged", c.done)
	if c.total > 0 {
		s = fmt.Sprintf("%d of %d judged", c.done, c.total)
	}
	if c.failed > 0 {
		s += fmt.Sprintf(", %d failed", c.failed)
	}
	if c.unjudged > 0 {
		s += fmt.Sprintf(", %d open", c.unjudged)
	}
	return s
}

// brief is why a result is what it is, in half a line.
func (c *Console) brief(r *result.Result) string {
	switch {
	case r.Verdict == result.Fail && len(r.Findings) > 0:
		return ": wanted " + r.Findings[0].Wanted + ", found " + r.Findings[0].Found
	case r.Reason != "":
		return ": " + r.Reason
	}
	return fmt.Sprintf(" (%s s)", seconds(r.Seconds))
}

// End writes the final report: notices, problems, causes with their remedies,
// failures that no cause explains, warnings, what could not be judged, and one
// line that sums up. It returns the first error of the writer.
func (c *Console) End(run *result.Run) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clear()
	d := digestOf(run)
	for _, n := range run.Notices {
		c.title(yellow, "NOTE", n)
	}
	for i := range run.Problems {
		c.problem(&run.Problems[i])
	}
	for i := range d.causes {
		c.cause(d, i)
	}
	c.findings(d, d.failed, "FAIL", red)
	c.mixed(d)
	c.findings(d, d.warned, "WARNING", yellow)
	c.open(d)
	c.summary(d)
	return c.err
}

func (c *Console) problem(p *result.Problem) {
	c.title(red, "PROBLEM", problemTitle(p))
	c.verbatim("said", p.Words)
	if p.Remedy != nil {
		c.remedy(p.Remedy)
	}
}

func (c *Console) cause(d *digest, i int) {
	dx := &d.causes[i]
	word, colour := "CAUSE", red
	if dx.Level == result.Should || dx.Level == result.May {
		word, colour = "WARNING", yellow
	}
	if n := len(d.causes); n > 1 {
		word += fmt.Sprintf(" %d of %d", i+1, n)
	}
	title := dx.Code
	if dx.Source != "" {
		title += ", " + dx.Source
	}
	c.title(colour, word, title+": "+dx.Title)
	c.field("means", dx.Means)
	if len(dx.results) > 0 {
		c.field("explains", fmt.Sprintf("%s: %s", counted(len(dx.results), "result", "results"), named(dx.results, maxShownIDs)))
	}
	c.fields("seen", dx.DiscriminatedBy)
	if c.o.Verbose {
		c.fields("told from", dx.Alternatives)
	}
	c.remedy(&dx.Remedy)
}

func (c *Console) remedy(r *result.Remedy) {
	c.field("change", r.Text)
	for i := range r.Changes {
		ch := &r.Changes[i]
		c.field("in", changeWhere(ch)+changeNow(ch))
		for l := range strings.SplitSeq(ch.Text, "\n") { // to be copied: never wrapped
			c.line(strings.Repeat(" ", 6+labelWidth) + c.paint(bold, clip(visible(l), 2000)))
		}
		c.field("because", ch.Because)
	}
	for i, a := range r.Apply {
		label := "run"
		if i > 0 {
			label = "then"
		}
		c.line(c.label(label) + c.paint(bold, clip(visible(a), 2000)))
	}
}

// findings shows failed results: the first in full, then as one line each.
func (c *Console) findings(d *digest, rs []*result.Result, word string, colour string) {
	for i, r := range rs {
		switch {
		case i < maxShownFull:
			c.finding(d, r, word, colour)
		case i < maxShownFull+maxShownShort:
			if i == maxShownFull {
				c.line("")
			}
			c.line(c.paint(colour, word) + "  " + c.cut(visible(r.Key()+c.brief(r)), len(word)+2))
		default:
			c.line(fmt.Sprintf("… and %d more: --json or --html has them all", len(rs)-i))
			return
		}
	}
}

func (c *Console) finding(d *digest, r *result.Result, word, colour string) {
	c.title(colour, word, r.Key())
	what := []string{string(r.Level)}
	if len(r.Requirements) > 0 {
		what = append(what, strings.Join(r.Requirements, " "))
	}
	if r.Spec != "" {
		what = append(what, r.Spec)
	}
	c.field("claim", fmt.Sprintf("%s (%s)", r.Claim, strings.Join(what, "; ")))
	if r.Unstable {
		c.field("unstable", repeatWords(r))
	}
	for i := range r.Findings {
		f := &r.Findings[i]
		c.verbatim("wanted", f.Wanted)
		c.verbatim("found", f.Found)
		if i == 0 || f.Means != r.Findings[i-1].Means {
			c.field("means", f.Means)
		}
		if i == 0 || f.Remedy != r.Findings[i-1].Remedy {
			c.field("change", f.Remedy)
		}
		c.field("at", place(f.At.File, f.At.Line))
		for j, e := range f.Evidence {
			if j == maxShownLines {
				c.field("", fmt.Sprintf("… and %d more", len(f.Evidence)-j))
				break
			}
			c.verbatim("evidence", e)
		}
	}
	if n := d.follows[r.Key()]; n > 0 {
		c.field("explains", counted(n, "more result that failed because of this one", "more results that failed because of this one"))
	}
	if word == "FAIL" {
		for i, l := range tail(r.Transcript, maxShownLines, 8<<10, func(l string) string { return c.cut(l, 2+labelWidth) }) {
			label := ""
			if i == 0 {
				label = "dialogue"
			}
			c.line(c.label(label) + l)
		}
	}
}

// repeatWords counts the verdicts of repeats.
func repeatWords(r *result.Result) string {
	var parts []string
	for _, v := range result.Verdicts() {
		n := 0
		for _, w := range r.Repeats {
			if w == v {
				n++
			}
		}
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, v))
		}
	}
	return fmt.Sprintf("%s in %d repeats", strings.Join(parts, ", "), len(r.Repeats))
}

// mixed shows what gave different verdicts without being shown as failed.
func (c *Console) mixed(d *digest) {
	if len(d.unstable) == 0 {
		return
	}
	c.title(red, "UNSTABLE", counted(len(d.unstable), "result changed between repeats", "results changed between repeats"))
	for i, r := range d.unstable {
		if i == maxShownFull {
			c.line(fmt.Sprintf("  … and %d more", len(d.unstable)-i))
			break
		}
		c.line("  " + c.cut(visible(r.Key()+": "+repeatWords(r)), 2))
	}
}

// open shows what could not be judged, what is unsupported and what was left
// out.
func (c *Console) open(d *digest) {
	if n := d.unjudgedCount(); n > 0 {
		c.title(yellow, "NOT JUDGED", fmt.Sprintf("%d of %d", n, d.counts.Total()))
		for i, g := range d.unjudged {
			if i == maxShownGroups {
				c.line(fmt.Sprintf("  … and %d more reasons", len(d.unjudged)-i))
				break
			}
			c.prose("  ", fmt.Sprintf("%d %s: %s", len(g.results), g.verdict, clip(visible(g.reason), 1000)))
			c.prose("      ", namedBySource(g.results, maxShownIDs))
		}
	}
	if n := d.counts.Unsupported; n > 0 {
		c.title("", "UNSUPPORTED", counted(n, "result", "results")+": "+firstReasons(d.lacking, 3))
	}
	if n := len(d.run.Excluded); n > 0 {
		c.title("", "LEFT OUT", counted(n, "scenario", "scenarios"))
		for i, e := range d.run.Excluded {
			if i == maxShownFull {
				c.line(fmt.Sprintf("  … and %d more", n-i))
				break
			}
			c.prose("  ", clip(visible(e.ID+": "+e.Reason), 500))
		}
	}
}

// firstReasons lists the reasons of the first groups.
func firstReasons(groups []group, limit int) string {
	var parts []string
	for i, g := range groups {
		if i == limit {
			parts = append(parts, "…")
			break
		}
		parts = append(parts, clip(visible(g.reason), 200))
	}
	return strings.Join(parts, "; ")
}

func (c *Console) summary(d *digest) {
	run := d.run
	c.line("")
	width := 0
	for i := range run.Target.Sources {
		width = max(width, utf8.RuneCountInString(visible(run.Target.Sources[i].Name)))
	}
	for i := range run.Target.Sources {
		s := &run.Target.Sources[i]
		var of []result.Result
		for j := range run.Results {
			if run.Results[j].Source == s.Name {
				of = append(of, run.Results[j])
			}
		}
		name := visible(s.Name)
		name += strings.Repeat(" ", width-utf8.RuneCountInString(name))
		for _, l := range wrap(visible(countWords(result.Count(of))+" ("+sourceWords(s)+")"), max(30, c.width()-width-2)) {
			c.line(name + "  " + l)
			name = strings.Repeat(" ", width)
		}
	}
	if first := d.begin(); first != "" {
		c.prose("", "Begin with "+first)
	}
	shard := ""
	if run.Plan.Shard != "" {
		shard = " of shard " + run.Plan.Shard
	}
	colour := green
	if run.Exit == result.ExitUnjudged || run.Exit == result.ExitEmpty {
		colour = yellow
	} else if run.Exit != result.ExitOK {
		colour = red
	}
	c.line(c.paint(colour, visible(fmt.Sprintf("%s%s in %.1f s: %s. Exit status %d: %s.", counted(d.counts.Total(), "result", "results"), shard,
		run.Seconds, countWords(d.counts), run.Exit, d.exitWords()))))
	c.answer(run.Answer)
}

// answer is the sentence that a run at a site ends with.
func (c *Console) answer(a *result.Answer) {
	if a == nil {
		return
	}
	c.line("")
	c.prose("", sentence(a))
}

// sentence is an answer as a sentence of its own.
func sentence(a *result.Answer) string {
	s := visible(a.Sentence)
	if s != "" {
		s = strings.ToUpper(s[:1]) + s[1:]
	}
	return s + "."
}

// begin is what to do first, in one sentence.
func (d *digest) begin() string {
	remedy := func(r *result.Remedy) string {
		if len(r.Changes) == 0 {
			return r.Text
		}
		return changeWhere(&r.Changes[0])
	}
	for i := range d.run.Problems {
		if p := &d.run.Problems[i]; p.Remedy != nil {
			return strings.TrimSuffix("the problem of "+p.Source, " of ") + ": " + remedy(p.Remedy)
		}
	}
	if len(d.causes) > 0 {
		return d.causes[0].Code + ": " + remedy(&d.causes[0].Remedy)
	}
	if len(d.failed) > 0 {
		return d.failed[0].Key()
	}
	return ""
}

// ---- lines

const (
	red    = "\x1b[1;31m"
	green  = "\x1b[1;32m"
	yellow = "\x1b[1;33m"
	bold   = "\x1b[1m"
	reset  = "\x1b[0m"
)

// labelWidth is the width of the column of labels.
const labelWidth = 11

func (c *Console) paint(colour, s string) string {
	if !c.o.Colour || colour == "" || s == "" {
		return s
	}
	return colour + s + reset
}

func (c *Console) verdict(v result.Verdict) string {
	colour := map[result.Verdict]string{result.Pass: green, result.Fail: red, result.Error: yellow, result.Inconclusive: yellow}[v]
	return c.paint(colour, fmt.Sprintf("%-12s", v))
}

// columns is how many there are.
func (c *Console) columns() int {
	if c.o.Width != nil {
		if n := c.o.Width(); n > 0 {
			return n
		}
	}
	return 100
}

// width is how many columns prose takes.
func (c *Console) width() int { return max(40, min(c.columns(), 110)) }

// cut cuts a visible line that begins after so many columns: to the terminal's
// width, or to 240 characters where there is no terminal.
func (c *Console) cut(s string, used int) string {
	limit := 240
	if c.o.Terminal {
		limit = max(c.columns()-used, 20)
	}
	if utf8.RuneCountInString(s) <= limit {
		return s
	}
	more := utf8.RuneCountInString(s) - limit
	return string([]rune(s)[:limit-8]) + fmt.Sprintf("… +%d", more+8)
}

// line writes one line. Whoever calls it has made the text visible.
func (c *Console) line(s string) {
	if c.err == nil {
		_, c.err = io.WriteString(c.w, strings.TrimRight(s, " ")+"\n")
	}
}

// title begins an item, after an empty line.
func (c *Console) title(colour, word, text string) {
	c.line("")
	if text == "" {
		c.line(c.paint(colour, word))
		return
	}
	lines := wrap(clip(visible(text), 1000), c.width()-len(word)-2)
	c.line(c.paint(colour, word) + "  " + c.paint(bold, lines[0]))
	for _, l := range lines[1:] {
		c.line(strings.Repeat(" ", len(word)+2) + c.paint(bold, l))
	}
}

func (c *Console) label(name string) string { return fmt.Sprintf("  %-*s", labelWidth, name) }

// field writes a labelled sentence, wrapped.
func (c *Console) field(name, text string) {
	if text == "" {
		return
	}
	for i, l := range wrap(clip(visible(text), 4000), c.width()-2-labelWidth) {
		if i > 0 {
			name = ""
		}
		c.line(c.label(name) + l)
	}
}

func (c *Console) fields(name string, texts []string) {
	for i, t := range texts {
		if i > 0 {
			name = ""
		}
		c.field(name, t)
	}
}

// verbatim writes a server's own words, line by line: folded on a terminal,
// and cut where they are longer than anybody reads.
func (c *Console) verbatim(name, text string) {
	for i, l := range strings.Split(strings.TrimRight(text, "\n"), "\n") {
		if i == maxShownLines {
			c.line(c.label("") + "…")
			break
		}
		l = clip(visible(l), 500)
		if !c.o.Terminal {
			c.line(c.label(name) + l)
			name = ""
			continue
		}
		for _, part := range fold(l, max(20, c.columns()-2-labelWidth)) {
			c.line(c.label(name) + part)
			name = ""
		}
	}
}

// prose writes a paragraph with an indent.
func (c *Console) prose(indent, text string) {
	for _, l := range wrap(visible(text), c.width()-len(indent)) {
		c.line(indent + l)
	}
}

// status draws the progress line anew.
func (c *Console) status(s string) {
	limit := max(c.columns()-1, 1)
	if utf8.RuneCountInString(s) > limit {
		s = string([]rune(s)[:limit-1]) + "…"
	}
	if c.err == nil {
		_, c.err = io.WriteString(c.w, "\r"+s+"\x1b[K")
	}
	c.drawn = true
}

// clear removes the progress line.
func (c *Console) clear() {
	if c.drawn && c.err == nil {
		_, c.err = io.WriteString(c.w, "\r\x1b[K")
	}
	c.drawn = false
}
