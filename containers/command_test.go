package containers

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/reports"
)

// reportsIn names a report of each kind in a folder.
func reportsIn(dir string) []string {
	var args []string
	for _, f := range []string{"json", "junit", "html", "markdown"} {
		args = append(args, "--"+f, filepath.Join(dir, "report."+f))
	}
	return args
}

// interrupt runs the command and sends it a signal at the first line of its
// standard error that when accepts. It returns the status and what was said.
func interrupt(ctx context.Context, t *testing.T, sig os.Signal, when func(line string) bool, args ...string) (status, pid int, said string) {
	t.Helper()
	cmd := exec.CommandContext(ctx, os.Getenv("MAILPROOF_PROGRAM"), args...)
	stderr, err := cmd.StderrPipe()
	assert.NilError(t, err)
	assert.NilError(t, cmd.Start())
	var text strings.Builder
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	sent := false
	for lines.Scan() {
		text.WriteString(lines.Text() + "\n")
		if !sent && when(lines.Text()) {
			sent = true
			assert.NilError(t, cmd.Process.Signal(sig))
		}
	}
	_, copyErr := io.Copy(io.Discard, stderr)
	err = cmd.Wait()
	assert.NilError(t, copyErr)
	assert.Assert(t, sent, "the moment to interrupt never came:\n%s", text.String())
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), cmd.Process.Pid, text.String()
}

// A reference Stalwart stands beside real servers in one run, with a proxy of
// its own before it, and is named as what it is wherever its results are.
func TestAStandInBesideRealServers(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 2*time.Minute)
	file := filepath.Join(t.TempDir(), "report.json")
	cmd := exec.CommandContext(ctx, os.Getenv("MAILPROOF_PROGRAM"), "run", "--lab", "docker", "--source", "stalwart@0.15.5=reference", "--source", "dovecot-postfix@trixie",
		"--select", "client-address.imap", "--select", "proxy.imap", "--select", "relay.delivers-data", "--json", file)
	said, err := cmd.CombinedOutput()
	assert.NilError(t, err, "%s", said) // it was asked for
	first, _, _ := strings.Cut(string(said), "\n")
	assert.Equal(t, first, "The reference server stands in for stalwart@0.15.5: this is practice, not evidence")
	var found result.Run
	b, err := os.ReadFile(file)
	assert.NilError(t, err)
	assert.NilError(t, json.Unmarshal(b, &found))
	assert.Assert(t, cmp.Contains(strings.Join(found.Notices, "\n"), first))
	origins := map[string]map[result.Origin]int{}
	for _, r := range found.Results {
		assert.Equal(t, r.Verdict, result.Pass, "%s: %s", r.Key(), r.Reason)
		if origins[r.Source] == nil {
			origins[r.Source] = map[result.Origin]int{}
		}
		origins[r.Source][r.Origin]++
	}
	n := len(found.Results) / 2
	assert.DeepEqual(t, origins, map[string]map[result.Origin]int{"stalwart@0.15.5": {result.FromReference: n}, "dovecot-postfix@trixie": {result.FromImage: n}})
	assert.DeepEqual(t, remaining(ctx, t, cmd.Process.Pid), []string(nil))
}

// TestASignalInEachPhase interrupts the real command while a lab starts, while
// scenarios run, and while the lab is being removed: each time the status is
// 130, every report is there, and nothing is left on the engine.
func TestASignalInEachPhase(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 5*time.Minute)
	results := 0
	for _, c := range []struct {
		phase string
		sig   os.Signal
		args  []string
		when  func(line string) bool
		open  bool // results that are not finished
	}{
		{"start", os.Interrupt, []string{"--select", "lifecycle.*"}, func(line string) bool { return strings.Contains(line, "starting dovecot-postfix@trixie") }, true},
		{"run", syscall.SIGTERM, []string{"--jobs", "1"}, func(line string) bool { return strings.Contains(line, "pass ") && strings.Contains(line, "/ip4/") }, true},
		{"stop", os.Interrupt, []string{"--select", "relay.greets"}, func(line string) bool {
			if strings.Contains(line, "relay.greets") {
				results++
			}
			return results == 2 // that is all of them
		}, false},
	} {
		t.Run(c.phase, func(t *testing.T) {
			dir := t.TempDir()
			args := append([]string{"run", "--lab", "docker", "--source", "dovecot-postfix@trixie", "-v"}, c.args...)
			status, pid, said := interrupt(ctx, t, c.sig, c.when, append(args, reportsIn(dir)...)...)
			assert.Equal(t, status, result.ExitInterrupted, said)
			for _, f := range []string{"json", "junit", "html", "markdown"} {
				b, err := os.ReadFile(filepath.Join(dir, "report."+f))
				assert.NilError(t, err)
				assert.Assert(t, len(b) > 100, "%s: %s", f, b)
			}
			var found result.Run
			b, err := os.ReadFile(filepath.Join(dir, "report.json"))
			assert.NilError(t, err)
			assert.NilError(t, json.Unmarshal(b, &found))
			assert.Equal(t, found.Exit, result.ExitInterrupted)
			open := 0
			for _, r := range found.Results {
				if r.Verdict == result.Error {
					open++
				}
			}
			assert.Equal(t, open > 0, c.open, "%d of %d results are open:\n%s", open, len(found.Results), said)
			assert.DeepEqual(t, remaining(ctx, t, pid), []string(nil))
		})
	}
	t.Run("proof", func(t *testing.T) {
		matrix := filepath.Join(t.TempDir(), "matrix.json")
		status, pid, said := interrupt(ctx, t, os.Interrupt, func(line string) bool { return line == "starting the proxy" },
			"prove", "--lab", "docker", "--source", "dovecot-postfix@trixie", "--defect", "open-relay", "--select", "relay.greets", "--select", "E-14", "--json", matrix)
		assert.Equal(t, status, result.ExitInterrupted, said)
		var m harness.Matrix
		b, err := os.ReadFile(matrix)
		assert.NilError(t, err)
		assert.NilError(t, json.Unmarshal(b, &m))
		assert.Equal(t, len(m.Defects), 1)
		assert.Assert(t, cmp.Contains(said, "1 of 1 defects were not tried"))
		assert.DeepEqual(t, remaining(ctx, t, pid), []string(nil))
	})
}

// TestASlowEngineLeavesNothingBehind interrupts a lab while the engine still
// makes a container. An engine makes it even for somebody who has gone away:
// here it does so when the command has ended, if the command did not wait.
func TestASlowEngineLeavesNothingBehind(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 2*time.Minute)
	address := os.Getenv("DOCKER_HOST")
	if address == "" {
		address = "unix:///var/run/docker.sock"
	}
	engine, err := url.Parse(address)
	assert.NilError(t, err)
	forward := &httputil.ReverseProxy{
		Rewrite:  func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = "http", "engine" },
		ErrorLog: log.New(io.Discard, "", 0), // streams that end with the command
		Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			if engine.Scheme == "unix" {
				return new(net.Dialer).DialContext(ctx, "unix", engine.Path)
			}
			return new(net.Dialer).DialContext(ctx, "tcp", engine.Host)
		}},
	}
	asked, ended := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var making sync.WaitGroup
	socket := filepath.Join(t.TempDir(), "engine.sock")
	ln, err := net.Listen("unix", socket)
	assert.NilError(t, err)
	slow := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/containers/create") && r.URL.Query().Get("name") != lockName {
			making.Add(1)
			defer making.Done()
			body, err := io.ReadAll(r.Body) // whoever goes away is noticed once the body is read
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			gone := r.Context().Done()
			r = r.WithContext(context.WithoutCancel(r.Context()))
			r.Body = io.NopCloser(bytes.NewReader(body))
			once.Do(func() { close(asked) })
			slowly := time.NewTimer(500 * time.Millisecond)
			defer slowly.Stop()
			select {
			case <-slowly.C:
			case <-gone:
				<-ended
			}
		}
		forward.ServeHTTP(w, r)
	})}
	served := make(chan error, 1)
	go func() { served <- slow.Serve(ln) }()

	cmd := exec.CommandContext(ctx, os.Getenv("MAILPROOF_PROGRAM"), "run", "--lab", "docker", "--source", "dovecot-postfix@trixie", "--select", "relay.greets")
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+socket)
	var said strings.Builder
	cmd.Stderr = &said
	assert.NilError(t, cmd.Start())
	select {
	case <-asked:
		assert.NilError(t, cmd.Process.Signal(os.Interrupt))
	case <-ctx.Done():
	}
	err = cmd.Wait()
	close(ended)
	making.Wait()
	slow.Close()
	<-served
	var exit *exec.ExitError
	assert.Assert(t, errors.As(err, &exit), "%v", err)
	assert.Equal(t, exit.ExitCode(), result.ExitInterrupted, said.String())
	assert.DeepEqual(t, remaining(ctx, t, cmd.Process.Pid), []string(nil))
}

// spellings are the forms in which a password could be found in an artefact.
func spellings(a run.Account) []string {
	local, _, _ := strings.Cut(a.Address, "@")
	out := []string{a.Password, url.QueryEscape(a.Password), url.PathEscape(a.Password)}
	for _, plain := range []string{a.Password, "\x00" + a.Address + "\x00" + a.Password, a.Address + "\x00" + a.Address + "\x00" + a.Password,
		"\x00" + local + "\x00" + a.Password, a.Address + ":" + a.Password, local + ":" + a.Password} {
		out = append(out, base64.StdEncoding.EncodeToString([]byte(plain)), base64.RawURLEncoding.EncodeToString([]byte(plain)))
	}
	// Where it begins within base64 is not known: its middle is looked for at
	// each of the three places.
	for shift := range 3 {
		enc := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + a.Password))
		out = append(out, enc[(shift*8+5)/6:len(enc)-2])
	}
	return out
}

// leaks says which artefacts hold a password, and in which form.
func leaks(artefacts map[string]string, accounts []run.Account) []string {
	var out []string
	for _, a := range accounts {
		for _, s := range spellings(a) {
			for name, text := range artefacts {
				if strings.Contains(text, s) {
					out = append(out, fmt.Sprintf("%s holds the password of %s as %q", name, a.Address, s))
				}
			}
		}
	}
	return out
}

// TestNoPasswordLeavesTheDockerLab runs every scenario against sources that
// fail many, and looks for the passwords in everything that is handed out.
// The containers themselves, and their files, are no artefact: a lab that was
// kept holds its accounts' passwords.
func TestNoPasswordLeavesTheDockerLab(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 4*time.Minute)
	var specs []harness.SourceSpec
	for _, d := range []struct{ name, release string }{{"trust-missing", "bookworm"}, {"trust-everyone", "trixie"}, {"service-missing", "trixie"}} {
		defect, err := fixtures.DefectNamed(d.name)
		assert.NilError(t, err)
		layer, err := defect.Layer(d.release)
		assert.NilError(t, err)
		specs = append(specs, spec1(d.name, d.release, fixtures.Instrumented, layer))
	}
	var told strings.Builder
	l := startLab(ctx, t, Options{Sources: specs, Proxy: ReferenceProxy(specs), Progress: func(s string) { told.WriteString(s + "\n") }})
	var accounts []run.Account
	for _, s := range l.Target().Sources {
		accounts = append(accounts, s.Accounts.(*harness.AccountPool).All()...)
	}
	assert.Equal(t, len(accounts), 1200)

	var console strings.Builder
	show := reports.NewConsole(&console, reports.ConsoleOptions{Verbose: true})
	found, err := harness.Run(ctx, l.Target(), func(o *run.Options) {
		o.Observer = show.Result
		o.OneFacet = func(string, *script.Scenario) bool { return true } // what is said differs by protocol
	})
	assert.NilError(t, err)
	assert.Equal(t, len(found.Problems), 0)
	assert.Assert(t, found.Counts.Fail >= 30, "%+v: failures carry the evidence", found.Counts)
	assert.NilError(t, show.End(found))

	artefacts := map[string]string{"the progress": told.String(), "the console": console.String()}
	for name, write := range map[string]func(io.Writer) error{
		"the JSON":     func(w io.Writer) error { return reports.WriteJSON(w, found) },
		"the JUnit":    func(w io.Writer) error { return reports.WriteJUnit(w, found) },
		"the HTML":     func(w io.Writer) error { return reports.WriteHTML(w, found) },
		"the Markdown": func(w io.Writer) error { return reports.WriteMarkdown(w, found) },
	} {
		var b strings.Builder
		assert.NilError(t, write(&b))
		artefacts[name] = b.String()
	}
	for i := range found.Results {
		artefacts["the transcripts"] += found.Results[i].Transcript + harness.Describe(&found.Results[i])
	}
	artefacts["the kept lab's words"] = strings.Join(l.kept, "\n")
	// What an engine tells of a container: its name, labels, environment and command.
	cs, _, err := l.e.remains(ctx, l.id)
	assert.NilError(t, err)
	assert.Assert(t, len(cs) >= 9, "%d containers", len(cs))
	for _, c := range cs {
		in, err := l.e.cli.ContainerInspect(ctx, c.ID, client.ContainerInspectOptions{})
		assert.NilError(t, err)
		b, err := json.Marshal(in.Container)
		assert.NilError(t, err)
		artefacts["docker inspect"] += string(b)
	}
	for name, text := range artefacts {
		assert.Assert(t, len(text) > 60, "%s: %s", name, text)
	}
	assert.Assert(t, cmp.Contains(artefacts["the transcripts"], "<secret:"))
	for _, leak := range leaks(artefacts, accounts) {
		t.Error(leak)
	}

	// The search finds what is there.
	planted := accounts[7]
	for _, s := range []string{"LOGIN x " + planted.Password, "AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("\x00"+planted.Address+"\x00"+planted.Password)),
		"Basic " + base64.StdEncoding.EncodeToString([]byte("someone else:"+planted.Password))} {
		assert.Assert(t, len(leaks(map[string]string{"planted": s}, accounts[:20])) > 0, s)
	}
}

// TestAnImageThatCannotBeBuiltShowsTheBuildersWords has both ways to make an
// image fail.
func TestAnImageThatCannotBeBuiltShowsTheBuildersWords(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 2*time.Minute)
	e, err := openEngine(ctx)
	assert.NilError(t, err)
	defer e.close()
	r := recipe{"mailproof/test", "none", "fails", nil}

	t.Run("docker build", func(t *testing.T) {
		// The vantages' image has no shell to install anything with.
		agent, err := e.agentImage(ctx, os.Getenv("MAILPROOF_PROGRAM"), func(string) {})
		assert.NilError(t, err)
		err = e.build(ctx, r.tag(), r, agent)
		p := imageFailure("a source", err).(*StartError).Problem()
		assert.Equal(t, p.Stage, StageImage)
		assert.Equal(t, p.Where, "building mailproof/test:none-fails")
		assert.Assert(t, cmp.Contains(p.Words, "/bin/sh"))
		assert.Assert(t, cmp.Contains(p.Words, "apt-get install"))
	})
	t.Run("mmdebstrap", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("only Linux bootstraps Debian: run this on Linux")
		}
		bin := t.TempDir()
		assert.NilError(t, os.WriteFile(filepath.Join(bin, "mmdebstrap"), []byte("#!/bin/sh\necho 'E: the mirror is on fire' >&2\nexit 25\n"), 0o755))
		t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
		err := e.bootstrap(ctx, r.tag(), r)
		p := imageFailure("a source", err).(*StartError).Problem()
		assert.Equal(t, p.Where, "mmdebstrap none")
		assert.Assert(t, cmp.Contains(p.Words, "E: the mirror is on fire"))
		assert.Assert(t, cmp.Contains(p.Words, "exit status 25"))
	})
	has, err := e.hasImage(ctx, r.tag())
	assert.NilError(t, err)
	assert.Assert(t, !has, "a part of an image was left")
}

// TestWithoutAnEngineTestsAreSkippedOrFail starts a test of this package
// where no engine answers.
func TestWithoutAnEngineTestsAreSkippedOrFail(t *testing.T) {
	exe, err := os.Executable()
	assert.NilError(t, err)
	for _, c := range []struct{ require, want string }{
		{"", "--- SKIP: TestALabEndsWithItsContext"},
		{"1", "--- FAIL: TestALabEndsWithItsContext"},
	} {
		cmd := exec.CommandContext(within(t, time.Minute), exe, "-test.run=^TestALabEndsWithItsContext$", "-test.v")
		cmd.Env = append(os.Environ(), "DOCKER_HOST=unix:///not/there.sock", RequireDocker+"="+c.require)
		out, err := cmd.CombinedOutput()
		assert.Equal(t, err != nil, c.require == "1", "%s", out)
		assert.Assert(t, cmp.Contains(string(out), c.want))
		assert.Assert(t, cmp.Contains(string(out), "/not/there.sock"))
		assert.Assert(t, cmp.Contains(string(out), RequireDocker+"=1"))
	}
}
