package run

import (
	"context"
	"slices"
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

// pace waits for a connection's turn, where the source counts connections.
func (x *execution) pace(o *script.Open, ep Endpoint, v Vantage) error {
	src := x.item.source
	if src.Pace <= 0 || ep.Protocol != "smtp" || slices.Contains(x.item.scenario.Hazards, "flood") {
		return nil
	}
	// The source counts whom it takes for the client.
	who := v.Addr(x.env.family).String()
	switch {
	case o.Target == "proxy":
	case !o.For.Empty() && src.AnnouncedOn(ep.Name) == ByPROXY && ep.Name != "smtp":
		who, _, _ = o.For.Expand(x.env)
	}
	return x.r.pacer.wait(x.ctx, src.Name+" "+who, src.Pace)
}
