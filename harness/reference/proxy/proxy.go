package proxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailproof/mailproof/harness/wire"
)

// Options are what a proxy runs on. The zero Options are real sockets, the
// system's resolver and its certificate authorities, and no log.
type Options struct {
	// Listen binds an address. By default it is a socket: one for [::] serves
	// both families, unless 0.0.0.0 is bound on the same port too.
	Listen func(at netip.AddrPort) (net.Listener, error)
	// Dial connects to an address, from the given one unless that is zero.
	Dial func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error)
	// Resolve finds the addresses of a host name.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Roots check certificates of destinations that have neither a pin nor
	// tls_allow_invalid_certs.
	Roots *x509.CertPool
	// Log takes one line, without its end. It is called by many goroutines.
	Log func(line string)
	// JoinsRefused says for which destinations clients are joined to the source
	// although it refused their credentials, as version 1.0.0 of the guide's
	// proxy joins them. It exists so that this can be shown to be noticed.
	JoinsRefused func(destination string) bool
}

// Bound is where a listener is bound.
type Bound struct {
	Listener string
	Addr     netip.AddrPort
}

// A Proxy is one proxy, to be served once.
type Proxy struct {
	cfg     Config
	opt     Options
	level   int
	router  router
	pass    *destination
	certs   *tls.Config
	dests   map[string]*destination
	buffers sync.Pool

	ready chan struct{}
	bound []Bound // set before ready is closed

	mu       sync.Mutex
	served   bool
	closing  bool
	sessions map[*session]struct{}
	pairs    map[pair]int            // live sessions by whom they are for
	origins  map[netip.Addr]struct{} // addresses of destinations, as far as known
	returns  map[string]int          // sessions from a destination's address that are on their way to one
}

// A pair is the two ends of a client's connection, as they are announced. No
// two connections have the same at one time.
type pair struct{ client, dest netip.AddrPort }

// maxOrigins bounds how many addresses of destinations are remembered.
const maxOrigins = 4096

// A destination is one that is ready to be dialled.
type destination struct {
	Destination
	tls  *tls.Config
	next [2]atomic.Uint32 // round robin over SourceIPs, IPv4 and IPv6
}

// New prepares a proxy: it checks the configuration, and reads the
// certificates and the mapping that it names.
func New(cfg *Config, opt Options) (*Proxy, error) {
	var errs ConfigErrors
	cfg.check(func(path []string, format string, args ...any) {
		r := &reader{file: cfg.File}
		r.wrong(position{}, path, BadValue, format, args...)
		errs = append(errs, r.errs...)
	})
	if len(errs) > 0 {
		return nil, errs
	}
	p := &Proxy{
		cfg:      cfg.withDefaults(),
		opt:      opt,
		dests:    make(map[string]*destination),
		ready:    make(chan struct{}),
		sessions: make(map[*session]struct{}),
		pairs:    make(map[pair]int),
		origins:  make(map[netip.Addr]struct{}),
		returns:  make(map[string]int),
	}
	p.level = logLevels()[p.cfg.Server.LogLevel]
	p.buffers.New = func() any { b := make([]byte, spliceBuffer); return &b }
	if p.opt.Listen == nil {
		p.opt.Listen = listenOn(p.cfg.Listeners)
	}
	if p.opt.Dial == nil {
		p.opt.Dial = dialFrom
	}
	if p.opt.Resolve == nil {
		p.opt.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	var err error
	if p.certs, err = serverTLS(p.cfg.Certificates, p.cfg.MinTLS); err != nil {
		return nil, err
	}
	for _, d := range p.cfg.Destinations {
		ready := &destination{Destination: d}
		if ready.tls, err = clientTLS(d, opt.Roots); err != nil {
			return nil, err
		}
		p.dests[d.Name] = ready
		if a, err := netip.ParseAddr(d.Host); err == nil {
			p.origins[a.Unmap()] = struct{}{}
		}
		if d.AllowInvalid {
			p.log(levelWarn, "destination %s: any certificate is accepted (tls_allow_invalid_certs): credentials can be read by whoever stands between", d.Name)
		}
	}
	p.router = router{lowercase: p.cfg.Mapping.Lowercase, separators: p.cfg.Routing.Separators, fallback: p.dests[p.cfg.Routing.Default]}
	if err := p.router.load(p.cfg.Mapping, p.dests); err != nil {
		return nil, err
	}
	p.pass = p.dests[p.cfg.Routing.PassThrough]
	return p, nil
}

// Ready is closed once every listener is bound.
func (p *Proxy) Ready() <-chan struct{} { return p.ready }

// Bound lists where the listeners are bound, in the order of the
// configuration. Before the proxy is ready it is nil.
func (p *Proxy) Bound() []Bound {
	select {
	case <-p.ready:
		return slices.Clone(p.bound)
	default:
		return nil
	}
}

// Serve binds the listeners and serves until ctx ends. Then it takes no more
// clients, ends those that have not signed in, and lets the others go on for
// the grace time. It returns when every session is over: nil after ctx ended,
// and an error if a listener could not be bound or failed.
func (p *Proxy) Serve(ctx context.Context) error {
	p.mu.Lock()
	if p.served {
		p.mu.Unlock()
		return errors.New("proxy: served before")
	}
	p.served = true
	p.mu.Unlock()

	var opened []*socket
	defer func() {
		for _, s := range opened {
			s.nl.Close()
		}
	}()
	for i := range p.cfg.Listeners {
		l := &listener{Listener: &p.cfg.Listeners[i]}
		for _, at := range l.Binds {
			nl, err := p.opt.Listen(at)
			if err != nil {
				return fmt.Errorf("listener %s: %w", l.Name, err)
			}
			opened = append(opened, &socket{l: l, nl: nl})
			p.bound = append(p.bound, Bound{Listener: l.Name, Addr: boundAt(nl)})
			p.log(levelInfo, "listener %s: %s (%s, %s)", l.Name, boundAt(nl), l.Protocol, l.TLS)
		}
	}
	close(p.ready)

	// hard ends when sessions must be over at once.
	hard, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	soft, stop := context.WithCancel(ctx)
	defer stop()
	var accepting, running sync.WaitGroup
	failed := make(chan error, len(opened))
	for _, s := range opened {
		accepting.Go(func() {
			if err := p.accept(soft, hard, s, &running); err != nil {
				failed <- fmt.Errorf("listener %s: %w", s.l.Name, err)
				stop()
			}
		})
	}
	<-soft.Done()
	for _, s := range opened {
		s.nl.Close()
	}
	accepting.Wait()
	p.drain(cut, &running)
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// drain ends all sessions within the grace time.
func (p *Proxy) drain(cut context.CancelFunc, running *sync.WaitGroup) {
	p.mu.Lock()
	p.closing = true
	for s := range p.sessions {
		s.interrupt()
	}
	n := len(p.sessions)
	p.mu.Unlock()
	if n > 0 {
		p.log(levelInfo, "closing: %d sessions have up to %s to end", n, p.cfg.Server.ShutdownGrace)
	}
	grace := time.AfterFunc(p.cfg.Server.ShutdownGrace, func() {
		cut()
		p.mu.Lock()
		defer p.mu.Unlock()
		if len(p.sessions) > 0 {
			p.log(levelWarn, "closing: %d sessions were cut", len(p.sessions))
		}
		for s := range p.sessions {
			s.abort()
		}
	})
	running.Wait()
	grace.Stop()
}

// A listener counts the connections of one configured listener.
type listener struct {
	*Listener
	open atomic.Int64
	full atomic.Bool // the limit was logged
}

// A socket is one of a listener's addresses.
type socket struct {
	l  *listener
	nl net.Listener
}

func boundAt(nl net.Listener) netip.AddrPort {
	if t, ok := nl.Addr().(*net.TCPAddr); ok {
		return t.AddrPort()
	}
	ap, _ := netip.ParseAddrPort(nl.Addr().String())
	return ap
}

// accept takes connections until soft ends. What is temporary, such as too
// many open files, is waited out.
func (p *Proxy) accept(soft, hard context.Context, s *socket, running *sync.WaitGroup) error {
	wait := time.Duration(0)
	for {
		conn, err := s.nl.Accept()
		switch {
		case err == nil:
			wait = 0
		case soft.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return err
		default:
			wait = min(max(2*wait, 5*time.Millisecond), time.Second)
			p.log(levelError, "listener %s: %v; trying again in %s", s.l.Name, err, wait)
			select {
			case <-time.After(wait):
			case <-soft.Done():
				return nil
			}
			continue
		}
		if s.l.open.Add(1) > int64(s.l.MaxConnections) {
			s.l.open.Add(-1)
			if !s.l.full.Swap(true) {
				p.log(levelWarn, "listener %s: max_connections = %d are open; further ones are closed", s.l.Name, s.l.MaxConnections)
			}
			conn.Close()
			continue
		}
		s.l.full.Store(false)
		running.Go(func() {
			defer s.l.open.Add(-1)
			p.session(hard, s.l, conn)
		})
	}
}

// session serves one connection to its end.
func (p *Proxy) session(hard context.Context, l *listener, conn net.Conn) {
	s := &session{p: p, ln: l, ctx: hard, id: rand.Text(), client: newLeg(conn, conn), ttl: p.cfg.Server.ProxyTTL}
	s.via = endpoint(conn.RemoteAddr())
	s.peer, s.local = s.via, endpoint(conn.LocalAddr())
	p.mu.Lock()
	if p.closing {
		p.mu.Unlock()
		conn.Close()
		return
	}
	p.sessions[s] = struct{}{}
	p.mu.Unlock()
	defer func() {
		s.close()
		p.mu.Lock()
		delete(p.sessions, s)
		p.mu.Unlock()
	}()
	s.serve()
}

// hold enters a session's pair. If it came in a PROXY header and a live
// session has it already, that session is the same one, come round in a loop:
// then hold refuses.
func (p *Proxy) hold(k pair, fromHeader bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if fromHeader && p.pairs[k] > 0 {
		return false
	}
	p.pairs[k]++
	return true
}

func (p *Proxy) release(k pair) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pairs[k]--; p.pairs[k] <= 0 {
		delete(p.pairs, k)
	}
}

// enter counts a session that comes from a destination's address, while it is
// on its way to a destination: a mail system may well be a client of the proxy,
// but where the way is a loop these pile up. Nothing else shows a loop of
// proxies that announce nothing. No more than proxy_ttl are let in at one time.
func (p *Proxy) enter(s *session, key string) (leave func(), err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, ok := p.origins[s.via.Addr()]; !ok {
		return func() {}, nil
	}
	if p.returns[key] >= p.cfg.Server.ProxyTTL {
		return nil, &Loop{Why: fmt.Sprintf("%d sessions for one account come from %s, which is a destination", p.returns[key], s.via.Addr())}
	}
	p.returns[key]++
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.returns[key]--; p.returns[key] <= 0 {
			delete(p.returns, key)
		}
	}, nil
}

// remember notes an address that a destination has.
func (p *Proxy) remember(a netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.origins) < maxOrigins {
		p.origins[a.Unmap()] = struct{}{}
	}
}

// announces says whether a peer may be another proxy: it is trusted, or it is
// the address of a destination, from which a session comes back in a loop.
func (p *Proxy) announces(l *listener, peer netip.Addr) bool {
	if l.trusts(peer) {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.origins[peer]
	return ok
}

func (l *listener) trusts(peer netip.Addr) bool {
	for _, n := range l.Trusted {
		if n.Contains(peer) {
			return true
		}
	}
	return false
}

// ours says whether an address and port lead back to one of our listeners.
func (p *Proxy) ours(to netip.AddrPort) bool {
	for _, b := range p.bound {
		at := b.Addr
		if at.Port() != to.Port() {
			continue
		}
		if at.Addr().Unmap() == to.Addr().Unmap() {
			return true
		}
		if at.Addr().IsUnspecified() && ofThisHost(to.Addr()) {
			return true
		}
	}
	return false
}

// The levels of log lines.
const (
	levelOff = iota
	levelError
	levelWarn
	levelInfo
	levelDebug
)

func logLevels() map[string]int {
	return map[string]int{"off": levelOff, "error": levelError, "warn": levelWarn, "info": levelInfo, "debug": levelDebug, "trace": levelDebug}
}

func (p *Proxy) log(level int, format string, args ...any) {
	if p.opt.Log == nil || level > p.level {
		return
	}
	p.opt.Log(wire.Visible(fmt.Sprintf(format, args...)))
}
