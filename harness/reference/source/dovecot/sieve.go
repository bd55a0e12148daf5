package dovecot

import (
	"errors"
	"strings"

	"github.com/mailproof/mailproof/harness/proto"
	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/link"
)

// sieveLogin is a session of managesieve-login.
type sieveLogin struct{ *session }

var sieveLimits = proto.CommandLimits{Line: link.MaxLine, Literal: maxAuth, Total: link.MaxLine}

func (s *sieveLogin) serve() {
	s.capabilities()
	s.ok(s.set.greeting)
	for {
		tokens, _, err := proto.ReadCommand(s.c.Reader(), sieveLimits, nil)
		var syntax *proto.SyntaxError
		switch {
		case errors.As(err, &syntax):
			tokens = nil
		case errors.Is(err, proto.ErrTooLong):
			s.bye("Input buffer full, aborting")
			s.end("Input buffer full")
			return
		case link.IsTimeout(err):
			s.bye("Disconnected for inactivity.")
			s.end("Inactivity")
			return
		case err != nil:
			s.end(disconnectReason(err))
			return
		}
		name := ""
		if len(tokens) > 0 && tokens[0].Kind == proto.Atom {
			name = strings.ToUpper(tokens[0].Text)
			tokens = tokens[1:]
		}
		next := true
		switch {
		case name == "CAPABILITY" && len(tokens) == 0:
			s.capabilities()
			s.ok("Capability completed.")
		case name == "STARTTLS" && len(tokens) == 0:
			next = s.starttls()
		case name == "NOOP":
			next = s.noop(tokens)
		case name == "LOGOUT" && len(tokens) == 0:
			s.ok("Logout completed.")
			s.end(s.logoutReason())
			return
		case name == "AUTHENTICATE":
			next = s.authenticate(tokens)
		case name == "XCLIENT":
			next = s.xclient(tokens)
		default:
			next = s.invalid()
		}
		if !next {
			return
		}
	}
}

func (s *sieveLogin) ok(text string)  { s.c.Line("OK ", proto.Quote(text)) }
func (s *sieveLogin) no(text string)  { s.c.Line("NO ", proto.Quote(text)) }
func (s *sieveLogin) bye(text string) { s.c.Line("BYE ", proto.Quote(text)) }

func (s *sieveLogin) implementation() string {
	if s.srv.c.series == "2.4" {
		return "Dovecot Pigeonhole"
	}
	return "Dovecot (Debian) Pigeonhole"
}

func (s *sieveLogin) capabilities() {
	s.c.Line(`"IMPLEMENTATION" "`, s.implementation(), `"`)
	s.c.Line(`"SIEVE" "`, s.set.sieve, `"`)
	s.c.Line(`"NOTIFY" "mailto"`)
	s.c.Line(`"SASL" "`, strings.Join(s.mechanisms(), " "), `"`)
	if s.set.ssl != "no" && !s.c.Secure() {
		s.c.Line(`"STARTTLS"`)
	}
	s.c.Line(`"VERSION" "1.0"`)
	if s.offersXCLIENT() {
		s.c.Line(`"XCLIENT"`)
	}
}

func (s *sieveLogin) invalid() bool {
	if s.bad++; s.bad >= maxBad {
		s.bye("Too many invalid MANAGESIEVE commands.")
		s.end("Too many invalid commands.")
		return false
	}
	s.no("Error in MANAGESIEVE command received by server.")
	return true
}

func (s *sieveLogin) starttls() bool {
	switch {
	case s.c.Secure():
		s.no("TLS is already active.")
		return true
	case s.set.ssl == "no":
		s.no("TLS support isn't enabled.")
		return true
	}
	s.ok("Begin TLS negotiation now.")
	if !s.startTLS() {
		return false
	}
	s.capabilities()
	s.ok("TLS negotiation successful.")
	return true
}

func (s *sieveLogin) noop(args []proto.Token) bool {
	switch {
	case len(args) == 0:
		s.ok("NOOP Completed")
	case len(args) > 1:
		return s.invalid()
	case !args[0].IsString():
		s.no("Invalid echo tag.")
	default:
		s.c.Line("OK (TAG ", proto.Quote(args[0].Text), `) "Done"`)
	}
	return true
}

// xclient answers XCLIENT. Its arguments are atoms; those before the first
// that is not count.
func (s *sieveLogin) xclient(args []proto.Token) bool {
	words := make([]string, 0, len(args))
	atoms := true
	for _, a := range args {
		if a.Kind != proto.Atom || strings.ContainsAny(a.Text, `{\`) {
			atoms = false
			break
		}
		words = append(words, a.Text)
	}
	said, good := s.xclientArgs(strings.Join(words, " "))
	s.announce(said)
	if !s.trusted {
		s.no("You are not from trusted IP")
		return true
	}
	if s.spoiled(good && atoms) {
		if s.srv.bugs.Has(bug.XCLIENTBadAddressCloses) {
			return false
		}
		return s.invalid()
	}
	s.ok("Updated")
	return true
}

func (s *sieveLogin) authenticate(args []proto.Token) bool {
	if len(args) == 0 || len(args) > 2 || !args[0].IsString() || args[0].Text == "" || len(args) == 2 && !args[1].IsString() {
		if len(args) > 0 && args[0].IsString() {
			s.no("Invalid AUTHENTICATE initial response.")
			return true
		}
		return s.invalid()
	}
	initial, has := "", len(args) == 2
	if has {
		initial = args[1].Text
	}
	out, text := s.sasl(args[0].Text, initial, has, func(challenge string) (string, error) {
		s.c.Line(proto.Quote(challenge))
		ts, _, err := proto.ReadCommand(s.c.Reader(), sieveLimits, nil)
		if err != nil {
			return "", err
		}
		if len(ts) != 1 || !ts[0].IsString() {
			return "*", nil
		}
		return ts[0].Text, nil
	})
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
		s.c.Line("NO (TRYLATER) ", proto.Quote(text))
	case outTLSNeeded:
		s.c.Line("NO (ENCRYPT-NEEDED) ", proto.Quote(text))
	case outLimit:
		s.no(text)
		s.tooMany(text)
		return false
	default:
		s.no(text)
	}
	return true
}
