package witness

import (
	"net/netip"
	"slices"
	"strings"
)

// Line is a line, or the lines of one session, of a log whose form nobody
// declared: all that is known of it is which addresses and names stand in it.
const Line Kind = "line"

// The bounds of what is kept of sessions whose lines may still be joined.
const (
	maxLineSessions = 512 // the oldest is forgotten first
	maxSessionLines = 64
	maxWords        = 32 // of one record, of each sort
)

// lineReader reads a log of any form. It takes the words of each line: those
// that are addresses, and those with an "@", which are users, recipients and
// message ids. Lines belong together where their first word that looks like a
// session's id is the same.
//
// A line that repeats what a client said of itself (XCLIENT, a PROXY header, an
// ID with x-originating-ip) gives no address: it would be the value under test.
type lineReader struct {
	sessions map[string]*Record
	order    []string // the ids, oldest first
}

func newLineReader() *lineReader { return &lineReader{sessions: make(map[string]*Record)} }

// read returns the record that a line is, or has become part of; nil where
// nothing in it can be joined or asked for.
func (lr *lineReader) read(line string) *Record {
	_, _, message, ok := prefix(line)
	if !ok {
		message = line
	}
	words := lineWords(message)
	addresses := lineAddresses(message)
	if echoes(message) {
		addresses = nil
	}
	var names []string
	id := ""
	for _, w := range words {
		switch {
		case strings.Contains(w, "@"):
			names = append(names, strings.ToLower(w))
		case id == "" && isSessionID(w):
			id = w
		}
	}
	if id == "" {
		if len(names) == 0 {
			return nil
		}
		r := &Record{Kind: Line}
		r.extend(line, names, addresses)
		return r
	}
	r := lr.sessions[id]
	if r == nil {
		r = &Record{Kind: Line}
		lr.sessions[id] = r
		lr.order = append(lr.order, id)
		if len(lr.order) > maxLineSessions {
			delete(lr.sessions, lr.order[0])
			lr.order = lr.order[1:]
		}
	}
	r.extend(line, names, addresses)
	return r
}

// extend adds a line to a record. "named" holds the addresses of the lines that
// name somebody: those decide where there are any.
func (r *Record) extend(line string, names []string, addresses []netip.Addr) {
	if len(r.Lines) < maxSessionLines {
		r.Lines = append(r.Lines, line)
	}
	add := func(field, value string) {
		if vs := r.Fields[field]; len(vs) < maxWords && !slices.Contains(vs, value) {
			r.add(field, value)
		}
	}
	for _, n := range names {
		add("name", n)
	}
	for _, a := range addresses {
		add("address", a.String())
		if len(names) > 0 {
			add("named", a.String())
		}
	}
}

// lineWords splits a line where something stands that is part of no name, id
// or address.
func lineWords(s string) []string {
	return strings.FieldsFunc(s, func(c rune) bool {
		return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("@.+-_/%", c) || c > 127)
	})
}

// isSessionID says whether a word looks like the id of a session or a message:
// at least eight letters and digits, both of them.
func isSessionID(w string) bool {
	letters, digits := 0, 0
	for i := 0; i < len(w); i++ {
		switch c := w[i]; {
		case c >= '0' && c <= '9':
			digits++
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
			letters++
		case c == '-', c == '/', c == '+':
		default:
			return false
		}
	}
	return letters+digits >= 8 && letters > 0 && digits > 0
}

// lineAddresses finds the addresses in a line, with or without brackets, a port
// or SMTP's "IPv6:" before them.
func lineAddresses(s string) []netip.Addr {
	var out []netip.Addr
	part := func(c byte) bool {
		return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F' || c == ':' || c == '.'
	}
	other := func(c byte) bool {
		return c >= 'g' && c <= 'z' || c >= 'G' && c <= 'Z' || c == '@' || c == '_' || c == '-' || c == '%'
	}
	for i := 0; i < len(s); {
		if !part(s[i]) {
			i++
			continue
		}
		j := i
		for j < len(s) && part(s[j]) {
			j++
		}
		run, glued := s[i:j], i > 0 && other(s[i-1]) || j < len(s) && other(s[j])
		if glued && i > 2 && strings.EqualFold(s[i-3:i], "ipv") && strings.HasPrefix(run, "6:") {
			run, glued = run[2:], j < len(s) && other(s[j])
		}
		i = j
		if glued {
			continue
		}
		run = strings.TrimRight(run, ".")
		if !strings.HasSuffix(run, "::") {
			run = strings.TrimRight(run, ":")
		}
		a, err := netip.ParseAddr(run)
		if err != nil {
			ap, err := netip.ParseAddrPort(run)
			if err != nil {
				continue
			}
			a = ap.Addr()
		}
		if a = a.Unmap(); !a.IsUnspecified() {
			out = append(out, a)
		}
	}
	return out
}

// echoes says whether a line repeats an announcement.
func echoes(message string) bool {
	lower := strings.ToLower(message)
	for _, w := range []string{"xclient", "originating", "x-connected", "proxy tcp", "addr="} {
		if strings.Contains(lower, w) {
			return true
		}
	}
	return false
}

// lineKeys are the keys of a record of no known form: each of its names may be
// a user, a recipient, a sender or a message id.
func (r *Record) lineKeys(dst []string) []string {
	for _, n := range r.Fields["name"] {
		dst = append(dst, Key("user", n), Key("recipient", n), Key("sender", n), Key("message-id", n))
	}
	return dst
}
