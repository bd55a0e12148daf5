package stalwart

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/mailproof/mailproof/harness/proto"
	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/source/mailbox"
	"github.com/mailproof/mailproof/harness/reference/stalwart/bug"
)

// sieveExtensions is what ManageSieve and JMAP advertise.
const sieveExtensions = "body comparator-elbonia comparator-i;ascii-casemap comparator-i;ascii-numeric comparator-i;octet convert copy date duplicate editheader " +
	"enclose encoded-character enotify envelope envelope-deliverby envelope-dsn environment ereject extlists extracttext fcc fileinto foreverypart ihave " +
	"imap4flags imapsieve include index mailbox mailboxid mboxmetadata mime redirect-deliverby redirect-dsn regex reject relational replace servermetadata " +
	"spamtest spamtestplus special-use subaddress vacation vacation-seconds variables virustest"

var sieveCommands = strings.Fields("AUTHENTICATE STARTTLS LOGOUT CAPABILITY HAVESPACE PUTSCRIPT LISTSCRIPTS SETACTIVE GETSCRIPT DELETESCRIPT RENAMESCRIPT CHECKSCRIPT NOOP UNAUTHENTICATE")

var sieveLimits = proto.CommandLimits{Line: link.MaxLine, Literal: mailbox.MaxScript, Total: mailbox.MaxScript + link.MaxLine}

// sieveSession is a session of ManageSieve.
type sieveSession struct {
	*session
	failures int
}

func (in *session) sieve() {
	s := &sieveSession{session: in}
	s.capabilities("Stalwart ManageSieve at your service.")
	for {
		if s.who != nil {
			in.c.SetTimeout(in.core.imapSignedIn)
		} else {
			in.c.SetTimeout(in.core.imapAnonymous)
		}
		name, args, err := s.command()
		var bad *imapError
		switch {
		case errors.As(err, &bad):
			if s.who == nil && in.scanned("Invalid ManageSieve command") {
				return
			}
			in.log(evIMAPError, field{"details", bad.details}, field{"type", "BAD"}, field{"code", "PARSE"})
			in.c.Line("BAD (PARSE) ", proto.Quote(bad.details))
			in.c.Reader().Discard(in.c.Buffered())
			continue
		case err != nil:
			switch stopping, late := in.gone(err); {
			case stopping:
				in.c.Line(`BYE "Server shutting down."`)
			case late:
				in.log(evTimeout)
				in.c.Line(`BYE "Connection timed out."`)
			}
			return
		}
		if !s.do(name, args) {
			return
		}
	}
}

func (s *sieveSession) ok(text string) {
	if text == "" {
		s.c.Line("OK")
		return
	}
	s.c.Line("OK ", proto.Quote(text))
}

func (s *sieveSession) no(code, text string) {
	fields := []field{{"details", text}}
	if code != "" {
		fields = []field{{"code", code}, {"details", text}}
		code = "(" + code + ") "
	}
	s.log(evSieveError, fields...)
	s.c.Line("NO ", code, proto.Quote(text))
}

func (s *sieveSession) capabilities(greeting string) {
	s.log(evSieveCaps, field{"tls", s.isTLS}, field{"strict", !s.core.imapPlain}, field{"elapsed", 0 * grace})
	s.c.Line(`"IMPLEMENTATION" "Stalwart ManageSieve"`)
	s.c.Line(`"VERSION" "1.0"`)
	mechs := "PLAIN OAUTHBEARER XOAUTH2"
	if !s.isTLS {
		s.c.Line(`"STARTTLS"`)
		if !s.core.imapPlain {
			mechs = "OAUTHBEARER XOAUTH2"
		}
	}
	s.c.Line(`"SASL" "`, mechs, `"`)
	s.c.Line(`"SIEVE" "`, sieveExtensions, `"`)
	s.c.Line(`"NOTIFY" "mailto"`)
	s.c.Line(`"MAXREDIRECTS" "1"`)
	s.ok(greeting)
}

// command reads one command. What can be said of it is an *imapError.
func (s *sieveSession) command() (name string, args []string, err error) {
	bad := func(format string, a ...any) error { return &imapError{details: fmt.Sprintf(format, a...)} }
	line, err := s.c.ReadLine(link.MaxLine)
	for err == nil && strings.TrimSpace(line) == "" {
		line, err = s.c.ReadLine(link.MaxLine)
	}
	if errors.Is(err, link.ErrTooLong) {
		return "", nil, bad("Argument exceeds maximum length of 4096 bytes.")
	}
	if err != nil {
		return "", nil, err
	}
	line = strings.TrimLeft(line, " \t\r")
	word, rest := line, ""
	if i := strings.IndexAny(line, " \t"); i >= 0 {
		word, rest = line[:i], line[i+1:]
	}
	if i := strings.IndexFunc(word, func(r rune) bool { return r > 127 || !isName(byte(r)) || r == '_' }); i >= 0 {
		return "", nil, bad("Invalid character %s in command name.", quoteRustByte(word[i]))
	}
	if len(word) > 15 {
		return "", nil, bad("Command exceeds maximum length of 15 characters.")
	}
	name = strings.ToUpper(word)
	if !slices.Contains(sieveCommands, name) {
		return "", nil, bad("Unrecognized command '%s'.", name)
	}
	src := bufio.NewReader(strings.NewReader(rest + "\r\n"))
	if strings.HasSuffix(rest, "}") {
		src = bufio.NewReader(io.MultiReader(strings.NewReader(rest+"\r\n"), s.c.Reader()))
	}
	tokens, _, err := readTokens(src, s.c, sieveLimits, func() string { return `OK "Ready for literal."` })
	var syntax *proto.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return "", nil, bad("Unterminated quoted argument.")
	case errors.Is(err, proto.ErrTooLong):
		return "", nil, bad("Argument exceeds maximum length of 4096 bytes.")
	case err != nil:
		return "", nil, err
	}
	for _, t := range tokens {
		args = append(args, t.Text)
	}
	return name, args, nil
}

// do answers a command and says whether the session goes on.
func (s *sieveSession) do(name string, args []string) bool {
	began := s.srv.now()
	took := func() field { return field{"elapsed", s.srv.now().Sub(began)} }
	switch name {
	case "CAPABILITY":
		s.capabilities("")
		return true
	case "LOGOUT":
		s.log(evSieveLogout, took())
		s.ok("Stalwart ManageSieve bids you farewell.")
		return false
	case "NOOP":
		if len(args) > 0 {
			s.c.Line("OK (TAG ", proto.Quote(args[0]), `) "Done"`)
		} else {
			s.ok("Done")
		}
		return true
	case "AUTHENTICATE":
		switch {
		case s.who != nil:
			s.no("", "Already authenticated.")
		case !s.isTLS && !s.core.imapPlain:
			s.no("ENCRYPT-NEEDED", "Cannot authenticate over plain-text.")
		default:
			return s.authenticate(args)
		}
		return true
	case "STARTTLS":
		switch {
		case s.isTLS:
			s.no("", "Already in TLS mode.")
			return true
		case !s.listener.tls:
			s.no("", "TLS is not available.")
			return true
		}
		s.log(evSieveStartTLS, took())
		s.ok("Begin TLS negotiation now")
		if !s.handshake(true) {
			return false
		}
		s.capabilities("Stalwart ManageSieve at your service.")
		return true
	}
	if s.who == nil {
		s.no("", "Not authenticated.")
		return true
	}
	u := s.srv.store.User(s.who.name)
	if u == nil {
		s.no("", "The account has no scripts.")
		return true
	}
	s.scripts(u, name, args, took)
	return true
}

func (s *sieveSession) scripts(u *mailbox.User, name string, args []string, took func() field) {
	need := map[string]int{"GETSCRIPT": 1, "PUTSCRIPT": 2, "CHECKSCRIPT": 1, "SETACTIVE": 1, "DELETESCRIPT": 1, "HAVESPACE": 2, "RENAMESCRIPT": 2}[name]
	if len(args) < need {
		s.no("", "Expected script name as a parameter.")
		return
	}
	missing := func() { s.no("NONEXISTENT", "Script not found") }
	switch name {
	case "LISTSCRIPTS":
		names, active := u.Scripts()
		for _, n := range names {
			if n == active {
				s.c.Line(proto.Quote(n), " ACTIVE")
			} else {
				s.c.Line(proto.Quote(n))
			}
		}
		s.log(evSieveList, field{"total", len(names)}, took())
		s.ok("")
	case "GETSCRIPT":
		text, found := u.Script(args[0])
		if !found {
			missing()
			return
		}
		s.c.Line("{", strconv.Itoa(len(text)), "}")
		s.c.Write(text)
		s.c.Line()
		s.ok("")
	case "PUTSCRIPT":
		if strings.TrimSpace(args[1]) == "" {
			s.no("", "Script is empty.")
			return
		}
		if !u.PutScript(args[0], []byte(args[1])) {
			s.no("QUOTA/MAXSCRIPTS", "Too many scripts.")
			return
		}
		s.ok("Success.")
	case "CHECKSCRIPT":
		s.ok("Script is valid.")
	case "HAVESPACE":
		s.ok("")
	case "SETACTIVE":
		if !u.Activate(args[0]) {
			missing()
			return
		}
		s.ok("Success")
	case "DELETESCRIPT":
		switch found, active := u.DeleteScript(args[0]); {
		case !found:
			s.no("", "Script not found")
		case active:
			s.no("ACTIVE", "You may not delete an active script")
		default:
			s.ok("Deleted.")
		}
	case "RENAMESCRIPT":
		text, found := u.Script(args[0])
		if !found {
			missing()
			return
		}
		u.PutScript(args[1], text)
		u.DeleteScript(args[0])
		s.ok("Success.")
	case "UNAUTHENTICATE":
		s.who = nil
		s.ok("Unauthenticate successful.")
	}
}

func (s *sieveSession) authenticate(args []string) bool {
	failed := func(text string) bool {
		s.log(evAuthError, field{"details", text})
		s.c.Line("NO ", proto.Quote(text))
		return true
	}
	if len(args) == 0 {
		return failed("Authentication mechanism missing.")
	}
	mech := strings.ToUpper(args[0])
	if mech != "PLAIN" && mech != "OAUTHBEARER" && mech != "XOAUTH2" {
		return failed("Authentication mechanism not supported.")
	}
	if len(args) == 1 {
		s.c.Line("{0}")
		tokens, _, err := proto.ReadCommand(s.c.Reader(), imapLimits, nil)
		if err != nil || len(tokens) == 0 {
			return false
		}
		args = append(args, tokens[0].Text)
	}
	b, err := base64.StdEncoding.DecodeString(args[1])
	user, secret, ok := plainSASL(b)
	if mech != "PLAIN" {
		user, secret, ok = "", "", true
	}
	if err != nil || !ok {
		return failed("Failed to decode challenge.")
	}
	who, v := s.verify(user, secret)
	switch v {
	case wrongSecret:
		if s.failures >= s.core.imapMaxFailures {
			s.log(evAuthTooMany, s.causedBy(user))
			s.c.Line(`NO "Too many authentication attempts"`)
			return false
		}
		s.failures++
		s.logFailed(v, user, "")
		if s.srv.bugs.Has(bug.ClosesAfterFailedLogin) {
			return false
		}
		s.c.Line(`NO "Authentication failed"`)
		return true
	case banned, unauthorised:
		s.logFailed(v, user, "")
		return false
	}
	s.who = who
	s.ok("Authentication successful")
	return true
}
