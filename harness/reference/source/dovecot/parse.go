package dovecot

import (
	_ "embed"
	"fmt"
	"slices"
	"strings"
)

// A ConfigError says what Dovecot would say of a configuration, and where.
type ConfigError struct {
	File string
	Line int
	Why  string
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("doveconf: Fatal: Error in configuration file %s line %d: %s", e.File, e.Line, e.Why)
}

// place is where something stands.
type place struct {
	file string
	line int
}

func (p place) errorf(format string, args ...any) *ConfigError {
	return &ConfigError{File: p.file, Line: p.line, Why: fmt.Sprintf(format, args...)}
}

// A block is a section of the configuration, or all of it.
type block struct {
	place
	name, arg string // "inet_listener", "imap"
	settings  []setting
	blocks    []*block
}

type setting struct {
	place
	key, value string
}

// get returns the last value of a setting in this block.
func (b *block) get(key string) (setting, bool) {
	for i := len(b.settings) - 1; i >= 0; i-- {
		if b.settings[i].key == key {
			return b.settings[i], true
		}
	}
	return setting{}, false
}

// child returns the block of that name and argument, made if it is not there:
// blocks of one name add to each other.
func (b *block) child(p place, name, arg string) *block {
	for _, c := range b.blocks {
		if c.name == name && c.arg == arg && !listed(name) {
			return c
		}
	}
	c := &block{place: p, name: name, arg: arg}
	b.blocks = append(b.blocks, c)
	return c
}

// listed says whether every block of the name is one more entry of a list.
func listed(name string) bool { return name == "passdb" || name == "userdb" }

//go:embed names-2.3.txt
var names23 string

//go:embed names-2.4.txt
var names24 string

// sectionNames are names that open a block and set nothing by themselves.
const sectionNames = "protocol remote local local_name sieve_script mail_attribute language imap_capability imap_id_send sieve_extprograms mail_plugins login_trusted_networks haproxy_trusted_networks"

// known returns the names that a series of Dovecot knows at the top level.
func known(series string) map[string]bool {
	m := make(map[string]bool, 1024)
	text := names23
	if series == "2.4" {
		text = names24
		m["dovecot_config_version"] = true
	}
	for _, n := range strings.Fields(text + " " + sectionNames) {
		m[n] = true
	}
	return m
}

// maxDepth bounds how deep blocks may stand in each other.
const maxDepth = 16

// parse reads one file into root, after what stands there already.
func parse(root *block, series string, names map[string]bool, file, text string) error {
	stack := []*block{root}
	lines := strings.Split(text, "\n")
	for i := 0; i < len(lines); i++ {
		p := place{file, i + 1}
		line := lines[i]
		for strings.HasSuffix(line, "\\") && i+1 < len(lines) {
			i++
			line = strings.TrimSuffix(line, "\\") + " " + strings.TrimSpace(lines[i])
		}
		line = strings.TrimSpace(cutComment(line))
		top := stack[len(stack)-1]
		checked := len(stack) == 1 || len(stack) == 2 && (top.name == "protocol" || top.name == "remote" || top.name == "local")
		switch {
		case line == "":
		case line == "}":
			if len(stack) == 1 {
				return p.errorf("Unexpected '}'")
			}
			stack = stack[:len(stack)-1]
		case strings.HasPrefix(line, "!include"):
			// What a layer includes is on a disk that is not here.
		case strings.HasSuffix(line, "{"):
			name, arg, _ := strings.Cut(strings.TrimSpace(strings.TrimSuffix(line, "{")), " ")
			arg = strings.Trim(strings.TrimSpace(arg), `"`)
			if name == "" || strings.ContainsAny(name, "={}") {
				return p.errorf("Expecting a section name before '{'")
			}
			if checked && !names[name] && !sectionLike(series, name, names) {
				return p.errorf("Unknown section name: %s", name)
			}
			if len(stack) >= maxDepth {
				return p.errorf("Sections are nested too deep")
			}
			stack = append(stack, top.child(p, name, arg))
		default:
			key, value, ok := strings.Cut(line, "=")
			key, value = strings.TrimSpace(key), strings.TrimSpace(value)
			if !ok || key == "" || strings.ContainsAny(key, " {}\"") {
				return p.errorf("Expecting '='")
			}
			if checked && !names[key] && !familyKnown(series, key) {
				return p.errorf("Unknown setting: %s", key)
			}
			v, err := unquote(value)
			if err != "" {
				return p.errorf("%s: %s", key, err)
			}
			top.settings = append(top.settings, setting{p, key, expandOld(top, root, key, v)})
		}
	}
	if len(stack) > 1 {
		open := stack[len(stack)-1]
		return place{file, len(lines)}.errorf("Missing '}' (section started at %s:%d)", open.file, open.line)
	}
	return nil
}

// sectionLike says whether a series knows a block of that name: 2.4 makes one
// of every group of settings that begin with it.
func sectionLike(series, name string, names map[string]bool) bool {
	if series != "2.4" {
		return false
	}
	for n := range names {
		if strings.HasPrefix(n, name+"_") {
			return true
		}
	}
	return false
}

// familyKnown says whether a name belongs to a group of settings of 2.4 that
// is known as a whole: none of them is interpreted.
func familyKnown(series, key string) bool {
	if series != "2.4" {
		return false
	}
	for _, family := range []string{"http_client_", "http_server_", "ldap_", "sql_", "pgsql_", "mysql_", "sqlite_", "cassandra_", "fs_", "dict_", "fts_", "sieve_", "quota_"} {
		if strings.HasPrefix(key, family) {
			return true
		}
	}
	return false
}

// cutComment removes a comment: "#" at the beginning of a line or after a
// space, outside quotes.
func cutComment(line string) string {
	quote := byte(0)
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case quote != 0:
			if c == '\\' {
				i++
			} else if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			if strings.ContainsRune(line[:i], '=') {
				quote = c
			}
		case c == '#' && (i == 0 || line[i-1] == ' ' || line[i-1] == '\t'):
			return line[:i]
		}
	}
	return line
}

func unquote(v string) (value, why string) {
	if len(v) == 0 || v[0] != '"' && v[0] != '\'' {
		return v, ""
	}
	q := v[0]
	var b strings.Builder
	for i := 1; i < len(v); i++ {
		switch {
		case v[i] == '\\' && i+1 < len(v):
			i++
			b.WriteByte(v[i])
		case v[i] == q:
			if i != len(v)-1 {
				return "", "Garbage after the quoted value"
			}
			return b.String(), ""
		default:
			b.WriteByte(v[i])
		}
	}
	return "", "The quoted value has no end"
}

// expandOld replaces $name by what the setting had before, as in
// "mail_plugins = $mail_plugins sieve".
func expandOld(in, root *block, key, value string) string {
	for _, ref := range []string{"$" + key, "$SET:" + key} {
		if !strings.Contains(value, ref) {
			continue
		}
		old, ok := in.get(key)
		if !ok {
			old, _ = root.get(key)
		}
		value = strings.TrimSpace(strings.ReplaceAll(value, ref, old.value))
	}
	return value
}

// list reads a list setting: words, and in 2.4 a block of "name = yes".
func (b *block) list(key string, def []string) []string {
	out := def
	if s, ok := b.get(key); ok {
		out = strings.FieldsFunc(s.value, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' })
	}
	for _, c := range b.blocks {
		if c.name != key {
			continue
		}
		for _, s := range c.settings {
			out = slices.DeleteFunc(slices.Clone(out), func(o string) bool { return strings.EqualFold(o, s.key) })
			if yes(s.value) {
				out = append(out, s.key)
			}
		}
	}
	return out
}

func yes(v string) bool { return strings.EqualFold(v, "yes") || strings.EqualFold(v, "y") || v == "1" }
func no(v string) bool  { return strings.EqualFold(v, "no") || strings.EqualFold(v, "n") || v == "0" }
