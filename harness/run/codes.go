package run

import (
	"fmt"
	"strings"
)

// A Code is what a diagnosis code stands for, apart from any one run.
type Code struct {
	Code    string `json:"code"`
	Symptom string `json:"symptom"` // what an operator sees
	Cause   string `json:"cause"`
	ToldBy  string `json:"told_by"` // what tells it from its alternatives
}

// Codes lists every code that this version can come to.
func Codes() []Code {
	return []Code{
		{"DX-01", "every session through the proxy fails at a Stalwart; TLS errors there", "the listener's networks do not hold the proxy's address: it takes the PROXY header for garbage", "the proxy is served without a header, and the stored networks do not hold it"},
		{"DX-02", "every session through the proxy fails at one port; no greeting, no TLS", "a listener of Dovecot or Postfix waits for a PROXY header (haproxy = yes, smtpd_upstream_proxy_protocol)", "the connection is closed without an answer, while other ports with the same certificate answer"},
		{"DX-04", "one address is dropped without a word", "the source has banned it (server.blocked-ip), for failed logins, unknown recipients or garbage", "the address stands in the list of blocked addresses"},
		{"DX-06", "the new server connects to port 25 and hears nothing, or 421 after some seconds", "port 25 waits for a PROXY header", "no greeting comes, whoever connects"},
		{"DX-07", "the new server or mail programs are refused for their EHLO name", "smtpd_helo_restrictions judge the name", "the same recipient is accepted under a fully qualified name"},
		{"DX-08", "relayed mail is refused or deferred", "a rule, a block list or greylisting judges the new server a second time", "the first message is refused already, whatever the EHLO name"},
		{"DX-13", "JMAP and OAuth clients leave the proxy", "http.url is not set, or is no quoted expression of the public address", "JMAP sessions do not hold the public name"},
		{"DX-14", "every user appears under the proxy's address", "the proxy is in no trust list (login_trusted_networks, smtpd_authorized_xclient_hosts), or not in the one of this service or address family", "the source sees the proxy's own address, and ignores or refuses what it announces"},
		{"DX-15", "a setting of a Stalwart was changed, and nothing changes", "listeners read their settings at a start alone, and the server was only reloaded", "the proxy is served without a header, and the stored networks hold it"},
		{"DX-16", "temporary failures through the proxy", "a port that the proxy uses does not answer", "connections are refused there and accepted elsewhere"},
		{"DX-17", "no TLS between proxy and source", "STARTTLS is not offered, or the handshake fails", "the source answers in clear text, or ends the handshake with an alert"},
		{"DX-19", "only IPv6 users cannot submit", "inet_protocols leaves IPv6 out: Postfix refuses such addresses in XCLIENT", "an announced IPv4 address is taken, an IPv6 address is \"Bad ADDR syntax\""},
		{"DX-21", "relayed mail slows down or stops after some time", "the source limits how much one address may send", "the first messages are accepted"},
		{"DX-23", "logins hang for ten seconds and drop", "the source decides logins too late", "the announcement is believed, and the answer comes late all the same"},
		{"DX-24", "new profiles of mail programs name the internal host", "autoconfig, autodiscover and the SMTP banner follow server.hostname, and not http.url", "JMAP sessions are right, autoconfig is not"},
		{"DX-27", "forged addresses are believed", "the trust names a network, or everybody, and not the proxy's address", "the proxy's neighbour or a stranger is believed"},
		{"DX-28", "mail to other domains is accepted from the proxy's address", "the proxy stands in mynetworks", "strangers are refused"},
		{"DX-29", "421 too many connections at busy times, with Postfix 3.8 or later", "Postfix counts the proxy's connections, whoever was announced", "the announcement is believed, and the fifty-first connection is refused"},
		{"MP-DECLARED-PROXY", "nobody is served through the proxy at a source of kind generic", "it is declared to take a PROXY header, and takes none", "the proxy is greeted without a header, and gets no further with one"},
		{"MP-DECLARED-NONE", "a port of a source of kind generic does not greet", "it waits for a PROXY header, and is declared to take none", "no greeting comes; with a header the proxy is served"},
		{"MP-DECLARED-XCLIENT", "every user of a source of kind generic appears under the proxy's address", "it is declared to take XCLIENT and ID, and offers neither to the proxy", "what the proxy is offered"},
		{"MP-HEADER-REFUSED", "nobody is served through the proxy at a source of kind generic", "the source takes a PROXY header, and not from the proxy's address", "the connection ends after the header, and the proxy is not greeted without one either"},
		{"MP-FORWARDED", "HTTP clients are recorded under addresses of their own choice", "http.use-x-forwarded believes forwarding headers from anybody", "the address that a request named is recorded"},
		{"MP-MTA-STS", "other servers learn the internal host as a mail exchanger", "session.mta-sts.mx is not set, and the policy lists the certificates' names", "mta-sts.txt names the source"},
		{"MP-RELOAD", "settings of a Stalwart are changed, reloaded, and nothing changes", "one setting that cannot be read makes the reload reject all of them, with status 200", "the answer of the reload names errors"},
		{"MP-NAT", "no trust setting helps", "something between proxy and source translates addresses", "the source records another address than the proxy's for a connection that announced nobody"},
		{"MP-ANY-PASSWORD", "everybody can sign in as everybody through the proxy", "a passdb does not look at the password for the proxy's network", "a wrong password is accepted"},
		{"MP-UNAVAILABLE", "nobody can send, and the new server cannot relay", "a milter that smtpd_milters names does not answer (or something else that Postfix cannot do without)", "everybody gets \"try again later\", whoever they are"},
		{"MP-LARGE-PACKETS", "users sign in through the proxy, and their mail programs hang", "packets of full size do not pass between the proxy and the source, and ICMP does not say so", "a signed-in session that says much at once gets no answer, and one that says little does"},
		{"MP-BUSY", "users or the new server are turned away with \"too many connections\"", "the source is full, or counts the proxy's or the new server's connections as one user's", "the greeting itself says so, to a single connection"},
		{"MP-LOGINS-FULL", "IMAP, POP3 or ManageSieve is cut off at busy times, \"Connection queue full\"", "client_limit and process_limit of a login service are low", "Dovecot itself says that its queue is full"},
		{"MP-ERRORS", "one mistake ends a session: mail to several people fails for all of them", "smtpd_hard_error_limit is low, or Postfix is under stress", "the session ends with \"too many errors\""},
		{"MP-SIGN-IN-RATE", "users are asked again for a password that is right", "smtpd_client_auth_rate_limit counts all sign-ins of an address", "a right password is answered with \"too many AUTH commands\""},
		{"MP-SASL-PLAIN", "nobody can sign in through the proxy", "SASL PLAIN is not among the mechanisms", "the mechanism is refused, and not the password"},
		{"MP-TRUST-NEW-SERVER", "the new server could forge addresses", "the new server stands in the trust lists beside the proxy", "the neighbour and strangers are not believed"},
		{"MP-XCLIENT-HIDDEN", "every submitting user appears under the proxy's address", "smtpd_discard_ehlo_keywords hides XCLIENT", "the command is accepted all the same"},
		{"MP-ID-HIDDEN", "every IMAP user appears under the proxy's address", "the greeting does not list ID (imap_capability)", "an ID is honoured all the same"},
		{"MP-XCLIENT-BY-NAME", "a client can announce itself again after the proxy did", "smtpd_authorized_xclient_hosts names the proxy by host name", "a second announcement is taken, and strangers are refused"},
		{"MP-XCLIENT-25", "XCLIENT is offered on port 25", "smtpd_authorized_xclient_hosts is set for all services", "EHLO on port 25 lists it"},
		{"MP-RECIPIENTS", "mail to several people arrives in parts, or bounces for some", "smtpd_recipient_limit, or session.rcpt.max-recipients, is low", "a further recipient of the same message is refused for the number"},
		{"MP-SUB-ADDRESS", "mail to addresses with + bounces", "session.rcpt.sub-addressing is off", "the same address without + is accepted"},
		{"MP-NOT-DELIVERED", "mail is accepted and never arrives", "virtual_transport does not reach Dovecot", "Postfix accepted the message, and no mailbox has it"},
		{"MP-OPEN-RELAY", "strangers can send mail to anywhere", "mynetworks or smtpd_relay_restrictions let everybody relay", "a stranger's recipient elsewhere is accepted"},
		{"MP-BACKSCATTER", "bounces to innocent people", "unknown recipients are accepted first and bounced later", "a recipient that does not exist is accepted"},
		{"MP-SIZE", "large messages bounce", "message_size_limit is below the new server's", "a large SIZE is refused"},
		{"MP-8BIT", "signatures of relayed mail break", "8BITMIME is not offered", "EHLO does not list it"},
		{"MP-CHUNKING", "none", "CHUNKING is not offered", "EHLO does not list it"},
		{"MP-CLEARTEXT", "passwords can be sent without TLS", "disable_plaintext_auth or auth_allow_cleartext allows it, or imap.auth.allow-plain-text or session.auth.mechanisms of a Stalwart", "LOGINDISABLED is missing for everybody, and announced addresses are not believed"},
		{"MP-STORE", "sign-ins and mail fail, now and then or always", "a Stalwart's disk is full, or its database is away", "the source itself says that it cannot, to users and to the new server"},
		{"MP-ADMINISTRATOR", "the migration tool finds nothing to move", "http.allowed-endpoint hides JMAP or WebDAV", "owners are refused there as well"},
	}
}

// ExplainCode says what a diagnosis code stands for.
func ExplainCode(code string) (string, bool) {
	for _, c := range Codes() {
		if c.Code == code {
			var b strings.Builder
			fmt.Fprintf(&b, "%s\n  you see    %s\n  because    %s\n  told by    %s", c.Code, c.Symptom, c.Cause, c.ToldBy)
			return b.String(), true
		}
	}
	return "", false
}
