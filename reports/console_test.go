package reports

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/mailproof/mailproof/harness/result"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/golden"
)

// play tells a console a whole run.
func play(t *testing.T, run *result.Run, o ConsoleOptions) string {
	t.Helper()
	var b bytes.Buffer
	c := NewConsole(&b, o)
	c.Progress("starting dovecot-postfix@bookworm and dovecot-postfix@trixie")
	for _, p := range run.Problems {
		c.Problem(p)
	}
	c.Begin(len(run.Results))
	for _, r := range run.Results {
		c.Result(r)
	}
	assert.NilError(t, c.End(run))
	return b.String()
}

func terminal(width int) ConsoleOptions {
	return ConsoleOptions{Terminal: true, Colour: true, Width: func() int { return width }}
}

func TestConsoleGolden(t *testing.T) {
	golden.Assert(t, play(t, sampleRun(), ConsoleOptions{}), "sample.console.txt")
	golden.Assert(t, play(t, sampleRun(), ConsoleOptions{Verbose: true}), "sample.console-v.txt")
	tty := play(t, sampleRun(), terminal(90))
	_, report, _ := strings.Cut(tty, "\r\x1b[K\n") // after the last progress line
	golden.Assert(t, report, "sample.console-tty.txt")
}

func TestConsoleOfAGoodRun(t *testing.T) {
	run := sampleRun()
	run.Notices, run.Problems, run.Diagnoses, run.Excluded = nil, nil, nil, nil
	run.Target.Sources = run.Target.Sources[:2]
	run.Results = nil
	for i := range 214 {
		run.Results = append(run.Results, passing(claims[i%len(claims)], trixie, facet("imap", "ip4", "as-proxy"), i))
	}
	run.Exit = result.ExitOK
	golden.Assert(t, play(t, run, ConsoleOptions{}), "good.console.txt")
}

func TestConsoleEndsWithTheStatusInWords(t *testing.T) {
	c := claims[0]
	good := passing(c, trixie, facet("imap", "ip4", "as-proxy"), 1)
	bad := failing(passing(c, trixie, facet("imap", "ip6", "as-proxy"), 2), c, result.Finding{Code: "mismatch"})
	warning := bad
	warning.Level = result.Should
	open := good
	open.Verdict, open.Reason, open.Facet.Endpoint = result.Inconclusive, "no log", "imaps"
	stopped := open
	stopped.Verdict, stopped.Reason = result.Error, "interrupted"
	none := open
	none.Verdict = result.Unsupported
	mixed := good
	mixed.Unstable, mixed.Repeats = true, []result.Verdict{result.Fail, result.Pass}
	stand := good
	stand.Origin = result.FromReference
	for want, run := range map[string]result.Run{
		"Exit status 0: everything selected was judged, and nothing failed.":                                 {Results: []result.Result{good}},
		"Exit status 0: no claim that must hold failed; 1 warning.":                                          {Results: []result.Result{good, warning}},
		"Exit status 1: 1 of 2 failed a claim that must hold.":                                               {Exit: 1, Results: []result.Result{good, bad}},
		"Exit status 1: 1 of 3 failed a claim that must hold, 1 could not be judged.":                        {Exit: 1, Results: []result.Result{good, bad, open}},
		"Exit status 1: 1 gave different verdicts when repeated.":                                            {Exit: 1, Results: []result.Result{mixed}},
		"Exit status 1: 1 warning counts as failed (--strict).":                                              {Exit: 1, Results: []result.Result{good, warning}},
		"Exit status 3: 1 of 2 could not be judged.":                                                         {Exit: 3, Results: []result.Result{good, open}},
		"Exit status 3: 1 problem (start).":                                                                  {Exit: 3, Results: []result.Result{good}, Problems: []result.Problem{{Stage: "start"}}},
		"Exit status 3: nothing was judged: the targets have none of what was selected.":                     {Exit: 3, Results: []result.Result{none}},
		"Exit status 3: a reference server stood in that was not asked for: practice, not evidence.":         {Exit: 3, Results: []result.Result{stand}},
		"Exit status 4: nothing was selected.":                                                               {Exit: 4},
		"Exit status 4: only exclusions are left of what was selected.":                                      {Exit: 4, Excluded: []result.Excluded{{ID: "a.b", Reason: "named"}}},
		"0 results in 0.0 s: nothing.":                                                                       {Exit: 4},
		"Exit status 130: 1 of 2 did not finish.":                                                            {Exit: 130, Results: []result.Result{good, stopped}},
		"Exit status 2: the command or a script was wrong.":                                                  {Exit: 2},
		"1 result of shard 2/3 in 0.0 s: 1 pass. Exit status 0: everything selected was judged, and nothing": {Plan: result.Plan{Shard: "2/3"}, Results: []result.Result{good}},
	} {
		lines := strings.Split(strings.TrimRight(play(t, &run, ConsoleOptions{}), "\n"), "\n")
		assert.Assert(t, strings.Contains(lines[len(lines)-1], want), "want %q, have %q", want, lines[len(lines)-1])
	}
}

var ansi = regexp.MustCompile("\x1b\\[([0-9;]*m|K)")

// Nothing that a server sent reaches a terminal as a control character, and no
// line is longer than what was promised.
func TestConsoleIsSafe(t *testing.T) {
	for seed := range uint64(25) {
		run := randomRun(seed, 80)
		for _, o := range []ConsoleOptions{{}, {Verbose: true}, terminal(60), {Terminal: true, Verbose: true, Width: func() int { return 132 }}} {
			text := play(t, run, o)
			if o.Terminal {
				text = strings.ReplaceAll(text, "\r", "\n")
			}
			if o.Colour || o.Terminal {
				text = ansi.ReplaceAllString(text, "")
			}
			for line := range strings.SplitSeq(text, "\n") {
				for _, r := range line {
					if !unicode.IsGraphic(r) {
						t.Fatalf("%U in %q", r, line)
					}
				}
				if n := utf8.RuneCountInString(line); n > 2100 {
					t.Fatalf("a line of %d characters: %q", n, line[:100])
				}
			}
		}
	}
}

func TestConsoleIsBounded(t *testing.T) {
	c := claims[0]
	run := &result.Run{Exit: result.ExitFailed}
	for i := range 5000 {
		r := failing(passing(c, trixie, facet("imap", "ip4", "as-proxy"), i), c, result.Finding{Code: "mismatch", Wanted: "a", Found: strings.Repeat("b\n", 1000), Evidence: make([]string, 1000)})
		r.ID = fmt.Sprintf("a.b%d", i)
		run.Results = append(run.Results, r)
		r.ID, r.Verdict, r.Reason = fmt.Sprintf("a.c%d", i), result.Inconclusive, fmt.Sprintf("reason %d", i)
		run.Results = append(run.Results, r)
	}
	text := play(t, run, ConsoleOptions{})
	assert.Assert(t, len(text) < 128<<10, "%d octets", len(text))
	assert.Assert(t, strings.Contains(text, "… and 4900 more: --json or --html has them all"))
	assert.Assert(t, strings.Contains(text, "… and 4985 more reasons"))
}

func TestConsoleWithoutATerminalIsLines(t *testing.T) {
	text := play(t, sampleRun(), ConsoleOptions{})
	assert.Assert(t, !strings.ContainsAny(text, "\r\x1b"))
	progress := 0
	for line := range strings.Lines(text) {
		if strings.Contains(line, " judged, ") && strings.Contains(line, " of 67 ") && !strings.Contains(line, "Exit") {
			progress++
		}
	}
	assert.Equal(t, progress, 3) // 25, 50 and all of 67
}

func TestConsoleOptionsForAFile(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	assert.NilError(t, err)
	defer f.Close()
	o := ConsoleOptionsFor(f, true)
	assert.Assert(t, !o.Terminal && !o.Colour && o.Verbose)
}

func TestConsoleKeepsTheFirstError(t *testing.T) {
	full := errors.New("no space left on device")
	c := NewConsole(writerFunc(func([]byte) (int, error) { return 0, full }), ConsoleOptions{})
	c.Begin(1)
	c.Result(result.Result{})
	assert.Equal(t, c.End(sampleRun()), full)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestConsoleTakesResultsFromManyGoroutines(t *testing.T) {
	run := sampleRun()
	var b bytes.Buffer
	c := NewConsole(&b, terminal(80))
	c.Begin(len(run.Results))
	var wg sync.WaitGroup
	for i := range run.Results {
		wg.Go(func() {
			c.Progress("a sentence")
			c.Result(run.Results[i])
		})
	}
	wg.Wait()
	assert.NilError(t, c.End(run))
	assert.Assert(t, strings.Contains(b.String(), "67 of 67 judged"))
}
