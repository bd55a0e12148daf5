package proxy

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode/utf8"

	"github.com/mailproof/mailproof/harness/proto"
)

// Bounds of a mapping file, in octets.
const (
	maxMappingFile = 64 << 20
	maxMappingLine = 4 << 10
)

// A router finds the destination of an account.
type router struct {
	lowercase  bool
	separators []string
	table      map[string]*destination
	fallback   *destination // nil when only port 25 is served
}

// normalize spells an identifier as the mapping has it.
func (r *router) normalize(id string) string {
	if !r.lowercase {
		return id
	}
	if utf8.ValidString(id) {
		return strings.ToLower(id)
	}
	b := []byte(id) // a login name in an older character set: ASCII letters only
	for i, c := range b {
		if c >= 'A' && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// mailbox is a login name without a master user: what stands before the first
// separator of any kind.
func (r *router) mailbox(login string) string {
	end := len(login)
	for _, sep := range r.separators {
		if i := strings.Index(login, sep); i > 0 && i < end {
			end = i
		}
	}
	return login[:end]
}

// route is where the account lives that a login name is for.
func (r *router) route(login string) *destination {
	if d, ok := r.table[r.normalize(r.mailbox(login))]; ok {
		return d
	}
	return r.fallback
}

// routable says whether a login name may be looked up and announced at all.
func routable(login string) bool {
	for i := 0; i < len(login); i++ {
		if c := login[i]; c <= ' ' || c == 0x7f || c == '"' {
			return false
		}
	}
	return login != ""
}

// load fills the table from the mapping file and the inline mapping.
func (r *router) load(m Mapping, byName map[string]*destination) error {
	r.table = make(map[string]*destination)
	for id, name := range m.Inline {
		r.table[r.normalize(id)] = byName[name]
	}
	if m.File == "" {
		return nil
	}
	f, err := os.Open(m.File)
	if err != nil {
		return fmt.Errorf("mapping file: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxMappingFile+1))
	if err != nil {
		return fmt.Errorf("mapping file: %w", err)
	}
	if len(text) > maxMappingFile {
		return fmt.Errorf("mapping file %s: is larger than %d octets", m.File, maxMappingFile)
	}
	return r.parse(m.File, text, byName)
}

// parse reads lines of identifier and destination; "#" begins a comment line.
// It collects everything that is wrong.
func (r *router) parse(file string, text []byte, byName map[string]*destination) error {
	var errs []error
	seen := make(map[string]int)
	br := bufio.NewReader(bytes.NewReader(text))
	for n := 1; ; n++ {
		line, err := proto.ReadLine(br, maxMappingLine)
		if errors.Is(err, io.ErrUnexpectedEOF) { // the last line has no end
			line = string(text[bytes.LastIndexByte(text, '\n')+1:])
		} else if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			errs = append(errs, fmt.Errorf("%s:%d: %w", file, n, err))
			break
		}
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || strings.HasPrefix(words[0], "#"):
		case len(words) != 2:
			errs = append(errs, fmt.Errorf("%s:%d: a line must be an identifier and a destination; this one has %d words", file, n, len(words)))
		case byName[words[1]] == nil:
			errs = append(errs, fmt.Errorf("%s:%d: %q is not a destination; declared: %s", file, n, words[1], strings.Join(sortedKeys(byName), ", ")))
		default:
			id := r.normalize(words[0])
			if before, ok := seen[id]; ok && r.table[id] != byName[words[1]] {
				errs = append(errs, fmt.Errorf("%s:%d: %q is sent to %q here and to %q in line %d", file, n, words[0], words[1], r.table[id].Name, before))
				continue
			}
			seen[id] = n
			r.table[id] = byName[words[1]]
		}
		if err != nil {
			break
		}
	}
	return errors.Join(errs...)
}
