package proxy

import (
	"errors"
	"io"
	"strconv"
	"strings"

	"github.com/mailproof/mailproof/harness/proto"
)

// maxQuoted is how long a quoted string of ManageSieve may be (RFC 5804,
// section 4), in octets; longer ones are literals.
const maxQuoted = 1024

// managesieve is the dialogue of RFC 5804 until a client has signed in.
type managesieve struct {
	s *session
}

func (d *managesieve) unavailable() string { return "NO \"backend unavailable\"\r\n" }

func (d *managesieve) hidden(string) string { return "NO \"Authentication failed.\"\r\n" }

func (d *managesieve) goodbye(why string) string { return "BYE " + proto.Quote(why) + "\r\n" }

// capabilities are all lines that the greeting, CAPABILITY and STARTTLS answer with.
func (d *managesieve) capabilities(text string) string {
	s := d.s
	caps := s.caps()
	var b strings.Builder
	b.WriteString(`"IMPLEMENTATION" "` + caps.Implementation + "\"\r\n")
	b.WriteString("\"VERSION\" \"1.0\"\r\n")
	b.WriteString(`"SASL" "` + strings.Join(s.offered(), " ") + "\"\r\n")
	b.WriteString(`"SIEVE" "` + strings.Join(caps.Advertise, " ") + "\"\r\n")
	if s.upgradable() {
		b.WriteString("\"STARTTLS\"\r\n")
	}
	b.WriteString("OK " + proto.Quote(text) + "\r\n")
	return b.String()
}

func (d *managesieve) talk() (credentials, error) {
	s := d.s
	limits := proto.CommandLimits{Line: maxLine, Literal: maxLiteral, Total: maxCommand}
	if err := s.client.say(d.capabilities(s.caps().Banner)); err != nil {
		return credentials{}, err
	}
	for {
		if err := s.turn(); err != nil {
			return credentials{}, err
		}
		tokens, _, err := proto.ReadCommand(s.client.br, limits, nil)
		var syntax *proto.SyntaxError
		switch {
		case errors.As(err, &syntax):
			if err := s.client.say("NO " + proto.Quote("syntax error: "+syntax.Why) + "\r\n"); err != nil {
				return credentials{}, err
			}
			continue
		case err != nil:
			return credentials{}, err
		case len(tokens) == 0 || tokens[0].Kind != proto.Atom:
			if err := s.client.say("NO \"A command begins with a word.\"\r\n"); err != nil {
				return credentials{}, err
			}
			continue
		}
		c, done, err := d.command(strings.ToUpper(tokens[0].Text), tokens[1:])
		if done || err != nil {
			return c, err
		}
	}
}

// refuse answers a failed attempt to sign in.
func (d *managesieve) refuse(reply, why string) error {
	if err := d.s.client.say("NO " + proto.Quote(reply) + "\r\n"); err != nil {
		return err
	}
	if d.s.failed(why) {
		d.s.client.say(d.goodbye("too many failed attempts"))
		return errOver
	}
	return nil
}

func (d *managesieve) command(word string, args []proto.Token) (c credentials, done bool, err error) {
	s := d.s
	say := func(text string) (credentials, bool, error) { return c, false, s.client.say(text) }
	switch word {
	case "CAPABILITY":
		return say(d.capabilities("Capability completed."))
	case "NOOP":
		if len(args) == 1 && args[0].IsString() {
			return say("OK (TAG " + sieveString(args[0].Text) + ") \"Done\"\r\n")
		}
		return say("OK \"Done\"\r\n")
	case "LOGOUT":
		s.client.say("OK \"Logging out.\"\r\n")
		return c, false, errOver
	case "STARTTLS":
		if !s.upgradable() {
			return say("NO \"STARTTLS not available\"\r\n")
		}
		if err := s.startTLS("OK \"Begin TLS negotiation now.\"\r\n"); err != nil {
			return c, false, err
		}
		return say(d.capabilities("TLS negotiation successful."))
	case "AUTHENTICATE":
		return d.authenticate(args)
	}
	return say("NO \"Command not allowed in this state.\"\r\n")
}

func (d *managesieve) authenticate(args []proto.Token) (c credentials, done bool, err error) {
	s := d.s
	if !s.open() {
		return c, false, d.refuse("Cleartext authentication requires TLS", "credentials in clear text")
	}
	if len(args) < 1 || len(args) > 2 || !args[0].IsString() || len(args) == 2 && !args[1].IsString() {
		return c, false, s.client.say("NO \"AUTHENTICATE takes a mechanism and at most an initial response.\"\r\n")
	}
	mechanism := strings.ToUpper(args[0].Text)
	if !s.offers(mechanism) {
		return c, false, d.refuse("Unsupported mechanism", "unsupported mechanism")
	}
	var initial *string
	if len(args) == 2 {
		initial = &args[1].Text
	}
	limits := proto.CommandLimits{Line: maxLine, Literal: maxLiteral, Total: maxCommand}
	c, err = s.authenticate(mechanism, initial, func(challenge string) (string, error) {
		if err := s.client.say(proto.Quote(base64Of(challenge)) + "\r\n"); err != nil {
			return "", err
		}
		tokens, _, err := proto.ReadCommand(s.client.br, limits, nil)
		var syntax *proto.SyntaxError
		switch {
		case errors.As(err, &syntax):
			return "", errCredentials
		case err != nil:
			return "", err
		case len(tokens) != 1 || !tokens[0].IsString():
			return "", errCredentials
		case tokens[0].Text == "*":
			return "", errAborted
		}
		return tokens[0].Text, nil
	})
	if why, fault := saslFault(err); fault {
		return c, false, d.refuse(sentence(why), why)
	}
	return c, err == nil, err
}

// sieveString spells a string for the other side: quoted where that is
// allowed, else as a literal that needs no consent.
func sieveString(s string) string {
	if len(s) > maxQuoted || strings.ContainsAny(s, "\r\n\x00") {
		return "{" + strconv.Itoa(len(s)) + "+}\r\n" + s
	}
	return proto.Quote(s)
}

// A sieveReply is a whole response of a source.
type sieveReply struct {
	lines  []string // as they came, literals inside
	status string   // OK, NO, BYE; empty for a challenge
}

func (r sieveReply) text() string { return strings.Join(r.lines, "\r\n") + "\r\n" }

func (r sieveReply) last() string { return r.lines[len(r.lines)-1] }

// capability says whether a capability is listed.
func (r sieveReply) capability(name string) bool {
	for _, l := range r.lines {
		if rest, ok := strings.CutPrefix(l, `"`); ok {
			if n, _, ok := strings.Cut(rest, `"`); ok && isWord(n, name) {
				return true
			}
		}
	}
	return false
}

// sieveReply reads lines up to a status. With challenges set, a string alone is
// a SASL challenge and ends it too.
func (src *source) sieveReply(waiting string, challenges bool) (sieveReply, error) {
	var r sieveReply
	for range maxReplyLines {
		line, err := src.sieveLine(waiting)
		if err != nil {
			return r, err
		}
		r.lines = append(r.lines, line)
		word, _, _ := strings.Cut(line, " ")
		switch word = strings.ToUpper(word); word {
		case "OK", "NO", "BYE", "BAD":
			r.status = word
			return r, nil
		}
		if challenges {
			return r, nil
		}
	}
	return r, src.failedf("%s has no end", waiting)
}

// sieveLine reads one line with the literals in it.
func (src *source) sieveLine(waiting string) (string, error) {
	text, err := src.read(waiting)
	if err != nil {
		return "", err
	}
	for last := text; ; {
		n, ok := literalSize(last)
		if !ok {
			return text, nil
		}
		if n > maxLiteral || len(text)+n > maxCommand {
			return "", src.failedf("waiting for %s: a literal is larger than %d octets", waiting, maxLiteral)
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(src.br, body); err != nil {
			return "", src.failedf("waiting for %s: %w", waiting, err)
		}
		if last, err = src.read(waiting); err != nil {
			return "", err
		}
		text += "\r\n" + string(body) + last
	}
}

// literalSize is the size of the literal that a line ends with.
func literalSize(line string) (int, bool) {
	i := strings.LastIndexByte(line, '{')
	if i < 0 || !strings.HasSuffix(line, "}") {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(line[i+1:len(line)-1], "+"), 10, 31)
	return int(n), err == nil
}

func (d *managesieve) prepare(src *source) error {
	greeting, err := src.sieveReply("the greeting", false)
	if err != nil {
		return err
	}
	if greeting.status != "OK" {
		return src.failedf("the greeting is not OK: %s", clip(greeting.last()))
	}
	if src.ep.TLS == STARTTLS {
		if !greeting.capability("STARTTLS") {
			return src.failedf("STARTTLS is not offered")
		}
		if err := src.send("STARTTLS"); err != nil {
			return err
		}
		reply, err := src.sieveReply("the reply to STARTTLS", false)
		if err != nil {
			return err
		}
		if reply.status != "OK" {
			return src.failedf("STARTTLS was refused: %s", clip(reply.last()))
		}
		if err := src.startTLS(); err != nil {
			return err
		}
		if greeting, err = src.sieveReply("the capabilities after STARTTLS", false); err != nil {
			return err
		}
	}
	if src.ep.Forwarding != ForwardXCLIENT {
		return nil
	}
	const setting = "login_trusted_networks"
	if !greeting.capability("XCLIENT") {
		return src.untrusted(setting, "\"XCLIENT\" is not among the capabilities: the source does not trust this proxy")
	}
	if err := src.send(d.s.announcement().XCLIENT(proto.ManageSieve, nil)); err != nil {
		return err
	}
	reply, err := src.sieveReply("the reply to XCLIENT", false)
	if err != nil {
		return err
	}
	if reply.last() != `OK "Updated"` {
		return src.untrusted(setting, "XCLIENT was not accepted: %s", clip(reply.last()))
	}
	return nil
}

func (d *managesieve) present(src *source, c credentials) (string, bool, error) {
	if err := src.send("AUTHENTICATE " + proto.Quote(c.mechanism) + " " + sieveString(c.encoded())); err != nil {
		return "", false, err
	}
	for range maxReplyLines {
		reply, err := src.sieveReply("the verdict on the credentials", true)
		if err != nil {
			return "", false, err
		}
		if reply.status != "" {
			return reply.text(), reply.status == "OK", nil
		}
		if err := src.send(proto.Quote(giveUp(c))); err != nil {
			return "", false, err
		}
	}
	return "", false, src.failedf("no verdict on the credentials in %d lines", maxReplyLines)
}
