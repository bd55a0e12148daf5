package stalwart

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net/mail"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/proto/dns"
)

// A Zone is the DNS that a server asks: records by their name, in lower case
// and without its last dot. A name that is not there does not exist.
type Zone struct {
	TXT  map[string][]string
	MX   map[string][]string // host names
	Addr map[string][]netip.Addr
	PTR  map[string][]string // by the name that an address's records stand under
	// Silent are names that nobody answers for: a check that asks for one ends
	// in an error that may pass.
	Silent []string
}

// AddHosts adds what lines of /etc/hosts say of names.
func (z *Zone) AddHosts(text string) error {
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		line, _, _ = strings.Cut(line, "#")
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		if err != nil || len(f) < 2 {
			return fmt.Errorf("line %d: %q is no line of /etc/hosts: write an address and a name", n, strings.TrimSpace(line))
		}
		if z.Addr == nil {
			z.Addr = make(map[string][]netip.Addr)
		}
		for _, name := range f[1:] {
			z.Addr[z.name(name)] = append(z.Addr[z.name(name)], a.Unmap())
		}
	}
	return nil
}

func (z *Zone) name(n string) string { return strings.ToLower(strings.TrimSuffix(n, ".")) }

// silent says whether nobody answers for a name.
func (z *Zone) silent(n string) bool { return z != nil && slices.Contains(z.Silent, z.name(n)) }

func (z *Zone) txt(n string) []string {
	if z == nil {
		return nil
	}
	return z.TXT[z.name(n)]
}

func (z *Zone) addr(n string) []netip.Addr {
	if z == nil {
		return nil
	}
	return z.Addr[z.name(n)]
}

func (z *Zone) mx(n string) []string {
	if z == nil {
		return nil
	}
	return z.MX[z.name(n)]
}

// resolves says whether a host name has an address.
func (z *Zone) resolves(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil {
		return true
	}
	return len(z.addr(host)) > 0
}

// iprevOutput is what the check of the reverse DNS came to.
type iprevOutput struct {
	result string // pass, fail, permerror, temperror
	why    string
	ptr    string
}

// eventOf names a result as the log does: a kind of event of its own.
func eventOf(kind, result string) string {
	names := map[string]string{
		"spf pass": "SPF check passed", "spf fail": "SPF check failed", "spf softfail": "SPF soft fail", "spf neutral": "SPF neutral result",
		"spf temperror": "SPF temporary error", "spf permerror": "SPF permanent error", "spf none": "No SPF record",
		"dkim pass": "DKIM verification passed", "dkim neutral": "DKIM verification neutral", "dkim fail": "DKIM verification failed",
		"dkim permerror": "DKIM permanent error", "dkim temperror": "DKIM temporary error", "dkim none": "No DKIM signature",
		"dmarc pass": "DMARC check passed", "dmarc fail": "DMARC check failed", "dmarc none": "No DMARC record",
		"iprev pass": "IPREV check passed", "iprev fail": "IPREV check failed", "iprev permerror": "IPREV permanent error",
	}
	id := strings.NewReplacer("permerror", "perm-error", "temperror", "temp-error", "softfail", "soft-fail").Replace(result)
	return names[kind+" "+result] + " (" + kind + "." + id + ")"
}

func (o *iprevOutput) words() string {
	say := eventOf("iprev", o.result)
	if o.result == "permerror" {
		say += " { causedBy = DNS record not found (mail-auth.dns-record-not-found) }"
	}
	return say
}

// iprev looks whether the name of an address has the address (RFC 8601, 3.).
func (z *Zone) iprev(a netip.Addr) *iprevOutput {
	var names []string
	if z != nil {
		names = z.PTR[dns.Reverse(a)]
	}
	if len(names) == 0 {
		return &iprevOutput{result: "permerror", why: "dns record not found"}
	}
	for _, n := range names[:min(2, len(names))] {
		if slices.Contains(z.addr(n), a) {
			return &iprevOutput{result: "pass", ptr: names[0]}
		}
	}
	return &iprevOutput{result: "fail", why: "policy not aligned", ptr: names[0]}
}

// spfOutput is what a check of SPF came to (RFC 7208, 2.6).
type spfOutput struct{ result string }

// words is how header fields say it.
func (o *spfOutput) words(host, from string, ip netip.Addr) string {
	say := map[string]string{
		"pass":      "domain of %[1]s designates %[2]s as permitted sender",
		"fail":      "domain of %[1]s does not designate %[2]s as permitted sender",
		"softfail":  "domain of %[1]s reports soft fail for %[2]s",
		"neutral":   "domain of %[1]s reports neutral for %[2]s",
		"temperror": "temporary dns error validating %[1]s",
		"permerror": "unable to verify SPF record for %[1]s",
		"none":      "no SPF records found for %[1]s",
	}[o.result]
	say = strings.NewReplacer("%[1]s", from, "%[2]s", ip.String()).Replace(say)
	return fmt.Sprintf("%s (%s: %s)", o.result, host, say)
}

// maxSPFLookups bounds the records that a check reads (RFC 7208, 4.6.4).
const maxSPFLookups = 10

// spf checks whether an address may send for a domain.
func (z *Zone) spf(ip netip.Addr, domain, _, _ string) *spfOutput {
	lookups := 0
	return &spfOutput{z.checkHost(ip, domain, &lookups)}
}

func (z *Zone) checkHost(ip netip.Addr, domain string, lookups *int) string {
	if z.silent(domain) {
		return "temperror"
	}
	var records []string
	for _, t := range z.txt(domain) {
		if t == "v=spf1" || strings.HasPrefix(t, "v=spf1 ") {
			records = append(records, t)
		}
	}
	switch len(records) {
	case 0:
		return "none"
	case 1:
	default:
		return "permerror"
	}
	redirect := ""
	for _, term := range strings.Fields(records[0])[1:] {
		if name, value, ok := strings.Cut(term, "="); ok && !strings.ContainsAny(name, ":/") {
			if strings.EqualFold(name, "redirect") {
				redirect = value
			}
			continue
		}
		result := "pass"
		switch term[0] {
		case '+':
			term = term[1:]
		case '-':
			result, term = "fail", term[1:]
		case '~':
			result, term = "softfail", term[1:]
		case '?':
			result, term = "neutral", term[1:]
		}
		mech, value, _ := strings.Cut(term, ":")
		mech, bits, _ := strings.Cut(mech, "/")
		target := domain
		if value != "" {
			target, _, _ = strings.Cut(value, "/")
		}
		_ = bits
		match := false
		switch strings.ToLower(mech) {
		case "all":
			match = true
		case "ip4", "ip6":
			p, err := netip.ParsePrefix(value)
			if err != nil {
				a, err := netip.ParseAddr(value)
				if err != nil {
					return "permerror"
				}
				p = netip.PrefixFrom(a, a.BitLen())
			}
			match = p.Masked().Contains(ip)
		case "a", "mx", "include", "exists", "ptr":
			if *lookups++; *lookups > maxSPFLookups {
				return "permerror"
			}
			switch strings.ToLower(mech) {
			case "a":
				match = slices.Contains(z.addr(target), ip)
			case "mx":
				match = slices.ContainsFunc(z.mx(target), func(h string) bool { return slices.Contains(z.addr(h), ip) })
			case "exists":
				match = len(z.addr(target)) > 0
			case "include":
				switch z.checkHost(ip, target, lookups) {
				case "pass":
					match = true
				case "none", "permerror":
					return "permerror"
				case "temperror":
					return "temperror"
				}
			}
		default:
			return "permerror"
		}
		if match {
			return result
		}
	}
	if redirect != "" {
		if *lookups++; *lookups > maxSPFLookups {
			return "permerror"
		}
		if r := z.checkHost(ip, redirect, lookups); r != "none" {
			return r
		}
		return "permerror"
	}
	return "neutral"
}

// authenticateMessage checks DKIM, ARC and DMARC. It returns what stands in
// Authentication-Results, and the reply to a message that is refused.
func (s *smtpSession) authenticateMessage(raw []byte, fields []headerField) (results, refusal string) {
	dkim, arc, dmarc := s.chooseText("auth.dkim.verify"), s.chooseText("auth.arc.verify"), s.chooseText("auth.dmarc.verify")
	var signatures []dkimOutput
	from := fromDomain(fields)
	if verifies(dkim) || verifies(dmarc) {
		signatures = s.srv.cfg.Zone.dkim(raw, fields, s.srv.now())
		pass := slices.ContainsFunc(signatures, func(d dkimOutput) bool { return d.result == "pass" })
		e := evDKIMFail
		if pass {
			e = evDKIMPass
		}
		var say []string
		for _, d := range signatures {
			say = append(say, eventOf("dkim", d.result))
		}
		s.log(e, field{"strict", dkim == "strict"}, field{"result", bare("[" + strings.Join(say, ", ") + "]")}, field{"elapsed", time.Duration(0)})
		if dkim == "strict" && !pass && slices.ContainsFunc(signatures, func(d dkimOutput) bool { return d.result == "temperror" }) {
			return "", "451 4.7.20 No passing DKIM signatures found."
		}
		if dkim == "strict" && !pass {
			return "", "550 5.7.20 No passing DKIM signatures found."
		}
	}
	if verifies(arc) {
		// No chain is read: a message without one is as good as one that has it.
		s.log(evARCPass, field{"strict", arc == "strict"}, field{"result", bare(eventOf("dkim", "none"))}, field{"elapsed", time.Duration(0)})
	}
	var b strings.Builder
	for _, d := range signatures {
		b.WriteString(";\r\n\tdkim=" + d.result)
		if d.why != "" {
			b.WriteString(" (" + d.why + ")")
		}
		fmt.Fprintf(&b, " header.d=%s header.s=%s", d.domain, d.selector)
		if len(d.b) >= 6 {
			b.WriteString(" header.b=" + base64.StdEncoding.EncodeToString(d.b[:6]))
		}
	}
	if s.ehloSPF != nil {
		fmt.Fprintf(&b, ";\r\n\tspf=%s smtp.helo=%s", s.ehloSPF.words(s.hostname, "postmaster@"+s.helo, s.remote.Addr()), s.helo)
	}
	if s.mailSPF != nil {
		as := s.sender.address
		if as == "" {
			as = "postmaster@" + s.helo
		}
		shown := s.sender.address
		if shown == "" {
			shown = "<>"
		}
		fmt.Fprintf(&b, ";\r\n\tspf=%s smtp.mailfrom=%s", s.mailSPF.words(s.hostname, as, s.remote.Addr()), shown)
	}
	if s.reverse != nil {
		b.WriteString(";\r\n\tiprev=" + s.reverse.result)
		if s.reverse.why != "" {
			b.WriteString(" (" + s.reverse.why + ")")
		}
		ip := s.remote.Addr().String()
		if s.remote.Addr().Is6() {
			ip = `"` + ip + `"`
		}
		b.WriteString(" policy.iprev=" + ip)
	}
	if s.mailSPF == nil || !verifies(dmarc) {
		return b.String(), ""
	}
	policy := s.srv.cfg.Zone.dmarc(from)
	aligned := func(domain string) bool { return organisation(domain) == organisation(from) && from != "" }
	sent := domainPart(s.sender.lower)
	if sent == "" {
		sent = s.helo
	}
	pass := s.mailSPF.result == "pass" && aligned(sent) ||
		slices.ContainsFunc(signatures, func(d dkimOutput) bool { return d.result == "pass" && aligned(d.domain) })
	result, shown := "none", "none"
	if policy != "" {
		shown = policy
		// What passed nothing is aligned with nothing, and fails nothing.
		switch {
		case pass:
			result = "pass"
		case s.mailSPF.result == "pass", slices.ContainsFunc(signatures, func(d dkimOutput) bool { return d.result == "pass" }):
			result = "fail (policy not aligned)"
		}
	}
	fmt.Fprintf(&b, ";\r\n\tdmarc=%s header.from=%s policy.dmarc=%s", result, from, shown)
	e := evDMARCFail
	if result == "pass" {
		e = evDMARCPass
	}
	word, _, _ := strings.Cut(result, " ")
	s.log(e, field{"strict", dmarc == "strict"}, field{"domain", from}, field{"policy", shown}, field{"result", bare(eventOf("dmarc", word))}, field{"elapsed", time.Duration(0)})
	if dmarc == "strict" && policy == "reject" && !pass {
		return "", "550 5.7.1 Email rejected per DMARC policy."
	}
	return b.String(), ""
}

// fromDomain is the domain of the author.
func fromDomain(fields []headerField) string {
	a, err := mail.ParseAddress(fieldNamed(fields, "from"))
	if err != nil {
		return ""
	}
	return strings.ToLower(domainPart(a.Address))
}

// dmarc is the policy of a domain, or of its organisation: none, quarantine or
// reject; empty if there is no record (RFC 7489, 6.6.3).
func (z *Zone) dmarc(domain string) string {
	for i, d := range []string{domain, organisation(domain)} {
		for _, t := range z.txt("_dmarc." + d) {
			tags := tagList(t)
			if tags["v"] != "DMARC1" {
				continue
			}
			p := tags["p"]
			if sp := tags["sp"]; i > 0 && sp != "" {
				p = sp
			}
			switch p {
			case "quarantine", "reject":
				return p
			}
			return "none"
		}
	}
	return ""
}

// tagList reads a list of tags (RFC 6376, 3.2).
func tagList(s string) map[string]string {
	out := make(map[string]string)
	for t := range strings.SplitSeq(s, ";") {
		if k, v, ok := strings.Cut(t, "="); ok {
			out[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return out
}

// dkimOutput is what one signature came to (RFC 6376).
type dkimOutput struct {
	result, why      string
	domain, selector string
	b                []byte
}

// maxSignatures bounds the signatures that are verified.
const maxSignatures = 10

var blanks = regexp.MustCompile(`[ \t\r\n]+`)

// dkim verifies the signatures of a message.
func (z *Zone) dkim(raw []byte, fields []headerField, now time.Time) []dkimOutput {
	var out []dkimOutput
	for _, f := range fields {
		if f.name != "dkim-signature" || len(out) == maxSignatures {
			continue
		}
		tags := tagList(f.value)
		d := dkimOutput{domain: strings.ToLower(tags["d"]), selector: tags["s"]}
		d.b, _ = base64.StdEncoding.DecodeString(blanks.ReplaceAllString(tags["b"], ""))
		d.result, d.why = z.verify(raw, fields, f, tags, d.b, now)
		out = append(out, d)
	}
	return out
}

func (z *Zone) verify(raw []byte, fields []headerField, f headerField, tags map[string]string, sig []byte, now time.Time) (result, why string) {
	if tags["v"] != "1" || tags["d"] == "" || tags["s"] == "" || len(sig) == 0 {
		return "neutral", "missing parameters"
	}
	if x := tags["x"]; x != "" {
		var at int64
		if _, err := fmt.Sscan(x, &at); err != nil || now.Unix() > at {
			return "neutral", "signature error"
		}
	}
	headCanon, bodyCanon, _ := strings.Cut(tags["c"], "/")
	_, body := headerOf(raw)
	body = bytes.TrimPrefix(bytes.TrimPrefix(body, []byte("\r\n")), []byte("\n"))
	sum := sha256.Sum256(canonicalBody(body, bodyCanon == "relaxed"))
	want, _ := base64.StdEncoding.DecodeString(blanks.ReplaceAllString(tags["bh"], ""))
	if !bytes.Equal(sum[:], want) {
		return "neutral", "body hash did not verify"
	}
	var key string
	if z.silent(tags["s"] + "._domainkey." + tags["d"]) {
		return "temperror", "dns error"
	}
	for _, t := range z.txt(tags["s"] + "._domainkey." + tags["d"]) {
		if k := tagList(t); k["p"] != "" {
			key = k["p"]
		}
	}
	if key == "" {
		return "permerror", "dns record not found"
	}
	der, err := base64.StdEncoding.DecodeString(blanks.ReplaceAllString(key, ""))
	if err != nil {
		return "permerror", "dns record parse error"
	}
	var signed bytes.Buffer
	left := make(map[string]int)
	for _, name := range strings.Split(tags["h"], ":") {
		name = strings.ToLower(strings.TrimSpace(name))
		var all []headerField
		for _, o := range fields {
			if o.name == name {
				all = append(all, o)
			}
		}
		if i := len(all) - 1 - left[name]; i >= 0 {
			signed.WriteString(canonicalField(all[i].raw, headCanon == "relaxed"))
			left[name]++
		}
	}
	own := regexp.MustCompile(`((?:^|[;:\s])b\s*=)[^;]*`).ReplaceAllString(f.raw, "$1")
	signed.WriteString(strings.TrimSuffix(canonicalField(own, headCanon == "relaxed"), "\r\n"))
	hashed := sha256.Sum256(signed.Bytes())
	switch tags["a"] {
	case "ed25519-sha256":
		if len(der) == ed25519.PublicKeySize && ed25519.Verify(der, hashed[:], sig) {
			return "pass", ""
		}
	case "rsa-sha256":
		if k, err := x509.ParsePKIXPublicKey(der); err == nil {
			if pub, ok := k.(*rsa.PublicKey); ok && rsa.VerifyPKCS1v15(pub, crypto.SHA256, hashed[:], sig) == nil {
				return "pass", ""
			}
		}
	default:
		return "neutral", "unsupported algorithm"
	}
	return "fail", "verification failed"
}

func canonicalField(raw string, relaxed bool) string {
	if !relaxed {
		return strings.TrimRight(raw, "\r\n") + "\r\n"
	}
	name, value, _ := strings.Cut(raw, ":")
	return strings.ToLower(strings.TrimSpace(name)) + ":" + strings.TrimSpace(blanks.ReplaceAllString(value, " ")) + "\r\n"
}

func canonicalBody(b []byte, relaxed bool) []byte {
	lines := strings.Split(strings.ReplaceAll(string(b), "\r\n", "\n"), "\n")
	if relaxed {
		for i, l := range lines {
			lines[i] = strings.TrimRight(regexp.MustCompile(`[ \t]+`).ReplaceAllString(l, " "), " ")
		}
	}
	for len(lines) > 0 && lines[len(lines)-1] == "" {
		lines = lines[:len(lines)-1]
	}
	if len(lines) == 0 {
		if relaxed {
			return nil
		}
		return []byte("\r\n")
	}
	return []byte(strings.Join(lines, "\r\n") + "\r\n")
}
