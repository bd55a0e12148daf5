package dovecot

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
)

// A Request is one try to sign in, as the auth service sees it.
type Request struct {
	Protocol  string // "imap", "pop3", "sieve", "" for Postfix's AUTH
	Mechanism string // "PLAIN", "LOGIN"
	Authzid   string
	User      string
	Password  string
	RemoteIP  netip.Addr // invalid: unknown
	Session   string     // "" for Postfix's AUTH
}

// An Answer is the auth service's.
type Answer struct {
	OK        bool
	Temporary bool
	User      string // who is signed in, or who tried; "" when the name was not acceptable
	// Before is waited before the answer is given.
	Before time.Duration
}

// penalty is what an address has to wait before it may try again.
type penalty struct {
	count int
	last  time.Time
}

// Authenticate decides, and logs what the auth service logs.
func (s *Server) Authenticate(q Request) Answer {
	set := s.c.protocols[q.Protocol]
	ans := Answer{Before: s.penalised(q.RemoteIP)}
	if s.bugs.Has(bug.AnswersLate) {
		ans.Before += 12 * time.Second
	}
	fail := func(db bool, why string) Answer {
		if set.verbose {
			s.authLine(set, q, ans.User, db, why)
		}
		ans.Before += set.failureDelay
		s.penalise(q.RemoteIP)
		if s.bugs.Has(bug.WrongPasswordTemporary) {
			ans.Temporary = true
		}
		return ans
	}
	if why := badUserName(set, q.User); why != "" {
		ans = fail(false, why)
		ans.User = q.User // as it was given
		return ans
	}
	user, master, byMaster := q.User, "", false
	if q.Authzid != "" && q.Authzid != q.User {
		user, master, byMaster = q.Authzid, q.User, true
	} else if set.separator != "" {
		if u, m, ok := strings.Cut(q.User, set.separator[:1]); ok {
			user, master, byMaster = u, m, true
		}
	}
	ans.User = strings.ToLower(user)
	if byMaster {
		ans.User = strings.ToLower(master)
		want, known := s.store.Password(master)
		switch {
		case !set.masters:
			return fail(true, "unknown user")
		case !known:
			return fail(true, "unknown user")
		case want != q.Password:
			return fail(true, "Password mismatch")
		}
		if set.verbose {
			s.masterLine(set, q, master, user)
		}
		ans.User = strings.ToLower(user)
		if _, known := s.store.Password(user); !known {
			return fail(true, "unknown user")
		}
		ans.OK = true
		s.forgive(q.RemoteIP)
		return ans
	}
	want, known := s.store.Password(user)
	switch {
	case !known:
		return fail(true, "unknown user")
	case want != q.Password && !s.bugs.Has(bug.AcceptsAnyPassword):
		return fail(true, "Password mismatch")
	}
	ans.OK = true
	s.forgive(q.RemoteIP)
	return ans
}

func badUserName(set *settings, user string) string {
	if user == "" {
		return "Empty username"
	}
	if set.userChars == "" {
		return ""
	}
	extra := set.separator
	for i := 0; i < len(user); i++ {
		if strings.IndexByte(set.userChars, user[i]) < 0 && strings.IndexByte(extra, user[i]) < 0 {
			return fmt.Sprintf("Username character disallowed by auth_username_chars: 0x%02x (username: %s)", user[i], sanitize(user, 128))
		}
	}
	return ""
}

// authLine logs why a try failed. 2.3 writes the passdb or the mechanism
// first, 2.4 who it was.
func (s *Server) authLine(set *settings, q Request, user string, db bool, why string) {
	who := "?"
	if user != "" {
		who = sanitize(user, 64)
	}
	if q.RemoteIP.IsValid() {
		who += "," + q.RemoteIP.String()
	}
	mech := strings.ToLower(q.Mechanism)
	if s.c.series == "2.4" {
		name := mech
		if db {
			name = set.passdb.name
			if name == "" {
				name = set.passdb.driver
			}
		}
		process := "auth(" + who + ",sasl:" + mech + ")"
		if q.Session != "" {
			process += "<" + q.Session + ">"
		}
		s.write(process, info, name+": "+why)
		return
	}
	if q.Session != "" {
		who += ",<" + q.Session + ">"
	}
	name := mech
	if db {
		name = set.passdb.driver
		if set.passdb.name != "" {
			name = set.passdb.name
		}
	}
	s.write("auth", info, name+"("+who+"): "+why)
}

// authService logs what the auth service says of a request before it looks at
// any name. 2.4 does not say which mechanism's words they are.
func (s *Server) authService(set *settings, q Request, why string) {
	if !set.verbose {
		return
	}
	if s.c.series == "2.3" {
		s.authLine(set, q, "", false, why)
		return
	}
	who := "?,"
	if q.RemoteIP.IsValid() {
		who += q.RemoteIP.String() + ","
	}
	s.write("auth("+who+"sasl:"+strings.ToLower(q.Mechanism)+")<"+q.Session+">", info, why)
}

func (s *Server) masterLine(set *settings, q Request, master, user string) {
	if s.c.series == "2.3" {
		s.write("auth", info, "Master user logging in as "+user)
		return
	}
	process := "auth(" + sanitize(master, 64)
	if q.RemoteIP.IsValid() {
		process += "," + q.RemoteIP.String()
	}
	process += ",sasl:" + strings.ToLower(q.Mechanism) + ",master)"
	if q.Session != "" {
		process += "<" + q.Session + ">"
	}
	s.write(process, info, "Master user logging in as "+user)
}

// Bounds of the penalty, as Dovecot has them.
const (
	penaltyFirst = 2 * time.Second
	penaltyMost  = 15 * time.Second
	penaltyMax   = 4
)

func penaltyFor(n int) time.Duration {
	return min(penaltyFirst<<n, penaltyMost)
}

// penaltyKey is the address that a penalty is kept for: IPv6 clients share one
// within their /48.
func penaltyKey(a netip.Addr) netip.Addr {
	if a.Is6() && !a.Is4In6() {
		if p, err := a.Prefix(48); err == nil {
			return p.Addr()
		}
	}
	return a
}

// penalised is how long a client has to wait before its try is looked at.
func (s *Server) penalised(a netip.Addr) time.Duration {
	if !s.c.penalty || !a.IsValid() {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.penalty[penaltyKey(a)]
	if !ok {
		return 0
	}
	since, drop := s.penaltyClock().Sub(p.last), penaltyMax
	for p.count > 0 && since >= penaltyFor(drop) {
		drop--
		p.count--
	}
	if p.count == 0 {
		return 0
	}
	return penaltyFor(p.count)
}

// penaltyClock also counts the time that sessions passed without waiting.
func (s *Server) penaltyClock() time.Time { return s.now().Add(s.links.Skipped()) }

func (s *Server) penalise(a netip.Addr) {
	if !s.c.penalty || !a.IsValid() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	k := penaltyKey(a)
	p := s.penalty[k]
	s.penalty[k] = penalty{count: min(p.count+1, penaltyMax), last: s.penaltyClock()}
}

func (s *Server) forgive(a netip.Addr) {
	if !s.c.penalty || !a.IsValid() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.penalty, penaltyKey(a))
}

// Plain reads a PLAIN response (RFC 4616).
func Plain(response []byte) (authzid, user, password string, ok bool) {
	parts := strings.Split(string(response), "\x00")
	if len(parts) != 3 {
		return "", "", "", false
	}
	return parts[0], parts[1], parts[2], true
}

// decode64 reads a response. Dovecot takes padding or none.
func decode64(s string) ([]byte, bool) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		if b, err = base64.RawStdEncoding.DecodeString(s); err != nil {
			return nil, false
		}
	}
	return b, true
}
