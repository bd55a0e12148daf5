package stalwart

import (
	"net/netip"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// fakeScope knows a few names.
type fakeScope map[string]any

func (f fakeScope) variable(name string) any           { return f[name] }
func (f fakeScope) setting(key string) string          { return "setting " + key }
func (f fakeScope) isLocalDomain(domain string) bool   { return domain == "example.test" }
func (f fakeScope) isLocalAddress(address string) bool { return address == "a@example.test" }

func TestExpressions(t *testing.T) {
	s := fakeScope{"remote_ip": "192.0.2.1", "local_port": int64(25), "is_tls": false, "rcpt": "A@example.test", "recipients": []any{"x", "y"}}
	for text, want := range map[string]any{
		"'a' + remote_ip": "a192.0.2.1", "1 + 2 * 3": int64(7), "(1 + 2) * 3": int64(9), "7 / 0": int64(0), "-5 - 1": int64(-6),
		"local_port == 25": true, "local_port != 25 || !is_tls": true, "local_port > 24 && local_port <= 25": true, "'b' > 'a' and true": true,
		"[1, 'x', true]": []any{int64(1), "x", true}, "contains([1, 2], 2)": true, "contains(remote_ip, '0.2')": true, "contains(recipients, 'z')": false,
		"starts_with(remote_ip, '192')": true, "ends_with(remote_ip, '.1')": true, "is_empty('')": true, "config_get('a.b')": "setting a.b",
		"is_local_domain('*', 'example.test')": true, "is_local_address('*', 'b@example.test')": false, "to_lowercase(rcpt)": "a@example.test",
		"email_part(rcpt, 'domain')": "example.test", "email_part(rcpt, 'local')": "A", "is_ip_addr(remote_ip)": true, "key_exists('a', 'b')": false,
		"5m": int64(300000), "2d": int64(172800000), "false": false, "\"x\"": "x", "url": nil, "plain": "plain",
	} {
		e, err := parseExpr("session.x", text)
		assert.NilError(t, err, text)
		assert.DeepEqual(t, e.eval(s), want)
	}
	for text, want := range map[string]string{
		"":            "Unexpected end of expression",
		"1 +":         "Unexpected end of expression",
		"(1":          "Unmatched open parenthesis",
		"1)":          "Unmatched close parenthesis",
		"'x":          "Unterminated string",
		"1 2":         "Invalid expression",
		"a ; b":       `Invalid variable or constant "a"`,
		"1 ; 2":       "Invalid character ';'",
		"relaxed":     `Invalid variable or constant "relaxed"`,
		"nothing('')": `Invalid variable or constant "nothing"`,
		"is_empty()":  `Expression function "is_empty" expected 1 arguments, got 0`,
		"[1":          "Unexpected end of expression",
		"https://x":   `Invalid variable or constant "https"`,
	} {
		_, err := parseExpr("session.x", text)
		assert.Error(t, err, want, text)
	}
	deep := ""
	for range 1000 {
		deep += "("
	}
	_, err := parseExpr("session.x", deep)
	assert.Error(t, err, "Invalid expression")
	for _, deep := range []string{"!", "["} {
		text := ""
		for range 10000 {
			text += deep
		}
		_, err := parseExpr("session.x", text)
		assert.Assert(t, err != nil)
	}
}

func TestBranches(t *testing.T) {
	for _, c := range []struct {
		keys map[string]string
		want any
		err  string
	}{
		{map[string]string{"k.0.if": "local_port == 25", "k.0.then": "'relay'", "k.1.if": "is_tls", "k.1.then": "'tls'", "k.2.else": "'rest'"}, "relay", ""},
		{map[string]string{"k.0.if": "local_port == 26", "k.0.then": "1", "k.1.else": "2"}, int64(2), ""},
		{map[string]string{"k.0.if": "true", "k.0.then": "1"}, nil, "Missing 'else'"},
		{map[string]string{"k.0.if": "true", "k.1.else": "1"}, nil, "Missing 'then' in 'if' condition 0"},
		{map[string]string{"k.0.if": "true", "k.1.if": "true", "k.1.then": "2"}, nil, "Missing 'then' in 'if' condition 0."},
		{map[string]string{"k.0.else": "1"}, nil, "Found 'else' before 'if'"},
		{map[string]string{"k.0.then": "1"}, nil, "Found 'then' without 'if'"},
		{map[string]string{"k.x": "1"}, nil, `Invalid property "k.x" found in 'if' block.`},
		{map[string]string{}, nil, ""},
	} {
		r := &configReader{keys: c.keys, errors: map[string]problem{}}
		got := r.choice("k")
		assert.Equal(t, r.errors["k"].Error, c.err)
		if c.want != nil {
			assert.DeepEqual(t, got.eval(fakeScope{"local_port": int64(25)}), c.want)
		} else {
			assert.Assert(t, got == nil)
		}
	}
	for key := range defaultChoices {
		for _, b := range defaultChoice(key).cases {
			assert.Assert(t, b.when != nil && b.then != nil, key)
		}
		assert.Assert(t, defaultChoice(key).other != nil, key)
	}
}

func TestValues(t *testing.T) {
	for v, want := range map[string]rate{"5/1s": {5, time.Second}, "25 / 1h": {25, time.Hour}, "1/1ms": {1, time.Second}, "false": {}, "unlimited": {}} {
		got, err := parseRate(v)
		assert.NilError(t, err)
		assert.Equal(t, got, want, v)
	}
	for _, v := range []string{"", "5", "0/1s", "x/1s", "5/0s", "5/1y", "-1/1s"} {
		_, err := parseRate(v)
		assert.Assert(t, err != nil, v)
	}
	for v, want := range map[string]string{"192.0.2.1": "192.0.2.1/32", "192.0.2.77/24": "192.0.2.0/24", "10.0.0.0/8": "10.0.0.0/8", "2001:db8::/32": "2001:db8::/32", " ::1 ": "::1/128"} {
		got, err := parseNetwork(v)
		assert.NilError(t, err)
		assert.Equal(t, got.String(), want)
	}
	for _, v := range []string{"", "0.0.0.0/0", "10.0.0.0/7", "::/0", "2001::/7", "x", "1.2.3.4/33", "1.2.3.4/", "fe80::1%eth0"} {
		_, err := parseNetwork(v)
		assert.Error(t, err, `Invalid IP address "`+v+`"`)
	}
	mapped := []netip.Prefix{netip.MustParsePrefix("::ffff:192.0.2.0/120")}
	assert.Assert(t, within(mapped, netip.MustParseAddr("192.0.2.9")))
	assert.Assert(t, !within(mapped, netip.MustParseAddr("192.0.3.9")))
	for p, s := range map[string]string{"*.php*": "/x.PHP?y", "*/wp-*": "/a/wp-b", "a?c": "abc", "*": "", "/..*": "/../x"} {
		assert.Assert(t, glob(p, s), p)
	}
	assert.Assert(t, !glob("*.php*", "/x.html"))
	assert.Equal(t, jmapID(0)+jmapID(2)+jmapID(31)+" "+jmapID(32), "ac3 ba")
	for key, local := range map[string]bool{
		"server.hostname": true, "server.listener.imap.proxy.trusted-networks.0": true, "server.blocked-ip.1.2.3.4": false, "server.allowed-ip.::1": false,
		"http.url": false, "storage.data": true, "storage.encryption": false, "authentication.fallback-admin.user": true, "authentication.master.user": false,
		"tracer.x.level": true, "session.ehlo.require": false, "certificate.a.cert": true, "config.local-keys.0": true, "enterprise.license-key": true,
	} {
		assert.Equal(t, isLocal(key), local, key)
	}
}
