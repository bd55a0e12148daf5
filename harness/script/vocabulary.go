package script

import "strings"

// The closed vocabulary. What is not listed here cannot be written.
var (
	protocols    = []string{"imap", "pop3", "managesieve", "smtp", "http"}
	vantages     = []string{"client", "proxy", "relay", "neighbour", "stranger"}
	endpoints    = []string{"imap", "imaps", "pop3", "pop3s", "submission", "submissions", "sieve", "smtp", "https", "http"}
	families     = []string{"ip4", "ip6"}
	levels       = []string{"must", "should", "may"}
	isolations   = []string{string(OwnAccount), string(OwnAddress), string(Alone)}
	witnessKinds = []string{"login", "failed-login", "transaction", "rejection", "line", "message"}
	witnessWords = []string{"log", "message", "capability", "effect"}
	hazards      = []string{"ban", "flood", "loop", "restart"}
	headerForms  = []string{"proxy-v1", "proxy-v2", "proxy-v1-unknown", "proxy-v2-unspec", "proxy-v2-local", "proxy-v2-mapped", "proxy-v2-tls",
		"broken-v1-port", "broken-v1-family", "broken-v1-no-crlf", "broken-v2-signature", "broken-v2-version", "broken-v2-short", "broken-v2-family"}
	shapes     = []string{"normal", "one-byte", "joined", "split-crlf", "paused"}
	tlsModes   = []string{"none", "implicit"}
	stepWords  = []string{"open", "use", "upgrade", "close", "shut", "shape", "witness", "barrier", "source", "if", "for"}
	headerKeys = []string{"id", "claim", "level", "requirements", "spec", "means", "needs", "over", "families", "isolation", "witness", "hazards"}
	kinds      = []string{"dovecot-postfix", "stalwart", "generic"}
	profiles   = []string{"as-shipped", "instrumented"}
	features   = []string{"public-proxy"}
)

// endpointProtocol is what an endpoint of that name speaks.
func endpointProtocol(endpoint string) string {
	switch endpoint {
	case "imap", "imaps":
		return "imap"
	case "pop3", "pop3s":
		return "pop3"
	case "sieve":
		return "managesieve"
	case "smtp", "submission", "submissions":
		return "smtp"
	case "https", "http":
		return "http"
	}
	return ""
}

// A Variable is one name that scenarios may refer to.
type Variable struct {
	Name string
	Says string
}

// Variables lists what a scenario may refer to, for docs, lint and explain.
// A name ending in ".*" stands for a family of names.
func Variables() []Variable {
	return []Variable{
		{"token", "a mark of this execution alone, up to 16 of a-z and 0-9"},
		{"domain", "the mail domain the source is final for"},
		{"user.*", "the address of an account of this execution: ${user.alice}"},
		{"secret.*", "its password; shown as <secret:alice>"},
		{"sasl.plain", "SASL PLAIN in base64 for an account: ${sasl.plain alice}"},
		{"sasl.wrong", "SASL PLAIN in base64 for an account with a wrong password"},
		{"sasl.user", "the account's address in base64 (AUTH LOGIN)"},
		{"sasl.secret", "its password in base64 (AUTH LOGIN)"},
		{"wrong", "a wrong password"},
		{"client", "the client's address, in the facet's family"},
		{"client.*", "the address of a further client: ${client.7}"},
		{"client-port", "the port that is announced for the client, of this execution alone"},
		{"proxy", "the proxy's address, in the facet's family"},
		{"relay", "the new server's address"},
		{"neighbour", "the address of the proxy's neighbour"},
		{"stranger", "the stranger's address"},
		{"forged", "an address that nobody has, to be recognised where it must not appear"},
		{"public", "the proxy's public address, where clients connect"},
		{"public-port", "the public port of the facet's endpoint"},
		{"public-name", "the host name that clients know the proxy by"},
		{"source-name", "the source's own host name, which clients need not know"},
		{"source-address", "the address that the proxy reaches the source at"},
		{"basic", "HTTP Basic credentials of an account: ${basic alice}"},
		{"sub-address", "an account's address with +detail before the @: ${sub-address alice}"},
		{"basic-wrong", "the same with a wrong password"},
		{"basic-admin", "HTTP Basic credentials of the source's administrator"},
		{"basic-limited-admin", "the same of an administrator who lacks the permission to read what is others'"},
		{"master", "the name of a master user of this execution alone, to be set"},
		{"master-secret", "the password of that master user; shown as <secret:master>"},
		{"xclient", "an address as SMTP spells it, with IPV6: where needed: ${xclient client}"},
		{"ip4", "a name's address in IPv4 whatever the facet: ${ip4 client}"},
		{"ip6", "the same in IPv6: ${ip6 client}"},
		{"local", "the address that a connection left from: ${local A}"},
		{"local-port", "its port"},
		{"size", "the number of octets of a file: ${size message}"},
		{"filler", "so many octets of the letter x, 8192 at most: ${filler 1000}"},
		{"octets", "a file's octets as they are (BDAT, literals): ${octets message}"},
		{"data", "a file dot-stuffed and ended with a dot (DATA): ${data message}"},
		{"sha256", "the SHA-256 of a file's body after the first empty line, in hex"},
	}
}

// user names the account that a reference is about.
func (r Ref) user() (string, bool) {
	switch {
	case strings.HasPrefix(r.Name, "user."):
		return r.Name[len("user."):], true
	case strings.HasPrefix(r.Name, "secret."):
		return r.Name[len("secret."):], true
	case (strings.HasPrefix(r.Name, "sasl.") || r.Name == "basic" || r.Name == "basic-wrong" || r.Name == "sub-address") && len(r.Args) == 1:
		return r.Args[0], true
	}
	return "", false
}

// Credentials names the account whose right credentials a reference stands for.
func (r Ref) Credentials() (user string, ok bool) {
	if !r.secret() || r.Name == "sasl.wrong" {
		return "", false
	}
	return r.user()
}

// secret says whether a reference's value must never be shown.
func (r Ref) secret() bool {
	return strings.HasPrefix(r.Name, "secret.") || r.Name == "basic" || r.Name == "basic-wrong" || r.Name == "basic-admin" || r.Name == "basic-limited-admin" || r.Name == "master-secret" || strings.HasPrefix(r.Name, "sasl.") || r.Name == "wrong"
}

// file names the attached file that a reference is about.
func (r Ref) file() (string, bool) {
	switch r.Name {
	case "size", "octets", "data", "sha256":
		if len(r.Args) == 1 {
			return r.Args[0], true
		}
	}
	return "", false
}
