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
	keys map[string]*pacedKey
}

// A pacedKey is whose turn it is at one address.
type pacedKey struct {
	turn chan struct{} // held by whoever waits for its time
	next time.Time
}

// wait returns when the caller's turn for the key has come. The time to the next
// is counted from when this one really left: on a busy machine those that were
// held up do not leave together.
func (p *sourcePacer) wait(ctx context.Context, key string, every time.Duration) error {
	p.mu.Lock()
	if p.keys == nil {
		p.keys = make(map[string]*pacedKey)
	}
	k := p.keys[key]
	if k == nil {
		k = &pacedKey{turn: make(chan struct{}, 1)}
		p.keys[key] = k
	}
	p.mu.Unlock()
	select {
	case k.turn <- struct{}{}:
		defer func() { <-k.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if d := time.Until(k.next); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	k.next = time.Now().Add(every)
	return nil
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
