package stalwart

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/emersion/go-imap/v2"

	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/source/logbook"
	"github.com/mailproof/mailproof/harness/reference/source/mailbox"
	"github.com/mailproof/mailproof/harness/reference/stalwart/bug"
	"github.com/mailproof/mailproof/harness/run"
)

// V0155 is the version that is played.
const V0155 = "0.15.5"

// A Config says what a Stalwart is to be.
type Config struct {
	Version string
	// Keys are those of the configuration file, flat, as [ParseTOML] reads them.
	Keys map[string]string
	// Files are what %{file:PATH}% finds, by path, and Env what %{env:NAME}% does.
	Files map[string]string
	Env   map[string]string
	// Hostname is the host's own name: what server.hostname is when it is not set.
	Hostname string
	Addrs    []netip.Addr // its own addresses: where [::] and 0.0.0.0 listen
	// Zone is the DNS that it asks. A nil zone answers nothing.
	Zone *Zone
	Bugs []string // names of misbehaviours; see [Bugs]
	// Delay passes the time that the server lets pass on purpose. When it is
	// nil, connections of the in-memory network are late without anybody's
	// waiting for it, and any other waits.
	Delay func(ctx context.Context, c net.Conn, d time.Duration) error
	// Now is the clock; nil is time.Now in UTC.
	Now func() time.Time
}

// A Server is an in-memory Stalwart: what outlives a restart, and the process
// that runs.
type Server struct {
	cfg      Config
	bugs     bug.Set
	now      func() time.Time
	settings *settings
	dir      *directory
	store    *mailbox.Store
	counts   *counters
	journal  *journal
	links    *link.Options
	ids      queueIDs
	blobs    blobs
	selfSign tls.Certificate
	listen   func(netip.AddrPort) (net.Listener, error)

	mu        sync.Mutex // of what follows
	blocked   map[netip.Addr]bool
	documents map[int]int // by account: how many messages it was given
	running   *process
	closed    bool
	parent    context.Context
}

// LogDelay is how late lines of the log are with the bug "stalwart-log-late".
const LogDelay = 60 * time.Millisecond

// New reads the configuration file. An error is what the real server would not
// start with.
func New(cfg Config) (*Server, error) {
	if cfg.Version != V0155 {
		return nil, fmt.Errorf("no version %q of a reference Stalwart: there is %s", cfg.Version, V0155)
	}
	bugs, err := bug.Parse(cfg.Bugs)
	if err != nil {
		return nil, err
	}
	now := cfg.Now
	if now == nil {
		now = func() time.Time { return time.Now().UTC() }
	}
	for k, v := range cfg.Keys {
		if k == "" || strings.ContainsAny(k, " \t\r\n") || strings.HasSuffix(v, `\`) {
			return nil, fmt.Errorf("invalid configuration file: the key %q cannot be written there", k)
		}
	}
	s := &Server{
		cfg: cfg, bugs: bugs, now: now,
		settings: &settings{file: maps.Clone(cfg.Keys), db: make(map[string]string), piles: bugs.Has(bug.InsertsPileUp)},
		dir:      newDirectory(), counts: newCounters(now), blocked: make(map[netip.Addr]bool), documents: make(map[int]int),
	}
	if s.settings.file == nil {
		s.settings.file = make(map[string]string)
	}
	late := time.Duration(0)
	if bugs.Has(bug.LogLate) {
		late = LogDelay
	}
	s.journal = &journal{console: logbook.New(late, bugs.Has(bug.LogDropsLines)), file: logbook.New(late, bugs.Has(bug.LogDropsLines))}
	s.links = &link.Options{Pool: new(link.Pool), Delay: cfg.Delay, BareLF: bugs.Has(bug.GreetingBareLF),
		LargeInLost: bugs.Has(bug.LargeInLost), LargeOutLost: bugs.Has(bug.LargeOutLost)}
	s.store = mailbox.NewLaid(mailbox.Layout{
		Delim: '/', Indexed: []string{"subject", "from", "to", "cc", "bcc"},
		Boxes: []mailbox.Box{
			{Name: "Deleted Items", Use: imap.MailboxAttrTrash}, {Name: "Drafts", Use: imap.MailboxAttrDrafts},
			{Name: junkMail, Use: imap.MailboxAttrJunk}, {Name: "Sent Items", Use: imap.MailboxAttrSent},
		},
	}, s.dir.exists)
	if s.selfSign, err = selfSigned(); err != nil {
		return nil, fmt.Errorf("reference Stalwart: %w", err)
	}
	return s, nil
}

// junkMail is where spam goes.
const junkMail = "Junk Mail"

// selfSigned is what a server without a certificate shows: its only name is
// localhost.
func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "rcgen self signed cert"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(30 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// Start boots the server, which listens with listen and serves until Close or
// until ctx ends. It returns once everything listens. What a boot finds wrong
// stands in the log and does not keep the server from starting, except that a
// port that cannot be bound is an error here.
func (s *Server) Start(ctx context.Context, listen func(netip.AddrPort) (net.Listener, error)) error {
	s.mu.Lock()
	again := s.running != nil || s.closed
	s.listen, s.parent = listen, ctx
	s.mu.Unlock()
	if again {
		return errors.New("the reference Stalwart was started before")
	}
	return s.boot(nil)
}

// Restart ends the process and starts it anew, with the configuration file,
// the database, the accounts and the counters as they are. Sessions are told,
// and end.
func (s *Server) Restart(ctx context.Context) error {
	s.mu.Lock()
	old := s.running
	s.running = nil
	closed := s.closed
	s.mu.Unlock()
	if old == nil || closed {
		return errors.New("the reference Stalwart is not running: start it first")
	}
	old.stop()
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.bugs.Has(bug.BanForgottenAtRestart) {
		s.settings.clearPrefix(blockedPrefix)
	}
	return s.boot(old)
}

// Close ends every session and the log, and waits until they have ended.
func (s *Server) Close() error {
	s.mu.Lock()
	p := s.running
	s.running, s.closed = nil, true
	s.mu.Unlock()
	if p != nil {
		p.stop()
	}
	s.journal.close()
	return nil
}

// Log follows what the server writes to its console, or where no tracer does
// that, into its log file: whole lines, from now on. It is a [run.LogFunc].
func (s *Server) Log(ctx context.Context) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	r := &configReader{keys: s.settings.all(), errors: make(map[string]problem)}
	c := new(core)
	c.readTracing(r)
	if c.tracing.console.off {
		return s.journal.file.Follow(ctx), nil
	}
	return s.journal.console.Follow(ctx), nil
}

// Account is one account's mailboxes, or nil if there is no such account.
func (s *Server) Account(name string) *mailbox.User { return s.store.User(name) }

// secretKey matches keys whose values are secrets.
var secretKey = regexp.MustCompile(`(?i)(secret|password|private-key|token|hash)`)

// ConfigFiles are the file that configures the server, and what its database
// adds. Secrets are taken out of them.
func (s *Server) ConfigFiles() []run.ConfigFile {
	show := func(keys map[string]string, equals string) string {
		var b strings.Builder
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			v := keys[k]
			if secretKey.MatchString(k) && !strings.HasPrefix(v, "%{") {
				v = "(a secret, removed)"
			}
			fmt.Fprintf(&b, "%s%s%q\n", k, equals, v)
		}
		return b.String()
	}
	s.settings.mu.Lock()
	defer s.settings.mu.Unlock()
	return []run.ConfigFile{
		{Path: "/opt/stalwart/etc/config.toml", Text: show(s.settings.file, " = ")},
		{Path: "GET /api/settings/list", Text: show(s.settings.db, " = "), Command: true},
	}
}

// A Bug is a misbehaviour of the server that no setting expresses.
type Bug = bug.Bug

// Bugs lists every misbehaviour that a server can be given.
func Bugs() []Bug { return bug.All() }

// queueIDs makes the ids of messages: milliseconds, a sequence and a node.
type queueIDs struct{ sequence atomic.Uint64 }

// queueEpoch is where the milliseconds of a queue id begin.
const queueEpoch = 1632280000

func (q *queueIDs) next(now time.Time) uint64 {
	ms := uint64(now.UnixMilli() - queueEpoch*1000)
	return ms<<21 | (q.sequence.Add(1)&0xfff)<<9 | 0x145
}

// read builds a core from the settings as they are.
func (s *Server) read(keys map[string]string) (*core, []tls.Certificate, *configReader) {
	r := &configReader{keys: keys, errors: make(map[string]problem), resolve: s.cfg.Zone.resolves}
	r.resolveMacros([]string{"env", "file", "cfg"}, s.macro(keys))
	return r.read(s.cfg.Hostname), r.certificates(), r
}

func (s *Server) macro(keys map[string]string) func(kind, what string) (string, error) {
	return func(kind, what string) (string, error) {
		switch kind {
		case "env":
			if v, ok := s.cfg.Env[what]; ok {
				return v, nil
			}
			return "", saidf("Failed to obtain environment variable %q", what)
		case "file":
			if v, ok := s.cfg.Files[what]; ok {
				return strings.TrimSpace(v), nil
			}
			return "", saidf("Failed to read file %q: %v", what, os.ErrNotExist)
		}
		if v, ok := keys[what]; ok {
			return v, nil
		}
		return "", saidf("Unknown key %q", what)
	}
}

// reload reads everything again, and brings it into force unless something is
// wrong or dry says so. Listeners are read and thrown away.
func (s *Server) reload(p *process, dry bool) map[string]problem {
	c, certs, r := s.read(s.settings.all())
	blocked := r.addresses(strings.TrimSuffix(blockedPrefix, "."))
	listeners := r.listeners()
	inSpite := s.bugs.Has(bug.ReloadAppliesInSpite) && !dry
	if len(r.errors) > 0 && !inSpite || dry || s.bugs.Has(bug.ReloadAppliesNothing) {
		if s.bugs.Has(bug.ReloadErrorsHidden) {
			return nil
		}
		return r.errors
	}
	p.core.Store(c)
	if len(certs) > 0 {
		p.certificates.Store(&certs)
	}
	s.setBlocked(p, blocked)
	if s.bugs.Has(bug.ReloadAppliesListeners) || s.bugs.Has(bug.InsertAppliesAtOnce) {
		p.relisten(listeners)
	}
	return r.errors
}

// inserted is told that settings were written.
func (s *Server) inserted(p *process) {
	if s.bugs.Has(bug.InsertAppliesAtOnce) {
		s.reload(p, false)
	}
}
