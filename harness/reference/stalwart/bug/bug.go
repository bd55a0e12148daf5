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

	// Settings.
	ReloadAppliesListeners
	ReloadAppliesNothing
	InsertAppliesAtOnce
	RestartKeepsListeners
	ReloadErrorsHidden
	ReloadAppliesInSpite

	// Signing in.
	AcceptsAnyPassword
	RolesIgnored
	AdministratorReadsNothing
	EveryoneReads
	HeaderTLSIgnored
	ClosesAfterFailedLogin

	// Lines and greetings.
	NoGreeting
	GreetingBareLF

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
	OneBadRefusesAll
	NullSenderRefused
	ReceivedShowsOther
	LoopsAccepted
	EightBitMissing

	// HTTP.
	HostHeaderBelieved
	RedirectsAbsolute
	WebSocketRefused
	WebSocketMute
	CookieNamesHost
	AnswersNameAddress
	PolicyNamesAddress

	// The log.
	LogDropsLines
	LogLate
	LogNoSessionKeys

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

	ReloadAppliesListeners: {"stalwart-reload-applies-listeners", "A reload applies the settings of listeners too."},
	ReloadAppliesNothing:   {"stalwart-reload-applies-nothing", "A reload is answered and applies nothing."},
	InsertAppliesAtOnce:    {"stalwart-insert-applies", "Settings apply as soon as they are inserted, listeners too."},
	RestartKeepsListeners:  {"stalwart-restart-keeps-listeners", "A restart keeps the listeners as they were."},
	ReloadAppliesInSpite:   {"stalwart-reload-applies-in-spite", "A reload that reports errors applies the rest all the same."},
	ReloadErrorsHidden:     {"stalwart-reload-errors-hidden", "A reload that applied nothing reports no error."},

	AcceptsAnyPassword:        {"stalwart-accepts-any-password", "Every password is right."},
	RolesIgnored:              {"stalwart-roles-ignored", "Accounts without a role may sign in."},
	AdministratorReadsNothing: {"stalwart-administrator-reads-nothing", "The administrator may read no account but its own."},
	EveryoneReads:             {"stalwart-everyone-reads", "Every user may read every account."},
	HeaderTLSIgnored:          {"stalwart-header-tls-ignored", "What a PROXY header says of the client's TLS is passed over."},
	ClosesAfterFailedLogin:    {"stalwart-closes-after-failed-login", "After a wrong password the connection is closed without an answer."},

	NoGreeting:     {"stalwart-no-greeting", "Mail connections are accepted and nothing is ever said on them."},
	GreetingBareLF: {"stalwart-bare-lf", "Lines end in LF alone."},

	RelayEveryone:        {"stalwart-relay-everyone", "Mail for any domain is accepted from anybody."},
	RelayRefusesEveryone: {"stalwart-relay-refuses-everyone", "Mail for the source's own domain is refused from everybody who has not signed in."},
	AcceptsThenDrops:     {"stalwart-accepts-then-drops", "Messages are accepted, logged as ingested, and never reach a mailbox."},
	DeliversTwice:        {"stalwart-delivers-twice", "Every message reaches the mailbox twice."},
	DeliversToJunk:       {"stalwart-delivers-to-junk", "Every message is filed into Junk Mail, whatever its score."},
	BDATTruncates:        {"stalwart-bdat-truncates", "The second half of every message that came with BDAT is lost."},
	BDATLastIgnored:      {"stalwart-bdat-last-ignored", "The last chunk of a message is answered like any other, and nothing is queued."},
	DotStuffingKept:      {"stalwart-dot-stuffing-kept", "The dots that a client doubled are not taken away."},
	RewritesBody:         {"stalwart-rewrites-body", "A line is added to every message."},
	OneBadRefusesAll:     {"stalwart-one-bad-refuses-all", "A message of which one recipient was refused is refused for all."},
	NullSenderRefused:    {"stalwart-null-sender-refused", "Messages from the null sender are refused."},
	ReceivedShowsOther:   {"stalwart-received-shows-listener", "The Received field names the source's own address as the client's."},
	LoopsAccepted:        {"stalwart-loops-accepted", "Received fields are not counted."},
	EightBitMissing:      {"stalwart-8bitmime-missing", "8BITMIME is not offered."},

	HostHeaderBelieved: {"stalwart-host-header-believed", "Advertised addresses name the host that the request asked for."},
	RedirectsAbsolute:  {"stalwart-redirects-absolute", "Redirects name the source's own host and port."},
	WebSocketRefused:   {"stalwart-websocket-refused", "An upgrade to WebSocket is refused."},
	WebSocketMute:      {"stalwart-websocket-mute", "A WebSocket is opened, and nothing is answered on it."},
	CookieNamesHost:    {"stalwart-cookie-names-host", "Every answer over HTTP sets a cookie for the source's own host."},
	AnswersNameAddress: {"stalwart-answers-name-address", "Every answer over HTTP names the address of the source that gave it."},
	PolicyNamesAddress: {"stalwart-policy-names-address", "The policy of MTA-STS names the source's addresses as mail exchangers."},

	LogDropsLines:    {"stalwart-log-drops-lines", "Nothing is ever logged."},
	LogLate:          {"stalwart-log-late", "Lines appear in the log 60 milliseconds late."},
	LogNoSessionKeys: {"stalwart-log-no-session-keys", "Lines of a session do not say whose session it is."},
}

// All lists every misbehaviour.
func All() []Bug { return slices.Clone(bugs[:]) }

// String is the bug's name.
func (id ID) String() string { return bugs[id].Name }

// A Set is the misbehaviours that are switched on.
type Set uint64

// Parse turns names into a set. An unknown name is an error.
func Parse(names []string) (Set, error) {
	var s Set
	for _, n := range names {
		i := slices.IndexFunc(bugs[:], func(b Bug) bool { return b.Name == n })
		if i < 0 {
			return 0, fmt.Errorf("unknown bug %q of the reference Stalwart: it has %s", n, list())
		}
		s |= 1 << i
	}
	return s, nil
}

// Has says whether the bug is switched on.
func (s Set) Has(id ID) bool { return s&(1<<id) != 0 }

func list() string {
	names := make([]string, 0, len(bugs))
	for _, b := range bugs {
		names = append(names, b.Name)
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}
