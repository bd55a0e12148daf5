package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/containers"
	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/scenarios"
)

// targetFlags say what is judged.
type targetFlags struct {
	Lab     string   `enum:"reference,docker," default:"" placeholder:"reference|docker" help:"The lab to start. Without it: docker if an engine answers, else reference."`
	Source  []string `sep:"none" placeholder:"KIND[@VERSION][=FROM]" help:"A source: dovecot-postfix[@bookworm|@trixie], with =reference for the reference server; stalwart[@0.15.5], with =exec:PATH for a program of your own or =image:REF. May be repeated."`
	Profile string   `enum:"instrumented,as-shipped" default:"instrumented" help:"The sources' base configuration: instrumented or as-shipped."`
	Overlay []string `sep:"none" placeholder:"KIND[@VERSION]=DIR" help:"Lay your own configuration over the lab's source. May be repeated."`
	Defect  []string `sep:"none" placeholder:"[KIND:]NAME" help:"Switch on a named misconfiguration. May be repeated."`
	Proxy   string   `enum:"reference" default:"reference" help:"The proxy before the sources."`
}

// selectionFlags say which scenarios are taken.
type selectionFlags struct {
	Select    []string `sep:"none" placeholder:"GLOB|REQUIREMENT" help:"Take scenarios by id (* crosses dots) or requirement. May be repeated."`
	Scenarios string   `placeholder:"DIR" help:"Take your own scenarios from a folder instead of ours."`
}

// all reads the scenarios that can be selected.
func (f selectionFlags) all() ([]*script.Scenario, error) {
	if f.Scenarios == "" {
		return scenarios.All()
	}
	info, err := os.Stat(f.Scenarios)
	if err != nil {
		return nil, usagef("--scenarios: %w", err)
	}
	if !info.IsDir() {
		return nil, usagef("--scenarios %s: it is no folder", f.Scenarios)
	}
	list, err := scenarios.ReadDir(f.Scenarios)
	if err != nil {
		return nil, usageError{err}
	}
	if len(list) == 0 {
		return nil, usagef("--scenarios %s: it has no GROUP/NAME.txtar below it", f.Scenarios)
	}
	return list, nil
}

// sources works out which sources the flags name.
func (f targetFlags) sources(lab string) ([]harness.SourceSpec, error) {
	words := f.Source
	if len(words) == 0 {
		words = []string{fixtures.DovecotPostfix}
	}
	var specs []harness.SourceSpec
	add := func(s harness.SourceSpec) error {
		if slices.ContainsFunc(specs, func(o harness.SourceSpec) bool { return o.Name == s.Name }) {
			return usagef("--source: %s is named twice", s.Name)
		}
		specs = append(specs, s)
		return nil
	}
	for _, w := range words {
		name, origin, has := strings.Cut(w, "=")
		kind, release, one := strings.Cut(name, "@")
		releases := fixtures.Releases(kind)
		if len(releases) == 0 {
			return nil, usagef("--source %s: unknown kind %q; there are %s", w, kind, strings.Join(fixtures.Kinds(), " and "))
		}
		from, err := sourceFrom(w, kind, origin, has, lab)
		if err != nil {
			return nil, err
		}
		if one {
			if !slices.Contains(releases, release) {
				return nil, usagef("--source %s: unknown version %q; there are %s", w, release, strings.Join(releases, " "))
			}
			releases = []string{release}
		}
		for _, r := range releases {
			if err := add(harness.SourceSpec{Name: kind + "@" + r, Kind: kind, Version: r, Profile: f.Profile, From: from}); err != nil {
				return nil, err
			}
		}
	}
	for _, word := range f.Defect {
		if err := layDefect(specs, word, lab); err != nil {
			return nil, err
		}
	}
	for _, word := range f.Overlay {
		if err := layOverlay(specs, word, lab); err != nil {
			return nil, err
		}
	}
	return specs, nil
}

// sourceFrom is where a source's server comes from, as the flag says.
func sourceFrom(word, kind, origin string, has bool, lab string) (string, error) {
	how, what, _ := strings.Cut(origin, ":")
	switch {
	case !has, origin == "reference" && lab == "reference":
		return "", nil
	case (how == "exec" || how == "image") && what != "" && kind == fixtures.Stalwart:
		if lab != "docker" {
			return "", usagef("--source %s: a real server runs in the docker lab: add --lab docker", word)
		}
		if how == "exec" {
			if info, err := os.Stat(what); err != nil {
				return "", usagef("--source %s: %w", word, err)
			} else if !info.Mode().IsRegular() {
				return "", usagef("--source %s: %s is no file", word, what)
			}
		}
		return origin, nil
	case origin == "reference" && kind == fixtures.Stalwart:
		return origin, nil
	case kind == fixtures.Stalwart:
		return "", usagef("--source %s: %q cannot be used: a source of kind %s is =exec:PATH, =image:REF or =reference in the docker lab", word, origin, kind)
	}
	return "", usagef("--source %s: %q cannot be used: sources of kind %s are built by the docker lab, or stand as =reference in --lab reference", word, origin, kind)
}

// layDefect switches a defect on at every source that it is for.
func layDefect(specs []harness.SourceSpec, word, lab string) error {
	kind, name, one := strings.Cut(word, ":")
	if !one {
		kind, name = "", word
	}
	laid := false
	for i := range specs {
		s := &specs[i]
		if kind != "" && kind != s.Kind {
			continue
		}
		if bug, ok := harness.BugNamed(name); ok {
			if bug.Kind != "" && bug.Kind != s.Kind {
				continue
			}
			if lab != "reference" {
				return usagef("--defect %s: it is a misbehaviour of the server itself, which only the reference lab can show: add --lab reference", word)
			}
			s.Bugs = append(s.Bugs, bug.Name)
			laid = true
			continue
		}
		d, err := fixtures.DefectNamed(name)
		if err == nil && d.Source != s.Kind {
			continue
		}
		if err != nil {
			return usagef("--defect %s: %w (`mailproof list --defects` describes them)", word, err)
		}
		if !slices.Contains(d.Labs, lab) {
			return usagef("--defect %s: it is for the %s lab", word, strings.Join(d.Labs, " or "))
		}
		layer, err := d.Layer(s.Version)
		if err != nil {
			continue
		}
		s.Layers = append(s.Layers, layer)
		laid = true
	}
	if !laid {
		return usagef("--defect %s: none of the sources can have it", word)
	}
	return nil
}

// chosen is the lab that the flags name, or that this machine has.
type chosen struct {
	lab  string
	byUs bool // nobody named a lab
	// standIns are the sources that the reference server plays beside real ones.
	// stands says that it plays any, and asked that somebody wanted that of each.
	standIns      []string
	stands, asked bool
	notices       []string
}

func (f targetFlags) choose(ctx context.Context) chosen {
	if f.Lab != "" {
		return chosen{lab: f.Lab}
	}
	if err := engineAnswers(ctx); err != nil {
		return chosen{lab: "reference", byUs: true, notices: []string{
			"No container engine answers, so the reference servers stand in for real Dovecot and Postfix: this is practice, not evidence (" + err.Error() + "; `mailproof doctor` says what would help)"}}
	}
	return chosen{lab: "docker", byUs: true}
}

// standIn lets reference servers play the Stalwarts that are not to be had: in
// the reference lab where nothing else was named, otherwise in one beside the
// docker lab. It is never silent, and unless it was asked for the run does not
// end as if it had judged real servers. A source with an operator's own lines
// over it is played by nobody.
func (f targetFlags) standIn(ctx context.Context, c chosen, specs []harness.SourceSpec) chosen {
	if c.lab != "docker" {
		return c
	}
	c.asked = true
	var why error
	for _, s := range specs {
		switch {
		case s.Kind != fixtures.Stalwart || s.From != "" && s.From != "reference":
			continue
		case s.From == "" && slices.ContainsFunc(s.Layers, func(l fixtures.Layer) bool { return l.Name == containers.OverlayName }):
			continue
		case s.From == "":
			err := stalwartThere(ctx, s)
			if err == nil {
				continue
			}
			why, c.asked = err, false
		}
		c.standIns = append(c.standIns, s.Name)
	}
	if len(c.standIns) == 0 {
		return c
	}
	notice := "The reference server stands in for " + strings.Join(c.standIns, " and ") + ": this is practice, not evidence"
	if why != nil {
		notice = "No real Stalwart is to be had, so the reference server stands in for " + strings.Join(c.standIns, " and ") + ": this is practice, not evidence (" + why.Error() + ")"
	}
	c.stands = true
	c.notices = append(c.notices, notice)
	if len(c.standIns) == len(specs) {
		c.lab, c.standIns = "reference", nil
	}
	return c
}

// unasked says whether reference servers are judged in place of real ones and
// nobody asked for it.
func (c chosen) unasked() bool {
	return !c.asked && (c.byUs && c.lab == "reference" || c.stands)
}

// start starts the lab, or says why it cannot be started.
func (f targetFlags) start(ctx context.Context, c chosen, keep bool, progress func(string)) (*harness.Target, func(context.Context) error, error) {
	specs, err := f.sources(c.lab)
	if err != nil {
		return nil, nil, err
	}
	if c.lab == "reference" {
		if keep {
			return nil, nil, usagef("--keep: the reference lab has nothing to keep; it is for --lab docker")
		}
		lab, err := harness.StartReference(ctx, specs, true)
		if err != nil {
			return nil, nil, err
		}
		lab.Target().Notices = append(lab.Target().Notices, c.notices...)
		return lab.Target(), lab.Close, nil
	}
	if len(c.standIns) == 0 {
		return startDocker(ctx, specs, keep, progress)
	}
	there, here := slices.Clone(specs), slices.Clone(specs)
	for i, s := range specs {
		played := slices.Contains(c.standIns, s.Name)
		there[i].Elsewhere, here[i].Elsewhere = played, !played
	}
	target, end, err := startDocker(ctx, there, keep, progress)
	if err != nil {
		return nil, nil, err
	}
	lab, err := harness.StartReference(ctx, here, true)
	if err != nil {
		return nil, nil, errors.Join(err, end(context.WithoutCancel(ctx)))
	}
	harness.StandIn(target, specs, lab)
	target.Notices = append(target.Notices, c.notices...)
	return target, func(ctx context.Context) error { return errors.Join(lab.Close(ctx), end(ctx)) }, nil
}

// runOptions turns the flags that plan and run share into options.
func runOptions(sel selectionFlags, r riskFlags) (run.Options, error) {
	all, err := sel.all()
	if err != nil {
		return run.Options{}, err
	}
	o := run.Options{Scenarios: all, Select: sel.Select, Allow: r.Allow, MaxRisk: script.R5, Tool: tool()}
	if r.MaxRisk != "" {
		if o.MaxRisk, err = script.ParseRisk(r.MaxRisk); err != nil {
			return o, usagef("--max-risk: %w", err)
		}
	}
	known := []string{"ban", "flood", "loop", "restart"}
	for _, h := range r.Allow {
		if !slices.Contains(known, h) {
			return o, usagef("--allow %s: no such hazard; there are %s", h, strings.Join(known, ", "))
		}
	}
	if len(r.Allow) == 0 {
		o.Allow = known // labs allow all
	}
	switch {
	case r.Repeat < 1:
		return o, usagef("--repeat %d: a scenario is run at least once", r.Repeat)
	case r.Jobs < 0:
		return o, usagef("--jobs %d: name at least one, or leave it out and mailproof chooses", r.Jobs)
	case r.Timeout <= 0:
		return o, usagef("--timeout %s: a scenario needs some time", r.Timeout)
	}
	if r.Shard != "" {
		if o.Shard, err = run.ParseShard(r.Shard); err != nil {
			return o, usagef("--shard: %w", err)
		}
	}
	o.Approve, o.Repeat, o.Jobs, o.Timeout, o.Strict = r.Approve, r.Repeat, r.Jobs, r.Timeout, r.Strict
	return o, nil
}

// selectionStatus is the status of a selection that names nothing.
func selectionStatus(err error, errw interface{ Write([]byte) (int, error) }) error {
	var sel *run.SelectionError
	if errors.As(err, &sel) {
		fmt.Fprintf(errw, "mailproof: %v\n", err)
		return exitError{result.ExitEmpty}
	}
	var hash *run.HashMismatch
	if errors.As(err, &hash) {
		return usageError{err}
	}
	return err
}
