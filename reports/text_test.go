package reports

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"gotest.tools/v3/assert"
)

func TestVisible(t *testing.T) {
	for in, want := range map[string]string{
		"":                         "",
		"* OK Dovecot ready.":      "* OK Dovecot ready.",
		"Grüße, 世界":                "Grüße, 世界",
		"a\x1b[2Jb":                `a\x1b[2Jb`,
		"nul\x00 del\x7f":          `nul\x00 del\x7f`,
		"crlf\r\n":                 `crlf\r\n`,
		"tab\there":                `tab\there`,
		"bad \xff\xfe utf-8":       `bad \xff\xfe utf-8`,
		"rtl \u202etxt.exe\u2066":  `rtl \u202etxt.exe\u2066`,
		"c1 \u009b31m":             `c1 \u009b31m`,
		"zero\u200bwidth \ufeff":   `zero\u200bwidth \ufeff`,
		"line\u2028sep":            `line\u2028sep`,
		"noncharacter \ufffe":      `noncharacter \ufffe`,
		"tag \U000e0041":           `tag \U000e0041`,
		"replacement \ufffd stays": "replacement \ufffd stays",
		"half \xe2\x82":            `half \xe2\x82`,
	} {
		assert.Equal(t, visible(in), want)
	}
	assert.Equal(t, visibleText("a\nb\r\n\x1b"), "a\nb\\r\n\\x1b")
}

func TestClip(t *testing.T) {
	assert.Equal(t, clip("short", 10), "short")
	assert.Equal(t, clip("ääääääääää", 10), "ääääääääää")
	assert.Equal(t, clip("ääääääääääxyz", 10), "ääääääääää… (3 more characters)")
	assert.Equal(t, clip(strings.Repeat("x", 10_000), 4), "xxxx… (9996 more characters)")
}

func TestWrap(t *testing.T) {
	assert.DeepEqual(t, wrap("one two  three\nfour", 9), []string{"one two", "three", "four"})
	assert.DeepEqual(t, wrap("a /very/long/path/that/stays b", 8), []string{"a", "/very/long/path/that/stays", "b"})
	assert.DeepEqual(t, wrap("", 8), []string{""})
}

func TestFold(t *testing.T) {
	assert.DeepEqual(t, fold("one two  three", 8), []string{"one two ", " three"})
	assert.DeepEqual(t, fold("0123456789", 4), []string{"0123", "4567", "89"})
	assert.DeepEqual(t, fold("ab cdefghij", 4), []string{"ab ", "cdef", "ghij"})
	assert.DeepEqual(t, fold("", 4), []string{""})
	assert.DeepEqual(t, fold("ääää ä", 4), []string{"ääää", " ä"})
	for width := 1; width < 40; width++ {
		long := strings.Repeat("some ünusual wörds and averyveryverylongone ", 9)
		parts := fold(long, width)
		assert.Equal(t, strings.Join(parts, ""), long)
		for _, p := range parts {
			assert.Assert(t, utf8.RuneCountInString(p) <= width)
		}
	}
}

func FuzzVisible(f *testing.F) {
	for _, s := range []string{"", "\x1b]0;title\x07", "]]>", "<secret:alice>", "\xed\xa0\x80", "\u202e", "\ufffe\uffff", "a\r\nb", "e\u0301"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, lines := range []bool{false, true} {
			got := show(s, lines)
			if !utf8.ValidString(got) {
				t.Fatalf("not UTF-8: %q", got)
			}
			for _, r := range got {
				if !unicode.IsGraphic(r) && !(r == '\n' && lines) {
					t.Fatalf("%q holds %U", got, r)
				}
				if !inXML(r) {
					t.Fatalf("%q holds %U, which XML 1.0 does not allow", got, r)
				}
			}
			if again := show(got, lines); again != got {
				t.Fatalf("shown twice: %q became %q", got, again)
			}
		}
	})
}

// inXML is the production Char of XML 1.0.
func inXML(r rune) bool {
	return r == 0x9 || r == 0xa || r == 0xd || r >= 0x20 && r <= 0xd7ff || r >= 0xe000 && r <= 0xfffd || r >= 0x10000 && r <= 0x10ffff
}
