package proxy

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gotest.tools/v3/assert"
)

// talk plays a dialogue: lines that begin with "> " are sent, with CRLF, and
// others must come. A line that ends in "..." needs only to begin so. "[TLS]"
// begins TLS.
func (c *caller) talk(script string) {
	c.t.Helper()
	for line := range strings.SplitSeq(strings.TrimSpace(script), "\n") {
		line = strings.TrimLeft(line, "\t")
		if out, ok := strings.CutPrefix(line, "> "); ok {
			c.send(unescape(out) + "\r\n")
			continue
		}
		if line == "[TLS]" {
			c.startTLS()
			continue
		}
		got := c.line()
		if begin, ok := strings.CutSuffix(line, "..."); ok {
			assert.Assert(c.t, strings.HasPrefix(got, begin), "got %q, want %q", got, line)
			continue
		}
		assert.Equal(c.t, got, line)
	}
}

// unescape writes \xNN, \r and \n as the octets they stand for.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch {
		case strings.HasPrefix(s[i:], `\x`):
			n := 0
			fmt.Sscanf(s[i+2:i+4], "%02x", &n)
			b.WriteByte(byte(n))
			i += 3
		case strings.HasPrefix(s[i:], `\r`):
			b.WriteByte('\r')
			i++
		case strings.HasPrefix(s[i:], `\n`):
			b.WriteByte('\n')
			i++
		default:
			b.WriteByte(s[i])
		}
	}
	return b.String()
}

// What the proxy says for itself, in clear text and inside TLS. I-01: no
// source is dialled for any of it. I-17: credentials are refused before TLS.
func TestBeforeSigningIn(t *testing.T) {
	cfg := labConfig(ForwardXCLIENT, STARTTLS)
	for i := range cfg.Listeners {
		cfg.Listeners[i].MaxAuthAttempts = 10
	}
	l := newLab(t, cfg)
	var sources []*fakeSource
	for _, p := range interactive {
		sources = append(sources, l.source(source4, p, STARTTLS, ForwardXCLIENT, ""))
	}
	for name, script := range map[string]string{
		"imap": `
			* OK [CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID ENABLE IDLE STARTTLS LOGINDISABLED] mailproof reference proxy ready.
			> a CAPABILITY
			* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID ENABLE IDLE STARTTLS LOGINDISABLED
			a OK CAPABILITY completed.
			> b NOOP
			b OK NOOP completed.
			> c ID ("name" "x" "x-originating-ip" "192.0.2.66" "x-proxy-ttl" "1")
			* ID NIL
			c OK ID completed.
			> d ID NIL
			* ID NIL
			d OK ID completed.
			> e ID (x)
			e BAD the ID parameter list has a name without a value.
			> f LOGIN alice secret
			f NO [PRIVACYREQUIRED] Cleartext login requires TLS.
			> g LOGIN {5}
			g NO [PRIVACYREQUIRED] Cleartext login requires TLS.
			> h LOGIN alice {6+}
			> secret
			h NO [PRIVACYREQUIRED] Cleartext login requires TLS.
			> i AUTHENTICATE PLAIN
			i NO [PRIVACYREQUIRED] Cleartext authentication requires TLS.
			> j AUTHENTICATE XOAUTH2 dXNlcj1h
			j NO [PRIVACYREQUIRED] Cleartext authentication requires TLS.
			> k SELECT INBOX
			k BAD Command not allowed in this state.
			> k2 XCLIENT ADDR=192.0.2.66
			k2 BAD Command not allowed in this state.
			> l
			* BAD A command begins with a tag and a word.
			> m* NOOP
			* BAD A command begins with a tag and a word.
			> n "open
			n BAD Syntax error: a quoted string has no end.
			> o STARTTLS
			o OK Begin TLS negotiation now.
			[TLS]
			> p STARTTLS
			p BAD STARTTLS not available.
			> q CAPABILITY
			* CAPABILITY IMAP4rev1 SASL-IR LITERAL+ ID ENABLE IDLE AUTH=PLAIN AUTH=LOGIN AUTH=OAUTHBEARER AUTH=XOAUTH2
			q OK CAPABILITY completed.
			> r AUTHENTICATE CRAM-MD5
			r NO Unsupported authentication mechanism.
			> s AUTHENTICATE PLAIN ???
			s NO Invalid base64.
			> t AUTHENTICATE PLAIN AGFsaWNl
			t NO Malformed credentials.
			> u AUTHENTICATE PLAIN
			+ ...
			> *
			u BAD Authentication aborted.
			> v LOGIN alice
			v BAD LOGIN takes a user name and a password.
			> w LOGOUT
			* BYE Logging out.
			w OK LOGOUT completed.`,
		"pop3": `
			+OK mailproof reference proxy ready.
			> CAPA
			+OK Capability list follows
			TOP
			UIDL
			RESP-CODES
			PIPELINING
			AUTH-RESP-CODE
			STLS
			.
			> NOOP
			+OK
			> USER alice
			-ERR cleartext authentication requires TLS
			> PASS secret
			-ERR cleartext authentication requires TLS
			> AUTH PLAIN AGFsaWNlAHNlY3JldA==
			-ERR cleartext authentication requires TLS
			> AUTH
			+OK
			.
			> APOP alice 0123
			-ERR unknown command
			> XCLIENT ADDR=192.0.2.66
			-ERR unknown command
			> STAT
			-ERR unknown command
			> STLS
			+OK Begin TLS negotiation now.
			[TLS]
			> STLS
			-ERR STLS not available
			> AUTH
			+OK
			PLAIN
			LOGIN
			OAUTHBEARER
			XOAUTH2
			.
			> PASS secret
			-ERR USER first
			> AUTH NTLM
			-ERR unsupported mechanism
			> AUTH PLAIN ???
			-ERR invalid base64
			> AUTH PLAIN AGFsaWNl
			-ERR malformed credentials
			> AUTH LOGIN
			+ VXNlcm5hbWU6
			> *
			-ERR authentication aborted
			> USER
			-ERR USER takes a name
			> QUIT
			+OK Logging out.`,
		"submission": `
			220 mail.example.org ESMTP mailproof reference proxy
			> EHLO
			501 5.5.4 EHLO takes the name of the client
			> EHLO a\x01b
			501 5.5.4 EHLO takes the name of the client
			> HELO laptop
			250 mail.example.org
			> EHLO laptop
			250-mail.example.org
			250-PIPELINING
			250-SIZE
			250-8BITMIME
			250-ENHANCEDSTATUSCODES
			250 STARTTLS
			> NOOP
			250 2.0.0 Ok
			> RSET
			250 2.0.0 Ok
			> MAIL FROM:<a@b>
			503 5.5.1 Command not allowed here
			> XCLIENT ADDR=192.0.2.66
			503 5.5.1 Command not allowed here
			> XYZZY
			500 5.5.2 Syntax error
			> AUTH PLAIN AGFsaWNlAHNlY3JldA==
			538 5.7.11 Encryption required for requested authentication mechanism
			> STARTTLS now
			501 5.5.4 STARTTLS takes no parameter
			> STARTTLS
			220 2.0.0 Ready to start TLS
			[TLS]
			> AUTH PLAIN AGFsaWNlAHNlY3JldA==
			503 5.5.1 EHLO first
			> EHLO laptop
			250-mail.example.org
			250-PIPELINING
			250-SIZE
			250-8BITMIME
			250-ENHANCEDSTATUSCODES
			250 AUTH PLAIN LOGIN OAUTHBEARER XOAUTH2
			> STARTTLS
			503 5.5.1 STARTTLS not available
			> AUTH
			501 5.5.4 AUTH takes a mechanism and at most an initial response
			> AUTH GSSAPI
			504 5.5.4 Unsupported authentication mechanism
			> AUTH PLAIN ???
			501 5.5.2 Invalid base64.
			> AUTH PLAIN AGFsaWNl
			535 5.7.8 Malformed credentials.
			> AUTH LOGIN
			334 VXNlcm5hbWU6
			> *
			501 5.5.2 Authentication aborted.
			> QUIT
			221 2.0.0 Bye`,
		"sieve": `
			"IMPLEMENTATION" "mailproof reference proxy"
			"VERSION" "1.0"
			"SASL" ""
			"SIEVE" "fileinto reject...
			"STARTTLS"
			OK "mailproof reference proxy ready."
			> NOOP "tag"
			OK (TAG "tag") "Done"
			> NOOP
			OK "Done"
			> XCLIENT ADDR=192.0.2.66
			NO "Command not allowed in this state."
			> LISTSCRIPTS
			NO "Command not allowed in this state."
			> AUTHENTICATE "PLAIN" "AGFsaWNlAHNlY3JldA=="
			NO "Cleartext authentication requires TLS"
			> AUTHENTICATE "PLAIN" {20+}
			> AGFsaWNlAHNlY3JldA==
			NO "Cleartext authentication requires TLS"
			> "x"
			NO "A command begins with a word."
			> X "open
			NO "syntax error: a quoted string has no end"
			> NOOP {3}
			NO "syntax error: a literal cannot stand here"
			> STARTTLS
			OK "Begin TLS negotiation now."
			[TLS]
			"IMPLEMENTATION" "mailproof reference proxy"
			"VERSION" "1.0"
			"SASL" "PLAIN LOGIN OAUTHBEARER XOAUTH2"
			"SIEVE" "fileinto reject...
			OK "TLS negotiation successful."
			> STARTTLS
			NO "STARTTLS not available"
			> AUTHENTICATE "SCRAM-SHA-1"
			NO "Unsupported mechanism"
			> AUTHENTICATE PLAIN
			NO "AUTHENTICATE takes a mechanism and at most an initial response."
			> AUTHENTICATE "PLAIN" "???"
			NO "Invalid base64."
			> AUTHENTICATE "PLAIN" "AGFsaWNl"
			NO "Malformed credentials."
			> AUTHENTICATE "PLAIN"
			""
			> "*"
			NO "Authentication aborted."
			> LOGOUT
			OK "Logging out."`,
	} {
		t.Run(name, func(t *testing.T) {
			c := l.dial(client4, name)
			c.t = t
			c.talk(script)
			c.end()
		})
	}
	for _, s := range sources {
		assert.Equal(t, s.dials(), 0, "%s", s.p)
	}
	assert.Assert(t, !strings.Contains(l.log.String(), "secret"))
}

// I-06, I-07, I-08: every form in which credentials can come is replayed as
// the same octets, and what is pipelined behind it follows after success only.
func TestCredentialForms(t *testing.T) {
	plain := func(authzid, user, pass string) string {
		return base64.StdEncoding.EncodeToString([]byte(authzid + "\x00" + user + "\x00" + pass))
	}
	long := strings.Repeat("p", 4096)
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, tc := range []struct {
		name, listener string
		script         string // after the greeting
		mechanism, ir  string
	}{
		{"LOGIN atoms", "imaps", `> a1 LOGIN alice@example.org secret`, "PLAIN", plain("", "alice@example.org", "secret")},
		{"LOGIN quoted", "imaps", `> a1 LOGIN "alice@example.org" "se \"cr\\et:%"`, "PLAIN", plain("", "alice@example.org", `se "cr\et:%`)},
		{"LOGIN literals", "imaps", "> a1 LOGIN {5}\n+ OK\n> alice {8}\n+ OK\n> p\\r\\n\\xe4\\xff\\x01\"x", "PLAIN", plain("", "alice", "p\r\n\xe4\xff\x01\"x")},
		{"LOGIN literals without asking", "imaps", "> a1 LOGIN {5+}\n> alice {6+}\n> secret", "PLAIN", plain("", "alice", "secret")},
		{"LOGIN Latin-1", "imaps", `> a1 LOGIN alice "p\xe4ss"`, "PLAIN", plain("", "alice", "p\xe4ss")},
		{"LOGIN empty password", "imaps", `> a1 LOGIN alice ""`, "PLAIN", plain("", "alice", "")},
		{"LOGIN long", "imaps", `> a1 LOGIN alice ` + long, "PLAIN", plain("", "alice", long)},
		{"PLAIN", "imaps", `> a1 AUTHENTICATE plain ` + plain("", "alice", "p\xe4ss:%\\\""), "PLAIN", plain("", "alice", "p\xe4ss:%\\\"")},
		{"PLAIN authzid", "imaps", `> a1 AUTHENTICATE PLAIN ` + plain("alice", "admin", "secret"), "PLAIN", plain("alice", "admin", "secret")},
		{"PLAIN asked for", "imaps", "> a1 AUTHENTICATE PLAIN\n+ \n> " + plain("", "alice", "secret"), "PLAIN", plain("", "alice", "secret")},
		{"LOGIN mechanism", "imaps", "> a1 AUTHENTICATE LOGIN\n+ VXNlcm5hbWU6\n> " + b64("alice") + "\n+ UGFzc3dvcmQ6\n> " + b64("secret"), "PLAIN", plain("", "alice", "secret")},
		{"LOGIN mechanism, name at once", "imaps", "> a1 AUTHENTICATE LOGIN " + b64("alice") + "\n+ UGFzc3dvcmQ6\n> " + b64("p\xe4ss"), "PLAIN", plain("", "alice", "p\xe4ss")},
		{"XOAUTH2", "imaps", "> a1 AUTHENTICATE XOAUTH2 " + b64("user=alice\x01auth=Bearer tok\x01\x01"), "XOAUTH2", b64("user=alice\x01auth=Bearer tok\x01\x01")},
		{"OAUTHBEARER", "imaps", "> a1 AUTHENTICATE OAUTHBEARER\n+ \n> " + b64("n,a=alice,\x01auth=Bearer tok\x01\x01"), "OAUTHBEARER", b64("n,a=alice,\x01auth=Bearer tok\x01\x01")},

		{"USER PASS", "pop3s", "> USER alice@example.org\n+OK\n> PASS  two  spaces ", "PLAIN", plain("", "alice@example.org", " two  spaces ")},
		{"USER PASS Latin-1", "pop3s", "> user alice\n+OK\n> pass p\\xe4ss", "PLAIN", plain("", "alice", "p\xe4ss")},
		{"USER PASS empty", "pop3s", "> USER alice\n+OK\n> PASS", "PLAIN", plain("", "alice", "")},
		{"AUTH PLAIN", "pop3s", "> AUTH PLAIN " + plain("", "alice", long), "PLAIN", plain("", "alice", long)},
		{"AUTH PLAIN asked for", "pop3s", "> AUTH PLAIN\n+ \n> " + plain("z", "alice", "secret"), "PLAIN", plain("z", "alice", "secret")},
		{"AUTH LOGIN", "pop3s", "> AUTH LOGIN\n+ VXNlcm5hbWU6\n> " + b64("alice") + "\n+ UGFzc3dvcmQ6\n> " + b64("secret"), "PLAIN", plain("", "alice", "secret")},

		{"AUTH PLAIN", "submissions", "> AUTH PLAIN " + plain("", "alice", "secret"), "PLAIN", plain("", "alice", "secret")},
		{"AUTH PLAIN asked for", "submissions", "> AUTH PLAIN\n334 \n> " + plain("", "alice", "p\xe4ss"), "PLAIN", plain("", "alice", "p\xe4ss")},
		{"AUTH LOGIN", "submissions", "> AUTH LOGIN\n334 VXNlcm5hbWU6\n> " + b64("alice") + "\n334 UGFzc3dvcmQ6\n> " + b64("secret"), "PLAIN", plain("", "alice", "secret")},
		{"AUTH LOGIN, name at once", "submissions", "> AUTH login " + b64("alice") + "\n334 UGFzc3dvcmQ6\n> " + b64("secret"), "PLAIN", plain("", "alice", "secret")},
		{"XOAUTH2", "submissions", "> AUTH XOAUTH2 " + b64("user=alice\x01auth=Bearer tok\x01\x01"), "XOAUTH2", b64("user=alice\x01auth=Bearer tok\x01\x01")},

		{"AUTHENTICATE", "sieves", `> AUTHENTICATE "PLAIN" "` + plain("", "alice", "secret") + `"`, "PLAIN", plain("", "alice", "secret")},
		{"AUTHENTICATE literal", "sieves", "> Authenticate \"plain\" {16+}\n> " + plain("", "alice", "p\xe4ss"), "PLAIN", plain("", "alice", "p\xe4ss")},
		{"AUTHENTICATE asked for", "sieves", "> AUTHENTICATE \"PLAIN\"\n\"\"\n> \"" + plain("", "alice", "secret") + `"`, "PLAIN", plain("", "alice", "secret")},
		{"AUTHENTICATE asked for literal", "sieves", "> AUTHENTICATE \"PLAIN\"\n\"\"\n> {20+}\n> " + plain("", "alice", "secret1"), "PLAIN", plain("", "alice", "secret1")},
		{"AUTHENTICATE LOGIN", "sieves", "> AUTHENTICATE \"LOGIN\"\n\"VXNlcm5hbWU6\"\n> \"" + b64("alice") + "\"\n\"UGFzc3dvcmQ6\"\n> \"" + b64("secret") + `"`, "PLAIN", plain("", "alice", "secret")},
		{"AUTHENTICATE long", "sieves", "> AUTHENTICATE \"PLAIN\" {5472+}\n> " + plain("", "alice", long), "PLAIN", plain("", "alice", long)},
	} {
		t.Run(tc.listener+"/"+tc.name, func(t *testing.T) {
			l := newLab(t, labConfig(ForwardNone, Plain))
			p := l.protocol(tc.listener)
			s := l.source(source4, p, Plain, ForwardNone, "slow")
			c := l.call(client4, tc.listener)
			c.greeted(p)
			if p == Submission {
				c.send("EHLO laptop.test\r\n")
				c.until("250 ")
			}
			c.talk(tc.script + "\n> PIPELINED")
			want := map[Protocol]string{
				IMAP:        "a1 AUTHENTICATE " + tc.mechanism + " " + tc.ir + "\r\n",
				POP3:        "AUTH " + tc.mechanism + " " + tc.ir + "\r\n",
				Submission:  "EHLO laptop.test\r\nAUTH " + tc.mechanism + " " + tc.ir + "\r\n",
				ManageSieve: `AUTHENTICATE "` + tc.mechanism + `" "` + tc.ir + "\"\r\n",
			}[p]
			if p == ManageSieve && len(tc.ir) > 1024 {
				want = fmt.Sprintf("AUTHENTICATE %q {%d+}\r\n%s\r\n", tc.mechanism, len(tc.ir), tc.ir)
			}
			// The source has all of the credentials and has said nothing yet:
			// what the client pipelined is not there.
			s.waitFor("the credentials", func(sc *sourceConn) bool { return len(sc.got.String()) >= len(want) })
			assert.Equal(t, s.soFar(), want)
			close(s.hold)
			c.until(success(p))
			c.want("ECHO PIPELINED")
			c.conn.Close()
			assert.Equal(t, s.received(), want+"PIPELINED\r\n")
			log := l.log.String()
			for _, secret := range []string{"secret", tc.ir, "tok", long[:20]} {
				assert.Assert(t, !strings.Contains(log, secret), "%s", log)
			}
		})
	}
}

// I-02, I-03, I-04: where an account goes.
func TestRouting(t *testing.T) {
	jwt := "x." + base64.RawURLEncoding.EncodeToString([]byte(`{"sub":"7","email":"Moved@example.org"}`)) + ".y"
	b64 := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	for _, tc := range []struct {
		name, command string
		to            string
	}{
		{"no mapping", "a1 LOGIN alice@example.org x", "legacy"},
		{"mapped", "a1 LOGIN moved@example.org x", "new"},
		{"mixed case", "a1 LOGIN Moved@Example.ORG x", "new"},
		{"the bare form is another key", "a1 LOGIN moved x", "legacy"},
		{"master user", "a1 LOGIN moved@example.org%vmadmin x", "new"},
		{"master user of nobody", "a1 LOGIN %moved@example.org x", "legacy"},
		{"authorization identity", "a1 AUTHENTICATE PLAIN " + b64("moved@example.org\x00admin\x00x"), "new"},
		{"XOAUTH2", "a1 AUTHENTICATE XOAUTH2 " + b64("user=moved@example.org\x01auth=Bearer t\x01\x01"), "new"},
		{"OAUTHBEARER", "a1 AUTHENTICATE OAUTHBEARER " + b64("n,a=moved@example.org,\x01host=h\x01auth=Bearer t\x01\x01"), "new"},
		{"JWT", "a1 AUTHENTICATE OAUTHBEARER " + b64("n,,\x01auth=Bearer "+jwt+"\x01\x01"), "new"},
		{"opaque token", "a1 AUTHENTICATE OAUTHBEARER " + b64("n,,\x01auth=Bearer opaque\x01\x01"), "legacy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
			legacy := l.source(source4, IMAP, Implicit, ForwardXCLIENT, "")
			moved := l.source(other4, IMAP, Implicit, ForwardXCLIENT, "")
			c := l.call(client4, "imaps")
			c.line()
			c.send(tc.command + "\r\n")
			c.until("a1 OK")
			to := map[string]int{"legacy": legacy.dials(), "new": moved.dials()}
			assert.Equal(t, to[tc.to], 1)
			assert.Equal(t, to["legacy"]+to["new"], 1)
		})
	}
}

// I-05: a name that could carry something else into a log or a command is not
// routed; nobody is dialled.
func TestUnroutableNames(t *testing.T) {
	for _, p := range interactive {
		for _, name := range []string{"a b@x", `a"b@x`, "a\x01@x", "a\x7f@x", "a\r\nb@x"} {
			t.Run(fmt.Sprintf("%s/%q", p, name), func(t *testing.T) {
				l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
				s := l.source(source4, p, Implicit, ForwardXCLIENT, "")
				c := l.signIn(client4, publicName(p, Implicit), name, "secret")
				c.want(unavailableReply(p))
				c.end()
				assert.Equal(t, s.dials(), 0)
			})
		}
	}
}

// I-14, I-15, D-20: after the source refused the credentials its words are
// relayed and the connection ends; nothing that the client sent or sends
// reaches the source, which still trusts the connection.
func TestRefusedCredentials(t *testing.T) {
	refusal := map[Protocol][2]string{
		IMAP:        {"a1 NO [AUTHENTICATIONFAILED] Authentication failed (source words).", "a1 NO [AUTHENTICATIONFAILED] Authentication failed."},
		POP3:        {"-ERR [AUTH] Authentication failed (source words).", "-ERR Authentication failed."},
		Submission:  {"535 5.7.8 Error: authentication failed: (source words)", "535 5.7.8 Authentication failed."},
		ManageSieve: {`NO "Authentication failed (source words)."`, `NO "Authentication failed."`},
	}
	forged := map[Protocol]string{
		IMAP:        "F9 ID (\"x-originating-ip\" \"192.0.2.66\")\r\nb NOOP\r\n",
		POP3:        "XCLIENT ADDR=192.0.2.66\r\nNOOP\r\n",
		Submission:  "XCLIENT ADDR=192.0.2.66 LOGIN=victim\r\nNOOP\r\n",
		ManageSieve: "XCLIENT ADDR=192.0.2.66\r\nNOOP\r\n",
	}
	for _, p := range interactive {
		for i, hide := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/hidden %v", p, hide), func(t *testing.T) {
				cfg := labConfig(ForwardXCLIENT, Implicit)
				cfg.Destinations[0].HideAuthErrors = hide
				l := newLab(t, cfg)
				s := l.source(source4, p, Implicit, ForwardXCLIENT, "rejects")
				other := l.source(other4, p, Implicit, ForwardXCLIENT, "")
				c := l.signIn(client4, publicName(p, Implicit), "alice@example.org", "wrong")
				c.send(forged[p] + plainCommand(p, "moved@example.org", "secret")) // pipelined
				c.want(refusal[p][i])
				c.end()
				got := s.received()
				assert.Assert(t, strings.HasSuffix(got, plainCommand(p, "alice@example.org", "wrong")), "%q", got)
				assert.Assert(t, !strings.Contains(got, "192.0.2.66"), "%q", got)
				assert.Equal(t, other.dials(), 0)
				assert.Assert(t, !strings.Contains(l.log.String(), "wrong"))
			})
		}
	}
}

// I-15: what a client announces of itself before it signs in is answered, and
// does not reach the source; the proxy's own announcement is the first (C-04).
func TestClientsOwnAnnouncement(t *testing.T) {
	l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
	s := l.source(source4, IMAP, Implicit, ForwardXCLIENT, "")
	c := l.call(client4, "imaps")
	c.line()
	c.talk(`
		> b ID ("x-originating-ip" "192.0.2.66" "x-proxy-ttl" "1" "x-session-id" "forged" {4+}
		> name "x" "x-forward-nopassword" "y")
		* ID NIL
		b OK ID completed.
		> a1 LOGIN alice@example.org secret`)
	c.until("a1 OK")
	c.conn.Close()
	got := s.received()
	assert.Equal(t, strings.Count(got, " ID "), 1)
	assert.Assert(t, strings.Contains(got, `"x-proxy-ttl" "6"`), "%q", got)
	for _, forged := range []string{"192.0.2.66", "forged", "name", "forward"} {
		assert.Assert(t, !strings.Contains(got, forged), "%q", got)
	}
}

// I-19: what arrives in clear text behind STARTTLS is not acted on.
func TestClearTextBehindSTARTTLS(t *testing.T) {
	for p, injected := range map[Protocol]string{
		IMAP:        "t STARTTLS\r\nx ID (\"x-proxy-ttl\" \"1\")\r\na1 LOGIN evil evil\r\n",
		POP3:        "STLS\r\nUSER evil\r\nPASS evil\r\n",
		Submission:  "STARTTLS\r\nEHLO evil\r\nAUTH PLAIN AGV2aWwAZXZpbA==\r\n",
		ManageSieve: "STARTTLS\r\nAUTHENTICATE \"PLAIN\" \"AGV2aWwAZXZpbA==\"\r\n",
	} {
		t.Run(string(p), func(t *testing.T) {
			l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
			s := l.source(source4, p, Implicit, ForwardXCLIENT, "")
			c := l.dial(client4, publicName(p, STARTTLS))
			c.greeted(p)
			c.send(injected)
			c.line()
			c.startTLS()
			switch p {
			case IMAP:
				c.talk("> n NOOP\nn OK NOOP completed.")
			case POP3:
				c.talk("> NOOP\n+OK")
			case Submission:
				c.talk("> AUTH PLAIN\n503 5.5.1 EHLO first")
			case ManageSieve:
				c.until("OK ")
				c.talk("> NOOP\nOK \"Done\"")
			}
			assert.Equal(t, s.dials(), 0)
			l.log.wait(t, "came in clear text after STARTTLS were thrown away")
		})
	}
}

// I-21: nobody there, nobody who answers, a verdict that does not come, a
// connection that ends: each is the temporary failure, within the time.
func TestUnavailable(t *testing.T) {
	for _, p := range interactive {
		for _, fault := range []string{"down", "silent", "slow", "closes", "no protocol"} {
			t.Run(string(p)+"/"+fault, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					cfg := labConfig(ForwardXCLIENT, Implicit)
					cfg.Server.BackendTimeout = 10 * time.Second
					l := newLab(t, cfg)
					user := "alice@example.org"
					switch fault {
					case "down":
					case "no protocol":
						cfg.Destinations[1].Endpoints = map[Protocol]Endpoint{SMTP: {Port: 25, TLS: Plain}}
						user = "moved@example.org"
						assert.NilError(t, l.stop())
						l.start(cfg)
					default:
						s := l.source(source4, p, Implicit, ForwardXCLIENT, fault)
						defer close(s.hold)
					}
					begun := time.Now()
					c := l.signIn(client4, publicName(p, Implicit), user, "secret")
					c.want(unavailableReply(p))
					c.end()
					took := time.Since(begun)
					if fault == "silent" || fault == "slow" {
						assert.Equal(t, took, 10*time.Second)
					} else {
						assert.Equal(t, took, time.Duration(0))
					}
					c.raw.Close()
				})
			})
		}
	}
}

// A challenge in place of a verdict is aborted, and what comes then is relayed.
func TestChallengeInPlaceOfVerdict(t *testing.T) {
	for p, want := range map[Protocol]string{IMAP: "a1 BAD aborted", POP3: "-ERR aborted", Submission: "501 5.7.0 aborted", ManageSieve: `NO "aborted"`} {
		t.Run(string(p), func(t *testing.T) {
			l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
			l.source(source4, p, Implicit, ForwardXCLIENT, "challenge")
			c := l.signIn(client4, publicName(p, Implicit), "alice@example.org", "secret")
			c.want(want)
			c.end()
		})
	}
}

// I-23: who does not sign in in time is closed without a word.
func TestPreauthTimeout(t *testing.T) {
	for _, name := range []string{"imap", "pop3", "submission", "sieve", "imaps"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
				begun := time.Now()
				c := l.dial(client4, name)
				c.raw.SetDeadline(time.Now().Add(time.Minute))
				if name != "imaps" { // there it is the handshake that does not come
					c.greeted(l.protocol(name))
					time.Sleep(20 * time.Second)
					c.send("partial") // does not buy time
				}
				c.end()
				assert.Equal(t, time.Since(begun), 30*time.Second)
				c.raw.Close()
			})
		})
	}
}

// I-23: the attempts and the commands of a client are counted.
func TestAttempts(t *testing.T) {
	for name, script := range map[string]string{
		"imaps":       "> a AUTHENTICATE X\na NO...\n> b LOGIN \"\" x\nb NO...\n> c AUTHENTICATE PLAIN ?\nc NO...\n* BYE too many failed attempts",
		"pop3s":       "> AUTH X\n-ERR...\n> AUTH PLAIN ?\n-ERR...\n> AUTH X\n-ERR...",
		"submissions": "> EHLO x\n250-...\n250-...\n250-...\n250-...\n250-...\n250 ...\n> AUTH X\n504...\n> AUTH PLAIN ?\n501...\n> AUTH X\n504...\n421 4.7.0 too many failed attempts",
		"sieves":      "> AUTHENTICATE \"X\"\nNO...\n> AUTHENTICATE \"PLAIN\" \"?\"\nNO...\n> AUTHENTICATE \"X\"\nNO...\nBYE \"too many failed attempts\"",
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
			c := l.call(client4, name)
			c.greeted(l.protocol(name))
			c.talk(script)
			c.end()
		})
		t.Run(name+" commands", func(t *testing.T) {
			l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
			c := l.call(client4, name)
			c.greeted(l.protocol(name))
			noop := "NOOP\r\n"
			if name == "imaps" {
				noop = "n NOOP\r\n"
			}
			c.send(strings.Repeat(noop, maxCommands+5))
			for range maxCommands {
				c.line()
			}
			assert.Assert(t, strings.Contains(c.line(), "too long"))
			c.end()
		})
	}
}

// Every line, literal and command is bounded.
func TestTooLong(t *testing.T) {
	for name, text := range map[string]string{
		"imaps":       "a LOGIN {999999999}\r\n",
		"pop3s":       strings.Repeat("x", maxLine+8<<10),
		"submissions": "EHLO " + strings.Repeat("x", maxLine+8<<10),
		"sieves":      "NOOP {16385+}\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
			c := l.call(client4, name)
			c.greeted(l.protocol(name))
			c.send(text)
			assert.Assert(t, strings.Contains(c.line(), "too long"))
			c.end()
		})
	}
}

// I-23: connections beyond the limit are closed without a word, and one that
// ends makes room.
func TestMaxConnections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := labConfig(ForwardXCLIENT, Implicit)
		cfg.Listeners[0].MaxConnections = 2
		l := newLab(t, cfg)
		a, b := l.dial(client4, "imap"), l.dial(client6, "imap")
		a.line()
		b.line()
		l.dial(client4, "imap").end()
		l.dial(mapped(client4), "imap").end()
		l.log.wait(t, "max_connections = 2 are open")
		other := l.dial(client4, "pop3") // another listener
		other.line()
		a.send("a LOGOUT\r\n")
		a.until("a OK")
		a.end()
		a.raw.Close()
		synctest.Wait() // the proxy has seen our end
		c := l.dial(client4, "imap")
		assert.Assert(t, strings.HasPrefix(c.line(), "* OK"))
		for _, c := range []*caller{b, c, other} {
			c.raw.Close()
		}
	})
}
