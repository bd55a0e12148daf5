package postfix

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
)

// What a reply says was refused.
const (
	ofClient    = "Client host"
	ofReverse   = "Unverified Client host"
	ofHELO      = "Helo command"
	ofSender    = "Sender address"
	ofRecipient = "Recipient address"
	ofData      = "Data command"
	ofEnd       = "End-of-data"
	ofLogin     = "SASL login name"
)

// checks are what the restriction lists of one session go by.
type checks struct {
	lastRecipient string  // the first good one of the transaction
	checkFrom     *string // who is looked at
	checkTo       *string
	refusal       string // the reply to the last refusal

	ifPermit, ifReject                  deferral
	afterClient, afterHELO, afterSender bool
	warning                             int // the depth at which warn_if_reject stands, or 0
	depth                               int
	listedRecipient, listedSender       bool
	fatalList                           bool
}

// deferral is a temporary refusal that is kept back.
type deferral struct {
	set       bool
	code      int
	dsn, text string
}

// verdict is what a restriction comes to.
type verdict int

const (
	dunno verdict = iota
	permit
	reject
)

// maxDepth bounds how deep restriction classes may name each other.
const maxDepth = 100

// begin prepares for one list.
func (in *session) begin() {
	in.depth, in.warning = 0, 0
	in.ifReject.set = false
}

// refuse refuses, unless it is only to warn. soft says that the refusal is one
// of policy: errors of the configuration refuse in any case.
func (in *session) refuse(soft bool, code int, dsn, text string) verdict {
	warn := soft && in.warning > 0
	line := strconv.Itoa(code) + " " + string('0'+byte(code/100)) + dsn[1:] + " " + text
	line = printable(clip(line, 510), ' ')
	if !warn && in.ifReject.set && line[0] == '5' {
		d := in.ifReject
		in.warning, in.ifReject.set = 0, false
		return in.refuse(true, d.code, d.dsn, d.text)
	}
	if in.set.softBounce && line[0] == '5' {
		line = "4" + line[1:4] + "4" + line[5:]
	}
	if warn {
		in.whatsup("reject_warning", line, in.checkFrom, in.checkTo)
		return dunno
	}
	in.whatsup("reject", line, in.checkFrom, in.checkTo)
	in.refusal = line
	return reject
}

// serverError refuses because the configuration makes no sense.
func (in *session) serverError(why ...string) verdict {
	for _, w := range why {
		in.log("warning: ", w)
	}
	return in.refuse(false, 451, "4.3.5", "Server configuration error")
}

// lookupError refuses because a table cannot be asked.
func (in *session) lookupError(t *table, key, name string) verdict {
	in.tableWarning(t, key)
	return in.refuse(false, 451, "4.3.0", "<"+name+">: Temporary lookup failure")
}

func (in *session) tableWarning(t *table, key string) {
	in.log("warning: ", t.spec, " is unavailable. ", t.broken)
	in.log("warning: ", t.spec, " lookup error for \"", key, "\"")
}

// checkClient applies smtpd_client_restrictions.
func (in *session) checkClient() string {
	in.ifPermit.set = false
	in.begin()
	v := in.apply(in.set.client, in.client(), ofClient, "check_client_access")
	in.afterClient = in.ifPermit.set
	return in.refused(v)
}

func (in *session) refused(v verdict) string {
	if v == reject {
		return in.refusal
	}
	return ""
}

// checkHELO applies smtpd_helo_restrictions to a name.
func (in *session) checkHELO(name string) string {
	was, had := in.helo, in.hasHelo
	in.helo, in.hasHelo = name, true
	defer func() { in.helo, in.hasHelo = was, had }()
	in.ifPermit.set = in.afterClient
	in.begin()
	v := in.apply(in.set.helo, name, ofHELO, "check_helo_access")
	in.afterHELO = in.ifPermit.set
	return in.refused(v)
}

// checkMail applies smtpd_sender_restrictions to a sender.
func (in *session) checkMail(sender string) string {
	in.checkFrom = &sender
	defer func() { in.checkFrom = nil }()
	return in.refused(in.senderVerdict(sender))
}

func (in *session) senderVerdict(sender string) verdict {
	in.ifPermit.set = in.afterClient || in.afterHELO
	in.listedSender = false
	in.begin()
	v := in.apply(in.set.sender, sender, ofSender, "check_sender_access")
	in.afterSender = in.ifPermit.set
	if in.set.unlistedSender && v != reject && !in.listedSender && !in.discarded && sender != "" {
		v = in.unlisted(sender, ofSender)
	}
	return v
}

// checkRcpt applies everything that decides about a recipient.
func (in *session) checkRcpt(rcpt string) string {
	if strings.EqualFold(rcpt, "postmaster") {
		return ""
	}
	in.checkTo = &rcpt
	if in.inMail {
		in.checkFrom = &in.sender
	}
	defer func() { in.checkTo, in.checkFrom = nil, nil }()
	set := in.set
	in.listedRecipient = false
	if set.delayReject {
		if r := in.checkClient(); r != "" {
			return r
		}
		if in.hasHelo {
			if r := in.checkHELO(in.helo); r != "" {
				return r
			}
		}
		if in.inMail {
			if v := in.senderVerdict(in.sender); v == reject {
				return in.refusal
			}
		}
	}
	if r := in.checkBugs(rcpt); r != "" {
		return r
	}
	in.ifPermit.set = in.afterSender
	in.begin()
	lists := [2][]string{set.recipient, set.relay}
	if set.relayFirst {
		lists = [2][]string{set.relay, set.recipient}
	}
	v := dunno
	for _, l := range lists {
		if v = in.apply(l, rcpt, ofRecipient, "check_recipient_access"); v == reject {
			break
		}
	}
	if v != reject && in.ifPermit.set {
		v = in.refuse(true, in.ifPermit.code, in.ifPermit.dsn, in.ifPermit.text)
	}
	if v != reject && set.unlistedRecipient && !in.listedRecipient && !in.discarded {
		v = in.unlisted(rcpt, ofRecipient)
	}
	if v == reject && in.srv.bugs.Has(bug.Relay503) && in.foreign(rcpt) {
		return "503 5.5.1 Error: need MAIL command"
	}
	return in.refused(v)
}

// foreign says whether an address is none of the source's own.
func (in *session) foreign(rcpt string) bool {
	r := in.set.resolve(rcpt, in.own)
	return r.class == classDefault || r.routed
}

// checkBugs refuses what only a broken server would.
func (in *session) checkBugs(rcpt string) string {
	bugs := in.srv.bugs
	if bugs.Has(bug.HELORuleAtRCPT) && internal(in.helo) {
		return unqualified(in.helo)
	}
	if bugs.Has(bug.RelayRefusesEveryone) && !in.signedIn() && !in.foreign(rcpt) {
		in.refuse(false, 554, "5.7.1", "<"+rcpt+">: Relay access denied")
		return in.refusal
	}
	if bugs.Has(bug.GreylistsEveryone) && in.srv.firstTime(in.addr+"\x00"+in.sender+"\x00"+rcpt) {
		in.refuse(false, 450, "4.2.0", "<"+rcpt+">: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/"+in.set.myhostname+".html")
		return in.refusal
	}
	return ""
}

// maxGreyed bounds what a source that greylists remembers.
const maxGreyed = 1 << 16

func (s *Server) firstTime(key string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.greyed[key] {
		return false
	}
	if len(s.greyed) >= maxGreyed {
		clear(s.greyed)
	}
	s.greyed[key] = true
	return true
}

// shed is how a source refuses messages that it has no room for.
const shed = "452 4.3.1 Insufficient system storage"

// messagesOf counts the messages of a host.
func (s *Server) messagesOf(host netip.Addr) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.messages[host]++
	return s.messages[host]
}

// checkData applies smtpd_data_restrictions.
func (in *session) checkData() string { return in.checkStage(in.set.data, "DATA", ofData) }

// checkEnd applies smtpd_end_of_data_restrictions.
func (in *session) checkEnd() string { return in.checkStage(in.set.eod, afterMessage, ofEnd) }

func (in *session) checkStage(list []string, name, class string) string {
	if len(list) == 0 {
		return ""
	}
	in.checkFrom = &in.sender
	if in.rcptCount == 1 {
		in.checkTo = &in.lastRecipient
	} else {
		keep := in.lastRecipient
		in.lastRecipient = ""
		defer func() { in.lastRecipient = keep }()
	}
	defer func() { in.checkTo, in.checkFrom = nil, nil }()
	in.ifPermit.set = false
	in.begin()
	v := in.apply(list, name, class, "")
	if v != reject && in.ifPermit.set {
		v = in.refuse(true, in.ifPermit.code, in.ifPermit.dsn, in.ifPermit.text)
	}
	return in.refused(v)
}

// apply goes through a list until something decides. shorthand is the
// restriction that a bare table stands for.
func (in *session) apply(list []string, name, class, shorthand string) verdict {
	if len(list) == 0 {
		return dunno
	}
	if in.depth >= maxDepth {
		return in.serverError("restriction lists cause unreasonable recursion")
	}
	in.depth++
	level := in.depth
	defer func() {
		in.depth = level - 1
		if in.warning >= in.depth {
			in.warning = 0
		}
	}()
	v := dunno
	for i := 0; i < len(list) && !in.discarded; i++ {
		word := list[i]
		w := strings.ToLower(word)
		if w == "warn_if_reject" {
			if in.warning == 0 {
				in.warning = level
			}
			continue
		}
		arg := ""
		if strings.Contains(word, ":") {
			if shorthand == "" {
				return in.serverError(fmt.Sprintf("specify one of (check_client_access, check_reverse_client_hostname_access, check_helo_access, check_sender_access, check_recipient_access, check_etrn_access) before %s restriction \"%s\"", class, word))
			}
			w, arg = shorthand, word
		} else if takesArgument(w) {
			if i+1 == len(list) || strings.HasSuffix(w, "_access") && !strings.Contains(list[i+1], ":") {
				last := ""
				if i+1 < len(list) {
					last = list[i+1]
				}
				return in.serverError(fmt.Sprintf("restriction %s: bad argument \"%s\": need maptype:mapname", w, last))
			}
			i++
			arg = list[i]
		}
		v = in.one(w, word, arg, name, class, shorthand)
		if in.warning >= level {
			in.warning = 0
		}
		if v != dunno || in.ifPermit.set && in.ifReject.set {
			return v
		}
	}
	return v
}

func takesArgument(w string) bool {
	switch w {
	case "check_policy_service", "reject_rbl_client", "reject_rbl", "permit_dnswl_client", "reject_rhsbl_client",
		"permit_rhswl_client", "reject_rhsbl_reverse_client", "reject_rhsbl_helo", "reject_rhsbl_sender",
		"reject_rhsbl_recipient", "sleep":
		return true
	}
	return strings.HasPrefix(w, "check_") && strings.HasSuffix(w, "_access")
}

// one applies one restriction.
func (in *session) one(w, word, arg, name, class, shorthand string) verdict {
	set, k := in.set, &in.set.codes
	switch w {
	case "permit":
		return permit
	case "defer":
		return in.refuse(true, k.deferral, "4.3.2", "<"+name+">: "+class+" rejected: Try again later")
	case "reject":
		return in.refuse(true, k.reject, "5.7.1", "<"+name+">: "+class+" rejected: Access denied")
	case "reject_unauth_pipelining":
		if in.pipelined {
			return in.refuse(true, 503, "5.5.0", "<"+name+">: "+class+" rejected: Improper use of SMTP command pipelining")
		}
	case "check_policy_service":
		return in.policy(arg, name, class, shorthand)
	case "defer_if_permit":
		return in.keep(&in.ifPermit, 450, "4.7.0", "<"+name+">: "+class+" rejected: defer_if_permit requested")
	case "defer_if_reject":
		return in.keep(&in.ifReject, 450, "4.7.0", "<"+name+">: "+class+" rejected: defer_if_reject requested")
	case "sleep":
		n, _ := strconv.Atoi(arg)
		in.c.Wait(time.Duration(min(n, 3600)) * time.Second)
	case "reject_plaintext_session":
		if !in.c.Secure() {
			return in.refuse(true, k.plaintext, "4.7.1", "Session encryption is required")
		}

	case "reject_unknown_client_hostname", "reject_unknown_client":
		if in.nameIs != nameOK {
			return in.refuse(true, in.unknownCode(in.nameIs), "4.7.25", "Client host rejected: cannot find your hostname, ["+in.addr+"]")
		}
	case "reject_unknown_reverse_client_hostname":
		if in.reverseIs != nameOK {
			return in.refuse(true, in.unknownCode(in.reverseIs), "4.7.1", "Client host rejected: cannot find your reverse hostname, ["+in.addr+"]")
		}
	case "permit_inet_interfaces":
		if in.srv.isOwn(in.c.Peer.Addr()) {
			return permit
		}
	case "permit_mynetworks":
		if in.srv.bugs.Has(bug.RelayEveryone) {
			return permit
		}
		ok, trouble := set.mynetworks.match(in.name, in.ip, in.addr)
		if len(trouble) > 0 {
			for _, t := range trouble {
				in.log("warning: ", t)
			}
			return in.refuse(false, 451, "4.3.0", "<"+name+">: Temporary lookup failure")
		}
		if ok {
			return permit
		}
	case "check_client_access":
		return in.hostAccess(arg, in.name, in.addr, in.client(), ofClient, shorthand)
	case "check_reverse_client_hostname_access":
		return in.hostAccess(arg, in.reverse, in.addr, in.reverse, ofReverse, shorthand)
	case "check_sasl_access":
		if in.saslUser != "" && set.sasl {
			v, _ := in.access(arg, in.saslUser, in.saslUser, ofLogin, shorthand, false)
			return v
		}
	case "reject_rbl_client", "reject_rbl", "permit_dnswl_client", "reject_rhsbl_client", "permit_rhswl_client",
		"reject_rhsbl_reverse_client", "reject_rhsbl_helo", "reject_rhsbl_sender", "reject_rhsbl_recipient", "reject_maps_rbl",
		"check_ccert_access", "permit_tls_clientcerts", "permit_tls_all_clientcerts", "permit_mx_backup",
		"reject_unverified_sender", "reject_unverified_recipient",
		"check_client_ns_access", "check_client_mx_access", "check_client_a_access",
		"check_reverse_client_hostname_ns_access", "check_reverse_client_hostname_mx_access", "check_reverse_client_hostname_a_access",
		"check_helo_ns_access", "check_helo_mx_access", "check_helo_a_access",
		"check_sender_ns_access", "check_sender_mx_access", "check_sender_a_access",
		"check_recipient_ns_access", "check_recipient_mx_access", "check_recipient_a_access":
		// Neither a name server nor a client's certificate has an answer here.

	case "check_helo_access":
		if in.hasHelo {
			v, _ := in.domainAccess(arg, in.helo, in.helo, ofHELO, shorthand)
			return v
		}
	case "reject_invalid_helo_hostname", "reject_invalid_hostname", "reject_non_fqdn_helo_hostname", "reject_non_fqdn_hostname",
		"reject_unknown_helo_hostname", "reject_unknown_hostname":
		return in.heloName(w)

	case "check_sender_access":
		if in.checkFrom == nil {
			break
		}
		if *in.checkFrom == "" {
			v, _ := in.access(arg, set.nullKey, "", ofSender, shorthand, false)
			return v
		}
		return in.mailAccess(arg, *in.checkFrom, ofSender, shorthand)
	case "reject_unknown_sender_domain", "reject_unknown_address":
		if s := in.checkFrom; s != nil && *s != "" {
			return in.unknownDomain(*s, ofSender)
		}
	case "reject_non_fqdn_sender":
		if s := in.checkFrom; s != nil && *s != "" {
			return in.nonFQDN(*s, ofSender)
		}
	case "reject_unlisted_sender":
		if s := in.checkFrom; s != nil && *s != "" {
			return in.unlisted(*s, ofSender)
		}
	case "reject_sender_login_mismatch", "reject_authenticated_sender_login_mismatch", "reject_known_sender_login_mismatch", "reject_unauthenticated_sender_login_mismatch":
		return in.loginMismatch(w)

	case "check_recipient_access":
		if r := in.checkTo; r != nil {
			return in.mailAccess(arg, *r, ofRecipient, shorthand)
		}
	case "permit_auth_destination":
		if r := in.checkTo; r != nil {
			return in.authDestination(*r)
		}
	case "reject_unauth_destination", "defer_unauth_destination", "check_relay_domains":
		if r := in.checkTo; r != nil {
			return in.unauthDestination(w, *r)
		}
	case "permit_sasl_authenticated":
		if in.signedIn() || in.srv.bugs.Has(bug.RelayEveryone) {
			return permit
		}
	case "reject_unknown_recipient_domain":
		if r := in.checkTo; r != nil {
			return in.unknownDomain(*r, ofRecipient)
		}
	case "reject_non_fqdn_recipient":
		if r := in.checkTo; r != nil {
			return in.nonFQDN(*r, ofRecipient)
		}
	case "reject_unlisted_recipient", "check_recipient_maps":
		if r := in.checkTo; r != nil {
			return in.unlisted(*r, ofRecipient)
		}
	case "reject_multi_recipient_bounce":
		n := 1
		if in.where == "RCPT" {
			n = 0
		}
		if in.checkFrom != nil && *in.checkFrom == "" && in.rcptCount > n {
			return in.refuse(true, k.bounce, "5.5.3", "<"+name+">: "+class+" rejected: Multi-recipient bounce")
		}
	case "check_etrn_access":
	default:
		if list, ok := set.classes[word]; ok {
			return in.apply(list, name, class, shorthand)
		}
		return in.serverError("unknown smtpd restriction: \"" + word + "\"")
	}
	return dunno
}

// keep remembers the first reason to defer.
func (in *session) keep(d *deferral, code int, dsn, text string) verdict {
	if d == &in.ifPermit && in.warning > 0 {
		// Whoever is only to be warned of is not deferred.
		return in.refuse(true, code, dsn, text)
	}
	if !d.set {
		*d = deferral{true, code, dsn, text}
	}
	return dunno
}

func (in *session) unknownCode(s nameStatus) int {
	if s == nameUnknown {
		return in.set.codes.unknownClient
	}
	return 450
}

// policy asks a policy service. None is ever there.
func (in *session) policy(server, name, class, shorthand string) verdict {
	_, path, _ := strings.Cut(server, ":")
	for range 2 {
		in.log("warning: connect to ", path, ": No such file or directory")
	}
	in.log("warning: problem talking to server ", path, ": No such file or directory")
	return in.act(server, in.set.policyDefault, name, class, shorthand)
}

func (in *session) heloName(w string) verdict {
	if !in.hasHelo {
		return dunno
	}
	h, k := in.helo, &in.set.codes
	if strings.HasPrefix(h, "[") {
		inside := strings.TrimSuffix(h[1:], "]")
		if _, ok := announced(inside); ok && strings.HasSuffix(h, "]") {
			return dunno
		}
		return in.refuse(true, k.badName, "5.5.2", "<"+h+">: "+ofHELO+" rejected: invalid ip address")
	}
	name := strings.TrimSuffix(h, ".")
	switch {
	case strings.HasPrefix(w, "reject_invalid"):
		if _, err := netip.ParseAddr(name); err != nil && !validHostname(name) {
			return in.refuse(true, k.badName, "5.5.2", "<"+h+">: "+ofHELO+" rejected: Invalid name")
		}
	case strings.HasPrefix(w, "reject_non_fqdn"):
		if !validHostname(name) || !strings.Contains(name, ".") {
			return in.refuse(true, k.nonFQDN, "5.5.2", "<"+h+">: "+ofHELO+" rejected: need fully-qualified hostname")
		}
	default:
		if !in.srv.knownName(name) {
			return in.keep(&in.ifPermit, 450, "4.7.1", "<"+h+">: "+ofHELO+" rejected: Host not found")
		}
	}
	return dunno
}

// knownName says whether a name resolves: /etc/hosts alone is asked.
func (s *Server) knownName(name string) bool {
	for _, n := range s.hosts {
		if strings.EqualFold(n, name) {
			return true
		}
	}
	return strings.EqualFold(name, s.c.host) || strings.EqualFold(name, "localhost")
}

func (in *session) nonFQDN(addr, class string) verdict {
	_, domain, _ := cutLast(addr)
	if strings.HasPrefix(domain, "[") && strings.HasSuffix(domain, "]") {
		return dunno
	}
	d := strings.TrimSuffix(domain, ".")
	if ok := validHostname(d) || in.utf8 && validUTF8Hostname(d); !ok || !strings.Contains(d, ".") {
		return in.refuse(true, in.set.codes.nonFQDN, "4.5.2", "<"+addr+">: "+class+" rejected: need fully-qualified address")
	}
	return dunno
}

// unknownDomain refuses addresses of domains that the DNS does not know. There
// is no DNS: what is not the source's own is not found for now.
func (in *session) unknownDomain(addr, class string) verdict {
	r := in.set.resolve(addr, in.own)
	if r.broken != nil {
		return in.lookupError(r.broken, addr, addr)
	}
	if r.class == classLocal || r.class == classAlias || r.class == classMailbox || strings.HasPrefix(r.domain, "[") || in.srv.knownName(r.domain) {
		return dunno
	}
	dsn := "4.1.2"
	if class == ofSender {
		dsn = "4.1.8"
	}
	return in.keep(&in.ifPermit, 450, dsn, "<"+addr+">: "+class+" rejected: Domain not found")
}

// authDestination permits what the source is final for, or relays by name.
func (in *session) authDestination(rcpt string) verdict {
	r := in.set.resolve(rcpt, in.own)
	switch {
	case r.broken != nil:
		return in.lookupError(r.broken, rcpt, rcpt)
	case r.routed && !in.set.untrustedRouting:
		return dunno
	case r.class != classDefault:
		return permit
	}
	return dunno
}

func (in *session) unauthDestination(w, rcpt string) verdict {
	if in.srv.bugs.Has(bug.RelayEveryone) {
		return dunno
	}
	if v := in.authDestination(rcpt); v != dunno {
		if v == permit {
			return dunno
		}
		return v
	}
	code, dsn := in.set.codes.relay, "5.7.1"
	if w == "defer_unauth_destination" {
		code, dsn = code-100, "4.7.1"
	}
	return in.refuse(true, code, dsn, "<"+rcpt+">: Relay access denied")
}

// unlisted refuses addresses that the source would have and has not.
func (in *session) unlisted(addr, class string) verdict {
	sender := class == ofSender
	if !sender && in.srv.bugs.Has(bug.UnknownAccepted) {
		return dunno
	}
	if sender && in.listedSender || !sender && in.listedRecipient {
		return dunno
	}
	if in.warning == 0 {
		if sender {
			in.listedSender = true
		} else {
			in.listedRecipient = true
		}
	}
	set := in.set
	r := set.resolve(addr, in.own)
	if r.broken != nil {
		return in.lookupError(r.broken, addr, addr)
	}
	for _, m := range []maps{set.canonicalMaps, set.aliasMaps} {
		_, ok, broken := m.findAddress(r.addr, set.delimiters, in.isLocalDomain)
		if broken != nil {
			return in.lookupError(broken, r.addr, addr)
		}
		if ok {
			return dunno
		}
	}
	unknownDSN := "5.1.1"
	if sender {
		unknownDSN = "5.1.0"
	}
	switch r.via.name {
	case "error":
		code := 550
		if r.class == classAlias {
			code = set.codes.alias
		}
		dsn, text := splitDSN(unknownDSN, r.via.nexthop)
		return in.refuse(true, code, fixDSN(dsn, class), "<"+addr+">: "+class+" rejected: "+text)
	case "retry":
		dsn, text := splitDSN("4"+unknownDSN[1:], r.via.nexthop)
		return in.refuse(true, 450, fixDSN(dsn, class), "<"+addr+">: "+class+" rejected: "+text)
	}
	var m maps
	code, which := 0, ""
	switch r.class {
	case classLocal:
		local, _, _ := cutLast(r.addr)
		if !set.hasLocalMaps || slices.Contains([]string{"double-bounce", "postmaster", "mailer-daemon"}, strings.ToLower(local)) {
			return dunno
		}
		m, code, which = set.localMaps, set.codes.local, "local recipient"
	case classMailbox:
		if !set.hasMailboxMaps {
			return dunno
		}
		m, code, which = set.mailboxMaps, set.codes.mailbox, "virtual mailbox"
	case classRelay:
		if !set.hasRelayMaps {
			return dunno
		}
		m, code, which = set.relayMaps, set.codes.relayRcpt, "relay recipient"
	default:
		return dunno
	}
	_, ok, broken := m.findAddress(r.addr, set.delimiters, in.isLocalDomain)
	if broken != nil {
		return in.lookupError(broken, r.addr, addr)
	}
	if ok {
		return dunno
	}
	return in.refuse(true, code, unknownDSN, "<"+addr+">: "+class+" rejected: User unknown"+set.inTable(which))
}

func (in *session) isLocalDomain(domain string) bool {
	ok, _ := in.set.localDomain(domain, in.own)
	return ok || strings.EqualFold(domain, in.set.myorigin)
}

// splitDSN takes an enhanced status code off the front of a text.
func splitDSN(def, text string) (dsn, rest string) {
	first, after, _ := strings.Cut(text, " ")
	if f := strings.Split(first, "."); len(f) == 3 && len(f[0]) == 1 && allDigits(f[0]) && allDigits(f[1]) && allDigits(f[2]) {
		return first, strings.TrimSpace(after)
	}
	return def, text
}

// fixDSN makes a status about addresses one about the right address.
func fixDSN(dsn, class string) string {
	if len(dsn) < 5 || dsn[1:4] != ".1." {
		return dsn
	}
	detail := dsn[4:]
	switch class {
	case ofSender:
		switch detail {
		case "2", "8":
			detail = "8"
		case "3", "7":
			detail = "7"
		default:
			detail = "0"
		}
	case ofRecipient:
		switch detail {
		case "7":
			detail = "3"
		case "8":
			detail = "2"
		}
	default:
		return dsn[:1] + ".0.0"
	}
	return dsn[:4] + detail
}

// loginMismatch holds senders to smtpd_sender_login_maps.
func (in *session) loginMismatch(w string) verdict {
	s := in.checkFrom
	if s == nil || *s == "" || !in.set.sasl || len(in.set.senderLogin) == 0 {
		return dunno
	}
	r := in.set.resolve(*s, in.own)
	owners, ok, broken := in.set.senderLogin.findAddress(r.addr, in.set.delimiters, in.isLocalDomain)
	if broken != nil {
		return in.lookupError(broken, r.addr, *s)
	}
	if in.saslUser == "" {
		if w == "reject_authenticated_sender_login_mismatch" || !ok {
			return dunno
		}
		return in.refuse(true, 553, "5.7.1", "<"+*s+">: Sender address rejected: not logged in")
	}
	if w == "reject_unauthenticated_sender_login_mismatch" || !ok && w == "reject_known_sender_login_mismatch" {
		return dunno
	}
	for _, o := range words(owners) {
		if strings.EqualFold(o, in.saslUser) {
			return dunno
		}
	}
	return in.refuse(true, 553, "5.7.1", "<"+*s+">: Sender address rejected: not owned by user "+in.saslUser)
}
