package dovecot

import (
	"encoding/base64"
	"fmt"
	"hash/crc32"
	"net/netip"
	"slices"
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
	At        time.Time  // by the session's own clock
}

// An Answer is the auth service's.
type Answer struct {
	OK        bool
	Temporary bool
	User      string // who is signed in, or who tried; "" when the name was not acceptable
	// Before is waited before the answer is given.
	Before time.Duration
}

// penalty is what an address has to wait before it may try again, from a time
// on: tries that run side by side do not add up.
type penalty struct {
	count int
	from  time.Time
}

// penalties are those of one address, the last to come in force at the end,
// and what was tried of late: the same again is not punished twice.
type penalties struct {
	all   []penalty
	tried []uint32
}

// Bounds of what is remembered of one address.
const (
	maxPenalties = 64
	maxTried     = 10
	maxAddresses = 1 << 14
)

// Authenticate decides, and logs what the auth service logs.
func (s *Server) Authenticate(q Request) Answer {
	set := s.c.protocols[q.Protocol]
	count := s.penalised(q)
	ans := Answer{}
	if count > 0 {
		ans.Before = penaltyFor(count)
	}
	if s.bugs.Has(bug.AnswersLate) {
		ans.Before += 12 * time.Second
	}
	fail := func(db *passdb, why string) Answer {
		if set.verbose {
			s.authLine(set, q, ans.User, db, why)
		}
		ans.Before += set.failureDelay
		s.penalise(q, count)
		if s.bugs.Has(bug.WrongPasswordTemporary) {
			ans.Temporary = true
		}
		return ans
	}
	if why := badUserName(set, q.User); why != "" {
		ans = fail(nil, why)
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
			return fail(set.first(), "unknown user")
		case !known:
			return fail(set.first(), "unknown user")
		case want != q.Password:
			return fail(set.first(), "Password mismatch")
		}
		if set.verbose {
			s.masterLine(set, q, master, user)
		}
		ans.User = strings.ToLower(user)
		if _, known := s.store.Password(user); !known {
			return fail(set.first(), "unknown user")
		}
		ans.OK = true
		s.forgive(q, count)
		return ans
	}
	return s.ask(set, q, user, ans, fail, count)
}

// ask asks one passdb after the other, until one knows the user and the
// password.
func (s *Server) ask(set *settings, q Request, user string, ans Answer, fail func(db *passdb, why string) Answer, count int) Answer {
	for i := range set.passdbs {
		p := &set.passdbs[i]
		why := s.refuses(p, q, user)
		if why == "" {
			ans.OK = true
			s.store.Adopt(user)
			s.forgive(q, count)
			return ans
		}
		if i == len(set.passdbs)-1 {
			return fail(p, why)
		}
		if set.verbose {
			s.authLine(set, q, ans.User, p, why)
		}
	}
	return fail(&passdb{driver: "auth"}, "no passdbs specified in configuration file")
}

// refuses says why a passdb does not let somebody in, or "".
func (s *Server) refuses(p *passdb, q Request, user string) string {
	want, known := s.store.Password(user)
	switch p.driver {
	case "passwd-file":
	case "static":
		known, want = true, p.password
	default: // the source has no accounts anywhere else
		known = false
	}
	switch {
	case !known:
		return "unknown user"
	case p.nets != nil && !contains(p.nets, q.RemoteIP):
		return "allow_nets check failed: IP " + q.RemoteIP.String() + " not in allowed networks"
	case want != q.Password && !p.noPassword && !s.bugs.Has(bug.AcceptsAnyPassword):
		return "Password mismatch"
	}
	return ""
}

// first is the passdb that is asked first, for what is said in its name.
func (s *settings) first() *passdb {
	if len(s.passdbs) == 0 {
		return &passdb{driver: "auth"}
	}
	return &s.passdbs[0]
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
func (s *Server) authLine(set *settings, q Request, user string, db *passdb, why string) {
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
		if db != nil {
			name = db.label()
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
	if db != nil {
		name = db.label()
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
		s.authLine(set, q, "", nil, why)
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

// penalised is the penalty that a client has when it tries.
func (s *Server) penalised(q Request) int {
	if !s.c.penalty || !q.RemoteIP.IsValid() {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.penalty[penaltyKey(q.RemoteIP)]
	if p == nil {
		return 0
	}
	var now penalty
	for _, e := range p.all {
		if !e.from.After(q.At) {
			now = e
		}
	}
	for since, drop := q.At.Sub(now.from), penaltyMax; now.count > 0 && since >= penaltyFor(drop); drop-- {
		now.count--
	}
	return now.count
}

// penalise makes the penalty harder once the try was refused.
func (s *Server) penalise(q Request, count int) {
	if !s.c.penalty || !q.RemoteIP.IsValid() {
		return
	}
	sum := crc32.ChecksumIEEE([]byte(q.User + "\x00" + q.Password))
	s.mu.Lock()
	defer s.mu.Unlock()
	k := penaltyKey(q.RemoteIP)
	p := s.penalty[k]
	if p == nil {
		if len(s.penalty) >= maxAddresses {
			clear(s.penalty)
		}
		p = &penalties{}
		s.penalty[k] = p
	}
	if slices.Contains(p.tried, sum) {
		return
	}
	if p.tried = append(p.tried, sum); len(p.tried) > maxTried {
		p.tried = p.tried[1:]
	}
	e := penalty{count: min(count+1, penaltyMax), from: q.At}
	if count > 0 {
		e.from = e.from.Add(penaltyFor(count))
	}
	p.put(e)
}

// put adds a penalty where it comes in force.
func (p *penalties) put(e penalty) {
	i := len(p.all)
	for i > 0 && p.all[i-1].from.After(e.from) {
		i--
	}
	if p.all = slices.Insert(p.all, i, e); len(p.all) > maxPenalties {
		p.all = p.all[1:]
	}
}

// forgive ends the penalty of a client that has signed in.
func (s *Server) forgive(q Request, count int) {
	if count == 0 || !s.c.penalty || !q.RemoteIP.IsValid() {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if p := s.penalty[penaltyKey(q.RemoteIP)]; p != nil {
		p.put(penalty{from: q.At.Add(penaltyFor(count))})
	}
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
