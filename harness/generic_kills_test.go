package harness_test

import (
	_ "embed"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/scenarios"
)

// What no trial of a generic source kills, and why: "scenario TAB assertion TAB
// reason".
//
//go:embed testdata/generic-unkilled.txt
var unkilledText string

// unkilled reads the list.
func unkilled(t *testing.T) map[string]string {
	t.Helper()
	list := map[string]string{}
	for line := range strings.Lines(unkilledText) {
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		assert.Assert(t, len(f) == 3 && f[2] != "", "%q", line)
		list[f[0]+"\t"+f[1]] = f[2]
	}
	return list
}

// genericAssertions lists what is asserted of generic sources: by its place, the
// scenario and the words.
func genericAssertions(t *testing.T) map[string]string {
	t.Helper()
	all, err := scenarios.All()
	assert.NilError(t, err)
	at := map[string]string{}
	for _, s := range all {
		for _, how := range []run.Announcement{run.ByNothing, run.ByXCLIENT, run.ByPROXY} {
			for _, a := range s.AssertionsAt(script.Release{Kind: "generic", Version: string(how)}) {
				at[s.ID+" "+a.Pos.String()] = s.ID + "\t" + a.Text
			}
		}
	}
	return at
}

// A genericTrial is a source with something wrong, declared as in the rehearsals.
type genericTrial struct {
	is, declared string
	wrong        string // a defect or a bug; "" for none
	// records is the vantage under whose address the log shows every session of
	// this run; "" for the truth.
	records string
}

// everybody is a source that takes a header from whoever connects.
const everybody = "header-from-everybody"

// genericTrials are as few as kill what can be killed.
func genericTrials() []genericTrial {
	var out []genericTrial
	for way, names := range map[string]string{
		"xclient": "trust-everyone turns-away logs-proxy-address logs-announced-from-anyone address-translation greeting-bare-lf",
		"mixed": "relay-refused address-literal-refused delivers-twice proxy-joins-refused rewrites-body failed-login-logged-with-proxy accept-then-bounce greylists-everyone " +
			"relay-rate-limit delivers-to-junk helo-rule-submission no-8bitmime null-sender-replaced relay-everyone size-limit smtpd-upstream-proxy greeting-bare-lf",
		"none":  "answers-late haproxy-listener greeting-bare-lf",
		"proxy": "relay-everyone greeting-bare-lf",
	} {
		for _, name := range strings.Fields(names) {
			out = append(out, genericTrial{is: way, declared: way, wrong: name})
		}
	}
	out = append(out, genericTrial{is: "proxy", declared: "proxy", wrong: everybody})
	for _, way := range []string{"none", "xclient", "mixed"} {
		out = append(out, genericTrial{is: way, declared: way, records: run.Relay})
	}
	return append(out, genericTrial{is: "none", declared: "proxy"}, genericTrial{is: "proxy", declared: "none"}, genericTrial{is: "xclient", declared: "none"}, genericTrial{is: "none", declared: "xclient"})
}

// recordAs is a log that shows everybody of this run under one address of its
// family.
func recordAs(vantage string) func(string) string {
	h, _ := fixtures.HostOf(vantage)
	form := regexp.MustCompile(`(\brip=|\[)([0-9a-f.:]*[.:][0-9a-f.:]*)`)
	return func(line string) string {
		return form.ReplaceAllStringFunc(line, func(s string) string {
			at := strings.IndexAny(s, "=[") + 1
			if strings.Contains(s[at:], ":") {
				return s[:at] + h.IP6.String()
			}
			return s[:at] + h.IP4.String()
		})
	}
}

// Every assertion that a generic source runs was seen to fail at one, or is
// listed with the reason why not. An assertion that only a line end kills is
// listed as well: what was asserted held.
func TestEveryAssertionOfAGenericSourceCanFail(t *testing.T) {
	listed, asserted := unkilled(t), genericAssertions(t)
	known := map[string]bool{}
	for _, text := range asserted {
		known[text] = true
	}
	for text := range listed {
		assert.Check(t, known[text], "%s is listed, and asserted of no generic source", text)
	}
	if sample {
		t.Skip("thirty rehearsals take minutes under the race detector: they run without it")
	}
	var mu sync.Mutex
	killed, byEnds := map[string]bool{}, map[string]bool{}
	trials := map[string]genericTrial{}
	for _, c := range genericTrials() {
		trials[fmt.Sprintf("%s as %s %s%s", c.is, c.declared, c.wrong, c.records)] = c
	}
	atOnce(t, trials, func(t *testing.T, c genericTrial) {
		var spec harness.SourceSpec
		switch _, isBug := harness.BugNamed(c.wrong); {
		case c.wrong == everybody:
			spec = genericSpec(c.is, fixtures.Layer{Name: everybody, Files: map[string]string{"dovecot/96-everybody.conf": "haproxy_trusted_networks = 0.0.0.0/0 ::/0\n"}})
		case c.wrong == "":
			spec = genericSpec(c.is)
		case isBug:
			spec = misbehaving(c.is, c.wrong)
		default:
			spec = genericSpec(c.is, defect(t, c.wrong))
		}
		declared := mixed
		if c.declared != "mixed" {
			declared = `"` + c.declared + `"`
		}
		if c.declared != c.is {
			spec.Forwarding = fixtures.Forwarding{Mail: c.declared, Submission: c.declared}
		}
		r := rehearseSpec(t, spec)
		r.asGeneric(declared)
		if c.records != "" {
			r.tells = recordAs(c.records)
		}
		found := r.judge(t, append(everything(), func(o *run.Options) { o.Onward = func(string) bool { return true } })...)
		mu.Lock()
		defer mu.Unlock()
		for i := range found.Results {
			for _, f := range found.Results[i].Findings {
				for _, fact := range f.Facts {
					if place, ok := strings.CutPrefix(fact, "assert="); ok && f.Code == "line-end" {
						byEnds[found.Results[i].ID+" "+place] = true
					} else if ok {
						killed[found.Results[i].ID+" "+place] = true
					}
				}
			}
		}
	})
	n := 0
	var left []string
	for at, text := range asserted {
		switch _, is := listed[text]; {
		case killed[at]:
			n++
		case !is:
			left = append(left, fmt.Sprintf("%s (a line end kills it: %v)", text, byEnds[at]))
		}
	}
	slices.Sort(left)
	t.Logf("%d of %d assertions were seen to fail; %d kinds of them are listed as not", n, len(asserted), len(listed))
	assert.Equal(t, len(left), 0, "nothing was seen to kill\n%s", strings.Join(left, "\n"))
}
