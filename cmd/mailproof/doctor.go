package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/mailproof/mailproof/containers"
	"github.com/mailproof/mailproof/harness/reference/proxy"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/reports"
)

type doctorCmd struct {
	JSON bool `name:"json" help:"Print JSON."`
}

// checked is one line of "doctor --json".
type checked struct {
	Name    string `json:"name"`
	OK      bool   `json:"ok"`
	Found   string `json:"found"`
	Missing string `json:"missing"`
	Help    string `json:"help"`
}

func (c *doctorCmd) Run(ctx context.Context, con *console) error {
	rows := []checked{{Name: "reference lab", OK: true, Found: "needs nothing: the reference servers can be judged on this machine"}}
	missing := 0
	for _, ch := range containers.Doctor(ctx) {
		rows = append(rows, checked{ch.Name, ch.OK, ch.Found, ch.Missing, ch.Help})
		if !ch.OK {
			missing++
		}
	}
	if c.JSON {
		if err := printJSON(con.out, rows); err != nil {
			return err
		}
	} else {
		for _, r := range rows {
			word := "ok     "
			if !r.OK {
				word = "MISSING"
			}
			fmt.Fprintf(con.out, "%s  %-16s %s\n", word, r.Name, r.Found)
			if r.Missing != "" {
				fmt.Fprintf(con.out, "         %-16s needs %s\n", "", r.Missing)
			}
			if r.Help != "" {
				fmt.Fprintf(con.out, "         %-16s try:  %s\n", "", r.Help)
			}
		}
	}
	if missing > 0 {
		return exitError{result.ExitUnjudged}
	}
	return nil
}

type reportCmd struct {
	Show  showCmd  `cmd:"" default:"withargs" help:"Print a JSON report as a run does. \"show\" may be left out."`
	Merge mergeCmd `cmd:"" help:"Merge the reports of a plan's shards into one, on standard output."`
	Diff  diffCmd  `cmd:"" help:"Say which verdicts changed between two reports."`
}

type showCmd struct {
	Files    []string `arg:"" name:"FILE.json" help:"JSON reports."`
	Verbose  bool     `short:"v" help:"Print what each cause was told from."`
	JUnit    string   `name:"junit" placeholder:"F" help:"Write JUnit XML to a file."`
	HTML     string   `name:"html" placeholder:"F" help:"Write an HTML report to a file."`
	Markdown string   `name:"markdown" placeholder:"F" help:"Write a Markdown summary to a file."`
}

func (c *showCmd) Run(ctx context.Context, con *console) error {
	runs, err := readRuns(c.Files)
	if err != nil {
		return err
	}
	if len(runs) > 1 && c.JUnit+c.HTML+c.Markdown != "" {
		return usagef("report: files are written from one report: merge them first")
	}
	var last error
	for _, found := range runs {
		r := runCmd{Verbose: c.Verbose, JUnit: c.JUnit, HTML: c.HTML, Markdown: c.Markdown}
		if err := r.finish(ctx, con, reports.NewConsole(con.err, consoleOptions(con.err, c.Verbose)), found); err != nil {
			last = err
		}
	}
	return last
}

type mergeCmd struct {
	Files []string `arg:"" name:"FILE.json" help:"Reports of the shards of one plan."`
}

func (c *mergeCmd) Run(con *console) error {
	runs, err := readRuns(c.Files)
	if err != nil {
		return err
	}
	merged, err := reports.Merge(runs...)
	if err != nil {
		return usageError{err}
	}
	return reports.WriteJSON(con.out, merged)
}

type diffCmd struct {
	Before string `arg:"" name:"BEFORE.json"`
	After  string `arg:"" name:"AFTER.json"`
}

func (c *diffCmd) Run(con *console) error {
	runs, err := readRuns([]string{c.Before, c.After})
	if err != nil {
		return err
	}
	d, err := reports.Diff(runs[0], runs[1])
	if err != nil {
		return usageError{err}
	}
	return reports.WriteDiff(con.out, d)
}

func readRuns(files []string) ([]*result.Run, error) {
	var runs []*result.Run
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, usageError{err}
		}
		run, err := reports.ReadJSON(f)
		f.Close()
		if err != nil {
			return nil, usagef("%s: %w", name, err)
		}
		runs = append(runs, run)
	}
	return runs, nil
}

// isConfigError says whether a proxy did not start for its configuration.
func isConfigError(err error) bool {
	var list proxy.ConfigErrors
	var one *proxy.ConfigError
	return errors.As(err, &list) || errors.As(err, &one) || errors.Is(err, os.ErrNotExist)
}
