package witness

import (
	"context"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gotest.tools/v3/assert"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// follow plays lines into a log that somebody watches.
func follow(t *testing.T, keys []string, lines ...string) []Record {
	t.Helper()
	r, w := io.Pipe()
	l, err := Follow(t.Context(), "mail", func(context.Context) (io.ReadCloser, error) { return r, nil })
	assert.NilError(t, err)
	watch := l.Watch(keys...)
	for _, line := range lines {
		_, err := io.WriteString(w, line+"\n")
		assert.NilError(t, err)
	}
	w.Close()
	<-l.done
	rs := watch.Records()
	watch.Close()
	assert.NilError(t, l.Close())
	return rs
}

func TestDovecotLogins(t *testing.T) {
	for name, tc := range map[string]struct {
		line string
		want map[string]string
	}{
		"2.3 to a pipe": {
			"2026-11-23T14:59:13.015974 imap-login: Info: Login: user=<alice@example.test>, method=PLAIN, rip=203.0.113.1, rport=40101, lip=198.51.100.1, lport=143, real_rip=10.77.0.2, mpid=208, secured, session=<m-imap>",
			map[string]string{"service": "imap", "method": "PLAIN", "rip": "203.0.113.1", "rport": "40101", "lip": "198.51.100.1", "session": "m-imap", "security": "secured"},
		},
		"2.4 to a pipe": {
			"2026-11-23T14:59:47.258596 imap-login: Info: Logged in: user=<alice@example.test>, method=PLAIN, rip=10.77.0.3, rport=40409, lip=10.77.0.1, lport=993, real_rport=40409, mpid=257, TLS, session=<GXg92PJg2Z0KTQAD>",
			map[string]string{"rip": "10.77.0.3", "security": "TLS", "session": "GXg92PJg2Z0KTQAD"},
		},
		"through syslog, new form": {
			"2026-11-23T14:59:16.582552+00:00 src dovecot: managesieve-login: Login: user=<alice@example.test>, method=PLAIN, rip=2001:db8::3, lip=10.77.0.1, mpid=213, secured, session=<m-sieve>",
			map[string]string{"service": "managesieve", "rip": "2001:db8::3", "session": "m-sieve"},
		},
		"through syslog, old form, with a process id": {
			"Nov 23 14:59:15 src dovecot[17]: pop3-login: Login: user=<alice@example.test>, method=PLAIN, rip=203.0.113.2, lip=10.77.0.1, mpid=211, TLS, session=<m-pop>",
			map[string]string{"service": "pop3", "rip": "203.0.113.2"},
		},
	} {
		rs := follow(t, []string{Key("user", "Alice@example.test")}, tc.line)
		assert.Equal(t, len(rs), 1, name)
		assert.Equal(t, rs[0].Kind, Login, name)
		assert.Equal(t, rs[0].Ambiguous, "")
		for k, v := range tc.want {
			assert.Equal(t, rs[0].Get(k), v, "%s: %s", name, k)
		}
	}
}

func TestDovecotFailures(t *testing.T) {
	for _, line := range []string{
		"2026-11-23T14:59:23.829384 imap-login: Info: Disconnected: Connection closed (auth failed, 1 attempts in 1 secs): user=<alice@example.test>, method=PLAIN, rip=203.0.113.6, rport=37785, lip=10.77.0.1, session=<m-bad0>",
		"2026-11-23T14:59:43.362055 imap-login: Info: Login aborted: Connection closed (auth failed, 1 attempts in 0 secs) (auth_failed): user=<alice@example.test>, method=PLAIN, rip=203.0.113.6, lip=10.77.0.1, session=<m-bad0>",
		"2026-11-23T14:59:22.977683 auth: Info: passwd-file(alice@example.test,203.0.113.6,<m-bad0>): Password mismatch",
		"2026-11-23T14:59:43.010596 auth(alice@example.test,203.0.113.6,sasl:plain)<m-bad0>: Info: users: Password mismatch",
		"2026-11-23T14:59:43.010596+00:00 src dovecot: auth: passwd-file(alice@example.test,203.0.113.6,<m-bad0>): unknown user",
	} {
		rs := follow(t, []string{Key("session", "m-bad0")}, line)
		assert.Equal(t, len(rs), 1, line)
		assert.Equal(t, rs[0].Kind, FailedLogin, line)
		assert.Equal(t, rs[0].Get("rip"), "203.0.113.6", line)
		assert.Equal(t, rs[0].Get("user"), "alice@example.test", line)
	}
	// A session that never tried is no failed login, and an ID says nothing of who signed in.
	rs := follow(t, []string{Key("session", "x1")},
		"2026-11-23T14:59:23.829384 imap-login: Info: Disconnected: Connection closed (no auth attempts in 1 secs): user=<>, rip=203.0.113.6, lip=10.77.0.1, session=<x1>",
		"2026-11-23T14:59:12.658761 imap-login: Info: ID sent: x-originating-ip=203.0.113.1: user=<>, rip=203.0.113.1, session=<x1>")
	assert.Equal(t, len(rs), 1)
	assert.Equal(t, rs[0].Kind, Aborted)
}

func TestThePeerStandsInDovecotsOwnSessionID(t *testing.T) {
	p, ok := PeerOfSession("Uhgw1/Jgt6IKTQAD")
	assert.Assert(t, ok)
	assert.Equal(t, p.String(), "10.77.0.3:41655")
	for _, id := range []string{"", "m-imap", "mpabc0001", "AAAA", strings.Repeat("A", 200)} {
		_, ok := PeerOfSession(id)
		assert.Assert(t, !ok, id)
	}
	peer := netip.MustParseAddrPort("10.77.0.3:41655")
	rs := follow(t, []string{PeerKey(peer)},
		"2026-11-23T14:59:29.225550 imap-login: Info: Login: user=<alice@example.test>, method=PLAIN, rip=10.77.0.3, rport=41655, lip=10.77.0.1, mpid=222, TLS, session=<Uhgw1/Jgt6IKTQAD>")
	assert.Equal(t, len(rs), 1)
	assert.Equal(t, rs[0].Peer, peer)
}

func TestPostfixJoinsALineToItsMessage(t *testing.T) {
	rs := follow(t, []string{Key("message-id", "<tok@remote.example>")},
		"Nov 23 14:59:16 src postfix/submission/smtpd[214]: connect from unknown[10.77.0.2]:37539",
		"Nov 23 14:59:18 src postfix/submission/smtpd[214]: B1E9A99CA4E: client=unknown[2001:db8::4]:40104, sasl_method=PLAIN, sasl_username=alice@example.test",
		"Nov 23 14:59:19 src postfix/cleanup[218]: B1E9A99CA4E: message-id=<tok@remote.example>",
		"Nov 23 14:59:19 src postfix/qmgr[206]: B1E9A99CA4E: from=<s@remote.test>, size=330, nrcpt=2 (queue active)",
		"Nov 23 14:59:19 src postfix/lmtp[219]: B1E9A99CA4E: to=<alice@example.test>, relay=src[private/dovecot-lmtp], delay=1.1, delays=1.1/0.01/0.01/0, dsn=2.0.0, status=sent (250 2.0.0 <alice@example.test> x Saved)",
		"Nov 23 14:59:19 src postfix/lmtp[219]: B1E9A99CA4E: to=<bob@example.test>, relay=src[private/dovecot-lmtp], dsn=5.1.1, status=bounced (host said: 550)",
		"Nov 23 14:59:19 src postfix/qmgr[206]: B1E9A99CA4E: removed",
		"Nov 23 14:59:20 src postfix/cleanup[218]: B1E9A99CA4E: message-id=<tok@remote.example>")
	assert.Equal(t, len(rs), 1)
	r := rs[0]
	assert.Equal(t, r.Kind, Transaction)
	for k, v := range map[string]string{"client": "2001:db8::4", "client-port": "40104", "user": "alice@example.test", "service": "submission",
		"sender": "s@remote.test", "connected": "10.77.0.2", "message-id": "tok@remote.example"} {
		assert.Equal(t, r.Get(k), v, k)
	}
	assert.DeepEqual(t, r.Fields["recipient"], []string{"alice@example.test", "bob@example.test"})
	assert.Equal(t, len(r.Fields["status"]), 2)
	assert.Assert(t, r.Has("removed"))
	assert.Equal(t, r.Peer.String(), "10.77.0.2:37539")
	assert.Equal(t, len(r.Lines), 7)
}

func TestPostfixRejectionsAndRefusedSignIns(t *testing.T) {
	rs := follow(t, []string{Key("recipient", "x-tok@elsewhere.example")},
		"2026-11-23T14:59:16.1+00:00 src postfix/smtpd[9]: connect from proxy.example.test[10.77.0.2]",
		"2026-11-23T14:59:16.2+00:00 src postfix/smtpd[9]: NOQUEUE: reject: RCPT from unknown[203.0.113.7]: 554 5.7.1 <x-tok@elsewhere.example>: Relay access denied; from=<a@b> to=<x-tok@elsewhere.example> proto=ESMTP helo=<client.example>")
	assert.Equal(t, len(rs), 1)
	for k, v := range map[string]string{"client": "203.0.113.7", "helo": "client.example", "sender": "a@b", "proto": "ESMTP",
		"reply": "554 5.7.1 <x-tok@elsewhere.example>: Relay access denied", "service": "smtp", "connected": "10.77.0.2"} {
		assert.Equal(t, rs[0].Get(k), v, k)
	}
	rs = follow(t, []string{Key("user", "alice@example.test")},
		"Nov 23 14:28:09 src postfix/smtps/smtpd[216]: warning: unknown[203.0.113.24]:40024: SASL PLAIN authentication failed: (reason unavailable), sasl_username=alice@example.test")
	assert.Equal(t, len(rs), 1)
	assert.Equal(t, rs[0].Kind, FailedLogin)
	assert.Equal(t, rs[0].Get("rip"), "203.0.113.24")
	assert.Equal(t, rs[0].Get("service"), "smtps")
}

// A client can put anything into a login name, a HELO or an address. None of
// it makes a record say what it wants.
func TestInjectedFieldsAreNeverBelieved(t *testing.T) {
	const evil = "192.0.2.66"
	for name, lines := range map[string][]string{
		"rip in a login name": {
			"2026-11-23T14:59:13.0 imap-login: Info: Login: user=<alice>, rip=192.0.2.66, x=<@example.test>, method=PLAIN, rip=203.0.113.1, lip=10.77.0.1, session=<tok>"},
		"session in a login name": {
			"2026-11-23T14:59:13.0 imap-login: Info: Login: user=<a>, rip=192.0.2.66, session=<tok>, method=PLAIN, rip=203.0.113.1, session=<other>"},
		"a whole message in a login name": {
			"2026-11-23T14:59:13.0 imap-login: Info: Disconnected (auth failed, 1 attempts): user=<x: Login: user=<tok>, rip=192.0.2.66>, method=PLAIN, rip=203.0.113.1, session=<tok>"},
		"fields in an announced session": {
			"2026-11-23T14:59:13.0 imap-login: Info: Login: user=<alice>, method=PLAIN, rip=203.0.113.1, session=<tok>, rip=192.0.2.66, user=<tok>"},
		"a HELO that ends the line early": {
			"2026-11-23T14:59:16.2+00:00 src postfix/smtpd[9]: NOQUEUE: reject: RCPT from unknown[203.0.113.7]: 554 5.7.1 <x>: denied; from=<> to=<tok> proto=ESMTP helo=<a> to=<tok> helo=<b>"},
		"a sender that imitates the tail": {
			"2026-11-23T14:59:16.2+00:00 src postfix/smtpd[9]: NOQUEUE: reject: RCPT from unknown[203.0.113.7]: 554 5.7.1 <x; from=<y> to=<tok>>: denied; from=<x; from=<y> to=<tok>> to=<z> proto=ESMTP helo=<a>"},
		"a refused user name after its reason": {
			"2026-11-24T13:39:47.0 auth: Info: plain(?,203.0.113.1,<s>): Username character disallowed by auth_username_chars: 0x2c (username: tok,192.0.2.66,<tok>): Password mismatch)"},
		"a user name that closes its parenthesis": {
			"2026-11-24T13:39:47.0 auth: Info: passwd-file(tok,192.0.2.66,<tok>): Password mismatch,203.0.113.1,<s>): Password mismatch",
			"2026-11-24T13:39:47.0 auth(tok,192.0.2.66,sasl:plain)<tok>,203.0.113.1,sasl:plain)<s>: Info: users: Password mismatch"},
		"a sender that is the tail": {
			"2026-11-23T14:59:16.2+00:00 src postfix/smtpd[9]: NOQUEUE: reject: RCPT from unknown[192.0.2.66]: 554 5.7.1 <z>: denied; from=<\"x; to=<tok> \"@y> to=<z> proto=ESMTP helo=<a>"},
		"a user name that names another user": {
			"Nov 23 14:28:09 src postfix/smtps/smtpd[216]: warning: unknown[192.0.2.66]: SASL PLAIN authentication failed: x, sasl_username=a, sasl_username=tok"},
		"an announced user name that names another user": {
			"Nov 23 14:59:18 src postfix/smtps/smtpd[214]: B1E9A99CA4E: client=unknown[192.0.2.66], sasl_method=XCLIENT, sasl_username=a, sasl_username=tok"},
		"a line of the client's own": {
			"imap-login: Info: Login: user=<tok>, method=PLAIN, rip=192.0.2.66, session=<tok>"},
		"a line in the middle of a line": {
			"2026-11-23T14:59:13.0 lmtp(7): Info: x 2026-11-23T14:59:13.0 imap-login: Info: Login: user=<tok>, rip=192.0.2.66, session=<tok>"},
		"a host that is none": {
			"2026-11-23T14:59:13.0 imap(a)<1><s>: imap-login: Info: Login: user=<tok>, rip=192.0.2.66, session=<tok>"},
	} {
		for _, key := range []string{Key("session", "tok"), Key("user", "tok"), Key("recipient", "tok")} {
			for _, r := range follow(t, []string{key}, lines...) {
				if r.Ambiguous != "" {
					continue
				}
				assert.Assert(t, r.Get("rip") != evil && r.Get("client") != evil, "%s: %v", name, r.Fields)
				if r.Kind == Login {
					t.Errorf("%s: became a login: %v", name, r.Fields)
				}
			}
		}
	}
}

func TestOthersLinesAreForgotten(t *testing.T) {
	rs := follow(t, []string{Key("user", "alice@example.test")},
		"2026-11-23T14:59:13.0 imap-login: Info: Login: user=<carol@example.test>, method=PLAIN, rip=203.0.113.1, session=<s>",
		"Nov 23 14:59:18 src postfix/smtpd[214]: B1E9A99CA4E: client=unknown[203.0.113.9]",
		"Nov 23 14:59:19 src postfix/cleanup[218]: B1E9A99CA4E: message-id=<theirs@example.test>")
	assert.Equal(t, len(rs), 0)
}

func TestAwaitSeesWhatComesLaterAndTheEndOfTheLog(t *testing.T) {
	r, w := io.Pipe()
	l, err := Follow(t.Context(), "mail", func(context.Context) (io.ReadCloser, error) { return r, nil })
	assert.NilError(t, err)
	watch := l.Watch(Key("user", "a@b"))
	defer watch.Close()
	go io.WriteString(w, "2026-11-23T14:59:13.0 imap-login: Info: Login: user=<a@b>, rip=203.0.113.1, session=<s>\n")
	rs, err := watch.Await(t.Context(), func(rs []Record) bool { return len(rs) == 1 })
	assert.NilError(t, err)
	assert.Equal(t, rs[0].Get("rip"), "203.0.113.1")
	w.Close()
	_, err = watch.Await(t.Context(), func(rs []Record) bool { return len(rs) == 2 })
	assert.ErrorContains(t, err, "log mail: the stream ended")
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	<-ctx.Done()
	assert.NilError(t, l.Close())
}

func TestALongLineIsSkippedAndTheNextIsRead(t *testing.T) {
	rs := follow(t, []string{Key("user", "a@b")},
		strings.Repeat("x", 3*maxLine),
		"2026-11-23T14:59:13.0 imap-login: Info: Login: user=<a@b>, rip=203.0.113.1, session=<s>")
	assert.Equal(t, len(rs), 1)
}

func FuzzLines(f *testing.F) {
	f.Add("2026-11-23T14:59:13.0 imap-login: Info: Login: user=<a@b>, rip=203.0.113.1, session=<s>")
	f.Add("Nov 23 14:59:18 src postfix/smtpd[214]: B1E9A99CA4E: client=unknown[203.0.113.9]:1, sasl_username=x")
	f.Add("Nov 23 14:59:18 src postfix/smtpd[214]: NOQUEUE: reject: RCPT from a[1.2.3.4]: 554 x; from=<> to=<> proto=ESMTP helo=<>")
	f.Add("2026-11-23T14:59:43.0 auth(a,1.2.3.4,sasl:plain)<s>: Info: users: Password mismatch")
	f.Fuzz(func(t *testing.T, line string) {
		p := newPostfix()
		for range 2 {
			if program, pid, message, ok := prefix(line); ok {
				if r := p.read(program, pid, message, line); r != nil {
					r.keys(nil)
				}
				if r := (dovecot{}).read(program, message, line); r != nil {
					r.keys(nil)
				}
			}
		}
	})
}
