package postfix

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"sync"
)

// A table is one lookup table. Keys are compared without their case.
type table struct {
	spec    string // "texthash:/etc/postfix/vmailbox"
	broken  string // why it cannot be used
	err     string // what the process logs when it opens it
	pattern bool   // parts of a key are not looked up
	find    func(key string) (string, bool)
}

// tables opens lookup tables and remembers them.
type tables struct {
	release  string
	files    map[string]string // what lies on the source, by absolute path
	accounts func(string) bool

	mu   sync.Mutex
	open map[string]*table
}

// accountsFile is the table of the source's own accounts.
const accountsFile = "/etc/postfix/vmailbox"

// systemUsers are the names that Debian's /etc/passwd and /etc/aliases have.
const systemUsers = "root daemon bin sys sync games man lp mail news uucp proxy www-data backup list irc nobody postfix postmaster mailer-daemon dovecot dovenull vmail"

func (ts *tables) get(spec string) *table {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	if t, ok := ts.open[spec]; ok {
		return t
	}
	t := ts.openTable(spec)
	t.spec = spec
	ts.open[spec] = t
	return t
}

func (ts *tables) openTable(spec string) *table {
	kind, name, _ := strings.Cut(spec, ":")
	if kind == "proxy" {
		kind, name, _ = strings.Cut(name, ":")
	}
	switch kind {
	case "inline":
		return inlineTable(name)
	case "static":
		value := strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(name, "{"), "}"))
		return &table{pattern: true, find: func(string) (string, bool) { return value, true }}
	case "fail":
		return &table{broken: "fail:" + name}
	case "unix":
		return setTable(systemUsers)
	case "environ":
		return &table{find: func(string) (string, bool) { return "", false }}
	case "cidr", "regexp", "pcre":
		text, ok := ts.patterns(name)
		if !ok {
			return missing("open " + name)
		}
		if kind == "cidr" {
			return cidrTable(text)
		}
		return regexpTable(text)
	case "texthash", "hash", "btree", "lmdb", "cdb", "sdbm", "dbm":
		if name == "/etc/aliases" {
			return setTable(systemUsers)
		}
		text, ok := ts.files[name]
		if kind != "texthash" {
			// The indexed file is made by postmap, which nobody ran.
			ok, name = false, name+".db"
		}
		switch {
		case ok:
			return textTable(text)
		case name == accountsFile:
			return &table{find: func(key string) (string, bool) { return "mailbox", ts.accounts(key) }}
		}
		return missing("open database " + name)
	}
	why := "unsupported dictionary type: " + kind
	if ts.release == Trixie {
		return &table{broken: why, err: "warning: " + why + ". Is the postfix-" + kind + " package installed?\nerror: " + why}
	}
	return &table{broken: why, err: "error: " + why}
}

func missing(what string) *table {
	why := what + ": No such file or directory"
	return &table{broken: why, err: "error: " + why}
}

// patterns is the text of a table of patterns, in a file or in { }.
func (ts *tables) patterns(name string) (string, bool) {
	if !strings.HasPrefix(name, "{") {
		text, ok := ts.files[name]
		return text, ok
	}
	var b strings.Builder
	for _, w := range words(strings.TrimSuffix(name[1:], "}")) {
		b.WriteString(strings.TrimSpace(strings.TrimSuffix(strings.TrimPrefix(w, "{"), "}")))
		b.WriteByte('\n')
	}
	return b.String(), true
}

func mapTable(m map[string]string) *table {
	return &table{find: func(key string) (string, bool) {
		v, ok := m[strings.ToLower(key)]
		return v, ok
	}}
}

func setTable(names string) *table {
	m := make(map[string]string)
	for n := range strings.FieldsSeq(names) {
		m[n] = n
	}
	return mapTable(m)
}

// inlineTable reads "{ key=value, {key = long value} }".
func inlineTable(name string) *table {
	m := make(map[string]string)
	in, ok := strings.CutPrefix(strings.TrimSpace(name), "{")
	in, closed := strings.CutSuffix(in, "}")
	if !ok || !closed {
		why := fmt.Sprintf("bad syntax: %q; need \"inline:{name=value...}\"", "inline:"+name)
		return &table{broken: why, err: "error: " + why}
	}
	for _, w := range words(in) {
		w = strings.TrimSuffix(strings.TrimPrefix(w, "{"), "}")
		k, v, ok := strings.Cut(w, "=")
		if !ok {
			why := fmt.Sprintf("missing '=' after attribute name: %q", w)
			return &table{broken: why, err: "error: " + why}
		}
		m[strings.ToLower(strings.TrimSpace(k))] = strings.TrimSpace(v)
	}
	return mapTable(m)
}

// textTable reads "key value" lines.
func textTable(text string) *table {
	m := make(map[string]string)
	logical(text, func(_ int, s string) error {
		k, v, _ := strings.Cut(s, " ")
		if k2, v2, ok := strings.Cut(s, "\t"); ok && len(k2) < len(k) {
			k, v = k2, v2
		}
		m[strings.ToLower(k)] = strings.TrimSpace(v)
		return nil
	})
	return mapTable(m)
}

// cidrTable reads "[!]net value" lines, in order.
func cidrTable(text string) *table {
	type rule struct {
		net   netip.Prefix
		not   bool
		value string
	}
	var rules []rule
	logical(text, func(_ int, s string) error {
		f := strings.Fields(s)
		pat, not := strings.CutPrefix(f[0], "!")
		if p, why := parseNet(pat); why == "" && len(f) > 1 {
			rules = append(rules, rule{p, not, strings.TrimSpace(s[len(f[0]):])})
		}
		return nil
	})
	return &table{pattern: true, find: func(key string) (string, bool) {
		a, err := netip.ParseAddr(key)
		if err != nil {
			return "", false
		}
		for _, r := range rules {
			if r.net.Contains(a) != r.not {
				return r.value, true
			}
		}
		return "", false
	}}
}

// regexpTable reads "[!]/pattern/flags value" lines, in order.
func regexpTable(text string) *table {
	type rule struct {
		re    *regexp.Regexp
		not   bool
		value string
	}
	var rules []rule
	logical(text, func(_ int, s string) error {
		s, not := strings.CutPrefix(s, "!")
		if len(s) < 2 {
			return nil
		}
		end := strings.LastIndexByte(s, s[0])
		if i := strings.IndexByte(s[1:], s[0]); i >= 0 {
			end = 1 + i
		}
		if end < 1 {
			return nil
		}
		re, err := regexp.Compile("(?i)" + s[1:end])
		flags, value, ok := strings.Cut(s[end+1:], " ")
		if err != nil || !ok {
			return nil
		}
		if strings.Contains(flags, "i") { // the flag switches case on
			if re, err = regexp.Compile(s[1:end]); err != nil {
				return nil
			}
		}
		rules = append(rules, rule{re, not, strings.TrimSpace(value)})
		return nil
	})
	return &table{pattern: true, find: func(key string) (string, bool) {
		for _, r := range rules {
			if r.re.MatchString(key) != r.not {
				return r.value, true
			}
		}
		return "", false
	}}
}

// maps are several tables, searched in order.
type maps []*table

// maps opens the tables of a parameter.
func (ts *tables) maps(specs []string) maps {
	var m maps
	for _, s := range specs {
		if !strings.Contains(s, ":") {
			// Postfix takes a bare name for a table of the default type.
			s = "hash:" + s
		}
		m = append(m, ts.get(s))
	}
	return m
}

// find looks a key up. broken is the first table that could not be asked.
func (m maps) find(key string, partial bool) (value string, ok bool, broken *table) {
	for _, t := range m {
		if partial && t.pattern {
			continue
		}
		if t.broken != "" {
			return "", false, t
		}
		if v, ok := t.find(key); ok {
			return v, true, nil
		}
	}
	return "", false, nil
}

// findAddress looks a mail address up, as the tables of recipients are: the
// whole, without the extension, the name alone if the domain is local, and
// the domain alone.
func (m maps) findAddress(addr, delimiters string, local func(domain string) bool) (value string, ok bool, broken *table) {
	if len(m) == 0 {
		return "", false, nil
	}
	if v, ok, b := m.find(addr, false); ok || b != nil {
		return v, ok, b
	}
	i := strings.LastIndexByte(addr, '@')
	if i < 0 {
		return "", false, nil
	}
	user, domain := addr[:i], addr[i+1:]
	bare := user
	if j := strings.IndexAny(user, delimiters); delimiters != "" && j > 0 {
		bare = user[:j]
		if v, ok, b := m.find(bare+"@"+domain, true); ok || b != nil {
			return v, ok, b
		}
	}
	if local(domain) {
		for _, k := range []string{user, bare} {
			if v, ok, b := m.find(k, true); ok || b != nil {
				return v, ok, b
			}
		}
	}
	return m.find("@"+domain, true)
}
