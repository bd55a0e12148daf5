package manage

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/mailproof/mailproof/harness/run"
	"go.uber.org/goleak"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server answers every request with one function.
func server(t *testing.T, answer http.HandlerFunc) *Client {
	t.Helper()
	s := httptest.NewServer(answer)
	c := New(func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "tcp", s.Listener.Addr().String())
	}, "admin", "top-secret")
	t.Cleanup(func() { c.Close(); s.CloseClientConnections(); s.Close() })
	return c
}

func says(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		w.Write([]byte(body))
	}
}

func TestAnErrorWithStatus200IsAnError(t *testing.T) {
	for _, c := range []struct {
		status            int
		body, code, words string
	}{
		{200, `{"error":"assertFailed"}`, "assertFailed", "status 200: assertFailed"},
		{200, `{"error":"notFound","item":"nodomain.test"}`, "notFound", "notFound: nodomain.test"},
		{200, `{"error":"fieldAlreadyExists","field":"name","value":"top-secret"}`, "fieldAlreadyExists", "fieldAlreadyExists: name"},
		{200, `{"error":"unsupported","details":"Restart is not yet supported"}`, "unsupported", "Restart is not yet supported"},
		{200, `{"error":"other","details":"disk","reason":"full"}`, "other", "disk full"},
		{401, `{"type":"about:blank","status":401,"title":"Unauthorized","detail":"You have to authenticate first."}`, "", "check the administrator's name"},
		{429, `{"title":"Too Many Requests"}`, "", "limits requests"},
		{403, `x`, "", "status 403"},
	} {
		err := server(t, says(c.status, c.body)).Insert(t.Context(), []run.Setting{{Name: "a", Value: "b"}})
		var e *Error
		assert.Assert(t, errors.As(err, &e), "%s: %v", c.body, err)
		assert.Equal(t, e.Code, c.code)
		assert.Assert(t, cmp.Contains(err.Error(), c.words))
		assert.Assert(t, !strings.Contains(err.Error(), "top-secret"))
	}
}

func TestWhatIsNoAnswer(t *testing.T) {
	half := func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		w.Write([]byte(`{"data":`))
	}
	nothing := func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }
	for name, answer := range map[string]http.HandlerFunc{
		"half": half, "nothing": nothing,
		"a page": says(200, "<html>"), "neither": says(200, `{"ok":true}`), "other data": says(200, `{"data":[1]}`),
		"too much": says(200, `{"data":"`+strings.Repeat("x", maxAnswer)+`"}`),
	} {
		err := server(t, answer).Reload(t.Context())
		var e *NoAnswer
		assert.Assert(t, errors.As(err, &e), "%s: %v", name, err)
	}
}

func TestAReloadThatRejects(t *testing.T) {
	c := server(t, says(200, `{"data":{"warnings":{},"errors":{"http.url":{"type":"parse","error":"Invalid variable or constant"}}}}`))
	var r *run.Rejected
	assert.Assert(t, errors.As(c.Reload(t.Context()), &r))
	assert.DeepEqual(t, r.Settings, map[string]string{"http.url": "Invalid variable or constant"})
	assert.NilError(t, server(t, says(200, `{"data":{"warnings":{},"errors":{}}}`)).Check(t.Context()))
}

func TestWhatIsAsked(t *testing.T) {
	var asked []string
	c := server(t, func(w http.ResponseWriter, r *http.Request) {
		user, secret, _ := r.BasicAuth()
		assert.Check(t, user == "admin" && secret == "top-secret")
		b := make([]byte, 400)
		n, _ := r.Body.Read(b)
		asked = append(asked, r.Method+" "+r.URL.String()+" "+string(b[:n]))
		switch {
		case strings.HasPrefix(r.URL.Path, "/api/settings/keys"):
			w.Write([]byte(`{"data":{"server.blocked-ip.203.0.113.60":"","server.blocked-ip.203.0.113.50":""}}`))
		case r.URL.Path == "/api/principal" && r.Method == "GET":
			w.Write([]byte(`{"data":{"items":[{"name":"b","secrets":["hidden"]},{"name":"a"}],"total":2}}`))
		case r.URL.Path == "/api/logs":
			w.Write([]byte(`{"data":{"items":[{"timestamp":"2","level":"INFO","event":"B","event_id":"b.b","details":"x = 1"},{"timestamp":"1","level":"INFO","event":"A","event_id":"a.a","details":""}],"total":2}}`))
		case strings.HasPrefix(r.URL.Path, "/api/reload"):
			w.Write([]byte(`{"data":{"warnings":{},"errors":{}}}`))
		default:
			w.Write([]byte(`{"data":null}`))
		}
	})
	ctx := t.Context()
	assert.NilError(t, c.Insert(ctx, []run.Setting{{Name: "a.b", Value: "1"}, {Name: "a.c", Value: ""}}))
	assert.NilError(t, c.Clear(ctx, "a.", "b.c"))
	assert.Assert(t, cmp.ErrorContains(c.Clear(ctx, ""), "every setting"))
	assert.NilError(t, c.Create(ctx, Principal{Type: "domain", Name: "example.test"}))
	assert.NilError(t, c.Remove(ctx, "a/b"))
	names, err := c.Principals(ctx, "individual")
	assert.NilError(t, err)
	assert.DeepEqual(t, names, []string{"a", "b"})
	blocked, err := c.Blocked(ctx)
	assert.NilError(t, err)
	assert.DeepEqual(t, blocked, []string{"203.0.113.50", "203.0.113.60"})
	assert.NilError(t, c.Unblock(ctx))
	lines, err := c.Logs(ctx, "x", 2)
	assert.NilError(t, err)
	assert.DeepEqual(t, lines, []string{"1 INFO A (a.a) ", "2 INFO B (b.b) x = 1"})
	assert.DeepEqual(t, asked[:4], []string{
		`POST /api/settings [{"type":"insert","assert_empty":false,"values":[["a.b","1"],["a.c",""]]}]`,
		`POST /api/settings [{"type":"clear","prefix":"a."},{"type":"clear","prefix":"b.c"}]`,
		`POST /api/principal {"type":"domain","name":"example.test"}`,
		`DELETE /api/principal/a%2Fb `,
	})
}
