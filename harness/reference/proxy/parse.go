package proxy

import (
	"cmp"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
)

// MaxConfig bounds a configuration file, in octets.
const MaxConfig = 1 << 20

// ParseConfig reads a configuration in the format of Stalwart's migration
// proxy. Other files that it names are not opened.
//
// An error is always [ConfigErrors], and holds everything that is wrong. When
// all of it is of the kind [NotImplemented], the Config is returned beside the
// error and is whole but for those keys: whoever reads an operator's
// configuration for its endpoints can go on, the proxy itself does not.
func ParseConfig(file string, text []byte) (*Config, error) {
	r := &reader{file: file}
	if len(text) > MaxConfig {
		r.errs = append(r.errs, &ConfigError{File: file, Kind: BadSyntax, Why: fmt.Sprintf("is larger than %d octets", MaxConfig)})
		return nil, r.errs
	}
	var doc map[string]any
	if _, err := toml.Decode(string(text), &doc); err != nil {
		e := &ConfigError{File: file, Kind: BadSyntax, Why: "not TOML: " + err.Error()}
		var pe toml.ParseError
		if errors.As(err, &pe) {
			at := placeOf(string(text), pe.Position.Start)
			e.Line, e.Column, e.Why = at.line, at.column, "not TOML: "+pe.Message
		}
		return nil, ConfigErrors{e}
	}
	r.root = locate(string(text))
	c := r.config(&table{r: r, node: r.root, m: doc})
	c.check(func(path []string, format string, args ...any) {
		r.wrong(r.root.find(path), path, BadValue, format, args...)
	})
	if len(r.errs) == 0 {
		return c, nil
	}
	slices.SortStableFunc(r.errs, func(a, b *ConfigError) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column), cmp.Compare(a.Key, b.Key))
	})
	if r.errs.Only(NotImplemented) {
		return c, r.errs
	}
	return nil, r.errs
}

// reader turns a decoded document into a Config and collects what is wrong.
type reader struct {
	file string
	root *keyNode
	errs ConfigErrors
}

func (r *reader) wrong(at position, path []string, kind ConfigErrorKind, format string, args ...any) {
	var words []string
	for _, p := range path {
		if p != "" {
			words = append(words, keyWord(p))
		}
	}
	key := strings.Join(words, ".")
	for _, e := range r.errs {
		if e.Key == key && e.Kind != NotImplemented && e.Line == at.line {
			return // the first word on a key is the one that helps
		}
	}
	r.errs = append(r.errs, &ConfigError{File: r.file, Line: at.line, Column: at.column, Key: key, Kind: kind, Why: fmt.Sprintf(format, args...)})
}

// keyWord spells a key as TOML does.
func keyWord(s string) string {
	for i := 0; i < len(s); i++ {
		if c := s[i]; !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return strconv.Quote(s)
		}
	}
	return s
}

// A table is one table of the document. Every key must be asked for or refused
// before done, which reports the rest as unknown.
type table struct {
	r     *reader
	node  *keyNode
	path  []string
	m     map[string]any
	asked []string // every key of the format, present or not
}

func (t *table) key(name string) []string { return append(slices.Clone(t.path), name) }

func (t *table) at(name string) position {
	if n := t.node.child(name); n != nil {
		return n.at
	}
	if t.node != nil {
		return t.node.at
	}
	return position{}
}

func (t *table) get(name string) (any, bool) {
	t.asked = append(t.asked, name)
	v, ok := t.m[name]
	return v, ok
}

func (t *table) bad(name, format string, args ...any) {
	t.r.wrong(t.at(name), t.key(name), BadValue, format, args...)
}

// refuse reports a key of the format that the reference proxy does not have.
func (t *table) refuse(name, why string) {
	if _, ok := t.get(name); ok {
		t.r.wrong(t.at(name), t.key(name), NotImplemented, "this key of the proxy's format is not implemented by the reference proxy: %s", why)
	}
}

// only accepts a key whose one value is what the reference proxy does anyway.
func (t *table) only(name string, neutral any, why string) {
	v, ok := t.get(name)
	if !ok || fmt.Sprint(v) == fmt.Sprint(neutral) {
		return
	}
	t.r.wrong(t.at(name), t.key(name), NotImplemented, "this key of the proxy's format is not implemented by the reference proxy: %s; only %v is accepted", why, neutral)
}

func (t *table) str(name string) string {
	v, ok := t.get(name)
	if !ok {
		return ""
	}
	s, ok := v.(string)
	if !ok {
		t.bad(name, "must be a string, not %s", kind(v))
	}
	return s
}

func (t *table) flag(name string, def bool) bool {
	v, ok := t.get(name)
	if !ok {
		return def
	}
	b, ok := v.(bool)
	if !ok {
		t.bad(name, "must be true or false, not %s", kind(v))
		return def
	}
	return b
}

// number reads a number of at least 1; an absent one is 0.
func (t *table) number(name string) int {
	v, ok := t.get(name)
	if !ok {
		return 0
	}
	n, ok := v.(int64)
	switch {
	case !ok:
		t.bad(name, "must be a number, not %s", kind(v))
	case n < 1 || n > math.MaxInt32:
		t.bad(name, "must be between 1 and %d", math.MaxInt32)
	default:
		return int(n)
	}
	return 0
}

// duration reads a number and a unit; an absent one is 0.
func (t *table) duration(name string) time.Duration {
	v, ok := t.get(name)
	if !ok {
		return 0
	}
	const want = `must be a whole number and a unit, such as "500ms", "30s", "5m", "1h" or "2d"`
	s, ok := v.(string)
	if !ok {
		t.bad(name, "%s, not %s", want, kind(v))
		return 0
	}
	d, ok := parseDuration(s)
	if !ok {
		t.bad(name, "%q is not allowed: it %s", s, want)
		return 0
	}
	return d
}

func parseDuration(s string) (time.Duration, bool) {
	digits := strings.TrimRight(s, "abcdefghijklmnopqrstuvwxyz")
	units := map[string]time.Duration{"ms": time.Millisecond, "s": time.Second, "m": time.Minute, "h": time.Hour, "d": 24 * time.Hour}
	unit, ok := units[s[len(digits):]]
	n, err := strconv.ParseUint(digits, 10, 32)
	if !ok || err != nil || n == 0 || n > uint64(365*24*time.Hour/unit) {
		return 0, false
	}
	return time.Duration(n) * unit, true
}

// strings reads a list of strings; each is handed to with its position.
func (t *table) strings(name string, with func(s string, at position)) bool {
	v, ok := t.get(name)
	if !ok {
		return false
	}
	list, ok := v.([]any)
	if !ok {
		t.bad(name, "must be a list of strings, not %s", kind(v))
		return false
	}
	node := t.node.child(name)
	for i, v := range list {
		at := t.at(name)
		if node != nil && i < len(node.elems) {
			at = node.elems[i].at
		}
		s, ok := v.(string)
		if !ok {
			t.r.wrong(at, t.key(name), BadValue, "must be a list of strings, not of %s", kind(v))
			continue
		}
		with(s, at)
	}
	return true
}

// words reads a list of strings; an absent list is nil, an empty one is not.
func (t *table) words(name string) []string {
	list := []string{}
	if !t.strings(name, func(s string, _ position) { list = append(list, s) }) {
		return nil
	}
	return list
}

// sub returns a table under this one; nil when there is none.
func (t *table) sub(name string) *table {
	v, ok := t.get(name)
	if !ok {
		return nil
	}
	m, ok := v.(map[string]any)
	if !ok {
		t.bad(name, "must be a table, [%s], not %s", strings.Join(t.key(name), "."), kind(v))
		return nil
	}
	return &table{r: t.r, node: t.node.child(name), path: t.key(name), m: m}
}

// each calls f for every table under the one called name, as they are ordered
// in the file.
func (t *table) each(name string, f func(name string, t *table)) {
	outer := t.sub(name)
	if outer == nil {
		return
	}
	names := sortedKeys(outer.m)
	slices.SortStableFunc(names, func(a, b string) int {
		pa, pb := outer.at(a), outer.at(b)
		return cmp.Or(cmp.Compare(pa.line, pb.line), cmp.Compare(pa.column, pb.column))
	})
	for _, n := range names {
		if inner := outer.sub(n); inner != nil {
			f(n, inner)
		}
	}
}

// done reports the keys that the format does not have.
func (t *table) done() {
	if t == nil {
		return
	}
	for _, name := range sortedKeys(t.m) {
		if slices.Contains(t.asked, name) {
			continue
		}
		known := slices.Clone(t.asked)
		slices.Sort(known)
		at := t.at(name)
		if n := t.node.child(name); n != nil && n.tables && len(n.elems) > 0 {
			at = n.elems[0].at
		}
		t.r.wrong(at, t.key(name), UnknownKey, "the format has no such key here; it has: %s", strings.Join(slices.Compact(known), ", "))
	}
}

func kind(v any) string {
	switch v.(type) {
	case string:
		return "a string"
	case bool:
		return "true or false"
	case int64, float64:
		return "a number"
	case []any, []map[string]any:
		return "a list"
	case map[string]any:
		return "a table"
	}
	return "a date"
}

func (r *reader) config(t *table) *Config {
	c := &Config{File: r.file, Capabilities: make(map[Protocol]Capabilities)}
	r.server(c, t.sub("server"))
	r.tls(c, t.sub("tls"))
	t.each("listener", func(name string, t *table) { r.listener(c, name, t) })
	t.each("destination", func(name string, t *table) { r.destination(c, name, t) })
	if t := t.sub("routing"); t != nil {
		c.Routing.Default = t.str("default_destination")
		c.Routing.PassThrough = t.str("smtp_passthrough_destination")
		c.Routing.Separators = t.words("master_user_separators")
		t.done()
	}
	r.mapping(c, t.sub("mapping"))
	if t := t.sub("capabilities"); t != nil {
		for _, p := range []Protocol{IMAP, POP3, Submission, ManageSieve} {
			r.capabilities(c, p, t.sub(string(p)))
		}
		t.done()
	}
	if t := t.sub("oauth"); t != nil {
		c.JWTClaim = t.str("jwt_username_claim")
		t.done()
	}
	t.refuse("http", "it has no HTTP listener")
	t.refuse("admin", "it has no management API; restart it to change a mapping")
	t.done()
	return c
}

func (r *reader) server(c *Config, t *table) {
	if t == nil {
		return
	}
	s := &c.Server
	s.Hostname = t.str("hostname")
	s.ShutdownGrace = t.duration("shutdown_grace")
	s.BridgeIdle = t.duration("bridge_idle")
	s.BackendTimeout = t.duration("backend_timeout")
	s.ProxyTTL = t.number("proxy_ttl")
	s.LogLevel = t.str("log_level")
	t.only("threads", 0, "it uses every processor")
	t.only("backend_connect_retries", 0, "a failure is told to the client at once")
	t.only("host_down_threshold", 0, "it has no circuit breaker")
	t.refuse("host_down_min_clients", "it has no circuit breaker")
	t.refuse("host_down_cooldown", "it has no circuit breaker")
	t.done()
}

func (r *reader) tls(c *Config, t *table) {
	if t == nil {
		return
	}
	t.each("certificate", func(name string, t *table) {
		c.Certificates = append(c.Certificates, Certificate{
			Name:     name,
			Cert:     r.path(t.str("cert")),
			Key:      r.path(t.str("key")),
			Subjects: t.words("subjects"),
			Default:  t.flag("default", false),
		})
		t.done()
	})
	if p := t.sub("protocols"); p != nil {
		switch v := p.str("min_version"); v {
		case "":
		case "1.2":
			c.MinTLS = tls.VersionTLS12
		case "1.3":
			c.MinTLS = tls.VersionTLS13
		default:
			p.bad("min_version", `%q is not allowed: "1.2" or "1.3"`, v)
		}
		p.only("ignore_client_order", false, "the order of cipher suites is Go's")
		p.only("disable_cipher_suites", []any{}, "the cipher suites are Go's")
		p.done()
	}
	t.done()
}

// path makes a relative path start at the configuration's folder.
func (r *reader) path(p string) string {
	if p == "" || filepath.IsAbs(p) {
		return p
	}
	return filepath.Join(filepath.Dir(r.file), p)
}

func (r *reader) listener(c *Config, name string, t *table) {
	l := Listener{
		Name:            name,
		Protocol:        Protocol(t.str("protocol")),
		TLS:             TLSMode(t.str("tls")),
		Inbound:         Inbound(t.str("proxy_protocol")),
		MaxConnections:  t.number("max_connections"),
		PreauthTimeout:  t.duration("preauth_timeout"),
		MaxAuthAttempts: t.number("max_auth_attempts"),
	}
	t.strings("bind", func(s string, at position) {
		b, err := netip.ParseAddrPort(s)
		if err != nil {
			r.wrong(at, t.key("bind"), BadValue, `%q is not an address and port, such as "0.0.0.0:993" or "[::]:993"`, s)
			return
		}
		l.Binds = append(l.Binds, b)
	})
	t.strings("proxy_trusted", func(s string, at position) {
		n, err := netip.ParsePrefix(s)
		if err != nil {
			a, err := netip.ParseAddr(s)
			if err != nil {
				r.wrong(at, t.key("proxy_trusted"), BadValue, `%q is not a network, such as "10.0.0.0/8" or "2001:db8::/32"`, s)
				return
			}
			n = netip.PrefixFrom(a, a.BitLen())
		}
		l.Trusted = append(l.Trusted, n.Masked())
	})
	t.refuse("forwarded", "it has no HTTP listener")
	if l.Protocol == "http" || l.Protocol == "lmtp" {
		r.wrong(t.at("protocol"), t.key("protocol"), NotImplemented, "%q is not implemented by the reference proxy: remove this listener; imap, pop3, managesieve, submission and smtp are", l.Protocol)
		t.done()
		return
	}
	c.Listeners = append(c.Listeners, l)
	t.done()
}

func (r *reader) destination(c *Config, name string, t *table) {
	d := Destination{
		Name:           name,
		Host:           t.str("host"),
		ServerName:     t.str("tls_server_name"),
		AllowInvalid:   t.flag("tls_allow_invalid_certs", false),
		ClientCert:     r.path(t.str("tls_client_cert")),
		ClientKey:      r.path(t.str("tls_client_key")),
		Forwarding:     Forwarding(t.str("forwarding")),
		AllowPlaintext: t.flag("allow_plaintext_auth", false),
		HideAuthErrors: t.flag("hide_auth_errors", false),
		Endpoints:      make(map[Protocol]Endpoint),
	}
	if header := t.flag("proxy_protocol", true); d.Forwarding == "" && !header {
		d.Forwarding = ForwardNone
	}
	if pin := t.str("tls_pinned_cert_sha256"); pin != "" {
		var err error
		if d.PinSHA256, err = hex.DecodeString(strings.ReplaceAll(pin, ":", "")); err != nil {
			d.PinSHA256 = []byte{0} // no hash: reported by check
		}
	}
	t.strings("source_ips", func(s string, at position) {
		a, err := netip.ParseAddr(s)
		if err != nil {
			r.wrong(at, t.key("source_ips"), BadValue, "%q is not an address", s)
			return
		}
		d.SourceIPs = append(d.SourceIPs, a)
	})
	t.refuse("forwarded", "it has no HTTP listener")
	t.each("protocol", func(name string, t *table) {
		if name == "http" || name == "lmtp" {
			r.wrong(t.node.at, t.path, NotImplemented, "this key of the proxy's format is not implemented by the reference proxy: it has no %s listener", strings.ToUpper(name))
			return
		}
		port := t.number("port")
		if port > math.MaxUint16 {
			t.bad("port", "must be between 1 and 65535")
			port = 0
		}
		if _, ok := t.m["port"]; !ok {
			t.bad("port", "is missing: between 1 and 65535")
		}
		d.Endpoints[Protocol(name)] = Endpoint{Port: uint16(port), TLS: TLSMode(t.str("tls")), Forwarding: Forwarding(t.str("forwarding"))}
		t.done()
	})
	c.Destinations = append(c.Destinations, d)
	t.done()
}

func (r *reader) mapping(c *Config, t *table) {
	if t == nil {
		return
	}
	source := t.str("source")
	switch n := t.str("normalize"); n {
	case "", "none":
	case "lowercase":
		c.Mapping.Lowercase = true
	default:
		t.bad("normalize", "%q is not allowed: none or lowercase", n)
	}
	const cached = "the mapping is read once and kept"
	for _, key := range []string{"positive_ttl", "negative_ttl", "cache_max_entries", "lookup_timeout"} {
		t.refuse(key, cached)
	}
	t.refuse("redis", "its mapping is a file or inline")
	t.refuse("sql", "its mapping is a file or inline")
	file, inline := t.sub("file"), t.sub("inline")
	switch source {
	case "file":
		if file == nil {
			t.bad("source", `is "file", so [mapping.file] with path is needed`)
		}
	case "inline":
		if inline == nil {
			t.bad("source", `is "inline", so [mapping.inline] with lines of identifier = "destination" is needed`)
		}
	case "redis", "sql":
		r.wrong(t.at("source"), t.key("source"), NotImplemented, "%q is not implemented by the reference proxy: file and inline are", source)
	case "":
		t.bad("source", "is missing: file or inline")
	default:
		t.bad("source", "%q is not allowed: file or inline", source)
	}
	if file != nil {
		path := file.str("path")
		if path == "" {
			file.bad("path", "must name the mapping file")
		}
		if source == "file" {
			c.Mapping.File = r.path(path)
		}
		file.done()
	}
	if inline != nil && source == "inline" {
		c.Mapping.Inline = make(map[string]string)
		for _, id := range sortedKeys(inline.m) {
			c.Mapping.Inline[id] = inline.str(id)
		}
	}
	t.done()
}

func (r *reader) capabilities(c *Config, p Protocol, t *table) {
	if t == nil {
		return
	}
	caps := Capabilities{
		SASL:           t.words("sasl"),
		AllowCleartext: t.flag("allow_plain_auth_without_tls", false),
		Banner:         t.str("banner"),
	}
	if p != POP3 {
		caps.Advertise = t.words(advertiseKey(p))
	}
	if p == ManageSieve {
		caps.Implementation = t.str("implementation")
	}
	c.Capabilities[p] = caps
	t.done()
}
