// Package bug names the misbehaviours that a reference source can be given:
// what a broken mail server might do and no configuration can express.
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

// The misbehaviours, by the part of the source that has them.
const (
	// Whose address is recorded, on every protocol.
	LogsProxyAddress ID = iota
	LogsAnnouncedFromAnyone
	MixesUpSessions
	DropsPort
	LipNotHonoured
	IPv4RecordedAsMapped
	AdvertisesXCLIENTToNeighbour
	FailedLoginLoggedWithProxy

	// IMAP ID.
	IDReapplies
	IDAfterLoginCounts
	IDFamilySwapped
	IDDropsSession
	IDRejectsUnknownKeys
	IDWantsAuthFirst

	// XCLIENT.
	POP3XCLIENTIgnored
	POP3XCLIENTAfterLogin
	SieveXCLIENTAfterLogin
	XCLIENTSecondAccepted
	XCLIENTUnknownApplied
	XCLIENTUnknownHalfApplied
	XCLIENTBadAddressCloses
	XCLIENTBadAddressSpoils
	XCLIENTDropsTLS
	XCLIENTKeepsAuth
	XCLIENTAuthenticates

	// Signing in.
	AcceptsAnyPassword
	WrongPasswordTemporary
	AnswersLate
	ClosesAfterFailedLogin
	SASLIRRefused

	// Lines and greetings.
	NoGreeting
	TurnsAway
	GreetingBareLF
	LargeInLost
	LargeOutLost
	GreetingLate
	AddressLiteralRefused
	HELORuleAtMAIL
	HELORuleAtRCPT
	STARTTLSThenCloses

	// Relaying.
	RelayEveryone
	RelayRefusesEveryone
	RoutedAccepted
	UnknownAccepted
	ShedsLoad
	Relay503
	AcceptsThenDrops
	DeliversTwice
	DeliversToJunk
	BDATTruncates
	DotStuffingKept
	Strips8Bit
	OneBadRefusesAll
	NullSenderRefused
	NullSenderReplaced
	RewritesBody
	ReceivedShowsProxy
	HELOLost
	GreylistsEveryone

	// The log.
	LogDropsLines
	LogLate

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
	LogsProxyAddress:             {"logs-proxy-address", "Every record names the host that connected, whatever it announced and whatever was answered."},
	LogsAnnouncedFromAnyone:      {"logs-announced-from-anyone", "What any host announces is recorded, though strangers are answered as strangers."},
	MixesUpSessions:              {"mixes-up-sessions", "A session is recorded with the address that another open session announced."},
	DropsPort:                    {"drops-port", "The announced port is dropped: records carry the port of the connection itself."},
	LipNotHonoured:               {"lip-not-honoured", "The announced address that the client connected to is dropped."},
	IPv4RecordedAsMapped:         {"ipv4-recorded-as-mapped", "An announced IPv4 address is recorded as an IPv4-mapped IPv6 address."},
	AdvertisesXCLIENTToNeighbour: {"advertises-xclient-to-neighbour", "XCLIENT is offered to every host, though only the trusted one may use it."},
	FailedLoginLoggedWithProxy:   {"failed-login-logged-with-proxy", "A failed login is recorded with the host that connected, a good one with the client."},

	IDReapplies:          {"imap-id-reapplies", "Every IMAP ID of a trusted host counts, and not the first alone."},
	IDAfterLoginCounts:   {"imap-id-after-login-counts", "An IMAP ID after the login is believed and recorded."},
	IDFamilySwapped:      {"imap-id-family-swapped", "An address announced by IMAP ID is recorded in the other address family."},
	IDDropsSession:       {"imap-id-drops-session", "The session id announced by IMAP ID is dropped."},
	IDRejectsUnknownKeys: {"imap-id-rejects-unknown-keys", "An IMAP ID with a key that the server does not know is refused."},
	IDWantsAuthFirst:     {"imap-id-wants-auth-first", "IMAP ID is refused before the login."},

	POP3XCLIENTIgnored:        {"pop3-xclient-plus-ok-but-ignored", "POP3 XCLIENT is answered +OK Updated and has no effect."},
	POP3XCLIENTAfterLogin:     {"pop3-xclient-after-login", "POP3 XCLIENT is accepted after the login, and recorded."},
	SieveXCLIENTAfterLogin:    {"sieve-xclient-after-login", "ManageSieve XCLIENT is accepted after the login, and recorded."},
	XCLIENTSecondAccepted:     {"xclient-second-accepted", "SMTP XCLIENT is offered and accepted again after a client was announced."},
	XCLIENTUnknownApplied:     {"xclient-unknown-attribute-applied", "SMTP XCLIENT with an attribute that the server does not know is accepted."},
	XCLIENTUnknownHalfApplied: {"xclient-unknown-attribute-half-applied", "SMTP XCLIENT with an attribute that the server does not know is refused, and the address before it is recorded all the same."},
	XCLIENTBadAddressSpoils:   {"xclient-bad-address-spoils-session", "After a malformed address in XCLIENT every XCLIENT of the session is refused."},
	XCLIENTBadAddressCloses:   {"xclient-bad-address-closes", "A malformed address in XCLIENT closes the connection."},
	XCLIENTDropsTLS:           {"xclient-drops-tls", "After SMTP XCLIENT the server takes the session for one in clear text."},
	XCLIENTKeepsAuth:          {"xclient-keeps-auth", "SMTP XCLIENT does not forget who had signed in before."},
	XCLIENTAuthenticates:      {"xclient-authenticates", "Whoever is announced by SMTP XCLIENT counts as signed in."},

	AcceptsAnyPassword:     {"accepts-any-password", "Every password is right."},
	WrongPasswordTemporary: {"wrong-password-temporary-failure", "A wrong password is answered as a temporary failure."},
	AnswersLate:            {"answers-late", "The answer to credentials comes 12 seconds late."},
	ClosesAfterFailedLogin: {"closes-after-failed-login-silently", "After a wrong password the connection is closed without an answer."},
	SASLIRRefused:          {"sasl-ir-refused", "PLAIN with an initial response is refused."},

	NoGreeting:            {"no-greeting", "Connections are accepted and nothing is ever said on them."},
	TurnsAway:             {"turns-away", "Whoever connects is told that there are too many connections, and hung up on."},
	GreetingBareLF:        {"greeting-bare-lf", "Lines end in LF alone."},
	LargeInLost:           {"large-packets-in-lost", "Whatever arrives in packets of full size is lost, and the connection is silent from then on."},
	LargeOutLost:          {"large-packets-out-lost", "Whatever leaves in packets of full size is lost, and the connection is silent from then on."},
	GreetingLate:          {"greeting-late", "The greeting comes 8 seconds late."},
	AddressLiteralRefused: {"address-literal-refused", "EHLO with an address literal, with a name without a dot, or with one of an internal network is refused at once."},
	HELORuleAtMAIL:        {"helo-rule-at-mail", "MAIL is refused after EHLO with an address literal, a name without a dot, or one of an internal network."},
	HELORuleAtRCPT:        {"helo-rule-at-rcpt", "RCPT is refused after EHLO with an address literal, a name without a dot, or one of an internal network."},
	STARTTLSThenCloses:    {"starttls-then-closes", "The connection is closed as soon as STARTTLS has brought it inside TLS."},

	RelayEveryone:        {"relay-everyone", "Mail for any domain is accepted from anybody."},
	RelayRefusesEveryone: {"relay-refuses-everyone", "Mail for the source's own domain is refused from everybody who has not signed in."},
	RoutedAccepted:       {"routed-recipients-accepted", "A recipient with a route to another host in it is accepted from anybody."},
	UnknownAccepted:      {"unknown-recipients-accepted", "Recipients of the source's own domain are accepted whether they exist or not."},
	ShedsLoad:            {"sheds-load", "From the eleventh message of a host on, messages are refused, by turns at MAIL and at their end."},
	Relay503:             {"relay-503-instead-of-relay-denied", "Relaying is refused, but with 503 and for a wrong reason."},
	AcceptsThenDrops:     {"accepts-then-drops-message", "Messages are accepted, logged as sent, and never reach a mailbox."},
	DeliversTwice:        {"delivers-twice", "Every message reaches the mailbox twice."},
	DeliversToJunk:       {"delivers-to-junk", "Every message is filed into Junk."},
	BDATTruncates:        {"bdat-truncates", "The second half of every message that came with BDAT is lost."},
	DotStuffingKept:      {"dot-stuffing-kept", "The dots that a client doubled are not taken away."},
	Strips8Bit:           {"strips-8bit", "The eighth bit of every octet of a message is cleared."},
	OneBadRefusesAll:     {"one-bad-recipient-refuses-all", "A message of which one recipient was refused is refused for all."},
	NullSenderRefused:    {"null-sender-refused", "Messages from the null sender are refused."},
	NullSenderReplaced:   {"null-sender-replaced", "The null sender is replaced by the server's own mailer daemon."},
	RewritesBody:         {"rewrites-body", "A line is added to every message."},
	ReceivedShowsProxy:   {"received-shows-proxy", "The Received field names the host that connected."},
	HELOLost:             {"helo-lost", "The name that the client gave in HELO is replaced by the first that the connection gave."},
	GreylistsEveryone:    {"greylists-everyone", "Every recipient is refused at the first try, as greylisting does."},

	LogDropsLines: {"log-drops-lines", "Nothing is ever logged."},
	LogLate:       {"log-late", "Lines appear in the log 60 milliseconds late."},
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
			return 0, fmt.Errorf("unknown bug %q of the reference source: it has %s", n, list())
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
