package reports

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/result"
)

// A digest is a run sorted into what human reports show, in their order. It
// points into the run and changes nothing there.
type digest struct {
	run    *result.Run
	counts result.Counts

	causes   []cause
	failed   []*result.Result // a must that no diagnosis explains
	warned   []*result.Result // a should or may that no diagnosis explains
	unstable []*result.Result // differing verdicts, and the last word is not fail
	unjudged []group          // inconclusive and error, by reason
	lacking  []group          // unsupported, by reason

	// follows is how many results the failure of a result explains, by key.
	follows map[string]int
	byKey   map[string]*result.Result
}

// A cause is a diagnosis with the results that it explains.
type cause struct {
	*result.Diagnosis
	results []*result.Result
}

// A group is the results that share a reason.
type group struct {
	verdict result.Verdict
	reason  string
	results []*result.Result
}

func digestOf(run *result.Run) *digest {
	d := &digest{run: run, counts: result.Count(run.Results), follows: map[string]int{},
		byKey: make(map[string]*result.Result, len(run.Results))}
	keys := make([]string, len(run.Results))
	for i := range run.Results {
		keys[i] = run.Results[i].Key()
		d.byKey[keys[i]] = &run.Results[i]
	}
	explained := make(map[string]string) // key of a result → code or key of what explains it
	for i := range run.Diagnoses {
		dx := &run.Diagnoses[i]
		c := cause{Diagnosis: dx}
		for _, key := range dx.Results {
			if r := d.byKey[key]; r != nil {
				c.results = append(c.results, r)
				if explained[key] == "" {
					explained[key] = dx.Code
				}
			}
		}
		d.causes = append(d.causes, c)
	}
	for i := range run.Results {
		r := &run.Results[i]
		if r.ExplainedBy == "" || explained[keys[i]] != "" {
			continue
		}
		if first := d.byKey[r.ExplainedBy]; first != nil && first != r {
			explained[keys[i]] = r.ExplainedBy
			d.follows[r.ExplainedBy]++
			continue
		}
		for j := range d.causes {
			if c := &d.causes[j]; c.Code == r.ExplainedBy && (c.Source == r.Source || c.Source == "") {
				c.results = append(c.results, r)
				explained[keys[i]] = c.Code
				break
			}
		}
	}
	for i := range run.Results {
		r := &run.Results[i]
		if r.Unstable && r.Verdict != result.Fail {
			d.unstable = append(d.unstable, r)
		}
		switch r.Verdict {
		case result.Fail:
			switch {
			case explained[keys[i]] != "":
			case binding(r):
				d.failed = append(d.failed, r)
			default:
				d.warned = append(d.warned, r)
			}
		case result.Inconclusive, result.Error:
			reason := r.Reason
			if by := explained[keys[i]]; by != "" && !strings.Contains(reason, by) {
				reason = strings.TrimSuffix("because of "+by+": "+reason, ": ")
			}
			d.unjudged = addTo(d.unjudged, r, reason)
		case result.Unsupported:
			d.lacking = addTo(d.lacking, r, r.Reason)
		}
	}
	return d
}

// binding says whether a cutover depends on the claim.
func binding(r *result.Result) bool { return r.Level != result.Should && r.Level != result.May }

func addTo(groups []group, r *result.Result, reason string) []group {
	if reason == "" {
		reason = "no reason was recorded"
	}
	for i := range groups {
		if groups[i].verdict == r.Verdict && groups[i].reason == reason {
			groups[i].results = append(groups[i].results, r)
			return groups
		}
	}
	return append(groups, group{r.Verdict, reason, []*result.Result{r}})
}

// mustFailures counts the failed results that a cutover depends on, and the
// scenarios that they belong to.
func (d *digest) mustFailures() (results, claims int) {
	seen := map[string]bool{}
	for i := range d.run.Results {
		if r := &d.run.Results[i]; r.Verdict == result.Fail && binding(r) {
			results++
			seen[r.ID] = true
		}
	}
	return results, len(seen)
}

// warnings counts the failed results that no cutover depends on.
func (d *digest) warnings() int {
	must, _ := d.mustFailures()
	return d.counts.Fail - must
}

// unjudgedCount counts what could not be judged.
func (d *digest) unjudgedCount() int { return d.counts.Inconclusive + d.counts.Error }

// headline answers in one sentence whether the target is fit, as far as this
// run can tell.
func (d *digest) headline() string {
	total := d.counts.Total()
	must, claims := d.mustFailures()
	open := ""
	if n := d.unjudgedCount(); n > 0 {
		open = fmt.Sprintf("; %d of %d could not be judged", n, total)
	}
	switch {
	case d.run.Exit == result.ExitInterrupted:
		s := "Interrupted: " + d.exitWords()
		if must > 0 {
			s += fmt.Sprintf("; %d of %d results fail", must, total)
		}
		return s
	case must > 0:
		s := fmt.Sprintf("Not ready: %s (%d of %d results)", counted(claims, "claim fails", "claims fail"), must, total)
		if n := len(d.causes); n > 0 {
			s += ", with " + counted(n, "cause named below", "causes named below")
		}
		return s + open
	case d.run.Exit == result.ExitFailed:
		return "Not ready: " + d.exitWords() + open
	case total == 0 && len(d.run.Problems) == 0:
		return "Nothing was judged: " + d.exitWords()
	case len(d.run.Problems) > 0 && open == "":
		return "No claim that must hold fails, but there was " + d.problemWords()
	case open != "":
		return "Not fully judged: " + open[2:] + "; no claim that must hold fails"
	case d.counts.Pass == 0:
		return "Nothing was judged: " + d.exitWords()
	}
	s := fmt.Sprintf("No claim that must hold fails: %d of %d results pass", d.counts.Pass, total)
	if n := d.warnings(); n > 0 {
		s += ", with " + counted(n, "warning", "warnings")
	}
	return s
}

// countWords lists the counts by verdict, leaving out what did not occur.
func (d *digest) countWords() string {
	return countWords(d.counts)
}

func countWords(c result.Counts) string {
	var parts []string
	for _, v := range []struct {
		n    int
		word string
	}{{c.Pass, "pass"}, {c.Fail, "fail"}, {c.Error, "error"}, {c.Inconclusive, "inconclusive"}, {c.Unsupported, "unsupported"}} {
		if v.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", v.n, v.word))
		}
	}
	if parts == nil {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

// exitWords says why the process ends with the status that it ends with.
func (d *digest) exitWords() string {
	run, total := d.run, d.counts.Total()
	switch run.Exit {
	case result.ExitOK:
		if n := d.warnings(); n > 0 {
			return "no claim that must hold failed; " + counted(n, "warning", "warnings")
		}
		return "everything selected was judged, and nothing failed"
	case result.ExitFailed:
		var why []string
		if n, _ := d.mustFailures(); n > 0 {
			why = append(why, fmt.Sprintf("%d of %d failed a claim that must hold", n, total))
		}
		mixed := 0
		for i := range run.Results {
			if r := &run.Results[i]; r.Unstable && binding(r) {
				mixed++
			}
		}
		if mixed > 0 {
			why = append(why, fmt.Sprintf("%d gave different verdicts when repeated", mixed))
		}
		if why == nil && d.warnings() > 0 {
			why = append(why, counted(d.warnings(), "warning counts", "warnings count")+" as failed (--strict)")
		}
		if n := d.unjudgedCount(); n > 0 {
			why = append(why, fmt.Sprintf("%d could not be judged", n))
		}
		return strings.Join(why, ", ")
	case result.ExitUsage:
		return "the command or a script was wrong"
	case result.ExitUnjudged:
		var why []string
		if len(run.Problems) > 0 {
			why = append(why, d.problemWords())
		}
		if n := d.unjudgedCount(); n > 0 {
			why = append(why, fmt.Sprintf("%d of %d could not be judged", n, total))
		}
		if why == nil && total > 0 && d.counts.Unsupported == total {
			why = append(why, "nothing was judged: the targets have none of what was selected")
		}
		if why == nil && slices.ContainsFunc(run.Results, func(r result.Result) bool { return r.Origin == result.FromReference }) {
			why = append(why, "a reference server stood in that was not asked for: practice, not evidence")
		}
		if why == nil {
			why = append(why, "something selected could not be judged")
		}
		return strings.Join(why, ", ")
	case result.ExitEmpty:
		if len(run.Excluded) > 0 {
			return "only exclusions are left of what was selected"
		}
		return "nothing was selected"
	case result.ExitInterrupted:
		n := 0
		for i := range run.Results {
			if r := &run.Results[i]; r.Verdict == result.Error && r.Reason == "interrupted" {
				n++
			}
		}
		return fmt.Sprintf("%d of %d did not finish", n, total)
	}
	return "no such status is known to this version"
}

// problemWords counts the problems and names the first.
func (d *digest) problemWords() string {
	return fmt.Sprintf("%s (%s)", counted(len(d.run.Problems), "problem", "problems"), clip(problemTitle(&d.run.Problems[0]), 120))
}

// named lists results by scenario, at most limit of them: the facets where
// there are one or two, else their number.
func named(rs []*result.Result, limit int) string {
	var order []string
	facets := map[string][]string{}
	for _, r := range rs {
		if facets[r.ID] == nil {
			order = append(order, r.ID)
		}
		facets[r.ID] = append(facets[r.ID], shortFacet(r))
	}
	var parts []string
	for i, id := range order {
		if i == limit {
			parts = append(parts, "and "+counted(len(order)-limit, "more scenario", "more scenarios"))
			break
		}
		if fs := facets[id]; len(fs) <= 2 {
			parts = append(parts, visible(id+" "+strings.Join(fs, " ")))
		} else {
			parts = append(parts, visible(fmt.Sprintf("%s (%d)", id, len(fs))))
		}
	}
	return strings.Join(parts, ", ")
}

// namedBySource is named for results of several sources.
func namedBySource(rs []*result.Result, limit int) string {
	var order []string
	bySource := map[string][]*result.Result{}
	for _, r := range rs {
		if bySource[r.Source] == nil {
			order = append(order, r.Source)
		}
		bySource[r.Source] = append(bySource[r.Source], r)
	}
	parts := make([]string, len(order))
	for i, s := range order {
		parts[i] = visible(s) + ": " + named(bySource[s], limit)
	}
	return strings.Join(parts, "; ")
}

// shortFacet is "imap/ip4": the driver is left out where it is the usual one.
func shortFacet(r *result.Result) string {
	f := r.Facet
	if f.Driver == "as-proxy" {
		f.Driver = ""
	}
	return f.String()
}

// sourceWords describes a source in one line.
func sourceWords(s *result.Source) string {
	parts := []string{}
	if s.Software != "" {
		parts = append(parts, s.Software)
	}
	if s.Profile != "" {
		parts = append(parts, s.Profile)
	}
	for _, l := range s.Layers {
		parts = append(parts, "with "+l)
	}
	switch s.Origin {
	case result.FromReference:
		parts = append(parts, "reference server: practice, not evidence")
	case result.FromImage:
		parts = append(parts, "container image")
	case result.FromExec:
		parts = append(parts, "program on this machine")
	case result.FromSite:
		parts = append(parts, "your own server")
	}
	return strings.Join(parts, ", ")
}

// changeWhere says which setting of which file a change is about.
func changeWhere(c *result.Change) string {
	where := c.File
	if c.Line > 0 {
		where = fmt.Sprintf("%s:%d", c.File, c.Line)
	}
	if c.Setting != "" {
		where += ", " + c.Setting
	}
	return where
}

// changeNow says what stands there now.
func changeNow(c *result.Change) string {
	switch {
	case c.Found != "":
		return fmt.Sprintf(" (now: %s)", c.Found)
	case c.Line == 0:
		return " (not set now)"
	}
	return ""
}

// place is a scenario's file and line.
func place(file string, line int) string {
	if file == "" {
		return ""
	}
	return fmt.Sprintf("%s:%d", file, max(1, line))
}
