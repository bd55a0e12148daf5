package proxy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// named makes a self-signed certificate for names.
func named(t *testing.T, names ...string) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	assert.NilError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	assert.NilError(t, err)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// I-32: the certificate is chosen by the name that the client asks for.
func TestCertificateByName(t *testing.T) {
	one, wild, star, def := named(t, "one.example.org"), named(t, "*.wild.example.org", "parent.example.org"), named(t, "unused"), named(t, "default.example.org")
	for _, tc := range []struct {
		name  string
		certs []Certificate
		sni   string
		want  *tls.Certificate // nil: the self-signed one
	}{
		{"exact", []Certificate{{Name: "1", Loaded: one}, {Name: "2", Loaded: wild}, {Name: "d", Loaded: def, Default: true}}, "ONE.example.org", one},
		{"wildcard", []Certificate{{Name: "1", Loaded: one}, {Name: "2", Loaded: wild}, {Name: "d", Loaded: def, Default: true}}, "a.wild.example.org", wild},
		{"parent", []Certificate{{Name: "1", Loaded: one}, {Name: "2", Loaded: wild}, {Name: "d", Loaded: def, Default: true}}, "a.parent.example.org", wild},
		{"subjects replace its own", []Certificate{{Name: "1", Loaded: one, Subjects: []string{"two.example.org"}}, {Name: "d", Loaded: def, Default: true}}, "one.example.org", def},
		{"star", []Certificate{{Name: "1", Loaded: one}, {Name: "s", Loaded: star, Subjects: []string{"*"}}}, "elsewhere.example", star},
		{"default", []Certificate{{Name: "1", Loaded: one}, {Name: "d", Loaded: def, Default: true}}, "elsewhere.example", def},
		{"no name", []Certificate{{Name: "1", Loaded: one}, {Name: "d", Loaded: def, Default: true}}, "", def},
		{"only one", []Certificate{{Name: "1", Loaded: one}}, "elsewhere.example", one},
		{"nothing fits", []Certificate{{Name: "1", Loaded: one}, {Name: "2", Loaded: wild}}, "elsewhere.example", nil},
		{"none", nil, "elsewhere.example", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := labConfig(ForwardNone, Implicit)
			cfg.Certificates = tc.certs
			l := newLab(t, cfg)
			c := l.dial(client4, "imaps")
			conn := tls.Client(c.raw, &tls.Config{InsecureSkipVerify: true, ServerName: tc.sni})
			assert.NilError(t, conn.Handshake())
			leaf := conn.ConnectionState().PeerCertificates[0]
			if tc.want == nil {
				assert.DeepEqual(t, leaf.DNSNames, []string{"localhost"})
				return
			}
			assert.DeepEqual(t, leaf.Raw, tc.want.Certificate[0])
		})
	}
}

// I-32: the lowest version for clients.
func TestMinimumVersion(t *testing.T) {
	for _, tc := range []struct {
		minimum, offered uint16
		ok               bool
	}{
		{0, tls.VersionTLS11, false}, {0, tls.VersionTLS12, true}, {0, tls.VersionTLS13, true},
		{tls.VersionTLS13, tls.VersionTLS12, false}, {tls.VersionTLS13, tls.VersionTLS13, true},
	} {
		cfg := labConfig(ForwardNone, Implicit)
		cfg.MinTLS = tc.minimum
		l := newLab(t, cfg)
		c := l.dial(client4, "imaps")
		conn := tls.Client(c.raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tc.offered})
		err := conn.Handshake()
		assert.Equal(t, err == nil, tc.ok, "%s: %v", tls.VersionName(tc.offered), err)
	}
}

// I-32: the source's certificate is checked by its name and authority, by its
// pin, or not at all. Where it is wrong nothing is sent.
func TestSourceCertificate(t *testing.T) {
	right, wrong := pki().innerSHA256, pki().innerSHA256
	wrong[0] ^= 1
	for _, m := range []TLSMode{Implicit, STARTTLS} {
		for _, tc := range []struct {
			name   string
			change func(*Destination)
			roots  bool
			refuse string
		}{
			{"name and authority", func(*Destination) {}, true, ""},
			{"another name", func(d *Destination) { d.ServerName = "other.example.org" }, true, "not other.example.org"},
			{"unknown authority", func(*Destination) {}, false, "unknown authority"},
			{"pin", func(d *Destination) { d.PinSHA256 = right[:]; d.ServerName = "other.example.org" }, false, ""},
			{"wrong pin", func(d *Destination) { d.PinSHA256 = wrong[:] }, true, "the certificate is not the pinned one; its SHA-256 is"},
			{"wrong pin, any certificate", func(d *Destination) { d.PinSHA256 = wrong[:]; d.AllowInvalid = true }, true, "the certificate is not the pinned one"},
			{"any certificate", func(d *Destination) { d.AllowInvalid = true; d.ServerName = "other.example.org" }, false, ""},
		} {
			t.Run(string(m)+"/"+tc.name, func(t *testing.T) {
				cfg := labConfig(ForwardXCLIENT, m)
				tc.change(&cfg.Destinations[0])
				l := &lab{t: t, net: newLab(t, labConfigAt("none")).net, log: newLogbook()}
				opt := l.options(egress4, egress6)
				if !tc.roots {
					opt.Roots = x509.NewCertPool()
				}
				l.p, l.stop = l.serve(cfg, opt)
				s := l.source(source4, IMAP, m, ForwardXCLIENT, "")
				c := l.signIn(client4, "imaps", "alice@example.org", "secret")
				if tc.refuse == "" {
					c.until("a1 OK")
					return
				}
				c.want(unavailableReply(IMAP))
				c.end()
				assert.Assert(t, strings.Contains(l.log.wait(t, "backend unavailable"), tc.refuse), "%s", l.log)
				got := s.received()
				assert.Assert(t, !strings.Contains(got, "AUTHENTICATE") && !strings.Contains(got, " ID "), "%q", got)
			})
		}
	}
}

// I-18: whatever a configuration came to, credentials do not go where there is
// no TLS and none was waived.
func TestNoCredentialsInClearText(t *testing.T) {
	for _, p := range interactive {
		l := newLab(t, labConfig(ForwardNone, Plain))
		l.p.dests["legacy"].AllowPlaintext = false // no configuration gets as far
		s := l.source(source4, p, Plain, ForwardNone, "")
		c := l.signIn(client4, publicName(p, Implicit), "alice@example.org", "secret")
		c.want(unavailableReply(p))
		c.end()
		assert.Assert(t, !strings.Contains(s.received(), "AUTH"))
	}
}

// labConfigAt is a configuration that binds nothing that the others bind.
func labConfigAt(string) *Config {
	cfg := labConfig(ForwardNone, Plain)
	cfg.Listeners = cfg.Listeners[:1]
	cfg.Listeners[0].Binds = []netip.AddrPort{netip.AddrPortFrom(public4, 60000)}
	return cfg
}

// I-32: mutual TLS.
func TestClientCertificate(t *testing.T) {
	dir := t.TempDir()
	cert := named(t, "proxy.example.org")
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	assert.NilError(t, err)
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	assert.NilError(t, os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]}), 0o600))
	assert.NilError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600))
	cfg := labConfig(ForwardNone, Implicit)
	cfg.Destinations[0].ClientCert, cfg.Destinations[0].ClientKey = certFile, keyFile
	l := newLab(t, cfg)
	nl, err := l.net.Listen(netip.AddrPortFrom(source4, 993))
	assert.NilError(t, err)
	defer nl.Close()
	presented := make(chan []byte, 1)
	go func() {
		defer close(presented)
		nc, err := nl.Accept()
		if err != nil {
			return
		}
		defer nc.Close()
		s := tls.Server(nc, &tls.Config{Certificates: []tls.Certificate{pki().inner}, ClientAuth: tls.RequireAnyClientCert})
		if s.Handshake() == nil {
			presented <- s.ConnectionState().PeerCertificates[0].Raw
		}
	}()
	c := l.signIn(client4, "imaps", "alice@example.org", "secret")
	assert.DeepEqual(t, <-presented, cert.Certificate[0])
	c.want(unavailableReply(IMAP)) // that source says nothing more
}

// Certificates and keys that cannot be loaded are named.
func TestCertificateFiles(t *testing.T) {
	cfg := labConfig(ForwardNone, Implicit)
	cfg.Certificates = []Certificate{{Name: "main", Cert: "/nowhere/cert.pem", Key: "/nowhere/key.pem"}}
	_, err := New(cfg, Options{})
	assert.ErrorContains(t, err, "certificate main: open /nowhere/cert.pem")
	cfg = labConfig(ForwardNone, Implicit)
	cfg.Destinations[0].ClientCert, cfg.Destinations[0].ClientKey = "/nowhere/c", "/nowhere/k"
	_, err = New(cfg, Options{})
	assert.ErrorContains(t, err, "destination legacy: tls_client_cert: open /nowhere/c")
}

// A client that does not speak TLS where it is implicit, and one that leaves
// in the handshake, end their session only.
func TestNoHandshake(t *testing.T) {
	l := newLab(t, labConfig(ForwardNone, Implicit))
	c := l.dial(client4, "imaps")
	c.send("a LOGIN alice secret\r\n")
	io.ReadAll(c.br) // an alert, and a reset as the rest was not read
	c = l.dial(client4, "imaps")
	c.raw.Close()
	l.log.wait(t, "closed: client: TLS handshake: tls: first record does not look like a TLS handshake")
	l.log.wait(t, "closed: client: TLS handshake: EOF")
	assert.Assert(t, !strings.Contains(l.log.String(), "secret"))
}
