package proxy

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"time"
)

// A PinMismatch says that a destination presented another certificate than the
// one it is pinned to.
type PinMismatch struct {
	Destination string
	Found       [sha256.Size]byte
}

func (e *PinMismatch) Error() string {
	return fmt.Sprintf("destination %s: the certificate is not the pinned one; its SHA-256 is %x: if that is right, write it to tls_pinned_cert_sha256", e.Destination, e.Found)
}

// certificates chooses by the name that a client asks for.
type certificates struct {
	byName   map[string]*tls.Certificate
	fallback *tls.Certificate
}

func (c *certificates) choose(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := strings.ToLower(strings.TrimSuffix(hello.ServerName, "."))
	if cert := c.byName[name]; cert != nil {
		return cert, nil
	}
	if _, parent, ok := strings.Cut(name, "."); ok {
		for _, n := range []string{"*." + parent, parent} {
			if cert := c.byName[n]; cert != nil {
				return cert, nil
			}
		}
	}
	if cert := c.byName["*"]; cert != nil {
		return cert, nil
	}
	return c.fallback, nil
}

// serverTLS loads the certificates for clients. Without one, and where none
// fits and none is the default, a self-signed one is presented.
func serverTLS(list []Certificate, minimum uint16) (*tls.Config, error) {
	c := &certificates{byName: make(map[string]*tls.Certificate)}
	var last *tls.Certificate
	for _, entry := range list {
		cert := entry.Loaded
		if cert == nil {
			loaded, err := tls.LoadX509KeyPair(entry.Cert, entry.Key)
			if err != nil {
				return nil, fmt.Errorf("certificate %s: %w", entry.Name, err)
			}
			cert = &loaded
		}
		subjects := entry.Subjects
		if subjects == nil {
			var err error
			if subjects, err = subjectsOf(cert); err != nil {
				return nil, fmt.Errorf("certificate %s: %w", entry.Name, err)
			}
		}
		for _, s := range subjects {
			c.byName[strings.ToLower(s)] = cert
		}
		if entry.Default {
			c.fallback = cert
		}
		last = cert
	}
	if c.fallback == nil && len(list) == 1 {
		c.fallback = last
	}
	if c.fallback == nil {
		var err error
		if c.fallback, err = selfSigned(); err != nil {
			return nil, err
		}
	}
	return &tls.Config{MinVersion: minimum, GetCertificate: c.choose}, nil
}

func subjectsOf(cert *tls.Certificate) ([]string, error) {
	leaf := cert.Leaf
	if leaf == nil {
		if len(cert.Certificate) == 0 {
			return nil, errors.New("it is empty")
		}
		var err error
		if leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
			return nil, err
		}
	}
	if len(leaf.DNSNames) > 0 || leaf.Subject.CommonName == "" {
		return leaf.DNSNames, nil
	}
	return []string{leaf.Subject.CommonName}, nil
}

func selfSigned() (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		DNSNames:     []string{"localhost"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().AddDate(1, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

// clientTLS is how a destination's certificate is checked: by its pin, not at
// all, or by name and authority.
func clientTLS(d Destination, roots *x509.CertPool) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: d.ServerName, RootCAs: roots}
	if cfg.ServerName == "" {
		cfg.ServerName = d.Host
	}
	if d.ClientCert != "" {
		cert, err := tls.LoadX509KeyPair(d.ClientCert, d.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("destination %s: tls_client_cert: %w", d.Name, err)
		}
		cfg.Certificates = []tls.Certificate{cert}
	}
	switch {
	case len(d.PinSHA256) > 0:
		cfg.InsecureSkipVerify = true // by name and authority; the pin stands instead
		cfg.VerifyConnection = func(state tls.ConnectionState) error {
			sum := sha256.Sum256(state.PeerCertificates[0].Raw)
			if !bytes.Equal(sum[:], d.PinSHA256) {
				return &PinMismatch{Destination: d.Name, Found: sum}
			}
			return nil
		}
	case d.AllowInvalid:
		cfg.InsecureSkipVerify = true
	}
	return cfg, nil
}
