package postfix

import (
	"fmt"
	"net/netip"
	"slices"
	"sort"
	"strings"
	"time"
)

// Releases that are played, and what they are called.
const (
	Bookworm = "bookworm" // Postfix 3.7.11
	Trixie   = "trixie"   // Postfix 3.10.13
)

// An Input is everything that configures a Postfix.
type Input struct {
	Release  string
	Hostname string // fully qualified
	Main     []File // each laid over Debian's own
	Master   []File
	// Files are what else lies on the source, by absolute path: lookup tables.
	Files map[string]string
	// Account says whether the source has an account of that name.
	Account func(string) bool
}

// A Config is a configuration that was read and found good.
type Config struct {
	release  string
	host     string
	main     *mainCF
	master   *masterCF
	services []*service
	unused   []string
	log      logSettings
}

// logSettings say how a line of the log looks.
type logSettings struct{ stdout bool }

// service is one smtpd of master.cf and the parameters that it goes by.
type service struct {
	name    string // in master.cf
	port    uint16
	host    netip.Addr // zero: wherever inet_interfaces says
	program string     // "postfix/submission/smtpd"
	fatal   string     // why its processes die
	errors  []string   // what its processes log when they start

	myhostname, banner, mailName string
	myorigin                     string
	inet4, inet6                 bool

	peername, delayReject, heloRequired, clientPort bool
	xclient, xforward, mynetworks, exempt           *matchList

	client, helo, sender, relay, recipient, data, eod []string
	classes                                           map[string][]string
	relayFirst                                        bool
	unlistedRecipient, unlistedSender                 bool

	discard map[string]bool // keywords of EHLO, in capitals

	tlsOffered, tlsRequired, wrapper, authOnly bool
	tlsLog                                     int
	tlsHeader, authHeader, hideSession         bool

	sasl       bool
	saslSocket string
	saslLimit  int

	connections, connectionRate, messageRate, recipientRate, authRate int
	rateUnit                                                          time.Duration
	prefix4, prefix6                                                  int

	sizeLimit, lineLimit              int
	recipients, overshoot             int
	hardErrors, softErrors, junkLimit int
	errorSleep, timeout               time.Duration
	forbidPipelining                  bool
	bareLF                            string // "no", "normalize", "note", "reject"
	forbidden                         []string
	forbiddenMaps                     maps

	haproxy        bool
	haproxyTimeout time.Duration

	utf8, strictUTF8, vrfy, softBounce, strict821 bool
	percentHack, bangPath, untrustedRouting       bool
	addHeaders, tableNames, accessParents         bool
	rewriteClients                                []string
	delimiters                                    string
	codes                                         codes
	policyDefault                                 string
	nullKey                                       string
	milters                                       []string
	milterAction                                  string

	mydestination, aliasDomains, mailboxDomains, relayDomains *domainList
	localMaps, mailboxMaps, relayMaps, aliasMaps              maps
	canonicalMaps                                             maps
	senderLogin                                               maps
	tables                                                    *tables
	hasLocalMaps, hasMailboxMaps, hasRelayMaps                bool
	transports                                                map[int]transport // by class
	transportMaps                                             maps
	relayhost                                                 string
	luserRelay                                                string
}

// codes are the reply codes that parameters set.
type codes struct {
	access, accessDefer, reject, deferral, relay, nonFQDN, badName, unknownClient,
	local, alias, mailbox, relayRcpt, plaintext, bounce int
}

// transport is "lmtp:unix:private/dovecot-lmtp", in its two parts.
type transport struct{ name, nexthop string }

func parseTransport(s string) transport {
	name, hop, _ := strings.Cut(s, ":")
	return transport{name, hop}
}

// required are the restrictions of which a relay needs one.
var required = []string{"reject_unauth_destination", "defer_unauth_destination", "reject", "defer", "defer_if_permit", "check_relay_domains"}

// ReadConfig reads a configuration. An error is what Postfix would not start
// with; what only a service cannot run with is logged when it is used.
func ReadConfig(in Input) (*Config, error) {
	c := &Config{release: in.Release, host: in.Hostname}
	var err error
	if c.main, err = readMain(in.Release, in.Hostname, in.Main); err != nil {
		return nil, err
	}
	if c.master, err = readMaster(in.Master); err != nil {
		return nil, err
	}
	c.unused = c.main.unused
	global := &params{main: c.main}
	c.log.stdout = global.str("maillog_file") != ""
	ts := &tables{release: in.Release, files: in.Files, accounts: in.Account, open: make(map[string]*table)}
	for _, e := range c.master.entries {
		if e.kind != "inet" || e.command != "smtpd" {
			continue
		}
		host, port, err := e.endpoint()
		if err != nil {
			return nil, err
		}
		s := readService(c, e, ts)
		s.host, s.port = host, port
		c.services = append(c.services, s)
	}
	return c, nil
}

func readService(c *Config, e *entry, ts *tables) *service {
	p := &params{main: c.main, over: make(map[string]string, len(e.options)+1)}
	p.over["service_name"] = e.name
	for _, o := range e.options {
		p.over[o.name] = o.value
	}
	s := &service{name: e.name, tables: ts}
	s.program = p.str("syslog_name") + "/smtpd"
	s.myhostname, s.mailName, s.banner = p.str("myhostname"), p.str("mail_name"), p.str("smtpd_banner")
	s.myorigin = strings.TrimSpace(p.str("myorigin"))
	if strings.HasPrefix(s.myorigin, "/") { // a file: Debian's /etc/mailname
		s.myorigin = s.myhostname
	}
	s.inet4, s.inet6 = families(p)
	s.peername, s.delayReject = p.bool("smtpd_peername_lookup"), p.bool("smtpd_delay_reject")
	s.heloRequired, s.clientPort = p.bool("smtpd_helo_required"), p.bool("smtpd_client_port_logging")
	s.xclient = ts.list(p, "smtpd_authorized_xclient_hosts")
	s.xforward = ts.list(p, "smtpd_authorized_xforward_hosts")
	s.mynetworks = ts.list(p, "mynetworks")
	s.exempt = ts.list(p, "smtpd_client_event_limit_exceptions")

	s.client, s.helo, s.sender = restrictions(p, "client"), restrictions(p, "helo"), restrictions(p, "sender")
	s.relay, s.recipient = restrictions(p, "relay"), restrictions(p, "recipient")
	s.data, s.eod = restrictions(p, "data"), restrictions(p, "end_of_data")
	s.classes = make(map[string][]string)
	for _, name := range p.words("smtpd_restriction_classes") {
		s.classes[name] = p.words(name)
	}
	s.relayFirst = p.bool("smtpd_relay_before_recipient_restrictions")
	s.unlistedRecipient, s.unlistedSender = p.bool("smtpd_reject_unlisted_recipient"), p.bool("smtpd_reject_unlisted_sender")

	s.discard = make(map[string]bool)
	for _, w := range p.words("smtpd_discard_ehlo_keywords") {
		s.discard[strings.ToUpper(w)] = true
	}
	s.readTLS(p)
	s.sasl = p.bool("smtpd_sasl_auth_enable")
	s.saslSocket, s.saslLimit = p.str("smtpd_sasl_path"), p.int("smtpd_sasl_response_limit")
	if s.sasl && p.str("smtpd_sasl_type") != "dovecot" {
		s.saslSocket = "" // Cyrus SASL is not there
	}

	s.connections, s.connectionRate = p.int("smtpd_client_connection_count_limit"), p.int("smtpd_client_connection_rate_limit")
	s.messageRate, s.recipientRate = p.int("smtpd_client_message_rate_limit"), p.int("smtpd_client_recipient_rate_limit")
	s.authRate, s.rateUnit = p.int("smtpd_client_auth_rate_limit"), p.duration("anvil_rate_time_unit")
	s.prefix4, s.prefix6 = min(p.int("smtpd_client_ipv4_prefix_length"), 32), min(p.int("smtpd_client_ipv6_prefix_length"), 128)

	s.sizeLimit, s.lineLimit = p.int("message_size_limit"), p.int("line_length_limit")
	s.recipients, s.overshoot = p.int("smtpd_recipient_limit"), p.int("smtpd_recipient_overshoot_limit")
	s.hardErrors, s.softErrors = p.int("smtpd_hard_error_limit"), p.int("smtpd_soft_error_limit")
	s.junkLimit, s.errorSleep = p.int("smtpd_junk_command_limit"), p.duration("smtpd_error_sleep_time")
	s.timeout = p.duration("smtpd_timeout")
	s.forbidPipelining = p.bool("smtpd_forbid_unauth_pipelining")
	s.bareLF = strings.ToLower(p.str("smtpd_forbid_bare_newline"))
	switch s.bareLF {
	case "yes":
		s.bareLF = "normalize"
	case "no", "normalize", "note", "reject":
	default:
		p.die("bad string configuration: smtpd_forbid_bare_newline = %s", s.bareLF)
	}
	for _, w := range p.words("smtpd_forbidden_commands") {
		if strings.Contains(w, ":") {
			s.forbiddenMaps = append(s.forbiddenMaps, ts.get(w))
		} else {
			s.forbidden = append(s.forbidden, w)
		}
	}
	switch v := p.str("smtpd_upstream_proxy_protocol"); v {
	case "":
	case "haproxy":
		s.haproxy, s.haproxyTimeout = true, p.duration("smtpd_upstream_proxy_timeout")
	default:
		p.die("unsupported smtpd_upstream_proxy_protocol value: %s", v)
	}

	s.utf8, s.strictUTF8 = p.bool("smtputf8_enable"), p.bool("strict_smtputf8")
	s.vrfy, s.softBounce, s.strict821 = !p.bool("disable_vrfy_command"), p.bool("soft_bounce"), p.bool("strict_rfc821_envelopes")
	s.percentHack, s.bangPath = p.bool("allow_percent_hack"), p.bool("swap_bangpath")
	s.untrustedRouting, s.addHeaders = p.bool("allow_untrusted_routing"), p.bool("always_add_missing_headers")
	s.tableNames = p.bool("show_user_unknown_table_name")
	s.accessParents = slices.Contains(p.words("parent_domain_matches_subdomains"), "smtpd_access_maps")
	s.rewriteClients, s.delimiters = p.words("local_header_rewrite_clients"), p.str("recipient_delimiter")
	s.policyDefault, s.nullKey = p.str("smtpd_policy_service_default_action"), p.str("smtpd_null_access_lookup_key")
	s.milters, s.milterAction = p.words("smtpd_milters"), p.str("milter_default_action")
	s.codes = codes{
		access: p.int("access_map_reject_code"), accessDefer: p.int("access_map_defer_code"), reject: p.int("reject_code"),
		deferral: p.int("defer_code"), relay: p.int("relay_domains_reject_code"), nonFQDN: p.int("non_fqdn_reject_code"),
		badName: p.int("invalid_hostname_reject_code"), unknownClient: p.int("unknown_client_reject_code"),
		local: p.int("unknown_local_recipient_reject_code"), alias: p.int("unknown_virtual_alias_reject_code"),
		mailbox: p.int("unknown_virtual_mailbox_reject_code"), relayRcpt: p.int("unknown_relay_recipient_reject_code"),
		plaintext: p.int("plaintext_reject_code"), bounce: p.int("multi_recipient_bounce_reject_code"),
	}

	s.mydestination, s.aliasDomains = ts.domains(p, "mydestination"), ts.domains(p, "virtual_alias_domains")
	s.mailboxDomains, s.relayDomains = ts.domains(p, "virtual_mailbox_domains"), ts.domains(p, "relay_domains")
	s.aliasMaps = ts.maps(p.words("virtual_alias_maps"))
	s.canonicalMaps = append(ts.maps(p.words("recipient_canonical_maps")), ts.maps(p.words("canonical_maps"))...)
	s.localMaps, s.hasLocalMaps = ts.maps(p.words("local_recipient_maps")), p.str("local_recipient_maps") != ""
	s.mailboxMaps, s.hasMailboxMaps = ts.maps(p.words("virtual_mailbox_maps")), p.str("virtual_mailbox_maps") != ""
	s.relayMaps, s.hasRelayMaps = ts.maps(p.words("relay_recipient_maps")), p.str("relay_recipient_maps") != ""
	s.senderLogin = ts.maps(p.words("smtpd_sender_login_maps"))
	s.transportMaps = ts.maps(p.words("transport_maps"))
	s.transports = map[int]transport{
		classLocal:   parseTransport(p.str("local_transport")),
		classMailbox: parseTransport(p.str("virtual_transport")),
		classRelay:   parseTransport(p.str("relay_transport")),
		classDefault: parseTransport(p.str("default_transport")),
	}
	s.relayhost, s.luserRelay = p.str("relayhost"), p.str("luser_relay")

	s.openTables(ts)
	if !hasRequired(s, s.relay, 0) && !hasRequired(s, s.recipient, 0) {
		p.die("in parameter smtpd_relay_restrictions or smtpd_recipient_restrictions, specify at least one working instance of: %s or %s",
			strings.Join(required[:len(required)-1], ", "), required[len(required)-1])
	}
	for _, t := range ts.open {
		if t.err != "" {
			for line := range strings.SplitSeq(t.err, "\n") {
				s.errors = append(s.errors, line)
			}
		}
	}
	sort.Strings(s.errors)
	s.fatal = p.fatal
	return s
}

func families(p *params) (v4, v6 bool) {
	for _, w := range p.words("inet_protocols") {
		switch strings.ToLower(w) {
		case "all":
			v4, v6 = true, true
		case "ipv4":
			v4 = true
		case "ipv6":
			v6 = true
		default:
			p.die("unknown inet_protocols value \"%s\" in \"%s\"", w, p.str("inet_protocols"))
		}
	}
	return v4, v6
}

func restrictions(p *params, stage string) []string {
	ws := p.words("smtpd_" + stage + "_restrictions")
	if len(ws) == 0 {
		return nil
	}
	return ws
}

// openTables opens the tables that restriction lists name, as a process does
// when it starts.
func (s *service) openTables(ts *tables) {
	lists := [][]string{s.client, s.helo, s.sender, s.relay, s.recipient, s.data, s.eod}
	for _, l := range s.classes {
		lists = append(lists, l)
	}
	for _, l := range lists {
		for i, w := range l {
			if strings.Contains(w, ":") && (i == 0 || !strings.EqualFold(l[i-1], "check_policy_service")) {
				ts.get(w)
			}
		}
	}
}

// hasRequired says whether a list has what keeps a host from being an open
// relay. What follows warn_if_reject does not count, nor what follows permit.
func hasRequired(s *service, list []string, depth int) bool {
	if depth > 10 {
		return false
	}
	for i := 0; i < len(list); i++ {
		w := strings.ToLower(list[i])
		switch {
		case w == "warn_if_reject":
			i++
		case w == "permit":
			return false
		case slices.Contains(required, w):
			return true
		case s.classes[list[i]] != nil && hasRequired(s, s.classes[list[i]], depth+1):
			return true
		}
	}
	return false
}

func (s *service) readTLS(p *params) {
	level := strings.ToLower(p.str("smtpd_tls_security_level"))
	switch level {
	case "":
		s.tlsRequired = p.bool("smtpd_enforce_tls")
		s.tlsOffered = s.tlsRequired || p.bool("smtpd_use_tls")
	case "none":
	case "may":
		s.tlsOffered = true
	case "encrypt":
		s.tlsOffered, s.tlsRequired = true, true
	default:
		p.die("unsupported TLS level \"%s\"", level)
	}
	if s.wrapper = p.bool("smtpd_tls_wrappermode"); s.wrapper {
		s.tlsOffered = true
	}
	s.authOnly = p.bool("smtpd_tls_auth_only") || s.tlsRequired
	s.tlsLog = p.int("smtpd_tls_loglevel")
	s.tlsHeader = p.bool("smtpd_tls_received_header")
	s.authHeader = p.bool("smtpd_sasl_authenticated_header")
	s.hideSession = p.bool("smtpd_hide_client_session")
}

// listening lists where a source with these addresses listens.
func (c *Config) listening(addrs []netip.Addr) []Port {
	p := &params{main: c.main}
	v4, v6 := families(p)
	var ps []Port
	for _, s := range c.services {
		for _, a := range addrs {
			switch {
			case a.Is4() && !v4 || a.Is6() && !v6:
			case s.host.IsValid() && s.host != a && !s.host.IsUnspecified():
			case !s.host.IsValid() && !interfaces(p, a):
			default:
				ps = append(ps, Port{netip.AddrPortFrom(a, s.port), s})
			}
		}
	}
	return ps
}

func interfaces(p *params, a netip.Addr) bool {
	for _, w := range p.words("inet_interfaces") {
		switch w = strings.ToLower(w); w {
		case "all":
			return true
		case "loopback-only", "localhost":
			if a.IsLoopback() {
				return true
			}
		case strings.ToLower(p.str("myhostname")):
			return !a.IsLoopback()
		default:
			if b, err := netip.ParseAddr(strings.Trim(w, "[]")); err == nil && a == b {
				return true
			}
		}
	}
	return false
}

// Effective prints main.cf as postconf -n does.
func (c *Config) Effective() string {
	names := make([]string, 0, len(c.main.values))
	for n := range c.main.values {
		names = append(names, n)
	}
	slices.Sort(names)
	var b strings.Builder
	for _, n := range names {
		fmt.Fprintf(&b, "%s = %s\n", n, c.main.values[n].value)
	}
	return b.String()
}

// Services prints master.cf as postconf -M does.
func (c *Config) Services() string {
	var b strings.Builder
	for _, e := range c.master.entries {
		b.WriteString(e.String())
		b.WriteByte('\n')
	}
	return b.String()
}

// Overrides prints the parameters that master.cf sets, as postconf -P does.
func (c *Config) Overrides() string {
	var lines []string
	for _, e := range c.master.entries {
		for _, o := range e.options {
			lines = append(lines, fmt.Sprintf("%s/%s/%s = %s\n", e.name, e.kind, o.name, o.value))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "")
}
