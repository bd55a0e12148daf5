package stalwart

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/stalwart/bug"
)

// maxSMTPLine is the longest command, in octets.
const maxSMTPLine = 4096

// An envelope is an address of an envelope.
type envelope struct {
	address string
	lower   string
}

// smtpSession is a session of SMTP or of submission.
type smtpSession struct {
	*session
	hostname string
	// As it was when the connection came.
	spfEhlo, spfMail, iprev string
	ehloRequired, fqdn      bool
	authRequired            bool
	spoilt                  bool // by a command that is none

	bytesLeft  int
	sent       int // messages
	badRcpts   int
	refused    int // recipients of this transaction
	badAuths   int
	message    []byte
	tooLarge   bool
	chunked    bool
	ehloSPF    *spfOutput
	mailSPF    *spfOutput
	reverse    *iprevOutput
	validUntil time.Time
}

// smtpCommands are the verbs that are known.
var smtpCommands = strings.Fields("EHLO HELO LHLO MAIL RCPT DATA BDAT AUTH NOOP VRFY EXPN HELP RSET QUIT STARTTLS ETRN ATRN BURL")

func (in *session) smtp() {
	s := &smtpSession{session: in}
	if !s.within(0) {
		return
	}
	s.bytesLeft = in.chooseInt("session.transfer-limit", 250<<20)
	s.validUntil = in.srv.now().Add(in.chooseDuration("session.duration", 15*time.Minute))
	s.spfEhlo, s.spfMail, s.iprev = in.chooseText("auth.spf.verify.ehlo"), in.chooseText("auth.spf.verify.mail-from"), in.chooseText("auth.iprev.verify")
	s.ehloRequired, s.fqdn = in.chooseBool("session.ehlo.require"), in.chooseBool("session.ehlo.reject-non-fqdn")
	s.authRequired = in.chooseBool("session.auth.require")
	if s.hostname = in.chooseText("session.connect.hostname"); s.hostname == "" {
		s.hostname = "localhost"
	}
	if greeting := in.chooseText("session.connect.greeting"); greeting != "" {
		in.c.Line("220 ", greeting)
	} else {
		in.c.Line("220 Stalwart ESMTP at your service.")
	}
	for {
		in.c.SetTimeout(in.chooseDuration("session.timeout", 5*time.Minute))
		line, err := s.command()
		if err != nil {
			s.ended(err)
			return
		}
		if len(line) > maxSMTPLine {
			in.log(evSMTPLongLine)
			in.c.Line("554 5.3.4 Line is too long.")
			continue
		}
		if s.bytesLeft -= len(line) + 2; s.bytesLeft < 0 {
			in.c.Line("452 4.7.28 ", s.hostname, " Session exceeded transfer quota.")
			in.log(evSMTPTransfer)
			return
		}
		if in.srv.now().Add(in.c.Passed()).After(s.validUntil) {
			in.c.Line("421 4.3.2 ", s.hostname, " Session open for too long.")
			in.fails(countLoiter, in.core.loiterRate, "")
			return
		}
		if !s.do(line) {
			return
		}
	}
}

// command reads one line. One that is longer than any that is answered ends
// the session.
func (s *smtpSession) command() (string, error) { return s.c.ReadLine(link.MaxLine) }

func (s *smtpSession) ended(err error) {
	switch stopping, late := s.gone(err); {
	case stopping:
		s.c.Line("421 4.3.0 ", s.hostname, " Server shutting down.")
	case late:
		s.log(evTimeout)
		s.c.Line("221 2.0.0 ", s.hostname, " Disconnecting inactive client.")
	}
}

// do answers one command and says whether the session goes on.
func (s *smtpSession) do(line string) bool {
	verb, args, _ := strings.Cut(strings.TrimLeft(line, " "), " ")
	args = strings.TrimSpace(args)
	verb = strings.ToUpper(verb)
	if s.spoilt || !slices.Contains(smtpCommands, verb) {
		if s.who == nil && s.scanned("Invalid SMTP command") {
			return false
		}
		s.log(evSMTPInvalid)
		s.c.Line("500 5.5.1 Invalid command.")
		s.spoilt = s.srv.bugs.Has(bug.SpoiltByBadCommand)
		return true
	}
	switch verb {
	case "EHLO", "HELO", "LHLO":
		switch {
		case (verb == "LHLO") != (s.listener.protocol == "lmtp"):
			s.log(evSMTPEhloExpected)
			s.c.Line("502 5.5.1 Invalid command: EHLO expected.")
		case args == "" || len(args) > 255 || !isHello(args):
			s.log(evSMTPSyntax, field{"details", verb + " domain"})
			if !s.fqdn && verb == "EHLO" {
				return s.ehlo("null", true)
			}
			s.c.Line("501 5.5.2 Syntax error, expected: ", verb, " domain")
		default:
			return s.ehlo(args, verb != "HELO")
		}
	case "MAIL":
		return s.mail(args)
	case "RCPT":
		return s.rcpt(args)
	case "DATA":
		if !s.canSend() {
			return true
		}
		s.c.Line("354 Start mail input; end with <CRLF>.<CRLF>")
		return s.data()
	case "BDAT":
		return s.bdat(args)
	case "AUTH":
		return s.auth(args)
	case "NOOP":
		s.log(evSMTPNoop)
		s.c.Line("250 2.0.0 OK")
	case "RSET":
		s.log(evSMTPRset)
		s.reset()
		s.c.Line("250 2.0.0 OK")
	case "HELP":
		s.log(evSMTPHelp)
		s.c.Line("250 2.0.0 Help can be found at https://stalw.art")
	case "VRFY", "EXPN":
		s.verifyAddress(verb, args)
	case "QUIT":
		s.log(evSMTPQuit)
		s.c.Line("221 2.0.0 Bye.")
		return false
	case "STARTTLS":
		switch {
		case s.isTLS:
			s.log(evSMTPTLSAlready)
			s.c.Line("504 5.7.4 Already in TLS mode.")
		case !s.listener.tls:
			s.log(evSMTPNoTLS)
			s.c.Line("502 5.7.0 TLS not available.")
		default:
			s.log(evSMTPStartTLS)
			s.c.Line("220 2.0.0 Ready to start TLS.")
			return s.handshake(true)
		}
	default:
		s.log(evSMTPNotImpl, field{"details", verb})
		s.c.Line("502 5.5.1 Command not implemented.")
	}
	return true
}

// isHello says whether a name can stand after EHLO at all.
func isHello(name string) bool {
	return !strings.ContainsAny(name, " \t\x00") && strings.IndexFunc(name, func(r rune) bool { return r < ' ' }) < 0
}

// hasLabels says whether a name is an address literal, or has a dot between
// two labels.
func hasLabels(name string) bool {
	if strings.HasPrefix(name, "[") && strings.HasSuffix(name, "]") {
		return true
	}
	labels := strings.Split(strings.TrimSuffix(name, "."), ".")
	return len(labels) > 1 && !slices.Contains(labels, "")
}

func (s *smtpSession) ehlo(name string, extended bool) bool {
	if s.srv.bugs.Has(bug.RefusesHello) && s.listener.id == "smtp" {
		s.c.Line("550 5.7.1 Not now.")
		return true
	}
	if name != s.helo {
		odd := !hasLabels(name) || strings.ContainsAny(name, "[_")
		if s.fqdn && !hasLabels(name) || odd && s.listener.id != "smtp" && s.srv.bugs.Has(bug.RefusesOddNames) {
			s.log(evSMTPBadEhlo, field{"domain", name})
			s.c.Line("550 5.5.0 Invalid EHLO domain.")
			return true
		}
		s.log(evSMTPEhlo, field{"domain", name})
		before := s.helo
		s.helo = name
		if verifies(s.spfEhlo) {
			out := s.srv.cfg.Zone.spf(s.remote.Addr(), name, "postmaster@"+name, name)
			s.logSPF(evSPFEhloPass, evSPFEhloFail, out, field{"domain", name})
			if !s.spfAllows(out, s.spfEhlo) {
				s.sender, s.helo = nil, before
				return true
			}
			s.ehloSPF = out
		}
	}
	if s.sender != nil {
		s.reset()
	}
	if !extended {
		s.c.Line("250 ", s.hostname, " you had me at HELO")
		return true
	}
	caps := []string{s.hostname + " you had me at EHLO"}
	add := func(on bool, text string) {
		if on {
			caps = append(caps, text)
		}
	}
	add(s.chooseBool("session.extensions.vrfy"), "VRFY")
	add(s.chooseBool("session.extensions.expn"), "EXPN")
	add(!s.isTLS && s.listener.tls && !(s.srv.bugs.Has(bug.STARTTLSMissing) && s.listener.id != "smtp"), "STARTTLS")
	add(!s.srv.bugs.Has(bug.UTF8Missing), "SMTPUTF8")
	if n := s.chooseInt("session.data.limits.size", 25<<20); n > 0 {
		add(true, "SIZE "+strconv.Itoa(n))
	}
	add(s.chooseBool("session.extensions.requiretls"), "REQUIRETLS")
	add(s.chooseBool("session.extensions.pipelining"), "PIPELINING")
	if v, ok := s.choose("session.extensions.no-soliciting").(string); ok {
		add(true, strings.TrimSpace("NO-SOLICITING "+v))
	}
	add(s.chooseText("session.extensions.mt-priority") == "mixer", "MT-PRIORITY MIXER")
	if d := s.chooseDuration("session.extensions.future-release", 0); d > 0 {
		add(true, fmt.Sprintf("FUTURERELEASE %d %s", int(d.Seconds()), s.srv.now().Add(d).UTC().Format(time.RFC3339)))
	}
	add(true, "ENHANCEDSTATUSCODES")
	add(s.chooseBool("session.extensions.dsn"), "DSN")
	if d := s.chooseDuration("session.extensions.deliver-by", 0); d > 0 {
		add(true, "DELIVERBY "+strconv.Itoa(int(d.Seconds())))
	}
	add(s.chooseBool("session.extensions.chunking"), "CHUNKING")
	add(true, "BINARYMIME")
	if mechs := s.mechanisms(); len(mechs) > 0 && s.who == nil {
		add(true, "AUTH "+strings.Join(mechs, " "))
	}
	add(!s.srv.bugs.Has(bug.EightBitMissing), "8BITMIME")
	for i, c := range caps {
		if i < len(caps)-1 {
			s.c.Line("250-", c)
		} else {
			s.c.Line("250 ", c)
		}
	}
	return true
}

// mechanisms are those that may be used now, in the order of the reply.
func (s *smtpSession) mechanisms() []string {
	v, _ := s.choose("session.auth.mechanisms").([]any)
	var out []string
	for _, m := range []string{"plain", "login", "xoauth2", "oauthbearer"} {
		if slices.ContainsFunc(v, func(o any) bool { return text(o) == m }) {
			out = append(out, strings.ToUpper(m))
		}
	}
	return out
}

func (s *smtpSession) auth(args string) bool {
	mech, initial, _ := strings.Cut(args, " ")
	mech = strings.ToUpper(mech)
	mechs := s.mechanisms()
	switch {
	case args == "":
		s.log(evSMTPSyntax, field{"details", "AUTH mechanism [initial-response]"})
		s.c.Line("501 5.5.2 Syntax error, expected: AUTH mechanism [initial-response]")
		return true
	case len(mechs) == 0 || !s.chooseBool("session.auth.directory"):
		s.log(evSMTPAuthNot)
		s.c.Line("503 5.5.1 AUTH not allowed.")
		return true
	case s.who != nil:
		s.log(evSMTPAlreadyAuth, field{"accountName", s.who.name})
		s.c.Line("503 5.5.1 Already authenticated.")
		return true
	case !slices.Contains(mechs, mech):
		s.log(evSMTPAuthMech)
		s.c.Line("554 5.7.8 Authentication mechanism not supported.")
		return true
	}
	read := func(prompt string) (string, bool) {
		s.c.Line("334 ", prompt)
		line, err := s.command()
		if err != nil {
			s.ended(err)
			return "", false
		}
		return strings.TrimSpace(line), true
	}
	decode := func(v string) ([]byte, bool) {
		b, err := base64.StdEncoding.DecodeString(v)
		return b, err == nil && v != ""
	}
	var ok bool
	if initial == "" && mech != "LOGIN" {
		if initial, ok = read("Go ahead."); !ok {
			return false
		}
	}
	var user, secret string
	switch mech {
	case "PLAIN":
		b, good := decode(initial)
		if user, secret, ok = plainSASL(b); !good || !ok {
			return s.authError("500 5.5.6 Invalid challenge.")
		}
	case "LOGIN":
		if initial == "" {
			if initial, ok = read("VXNlcm5hbWU6"); !ok {
				return false
			}
		}
		b, good := decode(initial)
		if !good {
			return s.authError("500 5.5.6 Invalid challenge.")
		}
		user = string(b)
		word, ok := read("UGFzc3dvcmQ6")
		if !ok {
			return false
		}
		if b, good = decode(word); !good {
			return s.authError("500 5.5.6 Invalid challenge.")
		}
		secret = string(b)
	}
	who, v := s.verify(user, secret)
	if v != signedIn {
		s.logFailed(v, user, "")
	}
	switch v {
	case wrongSecret:
		if s.srv.bugs.Has(bug.ClosesAfterFailedLogin) {
			return false
		}
		return s.authError("535 5.7.8 Authentication credentials invalid.")
	case banned:
		return false
	case unauthorised:
		s.c.Line("550 5.7.1 Your account is not authorized to use this service.")
		return true
	}
	s.who = who
	s.c.Line("235 2.7.0 Authentication succeeded.")
	return true
}

// authError answers a failed try, late, and says whether the session goes on.
func (s *smtpSession) authError(reply string) bool {
	if s.c.Wait(s.chooseDuration("session.auth.errors.wait", 5*time.Second)) != nil {
		return false
	}
	s.badAuths++
	s.c.Line(reply)
	if s.badAuths < s.chooseInt("session.auth.errors.total", 3) {
		return true
	}
	s.log(evAuthTooMany)
	s.c.Line("455 4.3.0 Too many authentication errors, disconnecting.")
	return false
}

func (s *smtpSession) verifyAddress(verb, args string) {
	switch {
	case !s.chooseBool("session.extensions." + strings.ToLower(verb)):
		e := evSMTPVrfyOff
		if verb == "EXPN" {
			e = evSMTPExpnOff
		}
		s.log(e)
		s.c.Line("252 2.5.1 ", verb, " is disabled.")
	case verb == "EXPN":
		s.c.Line("550 5.1.2 Mailing list not found.")
	default:
		if p := s.srv.dir.recipient(args, s.core.subAddresses); p != nil {
			s.c.Line("250 ", p.primary())
		} else {
			s.c.Line("550 5.1.2 Address not found.")
		}
	}
}

func (s *smtpSession) reset() {
	s.sender, s.rcpts, s.message, s.mailSPF = nil, nil, nil, nil
	s.refused, s.tooLarge, s.chunked = 0, false, false
}

// path reads <address> and what follows it. ok says that it is an address at
// all, and syntax that there are angle brackets.
func path(args, word string) (address string, params []string, ok, syntax bool) {
	if len(args) < len(word) || !strings.EqualFold(args[:len(word)], word) {
		return "", nil, false, false
	}
	rest := strings.TrimLeft(args[len(word):], " ")
	rest, found := strings.CutPrefix(rest, ":")
	rest = strings.TrimLeft(rest, " ")
	if !found || !strings.HasPrefix(rest, "<") {
		return "", nil, false, false
	}
	end, quoted := -1, false
	for i := 1; i < len(rest) && end < 0; i++ {
		switch rest[i] {
		case '"':
			quoted = !quoted
		case '\\':
			i++
		case '>':
			if !quoted {
				end = i
			}
		}
	}
	if end < 0 {
		return "", nil, false, false
	}
	address = rest[1:end]
	if strings.HasPrefix(address, "@") { // a source route is taken away
		_, address, found = strings.Cut(address, ":")
		if !found {
			return "", nil, false, true
		}
	}
	return address, strings.Fields(rest[end+1:]), isAddress(address), true
}

// isAddress says whether an address has a local part and a domain, or is the
// null sender.
func isAddress(a string) bool {
	if a == "" {
		return true
	}
	if strings.EqualFold(a, "postmaster") {
		return true
	}
	i := strings.LastIndexByte(a, '@')
	if i <= 0 || i == len(a)-1 || len(a) > 254+64 {
		return false
	}
	local, domain := a[:i], a[i+1:]
	if strings.HasPrefix(local, `"`) {
		return strings.HasSuffix(local, `"`) && len(local) > 1 && !strings.Contains(domain, "..")
	}
	return !strings.ContainsAny(local, `@"<> `) && !strings.HasPrefix(local, ".") && !strings.Contains(local, "..") &&
		!strings.Contains(domain, "..") && !strings.HasPrefix(domain, ".") && !strings.ContainsAny(domain, "<> ")
}

// mailParams are the parameters of MAIL, and rcptParams those of RCPT.
var (
	mailParams = []string{"SIZE", "BODY", "SMTPUTF8", "REQUIRETLS", "RET", "ENVID", "BY", "HOLDFOR", "HOLDUNTIL", "MT-PRIORITY", "AUTH", "SOLICIT", "TRANSID", "MTRK"}
	rcptParams = []string{"NOTIFY", "ORCPT", "RRVS", "CONNEG"}
)

// params reads parameters by their names. A bad one has been answered.
func (s *smtpSession) params(list, known []string) (map[string]string, bool) {
	out := make(map[string]string)
	for _, p := range list {
		name, value, _ := strings.Cut(p, "=")
		name = strings.ToUpper(name)
		if !slices.Contains(known, name) {
			s.log(evSMTPParameter, field{"details", name})
			s.c.Line("504 5.5.4 Unsupported parameter ", quoteRust(name), ".")
			return nil, false
		}
		bad := false
		switch name {
		case "SIZE":
			_, err := strconv.ParseUint(value, 10, 62)
			bad = err != nil
		case "BODY":
			bad = !slices.Contains([]string{"7BIT", "8BITMIME", "BINARYMIME"}, strings.ToUpper(value))
		case "RET":
			bad = !slices.Contains([]string{"FULL", "HDRS"}, strings.ToUpper(value))
		}
		if bad {
			s.log(evSMTPBadParameter, field{"details", name})
			s.c.Line("501 5.5.4 Invalid parameter ", quoteRust(name), ".")
			return nil, false
		}
		out[name] = value
	}
	return out, true
}

func (s *smtpSession) mail(args string) bool {
	address, list, ok, syntax := path(args, "FROM")
	switch {
	case s.srv.bugs.Has(bug.RefusesSenders) && s.listener.id == "smtp":
		s.c.Line("550 5.7.1 Not now.")
		return true
	case s.srv.bugs.Has(bug.RefusesMailOfOddNames) && !strings.Contains(s.helo, "."):
		s.c.Line("550 5.5.0 Invalid EHLO domain.")
		return true
	case !syntax:
		s.log(evSMTPSyntax, field{"details", "MAIL FROM:<reverse-path> [parameters]"})
		s.c.Line("501 5.5.2 Syntax error, expected: MAIL FROM:<reverse-path> [parameters]")
		return true
	case !ok:
		s.log(evSMTPBadSender)
		s.c.Line("501 5.1.8 Bad sender's system address.")
		return true
	}
	params, ok := s.params(list, mailParams)
	if !ok {
		return true
	}
	switch {
	case s.helo == "" && (s.ehloRequired || verifies(s.spfEhlo) || verifies(s.spfMail)):
		s.log(evSMTPNoEhlo)
		s.c.Line("503 5.5.1 Polite people say EHLO first.")
		return true
	case s.sender != nil:
		s.log(evSMTPMultipleMail)
		s.c.Line("503 5.5.1 Multiple MAIL commands not allowed.")
		return true
	case s.authRequired && s.who == nil && !s.srv.bugs.Has(bug.SubmissionForAnybody):
		s.log(evSMTPUnauth)
		s.c.Line("503 5.5.1 You must authenticate first.")
		return true
	}
	if s.reverse == nil && verifies(s.iprev) {
		s.reverse = s.srv.cfg.Zone.iprev(s.remote.Addr())
		e := evIPRevFail
		if s.reverse.result == "pass" {
			e = evIPRevPass
		}
		s.log(e, field{"domain", s.helo}, field{"result", bare(s.reverse.words())}, field{"elapsed", time.Duration(0)})
	}
	if s.iprev == "strict" && (s.reverse == nil || s.reverse.result != "pass") {
		if s.reverse != nil && s.reverse.result == "temperror" {
			s.c.Line("451 4.7.25 Temporary error validating reverse DNS.")
		} else {
			s.c.Line("550 5.7.25 Reverse DNS validation failed.")
		}
		return true
	}
	if address == "" && s.srv.bugs.Has(bug.NullSenderRefused) {
		s.c.Line("550 5.7.1 Sender address not allowed.")
		return true
	}
	s.sender = &envelope{address, strings.ToLower(address)}
	if !s.chooseBool("session.mail.is-allowed") {
		s.sender = nil
		s.c.Line("550 5.7.1 Sender address not allowed.")
		return true
	}
	if s.who != nil && s.chooseBool("session.auth.must-match-sender") && !s.maySendAs(s.sender.lower) {
		s.log(evSMTPUnauthorized, field{"from", s.sender.lower}, field{"details", words(append([]string{s.who.name}, s.who.emails...))})
		s.sender = nil
		s.c.Line("501 5.5.4 You are not allowed to send from this address.")
		return true
	}
	if v, ok := params["SIZE"]; ok {
		if n, _ := strconv.ParseUint(v, 10, 62); n > uint64(s.chooseInt("session.data.limits.size", 25<<20)) {
			s.log(evSMTPTooLarge, field{"size", n})
			s.sender = nil
			s.c.Line("552 5.3.4 Message too big for system.")
			return true
		}
	}
	if _, ok := params["ENVID"]; ok && !s.chooseBool("session.extensions.dsn") {
		s.log(evSMTPDSN)
		s.sender = nil
		s.c.Line("501 5.5.4 DSN extension has been disabled.")
		return true
	}
	if !s.within(1) {
		s.log(evSMTPRate, field{"from", s.sender.lower})
		s.sender = nil
		s.c.Line("452 4.4.5 Rate limit exceeded, try again later.")
		return true
	}
	if verifies(s.spfMail) {
		from, domain := address, domainPart(s.sender.lower)
		if address == "" {
			from, domain = "postmaster@"+s.helo, s.helo
		}
		out := s.srv.cfg.Zone.spf(s.remote.Addr(), domain, from, s.helo)
		shown := address
		if shown == "" {
			shown = "<>"
		}
		s.logSPF(evSPFFromPass, evSPFFromFail, out, field{"domain", s.helo}, field{"from", shown})
		if !s.spfAllows(out, s.spfMail) {
			s.sender = nil
			return true
		}
		s.mailSPF = out
	}
	s.log(evSMTPMail, field{"from", s.sender.lower})
	s.c.Line("250 2.1.0 OK")
	return true
}

func (s *smtpSession) maySendAs(address string) bool {
	return s.who.name == address || slices.ContainsFunc(s.who.emails, func(e string) bool {
		return e == address || strings.HasPrefix(e, "@") && strings.HasSuffix(address, e)
	})
}

// logSPF writes what a check came to.
func (s *smtpSession) logSPF(pass, fail event, out *spfOutput, fields ...field) {
	e := fail
	if out.result == "pass" {
		e = pass
	}
	s.log(e, append(fields, field{"result", bare(eventOf("spf", out.result))}, field{"elapsed", time.Duration(0)})...)
}

// spfAllows says whether a check lets the client go on; if not, it has been
// answered.
func (s *smtpSession) spfAllows(out *spfOutput, how string) bool {
	switch {
	case how != "strict" || out.result == "pass":
		return true
	case out.result == "temperror":
		s.c.Line("451 4.7.24 Temporary SPF validation error.")
	default:
		s.c.Line("550 5.7.23 SPF validation failed, status: ", out.result, ".")
	}
	return false
}

// verifies says whether a check is made at all.
func verifies(how string) bool { return how == "relaxed" || how == "strict" }

// within asks the limiters of a stage. What they refuse is logged.
func (s *smtpSession) within(stage int) bool {
	for _, l := range s.core.limiters {
		if l.stage != stage || l.match != nil && !truth(l.match.eval(s.session)) {
			continue
		}
		key := l.id
		for _, k := range l.keys {
			key += "\x00" + text(s.variable(k))
		}
		if !s.srv.counts.allow(countSMTP, key, l.rate) {
			s.log(evSMTPRate, field{"id", l.id}, field{"limit", bare(fmt.Sprintf("[%d, %dms]", l.rate.requests, l.rate.period.Milliseconds()))})
			return false
		}
	}
	return true
}

func (s *smtpSession) rcpt(args string) bool {
	address, list, ok, syntax := path(args, "TO")
	switch {
	case !syntax:
		s.log(evSMTPSyntax, field{"details", "RCPT TO:<forward-path> [parameters]"})
		s.c.Line("501 5.5.2 Syntax error, expected: RCPT TO:<forward-path> [parameters]")
		return true
	case !ok || address == "":
		s.log(evSMTPBadRcpt)
		s.c.Line("501 5.1.3 Bad destination mailbox address syntax.")
		return true
	}
	params, ok := s.params(list, rcptParams)
	if !ok {
		return true
	}
	switch {
	case s.sender == nil:
		s.log(evSMTPMailMissing)
		s.c.Line("503 5.5.1 MAIL is required first.")
		return true
	case len(s.rcpts) >= s.chooseInt("session.rcpt.max-recipients", 100):
		s.log(evSMTPTooManyRcpt, field{"limit", len(s.rcpts)})
		s.c.Line("455 4.5.3 Too many recipients.")
		return true
	}
	if (params["NOTIFY"] != "" || params["ORCPT"] != "") && !s.chooseBool("session.extensions.dsn") {
		s.log(evSMTPDSN)
		s.c.Line("501 5.5.4 DSN extension has been disabled.")
		return true
	}
	to := envelope{address, strings.ToLower(address)}
	if slices.ContainsFunc(s.rcpts, func(e envelope) bool { return e.lower == to.lower }) {
		s.log(evSMTPRcptDuplicate, field{"to", to.lower})
		s.c.Line("250 2.1.5 OK")
		return true
	}
	s.rcpts = append(s.rcpts, to)
	drop := func() { s.rcpts = s.rcpts[:len(s.rcpts)-1] }
	local := s.chooseBool("session.rcpt.directory") && s.srv.dir.isLocal(domainPart(to.lower))
	bugs := s.srv.bugs
	switch {
	case (bugs.Has(bug.RelayEveryone) || bugs.Has(bug.SubmissionForAnybody) && s.listener.id != "smtp") && !local:
	case local && bugs.Has(bug.RelayRefusesEveryone) && s.who == nil, !local && !s.chooseBool("session.rcpt.relay"):
		s.log(evSMTPNoRelay, field{"to", to.lower})
		drop()
		return s.rcptError("550 5.1.2 Relay not allowed.", to.lower)
	case local && s.srv.dir.recipient(to.lower, s.core.subAddresses) == nil && !bugs.Has(bug.AcceptsUnknown):
		s.log(evSMTPNoMailbox, field{"to", to.lower})
		drop()
		return s.rcptError("550 5.1.2 Mailbox does not exist.", to.lower)
	}
	if !s.within(2) {
		s.log(evSMTPRate, field{"to", to.lower})
		drop()
		s.c.Line("452 4.4.5 Rate limit exceeded, try again later.")
		return true
	}
	if s.core.greylist > 0 && s.who == nil && s.srv.counts.allow(countGreylist, s.sender.lower+to.lower, rate{1, s.core.greylist}) {
		s.log(evSMTPGreylisted, field{"to", to.lower})
		drop()
		s.c.Line("452 4.2.2 Greylisted, please try again in a few moments.")
		return true
	}
	s.log(evSMTPRcpt, field{"to", to.lower})
	s.c.Line("250 2.1.5 OK")
	return true
}

// rcptError refuses a recipient, late, and says whether the session goes on.
func (s *smtpSession) rcptError(reply, to string) bool {
	if s.c.Wait(s.chooseDuration("session.rcpt.errors.wait", 5*time.Second)) != nil {
		return false
	}
	s.badRcpts++
	s.refused++
	limit := s.chooseInt("session.rcpt.errors.total", 5)
	if s.fails(countRcpt, s.core.abuseRate, to) {
		s.log(evAbuseBan, field{"remoteIp", s.remote.Addr()}, field{"to", to})
	} else if s.badRcpts >= limit {
		s.log(evSMTPBadRcpts, field{"limit", limit}, field{"to", to})
	}
	if s.badRcpts < limit {
		s.c.Line(reply)
		return true
	}
	s.c.Line("451 4.3.0 Too many errors, disconnecting.")
	return false
}
