package run

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/harness/witness"
)

// errInterrupted is the cause of a context that a signal or the caller ended.
var errInterrupted = errors.New("interrupted")

// errTimeUp is the cause of a context whose run has taken as long as its plan
// says.
var errTimeUp = errors.New("the time of the run was over")

// stopped says whether a run was ended before its claims were judged, and what
// that makes of one.
func (r *runner) stopped(ctx context.Context, res *result.Result) bool {
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errInterrupted):
		res.Verdict, res.Reason = result.Error, "interrupted"
	case errors.Is(cause, errTimeUp):
		res.Verdict, res.Reason = result.Inconclusive, fmt.Sprintf("the %.0f s that the plan gives the whole run were over: to judge it, add --select, and run the rest by itself", r.plan.Demand.AtMost)
	default:
		return false
	}
	return true
}

// An address is one that a source sees somebody act from.
type address struct {
	source  *Source
	vantage string
	family  Family
}

// A runner executes one plan.
type runner struct {
	target *Target
	opts   Options
	plan   *Plan

	logs     map[*Source]*witness.Log
	logWhy   map[*Source]string // why there is no log
	alone    map[*Source]*sync.RWMutex
	own      map[address]*sync.RWMutex // held by whoever acts from there
	seed     string
	serial   atomic.Uint64
	barriers atomic.Uint64

	pacer sourcePacer

	upMu sync.Mutex
	isUp map[*Source]bool

	deadMu  sync.Mutex
	dead    map[*Source]string // why a log proves nothing, once that was seen
	spoiled map[*Source]string // why a source is not judged any further

	care *care // at a target with [Limits], or nil
}

// HashMismatch says that the plan is not the one that was approved.
type HashMismatch struct{ Plan, Approved string }

func (e *HashMismatch) Error() string {
	return fmt.Sprintf("the plan's hash is %s, and %s was approved: look at the plan again (mailproof plan)", e.Plan, e.Approved)
}

// Run plans and executes. Whatever happens to single claims is in the result;
// an error means that nothing was executed. When ctx ends, what did not finish
// is an error result with the reason "interrupted".
func Run(ctx context.Context, t *Target, o Options) (*result.Run, error) {
	o = o.withDefaults(t.Kind)
	o.careful = t.Limits != nil
	plan, err := MakePlan(t, o)
	if err != nil {
		return nil, err
	}
	if o.Approve != "" && (len(o.Approve) < 8 || !strings.HasPrefix(plan.SHA256, strings.ToLower(o.Approve))) {
		return nil, &HashMismatch{plan.SHA256, o.Approve}
	}
	r := &runner{target: t, opts: o, plan: plan, seed: o.Seed, care: newCare(t, o),
		logs: make(map[*Source]*witness.Log), logWhy: make(map[*Source]string),
		alone: make(map[*Source]*sync.RWMutex), own: make(map[address]*sync.RWMutex), isUp: make(map[*Source]bool), dead: make(map[*Source]string), spoiled: make(map[*Source]string)}
	if r.seed == "" {
		r.seed = drawSeed()
	}
	began := time.Now()
	outer := ctx
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	stop := context.AfterFunc(outer, func() { cancel(errInterrupted) })
	defer stop()
	if d := plan.Demand; d != nil {
		up := time.AfterFunc(d.within(), func() { cancel(errTimeUp) })
		defer up.Stop()
	}
	for _, s := range t.Sources {
		r.alone[s] = &sync.RWMutex{}
		for _, v := range Vantages() {
			for _, f := range []Family{IP4, IP6} {
				r.own[address{s, v, f}] = &sync.RWMutex{}
			}
		}
		r.openLog(ctx, s)
	}
	defer r.closeLogs()

	r.begin(ctx)
	results := r.all(ctx)
	left := r.sweep(ctx)

	run := &result.Run{
		Schema: result.Schema, Tool: o.Tool, Started: began.UTC(), Seconds: time.Since(began).Seconds(),
		Target:   describeTarget(t),
		Plan:     result.Plan{SHA256: plan.SHA256, MaxRisk: o.MaxRisk.String(), Shard: o.Shard.String()},
		Problems: slices.Clone(t.Problems), Diagnoses: []result.Diagnosis{}, Excluded: plan.Excluded,
		Results: results, Notices: slices.Clone(t.Notices),
	}
	if r.care != nil {
		run.Problems = append(run.Problems, r.care.problems...)
	}
	run.Problems = append(run.Problems, left...)
	if run.Problems == nil {
		run.Problems = []result.Problem{}
	}
	if run.Notices == nil {
		run.Notices = []string{}
	}
	diagnose(ctx, t, run)
	advise(t, run)
	run.Answer = answer(t, o, run)
	run.Counts = result.Count(run.Results)
	interrupted := errors.Is(context.Cause(ctx), errInterrupted)
	run.Exit = exitStatus(run, o.Strict, interrupted)
	return run, nil
}

func describeTarget(t *Target) result.Target {
	d := result.Target{Kind: t.Kind, Engine: t.Engine, Sources: []result.Source{}}
	if t.Proxy != nil {
		d.Proxy = t.Proxy.Name
	}
	for _, s := range t.Sources {
		d.Sources = append(d.Sources, result.Source{Name: s.Name, Kind: s.Kind, Version: s.Version, Profile: s.Profile,
			Origin: s.Origin, Layers: s.Layers, Software: s.Software})
	}
	return d
}

// exitStatus is the process status of DESIGN's contract for a finished run.
func exitStatus(run *result.Run, strict, interrupted bool) int {
	if interrupted {
		return result.ExitInterrupted
	}
	judged, unjudged := 0, len(run.Problems) > 0
	for i := range run.Results {
		res := &run.Results[i]
		switch res.Verdict {
		case result.Fail:
			if res.Level == result.Must || res.Level == result.Should && strict {
				return result.ExitFailed
			}
			judged++
		case result.Pass:
			judged++
		case result.Inconclusive, result.Error:
			unjudged = true
		}
		if res.Unstable && res.Level == result.Must {
			return result.ExitFailed
		}
	}
	switch {
	case len(run.Results) == 0 && len(run.Problems) == 0:
		return result.ExitEmpty
	case unjudged, judged == 0:
		return result.ExitUnjudged
	}
	return result.ExitOK
}

// all executes every item of the plan, J-10 first, heavy ones early.
func (r *runner) all(ctx context.Context) []result.Result {
	items := r.shard(r.plan.items)
	order := make([]int, len(items))
	for i := range order {
		order[i] = i
	}
	// What acts from an address that somebody needs for itself comes first, and
	// then who needs it: the rest runs beside that.
	shared := make(map[address]bool)
	for _, it := range items {
		if it.ownAddress() && it.verdict == "" {
			for _, a := range it.addresses() {
				shared[a] = true
			}
		}
	}
	turn := func(it *item) int {
		switch {
		case it.alone():
			return 3
		case it.ownAddress():
			return 1
		case slices.ContainsFunc(it.addresses(), func(a address) bool { return shared[a] }):
			return 0
		}
		return 2
	}
	slices.SortStableFunc(order, func(a, b int) int {
		ia, ib := items[a], items[b]
		switch ra, rb := r.care.risky(ia), r.care.risky(ib); {
		case ra != rb:
			if rb {
				return -1
			}
			return 1
		case ia.gate != ib.gate:
			if ia.gate {
				return -1
			}
			return 1
		case turn(ia) != turn(ib):
			return turn(ia) - turn(ib)
		}
		return ib.weight - ia.weight
	})
	results := make([]result.Result, len(items))
	later := slices.IndexFunc(order, func(i int) bool { return r.care.risky(items[i]) })
	if later < 0 {
		later = len(order)
	}
	var observe sync.Mutex
	one := func(i int) {
		results[i] = r.repeat(ctx, items[i])
		r.care.learn(items[i], &results[i])
		if r.opts.Observer != nil {
			observe.Lock()
			defer observe.Unlock()
			r.opts.Observer(results[i])
		}
	}
	r.each(order[:later], one)
	r.each(order[later:], one)
	return results
}

// each calls f for every item of an order, several at a time.
func (r *runner) each(order []int, f func(i int)) {
	var next atomic.Int64
	var wg sync.WaitGroup
	for range min(r.opts.Jobs, max(1, len(order))) {
		wg.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= len(order) {
					return
				}
				f(order[n])
			}
		})
	}
	wg.Wait()
}

func (r *runner) shard(items []*item) []*item {
	sh := r.opts.Shard
	if sh.Of <= 1 {
		return items
	}
	var mine []*item
	for i, it := range items {
		if i%sh.Of == sh.Index-1 {
			mine = append(mine, it)
		}
	}
	return mine
}

// repeat executes an item as often as was asked, and merges the results: a
// failure stays a failure, and differing verdicts are unstable.
func (r *runner) repeat(ctx context.Context, it *item) result.Result {
	if it.verdict != "" {
		res := it.blank()
		res.Verdict, res.Reason = it.verdict, it.reason
		return res
	}
	if why := r.care.untrusted(it); why != "" {
		res := it.blank()
		res.Verdict, res.Reason = result.Inconclusive, why
		return res
	}
	var final result.Result
	var verdicts []result.Verdict
	for n := 0; n < r.opts.Repeat; n++ {
		res := r.isolated(ctx, it, &verdicts)
		verdicts = append(verdicts, res.Verdict)
		if n == 0 || worse(res.Verdict, final.Verdict) {
			final = res
		}
		if context.Cause(ctx) != nil {
			break
		}
	}
	if len(verdicts) > 1 {
		final.Repeats = verdicts
	}
	if r.opts.Repeat > 1 {
		for _, v := range verdicts[1:] {
			if v != verdicts[0] {
				final.Unstable = true
			}
		}
	}
	return final
}

// alone says whether nothing else may run against the item's source meanwhile.
func (it *item) alone() bool { return it.scenario.IsAlone(it.source.Kind) }

// ownAddress says whether nobody else may act from the item's addresses
// meanwhile.
func (it *item) ownAddress() bool { return it.scenario.Isolation == script.OwnAddress }

// addresses lists those that the item acts from, always in the same order.
func (it *item) addresses() []address {
	var out []address
	for _, v := range it.scenario.Vantages() {
		out = append(out, address{it.source, v, Family(it.facet.Family)})
	}
	return out
}

// worse orders verdicts by how much they say against a claim.
func worse(a, b result.Verdict) bool {
	rank := map[result.Verdict]int{result.Fail: 4, result.Error: 3, result.Inconclusive: 2, result.Unsupported: 1, result.Pass: 0}
	return rank[a] > rank[b]
}

// isolated executes an item once, beside others or alone at its source, as its
// scenario wants. At a site whose log lost what would have decided the claim it
// is asked again, as often as the plan says, and each try is told.
func (r *runner) isolated(ctx context.Context, it *item, tries *[]result.Verdict) result.Result {
	if context.Cause(ctx) != nil {
		res := it.blank()
		r.stopped(ctx, &res)
		return res
	}
	mu := r.alone[it.source]
	if it.alone() {
		mu.Lock()
		defer mu.Unlock()
	} else {
		mu.RLock()
		defer mu.RUnlock()
		for _, a := range it.addresses() {
			if it.ownAddress() {
				r.own[a].Lock()
				defer r.own[a].Unlock()
			} else {
				r.own[a].RLock()
				defer r.own[a].RUnlock()
			}
		}
	}
	if why := r.isSpoiled(it.source); why != "" {
		res := it.blank()
		res.Verdict, res.Reason = result.Error, why
		return res
	}
	for {
		res, lost := r.execute(ctx, it)
		if !lost || r.care == nil || context.Cause(ctx) != nil {
			return res
		}
		if !r.care.again(it) {
			res.Reason += ": to judge it, run again (a run at a site asks again only as often as its plan says)"
			return res
		}
		*tries = append(*tries, res.Verdict)
	}
}

// drawSeed makes the mark that all tokens of a run begin with.
func drawSeed() string {
	const letters = "abcdefghijklmnopqrstuvwxyz0123456789"
	var b [5]byte
	rand.Read(b[:])
	for i := range b {
		b[i] = letters[int(b[i])%len(letters)]
	}
	return string(b[:])
}

// newEnv gives an execution its token, its announced port and its accounts.
func (r *runner) newEnv(it *item, accounts map[string]Account) *env {
	n := r.serial.Add(1)
	e := &env{
		target: r.target, source: it.source, family: Family(it.facet.Family), accounts: accounts,
		token: fmt.Sprintf("mp%s%s", r.seed, base36(n)),
		port:  uint16(20000 + n%40000),
		files: it.scenario.Files,
	}
	e.wrong = "wrong-" + e.token
	e.master = "master-password-" + rand.Text()
	if ep, ok := it.source.Endpoint(it.facet.Endpoint); ok {
		e.public = ep.Port
	}
	return e
}

func base36(n uint64) string {
	const digits = "0123456789abcdefghijklmnopqrstuvwxyz"
	b := []byte{'0', '0', '0', '0'}
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = digits[n%36]
		n /= 36
	}
	return string(b)
}

// accounts takes the accounts that a scenario refers to.
func (r *runner) accounts(ctx context.Context, it *item) (map[string]Account, func(), error) {
	if len(it.users) == 0 {
		return nil, func() {}, nil
	}
	if it.source.Accounts == nil {
		return nil, nil, &openClaim{reason: fmt.Sprintf("it needs %d account(s) of %s, and the target names none", len(it.users), it.source.Name)}
	}
	var list []Account
	var release func()
	var err error
	if named, ok := it.source.Accounts.(NamedAccounts); ok && it.lent != nil {
		list, release, err = lend(ctx, named, it.lent)
	} else {
		list, release, err = it.source.Accounts.Take(ctx, len(it.users))
	}
	if err != nil {
		return nil, nil, &openClaim{reason: fmt.Sprintf("it needs %d account(s) of %s: %v", len(it.users), it.source.Name, err)}
	}
	for _, a := range list {
		if why := r.care.leftAlone(a); why != "" {
			release()
			return nil, nil, &openClaim{reason: why}
		}
	}
	m := make(map[string]Account, len(it.users))
	for i, u := range it.users {
		m[u] = list[i]
	}
	return m, release, nil
}

// openLog begins to follow a source's log.
func (r *runner) openLog(ctx context.Context, s *Source) {
	open, ok := s.Logs["mail"]
	if !ok {
		r.logWhy[s] = "no log of " + s.Name + " was named: to judge this claim, say where its mail log can be read"
		if r.target.Kind == "site" {
			r.logWhy[s] = "no log of " + s.Name + " was named: to judge it, add log = \"file:…\" or \"command:…\" to [source." + s.Name + "]"
		}
		return
	}
	follow := witness.Follow
	if s.Kind == generic {
		follow = witness.FollowLines
	}
	l, err := follow(ctx, s.Name, open)
	if err != nil {
		r.logWhy[s] = fmt.Sprintf("the log of %s cannot be read: %v: to judge it, add a log of %s that can be read for the whole run", s.Name, err, s.Name)
		return
	}
	r.logs[s] = l
}

func (r *runner) closeLogs() {
	for _, l := range r.logs {
		l.Close()
	}
}

func (r *runner) log(s *Source) *witness.Log { return r.logs[s] }

func (r *runner) noLog(s *Source) string { return r.logWhy[s] }

func (r *runner) logErr(s *Source) error {
	if l := r.logs[s]; l != nil {
		return l.Err()
	}
	return nil
}

// silent says why a source's log proves nothing, once its barrier has failed.
// A log that did not show a line of ours in time is not asked again: every
// claim that rests on it would wait as long for the same answer.
func (r *runner) silent(s *Source) string {
	r.deadMu.Lock()
	defer r.deadMu.Unlock()
	return r.dead[s]
}

// setSpoiled says that a source is not what it was declared to be any more.
func (r *runner) setSpoiled(s *Source, why string) {
	r.deadMu.Lock()
	defer r.deadMu.Unlock()
	r.spoiled[s] = why
}

func (r *runner) isSpoiled(s *Source) string {
	r.deadMu.Lock()
	defer r.deadMu.Unlock()
	return r.spoiled[s]
}

func (r *runner) setSilent(s *Source, why string) {
	r.deadMu.Lock()
	defer r.deadMu.Unlock()
	r.dead[s] = why
}

// up says whether any declared endpoint of a source accepts a connection. It
// is asked only after a dial has failed, and once for each source.
func (r *runner) up(ctx context.Context, s *Source) bool {
	r.upMu.Lock()
	defer r.upMu.Unlock()
	if up, known := r.isUp[s]; known {
		return up
	}
	up := false
	ctx, cancel := context.WithTimeout(ctx, r.opts.Deadlines.Dial)
	defer cancel()
	for _, name := range Vantages() {
		v := r.target.vantage(s, name)
		if v == nil || up {
			continue
		}
		for _, f := range []Family{IP4, IP6} {
			addr := s.Addr(name, f)
			if !addr.IsValid() || !v.Addr(f).IsValid() {
				continue
			}
			for _, ep := range s.Endpoints {
				if c, err := v.Dial(ctx, netip.AddrPortFrom(addr, ep.Port)); err == nil {
					c.Close()
					up = true
					break
				}
			}
		}
	}
	r.isUp[s] = up
	return up
}

// direct dials an endpoint of a source for the harness's own needs: barriers
// and reading mail. It never acts from the proxy's or the relay's address.
func (r *runner) direct(ctx context.Context, s *Source, endpoint string, prefer Family) (net.Conn, Endpoint, error) {
	ep, ok := s.Endpoint(endpoint)
	if !ok {
		return nil, ep, fmt.Errorf("the source was declared without the endpoint %s", endpoint)
	}
	through, detour := r.detour(s, endpoint)
	if detour {
		ep = through
	}
	families := []Family{prefer, IP4, IP6}
	var last error = fmt.Errorf("none of the vantages client and stranger reaches %s of %s", endpoint, s.Name)
	ours := []string{Client, Stranger}
	if r.care != nil {
		ours = append(ours, Neighbour) // a source may not be reached from everywhere
	}
	for _, name := range ours {
		v := r.target.vantage(s, name)
		if v == nil {
			continue
		}
		for _, f := range families {
			addr := s.Addr(name, f)
			if detour {
				addr = r.target.Proxy.Addr(f)
			}
			if !addr.IsValid() || !v.Addr(f).IsValid() {
				continue
			}
			if err := r.care.wait(ctx); err != nil {
				return nil, ep, err
			}
			dctx, cancel := context.WithTimeout(ctx, r.opts.Deadlines.Dial)
			c, err := v.Dial(dctx, netip.AddrPortFrom(addr, ep.Port))
			cancel()
			if err == nil && detour {
				return c, ep, nil
			}
			if err == nil {
				if err = introduce(s, c, ep, addr); err == nil {
					return c, ep, nil
				}
				c.Close()
			}
			last = err
		}
	}
	return nil, ep, last
}

// Unstarted is the result of a run whose target never came up: nothing was
// judged, and the problems say why.
func Unstarted(t *Target, p *Plan, tool result.Tool, began time.Time, problems ...result.Problem) *result.Run {
	run := &result.Run{Schema: result.Schema, Tool: tool, Started: began.UTC(), Seconds: time.Since(began).Seconds(),
		Target: describeTarget(t), Plan: result.Plan{SHA256: p.SHA256, MaxRisk: p.MaxRisk},
		Problems: problems, Diagnoses: []result.Diagnosis{}, Excluded: p.Excluded, Results: []result.Result{}, Notices: slices.Clone(t.Notices)}
	if run.Notices == nil {
		run.Notices = []string{}
	}
	for _, it := range p.items {
		res := it.blank()
		res.Verdict, res.Reason = result.Error, "the target did not start"
		if it.verdict != "" {
			res.Verdict, res.Reason = it.verdict, it.reason
		}
		run.Results = append(run.Results, res)
	}
	run.Counts = result.Count(run.Results)
	run.Exit = exitStatus(run, false, false)
	return run
}

// Len is how many results a plan will have.
func (p *Plan) Len() int { return len(p.items) }
