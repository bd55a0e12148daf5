package run

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailproof/mailproof/harness/proto"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/harness/wire"
	"github.com/mailproof/mailproof/harness/witness"
)

// care is what a runner keeps in mind at a target with [Limits]: servers and
// accounts that are not ours, and logs that come from afar.
type care struct {
	limits *Limits
	pace   *pacer

	mu        sync.Mutex
	trusted   map[string]bool      // paths on which the source was seen to believe the proxy
	unsettled map[string]bool      // accounts of which a line may still come
	asked     map[*Source]int      // barriers so far
	shows     map[*Source]string   // the endpoint at which a barrier was made
	mute      map[*Source][]string // those at which one was, and no line came
	accepted  map[*Source]int      // messages of ours
	repeats   map[*Source]int      // claims that were asked again
	refusals  map[string]int       // of right passwords, by account
	withdrawn map[string]string    // what was said of accounts that are left alone
	detailed  map[*Source]bool     // logs that were seen to be at DEBUG
	problems  []result.Problem
	calls     map[string]*barrierCall
	turns     map[string]chan struct{}
}

// A barrierCall is one barrier that several executions wait for.
type barrierCall struct {
	done chan struct{}
	err  error
}

func newCare(t *Target, o Options) *care {
	if t.Limits == nil {
		return nil
	}
	return &care{limits: t.Limits, pace: newPacer(o.rate(t)), trusted: map[string]bool{}, unsettled: map[string]bool{},
		asked: map[*Source]int{}, shows: map[*Source]string{}, mute: map[*Source][]string{}, accepted: map[*Source]int{}, repeats: map[*Source]int{}, refusals: map[string]int{}, withdrawn: map[string]string{}, detailed: map[*Source]bool{}, calls: map[string]*barrierCall{}, turns: map[string]chan struct{}{}}
}

func (c *care) wait(ctx context.Context) error {
	if c == nil {
		return nil
	}
	return c.pace.wait(ctx)
}

// grace is how long a record may take before the barrier is asked. Barriers are
// sign-ins: at a site they are few.
func (o *Options) siteGrace() time.Duration { return o.Deadlines.Witness / 4 }

// path is where trust is witnessed: a source, a driver, an endpoint, a family.
func (it *item) path() string {
	return strings.Join([]string{it.source.Name, it.driver, it.facet.Endpoint, it.facet.Family}, " ")
}

// risky says whether an item makes sign-ins fail from the proxy's address: it
// waits until the source has been seen to believe the proxy on that path.
func (c *care) risky(it *item) bool {
	return c != nil && blame(it.scenario)[Proxy].FailedSignIns > 0
}

// learn remembers that a path's trust was witnessed.
func (c *care) learn(it *item, res *result.Result) {
	if c == nil || res.Verdict != result.Pass || c.risky(it) ||
		!strings.HasPrefix(res.ID, "client-address.") && !strings.HasPrefix(res.ID, "proxy.") {
		return
	}
	for _, w := range res.Witness {
		if w.Kind == "log" {
			c.mu.Lock()
			c.trusted[it.path()] = true
			c.mu.Unlock()
			return
		}
	}
}

// unwitnessed marks what is not judged because something else was not.
const unwitnessed = "was not witnessed in this run"

// untrusted says why a risky item is not run yet, or "".
func (c *care) untrusted(it *item) string {
	if why := c.shallow(it); why != "" {
		return why
	}
	if !c.risky(it) || it.source.Kind == generic && it.source.AnnouncedOn(it.facet.Endpoint) == ByNothing {
		return "" // where nobody is announced, it is the proxy's by what was declared
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.trusted[it.path()] {
		return ""
	}
	return fmt.Sprintf("it makes a sign-in fail from the proxy's address, and that the source believes the proxy on %s %s: to judge it, add what witnesses that", it.facet, unwitnessed)
}

// joinless says whether an account's name joins no record.
func (c *care) joinless(a Account) bool {
	if c == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return a.Shared || c.unsettled[a.Address]
}

// ---- an execution's part

// siteJoins orders a block's keys for a target with limits: what names this
// connection alone comes before the account's name, and a name that is not
// ours alone is left out.
func (x *execution) siteJoins(st *script.Witness, wg *watching) []string {
	if x.r.care == nil {
		return wg.keys
	}
	var own, names []string
	for i, key := range wg.keys {
		if st.Joins[i].Field == "user" {
			if !x.sharedName(st.Joins[i].Value) {
				names = append(names, key)
			}
			continue
		}
		own = append(own, key)
	}
	return append(append(own, wg.peer, wg.announced), names...)
}

func (x *execution) sharedName(t script.Template) bool {
	for _, r := range t.Refs() {
		if name, ok := strings.CutPrefix(r.Name, "user."); ok && x.r.care.joinless(x.env.accounts[name]) {
			return true
		}
	}
	return false
}

// only is the name of the one connection to the source that a scenario opens,
// or "".
func only(s *script.Scenario) string {
	name, n := "", 0
	s.Walk(func(st script.Step) {
		if o, ok := st.(*script.Open); ok && o.Target == "source" {
			name, n = o.Name, n+1
		}
	})
	if n != 1 {
		return ""
	}
	return name
}

// watchPeer adds the connection itself to what its records are joined by. A
// vantage that does not know the port it left from has nothing to add.
func (x *execution) watchPeer(name string, conn *wire.Conn) {
	if x.r.care == nil || conn.Local().Port() == 0 || only(x.item.scenario) != name {
		return
	}
	for _, wg := range x.watch {
		wg.peer = witness.PeerKey(conn.Local())
		wg.w.Add(wg.peer)
	}
}

// announcedPeer is watchPeer for a connection that began with a header: a
// source that takes it records who was announced as who connected, and one that
// does not records the connection's own end. Either way the record is ours.
func (x *execution) announcedPeer(name string, src netip.AddrPort) {
	if x.r.care == nil || !src.IsValid() || only(x.item.scenario) != name {
		return
	}
	for _, wg := range x.watch {
		if wg.peer == "" {
			continue // nothing tells our own end
		}
		wg.announced = witness.PeerKey(src)
		wg.w.Add(wg.announced)
	}
}

// anothers says whether a record that is joined by an account's name tells
// itself that it is of another connection than ours.
func (j *judgement) anothers(r *witness.Record, key string) bool {
	return j.peer != "" && field(key) == "user" && r.Peer.IsValid() && witness.PeerKey(r.Peer) != j.peer && witness.PeerKey(r.Peer) != j.announced
}

// decided says whether a joined record settles a block although it does not
// have everything that is expected: one that will not grow, of a session that
// is ours alone.
func (j *judgement) decided(rs []witness.Record) bool {
	if j.satisfied(rs) {
		return true
	}
	if j.x.r.care == nil {
		return false
	}
	joined, by := j.ours(rs)
	if len(joined) == 0 || joined[0].Kind != witness.Login && joined[0].Kind != witness.Rejection {
		return false
	}
	return field(by) != "user" || len(joined) >= j.x.signed[strings.TrimPrefix(by, "user=")]
}

// signs watches the accounts of an execution, so that none is lent again
// before the log has shown what was done with it.
func (x *execution) signs() {
	l := x.r.log(x.item.source)
	if x.r.care == nil || l == nil {
		return
	}
	x.signed = map[string]int{}
	x.logins = map[string]*witness.Watch{}
	for name, a := range x.env.accounts {
		if x.item.source.Kind == generic && !x.item.joinedBy(name) {
			continue // no line is looked for by this name
		}
		if x.logins[a.Address] == nil {
			x.logins[a.Address] = l.Watch(witness.Key("user", a.Address))
		}
	}
}

// signedIn counts a sign-in that the source accepted and will log.
func (x *execution) signedIn(s *session, status string) {
	user := s.user
	s.user = ""
	if user != "" && x.r.care != nil && refusal(s.open.Protocol, status) {
		x.r.care.refused(x.env.accounts[user].Address, cut(x.redacted(status), 100))
	}
	if x.signed == nil || user == "" {
		return
	}
	accepted := strings.HasPrefix(status, "OK") || strings.HasPrefix(status, "+OK")
	switch s.open.Protocol {
	case "imap":
		_, status, _ = strings.Cut(status, " ")
		accepted = strings.HasPrefix(status, "OK")
	case "smtp": // Postfix logs no sign-in by itself
		accepted = (x.item.source.Kind == "stalwart" || x.item.joinedBy(user)) && strings.HasPrefix(status, "235")
	case "http":
		accepted = strings.HasPrefix(status, "HTTP/1.1 2") || strings.HasPrefix(status, "HTTP/1.1 101")
	}
	if accepted {
		x.signed[strings.ToLower(x.env.accounts[user].Address)]++
	}
}

// settle waits until the log has shown the sign-ins of this execution. An
// account whose lines do not come joins nothing any more.
func (x *execution) settle() {
	for address, w := range x.logins {
		if want := x.signed[strings.ToLower(address)]; want > 0 && x.r.silent(x.item.source) == "" {
			ctx, cancel := context.WithTimeout(x.ctx, x.r.opts.grace())
			_, err := w.Await(ctx, func(rs []witness.Record) bool {
				n := 0
				for i := range rs {
					if rs[i].Kind == witness.Login || rs[i].Kind == witness.Line && x.sight(rs[i:i+1], "").telling > 0 {
						n++
					}
				}
				return n >= want
			})
			cancel()
			if err != nil {
				c := x.r.care
				c.mu.Lock()
				c.unsettled[address] = true
				c.mu.Unlock()
			}
		}
		w.Close()
	}
}

// ---- the log's own proof

// begin sees, before anything is judged, that each source's log is really read:
// a session of our own must appear in it. Old lines that a
// log prints first, and a command that starts late, are thereby passed.
func (r *runner) begin(ctx context.Context) {
	if r.care == nil {
		return
	}
	var wg sync.WaitGroup
	for s, l := range r.logs {
		wg.Go(func() {
			var err error
			wait := r.opts.Deadlines.Witness / 10 // a command that has just begun misses the first
			for n := range r.care.limits.Openings {
				if wait *= 2; n == r.care.limits.Openings-1 {
					wait = r.opts.Deadlines.Witness
				}
				err = r.showLine(ctx, s, l, wait)
				var unseen *unseenLine
				if err == nil || ctx.Err() != nil || l.Err() != nil || !errors.As(err, &unseen) {
					break
				}
			}
			if lerr := l.Err(); lerr != nil {
				err = lerr
			}
			if err != nil && ctx.Err() == nil {
				r.setSilent(s, fmt.Sprintf("the log of %s proves nothing: %v: to judge it, add a log of %s that can be read for the whole run", s.Name, err, s.Name))
			}
		})
	}
	wg.Wait()
	for _, s := range r.target.Sources {
		r.care.problems = append(r.care.problems, r.checkAccounts(ctx, s)...)
	}
}

// siteBarrier is the barrier at a target with limits. Those who ask while one
// is on its way share the next.
func (r *runner) siteBarrier(ctx context.Context, it *item, kind string, l *witness.Log) error {
	c := r.care
	key := it.source.Name + " recipient"
	if kind == "login" || kind == "failed-login" {
		key = it.source.Name + " login"
	}
	for {
		c.mu.Lock()
		call, leads := c.calls[key], false
		if call == nil {
			call, leads = &barrierCall{done: make(chan struct{})}, true
			c.calls[key] = call
		}
		turn := c.turns[key]
		if turn == nil {
			turn = make(chan struct{}, 1)
			c.turns[key] = turn
		}
		c.mu.Unlock()
		if leads {
			call.err = r.lead(ctx, it, key, turn, l)
			close(call.done)
			return call.err
		}
		select {
		case <-call.done:
			if !errors.Is(call.err, context.Canceled) {
				return call.err
			}
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// lead makes one barrier, after the one that is on its way.
func (r *runner) lead(ctx context.Context, it *item, key string, turn chan struct{}, l *witness.Log) error {
	c := r.care
	var err error
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		err = ctx.Err()
	}
	c.mu.Lock()
	delete(c.calls, key)
	spent := c.asked[it.source] >= c.limits.Barriers
	if err == nil && !spent {
		c.asked[it.source]++
	}
	c.mu.Unlock()
	switch {
	case err != nil:
		return err
	case spent:
		return fmt.Errorf("the plan names no more than %d sessions that ask the log", c.limits.Barriers)
	case strings.HasSuffix(key, " login"), it.source.Kind == "stalwart":
		return r.showLine(ctx, it.source, l, r.opts.Deadlines.Witness)
	}
	return r.recipientBarrier(ctx, it, l)
}

// showLine makes the source write a line of ours to its log, from a vantage
// that is neither the proxy nor the new server, and waits for it. Where the
// vantage knows the port that it left from, a session that ends without a
// sign-in is enough: Dovecot's session id tells the port. Elsewhere a user that
// does not exist signs in: the name is of this attempt alone, so that no other
// line can be taken for it.
//
// An endpoint that does not serve is passed over, and the one that did is asked
// first from then on. Where one serves and no line comes, the next try is at
// another: what answers there may not be the source.
func (r *runner) showLine(ctx context.Context, s *Source, l *witness.Log, wait time.Duration) error {
	if s.Kind == "stalwart" {
		return r.showHello(ctx, s, l, wait)
	}
	if s.Kind == generic {
		return r.showGeneric(ctx, s, l, wait)
	}
	last := errors.New("the source was declared without an IMAP or POP3 endpoint")
	for _, endpoint := range r.care.endpoints(s) {
		if _, ok := s.Endpoint(endpoint); !ok {
			continue
		}
		last = r.showLineAt(ctx, s, l, endpoint, wait)
		var unseen *unseenLine
		if last == nil || errors.As(last, &unseen) {
			r.care.mu.Lock()
			defer r.care.mu.Unlock()
			if last == nil {
				r.care.shows[s] = endpoint
			} else if !slices.Contains(r.care.mute[s], endpoint) {
				r.care.mute[s] = append(r.care.mute[s], endpoint)
			}
			return last
		}
		if ctx.Err() != nil || l.Err() != nil {
			return last
		}
	}
	return fmt.Errorf("the session that was to show it: %w", last)
}

// endpoints are where our own sessions sign in or show a line: where that was
// seen to work, or else anywhere, last of all where nothing came of it.
func (c *care) endpoints(s *Source) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if works := c.shows[s]; works != "" {
		return []string{works}
	}
	list := slices.DeleteFunc([]string{"imaps", "imap", "pop3s", "pop3"}, func(e string) bool { return slices.Contains(c.mute[s], e) })
	return append(list, c.mute[s]...)
}

func (r *runner) showLineAt(ctx context.Context, s *Source, l *witness.Log, endpoint string, wait time.Duration) error {
	nc, ep, err := r.direct(ctx, s, endpoint, IP4)
	if err != nil {
		return err
	}
	c := wire.New(ctx, nc, "barrier", nil, r.barrierDeadlines(), wire.Shape{})
	defer c.Close()
	what, user := "a session of our own over "+endpoint+" (without a sign-in)", ""
	w := l.Watch()
	defer w.Close()
	if c.Local().Port() != 0 && s.Kind != generic {
		w.Add(witness.PeerKey(c.Local()))
	} else {
		user = fmt.Sprintf("mailproof-%s%s@%s", r.seed, base36(r.barriers.Add(1)), s.Domain)
		what = "a sign-in of our own over " + endpoint + " (of a user that does not exist)"
		w.Add(witness.Key("user", user))
	}
	if err := r.shortSession(s, c, ep, user); err != nil {
		return err
	}
	c.Close()
	return seen(ctx, l, w, wait, what)
}

// seen waits until the log shows a line of ours, which what names.
func seen(ctx context.Context, l *witness.Log, w *witness.Watch, wait time.Duration, what string) error {
	wctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	if _, err := w.Await(wctx, func(rs []witness.Record) bool { return len(rs) > 0 }); err != nil {
		switch {
		case l.Err() != nil:
			return l.Err()
		case errors.Is(context.Cause(ctx), context.Canceled):
			return context.Canceled
		}
		return &unseenLine{what}
	}
	return nil
}

// shortSession greets, begins TLS, lets a user that does not exist sign in
// where one is named, and takes leave.
func (r *runner) shortSession(s *Source, c *wire.Conn, ep Endpoint, user string) error {
	cfg := r.ownTLS(s, ep.Name)
	if ep.TLS == "implicit" {
		if err := c.StartTLS(cfg); err != nil {
			return err
		}
	}
	v := proto.NewConversation(proto.Protocol(ep.Protocol), c)
	say := func(line string) error {
		if line != "" {
			v.Sent(line)
			if err := c.SendLine("", line); err != nil {
				return err
			}
		}
		_, err := v.Next(r.opts.Deadlines.Reply)
		return err
	}
	if err := say(""); err != nil {
		return err
	}
	plain := b64("\x00" + user + "\x00wrong-" + user)
	starttls, auth, quit := "s STARTTLS", "l AUTHENTICATE PLAIN "+plain, "q LOGOUT"
	if ep.Protocol == "pop3" {
		starttls, auth, quit = "STLS", "AUTH PLAIN "+plain, "QUIT"
	}
	if user != "" {
		if ep.TLS == "starttls" {
			if err := say(starttls); err != nil {
				return err
			}
			if err := c.StartTLS(cfg); err != nil {
				return err
			}
		}
		if err := say(auth); err != nil {
			return err
		}
	}
	say(quit) // the line comes with the end of the session
	return nil
}

// ---- accounts

// maxRefused is how often a right password may be refused before its account
// is left alone: it is locked, or the password is not the right one.
const maxRefused = 2

// refusal says whether a reply refuses credentials, and not a mechanism, a
// name or the moment (RFC 5530, RFC 3206, RFC 4954).
func refusal(protocol, status string) bool {
	switch protocol {
	case "smtp":
		return strings.HasPrefix(status, "535")
	case "pop3":
		return strings.HasPrefix(status, "-ERR") && strings.Contains(status, "[AUTH]")
	case "managesieve":
		return strings.HasPrefix(status, "NO") && strings.Contains(strings.ToLower(status), "authentication failed")
	}
	for _, code := range []string{"[AUTHENTICATIONFAILED]", "[AUTHORIZATIONFAILED]", "[EXPIRED]", "[CONTACTADMIN]"} {
		if strings.Contains(status, code) {
			return true
		}
	}
	return false
}

// refused counts a refusal of a right password.
func (c *care) refused(address, reply string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refusals[address]++; c.refusals[address] >= maxRefused {
		c.withdrawn[address] = reply
	}
}

// leftAlone says why an account is left alone, or "".
func (c *care) leftAlone(a Account) string {
	if c == nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	reply, ok := c.withdrawn[a.Address]
	if !ok {
		return ""
	}
	return fmt.Sprintf("the account %s is refused (%q), and is left alone: to judge it, add the right password of %s, or another account", a.Address, reply, a.Address)
}

// checkAccounts signs in once with each account that the plan uses, from a
// vantage that is neither the proxy nor the new server. One that is refused is
// a problem of the site's, and is not used.
func (r *runner) checkAccounts(ctx context.Context, s *Source) []result.Problem {
	named, ok := s.Accounts.(NamedAccounts)
	if !ok {
		return nil
	}
	var problems []result.Problem
	var lines sync.WaitGroup // each of its own sign-in: they come in their own time
	defer lines.Wait()
	for _, i := range r.plan.lent(s) {
		as, release, err := named.TakeThese(ctx, []int{i})
		if err != nil {
			return problems
		}
		reply, line := r.checkAccount(ctx, s, as[0])
		lines.Go(line)
		release()
		if reply == "" || ctx.Err() != nil {
			continue
		}
		r.care.mu.Lock()
		r.care.withdrawn[as[0].Address] = reply
		r.care.mu.Unlock()
		problems = append(problems, result.Problem{Source: s.Name, Stage: "account", Where: "the account " + as[0].Address, Words: reply,
			Remedy: &result.Remedy{Text: "The source refuses this password, or the account is locked. What needs the account is not judged; it was tried once and is left alone."}})
	}
	return problems
}

// checkAccount returns what the source says where it refuses the account, and
// what waits until the log has shown the sign-in. It always has to be called.
func (r *runner) checkAccount(ctx context.Context, s *Source, a Account) (reply string, line func()) {
	ctx, end := context.WithTimeout(ctx, r.opts.Timeout)
	line = end
	var w *witness.Watch
	if l := r.log(s); l != nil && r.silent(s) == "" {
		w = l.Watch(witness.Key("user", a.Address))
		line = func() { end(); w.Close() }
	}
	for _, endpoint := range r.care.endpoints(s) {
		if _, ok := s.Endpoint(endpoint); !ok {
			continue
		}
		err := r.signIn(ctx, s, endpoint, a, nil)
		var no *refusedError
		if errors.As(err, &no) {
			if protocol, _, _ := strings.Cut(endpoint, "s"); refusal(protocol, no.status) {
				return no.status, line
			}
			return "", line // it refuses the form, not the password: that is for the scenarios
		}
		if err != nil {
			continue
		}
		if w == nil {
			return "", line
		}
		return "", func() {
			defer end()
			defer w.Close()
			wctx, cancel := context.WithTimeout(ctx, r.opts.grace())
			defer cancel()
			if _, err := w.Await(wctx, func(rs []witness.Record) bool { return len(rs) > 0 }); err != nil {
				r.care.mu.Lock()
				r.care.unsettled[a.Address] = true
				r.care.mu.Unlock()
			}
		}
	}
	return "", line
}

// lent lists the accounts of a source that the plan uses, by their indexes.
func (p *Plan) lent(s *Source) []int {
	var list []int
	for _, it := range p.items {
		if it.source == s && it.verdict == "" {
			list = append(list, it.lent...)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}
