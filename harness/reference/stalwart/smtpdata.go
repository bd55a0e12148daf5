package stalwart

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/mail"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/proto/dns"
	"github.com/mailproof/mailproof/harness/reference/source/mailbox"
	"github.com/mailproof/mailproof/harness/reference/stalwart/bug"
)

// maxMessage bounds what one message may take of memory, in octets, whatever
// session.data.limits.size says.
const maxMessage = 64 << 20

const tooBig = "552 5.3.4 Message too big for system."

func (s *smtpSession) limit() int {
	return min(s.chooseInt("session.data.limits.size", 25<<20), maxMessage)
}

// canSend says whether a message may follow; if not, that has been answered.
func (s *smtpSession) canSend() bool {
	switch {
	case len(s.rcpts) == 0, s.refused > 0 && s.srv.bugs.Has(bug.OneBadRefusesAll):
		s.log(evSMTPRcptMissing)
		s.c.Line("503 5.5.1 RCPT is required first.")
	case s.sent >= s.chooseInt("session.data.limits.messages", 10):
		s.log(evSMTPTooMany, field{"limit", s.sent})
		s.c.Line("452 4.4.5 Maximum number of messages per session exceeded.")
	default:
		return true
	}
	return false
}

// data reads a message to its end, which is CRLF, a dot and CRLF.
func (s *smtpSession) data() bool {
	s.message, s.tooLarge = nil, false
	br := s.c.Reader()
	limit := s.limit()
	atLine := false // after CRLF: a dot counts behind one alone, and not at the beginning
	for {
		s.c.SetTimeout(s.chooseDuration("session.timeout", 5*time.Minute))
		b, err := br.ReadSlice('\n')
		if err != nil && len(b) < br.Size() {
			s.ended(err)
			return false
		}
		crlf := err == nil && bytes.HasSuffix(b, []byte("\r\n"))
		if atLine && crlf && len(b) == 3 && b[0] == '.' {
			break
		}
		if s.bytesLeft -= len(b); s.bytesLeft < 0 {
			s.c.Line("452 4.7.28 ", s.hostname, " Session exceeded transfer quota.")
			s.log(evSMTPTransfer)
			return false
		}
		if atLine && b[0] == '.' && !s.srv.bugs.Has(bug.DotStuffingKept) {
			b = b[1:]
		}
		if len(s.message)+len(b) >= limit {
			s.tooLarge, s.message = true, nil
		}
		if !s.tooLarge {
			s.message = append(s.message, b...)
		}
		atLine = crlf
	}
	if s.tooLarge {
		s.log(evSMTPTooLarge)
		s.message = nil
		s.c.Line(tooBig)
		return true
	}
	s.c.Line(s.queue())
	s.reset()
	return true
}

// bdat reads a chunk.
func (s *smtpSession) bdat(args string) bool {
	f := strings.Fields(args)
	last := len(f) == 2 && strings.EqualFold(f[1], "LAST")
	var size uint64
	var err error = strconv.ErrSyntax
	if len(f) == 1 || last {
		size, err = strconv.ParseUint(f[0], 10, 62)
	}
	if err != nil {
		s.log(evSMTPSyntax, field{"details", "BDAT chunk-size [LAST]"})
		s.c.Line("501 5.5.2 Syntax error, expected: BDAT chunk-size [LAST]")
		return true
	}
	if len(s.message)+int(size) >= s.limit() {
		if _, err := io.CopyN(io.Discard, s.c.Reader(), int64(size)); err != nil {
			return false
		}
		s.log(evSMTPTooLarge)
		s.message = nil
		s.c.Line(tooBig)
		return true
	}
	var chunk bytes.Buffer
	if _, err := io.CopyN(&chunk, s.c.Reader(), int64(size)); err != nil {
		if !errors.Is(err, io.EOF) {
			s.ended(err)
		}
		return false
	}
	if s.bytesLeft -= int(size); s.bytesLeft < 0 {
		s.c.Line("452 4.7.28 ", s.hostname, " Session exceeded transfer quota.")
		s.log(evSMTPTransfer)
		return false
	}
	s.message = append(s.message, chunk.Bytes()...)
	switch {
	case !s.canSend():
		s.message = nil
	case !last, s.srv.bugs.Has(bug.BDATLastIgnored):
		s.c.Line("250 2.6.0 Chunk accepted.")
	default:
		if s.srv.bugs.Has(bug.BDATTruncates) {
			s.message = s.message[:len(s.message)/2]
		}
		s.c.Line(s.queue())
		s.reset()
	}
	return true
}

// headerOf is the header of a message, with the line end of its last field,
// and the body with the empty line before it.
func headerOf(m []byte) (head, body []byte) {
	for _, sep := range []string{"\r\n\r\n", "\n\n"} {
		if i := bytes.Index(m, []byte(sep)); i >= 0 {
			return m[:i+len(sep)/2], m[i+len(sep)/2:]
		}
	}
	return m, nil
}

// A headerField is one field of a message's header.
type headerField struct {
	name  string // lower case
	raw   string // all of it, with its line end
	value string // unfolded
}

func fieldsOf(head []byte) []headerField {
	var out []headerField
	for line := range strings.SplitAfterSeq(string(head), "\n") {
		switch {
		case line == "" || line == "\r\n" || line == "\n":
		case (line[0] == ' ' || line[0] == '\t') && len(out) > 0:
			f := &out[len(out)-1]
			f.raw += line
			f.value += " " + strings.TrimSpace(line)
		default:
			name, value, _ := strings.Cut(line, ":")
			out = append(out, headerField{strings.ToLower(strings.TrimSpace(name)), line, strings.TrimSpace(value)})
		}
	}
	return out
}

func fieldNamed(fs []headerField, name string) string {
	for _, f := range fs {
		if f.name == name {
			return f.value
		}
	}
	return ""
}

// queue checks a message, puts the server's own fields above it and delivers
// it. It returns the reply.
func (s *smtpSession) queue() string {
	raw := s.message
	head, _ := headerOf(raw)
	fields := fieldsOf(head)
	received := 0
	for _, f := range fields {
		if f.name == "received" {
			received++
		}
	}
	if received > s.chooseInt("session.data.limits.received-headers", 50) && !s.srv.bugs.Has(bug.LoopsAccepted) {
		s.log(evSMTPLoop, field{"total", received})
		return "450 4.4.6 Too many Received headers. Possible loop detected."
	}
	if s.srv.bugs.Has(bug.RefusesMessages) {
		return "550 5.7.1 Not this one."
	}
	checks, refusal := s.authenticateMessage(raw, fields)
	if refusal != "" {
		return refusal
	}
	id := s.srv.ids.next(s.srv.now())
	at := s.srv.now()
	var own strings.Builder
	if s.chooseBool("session.data.add-headers.received") {
		own.WriteString(s.received(id, at))
	}
	if s.chooseBool("session.data.add-headers.auth-results") {
		own.WriteString("Authentication-Results: " + s.hostname)
		if checks == "" {
			own.WriteString("; none")
		}
		own.WriteString(checks + "\r\n")
	}
	if s.mailSPF != nil && s.chooseBool("session.data.add-headers.received-spf") {
		from := s.sender.lower
		if from == "" {
			from = "postmaster@" + s.helo
		}
		fmt.Fprintf(&own, "Received-SPF: %s\r\n\treceiver=%s; client-ip=%s; envelope-from=\"%s\"; helo=%s;\r\n",
			s.mailSPF.words(s.hostname, from, s.remote.Addr()), s.hostname, s.remote.Addr(), s.sender.lower, s.helo)
	}
	filtered := s.core.spam && s.who == nil && s.chooseBool("session.data.spam-filter")
	if filtered {
		listed := s.listed()
		for _, tag := range listed {
			if s.core.keys["spam-filter.list.scores."+tag] == "reject" {
				s.sent++
				return "550 5.7.1 Message rejected due to excessive spam score."
			}
		}
		own.WriteString(s.spamResult(fields, listed))
	}
	if s.chooseBool("session.data.add-headers.return-path") {
		path := lowerDomain(s.sender.address)
		if path == "" && s.srv.bugs.Has(bug.NullSenderReplaced) {
			path = "MAILER-DAEMON@" + s.hostname
		}
		own.WriteString("Return-Path: <" + path + ">\r\n")
	}
	if fieldNamed(fields, "date") == "" && s.chooseBool("session.data.add-headers.date") {
		own.WriteString("Date: " + at.Format(rfc5322Date) + "\r\n")
	}
	if fieldNamed(fields, "message-id") == "" && s.chooseBool("session.data.add-headers.message-id") {
		fmt.Fprintf(&own, "Message-ID: <%x.%x@%s>\r\n", at.UnixNano(), id, s.hostname)
	}
	to := make([]string, 0, len(s.rcpts))
	for _, r := range s.rcpts {
		to = append(to, r.address)
	}
	slices.Sort(to)
	e := evQueued
	if s.who != nil {
		e = evQueuedAuth
	}
	from := s.sender.address
	if from == "" {
		from = "<>"
	}
	s.log(e, field{"queueId", id}, field{"from", from}, field{"to", words(to)}, field{"size", len(raw) + own.Len()},
		field{"nextRetry", at}, field{"nextDsn", at.Add(24 * time.Hour)}, field{"expires", at.Add(5 * 24 * time.Hour)})
	s.sent++
	message := append([]byte(own.String()), raw...)
	if s.srv.bugs.Has(bug.RewritesBody) {
		message = append(bytes.TrimSuffix(message, []byte("\r\n")), "\r\n-- \r\nScanned and found well.\r\n"...)
	}
	if s.srv.bugs.Has(bug.RewritesHeader) {
		message = rewritten(message, fields)
	}
	if s.srv.bugs.Has(bug.EighthBitLost) {
		for i := range message {
			message[i] &= 0x7f
		}
	}
	if s.srv.bugs.Has(bug.QueueStands) {
		return fmt.Sprintf("250 2.0.0 Message queued with id %x.", id)
	}
	s.deliver(id, from, message, fieldNamed(fields, "message-id"), filtered)
	return fmt.Sprintf("250 2.0.0 Message queued with id %x.", id)
}

// rfc5322Date is how the server writes a date.
const rfc5322Date = "Mon, 2 Jan 2006 15:04:05 -0700"

func lowerDomain(address string) string {
	if i := strings.LastIndexByte(address, '@'); i >= 0 {
		return address[:i] + strings.ToLower(address[i:])
	}
	return address
}

// received is the field Received.
func (s *smtpSession) received(id uint64, at time.Time) string {
	ptr := "unknown"
	if s.reverse != nil && s.reverse.ptr != "" {
		ptr = strings.TrimSuffix(s.reverse.ptr, ".")
	}
	ip := s.remote.Addr()
	if s.srv.bugs.Has(bug.ReceivedShowsOther) {
		ip = s.c.Host.Addr()
	}
	using, with := "", "ESMTP"
	if s.isTLS {
		version, cipher := s.tlsNames()
		using = "(using " + strings.ReplaceAll(version, "_", ".") + " with cipher " + cipher + ")\r\n\t"
		with += "S"
	}
	if s.who != nil {
		with += "A"
	}
	return fmt.Sprintf("Received: from %s (%s [%s])\r\n\t%sby %s (Stalwart SMTP) with %s id %X;\r\n\t%s\r\n",
		s.helo, ptr, ip, using, s.hostname, with, id, at.Format(rfc5322Date))
}

// deliver puts a message into the mailboxes of its local recipients. Mail for
// elsewhere stays in a queue that nobody reads.
func (s *smtpSession) deliver(id uint64, from string, message []byte, messageID string, filtered bool) {
	for _, r := range s.rcpts {
		if !s.srv.dir.isLocal(domainPart(r.lower)) {
			continue
		}
		who := s.srv.dir.recipient(r.lower, s.core.subAddresses)
		if who == nil {
			continue
		}
		user := s.srv.store.User(who.name)
		if user == nil {
			continue
		}
		box := mailbox.Inbox
		if s.srv.bugs.Has(bug.DeliversToJunk) {
			box = junkMail
		}
		var text []byte
		if s.core.deliver {
			text = append(text, "Delivered-To: "+r.address+"\r\n"...)
		}
		if filtered {
			text = append(text, "X-Spam-Status: No\r\n"...)
		}
		text = append(text, message...)
		fields := []field{{"queueId", id}, {"queueName", "local"}, {"from", from}, {"to", words{r.lower}}}
		if s.srv.known(who.name, messageID) {
			s.process.log(evDuplicate, "", append(fields, field{"messageId", messageID})...)
			continue
		}
		times := 1
		if s.srv.bugs.Has(bug.DeliversTwice) {
			times = 2
		}
		if s.srv.bugs.Has(bug.AcceptsThenDrops) {
			times = 0
		}
		for range times {
			if err := user.Deliver(box, text, s.srv.now()); err != nil {
				continue
			}
		}
		if s.srv.bugs.Has(bug.LogNoDelivery) {
			continue
		}
		s.process.log(evIngested, "", append(fields, field{"size", len(text)}, field{"total", 1}, field{"accountId", who.id},
			field{"documentId", s.srv.document(who.id)}, field{"mailboxId", bare("[0]")})...)
	}
}

// document is the id of an account's next message.
func (s *Server) document(account int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.documents[account]++
	return s.documents[account]
}

// known says whether an account was given a message of this id before, and
// remembers it.
func (s *Server) known(account, id string) bool {
	if id == "" {
		return false
	}
	return !s.counts.allow("message-id", account+"\x00"+id, rate{1, 1000 * 24 * time.Hour})
}

// isReserved says whether a name ends in what is no public suffix: the filter
// takes it for no name.
func isReserved(name string) bool {
	last := strings.ToLower(name[strings.LastIndexByte(name, '.')+1:])
	return slices.Contains([]string{"test", "example", "invalid", "localhost", "local", "internal", "lan", "home"}, last)
}

// rewritten is a message without its signatures and its author's name.
func rewritten(message []byte, fields []headerField) []byte {
	for _, f := range fields {
		switch f.name {
		case "dkim-signature":
			message = bytes.Replace(message, []byte(f.raw), nil, 1)
		case "from":
			if a, err := mail.ParseAddress(f.value); err == nil {
				message = bytes.Replace(message, []byte(f.raw), []byte("From: <"+a.Address+">\r\n"), 1)
			}
		}
	}
	return message
}

// listed asks the block lists about who hands a message over, and returns what
// it is marked with. Nobody is asked about an address that is allowed.
func (s *smtpSession) listed() []string {
	a := s.remote.Addr()
	if within(s.core.allowed, a) {
		return nil
	}
	var tags []string
	for _, l := range s.core.lists {
		if name := text(l.zone.eval(ofAddress{s.session, a})); len(s.srv.cfg.Zone.addr(name)) > 0 {
			tags = append(tags, text(l.tag.eval(ofAddress{s.session, a})))
		}
	}
	return tags
}

// ofAddress is the scope of expressions about an address.
type ofAddress struct {
	*session
	address netip.Addr
}

func (o ofAddress) variable(name string) any {
	switch name {
	case "ip":
		return o.address.String()
	case "ip_reverse":
		return strings.TrimSuffix(dns.Listed(o.address, ""), ".")
	}
	return o.session.variable(name)
}

// spamResult is what the filter says of a message without its rules: tags
// that weigh nothing.
func (s *smtpSession) spamResult(fields []headerField, listed []string) string {
	tags := append([]string{"ARC_NA", "SINGLE_SHORT_PART"}, listed...)
	add := func(on bool, yes, no string) {
		if on && yes != "" {
			tags = append(tags, yes)
		} else if !on && no != "" {
			tags = append(tags, no)
		}
	}
	add(fieldNamed(fields, "dkim-signature") != "", "DKIM_SIGNED", "DKIM_NA")
	add(false, "", "DMARC_NA")
	add(s.mailSPF != nil && s.mailSPF.result == "pass", "SPF_ALLOW", "")
	add(s.mailSPF != nil && s.mailSPF.result == "fail", "SPF_FAIL", "")
	add(s.mailSPF == nil || s.mailSPF.result == "none", "SPF_NA", "")
	add(fieldNamed(fields, "date") == "", "MISSING_DATE", "")
	add(fieldNamed(fields, "message-id") == "", "MISSING_MID", "")
	add(s.isTLS, "RCVD_TLS_LAST", "RCVD_NO_TLS_LAST")
	add(s.reverse == nil || s.reverse.ptr == "", "RDNS_NONE", "")
	add(len(s.rcpts) == 1, "RCPT_COUNT_ONE", "RCPT_COUNT_TWO")
	received := 0
	for _, f := range fields {
		if f.name == "received" {
			received++
		}
	}
	add(received == 1, "RCVD_COUNT_ONE", "")
	add(received == 0, "RCVD_COUNT_ZERO", "")
	add(isReserved(domainPart(s.sender.lower)), "ENV_FROM_INVALID", "")
	add(isReserved(s.helo), "HELO_NOT_FQDN", "")
	if a, err := mail.ParseAddress(fieldNamed(fields, "from")); err == nil {
		add(isReserved(domainPart(a.Address)), "FROM_INVALID", "")
		add(strings.EqualFold(a.Address, s.sender.lower), "FROM_EQ_ENV_FROM", "FROM_NEQ_ENV_FROM")
	}
	if a, err := mail.ParseAddress(fieldNamed(fields, "to")); err == nil {
		add(a.Name == "", "TO_DN_NONE", "TO_DN_ALL")
		add(len(s.rcpts) == 1 && strings.EqualFold(a.Address, s.rcpts[0].lower), "TO_MATCH_ENVRCPT_ALL", "")
	}
	slices.Sort(tags)
	for i, t := range tags {
		tags[i] = t + " (0.00)"
	}
	return "X-Spam-Result: " + strings.Join(tags, ",\r\n\t") + "\r\nX-Spam-Score: ham, score=0.00\r\n"
}
