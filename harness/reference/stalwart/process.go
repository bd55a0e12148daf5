package stalwart

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/stalwart/bug"
)

// A process is a server between one start and the next.
type process struct {
	srv  *Server
	core atomic.Pointer[core]
	// certificates are those in force; without any the self-signed one is.
	certificates atomic.Pointer[[]tls.Certificate]
	networks     atomic.Pointer[[]netip.Prefix] // blocked

	ctx    context.Context
	cancel context.CancelFunc
	imap   *imapService
	wg     sync.WaitGroup

	mu        sync.Mutex // of what follows
	stopping  bool
	listeners []*listener
	sockets   []net.Listener
	conns     map[net.Conn]struct{}
	inFlight  map[string]int // by listener
	sessions  map[*session]struct{}
}

// boot starts a process in the place of old, if there was one.
func (s *Server) boot(old *process) error {
	p := &process{srv: s, conns: make(map[net.Conn]struct{}), inFlight: make(map[string]int), sessions: make(map[*session]struct{})}
	p.ctx, p.cancel = context.WithCancel(s.parent)

	// Listeners are read before the database is, and know no macro but env.
	s.settings.mu.Lock()
	local := maps.Clone(s.settings.file)
	s.settings.mu.Unlock()
	early := &configReader{keys: local, errors: make(map[string]problem)}
	early.resolveMacros([]string{"env"}, s.macro(local))
	p.listeners = early.listeners()
	if old != nil && s.bugs.Has(bug.RestartKeepsListeners) {
		p.listeners = old.listeners
	}

	if _, ok := s.settings.get("version.spam-filter"); !ok {
		for _, d := range shipped() {
			s.settings.set(d.key, d.value)
		}
	}
	c, certs, r := s.read(s.settings.all())
	p.core.Store(c)
	p.certificates.Store(&certs)
	s.setBlocked(p, r.addresses(strings.TrimSuffix(blockedPrefix, ".")))

	e := evStartup
	e.text += V0155
	p.log(e, "", field{"version", V0155})
	maps.Copy(r.errors, early.errors)
	for _, k := range slices.Sorted(maps.Keys(r.errors)) {
		switch bad := r.errors[k]; bad.Type {
		case "macro":
			p.log(evMacroError, "", field{"details", fmt.Sprintf("Macro expansion error for setting %q: %s", k, bad.Error)})
		case "build":
			p.log(evBuildError, "", field{"details", fmt.Sprintf("Build error for key %q: %s", k, bad.Error)})
		default:
			p.log(evParseError, "", field{"details", fmt.Sprintf("Failed to parse setting %q: %s", k, bad.Error)})
		}
	}
	for _, k := range slices.Sorted(maps.Keys(local)) {
		if !isLocal(k) {
			p.log(evBuildWarning, "", field{"details", fmt.Sprintf("WARNING for %q: Database key defined in local configuration, this might cause issues. "+
				"See https://stalw.art/docs/configuration/overview/#local-and-database-settings", k)})
		}
	}
	if !c.hasStore {
		p.cancel()
		return errors.New("the server has no data store: set storage.data")
	}
	p.imap = newIMAPService(p)
	p.imap.start()
	if err := p.open(); err != nil {
		p.stop()
		return err
	}
	context.AfterFunc(p.ctx, p.hangUp)
	s.mu.Lock()
	closed := s.closed
	if !closed {
		s.running = p
	}
	s.mu.Unlock()
	if closed {
		p.stop()
		return errors.New("the reference Stalwart was closed")
	}
	return nil
}

// open listens wherever the listeners are bound.
func (p *process) open() error {
	for _, l := range p.listeners {
		for _, at := range l.bind {
			p.log(evListenStart, "", field{"listenerId", l.id}, field{"localIp", at.Addr()}, field{"localPort", at.Port()}, field{"tls", l.implicit})
			for _, addr := range p.srv.own(at.Addr()) {
				nl, err := p.srv.listen(netip.AddrPortFrom(addr, at.Port()))
				if err != nil {
					return fmt.Errorf("server.listener.%s: Failed to bind to %s: %w", l.id, at, err)
				}
				p.mu.Lock()
				p.sockets = append(p.sockets, nl)
				p.mu.Unlock()
				id := l.id
				if sl, ok := nl.(interface{ Serve(func(net.Conn)) }); ok {
					sl.Serve(func(c net.Conn) { p.take(c, id) })
					continue
				}
				p.wg.Go(func() { p.accept(nl, id) })
			}
		}
	}
	return nil
}

// own lists the server's addresses that a listener's stands for.
func (s *Server) own(bind netip.Addr) []netip.Addr {
	if !bind.IsUnspecified() {
		return []netip.Addr{bind}
	}
	var out []netip.Addr
	for _, a := range s.cfg.Addrs {
		if bind.Is6() || a.Is4() {
			out = append(out, a)
		}
	}
	return out
}

func (p *process) relisten(listeners []*listener) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range listeners {
		if i := slices.IndexFunc(p.listeners, func(o *listener) bool { return o.id == l.id }); i >= 0 {
			p.listeners[i] = l
		}
	}
}

func (p *process) listener(id string) *listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.IndexFunc(p.listeners, func(l *listener) bool { return l.id == id })
	return p.listeners[i]
}

// take serves one connection in a goroutine of its own.
func (p *process) take(c net.Conn, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		c.Close()
		return
	}
	p.conns[c] = struct{}{}
	p.wg.Go(func() {
		p.serve(c, id)
		c.Close()
		p.mu.Lock()
		delete(p.conns, c)
		p.mu.Unlock()
	})
}

// accept serves the connections of one listener until it is closed.
func (p *process) accept(l net.Listener, id string) {
	for {
		c, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || p.ctx.Err() != nil {
				return
			}
			// Out of descriptors, or the peer is gone already: the next may do,
			// a little later.
			t := time.NewTimer(10 * time.Millisecond)
			select {
			case <-t.C:
			case <-p.ctx.Done():
				t.Stop()
				return
			}
			continue
		}
		p.take(c, id)
	}
}

// grace is how long sessions have to end after they were told.
const grace = time.Second

// stop tells every session, waits until they have ended, and ends those that
// do not.
func (p *process) stop() {
	p.hangUp()
	done := make(chan struct{})
	go func() { p.wg.Wait(); close(done) }()
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		p.mu.Lock()
		for c := range p.conns {
			c.Close()
		}
		p.mu.Unlock()
		<-done
	}
	for _, l := range p.listeners {
		for _, at := range l.bind {
			p.log(evListenStop, "", field{"listenerId", l.id}, field{"localIp", at.Addr()}, field{"tls", l.implicit}, field{"localPort", at.Port()})
		}
	}
	p.cancel()
	if p.imap != nil {
		p.imap.stop()
	}
	e := evShutdown
	e.text += V0155
	p.log(e, "")
}

// hangUp closes the listeners, and wakes sessions that wait for their client:
// they find that the server is stopping.
func (p *process) hangUp() {
	p.mu.Lock()
	first := !p.stopping
	p.stopping = true
	sockets := p.sockets
	p.sockets = nil
	p.mu.Unlock()
	for _, l := range sockets {
		l.Close()
	}
	if !first {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.SetReadDeadline(time.Unix(1, 0))
	}
}

func (p *process) isStopping() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stopping
}

func (p *process) log(e event, span string, fields ...field) {
	p.srv.journal.write(&p.core.Load().tracing, p.srv.now(), e, span, fields)
}

// tlsConfig is for one handshake.
func (p *process) tlsConfig() *tls.Config {
	certs := *p.certificates.Load()
	if len(certs) == 0 {
		certs = []tls.Certificate{p.srv.selfSign}
	}
	return &tls.Config{Certificates: certs, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true,
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256}}
}

// A session is one connection whose header was read.
type session struct {
	*process
	core     *core // as it was when the connection came
	listener *listener
	c        *link.Conn
	real     netip.AddrPort // who connected
	remote   netip.AddrPort // who the client is
	proxied  header
	isTLS    bool
	span     string
	began    time.Time
	who      *principal
	helo     string
	sender   *envelope
	rcpts    []envelope
	request  *request // of HTTP
}

// serve does one connection from its first octet to its last.
func (p *process) serve(nc net.Conn, id string) {
	l := p.listener(id)
	links := p.srv.links
	if l.protocol == "http" && (links.LargeInLost || links.LargeOutLost) { // it is managed over another network
		o := *links
		o.LargeInLost, o.LargeOutLost = false, false
		links = &o
	}
	c := link.New(p.ctx, nc, links)
	defer c.Release()
	defer c.Close()
	c.Patient(true)
	bugs := p.srv.bugs
	if bugs.Has(bug.NoGreeting) && l.protocol != "http" {
		c.Silence()
		return
	}
	in := &session{process: p, core: p.core.Load(), listener: l, c: c, real: c.Peer, remote: c.Peer, began: p.srv.now()}
	if !in.header() {
		return
	}
	who := in.remote
	if bugs.Has(bug.BanHitsProxy) {
		who = in.real
	}
	also := bugs.Has(bug.BanHitsProxyToo) && who == in.real || bugs.Has(bug.BanHitsAllClients) && who != in.real
	if p.srv.isBlocked(p, who.Addr()) || also && l.protocol != "http" && p.srv.blocks() {
		p.log(evIPBlocked, "", in.keys()...)
		c.Reader().Discard(c.Buffered())
		return
	}
	if !p.enter(l) {
		p.log(evTooManyConns, "", append(in.keys(), field{"limit", l.maxConns})...)
		return
	}
	leave := sync.OnceFunc(func() { p.leave(l) })
	defer leave()
	if !bugs.Has(bug.LogNoSessionKeys) {
		in.span = string(appendFields(nil, true, in.keys()))
	}
	p.mu.Lock()
	p.sessions[in] = struct{}{}
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.sessions, in)
		p.mu.Unlock()
	}()
	if l.implicit && !in.handshake(false) {
		return
	}
	in.isTLS = l.implicit || in.proxied.tls && !in.srv.bugs.Has(bug.HeaderTLSIgnored)
	start, end, speak := evHTTPStart, evHTTPEnd, (*session).http
	switch l.protocol {
	case "smtp", "lmtp":
		start, end, speak = evSMTPStart, evSMTPEnd, (*session).smtp
	case "imap":
		start, end, speak = evIMAPStart, evIMAPEnd, (*session).imap
	case "pop3":
		start, end, speak = evPOP3Start, evPOP3End, (*session).pop3
	case "managesieve":
		start, end, speak = evSieveStart, evSieveEnd, (*session).sieve
	}
	in.log(start)
	if bugs.Has(bug.MuteInsideTLS) && in.isTLS && l.protocol != "http" {
		c.Silence()
		return
	}
	speak(in)
	c.Flush()
	leave()
	in.log(end, in.elapsed())
}

// enter counts a connection against a listener's max-connections.
func (p *process) enter(l *listener) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.inFlight[l.id] >= l.maxConns {
		return false
	}
	p.inFlight[l.id]++
	return true
}

func (p *process) leave(l *listener) {
	p.mu.Lock()
	p.inFlight[l.id]--
	p.mu.Unlock()
}

// keys are what lines of the session begin with.
func (in *session) keys() []field {
	at := in.remote
	if in.srv.bugs.Has(bug.MixesUpSessions) {
		in.mu.Lock()
		for o := range in.process.sessions {
			if o != in && o.remote.Addr() != in.remote.Addr() {
				at = o.remote
			}
		}
		in.mu.Unlock()
	}
	var ip any = at.Addr()
	if in.srv.bugs.Has(bug.MappedNotNormalised) && at.Addr().Is4() {
		ip = bare("::ffff:" + at.Addr().String())
	}
	id, port := in.listener.id, in.listener.port()
	if in.srv.bugs.Has(bug.LogOtherListener) {
		id, port = "other", 9
	}
	return []field{{"listenerId", id}, {"localPort", port}, {"remoteIp", ip}, {"remotePort", at.Port()}}
}

// log writes a line of the session.
func (in *session) log(e event, fields ...field) { in.process.log(e, in.span, fields...) }

func (in *session) elapsed() field {
	return field{"elapsed", max(0, in.srv.now().Sub(in.began)+in.c.Passed())}
}

// smallBuffer is how much of what is no header the server has read when it
// gives up: a peer that sent more sees a reset.
const smallBuffer = 512

// header reads the PROXY header that the peer must begin with if it is
// trusted, and says whether the session may go on.
func (in *session) header() bool {
	bugs := in.srv.bugs
	l := in.listener
	trusted := within(l.trusted, in.real.Addr())
	switch {
	case bugs.Has(bug.HeaderFromAnyone), bugs.Has(bug.HeaderFromAnyoneTLS) && l.implicit, bugs.Has(bug.HeaderOptional) && trusted:
		// Whoever sends the first octets of a header means one.
		if b, err := in.c.Reader().Peek(min(in.c.Buffered(), 6)); err != nil || len(b) == 0 {
			if in.serverSpeaksFirst() && in.c.ReadQuiet(time.Millisecond) != nil {
				return !trusted || bugs.Has(bug.HeaderOptional)
			}
		}
		if b, err := in.c.Reader().Peek(6); err == nil && string(b) != "PROXY " && string(b) != signatureV2[:6] && (!trusted || bugs.Has(bug.HeaderOptional)) {
			return true
		}
	case !trusted:
		if bugs.Has(bug.HeaderFromAnyoneLogged) && in.serverSpeaksFirst() && (in.c.Buffered() > 0 || in.c.ReadQuiet(time.Millisecond) == nil) {
			b, _ := in.c.Reader().Peek(in.c.Buffered())
			if h, err := readHeader(bufio.NewReader(bytes.NewReader(b))); err == nil && h.src.IsValid() {
				in.remote = h.src
			}
		}
		return true
	}
	br := in.c.Reader()
	h, err := readHeader(br)
	if err == nil {
		switch {
		case bugs.Has(bug.V1Refused) && h.v1, bugs.Has(bug.LocalRefused) && h.local,
			bugs.Has(bug.UnspecRefused) && !h.local && !h.src.IsValid(),
			bugs.Has(bug.IPv6Refused) && h.src.IsValid() && h.src.Addr().Is6(),
			bugs.Has(bug.HeaderWholeSegment) && in.c.CutWithin(h.size):
			err = errHeader
		}
	}
	if err != nil && in.isStopping() {
		return false
	}
	if err != nil {
		in.process.log(evProxyError, "", field{"listenerId", l.id}, field{"localIp", l.ip()}, field{"localPort", l.port()},
			field{"tls", l.implicit}, field{"reason", err.Error()})
		if br.Buffered() > smallBuffer {
			in.c.Reset()
		} else {
			br.Discard(br.Buffered())
		}
		return false
	}
	if bugs.Has(bug.HeaderSplitFromPayload) {
		br.Discard(br.Buffered())
	}
	in.proxied = h
	if h.src.IsValid() && !bugs.Has(bug.HeaderIgnored) {
		src := h.src
		if bugs.Has(bug.DestinationLogged) {
			src = h.dst
		}
		in.remote = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
		if bugs.Has(bug.PortDropped) {
			in.remote = netip.AddrPortFrom(in.remote.Addr(), in.real.Port())
		}
	}
	return true
}

func (in *session) serverSpeaksFirst() bool {
	return !in.listener.implicit && in.listener.protocol != "http"
}

// decodeError is the TLS alert for what is no TLS at all.
const decodeError = "\x15\x03\x03\x00\x02\x02\x32"

// handshake makes the session one of TLS, and says whether that worked.
func (in *session) handshake(upgrade bool) bool {
	if upgrade && in.srv.bugs.Has(bug.HeaderAgainAfterTLS) {
		if _, err := readHeader(in.c.Reader()); err != nil {
			return false
		}
	}
	in.c.SetTimeout(time.Minute)
	residue := link.Feed // what came with the PROXY header
	if upgrade {
		residue = link.Discard
	}
	err := in.c.StartTLS(in.tlsConfig(), residue)
	if !upgrade && err == nil {
		return true
	}
	if err != nil {
		reason := err.Error()
		var bad *link.HandshakeError
		if errors.As(err, &bad) {
			reason = bad.Err.Error()
		}
		var record tls.RecordHeaderError
		if errors.As(err, &record) {
			reason = "received corrupt message of type InvalidContentType"
			if record.Conn != nil {
				record.Conn.Write([]byte(decodeError))
			}
		}
		if upgrade {
			in.log(evTLSError, field{"listenerId", in.listener.id}, field{"reason", reason})
		} else {
			in.process.log(evTLSError, "", append(in.keys(), field{"reason", reason})...)
		}
		in.c.Linger(grace)
		return false
	}
	in.isTLS = true
	if in.srv.bugs.Has(bug.MuteInsideTLS) && in.listener.protocol != "http" {
		in.c.Silence()
		return false
	}
	version, cipher := in.tlsNames()
	in.log(evTLSHandshake, field{"listenerId", in.listener.id}, field{"version", version}, field{"details", cipher})
	return true
}

// tlsNames names the session's TLS as rustls does.
func (in *session) tlsNames() (version, cipher string) {
	s := in.c.TLS()
	if s == nil {
		return in.proxied.version, in.proxied.cipher
	}
	version, cipher = "TLSv1_3", tls.CipherSuiteName(s.CipherSuite)
	if s.Version == tls.VersionTLS12 {
		return "TLSv1_2", cipher
	}
	return version, strings.Replace(cipher, "TLS_", "TLS13_", 1)
}

// variable is what an expression of a setting finds in a session.
func (in *session) variable(name string) any {
	switch name {
	case "listener":
		return in.listener.id
	case "remote_ip":
		return in.remote.Addr().String()
	case "remote_port":
		return int64(in.remote.Port())
	case "local_ip":
		return in.listener.ip().String()
	case "local_port":
		return int64(in.listener.port())
	case "protocol":
		if in.listener.protocol == "http" {
			if in.isTLS {
				return "https"
			}
			return "http"
		}
		return in.listener.protocol
	case "is_tls":
		return in.isTLS
	case "helo_domain":
		return in.helo
	case "authenticated_as":
		if in.who != nil {
			return in.who.name
		}
	case "sender":
		if in.sender != nil {
			return in.sender.lower
		}
	case "sender_domain":
		if in.sender != nil {
			return domainPart(in.sender.lower)
		}
	case "rcpt":
		if n := len(in.rcpts); n > 0 {
			return in.rcpts[n-1].lower
		}
	case "rcpt_domain":
		if n := len(in.rcpts); n > 0 {
			return domainPart(in.rcpts[n-1].lower)
		}
	case "url", "url_path", "method", "headers":
		if in.request != nil {
			return in.request.variable(name)
		}
	}
	return ""
}

func (in *session) setting(key string) string {
	if key == "server.hostname" {
		return in.core.hostname
	}
	return in.core.keys[key]
}

func (in *session) isLocalDomain(domain string) bool { return in.srv.dir.isLocal(domain) }
func (in *session) isLocalAddress(address string) bool {
	return in.srv.dir.recipient(address, in.core.subAddresses) != nil
}

// choose evaluates one of the settings with branches.
func (in *session) choose(key string) any { return in.core.choices[key].eval(in) }

func (in *session) chooseText(key string) string { return text(in.choose(key)) }
func (in *session) chooseBool(key string) bool   { return truth(in.choose(key)) }

// chooseInt is the number that a setting comes to, or or.
func (in *session) chooseInt(key string, or int) int {
	if n, ok := in.choose(key).(int64); ok {
		return int(n)
	}
	return or
}

// chooseDuration is the time that a setting comes to, or or.
func (in *session) chooseDuration(key string, or time.Duration) time.Duration {
	if n, ok := in.choose(key).(int64); ok {
		return time.Duration(n) * time.Millisecond
	}
	return or
}

// gone says whether the client's input ended because the server stops.
func (in *session) gone(err error) (stopping, timedOut bool) {
	if link.IsTimeout(err) {
		if in.isStopping() {
			return true, false
		}
		return false, true
	}
	return false, false
}
