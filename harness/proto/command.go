package proto

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
)

// TokenKind is what a token of a command is.
type TokenKind uint8

// The kinds of tokens in IMAP and ManageSieve commands.
const (
	Atom TokenKind = iota
	Quoted
	Literal
	Open  // (
	Close // )
)

// A Token is one word of a command.
type Token struct {
	Kind TokenKind
	Text string
}

// IsString reports whether the token is a string of either form.
func (t Token) IsString() bool { return t.Kind == Quoted || t.Kind == Literal }

// A SyntaxError says why a command could not be read; the line has been
// consumed and the next command can be read.
type SyntaxError struct {
	Line string // what was read of it, cut; it may hold a secret: never log it
	Why  string
}

func (e *SyntaxError) Error() string { return "command syntax: " + e.Why }

// ErrTooLong says that a command went beyond its bound. The rest of it has
// not been read: the connection is of no further use.
var ErrTooLong = errors.New("command too long")

// CommandLimits bound what [ReadCommand] takes, in octets.
type CommandLimits struct {
	Line    int // one physical line
	Literal int // one literal
	Total   int // the whole command
}

// ReadCommand reads one command as IMAP (RFC 3501) and ManageSieve (RFC 5804)
// clients send them: atoms, quoted strings, parentheses and literals. Before a
// synchronising literal is read, proceed is called to send the continuation
// request; a nil proceed, or an error from it, refuses the literal.
//
// The first line is returned too, without its end, for servers that log or
// echo it.
func ReadCommand(br *bufio.Reader, lim CommandLimits, proceed func() error) (tokens []Token, line string, err error) {
	total := 0
	first := true
	for {
		raw, err := readLine(br, lim.Line)
		if err != nil {
			return nil, line, err
		}
		total += len(raw)
		if total > lim.Total {
			return nil, line, ErrTooLong
		}
		if first {
			line, first = raw, false
		}
		n, sync, isLiteral := trailingLiteral(raw)
		text := raw
		if isLiteral {
			text = raw[:strings.LastIndexByte(raw, '{')]
		}
		ts, err := tokenize(text)
		if err != nil {
			if isLiteral && !sync {
				// What follows is the literal, not a command: it cannot be skipped safely.
				return nil, line, ErrTooLong
			}
			return nil, line, &SyntaxError{Line: clipText(raw), Why: err.Error()}
		}
		tokens = append(tokens, ts...)
		if !isLiteral {
			return tokens, line, nil
		}
		if n > lim.Literal || total+n > lim.Total {
			return nil, line, ErrTooLong
		}
		if sync {
			if proceed == nil {
				return nil, line, &SyntaxError{Line: clipText(raw), Why: "a literal cannot stand here"}
			}
			if err := proceed(); err != nil {
				return nil, line, err
			}
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(br, body); err != nil {
			return nil, line, err
		}
		total += n
		tokens = append(tokens, Token{Literal, string(body)})
	}
}

// readLine reads one line without its end.
func readLine(br *bufio.Reader, limit int) (string, error) {
	var long []byte
	for {
		b, err := br.ReadSlice('\n')
		if err == nil && long == nil {
			if len(b) > limit {
				return "", ErrTooLong
			}
			return strings.TrimSuffix(string(b[:len(b)-1]), "\r"), nil
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			if errors.Is(err, io.EOF) && len(long)+len(b) > 0 {
				return "", io.ErrUnexpectedEOF
			}
			return "", err
		}
		long = append(long, b...)
		if len(long) > limit {
			return "", ErrTooLong
		}
		if err == nil {
			return strings.TrimSuffix(string(long[:len(long)-1]), "\r"), nil
		}
	}
}

// ReadLine reads one line of at most limit octets, without its end.
func ReadLine(br *bufio.Reader, limit int) (string, error) { return readLine(br, limit) }

func trailingLiteral(line string) (n int, sync, ok bool) {
	n, ok = literalAtEnd(line)
	return n, ok && !strings.HasSuffix(line, "+}"), ok
}

// tokenize splits a line without literals.
func tokenize(s string) ([]Token, error) {
	var ts []Token
	for i := 0; i < len(s); {
		switch c := s[i]; {
		case c == ' ':
			i++
		case c == '(':
			ts = append(ts, Token{Open, "("})
			i++
		case c == ')':
			ts = append(ts, Token{Close, ")"})
			i++
		case c == '"':
			var b strings.Builder
			i++
			for {
				if i >= len(s) {
					return nil, errors.New("a quoted string has no end")
				}
				if s[i] == '\\' && i+1 < len(s) {
					b.WriteByte(s[i+1])
					i += 2
					continue
				}
				if s[i] == '"' {
					i++
					break
				}
				b.WriteByte(s[i])
				i++
			}
			ts = append(ts, Token{Quoted, b.String()})
		case c < 0x20 || c == 0x7f:
			return nil, fmt.Errorf("a control character (0x%02x) outside a string", c)
		default:
			j := i
			for j < len(s) && s[j] != ' ' && s[j] != '(' && s[j] != ')' && s[j] != '"' && s[j] >= 0x20 && s[j] != 0x7f {
				j++
			}
			ts = append(ts, Token{Atom, s[i:j]})
			i = j
		}
	}
	return ts, nil
}

func clipText(s string) string {
	if len(s) > 120 {
		return s[:120] + "…"
	}
	return s
}

// Quote spells a string as IMAP and ManageSieve quote it. It must not hold CR,
// LF or NUL; those need a literal.
func Quote(s string) string {
	if !strings.ContainsAny(s, `"\`) {
		return `"` + s + `"`
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
