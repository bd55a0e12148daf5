package stalwart_test

import (
	"io"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/harness/reference/stalwart"
)

// fuzzPort sends anything to a port, as the proxy after a header or as a
// stranger: the session must end, and every line of the log must be one.
func fuzzPort(f *testing.F, port uint16, seeds ...string) {
	for _, s := range seeds {
		f.Add([]byte(strings.ReplaceAll(s, "\n", "\r\n")), false)
	}
	f.Add([]byte("\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c"), true)
	f.Add([]byte("PROXY TCP4 1.2.3.4"), true)
	f.Add([]byte(strings.Repeat("x", 70<<10)), false)
	f.Fuzz(func(t *testing.T, b []byte, raw bool) {
		l := startLab(t, labOptions{keys: trusting + "server.proxy.trusted-networks = \"172.30.1.1\"\n"})
		start := time.Now()
		c := l.open(proxyAt, port)
		c.nc.SetDeadline(time.Now().Add(time.Minute))
		go func() {
			if !raw {
				c.nc.Write(header("203.0.113.7:40001", "198.51.100.1:143"))
			}
			c.nc.Write(b)
			c.nc.(interface{ CloseWrite() error }).CloseWrite()
		}()
		c.nc.SetReadDeadline(time.Time{})
		timer := time.AfterFunc(20*time.Second, func() { c.nc.Close() })
		io.Copy(io.Discard, c.nc)
		if !timer.Stop() {
			t.Fatal("the session does not end")
		}
		assert.NilError(t, l.srv.Close())
		if d := time.Since(start); d > 10*time.Second {
			t.Fatalf("the session took %s", d)
		}
		for _, line := range l.log.end() {
			if !strings.HasPrefix(line, "20") || strings.ContainsAny(line, "\r\x00") {
				t.Fatalf("no line of the log: %q", line)
			}
		}
	})
}

func FuzzIMAP(f *testing.F) {
	p := plain("alice@example.test", "alicepw")
	fuzzPort(f, 143, "a1 CAPABILITY\na2 ID (\"x\" {3+}\nabc)\na3 AUTHENTICATE PLAIN "+p+"\na4 SELECT INBOX\na5 SEARCH HEADER X y\na6 LIST \"\" *\na7 LOGOUT\n",
		"a1 AUTHENTICATE PLAIN\n*\na2 LOGIN {3}\nabc {1}\nx\n", "\x00\n\n PROXY TCP4\n", "a1 STARTTLS\n\x16\x03\x01\x00\x05hello", "a UID FETCH 1\n")
}

func FuzzPOP3(f *testing.F) {
	fuzzPort(f, 110, "CAPA\nAUTH PLAIN\n*\nUSER x\nSTLS\nhello", "LIST 1 2\nTOP\nQUIT\n")
}

func FuzzSieve(f *testing.F) {
	fuzzPort(f, 4190, "CAPABILITY\nAUTHENTICATE \"PLAIN\" \"x\"\nPUTSCRIPT \"x\" {5+}\nkeep;\nNOOP {3+}\nabc\nLOGOUT\n", "\x00\n\nX\n")
}

func FuzzSMTP(f *testing.F) {
	fuzzPort(f, 25, "EHLO x.test\nMAIL FROM:<a@b.test> SIZE=5 BODY=8BITMIME\nRCPT TO:<alice@example.test>\nDATA\nSubject: x\n\n..a\n.\nQUIT\n",
		"EHLO x.test\nMAIL FROM:<>\nRCPT TO:<alice@example.test>\nBDAT 3\nabcBDAT 0 LAST\nQUIT\n", "EHLO \"x\nVRFY <a>,<b>\nETRN x\nNOOP\nRSET\nHELP\n",
		"EHLO a.b\nMAIL FROM:<\"a b\"@[IPv6:::1]>\nRCPT TO:<@a,@b:c@d> NOTIFY=X\n", "EHLO a.b\nMAIL FROM:<a@b>\nRCPT TO:<alice@example.test>\nDATA\nDKIM-Signature: v=1; a=x; d=d; s=s; bh=; b=AA==; h=From\nFrom: <\n\n.\n.\n")
}

func FuzzHTTP(f *testing.F) {
	api := basic("admin", "adminpw")
	fuzzPort(f, 8080, "GET /jmap/session HTTP/1.1\nHost: x\n\nGET / HTTP/1.0\n\n", strings.ReplaceAll(post("/api/settings", api, `[{"type":"insert","assert_empty":false,"values":[["http.url","'x"]]}]`), "\r\n", "\n"),
		"POST /autodiscover/autodiscover.xml HTTP/1.1\nContent-Length: 70\n\n<Autodiscover><Request><EMailAddress>a@b</EMailAddress></Request></A>", strings.ReplaceAll(upgrade(), "\r\n", "\n")+"\x81\x85\x00\x00\x00\x00hello",
		"POST /x HTTP/1.1\nTransfer-Encoding: chunked\n\nffffffff\n")
}

// FuzzHeader reads anything as what a trusted peer begins with.
func FuzzHeader(f *testing.F) {
	fuzzPort(f, 143, "PROXY TCP4 203.0.113.7 198.51.100.1 1 2\na1 NOOP\n", "PROXY UNKNOWN\n", "PROXY \n\n\n\n\n\n\n\n\n")
}

// FuzzTOML reads anything as a configuration file.
func FuzzTOML(f *testing.F) {
	f.Add(config)
	f.Add("a = [\"x\", 'y' # c\n]\n[b.\"c\"]\nd = tr\\")
	f.Fuzz(func(t *testing.T, text string) {
		keys, err := stalwart.ParseTOML(text)
		if err == nil && len(keys) > len(text) {
			t.Fatalf("%d keys of %d octets", len(keys), len(text))
		}
	})
}

// FuzzSettings boots with anything as one setting: it starts, and a setting
// that is refused does no harm.
func FuzzSettings(f *testing.F) {
	for _, s := range []string{"http.url", "session.connect.greeting", "queue.limiter.inbound.x.match", "server.auto-ban.auth.rate", "server.proxy.trusted-networks", "tracer.out.level", "http.headers", "certificate.default.cert"} {
		for _, v := range []string{"'a' + remote_ip", "((((", "[1, 'x', !true] == 2 - 3 * 4 / 0", "1/1s", "%{file:x}%", "config_get('a') && contains(rcpt, 'x')", "-5m"} {
			f.Add(s, v)
		}
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		cfg := configOf(t, labOptions{empty: true})
		cfg.Keys[key] = value
		if strings.HasPrefix(key, "server.listener") || strings.HasPrefix(key, "storage") {
			return // a server may not start with those
		}
		srv, err := stalwart.New(cfg)
		if err != nil {
			return
		}
		l := startServer(t, srv)
		c := l.open(strangerAt, 25)
		c.nc.SetDeadline(time.Now().Add(20 * time.Second))
		c.line()
		c.say("EHLO a.example", "QUIT")
		c.reply()
		l.ask(strangerAt, 8081, "GET /jmap/session HTTP/1.1\r\n\r\n")
		assert.NilError(t, srv.Close())
	})
}
