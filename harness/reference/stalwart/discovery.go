package stalwart

import (
	"bytes"
	"crypto/x509"
	"encoding/xml"
	"fmt"
	"hash/fnv"
	"html"
	"io"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/reference/stalwart/bug"
)

// oauthMetadata is RFC 8414's document.
func (in *session) oauthMetadata() *response {
	b := in.base()
	return jsonValue(struct {
		Issuer        string   `json:"issuer"`
		Token         string   `json:"token_endpoint"`
		Authorization string   `json:"authorization_endpoint"`
		Device        string   `json:"device_authorization_endpoint"`
		Registration  string   `json:"registration_endpoint"`
		Introspection string   `json:"introspection_endpoint"`
		Grants        []string `json:"grant_types_supported"`
		Responses     []string `json:"response_types_supported"`
		Scopes        []string `json:"scopes_supported"`
	}{b, b + "/auth/token", b + "/authorize/code", b + "/auth/device", b + "/auth/register", b + "/auth/introspect",
		[]string{"authorization_code", "implicit", "urn:ietf:params:oauth:grant-type:device_code"},
		[]string{"code", "id_token", "code token", "id_token token"},
		[]string{"openid", "offline_access", "urn:ietf:params:jmap:core", "urn:ietf:params:jmap:mail", "urn:ietf:params:jmap:submission", "urn:ietf:params:jmap:vacationresponse"}})
}

// openIDMetadata is the document of OpenID Connect Discovery.
func (in *session) openIDMetadata() *response {
	b := in.base()
	return jsonValue(struct {
		Issuer        string   `json:"issuer"`
		Authorization string   `json:"authorization_endpoint"`
		Token         string   `json:"token_endpoint"`
		UserInfo      string   `json:"userinfo_endpoint"`
		JWKS          string   `json:"jwks_uri"`
		Registration  string   `json:"registration_endpoint"`
		Device        string   `json:"device_authorization_endpoint"`
		Scopes        []string `json:"scopes_supported"`
		Responses     []string `json:"response_types_supported"`
		Subjects      []string `json:"subject_types_supported"`
		Grants        []string `json:"grant_types_supported"`
		Algorithms    []string `json:"id_token_signing_alg_values_supported"`
		Claims        []string `json:"claims_supported"`
	}{b, b + "/authorize/code", b + "/auth/token", b + "/auth/userinfo", b + "/auth/jwks.json", b + "/auth/register", b + "/auth/device",
		[]string{"openid", "offline_access"}, []string{"code", "id_token", "id_token token"}, []string{"public"},
		[]string{"authorization_code", "implicit", "urn:ietf:params:oauth:grant-type:device_code"},
		[]string{"RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384", "PS512", "HS256", "HS384", "HS512"},
		[]string{"sub", "name", "preferred_username", "email", "email_verified"}})
}

// oauth answers below /auth what a client meets before it has a token.
func (in *session) oauth(r *request, what string) *response {
	switch {
	case what == "jwks.json" && r.method == "GET":
		if a := in.anonymous(); a != nil {
			return a
		}
		return jsonValue(map[string][]string{"keys": {}})
	case what == "device" && r.method == "POST":
		if a := in.anonymous(); a != nil {
			return a
		}
		b := in.base()
		h := fnv.New64a()
		fmt.Fprint(h, in.srv.now(), in.remote)
		code := strings.ToUpper(fmt.Sprintf("%016x", h.Sum64()))
		user := code[:4] + "-" + code[4:8]
		return jsonValue(struct {
			Device   string `json:"device_code"`
			User     string `json:"user_code"`
			URI      string `json:"verification_uri"`
			Complete string `json:"verification_uri_complete"`
			Expires  int    `json:"expires_in"`
			Interval int    `json:"interval"`
		}{strings.ToLower(code + code), user, b + "/authorize", b + "/authorize/?code=" + user, 1800, 5})
	case what == "token" && r.method == "POST":
		if a := in.anonymous(); a != nil {
			return a
		}
		a := jsonValue(map[string]string{"error": "invalid_grant"})
		a.status = 400
		return a
	case what == "userinfo" && r.method == "GET", what == "introspect" && r.method == "POST":
		who, refusal := in.authorize(r, false)
		if refusal != nil {
			return refusal
		}
		return jsonValue(struct {
			Sub   string `json:"sub"`
			Name  string `json:"preferred_username"`
			Email string `json:"email,omitempty"`
		}{who.account(), who.name, who.primary()})
	}
	return nil
}

// certificateNames are the names and addresses that the certificates in force
// are for.
func (in *session) certificateNames() []string {
	var names []string
	for _, c := range *in.certificates.Load() {
		leaf := c.Leaf
		if leaf == nil {
			var err error
			if leaf, err = x509.ParseCertificate(c.Certificate[0]); err != nil {
				continue
			}
		}
		for _, n := range leaf.DNSNames {
			if !slices.Contains(names, n) && !strings.HasPrefix(n, "mta-sts.") && !strings.HasPrefix(n, "autoconfig.") && !strings.HasPrefix(n, "autodiscover.") {
				names = append(names, n)
			}
		}
		for _, a := range leaf.IPAddresses {
			if !slices.Contains(names, a.String()) {
				names = append(names, a.String())
			}
		}
	}
	slices.Sort(names)
	return names
}

// stsPolicy is the policy of MTA-STS (RFC 8461) and its id; ok is false when
// there is none.
func (in *session) stsPolicy() (text, id string, ok bool) {
	r := &configReader{keys: in.core.keys, errors: make(map[string]problem)}
	mode := r.text("session.mta-sts.mode", "testing")
	var mx []string
	for _, v := range r.values("session.mta-sts.mx") {
		mx = append(mx, v.value)
	}
	if len(mx) == 0 {
		mx = in.certificateNames()
	}
	if in.srv.bugs.Has(bug.PolicyNamesAddress) {
		for _, a := range in.srv.cfg.Addrs {
			mx = append(mx, a.String())
		}
	}
	if len(mx) == 0 || mode == "false" || mode == "none" {
		return "", "", false
	}
	var b strings.Builder
	fmt.Fprintf(&b, "version: STSv1\r\nmode: %s\r\nmax_age: %d\r\n", mode, int(r.duration("session.mta-sts.max-age", 7*24*3600e9).Seconds()))
	for _, m := range mx {
		b.WriteString("mx: " + m + "\r\n")
	}
	h := fnv.New64a()
	io.WriteString(h, b.String())
	return b.String(), fmt.Sprint(h.Sum64()), true
}

func (in *session) mtaSTS() *response {
	text, _, ok := in.stsPolicy()
	if !ok {
		return notFound()
	}
	return content("text/plain", []byte(text))
}

// loginOf is the name that an address signs in with.
func (in *session) loginOf(address string) string {
	if p := in.srv.dir.recipient(address, in.core.subAddresses); p != nil && strings.EqualFold(p.primary(), address) {
		return p.name
	}
	return address
}

// services are the listeners that documents name. They follow the settings as
// they are stored, and not as they are in force.
func (in *session) services() []service {
	keys := in.srv.settings.all()
	return slices.Concat(advertised(keys, "imap"), advertised(keys, "pop3"),
		slices.DeleteFunc(advertised(keys, "smtp"), func(s service) bool { return s.port == 25 }))
}

// autoconfig is the document that Thunderbird reads. It answers for any domain.
func (in *session) autoconfig(r *request) *response {
	address := strings.ToLower(r.query.Get("emailaddress"))
	login, domain := "%EMAILADDRESS%", in.core.report
	if i := strings.LastIndexByte(address, '@'); i >= 0 {
		login, domain = in.loginOf(address), address[i+1:]
	}
	login, domain, address = html.EscapeString(login), html.EscapeString(domain), html.EscapeString(address)
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line(`<?xml version="1.0" encoding="UTF-8"?>`)
	line(`<clientConfig version="1.1">`)
	line("\t<emailProvider id=\"%s\">", domain)
	line("\t\t<domain>%s</domain>", domain)
	line("\t\t<displayName>%s</displayName>", address)
	line("\t\t<displayShortName>%s</displayShortName>", domain)
	for _, s := range in.services() {
		tag, socket := "incomingServer", "STARTTLS"
		if s.protocol == "smtp" {
			tag = "outgoingServer"
		}
		if s.implicit {
			socket = "SSL"
		}
		line("\t\t<%s type=\"%s\">", tag, s.protocol)
		line("\t\t\t<hostname>%s</hostname>", in.core.hostname)
		line("\t\t\t<port>%d</port>", s.port)
		line("\t\t\t<socketType>%s</socketType>", socket)
		line("\t\t\t<username>%s</username>", login)
		line("\t\t\t<authentication>password-cleartext</authentication>")
		line("\t\t</%s>", tag)
	}
	line("\t</emailProvider>")
	for _, d := range [][3]string{{"addressBook", "carddav", "card"}, {"calendar", "caldav", "cal"}, {"fileShare", "webdav", "file"}} {
		line("\t<%s type=\"%s\">", d[0], d[1])
		line("\t\t<username>%s</username>", login)
		line("\t\t<authentication>http-basic</authentication>")
		line("\t\t<serverURL>https://%s/dav/%s</serverURL>", in.core.hostname, d[2])
		line("\t</%s>", d[0])
	}
	line("\t<clientConfigUpdate url=\"https://autoconfig.%s/mail/config-v1.1.xml\"></clientConfigUpdate>", domain)
	line("</clientConfig>")
	return content("application/xml; charset=utf-8", []byte(b.String()))
}

// maxAutodiscover bounds what autodiscover reads, in octets.
const maxAutodiscover = 8192

// autodiscover is the document that Outlook reads.
func (in *session) autodiscover(r *request) *response {
	address, ok := "", len(r.body) <= maxAutodiscover
	if ok {
		address, ok = discoverAddress(r.body)
	}
	if !ok {
		in.log(evBadParameters, field{"details", "Failed to parse autodiscover request"})
		return badParameters("Failed to parse autodiscover request")
	}
	if !strings.Contains(address, "@") {
		return badParameters("Missing domain in email address")
	}
	login, shown := html.EscapeString(in.loginOf(address)), html.EscapeString(address)
	var b strings.Builder
	line := func(format string, a ...any) { fmt.Fprintf(&b, format+"\n", a...) }
	line(`<?xml version="1.0" encoding="UTF-8"?>`)
	line(`<Autodiscover xmlns="http://schemas.microsoft.com/exchange/autodiscover/responseschema/2006">`)
	line("\t<Response xmlns=\"http://schemas.microsoft.com/exchange/autodiscover/outlook/responseschema/2006a\">")
	line("\t\t<User>")
	line("\t\t\t<DisplayName>%s</DisplayName>", shown)
	line("\t\t\t<AutoDiscoverSMTPAddress>%s</AutoDiscoverSMTPAddress>", shown)
	line("\t\t\t<DeploymentId>644560b8-a1ce-429c-8ace-23395843f701</DeploymentId>")
	line("\t\t</User>")
	line("\t\t<Account>")
	line("\t\t\t<AccountType>email</AccountType>")
	line("\t\t\t<Action>settings</Action>")
	for _, s := range in.services() {
		ssl := "off"
		if s.implicit {
			ssl = "on"
		}
		line("\t\t\t<Protocol>")
		line("\t\t\t\t<Type>%s</Type>", strings.ToUpper(s.protocol))
		line("\t\t\t\t<Server>%s</Server>", in.core.hostname)
		line("\t\t\t\t<Port>%d</Port>", s.port)
		line("\t\t\t\t<LoginName>%s</LoginName>", login)
		line("\t\t\t\t<AuthRequired>on</AuthRequired>")
		line("\t\t\t\t<DirectoryPort>0</DirectoryPort>")
		line("\t\t\t\t<ReferralPort>0</ReferralPort>")
		line("\t\t\t\t<SSL>%s</SSL>", ssl)
		if s.implicit {
			line("\t\t\t\t<Encryption>TLS</Encryption>")
		}
		line("\t\t\t\t<SPA>off</SPA>")
		line("\t\t\t</Protocol>")
	}
	line("\t\t</Account>")
	line("\t</Response>")
	line("</Autodiscover>")
	return content("application/xml; charset=utf-8", []byte(b.String()))
}

// discoverAddress reads Autodiscover, Request, EMailAddress, whatever the case.
func discoverAddress(body []byte) (string, bool) {
	d := xml.NewDecoder(bytes.NewReader(body))
	d.Strict = false
	d.CharsetReader = func(_ string, in io.Reader) (io.Reader, error) { return in, nil }
	want := []string{"autodiscover", "request", "emailaddress"}
	for len(want) > 0 {
		t, err := d.Token()
		if err != nil {
			return "", false
		}
		if s, ok := t.(xml.StartElement); ok {
			switch name := strings.ToLower(s.Name.Local); {
			case name == want[0]:
				want = want[1:]
			case name == "acceptableresponseschema":
				if d.Skip() != nil {
					return "", false
				}
			default:
				return "", false
			}
		}
	}
	t, err := d.Token()
	text, ok := t.(xml.CharData)
	address := strings.TrimSpace(string(text))
	return strings.ToLower(address), err == nil && ok && address != ""
}

// dnsRecord is one record that the management API proposes.
type dnsRecord struct {
	Type    string `json:"type"`
	Name    string `json:"name"`
	Content string `json:"content"`
}

// dnsRecords are the records that a domain should have. They name
// server.hostname, whatever http.url says.
func (in *session) dnsRecords(domain string) []dnsRecord {
	host := in.core.hostname
	var out []dnsRecord
	add := func(kind, name, format string, a ...any) {
		out = append(out, dnsRecord{kind, name + ".", fmt.Sprintf(format, a...)})
	}
	add("MX", domain, "10 %s.", host)
	if host != "mail."+domain {
		add("CNAME", "mail."+domain, "%s.", host)
	}
	if host == domain || strings.HasSuffix(host, "."+domain) {
		add("TXT", host, "v=spf1 a ra=postmaster -all")
	}
	add("TXT", domain, "v=spf1 mx ra=postmaster -all")
	keys := in.srv.settings.all()
	https := false
	for _, s := range slices.Concat(advertised(keys, "http"), advertised(keys, "imap"), advertised(keys, "pop3"), advertised(keys, "smtp")) {
		suffix := ""
		if s.implicit {
			suffix = "s"
		}
		switch {
		case s.protocol == "http" && s.implicit:
			https = true
			for _, what := range []string{"jmap", "caldavs", "carddavs"} {
				add("SRV", "_"+what+"._tcp."+domain, "0 1 %d %s.", s.port, host)
			}
		case s.protocol == "http", s.protocol == "smtp" && s.port == 25:
		case s.protocol == "smtp":
			add("SRV", "_submission"+suffix+"._tcp."+domain, "0 1 %d %s.", s.port, host)
		default:
			add("SRV", "_"+s.protocol+suffix+"._tcp."+domain, "0 1 %d %s.", s.port, host)
		}
	}
	if https {
		add("CNAME", "autoconfig."+domain, "%s.", host)
		add("CNAME", "autodiscover."+domain, "%s.", host)
		if _, id, ok := in.stsPolicy(); ok {
			add("CNAME", "mta-sts."+domain, "%s.", host)
			add("TXT", "_mta-sts."+domain, "v=STSv1; id=%s", id)
		}
	}
	add("TXT", "_dmarc."+domain, "v=DMARC1; p=reject; rua=mailto:postmaster@%[1]s; ruf=mailto:postmaster@%[1]s", domain)
	add("TXT", "_smtp._tls."+domain, "v=TLSRPTv1; rua=mailto:postmaster@%s", domain)
	for _, c := range *in.certificates.Load() {
		leaf, err := x509.ParseCertificate(c.Certificate[0])
		if err != nil {
			continue
		}
		for _, n := range leaf.DNSNames {
			if !strings.HasSuffix(n, domain) || strings.HasPrefix(n, "mta-sts.") || strings.HasPrefix(n, "autoconfig.") || strings.HasPrefix(n, "autodiscover.") {
				continue
			}
			for selector, b := range [][]byte{leaf.Raw, leaf.RawSubjectPublicKeyInfo} {
				add("TLSA", "_25._tcp."+n, "3 %d 1 %s", selector, sha256hex(b))
				add("TLSA", "_25._tcp."+n, "3 %d 2 %s", selector, sha512hex(b))
			}
		}
	}
	return out
}
