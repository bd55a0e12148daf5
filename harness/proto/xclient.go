package proto

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// An Announcement is what a proxy tells a source about the client it speaks
// for. Absent values are the zero value. It is spelled by [Announcement.XCLIENT]
// and [Announcement.ID] in each server's own syntax.
type Announcement struct {
	Client    netip.AddrPort // who connected to the proxy
	Dest      netip.AddrPort // where they connected to
	Session   string         // at most 64 of [A-Za-z0-9+/=_.-]
	TTL       int            // 0: not announced
	Transport string         // "TLS" or "insecure"
	HELO      string         // SMTP: the name the client gave
	Proto     string         // SMTP: "SMTP" or "ESMTP"
}

// XCLIENT spells the announcement as one XCLIENT command for the protocol,
// without CRLF. Of the attributes only those that advertised accepts are sent;
// a nil advertised sends all that the protocol's server knows.
//
// Postfix (XCLIENT_README) wants IPv6 addresses after "IPV6:" and knows no
// SESSION; Dovecot and Pigeonhole want them bare and know no HELO.
func (a Announcement) XCLIENT(p Protocol, advertised func(attribute string) bool) string {
	if advertised == nil {
		advertised = func(string) bool { return true }
	}
	var b strings.Builder
	b.WriteString("XCLIENT")
	add := func(name, value string) {
		if value != "" && advertised(name) {
			b.WriteString(" " + name + "=" + value)
		}
	}
	smtp := p == SMTP || p == LMTP
	spell := func(ap netip.AddrPort) string {
		addr := ap.Addr().Unmap()
		switch {
		case !addr.IsValid():
			return ""
		case smtp && addr.Is6():
			return "IPV6:" + addr.String()
		}
		return addr.String()
	}
	port := func(ap netip.AddrPort) string {
		if ap.Port() == 0 {
			return ""
		}
		return strconv.Itoa(int(ap.Port()))
	}
	add("ADDR", spell(a.Client))
	add("PORT", port(a.Client))
	add("DESTADDR", spell(a.Dest))
	add("DESTPORT", port(a.Dest))
	add("SESSION", a.Session)
	if a.TTL > 0 {
		add("TTL", strconv.Itoa(a.TTL))
	}
	add("CLIENT-TRANSPORT", a.Transport)
	if smtp {
		if isPlainHELO(a.HELO) {
			add("HELO", a.HELO)
		}
		add("PROTO", a.Proto)
	}
	return b.String()
}

// isPlainHELO says whether a HELO name can stand in an attribute as it is.
func isPlainHELO(s string) bool {
	if len(s) > 255 {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] <= ' ' || s[i] >= 0x7f || s[i] == '+' || s[i] == '=' || s[i] == '"' {
			return false
		}
	}
	return true
}

// ID spells the announcement as an IMAP ID command (RFC 2971) with the
// parameters that Dovecot reads from a trusted peer, without CRLF.
func (a Announcement) ID(tag string) string {
	var b strings.Builder
	b.WriteString(tag + " ID (")
	first := true
	add := func(name, value string) {
		if value == "" {
			return
		}
		if !first {
			b.WriteByte(' ')
		}
		first = false
		b.WriteString(Quote(name) + " " + Quote(value))
	}
	endpoint := func(prefix string, ap netip.AddrPort) {
		if ap.Addr().IsValid() {
			add(prefix+"-ip", ap.Addr().Unmap().String())
		}
		if ap.Port() != 0 {
			add(prefix+"-port", strconv.Itoa(int(ap.Port())))
		}
	}
	endpoint("x-originating", a.Client)
	endpoint("x-connected", a.Dest)
	if a.TTL > 0 {
		add("x-proxy-ttl", strconv.Itoa(a.TTL))
	}
	add("x-session-id", a.Session)
	add("x-client-transport", a.Transport)
	b.WriteByte(')')
	return b.String()
}

// An Attribute is one name and value, in the order and case in which it came.
type Attribute struct{ Name, Value string }

// ParseAttributes splits the arguments of an XCLIENT command at single spaces
// into names and values. An argument without "=" has an empty value and is
// reported as such; judging it is the server's business.
func ParseAttributes(args string) (attrs []Attribute, bad []string) {
	for _, word := range strings.Fields(args) {
		name, value, ok := strings.Cut(word, "=")
		if !ok || name == "" {
			bad = append(bad, word)
			continue
		}
		attrs = append(attrs, Attribute{Name: name, Value: value})
	}
	return attrs, bad
}

// ParseIDParams reads the tokens after the word ID (RFC 2971, section 3.1):
// NIL, or a list of pairs. NIL values become empty.
func ParseIDParams(ts []Token) ([]Attribute, error) {
	if len(ts) == 1 && ts[0].Kind == Atom && strings.EqualFold(ts[0].Text, "NIL") {
		return nil, nil
	}
	if len(ts) < 2 || ts[0].Kind != Open || ts[len(ts)-1].Kind != Close {
		return nil, fmt.Errorf("the ID parameter list must be NIL or stand in parentheses")
	}
	ts = ts[1 : len(ts)-1]
	if len(ts)%2 != 0 {
		return nil, fmt.Errorf("the ID parameter list has a name without a value")
	}
	var attrs []Attribute
	for i := 0; i < len(ts); i += 2 {
		name, value := ts[i], ts[i+1]
		nilValue := value.Kind == Atom && strings.EqualFold(value.Text, "NIL")
		if !name.IsString() || !value.IsString() && !nilValue {
			return nil, fmt.Errorf("the ID parameter list may hold strings and NIL only")
		}
		a := Attribute{Name: name.Text, Value: value.Text}
		if nilValue {
			a.Value = ""
		}
		attrs = append(attrs, a)
	}
	return attrs, nil
}
