package postfix

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
)

// mail is a mail transaction.
type mail struct {
	inMail     bool
	sender     string
	asked      int // the SIZE that was announced
	utf8       bool
	eightBit   bool
	arrived    time.Time
	queueID    string // "" before the first good recipient
	recipients []recipient
	rcptCount  int
	overshoot  int
	badRcpts   int  // recipients that were refused
	local      bool // the message is rewritten as one of the host's own
	prepend    []string
	discarded  bool // an access table wants it thrown away
	held       bool // or kept in the queue

	size     int // octets of the message that were taken
	body     []byte
	failure  string // why the message cannot be taken
	inBDAT   bool
	badBDAT  bool // chunks are read and thrown away
	sawFirst bool
	tail     []byte // the beginning of a line that is not whole yet
}

// recipient is one that was accepted.
type recipient struct {
	addr   string
	notify notify
}

// notify is what NOTIFY asked for (RFC 3461).
type notify int

const (
	notifyDefault notify = iota
	notifyNever
	notifyFailure
	notifyOther
)

// resetMail forgets the transaction, as at RSET. 3.10 logs that a queue file
// was given up.
func (in *session) resetMail() {
	if in.queueID != "" && in.srv.c.release == Trixie {
		in.srv.daemon("cleanup", in.queueID, ": removed (canceled)")
	}
	rcpts, n, over := in.recipients[:0], in.rcptCount, in.overshoot
	in.mail = mail{recipients: rcpts, rcptCount: n, overshoot: over}
	in.saslSender = ""
	in.xf = nil
}

func (in *session) resetRecipients() {
	in.recipients, in.rcptCount, in.overshoot = in.recipients[:0], 0, 0
	in.lastRecipient = ""
}

// queueIDOr is the queue id, or what stands for none.
func (in *session) queueIDOr() string {
	if in.queueID == "" {
		return "NOQUEUE"
	}
	return in.queueID
}

func (in *session) rsetCmd(args []token) outcome {
	if len(args) != 1 {
		return in.fail("501 5.5.4 Syntax: RSET")
	}
	in.resetMail()
	in.resetRecipients()
	in.reply("250 2.0.0 Ok")
	return done
}

// own says whether an address literal is the host's.
func (in *session) own(a netip.Addr) bool { return in.srv.isOwn(a) }

// path reads the address of a command. ok is false for what is none, which is
// logged.
func (in *session) path(word string, emptyOK bool) (addr string, ok bool) {
	addr, ok = mailPath(word, in.set.strict821)
	if ok && addr == "" {
		ok = emptyOK
	} else if ok {
		r := in.set.resolve(addr, in.own)
		_, domain, _ := cutLast(r.addr)
		ok = !r.bad && (in.utf8 || ascii(domain))
	}
	if !ok {
		in.log("warning: Illegal address syntax from ", in.client(), " in ", in.where, " command: ", printable(word, '?'))
	}
	return addr, ok
}

func (in *session) mailCmd(args []token) outcome {
	set, bugs := in.set, in.srv.bugs
	in.utf8, in.eightBit = false, false
	switch {
	case set.heloRequired && !in.hasHelo:
		return in.fail("503 5.5.1 Error: send HELO/EHLO first")
	case in.inMail:
		return in.fail("503 5.5.1 Error: nested MAIL command")
	case in.inBDAT || in.badBDAT:
		return in.fail("503 5.5.1 Error: MAIL after BDAT")
	case len(args) < 3 || !strings.EqualFold(args[1].text, "from:"):
		return in.fail("501 5.5.4 Syntax: MAIL FROM:<address>")
	}
	if n, over := in.limited(set.messageRate, func(e *events) *int { return &e.mails }); over {
		out := in.fail("450 4.7.1 Error: too much mail from ", in.addr)
		in.log("warning: Message delivery request rate limit exceeded: ", itoa(n), " from ", in.client(), " for service ", set.name)
		return out
	}
	if args[2].bad {
		return in.fail("501 5.1.7 Bad sender address syntax")
	}
	utf8OK := set.utf8 && !set.discard["SMTPUTF8"]
	for _, a := range args[3:] {
		if utf8OK && strings.EqualFold(a.text, "SMTPUTF8") {
			in.utf8 = true
		}
	}
	sender, ok := in.path(args[2].text, true)
	if !ok {
		return in.fail("501 5.1.7 Bad sender address syntax")
	}
	if wrong := in.mailOptions(args[3:], utf8OK); wrong != "" {
		return in.fail(wrong)
	}
	if set.sizeLimit > 0 && in.asked > set.sizeLimit {
		text := "552 5.3.4 Message size exceeds fixed limit"
		in.whatsup("reject", text, &sender, nil)
		return in.fail(text)
	}
	if !set.delayReject {
		if r := in.checkMail(sender); r != "" {
			in.resetMail()
			return in.fail(r)
		}
	}
	if in.milterRefuses != "" {
		in.whatsup("milter-reject", in.milterRefuses, &sender, nil)
		in.resetMail()
		return in.fail(in.milterRefuses)
	}
	if bugs.Has(bug.HELORuleAtMAIL) && internal(in.helo) {
		return in.fail(unqualified(in.helo))
	}
	if bugs.Has(bug.ShedsLoad) {
		if n := in.srv.messagesOf(in.c.Peer.Addr()); n > 10 && n%2 == 1 {
			return in.fail(shed)
		} else if n > 10 {
			in.failure = shed
		}
	}
	if sender == "" && bugs.Has(bug.NullSenderRefused) {
		return in.fail("550 5.7.1 <>: Sender address rejected: Access denied")
	}
	if sender == "" && bugs.Has(bug.NullSenderReplaced) {
		sender = "MAILER-DAEMON@" + set.myhostname
	}
	in.local = in.rewrites()
	if set.strictUTF8 && !in.utf8 && !ascii(sender) {
		return in.fail("553 5.6.7 Must declare SMTPUTF8 to send unicode address")
	}
	in.arrived = in.srv.now()
	in.inMail, in.sender = true, sender
	in.reply("250 2.1.0 Ok")
	return done
}

// mailOptions reads the parameters of MAIL, and says what is wrong with them.
func (in *session) mailOptions(args []token, utf8OK bool) (wrong string) {
	ret, envid := false, false
	for _, a := range args {
		name, v, has := strings.Cut(a.text, "=")
		name = strings.ToUpper(name)
		dsn := name == "RET" || name == "ENVID"
		switch {
		case has && dsn && in.set.discard["DSN"]:
			return "501 5.7.1 DSN support is disabled"
		case strings.EqualFold(a.text, "BODY=8BITMIME"):
			in.eightBit = true
		case strings.EqualFold(a.text, "BODY=7BIT"):
			in.eightBit = false
		case has && name == "SIZE":
			if !allDigits(v) {
				return "501 5.5.4 Bad message size syntax"
			}
			n, err := strconv.ParseInt(v, 10, 63)
			if err != nil {
				return "552 5.3.4 Message size exceeds file system imposed limit"
			}
			in.asked = int(n)
		case utf8OK && strings.EqualFold(a.text, "SMTPUTF8"):
		case has && name == "AUTH":
			if in.saslSender != "" {
				return "503 5.5.4 Error: multiple AUTH= options"
			}
			if v != "<>" {
				in.saslSender = printable(v, '?')
			}
		case has && name == "RET":
			if ret || !strings.EqualFold(v, "FULL") && !strings.EqualFold(v, "HDRS") {
				return "501 5.5.4 Bad RET parameter syntax"
			}
			ret = true
		case has && name == "ENVID":
			text, ok := unxtext(v)
			if envid || !ok || printable(text, '\x00') != text || !ascii(text) {
				return "501 5.5.4 Bad ENVID parameter syntax"
			}
			envid = true
		default:
			return "555 5.5.4 Unsupported option: " + a.text
		}
	}
	return ""
}

// rewrites says whether a message is completed as one of the host's own is
// (local_header_rewrite_clients).
func (in *session) rewrites() bool {
	for _, w := range in.set.rewriteClients {
		switch {
		case strings.EqualFold(w, "permit_inet_interfaces"):
			// It is the connection that counts, not who was announced.
			if in.srv.isOwn(in.c.Peer.Addr()) {
				return true
			}
		case strings.EqualFold(w, "permit_mynetworks"):
			if in.matches(in.set.mynetworks) {
				return true
			}
		case strings.EqualFold(w, "permit_sasl_authenticated"):
			if in.signedIn() {
				return true
			}
		case strings.Contains(w, ":"):
			if t := in.set.tables.get(w); t.broken == "" {
				if _, ok := t.find(in.addr); ok {
					return true
				}
			}
		}
	}
	return false
}

func (in *session) rcptCmd(args []token) outcome {
	o := in.rcpt(args)
	if o == failed && in.inMail {
		in.badRcpts++
	}
	return o
}

func (in *session) rcpt(args []token) outcome {
	set := in.set
	switch {
	case !in.inMail:
		return in.fail("503 5.5.1 Error: need MAIL command")
	case in.inBDAT || in.badBDAT:
		return in.fail("503 5.5.1 Error: RCPT after BDAT")
	case len(args) < 3 || !strings.EqualFold(args[1].text, "to:"):
		return in.fail("501 5.5.4 Syntax: RCPT TO:<address>")
	}
	if n, over := in.limited(set.recipientRate, func(e *events) *int { return &e.rcpts }); over {
		in.log("warning: Recipient address rate limit exceeded: ", itoa(n), " from ", in.client(), " for service ", set.name)
		return in.fail("450 4.7.1 Error: too many recipients from ", in.addr)
	}
	if args[2].bad {
		return in.fail("501 5.1.3 Bad recipient address syntax")
	}
	addr, ok := in.path(args[2].text, false)
	if !ok {
		return in.fail("501 5.1.3 Bad recipient address syntax")
	}
	r := recipient{addr: addr}
	if wrong := in.rcptOptions(args[3:], &r); wrong != "" {
		return in.fail(wrong)
	}
	if set.recipients > 0 && in.rcptCount >= set.recipients {
		in.reply("452 4.5.3 Error: too many recipients")
		if in.overshoot++; in.overshoot <= set.overshoot {
			return done
		}
		return failed
	}
	if set.strictUTF8 && !in.utf8 && !ascii(addr) {
		return in.fail("553 5.6.7 Must declare SMTPUTF8 to send unicode address")
	}
	if !in.srv.bugs.Has(bug.RoutedAccepted) || !routed(args[2].text) {
		if refused := in.checkRcpt(addr); refused != "" {
			if in.fatalList {
				return in.dataError()
			}
			return in.fail(refused)
		}
	}
	if in.queueID == "" {
		in.openQueue()
	}
	in.rcptCount++
	if in.lastRecipient == "" {
		in.lastRecipient = addr
	}
	in.recipients = append(in.recipients, r)
	in.reply("250 2.1.5 Ok")
	return done
}

// routed says whether an address, as it was given, names another host that the
// message is to go on to.
func routed(addr string) bool {
	return strings.Count(addr, "@") > 1 || strings.Contains(addr, "%")
}

func (in *session) rcptOptions(args []token, r *recipient) (wrong string) {
	orcpt := false
	for _, a := range args {
		name, v, has := strings.Cut(a.text, "=")
		name = strings.ToUpper(name)
		switch {
		case has && (name == "NOTIFY" || name == "ORCPT") && in.set.discard["DSN"]:
			return "501 5.7.1 DSN support is disabled"
		case has && name == "NOTIFY":
			n, ok := parseNotify(v)
			if r.notify != notifyDefault || !ok {
				return "501 5.5.4 Error: Bad NOTIFY parameter syntax"
			}
			r.notify = n
		case has && name == "ORCPT":
			kind, addr, ok := strings.Cut(v, ";")
			if _, fine := unxtext(addr); orcpt || !ok || kind == "" || !fine {
				return "501 5.5.4 Error: Bad ORCPT parameter syntax"
			}
			orcpt = true
		default:
			return "555 5.5.4 Unsupported option: " + a.text
		}
	}
	return ""
}

func parseNotify(v string) (notify, bool) {
	n := notifyDefault
	words := strings.Split(v, ",")
	for _, w := range words {
		switch strings.ToUpper(w) {
		case "NEVER":
			if len(words) > 1 {
				return 0, false
			}
			n = notifyNever
		case "FAILURE":
			n = notifyFailure
		case "SUCCESS", "DELAY":
			if n == notifyDefault {
				n = notifyOther
			}
		default:
			return 0, false
		}
	}
	return n, true
}

// openQueue makes a queue file for the transaction and logs whose it is.
func (in *session) openQueue() {
	in.queueID = in.srv.queueID(in.srv.now())
	b := make([]byte, 0, 160)
	add := func(name, v string) {
		if v != "" {
			b = append(append(b, name...), v...)
		}
	}
	add(", sasl_method=", in.saslMethod)
	add(", sasl_username=", in.saslUser)
	add(", sasl_sender=", in.saslSender)
	if xf := in.xf; xf != nil {
		add(", orig_queue_id=", xf.ident)
		if xf.addr == unknown {
			add(", orig_client=", xf.name)
		} else {
			add(", orig_client=", in.describe(xf.name, xf.addr, xf.port))
		}
	}
	in.log(in.queueID, ": client=", in.client(), string(b))
}

func (in *session) vrfyCmd(args []token) outcome {
	set := in.set
	if !set.vrfy {
		return in.fail("502 5.5.1 VRFY command is disabled")
	}
	was := in.utf8
	defer func() { in.utf8 = was }()
	if n := len(args); set.utf8 && n > 1 && strings.EqualFold(args[n-1].text, "SMTPUTF8") {
		args, in.utf8 = args[:n-1], true
	}
	if len(args) < 2 {
		if set.utf8 {
			return in.fail("501 5.5.4 Syntax: VRFY address [SMTPUTF8]")
		}
		return in.fail("501 5.5.4 Syntax: VRFY address")
	}
	word := helloName(args)
	addr, ok := in.path(word, false)
	if !ok {
		return in.fail("501 5.1.3 Bad recipient address syntax")
	}
	if refused := in.checkRcpt(addr); refused != "" {
		return in.fail(refused)
	}
	in.reply("252 2.0.0 ", word)
	return done
}

// whatsup logs a decision with everything that is known of the transaction.
// The sender and the recipient are those given, or the transaction's own.
func (in *session) whatsup(what, text string, sender, rcpt *string) {
	b := make([]byte, 0, 320)
	add := func(parts ...string) {
		for _, p := range parts {
			b = append(b, p...)
		}
	}
	add(in.queueIDOr(), ": ", what, ": ", in.where, " from ", in.client(), ": ", text, ";")
	if sender == nil && in.inMail {
		sender = &in.sender
	}
	if sender != nil {
		add(" from=<", quoteLocal(*sender), ">")
	}
	if rcpt == nil && in.lastRecipient != "" {
		rcpt = &in.lastRecipient
	}
	if rcpt != nil {
		add(" to=<", quoteLocal(*rcpt), ">")
	}
	add(" proto=", in.proto)
	if in.hasHelo {
		add(" helo=<", in.helo, ">")
	}
	if in.srv.c.release == Trixie {
		if in.saslMethod != "" {
			add(" sasl_method=", in.saslMethod)
		}
		if in.saslUser != "" {
			add(" sasl_username=", in.saslUser)
		}
		if in.saslSender != "" {
			add(" sasl_sender=", in.saslSender)
		}
	}
	in.log(string(b))
}

// mailDate writes a time as header fields do.
func mailDate(t time.Time) string {
	zone, _ := t.Zone()
	return fmt.Sprintf("%s (%s)", t.Format("Mon, _2 Jan 2006 15:04:05 -0700"), zone)
}

// has8bit says whether a text needs more than ASCII.
func has8bit(b []byte) bool {
	for _, c := range b {
		if c >= utf8.RuneSelf {
			return true
		}
	}
	return false
}
