package main

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/wire"
)

// asCommand makes the test's own executable the command, so that signals and
// exit statuses are the real ones.
const asCommand = "MAILPROOF_TEST_AS_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		main()
	}
	// No test of this package may start containers.
	os.Setenv("DOCKER_HOST", nowhere)
	goleak.VerifyTestMain(m)
}

// nowhere is a DOCKER_HOST at which no engine answers.
const nowhere = "unix:///nonexistent"

// said is what one command line came to.
type said struct {
	code     int
	out, err string
}

func mailproof(t *testing.T, args ...string) said {
	t.Helper()
	return mailproofUntil(t.Context(), nil, args...)
}

// mailproofUntil runs a command line whose messages are also told to watch.
func mailproofUntil(ctx context.Context, watch io.Writer, args ...string) said {
	return mailproofWithin(ctx, wire.Deadlines{}, watch, args...)
}

// mailproofWithin waits by other deadlines at a site.
func mailproofWithin(ctx context.Context, dl wire.Deadlines, watch io.Writer, args ...string) said {
	var out, errw bytes.Buffer
	w := io.Writer(&errw)
	if watch != nil {
		w = io.MultiWriter(&errw, watch)
	}
	con := console{in: strings.NewReader(""), out: &out, err: w, deadlines: dl}
	code := con.do(ctx, args)
	return said{code, out.String(), errw.String()}
}

// does calls act once, as soon as the text was written to it.
type does struct {
	mu   sync.Mutex
	when string
	act  func()
	seen string
}

func (d *does) Write(b []byte) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seen += string(b)
	if d.act != nil && strings.Contains(d.seen, d.when) {
		d.act()
		d.act = nil
	}
	return len(b), nil
}

func writeTree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		p := filepath.Join(dir, name)
		assert.NilError(t, os.MkdirAll(filepath.Dir(p), 0o755))
		assert.NilError(t, os.WriteFile(p, []byte(text), 0o644))
	}
	return dir
}

func readRun(t *testing.T, text string) *result.Run {
	t.Helper()
	var found result.Run
	assert.NilError(t, json.Unmarshal([]byte(text), &found))
	return &found
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	assert.NilError(t, err)
	return string(b)
}

const goodScenario = `id: own.greets
claim: Port 25 greets the new server.
level: must
requirements: E-01
spec: RFC 5321, section 3.1
means: The new server cannot relay.
needs: dovecot-postfix
over: smtp
families: ip4
witness: effect

# the greeting
open A smtp source from relay
A must <- 220 {}
A -> QUIT
A <- 221 {}
`

// Every mistake on the command line has its status and a message that names
// the mistake, where it is and what would be right.
func TestMistakes(t *testing.T) {
	own := writeTree(t, map[string]string{"own/greets.txtar": goodScenario})
	typo := writeTree(t, map[string]string{"own/greets.txtar": strings.Replace(goodScenario, "A -> QUIT", "A => QUIT", 1)})
	key := writeTree(t, map[string]string{"own/greets.txtar": strings.Replace(goodScenario, "level:", "levle:", 1)})
	verb := writeTree(t, map[string]string{"own/greets.txtar": strings.Replace(goodScenario, "open A", "opne A", 1)})
	twice := writeTree(t, map[string]string{"own/greets.txtar": goodScenario, "own/again.txtar": goodScenario})
	none := t.TempDir()
	notJSON := filepath.Join(writeTree(t, map[string]string{"r.json": "{"}), "r.json")
	otherJSON := filepath.Join(writeTree(t, map[string]string{"r.json": `{"schema":"mailproof.result/9"}`}), "r.json")
	absent := filepath.Join(none, "absent")

	for _, c := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"no command", nil, 2, []string{`expected one of "list"`, "mailproof --help"}},
		{"unknown command", []string{"judge"}, 2, []string{"judge", "mailproof --help"}},
		{"unknown flag", []string{"run", "--juint", "x"}, 2, []string{"--juint", "--junit"}},
		{"flag of another command", []string{"list", "--lab", "reference"}, 2, []string{"--lab"}},
		{"unexpected argument", []string{"run", "now"}, 2, []string{"now"}},
		{"unknown lab", []string{"run", "--lab", "moon"}, 2, []string{`"moon"`, `"reference"`, `"docker"`}},
		{"unknown kind", []string{"run", "--source", "sendmail"}, 2, []string{`--source sendmail: unknown kind "sendmail"; there are dovecot-postfix and stalwart`}},
		{"unknown version", []string{"run", "--source", "dovecot-postfix@potato"}, 2, []string{`"potato"`, "bookworm trixie"}},
		{"source twice", []string{"run", "--lab", "reference", "--source", "dovecot-postfix", "--source", "dovecot-postfix@trixie"}, 2, []string{"dovecot-postfix@trixie is named twice"}},
		{"origin that cannot be", []string{"run", "--lab", "reference", "--source", "dovecot-postfix=image:x"}, 2, []string{`"image:x" cannot be used`}},
		{"unknown profile", []string{"run", "--profile", "mine"}, 2, []string{`"mine"`, `"as-shipped"`}},
		{"unknown proxy", []string{"run", "--proxy", "squid"}, 2, []string{`"squid"`}},
		{"unknown defect", []string{"run", "--lab", "reference", "--defect", "trust-mising"}, 2, []string{`no defect "trust-mising"`, "trust-missing", "mailproof list --defects"}},
		{"bug on real servers", []string{"run", "--lab", "docker", "--defect", "relay-everyone"}, 2, []string{"--lab reference"}},
		{"overlay on a reference server", []string{"run", "--lab", "reference", "--overlay", "dovecot-postfix=" + own}, 2, []string{"--lab docker"}},
		{"overlay without a folder", []string{"run", "--lab", "docker", "--overlay", "dovecot-postfix"}, 2, []string{"KIND[@VERSION]=DIR"}},
		{"overlay of a folder that is not there", []string{"run", "--lab", "docker", "--overlay", "dovecot-postfix=" + absent}, 2, []string{absent}},
		{"keep on the reference lab", []string{"run", "--lab", "reference", "--keep"}, 2, []string{"--keep", "--lab docker"}},
		{"unknown risk", []string{"run", "--lab", "reference", "--max-risk", "R9"}, 2, []string{`"R9"`, "R0 to R5"}},
		{"unknown hazard", []string{"run", "--lab", "reference", "--allow", "nuke"}, 2, []string{"nuke", "ban, flood, loop, restart"}},
		{"shard beyond", []string{"run", "--lab", "reference", "--shard", "3/2"}, 2, []string{`"3/2"`, "I/N"}},
		{"no runs", []string{"run", "--lab", "reference", "--repeat", "0"}, 2, []string{"--repeat 0"}},
		{"negative jobs", []string{"run", "--lab", "reference", "--jobs=-1"}, 2, []string{"--jobs -1"}},
		{"no time", []string{"run", "--lab", "reference", "--timeout", "0s"}, 2, []string{"--timeout 0s"}},
		{"time without a unit", []string{"run", "--lab", "reference", "--timeout", "5"}, 2, []string{"--timeout"}},

		{"glob of nothing", []string{"run", "--lab", "reference", "--select", "pop4.*"}, 4, []string{"--select pop4.* matches no scenario", "mailproof list"}},
		{"requirement of nothing", []string{"run", "--lab", "reference", "--select", "Z-99"}, 4, []string{"--select Z-99"}},
		{"one of two of nothing", []string{"run", "--lab", "reference", "--select", "relay.greets", "--select", "Z-99"}, 4, []string{"--select Z-99"}},
		{"plan of nothing", []string{"plan", "--lab", "reference", "--select", "Z-99"}, 4, []string{"--select Z-99"}},
		{"list of nothing", []string{"list", "--select", "Z-99"}, 4, []string{"--select Z-99"}},
		{"proof of nothing", []string{"prove", "--select", "Z-99"}, 4, []string{"--select Z-99"}},
		{"proof of an unknown defect", []string{"prove", "--defect", "nope"}, 2, []string{`"nope"`, "trust-missing"}},

		{"misspelt direction", []string{"run", "--lab", "reference", "--scenarios", typo}, 2,
			[]string{filepath.ToSlash(typo) + `/own/greets.txtar:15:3: "=>`, `write "A -> text"`}},
		{"misspelt key", []string{"run", "--lab", "reference", "--scenarios", key}, 2,
			[]string{filepath.ToSlash(key) + "/own/greets.txtar:3:1: ", `"levle"`, `did you mean "level"?`}},
		{"misspelt verb", []string{"plan", "--lab", "reference", "--scenarios", verb}, 2,
			[]string{filepath.ToSlash(verb) + "/own/greets.txtar:13:1: ", `"opne"`, `did you mean "open"?`}},
		{"one id twice", []string{"list", "--scenarios", twice}, 2, []string{"own.greets is taken by " + filepath.ToSlash(twice) + "/own/again.txtar"}},
		{"no scenarios there", []string{"run", "--lab", "reference", "--scenarios", none}, 2, []string{none, "GROUP/NAME.txtar"}},
		{"no such folder", []string{"run", "--lab", "reference", "--scenarios", absent}, 2, []string{absent}},
		{"a file for a folder", []string{"run", "--lab", "reference", "--scenarios", notJSON}, 2, []string{notJSON, "no folder"}},
		{"lint of a typo", []string{"lint", typo + "/own/greets.txtar"}, 2, []string{"greets.txtar:15:3: "}},
		{"lint of nothing", []string{"lint", absent}, 2, []string{absent}},
		{"lint of a folder", []string{"lint", own}, 2, []string{own}},
		{"explain of nothing", []string{"explain", "nope"}, 2, []string{"explain nope", "mailproof list"}},
		{"explain of no diagnosis", []string{"explain", "DX-99"}, 2, []string{"explain DX-99"}},

		{"another plan", []string{"run", "--lab", "reference", "--approve", "deadbeef00"}, 2, []string{"deadbeef00 was approved", "mailproof plan"}},
		{"too short a hash", []string{"run", "--lab", "reference", "--approve", "d"}, 2, []string{"d was approved"}},
		{"plan of another hash", []string{"plan", "--lab", "reference", "--approve", "deadbeef00"}, 2, []string{"deadbeef00 was approved"}},

		{"proxy without configuration", []string{"proxy"}, 2, []string{"--config"}},
		{"proxy of a file that is not there", []string{"proxy", "--config", absent}, 2, []string{absent}},
		{"show of nothing", []string{"report", "show", absent}, 2, []string{absent}},
		{"show of no JSON", []string{"report", "show", notJSON}, 2, []string{notJSON}},
		{"show of another schema", []string{"report", otherJSON}, 2, []string{otherJSON, "mailproof.result/9"}},
		{"merge of no JSON", []string{"report", "merge", notJSON}, 2, []string{notJSON}},
		{"diff of no JSON", []string{"report", "diff", notJSON, notJSON}, 2, []string{notJSON}},
		{"diff of one", []string{"report", "diff", notJSON}, 2, []string{"AFTER.json"}},
		{"one file of two reports", []string{"report", "show", "--html", absent, otherJSON, otherJSON}, 2, []string{otherJSON}},
		{"proof without an engine", []string{"prove", "--lab", "docker"}, 3, []string{"no container engine", nowhere, "mailproof doctor"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := mailproof(t, c.args...)
			assert.Equal(t, got.code, c.code, "%s%s", got.out, got.err)
			assert.Equal(t, got.out, "", "a mistake says nothing where data is expected")
			for _, s := range c.says {
				assert.Assert(t, cmp.Contains(got.err, s))
			}
			assert.Assert(t, !strings.Contains(got.err, "panic"), got.err)
		})
	}
}

func TestVersionAndHelp(t *testing.T) {
	got := mailproof(t, "--version")
	assert.Equal(t, got.code, 0)
	assert.Assert(t, strings.HasPrefix(got.out, "mailproof "), got.out)
	for _, args := range [][]string{{"--help"}, {"run", "--help"}, {"report", "merge", "--help"}} {
		got := mailproof(t, args...)
		assert.Equal(t, got.code, 0)
		assert.Assert(t, cmp.Contains(got.out, "Usage: mailproof"))
		assert.Equal(t, got.err, "")
	}
}
