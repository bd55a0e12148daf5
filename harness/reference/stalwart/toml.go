package stalwart

import (
	"errors"
	"fmt"
	"strings"
)

// maxTOML bounds a configuration file, in octets.
const maxTOML = 1 << 20

// ParseTOML reads a configuration file into flat keys, as far as Stalwart's own
// reader goes: dotted keys, sections, strings, bare values and arrays, whose
// members get the keys KEY.0000, KEY.0001 and so on. A key that stands there
// twice is an error, as it is for the real one.
func ParseTOML(text string) (map[string]string, error) {
	if len(text) > maxTOML {
		return nil, fmt.Errorf("invalid configuration file: longer than %d octets", maxTOML)
	}
	p := &tomlReader{in: text, line: 1, keys: make(map[string]string)}
	if err := p.read(); err != nil {
		return nil, fmt.Errorf("invalid configuration file: line %d: %w", p.line, err)
	}
	return p.keys, nil
}

type tomlReader struct {
	in      string
	at      int
	line    int
	section string
	keys    map[string]string
}

func (p *tomlReader) read() error {
	for {
		p.blank(true)
		switch {
		case p.at >= len(p.in):
			return nil
		case p.in[p.at] == '[':
			end := strings.IndexAny(p.in[p.at:], "]\n")
			if end < 0 || p.in[p.at+end] != ']' {
				return errors.New("a section has no end")
			}
			p.section = strings.ReplaceAll(strings.TrimSpace(p.in[p.at+1:p.at+end]), `"`, "")
			if p.section == "" {
				return errors.New("a section has no name")
			}
			p.at += end + 1
		default:
			if err := p.pair(); err != nil {
				return err
			}
		}
	}
}

// blank skips blanks and comments, and line ends if lines may end here.
func (p *tomlReader) blank(lines bool) {
	for p.at < len(p.in) {
		switch c := p.in[p.at]; {
		case c == '\n' && lines:
			p.line++
		case c == '#':
			n := strings.IndexByte(p.in[p.at:], '\n')
			if n < 0 {
				n = len(p.in) - p.at
			}
			p.at += n
			continue
		case c != ' ' && c != '\t' && c != '\r':
			return
		}
		p.at++
	}
}

func (p *tomlReader) pair() error {
	eq := strings.IndexAny(p.in[p.at:], "=\n")
	if eq < 0 || p.in[p.at+eq] != '=' {
		return errors.New("a key has no value")
	}
	key := strings.ReplaceAll(strings.TrimSpace(p.in[p.at:p.at+eq]), `"`, "")
	if key == "" || strings.ContainsAny(key, " \t") {
		return fmt.Errorf("%q is no key", key)
	}
	if p.section != "" {
		key = p.section + "." + key
	}
	p.at += eq + 1
	p.blank(false)
	if p.at < len(p.in) && p.in[p.at] == '[' {
		p.at++
		for n := 0; ; n++ {
			p.blank(true)
			if p.at >= len(p.in) {
				return errors.New("an array has no end")
			}
			if p.in[p.at] == ']' {
				p.at++
				return nil
			}
			if err := p.store(fmt.Sprintf("%s.%04d", key, n)); err != nil {
				return err
			}
			p.blank(true)
			if p.at < len(p.in) && p.in[p.at] == ',' {
				p.at++
			}
		}
	}
	return p.store(key)
}

func (p *tomlReader) store(key string) error {
	v, err := p.value()
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	if _, ok := p.keys[key]; ok {
		return fmt.Errorf("duplicate key %q", key)
	}
	p.keys[key] = v
	return nil
}

func (p *tomlReader) value() (string, error) {
	if p.at >= len(p.in) {
		return "", errors.New("a value is missing")
	}
	quote := p.in[p.at]
	if quote != '"' && quote != '\'' {
		begin := p.at
		for p.at < len(p.in) && isBare(p.in[p.at]) {
			p.at++
		}
		if p.at == begin {
			return "", fmt.Errorf("%q begins no value", p.in[p.at])
		}
		return p.in[begin:p.at], nil
	}
	p.at++
	var b strings.Builder
	for p.at < len(p.in) {
		c := p.in[p.at]
		p.at++
		switch {
		case c == quote:
			return b.String(), nil
		case c == '\n':
			p.line++
			b.WriteByte(c)
		case c == '\\' && quote == '"' && p.at < len(p.in):
			e := p.in[p.at]
			p.at++
			switch e {
			case 'n':
				b.WriteByte('\n')
			case 't':
				b.WriteByte('\t')
			case 'r':
				b.WriteByte('\r')
			default:
				b.WriteByte(e)
			}
		default:
			b.WriteByte(c)
		}
	}
	return "", errors.New("a string has no end")
}

func isBare(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || strings.IndexByte(".+-_/:", c) >= 0
}
