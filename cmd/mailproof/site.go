package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/reference/proxy"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/harness/site"
	"github.com/mailproof/mailproof/reports"
)

// siteFlags say which site is judged, where it is no lab.
type siteFlags struct {
	Site string  `placeholder:"FILE" help:"Judge your own servers, as this site.toml describes them, instead of a lab. Signs in (R1) unless --max-risk allows more."`
	Rate float64 `placeholder:"N" help:"Connections a second at a site; 5 if nothing is said."`
}

// used refuses flags that are for labs.
func (f siteFlags) used(t targetFlags, keep bool) error {
	switch {
	case t.Lab != "":
		return usagef("--site and --lab: a site is no lab; name one of the two")
	case len(t.Source)+len(t.Overlay)+len(t.Defect) > 0:
		return usagef("--site: --source, --overlay and --defect are for labs; nothing is changed at a site")
	case keep:
		return usagef("--keep: nothing is started for a site; it is for --lab docker")
	case f.Rate < 0:
		return usagef("--rate %g: it must be above 0", f.Rate)
	}
	return nil
}

// unused refuses flags that are for sites.
func (f siteFlags) unused() error {
	if f.Rate != 0 {
		return usagef("--rate: it is for --site; labs are not spared")
	}
	return nil
}

// open reads the site file and makes the target of it.
func (f siteFlags) open(ctx context.Context, o *run.Options, plan bool) (*run.Target, error) {
	text, err := os.ReadFile(f.Site)
	if err != nil {
		return nil, usagef("--site: %w", err)
	}
	file, err := site.Parse(f.Site, text)
	if err != nil {
		return nil, usageError{err}
	}
	excluded, ended, err := file.Excluded(time.Now(), func(id string) bool {
		return slices.ContainsFunc(o.Scenarios, func(s *script.Scenario) bool { return s.ID == id })
	})
	if err != nil {
		return nil, usageError{err}
	}
	t, err := site.Open(ctx, file, site.Options{PlanOnly: plan})
	if err != nil {
		var wrong site.Errors
		if errors.As(err, &wrong) {
			return nil, usageError{err}
		}
		return nil, err
	}
	o.Exclude = excluded
	t.Notices = append(t.Notices, ended...)
	return t, nil
}

// options are what a run at a site is allowed: to sign in, and nothing that
// anybody could be blamed for.
func (f siteFlags) options(sel selectionFlags, r riskFlags) (run.Options, error) {
	for _, word := range r.Allow {
		if !slices.Contains(run.Allowances(), word) {
			return run.Options{}, usagef("--allow %s: no such hazard; there are %s", word, strings.Join(run.Allowances(), ", "))
		}
	}
	allow := r.Allow
	r.Allow = nil
	o, err := runOptions(sel, r)
	if err != nil {
		return o, err
	}
	o.Allow, o.Rate = allow, f.Rate
	if r.MaxRisk == "" {
		o.MaxRisk, o.Brief = script.R1, true
	}
	return o, nil
}

func (c *planCmd) site(ctx context.Context, con *console) error {
	if err := c.used(c.targetFlags, c.Keep); err != nil {
		return err
	}
	o, err := c.options(c.selectionFlags, c.riskFlags)
	if err != nil {
		return err
	}
	t, err := c.open(ctx, &o, true)
	if err != nil {
		return err
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
	for _, n := range t.Notices {
		fmt.Fprintln(con.err, n)
	}
	printPlan(con.out, p, "", c.Verbose)
	return nil
}

// printDemand says what the whole run asks of a site.
func printDemand(w io.Writer, d *run.Demand) {
	fmt.Fprintf(w, "in all: %d connections at %g a second (%.0f s), %d sign-ins, %d more that are to fail, %d messages\n",
		d.Connections, d.Rate, d.Seconds, d.SignIns, d.FailedSignIns, d.Messages)
	if d.Barriers > 0 {
		how := "without a sign-in"
		if d.UnknownUsers > 0 {
			how = "without a sign-in, or of a user that does not exist where the vantage does not know its port"
		}
		fmt.Fprintf(w, "to see that the log is read: 1 to %d more sessions, %s; none from the proxy or the new server\n", d.Barriers, how)
	}
	for _, a := range d.Accounts {
		if a.Named < a.Needed {
			fmt.Fprintf(w, "accounts of %s: the file names %d; with every flag %d are needed to judge everything, because none is made to fail its sign-in more than twice\n", a.Source, a.Named, a.Needed)
		} else {
			fmt.Fprintf(w, "accounts of %s: the file names %d; %d are needed to judge everything\n", a.Source, a.Named, a.Needed)
		}
	}
	if d.Again > 0 {
		fmt.Fprintf(w, "a Stalwart's log loses a line now and then: up to %d sign-ins are made again for that\n", d.Again)
	}
	fmt.Fprintf(w, "after %s it is over, whatever the servers do: what is not judged by then is said not to be\n", time.Duration(d.AtMost*float64(time.Second)).Round(time.Second))
	fmt.Fprintln(w, "where a port does not answer, the source's other ports are tried until one does, to tell a dead port from a dead server")
}

func (c *runCmd) site(ctx context.Context, con *console) error {
	if err := c.used(c.targetFlags, c.Keep); err != nil {
		return err
	}
	o, err := c.options(c.selectionFlags, c.riskFlags)
	if err != nil {
		return err
	}
	o.Deadlines = con.deadlines
	t, err := c.open(ctx, &o, false)
	if err != nil {
		return err
	}
	plan, err := run.MakePlan(t, o)
	if err != nil {
		return selectionStatus(err, con.err)
	}
	if err := approved(plan, o.Approve); err != nil {
		return usageError{err}
	}
	show := reports.NewConsole(con.err, consoleOptions(con.err, c.Verbose))
	if d := plan.Demand; d != nil {
		show.Progress(fmt.Sprintf("%d connections at %g a second, %d sign-ins, %d more that are to fail, %d messages", d.Connections, d.Rate, d.SignIns, d.FailedSignIns, d.Messages))
	}
	show.Begin(plan.Len())
	o.Observer = show.Result
	found, err := run.Run(ctx, t, o)
	if err != nil {
		return selectionStatus(err, con.err)
	}
	return c.finish(ctx, con, show, found)
}

// initCmd writes a site file to begin with.
type initCmd struct {
	ProxyConfig string `required:"" placeholder:"FILE" help:"The configuration of your proxy, in the format of the migration guide's proxy."`
}

// Run prints the site file.
func (c *initCmd) Run(con *console) error {
	text, err := os.ReadFile(c.ProxyConfig)
	if err != nil {
		return usagef("--proxy-config: %w", err)
	}
	cfg, err := proxy.ParseConfig(c.ProxyConfig, text)
	if cfg == nil {
		return usageError{err}
	}
	// Keys that only our own proxy does not have say nothing against the rest.
	_, err = io.WriteString(con.out, site.Draft(cfg))
	return err
}
