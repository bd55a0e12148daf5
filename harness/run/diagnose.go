package run

import (
	"context"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/result"
)

// A cause is one thing that can be wrong with a source. look returns nil when
// the observations do not speak for it.
type cause struct {
	code string
	kind string
	look func(*observations) *result.Diagnosis
}

// diagnose groups findings under their causes, root cause first: each cause
// looks at what no earlier one has explained, and names the observations that
// tell it from its alternatives.
func diagnose(ctx context.Context, t *Target, run *result.Run) {
	for _, src := range t.Sources {
		o := &observations{ctx: ctx, t: t, src: src}
		failed := false
		for i := range run.Results {
			if run.Results[i].Source == src.Name {
				o.results = append(o.results, &run.Results[i])
				failed = failed || run.Results[i].Verdict == result.Fail
			}
		}
		if !failed {
			continue
		}
		var found []result.Diagnosis
		for _, c := range causes() {
			if c.kind != "" && c.kind != src.Kind {
				continue
			}
			d := c.look(o)
			if d == nil {
				continue
			}
			d.Code, d.Source = c.code, src.Name
			o.explain(d)
			found = append(found, *d)
		}
		for i := range found {
			o.follow(&found[i])
		}
		run.Diagnoses = append(run.Diagnoses, found...)
	}
	// What must be mended comes before what should be; within a source the
	// causes keep their order.
	slices.SortStableFunc(run.Diagnoses, func(a, b result.Diagnosis) int { return binding(b.Level) - binding(a.Level) })
}

func binding(l result.Level) int {
	switch l {
	case result.Must:
		return 2
	case result.Should:
		return 1
	}
	return 0
}

// observations are the results of one source, as causes look at them.
type observations struct {
	ctx     context.Context
	t       *Target
	src     *Source
	results []*result.Result

	configRead bool
	config     []ConfigFile
}

// explain marks what a diagnosis explains, and takes its level from there.
func (o *observations) explain(d *result.Diagnosis) {
	d.Level = result.May
	for _, key := range d.Results {
		for _, r := range o.results {
			if r.Key() != key {
				continue
			}
			r.ExplainedBy = d.Code
			if r.Level == result.Must || r.Level == result.Should && d.Level == result.May {
				d.Level = r.Level
			}
			for i := range r.Findings {
				r.Findings[i].Remedy = d.Remedy.Text
			}
		}
	}
	if d.DiscriminatedBy == nil {
		d.DiscriminatedBy = []string{}
	}
	if d.Alternatives == nil {
		d.Alternatives = []string{}
	}
}

// follow adds to a diagnosis what clients get through the proxy, where nothing
// else explains it: the proxy can give them no more of a protocol than it gets
// from the source itself.
func (o *observations) follow(d *result.Diagnosis) {
	if d.Level != result.Must {
		return
	}
	protocols := map[string]bool{}
	for _, r := range o.results {
		if r.ExplainedBy == d.Code && r.Facet.Driver != "through" && slices.Contains(d.Results, r.Key()) {
			protocols[r.Facet.Protocol] = true
		}
	}
	through := slices.DeleteFunc(o.find(query{}), func(r *result.Result) bool {
		return r.Facet.Driver != "through" || !protocols[r.Facet.Protocol]
	})
	if len(through) > 0 {
		d.Results = append(d.Results, keys(through)...)
		o.explain(d)
	}
}

// A query selects results.
type query struct {
	ids      string // globs, separated by spaces; empty for all
	endpoint string // names, separated by spaces; empty for all
	family   string
	facts    []string // of one finding: each must begin some fact
	any      []string // of the same finding: one of these must
	verdict  result.Verdict
	taken    bool // also those that are explained already
}

// find returns the results that a query selects. Without a verdict it looks at
// failures.
func (o *observations) find(q query) []*result.Result {
	if q.verdict == "" {
		q.verdict = result.Fail
	}
	var out []*result.Result
	for _, r := range o.results {
		switch {
		case r.Verdict != q.verdict,
			!q.taken && r.ExplainedBy != "",
			q.ids != "" && !globs(q.ids, r.ID),
			q.endpoint != "" && !slices.Contains(strings.Fields(q.endpoint), r.Facet.Endpoint),
			q.family != "" && r.Facet.Family != q.family:
			continue
		}
		if len(q.facts)+len(q.any) == 0 || slices.ContainsFunc(r.Findings, func(f result.Finding) bool { return q.finding(f) }) {
			out = append(out, r)
		}
	}
	return out
}

// finding says whether one finding has the facts.
func (q query) finding(f result.Finding) bool {
	for _, want := range q.facts {
		if !findingHas(f, want) {
			return false
		}
	}
	return len(q.any) == 0 || slices.ContainsFunc(q.any, func(want string) bool { return findingHas(f, want) })
}

func (o *observations) has(q query) bool { return len(o.find(q)) > 0 }

func globs(patterns, id string) bool {
	for _, p := range strings.Fields(patterns) {
		if ok, _ := path.Match(p, id); ok {
			return true
		}
	}
	return false
}

// hasFact says whether some finding of a result has a fact; see [findingHas].
func hasFact(r *result.Result, want string) bool {
	return slices.ContainsFunc(r.Findings, func(f result.Finding) bool { return findingHas(f, want) })
}

// findingHas says whether a finding has a fact that begins as given. A "~" in
// front looks for the words anywhere in a reply.
func findingHas(f result.Finding, want string) bool {
	words, anywhere := strings.CutPrefix(want, "~")
	for _, fact := range f.Facts {
		if anywhere {
			if strings.HasPrefix(fact, "reply=") && strings.Contains(strings.ToLower(fact), strings.ToLower(words)) {
				return true
			}
		} else if strings.HasPrefix(fact, want) {
			return true
		}
	}
	return false
}

// factValues lists the values of a fact over results, without repeats.
func factValues(rs []*result.Result, name string) []string {
	var vs []string
	for _, r := range rs {
		for i := range r.Findings {
			for _, f := range r.Findings[i].Facts {
				if v, ok := strings.CutPrefix(f, name+"="); ok && !slices.Contains(vs, v) {
					vs = append(vs, v)
				}
			}
		}
	}
	slices.Sort(vs)
	return vs
}

func keys(rs ...[]*result.Result) []string {
	var ks []string
	for _, list := range rs {
		for _, r := range list {
			if k := r.Key(); !slices.Contains(ks, k) {
				ks = append(ks, k)
			}
		}
	}
	return ks
}

func endpointsOf(rs ...[]*result.Result) []string {
	var es []string
	for _, list := range rs {
		for _, r := range list {
			if !slices.Contains(es, r.Facet.Endpoint) {
				es = append(es, r.Facet.Endpoint)
			}
		}
	}
	slices.Sort(es)
	return es
}

func familiesOf(rs ...[]*result.Result) []string {
	var fs []string
	for _, list := range rs {
		for _, r := range list {
			if !slices.Contains(fs, r.Facet.Family) {
				fs = append(fs, r.Facet.Family)
			}
		}
	}
	slices.Sort(fs)
	return fs
}

func concat(lists ...[]*result.Result) []*result.Result {
	var all []*result.Result
	for _, l := range lists {
		for _, r := range l {
			if !slices.Contains(all, r) {
				all = append(all, r)
			}
		}
	}
	return all
}

// files reads the source's configuration, once, and only when a cause asks.
func (o *observations) files() []ConfigFile {
	if !o.configRead {
		o.configRead = true
		if o.src.Config != nil {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(o.ctx), 20*time.Second)
			defer cancel()
			o.config, _ = o.src.Config(ctx)
		}
	}
	return o.config
}

// setting finds where a setting stands last in the files that can be edited,
// and what it is there. Dovecot and Postfix both let the last one win.
func (o *observations) setting(area, name string) (file string, line int, value string) {
	at := o.locate(area, name)
	return at.file, at.line, at.value
}

// A place is where a setting stands, and the blocks around it, outermost first.
type place struct {
	file   string
	line   int
	value  string
	blocks []string
}

func (o *observations) locate(area, name string) place {
	form := regexp.MustCompile(`^\s*` + regexp.QuoteMeta(name) + `\s*=\s*(.*?)\s*$`)
	var found place
	for _, f := range o.files() {
		if f.Command || !strings.Contains(f.Path, area) {
			continue
		}
		var blocks []string
		for i, text := range strings.Split(f.Text, "\n") {
			text = strings.TrimSpace(text)
			switch {
			case strings.HasPrefix(text, "#"):
			case strings.HasSuffix(text, "{"):
				blocks = append(blocks, strings.TrimSpace(strings.TrimSuffix(text, "{")))
			case text == "}" && len(blocks) > 0:
				blocks = blocks[:len(blocks)-1]
			default:
				if m := form.FindStringSubmatch(text); m != nil {
					found = place{f.Path, i + 1, m[1], slices.Clone(blocks)}
				}
			}
		}
	}
	return found
}

// inForce is a setting's value as the server's own command prints it, or as its
// files have it where no command can be asked.
func (o *observations) inForce(command, name string) (string, bool) {
	form := regexp.MustCompile(`(?m)^[ \t]*` + regexp.QuoteMeta(name) + `[ \t]*=[ \t]*(.*?)[ \t]*$`)
	for _, f := range o.files() {
		if f.Command && strings.HasPrefix(f.Path, command) {
			if m := form.FindStringSubmatch(f.Text); m != nil {
				return m[1], true
			}
		}
	}
	area := map[string]string{"postconf -n": "main.cf", "postconf -P": "master.cf", "doveconf -n": "dovecot"}[command]
	if file, _, value := o.setting(area, name); file != "" {
		return value, true
	}
	return "", false
}

// addresses lists a vantage's addresses in both families.
func (o *observations) addresses(vantage string) []string {
	v := o.t.Vantages[vantage]
	if v == nil {
		return nil
	}
	var as []string
	for _, f := range []Family{IP4, IP6} {
		if a := v.Addr(f); a.IsValid() {
			as = append(as, a.String())
		}
	}
	return as
}

// bracketed spells addresses as Postfix lists do.
func bracketed(as []string) []string {
	out := make([]string, len(as))
	for i, a := range as {
		if strings.Contains(a, ":") {
			a = "[" + a + "]"
		}
		out[i] = a
	}
	return out
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

func listed(words []string) string {
	switch len(words) {
	case 0:
		return "none"
	case 1:
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

// observed says in a sentence what was seen at which endpoints.
func observed(rs []*result.Result, what string) string {
	return fmt.Sprintf("%s (%s, %s)", what, listed(endpointsOf(rs)), listed(familiesOf(rs)))
}
