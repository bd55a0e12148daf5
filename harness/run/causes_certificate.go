package run

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/result"
)

// The ways in which a certificate is not what is expected, as facts.
const (
	certExpired   = "expired"
	certName      = "name"
	certAuthority = "authority"
	certPin       = "pin"
)

// tlsFacts are the kind of a handshake failure, and of a certificate's.
func tlsFacts(err error) []string {
	facts := []string{"tls=" + tlsFact(err)}
	var cert *tls.CertificateVerificationError
	if !errors.As(err, &cert) {
		return facts
	}
	var invalid x509.CertificateInvalidError
	var name x509.HostnameError
	var authority x509.UnknownAuthorityError
	kind := certPin
	switch {
	case errors.As(cert.Err, &invalid) && invalid.Reason == x509.Expired:
		kind = certExpired
	case errors.As(cert.Err, &name):
		kind = certName
	case errors.As(cert.Err, &authority), errors.As(cert.Err, &invalid):
		kind = certAuthority
	}
	return append(facts, "certificate="+kind)
}

// causeCertificate explains handshakes that fail for the certificate alone:
// TLS is there, and it is either not the server that was meant or not the
// certificate that clients will accept.
func causeCertificate(o *observations, wrong []*result.Result) *result.Diagnosis {
	d := &result.Diagnosis{Results: keys(wrong)}
	kinds := factValues(wrong, "certificate")
	var proxy, source []*result.Result
	for _, r := range wrong {
		if r.Facet.Driver == "through" {
			proxy = append(proxy, r)
		} else {
			source = append(source, r)
		}
	}
	var whose, where []string
	if len(source) > 0 {
		whose, where = append(whose, "the source's"), append(where, "[source."+o.src.Name+"]")
	}
	if len(proxy) > 0 {
		whose, where = append(whose, "the proxy's"), append(where, "[proxy]")
	}
	says := map[string]string{certExpired: "has expired, or is not valid yet", certName: "is for another name", certAuthority: "is of an authority that is not known", certPin: "is not the pinned one"}
	do := map[string]string{
		certExpired:   "Renew the certificate, or set the clock of the machine that mailproof runs on.",
		certName:      "Give the server a certificate for the name that tls names (name:HOST), or name the one that it is rightly known by.",
		certAuthority: "Let the server send its whole chain; where the authority is your own, name it: tls = \"name:HOST,ca:FILE\".",
		certPin:       "If you have changed the key, put the new pin, which the finding names, into tls (pin:sha256:…); if you have not, somebody else answers there.",
	}
	var is, texts []string
	for _, k := range []string{certExpired, certName, certAuthority, certPin} {
		if slices.Contains(kinds, k) {
			is, texts = append(is, says[k]), append(texts, do[k])
		}
	}
	d.Title = fmt.Sprintf("%s certificate on %s %s", strings.Join(whose, " and "), listed(factValues(wrong, "endpoint")), strings.Join(is, ", or "))
	d.Means = "A proxy or a mail program that checks certificates turns away here; and one that does not may be speaking with somebody else."
	d.DiscriminatedBy = []string{observed(wrong, "TLS is spoken, and the check of the certificate fails: "+listed(kinds))}
	d.Alternatives = []string{"another TLS problem: the handshake would end with an alert, or with none at all"}
	text := strings.Join(texts, " ")
	if o.t.Kind == "site" {
		text += " What is expected stands in the site file as tls in " + strings.Join(where, " and ") + "."
	}
	d.Remedy = remedy(text)
	return d
}
