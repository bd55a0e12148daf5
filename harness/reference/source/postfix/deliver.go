package postfix

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/dovecot"
)

// hopLimit is hopcount_limit: how many Received fields a message may have.
const hopLimit = 50

// submit is cleanup and what comes after it. It returns why the message is
// refused.
func (in *session) submit(chunked bool) (refused string) {
	srv, bugs := in.srv, in.srv.bugs
	body := in.body
	if bugs.Has(bug.BDATTruncates) && chunked {
		body = body[:len(body)/2]
		if i := bytes.LastIndexByte(body, '\n'); i >= 0 {
			body = body[:i+1]
		}
	}
	if bugs.Has(bug.Strips8Bit) {
		for i := range body {
			body[i] &= 0x7f
		}
	}
	if bugs.Has(bug.RewritesBody) {
		body = append(body, "-- \r\nThis message was checked.\r\n"...)
	}
	h := scanHeader(body)
	if h.hops >= hopLimit {
		if srv.c.release == Trixie {
			return "554 5.4.6 Error: too many hops"
		}
		return "554 5.4.0 Error: too many hops"
	}
	var top []byte
	for _, p := range in.prepend {
		top = append(append(top, p...), "\r\n"...)
	}
	top = in.received(top)
	var added []byte
	complete := in.local || in.set.addHeaders
	switch {
	case h.messageID != "":
	case complete:
		h.messageID = "<" + in.arrived.Format("20060102150405") + "." + in.queueID + "@" + in.set.myhostname + ">"
		added = append(added, "Message-Id: "+h.messageID+"\r\n"...)
	}
	if complete && !h.date {
		added = append(added, "Date: "+mailDate(in.arrived)+"\r\n"...)
	}
	if complete && !h.from {
		from := in.sender
		if from == "" {
			from = "MAILER-DAEMON@" + in.set.myorigin
		}
		added = append(added, "From: "+quoteLocal(from)+"\r\n"...)
	}
	text := make([]byte, 0, len(top)+len(body)+len(added)+2)
	text = append(append(text, top...), body[:h.end]...)
	text = append(text, added...)
	if h.noBlank {
		text = append(text, "\r\n"...)
	}
	text = append(text, body[h.end:]...)
	m := &message{
		in: in, id: in.queueID, sender: in.sender, arrived: in.arrived, text: text, messageID: h.messageID,
		utf8: in.utf8 && (h.utf8 || !ascii(in.sender)),
	}
	logged := h.messageID
	if logged == "" {
		logged = "<>"
	}
	srv.daemon("cleanup", m.id, ": message-id=", printable(logged, '?'))
	if in.discarded || in.held {
		return ""
	}
	for _, r := range in.recipients {
		m.expand(r)
	}
	m.run()
	return ""
}

// received writes the Received field.
func (in *session) received(b []byte) []byte {
	helo, name, addr := in.helo, in.name, in.rfcAddr
	hide := in.set.hideSession
	if in.srv.bugs.Has(bug.ReceivedShowsProxy) {
		hide = false
		name, addr = in.peerName, in.c.Peer.Addr().String()
		if in.c.Peer.Addr().Is6() {
			addr = "IPv6:" + addr
		}
	}
	if !in.hasHelo {
		helo = name
	}
	with, kind := "", ""
	lead := "Received: "
	if !hide {
		lead = "\t"
		b = append(b, "Received: from "+helo+" ("+name+" ["+addr+"])\r\n"...)
		if in.set.tlsHeader && in.c.Secure() {
			f := in.tlsFacts()
			b = append(b, fmt.Sprintf("\t(using %s with cipher %s (%d/%d bits)\r\n", f.protocol, f.cipher, f.bits, f.bits)...)
			if f.exchange != "" {
				b = append(b, "\t key-exchange "+f.exchange+" server-signature "+f.sign+" server-digest SHA256)\r\n"...)
			} else {
				b = append(b[:len(b)-2], ")\r\n"...)
			}
			b = append(b, "\t(No client certificate requested)\r\n"...)
		}
		if in.set.authHeader && in.saslUser != "" {
			b = append(b, "\t(Authenticated sender: "+commentSafe(in.saslUser)+")\r\n"...)
		}
		kind = in.proto
		if in.utf8 {
			kind = "UTF8SMTP"
		}
		if in.proto == "ESMTP" && in.c.Secure() {
			kind += "S"
		}
		if in.proto == "ESMTP" && in.saslUser != "" {
			kind += "A"
		}
		with = " with "
	}
	b = append(b, lead+"by "+in.set.myhostname+" ("+in.set.mailName+")"+with+kind+" id "+in.queueID...)
	if in.rcptCount == 1 {
		return append(b, "\r\n\tfor <"+quoteLocal(in.lastRecipient)+">; "+mailDate(in.arrived)+"\r\n"...)
	}
	return append(b, ";\r\n\t"+mailDate(in.arrived)+"\r\n"...)
}

// commentSafe makes a text one that may stand in a comment.
func commentSafe(s string) string {
	var b strings.Builder
	open := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		switch {
		case c < ' ' || c > '~' || c == '\\':
			c = '?'
		case c == '(':
			open++
		case c == ')' && open > 0:
			open--
		case c == ')':
			c = '?'
		}
		b.WriteByte(c)
	}
	return b.String() + strings.Repeat(")", open)
}

// header is what cleanup looks for in the header of a message.
type header struct {
	end        int  // where it ends: at the empty line, or at what is no field
	noBlank    bool // no empty line is there
	messageID  string
	date, from bool
	utf8       bool
	hops       int
}

func scanHeader(b []byte) header {
	var h header
	name := ""
	for rest := b; ; {
		line, after, ok := bytes.Cut(rest, []byte("\r\n"))
		if !ok {
			h.end, h.noBlank = len(b), true
			return h
		}
		switch {
		case len(line) == 0:
			return h
		case line[0] == ' ' || line[0] == '\t':
			if name == "" {
				h.noBlank = true
				return h
			}
			if name == "message-id" && h.messageID == "" {
				h.messageID = strings.TrimSpace(string(line))
			}
		case !isHeader(string(line)):
			h.noBlank = true
			return h
		default:
			n, v, _ := strings.Cut(string(line), ":")
			switch name = strings.ToLower(n); name {
			case "message-id":
				if h.messageID == "" {
					h.messageID = strings.TrimSpace(v)
				}
			case "date":
				h.date = true
			case "from":
				h.from = true
			case "received":
				h.hops++
			}
		}
		h.utf8 = h.utf8 || has8bit(line)
		h.end += len(line) + 2
		rest = after
	}
}

// queueSize is how long the message is in its queue file: each line is a
// record with its type and length before it.
func queueSize(text []byte, lineLimit int) int {
	n := 0
	record := func(size int) {
		n += 2 + size
		for size >>= 7; size > 0; size >>= 7 {
			n++
		}
	}
	for len(text) > 0 {
		line, after, _ := bytes.Cut(text, []byte("\r\n"))
		for lineLimit > 0 && len(line) > lineLimit {
			record(lineLimit)
			line = line[lineLimit:]
		}
		record(len(line))
		text = after
	}
	return n
}

// message is one in the queue.
type message struct {
	in        *session
	id        string
	sender    string
	arrived   time.Time
	text      []byte
	messageID string
	utf8      bool
	to        []target
	bounced   []failure
	deferred  bool
	isBounce  bool
}

// target is one recipient after aliases were looked up.
type target struct {
	addr, orig string
	notify     notify
}

// failure is a recipient that did not get the message.
type failure struct {
	target
	dsn, why string
}

// maxAliases bounds how deep aliases may name each other, and how many
// recipients may come of one.
const (
	maxAliases  = 1000
	maxAliasing = 20
)

// expand looks a recipient up in virtual_alias_maps.
func (m *message) expand(r recipient) {
	set := m.in.set
	var walk func(addr string, depth int)
	add := func(addr string) {
		orig := ""
		if !strings.EqualFold(addr, r.addr) {
			orig = r.addr
		}
		for _, t := range m.to {
			if strings.EqualFold(t.addr, addr) {
				return
			}
		}
		if len(m.to) < maxAliases {
			m.to = append(m.to, target{addr, orig, r.notify})
		}
	}
	walk = func(addr string, depth int) {
		full := addr
		if _, _, ok := cutLast(full); !ok {
			l, d := set.qualify(full)
			full = l + "@" + d
		}
		v, ok, _ := set.aliasMaps.findAddress(full, set.delimiters, m.in.isLocalDomain)
		if !ok || depth > maxAliasing {
			add(full)
			return
		}
		for _, w := range words(v) {
			if w[0] == '@' { // the domain is another, the name the same
				l, _, _ := cutLast(full)
				w = l + w
			}
			if strings.EqualFold(w, full) {
				add(full)
			} else {
				walk(w, depth+1)
			}
		}
	}
	walk(r.addr, 0)
}

// maxTogether is lmtp_destination_recipient_limit.
const maxTogether = 50

// run is qmgr: it delivers, and bounces what cannot be delivered.
func (m *message) run() {
	srv, set := m.in.srv, m.in.set
	size := queueSize(m.text, set.lineLimit)
	srv.daemon("qmgr", m.id, ": from=<", quoteLocal(m.sender), ">, size=", itoa(size), ", nrcpt=", itoa(len(m.to)), " (queue active)")
	together := make(map[string][]target)
	var order []string
	for _, t := range m.to {
		r := set.resolve(t.addr, srv.isOwn)
		if r.via.name == "lmtp" && r.broken == nil && !r.bad {
			if together[r.via.nexthop] == nil {
				order = append(order, r.via.nexthop)
			}
			together[r.via.nexthop] = append(together[r.via.nexthop], t)
			continue
		}
		m.alone(t, r)
	}
	for _, hop := range order {
		for list := together[hop]; len(list) > 0; {
			n := min(len(list), maxTogether)
			m.lmtp(hop, list[:n])
			list = list[n:]
		}
	}
	if len(m.bounced) > 0 {
		m.bounce()
	}
	if !m.deferred {
		srv.daemon("qmgr", m.id, ": removed")
	}
}

// log logs what became of one recipient.
func (m *message) log(program string, t target, relay, dsn, status, why string) {
	orig := ""
	if t.orig != "" {
		orig = ", orig_to=<" + quoteLocal(t.orig) + ">"
	}
	m.in.srv.daemon(program, m.id, ": to=<", quoteLocal(t.addr), ">", orig, ", relay=", relay,
		", delay=0.01, delays=0/0/0/0.01, dsn=", dsn, ", status=", status, " (", why, ")")
}

// lose records that a recipient did not get the message.
func (m *message) lose(program string, t target, relay, dsn, why string) {
	if dsn[0] == '4' {
		m.log(program, t, relay, dsn, "deferred", why)
		m.deferred = true
		return
	}
	m.log(program, t, relay, dsn, "bounced", why)
	m.bounced = append(m.bounced, failure{t, dsn, why})
}

// alone delivers to one recipient that is no business of LMTP's.
func (m *message) alone(t target, r resolved) {
	set := m.in.set
	switch {
	case r.broken != nil:
		m.lose("error", t, "none", "4.3.0", "address resolver failure")
	case r.bad:
		m.lose("error", t, "none", "5.1.3", "bad address syntax")
	case r.via.name == "error":
		dsn, text := splitDSN("5.0.0", r.via.nexthop)
		m.lose("error", t, "none", dsn, text)
	case r.via.name == "retry":
		dsn, text := splitDSN("4.0.0", r.via.nexthop)
		m.lose("error", t, "none", dsn, text)
	case r.via.name == "discard":
		m.log("error", t, "none", "2.0.0", "sent", or(r.via.nexthop, r.domain))
	case r.via.name == "local":
		m.local(t, r)
	case r.via.name == "virtual":
		if _, ok, _ := set.mailboxMaps.findAddress(r.addr, set.delimiters, m.in.isLocalDomain); !ok {
			m.lose("local", t, "virtual", "5.1.1", "unknown user: \""+r.addr+"\"")
			return
		}
		m.log("local", t, "virtual", "2.0.0", "sent", "delivered to maildir")
	default: // smtp and relay: nothing leaves the source
		m.away(t, r)
	}
}

// local plays local(8): Debian's system users have mailboxes that nobody reads.
func (m *message) local(t target, r resolved) {
	set := m.in.set
	name, _, _ := cutLast(r.addr)
	if i := strings.IndexAny(name, set.delimiters); set.delimiters != "" && i > 0 {
		name = name[:i]
	}
	if _, ok := setTable(systemUsers).find(name); ok {
		m.log("local", t, "local", "2.0.0", "sent", "delivered to mailbox")
		return
	}
	if set.luserRelay == "" {
		m.lose("local", t, "local", "5.1.1", "unknown user: \""+name+"\"")
		return
	}
	next := &message{in: m.in, id: m.in.srv.queueID(m.in.srv.now()), sender: m.sender, arrived: m.arrived, text: m.text, messageID: m.messageID, isBounce: m.isBounce}
	m.in.srv.daemon("cleanup", next.id, ": message-id=", m.messageID)
	m.log("local", t, "local", "2.0.0", "sent", "forwarded as "+next.id)
	next.expand(recipient{addr: strings.ReplaceAll(set.luserRelay, "$user", name), notify: t.notify})
	for i := range next.to {
		next.to[i].orig = t.addr
	}
	next.isForward()
	next.run()
}

// isForward keeps what luser_relay made from being forwarded again.
func (m *message) isForward() {
	kept := m.to[:0]
	for _, t := range m.to {
		if r := m.in.set.resolve(t.addr, m.in.srv.isOwn); r.class != classLocal {
			kept = append(kept, t)
		}
	}
	m.to = kept
}

// away plays smtp(8) on a host that reaches nobody.
func (m *message) away(t target, r resolved) {
	hop := strings.TrimPrefix(r.via.nexthop, "inet:")
	host, port := hop, "25"
	if i := strings.LastIndexByte(hop, ':'); i > strings.LastIndexByte(hop, ']') {
		host, port = hop[:i], hop[i+1:]
	}
	bare := strings.Trim(host, "[]")
	if a, err := netip.ParseAddr(strings.TrimPrefix(strings.ToLower(bare), "ipv6:")); err == nil {
		m.lose("smtp", t, "none", "4.4.1", fmt.Sprintf("connect to %s[%s]:%s: Connection refused", bare, a, port))
		return
	}
	kind := "MX"
	if strings.HasPrefix(host, "[") {
		kind = "AAAA"
	}
	m.lose("smtp", t, "none", "4.4.3", fmt.Sprintf("Host or domain name not found. Name service error for name=%s type=%s: Host not found, try again", bare, kind))
}

// lmtp gives the message to Dovecot.
func (m *message) lmtp(hop string, list []target) {
	srv, set := m.in.srv, m.in.set
	path := strings.TrimPrefix(hop, "unix:")
	relay := set.myhostname + "[" + path + "]"
	why := ""
	if path == hop && strings.Contains(hop, ":") {
		relay, why = "none", "connect to "+strings.TrimPrefix(hop, "inet:")+": Connection refused"
	} else if !srv.dovecot.Config().HasLMTPSocket(path) {
		why = "connect to " + relay + ": No such file or directory"
		relay = "none"
	}
	if why != "" {
		for _, t := range list {
			m.lose("lmtp", t, relay, "4.4.1", why)
		}
		return
	}
	if m.utf8 {
		for _, t := range list {
			m.lose("lmtp", t, relay, "5.6.7", "SMTPUTF8 is required, but was not offered by host "+relay)
		}
		return
	}
	d := dovecot.Delivery{
		Client: set.myhostname, From: m.sender, Message: foldLong(m.text),
		MessageID: m.messageID, Date: mailDate(srv.now()),
	}
	for _, t := range list {
		d.Recipients = append(d.Recipients, t.addr)
	}
	for i, rep := range srv.dovecot.Deliver(d) {
		if rep.OK {
			m.log("lmtp", list[i], relay, "2.0.0", "sent", rep.Text)
			continue
		}
		dsn, _ := splitDSN("5.0.0", rep.Text[4:])
		m.lose("lmtp", list[i], relay, dsn, "host "+relay+" said: "+rep.Text+" (in reply to RCPT TO command)")
	}
}

// maxSMTPLine is smtp_line_length_limit.
const maxSMTPLine = 998

// foldLong breaks lines that are longer than SMTP allows, as Postfix does when
// it passes a message on.
func foldLong(text []byte) []byte {
	long := false
	for rest := text; len(rest) > 0 && !long; {
		i := bytes.IndexByte(rest, '\n')
		if i < 0 {
			i = len(rest) - 1
		}
		long = i > maxSMTPLine+1
		rest = rest[i+1:]
	}
	if !long {
		return text
	}
	out := make([]byte, 0, len(text)+len(text)/300)
	for len(text) > 0 {
		line, after, _ := bytes.Cut(text, []byte("\r\n"))
		for len(line) > maxSMTPLine {
			out = append(append(out, line[:maxSMTPLine]...), "\r\n "...)
			line = line[maxSMTPLine:]
		}
		out = append(append(out, line...), "\r\n"...)
		text = after
	}
	return out
}

// bounce tells the sender what could not be delivered.
func (m *message) bounce() {
	var told []failure
	for _, f := range m.bounced {
		if f.notify != notifyNever && f.notify != notifyOther {
			told = append(told, f)
		}
	}
	if m.sender == "" || m.isBounce || len(told) == 0 {
		return
	}
	srv, set := m.in.srv, m.in.set
	now := srv.now()
	b := &message{in: m.in, id: srv.queueID(now), arrived: now, isBounce: true}
	b.messageID = "<" + now.Format("20060102150405") + "." + b.id + "@" + set.myhostname + ">"
	b.text = m.report(b, told)
	srv.daemon("cleanup", b.id, ": message-id=", b.messageID)
	srv.daemon("bounce", m.id, ": sender non-delivery notification: ", b.id)
	b.expand(recipient{addr: m.sender, notify: notifyNever})
	b.run()
}

// report is a delivery status notification (RFC 3464).
func (m *message) report(b *message, told []failure) []byte {
	set := m.in.set
	edge := b.id + "." + fmt.Sprint(b.arrived.Unix()) + "/" + set.myhostname
	var w bytes.Buffer
	line := func(format string, args ...any) { fmt.Fprintf(&w, format+"\r\n", args...) }
	date := mailDate(b.arrived)
	line("Received: by %s (%s)", set.myhostname, set.mailName)
	line("\tid %s; %s", b.id, date)
	line("Date: %s", date)
	line("From: MAILER-DAEMON@%s (Mail Delivery System)", set.myorigin)
	line("Subject: Undelivered Mail Returned to Sender")
	line("To: %s", quoteLocal(m.sender))
	line("Auto-Submitted: auto-replied")
	line("MIME-Version: 1.0")
	line("Content-Type: multipart/report; report-type=delivery-status;")
	line("\tboundary=\"%s\"", edge)
	line("Message-Id: %s", b.messageID)
	line("")
	line("This is a MIME-encapsulated message.")
	line("")
	line("--%s", edge)
	line("Content-Description: Notification")
	line("Content-Type: text/plain; charset=us-ascii")
	line("")
	line("This is the mail system at host %s.", set.myhostname)
	line("")
	line("Your message could not be delivered to one or more recipients.")
	for _, f := range told {
		line("")
		line("<%s>: %s", quoteLocal(f.addr), f.why)
	}
	line("")
	line("--%s", edge)
	line("Content-Description: Delivery report")
	line("Content-Type: message/delivery-status")
	line("")
	line("Reporting-MTA: dns; %s", set.myhostname)
	line("X-Postfix-Queue-ID: %s", m.id)
	line("X-Postfix-Sender: rfc822; %s", quoteLocal(m.sender))
	line("Arrival-Date: %s", mailDate(m.arrived))
	for _, f := range told {
		line("")
		line("Final-Recipient: rfc822; %s", quoteLocal(f.addr))
		line("Action: failed")
		line("Status: %s", f.dsn)
		line("Diagnostic-Code: X-Postfix; %s", f.why)
	}
	line("")
	line("--%s", edge)
	line("Content-Description: Undelivered Message")
	line("Content-Type: message/rfc822")
	line("")
	w.Write(m.text)
	line("")
	line("--%s--", edge)
	return w.Bytes()
}
