package containers

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"time"

	cerrdefs "github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// pullFor bounds the one attempt to pull a base image.
const pullFor = 20 * time.Second

// buildFor bounds the building of one image.
const buildFor = 15 * time.Minute

// packages are what a Dovecot and Postfix source is installed from.
func packages() []string {
	return []string{"ca-certificates", "dovecot-imapd", "dovecot-lmtpd", "dovecot-managesieved", "dovecot-pop3d", "dovecot-sieve", "netbase", "postfix", "rsyslog", "ssl-cert"}
}

// leftOut are files that no lab looks at, and that take time to unpack.
func leftOut() []string {
	return []string{"/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*"}
}

// A recipe is how an image is made, and what it is called. Its tag holds a
// hash of everything that goes into it, so it is made once.
type recipe struct {
	repository string
	release    string
	hash       string
	packages   []string
}

func (r recipe) tag() string { return r.repository + ":" + r.release + "-" + r.hash }

// serverRecipe is the image of a release: Debian's packages and nothing of ours.
func serverRecipe(release string) recipe {
	h := sha256.New()
	fmt.Fprintln(h, "2", release, packages(), leftOut())
	return recipe{"mailproof/dovecot-postfix", release, fmt.Sprintf("%x", h.Sum(nil))[:12], packages()}
}

// plainRecipe is the image of a release that a program of the user's own is
// put into.
func plainRecipe(release string) recipe {
	names := []string{"ca-certificates", "libgcc-s1"}
	h := sha256.New()
	fmt.Fprintln(h, "1", release, names, leftOut())
	return recipe{"mailproof/debian", release, fmt.Sprintf("%x", h.Sum(nil))[:12], names}
}

func (e *engine) hasImage(ctx context.Context, ref string) (bool, error) {
	_, err := e.cli.ImageInspect(ctx, ref)
	if cerrdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

// serverImage returns the image of a release, made where it is not there.
func (e *engine) serverImage(ctx context.Context, release string, progress func(string)) (string, error) {
	return e.releaseImage(ctx, serverRecipe(release), progress)
}

// releaseImage returns the image of a recipe, made where it is not there.
func (e *engine) releaseImage(ctx context.Context, r recipe, progress func(string)) (string, error) {
	ref, release := r.tag(), r.release
	has, err := e.hasImage(ctx, ref)
	if err != nil || has {
		return ref, err
	}
	ctx, cancel := context.WithTimeout(ctx, buildFor)
	defer cancel()
	base := "debian:" + release + "-slim"
	if has, err = e.hasImage(ctx, base); err != nil {
		return "", err
	}
	if !has {
		progress("pulling " + base)
		has = e.pull(ctx, base) == nil
	}
	if has {
		progress("building the image of Debian " + release + " from " + base + " (once)")
		return ref, e.build(ctx, ref, r, base)
	}
	progress("building the image of Debian " + release + " with mmdebstrap (once, a minute or two)")
	return ref, e.bootstrap(ctx, ref, r)
}

// pull tries once to get an image from its registry.
func (e *engine) pull(ctx context.Context, ref string) error {
	ctx, cancel := context.WithTimeout(ctx, pullFor)
	defer cancel()
	p, err := e.cli.ImagePull(ctx, ref, client.ImagePullOptions{})
	if err != nil {
		return err
	}
	defer p.Close()
	return p.Wait(ctx)
}

// A buildError is an image that could not be made, in the builder's own words.
type buildError struct {
	what  string
	words string
	err   error
}

func (e *buildError) Error() string { return e.what + ": " + e.err.Error() + ":\n" + e.words }
func (e *buildError) Unwrap() error { return e.err }

// build installs the packages on a base image.
func (e *engine) build(ctx context.Context, ref string, r recipe, base string) error {
	var d strings.Builder
	fmt.Fprintf(&d, "FROM %s\n", base)
	d.WriteString("RUN for p in")
	for _, p := range leftOut() {
		d.WriteString(" '" + p + "'")
	}
	d.WriteString("; do echo \"path-exclude=$p\"; done >/etc/dpkg/dpkg.cfg.d/mailproof; ")
	d.WriteString("apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends " + strings.Join(r.packages, " ") + " && rm -rf /var/lib/apt/lists/*\n")
	files := []file{{"Dockerfile", 0o644, []byte(d.String())}}
	// The engine's builder runs on the machine's own network, so that it
	// reaches what the machine reaches.
	b, err := e.cli.ImageBuild(ctx, bytes.NewReader(tarOf(files)), client.ImageBuildOptions{
		Tags: []string{ref}, Remove: true, ForceRemove: true, NetworkMode: "host", Labels: map[string]string{labelImage: r.hash},
	})
	if err != nil {
		return err
	}
	defer b.Body.Close()
	words, err := buildOutput(b.Body)
	if err != nil {
		return &buildError{"building " + ref, words, err}
	}
	return nil
}

// buildOutput reads what a builder says; its own words are the last 40 lines.
func buildOutput(r io.Reader) (string, error) {
	var out strings.Builder
	dec := json.NewDecoder(io.LimitReader(r, 64<<20))
	for {
		var m struct {
			Stream string `json:"stream"`
			Status string `json:"status"`
			Error  string `json:"error"`
		}
		err := dec.Decode(&m)
		if err == io.EOF {
			return lastLines(out.String(), 40), nil
		}
		if err != nil {
			return lastLines(out.String(), 40), err
		}
		out.WriteString(m.Stream)
		if m.Error != "" {
			return lastLines(out.String(), 40), errors.New(m.Error)
		}
	}
}

// bootstrap makes the image with mmdebstrap on this machine, from the mirrors
// that this machine's apt uses.
func (e *engine) bootstrap(ctx context.Context, ref string, r recipe) error {
	if runtime.GOOS != "linux" || runtime.GOARCH != e.arch {
		return fmt.Errorf("debian:%s-slim is not there and could not be pulled, and only a Linux machine of the engine's architecture (%s) can bootstrap Debian itself", r.release, e.arch)
	}
	path, err := exec.LookPath("mmdebstrap")
	if err != nil {
		return fmt.Errorf("debian:%s-slim is not there and could not be pulled, and mmdebstrap is not installed: apt-get install mmdebstrap", r.release)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	args := []string{"--variant=minbase", "--include=" + strings.Join(r.packages, ",")}
	for _, p := range leftOut() {
		args = append(args, "--dpkgopt=path-exclude="+p)
	}
	sources := hostMirrors(ctx, r.release)
	args = append(args, hostAptOptions(ctx)...)
	args = append(args, r.release, "-")
	args = append(args, sources...)
	dir, err := os.MkdirTemp("", "mailproof-bootstrap-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	// apt fetches as a user of its own.
	if err := os.Chmod(dir, 0o755); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	// apt and dpkg run below it: they are asked to end together, and none is
	// left when this returns.
	ownGroup(cmd)
	cmd.Cancel = func() error { return endGroup(cmd, false) }
	cmd.WaitDelay = 15 * time.Second
	defer endGroup(cmd, true)
	var words tail
	cmd.Stderr = &words
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	importErr := e.importImage(ctx, out, ref, "LABEL "+labelImage+"="+r.hash)
	if importErr != nil {
		cancel()
	}
	if err := cmd.Wait(); err != nil {
		if importErr == nil {
			// What was imported is a part: it must not be taken for the image.
			e.cli.ImageRemove(context.WithoutCancel(ctx), ref, client.ImageRemoveOptions{Force: true})
		}
		return &buildError{"mmdebstrap " + r.release, words.String(), err}
	}
	return importErr
}

// importImage makes an image of a file system.
func (e *engine) importImage(ctx context.Context, fs io.Reader, ref string, changes ...string) error {
	r, err := e.cli.ImageImport(ctx, client.ImageImportSource{Source: fs, SourceName: "-"}, ref, client.ImageImportOptions{Changes: changes})
	if err != nil {
		return fmt.Errorf("importing %s: %w", ref, err)
	}
	defer r.Close()
	if _, err := buildOutput(r); err != nil {
		return fmt.Errorf("importing %s: %w", ref, err)
	}
	return nil
}

// hostMirrors are the sources.list lines of a release at the mirrors that this
// machine's apt uses; none where apt does not say, and mmdebstrap chooses.
func hostMirrors(ctx context.Context, release string) []string {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN)\t$(LABEL)\t$(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return nil
	}
	var archive, security string
	for _, line := range strings.Split(string(out), "\n") {
		f := strings.Split(line, "\t")
		if len(f) != 3 || f[0] != "Debian" {
			continue
		}
		switch f[1] {
		case "Debian":
			archive = f[2]
		case "Debian-Security":
			security = f[2]
		}
	}
	if archive == "" {
		return nil
	}
	lines := []string{"deb " + archive + " " + release + " main", "deb " + archive + " " + release + "-updates main"}
	if security != "" {
		lines = append(lines, "deb "+security+" "+release+"-security main")
	}
	return lines
}

// hostAptOptions hands this machine's proxy for packages on.
func hostAptOptions(ctx context.Context) []string {
	out, err := exec.CommandContext(ctx, "apt-config", "dump", "--format", "%f %v%n").Output()
	if err != nil {
		return nil
	}
	var opts []string
	for _, line := range strings.Split(string(out), "\n") {
		name, value, ok := strings.Cut(line, " ")
		if ok && value != "" && (name == "Acquire::http::Proxy" || name == "Acquire::https::Proxy") {
			opts = append(opts, fmt.Sprintf("--aptopt=%s %q", name, value))
		}
	}
	return opts
}

// A tail keeps the last 40 lines that are written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 1<<16 {
		t.b = append(t.b[:0], t.b[len(t.b)-1<<15:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return lastLines(string(t.b), 40)
}

// agentImage returns the image of the program that stands at the vantages.
func (e *engine) agentImage(ctx context.Context, program string, progress func(string)) (string, error) {
	b, err := readProgram(program)
	if err != nil {
		return "", err
	}
	ref := fmt.Sprintf("mailproof/agent:%x", sha256.Sum256(b))[:len("mailproof/agent:")+12]
	has, err := e.hasImage(ctx, ref)
	if err != nil || has {
		return ref, err
	}
	e.dropAgents(ctx)
	progress("importing the vantages' image")
	var fs bytes.Buffer
	w := tar.NewWriter(&fs)
	now := time.Now()
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: "tmp/", Mode: 0o1777, ModTime: now})
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "mailproof", Mode: 0o755, Size: int64(len(b)), ModTime: now})
	w.Write(b)
	w.Close() // writes to memory do not fail
	return ref, e.importImage(ctx, &fs, ref, `ENTRYPOINT ["/mailproof"]`, "LABEL "+labelImage+"=agent")
}

// agentFor is how long the image of a vantage's program is kept: another lab
// may be waiting with it for its turn.
const agentFor = 24 * time.Hour

// dropAgents removes what older programs have left; an image that is in use,
// or cannot be removed, stays.
func (e *engine) dropAgents(ctx context.Context) {
	list, err := e.cli.ImageList(ctx, client.ImageListOptions{Filters: make(client.Filters).Add("label", labelImage+"=agent")})
	if err != nil {
		return
	}
	for _, i := range list.Items {
		if time.Since(time.Unix(i.Created, 0)) > agentFor {
			e.cli.ImageRemove(ctx, i.ID, client.ImageRemoveOptions{})
		}
	}
}
