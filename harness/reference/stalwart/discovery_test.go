package stalwart_test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

// exchange is one recorded request with its answer.
type exchange struct {
	request string // method, path and what the recorder noted of it
	status  string
	fields  []string
	body    string
}

func parseExchanges(t *testing.T, path string) []exchange {
	t.Helper()
	var out []exchange
	for _, part := range strings.Split(readFile(t, path), "\n== ")[1:] {
		head, rest, _ := strings.Cut(part, "\n")
		e := exchange{request: head}
		fields, body, _ := strings.Cut(rest, "\n\n")
		for i, f := range strings.Split(strings.TrimSpace(fields), "\n") {
			if i == 0 {
				e.status = strings.TrimPrefix(f, "status ")
				continue
			}
			e.fields = append(e.fields, f)
		}
		e.body = strings.TrimRight(body, "\n")
		out = append(out, e)
	}
	return out
}

// requests spells what the recorder sent, where the recording does not.
func request(what string, nth int) string {
	basic := func(user, secret string) string {
		return "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+secret)) + "\r\n"
	}
	line, note, _ := strings.Cut(what, " (")
	line, headers, _ := strings.Cut(line, " headers ")
	fields, body := "Host: x\r\n", ""
	switch {
	case strings.HasPrefix(note, "Basic") && strings.Contains(line, "/api/"):
		fields += basic("admin", "adminpw")
	case strings.HasPrefix(note, "Basic") && nth == 0:
		fields += basic("alice@example.test", "alicepw")
	case strings.HasPrefix(note, "Basic"):
		fields += basic("alice@example.test", "wrong")
	}
	for _, m := range regexp.MustCompile(`'([^']*)': '([^']*)'`).FindAllStringSubmatch(headers, -1) {
		fields += m[1] + ": " + m[2] + "\r\n"
	}
	if strings.HasPrefix(line, "POST") {
		body = `<?xml version="1.0" encoding="utf-8"?><Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/outlook/requestschema/2006"><Request>` +
			`<AcceptableResponseSchema>http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a</AcceptableResponseSchema>` +
			`<EMailAddress>alice@example.test</EMailAddress></Request></Autodiscover>`
		if nth == 1 && strings.HasSuffix(line, "/autodiscover/autodiscover.xml") {
			body = "junk"
		}
		fields += fmt.Sprintf("Content-Length: %d\r\n", len(body))
	}
	return line + " HTTP/1.1\r\n" + fields + "\r\n" + body
}

// volatile is what differs from one server to the next in documents: keys of
// certificates and what follows from them.
var volatile = regexp.MustCompile(`id=\d+|"3 \d \d [0-9a-f]+"`)

// TestDiscovery asks for every document that was recorded, without and with
// http.url: status, fields, lengths and bodies are the real server's.
func TestDiscovery(t *testing.T) {
	for _, c := range []struct{ file, url string }{{"discovery", ""}, {"discovery-url", "'https://mail.example.test'"}} {
		t.Run(c.file, func(t *testing.T) {
			l := startLab(t, labOptions{})
			if c.url != "" {
				l.set("http.url", c.url)
			}
			l.reload() // the first domain has become the report domain
			seen := map[string]int{}
			for _, e := range parseExchanges(t, "testdata/"+c.file+".txt") {
				nth := seen[e.request]
				seen[e.request]++
				t.Run(fmt.Sprintf("%s#%d", e.request, nth), func(t *testing.T) {
					lt := &lab{t: t, net: l.net, srv: l.srv}
					a := lt.ask(strangerAt, 8081, request(e.request, nth))
					assert.Equal(t, fmt.Sprint(a.status), e.status)
					var fields []string
					for _, f := range a.head[1:] {
						if !strings.HasPrefix(f, "date: ") {
							fields = append(fields, f)
						}
					}
					if strings.Contains(e.request, "/api/dns/") { // the policy's id has 19 digits or 20
						assert.Equal(t, len(fields), len(e.fields))
					} else {
						assert.DeepEqual(t, fields, e.fields)
					}
					compareBody(t, a.body, e.body)
				})
			}
		})
	}
}

func compareBody(t *testing.T, got, want string) {
	t.Helper()
	cut, partial := strings.CutSuffix(want, "…")
	switch {
	case want == "":
	case strings.HasPrefix(got, "{"):
		var b strings.Builder
		e := json.NewEncoder(&b)
		e.SetEscapeHTML(false)
		e.SetIndent("", " ")
		assert.NilError(t, e.Encode(json.RawMessage(got)))
		pretty := volatile.ReplaceAllString(strings.TrimSpace(b.String()), "VOLATILE")
		want = volatile.ReplaceAllString(cut, "VOLATILE")
		if partial {
			pretty = pretty[:min(len(pretty), len(want))]
		}
		assert.Equal(t, pretty, want)
	default:
		got = strings.TrimRight(strings.ReplaceAll(got, "\r\n", "\n"), "\n")
		if partial {
			got = got[:min(len(got), len(cut))]
		}
		assert.Equal(t, got, cut)
	}
}

// TestSessionDocument: what a user's session says is what the real one said,
// to the octet.
func TestSessionDocument(t *testing.T) {
	l := startLab(t, labOptions{})
	want := strings.TrimSpace(readFile(t, "testdata/session.json"))
	a := l.ask(strangerAt, 443, request("GET /jmap/session (Basic)", 0))
	assert.Equal(t, a.body, want)
	assert.Equal(t, a.headers["content-length"], "4265")
}
