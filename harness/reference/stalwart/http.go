package stalwart

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/stalwart/bug"
)

// Bounds of a request.
const (
	maxRequestLine = 8 << 10
	maxFields      = 100
	maxBody        = 16 << 20
)

// A request is one request over HTTP/1.1.
type request struct {
	method, target string
	path           string // not unescaped
	query          url.Values
	fields         []pair // names in lower case
	body           []byte
	close          bool
	remote         netip.Addr
}

func (r *request) field(name string) (string, bool) {
	for _, f := range r.fields {
		if f.key == name {
			return f.value, true
		}
	}
	return "", false
}

func (r *request) variable(name string) any {
	switch name {
	case "url":
		return r.target
	case "url_path":
		return r.path
	case "method":
		return r.method
	}
	var all []any
	for _, f := range r.fields {
		all = append(all, f.key+": "+f.value)
	}
	return all
}

// A response is what a request is answered with.
type response struct {
	status  int
	fields  []pair
	body    []byte
	upgrade func() // what the connection goes on as
}

func (r *response) with(name, value string) *response {
	r.fields = append(r.fields, pair{name, value})
	return r
}

func status(code int) *response { return &response{status: code} }

func content(kind string, body []byte) *response {
	return (&response{status: 200, body: body}).with("content-type", kind)
}

const jsonType = "application/json; charset=utf-8"

func jsonValue(v any) *response {
	b, err := encode(v)
	if err != nil {
		return problemOf(500, "Internal Server Error", "There was a problem while processing your request. Please contact the system administrator if this problem persists.")
	}
	return content(jsonType, b)
}

// encode is JSON as the server writes it: without escapes for HTML.
func encode(v any) ([]byte, error) {
	var b strings.Builder
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return []byte(strings.TrimSuffix(b.String(), "\n")), nil
}

// dataOf is the envelope of a success.
func dataOf(v any) *response {
	return jsonValue(struct {
		Data any `json:"data"`
	}{v})
}

// problemOf is a problem (RFC 7807).
func problemOf(code int, title, detail string) *response {
	r := jsonValue(struct {
		Type   string `json:"type"`
		Status int    `json:"status"`
		Title  string `json:"title"`
		Detail string `json:"detail"`
	}{"about:blank", code, title, detail})
	r.status = code
	r.fields[0].value = "application/problem+json"
	return r
}

// plainProblem is a problem that says no more than its status.
func plainProblem(code int) *response {
	r := jsonValue(struct {
		Type   string `json:"type"`
		Title  string `json:"title"`
		Status int    `json:"status"`
		Detail string `json:"detail"`
	}{"about:blank", reasons[code], code, reasons[code]})
	r.status = code
	r.fields[0].value = "application/problem+json"
	return r
}

func notFound() *response {
	return problemOf(404, "Not Found", "The requested resource does not exist on this server.")
}

func badParameters(detail string) *response { return problemOf(400, "Invalid parameters", detail) }

func forbidden() *response {
	return problemOf(403, "Forbidden", "You do not have enough permissions to access this resource.")
}

func unauthorized(realms bool) *response {
	p := problemOf(401, "Unauthorized", "You have to authenticate first.")
	if realms {
		p.fields = append([]pair{{"www-authenticate", `Bearer realm="Stalwart Server"`}, {"www-authenticate", `Basic realm="Stalwart Server"`}}, p.fields...)
	}
	return p
}

var reasons = map[int]string{
	101: "Switching Protocols", 200: "OK", 204: "No Content", 207: "Multi-Status", 307: "Temporary Redirect", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden",
	404: "Not Found", 405: "Method Not Allowed", 429: "Too Many Requests", 500: "Internal Server Error", 503: "Service Unavailable",
}

// httpDate is how HTTP writes a date.
const httpDate = "Mon, 02 Jan 2006 15:04:05 GMT"

// parseError is why a request could not be read.
type parseError string

func (e parseError) Error() string { return string(e) }

// http is a session of HTTP/1.1.
func (in *session) http() {
	for {
		in.c.SetTimeout(30 * time.Minute)
		r, err := in.readRequest()
		var bad parseError
		switch {
		case errors.As(err, &bad):
			in.c.Line("HTTP/1.1 400 Bad Request")
			in.c.Line("connection: close")
			in.c.Line("content-length: 0")
			in.c.Line("date: ", in.srv.now().UTC().Format(httpDate))
			in.c.Line()
			in.c.Flush()
			in.c.Reader().Discard(in.c.Buffered())
			if !in.core.forwarded && in.scanned(bad.Error()) {
				return
			}
			in.log(evHTTPError, field{"reason", bad.Error()})
			return
		case err != nil:
			return
		}
		// Requests are answered with the settings that are in force by then.
		in.core = in.process.core.Load()
		in.request = r
		answer := in.answer(r)
		for _, h := range in.core.headers {
			answer.with(h.key, h.value)
		}
		if in.srv.bugs.Has(bug.CookieNamesHost) {
			answer.with("set-cookie", "session=1; Domain="+in.srv.cfg.Hostname)
		}
		if in.srv.bugs.Has(bug.AnswersNameAddress) {
			answer.with("x-served-by", in.c.Host.Addr().String())
		}
		if !in.writeResponse(r, answer) {
			return
		}
		if answer.upgrade != nil {
			answer.upgrade()
			return
		}
		if r.close || in.isStopping() {
			return
		}
	}
}

// readRequest reads one request. A parseError says what is wrong with it.
func (in *session) readRequest() (*request, error) {
	line, err := in.c.ReadLine(maxRequestLine)
	for n := 0; err == nil && line == "" && n < 8; n++ { // empty lines before it do not matter
		if b, e := in.c.Reader().Peek(1); e == nil && b[0] == 0 {
			return nil, parseError("invalid HTTP method parsed")
		}
		line, err = in.c.ReadLine(maxRequestLine)
	}
	switch {
	case errors.Is(err, link.ErrTooLong):
		return nil, parseError("message head is too large")
	case err != nil:
		return nil, err
	}
	f := strings.Split(line, " ")
	if strings.IndexFunc(f[0], func(c rune) bool {
		return c > 127 || !isName(byte(c)) && !strings.ContainsRune("!#$%&'*+-.^_`|~", c)
	}) >= 0 || f[0] == "" {
		return nil, parseError("invalid HTTP method parsed")
	}
	if len(f) != 3 || f[1] == "" {
		return nil, parseError("invalid URI")
	}
	if f[2] != "HTTP/1.1" && f[2] != "HTTP/1.0" {
		return nil, parseError("invalid HTTP version parsed")
	}
	r := &request{method: f[0], target: f[1], close: f[2] == "HTTP/1.0", remote: in.remote.Addr()}
	target := r.target
	if i := strings.Index(target, "://"); i > 0 { // the absolute form
		if j := strings.IndexByte(target[i+3:], '/'); j >= 0 {
			target = target[i+3+j:]
		} else {
			target = "/"
		}
	}
	path, query, _ := strings.Cut(target, "?")
	r.path = path
	r.query, _ = url.ParseQuery(query)
	for {
		line, err := in.c.ReadLine(maxRequestLine)
		if errors.Is(err, link.ErrTooLong) || len(r.fields) > maxFields {
			return nil, parseError("message head is too large")
		}
		if err != nil {
			return nil, err
		}
		if line == "" {
			break
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t\x00") {
			return nil, parseError("invalid HTTP header parsed")
		}
		r.fields = append(r.fields, pair{strings.ToLower(name), strings.TrimSpace(value)})
	}
	if v, ok := r.field("connection"); ok && strings.EqualFold(v, "close") {
		r.close = true
	}
	return r, in.readBody(r)
}

func (in *session) readBody(r *request) error {
	if v, _ := r.field("expect"); strings.EqualFold(v, "100-continue") {
		in.c.Line("HTTP/1.1 100 Continue")
		in.c.Line()
	}
	if v, ok := r.field("transfer-encoding"); ok && strings.EqualFold(v, "chunked") {
		for {
			line, err := in.c.ReadLine(maxRequestLine)
			if err != nil {
				return err
			}
			size, _, _ := strings.Cut(line, ";")
			n, err := strconv.ParseUint(strings.TrimSpace(size), 16, 31)
			if err != nil || len(r.body)+int(n) > maxBody {
				return parseError("invalid chunk size")
			}
			chunk := make([]byte, n)
			if _, err := io.ReadFull(in.c.Reader(), chunk); err != nil {
				return err
			}
			r.body = append(r.body, chunk...)
			if _, err := in.c.ReadLine(maxRequestLine); err != nil {
				return err
			}
			if n == 0 {
				return nil
			}
		}
	}
	v, ok := r.field("content-length")
	if !ok {
		return nil
	}
	n, err := strconv.ParseUint(v, 10, 31)
	if err != nil {
		return parseError("invalid content-length parsed")
	}
	if n > maxBody {
		return parseError("message body is too large")
	}
	r.body = make([]byte, n)
	_, err = io.ReadFull(in.c.Reader(), r.body)
	return err
}

func (in *session) writeResponse(r *request, a *response) bool {
	reason := reasons[a.status]
	if reason == "" {
		reason = "Unknown"
	}
	in.c.Line("HTTP/1.1 ", strconv.Itoa(a.status), " ", reason)
	for _, f := range a.fields {
		in.c.Line(f.key, ": ", f.value)
	}
	if _, chunked := (&request{fields: a.fields}).field("transfer-encoding"); !chunked && a.status != 101 && a.status != 204 {
		in.c.Line("content-length: ", strconv.Itoa(len(a.body)))
	}
	if r.close {
		in.c.Line("connection: close")
	}
	in.c.Line("date: ", in.srv.now().UTC().Format(httpDate))
	in.c.Line()
	if r.method != "HEAD" {
		in.c.Write(a.body)
	}
	return in.c.Flush() == nil
}

// forwardedFor is the address that the request says it is made for.
func forwardedFor(r *request) (netip.Addr, bool) {
	if v, ok := r.field("forwarded"); ok {
		if _, rest, ok := strings.Cut(strings.ToLower(v), "for="); ok {
			rest = strings.TrimLeft(rest, `"[ `)
			end := strings.IndexFunc(rest, func(c rune) bool { return !strings.ContainsRune("0123456789abcdef:.", c) })
			if end < 0 {
				end = len(rest)
			}
			if a, err := netip.ParseAddr(rest[:end]); err == nil {
				return a, true
			}
		}
	}
	if v, ok := r.field("x-forwarded-for"); ok {
		first, _, _ := strings.Cut(v, ",")
		if a, err := netip.ParseAddr(strings.TrimSpace(first)); err == nil {
			return a, true
		}
	}
	return netip.Addr{}, false
}

// answer answers one request.
func (in *session) answer(r *request) *response {
	forwarded := in.core.forwarded || in.srv.bugs.Has(bug.ForwardedBelieved)
	if !forwarded {
		in.log(evHTTPURL, field{"url", r.target})
	} else if a, ok := forwardedFor(r); ok {
		if in.srv.isBlocked(in.process, a) {
			in.log(evIPBlocked, field{"listenerId", in.listener.id}, field{"remoteIp", a})
			return plainProblem(403)
		}
		in.log(evHTTPURL, field{"remoteIp", a}, field{"url", r.target})
		r.remote = a
		before, span := in.remote, in.span
		defer func() { in.remote, in.span = before, span }()
		in.remote = netip.AddrPortFrom(a, before.Port())
		if in.srv.bugs.Has(bug.ForwardedBelieved) {
			in.span = string(appendFields(nil, true, in.keys()))
		}
	} else {
		in.log(evHTTPNoXFF)
	}
	if in.srv.bugs.Has(bug.HTTPUnavailable) && !strings.HasPrefix(r.path, "/api/") {
		return plainProblem(503)
	}
	if code := in.chooseInt("http.allowed-endpoint", 200); code != 200 && !in.remote.Addr().IsLoopback() {
		return plainProblem(code)
	}
	if a := in.route(r); a != nil {
		return a
	}
	// Scans are banned before they are told that there is nothing.
	if slices.ContainsFunc(in.core.bannedPaths, func(p string) bool { return glob(p, r.path) }) && !within(in.core.allowed, in.remote.Addr()) {
		in.block()
		in.log(evScanBan, field{"remoteIp", in.remote.Addr()}, field{"path", r.path})
	}
	in.log(evNotFound)
	return notFound()
}

// route answers what is known; nil says that nothing is.
func (in *session) route(r *request) *response {
	p := strings.Split(strings.TrimPrefix(r.path, "/"), "/")
	at := func(i int) string {
		if i < len(p) {
			return p[i]
		}
		return ""
	}
	get, post := r.method == "GET", r.method == "POST"
	anonymous := func(f func() *response) *response {
		if a := in.anonymous(); a != nil {
			return a
		}
		return f()
	}
	if r.method == "OPTIONS" && (at(0) == "jmap" || at(0) == ".well-known" || at(0) == "auth" || at(0) == "api") {
		return plainProblem(204)
	}
	switch at(0) {
	case "jmap":
		return in.jmap(r, at(1), p)
	case "dav":
		return in.dav(r, p)
	case ".well-known":
		switch {
		case at(1) == "jmap" && get:
			return in.redirect("/jmap/session")
		case at(1) == "caldav":
			return in.redirect("/dav/cal")
		case at(1) == "carddav":
			return in.redirect("/dav/card")
		case at(1) == "oauth-authorization-server" && get:
			return anonymous(in.oauthMetadata)
		case at(1) == "openid-configuration" && get:
			return anonymous(in.openIDMetadata)
		case at(1) == "mta-sts.txt" && get:
			return anonymous(in.mtaSTS)
		case at(1) == "mail-v1.xml" && get, at(1) == "autoconfig" && at(2) == "mail" && at(3) == "config-v1.1.xml" && get:
			return anonymous(func() *response { return in.autoconfig(r) })
		}
	case "mail":
		if at(1) == "config-v1.1.xml" && get {
			return anonymous(func() *response { return in.autoconfig(r) })
		}
	case "autodiscover", "Autodiscover":
		if post && strings.EqualFold(at(1), "autodiscover.xml") {
			return anonymous(func() *response { return in.autodiscover(r) })
		}
	case "auth":
		return in.oauth(r, at(1))
	case "api":
		return in.api(r, p[1:])
	case "robots.txt":
		return anonymous(func() *response { return content("text/plain", []byte("User-agent: *\nDisallow: /\n")) })
	case "healthz":
		if at(1) == "live" || at(1) == "ready" {
			return anonymous(func() *response { return plainProblem(200) })
		}
	}
	return nil
}

func (in *session) redirect(to string) *response {
	if in.srv.bugs.Has(bug.RedirectsAbsolute) {
		to = fmt.Sprintf("%s://%s:%d%s", in.variable("protocol"), in.srv.cfg.Hostname, in.listener.port(), to)
	}
	return status(307).with("cache-control", "no-cache").with("location", to)
}

// anonymous counts a request of nobody's and refuses one too many.
func (in *session) anonymous() *response {
	if within(in.core.allowed, in.remote.Addr()) || in.srv.counts.allow(countHTTP, in.remote.Addr().String(), in.core.anonymousRate) {
		return nil
	}
	in.log(evTooManyReqs)
	return problemOf(429, "Too Many Requests", "Your request has been rate limited. Please try again in a few seconds.")
}

// authorize finds out who makes a request; the response is nil if that may go
// on. Where silent, a refusal is not logged and names no realm, as on /api.
func (in *session) authorize(r *request, silent bool) (*principal, *response) {
	value, ok := r.field("authorization")
	scheme, token, _ := strings.Cut(value, " ")
	token = strings.TrimSpace(token)
	if silent && strings.EqualFold(scheme, "bearer") && strings.HasPrefix(token, "api_") {
		scheme, token = "basic", strings.TrimPrefix(token, "api_")
	}
	if !ok {
		if a := in.anonymous(); a != nil {
			return nil, a
		}
		if !silent {
			in.log(evAuthFailed, field{"details", "Missing Authorization header."})
		}
		return nil, unauthorized(!silent)
	}
	if !strings.EqualFold(scheme, "basic") {
		if a := in.anonymous(); a != nil {
			return nil, a
		}
		if strings.EqualFold(scheme, "bearer") {
			in.log(evAuthFailed, field{"remoteIp", in.remote.Addr()})
			return nil, unauthorized(!silent)
		}
		in.log(evAuthError, field{"reason", "Unsupported authentication mechanism."})
		return nil, unauthorized(true)
	}
	b, err := base64.StdEncoding.DecodeString(token)
	user, secret, found := strings.Cut(string(b), ":")
	if err != nil || !found {
		in.log(evAuthError, field{"details", "Failed to decode Basic auth request."})
		return nil, unauthorized(true)
	}
	user = strings.ToLower(strings.TrimSpace(user))
	who, v := in.verify(user, secret)
	switch v {
	case wrongSecret:
		if !silent {
			in.logFailed(v, user, "")
		}
		return nil, unauthorized(!silent)
	case banned:
		in.logFailed(v, user, "")
		return nil, problemOf(429, "Too Many Authentication Attempts", "Your request has been rate limited. Please try again in a few minutes.")
	case unauthorised:
		in.logFailed(v, user, "")
		return nil, forbidden()
	}
	if !who.admin && !in.srv.counts.allow("rate-http-authenticated", who.name, in.core.accountRate) {
		in.log(evTooManyReqs)
		return nil, problemOf(429, "Too Many Requests", "Your request has been rate limited. Please try again in a few seconds.")
	}
	return who, nil
}

// base is what advertised addresses begin with.
func (in *session) base() string {
	if in.srv.bugs.Has(bug.HostHeaderBelieved) && in.request != nil {
		for _, name := range []string{"x-forwarded-host", "host"} {
			if h, ok := in.request.field(name); ok {
				return "https://" + h
			}
		}
	}
	if v := in.chooseText("http.url"); v != "" {
		return v
	}
	return fmt.Sprintf("%s://%s", in.variable("protocol"), netip.AddrPortFrom(in.listener.ip(), in.listener.port()))
}
