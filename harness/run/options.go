package run

import (
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/harness/wire"
)

// Options say what of a set of scenarios is run, and how.
type Options struct {
	Scenarios []*script.Scenario
	// Select keeps the scenarios whose id matches a glob ("*" crosses dots) or
	// that carry a requirement id. Empty keeps all.
	Select []string
	// Exclude leaves scenarios out by id, with a reason.
	Exclude []result.Excluded
	// MaxRisk refuses scenarios above it; the zero value is R0, so set it.
	MaxRisk script.Risk
	// Allow names the hazards that may be met. Labs allow all.
	Allow []string
	// Brief keeps a run at a target with [Limits] to what a first look may ask
	// for.
	Brief bool
	// Rate is how many connections are made a second; 0 leaves it to the target.
	Rate float64
	// Approve is the hash of the only plan that may run, or its beginning.
	Approve string
	Repeat  int           // runs of each scenario, at least 1
	Shard   Shard         // which part of the plan is run
	Jobs    int           // executions at a time; 0 chooses
	Timeout time.Duration // of one execution; 0 is two minutes
	// Deadlines is the table of waits; the zero value is wire.Lab().
	Deadlines wire.Deadlines
	// Shape is how every connection writes, unless the scenario says otherwise.
	Shape wire.Shape
	// Fault is injected by the kill matrix.
	Fault *Fault
	// OneFacet says which scenarios run at one facet alone, with STARTTLS where
	// they can, at the source of that name. Nil runs all facets.
	OneFacet func(source string, s *script.Scenario) bool
	// Skip says which scenarios are left out at the source of that name, without
	// a trace in the result. Nil leaves out none.
	Skip func(source string, s *script.Scenario) bool
	// Onward says at which sources an assertion that fails ends nothing but the
	// steps of its own connection, where that is lost: the kill matrix wants to
	// see every assertion that can fail there, and not just the first. Nil is
	// none: whoever judges a source stops where its claim is decided.
	Onward func(source string) bool
	// Seed makes the tokens of a run reproducible; empty draws one.
	Seed string
	// Observer is told of each result as it is there, from one goroutine at a time.
	Observer func(result.Result)
	// Tool is written into the result.
	Tool result.Tool
	// Strict makes failed shoulds fail the run.
	Strict bool

	careful bool // the target has [Limits]
}

// A Shard is one part of N; the zero value is the whole.
type Shard struct{ Index, Of int }

// String is "2/5", or "" for the whole.
func (s Shard) String() string {
	if s.Of <= 1 {
		return ""
	}
	return fmt.Sprintf("%d/%d", s.Index, s.Of)
}

// ParseShard reads "2/5".
func ParseShard(s string) (Shard, error) {
	var sh Shard
	var rest string
	if n, err := fmt.Sscanf(s+" end", "%d/%d %s", &sh.Index, &sh.Of, &rest); n != 3 && err != io.EOF || rest != "end" ||
		sh.Of < 1 || sh.Index < 1 || sh.Index > sh.Of {
		return Shard{}, fmt.Errorf("%q is no shard: write I/N with I from 1 to N", s)
	}
	return sh, nil
}

func (o Options) withDefaults(kind string) Options {
	if o.Repeat < 1 {
		o.Repeat = 1
	}
	if o.Timeout <= 0 {
		o.Timeout = 2 * time.Minute
	}
	if o.Deadlines == (wire.Deadlines{}) {
		o.Deadlines = wire.Lab()
		switch kind {
		case "reference":
			// Nothing is on its way there that a loaded machine could hold up long.
			o.Deadlines.Witness, o.Deadlines.Close = 4*time.Second, 2*time.Second
		case "site":
			o.Deadlines = wire.Site()
		}
	}
	if o.Jobs <= 0 {
		// Scenarios wait, most of all those that fail, and waits overlap.
		o.Jobs = 32
		switch kind {
		case "reference":
			o.Jobs = 8 * runtime.GOMAXPROCS(0)
		case "site":
			o.Jobs = 4
		}
	}
	return o
}
