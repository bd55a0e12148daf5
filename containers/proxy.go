package containers

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/run"
)

// The paths of what a lab puts into the proxy's container.
const (
	ProxyConfigPath = "/proxy.toml"
	ProxyCertPath   = "/etc/proxy/tls/fullchain.pem"
	ProxyKeyPath    = "/etc/proxy/tls/privkey.pem"
	ProxyCAPath     = "/etc/proxy/tls/ca.PEM()"
	ProxyMapPath    = "/etc/proxy/mappings.tsv"
)

// A Proxy is the proxy that a lab starts in front of its sources: the
// reference proxy, on the addresses of the proxy's vantage.
type Proxy struct {
	Name string // for reports; "reference" where it is empty
	// Config is its configuration file. It may hold the lab's names between two
	// @, and name the files at the paths above.
	Config string
	// Destination is the name that accounts of a source are mapped to, in the
	// file at ProxyMapPath: one line an account, its address, a tab and the name.
	Destination func(source string) string
	// Endpoints are what it is declared to serve; nil for a lab's own.
	Endpoints []run.Endpoint
}

func (p *Proxy) name() string {
	if p.Name == "" {
		return "reference"
	}
	return p.Name
}

// startProxy starts the proxy in the network namespace of its vantage, and
// waits until each of its ports answers a client.
func (l *Lab) startProxy(ctx context.Context, p *Proxy, image, vantageID string, sources []*source) error {
	ctx, cancel := context.WithTimeout(ctx, startFor)
	defer cancel()
	l.progress("starting the proxy")
	config, err := fixtures.LabNames(0).Expand("the proxy's configuration", p.Config)
	if err != nil {
		return &StartError{"", StageProxy, "its configuration", err.Error()}
	}
	cert, key, err := l.ca.Leaf(fixtures.PublicHost, fixtures.Public())
	if err != nil {
		return err
	}
	var mappings strings.Builder
	for _, s := range sources {
		if s == nil || p.Destination == nil {
			continue
		}
		for _, a := range s.pool.All() {
			fmt.Fprintf(&mappings, "%s\t%s\n", a.Address, p.Destination(s.name))
		}
	}
	c, err := l.e.create(ctx, spec{
		name: "mailproof-proxy-under-test", image: image, cmd: []string{"proxy", "--config", ProxyConfigPath},
		env: map[string]string{"SSL_CERT_FILE": ProxyCAPath},
		ns:  vantageID, labels: l.labels(),
		files: []file{
			{ProxyConfigPath, 0o644, []byte(config)},
			{ProxyCertPath, 0o644, cert},
			{ProxyKeyPath, 0o600, key},
			{ProxyCAPath, 0o644, l.ca.PEM()},
			{ProxyMapPath, 0o600, []byte(mappings.String())},
		},
	})
	if err != nil {
		return asStart("", StageProxy, "its container", err)
	}
	id := c.GetContainerID()
	j := newJournal()
	a, err := l.e.attach(ctx, id, false)
	if err != nil {
		return asStart("", StageProxy, "its container", err)
	}
	l.follow(j, a)
	if err := l.e.start(ctx, id); err != nil {
		return asStart("", StageProxy, "its container", err)
	}
	var wg sync.WaitGroup
	endpoints := p.Endpoints
	if endpoints == nil {
		endpoints = harness.Endpoints()
	}
	errs := make([]error, len(endpoints))
	for i, ep := range endpoints {
		wg.Go(func() { errs[i] = l.awaitPort(ctx, j, ep) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return &StartError{"", StageProxy, "its container", err.Error() + "; it says:\n" + j.tail(40)}
		}
	}
	l.watch("the proxy", j)
	return nil
}

// awaitPort waits until a port of the proxy answers a client. The proxy tells
// nobody when it listens, so its ports are asked; when it ends, this ends.
func (l *Lab) awaitPort(ctx context.Context, j *journal, ep run.Endpoint) error {
	client := l.target.Vantages[run.Client]
	to := netip.AddrPortFrom(fixtures.Public().IP4, ep.Port)
	for wait := 5 * time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		nc, err := client.Dial(ctx, to)
		if err == nil {
			return nc.Close()
		}
		if !refused(err) {
			return fmt.Errorf("%s at %s: %w", ep.Name, to, err)
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-j.done:
			t.Stop()
			return fmt.Errorf("it has ended before it served %s", ep.Name)
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%s at %s: %w", ep.Name, to, ctx.Err())
		}
	}
}

func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
