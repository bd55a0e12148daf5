package witness

import (
	"net/netip"
	"regexp"
	"strings"
)

// stalwart reads the text tracer of Stalwart 0.15, as its console, its log
// files and its management API give it:
//
//	2026-11-23T23:33:22Z INFO Authentication successful (auth.success) listenerId = "sieve", localPort = 4190, remoteIp = 203.0.113.7, remotePort = 41005, accountName = "a@b", accountId = 2
//
// What happens in a session begins with the session's own keys. They come from
// the server, before anything that a client chose, and are read strictly there.
// Later keys may repeat them, and quotes inside values are not escaped: a value
// that imitates a key makes the record ambiguous, where it says otherwise.
type stalwart struct {
	sessions map[string]*smtpSession
	messages map[string]*Record // by queue id
}

// maxRemembered bounds what is remembered of sessions, and of messages.
const maxRemembered = 4096

// An smtpSession is what an SMTP session has said so far.
type smtpSession struct {
	helo, sender, user string
}

func newStalwart() *stalwart {
	return &stalwart{sessions: make(map[string]*smtpSession), messages: make(map[string]*Record)}
}

var stalwartLine = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ (?:TRACE|DEBUG|INFO|WARN|ERROR) [^()]* \(([a-z0-9.-]+)\) ?(.*)$`)

// colours are the escape sequences of a console tracer that was left as it is.
var colours = regexp.MustCompile("\x1b\\[[0-9;]*m")

// isStalwart says quickly whether a line can be Stalwart's.
func isStalwart(line string) bool {
	if strings.HasPrefix(line, "\x1b[") {
		return true
	}
	return len(line) > 21 && line[10] == 'T' && line[19] == 'Z' && line[20] == ' '
}

// A keyValue is one "key = value" of a line.
type keyValue struct{ key, value string }

// stalwartKeys reads "key = value, key = value". A quoted value ends at the
// first quote after which another key, or nothing, follows.
func stalwartKeys(s string) []keyValue {
	var out []keyValue
	for s != "" && len(out) < 64 {
		key, rest, ok := strings.Cut(s, " = ")
		if !ok || !isStalwartKey(key) {
			return out
		}
		var value string
		switch {
		case strings.HasPrefix(rest, `"`):
			end := endOfValue(rest, 1, `"`)
			value, s = rest[1:end], after(rest, end+1)
		case strings.HasPrefix(rest, "["):
			end := endOfValue(rest, 1, "]")
			value, s = rest[1:end], after(rest, end+1)
		default:
			end := strings.Index(rest, ", ")
			if end < 0 {
				end = len(rest)
			}
			value, s = rest[:end], after(rest, end)
		}
		out = append(out, keyValue{key, value})
	}
	return out
}

// endOfValue is the index of the closing mark.
func endOfValue(s string, from int, mark string) int {
	for i := from; i < len(s); i++ {
		if s[i:i+1] != mark {
			continue
		}
		rest := s[i+1:]
		if rest == "" {
			return i
		}
		if next, ok := strings.CutPrefix(rest, ", "); ok {
			if key, _, ok := strings.Cut(next, " = "); ok && isStalwartKey(key) {
				return i
			}
		}
	}
	return len(s)
}

// after is what follows a value and its comma.
func after(s string, end int) string {
	if end >= len(s) {
		return ""
	}
	return strings.TrimPrefix(s[end:], ", ")
}

func isStalwartKey(s string) bool {
	if s == "" || len(s) > 40 {
		return false
	}
	for i, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || i > 0 && (c >= 'A' && c <= 'Z' || c >= '0' && c <= '9')) {
			return false
		}
	}
	return true
}

// An event is one line of Stalwart's.
type event struct {
	name string
	keys []keyValue
	line string
	// Of the session that it belongs to, where it belongs to one.
	listener, port, ip, peerPort string
	session                      bool
}

// get is the first value of a key after the session's own keys.
func (e *event) get(key string) string {
	for _, kv := range e.keys {
		if kv.key == key {
			return kv.value
		}
	}
	return ""
}

// all are the values of a list: ["a", "b"].
func (e *event) all(key string) []string {
	v := e.get(key)
	if v == "" {
		return nil
	}
	parts := strings.Split(v, ", ")
	for i, p := range parts {
		parts[i] = strings.Trim(p, `"`)
	}
	return parts
}

// readEvent takes a line apart.
func readEvent(line string) (*event, bool) {
	text := line
	if strings.Contains(text, "\x1b[") {
		text = colours.ReplaceAllString(text, "")
	}
	m := stalwartLine.FindStringSubmatch(text)
	if m == nil {
		return nil, false
	}
	e := &event{name: m[1], keys: stalwartKeys(m[2]), line: line}
	k := e.keys
	if len(k) >= 4 && k[0].key == "listenerId" && k[1].key == "localPort" && k[2].key == "remoteIp" && k[3].key == "remotePort" {
		e.listener, e.port, e.ip, e.peerPort, e.session = k[0].value, k[1].value, k[2].value, k[3].value, true
		e.keys = k[4:]
	}
	return e, true
}

// contradicted says why an event cannot be believed: a key of the session, or
// the account's name, stands again and says something else.
func (e *event) contradicted(once ...string) string {
	seen := map[string]string{"listenerId": e.listener, "localPort": e.port, "remoteIp": e.ip, "remotePort": e.peerPort}
	for _, kv := range e.keys {
		first, known := seen[kv.key]
		if known && first != kv.value {
			return "the key " + kv.key + " stands twice in the line, and differs"
		}
		for _, o := range once {
			if kv.key == o {
				seen[o] = kv.value
			}
		}
	}
	return ""
}

// read returns the record that a line is, or nil. A transaction grows.
func (s *stalwart) read(line string) *Record {
	e, ok := readEvent(line)
	if !ok {
		return nil
	}
	switch {
	case e.session && strings.HasPrefix(e.name, "smtp."):
		return s.smtp(e)
	case e.session && e.name == "auth.success":
		if se := s.sessions[e.key()]; se != nil {
			se.user = e.get("accountName")
		}
		return e.login(Login)
	case e.session && e.name == "auth.failed":
		return e.login(FailedLogin)
	case e.name == "auth.success", e.name == "auth.failed":
		return e.lost()
	case isHello(e.name):
		return e.hello()
	case isRejection(e.name):
		r := &Record{Kind: Rejection, Lines: []string{e.line}, Lost: true, Ambiguous: LostSession}
		r.set("reply", e.name)
		r.set("recipient", e.get("to"))
		return r
	case e.session && strings.HasSuffix(e.name, ".connection-start"):
		return e.record(Connection)
	case strings.HasPrefix(e.name, "queue."), strings.HasPrefix(e.name, "message-ingest."), strings.HasPrefix(e.name, "delivery."):
		return s.queued(e)
	}
	return nil
}

func (e *event) key() string { return e.listener + " " + e.ip + " " + e.peerPort }

// record begins a record of the event's session.
func (e *event) record(kind Kind) *Record {
	r := &Record{Kind: kind, Lines: []string{e.line}}
	service := serviceOf(e.port)
	r.set("service", service)
	r.set("listener", e.listener)
	switch kind {
	case Login, FailedLogin:
		r.set("rip", e.ip)
		r.set("rport", e.peerPort)
		r.set("lport", e.port)
	case Connection:
		r.set("rip", e.ip)
		r.set("rport", e.peerPort)
		r.set("client", e.ip)
		r.set("client-port", e.peerPort)
	default:
		r.set("client", e.ip)
		r.set("client-port", e.peerPort)
	}
	// Without a header the session's address is who connected; with one it is
	// who was announced, and then no connection of ours has it.
	if a, err := netip.ParseAddr(e.ip); err == nil {
		if port, ok := parsePort(e.peerPort); ok {
			r.Peer = netip.AddrPortFrom(a.Unmap(), port)
		}
	}
	return r
}

func parsePort(s string) (uint16, bool) {
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' || n > 65535 {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return uint16(n), s != "" && n <= 65535
}

func (e *event) login(kind Kind) *Record {
	r := e.record(kind)
	// A refused sign-in names the address that it is held against, before
	// anything that a client chose: a forwarding header can make it another.
	if kind == FailedLogin && len(e.keys) > 0 && e.keys[0].key == "remoteIp" {
		r.set("rip", e.keys[0].value)
		r.set("session-rip", e.ip)
		e.ip, e.keys = e.keys[0].value, e.keys[1:]
	}
	r.set("user", e.get("accountName"))
	r.set("reason", e.name)
	r.Ambiguous = e.contradicted("accountName")
	return r
}

// LostSession is why a line without its session is not believed.
const LostSession = "Stalwart logged this without its session, because its log had not read the session's beginning yet"

// lost is a sign-in that Stalwart logged without its session. Each of its
// threads has a queue of its own, and the log's one reader takes them in turn:
// where a session has moved from one thread to another, its sign-in can be read
// before its beginning, and then lacks the session's keys. A refused sign-in
// names the address that it is held against by itself, before anything that a
// client chose, and is believed in that; of others even the address is not
// known, and nothing is.
func (e *event) lost() *Record {
	r := &Record{Kind: Login, Lines: []string{e.line}, Lost: true, Ambiguous: LostSession}
	r.set("user", e.get("accountName"))
	r.set("reason", e.name)
	if e.name == "auth.failed" {
		r.Kind = FailedLogin
		if len(e.keys) > 0 && e.keys[0].key == "remoteIp" {
			r.set("rip", e.keys[0].value)
			e.ip, e.keys = e.keys[0].value, e.keys[1:]
			r.Ambiguous = e.contradicted("accountName")
		}
	}
	return r
}

// serviceOf names the service of a port as Dovecot's and Postfix's logs do.
func serviceOf(port string) string {
	switch port {
	case "143", "993":
		return "imap"
	case "110", "995":
		return "pop3"
	case "4190":
		return "managesieve"
	case "587", "465":
		return "submission"
	case "25":
		return "smtp"
	case "443", "8080":
		return "http"
	}
	return ""
}

// smtp follows a session, and returns what was refused in it.
func (s *stalwart) smtp(e *event) *Record {
	se := s.sessions[e.key()]
	if se == nil {
		if len(s.sessions) >= maxRemembered {
			clear(s.sessions)
		}
		se = &smtpSession{}
		s.sessions[e.key()] = se
	}
	switch e.name {
	case "smtp.connection-start":
		s.sessions[e.key()] = &smtpSession{}
		return e.record(Connection)
	case "smtp.connection-end":
		delete(s.sessions, e.key())
	case "smtp.ehlo", "smtp.lhlo", "smtp.helo":
		se.helo = e.get("domain")
		return e.hello()
	case "smtp.mail-from":
		se.sender = e.get("from")
	}
	if isRejection(e.name) {
		r := e.record(Rejection)
		r.set("reply", e.name)
		r.set("helo", se.helo)
		r.set("sender", se.sender)
		if to := e.get("to"); to != "" {
			r.set("recipient", to)
		}
		r.Ambiguous = e.contradicted("to")
		return r
	}
	return nil
}

func isHello(name string) bool {
	return name == "smtp.ehlo" || name == "smtp.lhlo" || name == "smtp.helo"
}

// hello is the name that a client greets with. It tells who wrote the line
// even where the log has lost the session.
func (e *event) hello() *Record {
	r := &Record{Kind: Hello, Lines: []string{e.line}}
	if e.session {
		r = e.record(Hello)
	}
	r.set("helo", e.get("domain"))
	return r
}

// isRejection says whether an event is a recipient, sender or session refused.
func isRejection(name string) bool {
	switch name {
	case "smtp.relay-not-allowed", "smtp.mailbox-does-not-exist", "smtp.rate-limit-exceeded", "smtp.too-many-recipients",
		"smtp.mail-from-unauthenticated", "smtp.invalid-ehlo", "smtp.concurrency-limit-exceeded":
		return true
	}
	return false
}

// queued follows a message by its queue id.
func (s *stalwart) queued(e *event) *Record {
	id := e.get("queueId")
	if id == "" {
		return nil
	}
	r := s.messages[id]
	if r == nil {
		if len(s.messages) >= maxRemembered {
			clear(s.messages)
		}
		r = &Record{Kind: Transaction}
		s.messages[id] = r
		r.set("queue-id", id)
	}
	if len(r.Lines) < 64 {
		r.Lines = append(r.Lines, e.line)
	}
	if e.session {
		r.set("service", serviceOf(e.port))
		r.set("client", e.ip)
		r.set("client-port", e.peerPort)
		if se := s.sessions[e.key()]; se != nil {
			r.set("client-name", se.helo)
			if se.user != "" {
				r.set("user", se.user)
			}
		}
	}
	if from := e.get("from"); from != "" {
		r.set("sender", from)
	}
	for _, to := range e.all("to") {
		r.addOnce("recipient", to)
	}
	if strings.HasPrefix(e.name, "message-ingest.") {
		r.set("status", "sent "+e.name)
		r.set("removed", "")
	}
	r.Lost, r.Ambiguous = false, ""
	if r.Has("removed") && !r.Has("client") {
		r.Lost, r.Ambiguous = true, LostSession
	}
	return r
}

// addOnce adds a value that the field does not have yet.
func (r *Record) addOnce(field, value string) {
	for _, v := range r.Fields[field] {
		if v == value {
			return
		}
	}
	r.add(field, value)
}
