package site

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
)

// Options say how a site is opened. The zero value is what an operator gets.
type Options struct {
	// PlanOnly reads no password and opens no log: the target can be planned,
	// and not run.
	PlanOnly bool
	// Env looks up an environment variable; nil is os.LookupEnv.
	Env func(string) (string, bool)
	// Resolve looks up a host's addresses; nil asks the system.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// SSH is the program of OpenSSH; "" is ssh.
	SSH string
	// Dial connects from an address for vantages of the kind bind, in the place
	// of this machine's own network; nil uses that.
	Dial func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error)
}

func (o Options) env(name string) (string, bool) {
	if o.Env != nil {
		return o.Env(name)
	}
	return os.LookupEnv(name)
}

func (o Options) ssh() string {
	if o.SSH != "" {
		return o.SSH
	}
	return "ssh"
}

func (o Options) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	if o.Resolve != nil {
		return o.Resolve(ctx, host)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// Open turns a file into a target. What is missing (a password that cannot be
// read, a name that cannot be resolved) is a problem of the target, and what
// depends on it will not be judged; an error says that nothing can be judged.
// Nothing is dialled; logs are opened by the run, which also closes them.
func Open(ctx context.Context, f *File, o Options) (*run.Target, error) {
	b := &builder{ctx: ctx, f: f, o: o, t: &run.Target{
		Kind: "site", Vantages: map[string]run.Vantage{}, Limits: run.SiteLimits(),
		Names: run.Names{
			Forged: func(fam run.Family) netip.Addr { return fixtures.Forged().Of(string(fam)) },
			Client: announced,
		},
	}}
	if err := b.proxy(); err != nil {
		return nil, err
	}
	for _, s := range f.Sources {
		if err := b.source(s); err != nil {
			return nil, err
		}
	}
	if err := b.vantages(); err != nil {
		return nil, err
	}
	return b.t, nil
}

// announced is the address of the nth further client, of a documentation range
// (RFC 5737, RFC 3849). Dovecot counts failed sign-ins of a whole IPv6 /48
// together, so that each has a /48 of its own.
func announced(f run.Family, n int) netip.Addr {
	if f == run.IP4 {
		return fixtures.Announced(n).IP4
	}
	a := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0x10, byte(n), 15: 0x21}
	return netip.AddrFrom16(a)
}

type builder struct {
	ctx context.Context
	f   *File
	o   Options
	t   *run.Target
}

func (b *builder) wrong(at Place, key, format string, args ...any) error {
	return Errors{{File: b.f.Name, Line: at.Line, Column: at.Column, Key: key, Why: fmt.Sprintf(format, args...)}}
}

func (b *builder) problem(source, stage, where, words, remedy string) {
	p := result.Problem{Source: source, Stage: stage, Where: where, Words: words}
	if remedy != "" {
		p.Remedy = &result.Remedy{Text: remedy}
	}
	b.t.Problems = append(b.t.Problems, p)
}

// addresses are a host's, one of each family. Those that the file names count;
// a name service that says otherwise is told of.
func (b *builder) addresses(source string, h Host, key string) (fixtures.Pair, error) {
	p := fixtures.Pair{IP4: h.IP4, IP6: h.IP6}
	if h.Name == "" {
		return p, nil
	}
	found, err := b.o.resolve(b.ctx, h.Name)
	if err != nil {
		if p.IP4.IsValid() || p.IP6.IsValid() {
			b.t.Notices = append(b.t.Notices, fmt.Sprintf("%s cannot be resolved (%v): the addresses of %s are taken", h.Name, err, b.f.Name))
			return p, nil
		}
		if b.ctx.Err() != nil {
			return p, b.ctx.Err()
		}
		return p, b.wrong(h.At, key+".host", "%s cannot be resolved: %v; name its addresses with ip4 and ip6", h.Name, err)
	}
	slices.SortFunc(found, func(x, y netip.Addr) int { return x.Unmap().Compare(y.Unmap()) })
	fixed := p.IP4.IsValid() || p.IP6.IsValid()
	for _, at := range []*netip.Addr{&p.IP4, &p.IP6} {
		var of []netip.Addr
		for _, a := range found {
			if a = a.Unmap(); a.Is4() == (at == &p.IP4) {
				of = append(of, a)
			}
		}
		switch {
		case len(of) == 0:
		case at.IsValid() && !slices.Contains(of, *at):
			b.t.Notices = append(b.t.Notices, fmt.Sprintf("the name service says %s for %s, and %s says %s: the latter is judged", of[0], h.Name, b.f.Name, *at))
		case !at.IsValid() && !fixed:
			*at = of[0]
			if len(of) > 1 {
				b.t.Notices = append(b.t.Notices, fmt.Sprintf("%s has %d addresses of one family: only %s is judged", h.Name, len(of), of[0]))
			}
		}
	}
	if !p.IP4.IsValid() && !p.IP6.IsValid() {
		return p, b.wrong(h.At, key+".host", "%s has no address; name its addresses with ip4 and ip6", h.Name)
	}
	return p, nil
}

func (b *builder) proxy() error {
	pub := b.f.Proxy
	if pub == nil {
		return nil
	}
	at, err := b.addresses("", pub.Host, "proxy")
	if err != nil {
		return err
	}
	verify, err := pub.TLS.verify()
	if err != nil {
		return b.wrong(pub.At, "proxy.tls", "%v", err)
	}
	b.unchecked("the proxy", pub.TLS)
	b.t.Proxy = &run.PublicProxy{Name: "addr:" + cmpName(pub.Name, at), Endpoints: pub.Endpoints, ServerName: nameOf(pub.Host), Verify: verify,
		Addr: func(f run.Family) netip.Addr { return at.Of(string(f)) }}
	b.t.Names.Public = b.t.Proxy.Addr
	return nil
}

// nameOf is what a host is called: what its certificate is checked for, or
// else its own name, where the certificate is pinned or not checked.
func nameOf(h Host) string {
	if h.TLS.Name != "" {
		return h.TLS.Name
	}
	return h.Name
}

func cmpName(name string, at fixtures.Pair) string {
	switch {
	case name != "":
		return name
	case at.IP4.IsValid():
		return at.IP4.String()
	}
	return at.IP6.String()
}

func (b *builder) unchecked(who string, e Expect) {
	if e.Reason != "" {
		b.t.Notices = append(b.t.Notices, fmt.Sprintf("the certificate of %s is not checked: %s", who, e.Reason))
	}
}

func (b *builder) source(s *Source) error {
	key := "source." + s.Label
	at, err := b.addresses(s.Label, s.Host, key)
	if err != nil {
		return err
	}
	verify, err := s.TLS.verify()
	if err != nil {
		return b.wrong(s.At, key+".tls", "%v", err)
	}
	b.unchecked(s.Label, s.TLS)
	announces, pace := announcement(s)
	src := &run.Source{Name: s.Label, Kind: s.Kind, Version: s.Version, Origin: result.FromSite, Domain: b.f.Domain, Announces: announces, Pace: pace, Detailed: s.Detailed,
		Addr:      func(_ string, f run.Family) netip.Addr { return at.Of(string(f)) },
		Endpoints: s.Endpoints, ServerName: nameOf(s.Host), Verify: verify, Logs: map[string]run.LogFunc{}}
	b.declare(s, src)
	switch s.Log.How {
	case "file":
		path := s.Log.What
		if !filepath.IsAbs(path) {
			path = filepath.Join(filepath.Dir(b.f.Name), path)
		}
		src.Logs["mail"] = func(ctx context.Context) (io.ReadCloser, error) { return openTail(ctx, path) }
	case "command":
		src.Logs["mail"] = func(ctx context.Context) (io.ReadCloser, error) { return follow(ctx, s.Log.What) }
	case "api":
		if err := b.api(s, src, verify); err != nil {
			return err
		}
	}
	p := newPool()
	for _, a := range s.Accounts {
		acc := run.Account{Address: a.Address, Shared: a.Shared}
		if !b.o.PlanOnly {
			acc.Password, err = a.Password.read(b.ctx, b.o)
			if err != nil {
				if b.ctx.Err() != nil {
					return b.ctx.Err()
				}
				b.problem(s.Label, "account", fmt.Sprintf("%s:%d, [account.%s]", b.f.Name, a.At.Line, a.Label), "the password of "+a.Address+" cannot be read: "+err.Error(),
					"Let "+a.Password.How+":"+a.Password.What+" give the password; until then what needs the account is not judged.")
				continue
			}
		}
		p.add(acc)
	}
	if p.Len() > 0 {
		src.Accounts = p
	}
	b.t.Sources = append(b.t.Sources, src)
	return nil
}

func (b *builder) vantages() error {
	seen := map[netip.Addr]string{}
	for _, name := range run.Vantages() {
		r, ok := b.f.Vantages[name]
		if !ok {
			continue
		}
		v := &vantage{name: name, ip4: r.IP4, ip6: r.IP6, dial: r.by(b.o), portless: r.How == "ssh" || r.How == "socks5"}
		if r.How == "local" && !r.IP4.IsValid() && !r.IP6.IsValid() {
			v.ip4, v.ip6 = b.own(name, run.IP4), b.own(name, run.IP6)
			if !v.ip4.IsValid() && !v.ip6.IsValid() {
				return b.wrong(r.At, "vantage."+name, "this machine has no way to the servers: name its addresses, %s = { by = \"local\", ip4 = \"…\" }", name)
			}
		}
		for _, a := range []netip.Addr{v.ip4, v.ip6} {
			if !a.IsValid() {
				continue
			}
			if other := seen[a]; other != "" {
				return b.wrong(r.At, "vantage."+name, "has the address %s, as the vantage %s has: a source cannot tell them apart, and nothing would be proved", a, other)
			}
			seen[a] = name
		}
		b.t.Vantages[name] = v
	}
	return nil
}

// own is this machine's address towards what a vantage dials first.
func (b *builder) own(vantage string, f run.Family) netip.Addr {
	var to netip.Addr
	if vantage == run.Client && b.t.Proxy != nil {
		to = b.t.Proxy.Addr(f)
	} else {
		for _, s := range b.t.Sources {
			if a := s.Addr(vantage, f); a.IsValid() {
				to = a
				break
			}
		}
	}
	if !to.IsValid() {
		return netip.Addr{}
	}
	return outgoing(to)
}

// Excluded is what the file leaves out today, and a sentence for each
// exclusion that has ended. known says whether there is a scenario of an id.
func (f *File) Excluded(now time.Time, known func(id string) bool) (out []result.Excluded, ended []string, err error) {
	var errs Errors
	for _, e := range f.Exclude {
		switch {
		case !known(e.ID):
			errs = append(errs, &Error{File: f.Name, Line: e.At.Line, Column: e.At.Column, Key: "exclude." + e.ID, Why: "there is no such scenario; `mailproof list` shows them"})
		case !now.UTC().Before(e.Until.AddDate(0, 0, 1)):
			ended = append(ended, fmt.Sprintf("the exclusion of %s ended on %s and no longer counts (%s:%d)", e.ID, e.Until.Format(time.DateOnly), f.Name, e.At.Line))
		default:
			out = append(out, result.Excluded{ID: e.ID, Reason: fmt.Sprintf("%s (until %s)", e.Reason, e.Until.Format(time.DateOnly))})
		}
	}
	if len(errs) > 0 {
		return nil, nil, errs
	}
	return out, ended, nil
}

// pool is the accounts of one source. It implements [run.NamedAccounts]; each
// is lent to one execution at a time.
type pool struct {
	all []run.Account

	mu    sync.Mutex
	busy  []bool
	freed chan struct{} // closed and replaced when something is released
}

func newPool() *pool { return &pool{freed: make(chan struct{})} }

func (p *pool) add(a run.Account) {
	p.all = append(p.all, a)
	p.busy = append(p.busy, false)
}

// Len is how many accounts there are.
func (p *pool) Len() int { return len(p.all) }

// Own says that an account is nobody else's while it is taken, unless its
// operator says otherwise of it.
func (p *pool) Own() bool {
	return !slices.ContainsFunc(p.all, func(a run.Account) bool { return a.Shared })
}

// Take waits for any n accounts.
func (p *pool) Take(ctx context.Context, n int) ([]run.Account, func(), error) {
	if n > len(p.all) {
		return nil, nil, fmt.Errorf("the site names %d", len(p.all))
	}
	return p.wait(ctx, func() []int {
		var free []int
		for i, b := range p.busy {
			if !b && len(free) < n {
				free = append(free, i)
			}
		}
		if len(free) < n {
			return nil
		}
		return free
	})
}

// TakeThese waits for the accounts of these indexes.
func (p *pool) TakeThese(ctx context.Context, which []int) ([]run.Account, func(), error) {
	for _, i := range which {
		if i < 0 || i >= len(p.all) {
			return nil, nil, fmt.Errorf("the site names %d", len(p.all))
		}
	}
	return p.wait(ctx, func() []int {
		if slices.ContainsFunc(which, func(i int) bool { return p.busy[i] }) {
			return nil
		}
		return which
	})
}

func (p *pool) wait(ctx context.Context, pick func() []int) ([]run.Account, func(), error) {
	for {
		p.mu.Lock()
		if got := pick(); got != nil {
			as := make([]run.Account, len(got))
			for k, i := range got {
				p.busy[i] = true
				as[k] = p.all[i]
			}
			p.mu.Unlock()
			return as, sync.OnceFunc(func() { p.release(got) }), nil
		}
		freed := p.freed
		p.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("waiting for an account: %w", context.Cause(ctx))
		}
	}
}

func (p *pool) release(got []int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range got {
		p.busy[i] = false
	}
	close(p.freed)
	p.freed = make(chan struct{})
}

// Describe says in one line how a vantage is reached.
func (r Reach) Describe() string {
	if r.What == "" {
		return r.How
	}
	return r.How + ":" + strings.TrimSpace(r.What)
}
