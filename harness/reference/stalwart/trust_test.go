package stalwart_test

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/harness/reference/stalwart"
)

// signIn signs alice in on any port and leaves.
func (c *client) signIn(port uint16) {
	c.t.Helper()
	p := plain("alice@example.test", "alicepw")
	switch port {
	case 143, 993:
		c.line()
		c.say("a1 AUTHENTICATE PLAIN "+p, "a2 LOGOUT")
		assert.Assert(c.t, cmp.Contains(c.line(), "a1 OK"))
	case 995:
		c.line()
		c.say("AUTH PLAIN "+p, "QUIT")
		assert.Equal(c.t, c.line(), "+OK Authentication successful")
	case 110:
		c.line()
		c.say("STLS")
		c.line()
		c.tls()
		c.say("AUTH PLAIN "+p, "QUIT")
		assert.Equal(c.t, c.line(), "+OK Authentication successful")
	case 4190:
		c.sieve()
		c.say("STARTTLS")
		c.line()
		c.tls()
		c.sieve()
		c.say(`AUTHENTICATE "PLAIN" "` + p + `"`)
		assert.Equal(c.t, c.line(), `OK "Authentication successful"`)
	case 465, 587:
		c.reply()
		c.ask("EHLO c.example.net")
		if port == 587 {
			c.ask("STARTTLS")
			c.tls()
			c.ask("EHLO c.example.net")
		}
		assert.Equal(c.t, c.ask("AUTH PLAIN "+p), "235 2.7.0 Authentication succeeded.")
	case 443, 8080:
		c.say("GET /jmap/session HTTP/1.1", "Host: x", "Forwarded: for=6.6.6.6", "X-Forwarded-For: 6.6.6.6",
			"Authorization: Basic "+base64.StdEncoding.EncodeToString([]byte("alice@example.test:alicepw")), "")
		assert.Equal(c.t, c.response().status, 200)
	}
}

// sieve reads a greeting of ManageSieve.
func (c *client) sieve() {
	for s := c.line(); !strings.HasPrefix(s, "OK") && !strings.HasPrefix(s, "<"); s = c.line() {
	}
}

var trustedPorts = map[uint16]string{143: "imap", 993: "imaptls", 110: "pop3", 995: "pop3s", 4190: "sieve", 587: "submission", 465: "submissions", 443: "https", 8080: "http"}

// TestEveryListener: the address and port of the header stand in auth.success,
// at INFO, on all nine, for both families and for IPv4-mapped addresses.
func TestEveryListener(t *testing.T) {
	l := startLab(t, labOptions{keys: "tracer.out.level = \"info\"\n"})
	l.guide()
	l.restart()
	for port, id := range trustedPorts {
		for i, c := range []struct{ src, logged string }{{"203.0.113.7", "203.0.113.7"}, {"2001:db8::77", "2001:db8::77"}, {"::ffff:203.0.113.9", "203.0.113.9"}} {
			client := 10000 + int(port) + i
			src := fmt.Sprintf("%s:%d", c.src, client)
			if strings.Contains(c.src, ":") {
				src = fmt.Sprintf("[%s]:%d", c.src, client)
			}
			l.through(src, port).signIn(port)
			l.log.await(t, fmt.Sprintf(`INFO Authentication successful (auth.success) listenerId = "%s", localPort = %d, remoteIp = %s, remotePort = %d, accountName = "alice@example.test", accountId = 2`,
				id, port, c.logged, client))
		}
	}
}

// TestTrustedWithoutHeader: silence is answered by silence for as long as it
// lasts, and whatever else by a close.
func TestTrustedWithoutHeader(t *testing.T) {
	l := startLab(t, labOptions{})
	l.guide()
	l.restart()
	for port := range trustedPorts {
		c := l.open(proxyAt, port)
		began := time.Now()
		c.nc.SetReadDeadline(time.Now().Add(time.Minute))
		assert.Equal(t, c.line(), "<silence>")
		assert.Assert(t, time.Since(began) < 10*time.Second, "nobody waits for it")
		c.nc.SetReadDeadline(time.Now().Add(time.Minute))
		c.say("a1 NOOP")
		assert.Equal(t, c.line(), "<closed>", "port %d", port)
	}
	c := l.open(proxyAt, 993)
	c.nc.Close()
	l.log.await(t, `WARN Proxy protocol error (network.proxy-error) listenerId = "imaptls", localIp = ::, localPort = 993, tls = true, reason = "end of stream"`)
	c = l.open(proxyAt, 993)
	assert.ErrorContains(t, c.tryTLS(), "reset")
	l.log.await(t, `(network.proxy-error) listenerId = "imaptls", localIp = ::, localPort = 993, tls = true, reason = "invalid proxy header"`)
}

// TestHeaderForms: what of a header counts, and what is refused.
func TestHeaderForms(t *testing.T) {
	l := startLab(t, labOptions{})
	l.guide()
	l.restart()
	v2 := func(verCmd, family byte, body string) string {
		return "\r\n\r\n\x00\r\nQUIT\n" + string([]byte{verCmd, family, byte(len(body) >> 8), byte(len(body))}) + body
	}
	v4 := "\xcb\x00\x71\x07\xc6\x33\x64\x01\xa0\x01\x00\x8f" // 203.0.113.7:40961
	for _, c := range []struct {
		name, header, want string // the address, "proxy", or "closed"
	}{
		{"v1", "PROXY TCP4 203.0.113.7 198.51.100.1 40961 143\r\n", "203.0.113.7"},
		{"v1 tcp6", "PROXY TCP6 2001:db8::7 2001:db8::1 40961 143\r\n", "2001:db8::7"},
		{"v1 unknown", "PROXY UNKNOWN\r\n", "proxy"},
		{"v1 unknown with more", "PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n", "proxy"},
		{"v1 of the other family", "PROXY TCP4 2001:db8::7 2001:db8::1 40961 143\r\n", "closed"},
		{"v1 bad port", "PROXY TCP4 203.0.113.7 198.51.100.1 99999 143\r\n", "closed"},
		{"v1 without its end", "PROXY TCP4 " + strings.Repeat("1", 200), "closed"},
		{"v1 with a lone CR", "PROXY TCP4 203.0.113.7\r198.51.100.1 1 2\r\n", "closed"},
		{"v1 of no protocol", "PROXY UDP4 203.0.113.7 198.51.100.1 40961 143\r\n", "closed"},
		{"not quite v1", "PROXYTCP4 203.0.113.7\r\n", "closed"},
		{"v2", v2(0x21, 0x11, v4), "203.0.113.7"},
		{"v2 udp", v2(0x21, 0x12, v4), "203.0.113.7"},
		{"v2 local with addresses", v2(0x20, 0x11, v4), "proxy"},
		{"v2 local", v2(0x20, 0, ""), "proxy"},
		{"v2 unspec", v2(0x21, 0, ""), "proxy"},
		{"v2 unix", v2(0x21, 0x31, strings.Repeat("x", 216)), "proxy"},
		{"v2 with a malformed tlv", v2(0x21, 0x11, v4+"\x01\x00\xff"), "203.0.113.7"},
		{"v2 with a wrong checksum", v2(0x21, 0x11, v4+"\x03\x00\x04\x01\x02\x03\x04"), "203.0.113.7"},
		{"v2 command 2", v2(0x22, 0x11, v4), "closed"},
		{"v2 version 3", v2(0x31, 0x11, v4), "closed"},
		{"v2 family 0x10", v2(0x21, 0x10, v4), "closed"},
		{"v2 too short", v2(0x21, 0x11, v4[:4]), "closed"},
		{"v2 bad signature", "\r\n\r\n\x00\r\nQUIT\r\x21\x11\x00\x0c" + v4, "closed"},
	} {
		for _, cut := range []int{0, 1, 15} {
			k := l.open(proxyAt, 143)
			if cut > 0 {
				k.nc.Write([]byte(c.header[:cut]))
			}
			k.nc.Write([]byte(c.header[cut:]))
			k.nc.(interface{ CloseWrite() error }).CloseWrite()
			got := k.line()
			switch {
			case c.want == "closed":
				assert.Equal(t, got, "<closed>", c.name)
			case c.want == "proxy":
				assert.Assert(t, cmp.Contains(got, "* OK"), c.name)
			default:
				assert.Assert(t, cmp.Contains(got, "* OK"), c.name)
				l.log.await(t, "IMAP connection started", "remoteIp = "+c.want+", remotePort = 40961")
			}
			k.nc.Close()
		}
	}
	assert.NilError(t, l.srv.Close())
	n := 0
	for _, line := range l.log.end() {
		if strings.Contains(line, "imap.connection-start") && strings.Contains(line, "remoteIp = "+proxyAt+",") {
			n++
		}
	}
	assert.Equal(t, n, 3*6, "sessions of headers without an address are the proxy's")
}

// TestProxiedTLS: a trusted proxy decides what counts as TLS.
func TestProxiedTLS(t *testing.T) {
	l := startLab(t, labOptions{})
	l.guide()
	l.restart()
	ssl := func(port byte, tlv string) *client {
		c := l.open(proxyAt, map[byte]uint16{0x8f: 143, 0x6e: 110, 0x4b: 587}[port])
		body := "\xcb\x00\x71\x07\xc6\x33\x64\x01\xa0\x39\x00" + string([]byte{port}) + tlv
		c.nc.Write([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00" + string([]byte{byte(len(body))}) + body))
		return c
	}
	const on, off = "\x20\x00\x05\x01\x00\x00\x00\x00", "\x20\x00\x05\x00\x00\x00\x00\x00"
	c := ssl(0x8f, on)
	assert.Assert(t, !strings.Contains(c.line(), "STARTTLS"))
	c.say("a1 LOGIN alice@example.test alicepw")
	assert.Assert(t, cmp.Contains(c.line(), "a1 OK"))
	c = ssl(0x8f, off)
	assert.Assert(t, cmp.Contains(c.line(), "STARTTLS"))
	c.say("a1 LOGIN alice@example.test alicepw")
	assert.Equal(t, c.line(), "a1 NO LOGIN is disabled on the clear-text port.")
	c = ssl(0x4b, on)
	c.reply()
	c.say("EHLO c.example.net")
	all := ""
	for s := c.line(); ; s = c.line() {
		if all += s + "\n"; strings.HasPrefix(s, "250 ") {
			break
		}
	}
	assert.Assert(t, cmp.Contains(all, "AUTH PLAIN LOGIN"))
	assert.Assert(t, !strings.Contains(all, "STARTTLS"))
}

// TestFailedLogins: a failed login is the client's, and so is its ban; the
// proxy and other clients go on, restart or not, until the ban is taken back.
func TestFailedLogins(t *testing.T) {
	l := startLab(t, labOptions{})
	l.guide()
	l.set("server.auto-ban.auth.rate", "3/1d")
	l.restart()
	try := func(src string) string {
		c := l.open(proxyAt, 143)
		defer c.nc.Close()
		c.nc.Write(header(src, "198.51.100.1:143"))
		if s := c.line(); strings.HasPrefix(s, "<") {
			return s
		}
		c.say("b1 AUTHENTICATE PLAIN " + plain("bob@example.test", "wrong"))
		return c.line()
	}
	for range 3 {
		assert.Equal(t, try("203.0.113.60:40001"), "b1 NO [AUTHENTICATIONFAILED] Authentication failed")
	}
	l.log.await(t, `DEBUG Authentication failed (auth.failed) listenerId = "imap", localPort = 143, remoteIp = 203.0.113.60, remotePort = 40001, remoteIp = 203.0.113.60, accountName = "bob@example.test", id = "b1"`)
	assert.Equal(t, try("203.0.113.60:40002"), "<closed>")
	l.log.await(t, `INFO Banned due to authentication errors (security.authentication-ban) remoteIp = 203.0.113.60, accountName = "bob@example.test", id = "b1"`)
	for range 2 {
		c := l.through("203.0.113.60:40003", 143)
		assert.Equal(t, c.line(), "<closed>")
		l.log.await(t, `INFO Blocked IP address (security.ip-blocked) listenerId = "imap", localPort = 143, remoteIp = 203.0.113.60, remotePort = 40003`)
		l.through("203.0.113.61:40004", 143).signIn(143)
		assert.Equal(t, strings.HasPrefix(l.open(proxyAt, 25).line(), "220"), true)
		_, body := l.api("GET", "/api/settings/list?prefix=server.blocked-ip", "")
		assert.Equal(t, body, `{"data":{"total":1,"items":{"203.0.113.60":""}}}`)
		l.restart()
	}
	l.api("POST", "/api/settings", `[{"type":"delete","keys":["server.blocked-ip.203.0.113.60"]}]`)
	assert.Equal(t, try("203.0.113.60:40005"), "<closed>")
	_, body := l.api("GET", "/api/reload/server.blocked-ip", "")
	assert.Equal(t, body, `{"data":{"warnings":{},"errors":{}}}`)
	// The count goes on where it was: one more is one too many, until it is
	// taken back too.
	assert.Equal(t, try("203.0.113.60:40006"), "<closed>")
	l.api("POST", "/api/settings", `[{"type":"delete","keys":["server.blocked-ip.203.0.113.60"]}]`)
	l.api("GET", "/api/reload/server.blocked-ip", "")
	_, body = l.api("GET", "/api/store/purge/in-memory/default/rate-auth", "")
	assert.Equal(t, body, `{"data":null}`)
	assert.Equal(t, try("203.0.113.60:40007"), "b1 NO [AUTHENTICATIONFAILED] Authentication failed")
	// A LOCAL header leaves the proxy to be banned.
	for range 4 {
		c := l.open(proxyAt, 143)
		c.nc.Write([]byte("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00"))
		c.line()
		c.say("b1 AUTHENTICATE PLAIN " + plain("carol@example.test", "wrong"))
		c.line()
	}
	assert.Equal(t, l.open(proxyAt, 25).line(), "<closed>")
	// Unless it is allowed.
	l.set("server.allowed-ip."+proxyAt, "")
	l.reload()
	_, body = l.api("GET", "/api/settings/list?prefix=server.blocked-ip", "")
	assert.Equal(t, body, `{"data":{"total":1,"items":{"172.30.1.1":""}}}`)
}

// TestScanBan: what no client would say costs its sender a point, and after
// thirty the address.
func TestScanBan(t *testing.T) {
	l := startLab(t, labOptions{})
	l.set("server.auto-ban.scan.rate", "4/1d")
	l.reload()
	for i, port := range []uint16{25, 110, 143, 4190} {
		c := l.open(strangerAt, port)
		c.say("\x01\x02\x03")
		for s := c.line(); !strings.Contains(s, "nvalid") && !strings.Contains(s, "Missing command"); s = c.line() {
			assert.Assert(t, !strings.HasPrefix(s, "<"), "%s on port %d", s, port)
		}
		assert.Equal(t, l.greets(strangerAt), "greeted", "%d", i)
		c.nc.Close()
	}
	c := l.open("fd30::7", 8080)
	c.say("GET /wp-login.php HTTP/1.1", "")
	assert.Equal(t, c.response().status, 404)
	l.log.await(t, "INFO Banned due to scan (security.scan-ban)", `remoteIp = fd30::7, path = "/wp-login.php"`)
	c = l.open(strangerAt, 8080)
	c.say("\x01\x02\x03")
	c.line()
	l.log.await(t, "INFO Banned due to scan (security.scan-ban)", "remoteIp = "+strangerAt, `reason = "invalid HTTP method parsed"`)
	assert.Equal(t, l.greets(strangerAt), "<closed>")
}

// TestForwarded: believed from anybody where the setting says so, and from
// nobody otherwise.
func TestForwarded(t *testing.T) {
	for _, c := range []struct{ on, field, want string }{
		{"false", "Forwarded: for=6.6.6.6", strangerAt},
		{"true", "Forwarded: for=6.6.6.6", "6.6.6.6"},
		{"true", `Forwarded: proto=https;for="[2001:db8::66]:80"`, "2001:db8::66"},
		{"true", "X-Forwarded-For: 6.6.6.7, 1.2.3.4", "6.6.6.7"},
	} {
		l := startLab(t, labOptions{keys: "http.use-x-forwarded = " + c.on + "\nserver.blocked-ip.\"6.6.6.7\" = \"\"\n"})
		a := l.ask(strangerAt, 8080, "GET /jmap/session HTTP/1.1\r\n"+c.field+"\r\nAuthorization: Basic "+base64.StdEncoding.EncodeToString([]byte("alice@example.test:wrong"))+"\r\n\r\n")
		if c.want == "6.6.6.7" {
			assert.Equal(t, a.status, 403)
			continue
		}
		assert.Equal(t, a.status, 401)
		l.log.await(t, "(auth.failed)", "remoteIp = "+strangerAt+",", "remoteIp = "+c.want+", accountName")
	}
}

// TestMaxConnections counts sessions by listener, and not whoever has sent no
// header yet.
func TestMaxConnections(t *testing.T) {
	l := startLab(t, labOptions{keys: "server.listener.imap.max-connections = 2\n"})
	a, b := l.open(strangerAt, 143), l.open(relayAt, 143)
	a.line()
	b.line()
	assert.Equal(t, l.greets(proxyAt), "<closed>")
	l.log.await(t, "WARN Concurrent connection limit reached (limit.concurrent-connection)", "remoteIp = "+proxyAt, "limit = 2")
	a.say("a1 LOGOUT")
	for s := a.line(); s != "<closed>"; s = a.line() {
	}
	l.log.await(t, "(imap.connection-end)", "remoteIp = "+strangerAt)
	assert.Equal(t, l.greets(proxyAt), "greeted")
}

// TestOnRealSockets: the same server behind listeners of the system's.
func TestOnRealSockets(t *testing.T) {
	srv, err := stalwart.New(configOf(t, labOptions{keys: "server.proxy.trusted-networks = \"127.0.0.0/8\"\nsession.rcpt.errors.wait = \"1ms\"\n"}))
	assert.NilError(t, err)
	at := make(map[uint16]net.Addr)
	assert.NilError(t, srv.Start(t.Context(), func(ap netip.AddrPort) (net.Listener, error) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err == nil {
			at[ap.Port()] = l.Addr()
		}
		return l, err
	}))
	defer func() { assert.NilError(t, srv.Close()) }()
	nc, err := net.Dial("tcp", at[143].String())
	assert.NilError(t, err)
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	c := &client{t: t, nc: nc, br: bufio.NewReader(nc)}
	nc.Write(header("203.0.113.7:40001", "198.51.100.1:143"))
	assert.Assert(t, cmp.Contains(c.line(), "* OK"))
	c.say("a1 STARTTLS")
	c.line()
	c.tls()
	c.say("a2 LOGIN x y")
	assert.Equal(t, c.line(), "a2 NO [AUTHENTICATIONFAILED] Authentication failed")
	nc, err = net.Dial("tcp", at[143].String())
	assert.NilError(t, err)
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	c = &client{t: t, nc: nc, br: bufio.NewReader(nc)}
	c.say("a1 NOOP")
	assert.Equal(t, c.line(), "<closed>")
}
