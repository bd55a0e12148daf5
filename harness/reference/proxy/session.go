package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/mailproof/mailproof/harness/proto"
)

// maxCommands bounds what a client may say before it signs in.
const maxCommands = 200

// A session is one client's connection and, once it signs in, its source's.
type session struct {
	p      *Proxy
	ln     *listener
	ctx    context.Context // ends when the session must be over at once
	id     string          // 26 of A-Z and 2-7, random: it never repeats
	client *leg
	via    netip.AddrPort // the TCP peer
	peer   netip.AddrPort // the client that is announced
	local  netip.AddrPort // where it connected to
	header bool           // peer and local are from a PROXY header
	ttl    int            // what may be announced, plus one
	helo   string         // SMTP: the name the client gave

	commands int
	failures int

	mu      sync.Mutex
	source  *leg
	busy    bool // signing in or joined: not to be interrupted
	leaving bool // the proxy closes
	aborted bool
}

// A dialogue is what one protocol says to the client and to the source.
type dialogue interface {
	// talk speaks with the client until its credentials are complete. An error
	// says why there are none; errOver, that the client knows already.
	talk() (credentials, error)
	// prepare speaks with the source up to where credentials come next:
	// greeting, STARTTLS and announcement. An error says that they must not.
	prepare(src *source) error
	// present hands over the credentials and returns the reply, whole lines.
	present(src *source, c credentials) (reply string, accepted bool, err error)
	// unavailable is the protocol's temporary failure.
	unavailable() string
	// hidden replaces a reply that refused the credentials.
	hidden(reply string) string
	// goodbye ends the dialogue from our side.
	goodbye(why string) string
}

var (
	// errOver says that the dialogue has ended and nothing is left to say.
	errOver = errors.New("over")
	// errPlain says that credentials would have come in clear text.
	errPlain = errors.New("clear text")
)

func (s *session) log(level int, format string, args ...any) {
	if s.p.opt.Log == nil || level > s.p.level {
		return
	}
	via := ""
	if s.header {
		via = fmt.Sprintf(" via=%s", s.via)
	}
	s.p.log(level, "session=%s listener=%s protocol=%s peer=%s%s: %s", s.id, s.ln.Name, s.ln.Protocol, s.peer, via, fmt.Sprintf(format, args...))
}

// serve runs the session to its end.
func (s *session) serve() {
	s.preauthDeadline()
	if err := s.inbound(); err != nil {
		s.log(levelWarn, "closed: %v", err)
		return
	}
	k := pair{s.peer, s.local}
	if !s.p.hold(k, s.header) {
		s.log(levelError, "closed: routing loop: %s announced a session that is one of our own; look for a destination that leads back here", s.via)
		return
	}
	defer s.p.release(k)
	if s.ln.TLS == Implicit {
		if err := s.client.server(s.p.certs); err != nil {
			s.log(levelInfo, "closed: client: %v", err)
			return
		}
	}
	var d dialogue
	switch s.ln.Protocol {
	case IMAP:
		d = &imap{s: s}
	case POP3:
		d = &pop3{s: s}
	case ManageSieve:
		d = &managesieve{s: s}
	case Submission:
		d = &submission{s: s}
	default:
		s.passThrough()
		return
	}
	c, err := d.talk()
	if err == nil {
		s.signIn(d, c)
		return
	}
	s.mu.Lock()
	leaving := s.leaving
	s.mu.Unlock()
	switch {
	case errors.Is(err, errOver):
	case leaving:
		s.client.say(d.goodbye("closing"))
		s.log(levelInfo, "closed: the proxy ends")
	case errors.Is(err, proto.ErrTooLong):
		s.client.say(d.goodbye("too long"))
		s.log(levelWarn, "closed: the client sent more than is taken")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		s.log(levelDebug, "the client left")
		return
	default:
		s.log(levelInfo, "closed: no credentials: %v", err)
		return
	}
	s.client.finish()
}

// preauthDeadline gives the client the rest of its time, unless the proxy is
// closing and it has not signed in.
func (s *session) preauthDeadline() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client.raw.SetDeadline(time.Now().Add(s.ln.PreauthTimeout))
	if s.leaving {
		s.client.raw.SetReadDeadline(time.Unix(1, 0))
	}
}

// interrupt ends the session if its client has not signed in.
func (s *session) interrupt() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.leaving = true
	if !s.busy {
		s.client.raw.SetReadDeadline(time.Unix(1, 0))
	}
}

// abort ends the session wherever it is.
func (s *session) abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aborted = true
	s.client.raw.Close()
	if s.source != nil {
		s.source.raw.Close()
	}
}

// begin ends the time of waiting for the client: from here on the session is
// let go on when the proxy closes.
func (s *session) begin(limit time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = true
	s.client.raw.SetDeadline(limit)
}

// adopt takes the connection to the source into the session.
func (s *session) adopt(l *leg) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborted {
		l.raw.Close()
		return context.Canceled
	}
	s.source = l
	return nil
}

func (s *session) close() {
	s.client.raw.Close()
	if s.source != nil {
		s.source.raw.Close()
	}
}

// turn counts a command of the client.
func (s *session) turn() error {
	if s.commands++; s.commands > maxCommands {
		return proto.ErrTooLong
	}
	return nil
}

// failed counts a failed attempt to sign in and says whether it was the last.
func (s *session) failed(why string) bool {
	s.failures++
	s.log(levelDebug, "attempt %d failed: %s", s.failures, why)
	return s.failures >= s.ln.MaxAuthAttempts
}

func (s *session) caps() Capabilities { return s.p.cfg.Capabilities[s.ln.Protocol] }

// open says whether credentials may come now.
func (s *session) open() bool { return s.client.secure || s.caps().AllowCleartext }

// upgradable says whether STARTTLS is offered now.
func (s *session) upgradable() bool { return s.ln.TLS == STARTTLS && !s.client.secure }

// startTLS upgrades the client's connection after the reply that allows it.
func (s *session) startTLS(reply string) error {
	if n := s.client.residue(); n > 0 {
		s.log(levelWarn, "%d octets that came in clear text after STARTTLS were thrown away", n)
	}
	if err := s.client.say(reply); err != nil {
		return err
	}
	return s.client.server(s.p.certs)
}

// offered lists the mechanisms that the client may use now.
func (s *session) offered() []string {
	if !s.open() {
		return nil
	}
	return s.caps().SASL
}

func (s *session) offers(mechanism string) bool {
	for _, m := range s.caps().SASL {
		if m == mechanism {
			return true
		}
	}
	return false
}

// An exchange asks the client for one SASL response: challenge is text, to be
// encoded, and what comes back is the client's line in base64. It returns
// errAborted when the client gives up with "*".
type exchange func(challenge string) (string, error)

var errAborted = errors.New("aborted")

// asks is the exchange of protocols in which a challenge is a line after a
// prefix, and a response is a line.
func (s *session) asks(prefix string) exchange {
	return func(challenge string) (string, error) {
		if err := s.client.say(prefix + base64Of(challenge) + "\r\n"); err != nil {
			return "", err
		}
		line, err := s.client.line()
		if err == nil && line == "*" {
			err = errAborted
		}
		return line, err
	}
}

// authenticate runs a mechanism. initial is nil when the client sent no
// initial response.
func (s *session) authenticate(mechanism string, initial *string, ask exchange) (credentials, error) {
	if mechanism == "LOGIN" {
		return s.authLogin(initial, ask)
	}
	if initial == nil {
		line, err := ask("")
		if err != nil {
			return credentials{}, err
		}
		initial = &line
	}
	response, err := decodeResponse(*initial)
	if err != nil {
		return credentials{}, err
	}
	return sasl(mechanism, response, s.p.cfg.JWTClaim)
}

// authLogin asks for a name and a password (draft-murchison-sasl-login) and
// makes PLAIN of them.
func (s *session) authLogin(initial *string, ask exchange) (credentials, error) {
	if initial == nil || *initial == "=" || *initial == "" {
		line, err := ask("Username:")
		if err != nil {
			return credentials{}, err
		}
		initial = &line
	}
	user, err := decodeResponse(*initial)
	if err != nil {
		return credentials{}, err
	}
	line, err := ask("Password:")
	if err != nil {
		return credentials{}, err
	}
	pass, err := decodeResponse(line)
	if err != nil {
		return credentials{}, err
	}
	return password(string(user), string(pass))
}

// saslFault says whether an error is the client's fault in an exchange, rather
// than the connection's, and in which words.
func saslFault(err error) (why string, ok bool) {
	switch {
	case errors.Is(err, errAborted):
		return "authentication aborted", true
	case errors.Is(err, errBase64):
		return "invalid base64", true
	case errors.Is(err, errCredentials):
		return "malformed credentials", true
	}
	return "", false
}

// signIn takes the credentials to the account's source and joins the two
// connections if they are good.
func (s *session) signIn(d dialogue, c credentials) {
	limit := time.Now().Add(s.p.cfg.Server.BackendTimeout)
	s.begin(limit.Add(lingerTime))
	ctx, cancel := context.WithDeadline(s.ctx, limit)
	defer cancel()
	src, reply, accepted, err := s.attempt(ctx, d, c)
	if err != nil {
		s.log(levelError, "user=%q: backend unavailable: %v", shown(c.account), err)
		s.closeSource()
		s.client.say(d.unavailable())
		s.client.finish()
		return
	}
	if !accepted {
		s.failed("refused by the destination")
		s.log(levelInfo, "user=%q destination=%s: the credentials were refused", shown(c.account), src.dest.Name)
		if src.dest.HideAuthErrors {
			reply = d.hidden(reply)
		}
		if f := s.p.opt.JoinsRefused; f != nil && f(src.dest.Name) {
			s.client.say(reply)
			s.join(src)
			return
		}
		// The source may still listen to whoever speaks on this connection,
		// and trusts it: nothing of the client's must follow.
		s.closeSource()
		s.client.say(reply)
		s.client.finish()
		return
	}
	s.log(levelInfo, "user=%q destination=%s (%s): signed in", shown(c.account), src.dest.Name, src.addr)
	if err := s.client.say(reply); err != nil {
		s.log(levelInfo, "the client left: %v", err)
		return
	}
	s.join(src)
}

// attempt presents the credentials to the account's source.
func (s *session) attempt(ctx context.Context, d dialogue, c credentials) (src *source, reply string, accepted bool, err error) {
	leave, err := s.p.enter(s, string(s.ln.Protocol)+" "+c.account)
	if err != nil {
		return nil, "", false, err
	}
	defer leave()
	if src, err = s.reach(ctx, d, c.account); err != nil {
		return nil, "", false, err
	}
	reply, accepted, err = d.present(src, c)
	return src, reply, accepted, err
}

// join splices the session's two legs until it is over.
func (s *session) join(src *source) {
	s.client.raw.SetDeadline(time.Time{})
	src.raw.SetDeadline(time.Time{})
	up, down, silent := splice(s.client, src.leg, s.p.cfg.Server.BridgeIdle, &s.p.buffers)
	why := "over"
	if silent {
		why = "closed: nothing moved for " + s.p.cfg.Server.BridgeIdle.String()
	}
	s.log(levelInfo, "%s: %d octets to %s, %d to the client", why, up, src.dest.Name, down)
}

func (s *session) closeSource() {
	if s.source != nil {
		s.source.raw.Close()
	}
}

// shown is a login name for the log.
func shown(account string) string {
	if len(account) > 200 {
		return account[:200]
	}
	return account
}

// announcement is what a destination is told about the client.
func (s *session) announcement() proto.Announcement {
	a := proto.Announcement{Client: s.peer, Dest: s.local, Session: s.id, TTL: s.ttl - 1, Transport: "insecure"}
	if s.client.secure {
		a.Transport = "TLS"
	}
	if s.ln.Protocol == Submission {
		a.HELO, a.Proto = s.helo, "ESMTP"
	}
	return a
}

// hops takes over the time to live that another proxy announced.
func (s *session) hops(value string) {
	if !s.p.announces(s.ln, s.via.Addr()) {
		return
	}
	n := 0
	for _, c := range []byte(value) {
		if c < '0' || c > '9' || n > 255 {
			return
		}
		n = n*10 + int(c-'0')
	}
	if value != "" && n < s.ttl {
		s.ttl = n
	}
}

// passThrough hands the connection to the pass-through destination as it is.
func (s *session) passThrough() {
	limit := time.Now().Add(s.p.cfg.Server.BackendTimeout)
	s.begin(limit.Add(lingerTime))
	ctx, cancel := context.WithDeadline(s.ctx, limit)
	defer cancel()
	leave, err := s.p.enter(s, string(SMTP))
	var src *source
	if err == nil {
		defer leave()
		src, err = s.connect(ctx, s.p.pass)
	}
	if err != nil {
		s.log(levelError, "backend unavailable: %v", err)
		s.client.say("421 4.3.0 backend unavailable\r\n")
		s.client.finish()
		return
	}
	s.log(levelInfo, "destination=%s (%s): passed through", src.dest.Name, src.addr)
	s.join(src)
}

// isWord says whether two words of a protocol are the same.
func isWord(a, b string) bool { return strings.EqualFold(a, b) }
