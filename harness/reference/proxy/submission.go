package proxy

import (
	"strings"

	"github.com/mailproof/mailproof/harness/proto"
)

// submission is the dialogue of RFC 6409 and RFC 4954 until a client has signed in.
type submission struct {
	s *session
}

func (d *submission) unavailable() string { return "421 4.3.0 backend unavailable\r\n" }

func (d *submission) hidden(reply string) string {
	if strings.HasPrefix(reply, "4") {
		return "454 4.7.0 Temporary authentication failure.\r\n"
	}
	return "535 5.7.8 Authentication failed.\r\n"
}

func (d *submission) goodbye(why string) string { return "421 4.3.2 " + why + "\r\n" }

// host is what the proxy calls itself.
func (d *submission) host() string {
	if h := d.s.p.cfg.Server.Hostname; h != "" {
		return h
	}
	if a := d.s.local.Addr(); a.Is6() {
		return "[IPv6:" + a.String() + "]"
	}
	return "[" + d.s.local.Addr().String() + "]"
}

func (d *submission) talk() (credentials, error) {
	s := d.s
	if err := s.client.say("220 " + d.host() + " ESMTP " + s.caps().Banner + "\r\n"); err != nil {
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
func (d *submission) refuse(reply, why string) error {
	if err := d.s.client.say(reply + "\r\n"); err != nil {
		return err
	}
	if d.s.failed(why) {
		d.s.client.say("421 4.7.0 too many failed attempts\r\n")
		return errOver
	}
	return nil
}

func (d *submission) command(line string) (c credentials, done bool, err error) {
	s := d.s
	say := func(text string) (credentials, bool, error) { return c, false, s.client.say(text) }
	verb, rest, _ := cutVerb(line)
	switch verb {
	case "EHLO", "HELO":
		name := strings.Trim(rest, " ")
		if name == "" || len(name) > 255 || !printable(name) {
			return say("501 5.5.4 " + verb + " takes the name of the client\r\n")
		}
		s.helo = name
		if verb == "HELO" {
			return say("250 " + d.host() + "\r\n")
		}
		return say(d.ehlo())
	case "NOOP", "RSET":
		return say("250 2.0.0 Ok\r\n")
	case "QUIT":
		s.client.say("221 2.0.0 Bye\r\n")
		return c, false, errOver
	case "STARTTLS":
		if !s.upgradable() {
			return say("503 5.5.1 STARTTLS not available\r\n")
		}
		if rest != "" {
			return say("501 5.5.4 STARTTLS takes no parameter\r\n")
		}
		s.helo = "" // RFC 3207, section 4.2
		return c, false, s.startTLS("220 2.0.0 Ready to start TLS\r\n")
	case "AUTH":
		return d.auth(rest)
	case "MAIL", "RCPT", "DATA", "BDAT", "VRFY", "EXPN", "HELP", "ETRN", "BURL", "XCLIENT", "XFORWARD":
		return say("503 5.5.1 Command not allowed here\r\n")
	}
	return say("500 5.5.2 Syntax error\r\n")
}

func (d *submission) ehlo() string {
	s := d.s
	lines := append([]string{d.host()}, s.caps().Advertise...)
	if s.upgradable() {
		lines = append(lines, "STARTTLS")
	}
	if m := s.offered(); len(m) > 0 {
		lines = append(lines, "AUTH "+strings.Join(m, " "))
	}
	var b strings.Builder
	for i, l := range lines {
		sep := "-"
		if i == len(lines)-1 {
			sep = " "
		}
		b.WriteString("250" + sep + l + "\r\n")
	}
	return b.String()
}

func (d *submission) auth(rest string) (c credentials, done bool, err error) {
	s := d.s
	if !s.open() {
		return c, false, d.refuse("538 5.7.11 Encryption required for requested authentication mechanism", "credentials in clear text")
	}
	words := strings.Fields(rest)
	switch {
	case s.helo == "":
		return c, false, s.client.say("503 5.5.1 EHLO first\r\n")
	case len(words) < 1 || len(words) > 2:
		return c, false, s.client.say("501 5.5.4 AUTH takes a mechanism and at most an initial response\r\n")
	}
	mechanism := strings.ToUpper(words[0])
	if !s.offers(mechanism) {
		return c, false, d.refuse("504 5.5.4 Unsupported authentication mechanism", "unsupported mechanism")
	}
	var initial *string
	if len(words) == 2 {
		initial = &words[1]
	}
	c, err = s.authenticate(mechanism, initial, s.asks("334 "))
	if why, fault := saslFault(err); fault {
		reply := "501 5.5.2 " + sentence(why)
		if err == errCredentials {
			reply = "535 5.7.8 " + sentence(why)
		}
		return c, false, d.refuse(reply, why)
	}
	return c, err == nil, err
}

// An smtpReply is one whole reply.
type smtpReply struct {
	code  string
	lines []string // as they came
}

func (r smtpReply) text() string { return strings.Join(r.lines, "\r\n") + "\r\n" }

// last is its last line, shortened.
func (r smtpReply) last() string { return clip(r.lines[len(r.lines)-1]) }

// smtpReply reads all lines of a reply (RFC 5321, section 4.2.1).
func (src *source) smtpReply(waiting string) (smtpReply, error) {
	var r smtpReply
	for range maxReplyLines {
		line, err := src.read(waiting)
		if err != nil {
			return r, err
		}
		if len(line) < 3 || len(line) > 3 && line[3] != ' ' && line[3] != '-' || r.code != "" && line[:3] != r.code {
			return r, src.failedf("waiting for %s: not a line of an SMTP reply came", waiting)
		}
		r.code = line[:3]
		r.lines = append(r.lines, line)
		if len(line) == 3 || line[3] == ' ' {
			return r, nil
		}
	}
	return r, src.failedf("%s has no end", waiting)
}

// keyword returns the parameters of an EHLO keyword.
func (r smtpReply) keyword(name string) (params []string, ok bool) {
	for _, l := range r.lines[1:] {
		words := strings.Fields(l[min(4, len(l)):])
		if len(words) > 0 && isWord(words[0], name) {
			return words[1:], true
		}
	}
	return nil, false
}

func (d *submission) prepare(src *source) error {
	s := d.s
	greeting, err := src.smtpReply("the greeting")
	if err != nil {
		return err
	}
	if greeting.code != "220" {
		return src.failedf("the greeting is not 220: %s", greeting.last())
	}
	ehlo, err := d.hello(src)
	if err != nil {
		return err
	}
	if src.ep.TLS == STARTTLS {
		if _, ok := ehlo.keyword("STARTTLS"); !ok {
			return src.failedf("STARTTLS is not offered")
		}
		if err := src.send("STARTTLS"); err != nil {
			return err
		}
		reply, err := src.smtpReply("the reply to STARTTLS")
		if err != nil {
			return err
		}
		if reply.code != "220" {
			return src.failedf("STARTTLS was refused: %s", reply.last())
		}
		if err := src.startTLS(); err != nil {
			return err
		}
		if ehlo, err = d.hello(src); err != nil {
			return err
		}
	}
	if src.ep.Forwarding != ForwardXCLIENT {
		return nil
	}
	const setting = "smtpd_authorized_xclient_hosts"
	attributes, ok := ehlo.keyword("XCLIENT")
	if !ok {
		return src.untrusted(setting, "EHLO does not offer XCLIENT: the source does not trust this proxy")
	}
	if !hasWord(attributes, "ADDR") {
		return src.untrusted(setting, "XCLIENT does not offer ADDR")
	}
	command := s.announcement().XCLIENT(proto.SMTP, func(name string) bool { return hasWord(attributes, name) })
	if err := src.send(command); err != nil {
		return err
	}
	reply, err := src.smtpReply("the reply to XCLIENT")
	if err != nil {
		return err
	}
	if reply.code != "220" {
		return src.untrusted(setting, "XCLIENT was not accepted: %s", reply.last())
	}
	// The reply is a greeting: the session begins again, under the client's name.
	_, err = d.hello(src)
	return err
}

// hello greets the source with the client's own name.
func (d *submission) hello(src *source) (smtpReply, error) {
	if err := src.send("EHLO " + d.s.helo); err != nil {
		return smtpReply{}, err
	}
	r, err := src.smtpReply("the reply to EHLO")
	if err == nil && r.code != "250" {
		err = src.failedf("EHLO %s was refused: %s", d.s.helo, r.last())
	}
	return r, err
}

func (d *submission) present(src *source, c credentials) (string, bool, error) {
	if err := src.send("AUTH " + c.mechanism + " " + c.encoded()); err != nil {
		return "", false, err
	}
	for range maxReplyLines {
		reply, err := src.smtpReply("the verdict on the credentials")
		if err != nil {
			return "", false, err
		}
		switch reply.code[0] {
		case '2':
			return reply.text(), true, nil
		case '4', '5':
			return reply.text(), false, nil
		}
		if err := src.send(giveUp(c)); err != nil {
			return "", false, err
		}
	}
	return "", false, src.failedf("no verdict on the credentials in %d replies", maxReplyLines)
}
