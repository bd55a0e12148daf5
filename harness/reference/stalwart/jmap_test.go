package stalwart_test

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"
)

func basic(user, secret string) string {
	return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+secret)) + "\r\n"
}

func post(path, auth, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Length: %d\r\n\r\n%s", path, auth, len(body), body)
}

// TestJMAP: calls of a user, of a user at another's account, and of an
// administrator.
func TestJMAP(t *testing.T) {
	l := startLab(t, labOptions{})
	l.deliver(t, "j1")
	l.api("PATCH", "/api/principal/carol@example.test", `[{"action":"addItem","field":"roles","value":"admin"}]`)
	alice, carol := basic("alice@example.test", "alicepw"), basic("carol@example.test", "carolpw")
	call := func(auth, calls string) answered {
		return l.ask(strangerAt, 8081, post("/jmap/", auth, `{"using":["urn:ietf:params:jmap:core","urn:ietf:params:jmap:mail"],"methodCalls":[`+calls+`]}`))
	}
	assert.Equal(t, call(alice, `["Core/echo",{"x": 1},"c1"]`).body, `{"methodResponses":[["Core/echo",{"x":1},"c1"]],"sessionState":"3e25b2a0"}`)
	assert.Assert(t, cmp.Contains(call(alice, `["Mailbox/get",{"accountId":"c"},"c1"]`).body, `{"id":"a","name":"Inbox","parentId":null,"role":"inbox","totalEmails":1}`))
	assert.Assert(t, cmp.Contains(call(alice, `["Mailbox/get",{"accountId":"d"},"c1"]`).body, `["error",{"type":"forbidden"},"c1"]`))
	assert.Assert(t, cmp.Contains(call(carol, `["Email/query",{"accountId":"c"},"c1"]`).body, `"ids":["b"]`))
	assert.Assert(t, cmp.Contains(call(carol, `["Email/query",{"accountId":"zz"},"c1"]`).body, `accountNotFound`))
	assert.Assert(t, cmp.Contains(call(alice, `["Foo/bar",{},"c1"]`).body, `unknownMethod`))
	assert.Equal(t, l.ask(strangerAt, 8081, post("/jmap/", alice, "junk")).status, 400)
	assert.Equal(t, l.ask(strangerAt, 8081, post("/jmap/", alice, "{}")).status, 400)
	a := l.ask(strangerAt, 8081, post("/jmap/", "", "{}"))
	assert.Equal(t, a.status, 401)
	assert.Equal(t, strings.Join(a.head[1:3], "|"), `www-authenticate: Bearer realm="Stalwart Server"|www-authenticate: Basic realm="Stalwart Server"`)
	assert.Equal(t, l.ask(strangerAt, 8081, post("/jmap/", basic("noroles@example.test", "x"), "{}")).status, 403)
	// An administrator's session names its own account alone.
	session := l.ask(strangerAt, 8081, "GET /jmap/session HTTP/1.1\r\n"+carol+"\r\n").body
	assert.Assert(t, cmp.Contains(session, `"name":"carol@example.test","isPersonal":true`))
	assert.Assert(t, !strings.Contains(session, "alice@example.test"))

	up := l.ask(strangerAt, 8081, post("/jmap/upload/c/", alice+"Content-Type: text/plain\r\n", "hello"))
	assert.Equal(t, up.status, 200)
	id := strings.Split(strings.Split(up.body, `"blobId":"`)[1], `"`)[0]
	down := l.ask(strangerAt, 8081, "GET /jmap/download/c/"+id+"/x.txt?accept=text/plain HTTP/1.1\r\n"+alice+"\r\n")
	assert.Equal(t, down.body+down.headers["content-type"], "hellotext/plain")
	assert.Equal(t, l.ask(strangerAt, 8081, "GET /jmap/download/c/"+id+"/x.txt HTTP/1.1\r\n"+basic("bob@example.test", "bobpw")+"\r\n").status, 404)

	events := l.open(strangerAt, 8081)
	events.say("GET /jmap/eventsource/?types=*&closeafter=no&ping=30 HTTP/1.1\r\n" + alice)
	assert.Equal(t, events.line(), "HTTP/1.1 200 OK")
	for s := events.line(); s != ""; s = events.line() {
		assert.Assert(t, !strings.HasPrefix(s, "content-length"), s)
	}

	for path, want := range map[string]int{"/dav/file/alice@example.test/": 207, "/dav/cal": 207, "/dav/file/nobody/": 404, "/dav/none/": 404} {
		a := l.ask(strangerAt, 8081, "PROPFIND "+path+" HTTP/1.1\r\nDepth: 0\r\n"+carol+"\r\n")
		assert.Equal(t, a.status, want, path)
		assert.Assert(t, !strings.Contains(a.body, "old.internal.test"))
	}
	assert.Equal(t, l.ask(strangerAt, 8081, "PROPFIND /dav/file/carol@example.test/ HTTP/1.1\r\n"+alice+"\r\n").status, 403)
	assert.Assert(t, cmp.Contains(l.ask(strangerAt, 8081, "OPTIONS /dav/cal HTTP/1.1\r\n\r\n").headers["dav"], "calendar-access"))
	a = l.ask(strangerAt, 8081, post("/auth/device", "", "client_id=x"))
	assert.Assert(t, cmp.Contains(a.body, `"verification_uri":"http://old.internal.test:8081/authorize"`))
}

// TestWebSocket: one connection with a header, one address for its life, and no
// second header.
func TestWebSocket(t *testing.T) {
	l := startLab(t, labOptions{keys: trusting})
	c := l.through("203.0.113.7:40001", 8080)
	io.WriteString(c.nc, upgrade())
	a := c.response()
	assert.Equal(t, a.head[0], "HTTP/1.1 101 Switching Protocols")
	assert.Equal(t, a.headers["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
	assert.Equal(t, a.headers["sec-websocket-protocol"], "jmap")
	send := func(op byte, payload string) {
		b := []byte{0x80 | op, 0x80 | byte(len(payload)), 1, 2, 3, 4}
		if len(payload) > 125 {
			b = binary.BigEndian.AppendUint16([]byte{0x80 | op, 0x80 | 126}, uint16(len(payload)))
			b = append(b, 1, 2, 3, 4)
		}
		for i := range len(payload) {
			b = append(b, payload[i]^byte(i&3+1))
		}
		c.nc.Write(b)
	}
	recv := func() string {
		var h [2]byte
		_, err := io.ReadFull(c.br, h[:])
		assert.NilError(t, err)
		n := int(h[1])
		if n == 126 {
			var b [2]byte
			io.ReadFull(c.br, b[:])
			n = int(binary.BigEndian.Uint16(b[:]))
		}
		b := make([]byte, n)
		io.ReadFull(c.br, b)
		return fmt.Sprintf("%x %s", h[0], b)
	}
	send(1, `{"@type":"Request","id":"R1","using":["urn:ietf:params:jmap:core"],"methodCalls":[["Core/echo",{"hello":true},"c1"]]}`)
	assert.Equal(t, recv(), `81 {"@type":"Response","methodResponses":[["Core/echo",{"hello":true},"c1"]],"sessionState":"3e25b2a0","requestId":"R1"}`)
	send(9, "ping")
	assert.Equal(t, recv(), "8a ping")
	send(1, strings.Repeat("x", 300))
	assert.Assert(t, cmp.Contains(recv(), "RequestError"))
	send(8, "")
	assert.Equal(t, recv(), "88 ")
	assert.Equal(t, c.line(), "<closed>")
	l.log.await(t, "HTTP connection ended", "remoteIp = 203.0.113.7, remotePort = 40001")
}

// TestHTTPRequests: several on one connection, and what is none.
func TestHTTPRequests(t *testing.T) {
	l := startLab(t, labOptions{})
	c := l.open(strangerAt, 8080)
	c.say("GET /healthz/live HTTP/1.1", "", "HEAD /healthz/ready HTTP/1.1", "", "POST /nothing HTTP/1.1", "Transfer-Encoding: chunked", "", "3", "abc", "0", "", "GET /robots.txt HTTP/1.0", "")
	assert.Equal(t, c.response().body, `{"type":"about:blank","title":"OK","status":200,"detail":"OK"}`)
	for s := c.line(); s != ""; s = c.line() {
	}
	assert.Equal(t, c.response().status, 404)
	a := c.response()
	assert.Equal(t, a.body+a.headers["connection"], "User-agent: *\nDisallow: /\nclose")
	assert.Equal(t, c.line(), "<closed>")
	for request, reason := range map[string]string{
		"G\x00T / HTTP/1.1": "invalid HTTP method parsed", "GET /": "invalid URI", "GET / HTTP/3.0": "invalid HTTP version parsed",
		"GET / HTTP/1.1\r\nno field": "invalid HTTP header parsed", "POST / HTTP/1.1\r\nContent-Length: x\r\n": "invalid content-length parsed",
		"GET / HTTP/1.1\r\n" + strings.Repeat("a: b\r\n", 200): "message head is too large",
	} {
		c := l.open(strangerAt, 8080)
		c.say(request + "\r\n")
		assert.Equal(t, c.line(), "HTTP/1.1 400 Bad Request", "%q", request)
		l.log.await(t, "DEBUG HTTP error occurred (http.error)", `reason = "`+reason+`"`)
	}
	l.set("http.allowed-endpoint.0.if", "starts_with(url_path, '/api')", "http.allowed-endpoint.0.then", "200", "http.allowed-endpoint.1.else", "404", "http.headers.0", "X-A: b", "http.rate-limit.anonymous", "1/1m")
	l.reload()
	a = l.ask(relayAt, 8080, "GET /jmap/session HTTP/1.1\r\n\r\n")
	assert.Equal(t, fmt.Sprint(a.status, a.headers["x-a"]), "404b")
	l.set("http.allowed-endpoint.1.else", "200")
	l.reload()
	assert.Equal(t, l.ask(relayAt, 8080, "GET /mail/config-v1.1.xml HTTP/1.1\r\n\r\n").status, 200)
	a = l.ask(relayAt, 8080, "GET /mail/config-v1.1.xml HTTP/1.1\r\n\r\n")
	assert.Equal(t, fmt.Sprint(a.status, a.body), `429{"type":"about:blank","status":429,"title":"Too Many Requests","detail":"Your request has been rate limited. Please try again in a few seconds."}`)
}
