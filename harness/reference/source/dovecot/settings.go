package dovecot

import (
	"crypto/tls"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Releases that are played, and what they are called.
const (
	Bookworm = "bookworm" // Dovecot 2.3.19.1, Pigeonhole 0.5.19
	Trixie   = "trixie"   // Dovecot 2.4.1, Pigeonhole 2.4.1
)

// A File is one file of a configuration.
type File struct {
	Path string // as it is named to the operator
	Text string
}

// A Config is a configuration that was read and found good.
type Config struct {
	series    string // "2.3" or "2.4"
	root      *block
	files     []File
	protocols map[string]*settings
	listeners []listener
	log       logSettings

	haproxyTrusted []netip.Prefix
	haproxyTimeout time.Duration
	penalty        bool
}

// A listener is one inet_listener of a login service.
type listener struct {
	protocol string // "imap", "pop3", "sieve"
	name     string
	port     uint16
	tls      bool
	haproxy  bool
	hosts    []netip.Addr // nil: wherever "listen" says
}

// logSettings say how a line of the log looks.
type logSettings struct {
	syslog    bool
	timestamp string
}

// settings are what one protocol's sessions go by.
type settings struct {
	trusted      []netip.Prefix
	badNetwork   string // the first entry of login_trusted_networks that is none
	cleartext    bool   // disable_plaintext_auth = no, auth_allow_cleartext = yes
	ssl          string // "yes", "no", "required"
	minTLS       uint16
	mechanisms   []string
	failureDelay time.Duration
	userChars    string
	separator    string   // auth_master_user_separator
	passdbs      []passdb // in the order in which they are asked
	masters      bool
	verbose      bool
	maxUserIP    int
	greeting     string
	elements     []element
	logFormat    template
	capability   []string // IMAP, before login
	postLogin    []string // IMAP, after login
	idLog        []string // 2.3: keys; "*" alone is all of them
	idSend       string
	sieve        string // SIEVE capability
}

// passdb is one place where passwords are looked up. The accounts of the source
// are in its passwd-file; "static" answers for everybody.
type passdb struct {
	name, driver string
	noPassword   bool           // every password is right
	password     string         // static: everybody's
	nets         []netip.Prefix // only for clients from there; nil is anywhere
}

// label is what the log calls it.
func (p *passdb) label() string {
	if p.name != "" {
		return p.name
	}
	return p.driver
}

// readPassdb reads a passdb block.
func readPassdb(series string, b *block) passdb {
	driver, _ := b.get("driver")
	p := passdb{name: b.arg, driver: driver.value}
	if p.driver == "" && series == "2.4" { // it is taken from the block's name
		p.driver, _, _ = strings.Cut(b.arg, " ")
	}
	set := func(key, value string) {
		switch key {
		case "nopassword":
			p.noPassword = value == "" || yes(value)
		case "password":
			p.password = value
		case "allow_nets":
			p.nets, _ = networks(strings.Split(value, ","))
		}
	}
	if args, ok := b.get("args"); ok && p.driver == "static" {
		for _, w := range strings.Fields(args.value) {
			k, v, _ := strings.Cut(w, "=")
			set(k, v)
		}
	}
	for _, c := range b.blocks {
		if c.name == "fields" {
			for _, s := range c.settings {
				set(s.key, s.value)
			}
		}
	}
	return p
}

// ReadConfig reads the files in order, later values winning. The first error
// is the one that Dovecot would stop at.
func ReadConfig(release string, files []File) (*Config, error) {
	c := &Config{series: "2.3", root: &block{}, files: files, protocols: make(map[string]*settings)}
	if release == Trixie {
		c.series = "2.4"
	}
	names := known(c.series)
	for _, f := range files {
		if err := parse(c.root, c.series, names, f.Path, f.Text); err != nil {
			return nil, err
		}
	}
	r := &reader{c: c}
	c.log = logSettings{
		syslog:    r.str("log_path", "syslog") == "syslog",
		timestamp: r.str("log_timestamp", "%b %d %H:%M:%S "),
	}
	c.haproxyTimeout = r.duration("haproxy_timeout", 3*time.Second)
	c.haproxyTrusted, _ = networks(r.list("haproxy_trusted_networks", nil))
	c.penalty = true
	for _, b := range c.service("anvil").blocks {
		if b.name == "unix_listener" && b.arg == "anvil-auth-penalty" {
			if m, ok := b.get("mode"); ok && strings.Trim(m.value, "0") == "" {
				c.penalty = false
			}
		}
	}
	enabled := r.list("protocols", []string{"imap", "pop3", "lmtp", "sieve"})
	for _, p := range []string{"imap", "pop3", "sieve"} {
		if !slices.ContainsFunc(enabled, func(e string) bool { return e == p || p == "sieve" && e == "managesieve" }) {
			continue
		}
		r.protocol = p
		s, err := r.settings()
		if err != nil {
			return nil, err
		}
		c.protocols[p] = s
		c.listeners = append(c.listeners, r.listeners(p)...)
	}
	// Postfix's AUTH has no protocol block of its own.
	r.protocol = ""
	s, err := r.settings()
	if err != nil {
		return nil, err
	}
	c.protocols[""] = s
	if r.err != nil {
		return nil, r.err
	}
	return c, nil
}

// Mechanisms are what the auth service offers Postfix.
func (c *Config) Mechanisms() []string { return c.protocols[""].mechanisms }

// service returns all blocks of a service as one.
func (c *Config) service(name string) *block {
	all := &block{}
	for _, b := range c.root.blocks {
		if b.name == "service" && b.arg == name {
			all.settings = append(all.settings, b.settings...)
			all.blocks = append(all.blocks, b.blocks...)
		}
	}
	return all
}

// reader reads values for one protocol and keeps the first error.
type reader struct {
	c        *Config
	protocol string
	err      error
}

func (r *reader) fail(err error) {
	if r.err == nil && err != nil {
		r.err = err
	}
}

// blocks are where a protocol's values stand, the later ones deciding: the
// top, its "protocol" blocks, its login service.
func (r *reader) blocks() []*block {
	bs := []*block{r.c.root}
	if r.protocol == "" {
		return bs
	}
	for _, b := range r.c.root.blocks {
		if b.name != "protocol" {
			continue
		}
		other, negated := strings.CutPrefix(b.arg, "!")
		if b.arg == r.protocol || negated && other != r.protocol {
			bs = append(bs, b)
		}
	}
	if r.c.series == "2.4" {
		bs = append(bs, r.c.service(loginService(r.protocol)))
	}
	return bs
}

func loginService(protocol string) string {
	if protocol == "sieve" {
		return "managesieve-login"
	}
	return protocol + "-login"
}

func (r *reader) get(key string) (setting, bool) {
	var found setting
	ok := false
	for _, b := range r.blocks() {
		if s, has := b.get(key); has {
			found, ok = s, true
		}
	}
	return found, ok
}

func (r *reader) str(key, def string) string {
	if s, ok := r.get(key); ok {
		return s.value
	}
	return def
}

func (r *reader) bool(key string, def bool) bool {
	s, ok := r.get(key)
	switch {
	case !ok:
		return def
	case yes(s.value):
		return true
	case no(s.value):
		return false
	}
	r.fail(s.errorf("%s: Invalid boolean value: %s (use yes or no)", key, s.value))
	return def
}

func (r *reader) uint(key string, def int) int {
	s, ok := r.get(key)
	if !ok {
		return def
	}
	if s.value == "unlimited" {
		return 0
	}
	n, err := strconv.ParseUint(s.value, 10, 31)
	if err != nil {
		r.fail(s.errorf("%s: Invalid number: %s", key, s.value))
		return def
	}
	return int(n)
}

func (r *reader) enum(key, def string, values ...string) string {
	s, ok := r.get(key)
	if !ok {
		return def
	}
	if !slices.Contains(values, s.value) {
		r.fail(s.errorf("%s: Invalid value: %s", key, s.value))
		return def
	}
	return s.value
}

func (r *reader) duration(key string, def time.Duration) time.Duration {
	s, ok := r.get(key)
	if !ok {
		return def
	}
	d, ok := parseDuration(s.value)
	if !ok {
		r.fail(s.errorf("%s: Invalid time interval: %s", key, s.value))
	}
	return d
}

// parseDuration reads "2s", "2 secs", "500ms" and "0".
func parseDuration(v string) (time.Duration, bool) {
	i := 0
	for i < len(v) && v[i] >= '0' && v[i] <= '9' {
		i++
	}
	n, err := strconv.Atoi(v[:i])
	if err != nil {
		return 0, false
	}
	unit := strings.ToLower(strings.TrimSpace(v[i:]))
	per := time.Second
	switch {
	case unit == "":
		if n != 0 {
			return 0, false
		}
	case strings.HasPrefix(unit, "ms"), strings.HasPrefix(unit, "mil"):
		per = time.Millisecond
	case unit[0] == 's':
	case unit[0] == 'm':
		per = time.Minute
	case unit[0] == 'h':
		per = time.Hour
	default:
		return 0, false
	}
	return time.Duration(n) * per, true
}

func (r *reader) list(key string, def []string) []string {
	out := def
	for _, b := range r.blocks() {
		out = b.list(key, out)
	}
	return out
}

// networks reads addresses and networks; bad is the first word that is
// neither: Dovecot stops reading the list there.
func networks(words []string) (nets []netip.Prefix, bad string) {
	for _, w := range words {
		p, err := netip.ParsePrefix(w)
		if err != nil {
			a, aerr := netip.ParseAddr(strings.Trim(w, "[]"))
			if aerr != nil {
				return nets, w
			}
			p = netip.PrefixFrom(a, a.BitLen())
		}
		nets = append(nets, p.Masked())
	}
	return nets, ""
}

func contains(nets []netip.Prefix, a netip.Addr) bool {
	for _, n := range nets {
		if n.Contains(a.Unmap()) {
			return true
		}
	}
	return false
}

const userChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ01234567890.-_@"

func (r *reader) settings() (*settings, error) {
	s := &settings{
		ssl:          r.enum("ssl", "yes", "yes", "no", "required"),
		mechanisms:   r.list("auth_mechanisms", []string{"plain"}),
		failureDelay: r.duration("auth_failure_delay", 2*time.Second),
		userChars:    r.str("auth_username_chars", userChars),
		separator:    r.str("auth_master_user_separator", ""),
		verbose:      r.bool("auth_verbose", false),
		maxUserIP:    r.uint("mail_max_userip_connections", 10),
		minTLS:       tls.VersionTLS12,
	}
	for i, m := range s.mechanisms {
		s.mechanisms[i] = strings.ToUpper(m)
	}
	s.trusted, s.badNetwork = networks(r.list("login_trusted_networks", nil))
	switch r.str("ssl_min_protocol", "TLSv1.2") {
	case "TLSv1", "ANY", "LATEST":
		s.minTLS = tls.VersionTLS10
	case "TLSv1.1":
		s.minTLS = tls.VersionTLS11
	case "TLSv1.3":
		s.minTLS = tls.VersionTLS13
	}
	for _, b := range r.c.root.blocks {
		if b.name != "passdb" {
			continue
		}
		if m, ok := b.get("master"); ok && yes(m.value) {
			s.masters = true
		} else {
			s.passdbs = append(s.passdbs, readPassdb(r.c.series, b))
		}
	}
	if r.c.series == "2.3" {
		r.settings23(s)
	} else {
		r.settings24(s)
	}
	return s, r.err
}

const (
	caps23       = "IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE"
	capsAfter23  = "SORT SORT=DISPLAY THREAD=REFERENCES THREAD=REFS THREAD=ORDEREDSUBJECT MULTIAPPEND URL-PARTIAL CATENATE UNSELECT CHILDREN NAMESPACE UIDPLUS LIST-EXTENDED I18NLEVEL=1 CONDSTORE QRESYNC ESEARCH ESORT SEARCHRES WITHIN CONTEXT=SEARCH LIST-STATUS BINARY MOVE SNIPPET=FUZZY PREVIEW=FUZZY PREVIEW STATUS=SIZE SAVEDATE"
	caps24       = "IMAP4rev1 LOGIN-REFERRALS ID ENABLE IDLE SASL-IR LITERAL+"
	capsAfter24  = caps23 + " SORT SORT=DISPLAY THREAD=REFERENCES THREAD=REFS THREAD=ORDEREDSUBJECT MULTIAPPEND URL-PARTIAL CATENATE UNSELECT CHILDREN NAMESPACE UIDPLUS LIST-EXTENDED I18NLEVEL=1 CONDSTORE QRESYNC ESEARCH ESORT SEARCHRES WITHIN CONTEXT=SEARCH LIST-STATUS BINARY MOVE REPLACE SNIPPET=FUZZY PREVIEW=FUZZY PREVIEW SPECIAL-USE STATUS=SIZE SAVEDATE COMPRESS=DEFLATE INPROGRESS NOTIFY LITERAL+"
	sieve23      = "fileinto reject envelope encoded-character vacation subaddress comparator-i;ascii-numeric relational regex imap4flags copy include variables body enotify environment mailbox date index ihave duplicate mime foreverypart extracttext"
	sieve24      = "fileinto reject envelope encoded-character vacation subaddress comparator-i;ascii-numeric relational regex imap4flags copy include body variables enotify environment mailbox date index ihave duplicate mime foreverypart extracttext"
	elements23   = "user=<%u> method=%m rip=%r lip=%l mpid=%e %c session=<%{session}>"
	elements24   = "user=<%{user}> method=%{mechanism} rip=%{remote_ip} lip=%{local_ip} mpid=%{mail_pid} %{secured} session=<%{session}>"
	logFormat23  = "%$: %s"
	logFormat24  = "%{message}: %{elements}"
	imapPostName = "imap"
)

func (r *reader) settings23(s *settings) {
	s.cleartext = !r.bool("disable_plaintext_auth", true)
	s.greeting = r.str("login_greeting", "Dovecot (Debian) ready.")
	s.elements = parseElements(r.str("login_log_format_elements", elements23), parse23)
	s.logFormat = parse23(r.str("login_log_format", logFormat23))
	s.sieve = sieve23
	s.idLog = strings.Fields(r.str("imap_id_log", ""))
	s.idSend = idReply23(r.str("imap_id_send", "name *"))
	switch c := r.str("imap_capability", ""); {
	case c == "":
		s.capability = strings.Fields(caps23 + " LITERAL+")
		s.postLogin = strings.Fields(caps23 + " " + capsAfter23 + " LITERAL+ NOTIFY SPECIAL-USE")
	case c[0] == '+':
		s.capability = strings.Fields(caps23 + " " + c[1:] + " LITERAL+")
		s.postLogin = strings.Fields(caps23 + " " + capsAfter23 + " " + c[1:] + " LITERAL+ NOTIFY SPECIAL-USE")
	default:
		s.capability = strings.Fields(c)
		s.postLogin = s.capability
	}
}

func (r *reader) settings24(s *settings) {
	s.cleartext = r.bool("auth_allow_cleartext", false)
	if v, ok := r.get("auth_allow_cleartext"); ok && s.cleartext && s.ssl == "required" {
		r.fail(v.errorf("auth_allow_cleartext=yes has no effect with ssl=required"))
	}
	s.greeting = r.str("login_greeting", "Dovecot ready.")
	s.elements = parseElements(r.str("login_log_format_elements", elements24), parse24)
	s.logFormat = parse24(r.str("login_log_format", logFormat24))
	s.sieve = sieve24
	s.idSend = r.idReply24()
	s.capability = r.list("imap_capability", strings.Fields(caps24))
	after := *r
	after.protocol = imapPostName
	s.postLogin = after.postLogin24()
}

// postLogin24 is imap_capability as the imap service reads it.
func (r *reader) postLogin24() []string {
	out := strings.Fields(capsAfter24)
	for _, b := range []*block{r.c.root, r.c.service("imap")} {
		out = b.list("imap_capability", out)
	}
	return out
}

// idReply23 is the ID reply for "name * version x".
func idReply23(v string) string {
	words := strings.Fields(v)
	if len(words) == 0 {
		return "NIL"
	}
	var b strings.Builder
	for i := 0; i < len(words); i += 2 {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(quoted(words[i]) + " ")
		switch value := ""; {
		case i+1 == len(words):
			b.WriteString("NIL")
		case words[i+1] == "*":
			if value = idDefault(words[i]); value == "" {
				b.WriteString("NIL")
				continue
			}
			b.WriteString(quoted(value))
		default:
			b.WriteString(quoted(words[i+1]))
		}
	}
	return "(" + b.String() + ")"
}

func idDefault(key string) string {
	switch strings.ToLower(key) {
	case "name":
		return "Dovecot"
	case "version":
		return "2.3.19.1"
	case "support-url":
		return "http://www.dovecot.org/"
	case "support-email":
		return "dovecot@dovecot.org"
	}
	return ""
}

// idReply24 is the ID reply of the imap_id_send block.
func (r *reader) idReply24() string {
	keys := []string{"name"}
	values := map[string]string{"name": "Dovecot"}
	for _, b := range r.blocks() {
		for _, c := range b.blocks {
			if c.name != "imap_id_send" {
				continue
			}
			for _, s := range c.settings {
				if _, ok := values[s.key]; !ok {
					keys = append(keys, s.key)
				}
				values[s.key] = s.value
			}
		}
	}
	parts := make([]string, 0, len(keys))
	for _, k := range keys {
		parts = append(parts, quoted(k)+" "+quoted(values[k]))
	}
	return "(" + strings.Join(parts, " ") + ")"
}

func quoted(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// listeners are the inet_listeners of a protocol's login service.
func (r *reader) listeners(protocol string) []listener {
	var ls []listener
	switch protocol {
	case "imap":
		ls = []listener{{protocol: protocol, name: "imap", port: 143}, {protocol: protocol, name: "imaps", port: 993, tls: true}}
	case "pop3":
		ls = []listener{{protocol: protocol, name: "pop3", port: 110}, {protocol: protocol, name: "pop3s", port: 995, tls: true}}
	case "sieve":
		ls = []listener{{protocol: protocol, name: "sieve", port: 4190}}
	}
	for _, b := range r.c.service(loginService(protocol)).blocks {
		if b.name != "inet_listener" {
			continue
		}
		i := slices.IndexFunc(ls, func(l listener) bool { return l.name == b.arg })
		if i < 0 {
			ls = append(ls, listener{protocol: protocol, name: b.arg})
			i = len(ls) - 1
		}
		for _, s := range b.settings {
			switch s.key {
			case "port":
				n, err := strconv.ParseUint(s.value, 10, 16)
				if err != nil {
					r.fail(s.errorf("port: Invalid port number: %s", s.value))
				}
				ls[i].port = uint16(n)
			case "ssl":
				ls[i].tls = yes(s.value)
			case "haproxy":
				ls[i].haproxy = yes(s.value)
			case "address", "listen":
				ls[i].hosts = nil
				for _, w := range strings.FieldsFunc(s.value, func(c rune) bool { return c == ' ' || c == ',' }) {
					if a, err := netip.ParseAddr(strings.Trim(w, "[]")); err == nil {
						ls[i].hosts = append(ls[i].hosts, a)
					}
				}
			}
		}
	}
	return ls
}

// Listening lists where a source with these addresses listens.
func (c *Config) listening(addrs []netip.Addr) []bound {
	r := &reader{c: c}
	words := r.list("listen", []string{"*", "::"})
	var out []bound
	for i := range c.listeners {
		l := &c.listeners[i]
		if l.port == 0 {
			continue
		}
		for _, a := range addrs {
			if l.hosts != nil && !slices.Contains(l.hosts, a) || l.hosts == nil && !listens(words, a) {
				continue
			}
			out = append(out, bound{l, netip.AddrPortFrom(a, l.port)})
		}
	}
	return out
}

// bound is a listener at one address.
type bound struct {
	*listener
	at netip.AddrPort
}

func listens(words []string, a netip.Addr) bool {
	for _, w := range words {
		switch w {
		case "*":
			if a.Unmap().Is4() {
				return true
			}
		case "::", "[::]":
			if a.Unmap().Is6() {
				return true
			}
		default:
			if b, err := netip.ParseAddr(strings.Trim(w, "[]")); err == nil && b == a {
				return true
			}
		}
	}
	return false
}

// Effective prints what is in force, as doveconf -n does, without what holds a
// secret.
func (c *Config) Effective() string {
	var b strings.Builder
	b.WriteString("# ")
	if c.series == "2.3" {
		b.WriteString("2.3.19.1 (9b53102964)")
	} else {
		b.WriteString("2.4.1-4 (7d8c0e5759)")
	}
	b.WriteString(": /etc/dovecot/dovecot.conf\n")
	writeBlock(&b, c.root, "")
	return b.String()
}

func writeBlock(b *strings.Builder, in *block, indent string) {
	last := make(map[string]string, len(in.settings))
	var keys []string
	for _, s := range in.settings {
		if _, ok := last[s.key]; !ok {
			keys = append(keys, s.key)
		}
		last[s.key] = s.value
	}
	slices.Sort(keys)
	for _, k := range keys {
		v := last[k]
		if strings.Contains(k, "password") && k != "default_password_scheme" || strings.HasSuffix(k, "_api_key") || strings.HasSuffix(k, "_secret") {
			v = "# hidden"
		}
		b.WriteString(indent + k + " = " + v + "\n")
	}
	for _, c := range in.blocks {
		b.WriteString(indent + c.name)
		if c.arg != "" {
			b.WriteString(" " + c.arg)
		}
		b.WriteString(" {\n")
		writeBlock(b, c, indent+"  ")
		b.WriteString(indent + "}\n")
	}
}

// HasAuthSocket says whether the auth service listens on a socket of Postfix's,
// named as Postfix names it ("private/auth").
func (c *Config) HasAuthSocket(path string) bool { return path != "" && c.hasSocket("auth", path) }

// HasLMTPSocket says whether LMTP listens on a socket of Postfix's.
func (c *Config) HasLMTPSocket(path string) bool {
	r := &reader{c: c}
	return slices.Contains(r.list("protocols", []string{"imap", "pop3", "lmtp", "sieve"}), "lmtp") && c.hasSocket("lmtp", path)
}

// queueDirectory is Postfix's, which its processes see as the root.
const queueDirectory = "/var/spool/postfix/"

func (c *Config) hasSocket(service, path string) bool {
	if !strings.HasPrefix(path, "/") {
		path = queueDirectory + path
	}
	for _, b := range c.service(service).blocks {
		if b.name != "unix_listener" {
			continue
		}
		at := b.arg
		if p, ok := b.get("path"); ok {
			at = p.value
		}
		if m, ok := b.get("mode"); ok && strings.Trim(m.value, "0") == "" {
			continue
		}
		if at == path {
			return true
		}
	}
	return false
}

// FailureDelay is auth_failure_delay as Postfix's AUTH sees it.
func (c *Config) FailureDelay() time.Duration { return c.protocols[""].failureDelay }
