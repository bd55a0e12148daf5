package postfix

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// entry is one service of master.cf.
type entry struct {
	name, kind string   // "submission", "inet"
	columns    []string // private unpriv chroot wakeup maxproc
	command    string
	options    []option // in order
	args       []string // what else the command is given
	file       string
	line       int
}

type option struct{ name, value string }

// masterCF is master.cf as it stands after every layer.
type masterCF struct{ entries []*entry }

// debianMaster are the services of Debian's own master.cf that matter here.
const debianMaster = `
smtp      inet  n       -       y       -       -       smtpd
pickup    unix  n       -       y       60      1       pickup
cleanup   unix  n       -       y       -       0       cleanup
qmgr      unix  n       -       n       300     1       qmgr
rewrite   unix  -       -       y       -       -       trivial-rewrite
bounce    unix  -       -       y       -       0       bounce
smtp      unix  -       -       y       -       -       smtp
relay     unix  -       -       y       -       -       smtp
error     unix  -       -       y       -       -       error
retry     unix  -       -       y       -       -       error
discard   unix  -       -       y       -       -       discard
local     unix  -       n       n       -       -       local
virtual   unix  -       n       n       -       -       virtual
lmtp      unix  -       -       y       -       -       lmtp
anvil     unix  -       -       y       -       1       anvil
postlog   unix-dgram n  -       n       -       1       postlogd
`

// readMaster reads the files in order. Beside entries they may hold
// "service/type/param=value", which changes one -o of an entry that is there,
// and "service/type = -", which removes it.
func readMaster(files []File) (*masterCF, error) {
	m := &masterCF{}
	for _, f := range append([]File{{"/etc/postfix/master.cf", debianMaster}}, files...) {
		err := logical(f.Text, func(n int, s string) error { return m.apply(f.Path, n, s) })
		if err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *masterCF) apply(file string, line int, s string) error {
	head, value, ok := strings.Cut(s, "=")
	head, value = strings.TrimSpace(head), strings.TrimSpace(value)
	if parts := strings.Split(head, "/"); ok && !strings.ContainsAny(head, " \t") && len(parts) > 1 {
		i := slices.IndexFunc(m.entries, func(e *entry) bool { return e.name == parts[0] && e.kind == parts[1] })
		switch {
		case i < 0:
			return &ConfigError{file, line, fmt.Sprintf("no service %s/%s to edit", parts[0], parts[1])}
		case len(parts) == 2 && value == "-":
			m.entries = slices.Delete(m.entries, i, i+1)
			return nil
		case len(parts) == 3:
			m.entries[i].set(parts[2], value)
			return nil
		}
		return &ConfigError{file, line, fmt.Sprintf("bad edit %q", clip(s, 60))}
	}
	e, err := parseEntry(file, line, s)
	if err != nil {
		return err
	}
	if i := slices.IndexFunc(m.entries, func(o *entry) bool { return o.name == e.name && o.kind == e.kind }); i >= 0 {
		m.entries[i] = e
		return nil
	}
	m.entries = append(m.entries, e)
	return nil
}

// set changes one option. An empty value stays as one: it overrides main.cf.
func (e *entry) set(name, value string) {
	for i := range e.options {
		if e.options[i].name == name {
			e.options[i].value = value
			return
		}
	}
	e.options = append(e.options, option{name, value})
}

func parseEntry(file string, line int, s string) (*entry, error) {
	bad := func(why string) error { return &ConfigError{file, line, why} }
	f := masterWords(s)
	if len(f) < 8 {
		return nil, bad("bad field count")
	}
	switch f[1] {
	case "inet", "unix", "unix-dgram", "fifo", "pass":
	default:
		return nil, bad(fmt.Sprintf("field \"transport type\": bad value: %q", f[1]))
	}
	for i, c := range f[2:5] {
		if c != "-" && c != "y" && c != "n" {
			return nil, bad(fmt.Sprintf("field %q: bad value: %q", []string{"private", "unprivileged", "chroot"}[i], c))
		}
	}
	if n := f[6]; n != "-" {
		if _, err := strconv.ParseUint(n, 10, 31); err != nil {
			return nil, bad(fmt.Sprintf("field \"process_limit\": bad value: %q", n))
		}
	}
	e := &entry{name: f[0], kind: f[1], columns: f[2:7], command: f[7], file: file, line: line}
	for args := f[8:]; len(args) > 0; args = args[1:] {
		a := args[0]
		if !strings.HasPrefix(a, "-o") {
			e.args = append(e.args, a)
			continue
		}
		if a = a[2:]; a == "" {
			if args = args[1:]; len(args) == 0 {
				return nil, bad("-o without a parameter")
			}
			a = args[0]
		}
		if strings.HasPrefix(a, "{") {
			a = strings.TrimSpace(strings.TrimSuffix(a[1:], "}"))
		}
		name, value, ok := strings.Cut(a, "=")
		if !ok {
			return nil, bad(fmt.Sprintf("missing '=' after attribute name: %q", a))
		}
		e.set(strings.TrimSpace(name), strings.TrimSpace(value))
	}
	return e, nil
}

// masterWords cuts an entry at white space; only a word that begins with "{"
// may hold some.
func masterWords(s string) []string {
	var out []string
	for s = strings.TrimLeft(s, " \t"); s != ""; s = strings.TrimLeft(s, " \t") {
		n := -1
		if s[0] == '{' {
			n = balanced(s, '{')
		}
		if n < 0 {
			if n = strings.IndexAny(s, " \t"); n < 0 {
				n = len(s)
			}
		}
		out = append(out, s[:n])
		s = s[n:]
	}
	return out
}

// endpoint is where an inet service listens. The zero address is every one.
func (e *entry) endpoint() (netip.Addr, uint16, error) {
	host, port := "", e.name
	if i := strings.LastIndexByte(e.name, ':'); i >= 0 {
		host, port = strings.Trim(e.name[:i], "[]"), e.name[i+1:]
	}
	var addr netip.Addr
	if host != "" {
		a, err := netip.ParseAddr(host)
		switch {
		case host == "localhost":
			a = netip.AddrFrom4([4]byte{127, 0, 0, 1})
		case err != nil:
			return addr, 0, &ConfigError{e.file, e.line, fmt.Sprintf("bad host name or network address: %s", host)}
		}
		addr = a
	}
	switch port {
	case "smtp":
		return addr, 25, nil
	case "submission":
		return addr, 587, nil
	case "submissions", "smtps", "ssmtp", "urd":
		return addr, 465, nil
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return addr, 0, &ConfigError{e.file, e.line, fmt.Sprintf("0.0.0.0:%s: Servname not supported for ai_socktype", port)}
	}
	return addr, uint16(n), nil
}

// String writes the entry as postconf -M does.
func (e *entry) String() string {
	s := fmt.Sprintf("%-10s %-5s %-7s %-7s %-7s %-7s %-7s %s", e.name, e.kind, e.columns[0], e.columns[1], e.columns[2], e.columns[3], e.columns[4], e.command)
	for _, o := range e.options {
		if strings.ContainsAny(o.value, " \t") {
			s += "\n    -o { " + o.name + " = " + o.value + " }"
		} else {
			s += "\n    -o " + o.name + "=" + o.value
		}
	}
	return s
}
