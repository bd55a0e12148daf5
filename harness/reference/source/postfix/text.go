package postfix

import (
	"strings"
	"unicode/utf8"
)

// token is one word of a command.
type token struct {
	text string
	bad  bool // a quote or a bracket in it has no end
}

// tokenize cuts a command into words: white space separates them but not
// inside quotes or brackets, and "from:" and "to:" end a word.
func tokenize(line string, out []token) []token {
	var b []byte
	bad := false
	flush := func() {
		if len(b) > 0 {
			out = append(out, token{string(b), bad})
			b, bad = b[:0], false
		}
	}
	for i := 0; i < len(line); {
		c := line[i]
		i++
		switch {
		case isSpace(c):
			flush()
		case c == '<' || c == '"':
			n, closed := quotedSpan(line[i:], c)
			b = append(append(b, c), line[i:i+n]...)
			i += n
			bad = bad || !closed
		case c == ':':
			b = append(b, c)
			if foldPrefix(b, "to:") || foldPrefix(b, "from:") {
				flush()
			}
		case c == '\\' && i < len(line):
			b = append(b, c, line[i])
			i++
		default:
			b = append(b, c)
		}
	}
	flush()
	return out
}

// foldPrefix says whether word is the beginning of keyword.
func foldPrefix(word []byte, keyword string) bool {
	return len(word) <= len(keyword) && strings.EqualFold(string(word), keyword[:len(word)])
}

// quotedSpan is how far a quoted string or a bracket reaches, its end included.
// Quotes may stand inside brackets, and brackets inside brackets.
func quotedSpan(s string, open byte) (n int, closed bool) {
	end := func(c byte) byte {
		if c == '<' {
			return '>'
		}
		return c
	}
	stack := []byte{end(open)}
	for i := 0; i < len(s); i++ {
		want := stack[len(stack)-1]
		switch c := s[i]; {
		case c == '\\':
			i++
		case c == want:
			if stack = stack[:len(stack)-1]; len(stack) == 0 {
				return i + 1, true
			}
		case c == '"':
			stack = append(stack, '"')
		case c == '<' && want == '>':
			stack = append(stack, '>')
		}
	}
	return len(s), false
}

func isSpace(c byte) bool { return c == ' ' || c >= '\t' && c <= '\r' }

// printable replaces what cannot be printed. UTF-8 stays as it is.
func printable(s string, with byte) string {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] > '~' {
			return printableSlow(s, with)
		}
	}
	return s
}

func printableSlow(s string, with byte) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case n == 1 && (s[i] < ' ' || s[i] > '~'):
			b = append(b, with)
		case r == utf8.RuneError && n == 1:
			b = append(b, with)
		default:
			b = append(b, s[i:i+n]...)
		}
		i += n
	}
	return string(b)
}

// neuter replaces what could break out of a header or a log line.
func neuter(s string) string {
	if !strings.ContainsAny(s, " <>()\\\";@") {
		return s
	}
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(" <>()\\\";@", r) {
			return '?'
		}
		return r
	}, s)
}

// escape writes octets as C does.
func escape(b []byte) string {
	const letters = "abtnvfr" // 7 to 13
	out := make([]byte, 0, len(b)+8)
	for _, c := range b {
		switch {
		case c == '\\':
			out = append(out, '\\', '\\')
		case c >= ' ' && c <= '~':
			out = append(out, c)
		case c >= 7 && c <= 13:
			out = append(out, '\\', letters[c-7])
		default:
			out = append(out, '\\', '0'+c>>6, '0'+c>>3&7, '0'+c&7)
		}
	}
	return string(out)
}

// unxtext decodes xtext (RFC 3461); what is none is returned as it is.
func unxtext(s string) (string, bool) {
	if strings.IndexByte(s, '+') < 0 {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] != '+' {
			b = append(b, s[i])
			continue
		}
		if i+2 >= len(s) {
			return s, false
		}
		hi, lo := unhex(s[i+1]), unhex(s[i+2])
		if hi < 0 || lo < 0 {
			return s, false
		}
		b = append(b, byte(hi<<4|lo))
		i += 2
	}
	return string(b), true
}

func unhex(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	}
	return -1
}

func allDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

func ascii(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] >= 0x80 {
			return false
		}
	}
	return true
}

// isHeader says whether a word is the beginning of a header field.
func isHeader(word string) bool {
	name, _, ok := strings.Cut(word, ":")
	if !ok || name == "" {
		return false
	}
	for i := 0; i < len(name); i++ {
		if name[i] <= ' ' || name[i] > '~' {
			return false
		}
	}
	return true
}

// clip cuts a text for the log.
func clip(s string, n int) string {
	if len(s) > n {
		return s[:n]
	}
	return s
}

// validHostname says whether a name has the syntax of a host name. Underscores
// are let pass, as Postfix does.
func validHostname(name string) bool {
	if name == "" || len(name) > 255 {
		return false
	}
	digits := true
	for _, label := range strings.Split(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := 0; i < len(label); i++ {
			c := label[i]
			switch {
			case c >= '0' && c <= '9':
			case c == '-':
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c == '_':
				digits = false
			default:
				return false
			}
		}
	}
	return !digits
}

// validUTF8Hostname also takes internationalised labels.
func validUTF8Hostname(name string) bool {
	if ascii(name) {
		return validHostname(name)
	}
	return utf8.ValidString(name) && validHostname(strings.Map(func(r rune) rune {
		if r >= 0x80 {
			return 'x'
		}
		return r
	}, name))
}
