package witness

import (
	"context"
	"io"
	"net/netip"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// linesOf reads a log whose form nobody declared, to its end.
func linesOf(t *testing.T, text string, keys ...string) []Record {
	t.Helper()
	pr, pw := io.Pipe()
	l, err := FollowLines(t.Context(), "test", func(context.Context) (io.ReadCloser, error) { return pr, nil })
	assert.NilError(t, err)
	w := l.Watch(keys...)
	_, err = io.WriteString(pw, text)
	assert.NilError(t, err)
	pw.Close()
	<-l.done
	rs := w.Records()
	w.Close()
	l.Close()
	return rs
}

// The logs of servers that mailproof knows nothing of: the address stands on
// the line that names the user, or on another line of the same session.
func TestLinesOfStrangeLogs(t *testing.T) {
	for _, tc := range []struct{ name, key, text, addresses string }{
		{"Cyrus", "user=probe1@example.test", "2026-11-24T18:33:27.387057+00:00 host cyrus/pop3s[187]: login: client.example [203.0.113.20] probe1@example.test PLAIN+TLS User logged in SESSIONID=<cyrus-1795545207-187-1-17229925170336300065>\n", "203.0.113.20"},
		{"Cyrus, refused", "user=probe1@example.test", "2026-11-24T18:33:27.395817+00:00 host cyrus/imaps[186]: badlogin: localhost [2001:db8::21] PLAIN (probe1@example.test) [SASL(-13): authentication failure: Password verification failed]\n", "2001:db8::21"},
		{"OpenSMTPD", "user=probe1@example.test", "Nov 24 18:33:27 host smtpd[47]: 5a17bd77b8e03f22 smtp connected address=203.0.113.20 host=<unknown>\nNov 24 18:33:28 host smtpd[47]: aaaabd77b8e0aaaa smtp connected address=203.0.113.99 host=<unknown>\nNov 24 18:33:29 host smtpd[47]: 5a17bd77b8e03f22 smtp authentication user=probe1@example.test result=ok\n", "203.0.113.20"},
		{"a program of no known form", "recipient=bob@example.test", "[info] ab12cd34ef56 peer 198.51.100.7:40211\n[info] ab12cd34ef56 rcpt bob@example.test\n", "198.51.100.7"},
		{"SMTP's IPv6", "sender=a@b.example", "x client-address=IPv6:2001:db8::7 from=<A@B.example>\n", "2001:db8::7"},
		{"no address", "user=probe1@example.test", "Nov 24 18:33:27 host cyrus/imaps[188]: USAGE probe1@example.test user: 0.008383 sys: 0.020958\n", ""},
		{"versions and names are none", "user=u@example.test", "x u@example.test TLSv1.3 cipher 10.2.b build a1:b2 host-10.0.0.1 10.0.0.1-host ok\n", ""},
		{"an announcement that is only repeated", "user=u@example.test", "Nov 24 18:33:27 host imapd[1]: 5a17bd77b8e03f22 client id \"x-originating-ip\" \"203.0.113.20\"\nNov 24 18:33:27 host imapd[1]: 5a17bd77b8e03f22 login u@example.test\n", ""},
		{"a command that is only repeated", "user=u@example.test", "x 5a17bd77b8e03f22 failed-command command=\"XCLIENT ADDR=203.0.113.20\" u@example.test\n", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rs := linesOf(t, tc.text, tc.key)
			assert.Equal(t, len(rs), 1)
			assert.Equal(t, strings.Join(rs[0].Fields["address"], " "), tc.addresses)
			assert.Assert(t, rs[0].JoinedBy(tc.key))
		})
	}
}

// A session that began before somebody looked for its user is another's.
func TestOldSessionsAreNotJoined(t *testing.T) {
	pr, pw := io.Pipe()
	l, err := FollowLines(t.Context(), "test", func(context.Context) (io.ReadCloser, error) { return pr, nil })
	assert.NilError(t, err)
	_, err = io.WriteString(pw, "x 5a17bd77b8e03f22 from 192.0.2.1 u@example.test\n")
	assert.NilError(t, err)
	_, err = io.WriteString(pw, "x nothing\n") // read only after the line before was
	assert.NilError(t, err)
	w := l.Watch(Key("user", "u@example.test"))
	_, err = io.WriteString(pw, "x 5a17bd77b8e03f22 bye u@example.test\nx 6a17bd77b8e03f22 from 192.0.2.2 u@example.test\n")
	assert.NilError(t, err)
	pw.Close()
	<-l.done
	rs := w.Records()
	assert.Equal(t, len(rs), 1)
	assert.DeepEqual(t, rs[0].Fields["address"], []string{"192.0.2.2"})
	w.Close()
	l.Close()
}

// Whatever a log holds, reading it is bounded and addresses are addresses.
func FuzzLine(f *testing.F) {
	f.Add("Nov 24 18:33:27 host smtpd[47]: 5a17bd77b8e03f22 smtp connected address=203.0.113.20 host=<unknown>")
	f.Add("x IPv6:2001:db8::7 [::ffff:192.0.2.1]:25 a@b")
	f.Fuzz(func(t *testing.T, line string) {
		lr := newLineReader()
		for range 3 {
			r := lr.read(line)
			if r == nil {
				continue
			}
			for _, a := range r.Fields["address"] {
				if _, err := netip.ParseAddr(a); err != nil {
					t.Fatalf("%q: %v", a, err)
				}
			}
			if len(r.Fields["name"]) > maxWords || len(r.Lines) > maxSessionLines {
				t.Fatal("unbounded")
			}
		}
	})
}
