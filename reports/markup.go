package reports

import (
	"bufio"
	"io"
	"strings"
)

// A markup writes HTML that is well-formed XML too. Element and attribute
// names are constants of this package; every text and attribute value goes
// through visible and is escaped, and there is no other way in.
type markup struct {
	w     *bufio.Writer
	below *counter
}

// A counter counts the octets that pass through it.
type counter struct {
	w io.Writer
	n int
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += n
	return n, err
}

func newMarkup(w io.Writer) markup {
	c := &counter{w: w}
	return markup{w: bufio.NewWriterSize(c, 64<<10), below: c}
}

// size is the number of octets written so far.
func (m *markup) size() int { return m.below.n + m.w.Buffered() }

// open begins an element. Attributes come as name, value pairs; one whose
// value is empty is left out.
func (m *markup) open(name string, attrs ...string) {
	m.start(name, attrs)
	m.w.WriteByte('>')
}

func (m *markup) close(names ...string) {
	for _, n := range names {
		m.w.WriteString("</")
		m.w.WriteString(n)
		m.w.WriteByte('>')
	}
}

// void writes an element without content.
func (m *markup) void(name string, attrs ...string) {
	m.start(name, attrs)
	m.w.WriteString("/>")
}

// el writes an element that holds text.
func (m *markup) el(name, text string, attrs ...string) {
	m.open(name, attrs...)
	m.text(text)
	m.close(name)
}

func (m *markup) start(name string, attrs []string) {
	m.w.WriteByte('<')
	m.w.WriteString(name)
	for i := 0; i+1 < len(attrs); i += 2 {
		if attrs[i+1] == "" {
			continue
		}
		m.w.WriteByte(' ')
		m.w.WriteString(attrs[i])
		m.w.WriteString(`="`)
		escape(m.w, visible(attrs[i+1]))
		m.w.WriteByte('"')
	}
}

// text writes text, keeping its line feeds.
func (m *markup) text(s string) {
	escape(m.w, visibleText(s))
}

// line ends a line of the source, so that it can be read and compared.
func (m *markup) line() { m.w.WriteByte('\n') }

// marked writes text in which every occurrence of a word is marked.
func (m *markup) marked(s, word string) {
	for word != "" {
		before, after, found := strings.Cut(s, word)
		if !found {
			break
		}
		m.text(before)
		m.el("mark", word)
		s = after
	}
	m.text(s)
}

// secrets writes text in which every <secret:name> is a chip.
func (m *markup) secrets(s string) {
	for {
		i := strings.Index(s, "<secret:")
		if i < 0 {
			break
		}
		n := strings.IndexByte(s[i:], '>')
		if n < 0 {
			break
		}
		m.text(s[:i])
		m.el("span", s[i:i+n+1], "class", "secret")
		s = s[i+n+1:]
	}
	m.text(s)
}
