package harness_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
)

// A counted vantage counts the connections that are open at each port.
type counted struct {
	run.Vantage
	mu   sync.Mutex
	open map[uint16]int
	// both is how often somebody came to port 25 while a connection to port 587
	// was open, or the other way round.
	both, came int
}

func (c *counted) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c.mu.Lock()
	c.open[to.Port()]++
	c.came++
	if c.open[25] > 0 && c.open[587] > 0 {
		c.both++
	}
	c.mu.Unlock()
	left := sync.OnceFunc(func() { c.mu.Lock(); c.open[to.Port()]--; c.mu.Unlock() })
	nc, err := c.Vantage.Dial(ctx, to)
	if err != nil {
		left()
		return nil, err
	}
	return &countedConn{nc, left}, nil
}

type countedConn struct {
	net.Conn
	left func()
}

func (c *countedConn) Close() error {
	c.left()
	return c.Conn.Close()
}

// While a scenario that needs an address for itself runs, nobody else acts from
// there. (Where it does not say so, they meet several times in every run.)
func TestAScenarioMayNeedItsAddressForItself(t *testing.T) {
	lab, err := harness.StartReference(t.Context(), []harness.SourceSpec{{Name: "stalwart@0.15.5", Kind: fixtures.Stalwart, Version: "0.15.5", Profile: fixtures.Instrumented}}, true)
	assert.NilError(t, err)
	defer func() { assert.NilError(t, lab.Close(context.Background())) }()
	relay := &counted{Vantage: lab.Target().Vantages[run.Relay], open: map[uint16]int{}}
	lab.Target().Vantages[run.Relay] = relay
	const text = "id: wait.x%d\nclaim: It is served.\nlevel: must\nrequirements: E-02\nmeans: It is not.\nneeds: stalwart\nover: %s\nfamilies: ip4\nwitness: effect\nisolation: %s\n\n# it is served\nopen A smtp source from relay\nA must <- 220 {}\n%s"
	steps := strings.Repeat("A -> NOOP\nA <- 250 {}\n", 100)
	var list []*script.Scenario
	for i := range 12 {
		over, isolation := "smtp", "account"
		if i%4 == 1 {
			over, isolation = "submission", "address"
		}
		s, err := script.Parse("wait/x.txtar", fmt.Appendf(nil, text, i, over, isolation, steps), nil)
		assert.NilError(t, err)
		list = append(list, s)
	}
	found, err := harness.Run(t.Context(), lab.Target(), harness.Scenarios(list))
	assert.NilError(t, err)
	for i := range found.Results {
		assert.Equal(t, found.Results[i].Verdict, result.Pass, found.Results[i].Reason)
	}
	assert.Equal(t, len(found.Results), 12)
	assert.Assert(t, relay.came >= 12)
	assert.Equal(t, relay.both, 0)
}
