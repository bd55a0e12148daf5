package proxy

import (
	"strings"
	"unicode/utf8"
)

// A position is a place in a configuration file, from 1; columns count
// characters.
type position struct{ line, column int }

// A keyNode says where a key of a TOML document stands, and the keys under it.
type keyNode struct {
	at       position
	children map[string]*keyNode
	elems    []*keyNode // of an array of tables, or of a value that is an array
	tables   bool       // elems are those of an array of tables
}

func (n *keyNode) child(name string) *keyNode {
	if n == nil {
		return nil
	}
	return n.children[name]
}

// find returns the position of a key, or of the nearest table above it.
func (n *keyNode) find(path []string) position {
	at := n.at
	for _, name := range path {
		if n.tables && len(n.elems) > 0 {
			n = n.elems[len(n.elems)-1]
		}
		if n = n.child(name); n == nil {
			break
		}
		at = n.at
	}
	return at
}

// locate finds the position of every key of a document that is known to be
// valid TOML. (The decoder tells positions of syntax errors only; those it
// keeps for keys cannot tell the elements of an array of tables apart.) On
// anything it does not understand it stops and keeps what it has.
func locate(text string) *keyNode {
	text = strings.TrimPrefix(text, "\xef\xbb\xbf")
	s := &locator{text: text, line: 1, column: 1}
	root := &keyNode{at: position{1, 1}}
	table := root
	for {
		s.blank(true)
		switch {
		case s.eof():
			return root
		case s.take("[["):
			var ok bool
			if table, ok = s.header(root, true); !ok {
				return root
			}
		case s.take("["):
			var ok bool
			if table, ok = s.header(root, false); !ok {
				return root
			}
		default:
			if !s.keyValue(table) {
				return root
			}
		}
	}
}

// placeOf is the position of an octet. (The decoder's own columns are off at
// the end of a text and behind characters of several octets.)
func placeOf(text string, offset int) position {
	before := strings.TrimPrefix(text, "\xef\xbb\xbf")
	before = before[:max(0, min(offset, len(before)))]
	line := strings.LastIndexByte(before, '\n') + 1
	return position{line: strings.Count(before, "\n") + 1, column: utf8.RuneCountInString(before[line:]) + 1}
}

type locator struct {
	text         string
	i            int
	line, column int
}

func (s *locator) eof() bool { return s.i >= len(s.text) }

func (s *locator) peek() byte {
	if s.eof() {
		return 0
	}
	return s.text[s.i]
}

// step passes one character.
func (s *locator) step() {
	if s.eof() {
		return
	}
	if s.text[s.i] == '\n' {
		s.line, s.column = s.line+1, 1
		s.i++
		return
	}
	_, n := utf8.DecodeRuneInString(s.text[s.i:])
	s.i += n
	s.column++
}

func (s *locator) take(prefix string) bool {
	if !strings.HasPrefix(s.text[s.i:], prefix) {
		return false
	}
	for range len(prefix) {
		s.step()
	}
	return true
}

func (s *locator) here() position { return position{s.line, s.column} }

// blank passes spaces, and line ends and comments if lines is set.
func (s *locator) blank(lines bool) {
	for !s.eof() {
		switch c := s.peek(); {
		case c == ' ' || c == '\t':
			s.step()
		case lines && (c == '\n' || c == '\r'):
			s.step()
		case lines && c == '#':
			for !s.eof() && s.peek() != '\n' {
				s.step()
			}
		default:
			return
		}
	}
}

// key reads a dotted key.
func (s *locator) key() (parts []string, at []position, ok bool) {
	for {
		s.blank(false)
		pos := s.here()
		var part string
		if c := s.peek(); c == '"' || c == '\'' {
			if part, ok = s.quoted(c); !ok {
				return nil, nil, false
			}
		} else {
			begin := s.i
			for !s.eof() && strings.IndexByte(" \t.=]\r\n", s.peek()) < 0 {
				s.step()
			}
			if part = s.text[begin:s.i]; part == "" {
				return nil, nil, false
			}
		}
		parts, at = append(parts, part), append(at, pos)
		s.blank(false)
		if !s.take(".") {
			return parts, at, true
		}
	}
}

// quoted reads a string on one line.
func (s *locator) quoted(q byte) (string, bool) {
	s.step()
	var b strings.Builder
	for !s.eof() && s.peek() != '\n' {
		switch c := s.peek(); {
		case c == q:
			s.step()
			return b.String(), true
		case c == '\\' && q == '"':
			s.step()
			switch e := s.peek(); e {
			case '"', '\\':
				b.WriteByte(e)
			default: // other escapes are spelled as they stand: no key needs them
				b.WriteByte('\\')
				b.WriteByte(e)
			}
			s.step()
		default:
			begin := s.i
			s.step()
			b.WriteString(s.text[begin:s.i])
		}
	}
	return "", false
}

// under returns the node that a key names, made where it is new. A key part
// that names an array of tables means its last element.
func under(n *keyNode, parts []string, at []position) *keyNode {
	for i, part := range parts {
		if n.tables && len(n.elems) > 0 {
			n = n.elems[len(n.elems)-1]
		}
		next := n.child(part)
		if next == nil {
			next = &keyNode{at: at[i]}
			if n.children == nil {
				n.children = make(map[string]*keyNode)
			}
			n.children[part] = next
		}
		n = next
	}
	return n
}

// header reads the rest of "[a.b]" or "[[a.b]]".
func (s *locator) header(root *keyNode, array bool) (*keyNode, bool) {
	parts, at, ok := s.key()
	if !ok || !s.take("]") || array && !s.take("]") {
		return nil, false
	}
	n := under(root, parts, at)
	if !array {
		n.at = at[len(at)-1]
		return n, true
	}
	elem := &keyNode{at: at[len(at)-1]}
	n.tables = true
	n.elems = append(n.elems, elem)
	return elem, true
}

func (s *locator) keyValue(table *keyNode) bool {
	parts, at, ok := s.key()
	if !ok || !s.take("=") {
		return false
	}
	return s.value(under(table, parts, at))
}

// value passes a value and records the keys in it under n.
func (s *locator) value(n *keyNode) bool {
	s.blank(false)
	switch {
	case s.take(`"""`):
		return s.through(`"""`, true)
	case s.take(`'''`):
		return s.through(`'''`, false)
	case s.peek() == '"' || s.peek() == '\'':
		_, ok := s.quoted(s.peek())
		return ok
	case s.take("["):
		for {
			s.blank(true)
			if s.take("]") {
				return true
			}
			elem := &keyNode{at: s.here()}
			n.elems = append(n.elems, elem)
			if !s.value(elem) {
				return false
			}
			s.blank(true)
			if !s.take(",") && s.peek() != ']' {
				return false
			}
		}
	case s.take("{"):
		for {
			s.blank(true)
			if s.take("}") {
				return true
			}
			if !s.keyValue(n) {
				return false
			}
			s.blank(true)
			if !s.take(",") && s.peek() != '}' {
				return false
			}
		}
	}
	begin := s.i
	for !s.eof() && strings.IndexByte(",]}#\r\n", s.peek()) < 0 {
		s.step()
	}
	return s.i > begin
}

// through passes the rest of a string of several lines. Up to two quotation
// marks may stand right before the three that end it.
func (s *locator) through(end string, escapes bool) bool {
	for !s.eof() {
		if escapes && s.peek() == '\\' {
			s.step()
			s.step()
			continue
		}
		if s.take(end) {
			for range 2 {
				if s.peek() == end[0] {
					s.step()
				}
			}
			return true
		}
		s.step()
	}
	return false
}
