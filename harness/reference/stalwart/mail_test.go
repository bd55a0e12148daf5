package stalwart_test

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"net/netip"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/harness/proto/dns"
	"github.com/mailproof/mailproof/harness/reference/stalwart"
)

// inbox is what alice has, and box another mailbox of hers.
func (l *lab) inbox() []string { return l.box("alice@example.test", "INBOX") }

func (l *lab) box(account, box string) []string {
	var out []string
	for _, m := range l.srv.Account(account).Messages(box) {
		out = append(out, string(m.Octets))
	}
	return out
}

var (
	ids   = regexp.MustCompile(`id [0-9A-F]{14,16};`)
	dates = regexp.MustCompile(`[A-Z][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000`)
)

func steady(s string) string {
	return dates.ReplaceAllString(ids.ReplaceAllString(s, "id ID;"), "DATE")
}

// TestDeliveredHeader: the fields above a message are the recorded ones, with
// the checks off and as shipped.
func TestDeliveredHeader(t *testing.T) {
	l := startLab(t, labOptions{})
	assert.Assert(t, cmp.Regexp(`^250 2\.0\.0 Message queued with id [0-9a-f]{15}\.$`, l.deliver(t, "r1")))
	assert.Equal(t, len(l.inbox()), 1)
	assert.Equal(t, steady(l.inbox()[0]), "Delivered-To: alice@example.test\r\n"+
		"Received: from new.example.test (unknown [172.30.2.1])\r\n\tby old.internal.test (Stalwart SMTP) with ESMTP id ID;\r\n\tDATE\r\n"+
		"Authentication-Results: old.internal.test; none\r\n"+
		"Return-Path: <user@sender.example>\r\n"+
		"Date: DATE\r\n"+
		"Received: from mx.sender.example (mx.sender.example [198.51.100.25]) by new.example.test; DATE\r\n"+
		"From: Sender <user@sender.example>\r\nTo: alice@example.test\r\nSubject: relay r1\r\nMessage-ID: <r1@probe.example>\r\nX-Conf-Token: r1\r\n\r\nhello\r\n")

	l = startLab(t, labOptions{loud: true})
	l.deliver(t, "d1")
	got, _, _ := strings.Cut(steady(l.inbox()[0]), "Return-Path: ")
	assert.Equal(t, got, "Delivered-To: alice@example.test\r\nX-Spam-Status: No\r\n"+
		"Received: from new.example.test (unknown [172.30.2.1])\r\n\tby old.internal.test (Stalwart SMTP) with ESMTP id ID;\r\n\tDATE\r\n"+
		"Authentication-Results: old.internal.test;\r\n"+
		"\tspf=none (old.internal.test: no SPF records found for postmaster@new.example.test) smtp.helo=new.example.test;\r\n"+
		"\tspf=none (old.internal.test: no SPF records found for user@sender.example) smtp.mailfrom=user@sender.example;\r\n"+
		"\tiprev=permerror (dns record not found) policy.iprev=172.30.2.1;\r\n"+
		"\tdmarc=none header.from=sender.example policy.dmarc=none\r\n"+
		"Received-SPF: none (old.internal.test: no SPF records found for user@sender.example)\r\n"+
		"\treceiver=old.internal.test; client-ip=172.30.2.1; envelope-from=\"user@sender.example\"; helo=new.example.test;\r\n"+
		"X-Spam-Result: ARC_NA (0.00),\r\n\tDKIM_NA (0.00),\r\n\tDMARC_NA (0.00),\r\n\tENV_FROM_INVALID (0.00),\r\n\tFROM_EQ_ENV_FROM (0.00),\r\n\tFROM_INVALID (0.00),\r\n"+
		"\tHELO_NOT_FQDN (0.00),\r\n\tMISSING_DATE (0.00),\r\n\tRCPT_COUNT_ONE (0.00),\r\n\tRCVD_COUNT_ONE (0.00),\r\n\tRCVD_NO_TLS_LAST (0.00),\r\n\tRDNS_NONE (0.00),\r\n"+
		"\tSINGLE_SHORT_PART (0.00),\r\n\tSPF_NA (0.00),\r\n\tTO_DN_NONE (0.00),\r\n\tTO_MATCH_ENVRCPT_ALL (0.00)\r\nX-Spam-Score: ham, score=0.00\r\n")
}

// TestRelayAsTheNewServerDoes: STARTTLS, SIZE, and one chunk of BDAT; and more
// chunks than one.
func TestRelayAsTheNewServerDoes(t *testing.T) {
	l := startLab(t, labOptions{})
	c := l.open(relayAt, 25)
	c.reply()
	c.ask("EHLO new.example.test")
	assert.Equal(t, c.ask("STARTTLS"), "220 2.0.0 Ready to start TLS.")
	c.tls()
	c.ask("EHLO new.example.test")
	body := "From: a@sender.example\r\nSubject: bdat\r\n\r\n..dots\r\n.\r\nend\r\n"
	for _, cut := range []int{0, 10} {
		assert.Equal(t, c.ask(fmt.Sprintf("MAIL FROM:<user@sender.example> SIZE=%d", len(body))), "250 2.1.0 OK")
		assert.Equal(t, c.ask("RCPT TO:<alice@example.test>"), "250 2.1.5 OK")
		if cut > 0 {
			io.WriteString(c.nc, fmt.Sprintf("BDAT %d\r\n%s", cut, body[:cut]))
			assert.Equal(t, c.reply(), "250 2.6.0 Chunk accepted.")
		}
		io.WriteString(c.nc, fmt.Sprintf("BDAT %d LAST\r\n%s", len(body)-cut, body[cut:]))
		got := c.reply()
		assert.Assert(t, cmp.Regexp(`^250 2\.0\.0 Message queued with id`, got))
	}
	for _, m := range l.inbox() {
		assert.Assert(t, strings.HasSuffix(m, body), "%q", m)
		assert.Assert(t, cmp.Regexp(`\(using TLSv1\.3 with cipher TLS13_AES_\d+_GCM_SHA\d+\)\r\n\tby old\.internal\.test \(Stalwart SMTP\) with ESMTPS id`, m))
	}
	assert.Equal(t, len(l.inbox()), 2)
	assert.Equal(t, c.ask("BDAT x"), "501 5.5.2 Syntax error, expected: BDAT chunk-size [LAST]")
	io.WriteString(c.nc, "BDAT 3 LAST\r\nabc")
	assert.Equal(t, c.reply(), "503 5.5.1 RCPT is required first.")
}

// TestDATA: dots, and a line feed that ends nothing.
func TestDATA(t *testing.T) {
	l := startLab(t, labOptions{})
	c := l.open(relayAt, 25)
	c.reply()
	for _, s := range []string{"EHLO new.example.test", "MAIL FROM:<>", "RCPT TO:<alice@example.test>"} {
		c.ask(s)
	}
	assert.Equal(t, c.ask("DATA"), "354 Start mail input; end with <CRLF>.<CRLF>")
	assert.Assert(t, cmp.Regexp("^250 ", c.ask("Subject: dots\r\n\r\n..one\r\n.two\r\nbare\n.\r\nend\r\n.")))
	assert.Assert(t, strings.HasSuffix(l.inbox()[0], "\r\n\r\n.one\r\ntwo\r\nbare\n.\r\nend\r\n"), "%q", l.inbox()[0])
	assert.Assert(t, cmp.Contains(l.inbox()[0], "Return-Path: <>\r\n"))
	assert.Assert(t, cmp.Regexp(`Message-ID: <[^>]+@old\.internal\.test>`, l.inbox()[0]))
}

// TestRecipients: plus addresses, catch-alls, unknown ones, and the time they
// take.
func TestRecipients(t *testing.T) {
	l := startLab(t, labOptions{})
	c := l.open(strangerAt, 25)
	c.reply()
	c.ask("EHLO s.example.net")
	c.ask("MAIL FROM:<a@ext.example>")
	for rcpt, want := range map[string]string{
		"<ALICE@Example.TEST>": "250 2.1.5 OK", "<alice+tag@example.test>": "250 2.1.5 OK",
		"<@a.example:alice@example.test>": "250 2.1.5 OK", "<b@ext2.example>": "550 5.1.2 Relay not allowed.",
		"<nobody@example.test>": "550 5.1.2 Mailbox does not exist.", "<a..b@example.test>": "501 5.1.3 Bad destination mailbox address syntax.",
		"alice@example.test":              "501 5.5.2 Syntax error, expected: RCPT TO:<forward-path> [parameters]",
		"<bob@example.test> NOTIFY=NEVER": "501 5.5.4 DSN extension has been disabled.",
		"<bob@example.test> X=Y":          `504 5.5.4 Unsupported parameter "X".`,
	} {
		c.nc.SetReadDeadline(time.Now().Add(4900 * time.Millisecond))
		c.say("RCPT TO:" + rcpt)
		got := c.reply()
		if strings.HasPrefix(want, "550") {
			assert.Equal(t, got, "<silence>", rcpt)
			c.nc.SetReadDeadline(time.Now().Add(time.Minute))
			got = c.reply()
		}
		assert.Equal(t, got, want, rcpt)
	}
	l.api("PATCH", "/api/principal/carol@example.test", `[{"action":"addItem","field":"emails","value":"@example.test"}]`)
	c.nc.SetReadDeadline(time.Now().Add(time.Minute))
	assert.Equal(t, c.ask("RCPT TO:<nobody@example.test>"), "250 2.1.5 OK")
}

// TestAbuseBan: rejected recipients ban whoever named them, everywhere.
func TestAbuseBan(t *testing.T) {
	l := startLab(t, labOptions{})
	for n := 0; n < 36; n += 4 {
		c := l.open(relayAt, 25)
		if s := c.reply(); s == "<closed>" {
			t.Fatalf("closed after %d", n)
		}
		c.ask("EHLO new.example.test")
		c.ask("MAIL FROM:<a@ext.example>")
		for i := range 4 {
			assert.Equal(t, c.ask(fmt.Sprintf("RCPT TO:<n%d@example.test>", n+i)), "550 5.1.2 Mailbox does not exist.")
		}
		c.ask("QUIT")
	}
	l.log.await(t, "INFO Banned due to abuse (security.abuse-ban)", "remoteIp = "+relayAt, `to = "n35@example.test"`)
	assert.Equal(t, l.open(relayAt, 25).reply(), "<closed>")
	assert.Equal(t, l.greets(relayAt), "<closed>")
	assert.Equal(t, l.greets(strangerAt), "greeted")
}

// TestLimiters: five connections a second from one address, and 25 messages an
// hour from one domain to one recipient, as shipped; and exemptions.
func TestLimiters(t *testing.T) {
	var passed atomic.Int64 // seconds
	begin := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	l := startLab(t, labOptions{loud: true, now: func() time.Time { return begin.Add(time.Duration(passed.Load()) * time.Second) }})
	greeted := func(from string, port uint16) int {
		n := 0
		for range 8 {
			c := l.open(from, port)
			if port == 465 && c.tryTLS() != nil {
				continue
			}
			if strings.HasPrefix(c.reply(), "220") {
				n++
			}
			c.nc.Close()
		}
		return n
	}
	assert.Equal(t, greeted(relayAt, 25), 5)
	assert.Equal(t, greeted(relayAt, 587), 0, "all ports of SMTP count together")
	assert.Equal(t, greeted(strangerAt, 465), 5)
	passed.Add(1)
	assert.Equal(t, greeted(relayAt, 25), 5)
	sent := 0
	for i := range 4 {
		passed.Add(1)
		c := l.open(relayAt, 25)
		c.reply()
		c.ask("EHLO new.example.test")
		for j := range 10 {
			c.ask("MAIL FROM:<u@sender.example>")
			switch s := c.ask("RCPT TO:<alice@example.test>"); s {
			case "250 2.1.5 OK":
			case "452 4.4.5 Rate limit exceeded, try again later.":
				c.ask("RSET")
				continue
			default:
				t.Fatal(s)
			}
			c.ask("DATA")
			assert.Assert(t, cmp.Contains(c.ask(messageFor(fmt.Sprintf("(message m%d-%d)", i, j))), "250 2.0.0"))
			sent++
		}
		assert.Equal(t, c.ask("MAIL FROM:<u@other.example>"), "250 2.1.0 OK")
		c.ask("RCPT TO:<alice@example.test>")
		if s := c.ask("DATA"); i < 2 { // ten messages in one session
			assert.Equal(t, s, "452 4.4.5 Maximum number of messages per session exceeded.")
		}
		c.nc.Close()
	}
	assert.Equal(t, sent, 25)
	assert.Equal(t, len(l.inbox()), 25)
	l.log.await(t, `INFO Rate limit exceeded (smtp.rate-limit-exceeded)`, `id = "sender", limit = [25, 3600000ms]`)
	// Our remedy: a condition that spares the relay.
	l.set("queue.limiter.inbound.ip.match", "remote_ip != '"+relayAt+"'", "queue.limiter.inbound.sender.match", "remote_ip != '"+relayAt+"'",
		"spam-filter.pyzor.enable", "false", "version.spam-filter", "2.0.0")
	l.reload()
	assert.Equal(t, greeted(relayAt, 25), 8)
	passed.Add(1)
	assert.Equal(t, greeted(strangerAt, 25), 5)
}

// TestLoops, sizes and duplicates.
func TestRefusedMessages(t *testing.T) {
	l := startLab(t, labOptions{})
	l.set("session.data.limits.size", "2000", "session.data.limits.received-headers", "3")
	l.reload()
	c := l.open(relayAt, 25)
	c.reply()
	c.ask("EHLO new.example.test")
	send := func(m string) string {
		c.ask("MAIL FROM:<u@sender.example>")
		c.ask("RCPT TO:<alice@example.test>")
		c.ask("DATA")
		s := c.ask(m + "\r\n.")
		c.ask("RSET")
		return s
	}
	assert.Equal(t, send(strings.Repeat("Received: x\r\n", 4)+"\r\nx"), "450 4.4.6 Too many Received headers. Possible loop detected.")
	assert.Assert(t, cmp.Contains(send(strings.Repeat("Received: x\r\n", 3)+"\r\nx"), "250 2.0.0"))
	assert.Equal(t, send("Subject: big\r\n\r\n"+strings.Repeat("x", 2000)), "552 5.3.4 Message too big for system.")
	assert.Equal(t, c.ask("MAIL FROM:<u@sender.example> SIZE=2001"), "552 5.3.4 Message too big for system.")
	assert.Assert(t, cmp.Contains(send("Message-ID: <same@x>\r\n\r\nx"), "250 2.0.0"))
	assert.Assert(t, cmp.Contains(send("Message-ID: <same@x>\r\n\r\nx"), "250 2.0.0"))
	assert.Equal(t, len(l.inbox()), 2)
	l.log.await(t, "Skipping duplicate message (message-ingest.duplicate)")
	c.ask("MAIL FROM:<u@sender.example>")
	c.ask("RCPT TO:<alice@example.test>")
	io.WriteString(c.nc, "BDAT 3000 LAST\r\n"+strings.Repeat("x", 3000))
	assert.Equal(t, c.reply(), "552 5.3.4 Message too big for system.")
	assert.Equal(t, c.ask(strings.Repeat("N", 5000)), "554 5.3.4 Line is too long.")
	assert.Equal(t, c.ask("NOOP"), "250 2.0.0 OK")
}

// zone is a fixture: a domain that says no to everybody, one that says yes to
// the relay, and the relay's name.
func zone(dkim string) *stalwart.Zone {
	relay := netip.MustParseAddr(relayAt)
	return &stalwart.Zone{
		TXT: map[string][]string{
			"strict.example":                 {"v=spf1 -all", "unrelated"},
			"_dmarc.strict.example":          {"v=DMARC1; p=reject"},
			"good.example":                   {"v=spf1 include:_spf.good.example ~all"},
			"_spf.good.example":              {"v=spf1 ip4:192.0.2.0/24 a:new.example.test ?all"},
			"_dmarc.good.example":            {"v=DMARC1; p=quarantine; sp=reject"},
			"loop.example":                   {"v=spf1 include:loop.example -all"},
			"redirected.example":             {"v=spf1 redirect=good.example"},
			"sel._domainkey.strict.example":  {"v=DKIM1; k=rsa; p=" + dkim},
			"mail._domainkey.strict.example": {"v=DKIM1; k=ed25519; p=" + dkim},
		},
		Addr: map[string][]netip.Addr{"new.example.test": {relay}},
		PTR:  map[string][]string{dns.Reverse(relay): {"new.example.test."}},
	}
}

// TestSenderChecks: relaxed checks say what they found and refuse nothing;
// strict ones refuse.
func TestSenderChecks(t *testing.T) {
	l := startLab(t, labOptions{loud: true, zone: zone(""), keys: "version.spam-filter = \"2.0.0\"\nspam-filter.enable = false\nspam-filter.pyzor.enable = false\n"})
	send := func(from, author string) string {
		c := l.open(relayAt, 25)
		defer c.nc.Close()
		c.reply()
		for _, s := range []string{"EHLO new.example.test", "MAIL FROM:<" + from + ">", "RCPT TO:<alice@example.test>", "DATA"} {
			if r := c.ask(s); r[0] == '4' || r[0] == '5' {
				return r
			}
		}
		return c.ask("From: <" + author + ">\r\nSubject: checks\r\n\r\nx\r\n.")
	}
	last := func() string { return l.inbox()[len(l.inbox())-1] }
	assert.Assert(t, cmp.Contains(send("u@strict.example", "u@strict.example"), "250 2.0.0"))
	for _, want := range []string{
		"spf=fail (old.internal.test: domain of u@strict.example does not designate 172.30.2.1 as permitted sender) smtp.mailfrom=u@strict.example",
		"iprev=pass policy.iprev=172.30.2.1", "dmarc=none header.from=strict.example policy.dmarc=reject",
		"Received-SPF: fail (", "Received: from new.example.test (new.example.test [172.30.2.1])",
	} {
		assert.Assert(t, cmp.Contains(last(), want))
	}
	l.log.await(t, "INFO SPF From check failed (smtp.spf-from-fail)", `from = "u@strict.example"`)
	l.log.await(t, "INFO DMARC check failed (smtp.dmarc-fail)", `domain = "strict.example", policy = "reject"`)
	assert.Assert(t, cmp.Contains(send("u@good.example", "u@sub.good.example"), "250 2.0.0"))
	assert.Assert(t, cmp.Contains(last(), "dmarc=pass header.from=sub.good.example policy.dmarc=reject"))
	assert.Assert(t, cmp.Contains(send("u@good.example", "u@strict.example"), "250 2.0.0"))
	assert.Assert(t, cmp.Contains(last(), "dmarc=fail (policy not aligned) header.from=strict.example policy.dmarc=reject"))
	for domain, want := range map[string]string{"redirected.example": "pass", "loop.example": "permerror", "none.example": "none"} {
		send("u@"+domain, "u@"+domain)
		assert.Assert(t, cmp.Contains(last(), "Received-SPF: "+want+" ("), domain)
	}
	for _, c := range []struct{ key, from, author, want string }{
		{"auth.dmarc.verify", "u@strict.example", "u@strict.example", "550 5.7.1 Email rejected per DMARC policy."},
		{"auth.dmarc.verify", "u@good.example", "u@good.example", "250 2.0.0"},
		{"auth.spf.verify.mail-from", "u@strict.example", "u@x.example", "550 5.7.23 SPF validation failed, status: fail."},
		{"auth.dkim.verify", "u@good.example", "u@good.example", "550 5.7.20 No passing DKIM signatures found."},
		{"auth.iprev.verify", "u@good.example", "u@good.example", "250 2.0.0"},
	} {
		l.set(c.key, "strict")
		l.reload()
		assert.Assert(t, cmp.Contains(send(c.from, c.author), c.want), c.key)
		l.set(c.key, "relaxed")
	}
	l.set("auth.iprev.verify", "strict")
	l.reload()
	c := l.open(strangerAt, 25)
	c.reply()
	c.ask("EHLO s.example.net")
	assert.Equal(t, c.ask("MAIL FROM:<u@good.example>"), "550 5.7.25 Reverse DNS validation failed.")
	// The guide's settings end all of it.
	for _, k := range []string{"dkim.verify", "arc.verify", "spf.verify.ehlo", "spf.verify.mail-from", "dmarc.verify", "iprev.verify"} {
		l.set("auth."+k, "disable")
	}
	l.reload()
	send("u@strict.example", "u@strict.example")
	assert.Assert(t, cmp.Contains(last(), "Authentication-Results: old.internal.test; none\r\n"))
	assert.Assert(t, !strings.Contains(last(), "Received-SPF"))
}

// TestDKIM: signatures of both kinds, whole and broken.
func TestDKIM(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	assert.NilError(t, err)
	spki, err := x509.MarshalPKIXPublicKey(key.Public())
	assert.NilError(t, err)
	edPub, edKey, err := ed25519.GenerateKey(rand.Reader)
	assert.NilError(t, err)
	z := zone(base64.StdEncoding.EncodeToString(spki))
	z.TXT["mail._domainkey.strict.example"] = []string{"v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(edPub)}
	l := startLab(t, labOptions{zone: z, keys: "auth.dkim.verify = \"strict\"\n"})
	sign := func(algorithm, selector string) string {
		body := "hello  world \r\n\r\n\r\n"
		hash := sha256.Sum256([]byte("hello world\r\n"))
		field := fmt.Sprintf("DKIM-Signature: v=1; a=%s; d=strict.example; s=%s; c=relaxed/relaxed;\r\n h=From : Subject; bh=%s; b=", algorithm, selector, base64.StdEncoding.EncodeToString(hash[:]))
		signed := "from:<u@strict.example>\r\nsubject:a b\r\n" +
			"dkim-signature:" + strings.TrimSpace(regexp.MustCompile(`\s+`).ReplaceAllString(strings.TrimPrefix(field, "DKIM-Signature:"), " "))
		sum := sha256.Sum256([]byte(signed))
		var b []byte
		if algorithm == "rsa-sha256" {
			b, err = rsa.SignPKCS1v15(rand.Reader, key, crypto.SHA256, sum[:])
			assert.NilError(t, err)
		} else {
			b = ed25519.Sign(edKey, sum[:])
		}
		return field + base64.StdEncoding.EncodeToString(b) + "\r\nFrom: <u@strict.example>\r\nSubject: a\r\n  b\r\n\r\n" + body
	}
	c := l.open(relayAt, 25)
	c.reply()
	c.ask("EHLO new.example.test")
	send := func(m string) string {
		c.ask("RSET")
		c.ask("MAIL FROM:<u@strict.example>")
		c.ask("RCPT TO:<alice@example.test>")
		c.ask("DATA")
		return c.ask(m + ".")
	}
	for _, a := range [][2]string{{"rsa-sha256", "sel"}, {"ed25519-sha256", "mail"}} {
		assert.Assert(t, cmp.Contains(send(sign(a[0], a[1])), "250 2.0.0"), a[0])
		got := l.inbox()[len(l.inbox())-1]
		assert.Assert(t, cmp.Regexp(`dkim=pass header\.d=strict\.example header\.s=`+a[1]+` header\.b=\S{8}\r\n`, got))
		assert.Equal(t, send(strings.Replace(sign(a[0], a[1]), "hello", "jello", 1)), "550 5.7.20 No passing DKIM signatures found.")
		assert.Equal(t, send(strings.Replace(sign(a[0], a[1]), "Subject: a", "Subject: c", 1)), "550 5.7.20 No passing DKIM signatures found.")
	}
}

// TestSubmission: who may send as whom, what is added, and errors that end it.
func TestSubmission(t *testing.T) {
	l := startLab(t, labOptions{})
	c := l.open(strangerAt, 465)
	c.tls()
	c.reply()
	c.ask("EHLO c.example.net")
	assert.Equal(t, c.ask("AUTH LOGIN"), "334 VXNlcm5hbWU6")
	assert.Equal(t, c.ask(base64.StdEncoding.EncodeToString([]byte("alice@example.test"))), "334 UGFzc3dvcmQ6")
	assert.Equal(t, c.ask(base64.StdEncoding.EncodeToString([]byte("alicepw"))), "235 2.7.0 Authentication succeeded.")
	c.say("EHLO c.example.net")
	var caps []string
	for s := c.line(); ; s = c.line() {
		if caps = append(caps, s[4:]); s[3] == ' ' {
			break
		}
	}
	assert.Assert(t, cmp.Regexp(`^old\.internal\.test you had me at EHLO\|VRFY\|EXPN\|SMTPUTF8\|SIZE 104857600\|REQUIRETLS\|PIPELINING\|NO-SOLICITING\|MT-PRIORITY MIXER\|FUTURERELEASE 604800 \S+\|ENHANCEDSTATUSCODES\|DSN\|DELIVERBY 1296000\|CHUNKING\|BINARYMIME\|8BITMIME$`,
		strings.Join(caps, "|")))
	assert.Equal(t, c.ask("MAIL FROM:<bob@example.test>"), "501 5.5.4 You are not allowed to send from this address.")
	c.ask("MAIL FROM:<alice@example.test>")
	c.ask("RCPT TO:<bob@example.test>")
	assert.Equal(t, c.ask("RCPT TO:<x@elsewhere.example>"), "250 2.1.5 OK")
	c.ask("DATA")
	assert.Assert(t, cmp.Contains(c.ask("Subject: s\r\n\r\nx\r\n."), "250 2.0.0"))
	assert.DeepEqual(t, l.box("bob@example.test", "INBOX"), []string{"Delivered-To: bob@example.test\r\nSubject: s\r\n\r\nx\r\n"})
	l.set("session.data.add-headers.received", "true")
	l.reload()
	c = l.open(strangerAt, 587)
	c.reply()
	c.ask("EHLO c.example.net")
	c.ask("STARTTLS")
	c.tls()
	for _, s := range []string{"EHLO c.example.net", "AUTH PLAIN " + plain("alice@example.test", "alicepw"), "MAIL FROM:<alice@example.test>", "RCPT TO:<bob@example.test>", "DATA"} {
		c.ask(s)
	}
	c.ask("Subject: s\r\n\r\nx\r\n.")
	assert.Assert(t, cmp.Contains(l.box("bob@example.test", "INBOX")[1], "Received: from c.example.net (unknown [172.30.3.1])\r\n\t(using TLSv1.3 with cipher TLS13_"))
	assert.Assert(t, cmp.Contains(l.box("bob@example.test", "INBOX")[1], "with ESMTPSA id"))

	c = l.open(strangerAt, 465)
	c.tls()
	c.reply()
	c.ask("EHLO c.example.net")
	assert.Equal(t, c.ask("AUTH PLAIN "+plain("noroles@example.test", "x")), "550 5.7.1 Your account is not authorized to use this service.")
	c.say("AUTH PLAIN")
	assert.Equal(t, c.reply(), "334 Go ahead.")
	assert.Equal(t, c.ask("*"), "500 5.5.6 Invalid challenge.")
	assert.Equal(t, c.ask("AUTH CRAM-MD5"), "554 5.7.8 Authentication mechanism not supported.")
	for range 2 {
		assert.Equal(t, c.ask("AUTH PLAIN "+plain("alice@example.test", "wrong")), "535 5.7.8 Authentication credentials invalid.")
	}
	assert.Equal(t, c.reply(), "455 4.3.0 Too many authentication errors, disconnecting.")
	assert.Equal(t, c.reply(), "<closed>")
}

// TestHostNames: the name of greetings and of fields, and how it is changed.
func TestHostNames(t *testing.T) {
	l := startLab(t, labOptions{})
	l.set("session.connect.hostname", "'mail.example.test'", "session.connect.greeting.0.if", "local_port == 25", "session.connect.greeting.0.then", "'here ' + remote_ip",
		"session.connect.greeting.1.else", "config_get('server.hostname') + ' elsewhere'")
	l.reload()
	c := l.open(relayAt, 25)
	assert.Equal(t, c.reply(), "220 here 172.30.2.1")
	c.say("EHLO new.example.test")
	assert.Equal(t, c.line(), "250-mail.example.test you had me at EHLO")
	assert.Equal(t, l.open(relayAt, 587).reply(), "220 old.internal.test elsewhere")
	l.deliver(t, "h1")
	assert.Assert(t, cmp.Contains(l.inbox()[0], "by mail.example.test (Stalwart SMTP)"))
	// Sessions that are open keep what they began with.
	l.set("session.ehlo.reject-non-fqdn", "false", "server.hostname", "mail2.example.test")
	l.reload()
	c.reply()
	assert.Equal(t, c.ask("EHLO new"), "550 5.5.0 Invalid EHLO domain.")
	c = l.open(relayAt, 25)
	c.reply()
	assert.Assert(t, cmp.Contains(c.ask("EHLO new"), "250 8BITMIME"))
	assert.Assert(t, cmp.Contains(l.ask(strangerAt, 8081, "GET /mail/config-v1.1.xml HTTP/1.1\r\n\r\n").body, "<hostname>mail2.example.test</hostname>"))
}

// TestReading: the mail that came in, by POP3, IMAP and JMAP.
func TestReading(t *testing.T) {
	l := startLab(t, labOptions{})
	l.deliver(t, "m1")
	l.deliver(t, "m2")
	p := l.open(strangerAt, 995)
	p.tls()
	p.line()
	p.say("USER alice@example.test", "PASS alicepw", "STAT", "UIDL", "LIST 2", "TOP 1 3", "DELE 1", "DELE 1", "RETR 3", "QUIT")
	assert.Equal(t, p.line(), "+OK alice@example.test is a valid mailbox")
	assert.Equal(t, p.line(), "+OK Authentication successful")
	assert.Assert(t, cmp.Regexp(`^\+OK 2 \d+$`, p.line()))
	for _, want := range []string{`^\+OK 2 messages$`, `^1 11$`, `^2 12$`, `^\.$`, `^\+OK 2 \d+$`, `^\+OK \d+ octets$`, "^Delivered-To: ", "^Received: ", `^\tby `, `^\.$`,
		`^\+OK message 1 deleted$`, "^-ERR message 1 already deleted$", "^-ERR No such message.$", `^\+OK Stalwart POP3 bids you farewell \(1 messages deleted\)\.$`, "^<closed>$"} {
		assert.Assert(t, cmp.Regexp(want, p.line()))
	}
	c := l.open(strangerAt, 993)
	c.tls()
	c.line()
	c.say("a1 LOGIN {18}")
	assert.Equal(t, c.line(), "+ Ready for literal.")
	c.say("alice@example.test \"alicepw\"")
	assert.Assert(t, cmp.Contains(c.line(), "a1 OK [CAPABILITY IMAP4rev2 "))
	until := func(tag string) string {
		var all []string
		for {
			s := c.line()
			if all = append(all, s); strings.HasPrefix(s, tag+" ") || strings.HasPrefix(s, "<") {
				return strings.Join(all, "\n")
			}
		}
	}
	c.say("a2 SELECT INBOX")
	assert.Assert(t, cmp.Contains(until("a2"), "* 1 EXISTS"))
	for what, found := range map[string]string{
		`HEADER Message-ID "<m2@probe.example>"`: "", `HEADER X-Conf-Token m2`: "", `HEADER Subject "relay m2"`: " 1", `SUBJECT "relay m2"`: " 1", "TEXT m2": " 1", "SUBJECT m9": "",
	} {
		c.say("a3 SEARCH " + what)
		assert.Equal(t, until("a3"), "* SEARCH"+found+"\na3 OK SEARCH completed", what)
	}
	c.say("a4 UID FETCH 1:* (BODY.PEEK[HEADER.FIELDS (MESSAGE-ID)])", `a5 LIST "" "*"`, "a6 CAPABILITY", `a7 ID ("name" "x")`, "a8 LOGIN x y", "a9 NOOP", "b1 LOGOUT")
	assert.Assert(t, cmp.Contains(until("a4"), "<m2@probe.example>"))
	assert.Equal(t, until("a5"), `* LIST (\HasNoChildren \Subscribed \Trash) "/" "Deleted Items"
* LIST (\HasNoChildren \Subscribed \Drafts) "/" "Drafts"
* LIST (\HasNoChildren) "/" INBOX
* LIST (\HasNoChildren \Subscribed \Junk) "/" "Junk Mail"
* LIST (\HasNoChildren \Subscribed \Sent) "/" "Sent Items"
a5 OK LIST completed`)
	assert.Assert(t, cmp.Contains(until("a6"), "a6 OK CAPABILITY completed"))
	assert.Assert(t, cmp.Contains(until("a7"), `* ID ("name" "Stalwart"`))
	assert.Equal(t, until("a8"), "a8 NO Already authenticated.")
	assert.Equal(t, until("a9"), "a9 OK NOOP completed")
	assert.Equal(t, until("b1"), "* BYE Stalwart IMAP4rev2 bids you farewell.\nb1 OK LOGOUT completed")
}

// TestScripts: ManageSieve after the login.
func TestScripts(t *testing.T) {
	l := startLab(t, labOptions{})
	c := l.open(strangerAt, 4190)
	c.sieve()
	c.say("LISTSCRIPTS", "STARTTLS")
	assert.Equal(t, c.line(), `NO "Not authenticated."`)
	c.line()
	c.tls()
	c.sieve()
	c.say(`AUTHENTICATE "PLAIN"`)
	assert.Equal(t, c.line(), "{0}")
	c.say(`"`+plain("alice@example.test", "alicepw")+`"`, "PUTSCRIPT \"a\" {5+}\r\nkeep;", `PUTSCRIPT "b" "stop;"`, `SETACTIVE "a"`, `LISTSCRIPTS`, `GETSCRIPT "a"`, `GETSCRIPT "c"`,
		`DELETESCRIPT "a"`, `RENAMESCRIPT "b" "d"`, `CHECKSCRIPT "keep;"`, `HAVESPACE "x" 10`, `NOOP "t"`, `STARTTLS`, `PUTSCRIPT "x`, "LOGOUT")
	for _, want := range []string{`OK "Authentication successful"`, `OK "Success."`, `OK "Success."`, `OK "Success"`, `"a" ACTIVE`, `"b"`, "OK", "{5}", "keep;", "OK",
		`NO (NONEXISTENT) "Script not found"`, `NO (ACTIVE) "You may not delete an active script"`, `OK "Success."`, `OK "Script is valid."`, "OK", `OK (TAG "t") "Done"`,
		`NO "Already in TLS mode."`, `BAD (PARSE) "Unterminated quoted argument."`} {
		assert.Equal(t, c.line(), want)
	}
}

// TestHosts: names that stand in /etc/hosts resolve.
func TestHosts(t *testing.T) {
	z := &stalwart.Zone{}
	assert.NilError(t, z.AddHosts("# a\n127.0.0.1 public.pyzor.org localhost\n"))
	assert.ErrorContains(t, z.AddHosts("\nx y\n"), "line 2: \"x y\" is no line of /etc/hosts")
	l := startLab(t, labOptions{loud: true, zone: z, empty: true})
	l.reload()
}
