package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
)

// stalwartProgram is the environment variable that names a real Stalwart 0.15.5
// for the tests that need one.
const stalwartProgram = "MAILPROOF_STALWART"

func realStalwart(t *testing.T) string {
	t.Helper()
	path := os.Getenv(stalwartProgram)
	if path == "" {
		t.Skipf("no real Stalwart: %s=PATH names a program of version 0.15.5", stalwartProgram)
	}
	NeedEngine(t)
	return path
}

func stalwartSpec(name, profile, from string, layers ...fixtures.Layer) harness.SourceSpec {
	return harness.SourceSpec{Name: name, Kind: fixtures.Stalwart, Version: "0.15.5", Profile: profile, From: from, Layers: layers}
}

// The reference Stalwart and a real one are judged by the whole corpus: every
// verdict, every finding and every witness must be of the same kind.
func TestTheReferenceStalwartAnswersAsARealOne(t *testing.T) {
	path := realStalwart(t)
	for _, profile := range fixtures.Profiles() {
		t.Run(profile, func(t *testing.T) {
			ctx := within(t, 8*time.Minute)
			lab := startLab(ctx, t, Options{Sources: []harness.SourceSpec{stalwartSpec("stalwart", profile, "exec:"+path)}, Proxy: ReferenceProxy([]harness.SourceSpec{stalwartSpec("stalwart", profile, "")})})
			for _, f := range lab.Failures() {
				t.Fatal(f)
			}
			found, err := harness.Run(ctx, lab.Target())
			assert.NilError(t, err)
			ref, err := harness.StartReference(ctx, []harness.SourceSpec{stalwartSpec("stalwart", profile, "")}, true)
			assert.NilError(t, err)
			defer ref.Close(ctx)
			played, err := harness.Run(ctx, ref.Target())
			assert.NilError(t, err)
			assert.Equal(t, len(played.Results), len(found.Results))
			for i := range found.Results {
				real, ours := shape(&found.Results[i]), shape(&played.Results[i])
				if real != ours {
					t.Errorf("%s:\n  real       %s\n  reference  %s", found.Results[i].Key(), real, ours)
				}
			}
		})
	}
}

var eventName = regexp.MustCompile(`\(([a-z]+[a-z0-9.-]+)\) `)

// shape is a result without what differs from run to run: its verdict, what
// was found and where, and which kinds of records witnessed it.
func shape(r *result.Result) string {
	words := []string{string(r.Verdict)}
	for _, f := range r.Findings {
		words = append(words, f.Code+"@"+fmt.Sprint(f.At.Line))
	}
	for _, w := range r.Witness {
		word := w.Kind
		if w.Kind == "log" {
			var events []string
			for _, m := range eventName.FindAllStringSubmatch(w.Line, -1) {
				// How far a delivery had come when it was looked at differs.
				if strings.HasPrefix(m[1], "delivery.") || strings.HasPrefix(m[1], "message-ingest.") {
					continue
				}
				if !slices.Contains(events, m[1]) {
					events = append(events, m[1])
				}
			}
			slices.Sort(events)
			word += "(" + strings.Join(events, " ") + ")"
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

// What a reload rejects is a problem, what a start drops is a finding, and a
// program that is none, or that ends, is told in its own words.
func TestStalwartsThatAreWrong(t *testing.T) {
	path := realStalwart(t)
	ctx := within(t, 5*time.Minute)
	zero := fixtures.Layer{Name: "overlay", Files: map[string]string{"stalwart/ours.toml": "server.listener.imap.proxy.trusted-networks = [\"0.0.0.0/0\"]\n"}}
	other := fixtures.Layer{Name: "overlay", Files: map[string]string{"postfix/main.cf": "a = b\n"}}
	specs := []harness.SourceSpec{
		stalwartSpec("zero", fixtures.Instrumented, "exec:"+path, zero),
		stalwartSpec("true", fixtures.Instrumented, "exec:/bin/true"),
		stalwartSpec("text", fixtures.Instrumented, "exec:"+filepath.Join("testdata", "nothing")),
		stalwartSpec("postfix", fixtures.Instrumented, "exec:"+path, other),
		stalwartSpec("image", fixtures.Instrumented, "image:mailproof/no-such-image:1"),
	}
	lab := startLab(ctx, t, Options{Sources: specs})
	target := lab.Target()
	said := map[string]string{}
	for _, p := range target.Problems {
		said[p.Source] += p.Stage + ": " + p.Where + ": " + p.Words + "\n"
	}
	assert.Assert(t, cmp.Contains(said["zero"], "reload: server.listener.imap.proxy.trusted-networks.0: Invalid IP address"))
	assert.Assert(t, cmp.Contains(said["true"], "start: "))
	assert.Assert(t, cmp.Contains(said["true"], "ended: stalwart, status 0"))
	assert.Assert(t, cmp.Contains(said["text"], "image: "))
	assert.Assert(t, cmp.Contains(said["postfix"], "overlay: the layer overlay: postfix/main.cf is configuration of another kind of source"))
	assert.Assert(t, cmp.Contains(said["image"], "exec:PATH"))
	assert.Equal(t, len(target.Sources), 1, "the source whose reload was rejected is judged")

	found, err := harness.Run(ctx, target, harness.Select("trust.unannounced-imap"))
	assert.NilError(t, err)
	codes := []string{}
	for _, d := range found.Diagnoses {
		codes = append(codes, d.Code)
	}
	assert.DeepEqual(t, codes, []string{"DX-01"})
}

// A restart while sessions are open ends them, keeps addresses and settings,
// and is over when the server answers again.
func TestStalwartRestarts(t *testing.T) {
	path := realStalwart(t)
	ctx := within(t, 3*time.Minute)
	lab := startLab(ctx, t, Options{Sources: []harness.SourceSpec{stalwartSpec("stalwart", fixtures.Instrumented, "exec:"+path)}})
	src := lab.Target().Sources[0]
	admin := src.Admin
	assert.NilError(t, admin.Insert(ctx, []run.Setting{{Name: "session.connect.greeting", Value: "'another greeting'"}, {Name: "server.listener.imap.max-connections", Value: "77"}}))
	c, err := dialFrom(ctx, lab, src, run.Stranger, "imap", run.IP4)
	assert.NilError(t, err)
	defer c.Close()
	began := time.Now()
	assert.NilError(t, admin.Restart(ctx))
	t.Logf("restarted in %v", time.Since(began).Round(time.Millisecond))
	assert.NilError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	said, err := io.ReadAll(c)
	assert.NilError(t, err, "the session goes on after %q", said)
	list, err := admin.List(ctx, "server.listener.imap", "session.connect.greeting")
	assert.NilError(t, err)
	assert.Assert(t, slices.Contains(list, run.Setting{Name: "server.listener.imap.max-connections", Value: "77"}))
	assert.Assert(t, slices.Contains(list, run.Setting{Name: "session.connect.greeting", Value: "'another greeting'"}))
	var rejected *run.Rejected
	assert.NilError(t, admin.Insert(ctx, []run.Setting{{Name: "http.url", Value: "https://unquoted"}}))
	assert.Assert(t, errors.As(admin.Reload(ctx), &rejected))
	assert.Assert(t, cmp.Contains(rejected.Settings["http.url"], "Invalid"))

	// The server is killed: the way to it says so, and ends.
	short, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	_, err = lab.e.exec(short, "mailproof-source0-stalwart", "/bin/sh", "-c", "kill -KILL $(cat /mailproof/pid)")
	assert.NilError(t, err)
	assert.Assert(t, admin.Restart(short) != nil)
}

// A source whose disk is full is judged: what it cannot do any more fails, in
// its own words, and nothing hangs. With room again it is as before.
func TestAStalwartWhoseDiskIsFull(t *testing.T) {
	path := realStalwart(t)
	ctx := within(t, 4*time.Minute)
	lab := startLab(ctx, t, Options{Sources: []harness.SourceSpec{stalwartSpec("stalwart", fixtures.Instrumented, "exec:"+path)}})
	src := lab.Target().Sources[0]
	judge := func() map[result.Verdict]int {
		found, err := harness.Run(ctx, lab.Target(), harness.Select("relay.delivers-data", "client-address.imap"))
		assert.NilError(t, err)
		verdicts := map[result.Verdict]int{}
		if len(found.Diagnoses) > 0 {
			assert.Equal(t, found.Diagnoses[0].Code, "MP-STORE")
		}
		for _, r := range found.Results {
			verdicts[r.Verdict]++
			t.Logf("%s: %s %s %+v", r.Key(), r.Verdict, r.Reason, r.Findings)
			assert.Assert(t, r.Verdict != result.Error, "%s: %s", r.Key(), r.Reason)
		}
		return verdicts
	}
	before := judge()
	assert.Assert(t, before[result.Pass] > 2 && len(before) == 1, "%v", before)
	shell := func(command string) {
		_, err := lab.e.exec(ctx, "mailproof-source0-stalwart", "/bin/sh", "-c", command)
		assert.NilError(t, err)
	}
	shell("dd if=/dev/zero of=" + stalwartData + "/fill bs=64k 2>/dev/null; ! dd if=/dev/zero of=" + stalwartData + "/more bs=64k count=1 2>/dev/null")
	// What the store has to spare is used up as well.
	large := strings.Repeat("x", 256<<10)
	var refused error
	for n := 0; refused == nil && n < 128; n++ {
		refused = src.Admin.Insert(ctx, []run.Setting{{Name: fmt.Sprintf("mailproof.fill.%d", n), Value: large}})
	}
	assert.Assert(t, refused != nil, "settings are stored on a disk without room")
	t.Logf("a setting on a full disk: %.200v", refused)
	full := judge()
	assert.Assert(t, full[result.Fail] > 0, "%v", full)
	shell("rm -f " + stalwartData + "/fill " + stalwartData + "/more")
	after := judge()
	assert.Equal(t, after[result.Pass], before[result.Pass], "%v", after)
}

// An image in the published layout, with a volume and an entry point of its
// own, is run as the program itself is, and leaves no volume behind.
func TestAStalwartFromAnImage(t *testing.T) {
	path := realStalwart(t)
	ctx := within(t, 4*time.Minute)
	e, err := openEngine(ctx)
	assert.NilError(t, err)
	defer e.close()
	base, err := e.stalwartFromProgram(ctx, path, func(string) {})
	assert.NilError(t, err)
	const ref = "mailproof/stalwart:published-layout"
	recipe := "FROM " + base + "\nWORKDIR /opt/stalwart\nVOLUME [ \"/opt/stalwart\" ]\nEXPOSE 443 25 110 587 465 143 993 995 4190 8080\n" +
		"CMD [\"/usr/local/bin/stalwart\"]\nENTRYPOINT [\"/bin/sh\", \"-c\", \"exec /usr/local/bin/stalwart --config /opt/stalwart/etc/config.toml\"]\n"
	b, err := e.cli.ImageBuild(ctx, bytes.NewReader(tarOf([]file{{"Dockerfile", 0o644, []byte(recipe)}})),
		client.ImageBuildOptions{Tags: []string{ref}, Remove: true, ForceRemove: true, Labels: map[string]string{labelImage: "test"}})
	assert.NilError(t, err)
	words, err := buildOutput(b.Body)
	b.Body.Close()
	assert.NilError(t, err, words)
	defer e.cli.ImageRemove(context.WithoutCancel(ctx), ref, client.ImageRemoveOptions{})
	specs := []harness.SourceSpec{stalwartSpec("stalwart", fixtures.Instrumented, "image:"+ref)}
	before, err := e.cli.VolumeList(ctx, client.VolumeListOptions{})
	assert.NilError(t, err)
	lab := startLab(ctx, t, Options{Sources: specs, Proxy: ReferenceProxy(specs)})
	for _, f := range lab.Failures() {
		t.Fatal(f)
	}
	found, err := harness.Run(ctx, lab.Target(), harness.Select("lifecycle.settings", "client-address.imap", "relay.delivers-data"))
	assert.NilError(t, err)
	for _, r := range found.Results {
		assert.Equal(t, r.Verdict, result.Pass, "%s: %s %+v", r.Key(), r.Reason, r.Findings)
		assert.Equal(t, r.Origin, result.FromImage)
	}
	assert.NilError(t, lab.Close(ctx))
	after, err := e.cli.VolumeList(ctx, client.VolumeListOptions{})
	assert.NilError(t, err)
	assert.Equal(t, len(after.Items), len(before.Items))
}

// Which Stalwart it is stands in its log; one of another series is refused with
// what could still be judged of it.
func TestTheVersionOfAStalwart(t *testing.T) {
	for _, c := range []struct{ line, software, refused string }{
		{`2026-11-23T23:27:05Z INFO Starting Stalwart Server v0.15.5 (server.startup) version = "0.15.5"`, "Stalwart 0.15.5", ""},
		{`2026-11-23T23:27:05Z INFO Starting Stalwart Server v0.16.18 (server.startup) version = "0.16.18"`, "Stalwart 0.16.18", "it says that it is Stalwart 0.16.18"},
		{`2026-11-23T23:27:05Z WARN something else`, "Stalwart, which does not say its version at this log level", ""},
	} {
		src := &source{name: "s", journal: newJournal()}
		src.journal.add(c.line)
		err := (&stalwart{src: src}).version()
		assert.Equal(t, src.software, c.software)
		if c.refused == "" {
			assert.NilError(t, err)
		} else {
			assert.Assert(t, cmp.ErrorContains(err, c.refused))
		}
	}
}

func TestProgramsThatAreNone(t *testing.T) {
	dir := t.TempDir()
	text := filepath.Join(dir, "text")
	assert.NilError(t, os.WriteFile(text, []byte("#!/bin/sh\n"), 0o755))
	assert.Assert(t, cmp.ErrorContains(runsOn(text, "amd64"), "is no Linux executable"))
	exe, err := os.Executable()
	assert.NilError(t, err)
	assert.Assert(t, cmp.ErrorContains(runsOn(exe, "riscv"), "the engine's architecture is riscv"))
}
