// Package postfix plays Postfix: smtpd on the smtp, submission and submissions
// services, and what happens to a message behind it, of Postfix 3.7.11 (Debian
// bookworm) and 3.10.13 (trixie).
//
// It promises to answer and to log as those releases do wherever a claim about
// a source looks: EHLO, XCLIENT, AUTH, the restriction lists, relaying, MAIL to
// BDAT, the Received field, the lines of smtpd, cleanup, qmgr, lmtp, error and
// bounce. What it reads of a configuration stands in the table of package
// source. Nothing is sent to other hosts, and nothing is queued: a message is
// delivered, refused or bounced before its reply is given.
package postfix

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/dovecot"
	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/source/logbook"
)

// Options are what a server needs beside its configuration.
type Options struct {
	Config      *Config
	Bugs        bug.Set
	Log         *logbook.Book
	Dovecot     *dovecot.Server
	Hosts       map[netip.Addr]string // what names the host knows
	Own         []netip.Addr          // its own addresses
	Certificate tls.Certificate
	Links       *link.Options
	NextPID     func() int
	Now         func() time.Time
}

// A Server is the processes of one Postfix.
type Server struct {
	c       *Config
	bugs    bug.Set
	log     *logbook.Book
	dovecot *dovecot.Server
	hosts   map[netip.Addr]string
	own     []netip.Addr
	links   *link.Options
	nextPID func() int
	now     func() time.Time
	tls     *tls.Config
	short   string         // the host's name without its domain
	daemons map[string]int // processes that there is one of
	queue   atomic.Uint64

	mu       sync.Mutex
	idle     map[*service][]int // smtpd processes that wait for a client
	started  map[*service]bool  // their opening complaints were logged
	failed   map[*service]bool  // they were found not to start
	anvil    map[anvilKey]*events
	sessions map[*session]struct{}
	greyed   map[string]bool
	messages map[netip.Addr]int // by host, where load is shed
}

// anvilKey is what anvil counts by.
type anvilKey struct {
	service string
	client  netip.Prefix
}

// events are what one client did of late.
type events struct {
	open                          int
	since                         time.Time
	connects, mails, rcpts, auths int
}

// New returns a server.
func New(o Options) *Server {
	s := &Server{
		c: o.Config, bugs: o.Bugs, log: o.Log, dovecot: o.Dovecot, hosts: o.Hosts, own: o.Own,
		links: o.Links, nextPID: o.NextPID, now: o.Now,
		tls: &tls.Config{
			Certificates:           []tls.Certificate{o.Certificate},
			MinVersion:             tls.VersionTLS12,
			CurvePreferences:       []tls.CurveID{tls.X25519, tls.CurveP256},
			SessionTicketsDisabled: true,
		},
		daemons:  make(map[string]int),
		idle:     make(map[*service][]int),
		started:  make(map[*service]bool),
		failed:   make(map[*service]bool),
		anvil:    make(map[anvilKey]*events),
		sessions: make(map[*session]struct{}),
		greyed:   make(map[string]bool),
		messages: make(map[netip.Addr]int),
	}
	s.short, _, _ = strings.Cut(o.Config.host, ".")
	for _, d := range []string{"master", "qmgr", "cleanup", "lmtp", "error", "bounce", "local", "smtp"} {
		s.daemons[d] = o.NextPID()
	}
	return s
}

// A Port is where the server listens, and who answers there.
type Port struct {
	At      netip.AddrPort
	service *service
}

// Ports lists where a server with these addresses listens.
func (s *Server) Ports(addrs []netip.Addr) []Port { return s.c.listening(addrs) }

// Start logs that the server is up.
func (s *Server) Start() {
	for _, u := range s.c.unused {
		s.log.Append(s.now(), []byte("/usr/sbin/postconf: warning: /etc/postfix/main.cf: unused parameter: "+u))
	}
	version := "3.7.11"
	if s.c.release == Trixie {
		version = "3.10.13"
		s.log.Append(s.now(), []byte("postfix/postlog: starting the Postfix mail system"))
	} else {
		s.write("postfix/postfix-script", s.nextPID(), "starting the Postfix mail system")
	}
	s.daemon("master", "daemon started -- version "+version+", configuration /etc/postfix")
}

// Handle serves one connection until it ends. It closes the connection.
func (s *Server) Handle(ctx context.Context, p Port, nc net.Conn) {
	c := link.New(ctx, nc, s.links)
	defer c.Release()
	defer c.Close()
	if s.bugs.Has(bug.NoGreeting) {
		c.Silence()
		return
	}
	pid := s.takeProcess(p.service)
	if p.service.fatal != "" {
		s.die(p.service, pid)
		c.Silence() // the connection waits for a process that never comes
		return
	}
	in := newSession(s, p.service, c, pid)
	defer s.freeProcess(p.service, pid)
	s.mu.Lock()
	s.sessions[in] = struct{}{}
	s.mu.Unlock()
	in.serve()
	s.mu.Lock()
	delete(s.sessions, in)
	s.mu.Unlock()
}

// takeProcess returns an smtpd process that is free, or a new one.
func (s *Server) takeProcess(svc *service) int {
	s.mu.Lock()
	free := s.idle[svc]
	if n := len(free); n > 0 {
		pid := free[n-1]
		s.idle[svc] = free[:n-1]
		s.mu.Unlock()
		return pid
	}
	first := !s.started[svc]
	s.started[svc] = true
	s.mu.Unlock()
	pid := s.nextPID()
	if first {
		for _, e := range svc.errors {
			s.write(svc.program, pid, e)
		}
	}
	return pid
}

func (s *Server) freeProcess(svc *service, pid int) {
	s.mu.Lock()
	s.idle[svc] = append(s.idle[svc], pid)
	s.mu.Unlock()
}

// die logs, once, that the processes of a service cannot start.
func (s *Server) die(svc *service, pid int) {
	s.mu.Lock()
	known := s.failed[svc]
	s.failed[svc] = true
	s.mu.Unlock()
	if known {
		return
	}
	s.write(svc.program, pid, "fatal: "+svc.fatal)
	s.exited(pid)
}

// exited is what master says of an smtpd process that died.
func (s *Server) exited(pid int) {
	s.daemon("master", "warning: process /usr/lib/postfix/sbin/smtpd pid "+strconv.Itoa(pid)+" exit status 1")
	s.daemon("master", "warning: /usr/lib/postfix/sbin/smtpd: bad command startup -- throttling")
}

// write adds a line to the log.
func (s *Server) write(program string, pid int, parts ...string) {
	now := s.now()
	b := make([]byte, 0, 256)
	if s.c.log.stdout {
		b = now.AppendFormat(b, "Jan _2 15:04:05 ")
	} else {
		b = now.AppendFormat(b, "2006-01-02T15:04:05.000000-07:00")
		b = append(b, ' ')
	}
	b = append(append(append(b, s.short...), ' '), program...)
	b = strconv.AppendInt(append(b, '['), int64(pid), 10)
	b = append(b, "]: "...)
	for _, p := range parts {
		b = append(b, p...)
	}
	for _, c := range b {
		if c < ' ' || c > '~' {
			b = []byte(printable(string(b), '?'))
			break
		}
	}
	s.log.Append(now, b)
}

// daemon adds a line of a process that there is one of.
func (s *Server) daemon(name string, parts ...string) {
	s.write("postfix/"+name, s.daemons[name], parts...)
}

// queueID makes the short name of a queue file: microseconds and a number.
func (s *Server) queueID(now time.Time) string {
	return fmt.Sprintf("%05X%05X", now.Nanosecond()/1000, 0xFE000+s.queue.Add(1)%0x1000)
}

// hostname is the name that an address has, as /etc/hosts tells it.
func (s *Server) hostname(a netip.Addr) (string, bool) {
	if n, ok := s.hosts[a]; ok {
		return n, true
	}
	if a.IsLoopback() {
		return "localhost", true
	}
	return "", false
}

func (s *Server) isOwn(a netip.Addr) bool { return a.IsLoopback() || slices.Contains(s.own, a) }

// rangeOf is what anvil counts an address as.
func (svc *service) rangeOf(release string, a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if release == Trixie {
		if bits = svc.prefix4; a.Is6() {
			bits = svc.prefix6
		}
	}
	p, _ := a.Prefix(bits)
	return p
}

// maxClients is how many clients anvil remembers that are not connected.
const maxClients = 1 << 14

// count returns the events of a client, which the caller adds to under s.mu.
func (s *Server) count(svc *service, client netip.Prefix) *events {
	k := anvilKey{svc.name, client}
	e := s.anvil[k]
	if e == nil {
		if len(s.anvil) >= maxClients {
			for k, e := range s.anvil {
				if e.open == 0 {
					delete(s.anvil, k)
				}
			}
		}
		e = &events{since: s.now()}
		s.anvil[k] = e
	}
	if now := s.now(); now.Sub(e.since) >= svc.rateUnit {
		*e = events{open: e.open, since: now}
	}
	return e
}

// connected counts a connection.
func (s *Server) connected(svc *service, client netip.Prefix) (open, rate int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.count(svc, client)
	e.open++
	e.connects++
	return e.open, e.connects
}

func (s *Server) disconnected(svc *service, client netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.anvil[anvilKey{svc.name, client}]; e != nil && e.open > 0 {
		e.open--
	}
}

// did counts one event and says how many there were of late.
func (s *Server) did(svc *service, client netip.Prefix, which func(*events) *int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := which(s.count(svc, client))
	*n++
	return *n
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
