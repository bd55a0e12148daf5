package link

import (
	"crypto/tls"
	"strings"
)

// Protocol names a TLS version as OpenSSL does.
func Protocol(s *tls.ConnectionState) string {
	switch s.Version {
	case tls.VersionTLS10:
		return "TLSv1"
	case tls.VersionTLS11:
		return "TLSv1.1"
	case tls.VersionTLS12:
		return "TLSv1.2"
	}
	return "TLSv1.3"
}

// Cipher names a cipher suite as OpenSSL does, and says how many bits it has.
func Cipher(s *tls.ConnectionState) (name string, bits int) {
	name = tls.CipherSuiteName(s.CipherSuite)
	bits = 256
	if strings.Contains(name, "AES_128") {
		bits = 128
	}
	if s.Version == tls.VersionTLS13 {
		return name, bits
	}
	name = strings.TrimSuffix(strings.TrimPrefix(name, "TLS_"), "_SHA256")
	if name == "ECDHE_ECDSA_WITH_AES_128_GCM" || name == "ECDHE_RSA_WITH_AES_128_GCM" {
		name += "_SHA256"
	}
	name = strings.NewReplacer("_WITH_", "-", "AES_", "AES", "_", "-").Replace(name)
	return name, bits
}

// Curve names the key exchange as OpenSSL does.
func Curve(s *tls.ConnectionState) string {
	switch s.CurveID {
	case tls.X25519:
		return "X25519"
	case tls.CurveP256:
		return "ECDHE (prime256v1)"
	}
	return s.CurveID.String()
}
