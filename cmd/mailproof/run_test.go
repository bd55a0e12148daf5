package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"
	"gotest.tools/v3/golden"

	"github.com/mailproof/mailproof/harness/result"
)

// one names a selection of a few results that take no time.
var one = []string{"--lab", "reference", "--source", "dovecot-postfix@trixie", "--select", "relay.greets"}

func with(args []string, more ...string) []string { return append(slices.Clone(args), more...) }

func TestStatuses(t *testing.T) {
	should := []string{"run", "--lab", "reference", "--source", "dovecot-postfix@trixie", "--select", "A-20", "--defect", "lip-not-honoured"}
	for _, c := range []struct {
		name string
		args []string
		code int
		says []string
	}{
		{"all well", with([]string{"run"}, one...), 0, []string{"2 pass", "Exit status 0"}},
		{"a must failed", []string{"run", "--lab", "reference", "--select", "trust.smtp-stranger", "--defect", "trust-everyone"}, 1, []string{"DX-27", "Exit status 1"}},
		{"a defect at one kind", []string{"run", "--lab", "reference", "--select", "trust.smtp-stranger", "--defect", "dovecot-postfix:trust-everyone"}, 1, []string{"DX-27"}},
		{"a should failed", should, 0, []string{"WARNING", "Exit status 0"}},
		{"a should failed, strictly", with(should, "--strict"), 1, []string{"Exit status 1"}},
		{"above the risk allowed", with([]string{"run", "--max-risk", "R0", "--select", "client-address.imap"}, one...), 3, []string{"--max-risk R"}},
		{"nothing is supported", []string{"run", "--lab", "reference", "--source", "dovecot-postfix@trixie", "--scenarios",
			writeTree(t, map[string]string{"own/greets.txtar": strings.Replace(goodScenario, "needs: dovecot-postfix", "needs: dovecot-postfix@bookworm", 1)})}, 3, []string{"unsupported"}},
		{"nobody named a lab, and there is no engine", []string{"run", "--select", "relay.greets"}, 3,
			[]string{"No container engine answers, so the reference servers stand in", nowhere, "mailproof doctor", "practice, not evidence", "Exit status 3"}},
		{"a lab that needs an engine", []string{"run", "--lab", "docker", "--select", "relay.greets"}, 3,
			[]string{"PROBLEM  engine, this machine", nowhere, "--lab reference", "4 error: the target did not start", "Exit status 3"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := mailproof(t, with(c.args, "--json", "-")...)
			assert.Equal(t, got.code, c.code, got.err)
			for _, s := range c.says {
				assert.Assert(t, cmp.Contains(got.err, s))
			}
			assert.Equal(t, readRun(t, got.out).Exit, c.code, "the JSON names the status of the process")
		})
	}
}

// Without an engine the stand-in is told in the first line, and in every report.
func TestAStandInIsNeverSilent(t *testing.T) {
	dir := t.TempDir()
	html, markdown, junit := filepath.Join(dir, "r.html"), filepath.Join(dir, "r.md"), filepath.Join(dir, "r.xml")
	got := mailproof(t, "run", "--select", "relay.greets", "--json", "-", "--html", html, "--markdown", markdown, "--junit", junit)
	first, _, _ := strings.Cut(got.err, "\n")
	assert.Assert(t, strings.HasPrefix(first, "No container engine answers, so the reference servers stand in"), first)
	assert.Equal(t, strings.Count(got.err, "no such file or directory"), 2, "told when it begins and in the summary, not oftener: %s", got.err)
	found := readRun(t, got.out)
	assert.Equal(t, len(found.Notices), 1)
	for _, r := range found.Results {
		assert.Equal(t, r.Origin, result.FromReference)
	}
	for _, file := range []string{html, markdown} {
		assert.Assert(t, cmp.Contains(readFile(t, file), "stand in for real Dovecot and Postfix"), file)
	}
	assert.Assert(t, cmp.Contains(readFile(t, junit), `<testsuite name="reference.relay"`))
}

// A report that cannot be written is told, changes the status that every other
// report names, and keeps none of them from being written.
func TestReportsThatCannotBeWritten(t *testing.T) {
	flags := []string{"--json", "--junit", "--html", "--markdown"}
	bad := map[string]func(t *testing.T) (path, says string){
		"a folder": func(t *testing.T) (string, string) { return t.TempDir(), "it is a directory" },
		"in no folder": func(t *testing.T) (string, string) {
			return filepath.Join(t.TempDir(), "absent", "r"), "make the directory first"
		},
		"below a file": func(t *testing.T) (string, string) {
			return filepath.Join(writeTree(t, map[string]string{"f": ""}), "f", "r"), "not a directory"
		},
	}
	if runtime.GOOS == "linux" {
		bad["a full disk"] = func(*testing.T) (string, string) {
			return "/dev/full", "no space left on device: free some space there"
		}
	}
	for kind, make := range bad {
		for _, flag := range flags {
			t.Run(kind+"/"+flag, func(t *testing.T) {
				path, says := make(t)
				dir := t.TempDir()
				args := with([]string{"run"}, one...)
				for _, f := range flags {
					p := filepath.Join(dir, f[2:])
					if f == flag {
						p = path
					}
					args = append(args, f, p)
				}
				got := mailproof(t, args...)
				assert.Equal(t, got.code, 3, got.err)
				assert.Equal(t, strings.Count(got.err, "could not be written"), 1, "told once: %s", got.err)
				assert.Assert(t, cmp.Contains(got.err, "mailproof: the report "+path+" could not be written: "))
				assert.Assert(t, cmp.Contains(got.err, says))
				entries, err := os.ReadDir(dir)
				assert.NilError(t, err)
				assert.Equal(t, len(entries), 3, "the other three, and no temporary file")
				for _, e := range entries {
					text := readFile(t, filepath.Join(dir, e.Name()))
					assert.Assert(t, cmp.Contains(text, "could not be written"), e.Name())
					if e.Name() == "json" {
						found := readRun(t, text)
						assert.Equal(t, found.Exit, 3)
						assert.Equal(t, len(found.Problems), 1)
						assert.Equal(t, found.Problems[0].Where, path)
					}
				}
			})
		}
	}
	t.Run("standard output", func(t *testing.T) {
		var errw bytes.Buffer
		code := Main(t.Context(), with([]string{"run", "--json", "-"}, one...), strings.NewReader(""), broken{}, &errw)
		assert.Equal(t, code, 3)
		assert.Assert(t, cmp.Contains(errw.String(), "mailproof: --json -: "))
	})
	// A failed claim keeps its status: it says more than a report that is missing.
	got := mailproof(t, "run", "--lab", "reference", "--select", "trust.smtp-stranger", "--defect", "trust-everyone", "--html", t.TempDir())
	assert.Equal(t, got.code, 1, got.err)
}

// broken is a standard output that nobody reads any more.
type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestJSONOnStandardOutputIsAlone(t *testing.T) {
	file := filepath.Join(t.TempDir(), "r.json")
	a := mailproof(t, with([]string{"run", "-v", "--json", "-"}, one...)...)
	b := mailproof(t, with([]string{"run", "--json", file}, one...)...)
	assert.Equal(t, a.code, 0, a.err)
	assert.Equal(t, b.code, 0, b.err)
	assert.Equal(t, b.out, "")
	x, y := readRun(t, a.out), readRun(t, readFile(t, file))
	assert.DeepEqual(t, verdicts(x), verdicts(y))
	shown := mailproof(t, "report", file)
	assert.Equal(t, shown.code, 0)
	assert.Assert(t, cmp.Contains(shown.err, "2 pass"))
}

func verdicts(found *result.Run) map[string]result.Verdict {
	m := make(map[string]result.Verdict, len(found.Results))
	for i := range found.Results {
		m[found.Results[i].Key()] = found.Results[i].Verdict
	}
	return m
}

func planHash(t *testing.T, args ...string) string {
	t.Helper()
	got := mailproof(t, with([]string{"plan", "--json", "--lab", "reference"}, args...)...)
	assert.Equal(t, got.code, 0, got.err)
	var p struct {
		SHA256 string `json:"sha256"`
	}
	assert.NilError(t, json.Unmarshal([]byte(got.out), &p))
	assert.Equal(t, len(p.SHA256), 64)
	return p.SHA256
}

func TestThePlansHash(t *testing.T) {
	whole := planHash(t)
	for _, same := range [][]string{{"--jobs", "1"}, {"--jobs", "16"}, {"--repeat", "20"}, {"--shard", "2/5"}, {"--timeout", "1h"}, {"--strict"},
		{"--max-risk", "R5"}, {"--select", "*"}, {"--approve", whole}, {"--approve", whole[:8]}} {
		assert.Equal(t, planHash(t, same...), whole, "%v", same)
	}
	for _, other := range [][]string{{"--select", "relay.*"}, {"--source", "dovecot-postfix@trixie"}, {"--max-risk", "R3"}} {
		assert.Assert(t, planHash(t, other...) != whole, "%v", other)
	}
	found := readRun(t, mailproof(t, with([]string{"run", "--json", "-"}, one...)...).out)
	assert.Equal(t, found.Plan.SHA256, planHash(t, one[2:]...), "what is run is what was planned")
	got := mailproof(t, with([]string{"run", "--approve", strings.ToUpper(found.Plan.SHA256[:12])}, one...)...)
	assert.Equal(t, got.code, 0, got.err)
}

func TestPlan(t *testing.T) {
	got := mailproof(t, with([]string{"plan", "-v"}, one...)...)
	assert.Equal(t, got.code, 0, got.err)
	golden.Assert(t, got.out, "plan.txt")
}

func TestExplain(t *testing.T) {
	got := mailproof(t, "explain", "relay.greets")
	assert.Equal(t, got.code, 0, got.err)
	golden.Assert(t, got.out, "explain.txt")
	got = mailproof(t, "explain", "dx-14")
	assert.Equal(t, got.code, 0, got.err)
	assert.Assert(t, cmp.Contains(got.out, "login_trusted_networks"))
}

func TestListAndLint(t *testing.T) {
	for _, args := range [][]string{{"list"}, {"list", "--defects"}, {"list", "--ledger"}, {"list", "--requirements"}} {
		got := mailproof(t, args...)
		assert.Equal(t, got.code, 0, got.err)
		assert.Assert(t, strings.Count(got.out, "\n") > 20, got.out)
		got = mailproof(t, with(args, "--json")...)
		assert.Equal(t, got.code, 0, got.err)
		var rows []map[string]any
		assert.NilError(t, json.Unmarshal([]byte(got.out), &rows))
		assert.Assert(t, len(rows) > 20)
	}
	got := mailproof(t, "lint")
	assert.Equal(t, got.code, 0, got.err)
	own := writeTree(t, map[string]string{"own/greets.txtar": goodScenario})
	got = mailproof(t, "lint", own+"/own/greets.txtar")
	assert.Equal(t, got.code, 0, got.err)
	got = mailproof(t, "run", "--lab", "reference", "--scenarios", own)
	assert.Equal(t, got.code, 0, got.err)
}

func TestDoctorWithoutAnEngine(t *testing.T) {
	got := mailproof(t, "doctor", "--json")
	assert.Equal(t, got.code, 3, got.err)
	var rows []checked
	d := json.NewDecoder(strings.NewReader(got.out))
	d.DisallowUnknownFields()
	assert.NilError(t, d.Decode(&rows))
	engine := slices.IndexFunc(rows, func(r checked) bool { return r.Name == "engine" })
	assert.Assert(t, engine >= 0, got.out)
	assert.Assert(t, !rows[engine].OK)
	assert.Assert(t, cmp.Contains(rows[engine].Found, nowhere))
	assert.Assert(t, rows[engine].Missing != "" && rows[engine].Help != "", got.out)
	assert.Assert(t, rows[0].OK && rows[0].Name == "reference lab", got.out)
	text := mailproof(t, "doctor")
	assert.Equal(t, text.code, 3)
	assert.Assert(t, cmp.Contains(text.out, "MISSING  engine"))
}

// The shards of a plan are disjoint, complete, and together what the whole is.
func TestShards(t *testing.T) {
	selection := []string{"--lab", "reference", "--select", "xclient.*", "--select", "relay.*", "--defect", "inet-protocols-ipv4"}
	whole := readRun(t, mailproof(t, with([]string{"run", "--json", "-"}, selection...)...).out)
	dir := t.TempDir()
	seen := make(map[string]int)
	const n = 3
	var files []string
	for i := 1; i <= n; i++ {
		file := filepath.Join(dir, fmt.Sprintf("%d.json", i))
		got := mailproof(t, with([]string{"run", "--json", file, "--shard", fmt.Sprintf("%d/%d", i, n)}, selection...)...)
		assert.Assert(t, got.code == 0 || got.code == 1, got.err)
		part := readRun(t, readFile(t, file))
		assert.Equal(t, part.Plan.SHA256, whole.Plan.SHA256)
		for key := range verdicts(part) {
			seen[key]++
		}
		files = append(files, file)
	}
	assert.Equal(t, len(seen), len(whole.Results))
	for key, times := range seen {
		assert.Equal(t, times, 1, key)
	}
	got := mailproof(t, with([]string{"report", "merge"}, files...)...)
	assert.Equal(t, got.code, 0, got.err)
	merged := readRun(t, got.out)
	assert.DeepEqual(t, verdicts(merged), verdicts(whole))
	assert.DeepEqual(t, merged.Counts, whole.Counts)
	assert.Equal(t, merged.Exit, whole.Exit)
	assert.Equal(t, merged.Plan.Shard, "")

	assert.NilError(t, os.WriteFile(filepath.Join(dir, "merged.json"), []byte(got.out), 0o644))
	wholeFile := filepath.Join(dir, "whole.json")
	assert.Equal(t, mailproof(t, with([]string{"run", "--json", wholeFile}, selection...)...).code, 1)
	diff := mailproof(t, "report", "diff", wholeFile, filepath.Join(dir, "merged.json"))
	assert.Equal(t, diff.code, 0, diff.err)

	missing := mailproof(t, "report", "merge", files[0], files[2])
	assert.Equal(t, missing.code, 2)
	assert.Assert(t, cmp.Contains(missing.err, "2"))
	assert.Equal(t, missing.out, "")
	twice := mailproof(t, "report", "merge", files[0], files[0], files[1], files[2])
	assert.Equal(t, twice.code, 2)
	assert.Equal(t, twice.out, "")
}

// interrupted checks what an interrupted run left behind.
func interrupted(t *testing.T, dir string) (finished, open int) {
	t.Helper()
	found := readRun(t, readFile(t, filepath.Join(dir, "json")))
	assert.Equal(t, found.Exit, 130)
	for _, r := range found.Results {
		switch r.Verdict {
		case result.Error:
			assert.Equal(t, r.Reason, "interrupted", r.Key())
			open++
		default:
			finished++
		}
	}
	for _, name := range []string{"junit", "html", "markdown"} {
		assert.Assert(t, cmp.Contains(readFile(t, filepath.Join(dir, name)), "dovecot-postfix"), name)
	}
	var junit struct {
		XMLName xml.Name `xml:"testsuites"`
		Tests   int      `xml:"tests,attr"`
	}
	assert.NilError(t, xml.Unmarshal([]byte(readFile(t, filepath.Join(dir, "junit"))), &junit))
	assert.Assert(t, junit.Tests >= len(found.Results))
	entries, err := os.ReadDir(dir)
	assert.NilError(t, err)
	assert.Equal(t, len(entries), 4, "four reports and no temporary file")
	return finished, open
}

func reportsIn(dir string) []string {
	var args []string
	for _, f := range []string{"json", "junit", "html", "markdown"} {
		args = append(args, "--"+f, filepath.Join(dir, f))
	}
	return args
}

func TestInterruptedInEachPhase(t *testing.T) {
	all := []string{"run", "--lab", "reference", "-v", "--jobs", "1"}
	for _, c := range []struct {
		phase string
		when  string // on standard error; "" for before the start
		some  bool   // results that are finished
		rest  bool   // results that are not
	}{
		{"before the start", "", false, true},
		{"as the run begins", "results are planned", false, true},
		{"in the run", "pass", true, true},
		{"as the reports are written", "Exit status 0", true, false},
	} {
		t.Run(c.phase, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			watch := &does{when: c.when, act: cancel}
			args := with(all, "--select", "relay.greets", "--select", "lifecycle.*")
			if c.when == "" {
				cancel()
			}
			dir := t.TempDir()
			got := mailproofUntil(ctx, watch, with(args, reportsIn(dir)...)...)
			assert.Equal(t, got.code, 130, got.err)
			finished, open := interrupted(t, dir)
			assert.Equal(t, finished > 0, c.some, "%d finished", finished)
			assert.Equal(t, open > 0, c.rest, "%d open", open)
		})
	}
	t.Run("a lab that does not start any more", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		dir := t.TempDir()
		got := mailproofUntil(ctx, nil, with([]string{"run", "--lab", "docker", "--select", "relay.greets"}, reportsIn(dir)...)...)
		assert.Equal(t, got.code, 130, got.err)
		interrupted(t, dir)
	})
	t.Run("proof", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		got := mailproofUntil(ctx, &does{when: "defects", act: cancel}, "prove", "--select", "relay.greets")
		assert.Equal(t, got.code, 130, got.err)
		assert.Assert(t, cmp.Contains(got.err, "mailproof: interrupted"))
	})
}

// The real signals reach the real process.
func TestSignals(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no signals to send: run this on a Unix system")
	}
	for _, sig := range []os.Signal{os.Interrupt, syscall.SIGTERM} {
		t.Run(sig.String(), func(t *testing.T) {
			dir := t.TempDir()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, os.Args[0], with([]string{"run", "--lab", "reference", "-v", "--jobs", "1", "--repeat", "1000",
				"--select", "relay.greets", "--select", "lifecycle.*"}, reportsIn(dir)...)...)
			cmd.Env = append(os.Environ(), asCommand+"=1")
			stderr, err := cmd.StderrPipe()
			assert.NilError(t, err)
			assert.NilError(t, cmd.Start())
			var text strings.Builder
			lines := bufio.NewScanner(stderr)
			for sent := false; lines.Scan(); {
				text.WriteString(lines.Text() + "\n")
				if !sent && strings.Contains(lines.Text(), "results are planned") {
					assert.NilError(t, cmd.Process.Signal(sig))
					sent = true
				}
			}
			_, _ = io.Copy(io.Discard, stderr)
			err = cmd.Wait()
			var exit *exec.ExitError
			assert.Assert(t, errors.As(err, &exit), "%v\n%s", err, text.String())
			assert.Equal(t, exit.ExitCode(), 130, text.String())
			_, open := interrupted(t, dir)
			assert.Assert(t, open > 0)
		})
	}
}
