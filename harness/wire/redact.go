package wire

import (
	"encoding/base64"
	"net/url"
	"slices"
	"strings"
)

// A Redactor replaces secrets by their names. It knows a secret in plain
// text, in base64, inside a SASL response or any other base64 run, quoted as
// IMAP and ManageSieve quote, and as URLs encode.
//
// The zero value and nil redact nothing. A Redactor is not changed after
// [NewRedactor] and may be used by many goroutines.
type Redactor struct {
	secrets  []Secret
	forms    []string // every spelling that is found by plain search
	replacer *strings.Replacer
	plain    []string // the plain forms, longest first
	shortest int      // octets of the shortest of them
}

// A Secret is a value that must never be shown, and the name shown instead.
type Secret struct {
	Name  string // "alice": shown as <secret:alice>
	Value string
}

// minSecret is the shortest value that is redacted wherever it occurs:
// shorter ones would tear every other word apart.
const minSecret = 4

// NewRedactor returns a redactor for the secrets. Values shorter than four
// octets are ignored.
func NewRedactor(secrets ...Secret) *Redactor {
	r := &Redactor{}
	var pairs []string
	ordered := slices.Clone(secrets)
	slices.SortStableFunc(ordered, func(a, b Secret) int { return len(b.Value) - len(a.Value) })
	for _, s := range ordered {
		if len(s.Value) < minSecret {
			continue
		}
		r.secrets = append(r.secrets, s)
		r.plain = append(r.plain, s.Value)
		shown := "<secret:" + s.Name + ">"
		for _, form := range forms(s.Value) {
			pairs = append(pairs, form, shown)
			r.forms = append(r.forms, form)
		}
		r.shortest = len(s.Value) // they come longest first
	}
	if len(pairs) > 0 {
		r.replacer = strings.NewReplacer(pairs...)
	}
	return r
}

// forms lists the spellings of a value that are found by plain search.
func forms(v string) []string {
	quoted := strings.ReplaceAll(strings.ReplaceAll(v, `\`, `\\`), `"`, `\"`)
	fs := []string{v, quoted, url.QueryEscape(v), url.PathEscape(v), base64.StdEncoding.EncodeToString([]byte(v))}
	slices.Sort(fs)
	fs = slices.Compact(fs)
	slices.SortFunc(fs, func(a, b string) int { return len(b) - len(a) })
	return fs
}

// Redact returns s with every known secret replaced.
func (r *Redactor) Redact(s string) string {
	if r == nil || r.replacer == nil || s == "" {
		return s
	}
	// Few lines hold a secret, and a replacer costs more than looking for it.
	if slices.ContainsFunc(r.forms, func(form string) bool { return strings.Contains(s, form) }) {
		s = r.replacer.Replace(s)
	}
	return r.redactBase64(s)
}

// redactBase64 replaces each run of base64 that decodes to text with a secret in it.
func (r *Redactor) redactBase64(s string) string {
	shortest := base64.RawStdEncoding.EncodedLen(r.shortest)
	var b strings.Builder
	done := 0
	for i := 0; i < len(s); {
		if !isBase64(s[i]) {
			i++
			continue
		}
		j := i
		for j < len(s) && isBase64(s[j]) {
			j++
		}
		end := j
		for end < len(s) && s[end] == '=' && end-j < 2 {
			end++
		}
		if j-i >= shortest {
			if name := r.inBase64(s[i:j]); name != "" {
				b.WriteString(s[done:i])
				b.WriteString("<secret:" + name + ">")
				done = end
			}
		}
		i = end
		if i == j && j < len(s) {
			i++
		}
	}
	if done == 0 {
		return s
	}
	b.WriteString(s[done:])
	return b.String()
}

// inBase64 names the secret that a run of base64 carries, whatever stands
// before the run's true beginning.
func (r *Redactor) inBase64(run string) string {
	for shift := 0; shift < 4 && base64.RawStdEncoding.DecodedLen(len(run)-shift) >= r.shortest; shift++ {
		part := run[shift:]
		if len(part)%4 == 1 { // never a whole number of octets
			part = part[:len(part)-1]
		}
		dec, err := base64.RawStdEncoding.DecodeString(part)
		if err != nil {
			continue
		}
		text := string(dec)
		for i, v := range r.plain {
			if strings.Contains(text, v) {
				return r.secrets[i].Name
			}
		}
	}
	return ""
}

func isBase64(c byte) bool {
	return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '+' || c == '/'
}
