package postfix

import (
	_ "embed"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A ConfigError says what Postfix would say of a configuration, and where.
type ConfigError struct {
	File string
	Line int
	Why  string
}

func (e *ConfigError) Error() string {
	return fmt.Sprintf("postconf: fatal: %s, line %d: %s", e.File, e.Line, e.Why)
}

// A File is one file of a configuration.
type File struct {
	Path string // as it is named to the operator
	Text string
}

//go:embed names-3.7.txt
var names37 string

//go:embed names-3.10.txt
var names310 string

// Debian's own main.cf, without what is not interpreted. The host name is the
// machine's.
const (
	debian37 = `
smtpd_banner = $myhostname ESMTP $mail_name (Debian/GNU)
append_dot_mydomain = no
compatibility_level = 3.6
smtpd_tls_security_level = may
smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated defer_unauth_destination
alias_maps = hash:/etc/aliases
mydestination = $myhostname, localdomain, localhost, localhost.localdomain, localhost
relayhost =
mynetworks = 127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128
mailbox_size_limit = 0
recipient_delimiter = +
inet_interfaces = all
inet_protocols = all
`
	debian310 = `
compatibility_level = 3.9
myorigin = $myhostname
smtpd_banner = $myhostname ESMTP $mail_name (Debian)
inet_protocols = all
mynetworks_style = host
mynetworks = 127.0.0.0/8 [::ffff:127.0.0.0]/104 [::1]/128
mydestination = $myhostname, localdomain, localhost, localhost.localdomain, localhost
mailbox_size_limit = 0
alias_maps = hash:/etc/aliases
recipient_delimiter = +
relayhost =
smtpd_tls_security_level = may
smtpd_relay_restrictions = permit_mynetworks permit_sasl_authenticated defer_unauth_destination
inet_interfaces = all
`
)

// builtIn are the built-in defaults of what is interpreted (postconf -d).
// Where the releases differ, 3.10's stands in builtIn310.
var builtIn = map[string]string{
	"mail_name":                                 "Postfix",
	"myorigin":                                  "$myhostname",
	"mydestination":                             "$myhostname, localhost.$mydomain, localhost",
	"virtual_alias_domains":                     "$virtual_alias_maps",
	"virtual_alias_maps":                        "$virtual_maps",
	"virtual_transport":                         "virtual",
	"local_transport":                           "local:$myhostname",
	"local_recipient_maps":                      "proxy:unix:passwd.byname $alias_maps",
	"relay_transport":                           "relay",
	"default_transport":                         "smtp",
	"inet_interfaces":                           "all",
	"inet_protocols":                            "all",
	"message_size_limit":                        "10240000",
	"line_length_limit":                         "2048",
	"smtputf8_enable":                           "yes",
	"smtpd_banner":                              "$myhostname ESMTP $mail_name",
	"smtpd_peername_lookup":                     "yes",
	"smtpd_delay_reject":                        "yes",
	"smtpd_helo_required":                       "no",
	"smtpd_relay_restrictions":                  "permit_mynetworks, permit_sasl_authenticated, defer_unauth_destination",
	"smtpd_relay_before_recipient_restrictions": "yes",
	"smtpd_reject_unlisted_recipient":           "yes",
	"smtpd_reject_unlisted_sender":              "no",
	"smtpd_sasl_auth_enable":                    "no",
	"smtpd_sasl_type":                           "cyrus",
	"smtpd_sasl_path":                           "smtpd",
	"smtpd_sasl_authenticated_header":           "no",
	"smtpd_sasl_response_limit":                 "12288",
	"smtpd_tls_wrappermode":                     "no",
	"smtpd_tls_auth_only":                       "no",
	"smtpd_tls_received_header":                 "no",
	"smtpd_tls_loglevel":                        "0",
	"smtpd_use_tls":                             "no",
	"smtpd_enforce_tls":                         "no",
	"smtpd_client_port_logging":                 "no",
	"smtpd_client_connection_count_limit":       "50",
	"smtpd_client_connection_rate_limit":        "0",
	"smtpd_client_message_rate_limit":           "0",
	"smtpd_client_recipient_rate_limit":         "0",
	"smtpd_client_auth_rate_limit":              "0",
	"smtpd_client_event_limit_exceptions":       "${smtpd_client_connection_limit_exceptions:$mynetworks}",
	"anvil_rate_time_unit":                      "60s",
	"smtpd_recipient_limit":                     "1000",
	"smtpd_recipient_overshoot_limit":           "1000",
	"smtpd_hard_error_limit":                    "20",
	"smtpd_soft_error_limit":                    "10",
	"smtpd_junk_command_limit":                  "100",
	"smtpd_error_sleep_time":                    "1s",
	"smtpd_timeout":                             "300s",
	"smtpd_starttls_timeout":                    "300s",
	"smtpd_forbidden_commands":                  "CONNECT GET POST regexp:{{/^[^A-Z]/ Bogus}}",
	"smtpd_forbid_unauth_pipelining":            "no",
	"smtpd_forbid_bare_newline":                 "no",
	"smtpd_upstream_proxy_timeout":              "5s",
	"disable_vrfy_command":                      "no",
	"soft_bounce":                               "no",
	"strict_rfc821_envelopes":                   "no",
	"strict_smtputf8":                           "no",
	"allow_percent_hack":                        "yes",
	"swap_bangpath":                             "yes",
	"allow_untrusted_routing":                   "no",
	"append_dot_mydomain":                       "no",
	"always_add_missing_headers":                "no",
	"local_header_rewrite_clients":              "permit_inet_interfaces",
	"show_user_unknown_table_name":              "yes",
	"smtpd_null_access_lookup_key":              "<>",
	"parent_domain_matches_subdomains":          "debug_peer_list,fast_flush_domains,mynetworks,permit_mx_backup_networks,qmqpd_authorized_clients,relay_domains,smtpd_access_maps",
	"syslog_name":                               "postfix",
	"access_map_reject_code":                    "554",
	"access_map_defer_code":                     "450",
	"reject_code":                               "554",
	"defer_code":                                "450",
	"relay_domains_reject_code":                 "554",
	"non_fqdn_reject_code":                      "504",
	"invalid_hostname_reject_code":              "501",
	"unknown_client_reject_code":                "450",
	"unknown_local_recipient_reject_code":       "550",
	"unknown_virtual_alias_reject_code":         "550",
	"unknown_virtual_mailbox_reject_code":       "550",
	"unknown_relay_recipient_reject_code":       "550",
	"plaintext_reject_code":                     "450",
	"multi_recipient_bounce_reject_code":        "550",
	"smtpd_policy_service_default_action":       "451 4.3.5 Server configuration problem",
	"smtpd_milters":                             "",
	"milter_default_action":                     "tempfail",
	"smtpd_client_ipv4_prefix_length":           "32",
	"smtpd_client_ipv6_prefix_length":           "84",
	"smtpd_hide_client_session":                 "no",
}

var builtIn310 = map[string]string{
	"smtpd_forbid_unauth_pipelining": "yes",
	"smtpd_forbid_bare_newline":      "normalize",
	"milter_default_action":          "shutdown",
}

// Main is main.cf as it stands after every layer: names and values, unexpanded.
type mainCF struct {
	release string
	host    string // fully qualified
	values  map[string]place
	unused  []string // "name=value" of parameters that nothing reads
}

// place is a value and where it was set.
type place struct {
	value string
	file  string
	line  int
}

// logical hands out the logical lines of a Postfix configuration: a line that
// begins with white space continues the one before, and lines that are empty
// or begin with # are left out.
func logical(text string, each func(line int, s string) error) error {
	var cur strings.Builder
	start := 0
	flush := func() error {
		s := strings.TrimSpace(cur.String())
		cur.Reset()
		if s == "" {
			return nil
		}
		return each(start, s)
	}
	n := 0
	for raw := range strings.SplitSeq(text, "\n") {
		n++
		trimmed := strings.TrimSpace(raw)
		if trimmed == "" || trimmed[0] == '#' {
			continue
		}
		if (raw[0] == ' ' || raw[0] == '\t') && cur.Len() > 0 {
			cur.WriteByte(' ')
			cur.WriteString(trimmed)
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		cur.WriteString(trimmed)
		start = n
	}
	return flush()
}

// readMain reads the files in order, later values winning.
func readMain(release, host string, files []File) (*mainCF, error) {
	m := &mainCF{release: release, host: host, values: make(map[string]place)}
	shipped, names := debian37, names37
	if release == Trixie {
		shipped, names = debian310, names310
	}
	read := func(f File) error {
		return logical(f.Text, func(n int, s string) error {
			name, value, ok := strings.Cut(s, "=")
			name = strings.TrimSpace(name)
			if !ok {
				return &ConfigError{f.Path, n, fmt.Sprintf("missing '=' after attribute name: %q", name)}
			}
			if name == "" {
				return &ConfigError{f.Path, n, fmt.Sprintf("missing attribute name: %q", clip(s, 60))}
			}
			m.values[name] = place{strings.TrimSpace(value), f.Path, n}
			return nil
		})
	}
	if err := read(File{"/etc/postfix/main.cf", shipped}); err != nil {
		return nil, err
	}
	for _, f := range files {
		if err := read(f); err != nil {
			return nil, err
		}
	}
	known := make(map[string]bool, 1024)
	for n := range strings.FieldsSeq(names) {
		known[n] = true
	}
	var text strings.Builder
	for _, p := range m.values {
		text.WriteString(p.value)
		text.WriteByte(' ')
	}
	for n, p := range m.values {
		if !known[n] && !perTransport(n) && !strings.Contains(text.String(), n) {
			m.unused = append(m.unused, n+"="+p.value)
		}
	}
	slices.Sort(m.unused)
	return m, nil
}

// perTransport says whether a name has a form that every service of master.cf
// gives a meaning to.
func perTransport(name string) bool {
	for _, suffix := range []string{
		"_destination_concurrency_limit", "_destination_recipient_limit", "_initial_destination_concurrency",
		"_destination_concurrency_positive_feedback", "_destination_concurrency_negative_feedback",
		"_destination_concurrency_failed_cohort_limit", "_destination_rate_delay", "_transport_rate_delay",
		"_delivery_slot_cost", "_delivery_slot_loan", "_delivery_slot_discount", "_minimum_delivery_slots",
		"_extra_recipient_limit", "_recipient_limit", "_recipient_refill_limit", "_recipient_refill_delay",
		"_time_limit", "_service_name",
	} {
		if strings.HasSuffix(name, suffix) {
			return true
		}
	}
	return false
}

// params are the parameters as one service of master.cf sees them.
type params struct {
	main  *mainCF
	over  map[string]string // -o
	fatal string            // the first thing that ends the process
}

// raw is a parameter's value, unexpanded.
func (p *params) raw(name string) (string, bool) {
	if v, ok := p.over[name]; ok {
		return v, true
	}
	if v, ok := p.main.values[name]; ok {
		return v.value, true
	}
	if p.main.release == Trixie {
		if v, ok := builtIn310[name]; ok {
			return v, true
		}
	}
	if v, ok := builtIn[name]; ok {
		return v, true
	}
	switch name {
	case "myhostname":
		return p.main.host, true
	case "mydomain":
		_, domain, _ := strings.Cut(p.str("myhostname"), ".")
		if domain == "" {
			domain = "localdomain"
		}
		return domain, true
	}
	return "", false
}

// str is a parameter's value, expanded.
func (p *params) str(name string) string {
	v, _ := p.raw(name)
	return p.expand(v, 0)
}

// maxExpand bounds how deep values may name each other.
const maxExpand = 32

// expand replaces $name, ${name}, $(name), ${name?text}, ${name:text}, both
// with { } around the text, and ${{a} op {b}?{x}:{y}}.
func (p *params) expand(v string, depth int) string {
	if strings.IndexByte(v, '$') < 0 {
		return v
	}
	if depth > maxExpand {
		p.die("unreasonable macro call nesting: \"%s\"", clip(v, 60))
		return ""
	}
	var b strings.Builder
	for i := 0; i < len(v); i++ {
		if v[i] != '$' || i+1 == len(v) {
			b.WriteByte(v[i])
			continue
		}
		i++
		switch c := v[i]; {
		case c == '$':
			b.WriteByte('$')
		case c == '{' || c == '(':
			n := balanced(v[i:], c)
			if n < 0 {
				p.die("truncated macro reference: \"%s\"", clip(v, 60))
				return ""
			}
			b.WriteString(p.macro(v[i+1:i+n-1], depth))
			i += n - 1
		case isName(c):
			j := i
			for j < len(v) && isName(v[j]) {
				j++
			}
			s, _ := p.raw(v[i:j])
			b.WriteString(p.expand(s, depth+1))
			i = j - 1
		default:
			b.WriteByte('$')
			i--
		}
	}
	return b.String()
}

func isName(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// balanced is the length of the group that s begins with, or -1.
func balanced(s string, open byte) int {
	shut := byte('}')
	if open == '(' {
		shut = ')'
	}
	depth := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case open:
			depth++
		case shut:
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

// macro is what ${...} stands for.
func (p *params) macro(in string, depth int) string {
	in = strings.TrimSpace(in)
	if strings.HasPrefix(in, "{") {
		return p.comparison(in, depth)
	}
	i := 0
	for i < len(in) && isName(in[i]) {
		i++
	}
	name, rest := in[:i], strings.TrimSpace(in[i:])
	v, _ := p.raw(name)
	v = p.expand(v, depth+1)
	switch {
	case rest == "":
		return v
	case rest[0] == '?':
		yes, no := alternatives(rest[1:])
		if v != "" {
			return p.expand(yes, depth+1)
		}
		return p.expand(no, depth+1)
	case rest[0] == ':':
		if v != "" {
			return v
		}
		yes, _ := alternatives(rest[1:])
		return p.expand(yes, depth+1)
	}
	p.die("bad macro reference: \"%s\"", clip(in, 60))
	return ""
}

// alternatives reads "{x}:{y}", "{x}" or "x".
func alternatives(s string) (yes, no string) {
	t := strings.TrimSpace(s)
	n := -1
	if strings.HasPrefix(t, "{") {
		n = balanced(t, '{')
	}
	if n < 0 {
		return s, ""
	}
	yes = strings.TrimSpace(t[1 : n-1])
	rest := strings.TrimSpace(t[n:])
	if after, ok := strings.CutPrefix(rest, ":"); ok {
		no, _ = alternatives(after)
		no = strings.TrimSpace(no)
	}
	return yes, no
}

// comparison is what ${{a} op {b}?{x}:{y}} stands for.
func (p *params) comparison(in string, depth int) string {
	n := balanced(in, '{')
	if n < 0 {
		p.die("bad macro reference: \"%s\"", clip(in, 60))
		return ""
	}
	left, rest := strings.TrimSpace(p.expand(in[1:n-1], depth+1)), strings.TrimSpace(in[n:])
	i := strings.IndexByte(rest, '{')
	if i < 0 {
		p.die("bad macro reference: \"%s\"", clip(in, 60))
		return ""
	}
	op := strings.TrimSpace(rest[:i])
	if n = balanced(rest[i:], '{'); n < 0 {
		p.die("bad macro reference: \"%s\"", clip(in, 60))
		return ""
	}
	right := strings.TrimSpace(p.expand(rest[i+1:i+n-1], depth+1))
	after, ok := strings.CutPrefix(strings.TrimSpace(rest[i+n:]), "?")
	yes, no := "bool", ""
	if ok {
		yes, no = alternatives(after)
	}
	c := compare(left, right, strings.HasSuffix(op, "level"))
	holds := false
	switch strings.TrimSuffix(op, "level") {
	case "==":
		holds = c == 0
	case "!=":
		holds = c != 0
	case "<":
		holds = c < 0
	case "<=":
		holds = c <= 0
	case ">":
		holds = c > 0
	case ">=":
		holds = c >= 0
	default:
		p.die("unknown operator in macro reference: \"%s\"", clip(in, 60))
	}
	if holds {
		return p.expand(yes, depth+1)
	}
	return p.expand(no, depth+1)
}

// compare compares numbers as numbers, levels ("3.10") part by part, and
// anything else as text.
func compare(a, b string, level bool) int {
	if level {
		as, bs := strings.Split(a, "."), strings.Split(b, ".")
		for i := range max(len(as), len(bs)) {
			x, y := 0, 0
			if i < len(as) {
				x, _ = strconv.Atoi(as[i])
			}
			if i < len(bs) {
				y, _ = strconv.Atoi(bs[i])
			}
			if x != y {
				return x - y
			}
		}
		return 0
	}
	x, err1 := strconv.Atoi(a)
	y, err2 := strconv.Atoi(b)
	if err1 == nil && err2 == nil {
		return x - y
	}
	return strings.Compare(a, b)
}

func (p *params) die(format string, args ...any) {
	if p.fatal == "" {
		p.fatal = fmt.Sprintf(format, args...)
	}
}

func (p *params) bool(name string) bool {
	switch v := p.str(name); {
	case strings.EqualFold(v, "yes"):
		return true
	case strings.EqualFold(v, "no"):
		return false
	default:
		p.die("bad boolean configuration: %s = %s", name, v)
		return false
	}
}

func (p *params) int(name string) int {
	v := p.str(name)
	n, err := strconv.ParseInt(v, 10, 63)
	if err != nil {
		p.die("bad numerical configuration: %s = %s", name, v)
	} else if n < 0 {
		p.die("invalid %s parameter value %d < 0", name, n)
	}
	return int(n)
}

func (p *params) duration(name string) time.Duration {
	v := p.str(name)
	unit := time.Second
	number := v
	if v != "" {
		switch v[len(v)-1] {
		case 's':
			number = v[:len(v)-1]
		case 'm':
			unit, number = time.Minute, v[:len(v)-1]
		case 'h':
			unit, number = time.Hour, v[:len(v)-1]
		case 'd':
			unit, number = 24*time.Hour, v[:len(v)-1]
		}
	}
	n, err := strconv.ParseUint(number, 10, 31)
	if err != nil {
		p.die("parameter %s: bad time value or unit: %s", name, v)
	}
	return time.Duration(n) * unit
}

// words cuts a value at white space and commas, but not inside { }.
func words(v string) []string {
	var out []string
	depth, start := 0, -1
	for i := 0; i <= len(v); i++ {
		sep := i == len(v)
		if !sep {
			switch c := v[i]; {
			case c == '{':
				depth++
			case c == '}':
				depth--
			case depth <= 0 && (c == ',' || isSpace(c)):
				sep = true
			}
		}
		switch {
		case sep && start >= 0:
			out = append(out, v[start:i])
			start = -1
		case !sep && start < 0:
			start = i
		}
	}
	return out
}

func (p *params) words(name string) []string { return words(p.str(name)) }
