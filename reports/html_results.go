package reports

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/mailproof/mailproof/harness/result"
)

// ---- the matrix of claims

// matrix writes one table: claims down, sources across, and in each cell a
// verdict for each endpoint, for each address family where they differ.
func (p *page) matrix() {
	if len(p.order) == 0 {
		return
	}
	p.section("claims", "Claims")
	p.open("p", "class", "small")
	for _, v := range []result.Verdict{result.Pass, result.Fail, result.Inconclusive, result.Error, result.Unsupported} {
		p.verdict(v)
		p.text(" ")
	}
	p.close("p")
	p.el("p", "One verdict for each endpoint; one for each address family where they differ. An empty cell: the claim is not tried there.", "class", "small soft")
	var sources, groups []string
	in := map[string][]*scenario{}
	for _, s := range p.order {
		g := s.Group()
		if in[g] == nil {
			groups = append(groups, g)
		}
		in[g] = append(in[g], s)
		for _, i := range s.results {
			if name := p.run.Results[i].Source; !slices.Contains(sources, name) {
				sources = append(sources, name)
			}
		}
	}
	p.open("div", "class", "scroll", "tabindex", "0", "role", "region", "aria-labelledby", "h-claims")
	p.open("table", "class", "matrix")
	p.el("caption", "Verdicts by claim and source", "class", "vh")
	p.open("thead")
	p.open("tr")
	p.el("th", "Claim", "scope", "col")
	for _, s := range sources {
		p.open("th", "scope", "col")
		p.text(s)
		for i := range p.run.Target.Sources {
			if src := &p.run.Target.Sources[i]; src.Name == s && src.Origin == result.FromReference {
				p.el("span", "reference", "class", "level")
			}
		}
		p.close("th")
	}
	p.close("tr", "thead")
	for _, g := range groups {
		p.line()
		p.open("tbody")
		p.open("tr")
		p.el("th", g, "scope", "rowgroup", "colspan", strconv.Itoa(1+len(sources)), "class", "group")
		p.close("tr")
		for _, s := range in[g] {
			p.claim(s, sources)
		}
		p.close("tbody")
	}
	p.close("table", "div", "section")
}

func (p *page) claim(s *scenario, sources []string) {
	p.line()
	p.open("tr")
	p.open("th", "scope", "row")
	target := "s" + strconv.Itoa(s.number)
	if s.section == nowhere {
		target = "untested"
	}
	p.el("a", s.ID, "href", "#"+target)
	if !binding(s.Result) {
		p.el("span", string(s.Level), "class", "level")
	}
	p.void("br")
	p.el("span", s.Claim, "class", "soft small")
	p.close("th")
	for _, source := range sources {
		p.open("td", "data-source", source)
		var endpoints []string
		here := map[string][]int{}
		for _, i := range s.results {
			if r := &p.run.Results[i]; r.Source == source {
				if here[r.Facet.Endpoint] == nil {
					endpoints = append(endpoints, r.Facet.Endpoint)
				}
				here[r.Facet.Endpoint] = append(here[r.Facet.Endpoint], i)
			}
		}
		for _, e := range endpoints {
			p.chips(e, here[e])
		}
		p.close("td")
	}
	p.close("tr")
}

// chips writes the verdicts of one claim at one endpoint of one source: one
// where they agree.
func (p *page) chips(endpoint string, results []int) {
	same := true
	for _, i := range results {
		r := &p.run.Results[i]
		same = same && r.Verdict == p.run.Results[results[0]].Verdict && !r.Unstable
	}
	for n, i := range results {
		r := &p.run.Results[i]
		class, shape, word := look(r.Verdict)
		label := endpoint
		switch {
		case same && n > 0:
			return
		case !same:
			if v, ok := strings.CutPrefix(r.Facet.Family, "ip"); ok {
				label += " IPv" + v
			}
			for _, j := range results {
				if o := &p.run.Results[j]; j != i && o.Facet.Family == r.Facet.Family {
					label += " " + r.Facet.Driver // two drivers of one family
					break
				}
			}
			if r.Unstable {
				label += " unstable"
			}
		}
		target := "r" + strconv.Itoa(i+1)
		if r.Verdict == result.Unsupported {
			target = "untested"
		}
		p.open("a", "class", "v "+class, "href", "#"+target)
		p.text(shape + " " + label)
		p.el("span", ": "+word, "class", "vh")
		p.close("a")
		p.text(" ")
	}
}

// ---- the results

type resultSection struct{ section, title, words string }

func resultSections() []resultSection {
	return []resultSection{
		{inFailed, "Claims that fail", "Failed results first; below them what the same claim came to elsewhere."},
		{inOpen, "Claims that are open", "Not everything about these claims could be judged, and nothing about them fails."},
		{inPassed, "Claims that hold", "Each holds wherever it was tried, and has its witness."},
	}
}

func (p *page) results() {
	for _, sec := range resultSections() {
		if !p.has(sec.section) {
			continue
		}
		p.section(sec.section, sec.title)
		p.el("p", sec.words, "class", "soft small")
		for _, s := range p.order {
			if s.section == sec.section {
				p.scenario(s)
			}
		}
		p.close("section")
	}
}

func (p *page) scenario(s *scenario) {
	p.line()
	p.open("article", "class", "scenario", "id", "s"+strconv.Itoa(s.number))
	p.title(s.ID, "", string(s.Level))
	p.el("p", s.Claim)
	about := []string{}
	if len(s.Requirements) > 0 {
		about = append(about, strings.Join(s.Requirements, " "))
	}
	if s.Spec != "" {
		about = append(about, s.Spec)
	}
	if s.File != "" {
		about = append(about, s.File)
	}
	p.el("p", strings.Join(about, " · "), "class", "soft small")
	order := slices.Clone(s.results)
	rank := map[result.Verdict]int{result.Fail: 0, result.Error: 1, result.Inconclusive: 2, result.Pass: 3}
	slices.SortStableFunc(order, func(a, b int) int { return rank[p.run.Results[a].Verdict] - rank[p.run.Results[b].Verdict] })
	for _, i := range order {
		if p.run.Results[i].Verdict != result.Unsupported {
			p.result(i)
		}
	}
	p.close("article")
}

func (p *page) result(i int) {
	r := &p.run.Results[i]
	dx := p.causeOf(r)
	unfold := ""
	if r.Verdict == result.Fail && dx == nil && p.unfolded < maxPageOpen {
		p.unfolded++
		unfold = "open"
	}
	p.line()
	class := "result"
	if r.Verdict == result.Pass {
		class = "result holds"
	}
	p.open("details", "class", class, "id", "r"+strconv.Itoa(i+1), "open", unfold)
	p.open("summary")
	p.verdict(r.Verdict)
	p.text(" " + r.Source + " ")
	p.el("code", r.Facet.String())
	if r.Unstable {
		p.text(" · unstable: " + repeatWords(r))
	}
	switch {
	case r.Verdict == result.Fail && len(r.Findings) > 0:
		p.text(" · found ")
		p.el("code", clip(firstLine(r.Findings[0].Found), 90))
	case r.Reason != "":
		p.text(" · " + clip(r.Reason, 120))
	}
	p.el("span", " · "+seconds(r.Seconds)+" s", "class", "soft small")
	p.close("summary")
	p.open("div", "class", "body")
	switch {
	case dx != nil:
		p.open("p")
		p.text("Because of ")
		p.el("a", dx.Code+": "+dx.Title, "href", "#"+causeID(dx))
		p.close("p")
	case p.d.byKey[r.ExplainedBy] != nil && p.d.byKey[r.ExplainedBy] != r:
		p.open("p")
		p.text("Because of ")
		p.el("a", r.ExplainedBy, "href", "#"+p.anchor(p.d.byKey[r.ExplainedBy]))
		p.close("p")
	}
	if r.Verdict != result.Pass && r.Reason != "" {
		p.el("p", clip(r.Reason, 4*maxPageText))
	}
	witnessed := map[string]bool{} // evidence that is shown as witness anyway
	for _, w := range r.Witness {
		for l := range strings.SplitSeq(w.Line, "\n") {
			witnessed[l] = true
		}
	}
	for j := range r.Findings {
		f := &r.Findings[j]
		p.finding(f, place(f.At.File, f.At.Line), slices.DeleteFunc(slices.Clone(f.Evidence), func(e string) bool { return witnessed[e] }))
	}
	for j, w := range r.Witness {
		if j == maxPageList {
			p.el("p", fmt.Sprintf("… and %d more witnesses", len(r.Witness)-j))
			break
		}
		p.open("p", "class", "where small")
		p.text("Witness (" + w.Kind + "), joined by ")
		p.el("code", clip(w.JoinedBy, maxPageText))
		p.close("p")
		_, value, _ := strings.Cut(w.JoinedBy, "=")
		p.open("pre")
		p.marked(clip(w.Line, 4*maxPageText), value)
		p.close("pre")
	}
	p.dialogue(r)
	if r.Verdict != result.Pass {
		p.phases(r)
	}
	p.close("div", "details")
}

// causeOf is the diagnosis that explains a result, if any.
func (p *page) causeOf(r *result.Result) *result.Diagnosis {
	if p.causes == nil {
		p.causes = map[*result.Result]*result.Diagnosis{}
		for i := range p.d.causes {
			for _, of := range p.d.causes[i].results {
				if p.causes[of] == nil {
					p.causes[of] = p.d.causes[i].Diagnosis
				}
			}
		}
	}
	return p.causes[r]
}

func (p *page) phases(r *result.Result) {
	if len(r.Phases) == 0 {
		return
	}
	p.el("p", "Phases", "class", "where small soft")
	p.open("ul", "class", "plain small")
	for i, ph := range r.Phases {
		if i == maxPageList {
			break
		}
		p.el("li", fmt.Sprintf("%s (line %d, %s s)", ph.Title, ph.Line, seconds(ph.Seconds)))
	}
	p.close("ul")
}

// dialogue writes a transcript in two lanes: what we sent begins on the left,
// what the server sent is set to the right.
func (p *page) dialogue(r *result.Result) {
	if r.Transcript == "" {
		return
	}
	if p.dialogues > maxPageDialogues {
		p.el("p", "The dialogue is left out to keep this page small; the JSON report has it.", "class", "soft small")
		return
	}
	before := p.size()
	list := events(r.Transcript)
	several := false
	for i := range list {
		several = several || list[i].conn != "" && list[i].conn != list[0].conn
	}
	span := "3"
	p.open("table", "class", "wire")
	p.el("caption", "Dialogue of "+r.Key(), "class", "vh")
	p.open("colgroup")
	p.void("col", "class", "t")
	if several {
		span = "4"
		p.void("col", "class", "c")
	}
	p.void("col", "class", "s")
	p.void("col")
	p.void("col", "class", "s")
	p.close("colgroup")
	p.open("thead")
	p.open("tr")
	p.el("th", "seconds", "scope", "col")
	if several {
		p.open("th", "scope", "col")
		p.el("span", "connection", "class", "vh")
		p.close("th")
	}
	p.el("th", "sent", "scope", "col")
	p.el("th", "received", "scope", "col", "colspan", "2")
	p.close("tr", "thead")
	p.open("tbody")
	for i := range list {
		if i == maxPageEvents/2 && len(list) > maxPageEvents {
			p.remark(span, fmt.Sprintf("… %d events are not shown; the JSON report has them", len(list)-maxPageEvents))
		}
		if i >= maxPageEvents/2 && i < len(list)-maxPageEvents/2 {
			continue
		}
		e := &list[i]
		conn := ""
		if several {
			conn = e.conn
		}
		text := e.text
		if e.dir != "" {
			text = e.dir + " " + text
		}
		text = clip(text, maxPageText)
		class := "n"
		switch {
		case e.sent():
			class = "o"
		case e.received():
			class = "i"
		}
		if e.tls() {
			class += " e"
		}
		p.event(e, class, several, conn, text)
	}
	p.close("tbody", "table")
	p.dialogues += p.size() - before
}

func (p *page) event(e *event, class string, several bool, conn, text string) {
	p.line()
	p.open("tr", "class", class)
	p.el("td", strings.TrimPrefix(e.at, "+"))
	if several {
		p.el("td", conn)
	}
	switch {
	case e.received():
		p.el("td", "")
		p.cellOf(text, "2")
	case e.sent():
		p.cellOf(text, "2")
		p.el("td", "")
	default:
		p.cellOf(text, "3")
	}
	p.close("tr")
}

// cellOf writes the text of an event over several columns.
func (p *page) cellOf(text, span string) {
	p.open("td", "colspan", span)
	p.secrets(text)
	p.close("td")
}

// remark writes a remark of ours into a dialogue.
func (p *page) remark(span, text string) {
	p.open("tr", "class", "n")
	p.el("td", "")
	p.cellOf(text, span)
	p.close("tr")
}
