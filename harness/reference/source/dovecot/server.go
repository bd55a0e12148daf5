// Package dovecot plays Dovecot: the login services of IMAP, POP3 and
// ManageSieve, the auth service, the mail services behind them, and LMTP, of
// Dovecot 2.3.19 (Debian bookworm) and 2.4.1 (trixie).
//
// It promises to answer and to log as those releases do wherever a claim about
// a source looks: greetings, capabilities, ID, XCLIENT, STARTTLS, signing in,
// the lines of the login, auth, mail and lmtp processes. What it reads of a
// configuration stands in the table of package source; other settings are
// accepted if the release knows them and refused as Dovecot does if not. After
// the login IMAP is go-imap's in-memory server, with Dovecot's words for
// CAPABILITY, ID and LOGOUT.
package dovecot

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/source/logbook"
	"github.com/mailproof/mailproof/harness/reference/source/mailbox"
)

// Options are what a server needs beside its configuration.
type Options struct {
	Config      *Config
	Bugs        bug.Set
	Log         *logbook.Book
	Store       *mailbox.Store
	Hostname    string // the host's own name, without its domain
	Certificate tls.Certificate
	Links       *link.Options
	NextPID     func() int
	Now         func() time.Time
}

// A Server is the processes of one Dovecot.
type Server struct {
	c     *Config
	bugs  bug.Set
	log   *logbook.Book
	store *mailbox.Store
	host  string
	links *link.Options
	pid   func() int
	now   func() time.Time
	tls   map[string]*tls.Config // by protocol
	imap  *imapService
	lmtp  atomic.Uint64 // session ids of LMTP

	mu       sync.Mutex
	sessions map[*session]struct{} // of login processes
	who      map[whoKey]int        // sessions signed in
	penalty  map[netip.Addr]*penalties
}

// whoKey is what mail_max_userip_connections counts by.
type whoKey struct {
	protocol, user string
	ip             netip.Addr
}

// New returns a server.
func New(o Options) *Server {
	s := &Server{
		c: o.Config, bugs: o.Bugs, log: o.Log, store: o.Store, host: o.Hostname, links: o.Links, pid: o.NextPID, now: o.Now,
		tls:      make(map[string]*tls.Config),
		sessions: make(map[*session]struct{}),
		who:      make(map[whoKey]int),
		penalty:  make(map[netip.Addr]*penalties),
	}
	for p, set := range s.c.protocols {
		s.tls[p] = &tls.Config{
			Certificates:           []tls.Certificate{o.Certificate},
			MinVersion:             set.minTLS,
			CurvePreferences:       []tls.CurveID{tls.X25519, tls.CurveP256},
			SessionTicketsDisabled: true,
		}
	}
	s.imap = newIMAPService(s)
	return s
}

// A Port is where the server listens, and who answers there.
type Port struct {
	At     netip.AddrPort
	listen *listener
}

// Ports lists where a server with these addresses listens.
func (s *Server) Ports(addrs []netip.Addr) []Port {
	var ps []Port
	for _, b := range s.c.listening(addrs) {
		ps = append(ps, Port{b.at, b.listener})
	}
	return ps
}

// Start logs that the server is up, and starts what runs in the background
// until Stop.
func (s *Server) Start() {
	version := "v2.3.19.1 (9b53102964)"
	if s.c.series == "2.4" {
		version = "v2.4.1-4 (7d8c0e5759)"
	}
	services := ""
	r := &reader{c: s.c}
	for i, p := range r.list("protocols", []string{"imap", "pop3", "lmtp", "sieve"}) {
		if i > 0 {
			services += ", "
		}
		services += p
	}
	s.write("master", info, "Dovecot "+version+" starting up for "+services+" (core dumps disabled)")
	s.imap.start()
}

// Stop ends what Start began. No session may be open.
func (s *Server) Stop() { s.imap.stop() }

// Handle serves one connection until it ends. It closes the connection.
func (s *Server) Handle(ctx context.Context, p Port, nc net.Conn) {
	c := link.New(ctx, nc, s.links)
	defer c.Release()
	defer c.Close()
	if s.bugs.Has(bug.NoGreeting) {
		c.Silence()
		return
	}
	in := newSession(s, p.listen, c)
	if p.listen.haproxy && !in.haproxyHeader() {
		return
	}
	in.alloc()
	if set := in.set; set.badNetwork != "" {
		in.logAs("error", "login_trusted_networks: Invalid network '"+set.badNetwork+"'")
	}
	s.mu.Lock()
	s.sessions[in] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.sessions, in)
		s.mu.Unlock()
	}()
	c.SetTimeout(loginTimeout)
	if p.listen.tls {
		if in.set.ssl == "no" {
			in.logAs("info", "SSL is disabled (ssl=no)")
			return
		}
		if !in.handshake(link.Feed) {
			return
		}
	}
	if s.bugs.Has(bug.GreetingLate) {
		if c.Wait(8*time.Second) != nil {
			return
		}
	}
	if s.bugs.Has(bug.TurnsAway) {
		c.Line(map[string]string{"imap": "* BYE [UNAVAILABLE] ", "pop3": "-ERR [SYS/TEMP] ", "sieve": "BYE "}[p.listen.protocol], `"Too many connections."`)
		return
	}
	switch p.listen.protocol {
	case "imap":
		(&imapLogin{session: in}).serve()
	case "pop3":
		(&pop3Login{session: in}).serve()
	case "sieve":
		(&sieveLogin{session: in}).serve()
	}
}

// loginTimeout is how long Dovecot keeps a connection that does not sign in.
const loginTimeout = 3 * time.Minute

// The severities of log lines.
const (
	info    = "Info: "
	warning = "Warning: "
	failure = "Error: "
)

// write adds a line to the log.
func (s *Server) write(process, severity, message string) {
	b := make([]byte, 0, 256)
	now := s.now()
	if s.c.log.syslog {
		b = now.AppendFormat(b, "2006-01-02T15:04:05.000000-07:00")
		b = append(b, ' ')
		b = append(b, s.host...)
		b = append(b, " dovecot: "...)
		if severity == info {
			severity = ""
		}
	} else {
		b = stamp(b, s.c.log.timestamp, now)
	}
	b = append(b, process...)
	b = append(b, ": "...)
	b = append(b, severity...)
	b = append(b, message...)
	s.log.Append(now, b)
}

// connected says how many sessions count against mail_max_userip_connections,
// and counts one more if there is room for it.
func (s *Server) connect(k whoKey, limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if limit > 0 && s.who[k] >= limit {
		return false
	}
	s.who[k]++
	return true
}

func (s *Server) disconnect(k whoKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.who[k]--; s.who[k] <= 0 {
		delete(s.who, k)
	}
}

// other returns the address that some other open session announced.
func (s *Server) other(not *session) (netip.Addr, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for o := range s.sessions {
		if a := o.claimed.Load(); o != not && a != nil && *a != not.ip {
			return *a, true
		}
	}
	return netip.Addr{}, false
}

func itoa(n int) string { return strconv.Itoa(n) }

// disconnectReason words why a client's input ended, as Dovecot does.
func disconnectReason(err error) string {
	var op *net.OpError
	switch {
	case isReset(err) && errors.As(err, &op):
		return "Connection closed: read(size=1024) failed: Connection reset by peer"
	case isReset(err):
		return fmt.Sprintf("Connection closed: read(size=1024) failed: %v", err)
	}
	return "Connection closed"
}

// Config is what the server goes by.
func (s *Server) Config() *Config { return s.c }
