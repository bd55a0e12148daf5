package stalwart_test

import (
	"encoding/base64"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/harness/reference/stalwart"
)

// observations are one for every bug: what a right server shows, and how to
// see it. A server with the bug shows something else.
var observations = map[string]struct {
	right string
	see   func(t *testing.T, l *lab) string
}{
	"stalwart-header-ignored":        {"203.0.113.7:40001", seenAs("203.0.113.7:40001")},
	"stalwart-port-dropped":          {"203.0.113.7:40001", seenAs("203.0.113.7:40001")},
	"stalwart-destination-as-client": {"203.0.113.7:40001", seenAs("203.0.113.7:40001")},
	"stalwart-mapped-not-normalised": {"203.0.113.7:40001", seenAs("[::ffff:203.0.113.7]:40001")},
	"stalwart-ipv6-refused":          {"2001:db8::77:40001", seenAs("[2001:db8::77]:40001")},
	"stalwart-log-no-session-keys":   {"203.0.113.7:40001", seenAs("203.0.113.7:40001")},
	"stalwart-log-drops-lines":       {"203.0.113.7:40001", seenAs("203.0.113.7:40001")},
	"stalwart-mixes-up-sessions": {"203.0.113.7:40001", func(t *testing.T, l *lab) string {
		l.through("203.0.113.99:1", 143).line()
		return seenAs("203.0.113.7:40001")(t, l)
	}},
	"stalwart-header-from-anyone": {"* BAD", func(t *testing.T, l *lab) string {
		c := l.open(strangerAt, 143)
		c.nc.Write(header("203.0.113.7:40001", "198.51.100.1:143"))
		c.line()
		c.say("a1 NOOP")
		return c.line()[:5]
	}},
	"stalwart-tls-header-from-anyone": {"refused", func(_ *testing.T, l *lab) string {
		c := l.open(strangerAt, 993)
		c.nc.Write(header("203.0.113.7:40001", "198.51.100.1:993"))
		if c.tryTLS() != nil {
			return "refused"
		}
		return "believed"
	}},
	"stalwart-refused-header-logged": {strangerAt, func(t *testing.T, l *lab) string {
		c := l.open(strangerAt, 143)
		io.WriteString(c.nc, "PROXY TCP4 6.6.6.6 198.51.100.1 1 2\r\n")
		c.line()
		if s := c.line(); !strings.HasPrefix(s, "PROXY BAD") {
			return s
		}
		c.say("a1 AUTHENTICATE PLAIN " + plain("bob@example.test", "bobpw"))
		c.line()
		return regexp.MustCompile(`remoteIp = (\S+),`).FindStringSubmatch(l.log.await(t, "(auth.success)", "bob@example.test"))[1]
	}},
	"stalwart-header-optional": {"<silence>", func(_ *testing.T, l *lab) string { return l.greets(proxyAt) }},
	"stalwart-header-whole-segment": {"* OK", func(_ *testing.T, l *lab) string {
		c := l.open(proxyAt, 143)
		h := header("203.0.113.7:40001", "198.51.100.1:143")
		c.nc.Write(h[:1])
		c.nc.SetReadDeadline(time.Now().Add(time.Minute))
		c.line() // silence, as soon as the server has read the first octet
		c.nc.SetReadDeadline(time.Now().Add(time.Minute))
		c.nc.Write(h[1:])
		return first(c.line(), 4)
	}},
	"stalwart-header-eats-payload": {"HTTP/1.1 200 OK", func(_ *testing.T, l *lab) string {
		c := l.open(proxyAt, 8080)
		c.nc.Write(append(header("203.0.113.7:40001", "198.51.100.1:8080"), "GET /healthz/live HTTP/1.1\r\n\r\n"...))
		c.nc.SetReadDeadline(time.Now().Add(time.Minute))
		return c.line()
	}},
	"stalwart-v1-refused":     {"* OK", greetedAfter("PROXY TCP4 203.0.113.7 198.51.100.1 1 2\r\n")},
	"stalwart-local-refused":  {"* OK", greetedAfter("\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00")},
	"stalwart-unspec-refused": {"* OK", greetedAfter("\r\n\r\n\x00\r\nQUIT\n\x21\x00\x00\x00")},
	"stalwart-header-again-after-tls": {"tls", func(_ *testing.T, l *lab) string {
		c := l.through("203.0.113.7:40001", 143)
		c.line()
		c.say("a1 STARTTLS")
		c.line()
		c.nc.SetDeadline(time.Now().Add(time.Second))
		if c.tryTLS() != nil {
			return "no tls"
		}
		return "tls"
	}},
	"stalwart-failed-login-logs-proxy": {"203.0.113.7", func(t *testing.T, l *lab) string {
		c := l.through("203.0.113.7:40001", 993)
		c.line()
		c.say("a1 LOGIN alice@example.test wrong")
		c.line()
		return regexp.MustCompile(`remoteIp = (\S+),`).FindStringSubmatch(l.log.await(t, "(auth.failed)"))[1]
	}},
	"stalwart-forwarded-believed": {"false", func(_ *testing.T, l *lab) string {
		l.ask(strangerAt, 8081, "GET /jmap/session HTTP/1.1\r\nForwarded: for=6.6.6.6\r\nAuthorization: Basic "+base64.StdEncoding.EncodeToString([]byte("alice@example.test:alicepw"))+"\r\n\r\n")
		l.srv.Close()
		return fmt.Sprint(strings.Contains(strings.Join(l.log.end(), "\n"), "remoteIp = 6.6.6.6"))
	}},
	"stalwart-ban-hits-proxy": {`{"data":{"total":1,"items":{"203.0.113.60":""}}}`, func(_ *testing.T, l *lab) string {
		l.attack("203.0.113.60:40001")
		_, body := l.api("GET", "/api/settings/list?prefix=server.blocked-ip", "")
		return body
	}},
	"stalwart-ban-forgotten": {"<closed>", func(_ *testing.T, l *lab) string {
		l.attack("203.0.113.60:40001")
		l.restart()
		return l.through("203.0.113.60:40002", 143).line()
	}},
	"stalwart-blocked-ignored": {"<closed>", func(_ *testing.T, l *lab) string {
		l.attack("203.0.113.60:40001")
		return first(l.through("203.0.113.60:40002", 143).line(), 8)
	}},
	"stalwart-administrator-reads-nothing": {"Mailbox/get", reads("carol@example.test", "carolpw")},
	"stalwart-everyone-reads":              {"error", reads("bob@example.test", "bobpw")},
	"stalwart-header-tls-ignored": {"no STARTTLS", func(_ *testing.T, l *lab) string {
		h := header("203.0.113.7:40001", "198.51.100.1:143")
		h = append(h, 0x20, 0, 5, 1, 0, 0, 0, 0) // PP2_TYPE_SSL with the client bit
		h[15] += 8
		c := l.open(proxyAt, 143)
		c.nc.Write(h)
		if strings.Contains(c.line(), "STARTTLS") {
			return "STARTTLS"
		}
		return "no STARTTLS"
	}},
	"stalwart-everyone-masters": {"b1 NO", func(_ *testing.T, l *lab) string {
		return first(l.login("alice@example.test%bob@example.test", "bobpw"), 5)
	}},
	"stalwart-clear-text-from-anyone": {"a1 NO", func(_ *testing.T, l *lab) string {
		c := l.open(strangerAt, 143)
		c.line()
		c.say("a1 LOGIN bob@example.test bobpw")
		return first(c.line(), 5)
	}},
	"stalwart-starttls-missing": {"true", func(_ *testing.T, l *lab) string {
		c := l.open(strangerAt, 587)
		c.reply()
		c.say("EHLO new.example.test")
		offered := false
		for s := c.line(); strings.HasPrefix(s, "250-"); s = c.line() {
			offered = offered || s == "250-STARTTLS"
		}
		return fmt.Sprint(offered)
	}},
	"stalwart-ban-hits-all-clients": {"* OK", func(_ *testing.T, l *lab) string {
		l.attack("203.0.113.60:40001")
		return first(l.through("203.0.113.61:40002", 143).line(), 4)
	}},
	"stalwart-ban-hits-proxy-too": {"* OK", func(_ *testing.T, l *lab) string {
		l.attack("203.0.113.60:40001")
		c := l.open(proxyAt, 143)
		io.WriteString(c.nc, "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00")
		return first(c.line(), 4)
	}},
	"stalwart-refuses-every-password": {"b1 OK", func(_ *testing.T, l *lab) string { return first(l.login("bob@example.test", "bobpw"), 5) }},
	"stalwart-mute-inside-tls": {"* OK", func(_ *testing.T, l *lab) string {
		c := l.open(strangerAt, 993)
		c.tls()
		return first(c.line(), 4)
	}},
	"stalwart-refuses-odd-names": {"250 250 250", func(_ *testing.T, l *lab) string {
		c := l.open(strangerAt, 587)
		c.reply()
		return strings.Join([]string{first(c.ask("EHLO laptop"), 3), first(c.ask("EHLO [192.0.2.1]"), 3), first(c.ask("EHLO my_laptop.example"), 3)}, " ")
	}},
	"stalwart-refuses-mail-of-odd-names": {"250", func(_ *testing.T, l *lab) string {
		l.set("session.ehlo.reject-non-fqdn", "false")
		l.reload()
		c := l.open(relayAt, 25)
		c.reply()
		c.ask("EHLO new")
		return first(c.ask("MAIL FROM:<a@b.example>"), 3)
	}},
	"stalwart-spoilt-by-bad-command": {"250", func(_ *testing.T, l *lab) string {
		c := l.open(relayAt, 25)
		c.reply()
		io.WriteString(c.nc, "PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\nEHLO new.example.test\r\n")
		c.reply()
		return first(c.reply(), 3)
	}},
	"stalwart-http-unavailable": {"307", func(_ *testing.T, l *lab) string {
		return fmt.Sprint(l.ask(strangerAt, 8081, "GET /.well-known/jmap HTTP/1.1\r\n\r\n").status)
	}},
	"stalwart-reload-applies-listeners": {"<silence>", func(_ *testing.T, l *lab) string {
		l.api("POST", "/api/settings", `[{"type":"clear","prefix":"server.listener.imap.proxy."}]`)
		l.reload()
		return l.greets(proxyAt)
	}},
	"stalwart-reload-applies-nothing": {"220 changed", func(_ *testing.T, l *lab) string {
		l.set("session.connect.greeting", "'changed'")
		l.reload()
		return l.open(strangerAt, 25).line()
	}},
	"stalwart-insert-applies": {"220 old.internal.test Stalwart ESMTP at your service", func(_ *testing.T, l *lab) string {
		l.set("session.connect.greeting", "'changed'")
		return l.open(strangerAt, 25).line()
	}},
	"stalwart-inserts-pile-up": {"220 old.internal.test Stalwart ESMTP at your service", func(_ *testing.T, l *lab) string {
		l.set("session.connect.greeting", "'changed'")
		l.set("session.connect.greeting", "'changed'")
		l.api("DELETE", "/api/settings/session.connect.greeting", "")
		l.reload()
		return l.open(strangerAt, 25).line()
	}},
	"stalwart-restart-keeps-listeners": {"greeted", func(_ *testing.T, l *lab) string {
		l.api("POST", "/api/settings", `[{"type":"clear","prefix":"server.listener.imap.proxy."}]`)
		l.restart()
		return l.greets(proxyAt)
	}},
	"stalwart-reload-errors-hidden": {"errors", func(_ *testing.T, l *lab) string {
		l.set("http.url", "https://x")
		if _, body := l.api("GET", "/api/reload", ""); strings.Contains(body, `"errors":{}`) {
			return "no errors"
		}
		return "errors"
	}},
	"stalwart-reload-applies-in-spite": {"as before", func(_ *testing.T, l *lab) string {
		l.set("http.url", "https://x")
		l.set("session.connect.greeting", "'other'")
		l.api("GET", "/api/reload", "")
		if s, _ := l.open(strangerAt, 25).br.ReadString('\n'); strings.Contains(s, "other") {
			return "applied"
		}
		return "as before"
	}},
	"stalwart-accepts-any-password": {"b1 NO", func(_ *testing.T, l *lab) string { return first(l.login("alice@example.test", "wrong"), 5) }},
	"stalwart-roles-ignored":        {"<closed>", func(_ *testing.T, l *lab) string { return first(l.login("noroles@example.test", "x"), 8) }},
	"stalwart-closes-after-failed-login": {"b1 NO [AUTHENTICATIONFAILED] Authentication failed", func(_ *testing.T, l *lab) string {
		return l.login("alice@example.test", "wrong")
	}},
	"stalwart-no-greeting": {"greeted", func(_ *testing.T, l *lab) string { return l.greets(strangerAt) }},
	"stalwart-bare-lf": {"\r\n", func(_ *testing.T, l *lab) string {
		s, _ := l.open(strangerAt, 143).br.ReadString('\n')
		return s[len(s)-2:]
	}},
	"stalwart-large-packets-in-lost": {"answered", func(_ *testing.T, l *lab) string {
		return l.pipelined(2, "x ID (\"a\" \""+strings.Repeat("x", 3000)+"\" \"b\" \""+strings.Repeat("x", 3000)+"\")")
	}},
	"stalwart-large-packets-out-lost":  {"answered", func(_ *testing.T, l *lab) string { return l.pipelined(30, "x CAPABILITY") }},
	"stalwart-relay-everyone":          {"550 5.1.2 Relay not allowed.", recipient("x@elsewhere.example")},
	"stalwart-relay-refuses-everyone":  {"250 2.1.5 OK", recipient("alice@example.test")},
	"stalwart-accepts-then-drops":      {"1 0", mailboxes},
	"stalwart-delivers-twice":          {"1 0", mailboxes},
	"stalwart-delivers-to-junk":        {"1 0", mailboxes},
	"stalwart-rewrites-body":           {"whole", body},
	"stalwart-dot-stuffing-kept":       {"whole", body},
	"stalwart-received-shows-listener": {"whole", body},
	"stalwart-bdat-truncates":          {"250 whole", bdat},
	"stalwart-bdat-last-ignored":       {"250 whole", bdat},
	"stalwart-one-bad-refuses-all": {"354 Start mail input; end with <CRLF>.<CRLF>", func(_ *testing.T, l *lab) string {
		c := l.open(relayAt, 25)
		c.reply()
		for _, s := range []string{"EHLO new.example.test", "MAIL FROM:<a@b.example>", "RCPT TO:<nobody@example.test>", "RCPT TO:<alice@example.test>"} {
			c.ask(s)
		}
		return c.ask("DATA")
	}},
	"stalwart-null-sender-refused": {"250 2.1.0 OK", func(_ *testing.T, l *lab) string {
		c := l.open(relayAt, 25)
		c.reply()
		c.ask("EHLO new.example.test")
		return c.ask("MAIL FROM:<>")
	}},
	"stalwart-loops-accepted": {"450 4", func(_ *testing.T, l *lab) string {
		c := l.open(relayAt, 25)
		c.reply()
		for _, s := range []string{"EHLO new.example.test", "MAIL FROM:<>", "RCPT TO:<alice@example.test>", "DATA"} {
			c.ask(s)
		}
		return first(c.ask(messageFor("(message with 55 Received fields)")), 5)
	}},
	"stalwart-8bitmime-missing": {"offered", func(_ *testing.T, l *lab) string {
		c := l.open(relayAt, 25)
		c.reply()
		if strings.Contains(c.ask("EHLO new.example.test"), "8BITMIME") {
			return "offered"
		}
		return "not"
	}},
	"stalwart-smtputf8-missing": {"offered", func(_ *testing.T, l *lab) string {
		c := l.open(relayAt, 25)
		c.reply()
		c.say("EHLO new.example.test")
		for {
			switch s := c.line(); {
			case strings.Contains(s, "SMTPUTF8"):
				return "offered"
			case s[3] == ' ':
				return "not"
			}
		}
	}},
	"stalwart-rewrites-header": {"as it was", func(_ *testing.T, l *lab) string {
		m := l.relayed("a@b.example", "alice@example.test", "DKIM-Signature: v=1;\r\n b=AA==\r\nFrom: A <a@b.example>\r\nSubject: b\r\n\r\nb\r\n.")[0]
		if strings.HasSuffix(m, "DKIM-Signature: v=1;\r\n b=AA==\r\nFrom: A <a@b.example>\r\nSubject: b\r\n\r\nb\r\n") {
			return "as it was"
		}
		return m
	}},
	"stalwart-eighth-bit-lost": {"\xc3\xbc", func(_ *testing.T, l *lab) string {
		m := l.relayed("a@b.example", "alice@example.test", "Subject: b\r\n\r\n\xc3\xbc\r\n.")[0]
		return m[len(m)-4 : len(m)-2]
	}},
	"stalwart-null-sender-replaced": {"<>", func(_ *testing.T, l *lab) string {
		m := l.relayed("", "alice@example.test", "Subject: b\r\n\r\nb\r\n.")[0]
		return regexp.MustCompile(`Return-Path: (\S*)`).FindStringSubmatch(m)[1]
	}},
	"stalwart-queue-stands": {"1", func(_ *testing.T, l *lab) string {
		return fmt.Sprint(len(l.relayed("a@b.example", "alice@example.test", "Subject: b\r\n\r\nb\r\n.")))
	}},
	"stalwart-log-no-delivery": {"true", func(_ *testing.T, l *lab) string {
		l.relayed("a@b.example", "alice@example.test", "Subject: b\r\n\r\nb\r\n.")
		l.srv.Close()
		return fmt.Sprint(strings.Contains(strings.Join(l.log.end(), "\n"), "(message-ingest.ham)"))
	}},
	"stalwart-refuses-hello": {"250", func(_ *testing.T, l *lab) string {
		c := l.open(relayAt, 25)
		c.reply()
		return first(c.ask("EHLO new.example.test"), 3)
	}},
	"stalwart-refuses-senders": {"250", func(_ *testing.T, l *lab) string {
		c := l.open(relayAt, 25)
		c.reply()
		c.ask("EHLO new.example.test")
		return first(c.ask("MAIL FROM:<a@b.example>"), 3)
	}},
	"stalwart-refuses-messages": {"250 whole", bdat},
	"stalwart-submission-for-anybody": {"503", func(_ *testing.T, l *lab) string {
		c := l.open(strangerAt, 587)
		c.reply()
		c.ask("EHLO new.example.test")
		c.ask("MAIL FROM:<a@b.example>")
		return first(c.ask("RCPT TO:<x@elsewhere.example>"), 3)
	}},
	"stalwart-accepts-unknown-recipients": {"550 5.1.2 Mailbox does not exist.", recipient("nobody@example.test")},
	"stalwart-log-other-listener": {"imap 143", func(t *testing.T, l *lab) string {
		c := l.through("203.0.113.7:40001", 143)
		c.line()
		c.say("a1 AUTHENTICATE PLAIN " + plain("bob@example.test", "bobpw"))
		c.line()
		m := regexp.MustCompile(`listenerId = "(\S+)", localPort = (\d+)`).FindStringSubmatch(l.log.await(t, "(auth.success)", "bob@example.test"))
		return m[1] + " " + m[2]
	}},
	"stalwart-websocket-once": {"\x81", func(_ *testing.T, l *lab) string {
		c := l.webSocket()
		c.echo()
		c.nc.SetReadDeadline(time.Now().Add(time.Minute))
		head := make([]byte, 2)
		if _, err := io.ReadFull(c.br, head); err != nil {
			return err.Error()
		}
		if _, err := io.CopyN(io.Discard, c.br, int64(head[1])); err != nil {
			return err.Error()
		}
		c.echo()
		c.nc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		b, err := c.br.ReadByte()
		if err != nil {
			return "<silence>"
		}
		return string([]byte{b})
	}},
	"stalwart-host-header-believed": {"http://old", func(_ *testing.T, l *lab) string {
		a := l.ask(strangerAt, 8081, "GET /jmap/session HTTP/1.1\r\nHost: evil.example\r\n\r\n")
		return first(strings.Split(a.body, `"apiUrl":"`)[1], 10)
	}},
	"stalwart-redirects-absolute": {"/jmap/session", func(_ *testing.T, l *lab) string {
		return l.ask(strangerAt, 8081, "GET /.well-known/jmap HTTP/1.1\r\n\r\n").headers["location"]
	}},
	"stalwart-websocket-refused": {"101", func(_ *testing.T, l *lab) string {
		return fmt.Sprint(l.ask(strangerAt, 8081, upgrade()).status)
	}},
	"stalwart-websocket-mute": {"\x81", func(_ *testing.T, l *lab) string {
		c := l.webSocket()
		c.echo()
		c.nc.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		b, err := c.br.ReadByte()
		if err != nil {
			return "<silence>"
		}
		return string([]byte{b})
	}},
	"stalwart-answers-name-address": {"", func(_ *testing.T, l *lab) string {
		return l.ask(strangerAt, 8081, "GET /robots.txt HTTP/1.1\r\n\r\n").headers["x-served-by"]
	}},
	"stalwart-policy-names-address": {"1", func(_ *testing.T, l *lab) string {
		l.set("session.mta-sts.mx.0", "mx.example.test")
		l.reload()
		return fmt.Sprint(strings.Count(l.ask(strangerAt, 8081, "GET /.well-known/mta-sts.txt HTTP/1.1\r\n\r\n").body, "mx: "))
	}},
	"stalwart-cookie-names-host": {"", func(_ *testing.T, l *lab) string {
		return l.ask(strangerAt, 8081, "GET /healthz/live HTTP/1.1\r\n\r\n").headers["set-cookie"]
	}},
	"stalwart-log-late": {"at once", func(t *testing.T, l *lab) string {
		for i := range 5 { // a busy machine may be late once
			c := l.through(fmt.Sprintf("203.0.113.7:%d", 40001+i), 143)
			c.line()
			began := time.Now()
			c.say("a1 AUTHENTICATE PLAIN " + plain("bob@example.test", "bobpw"))
			l.log.await(t, "(auth.success)", fmt.Sprint("remotePort = ", 40001+i))
			if time.Since(began) < stalwart.LogDelay {
				return "at once"
			}
		}
		return "late"
	}},
}

func first(s string, n int) string { return s[:min(n, len(s))] }

// seenAs connects through the proxy as src and says as whom the log has it.
func seenAs(src string) func(*testing.T, *lab) string {
	return func(t *testing.T, l *lab) string {
		c := l.through(src, 143)
		s := c.line()
		if strings.HasPrefix(s, "<") {
			return s
		}
		c.say("a1 AUTHENTICATE PLAIN " + plain("bob@example.test", "bobpw"))
		c.line()
		c.say("a2 LOGOUT")
		for s := c.line(); !strings.HasPrefix(s, "<"); s = c.line() {
		}
		assert.NilError(t, l.srv.Close())
		for _, line := range l.log.end() {
			if strings.Contains(line, "(auth.success)") && strings.Contains(line, "bob@example.test") {
				m := regexp.MustCompile(`remoteIp = (\S+), remotePort = (\d+)`).FindStringSubmatch(line)
				if m == nil {
					return "nobody"
				}
				return m[1] + ":" + m[2]
			}
		}
		return "no line"
	}
}

func greetedAfter(h string) func(*testing.T, *lab) string {
	return func(_ *testing.T, l *lab) string {
		c := l.open(proxyAt, 143)
		io.WriteString(c.nc, h)
		return first(c.line(), 4)
	}
}

// pipelined sends a command n times at once, and waits for as many answers.
func (l *lab) pipelined(n int, command string) string {
	c := l.open(strangerAt, 143)
	c.line()
	c.say(strings.TrimSuffix(strings.Repeat(command+"\r\n", n), "\r\n"))
	for n > 0 {
		switch s := c.line(); {
		case strings.HasPrefix(s, "x OK"):
			n--
		case !strings.HasPrefix(s, "* "):
			return s
		}
	}
	return "answered"
}

func (l *lab) login(user, secret string) string {
	c := l.open(strangerAt, 143)
	c.line()
	c.say("b1 AUTHENTICATE PLAIN " + plain(user, secret))
	return c.line()
}

// reads says what becomes of somebody's call for the mailboxes of alice; carol
// is an administrator.
func reads(user, secret string) func(*testing.T, *lab) string {
	return func(_ *testing.T, l *lab) string {
		l.api("PATCH", "/api/principal/carol@example.test", `[{"action":"addItem","field":"roles","value":"admin"}]`)
		const call = `{"using":["urn:ietf:params:jmap:mail"],"methodCalls":[["Mailbox/get",{"accountId":"c"},"c1"]]}`
		a := l.ask(strangerAt, 8081, fmt.Sprintf("POST /jmap/ HTTP/1.1\r\nAuthorization: Basic %s\r\nContent-Length: %d\r\n\r\n%s",
			base64.StdEncoding.EncodeToString([]byte(user+":"+secret)), len(call), call))
		_, rest, _ := strings.Cut(a.body, `"methodResponses":[["`)
		name, _, _ := strings.Cut(rest, `"`)
		return name
	}
}

// attack earns a client of the proxy a ban.
func (l *lab) attack(src string) {
	l.t.Helper()
	l.set("server.auto-ban.auth.rate", "1/1d")
	l.reload()
	for range 2 {
		c := l.open(proxyAt, 143)
		c.nc.Write(header(src, "198.51.100.1:143"))
		c.line()
		c.say("b1 AUTHENTICATE PLAIN " + plain("bob@example.test", "wrong"))
		c.line()
		c.nc.Close()
	}
}

func recipient(address string) func(*testing.T, *lab) string {
	return func(_ *testing.T, l *lab) string {
		c := l.open(relayAt, 25)
		c.reply()
		c.ask("EHLO new.example.test")
		c.ask("MAIL FROM:<a@b.example>")
		return c.ask("RCPT TO:<" + address + ">")
	}
}

func mailboxes(t *testing.T, l *lab) string {
	l.deliver(t, "x")
	return fmt.Sprint(len(l.inbox()), len(l.box("alice@example.test", "Junk Mail")))
}

func body(_ *testing.T, l *lab) string {
	c := l.open(relayAt, 25)
	c.reply()
	for _, s := range []string{"EHLO new.example.test", "MAIL FROM:<a@b.example>", "RCPT TO:<alice@example.test>", "DATA"} {
		c.ask(s)
	}
	c.ask("Subject: b\r\n\r\n..dot\r\n.")
	m := l.inbox()[0]
	if strings.HasSuffix(m, "\r\n\r\n.dot\r\n") && strings.Contains(m, "[172.30.2.1]") {
		return "whole"
	}
	return m
}

func bdat(_ *testing.T, l *lab) string {
	c := l.open(relayAt, 25)
	c.reply()
	for _, s := range []string{"EHLO new.example.test", "MAIL FROM:<a@b.example>", "RCPT TO:<alice@example.test>"} {
		c.ask(s)
	}
	const m = "Subject: b\r\n\r\none two three\r\n"
	io.WriteString(c.nc, fmt.Sprintf("BDAT %d LAST\r\n%s", len(m), m))
	s := first(c.reply(), 3)
	if in := l.inbox(); len(in) == 1 && strings.HasSuffix(in[0], m) {
		return s + " whole"
	}
	return s
}

// relayed sends a message as the new server does, and returns the inbox.
func (l *lab) relayed(from, to, message string) []string {
	l.t.Helper()
	c := l.open(relayAt, 25)
	c.reply()
	for _, s := range []string{"EHLO new.example.test", "MAIL FROM:<" + from + ">", "RCPT TO:<" + to + ">", "DATA"} {
		c.ask(s)
	}
	assert.Equal(l.t, first(c.ask(message), 3), "250")
	return l.inbox()
}

// webSocket is a connection on which JMAP is spoken over a WebSocket.
func (l *lab) webSocket() *client {
	c := l.open(strangerAt, 8081)
	io.WriteString(c.nc, upgrade())
	for s := c.line(); s != ""; s = c.line() {
	}
	return c
}

// echo asks for an answer of less than 126 octets.
func (c *client) echo() {
	const ask = `{"@type":"Request","id":"1","using":["urn:ietf:params:jmap:core"],"methodCalls":[["Core/echo",{},"0"]]}`
	c.nc.Write(append([]byte{0x81, 0x80 | byte(len(ask)), 0, 0, 0, 0}, ask...))
}

func upgrade() string {
	return "GET /jmap/ws HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: jmap\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" +
		"Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("alice@example.test:alicepw")) + "\r\n\r\n"
}

// TestEveryBug: each shows, and is alone in what it shows.
func TestEveryBug(t *testing.T) {
	for _, b := range stalwart.Bugs() {
		t.Run(b.Name, func(t *testing.T) {
			o, ok := observations[b.Name]
			assert.Assert(t, ok, "nothing shows this bug")
			assert.Assert(t, strings.HasSuffix(b.Sentence, "."), b.Sentence)
			see := func(t *testing.T, bugs ...string) string {
				t.Helper()
				l := startLab(t, labOptions{bugs: bugs, keys: trusting})
				return o.see(t, l)
			}
			assert.Equal(t, see(t), o.right)
			got := see(t, b.Name)
			assert.Assert(t, got != o.right, "the bug does not show: %q", got)
		})
	}
	assert.Equal(t, len(observations), len(stalwart.Bugs()))
}

// trusting are the guide's keys as they stand in the file after it.
const trusting = `
server.listener.imap.proxy.trusted-networks.0 = "172.30.1.1/32"
server.listener.imaptls.proxy.trusted-networks.0 = "172.30.1.1/32"
server.listener.http.proxy.trusted-networks.0 = "172.30.1.1/32"
`
