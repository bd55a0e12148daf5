package proxy

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"gotest.tools/v3/assert"
)

// At the end of the context clients that have not signed in are told goodbye,
// sign-ins and joined sessions go on, and what has not ended after the grace
// time is cut. Serve returns when nothing is left.
func TestShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := labConfig(ForwardXCLIENT, Implicit)
		cfg.Server.ShutdownGrace = 45 * time.Second
		cfg.Server.BackendTimeout = 10 * time.Second
		l := newLab(t, cfg)
		joinedSource := l.source(source4, IMAP, Implicit, ForwardXCLIENT, "")
		slowSource := l.source(source4, POP3, Implicit, ForwardXCLIENT, "slow")
		joined := l.signIn(client4, "imaps", "alice@example.org", "secret")
		joined.until("a1 OK")
		joined.raw.SetDeadline(time.Time{})
		joinedSource.mu.Lock()
		joinedSource.conns[0].raw.SetDeadline(time.Time{})
		joinedSource.mu.Unlock()
		signingIn := l.signIn(client4, "pop3s", "alice@example.org", "secret")
		signingIn.raw.SetDeadline(time.Time{})
		idle := map[string]*caller{"imap": nil, "pop3": nil, "submission": nil, "sieve": nil}
		for name := range idle {
			c := l.dial(client4, name)
			c.greeted(l.protocol(name))
			idle[name] = c
		}
		handshake := l.dial(client4, "imaps") // has not even begun
		synctest.Wait()

		begun := time.Now()
		ended := make(chan error, 1)
		go func() { ended <- l.stop() }()
		for name, want := range map[string]string{"imap": "* BYE closing", "pop3": "-ERR closing", "submission": "421 4.3.2 closing", "sieve": `BYE "closing"`} {
			idle[name].want(want)
			idle[name].end()
			idle[name].raw.Close()
		}
		handshake.end()
		handshake.raw.Close()
		_, err := l.net.Dial(t.Context(), client4, netip.AddrPortFrom(public4, 993))
		assert.Assert(t, errors.Is(err, syscall.ECONNREFUSED))
		assert.Equal(t, time.Since(begun), time.Duration(0))

		time.Sleep(5 * time.Second)
		close(slowSource.hold)
		signingIn.until("+OK Logged in.")
		signingIn.send("BYE\r\n")
		signingIn.want("bye")
		signingIn.conn.Close()
		time.Sleep(20 * time.Second)
		joined.send("still\r\n")
		joined.want("ECHO still")

		assert.NilError(t, <-ended)
		assert.Equal(t, time.Since(begun), 45*time.Second)
		io.ReadAll(joined.conn)
		joined.raw.Close()
		l.log.wait(t, "closing: 7 sessions have up to 45s to end")
		l.log.wait(t, "closing: 1 sessions were cut")
	})
}

// A dial that is under way when the grace ends is given up.
func TestShutdownWhileDialling(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := labConfig(ForwardXCLIENT, Implicit)
		cfg.Server.ShutdownGrace, cfg.Server.BackendTimeout = time.Second, time.Hour
		l := &lab{t: t, net: newLab(t, labConfigAt("none")).net, log: newLogbook()}
		opt := l.options(egress4, egress6)
		opt.Dial = func(ctx context.Context, _ netip.Addr, _ netip.AddrPort) (net.Conn, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		l.p, l.stop = l.serve(cfg, opt)
		c := l.signIn(client4, "imaps", "alice@example.org", "secret")
		synctest.Wait()
		begun := time.Now()
		assert.NilError(t, l.stop())
		assert.Equal(t, time.Since(begun), time.Second)
		c.raw.Close()
	})
}

func TestServeErrors(t *testing.T) {
	t.Run("an address is taken", func(t *testing.T) {
		l := newLab(t, labConfigAt("none"))
		cfg := labConfig(ForwardNone, Implicit)
		nl, err := l.net.Listen(netip.AddrPortFrom(public6, 4190))
		assert.NilError(t, err)
		defer nl.Close()
		p, err := New(cfg, l.options(egress4, egress6))
		assert.NilError(t, err)
		err = p.Serve(t.Context())
		assert.ErrorContains(t, err, "listener sieve: listen tcp [2001:db8:a::10]:4190: bind: address already in use")
		assert.Assert(t, p.Bound() == nil)
		select {
		case <-p.Ready():
			t.Fatal("it is not ready")
		default:
		}
		// What was bound before is free again.
		free, err := l.net.Listen(netip.AddrPortFrom(public4, 993))
		assert.NilError(t, err)
		free.Close()
		assert.Error(t, p.Serve(t.Context()), "proxy: served before")
	})
	t.Run("a listener fails", func(t *testing.T) {
		l := newLab(t, labConfigAt("none"))
		opt := l.options(egress4, egress6)
		listen := opt.Listen
		var first net.Listener
		opt.Listen = func(at netip.AddrPort) (net.Listener, error) {
			nl, err := listen(at)
			if first == nil {
				first = nl
			}
			return nl, err
		}
		p, err := New(labConfig(ForwardNone, Implicit), opt)
		assert.NilError(t, err)
		done := make(chan error, 1)
		go func() { done <- p.Serve(context.Background()) }()
		<-p.Ready()
		first.Close()
		assert.ErrorContains(t, <-done, "listener imap: accept")
	})
	t.Run("a listener has a bad moment", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			l := &lab{t: t, net: newLab(t, labConfigAt("none")).net, log: newLogbook()}
			opt := l.options(egress4, egress6)
			listen := opt.Listen
			opt.Listen = func(at netip.AddrPort) (net.Listener, error) {
				nl, err := listen(at)
				return &badMoment{Listener: nl, left: 5}, err
			}
			l.p, l.stop = l.serve(labConfig(ForwardNone, Implicit), opt)
			c := l.dial(client4, "imap")
			c.line()
			c.raw.Close()
			l.log.wait(t, "too many open files; trying again in 80ms")
		})
	})
	t.Run("configuration", func(t *testing.T) {
		_, err := New(&Config{}, Options{})
		assert.ErrorContains(t, err, "listener: at least one listener is needed")
		cfg := labConfig(ForwardNone, Plain)
		cfg.Destinations[0].AllowPlaintext = false
		_, err = New(cfg, Options{})
		assert.ErrorContains(t, err, "destination.legacy.protocol.imap.tls: \"plain\" would send credentials in clear text")
	})
}

// badMoment fails a few times as a process without free descriptors does.
type badMoment struct {
	net.Listener
	mu   sync.Mutex
	left int
}

func (b *badMoment) Accept() (net.Conn, error) {
	b.mu.Lock()
	b.left--
	bad := b.left >= 0
	b.mu.Unlock()
	if bad {
		return nil, &net.OpError{Op: "accept", Net: "tcp", Err: os.NewSyscallError("accept4", syscall.EMFILE)}
	}
	return b.Listener.Accept()
}

// Every address that a name has is tried, in order, and source_ips take turns
// in the family of the destination.
func TestDestinationAddresses(t *testing.T) {
	cfg := labConfig(ForwardNone, Implicit)
	cfg.Destinations[0].Host = "source.example.org"
	cfg.Destinations[0].SourceIPs = []netip.Addr{netip.MustParseAddr("192.0.2.3"), egress6, netip.MustParseAddr("192.0.2.4")}
	l := &lab{t: t, net: newLab(t, labConfigAt("none")).net, log: newLogbook()}
	opt := l.options(egress4, egress6)
	opt.Resolve = resolver(map[string][]netip.Addr{"source.example.org": {netip.MustParseAddr("2001:db8:b::10"), source4}})
	l.p, l.stop = l.serve(cfg, opt)
	s := l.source(source4, IMAP, Implicit, ForwardNone, "")
	for range 3 {
		c := l.signIn(client4, "imaps", "alice@example.org", "secret")
		c.until("a1 OK")
		c.conn.Close()
	}
	var from []string
	s.mu.Lock()
	for _, c := range s.conns {
		from = append(from, c.raw.RemoteAddr().(*net.TCPAddr).IP.String())
	}
	s.mu.Unlock()
	assert.DeepEqual(t, from, []string{"192.0.2.3", "192.0.2.4", "192.0.2.3"})

	cfg.Destinations[0].Host = "gone.example.org"
	assert.NilError(t, l.stop())
	l.p, l.stop = l.serve(cfg, opt)
	c := l.signIn(client4, "imaps", "alice@example.org", "secret")
	c.want(unavailableReply(IMAP))
	l.log.wait(t, `destination legacy: no such host "gone.example.org"`)
}

func TestMappingFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "mappings.tsv")
	load := func(text string) (*Proxy, error) {
		assert.NilError(t, os.WriteFile(file, []byte(text), 0o600))
		cfg := labConfig(ForwardNone, Implicit)
		cfg.Mapping = Mapping{Lowercase: true, File: file}
		return New(cfg, Options{})
	}
	p, err := load("# identifier  destination\n\n Alice@Example.org\tnew\r\nbob   legacy\nbob legacy\n\xe4lice new")
	assert.NilError(t, err)
	for login, want := range map[string]string{"alice@example.org": "new", "ALICE@EXAMPLE.ORG%adm": "new", "alice": "legacy", "bob": "legacy", "\xe4LICE": "new"} {
		assert.Equal(t, p.router.route(login).Name, want, "%q", login)
	}
	_, err = load("alice new\nbob nowhere\ncarol\ndave new old\nalice legacy\n")
	assert.ErrorContains(t, err, file+`:2: "nowhere" is not a destination; declared: legacy, mx, new`)
	assert.ErrorContains(t, err, file+":3: a line must be an identifier and a destination; this one has 1 words")
	assert.ErrorContains(t, err, file+":4: ")
	assert.ErrorContains(t, err, file+`:5: "alice" is sent to "legacy" here and to "new" in line 1`)
	_, err = load("alice new\n" + strings.Repeat("x", 2*maxMappingLine+4096) + "\n")
	assert.ErrorContains(t, err, file+":2: command too long")
	cfg := labConfig(ForwardNone, Implicit)
	cfg.Mapping = Mapping{File: "/nowhere/mappings"}
	_, err = New(cfg, Options{})
	assert.ErrorContains(t, err, "mapping file: open /nowhere/mappings")
}

// writeConfig writes a configuration for real sockets on the loopback
// interface, with the certificate of the tests.
func writeConfig(t *testing.T, text string) string {
	t.Helper()
	dir := t.TempDir()
	cert := pki().public
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	assert.NilError(t, err)
	for name, block := range map[string]*pem.Block{
		"cert.pem": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		"key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		assert.NilError(t, os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600))
	}
	file := filepath.Join(dir, "proxy.toml")
	assert.NilError(t, os.WriteFile(file, []byte(text), 0o600))
	return file
}

// freePort finds a port that is free in both families, below those that the
// system gives to outgoing connections.
func freePort(t *testing.T) uint16 {
	t.Helper()
	for range 100 {
		port := 20000 + rand.IntN(10000)
		nl, err := net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		if err == nil {
			nl.Close()
			return uint16(port)
		}
	}
	t.Fatal("no port between 20000 and 30000 is free")
	return 0
}

// The proxy as a command, on real sockets: I-35, one port on 0.0.0.0 and [::]
// serves both families, and so does one on [::] alone, where the address of an
// IPv4 client is plain IPv4.
func TestRealSockets(t *testing.T) {
	nl, err := net.Listen("tcp4", "127.0.0.1:0")
	assert.NilError(t, err)
	s := startSource(t, nl, IMAP, STARTTLS, ForwardXCLIENT, "")
	both, dual := freePort(t), freePort(t)
	pin := pki().innerSHA256
	file := writeConfig(t, fmt.Sprintf(`
[server]
shutdown_grace = "5s"
log_level = "debug"
[tls.certificate.default]
cert = "cert.pem"
key = "key.pem"
[routing]
default_destination = "legacy"
[destination.legacy]
host = "127.0.0.1"
tls_server_name = "source.example.org"
tls_pinned_cert_sha256 = "%x"
forwarding = "xclient"
[destination.legacy.protocol.imap]
port = %d
tls = "starttls"
[listener.both]
protocol = "imap"
bind = ["0.0.0.0:%d", "[::]:%d"]
tls = "implicit"
[listener.dual]
protocol = "imap"
bind = ["[::]:%d"]
tls = "implicit"
`, pin, nl.Addr().(*net.TCPAddr).Port, both, both, dual))
	log := newLogbook()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- RunFile(ctx, file, lineWriter{log}) }()
	log.wait(t, "listener dual: ")
	n := 0
	for _, to := range []netip.AddrPort{
		netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), both), netip.AddrPortFrom(netip.IPv6Loopback(), both),
		netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), dual), netip.AddrPortFrom(netip.IPv6Loopback(), dual),
	} {
		nc, err := net.Dial("tcp", to.String())
		assert.NilError(t, err)
		c := newCaller(t, nc)
		c.startTLS()
		c.line()
		c.send(plainCommand(IMAP, "alice@example.org", "secret"))
		c.until("a1 OK")
		if n == 3 { // a reset goes through real sockets too
			c.send("RESET NOT\r\n")
			c.want("ECHO RESET NOT")
			c.raw.(*net.TCPConn).SetLinger(0)
			c.raw.Close()
		} else {
			c.send("BYE\r\n")
			c.want("bye")
			c.end()
			c.conn.Close()
		}
		s.mu.Lock()
		conn := s.conns[n]
		for !conn.over {
			s.cond.Wait()
		}
		got, ended := conn.got.String(), conn.err
		s.mu.Unlock()
		n++
		src := c.local()
		want := fmt.Sprintf(`F1 ID ("x-originating-ip" "%s" "x-originating-port" "%d" "x-connected-ip" "%s" "x-connected-port" "%d" "x-proxy-ttl" "6" `, src.Addr(), src.Port(), to.Addr(), to.Port())
		assert.Assert(t, strings.Contains(got, want), "%q has no %q", got, want)
		if n == 4 {
			assert.Assert(t, errors.Is(ended, syscall.ECONNRESET), "%v", ended)
		}
	}
	cancel()
	assert.NilError(t, <-done)
	log.wait(t, "every session is over")
	assert.Assert(t, !strings.Contains(log.String(), "secret"))
}

// lineWriter hands whole lines to a logbook.
type lineWriter struct{ l *logbook }

func (w lineWriter) Write(b []byte) (int, error) {
	w.l.add(strings.TrimSuffix(string(b), "\n"))
	return len(b), nil
}

// An address of a real socket that is taken is an error that names it.
func TestRunFileErrors(t *testing.T) {
	nl, err := net.Listen("tcp4", "127.0.0.1:0")
	assert.NilError(t, err)
	defer nl.Close()
	file := writeConfig(t, fmt.Sprintf(`
[routing]
smtp_passthrough_destination = "mx"
[destination.mx]
host = "192.0.2.1"
protocol.smtp = { port = 25, tls = "plain" }
[listener.smtp]
protocol = "smtp"
bind = ["%s"]
tls = "plain"
`, nl.Addr()))
	err = RunFile(t.Context(), file, io.Discard)
	assert.ErrorContains(t, err, fmt.Sprintf("listener smtp: listen tcp4 %s: bind: address already in use", nl.Addr()))
	assert.ErrorContains(t, RunFile(t.Context(), "/nowhere/proxy.toml", io.Discard), "proxy configuration: open /nowhere/proxy.toml")
	assert.ErrorContains(t, RunFile(t.Context(), writeConfig(t, "[admin]\n"), io.Discard), "admin: this key of the proxy's format is not implemented")
	assert.ErrorContains(t, RunFile(t.Context(), t.TempDir(), io.Discard), "is a directory")
}
