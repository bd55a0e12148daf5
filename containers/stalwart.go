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
	"sync"
	"time"

	"github.com/moby/moby/client"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/manage"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
)

//go:embed start-stalwart.sh
var startStalwartScript string

// StageReload is where a source rejects settings of a layer, and is judged all
// the same: a start drops silently what a reload rejects.
const StageReload = "reload"

const (
	stalwartBase   = "trixie" // the release that a user's program is put into
	stalwartConfig = "/opt/stalwart/etc/config.toml"
	stalwartPool   = 120 // accounts of one source: each is a request of its own
	maxStalwart    = 1 << 30
	restartFor     = 40 * time.Second
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
	l        *Lab
	src      *source
	secret   string
	keys     fixtures.Keys // all that was laid
	database fixtures.Keys
	stored   fixtures.Keys // stored last, and not brought into force
	guide    []run.Setting
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
	src := &source{name: s.Name, index: i, pool: harness.NewAccountPoolOf(i, stalwartPool), journal: newJournal(), layers: layers}
	st := &stalwart{l: l, src: src, secret: rand.Text()}
	recipe, err := harness.StalwartGuide(i, s)
	if err != nil {
		return nil, asStart(s.Name, StageOverlay, "the guide's recipe", err)
	}
	files, err := st.lay(i, layers, l.ca)
	if err != nil {
		return nil, asStart(s.Name, StageOverlay, "its layers", err)
	}
	st.guide = followed(st.keys, recipe)
	src.stalwart = st
	var joints []joint
	for _, n := range fixtures.Networks() {
		joints = append(joints, joint{l.networkName(n.Name), n.Source(i)})
	}
	name := fmt.Sprintf("mailproof-source%d-%s", i, plainName(s.Name))
	src.container, err = l.e.create(ctx, spec{
		name: name, image: image, entrypoint: []string{"/bin/sh", "/mailproof/start"},
		joints: joints, files: files, labels: l.labels(), host: fixtures.SourceHost(i),
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

// lay turns layers into a container's files, and keeps what goes into the
// database.
func (st *stalwart) lay(i int, layers []harness.Laid, ca *fixtures.Authority) ([]file, error) {
	keys := fixtures.Keys{}
	st.stored = fixtures.Keys{}
	var files []file
	put := func(path string, mode int64, text string) { files = append(files, file{path, mode, []byte(text)}) }
	// Stalwart asks a public server about spam; where its name cannot be
	// resolved every reload is rejected.
	hosts := "127.0.0.1 public.pyzor.org\n"
	for _, l := range layers {
		for _, p := range l.Paths() {
			bad := func(err error) error {
				return &StartError{st.src.name, StageOverlay, "the layer " + l.Name, err.Error()}
			}
			switch text := l.Files[p]; {
			case p == "etc/hosts":
				hosts += text + "\n"
			case p == fixtures.StoredFile:
				if err := st.stored.ParseKeys(p, text); err != nil {
					return nil, bad(err)
				}
			case strings.HasPrefix(p, "stalwart/") && fixtures.IsConfig(p):
				if err := keys.ParseKeys(p, text); err != nil {
					return nil, bad(err)
				}
			case fixtures.IsConfig(p):
				return nil, bad(fmt.Errorf("%s is configuration of another kind of source", p))
			default:
				put(l.Dir+"/"+p, 0o755, text)
			}
		}
	}
	st.keys = maps.Clone(keys)
	local, database := keys.Split()
	st.database = database
	local["authentication.fallback-admin.user"] = "admin"
	local["authentication.fallback-admin.secret"] = st.secret
	cert, key, err := ca.Leaf(fixtures.SourceHost(i), sourcePairs(i)...)
	if err != nil {
		return nil, err
	}
	put("/etc/ssl/certs/mail.pem", 0o644, string(cert))
	put("/etc/ssl/private/mail.key", 0o600, string(key))
	put(stalwartConfig, 0o600, local.File())
	put("/mailproof/hosts", 0o644, hosts)
	put("/mailproof/start", 0o755, startStalwartScript)
	return files, nil
}

// followed is what of a source's settings follows the guide, whatever its
// listeners are called: the networks whose headers are taken, and the other
// settings that the guide names.
func followed(keys fixtures.Keys, recipe []run.Setting) []run.Setting {
	var out []run.Setting
	for _, name := range keys.Sorted() {
		listener, ok := strings.CutPrefix(name, "server.listener.")
		id, field, _ := strings.Cut(listener, ".")
		named := slices.ContainsFunc(recipe, func(s run.Setting) bool { return s.Name == name })
		if named || strings.HasPrefix(name, "server.proxy.") || ok && id != fixtures.StalwartManagement && strings.HasPrefix(field, "proxy.") {
			out = append(out, run.Setting{Name: name, Value: keys[name]})
		}
	}
	return out
}

// settle waits until the server answers and gives it what its file cannot
// hold: accounts, and the settings that belong to its database.
func (st *stalwart) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startFor)
	defer cancel()
	src := st.src
	failed := func(where string, err error) error {
		var se *StartError
		if errors.As(err, &se) {
			return se
		}
		return &StartError{src.name, StageStart, where, err.Error() + "; its last words:\n" + src.journal.tail(20)}
	}
	st.Client = manage.New(st.dial, "admin", st.secret)
	st.l.mu.Lock()
	st.l.admins = append(st.l.admins, st.Client)
	st.l.mu.Unlock()
	if err := st.await(ctx); err != nil {
		return failed("the management listener", err)
	}
	if err := st.version(); err != nil {
		return err
	}
	if err := st.Create(ctx, manage.Principal{Type: "domain", Name: fixtures.Domain}); err != nil {
		return failed("the mail domain", err)
	}
	if err := st.accounts(ctx); err != nil {
		return failed("the accounts", err)
	}
	settings := []run.Setting{
		// A server with a network has stored this by itself. Without it every
		// restart writes the shipped defaults over what was set.
		{Name: "version.spam-filter", Value: "2.0.0"},
	}
	for _, h := range fixtures.Hosts() {
		if h.Vantage != run.Proxy && h.Vantage != run.Relay {
			// What we probe from must not be banned for the probing.
			settings = append(settings, run.Setting{Name: "server.allowed-ip." + h.IP4.String()}, run.Setting{Name: "server.allowed-ip." + h.IP6.String()})
		}
	}
	for _, name := range st.database.Sorted() {
		settings = append(settings, run.Setting{Name: name, Value: st.database[name]})
	}
	var below []string
	for name := range st.database {
		// What the first start stored below a list is no part of ours.
		if i := strings.LastIndexByte(name, '.'); i > 0 && isNumber(name[i+1:]) && !slices.Contains(below, name[:i]+".") {
			below = append(below, name[:i]+".")
		}
	}
	slices.Sort(below)
	if err := st.Clear(ctx, below...); err != nil {
		return failed("its settings", err)
	}
	if err := st.Insert(ctx, settings); err != nil {
		return failed("its settings", err)
	}
	err := st.Reload(ctx)
	var rejected *run.Rejected
	switch {
	case errors.As(err, &rejected):
		// A start drops what a reload rejects, and brings the rest into force.
		for _, name := range slices.Sorted(maps.Keys(rejected.Settings)) {
			src.problems = append(src.problems, result.Problem{Source: src.name, Stage: StageReload, Where: name, Words: rejected.Settings[name],
				Remedy: &result.Remedy{Text: "Mend or remove this setting. The server was started again, as if its operator had not read the answer of the reload: what follows was judged without the setting."}})
		}
		if err := st.Restart(ctx); err != nil {
			return failed("its restart", err)
		}
	case err != nil:
		return failed("its reload", err)
	}
	stored := make([]run.Setting, 0, len(st.stored))
	for _, name := range st.stored.Sorted() {
		stored = append(stored, run.Setting{Name: name, Value: st.stored[name]})
	}
	if err := st.Insert(ctx, stored); err != nil {
		return failed("its settings", err)
	}
	st.l.watch(src.name, src.journal)
	return nil
}

func isNumber(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

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

// accounts makes every account of the pool.
func (st *stalwart) accounts(ctx context.Context) error {
	all := st.src.pool.All()
	work := make(chan run.Account, len(all))
	for _, a := range all {
		work <- a
	}
	close(work)
	errs := make([]error, 8)
	var wg sync.WaitGroup
	for i := range errs {
		wg.Go(func() {
			for a := range work {
				if errs[i] = st.Create(ctx, manage.Principal{Type: "individual", Name: a.Address, Secrets: []string{a.Password}, Emails: []string{a.Address}, Roles: []string{"user"}}); errs[i] != nil {
					return
				}
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// dial reaches the management listener from the client's network.
func (st *stalwart) dial(ctx context.Context) (net.Conn, error) {
	v := st.l.target.Vantages[run.Client]
	at := fixtures.NetworkNamed(fixtures.ClientNet).Source(st.src.index).IP4
	return v.Dial(ctx, netip.AddrPortFrom(at, fixtures.StalwartManagementPort))
}

// await waits until the management listener accepts a connection. The server
// listens only when it is up, and tells nobody at every log level.
func (st *stalwart) await(ctx context.Context) error {
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		nc, err := st.dial(ctx)
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
			return fmt.Errorf("it does not listen: %w", ctx.Err())
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
func (st *stalwart) Guide() []run.Setting { return slices.Clone(st.guide) }

// config returns the configuration file, and what is stored in the database.
func (st *stalwart) config(ctx context.Context) ([]run.ConfigFile, error) {
	text, err := st.l.e.exec(ctx, st.src.container.GetContainerID(), "cat", stalwartConfig)
	if err != nil {
		return nil, err
	}
	stored, err := st.List(ctx, "http", "session", "auth", "queue", "spam-filter", "server", "imap", "pop3", "version", "authentication", "lookup")
	var b strings.Builder
	for _, s := range stored {
		fmt.Fprintf(&b, "%s = %s\n", s.Name, s.Value)
	}
	return []run.ConfigFile{
		{Path: stalwartConfig, Text: withoutSecrets(text)},
		{Path: "settings", Text: withoutSecrets(b.String()), Command: true},
	}, err
}
