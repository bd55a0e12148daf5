package harness_test

import (
	"bufio"
	"context"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/reference/memnet"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/scenarios"
)

// scenario is one of port 25 with these steps.
func scenario(t *testing.T, kind, steps string, header ...string) *script.Scenario {
	t.Helper()
	lib, err := scenarios.Library()
	assert.NilError(t, err)
	text := "id: verdict.one\nclaim: The source does it.\nlevel: must\nrequirements: E-02\nspec: none\nmeans: It does not.\nneeds: " + kind + "\nfamilies: ip4\nwitness: effect\n" +
		strings.Join(header, "") + "\n# the steps\n" + steps
	s, err := script.Parse("verdict/one.txtar", []byte(text), lib)
	assert.NilError(t, err)
	return s
}

// The verdict of a step is the one that its reply earns, and no other.
func TestVerdictOfAReply(t *testing.T) {
	const begins = "open A smtp source.smtp from relay\nA <- 220 {}\nA -> NOOP\n"
	for _, c := range []struct {
		name, steps, reply string
		verdict            result.Verdict
		says               string
	}{
		{"matches", "A must <- 250 {}", "250 2.0.0 Ok\r\n", result.Pass, ""},
		{"ends in LF alone", "A must <- 250 {}", "250 2.0.0 Ok\n", result.Fail, "line-end: a line that ends in a bare LF"},
		{"ends in LF alone before its last line", "A must <- 250 {}", "250-one\n250 2.0.0 Ok\r\n", result.Fail, "line-end: a line that ends in a bare LF"},
		{"leaves open", "A must <- 250 {} else open 4{} || 550 {}", "450 4.2.0 Greylisted\r\n", result.Inconclusive, "an answer to another question"},
		{"leaves open by the second form", "A must <- 250 {} else open 4{} || 550 {}", "550 5.7.1 No\r\n", result.Inconclusive, "an answer to another question"},
		{"neither matches nor leaves open", "A must <- 250 {} else open 4{} || 550 {}", "554 5.7.1 No\r\n", result.Fail, "mismatch: 554 5.7.1 No"},
		{"matches what else would leave open", "A must <- 250 {} else open 2{}", "250 2.0.0 Ok\r\n", result.Pass, ""},
		{"closes", "A <x", "", result.Pass, ""},
		{"talks, and does not close", "A <x", "250 2.0.0 Ok\r\n", result.Fail, "open: it goes on: 250 2.0.0 Ok"},
		{"talks, and then closes", "A <x", "421 4.3.2 Bye\r\n|", result.Fail, "open: it goes on: 421 4.3.2 Bye"},
		{"talks without an end of line, and then closes", "A <x", "421|", result.Fail, "open: it goes on: 421"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			p := play(t, func(_ run.Endpoint, conn *memnet.Conn) {
				io.WriteString(conn, "220 source.example.test ESMTP\r\n")
				bufio.NewReader(conn).ReadString('\n')
				reply, closes := strings.CutSuffix(c.reply, "|")
				io.WriteString(conn, reply)
				if closes || reply == "" {
					conn.CloseWrite()
				}
				keep(conn)
			})
			found := judge(t, p.Target, harness.Scenarios([]*script.Scenario{scenario(t, fixtures.DovecotPostfix, begins+c.steps+"\n")}))
			assert.Equal(t, len(found.Results), 1)
			r := &found.Results[0]
			said := r.Reason
			for _, f := range r.Findings {
				said += f.Code + ": " + f.Found
			}
			assert.Equal(t, r.Verdict, c.verdict, said)
			assert.Assert(t, cmp.Contains(said, c.says))
		})
	}
}

// Of several records of one session the one that says what was expected is
// believed, in whatever order they come; a line that contradicts itself never.
func TestWhichRecordIsBelieved(t *testing.T) {
	const seed = "which"
	other := func(line string) string { return strings.Replace(line, " rip=", " rip=192.0.2.1, was=", 1) }
	twice := func(line string) string { return strings.Replace(line, " rip=", " rip=192.0.2.1, rip=", 1) }
	right := func(line string) string { return line }
	// It has what is expected, and something else beside it.
	both := func(line string) string { return strings.Replace(line, ", session=", ", rip=192.0.2.1, session=", 1) }
	for _, c := range []struct {
		name    string
		lines   []func(string) string
		late    func(string) string // comes when the barrier's line does
		verdict result.Verdict
		says    string
	}{
		{"the second is right", []func(string) string{other, right}, nil, result.Pass, ""},
		{"the first is right", []func(string) string{right, other}, nil, result.Pass, ""},
		{"none is right", []func(string) string{other, other}, nil, result.Fail, "rip=192.0.2.1"},
		{"one that contradicts itself", []func(string) string{twice}, nil, result.Inconclusive, "cannot be believed: the field rip stands twice in the line"},
		{"one that contradicts itself, beside a right one", []func(string) string{twice, right}, nil, result.Pass, ""},
		{"one that contradicts itself, and a right one late", []func(string) string{both}, right, result.Pass, ""},
		{"one that contradicts itself and has what is expected, beside a wrong one", []func(string) string{other, both}, nil, result.Fail, "rip=192.0.2.1"},
		{"one that contradicts itself, beside a wrong one", []func(string) string{twice, other}, nil, result.Fail, "rip=192.0.2.1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			target := reference(t)
			src := target.Sources[0]
			var held []string
			src.Logs = map[string]run.LogFunc{"mail": editLog(src.Logs["mail"], func(line string) []string {
				if !strings.Contains(line, "<mp"+seed) && strings.Contains(line, "-login: ") {
					defer func() { held = nil }()
					return append(held, line)
				}
				if !strings.Contains(line, " Logged in: ") || !strings.Contains(line, "session=<mp"+seed) {
					return []string{line}
				}

				var out []string
				for _, edit := range c.lines {
					out = append(out, edit(line))
				}
				if c.late != nil {
					held = append(held, c.late(line))
				}
				return out
			})}
			found := judge(t, target, harness.Select("client-address.pop3"), func(o *run.Options) { o.Seed = seed })
			assert.Assert(t, len(found.Results) > 2)
			for i := range found.Results {
				r := &found.Results[i]
				said := r.Reason
				for _, f := range r.Findings {
					said += f.Found
				}
				assert.Equal(t, r.Verdict, c.verdict, "%s: %s", r.Key(), said)
				assert.Assert(t, cmp.Contains(said, c.says), r.Key())
			}
		})
	}
}

// settings are those of a source that does as it is told.
type settings struct {
	mu     sync.Mutex
	stored []run.Setting
	force  []run.Setting
	did    []string
}

func (s *settings) do(what string, f func()) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.did = append(s.did, what)
	f()
	return nil
}

func (s *settings) without(prefixes []string) []run.Setting {
	return slices.DeleteFunc(slices.Clone(s.stored), func(v run.Setting) bool {
		return slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(v.Name, p) })
	})
}

func (s *settings) Insert(_ context.Context, add []run.Setting) error {
	return s.do("insert", func() {
		for _, v := range add {
			s.stored = append(s.without([]string{v.Name}), v)
		}
		slices.SortFunc(s.stored, func(a, b run.Setting) int { return strings.Compare(a.Name, b.Name) })
	})
}

func (s *settings) Clear(_ context.Context, prefixes ...string) error {
	return s.do("clear", func() { s.stored = s.without(prefixes) })
}

func (s *settings) List(_ context.Context, prefixes ...string) ([]run.Setting, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := s.without(prefixes)
	return slices.DeleteFunc(slices.Clone(s.stored), func(v run.Setting) bool { return slices.Contains(left, v) }), nil
}

func (s *settings) Reload(context.Context) error {
	return s.do("reload", func() { s.force = slices.Clone(s.stored) })
}

func (s *settings) Restart(context.Context) error {
	return s.do("restart", func() { s.force = slices.Clone(s.stored) })
}

func (s *settings) Guide() []run.Setting                      { return []run.Setting{{Name: "guide.one", Value: "1"}} }
func (s *settings) Unblock(context.Context, ...string) error  { return nil }
func (s *settings) Blocked(context.Context) ([]string, error) { return nil, nil }

// Whatever a scenario changes of its source's settings, and however it ends,
// they are stored and in force afterwards as they were before.
func TestSettingsArePutBack(t *testing.T) {
	const greets = "open A smtp source.smtp from relay\nA must <- 220 {}\n"
	for name, steps := range map[string]string{
		"inserted":               "source insert limit.rate = 5\nsource reload\n" + greets,
		"inserted anew":          "source insert fresh.rate = 5\nsource reload\n" + greets,
		"cleared":                "source clear limit.\nsource reload\n" + greets,
		"stored, never in force": "source insert limit.rate = 5\n" + greets,
		"restarted":              "source insert limit.rate = 5\nsource restart\n" + greets,
		"taken back, not loaded": "source insert limit.rate = 5\nsource reload\nsource insert limit.rate = 1\n" + greets,
		"the guide's":            "source unguide\nsource reload\n" + greets,
		"a claim that fails":     "source insert limit.rate = 5\nsource reload\n" + greets + "A -> NOOP\nA must <- 299 {}\n",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := play(t, func(_ run.Endpoint, conn *memnet.Conn) {
				io.WriteString(conn, "220 source.example.test ESMTP\r\n")
				bufio.NewReader(conn).ReadString('\n')
				io.WriteString(conn, "250 2.0.0 Ok\r\n")
				keep(conn)
			})
			before := []run.Setting{{Name: "guide.one", Value: "1"}, {Name: "limit.burst", Value: "2"}, {Name: "limit.rate", Value: "1"}, {Name: "other", Value: "x"}}
			s := &settings{stored: slices.Clone(before), force: slices.Clone(before)}
			src := p.Target.Sources[0]
			src.Admin, src.Kind, src.Version = s, fixtures.Stalwart, fixtures.Releases(fixtures.Stalwart)[0]
			found := judge(t, p.Target, harness.Scenarios([]*script.Scenario{scenario(t, fixtures.Stalwart, steps, "isolation: alone\n", "hazards: restart\n")}),
				func(o *run.Options) { o.Allow = []string{"restart"} })
			want := result.Pass
			if strings.Contains(steps, "299") {
				want = result.Fail
			}
			assert.Equal(t, found.Results[0].Verdict, want, found.Results[0].Reason)
			assert.Assert(t, slices.Equal(s.stored, before), "stored: %v after %v", s.stored, s.did)
			assert.Assert(t, slices.Equal(s.force, before), "in force: %v after %v", s.force, s.did)
			assert.Equal(t, slices.Contains(s.did, "restart"), strings.Contains(steps, "restart"), "%v", s.did)
		})
	}
}
