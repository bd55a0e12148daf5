package containers

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
)

// named are the misconfigurations that a migration most often meets, each at one
// of the two releases. "make prove-docker" proves all of them at both.
func named() []string {
	return []string{
		"trust-missing",             // the guide was not followed
		"trust-missing-imap",        // only for one protocol
		"trust-subnet",              // a /24 in place of an address
		"trust-everyone",            //
		"trust-new-server-included", //
		"xclient-by-name",           // authorised by host name
		"submission-forgotten",      // one service of master.cf
		"submissions-forgotten",     // the other
		"inet-protocols-ipv4",       //
		"haproxy-listener",          // on one listener
		"relay-refused",             //
		"open-relay",                //
		"proxy-in-mynetworks",       //
		"helo-rule",                 //
		"slow-authentication",       //
		"no-sasl-plain",             //
	}
}

// TestProveRealDefects switches each of the named defects on at real Dovecot
// and Postfix, of the two releases in turn: what it is about fails, its diagnosis comes
// first and explains every failure, and the remedy that the run names makes
// them go. Good targets show nothing, or just what is known to be true of them.
func TestProveRealDefects(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 10*time.Minute)
	began := time.Now()
	say := func(s string) {
		if !strings.HasPrefix(s, "starting dovecot-postfix") {
			t.Logf("%5.1fs %s", time.Since(began).Seconds(), s)
		}
	}
	releases := fixtures.Releases(fixtures.DovecotPostfix)
	m, err := harness.Prove(ctx, harness.ProveOptions{
		Lab: "docker", Releases: releases, Defects: named(),
		Batch: fixtures.MaxSources, Narrow: true, Brief: true, Alternate: true, Progress: say,
		Start: func(ctx context.Context, specs []harness.SourceSpec) (*harness.Target, func(context.Context) error, error) {
			l, err := Start(ctx, Options{Sources: specs, Proxy: ReferenceProxy(specs), Program: os.Getenv("MAILPROOF_PROGRAM"), Progress: say})
			if err != nil {
				return nil, nil, err
			}
			return l.Target(), l.Close, nil
		},
	})
	assert.NilError(t, err)
	for _, f := range m.Failures() {
		t.Error(f)
	}
	n := len(named())
	assert.Equal(t, fmt.Sprintf("%d of %d good, %d of %d caught, %d diagnosed, %d remedied", m.Totals.Clean, m.Totals.Good, m.Totals.Caught, m.Totals.Defects, m.Totals.Diagnosed, m.Totals.Remedied),
		fmt.Sprintf("%d of %d good, %d of %d caught, %d diagnosed, %d remedied", 3*len(releases), 3*len(releases), n, n, n, n))
	for _, d := range m.Defects {
		assert.Equal(t, d.Remedy, "cured", "%s at %s", d.Defect, d.Source)
	}
	for _, g := range m.Good {
		assert.Assert(t, g.Results > 200, "%s: %d results", g.Source, g.Results)
		t.Logf("%s: %d results, true of it: %v", g.Source, g.Results, g.Truths)
	}
}
