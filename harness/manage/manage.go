// Package manage speaks the management API of Stalwart 0.15: settings, reload,
// principals, blocked addresses and log lines.
//
// It promises that an error that comes with HTTP status 200 is an error, that
// a reload which rejects anything is a [*run.Rejected], that every answer is
// bounded, and that nothing it returns or says in an error holds a secret: the
// bodies of principals are never kept, and neither is a body that is no answer
// of this API. It refuses to try again by itself.
//
// It follows the server: Stalwart 0.15.5, management API.
package manage

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/run"
)

// Bounds of one answer.
const (
	maxAnswer = 8 << 20
	answerFor = 30 * time.Second
)

// A Client asks one server. It may be used by several goroutines.
type Client struct {
	http         *http.Client
	user, secret string
	key          string // in the place of the two
}

// New makes a client that reaches the management listener by dial and signs in
// as an administrator. It must be closed.
func New(dial func(context.Context) (net.Conn, error), user, secret string) *Client {
	t := &http.Transport{
		DialContext:         func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) },
		MaxIdleConnsPerHost: 8, MaxConnsPerHost: 8, DisableCompression: true, IdleConnTimeout: 20 * time.Second,
	}
	return &Client{http: &http.Client{Transport: t, Timeout: answerFor}, user: user, secret: secret}
}

// NewWithKey is [New] for an API key of the server's, which is sent as a bearer
// token.
func NewWithKey(dial func(context.Context) (net.Conn, error), key string) *Client {
	c := New(dial, "", "")
	c.key = key
	return c
}

// Close ends the client's idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// An Error is an answer that is no success, whatever its status.
type Error struct {
	Method string
	Path   string
	Status int
	// Code is the API's word: notFound, fieldAlreadyExists, assertFailed,
	// unsupported, other; "" where the status says all.
	Code string
	// About is the field or item that it is about.
	About string
	// Detail is the server's sentence.
	Detail string
}

func (e *Error) Error() string {
	s := fmt.Sprintf("management API: %s %s: status %d", e.Method, e.Path, e.Status)
	for _, w := range []string{e.Code, e.About, e.Detail} {
		if w != "" {
			s += ": " + w
		}
	}
	switch {
	case e.Status == http.StatusUnauthorized:
		s += "; check the administrator's name and password"
	case e.Status == http.StatusTooManyRequests:
		s += "; the server limits requests, or has banned this address"
	}
	return s
}

// A NoAnswer says that the server gave no answer of this API: nothing, half of
// one, or something else.
type NoAnswer struct {
	Method, Path string
	Err          error
}

func (e *NoAnswer) Error() string {
	return fmt.Sprintf("management API: %s %s: no answer: %v", e.Method, e.Path, e.Err)
}
func (e *NoAnswer) Unwrap() error { return e.Err }

// envelope is what every answer of the API stands in.
type envelope struct {
	Data    json.RawMessage `json:"data"`
	Error   string          `json:"error"`
	Field   string          `json:"field"`
	Item    string          `json:"item"`
	Details string          `json:"details"`
	Reason  string          `json:"reason"`
	// Of a problem document (RFC 7807).
	Title  string `json:"title"`
	Detail string `json:"detail"`
}

// call asks and unpacks the answer's data into data, which may be nil.
func (c *Client) call(ctx context.Context, method, path string, body, data any) error {
	shown, _, _ := strings.Cut(path, "?")
	lost := func(err error) error { return &NoAnswer{method, shown, err} }
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return lost(err)
		}
		payload = bytes.NewReader(b)
	}
	// The name is of no use to the dialler, and 0.15 ignores it.
	req, err := http.NewRequestWithContext(ctx, method, "http://management"+path, payload)
	if err != nil {
		return lost(err)
	}
	if c.key != "" {
		req.Header.Set("Authorization", "Bearer "+c.key)
	} else {
		req.SetBasicAuth(c.user, c.secret)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.http.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err
		}
		return lost(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer+1))
	if err != nil {
		return lost(err)
	}
	if len(b) > maxAnswer {
		return lost(fmt.Errorf("it is larger than %d octets", maxAnswer))
	}
	var e envelope
	jsonErr := json.Unmarshal(b, &e)
	failed := &Error{Method: method, Path: shown, Status: res.StatusCode, Code: e.Error, Detail: strings.TrimSpace(e.Details + " " + e.Reason)}
	switch {
	case res.StatusCode != http.StatusOK:
		if jsonErr == nil {
			failed.Detail = e.Detail
			if failed.Detail == "" {
				failed.Detail = e.Title
			}
		}
		return failed
	case jsonErr != nil:
		return lost(errors.New("what came with status 200 is no JSON: is this the management listener of a Stalwart 0.15?"))
	case e.Error != "":
		failed.About = e.Field + e.Item
		return failed
	case e.Data == nil:
		return lost(errors.New("the answer has neither data nor an error: is this a Stalwart 0.15?"))
	}
	if data == nil {
		return nil
	}
	if err := json.Unmarshal(e.Data, data); err != nil {
		return lost(fmt.Errorf("its data is not what was asked for: %w", err))
	}
	return nil
}

// Insert stores settings; see [run.Admin].
func (c *Client) Insert(ctx context.Context, settings []run.Setting) error {
	if len(settings) == 0 {
		return nil
	}
	values := make([][2]string, len(settings))
	for i, s := range settings {
		values[i] = [2]string{s.Name, s.Value}
	}
	op := struct {
		Type        string      `json:"type"`
		AssertEmpty bool        `json:"assert_empty"`
		Values      [][2]string `json:"values"`
	}{"insert", false, values}
	return c.call(ctx, http.MethodPost, "/api/settings", []any{op}, nil)
}

// Clear removes settings by the beginnings of their names; see [run.Admin].
func (c *Client) Clear(ctx context.Context, prefixes ...string) error {
	if len(prefixes) == 0 {
		return nil
	}
	var ops []any
	for _, p := range prefixes {
		if p == "" {
			return errors.New("management API: clearing without a prefix would remove every setting")
		}
		ops = append(ops, struct {
			Type   string `json:"type"`
			Prefix string `json:"prefix"`
		}{"clear", p})
	}
	return c.call(ctx, http.MethodPost, "/api/settings", ops, nil)
}

// Delete removes settings by their whole names.
func (c *Client) Delete(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	op := struct {
		Type string   `json:"type"`
		Keys []string `json:"keys"`
	}{"delete", names}
	return c.call(ctx, http.MethodPost, "/api/settings", []any{op}, nil)
}

// List returns what is stored below prefixes, in the order of the names. A
// prefix that names one setting returns that one as well.
func (c *Client) List(ctx context.Context, prefixes ...string) ([]run.Setting, error) {
	if len(prefixes) == 0 {
		return nil, nil
	}
	names := make([]string, len(prefixes))
	for i, p := range prefixes {
		names[i] = strings.TrimSuffix(p, ".")
	}
	var all map[string]string
	q := url.Values{"keys": {strings.Join(names, ",")}, "prefixes": {strings.Join(names, ",")}}
	if err := c.call(ctx, http.MethodGet, "/api/settings/keys?"+q.Encode(), nil, &all); err != nil {
		return nil, err
	}
	out := make([]run.Setting, 0, len(all))
	for _, name := range slices.Sorted(maps.Keys(all)) {
		out = append(out, run.Setting{Name: name, Value: all[name]})
	}
	return out, nil
}

// An outcome is what a reload says.
type outcome struct {
	Warnings map[string]json.RawMessage `json:"warnings"`
	Errors   map[string]json.RawMessage `json:"errors"`
}

// Reload brings settings into force; see [run.Admin].
func (c *Client) Reload(ctx context.Context) error { return c.reload(ctx, "/api/reload") }

// Check says what [Client.Reload] would reject, and brings nothing into force.
func (c *Client) Check(ctx context.Context) error { return c.reload(ctx, "/api/reload?dry-run") }

// ReloadBlocked brings the list of blocked addresses into force.
func (c *Client) ReloadBlocked(ctx context.Context) error {
	return c.reload(ctx, "/api/reload/server.blocked-ip")
}

func (c *Client) reload(ctx context.Context, path string) error {
	var o outcome
	if err := c.call(ctx, http.MethodGet, path, nil, &o); err != nil {
		return err
	}
	if len(o.Errors) == 0 {
		return nil
	}
	r := &run.Rejected{Settings: make(map[string]string, len(o.Errors))}
	for name, raw := range o.Errors {
		var e struct{ Type, Error string }
		if json.Unmarshal(raw, &e) != nil || e.Error == "" {
			e.Error = "rejected"
		}
		r.Settings[name] = e.Error
	}
	return r
}

// A Principal is a domain or an account.
type Principal struct {
	Type    string   `json:"type"` // "domain", "individual"
	Name    string   `json:"name"`
	Secrets []string `json:"secrets,omitempty"`
	Emails  []string `json:"emails,omitempty"`
	Roles   []string `json:"roles,omitempty"`
	// Disabled are permissions that the roles would give.
	Disabled []string `json:"disabledPermissions,omitempty"`
}

// Create makes a principal.
func (c *Client) Create(ctx context.Context, p Principal) error {
	return c.call(ctx, http.MethodPost, "/api/principal", p, nil)
}

// Remove removes a principal.
func (c *Client) Remove(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/api/principal/"+url.PathEscape(name), nil, nil)
}

// Principals lists the names of principals of a type. Nothing else of them is
// kept: the server gives their secrets along.
func (c *Client) Principals(ctx context.Context, kind string) ([]string, error) {
	var page struct {
		Items []struct {
			Name string `json:"name"`
		} `json:"items"`
	}
	if err := c.call(ctx, http.MethodGet, "/api/principal?fields=name&types="+url.QueryEscape(kind), nil, &page); err != nil {
		return nil, err
	}
	names := make([]string, len(page.Items))
	for i, p := range page.Items {
		names[i] = p.Name
	}
	slices.Sort(names)
	return names, nil
}

const blockedKey = "server.blocked-ip"

// Blocked lists the addresses that the server refuses.
func (c *Client) Blocked(ctx context.Context) ([]string, error) {
	list, err := c.List(ctx, blockedKey)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, s := range list {
		out = append(out, strings.TrimPrefix(s.Name, blockedKey+"."))
	}
	return out, nil
}

// counters are what the server counts against addresses, and bans for.
func counters() []string {
	return []string{"rate-auth", "rate-rcpt", "rate-scan", "rate-loiter", "rate-smtp", "rate-http-anonymous"}
}

// Unblock removes every ban but those to keep, and starts every count of bans
// and limits anew; see [run.Admin]. The server empties its counts in its own
// time.
func (c *Client) Unblock(ctx context.Context, keep ...string) error {
	blocked, err := c.Blocked(ctx)
	if err != nil {
		return err
	}
	var names []string
	for _, a := range blocked {
		if !slices.Contains(keep, a) {
			names = append(names, blockedKey+"."+a)
		}
	}
	if err := c.Delete(ctx, names...); err != nil {
		return err
	}
	for _, name := range counters() {
		if err := c.call(ctx, http.MethodGet, "/api/store/purge/in-memory/default/"+name, nil, nil); err != nil {
			return err
		}
	}
	return c.ReloadBlocked(ctx)
}

// Logs returns the newest lines of the server's log file that contain a text,
// oldest first, as the file has them. The server's log must be a file.
func (c *Client) Logs(ctx context.Context, filter string, limit int) ([]string, error) {
	var page struct {
		Items []struct {
			Timestamp, Level, Event, Details string
			EventID                          string `json:"event_id"`
		} `json:"items"`
	}
	q := url.Values{"filter": {filter}, "limit": {strconv.Itoa(limit)}}
	if err := c.call(ctx, http.MethodGet, "/api/logs?"+q.Encode(), nil, &page); err != nil {
		return nil, err
	}
	lines := make([]string, 0, len(page.Items))
	for _, it := range slices.Backward(page.Items) {
		lines = append(lines, fmt.Sprintf("%s %s %s (%s) %s", it.Timestamp, it.Level, it.Event, it.EventID, it.Details))
	}
	return lines, nil
}
