package reports

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/result"
)

const (
	bookworm = "dovecot-postfix@bookworm"
	trixie   = "dovecot-postfix@trixie"
	old      = "stalwart@0.15.5"
)

// hostile is what a server could put into a reply to break a report.
const hostile = "250 \x1b[2J\x1b]0;owned\x07 NUL\x00 ]]> <script>alert(1)</script> \"'&amp; `|[x](http://evil.example) \u202eexe.txt\u2066 \xff\xfe \r\nSet-Cookie: x"

// facet makes a facet from its endpoint's name.
func facet(endpoint, family, driver string) result.Facet {
	f := result.Facet{Endpoint: endpoint, Family: family, Driver: driver}
	switch endpoint {
	case "imap", "imaps":
		f.Protocol, f.Port, f.TLS = "imap", 143, "starttls"
	case "pop3", "pop3s":
		f.Protocol, f.Port, f.TLS = "pop3", 110, "starttls"
	case "sieve":
		f.Protocol, f.Port, f.TLS = "managesieve", 4190, "starttls"
	case "smtp":
		f.Protocol, f.Port, f.TLS = "smtp", 25, "none"
	case "submission", "submissions":
		f.Protocol, f.Port, f.TLS = "smtp", 587, "starttls"
	}
	switch endpoint {
	case "imaps":
		f.Port, f.TLS = 993, "implicit"
	case "pop3s":
		f.Port, f.TLS = 995, "implicit"
	case "submissions":
		f.Port, f.TLS = 465, "implicit"
	}
	return f
}

// claim is one scenario of the sample.
type claim struct {
	id, text, level, risk, requirements, means string
}

var claims = []claim{
	{"client-address.imap", "An IMAP login that the proxy announces is recorded under the client's own address.", "must", "R1", "A-03 A-15", "The source does not believe the proxy on this port: it records, limits and bans the proxy instead of the user."},
	{"client-address.pop3", "A POP3 login that the proxy announces is recorded under the client's own address.", "must", "R1", "A-05 A-15", "The source does not believe the proxy on this port: it records, limits and bans the proxy instead of the user."},
	{"client-address.proxy-as-seen", "The source sees the proxy's own address.", "must", "R1", "J-10", "Something between proxy and source translates addresses."},
	{"client-address.sieve", "A ManageSieve login that the proxy announces is recorded under the client's own address.", "must", "R1", "A-11 A-15", "The source does not believe the proxy on this port: it records, limits and bans the proxy instead of the user."},
	{"client-address.submission", "A submission that the proxy announces is recorded under the client's own address.", "must", "R4", "A-08 A-15", "The source does not believe the proxy on this port, or refuses the client's address."},
	{"imap-id.offered", "The IMAP greeting lists ID.", "must", "R0", "C-01", "The proxy announces nobody."},
	{"trust.imap-neighbour", "An address that the proxy's neighbour announces over IMAP is not believed.", "must", "R1", "D-13 D-16", "The trust reaches further than the proxy."},
	{"relay.not-open-stranger", "A stranger cannot relay.", "must", "R3", "E-14", "The source is an open relay."},
	{"relay.delivers-bdat", "Mail from the new server is delivered, with BDAT.", "must", "R4", "E-13", "Mail for accounts that have not moved is lost."},
	{"relay.no-greylisting", "The new server's first mail is not greylisted.", "should", "R4", "E-10", "The first mail of every sender is delayed."},
	{"xclient.concurrency", "More clients than one address may hold at once can submit.", "should", "R1", "B-13", "At busy times users are turned away."},
}

func at(id string) (file string, group string) {
	group, name, _ := strings.Cut(id, ".")
	return "scenarios/" + group + "/" + name + ".txtar", group
}

// passing makes a result that passes, with a dialogue and a witness.
func passing(c claim, source string, f result.Facet, n int) result.Result {
	file, _ := at(c.id)
	token := fmt.Sprintf("mpk3x9a%04d", n)
	client := map[string]string{"ip4": "198.51.100.7", "ip6": "2001:db8:c::7"}[f.Family]
	own := map[string]string{"ip4": "203.0.113.10", "ip6": "2001:db8:1::10"}[f.Family]
	server := map[string]string{"ip4": "203.0.113.100", "ip6": "2001:db8:1::100"}[f.Family]
	bracket := func(a string) string {
		if strings.Contains(a, ":") {
			return "[" + a + "]"
		}
		return a
	}
	t := &strings.Builder{}
	line := func(at float64, dir, text string) { fmt.Fprintf(t, "%-4s +%.4f %s %s\n", "A", at, dir, text) }
	line(.0012, "==", fmt.Sprintf("%s:%d -> %s:%d proxy to %s", bracket(own), 40000+n, bracket(server), f.Port, f.Endpoint))
	if f.TLS == "implicit" {
		line(.0019, "==", "TLS 1.3 established")
		line(.0024, "<~", "* OK [CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ AUTH=PLAIN] Dovecot (Debian) ready.")
	} else {
		line(.0013, "<-", "* OK [CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE LITERAL+ STARTTLS LOGINDISABLED] Dovecot (Debian) ready.")
		line(.0014, "->", "s1 STARTTLS")
		line(.0016, "<-", "s1 OK Begin TLS negotiation now.")
		line(.0030, "==", "TLS 1.3 established")
	}
	line(.0031, "~>", fmt.Sprintf(`F1 ID ("x-originating-ip" "%s" "x-originating-port" "%d" "x-session-id" "%s")`, client, 20000+n, token))
	line(.0036, "<~", "* ID NIL")
	line(.0036, "<~", "F1 OK ID completed (0.001 + 0.000 secs).")
	line(.0037, "~>", "a1 AUTHENTICATE PLAIN <secret:alice>")
	line(.0062, "<~", "* CAPABILITY IMAP4rev1 SASL-IR LOGIN-REFERRALS ID ENABLE IDLE SORT SORT=DISPLAY THREAD=REFERENCES THREAD=REFS THREAD=ORDEREDSUBJECT MULTIAPPEND URL-PARTIAL CATENATE UNSELECT CHILDREN NAMESPACE UIDPLUS LIST-EXTENDED")
	line(.0062, "<~", "a1 OK Logged in")
	line(.0063, "~>", "a2 LOGOUT")
	line(.0066, "<~", "* BYE Logging out")
	line(.0066, "<~", "a2 OK Logout completed (0.001 + 0.000 secs).")
	line(.0067, "<x", "closed")
	return result.Result{
		ID: c.id, Source: source, Origin: result.FromImage, Level: result.Level(c.level), Claim: c.text,
		Requirements: strings.Fields(c.requirements), Spec: "RFC 2971, section 3.3", Facet: f,
		Verdict: result.Pass, Risk: c.risk, Seconds: .0071 + float64(n%7)/1000,
		Phases:   []result.Phase{{Title: "the proxy announces the client and signs in for it", Line: 12, Seconds: .0067}, {Title: "the source recorded the client, and not the proxy", Line: 22, Seconds: .0004}},
		Findings: []result.Finding{},
		Witness: []result.Witness{{Kind: "log", JoinedBy: "session=" + token,
			Line: fmt.Sprintf("imap-login: Info: Login: user=<u%04d@lab.example>, method=PLAIN, rip=%s, lip=%s, mpid=4711, TLS, session=<%s>", n, client, server, token)}},
		Transcript: t.String(), File: file, Line: 1,
	}
}

// failing turns a result into one that fails.
func failing(r result.Result, c claim, f result.Finding) result.Result {
	r.Verdict, r.Line = result.Fail, 24
	f.Means, f.At = c.means, result.At{File: r.File, Line: 24}
	if f.Evidence == nil {
		f.Evidence = []string{}
	}
	r.Findings = []result.Finding{f}
	return r
}

// sampleRun is a run in which everything that a report must show occurs once.
func sampleRun() *result.Run {
	run := &result.Run{
		Schema: result.Schema,
		Tool:   result.Tool{Version: "0.1.0", Commit: "53d3fc7"},
		Target: result.Target{Kind: "docker", Proxy: "reference", Engine: "docker 20.10.24", Sources: []result.Source{
			{Name: bookworm, Kind: "dovecot-postfix", Version: "bookworm", Profile: "instrumented", Origin: result.FromImage, Layers: []string{"trust-missing"}, Software: "Dovecot 2.3.19.1, Postfix 3.7.11"},
			{Name: trixie, Kind: "dovecot-postfix", Version: "trixie", Profile: "instrumented", Origin: result.FromImage, Layers: []string{"ipv4-only"}, Software: "Dovecot 2.4.1, Postfix 3.10.5"},
			{Name: "generic", Kind: "generic", Profile: "as-shipped", Origin: result.FromImage, Layers: []string{"overlay ./ours"}},
			{Name: old, Kind: "stalwart", Version: "0.15.5", Profile: "as-shipped", Origin: result.FromReference},
		}},
		Plan:    result.Plan{SHA256: "9f2c61b0a7d84e55c1f0a4f3b2e6d9870c5a4b3e2d1f0a9b8c7d6e5f4a3b2c1d", MaxRisk: "R5"},
		Started: time.Date(2026, 12, 1, 9, 30, 0, 0, time.UTC), Seconds: 8.437, Exit: result.ExitFailed,
		Notices: []string{
			"Nothing that can run stalwart@0.15.5 was given: a reference server stands in for it. Its results are practice, not evidence; name one with --source stalwart@0.15.5=image:REF.",
		},
		Problems: []result.Problem{{
			Source: "generic", Stage: "overlay", Where: "./ours/dovecot/10-trust.conf",
			Words: "doveconf: Fatal: Error in configuration file /etc/dovecot/overlay/10-trust.conf line 3: Unknown setting: login_trusted_network",
			Remedy: &result.Remedy{Text: "Correct the line, then start the run again.", Changes: []result.Change{{File: "./ours/dovecot/10-trust.conf", Line: 3,
				Setting: "login_trusted_networks", Found: "login_trusted_network = 203.0.113.10", Text: "login_trusted_networks = 203.0.113.10"}}},
		}},
		Excluded: []result.Excluded{{ID: "client-address.ban", Reason: "its hazard \"ban\" was not allowed: --allow ban"}},
	}
	n := 0
	add := func(r result.Result) *result.Result {
		n++
		run.Results = append(run.Results, r)
		return &run.Results[len(run.Results)-1]
	}
	endpoints := map[string][]string{
		"client-address.imap": {"imap", "imaps"}, "client-address.pop3": {"pop3", "pop3s"}, "client-address.sieve": {"sieve"},
		"client-address.submission": {"submission", "submissions"}, "client-address.proxy-as-seen": {"smtp"}, "imap-id.offered": {"imap", "imaps"},
		"trust.imap-neighbour": {"imap", "imaps"}, "relay.not-open-stranger": {"smtp"}, "relay.delivers-bdat": {"smtp"},
		"relay.no-greylisting": {"smtp"}, "xclient.concurrency": {"submission"},
	}
	missing := result.Diagnosis{
		Code: "DX-14", Title: "the source does not believe the proxy on imap, imaps, pop3, pop3s and sieve", Source: bookworm, Level: result.Must,
		Means:           "Whatever the proxy announces on these ports is ignored or refused. Every user appears under the proxy's address: limits and bans hit all of them at once, and where the announcement is refused the proxy turns them away.",
		DiscriminatedBy: []string{"announced clients were recorded under the proxy's address (imap, imaps, pop3, pop3s and sieve, ip4 and ip6)", "the announcement is not offered to the proxy (pop3, pop3s and sieve, ip4 and ip6)"},
		Alternatives:    []string{"MP-NAT, address translation: the source records the proxy's own address", "MP-ID-HIDDEN, an announcement that is not offered but would be believed"},
		Remedy: result.Remedy{Text: "Name the proxy's addresses in the trust list of these services.",
			Changes: []result.Change{{File: "/etc/dovecot/local.conf", Setting: "login_trusted_networks", Text: "login_trusted_networks = 203.0.113.10 2001:db8:1::10",
				Because: "IMAP ID and XCLIENT over POP3 and ManageSieve are believed from there", Layer: "dovecot/99-remedy.conf"}},
			Apply: []string{"doveadm reload"}},
	}
	ipv6 := result.Diagnosis{
		Code: "DX-19", Title: "Postfix does not speak IPv6", Source: trixie, Level: result.Must,
		Means:           "Postfix refuses every address of a family that inet_protocols leaves out, also in XCLIENT. Users who come over IPv6 cannot submit through the proxy, and each of them counts against the source's health there.",
		DiscriminatedBy: []string{`an announced IPv6 address was answered with "Bad ADDR syntax", an IPv4 address was not (submission and submissions, ip6)`, "postconf -n says inet_protocols = ipv4"},
		Alternatives:    []string{"a firewall against IPv6: it would not change what Postfix says to XCLIENT"},
		Remedy: result.Remedy{Text: "Let Postfix speak both families. It must be stopped and started for that.",
			Changes: []result.Change{{File: "/etc/postfix/main.cf", Line: 41, Setting: "inet_protocols", Found: "ipv4", Text: "inet_protocols = all",
				Because: "addresses of a family that is not enabled are refused in XCLIENT too", Layer: "postfix/main.cf"}},
			Apply: []string{"postfix stop && postfix start"}},
	}
	for _, c := range claims {
		for _, source := range []string{bookworm, trixie} {
			for _, e := range endpoints[c.id] {
				for _, family := range []string{"ip4", "ip6"} {
					driver := "as-proxy"
					if strings.HasPrefix(c.id, "relay.") || strings.HasPrefix(c.id, "trust.") {
						driver = "direct"
					}
					r := passing(c, source, facet(e, family, driver), n)
					proxy := map[string]string{"ip4": "203.0.113.10", "ip6": "2001:db8:1::10"}[family]
					client := map[string]string{"ip4": "198.51.100.7", "ip6": "2001:db8:c::7"}[family]
					switch {
					case source == bookworm && strings.HasPrefix(c.id, "client-address.") && e != "submission" && e != "submissions" && e != "smtp":
						r = failing(r, c, result.Finding{Code: "mismatch", Wanted: "the source's login record of this session with rip=" + client,
							Found: "rip=" + proxy + " (the proxy's)", Remedy: missing.Remedy.Text,
							Evidence: []string{strings.Replace(r.Witness[0].Line, "rip="+client, "rip="+proxy, 1)}, Facts: []string{"recorded:rip=proxy"}})
						r.Witness[0].Line = r.Findings[0].Evidence[0]
						r.ExplainedBy = missing.Code
						missing.Results = append(missing.Results, r.Key())
					case source == trixie && c.id == "client-address.submission" && family == "ip6":
						r = failing(r, c, result.Finding{Code: "mismatch", Wanted: "220 {}", Found: "501 5.5.4 Bad ADDR syntax: IPV6:2001:db8:c::7", Remedy: ipv6.Remedy.Text,
							Facts: []string{"reply=501 5.5.4 Bad ADDR syntax: IPV6:2001:db8:c::7"}})
						r.Witness = []result.Witness{}
						r.ExplainedBy = ipv6.Code
						ipv6.Results = append(ipv6.Results, r.Key())
					case c.id == "trust.imap-neighbour" && source == trixie && e == "imaps" && family == "ip4":
						r.Verdict, r.Reason, r.Witness = result.Inconclusive, "no log of dovecot-postfix@trixie was named: to judge this claim, say where its mail log can be read", []result.Witness{}
					case c.id == "trust.imap-neighbour" && source == trixie && e == "imap":
						r.Verdict, r.Reason, r.Witness = result.Inconclusive, "no log of dovecot-postfix@trixie was named: to judge this claim, say where its mail log can be read", []result.Witness{}
					case c.id == "relay.delivers-bdat" && source == bookworm && family == "ip6":
						r.Verdict, r.Reason, r.Witness = result.Error, "the vantage relay is gone: its container ended with status 137", []result.Witness{}
					case c.id == "relay.not-open-stranger" && source == trixie && family == "ip6":
						r = failing(r, c, result.Finding{Code: "mismatch", Wanted: "a refusal for relaying (x.7.1)", Found: hostile, Remedy: "Let smtpd_relay_restrictions end with reject_unauth_destination.",
							Evidence: []string{"postfix/smtpd[812]: NOQUEUE: " + hostile, "long: " + strings.Repeat("0123456789", 1000)}})
						r.Transcript += "A    +0.0070 <- " + hostile + "\n" + "A    +0.0071 <- " + strings.Repeat("A", 10_000) + "\n"
						r.Witness = []result.Witness{}
					case c.id == "relay.no-greylisting" && source == bookworm && family == "ip4":
						r = failing(r, c, result.Finding{Code: "mismatch", Wanted: "250 {}", Found: "450 4.2.0 <alice@lab.example>: Recipient address rejected: Greylisted",
							Remedy: "Let the new server's address pass the greylist."})
					case c.id == "xclient.concurrency" && source == trixie:
						r.Repeats = []result.Verdict{result.Pass, result.Fail, result.Pass}
						r.Unstable = true
						if family == "ip6" {
							r = failing(r, c, result.Finding{Code: "timeout", Wanted: "220 {}", Found: "nothing within 5s", Remedy: "Set smtpd_client_connection_count_limit = 0 on the submission services."})
						}
					}
					add(r)
				}
			}
		}
	}
	c := claim{"client-address.http", "An HTTP request that the proxy announces is recorded under the client's own address.", "must", "R1", "A-12", ""}
	for _, family := range []string{"ip4", "ip6"} {
		r := add(passing(c, bookworm, result.Facet{Protocol: "http", Endpoint: "https", Port: 443, TLS: "implicit", Family: family, Driver: "as-proxy"}, n))
		r.Verdict, r.Reason, r.Transcript, r.Witness, r.Phases = result.Unsupported, "dovecot-postfix has no HTTP", "", []result.Witness{}, []result.Phase{}
	}
	stand := add(passing(claims[0], old, facet("imaps", "ip4", "as-proxy"), n))
	stand.Origin = result.FromReference
	run.Diagnoses = []result.Diagnosis{missing, ipv6}
	run.Counts = result.Count(run.Results)
	return run
}

// randomRun makes a run of about n results of every kind, always the same for
// a seed.
func randomRun(seed uint64, n int) *result.Run {
	rng := rand.New(rand.NewPCG(seed, 1))
	words := []string{"", "plain words", hostile, "]]>", "\x00", "\u202e", "a\nb\r\nc", "<secret:alice>", strings.Repeat("long ", 500), "\ufffe"}
	word := func() string { return words[rng.IntN(len(words))] }
	run := &result.Run{Schema: result.Schema, Started: time.Date(2026, 12, 1, 9, 30, 0, 0, time.UTC), Seconds: rng.Float64() * 10, Exit: rng.IntN(5),
		Tool: result.Tool{Version: word()}, Target: result.Target{Kind: "docker", Sources: []result.Source{{Name: bookworm, Version: word()}}}}
	seen := map[string]bool{}
	for i := 0; i < n; i++ {
		c := claims[rng.IntN(len(claims))]
		c.id = fmt.Sprintf("%s-%d", c.id, rng.IntN(n))
		r := passing(c, []string{bookworm, trixie, "generic\x1b"}[rng.IntN(3)], facet([]string{"imap", "imaps", "smtp", "submission"}[rng.IntN(4)], []string{"ip4", "ip6"}[rng.IntN(2)], []string{"as-proxy", "direct", "through"}[rng.IntN(3)]), i)
		if seen[r.Key()] {
			continue
		}
		seen[r.Key()] = true
		r.Origin = []result.Origin{result.FromImage, result.FromReference, result.FromSite}[rng.IntN(3)]
		r.Level = []result.Level{result.Must, result.Should, result.May}[rng.IntN(3)]
		r.Verdict = result.Verdicts()[rng.IntN(5)]
		r.Reason, r.Line, r.Claim = word(), rng.IntN(40), word()
		if r.Verdict == result.Fail && rng.IntN(9) > 0 {
			r.Findings = append(r.Findings, result.Finding{Code: []string{"mismatch", "closed", "timeout", "forbidden", ""}[rng.IntN(5)], Wanted: word(), Found: word(), Means: word(), Remedy: word(), Evidence: []string{word()}})
		}
		if rng.IntN(4) == 0 {
			r.Transcript += word()
		}
		if rng.IntN(4) == 0 {
			for range 1 + rng.IntN(4) {
				r.Repeats = append(r.Repeats, result.Verdicts()[rng.IntN(5)])
			}
			r.Repeats = append(r.Repeats, r.Verdict)
			for _, v := range r.Repeats {
				r.Unstable = r.Unstable || v != r.Verdict
			}
		}
		run.Results = append(run.Results, r)
	}
	for range rng.IntN(3) {
		run.Problems = append(run.Problems, result.Problem{Source: word(), Stage: word(), Where: word(), Words: word()})
	}
	for i := range rng.IntN(3) {
		run.Excluded = append(run.Excluded, result.Excluded{ID: fmt.Sprintf("trust.excluded-%d", i), Reason: word()})
	}
	run.Counts = result.Count(run.Results)
	return run
}
