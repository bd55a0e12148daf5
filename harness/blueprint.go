package harness

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
)

// SourceEndpoints are the services that a lab's source of a kind is declared to have.
func SourceEndpoints(kind string) []run.Endpoint {
	if kind != fixtures.Stalwart {
		return Endpoints()
	}
	return append(Endpoints(),
		run.Endpoint{Name: "https", Protocol: "http", Port: 443, TLS: "implicit"},
		run.Endpoint{Name: "http", Protocol: "http", Port: 8080, TLS: "none"})
}

// Announces is how a proxy tells a source of this kind who the client is.
func Announces(kind string) run.Announcement {
	if kind == fixtures.Stalwart {
		return run.ByPROXY
	}
	return run.ByXCLIENT
}

// Endpoints are the mail services that a lab's sources and proxy are declared to have.
func Endpoints() []run.Endpoint {
	return []run.Endpoint{
		{Name: "imap", Protocol: "imap", Port: 143, TLS: "starttls"},
		{Name: "imaps", Protocol: "imap", Port: 993, TLS: "implicit"},
		{Name: "pop3", Protocol: "pop3", Port: 110, TLS: "starttls"},
		{Name: "pop3s", Protocol: "pop3", Port: 995, TLS: "implicit"},
		{Name: "sieve", Protocol: "managesieve", Port: 4190, TLS: "starttls"},
		{Name: "smtp", Protocol: "smtp", Port: 25, TLS: "starttls"},
		{Name: "submission", Protocol: "smtp", Port: 587, TLS: "starttls"},
		{Name: "submissions", Protocol: "smtp", Port: 465, TLS: "implicit"},
	}
}

// ProxyEndpoints are the services of a lab's proxy: port 25 is for a new
// server, which labs do not have.
func ProxyEndpoints() []run.Endpoint {
	return slices.DeleteFunc(Endpoints(), func(e run.Endpoint) bool { return e.Name == "smtp" })
}

// Blueprint is the target that a lab of these sources will be, without the
// lab: it can be planned, and not run. Labs fill it in.
func Blueprint(kind string, specs []SourceSpec, withProxy bool) (*Target, error) {
	if len(specs) == 0 {
		return nil, fmt.Errorf("a lab needs at least one source")
	}
	if len(specs) > fixtures.MaxSources {
		return nil, fmt.Errorf("a lab holds at most %d sources, not %d", fixtures.MaxSources, len(specs))
	}
	t := &Target{Kind: kind, Vantages: make(map[string]run.Vantage), Names: Names()}
	for _, h := range fixtures.Hosts() {
		t.Vantages[h.Vantage] = unbuilt{h.Pair}
	}
	if withProxy {
		t.Proxy = &run.PublicProxy{Name: "reference", Addr: func(f run.Family) netip.Addr { return fixtures.Public().Of(string(f)) },
			Endpoints: ProxyEndpoints(), ServerName: fixtures.PublicHost}
	}
	seen := make(map[string]bool)
	for i, s := range specs {
		if seen[s.Name] {
			return nil, fmt.Errorf("the source %q is named twice", s.Name)
		}
		seen[s.Name] = true
		if _, err := fixtures.Base(s.Kind, s.Version, s.Profile); err != nil {
			return nil, err
		}
		src := &run.Source{Name: s.Name, Kind: s.Kind, Version: s.Version, Profile: s.Profile, Origin: result.FromImage,
			Domain: fixtures.Domain, Endpoints: SourceEndpoints(s.Kind), Announces: Announces(s.Kind), ServerName: fixtures.SourceHost(i), Addr: SourceAddr(i)}
		src.Pace = pace(i, s)
		switch {
		case kind == "reference", s.Elsewhere, s.From == "reference":
			src.Origin = result.FromReference
		case strings.HasPrefix(s.From, "exec:"):
			src.Origin = result.FromExec
		}
		for _, l := range s.Layers {
			src.Layers = append(src.Layers, l.Name)
		}
		src.Layers = append(src.Layers, s.Bugs...)
		t.Sources = append(t.Sources, src)
	}
	return t, nil
}

// pace is the least time between two connections that a source bears from one
// address. Stalwart takes five in every second as shipped, and closes the
// others: four leave, so that one which is late does not make a sixth.
func pace(i int, s SourceSpec) time.Duration {
	if s.Kind != fixtures.Stalwart {
		return 0
	}
	limited := s.Profile == fixtures.AsShipped
	if laid, err := s.Laid(i); err == nil {
		if setup, err := SetUpStalwart(i, s, laid); err == nil {
			if v, ok := setup.Database["queue.limiter.inbound.ip.enable"]; ok {
				limited = v == "true"
			}
		}
	}
	if limited {
		return 280 * time.Millisecond
	}
	return 0
}

// Names are the labs' names that nobody dials from.
func Names() run.Names {
	return run.Names{
		Public: func(f run.Family) netip.Addr { return fixtures.Public().Of(string(f)) },
		Forged: func(f run.Family) netip.Addr { return fixtures.Forged().Of(string(f)) },
		Client: func(f run.Family, n int) netip.Addr { return fixtures.Announced(n).Of(string(f)) },
	}
}

// SourceAddr is where each vantage of a lab dials source i: the source's
// address in the vantage's own network.
func SourceAddr(i int) func(vantage string, f run.Family) netip.Addr {
	at := make(map[string]fixtures.Pair)
	for _, h := range fixtures.Hosts() {
		at[h.Vantage] = fixtures.NetworkNamed(h.Network).Source(i)
	}
	return func(vantage string, f run.Family) netip.Addr {
		pair, ok := at[vantage]
		if !ok {
			return netip.Addr{}
		}
		return pair.Of(string(f))
	}
}

// A Laid is a layer as it stands at one source: names replaced, and where the
// files that are only copied lie there.
type Laid struct {
	fixtures.Layer
	Dir string
}

// A LayerError says which layer cannot be laid, and why.
type LayerError struct {
	Layer string
	Err   error
}

func (e *LayerError) Error() string { return "the layer " + e.Layer + ": " + e.Err.Error() }
func (e *LayerError) Unwrap() error { return e.Err }

var notPlain = regexp.MustCompile(`[^a-z0-9-]+`)

// Laid are all of a source's layers, in the order in which they are laid, as
// they stand at source i: the profile, the guide's recipe, and the source's own.
func (s SourceSpec) Laid(i int) ([]Laid, error) {
	all, err := fixtures.Base(s.Kind, s.Version, s.Profile)
	if err != nil {
		return nil, err
	}
	if !s.Bare {
		guide, err := fixtures.GuideRecipe(s.Kind, s.Version)
		if err != nil {
			return nil, err
		}
		all = append(all, guide)
	}
	all = append(all, s.Layers...)
	out := make([]Laid, 0, len(all))
	for n, l := range all {
		plain := strings.Trim(notPlain.ReplaceAllString(strings.ToLower(l.Name), "-"), "-")
		laid := Laid{fixtures.Layer{Name: l.Name, Files: make(map[string]string, len(l.Files))},
			fmt.Sprintf("/etc/mailproof/%02d-%s", n+1, plain[:min(len(plain), 40)])}
		names := fixtures.LabNames(i)
		names["overlay"] = laid.Dir
		for file, text := range l.Files {
			if fixtures.IsConfig(file) {
				if text, err = names.Expand(file, text); err != nil {
					return nil, &LayerError{l.Name, err}
				}
			}
			laid.Files[file] = text
		}
		out = append(out, laid)
	}
	return out, nil
}

// unbuilt is a vantage of a blueprint.
type unbuilt struct{ fixtures.Pair }

func (u unbuilt) Addr(f run.Family) netip.Addr { return u.Of(string(f)) }

func (u unbuilt) Dial(context.Context, netip.AddrPort) (net.Conn, error) {
	return nil, &run.VantageError{Vantage: u.IP4.String(), Err: fmt.Errorf("this target is only a blueprint")}
}
