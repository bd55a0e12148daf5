package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"text/tabwriter"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/scenarios"
)

type listCmd struct {
	selectionFlags
	Defects      bool `xor:"what" help:"List the named misconfigurations."`
	Ledger       bool `xor:"what" help:"List the requirements that are not judged, with the reason."`
	Requirements bool `xor:"what" help:"List the requirements, with the scenarios that judge them."`
	JSON         bool `name:"json" help:"Print JSON."`
}

// listedScenario is one scenario in "list --json".
type listedScenario struct {
	ID           string                  `json:"id"`
	Claim        string                  `json:"claim"`
	Level        string                  `json:"level"`
	Requirements []string                `json:"requirements"`
	Needs        []string                `json:"needs"`
	Risk         string                  `json:"risk"`
	Driver       string                  `json:"driver"`
	Hazards      []string                `json:"hazards"`
	Blame        map[string]script.Blame `json:"blame"`
	File         string                  `json:"file"`
}

// listedDefect is one defect in "list --defects --json".
type listedDefect struct {
	Name      string   `json:"name"`
	Source    string   `json:"source"`
	Releases  []string `json:"releases"`
	Labs      []string `json:"labs"`
	Says      string   `json:"says"`
	Symptom   string   `json:"symptom"`
	Diagnosis string   `json:"diagnosis"`
	Kills     []string `json:"kills"`
}

func (c *listCmd) Run(con *console) error {
	if c.Defects {
		return c.defects(con.out)
	}
	all, err := c.all()
	if err != nil {
		return err
	}
	if c.Ledger || c.Requirements {
		return c.requirements(con.out, all)
	}
	if _, err := run.MakePlan(&harness.Target{}, run.Options{Scenarios: all, Select: c.Select}); err != nil {
		return selectionStatus(err, con.err)
	}
	var rows []listedScenario
	for _, s := range run.Selected(all, c.Select) {
		rows = append(rows, listedScenario{s.ID, s.Claim, string(s.Level), s.Requirements, s.Needs, s.Risk().String(), s.Driver(), orEmpty(s.Hazards), s.Blame(), s.Path})
	}
	if c.JSON {
		return printJSON(con.out, rows)
	}
	w := tabwriter.NewWriter(con.out, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.ID, r.Risk, r.Level, r.Claim)
	}
	return w.Flush()
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func (c *listCmd) defects(out io.Writer) error {
	ds, err := fixtures.Defects()
	if err != nil {
		return err
	}
	var rows []listedDefect
	for _, d := range ds {
		rows = append(rows, listedDefect{d.Name, d.Source, d.Releases, d.Labs, d.Says, d.Symptom, d.Diagnosis, d.Kills})
	}
	for _, b := range harness.Bugs() {
		kind := b.Kind
		if kind == "" {
			kind = fixtures.DovecotPostfix
		}
		rows = append(rows, listedDefect{Name: b.Name, Source: kind, Releases: fixtures.Releases(kind),
			Labs: []string{"reference"}, Says: b.Says, Kills: []string{}})
	}
	if c.JSON {
		return printJSON(out, rows)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.Name, strings.Join(r.Labs, ","), r.Diagnosis, r.Says)
	}
	return w.Flush()
}

func (c *listCmd) requirements(out io.Writer, all []*script.Scenario) error {
	rows, err := scenarios.Requirements(all)
	if err != nil {
		return usageError{err}
	}
	var never []scenarios.Requirement
	if c.Ledger {
		var open []scenarios.Requirement
		for _, r := range rows {
			if len(r.Scenarios) == 0 {
				open = append(open, r)
			}
		}
		rows = open
		if c.Scenarios == "" {
			if never, err = scenarios.NotAskedOfGeneric(all); err != nil {
				return usageError{err}
			}
		}
	}
	if c.JSON {
		return printJSON(out, append(rows, never...))
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		state := r.Reason
		if len(r.Scenarios) > 0 {
			state = strings.Join(r.Scenarios, " ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", r.ID, r.Level, r.Claim, state)
	}
	for _, r := range never {
		fmt.Fprintf(w, "%s\t%s\t%s\tnever asked of a generic source: %s\n", r.ID, r.Level, r.Claim, r.Reason)
	}
	return w.Flush()
}

type explainCmd struct {
	What string `arg:"" name:"ID|DX-nn" help:"A scenario's id, or the code of a diagnosis."`
	selectionFlags
}

func (c *explainCmd) Run(con *console) error {
	if says, ok := run.ExplainCode(strings.ToUpper(c.What)); ok {
		fmt.Fprintln(con.out, says)
		return nil
	}
	all, err := c.all()
	if err != nil {
		return err
	}
	rows, rerr := scenarios.Requirements(all)
	for _, s := range all {
		if s.ID != c.What {
			continue
		}
		explain(con.out, s, rows, rerr)
		return nil
	}
	return usagef("explain %s: there is no such scenario or diagnosis; `mailproof list` shows the scenarios, `mailproof explain DX-14` is a diagnosis", c.What)
}

// explain prints everything that is known of a scenario before it runs.
func explain(out io.Writer, s *script.Scenario, rows []scenarios.Requirement, rerr error) {
	fmt.Fprintf(out, "%s\n%s\n\n", s.ID, s.Claim)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "level\t%s\n", s.Level)
	for _, id := range s.Requirements {
		says := ""
		if rerr == nil {
			for _, r := range rows {
				if r.ID == id {
					says = r.Claim
				}
			}
		}
		fmt.Fprintf(w, "requirement\t%s %s\n", id, says)
	}
	if s.Spec != "" {
		fmt.Fprintf(w, "rests on\t%s\n", s.Spec)
	}
	fmt.Fprintf(w, "risk\t%s: it %s\n", s.Risk(), s.Risk().Says())
	for _, v := range []string{"client", "proxy", "relay", "neighbour", "stranger"} {
		b, ok := s.Blame()[v]
		if !ok {
			continue
		}
		fmt.Fprintf(w, "from the %s\tat most %d connections at a time, %d failed sign-ins, %d refused commands, %d refused recipients\n",
			v, b.Peak, b.FailedSignIns, b.ProtocolErrors, b.BadRecipients)
	}
	if len(s.Hazards) > 0 {
		fmt.Fprintf(w, "hazards\t%s\n", strings.Join(s.Hazards, " "))
	}
	fmt.Fprintf(w, "runs over\t%s; %s\n", strings.Join(s.Over, " "), strings.Join(s.Families, " "))
	fmt.Fprintf(w, "needs\t%s\n", strings.Join(s.Needs, " "))
	fmt.Fprintf(w, "witness\t%s\n", strings.Join(s.Witness, " "))
	fmt.Fprintf(w, "file\t%s\n", s.Path)
	w.Flush()
	fmt.Fprintf(out, "\nIf it fails: %s\n\n%s\n", s.Means, s.Expanded())
	fmt.Fprintln(out, "What decides:")
	for _, a := range s.Assertions() {
		fmt.Fprintf(out, "  %s  %s\n", a.Pos, a.Text)
	}
}

type lintCmd struct {
	Files []string `arg:"" optional:"" name:"FILE" help:"Scenario files; without any, the embedded ones."`
}

func (c *lintCmd) Run(con *console) error {
	if len(c.Files) == 0 {
		all, err := scenarios.All()
		if err != nil {
			return usageError{err}
		}
		if _, err := scenarios.Requirements(all); err != nil {
			return usageError{err}
		}
		fmt.Fprintf(con.err, "%d scenarios, nothing wrong\n", len(all))
		return nil
	}
	lib, err := scenarios.Library()
	if err != nil {
		return usageError{err}
	}
	faults := 0
	for _, f := range c.Files {
		text, err := os.ReadFile(f)
		if err != nil {
			return usagef("lint: %w", err)
		}
		if _, err := script.Parse(f, text, lib); err != nil {
			for _, e := range script.Errors(err) {
				fmt.Fprintln(con.err, e)
				faults++
			}
		}
	}
	if faults > 0 {
		return exitError{result.ExitUsage}
	}
	fmt.Fprintf(con.err, "%d files, nothing wrong\n", len(c.Files))
	return nil
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}
