package proxy

import (
	"errors"
	"strings"

	"github.com/mailproof/mailproof/harness/proto"
)

// imap is the dialogue of RFC 3501 and RFC 9051 until a client has signed in.
type imap struct {
	s   *session
	tag string // of the command that signs in
}

func (d *imap) unavailable() string { return d.tag + " NO [UNAVAILABLE] backend unavailable\r\n" }

func (d *imap) hidden(string) string {
	return d.tag + " NO [AUTHENTICATIONFAILED] Authentication failed.\r\n"
}

func (d *imap) goodbye(why string) string { return "* BYE " + why + "\r\n" }

func (d *imap) capabilities() string {
	s := d.s
	words := append([]string(nil), s.caps().Advertise...)
	if s.upgradable() {
		words = append(words, "STARTTLS")
	}
	if !s.open() {
		words = append(words, "LOGINDISABLED")
	}
	for _, m := range s.offered() {
		words = append(words, "AUTH="+m)
	}
	return strings.Join(words, " ")
}

func (d *imap) talk() (credentials, error) {
	s := d.s
	limits := proto.CommandLimits{Line: maxLine, Literal: maxLiteral, Total: maxCommand}
	if err := s.client.say("* OK [CAPABILITY " + d.capabilities() + "] " + s.caps().Banner + "\r\n"); err != nil {
		return credentials{}, err
	}
	for {
		if err := s.turn(); err != nil {
			return credentials{}, err
		}
		tokens, line, err := proto.ReadCommand(s.client.br, limits, d.proceed)
		var syntax *proto.SyntaxError
		switch {
		case errors.Is(err, errPlain):
			tag, _, _ := strings.Cut(line, " ")
			if !imapTag(tag) {
				tag = "*"
			}
			if err := d.refuse(tag, "NO [PRIVACYREQUIRED] Cleartext login requires TLS.", "credentials in clear text"); err != nil {
				return credentials{}, err
			}
			continue
		case errors.As(err, &syntax):
			tag, _, _ := strings.Cut(line, " ")
			if !imapTag(tag) {
				tag = "*"
			}
			if err := s.client.say(tag + " BAD Syntax error: " + syntax.Why + ".\r\n"); err != nil {
				return credentials{}, err
			}
			continue
		case err != nil:
			return credentials{}, err
		}
		if len(tokens) < 2 || tokens[0].Kind != proto.Atom || !imapTag(tokens[0].Text) || tokens[1].Kind != proto.Atom {
			if err := s.client.say("* BAD A command begins with a tag and a word.\r\n"); err != nil {
				return credentials{}, err
			}
			continue
		}
		c, done, err := d.command(tokens[0].Text, strings.ToUpper(tokens[1].Text), tokens[2:])
		if done || err != nil {
			return c, err
		}
	}
}

// proceed allows a synchronising literal, but never one that would bring
// credentials in clear text.
func (d *imap) proceed() error {
	if !d.s.open() {
		return errPlain
	}
	return d.s.client.say("+ OK\r\n")
}

// imapTag says whether a word can be a tag (RFC 3501, section 9).
func imapTag(tag string) bool {
	if tag == "" || len(tag) > 64 {
		return false
	}
	for i := 0; i < len(tag); i++ {
		if c := tag[i]; c <= ' ' || c >= 0x7f || strings.IndexByte(`(){%*"\+`, c) >= 0 {
			return false
		}
	}
	return true
}

// refuse answers a failed attempt to sign in.
func (d *imap) refuse(tag, reply, why string) error {
	if err := d.s.client.say(tag + " " + reply + "\r\n"); err != nil {
		return err
	}
	if d.s.failed(why) {
		d.s.client.say(d.goodbye("too many failed attempts"))
		return errOver
	}
	return nil
}

// command runs one command; done says that it brought credentials.
func (d *imap) command(tag, word string, args []proto.Token) (c credentials, done bool, err error) {
	s := d.s
	say := func(text string) (credentials, bool, error) { return c, false, s.client.say(text) }
	ok := func(what string) string { return tag + " OK " + what + " completed.\r\n" }
	switch word {
	case "CAPABILITY":
		return say("* CAPABILITY " + d.capabilities() + "\r\n" + ok(word))
	case "NOOP":
		return say(ok(word))
	case "ID":
		params, err := proto.ParseIDParams(args)
		if err != nil {
			return say(tag + " BAD " + err.Error() + ".\r\n")
		}
		for _, p := range params {
			if isWord(p.Name, "x-proxy-ttl") {
				s.hops(p.Value)
			}
		}
		return say("* ID NIL\r\n" + ok(word))
	case "LOGOUT":
		s.client.say("* BYE Logging out.\r\n" + ok(word))
		return c, false, errOver
	case "STARTTLS":
		if !s.upgradable() || len(args) > 0 {
			return say(tag + " BAD STARTTLS not available.\r\n")
		}
		return c, false, s.startTLS(tag + " OK Begin TLS negotiation now.\r\n")
	case "LOGIN":
		return d.login(tag, args)
	case "AUTHENTICATE":
		return d.authenticate(tag, args)
	}
	return say(tag + " BAD Command not allowed in this state.\r\n")
}

func (d *imap) login(tag string, args []proto.Token) (c credentials, done bool, err error) {
	if !d.s.open() {
		return c, false, d.refuse(tag, "NO [PRIVACYREQUIRED] Cleartext login requires TLS.", "credentials in clear text")
	}
	if len(args) != 2 || !imapString(args[0]) || !imapString(args[1]) {
		return c, false, d.s.client.say(tag + " BAD LOGIN takes a user name and a password.\r\n")
	}
	if c, err = password(args[0].Text, args[1].Text); err != nil {
		return c, false, d.refuse(tag, "NO Malformed credentials.", err.Error())
	}
	d.tag = tag
	return c, true, nil
}

func imapString(t proto.Token) bool { return t.IsString() || t.Kind == proto.Atom }

func (d *imap) authenticate(tag string, args []proto.Token) (c credentials, done bool, err error) {
	s := d.s
	if len(args) < 1 || len(args) > 2 || args[0].Kind != proto.Atom {
		return c, false, s.client.say(tag + " BAD AUTHENTICATE takes a mechanism and at most an initial response.\r\n")
	}
	if !s.open() {
		return c, false, d.refuse(tag, "NO [PRIVACYREQUIRED] Cleartext authentication requires TLS.", "credentials in clear text")
	}
	mechanism := strings.ToUpper(args[0].Text)
	if !s.offers(mechanism) {
		return c, false, d.refuse(tag, "NO Unsupported authentication mechanism.", "unsupported mechanism")
	}
	var initial *string
	if len(args) == 2 {
		initial = &args[1].Text
	}
	c, err = s.authenticate(mechanism, initial, s.asks("+ "))
	why, fault := saslFault(err)
	switch {
	case errors.Is(err, errAborted):
		return c, false, d.refuse(tag, "BAD Authentication aborted.", why)
	case fault:
		return c, false, d.refuse(tag, "NO "+sentence(why), why)
	case err != nil:
		return c, false, err
	}
	d.tag = tag
	return c, true, nil
}

// The tags of our own commands to a source.
const (
	tagCapability = "P0"
	tagSTARTTLS   = "P1"
	tagID         = "F1"
)

// maxIDLines is how many lines a source may take to answer ID.
const maxIDLines = 16

// prepare decides by the capabilities in the greeting, as the sources
// themselves do when they are proxies. Where the greeting has none they are
// asked for.
//
// ID is the one announcement whose reply does not say whether it was believed:
// Dovecot 2.3 answers everybody alike, 2.4 says "Trusted ID completed." to
// those it trusts. So an untrusted IMAP source is signed in to, and records
// the proxy's address; the log says which reply there was.
func (d *imap) prepare(src *source) error {
	s := d.s
	greeting, err := src.read("the greeting")
	if err != nil {
		return err
	}
	rest, ok := cutWord(greeting, "* OK")
	if !ok {
		return src.failedf("the greeting is not \"* OK\": %s", clip(greeting))
	}
	caps, ok := capabilityCode(rest)
	if !ok {
		if err := src.send(tagCapability + " CAPABILITY"); err != nil {
			return err
		}
		lines, err := src.tagged(tagCapability, maxIDLines)
		if err != nil {
			return err
		}
		for _, l := range lines {
			if list, ok := cutWord(l, "* CAPABILITY"); ok {
				caps = strings.Fields(list)
			}
		}
	}
	if src.ep.TLS == STARTTLS {
		if !hasWord(caps, "STARTTLS") {
			return src.failedf("STARTTLS is not offered")
		}
		if err := src.send(tagSTARTTLS + " STARTTLS"); err != nil {
			return err
		}
		lines, err := src.tagged(tagSTARTTLS, maxIDLines)
		if err != nil {
			return err
		}
		if last := lines[len(lines)-1]; !taggedOK(last, tagSTARTTLS) {
			return src.failedf("STARTTLS was refused: %s", clip(last))
		}
		if err := src.startTLS(); err != nil {
			return err
		}
	}
	if src.ep.Forwarding != ForwardXCLIENT {
		return nil
	}
	const setting = "login_trusted_networks"
	if !hasWord(caps, "ID") {
		return src.untrusted("the greeting's capabilities must list ID and "+setting, "ID is not offered in the greeting, so the client's address cannot be announced")
	}
	if err := src.send(s.announcement().ID(tagID)); err != nil {
		return err
	}
	lines, err := src.tagged(tagID, maxIDLines)
	if err != nil {
		return err
	}
	last := lines[len(lines)-1]
	if !taggedOK(last, tagID) {
		return src.untrusted(setting, "ID was refused: %s", clip(last))
	}
	s.log(levelDebug, "destination=%s: ID answered %s", src.dest.Name, clip(last))
	return nil
}

func (d *imap) present(src *source, c credentials) (string, bool, error) {
	if err := src.send(d.tag + " AUTHENTICATE " + c.mechanism + " " + c.encoded()); err != nil {
		return "", false, err
	}
	var reply strings.Builder
	for range maxReplyLines {
		line, err := src.read("the verdict on the credentials")
		if err != nil {
			return "", false, err
		}
		if line == "+" || strings.HasPrefix(line, "+ ") {
			if err := src.send(giveUp(c)); err != nil {
				return "", false, err
			}
			continue
		}
		reply.WriteString(line)
		reply.WriteString("\r\n")
		if strings.HasPrefix(line, d.tag+" ") {
			return reply.String(), taggedOK(line, d.tag), nil
		}
	}
	return "", false, src.failedf("no verdict on the credentials in %d lines", maxReplyLines)
}

// maxReplyLines bounds the reply to credentials.
const maxReplyLines = 100

// giveUp answers a challenge after an initial response: the error message of a
// bearer mechanism wants a dummy (RFC 7628, section 3.2.3), anything else is aborted.
func giveUp(c credentials) string {
	if c.mechanism == "PLAIN" {
		return "*"
	}
	return "AQ=="
}

// tagged reads lines up to the one with the tag, which is the last returned.
func (src *source) tagged(tag string, limit int) ([]string, error) {
	var lines []string
	for range limit {
		line, err := src.read("the reply to " + tag)
		if err != nil {
			return nil, err
		}
		lines = append(lines, line)
		if strings.HasPrefix(line, tag+" ") {
			return lines, nil
		}
	}
	return nil, src.failedf("no reply to %s in %d lines", tag, limit)
}

func taggedOK(line, tag string) bool {
	rest, ok := strings.CutPrefix(line, tag+" ")
	word, _, _ := strings.Cut(rest, " ")
	return ok && isWord(word, "OK")
}

// capabilityCode finds the list in "[CAPABILITY ...]".
func capabilityCode(text string) ([]string, bool) {
	rest, ok := cutWord(text, "[CAPABILITY")
	if !ok {
		return nil, false
	}
	list, _, ok := strings.Cut(rest, "]")
	return strings.Fields(list), ok
}

// cutWord returns what follows a word and a space, without regard to case.
func cutWord(s, word string) (rest string, ok bool) {
	n := len(word)
	if len(s) < n || !strings.EqualFold(s[:n], word) {
		return "", false
	}
	if len(s) == n {
		return "", true
	}
	return s[n+1:], s[n] == ' '
}

func hasWord(list []string, word string) bool {
	for _, w := range list {
		if strings.EqualFold(w, word) {
			return true
		}
	}
	return false
}
