package dovecot

import (
	"errors"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/proto"
	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/link"
)

// imapLogin is a session of imap-login.
type imapLogin struct {
	*session
	counted bool // the first ID was seen
	// plainCaps says that the client asked for CAPABILITY before STARTTLS: it
	// does not read the response code then, and gets an untagged line.
	plainCaps bool
}

// Bounds of a command before login, in octets. An ID may be longer than any
// other, because its values are read one at a time.
const (
	maxIDKey     = 30
	maxIMAPTotal = 256 << 10
)

var imapLimits = proto.CommandLimits{Line: link.MaxLine, Literal: 8192, Total: maxIMAPTotal}

func (s *imapLogin) serve() {
	s.c.Line("* OK [CAPABILITY ", s.capability(), "] ", s.set.greeting)
	for {
		tokens, line, err := proto.ReadCommand(s.c.Reader(), imapLimits, func() error {
			s.c.Line("+ OK")
			return s.c.Flush()
		})
		var syntax *proto.SyntaxError
		switch {
		case errors.As(err, &syntax):
			tokens = nil
		case errors.Is(err, proto.ErrTooLong):
			s.full()
			return
		case err != nil:
			if link.IsTimeout(err) {
				s.c.Line("* BYE Disconnected for inactivity.")
				s.end("Inactivity")
				return
			}
			s.end(disconnectReason(err))
			return
		}
		tag, name := "", ""
		if len(tokens) > 0 && tokens[0].Kind == proto.Atom {
			tag = tokens[0].Text
		}
		if len(tokens) > 1 && tokens[1].Kind == proto.Atom {
			name = strings.ToUpper(tokens[1].Text)
		}
		if !validTag(tag) {
			tag, name = "*", ""
		}
		args := tokens[min(2, len(tokens)):]
		if tooLong(name, line, tokens) {
			s.full()
			return
		}
		next := true
		switch name {
		case "CAPABILITY":
			if !s.c.Secure() {
				s.plainCaps = true
			}
			s.c.Line("* CAPABILITY ", s.capability())
			s.c.Line(tag, " OK Pre-login capabilities listed, post-login capabilities have more.")
		case "NOOP":
			s.c.Line(tag, " OK NOOP completed.")
		case "ENABLE":
			s.c.Line("* ENABLED")
			s.c.Line(tag, " OK ENABLE ignored in non-authenticated state.")
		case "LOGOUT":
			s.c.Line("* BYE Logging out")
			s.c.Line(tag, " OK Logout completed.")
			s.end(s.logoutReason())
			return
		case "STARTTLS":
			next = s.starttls(tag)
		case "ID":
			s.id(tag, args)
		case "LOGIN":
			if len(args) != 2 || !isAString(args[0]) || !isAString(args[1]) {
				next = s.invalid(tag)
				break
			}
			next = s.login(tag, args[0].Text, args[1].Text)
		case "AUTHENTICATE":
			if len(args) == 0 || args[0].Kind != proto.Atom {
				next = s.invalid(tag)
				break
			}
			next = s.authenticate(tag, args)
		default:
			if strings.EqualFold(tag, "LOGIN") {
				s.c.Line(tag, " BAD First parameter in line is IMAP's command tag, not the command name. Add that before the command, like: a login user pass")
				break
			}
			next = s.invalid(tag)
		}
		if !next {
			return
		}
	}
}

// tooLong says whether a command overflows the login process's buffer: one
// token of an ID, or the whole line of anything else but SASL.
func tooLong(name, line string, tokens []proto.Token) bool {
	switch name {
	case "ID":
		for _, t := range tokens {
			if len(t.Text) >= maxInput {
				return true
			}
		}
		return false
	case "AUTHENTICATE":
		return len(line) > maxAuth
	}
	return len(line) > maxInput
}

func (s *imapLogin) full() {
	s.c.Line("* BYE Input buffer full, aborting")
	s.end("Input buffer full")
}

func validTag(t string) bool {
	return t != "" && len(t) <= 126 && !strings.ContainsAny(t, `+*%{}\]`)
}

func isAString(t proto.Token) bool { return t.Kind == proto.Atom || t.IsString() }

func (s *imapLogin) invalid(tag string) bool {
	s.bad++
	if s.bad >= maxBad {
		s.c.Line("* BYE Too many invalid IMAP commands.")
		s.end("Too many invalid commands")
		return false
	}
	s.c.Line(tag, " BAD Error in IMAP command received by server.")
	return true
}

func (s *imapLogin) capability() string {
	caps := append(make([]string, 0, len(s.set.capability)+4), s.set.capability...)
	if s.offersTLS() {
		caps = append(caps, "STARTTLS")
	}
	mechs := s.mechanisms()
	if s.secured && !slices.Contains(mechs, "PLAIN") || !s.secured && (!s.set.cleartext || s.set.ssl == "required") {
		caps = append(caps, "LOGINDISABLED")
	}
	for _, m := range mechs {
		caps = append(caps, "AUTH="+m)
	}
	return strings.Join(caps, " ")
}

func (s *imapLogin) starttls(tag string) bool {
	switch {
	case s.c.Secure():
		s.c.Line(tag, " BAD TLS is already active.")
		return true
	case s.set.ssl == "no":
		s.c.Line(tag, " BAD TLS support isn't enabled.")
		return true
	}
	s.c.Line(tag, " OK Begin TLS negotiation now.")
	return s.startTLS()
}

// id answers ID, which tells a trusted peer's client.
func (s *imapLogin) id(tag string, args []proto.Token) {
	bugs := s.srv.bugs
	if bugs.Has(bug.IDWantsAuthFirst) {
		s.c.Line(tag, " BAD Log in first.")
		return
	}
	v24 := s.srv.c.series == "2.4"
	first := !s.counted || bugs.Has(bug.IDReapplies)
	said := announced{}
	var logged strings.Builder
	refuse := func() {
		if !v24 && first {
			s.announceID(said) // what stood before stays
		}
		s.c.Line(tag, " BAD Invalid ID parameters")
	}
	pairs, ok := idPairs(args)
	for _, p := range pairs {
		if p.badKey || len(p.key) > maxIDKey {
			refuse()
			return
		}
		if bugs.Has(bug.IDRejectsUnknownKeys) && !isLoginKey(p.key, v24) {
			refuse()
			return
		}
		if first && s.believed && !p.null {
			if good := said.take(strings.ToLower(p.key), p.value, v24); !good && v24 && s.trusted {
				refuse()
				return
			}
		}
		if !v24 && first && wantsKey(s.set.idLog, p.key) {
			if logged.Len() > 0 {
				logged.WriteString(", ")
			}
			logged.WriteString(sanitize(p.key, maxIDKey) + "=")
			if p.null {
				logged.WriteString("NIL")
			} else {
				logged.WriteString(sanitize(p.value, 80))
			}
		}
	}
	if !ok {
		refuse()
		return
	}
	if first {
		s.announceID(said)
	}
	if !s.counted && len(s.set.idLog) > 0 && len(pairs) > 0 {
		s.logAs("info", "ID sent: "+logged.String())
	}
	s.counted = true
	s.c.Line("* ID ", s.set.idSend)
	if v24 && s.trusted {
		s.c.Line(tag, " OK Trusted ID completed.")
		return
	}
	s.c.Line(tag, " OK ID completed.")
}

func (s *imapLogin) announceID(a announced) {
	bugs := s.srv.bugs
	if bugs.Has(bug.IDDropsSession) {
		a.hasSession = false
	}
	if bugs.Has(bug.IDFamilySwapped) && a.ip.IsValid() {
		a.ip = swapFamily(a.ip)
	}
	s.announce(a)
}

// swapFamily is what a server does that mistakes one family for the other: an
// IPv4 address as 6to4 writes it, an IPv6 address by its last four octets.
func swapFamily(a netip.Addr) netip.Addr {
	if a.Is4() {
		b := a.As4()
		return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x02, 2: b[0], 3: b[1], 4: b[2], 5: b[3], 15: 1})
	}
	b := a.As16()
	return netip.AddrFrom4([4]byte(b[12:]))
}

// idPair is one parameter of an ID command.
type idPair struct {
	key, value string
	null       bool // the value is NIL
	badKey     bool // no string stood where one must
}

// idPairs reads the parameters; ok is false when the list as a whole is wrong.
// Pairs before a mistake are returned.
func idPairs(ts []proto.Token) (pairs []idPair, ok bool) {
	isNIL := func(t proto.Token) bool { return t.Kind == proto.Atom && strings.EqualFold(t.Text, "NIL") }
	if len(ts) == 1 && isNIL(ts[0]) {
		return nil, true
	}
	if len(ts) < 2 || ts[0].Kind != proto.Open || ts[len(ts)-1].Kind != proto.Close {
		return nil, false
	}
	ts = ts[1 : len(ts)-1]
	for i := 0; i < len(ts); i += 2 {
		if !ts[i].IsString() {
			return append(pairs, idPair{badKey: true}), true
		}
		p := idPair{key: ts[i].Text}
		if i+1 == len(ts) {
			// A key without a value: the key is read and the list ends.
			if len(p.key) > maxIDKey {
				p.badKey = true
				return append(pairs, p), true
			}
			return pairs, true
		}
		switch v := ts[i+1]; {
		case isNIL(v):
			p.null = true
		case v.IsString():
			p.value = v.Text
		default:
			p.badKey = true
		}
		pairs = append(pairs, p)
	}
	return pairs, true
}

func wantsKey(log []string, key string) bool {
	if len(log) == 1 && log[0] == "*" {
		return true
	}
	for _, k := range log {
		if strings.EqualFold(k, key) {
			return true
		}
	}
	return false
}

// isLoginKey says whether the login process reads an ID parameter itself.
func isLoginKey(key string, v24 bool) bool {
	switch key = strings.ToLower(key); key {
	case "x-originating-ip", "x-originating-port", "x-connected-ip", "x-connected-port", "x-proxy-ttl", "x-session-id", "x-session-ext-id":
		return true
	case "x-connected-name", "x-client-transport", "x-multiplex":
		return v24
	}
	return strings.HasPrefix(key, "x-forward-")
}

// take reads one parameter, by its lower-case name. It says whether its value
// is one.
func (a *announced) take(key, value string, v24 bool) bool {
	switch key {
	case "x-originating-ip":
		ip, ok := parseIP(value)
		if ok {
			a.ip = ip
		}
		return ok
	case "x-originating-port":
		port, ok := parsePort(value)
		if ok {
			a.port = port
		}
		return ok
	case "x-connected-ip":
		ip, ok := parseIP(value)
		if ok {
			a.lip = ip
		}
		return ok
	case "x-connected-port":
		port, ok := parsePort(value)
		if ok {
			a.lport = port
		}
		return ok
	case "x-proxy-ttl":
		return isNumber(value) && strings.Trim(value, "0") != ""
	case "x-session-id", "x-session-ext-id":
		if len(value) > maxSessionID || v24 && value == "" {
			return false
		}
		a.session, a.hasSession = value, true
	case "x-connected-name":
		return isDNSName(value)
	case "x-multiplex":
		return value == "0" || strings.HasPrefix(value, "0 ")
	case "x-forward-":
		return false
	}
	return true
}

func isDNSName(s string) bool {
	if s == "" || len(s) >= 256 || strings.Contains(s, "..") {
		return false
	}
	for i := 0; i < len(s); i++ {
		c := s[i]
		if (c < '0' || c > '9') && (c < 'A' || c > 'Z') && (c < 'a' || c > 'z') && strings.IndexByte(".-_:", c) < 0 {
			return false
		}
	}
	return true
}

func (s *imapLogin) login(tag, user, password string) bool {
	if out, ok := s.mayUsePassword(); !ok {
		s.exposed()
		if s.user == "" {
			s.user = user
		}
		return s.answer(tag, out, s.cleartextWords())
	}
	if out, text, ok := s.begin("PLAIN"); !ok {
		return s.answer(tag, out, text)
	}
	out, text := s.verify("PLAIN", "", user, password)
	return s.answer(tag, out, text)
}

func (s *imapLogin) authenticate(tag string, args []proto.Token) bool {
	initial, has := "", len(args) > 1
	if has {
		initial = args[1].Text
	}
	out, text := s.sasl(args[0].Text, initial, has, func(challenge string) (string, error) {
		s.c.Line("+ ", challenge)
		line, err := s.c.ReadLine(maxAuth)
		if err == nil && strings.IndexByte(line, 0) >= 0 {
			return "", io.ErrUnexpectedEOF
		}
		return line, err
	})
	if out == outCleartext && s.srv.c.series == "2.4" {
		s.exposed()
	}
	return s.answer(tag, out, text)
}

// exposed warns of a password that came in clear.
func (s *imapLogin) exposed() {
	word := "Plaintext"
	if s.srv.c.series == "2.4" {
		word = "cleartext"
	}
	s.c.Line("* BAD [ALERT] ", word, " authentication not allowed without SSL/TLS, but your client did it anyway. If anyone was listening, the password was exposed.")
}

// answer answers a try to sign in and says whether the session goes on here.
func (s *imapLogin) answer(tag string, out outcome, text string) bool {
	switch out {
	case outGone:
		return false
	case outSilentGone:
		s.end("Connection closed")
		return false
	case outSignedIn:
		s.srv.imap.serve(s, tag)
		return false
	case outFailed:
		s.c.Line(tag, " NO [AUTHENTICATIONFAILED] ", text)
	case outTemporary:
		s.c.Line(tag, " NO [UNAVAILABLE] ", text)
	case outTLSNeeded, outCleartext:
		s.c.Line(tag, " NO [PRIVACYREQUIRED] ", text)
	case outMechanism:
		s.c.Line(tag, " NO [ALERT] ", text)
	case outBase64, outAborted:
		s.c.Line(tag, " BAD ", text)
	case outLimit:
		s.c.Line(tag, " NO [LIMIT] ", text)
		s.tooMany(text)
		return false
	}
	return true
}
