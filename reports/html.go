package reports

import (
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/mailproof/mailproof/harness/result"
)

//go:embed page.css
var pageCSS string

// Limits of the page.
const (
	maxPageDialogues = 1_200_000 // octets of dialogues on the page
	maxPageEvents    = 120       // events of one dialogue
	maxPageText      = 600       // characters of one event or line of evidence
	maxPageOpen      = 5         // results that are unfolded from the beginning
	maxPageList      = 40        // entries of a list in a card
)

// WriteHTML writes a run as one page that needs nothing else: no script, no
// image, no font, and a policy that forbids them. The answer stands first,
// then what to do, the matrix of claims, every result with its dialogue, what
// was not tested, and what was sent. It reads without its style sheet and
// without colours.
func WriteHTML(w io.Writer, run *result.Run) error {
	p := &page{markup: newMarkup(w), d: digestOf(run), run: run}
	p.scenarios()
	p.head()
	p.open("body")
	p.answer()
	p.line()
	p.open("main")
	p.todo()
	p.notJudged()
	p.matrix()
	p.results()
	p.notTested()
	p.sent()
	p.target()
	p.close("main")
	p.open("footer")
	p.el("p", "Written by mailproof "+p.version()+" from the run alone; the JSON report holds everything that is cut short here.")
	p.close("footer", "body", "html")
	p.line()
	return p.w.Flush()
}

// A page is one HTML report being written.
type page struct {
	markup
	run *result.Run
	d   *digest

	order     []*scenario
	dialogues int // octets of dialogues written so far
	unfolded  int
	causes    map[*result.Result]*result.Diagnosis
}

// A scenario is the results of one scenario.
type scenario struct {
	*result.Result // the first of them, for what they share
	number         int
	results        []int // indices into the run
	section        string
}

// The sections that a scenario can be shown in.
const (
	inFailed = "failed"
	inOpen   = "open"
	inPassed = "passed"
	nowhere  = ""
)

func (p *page) scenarios() {
	index := map[string]*scenario{}
	for i := range p.run.Results {
		r := &p.run.Results[i]
		s := index[r.ID]
		if s == nil {
			s = &scenario{Result: r, number: len(p.order) + 1}
			index[r.ID] = s
			p.order = append(p.order, s)
		}
		s.results = append(s.results, i)
		switch {
		case r.Verdict == result.Fail || r.Unstable:
			s.section = inFailed
		case s.section == inFailed, r.Verdict == result.Unsupported:
		case r.Verdict != result.Pass:
			s.section = inOpen
		case s.section == nowhere:
			s.section = inPassed
		}
	}
}

func (p *page) version() string {
	v := p.run.Tool.Version
	if p.run.Tool.Commit != "" {
		v += " (" + p.run.Tool.Commit + ")"
	}
	return v
}

func (p *page) head() {
	p.w.WriteString("<!DOCTYPE html>\n")
	p.open("html", "lang", "en")
	p.open("head")
	p.void("meta", "charset", "utf-8")
	sum := sha256.Sum256([]byte(pageCSS))
	p.void("meta", "http-equiv", "Content-Security-Policy", "content", "default-src 'none'; style-src 'sha256-"+base64.StdEncoding.EncodeToString(sum[:])+"'; base-uri 'none'; form-action 'none'")
	p.void("meta", "name", "viewport", "content", "width=device-width, initial-scale=1")
	p.void("meta", "name", "color-scheme", "content", "light dark")
	p.void("meta", "name", "referrer", "content", "no-referrer")
	p.el("title", "mailproof: "+p.d.headline())
	p.open("style")
	p.w.WriteString(pageCSS) // a constant of this package, and none of it needs escaping
	p.close("style", "head")
	p.line()
}

// look is how a verdict looks: a class, a shape, and a word.
func look(v result.Verdict) (class, shape, word string) {
	switch v {
	case result.Pass:
		return "pass", "✓", "pass"
	case result.Fail:
		return "fail", "✗", "fail"
	case result.Inconclusive:
		return "open", "?", "inconclusive"
	case result.Unsupported:
		return "none", "–", "unsupported"
	}
	return "open", "!", "error"
}

// verdict writes a verdict as a chip.
func (p *page) verdict(v result.Verdict) {
	class, shape, word := look(v)
	p.el("span", shape+" "+word, "class", "v "+class)
}

func (p *page) answer() {
	must, _ := p.d.mustFailures()
	class := "pass"
	switch {
	case must > 0 || p.run.Exit == result.ExitFailed:
		class = "fail"
	case p.d.counts.Pass == 0 || p.d.unjudgedCount() > 0 || p.run.Exit != result.ExitOK:
		class = "open"
	}
	p.open("header")
	p.open("div", "class", "answer "+class)
	what := targetWords(p.run) + ", " + p.run.Started.UTC().Format("2 January 2006, 15:04:05 UTC")
	if p.run.Plan.Shard != "" {
		what += ", shard " + p.run.Plan.Shard + " of the plan"
	}
	p.el("p", what, "class", "soft small")
	p.el("h1", p.d.headline())
	p.close("div")
	p.bar()
	p.open("ul", "class", "counts")
	for _, v := range []struct {
		n int
		v result.Verdict
	}{{p.d.counts.Pass, result.Pass}, {p.d.counts.Fail, result.Fail}, {p.d.counts.Error, result.Error}, {p.d.counts.Inconclusive, result.Inconclusive}, {p.d.counts.Unsupported, result.Unsupported}} {
		if v.n > 0 {
			class, shape, word := look(v.v)
			p.open("li")
			p.el("span", fmt.Sprintf("%s %d %s", shape, v.n, word), "class", "v "+class)
			p.close("li")
		}
	}
	p.open("li", "class", "soft small")
	p.text(fmt.Sprintf("%s in %.1f s, exit status %d: %s", counted(p.d.counts.Total(), "result", "results"), p.run.Seconds, p.run.Exit, p.d.exitWords()))
	p.close("li", "ul")
	if a := p.run.Answer; a != nil {
		p.open("div", "class", "notice", "role", "note")
		p.open("p")
		p.el("strong", sentence(a))
		p.close("p", "div")
	}
	for _, n := range p.run.Notices {
		p.open("div", "class", "notice", "role", "note")
		p.open("p")
		p.el("strong", "Note: ")
		p.text(n)
		p.close("p", "div")
	}
	p.open("nav", "aria-label", "Sections")
	p.open("ul")
	for _, s := range p.sections() {
		p.open("li")
		p.el("a", s[1], "href", "#"+s[0])
		p.close("li")
	}
	p.close("ul", "nav", "header")
}

// targetWords is what was judged, in one line.
func targetWords(run *result.Run) string {
	words := map[string]string{"reference": "Reference lab (practice, not evidence)", "docker": "Docker lab", "site": "Site"}[run.Target.Kind]
	if words == "" {
		words = "Target"
	}
	for i := range run.Target.Sources {
		s := &run.Target.Sources[i]
		sep := ", "
		if i == 0 {
			sep = ": "
		}
		words += sep + s.Name
		if len(s.Layers) > 0 {
			words += " with " + strings.Join(s.Layers, ", ")
		}
		if s.Origin == result.FromReference && run.Target.Kind != "reference" {
			words += " (reference)"
		}
	}
	return words
}

// sections lists the sections that this page has, by id and title.
func (p *page) sections() [][2]string {
	list := [][2]string{{"todo", "What to do"}}
	if p.d.unjudgedCount() > 0 {
		list = append(list, [2]string{"notjudged", "Could not be judged"})
	}
	if len(p.order) > 0 {
		list = append(list, [2]string{"claims", "Claims"})
	}
	for _, s := range resultSections() {
		if p.has(s.section) {
			list = append(list, [2]string{s.section, s.title})
		}
	}
	return append(list, [2]string{"untested", "Not tested"}, [2]string{"sent", "What was sent"}, [2]string{"target", "What was judged"})
}

func (p *page) has(section string) bool {
	return slices.ContainsFunc(p.order, func(s *scenario) bool { return s.section == section })
}

// bar shows the verdicts' shares.
func (p *page) bar() {
	total := p.d.counts.Total()
	if total == 0 {
		return
	}
	p.open("svg", "class", "bar", "viewBox", "0 0 1000 14", "width", "600", "height", "14", "preserveAspectRatio", "none", "role", "img", "aria-label", p.d.countWords())
	x := 0.0
	for _, v := range []struct {
		n           int
		class, fill string
	}{{p.d.counts.Pass, "pass", "#156f35"}, {p.d.counts.Fail, "fail", "#b3161f"}, {p.d.unjudgedCount(), "open", "#8a5300"}, {p.d.counts.Unsupported, "none", "#8c959f"}} {
		if v.n == 0 {
			continue
		}
		width := float64(v.n) / float64(total) * 1000
		p.void("rect", "class", v.class, "x", fixed(x), "y", "0", "width", fixed(max(width-3, 1)), "height", "14", "fill", v.fill)
		x += width
	}
	p.close("svg")
}

func fixed(f float64) string { return strconv.FormatFloat(f, 'f', 1, 64) }

// ---- what to do

func (p *page) todo() {
	p.section("todo", "What to do")
	defer p.close("section")
	if len(p.run.Problems)+len(p.d.causes)+len(p.d.failed)+len(p.d.warned)+len(p.d.unstable) == 0 {
		words := "Nothing: no claim failed."
		if p.d.counts.Total() == 0 {
			words = "Choose something to judge: " + p.d.exitWords() + "."
		} else if p.d.unjudgedCount() > 0 {
			words = "Make judgeable what could not be judged: the next section says what is missing."
		}
		p.el("p", words)
		return
	}
	p.open("ol", "class", "cards")
	for i := range p.run.Problems {
		p.problem(&p.run.Problems[i])
	}
	for i := range p.d.causes {
		p.cause(&p.d.causes[i])
	}
	for i, r := range slices.Concat(p.d.failed, p.d.warned) {
		if i == maxPageList {
			p.open("li")
			p.el("p", fmt.Sprintf("… and %d more, shown below.", len(p.d.failed)+len(p.d.warned)-i))
			p.close("li")
			break
		}
		p.failure(r)
	}
	for i, r := range p.d.unstable {
		if i == maxPageList {
			break
		}
		p.open("li", "class", "card")
		p.title(r.Key(), "unstable", string(r.Level))
		p.el("p", "The verdicts of repeats differ: "+repeatWords(r)+".")
		p.link(r)
		p.close("li")
	}
	p.close("ol")
}

func (p *page) section(id, title string) {
	p.line()
	p.open("section", "aria-labelledby", "h-"+id, "id", id)
	p.el("h2", title, "id", "h-"+id)
}

// title writes the heading of a card.
func (p *page) title(text, kind, level string) {
	p.open("h3")
	p.text(text)
	for _, l := range []string{kind, level} {
		if l != "" {
			p.text(" ")
			p.el("span", l, "class", "level")
		}
	}
	p.close("h3")
}

func (p *page) problem(pr *result.Problem) {
	p.open("li", "class", "card")
	p.title(problemTitle(pr), "problem", "")
	p.el("pre", clip(pr.Words, 8*maxPageText))
	if pr.Remedy != nil {
		p.remedy(pr.Remedy)
	}
	p.close("li")
}

func (p *page) cause(c *cause) {
	class := "card"
	if c.Level == result.Should || c.Level == result.May {
		class = "card open"
	}
	p.open("li", "class", class, "id", causeID(c.Diagnosis))
	p.title(c.Code+": "+c.Title, c.Source, string(c.Level))
	p.el("p", c.Means)
	p.remedy(&c.Remedy)
	if len(c.results) > 0 {
		p.open("details")
		p.el("summary", "Explains "+counted(len(c.results), "result", "results")+": "+named(c.results, maxShownIDs))
		p.open("ul", "class", "plain")
		for i, r := range c.results {
			if i == maxPageList {
				p.el("li", fmt.Sprintf("… and %d more", len(c.results)-i))
				break
			}
			p.open("li")
			p.verdict(r.Verdict)
			p.text(" ")
			p.el("a", r.Key(), "href", "#"+p.anchor(r))
			p.close("li")
		}
		p.close("ul", "details")
	}
	if len(c.DiscriminatedBy)+len(c.Alternatives) > 0 {
		p.open("details")
		p.el("summary", "How this cause was told from others")
		p.list("Seen", c.DiscriminatedBy)
		p.list("It could have been, and is not", c.Alternatives)
		p.close("details")
	}
	p.close("li")
}

func causeID(dx *result.Diagnosis) string {
	clean := func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}
	return "dx-" + strings.Map(clean, dx.Code+"-"+dx.Source)
}

func (p *page) list(title string, items []string) {
	if len(items) == 0 {
		return
	}
	p.el("p", title+":", "class", "soft")
	p.open("ul", "class", "plain")
	for i, it := range items {
		if i == maxPageList {
			p.el("li", fmt.Sprintf("… and %d more", len(items)-i))
			break
		}
		p.el("li", clip(it, 2*maxPageText))
	}
	p.close("ul")
}

func (p *page) remedy(r *result.Remedy) {
	p.open("div", "class", "do")
	p.open("p")
	p.el("strong", "Change: ")
	p.text(r.Text)
	p.close("p")
	for i := range r.Changes {
		ch := &r.Changes[i]
		p.open("p", "class", "where small")
		p.el("code", changeWhere(ch))
		p.text(changeNow(ch))
		if ch.Because != "" {
			p.text(": " + ch.Because)
		}
		p.close("p")
		p.open("pre")
		p.el("code", ch.Text)
		p.close("pre")
	}
	if len(r.Apply) > 0 {
		p.el("p", "Then run:", "class", "where small")
		p.open("pre")
		p.el("code", strings.Join(r.Apply, "\n"))
		p.close("pre")
	}
	p.close("div")
}

// failure is the card of a failed result that no cause explains.
func (p *page) failure(r *result.Result) {
	class, kind := "card", "fail"
	if !binding(r) {
		class, kind = "card open", "warning"
	}
	p.open("li", "class", class)
	p.title(r.Key(), kind, string(r.Level))
	p.el("p", r.Claim)
	for i := range r.Findings {
		if i == 2 {
			break
		}
		p.finding(&r.Findings[i], "", nil)
	}
	p.link(r)
	p.close("li")
}

func (p *page) link(r *result.Result) {
	p.open("p", "class", "small")
	p.el("a", "Look at the dialogue and the evidence", "href", "#"+p.anchor(r))
	p.close("p")
}

// anchor is the id of a result's place on the page.
func (p *page) anchor(r *result.Result) string {
	if r.Verdict == result.Unsupported {
		return "untested"
	}
	// The results are one slice: a result's place there is its number.
	for _, s := range p.order {
		if s.ID != r.ID {
			continue
		}
		for _, i := range s.results {
			if &p.run.Results[i] == r {
				return "r" + strconv.Itoa(i+1)
			}
		}
	}
	return "claims"
}

func (p *page) finding(f *result.Finding, at string, evidence []string) {
	p.open("dl")
	p.pair("wanted", f.Wanted, "")
	p.pair("found", f.Found, "bad")
	if f.Means != "" {
		p.el("dt", "means")
		p.el("dd", f.Means)
	}
	if f.Remedy != "" {
		p.el("dt", "change")
		p.el("dd", f.Remedy)
	}
	p.pair("look at", at, "")
	for i, e := range evidence {
		if i == maxPageList {
			p.pair("evidence", fmt.Sprintf("… and %d more", len(evidence)-i), "")
			break
		}
		p.pair("evidence", e, "")
	}
	p.close("dl")
}

// pair writes a term and the words of a server or a script.
func (p *page) pair(term, text, class string) {
	if text == "" {
		return
	}
	p.el("dt", term)
	p.open("dd", "class", class)
	p.open("code")
	p.secrets(clip(text, 2*maxPageText))
	p.close("code", "dd")
}

// ---- what could not be judged

func (p *page) notJudged() {
	if p.d.unjudgedCount() == 0 {
		return
	}
	p.section("notjudged", "Could not be judged")
	p.el("p", fmt.Sprintf("%d of %d results. Nothing is claimed about them, neither that they hold nor that they do not.", p.d.unjudgedCount(), p.d.counts.Total()))
	p.open("ul", "class", "cards")
	for i, g := range p.d.unjudged {
		if i == maxPageList {
			p.el("li", fmt.Sprintf("… and %d more reasons", len(p.d.unjudged)-i))
			break
		}
		p.open("li", "class", "card open")
		p.open("h3")
		p.verdict(g.verdict)
		p.text(" " + counted(len(g.results), "result", "results"))
		p.close("h3")
		p.el("p", clip(g.reason, 2*maxPageText))
		p.el("p", namedBySource(g.results, 2*maxShownIDs), "class", "soft small")
		p.close("li")
	}
	p.close("ul", "section")
}

// ---- what was not tested, sent and judged

func (p *page) notTested() {
	p.section("untested", "Not tested")
	defer p.close("section")
	if len(p.d.lacking)+len(p.run.Excluded) == 0 {
		p.el("p", "Everything that was selected was tried.")
	} else {
		p.open("table", "class", "rows")
		p.row("th", "What", "Why")
		for i, g := range p.d.lacking {
			if i == maxPageList {
				p.row("td", fmt.Sprintf("… and %d more", len(p.d.lacking)-i), "")
				break
			}
			p.row("td", counted(len(g.results), "result", "results")+": "+namedBySource(g.results, 2*maxShownIDs), "unsupported: "+clip(g.reason, maxPageText))
		}
		for i, e := range p.run.Excluded {
			if i == 10*maxPageList {
				p.row("td", fmt.Sprintf("… and %d more", len(p.run.Excluded)-i), "")
				break
			}
			p.row("td", e.ID, "left out: "+clip(e.Reason, maxPageText))
		}
		p.close("table")
	}
	p.el("p", "Requirements that no scenario speaks to are not in this report: mailproof list --ledger names each with its reason.", "class", "soft small")
}

// row writes a table row; heading rows are of th.
func (p *page) row(cell string, texts ...string) {
	p.open("tr")
	for _, t := range texts {
		if cell == "th" {
			p.el(cell, t, "scope", "col")
		} else {
			p.el(cell, t)
		}
	}
	p.close("tr")
}

// risks says what each risk allows.
func risks() [][2]string {
	return [][2]string{{"R0", "greets"}, {"R1", "signs in"}, {"R2", "reads mailbox data"}, {"R3", "names senders and recipients, sends no message"},
		{"R4", "delivers a marked message"}, {"R5", "changes mailboxes, filters or settings"}}
}

func (p *page) sent() {
	p.section("sent", "What was sent")
	defer p.close("section")
	conns, clear, inTLS, received := 0, 0, 0, 0
	byRisk := map[string]int{}
	for i := range p.run.Results {
		r := &p.run.Results[i]
		if r.Transcript == "" {
			continue
		}
		byRisk[r.Risk]++
		for line := range strings.Lines(r.Transcript) {
			switch e := parseEvent(strings.TrimSuffix(line, "\n")); {
			case e.opens():
				conns++
			case e.dir == "->":
				clear++
			case e.dir == "~>":
				inTLS++
			case e.received():
				received++
			}
		}
	}
	p.el("p", fmt.Sprintf("By the dialogues of this report: %s, %s in clear text and %s inside TLS sent, %s received. Plan %s, ceiling %s.",
		counted(conns, "connection", "connections"), counted(clear, "line", "lines"), counted(inTLS, "line", "lines"), counted(received, "line", "lines"),
		or(p.run.Plan.SHA256, "without a hash"), or(p.run.Plan.MaxRisk, "not named")))
	p.open("table", "class", "rows")
	p.row("th", "Risk", "Could do no more than", "Results with a dialogue")
	for _, r := range risks() {
		if n := byRisk[r[0]]; n > 0 {
			p.row("td", r[0], r[1], strconv.Itoa(n))
		}
	}
	p.close("table")
	p.slowest()
}

func or(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// slowest shows where the time went.
func (p *page) slowest() {
	list := make([]*result.Result, 0, len(p.run.Results))
	for i := range p.run.Results {
		if p.run.Results[i].Seconds > 0 {
			list = append(list, &p.run.Results[i])
		}
	}
	if len(list) < 2 {
		return
	}
	slices.SortStableFunc(list, func(a, b *result.Result) int {
		switch {
		case a.Seconds > b.Seconds:
			return -1
		case a.Seconds < b.Seconds:
			return 1
		}
		return 0
	})
	longest := list[0].Seconds
	p.open("details")
	p.el("summary", "The slowest results")
	p.open("table", "class", "rows")
	p.row("th", "Seconds", "Share of the longest", "Result")
	for _, r := range list[:min(10, len(list))] {
		p.open("tr")
		p.el("td", seconds(r.Seconds))
		p.open("td")
		p.open("svg", "class", "time", "width", "160", "height", "10", "viewBox", "0 0 160 10", "aria-hidden", "true")
		p.void("rect", "x", "0", "y", "0", "width", fixed(max(1, r.Seconds/longest*160)), "height", "10")
		p.close("svg", "td")
		p.open("td")
		p.el("a", r.Key(), "href", "#"+p.anchor(r))
		p.close("td", "tr")
	}
	p.close("table", "details")
}

func (p *page) target() {
	p.section("target", "What was judged")
	defer p.close("section")
	p.open("dl")
	for _, pair := range [][2]string{
		{"target", map[string]string{"reference": "the reference lab, in this process", "docker": "the docker lab", "site": "an operator's site"}[p.run.Target.Kind]},
		{"proxy", p.run.Target.Proxy}, {"engine", p.run.Target.Engine}, {"plan", p.run.Plan.SHA256}, {"mailproof", p.version()},
	} {
		if pair[1] != "" {
			p.el("dt", pair[0])
			p.el("dd", pair[1])
		}
	}
	p.close("dl")
	if len(p.run.Target.Sources) == 0 {
		return
	}
	p.open("div", "class", "scroll")
	p.open("table", "class", "rows")
	p.row("th", "Source", "What it is", "Results")
	for i := range p.run.Target.Sources {
		s := &p.run.Target.Sources[i]
		var c result.Counts
		for j := range p.run.Results {
			if r := &p.run.Results[j]; r.Source == s.Name {
				c = plus(c, r.Verdict)
			}
		}
		p.row("td", s.Name, sourceWords(s), countWords(c))
	}
	p.close("table", "div")
}

func plus(c result.Counts, v result.Verdict) result.Counts {
	switch v {
	case result.Pass:
		c.Pass++
	case result.Fail:
		c.Fail++
	case result.Inconclusive:
		c.Inconclusive++
	case result.Unsupported:
		c.Unsupported++
	case result.Error:
		c.Error++
	}
	return c
}
