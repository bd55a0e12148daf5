package stalwart

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/source/mailbox"
	"github.com/mailproof/mailproof/harness/reference/stalwart/bug"
)

// pop3Session is a session of POP3.
type pop3Session struct {
	*session
	user     string
	hasUser  bool
	failures int
	messages []mailbox.Message
	deleted  []bool
}

// pop3Commands are the commands and how many arguments they take, at least and
// at most.
var pop3Commands = map[string][2]int{
	"USER": {1, 1}, "PASS": {1, 1}, "QUIT": {0, 0}, "STAT": {0, 0}, "LIST": {0, 1}, "RETR": {1, 1}, "DELE": {1, 1}, "NOOP": {0, 0},
	"RSET": {0, 0}, "TOP": {2, 2}, "UIDL": {0, 1}, "APOP": {2, 2}, "CAPA": {0, 0}, "STLS": {0, 0}, "UTF8": {0, 0}, "AUTH": {1, 2},
}

func (in *session) pop3() {
	s := &pop3Session{session: in}
	s.ok("Stalwart POP3 at your service.")
	for {
		if s.who != nil {
			in.c.SetTimeout(in.core.imapSignedIn)
		} else {
			in.c.SetTimeout(in.core.imapAnonymous)
		}
		line, err := in.c.ReadLine(link.MaxLine)
		switch {
		case errors.Is(err, link.ErrTooLong):
			s.err("Argument too long")
			return
		case err != nil:
			switch stopping, late := in.gone(err); {
			case stopping:
				in.c.Line("* BYE Server shutting down.")
			case late:
				in.log(evTimeout)
				in.c.Line("-ERR Connection timed out.")
			}
			return
		}
		f := strings.FieldsFunc(line, func(r rune) bool { return r == ' ' || r == '\t' || r == '\r' })
		if len(f) == 0 {
			continue
		}
		name := strings.ToUpper(f[0])
		args := f[1:]
		if name == "PASS" { // a password may hold blanks
			_, rest, _ := strings.Cut(strings.TrimLeft(line, " \t"), " ")
			args = []string{rest}
		}
		n, known := pop3Commands[name]
		bad := ""
		switch {
		case !known:
			bad = "Invalid command"
		case len(args) < n[0]:
			bad = "Missing arguments"
		case len(args) > n[1]:
			bad = "Too many arguments"
		}
		if bad != "" {
			if s.who == nil && in.scanned("Invalid POP3 command") {
				return
			}
			s.err(bad)
			continue
		}
		if !s.do(name, args) {
			return
		}
	}
}

func (s *pop3Session) ok(text string) { s.c.Line("+OK ", text) }

func (s *pop3Session) err(text string) {
	s.log(evPOP3Error, field{"details", text})
	s.c.Line("-ERR ", text)
}

// do answers a command and says whether the session goes on.
func (s *pop3Session) do(name string, args []string) bool {
	began := s.srv.now()
	took := func() field { return field{"elapsed", s.srv.now().Sub(began)} }
	plain := s.isTLS || s.core.imapPlain
	switch name {
	case "USER", "PASS", "APOP", "AUTH":
		secret := name != "AUTH" || strings.EqualFold(args[0], "PLAIN")
		switch {
		case s.who != nil:
			s.err("Already authenticated.")
			return true
		case secret && !plain:
			s.err("Cannot authenticate over plain-text.")
			return true
		}
	case "LIST", "RETR", "DELE", "TOP", "UIDL", "UTF8", "STAT", "RSET":
		if s.who == nil {
			s.err("Not authenticated.")
			return true
		}
	}
	switch name {
	case "CAPA":
		s.log(evPOP3Caps, field{"tls", s.isTLS}, field{"strict", !s.core.imapPlain}, took())
		s.capa(plain)
	case "NOOP":
		s.log(evPOP3Noop, took())
		s.ok("NOOP")
	case "USER":
		s.user, s.hasUser = args[0], true
		s.ok(args[0] + " is a valid mailbox")
	case "PASS":
		if !s.hasUser {
			s.err("Username was not provided.")
			break
		}
		s.hasUser = false
		return s.signIn(s.user, args[0])
	case "APOP":
		s.err("APOP not supported.")
	case "AUTH":
		return s.auth(args)
	case "STLS":
		if s.isTLS {
			s.err("Already in TLS mode.")
			break
		}
		s.log(evPOP3StartTLS, took())
		s.ok("Begin TLS negotiation now")
		return s.handshake(true)
	case "QUIT":
		s.quit(took)
		return false
	case "UTF8":
		s.ok("UTF8 enabled")
	case "STAT":
		n, size := len(s.messages), 0 // those that were deleted count until the end
		for _, m := range s.messages {
			size += len(m.Octets)
		}
		s.log(evPOP3Stat, field{"total", n}, field{"size", size}, took())
		s.ok(fmt.Sprintf("%d %d", n, size))
	case "LIST":
		s.list(args, " messages", func(i int) string { return strconv.Itoa(len(s.messages[i].Octets)) })
	case "UIDL":
		s.list(args, " messages", func(i int) string { return fmt.Sprintf("%d%d", mailbox.UIDValidity, s.messages[i].UID) })
	case "RETR":
		s.retrieve(args[0], 0)
	case "TOP":
		n, err := strconv.Atoi(args[1])
		if err != nil || n < 0 {
			s.err("Invalid digit")
			break
		}
		s.retrieve(args[0], n)
	case "DELE":
		n, err := strconv.ParseUint(args[0], 10, 31)
		switch {
		case err != nil:
			s.err("Invalid digit")
		case n == 0 || int(n) > len(s.messages):
			s.c.Line("-ERR no such message")
		case s.deleted[n-1]:
			s.c.Line("-ERR message ", args[0], " already deleted")
		default:
			s.deleted[n-1] = true
			s.ok("message " + args[0] + " deleted")
		}
	case "RSET":
		n := 0
		for i := range s.deleted {
			if s.deleted[i] {
				s.deleted[i] = false
				n++
			}
		}
		s.ok(fmt.Sprintf("%d messages undeleted", n))
	}
	return true
}

func (s *pop3Session) capa(plain bool) {
	s.ok("Capability list follows")
	mechs := "OAUTHBEARER XOAUTH2"
	if plain {
		s.c.Line("USER")
		mechs = "PLAIN " + mechs
	}
	s.c.Line("SASL ", mechs)
	if !s.isTLS {
		s.c.Line("STLS")
	}
	for _, c := range []string{"TOP", "RESP-CODES", "PIPELINING", "EXPIRE NEVER", "UIDL", "UTF8", "IMPLEMENTATION Stalwart Server", "."} {
		s.c.Line(c)
	}
}

func (s *pop3Session) auth(args []string) bool {
	mech := strings.ToUpper(args[0])
	if mech != "PLAIN" && mech != "OAUTHBEARER" && mech != "XOAUTH2" {
		s.log(evAuthError, field{"details", "Authentication mechanism not supported."})
		s.c.Line("-ERR Authentication mechanism not supported.")
		return true
	}
	if len(args) == 1 {
		s.c.Line("+")
		line, err := s.c.ReadLine(16 << 10)
		if err != nil {
			return false
		}
		args = append(args, strings.TrimSpace(line))
	}
	b, err := base64.StdEncoding.DecodeString(args[1])
	user, secret, ok := plainSASL(b)
	switch {
	case mech != "PLAIN":
		s.logFailed(wrongSecret, "", "")
		s.c.Line("-ERR Authentication failed")
		return true
	case err != nil || !ok:
		s.log(evAuthError, field{"details", "Invalid SASL challenge"})
		s.c.Line("-ERR Invalid SASL challenge")
		return true
	}
	return s.signIn(user, secret)
}

func (s *pop3Session) signIn(user, secret string) bool {
	who, v := s.verify(user, secret)
	switch v {
	case wrongSecret:
		if s.failures >= s.core.imapMaxFailures {
			s.log(evAuthTooMany, s.causedBy(user))
			s.c.Line("-ERR Too many authentication attempts")
			return false
		}
		s.failures++
		s.logFailed(v, user, "")
		if s.srv.bugs.Has(bug.ClosesAfterFailedLogin) {
			return false
		}
		s.c.Line("-ERR Authentication failed")
		return true
	case banned, unauthorised:
		s.logFailed(v, user, "")
		return false
	}
	s.who = who
	if u := s.srv.store.User(who.name); u != nil {
		s.messages = u.Messages(mailbox.Inbox)
	}
	s.deleted = make([]bool, len(s.messages))
	s.ok("Authentication successful")
	return true
}

func (s *pop3Session) quit(took func() field) {
	if s.who == nil {
		s.ok("Stalwart POP3 bids you farewell.")
		return
	}
	var uids []uint32
	documents := "["
	for i, d := range s.deleted {
		if d {
			if len(uids) > 0 {
				documents += ", "
			}
			documents += strconv.Itoa(int(s.messages[i].UID))
			uids = append(uids, s.messages[i].UID)
		}
	}
	if len(uids) > 0 {
		if u := s.srv.store.User(s.who.name); u != nil {
			u.Remove(mailbox.Inbox, uids...)
		}
		s.ok(fmt.Sprintf("Stalwart POP3 bids you farewell (%d messages deleted).", len(uids)))
	} else {
		s.ok("Stalwart POP3 bids you farewell (no messages deleted).")
	}
	s.log(evPOP3Quit, field{"documentId", bare(documents + "]")}, took())
}

func (s *pop3Session) list(args []string, title string, value func(i int) string) {
	if len(args) > 0 {
		if i, ok := s.number(args[0]); ok {
			s.ok(args[0] + " " + value(i))
		}
		return
	}
	s.ok(strconv.Itoa(len(s.messages)) + title)
	for i := range s.messages {
		s.c.Line(strconv.Itoa(i+1), " ", value(i))
	}
	s.c.Line(".")
}

// number reads a message number and answers it unless it is one.
func (s *pop3Session) number(v string) (int, bool) {
	n, err := strconv.ParseUint(v, 10, 31)
	switch {
	case err != nil:
		s.err("Invalid digit")
	case n == 0 || int(n) > len(s.messages):
		s.err("No such message.")
	default:
		return int(n) - 1, true
	}
	return 0, false
}

// retrieve sends a message, or its first lines; with 0 lines, all of it.
func (s *pop3Session) retrieve(number string, lines int) {
	i, ok := s.number(number)
	if !ok {
		return
	}
	text := s.messages[i].Octets
	s.ok(strconv.Itoa(len(text)) + " octets")
	for n := 0; len(text) > 0 && (lines == 0 || n < lines); n++ {
		line := text
		if j := bytes.IndexByte(text, '\n'); j >= 0 {
			line, text = text[:j], text[j+1:]
		} else {
			text = nil
		}
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(line) > 0 && line[0] == '.' {
			s.c.Write([]byte("."))
		}
		s.c.Write(line)
		s.c.Line()
	}
	s.c.Line(".")
}
