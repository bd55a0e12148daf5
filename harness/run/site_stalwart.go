package run

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/mailproof/mailproof/harness/proto"
	"github.com/mailproof/mailproof/harness/wire"
	"github.com/mailproof/mailproof/harness/witness"
)

// What is different at an operator's Stalwart: how its log is seen to be read,
// and how often a claim is asked again because that log lost a line.

// debugNeed is what scenarios about refused sign-ins at a Stalwart need: a lab in
// the profile whose log is at DEBUG, or a site that is declared to be.
const debugNeed = "stalwart@instrumented"

// shallow says why an item's claim cannot be judged although the site's file says
// that the log is at DEBUG, or "".
func (c *care) shallow(it *item) string {
	if c == nil || !it.source.Detailed || !slices.Contains(it.scenario.Needs, debugNeed) || slices.Contains(it.scenario.Needs, it.source.Kind) {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.detailed[it.source] {
		return ""
	}
	return fmt.Sprintf("the log of %s is said to be at DEBUG, and no line of ours at that level came: to judge it, add a tracer of %s at DEBUG (log-level), and a vantage client, stranger or neighbour that knows the port it leaves from", it.source.Name, it.source.Name)
}

// showHello makes a Stalwart write a line of ours to its log, and waits for it.
// As shipped it logs neither sessions that end without a sign-in nor sign-ins
// that are refused; it does log the name that an SMTP client greets with, which
// nobody holds against anybody. The name is of this attempt alone.
func (r *runner) showHello(ctx context.Context, s *Source, l *witness.Log, wait time.Duration) error {
	last := errors.New("the source was declared without an SMTP endpoint, and what else it logs of a session needs an account")
	for _, endpoint := range []string{"smtp", "submission", "submissions"} {
		if _, ok := s.Endpoint(endpoint); !ok {
			continue
		}
		last = r.showHelloAt(ctx, s, l, endpoint, wait)
		var unseen *unseenLine
		if last == nil || errors.As(last, &unseen) || ctx.Err() != nil || l.Err() != nil {
			return last
		}
	}
	return fmt.Errorf("the session that was to show it: %w", last)
}

func (r *runner) showHelloAt(ctx context.Context, s *Source, l *witness.Log, endpoint string, wait time.Duration) error {
	if v := r.target.Vantages[Client]; v != nil && s.Pace > 0 {
		if err := r.pacer.wait(ctx, s.Name+" "+v.Addr(IP4).String(), s.Pace); err != nil {
			return err
		}
	}
	nc, ep, err := r.direct(ctx, s, endpoint, IP4)
	if err != nil {
		return err
	}
	d := r.barrierDeadlines()
	c := wire.New(ctx, nc, "barrier", nil, d, wire.Shape{})
	defer c.Close()
	name := fmt.Sprintf("barrier-%s%s.example", r.seed, base36(r.barriers.Add(1)))
	w := l.Watch(witness.Key("helo", name))
	defer w.Close()
	debug := l.Watch()
	defer debug.Close()
	if s.Detailed && c.Local().Port() != 0 {
		debug.Add(witness.PeerKey(c.Local())) // at DEBUG it logs that the session began, before its name
	}
	if ep.TLS == "implicit" {
		if err := c.StartTLS(r.target.sourceTLS(s)); err != nil {
			return err
		}
	}
	v := proto.NewConversation(proto.SMTP, c)
	if _, err := v.Next(d.Greeting); err != nil {
		return err
	}
	for _, line := range []string{"EHLO " + name, "QUIT"} {
		v.Sent(line)
		if err := c.SendLine("", line); err != nil {
			return err
		}
		if _, err := v.Next(d.Reply); err != nil {
			return err
		}
	}
	if err := seen(ctx, l, w, wait, "a session of our own over "+endpoint+" (its EHLO name, which Stalwart logs at INFO)"); err != nil {
		return err
	}
	began := func(rs []witness.Record) bool {
		return slices.ContainsFunc(rs, func(r witness.Record) bool { return r.Kind == witness.Connection })
	}
	r.care.mu.Lock()
	known := r.care.detailed[s]
	r.care.mu.Unlock()
	if !s.Detailed || known || c.Local().Port() == 0 {
		return nil
	}
	dctx, cancel := context.WithTimeout(ctx, r.opts.grace()) // its threads' lines have no common order
	defer cancel()
	if _, err := debug.Await(dctx, began); err == nil {
		r.care.mu.Lock()
		r.care.detailed[s] = true
		r.care.mu.Unlock()
	}
	return nil
}

// again says whether a claim may be asked again because the source's log lost
// what would have decided it, and counts that. The plan names how often; a
// message is never sent twice.
func (c *care) again(it *item) bool {
	d := it.scenario.Demand()
	if d.Messages > 0 || d.Connections > 1 || d.SignIns+d.WrongSignIns() > 1 || d.WrongSignIns() > 0 {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.repeats[it.source] >= c.limits.Again {
		return false
	}
	c.repeats[it.source]++
	return true
}
