package stalwart

import (
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/mailproof/mailproof/harness/reference/stalwart/bug"
)

// counters are what the server's lookup store counts, in fixed windows. They
// outlive restarts.
type counters struct {
	now func() time.Time
	mu  sync.Mutex
	at  map[counterKey]*window
}

type counterKey struct{ kind, key string }

type window struct {
	index int64
	n     int
}

// maxCounters bounds what is counted: beyond it the counters begin anew.
const maxCounters = 1 << 16

func newCounters(now func() time.Time) *counters {
	return &counters{now: now, at: make(map[counterKey]*window)}
}

// allow counts one and says whether it is within the rate. A rate of none
// allows everything and counts nothing.
func (c *counters) allow(kind, key string, r rate) bool {
	if r.requests == 0 {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.at) > maxCounters {
		clear(c.at)
	}
	w := c.at[counterKey{kind, key}]
	if w == nil {
		w = new(window)
		c.at[counterKey{kind, key}] = w
	}
	if i := c.now().UnixMilli() / r.period.Milliseconds(); i != w.index {
		*w = window{index: i}
	}
	w.n++
	return w.n <= r.requests
}

// purge forgets everything of a kind.
func (c *counters) purge(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for k := range c.at {
		if k.kind == kind {
			delete(c.at, k)
		}
	}
}

// The kinds of counters, as the management API names them.
const (
	countAuth     = "rate-auth"
	countScan     = "rate-scan"
	countRcpt     = "rate-rcpt"
	countLoiter   = "rate-loiter"
	countSMTP     = "rate-smtp"
	countHTTP     = "rate-http-anonymous"
	countGreylist = "greylist"
)

// blockedPrefix is where bans stand among the settings.
const blockedPrefix = "server.blocked-ip."

// isBlocked says whether an address is refused.
func (s *Server) isBlocked(p *process, a netip.Addr) bool {
	if s.bugs.Has(bug.BlockedIgnored) {
		return false
	}
	s.mu.Lock()
	banned := s.blocked[a]
	s.mu.Unlock()
	nets := p.networks.Load()
	return banned || nets != nil && within(*nets, a)
}

// blocks says whether anybody is banned.
func (s *Server) blocks() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.blocked) > 0
}

// setBlocked replaces what is refused by what the settings say.
func (s *Server) setBlocked(p *process, list []netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.blocked)
	var nets []netip.Prefix
	for _, n := range list {
		if n.IsSingleIP() {
			s.blocked[n.Addr()] = true
		} else {
			nets = append(nets, n)
		}
	}
	p.networks.Store(&nets)
}

// block bans an address: in memory, and among the settings.
func (in *session) block() {
	a := in.remote.Addr()
	if in.srv.bugs.Has(bug.BanHitsProxy) {
		a = in.real.Addr()
	}
	in.srv.mu.Lock()
	in.srv.blocked[a] = true
	in.srv.mu.Unlock()
	in.srv.settings.set(blockedPrefix+a.String(), "")
}

// fails counts a failure of the client, and of what else is given, and says
// whether it was one too many: then the address is banned. Addresses that the
// settings allow are never.
func (in *session) fails(kind string, r rate, also string) bool {
	a := in.remote.Addr()
	if r.requests == 0 || within(in.core.allowed, a) {
		return false
	}
	ok := in.srv.counts.allow(kind, a.String(), r)
	if ok && also != "" {
		ok = in.srv.counts.allow(kind, also, r)
	}
	if ok {
		return false
	}
	in.block()
	return true
}

// scanned counts what no client of the protocol would send, and says whether
// the client is banned for it.
func (in *session) scanned(reason string) bool {
	if !in.fails(countScan, in.core.scanRate, "") {
		return false
	}
	in.log(evScanBan, field{"remoteIp", in.remote.Addr()}, field{"reason", reason})
	return true
}

// A verdict is how a try to sign in ended.
type verdict uint8

const (
	signedIn     verdict = iota
	wrongSecret          // auth.failed, not logged yet
	banned               // security.authentication-ban, not logged yet
	unauthorised         // right, and not permitted: security.unauthorized, not logged yet
)

// verify checks a name and a password. What is wrong is left to the caller to
// log: protocols add keys of their own.
func (in *session) verify(user, secret string) (*principal, verdict) {
	who := in.check(user, secret)
	if who == nil {
		if in.fails(countAuth, in.core.authRate, user) {
			return nil, banned
		}
		return nil, wrongSecret
	}
	// From here on clients may be programs that read and write side by side.
	in.c.Patient(false)
	if who.admin && who.id == 0 {
		in.log(evAuthSuccess, field{"accountName", who.name})
	} else {
		in.log(evAuthSuccess, field{"accountName", who.name}, field{"accountId", who.id})
	}
	if !who.admin && len(who.roles) == 0 && !in.srv.bugs.Has(bug.RolesIgnored) {
		return who, unauthorised
	}
	return who, signedIn
}

// check finds whose name and password these are.
func (in *session) check(user, secret string) *principal {
	if p := in.srv.dir.named(user); p != nil && !in.srv.bugs.Has(bug.RefusesEveryPassword) && p.kind == "individual" && (p.hasSecret(secret) || in.srv.bugs.Has(bug.AcceptsAnyPassword)) {
		return p
	}
	if name, master, ok := strings.Cut(user, "%"); ok && in.srv.bugs.Has(bug.EveryoneMasters) {
		if p, m := in.srv.dir.named(name), in.srv.dir.named(master); p != nil && m != nil && m.hasSecret(secret) {
			return p
		}
	}
	c := in.core
	switch {
	case c.adminUser != "" && user == c.adminUser:
		if sameSecret(c.adminSecret, secret) {
			return &principal{name: user, admin: true}
		}
	case c.masterUser != "" && strings.HasSuffix(user, c.masterUser):
		if sameSecret(c.masterSecret, secret) {
			name := strings.TrimSuffix(strings.TrimSuffix(user, c.masterUser), "%")
			if p := in.srv.dir.named(name); p != nil {
				return p
			}
		}
	}
	return nil
}

// authFailed are the keys of a failed login: the address stands there twice.
func (in *session) authFailed(user, tag string) []field {
	at := in.remote.Addr()
	if in.srv.bugs.Has(bug.FailedLoginLogsProxy) {
		at = in.real.Addr()
	}
	f := []field{{"remoteIp", at}, {"accountName", user}}
	if tag != "" {
		f = append(f, field{"id", tag})
	}
	return f
}

// logFailed writes what a failed login is logged as. Bans and refusals of
// permission do not say whose session it was.
func (in *session) logFailed(v verdict, user, tag string) {
	switch v {
	case wrongSecret:
		if in.srv.bugs.Has(bug.FailedLoginLogsProxy) {
			span := in.span
			defer func() { in.span = span }()
			in.span = string(appendFields(nil, true, []field{{"listenerId", in.listener.id}, {"localPort", in.listener.port()}, {"remoteIp", in.real.Addr()}, {"remotePort", in.real.Port()}}))
		}
		in.log(evAuthFailed, in.authFailed(user, tag)...)
	case banned:
		in.process.log(evAuthBan, "", in.authFailed(user, tag)...)
	case unauthorised:
		f := []field{{"details", "authenticate"}}
		if tag != "" {
			f = append(f, field{"id", tag})
		}
		in.process.log(evUnauthorized, "", f...)
	}
}

// causedBy is how a line names the failure behind it.
func (in *session) causedBy(user string) field {
	b := append([]byte(nil), "Authentication failed (auth.failed) { "...)
	b = appendFields(b, true, in.authFailed(user, ""))
	return field{"causedBy", bare(append(b, " }"...))}
}

// plainSASL reads what PLAIN sends.
func plainSASL(b []byte) (user, secret string, ok bool) {
	f := strings.Split(string(b), "\x00")
	if len(f) != 3 || f[1] == "" {
		return "", "", false
	}
	return f[1], f[2], true
}
