package run

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/textproto"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/harness/wire"
	"github.com/mailproof/mailproof/harness/witness"
)

// logged judges a witness block against the source's log. A block passes on a
// record of ours that satisfies every expect. When none comes, the log's
// barrier decides whether that means anything: if a line of ours that was
// caused later is there, the record is missing or wrong; if not, the log
// cannot be read and nothing is judged.
func (x *execution) logged(st *script.Witness) error {
	wg := x.watch[st]
	if wg == nil {
		return &openClaim{reason: x.r.noLog(x.item.source)}
	}
	for i, j := range st.Joins { // captures that were not known before
		if wg.keys[i] != "" || j.Field == "peer" {
			continue
		}
		v, _, err := j.Value.Expand(x.env)
		if err != nil {
			return fmt.Errorf("%s: %w", st.Pos, err)
		}
		wg.keys[i] = witness.Key(j.Field, v)
		wg.w.Add(wg.keys[i])
	}
	j := &judgement{x: x, st: st, keys: x.siteJoins(st, wg), peer: wg.peer, announced: wg.announced}
	limit := x.r.opts.Deadlines.Witness
	if st.Within > 0 {
		limit = st.Within
	}
	ctx, cancel := context.WithTimeout(x.ctx, limit)
	defer cancel()

	grace := x.r.opts.grace()
	if x.sends > 0 && x.flushed == x.sends || x.r.care != nil && x.r.silent(x.item.source) != "" {
		grace = 0
	}
	rs, err := wg.w.Await(withGrace(ctx, grace), j.decided)
	if why := x.r.silent(x.item.source); why != "" && !j.satisfied(rs) {
		return &openClaim{reason: why}
	}
	if err != nil && ctx.Err() == nil && x.r.logErr(x.item.source) == nil {
		rs, err = x.afterBarrier(ctx, wg, j)
	}
	if cause := context.Cause(x.ctx); cause != nil {
		return cause
	}
	var open *openClaim
	if errors.As(err, &open) {
		return err
	}
	if lerr := x.r.logErr(x.item.source); lerr != nil && !j.satisfied(rs) {
		return &openClaim{reason: fmt.Sprintf("%v: to judge it, add a log of %s that can be read for the whole run", lerr, x.item.source.Name)}
	}
	return j.conclude(rs)
}

// grace is how long a record may take before the barrier is asked.
func (o *Options) grace() time.Duration {
	if o.careful {
		return o.siteGrace()
	}
	return o.Deadlines.Witness / 100
}

// withGrace bounds the first wait; it needs no cancel of its own because it
// ends by itself within the grace.
func withGrace(ctx context.Context, d time.Duration) context.Context {
	c, cancel := context.WithTimeout(ctx, d)
	context.AfterFunc(c, cancel)
	return c
}

// afterBarrier waits for the record while lines of our own are being caused,
// twice in a row, through the same log.
func (x *execution) afterBarrier(ctx context.Context, wg *watching, j *judgement) ([]witness.Record, error) {
	for pass := 0; pass < 2 && x.flushed != x.sends; pass++ {
		bctx, cancel := context.WithCancel(ctx)
		until, asked := context.WithCancel(ctx)
		done := make(chan error, 1)
		go func() {
			done <- x.r.barrier(bctx, x.item, j.st.Kind)
			asked()
		}()
		rs, _ := wg.w.Await(until, j.decided)
		if j.decided(rs) {
			cancel()
			<-done
			return rs, nil
		}
		err := <-done
		cancel()
		if err != nil {
			return rs, &openClaim{reason: err.Error()}
		}
	}
	x.flushed = x.sends
	// A message that is still on its way is no missing record.
	rs, err := wg.w.Await(ctx, func(rs []witness.Record) bool { return j.satisfied(rs) || !j.growing(rs) })
	return rs, err
}

// barrier runs the scenario's own barrier step.
func (x *execution) barrier() error {
	if x.r.log(x.item.source) == nil {
		return &openClaim{reason: x.r.noLog(x.item.source)}
	}
	ctx, cancel := context.WithTimeout(x.ctx, x.r.opts.Deadlines.Witness)
	defer cancel()
	if err := x.r.barrier(ctx, x.item, "login"); err != nil {
		return &openClaim{reason: err.Error()}
	}
	return nil
}

// A judgement holds a witness block against records.
type judgement struct {
	x    *execution
	st   *script.Witness
	keys []string
	peer string // the key of the only connection, where it is known
	// announced is the key of who was announced on it, where somebody was.
	announced string
}

// ours returns the records of the block's kind that are joined, by the primary
// key if any record has it, else by the first fallback that joins one.
func (j *judgement) ours(rs []witness.Record) (joined []witness.Record, by string) {
	for _, key := range j.keys {
		if key == "" {
			continue
		}
		for i := range rs {
			if string(rs[i].Kind) == j.st.Kind && rs[i].JoinedBy(key) && !j.anothers(&rs[i], key) {
				joined = append(joined, rs[i])
			}
		}
		if len(joined) > 0 {
			return joined, key
		}
	}
	return nil, ""
}

// lost is a field that the block asks for and that the log lost with the
// session's own keys: it cannot be judged, and says nothing against the source.
func (j *judgement) lost(r *witness.Record) string {
	for i := range j.st.Wants {
		if w := &j.st.Wants[i]; r.Lost && w.Field != "line" && !r.Has(w.Field) {
			return w.Field
		}
	}
	return ""
}

// satisfied says whether some joined record has everything that is expected.
func (j *judgement) satisfied(rs []witness.Record) bool {
	joined, _ := j.ours(rs)
	for i := range joined {
		if joined[i].Ambiguous == "" && j.score(&joined[i]) == j.expects() {
			return true
		}
	}
	return false
}

func (j *judgement) expects() int {
	n := 0
	for _, w := range j.st.Wants {
		if !w.Forbid {
			n++
		}
	}
	return n
}

// score is how many of the expected fields a record has as expected.
func (j *judgement) score(r *witness.Record) int {
	n := 0
	for i := range j.st.Wants {
		w := &j.st.Wants[i]
		if !w.Forbid && j.matches(r, w) {
			n++
		}
	}
	return n
}

// matches says whether one of the field's values matches.
func (j *judgement) matches(r *witness.Record, w *script.Want) bool {
	for _, v := range j.values(r, w.Field) {
		if _, ok, err := w.Pattern.Match(v, j.x.env, false); err == nil && ok {
			return true
		}
	}
	return false
}

func (j *judgement) values(r *witness.Record, field string) []string {
	if field == "line" {
		return r.Lines
	}
	if _, ok := r.Fields[field]; !ok && r.Kind == witness.Kind("message") {
		return r.Fields[textproto.CanonicalMIMEHeaderKey(field)] // however the scenario spells it
	}
	return r.Fields[field]
}

// growing says whether a joined transaction is still on its way.
func (j *judgement) growing(rs []witness.Record) bool {
	joined, _ := j.ours(rs)
	for i := range joined {
		if joined[i].Kind == witness.Transaction && !joined[i].Has("removed") && !strings.HasPrefix(joined[i].Get("status"), "deferred") {
			return true
		}
	}
	return false
}

// conclude turns the records into findings, or into witnesses.
func (j *judgement) conclude(rs []witness.Record) error {
	x := j.x
	joined, by := j.ours(rs)
	if len(joined) == 0 {
		x.find(j.st.Pos, result.Finding{
			Code:   "missing",
			Wanted: "a " + j.st.Kind + " record of this session in the source's log",
			Found:  "none, although lines that were caused later are there (looked for " + strings.Join(nonEmpty(j.keys), ", ") + ")",
			Facts:  []string{"record=missing", "kind=" + j.st.Kind},
		})
		return errStop
	}
	best := &joined[0]
	for i := range joined {
		if joined[i].Ambiguous == "" && (best.Ambiguous != "" || j.score(&joined[i]) > j.score(best)) {
			best = &joined[i]
		}
	}
	if best.Ambiguous != "" {
		return &openClaim{reason: "the log line of this session cannot be believed: " + best.Ambiguous, lost: best.Lost}
	}
	if field := j.lost(best); field != "" {
		return &openClaim{reason: "what the source logged of this session does not say " + field + ": " + witness.LostSession, lost: true}
	}
	evidence := make([]string, 0, len(best.Lines))
	for _, l := range best.Lines {
		l = wire.Visible(x.redacted(l))
		evidence = append(evidence, l)
	}
	if n := len(evidence); n > 0 {
		x.res.Witness = append(x.res.Witness, result.Witness{Kind: "log", Line: strings.Join(evidence, "\n"), JoinedBy: by})
	}
	for i := range j.st.Wants {
		w := &j.st.Wants[i]
		switch {
		case !w.Forbid:
			j.expect(w, best, evidence, by)
		default:
			j.forbid(w, joined)
		}
	}
	return nil
}

func (j *judgement) expect(w *script.Want, r *witness.Record, evidence []string, by string) {
	if j.matches(r, w) {
		for _, v := range j.values(r, w.Field) {
			if caps, ok, _ := w.Pattern.Match(v, j.x.env, false); ok {
				j.x.capture(caps)
			}
		}
		return
	}
	values := j.values(r, w.Field)
	want := w.Field + "=" + w.Pattern.Show(j.x.env)
	f := result.Finding{
		Code:     "mismatch",
		Wanted:   fmt.Sprintf("the source's %s record of this session with %s", r.Kind, want),
		Found:    "the record has no " + w.Field,
		Evidence: evidence,
		Facts:    []string{"kind=" + string(r.Kind), "joined=" + field(by), "wanted:" + w.Field + "=" + j.name(w.Pattern.Show(j.x.env))},
	}
	if len(values) > 0 {
		shown := make([]string, len(values))
		for i, v := range values {
			shown[i] = w.Field + "=" + j.x.who(v)
			f.Facts = append(f.Facts, "recorded:"+w.Field+"="+j.name(j.x.redacted(v)))
		}
		f.Found = wire.Visible(j.x.redacted(strings.Join(shown, ", ")))
	} else {
		f.Facts = append(f.Facts, "recorded:"+w.Field+"=absent")
	}
	j.x.find(w.Pos, f)
}

func (j *judgement) forbid(w *script.Want, joined []witness.Record) {
	for i := range joined {
		if !j.matches(&joined[i], w) {
			continue
		}
		for _, v := range j.values(&joined[i], w.Field) {
			if _, ok, _ := w.Pattern.Match(v, j.x.env, false); !ok {
				continue
			}
			evidence := make([]string, 0, len(joined[i].Lines))
			for _, l := range joined[i].Lines {
				evidence = append(evidence, wire.Visible(j.x.redacted(l)))
			}
			j.x.find(w.Pos, result.Finding{
				Code:     "forbidden",
				Wanted:   fmt.Sprintf("no %s record of this session with %s=%s", joined[i].Kind, w.Field, w.Pattern.Show(j.x.env)),
				Found:    wire.Visible(j.x.redacted(w.Field + "=" + j.x.who(v))),
				Evidence: evidence,
				Facts:    []string{"kind=" + string(joined[i].Kind), "recorded:" + w.Field + "=" + j.name(j.x.redacted(v))},
			})
			return
		}
	}
}

// name is which of the target's addresses a value is, or the value itself.
func (j *judgement) name(v string) string {
	if n := j.x.env.name(v); n != "" {
		return n
	}
	if _, err := netip.ParseAddr(v); err == nil {
		return "other"
	}
	return cut(v, 60)
}

// who adds to an address whose it is.
func (x *execution) who(v string) string {
	switch n := x.env.name(v); n {
	case "":
		return v
	case "forged":
		return v + " (the address that was forged)"
	case "client-mapped", "proxy-mapped":
		return v + " (IPv4 written as IPv6)"
	default:
		return v + " (the " + n + ")"
	}
}

func field(key string) string {
	f, _, _ := strings.Cut(key, "=")
	return f
}

func nonEmpty(in []string) []string {
	var out []string
	for _, s := range in {
		if s != "" {
			out = append(out, s)
		}
	}
	return out
}

// message judges a witness block against a delivered message, read by an
// independent IMAP client from the client's vantage.
func (x *execution) message(st *script.Witness) error {
	id, _, err := st.Joins[0].Value.Expand(x.env)
	if err != nil {
		return fmt.Errorf("%s: %w", st.Pos, err)
	}
	id = strings.Trim(id, "<>")
	limit := x.r.opts.Deadlines.Witness
	if st.Within > 0 {
		limit = st.Within
	}
	ctx, cancel := context.WithTimeout(x.ctx, limit)
	defer cancel()
	box, err := x.r.mailbox(ctx, x.item, x.env.accounts[st.User])
	if err != nil {
		if cause := context.Cause(x.ctx); cause != nil {
			return cause
		}
		return &openClaim{reason: fmt.Sprintf("the mailbox of %s cannot be read: %v", st.User, err)}
	}
	defer box.Close()
	if x.signed != nil {
		x.signed[strings.ToLower(x.env.accounts[st.User].Address)]++
	}
	// Once the log says that the queue is done with the message, a last look
	// decides; without a log the deadline does.
	done := make(chan struct{})
	if wg := x.watch[st]; wg != nil {
		wctx, stop := context.WithCancel(ctx)
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			if _, err := wg.w.Await(wctx, removed); err == nil {
				close(done)
			}
		}()
		defer func() { stop(); <-ended }()
	}
	rec, err := box.Await(ctx, id, done)
	if cause := context.Cause(x.ctx); cause != nil {
		return cause
	}
	if err != nil && !errors.Is(err, witness.ErrNoMessage) {
		return &openClaim{reason: err.Error()}
	}
	if rec == nil {
		x.find(st.Pos, result.Finding{
			Code:   "missing",
			Wanted: fmt.Sprintf("the message <%s> in a mailbox of %s", id, st.User),
			Found:  "no mailbox of the account has it",
			Facts:  []string{"record=missing", "kind=message"},
		})
		return errStop
	}
	j := &judgement{x: x, st: st}
	evidence := make([]string, 0, len(rec.Lines))
	for _, l := range rec.Lines {
		evidence = append(evidence, wire.Visible(x.redacted(l)))
	}
	x.res.Witness = append(x.res.Witness, result.Witness{Kind: "message", Line: strings.Join(evidence, "\n"), JoinedBy: "message-id=" + id})
	for i := range st.Wants {
		if w := &st.Wants[i]; w.Forbid {
			j.forbid(w, []witness.Record{*rec})
		} else {
			j.expect(w, rec, evidence, "message-id="+id)
		}
	}
	return nil
}

func removed(rs []witness.Record) bool {
	for i := range rs {
		if rs[i].Has("removed") {
			return true
		}
	}
	return false
}
