package run

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/script"
)

// sweepFor bounds the removal of our messages, also after an interrupt.
const sweepFor = 60 * time.Second

// delivered counts the messages that a source has accepted from us, once for
// each recipient that it had accepted before.
func (x *execution) delivered(s *session, status string) {
	if x.r.care == nil || s.open.Protocol != "smtp" {
		return
	}
	positive := strings.HasPrefix(status, "25")
	switch v := verb("smtp", s.sent); {
	case v == "MAIL", v == "RSET", v == "EHLO":
		s.recipients = 0
	case v == "RCPT" && positive:
		s.recipients++
	case positive && (v == "DATA" || v == "BDAT" && strings.HasSuffix(strings.ToUpper(s.sent), "LAST")):
		c := x.r.care
		c.mu.Lock()
		c.accepted[x.item.source] += s.recipients
		c.mu.Unlock()
		s.recipients = 0
	}
}

// mark is what all messages of this run carry, and no other text.
func (r *runner) mark() string { return "mailproof mp" + r.seed }

// sweep removes what was delivered to the operator's accounts, and says so if
// something cannot be found or removed. It is also done when a run is
// interrupted.
func (r *runner) sweep(ctx context.Context) []result.Problem {
	if r.care == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), sweepFor)
	defer cancel()
	var problems []result.Problem
	for _, s := range r.target.Sources {
		r.care.mu.Lock()
		accepted := r.care.accepted[s]
		r.care.mu.Unlock()
		if accepted == 0 {
			continue
		}
		found, left, err := r.sweepSource(ctx, s, accepted)
		words := ""
		switch {
		case err != nil:
			words = fmt.Sprintf("%d of %d messages of ours were found, %d are left: %v", found, accepted, left, err)
		case left > 0:
			words = fmt.Sprintf("%d messages of ours could not be removed", left)
		case found < accepted:
			words = fmt.Sprintf("%d messages of ours were accepted, and only %d were found and removed: the others are on their way, or were put elsewhere", accepted, found)
		default:
			r.target.Notices = append(r.target.Notices, fmt.Sprintf("%d messages of ours were delivered to the accounts of %s; all were removed, and none is left", found, s.Name))
			continue
		}
		problems = append(problems, result.Problem{Source: s.Name, Stage: "clean-up", Where: "the accounts of " + s.Name, Words: words,
			Remedy: &result.Remedy{Text: "Look for messages whose subject begins with \"" + r.mark() + "\" in the accounts and in the queue, and remove them."}})
	}
	return problems
}

// sweepSource looks into every account that a message may have gone to, again
// as long as messages are missing and time is left.
func (r *runner) sweepSource(ctx context.Context, s *Source, accepted int) (found, left int, err error) {
	named, ok := s.Accounts.(NamedAccounts)
	if !ok {
		return 0, 0, fmt.Errorf("the target does not name its accounts")
	}
	used := map[int]bool{}
	for _, it := range r.plan.items {
		if it.source == s && it.scenario.Demand().Messages > 0 {
			for _, i := range it.lent {
				used[i] = true
			}
		}
	}
	var which []int
	for i := range used {
		which = append(which, i)
	}
	slices.Sort(which)
	end := time.Now().Add(r.opts.Deadlines.Witness)
	tick := time.NewTicker(time.Second) // mail that is on its way tells nobody when it comes
	defer tick.Stop()
	for {
		left = 0
		for _, i := range which {
			f, l, serr := r.sweepAccount(ctx, s, named, i)
			found, left = found+f-l, left+l
			if serr != nil {
				return found, left, serr
			}
		}
		if found >= accepted && left == 0 || time.Now().After(end) {
			return found, left, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return found, left, ctx.Err()
		}
	}
}

func (r *runner) sweepAccount(ctx context.Context, s *Source, named NamedAccounts, i int) (found, left int, err error) {
	as, release, err := named.TakeThese(ctx, []int{i})
	if err != nil {
		return 0, 0, err
	}
	defer release()
	it := &item{source: s, scenario: &script.Scenario{}, facet: result.Facet{Family: string(IP4)}}
	box, err := r.mailbox(ctx, it, as[0])
	if err != nil {
		return 0, 0, fmt.Errorf("the mailbox of %s: %w", as[0].Address, err)
	}
	defer box.Close()
	return box.Sweep(r.mark())
}
