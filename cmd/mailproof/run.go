package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/reports"
)

// riskFlags say what a run may do, and how it is executed.
type riskFlags struct {
	MaxRisk string        `placeholder:"Rn" help:"Leave out scenarios above this risk, R0 to R5. Labs allow all, sites R1."`
	Allow   []string      `placeholder:"HAZARD,..." help:"Hazards that may be met: ban, flood, loop, restart; at a site also failed-sign-ins, protocol-errors, bad-recipients from the proxy and the new server. Labs allow all."`
	Approve string        `placeholder:"HASH" help:"Run only the plan with this hash."`
	Repeat  int           `default:"1" placeholder:"N" help:"Run each scenario N times; differing verdicts fail."`
	Shard   string        `placeholder:"I/N" help:"Run the Ith of N parts of the plan."`
	Jobs    int           `placeholder:"N" help:"Scenarios at a time."`
	Timeout time.Duration `default:"2m" placeholder:"D" help:"How long one scenario may take."`
	Strict  bool          `help:"A failed \"should\" fails the run."`
}

type planCmd struct {
	targetFlags
	siteFlags
	selectionFlags
	riskFlags
	Keep     bool   `help:"(As for run.)"`
	Verbose  bool   `short:"v" help:"Print what every scenario sends."`
	JSON     bool   `name:"json" help:"Print JSON."`
	JUnit    string `name:"junit" hidden:""`
	HTML     string `name:"html" hidden:""`
	Markdown string `name:"markdown" hidden:""`
}

func (c *planCmd) Run(ctx context.Context, con *console) error {
	if c.Site != "" {
		return c.site(ctx, con)
	}
	if err := c.unused(); err != nil {
		return err
	}
	chosen := c.choose(ctx)
	specs, err := c.sources(chosen.lab)
	if err != nil {
		return err
	}
	o, err := runOptions(c.selectionFlags, c.riskFlags)
	if err != nil {
		return err
	}
	t, err := harness.Blueprint(chosen.lab, specs, true)
	if err != nil {
		return usageError{err}
	}
	p, err := run.MakePlan(t, o)
	if err != nil {
		return selectionStatus(err, con.err)
	}
	if err := approved(p, o.Approve); err != nil {
		return usageError{err}
	}
	if c.JSON {
		return printJSON(con.out, p)
	}
	for _, n := range chosen.notices {
		fmt.Fprintln(con.err, n)
	}
	printPlan(con.out, p, chosen.lab, c.Verbose)
	return nil
}

// printPlan prints what a run would do, for people.
func printPlan(w io.Writer, p *run.Plan, lab string, verbose bool) {
	connections := 0
	for _, it := range p.Items {
		fmt.Fprintf(w, "%s  %s  %s at %s\n", it.ID, it.Risk, it.Driver, it.Source)
		fmt.Fprintf(w, "  %s\n", it.Claim)
		fmt.Fprintf(w, "  over %s\n", strings.Join(it.Facets, ", "))
		if it.Blocked != "" {
			fmt.Fprintf(w, "  not run: %s\n", it.Blocked)
			continue
		}
		for _, c := range it.Connects {
			fmt.Fprintf(w, "  %s\n", c)
		}
		for _, n := range it.NotRun {
			fmt.Fprintf(w, "  not run at %s\n", n)
		}
		connections += len(it.Connects)
		if verbose {
			fmt.Fprintf(w, "\n    %s\n", strings.ReplaceAll(strings.TrimRight(it.Sends, "\n"), "\n", "\n    "))
		}
		fmt.Fprintln(w)
	}
	word := "scenarios"
	if len(p.Items) == 1 {
		word = "scenario"
	}
	where := "on the " + lab + " lab"
	if p.Demand != nil {
		where = "at the site"
	}
	fmt.Fprintf(w, "%d %s %s, highest risk %s\n", len(p.Items), word, where, p.MaxRisk)
	for _, v := range run.Vantages() {
		if b, ok := p.Blame[v]; ok {
			fmt.Fprintf(w, "from the %-9s  %d failed sign-ins, %d refused commands, %d refused recipients\n", v, b.FailedSignIns, b.ProtocolErrors, b.BadRecipients)
		}
	}
	if p.Demand != nil {
		printDemand(w, p.Demand)
	}
	fmt.Fprintf(w, "plan sha256:%s\nrun exactly this: mailproof run --approve %s and the same flags\n", p.SHA256, p.SHA256[:12])
}

type runCmd struct {
	targetFlags
	siteFlags
	selectionFlags
	riskFlags
	Keep     bool   `help:"Leave the docker lab running and print its addresses."`
	Verbose  bool   `short:"v" help:"Print every result as it comes."`
	JSON     string `name:"json" placeholder:"F|-" help:"Write JSON to a file, or to standard output."`
	JUnit    string `name:"junit" placeholder:"F" help:"Write JUnit XML to a file."`
	HTML     string `name:"html" placeholder:"F" help:"Write an HTML report to a file."`
	Markdown string `name:"markdown" placeholder:"F" help:"Write a Markdown summary to a file."`
}

func (c *runCmd) Run(ctx context.Context, con *console) error {
	if c.Site != "" {
		return c.site(ctx, con)
	}
	if err := c.unused(); err != nil {
		return err
	}
	o, err := runOptions(c.selectionFlags, c.riskFlags)
	if err != nil {
		return err
	}
	chosen := c.choose(ctx)
	if chosen.lab == "reference" && c.Keep {
		return usagef("--keep: the reference lab has nothing to keep; it is for --lab docker")
	}
	specs, err := c.sources(chosen.lab)
	if err != nil {
		return err
	}
	chosen = c.standIn(ctx, chosen, specs)
	if chosen.lab == "reference" && c.Keep {
		return usagef("--keep: no real Stalwart is to be had, and the reference lab has nothing to keep")
	}
	// A selection that names nothing, and a plan that was not approved, are
	// told before anything is started.
	blueprint, err := harness.Blueprint(chosen.lab, specs, true)
	if err != nil {
		return usageError{err}
	}
	plan, err := run.MakePlan(blueprint, o)
	if err != nil {
		return selectionStatus(err, con.err)
	}
	if err := approved(plan, o.Approve); err != nil {
		return usageError{err}
	}
	show := reports.NewConsole(con.err, consoleOptions(con.err, c.Verbose))
	for _, n := range chosen.notices {
		show.Progress(n)
	}
	began := time.Now()
	target, end, err := c.start(ctx, chosen, c.Keep, show.Progress)
	if err != nil {
		var usage usageError
		if errors.As(err, &usage) {
			return err
		}
		return c.notStarted(ctx, con, show, blueprint, plan, began, err)
	}
	ended := false
	defer func() {
		if !ended {
			end(context.WithoutCancel(ctx))
		}
	}()
	show.Begin(plan.Len())
	o.Observer = show.Result
	found, err := run.Run(ctx, target, o)
	if err != nil {
		return selectionStatus(err, con.err)
	}
	ended = true
	if err := end(context.WithoutCancel(ctx)); err != nil {
		found.Problems = append(found.Problems, result.Problem{Stage: "clean-up", Where: target.Kind + " lab", Words: err.Error()})
		if found.Exit == result.ExitOK {
			found.Exit = result.ExitUnjudged
		}
	}
	if chosen.unasked() && found.Exit == result.ExitOK {
		found.Exit = result.ExitUnjudged
	}
	return c.finish(ctx, con, show, found)
}

// consoleOptions asks where people read what it can show.
func consoleOptions(w io.Writer, verbose bool) reports.ConsoleOptions {
	if f, ok := w.(*os.File); ok {
		return reports.ConsoleOptionsFor(f, verbose)
	}
	return reports.ConsoleOptions{Verbose: verbose}
}

// approved compares a plan's hash with the one that was approved.
func approved(p *run.Plan, hash string) error {
	if hash != "" && (len(hash) < 8 || !strings.HasPrefix(p.SHA256, strings.ToLower(hash))) {
		return &run.HashMismatch{Plan: p.SHA256, Approved: hash}
	}
	return nil
}

// notStarted reports a lab that did not start: nothing was judged, and the
// reports say why. A start that was interrupted is no problem of the lab's.
func (c *runCmd) notStarted(ctx context.Context, con *console, show *reports.Console, t *harness.Target, plan *run.Plan, began time.Time, err error) error {
	problems := []result.Problem{labProblem(t.Kind, err)}
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		problems = []result.Problem{}
	}
	found := run.Unstarted(t, plan, tool(), began, problems...)
	if ctx.Err() != nil {
		for i := range found.Results {
			if r := &found.Results[i]; r.Verdict == result.Error {
				r.Reason = "interrupted"
			}
		}
	}
	return c.finish(ctx, con, show, found)
}

// finish writes every report and returns the run's status. A report that
// cannot be written is a problem of the run, told on standard error, and does
// not keep the others from being written. The reports name the status that the
// process ends with: where such a problem, or a signal that came while they
// were written, changes it, those that can be written are written again.
func (c *runCmd) finish(ctx context.Context, con *console, show *reports.Console, found *result.Run) error {
	if ctx.Err() != nil {
		found.Exit = result.ExitInterrupted
	}
	before := found.Exit
	told := show.End(found)
	failed := c.files(found, false)
	for _, err := range failed {
		found.Problems = append(found.Problems, reportProblem(err))
	}
	switch {
	case ctx.Err() != nil:
		found.Exit = result.ExitInterrupted
	case len(failed) > 0 && found.Exit == result.ExitOK:
		found.Exit = result.ExitUnjudged
	}
	if found.Exit != before || len(failed) > 0 {
		c.files(found, true) // what cannot be written is told below
	}
	code := found.Exit
	if c.JSON == "-" {
		if err := reports.WriteJSON(con.out, found); err != nil {
			failed = append(failed, fmt.Errorf("--json -: %w", err))
			if code == result.ExitOK {
				code = result.ExitUnjudged
			}
		}
	}
	if err := errors.Join(append(failed, told)...); err != nil {
		fmt.Fprintf(con.err, "mailproof: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nmailproof: "))
	}
	if code != before {
		fmt.Fprintf(con.err, "mailproof: exit status %d\n", code)
	}
	if code == result.ExitOK {
		return nil
	}
	return exitError{code}
}

// reportProblem is a report that could not be written, as the others tell it.
func reportProblem(err error) result.Problem {
	p := result.Problem{Stage: "report", Where: "this machine", Words: err.Error()}
	var file *reports.FileError
	if errors.As(err, &file) {
		p.Where = file.Path
	}
	return p
}

// files writes the reports that go to files, and says which could not be. Again leaves out what is no
// regular file: its reader has had a whole report, and may be gone.
func (c *runCmd) files(found *result.Run, again bool) []error {
	var failed []error
	for _, r := range []struct {
		path  string
		write func(io.Writer, *result.Run) error
	}{{c.JSON, reports.WriteJSON}, {c.JUnit, reports.WriteJUnit}, {c.HTML, reports.WriteHTML}, {c.Markdown, reports.WriteMarkdown}} {
		if r.path == "" || r.path == "-" {
			continue
		}
		if info, err := os.Stat(r.path); again && (err != nil || !info.Mode().IsRegular()) {
			continue
		}
		if err := reports.WriteFile(r.path, func(w io.Writer) error { return r.write(w, found) }); err != nil {
			failed = append(failed, err)
		}
	}
	return failed
}
