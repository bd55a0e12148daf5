package dovecot

import (
	"strings"
	"time"
	"unicode/utf8"
)

// A template is text with variables.
type template []part

// part is literal text, or a variable by its long name of 2.4.
type part struct {
	text   string
	name   string
	filter func(string) string // nil: none
}

// An element is one word of login_log_format_elements.
type element struct {
	template
	user bool // it names the user, and is written though it be empty
}

// short are the variables of one letter that 2.3 has, by their long names.
func short(c byte) string {
	switch c {
	case 'u':
		return "user"
	case 'n':
		return "username"
	case 'd':
		return "domain"
	case 's':
		return "elements" // in login_log_format; the service elsewhere
	case '$':
		return "message"
	case 'h':
		return "home"
	case 'l':
		return "local_ip"
	case 'r':
		return "remote_ip"
	case 'p':
		return "pid"
	case 'm':
		return "mechanism"
	case 'a':
		return "local_port"
	case 'b':
		return "remote_port"
	case 'c':
		return "secured"
	case 'k':
		return "ssl_security"
	case 'e':
		return "mail_pid"
	}
	return ""
}

// long brings the long names of 2.3 to those of 2.4.
func long(name string) string {
	switch name {
	case "lip":
		return "local_ip"
	case "rip":
		return "remote_ip"
	case "lport":
		return "local_port"
	case "rport":
		return "remote_port"
	case "real_lip":
		return "real_local_ip"
	case "real_rip":
		return "real_remote_ip"
	case "real_lport":
		return "real_local_port"
	case "real_rport":
		return "real_remote_port"
	case "mech":
		return "mechanism"
	case "orig_user":
		return "original_user"
	}
	return name
}

// parse23 reads the variables of 2.3: %u, %{rip}, %Lu.
func parse23(s string) template {
	var t template
	lit := 0
	for i := 0; i < len(s); i++ {
		if s[i] != '%' || i+1 >= len(s) {
			continue
		}
		if i > lit {
			t = append(t, part{text: s[lit:i]})
		}
		i++
		var p part
		for i < len(s) && (s[i] == 'L' || s[i] == 'U' || s[i] >= '0' && s[i] <= '9' || s[i] == '.' || s[i] == '-') {
			switch s[i] {
			case 'L':
				p.filter = strings.ToLower
			case 'U':
				p.filter = strings.ToUpper
			}
			i++
		}
		switch {
		case i >= len(s):
		case s[i] == '%':
			p.text = "%"
		case s[i] == '{':
			end := strings.IndexByte(s[i:], '}')
			if end < 0 {
				end = len(s) - i
			}
			p.name = long(s[i+1 : i+end])
			i += end
		default:
			if p.name = short(s[i]); p.name == "" {
				p.text = "UNSUPPORTED_VARIABLE_" + s[i:i+1]
			}
		}
		t = append(t, p)
		lit = i + 1
	}
	if lit < len(s) {
		t = append(t, part{text: s[lit:]})
	}
	return t
}

// parse24 reads the variables of 2.4: %{user}, %{user | lower}.
func parse24(s string) template {
	var t template
	for s != "" {
		i := strings.Index(s, "%{")
		if i < 0 {
			t = append(t, part{text: s})
			break
		}
		if i > 0 {
			t = append(t, part{text: s[:i]})
		}
		end := strings.IndexByte(s[i:], '}')
		if end < 0 {
			break
		}
		words := strings.Split(s[i+2:i+end], "|")
		p := part{name: strings.TrimSpace(words[0])}
		for _, w := range words[1:] {
			p.filter = chain(p.filter, filter24(strings.TrimSpace(w)))
		}
		t = append(t, p)
		s = s[i+end+1:]
	}
	return t
}

func filter24(name string) func(string) string {
	switch name {
	case "lower":
		return strings.ToLower
	case "upper":
		return strings.ToUpper
	case "username":
		return func(s string) string { u, _, _ := strings.Cut(s, "@"); return u }
	case "domain":
		return func(s string) string { _, d, _ := strings.Cut(s, "@"); return d }
	}
	return nil
}

func chain(a, b func(string) string) func(string) string {
	switch {
	case a == nil:
		return b
	case b == nil:
		return a
	}
	return func(s string) string { return b(a(s)) }
}

// parseElements splits login_log_format_elements at spaces outside braces.
func parseElements(s string, parse func(string) template) []element {
	var es []element
	depth, from := 0, 0
	for i := 0; i <= len(s); i++ {
		if i < len(s) {
			switch s[i] {
			case '{':
				depth++
			case '}':
				depth--
			}
			if s[i] != ' ' || depth > 0 {
				continue
			}
		}
		if i > from {
			e := element{template: parse(s[from:i])}
			for _, p := range e.template {
				e.user = e.user || p.name == "user" || p.name == "username"
			}
			es = append(es, e)
		}
		from = i + 1
	}
	return es
}

// append expands the template; empty says that no variable of it had a value.
func (t template) append(dst []byte, value func(name string) string) (out []byte, empty bool) {
	empty = true
	for _, p := range t {
		if p.name == "" {
			dst = append(dst, p.text...)
			continue
		}
		v := value(p.name)
		if p.filter != nil {
			v = p.filter(v)
		}
		empty = empty && v == ""
		dst = append(dst, v...)
	}
	return dst, empty
}

// sanitize makes a client's text fit for the log: control characters and what
// is no UTF-8 become "?", and what is longer than limit octets is cut.
func sanitize(s string, limit int) string {
	clean := len(s) <= limit
	for i := 0; clean && i < len(s); i++ {
		clean = s[i] >= 0x20 && s[i] < 0x80
	}
	if clean {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s) && b.Len() < limit; {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n <= 1, s[i] < 0x20:
			b.WriteByte('?')
		default:
			b.WriteString(s[i : i+n])
		}
		i += max(n, 1)
	}
	if len(s) <= limit {
		return b.String()
	}
	out := b.String()
	for len(out) > limit-3 {
		_, n := utf8.DecodeLastRuneInString(out)
		out = out[:len(out)-n]
	}
	return out + "..."
}

// stamp writes a time by log_timestamp.
func stamp(dst []byte, format string, t time.Time) []byte {
	two := func(n int) { dst = append(dst, byte('0'+n/10), byte('0'+n%10)) }
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 >= len(format) {
			dst = append(dst, format[i])
			continue
		}
		i++
		switch format[i] {
		case 'Y':
			dst = t.AppendFormat(dst, "2006")
		case 'm':
			two(int(t.Month()))
		case 'd':
			two(t.Day())
		case 'e':
			dst = t.AppendFormat(dst, "_2")
		case 'b':
			dst = append(dst, t.Month().String()[:3]...)
		case 'H':
			two(t.Hour())
		case 'M':
			two(t.Minute())
		case 'S':
			two(t.Second())
		case 'F':
			dst = t.AppendFormat(dst, "2006-01-02")
		case 'T':
			dst = t.AppendFormat(dst, "15:04:05")
		case 'z':
			dst = t.AppendFormat(dst, "-0700")
		case '{':
			if strings.HasPrefix(format[i:], "{usecs}") {
				us := t.Nanosecond() / 1000
				for div := 100000; div > 0; div /= 10 {
					dst = append(dst, byte('0'+us/div%10))
				}
				i += len("{usecs}") - 1
			}
		default:
			dst = append(dst, format[i])
		}
	}
	return dst
}
