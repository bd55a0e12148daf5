package reports

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// visible returns s as one line of printable characters: control characters,
// octets that are not UTF-8, and characters that reorder, join or hide text
// are written as \r, \x1b or \u202e. What visible returned it leaves alone.
func visible(s string) string { return show(s, false) }

// visibleText is visible for text of several lines: line feeds stay.
func visibleText(s string) string { return show(s, true) }

func show(s string, lines bool) string {
	i := 0
	for i < len(s) && (s[i] >= 0x20 && s[i] < 0x7f || s[i] == '\n' && lines) {
		i++
	}
	if i == len(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 16)
	b.WriteString(s[:i])
	for i < len(s) {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == '\n' && lines:
			b.WriteByte('\n')
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case r < 0x80 && (r < 0x20 || r == 0x7f):
			fmt.Fprintf(&b, `\x%02x`, r)
		case unicode.IsGraphic(r):
			b.WriteString(s[i : i+n])
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		i += n
	}
	return b.String()
}

// clip cuts s to at most n characters, and says how many are missing.
func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	total := utf8.RuneCountInString(s)
	if total <= n {
		return s
	}
	at := 0
	for range n {
		_, size := utf8.DecodeRuneInString(s[at:])
		at += size
	}
	return fmt.Sprintf("%s… (%d more characters)", s[:at], total-n)
}

// wrap breaks s into lines of at most width characters. Words that are longer
// stay whole, so that addresses and paths can be copied.
func wrap(s string, width int) []string {
	var lines []string
	var line strings.Builder
	have := 0
	for _, word := range strings.Fields(s) {
		n := utf8.RuneCountInString(word)
		if have > 0 && have+1+n > width {
			lines = append(lines, line.String())
			line.Reset()
			have = 0
		}
		if have > 0 {
			line.WriteByte(' ')
			have++
		}
		line.WriteString(word)
		have += n
	}
	if have > 0 || len(lines) == 0 {
		lines = append(lines, line.String())
	}
	return lines
}

// fold breaks s into lines of at most width characters, after a space where
// there is one, and loses nothing of it.
func fold(s string, width int) []string {
	width = max(width, 1)
	var lines []string
	for {
		end, count, space := len(s), 0, 0
		for i, r := range s {
			if count == width {
				end = i
				break
			}
			if count++; r == ' ' {
				space = i + 1
			}
		}
		if end < len(s) && space > 0 && s[end] != ' ' {
			end = space
		}
		lines = append(lines, s[:end])
		if s = s[end:]; s == "" {
			return lines
		}
	}
}

// counted is "1 claim" or "3 claims".
func counted(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// firstLine is the part of s before its first line end.
func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
