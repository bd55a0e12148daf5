package run

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"sort"
	"strings"

	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/script"
)

// A Plan is what a run will connect to and send, known before the first dial.
type Plan struct {
	Items    []PlanItem        `json:"items"`
	SHA256   string            `json:"sha256"`
	MaxRisk  string            `json:"max_risk"` // the highest among the items
	Excluded []result.Excluded `json:"excluded"`
	// Blame by vantage, over the whole run.
	Blame map[string]script.Blame `json:"blame"`
	// Demand is what the whole run asks of a target with [Limits].
	Demand *Demand `json:"demand,omitempty"`

	items []*item
}

// A PlanItem is one scenario at one source, with all its facets.
type PlanItem struct {
	ID       string   `json:"id"`
	Source   string   `json:"source"`
	Claim    string   `json:"claim"`
	Risk     string   `json:"risk"`
	Driver   string   `json:"driver"`
	Facets   []string `json:"facets"`
	Connects []string `json:"connects"` // "proxy 203.0.113.10 -> imaps 203.0.113.100:993"
	Hazards  []string `json:"hazards"`
	Sends    string   `json:"sends"` // the steps, expanded
	Blocked  string   `json:"blocked,omitempty"`
	// NotRun says why some of the facets are not run, where others are.
	NotRun []string `json:"not_run,omitempty"`
}

// An item is one scenario at one source and facet.
type item struct {
	scenario *script.Scenario
	source   *Source
	facet    result.Facet
	driver   string
	users    []string
	// blocked says why the item is not run: the verdict and its reason.
	verdict result.Verdict
	reason  string

	risky     bool              // not run for its risk alone
	lent      []int             // indexes of the accounts, where the plan chooses them
	witnesses []*script.Witness // those whose log must be watched
	gate      bool              // J-10: whether the source sees the proxy as itself
	weight    int               // how long it is likely to wait; heavier ones start first
}

func (it *item) blank() result.Result {
	s := it.scenario
	return result.Result{
		ID: s.ID, Source: it.source.Name, Origin: it.source.Origin, Level: s.Level, Claim: s.Claim,
		Requirements: s.RequirementsOf(it.source.Kind), Spec: s.Spec, Facet: it.facet, Risk: s.Risk().String(),
		Phases: []result.Phase{}, Findings: []result.Finding{}, Witness: []result.Witness{},
		File: s.Path, Line: 1,
	}
}

// SelectionError says that a selection names nothing, or something unknown.
type SelectionError struct {
	Word  string
	Known []string
	// Empty says that the word is a glob that matched nothing.
	Empty bool
}

func (e *SelectionError) Error() string {
	if e.Empty {
		return fmt.Sprintf("--select %s matches no scenario; `mailproof list` shows them", e.Word)
	}
	return fmt.Sprintf("--select %s: no scenario has this id or requirement; `mailproof list` shows them", e.Word)
}

// selectScenarios keeps what the words select, in the order of the ids.
func selectScenarios(all []*script.Scenario, words []string) ([]*script.Scenario, error) {
	if len(words) == 0 {
		return all, nil
	}
	keep := make(map[string]bool)
	for _, w := range words {
		found := false
		for _, s := range all {
			if selects(w, s) {
				keep[s.ID], found = true, true
			}
		}
		if !found {
			return nil, &SelectionError{Word: w, Empty: true}
		}
	}
	var out []*script.Scenario
	for _, s := range all {
		if keep[s.ID] {
			out = append(out, s)
		}
	}
	return out, nil
}

// Selected lists what the words select; words that select nothing are passed
// over. [MakePlan] judges them.
func Selected(all []*script.Scenario, words []string) []*script.Scenario {
	if len(words) == 0 {
		return all
	}
	var out []*script.Scenario
	for _, s := range all {
		if slices.ContainsFunc(words, func(w string) bool { return selects(w, s) }) {
			out = append(out, s)
		}
	}
	return out
}

func selects(word string, s *script.Scenario) bool {
	if slices.Contains(s.Requirements, strings.ToUpper(word)) || s.ID == word {
		return true
	}
	// "*" crosses dots, and slashes do not occur in ids.
	ok, err := path.Match(word, s.ID)
	return err == nil && ok
}

// MakePlan selects scenarios and works out what a run would do.
func MakePlan(t *Target, o Options) (*Plan, error) {
	chosen, err := selectScenarios(o.Scenarios, o.Select)
	if err != nil {
		return nil, err
	}
	p := &Plan{Excluded: []result.Excluded{}, Blame: map[string]script.Blame{}}
	excluded := make(map[string]string)
	for _, e := range o.Exclude {
		excluded[e.ID] = e.Reason
	}
	// Claims about kinds of sources that are not there are left out, unless
	// they are all that was asked for: then that must be told.
	some := slices.ContainsFunc(chosen, func(s *script.Scenario) bool {
		return slices.ContainsFunc(t.Sources, func(src *Source) bool { return ofKind(src.Kind, s.Needs) })
	})
	var groups [][]*item
	for _, src := range t.Sources {
		for _, s := range chosen {
			if o.Skip != nil && o.Skip(src.Name, s) {
				continue
			}
			if reason, ok := excluded[s.ID]; ok {
				if !slices.ContainsFunc(p.Excluded, func(e result.Excluded) bool { return e.ID == s.ID }) {
					p.Excluded = append(p.Excluded, result.Excluded{ID: s.ID, Reason: reason})
				}
				continue
			}
			if some && !ofKind(src.Kind, s.Needs) {
				continue // a claim about another kind of source
			}
			items := expand(t, src, s, o)
			if o.OneFacet != nil && o.OneFacet(src.Name, s) {
				items = oneFacet(items)
			}
			if t.Limits != nil && s.Driver() == "through" && s.Demand().WrongSignIns() > 0 {
				// A server holds back a client whose sign-ins fail, longer each
				// time: beyond one facet of each protocol the proxy gives up first.
				items = oneFacet(items)
			} else if t.Limits != nil && s.Demand().WrongSignIns() > 0 {
				// Each costs an account one of its few failures, and that the proxy is
				// believed at every port is seen by sign-ins that succeed.
				items = onePerFamily(items)
			}
			if len(items) > 0 {
				groups = append(groups, items)
			}
		}
	}
	if t.Limits != nil {
		p.Demand = limit(t, o, groups)
	}
	maxRisk := script.R0
	for _, items := range groups {
		src, s := items[0].source, items[0].scenario
		pi := describe(t, src, s, items)
		p.Items = append(p.Items, pi)
		p.items = append(p.items, items...)
		if pi.Blocked != "" {
			continue
		}
		maxRisk = max(maxRisk, s.Risk())
		by := s.Blame()
		if t.Limits != nil {
			by = blame(s)
		}
		for v, b := range by {
			for _, it := range items {
				if it.verdict == "" || t.Limits == nil {
					p.Blame[v] = p.Blame[v].Add(b)
				}
			}
		}
	}
	p.MaxRisk = maxRisk.String()
	p.SHA256 = p.hash()
	return p, nil
}

// hash covers the canonical plan: what would be sent, from where, to where.
// It does not depend on jobs, repeats or shards, nor on the order of anything.
func (p *Plan) hash() string {
	lines := make([]string, 0, len(p.Items))
	for _, it := range p.Items {
		lines = append(lines, strings.Join([]string{it.ID, it.Source, it.Risk, strings.Join(it.Facets, " "),
			strings.Join(it.Connects, "\n"), it.Blocked, it.Sends}, "\n"))
	}
	if p.Demand != nil {
		d := *p.Demand
		d.AtMost, d.Sweep = 0, 0 // how long it may take is nothing that is sent
		lines = append(lines, fmt.Sprintf("demand %+v", d))
	}
	sort.Strings(lines)
	sum := sha256.Sum256([]byte(strings.Join(lines, "\n\x00\n")))
	return hex.EncodeToString(sum[:])
}

// expand makes one item for each facet of a scenario at a source.
func expand(t *Target, src *Source, s *script.Scenario, o Options) []*item {
	endpoints := s.Over
	if len(endpoints) == 0 {
		s.Walk(func(st script.Step) {
			if op, ok := st.(*script.Open); ok && len(endpoints) == 0 && op.Endpoint != "" {
				endpoints = []string{op.Endpoint}
			}
		})
	}
	driver := s.Driver()
	users := s.Users()
	var witnesses []*script.Witness
	s.Walk(func(st script.Step) {
		if w, ok := st.(*script.Witness); ok {
			witnesses = append(witnesses, w)
		}
	})
	gate := slices.Contains(s.Requirements, "J-10")
	weight := 0
	for _, b := range s.Blame() {
		weight += b.FailedSignIns
	}
	risk := s.Risk()
	var items []*item
	for _, e := range endpoints {
		for _, f := range s.Families {
			it := &item{scenario: s, source: src, driver: driver, users: users, witnesses: witnesses, gate: gate, weight: weight}
			ep, ok := src.Endpoint(e)
			it.facet = result.Facet{Protocol: ep.Protocol, Endpoint: e, Port: int(ep.Port), TLS: ep.TLS, Family: f, Driver: driver}
			if driver == "through" && t.Proxy != nil {
				if pe, ok := t.Proxy.Endpoint(e); ok {
					it.facet.Port, it.facet.TLS = int(pe.Port), pe.TLS
				}
			}
			switch {
			case !meets(t, src, s.Needs, e):
				it.verdict, it.reason = result.Unsupported, "it needs "+strings.Join(s.Needs, " ")+", and the source was declared as "+src.declared(e)
				if slices.Contains(s.Needs, "public-proxy") && t.Proxy == nil {
					it.reason = "it needs a proxy before the source, and the target has none"
				}
			case !ok:
				it.verdict, it.reason = result.Unsupported, "the source was declared without the endpoint "+e
			case risk > o.MaxRisk:
				it.risky = true
				it.verdict, it.reason = result.Inconclusive, fmt.Sprintf("it %s (%s), and only %s was allowed: to judge it, add --max-risk %s", risk.Says(), risk, o.MaxRisk, risk)
			default:
				for _, h := range s.Hazards {
					if !slices.Contains(o.Allow, h) {
						it.verdict, it.reason = result.Inconclusive, fmt.Sprintf("it has the hazard %q: to judge it, add --allow %s", h, h)
					}
				}
			}
			items = append(items, it)
		}
	}
	return items
}

// oneFacet keeps the facet that runs the most steps.
func oneFacet(items []*item) []*item {
	for _, it := range items {
		if it.facet.TLS == "starttls" {
			return []*item{it}
		}
	}
	return items[:min(1, len(items))]
}

// onePerFamily is [oneFacet] in each address family.
func onePerFamily(items []*item) []*item {
	by := map[string][]*item{}
	var families []string
	for _, it := range items {
		if by[it.facet.Family] == nil {
			families = append(families, it.facet.Family)
		}
		by[it.facet.Family] = append(by[it.facet.Family], it)
	}
	var out []*item
	for _, f := range families {
		out = append(out, oneFacet(by[f])...)
	}
	return out
}

// ofKind says whether a scenario is about sources of a kind.
func ofKind(kind string, needs []string) bool {
	named := false
	for _, n := range needs {
		if k, _, _ := strings.Cut(n, "@"); k == kind {
			return true
		} else if k == "dovecot-postfix" || k == "stalwart" || k == "generic" {
			named = true
		}
	}
	return !named
}

// meets answers "needs" by what the target was declared to be.
func meets(t *Target, src *Source, needs []string, endpoint string) bool {
	kinds, kindMet := 0, false
	for _, n := range needs {
		switch n {
		case "public-proxy":
			if t.Proxy == nil {
				return false
			}
		case "as-shipped", "instrumented":
			if src.Profile != n {
				return false
			}
		default:
			kinds++
			if src.is(n, endpoint) {
				kindMet = true
			}
		}
	}
	return kinds == 0 || kindMet
}

// holds says whether one of an if's conditions is so.
func (it *item) holds(conds []string) bool {
	for _, c := range conds {
		switch {
		case it.source.is(c, it.facet.Endpoint), c == it.facet.Family, c == it.facet.TLS, c == it.facet.Endpoint, c == it.source.Profile:
			return true
		}
	}
	return false
}

// where is the endpoint, address and TLS configuration that an open step means.
func (it *item) where(t *Target, o *script.Open) (Endpoint, netip.Addr, *tls.Config, error) {
	name := o.Endpoint
	if name == "" {
		name = it.facet.Endpoint
	}
	f := Family(it.facet.Family)
	if o.Target == "proxy" {
		if t.Proxy == nil {
			return Endpoint{}, netip.Addr{}, nil, &missingVantage{"public proxy", f}
		}
		ep, ok := t.Proxy.Endpoint(name)
		addr := t.Proxy.Addr(f)
		if !ok || !addr.IsValid() {
			return Endpoint{}, netip.Addr{}, nil, &openClaim{reason: fmt.Sprintf("the proxy has no endpoint %s in %s", name, f)}
		}
		return ep, addr, t.proxyTLS(it.source), nil
	}
	ep, ok := it.source.Endpoint(name)
	if !ok {
		return Endpoint{}, netip.Addr{}, nil, &openClaim{reason: "the source was declared without the endpoint " + name}
	}
	addr := it.source.Addr(o.Vantage, f)
	if !addr.IsValid() {
		return Endpoint{}, netip.Addr{}, nil, &missingVantage{o.Vantage, f}
	}
	return ep, addr, t.sourceTLS(it.source), nil
}

// describe renders what a scenario's items would do.
func describe(t *Target, src *Source, s *script.Scenario, items []*item) PlanItem {
	pi := PlanItem{ID: s.ID, Source: src.Name, Claim: s.Claim, Risk: s.Risk().String(), Driver: s.Driver(),
		Facets: []string{}, Connects: []string{}, Hazards: s.Hazards, Sends: s.Expanded()}
	if pi.Hazards == nil {
		pi.Hazards = []string{}
	}
	blocked := 0
	for _, it := range items {
		pi.Facets = append(pi.Facets, it.facet.String())
		if it.verdict != "" {
			blocked++
			pi.Blocked = it.reason
			pi.NotRun = append(pi.NotRun, it.facet.String()+": "+it.reason)
			continue
		}
		s.Walk(func(st script.Step) {
			o, ok := st.(*script.Open)
			if !ok {
				return
			}
			ep, addr, _, err := it.where(t, o)
			v := t.Vantages[o.Vantage]
			line := ""
			switch {
			case v == nil || !v.Addr(Family(it.facet.Family)).IsValid():
				line = fmt.Sprintf("%s (no such vantage in %s)", o.Vantage, it.facet.Family)
			case err != nil:
				line = fmt.Sprintf("%s: %v", o.Vantage, err)
			default:
				line = fmt.Sprintf("%s %s -> %s %s", o.Vantage, v.Addr(Family(it.facet.Family)), ep.Name, netip.AddrPortFrom(addr, ep.Port))
			}
			if !slices.Contains(pi.Connects, line) {
				pi.Connects = append(pi.Connects, line)
			}
		})
	}
	if blocked < len(items) {
		pi.Blocked = ""
	} else {
		pi.NotRun = nil
	}
	return pi
}
