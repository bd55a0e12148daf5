package containers

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
)

//go:embed start.sh
var startScript string

// startFor bounds the start of one source.
const startFor = 60 * time.Second

// A source is one running mail system.
type source struct {
	name      string
	software  string // "Dovecot 2.4.1, Postfix 3.10.13"
	index     int
	container testcontainers.Container
	stream    *client.HijackedResponse
	journal   *journal
	pool      *harness.AccountPool
	layers    []harness.Laid
	stalwart  *stalwart        // a source of that kind
	problems  []result.Problem // what did not keep it from starting
}

// layersOf returns everything that is laid over source i, in order.
func layersOf(i int, s harness.SourceSpec) ([]harness.Laid, error) {
	all, err := s.Laid(i)
	var le *harness.LayerError
	if errors.As(err, &le) {
		return nil, &StartError{s.Name, StageOverlay, "the layer " + le.Layer, le.Err.Error()}
	}
	return all, err
}

var notPlain = regexp.MustCompile(`[^a-z0-9-]+`)

// plainName makes a name fit for a path, a container and a host.
func plainName(s string) string {
	s = strings.Trim(notPlain.ReplaceAllString(strings.ToLower(s), "-"), "-")
	if len(s) > 40 {
		s = s[:40]
	}
	return s
}

// lay turns layers into a container's files and the commands that give
// Postfix its part.
func lay(i int, name string, layers []harness.Laid, p *harness.AccountPool, ca *fixtures.Authority) ([]file, error) {
	var files []file
	put := func(path string, mode int64, text string) { files = append(files, file{path, mode, []byte(text)}) }
	var local, hosts, configure strings.Builder
	local.WriteString("# Read last. What a lab lays over Debian's own files, in order.\n")
	ext := map[string]string{}
	for _, l := range layers {
		for _, p := range l.Paths() {
			text := l.Files[p]
			bad := func(err error) error {
				return &StartError{name, StageOverlay, "the layer " + l.Name, err.Error()}
			}
			switch {
			case p == "postfix/main.cf":
				settings, err := fixtures.ParseMain(p, text)
				if err != nil {
					return nil, bad(err)
				}
				var args []string
				for _, s := range settings {
					args = append(args, s.Name+" = "+s.Value)
				}
				command(&configure, l.Name, p, "-e", args)
			case p == "postfix/master.cf":
				edits, err := fixtures.ParseMaster(p, text)
				if err != nil {
					return nil, bad(err)
				}
				// What follows on each other in the same way is one command.
				var flag string
				var args []string
				for _, e := range edits {
					f, arg := "-P", e.Service+"/"+e.Param+"="+e.Value
					switch {
					case e.Remove:
						f, arg = "-MX", e.Service
					case e.Entry != "":
						f, arg = "-M", e.Service+"="+e.Entry
					}
					if f != flag {
						command(&configure, l.Name, p, flag, args)
						flag, args = f, nil
					}
					args = append(args, arg)
				}
				command(&configure, l.Name, p, flag, args)
			case p == "etc/hosts":
				hosts.WriteString(text + "\n")
			case path.Dir(p) == "dovecot" && path.Ext(p) == ".conf":
				at := l.Dir + "/" + p
				put(at, 0o644, text)
				local.WriteString("!include " + at + "\n")
			case path.Dir(p) == "dovecot" && path.Ext(p) == ".ext":
				ext[path.Base(p)] = text
			case fixtures.IsConfig(p):
				return nil, bad(fmt.Errorf("%s is configuration of another kind of source", p))
			default:
				put(l.Dir+"/"+p, 0o755, text)
			}
		}
	}
	for base, text := range ext {
		put("/etc/dovecot/conf.d/"+base, 0o644, text)
	}
	cert, key, err := ca.Leaf(fixtures.SourceHost(i), sourcePairs(i)...)
	if err != nil {
		return nil, err
	}
	put("/etc/ssl/certs/mail.pem", 0o644, string(cert))
	put("/etc/ssl/private/mail.key", 0o600, string(key))
	put("/etc/dovecot/local.conf", 0o644, local.String())
	put("/etc/dovecot/users", 0o640, string(p.Users()))
	put("/etc/postfix/vmailbox", 0o644, string(p.Mailboxes()))
	put("/mailproof/hosts", 0o644, hosts.String())
	put("/mailproof/configure", 0o644, configure.String())
	put("/mailproof/words", 0o644, "")
	put("/mailproof/start", 0o755, startScript)
	return files, nil
}

// command writes one line of the script that lays Postfix's part.
func command(b *strings.Builder, layer, file, flag string, args []string) {
	if len(args) == 0 {
		return
	}
	b.WriteString("lay " + quote(file+" of the layer "+layer) + " " + flag)
	for _, a := range args {
		b.WriteString(" " + quote(a))
	}
	b.WriteByte('\n')
}

// quote makes one word of a shell's.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func sourcePairs(i int) []fixtures.Pair {
	var ps []fixtures.Pair
	for _, n := range fixtures.Networks() {
		ps = append(ps, n.Source(i))
	}
	return ps
}

// startSource starts one source and waits until its servers say that they are
// there.
func (l *Lab) startSource(ctx context.Context, i int, s harness.SourceSpec, image string) (*source, error) {
	if s.Kind == fixtures.Stalwart {
		return l.startStalwart(ctx, i, s, image)
	}
	ctx, cancel := context.WithTimeout(ctx, startFor)
	defer cancel()
	layers, err := layersOf(i, s)
	if err != nil {
		return nil, asStart(s.Name, StageOverlay, "its layers", err)
	}
	src := &source{name: s.Name, index: i, pool: harness.NewAccountPool(i), journal: newJournal(), layers: layers}
	files, err := lay(i, s.Name, layers, src.pool, l.ca)
	if err != nil {
		return nil, asStart(s.Name, StageOverlay, "its layers", err)
	}
	var joints []joint
	for _, n := range fixtures.Networks() {
		joints = append(joints, joint{l.networkName(n.Name), n.Source(i)})
	}
	name := fmt.Sprintf("mailproof-source%d-%s", i, plainName(s.Name))
	src.container, err = l.e.create(ctx, spec{
		name: name, image: image, cmd: []string{"/bin/sh", "/mailproof/start"},
		joints: joints, files: files, labels: l.labels(), host: fixtures.SourceHost(i),
	})
	if err != nil {
		return nil, asStart(s.Name, StageStart, "the container "+name, err)
	}
	id := src.container.GetContainerID()
	lines, err := src.journal.open(ctx)
	if err != nil {
		return nil, err
	}
	defer lines.Close()
	if src.stream, err = l.e.attach(ctx, id, false); err != nil {
		return nil, asStart(s.Name, StageStart, "the container "+name, err)
	}
	l.follow(src.journal, src.stream)
	if err := l.e.start(ctx, id); err != nil {
		return nil, asStart(s.Name, StageStart, "the container "+name, err)
	}
	if err := src.awaitStart(lines); err != nil {
		if ctx.Err() != nil && !errors.As(err, new(*StartError)) {
			err = &StartError{s.Name, StageStart, "the container " + name, fmt.Sprintf("it did not say that it was ready: %v; its last words:\n%s", ctx.Err(), src.journal.tail(20))}
		}
		return nil, asStart(s.Name, StageStart, "the container "+name, err)
	}
	l.watch(s.Name, src.journal)
	return src, nil
}

// asStart makes an error one of a source's start, where it is none yet.
func asStart(name, stage, where string, err error) error {
	var se *StartError
	if errors.As(err, &se) {
		return se
	}
	return &StartError{name, stage, where, err.Error()}
}

// startingUp are the lines with which Dovecot and Postfix say that they listen.
var startingUp = []*regexp.Regexp{
	regexp.MustCompile(`Dovecot v(\S+) .*starting up`),
	regexp.MustCompile(`postfix/master\[\d+\]: daemon started -- version (\S+),`),
}

// awaitStart reads a source's output until both servers listen, or it is
// refused, or ended.
func (s *source) awaitStart(lines io.Reader) error {
	var words []string
	seen, said := make([]bool, len(startingUp)), make([]string, len(startingUp))
	err := eachLine(lines, func(line string) (bool, error) {
		if w, ok := strings.CutPrefix(line, "mailproof: words: "); ok {
			words = append(words, w)
			return false, nil
		}
		if r, ok := strings.CutPrefix(line, "mailproof: refused: "); ok {
			stage, where, _ := strings.Cut(r, ": ")
			return true, &StartError{s.name, stage, where, strings.Join(words, "\n")}
		}
		if what, ok := strings.CutPrefix(line, "mailproof: ended: "); ok {
			return true, &StartError{s.name, StageStart, what, s.journal.tail(12)}
		}
		for i, re := range startingUp {
			if m := re.FindStringSubmatch(line); m != nil && !seen[i] {
				seen[i] = true
				said[i] = m[1]
			}
		}
		return !slices.Contains(seen, false), nil
	})
	s.software = "Dovecot " + said[0] + ", Postfix " + said[1]
	if err == nil && slices.Contains(seen, false) {
		err = &StartError{s.name, StageStart, "the container", "it ended:\n" + s.journal.tail(20)}
	}
	return err
}

// config returns the configuration in force and the files that can be edited.
func (l *Lab) config(src *source) func(context.Context) ([]run.ConfigFile, error) {
	if src.stalwart != nil {
		return src.stalwart.config
	}
	return func(ctx context.Context) ([]run.ConfigFile, error) {
		id := src.container.GetContainerID()
		commands := [][]string{{"doveconf", "-n"}, {"postconf", "-n"}, {"postconf", "-M"}, {"postconf", "-P"}}
		paths := []string{"/etc/dovecot/local.conf"}
		for _, ld := range src.layers {
			for _, p := range ld.Paths() {
				if path.Dir(p) == "dovecot" && path.Ext(p) == ".conf" {
					paths = append(paths, ld.Dir+"/"+p)
				}
			}
		}
		paths = append(paths, "/etc/postfix/main.cf", "/etc/postfix/master.cf", "/etc/hosts")
		slices.Sort(paths[1:])
		out := make([]run.ConfigFile, len(commands)+len(paths))
		errs := make([]error, len(out))
		var wg sync.WaitGroup
		for i, c := range commands {
			wg.Go(func() {
				var text string
				text, errs[i] = l.e.exec(ctx, id, c...)
				out[i] = run.ConfigFile{Path: strings.Join(c, " "), Text: withoutSecrets(text), Command: true}
			})
		}
		for i, p := range paths {
			wg.Go(func() {
				var text string
				text, errs[len(commands)+i] = l.e.exec(ctx, id, "cat", p)
				out[len(commands)+i] = run.ConfigFile{Path: p, Text: withoutSecrets(text)}
			})
		}
		wg.Wait()
		return out, errors.Join(errs...)
	}
}

// secretSetting matches a setting whose value is a secret.
var secretSetting = regexp.MustCompile(`(?im)^(\s*(?:-o\s+)?\S*(?:password|passwd_file_secret|secret|api_key|_nonce)\s*=)[ \t]*\S.*$`)

// withoutSecrets removes what no report may hold. Lines stay lines, so that a
// line number is the file's own.
func withoutSecrets(text string) string {
	return secretSetting.ReplaceAllString(text, "$1 (a secret, removed)")
}
