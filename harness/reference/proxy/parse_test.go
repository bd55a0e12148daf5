package proxy

import (
	"crypto/tls"
	"encoding/hex"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
	"gotest.tools/v3/assert"
)

const wholeConfig = `
[server]
hostname = "mail.example.org"
shutdown_grace = "45s"
bridge_idle = "1h"
backend_timeout = "500ms"
proxy_ttl = 9
log_level = "debug"
threads = 0
backend_connect_retries = 0
host_down_threshold = 0

[tls.certificate.default]
cert = "tls/fullchain.pem"
key = "/etc/proxy/tls/privkey.pem"
subjects = ["mail.example.org", "*.example.org"]
default = true

[tls.protocols]
min_version = "1.3"
ignore_client_order = false
disable_cipher_suites = []

[routing]
default_destination = "legacy"
smtp_passthrough_destination = "new"
master_user_separators = ["%", "*"]

[mapping]
source = "file"
normalize = "lowercase"
[mapping.file]
path = "mappings.tsv"

[destination.legacy]
host = "192.0.2.10"
tls_server_name = "legacy.example.org"
forwarding = "xclient"
tls_pinned_cert_sha256 = "00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF"
source_ips = ["192.0.2.1", "2001:db8::1"]
hide_auth_errors = true
[destination.legacy.protocol.imap]
port = 143
tls = "starttls"
[destination.legacy.protocol.submission]
port = 587
tls = "starttls"
forwarding = "none"

[destination.new]
host = "new.example.org"
proxy_protocol = false
allow_plaintext_auth = true
tls_allow_invalid_certs = true
tls_client_cert = "/c"
tls_client_key = "/k"
[destination.new.protocol]
imap = { port = 993, tls = "implicit" }
smtp = { port = 25, tls = "plain" }

[listener.imaps]
protocol = "imap"
bind = ["0.0.0.0:993", "[::]:993"]
tls = "implicit"
proxy_protocol = "optional"
proxy_trusted = ["10.0.0.0/8", "2001:db8::5"]
max_connections = 10
preauth_timeout = "5s"
max_auth_attempts = 2
[listener.submission]
protocol = "submission"
bind = ["0.0.0.0:587"]
tls = "starttls"
[listener.smtp]
protocol = "smtp"
bind = ["[::]:25"]
tls = "plain"

[capabilities.imap]
banner = "hello"
sasl = ["PLAIN"]
allow_plain_auth_without_tls = true
advertise = ["IMAP4rev1"]
[capabilities.managesieve]
implementation = "x"
sieve = ["fileinto"]
[capabilities.submission]
ehlo = ["PIPELINING", "SIZE 1000"]
[capabilities.pop3]
banner = "b"

[oauth]
jwt_username_claim = "upn"
`

func TestParseWhole(t *testing.T) {
	c, err := ParseConfig("/etc/proxy/config.toml", []byte(wholeConfig))
	assert.NilError(t, err)
	assert.DeepEqual(t, c.Server, Server{Hostname: "mail.example.org", ShutdownGrace: 45 * time.Second, BridgeIdle: time.Hour,
		BackendTimeout: 500 * time.Millisecond, ProxyTTL: 9, LogLevel: "debug"})
	assert.DeepEqual(t, c.Certificates, []Certificate{{Name: "default", Cert: "/etc/proxy/tls/fullchain.pem", Key: "/etc/proxy/tls/privkey.pem",
		Subjects: []string{"mail.example.org", "*.example.org"}, Default: true}})
	assert.Equal(t, c.MinTLS, uint16(tls.VersionTLS13))
	assert.DeepEqual(t, c.Routing, Routing{Default: "legacy", PassThrough: "new", Separators: []string{"%", "*"}})
	assert.DeepEqual(t, c.Mapping, Mapping{Lowercase: true, File: "/etc/proxy/mappings.tsv"})
	assert.Equal(t, c.JWTClaim, "upn")

	assert.Equal(t, len(c.Listeners), 3)
	l := c.Listeners[0]
	assert.Equal(t, l.Name, "imaps")
	assert.Equal(t, l.Protocol, IMAP)
	assert.Equal(t, l.TLS, Implicit)
	assert.Equal(t, l.Binds[1], netip.MustParseAddrPort("[::]:993"))
	assert.Equal(t, l.Inbound, InboundOptional)
	assert.Equal(t, l.Trusted[0], netip.MustParsePrefix("10.0.0.0/8"))
	assert.Equal(t, l.Trusted[1], netip.MustParsePrefix("2001:db8::5/128"))
	assert.Equal(t, l.MaxConnections, 10)
	assert.Equal(t, l.PreauthTimeout, 5*time.Second)
	assert.Equal(t, l.MaxAuthAttempts, 2)

	d := c.Destinations[0]
	assert.Equal(t, d.Forwarding, ForwardXCLIENT)
	assert.Equal(t, hex.EncodeToString(d.PinSHA256), "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff")
	assert.Equal(t, len(d.SourceIPs), 2)
	assert.Assert(t, d.HideAuthErrors)
	assert.Equal(t, d.Endpoints[IMAP], Endpoint{Port: 143, TLS: STARTTLS})
	assert.Equal(t, d.Endpoints[Submission], Endpoint{Port: 587, TLS: STARTTLS, Forwarding: ForwardNone})
	assert.Equal(t, c.Destinations[1].Forwarding, ForwardNone) // proxy_protocol = false and no forwarding
	assert.Equal(t, c.Destinations[1].Endpoints[SMTP], Endpoint{Port: 25, TLS: Plain})

	assert.DeepEqual(t, c.Capabilities[IMAP], Capabilities{SASL: []string{"PLAIN"}, AllowCleartext: true, Banner: "hello", Advertise: []string{"IMAP4rev1"}})

	full := c.withDefaults()
	assert.Equal(t, full.Destinations[0].Endpoints[IMAP].Forwarding, ForwardXCLIENT)
	assert.Equal(t, full.Destinations[0].Endpoints[Submission].Forwarding, ForwardNone)
	assert.Equal(t, full.Listeners[2].MaxConnections, 8192)
	assert.DeepEqual(t, full.Capabilities[POP3].SASL, mechanisms())
}

// A small configuration that each case below breaks in one way.
const smallConfig = `[routing]
default_destination = "legacy"

[destination.legacy]
host = "legacy.example.org"

[destination.legacy.protocol.imap]
port = 143
tls = "starttls"

[listener.imap]
protocol = "imap"
bind = ["0.0.0.0:143"]
tls = "starttls"
`

func TestParseErrors(t *testing.T) {
	for _, tc := range []struct {
		name     string
		old, new string // replaced in smallConfig; an empty old appends
		want     []string
		pass     string // the pass-through destination
	}{
		{"not TOML", `port = 143`, `port = x`, []string{
			`c.toml:8:8: not TOML:`}, ""},
		{"unknown key", `bind = `, `binds = [] # it is bind
bind = `, []string{
			`c.toml:13:1: listener.imap.binds: the format has no such key here; it has: bind, forwarded, `}, ""},
		{"unknown table", "", "[listenr.imap]\n", []string{`c.toml:15:2: listenr: the format has no such key here; it has: admin, capabilities, destination, `}, ""},
		{"unknown array table", "", "[[routs]]\nx = 1\n[[routs]]\n", []string{`c.toml:15:3: routs: the format has no such key`}, ""},
		{"unknown dotted key", "", "[server]\nlimits.open = 1\n", []string{`c.toml:16:1: server.limits: the format has no such key`}, ""},
		{"unknown key in an inline table", `[destination.legacy.protocol.imap]
port = 143
tls = "starttls"`, `protocol.imap = { port = 143, tls = "starttls", prot = 1 }`, []string{
			`c.toml:7:49: destination.legacy.protocol.imap.prot: the format has no such key here; it has: forwarding, port, tls`}, ""},
		{"unknown quoted key", `host =`, `"ho st" = 1
host =`, []string{`c.toml:5:1: destination.legacy."ho st": the format has no such key`}, ""},
		{"not implemented", "", "[admin]\nbind = \"127.0.0.1:9443\"\n", []string{
			`c.toml:15:2: admin: this key of the proxy's format is not implemented by the reference proxy: it has no management API`}, ""},
		{"http routes", "", "[[http.route]]\nmatch = \"/**\"\n", []string{`c.toml:15:3: http: this key of the proxy's format is not implemented`}, ""},
		{"http listener", "", "[listener.https]\nprotocol = \"http\"\nbind = [\"0.0.0.0:443\"]\ntls = \"implicit\"\nforwarded = \"off\"\n", []string{
			`c.toml:16:1: listener.https.protocol: "http" is not implemented by the reference proxy: remove this listener`,
			`c.toml:19:1: listener.https.forwarded: this key of the proxy's format is not implemented`}, ""},
		{"lmtp endpoint", "", "[destination.legacy.protocol.lmtp]\nport = 24\ntls = \"plain\"\n", []string{
			`c.toml:15:30: destination.legacy.protocol.lmtp: this key of the proxy's format is not implemented by the reference proxy: it has no LMTP listener`}, ""},
		{"breaker", "", "[server]\nhost_down_threshold = 5\nhost_down_cooldown = \"30s\"\nthreads = 4\n", []string{
			`c.toml:16:1: server.host_down_threshold: this key of the proxy's format is not implemented by the reference proxy: it has no circuit breaker; only 0 is accepted`,
			`c.toml:17:1: server.host_down_cooldown: this key`,
			`c.toml:18:1: server.threads: this key`}, ""},
		{"stores", "", "[mapping]\nsource = \"redis\"\npositive_ttl = \"10m\"\n[mapping.redis]\nurl = \"redis://x\"\n", []string{
			`c.toml:16:1: mapping.source: "redis" is not implemented by the reference proxy: file and inline are`,
			`c.toml:17:1: mapping.positive_ttl: this key of the proxy's format is not implemented by the reference proxy: the mapping is read once and kept`,
			`c.toml:18:10: mapping.redis: this key of the proxy's format is not implemented`}, ""},
		{"value not allowed", `tls = "starttls"
`, `tls = "ssl"
`, []string{`c.toml:9:1: destination.legacy.protocol.imap.tls: "ssl" is not allowed: implicit, starttls or plain`,
			`c.toml:14:1: listener.imap.tls: "ssl" is not allowed: implicit, starttls or plain`}, ""},
		{"wrong type", `port = 143`, `port = "143"`, []string{`c.toml:8:1: destination.legacy.protocol.imap.port: must be a number, not a string`}, ""},
		{"port out of range", `port = 143`, `port = 70000`, []string{`c.toml:8:1: destination.legacy.protocol.imap.port: must be between 1 and 65535`}, ""},
		{"port missing", "port = 143\n", "", []string{`c.toml:7:30: destination.legacy.protocol.imap.port: is missing`}, ""},
		{"bad bind", `["0.0.0.0:143"]`, "[\n  \"0.0.0.0:143\",\n  # and\n  \"imap\",\n  7]", []string{
			`c.toml:16:3: listener.imap.bind: "imap" is not an address and port`,
			`c.toml:17:3: listener.imap.bind: must be a list of strings, not of a number`}, ""},
		{"bound twice", `["0.0.0.0:143"]`, `["0.0.0.0:143", "0.0.0.0:143"]`, []string{`c.toml:13:1: listener.imap.bind: 0.0.0.0:143 is bound twice`}, ""},
		{"no bind", `bind = ["0.0.0.0:143"]`, ``, []string{`c.toml:11:11: listener.imap.bind: is missing`}, ""},
		{"bad duration", "", "[server]\nbridge_idle = \"30 minutes\"\nbackend_timeout = 10\nshutdown_grace = \"0s\"\n", []string{
			`c.toml:16:1: server.bridge_idle: "30 minutes" is not allowed: it must be a whole number and a unit`,
			`c.toml:17:1: server.backend_timeout: must be a whole number and a unit`,
			`c.toml:18:1: server.shutdown_grace: "0s" is not allowed`}, ""},
		{"ttl", "", "[server]\nproxy_ttl = 1\n", []string{`c.toml:16:1: server.proxy_ttl: must be between 2 and 255`}, ""},
		{"undeclared default", `default_destination = "legacy"`, `default_destination = "legcy"`, []string{
			`c.toml:2:1: routing.default_destination: "legcy" is not a destination; declared: legacy`}, ""},
		{"default lacks protocol", "protocol = \"imap\"\n", "protocol = \"pop3\"\n", []string{
			`c.toml:12:1: listener.imap.protocol: the default destination "legacy" has no [destination.legacy.protocol.pop3]`}, ""},
		{"plaintext", "port = 143\ntls = \"starttls\"", "port = 143\ntls = \"plain\"", []string{
			`c.toml:9:1: destination.legacy.protocol.imap.tls: "plain" would send credentials in clear text`}, ""},
		{"address without name", `host = "legacy.example.org"`, `host = "192.0.2.1"`, []string{
			`c.toml:4:14: destination.legacy.tls_server_name: is missing: host is an address`}, ""},
		{"pin", `host = "legacy.example.org"`, "host = \"legacy.example.org\"\ntls_pinned_cert_sha256 = \"aa:bb:...:99\"", []string{
			`c.toml:6:1: destination.legacy.tls_pinned_cert_sha256: must be the SHA-256 of the certificate, 64 hexadecimal digits`}, ""},
		{"smtp starttls", "", "[listener.mx]\nprotocol = \"smtp\"\nbind = [\"0.0.0.0:25\"]\ntls = \"starttls\"\n", []string{
			`c.toml:17:1: listener.mx.protocol: the pass-through destination "legacy" has no [destination.legacy.protocol.smtp]`,
			`c.toml:19:1: listener.mx.tls: "starttls" is not allowed with protocol "smtp"`}, "legacy"},
		{"trust needed", "", "proxy_protocol = \"required\"\n", []string{`c.toml:11:11: listener.imap.proxy_trusted: must list the networks`}, ""},
		{"bad trust", "", "proxy_protocol = \"on\"\nproxy_trusted = [\"ten\"]\n", []string{
			`c.toml:15:1: listener.imap.proxy_protocol: "on" is not allowed: off, optional or required`,
			`c.toml:16:18: listener.imap.proxy_trusted: "ten" is not a network`}, ""},
		{"sasl", "", "[capabilities.imap]\nsasl = [\"PLAIN\", \"CRAM-MD5\", \"PLAIN\"]\n", []string{
			`c.toml:16:1: capabilities.imap.sasl: "CRAM-MD5" is not allowed: PLAIN, LOGIN, OAUTHBEARER, XOAUTH2`}, ""},
		{"banner", "", "[capabilities.imap]\nbanner = \"a\\r\\n* OK\"\n", []string{`c.toml:16:1: capabilities.imap.banner: must be printable ASCII`}, ""},
		{"inline mapping", "", "[mapping]\nsource = \"inline\"\n[mapping.inline]\n\"a@x\" = \"nowhere\"\n", []string{
			`c.toml:18:1: mapping.inline."a@x": "nowhere" is not a destination; declared: legacy`}, ""},
		{"mapping without its section", "", "[mapping]\nsource = \"file\"\n", []string{`c.toml:16:1: mapping.source: is "file", so [mapping.file] with path is needed`}, ""},
		{"min_version", "", "[tls.protocols]\nmin_version = \"1.1\"\n", []string{`c.toml:16:1: tls.protocols.min_version: "1.1" is not allowed: "1.2" or "1.3"`}, ""},
		{"certificate", "", "[tls.certificate.a]\ncert = \"x\"\n", []string{`c.toml:16:1: tls.certificate.a.cert: both cert and key must name a PEM file`}, ""},
		{"xclient passed through", "", `[listener.mx]
protocol = "smtp"
bind = ["0.0.0.0:25"]
tls = "plain"
[destination.mx]
host = "mx"
forwarding = "xclient"
protocol.smtp = { port = 25, tls = "plain" }
`, []string{`c.toml:23:10: destination.mx.protocol.smtp.forwarding: is "xclient", which cannot be announced on a connection that is passed through`}, "mx"},
		{"empty", smallConfig, "", []string{`c.toml:1:1: listener: at least one listener is needed`}, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text := smallConfig
			switch {
			case tc.old == "":
				text += tc.new
			default:
				assert.Assert(t, strings.Contains(text, tc.old))
				text = strings.ReplaceAll(text, tc.old, tc.new)
			}
			if tc.pass != "" {
				text = strings.Replace(text, "[routing]\n", "[routing]\nsmtp_passthrough_destination = \""+tc.pass+"\"\n", 1)
			}
			c, err := ParseConfig("c.toml", []byte(text))
			assert.Assert(t, err != nil)
			var all ConfigErrors
			assert.Assert(t, errors.As(err, &all))
			assert.Equal(t, len(all), len(tc.want), "%v", err)
			for i, want := range tc.want {
				assert.Assert(t, strings.HasPrefix(all[i].Error(), want), "got  %s\nwant %s", all[i], want)
			}
			// What only lacks implementation can still be read by others.
			assert.Equal(t, c != nil, all.Only(NotImplemented))
		})
	}
}

// The guide's own sample for Dovecot and Postfix: every key of it is known,
// and those that are not implemented are named, once each.
func TestGuideSampleForDovecotAndPostfix(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "dovecot-postfix.toml"))
	assert.NilError(t, err)
	c, err := ParseConfig("dovecot-postfix.toml", text)
	var all ConfigErrors
	assert.Assert(t, errors.As(err, &all))
	var keys []string
	for _, e := range all {
		assert.Equal(t, e.Kind, NotImplemented, "%v", e)
		keys = append(keys, e.Key)
	}
	assert.DeepEqual(t, keys, []string{"mapping.positive_ttl", "mapping.negative_ttl", "destination.new.forwarded", "admin"})
	assert.Equal(t, len(c.Listeners), 8)
	assert.Equal(t, len(c.Destinations), 2)
	assert.Equal(t, c.Destinations[1].Endpoints[SMTP].Port, uint16(25))
}

// The sample in the documentation is whole, and what it says of keys is so:
// every key of the table is one that the parser knows, and the other way round.
func TestDocumentation(t *testing.T) {
	page, err := os.ReadFile("../../../docs/proxy.md")
	assert.NilError(t, err)
	_, rest, ok := strings.Cut(string(page), "```toml\n")
	assert.Assert(t, ok)
	sample, _, ok := strings.Cut(rest, "```")
	assert.Assert(t, ok)
	c, err := ParseConfig("docs/proxy.md", []byte(sample))
	assert.NilError(t, err)
	assert.Equal(t, len(c.Listeners), 7)

	// Unknown keys in every table make the parser tell all that it knows.
	_, err = ParseConfig("x", []byte(`
x = 1
server.x = 1
tls = {x = 1, protocols = {x = 1}, certificate = {a = {x = 1}}}
listener.a.x = 1
destination.a = {x = 1, protocol = {imap = {x = 1}}}
routing.x = 1
mapping = {x = 1, file = {x = 1}}
capabilities = {x = 1, imap = {x = 1}, submission = {x = 1}, managesieve = {x = 1}}
oauth.x = 1
`))
	var all ConfigErrors
	assert.Assert(t, errors.As(err, &all))
	told := 0
	for _, e := range all {
		if e.Kind != UnknownKey {
			continue
		}
		told++
		_, known, _ := strings.Cut(e.Why, "it has: ")
		for _, key := range strings.Split(known, ", ") {
			assert.Assert(t, strings.Contains(string(page), key), "docs/proxy.md does not speak of %s, which stands beside %s", key, e.Key)
		}
	}
	assert.Equal(t, told, 16)
}

func TestParseTooLarge(t *testing.T) {
	_, err := ParseConfig("c.toml", make([]byte, MaxConfig+1))
	assert.ErrorContains(t, err, "c.toml: is larger than")
}

func TestLocateArrayTables(t *testing.T) {
	root := locate("# first\n[[a.b]]\nx = 1\n[[a.b]]\n  y = '''\n[z]\n'''\n  'q.r' = [ {s = 1}, {\n s = 2 } ]\n[a.b.c]\nd.e = 1979-05-27 07:32:00 # t\n")
	b := root.child("a").child("b")
	assert.Equal(t, len(b.elems), 2)
	assert.Equal(t, b.elems[0].child("x").at, position{3, 1})
	assert.Equal(t, b.elems[1].child("y").at, position{5, 3})
	assert.Equal(t, b.elems[1].child("q.r").at, position{8, 3})
	assert.Equal(t, b.elems[1].child("q.r").elems[1].child("s").at, position{9, 2})
	assert.Equal(t, root.find([]string{"a", "b", "c", "d", "e"}), position{11, 3})
	assert.Assert(t, root.child("z") == nil)
}

// FuzzParseConfig holds the parser to its word: it never panics, every error
// has a place inside the file, and the locator finds every key that the
// decoder found, where the file has it.
func FuzzParseConfig(f *testing.F) {
	f.Add(wholeConfig)
	f.Add(smallConfig)
	f.Add("[[a]]\nb.c = {d = [1, {e = '''x\n''''}]}\n\"q\\\"\" = \"\"\"\\\"\"\"\"\"\n")
	f.Fuzz(func(t *testing.T, text string) {
		_, err := ParseConfig("f", []byte(text))
		lines := strings.Split(text, "\n")
		var all ConfigErrors
		if err != nil && !errors.As(err, &all) {
			t.Fatalf("not ConfigErrors: %v", err)
		}
		for _, e := range all {
			if e.Line < 1 || e.Line > len(lines)+1 || e.Column < 1 {
				t.Fatalf("%v: no such place", e)
			}
		}
		var doc map[string]any
		md, err := toml.Decode(text, &doc)
		if err != nil || strings.Contains(text, `\`) || !utf8.ValidString(text) || strings.HasPrefix(text, "\ufeff") {
			return
		}
		root := locate(text)
		for _, key := range md.Keys() {
			n := root
			for _, part := range key {
				if n.tables {
					n = n.elems[len(n.elems)-1]
					if c := n.child(part); c == nil { // it stood in an earlier element
						return
					}
				}
				if n = n.child(part); n == nil {
					if inArray(doc, key) {
						return
					}
					t.Fatalf("key %v not found in %q", key, text)
				}
			}
			if n.at.line > len(lines) {
				t.Fatalf("key %v: line %d", key, n.at.line)
			}
		}
	})
}

// inArray says whether a key stands in an inline array, whose tables the
// decoder lists by the array's name.
func inArray(doc map[string]any, key []string) bool {
	var v any = doc
	for _, part := range key {
		m, ok := v.(map[string]any)
		if !ok {
			return true
		}
		v = m[part]
	}
	return false
}
