package postfix

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// A matchList is a list of hosts: addresses, networks, names, tables, and
// "!" before what is not meant. The first pattern that matches decides.
type matchList struct {
	param    string
	patterns []pattern
	parents  bool // a domain matches what is below it
}

type pattern struct {
	text  string
	not   bool
	table *table
	net   netip.Prefix
	bad   string // why it cannot be read
}

// list reads a parameter as a list of hosts.
func (ts *tables) list(p *params, param string) *matchList {
	l := &matchList{param: param}
	l.parents = slices.Contains(p.words("parent_domain_matches_subdomains"), param)
	ts.patternsOf(l, p.words(param), false)
	return l
}

func (ts *tables) patternsOf(l *matchList, ws []string, not bool) {
	for _, w := range ws {
		n := not
		for strings.HasPrefix(w, "!") {
			n, w = !n, w[1:]
		}
		if w == "" {
			continue
		}
		switch {
		case w[0] == '/':
			text, ok := ts.files[w]
			if !ok {
				l.patterns = append(l.patterns, pattern{text: w, not: n, table: &table{spec: "nofile:" + w, broken: "open file " + w + ": No such file or directory"}})
				continue
			}
			logical(text, func(_ int, s string) error {
				ts.patternsOf(l, words(s), n)
				return nil
			})
		case w[0] != '[' && strings.Contains(w, ":"):
			l.patterns = append(l.patterns, pattern{text: w, not: n, table: ts.get(w)})
		default:
			p := pattern{text: strings.ToLower(w), not: n}
			if looksLikeNet(w) {
				p.net, p.bad = parseNet(w)
			} else if a, err := netip.ParseAddr(strings.Trim(w, "[]")); err == nil {
				p.net = netip.PrefixFrom(a, a.BitLen())
			}
			l.patterns = append(l.patterns, p)
		}
	}
}

// looksLikeNet says whether a pattern is taken for a network, or for an IPv6
// address, whatever comes of it.
func looksLikeNet(w string) bool {
	return strings.ContainsAny(w, ":/") && strings.Trim(w, "0123456789.abcdefABCDEF:[]/") == ""
}

// parseNet reads an address or a network. why says what is wrong with it.
func parseNet(w string) (netip.Prefix, string) {
	text := strings.NewReplacer("[", "", "]", "").Replace(w)
	if !strings.Contains(text, "/") {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Prefix{}, fmt.Sprintf("bad address pattern: %q", w)
		}
		return netip.PrefixFrom(a, a.BitLen()), ""
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		return netip.Prefix{}, fmt.Sprintf("bad net/mask pattern: %q", w)
	}
	if m := p.Masked(); m != p {
		return netip.Prefix{}, fmt.Sprintf("non-null host address bits in %q, perhaps you should use %q instead", text, m)
	}
	// ::ffff:127.0.0.0/104 is 127.0.0.0/8: addresses are never mapped here.
	if a := p.Addr(); a.Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p, ""
}

// match says whether a host is on the list. When a pattern that decides cannot
// be read, trouble is what Postfix logs, each a line.
func (l *matchList) match(name string, addr netip.Addr, addrText string) (ok bool, trouble []string) {
	for i := range l.patterns {
		p := &l.patterns[i]
		hit := false
		switch {
		case p.table != nil:
			var broken bool
			if hit, broken = l.matchTable(p.table, name, addrText); broken {
				return false, []string{
					p.table.spec + " is unavailable. " + p.table.broken,
					l.param + ": " + p.table.spec + ": table lookup problem",
				}
			}
		case p.bad != "":
			if addr.IsValid() && addr.Is4() == !strings.Contains(p.text, ":") {
				return false, []string{l.param + ": " + p.bad}
			}
		case p.net.IsValid():
			hit = addr.IsValid() && p.net.Contains(addr)
		default:
			hit = l.matchName(strings.ToLower(name), p.text) || addrText == p.text
		}
		if hit {
			return !p.not, nil
		}
	}
	return false, nil
}

func (l *matchList) matchName(name, pat string) bool {
	switch {
	case name == pat:
		return true
	case l.parents:
		return strings.HasSuffix(name, "."+pat)
	}
	return pat[0] == '.' && strings.HasSuffix(name, pat) && len(name) > len(pat)
}

func (l *matchList) matchTable(t *table, name, addr string) (hit, broken bool) {
	if t.broken != "" {
		return false, true
	}
	for n := strings.ToLower(name); n != ""; {
		if _, ok := t.find(n); ok {
			return true, false
		}
		if t.pattern {
			break
		}
		i := strings.IndexByte(n[1:], '.')
		if i < 0 {
			break
		}
		if n = n[i+1:]; l.parents {
			n = n[1:]
		}
	}
	_, hit = t.find(addr)
	return hit, false
}

// domainList is a list of domains: names and tables.
type domainList struct {
	param    string
	patterns []pattern
	parents  bool
}

func (ts *tables) domains(p *params, param string) *domainList {
	l := &domainList{param: param, parents: slices.Contains(p.words("parent_domain_matches_subdomains"), param)}
	for _, w := range p.words(param) {
		not := false
		for strings.HasPrefix(w, "!") {
			not, w = !not, w[1:]
		}
		switch {
		case w == "":
		case w[0] == '/':
			text, ok := ts.files[w]
			if !ok {
				l.patterns = append(l.patterns, pattern{text: w, not: not, table: &table{spec: "nofile:" + w, broken: "open file " + w + ": No such file or directory"}})
			}
			for f := range strings.FieldsSeq(text) {
				l.patterns = append(l.patterns, pattern{text: strings.ToLower(f), not: not})
			}
		case strings.Contains(w, ":"):
			l.patterns = append(l.patterns, pattern{text: w, not: not, table: ts.get(w)})
		default:
			l.patterns = append(l.patterns, pattern{text: strings.ToLower(w), not: not})
		}
	}
	return l
}

func (l *domainList) match(domain string) (bool, *table) {
	domain = strings.ToLower(domain)
	for i := range l.patterns {
		p := &l.patterns[i]
		hit := p.text == domain
		switch {
		case p.table != nil && p.table.broken != "":
			return false, p.table
		case p.table != nil:
			_, hit = p.table.find(domain)
		case l.parents:
			hit = hit || strings.HasSuffix(domain, "."+p.text)
		case p.text[0] == '.':
			hit = hit || strings.HasSuffix(domain, p.text)
		}
		if hit {
			return !p.not, nil
		}
	}
	return false, nil
}
