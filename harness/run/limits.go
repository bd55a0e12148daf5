package run

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/script"
)

// Limits are what may be asked of servers that are not ours. They are applied
// to the plan, before anything is dialled: what is beyond them is not judged,
// and the plan says what it would need.
type Limits struct {
	FailedSignIns int           // of one account, over the whole run
	Connections   int           // of a first look at one source ([Options.Brief])
	SignIns       int           // of the same
	Rate          float64       // connections a second, where [Options.Rate] says nothing
	Openings      int           // sessions at the start that the log must show, until it shows one
	Barriers      int           // and further ones, where a record is missing
	Peak          int           // connections at a time that are no flood
	Look, Whole   time.Duration // how long a first look takes at most, and any other run
	Again         int           // claims of a source that are asked again because its log lost the line
}

// SiteLimits are those of an operator's servers.
func SiteLimits() *Limits {
	return &Limits{FailedSignIns: 2, Connections: 60, SignIns: 25, Rate: 5, Openings: 3, Barriers: 4, Peak: 10, Again: 4, Look: 2 * time.Minute, Whole: 15 * time.Minute}
}

// The words of --allow beside the hazards: what the proxy's and the new
// server's addresses are not blamed for unless the operator says so.
const (
	AllowFailedSignIns  = "failed-sign-ins"
	AllowProtocolErrors = "protocol-errors"
	AllowBadRecipients  = "bad-recipients"
)

// Allowances lists everything that may be allowed by name at a site.
func Allowances() []string {
	return []string{"ban", "flood", "loop", "restart", AllowFailedSignIns, AllowProtocolErrors, AllowBadRecipients}
}

// NamedAccounts are accounts that a plan can be made with: which execution
// gets which is known before the first dial.
type NamedAccounts interface {
	Accounts
	Len() int
	// TakeThese waits for the accounts of these indexes.
	TakeThese(ctx context.Context, which []int) ([]Account, func(), error)
}

// An AccountsDemand is how many accounts of a source a site names, and how many let
// everything be judged that can be, with every flag.
type AccountsDemand struct {
	Source string `json:"source"`
	Named  int    `json:"named"`
	Needed int    `json:"needed"`
}

// accounts counts both: none is made to fail more often than it may.
func (l *limiter) accounts(groups [][]*item, src *Source) AccountsDemand {
	a := AccountsDemand{Source: src.Name}
	if named, ok := src.Accounts.(NamedAccounts); ok {
		a.Named = named.Len()
	}
	fails := 0
	for _, g := range groups {
		for _, it := range g {
			if it.source == src && l.could[it] {
				fails += it.scenario.Demand().WrongSignIns() * max(1, l.o.Repeat)
				a.Needed = max(a.Needed, min(len(it.users), 2))
			}
		}
	}
	a.Needed = max(a.Needed, (fails+l.l.FailedSignIns-1)/l.l.FailedSignIns)
	return a
}

// A Demand is what a whole plan asks of a target with [Limits].
type Demand struct {
	Connections   int              `json:"connections"`
	SignIns       int              `json:"sign_ins"`
	FailedSignIns int              `json:"failed_sign_ins"` // with accounts that exist
	Barriers      int              `json:"barriers"`        // at most: sessions that only the log is to show
	UnknownUsers  int              `json:"unknown_users"`   // at most: those of them in which a user that does not exist signs in
	Again         int              `json:"again"`           // at most: sign-ins that are repeated because a Stalwart's log lost their line
	Messages      int              `json:"messages"`
	Accounts      []AccountsDemand `json:"accounts"`
	Rate          float64          `json:"rate"`            // connections a second
	Seconds       float64          `json:"seconds"`         // that the pace alone takes
	AtMost        float64          `json:"at_most_seconds"` // then the run ends, whatever the servers do
	Sweep         float64          `json:"sweep_seconds"`   // of these, to remove messages; at most
}

// within is when a run stops judging, so that it is over when it was said to be.
func (d *Demand) within() time.Duration {
	return time.Duration((d.AtMost - d.Sweep) * float64(time.Second))
}

// limit marks what may not be run, chooses the accounts of what may, and counts.
func limit(t *Target, o Options, groups [][]*item) *Demand {
	l := &limiter{t: t, o: o, l: t.Limits, could: map[*item]bool{}}
	for _, g := range groups {
		for _, it := range g {
			if it.verdict == "" || it.verdict == result.Inconclusive {
				_, why := l.unreachable(it)
				l.could[it] = why == ""
			}
			if it.verdict == "" {
				it.verdict, it.reason = l.unreachable(it)
			} else if it.risky {
				if v, why := l.unreachable(it); v != "" {
					it.verdict, it.reason, it.risky = v, why, false
				}
			}
			switch _, more := l.blamed(it); {
			case more == "":
			case it.verdict == "":
				it.verdict, it.reason = result.Inconclusive, more
			case it.risky:
				// Both are said at once, so that one more run is enough.
				_, allow, _ := strings.Cut(more, ": to judge it, add ")
				it.reason += " " + allow
			}
		}
	}
	l.brief(groups)
	return l.demand(groups)
}

type limiter struct {
	t     *Target
	o     Options
	l     *Limits
	could map[*item]bool // with every flag: where from, and where to, is there
}

// unreachable says why an item has nowhere to act from, or nothing to act on.
func (l *limiter) unreachable(it *item) (result.Verdict, string) {
	f := Family(it.facet.Family)
	missing, off := "", ""
	public := l.t.Proxy == nil
	announces := false
	it.scenario.Walk(func(st script.Step) {
		if _, ok := st.(*script.Act); ok && it.source.Admin == nil {
			off = "it changes settings of the source, and nothing is changed at a site: labs judge it"
		}
		o, ok := st.(*script.Open)
		if !ok {
			return
		}
		announces = announces || o.Target == "source" && !o.For.Empty() && it.source.AnnouncedOn(cmp.Or(o.Endpoint, it.facet.Endpoint)) == ByPROXY
		switch {
		case o.Target == "proxy":
			if l.t.Proxy != nil && !l.t.Proxy.Addr(f).IsValid() {
				off = fmt.Sprintf("the proxy was declared without an address in %s", f)
			} else if name := o.Endpoint; l.t.Proxy != nil {
				if name == "" {
					name = it.facet.Endpoint
				}
				if _, ok := l.t.Proxy.Endpoint(name); !ok {
					off = "the proxy was declared without the endpoint " + name
				}
			}
		case !it.source.Addr(o.Vantage, f).IsValid():
			off = fmt.Sprintf("the source was declared without an address in %s", f)
		}
		if !l.has(o.Vantage, f) && missing == "" {
			missing = o.Vantage
		}
	})
	if off != "" {
		return result.Unsupported, off
	}
	const noPublic = "it announces where clients reach the proxy, and the site names no proxy: to judge it, add [proxy]"
	if why := l.crowded(it); why != "" {
		return result.Unsupported, why
	}
	if announces && public {
		return result.Inconclusive, noPublic
	}
	if announces && !l.t.Proxy.Addr(f).IsValid() {
		return result.Unsupported, fmt.Sprintf("the proxy was declared without an address in %s, and has no client to announce there", f)
	}
	for _, r := range it.scenario.Refs() {
		switch {
		case (r.Name == "basic-admin" || r.Name == "basic-limited-admin") && it.source.Admin == nil:
			return result.Unsupported, "it signs in as the source's administrator, which nobody does at a site: labs judge it"
		case r.Name == "public-name" && public:
			return result.Inconclusive, "it asks for the name by which clients know the proxy, and the site names no proxy: to judge it, add [proxy]"
		case r.Name == "public-name" && l.t.Proxy.ServerName == "":
			return result.Inconclusive, "it asks for the name by which clients know the proxy, and the site names none: to judge it, add host to [proxy]"
		case r.Name == "source-name" && it.source.ServerName == "":
			return result.Inconclusive, "it asks for the source's name, and the site names none: to judge it, add host to [source." + it.source.Name + "]"
		}
		for _, name := range append([]string{r.Name}, r.Args...) {
			if name == "public" && public {
				return result.Inconclusive, noPublic
			}
			if slices.Contains(Vantages(), name) && !l.has(name, f) && missing == "" {
				missing = name
			}
		}
	}
	switch {
	case missing == "":
	case l.t.Vantages[missing] == nil:
		return result.Inconclusive, fmt.Sprintf("it acts from the vantage %s or looks for its address, and the site names no such vantage: to judge it, add %s to [vantage]", missing, missing)
	default:
		return result.Inconclusive, fmt.Sprintf("it acts from the vantage %s or looks for its address, which has none in %s: to judge it, add %s to the vantage %s", missing, f, f, missing)
	}
	return "", ""
}

// crowd is from how many users on sessions of one account stand for several.
const crowd = 10

// crowded says why a claim about many users at a time cannot be judged with the
// accounts that a site names: a source that is told of clients by a header alone
// records nothing else that tells two sessions of one account apart.
func (l *limiter) crowded(it *item) string {
	named, ok := it.source.Accounts.(NamedAccounts)
	if n := len(it.users); ok && it.source.Announces == ByPROXY && n > crowd && n > named.Len() {
		return fmt.Sprintf("it needs %d accounts at a source that is told of clients by a header, and the site names %d: labs judge it", n, named.Len())
	}
	return ""
}

func (l *limiter) has(vantage string, f Family) bool {
	v := l.t.Vantages[vantage]
	return v != nil && v.Addr(f).IsValid()
}

// blame is what an item could make the source hold against each vantage. A
// sign-in that fails through the proxy is the proxy's as well.
func blame(s *script.Scenario) map[string]script.Blame {
	by := s.Blame()
	if s.Driver() == "through" {
		p := by[Proxy]
		p.FailedSignIns += by[Client].FailedSignIns
		by[Proxy] = p
	}
	return by
}

// blamed says which allowance an item wants.
func (l *limiter) blamed(it *item) (result.Verdict, string) {
	by := blame(it.scenario)
	var wants, because []string
	want := func(word, why string) {
		if !slices.Contains(l.o.Allow, word) && !slices.Contains(wants, word) {
			wants, because = append(wants, word), append(because, why)
		}
	}
	for _, v := range []string{Proxy, Relay} {
		b := by[v]
		if b.FailedSignIns > 0 {
			want(AllowFailedSignIns, "it makes a sign-in fail from the "+v+"'s address")
		}
		if b.ProtocolErrors > 0 {
			want(AllowProtocolErrors, "it sends from the "+v+"'s address what is to be refused")
		}
		if b.BadRecipients > 0 {
			want(AllowBadRecipients, "it names from the "+v+"'s address recipients that are to be refused")
		}
	}
	peak := it.scenario.Demand().Messages
	for _, b := range by {
		peak = max(peak, b.Peak)
	}
	if peak > l.l.Peak {
		want("flood", fmt.Sprintf("it makes %d connections or messages at a time", peak))
	}
	if len(wants) == 0 {
		return "", ""
	}
	return result.Inconclusive, strings.Join(because, ", and ") + ": to judge it, add --allow " + strings.Join(wants, ",")
}

// brief chooses what is run: everything that the accounts allow, or with
// [Options.Brief] as much as a first look may ask for, the most telling first.
func (l *limiter) brief(groups [][]*item) {
	for _, src := range l.t.Sources {
		lend := newLender(src, l.l.FailedSignIns)
		var short []*item // of accounts that may still fail
		fails := 0
		left := script.Demand{Connections: 1 << 30, SignIns: 1 << 30}
		if l.o.Brief {
			lend.few = min(len(lend.failed), briefAccounts)
			left.Connections, left.SignIns = l.l.Connections-lend.few, l.l.SignIns-lend.few // each is tried once first
			if len(src.Logs) > 0 {                                                          // for the barrier that every run begins with
				left.Connections -= 2
			}
			if again := l.again(src); again > 0 {
				left.Connections -= again
				left.SignIns -= again
			}
		}
		for _, it := range l.order(groups, src) {
			d := it.scenario.Demand()
			connections, signIns := d.Connections+d.Mailboxes, d.SignIns+d.Mailboxes+d.WrongSignIns()
			if connections > left.Connections || signIns > left.SignIns {
				it.verdict = result.Inconclusive
				it.reason = fmt.Sprintf("a first look makes no more than %d connections and %d sign-ins: to judge it, add --max-risk %s", l.l.Connections, l.l.SignIns, l.o.MaxRisk)
				continue
			}
			if it.lent, it.reason = lend.take(it, l.o.Repeat); it.reason != "" {
				it.verdict = result.Inconclusive
				continue
			}
			if len(it.users) > 0 && it.lent == nil {
				short = append(short, it)
				fails += d.WrongSignIns() * max(1, l.o.Repeat)
				continue
			}
			left.Connections -= connections
			left.SignIns -= signIns
		}
		for _, it := range short {
			it.verdict = result.Inconclusive
			it.reason = fmt.Sprintf("it makes a sign-in fail on purpose, and no account may fail more than %d times: to judge it, add %s of %s", l.l.FailedSignIns,
				accountsMore((fails+l.l.FailedSignIns-1)/l.l.FailedSignIns), it.source.Name)
		}
	}
}

// order lists a source's items that may run, in the order in which a first
// look takes them: in rounds, one facet of each family in the first, and the
// drivers by how much rests on them.
func (l *limiter) order(groups [][]*item, src *Source) []*item {
	type ranked struct {
		it   *item
		rank int
	}
	var list []ranked
	for _, g := range groups {
		seen := map[string]int{}
		for _, it := range g {
			if it.source != src || it.verdict != "" {
				continue
			}
			of := it.facet.Family + it.facet.Protocol
			if it.facet.Protocol == "smtp" {
				of += it.facet.Endpoint
			}
			list = append(list, ranked{it, 10*seen[of] + weigh(it)})
			seen[of]++
		}
	}
	slices.SortStableFunc(list, func(a, b ranked) int { return a.rank - b.rank })
	out := make([]*item, len(list))
	for i := range list {
		out[i] = list[i].it
	}
	return out
}

// weigh is how soon a first look takes an item.
func weigh(it *item) int {
	id := it.scenario.ID
	switch {
	case it.gate, it.driver == "through":
		return 0
	case strings.HasPrefix(id, "client-address."):
		if it.scenario.Demand().Connections == 1 && !strings.Contains(id, "split") && !strings.Contains(id, "port") {
			return 1
		}
		return 8
	case strings.HasPrefix(id, "lifecycle.greeting"), strings.HasSuffix(id, "-offered"), strings.HasSuffix(id, ".offered"):
		return 2
	case it.scenario.Risk() == script.R0:
		return 3
	case strings.HasPrefix(id, "trust.") && it.facet.Family == "ip4":
		return 4
	case strings.HasPrefix(id, "trust."):
		return 5
	}
	return 7
}

// demand counts what is left to run.
func (l *limiter) demand(groups [][]*item) *Demand {
	n := max(1, l.o.Repeat)
	d := &Demand{Rate: l.o.rate(l.t)}
	unknown := 0
	for _, g := range groups {
		for _, it := range g {
			if it.verdict != "" {
				continue
			}
			s := it.scenario.Demand()
			d.Connections += n * (s.Connections + s.Mailboxes)
			d.SignIns += n * (s.SignIns + s.Mailboxes)
			d.FailedSignIns += n * s.WrongSignIns()
			d.Messages += n * s.Messages
		}
	}
	for _, src := range l.t.Sources {
		d.Accounts = append(d.Accounts, l.accounts(groups, src))
		used := map[int]bool{}
		for _, g := range groups {
			for _, it := range g {
				for _, i := range it.lent {
					if it.source == src && it.verdict == "" {
						used[i] = true
					}
				}
			}
		}
		d.Connections += len(used) // each is tried once first
		d.SignIns += len(used)
		if d.Messages > 0 { // and what was delivered is removed
			d.Connections += len(used)
			d.SignIns += len(used)
			d.Sweep += sweepFor.Seconds()
		}
		d.Again += l.again(src)
		if len(src.Logs) > 0 {
			d.Barriers += l.l.Openings + l.l.Barriers
			if src.Kind != "stalwart" {
				unknown += l.l.Openings + l.l.Barriers
			}
		}
	}
	for _, name := range []string{Client, Stranger, Neighbour} {
		if v, ok := l.t.Vantages[name].(interface{ Portless() bool }); ok && v.Portless() {
			d.UnknownUsers = unknown
		}
	}
	for _, src := range l.t.Sources {
		if src.Kind == generic && len(src.Logs) > 0 {
			d.UnknownUsers = d.Barriers
		}
	}
	if d.Rate > 0 {
		d.Seconds = float64(d.Connections) / d.Rate
	}
	whole := l.l.Whole
	if l.o.Brief {
		whole = l.l.Look
	}
	// A run that is paced slowly, or repeated, is given the time for it.
	d.AtMost = float64(n)*whole.Seconds() + 2*d.Seconds + d.Sweep
	return d
}

// again is how many claims of a source may be asked again because its log lost
// what decides them: only Stalwart's does.
func (l *limiter) again(s *Source) int {
	if s.Kind != "stalwart" || len(s.Logs) == 0 {
		return 0
	}
	return l.l.Again
}

// rate is how many connections are made a second; 0 is no limit.
func (o Options) rate(t *Target) float64 {
	if o.Rate > 0 || t.Limits == nil {
		return o.Rate
	}
	return t.Limits.Rate
}

// briefAccounts is how many accounts a first look makes do with.
const briefAccounts = 3

// A lender gives each item its accounts, so that none fails to sign in more
// often than it may.
type lender struct {
	named  NamedAccounts
	few    int // with how many it makes do, where it can; 0 for all
	failed []int
	next   int
	most   int
}

func newLender(src *Source, most int) *lender {
	named, _ := src.Accounts.(NamedAccounts)
	l := &lender{named: named, most: most}
	if named != nil {
		l.failed = make([]int, named.Len())
	}
	return l
}

// take chooses accounts for an item's users, or says why there are none. None
// and no reason say that all have failed as often as they may. A scenario with
// many users has several of them in one account.
func (l *lender) take(it *item, repeat int) (lent []int, why string) {
	if len(it.users) == 0 {
		return nil, ""
	}
	n := len(l.failed)
	need := min(len(it.users), 2)
	if n < need {
		return nil, fmt.Sprintf("it needs %d %s of %s, and the site names %d: to judge it, add %s of %s", need, plural(need, "account", "accounts"), it.source.Name, n, accountsMore(need-n), it.source.Name)
	}
	half := l.half(it)
	failing := it.scenario.Demand().Failing
	lent = make([]int, len(it.users))
	taken := make([]bool, n)
	for _, wrong := range []bool{true, false} { // the choice is narrower for those that fail
		for i, u := range it.users {
			fails := failing[u] * max(1, repeat)
			if fails > 0 != wrong {
				continue
			}
			at := -1
			among := n
			if l.few >= len(it.users) && fails == 0 {
				among = l.few
			}
			for k := range among {
				c := (l.next + k) % among
				if half > 0 && (c < half) != it.joinedBy(u) {
					continue
				}
				if l.failed[c]+fails > l.most && fails > 0 || taken[c] && (len(it.users) <= n || wrong) {
					continue
				}
				if at < 0 || fails > 0 && l.failed[c] < l.failed[at] {
					at = c
				}
			}
			if at < 0 {
				return nil, "" // every account has failed as often as it may
			}
			lent[i], taken[at] = at, true
			l.failed[at] += fails
			l.next = at + 1
		}
	}
	return lent, ""
}

// half is how many of the accounts are for what looks for their names in a log
// of unknown form; 0 where there are too few to part them. The others' lines may
// come late, and nothing tells them apart.
func (l *lender) half(it *item) int {
	n := len(l.failed)
	half := n / 2
	if l.few > 0 {
		n, half = l.few, 1
	}
	if it.source.Kind != generic || min(half, n-half) < min(len(it.users), 2) {
		return 0
	}
	return half
}

// lend takes the accounts of these indexes, of which some may stand twice.
func lend(ctx context.Context, named NamedAccounts, which []int) ([]Account, func(), error) {
	once := slices.Clone(which)
	slices.Sort(once)
	once = slices.Compact(once)
	as, release, err := named.TakeThese(ctx, once)
	if err != nil {
		return nil, nil, err
	}
	list := make([]Account, len(which))
	for i, w := range which {
		k, _ := slices.BinarySearch(once, w)
		list[i] = as[k]
		if len(once) < len(which) {
			list[i].Shared = true // with another user of the same scenario
		}
	}
	return list, release, nil
}

func accountsMore(n int) string {
	return fmt.Sprintf("%d %s", n, plural(n, "account", "accounts"))
}

// A pacer lets connections leave at the planned rate.
type pacer struct {
	turn chan struct{}
	gap  time.Duration
	next time.Time
}

func newPacer(rate float64) *pacer {
	if rate <= 0 {
		return nil
	}
	return &pacer{turn: make(chan struct{}, 1), gap: time.Duration(float64(time.Second) / rate)}
}

// wait returns when the next connection may leave.
func (p *pacer) wait(ctx context.Context) error {
	if p == nil {
		return nil
	}
	select {
	case p.turn <- struct{}{}:
		defer func() { <-p.turn }()
	case <-ctx.Done():
		return ctx.Err()
	}
	if d := time.Until(p.next); d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p.next = time.Now().Add(p.gap)
	return nil
}
