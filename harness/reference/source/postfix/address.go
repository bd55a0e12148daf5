package postfix

import (
	"net/netip"
	"strings"
	"unicode/utf8"
)

// The classes of addresses (ADDRESS_CLASS_README).
const (
	classDefault = iota // somebody else's
	classLocal          // mydestination, and the host's own addresses
	classAlias          // virtual_alias_domains
	classMailbox        // virtual_mailbox_domains
	classRelay          // relay_domains
)

// mailPath reads the address of a MAIL or RCPT command: what stands between
// the brackets without a source route, quotes taken away. ok is false for what
// is no address, or several.
func mailPath(word string, strict bool) (addr string, ok bool) {
	text := word
	bracketed := len(word) > 1 && word[0] == '<' && word[len(word)-1] == '>'
	if bracketed {
		text = word[1 : len(word)-1]
	} else if strict {
		return "", false
	}
	if strings.HasPrefix(text, "@") {
		if i := strings.IndexByte(text, ':'); i >= 0 {
			text = text[i+1:]
		}
	}
	var b strings.Builder
	comment := 0
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case comment > 0:
			switch c {
			case '\\':
				i++
			case '(':
				comment++
			case ')':
				comment--
			}
		case c == '(':
			comment++
		case c == '\\' && i+1 < len(text):
			i++
			b.WriteByte(text[i])
		case c == '"':
			for i++; i < len(text) && text[i] != '"'; i++ {
				if text[i] == '\\' && i+1 < len(text) {
					i++
				}
				b.WriteByte(text[i])
			}
		case c == ',' || c == ';':
			if strings.Trim(text[i+1:], ",; ") != "" {
				return "", false
			}
			return b.String(), true
		case c == '<' || c == '>':
			return "", false
		case isSpace(c):
			// White space between the parts of an address means nothing.
		default:
			b.WriteByte(c)
		}
	}
	return b.String(), true
}

// quoteLocal writes an address as it stands in a header or on the wire: the
// local part in quotes if it needs them.
func quoteLocal(addr string) string {
	i := strings.LastIndexByte(addr, '@')
	local, rest := addr, ""
	if i >= 0 {
		local, rest = addr[:i], addr[i:]
	}
	if local == "" && rest == "" || dotString(local) {
		return addr
	}
	var b strings.Builder
	b.WriteByte('"')
	for j := 0; j < len(local); j++ {
		if local[j] == '"' || local[j] == '\\' || local[j] == '\r' {
			b.WriteByte('\\')
		}
		b.WriteByte(local[j])
	}
	b.WriteByte('"')
	return b.String() + rest
}

// dotString says whether a local part needs no quotes.
func dotString(s string) bool {
	if s == "" || s[0] == '.' || s[len(s)-1] == '.' || strings.Contains(s, "..") {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; c <= ' ' || c == 0x7f || strings.IndexByte("()<>@,;:\\\"[]", c) >= 0 {
			return false
		}
	}
	return true
}

// resolved is where an address leads.
type resolved struct {
	addr   string // user@domain
	domain string
	class  int
	routed bool // the local part holds another route
	bad    bool // the domain is none
	via    transport
	broken *table
}

// resolve finds out where an address leads, as trivial-rewrite does. own says
// whether an address literal is one of the host's own.
func (s *service) resolve(addr string, own func(netip.Addr) bool) resolved {
	local, domain, has := cutLast(addr)
	if !has {
		local, domain = s.qualify(addr)
	}
	r := resolved{class: classDefault}
	// The host's own domains are stripped, and what is behind them is looked at.
	for n := 0; n < 20; n++ {
		domain = strings.TrimSuffix(domain, ".")
		isLocal, broken := s.localDomain(domain, own)
		if broken != nil {
			r.broken = broken
			return r
		}
		if !isLocal {
			break
		}
		l, d, routed := s.behind(local)
		if !routed {
			r.class = classLocal
			break
		}
		local, domain = l, d
	}
	r.addr, r.domain = local+"@"+domain, domain
	switch {
	case strings.HasPrefix(domain, "["):
		if _, ok := literal(domain); !ok {
			r.bad = true
		}
	case !utf8.ValidString(r.addr), !validUTF8Hostname(domain) || !s.utf8 && !ascii(domain):
		r.bad = true
	}
	if r.bad {
		return r
	}
	r.routed = strings.ContainsAny(local, "@!%")
	if r.class == classLocal {
		r.via = s.transports[classLocal]
		return s.mapTransport(r)
	}
	for _, c := range []struct {
		list  *domainList
		class int
	}{{s.aliasDomains, classAlias}, {s.mailboxDomains, classMailbox}, {s.relayDomains, classRelay}} {
		ok, broken := c.list.match(domain)
		if broken != nil {
			r.broken = broken
			return r
		}
		if ok {
			r.class = c.class
			break
		}
	}
	if r.class == classAlias {
		r.via = transport{"error", "5.1.1 User unknown" + s.inTable("virtual alias")}
		return r
	}
	r.via = s.transports[r.class]
	if r.via.nexthop == "" && (r.class == classDefault || r.class == classRelay) {
		if r.via.nexthop = s.relayhost; s.relayhost == "" {
			r.via.nexthop = domain
		}
	}
	return s.mapTransport(r)
}

// mapTransport applies transport_maps.
func (s *service) mapTransport(r resolved) resolved {
	keys := []string{r.addr, r.domain}
	for d := r.domain; ; {
		i := strings.IndexByte(d, '.')
		if i < 0 {
			break
		}
		keys = append(keys, d[i:])
		d = d[i+1:]
	}
	for _, k := range append(keys, "*") {
		v, ok, broken := s.transportMaps.find(k, k != r.addr)
		if broken != nil {
			r.broken = broken
			return r
		}
		if ok {
			t := parseTransport(v)
			if t.name != "" {
				r.via.name = t.name
			}
			if t.nexthop != "" || t.name != "" {
				r.via.nexthop = t.nexthop
			}
			return r
		}
	}
	return r
}

func (s *service) inTable(which string) string {
	if !s.tableNames {
		return ""
	}
	return " in " + which + " table"
}

func cutLast(addr string) (local, domain string, ok bool) {
	i := strings.LastIndexByte(addr, '@')
	if i < 0 {
		return addr, "", false
	}
	return addr[:i], addr[i+1:], true
}

// qualify makes an address without a domain one with a domain.
func (s *service) qualify(addr string) (local, domain string) {
	if l, d, ok := s.behind(addr); ok {
		return l, d
	}
	return addr, s.myorigin
}

// behind reads a route that stands in a local part.
func (s *service) behind(local string) (user, domain string, ok bool) {
	if l, d, ok := cutLast(local); ok {
		return l, d, true
	}
	if s.bangPath {
		if site, user, ok := strings.Cut(local, "!"); ok && site != "" {
			return user, site, true
		}
	}
	if s.percentHack {
		if i := strings.LastIndexByte(local, '%'); i >= 0 {
			return local[:i], local[i+1:], true
		}
	}
	return "", "", false
}

// localDomain says whether a domain is the host's own.
func (s *service) localDomain(domain string, own func(netip.Addr) bool) (bool, *table) {
	if a, ok := literal(domain); ok {
		return own(a), nil
	}
	return s.mydestination.match(domain)
}

// literal reads an address literal.
func literal(domain string) (netip.Addr, bool) {
	if len(domain) < 3 || domain[0] != '[' || domain[len(domain)-1] != ']' {
		return netip.Addr{}, false
	}
	text := domain[1 : len(domain)-1]
	if len(text) > 5 && strings.EqualFold(text[:5], "IPv6:") {
		a, err := netip.ParseAddr(text[5:])
		return a.Unmap(), err == nil && a.Is6()
	}
	a, err := netip.ParseAddr(text)
	return a, err == nil && a.Is4()
}

// announced reads the address of XCLIENT and XFORWARD: IPv4 as it is, IPv6
// after "IPV6:".
func announced(v string) (netip.Addr, bool) {
	if len(v) > 5 && strings.EqualFold(v[:5], "IPV6:") {
		a, err := netip.ParseAddr(v[5:])
		if err != nil || a.Zone() != "" || !a.Is6() {
			return netip.Addr{}, false
		}
		return a.Unmap(), true
	}
	a, err := netip.ParseAddr(v)
	return a, err == nil && a.Is4()
}
