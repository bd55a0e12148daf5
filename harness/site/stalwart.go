package site

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/manage"
	"github.com/mailproof/mailproof/harness/run"
)

// stalwartPace is the least time between two SMTP connections of one client:
// as shipped a Stalwart takes five a second and closes the others.
const stalwartPace = 330 * time.Millisecond

// An API says how a Stalwart's own GET /api/logs is asked. Nothing else of the
// management API is asked at a site, and nothing is changed through it.
type API struct {
	Secure bool
	Host   string // a name or an address
	Port   uint16
	User   string // "" where the secret is an API key
	Secret Secret
	From   string // the vantage that asks; "" for this machine
	At     Place
}

// web are the services that a Stalwart has beside those for mail.
func web() []run.Endpoint {
	return []run.Endpoint{
		{Name: "https", Protocol: "http", Port: 443, TLS: "implicit"},
		{Name: "http", Protocol: "http", Port: 8080, TLS: "none"},
	}
}

// servicesOf are the services that a source of a kind may have.
func servicesOf(kind string) []run.Endpoint {
	if kind == fixtures.Stalwart {
		return append(services(), web()...)
	}
	return services()
}

// keysOf are the keys of a source's table that its kind has: its services, and
// a Stalwart's for its log.
func keysOf(kind string) []string {
	var names []string
	for _, e := range servicesOf(kind) {
		names = append(names, e.Name)
	}
	if kind == fixtures.Stalwart {
		names = append(names, "log-level", "log-user", "log-secret", "log-from")
	}
	return names
}

// stalwart reads what only a Stalwart has.
func (t table) stalwart(s *Source) {
	versions := fixtures.Releases(s.Kind)
	s.Version = t.needed("version", "the Stalwart that it is: "+strings.Join(versions, " or "))
	if s.Version != "" && !slices.Contains(versions, s.Version) {
		t.wrong("version", "unknown version %q; there are %s", s.Version, strings.Join(versions, ", "))
	}
	if _, ok := t.m["announces"]; ok {
		t.wrong("announces", "is for sources of kind generic; stalwart takes a PROXY header")
	}
	switch level := t.text("log-level"); level {
	case "debug":
		s.Detailed = true
		fallthrough
	case "", "info":
		if _, ok := t.m["log"]; !ok && level != "" {
			t.wrong("log-level", "there is no log")
		}
	default:
		t.wrong("log-level", "unknown level %q: write \"info\", as shipped, or \"debug\"", level)
	}
	if log, ok := t.m["log"].(string); !ok || !strings.HasPrefix(log, "api:") {
		for _, k := range []string{"log-user", "log-secret", "log-from"} {
			if _, ok := t.m[k]; ok {
				t.wrong(k, "belongs to log = \"api:…\"")
			}
		}
	}
}

// api reads what stands behind "api:": where the API is, and how it is asked.
func (t table) api(where string) API {
	a := API{At: t.p.place(t.key("log"))}
	u, err := url.Parse(where)
	switch {
	case err != nil, u.Scheme != "http" && u.Scheme != "https", u.Hostname() == "", u.User != nil, u.Path != "" && u.Path != "/", u.RawQuery != "", u.Fragment != "":
		t.wrong("log", "write api:http://HOST:PORT or api:https://HOST:PORT, where the source's management API listens")
	default:
		a.Secure, a.Host = u.Scheme == "https", u.Hostname()
		a.Port = map[bool]uint16{true: 443, false: 80}[a.Secure]
		if p := u.Port(); p != "" {
			n, err := strconv.ParseUint(p, 10, 16)
			if err != nil || n == 0 {
				t.wrong("log", "%q is no port", p)
			}
			a.Port = uint16(n)
		}
	}
	a.User = t.text("log-user")
	if ref := t.needed("log-secret", "the API key, or with log-user the password, that may see logs: env:NAME, file:PATH or command:COMMAND"); ref != "" {
		if a.Secret, err = parseSecret(ref); err != nil {
			t.wrong("log-secret", "%v", err)
		}
	}
	if a.From = t.text("log-from"); a.From != "" {
		switch {
		case !slices.Contains(run.Vantages(), a.From):
			t.wrong("log-from", "there is no vantage %q; there are %s", a.From, strings.Join(run.Vantages(), ", "))
		case a.From == run.Proxy || a.From == run.Relay:
			t.wrong("log-from", "the %s's address is kept for what a proxy or a new server does: name client, neighbour or stranger, or leave it out for this machine", a.From)
		}
	}
	return a
}

// announcement is how a source of a kind is told of clients, and how fast its
// SMTP services may be called.
func announcement(s *Source) (run.Announcement, time.Duration) {
	if s.Kind == fixtures.Stalwart {
		return run.ByPROXY, stalwartPace
	}
	return run.ByXCLIENT, 0
}

// api makes the log of a source that is read through its management API. A
// secret that cannot be read is a problem, and then there is no log.
func (b *builder) api(s *Source, src *run.Source, verify func(tls.ConnectionState) error) error {
	a := s.Log.API
	secret := ""
	if !b.o.PlanOnly {
		var err error
		if secret, err = a.Secret.read(b.ctx, b.o); err != nil {
			if b.ctx.Err() != nil {
				return b.ctx.Err()
			}
			b.problem(s.Label, "log", fmt.Sprintf("%s:%d, [source.%s]", b.f.Name, a.At.Line, s.Label), "the secret for its logs cannot be read: "+err.Error(),
				"Let "+a.Secret.How+":"+a.Secret.What+" give the secret; until then nothing that rests on the log is judged.")
			return nil
		}
	}
	src.Logs["mail"] = func(ctx context.Context) (io.ReadCloser, error) {
		dial, err := b.toAPI(a)
		if err != nil {
			return nil, err
		}
		secured := func(ctx context.Context) (net.Conn, error) {
			nc, err := dial(ctx)
			if err != nil || !a.Secure {
				return nc, err
			}
			c := tls.Client(nc, &tls.Config{InsecureSkipVerify: true, ServerName: s.TLS.Name, VerifyConnection: verify, MinVersion: tls.VersionTLS12})
			if err := c.HandshakeContext(ctx); err != nil {
				nc.Close()
				return nil, err
			}
			return c, nil
		}
		client := manage.NewWithKey(secured, secret)
		if a.User != "" {
			client = manage.New(secured, a.User, secret)
		}
		return followAPI(ctx, client)
	}
	return nil
}

// toAPI makes the way to the API: from this machine, or from a vantage.
func (b *builder) toAPI(a API) (func(context.Context) (net.Conn, error), error) {
	at := netip.AddrPort{}
	if addr, err := netip.ParseAddr(a.Host); err == nil {
		at = netip.AddrPortFrom(addr, a.Port)
	}
	if a.From == "" {
		where := net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
		return func(ctx context.Context) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "tcp", where)
		}, nil
	}
	v := b.t.Vantages[a.From]
	if v == nil {
		return nil, fmt.Errorf("it is asked from the vantage %s, and the site names no such vantage", a.From)
	}
	if !at.IsValid() {
		found, err := b.o.resolve(b.ctx, a.Host)
		if err != nil {
			return nil, err
		}
		for _, f := range found {
			if f = f.Unmap(); !at.IsValid() && v.Addr(run.FamilyOf(f)).IsValid() {
				at = netip.AddrPortFrom(f, a.Port)
			}
		}
		if !at.IsValid() {
			return nil, fmt.Errorf("%s has no address in a family of the vantage %s", a.Host, a.From)
		}
	}
	return func(ctx context.Context) (net.Conn, error) { return v.Dial(ctx, at) }, nil
}
