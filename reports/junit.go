package reports

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/result"
)

// Limits of what a case carries, in octets.
const (
	maxJUnitMessage  = 500
	maxJUnitDialogue = 40 << 10
	maxJUnitWitness  = 20 << 10
)

// DuplicateError says that two results of a run have the same key, so that a
// reader would take one for a repeat of the other.
type DuplicateError struct{ Key string }

func (e *DuplicateError) Error() string {
	return fmt.Sprintf("two results are called %q: one result for each scenario, source and facet was expected", e.Key)
}

// WriteJUnit writes a run as JUnit XML that every common reader counts alike:
// one level of suites, one suite for each claim group, cases with unique names
// and at most one of failure, error and skipped each, and suite numbers that
// are those of the cases. Problems are error cases. A result whose repeats
// differ but that is no failure itself gets a failure in the suite
// "instability". A run without results and problems is one error case. Suites
// of results that a reference server gave are called reference. A failed should
// or may is a failure, though it does not change the exit status, and what could
// not be judged is an error: nobody looks at skipped tests.
//
// Two results of the same key are a [*DuplicateError], and nothing is written.
func WriteJUnit(w io.Writer, run *result.Run) error {
	suites, err := junitSuites(run)
	if err != nil {
		return err
	}
	x := &xmlWriter{w: bufio.NewWriterSize(w, 64<<10)}
	x.w.WriteString("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n")
	var all junitCounts
	for _, s := range suites {
		all.add(s.counts)
	}
	when := run.Started.UTC().Format(time.RFC3339)
	x.open(0, "testsuites", append([]attr{{"name", "mailproof"}}, all.attrs(when)...)...)
	for _, s := range suites {
		x.open(1, "testsuite", append([]attr{{"name", s.name}}, s.counts.attrs(when)...)...)
		x.properties(2, runProperties(run))
		for _, c := range s.cases {
			x.testcase(c())
		}
		notices := run.Notices
		if run.Answer != nil {
			notices = append([]string{sentence(run.Answer)}, notices...)
		}
		if len(notices) > 0 {
			x.element(2, "system-out", nil, strings.Join(notices, "\n"))
		}
		x.close(1, "testsuite")
	}
	x.close(0, "testsuites")
	return x.w.Flush()
}

// An outcome is the element that tells how a case ended. Passed has none.
type outcome string

const (
	passed  outcome = ""
	failed  outcome = "failure"
	broken  outcome = "error"
	skipped outcome = "skipped"
)

// A junitSuite is one claim group. Its cases are made when they are written.
type junitSuite struct {
	name   string
	counts junitCounts
	cases  []func() junitCase
}

type junitCounts struct {
	tests, failures, errors, skipped int
	seconds                          float64
}

func (c *junitCounts) count(o outcome, seconds float64) {
	c.tests++
	c.seconds += seconds
	switch o {
	case failed:
		c.failures++
	case broken:
		c.errors++
	case skipped:
		c.skipped++
	}
}

func (c *junitCounts) add(d junitCounts) {
	c.tests += d.tests
	c.failures += d.failures
	c.errors += d.errors
	c.skipped += d.skipped
	c.seconds += d.seconds
}

func (c *junitCounts) attrs(when string) []attr {
	return []attr{
		{"tests", strconv.Itoa(c.tests)}, {"failures", strconv.Itoa(c.failures)}, {"errors", strconv.Itoa(c.errors)},
		{"skipped", strconv.Itoa(c.skipped)}, {"time", seconds(c.seconds)}, {"timestamp", when},
	}
}

func seconds(s float64) string { return strconv.FormatFloat(s, 'f', 3, 64) }

// A junitCase is one testcase element.
type junitCase struct {
	class, name, file string
	line              int
	seconds           float64
	properties        []attr
	outcome           outcome
	kind              string // the outcome's type attribute
	message           string
	details           string   // what follows the message in the text
	flaky             []string // messages of repeats that failed before it passed
	out, err          string
}

// junitSuites sorts a run into suites, in the order of first appearance:
// problems first, instability last.
func junitSuites(run *result.Run) ([]*junitSuite, error) {
	var suites []*junitSuite
	index := map[string]*junitSuite{}
	suite := func(name string) *junitSuite {
		s := index[name]
		if s == nil {
			s = &junitSuite{name: name}
			index[name] = s
			suites = append(suites, s)
		}
		return s
	}
	names := map[string]bool{}
	take := func(s *junitSuite, name string, how outcome, seconds float64, c func() junitCase) error {
		if key := s.name + "\x00" + visible(name); names[key] {
			return &DuplicateError{Key: visible(name)}
		} else {
			names[key] = true
		}
		s.counts.count(how, seconds)
		s.cases = append(s.cases, c)
		return nil
	}

	for i := range run.Problems {
		p := &run.Problems[i]
		name := fmt.Sprintf("problem %d: %s", i+1, problemTitle(p))
		if err := take(suite("problems"), name, broken, 0, func() junitCase { return problemCase(name, p) }); err != nil {
			return nil, err
		}
	}
	d := digestOf(run)
	causes := map[string]*result.Diagnosis{}
	for _, c := range d.causes {
		for _, r := range c.results {
			causes[r.Key()] = c.Diagnosis
		}
	}
	for i := range run.Results {
		r := &run.Results[i]
		how, key := junitOutcome(r), r.Key()
		err := take(suite(suiteName(r)), key, how, max(0, r.Seconds), func() junitCase { return resultCase(run, r, how, causes[key]) })
		if err != nil {
			return nil, err
		}
	}
	for _, e := range run.Excluded {
		group, _, _ := strings.Cut(e.ID, ".")
		name := e.ID + " @ every source"
		c := junitCase{class: className(group), name: name, outcome: skipped, message: "excluded: " + e.Reason}
		if err := take(suite(group), name, skipped, 0, func() junitCase { return c }); err != nil {
			return nil, err
		}
	}
	for i := range run.Results {
		r := &run.Results[i]
		if how := junitOutcome(r); !r.Unstable || how == failed || how == broken {
			continue
		}
		if err := take(suite("instability"), r.Key(), failed, 0, func() junitCase { return unstableCase(r) }); err != nil {
			return nil, err
		}
	}
	if len(run.Results) == 0 && len(run.Problems) == 0 {
		c := junitCase{class: className("run"), name: "something was judged", outcome: broken, kind: "harness", message: d.exitWords()}
		if err := take(suite("run"), c.name, broken, 0, func() junitCase { return c }); err != nil {
			return nil, err
		}
	}
	return suites, nil
}

// suiteName is the claim group, and says where a reference server answered.
func suiteName(r *result.Result) string {
	if r.Origin == result.FromReference {
		return "reference." + r.Group()
	}
	return r.Group()
}

func className(suite string) string { return "mailproof." + suite }

// junitOutcome is how a verdict is told to a reader that knows only passed, failed,
// broken and skipped.
func junitOutcome(r *result.Result) outcome {
	switch r.Verdict {
	case result.Pass:
		return passed
	case result.Fail:
		return failed
	case result.Unsupported:
		return skipped
	}
	return broken
}

func runProperties(run *result.Run) []attr {
	ps := []attr{{"mailproof.version", run.Tool.Version}, {"target.kind", run.Target.Kind}, {"target.proxy", run.Target.Proxy},
		{"target.engine", run.Target.Engine}, {"plan.sha256", run.Plan.SHA256}, {"plan.max_risk", run.Plan.MaxRisk}, {"plan.shard", run.Plan.Shard}}
	for i := range run.Target.Sources {
		s := &run.Target.Sources[i]
		ps = append(ps, attr{"source." + s.Name, sourceWords(s)})
	}
	return ps
}

// resultCase is the case of one result.
func resultCase(run *result.Run, r *result.Result, how outcome, dx *result.Diagnosis) junitCase {
	c := junitCase{class: className(suiteName(r)), name: r.Key(), file: r.File, line: max(1, r.Line), seconds: max(0, r.Seconds), outcome: how}
	repeats := make([]string, len(r.Repeats))
	for i, v := range r.Repeats {
		repeats[i] = string(v)
	}
	version := ""
	for i := range run.Target.Sources {
		if run.Target.Sources[i].Name == r.Source {
			version = run.Target.Sources[i].Version
		}
	}
	c.properties = []attr{{"spec", r.Spec}, {"requirements", strings.Join(r.Requirements, " ")}, {"level", string(r.Level)}, {"risk", r.Risk},
		{"origin", string(r.Origin)}, {"target.version", version}, {"plan.sha256", run.Plan.SHA256}, {"repeat", strings.Join(repeats, " ")}}
	switch {
	case r.Verdict == result.Fail:
		c.kind = "mismatch"
		if len(r.Findings) > 0 && r.Findings[0].Code != "" {
			c.kind = r.Findings[0].Code
		}
		c.message = failMessage(r, dx)
	case r.Verdict == result.Unsupported:
		c.message = "unsupported: " + r.Reason
	case r.Verdict == result.Inconclusive:
		c.kind, c.message = "inconclusive", "inconclusive: "+r.Reason
	case how == broken:
		c.kind, c.message = "harness", "error: "+r.Reason
	case r.Unstable:
		for i, v := range r.Repeats {
			if v != result.Pass {
				c.flaky = append(c.flaky, fmt.Sprintf("repeat %d of %d: %s", i+1, len(r.Repeats), v))
			}
		}
	}
	if how != passed {
		c.details = caseDetails(r, dx)
	}
	out := &strings.Builder{}
	for _, p := range r.Phases {
		fmt.Fprintf(out, "%s (line %d): %s s\n", p.Title, p.Line, seconds(p.Seconds))
	}
	if len(repeats) > 0 {
		fmt.Fprintf(out, "repeats: %s\n", strings.Join(repeats, ", "))
	}
	c.out = out.String()
	witness := &strings.Builder{}
	for _, w := range r.Witness {
		if witness.Len() < maxJUnitWitness {
			fmt.Fprintf(witness, "%s, joined by %s:\n%s", w.Kind, visible(w.JoinedBy), indented(clip(w.Line, maxJUnitWitness)))
		}
	}
	c.err = witness.String()
	return c
}

// failMessage is one line: what was wanted and found, and the cause.
func failMessage(r *result.Result, dx *result.Diagnosis) string {
	m := "failed without a finding"
	if len(r.Findings) > 0 {
		m = fmt.Sprintf("wanted %s, found %s", clip(r.Findings[0].Wanted, 200), clip(r.Findings[0].Found, 200))
	}
	if !binding(r) {
		m = string(r.Level) + ": " + m
	}
	if dx != nil {
		m = dx.Code + ", " + clip(dx.Title, 100) + ": " + m
	}
	return m
}

// indented is text of several lines with two spaces before each, so that
// nothing in it can be taken for a line of ours.
func indented(text string) string {
	return "  " + strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "\n  ") + "\n"
}

// caseDetails is what a reader needs to act.
func caseDetails(r *result.Result, dx *result.Diagnosis) string {
	b := &strings.Builder{}
	line := func(title, text string) {
		if text != "" {
			fmt.Fprintf(b, "%-9s %s\n", title, clip(visible(text), 4000))
		}
	}
	line("claim", r.Claim)
	line("spec", r.Spec)
	line("rows", strings.Join(r.Requirements, " "))
	line("level", string(r.Level)+", risk "+r.Risk)
	for i := range r.Findings {
		f := &r.Findings[i]
		b.WriteByte('\n')
		line("wanted", f.Wanted)
		line("found", f.Found)
		line("means", f.Means)
		if dx == nil {
			line("change", f.Remedy)
		}
		line("at", place(f.At.File, f.At.Line))
		for _, e := range f.Evidence {
			line("evidence", e)
		}
	}
	if dx != nil {
		b.WriteByte('\n')
		line("cause", dx.Code+": "+dx.Title)
		for _, l := range remedyLines(&dx.Remedy) {
			b.WriteString(l + "\n")
		}
	}
	if lines := tail(r.Transcript, 400, maxJUnitDialogue, func(l string) string { return clip(l, 1000) }); len(lines) > 0 {
		b.WriteString("\ndialogue\n" + strings.Join(lines, "\n") + "\n")
	}
	return b.String()
}

// remedyLines is a remedy as plain lines, fit to be copied.
func remedyLines(r *result.Remedy) []string {
	var lines []string
	if r.Text != "" {
		lines = append(lines, "change    "+r.Text)
	}
	for i := range r.Changes {
		c := &r.Changes[i]
		lines = append(lines, "  in "+changeWhere(c)+changeNow(c)+":")
		for l := range strings.SplitSeq(c.Text, "\n") {
			lines = append(lines, "    "+l)
		}
	}
	for _, a := range r.Apply {
		lines = append(lines, "  then run: "+a)
	}
	return lines
}

// problemTitle is a problem in a few words.
func problemTitle(p *result.Problem) string {
	var parts []string
	for _, s := range []string{p.Stage, p.Source, p.Where} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	if parts == nil {
		return "without a name"
	}
	return strings.Join(parts, ", ")
}

func problemCase(name string, p *result.Problem) junitCase {
	details := indented(clip(p.Words, maxJUnitDialogue))
	if p.Remedy != nil {
		details += "\n" + strings.Join(remedyLines(p.Remedy), "\n")
	}
	return junitCase{class: className("problems"), name: name, outcome: broken, kind: "unreachable",
		message: problemTitle(p) + ": " + firstLine(p.Words), details: details}
}

func unstableCase(r *result.Result) junitCase {
	counts := map[result.Verdict]int{}
	for _, v := range r.Repeats {
		counts[v]++
	}
	var parts []string
	for _, v := range result.Verdicts() {
		if counts[v] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[v], v))
		}
	}
	m := fmt.Sprintf("%d repeats gave different verdicts: %s", len(r.Repeats), strings.Join(parts, ", "))
	return junitCase{class: className("instability"), name: r.Key(), file: r.File, line: max(1, r.Line), outcome: failed, kind: "unstable",
		message: m, details: "claim     " + visible(r.Claim)}
}

// ---- XML

type attr struct{ name, value string }

// An xmlWriter writes elements whose names are constants of this file. Every
// attribute and text goes through visible and is escaped.
type xmlWriter struct{ w *bufio.Writer }

func (x *xmlWriter) start(depth int, name string, attrs []attr) {
	for range depth {
		x.w.WriteString("  ")
	}
	x.w.WriteByte('<')
	x.w.WriteString(name)
	for _, a := range attrs {
		x.w.WriteByte(' ')
		x.w.WriteString(a.name)
		x.w.WriteString(`="`)
		escape(x.w, visible(a.value))
		x.w.WriteByte('"')
	}
}

func (x *xmlWriter) open(depth int, name string, attrs ...attr) {
	x.start(depth, name, attrs)
	x.w.WriteString(">\n")
}

func (x *xmlWriter) close(depth int, name string) {
	for range depth {
		x.w.WriteString("  ")
	}
	x.w.WriteString("</" + name + ">\n")
}

// element writes an element with text, and nothing of it but its attributes
// when there is no text.
func (x *xmlWriter) element(depth int, name string, attrs []attr, text string) {
	x.start(depth, name, attrs)
	if text == "" {
		x.w.WriteString("/>\n")
		return
	}
	x.w.WriteByte('>')
	escape(x.w, visibleText(text))
	x.w.WriteString("</" + name + ">\n")
}

func (x *xmlWriter) properties(depth int, ps []attr) {
	started := false
	for _, p := range ps {
		if p.value == "" {
			continue
		}
		if !started {
			x.open(depth, "properties")
			started = true
		}
		x.element(depth+1, "property", []attr{{"name", p.name}, {"value", clip(p.value, maxJUnitMessage)}}, "")
	}
	if started {
		x.close(depth, "properties")
	}
}

func (x *xmlWriter) testcase(c junitCase) {
	attrs := []attr{{"classname", c.class}, {"name", c.name}}
	if c.file != "" {
		attrs = append(attrs, attr{"file", c.file}, attr{"line", strconv.Itoa(c.line)})
	}
	x.open(2, "testcase", append(attrs, attr{"time", seconds(c.seconds)})...)
	x.properties(3, c.properties)
	if c.outcome != passed {
		message := visible(c.message)
		attrs := []attr{{"message", clip(message, maxJUnitMessage)}}
		if c.kind != "" && c.outcome != skipped {
			attrs = append(attrs, attr{"type", c.kind})
		}
		// The message is repeated, because some readers show nothing but the text.
		text := clip(message, 8*maxJUnitMessage)
		if c.details != "" {
			text += "\n\n" + c.details
		}
		x.element(3, string(c.outcome), attrs, text)
	}
	for _, f := range c.flaky {
		x.open(3, "flakyFailure", attr{"message", f}, attr{"type", "unstable"})
		x.element(4, "stackTrace", nil, f)
		x.close(3, "flakyFailure")
	}
	if c.out != "" {
		x.element(3, "system-out", nil, c.out)
	}
	if c.err != "" {
		x.element(3, "system-err", nil, c.err)
	}
	x.close(2, "testcase")
}

// escape writes visible text as XML character data, fit for attributes too.
func escape(w *bufio.Writer, s string) {
	last := 0
	for i := 0; i < len(s); i++ {
		var e string
		switch s[i] {
		case '&':
			e = "&amp;"
		case '<':
			e = "&lt;"
		case '>':
			e = "&gt;"
		case '"':
			e = "&quot;"
		default:
			continue
		}
		w.WriteString(s[last:i])
		w.WriteString(e)
		last = i + 1
	}
	w.WriteString(s[last:])
}
