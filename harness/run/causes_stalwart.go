package run

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/result"
)

const sw = "stalwart"

// stalwartTrust lists what can be wrong with whom a Stalwart of the 0.15 series
// takes PROXY headers from. It is looked for first: where trust is wrong, TLS
// fails as well.
func stalwartTrust() []cause {
	return []cause{
		{"MP-STORE", sw, causeStore},
		{"DX-06", sw, causePort25Trusted},
		{"DX-04", sw, causeBlocked},
		{"DX-27", sw, causeNetworksTooWide},
		{"MP-TRUST-NEW-SERVER", sw, causeNetworksNewServer},
		{"DX-15", sw, causeNotRestarted},
		{"DX-01", sw, causeNetworksMissing},
	}
}

// stalwartCauses lists what else can be wrong with it, in the order in which it
// is looked for.
func stalwartCauses() []cause {
	return []cause{
		{"MP-FORWARDED", sw, causeForwarded},
		{"MP-SASL-PLAIN", sw, causeMechanisms},
		{"MP-CLEARTEXT", sw, causePlainText},
		{"MP-ADMINISTRATOR", sw, causeAdministrator},
		{"MP-OPEN-RELAY", sw, causeRelayExpression},
		{"DX-07", sw, causeEHLOName},
		{"DX-21", sw, causeInboundLimits},
		{"DX-29", sw, causeMaxConnections},
		{"MP-RECIPIENTS", sw, causeFewRecipients},
		{"MP-SUB-ADDRESS", sw, causeSubAddress},
		{"MP-SIZE", sw, causeMessageSize},
		{"MP-CHUNKING", sw, causeNoChunking},
		{"DX-08", sw, causeSecondVerdict},
		{"DX-13", sw, causePublicURL},
		{"DX-24", sw, causeHostName},
		{"MP-MTA-STS", sw, causeMTASTS},
		{"MP-RELOAD", sw, causeReloadRejected},
	}
}

// ---- remedies in the words of Stalwart

const stalwartFile = "/opt/stalwart/etc/config.toml"

// keyChange sets a key of Stalwart's. value is spelled as TOML.
func (o *observations) keyChange(name, value, because string) result.Change {
	file := "the database (POST /api/settings, then GET /api/reload)"
	if strings.HasPrefix(name, "server.") && !strings.HasPrefix(name, "server.allowed-ip.") && !strings.HasPrefix(name, "server.blocked-ip.") {
		file = stalwartFile
	}
	found, _ := o.inForce("settings", name)
	if list := o.below(name); found == "" && len(list) > 0 {
		found = strings.Join(list, ", ")
	}
	// Addresses hold dots, which are no part of a name in TOML.
	for _, p := range []string{"server.allowed-ip.", "server.blocked-ip."} {
		if address, ok := strings.CutPrefix(name, p); ok {
			return result.Change{File: file, Setting: name, Found: found, Text: p[:len(p)-1] + `."` + address + `" = ` + value, Because: because, Layer: "stalwart/99-remedy.toml"}
		}
	}
	return result.Change{File: file, Setting: name, Found: found, Text: name + " = " + value, Because: because, Layer: "stalwart/99-remedy.toml"}
}

// below lists the values of a list setting: name.0, name.1 and so on.
func (o *observations) below(name string) []string {
	var out []string
	for _, f := range o.files() {
		if !f.Command || f.Path != "settings" {
			continue
		}
		for _, line := range strings.Split(f.Text, "\n") {
			key, v, ok := strings.Cut(line, " = ")
			if ok && (key == name || strings.HasPrefix(key, name+".")) {
				out = append(out, v)
			}
		}
	}
	return out
}

// listener is what the configuration calls the listener of an endpoint.
func (o *observations) listener(endpoint string) string {
	ep, _ := o.src.Endpoint(endpoint)
	for _, f := range o.files() {
		if f.Path != "settings" {
			continue
		}
		for _, line := range strings.Split(f.Text, "\n") {
			key, v, _ := strings.Cut(line, " = ")
			id, ok := strings.CutPrefix(key, "server.listener.")
			if !ok {
				continue
			}
			id, field, _ := strings.Cut(id, ".")
			if (field == "bind" || strings.HasPrefix(field, "bind.")) && strings.HasSuffix(v, fmt.Sprintf(":%d", ep.Port)) {
				return id
			}
		}
	}
	if endpoint == "imaps" {
		return "imaptls"
	}
	return endpoint
}

// networks are those whose PROXY headers a listener takes, as they are stored.
func (o *observations) networks(listener string) (list []string, key string) {
	key = "server.listener." + listener + ".proxy.trusted-networks"
	if list = o.below(key); len(list) > 0 {
		return list, key
	}
	if global := o.below("server.proxy.trusted-networks"); len(global) > 0 {
		return global, "server.proxy.trusted-networks"
	}
	return nil, key
}

// holds says whether one of the networks, as Stalwart reads them, holds an
// address: it takes no prefix shorter than eight.
func holdsAddress(networks []string, a netip.Addr) bool {
	for _, n := range networks {
		if p, err := netip.ParsePrefix(n); err == nil {
			if p.Bits() >= 8 && p.Contains(a) {
				return true
			}
		} else if b, err := netip.ParseAddr(n); err == nil && b == a {
			return true
		}
	}
	return false
}

const (
	restartStalwart = "restart the server (its container or service): a reload is not enough for listeners"
	reloadStalwart  = "GET /api/reload, and read the errors in its answer"
)

// keyRemedy puts changes and what applies them together.
func keyRemedy(text string, changes ...result.Change) result.Remedy {
	r := result.Remedy{Text: text, Changes: changes}
	for _, c := range changes {
		how := reloadStalwart
		if strings.HasPrefix(c.Setting, "server.listener.") || strings.HasPrefix(c.Setting, "server.proxy.") {
			how = restartStalwart
		}
		if !slices.Contains(r.Apply, how) {
			r.Apply = append(r.Apply, how)
		}
	}
	return r
}

// tomlList spells addresses as the list of networks that holds each alone.
func tomlList(addresses []string) string {
	words := make([]string, len(addresses))
	for i, a := range addresses {
		bits := "/32"
		if strings.Contains(a, ":") {
			bits = "/128"
		}
		words[i] = `"` + a + bits + `"`
	}
	return "[" + strings.Join(words, ", ") + "]"
}

// ---- the causes

func causePort25Trusted(o *observations) *result.Diagnosis {
	silent := o.find(query{endpoint: "smtp", facts: []string{"at=greeting", "reply=none"}, any: []string{"vantage=relay", "vantage=proxy"}})
	if len(silent) == 0 {
		return nil
	}
	all := concat(silent, o.find(query{endpoint: "smtp", any: []string{"at=greeting", "vantage=relay"}}),
		o.find(query{ids: "client-address.proxy-as-seen"}), o.find(query{ids: "lifecycle.*", facts: []string{"endpoint=smtp"}}))
	list, key := o.networks(o.listener("smtp"))
	d := &result.Diagnosis{
		Title:           "port 25 waits for a PROXY header",
		Means:           "The networks from which the source expects headers hold the new server or the proxy on port 25 too. The new server sends none: the source says nothing, for ever and without a line in its log, and relayed mail is stuck.",
		Results:         keys(all),
		DiscriminatedBy: []string{observed(silent, "the connection is accepted and no greeting comes")},
		Alternatives:    []string{"DX-04, a ban: the connection would be closed", "DX-21, a limit: the connection would be closed, and the first ones greeted"},
	}
	if len(list) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, key+" is "+strings.Join(list, ", "))
	}
	changes := []result.Change{o.keyChange("server.listener."+o.listener("smtp")+".proxy.trusted-networks", `["192.0.2.1/32"]`, "a list on the listener takes the place of the global one, and this one matches nobody")}
	d.Remedy = keyRemedy("Give port 25 a list of its own that matches nobody, or name the proxy on the other listeners instead of globally; then restart.", changes...)
	return d
}

func causeBlocked(o *observations) *result.Diagnosis {
	var found []string
	var all []*result.Result
	for _, v := range []string{Proxy, Relay, Client, Neighbour, Stranger} {
		for _, a := range o.addresses(v) {
			if _, ok := o.inForce("settings", "server.blocked-ip."+a); !ok && len(o.below("server.blocked-ip."+a)) == 0 {
				continue
			}
			f := "ip4"
			if strings.Contains(a, ":") {
				f = "ip6"
			}
			hit := o.find(query{family: f, facts: []string{"vantage=" + v}, any: []string{"reply=closed", "tls=closed", "open="}})
			hit = concat(hit, o.find(query{ids: "client-address.header-without-address", family: f}))
			if len(hit) > 0 {
				found = append(found, a+" (the "+map[string]string{Relay: "new server", Proxy: "proxy"}[v]+")")
				all = concat(all, hit)
			}
		}
	}
	all = slices.DeleteFunc(all, func(r *result.Result) bool { return globs("relay.recipient-errors relay.throughput", r.ID) })
	if len(all) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "the source has banned " + listed(found),
		Means:           "The source closes every connection from there before it has said anything. Its bans are kept in its database and survive a restart; trusting an address does not exempt it.",
		Results:         keys(all),
		DiscriminatedBy: []string{observed(all, "connections are closed without a word"), "server.blocked-ip names " + listed(found)},
		Alternatives:    []string{"DX-21, a limit: the first connections would be greeted", "DX-03, a host inside the trusted networks: it is refused only without a header"},
	}
	var changes []result.Change
	for _, w := range found {
		a, _, _ := strings.Cut(w, " ")
		changes = append(changes, o.keyChange("server.blocked-ip."+a, "[]", ""), o.keyChange("server.allowed-ip."+a, `""`, "addresses that are allowed are never banned"))
	}
	d.Remedy = keyRemedy("Lift the ban, and exempt the address for the future.", changes...)
	return d
}

// headerTaken lists what shows that a header from a vantage was taken, or that
// one was waited for.
func (o *observations) headerTaken(suffix string) []*result.Result {
	return o.find(query{ids: "trust.header-*-" + suffix, any: []string{"reply=none", "open=silent", "recorded:rip=forged", "reply=HTTP/1.1 307", "reply=250", "reply=closed", "tls=closed", "tls=timeout"}})
}

func causeNetworksTooWide(o *observations) *result.Diagnosis {
	neighbour, stranger := o.headerTaken("neighbour"), o.headerTaken("stranger")
	if len(neighbour)+len(stranger) == 0 {
		return nil
	}
	all := concat(neighbour, stranger, o.find(query{any: []string{"vantage=neighbour"}}))
	who := "the proxy's whole network"
	if len(stranger) > 0 {
		who = "everybody"
		all = concat(all, o.headerTaken("new-server"), o.find(query{any: []string{"vantage=stranger", "vantage=client"}}))
	}
	es := endpointsOf(all)
	d := &result.Diagnosis{
		Title:        "the source takes PROXY headers from " + who + ", and not from the proxy alone",
		Means:        "Whoever sits there can give itself any address; and without a header it is not served at all, because the source waits for one.",
		Results:      keys(all),
		Alternatives: []string{"MP-TRUST-NEW-SERVER, one address too many: the neighbour would be served without a header"},
	}
	if len(stranger) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(stranger, "a stranger's header was taken"))
	} else {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(neighbour, "the header of the proxy's neighbour was taken"), "strangers' headers are not")
	}
	d.Remedy = keyRemedy("Name the proxy's own addresses, and nothing else; then restart.", o.exactNetworks(es)...)
	for _, c := range d.Remedy.Changes {
		if c.Found != "" {
			d.DiscriminatedBy = append(d.DiscriminatedBy, c.Setting+" is "+c.Found)
		}
	}
	return d
}

// exactNetworks are the changes that let listeners take the proxy's headers alone.
func (o *observations) exactNetworks(endpoints []string) []result.Change {
	var changes []result.Change
	for _, e := range endpoints {
		value := tomlList(o.addresses(Proxy))
		if e == "smtp" {
			value = `["192.0.2.1/32"]`
		}
		changes = append(changes, o.keyChange("server.listener."+o.listener(e)+".proxy.trusted-networks", value, ""))
	}
	return changes
}

func causeNetworksNewServer(o *observations) *result.Diagnosis {
	relay := o.headerTaken("new-server")
	if len(relay) == 0 {
		return nil
	}
	return &result.Diagnosis{
		Title:           "the source takes PROXY headers from the new server",
		Means:           "The new server only relays mail; it announces nobody. Trusted, it could give itself any address.",
		Results:         keys(relay),
		DiscriminatedBy: []string{observed(relay, "the new server's header was taken"), "those of the proxy's neighbour and of strangers are not"},
		Alternatives:    []string{"DX-27, a trusted network: the neighbour's would be taken too"},
		Remedy:          keyRemedy("Name the proxy's own addresses, and nothing else; then restart.", o.exactNetworks(endpointsOf(relay))...),
	}
}

// untrusted finds the endpoints where the proxy is served without a header, and
// everything that fails there because its headers are garbage to the source.
func (o *observations) untrusted() (served, all []*result.Result) {
	served = o.find(query{ids: "trust.unannounced-* trust.broken-header", facts: []string{"vantage=proxy"}, any: []string{"open=talks"}})
	all = served
	for _, r := range served {
		all = concat(all, o.find(query{endpoint: r.Facet.Endpoint, family: r.Facet.Family, any: []string{"vantage=proxy", "vantage=client", "recorded:rip=proxy", "recorded:rport="}}))
	}
	if len(served) > 0 {
		es := endpointsOf(served)
		for _, f := range familiesOf(served) {
			// Scenarios that speak at several endpoints.
			for _, e := range es {
				all = concat(all, o.find(query{family: f, facts: []string{"endpoint=" + e, "vantage=proxy"}}))
			}
		}
		all = concat(all, o.find(query{ids: "lifecycle.settings"}))
	}
	return served, all
}

// staged says whether the listeners' stored networks hold the proxy.
func (o *observations) staged(served []*result.Result) bool {
	for _, r := range served {
		list, _ := o.networks(o.listener(r.Facet.Endpoint))
		a := o.t.Vantages[Proxy].Addr(Family(r.Facet.Family))
		if !holdsAddress(list, a) {
			return false
		}
	}
	return len(served) > 0
}

func causeNotRestarted(o *observations) *result.Diagnosis {
	served, all := o.untrusted()
	if !o.staged(served) {
		return nil
	}
	es := listed(endpointsOf(served))
	return &result.Diagnosis{
		Title:           "the trust of the proxy on " + es + " is stored and not in force",
		Means:           "A reload does not touch listeners: it reads their settings, says that nothing is wrong, and throws them away. Until the server is restarted it takes the proxy's header for garbage.",
		Results:         keys(all),
		DiscriminatedBy: []string{observed(served, "the proxy is served without a header"), "the stored networks of these listeners hold the proxy"},
		Alternatives:    []string{"DX-01, a wrong address: the stored networks would not hold the proxy's", "MP-NAT, address translation: the source sees the proxy's own address"},
		Remedy:          result.Remedy{Text: "Restart the server: its container or service. /api/restart answers 200 and does nothing.", Apply: []string{restartStalwart}},
	}
}

func causeNetworksMissing(o *observations) *result.Diagnosis {
	served, all := o.untrusted()
	if len(served) == 0 {
		return nil
	}
	es := endpointsOf(served)
	d := &result.Diagnosis{
		Title:           "the source does not take the proxy's headers on " + listed(es),
		Means:           "The listener expects no PROXY header from the proxy's address: it takes it for the first command, or for a broken TLS handshake, and nobody is served through the proxy.",
		Results:         keys(all),
		DiscriminatedBy: []string{observed(served, "the proxy is served without a header")},
		Alternatives:    []string{"DX-15, stored and not restarted: the stored networks would hold the proxy", "MP-NAT, address translation: the source sees the proxy's own address", "DX-17, a TLS problem: the proxy's neighbour has none"},
	}
	if fs := familiesOf(served); len(fs) == 1 && o.has(query{ids: "trust.unannounced-*", verdict: result.Pass}) {
		d.Title += " over " + map[string]string{"ip4": "IPv4", "ip6": "IPv6"}[fs[0]]
		d.DiscriminatedBy = append(d.DiscriminatedBy, "over the other address family they are taken")
	}
	d.Remedy = keyRemedy("Name the proxy's addresses in the networks of these listeners (proxy.override alone has no effect), then restart.", o.exactNetworks(es)...)
	for _, e := range es {
		list, key := o.networks(o.listener(e))
		word := key + " is not set"
		if len(list) > 0 {
			word = key + " is " + strings.Join(list, ", ")
		}
		d.DiscriminatedBy = append(d.DiscriminatedBy, word)
	}
	return d
}

func causeForwarded(o *observations) *result.Diagnosis {
	forged := o.find(query{endpoint: "http https", any: []string{"recorded:rip=forged"}})
	if len(forged) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "forwarding headers are believed, whoever sends them",
		Means:           "Any client can name any address in a Forwarded or X-Forwarded-For header, and the source records, limits and bans that one. The PROXY header says what is true, and loses.",
		Results:         keys(forged),
		DiscriminatedBy: []string{observed(forged, "the address that a request named was recorded")},
		Alternatives:    []string{"DX-27, a trust that is too wide: PROXY headers of others are not taken"},
		Remedy:          keyRemedy("Do not use forwarding headers: the proxy announces by PROXY header.", o.keyChange("http.use-x-forwarded", "false", "")),
	}
	if v, ok := o.inForce("settings", "http.use-x-forwarded"); ok {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "http.use-x-forwarded is "+v)
	}
	return d
}

func causeMechanisms(o *observations) *result.Diagnosis {
	auth := concat(o.find(query{endpoint: submissionEndpoints, facts: []string{"at=AUTH"}, any: []string{"~mechanism", "~not supported", "~not allowed"}}),
		o.find(query{endpoint: submissionEndpoints, any: []string{"missing=250 AUTH"}}))
	if len(auth) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "SASL PLAIN is not accepted on " + listed(endpointsOf(auth)),
		Means:           "The proxy turns every login into SASL PLAIN with an initial response. A source without it lets nobody submit through the proxy.",
		Results:         keys(concat(auth, o.find(query{endpoint: submissionEndpoints, any: []string{"at=AUTH"}}), o.find(query{facts: []string{"at=AUTH", "endpoint=submission"}}))),
		DiscriminatedBy: []string{observed(auth, "a right password was answered with "+listed(factValues(auth, "reply")))},
		Alternatives:    []string{"a wrong password: the source refused the mechanism, not the password"},
		Remedy:          keyRemedy("Let submission take PLAIN inside TLS, as it does by default.", o.keyChange("session.auth.mechanisms", "[]", "without the setting PLAIN and LOGIN are offered inside TLS")),
	}
	if v := o.below("session.auth.mechanisms"); len(v) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "session.auth.mechanisms is "+strings.Join(v, ", "))
	}
	return d
}

func causeRelayExpression(o *observations) *result.Diagnosis {
	open := o.find(query{ids: "relay.not-open-* trust.proxy-is-no-relay client-address.proxy-as-seen relay.external-recipient", any: []string{"reply=250"}})
	if len(open) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "the source relays for people who are not its users",
		Means:           "Anybody can send mail to anywhere through it. It will be abused within hours, and blocklisted.",
		Results:         keys(open),
		DiscriminatedBy: []string{observed(open, "a recipient elsewhere was accepted without a login")},
		Alternatives:    []string{},
		Remedy:          keyRemedy("Let only those relay who have signed in, as it is by default.", o.keyChange("session.rcpt.relay", "[]", "without the setting only sessions that have signed in may relay")),
	}
	if v := o.below("session.rcpt.relay"); len(v) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "session.rcpt.relay is "+strings.Join(v, ", "))
	}
	return d
}

// causePlainText is about passwords that are taken, or asked for, without TLS.
func causePlainText(o *observations) *result.Diagnosis {
	login := o.find(query{ids: "trust.announced-tls-imap", any: []string{"reply=a1 OK", "reply=OK"}})
	asked := o.find(query{ids: "trust.announced-tls-submission", any: []string{"present=250 AUTH"}})
	all := concat(login, asked)
	if len(all) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:        "passwords are taken without TLS",
		Means:        "Stalwart lets everybody sign in in clear text, whether the proxy says that the client came inside TLS or not. Behind the proxy nobody needs that, and direct users should not have it.",
		Results:      keys(all),
		Alternatives: []string{"a proxy that says of every client that it came inside TLS: direct sessions would be refused"},
	}
	var changes []result.Change
	if len(login) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(login, "a right password in clear text was accepted over IMAP"))
		changes = append(changes, o.keyChange("imap.auth.allow-plain-text", "false", "it is false by default"))
	}
	if len(asked) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(asked, "submission offers PLAIN without TLS"))
		changes = append(changes, o.keyChange("session.auth.mechanisms", "[]", "without the setting PLAIN and LOGIN are offered inside TLS"))
	}
	d.Remedy = keyRemedy("Demand TLS for passwords, as it is by default.", changes...)
	return d
}

// causeAdministrator is about the tool that moves accounts: it reads them as
// the administrator, over JMAP and WebDAV.
func causeAdministrator(o *observations) *result.Diagnosis {
	refused := o.find(query{ids: "access.administrator-*"})
	if len(refused) == 0 || o.below("http.allowed-endpoint") == nil {
		return nil
	}
	return &result.Diagnosis{
		Title:           "the migration tool does not reach what it is to read",
		Means:           "Accounts are moved by a tool that reads them over JMAP and WebDAV as the administrator, through the proxy. The source answers there as if nothing existed.",
		Results:         keys(concat(refused, o.find(query{ids: "discovery.dav", any: []string{"reply=404", "reply=HTTP/1.1 404"}}))),
		DiscriminatedBy: []string{observed(refused, "the administrator and users alike were answered with "+listed(factValues(refused, "reply"))), "http.allowed-endpoint is " + strings.Join(o.below("http.allowed-endpoint"), ", ")},
		Alternatives:    []string{"DX-01, the proxy is not trusted: nothing would be served there"},
		Remedy:          keyRemedy("Let JMAP and WebDAV be reached, at least until the accounts are moved.", o.keyChange("http.allowed-endpoint", "[]", "without the setting everything is reached")),
	}
}

// causeStore is about a server whose store takes nothing any more: whatever
// else fails follows from that, or cannot be told.
func causeStore(o *observations) *result.Diagnosis {
	broken := o.find(query{any: []string{"~[CONTACTADMIN]", "~Unable to accept message at this time"}})
	if len(broken) == 0 {
		return nil
	}
	return &result.Diagnosis{
		Title:           "the source cannot write to its store",
		Means:           "Stalwart's store refuses what is written: its disk is full, or its database is away. Sign-ins and mail fail in turn, whoever asks.",
		Results:         keys(broken),
		DiscriminatedBy: []string{observed(broken, "the source answered with "+listed(factValues(broken, "reply")))},
		Alternatives:    []string{"DX-08, a rule about the new server: users could still sign in"},
		Remedy:          result.Remedy{Text: "Look at the space left where Stalwart keeps its data (/opt/stalwart/data), or at the database that it uses, and at the errors in its log. Then run again: other findings may follow from this one."},
	}
}

func causeEHLOName(o *observations) *result.Diagnosis {
	helo := o.find(query{any: []string{"~Invalid EHLO"}})
	if len(helo) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "a rule about EHLO names refuses the new server or mail programs",
		Means:           "The name in EHLO is judged before the mail is. The new server may call itself by a name without a dot, and mail programs call themselves anything: the proxy passes their names on.",
		Results:         keys(helo),
		DiscriminatedBy: []string{observed(helo, "EHLO was refused for the name: "+listed(factValues(helo, "reply"))), "with a fully qualified name it is accepted"},
		Alternatives:    []string{"DX-08, a rule about the sender or the address: another name would not help"},
		Remedy:          keyRemedy("Do not judge names in EHLO.", o.keyChange("session.ehlo.reject-non-fqdn", "false", "by default it is true on port 25")),
	}
	return d
}

// causeInboundLimits is about what the source holds against the new server:
// connections, messages, recipients that do not exist.
func causeInboundLimits(o *observations) *result.Diagnosis {
	limited := o.find(query{ids: "relay.throughput"})
	limited = slices.DeleteFunc(limited, func(r *result.Result) bool {
		return !hasFact(r, "reply=closed") && !hasFact(r, "reply=4") && !hasFact(r, "reply=5") || hasFact(r, "~spam score")
	})
	banned := o.find(query{ids: "relay.recipient-errors"})
	if len(limited)+len(banned) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:        "the source limits the new server as if it were one stranger",
		Means:        "All inbound mail now comes from one address. The source lets one address open so many connections, hand over so many messages and name so many unknown recipients; then mail queues up on the new server, or stops for good.",
		Results:      keys(limited, banned),
		Alternatives: []string{"DX-08, a rule about the sender: it would have refused the first message", "DX-06, port 25 waits for a header: it would be silent from the first connection on"},
	}
	relay := o.addresses(Relay)
	var match []string
	for _, a := range relay {
		match = append(match, "remote_ip != '"+a+"'")
	}
	var changes []result.Change
	if len(limited) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(limited, "after some messages or connections the source refused: "+listed(append(factValues(limited, "reply"), factValues(limited, "open")...))), "the first ones were accepted")
		changes = append(changes,
			o.keyChange("queue.limiter.inbound.ip.match", `"`+strings.Join(match, " && ")+`"`, "five connections a second by default"),
			o.keyChange("queue.limiter.inbound.sender.match", `"`+strings.Join(match, " && ")+`"`, "twenty-five messages an hour from one domain to one recipient by default"),
			o.keyChange("session.data.limits.messages", "1000", "ten messages in one session by default"))
	}
	if len(banned) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(banned, "after some dozens of recipients that do not exist the source closes every connection of the new server"))
		for _, a := range relay {
			changes = append(changes, o.keyChange("server.allowed-ip."+a, `""`, "thirty-five unknown recipients a day earn a ban by default"))
		}
	}
	d.Remedy = keyRemedy("Exempt the new server from the limits and from bans.", changes...)
	return d
}

func causeMaxConnections(o *observations) *result.Diagnosis {
	many := o.find(query{ids: "lifecycle.many-sessions"})
	if len(many) == 0 {
		return nil
	}
	var changes []result.Change
	for _, e := range factValues(many, "endpoint") {
		changes = append(changes, o.keyChange("server.listener."+o.listener(e)+".max-connections", "8192", "as it is by default"))
	}
	d := &result.Diagnosis{
		Title:           "the source holds only few connections at a time",
		Means:           "All users come through the proxy. At busy times they are turned away without a word.",
		Results:         keys(many),
		DiscriminatedBy: []string{observed(many, "of three hundred connections some were closed or not greeted, and the first ones were")},
		Alternatives:    []string{"missing trust: the first clients were announced and believed"},
		Remedy:          keyRemedy("Let the listener hold as many connections as it does by default, and restart.", changes...),
	}
	for _, c := range changes {
		if c.Found != "" {
			d.DiscriminatedBy = append(d.DiscriminatedBy, c.Setting+" is "+c.Found)
		}
	}
	return d
}

func causeFewRecipients(o *observations) *result.Diagnosis {
	few := o.find(query{ids: "relay.many-recipients", any: []string{"~Too many recipients"}})
	if len(few) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "the source takes only a few recipients for one message",
		Means:           "The new server hands a message over once for everybody at the source. The source takes it for some of them, and for the others it waits or bounces.",
		Results:         keys(few),
		DiscriminatedBy: []string{observed(few, "after some recipients the source refused: "+listed(factValues(few, "reply"))), "the first ones were accepted"},
		Alternatives:    []string{"DX-21, a limit of messages or connections: it would not speak of recipients", "DX-08, a rule about the sender: it would have refused the first recipient"},
		Remedy:          keyRemedy("Take as many recipients as by default.", o.keyChange("session.rcpt.max-recipients", "100", "as it is by default")),
	}
	return d
}

func causeSubAddress(o *observations) *result.Diagnosis {
	sub := o.find(query{ids: "relay.sub-address", any: []string{"~Mailbox does not exist"}})
	if len(sub) == 0 {
		return nil
	}
	return &result.Diagnosis{
		Title:           "the source does not know addresses with a detail after +",
		Means:           "Users have given such addresses away, and the new server accepts mail for them. The source refuses it: it bounces.",
		Results:         keys(sub),
		DiscriminatedBy: []string{observed(sub, "the address with + was refused: "+listed(factValues(sub, "reply"))), "without it the same recipient was accepted"},
		Alternatives:    []string{"DX-08, a rule about the sender: the address without + would have been refused as well"},
		Remedy:          keyRemedy("Let the source pass over what follows +, as it does by default.", o.keyChange("session.rcpt.sub-addressing", "true", "as it is by default")),
	}
}

func causeMessageSize(o *observations) *result.Diagnosis {
	size := o.find(query{ids: "relay.size", any: []string{"reply=5", "missing=250 SIZE"}})
	if len(size) == 0 {
		return nil
	}
	return &result.Diagnosis{
		Title:           "the source takes only small messages",
		Means:           "The new server accepts messages that the source refuses afterwards: they bounce.",
		Results:         keys(size),
		DiscriminatedBy: []string{observed(size, "a large message was refused: "+listed(factValues(size, "reply")))},
		Alternatives:    []string{"DX-08, a rule about the sender: small messages are accepted"},
		Remedy:          keyRemedy("Let the source take what the new server takes.", o.keyChange("session.data.limits.size", "104857600", "as large as the new server accepts")),
	}
}

func causeNoChunking(o *observations) *result.Diagnosis {
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
		Remedy:          keyRemedy("Offer CHUNKING.", o.keyChange("session.extensions.chunking", "true", "")),
	}
}

func causeSecondVerdict(o *observations) *result.Diagnosis {
	refused := o.find(query{ids: "relay.*", endpoint: "smtp", facts: []string{"vantage=relay"}, any: []string{"reply=4", "reply=5", "reply=none"}})
	refused = slices.DeleteFunc(refused, func(r *result.Result) bool {
		return globs("relay.not-open-* relay.unknown-recipient relay.size relay.external-recipient relay.many-recipients relay.sub-address", r.ID)
	})
	checked := o.find(query{any: []string{"~SPF validation", "~DMARC policy", "~DKIM signatures", "~reverse DNS"}})
	scored := concat(o.find(query{ids: "relay.no-second-verdict"}), o.find(query{any: []string{"~spam score"}}))
	junk := o.find(query{ids: "relay.*", any: []string{"recorded:mailbox=Junk"}})
	refused = concat(refused, checked)
	all := concat(refused, scored, junk)
	if len(all) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:        "the source judges mail of the new server a second time",
		Means:        "The new server has accepted and judged this mail already, by the address that it really came from. The source judges it again by the new server's address: it is refused, delayed or lands in the junk folder.",
		Results:      keys(all),
		Alternatives: []string{"DX-07, a rule about the EHLO name: a fully qualified name is refused too", "DX-21, a limit: the first message is refused or marked"},
	}
	var changes []result.Change
	if len(refused) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(refused, "the new server was refused: "+listed(factValues(refused, "reply"))))
		for _, name := range []string{"auth.dkim.verify", "auth.arc.verify", "auth.spf.verify.ehlo", "auth.spf.verify.mail-from", "auth.dmarc.verify", "auth.iprev.verify"} {
			c := o.keyChange(name, `"disable"`, "")
			if c.Found != "disable" {
				changes = append(changes, c)
			}
		}
	}
	if len(scored)+len(junk) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(concat(scored, junk), "the message was refused for a verdict of the source's own spam filter, or carries one"))
		var from []string
		for _, a := range o.addresses(Relay) {
			from = append(from, "remote_ip == '"+a+"'")
		}
		c := o.keyChange("session.data.spam-filter", `[{ if = "`+strings.Join(from, " || ")+`", then = false }, { else = true }]`, "the filter is on for every port by default, and the guide leaves it on")
		changes = append(changes, c)
	}
	d.Remedy = keyRemedy("Let the source take the new server's word: no sender checks, and no spam filter for its address.", changes...)
	return d
}

func causePublicURL(o *observations) *result.Diagnosis {
	wrong := o.find(query{ids: "discovery.jmap-* discovery.oauth discovery.openid discovery.foreign-host discovery.device-flow", any: []string{"missing=", "present="}})
	if len(wrong) == 0 {
		return nil
	}
	all := concat(wrong, o.find(query{ids: "discovery.no-internal-name lifecycle.settings", any: []string{"present=", "missing="}}))
	if o.has(query{ids: "discovery.autoconfig discovery.autodiscover", taken: true}) {
		all = wrong // the host name is wrong as well, and explains the rest
	}
	public := "mail.example.org"
	if o.t.Proxy != nil && o.t.Proxy.ServerName != "" {
		public = o.t.Proxy.ServerName
	}
	value, set := o.inForce("settings", "http.url")
	d := &result.Diagnosis{
		Title:           "the addresses that the source advertises are not on the public name",
		Means:           "JMAP and OAuth clients follow the addresses in the session and the discovery documents. They leave the proxy at the first step, or get nowhere.",
		Results:         keys(all),
		DiscriminatedBy: []string{observed(wrong, "the documents do not hold https://"+public+"/…")},
		Alternatives:    []string{"DX-24, server.hostname alone: JMAP sessions and OAuth documents would be right"},
		Remedy:          keyRemedy("Set the public address, in single quotes inside the value: it is an expression, and without them a reload rejects it and a start drops it. No port, no slash at its end.", o.keyChange("http.url", `"'https://`+public+`'"`, "")),
	}
	if set {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "http.url is "+value)
	} else {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "http.url is not set, and the default holds server.hostname and the port")
	}
	return d
}

func causeHostName(o *observations) *result.Diagnosis {
	wrong := o.find(query{ids: "discovery.autoconfig discovery.autodiscover discovery.smtp-names discovery.no-internal-name", any: []string{"missing=", "present="}})
	if len(wrong) == 0 {
		return nil
	}
	public := "mail.example.org"
	if o.t.Proxy != nil && o.t.Proxy.ServerName != "" {
		public = o.t.Proxy.ServerName
	}
	d := &result.Diagnosis{
		Title:           "autoconfig, autodiscover and the SMTP banner name the source and not the public host",
		Means:           "These do not follow http.url: they name server.hostname, with the listeners' own ports. New profiles bypass the proxy, and the guide has no step for it.",
		Results:         keys(wrong),
		DiscriminatedBy: []string{observed(wrong, "the documents or the banner hold another host than "+public)},
		Alternatives:    []string{"DX-13, http.url: then JMAP sessions are wrong too, and autoconfig alone would be right"},
		Remedy:          keyRemedy("Give the source the public name as its host name (its certificate and its own address may stay).", o.keyChange("server.hostname", `"`+public+`"`, "")),
	}
	if v, ok := o.inForce("settings", "server.hostname"); ok {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "server.hostname is "+v)
	}
	return d
}

func causeMTASTS(o *observations) *result.Diagnosis {
	wrong := o.find(query{ids: "discovery.mta-sts"})
	if len(wrong) == 0 {
		return nil
	}
	public := "mail.example.org"
	if o.t.Proxy != nil && o.t.Proxy.ServerName != "" {
		public = o.t.Proxy.ServerName
	}
	return &result.Diagnosis{
		Title:           "the MTA-STS policy of the source names the source",
		Means:           "Without a list of its own the policy lists the names and addresses in the source's certificates. Servers elsewhere that read it would insist on delivering there.",
		Results:         keys(wrong),
		DiscriminatedBy: []string{observed(wrong, "mta-sts.txt lists the source as mail exchanger")},
		Alternatives:    []string{},
		Remedy:          keyRemedy("List the public mail exchanger, or switch the policy off.", o.keyChange("session.mta-sts.mx", `["`+public+`"]`, "")),
	}
}

func causeReloadRejected(o *observations) *result.Diagnosis {
	rejected := o.find(query{facts: []string{"act=reload", "rejected="}})
	if len(rejected) == 0 {
		return nil
	}
	names := factValues(rejected, "rejected")
	return &result.Diagnosis{
		Title:           "the source rejects every reload, for " + listed(names),
		Means:           "One setting that cannot be read keeps all others from coming into force, and the answer's status says that all is well. Whatever is changed from now on, the guide's settings and a ban that is lifted included, waits for a restart.",
		Results:         keys(rejected),
		DiscriminatedBy: []string{observed(rejected, "a reload named errors in "+listed(names))},
		Alternatives:    []string{"DX-15, stored and not restarted: the reload would name no error"},
		Remedy:          result.Remedy{Text: "Mend or remove these settings, and read the errors in the answer of GET /api/reload.", Apply: []string{reloadStalwart}},
	}
}
