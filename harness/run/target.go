package run

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/mailproof/mailproof/harness/result"
)

// Family is an address family: "ip4" or "ip6".
type Family string

// The two families.
const (
	IP4 Family = "ip4"
	IP6 Family = "ip6"
)

// FamilyOf is the family of an address; a v4-mapped address is IPv4.
func FamilyOf(a netip.Addr) Family {
	if a.Unmap().Is4() {
		return IP4
	}
	return IP6
}

// The vantages: addresses that the harness can act from. No two share one.
const (
	Client    = "client"    // a user's mail program
	Proxy     = "proxy"     // the migration proxy: the only one to be trusted
	Relay     = "relay"     // the new server, which relays what has not moved
	Neighbour = "neighbour" // the proxy's subnet, another host
	Stranger  = "stranger"  // an unrelated network
)

// Vantages lists the five, in the order in which reports name them.
func Vantages() []string { return []string{Client, Proxy, Relay, Neighbour, Stranger} }

// A Vantage is a place that connections are made from.
//
// A connection's LocalAddr is the address and port that left the vantage. A
// reset by the peer surfaces as an error that matches syscall.ECONNRESET, a
// refused dial as syscall.ECONNREFUSED. Connections implement
// CloseWrite() error, and Reset() error (abort with RST).
type Vantage interface {
	Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error)
	// Addr is the vantage's address in the family; the zero Addr if it has none.
	Addr(Family) netip.Addr
}

// A Target is what a run judges: sources, the proxy before them, and the
// vantages to act from. Whoever builds a Target owns it and closes it.
type Target struct {
	Kind     string // "reference", "docker" or "site"
	Sources  []*Source
	Proxy    *PublicProxy // nil when none stands there
	Vantages map[string]Vantage
	Names    Names
	Engine   string   // "Docker 20.10.24", or ""
	Notices  []string // sentences every human report shows first
	Problems []result.Problem
	// Limits are what may be asked of servers that are not ours; nil for labs.
	Limits *Limits
}

// Names are the target's addresses that are nobody's to dial from.
type Names struct {
	// Public is where clients reach the proxy: what a proxy announces as the
	// address its client connected to.
	Public func(Family) netip.Addr
	// Forged is an address that nobody has.
	Forged func(Family) netip.Addr
	// Client is the address of the nth further client, n from 1 to
	// [MaxClients]: announced, never dialled from.
	Client func(f Family, n int) netip.Addr
}

// MaxClients is how many further clients a scenario may announce.
const MaxClients = 60

// A VantageError says that a vantage itself is gone, and not what it dialled.
type VantageError struct {
	Vantage string
	Err     error
}

func (e *VantageError) Error() string {
	return "the vantage " + e.Vantage + " is gone: " + e.Err.Error()
}
func (e *VantageError) Unwrap() error { return e.Err }

// A PublicProxy is the proxy as clients see it.
type PublicProxy struct {
	Name      string                  // "reference", "image:…"
	Addr      func(Family) netip.Addr // where the client vantage dials it
	Endpoints []Endpoint
	Roots     *x509.CertPool
	// ServerName is the name its certificate is checked for.
	ServerName string
	// Verify, where it is set, judges its certificate instead of Roots.
	Verify func(tls.ConnectionState) error
}

// An Endpoint is one service on one port.
type Endpoint struct {
	Name     string // imap, imaps, pop3, pop3s, submission, submissions, sieve, smtp, https, http
	Protocol string // imap, pop3, managesieve, smtp, http
	Port     uint16
	TLS      string // "none", "starttls" or "implicit"
}

// A Source is one mail system under judgement.
type Source struct {
	Name     string // as spelled on the command line: "dovecot-postfix@trixie"
	Kind     string // "dovecot-postfix", "stalwart", "generic"
	Version  string // "trixie", "0.15.5"
	Profile  string // "as-shipped", "instrumented", ""
	Origin   result.Origin
	Layers   []string // what was laid over the profile, for the report
	Software string   // "Dovecot 2.4.1, Postfix 3.10.13", when known
	Domain   string   // the mail domain it is final for

	// Addr is where a vantage dials the source: the source has an address in
	// every network. The zero Addr says that it cannot be reached from there.
	Addr      func(vantage string, f Family) netip.Addr
	Endpoints []Endpoint
	// Roots and ServerName check its certificate. A nil Roots accepts any
	// certificate, as the lab's as-shipped profile and a migration proxy may.
	Roots      *x509.CertPool
	ServerName string
	// Verify, where it is set, judges its certificate instead of Roots.
	Verify func(tls.ConnectionState) error

	Accounts Accounts
	// Administrator may read every account; nil where none is named.
	Administrator *Account
	// Limited is an administrator who lacks the permission to read what is
	// others'; nil where none is named.
	Limited *Account
	// Logs are opened once, before the first connection of a run. The key says
	// what is read there ("mail"); empty when no log can be read.
	Logs map[string]LogFunc
	// Config returns the configuration in force, secrets removed: evidence for
	// findings, and where a remedy looks for the line to change. It may be nil.
	Config func(ctx context.Context) ([]ConfigFile, error)
	// Announces is how a proxy tells this source of a client: by XCLIENT and
	// IMAP ID inside the session, or by a PROXY header before it.
	Announces Announcement
	// AnnouncesAt says so of single endpoints of a generic source, by their names.
	AnnouncesAt map[string]Announcement
	// Pace is the least time between two connections to its SMTP ports that it
	// holds against the same address; 0 where it counts none. Scenarios with
	// the hazard "flood" do not keep to it.
	Pace time.Duration
	// Vantages, where they are set, take the place of the target's: the source
	// stands in another lab, at the same addresses. ProxyRoots are then those
	// of the proxy before it.
	Vantages   map[string]Vantage
	ProxyRoots *x509.CertPool
	// Admin changes its settings while it runs; nil where nobody may.
	Admin Admin
	// Detailed says that the log of a site's Stalwart was declared to be at
	// DEBUG, where refused sign-ins are; a run sees for itself whether it is.
	Detailed bool
}

// An Announcement is how a source is told who the client is.
type Announcement string

// The announcements. The zero value is [ByXCLIENT].
const (
	ByXCLIENT Announcement = "xclient" // XCLIENT, and ID in IMAP
	ByPROXY   Announcement = "proxy"   // a PROXY protocol header
	ByNothing Announcement = "none"
)

// LogFunc opens a log. The stream yields whole lines as they are written,
// from the moment of the call on; it ends when it is closed, when ctx ends or
// when the log does.
type LogFunc func(ctx context.Context) (io.ReadCloser, error)

// A ConfigFile is one file of a server's configuration, or the output of the
// command that prints what is in force ("postconf -n").
type ConfigFile struct {
	Path    string // on the server, or the command
	Text    string // secrets removed
	Command bool   // Text is the output of a command, not a file that can be edited
}

// An Account is one mailbox and its credentials.
type Account struct {
	Address  string
	Password string
	// Shared says that somebody else signs in to it as well: its name joins no record.
	Shared bool
}

// vantage is a place that a source is reached from; nil where there is none.
func (t *Target) vantage(s *Source, name string) Vantage {
	if s.Vantages != nil {
		return s.Vantages[name]
	}
	return t.Vantages[name]
}

// Endpoint returns the source's endpoint of that name.
func (s *Source) Endpoint(name string) (Endpoint, bool) { return endpointNamed(s.Endpoints, name) }

// Endpoint returns the proxy's endpoint of that name.
func (p *PublicProxy) Endpoint(name string) (Endpoint, bool) { return endpointNamed(p.Endpoints, name) }

func endpointNamed(es []Endpoint, name string) (Endpoint, bool) {
	for _, e := range es {
		if e.Name == name {
			return e, true
		}
	}
	return Endpoint{}, false
}

// Accounts hands out accounts. In a lab every execution gets accounts of its
// own; at a site they are the operator's, and one execution at a time has one.
type Accounts interface {
	// Take waits for n accounts and returns them with their release.
	Take(ctx context.Context, n int) ([]Account, func(), error)
	// Own says that an account is nobody else's while it is taken: a log line
	// with its name belongs to whoever took it.
	Own() bool
}
