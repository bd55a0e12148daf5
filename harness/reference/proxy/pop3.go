package proxy

import (
	"strings"

	"github.com/mailproof/mailproof/harness/proto"
)

// pop3 is the dialogue of RFC 1939 until a client has signed in.
type pop3 struct {
	s    *session
	user *string // after USER
}

func (d *pop3) unavailable() string { return "-ERR backend unavailable\r\n" }

func (d *pop3) hidden(string) string { return "-ERR Authentication failed.\r\n" }

func (d *pop3) goodbye(why string) string { return "-ERR " + why + "\r\n" }

func (d *pop3) talk() (credentials, error) {
	s := d.s
	if err := s.client.say("+OK " + s.caps().Banner + "\r\n"); err != nil {
		return credentials{}, err
	}
	for {
		if err := s.turn(); err != nil {
			return credentials{}, err
		}
		line, err := s.client.line()
		if err != nil {
			return credentials{}, err
		}
		c, done, err := d.command(line)
		if done || err != nil {
			return c, err
		}
	}
}

// refuse answers a failed attempt to sign in.
func (d *pop3) refuse(reply, why string) error {
	d.user = nil
	if err := d.s.client.say("-ERR " + reply + "\r\n"); err != nil {
		return err
	}
	if d.s.failed(why) {
		return errOver
	}
	return nil
}

func (d *pop3) command(line string) (c credentials, done bool, err error) {
	s := d.s
	say := func(text string) (credentials, bool, error) { return c, false, s.client.say(text) }
	verb, rest, _ := cutVerb(line)
	switch verb {
	case "CAPA":
		return say(d.capabilities())
	case "NOOP":
		return say("+OK\r\n")
	case "QUIT":
		s.client.say("+OK Logging out.\r\n")
		return c, false, errOver
	case "STLS":
		if !s.upgradable() {
			return say("-ERR STLS not available\r\n")
		}
		d.user = nil
		return c, false, s.startTLS("+OK Begin TLS negotiation now.\r\n")
	case "USER":
		if !s.open() {
			return c, false, d.refuse("cleartext authentication requires TLS", "credentials in clear text")
		}
		if rest == "" {
			return say("-ERR USER takes a name\r\n")
		}
		d.user = &rest
		return say("+OK\r\n")
	case "PASS":
		if !s.open() {
			return c, false, d.refuse("cleartext authentication requires TLS", "credentials in clear text")
		}
		if d.user == nil {
			return say("-ERR USER first\r\n")
		}
		if c, err = password(*d.user, rest); err != nil { // spaces belong to the password
			return c, false, d.refuse("malformed credentials", err.Error())
		}
		return c, true, nil
	case "AUTH":
		return d.auth(rest)
	}
	return say("-ERR unknown command\r\n")
}

func (d *pop3) capabilities() string {
	s := d.s
	lines := []string{"+OK Capability list follows", "TOP", "UIDL", "RESP-CODES", "PIPELINING", "AUTH-RESP-CODE"}
	if s.open() {
		lines = append(lines, "USER")
		if m := s.offered(); len(m) > 0 {
			lines = append(lines, "SASL "+strings.Join(m, " "))
		}
	}
	if s.upgradable() {
		lines = append(lines, "STLS")
	}
	return strings.Join(append(lines, ".", ""), "\r\n")
}

func (d *pop3) auth(rest string) (c credentials, done bool, err error) {
	s := d.s
	words := strings.Fields(rest)
	if len(words) == 0 {
		return c, false, s.client.say(strings.Join(append(append([]string{"+OK"}, s.offered()...), ".", ""), "\r\n"))
	}
	if !s.open() {
		return c, false, d.refuse("cleartext authentication requires TLS", "credentials in clear text")
	}
	mechanism := strings.ToUpper(words[0])
	if !s.offers(mechanism) || len(words) > 2 {
		return c, false, d.refuse("unsupported mechanism", "unsupported mechanism")
	}
	var initial *string
	if len(words) == 2 {
		initial = &words[1]
	}
	c, err = s.authenticate(mechanism, initial, s.asks("+ "))
	if why, fault := saslFault(err); fault {
		return c, false, d.refuse(why, why)
	}
	return c, err == nil, err
}

func (d *pop3) prepare(src *source) error {
	greeting, err := src.read("the greeting")
	if err != nil {
		return err
	}
	if !strings.HasPrefix(greeting, "+OK") {
		return src.failedf("the greeting is not +OK: %s", clip(greeting))
	}
	if src.ep.TLS == STARTTLS {
		if err := d.stls(src); err != nil {
			return err
		}
	}
	if src.ep.Forwarding != ForwardXCLIENT {
		return nil
	}
	const setting = "login_trusted_networks"
	if !hasXCLIENTCode(greeting) {
		return src.untrusted(setting, "the greeting does not offer [XCLIENT]: the source does not trust this proxy")
	}
	if err := src.send(d.s.announcement().XCLIENT(proto.POP3, nil)); err != nil {
		return err
	}
	reply, err := src.read("the reply to XCLIENT")
	if err != nil {
		return err
	}
	// "+OK You are not from trusted IP - ignoring" is what a stranger gets.
	if !strings.HasPrefix(reply, "+OK Updated") {
		return src.untrusted(setting, "XCLIENT was not accepted: %s", clip(reply))
	}
	return nil
}

// hasXCLIENTCode says whether a greeting has the response code XCLIENT.
func hasXCLIENTCode(greeting string) bool {
	_, code, ok := strings.Cut(greeting, "[")
	if !ok {
		return false
	}
	code, _, ok = strings.Cut(code, "]")
	words := strings.Fields(code)
	return ok && len(words) > 0 && isWord(words[0], "XCLIENT")
}

func (d *pop3) stls(src *source) error {
	if err := src.send("CAPA"); err != nil {
		return err
	}
	line, err := src.read("the reply to CAPA")
	if err != nil {
		return err
	}
	offered := false
	if strings.HasPrefix(line, "+OK") {
		for n := 0; ; n++ {
			if line, err = src.read("the end of the capabilities"); err != nil {
				return err
			}
			if line == "." {
				break
			}
			if n > maxReplyLines {
				return src.failedf("the capabilities have no end")
			}
			offered = offered || isWord(strings.TrimSpace(line), "STLS")
		}
	}
	if !offered {
		return src.failedf("STLS is not offered")
	}
	if err := src.send("STLS"); err != nil {
		return err
	}
	if line, err = src.read("the reply to STLS"); err != nil {
		return err
	}
	if !strings.HasPrefix(line, "+OK") {
		return src.failedf("STLS was refused: %s", clip(line))
	}
	return src.startTLS()
}

func (d *pop3) present(src *source, c credentials) (string, bool, error) {
	if err := src.send("AUTH " + c.mechanism + " " + c.encoded()); err != nil {
		return "", false, err
	}
	for range maxReplyLines {
		line, err := src.read("the verdict on the credentials")
		if err != nil {
			return "", false, err
		}
		switch {
		case strings.HasPrefix(line, "+OK"):
			return line + "\r\n", true, nil
		case strings.HasPrefix(line, "-ERR"):
			return line + "\r\n", false, nil
		case line != "+" && !strings.HasPrefix(line, "+ "):
			return "", false, src.failedf("the reply to AUTH is neither +OK nor -ERR")
		}
		if err := src.send(giveUp(c)); err != nil {
			return "", false, err
		}
	}
	return "", false, src.failedf("no verdict on the credentials in %d lines", maxReplyLines)
}
