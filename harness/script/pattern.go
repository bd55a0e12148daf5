package script

import (
	"fmt"
	"net/netip"
	"strings"
)

// A Pattern is literal text with holes: {} matches anything, {name} captures,
// {name:ip} captures an address, {name:int} a number, {name:word} anything
// without a space, {=name} must equal what was captured. "\{" is a literal
// brace. Alternatives are separated by " || ". After " else open " stand
// replies that answer another question: they neither prove nor refute.
type Pattern struct {
	alts []Template
	open []Template
	src  string
}

type wildcard struct {
	name  string
	typ   string
	equal bool
}

// String is the pattern as it was written.
func (p Pattern) String() string { return p.src }

// Alternatives are the pattern's alternatives as they were written.
func (p Pattern) Alternatives() []string {
	ss := make([]string, len(p.alts))
	for i, a := range p.alts {
		ss[i] = strings.TrimSpace(a.src)
	}
	return ss
}

// Captures lists the names that the pattern may bind.
func (p Pattern) Captures() []string {
	var names []string
	for _, a := range p.alts {
		for _, x := range a.parts {
			if x.wild != nil && x.wild.name != "" && !x.wild.equal {
				names = append(names, x.wild.name)
			}
		}
	}
	return names
}

// Refs lists the references to variables.
func (p Pattern) Refs() []Ref {
	var rs []Ref
	for _, a := range concatTemplates(p.alts, p.open) {
		for _, x := range a.parts {
			switch {
			case x.ref != nil:
				rs = append(rs, *x.ref)
			case x.wild != nil && x.wild.equal:
				rs = append(rs, Ref{Name: x.wild.name})
			}
		}
	}
	return rs
}

// Show is the pattern with its variables' values, for reports.
func (p Pattern) Show(env Env) string {
	var b strings.Builder
	for i, a := range p.alts {
		if i > 0 {
			b.WriteString(" or ")
		}
		for _, x := range a.parts {
			switch {
			case x.ref != nil:
				v, secret, err := env.Lookup(*x.ref)
				switch {
				case err != nil:
					v = x.ref.String()
				case secret != "":
					v = "<secret:" + secret + ">"
				}
				b.WriteString(v)
			case x.wild != nil && x.wild.equal:
				if v, _, err := env.Lookup(Ref{Name: x.wild.name}); err == nil {
					b.WriteString(v)
				}
			case x.wild != nil:
				b.WriteString("…")
			default:
				b.WriteString(x.lit)
			}
		}
	}
	return strings.TrimSpace(b.String())
}

// Match says whether the whole text matches one of the alternatives, and
// returns what was captured. fold compares letters without their case.
func (p Pattern) Match(text string, env Env, fold bool) (captures map[string]string, ok bool, err error) {
	return matchAny(p.alts, text, env, fold)
}

// LeavesOpen says whether a text that does not match is one that leaves the
// claim open.
func (p Pattern) LeavesOpen(text string, env Env, fold bool) (bool, error) {
	_, ok, err := matchAny(p.open, text, env, fold)
	return ok, err
}

func matchAny(alts []Template, text string, env Env, fold bool) (captures map[string]string, ok bool, err error) {
	for _, a := range alts {
		m := matcher{env: env, fold: fold}
		parts, err := m.resolve(a.parts)
		if err != nil {
			return nil, false, err
		}
		if m.match(parts, text) {
			return m.caps, true, nil
		}
	}
	return nil, false, nil
}

func concatTemplates(a, b []Template) []Template { return append(a[:len(a):len(a)], b...) }

type matcher struct {
	env  Env
	fold bool
	caps map[string]string
}

// resolve replaces references by their values and joins literals.
func (m *matcher) resolve(in []part) ([]part, error) {
	simple := true
	for _, x := range in {
		if x.ref != nil || x.wild != nil && x.wild.equal {
			simple = false
			break
		}
	}
	if simple {
		return in, nil
	}
	var out []part
	for _, x := range in {
		switch {
		case x.ref != nil, x.wild != nil && x.wild.equal:
			ref := x.ref
			if ref == nil {
				ref = &Ref{Name: x.wild.name}
			}
			v, _, err := m.env.Lookup(*ref)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", ref, err)
			}
			x = part{lit: v}
		}
		if n := len(out); n > 0 && out[n-1].wild == nil && x.wild == nil {
			out[n-1].lit += x.lit
			continue
		}
		out = append(out, x)
	}
	return out, nil
}

func (m *matcher) match(parts []part, text string) bool {
	if len(parts) == 0 {
		return text == ""
	}
	p := parts[0]
	if p.wild == nil {
		if len(text) < len(p.lit) || !m.eq(text[:len(p.lit)], p.lit) {
			return false
		}
		return m.match(parts[1:], text[len(p.lit):])
	}
	if len(parts) == 1 {
		return m.take(p.wild, text)
	}
	next := parts[1]
	for i := 0; i <= len(text); i++ {
		if next.wild == nil {
			// Jump to where the next literal could stand.
			j := m.index(text[i:], next.lit)
			if j < 0 {
				return false
			}
			i += j
		}
		if m.fits(p.wild, text[:i]) && m.match(parts[1:], text[i:]) {
			m.bind(p.wild, text[:i])
			return true
		}
	}
	return false
}

func (m *matcher) take(w *wildcard, text string) bool {
	if !m.fits(w, text) {
		return false
	}
	m.bind(w, text)
	return true
}

func (m *matcher) bind(w *wildcard, text string) {
	if w.name == "" {
		return
	}
	if m.caps == nil {
		m.caps = make(map[string]string)
	}
	m.caps[w.name] = text
}

func (m *matcher) fits(w *wildcard, text string) bool {
	switch w.typ {
	case "ip":
		_, err := netip.ParseAddr(text)
		return err == nil
	case "int":
		if text == "" {
			return false
		}
		for _, c := range []byte(text) {
			if c < '0' || c > '9' {
				return false
			}
		}
	case "word":
		return text != "" && !strings.ContainsAny(text, " \t\r\n")
	}
	return true
}

func (m *matcher) eq(a, b string) bool {
	if m.fold {
		return strings.EqualFold(a, b)
	}
	return a == b
}

func (m *matcher) index(s, sub string) int {
	if !m.fold {
		return strings.Index(s, sub)
	}
	for i := 0; i+len(sub) <= len(s); i++ {
		if strings.EqualFold(s[i:i+len(sub)], sub) {
			return i
		}
	}
	return -1
}

// parsePattern reads a pattern. base is the column of its first octet.
func parsePattern(text string, base int) (Pattern, *Error) {
	p := Pattern{src: text}
	wanted, open, both := strings.Cut(text, " else open ")
	var err *Error
	if p.alts, err = parseAlternatives(wanted, base); err == nil && both {
		p.open, err = parseAlternatives(open, base+len(wanted)+len(" else open "))
	}
	return p, err
}

func parseAlternatives(text string, col int) (alts []Template, err *Error) {
	for {
		alt, rest, more := strings.Cut(text, " || ")
		t, err := parseAlternative(alt, col)
		if err != nil {
			return nil, err
		}
		alts = append(alts, t)
		if !more {
			return alts, nil
		}
		col += len(alt) + 4
		text = rest
	}
}

var wildTypes = []string{"ip", "int", "word"}

func parseAlternative(text string, base int) (Template, *Error) {
	trimmed := strings.TrimSpace(text)
	base += strings.Index(text, trimmed)
	t := Template{src: trimmed}
	var lit strings.Builder
	flush := func(col int) {
		if lit.Len() > 0 {
			t.parts = append(t.parts, part{lit: lit.String(), col: col})
			lit.Reset()
		}
	}
	for i := 0; i < len(trimmed); {
		switch {
		case strings.HasPrefix(trimmed[i:], `\{`), strings.HasPrefix(trimmed[i:], `\}`):
			lit.WriteByte(trimmed[i+1])
			i += 2
		case strings.HasPrefix(trimmed[i:], "${"):
			j := strings.IndexByte(trimmed[i:], '}')
			if j < 0 {
				return t, &Error{Col: base + i, Msg: "a reference has no end", Want: `close it with "}"`}
			}
			flush(base + i)
			ref, err := parseRef(trimmed[i+2 : i+j])
			if err != nil {
				err.Col = base + i
				return t, err
			}
			t.parts = append(t.parts, part{ref: ref, col: base + i})
			i += j + 1
		case trimmed[i] == '{':
			j := strings.IndexByte(trimmed[i:], '}')
			if j < 0 {
				return t, &Error{Col: base + i, Msg: "a hole has no end", Want: `close it with "}", or write a literal brace as "\{"`}
			}
			flush(base + i)
			w, err := parseWildcard(trimmed[i+1 : i+j])
			if err != nil {
				err.Col = base + i
				return t, err
			}
			if n := len(t.parts); n > 0 && t.parts[n-1].wild != nil && !w.equal && !t.parts[n-1].wild.equal {
				return t, &Error{Col: base + i, Msg: "two holes side by side", Want: "put literal text between them"}
			}
			t.parts = append(t.parts, part{wild: w, col: base + i})
			i += j + 1
		default:
			lit.WriteByte(trimmed[i])
			i++
		}
	}
	flush(base + len(trimmed))
	return t, nil
}

func parseWildcard(s string) (*wildcard, *Error) {
	w := &wildcard{}
	if strings.HasPrefix(s, "=") {
		w.equal, s = true, s[1:]
	}
	name, typ, typed := strings.Cut(s, ":")
	w.name, w.typ = name, typ
	for _, c := range name {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return nil, &Error{Msg: fmt.Sprintf("%q is no capture name", name), Want: "lower-case letters, digits and hyphens"}
		}
	}
	if w.equal && name == "" {
		return nil, &Error{Msg: "{=} names no capture", Want: "write {=name}"}
	}
	if typed && !contains(wildTypes, typ) {
		return nil, &Error{Msg: fmt.Sprintf("%q is no type of capture", typ), Want: nearest(typ, wildTypes)}
	}
	return w, nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
