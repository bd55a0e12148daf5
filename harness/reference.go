package harness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/reference/memnet"
	"github.com/mailproof/mailproof/harness/reference/proxy"
	"github.com/mailproof/mailproof/harness/reference/source"
	"github.com/mailproof/mailproof/harness/reference/stalwart"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
)

// A Bug is a misbehaviour of a reference server that no configuration expresses.
type Bug struct {
	Name string
	// Kind is the kind of source that can have it; "" for every kind.
	Kind string
	Says string
}

// of says whether a source of a kind can have the bug.
func (b Bug) of(kind string) bool { return b.Kind == "" || b.Kind == kind }

// The misbehaviours of what stands around a source.
const (
	bugNAT          = "address-translation"
	bugNATAll       = "address-translation-everywhere"
	bugJoinsRefused = "proxy-joins-refused"
)

// bugTurnsAway is the one misbehaviour of a source that has a diagnosis of its own.
const bugTurnsAway = "turns-away"

// Bugs lists the misbehaviours of the reference servers, and of the proxy and
// the network before them.
func Bugs() []Bug {
	out := []Bug{
		{bugNAT, "", "Connections of the proxy reach the source with the address of a gateway in its network."},
		{bugNATAll, "", "Every connection reaches the source with the address of a gateway."},
		{bugJoinsRefused, "", "After refused credentials the proxy joins the client to the source."},
	}
	for _, b := range source.Bugs() {
		out = append(out, Bug{b.Name, fixtures.DovecotPostfix, b.Sentence})
	}
	for _, b := range stalwart.Bugs() {
		out = append(out, Bug{b.Name, fixtures.Stalwart, b.Sentence})
	}
	return out
}

// BugNamed returns the bug of that name.
func BugNamed(name string) (Bug, bool) {
	for _, b := range Bugs() {
		if b.Name == name {
			return b, true
		}
	}
	return Bug{}, false
}

// A Reference is a running reference lab: reference servers and the reference
// proxy on an in-memory network with the addresses of the docker lab.
type Reference struct {
	target  *Target
	sources []interface{ Close() error }
	cancel  context.CancelFunc
	proxy   sync.WaitGroup
	once    sync.Once
	err     error
}

// StandIn puts the sources of a reference lab into a target among its own, in
// the order in which they were named: each is reached from the vantages of its
// own lab, which have the same addresses, and through its own proxy.
func StandIn(t *Target, specs []SourceSpec, ref *Reference) {
	from := ref.Target()
	all := append(slices.Clone(t.Sources), from.Sources...)
	for _, s := range from.Sources {
		s.Vantages, s.ProxyRoots = from.Vantages, from.Proxy.Roots
	}
	place := func(s *run.Source) int {
		return slices.IndexFunc(specs, func(spec SourceSpec) bool { return spec.Name == s.Name })
	}
	slices.SortStableFunc(all, func(a, b *run.Source) int { return place(a) - place(b) })
	t.Sources = all
	t.Problems = append(t.Problems, from.Problems...)
}

// StartReference starts the reference lab. A source that does not start is a
// problem of its target, in the words of the server that it plays; the others
// start. It needs no socket, no privilege and no container engine.
func StartReference(ctx context.Context, specs []SourceSpec, withProxy bool) (*Reference, error) {
	t, err := Blueprint("reference", specs, withProxy)
	if err != nil {
		return nil, err
	}
	ca, err := fixtures.NewAuthority()
	if err != nil {
		return nil, fmt.Errorf("reference lab: %w", err)
	}
	network := memnet.New()
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &Reference{target: t, cancel: cancel}
	translated := make(map[netip.Addr]bool) // for the proxy
	everybody := make(map[netip.Addr]bool)
	joins := make(map[string]bool)
	for i, spec := range specs {
		for _, b := range spec.Bugs {
			switch b {
			case bugNAT:
				at := fixtures.NetworkNamed(fixtures.ProxyNet).Source(i)
				translated[at.IP4], translated[at.IP6] = true, true
			case bugNATAll:
				for _, n := range fixtures.Networks() {
					at := n.Source(i)
					everybody[at.IP4], everybody[at.IP6] = true, true
					translated[at.IP4], translated[at.IP6] = true, true
				}
			case bugJoinsRefused:
				joins[fixtures.Destination(i)] = true
			}
		}
	}
	for _, h := range fixtures.Hosts() {
		v := memVantage{net: network, Pair: h.Pair, gateway: fixtures.NetworkNamed(h.Network).Host(1), translated: everybody}
		if h.Vantage == run.Proxy {
			v.translated = translated
		}
		t.Vantages[h.Vantage] = v
	}
	mapping := make(map[string]string)
	var up []*run.Source
	for i, spec := range specs {
		if spec.Elsewhere {
			continue
		}
		src := t.Sources[i]
		if spec.Kind == fixtures.Stalwart {
			pool := NewAccountPoolOf(i, StalwartPool)
			s, problems, err := startStalwart(ctx, network, ca, i, spec, pool, t.Vantages[run.Client])
			t.Problems = append(t.Problems, problems...)
			if err != nil {
				t.Problems = append(t.Problems, sourceProblem(spec.Name, err))
				continue
			}
			r.sources = append(r.sources, s)
			src.Accounts, src.Roots, src.Admin = pool, ca.Pool(), s
			src.Administrator = &run.Account{Address: StalwartAdmin, Password: s.secret}
			limited := StalwartLimitedAdmin(pool)
			src.Limited = &limited
			src.Logs = map[string]run.LogFunc{"mail": s.server.Log}
			src.Config = s.configuration
			for _, a := range pool.All() {
				mapping[a.Address] = fixtures.Destination(i)
			}
			up = append(up, src)
			continue
		}
		pool := NewAccountPool(i)
		s, err := startSource(ctx, network, ca, i, spec, pool)
		if err != nil {
			t.Problems = append(t.Problems, sourceProblem(spec.Name, err))
			continue
		}
		r.sources = append(r.sources, s)
		src.Accounts, src.Roots = pool, ca.Pool()
		src.Logs = map[string]run.LogFunc{"mail": s.Log}
		src.Config = func(context.Context) ([]run.ConfigFile, error) { return s.ConfigFiles(), nil }
		for _, a := range pool.All() {
			mapping[a.Address] = fixtures.Destination(i)
		}
		up = append(up, src)
	}
	t.Sources = up
	if withProxy {
		if err := r.startProxy(ctx, network, ca, specs, mapping, joins); err != nil {
			return nil, errors.Join(err, r.Close(ctx))
		}
		t.Proxy.Roots = ca.Pool()
	}
	return r, nil
}

func sourceProblem(name string, err error) result.Problem {
	p := result.Problem{Source: name, Stage: "start", Where: "the reference server", Words: err.Error()}
	var layer *LayerError
	if errors.As(err, &layer) {
		p.Stage, p.Where = "overlay", "the layer "+layer.Layer
	}
	return p
}

// serverBugs are those of a source's bugs that are its server's own, and not of
// what stands around it.
func serverBugs(spec SourceSpec) []string {
	return slices.DeleteFunc(slices.Clone(spec.Bugs), func(b string) bool { return b == bugNAT || b == bugNATAll || b == bugJoinsRefused })
}

func startSource(ctx context.Context, network *memnet.Network, ca *fixtures.Authority, i int, spec SourceSpec, pool *AccountPool) (*source.Source, error) {
	laid, err := spec.Laid(i)
	if err != nil {
		return nil, err
	}
	cert, err := ca.Certificate(fixtures.SourceHost(i))
	if err != nil {
		return nil, err
	}
	passwords := make(map[string]string)
	for _, a := range pool.All() {
		passwords[a.Address] = a.Password
	}
	bugs := serverBugs(spec)
	cfg := source.Config{Release: spec.Version, Hostname: fixtures.SourceHost(i), Certificate: cert, Bugs: bugs,
		Users: func(user string) (string, bool) { p, ok := passwords[user]; return p, ok }}
	for _, n := range fixtures.Networks() {
		cfg.Addrs = append(cfg.Addrs, n.Source(i).IP4, n.Source(i).IP6)
	}
	for _, l := range laid {
		cfg.Layers = append(cfg.Layers, source.Layer{Name: l.Name, Dir: l.Dir, Files: l.Files})
	}
	s, err := source.New(cfg)
	if err != nil {
		return nil, err
	}
	listen := func(at netip.AddrPort) (net.Listener, error) { return network.Listen(at) }
	if err := s.Start(ctx, listen); err != nil {
		return nil, err
	}
	return s, nil
}

// startProxy serves the reference proxy on the lab's network.
func (r *Reference) startProxy(ctx context.Context, network *memnet.Network, ca *fixtures.Authority, specs []SourceSpec, mapping map[string]string, joins map[string]bool) error {
	const name = "the lab's proxy"
	told := make([]fixtures.Forwarding, len(specs))
	for i, s := range specs {
		if told[i] = s.Forwarding; told[i] == (fixtures.Forwarding{}) {
			told[i] = fixtures.ForwardingOf(s.Kind)
		}
	}
	cfg, err := proxy.ParseConfig(name, []byte(fixtures.ProxyConfigTo(told, "cert = \"unused\"\nkey = \"unused\"", "source = \"inline\"\n[mapping.inline]\n")))
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	cert, err := ca.Certificate(fixtures.PublicHost)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for i := range cfg.Certificates {
		cfg.Certificates[i].Loaded = &cert
	}
	cfg.Mapping.Inline = mapping
	vantage := r.target.Vantages[run.Proxy]
	p, err := proxy.New(cfg, proxy.Options{
		Roots:  ca.Pool(),
		Listen: func(at netip.AddrPort) (net.Listener, error) { return network.Listen(at) },
		Dial: func(ctx context.Context, _ netip.Addr, to netip.AddrPort) (net.Conn, error) {
			return vantage.Dial(ctx, to)
		},
		JoinsRefused: func(destination string) bool { return joins[destination] },
	})
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	ended := make(chan error, 1)
	r.proxy.Go(func() { ended <- p.Serve(ctx) })
	select {
	case <-p.Ready():
		return nil
	case err := <-ended:
		return fmt.Errorf("%s: %w", name, err)
	}
}

// Target is what the lab has to judge. It is good until the lab is closed.
func (r *Reference) Target() *Target { return r.target }

// Close ends the lab and waits until every server has ended.
func (r *Reference) Close(context.Context) error {
	r.once.Do(func() {
		r.cancel()
		for _, s := range r.sources {
			r.err = errors.Join(r.err, s.Close())
		}
		r.proxy.Wait()
	})
	return r.err
}

// memVantage dials from one host of an in-memory network.
type memVantage struct {
	net *memnet.Network
	fixtures.Pair
	gateway    fixtures.Pair
	translated map[netip.Addr]bool // where the gateway's address arrives instead
}

func (v memVantage) Addr(f run.Family) netip.Addr { return v.Of(string(f)) }

func (v memVantage) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	from := v.Pair
	if v.translated[to.Addr()] {
		from = v.gateway
	}
	return memnet.Host{Net: v.net, Addr: from.Of(string(run.FamilyOf(to.Addr())))}.Dial(ctx, to)
}

// ReferenceStarter starts reference labs for [Prove].
func ReferenceStarter(ctx context.Context, specs []SourceSpec) (*Target, func(context.Context) error, error) {
	lab, err := StartReference(ctx, specs, true)
	if err != nil {
		return nil, nil, err
	}
	return lab.Target(), lab.Close, nil
}
