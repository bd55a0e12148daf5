package postfix

import (
	"net/netip"
	"strings"
)

// access looks one key up in an access table and does what it finds. found
// says whether anything was.
func (in *session) access(spec, key, name, class, shorthand string, partial bool) (v verdict, found bool) {
	t := in.set.tables.get(spec)
	if t.broken != "" {
		in.tableWarning(t, key)
		return in.act(spec, "451 4.3.5 Server configuration error", name, class, shorthand), true
	}
	if partial && t.pattern {
		return dunno, false
	}
	value, ok := t.find(key)
	if !ok {
		return dunno, false
	}
	return in.act(spec, value, name, class, shorthand), true
}

// domainAccess looks up a name and the domains above it.
func (in *session) domainAccess(spec, domain, name, class, shorthand string) (verdict, bool) {
	_, err := netip.ParseAddr(domain)
	numeric := err == nil
	for d, partial := domain, false; d != ""; partial = true {
		if v, found := in.access(spec, d, name, class, shorthand, partial); found {
			return v, true
		}
		i := strings.IndexByte(d[1:], '.')
		if numeric || i < 0 {
			break
		}
		if d = d[1+i:]; in.set.accessParents {
			d = d[1:]
		}
	}
	return dunno, false
}

// hostAccess looks up a client's name and address, and what is above them.
func (in *session) hostAccess(spec, host, addr, name, class, shorthand string) verdict {
	if v, found := in.domainAccess(spec, host, name, class, shorthand); found {
		return v
	}
	sep := "."
	if strings.Contains(addr, ":") {
		sep = ":"
	}
	for a, partial := addr, false; ; partial = true {
		if v, found := in.access(spec, a, name, class, shorthand, partial); found {
			return v
		}
		i := strings.LastIndex(a, sep)
		if i < 0 {
			return dunno
		}
		a = a[:i]
	}
}

// mailAccess looks up a mail address: the whole, without its extension, its
// domain and those above, and the name alone.
func (in *session) mailAccess(spec, addr, class, shorthand string) verdict {
	r := in.set.resolve(addr, in.own)
	if r.broken != nil {
		return in.lookupError(r.broken, addr, addr)
	}
	local, domain, _ := cutLast(r.addr)
	bare := local
	if i := strings.IndexAny(local, in.set.delimiters); in.set.delimiters != "" && i > 0 {
		bare = local[:i]
	}
	keys := []string{r.addr}
	if bare != local {
		keys = append(keys, bare+"@"+domain)
	}
	keys = append(keys, domain)
	for d := domain; ; {
		i := strings.IndexByte(d, '.')
		if i < 0 {
			break
		}
		up := d[i:]
		d = d[i+1:]
		if in.set.accessParents {
			up = up[1:]
		}
		keys = append(keys, up)
	}
	keys = append(keys, local+"@")
	if bare != local {
		keys = append(keys, bare+"@")
	}
	for i, k := range keys {
		if v, found := in.access(spec, k, addr, class, shorthand, i > 0); found {
			if v == permit && r.routed && class == ofRecipient && !in.set.untrustedRouting {
				return dunno
			}
			return v
		}
	}
	return dunno
}

// act does what an access table says.
func (in *session) act(spec, value, name, class, shorthand string) verdict {
	word, text, _ := strings.Cut(strings.TrimSpace(value), " ")
	text = strings.TrimSpace(text)
	rejected := func(code int, def string) verdict {
		dsn, t := splitDSN(def, text)
		if t == "" {
			t = "Access denied"
		}
		return in.refuse(true, code, fixDSN(dsn, class), "<"+name+">: "+class+" rejected: "+t)
	}
	subject := "<" + name + ">: " + class + " "
	switch strings.ToUpper(word) {
	case "DUNNO":
		return dunno
	case "OK", "RELAY":
		return permit
	case "REJECT":
		return rejected(in.set.codes.access, "5.7.1")
	case "DEFER":
		return rejected(in.set.codes.accessDefer, "4.7.1")
	case "DEFER_IF_PERMIT", "DEFER_IF_REJECT":
		dsn, t := splitDSN("4.7.1", text)
		if t == "" {
			t = "Service unavailable"
		}
		d := &in.ifPermit
		if strings.HasSuffix(strings.ToUpper(word), "REJECT") {
			d = &in.ifReject
		}
		return in.keep(d, in.set.codes.accessDefer, fixDSN(dsn, class), subject+"rejected: "+t)
	case "INFO", "WARN":
		in.whatsup(strings.ToLower(word), text, in.checkFrom, in.checkTo)
		return dunno
	case "HOLD":
		in.whatsup("hold", subject+or(text, "triggers HOLD action"), in.checkFrom, in.checkTo)
		in.held = true
		return dunno
	case "DISCARD":
		in.whatsup("discard", subject+or(text, "triggers DISCARD action"), in.checkFrom, in.checkTo)
		in.discarded = true
		return permit
	case "FILTER", "REDIRECT", "BCC":
		in.whatsup(strings.ToLower(word), subject+"triggers "+strings.ToUpper(word)+" "+text, in.checkFrom, in.checkTo)
		return dunno
	case "PREPEND":
		if isHeader(text) {
			in.prepend = append(in.prepend, text)
		}
		return dunno
	}
	switch {
	case allDigits(value):
		return permit
	case len(word) == 3 && (word[0] == '4' || word[0] == '5') && allDigits(word) && text != "":
		code := int(word[0]-'0')*100 + int(word[1]-'0')*10 + int(word[2]-'0')
		return rejected(code, word[:1]+".7.1")
	case strings.Contains(value, ":"):
		return in.serverError("access table "+spec+" has entry with lookup table: "+value,
			"do not specify lookup tables inside SMTPD access maps",
			"define a restriction class and specify its name instead.")
	case value == "":
		return permit
	}
	return in.apply(words(value), name, class, shorthand)
}

func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
