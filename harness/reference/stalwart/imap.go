package stalwart

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/proto"
	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/stalwart/bug"
)

// What IMAP offers before and after the login.
const (
	imapBefore = "IMAP4rev2 IMAP4rev1 ENABLE SASL-IR LITERAL+ ID UTF8=ACCEPT JMAPACCESS AUTH=PLAIN AUTH=OAUTHBEARER AUTH=XOAUTH2"
	imapAfter  = "IMAP4rev2 IMAP4rev1 ENABLE SASL-IR LITERAL+ ID UTF8=ACCEPT JMAPACCESS IDLE NAMESPACE CHILDREN MULTIAPPEND BINARY UNSELECT ACL UIDPLUS " +
		"ESEARCH WITHIN SEARCHRES SORT THREAD=REFERENCES LIST-EXTENDED LIST-STATUS ESORT SORT=DISPLAY SPECIAL-USE CREATE-SPECIAL-USE MOVE CONDSTORE " +
		"QRESYNC UNAUTHENTICATE STATUS=SIZE OBJECTID PREVIEW QUOTA QUOTA=RES-STORAGE"
	imapID = `("name" "Stalwart" "version" "1.0.0" "vendor" "Stalwart Labs LLC" "support-url" "https://stalw.art")`
)

// imapLimits bound a command before the login, in octets.
var imapLimits = proto.CommandLimits{Line: link.MaxLine, Literal: 4096, Total: link.MaxLine}

// imapCommands are the commands that are known.
var imapCommands = strings.Fields("CAPABILITY NOOP LOGOUT STARTTLS AUTHENTICATE LOGIN ENABLE SELECT EXAMINE CREATE DELETE RENAME SUBSCRIBE UNSUBSCRIBE " +
	"LIST LSUB NAMESPACE STATUS APPEND IDLE CLOSE UNSELECT EXPUNGE SEARCH FETCH STORE COPY MOVE CHECK SORT THREAD ID SETACL DELETEACL GETACL LISTRIGHTS MYRIGHTS " +
	"GETQUOTA GETQUOTAROOT UNAUTHENTICATE")

func (in *session) imapCapability(after bool) string {
	caps := imapBefore
	if after {
		caps = imapAfter
	}
	if !in.isTLS && in.listener.tls {
		caps += " STARTTLS"
	}
	return caps
}

// imap is a session of IMAP.
func (in *session) imap() {
	in.c.Line("* OK [CAPABILITY ", in.imapCapability(false), "] Stalwart IMAP4rev2 at your service.")
	failures := 0
	for {
		in.c.SetTimeout(in.core.imapAnonymous)
		tag, name, args, err := in.imapCommand()
		var bad *imapError
		switch {
		case errors.As(err, &bad):
			if bad.code == "PARSE" && in.scanned("Invalid IMAP command") {
				return
			}
			in.imapError(bad)
			// The rest of what came with it is not looked at.
			in.c.Reader().Discard(in.c.Buffered())
			continue
		case err != nil:
			switch stopping, late := in.gone(err); {
			case stopping:
				in.c.Line("* BYE Server shutting down.")
			case late:
				in.log(evTimeout)
				in.c.Line("* BYE Connection timed out.")
			}
			return
		}
		began := in.srv.now()
		switch name {
		case "CAPABILITY":
			in.log(evIMAPCaps, field{"tls", in.isTLS}, field{"strict", !in.core.imapPlain}, field{"elapsed", in.srv.now().Sub(began)})
			in.c.Line("* CAPABILITY ", in.imapCapability(false))
			in.c.Line(tag, " OK CAPABILITY completed")
		case "NOOP":
			in.log(evIMAPNoop, field{"elapsed", in.srv.now().Sub(began)})
			in.c.Line(tag, " OK NOOP completed")
		case "ID":
			in.log(evIMAPID, field{"elapsed", in.srv.now().Sub(began)})
			in.c.Line("* ID ", imapID)
			in.c.Line(tag, " OK ID completed")
		case "LOGOUT":
			in.log(evIMAPLogout, field{"elapsed", in.srv.now().Sub(began)})
			in.c.Line("* BYE Stalwart IMAP4rev2 bids you farewell.")
			in.c.Line(tag, " OK LOGOUT completed")
			return
		case "STARTTLS":
			switch {
			case in.isTLS:
				in.imapError(&imapError{details: "Already in TLS mode.", tag: tag})
			case !in.listener.tls:
				in.imapError(&imapError{details: "TLS is not available.", tag: tag})
			default:
				in.c.Line(tag, " OK Begin TLS negotiation now")
				if !in.handshake(true) {
					return
				}
			}
		case "LOGIN":
			switch {
			case !in.isTLS && !in.core.imapPlain && !(in.srv.bugs.Has(bug.ClearTextFromAnyone) && in.remote == in.real):
				in.imapError(&imapError{details: "LOGIN is disabled on the clear-text port.", tag: tag})
			case len(args) != 2:
				in.imapError(&imapError{details: "Missing arguments.", tag: tag, bad: true})
			default:
				if !in.imapSignIn(tag, args[0], args[1], &failures) {
					return
				}
			}
		case "AUTHENTICATE":
			if !in.imapAuthenticate(tag, args, &failures) {
				return
			}
		default:
			in.imapError(&imapError{details: "Not authenticated.", tag: tag})
		}
	}
}

// imapError is an answer of NO or BAD.
type imapError struct {
	details, tag, code string
	bad                bool
	event              *event
}

func (e *imapError) Error() string { return e.details }

func (in *session) imapError(e *imapError) {
	fields := []field{{"details", e.details}}
	if e.tag != "" {
		fields = append(fields, field{"id", e.tag})
	}
	kind := "NO"
	if e.bad {
		kind = "BAD"
		fields = append(fields, field{"type", "BAD"})
	}
	code := ""
	if e.code != "" {
		fields = append(fields, field{"code", e.code})
		code = "[" + e.code + "] "
	}
	ev := evIMAPError
	if e.event != nil {
		ev = *e.event
	}
	in.log(ev, fields...)
	tag := e.tag
	if tag == "" {
		tag = "*"
	}
	in.c.Line(tag, " ", kind, " ", code, e.details)
}

// imapCommand reads one command. What can be said of it is an *imapError; any
// other error ends the session.
func (in *session) imapCommand() (tag, name string, args []string, err error) {
	bad := func(format string, a ...any) error {
		return &imapError{details: fmt.Sprintf(format, a...), tag: tag, code: "PARSE", bad: true}
	}
	line, err := in.c.ReadLine(link.MaxLine)
	for err == nil && strings.TrimSpace(line) == "" {
		line, err = in.c.ReadLine(link.MaxLine)
	}
	if errors.Is(err, link.ErrTooLong) {
		return "", "", nil, bad("Argument exceeds maximum length of 4096 bytes.")
	}
	if err != nil {
		return "", "", nil, err
	}
	line = strings.TrimLeft(line, " \t\r")
	first, rest, ok := strings.Cut(line, " ")
	first = strings.Map(func(r rune) rune {
		if r == '\t' || r == '\r' {
			return -1
		}
		return r
	}, first)
	if !ok {
		return "", "", nil, bad("Missing command after tag %s, found CRLF instead.", quoteRust(first))
	}
	if len(first) > 128 {
		return "", "", nil, bad("Tag exceeds maximum length of 128 characters.")
	}
	tag = first
	rest = strings.TrimLeft(rest, " \t")
	word := rest
	if i := strings.IndexAny(rest, " \t"); i >= 0 {
		word, rest = rest[:i], rest[i+1:]
	} else {
		rest = ""
	}
	if i := strings.IndexFunc(word, func(r rune) bool { return r > 127 || !isName(byte(r)) || r == '_' }); i >= 0 {
		return tag, "", nil, bad("Invalid character %s in command name.", quoteRustByte(word[i]))
	}
	if len(word) > 15 {
		return tag, "", nil, bad("Command exceeds maximum length of 15 characters.")
	}
	name = strings.ToUpper(word)
	if name == "UID" {
		sub, _, _ := strings.Cut(strings.TrimLeft(rest, " "), " ")
		name = strings.ToUpper(sub)
	}
	if !slices.Contains(imapCommands, name) {
		if name == "" {
			return tag, "", nil, bad("Missing command after tag %s, found CRLF instead.", quoteRust(first))
		}
		return tag, "", nil, bad("Unrecognized command '%s'.", name)
	}
	// Literals follow the line.
	src := bufio.NewReader(io.MultiReader(strings.NewReader(rest+"\r\n"), in.c.Reader()))
	if !strings.HasSuffix(rest, "}") {
		src = bufio.NewReader(strings.NewReader(rest + "\r\n"))
	}
	tokens, _, err := readTokens(src, in.c, imapLimits, func() string { return "+ Ready for literal." })
	var syntax *proto.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return tag, name, nil, bad("Unterminated quoted argument.")
	case errors.Is(err, proto.ErrTooLong):
		return tag, name, nil, bad("Argument exceeds maximum length of 4096 bytes.")
	case err != nil:
		return tag, name, nil, err
	}
	for _, t := range tokens {
		args = append(args, t.Text)
	}
	return tag, name, args, nil
}

// readTokens reads the rest of a command from src, which may go on at the
// connection: what was read too much of that is given back.
func readTokens(src *bufio.Reader, c *link.Conn, lim proto.CommandLimits, proceed func() string) ([]proto.Token, string, error) {
	tokens, line, err := proto.ReadCommand(src, lim, func() error {
		c.Line(proceed())
		return c.Flush()
	})
	if n := src.Buffered(); n > 0 {
		ahead, _ := src.Peek(n)
		c.Unread(ahead)
	}
	return tokens, line, err
}

// quoteRust spells a string as the server quotes one in its messages.
func quoteRust(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case 0:
			b.WriteString(`\0`)
		case '"', '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		default:
			if c < 0x20 || c == 0x7f {
				fmt.Fprintf(&b, `\u{%x}`, c)
			} else {
				b.WriteByte(c)
			}
		}
	}
	b.WriteByte('"')
	return b.String()
}

// quoteRustByte spells one octet as the server quotes a character.
func quoteRustByte(c byte) string {
	if c == '\'' {
		return `'\''`
	}
	s := quoteRust(string([]byte{c}))
	if c == '"' {
		return `'"'`
	}
	return "'" + s[1:len(s)-1] + "'"
}

func (in *session) imapAuthenticate(tag string, args []string, failures *int) bool {
	if len(args) == 0 {
		in.imapError(&imapError{details: "Authentication mechanism missing.", tag: tag, bad: true})
		return true
	}
	switch strings.ToUpper(args[0]) {
	case "PLAIN":
	case "OAUTHBEARER", "XOAUTH2":
		return in.imapToken(tag, args)
	default:
		in.imapError(&imapError{details: "Authentication mechanism not supported.", tag: tag, code: "CANNOT", event: &evAuthError})
		return true
	}
	if len(args) == 1 {
		in.c.Line("+ ")
		line, err := in.c.ReadLine(4096)
		if err != nil {
			return false
		}
		args = append(args, strings.TrimSpace(line))
	}
	b, err := base64.StdEncoding.DecodeString(args[1])
	if err != nil {
		in.imapError(&imapError{details: "Failed to decode challenge.", tag: tag, code: "PARSE", event: &evAuthError})
		return true
	}
	user, secret, ok := plainSASL(b)
	if !ok {
		in.imapError(&imapError{details: "Invalid SASL challenge.", tag: tag, event: &evAuthError})
		return true
	}
	return in.imapSignIn(tag, user, secret, failures)
}

// imapToken answers the mechanisms of OAuth: the reference knows no token.
func (in *session) imapToken(tag string, args []string) bool {
	if len(args) == 1 {
		in.c.Line("+ ")
		if _, err := in.c.ReadLine(16 << 10); err != nil {
			return false
		}
	}
	in.logFailed(wrongSecret, "", tag)
	in.c.Line(tag, " NO [AUTHENTICATIONFAILED] Authentication failed")
	return true
}

// imapSignIn answers a name and a password, and says whether the session goes
// on before the login.
func (in *session) imapSignIn(tag, user, secret string, failures *int) bool {
	who, v := in.verify(user, secret)
	switch v {
	case wrongSecret:
		if *failures >= in.core.imapMaxFailures {
			in.log(evAuthTooMany, in.causedBy(user))
			in.c.Line("* NO [AUTHENTICATIONFAILED] Too many authentication attempts")
			return false
		}
		*failures++
		in.logFailed(v, user, tag)
		if in.srv.bugs.Has(bug.ClosesAfterFailedLogin) {
			return false
		}
		in.c.Line(tag, " NO [AUTHENTICATIONFAILED] Authentication failed")
		return true
	case banned, unauthorised:
		in.logFailed(v, user, tag)
		return false
	}
	in.who = who
	in.c.Line(tag, " OK [CAPABILITY ", in.imapCapability(true), "] Authentication successful")
	in.process.imap.serve(in)
	return false
}
