package source_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/reference/source"
)

// rightness says what a right server does where a bug has it do otherwise. It
// returns what was wrong, or "".
type rightness func(l *lab) string

const announceIMAP = `i1 ID ("x-originating-ip" "198.51.100.21" "x-originating-port" "40001" "x-connected-ip" "198.51.100.11" "x-connected-port" "993" "x-session-id" "tok-1")`

// signInIMAP announces, with what the lines say, and signs in with a password.
func signInIMAP(l *lab, password string, lines ...string) *client {
	c := l.open("proxy", "imaps")
	c.line()
	for _, s := range lines {
		c.say(s)
		c.line()
		c.line()
	}
	c.say("i9 AUTHENTICATE PLAIN " + plain(alice, password))
	c.line()
	return c
}

// pipelined sends a command n times at once, and waits for as many answers.
func pipelined(c *client, n int, command, status string) string {
	c.say(strings.TrimSuffix(strings.Repeat(command+"\r\n", n), "\r\n"))
	for n > 0 {
		switch s := c.line(); {
		case strings.HasPrefix(s, "x "+status):
			n--
		case !strings.HasPrefix(s, "* "):
			return fmt.Sprintf("%d answers are missing: %s", n, s)
		}
	}
	return ""
}

func wants(line string, texts ...string) string {
	for _, t := range texts {
		if !strings.Contains(line, t) {
			return fmt.Sprintf("%q lacks %q", line, t)
		}
	}
	return ""
}

func lacks(line string, texts ...string) string {
	for _, t := range texts {
		if strings.Contains(line, t) {
			return fmt.Sprintf("%q has %q", line, t)
		}
	}
	return ""
}

// loginLine is what the log says of the sign-in, whatever address it has.
func loginLine(l *lab, c *client) string {
	c.say("x1 LOGOUT")
	return l.log.await(l.t, "-login: ", "user=<"+alice+">", "session=<")
}

// announced signs in to IMAP after an announcement and says what of it is
// missing in the log.
func announcedIMAP(texts ...string) rightness {
	return func(l *lab) string {
		return wants(loginLine(l, signInIMAP(l, secret, announceIMAP)), texts...)
	}
}

// submission opens a session that may announce, on 465.
func submission(l *lab, from string) *client {
	c := l.open(from, "submissions")
	c.reply()
	c.ask("EHLO proxy.example.test")
	return c
}

const announceSMTP = "XCLIENT ADDR=198.51.100.21 PORT=44001 HELO=client.example.test PROTO=ESMTP"

// greeted opens a session on port 25 under a name.
func greeted(l *lab, from, name string) *client {
	c := l.open(from, "smtp")
	c.reply()
	c.ask("EHLO " + name)
	return c
}

// relayed opens a session of the new server on port 25, up to the first
// recipient.
func relayed(l *lab, from string) *client {
	c := greeted(l, from, "new.example.test")
	c.ask("MAIL FROM:<sender@remote.example>")
	return c
}

// deliver sends a message to alice and returns what reached her mailbox.
func deliver(l *lab, text string) (string, int) {
	c := relayed(l, "relay")
	c.ask("RCPT TO:<" + alice + ">")
	c.ask("DATA")
	if r := c.ask(text + "\r\n."); !strings.HasPrefix(r, "250 ") {
		return r, 0
	}
	ms := l.src.Account(alice).Messages("INBOX")
	if len(ms) == 0 {
		return "", 0
	}
	return string(ms[len(ms)-1].Octets), len(ms)
}

const mailText = "Subject: one\r\n\r\nbody"

func chunked(l *lab) string {
	c := relayed(l, "relay")
	c.ask("RCPT TO:<" + alice + ">")
	text := "Subject: chunked\r\n\r\nfirst line\r\nlast line\r\n"
	c.say(fmt.Sprintf("BDAT %d LAST", len(text)))
	fmt.Fprint(c.nc, text)
	c.reply()
	ms := l.src.Account(alice).Messages("INBOX")
	if len(ms) == 0 {
		return ""
	}
	return string(ms[0].Octets)
}

func pop3(l *lab, lines ...string) []string {
	c := l.open("proxy", "pop3s")
	out := []string{c.line()}
	for _, s := range lines {
		c.say(s)
		out = append(out, c.line())
	}
	return out
}

// sieve opens ManageSieve inside TLS, greeting and capabilities read.
func sieve(l *lab, from string) *client {
	c := l.open(from, "sieve")
	for !strings.HasPrefix(c.line(), "OK ") {
	}
	c.say("STARTTLS")
	c.line()
	c.tls()
	for !strings.HasPrefix(c.line(), "OK ") {
	}
	return c
}

// checks are what a right server does, by the bug that has it otherwise.
var checks = map[string]rightness{
	"logs-proxy-address":           announcedIMAP(" rip=198.51.100.21"),
	"drops-port":                   announcedIMAP("rport=40001"),
	"lip-not-honoured":             announcedIMAP("lip=198.51.100.11"),
	"imap-id-family-swapped":       announcedIMAP(" rip=198.51.100.21"),
	"imap-id-drops-session":        announcedIMAP("session=<tok-1>"),
	"ipv4-recorded-as-mapped":      announcedIMAP(" rip=198.51.100.21,"),
	"log-drops-lines":              func(l *lab) string { return logged(l) },
	"log-late":                     logOnTime,
	"imap-id-reapplies":            func(l *lab) string { return second(l) },
	"imap-id-rejects-unknown-keys": idAnswered(`i1 ID ("x-frob" "1" "name" "p")`),
	"imap-id-wants-auth-first":     idAnswered(announceIMAP),
	"imap-id-after-login-counts": func(l *lab) string {
		c := signInIMAP(l, secret)
		c.say(`i2 ID ("x-originating-ip" "192.0.2.166" "x-session-id" "tok-late")`)
		c.line()
		c.line()
		c.say("i3 LOGOUT")
		c.line()
		c.line()
		l.log.await(l.t, "imap("+alice, "Logged out")
		for _, s := range l.log.all() {
			if !strings.Contains(s, "ID sent") && strings.Contains(s, "192.0.2.166") || strings.Contains(s, "<tok-late>") {
				return "the second ID was recorded: " + s
			}
		}
		return ""
	},
	"logs-announced-from-anyone": func(l *lab) string {
		c := l.open("stranger", "imaps")
		c.line()
		c.say(announceIMAP)
		c.line()
		c.line()
		c.say("i9 AUTHENTICATE PLAIN " + plain(alice, secret))
		c.line()
		return wants(loginLine(l, c), " rip=198.51.100.138")
	},
	"mixes-up-sessions": func(l *lab) string {
		other := l.open("proxy", "imaps")
		other.line()
		other.say(`i1 ID ("x-originating-ip" "198.51.100.77")`)
		other.line()
		other.line()
		return wants(loginLine(l, signInIMAP(l, secret, announceIMAP)), " rip=198.51.100.21")
	},
	"advertises-xclient-to-neighbour": func(l *lab) string {
		c := l.open("neighbour", "submissions")
		c.reply()
		c.say("EHLO n.example.test")
		for {
			s := c.line()
			if strings.Contains(s, "XCLIENT") {
				return s
			}
			if s[3] == ' ' {
				return ""
			}
		}
	},
	"failed-login-logged-with-proxy": func(l *lab) string {
		c := signInIMAP(l, "wrong", announceIMAP)
		c.nc.Close()
		return wants(l.log.await(l.t, "-login: ", "auth failed"), " rip=198.51.100.21")
	},
	"pop3-xclient-plus-ok-but-ignored": func(l *lab) string {
		pop3(l, "XCLIENT ADDR=198.51.100.21 PORT=41001 SESSION=tok-p", "AUTH PLAIN "+plain(alice, secret))
		return wants(l.log.await(l.t, "pop3-login: ", "user=<"+alice+">"), " rip=198.51.100.21", "<tok-p>")
	},
	"pop3-xclient-after-login": func(l *lab) string {
		out := pop3(l, "AUTH PLAIN "+plain(alice, secret), "XCLIENT ADDR=192.0.2.166")
		return lacks(out[2], "+OK")
	},
	"sieve-xclient-after-login": func(l *lab) string {
		c := sieve(l, "proxy")
		c.say(`AUTHENTICATE "PLAIN" "` + plain(alice, secret) + `"`)
		for !strings.HasPrefix(c.line(), "OK ") {
		}
		c.say("XCLIENT ADDR=192.0.2.166")
		return lacks(c.line(), "OK ")
	},
	"xclient-second-accepted": func(l *lab) string {
		c := submission(l, "proxy")
		c.ask(announceSMTP)
		return wants(c.ask("XCLIENT ADDR=192.0.2.166"), "550 5.7.0")
	},
	"xclient-unknown-attribute-applied": func(l *lab) string {
		return wants(submission(l, "proxy").ask("XCLIENT ADDR=198.51.100.21 FROB=1"), "501 5.5.4")
	},
	"xclient-unknown-attribute-half-applied": func(l *lab) string {
		c := submission(l, "proxy")
		if s := wants(c.ask("XCLIENT ADDR=198.51.100.21 FROB=1"), "501 5.5.4"); s != "" {
			return s
		}
		c.ask("MAIL FROM:<>")
		c.ask("RCPT TO:<someone@remote.example>")
		return lacks(l.log.await(l.t, "NOQUEUE: reject: RCPT"), "198.51.100.21")
	},
	"xclient-bad-address-closes": func(l *lab) string {
		return wants(submission(l, "proxy").ask("XCLIENT ADDR=300.1.1.1"), "501 5.5.4")
	},
	"xclient-drops-tls": func(l *lab) string {
		c := submission(l, "proxy")
		c.ask(announceSMTP)
		c.say("EHLO client.example.test")
		for {
			s := c.line()
			if strings.Contains(s, "STARTTLS") {
				return s
			}
			if s[3] == ' ' {
				return ""
			}
		}
	},
	"xclient-keeps-auth": func(l *lab) string {
		c := submission(l, "proxy")
		c.ask("AUTH PLAIN " + plain(alice, secret))
		c.ask(announceSMTP)
		c.ask("MAIL FROM:<" + alice + ">")
		return wants(c.ask("RCPT TO:<someone@remote.example>"), "554 5.7.1")
	},
	"xclient-authenticates": func(l *lab) string {
		c := submission(l, "proxy")
		c.ask(announceSMTP)
		c.ask("MAIL FROM:<" + alice + ">")
		return wants(c.ask("RCPT TO:<someone@remote.example>"), "554 5.7.1")
	},
	"accepts-any-password": func(l *lab) string {
		return wants(submission(l, "client").ask("AUTH PLAIN "+plain(alice, "wrong")), "535 5.7.8")
	},
	"wrong-password-temporary-failure": func(l *lab) string {
		return wants(submission(l, "client").ask("AUTH PLAIN "+plain(alice, "wrong")), "535 5.7.8")
	},
	"answers-late": func(l *lab) string {
		return wants(submission(l, "client").ask("AUTH PLAIN "+plain(alice, secret)), "235 2.7.0")
	},
	"closes-after-failed-login-silently": func(l *lab) string {
		return wants(submission(l, "client").ask("AUTH PLAIN "+plain(alice, "wrong")), "535 5.7.8")
	},
	"sasl-ir-refused": func(l *lab) string {
		return wants(submission(l, "client").ask("AUTH PLAIN "+plain(alice, secret)), "235 2.7.0")
	},
	"no-greeting":      func(l *lab) string { return wants(l.open("client", "imap").line(), "* OK") },
	"turns-away":       func(l *lab) string { return wants(l.open("client", "imap").line(), "* OK") },
	"greeting-late":    greetsSoon,
	"greeting-bare-lf": endsLines,
	"large-packets-in-lost": func(l *lab) string {
		return pipelined(signInIMAP(l, secret), 2, "x ID (\"a\" \""+strings.Repeat("x", 5000)+"\")", "OK")
	},
	"large-packets-out-lost": func(l *lab) string { return pipelined(signInIMAP(l, secret), 20, "x CAPABILITY", "OK") },
	"address-literal-refused": func(l *lab) string {
		c := l.open("client", "submissions")
		c.reply()
		return wants(c.ask("EHLO [192.168.1.5]"), "250 ")
	},
	"helo-rule-at-mail": func(l *lab) string {
		c := greeted(l, "relay", "newserver.internal")
		return wants(c.ask("MAIL FROM:<sender@remote.example>"), "250 2.1.0")
	},
	"helo-rule-at-rcpt": func(l *lab) string {
		c := greeted(l, "relay", "newserver")
		c.ask("MAIL FROM:<sender@remote.example>")
		return wants(c.ask("RCPT TO:<"+alice+">"), "250 2.1.5")
	},
	"starttls-then-closes": func(l *lab) string {
		c := l.open("client", "imap")
		c.line()
		c.say("a1 STARTTLS")
		c.line()
		c.tls()
		fmt.Fprint(c.nc, "a2 NOOP\r\n")
		b := make([]byte, 64)
		n, _ := c.nc.Read(b)
		return wants(string(b[:n]), "a2 OK")
	},
	"routed-recipients-accepted": func(l *lab) string {
		return lacks(relayed(l, "stranger").ask("RCPT TO:<someone%remote.example@example.test>"), "250 ")
	},
	"unknown-recipients-accepted": func(l *lab) string {
		return wants(relayed(l, "relay").ask("RCPT TO:<nobody@example.test>"), "550 5.1.1")
	},
	"sheds-load": func(l *lab) string {
		var wrong []string
		for range 12 {
			c := l.open("relay", "smtp")
			c.reply()
			c.ask("EHLO new.example.test")
			if s := c.ask("MAIL FROM:<sender@remote.example>"); !strings.HasPrefix(s, "250 ") {
				wrong = append(wrong, s)
				continue
			}
			c.ask("RCPT TO:<" + alice + ">")
			c.ask("DATA")
			if s := c.ask(mailText + "\r\n."); !strings.HasPrefix(s, "250 ") {
				wrong = append(wrong, s)
			}
			c.ask("QUIT")
		}
		return strings.Join(wrong, "; ")
	},
	"xclient-bad-address-spoils-session": func(l *lab) string {
		out := pop3(l, "XCLIENT ADDR=300.1.1.1", "XCLIENT ADDR=198.51.100.21")
		return wants(out[2], "+OK")
	},
	"relay-everyone": func(l *lab) string {
		return wants(relayed(l, "stranger").ask("RCPT TO:<someone@remote.example>"), "554 5.7.1", "Relay access denied")
	},
	"relay-refuses-everyone": func(l *lab) string {
		return wants(relayed(l, "stranger").ask("RCPT TO:<"+alice+">"), "250 2.1.5")
	},
	"relay-503-instead-of-relay-denied": func(l *lab) string {
		return wants(relayed(l, "stranger").ask("RCPT TO:<someone@remote.example>"), "554 5.7.1")
	},
	"greylists-everyone": func(l *lab) string {
		return wants(relayed(l, "relay").ask("RCPT TO:<"+alice+">"), "250 2.1.5")
	},
	"accepts-then-drops-message": func(l *lab) string {
		got, _ := deliver(l, mailText)
		return wants(got, "body")
	},
	"delivers-twice": func(l *lab) string {
		if _, n := deliver(l, mailText); n != 1 {
			return fmt.Sprintf("%d messages", n)
		}
		return ""
	},
	"delivers-to-junk": func(l *lab) string {
		got, _ := deliver(l, mailText)
		return wants(got, "body")
	},
	"bdat-truncates": func(l *lab) string { return wants(chunked(l), "last line") },
	"dot-stuffing-kept": func(l *lab) string {
		got, _ := deliver(l, "Subject: dots\r\n\r\n..one")
		return lacks(got, "..one")
	},
	"strips-8bit": func(l *lab) string {
		got, _ := deliver(l, "Subject: eight\r\n\r\nna\xc3\xafve")
		return wants(got, "na\xc3\xafve")
	},
	"rewrites-body": func(l *lab) string {
		got, _ := deliver(l, mailText)
		_, body, _ := strings.Cut(got, "\r\n\r\n")
		if body != "body\r\n" {
			return fmt.Sprintf("the body is %q", body)
		}
		return ""
	},
	"one-bad-recipient-refuses-all": func(l *lab) string {
		c := relayed(l, "relay")
		c.ask("RCPT TO:<nobody@example.test>")
		c.ask("RCPT TO:<" + alice + ">")
		return wants(c.ask("DATA"), "354 ")
	},
	"null-sender-refused": func(l *lab) string {
		c := greeted(l, "relay", "new.example.test")
		return wants(c.ask("MAIL FROM:<>"), "250 2.1.0")
	},
	"null-sender-replaced": func(l *lab) string {
		c := greeted(l, "relay", "new.example.test")
		c.ask("MAIL FROM:<>")
		c.ask("RCPT TO:<" + alice + ">")
		c.ask("DATA")
		c.ask(mailText + "\r\n.")
		ms := l.src.Account(alice).Messages("INBOX")
		if len(ms) == 0 {
			return ""
		}
		return wants(string(ms[0].Octets), "Return-Path: <>")
	},
	"received-shows-proxy": func(l *lab) string {
		l = startLab(l.t, l.withLayer("postfix/master.cf", "submissions/inet/smtpd_hide_client_session=no\n"))
		got := submitted(l)
		if s := wants(got, "from client.example.test (unknown [198.51.100.21])"); s != "" {
			return s
		}
		return ""
	},
	"helo-lost": func(l *lab) string {
		l = startLab(l.t, l.withLayer("postfix/master.cf", "submissions/inet/smtpd_hide_client_session=no\n"))
		return wants(submitted(l), "from client.example.test (")
	},
}

// submitted sends a message to alice for an announced client.
func submitted(l *lab) string {
	c := submission(l, "proxy")
	c.ask(announceSMTP)
	c.ask("EHLO client.example.test")
	c.ask("AUTH PLAIN " + plain(alice, secret))
	c.ask("MAIL FROM:<" + alice + ">")
	c.ask("RCPT TO:<" + alice + ">")
	c.ask("DATA")
	c.ask(mailText + "\r\n.")
	ms := l.src.Account(alice).Messages("INBOX")
	if len(ms) == 0 {
		return ""
	}
	return string(ms[0].Octets)
}

// second announces twice; the first must win.
func second(l *lab) string {
	return wants(loginLine(l, signInIMAP(l, secret, announceIMAP, `i2 ID ("x-originating-ip" "192.0.2.166")`)), " rip=198.51.100.21")
}

func idAnswered(id string) rightness {
	return func(l *lab) string {
		c := l.open("proxy", "imaps")
		c.line()
		c.say(id)
		if s := wants(c.line(), "* ID ("); s != "" {
			return s
		}
		return wants(c.line(), "i1 OK")
	}
}

func logged(l *lab) string {
	c := l.open("client", "imaps")
	c.line()
	c.say("a1 LOGOUT")
	c.line()
	c.line()
	c.line()
	l.src.Close()
	for _, s := range l.log.end() {
		if strings.Contains(s, "imap-login: ") {
			return ""
		}
	}
	return "the session was not logged"
}

func logOnTime(l *lab) string {
	var late []string
	for endpoint, line := range map[string]string{"imaps": "imap-login: ", "pop3s": "pop3-login: ", "sieve": "managesieve-login: "} { // a busy machine may be late once
		c := l.open("client", endpoint)
		c.line()
		start := time.Now()
		c.nc.Close()
		l.log.await(l.t, line)
		d := time.Since(start)
		if d < source.LogDelay {
			return ""
		}
		late = append(late, d.String())
	}
	return "the lines came after " + strings.Join(late, ", ")
}

func greetsSoon(l *lab) string {
	nc := l.dial("client", "imap", "ip4")
	nc.SetReadDeadline(time.Now().Add(5 * time.Second))
	b := make([]byte, 4)
	if _, err := nc.Read(b); err != nil {
		return err.Error()
	}
	return ""
}

func endsLines(l *lab) string {
	nc := l.dial("client", "imap", "ip4")
	defer nc.Close()
	b := make([]byte, 512)
	n, _ := nc.Read(b)
	if !strings.HasSuffix(string(b[:n]), "\r\n") {
		return fmt.Sprintf("%q has no CRLF", b[:n])
	}
	return ""
}

// TestEveryBugIsOneAndIsAlone shows for each bug that a server without it does
// what the check wants, and one with it does not, in both releases.
func TestEveryBugIsOneAndIsAlone(t *testing.T) {
	names := map[string]bool{}
	for _, b := range source.Bugs() {
		names[b.Name] = true
		check, ok := checks[b.Name]
		assert.Assert(t, ok, "no check shows %s", b.Name)
		assert.Assert(t, strings.HasSuffix(b.Sentence, "."), b.Name)
		for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
			t.Run(b.Name+"/"+release, func(t *testing.T) {
				t.Parallel()
				good := labOptions{release: release, profile: fixtures.Instrumented}
				if wrong := check(startLab(t, good)); wrong != "" {
					t.Errorf("without the bug: %s", wrong)
				}
				bad := good
				bad.bugs = []string{b.Name}
				bad.patient = 10 * time.Second
				start := time.Now()
				if check(startLab(t, bad)) == "" {
					t.Errorf("with the bug nothing is wrong")
				}
				if d := time.Since(start); d >= bad.patient {
					t.Errorf("it took %s: lateness must cost nobody time", d)
				}
			})
		}
	}
	for name := range checks {
		assert.Assert(t, names[name], "%s is no bug", name)
	}
}

// TestBugsLeaveTheRestAlone speaks the recorded dialogues with a source that
// has a bug in another protocol, and finds what was recorded.
func TestBugsLeaveTheRestAlone(t *testing.T) {
	for name, file := range map[string]string{
		"relay-everyone": "imap", "imap-id-reapplies": "submission", "pop3-xclient-after-login": "smtp",
		"xclient-keeps-auth": "pop3", "dot-stuffing-kept": "sieve", "greylists-everyone": "imap",
	} {
		t.Run(name, func(t *testing.T) {
			text := readFile(t, recorded+"/trixie/instrumented/"+file+".txt")
			l := startLab(t, labOptions{release: source.Trixie, profile: fixtures.Instrumented, bugs: []string{name}, patient: time.Minute})
			for _, d := range parseRecording(text) {
				converse(t, l, newNormal(text), d)
			}
		})
	}
}

func TestBugNamesAreKebabCaseAndKnown(t *testing.T) {
	var seen []string
	for _, b := range source.Bugs() {
		assert.Equal(t, b.Name, strings.ToLower(strings.ReplaceAll(b.Name, "_", "-")))
		assert.Assert(t, !slices.Contains(seen, b.Name), b.Name)
		seen = append(seen, b.Name)
	}
	_, err := source.New(configOf(t, labOptions{bugs: []string{"frobs"}}))
	assert.ErrorContains(t, err, `unknown bug "frobs" of the reference source: it has accepts-any-password, `)
}
