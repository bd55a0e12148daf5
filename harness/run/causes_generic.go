package run

import (
	"fmt"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/result"
)

// genericCauses are what can be wrong with a source of which nothing is known
// but its declaration: most of all the declaration. Remedies are in plain
// words, since nobody knows how its configuration is spelled.
func genericCauses() []cause {
	return []cause{
		{"MP-BUSY", generic, causeBusy},
		{"DX-27", generic, causeForgedHeader},
		{"DX-06", generic, causePort25Silent},
		{"MP-DECLARED-PROXY", generic, causeDeclaredPROXY},
		{"MP-DECLARED-NONE", generic, causeDeclaredNone},
		{"MP-DECLARED-XCLIENT", generic, causeDeclaredXCLIENT},
		{"MP-HEADER-REFUSED", generic, causeHeaderRefused},
		{"DX-14", generic, causeNotBelieved},
		{"MP-SASL-PLAIN", generic, plainly(causeNoPlain, "", "Let the source offer SASL PLAIN inside TLS on these services, with an initial response.")},
		{"MP-OPEN-RELAY", generic, causeRelaysForOthers},
		{"DX-28", generic, causeRelaysForProxy},
		{"DX-07", generic, plainly(causeHelo, "", "Let the source judge nobody by the name given in EHLO: not the new server on port 25, and no mail program at submission.")},
		{"MP-RECIPIENTS", generic, plainly(causeRecipients, "", "Let the source take as many recipients of one message as the new server sends at a time.")},
		{"DX-21", generic, plainly(causeThrottled, "", "Lift the limits on connections, messages and recipients for the new server's address.")},
		{"DX-08", generic, plainly(causeRelayRefused, "", "Accept mail from the new server's addresses before any rule, list or greylisting is asked.")},
		{"MP-NOT-DELIVERED", generic, plainly(causeNotDelivered, "The source takes the message and does not deliver it. It stays in a queue, or comes back as a bounce after days.", "Look at the source's queue and log for these messages, and mend the delivery to the mailboxes.")},
		{"MP-BACKSCATTER", generic, plainly(causeBackscatter, "", "Let the source refuse recipients that do not exist when they are named, and not bounce afterwards.")},
		{"MP-SIZE", generic, plainly(causeSize, "", "Let the source take messages as large as the new server does.")},
	}
}

// plainly is a cause that was written for Postfix and Dovecot, with a remedy in
// plain words; an empty means keeps what the cause says.
func plainly(look func(*observations) *result.Diagnosis, means, text string) func(*observations) *result.Diagnosis {
	return func(o *observations) *result.Diagnosis {
		d := look(o)
		if d == nil {
			return nil
		}
		if means != "" {
			d.Means = means
		}
		d.Remedy = remedy(text)
		return d
	}
}

// relayed says that a recipient of another domain was taken, or would have been
// but for a lab's rule that nothing leaves it.
func relayed() []string { return []string{"reply=25", "present=550 "} }

func causeRelaysForOthers(o *observations) *result.Diagnosis {
	open := o.find(query{ids: "relay.not-open-*", any: relayed()})
	if len(open) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "the source is an open relay",
		Means:           "Anybody can send mail to anywhere through this server. It will be abused within hours, and block lists will take the whole address down.",
		Results:         keys(open, o.find(query{ids: "trust.proxy-is-no-relay", any: relayed()})),
		DiscriminatedBy: []string{observed(open, "a recipient of another domain was accepted without a login")},
		Alternatives:    []string{"DX-28, the proxy's address alone: others are accepted too"},
		Remedy:          remedy("Let the source refuse what is neither for its own domains nor from somebody who signed in or may relay."),
	}
	if vs := factValues(open, "vantage"); len(vs) == 1 && vs[0] == Neighbour {
		d.Title = "the proxy's whole network may relay"
	}
	return d
}

func causeRelaysForProxy(o *observations) *result.Diagnosis {
	open := o.find(query{ids: "trust.proxy-is-no-relay", any: relayed()})
	if len(open) == 0 {
		return nil
	}
	return &result.Diagnosis{
		Title:           "the proxy's address may relay",
		Means:           "The source lets the proxy's address relay. Every connection that comes through the proxy sends mail to anywhere, for anybody.",
		Results:         keys(open),
		DiscriminatedBy: []string{observed(open, "the proxy's address could name a recipient of another domain without a login"), "others are refused"},
		Alternatives:    []string{"MP-OPEN-RELAY: others would be accepted too"},
		Remedy:          remedy("Take the proxy's addresses, and every network that holds them, out of what may relay without a sign-in."),
	}
}

// announcedBy lists the endpoints on which the source is declared to be told of
// clients in one of the ways. Port 25 is not among them.
func (o *observations) announcedBy(ways ...Announcement) string {
	var es []string
	for _, e := range o.src.Endpoints {
		if e.Name != "smtp" && slices.Contains(ways, o.src.AnnouncedOn(e.Name)) {
			es = append(es, e.Name)
		}
	}
	if len(es) == 0 {
		return "-" // no endpoint has this name
	}
	return strings.Join(es, " ")
}

// at narrows a list of endpoints down to those of results.
func at(rs ...[]*result.Result) string { return strings.Join(endpointsOf(rs...), " ") }

func causeForgedHeader(o *observations) *result.Diagnosis {
	believed := []string{"recorded:address=forged", "present=+OK [XCLIENT", `present="XCLIENT`, "present=250 XCLIENT", "reply=220", "reply=OK \"Updated"}
	neighbour := o.find(query{ids: "trust.*-neighbour trust.*-new-server", any: believed})
	stranger := o.find(query{ids: "trust.*-stranger trust.*-client", any: believed})
	// Where a header is waited for that was not declared, that is told instead.
	undeclared := func(r *result.Result) bool {
		e := r.Facet.Endpoint
		return o.src.AnnouncedOn(e) != ByPROXY && o.has(query{ids: "lifecycle.greeting-*", endpoint: e, facts: []string{"at=greeting"}})
	}
	neighbour, stranger = slices.DeleteFunc(neighbour, undeclared), slices.DeleteFunc(stranger, undeclared)
	if len(neighbour)+len(stranger) == 0 {
		return nil
	}
	all := concat(stranger, neighbour)
	es := listed(endpointsOf(all))
	who := "the proxy's neighbour"
	d := &result.Diagnosis{
		Means:   "Whoever can reach these ports can give itself any address: bans and limits miss, and other people are framed.",
		Results: keys(all),
		Remedy: remedy(fmt.Sprintf("Let the source believe announcements on %s from the proxy's addresses alone (%s). A server that has no list of them (smtpd with proxy-v2, Postfix with smtpd_upstream_proxy_protocol) needs a packet filter that lets only the proxy reach these ports.",
			es, listed(o.addresses(Proxy)))),
		Alternatives: []string{"MP-NAT, address translation: the source would record another address, and not the forged one"},
	}
	if len(stranger) > 0 {
		who = "everybody"
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(stranger, "an address that a stranger announced was taken"))
	}
	if len(neighbour) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(neighbour, "an address that the proxy's neighbour announced was taken"))
	}
	d.Title = fmt.Sprintf("the source believes %s on %s, and not the proxy alone", who, es)
	return d
}

func causePort25Silent(o *observations) *result.Diagnosis {
	silent := o.find(query{ids: "relay.greets", endpoint: "smtp", facts: []string{"at=greeting"}, any: []string{"reply=none", "reply=closed", "~local error"}})
	if len(silent) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:           "port 25 does not greet the new server",
		Means:           "The new server connects and hears nothing: the mail that it relays is stuck. Most likely port 25 waits for a PROXY header, which nobody sends there.",
		Results:         keys(silent, o.find(query{endpoint: "smtp", any: []string{"at=greeting", "present=", "tls="}})),
		DiscriminatedBy: []string{observed(silent, "the connection is accepted, and no greeting comes")},
		Alternatives:    []string{"a slow name service on the source: the greeting would come later", "DX-16, a dead service: the connection is accepted"},
		Remedy:          remedy("Take the PROXY protocol away from port 25."),
	}
	if taken := o.find(query{ids: "lifecycle.takes-no-header-submission", endpoint: "smtp", taken: true}); len(taken) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, "with a PROXY header it greets and serves")
	}
	return d
}

func causeDeclaredPROXY(o *observations) *result.Diagnosis {
	without := o.find(query{ids: "lifecycle.awaits-header-*", endpoint: o.announcedBy(ByPROXY)})
	if len(without) == 0 {
		return nil
	}
	garbage := o.find(query{ids: "lifecycle.greeting-*", endpoint: at(without)})
	if len(garbage) == 0 {
		return nil // it guesses, and serves both
	}
	es := listed(endpointsOf(garbage))
	return &result.Diagnosis{
		Title:   "the source takes no PROXY header on " + es + ", and is declared to",
		Means:   "The header that the proxy begins with is garbage to the source: no session through the proxy gets anywhere on these ports.",
		Results: keys(garbage, without, o.find(query{endpoint: at(garbage)})),
		DiscriminatedBy: []string{observed(without, "without a header the proxy is greeted at once"),
			observed(garbage, "with one it gets no further: "+listed(o.seen(garbage)))},
		Alternatives: []string{"MP-HEADER-REFUSED, a list that leaves the proxy out: it would not greet without a header either"},
		Remedy:       remedy(fmt.Sprintf("Let %s of the source take a PROXY header from the proxy; or, if it knows none, declare announces = \"none\" (or \"xclient\") for it and have the proxy forward in the same way.", es)),
	}
}

// seen lists what results found, in few words.
func (o *observations) seen(rs []*result.Result) []string {
	vs := append(factValues(rs, "reply"), factValues(rs, "tls")...)
	for i, v := range vs {
		vs[i] = map[string]string{"none": "silence", "closed": "a closed connection", "alert": "a TLS alert", "not-tls": "no TLS", "timeout": "silence"}[v]
		if vs[i] == "" {
			vs[i] = fmt.Sprintf("%q", cut(v, 60))
		}
	}
	slices.Sort(vs)
	return slices.Compact(vs)
}

func causeDeclaredNone(o *observations) *result.Diagnosis {
	early := o.find(query{ids: "lifecycle.greeting-*", endpoint: o.announcedBy(ByNothing, ByXCLIENT), facts: []string{"at=greeting"},
		any: []string{"reply=none", "reply=closed", "~local error", "tls=closed", "tls=timeout", "tls=failed"}})
	served := o.find(query{ids: "lifecycle.takes-no-header-*", endpoint: at(early), any: []string{"present="}})
	if len(early) == 0 || len(served) == 0 && !o.hungUpPlain(early) {
		return nil
	}
	es := listed(endpointsOf(early))
	d := &result.Diagnosis{
		Title:           "the source waits for a PROXY header on " + es + ", and is declared to take none",
		Means:           "The source takes the first octets of every connection for a PROXY header. The proxy sends none there, and nobody is served.",
		Results:         keys(early, served, o.find(query{endpoint: at(early)})),
		DiscriminatedBy: []string{observed(early, "the connection is accepted, and neither a greeting nor TLS comes: "+listed(o.seen(early)))},
		Alternatives:    []string{"DX-17, a TLS problem: the source would greet, or answer the handshake with an alert", "DX-16, a dead service: the connection is accepted"},
		Remedy:          remedy(fmt.Sprintf("Declare announces = \"proxy\" for %s and have the proxy forward in the same way; or take the PROXY protocol away from these services of the source.", es)),
	}
	if len(served) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(served, "with a PROXY header the proxy is served"))
	}
	return d
}

// hungUpPlain says whether others of the source's endpoints greet.
func (o *observations) hungUpPlain(early []*result.Result) bool {
	return slices.ContainsFunc(o.find(query{ids: "lifecycle.greeting-*", verdict: result.Pass}), func(r *result.Result) bool {
		return !slices.Contains(endpointsOf(early), r.Facet.Endpoint)
	})
}

// causeDeclaredXCLIENT is a source that is declared to be told of clients inside
// the session, and is not. Over IMAP every server offers ID, and one that takes
// no announcement looks there like one that does not trust the proxy: unless it
// was seen to believe the proxy somewhere, both are named.
func causeDeclaredXCLIENT(o *observations) *result.Diagnosis {
	declared := o.announcedBy(ByXCLIENT)
	offered := o.find(query{ids: "xclient.*-offered imap-id.offered", endpoint: declared})
	ids := "client-address.* proxy.*"
	var ignored []*result.Result
	believes := slices.ContainsFunc(o.find(query{ids: ids, endpoint: declared, verdict: result.Pass, taken: true}), func(r *result.Result) bool {
		return len(r.Witness) > 0 && !strings.HasPrefix(r.ID, "client-address.proxy-as-seen") // which announces nobody
	})
	if !believes {
		ignored = slices.DeleteFunc(o.find(query{ids: ids, endpoint: declared, facts: []string{"recorded:address=proxy"}}), func(r *result.Result) bool {
			return r.Facet.Protocol != "imap"
		})
	}
	if len(offered)+len(ignored) == 0 {
		return nil
	}
	es := endpointsOf(offered, ignored)
	follow := o.find(query{endpoint: strings.Join(es, " "), any: []string{"at=XCLIENT", "at=ID", "recorded:address=proxy", "missing=", "reply="}})
	d := &result.Diagnosis{
		Title:        "the source takes no announcement from the proxy on " + listed(es) + ", and is declared to take XCLIENT (and ID over IMAP)",
		Means:        "The proxy announces only what is offered. Every user of these services appears under the proxy's address, or is turned away where the announcement is refused.",
		Results:      keys(offered, ignored, follow),
		Alternatives: []string{"MP-DECLARED-NONE, a source that waits for a PROXY header: it would not greet"},
		Remedy: remedy(fmt.Sprintf("Let the source trust the proxy's addresses (%s) on these services, if it knows XCLIENT and ID; if it does not, declare announces = \"none\" (or \"proxy\") for them and have the proxy forward in the same way.",
			listed(o.addresses(Proxy)))),
	}
	if len(offered) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(offered, "the proxy, from its own address, is not offered it"))
	}
	if len(ignored) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(ignored, "an ID that announces a client is answered, and ignored"), "no announcement was believed anywhere")
		d.Alternatives = append(d.Alternatives, "DX-14, a list of trusted addresses that leaves some out: elsewhere the source would believe the proxy")
	}
	return d
}

func causeHeaderRefused(o *observations) *result.Diagnosis {
	refused := o.find(query{ids: "lifecycle.greeting-*", endpoint: o.announcedBy(ByPROXY), facts: []string{"at=greeting"}, any: []string{"reply=closed", "reply=none", "tls=closed", "tls=timeout"}})
	if len(refused) == 0 {
		return nil
	}
	return &result.Diagnosis{
		Title:   "the source does not take the proxy's header on " + listed(endpointsOf(refused)),
		Means:   "The source closes the connection when the proxy announces a client: nobody is served through the proxy.",
		Results: keys(refused, o.find(query{endpoint: at(refused)})),
		DiscriminatedBy: []string{observed(refused, "after the header the connection ends, or stays silent"),
			"without a header the proxy is not greeted either"},
		Alternatives: []string{"MP-DECLARED-PROXY, a source that knows no header: it would greet without one",
			"on ports with TLS from the start, a source that loses what arrives together with the header (OpenSMTPD 7.6 does): its ports with STARTTLS would serve"},
		Remedy: remedy("Name the proxy's addresses (" + listed(o.addresses(Proxy)) + ") among those that the source takes a PROXY header of version 2 from."),
	}
}

func causeNotBelieved(o *observations) *result.Diagnosis {
	recorded := o.find(query{ids: "client-address.* proxy.*", endpoint: o.announcedBy(ByXCLIENT, ByPROXY), facts: []string{"recorded:address=proxy"}})
	refused := o.find(query{endpoint: o.announcedBy(ByXCLIENT), facts: []string{"at=XCLIENT", "vantage=proxy"}})
	if len(recorded)+len(refused) == 0 {
		return nil
	}
	d := &result.Diagnosis{
		Title:        "the source does not believe the proxy on " + listed(endpointsOf(recorded, refused)),
		Means:        "Whatever the proxy announces on these ports is ignored or refused. Every user appears under the proxy's address: limits and bans hit all of them at once.",
		Results:      keys(recorded, refused),
		Alternatives: []string{"MP-DECLARED-XCLIENT, a source that takes no announcement: it would offer none"},
		Remedy:       remedy("Name the proxy's addresses (" + listed(o.addresses(Proxy)) + ") among those whose announcements the source believes on these services."),
	}
	if len(recorded) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(recorded, "announced clients were recorded under the proxy's address"))
	}
	if len(refused) > 0 {
		d.DiscriminatedBy = append(d.DiscriminatedBy, observed(refused, "the announcement was refused: "+listed(factValues(refused, "reply"))))
	}
	return d
}
