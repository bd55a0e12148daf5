package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mailproof/mailproof/harness/reference/memnet"
	"go.uber.org/goleak"
	"gotest.tools/v3/assert"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The addresses of the tests: all different, as the rig of the docker lab has them.
var (
	client4 = netip.MustParseAddr("203.0.113.7")
	client6 = netip.MustParseAddr("2001:db8:c::7")
	public4 = netip.MustParseAddr("198.51.100.10")
	public6 = netip.MustParseAddr("2001:db8:a::10")
	egress4 = netip.MustParseAddr("192.0.2.2")
	egress6 = netip.MustParseAddr("2001:db8:b::2")
	source4 = netip.MustParseAddr("192.0.2.10")
	other4  = netip.MustParseAddr("192.0.2.11")
)

func mapped(a netip.Addr) netip.Addr { return netip.AddrFrom16(a.As16()) }

// certificates of the tests, made once

type testPKI struct {
	roots         *x509.CertPool
	public, inner tls.Certificate
	innerSHA256   [32]byte
}

var pki = sync.OnceValue(func() *testPKI {
	must := func(err error) {
		if err != nil {
			panic(err)
		}
	}
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		// The clock of testing/synctest begins in 2000.
		NotBefore: time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(err)
	ca, err = x509.ParseCertificate(caDER)
	must(err)
	issue := func(serial int64, names ...string) tls.Certificate {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		must(err)
		leaf := &x509.Certificate{SerialNumber: big.NewInt(serial), DNSNames: names, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
		must(err)
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	p := &testPKI{roots: x509.NewCertPool(), public: issue(2, "mail.example.org"), inner: issue(3, "source.example.org")}
	p.roots.AddCert(ca)
	p.innerSHA256 = sha256.Sum256(p.inner.Certificate[0])
	return p
})

// A logbook keeps the proxy's log and can wait for a line.
type logbook struct {
	mu    sync.Mutex
	cond  *sync.Cond
	lines []string
}

func newLogbook() *logbook {
	l := &logbook{}
	l.cond = sync.NewCond(&l.mu)
	return l
}

func (l *logbook) add(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	l.cond.Broadcast()
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// wait waits for a line that holds a text; it fails the test after a while.
func (l *logbook) wait(t *testing.T, text string) string {
	t.Helper()
	over := false
	timer := time.AfterFunc(10*time.Second, func() {
		l.mu.Lock()
		over = true
		l.cond.Broadcast()
		l.mu.Unlock()
	})
	defer timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := 0; ; {
		for ; i < len(l.lines); i++ {
			if strings.Contains(l.lines[i], text) {
				return l.lines[i]
			}
		}
		if over {
			t.Fatalf("no log line holds %q:\n%s", text, strings.Join(l.lines, "\n"))
		}
		l.cond.Wait()
	}
}

// A lab is a network with one proxy on it.
type lab struct {
	t    *testing.T
	net  *memnet.Network
	log  *logbook
	p    *Proxy
	stop func() error // ends the proxy and returns what Serve returned
}

// protocols of the tests, with their public and inner ports

var publicPorts = map[string]uint16{
	"imap": 143, "imaps": 993, "pop3": 110, "pop3s": 995, "submission": 587, "submissions": 465, "sieve": 4190, "sieves": 5190, "smtp": 25,
}

func innerPort(p Protocol, m TLSMode) uint16 {
	ports := map[Protocol][3]uint16{IMAP: {993, 143, 10143}, POP3: {995, 110, 10110}, Submission: {465, 587, 10587}, ManageSieve: {5190, 4190, 14190}, SMTP: {10465, 0, 25}}
	switch m {
	case Implicit:
		return ports[p][0]
	case STARTTLS:
		return ports[p][1]
	}
	return ports[p][2]
}

// labConfig is a configuration with all listeners and one source at source4.
func labConfig(f Forwarding, m TLSMode) *Config {
	c := &Config{
		Server:       Server{Hostname: "mail.example.org", LogLevel: "debug", BackendTimeout: 5 * time.Second, ShutdownGrace: 5 * time.Second},
		Certificates: []Certificate{{Name: "public", Loaded: &pki().public}},
		Routing:      Routing{Default: "legacy", PassThrough: "mx"},
		Mapping:      Mapping{Lowercase: true, Inline: map[string]string{"moved@example.org": "new"}},
	}
	for _, l := range []struct {
		name string
		p    Protocol
		m    TLSMode
	}{
		{"imap", IMAP, STARTTLS}, {"imaps", IMAP, Implicit}, {"pop3", POP3, STARTTLS}, {"pop3s", POP3, Implicit},
		{"submission", Submission, STARTTLS}, {"submissions", Submission, Implicit}, {"sieve", ManageSieve, STARTTLS}, {"sieves", ManageSieve, Implicit},
		{"smtp", SMTP, Plain},
	} {
		port := publicPorts[l.name]
		c.Listeners = append(c.Listeners, Listener{Name: l.name, Protocol: l.p, TLS: l.m, Binds: []netip.AddrPort{
			netip.AddrPortFrom(public4, port), netip.AddrPortFrom(public6, port), netip.AddrPortFrom(mapped(public4), port)}})
	}
	for _, d := range []struct {
		name string
		host netip.Addr
	}{{"legacy", source4}, {"new", other4}} {
		dest := Destination{Name: d.name, Host: d.host.String(), ServerName: "source.example.org", Forwarding: f, Endpoints: map[Protocol]Endpoint{}, AllowPlaintext: m == Plain}
		for _, p := range []Protocol{IMAP, POP3, Submission, ManageSieve} {
			dest.Endpoints[p] = Endpoint{Port: innerPort(p, m), TLS: m}
		}
		c.Destinations = append(c.Destinations, dest)
	}
	c.Destinations = append(c.Destinations, Destination{Name: "mx", Host: other4.String(), ServerName: "source.example.org", Forwarding: ForwardPROXY,
		Endpoints: map[Protocol]Endpoint{SMTP: {Port: 25, TLS: Plain}}})
	return c
}

// newLab serves a configuration.
func newLab(t *testing.T, c *Config) *lab {
	t.Helper()
	l := &lab{t: t, net: memnet.New(), log: newLogbook()}
	l.start(c)
	return l
}

func (l *lab) options(egress4, egress6 netip.Addr) Options {
	return Options{
		Listen: func(at netip.AddrPort) (net.Listener, error) {
			nl, err := l.net.Listen(at)
			if err != nil {
				return nil, err
			}
			return nl, nil
		},
		Dial: func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
			if !from.IsValid() {
				from = egress4
				if to.Addr().Is6() {
					from = egress6
				}
			}
			c, err := l.net.Dial(ctx, from, to)
			if err != nil {
				return nil, err
			}
			return c, nil
		},
		Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
			return nil, fmt.Errorf("no such host %q", host)
		},
		Roots: pki().roots,
		Log:   l.log.add,
	}
}

func (l *lab) start(c *Config) *Proxy {
	l.t.Helper()
	p, stop := l.serve(c, l.options(egress4, egress6))
	l.p, l.stop = p, stop
	return p
}

func (l *lab) serve(c *Config, opt Options) (*Proxy, func() error) {
	l.t.Helper()
	p, err := New(c, opt)
	assert.NilError(l.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Serve(ctx) }()
	select {
	case <-p.Ready():
	case err := <-done:
		cancel()
		l.t.Fatalf("Serve: %v", err)
	}
	stop := sync.OnceValue(func() error {
		cancel()
		return <-done
	})
	l.t.Cleanup(func() {
		if err := stop(); err != nil {
			l.t.Errorf("Serve: %v", err)
		}
		if l.t.Failed() {
			l.t.Logf("log of the proxy:\n%s", l.log)
		}
	})
	return p, stop
}

// A caller is a client of the proxy, or anything else that speaks by lines.
type caller struct {
	t    *testing.T
	raw  net.Conn
	conn net.Conn
	br   *bufio.Reader
}

func newCaller(t *testing.T, nc net.Conn) *caller {
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	t.Cleanup(func() { nc.Close() })
	return &caller{t: t, raw: nc, conn: nc, br: bufio.NewReader(nc)}
}

// dial connects to a public port of the proxy, in clear text.
func (l *lab) dial(from netip.Addr, name string) *caller {
	l.t.Helper()
	to := public4
	switch {
	case from.Is4In6():
		to = mapped(public4)
	case from.Is6():
		to = public6
	}
	nc, err := l.net.Dial(context.Background(), from, netip.AddrPortFrom(to, publicPorts[name]))
	assert.NilError(l.t, err)
	return newCaller(l.t, nc)
}

// call connects to a public port; implicit TLS is begun.
func (l *lab) call(from netip.Addr, name string) *caller {
	l.t.Helper()
	c := l.dial(from, name)
	if strings.HasSuffix(name, "s") {
		c.startTLS()
	}
	return c
}

func (c *caller) local() netip.AddrPort { return c.raw.LocalAddr().(*net.TCPAddr).AddrPort() }

func (c *caller) startTLS() {
	c.t.Helper()
	t := tls.Client(c.raw, &tls.Config{RootCAs: pki().roots, ServerName: "mail.example.org"})
	assert.NilError(c.t, t.Handshake())
	c.conn = t
	c.br.Reset(t)
}

func (c *caller) send(text string) {
	c.t.Helper()
	_, err := io.WriteString(c.conn, text)
	assert.NilError(c.t, err)
}

func (c *caller) line() string {
	c.t.Helper()
	l, err := c.br.ReadString('\n')
	assert.NilError(c.t, err, "read %q", l)
	assert.Assert(c.t, strings.HasSuffix(l, "\r\n"), "%q", l)
	return l[:len(l)-2]
}

// until reads lines up to one that begins with a text, and returns them.
func (c *caller) until(prefix string) string {
	c.t.Helper()
	var all []string
	for range 200 {
		l := c.line()
		all = append(all, l)
		if strings.HasPrefix(l, prefix) {
			return strings.Join(all, "\n")
		}
	}
	c.t.Fatalf("no line %q in:\n%s", prefix, strings.Join(all, "\n"))
	return ""
}

func (c *caller) want(line string) {
	c.t.Helper()
	assert.Equal(c.t, c.line(), line)
}

// end wants the connection to end with nothing more on it.
func (c *caller) end() {
	c.t.Helper()
	rest, err := io.ReadAll(c.br)
	assert.Equal(c.t, string(rest), "")
	assert.NilError(c.t, err)
}

// greeted reads the greeting of a protocol.
func (c *caller) greeted(p Protocol) string {
	c.t.Helper()
	switch p {
	case ManageSieve:
		return c.until("OK ")
	}
	return c.line()
}

// upgrade reads the greeting of a STARTTLS port, and what follows up to where
// the client may sign in.
func (c *caller) upgrade(p Protocol) {
	c.t.Helper()
	c.greeted(p)
	switch p {
	case IMAP:
		c.send("t STARTTLS\r\n")
		c.until("t OK")
	case POP3:
		c.send("STLS\r\n")
		c.until("+OK")
	case Submission:
		c.send("EHLO first.test\r\n")
		c.until("250 ")
		c.send("STARTTLS\r\n")
		c.until("220 ")
	case ManageSieve:
		c.send("STARTTLS\r\n")
		c.until("OK ")
	}
	c.startTLS()
	if p == ManageSieve {
		c.until("OK ")
	}
}

// signIn calls a port by its name, encrypts and sends PLAIN credentials; the
// reply is not read.
func (l *lab) signIn(from netip.Addr, name, user, pass string) *caller {
	l.t.Helper()
	c := l.call(from, name)
	p := l.protocol(name)
	if strings.HasSuffix(name, "s") {
		c.greeted(p)
	} else {
		c.upgrade(p)
	}
	if p == Submission {
		c.send("EHLO laptop.test\r\n")
		c.until("250 ")
	}
	c.send(plainCommand(p, user, pass))
	return c
}

func (l *lab) protocol(name string) Protocol {
	for _, ln := range l.p.cfg.Listeners {
		if ln.Name == name {
			return ln.Protocol
		}
	}
	l.t.Fatalf("no listener %q", name)
	return ""
}

func plainResponse(user, pass string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + pass))
}

// plainCommand signs in with PLAIN and an initial response.
func plainCommand(p Protocol, user, pass string) string {
	ir := plainResponse(user, pass)
	switch p {
	case IMAP:
		return "a1 AUTHENTICATE PLAIN " + ir + "\r\n"
	case ManageSieve:
		return `AUTHENTICATE "PLAIN" "` + ir + "\"\r\n"
	}
	return "AUTH PLAIN " + ir + "\r\n"
}

// success is how a source's positive verdict begins in a protocol.
func success(p Protocol) string {
	return map[Protocol]string{IMAP: "a1 OK", POP3: "+OK", Submission: "235", ManageSieve: "OK"}[p]
}

// unavailableReply is the temporary failure of a protocol.
func unavailableReply(p Protocol) string {
	return map[Protocol]string{IMAP: "a1 NO [UNAVAILABLE] backend unavailable", POP3: "-ERR backend unavailable",
		Submission: "421 4.3.0 backend unavailable", ManageSieve: `NO "backend unavailable"`}[p]
}

// A fakeSource answers as a recorded source does, and records every octet that
// reaches it: clear text first, then "[TLS]" and what came inside.
type fakeSource struct {
	t      *testing.T
	p      Protocol
	m      TLSMode
	header bool // a PROXY header comes first
	fault  string
	hold   chan struct{} // fault "slow": the verdict waits for it

	nl    net.Listener
	wg    sync.WaitGroup
	mu    sync.Mutex
	cond  *sync.Cond
	conns []*sourceConn
}

// A sourceConn is one connection to a fake source.
type sourceConn struct {
	raw  net.Conn
	conn net.Conn
	br   *bufio.Reader
	mu   *sync.Mutex
	cond *sync.Cond
	got  bytes.Buffer
	over bool
	err  error // how reading ended
}

// source starts a fake source on the port that labConfig has for it.
func (l *lab) source(at netip.Addr, p Protocol, m TLSMode, f Forwarding, fault string) *fakeSource {
	l.t.Helper()
	nl, err := l.net.Listen(netip.AddrPortFrom(at, innerPort(p, m)))
	assert.NilError(l.t, err)
	return startSource(l.t, nl, p, m, f, fault)
}

func startSource(t *testing.T, nl net.Listener, p Protocol, m TLSMode, f Forwarding, fault string) *fakeSource {
	s := &fakeSource{t: t, p: p, m: m, header: f == ForwardPROXY, fault: fault, nl: nl, hold: make(chan struct{})}
	s.cond = sync.NewCond(&s.mu)
	s.wg.Go(func() {
		for {
			nc, err := nl.Accept()
			if err != nil {
				return
			}
			c := &sourceConn{raw: nc, conn: nc, mu: &s.mu, cond: s.cond}
			s.mu.Lock()
			s.conns = append(s.conns, c)
			s.mu.Unlock()
			s.wg.Go(func() { s.serve(c) })
		}
	})
	t.Cleanup(s.close)
	return s
}

func (s *fakeSource) close() {
	s.nl.Close()
	s.mu.Lock()
	for _, c := range s.conns {
		c.raw.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// dials is how many connections came.
func (s *fakeSource) dials() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// waitFor waits until a condition holds for the only connection.
func (s *fakeSource) waitFor(what string, ok func(c *sourceConn) bool) *sourceConn {
	s.t.Helper()
	over := false
	timer := time.AfterFunc(10*time.Second, func() {
		s.mu.Lock()
		over = true
		s.cond.Broadcast()
		s.mu.Unlock()
	})
	defer timer.Stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		if len(s.conns) == 1 && ok(s.conns[0]) {
			return s.conns[0]
		}
		if over {
			got := ""
			for _, c := range s.conns {
				got += fmt.Sprintf("\n%q", c.got.String())
			}
			s.t.Fatalf("%s did not happen; the source got%s", what, got)
		}
		s.cond.Wait()
	}
}

// received waits until the connection is over and returns all it got.
func (s *fakeSource) received() string {
	s.t.Helper()
	c := s.waitFor("the end of the connection", func(c *sourceConn) bool { return c.over })
	s.mu.Lock()
	defer s.mu.Unlock()
	return c.got.String()
}

// so far returns what the only connection got until now.
func (s *fakeSource) soFar() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) == 0 {
		return ""
	}
	return s.conns[0].got.String()
}

// Read records what is read.
func (c *sourceConn) Read(b []byte) (int, error) {
	n, err := c.conn.Read(b)
	c.mu.Lock()
	c.got.Write(b[:n])
	c.cond.Broadcast()
	c.mu.Unlock()
	return n, err
}

func (c *sourceConn) say(text string) { io.WriteString(c.conn, text) }

func (c *sourceConn) line() (string, error) {
	l, err := c.br.ReadString('\n')
	if err != nil {
		return "", err
	}
	return strings.TrimSuffix(l, "\r\n"), nil
}

func (c *sourceConn) startTLS() error {
	t := tls.Server(c.raw, &tls.Config{Certificates: []tls.Certificate{pki().inner}})
	if err := t.Handshake(); err != nil {
		return err
	}
	c.conn = t
	c.mu.Lock()
	c.got.WriteString("[TLS]")
	c.mu.Unlock()
	c.br.Reset(c)
	return nil
}

func (s *fakeSource) serve(c *sourceConn) {
	defer func() {
		c.raw.Close()
		s.mu.Lock()
		c.over = true
		s.cond.Broadcast()
		s.mu.Unlock()
	}()
	c.raw.SetDeadline(time.Now().Add(20 * time.Second))
	if s.header { // read to its octet: what follows may be TLS
		var head [16]byte
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return
		}
		if _, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(head[14:]))); err != nil {
			return
		}
	}
	c.br = bufio.NewReader(c)
	if s.m == Implicit {
		if err := c.startTLS(); err != nil {
			c.err = err
			return
		}
	}
	switch s.p {
	case IMAP:
		s.imap(c)
	case POP3:
		s.pop3(c)
	case Submission:
		s.submission(c)
	case ManageSieve:
		s.sieve(c)
	}
}

// is says whether the source has a fault.
func (s *fakeSource) is(fault string) bool { return s.fault == fault }

// after joins: the source echoes lines in capitals until it is told to end.
func (s *fakeSource) joined(c *sourceConn) {
	for {
		l, err := c.line()
		if err != nil {
			s.mu.Lock()
			c.err = err
			s.mu.Unlock()
			return
		}
		switch l {
		case "HALF": // our direction ends, theirs goes on
			c.say("half\r\n")
			if t, ok := c.conn.(*tls.Conn); ok {
				t.CloseWrite()
			}
			c.raw.(interface{ CloseWrite() error }).CloseWrite()
			continue
		case "RESET":
			c.raw.(interface{ Reset() error }).Reset()
			return
		case "BYE":
			c.say("bye\r\n")
			return
		}
		c.say("ECHO " + l + "\r\n")
	}
}

// verdict waits where the fault says so.
func (s *fakeSource) verdict() {
	if s.is("slow") {
		<-s.hold
	}
}

func (s *fakeSource) imap(c *sourceConn) {
	caps := "IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+"
	if s.m == STARTTLS && !s.is("no starttls") {
		caps += " STARTTLS"
	}
	if s.is("no announcement") {
		caps = strings.Replace(caps, " ID", "", 1)
	}
	greeting := "* OK [CAPABILITY " + caps + " AUTH=PLAIN] Dovecot (Debian) ready.\r\n"
	switch {
	case s.is("bye"):
		greeting = "* BYE too many connections\r\n"
	case s.is("no code"):
		greeting = "* OK ready.\r\n"
	}
	c.say(greeting)
	for {
		l, err := c.line()
		if err != nil {
			return
		}
		tag, rest, _ := strings.Cut(l, " ")
		word, _, _ := strings.Cut(rest, " ")
		switch word {
		case "CAPABILITY":
			c.say("* CAPABILITY " + caps + "\r\n" + tag + " OK done\r\n")
		case "STARTTLS":
			if s.is("starttls refused") {
				c.say(tag + " NO not now\r\n")
				continue
			}
			residue := ""
			if s.is("residue") {
				residue = "* CAPABILITY IMAP4rev1 ID\r\n"
			}
			c.say(tag + " OK Begin TLS negotiation now.\r\n" + residue)
			if err := c.startTLS(); err != nil {
				return
			}
		case "ID":
			switch {
			case s.is("announcement refused"):
				c.say(tag + " BAD Invalid ID parameters\r\n")
			case s.is("silent"):
			default:
				c.say("* ID (\"name\" \"Dovecot\")\r\n" + tag + " OK ID completed.\r\n")
			}
		case "AUTHENTICATE":
			s.verdict()
			switch {
			case s.is("rejects"):
				c.say(tag + " NO [AUTHENTICATIONFAILED] Authentication failed (source words).\r\n")
			case s.is("challenge"):
				c.say("+ \r\n")
				if l, _ := c.line(); l != "*" {
					return
				}
				c.say(tag + " BAD aborted\r\n")
			case s.is("closes"):
				return
			default:
				c.say("* CAPABILITY IMAP4rev1 UNSELECT\r\n" + tag + " OK [CAPABILITY IMAP4rev1 UNSELECT] Logged in\r\n")
				s.joined(c)
				return
			}
		default:
			c.say(tag + " BAD what?\r\n")
		}
	}
}

func (s *fakeSource) pop3(c *sourceConn) {
	offer := "[XCLIENT] "
	if s.is("no announcement") {
		offer = ""
	}
	if s.is("bye") {
		c.say("-ERR [SYS/TEMP] busy\r\n")
		return
	}
	c.say("+OK " + offer + "Dovecot (Debian) ready.\r\n")
	for {
		l, err := c.line()
		if err != nil {
			return
		}
		word, _, _ := strings.Cut(l, " ")
		switch word {
		case "CAPA":
			stls := "STLS\r\n"
			if s.is("no starttls") {
				stls = ""
			}
			c.say("+OK\r\nCAPA\r\nTOP\r\n" + stls + "SASL PLAIN\r\n.\r\n")
		case "STLS":
			if s.is("starttls refused") {
				c.say("-ERR not now\r\n")
				continue
			}
			residue := ""
			if s.is("residue") {
				residue = "+OK Updated\r\n"
			}
			c.say("+OK Begin TLS negotiation now.\r\n" + residue)
			if err := c.startTLS(); err != nil {
				return
			}
		case "XCLIENT":
			switch {
			case s.is("announcement refused"):
				c.say("+OK You are not from trusted IP - ignoring\r\n")
			case s.is("silent"):
			default:
				c.say("+OK Updated\r\n")
			}
		case "AUTH":
			s.verdict()
			switch {
			case s.is("rejects"):
				c.say("-ERR [AUTH] Authentication failed (source words).\r\n")
			case s.is("challenge"):
				c.say("+ \r\n")
				if l, _ := c.line(); l != "*" {
					return
				}
				c.say("-ERR aborted\r\n")
			case s.is("closes"):
				return
			default:
				c.say("+OK Logged in.\r\n")
				s.joined(c)
				return
			}
		default:
			c.say("-ERR what?\r\n")
		}
	}
}

func (s *fakeSource) submission(c *sourceConn) {
	if s.is("bye") {
		c.say("421 4.3.2 busy\r\n")
		return
	}
	c.say("220 source.example.org ESMTP Postfix\r\n")
	secure := s.m != STARTTLS
	for {
		l, err := c.line()
		if err != nil {
			return
		}
		word, _, _ := strings.Cut(l, " ")
		switch word {
		case "EHLO":
			if s.is("ehlo refused") {
				c.say("504 5.5.2 <" + l[5:] + ">: Helo command rejected: need fully-qualified hostname\r\n")
				continue
			}
			lines := []string{"source.example.org", "PIPELINING", "SIZE 10240000"}
			if !secure && !s.is("no starttls") {
				lines = append(lines, "STARTTLS")
			}
			if secure {
				lines = append(lines, "AUTH PLAIN LOGIN")
				switch {
				case s.is("no announcement"):
				case s.is("some attributes"):
					lines = append(lines, "XCLIENT ADDR HELO")
				case s.is("other attributes"):
					lines = append(lines, "xclient name addr port session ttl proto helo login")
				default:
					lines = append(lines, "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT")
				}
			}
			lines = append(lines, "8BITMIME", "CHUNKING")
			for i, l := range lines {
				sep := "-"
				if i == len(lines)-1 {
					sep = " "
				}
				c.say("250" + sep + l + "\r\n")
			}
		case "STARTTLS":
			if s.is("starttls refused") {
				c.say("454 4.7.0 TLS not available\r\n")
				continue
			}
			residue := ""
			if s.is("residue") {
				residue = "250-XCLIENT ADDR\r\n250 AUTH PLAIN\r\n"
			}
			c.say("220 2.0.0 Ready to start TLS\r\n" + residue)
			if err := c.startTLS(); err != nil {
				return
			}
			secure = true
		case "XCLIENT":
			switch {
			case s.is("announcement refused"):
				c.say("501 5.5.4 Bad ADDR syntax: IPV6:2001:db8::7\r\n")
			case s.is("silent"):
			default:
				c.say("220 source.example.org ESMTP Postfix\r\n")
			}
		case "AUTH":
			s.verdict()
			switch {
			case s.is("rejects"):
				c.say("535 5.7.8 Error: authentication failed: (source words)\r\n")
			case s.is("challenge"):
				c.say("334 \r\n")
				if l, _ := c.line(); l != "*" {
					return
				}
				c.say("501 5.7.0 aborted\r\n")
			case s.is("closes"):
				return
			default:
				c.say("235 2.7.0 Authentication successful\r\n")
				s.joined(c)
				return
			}
		default:
			c.say("502 5.5.2 what?\r\n")
		}
	}
}

func (s *fakeSource) sieve(c *sourceConn) {
	block := func(starttls bool) string {
		b := "\"IMPLEMENTATION\" \"Dovecot Pigeonhole\"\r\n\"SIEVE\" {8}\r\nfileinto\r\n\"SASL\" \"PLAIN\"\r\n"
		if starttls && !s.is("no starttls") {
			b += "\"STARTTLS\"\r\n"
		}
		b += "\"VERSION\" \"1.0\"\r\n"
		if !s.is("no announcement") {
			b += "\"XCLIENT\"\r\n"
		}
		return b
	}
	if s.is("bye") {
		c.say("BYE \"busy\"\r\n")
		return
	}
	c.say(block(s.m == STARTTLS) + "OK \"Dovecot ready.\"\r\n")
	for {
		l, err := c.line()
		if err != nil {
			return
		}
		word, _, _ := strings.Cut(l, " ")
		switch word {
		case "STARTTLS":
			if s.is("starttls refused") {
				c.say("NO \"not now\"\r\n")
				continue
			}
			residue := ""
			if s.is("residue") {
				residue = "\"XCLIENT\"\r\nOK \"x\"\r\n"
			}
			c.say("OK \"Begin TLS negotiation now.\"\r\n" + residue)
			if err := c.startTLS(); err != nil {
				return
			}
			c.say(block(false) + "OK \"TLS negotiation successful.\"\r\n")
		case "XCLIENT":
			switch {
			case s.is("announcement refused"):
				c.say("NO \"You are not from trusted IP\"\r\n")
			case s.is("silent"):
			default:
				c.say("OK \"Updated\"\r\n")
			}
		case "AUTHENTICATE":
			if i := strings.LastIndexByte(l, '{'); i >= 0 && strings.HasSuffix(l, "+}") {
				n := 0
				fmt.Sscanf(l[i:], "{%d+}", &n)
				if _, err := c.br.Discard(n + 2); err != nil {
					return
				}
			}
			s.verdict()
			switch {
			case s.is("rejects"):
				c.say("NO \"Authentication failed (source words).\"\r\n")
			case s.is("challenge"):
				c.say("\"\"\r\n")
				if l, _ := c.line(); l != `"*"` {
					return
				}
				c.say("NO \"aborted\"\r\n")
			case s.is("closes"):
				return
			default:
				c.say("OK \"Logged in.\"\r\n")
				s.joined(c)
				return
			}
		default:
			c.say("NO \"what?\"\r\n")
		}
	}
}

// sessionID finds the session's id in what a source received.
func sessionID(got string) string {
	for _, mark := range []string{`"x-session-id" "`, "SESSION="} {
		if _, rest, ok := strings.Cut(got, mark); ok {
			return rest[:strings.IndexAny(rest, `" `)]
		}
	}
	return ""
}

// proxyV2 is the header that must come, spelled octet by octet.
func proxyV2(src, dst netip.AddrPort) string {
	b := []byte("\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21")
	if src.Addr().Is4() {
		b = append(b, 0x11, 0, 12)
	} else {
		b = append(b, 0x21, 0, 36)
	}
	b = append(append(b, src.Addr().AsSlice()...), dst.Addr().AsSlice()...)
	b = binary.BigEndian.AppendUint16(b, src.Port())
	return string(binary.BigEndian.AppendUint16(b, dst.Port()))
}

// resolver finds names in a table.
func resolver(names map[string][]netip.Addr) func(context.Context, string) ([]netip.Addr, error) {
	return func(_ context.Context, host string) ([]netip.Addr, error) {
		if addrs, ok := names[host]; ok {
			return addrs, nil
		}
		return nil, fmt.Errorf("no such host %q", host)
	}
}
