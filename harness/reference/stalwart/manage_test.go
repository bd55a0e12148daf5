package stalwart_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/harness/reference/stalwart"
)

// TestManagementAPI: calls and answers that were recorded.
func TestManagementAPI(t *testing.T) {
	l := startLab(t, labOptions{})
	l.reload()
	for _, c := range []struct{ method, path, body, want string }{
		{"POST", "/api/principal", `{"type":"individual","name":"x@nodomain.test","emails":["x@nodomain.test"]}`, `200 {"error":"notFound","item":"nodomain.test"}`},
		{"POST", "/api/principal", `{"type":"individual","name":"alice@example.test"}`, `200 {"error":"fieldAlreadyExists","field":"name","value":"alice@example.test"}`},
		{"POST", "/api/principal", `{"type":"individual"}`, `200 {"error":"fieldMissing","field":"name"}`},
		{"POST", "/api/principal", `{"type":"nobody","name":"x"}`, `400 {"type":"about:blank","status":400,"title":"Invalid parameters","detail":"JSON deserialization failed"}`},
		{"GET", "/api/restart", "", `200 {"error":"unsupported","details":"Restart is not yet supported"}`},
		{"GET", "/api/reload", "", `200 {"data":{"warnings":{},"errors":{}}}`},
		{"GET", "/api/reload?dry-run", "", `200 {"data":{"warnings":{},"errors":{}}}`},
		{"GET", "/api/settings/list?prefix=server.listener.imap", "", `200 {"data":{"total":2,"items":{"bind":"[::]:143","protocol":"imap"}}}`},
		{"POST", "/api/settings", `[{"type":"insert","values":[["a","b"]]}]`, `400 {"type":"about:blank","status":400,"title":"Invalid parameters","detail":"JSON deserialization failed"}`},
		{"POST", "/api/settings", `[{"type":"insert","prefix":null,"assert_empty":true,"values":[["test.x","1"],["test.y.z","2"]]}]`, `200 {"data":null}`},
		{"POST", "/api/settings", `[{"type":"insert","assert_empty":true,"values":[["test.x","1"]]}]`, `200 {"error":"assertFailed"}`},
		{"POST", "/api/settings", `[{"type":"insert","assert_empty":false,"prefix":"test","values":[["x","3"]]},{"type":"insert","prefix":"test","assert_empty":true,"values":[["w","1"]]}]`, `200 {"error":"assertFailed"}`},
		{"GET", "/api/settings/keys?keys=test.x,nothing&prefixes=test.y", "", `200 {"data":{"test.x":"3","test.y.z":"2"}}`},
		{"POST", "/api/settings", `[{"type":"delete","keys":["test.x"]},{"type":"clear","prefix":"test.y","filter":null}]`, `200 {"data":null}`},
		{"GET", "/api/settings/list?prefix=test", "", `200 {"data":{"total":0,"items":{}}}`},
		{"GET", "/api/settings/group?prefix=server.listener&suffix=bind&limit=1", "", `200 {"data":{"total":11,"items":[{"_id":"adm","bind":"[::]:8081","protocol":"http","proxy.trusted-networks":"192.0.2.1"}]}}`},
		{"GET", "/api/nothing", "", `404 {"type":"about:blank","status":404,"title":"Not Found","detail":"The requested resource does not exist on this server."}`},
		{"GET", "/api/principal/nobody", "", `200 {"error":"notFound","item":"nobody"}`},
		{"PATCH", "/api/principal/bob@example.test", `[{"action":"set","field":"secrets","value":"changed"}]`, `200 {"data":null}`},
		{"GET", "/api/principal/bob%40example.test", "", `200 {"data":{"id":3,"type":"individual","name":"bob@example.test","emails":["bob@example.test"],"secrets":["changed"],"roles":["user"]}}`},
		{"DELETE", "/api/principal/bob@example.test", "", `200 {"data":null}`},
		{"GET", "/api/principal?types=domain", "", `200 {"data":{"items":[{"id":1,"type":"domain","name":"example.test"}],"total":1}}`},
	} {
		code, body := l.api(c.method, c.path, c.body)
		assert.Equal(t, fmt.Sprintf("%d %s", code, body), c.want, "%s %s %s", c.method, c.path, c.body)
	}
	for _, auth := range []string{"", "Authorization: Basic YWRtaW46d3Jvbmc=\r\n"} {
		a := l.ask(strangerAt, 8081, "GET /api/principal HTTP/1.1\r\nHost: x\r\n"+auth+"\r\n")
		assert.Equal(t, a.status, 401)
		assert.Equal(t, a.headers["www-authenticate"], "", "the API names no realm")
		assert.Equal(t, a.body, `{"type":"about:blank","status":401,"title":"Unauthorized","detail":"You have to authenticate first."}`)
	}
	a := l.ask(strangerAt, 8081, strings.Replace(request("GET /api/settings/list (Basic)", 0), "YWRtaW46YWRtaW5wdw==", "YWxpY2VAZXhhbXBsZS50ZXN0OmFsaWNlcHc=", 1))
	assert.Equal(t, a.status, 403)
}

// TestLogsOverTheAPI: the newest first, found by what they hold, themselves
// among them.
func TestLogsOverTheAPI(t *testing.T) {
	l := startLab(t, labOptions{})
	code, body := l.api("GET", "/api/logs?filter=api/logs&limit=2", "")
	assert.Equal(t, code, 200)
	var a struct {
		Data struct {
			Items []struct{ Timestamp, Level, Event, Event_ID, Details string }
			Total int
		}
	}
	assert.NilError(t, json.Unmarshal([]byte(body), &a))
	assert.Equal(t, len(a.Data.Items), 1)
	i := a.Data.Items[0]
	assert.Equal(t, i.Level+"|"+i.Event+"|"+i.Event_ID, "DEBUG|HTTP request URL|http.request-url")
	assert.Assert(t, cmp.Regexp(`^listenerId = "adm", localPort = 8081, remoteIp = 172\.30\.3\.1, remotePort = \d+, url = "/api/logs\?filter=api/logs&limit=2"$`, i.Details))

	l = startLab(t, labOptions{keys: "tracer.log.enable = false\n"})
	_, body = l.api("GET", "/api/logs", "")
	assert.Equal(t, body, `{"error":"unsupported","details":"Tracer log path not configured"}`)
}

// greets says what a connection without a header meets on port 143.
func (l *lab) greets(from string) string {
	c := l.open(from, 143)
	defer c.nc.Close()
	c.nc.SetReadDeadline(time.Now().Add(3 * time.Second))
	if s := c.line(); strings.HasPrefix(s, "<") {
		return s
	}
	return "greeted"
}

// announced says whether a header from the proxy counts on port 143.
func (l *lab) announced() bool {
	c := l.open(proxyAt, 143)
	defer c.nc.Close()
	c.nc.Write(header("203.0.113.7:40001", "198.51.100.1:143"))
	c.line()
	c.say("a1 NOOP")
	return c.line() == "a1 OK NOOP completed"
}

// TestGroupH: what counts when. Listeners change with a restart alone, the
// rest with a reload.
func TestGroupH(t *testing.T) {
	l := startLab(t, labOptions{})
	state := func(want string, header bool) {
		t.Helper()
		assert.Equal(t, l.greets(proxyAt), want)
		assert.Equal(t, l.announced(), header)
		assert.Equal(t, l.greets(strangerAt), "greeted")
	}
	url := func() string {
		return strings.Split(l.ask(strangerAt, 8081, "GET /jmap/session HTTP/1.1\r\n\r\n").body, `"apiUrl":"`)[1][:12]
	}
	state("greeted", false)
	l.guide()
	l.set("http.url", "'https://mail.example.test'")
	state("greeted", false) // inserted
	assert.Equal(t, url(), "http://old.i")
	l.reload()
	state("greeted", false) // reloaded
	assert.Equal(t, url(), "https://mail")
	l.restart()
	state("<silence>", true)
	assert.Equal(t, url(), "https://mail")
	_, body := l.api("POST", "/api/settings", `[{"type":"clear","prefix":"server.listener.imap.proxy.","filter":null}]`)
	assert.Equal(t, body, `{"data":null}`)
	l.reload()
	state("<silence>", true) // cleared
	l.restart()
	state("greeted", false) // cleared and restarted
}

// TestNetworks: which lists count, and what becomes of entries that are none.
func TestNetworks(t *testing.T) {
	for _, c := range []struct{ keys, port143, port25 string }{
		{`server.proxy.trusted-networks = "172.30.1.1"`, "<silence>", "<silence>"},
		{"server.proxy.trusted-networks = \"172.30.1.1\"\nserver.listener.smtp.proxy.trusted-networks = [\"192.0.2.1\"]", "<silence>", "greeted"},
		{"server.proxy.trusted-networks = \"172.30.1.1\"\nserver.listener.imap.proxy.trusted-networks.0 = \"192.0.2.0/24\"", "greeted", "<silence>"},
		{`server.proxy.trusted-networks = ["0.0.0.0/0", "::/0", "172.0.0.0/7", "", "nonsense"]`, "greeted", "greeted"},
		{`server.proxy.trusted-networks = ["0.0.0.0/0", "172.30.99.99/16"]`, "<silence>", "<silence>"},
		{"server.listener.imap.proxy.override = true", "greeted", "greeted"},
		{`server.proxy.trusted-networks = "%{env:NETS}%"`, "<silence>", "<silence>"},
		{`server.proxy.trusted-networks = "%{file:/nets}%"`, "greeted", "greeted"},
	} {
		cfg := configOf(t, labOptions{keys: c.keys + "\n"})
		cfg.Env = map[string]string{"NETS": "172.30.0.0/16"}
		srv, err := stalwart.New(cfg)
		assert.NilError(t, err)
		l := startServer(t, srv)
		assert.Equal(t, l.greets(proxyAt), c.port143, c.keys)
		c25 := l.open(proxyAt, 25)
		c25.nc.SetReadDeadline(time.Now().Add(3 * time.Second))
		got := c25.line()
		if strings.HasPrefix(got, "220") {
			got = "greeted"
		}
		assert.Equal(t, got, c.port25, c.keys)
	}
}

// TestReloadRejects: anything wrong, and nothing is applied.
func TestReloadRejects(t *testing.T) {
	for _, c := range []struct{ key, value, kind, says string }{
		{"http.url", "https://mail.example.test", "parse", `Invalid variable or constant "https"`},
		{"http.url", "'unfinished", "parse", "Unterminated string"},
		{"session.ehlo.reject-non-fqdn", "maybe", "parse", `Invalid variable or constant "maybe"`},
		{"server.proxy.trusted-networks.0", "0.0.0.0/1", "parse", `Invalid IP address "0.0.0.0/1"`},
		{"server.auto-ban.auth.rate", "often", "parse", `Invalid rate value "often".`},
		{"spam-filter.pyzor.host", "nowhere.example", "build", "Invalid address: failed to lookup address information: Name or service not known"},
		{"imap.auth.max-failures", "few", "parse", `Invalid integer value "few".`},
	} {
		l := startLab(t, labOptions{keys: "spam-filter.pyzor.enable = true\nspam-filter.pyzor.host = \"192.0.2.9\"\n", empty: true})
		if strings.HasPrefix(c.key, "spam-filter") {
			l = startLab(t, labOptions{loud: true, empty: true})
		}
		l.set("session.connect.greeting", "'changed'", c.key, c.value)
		code, body := l.api("GET", "/api/reload", "")
		want, err := json.Marshal(map[string]map[string]string{c.key: {"error": c.says, "type": c.kind}})
		assert.NilError(t, err)
		var got struct {
			Data struct{ Errors json.RawMessage }
		}
		assert.NilError(t, json.Unmarshal([]byte(body), &got))
		var a, b any
		assert.NilError(t, json.Unmarshal(got.Data.Errors, &a))
		assert.NilError(t, json.Unmarshal(want, &b))
		assert.Equal(t, code, 200)
		assert.DeepEqual(t, a, b)
		assert.Equal(t, l.open(strangerAt, 25).line(), "220 old.internal.test Stalwart ESMTP at your service")
		// A boot takes what is right, says what is wrong, and starts.
		l.restart()
		assert.Equal(t, l.open(strangerAt, 25).line(), "220 changed")
		l.log.await(t, "ERROR Configuration "+c.kind+" error (config."+c.kind+"-error)", c.key)
	}
}

// TestShippedSettingsComeBack: without version.spam-filter a boot writes over
// what was set.
func TestShippedSettingsComeBack(t *testing.T) {
	l := startLab(t, labOptions{loud: true, empty: true})
	_, body := l.api("GET", "/api/settings/list?prefix=queue.limiter.inbound", "")
	assert.Equal(t, body, `{"data":{"total":7,"items":{"ip.enable":"true","ip.key":"remote_ip","ip.rate":"5/1s","sender.enable":"true","sender.key.0":"sender_domain","sender.key.1":"rcpt","sender.rate":"25/1h"}}}`)
	_, body = l.api("GET", "/api/reload", "")
	assert.Equal(t, body, `{"data":{"warnings":{},"errors":{"spam-filter.pyzor.host":{"type":"build","error":"Invalid address: failed to lookup address information: Name or service not known"}}}}`)
	rate := func() string {
		_, body := l.api("GET", "/api/settings/keys?keys=queue.limiter.inbound.ip.rate", "")
		return body
	}
	l.set("queue.limiter.inbound.ip.rate", "500/1s")
	l.restart()
	assert.Equal(t, rate(), `{"data":{"queue.limiter.inbound.ip.rate":"5/1s"}}`)
	l.set("queue.limiter.inbound.ip.rate", "500/1s", "version.spam-filter", "2.0.0")
	l.restart()
	assert.Equal(t, rate(), `{"data":{"queue.limiter.inbound.ip.rate":"500/1s"}}`)
}

// TestFileHidesDatabase: a key of the database that stands in the file cannot
// be changed over the API.
func TestFileHidesDatabase(t *testing.T) {
	l := startLab(t, labOptions{keys: "http.url = \"'https://file.example'\"\n"})
	l.set("http.url", "'https://api.example'")
	l.reload()
	a := l.ask(strangerAt, 8081, "GET /jmap/session HTTP/1.1\r\n\r\n")
	assert.Assert(t, cmp.Contains(a.body, `"apiUrl":"https://file.example/jmap/"`))
	_, body := l.api("POST", "/api/settings", `[{"type":"delete","keys":["http.url"]}]`)
	assert.Equal(t, body, `{"data":null}`)
	_, body = l.api("GET", "/api/settings/keys?keys=http.url", "")
	assert.Equal(t, body, `{"data":{"http.url":"'https://file.example'"}}`)
	_, body = l.api("POST", "/api/settings", `[{"type":"clear","prefix":"http.url"}]`)
	assert.Equal(t, body, `{"data":null}`)
	_, body = l.api("GET", "/api/settings/keys?keys=http.url", "")
	assert.Equal(t, body, `{"data":{}}`)
}

// TestRestartWithOpenSessions: sessions are told, and end; accounts, mail and
// bans stay.
func TestRestartWithOpenSessions(t *testing.T) {
	l := startLab(t, labOptions{})
	l.set("server.blocked-ip.172.30.1.1", "")
	imap, smtp, sieve, pop, signed := l.open(strangerAt, 143), l.open(strangerAt, 25), l.open(strangerAt, 4190), l.open(strangerAt, 110), l.open(strangerAt, 993)
	imap.line()
	smtp.line()
	for s := sieve.line(); !strings.HasPrefix(s, "OK"); s = sieve.line() {
	}
	pop.line()
	signed.tls()
	signed.line()
	signed.say("a1 LOGIN alice@example.test alicepw")
	assert.Assert(t, cmp.Contains(signed.line(), "a1 OK"))
	l.deliver(t, "kept")
	began := time.Now()
	l.restart()
	assert.Assert(t, time.Since(began) < 900*time.Millisecond, "%s", time.Since(began))
	for _, c := range []struct {
		c    *client
		want string
	}{{imap, "* BYE Server shutting down."}, {smtp, "421 4.3.0 old.internal.test Server shutting down."}, {sieve, `BYE "Server shutting down."`}, {pop, "* BYE Server shutting down."}, {signed, "* BYE Server shutting down."}} {
		assert.Equal(t, c.c.line(), c.want)
		assert.Equal(t, c.c.line(), "<closed>")
	}
	assert.Equal(t, len(l.srv.Account("alice@example.test").Messages("INBOX")), 1)
	assert.Equal(t, l.greets(proxyAt), "<closed>")
	assert.ErrorContains(t, l.srv.Start(context.Background(), nil), "started before")
}

// TestNew refuses what no server would start with.
func TestNew(t *testing.T) {
	cfg := configOf(t, labOptions{})
	cfg.Version = "0.16.18"
	_, err := stalwart.New(cfg)
	assert.ErrorContains(t, err, `no version "0.16.18"`)
	cfg = configOf(t, labOptions{bugs: []string{"none-such"}})
	_, err = stalwart.New(cfg)
	assert.ErrorContains(t, err, `unknown bug "none-such"`)
	for text, want := range map[string]string{
		"a = \"1\"\na = \"2\"":     "line 2: a: duplicate",
		"[x\ny = 1":                "a section has no end",
		"a":                        "a key has no value",
		"a = \"x":                  "a string has no end",
		"a = [1, 2":                "an array has no end",
		"a b = 1":                  "is no key",
		"a = !":                    "begins no value",
		strings.Repeat("#", 2<<20): "longer than",
	} {
		_, err := stalwart.ParseTOML(text)
		assert.ErrorContains(t, err, want[strings.LastIndex(want, ": ")+1:], "%.20q", text)
	}
	keys, err := stalwart.ParseTOML("# c\n[a.b]\nc = [\"x\", 'y', 3] # d\nd.e = tr-u.e\n\"f\" = \"q\\\"\\n\"\n")
	assert.NilError(t, err)
	assert.DeepEqual(t, keys, map[string]string{"a.b.c.0000": "x", "a.b.c.0001": "y", "a.b.c.0002": "3", "a.b.d.e": "tr-u.e", "a.b.f": "q\"\n"})
}

// TestConfigFilesHoldNoSecret: nor does the log.
func TestConfigFilesHoldNoSecret(t *testing.T) {
	l := startLab(t, labOptions{})
	l.set("authentication.master.user", "boss", "authentication.master.secret", "topsecret")
	l.reload()
	for _, f := range l.srv.ConfigFiles() {
		for _, s := range []string{"adminpw", "topsecret", "alicepw"} {
			assert.Assert(t, !strings.Contains(f.Text, s), f.Path)
		}
	}
	c := l.open(strangerAt, 993)
	c.tls()
	c.line()
	c.say("a1 LOGIN alice@example.test%boss wrong", "a2 LOGIN alice@example.test%boss topsecret")
	assert.Equal(t, c.line(), "a1 NO [AUTHENTICATIONFAILED] Authentication failed")
	assert.Assert(t, cmp.Contains(c.line(), "a2 OK"))
	assert.NilError(t, l.srv.Close())
	for _, line := range l.log.end() {
		for _, s := range []string{"adminpw", "topsecret", "alicepw", plain("alice@example.test", "alicepw")} {
			assert.Assert(t, !strings.Contains(line, s), line)
		}
	}
}
