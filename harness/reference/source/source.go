package source

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/dovecot"
	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/source/logbook"
	"github.com/mailproof/mailproof/harness/reference/source/mailbox"
	"github.com/mailproof/mailproof/harness/reference/source/postfix"
	"github.com/mailproof/mailproof/harness/run"
)

// The releases that are played.
const (
	Bookworm = dovecot.Bookworm // Dovecot 2.3.19.1, Postfix 3.7.11
	Trixie   = dovecot.Trixie   // Dovecot 2.4.1, Postfix 3.10.13
)

// A Layer is a set of configuration files, names already replaced, that is
// laid over the release's own. It says what a real source would be given.
//
//	dovecot/NAME.conf   read after the layers before it; within a layer in lexical order
//	dovecot/NAME.ext    stands in place of the file of that name in Debian's conf.d
//	postfix/main.cf     name = value: the later value wins
//	postfix/master.cf   entries, and service/type/param=value; "service/type = -" removes one
//	etc/hosts           more lines of /etc/hosts
//	anything else       lies on the source as Dir/PATH: lookup tables
type Layer struct {
	Name  string
	Dir   string // where the layer's own files lie on the source: what @overlay@ stood for
	Files map[string]string
}

// A Config says what a source is to be.
type Config struct {
	Release  string
	Hostname string // fully qualified: its default myhostname
	Layers   []Layer
	Hosts    map[netip.Addr]string // names that the source knows beside those of the layers
	Addrs    []netip.Addr          // its own addresses, where it listens
	// Users returns the password of an account. Names are in lower case.
	Users       func(user string) (password string, ok bool)
	Certificate tls.Certificate
	Bugs        []string // names of misbehaviours; see [Bugs]
	// Delay passes the time that a server lets pass on purpose. When it is nil,
	// connections of the in-memory network are late without anybody's waiting
	// for it, and any other waits.
	Delay func(ctx context.Context, c net.Conn, d time.Duration) error
	// Now is the clock; nil is time.Now in UTC.
	Now func() time.Time
}

// A Source is an in-memory Dovecot and Postfix.
type Source struct {
	dovecot *dovecot.Server
	postfix *postfix.Server
	dconf   *dovecot.Config
	pconf   *postfix.Config
	log     *logbook.Book
	store   *mailbox.Store
	addrs   []netip.Addr
	files   []run.ConfigFile
	now     func() time.Time

	mu        sync.Mutex
	started   bool
	cancel    context.CancelFunc
	listeners []net.Listener
	conns     map[net.Conn]struct{}
	wg        sync.WaitGroup
}

// LogDelay is how late lines of the log are with the misbehaviour "log-late".
const LogDelay = 60 * time.Millisecond

// New reads the configuration. An error is what the real servers would say of
// it, with the file, the line and the setting.
func New(cfg Config) (*Source, error) {
	if cfg.Release != Bookworm && cfg.Release != Trixie {
		return nil, fmt.Errorf("no release %q of a reference source: there are %s and %s", cfg.Release, Bookworm, Trixie)
	}
	if cfg.Users == nil {
		return nil, errors.New("a reference source needs its users")
	}
	bugs, err := bug.Parse(cfg.Bugs)
	if err != nil {
		return nil, err
	}
	now := cfg.Now
	if now == nil {
		now = func() time.Time { return time.Now().UTC() }
	}
	in, err := arrange(cfg)
	if err != nil {
		return nil, err
	}
	s := &Source{addrs: cfg.Addrs, now: now, conns: make(map[net.Conn]struct{})}
	if s.dconf, err = dovecot.ReadConfig(cfg.Release, in.dovecot); err != nil {
		return nil, err
	}
	s.pconf, err = postfix.ReadConfig(postfix.Input{
		Release: cfg.Release, Hostname: cfg.Hostname, Main: in.main, Master: in.master, Files: in.files,
		Account: func(user string) bool { _, ok := cfg.Users(strings.ToLower(user)); return ok },
	})
	if err != nil {
		return nil, err
	}
	s.files = in.shown
	var delay time.Duration
	if bugs.Has(bug.LogLate) {
		delay = LogDelay
	}
	s.log = logbook.New(delay, bugs.Has(bug.LogDropsLines))
	s.store = mailbox.New(cfg.Users)
	var pids atomic.Int64
	pids.Store(100)
	nextPID := func() int { return int(pids.Add(1)) }
	links := &link.Options{Pool: new(link.Pool), Delay: cfg.Delay, BareLF: bugs.Has(bug.GreetingBareLF),
		LargeInLost: bugs.Has(bug.LargeInLost), LargeOutLost: bugs.Has(bug.LargeOutLost)}
	short, _, _ := strings.Cut(cfg.Hostname, ".")
	s.dovecot = dovecot.New(dovecot.Options{
		Config: s.dconf, Bugs: bugs, Log: s.log, Store: s.store, Hostname: short,
		Certificate: cfg.Certificate, Links: links, NextPID: nextPID, Now: now,
	})
	s.postfix = postfix.New(postfix.Options{
		Config: s.pconf, Bugs: bugs, Log: s.log, Dovecot: s.dovecot, Hosts: in.hosts, Own: cfg.Addrs,
		Certificate: cfg.Certificate, Links: links, NextPID: nextPID, Now: now,
	})
	return s, nil
}

// arranged is the layers' files by who reads them.
type arranged struct {
	dovecot      []dovecot.File
	main, master []postfix.File
	files        map[string]string // the rest, by absolute path
	hosts        map[netip.Addr]string
	shown        []run.ConfigFile
}

// arrange hands every file of the layers to whoever reads it.
func arrange(cfg Config) (*arranged, error) {
	in := &arranged{files: make(map[string]string), hosts: make(map[netip.Addr]string)}
	maps.Copy(in.hosts, cfg.Hosts)
	exts := map[string]dovecot.File{"auth-system.conf.ext": {Path: "/etc/dovecot/conf.d/auth-system.conf.ext", Text: shippedAuth}}
	var conf []dovecot.File
	for _, l := range cfg.Layers {
		for _, p := range slices.Sorted(maps.Keys(l.Files)) {
			text := l.Files[p]
			at := path.Join(l.Dir, p)
			if l.Dir == "" {
				at = p
			}
			switch {
			case p == "postfix/main.cf":
				in.main = append(in.main, postfix.File{Path: at, Text: text})
			case p == "postfix/master.cf":
				in.master = append(in.master, postfix.File{Path: at, Text: text})
			case p == "etc/hosts":
				if err := addHosts(in.hosts, at, text); err != nil {
					return nil, err
				}
			case path.Dir(p) == "dovecot" && path.Ext(p) == ".conf":
				conf = append(conf, dovecot.File{Path: at, Text: text})
			case path.Dir(p) == "dovecot" && path.Ext(p) == ".ext":
				exts[path.Base(p)] = dovecot.File{Path: "/etc/dovecot/conf.d/" + path.Base(p), Text: text}
			default:
				in.files[at] = text
				continue
			}
			in.shown = append(in.shown, run.ConfigFile{Path: at, Text: text})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(exts)) {
		in.dovecot = append(in.dovecot, exts[name])
	}
	in.dovecot = append(in.dovecot, conf...)
	return in, nil
}

// shippedAuth is Debian's conf.d/auth-system.conf.ext: system users, of whom
// the source has none.
const shippedAuth = "passdb {\n  driver = pam\n}\nuserdb {\n  driver = passwd\n}\n"

// addHosts reads lines of /etc/hosts.
func addHosts(hosts map[netip.Addr]string, at, text string) error {
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil || len(f) < 2 {
			return fmt.Errorf("%s:%d: %q is no line of /etc/hosts: write an address and a name", at, n, strings.TrimSpace(line))
		}
		hosts[a.Unmap()] = f[1]
	}
	return nil
}

// Start listens wherever the configuration says, with listen, and serves until
// Close or until ctx ends. It returns once everything listens.
func (s *Source) Start(ctx context.Context, listen func(netip.AddrPort) (net.Listener, error)) error {
	s.mu.Lock()
	again := s.started
	s.started = true
	s.mu.Unlock()
	if again {
		return errors.New("the reference source was started before")
	}
	type served struct {
		l      net.Listener
		handle func(context.Context, net.Conn)
	}
	var all []served
	add := func(at netip.AddrPort, handle func(context.Context, net.Conn)) error {
		l, err := listen(at)
		if err != nil {
			for _, o := range all {
				o.l.Close()
			}
			return fmt.Errorf("reference source: listen on %s: %w", at, err)
		}
		all = append(all, served{l, handle})
		return nil
	}
	for _, p := range s.dovecot.Ports(s.addrs) {
		if err := add(p.At, func(ctx context.Context, c net.Conn) { s.dovecot.Handle(ctx, p, c) }); err != nil {
			return err
		}
	}
	for _, p := range s.postfix.Ports(s.addrs) {
		if err := add(p.At, func(ctx context.Context, c net.Conn) { s.postfix.Handle(ctx, p, c) }); err != nil {
			return err
		}
	}
	s.dovecot.Start()
	s.postfix.Start()
	ctx, cancel := context.WithCancel(ctx)
	s.mu.Lock()
	s.cancel = cancel
	for _, o := range all {
		s.listeners = append(s.listeners, o.l)
	}
	s.mu.Unlock()
	context.AfterFunc(ctx, s.hangUp)
	for _, o := range all {
		if l, ok := o.l.(interface{ Serve(func(net.Conn)) }); ok {
			l.Serve(func(c net.Conn) { s.take(ctx, c, o.handle) })
			continue
		}
		s.wg.Go(func() { s.accept(ctx, o.l, o.handle) })
	}
	return nil
}

// take serves one connection in a goroutine of its own.
func (s *Source) take(ctx context.Context, c net.Conn, handle func(context.Context, net.Conn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		c.Close()
		return
	}
	s.conns[c] = struct{}{}
	s.wg.Go(func() {
		handle(ctx, c)
		c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	})
}

// accept serves the connections of one listener until it is closed.
func (s *Source) accept(ctx context.Context, l net.Listener, handle func(context.Context, net.Conn)) {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return
			}
			// Out of descriptors, or the peer is gone already: the next may do,
			// a little later.
			t := time.NewTimer(10 * time.Millisecond)
			select {
			case <-t.C:
			case <-ctx.Done():
				t.Stop()
				return
			}
			continue
		}
		s.take(ctx, c, handle)
	}
}

// hangUp closes what is open.
func (s *Source) hangUp() {
	s.mu.Lock()
	listeners := s.listeners
	s.mu.Unlock()
	for _, l := range listeners {
		l.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// Close ends every session and the log, and waits until they have ended.
func (s *Source) Close() error {
	s.mu.Lock()
	cancel := s.cancel
	s.cancel = nil
	s.mu.Unlock()
	if cancel == nil {
		s.log.Close()
		return nil
	}
	cancel()
	s.hangUp()
	s.wg.Wait()
	s.dovecot.Stop()
	s.log.Close()
	return nil
}

// Log follows the source's log: whole lines, from now on. It is a [run.LogFunc].
func (s *Source) Log(ctx context.Context) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return s.log.Follow(ctx), nil
}

// Account is one account's mailboxes, or nil if there is no such account.
func (s *Source) Account(name string) *mailbox.User { return s.store.User(name) }

// secretSetting matches a setting whose value is a secret.
var secretSetting = regexp.MustCompile(`(?im)^(\s*(?:-o\s+)?\S*(?:password|secret|api_key|_nonce)\s*=)[ \t]*\S.*$`)

// ConfigFiles are the files that configure the source, and what is in force.
// Secrets are taken out of them.
func (s *Source) ConfigFiles() []run.ConfigFile {
	out := []run.ConfigFile{
		{Path: "doveconf -n", Text: s.dconf.Effective(), Command: true},
		{Path: "postconf -n", Text: s.pconf.Effective(), Command: true},
		{Path: "postconf -M", Text: s.pconf.Services(), Command: true},
		{Path: "postconf -P", Text: s.pconf.Overrides(), Command: true},
	}
	for _, f := range s.files {
		f.Text = secretSetting.ReplaceAllString(f.Text, "$1 (a secret, removed)")
		out = append(out, f)
	}
	return out
}

// A Bug is a misbehaviour of the servers that no configuration expresses.
type Bug = bug.Bug

// Bugs lists every misbehaviour that a source can be given.
func Bugs() []Bug { return bug.All() }
