package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/site/sshdtest"
)

// A whole first look whose client stands behind an sshd: every sign-in through
// the proxy, and every look at the log, goes over it.
func TestSiteFirstLookOverSSH(t *testing.T) {
	l := startLoopback(t, "trixie")
	server := sshdtest.Start(t)
	l.change(t, fmt.Sprintf("client = \"bind:%s\"", loopClient), "client = { by = \"ssh:client.example\", ip4 = \"127.0.0.1\" }")
	path := os.Getenv("PATH")

	t.Setenv("PATH", server.Client(t, "user")+string(os.PathListSeparator)+path)
	s, found := l.run(t)
	t.Logf("%s; %+v in %.1f s", found.Answer.Sentence, found.Counts, found.Seconds)
	assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged, found.Answer.Sentence)
	assert.Equal(t, found.Counts.Fail+found.Counts.Error, 0, s.err)
	through := 0
	for i := range found.Results {
		if r := &found.Results[i]; r.Facet.Driver == "through" && r.Verdict == result.Pass {
			through++
			assert.Check(t, len(r.Witness) > 0 && strings.Contains(r.Witness[0].Line, "127.0.0.1"), r.Key())
		}
	}
	assert.Check(t, through >= 3, "%d sign-ins through the proxy were witnessed", through)

	// A host that asks for a password is told of, once, and nothing waits for it.
	t.Setenv("PATH", server.Client(t, "host")+string(os.PathListSeparator)+path)
	s, found = l.run(t)
	t.Logf("%s; %+v in %.1f s", found.Answer.Sentence, found.Counts, found.Seconds)
	assert.Equal(t, s.code, result.ExitUnjudged, s.err)
	assert.Equal(t, found.Counts.Fail, 0, s.err)
	assert.Check(t, cmp.Contains(found.Answer.Sentence, "a way to the vantage client that works (ssh: "))
}
