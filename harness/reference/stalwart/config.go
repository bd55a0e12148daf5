package stalwart

import (
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A problem is what the server says of one setting: its type is "parse",
// "build" or "macro".
type problem struct {
	Type  string `json:"type"`
	Error string `json:"error"`
}

// A core is what the settings say, in force from a boot or a reload on.
type core struct {
	keys     map[string]string // as they were read, macros resolved
	hostname string
	report   string // the report domain
	choices  map[string]*choice

	imapPlain       bool
	imapMaxFailures int
	imapAnonymous   time.Duration
	imapSignedIn    time.Duration

	authRate, abuseRate, loiterRate, scanRate rate
	bannedPaths                               []string
	allowed                                   []netip.Prefix

	forwarded     bool
	anonymousRate rate
	accountRate   rate
	headers       []pair
	cors, hsts    bool

	adminUser, adminSecret   string
	masterUser, masterSecret string
	hasStore                 bool

	limiters []*limiter
	spam     bool
	lists    []*blockList
	greylist time.Duration
	deliver  bool // the header Delivered-To
	// subAddresses says whether what follows + in an address is passed over.
	subAddresses bool

	tracing tracing
}

// A blockList is one of spam-filter.dnsbl.server: which name is asked for an
// address, and what a message is marked with where it has an address.
type blockList struct{ zone, tag *choice }

// A limiter is one of queue.limiter.inbound.
type limiter struct {
	id    string
	keys  []string
	rate  rate
	match expr
	stage int // 0 the connection, 1 the sender, 2 the recipient
}

// configReader reads a core from settings.
type configReader struct {
	keys   map[string]string
	errors map[string]problem
	// resolve looks up a host name, for settings that hold one.
	resolve func(host string) bool
}

func (r *configReader) fail(key, kind, text string) {
	if _, ok := r.errors[key]; !ok {
		r.errors[key] = problem{kind, text}
	}
}

func (r *configReader) text(key, or string) string {
	if v, ok := r.keys[key]; ok {
		return v
	}
	return or
}

func (r *configReader) boolean(key string, or bool) bool {
	v, ok := r.keys[key]
	if !ok {
		return or
	}
	switch strings.ToLower(v) {
	case "true", "1":
		return true
	case "false", "0":
		return false
	}
	r.fail(key, "parse", fmt.Sprintf("Invalid boolean value %q.", v))
	return or
}

func (r *configReader) integer(key string, or int) int {
	v, ok := r.keys[key]
	if !ok {
		return or
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 0 {
		r.fail(key, "parse", fmt.Sprintf("Invalid integer value %q.", v))
		return or
	}
	return n
}

func (r *configReader) duration(key string, or time.Duration) time.Duration {
	v, ok := r.keys[key]
	if !ok || v == "false" {
		return or
	}
	d, err := parseDuration(v)
	if err != nil {
		r.fail(key, "parse", err.Error())
		return or
	}
	return d
}

func (r *configReader) rate(key, or string) rate {
	fallback, _ := parseRate(or)
	v, ok := r.keys[key]
	if !ok {
		return fallback
	}
	parsed, err := parseRate(v)
	if err != nil {
		r.fail(key, "parse", err.Error())
		return fallback
	}
	return parsed
}

// values are a setting that may be a list: KEY, or KEY.0, KEY.1, ….
func (r *configReader) values(key string) []pair {
	if v, ok := r.keys[key]; ok {
		return []pair{{key, v}}
	}
	var out []pair
	for _, k := range slices.Sorted(maps.Keys(r.keys)) {
		if strings.HasPrefix(k, key+".") {
			out = append(out, pair{k, r.keys[k]})
		}
	}
	return out
}

// members are a setting whose members are the ends of keys: KEY.MEMBER.
func (r *configReader) members(key string) []string {
	var out []string
	for k := range r.keys {
		if m, ok := strings.CutPrefix(k, key+"."); ok {
			out = append(out, m)
		}
	}
	slices.Sort(out)
	return out
}

// ids are the names that stand between a prefix and a suffix.
func (r *configReader) ids(prefix string) []string {
	var out []string
	for k := range r.keys {
		if rest, ok := strings.CutPrefix(k, prefix+"."); ok {
			id, _, _ := strings.Cut(rest, ".")
			if !slices.Contains(out, id) {
				out = append(out, id)
			}
		}
	}
	slices.Sort(out)
	return out
}

// addresses reads a set of addresses and networks, KEY.MEMBER.
func (r *configReader) addresses(key string) []netip.Prefix {
	var out []netip.Prefix
	for _, m := range r.members(key) {
		p, err := parseNetwork(m)
		if err != nil {
			r.fail(key, "parse", err.Error())
			continue
		}
		out = append(out, p)
	}
	return out
}

// choice reads a setting with branches. Nil says that it is not set, or wrong.
func (r *configReader) choice(key string) *choice {
	parse := func(k string) (expr, bool) {
		e, err := parseExpr(key, r.keys[k])
		if err != nil {
			r.fail(k, "parse", err.Error())
			return nil, false
		}
		return e, true
	}
	if _, ok := r.keys[key]; ok {
		e, ok := parse(key)
		if !ok {
			return nil
		}
		return &choice{other: e}
	}
	c := &choice{}
	found, then := "", true
	for _, p := range r.values(key) {
		at, what, ok := strings.Cut(strings.TrimPrefix(p.key, key+"."), ".")
		if !ok {
			r.fail(key, "parse", fmt.Sprintf("Invalid property %q found in 'if' block.", p.key))
			return nil
		}
		var e expr
		switch what {
		case "if", "then", "else":
			if e, ok = parse(p.key); !ok {
				return nil
			}
		}
		switch what {
		case "if":
			if !then {
				r.fail(key, "parse", fmt.Sprintf("Missing 'then' in 'if' condition %s.", found))
				return nil
			}
			c.cases = append(c.cases, branch{when: e})
			found, then = at, false
		case "then":
			if at != found {
				r.fail(key, "parse", "Found 'then' without 'if'")
				return nil
			}
			c.cases[len(c.cases)-1].then, then = e, true
		case "else":
			if found == "" {
				r.fail(key, "parse", "Found 'else' before 'if'")
				return nil
			}
			c.other = e
		}
	}
	switch {
	case found == "":
		return nil
	case !then:
		r.fail(key, "parse", "Missing 'then' in 'if' condition "+found)
		return nil
	case c.other == nil:
		r.fail(key, "parse", "Missing 'else'")
		return nil
	}
	return c
}

// defaultChoices are the settings with branches that count, and what each is
// when it is not set: "CONDITION ? VALUE" for a branch, the last is the rest.
var defaultChoices = map[string][]string{
	"http.url":                              {"protocol + '://' + config_get('server.hostname') + ':' + local_port"},
	"http.allowed-endpoint":                 {"200"},
	"session.timeout":                       {"5m"},
	"session.duration":                      {"10m"},
	"session.transfer-limit":                {"262144000"},
	"session.connect.hostname":              {"config_get('server.hostname')"},
	"session.connect.greeting":              {"config_get('server.hostname') + ' Stalwart ESMTP at your service'"},
	"session.ehlo.require":                  {"true"},
	"session.ehlo.reject-non-fqdn":          {"local_port == 25 ? true", "false"},
	"session.auth.directory":                {"local_port != 25 ? '*'", "false"},
	"session.auth.mechanisms":               {"local_port != 25 && is_tls ? [plain, login, oauthbearer, xoauth2]", "local_port != 25 ? [oauthbearer, xoauth2]", "false"},
	"session.auth.require":                  {"local_port != 25 ? true", "false"},
	"session.auth.must-match-sender":        {"true"},
	"session.auth.errors.total":             {"3"},
	"session.auth.errors.wait":              {"5s"},
	"session.mail.is-allowed":               {"true"},
	"session.rcpt.relay":                    {"!is_empty(authenticated_as) ? true", "false"},
	"session.rcpt.directory":                {"'*'"},
	"session.rcpt.errors.total":             {"5"},
	"session.rcpt.errors.wait":              {"5s"},
	"session.rcpt.max-recipients":           {"100"},
	"session.data.spam-filter":              {"true"},
	"session.data.limits.messages":          {"10"},
	"session.data.limits.size":              {"104857600"},
	"session.data.limits.received-headers":  {"50"},
	"session.data.add-headers.received":     {"local_port == 25 ? true", "false"},
	"session.data.add-headers.received-spf": {"local_port == 25 ? true", "false"},
	"session.data.add-headers.return-path":  {"local_port == 25 ? true", "false"},
	"session.data.add-headers.auth-results": {"local_port == 25 ? true", "false"},
	"session.data.add-headers.message-id":   {"local_port == 25 ? true", "false"},
	"session.data.add-headers.date":         {"local_port == 25 ? true", "false"},
	"session.extensions.pipelining":         {"true"},
	"session.extensions.chunking":           {"true"},
	"session.extensions.requiretls":         {"true"},
	"session.extensions.no-soliciting":      {"''"},
	"session.extensions.dsn":                {"!is_empty(authenticated_as) ? true", "false"},
	"session.extensions.vrfy":               {"!is_empty(authenticated_as) ? true", "false"},
	"session.extensions.expn":               {"!is_empty(authenticated_as) ? true", "false"},
	"session.extensions.future-release":     {"!is_empty(authenticated_as) ? 7d", "false"},
	"session.extensions.deliver-by":         {"!is_empty(authenticated_as) ? 15d", "false"},
	"session.extensions.mt-priority":        {"!is_empty(authenticated_as) ? mixer", "false"},
	"auth.dkim.verify":                      {"relaxed"},
	"auth.arc.verify":                       {"relaxed"},
	"auth.spf.verify.ehlo":                  {"local_port == 25 ? relaxed", "disable"},
	"auth.spf.verify.mail-from":             {"local_port == 25 ? relaxed", "disable"},
	"auth.dmarc.verify":                     {"local_port == 25 ? relaxed", "disable"},
	"auth.iprev.verify":                     {"local_port == 25 ? relaxed", "disable"},
}

func defaultChoice(key string) *choice {
	c := &choice{}
	for _, s := range defaultChoices[key] {
		when, then, ok := strings.Cut(s, " ? ")
		if !ok {
			c.other, _ = parseExpr(key, s)
			continue
		}
		w, _ := parseExpr(key, when)
		t, _ := parseExpr(key, then)
		c.cases = append(c.cases, branch{w, t})
	}
	return c
}

// builtinPaths are the paths over HTTP that are a scan.
var builtinPaths = []string{"*.php*", "*.cgi*", "*.asp*", "*/wp-*", "*/php*", "*/cgi-bin*", "*xmlrpc*", "*../*", "*/..*", "*joomla*", "*wordpress*", "*drupal*"}

// read reads everything; what is wrong stands in r.errors, and the default
// counts in its place.
func (r *configReader) read(osName string) *core {
	c := &core{keys: r.keys, choices: make(map[string]*choice)}
	c.hostname = r.text("server.hostname", strings.ToLower(r.text("lookup.default.hostname", osName)))
	c.report = strings.ToLower(r.text("report.domain", organisation(c.hostname)))
	for key := range defaultChoices {
		if c.choices[key] = r.choice(key); c.choices[key] == nil {
			c.choices[key] = defaultChoice(key)
		}
	}
	c.imapPlain = r.boolean("imap.auth.allow-plain-text", false)
	c.imapMaxFailures = r.integer("imap.auth.max-failures", 3)
	c.imapAnonymous = r.duration("imap.timeout.anonymous", time.Minute)
	c.imapSignedIn = r.duration("imap.timeout.authenticated", 30*time.Minute)

	c.authRate = r.rate("server.auto-ban.auth.rate", "100/1d")
	c.abuseRate = r.rate("server.auto-ban.abuse.rate", "35/1d")
	c.loiterRate = r.rate("server.auto-ban.loiter.rate", "150/1d")
	c.scanRate = r.rate("server.auto-ban.scan.rate", "30/1d")
	c.bannedPaths = builtinPaths
	if own := r.values("server.auto-ban.scan.paths"); len(own) > 0 {
		c.bannedPaths = nil
		for _, p := range own {
			c.bannedPaths = append(c.bannedPaths, p.value)
		}
	}
	c.allowed = append(r.addresses("server.allowed-ip"), netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("::1/128"))

	c.forwarded = r.boolean("http.use-x-forwarded", false)
	c.anonymousRate = r.rate("http.rate-limit.anonymous", "100/1m")
	c.accountRate = r.rate("http.rate-limit.account", "1000/1m")
	c.cors = r.boolean("http.permissive-cors", false)
	c.hsts = r.boolean("http.hsts", false)
	for _, h := range r.values("http.headers") {
		name, value, ok := strings.Cut(h.value, ":")
		if !ok || strings.ContainsAny(h.value, "\r\n") {
			r.fail("http.headers", "parse", fmt.Sprintf("Invalid header found in property %q: %s", "http.headers", h.value))
			continue
		}
		c.headers = append(c.headers, pair{strings.ToLower(strings.TrimSpace(name)), strings.TrimSpace(value)})
	}

	if c.adminUser = r.text("authentication.fallback-admin.user", ""); c.adminUser != "" {
		c.adminSecret = r.text("authentication.fallback-admin.secret", "")
	}
	if c.masterUser = r.text("authentication.master.user", ""); c.masterUser != "" {
		c.masterSecret = r.text("authentication.master.secret", "")
	}
	c.hasStore = r.text("storage.data", "") != ""
	c.readLimiters(r)
	c.spam = r.boolean("spam-filter.enable", true)
	const lists = "spam-filter.dnsbl.server"
	for _, id := range r.ids(lists) {
		at := lists + "." + id
		if !r.boolean(at+".enable", true) || r.text(at+".scope", "") != "ip" {
			continue
		}
		if l := (&blockList{r.choice(at + ".zone"), r.choice(at + ".tag")}); l.zone != nil && l.tag != nil {
			c.lists = append(c.lists, l)
		}
	}
	c.greylist = r.duration("spam-filter.grey-list.duration", 0)
	c.subAddresses = r.boolean("session.rcpt.sub-addressing", true)
	c.deliver = r.boolean("session.data.add-headers.delivered-to", true)
	if r.boolean("spam-filter.pyzor.enable", true) {
		if host := r.text("spam-filter.pyzor.host", "public.pyzor.org"); !r.resolve(host) {
			r.fail("spam-filter.pyzor.host", "build", "Invalid address: failed to lookup address information: Name or service not known")
		}
	}
	c.readTracing(r)
	return c
}

func (c *core) readLimiters(r *configReader) {
	const prefix = "queue.limiter.inbound"
	for _, id := range r.ids(prefix) {
		at := prefix + "." + id
		if !r.boolean(at+".enable", true) {
			continue
		}
		l := &limiter{id: id, rate: r.rate(at+".rate", "")}
		if _, ok := r.keys[at+".rate"]; !ok {
			r.fail(at+".rate", "parse", "Missing property")
			continue
		}
		if m, ok := r.keys[at+".match"]; ok && m != "" {
			e, err := parseExpr("queue", m)
			if err != nil {
				r.fail(at+".match", "parse", err.Error())
				continue
			}
			l.match = e
		}
		for _, k := range r.values(at + ".key") {
			switch k.value {
			case "rcpt", "rcpt_domain":
				l.stage = 2
			case "sender", "sender_domain", "helo_domain", "authenticated_as":
				l.stage = max(l.stage, 1)
			case "remote_ip", "local_ip", "listener":
			default:
				r.fail(k.key, "parse", fmt.Sprintf("Limiter key %q is not available in this context", k.value))
				continue
			}
			l.keys = append(l.keys, k.value)
		}
		if l.rate.requests > 0 {
			c.limiters = append(c.limiters, l)
		}
	}
}

func (c *core) readTracing(r *configReader) {
	t := tracing{console: tracer{off: true}, file: tracer{off: true}, levels: make(map[string]level)}
	ids := r.ids("tracer")
	for _, id := range ids {
		at := "tracer." + id
		if !r.boolean(at+".enable", true) {
			continue
		}
		own := tracer{level: info}
		if v, ok := r.keys[at+".level"]; ok {
			lvl, err := parseLevel(v)
			if err != nil {
				r.fail(at+".level", "parse", err.Error())
			} else {
				own.level = lvl
			}
		}
		switch kind := r.text(at+".type", ""); kind {
		case "console", "stdout", "stderr":
			t.console = own
		case "log":
			t.file = own
		case "journal", "open-telemetry", "otel":
		default:
			r.fail(at+".type", "parse", fmt.Sprintf("Unknown tracer type: %s", kind))
		}
	}
	if len(ids) == 0 {
		t.console = tracer{level: info}
	}
	for _, name := range r.members("tracing.level") {
		lvl, err := parseLevel(r.keys["tracing.level."+name])
		if err != nil {
			r.fail("tracing.level."+name, "parse", err.Error())
			continue
		}
		t.levels[name] = lvl
	}
	c.tracing = t
}

// certificates reads every certificate.ID.cert and .private-key, and the names
// that they are for.
func (r *configReader) certificates() (certs []tls.Certificate) {
	for _, id := range r.ids("certificate") {
		at := "certificate." + id
		if r.text(at+".cert", "") == "" {
			continue
		}
		cert, err := tls.X509KeyPair([]byte(r.text(at+".cert", "")), []byte(r.text(at+".private-key", "")))
		if err != nil {
			r.fail(at+".cert", "build", "Failed to parse certificate: "+err.Error())
			continue
		}
		if r.boolean(at+".default", false) {
			certs = append([]tls.Certificate{cert}, certs...)
		} else {
			certs = append(certs, cert)
		}
	}
	return certs
}

// organisation is the organisational domain of a host name, as far as two
// labels go.
func organisation(host string) string {
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	if len(labels) > 2 {
		labels = labels[len(labels)-2:]
	}
	return strings.Join(labels, ".")
}

func sha256hex(b []byte) string { s := sha256.Sum256(b); return hex.EncodeToString(s[:]) }
func sha512hex(b []byte) string { s := sha512.Sum512(b); return hex.EncodeToString(s[:]) }
