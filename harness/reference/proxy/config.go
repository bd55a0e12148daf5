package proxy

import (
	"crypto/tls"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// Protocol is a protocol by the name that the configuration gives it.
type Protocol string

// The protocols that listeners and destinations speak.
const (
	IMAP        Protocol = "imap"
	POP3        Protocol = "pop3"
	ManageSieve Protocol = "managesieve"
	Submission  Protocol = "submission" // SMTP with authentication (RFC 6409)
	SMTP        Protocol = "smtp"       // passed through
)

// interactive says whether clients of the protocol sign in at the proxy.
func (p Protocol) interactive() bool {
	switch p {
	case IMAP, POP3, ManageSieve, Submission:
		return true
	}
	return false
}

// TLSMode is how a leg comes to be encrypted.
type TLSMode string

// The modes.
const (
	Implicit TLSMode = "implicit"
	STARTTLS TLSMode = "starttls"
	Plain    TLSMode = "plain"
)

// Forwarding is how a destination is told who the client is.
type Forwarding string

// The ways of telling it. The zero Forwarding is [ForwardPROXY].
const (
	ForwardPROXY   Forwarding = "proxy"   // a PROXY protocol header
	ForwardXCLIENT Forwarding = "xclient" // XCLIENT, and ID in IMAP
	ForwardNone    Forwarding = "none"
)

// Inbound is whether a listener reads PROXY protocol headers.
type Inbound string

// The choices. The zero Inbound is [InboundOff].
const (
	InboundOff      Inbound = "off"
	InboundOptional Inbound = "optional" // from trusted peers, where one comes
	InboundRequired Inbound = "required" // trusted peers only, and never without
)

// A Config is what the proxy is told. Zero values stand for the defaults named
// with each field; [ParseConfig] reads one from a file.
type Config struct {
	// File is where it was read from; relative paths start at its folder.
	File   string
	Server Server

	// Certificates are presented to clients, chosen by the name they ask for.
	Certificates []Certificate
	// MinTLS is the lowest TLS version for clients; tls.VersionTLS12 by default.
	MinTLS uint16

	Listeners    []Listener
	Destinations []Destination
	Routing      Routing
	Mapping      Mapping
	// Capabilities are what the proxy says of itself before a client signs in.
	Capabilities map[Protocol]Capabilities
	// JWTClaim is the claim of a bearer token that names the account; "email" by default.
	JWTClaim string
}

// Server holds what applies to the whole process.
type Server struct {
	Hostname       string        // in SMTP greetings; the address connected to by default
	ShutdownGrace  time.Duration // how long sessions may go on after the end was asked for; 30 s
	BridgeIdle     time.Duration // how long a joined session may be silent; 30 min
	BackendTimeout time.Duration // from the first dial to the verdict on the credentials; 10 s
	ProxyTTL       int           // announced one lower; 7
	LogLevel       string        // off, error, warn, info, debug; info
}

// A Certificate is a chain and its key, in PEM files or already loaded.
type Certificate struct {
	Name      string
	Cert, Key string   // paths
	Subjects  []string // names it is for; those in the certificate by default
	Default   bool
	Loaded    *tls.Certificate // used instead of the files
}

// A Listener is one protocol on one or more addresses.
type Listener struct {
	Name            string
	Protocol        Protocol
	Binds           []netip.AddrPort
	TLS             TLSMode
	Inbound         Inbound
	Trusted         []netip.Prefix // peers whose PROXY headers, and IMAP x-proxy-ttl, count
	MaxConnections  int            // 8192
	PreauthTimeout  time.Duration  // until credentials are complete; 30 s
	MaxAuthAttempts int            // failures before the connection is closed; 3
}

// A Destination is a mail system that accounts live on.
type Destination struct {
	Name           string
	Host           string // address, or a name that is resolved for each connection
	ServerName     string // what its certificate is checked for; Host by default
	PinSHA256      []byte // the only certificate accepted, as the hash of its DER form
	AllowInvalid   bool   // accept any certificate
	ClientCert     string // path; for mutual TLS
	ClientKey      string
	Forwarding     Forwarding
	AllowPlaintext bool // send credentials without TLS
	SourceIPs      []netip.Addr
	HideAuthErrors bool // replace its words for refused credentials
	Endpoints      map[Protocol]Endpoint
}

// An Endpoint is where a destination speaks one protocol.
type Endpoint struct {
	Port       uint16
	TLS        TLSMode
	Forwarding Forwarding // overrides the destination's
}

// Routing is where accounts without a mapping, and port 25, go.
type Routing struct {
	Default     string
	PassThrough string
	// Separators begin the master user in a login name; "%" by default.
	Separators []string
}

// Mapping says which accounts live where.
type Mapping struct {
	Lowercase bool
	File      string            // lines of identifier and destination
	Inline    map[string]string // identifier to destination
}

// Capabilities are what the proxy says of itself in one protocol.
type Capabilities struct {
	SASL           []string // of PLAIN, LOGIN, OAUTHBEARER, XOAUTH2; all four
	AllowCleartext bool     // take credentials without TLS
	Banner         string
	// Advertise are IMAP capabilities, EHLO keywords or Sieve extensions.
	Advertise      []string
	Implementation string // ManageSieve
}

// The mechanisms that are understood, in the order in which they are offered.
func mechanisms() []string { return []string{"PLAIN", "LOGIN", "OAUTHBEARER", "XOAUTH2"} }

// defaultCapabilities promises no more than old Stalwart, Dovecot and Postfix
// all keep, because a client may go on using it after it has signed in.
func defaultCapabilities(p Protocol) Capabilities {
	c := Capabilities{SASL: mechanisms()}
	switch p {
	case IMAP:
		c.Banner = "mailproof reference proxy ready."
		c.Advertise = []string{"IMAP4rev1", "SASL-IR", "LITERAL+", "ID", "ENABLE", "IDLE"}
	case POP3:
		c.Banner = "mailproof reference proxy ready."
	case Submission:
		c.Banner = "mailproof reference proxy"
		c.Advertise = []string{"PIPELINING", "SIZE", "8BITMIME", "ENHANCEDSTATUSCODES"}
	case ManageSieve:
		c.Banner = "mailproof reference proxy ready."
		c.Implementation = "mailproof reference proxy"
		c.Advertise = []string{"fileinto", "reject", "envelope", "encoded-character", "vacation", "subaddress",
			"comparator-i;ascii-numeric", "relational", "regex", "imap4flags", "copy", "include", "variables", "body",
			"enotify", "environment", "mailbox", "date", "index"}
	}
	return c
}

// withDefaults returns a copy in which no zero value is left that stands for a default.
func (c *Config) withDefaults() Config {
	d := *c
	set(&d.Server.ShutdownGrace, 30*time.Second)
	set(&d.Server.BridgeIdle, 30*time.Minute)
	set(&d.Server.BackendTimeout, 10*time.Second)
	set(&d.Server.ProxyTTL, 7)
	set(&d.Server.LogLevel, "info")
	set(&d.MinTLS, tls.VersionTLS12)
	set(&d.JWTClaim, "email")
	if d.Routing.Separators == nil {
		d.Routing.Separators = []string{"%"}
	}
	d.Listeners = slices.Clone(c.Listeners)
	for i := range d.Listeners {
		l := &d.Listeners[i]
		set(&l.Inbound, InboundOff)
		set(&l.MaxConnections, 8192)
		set(&l.PreauthTimeout, 30*time.Second)
		set(&l.MaxAuthAttempts, 3)
	}
	d.Destinations = slices.Clone(c.Destinations)
	for i := range d.Destinations {
		dest := &d.Destinations[i]
		set(&dest.Forwarding, ForwardPROXY)
		endpoints := make(map[Protocol]Endpoint, len(dest.Endpoints))
		for p, e := range dest.Endpoints {
			set(&e.Forwarding, dest.Forwarding)
			endpoints[p] = e
		}
		dest.Endpoints = endpoints
	}
	d.Capabilities = make(map[Protocol]Capabilities)
	for _, p := range []Protocol{IMAP, POP3, Submission, ManageSieve} {
		def, own := defaultCapabilities(p), c.Capabilities[p]
		set(&own.Banner, def.Banner)
		set(&own.Implementation, def.Implementation)
		if own.SASL == nil {
			own.SASL = def.SASL
		}
		if own.Advertise == nil {
			own.Advertise = def.Advertise
		}
		d.Capabilities[p] = own
	}
	return d
}

func set[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// report takes one thing that is wrong with a configuration: the path of the
// key, and what is allowed there.
type report func(path []string, format string, args ...any)

// check reports everything that is wrong with the configuration itself. Files
// that it names are not opened.
func (c *Config) check(wrong report) {
	c.checkServer(wrong)
	c.checkListeners(wrong)
	c.checkDestinations(wrong)
	c.checkRouting(wrong)
	for p, caps := range c.Capabilities {
		caps.check(p, wrong)
	}
}

func (c *Config) checkServer(wrong report) {
	at := func(key string) []string { return []string{"server", key} }
	s := c.Server
	if !printable(s.Hostname) || strings.Contains(s.Hostname, " ") || len(s.Hostname) > 255 {
		wrong(at("hostname"), "must be one word of printable ASCII, at most 255 octets")
	}
	for _, d := range []struct {
		key string
		v   time.Duration
	}{{"shutdown_grace", s.ShutdownGrace}, {"bridge_idle", s.BridgeIdle}, {"backend_timeout", s.BackendTimeout}} {
		if d.v < 0 || d.v > 30*24*time.Hour {
			wrong(at(d.key), "must be between 1ms and 30d")
		}
	}
	if s.ProxyTTL != 0 && (s.ProxyTTL < 2 || s.ProxyTTL > 255) {
		wrong(at("proxy_ttl"), "must be between 2 and 255: it is announced one lower, and 0 ends a session")
	}
	switch s.LogLevel {
	case "", "off", "error", "warn", "info", "debug", "trace":
	default:
		wrong(at("log_level"), "%q is not allowed: off, error, warn, info, debug or trace", s.LogLevel)
	}
	names := map[string]bool{}
	defaults := 0
	for _, cert := range c.Certificates {
		at := func(key string) []string { return []string{"tls", "certificate", cert.Name, key} }
		if names[cert.Name] {
			wrong(at(""), "there are two certificates of this name")
		}
		names[cert.Name] = true
		if cert.Loaded == nil && (cert.Cert == "" || cert.Key == "") {
			wrong(at("cert"), "both cert and key must name a PEM file")
		}
		if cert.Default {
			if defaults++; defaults == 2 {
				wrong(at("default"), "only one certificate can be the default")
			}
		}
	}
}

func (c *Config) checkListeners(wrong report) {
	names := map[string]bool{}
	bound := map[netip.AddrPort]string{}
	if len(c.Listeners) == 0 {
		wrong([]string{"listener"}, "at least one listener is needed: [listener.NAME] with protocol, bind and tls")
	}
	for _, l := range c.Listeners {
		at := func(key string) []string { return []string{"listener", l.Name, key} }
		if names[l.Name] {
			wrong(at(""), "there are two listeners of this name")
		}
		names[l.Name] = true
		switch {
		case l.Protocol == "":
			wrong(at("protocol"), "is missing: imap, pop3, managesieve, submission or smtp")
		case !l.Protocol.interactive() && l.Protocol != SMTP:
			wrong(at("protocol"), "%q is not allowed: imap, pop3, managesieve, submission or smtp", l.Protocol)
		}
		switch {
		case l.TLS == "":
			wrong(at("tls"), "is missing: implicit, starttls or plain")
		case !l.TLS.known():
			wrong(at("tls"), "%q is not allowed: implicit, starttls or plain", l.TLS)
		case l.Protocol == SMTP && l.TLS == STARTTLS:
			wrong(at("tls"), `"starttls" is not allowed with protocol "smtp": its octets are passed through, so the STARTTLS in them is the destination's; use plain or implicit`)
		}
		if len(l.Binds) == 0 {
			wrong(at("bind"), `is missing: a list of addresses and ports, such as ["0.0.0.0:993", "[::]:993"]`)
		}
		for _, b := range l.Binds {
			if other, ok := bound[b]; ok && b.Port() != 0 {
				wrong(at("bind"), "%s is bound twice, here and by listener %q", b, other)
			}
			bound[b] = l.Name
		}
		switch l.Inbound {
		case "", InboundOff:
		case InboundOptional, InboundRequired:
			if len(l.Trusted) == 0 {
				wrong(at("proxy_trusted"), "must list the networks whose PROXY headers count, because proxy_protocol is %q", l.Inbound)
			}
		default:
			wrong(at("proxy_protocol"), "%q is not allowed: off, optional or required", l.Inbound)
		}
		if l.MaxConnections < 0 {
			wrong(at("max_connections"), "must be at least 1")
		}
		if l.MaxAuthAttempts < 0 {
			wrong(at("max_auth_attempts"), "must be at least 1")
		}
		if l.PreauthTimeout < 0 || l.PreauthTimeout > time.Hour {
			wrong(at("preauth_timeout"), "must be between 1ms and 1h")
		}
	}
}

func (c *Config) checkDestinations(wrong report) {
	names := map[string]bool{}
	for _, d := range c.Destinations {
		at := func(keys ...string) []string { return append([]string{"destination", d.Name}, keys...) }
		if names[d.Name] {
			wrong(at(), "there are two destinations of this name")
		}
		names[d.Name] = true
		if d.Host == "" || !printable(d.Host) || strings.Contains(d.Host, " ") {
			wrong(at("host"), "must be an address or a host name")
		}
		if !d.Forwarding.known() {
			wrong(at("forwarding"), "%q is not allowed: proxy, xclient or none", d.Forwarding)
		}
		if n := len(d.PinSHA256); n != 0 && n != 32 {
			wrong(at("tls_pinned_cert_sha256"), "must be the SHA-256 of the certificate, 64 hexadecimal digits, colons allowed")
		}
		if (d.ClientCert == "") != (d.ClientKey == "") {
			wrong(at("tls_client_cert"), "tls_client_cert and tls_client_key must be set together")
		}
		if len(d.Endpoints) == 0 {
			wrong(at("protocol"), "is missing: at least one [destination.%s.protocol.NAME] with port and tls", d.Name)
		}
		_, err := netip.ParseAddr(d.Host)
		isAddr, unnamed := err == nil, false
		for _, p := range sortedProtocols(d.Endpoints) {
			e := d.Endpoints[p]
			if !p.interactive() && p != SMTP {
				wrong(at("protocol", string(p)), "%q is not allowed: imap, pop3, managesieve, submission or smtp", p)
				continue
			}
			if e.Port == 0 {
				wrong(at("protocol", string(p), "port"), "must be between 1 and 65535")
			}
			switch {
			case e.TLS == "":
				wrong(at("protocol", string(p), "tls"), "is missing: implicit, starttls or plain")
			case !e.TLS.known():
				wrong(at("protocol", string(p), "tls"), "%q is not allowed: implicit, starttls or plain", e.TLS)
			case e.TLS == Plain && p.interactive() && !d.AllowPlaintext:
				wrong(at("protocol", string(p), "tls"), `"plain" would send credentials in clear text: use starttls or implicit, or set allow_plaintext_auth = true on the destination if the way to it is protected`)
			case e.TLS == STARTTLS && p == SMTP:
				wrong(at("protocol", string(p), "tls"), `"starttls" is not allowed for smtp: its octets are passed through; use plain or implicit`)
			}
			if e.TLS == Implicit || e.TLS == STARTTLS {
				unnamed = unnamed || isAddr && d.ServerName == ""
			}
			if !e.Forwarding.known() {
				wrong(at("protocol", string(p), "forwarding"), "%q is not allowed: proxy, xclient or none", e.Forwarding)
			}
			effective := e.Forwarding
			set(&effective, d.Forwarding)
			if p == SMTP && effective == ForwardXCLIENT && c.Routing.PassThrough == d.Name {
				wrong(at("protocol", string(p), "forwarding"), `is "xclient", which cannot be announced on a connection that is passed through: set forwarding = "proxy" or "none" here`)
			}
		}
		if unnamed {
			wrong(at("tls_server_name"), "is missing: host is an address, so the name in the certificate must be given")
		}
	}
}

func (c *Config) checkRouting(wrong report) {
	at := func(key string) []string { return []string{"routing", key} }
	byName := map[string]*Destination{}
	for i := range c.Destinations {
		byName[c.Destinations[i].Name] = &c.Destinations[i]
	}
	known := strings.Join(sortedKeys(byName), ", ")
	if known == "" {
		known = "none"
	}
	def, pass := byName[c.Routing.Default], byName[c.Routing.PassThrough]
	signIn, through := false, false
	for _, l := range c.Listeners {
		signIn = signIn || l.Protocol.interactive()
		through = through || l.Protocol == SMTP
	}
	if def == nil && (signIn || c.Routing.Default != "") {
		wrong(at("default_destination"), "%q is not a destination; declared: %s", c.Routing.Default, known)
	}
	if pass == nil && (through || c.Routing.PassThrough != "") {
		wrong(at("smtp_passthrough_destination"), "%q is not a destination; declared: %s", c.Routing.PassThrough, known)
	}
	for _, l := range c.Listeners {
		switch {
		case l.Protocol.interactive() && def != nil:
			if _, ok := def.Endpoints[l.Protocol]; !ok {
				wrong([]string{"listener", l.Name, "protocol"}, "the default destination %q has no [destination.%s.protocol.%s], and every account without a mapping goes there", def.Name, def.Name, l.Protocol)
			}
		case l.Protocol == SMTP && pass != nil:
			if _, ok := pass.Endpoints[SMTP]; !ok {
				wrong([]string{"listener", l.Name, "protocol"}, "the pass-through destination %q has no [destination.%s.protocol.smtp]", pass.Name, pass.Name)
			}
		}
	}
	for _, sep := range c.Routing.Separators {
		if sep == "" {
			wrong(at("master_user_separators"), "a separator must not be empty")
		}
	}
	for _, id := range sortedKeys(c.Mapping.Inline) {
		if to := c.Mapping.Inline[id]; byName[to] == nil {
			wrong([]string{"mapping", "inline", id}, "%q is not a destination; declared: %s", to, known)
		}
	}
}

func (c Capabilities) check(p Protocol, wrong report) {
	at := func(key string) []string { return []string{"capabilities", string(p), key} }
	seen := map[string]bool{}
	for _, m := range c.SASL {
		if !slices.Contains(mechanisms(), m) {
			wrong(at("sasl"), "%q is not allowed: %s", m, strings.Join(mechanisms(), ", "))
		}
		if seen[m] {
			wrong(at("sasl"), "%q stands there twice", m)
		}
		seen[m] = true
	}
	if !printable(c.Banner) || len(c.Banner) > 400 {
		wrong(at("banner"), "must be printable ASCII, at most 400 octets")
	}
	if !printable(c.Implementation) || strings.ContainsAny(c.Implementation, `"\`) || len(c.Implementation) > 400 {
		wrong(at("implementation"), `must be printable ASCII without " and \, at most 400 octets`)
	}
	for _, a := range c.Advertise {
		space := strings.Contains(a, " ") && p != Submission
		if a == "" || !printable(a) || space || strings.ContainsAny(a, "\"\\") || len(a) > 200 {
			wrong(at(advertiseKey(p)), "%q cannot be announced", a)
		}
	}
}

// advertiseKey is what the configuration calls the list in each protocol.
func advertiseKey(p Protocol) string {
	switch p {
	case IMAP:
		return "advertise"
	case Submission:
		return "ehlo"
	}
	return "sieve"
}

func (m TLSMode) known() bool { return m == Implicit || m == STARTTLS || m == Plain }

func (f Forwarding) known() bool {
	return f == "" || f == ForwardPROXY || f == ForwardXCLIENT || f == ForwardNone
}

// printable says whether s is printable ASCII.
func printable(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

func sortedProtocols(m map[Protocol]Endpoint) []Protocol {
	var ps []Protocol
	for p := range m {
		ps = append(ps, p)
	}
	slices.Sort(ps)
	return ps
}

func sortedKeys[V any](m map[string]V) []string {
	var ks []string
	for k := range m {
		ks = append(ks, k)
	}
	slices.Sort(ks)
	return ks
}

// A ConfigError is one thing that is wrong with a configuration.
type ConfigError struct {
	File         string
	Line, Column int    // from 1; 0 when the configuration was not read from a file
	Key          string // "listener.imaps.tls"
	Kind         ConfigErrorKind
	Why          string
}

// ConfigErrorKind sorts configuration errors.
type ConfigErrorKind string

// The kinds.
const (
	BadSyntax      ConfigErrorKind = "syntax"          // not TOML
	UnknownKey     ConfigErrorKind = "unknown"         // not a key of the format
	NotImplemented ConfigErrorKind = "not implemented" // a key of the format that the reference proxy does not have
	BadValue       ConfigErrorKind = "value"
)

func (e *ConfigError) Error() string {
	where := e.File
	if e.Line > 0 {
		where += fmt.Sprintf(":%d:%d", e.Line, e.Column)
	}
	if where != "" {
		where += ": "
	}
	if e.Key == "" {
		return where + e.Why
	}
	return where + e.Key + ": " + e.Why
}

// ConfigErrors are all things that are wrong with a configuration, in the
// order of its lines.
type ConfigErrors []*ConfigError

func (es ConfigErrors) Error() string {
	var lines []string
	for _, e := range es {
		lines = append(lines, e.Error())
	}
	return strings.Join(lines, "\n")
}

// Unwrap lets errors.As find each of them.
func (es ConfigErrors) Unwrap() []error {
	var out []error
	for _, e := range es {
		out = append(out, e)
	}
	return out
}

// Only says whether all of them are of one kind.
func (es ConfigErrors) Only(k ConfigErrorKind) bool {
	for _, e := range es {
		if e.Kind != k {
			return false
		}
	}
	return len(es) > 0
}
