package source_test

import (
	"bufio"
	"fmt"
	"io"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
)

// recorded is where the dialogues of the real servers stand.
const recorded = "../testdata/recorded"

// dialogue is one recorded conversation.
type dialogue struct {
	what, from, endpoint, mode, family string
	steps                              []step
	log                                []string
}

// step is what the client sent in one go and what came back; tls stands for
// the handshake.
type step struct {
	tls    bool
	sent   []string
	noEnd  bool // the last line was sent without its end
	answer []string
}

func parseRecording(text string) []*dialogue {
	var out []*dialogue
	var d *dialogue
	for _, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "== from "):
			f := strings.Fields(line)
			d = &dialogue{from: f[2], endpoint: f[4], mode: f[6], family: f[7]}
			out = append(out, d)
			d.steps = []step{{}}
		case d == nil:
		case line == "== tls":
			d.steps = append(d.steps, step{tls: true})
		case strings.HasPrefix(line, "# "):
			d.what = line[2:]
		case strings.HasPrefix(line, "C: "):
			text, noEnd := strings.CutSuffix(line[3:], " <no line end>")
			last := &d.steps[len(d.steps)-1]
			if last.sent == nil || len(last.answer) > 0 {
				d.steps = append(d.steps, step{})
				last = &d.steps[len(d.steps)-1]
			}
			last.sent = append(last.sent, text)
			last.noEnd = noEnd
		case strings.HasPrefix(line, "S: "):
			last := &d.steps[len(d.steps)-1]
			last.answer = append(last.answer, line[3:])
		case strings.HasPrefix(line, "L: "):
			d.log = append(d.log, line[3:])
		}
	}
	return out
}

// TestReplay speaks every recorded dialogue with the reference source. What it
// answers and logs is what the real servers answered and logged.
func TestReplay(t *testing.T) {
	for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
		for _, profile := range fixtures.Profiles() {
			t.Run(release+"/"+profile, func(t *testing.T) { replay(t, release, profile) })
		}
	}
}

func replay(t *testing.T, release, profile string) {
	files, err := filepath.Glob(filepath.Join(recorded, release, profile, "*.txt"))
	assert.NilError(t, err)
	assert.Assert(t, len(files) > 0)
	l := startLab(t, labOptions{release: release, profile: profile})
	l.patient = time.Minute // recordings show delays as silence
	l.log.await(t, "daemon started")
	before := len(l.log.all())
	var want []string
	var all strings.Builder
	for _, f := range files {
		text := readFile(t, f)
		all.WriteString(text)
		n := newNormal(text)
		for _, d := range parseRecording(text) {
			t.Run(strings.TrimSuffix(filepath.Base(f), ".txt")+"/"+d.what, func(t *testing.T) { converse(t, l, n, d) })
			want = append(want, d.log...)
		}
	}
	assert.NilError(t, l.src.Close())
	compareLogs(t, newNormal(all.String()), want, l.log.end()[before:])
}

// converse plays the client of one dialogue.
func converse(t *testing.T, l *lab, n *normal, d *dialogue) {
	lt := &lab{t: t, net: l.net, src: l.src, log: l.log, patient: l.patient}
	c := &client{t: t, nc: lt.dial(d.from, d.endpoint, d.family)}
	defer func() { c.nc.Close() }()
	// The recorder was told by the log that a session was over.
	defer func() {
		c.nc.(interface{ CloseWrite() error }).CloseWrite()
		io.Copy(io.Discard, c.br)
	}()
	c.br = bufio.NewReader(c.nc)
	if d.mode == "implicit" {
		c.tls()
	}
	for _, s := range d.steps {
		if s.tls {
			c.tls()
		}
		if len(s.sent) > 0 {
			out := strings.Join(s.sent, "\r\n")
			if !s.noEnd {
				out += "\r\n"
			}
			io.WriteString(c.nc, n.client(out))
		}
		if loosely(s.sent) {
			c.looseAnswer(n, s)
			continue
		}
		for i, want := range s.answer {
			if want == "<silence>" {
				continue
			}
			got := c.line()
			if want == "<closed>" && got == "<reset>" {
				break // what the client had sent too much was not read any more
			}
			assert.Equal(t, n.text(got), n.text(want), "line %d after %q", i+1, s.sent)
			if strings.HasPrefix(got, "<") && strings.HasSuffix(got, ">") {
				break
			}
		}
	}
}

// loosely says whether a command is one that go-imap answers, in its own words.
func loosely(sent []string) bool {
	if len(sent) != 1 {
		return false
	}
	f := strings.Fields(sent[0])
	return len(f) > 1 && slices.Contains([]string{"c9", "c10", "c11", "c12"}, f[0])
}

var words = regexp.MustCompile(`^((?:\S+) (?:OK|NO|BAD)(?: \[[^\]]*\])?).*`)

// looseAnswer compares the data and the conditions of an answer, in any order,
// and not its words. RECENT is no more (RFC 9051).
func (c *client) looseAnswer(n *normal, s step) {
	c.t.Helper()
	loose := func(lines []string) []string {
		var out []string
		for _, l := range lines {
			if !strings.HasSuffix(l, " RECENT") {
				out = append(out, words.ReplaceAllString(n.text(l), "$1"))
			}
		}
		slices.Sort(out)
		return out
	}
	tag, _, _ := strings.Cut(s.sent[0], " ")
	var got []string
	for {
		l := c.line()
		got = append(got, l)
		if strings.HasPrefix(l, tag+" ") || strings.HasPrefix(l, "<") {
			break
		}
	}
	assert.DeepEqual(c.t, loose(got), loose(s.answer))
}

// normal makes two texts of different sessions comparable.
type normal struct{ announced map[string]bool }

var announcedPorts = regexp.MustCompile(`(?:PORT=|x-originating-port" "|x-connected-port" ")(\d+)`)

func newNormal(text string) *normal {
	n := &normal{announced: map[string]bool{}}
	for _, m := range announcedPorts.FindAllStringSubmatch(text, -1) {
		n.announced[m[1]] = true
	}
	return n
}

// client fills in what a recording leaves out of what the client sent.
func (n *normal) client(s string) string {
	return strings.NewReplacer(
		"<secret:plain-alice>", plain(alice, secret), "<secret:wrong-alice>", plain(alice, "wrong"),
		"<secret:plain-bob>", plain(bob, secret), "<secret:wrong-bob>", plain(bob, "wrong"),
		"<secret:alice>", secret, "<secret:bob>", secret,
		"alice@example.test", alice, "bob@example.test", bob,
	).Replace(s)
}

var rules = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(\+00:00)?`), "TIME"},
	{regexp.MustCompile(`^[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d`), "TIME"},
	{regexp.MustCompile(`\d{4}-\d\d-\d\d \d\d:\d\d:\d\d`), "TIME"},
	{regexp.MustCompile(`\b[a-z0-9]{4}00a\d{3}\b`), "alice"},
	{regexp.MustCompile(`\bbob@example\.test`), "alice@example.test"},
	{regexp.MustCompile(`\[\d+\]: `), "[PID]: "},
	{regexp.MustCompile(`lmtp\(\d+\)`), "lmtp(PID)"},
	{regexp.MustCompile(`>?\)?<\d+><`), ")<PID><"},
	{regexp.MustCompile(`mpid=\d+`), "mpid=PID"},
	{regexp.MustCompile(`<[A-Za-z0-9+/]{16,}(:R\d)?>`), "<ID$1>"},
	{regexp.MustCompile(`> [A-Za-z0-9+/]{20,22}(:R\d)? Saved`), "> ID$1 Saved"},
	{regexp.MustCompile(`UIDVALIDITY \d+`), "UIDVALIDITY N"},
	{regexp.MustCompile(`\b[0-9A-F]{10,11}\b`), "QUEUE"},
	{regexp.MustCompile(`out=\d{4} deleted`), "out=MANY deleted"}, // go-imap's words are among them
	{regexp.MustCompile(`<\d{14}\.QUEUE@`), "<DATE.QUEUE@"},
	{regexp.MustCompile(`delay=[\d.]+, delays=[\d./]+`), "delay=D"},
	{regexp.MustCompile(`from=<>, size=[12]\d{3},`), "from=<>, size=BOUNCE,"},
	{regexp.MustCompile(`in \d+ secs`), "in N secs"},
	{regexp.MustCompile(`\(0\.\d{3}( \+ 0\.\d{3})* secs\)`), "(TIMES)"},
}

var portLike = regexp.MustCompile(`(\]:|rport=)(\d+)`)

func (n *normal) text(s string) string {
	for _, r := range rules {
		s = r.re.ReplaceAllString(s, r.by)
	}
	return portLike.ReplaceAllStringFunc(s, func(m string) string {
		p := portLike.FindStringSubmatch(m)
		if n.announced[p[2]] {
			return m
		}
		return p[1] + "PORT"
	})
}

// behind matches lines of processes that no client talks to.
var behind = regexp.MustCompile(`postfix/(cleanup|qmgr|lmtp|error|bounce)\[|lmtp\(`)

// compareLogs compares what was logged, whatever its order: the real servers
// are many processes.
func compareLogs(t *testing.T, n *normal, want, got []string) {
	count := func(lines []string) map[string]int {
		m := map[string]int{}
		for _, l := range lines {
			if strings.Contains(l, ": Disconnect from local: ") {
				continue // the recordings end before the last of them
			}
			m[n.text(l)]++
		}
		return m
	}
	w, g := count(want), count(got)
	var diff []string
	for l, k := range w {
		// The recorder did not see what came between two dialogues.
		if behind.MatchString(l) && g[l] > k {
			continue
		}
		if g[l] != k {
			diff = append(diff, fmt.Sprintf("%s\n    real %d, reference %d", l, k, g[l]))
		}
	}
	for l, k := range g {
		if _, ok := w[l]; !ok {
			diff = append(diff, fmt.Sprintf("%s\n    real 0, reference %d", l, k))
		}
	}
	slices.Sort(diff)
	if len(diff) > 0 {
		t.Errorf("the log differs in %d lines:\n%s", len(diff), strings.Join(diff, "\n"))
	}
}
