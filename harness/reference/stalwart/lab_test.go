package stalwart_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/harness/reference/memnet"
	"github.com/mailproof/mailproof/harness/reference/stalwart"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// The addresses of the recordings.
const (
	proxyAt    = "172.30.1.1"
	relayAt    = "172.30.2.1"
	strangerAt = "172.30.3.1"
)

// config is the configuration file of the recordings, with two names in the
// certificate.
const config = `
[server.listener]
smtp.bind = "[::]:25"
smtp.protocol = "smtp"
submission.bind = "[::]:587"
submission.protocol = "smtp"
submissions.bind = "[::]:465"
submissions.protocol = "smtp"
submissions.tls.implicit = true
imap.bind = "[::]:143"
imap.protocol = "imap"
imaptls.bind = "[::]:993"
imaptls.protocol = "imap"
imaptls.tls.implicit = true
pop3.bind = "[::]:110"
pop3.protocol = "pop3"
pop3s.bind = "[::]:995"
pop3s.protocol = "pop3"
pop3s.tls.implicit = true
sieve.bind = "[::]:4190"
sieve.protocol = "managesieve"
https.bind = "[::]:443"
https.protocol = "http"
https.tls.implicit = true
http.bind = "[::]:8080"
http.protocol = "http"
adm.bind = "[::]:8081"
adm.protocol = "http"
adm.proxy.trusted-networks = "192.0.2.1"
[server]
hostname = "old.internal.test"
[storage]
data = "sqlite"
blob = "sqlite"
fts = "sqlite"
lookup = "sqlite"
directory = "internal"
[store.sqlite]
type = "sqlite"
path = "/opt/stalwart/data/index.sqlite3"
[directory.internal]
type = "internal"
store = "sqlite"
[authentication.fallback-admin]
user = "admin"
secret = "adminpw"
[certificate.default]
cert = "%{file:/certs/cert.pem}%"
private-key = "%{file:/certs/key.pem}%"
default = true
[tracer.out]
type = "console"
level = "debug"
ansi = false
enable = true
[tracer.log]
type = "log"
path = "/opt/stalwart/logs"
prefix = "stalwart.log"
rotate = "daily"
level = "debug"
ansi = false
enable = true
`

// quiet are the settings that the recordings' server had beside them: no
// limiter, no filter and no checks.
const quiet = `
version.spam-filter = "2.0.0"
spam-filter.enable = false
spam-filter.pyzor.enable = false
auth.dkim.verify = "disable"
auth.arc.verify = "disable"
auth.spf.verify.ehlo = "disable"
auth.spf.verify.mail-from = "disable"
auth.dmarc.verify = "disable"
auth.iprev.verify = "disable"
`

var testFiles = sync.OnceValue(func() map[string]string {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	names := []string{"mail.example.test", "old.internal.test"}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		panic(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		panic(err)
	}
	return map[string]string{
		"/certs/cert.pem": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		"/certs/key.pem":  string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk})),
	}
})

type labOptions struct {
	keys  string // more of the configuration file; a key may stand there twice
	loud  bool   // no quiet settings
	bugs  []string
	zone  *stalwart.Zone
	now   func() time.Time
	delay func(context.Context, net.Conn, time.Duration) error
	empty bool // no accounts
}

func configOf(t testing.TB, o labOptions) stalwart.Config {
	t.Helper()
	keys, err := stalwart.ParseTOML(config)
	assert.NilError(t, err)
	for i, more := range []string{quiet, o.keys} {
		if i == 0 && o.loud {
			continue
		}
		k, err := stalwart.ParseTOML(more)
		assert.NilError(t, err)
		for name, v := range k {
			keys[name] = v
		}
	}
	cfg := stalwart.Config{Version: stalwart.V0155, Keys: keys, Files: testFiles(), Hostname: "abcdef012345", Bugs: o.bugs, Zone: o.zone, Now: o.now, Delay: o.delay}
	for _, a := range []string{"172.30.1.10", "172.30.2.10", "172.30.3.10", "fd30::10"} {
		cfg.Addrs = append(cfg.Addrs, netip.MustParseAddr(a))
	}
	return cfg
}

// lab is one server on a network of its own.
type lab struct {
	t   testing.TB
	net *memnet.Network
	srv *stalwart.Server
	log *logReader
}

func startLab(t testing.TB, o labOptions) *lab {
	t.Helper()
	srv, err := stalwart.New(configOf(t, o))
	assert.NilError(t, err)
	l := startServer(t, srv)
	if !o.empty {
		l.accounts()
	}
	return l
}

func startServer(t testing.TB, srv *stalwart.Server) *lab {
	t.Helper()
	l := &lab{t: t, net: memnet.New(), srv: srv}
	l.log = followLog(t, srv)
	assert.NilError(t, srv.Start(context.Background(), func(at netip.AddrPort) (net.Listener, error) { return l.net.Listen(at) }))
	t.Cleanup(func() { assert.NilError(t, srv.Close()) })
	return l
}

// deliver has the relay hand over a message for alice.
func (l *lab) deliver(t testing.TB, token string) string {
	t.Helper()
	c := l.open(relayAt, 25)
	defer c.nc.Close()
	c.reply()
	for _, s := range []string{"EHLO new.example.test", "MAIL FROM:<user@sender.example>", "RCPT TO:<alice@example.test>", "DATA"} {
		c.ask(s)
	}
	return c.ask(messageFor("(message " + token + ")"))
}

// secretOf is the password of an account of the lab's.
func secretOf(name string) string {
	user, _, _ := strings.Cut(name, "@")
	return user + "pw"
}

// accounts makes those of the recordings, in their order.
func (l *lab) accounts() {
	l.t.Helper()
	for i, body := range []string{
		`{"type":"domain","name":"example.test"}`,
		`{"type":"individual","name":"alice@example.test","secrets":["alicepw"],"emails":["alice@example.test"],"roles":["user"]}`,
		`{"type":"individual","name":"bob@example.test","secrets":["bobpw"],"emails":["bob@example.test"],"roles":["user"]}`,
		`{"type":"individual","name":"carol@example.test","secrets":["carolpw"],"emails":["carol@example.test"],"roles":["user"]}`,
		`{"type":"individual","name":"noroles@example.test","secrets":["x"],"emails":["noroles@example.test"]}`,
	} {
		code, answer := l.api("POST", "/api/principal", body)
		assert.Equal(l.t, fmt.Sprint(code, answer), fmt.Sprintf(`200{"data":%d}`, i+1))
	}
}

// api calls the management API as the administrator.
func (l *lab) api(method, path, body string) (int, string) {
	l.t.Helper()
	r := l.ask(strangerAt, 8081, method+" "+path+" HTTP/1.1\r\nHost: x\r\nAuthorization: Basic "+base64.StdEncoding.EncodeToString([]byte("admin:adminpw"))+
		"\r\nContent-Length: "+strconv.Itoa(len(body))+"\r\n\r\n"+body)
	return r.status, r.body
}

// set inserts settings, given as keys and values, and says nothing more.
func (l *lab) set(pairs ...string) {
	l.t.Helper()
	var values []string
	for i := 0; i < len(pairs); i += 2 {
		values = append(values, fmt.Sprintf("[%q,%q]", pairs[i], pairs[i+1]))
	}
	code, body := l.api("POST", "/api/settings", `[{"type":"insert","assert_empty":false,"values":[`+strings.Join(values, ",")+`]}]`)
	assert.Equal(l.t, fmt.Sprint(code, body), `200{"data":null}`)
}

func (l *lab) reload() {
	l.t.Helper()
	code, body := l.api("GET", "/api/reload", "")
	assert.Equal(l.t, fmt.Sprint(code, body), `200{"data":{"warnings":{},"errors":{}}}`)
}

func (l *lab) restart() {
	l.t.Helper()
	assert.NilError(l.t, l.srv.Restart(context.Background()))
}

// guide sets what the migration guide sets on every listener but port 25.
func (l *lab) guide() {
	l.t.Helper()
	var keys []string
	for _, id := range []string{"imaptls", "imap", "pop3s", "pop3", "submission", "submissions", "sieve", "https", "http"} {
		keys = append(keys, "server.listener."+id+".proxy.override", "true", "server.listener."+id+".proxy.trusted-networks.0", proxyAt+"/32")
	}
	l.set(keys...)
}

// answered is a response over HTTP.
type answered struct {
	status  int
	head    []string
	body    string
	closed  bool
	headers map[string]string
}

// ask sends one request on a connection of its own.
func (l *lab) ask(from string, port uint16, text string) answered {
	l.t.Helper()
	c := l.open(from, port)
	defer c.nc.Close()
	if port == 443 {
		c.tls()
	}
	_, err := io.WriteString(c.nc, text)
	assert.NilError(l.t, err)
	return c.response()
}

func (c *client) response() answered {
	c.t.Helper()
	a := answered{headers: map[string]string{}}
	for {
		line := c.line()
		if line == "" || strings.HasPrefix(line, "<") {
			a.closed = line != ""
			break
		}
		a.head = append(a.head, line)
		if k, v, ok := strings.Cut(line, ": "); ok {
			a.headers[k] = v
		}
	}
	if len(a.head) > 0 {
		f := strings.Fields(a.head[0])
		a.status, _ = strconv.Atoi(f[1])
	}
	n, _ := strconv.Atoi(a.headers["content-length"])
	b := make([]byte, n)
	_, err := io.ReadFull(c.br, b)
	assert.NilError(c.t, err)
	a.body = string(b)
	return a
}

// client is a connection that is spoken to by lines.
type client struct {
	t  testing.TB
	nc net.Conn
	br *bufio.Reader
}

func (l *lab) open(from string, port uint16) *client {
	l.t.Helper()
	to := map[string]string{"172.30.1": "172.30.1.10", "172.30.2": "172.30.2.10", "172.30.3": "172.30.3.10"}[from[:min(len(from), 8)]]
	if to == "" {
		to = "fd30::10"
	}
	nc, err := l.net.Dial(context.Background(), netip.MustParseAddr(from), netip.AddrPortFrom(netip.MustParseAddr(to), port))
	assert.NilError(l.t, err)
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	c := &client{t: l.t, nc: nc, br: bufio.NewReader(nc)}
	l.t.Cleanup(func() { c.nc.Close() })
	return c
}

func (c *client) tls() { c.t.Helper(); assert.NilError(c.t, c.tryTLS()) }

func (c *client) tryTLS() error {
	tc := tls.Client(c.nc, &tls.Config{InsecureSkipVerify: true})
	if err := tc.Handshake(); err != nil {
		return err
	}
	c.nc, c.br = tc, bufio.NewReader(tc)
	return nil
}

// say sends lines.
func (c *client) say(lines ...string) {
	c.t.Helper()
	for _, s := range lines {
		_, err := io.WriteString(c.nc, s+"\r\n")
		assert.NilError(c.t, err)
	}
}

// line reads one line; how the connection ended stands in angle brackets.
func (c *client) line() string {
	s, err := c.br.ReadString('\n')
	if err != nil {
		var ne net.Error
		switch {
		case errors.Is(err, io.EOF) && s == "", errors.Is(err, io.ErrUnexpectedEOF):
			return "<closed>"
		case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
			return "<reset>"
		case errors.As(err, &ne) && ne.Timeout():
			return "<silence>"
		}
		return "<" + err.Error() + ">"
	}
	return strings.TrimSuffix(strings.TrimSuffix(s, "\n"), "\r")
}

// reply reads one reply of SMTP and returns its last line.
func (c *client) reply() string {
	for {
		s := c.line()
		if len(s) < 4 || s[3] != '-' {
			return s
		}
	}
}

// ask sends a line and returns the last line of the SMTP reply.
func (c *client) ask(line string) string {
	c.t.Helper()
	c.say(line)
	return c.reply()
}

func plain(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
}

// header is a PROXY header of version 2.
func header(src, dst string) []byte {
	s, d := netip.MustParseAddrPort(src), netip.MustParseAddrPort(dst)
	family := byte(0x11)
	if s.Addr().Is6() {
		family = 0x21
	}
	body := append(s.Addr().AsSlice(), d.Addr().AsSlice()...)
	body = append(body, byte(s.Port()>>8), byte(s.Port()), byte(d.Port()>>8), byte(d.Port()))
	return append([]byte("\r\n\r\n\x00\r\nQUIT\n\x21"+string(family)+"\x00"+string(byte(len(body)))), body...)
}

// through connects from the proxy with a header for a client.
func (l *lab) through(src string, port uint16) *client {
	l.t.Helper()
	c := l.open(proxyAt, port)
	dst := "198.51.100.1:"
	if netip.MustParseAddrPort(src).Addr().Is6() {
		dst = "[2001:db8::1]:"
	}
	c.nc.Write(header(src, dst+strconv.Itoa(int(port))))
	switch port {
	case 993, 995, 465, 443:
		c.tls()
	}
	return c
}

// logReader collects the log.
type logReader struct {
	mu    sync.Mutex
	cond  *sync.Cond
	lines []string
	done  bool
}

func followLog(t testing.TB, srv *stalwart.Server) *logReader {
	rc, err := srv.Log(context.Background())
	assert.NilError(t, err)
	r := &logReader{}
	r.cond = sync.NewCond(&r.mu)
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		sc := bufio.NewScanner(rc)
		for sc.Scan() {
			r.mu.Lock()
			r.lines = append(r.lines, sc.Text())
			r.cond.Broadcast()
			r.mu.Unlock()
		}
		r.mu.Lock()
		r.done = true
		r.cond.Broadcast()
		r.mu.Unlock()
	}()
	t.Cleanup(func() {
		rc.Close()
		<-finished
	})
	return r
}

// await waits for a line that holds all of the texts.
func (r *logReader) await(t testing.TB, texts ...string) string {
	t.Helper()
	late := false
	timer := time.AfterFunc(5*time.Second, func() {
		r.mu.Lock()
		late = true
		r.cond.Broadcast()
		r.mu.Unlock()
	})
	defer timer.Stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
	lines:
		for _, l := range r.lines {
			for _, text := range texts {
				if !strings.Contains(l, text) {
					continue lines
				}
			}
			return l
		}
		if r.done || late {
			t.Fatalf("no line of the log holds %q:\n%s", texts, strings.Join(r.lines, "\n"))
		}
		r.cond.Wait()
	}
}

// end waits until the log has ended.
func (r *logReader) end() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.done {
		r.cond.Wait()
	}
	return append([]string(nil), r.lines...)
}

func readFile(t testing.TB, path string) string {
	b, err := os.ReadFile(path)
	assert.NilError(t, err)
	return string(b)
}
