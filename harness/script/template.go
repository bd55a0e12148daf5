package script

import (
	"fmt"
	"strconv"
	"strings"
)

// A Template is text with references to variables: ${token}, ${sasl.plain alice}.
type Template struct {
	parts []part
	src   string
}

type part struct {
	lit  string
	ref  *Ref      // a variable
	wild *wildcard // patterns only
	col  int
}

// A Ref is one reference to a variable: a dotted name and its arguments.
type Ref struct {
	Name string
	Args []string
}

func (r Ref) String() string {
	return "${" + strings.Join(append([]string{r.Name}, r.Args...), " ") + "}"
}

// An Env gives variables their values. A value that must not be shown comes
// with the name of its secret.
type Env interface {
	Lookup(Ref) (value, secret string, err error)
}

// String is the template as it was written.
func (t Template) String() string { return t.src }

// Empty says that nothing was written.
func (t Template) Empty() bool { return len(t.parts) == 0 }

// Refs lists the references in order.
func (t Template) Refs() []Ref {
	var rs []Ref
	for _, p := range t.parts {
		if p.ref != nil {
			rs = append(rs, *p.ref)
		}
	}
	return rs
}

// Expand returns the text to send and the text to show, which names secrets
// instead of containing them.
func (t Template) Expand(env Env) (actual, shown string, err error) {
	if len(t.parts) == 1 && t.parts[0].ref == nil {
		return t.parts[0].lit, t.parts[0].lit, nil
	}
	var a, s strings.Builder
	for _, p := range t.parts {
		if p.ref == nil {
			a.WriteString(p.lit)
			s.WriteString(p.lit)
			continue
		}
		v, secret, err := env.Lookup(*p.ref)
		if err != nil {
			return "", "", fmt.Errorf("%s: %w", p.ref, err)
		}
		a.WriteString(v)
		if secret != "" {
			v = "<secret:" + secret + ">"
		}
		s.WriteString(v)
	}
	return a.String(), s.String(), nil
}

// parseTemplate splits text at ${...}. base is the column of its first octet.
func parseTemplate(text string, base int) (Template, *Error) {
	t := Template{src: text}
	rest, col := text, base
	for rest != "" {
		i := strings.Index(rest, "${")
		if i < 0 {
			t.parts = append(t.parts, part{lit: rest, col: col})
			break
		}
		if i > 0 {
			t.parts = append(t.parts, part{lit: rest[:i], col: col})
		}
		j := strings.IndexByte(rest[i:], '}')
		if j < 0 {
			return t, &Error{Col: col + i, Msg: "a reference has no end", Want: `close it with "}"`}
		}
		ref, err := parseRef(rest[i+2 : i+j])
		if err != nil {
			err.Col = col + i
			return t, err
		}
		t.parts = append(t.parts, part{ref: ref, col: col + i})
		col += i + j + 1
		rest = rest[i+j+1:]
	}
	return t, nil
}

func parseRef(s string) (*Ref, *Error) {
	words := strings.Fields(s)
	if len(words) == 0 {
		return nil, &Error{Msg: "an empty reference", Want: "name a variable, as in ${token}"}
	}
	for _, c := range words[0] {
		if (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '.' && c != '-' && c != '_' {
			return nil, &Error{Msg: fmt.Sprintf("%q is no variable name", words[0]), Want: "letters, digits, dots and hyphens"}
		}
	}
	return &Ref{Name: words[0], Args: words[1:]}, nil
}

// MaxFiller is the most octets that one ${filler N} stands for.
const MaxFiller = 8192

// Filler is the text that a reference ${filler N} stands for.
func (r Ref) Filler() (string, error) {
	n, err := strconv.Atoi(strings.Join(r.Args, " "))
	if err != nil || n < 1 || n > MaxFiller {
		return "", fmt.Errorf("%s: a number of octets from 1 to %d is wanted", r, MaxFiller)
	}
	return strings.Repeat("x", n), nil
}
