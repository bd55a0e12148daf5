// Package bug names the misbehaviours that a reference Stalwart can be given:
// what a broken server might do and no setting can express.
//
// Each changes exactly the behaviour that its sentence describes. They exist
// so that every claim about a source can be shown to fail on some source.
package bug

import (
	"fmt"
	"slices"
	"strings"
)

// ID is one misbehaviour.
type ID uint8

// The misbehaviours, by the part of the server that has them.
const (
	// The PROXY protocol.
	HeaderIgnored ID = iota
	HeaderFromAnyone
	HeaderFromAnyoneTLS
	HeaderFromAnyoneLogged
	HeaderOptional
	HeaderWholeSegment
	HeaderSplitFromPayload
	V1Refused
	LocalRefused
	UnspecRefused
	IPv6Refused
	DestinationLogged
	MappedNotNormalised
	PortDropped
	HeaderAgainAfterTLS
	FailedLoginLogsProxy
	MixesUpSessions
	ForwardedBelieved

	// Bans.
	BanHitsProxy
	BanForgottenAtRestart
	BlockedIgnored
	BanHitsAllClients
	BanHitsProxyToo

	// Settings.
	ReloadAppliesListeners
	ReloadAppliesNothing
	InsertAppliesAtOnce
	InsertsPileUp
	RestartKeepsListeners
	ReloadErrorsHidden
	ReloadAppliesInSpite

	// Signing in.
	AcceptsAnyPassword
	RefusesEveryPassword
	RolesIgnored
	AdministratorReadsNothing
	EveryoneReads
	EveryoneMasters
	ClearTextFromAnyone
	STARTTLSMissing
	HeaderTLSIgnored
	ClosesAfterFailedLogin

	// Lines and greetings.
	NoGreeting
	GreetingBareLF
	LargeInLost
	LargeOutLost
	MuteInsideTLS
	RefusesOddNames
	RefusesMailOfOddNames
	SpoiltByBadCommand

	// Mail.
	RelayEveryone
	RelayRefusesEveryone
	AcceptsThenDrops
	DeliversTwice
	DeliversToJunk
	BDATTruncates
	BDATLastIgnored
	DotStuffingKept
	RewritesBody
	RewritesHeader
	OneBadRefusesAll
	NullSenderRefused
	ReceivedShowsOther
	LoopsAccepted
	EightBitMissing
	UTF8Missing
	EighthBitLost
	NullSenderReplaced
	QueueStands
	AcceptsUnknown
	RefusesHello
	RefusesSenders
	RefusesMessages
	SubmissionForAnybody

	// HTTP.
	HTTPUnavailable
	HostHeaderBelieved
	RedirectsAbsolute
	WebSocketRefused
	WebSocketMute
	WebSocketOnce
	CookieNamesHost
	AnswersNameAddress
	PolicyNamesAddress

	// The log.
	LogDropsLines
	LogLate
	LogNoSessionKeys
	LogOtherListener
	LogNoDelivery

	count
)

// A Bug is a misbehaviour by its name.
type Bug struct {
	Name string
	// Sentence says what the server does.
	Sentence string
}

// bugs is in the order of the constants, and not changed.
var bugs = [count]Bug{
	HeaderIgnored:          {"stalwart-header-ignored", "PROXY headers of trusted networks are read, and the session goes on with the address that connected."},
	HeaderFromAnyone:       {"stalwart-header-from-anyone", "A PROXY header is believed from any address that sends one."},
	HeaderFromAnyoneTLS:    {"stalwart-tls-header-from-anyone", "On ports with implicit TLS a PROXY header is believed from any address that sends one."},
	HeaderFromAnyoneLogged: {"stalwart-refused-header-logged", "Where the server speaks first, a PROXY header from anybody else is refused as a command, and the log believes it."},
	HeaderOptional:         {"stalwart-header-optional", "Trusted networks are served without a PROXY header too."},
	HeaderWholeSegment:     {"stalwart-header-whole-segment", "A PROXY header that comes in more than one segment is refused."},
	HeaderSplitFromPayload: {"stalwart-header-eats-payload", "What comes in the same segment as the PROXY header is lost."},
	V1Refused:              {"stalwart-v1-refused", "PROXY headers of version 1 are refused."},
	LocalRefused:           {"stalwart-local-refused", "PROXY headers with the command LOCAL are refused."},
	UnspecRefused:          {"stalwart-unspec-refused", "PROXY headers that name no address are refused."},
	IPv6Refused:            {"stalwart-ipv6-refused", "PROXY headers with IPv6 addresses are refused."},
	DestinationLogged:      {"stalwart-destination-as-client", "A session is recorded with the address that its client connected to."},
	MappedNotNormalised:    {"stalwart-mapped-not-normalised", "An announced IPv4 address is recorded as an IPv4-mapped IPv6 address."},
	PortDropped:            {"stalwart-port-dropped", "Sessions are recorded with the port of the connection itself."},
	HeaderAgainAfterTLS:    {"stalwart-header-again-after-tls", "After STARTTLS another PROXY header is waited for."},
	FailedLoginLogsProxy:   {"stalwart-failed-login-logs-proxy", "A failed login is recorded with the address that connected."},
	MixesUpSessions:        {"stalwart-mixes-up-sessions", "A session is recorded with the address that another open session announced."},
	ForwardedBelieved:      {"stalwart-forwarded-believed", "Forwarded and X-Forwarded-For change the recorded address, whatever is set."},

	BanHitsProxy:          {"stalwart-ban-hits-proxy", "Bans hit the address that connected."},
	BanForgottenAtRestart: {"stalwart-ban-forgotten", "A restart forgets every ban."},
	BlockedIgnored:        {"stalwart-blocked-ignored", "Blocked addresses are listed, and served."},
	BanHitsAllClients:     {"stalwart-ban-hits-all-clients", "While any address is banned, whoever is announced is refused."},
	BanHitsProxyToo:       {"stalwart-ban-hits-proxy-too", "While any address is banned, connections that announce nobody are refused."},

	ReloadAppliesListeners: {"stalwart-reload-applies-listeners", "A reload applies the settings of listeners too."},
	ReloadAppliesNothing:   {"stalwart-reload-applies-nothing", "A reload is answered and applies nothing."},
	InsertsPileUp:          {"stalwart-inserts-pile-up", "A setting that was inserted twice has to be cleared twice."},
	InsertAppliesAtOnce:    {"stalwart-insert-applies", "Settings apply as soon as they are inserted, listeners too."},
	RestartKeepsListeners:  {"stalwart-restart-keeps-listeners", "A restart keeps the listeners as they were."},
	ReloadAppliesInSpite:   {"stalwart-reload-applies-in-spite", "A reload that reports errors applies the rest all the same."},
	ReloadErrorsHidden:     {"stalwart-reload-errors-hidden", "A reload that applied nothing reports no error."},

	AcceptsAnyPassword:        {"stalwart-accepts-any-password", "Every password is right."},
	RefusesEveryPassword:      {"stalwart-refuses-every-password", "No password of an account is right."},
	RolesIgnored:              {"stalwart-roles-ignored", "Accounts without a role may sign in."},
	AdministratorReadsNothing: {"stalwart-administrator-reads-nothing", "The administrator may read no account but its own."},
	EveryoneReads:             {"stalwart-everyone-reads", "Every user may read every account."},
	HeaderTLSIgnored:          {"stalwart-header-tls-ignored", "What a PROXY header says of the client's TLS is passed over."},
	EveryoneMasters:           {"stalwart-everyone-masters", "Every user may sign in as another, with its own password."},
	ClearTextFromAnyone:       {"stalwart-clear-text-from-anyone", "Who does not come through the proxy may send passwords in clear text."},
	STARTTLSMissing:           {"stalwart-starttls-missing", "STARTTLS is taken at submission and not offered."},
	ClosesAfterFailedLogin:    {"stalwart-closes-after-failed-login", "After a wrong password the connection is closed without an answer."},

	NoGreeting:            {"stalwart-no-greeting", "Mail connections are accepted and nothing is ever said on them."},
	GreetingBareLF:        {"stalwart-bare-lf", "Lines end in LF alone."},
	LargeInLost:           {"stalwart-large-packets-in-lost", "Whatever arrives in packets of full size is lost, and the connection is silent from then on."},
	LargeOutLost:          {"stalwart-large-packets-out-lost", "Whatever leaves in packets of full size is lost, and the connection is silent from then on."},
	MuteInsideTLS:         {"stalwart-mute-inside-tls", "On mail ports nothing is said inside TLS."},
	RefusesOddNames:       {"stalwart-refuses-odd-names", "Names in EHLO that are no fully qualified host names are refused at submission: single labels, address literals and underscores."},
	RefusesMailOfOddNames: {"stalwart-refuses-mail-of-odd-names", "Who said EHLO with a name of one label may not name a sender."},
	SpoiltByBadCommand:    {"stalwart-spoilt-by-bad-command", "After a command that is none, a session of SMTP refuses every other."},

	RelayEveryone:        {"stalwart-relay-everyone", "Mail for any domain is accepted from anybody."},
	RelayRefusesEveryone: {"stalwart-relay-refuses-everyone", "Mail for the source's own domain is refused from everybody who has not signed in."},
	AcceptsThenDrops:     {"stalwart-accepts-then-drops", "Messages are accepted, logged as ingested, and never reach a mailbox."},
	DeliversTwice:        {"stalwart-delivers-twice", "Every message reaches the mailbox twice."},
	DeliversToJunk:       {"stalwart-delivers-to-junk", "Every message is filed into Junk Mail, whatever its score."},
	BDATTruncates:        {"stalwart-bdat-truncates", "The second half of every message that came with BDAT is lost."},
	BDATLastIgnored:      {"stalwart-bdat-last-ignored", "The last chunk of a message is answered like any other, and nothing is queued."},
	DotStuffingKept:      {"stalwart-dot-stuffing-kept", "The dots that a client doubled are not taken away."},
	RewritesBody:         {"stalwart-rewrites-body", "A line is added to every message."},
	RewritesHeader:       {"stalwart-rewrites-header", "A message's author loses the name, and its signature is taken away."},
	OneBadRefusesAll:     {"stalwart-one-bad-refuses-all", "A message of which one recipient was refused is refused for all."},
	NullSenderRefused:    {"stalwart-null-sender-refused", "Messages from the null sender are refused."},
	ReceivedShowsOther:   {"stalwart-received-shows-listener", "The Received field names the source's own address as the client's."},
	LoopsAccepted:        {"stalwart-loops-accepted", "Received fields are not counted."},
	EightBitMissing:      {"stalwart-8bitmime-missing", "8BITMIME is not offered."},
	UTF8Missing:          {"stalwart-smtputf8-missing", "SMTPUTF8 is not offered."},
	EighthBitLost:        {"stalwart-eighth-bit-lost", "The eighth bit of every octet of a message is lost."},
	NullSenderReplaced:   {"stalwart-null-sender-replaced", "Return-Path names the source's MAILER-DAEMON for messages from the null sender."},
	QueueStands:          {"stalwart-queue-stands", "Messages are accepted and queued, and nothing is delivered from the queue."},
	AcceptsUnknown:       {"stalwart-accepts-unknown-recipients", "Recipients of the source's own domain are accepted, whether they exist or not."},
	RefusesHello:         {"stalwart-refuses-hello", "EHLO is refused on port 25."},
	RefusesSenders:       {"stalwart-refuses-senders", "Every sender is refused on port 25."},
	RefusesMessages:      {"stalwart-refuses-messages", "Every message is refused once it has been sent."},
	SubmissionForAnybody: {"stalwart-submission-for-anybody", "Who has not signed in may submit mail to anybody."},

	HTTPUnavailable:    {"stalwart-http-unavailable", "Requests are answered with 503, but for the management API."},
	HostHeaderBelieved: {"stalwart-host-header-believed", "Advertised addresses name the host that the request asked for."},
	RedirectsAbsolute:  {"stalwart-redirects-absolute", "Redirects name the source's own host and port."},
	WebSocketRefused:   {"stalwart-websocket-refused", "An upgrade to WebSocket is refused."},
	WebSocketMute:      {"stalwart-websocket-mute", "A WebSocket is opened, and nothing is answered on it."},
	WebSocketOnce:      {"stalwart-websocket-once", "A WebSocket answers one request."},
	CookieNamesHost:    {"stalwart-cookie-names-host", "Every answer over HTTP sets a cookie for the source's own host."},
	AnswersNameAddress: {"stalwart-answers-name-address", "Every answer over HTTP names the address of the source that gave it."},
	PolicyNamesAddress: {"stalwart-policy-names-address", "The policy of MTA-STS names the source's addresses as mail exchangers."},

	LogDropsLines:    {"stalwart-log-drops-lines", "Nothing is ever logged."},
	LogLate:          {"stalwart-log-late", "Lines appear in the log 60 milliseconds late."},
	LogNoSessionKeys: {"stalwart-log-no-session-keys", "Lines of a session do not say whose session it is."},
	LogOtherListener: {"stalwart-log-other-listener", "Lines of a session name a listener and a port that nobody connected to."},
	LogNoDelivery:    {"stalwart-log-no-delivery", "What is delivered is not logged as delivered."},
}

// All lists every misbehaviour.
func All() []Bug { return slices.Clone(bugs[:]) }

// String is the bug's name.
func (id ID) String() string { return bugs[id].Name }

// A Set is the misbehaviours that are switched on.
type Set [(count + 63) / 64]uint64

// Parse turns names into a set. An unknown name is an error.
func Parse(names []string) (Set, error) {
	var s Set
	for _, n := range names {
		i := slices.IndexFunc(bugs[:], func(b Bug) bool { return b.Name == n })
		if i < 0 {
			return Set{}, fmt.Errorf("unknown bug %q of the reference Stalwart: it has %s", n, list())
		}
		s[i/64] |= 1 << (i % 64)
	}
	return s, nil
}

// Has says whether the bug is switched on.
func (s Set) Has(id ID) bool { return s[id/64]&(1<<(id%64)) != 0 }

func list() string {
	names := make([]string, 0, len(bugs))
	for _, b := range bugs {
		names = append(names, b.Name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
