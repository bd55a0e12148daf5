// Package harness is mailproof as a library: targets that are judged, and the
// two ways to judge them. [Run] returns everything that was found; [Test] does
// the same inside "go test", one subtest for each result.
//
//	func TestMailServer(t *testing.T) {
//		lab := containers.ForTest(t, "dovecot-postfix@trixie")
//		harness.Test(t, lab.Target())
//	}
//
// It promises that a claim passes only on a witness, that what could not be
// judged is said to be so, and that nothing is sent that [Plan] does not show.
package harness

import (
	"context"
	"fmt"
	"time"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/harness/wire"
	"github.com/mailproof/mailproof/scenarios"
)

// A Target is what is judged: sources, the proxy before them, and the vantages
// to act from.
type Target = run.Target

// A Source is one mail system of a target.
type Source = run.Source

// A SourceSpec says which source a lab is to start.
type SourceSpec struct {
	Name    string // as spelled on the command line; unique within a lab
	Kind    string // "dovecot-postfix", "stalwart"
	Version string // "bookworm", "trixie"; "0.15.5"
	// From says where a docker lab takes the server from: "image:REF", or
	// "exec:PATH" for a program of the user's own, put into a Debian base, or
	// "reference" for the reference server in a lab beside it. Empty is the lab's
	// own choice.
	From    string
	Profile string // "instrumented" or "as-shipped"
	// Elsewhere says that the source stands in another lab: its addresses are
	// kept free for it in this one, and nothing is started.
	Elsewhere bool
	// Layers are laid over the profile and the guide's recipe, in order.
	Layers []fixtures.Layer
	// Bare leaves the guide's recipe out.
	Bare bool
	// Forwarding is how the lab's proxy tells it of clients; the zero value is
	// what its kind is told by.
	Forwarding fixtures.Forwarding
	// Bugs are misbehaviours of the reference server itself; a real source has none.
	Bugs []string
}

// An Option changes what is run, or how.
type Option func(*run.Options)

// Select keeps the scenarios whose id matches a glob, or that carry a
// requirement id.
func Select(words ...string) Option {
	return func(o *run.Options) { o.Select = append(o.Select, words...) }
}

// Scenarios replaces the embedded scenarios.
func Scenarios(list []*script.Scenario) Option {
	return func(o *run.Options) { o.Scenarios = list }
}

// MaxRisk leaves out what could do more than this to the target.
func MaxRisk(r script.Risk) Option {
	return func(o *run.Options) { o.MaxRisk, o.Brief = r, false }
}

// Allow lets hazards be met, and the proxy's and the new server's addresses be
// blamed, at a target with limits. Labs allow all.
func Allow(words ...string) Option {
	return func(o *run.Options) { o.Allow = append(o.Allow, words...) }
}

// Rate is how many connections are made a second at a target with limits.
func Rate(perSecond float64) Option { return func(o *run.Options) { o.Rate = perSecond } }

// Repeat runs each scenario n times; differing verdicts make it unstable.
func Repeat(n int) Option { return func(o *run.Options) { o.Repeat = n } }

// Jobs bounds how many scenarios run at a time.
func Jobs(n int) Option { return func(o *run.Options) { o.Jobs = n } }

// Timeout bounds one scenario.
func Timeout(d time.Duration) Option { return func(o *run.Options) { o.Timeout = d } }

// Shape writes every connection in the named shape of package wire.
func Shape(s wire.Shape) Option { return func(o *run.Options) { o.Shape = s } }

// Strict makes a failed "should" fail.
func Strict() Option { return func(o *run.Options) { o.Strict = true } }

// With sets the options as a whole; later options change them.
func With(opts run.Options) Option { return func(o *run.Options) { *o = opts } }

// options applies what was given over what labs are run with: every scenario,
// every risk, every hazard.
//
// At a target with limits it is what a first look may do: R1, and no hazard.
func options(t *Target, opts []Option) (run.Options, error) {
	o := run.Options{MaxRisk: script.R5, Allow: []string{"ban", "flood", "loop", "restart"}}
	if t.Limits != nil {
		o = run.Options{MaxRisk: script.R1, Brief: true}
	}
	for _, opt := range opts {
		opt(&o)
	}
	if o.Scenarios == nil {
		all, err := scenarios.All()
		if err != nil {
			return o, fmt.Errorf("the embedded scenarios: %w", err)
		}
		o.Scenarios = all
	}
	return o, nil
}

// Run judges a target. An error means that nothing was run: a selection that
// names nothing, a plan that was not approved.
func Run(ctx context.Context, t *Target, opts ...Option) (*result.Run, error) {
	o, err := options(t, opts)
	if err != nil {
		return nil, err
	}
	return run.Run(ctx, t, o)
}

// Plan says what [Run] would connect to and send, without doing it.
func Plan(t *Target, opts ...Option) (*run.Plan, error) {
	o, err := options(t, opts)
	if err != nil {
		return nil, err
	}
	return run.MakePlan(t, o)
}
