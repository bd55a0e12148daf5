package run

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/result"
)

const dp = "dovecot-postfix"

// causes lists what can be wrong, in the order in which it is looked for: what
// would explain the most comes first.
func causes() []cause {
	all := append([]cause{{"MP-NAT", "", causeNAT}}, stalwartTrust()...)
	all = append(all, []cause{
		{"DX-19", dp, causeInetProtocols},
		{"DX-16", "", causeDeadEndpoint},
	}...)
	all = append(all, genericCauses()...)
	all = append(all, []cause{
		{"DX-06", dp, causePort25Header},
		{"MP-LOGINS-FULL", dp, causeLoginsFull},
		{"MP-BUSY", dp, causeBusy},
		{"DX-02", dp, causeHaproxy},
		{"MP-UNAVAILABLE", dp, causeUnavailable},
		{"MP-ERRORS", dp, causeErrors},
		{"MP-SIGN-IN-RATE", dp, causeSignInRate},
		{"DX-17", "", causeTLS},
		{"MP-SASL-PLAIN", dp, causeNoPlain},
		{"MP-ANY-PASSWORD", "", causeAnyPassword},
		{"DX-23", "", causeSlow},
		{"DX-27", dp, causeTrustTooWide},
		{"MP-TRUST-NEW-SERVER", dp, causeTrustNewServer},
		{"DX-14", dp, causeTrustMissing},
		{"MP-XCLIENT-HIDDEN", dp, causeXclientHidden},
		{"MP-ID-HIDDEN", dp, causeIDHidden},
		{"MP-XCLIENT-BY-NAME", dp, causeXclientByName},
		{"MP-OPEN-RELAY", dp, causeOpenRelay},
		{"DX-28", dp, causeProxyRelays},
		{"DX-07", dp, causeHelo},
		{"DX-29", dp, causeConnectionLimit},
		{"MP-RECIPIENTS", dp, causeRecipients},
		{"DX-21", dp, causeThrottled},
		{"DX-08", dp, causeRelayRefused},
		{"MP-NOT-DELIVERED", dp, causeNotDelivered},
		{"MP-BACKSCATTER", dp, causeBackscatter},
		{"MP-LARGE-PACKETS", "", causeLargePackets},
		{"MP-SIZE", dp, causeSize},
		{"MP-8BIT", dp, causeEightBit},
		{"MP-CHUNKING", dp, causeChunking},
		{"MP-CLEARTEXT", dp, causeCleartext},
		{"MP-XCLIENT-25", dp, causeXclientOn25},
	}...)
	return append(all, stalwartCauses()...)
}

// ---- remedies in the words of Dovecot and Postfix

// dovecotChange sets a setting of Dovecot where it stands now, or in local.conf.
func (o *observations) dovecotChange(name, value, because string) result.Change {
	at := o.locate("dovecot", name)
	if at.file == "" {
		at.file = "/etc/dovecot/local.conf"
	}
	text := strings.TrimRight(name+" = "+value, " ")
	for _, b := range slices.Backward(at.blocks) {
		text = b + " {\n  " + strings.ReplaceAll(text, "\n", "\n  ") + "\n}"
	}
	return result.Change{File: at.file, Line: at.line, Setting: name, Found: at.value, Text: text,
		Because: because, Layer: "dovecot/99-remedy.conf"}
}

// mainChange sets a setting of Postfix's main.cf.
func (o *observations) mainChange(name, value, because string) result.Change {
	_, line, found := o.setting("main.cf", name)
	if v, ok := o.inForce("postconf -n", name); ok && found == "" {
		found = v
	}
	return result.Change{File: "/etc/postfix/main.cf", Line: line, Setting: name, Found: found, Text: strings.TrimRight(name+" = "+value, " "),
		Because: because, Layer: "postfix/main.cf"}
}

// serviceChange sets a setting for one service of Postfix's master.cf.
func (o *observations) serviceChange(endpoint, name, value, because string) result.Change {
	service := o.service(endpoint)
	found, _ := o.inForce("postconf -P", service+"/"+name)
	return result.Change{File: "/etc/postfix/master.cf", Setting: service + "/" + name, Found: found,
		Text:    service + "/" + name + "=" + value,
		Because: because, Layer: "postfix/master.cf"}
}

// service is what master.cf calls an endpoint.
func (o *observations) service(endpoint string) string {
	switch endpoint {
	case "smtp":
		return "smtp/inet"
	case "submission":
		return "submission/inet"
	}
	for _, f := range o.files() {
		if f.Command && strings.HasPrefix(f.Path, "postconf -M") || strings.HasSuffix(f.Path, "master.cf") {
			for _, line := range strings.Split(f.Text, "\n") {
				w := strings.Fields(line)
				if len(w) > 1 && w[1] == "inet" && (w[0] == "smtps" || w[0] == "submissions" || w[0] == "465") {
					return w[0] + "/inet"
				}
			}
		}
	}
	if o.src.Version == "trixie" {
		return "submissions/inet"
	}
	return "smtps/inet"
}

// smtpChange sets a setting for port 25: in main.cf, or where master.cf
// overrides it there.
func (o *observations) smtpChange(name, value, because string) result.Change {
	if _, ok := o.inForce("postconf -P", "smtp/inet/"+name); ok {
		return o.serviceChange("smtp", name, value, because)
	}
	return o.mainChange(name, value, because)
}

const (
	reloadDovecot = "doveadm reload"
	reloadPostfix = "postfix reload"
)

// remedy puts changes and the commands that apply them together.
func remedy(text string, changes ...result.Change) result.Remedy {
	r := result.Remedy{Text: text, Changes: changes}
	for _, c := range changes {
		command := reloadPostfix
		switch {
		case strings.HasPrefix(c.Layer, "dovecot/"):
			command = reloadDovecot
		case c.Setting == "inet_protocols":
			command = "postfix stop && postfix start"
		}
		if !slices.Contains(r.Apply, command) {
			r.Apply = append(r.Apply, command)
		}
	}
	return r
}

// ---- what is asked of several causes

const (
	dovecotEndpoints    = "imap imaps pop3 pop3s sieve"
	submissionEndpoints = "submission submissions"
	postfixEndpoints    = "smtp submission submissions"
)

// isPostfix says whether an endpoint is Postfix's.
func isPostfix(endpoint string) bool {
	return slices.Contains(strings.Fields(postfixEndpoints), endpoint)
}

func split(rs []*result.Result) (dovecot, postfix []*result.Result) {
	for _, r := range rs {
		if isPostfix(r.Facet.Endpoint) {
			postfix = append(postfix, r)
		} else {
			dovecot = append(dovecot, r)
		}
	}
	return dovecot, postfix
}

// ---- the causes

func causeNAT(o *observations) *result.Diagnosis {
	gate := concat(o.find(query{ids: "client-address.proxy-as-seen", facts: []string{"recorded:client="}}),
		o.find(query{ids: "client-address.proxy-as-seen-imap", facts: []string{"recorded:rip="}}))
	if len(gate) == 0 {
		return nil
	}
	all := gate
	for _, f := range familiesOf(gate) {
		all = concat(all, o.find(query{family: f, any: []string{"recorded:", "missing=250 XCLIENT", "present=250 XCLIENT", "present=+OK [XCLIENT", `present="XCLIENT`, `missing="XCLIENT`, "at=XCLIENT"}}))
	}
	addrs := append(factValues(gate, "recorded:client"), factValues(gate, "recorded:rip")...)
	slices.Sort(addrs)
	seen := listed(slices.Compact(addrs))
	return &result.Diagnosis{
		Title:           "the source does not see the proxy's own address",
		Means:           "Between proxy and source something translates addresses, so that the source takes the proxy for another host. Nothing that rests on trusting the proxy's address can be set up before that is gone.",
		Results:         keys(all),
		DiscriminatedBy: []string{"a connection that announced nobody was recorded as coming from " + seen + ", not from the proxy"},
		Alternatives:    []string{"a wrong trust setting: it would not change what is recorded of a connection without an announcement"},
		Remedy:          remedy("Let the proxy reach the source without address translation (no userland proxy, no masquerading, no load balancer between them), then judge again."),
	}
}

func causeInetProtocols(o *observations) *result.Diagnosis {
	refused := o.find(query{any: []string{"~Bad ADDR syntax: IPV6"}})
	dial := o.find(query{endpoint: postfixEndpoints, family: "ip6", facts: []string{"dial="}})
	if len(refused) == 0 && (len(dial) == 0 || len(o.find(query{endpoint: postfixEndpoints, family: "ip4", facts: []string{"dial="}})) > 0 ||
		o.has(query{endpoint: postfixEndpoints, family: "ip6", verdict: result.Pass})) {
		return nil
	}
	value, known := o.inForce("postconf -n", "inet_protocols")
	d := &result.Diagnosis{
		Title:   "Postfix does not speak IPv6",
		Means:   "Postfix refuses every address of a family that inet_protocols leaves out, also in XCLIENT. Users who come over IPv6 cannot submit through the proxy, and each of them counts against the source's health there.",
		Results: keys(refused, dial),
		Remedy: remedy("Let Postfix speak both families. It must be stopped and started for that.",
			o.mainChange("inet_protocols", "all", "addresses of a family that is not enabled are refused in XCLIENT too")),
	}
	if len(refused) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(refused, "an announced IPv6 address was answered with \"Bad ADDR syntax\", an IPv4 address was not"))
	}
	if len(dial) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(dial, "Postfix's ports refuse connections over IPv6 and accept them over IPv4"))
	}
	if known {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "postconf -n says inet_protocols = "+value)
	}
	d.Alternatives = []string{"a firewall against IPv6: it would not change what Postfix says to XCLIENT"}
	return d
}

// deadProxy is for clients that reach no proxy, whatever its sources do.
func deadProxy(dead []*result.Result) *result.Diagnosis {
	if len(dead) == 0 {
		return nil
	}
	es := listed(factValues(dead, "endpoint"))
	return &result.Diagnosis{
		Title:           "nothing answers at the proxy on " + es,
		Means:           "Clients reach no service there. What the source does behind it was judged by itself.",
		Results:         keys(dead),
		DiscriminatedBy: []string{fmt.Sprintf("a client's connections to the proxy's %s: %s", es, listed(factValues(dead, "dial")))},
		Alternatives:    []string{"a dead port of the source's: the proxy would accept the connection"},
		Remedy:          remedy("Let the proxy listen on this port where clients reach it, or correct its address and port where the target names them."),
	}
}

func causeDeadEndpoint(o *observations) *result.Diagnosis {
	var dead, public []*result.Result
	for _, r := range o.find(query{facts: []string{"dial="}}) {
		if r.Facet.Driver == "through" {
			public = append(public, r)
		} else {
			dead = append(dead, r)
		}
	}
	if len(dead) == 0 {
		return deadProxy(public)
	}
	es := factValues(dead, "endpoint")
	d := &result.Diagnosis{
		Title:           "nothing answers on " + listed(es),
		Means:           "The proxy is to send users to this port, and no connection to it succeeds. It will report the whole source as failing.",
		Results:         keys(dead),
		DiscriminatedBy: []string{fmt.Sprintf("connections to %s: %s", listed(es), listed(factValues(dead, "dial"))), "other ports of the same source accept connections"},
		Alternatives:    []string{"the source is down: other ports answer", "TLS or trust: the connection itself is refused"},
	}
	var changes []result.Change
	text := "Let the service listen on this port, or take it out of the proxy's configuration."
	for _, e := range es {
		switch {
		case o.src.Kind == sw:
			ep, _ := o.src.Endpoint(e)
			id := o.listener(e)
			text = "Let a listener of Stalwart's serve this port and restart, or take it out of the proxy's configuration."
			changes = append(changes, o.keyChange("server.listener."+id+".bind", fmt.Sprintf(`"[::]:%d"`, ep.Port), ""),
				o.keyChange("server.listener."+id+".protocol", `"`+ep.Protocol+`"`, ""))
			if ep.TLS == "implicit" {
				changes = append(changes, o.keyChange("server.listener."+id+".tls.implicit", "true", ""))
			}
			if e != "smtp" {
				changes = append(changes, o.keyChange("server.listener."+id+".proxy.trusted-networks", tomlList(o.addresses(Proxy)), ""))
			}
		case o.src.Kind != dp:
		case e == "sieve":
			changes = append(changes, o.dovecotChange("protocols", "imap pop3 lmtp sieve", "ManageSieve listens only when it is among the protocols"),
				result.Change{File: "/etc/dovecot/local.conf", Setting: "service managesieve-login/inet_listener sieve/port",
					Text: "service managesieve-login {\n  inet_listener sieve {\n    port = 4190\n  }\n}", Layer: "dovecot/99-remedy.conf"})
			text = "Install dovecot-managesieved if it is missing, and let Dovecot serve ManageSieve on port 4190; or take it out of the proxy's configuration."
		case e == "imap" || e == "imaps" || e == "pop3" || e == "pop3s":
			login := "imap-login"
			if strings.HasPrefix(e, "pop3") {
				login = "pop3-login"
			}
			port := map[string]int{"imap": 143, "imaps": 993, "pop3": 110, "pop3s": 995}[e]
			ssl := ""
			if strings.HasSuffix(e, "s") {
				ssl = "\n    ssl = yes"
			}
			changes = append(changes, result.Change{File: "/etc/dovecot/local.conf", Setting: "service " + login + "/inet_listener " + e + "/port",
				Text: fmt.Sprintf("service %s {\n  inet_listener %s {\n    port = %d%s\n  }\n}", login, e, port, ssl), Layer: "dovecot/99-remedy.conf"})
		}
	}
	d.Remedy = remedy(text, changes...)
	return d
}

func causePort25Header(o *observations) *result.Diagnosis {
	silent := o.find(query{endpoint: "smtp", facts: []string{"at=greeting"}, any: []string{"reply=none", "reply=closed", "~Server local error"}})
	if len(silent) == 0 || !o.has(query{ids: "relay.greets", taken: true}) {
		return nil
	}
	others := o.find(query{endpoint: "smtp", any: []string{"at=greeting", "reply=none", "reply=closed"}})
	service := o.service("smtp")
	d := &result.Diagnosis{
		Title:           "port 25 waits for a PROXY header",
		Means:           "Postfix expects every connection to port 25 to begin with a PROXY header. The new server sends none: the mail that it relays is stuck.",
		Results:         keys(silent, others),
		DiscriminatedBy: []string{observed(silent, "no greeting came, or \"421 … Server local error\" after some seconds")},
		Alternatives:    []string{"greylisting or a block list: the greeting would come first", "a dead service: the connection is accepted"},
		Remedy: remedy("Take the PROXY protocol away from port 25: neither the proxy nor the new server uses it there.",
			o.serviceChange("smtp", "smtpd_upstream_proxy_protocol", "", "port 25 gets mail from servers that send no header")),
	}
	for _, p := range []string{"postconf -P", "postconf -n"} {
		if v, ok := o.inForce(p, service+"/smtpd_upstream_proxy_protocol"); ok {
			d.DiscriminatedBy = append(d.DiscriminatedBy, p+" says "+service+"/smtpd_upstream_proxy_protocol = "+v)
		}
	}
	return d
}

// loginEndpoints are the endpoints of each of Dovecot's login services.
func loginEndpoints() map[string]string {
	return map[string]string{"imap-login": "imap imaps", "pop3-login": "pop3 pop3s", "managesieve-login": "sieve"}
}

func causeLoginsFull(o *observations) *result.Diagnosis {
	var full, all []*result.Result
	var services []string
	var changes []result.Change
	for _, login := range slices.Sorted(maps.Keys(loginEndpoints())) {
		at := loginEndpoints()[login]
		said := o.find(query{endpoint: at, any: []string{"~Connection queue full"}})
		if len(said) == 0 {
			continue
		}
		// Whoever is dropped during the handshake hears nothing of it.
		full = concat(full, said)
		all = concat(all, said, o.find(query{endpoint: at, any: []string{"reply=closed", "tls=closed", "at=greeting", "~UNAVAILABLE"}}))
		services = append(services, login)
		changes = append(changes, result.Change{File: "/etc/dovecot/conf.d/10-master.conf", Setting: "service " + login + "/client_limit and process_limit",
			Text: "service " + login + " {\n  client_limit = 1000\n  process_limit = 100\n}", Because: "Dovecot's own values, unless you know that you need others", Layer: "dovecot/99-remedy.conf"})
	}
	if len(full) == 0 {
		return nil
	}
	return &result.Diagnosis{
		Title:           listed(services) + " has room for too few connections",
		Means:           "Dovecot drops the oldest connection that has not signed in when another comes, whoever it is: users are turned away at busy times, and with them the proxy's own checks.",
		Results:         keys(all),
		DiscriminatedBy: []string{observed(full, "sessions were ended with \"Connection queue full\"")},
		Alternatives:    []string{"DX-02 and DX-17, a PROXY header or TLS: Dovecot itself says that its queue is full", "mail_max_userip_connections: it ends no session before the user signed in"},
		Remedy:          remedy("Let the login service take as many connections as there are users at one time.", changes...),
	}
}

// busyWords are what servers greet with that take no more connections.
func busyWords() []string {
	return []string{"~too many connections", "~too many concurrent", "~too many sessions", "~maximum number of connections", "~connection limit", "~too busy", "~is busy"}
}

// causeBusy is a server that turns away one connection, made by itself. What
// only many connections at a time run into is DX-29 and DX-21.
func causeBusy(o *observations) *result.Diagnosis {
	busy := o.find(query{ids: "lifecycle.greeting-* relay.greets", facts: []string{"at=greeting"}, any: busyWords()})
	if len(busy) == 0 {
		return nil
	}
	es := listed(endpointsOf(busy))
	d := &result.Diagnosis{
		Title:           "the source turns connections away on " + es + ": there are too many, it says",
		Means:           "Behind the proxy all users come from one address, and all inbound mail from another. A source that turns away a single connection of either has no room left, or counts all of them as one user's.",
		Results:         keys(busy, o.find(query{endpoint: at(busy), any: []string{"at=greeting"}})),
		DiscriminatedBy: []string{observed(busy, "the greeting says so: "+listed(o.seen(busy)))},
		Alternatives: []string{"DX-16, a dead service: the connection is accepted", "DX-02 and DX-06, a PROXY header that is waited for: it would not greet",
			"DX-29 and DX-21, limits that many connections at a time run into: these were made one by one", "a busy hour: then it does not come back when the run is repeated"},
	}
	var changes []result.Change
	if o.src.Kind == dp {
		for _, e := range endpointsOf(busy) {
			if strings.HasPrefix(e, "submission") {
				changes = append(changes, o.serviceChange(e, "smtpd_client_connection_count_limit", "0", "the proxy's users come from one address"))
			}
		}
	}
	d.Remedy = remedy(fmt.Sprintf("See in the source's log who holds its connections. Give %s room for as many as there are users at one time, and exempt the proxy's and the new server's addresses (%s) from whatever counts connections by address.",
		es, listed(append(o.addresses(Proxy), o.addresses(Relay)...))), changes...)
	return d
}

func causeHaproxy(o *observations) *result.Diagnosis {
	conf := ""
	for _, f := range o.files() {
		if strings.Contains(f.Text, "haproxy = yes") || strings.Contains(f.Text, "smtpd_upstream_proxy_protocol = haproxy") || strings.Contains(f.Text, "smtpd_upstream_proxy_protocol=haproxy") {
			conf = f.Path
			break
		}
	}
	early := o.find(query{facts: []string{"at=greeting"}, any: []string{"tls=closed", "tls=timeout", "tls=failed", "tls=not-tls", "reply=none", "reply=closed", "~Server local error"}})
	if len(early) == 0 || conf == "" && !o.has(query{any: []string{"~Server local error"}}) && len(factValues(early, "reply")) == 0 && !o.hungUp(early) {
		return nil
	}
	es := factValues(early, "endpoint")
	rest := o.find(query{endpoint: strings.Join(es, " "), any: []string{"at=greeting"}})
	d := &result.Diagnosis{
		Title:           "the source waits for a PROXY header on " + listed(es),
		Means:           "The listener takes the first octets of every connection for a PROXY header. A proxy that announces by XCLIENT and ID sends none, and neither does anybody who connects directly.",
		Results:         keys(early, rest),
		DiscriminatedBy: []string{observed(early, "no greeting and no TLS, but a closed connection or silence")},
		Alternatives:    []string{"DX-17, a TLS problem: the source would answer the handshake with an alert or a certificate", "DX-16, a dead service: the connection is accepted"},
	}
	if conf != "" {
		d.DiscriminatedBy = append(d.DiscriminatedBy, conf+" turns the PROXY protocol on")
	}
	var changes []result.Change
	for _, e := range es {
		switch {
		case isPostfix(e):
			changes = append(changes, o.serviceChange(e, "smtpd_upstream_proxy_protocol", "", ""))
		default:
			login := map[string]string{"imap": "imap-login", "imaps": "imap-login", "pop3": "pop3-login", "pop3s": "pop3-login", "sieve": "managesieve-login"}[e]
			changes = append(changes, result.Change{File: "/etc/dovecot/local.conf", Setting: "service " + login + "/inet_listener " + e + "/haproxy", Found: "yes",
				Text: fmt.Sprintf("service %s {\n  inet_listener %s {\n    haproxy = no\n  }\n}", login, e), Layer: "dovecot/99-remedy.conf"})
		}
	}
	d.Remedy = remedy("Take the PROXY protocol away from this listener (and let the proxy announce by XCLIENT: forwarding = \"xclient\" for this destination).", changes...)
	return d
}

func causeUnavailable(o *observations) *result.Diagnosis {
	away := o.find(query{any: []string{"~Service unavailable - try again later", "~454 4.3.0 Try again later"}})
	if vs := factValues(away, "vantage"); len(vs) < 2 {
		return nil // where others get in, the refusal is a rule about somebody
	}
	es := factValues(away, "endpoint")
	d := &result.Diagnosis{
		Title:   "Postfix is not available to anybody on " + listed(es),
		Means:   "Postfix itself says that it cannot do its work: nobody can send, and the new server cannot relay.",
		Results: keys(away, o.find(query{endpoint: strings.Join(es, " "), any: []string{"at=greeting", "missing=250"}})),
		DiscriminatedBy: []string{observed(away, "the answers are "+listed(factValues(away, "reply"))),
			"they are the same for " + listed(factValues(away, "vantage"))},
		Alternatives: []string{"DX-08, a rule about the new server: others would get in", "DX-17, TLS alone: commands in clear text would be answered"},
		Remedy:       remedy("Look into the mail log: beside these sessions Postfix warns of what it cannot do without. Mend that."),
	}
	if milters, ok := o.inForce("postconf -n", "smtpd_milters"); ok && milters != "" {
		d.Title = "Postfix waits for a milter that does not answer on " + listed(es)
		d.DiscriminatedBy = append(d.DiscriminatedBy, "postconf -n says smtpd_milters = "+milters)
		d.Remedy = remedy("Start the milter that smtpd_milters names, or let Postfix go on where it does not answer.",
			o.mainChange("milter_default_action", "accept", "a milter that does not answer shall turn nobody away"))
	}
	return d
}

func causeErrors(o *observations) *result.Diagnosis {
	ended := o.find(query{endpoint: postfixEndpoints, any: []string{"~Error: too many errors"}})
	if len(ended) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "Postfix hangs up after a few errors on " + listed(endpointsOf(ended)),
		Means:           "One mistake ends a session: a message to several people fails for all of them where one address is unknown, and a user who mistyped a password must connect anew.",
		Results:         keys(ended),
		DiscriminatedBy: []string{observed(ended, "sessions were ended with \"too many errors\" after one or two commands had been refused")},
		Alternatives:    []string{"DX-08, a rule about the new server: it would be refused before it made a mistake", "stress: Postfix takes one error only while all its processes are busy (look for \"stress\" in the mail log)"},
	}
	if v, ok := o.inForce("postconf -n", "smtpd_hard_error_limit"); ok {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "postconf -n says smtpd_hard_error_limit = "+v)
	}
	var changes []result.Change
	for _, e := range endpointsOf(ended) {
		if _, ok := o.inForce("postconf -P", o.service(e)+"/smtpd_hard_error_limit"); ok {
			changes = append(changes, o.serviceChange(e, "smtpd_hard_error_limit", "20", "Postfix's own value"))
		}
	}
	if len(changes) == 0 {
		changes = append(changes, o.mainChange("smtpd_hard_error_limit", "20", "Postfix's own value"))
	}
	d.Remedy = remedy("Let a session make as many mistakes as Postfix takes by default.", changes...)
	return d
}

func causeSignInRate(o *observations) *result.Diagnosis {
	limited := o.find(query{endpoint: submissionEndpoints, any: []string{"~too many AUTH commands"}})
	if len(limited) == 0 {
		return nil
	}
	es := endpointsOf(limited)
	d := &result.Diagnosis{
		Title:           "Postfix takes only few sign-ins a minute of one address on " + listed(es),
		Means:           "Postfix counts sign-ins by the client's address, right ones too, and answers what is over with a temporary failure. The proxy takes that for a source in trouble, and turns users away.",
		Results:         keys(limited),
		DiscriminatedBy: []string{observed(limited, "a right password was answered with \"too many AUTH commands\"")},
		Alternatives:    []string{"DX-14, missing trust: the address that was counted is the announced client's", "a slow or failing auth service: Postfix names the amount"},
	}
	var changes []result.Change
	for _, e := range es {
		changes = append(changes, o.serviceChange(e, "smtpd_client_auth_rate_limit", "0", "the proxy counts failed sign-ins itself"))
	}
	for _, at := range [][2]string{{"postconf -n", "smtpd_client_auth_rate_limit"}, {"postconf -P", o.service(es[0]) + "/smtpd_client_auth_rate_limit"}} {
		if v, ok := o.inForce(at[0], at[1]); ok {
			d.DiscriminatedBy = append(d.DiscriminatedBy, at[0]+" says "+at[1]+" = "+v)
		}
	}
	d.Remedy = remedy("Take the limit off the services that the proxy uses.", changes...)
	return d
}

// hungUp says whether the configuration is not known and each handshake ended
// without a word, at endpoints whose server does TLS elsewhere.
func (o *observations) hungUp(early []*result.Result) bool {
	if len(o.files()) > 0 {
		return false
	}
	for _, r := range early {
		if !hasFact(r, "tls=closed") && !hasFact(r, "tls=timeout") {
			return false
		}
		elsewhere := dovecotEndpoints
		if isPostfix(r.Facet.Endpoint) {
			elsewhere = postfixEndpoints
		}
		ok := slices.ContainsFunc(o.find(query{endpoint: elsewhere, verdict: result.Pass}), func(p *result.Result) bool {
			return p.Facet.Endpoint != r.Facet.Endpoint && p.Facet.TLS != "none"
		})
		if !ok {
			return false
		}
	}
	return true
}

func causeTLS(o *observations) *result.Diagnosis {
	starttls := concat(o.find(query{facts: []string{"at=STARTTLS", "reply="}}), o.find(query{facts: []string{"at=STLS", "reply="}}))
	handshake := o.find(query{any: []string{"tls="}})
	all := concat(starttls, handshake)
	if len(all) == 0 {
		return nil
	}
	if wrong := o.find(query{any: []string{"certificate="}}); len(wrong) == len(all) {
		return causeCertificate(o, wrong)
	}
	es := factValues(all, "endpoint")
	d := &result.Diagnosis{
		Title:   "no TLS as the proxy speaks it on " + listed(es),
		Means:   "The proxy hands over passwords only inside TLS 1.2 with ECDHE and AEAD, or TLS 1.3. Here it gets none, and turns every user away.",
		Results: keys(all),
	}
	var changes []result.Change
	text := "Let the service offer TLS."
	dove, post := split(all)
	if o.src.Kind != dp {
		dove, post = nil, nil
	}
	if o.src.Kind == sw {
		for _, e := range endpointsOf(all) {
			if ep, _ := o.src.Endpoint(e); ep.TLS == "implicit" {
				changes = append(changes, o.keyChange("server.listener."+o.listener(e)+".tls.implicit", "true", ""))
			} else {
				changes = append(changes, o.keyChange("server.listener."+o.listener(e)+".tls.enable", "true", ""))
			}
		}
	}
	if len(starttls) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(starttls, "STARTTLS is refused: "+listed(factValues(starttls, "reply"))))
	}
	if len(handshake) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(handshake, "the handshake fails: "+listed(factValues(handshake, "tls"))))
	}
	if len(dove) > 0 {
		changes = append(changes, o.dovecotChange("ssl", "yes", ""))
		if len(o.find(query{endpoint: dovecotEndpoints, facts: []string{"tls=alert"}})) > 0 {
			changes = append(changes, o.dovecotChange("ssl_min_protocol", "TLSv1.2", ""))
		}
	}
	for _, e := range endpointsOf(post) {
		switch e {
		case "smtp":
			changes = append(changes, o.serviceChange(e, "smtpd_tls_security_level", "may", ""))
		case "submission":
			changes = append(changes, o.serviceChange(e, "smtpd_tls_security_level", "encrypt", ""))
		default:
			changes = append(changes, o.serviceChange(e, "smtpd_tls_wrappermode", "yes", ""))
		}
	}
	d.Alternatives = []string{"DX-02, a listener that waits for a PROXY header: it would close without an alert", "a wrong password: no password was sent yet"}
	if d.Remedy = remedy(text, changes...); o.src.Kind == sw {
		d.Remedy = keyRemedy(text+" Listeners need a restart.", changes...)
	}
	return d
}

func causeNoPlain(o *observations) *result.Diagnosis {
	auth := concat(o.find(query{facts: []string{"at=AUTH"}, any: []string{"~mechanism", "~not enabled", "~not supported"}}), o.find(query{any: []string{"missing=250 AUTH"}}))
	if len(auth) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "SASL PLAIN is not accepted on " + listed(endpointsOf(auth)),
		Means:           "The proxy turns every login into SASL PLAIN with an initial response. A source without it lets nobody in through the proxy.",
		DiscriminatedBy: []string{observed(auth, "a right password was answered with "+listed(factValues(auth, "reply")))},
		Alternatives:    []string{"a wrong password: the source refused the mechanism, not the password"},
		Remedy: remedy("Let Dovecot offer PLAIN (inside TLS), also to Postfix.",
			o.dovecotChange("auth_mechanisms", "plain login", "")),
	}
	d.Results = keys(auth, o.find(query{any: []string{"at=AUTH", "at=AUTHENTICATE", "missing=250 AUTH"}}))
	if v, ok := o.inForce("doveconf -n", "auth_mechanisms"); ok {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "doveconf -n says auth_mechanisms = "+v)
	}
	return d
}

func causeAnyPassword(o *observations) *result.Diagnosis {
	open := o.find(query{ids: "lifecycle.sign-in-* client-address.failed-* imap-id.after-failed-login proxy.closes-*", facts: []string{"at=AUTH"}, any: []string{"reply=b1 OK", "reply=a1 OK", "reply=+OK", "reply=OK", "reply=235"}})
	if len(open) == 0 {
		return nil
	}
	return &result.Diagnosis{
		Title:           "a wrong password is accepted on " + listed(endpointsOf(open)),
		Means:           "Whoever comes by the proxy's address is let into any mailbox. Do not put a proxy before this server.",
		Results:         keys(open),
		DiscriminatedBy: []string{observed(open, "a wrong password was answered with "+listed(factValues(open, "reply")))},
		Alternatives:    []string{"an account whose password is the wrong one: it is drawn anew for each session"},
		Remedy:          remedy("Find the passdb that does not look at the password (nopassword, a static passdb, allow_real_nets) and take the proxy's network out of it."),
	}
}

func causeSlow(o *observations) *result.Diagnosis {
	late := o.find(query{facts: []string{"at=AUTH", "reply=none"}})
	if len(late) == 0 {
		return nil
	}
	goodToo := o.has(query{ids: "client-address.imap client-address.pop3 client-address.sieve trust.direct-*", facts: []string{"reply=none"}, taken: true})
	d := &result.Diagnosis{
		Title:           "logins are decided too late",
		Means:           "The proxy gives up after ten seconds, without a word to the client. Refused logins that are held back longer leave users with a dead connection.",
		Results:         keys(late),
		DiscriminatedBy: []string{observed(late, "no answer to a login within the time")},
		Alternatives:    []string{"an auth penalty on the proxy's address because trust is missing: the client was announced"},
	}
	if goodToo {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "right passwords are decided late as well: look at the passdb (LDAP, SQL, PAM) behind it")
	} else {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "right passwords are decided in time: only refusals are held back")
	}
	if v, ok := o.inForce("doveconf -n", "auth_failure_delay"); ok {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "doveconf -n says auth_failure_delay = "+v)
	}
	switch {
	case o.src.Kind == sw:
		d.Remedy = keyRemedy("Hold refused logins back for five seconds, not longer.", o.keyChange("session.auth.errors.wait", `"5s"`, "the proxy gives up after ten seconds"))
	case o.src.Kind == dp:
		d.Remedy = remedy("Hold refused logins back for two seconds, not longer.", o.dovecotChange("auth_failure_delay", "2 secs", "the proxy gives up after ten seconds"))
	default:
		d.Remedy = remedy("Let the source decide every login within five seconds.")
	}
	return d
}

func causeLargePackets(o *observations) *result.Diagnosis {
	stuck := o.find(query{ids: "lifecycle.large-transfer", facts: []string{"reply=none"}})
	if len(stuck) == 0 || !o.has(query{ids: "client-address.imap lifecycle.sign-in-imap", endpoint: strings.Join(endpointsOf(stuck), " "), verdict: result.Pass, taken: true}) {
		return nil
	}
	return &result.Diagnosis{
		Title:           "large packets are lost between the proxy and the source",
		Means:           "A network on the way carries smaller packets than either end believes, and the word of it (ICMP \"fragmentation needed\", \"packet too big\") does not arrive. Users sign in, and their mail programs hang as soon as there is much to say.",
		Results:         keys(stuck),
		DiscriminatedBy: []string{observed(stuck, "no answer, when much was said at once"), "the same endpoint answers a client that says little"},
		Alternatives:    []string{"DX-16, a dead endpoint: short sessions work there", "DX-23, slow logins: the login itself was answered"},
		Remedy:          remedy("Let ICMP and ICMPv6 pass between the proxy and the source, or set the MTU of both ends to what the way between them carries (a tunnel, a VPN and an overlay network take 40 to 80 octets off 1500)."),
	}
}

// wide lists what shows that others than the proxy are trusted.
func wide() []string {
	return []string{"recorded:rip=forged", "recorded:client=forged", "recorded:session=", "present=+OK [XCLIENT", `present="XCLIENT`, "present=250 XCLIENT", "reply=220", "reply=OK \"Updated"}
}

func causeTrustTooWide(o *observations) *result.Diagnosis {
	neighbour := o.find(query{ids: "trust.*-neighbour", any: wide()})
	stranger := o.find(query{ids: "trust.*-stranger trust.*-client", any: wide()})
	if len(neighbour)+len(stranger) == 0 {
		return nil
	}
	follow := o.find(query{ids: "trust.*-new-server", any: wide()})
	follow = concat(follow, o.find(query{ids: "trust.cleartext-refused"}))
	// A trust that includes the announced clients lets them announce again.
	follow = concat(follow, o.find(query{ids: "xclient.only-once", any: []string{"present=250 XCLIENT", "reply=220", "at=XCLIENT"}}))
	if len(stranger) == 0 {
		follow = slices.DeleteFunc(follow, func(r *result.Result) bool { return globs("trust.*-new-server xclient.only-once", r.ID) })
	}
	all := concat(neighbour, stranger, follow)
	who := "the proxy's whole network"
	if len(stranger) > 0 {
		who = "everybody"
	}
	dove, post := split(all)
	d := &result.Diagnosis{
		Title:        "the source believes " + who + ", and not the proxy alone",
		Means:        "Whoever can reach the source from there can give itself any address: bans and limits miss, other people are framed, and on Postfix any login name can be claimed.",
		Results:      keys(all),
		Alternatives: []string{"MP-TRUST-NEW-SERVER, one address too many: it would not include the neighbour"},
	}
	if len(stranger) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(stranger, "an address that a stranger or client announced was taken"))
	}
	if len(neighbour) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(neighbour, "an address that the proxy's neighbour announced was taken"))
	}
	if len(stranger) == 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "strangers are not believed")
	}
	d.Remedy = remedy("Name the proxy's own addresses, and nothing else.", o.exactTrust(len(dove) > 0, endpointsOf(post))...)
	return d
}

// exactTrust are the changes that trust the proxy's addresses alone.
func (o *observations) exactTrust(dovecot bool, postfix []string) []result.Change {
	proxy := o.addresses(Proxy)
	var changes []result.Change
	if dovecot {
		changes = append(changes, o.dovecotChange("login_trusted_networks", strings.Join(proxy, " "), "IMAP ID and XCLIENT over POP3 and ManageSieve are believed from there"))
	}
	if len(postfix) > 0 {
		changes = append(changes, o.mainChange("smtpd_authorized_xclient_hosts", "", "port 25 needs no XCLIENT"))
		for _, e := range []string{"submission", "submissions"} {
			changes = append(changes, o.serviceChange(e, "smtpd_authorized_xclient_hosts", strings.Join(bracketed(proxy), ","), "XCLIENT is believed from there"))
		}
		if _, ok := o.inForce("postconf -P", "smtp/inet/smtpd_authorized_xclient_hosts"); ok {
			changes = append(changes, o.serviceChange("smtp", "smtpd_authorized_xclient_hosts", "", "port 25 needs no XCLIENT"))
		}
	}
	return changes
}

func causeTrustNewServer(o *observations) *result.Diagnosis {
	relay := o.find(query{ids: "trust.*-new-server", any: wide()})
	if len(relay) == 0 {
		return nil
	}
	dove, post := split(relay)
	return &result.Diagnosis{
		Title:           "the new server stands in the trust lists",
		Means:           "The new server only relays mail; it announces nobody. Trusted, it could give itself any address, and mail that it relays would be taken for somebody else's.",
		Results:         keys(relay),
		DiscriminatedBy: []string{observed(relay, "an address that the new server announced was taken"), "the proxy's neighbour and strangers are not believed"},
		Alternatives:    []string{"DX-27, a trusted network: the neighbour would be believed too"},
		Remedy:          remedy("Name the proxy's own addresses, and nothing else; the new server belongs into mynetworks alone.", o.exactTrust(len(dove) > 0, endpointsOf(post))...),
	}
}

func causeTrustMissing(o *observations) *result.Diagnosis {
	recorded := o.find(query{any: []string{"recorded:rip=proxy", "recorded:client=proxy"}})
	recorded = slices.DeleteFunc(recorded, func(r *result.Result) bool { return globs("trust.direct-*", r.ID) })
	offered := o.find(query{any: []string{`missing="XCLIENT`, "missing=250 XCLIENT"}})
	offered = concat(offered, o.find(query{ids: "xclient.pop3-offered"}))
	refused := o.find(query{facts: []string{"at=XCLIENT", "vantage=proxy"}, any: []string{"~You are not from trusted", "~insufficient authorization", "~ignoring"}})
	if len(refused) == 0 && len(recorded) == 0 {
		return nil
	}
	all := concat(recorded, refused)
	es := endpointsOf(all)
	for _, r := range offered {
		if slices.Contains(es, r.Facet.Endpoint) {
			all = append(all, r)
		}
	}
	// Where the proxy is not believed, neither its port nor its destination is.
	for _, r := range o.find(query{ids: "client-address.port-*"}) {
		if slices.Contains(es, r.Facet.Endpoint) {
			all = concat(all, []*result.Result{r})
		}
	}
	all = concat(all, o.find(query{ids: "client-address.parallel", any: []string{"at=XCLIENT", "recorded:rip=proxy"}}))
	all = concat(all, o.find(query{ids: "xclient.concurrency", any: []string{"at=XCLIENT"}}))
	dove, post := split(all)
	where := listed(endpointsOf(dove, post))
	d := &result.Diagnosis{
		Title:   "the source does not believe the proxy on " + where,
		Means:   "Whatever the proxy announces on these ports is ignored or refused. Every user appears under the proxy's address: limits and bans hit all of them at once, and where the announcement is refused the proxy turns them away.",
		Results: keys(all),
		Alternatives: []string{"MP-NAT, address translation: the source records the proxy's own address",
			"MP-ID-HIDDEN and MP-XCLIENT-HIDDEN, an announcement that is not offered but would be believed"},
	}
	if len(recorded) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(recorded, "announced clients were recorded under the proxy's address"))
	}
	if len(refused) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(refused, "the announcement was refused: "+listed(factValues(refused, "reply"))))
	}
	if len(offered) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(offered, "the announcement is not offered to the proxy"))
	}
	if fs := familiesOf(dove, post); len(fs) == 1 && o.has(query{ids: "client-address.*", verdict: result.Pass}) {
		d.Title += " over " + map[string]string{"ip4": "IPv4", "ip6": "IPv6"}[fs[0]]
		d.DiscriminatedBy = append(d.DiscriminatedBy, "over the other address family it is believed")
	}
	proxy := o.addresses(Proxy)
	var changes []result.Change
	if len(dove) > 0 {
		changes = append(changes, o.dovecotChange("login_trusted_networks", o.plus("doveconf -n", "login_trusted_networks", proxy), "IMAP ID and XCLIENT over POP3 and ManageSieve are believed from there"))
	}
	for _, e := range []string{"submission", "submissions"} {
		if slices.Contains(endpointsOf(post), e) || slices.Contains(endpointsOf(post), "parallel") {
			changes = append(changes, o.serviceChange(e, "smtpd_authorized_xclient_hosts", strings.Join(bracketed(proxy), ","), "XCLIENT is believed from there"))
		}
	}
	d.Remedy = remedy("Name the proxy's addresses in the trust "+plural(len(changes), "list", "lists")+" of these services.", changes...)
	return d
}

// plus is a list setting with addresses added to what stands there.
func (o *observations) plus(command, name string, add []string) string {
	value, _ := o.inForce(command, name)
	words := strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == ',' })
	for _, a := range add {
		if !slices.Contains(words, a) {
			words = append(words, a)
		}
	}
	return strings.Join(words, " ")
}

func causeXclientHidden(o *observations) *result.Diagnosis {
	offered := o.find(query{any: []string{"missing=250 XCLIENT"}})
	if len(offered) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "Postfix hides XCLIENT on " + listed(endpointsOf(offered)),
		Means:           "Postfix would believe the proxy, but does not say so in its reply to EHLO. The proxy announces only what is offered: every user appears under its address.",
		Results:         keys(offered),
		DiscriminatedBy: []string{observed(offered, "EHLO does not offer XCLIENT to the proxy"), "the command itself is accepted from the proxy, and the client is recorded"},
		Alternatives:    []string{"DX-14, missing trust: the command would be refused"},
	}
	var changes []result.Change
	if _, ok := o.inForce("postconf -n", "smtpd_discard_ehlo_keywords"); ok {
		changes = append(changes, o.mainChange("smtpd_discard_ehlo_keywords", o.minus("postconf -n", "smtpd_discard_ehlo_keywords", "xclient"), ""))
	}
	for _, e := range endpointsOf(offered) {
		if v, ok := o.inForce("postconf -P", o.service(e)+"/smtpd_discard_ehlo_keywords"); ok && strings.Contains(v, "xclient") {
			changes = append(changes, o.serviceChange(e, "smtpd_discard_ehlo_keywords", o.minus("postconf -P", o.service(e)+"/smtpd_discard_ehlo_keywords", "xclient"), ""))
		}
	}
	if len(changes) == 0 {
		for _, e := range endpointsOf(offered) {
			changes = append(changes, o.serviceChange(e, "smtpd_discard_ehlo_keywords", "", ""))
		}
	}
	d.Remedy = remedy("Take xclient out of smtpd_discard_ehlo_keywords for the submission services.", changes...)
	return d
}

// minus is a list setting without a word.
func (o *observations) minus(command, name, word string) string {
	value, _ := o.inForce(command, name)
	words := strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == ',' })
	words = slices.DeleteFunc(words, func(w string) bool { return strings.EqualFold(w, word) })
	return strings.Join(words, " ")
}

func causeIDHidden(o *observations) *result.Diagnosis {
	hidden := o.find(query{ids: "imap-id.offered", facts: []string{"at=greeting", "reply=* OK"}})
	if len(hidden) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "the IMAP greeting does not list ID",
		Means:           "Dovecot would believe the proxy, but its greeting does not say that it takes ID. The proxy decides by the greeting alone: it announces nobody.",
		Results:         keys(hidden),
		DiscriminatedBy: []string{observed(hidden, "the greeting has no ID: "+listed(factValues(hidden, "reply"))), "an ID that is sent all the same is honoured"},
		Alternatives:    []string{"DX-14, missing trust: an ID would not be honoured"},
	}
	if o.src.Version == "trixie" {
		d.Remedy = remedy("Let the greeting list ID again.", result.Change{File: "/etc/dovecot/local.conf", Setting: "imap_capability/ID",
			Text: "imap_capability {\n  ID = yes\n}", Layer: "dovecot/99-remedy.conf"})
	} else {
		d.Remedy = remedy("Let Dovecot make its own capability list: an empty imap_capability does.", o.dovecotChange("imap_capability", "", "a list of one's own replaces Dovecot's, ID included"))
	}
	return d
}

func causeXclientByName(o *observations) *result.Diagnosis {
	again := o.find(query{ids: "xclient.only-once", any: []string{"present=250 XCLIENT", "at=XCLIENT"}})
	if len(again) == 0 {
		return nil
	}
	return &result.Diagnosis{
		Title:           "XCLIENT is authorised by the proxy's host name",
		Means:           "The proxy announces addresses and no names, so Postfix goes on believing that the client is the proxy by name. A client whose login failed can announce itself again, under any address and login name, and relay.",
		Results:         keys(again),
		DiscriminatedBy: []string{observed(again, "after one announcement another was offered or taken"), "nobody but the proxy is believed at the beginning of a connection"},
		Alternatives:    []string{"DX-27, a trusted network that includes the client: strangers would be believed too"},
		Remedy:          remedy("Name the proxy's addresses, not its host name.", o.exactTrust(false, endpointsOf(again))...),
	}
}

func causeOpenRelay(o *observations) *result.Diagnosis {
	open := o.find(query{ids: "relay.not-open-stranger relay.not-open-client relay.not-open-neighbour relay.not-open-submission", any: []string{"reply=250", "~outbound"}})
	if len(open) == 0 {
		return nil
	}
	onlyNeighbour := !o.has(query{ids: "relay.not-open-stranger relay.not-open-client relay.not-open-submission", any: []string{"reply=250", "~outbound"}})
	follow := o.find(query{ids: "trust.proxy-is-no-relay xclient.not-authenticated", any: []string{"reply=250", "~outbound"}})
	d := &result.Diagnosis{
		Title:           "the source is an open relay",
		Means:           "Anybody can send mail to anywhere through this server. It will be abused within hours, and block lists will take the whole address down.",
		Results:         keys(open, follow),
		DiscriminatedBy: []string{observed(open, "a recipient of another domain was accepted without a login: "+listed(factValues(open, "reply")))},
		Alternatives:    []string{"DX-28, the proxy's address alone: strangers are accepted too"},
	}
	changes := []result.Change{
		o.mainChange("mynetworks", strings.Join(append([]string{"127.0.0.0/8", "[::1]/128"}, bracketed(o.addresses(Relay))...), " "), "only the server itself and the new server send without a login"),
		o.mainChange("smtpd_relay_restrictions", "permit_mynetworks permit_sasl_authenticated reject_unauth_destination", ""),
	}
	for _, e := range endpointsOf(open, follow) {
		if e != "smtp" {
			changes = append(changes, o.serviceChange(e, "smtpd_relay_restrictions", "permit_sasl_authenticated,reject", "submission is for users who signed in"))
		} else if _, ok := o.inForce("postconf -P", "smtp/inet/smtpd_relay_restrictions"); ok {
			changes = append(changes, o.serviceChange("smtp", "smtpd_relay_restrictions", "permit_mynetworks,reject_unauth_destination", ""))
		}
	}
	if onlyNeighbour {
		d.Title = "the proxy's whole network may relay"
		d.Alternatives = []string{"an open relay: strangers are refused"}
	}
	d.Remedy = remedy("Refuse what is neither for this server's own domains nor from somebody who may send.", changes...)
	return d
}

func causeProxyRelays(o *observations) *result.Diagnosis {
	relays := o.find(query{ids: "trust.proxy-is-no-relay xclient.not-authenticated", any: []string{"reply=250", "~outbound"}})
	if len(relays) == 0 {
		return nil
	}
	value, _ := o.inForce("postconf -n", "mynetworks")
	d := &result.Diagnosis{
		Title:           "the proxy's address may relay",
		Means:           "The proxy stands in mynetworks. Every connection that comes through it without an announcement sends mail to anywhere, for anybody.",
		Results:         keys(relays),
		DiscriminatedBy: []string{observed(relays, "the proxy's address could name a recipient of another domain without a login"), "strangers are refused"},
		Alternatives:    []string{"MP-OPEN-RELAY: strangers would be accepted too"},
	}
	if value != "" {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "postconf -n says mynetworks = "+value)
	}
	d.Remedy = remedy("Take the proxy's addresses, and every network that holds them, out of mynetworks.",
		o.mainChange("mynetworks", strings.Join(append([]string{"127.0.0.0/8", "[::1]/128"}, bracketed(o.addresses(Relay))...), " "), "only the server itself and the new server send without a login"))
	return d
}

func causeHelo(o *observations) *result.Diagnosis {
	helo := o.find(query{any: []string{"~Helo command rejected", "~need fully-qualified hostname", "~Invalid EHLO", "~Invalid name"}})
	if len(helo) == 0 {
		return nil
	}
	_, post := split(helo)
	relay := slices.Contains(endpointsOf(post), "smtp")
	d := &result.Diagnosis{
		Title:           "a rule about HELO names refuses " + map[bool]string{true: "the new server", false: "mail programs"}[relay],
		Means:           "The name in EHLO is judged before the mail is. The new server may call itself by an internal name, and mail programs call themselves anything: the proxy passes their names on.",
		Results:         keys(helo),
		DiscriminatedBy: []string{observed(helo, "a recipient was refused because of the name in EHLO: "+listed(factValues(helo, "reply"))), "with a fully qualified name the same recipient is accepted"},
		Alternatives:    []string{"DX-08, a rule about the sender or the address: another name would not help"},
	}
	if v, ok := o.inForce("postconf -n", "smtpd_helo_restrictions"); ok {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "postconf -n says smtpd_helo_restrictions = "+v)
	}
	var changes []result.Change
	if relay {
		changes = append(changes, o.mainChange("smtpd_helo_restrictions", "permit_mynetworks "+strings.TrimPrefix(strings.ReplaceAll(o.orEmpty("postconf -n", "smtpd_helo_restrictions"), "permit_mynetworks", ""), " "), "the new server stands in mynetworks"))
	}
	for _, e := range endpointsOf(post) {
		if e != "smtp" {
			changes = append(changes, o.serviceChange(e, "smtpd_helo_restrictions", "", "users are judged by their login"))
		}
	}
	d.Remedy = remedy("Exempt "+map[bool]string{true: "the new server from the rule (put permit_mynetworks first)", false: "the submission services from the rule"}[relay]+".", changes...)
	return d
}

func (o *observations) orEmpty(command, name string) string {
	v, _ := o.inForce(command, name)
	return v
}

func causeConnectionLimit(o *observations) *result.Diagnosis {
	limited := o.find(query{ids: "xclient.concurrency", any: []string{"~too many connections"}})
	if len(limited) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "all users together may hold only so many connections at submission",
		Means:           "Postfix 3.8 and later count connections by the address that really connected: the proxy's. At busy times users are turned away with \"421 too many connections\", whoever was announced.",
		Results:         keys(limited),
		DiscriminatedBy: []string{observed(limited, "the fifty-first connection of different clients was refused: "+listed(factValues(limited, "reply")))},
		Alternatives:    []string{"missing trust: the clients were announced and believed"},
	}
	var changes []result.Change
	for _, e := range []string{"submission", "submissions"} {
		changes = append(changes, o.serviceChange(e, "smtpd_client_connection_count_limit", "0", "the proxy's users come from one address"))
	}
	d.Remedy = remedy("Switch the limit off on the services that the proxy uses; the proxy has limits of its own.", changes...)
	return d
}

func causeThrottled(o *observations) *result.Diagnosis {
	many := o.find(query{endpoint: "smtp", any: []string{"~too much mail", "~too many connections", "~Rate limit", "~connection rate"}})
	if len(many) == 0 {
		return nil
	}
	return &result.Diagnosis{
		Title:           "the source limits how much the new server may send",
		Means:           "All inbound mail now comes from one address, and the source lets one address send only so much: mail queues up on the new server.",
		Results:         keys(many),
		DiscriminatedBy: []string{observed(many, "the source refused for the amount: "+listed(factValues(many, "reply"))), "the first messages were accepted"},
		Alternatives:    []string{"DX-08, greylisting or a rule: it would have refused the first message"},
		Remedy: remedy("Exempt the new server from the limits.",
			o.smtpChange("smtpd_client_event_limit_exceptions", "$mynetworks,"+strings.Join(bracketed(o.addresses(Relay)), ","), "")),
	}
}

func causeRecipients(o *observations) *result.Diagnosis {
	many := o.find(query{any: []string{"~too many recipients"}})
	if len(many) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "the source takes only few recipients with one message",
		Means:           "A message to several people who have not moved is split and delayed, or bounces for some of them.",
		Results:         keys(many),
		DiscriminatedBy: []string{observed(many, "a further recipient of the same message was refused: "+listed(factValues(many, "reply"))), "the first recipient was accepted"},
		Alternatives:    []string{"DX-21, an amount of messages: the first message was refused in part"},
		Remedy:          remedy("Let one message have as many recipients as Postfix takes by default.", o.smtpChange("smtpd_recipient_limit", "1000", "")),
	}
	if v, ok := o.inForce("postconf -n", "smtpd_recipient_limit"); ok {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "smtpd_recipient_limit is "+v)
	}
	return d
}

func causeNotDelivered(o *observations) *result.Diagnosis {
	lost := o.find(query{facts: []string{"record=missing", "kind=message"}})
	deferred := o.find(query{any: []string{"recorded:status=deferred", "recorded:status=bounced"}})
	if len(lost)+len(deferred) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:        "mail is accepted and does not reach the mailbox",
		Means:        "Postfix takes the message and cannot hand it over to Dovecot. It stays in the queue, or comes back as a bounce after days.",
		Results:      keys(lost, deferred),
		Alternatives: []string{"DX-08, a refusal: the message was accepted"},
	}
	if len(lost) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(lost, "no mailbox of the account has the message"))
	}
	if len(deferred) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(deferred, "Postfix says: "+listed(factValues(deferred, "recorded:status"))))
	}
	v, _ := o.inForce("postconf -n", "virtual_transport")
	if v == "" {
		d.Remedy = remedy("Look at the status= of the queue entry in the mail log (postqueue -p), and mend the delivery to Dovecot.")
		return d
	}
	d.DiscriminatedBy = append(d.DiscriminatedBy, "virtual_transport is "+v)
	d.Remedy = remedy("Let virtual_transport name the socket that Dovecot's lmtp service listens on.",
		o.mainChange("virtual_transport", "lmtp:unix:private/dovecot-lmtp", "service lmtp { unix_listener /var/spool/postfix/private/dovecot-lmtp } in Dovecot"))
	return d
}

func causeRelayRefused(o *observations) *result.Diagnosis {
	refused := o.find(query{ids: "relay.*", endpoint: "smtp", any: []string{"at=RCPT", "at=MAIL", "at=DATA", "at=BDAT", "at=EHLO", "at=greeting"}})
	refused = slices.DeleteFunc(refused, func(r *result.Result) bool {
		return globs("relay.not-open-* relay.unknown-recipient relay.size relay.external-recipient", r.ID) ||
			!hasFact(r, "vantage=relay") || !hasFact(r, "reply=4") && !hasFact(r, "reply=5")
	})
	if len(refused) == 0 {
		return nil
	}
	follow := o.find(query{ids: "relay.unknown-recipient relay.size relay.external-recipient", any: []string{"reply=4", "reply=5"}})
	text := strings.Join(factValues(refused, "reply"), " ")
	why := "a rule about its address or name"
	if strings.Contains(strings.ToLower(text), "greylist") {
		why = "greylisting"
	}
	d := &result.Diagnosis{
		Title:           "the source refuses mail from the new server: " + why,
		Means:           "The new server has accepted and judged this mail already. The source judges it a second time by the new server's address, and mail for accounts that have not moved is delayed or lost.",
		Results:         keys(refused, follow),
		DiscriminatedBy: []string{observed(refused, "the new server was refused: "+listed(factValues(refused, "reply")))},
		Alternatives:    []string{"DX-07, a rule about the EHLO name: a fully qualified name is refused too", "DX-21, an amount: the first message is refused"},
	}
	changes := []result.Change{
		o.mainChange("mynetworks", o.plus("postconf -n", "mynetworks", bracketed(o.addresses(Relay))), "the new server is accepted before any rule"),
	}
	for _, name := range []string{"smtpd_client_restrictions", "smtpd_helo_restrictions", "smtpd_sender_restrictions", "smtpd_recipient_restrictions"} {
		if v, ok := o.inForce("postconf -n", name); ok && v != "" && !strings.HasPrefix(v, "permit_mynetworks") {
			changes = append(changes, o.mainChange(name, "permit_mynetworks "+v, "the new server is accepted before any rule"))
		}
	}
	d.Remedy = remedy("Accept the new server before any rule: put its addresses into mynetworks, and permit_mynetworks first in every restriction list.", changes...)
	return d
}

func causeBackscatter(o *observations) *result.Diagnosis {
	taken := o.find(query{ids: "relay.unknown-recipient relay.partial-recipients", any: []string{"reply=250"}})
	if len(taken) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "the source accepts mail for addresses that do not exist",
		Means:           "It accepts first and bounces later, to senders who are mostly forged: the server becomes a source of spam itself.",
		Results:         keys(taken, o.find(query{ids: "trust.smtp-*", facts: []string{"at=RCPT", "reply=250"}})),
		DiscriminatedBy: []string{observed(taken, "a recipient that does not exist was accepted")},
		Alternatives:    []string{"a catch-all that is meant: then the mail is delivered, and this finding can be excluded"},
	}
	changes := []result.Change{o.smtpChange("smtpd_reject_unlisted_recipient", "yes", "unknown recipients are refused when they are named")}
	if v, ok := o.inForce("postconf -n", "virtual_alias_maps"); ok && strings.Contains(v, "@"+o.src.Domain) {
		changes = append(changes, o.mainChange("virtual_alias_maps", "", "it catches every address of the domain"))
	}
	d.Remedy = remedy("Refuse unknown recipients when they are named.", changes...)
	return d
}

func causeSize(o *observations) *result.Diagnosis {
	size := o.find(query{any: []string{"~size exceeds", "~message file too big", "~Message too large", "missing=250 SIZE"}})
	if len(size) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "the source takes only small messages",
		Means:           "The new server accepts messages that the source refuses afterwards: they bounce.",
		Results:         keys(size),
		DiscriminatedBy: []string{observed(size, "a large message was refused: "+listed(factValues(size, "reply")))},
		Alternatives:    []string{"DX-08, a rule about the sender: small messages are accepted"},
		Remedy:          remedy("Let the source take what the new server takes.", o.mainChange("message_size_limit", "104857600", "as large as the new server accepts")),
	}
	if v, ok := o.inForce("postconf -n", "message_size_limit"); ok {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "postconf -n says message_size_limit = "+v)
	}
	return d
}

func causeEightBit(o *observations) *result.Diagnosis {
	eight := o.find(query{any: []string{"missing=250 8BITMIME"}})
	if len(eight) == 0 {
		return nil
	}
	return &result.Diagnosis{
		Title:           "the source does not offer 8BITMIME",
		Means:           "The new server must rewrite eight-bit mail before it can relay it: signatures break.",
		Results:         keys(eight),
		DiscriminatedBy: []string{observed(eight, "EHLO does not offer 8BITMIME")},
		Alternatives:    []string{},
		Remedy:          remedy("Take 8bitmime out of smtpd_discard_ehlo_keywords.", o.mainChange("smtpd_discard_ehlo_keywords", o.minus("postconf -n", "smtpd_discard_ehlo_keywords", "8bitmime"), "")),
	}
}

func causeChunking(o *observations) *result.Diagnosis {
	chunk := o.find(query{any: []string{"missing=250 CHUNKING"}})
	if len(chunk) == 0 {
		return nil
	}
	return &result.Diagnosis{
		Title:           "the source does not offer CHUNKING",
		Means:           "The new server then sends with DATA, which works as well; the claims that need BDAT could not be tried.",
		Results:         keys(chunk),
		DiscriminatedBy: []string{observed(chunk, "EHLO does not offer CHUNKING")},
		Alternatives:    []string{},
		Remedy:          remedy("Take chunking out of smtpd_discard_ehlo_keywords.", o.mainChange("smtpd_discard_ehlo_keywords", o.minus("postconf -n", "smtpd_discard_ehlo_keywords", "chunking"), "")),
	}
}

func causeCleartext(o *observations) *result.Diagnosis {
	clear := o.find(query{ids: "trust.cleartext-refused", any: []string{"missing=* CAPABILITY"}})
	if len(clear) == 0 {
		return nil
	}
	name, value := "disable_plaintext_auth", "yes"
	if o.src.Version == "trixie" {
		name, value = "auth_allow_cleartext", "no"
	}
	return &result.Diagnosis{
		Title:           "passwords are accepted without TLS",
		Means:           "Dovecot lets everybody sign in in clear text. Behind the proxy nobody needs that any more, and direct users should not have it.",
		Results:         keys(clear),
		DiscriminatedBy: []string{observed(clear, "the capability list does not say LOGINDISABLED"), "addresses that others announce are not believed, so it is no matter of trust"},
		Alternatives:    []string{"DX-27, a trust that is too wide: announced addresses would be believed"},
		Remedy:          remedy("Demand TLS for passwords.", o.dovecotChange(name, value, "")),
	}
}

func causeXclientOn25(o *observations) *result.Diagnosis {
	on25 := o.find(query{ids: "xclient.not-on-port-25", any: []string{"present=250 XCLIENT"}})
	if len(on25) == 0 {
		return nil
	}
	proxy := strings.Join(bracketed(o.addresses(Proxy)), ",")
	return &result.Diagnosis{
		Title:           "XCLIENT is also offered on port 25",
		Means:           "The proxy never announces on port 25. Offered there, XCLIENT is only a way to misuse the proxy's host.",
		Results:         keys(on25),
		DiscriminatedBy: []string{observed(on25, "EHLO on port 25 offers XCLIENT to the proxy")},
		Alternatives:    []string{},
		Remedy: remedy("Authorise XCLIENT for the submission services alone.",
			o.mainChange("smtpd_authorized_xclient_hosts", "", "port 25 needs none"),
			o.serviceChange("submission", "smtpd_authorized_xclient_hosts", proxy, ""),
			o.serviceChange("submissions", "smtpd_authorized_xclient_hosts", proxy, "")),
	}
}
