package containers

import (
	"archive/tar"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"debug/elf"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/moby/moby/client"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/manage"
	"github.com/mailproof/mailproof/harness/run"
)

//go:embed start-stalwart.sh
var startStalwartScript string

const (
	stalwartBase = "trixie" // the release that a user's program is put into
	maxStalwart  = 1 << 30
	restartFor   = 40 * time.Second

	stalwartData     = "/opt/stalwart/data"
	stalwartDataSize = "128m"
)

// stalwartImage returns the image that a Stalwart runs in: the one that was
// named, the publisher's where it is there or can be pulled, or a Debian base
// with the user's own program.
func (e *engine) stalwartImage(ctx context.Context, s harness.SourceSpec, progress func(string)) (string, error) {
	if path, ok := strings.CutPrefix(s.From, "exec:"); ok {
		return e.stalwartFromProgram(ctx, path, progress)
	}
	ref := "stalwartlabs/stalwart:v" + s.Version
	if named, ok := strings.CutPrefix(s.From, "image:"); ok {
		ref = named
	}
	has, err := e.hasImage(ctx, ref)
	if err != nil || has {
		return ref, err
	}
	progress("pulling " + ref)
	if err := e.pull(ctx, ref); err != nil {
		return "", fmt.Errorf("the image %s is not there and could not be pulled (%w): name a program with --source %s=exec:PATH, or another image with =image:REF", ref, err, s.Name)
	}
	return ref, nil
}

// stalwartFromProgram puts a program into a Debian base. The image is named
// for what the program holds, and made once.
func (e *engine) stalwartFromProgram(ctx context.Context, path string, progress func(string)) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := runsOn(path, e.arch); err != nil {
		return "", err
	}
	sum := sha256.New()
	size, err := io.Copy(sum, io.LimitReader(f, maxStalwart+1))
	if err != nil {
		return "", err
	}
	if size > maxStalwart {
		return "", fmt.Errorf("%s is larger than %d octets", path, maxStalwart)
	}
	ref := fmt.Sprintf("mailproof/stalwart:exec-%x", sum.Sum(nil))[:len("mailproof/stalwart:exec-")+12]
	has, err := e.hasImage(ctx, ref)
	if err != nil || has {
		return ref, err
	}
	base, err := e.releaseImage(ctx, plainRecipe(stalwartBase), progress)
	if err != nil {
		return "", err
	}
	progress("putting " + path + " into a Debian base (once)")
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return "", err
	}
	r, w := io.Pipe()
	defer r.Close()
	go func() { w.CloseWithError(buildContext(w, base, f, size)) }()
	b, err := e.cli.ImageBuild(ctx, r, client.ImageBuildOptions{Tags: []string{ref}, Remove: true, ForceRemove: true, Labels: map[string]string{labelImage: "stalwart"}})
	if err != nil {
		return "", err
	}
	defer b.Body.Close()
	if words, err := buildOutput(b.Body); err != nil {
		return "", &buildError{"building " + ref, words, err}
	}
	return ref, nil
}

// buildContext writes what the engine builds from: a recipe and the program.
func buildContext(w io.Writer, base string, program io.Reader, size int64) error {
	recipe := "FROM " + base + "\nCOPY stalwart /usr/local/bin/stalwart\n"
	t := tar.NewWriter(w)
	now := time.Now()
	err := errors.Join(
		t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "Dockerfile", Mode: 0o644, Size: int64(len(recipe)), ModTime: now}))
	if err == nil {
		_, err = io.WriteString(t, recipe)
	}
	if err == nil {
		err = t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "stalwart", Mode: 0o755, Size: size, ModTime: now})
	}
	if err == nil {
		_, err = io.CopyN(t, program, size)
	}
	return errors.Join(err, t.Close())
}

// runsOn says why an executable does not run in a Linux container of the
// architecture; nil when it may.
func runsOn(path, arch string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s is no Linux executable: %w", path, err)
	}
	defer f.Close()
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	if want, ok := machines[arch]; !ok || f.Machine != want {
		return fmt.Errorf("%s is for %s, and the engine's architecture is %s", path, strings.TrimPrefix(f.Machine.String(), "EM_"), arch)
	}
	return nil
}

// A stalwart is what a source of this kind has beside its container.
type stalwart struct {
	*manage.Client
	l      *Lab
	src    *source
	secret string
	setup  *harness.StalwartSetup
}

// startStalwart starts one Stalwart. It is not asked anything before the
// vantages stand: see [stalwart.settle].
func (l *Lab) startStalwart(ctx context.Context, i int, s harness.SourceSpec, image string) (*source, error) {
	ctx, cancel := context.WithTimeout(ctx, startFor)
	defer cancel()
	layers, err := layersOf(i, s)
	if err != nil {
		return nil, asStart(s.Name, StageOverlay, "its layers", err)
	}
	src := &source{name: s.Name, index: i, pool: harness.NewAccountPoolOf(i, harness.StalwartPool), journal: newJournal(), layers: layers}
	st := &stalwart{l: l, src: src, secret: rand.Text()}
	if st.setup, err = harness.SetUpStalwart(i, s, layers); err != nil {
		where := "its layers"
		var le *harness.LayerError
		if errors.As(err, &le) {
			where, err = "the layer "+le.Layer, le.Err
		}
		return nil, asStart(s.Name, StageOverlay, where, err)
	}
	files, err := st.files(i, l.ca)
	if err != nil {
		return nil, err
	}
	src.stalwart = st
	var joints []joint
	for _, n := range fixtures.Networks() {
		joints = append(joints, joint{l.networkName(n.Name), n.Source(i)})
	}
	name := fmt.Sprintf("mailproof-source%d-%s", i, plainName(s.Name))
	src.container, err = l.e.create(ctx, spec{
		name: name, image: image, entrypoint: []string{"/bin/sh", "/mailproof/start"},
		joints: joints, files: files, labels: l.labels(), host: fixtures.SourceHost(i),
		// Its store writes through to the disk with every change. A restart of
		// the server keeps it: the container goes on.
		tmpfs: map[string]string{stalwartData: "size=" + stalwartDataSize},
	})
	if err != nil {
		return nil, asStart(s.Name, StageStart, "the container "+name, err)
	}
	id := src.container.GetContainerID()
	if src.stream, err = l.e.attach(ctx, id, false); err != nil {
		return nil, asStart(s.Name, StageStart, "the container "+name, err)
	}
	l.follow(src.journal, src.stream)
	if err := l.e.start(ctx, id); err != nil {
		return nil, asStart(s.Name, StageStart, "the container "+name, err)
	}
	return src, nil
}

// files are what the server finds in its container.
func (st *stalwart) files(i int, ca *fixtures.Authority) ([]file, error) {
	cert, key, err := ca.Leaf(fixtures.SourceHost(i), sourcePairs(i)...)
	if err != nil {
		return nil, err
	}
	keys := maps.Clone(st.setup.File)
	keys["authentication.fallback-admin.user"] = harness.StalwartAdmin
	keys["authentication.fallback-admin.secret"] = st.secret
	_, resolver := fixtures.Resolver()
	out := []file{
		{harness.StalwartCertPath, 0o644, cert},
		{harness.StalwartKeyPath, 0o600, key},
		{harness.StalwartConfigPath, 0o600, []byte(keys.File())},
		{"/mailproof/hosts", 0o644, []byte(st.setup.Hosts)},
		{"/mailproof/resolv.conf", 0o644, []byte("nameserver " + resolver.String() + "\noptions timeout:1 attempts:2\n")},
		{"/mailproof/start", 0o755, []byte(startStalwartScript)},
	}
	for path, text := range st.setup.Files {
		out = append(out, file{path, 0o755, []byte(text)})
	}
	return out, nil
}

// settle waits until the server answers and gives it what its file cannot hold.
func (st *stalwart) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startFor)
	defer cancel()
	src := st.src
	failed := func(where string, err error) error {
		return &StartError{src.name, StageStart, where, err.Error() + "; its last words:\n" + src.journal.tail(20)}
	}
	st.Client = manage.New(st.dial, harness.StalwartAdmin, st.secret)
	st.l.mu.Lock()
	st.l.admins = append(st.l.admins, st.Client)
	st.l.mu.Unlock()
	if err := st.await(ctx); err != nil {
		return failed("the management listener", err)
	}
	if err := st.version(); err != nil {
		return err
	}
	problems, err := st.setup.Settle(ctx, src.name, st.Client, src.pool, st.Restart)
	if err != nil {
		return failed("its management API", err)
	}
	src.problems = problems
	st.l.watch(src.name, src.journal)
	return nil
}

// versionSaid is the line with which Stalwart names its version.
var versionSaid = regexp.MustCompile(`\(server\.startup\) version = "([0-9A-Za-z.+-]+)"`)

// version reads which Stalwart it is, and refuses what is none of the series.
func (st *stalwart) version() error {
	m := versionSaid.FindStringSubmatch(st.src.journal.tail(remembered))
	if m == nil {
		st.src.software = "Stalwart, which does not say its version at this log level"
		return nil
	}
	st.src.software = "Stalwart " + m[1]
	if !strings.HasPrefix(m[1], "0.15.") {
		return &StartError{st.src.name, StageStart, "its version", fmt.Sprintf("it says that it is Stalwart %s, and sources of kind stalwart are of the 0.15 series: their configuration and management API are not those of other series. As a source of another kind only what its ports answer could be judged", m[1])}
	}
	return nil
}

// dial reaches the management listener from the client's network.
func (st *stalwart) dial(ctx context.Context) (net.Conn, error) {
	v := st.l.target.Vantages[run.Client]
	at := fixtures.NetworkNamed(fixtures.ClientNet).Source(st.src.index).IP4
	return v.Dial(ctx, netip.AddrPortFrom(at, fixtures.StalwartManagementPort))
}

// await waits until the management listener accepts a connection, and then the
// others that are configured: they are opened one after the other. The server
// tells nobody at every log level that it is up.
func (st *stalwart) await(ctx context.Context) error {
	if err := st.accepts(ctx, fixtures.StalwartManagementPort); err != nil {
		return err
	}
	stored, err := st.List(ctx, "server.listener")
	if err != nil {
		return err
	}
	// One that cannot be opened is a scenario's business, and not waited for long.
	rest, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for _, s := range stored {
		field := strings.Split(strings.TrimPrefix(s.Name, "server.listener."), ".")
		if len(field) < 2 || field[1] != "bind" {
			continue
		}
		if at, err := netip.ParseAddrPort(s.Value); err == nil {
			st.accepts(rest, at.Port())
		}
	}
	return ctx.Err()
}

// accepts waits until a port of the source accepts a connection of the client.
func (st *stalwart) accepts(ctx context.Context, port uint16) error {
	v := st.l.target.Vantages[run.Client]
	to := netip.AddrPortFrom(fixtures.NetworkNamed(fixtures.ClientNet).Source(st.src.index).IP4, port)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		nc, err := v.Dial(ctx, to)
		if err == nil {
			return nc.Close()
		}
		if !refused(err) {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-st.src.journal.done:
			t.Stop()
			return errors.New("it has ended")
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("port %d is not served: %w", port, ctx.Err())
		}
	}
}

// Restart ends the server and starts it again in its container.
func (st *stalwart) Restart(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, restartFor)
	defer cancel()
	lines, err := st.src.journal.open(ctx)
	if err != nil {
		return fmt.Errorf("restarting %s: %w", st.src.name, err)
	}
	defer lines.Close()
	id := st.src.container.GetContainerID()
	if _, err := st.l.e.exec(ctx, id, "/bin/sh", "-c", "touch /mailproof/again && kill -TERM $(cat /mailproof/pid)"); err != nil {
		return fmt.Errorf("restarting %s: %w", st.src.name, err)
	}
	ended := false
	if err := eachLine(lines, func(line string) (bool, error) {
		ended = line == "mailproof: again"
		return ended, nil
	}); err != nil || !ended {
		return fmt.Errorf("restarting %s: it did not end in time (%v)", st.src.name, err)
	}
	st.Client.Close() // its connections have ended
	if err := st.await(ctx); err != nil {
		return fmt.Errorf("restarting %s: %w; its last words:\n%s", st.src.name, err, st.src.journal.tail(20))
	}
	return nil
}

// Guide is what of the guide this source follows.
func (st *stalwart) Guide() []run.Setting { return slices.Clone(st.setup.Guide) }

// config returns the configuration file, and what is stored in the database.
func (st *stalwart) config(ctx context.Context) ([]run.ConfigFile, error) {
	text, err := st.l.e.exec(ctx, st.src.container.GetContainerID(), "cat", harness.StalwartConfigPath)
	if err != nil {
		return nil, err
	}
	settings, err := harness.StalwartSettings(ctx, st.Client)
	settings.Text = withoutSecrets(settings.Text)
	return []run.ConfigFile{{Path: harness.StalwartConfigPath, Text: withoutSecrets(text)}, settings}, err
}
