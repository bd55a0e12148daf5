package witness

import (
	"encoding/base64"
	"encoding/binary"
	"net/netip"
	"strings"
)

// dovecot reads the lines of Dovecot's login and auth processes, 2.3 and 2.4,
// with the default and with the recommended login_log_format_elements.
type dovecot struct{}

// read returns the record that a line is, or nil. program is what syslog or
// the line itself named; message is the rest.
func (dovecot) read(program, message, line string) *Record {
	if program == "dovecot" { // through syslog the process stands in the message
		first, rest, ok := strings.Cut(message, ": ")
		if !ok || strings.Contains(first, " ") && !strings.Contains(first, "(") {
			return nil
		}
		program, message = first, rest
	}
	message = strings.TrimPrefix(message, "Info: ")
	switch {
	case strings.HasSuffix(program, "-login"):
		return loginLine(strings.TrimSuffix(program, "-login"), message, line)
	case program == "auth":
		return authLine23(message, line)
	case strings.HasPrefix(program, "auth("):
		return authLine24(program, message, line)
	}
	return nil
}

// loginLine reads "Login: user=<…>, method=…, rip=…, …".
func loginLine(service, message, line string) *Record {
	text, elements, ok := cutElements(message)
	if !ok {
		return nil
	}
	r := &Record{Lines: []string{line}}
	switch {
	case text == "Login" || text == "Logged in":
		r.Kind = Login
	case strings.Contains(text, "auth failed"), strings.Contains(text, "auth_failed"):
		r.Kind = FailedLogin
	case strings.HasPrefix(text, "Disconnected"), strings.HasPrefix(text, "Login aborted"), strings.HasPrefix(text, "Aborted login"):
		r.Kind = Aborted
	default:
		return nil // "ID sent" and the like say nothing of who signed in
	}
	if service == "managesieve" || service == "sieve" {
		service = "managesieve"
	}
	r.set("service", service)
	r.set("reason", text)
	r.set("security", "")
	readElements(r, elements)
	r.setPeer()
	return r
}

// cutElements splits a login line at the ": " before its first element.
func cutElements(message string) (text, elements string, ok bool) {
	for from := 0; ; {
		i := strings.Index(message[from:], ": ")
		if i < 0 {
			return "", "", false
		}
		i += from
		rest := message[i+2:]
		j := 0
		for j < len(rest) && (rest[j] >= 'a' && rest[j] <= 'z' || rest[j] == '_') {
			j++
		}
		if j > 0 && j < len(rest) && rest[j] == '=' {
			return message[:i], rest, true
		}
		from = i + 2
	}
}

// readElements reads "user=<a>, method=PLAIN, rip=1.2.3.4, TLS, session=<x>".
// A field that stands twice makes the record ambiguous: some value imitates it.
func readElements(r *Record, s string) {
	for s != "" {
		var element string
		if i := strings.Index(s, ", "); i >= 0 {
			element, s = s[:i], s[i+2:]
		} else {
			element, s = s, ""
		}
		name, value, ok := strings.Cut(element, "=")
		if !ok {
			switch {
			case element == "TLS", element == "secured":
				r.set("security", element)
			case strings.HasPrefix(element, "TLS"):
				r.set("security", element)
			}
			continue
		}
		if strings.HasPrefix(value, "<") {
			if inner, closed := strings.CutSuffix(value[1:], ">"); closed {
				value = inner
			}
		}
		if strings.ContainsAny(name, "<> ") {
			r.Ambiguous = "a value of the line imitates a field"
			continue
		}
		if _, dup := r.Fields[name]; dup && name != "security" {
			r.Ambiguous = "the field " + name + " stands twice in the line"
			continue
		}
		r.set(name, value)
	}
}

// setPeer finds who really connected: from real_rip and real_rport where the
// log format has them, or from the session id that Dovecot itself made.
func (r *Record) setPeer() {
	if p, ok := PeerOfSession(r.Get("session")); ok {
		r.Peer = p
		return
	}
	addr, err := netip.ParseAddr(r.Get("real_rip"))
	if err != nil {
		return
	}
	port := r.Get("real_rport")
	if port == "" {
		return
	}
	if p, err := netip.ParseAddrPort(netip.AddrPortFrom(addr, 0).Addr().String() + ":" + port); err == nil {
		r.Peer = p
	} else if p, err := netip.ParseAddrPort("[" + addr.String() + "]:" + port); err == nil {
		r.Peer = p
	}
}

// PeerOfSession decodes the session id that Dovecot's login process makes:
// base64 of 48 bits of time, 16 bits of the peer's port, little endian, and
// its address.
func PeerOfSession(id string) (netip.AddrPort, bool) {
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(id, "="))
	if err != nil || len(b) != 12 && len(b) != 24 {
		return netip.AddrPort{}, false
	}
	addr, ok := netip.AddrFromSlice(b[8:])
	if !ok {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(addr.Unmap(), binary.LittleEndian.Uint16(b[6:])), true
}

// authLine23 reads "passwd-file(USER,IP,<SESSION>): Password mismatch" of 2.3.
// Where Dovecot refuses a user name it prints it after the reason, so only the
// first "): " is its own.
func authLine23(message, line string) *Record {
	open := strings.IndexByte(message, '(')
	end := strings.Index(message, "): ")
	if open <= 0 || end < open || strings.ContainsAny(message[:open], " :") {
		return nil
	}
	r := authRecord(message[open+1:end], message[end+3:], line)
	if r != nil && strings.Contains(message[end+3:], "): ") {
		r.Ambiguous = "a value of the line imitates a field"
	}
	return r
}

// authLine24 reads "auth(USER,IP,sasl:plain)<SESSION>: Info: users: Password mismatch" of 2.4.
func authLine24(program, message, line string) *Record {
	inner := strings.TrimPrefix(program, "auth(")
	end := strings.LastIndexByte(inner, ')')
	if end < 0 {
		return nil
	}
	session := strings.TrimSuffix(strings.TrimPrefix(inner[end+1:], "<"), ">")
	who := inner[:end]
	if i := strings.LastIndex(who, ",sasl:"); i >= 0 {
		who = who[:i]
	}
	if session != "" {
		who += ",<" + session + ">"
	}
	if i := strings.Index(message, ": "); i >= 0 && !strings.Contains(message[:i], " ") {
		message = message[i+2:]
	}
	return authRecord(who, message, line)
}

// authRecord reads "USER,IP[,<SESSION>]" from the right, so that a user name
// with commas stays one.
func authRecord(who, reason, line string) *Record {
	switch {
	case strings.HasPrefix(reason, "Password mismatch"), strings.HasPrefix(reason, "unknown user"), strings.HasPrefix(reason, "Unknown user"):
	default:
		return nil
	}
	r := &Record{Kind: FailedLogin, Lines: []string{line}}
	r.set("service", "auth")
	r.set("reason", reason)
	parts := strings.Split(who, ",")
	if n := len(parts); n >= 2 && strings.HasPrefix(parts[n-1], "<") {
		r.set("session", strings.Trim(parts[n-1], "<>"))
		parts = parts[:n-1]
	}
	if n := len(parts); n >= 2 {
		if _, err := netip.ParseAddr(parts[n-1]); err != nil {
			return nil
		}
		r.set("rip", parts[n-1])
		parts = parts[:n-1]
	}
	r.set("user", strings.Join(parts, ","))
	r.setPeer()
	return r
}
