package source_test

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
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/reference/memnet"
	"github.com/mailproof/mailproof/harness/reference/source"
)

// testCert is made once: the tests do not look at it.
var testCert = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	name := fixtures.SourceHost(0)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// lab is one source on a network of its own, with the addresses of source 0.
type lab struct {
	t   testing.TB
	net *memnet.Network
	src *source.Source
	log *logReader
	o   labOptions
	// patient is how long a client waits for an answer, 10 s when it is 0.
	patient time.Duration
}

// withLayer are the lab's options with one more layer.
func (l *lab) withLayer(files ...string) labOptions {
	o := l.o
	o.layers = append(append([]source.Layer(nil), o.layers...), layer(files...))
	return o
}

type labOptions struct {
	release, profile string
	bare             bool // no recipe of the guide
	layers           []source.Layer
	bugs             []string
	delay            func(context.Context, net.Conn, time.Duration) error
	patient          time.Duration
}

// accounts of every lab: names of the length that the recordings' had.
const (
	alice  = "abcd00a001@example.test"
	bob    = "abcd00a002@example.test"
	secret = "J3BC5MX7WQ2TPLK4"
)

func users(name string) (string, bool) {
	if strings.HasPrefix(name, "abcd00a") && strings.HasSuffix(name, "@example.test") && len(name) == len(alice) {
		return secret, true
	}
	return "", false
}

func layersOf(t testing.TB, o labOptions) []source.Layer {
	all, err := fixtures.Base(fixtures.DovecotPostfix, o.release, o.profile)
	assert.NilError(t, err)
	if !o.bare {
		guide, err := fixtures.GuideRecipe(fixtures.DovecotPostfix, o.release)
		assert.NilError(t, err)
		all = append(all, guide)
	}
	var out []source.Layer
	for _, l := range all {
		sl := source.Layer{Name: l.Name, Dir: "/etc/mailproof/" + l.Name, Files: map[string]string{}}
		for p, text := range l.Files {
			text, err := fixtures.LabNames(0).Expand(p, text)
			assert.NilError(t, err)
			sl.Files[p] = text
		}
		out = append(out, sl)
	}
	for _, l := range o.layers {
		sl := source.Layer{Name: l.Name, Dir: l.Dir, Files: map[string]string{}}
		for p, text := range l.Files {
			text, err := fixtures.LabNames(0).Expand(p, text)
			assert.NilError(t, err)
			sl.Files[p] = text
		}
		out = append(out, sl)
	}
	return out
}

func configOf(t testing.TB, o labOptions) source.Config {
	if o.release == "" {
		o.release = source.Trixie
	}
	if o.profile == "" {
		o.profile = fixtures.Instrumented
	}
	cfg := source.Config{
		Release: o.release, Hostname: fixtures.SourceHost(0), Layers: layersOf(t, o),
		Users: users, Certificate: testCert(), Bugs: o.bugs, Delay: o.delay,
	}
	for _, n := range fixtures.Networks() {
		cfg.Addrs = append(cfg.Addrs, n.Source(0).IP4, n.Source(0).IP6)
	}
	return cfg
}

func startLab(t testing.TB, o labOptions) *lab {
	t.Helper()
	src, err := source.New(configOf(t, o))
	assert.NilError(t, err)
	l := &lab{t: t, net: memnet.New(), src: src, o: o, patient: o.patient}
	l.log = followLog(t, src)
	assert.NilError(t, src.Start(context.Background(), l.listen))
	t.Cleanup(func() { assert.NilError(t, src.Close()) })
	return l
}

func (l *lab) listen(at netip.AddrPort) (net.Listener, error) { return l.net.Listen(at) }

var ports = map[string]uint16{"imap": 143, "imaps": 993, "pop3": 110, "pop3s": 995, "sieve": 4190, "smtp": 25, "submission": 587, "submissions": 465}

// patience is how long a client of the lab waits for an answer.
func (l *lab) patience() time.Duration {
	if l.patient > 0 {
		return l.patient
	}
	return 10 * time.Second
}

// dial connects from a vantage to an endpoint.
func (l *lab) dial(from, endpoint, family string) net.Conn {
	l.t.Helper()
	h, ok := fixtures.HostOf(from)
	assert.Assert(l.t, ok, from)
	to := fixtures.NetworkNamed(h.Network).Source(0).Of(family)
	c, err := l.net.Dial(context.Background(), h.Of(family), netip.AddrPortFrom(to, ports[endpoint]))
	assert.NilError(l.t, err)
	c.SetDeadline(time.Now().Add(l.patience()))
	return c
}

// client is a connection that is spoken to by lines.
type client struct {
	t  testing.TB
	nc net.Conn
	br *bufio.Reader
}

// open connects, and does TLS at once where the endpoint is for it.
func (l *lab) open(from, endpoint string) *client {
	l.t.Helper()
	return l.openOn(from, endpoint, "ip4")
}

func (l *lab) openOn(from, endpoint, family string) *client {
	l.t.Helper()
	c := &client{t: l.t, nc: l.dial(from, endpoint, family)}
	c.br = bufio.NewReader(c.nc)
	l.t.Cleanup(func() { c.nc.Close() })
	if strings.HasSuffix(endpoint, "s") && endpoint != "sieves" {
		c.tls()
	}
	return c
}

func (c *client) tls() {
	c.t.Helper()
	tc := tls.Client(c.nc, &tls.Config{InsecureSkipVerify: true})
	assert.NilError(c.t, tc.Handshake())
	c.nc, c.br = tc, bufio.NewReader(tc)
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
		case errors.Is(err, io.EOF) && s == "":
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

// logReader collects the log.
type logReader struct {
	mu    sync.Mutex
	cond  *sync.Cond
	lines []string
	done  bool
}

func followLog(t testing.TB, src *source.Source) *logReader {
	rc, err := src.Log(context.Background())
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
	timer := time.AfterFunc(5*time.Second, func() {
		r.mu.Lock()
		r.done = true
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
		if r.done {
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

// all returns what was logged by now.
func (r *logReader) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.lines...)
}

func readFile(t testing.TB, path string) string {
	b, err := os.ReadFile(path)
	assert.NilError(t, err)
	return string(b)
}

func layer(files ...string) source.Layer {
	l := source.Layer{Name: "test", Dir: "/etc/mailproof/test", Files: map[string]string{}}
	for i := 0; i < len(files); i += 2 {
		l.Files[files[i]] = files[i+1]
	}
	return l
}

func newReader(c net.Conn) *bufio.Reader { return bufio.NewReader(c) }

// startOn starts a source on a network of its own, and nothing that ends it.
func startOn(t testing.TB, src *source.Source) *memnet.Network {
	n := memnet.New()
	assert.NilError(t, src.Start(context.Background(), func(at netip.AddrPort) (net.Listener, error) { return n.Listen(at) }))
	return n
}
