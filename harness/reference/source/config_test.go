package source_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/reference/source"
)

// dovecotConf and the others make a layer of one file.
func dovecotConf(text string) source.Layer { return layer("dovecot/90-test.conf", text) }
func mainCF(text string) source.Layer      { return layer("postfix/main.cf", text) }
func masterCF(text string) source.Layer    { return layer("postfix/master.cf", text) }

func TestConfigurationIsRefusedInTheServersWords(t *testing.T) {
	for _, c := range []struct {
		release string
		layer   source.Layer
		want    string
	}{
		{source.Bookworm, dovecotConf("\nlogin_trusted_netwoks = 1.2.3.4\n"), "doveconf: Fatal: Error in configuration file /etc/mailproof/test/dovecot/90-test.conf line 2: Unknown setting: login_trusted_netwoks"},
		{source.Trixie, dovecotConf("disable_plaintext_auth = no\n"), "line 1: Unknown setting: disable_plaintext_auth"},
		{source.Bookworm, dovecotConf("auth_allow_cleartext = yes\n"), "line 1: Unknown setting: auth_allow_cleartext"},
		{source.Trixie, dovecotConf("auth_verbose = maybe\n"), "line 1: auth_verbose: Invalid boolean value: maybe (use yes or no)"},
		{source.Trixie, dovecotConf("service imap-login {\n"), "line 2: Missing '}'"},
		{source.Trixie, dovecotConf("}\n"), "line 1: Unexpected '}'"},
		{source.Trixie, dovecotConf("listen\n"), "line 1: Expecting '='"},
		{source.Trixie, dovecotConf("service imap-login {\n inet_listener imap {\n  port = x\n }\n}\n"), "line 3: port: Invalid port number: x"},
		{source.Trixie, mainCF("# comment\nmyhostname\n"), "postconf: fatal: /etc/mailproof/test/postfix/main.cf, line 2: missing '=' after attribute name: \"myhostname\""},
		{source.Trixie, masterCF("submission inet n - y - smtpd\n"), "line 1: bad field count"},
		{source.Trixie, masterCF("submission tcp n - y - - smtpd x\n"), `line 1: field "transport type": bad value: "tcp"`},
		{source.Trixie, masterCF("frob/inet/x=y\n"), "no service frob/inet to edit"},
		{source.Trixie, masterCF("frobport inet n - y - - smtpd\n"), "Servname not supported"},
		{source.Trixie, layer("etc/hosts", "203.0.113.10\n"), "etc/hosts:1: "},
	} {
		_, err := source.New(configOf(t, labOptions{release: c.release, layers: []source.Layer{c.layer}}))
		assert.ErrorContains(t, err, c.want)
	}
	_, err := source.New(source.Config{Release: "buster"})
	assert.ErrorContains(t, err, `no release "buster" of a reference source: there are bookworm and trixie`)
}

func TestMisspeltParametersOfPostfixAreLogged(t *testing.T) {
	for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
		l := startLab(t, labOptions{release: release, layers: []source.Layer{mainCF("smtpd_autorised_xclient_hosts = 203.0.113.10\n")}})
		l.log.await(t, "/usr/sbin/postconf: warning: /etc/postfix/main.cf: unused parameter: smtpd_autorised_xclient_hosts=203.0.113.10")
	}
}

func TestServicesListenWhereTheyAreTold(t *testing.T) {
	refused := func(l *lab, endpoint, family string) bool {
		h, _ := fixtures.HostOf("client")
		to := netip.AddrPortFrom(fixtures.NetworkNamed(h.Network).Source(0).Of(family), ports[endpoint])
		_, err := l.net.Dial(context.Background(), h.Of(family), to)
		return errors.Is(err, syscall.ECONNREFUSED)
	}
	l := startLab(t, labOptions{layers: []source.Layer{
		layer("dovecot/90-test.conf", "protocols = imap lmtp sieve\nlisten = *\nservice imap-login {\n  inet_listener imap {\n    port = 0\n  }\n}\n",
			"postfix/master.cf", "submission/inet = -\nsmtp/inet/smtpd_banner=$myhostname changed\n", "postfix/main.cf", "inet_protocols = ipv4\n"),
	}})
	for endpoint, want := range map[string]bool{"imap": true, "imaps": false, "pop3": true, "pop3s": true, "sieve": false, "smtp": false, "submission": true, "submissions": false} {
		assert.Equal(t, refused(l, endpoint, "ip4"), want, endpoint)
		assert.Equal(t, refused(l, endpoint, "ip6"), true, endpoint)
	}
	assert.Equal(t, l.open("client", "smtp").line(), "220 source0.example.test changed")
}

// TestRestrictionsOfPostfix holds the restriction lists to what the real
// servers answered (specification, section 8, and trials with the packages).
func TestRestrictionsOfPostfix(t *testing.T) {
	for _, c := range []struct {
		name, main, helo, from, to string
		want                       string
		logs                       string
	}{
		{"relay denied", "", "h.test", "a@b.test", "x@remote.example", "554 5.7.1 <x@remote.example>: Relay access denied", ""},
		{"relay deferred", "smtpd_relay_restrictions = permit_mynetworks, defer_unauth_destination\n", "h.test", "a@b.test", "x@remote.example", "454 4.7.1 <x@remote.example>: Relay access denied", ""},
		{"open relay", "mynetworks = 0.0.0.0/0\n", "h.test", "a@b.test", "x@remote.example", "550 5.1.1 <x@remote.example>: Recipient address rejected: outbound disabled", ""},
		{"unknown", "", "h.test", "a@b.test", "nobody@example.test", "550 5.1.1 <nobody@example.test>: Recipient address rejected: User unknown in virtual mailbox table", ""},
		{"unknown, listed or not", "smtpd_reject_unlisted_recipient = no\n", "h.test", "a@b.test", "nobody@example.test", "250 2.1.5 Ok", ""},
		{"unknown table unnamed", "show_user_unknown_table_name = no\n", "h.test", "a@b.test", "nobody@example.test", "550 5.1.1 <nobody@example.test>: Recipient address rejected: User unknown", ""},
		{"alias", "virtual_alias_maps = inline:{info@example.test=" + alice + "}\n", "h.test", "a@b.test", "info@example.test", "250 2.1.5 Ok", ""},
		{"catch-all", "virtual_alias_maps = inline:{@example.test=" + alice + "}\n", "h.test", "a@b.test", "nobody@example.test", "250 2.1.5 Ok", ""},
		{"helo without dot", "smtpd_helo_restrictions = reject_non_fqdn_helo_hostname\n", "nodot", "a@b.test", alice, "504 5.5.2 <nodot>: Helo command rejected: need fully-qualified hostname", "helo=<nodot>"},
		{"helo literal", "smtpd_helo_restrictions = reject_non_fqdn_helo_hostname, reject_invalid_helo_hostname\n", "[192.168.1.5]", "a@b.test", alice, "250 2.1.5 Ok", ""},
		{"helo literal of none", "smtpd_helo_restrictions = reject_invalid_helo_hostname\n", "[300.1.1.1]", "a@b.test", alice, "501 5.5.2 <[300.1.1.1]>: Helo command rejected: invalid ip address", ""},
		{"helo invalid", "smtpd_helo_restrictions = reject_invalid_helo_hostname\n", "bad_host!x", "a@b.test", alice, "501 5.5.2 <bad_host!x>: Helo command rejected: Invalid name", ""},
		{"helo unknown", "smtpd_helo_restrictions = reject_unknown_helo_hostname\n", "h.test", "a@b.test", alice, "450 4.7.1 <h.test>: Helo command rejected: Host not found", ""},
		{"no name", "smtpd_client_restrictions = reject_unknown_client_hostname\n", "h.test", "a@b.test", alice, "450 4.7.25 Client host rejected: cannot find your hostname, [198.51.100.138]", ""},
		{"no reverse name", "smtpd_client_restrictions = reject_unknown_reverse_client_hostname\n", "h.test", "a@b.test", alice, "450 4.7.1 Client host rejected: cannot find your reverse hostname, [198.51.100.138]", ""},
		{"sender", "smtpd_sender_restrictions = reject_non_fqdn_sender\n", "h.test", "nodomain", alice, "504 5.5.2 <nodomain>: Sender address rejected: need fully-qualified address", ""},
		{"sender's domain", "smtpd_sender_restrictions = reject_unknown_sender_domain\n", "h.test", "a@b.test", alice, "450 4.1.8 <a@b.test>: Sender address rejected: Domain not found", ""},
		{"recipient", "smtpd_recipient_restrictions = reject_non_fqdn_recipient\n", "h.test", "a@b.test", "alice", "504 5.5.2 <alice>: Recipient address rejected: need fully-qualified address", ""},
		{"client table", "smtpd_client_restrictions = check_client_access inline:{198.51.100=REJECT}\n", "h.test", "a@b.test", alice, "554 5.7.1 <unknown[198.51.100.138]:PORT>: Client host rejected: Access denied", ""},
		{"client table, text", "smtpd_client_restrictions = check_client_access inline:{{198.51.100.138 = 450 4.7.0 not now}}\n", "h.test", "a@b.test", alice, "450 4.7.0 <unknown[198.51.100.138]:PORT>: Client host rejected: not now", ""},
		{"client networks", "smtpd_client_restrictions = check_client_access cidr:{{198.51.100.0/24 DUNNO}, {0.0.0.0/0 REJECT}}\n", "h.test", "a@b.test", alice, "250 2.1.5 Ok", ""},
		{"greylisting", "smtpd_recipient_restrictions = check_recipient_access inline:{{example.test = DEFER_IF_PERMIT 4.2.0 Greylisted}}\n", "h.test", "a@b.test", alice, "450 4.2.0 <" + alice + ">: Recipient address rejected: Greylisted", ""},
		{"only a warning", "smtpd_helo_restrictions = warn_if_reject, reject_non_fqdn_helo_hostname\n", "nodot", "a@b.test", alice, "250 2.1.5 Ok", "NOQUEUE: reject_warning: RCPT from unknown[198.51.100.138]:"},
		{"deferred reject", "smtpd_sender_restrictions = check_sender_access inline:{{b.test = DEFER_IF_REJECT later}}, reject\n", "h.test", "a@b.test", alice, "450 4.7.1 <a@b.test>: Sender address rejected: later", ""},
		{"a class", "smtpd_restriction_classes = strict\nstrict = reject_non_fqdn_sender, reject\nsmtpd_sender_restrictions = check_sender_access inline:{b.test=strict}\n", "h.test", "a@b.test", alice, "554 5.7.1 <a@b.test>: Sender address rejected: Access denied", ""},
		{"a missing table", "virtual_mailbox_maps = texthash:/etc/nope\n", "h.test", "a@b.test", alice, "451 4.3.0 <" + alice + ">: Temporary lookup failure", `warning: texthash:/etc/nope lookup error for "` + alice + `"`},
		{"a missing access table", "smtpd_client_restrictions = check_client_access texthash:/etc/nope\n", "h.test", "a@b.test", alice, "451 4.3.5 <unknown[198.51.100.138]:PORT>: Client host rejected: Server configuration error", "error: open database /etc/nope: No such file or directory"},
		{"an unknown restriction", "smtpd_helo_restrictions = reject_nonsense\n", "h.test", "a@b.test", alice, "451 4.3.5 Server configuration error", `warning: unknown smtpd restriction: "reject_nonsense"`},
		{"a network with host bits", "mynetworks = 10.0.0.1/8\n", "h.test", "a@b.test", alice, "451 4.3.0 <" + alice + ">: Temporary lookup failure", `warning: mynetworks: non-null host address bits in "10.0.0.1/8", perhaps you should use "10.0.0.0/8" instead`},
		{"a policy service", "smtpd_recipient_restrictions = check_policy_service unix:private/policy\n", "h.test", "a@b.test", alice, "451 4.3.5 <" + alice + ">: Recipient address rejected: Server configuration problem", ""},
		{"helo required", "smtpd_helo_required = yes\n", "", "a@b.test", alice, "503 5.5.1 Error: need MAIL command", ""},
		{"too many recipients", "smtpd_recipient_limit = 0\nsmtpd_client_recipient_rate_limit = 1\nsmtpd_client_event_limit_exceptions =\n", "h.test", "a@b.test", alice, "250 2.1.5 Ok", ""},
		{"percent", "", "h.test", "a@b.test", "x%remote.example@localhost", "554 5.7.1 <x%remote.example@localhost>: Relay access denied", ""},
		{"bang", "", "h.test", "a@b.test", "remote.example!x@example.test", "554 5.7.1 <remote.example!x@example.test>: Relay access denied", ""},
		{"relay domain", "relay_domains = remote.example\nrelay_transport = smtp\n", "h.test", "a@b.test", "x@remote.example", "250 2.1.5 Ok", ""},
		{"relay recipient", "relay_domains = remote.example\nrelay_transport = smtp\nrelay_recipient_maps = inline:{y@remote.example=x}\n", "h.test", "a@b.test", "x@remote.example", "550 5.1.1 <x@remote.example>: Recipient address rejected: User unknown in relay recipient table", ""},
		{"mydestination", "", "h.test", "a@b.test", "frob@localhost", "550 5.1.1 <frob@localhost>: Recipient address rejected: User unknown in local recipient table", ""},
		{"system user", "", "h.test", "a@b.test", "root@localhost", "250 2.1.5 Ok", ""},
		{"soft bounce", "soft_bounce = yes\n", "h.test", "a@b.test", "x@remote.example", "454 4.7.1 <x@remote.example>: Relay access denied", ""},
		{"postmaster", "", "h.test", "a@b.test", "postmaster", "250 2.1.5 Ok", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
				l := startLab(t, labOptions{release: release, layers: []source.Layer{mainCF(c.main)}})
				s := l.open("stranger", "smtp")
				s.reply()
				if c.helo != "" {
					s.ask("EHLO " + c.helo)
				}
				s.ask("MAIL FROM:<" + c.from + ">")
				_, port, _ := strings.Cut(s.nc.LocalAddr().String(), ":")
				assert.Equal(t, strings.ReplaceAll(s.ask("RCPT TO:<"+c.to+">"), port, "PORT"), c.want, release)
				if c.logs != "" {
					l.log.await(t, c.logs)
				}
			}
		})
	}
}

func TestRejectionsAtOnce(t *testing.T) {
	l := startLab(t, labOptions{release: source.Bookworm, layers: []source.Layer{mainCF("smtpd_delay_reject = no\nsmtpd_client_restrictions = check_client_access inline:{198.51.100.138=REJECT}\nsmtpd_helo_restrictions = reject_non_fqdn_helo_hostname\n")}})
	s := l.open("stranger", "smtp")
	assert.Assert(t, strings.HasPrefix(s.reply(), "554 5.7.1 <unknown[198.51.100.138]:"))
	assert.Assert(t, strings.HasPrefix(s.ask("EHLO x.test"), "503 5.7.0 Error: access denied for unknown[198.51.100.138]:"))
	assert.Equal(t, s.ask("QUIT"), "221 2.0.0 Bye")
	s = l.open("client", "smtp")
	s.reply()
	assert.Equal(t, s.ask("EHLO nodot"), "504 5.5.2 <nodot>: Helo command rejected: need fully-qualified hostname")
}

func TestListsThatCannotBeRead(t *testing.T) {
	l := startLab(t, labOptions{release: source.Trixie, layers: []source.Layer{masterCF("smtp/inet/smtpd_authorized_xclient_hosts=2001:db8:113::10\n")}})
	s := l.open("client", "smtp")
	s.reply()
	assert.Equal(t, s.ask("EHLO x.test"), "421 4.3.0 source0.example.test Server local data error")
	assert.Equal(t, s.line(), "<closed>")
	for _, text := range []string{
		"warning: unsupported dictionary type: 2001. Is the postfix-2001 package installed?",
		"error: unsupported dictionary type: 2001",
		"warning: 2001:db8:113::10 is unavailable. unsupported dictionary type: 2001",
		"warning: smtpd_authorized_xclient_hosts: 2001:db8:113::10: table lookup problem",
		"warning: don't know if EHLO feature XCLIENT should be announced to unknown[198.51.100.10]:",
		"NOQUEUE: reject: EHLO from unknown[198.51.100.10]:",
		"ehlo=0/1 commands=0/1",
	} {
		l.log.await(t, text)
	}
}

func TestProcessesThatCannotStart(t *testing.T) {
	for main, want := range map[string]string{
		"smtpd_relay_restrictions = permit_mynetworks\n": "fatal: in parameter smtpd_relay_restrictions or smtpd_recipient_restrictions, specify at least one working instance of: reject_unauth_destination, defer_unauth_destination, reject, defer, defer_if_permit or check_relay_domains",
		"smtpd_delay_reject = maybe\n":                   "fatal: bad boolean configuration: smtpd_delay_reject = maybe",
		"smtpd_timeout = soon\n":                         "fatal: parameter smtpd_timeout: bad time value or unit: soon",
	} {
		l := startLab(t, labOptions{release: source.Trixie, layers: []source.Layer{mainCF(main)}, patient: time.Second})
		start := time.Now()
		assert.Equal(t, l.open("client", "smtp").line(), "<silence>")
		assert.Assert(t, time.Since(start) < time.Second, "nobody waits")
		l.log.await(t, "postfix/smtpd[", want)
		l.log.await(t, "bad command startup -- throttling")
	}
	// No auth service: the process dies when it would offer AUTH.
	l := startLab(t, labOptions{release: source.Bookworm, layers: []source.Layer{mainCF("smtpd_sasl_path = private/nowhere\n")}})
	s := l.open("client", "submissions")
	assert.Equal(t, s.line(), "<closed>")
	l.log.await(t, "fatal: no SASL authentication mechanisms")
}

func TestLimitsOfPostfix(t *testing.T) {
	for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
		o := labOptions{release: release, layers: []source.Layer{mainCF("smtpd_client_connection_count_limit = 2\nsmtpd_client_message_rate_limit = 2\n")}}
		l := startLab(t, o)
		for range 2 {
			assert.Assert(t, strings.HasPrefix(l.open("stranger", "smtp").reply(), "220 "))
		}
		assert.Equal(t, l.open("stranger", "smtp").reply(), "421 4.7.0 source0.example.test Error: too many connections from 198.51.100.138")
		l.log.await(t, "warning: Connection concurrency limit exceeded: 3 from unknown[198.51.100.138]:", "for service smtp")

		// Behind XCLIENT 3.7 counts clients, and 3.10 the proxy's connections.
		replies := make([]string, 3)
		for i := range replies {
			c := submission(l, "proxy")
			replies[i] = c.ask(fmt.Sprintf("XCLIENT ADDR=198.51.100.%d PORT=4000%d", 21+i, i))
		}
		if release == source.Bookworm {
			assert.Assert(t, strings.HasPrefix(replies[2], "220 "), replies[2])
		} else {
			assert.Equal(t, replies[2], "421 4.7.0 source0.example.test Error: too many connections from 198.51.100.23")
		}

		s := l.open("client", "smtp")
		s.reply()
		s.ask("EHLO x.test")
		for range 2 {
			assert.Equal(t, s.ask("MAIL FROM:<a@b.test>"), "250 2.1.0 Ok")
			s.ask("RSET")
		}
		assert.Equal(t, s.ask("MAIL FROM:<a@b.test>"), "450 4.7.1 Error: too much mail from 198.51.100.10")
	}
}

func TestManyErrorsEndASession(t *testing.T) {
	l := startLab(t, labOptions{patient: time.Minute})
	s := l.open("client", "smtp")
	s.reply()
	for range 20 {
		assert.Equal(t, s.ask("FROB"), "500 5.5.2 Error: command not recognized")
	}
	assert.Equal(t, s.reply(), "421 4.7.0 source0.example.test Error: too many errors")
	assert.Equal(t, s.line(), "<closed>")
	l.log.await(t, "NOQUEUE: too many errors after UNKNOWN from unknown[198.51.100.10]:")
	l.log.await(t, "unknown=0/20 commands=0/20")
}

func TestPROXYProtocol(t *testing.T) {
	for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
		l := startLab(t, labOptions{release: release, layers: []source.Layer{
			layer("postfix/main.cf", "smtpd_upstream_proxy_protocol = haproxy\n",
				"dovecot/90-test.conf", "haproxy_trusted_networks = @proxy4@\nservice imap-login {\n  inet_listener imaps {\n    haproxy = yes\n  }\n}\n"),
		}, patient: 20 * time.Second})
		c := &client{t: t, nc: l.dial("proxy", "smtp", "ip4")}
		c.br = newReader(c.nc)
		c.say("PROXY TCP4 198.51.100.21 203.0.113.100 40000 25")
		assert.Assert(t, strings.HasPrefix(c.reply(), "220 "))
		l.log.await(t, "connect from unknown[198.51.100.21]:40000")

		c = &client{t: t, nc: l.dial("proxy", "smtp", "ip4")}
		c.br = newReader(c.nc)
		c.say("EHLO x.test")
		assert.Equal(t, c.reply(), "421 4.3.0 source0.example.test Server local error")
		l.log.await(t, `warning: haproxy read: short protocol header: EHLO x.test\r\n`)

		c = &client{t: t, nc: l.dial("proxy", "smtp", "ip4")}
		c.br = newReader(c.nc)
		start := time.Now()
		assert.Equal(t, c.reply(), "421 4.3.0 source0.example.test Server local error")
		assert.Assert(t, time.Since(start) < time.Second, "nobody waits five seconds")
		l.log.await(t, "warning: haproxy read: timeout error")

		c = &client{t: t, nc: l.dial("proxy", "imaps", "ip4")}
		c.br = newReader(c.nc)
		c.say("PROXY TCP4 198.51.100.21 203.0.113.100 40001 993")
		c.tls()
		assert.Assert(t, strings.HasPrefix(c.line(), "* OK"))
		c.say("a1 LOGIN " + alice + " " + secret)
		c.line()
		l.log.await(t, "imap-login: ", "user=<"+alice+">", " rip=198.51.100.21", "rport=40001")
	}
}

func TestBareLineFeeds(t *testing.T) {
	for release, mode := range map[string]string{source.Bookworm: "no", source.Trixie: "normalize"} {
		l := startLab(t, labOptions{release: release})
		c := relayed(l, "relay")
		c.ask("RCPT TO:<" + alice + ">")
		c.ask("DATA")
		fmt.Fprint(c.nc, "Subject: bare\n\nbody\n.\n")
		if mode == "no" {
			assert.Assert(t, strings.HasPrefix(c.reply(), "250 2.0.0 Ok: queued as "), "LF alone ends a message")
			continue
		}
		fmt.Fprint(c.nc, "more\r\n.\r\n")
		assert.Assert(t, strings.HasPrefix(c.reply(), "250 2.0.0 Ok: queued as "))
		ms := l.src.Account(alice).Messages("INBOX")
		assert.Assert(t, strings.HasSuffix(string(ms[0].Octets), "\r\n\r\nbody\r\nmore\r\n"), "%q", ms[0].Octets)
	}
}

func TestMasterOverridesMain(t *testing.T) {
	l := startLab(t, labOptions{layers: []source.Layer{
		layer("postfix/main.cf", "message_size_limit = 1000\n", "postfix/master.cf",
			"smtp/inet/message_size_limit=2000\n"+
				"10025 inet n - y - - smtpd\n  -o { smtpd_banner = $myhostname says ${message_size_limit} }\n  -o message_size_limit=3000\n"),
	}})
	ports["extra"] = 10025
	defer delete(ports, "extra")
	assert.Equal(t, l.open("client", "extra").line(), "220 source0.example.test says 3000")
	s := l.open("client", "smtp")
	s.reply()
	s.say("EHLO x.test")
	found := false
	for {
		line := s.line()
		found = found || line == "250-SIZE 2000"
		if line[3] == ' ' {
			break
		}
	}
	assert.Assert(t, found)
}

func TestConfigFilesTellWhatIsInForce(t *testing.T) {
	src, err := source.New(configOf(t, labOptions{layers: []source.Layer{layer("dovecot/90-test.conf", "passdb secrets {\n  driver = static\n  fields {\n    password = hush\n  }\n}\n")}}))
	assert.NilError(t, err)
	seen := map[string]string{}
	for _, f := range src.ConfigFiles() {
		seen[f.Path] += f.Text
		assert.Assert(t, !strings.Contains(f.Text, "hush"), f.Path)
	}
	assert.Assert(t, strings.Contains(seen["postconf -n"], "smtpd_authorized_xclient_hosts = 203.0.113.10 [2001:db8:113::10]\n"))
	assert.Assert(t, strings.Contains(seen["postconf -P"], "smtp/inet/smtpd_authorized_xclient_hosts = \n"))
	assert.Assert(t, strings.Contains(seen["doveconf -n"], "login_trusted_networks = 203.0.113.10 2001:db8:113::10\n"))
	assert.Assert(t, strings.Contains(seen["postconf -M"], "submissions inet "))
}
