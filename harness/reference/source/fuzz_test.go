package source_test

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/harness/reference/source"
)

// fuzzEndpoint sends anything to a server, as a host that may announce: the
// session must end, and every line of the log must be one.
func fuzzEndpoint(f *testing.F, endpoint string, seeds ...string) {
	for _, s := range seeds {
		f.Add([]byte(strings.ReplaceAll(s, "\n", "\r\n")), false)
	}
	f.Add([]byte(strings.Repeat("x", 70<<10)), true)
	f.Fuzz(func(t *testing.T, b []byte, old bool) {
		release := source.Trixie
		if old {
			release = source.Bookworm
		}
		l := startLab(t, labOptions{release: release})
		start := time.Now()
		nc := l.dial("proxy", endpoint, "ip4")
		nc.SetDeadline(time.Now().Add(time.Minute))
		go func() {
			nc.Write(b)
			nc.(interface{ CloseWrite() error }).CloseWrite()
		}()
		if _, err := io.Copy(io.Discard, nc); err != nil && strings.Contains(err.Error(), "timeout") {
			t.Fatalf("the session does not end: %v", err)
		}
		nc.Close()
		assert.NilError(t, l.src.Close())
		if d := time.Since(start); d > 10*time.Second {
			t.Fatalf("the session took %s", d)
		}
		for _, line := range l.log.end() {
			// Dovecot writes an announced session id as it came.
			if i := strings.IndexFunc(line, func(r rune) bool { return r < ' ' }); i >= 0 && endpoint != "pop3" {
				t.Fatalf("a control character at %d of %q", i, line)
			}
		}
	})
}

func FuzzIMAP(f *testing.F) {
	fuzzEndpoint(f, "imap",
		"a1 CAPABILITY\na2 ID (\"x-originating-ip\" {13+}\n198.51.100.21)\na3 LOGIN \""+alice+"\" "+secret+"\na4 SELECT INBOX\na5 LOGOUT\n",
		"a1 AUTHENTICATE PLAIN\n*\na2 LOGIN {3}\nabc {1}\nx\n", "a1 ID (\"x-session-id\" NIL \"k\")\n", "a1 STARTTLS\n\x16\x03\x01\x00\x05hello",
		"a1 LOGIN "+alice+" "+secret+"\nID (\"name\" {4}\nabcd)\na2 ID (\"name\" \"x\")\na3 IDLE\nDONE\n")
}

func FuzzPOP3(f *testing.F) {
	fuzzEndpoint(f, "pop3", "CAPA\nXCLIENT ADDR=198.51.100.21 PORT=1 SESSION=x\nUSER "+alice+"\nPASS "+secret+"\nSTAT\nLIST\nUIDL 1\nTOP 1 0\nRETR 1\nDELE 1\nRSET\nQUIT\n",
		"AUTH PLAIN\n*\nAUTH LOGIN\n\n", "USER \x01\x02\nPASS \x00\n")
}

func FuzzSieve(f *testing.F) {
	fuzzEndpoint(f, "sieve", "CAPABILITY\nXCLIENT ADDR=198.51.100.21\nAUTHENTICATE \"PLAIN\" \""+plain(alice, secret)+"\"\nPUTSCRIPT \"x\" {5+}\nkeep;\nLISTSCRIPTS\nGETSCRIPT \"x\"\nDELETESCRIPT \"x\"\nLOGOUT\n",
		"NOOP {3+}\nabc\nXCLIENT \"x\"\n", "AUTHENTICATE {5}\nPLAIN\n")
}

func FuzzSMTP(f *testing.F) {
	fuzzEndpoint(f, "smtp", "EHLO x.test\nMAIL FROM:<a@b.test> SIZE=5 BODY=8BITMIME\nRCPT TO:<"+alice+"> NOTIFY=NEVER ORCPT=rfc822;x\nDATA\nSubject: x\n\n..a\n.\nQUIT\n",
		"EHLO x\nMAIL FROM:<>\nRCPT TO:<"+alice+">\nBDAT 3\nabcBDAT 0 LAST\nQUIT\n", "HELO \"x\nVRFY <a>,<b>\nETRN x\nNOOP\nRSET\nHELP\n", "XCLIENT NAME=[TEMPUNAVAIL]\nMAIL FROM:<\"a b\"@[IPv6:::1]>\n")
}

func FuzzSubmission(f *testing.F) {
	fuzzEndpoint(f, "submission", "EHLO x.test\nXCLIENT ADDR=IPV6:2001:db8::1 PORT=1 HELO=+41 PROTO=SMTP LOGIN=x DESTADDR=[UNAVAILABLE] NAME=a.b\nEHLO y\nXFORWARD NAME=x\nMAIL FROM:<a@b>\n",
		"XCLIENT ADDR=300.1.1.1\nXCLIENT X\nXCLIENT NAME=-\n")
}

// FuzzConfig reads anything as configuration: it is refused or it is not.
func FuzzConfig(f *testing.F) {
	f.Add("dovecot/90-x.conf", "service imap-login {\n  inet_listener imap {\n    port = 143\n  }\n}\n")
	f.Add("dovecot/90-x.conf", "login_log_format_elements = %{user | lower} %u %% %{\nimap_capability = +X\n")
	f.Add("postfix/main.cf", "smtpd_banner = ${a?{b}:{c}} ${{x} == {y}?{1}:{2}} $$ ${\nmynetworks = !1.2.3.4/8 [::1]/128\n")
	f.Add("postfix/main.cf", "smtpd_client_restrictions = check_client_access inline:{{a = b c}, d=e}, warn_if_reject\n")
	f.Add("postfix/master.cf", "587 inet n - y - - smtpd\n  -o { a = b }\nsmtp/inet = -\n")
	f.Add("etc/hosts", "1.2.3.4 a b # c\n")
	base := configOf(f, labOptions{})
	f.Fuzz(func(t *testing.T, path, text string) {
		if !utf8.ValidString(path) {
			return
		}
		cfg := base
		cfg.Layers = append(append([]source.Layer(nil), base.Layers...), layer(path, text))
		src, err := source.New(cfg)
		if err != nil {
			if bytes.ContainsRune([]byte(err.Error()), 0) && !strings.Contains(text, "\x00") {
				t.Fatalf("%q", err)
			}
			return
		}
		for _, f := range src.ConfigFiles() {
			_ = f.Text
		}
		assert.NilError(t, src.Close())
	})
}
