package dovecot

import (
	"encoding/base64"
	"strings"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/link"
)

// pop3Login is a session of pop3-login.
type pop3Login struct {
	*session
	userGiven string
	hasUser   bool
}

const pop3Caps = "CAPA\r\nTOP\r\nUIDL\r\nRESP-CODES\r\nPIPELINING\r\nAUTH-RESP-CODE"

func (s *pop3Login) serve() {
	if s.offersXCLIENT() {
		s.c.Line("+OK [XCLIENT] ", s.set.greeting)
	} else {
		s.c.Line("+OK ", s.set.greeting)
	}
	for {
		line, err := s.c.ReadLine(link.MaxLine)
		switch {
		case err == link.ErrTooLong, err == nil && len(line) > maxInput && !strings.EqualFold(line[:4], "AUTH"):
			s.c.Line("-ERR Input buffer full, aborting")
			s.end("Input buffer full")
			return
		case link.IsTimeout(err):
			s.c.Line("-ERR Disconnected for inactivity.")
			s.end("Inactivity")
			return
		case err != nil:
			s.end(disconnectReason(err))
			return
		}
		name, args, _ := strings.Cut(line, " ")
		if len(name) > 8 { // Dovecot reads no more of a name
			name, args = name[:8], name[8:]+args
		}
		next := true
		switch strings.ToUpper(name) {
		case "CAPA":
			s.capa()
		case "USER":
			next = s.user0(args)
		case "PASS":
			next = s.pass(args)
		case "AUTH":
			next = s.auth(args)
		case "APOP":
			s.c.Line("-ERR APOP not enabled.")
		case "STLS":
			next = s.stls()
		case "QUIT":
			s.c.Line("+OK Logging out")
			s.end(s.logoutReason())
			return
		case "XCLIENT":
			next = s.xclient(args)
		case "XOIP":
			next = s.xclient("ADDR=" + args)
		default:
			s.c.Line("-ERR Unknown command.")
			if s.bad++; s.bad >= maxBad {
				s.c.Line("-ERR Too many invalid bad commands.")
				s.end("Disconnected: Too many bad commands")
				return
			}
			continue
		}
		if !next {
			return
		}
		s.bad = 0
	}
}

func (s *pop3Login) capa() {
	s.c.Line("+OK")
	s.c.Line(pop3Caps)
	if s.offersTLS() {
		s.c.Line("STLS")
	}
	if s.secured || s.set.cleartext {
		s.c.Line("USER")
	}
	s.c.Line(strings.TrimSpace("SASL " + strings.Join(s.mechanisms(), " ")))
	s.c.Line(".")
}

func (s *pop3Login) user0(name string) bool {
	if out, ok := s.mayUsePassword(); !ok {
		if s.user == "" {
			s.user = name
		}
		return s.answer(out, s.cleartextWords())
	}
	s.userGiven, s.hasUser = name, true
	s.c.Line("+OK")
	return true
}

func (s *pop3Login) pass(password string) bool {
	if !s.hasUser {
		if out, ok := s.mayUsePassword(); !ok {
			return s.answer(out, s.cleartextWords())
		}
		s.c.Line("-ERR No username given.")
		return true
	}
	s.hasUser = false
	if out, text, ok := s.begin("PLAIN"); !ok {
		return s.answer(out, text)
	}
	out, text := s.verify("PLAIN", "", s.userGiven, password)
	return s.answer(out, text)
}

func (s *pop3Login) auth(args string) bool {
	mech, initial, has := strings.Cut(args, " ")
	if mech == "" {
		s.c.Line("+OK")
		for _, m := range s.mechanisms() {
			s.c.Line(m)
		}
		s.c.Line(".")
		return true
	}
	has = has && initial != ""
	out, text := s.sasl(mech, initial, has, func(challenge string) (string, error) {
		s.c.Line("+ ", challenge)
		return s.c.ReadLine(maxAuth)
	})
	return s.answer(out, text)
}

func (s *pop3Login) stls() bool {
	switch {
	case s.c.Secure():
		s.c.Line("-ERR TLS is already active.")
		return true
	case s.set.ssl == "no":
		s.c.Line("-ERR TLS support isn't enabled.")
		return true
	}
	s.c.Line("+OK Begin TLS negotiation now.")
	return s.startTLS()
}

// xclient answers XCLIENT, as often as it is sent: what is good of its
// arguments counts, whatever the others are.
func (s *pop3Login) xclient(args string) bool {
	if !s.trusted {
		if s.believed {
			said, _ := s.xclientArgs(args)
			s.announce(said)
		}
		s.c.Line("+OK You are not from trusted IP - ignoring")
		return true
	}
	said, good := s.xclientArgs(args)
	if !s.srv.bugs.Has(bug.POP3XCLIENTIgnored) {
		s.announce(said)
	}
	if s.spoiled(good) {
		if s.srv.bugs.Has(bug.XCLIENTBadAddressCloses) {
			return false
		}
		s.c.Line("-ERR Invalid parameters")
		return true
	}
	s.c.Line("+OK Updated")
	return true
}

// xclientArgs reads the arguments of POP3's and ManageSieve's XCLIENT; good
// says that all of them were.
func (in *session) xclientArgs(args string) (a announced, good bool) {
	v24 := in.srv.c.series == "2.4"
	good = true
	for _, word := range strings.Split(args, " ") {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			continue
		}
		switch strings.ToUpper(name) {
		case "ADDR":
			if ip, ok := parseIP(value); ok {
				a.ip = ip
			} else {
				good = false
			}
		case "PORT":
			if port, ok := parsePort(value); ok {
				a.port = port
			} else {
				good = false
			}
		case "SESSION":
			if len(value) <= maxSessionID {
				a.session, a.hasSession = value, true
			}
		case "TTL":
			good = good && isNumber(value)
		case "FORWARD":
			if _, err := base64.StdEncoding.DecodeString(value); err != nil {
				good = false
			}
		case "DESTNAME":
			if v24 && !isDNSName(value) {
				good = false
			}
		}
	}
	return a, good
}

func (s *pop3Login) answer(out outcome, text string) bool {
	switch out {
	case outGone:
		return false
	case outSilentGone:
		s.end("Connection closed")
		return false
	case outSignedIn:
		s.mail()
		return false
	case outTemporary:
		s.c.Line("-ERR [SYS/TEMP] ", text)
	case outLimit:
		if s.srv.c.series == "2.4" {
			s.c.Line("-ERR ", text)
		} else {
			s.c.Line("-ERR [SYS/TEMP] ", text)
		}
		s.tooMany(text)
		return false
	case outAborted:
		s.c.Line("-ERR ", text)
	default:
		s.c.Line("-ERR [AUTH] ", text)
	}
	return true
}
