package run

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/mailproof/mailproof/harness/proto"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/harness/wire"
	"github.com/mailproof/mailproof/harness/witness"
)

// The reasons for which an execution stops. A claim that failed has its
// findings; errStop only ends the steps.
var errStop = errors.New("the claim is decided")

// An openClaim says that the claim could not be judged.
type openClaim struct {
	reason string
	// lost says that the source's log lost what would have decided the claim:
	// asked again, it may keep it.
	lost bool
}

func (e *openClaim) Error() string { return e.reason }

// An execution runs one scenario once, at one source and facet.
type execution struct {
	r     *runner
	item  *item
	ctx   context.Context
	env   *env
	tr    *wire.Transcript
	res   *result.Result
	conns map[string]*session
	watch map[*script.Witness]*watching
	fault *Fault
	// sends counts what was sent; flushed is the count at which the source's
	// log was last seen to be complete. While they agree, a record that is
	// missing stays missing.
	sends, flushed int
	changed        change
	lost           bool     // the log lost what would have decided the claim
	blocked        []string // who was banned before a scenario with that hazard
	// At a target with limits: sign-ins by account, and what the log shows of them.
	signed map[string]int
	logins map[string]*witness.Watch
	// With [Options.Onward]: what is not taken up again, and whether the
	// dialogue is no longer the one that its witnesses are about.
	onward, astray bool
	over           map[string]bool // connections by their names, and by the places where they are opened
}

// A session is one open connection of an execution.
type session struct {
	open     *script.Open
	endpoint Endpoint
	conn     *wire.Conn
	conv     *proto.Conversation
	waiting  []*script.Reply // <~ and <! until the next <-
	sent     string          // the last command, as it may be shown
	user     string          // whose credentials it carried
	// recipients is how many were accepted for the message that is to come.
	recipients int
	sentAt     time.Time
}

// watching is what a witness step has collected since the execution began.
type watching struct {
	w    *witness.Watch
	keys []string // in the order of the joins; "" where a value is not known yet
	peer string   // the key of the only connection, at a target with limits
	// announced is the key of who was announced by a header on it.
	announced string
}

// execute runs one scenario once.
func (r *runner) execute(ctx context.Context, it *item) (res result.Result, lost bool) {
	res = it.blank()
	began := time.Now()
	defer func() { res.Seconds = time.Since(began).Seconds() }()

	ctx, cancel := context.WithTimeoutCause(ctx, r.opts.Timeout, errScenarioTimeout)
	defer cancel()
	accounts, release, err := r.accounts(ctx, it)
	if err != nil {
		res.Verdict, res.Reason = result.Inconclusive, err.Error()
		r.stopped(ctx, &res)
		return res, false
	}
	defer release()

	x := &execution{r: r, item: it, ctx: ctx, res: &res, fault: r.opts.Fault,
		conns: make(map[string]*session, 4)}
	x.env = r.newEnv(it, accounts)
	x.env.local = x.local
	x.onward = r.opts.Onward != nil && r.opts.Onward(it.source.Name)
	secrets := make([]wire.Secret, 0, len(accounts)+1)
	for _, name := range sortedKeys(accounts) {
		secrets = append(secrets, wire.Secret{Name: name, Value: accounts[name].Password})
	}
	secrets = append(secrets, wire.Secret{Name: "master", Value: x.env.master})
	if a := it.source.Administrator; a != nil {
		secrets = append(secrets, wire.Secret{Name: "administrator", Value: a.Password})
	}
	if a := it.source.Limited; a != nil {
		secrets = append(secrets, wire.Secret{Name: "limited-administrator", Value: a.Password})
	}
	x.tr = wire.NewTranscript(wire.NewRedactor(secrets...))

	if it.source.Admin != nil && slices.Contains(it.scenario.Hazards, "ban") {
		x.blocked, err = it.source.Admin.Blocked(ctx)
	}
	if err == nil {
		err = x.prepare()
	}
	x.signs()
	if err == nil {
		err = x.phases()
	}
	x.settle()
	x.cleanup()
	if perr := errors.Join(x.putBack(), x.unban()); perr != nil {
		err = fmt.Errorf("%s could not be put back as it was, and is not judged any further: %w", it.source.Name, perr)
		res.Findings = nil
		r.setSpoiled(it.source, err.Error())
	}
	res.Transcript = x.tr.String()
	x.judge(err)
	x.redactAll()
	return res, x.lost
}

var errScenarioTimeout = errors.New("the scenario took longer than it may")

// judge turns how the steps ended into a verdict.
func (x *execution) judge(err error) {
	res := x.res
	var open *openClaim
	var missing *missingVantage
	var vantage *VantageError
	cause := context.Cause(x.ctx)
	switch {
	case len(res.Findings) > 0:
		res.Verdict = result.Fail
		if res.Line <= 1 {
			res.Line = res.Findings[0].At.Line
		}
	case err == nil, errors.Is(err, errStop):
		res.Verdict = result.Pass
	case x.r.stopped(x.ctx, res):
	case errors.As(err, &open):
		res.Verdict, res.Reason = result.Inconclusive, open.reason
		x.lost = open.lost
	case errors.As(err, &missing), errors.Is(err, errNoAdministrator):
		res.Verdict, res.Reason = result.Inconclusive, err.Error()
	case errors.As(err, &vantage):
		res.Verdict, res.Reason = result.Error, err.Error()
		if x.r.care != nil {
			res.Reason += fmt.Sprintf(": to judge it, add a way to the vantage %s that works (%v)", vantage.Vantage, vantage.Err)
		}
	case errors.Is(cause, errScenarioTimeout):
		res.Verdict, res.Reason = result.Error, fmt.Sprintf("the scenario took longer than the %s that one may take (--timeout)", x.r.opts.Timeout)
	default:
		res.Verdict, res.Reason = result.Error, err.Error()
	}
}

// prepare opens a watch for every witness that reads a log, before anything is
// sent: what the source logs afterwards is seen whenever it comes.
func (x *execution) prepare() error {
	for _, w := range x.item.witnesses {
		l := x.r.log(x.item.source)
		if l == nil {
			continue
		}
		wg := &watching{keys: make([]string, len(w.Joins))}
		var known []string
		for i, j := range w.Joins {
			if j.Field == "peer" {
				continue
			}
			v, _, err := j.Value.Expand(x.env)
			if err != nil {
				continue // a capture that is not known yet
			}
			wg.keys[i] = witness.Key(j.Field, v)
			known = append(known, wg.keys[i])
		}
		wg.w = l.Watch(known...)
		if x.watch == nil {
			x.watch = make(map[*script.Witness]*watching)
		}
		x.watch[w] = wg
	}
	return nil
}

func (x *execution) cleanup() {
	for _, name := range sortedKeys(x.conns) {
		x.conns[name].conn.Close()
	}
	for _, wg := range x.watch {
		wg.w.Close()
	}
}

func (x *execution) phases() error {
	for i := range x.item.scenario.Phases {
		p := &x.item.scenario.Phases[i]
		began := time.Now()
		err := x.steps(p.Steps)
		x.res.Phases = append(x.res.Phases, result.Phase{Title: p.Title, Line: p.Pos.Line, Seconds: time.Since(began).Seconds()})
		if err != nil {
			return err
		}
	}
	return nil
}

func (x *execution) steps(steps []script.Step) error {
	for _, st := range steps {
		err := x.step(st)
		if err != nil && x.goesOn(st, err) {
			err = nil
		}
		if err != nil {
			if x.res.Line <= 1 {
				x.res.Line = st.At().Top().Line
			}
			return err
		}
	}
	return nil
}

// afterFailure is how long an assertion may still take at a source where
// something has failed, when the execution goes on all the same.
const afterFailure = 500 * time.Millisecond

// goesOn says whether the steps go on after one that decided the claim; see
// [Options.Onward]. A reply that was read leaves its connection as it was; a
// connection that was lost is not taken up again.
func (x *execution) goesOn(st script.Step, err error) bool {
	if !x.onward || !errors.Is(err, errStop) || len(x.res.Findings) == 0 { // who was turned away has nothing left to ask
		return false
	}
	name, must := "", true
	switch st := st.(type) {
	case *script.Open:
		name = st.Name
	case *script.Upgrade:
		name = st.Name
	case *script.Send:
		name = st.Name
	case *script.Closed:
		name = st.Name
	case *script.Reply:
		name, must = st.Name, st.Must
	default:
		return false
	}
	x.astray = true
	if x.over == nil {
		x.over = make(map[string]bool)
	}
	if last := x.res.Findings[len(x.res.Findings)-1]; must && last.Code == "mismatch" {
		return true
	}
	x.over[name] = true
	if o, ok := st.(*script.Open); ok {
		x.over[o.Pos.String()] = true
	} else if s := x.conns[name]; s != nil {
		x.over[s.open.Pos.String()] = true
	}
	if s := x.conns[name]; s != nil {
		s.conn.Close()
	}
	return true
}

// leftOut says whether a step is none of an execution that went on after a
// failure: it is about a connection that was lost, or a witness.
func (x *execution) leftOut(st script.Step) bool {
	switch st := st.(type) {
	case *script.Open:
		// What was lost in one round of a loop is not tried in the next.
		x.over[st.Name] = x.over[st.Pos.String()]
		return x.over[st.Name]
	case *script.Send:
		return x.over[st.Name]
	case *script.Reply:
		return x.over[st.Name]
	case *script.Closed:
		return x.over[st.Name]
	case *script.Upgrade:
		return x.over[st.Name]
	case *script.Witness:
		return true
	}
	return false
}

// patience is how long an assertion may take.
func (x *execution) patience(must bool, d time.Duration) time.Duration {
	if must && x.onward && len(x.res.Findings) > 0 {
		return min(d, afterFailure)
	}
	return d
}

func (x *execution) step(st script.Step) error {
	if cause := context.Cause(x.ctx); cause != nil {
		return cause
	}
	if x.astray && x.leftOut(st) {
		return nil
	}
	switch st := st.(type) {
	case *script.Open:
		return x.open(st)
	case *script.Send:
		return x.send(st)
	case *script.Reply:
		return x.reply(st)
	case *script.Closed:
		return x.closed(st)
	case *script.Upgrade:
		return x.upgrade(st)
	case *script.Close:
		s := x.conns[st.Name]
		if s == nil {
			return nil
		}
		// A peer that is gone already is closed as well.
		if st.Half {
			s.conn.CloseWrite()
		} else {
			s.conn.Close()
		}
		return nil
	case *script.Shape:
		if s := x.conns[st.Name]; s != nil {
			shape, _ := wire.ShapeNamed(st.Shape)
			s.conn.SetShape(shape)
		}
		return nil
	case *script.Witness:
		switch st.Kind {
		case "message":
			return x.message(st)
		case "line":
			return x.lined(st)
		}
		return x.logged(st)
	case *script.Barrier:
		return x.barrier()
	case *script.Act:
		return x.act(st)
	case *script.If:
		if x.item.holds(st.Conds) {
			return x.steps(st.Then)
		}
		return x.steps(st.Else)
	}
	return fmt.Errorf("%s: the engine does not know this step", st.At())
}

// local is where a connection left from.
func (x *execution) local(name string) (netip.AddrPort, bool) {
	s := x.conns[name]
	if s == nil {
		return netip.AddrPort{}, false
	}
	return s.conn.Local(), true
}

// open dials an endpoint from a vantage, announces by PROXY header if the step
// says so, and does the handshake where TLS is implicit.
func (x *execution) open(o *script.Open) error {
	ep, addr, cfg, err := x.item.where(x.r.target, o)
	if err != nil {
		return err
	}
	v := x.r.target.vantage(x.item.source, o.Vantage)
	if v == nil || !v.Addr(x.env.family).IsValid() {
		return &missingVantage{o.Vantage, x.env.family}
	}
	dl := x.r.opts.Deadlines
	to := netip.AddrPortFrom(addr, ep.Port)
	if old := x.conns[o.Name]; old != nil {
		old.conn.Close()
	}
	if err := x.pace(o, ep, v); err != nil {
		return err
	}
	if err := x.r.care.wait(x.ctx); err != nil {
		return err
	}
	dctx, cancel := context.WithTimeout(x.ctx, dl.Dial)
	nc, err := v.Dial(dctx, to)
	cancel()
	if err != nil {
		return x.dialFailed(o, ep, to, err)
	}
	x.tr.Add(o.Name, wire.Note, false, fmt.Sprintf("%s -> %s %s to %s", nc.LocalAddr(), to, o.Vantage, ep.Name))
	shape := x.r.opts.Shape
	if o.Shape != "" {
		shape, _ = wire.ShapeNamed(o.Shape)
	}
	conn := wire.New(x.ctx, nc, o.Name, x.tr, dl, shape)
	s := &session{open: o, endpoint: ep, conn: conn, conv: proto.NewConversation(proto.Protocol(o.Protocol), conn)}
	x.conns[o.Name] = s
	x.watchPeer(o.Name, conn)
	for _, wg := range x.item.witnesses {
		for i, j := range wg.Joins {
			if j.Field == "peer" && j.Value.String() == o.Name && x.watch[wg] != nil && conn.Local().Port() != 0 {
				key := witness.PeerKey(conn.Local())
				x.watch[wg].keys[i] = key
				x.watch[wg].w.Add(key)
			}
		}
	}
	switch {
	case o.Announce != "":
		if err := x.announce(o, s); err != nil {
			return err
		}
	case !o.For.Empty() && o.Target == "source" && ep.Name != "smtp" && x.item.source.AnnouncedOn(ep.Name) == ByPROXY:
		if err := x.announceFor(o, s); err != nil {
			return err
		}
	}
	mode := o.TLS
	if mode == "" {
		mode = ep.TLS
	}
	if mode == "implicit" {
		return x.handshake(o.Pos, s, cfg)
	}
	return nil
}

func (x *execution) announce(o *script.Open, s *session) error {
	h := proto.ProxyHeader{Form: proto.HeaderForm(o.Announce)}
	for _, end := range []struct {
		t  script.Template
		to *netip.AddrPort
	}{{o.Src, &h.Src}, {o.Dst, &h.Dst}} {
		if end.t.Empty() {
			continue
		}
		v, _, err := end.t.Expand(x.env)
		if err != nil {
			return err
		}
		if *end.to, err = addrPort(v); err != nil {
			return fmt.Errorf("%s: %w", o.Pos, err)
		}
	}
	b, err := h.Encode()
	if err != nil {
		return fmt.Errorf("%s: %w", o.Pos, err)
	}
	x.announcedPeer(o.Name, h.Src)
	return x.failed(o.Pos, s, s.conn.Send(fmt.Sprintf("[PROXY header %s %s %s]", h.Form, h.Src, h.Dst), b), "a "+string(h.Form)+" header")
}

// addrPort reads "address:port", IPv6 with or without its brackets.
func addrPort(s string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap, nil
	}
	i := strings.LastIndexByte(s, ':')
	if i < 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address and port", s)
	}
	return netip.ParseAddrPort("[" + s[:i] + "]" + s[i:])
}

// announceFor sends the header that a proxy sends for a client of its own.
// Port 25 is not among what a proxy announces on.
func (x *execution) announceFor(o *script.Open, s *session) error {
	v, _, err := o.For.Expand(x.env)
	if err != nil {
		return err
	}
	client, err := netip.ParseAddr(v)
	if err != nil {
		return fmt.Errorf("%s: %w", o.Pos, err)
	}
	public, err := x.env.address("public", FamilyOf(client))
	if err != nil {
		return err
	}
	h := proto.ProxyHeader{Form: proto.ProxyV2, Src: netip.AddrPortFrom(client, x.env.port), Dst: netip.AddrPortFrom(public, s.endpoint.Port)}
	b, err := h.Encode()
	if err != nil {
		return fmt.Errorf("%s: %w", o.Pos, err)
	}
	x.announcedPeer(o.Name, h.Src)
	return x.failed(o.Pos, s, s.conn.Send(fmt.Sprintf("[PROXY header %s %s %s]", h.Form, h.Src, h.Dst), b), "a "+string(h.Form)+" header")
}

// dialFailed judges a dial that did not succeed: a declared port of a source
// that is up must answer; a source that is down altogether is not judged.
func (x *execution) dialFailed(o *script.Open, ep Endpoint, to netip.AddrPort, err error) error {
	var vantage *VantageError
	if errors.As(err, &vantage) || x.ctx.Err() != nil {
		return err
	}
	how := "does not answer"
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		how = "refuses connections"
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.EAFNOSUPPORT):
		how = "cannot be reached"
	}
	x.tr.Add(o.Name, wire.Note, false, fmt.Sprintf("%s from %s: %v", to, o.Vantage, err))
	if o.Target == "source" && !x.r.up(x.ctx, x.item.source) {
		return fmt.Errorf("the source %s is down: no declared endpoint of it accepts a connection (%s: %v)", x.item.source.Name, to, err)
	}
	if o.Refusable {
		return errStop // whoever is kept from connecting is turned away
	}
	x.find(o.Pos, result.Finding{
		Code:   "unreachable",
		Wanted: fmt.Sprintf("a connection from %s to %s, port %d", o.Vantage, ep.Name, ep.Port),
		Found:  fmt.Sprintf("%s %s: %v", to, how, rootCause(err)),
		Facts:  []string{"dial=" + strings.ReplaceAll(how, " ", "-"), "vantage=" + o.Vantage, "endpoint=" + ep.Name},
	})
	return errStop
}

func rootCause(err error) error {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Err
	}
	return err
}

func (x *execution) upgrade(u *script.Upgrade) error {
	s, err := x.session(u.Pos, u.Name)
	if err != nil {
		return err
	}
	_, _, cfg, err := x.item.where(x.r.target, s.open)
	if err != nil {
		return err
	}
	return x.handshake(u.Pos, s, cfg)
}

func (x *execution) handshake(pos script.Pos, s *session, cfg *tls.Config) error {
	err := s.conn.StartTLS(cfg)
	if err == nil {
		return nil
	}
	if cause := context.Cause(x.ctx); cause != nil {
		return cause
	}
	var t *wire.TLSError
	if errors.As(err, &t) {
		if s.open.Refusable {
			return x.turnedAway(s, "the handshake failed: "+rootTLS(t).Error())
		}
		x.find(pos, result.Finding{
			Code:   "tls",
			Wanted: fmt.Sprintf("TLS 1.2 or 1.3 on %s, as a migration proxy speaks it", s.endpoint.Name),
			Found:  "the handshake failed: " + rootTLS(t).Error(),
			Facts:  append(s.facts(), append(x.unanswered(pos, s.open), tlsFacts(t)...)...),
		})
		return errStop
	}
	return x.failed(pos, s, err, "a TLS handshake")
}

// unanswered says which assertion fails with a handshake that opens a
// connection: the one about the first that was to be said on it.
func (x *execution) unanswered(pos script.Pos, o *script.Open) []string {
	if pos != o.Pos {
		return nil
	}
	var facts []string
	opened := false
	x.item.scenario.Walk(func(st script.Step) {
		r, ok := st.(*script.Reply)
		switch {
		case st == script.Step(o):
			opened = true
		case ok && opened && r.Name == o.Name:
			if r.Must && r.Kind == script.Status {
				facts = append(facts, "assert="+r.Pos.String())
			}
			opened = false
		}
	})
	return facts
}

func rootTLS(e *wire.TLSError) error {
	if u := errors.Unwrap(e); u != nil {
		return u
	}
	return e
}

// tlsFact names the kind of a handshake failure.
func tlsFact(err error) string {
	var cert *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var closed *wire.Closed
	var timeout *wire.Timeout
	switch {
	case errors.As(err, &cert):
		return "certificate"
	case errors.As(err, &record):
		return "not-tls"
	case errors.As(err, &alert):
		return "alert"
	case errors.As(err, &closed):
		return "closed"
	case errors.As(err, &timeout):
		return "timeout"
	}
	return "failed"
}

func (x *execution) session(pos script.Pos, name string) (*session, error) {
	s := x.conns[name]
	if s == nil {
		return nil, fmt.Errorf("%s: the connection %s was never opened", pos, name)
	}
	return s, nil
}

func (x *execution) send(st *script.Send) error {
	s, err := x.session(st.Pos, st.Name)
	if err != nil {
		return err
	}
	actual, shown, err := st.Text.Expand(x.env)
	if err != nil {
		return fmt.Errorf("%s: %w", st.Pos, err)
	}
	x.sends++
	if st.Raw {
		name := st.Text.Refs()[0].Args[0]
		if s.open.Protocol == "http" {
			// As the file shows it: its own secrets are named there.
			if _, shown, err = x.env.files[name].Expand(x.env); err != nil {
				return fmt.Errorf("%s: %w", st.Pos, err)
			}
			line, _, _ := strings.Cut(shown, "\r\n")
			s.sent, s.sentAt = line, time.Now()
			s.carries(x.env.files[name].Refs())
			s.conv.Sent(line)
			octets := []byte(actual)
			if s.conv.WebSocket() {
				octets = proto.WebSocketFrame(strings.TrimRight(actual, "\r\n"))
			}
			return x.unsent(st.Pos, s, s.conn.Send(shown, octets), "to send "+line)
		}
		shown = fmt.Sprintf("[%d octets of %s]", len(actual), name)
		return x.unsent(st.Pos, s, s.conn.Send(shown, []byte(actual)), "to send "+name)
	}
	if err := x.paceSignIn(s, st); err != nil {
		return err
	}
	s.sent, s.sentAt = shown, time.Now()
	s.carries(st.Text.Refs())
	s.conv.Sent(actual)
	return x.unsent(st.Pos, s, s.conn.SendLine(shown, actual), "to send "+verb(s.open.Protocol, shown))
}

// carries remembers whose credentials are sent.
func (s *session) carries(refs []script.Ref) {
	for _, ref := range refs {
		if name, ok := ref.Credentials(); ok {
			s.user = name
		}
	}
}

// lastWords bounds the reading of what a peer said before it hung up.
const lastWords = time.Second

// unsent is failed for a line that could not be sent. Servers say why they hang
// up before they do: that is what was found then.
func (x *execution) unsent(pos script.Pos, s *session, err error, wanted string) error {
	var closed *wire.Closed
	if !errors.As(err, &closed) || s.open.Refusable {
		return x.failed(pos, s, err, wanted)
	}
	u, last := s.conv.Next(lastWords)
	if last != nil {
		return x.failed(pos, s, err, wanted)
	}
	x.find(pos, result.Finding{
		Code:   "closed",
		Wanted: wanted,
		Found:  wire.Visible(x.redacted(u.Status)) + ", and then the peer closed the connection",
		Facts:  append(s.facts(), "reply="+cut(x.redacted(u.Status), 120)),
	})
	return errStop
}

// failed turns a wire error into a finding: the peer closed, was silent, or
// sent what is no reply.
func (x *execution) failed(pos script.Pos, s *session, err error, wanted string) error {
	if err == nil {
		return nil
	}
	if cause := context.Cause(x.ctx); cause != nil {
		return cause
	}
	f := result.Finding{Wanted: wanted, Found: err.Error(), Facts: s.facts()}
	var timeout *wire.Timeout
	var closed *wire.Closed
	var long *wire.TooLong
	var malformed *proto.Malformed
	var residue *wire.Residue
	var vantage *VantageError
	switch {
	case errors.As(err, &vantage):
		return err
	case s.open.Refusable:
		return x.turnedAway(s, err.Error())
	case errors.As(err, &timeout):
		f.Code = "timeout"
		f.Found = fmt.Sprintf("nothing within %s", timeout.After)
		if timeout.Partial != "" {
			f.Found = fmt.Sprintf("nothing whole within %s, and then it stood in the middle of the line %q", timeout.After, wire.Visible(timeout.Partial))
			f.Facts = append(f.Facts, "reply=slow")
			break
		}
		f.Facts = append(f.Facts, "reply=none")
	case errors.As(err, &closed):
		f.Code = "closed"
		f.Found = "the peer closed the connection"
		if closed.Reset {
			f.Found = "the peer reset the connection"
		}
		if closed.Partial != "" {
			f.Found += fmt.Sprintf(" in the middle of the line %q", wire.Visible(closed.Partial))
		}
		f.Facts = append(f.Facts, "reply=closed")
	case errors.As(err, &long), errors.As(err, &malformed):
		f.Code = "malformed"
		f.Found = wire.Visible(err.Error())
		f.Facts = append(f.Facts, "reply=malformed")
	case errors.As(err, &residue):
		f.Code = "malformed"
		f.Found = fmt.Sprintf("%d octets in clear text after the reply to STARTTLS", residue.Octets)
		f.Facts = append(f.Facts, "tls=residue")
	default:
		return err
	}
	x.find(pos, f)
	return errStop
}

// facts says where in the dialogue something was found.
func (s *session) facts() []string {
	at := "greeting"
	if s.sent != "" {
		at = verb(s.open.Protocol, s.sent)
	}
	return []string{"at=" + at, "vantage=" + s.open.Vantage, "endpoint=" + s.endpoint.Name}
}

// verb is the command word of a line.
func verb(protocol, line string) string {
	words := strings.Fields(line)
	if protocol == "imap" && len(words) > 1 {
		words = words[1:]
	}
	if len(words) == 0 {
		return "an empty line"
	}
	return strings.ToUpper(words[0])
}

// find records a finding.
func (x *execution) find(pos script.Pos, f result.Finding) {
	f.At = result.At{File: pos.File, Line: pos.Line}
	f.Means = x.item.scenario.Means
	f.Facts = append(f.Facts, "assert="+pos.String())
	if f.Evidence == nil {
		f.Evidence = []string{}
	}
	if len(x.res.Findings) == 0 {
		x.res.Line = pos.Top().Line
	}
	x.res.Findings = append(x.res.Findings, f)
}

// reply wants something of the next reply unit.
func (x *execution) reply(st *script.Reply) error {
	s, err := x.session(st.Pos, st.Name)
	if err != nil {
		return err
	}
	if st.Kind != script.Status {
		s.waiting = append(s.waiting, st)
		return nil
	}
	d := x.r.opts.Deadlines.Reply
	if !s.conv.Greeted() {
		d = x.r.opts.Deadlines.Greeting
	}
	if st.Within > 0 {
		d = st.Within
	}
	waiting := s.waiting
	s.waiting = nil
	u, err := x.next(st, s, x.patience(st.Must, d))
	if err != nil {
		return x.failed(st.Pos, s, err, wantedReply(s, st.Pattern.Show(x.env)))
	}
	x.signedIn(s, u.Status)
	x.delivered(s, u.Status)
	caps, ok, err := st.Pattern.Match(u.Status, x.env, true)
	if err != nil {
		return fmt.Errorf("%s: %w", st.Pos, err)
	}
	if !ok {
		open, err := st.Pattern.LeavesOpen(u.Status, x.env, true)
		if err != nil {
			return fmt.Errorf("%s: %w", st.Pos, err)
		}
		if open {
			return &openClaim{reason: fmt.Sprintf("the source answered %s with %q, which is an answer to another question than the one asked; wanted was %s",
				verb(s.open.Protocol, s.sent), wire.Visible(x.redacted(u.Status)), st.Pattern.Show(x.env))}
		}
		if s.open.Refusable && !st.Must {
			return x.turnedAway(s, "it answered "+wire.Visible(cut(x.redacted(u.Status), 100)))
		}
		x.find(st.Pos, result.Finding{
			Code:   "mismatch",
			Wanted: wantedReply(s, st.Pattern.Show(x.env)),
			Found:  wire.Visible(x.redacted(u.Status)),
			Facts:  append(s.facts(), "reply="+cut(x.redacted(u.Status), 120)),
		})
	}
	x.capture(caps)
	for _, w := range waiting {
		if err := x.line(w, s, u); err != nil {
			return err
		}
	}
	if !ok {
		return errStop
	}
	if u.Bare {
		x.find(st.Pos, result.Finding{
			Code:   "line-end",
			Wanted: "lines that end in CR LF",
			Found:  "a line that ends in a bare LF",
			Facts:  append(s.facts(), "reply=bare-lf"),
		})
	}
	return nil
}

func wantedReply(s *session, pattern string) string {
	if s.sent == "" {
		return "the greeting " + pattern
	}
	return pattern + " in reply to " + verb(s.open.Protocol, s.sent)
}

// next reads one unit, or does what a wire fault of the kill matrix says.
func (x *execution) next(st *script.Reply, s *session, d time.Duration) (proto.Unit, error) {
	if f := x.fault; f != nil && f.At == st.Pos.String() {
		switch f.Kind {
		case FaultClosed:
			s.conn.Close()
			return proto.Unit{}, &wire.Closed{Conn: st.Name, Waiting: "a reply"}
		case FaultSilence:
			return proto.Unit{}, &wire.Timeout{Conn: st.Name, Waiting: "a reply", After: d}
		case FaultWrongReply:
			if _, err := s.conv.Next(d); err != nil {
				return proto.Unit{}, err
			}
			wrong := wrongReply(s.open.Protocol)
			return proto.Unit{Lines: []string{wrong}, Status: wrong}, nil
		}
	}
	return s.conv.Next(d)
}

// line judges a <~ or <! against a unit.
func (x *execution) line(st *script.Reply, s *session, u proto.Unit) error {
	matched := ""
	for _, l := range u.Lines {
		caps, ok, err := st.Pattern.Match(l, x.env, true)
		if err != nil {
			return fmt.Errorf("%s: %w", st.Pos, err)
		}
		if ok {
			matched = l
			x.capture(caps)
			break
		}
	}
	want := st.Pattern.Show(x.env)
	switch {
	case st.Kind == script.Some && matched == "":
		x.find(st.Pos, result.Finding{
			Code:   "missing",
			Wanted: "a line " + want + " in the reply",
			Found:  "the reply has no such line: " + wire.Visible(cut(x.redacted(strings.Join(u.Lines, " | ")), 400)),
			Facts:  append(s.facts(), "missing="+want),
		})
		if !st.Must {
			return errStop
		}
	case st.Kind == script.None && matched != "":
		x.find(st.Pos, result.Finding{
			Code:   "forbidden",
			Wanted: "no line " + want + " in the reply",
			Found:  wire.Visible(x.redacted(matched)),
			Facts:  append(s.facts(), "present="+want),
		})
	}
	if matched != "" && st.Kind == script.Some && st.Must {
		x.res.Witness = append(x.res.Witness, result.Witness{Kind: "capability", Line: wire.Visible(cut(x.redacted(matched), 300)), JoinedBy: "the connection itself"})
	}
	return nil
}

func (x *execution) capture(caps map[string]string) {
	if len(caps) == 0 {
		return
	}
	if x.env.captures == nil {
		x.env.captures = make(map[string]string, len(caps))
	}
	for k, v := range caps {
		x.env.captures[k] = v
	}
}

// closed wants the peer to close.
func (x *execution) closed(st *script.Closed) error {
	s, err := x.session(st.Pos, st.Name)
	if err != nil {
		return err
	}
	d := x.r.opts.Deadlines.Close
	if st.Within > 0 {
		d = st.Within
	}
	if f := x.fault; f != nil && f.At == st.Pos.String() {
		err = &wire.Timeout{Conn: st.Name, Waiting: "the peer to close", After: d}
	}
	var extra string
	if err == nil {
		extra, _, err = s.conn.WaitClose(x.patience(true, d))
	}
	if err == nil && (extra == "" || s.open.Announce != "" && s.endpoint.TLS == "implicit" && !s.conn.TLS() && isAlert(extra)) {
		s.conn.Close()
		return nil
	}
	f := result.Finding{Code: "open", Wanted: "the source to close the connection", Facts: append(s.facts(), "open=yes")}
	var timeout *wire.Timeout
	switch {
	case err == nil:
		f.Found = "it goes on: " + wire.Visible(cut(x.redacted(extra), 200))
		f.Facts = append(f.Facts, "open=talks")
	case errors.As(err, &timeout):
		f.Found = fmt.Sprintf("still open after %s", d)
		f.Facts = append(f.Facts, "open=silent")
	default:
		return x.failed(st.Pos, s, err, f.Wanted)
	}
	x.find(st.Pos, f)
	return nil
}

// isAlert says whether octets are those of a TLS alert: the end of a session
// that never began.
func isAlert(s string) bool { return strings.HasPrefix(s, "\x15\x03") }

// redactAll removes the secrets of this execution from everything that its
// result says: what the source said may have come by way of an error, a capture
// or a log line.
func (x *execution) redactAll() {
	r := x.res
	r.Reason = x.redacted(r.Reason)
	for i := range r.Findings {
		f := &r.Findings[i]
		f.Wanted, f.Found = x.redacted(f.Wanted), x.redacted(f.Found)
		for _, list := range [][]string{f.Evidence, f.Facts} {
			for k := range list {
				list[k] = x.redacted(list[k])
			}
		}
	}
	for i := range r.Witness {
		w := &r.Witness[i]
		w.Line, w.JoinedBy = x.redacted(w.Line), x.redacted(w.JoinedBy)
	}
}

// redacted removes the secrets of this execution from what the source said.
func (x *execution) redacted(s string) string { return x.tr.Redact(s) }

func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
