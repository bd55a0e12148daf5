package witness

import (
	"net/netip"
	"strings"
)

// Bounds of what is remembered of sessions and queue entries while they last.
const (
	maxSessions = 4096
	maxQueue    = 8192
)

// postfix reads the lines of smtpd, cleanup, qmgr and the delivery agents, and
// joins them by process and queue id.
type postfix struct {
	sessions map[string]*smtpdSession // by service and pid
	queue    map[string]*Record       // by queue id
	order    []string                 // queue ids, oldest first
}

// smtpdSession is what one smtpd process said of its present client.
type smtpdSession struct {
	peer netip.AddrPort // from "connect from"; port 0 when it is not logged
	addr string
	line string // the connect line
}

func newPostfix() *postfix {
	return &postfix{sessions: make(map[string]*smtpdSession), queue: make(map[string]*Record)}
}

// read returns the records that a line completes or extends.
func (p *postfix) read(program, pid, message, line string) *Record {
	service, ok := strings.CutPrefix(program, "postfix/")
	if !ok {
		return nil
	}
	daemon := service
	if i := strings.LastIndexByte(service, '/'); i >= 0 {
		service, daemon = service[:i], service[i+1:]
	} else {
		service = "smtp"
	}
	switch daemon {
	case "smtpd":
		return p.smtpd(service, service+"/"+pid, message, line)
	case "cleanup", "qmgr", "lmtp", "virtual", "local", "pipe", "error", "bounce", "smtp":
		return p.delivery(message, line)
	}
	return nil
}

func (p *postfix) smtpd(service, key, message, line string) *Record {
	switch {
	case strings.HasPrefix(message, "connect from "):
		name, addr, port, rest, ok := client(message[len("connect from "):])
		if !ok || rest != "" {
			return nil
		}
		s := &smtpdSession{addr: addr, line: line, peer: peerOf(addr, port)}
		if len(p.sessions) >= maxSessions {
			clear(p.sessions)
		}
		p.sessions[key] = s
		r := &Record{Kind: Connection, Lines: []string{line}}
		r.set("service", service)
		r.set("connected", addr)
		r.set("client-name", name)
		r.set("client-port", port)
		if s.peer.Port() != 0 {
			r.Peer = s.peer
		}
		return r
	case strings.HasPrefix(message, "disconnect from "):
		delete(p.sessions, key)
		return nil
	case strings.HasPrefix(message, "NOQUEUE: reject: "):
		return p.rejection(service, key, "", message[len("NOQUEUE: reject: "):], line)
	case strings.HasPrefix(message, "warning: "):
		return p.saslFailure(service, key, message[len("warning: "):], line)
	}
	id, rest, ok := strings.Cut(message, ": ")
	if !ok || !isQueueID(id) {
		return nil
	}
	if who, ok := strings.CutPrefix(rest, "client="); ok {
		return p.accepted(service, key, id, who, line)
	}
	if rej, ok := strings.CutPrefix(rest, "reject: "); ok {
		return p.rejection(service, key, id, rej, line)
	}
	return nil
}

// session adds to a record what is known of the connection it came by.
func (p *postfix) session(r *Record, key string) {
	if s := p.sessions[key]; s != nil {
		r.set("connected", s.addr)
		r.Lines = append([]string{s.line}, r.Lines...)
		if s.peer.Port() != 0 {
			r.Peer = s.peer
		}
	}
}

// accepted reads "NAME[ADDR]:PORT, sasl_method=PLAIN, sasl_username=alice".
func (p *postfix) accepted(service, key, id, who, line string) *Record {
	name, addr, port, rest, ok := client(who)
	if !ok {
		return nil
	}
	r := &Record{Kind: Transaction, Lines: []string{line}}
	r.set("service", service)
	r.set("client", addr)
	r.set("client-name", name)
	r.set("client-port", port)
	for _, element := range strings.Split(strings.TrimPrefix(rest, ", "), ", ") {
		switch k, v, _ := strings.Cut(element, "="); k {
		case "sasl_method":
			r.set("method", v)
		case "sasl_username":
			if r.Has("user") {
				r.Ambiguous = "a user name imitates a field"
				continue
			}
			r.set("user", v)
		}
	}
	p.session(r, key)
	if len(p.order) >= maxQueue {
		delete(p.queue, p.order[0])
		p.order = p.order[1:]
	}
	if _, again := p.queue[id]; !again {
		p.order = append(p.order, id)
	}
	p.queue[id] = r
	return r
}

// delivery reads what cleanup, qmgr and the delivery agents say of a queue id.
func (p *postfix) delivery(message, line string) *Record {
	id, rest, ok := strings.Cut(message, ": ")
	if !ok || !isQueueID(id) {
		return nil
	}
	r := p.queue[id]
	if r == nil {
		return nil
	}
	switch {
	case strings.HasPrefix(rest, "message-id="):
		v := strings.TrimPrefix(rest, "message-id=")
		r.set("message-id", strings.Trim(v, "<>"))
	case strings.HasPrefix(rest, "from=<"):
		v, _, _ := strings.Cut(rest[len("from=<"):], ">, ")
		r.set("sender", v)
	case strings.HasPrefix(rest, "to=<"):
		to, tail, ok := strings.Cut(rest[len("to=<"):], ">, ")
		if !ok {
			return nil
		}
		r.add("recipient", to)
		if i := strings.Index(tail, "status="); i >= 0 {
			r.add("status", tail[i+len("status="):])
		}
	case rest == "removed":
		r.set("removed", "")
		p.forget(id)
	default:
		return nil
	}
	if len(r.Lines) < 64 {
		r.Lines = append(r.Lines, line)
	}
	return r
}

func (p *postfix) forget(id string) {
	delete(p.queue, id)
	for i, o := range p.order {
		if o == id {
			p.order = append(p.order[:i], p.order[i+1:]...)
			break
		}
	}
}

// rejection reads "RCPT from NAME[ADDR]:PORT: 554 5.7.1 …; from=<> to=<> proto=ESMTP helo=<>".
// The fields after the last "; from=<" are the server's; what stands before
// may hold anything that a client wrote.
func (p *postfix) rejection(service, key, id, text, line string) *Record {
	stage, who, ok := strings.Cut(text, " from ")
	if !ok || strings.ContainsAny(stage, " ;:<") {
		return nil
	}
	name, addr, port, rest, ok := client(who)
	if !ok {
		return nil
	}
	rest, ok = strings.CutPrefix(rest, ": ")
	if !ok {
		return nil
	}
	r := &Record{Kind: Rejection, Lines: []string{line}}
	r.set("service", service)
	r.set("stage", stage)
	r.set("client", addr)
	r.set("client-name", name)
	r.set("client-port", port)
	if i := strings.LastIndex(rest, "; "); i >= 0 {
		r.set("reply", rest[:i])
		tail := rest[i+2:]
		if !strings.HasPrefix(tail, "from=<") || strings.Count(rest, "; from=<") > 1 || strings.Count(tail, " to=<") > 1 || strings.Count(tail, " helo=<") > 1 {
			r.Ambiguous = "a value of the line imitates a field"
		}
		for _, f := range []struct{ name, mark string }{{"sender", "from=<"}, {"recipient", "to=<"}, {"helo", "helo=<"}} {
			if v, ok := between(tail, f.mark, ">"); ok {
				r.set(f.name, v)
			}
		}
		if v, ok := between(tail, "proto=", " "); ok {
			r.set("proto", v)
		}
	} else {
		r.set("reply", rest)
	}
	p.session(r, key)
	return r
}

// saslFailure reads "NAME[ADDR]:PORT: SASL PLAIN authentication failed: …, sasl_username=alice".
func (p *postfix) saslFailure(service, key, text, line string) *Record {
	name, addr, port, rest, ok := client(text)
	if !ok {
		return nil
	}
	rest, ok = strings.CutPrefix(rest, ": SASL ")
	if !ok {
		return nil
	}
	method, reason, ok := strings.Cut(rest, " authentication failed")
	if !ok || strings.Contains(method, " ") {
		return nil
	}
	r := &Record{Kind: FailedLogin, Lines: []string{line}}
	r.set("service", service)
	r.set("method", method)
	r.set("client-name", name)
	r.set("client-port", port)
	r.set("rip", addr)
	r.set("rport", port)
	r.set("reason", strings.TrimPrefix(reason, ": "))
	if i := strings.Index(reason, "sasl_username="); i >= 0 {
		r.set("user", reason[i+len("sasl_username="):])
		if strings.Contains(r.Get("user"), "sasl_username=") {
			r.Ambiguous = "a user name imitates a field"
		}
	}
	p.session(r, key)
	return r
}

// client reads "NAME[ADDR]" or "NAME[ADDR]:PORT" at the beginning of s.
func client(s string) (name, addr, port, rest string, ok bool) {
	i := strings.IndexByte(s, '[')
	if i <= 0 || strings.ContainsAny(s[:i], " ,;") {
		return "", "", "", "", false
	}
	j := strings.IndexByte(s[i:], ']')
	if j < 0 {
		return "", "", "", "", false
	}
	name, addr, rest = s[:i], s[i+1:i+j], s[i+j+1:]
	if a, err := netip.ParseAddr(addr); err != nil {
		if addr != "unknown" {
			return "", "", "", "", false
		}
	} else {
		addr = a.String()
	}
	if strings.HasPrefix(rest, ":") && len(rest) > 1 && rest[1] >= '0' && rest[1] <= '9' {
		k := 1
		for k < len(rest) && rest[k] >= '0' && rest[k] <= '9' {
			k++
		}
		port, rest = rest[1:k], rest[k:]
	}
	return name, addr, port, rest, true
}

func peerOf(addr, port string) netip.AddrPort {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return netip.AddrPort{}
	}
	n := 0
	for _, c := range []byte(port) {
		n = n*10 + int(c-'0')
		if n > 65535 {
			return netip.AddrPort{}
		}
	}
	return netip.AddrPortFrom(a.Unmap(), uint16(n))
}

// isQueueID says whether s is a queue id, short or long.
func isQueueID(s string) bool {
	if len(s) < 6 || len(s) > 24 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if (s[i] < '0' || s[i] > '9') && (s[i] < 'A' || s[i] > 'Z') && (s[i] < 'a' || s[i] > 'z') {
			return false
		}
	}
	return s != "NOQUEUE"
}

func between(s, open, end string) (string, bool) {
	i := strings.Index(s, open)
	if i < 0 {
		return "", false
	}
	s = s[i+len(open):]
	j := strings.Index(s, end)
	if j < 0 {
		return s, end == " "
	}
	return s[:j], true
}
