package run

import (
	"crypto/tls"
	"crypto/x509"
)

// clientTLS is how a migration proxy speaks TLS to a source: 1.2 with ECDHE and
// AEAD, or 1.3, and nothing older. nil roots accept any certificate.
func clientTLS(roots *x509.CertPool, name string) *tls.Config {
	return &tls.Config{
		RootCAs:            roots,
		ServerName:         name,
		InsecureSkipVerify: roots == nil,
		MinVersion:         tls.VersionTLS12,
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
}

// clientTLS is how the harness speaks TLS to a source or the proxy of a target.
// On the reference lab both ends are ours, so that the key exchange proves
// nothing: there the cheapest is offered, which makes a handshake a third cheaper.
func (t *Target) clientTLS(roots *x509.CertPool, name string) *tls.Config {
	cfg := clientTLS(roots, name)
	if t.Kind == "reference" {
		cfg.CurvePreferences = []tls.CurveID{tls.CurveP256}
	}
	return cfg
}

// sourceTLS is how a source's endpoints are spoken to.
func (t *Target) sourceTLS(s *Source) *tls.Config {
	return verified(t.clientTLS(s.Roots, s.ServerName), s.Verify)
}

// proxyTLS is how the endpoints of the proxy before a source are spoken to.
func (t *Target) proxyTLS(s *Source) *tls.Config {
	if s.Vantages != nil {
		return t.clientTLS(s.ProxyRoots, t.Proxy.ServerName)
	}
	return verified(t.clientTLS(t.Proxy.Roots, t.Proxy.ServerName), t.Proxy.Verify)
}

// verified puts a judgement of the target's own in the place of the usual one.
func verified(c *tls.Config, verify func(tls.ConnectionState) error) *tls.Config {
	if verify != nil {
		c.InsecureSkipVerify, c.VerifyConnection = true, verify
	}
	return c
}
