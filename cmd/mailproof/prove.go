package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/reports"
)

type proveCmd struct {
	Lab    string   `enum:"reference,docker" default:"reference" placeholder:"reference|docker" help:"The lab to prove on: reference, or docker for evidence."`
	Source []string `sep:"none" placeholder:"KIND[@VERSION]" help:"A source. May be repeated."`
	Defect []string `sep:"none" placeholder:"NAME" help:"Only this defect. May be repeated."`
	selectionFlags
	JSON     string `name:"json" placeholder:"F|-" help:"Write the kill matrix as JSON."`
	Markdown string `name:"markdown" placeholder:"F" help:"Write the kill matrix as Markdown."`
}

func (c *proveCmd) Run(ctx context.Context, con *console) error {
	all, err := c.all()
	if err != nil {
		return err
	}
	if _, err := run.MakePlan(&harness.Target{}, run.Options{Scenarios: all, Select: c.Select}); err != nil {
		return selectionStatus(err, con.err)
	}
	tf := targetFlags{Source: c.Source, Profile: fixtures.Instrumented}
	specs, err := tf.sources(c.Lab)
	if err != nil {
		return err
	}
	for _, s := range specs {
		if s.From == "reference" {
			return usagef("--source %s=reference: reference servers are proved with --lab reference", s.Name)
		}
	}
	for _, d := range c.Defect {
		if _, ok := harness.BugNamed(d); ok {
			continue
		}
		if _, err := fixtures.DefectNamed(d); err != nil {
			return usagef("--defect: %w", err)
		}
	}
	progress := func(s string) { fmt.Fprintln(con.err, s) }
	o := harness.ProveOptions{Lab: c.Lab, Defects: c.Defect, Run: run.Options{Scenarios: all, Select: c.Select}, Progress: progress}
	for _, s := range specs {
		o.Releases = append(o.Releases, s.Version)
		if s.From != "" {
			if o.From == nil {
				o.From = make(map[string]string)
			}
			o.From[s.Version] = s.From
		}
	}
	switch c.Lab {
	case "reference":
		o.Start, o.Batch, o.Faults = harness.ReferenceStarter, 8, len(c.Defect) == 0
	default:
		if err := engineAnswers(ctx); err != nil {
			return fmt.Errorf("no container engine answers: %w (`mailproof doctor` says what would help)", err)
		}
		o.Start, o.Batch, o.Narrow, o.Brief = dockerStarter(progress), fixtures.MaxSources, true, true
		if slices.ContainsFunc(specs, func(s harness.SourceSpec) bool { return s.Kind == fixtures.Stalwart }) {
			o.Batch = 6 // each is a whole server of its own
		}
	}
	// What was proved before an interrupt is printed and written as well.
	m, proveErr := harness.Prove(ctx, o)
	if m == nil {
		return proveErr
	}
	printMatrix(con.err, m)
	if c.JSON == "-" {
		if err := printJSON(con.out, m); err != nil {
			return err
		}
	} else if c.JSON != "" {
		if err := reports.WriteFile(c.JSON, func(w io.Writer) error { return printJSON(w, m) }); err != nil {
			return err
		}
	}
	if c.Markdown != "" {
		if err := reports.WriteFile(c.Markdown, func(w io.Writer) error { return matrixMarkdown(w, m) }); err != nil {
			return err
		}
	}
	if proveErr != nil {
		return proveErr
	}
	if len(m.Failures()) > 0 {
		return exitError{result.ExitFailed}
	}
	return nil
}

// printMatrix says what a proof came to, failures first.
func printMatrix(w io.Writer, m *harness.Matrix) {
	for _, f := range m.Failures() {
		fmt.Fprintln(w, "NOT PROVED", f)
	}
	t := m.Totals
	fmt.Fprintf(w, "%s lab: %d of %d good targets are clean; %d of %d defects caught, %d diagnosed, %d remedies proved",
		m.Lab, t.Clean, t.Good, t.Caught, t.Defects, t.Diagnosed, cured(m))
	if t.Assertions > 0 {
		fmt.Fprintf(w, "; %d of %d assertions killed", t.Killed, t.Assertions)
		if m.Lab == "reference" {
			fmt.Fprint(w, " (reference only: practice, not evidence)")
		}
	}
	if t.Faults > 0 {
		fmt.Fprintf(w, "; %d of %d wire defects noticed", t.Noticed, t.Faults)
	}
	fmt.Fprintln(w)
}

func cured(m *harness.Matrix) int {
	n := 0
	for _, d := range m.Defects {
		if d.Remedy == "cured" {
			n++
		}
	}
	return n
}

func matrixMarkdown(w io.Writer, m *harness.Matrix) error {
	var b strings.Builder
	t := m.Totals
	fmt.Fprintf(&b, "# Kill matrix, %s lab\n\n%d of %d good targets clean, %d of %d defects caught, %d diagnosed, %d remedies proved, %d of %d assertions killed.\n\n",
		m.Lab, t.Clean, t.Good, t.Caught, t.Defects, t.Diagnosed, cured(m), t.Killed, t.Assertions)
	for _, f := range m.Failures() {
		fmt.Fprintf(&b, "- **not proved**: %s\n", f)
	}
	b.WriteString("\n| defect | source | failed | diagnosis | remedy |\n| --- | --- | --- | --- | --- |\n")
	for _, d := range m.Defects {
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", d.Defect, d.Source, strings.Join(d.Failed, " "), strings.Join(d.Diagnosis, " "), cell(d.Remedy))
	}
	b.WriteString("\n| assertion | at | killed by |\n| --- | --- | --- |\n")
	for _, a := range m.Assertions {
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", cell(a.Text), a.At, cell(strings.Join(a.KilledBy, " ")))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// cell keeps text inside its cell of a table.
func cell(s string) string {
	return strings.NewReplacer("|", `\|`, "\n", " ").Replace(s)
}
