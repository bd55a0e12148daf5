package harness

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
)

// Starter starts a lab with the sources and returns its target and its end.
type Starter func(ctx context.Context, specs []SourceSpec) (*Target, func(context.Context) error, error)

// ProveOptions say what is proved, and where.
type ProveOptions struct {
	Lab   string // "reference" or "docker"
	Start Starter
	Run   run.Options
	// Releases are what is proved: Debian's for dovecot-postfix, and Stalwart's.
	Releases []string
	// From says where a release's server comes from; see [SourceSpec].
	From    map[string]string
	Defects []string // names; empty for all that the lab can have
	// Batch is how many sources one lab holds at a time.
	Batch int
	// Faults injects wire defects at every reply (reference lab only).
	Faults bool
	// Narrow runs a scenario that a defect is not about at one facet of the
	// defective source, and those that it is about at all: on real servers the
	// difference is minutes.
	Narrow bool
	// Brief leaves out, at a remedied source, what did not fail before the
	// remedy: whether it breaks something else is then not asked.
	Brief bool
	// Alternate tries each misconfiguration at one of the releases, in turn: half
	// the servers where there are two, and neither release goes without.
	Alternate bool
	Progress  func(string)
}

// A Matrix is what was seen to fail: the kill matrix.
type Matrix struct {
	Lab        string           `json:"lab"`
	Partial    bool             `json:"partial"` // only named defects were tried
	Good       []GoodTarget     `json:"good"`
	Defects    []DefectRow      `json:"defects"`
	Assertions []AssertionRow   `json:"assertions"`
	Faults     []FaultRow       `json:"faults"`
	Totals     Totals           `json:"totals"`
	Problems   []result.Problem `json:"problems"`
}

// Totals sum a matrix up.
type Totals struct {
	Good       int `json:"good"`  // good targets
	Clean      int `json:"clean"` // of them without an unexpected finding
	Defects    int `json:"defects"`
	Caught     int `json:"caught"`
	Diagnosed  int `json:"diagnosed"`
	Remedied   int `json:"remedied"`
	Assertions int `json:"assertions"`
	Killed     int `json:"killed"`
	Faults     int `json:"faults"`
	Noticed    int `json:"noticed"`
}

// A GoodTarget is a source that is right, or wrong in ways that are known.
type GoodTarget struct {
	Source     string   `json:"source"`
	Results    int      `json:"results"`
	Truths     []string `json:"truths"`     // known findings, seen
	Missing    []string `json:"missing"`    // known findings, not seen
	Unexpected []string `json:"unexpected"` // findings that nobody knows
}

// Clean says that the target showed what is known of it, and nothing else.
func (g GoodTarget) Clean() bool { return len(g.Missing)+len(g.Unexpected) == 0 }

// A DefectRow is one defect at one release.
type DefectRow struct {
	Defect    string   `json:"defect"`
	Source    string   `json:"source"`
	Says      string   `json:"says"`
	Kind      string   `json:"kind"`      // "configuration" or "bug"
	Kills     []string `json:"kills"`     // requirements that must fail
	Failed    []string `json:"failed"`    // requirements that failed
	Scenarios []string `json:"scenarios"` // scenarios that failed
	Survived  []string `json:"survived"`  // requirements that must fail and did not
	Others    []string `json:"others"`    // requirements that failed and that the defect does not name
	Wanted    string   `json:"wanted"`    // the diagnosis that must come first
	Diagnosis []string `json:"diagnosis"` // those that came
	// Unexplained are failures that no diagnosis names as its own.
	Unexplained []string `json:"unexplained"`
	Remedy      string   `json:"remedy"`  // "cured", "none", or what was left
	Problem     string   `json:"problem"` // why it could not be tried
}

// Caught says whether every requirement that must fail did.
func (d DefectRow) Caught() bool {
	return d.Problem == "" && len(d.Survived) == 0 && (len(d.Kills) > 0 || len(d.Failed) > 0)
}

// Diagnosed says whether the right diagnosis came first.
func (d DefectRow) Diagnosed() bool {
	return d.Problem == "" && (d.Wanted == "" || len(d.Diagnosis) > 0 && d.Diagnosis[0] == d.Wanted)
}

// Remedied says whether the remedy cured, or none was owed.
func (d DefectRow) Remedied() bool {
	return d.Remedy == "cured" || d.Kind == "bug" && d.Remedy == "none" || strings.HasPrefix(d.Remedy, "by hand: ")
}

// An AssertionRow is one assertion and what was seen to kill it.
type AssertionRow struct {
	Scenario string   `json:"scenario"`
	At       string   `json:"at"`
	Text     string   `json:"text"`
	KilledBy []string `json:"killed_by"`
}

// A FaultRow is a wire defect that a scenario did not notice.
type FaultRow struct {
	Scenario string `json:"scenario"`
	At       string `json:"at"`
	Kind     string `json:"kind"`
	Verdict  string `json:"verdict"`
}

// Failures says in sentences why a matrix does not prove what it must; none
// when it does.
func (m *Matrix) Failures() []string {
	var out []string
	for _, p := range m.Problems {
		out = append(out, fmt.Sprintf("%s: %s: %s", p.Source, p.Stage, p.Words))
	}
	for _, g := range m.Good {
		if len(g.Unexpected) > 0 {
			out = append(out, fmt.Sprintf("the good target %s shows %s", g.Source, strings.Join(g.Unexpected, ", ")))
		}
		if len(g.Missing) > 0 {
			out = append(out, fmt.Sprintf("the good target %s does not show what is true of it: %s", g.Source, strings.Join(g.Missing, ", ")))
		}
	}
	untried, half := 0, 0
	for _, d := range m.Defects {
		switch {
		case d.Problem == notTried:
			untried++
			continue
		case d.Problem != "":
			out = append(out, fmt.Sprintf("the defect %s could not be tried at %s: %s", d.Defect, d.Source, d.Problem))
			continue
		case !d.Caught():
			out = append(out, fmt.Sprintf("the defect %s survived at %s: %s did not fail", d.Defect, d.Source, orAnything(d.Survived)))
		}
		if d.Kind == "configuration" && len(d.Unexplained) > 0 {
			out = append(out, fmt.Sprintf("the defect %s fails claims at %s that no diagnosis explains: %s", d.Defect, d.Source, strings.Join(d.Unexplained, ", ")))
		}
		if !d.Diagnosed() {
			out = append(out, fmt.Sprintf("the defect %s was diagnosed as %s at %s, and not as %s first", d.Defect, orNothing(d.Diagnosis), d.Source, d.Wanted))
		}
		if d.Remedy == remedyNotTried {
			half++
		} else if d.Caught() && !d.Remedied() {
			out = append(out, fmt.Sprintf("the remedy for the defect %s did not cure %s: %s", d.Defect, d.Source, d.Remedy))
		}
	}
	if untried > 0 {
		out = append(out, fmt.Sprintf("%d of %d defects were not tried", untried, len(m.Defects)))
	}
	if half > 0 {
		out = append(out, fmt.Sprintf("the remedies of %d defects were not tried", half))
	}
	// Until every defect was tried, what was not killed says nothing.
	if m.Lab == "reference" && untried == 0 && !m.Partial {
		for _, a := range m.Assertions {
			if len(a.KilledBy) == 0 {
				out = append(out, fmt.Sprintf("nothing was seen to kill %s at %s: %s", a.Scenario, a.At, a.Text))
			}
		}
	}
	for _, f := range m.Faults {
		out = append(out, fmt.Sprintf("%s did not notice the wire defect %q at %s: %s", f.Scenario, f.Kind, f.At, f.Verdict))
	}
	return out
}

func orAnything(s []string) string {
	if len(s) == 0 {
		return "anything"
	}
	return strings.Join(s, ", ")
}

func orNothing(s []string) string {
	if len(s) == 0 {
		return "nothing"
	}
	return strings.Join(s, ", ")
}

// prover computes a matrix.
type prover struct {
	o      ProveOptions
	m      *Matrix
	killed map[string]map[string]bool // scenario + place -> killers
	all    []*script.Scenario
	mu     sync.Mutex
}

// A trial is one source to be run, and what becomes of its results.
type trial struct {
	spec SourceSpec
	// about says which scenarios are run at all facets in spite of Narrow; nil
	// for all of them.
	about func(*script.Scenario) bool
	// only says which scenarios are run; nil for all of them.
	only func(*script.Scenario) bool
	row  *DefectRow // of a defect
	then func(*result.Run, []result.Result)
	fail func(why string)
}

// notTried is the problem of a defect that a proof did not come to.
const notTried = "it was not tried"

// remedyNotTried is the remedy of a defect that a proof came to, and no further.
const remedyNotTried = "the remedy was not tried"

// Prove runs the scenarios against good targets, against every defect, and
// against every defect with the remedy that was found for it. When it ends
// early, because ctx did or a lab could not be started, the matrix holds what
// was proved until then, and the error says why.
func Prove(ctx context.Context, o ProveOptions) (*Matrix, error) {
	if o.Batch < 1 {
		o.Batch = 8
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	opts, err := options(&Target{}, []Option{With(o.Run)})
	if err != nil {
		return nil, err
	}
	if opts.MaxRisk == script.R0 {
		opts.MaxRisk = script.R5
	}
	opts.Allow = []string{"ban", "flood", "loop", "restart"}
	o.Run = opts
	p := &prover{o: o, m: &Matrix{Lab: o.Lab, Partial: len(o.Defects) > 0, Good: []GoodTarget{}, Defects: []DefectRow{}, Assertions: []AssertionRow{}, Faults: []FaultRow{}, Problems: []result.Problem{}},
		killed: make(map[string]map[string]bool), all: run.Selected(opts.Scenarios, opts.Select)}
	good, err := p.goodTrials()
	if err != nil {
		return nil, err
	}
	var rows []*DefectRow
	var remedies []trial
	defects, err := p.defectTrials(&rows, &remedies)
	if err != nil {
		return nil, err
	}
	err = p.phases(ctx, good, defects, &remedies)
	for _, r := range rows {
		// A bug names nothing that it must fail: whether a selection is about
		// it is seen only from what failed.
		if r.Kind == "bug" && len(opts.Select) > 0 && r.Problem == "" && len(r.Failed) == 0 {
			continue
		}
		p.m.Defects = append(p.m.Defects, *r)
	}
	p.assertions()
	p.totals()
	return p.m, err
}

// phases runs every trial. The remedies are known once the defects were tried.
func (p *prover) phases(ctx context.Context, good, defects []trial, remedies *[]trial) error {
	p.o.Progress(fmt.Sprintf("%d good targets", len(good)))
	if err := p.trials(ctx, good); err != nil {
		return err
	}
	p.o.Progress(fmt.Sprintf("%d defects", len(defects)))
	if err := p.trials(ctx, defects); err != nil {
		return err
	}
	p.o.Progress(fmt.Sprintf("%d remedies", len(*remedies)))
	if err := p.trials(ctx, *remedies); err != nil {
		return err
	}
	if p.o.Faults {
		p.o.Progress("wire defects")
		return p.faults(ctx)
	}
	return nil
}

// trials runs sources in labs of at most Batch.
func (p *prover) trials(ctx context.Context, ts []trial) error {
	for len(ts) > 0 {
		n := min(p.o.Batch, len(ts))
		if err := p.batch(ctx, ts[:n]); err != nil {
			return err
		}
		ts = ts[n:]
	}
	return nil
}

func (p *prover) batch(ctx context.Context, ts []trial) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	specs := make([]SourceSpec, len(ts))
	for i := range ts {
		specs[i] = ts[i].spec
	}
	target, end, err := p.o.Start(ctx, specs)
	if err != nil {
		// Whoever was interrupted may say so in words of its own.
		return errors.Join(ctx.Err(), err)
	}
	defer func() { err = errors.Join(err, end(context.WithoutCancel(ctx))) }()
	o := p.o.Run
	if p.o.Narrow {
		o.OneFacet = func(source string, s *script.Scenario) bool {
			i := slices.IndexFunc(ts, func(t trial) bool { return t.spec.Name == source })
			return i >= 0 && ts[i].about != nil && !ts[i].about(s)
		}
	}
	// A bug is asked for every assertion that it can kill. What is wrong with a
	// configuration is told by what a run sees, which stops at the first.
	o.Onward = func(source string) bool {
		i := slices.IndexFunc(ts, func(t trial) bool { return t.spec.Name == source })
		return i >= 0 && len(ts[i].spec.Bugs) > 0 && ts[i].row != nil && ts[i].row.Wanted == ""
	}
	o.Skip = func(source string, s *script.Scenario) bool {
		i := slices.IndexFunc(ts, func(t trial) bool { return t.spec.Name == source })
		return i >= 0 && ts[i].only != nil && !ts[i].only(s)
	}
	found, err := run.Run(ctx, target, o)
	if err != nil {
		return err
	}
	if found.Exit == result.ExitInterrupted {
		return context.Canceled
	}
	for i := range ts {
		why := ""
		for _, pr := range found.Problems {
			// What a reload rejects is told, and the source is judged all the same.
			if pr.Source == ts[i].spec.Name && pr.Stage != "reload" {
				why = pr.Stage + ": " + pr.Words
			}
		}
		if why != "" {
			ts[i].fail(why)
			continue
		}
		var mine []result.Result
		for _, r := range found.Results {
			if r.Source == ts[i].spec.Name {
				mine = append(mine, r)
			}
		}
		ts[i].then(found, mine)
	}
	return nil
}

// asked says whether a selected scenario is about a requirement.
func (p *prover) asked(requirement string) bool {
	return slices.ContainsFunc(p.all, func(s *script.Scenario) bool { return slices.Contains(s.Requirements, requirement) })
}

// harmless are misbehaviours that no claim may be failed for.
func harmless() []string { return []string{"log-late", "stalwart-log-late"} }

// variants are layers over the guide's recipe that must change no verdict.
func variants(kind, release string) []fixtures.Layer {
	layers, err := fixtures.Variants(kind, release)
	if err != nil {
		return nil
	}
	return layers
}

// unclaimed are misbehaviours that no row of the catalogue is about.
func unclaimed() []string { return []string{"stalwart-roles-ignored"} }

// goodTrials are the targets that must be clean.
func (p *prover) goodTrials() ([]trial, error) {
	var ts []trial
	for _, release := range p.o.Releases {
		kind := fixtures.KindOf(release)
		truths, err := fixtures.Truths(release, fixtures.AsShipped)
		if err != nil {
			return nil, err
		}
		truths = slices.DeleteFunc(truths, func(t fixtures.Truth) bool { return !p.asked(t.Requirement) })
		remedies, err := fixtures.Remedies(kind, release)
		if err != nil {
			return nil, err
		}
		name := kind + "@" + release
		type goodTarget struct {
			spec   SourceSpec
			truths []fixtures.Truth
		}
		goods := []goodTarget{
			{SourceSpec{Name: name, Kind: kind, Version: release, Profile: fixtures.Instrumented}, nil},
			{SourceSpec{Name: name + " as-shipped", Kind: kind, Version: release, Profile: fixtures.AsShipped}, truths},
			{SourceSpec{Name: name + " as-shipped with remedies", Kind: kind, Version: release, Profile: fixtures.AsShipped, Layers: []fixtures.Layer{remedies}}, nil},
		}
		if p.o.Lab == "reference" {
			for _, b := range harmless() {
				if bug, _ := BugNamed(b); !bug.of(kind) {
					continue
				}
				goods = append(goods, goodTarget{SourceSpec{Name: name + " with " + b, Kind: kind, Version: release, Profile: fixtures.Instrumented, Bugs: []string{b}}, nil})
			}
		}
		for _, g := range variants(kind, release) {
			goods = append(goods, goodTarget{SourceSpec{Name: name + " " + g.Name, Kind: kind, Version: release, Profile: fixtures.Instrumented, Layers: []fixtures.Layer{g}}, nil})
		}
		for _, g := range goods {
			g.spec.From = p.o.From[release]
			ts = append(ts, trial{spec: g.spec,
				then: func(found *result.Run, rs []result.Result) {
					p.m.Good = append(p.m.Good, judgeGood(g.spec, g.truths, rs, found))
					p.killTrue(g.truths, rs)
				},
				fail: func(why string) {
					p.m.Problems = append(p.m.Problems, result.Problem{Source: g.spec.Name, Stage: "start", Words: why})
				}})
		}
	}
	return ts, nil
}

func judgeGood(spec SourceSpec, truths []fixtures.Truth, rs []result.Result, found *result.Run) GoodTarget {
	g := GoodTarget{Source: spec.Name, Results: len(rs), Truths: []string{}, Missing: []string{}, Unexpected: []string{}}
	seen := make(map[string]bool)
	for i := range rs {
		r := &rs[i]
		if r.Verdict == result.Pass || r.Verdict == result.Unsupported {
			continue
		}
		known := false
		for _, t := range truths {
			if r.Verdict == result.Fail && slices.Contains(r.Requirements, t.Requirement) && r.ExplainedBy == t.Diagnosis {
				known, seen[t.Requirement] = true, true
			}
		}
		if !known {
			g.Unexpected = append(g.Unexpected, fmt.Sprintf("%s (%s: %s)", r.Key(), r.Verdict, because(r)))
		}
	}
	for _, t := range truths {
		if seen[t.Requirement] {
			g.Truths = append(g.Truths, t.Requirement+" "+t.Diagnosis)
		} else {
			g.Missing = append(g.Missing, t.Requirement+" "+t.Diagnosis)
		}
	}
	return g
}

// killTrue counts what is truly wrong with a good target as seen to fail.
func (p *prover) killTrue(truths []fixtures.Truth, rs []result.Result) {
	for i := range rs {
		r := &rs[i]
		if r.Verdict != result.Fail || !slices.ContainsFunc(truths, func(t fixtures.Truth) bool { return r.ExplainedBy == t.Diagnosis }) {
			continue
		}
		for _, f := range r.Findings {
			for _, fact := range f.Facts {
				if place, ok := strings.CutPrefix(fact, "assert="); ok {
					p.kill(r.ID, place, "as shipped")
				}
			}
		}
	}
}

func because(r *result.Result) string {
	if len(r.Findings) > 0 {
		return r.Findings[0].Found
	}
	return r.Reason
}

// defectTrials are the sources with one defect each. The remedy that the run
// comes to is tried afterwards.
func (p *prover) defectTrials(rows *[]*DefectRow, remedies *[]trial) ([]trial, error) {
	all, err := fixtures.Defects()
	if err != nil {
		return nil, err
	}
	var ts []trial
	wanted := func(name string) bool { return len(p.o.Defects) == 0 || slices.Contains(p.o.Defects, name) }
	nth := 0
	for _, d := range all {
		if !wanted(d.Name) || !slices.Contains(d.Labs, p.o.Lab) {
			continue
		}
		releases := p.o.Releases
		if p.o.Alternate {
			at := nth % len(releases)
			releases = releases[at : at+1]
		}
		nth++
		for _, release := range releases {
			layer, err := d.Layer(release)
			if err != nil {
				continue // the defect is none of this release
			}
			kills := slices.DeleteFunc(slices.Clone(d.Kills), func(id string) bool { return !p.asked(id) })
			if len(kills) == 0 {
				continue // nothing that was selected is about it
			}
			base := fmt.Sprintf("%s@%s", d.Source, release)
			row := &DefectRow{Defect: d.Name, Source: base, Says: d.Says, Kind: "configuration", Kills: kills, Wanted: d.Diagnosis, Problem: notTried, Unexplained: []string{}}
			*rows = append(*rows, row)
			spec := SourceSpec{Name: base + " with " + d.Name, Kind: d.Source, Version: release, Profile: d.Profile, From: p.o.From[release], Layers: []fixtures.Layer{layer}}
			also := make([]string, 0, len(d.Also))
			for _, a := range d.Also {
				also = append(also, a.ID)
			}
			ts = append(ts, trial{spec: spec,
				about: func(s *script.Scenario) bool {
					return slices.ContainsFunc(s.Requirements, func(id string) bool { return slices.Contains(d.Kills, id) || slices.Contains(also, id) })
				},
				then: func(found *result.Run, rs []result.Result) {
					p.judgeDefect(row, d.Name, also, found, spec, rs)
					if t, ok := p.remedyTrial(row, spec, found, rs); ok {
						*remedies = append(*remedies, t)
					} else if d.ByHand != "" {
						row.Remedy = "by hand: " + d.ByHand
					}
				},
				fail: func(why string) { row.Problem = why }})
		}
	}
	if p.o.Lab == "reference" {
		for _, b := range Bugs() {
			if !wanted(b.Name) || slices.Contains(harmless(), b.Name) || slices.Contains(unclaimed(), b.Name) {
				continue
			}
			for _, release := range p.o.Releases {
				kind := fixtures.KindOf(release)
				if !b.of(kind) {
					continue
				}
				if b.Name == "received-shows-proxy" && release == "trixie" {
					continue // its Postfix hides who submitted, so there is nothing to see
				}
				base := fmt.Sprintf("%s@%s", kind, release)
				row := &DefectRow{Defect: b.Name, Source: base, Says: b.Says, Kind: "bug", Kills: []string{}, Remedy: "none", Problem: notTried, Unexplained: []string{}}
				switch b.Name {
				case bugNAT, bugNATAll:
					row.Wanted = "MP-NAT"
				case bugTurnsAway:
					row.Wanted = "MP-BUSY"
				}
				*rows = append(*rows, row)
				spec := SourceSpec{Name: base + " with " + b.Name, Kind: kind, Version: release, Profile: fixtures.Instrumented, Bugs: []string{b.Name}}
				ts = append(ts, trial{spec: spec, row: row,
					then: func(found *result.Run, rs []result.Result) { p.judgeDefect(row, b.Name, nil, found, spec, rs) },
					fail: func(why string) { row.Problem = why }})
			}
		}
	}
	return ts, nil
}

func (p *prover) judgeDefect(row *DefectRow, name string, also []string, found *result.Run, spec SourceSpec, rs []result.Result) {
	row.Problem, row.Unexplained = "", []string{}
	failed := make(map[string]bool)
	scenarios := make(map[string]bool)
	for i := range rs {
		r := &rs[i]
		if r.Verdict != result.Fail {
			// A log that shows nothing makes claims impossible to judge: that
			// is how its defect is caught.
			if row.Kind == "bug" && r.Verdict == result.Inconclusive {
				scenarios[r.ID+" (inconclusive)"] = true
				failed["inconclusive"] = true
			}
			continue
		}
		scenarios[r.ID] = true
		if r.ExplainedBy == "" {
			row.Unexplained = append(row.Unexplained, r.ID+" "+r.Facet.String())
		}
		for _, id := range r.Requirements {
			failed[id] = true
		}
		for _, f := range r.Findings {
			if f.Code == "line-end" {
				continue // what was asserted held, in a line that ended wrongly
			}
			for _, fact := range f.Facts {
				if place, ok := strings.CutPrefix(fact, "assert="); ok {
					p.kill(r.ID, place, name)
				}
			}
		}
	}
	row.Failed, row.Scenarios = sorted(failed), sorted(scenarios)
	for _, id := range row.Kills {
		if !failed[id] {
			row.Survived = append(row.Survived, id)
		}
	}
	for _, id := range row.Failed {
		if len(row.Kills) > 0 && !slices.Contains(row.Kills, id) && !slices.Contains(also, id) {
			row.Others = append(row.Others, id)
		}
	}
	for _, d := range found.Diagnoses {
		if d.Source == spec.Name {
			row.Diagnosis = append(row.Diagnosis, d.Code)
		}
	}
}

func (p *prover) kill(scenario, place, by string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := scenario + "\x00" + place
	if p.killed[key] == nil {
		p.killed[key] = make(map[string]bool)
	}
	p.killed[key][by] = true
}

// RemedyLayer turns a remedy into the layer that applies it in a lab.
func RemedyLayer(r result.Remedy) (fixtures.Layer, bool) {
	l := fixtures.Layer{Name: "remedy", Files: map[string]string{}}
	for _, c := range r.Changes {
		if c.Layer == "" {
			continue
		}
		if c.Layer == "postfix/main.cf" || c.Layer == "postfix/master.cf" || strings.HasPrefix(c.Layer, "dovecot/") || strings.HasPrefix(c.Layer, "stalwart/") {
			l.Files[c.Layer] += c.Text + "\n"
		}
	}
	return l, len(l.Files) > 0
}

// remedyTrial is the defective source with the remedies that were found laid
// over it: what failed must not fail any more.
func (p *prover) remedyTrial(row *DefectRow, spec SourceSpec, found *result.Run, rs []result.Result) (trial, bool) {
	before := make(map[string]result.Verdict)
	for i := range rs {
		before[rs[i].ID+" "+rs[i].Facet.String()] = rs[i].Verdict
	}
	cured := spec
	cured.Name += ", remedied"
	cured.Layers = slices.Clone(spec.Layers)
	for _, d := range found.Diagnoses {
		if d.Source != spec.Name {
			continue
		}
		if l, ok := RemedyLayer(d.Remedy); ok {
			cured.Layers = append(cured.Layers, l)
		}
	}
	if len(cured.Layers) == len(spec.Layers) {
		row.Remedy = "no remedy names a setting"
		return trial{}, false
	}
	failed := make(map[string]bool)
	for i := range rs {
		failed[rs[i].ID] = failed[rs[i].ID] || rs[i].Verdict == result.Fail
	}
	about := func(s *script.Scenario) bool { return failed[s.ID] }
	var only func(*script.Scenario) bool
	if p.o.Brief {
		only = about
	}
	row.Remedy = remedyNotTried
	return trial{spec: cured, about: about, only: only,
		then: func(_ *result.Run, rs []result.Result) {
			var left []string
			for i := range rs {
				r := &rs[i]
				was := before[r.ID+" "+r.Facet.String()]
				// What could not be judged before, for a reason of its own, need
				// not be judged now.
				if r.Verdict != result.Pass && r.Verdict != result.Unsupported && !(r.Verdict == result.Inconclusive && was == r.Verdict) {
					word := "still fails"
					if was == result.Pass {
						word = "is new"
					}
					left = append(left, fmt.Sprintf("%s %s %s: %s", r.ID, r.Facet, word, because(r)))
				}
			}
			row.Remedy = "cured"
			if len(left) > 0 {
				row.Remedy = strings.Join(left[:min(len(left), 3)], "; ")
				if len(left) > 3 {
					row.Remedy += fmt.Sprintf("; and %d more", len(left)-3)
				}
			}
		},
		fail: func(why string) { row.Remedy = "the remedied source does not start: " + why }}, true
}

// faults injects a wire defect at every reply of every scenario, at one facet.
func (p *prover) faults(ctx context.Context) (err error) {
	release := p.o.Releases[0]
	kind := fixtures.KindOf(release)
	spec := SourceSpec{Name: kind + "@" + release, Kind: kind, Version: release, Profile: fixtures.Instrumented, From: p.o.From[release]}
	target, end, err := p.o.Start(ctx, []SourceSpec{spec})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end(context.WithoutCancel(ctx))) }()
	for _, s := range p.all {
		for _, at := range s.ReplyPlaces(spec.Kind, spec.Version, spec.Profile) {
			kinds := run.FaultKinds()
			if at.Close {
				kinds = []run.FaultKind{run.FaultSilence}
			}
			for _, kind := range kinds {
				o := p.o.Run
				o.Scenarios, o.Select, o.Repeat = []*script.Scenario{s}, nil, 1
				o.Fault = &run.Fault{At: at.Pos.String(), Kind: kind}
				o.OneFacet = func(string, *script.Scenario) bool { return true }
				found, err := run.Run(ctx, target, o)
				if err != nil {
					return err
				}
				for i := range found.Results {
					r := &found.Results[i]
					if r.Verdict == result.Unsupported {
						continue
					}
					p.m.Totals.Faults++
					if r.Verdict == result.Fail {
						p.m.Totals.Noticed++
						for _, f := range r.Findings {
							for _, fact := range f.Facts {
								if place, ok := strings.CutPrefix(fact, "assert="); ok {
									p.kill(r.ID, place, "wire:"+string(kind))
								}
							}
						}
						continue
					}
					p.m.Faults = append(p.m.Faults, FaultRow{s.ID, at.Pos.String(), string(kind), fmt.Sprintf("%s %s", r.Verdict, because(r))})
				}
			}
		}
	}
	return nil
}

// assertions lists every assertion with what killed it. Wire defects do not
// count for assertions: they cover the plain replies.
func (p *prover) assertions() {
	var releases []script.Release
	for _, r := range p.o.Releases {
		releases = append(releases, script.Release{Kind: fixtures.KindOf(r), Version: r})
	}
	for _, s := range p.all {
		for _, a := range s.AssertionsAt(releases...) {
			row := AssertionRow{Scenario: s.ID, At: a.Pos.String(), Text: a.Text, KilledBy: []string{}}
			for by := range p.killed[s.ID+"\x00"+a.Pos.String()] {
				if !strings.HasPrefix(by, "wire:") {
					row.KilledBy = append(row.KilledBy, by)
				}
			}
			sort.Strings(row.KilledBy)
			p.m.Assertions = append(p.m.Assertions, row)
		}
	}
}

func (p *prover) totals() {
	t := &p.m.Totals
	t.Good = len(p.m.Good)
	for _, g := range p.m.Good {
		if g.Clean() {
			t.Clean++
		}
	}
	for _, d := range p.m.Defects {
		t.Defects++
		if d.Caught() {
			t.Caught++
		}
		if d.Diagnosed() {
			t.Diagnosed++
		}
		if d.Remedied() {
			t.Remedied++
		}
	}
	for _, a := range p.m.Assertions {
		t.Assertions++
		if len(a.KilledBy) > 0 {
			t.Killed++
		}
	}
}

func sorted(m map[string]bool) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}
