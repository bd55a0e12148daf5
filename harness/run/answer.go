package run

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/result"
)

// answer is what a run at an operator's servers comes to, in one of three
// sentences. It is ready only if nothing that must hold failed, everything
// that must hold was judged, and through the proxy each protocol and family
// was seen to carry a client's own address to the source.
func answer(t *Target, o Options, run *result.Run) *result.Answer {
	if t.Limits == nil {
		return nil
	}
	a := &result.Answer{Because: because(run), Add: []string{}}
	if len(a.Because) > 0 {
		a.Verdict = result.NotReady
		a.Sentence = "not ready, because " + a.Because[0]
		if n := len(a.Because) - 1; n > 0 {
			a.Sentence += fmt.Sprintf(" (and %d more)", n)
		}
		return a
	}
	a.Because = []string{}
	a.Add = missing(t, o, run)
	if len(a.Add) > 0 {
		a.Verdict = result.NotFullyJudged
		a.Sentence = "not fully judged: to judge it, add " + strings.Join(a.Add, "; ")
		return a
	}
	a.Verdict, a.Sentence = result.Ready, "ready to cut over"
	if n := len(run.Excluded); n > 0 {
		a.Sentence += fmt.Sprintf(", but for %d %s that %s excluded and not judged", n, plural(n, "claim", "claims"), plural(n, "is", "are"))
	}
	return a
}

// because lists what must hold and does not: causes first, then failures that
// no cause explains.
func because(run *result.Run) []string {
	var out []string
	for _, d := range run.Diagnoses {
		if d.Level == result.Must {
			out = append(out, fmt.Sprintf("%s (%s, %s)", d.Title, d.Code, d.Source))
		}
	}
	for i := range run.Results {
		r := &run.Results[i]
		if r.Level == result.Must && (r.Verdict == result.Fail && r.ExplainedBy == "" || r.Unstable) {
			out = append(out, fmt.Sprintf("%s does not hold at %s, %s", r.ID, r.Source, r.Facet))
		}
	}
	return out
}

// missing lists what would have to be added before everything that must hold
// is judged.
func missing(t *Target, o Options, run *result.Run) []string {
	w := &wants{}
	for _, p := range run.Problems {
		if address, ok := strings.CutPrefix(p.Where, "the account "); ok && p.Stage == "account" {
			w.other("the right password of " + address + ", or another account") // as its results say
			continue
		}
		w.other(fmt.Sprintf("what is missing at %s: %s", p.Where, p.Words))
	}
	if len(o.Select) > 0 || o.Shard.Of > 1 {
		w.other("the rest of the scenarios (this run was told to take some of them only)")
	}
	if t.Proxy == nil {
		w.other("[proxy]")
	}
	for i := range run.Results {
		r := &run.Results[i]
		if r.Level == result.Must && (r.Verdict == result.Inconclusive || r.Verdict == result.Error) {
			w.reason(r.Reason)
		}
	}
	if list := w.list(); len(list) > 0 {
		return list
	}
	// Everything was judged that can be; what ready rests on must be among it.
	for _, s := range t.Sources {
		for _, gap := range unseen(t, s, run) {
			w.other(gap)
		}
	}
	return w.list()
}

// unseen lists the protocols and families of the proxy through which no
// client's address was seen to arrive.
func unseen(t *Target, s *Source, run *result.Run) []string {
	if t.Proxy == nil {
		return nil
	}
	seen := map[string]bool{}
	for i := range run.Results {
		r := &run.Results[i]
		if r.Source == s.Name && r.Verdict == result.Pass && r.Facet.Driver == "through" &&
			slices.ContainsFunc(r.Witness, func(w result.Witness) bool { return w.Kind == "log" }) {
			seen[r.Facet.Endpoint+" "+r.Facet.Family] = true
		}
	}
	var out []string
	for _, f := range []Family{IP4, IP6} {
		for _, e := range t.Proxy.Endpoints {
			if _, has := s.Endpoint(e.Name); t.Proxy.Addr(f).IsValid() && e.Name != "smtp" && has && !seen[e.Name+" "+string(f)] {
				out = append(out, fmt.Sprintf("a sign-in through the proxy's %s in %s that %s is seen to record", e.Name, f, s.Name))
			}
		}
	}
	return out
}

// wants gathers what single reasons ask for.
type wants struct {
	risk     string
	allow    []string
	others   []string
	accounts map[string]int // by source
	follows  bool           // something waits for what another result would have witnessed
}

func (w *wants) other(s string) {
	if !slices.Contains(w.others, s) {
		w.others = append(w.others, s)
	}
}

// reason takes what a result's reason says after "to judge …, add".
func (w *wants) reason(s string) {
	if s == "interrupted" {
		w.other("a run to its end (this one was interrupted)")
		return
	}
	_, add, ok := strings.Cut(s, ": to judge ")
	if ok {
		_, add, ok = strings.Cut(add, ", ")
	}
	if !ok {
		w.other("what this needs: " + s)
		return
	}
	add = strings.TrimPrefix(add, "add ")
	if strings.HasPrefix(add, "--") {
		f := strings.Fields(add)
		for i := 0; i+1 < len(f); i += 2 {
			switch f[i] {
			case "--max-risk":
				w.risk = max(w.risk, f[i+1])
			case "--allow":
				for _, a := range strings.Split(f[i+1], ",") {
					if !slices.Contains(w.allow, a) {
						w.allow = append(w.allow, a)
					}
				}
			}
		}
		return
	}
	if strings.Contains(s, unwitnessed) {
		w.follows = true
		return
	}
	var n int
	var word, of, source string
	if k, _ := fmt.Sscan(add, &n, &word, &of, &source); k == 4 && strings.HasPrefix(word, "account") {
		if w.accounts == nil {
			w.accounts = map[string]int{}
		}
		w.accounts[source] = max(w.accounts[source], n)
		return
	}
	w.other(add)
}

func (w *wants) list() []string {
	list := []string{}
	flags := ""
	if w.risk != "" {
		flags = "--max-risk " + w.risk
	}
	if len(w.allow) > 0 {
		slices.Sort(w.allow)
		flags = strings.TrimSpace(flags + " --allow " + strings.Join(w.allow, ","))
	}
	// What a flag cannot give is said first: it takes longer to bring about.
	list = append(list, w.others...)
	for _, s := range sortedKeys(w.accounts) {
		list = append(list, accountsMore(w.accounts[s])+" of "+s)
	}
	if flags != "" {
		list = append(list, flags)
	}
	if len(list) == 0 && w.follows {
		list = append(list, "a witness that the source believes the proxy, on each path on which a sign-in is to fail")
	}
	return list
}
