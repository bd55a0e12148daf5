package witness

import (
	"fmt"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

func TestStalwartLogins(t *testing.T) {
	const session = `listenerId = "sieve", localPort = 4190, remoteIp = 203.0.113.7, remotePort = 41005`
	for _, c := range []struct {
		name, line string
		kind       Kind
		want       map[string]string
		ambiguous  string
	}{
		{"signed in", `2026-11-23T23:33:22Z INFO Authentication successful (auth.success) ` + session + `, accountName = "alice@example.test", accountId = 2`,
			Login, map[string]string{"rip": "203.0.113.7", "rport": "41005", "service": "managesieve", "listener": "sieve", "user": "alice@example.test"}, ""},
		{"in colours", "\x1b[34m2026-11-23T23:33:22Z\x1b[0m \x1b[32mINFO\x1b[0m Authentication successful (\x1b[1mauth.success\x1b[0m) " + session + `, accountName = "alice@example.test"`,
			Login, map[string]string{"user": "alice@example.test"}, ""},
		{"IPv6", `2026-11-23T23:33:22Z INFO Authentication successful (auth.success) listenerId = "imaptls", localPort = 993, remoteIp = 2001:db8::77, remotePort = 41010, accountName = "alice@example.test", accountId = 2`,
			Login, map[string]string{"rip": "2001:db8::77", "service": "imap"}, ""},
		{"refused, the address twice", `2026-11-23T23:40:31Z DEBUG Authentication failed (auth.failed) listenerId = "imaptls", localPort = 993, remoteIp = 203.0.113.60, remotePort = 43010, remoteIp = 203.0.113.60, accountName = "alice@example.test", id = "b0"`,
			FailedLogin, map[string]string{"rip": "203.0.113.60", "reason": "auth.failed"}, ""},
		{"refused, and held against another address than the session's", `2026-11-23T23:40:31Z DEBUG Authentication failed (auth.failed) listenerId = "https", localPort = 443, remoteIp = 203.0.113.60, remotePort = 43010, remoteIp = 192.0.2.66, accountName = "alice@example.test", id = "b0"`,
			FailedLogin, map[string]string{"rip": "192.0.2.66", "session-rip": "203.0.113.60"}, ""},
		{"a name that imitates the address", `2026-11-23T23:40:31Z DEBUG Authentication failed (auth.failed) ` + session + `, accountName = "alice@example.test", remoteIp = 6.6.6.6, id = "x""`,
			FailedLogin, map[string]string{"rip": "203.0.113.7"}, "remoteIp"},
		{"a name that imitates a name", `2026-11-23T23:40:31Z DEBUG Authentication failed (auth.failed) ` + session + `, accountName = "mallory", accountName = "alice@example.test", id = "b0"`,
			FailedLogin, map[string]string{"user": "mallory"}, "accountName"},
	} {
		e, ok := readEvent(c.line)
		assert.Assert(t, ok, c.name)
		r := newStalwart().read(c.line)
		assert.Assert(t, r != nil, "%s: %+v", c.name, e)
		assert.Equal(t, r.Kind, c.kind, c.name)
		for f, v := range c.want {
			assert.Equal(t, r.Get(f), v, "%s: %s", c.name, f)
		}
		if c.ambiguous == "" {
			assert.Equal(t, r.Ambiguous, "", c.name)
		} else {
			assert.Assert(t, strings.Contains(r.Ambiguous, c.ambiguous), c.name)
		}
	}
	// Lines that lost their session.
	r := newStalwart().read(`2026-11-23T23:40:31Z DEBUG Authentication failed (auth.failed) remoteIp = 203.0.113.60, accountName = "alice@example.test", id = "b0"`)
	assert.Equal(t, r.Kind, FailedLogin)
	assert.Equal(t, r.Get("rip"), "203.0.113.60")
	assert.Assert(t, r.Lost && r.Ambiguous == "" && !r.Has("rport"))
	r = newStalwart().read(`2026-11-23T23:40:31Z DEBUG Authentication failed (auth.failed) remoteIp = 203.0.113.60, accountName = "alice", remoteIp = 6.6.6.6, id = "b0"`)
	assert.Assert(t, strings.Contains(r.Ambiguous, "remoteIp"))
	for _, line := range []string{
		`2026-11-23T23:33:22Z INFO A (auth.success) accountName = "alice", accountId = 2`,
		`2026-11-23T23:33:22Z INFO A (auth.success) remoteIp = 1.2.3.4, remotePort = 5, accountName = "alice"`,
		`2026-11-23T23:33:22Z INFO A (auth.success) accountName = "x", listenerId = "imap", localPort = 143, remoteIp = 1.2.3.4, remotePort = 5`,
		`2026-11-23T23:33:22Z INFO A (auth.failed) accountName = "x", remoteIp = 1.2.3.4`,
	} {
		r := newStalwart().read(line)
		assert.Assert(t, r.Ambiguous != "" && r.Get("rip") == "", line)
	}
	rs := follow(t, []string{Key("user", "alice@example.test")},
		`2026-11-23T23:33:22Z INFO Authentication successful (auth.success) `+session+`, accountName = "alice@example.test", accountId = 2`)
	assert.Equal(t, len(rs), 1)
}

func TestWhatIsNoStalwartRecord(t *testing.T) {
	s := newStalwart()
	for _, line := range []string{
		``, `2026-11-23T23:33:22Z `, `2026-11-23T23:33:22Z INFO nothing`,
		`2026-11-23T23:33:25Z WARN Proxy protocol error (network.proxy-error) listenerId = "imap", localIp = ::, localPort = 143, tls = false, reason = "invalid proxy header"`,
		`x 2026-11-23T23:33:22Z INFO Authentication successful (auth.success) listenerId = "sieve", localPort = 4190, remoteIp = 203.0.113.7, remotePort = 41005`,
	} {
		if isStalwart(line) {
			assert.Assert(t, s.read(line) == nil, line)
		}
	}
}

func TestStalwartKeysWithQuotes(t *testing.T) {
	got := stalwartKeys(`details = "Missing command after tag "\\0", found CRLF instead.", type = "BAD", limit = [5, 1000ms], to = ["a", "b"], elapsed = 3ms`)
	assert.Equal(t, fmt.Sprintf("%q", got), `[{"details" "Missing command after tag \"\\\\0\", found CRLF instead."} {"type" "BAD"} {"limit" "5, 1000ms"} {"to" "\"a\", \"b\""} {"elapsed" "3ms"}]`)
	assert.Equal(t, len(stalwartKeys(`a = "never ends`)), 1)
	assert.Equal(t, len(stalwartKeys(strings.Repeat("a = 1, ", 1000))), 64)
}

func FuzzStalwart(f *testing.F) {
	f.Add(`2026-11-23T23:33:22Z INFO Authentication successful (auth.success) listenerId = "sieve", localPort = 4190, remoteIp = 203.0.113.7, remotePort = 41005, accountName = "alice@example.test", accountId = 2`)
	f.Add(`2026-11-23T23:39:09Z INFO Message ingested (message-ingest.ham) queueId = 3, from = "a", to = ["b", "c"]`)
	f.Fuzz(func(t *testing.T, line string) {
		s := newStalwart()
		if r := s.read(line); r != nil {
			r.keys(nil)
		}
	})
}
