package run

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailproof/mailproof/harness/script"
)

// A sourcePacer spaces connections that a source counts against one address.
type sourcePacer struct {
	mu   sync.Mutex
	next map[string]time.Time
}

// wait returns when the caller's turn for the key has come.
func (p *sourcePacer) wait(ctx context.Context, key string, every time.Duration) error {
	p.mu.Lock()
	if p.next == nil {
		p.next = make(map[string]time.Time)
	}
	now := time.Now()
	at := p.next[key]
	if at.Before(now) {
		at = now
	}
	p.next[key] = at.Add(every)
	p.mu.Unlock()
	if at.Equal(now) {
		return nil
	}
	t := time.NewTimer(at.Sub(now))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// pace waits for a connection's turn, where the source counts connections. The
// proxy makes its own once the client has signed in: see [execution.paceSignIn].
func (x *execution) pace(o *script.Open, ep Endpoint, v Vantage) error {
	if !x.paced(ep) || o.Target == "proxy" {
		return nil
	}
	// The source counts whom it takes for the client.
	who := v.Addr(x.env.family).String()
	if !o.For.Empty() && x.item.source.AnnouncedOn(ep.Name) == ByPROXY && ep.Name != "smtp" {
		who, _, _ = o.For.Expand(x.env)
	}
	return x.r.pacer.wait(x.ctx, x.item.source.Name+" "+who, x.item.source.Pace)
}

// paceSignIn waits for the turn of the connection that the proxy makes when
// these credentials reach it.
func (x *execution) paceSignIn(s *session, st *script.Send) error {
	if !x.paced(s.endpoint) || s.open.Target != "proxy" {
		return nil
	}
	for _, ref := range st.Text.Refs() {
		if strings.HasPrefix(ref.Name, "sasl.") && ref.Name != "sasl.user" {
			who := x.r.target.Vantages[s.open.Vantage].Addr(x.env.family).String()
			return x.r.pacer.wait(x.ctx, x.item.source.Name+" "+who, x.item.source.Pace)
		}
	}
	return nil
}

// paced says whether connections to an endpoint keep to the source's pace.
func (x *execution) paced(ep Endpoint) bool {
	return x.item.source.Pace > 0 && ep.Protocol == "smtp" && !slices.Contains(x.item.scenario.Hazards, "flood")
}
