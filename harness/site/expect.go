package site

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"strings"
)

// An Expect is what is expected of a server's certificate.
type Expect struct {
	Name string // the name it must be good for; "" when it is pinned or not checked
	CA   string // a file of authorities in PEM; "" for those of the system
	// Pins are SHA-256 sums of public keys (RFC 7469, section 2.4) or of whole
	// certificates, as the guide's proxy pins them: one of them must fit.
	Pins   [][]byte
	Reason string // why it is not checked
}

// expect reads "name:HOST", "ca:FILE", "pin:sha256:BASE64" or
// "unchecked:REASON". Without it the host's own name is checked.
func (t table) expect(host string) Expect {
	s := t.text("tls")
	if s == "" {
		if host == "" {
			t.p.wrong(t.path, "tls is missing: an address alone names no certificate; write tls = \"name:HOST\", \"pin:sha256:…\" or \"unchecked:REASON\"")
		}
		return Expect{Name: host}
	}
	how, what, _ := strings.Cut(s, ":")
	what = strings.TrimSpace(what)
	switch how {
	case "name":
		name, ca, _ := strings.Cut(what, ",ca:")
		if name = strings.TrimSpace(name); name == "" {
			t.wrong("tls", "the name is missing: name:HOST, or name:HOST,ca:FILE")
		}
		return Expect{Name: name, CA: strings.TrimSpace(ca)}
	case "pin":
		var e Expect
		for _, w := range strings.Split(what, ",") {
			b64, ok := strings.CutPrefix(strings.TrimSpace(w), "sha256:")
			sum, err := base64.StdEncoding.DecodeString(b64)
			if !ok || err != nil || len(sum) != sha256.Size {
				t.wrong("tls", "%q is no pin: sha256: and the base64 of the SHA-256 of the public key, or of the certificate", w)
				return e
			}
			e.Pins = append(e.Pins, sum)
		}
		return e
	case "unchecked":
		if what == "" {
			t.wrong("tls", "the reason is missing: unchecked:REASON")
		}
		return Expect{Reason: what}
	}
	t.wrong("tls", "%q: write name:HOST, name:HOST,ca:FILE, pin:sha256:BASE64 or unchecked:REASON", s)
	return Expect{}
}

// verify makes the check of a handshake, or nil where nothing is checked.
func (e Expect) verify() (func(tls.ConnectionState) error, error) {
	switch {
	case len(e.Pins) > 0:
		return func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return errors.New("the server showed no certificate")
			}
			leaf := s.PeerCertificates[0]
			sum, whole := sha256.Sum256(leaf.RawSubjectPublicKeyInfo), sha256.Sum256(leaf.Raw)
			for _, p := range e.Pins {
				if string(p) == string(sum[:]) || string(p) == string(whole[:]) {
					return nil
				}
			}
			return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates,
				Err: fmt.Errorf("its public key is sha256:%s, which is not the pinned one", base64.StdEncoding.EncodeToString(sum[:]))}
		}, nil
	case e.Reason != "":
		return nil, nil
	}
	var roots *x509.CertPool
	if e.CA != "" {
		pem, err := os.ReadFile(e.CA)
		if err != nil {
			return nil, err
		}
		roots = x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no certificate in PEM", e.CA)
		}
	}
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errors.New("the server showed no certificate")
		}
		o := x509.VerifyOptions{Roots: roots, DNSName: e.Name, Intermediates: x509.NewCertPool()}
		for _, c := range s.PeerCertificates[1:] {
			o.Intermediates.AddCert(c)
		}
		if _, err := s.PeerCertificates[0].Verify(o); err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: s.PeerCertificates, Err: err}
		}
		return nil
	}, nil
}
