package harness

import (
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/manage"
	"github.com/mailproof/mailproof/harness/proto/dns"
	"github.com/mailproof/mailproof/harness/reference/memnet"
	"github.com/mailproof/mailproof/harness/reference/stalwart"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
)

// A playedStalwart is a reference Stalwart of a reference lab, and the way to
// its management API.
type playedStalwart struct {
	*manage.Client
	server *stalwart.Server
	setup  *StalwartSetup
	secret string // of its administrator
}

// startStalwart starts the reference Stalwart as source i, and gives it what
// its file cannot hold.
func startStalwart(ctx context.Context, network *memnet.Network, ca *fixtures.Authority, i int, spec SourceSpec, pool *AccountPool, admin run.Vantage) (*playedStalwart, []result.Problem, error) {
	laid, err := spec.Laid(i)
	if err != nil {
		return nil, nil, err
	}
	setup, err := SetUpStalwart(i, spec, laid)
	if err != nil {
		return nil, nil, err
	}
	var own []fixtures.Pair
	for _, n := range fixtures.Networks() {
		own = append(own, n.Source(i))
	}
	cert, key, err := ca.Leaf(fixtures.SourceHost(i), own...)
	if err != nil {
		return nil, nil, err
	}
	zone, err := playedZone()
	if err != nil {
		return nil, nil, err
	}
	if err := zone.AddHosts(setup.Hosts); err != nil {
		return nil, nil, err
	}
	secret := rand.Text()
	setup.File["authentication.fallback-admin.user"] = StalwartAdmin
	setup.File["authentication.fallback-admin.secret"] = secret
	cfg := stalwart.Config{Version: spec.Version, Keys: setup.File, Hostname: fixtures.SourceHost(i),
		Files: map[string]string{StalwartCertPath: string(cert), StalwartKeyPath: string(key)}, Zone: zone, Bugs: serverBugs(spec)}
	for _, n := range fixtures.Networks() {
		cfg.Addrs = append(cfg.Addrs, n.Source(i).IP4, n.Source(i).IP6)
	}
	server, err := stalwart.New(cfg)
	if err != nil {
		return nil, nil, err
	}
	if err := server.Start(ctx, func(at netip.AddrPort) (net.Listener, error) { return network.Listen(at) }); err != nil {
		return nil, nil, err
	}
	at := netip.AddrPortFrom(fixtures.NetworkNamed(fixtures.ClientNet).Source(i).IP4, fixtures.StalwartManagementPort)
	p := &playedStalwart{server: server, setup: setup, secret: secret,
		Client: manage.New(func(ctx context.Context) (net.Conn, error) { return admin.Dial(ctx, at) }, StalwartAdmin, secret)}
	problems, err := setup.Settle(ctx, spec.Name, p.Client, pool, p.Restart)
	if err != nil {
		p.Close()
		return nil, nil, err
	}
	return p, problems, nil
}

// playedZone is the lab's zone as the reference Stalwart asks it. A name whose
// questions fail is to a Stalwart one that has no records; one that nobody
// answers for is an error that may pass.
func playedZone() (*stalwart.Zone, error) {
	fixture, err := fixtures.Zone()
	if err != nil {
		return nil, err
	}
	z := &stalwart.Zone{TXT: map[string][]string{}, MX: map[string][]string{}, Addr: map[string][]netip.Addr{}, PTR: map[string][]string{}, Silent: fixture.Silent}
	for _, r := range fixture.Records {
		switch r.Type {
		case dns.A, dns.AAAA:
			a, err := netip.ParseAddr(r.Value)
			if err != nil {
				return nil, err
			}
			z.Addr[r.Name] = append(z.Addr[r.Name], a)
		case dns.PTR:
			z.PTR[r.Name] = append(z.PTR[r.Name], r.Value)
		case dns.MX:
			_, host, _ := strings.Cut(r.Value, " ")
			z.MX[r.Name] = append(z.MX[r.Name], host)
		case dns.TXT:
			z.TXT[r.Name] = append(z.TXT[r.Name], r.Value)
		}
	}
	return z, nil
}

// Restart starts the server again; see [run.Admin].
func (p *playedStalwart) Restart(ctx context.Context) error {
	p.Client.Close() // its connections end
	return p.server.Restart(ctx)
}

// Guide is what of the guide this source follows; see [run.Admin].
func (p *playedStalwart) Guide() []run.Setting { return slices.Clone(p.setup.Guide) }

// Close ends the server.
func (p *playedStalwart) Close() error {
	p.Client.Close()
	return p.server.Close()
}

// configuration is the server's file, and what it has stored.
func (p *playedStalwart) configuration(ctx context.Context) ([]run.ConfigFile, error) {
	settings, err := StalwartSettings(ctx, p.Client)
	if err != nil {
		return nil, err
	}
	return append([]run.ConfigFile{settings}, p.server.ConfigFiles()...), nil
}
