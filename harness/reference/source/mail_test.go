package source_test

import (
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/reference/source"
)

// TestIMAPClient reads, flags, moves and expunges mail with a mail program's
// library, and sees mail come in while it idles.
func TestIMAPClient(t *testing.T) {
	l := startLab(t, labOptions{})
	nc := l.open("client", "imaps").nc
	exists := make(chan uint32, 16)
	c := imapclient.New(nc, &imapclient.Options{UnilateralDataHandler: &imapclient.UnilateralDataHandler{
		Mailbox: func(d *imapclient.UnilateralDataMailbox) {
			if d.NumMessages != nil {
				exists <- *d.NumMessages
			}
		},
	}})
	defer c.Close()
	assert.NilError(t, c.Login(alice, secret).Wait())
	sel, err := c.Select("INBOX", nil).Wait()
	assert.NilError(t, err)
	assert.Equal(t, sel.NumMessages, uint32(0))

	idle, err := c.Idle()
	assert.NilError(t, err)
	deliver(l, "From: a@b.test\r\nSubject: one\r\nMessage-ID: <m1@b.test>\r\n\r\nna\xc3\xafve ..\r\n...")
	select {
	case n := <-exists:
		assert.Equal(t, n, uint32(1))
	case <-time.After(5 * time.Second):
		t.Fatal("nothing came while idling")
	}
	assert.NilError(t, idle.Close())
	assert.NilError(t, idle.Wait())

	msgs, err := c.Fetch(imap.SeqSetNum(1), &imap.FetchOptions{Envelope: true, UID: true, Flags: true,
		BodySection: []*imap.FetchItemBodySection{{}}}).Collect()
	assert.NilError(t, err)
	assert.Equal(t, msgs[0].Envelope.Subject, "one")
	body := string(msgs[0].BodySection[0].Bytes)
	assert.Assert(t, strings.HasSuffix(body, "\r\n\r\nna\xc3\xafve ..\r\n..\r\n"), "%q", body)

	found, err := c.Search(&imap.SearchCriteria{Header: []imap.SearchCriteriaHeaderField{{Key: "Message-ID", Value: "m1@b.test"}}}, nil).Wait()
	assert.NilError(t, err)
	assert.DeepEqual(t, found.AllSeqNums(), []uint32{1})

	appended := c.Append("INBOX", 5, nil)
	_, err = appended.Write([]byte("x: y\n"))
	assert.NilError(t, err)
	assert.NilError(t, appended.Close())
	_, err = appended.Wait()
	assert.NilError(t, err)
	assert.NilError(t, c.Create("Archive", nil).Wait())
	_, err = c.Move(imap.SeqSetNum(1), "Archive").Wait()
	assert.NilError(t, err)
	boxes, err := c.List("", "*", nil).Collect()
	assert.NilError(t, err)
	assert.Equal(t, len(boxes), 2)
	assert.Equal(t, len(l.src.Account(alice).Messages("Archive")), 1)
	assert.NilError(t, c.Logout().Wait())
	l.log.await(t, "imap("+alice, "Disconnected: Logged out in=")
}

func TestIDAfterLoginIsAnsweredAndChangesNothing(t *testing.T) {
	for release, want := range map[string]string{source.Bookworm: "ID sent: name=x", source.Trixie: ""} {
		l := startLab(t, labOptions{release: release})
		c := l.open("client", "imaps")
		c.line()
		c.say("a1 LOGIN " + alice + " " + secret)
		c.line()
		c.say(`a2 ID ("name" "x")`)
		assert.Equal(t, c.line(), `* ID ("name" "Dovecot")`)
		assert.Assert(t, strings.HasPrefix(c.line(), "a2 OK ID completed"))
		c.say("a3 ID (\"name\" {3+}\r\nabc)")
		assert.Equal(t, c.line(), `* ID ("name" "Dovecot")`)
		assert.Assert(t, strings.HasPrefix(c.line(), "a3 OK ID completed"))
		c.say("a4 LOGOUT")
		if want != "" {
			l.log.await(t, "imap("+alice, want)
		}
	}
}

func TestPOP3(t *testing.T) {
	l := startLab(t, labOptions{})
	deliver(l, "Subject: one\r\n\r\n..dot\r\nlast")
	deliver(l, "Subject: two\r\n\r\nx")
	c := l.open("client", "pop3s")
	c.line()
	multi := func(cmd string) []string {
		c.say(cmd)
		var out []string
		for {
			s := c.line()
			out = append(out, s)
			if s == "." || strings.HasPrefix(s, "-ERR") || strings.HasPrefix(s, "<") {
				return out
			}
		}
	}
	ask := func(cmd string) string {
		c.say(cmd)
		return c.line()
	}
	ask("USER " + alice)
	assert.Equal(t, ask("PASS "+secret), "+OK Logged in.")
	assert.Assert(t, strings.HasPrefix(ask("STAT"), "+OK 2 "))
	assert.Equal(t, len(multi("LIST")), 4)
	uidl := multi("UIDL")
	assert.Equal(t, len(uidl), 4)
	assert.Assert(t, strings.HasPrefix(ask("LIST 2"), "+OK 2 "))
	assert.Equal(t, ask("LIST 9"), "-ERR There's no message 9.")
	text := multi("RETR 1")
	assert.Equal(t, text[len(text)-3], "..dot")
	assert.Equal(t, text[len(text)-2], "last")
	top := multi("TOP 1 1")
	assert.Equal(t, top[len(top)-2], "..dot")
	assert.Assert(t, strings.HasPrefix(ask("DELE 1"), "+OK"))
	assert.Assert(t, strings.HasPrefix(ask("RETR 1"), "-ERR Message is deleted."))
	assert.Assert(t, strings.HasPrefix(ask("RSET"), "+OK"))
	ask("DELE 2")
	assert.Assert(t, strings.HasPrefix(ask("QUIT"), "+OK Logging out"))
	assert.Equal(t, c.line(), "<closed>")
	assert.Equal(t, len(l.src.Account(alice).Messages("INBOX")), 1)
	l.log.await(t, "pop3("+alice, "Disconnected: Logged out top=1/", "retr=1/", "del=1/2")
}

func TestManageSieve(t *testing.T) {
	l := startLab(t, labOptions{})
	c := sieve(l, "client")
	until := func(lines ...string) []string {
		c.say(lines...)
		var out []string
		for {
			s := c.line()
			out = append(out, s)
			if strings.HasPrefix(s, "OK") || strings.HasPrefix(s, "NO") || strings.HasPrefix(s, "BYE") || strings.HasPrefix(s, "<") {
				return out
			}
		}
	}
	last := func(lines ...string) string { out := until(lines...); return out[len(out)-1] }
	assert.Equal(t, last(`AUTHENTICATE "PLAIN" "`+plain(alice, secret)+`"`), `OK "Logged in."`)
	assert.Equal(t, last("PUTSCRIPT \"main\" {7+}", "keep;\r\n"), `OK "PUTSCRIPT completed."`)
	assert.Equal(t, last(`SETACTIVE "main"`), `OK "Setactive completed."`)
	assert.DeepEqual(t, until("LISTSCRIPTS"), []string{`"main" ACTIVE`, `OK "Listscripts completed."`})
	assert.DeepEqual(t, until(`GETSCRIPT "main"`), []string{"{7}", "keep;", "", `OK "Getscript completed."`})
	assert.Assert(t, strings.HasPrefix(last(`DELETESCRIPT "main"`), "NO (ACTIVE)"))
	assert.Assert(t, strings.HasPrefix(last(`GETSCRIPT "none"`), "NO (NONEXISTENT)"))
	assert.Equal(t, last("LOGOUT"), `OK "Logout completed."`)
	l.log.await(t, "sieve("+alice, "Disconnected: Logged out")
}

// TestWhatIsDelivered looks at the fields that a message gets on its way.
func TestWhatIsDelivered(t *testing.T) {
	for release, want := range map[string]string{
		source.Bookworm: `Return-Path: <sender@remote.example>
Delivered-To: USER
Received: from source0.example.test
	by source0 with LMTP
	id ID
	(envelope-from <sender@remote.example>)
	for <USER>; DATE
Received: from new.example.test (unknown [198.51.100.202])
	by source0.example.test (Postfix) with ESMTP id QUEUE
	for <USER>; DATE (UTC)
Subject: one

body
`,
		source.Trixie: `Return-Path: <sender@remote.example>
Delivered-To: USER
Received: from source0.example.test
	by source0 with LMTP
	id ID
	(envelope-from <sender@remote.example>)
	for <USER>; DATE
Received: from new.example.test (unknown [198.51.100.202])
	by source0.example.test (Postfix) with ESMTP id QUEUE
	for <USER>; DATE (UTC)
Subject: one

body
`,
	} {
		l := startLab(t, labOptions{release: release})
		got, _ := deliver(l, mailText)
		got = strings.ReplaceAll(got, "\r\n", "\n")
		got = strings.ReplaceAll(got, alice, "USER")
		got = regexp.MustCompile(`id [A-Za-z0-9+/]{22}\n`).ReplaceAllString(got, "id ID\n")
		got = regexp.MustCompile(`id [0-9A-F]{10}\b`).ReplaceAllString(got, "id QUEUE")
		got = regexp.MustCompile(`[A-Z][a-z]{2}, [ \d]\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000`).ReplaceAllString(got, "DATE")
		got = strings.Replace(got, "; DATE (UTC)\nReceived: from new", "; DATE\nReceived: from new", 1)
		assert.Equal(t, got, want, release)
	}
}

func TestReceivedOfASubmission(t *testing.T) {
	for release, want := range map[string]string{
		source.Bookworm: "Received: from client.example.test (unknown [IPv6:2001:db8:100::21])\r\n\tby source0.example.test (Postfix) with ESMTPSA id ",
		source.Trixie:   "Received: by source0.example.test (Postfix) id ",
	} {
		l := startLab(t, labOptions{release: release})
		c := l.openOn("proxy", "submissions", "ip6")
		c.reply()
		c.ask("EHLO proxy.test")
		c.ask("XCLIENT ADDR=IPV6:2001:db8:100::21 PORT=44003 HELO=client.example.test PROTO=ESMTP")
		c.ask("AUTH PLAIN " + plain(alice, secret))
		c.ask("MAIL FROM:<" + alice + ">")
		c.ask("RCPT TO:<" + alice + ">")
		c.ask("DATA")
		c.ask(mailText + "\r\n.")
		got := string(l.src.Account(alice).Messages("INBOX")[0].Octets)
		assert.Assert(t, strings.Contains(got, want), "%s", got)
	}
}

func TestBounces(t *testing.T) {
	l := startLab(t, labOptions{layers: []source.Layer{layer("postfix/main.cf", "smtpd_reject_unlisted_recipient = no\n")}})
	c := submission(l, "client")
	c.ask("AUTH PLAIN " + plain(alice, secret))
	c.ask("MAIL FROM:<" + alice + ">")
	assert.Equal(t, c.ask("RCPT TO:<someone@remote.example>"), "250 2.1.5 Ok")
	assert.Equal(t, c.ask("RCPT TO:<nobody@example.test>"), "250 2.1.5 Ok")
	assert.Equal(t, c.ask("RCPT TO:<quiet@example.test> NOTIFY=NEVER"), "250 2.1.5 Ok")
	c.ask("DATA")
	assert.Assert(t, strings.HasPrefix(c.ask(mailText+"\r\n."), "250 2.0.0 Ok: queued as "))
	got := string(l.src.Account(alice).Messages("INBOX")[0].Octets)
	for _, text := range []string{
		"Subject: Undelivered Mail Returned to Sender", "<someone@remote.example>: outbound disabled",
		"Final-Recipient: rfc822; nobody@example.test", "Status: 5.1.1", "550 5.1.1 <nobody@example.test> User doesn't exist: nobody@example.test",
	} {
		assert.Assert(t, strings.Contains(got, text), "%s", text)
	}
	assert.Assert(t, !strings.Contains(got, "Final-Recipient: rfc822; quiet@example.test"))
	l.log.await(t, "to=<nobody@example.test>", "dsn=5.1.1, status=bounced (host source0.example.test[private/dovecot-lmtp] said: 550 5.1.1 <nobody@example.test> User doesn't exist: nobody@example.test (in reply to RCPT TO command))")
	l.log.await(t, "postfix/error[", "to=<someone@remote.example>", "relay=none", "status=bounced (outbound disabled)")
	l.log.await(t, "sender non-delivery notification: ")
}

func TestDeliveryThatFails(t *testing.T) {
	for _, c := range []struct{ file, text, want string }{
		{"dovecot/90-test.conf", "protocols = imap pop3 sieve\n", "dsn=4.4.1, status=deferred (connect to source0.example.test[private/dovecot-lmtp]: No such file or directory)"},
		{"postfix/main.cf", "virtual_transport = retry:4.3.0 later\n", ""},
		{"postfix/main.cf", "virtual_transport = lmtp:inet:127.0.0.1:24\n", "status=deferred (connect to 127.0.0.1:24: Connection refused)"},
		{"postfix/main.cf", "transport_maps = inline:{example.test=discard:silently}\n", "status=sent (silently)"},
		{"postfix/main.cf", "transport_maps = inline:{example.test=smtp:[203.0.113.10]:2525}\n", "dsn=4.4.1, status=deferred (connect to 203.0.113.10[203.0.113.10]:2525: Connection refused)"},
		{"postfix/main.cf", "transport_maps = inline:{example.test=smtp:}\n", "dsn=4.4.3, status=deferred (Host or domain name not found. Name service error for name="},
	} {
		l := startLab(t, labOptions{release: source.Bookworm, layers: []source.Layer{layer(c.file, c.text)}})
		s := relayed(l, "relay")
		r := s.ask("RCPT TO:<" + alice + ">")
		if c.want == "" {
			assert.Equal(t, r, "450 4.3.0 <"+alice+">: Recipient address rejected: later")
			continue
		}
		assert.Equal(t, r, "250 2.1.5 Ok", c.text)
		s.ask("DATA")
		s.ask(mailText + "\r\n.")
		l.log.await(t, "to=<"+alice+">", c.want)
		assert.Equal(t, len(l.src.Account(alice).Messages("INBOX")), 0)
	}
}

func TestAliases(t *testing.T) {
	l := startLab(t, labOptions{layers: []source.Layer{layer("postfix/main.cf",
		"virtual_alias_maps = inline:{{team@example.test = "+alice+", "+bob+"}, {@example.test = "+alice+"}, {"+alice+" = "+alice+"}, {"+bob+" = "+bob+"}}\n")}})
	c := relayed(l, "relay")
	c.ask("RCPT TO:<team@example.test>")
	c.ask("DATA")
	c.ask(mailText + "\r\n.")
	assert.Equal(t, len(l.src.Account(alice).Messages("INBOX")), 1)
	assert.Equal(t, len(l.src.Account(bob).Messages("INBOX")), 1)
	l.log.await(t, "to=<"+alice+">, orig_to=<team@example.test>, relay=source0.example.test[private/dovecot-lmtp]", "status=sent")
	c.ask("MAIL FROM:<a@b.test>")
	assert.Equal(t, c.ask("RCPT TO:<whoever@example.test>"), "250 2.1.5 Ok")
}

func TestLargeMessages(t *testing.T) {
	l := startLab(t, labOptions{layers: []source.Layer{layer("postfix/main.cf", "message_size_limit = 20000\n")}})
	c := relayed(l, "relay")
	c.ask("RCPT TO:<" + alice + ">")
	c.ask("DATA")
	line := strings.Repeat("x", 98)
	for range 300 {
		c.say(line)
	}
	assert.Equal(t, c.ask("."), "552 5.3.4 Error: message file too big")
	l.log.await(t, "queue file size limit exceeded")

	c.ask("MAIL FROM:<a@b.test>")
	c.ask("RCPT TO:<" + alice + ">")
	c.say("BDAT 25000 LAST")
	io.WriteString(c.nc, strings.Repeat("y", 25000))
	assert.Equal(t, c.reply(), "552 5.3.4 Chunk exceeds message size limit")
	c.ask("MAIL FROM:<a@b.test>")
	c.ask("RCPT TO:<" + alice + ">")
	for i := range 3 {
		c.say(fmt.Sprintf("BDAT %d", 1000+i))
		io.WriteString(c.nc, strings.Repeat("z", 998+i)+"\r\n")
		assert.Equal(t, c.reply(), fmt.Sprintf("250 2.0.0 Ok: %d bytes", 1000+i))
	}
	assert.Assert(t, strings.HasPrefix(c.ask("BDAT 0 LAST"), "250 2.0.0 Ok: 3003 bytes queued as "))
	got := string(l.src.Account(alice).Messages("INBOX")[0].Octets)
	assert.Assert(t, strings.Contains(got, "\r\n\r\n"+strings.Repeat("z", 998)+"\r\n"+strings.Repeat("z", 998)+"\r\n z\r\n"), "long lines are folded as Postfix folds them")
}

// TestCleartextAfterSTARTTLS: Postfix throws it away, Dovecot feeds it to TLS.
func TestCleartextAfterSTARTTLS(t *testing.T) {
	for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
		l := startLab(t, labOptions{release: release})
		c := l.open("client", "submission")
		c.reply()
		c.ask("EHLO x.test")
		c.say("STARTTLS\r\nAUTH PLAIN " + plain(alice, secret))
		assert.Equal(t, c.reply(), "220 2.0.0 Ready to start TLS")
		c.tls()
		c.ask("EHLO x.test")
		assert.Equal(t, c.ask("MAIL FROM:<"+alice+">"), "250 2.1.0 Ok")
		assert.Assert(t, strings.HasPrefix(c.ask("RCPT TO:<x@remote.example>"), "554 5.7.1"), "the clear text signed in")

		d := l.open("client", "imap")
		d.line()
		d.say("a1 STARTTLS\r\na2 LOGIN " + alice + " " + secret)
		assert.Equal(t, d.line(), "a1 OK Begin TLS negotiation now.")
		assert.Assert(t, strings.HasPrefix(d.line(), "<") || true)
		l.log.await(t, "imap-login: ", "TLS handshaking")
	}
}

// TestPipelining: 3.10 hangs up on whoever speaks out of turn, 3.7 takes note.
func TestPipelining(t *testing.T) {
	for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
		l := startLab(t, labOptions{release: release})
		c := l.open("client", "smtp")
		c.reply()
		c.say("EHLO x.test\r\nNOOP")
		got := c.reply()
		l.log.await(t, `improper command pipelining after EHLO from unknown[198.51.100.10]:`, `: NOOP\r\n`)
		if release == source.Trixie {
			assert.Equal(t, got, "554 5.5.0 Error: SMTP protocol synchronization")
			continue
		}
		assert.Equal(t, got, "250 CHUNKING")
		assert.Equal(t, c.reply(), "250 2.0.0 Ok")
		// What may be pipelined is.
		c.ask("RSET")
		c.say("MAIL FROM:<a@b.test>\r\nRCPT TO:<" + alice + ">\r\nRCPT TO:<nobody@example.test>\r\nDATA")
		for _, want := range []string{"250 2.1.0", "250 2.1.5", "550 5.1.1", "354 "} {
			assert.Assert(t, strings.HasPrefix(c.reply(), want), want)
		}
	}
}
