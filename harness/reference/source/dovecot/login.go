package dovecot

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/link"
)

// Bounds of the login processes, in octets.
const (
	maxInput     = 1024 // one token of a command, or one line
	maxAuth      = 8192 // one SASL response
	maxSessionID = 64
	maxBad       = 3 // commands that are none
)

// session is one connection to a login process.
type session struct {
	srv    *Server
	set    *settings
	listen *listener
	c      *link.Conn
	now    func() time.Time

	// What is recorded, as it was announced; the connection's own at first.
	ip, lip     netip.Addr
	port, lport uint16
	id          string // the session id; made when it is first asked for
	idSet       bool
	// claimed is the announced address, for whoever mixes sessions up.
	claimed atomic.Pointer[netip.Addr]

	real, host netip.AddrPort // with haproxy: still the connection's
	trusted    bool           // may announce
	believed   bool           // what it announces is recorded
	secured    bool
	proxyTLS   bool // a PROXY header said that the client used TLS

	user       string
	mech       string
	mailPID    int
	attempts   int
	successes  int
	bad        int
	last       failCode
	firstTry   time.Time
	created    time.Time
	aborted    bool // the client broke the SASL exchange off
	unfinished bool // the client left in the middle of it
	tlsError   string
	junk       bool // a malformed XCLIENT came
}

// failCode is why the last try to sign in failed, where that is special.
type failCode int

const (
	failNone failCode = iota
	failTemporary
	failBase64
	failMechanism
	failCleartext
)

func newSession(s *Server, l *listener, c *link.Conn) *session {
	in := &session{srv: s, set: s.c.protocols[l.protocol], listen: l, c: c, now: s.now}
	in.real, in.host = c.Peer, c.Host
	in.ip, in.port = c.Peer.Addr(), c.Peer.Port()
	in.lip, in.lport = c.Host.Addr(), c.Host.Port()
	in.created = s.now()
	return in
}

// alloc decides once, when the session begins, whether the peer is trusted.
// After a PROXY header the peer is whom the header named.
func (in *session) alloc() {
	set := in.set
	in.trusted = contains(set.trusted, in.ip)
	in.believed = in.trusted || in.srv.bugs.Has(bug.LogsAnnouncedFromAnyone)
	own := in.real.Addr() == in.host.Addr()
	haproxied := in.listen.haproxy
	if in.srv.c.series == "2.3" {
		switch {
		case haproxied:
			in.secured = in.proxyTLS || in.trusted
		default:
			in.secured = in.trusted || own
		}
		return
	}
	switch {
	case haproxied:
		in.secured = in.proxyTLS || in.ip == in.lip || set.ssl != "required"
	case own:
		in.secured = true
	default:
		in.secured = in.trusted && set.ssl != "required"
	}
}

// offersXCLIENT says whether XCLIENT is named in greetings.
func (in *session) offersXCLIENT() bool {
	return in.trusted || in.srv.bugs.Has(bug.AdvertisesXCLIENTToNeighbour)
}

// offersTLS says whether STARTTLS is to be had.
func (in *session) offersTLS() bool {
	if in.set.ssl == "no" || in.c.Secure() {
		return false
	}
	return in.srv.c.series == "2.3" || !in.proxyTLS
}

// handshake makes the session a TLS session, or logs why not and says false.
func (in *session) handshake(residue link.Residue) bool {
	if err := in.c.StartTLS(in.srv.tls[in.listen.protocol], residue); err != nil {
		in.tlsError = "TLS handshaking: Connection closed"
		if !isReset(err) && !isEOF(err) {
			in.tlsError = "TLS handshaking: SSL_accept() failed: " + strings.TrimPrefix(errors.Unwrap(err).Error(), "tls: ")
		}
		in.end(disconnectReason(err))
		return false
	}
	in.secured = true
	return true
}

// startTLS brings a session inside TLS that began in clear text.
func (in *session) startTLS() bool {
	return in.handshake(link.Feed) && !in.srv.bugs.Has(bug.STARTTLSThenCloses)
}

// spoiled says whether an XCLIENT is refused, of which is known whether it is
// well formed.
func (in *session) spoiled(good bool) bool {
	in.junk = in.junk || !good
	return !good || in.junk && in.srv.bugs.Has(bug.XCLIENTBadAddressSpoils)
}

// sessionID returns the session's id. Dovecot makes one of the time, and of
// the port and address that it has recorded by then.
func (in *session) sessionID() string {
	if !in.idSet {
		in.idSet = true
		in.id = makeSessionID(in.now(), in.ip, in.port)
	}
	return in.id
}

func makeSessionID(t time.Time, ip netip.Addr, port uint16) string {
	var b [24]byte
	binary.LittleEndian.PutUint64(b[:], uint64(t.UnixMicro()))
	binary.LittleEndian.PutUint16(b[6:], port)
	n := 8 + copy(b[8:], ip.AsSlice())
	return base64.RawStdEncoding.EncodeToString(b[:n])
}

// announce records what a trusted peer said of its client. The zero values
// were not said.
func (in *session) announce(a announced) {
	if !in.believed {
		return
	}
	bugs := in.srv.bugs
	if a.ip.IsValid() {
		in.ip = a.ip
		if bugs.Has(bug.IPv4RecordedAsMapped) && in.ip.Is4() {
			in.ip = netip.AddrFrom16(in.ip.As16())
		}
		ip := in.ip
		in.claimed.Store(&ip)
	}
	if a.port != 0 && !bugs.Has(bug.DropsPort) {
		in.port = a.port
	}
	if a.lip.IsValid() && !bugs.Has(bug.LipNotHonoured) {
		in.lip = a.lip
	}
	if a.lport != 0 && !bugs.Has(bug.LipNotHonoured) {
		in.lport = a.lport
	}
	if a.hasSession && len(a.session) <= maxSessionID {
		in.id, in.idSet = a.session, true
	}
}

// announced is what ID or XCLIENT said.
type announced struct {
	ip, lip     netip.Addr
	port, lport uint16
	session     string
	hasSession  bool
}

// parseIP reads an address as Dovecot does: IPv6 may stand in brackets.
func parseIP(s string) (netip.Addr, bool) {
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		s = s[1 : len(s)-1]
	}
	a, err := netip.ParseAddr(s)
	return a, err == nil && a.Zone() == ""
}

func parsePort(s string) (uint16, bool) {
	n, err := strconv.ParseUint(s, 10, 16)
	return uint16(n), err == nil && n != 0
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// process is the name of the login process.
func (in *session) process() string { return loginService(in.listen.protocol) }

// elements writes the session's login_log_format_elements after a message.
func (in *session) logAs(severity, message string) {
	sev := info
	switch severity {
	case "error":
		sev = failure
	case "warning":
		sev = warning
	}
	buf := make([]byte, 0, 256)
	for _, e := range in.set.elements {
		mark := len(buf)
		if mark > 0 {
			buf = append(buf, ", "...)
		}
		var empty bool
		if buf, empty = e.append(buf, in.value); empty && !e.user {
			buf = buf[:mark]
		}
	}
	line, _ := in.set.logFormat.append(make([]byte, 0, 256), func(name string) string {
		switch name {
		case "message":
			return message
		case "elements":
			return string(buf)
		}
		return ""
	})
	in.srv.write(in.process(), sev, string(line))
}

// value is a variable of login_log_format_elements.
func (in *session) value(name string) string {
	switch name {
	case "user", "original_user", "auth_user":
		return sanitize(in.user, 80)
	case "username":
		u, _, _ := strings.Cut(in.user, "@")
		return sanitize(u, 80)
	case "domain":
		_, d, _ := strings.Cut(in.user, "@")
		return sanitize(d, 80)
	case "protocol", "service":
		return in.listen.protocol
	case "mechanism":
		return sanitize(in.mech, 64)
	case "remote_ip":
		return in.recordedIP().String()
	case "remote_port":
		if in.srv.bugs.Has(bug.LogsProxyAddress) {
			return itoa(int(in.real.Port()))
		}
		return itoa(int(in.port))
	case "local_ip":
		return in.lip.String()
	case "local_port":
		return itoa(int(in.lport))
	case "mail_pid":
		if in.mailPID == 0 {
			return ""
		}
		return itoa(in.mailPID)
	case "secured":
		return in.security()
	case "ssl_security":
		if in.c.Secure() {
			return tlsSecurity(in.c.TLS())
		}
	case "session":
		return in.sessionID()
	case "real_local_ip":
		return in.host.Addr().String()
	case "real_local_port":
		return itoa(int(in.host.Port()))
	case "real_remote_ip":
		if in.srv.c.series == "2.4" {
			return in.host.Addr().String() // 2.4.1 prints the wrong one
		}
		return in.real.Addr().String()
	case "real_remote_port":
		return itoa(int(in.real.Port()))
	case "listener":
		return in.listen.name
	case "pid":
		return "1"
	}
	return ""
}

// recordedIP is the client's address as the log shows it.
func (in *session) recordedIP() netip.Addr {
	bugs := in.srv.bugs
	if bugs.Has(bug.LogsProxyAddress) {
		return in.real.Addr()
	}
	if bugs.Has(bug.FailedLoginLoggedWithProxy) && in.successes == 0 && in.attempts > 0 {
		return in.real.Addr()
	}
	if bugs.Has(bug.MixesUpSessions) {
		if a, ok := in.srv.other(in); ok {
			return a
		}
	}
	return in.ip
}

func (in *session) security() string {
	switch {
	case in.tlsError != "":
		return in.tlsError
	case in.c.Secure(), in.srv.c.series == "2.4" && in.proxyTLS:
		return "TLS"
	case in.secured:
		return "secured"
	}
	return ""
}

// end logs that the session is over before anybody signed in.
func (in *session) end(reason string) {
	human, code := in.why()
	if in.srv.c.series == "2.4" {
		if human != "" {
			reason += " (" + human + ") (" + code + ")"
		}
		in.logAs("info", "Login aborted: "+reason)
		return
	}
	if human != "" {
		reason += " (" + human + ")"
	}
	in.logAs("info", "Disconnected: "+reason)
}

// seconds is how long ago something was, in whole seconds.
func (in *session) seconds(t time.Time) string {
	if t.IsZero() {
		return "0"
	}
	return itoa(int((in.now().Sub(t) + in.c.Passed()) / time.Second))
}

// why words what the log adds to the end of a session without a login, and
// the code that 2.4 adds to that.
func (in *session) why() (human, code string) {
	v24 := in.srv.c.series == "2.4"
	if in.tlsError != "" && v24 {
		return "disconnected during TLS handshake", "tls_handshake_not_finished"
	}
	if in.attempts == 0 {
		return "no auth attempts in " + in.seconds(in.created) + " secs", "no_auth_attempts"
	}
	waited := in.seconds(in.firstTry)
	tries := itoa(in.attempts)
	if !v24 {
		switch {
		case in.unfinished && in.attempts == 1:
			return "client didn't finish SASL auth, waited " + waited + " secs", ""
		case in.aborted && in.attempts == 1:
			return "aborted authentication", ""
		case in.successes > 0:
			return "internal failure, " + itoa(in.successes) + " successful auths", ""
		}
		switch in.last {
		case failTemporary:
			return "auth service reported temporary failure", ""
		case failBase64:
			return "sent invalid base64 in response", ""
		case failMechanism:
			return "tried to use unsupported auth mechanism", ""
		case failCleartext:
			return "tried to use disallowed plaintext auth", ""
		}
		return "auth failed, " + tries + " attempts in " + waited + " secs", ""
	}
	what := "auth failed"
	code = "auth_failed"
	switch {
	case in.aborted:
		what, code = "auth aborted by client", "auth_aborted_by_client"
	case in.unfinished:
		what, code = "client didn't finish SASL auth", "auth_waiting_client"
	case in.successes > 0:
		what, code = "connection limit reached", "connection_limit"
	case in.last == failTemporary:
		what, code = "auth service reported temporary failure", "temp_fail"
	case in.last == failBase64:
		what, code = "sent invalid base64 in response", "invalid_base64"
	case in.last == failMechanism:
		what, code = "tried to use unsupported auth mechanism", "invalid_mech"
	case in.last == failCleartext:
		what, code = "tried to use disallowed cleartext auth", "cleartext_auth_disabled"
	}
	if in.successes > 0 {
		return what + ", " + itoa(in.successes) + "/" + tries + " successful auths in " + waited + " secs", code
	}
	return what + ", " + tries + " attempts in " + waited + " secs", code
}

// logoutReason is how Dovecot calls the end that the client asked for.
func (in *session) logoutReason() string {
	if in.srv.c.series == "2.4" {
		return "Logged out"
	}
	return "Aborted login by logging out"
}

// mechanisms are those that are offered on the session as it is.
func (in *session) mechanisms() []string {
	if !in.secured && (in.set.ssl == "required" || !in.set.cleartext) {
		return nil // all that are known here send the password as it is
	}
	return in.set.mechanisms
}

// The outcomes of a try to sign in that the protocols word differently.
type outcome int

const (
	outGone       outcome = iota // the connection ended
	outSignedIn                  // the mail service takes over
	outFailed                    // text is the reason
	outTemporary                 // text is the reason
	outLimit                     // too many sessions; the connection is closed
	outTLSNeeded                 // ssl = required
	outCleartext                 // the mechanism sends the password in clear
	outMechanism                 // unknown mechanism
	outBase64                    // no base64
	outAborted                   // the client sent "*"
	outSilentGone                // a bug: closed without a word
)

// cleartextWords is what is said about a password in clear.
func (in *session) cleartextWords() string {
	if in.srv.c.series == "2.4" {
		return "Cleartext authentication disallowed on non-secure (SSL/TLS) connections."
	}
	return "Plaintext authentication disallowed on non-secure (SSL/TLS) connections."
}

// mayUsePassword says whether LOGIN, USER and PASS may be used; if not, it
// logs it and says how it is to be answered.
func (in *session) mayUsePassword() (outcome, bool) {
	if in.secured || in.set.cleartext && in.set.ssl != "required" {
		return 0, true
	}
	if in.set.verbose {
		word := "Plaintext"
		if in.srv.c.series == "2.4" {
			word = "Cleartext"
		}
		in.logAs("info", "Login failed: "+word+" authentication disabled")
	}
	in.attempts++
	if in.set.ssl == "required" {
		return outTLSNeeded, false
	}
	return outCleartext, false
}

// begin begins a SASL exchange. Unless ok, out and text answer it.
func (in *session) begin(mech string) (out outcome, text string, ok bool) {
	mech = strings.ToUpper(mech)
	v24 := in.srv.c.series == "2.4"
	if !in.secured && in.set.ssl == "required" {
		if in.set.verbose {
			in.logAs("info", "Login failed: SSL required for authentication")
		}
		in.attempts++
		if v24 {
			return outTLSNeeded, "Authentication disallowed on non-secure (SSL/TLS) connections.", false
		}
		return outTLSNeeded, "Authentication not allowed until SSL/TLS is enabled.", false
	}
	in.attempts++
	in.aborted, in.unfinished, in.last = false, false, failNone
	if in.firstTry.IsZero() {
		in.firstTry = in.now()
	}
	in.mech = mech
	known := false
	for _, m := range in.set.mechanisms {
		known = known || m == mech
	}
	if !known || mech != "PLAIN" && mech != "LOGIN" {
		in.last = failMechanism
		return outMechanism, in.failedBefore("Unsupported authentication mechanism."), false
	}
	if !in.secured && !in.set.cleartext {
		in.last = failCleartext
		if v24 {
			return outCleartext, in.failedBefore("Cleartext authentication disallowed on non-secure (SSL/TLS) connections."), false
		}
		return outCleartext, in.failedBefore("Plaintext authentication disabled."), false
	}
	return 0, "", true
}

// failedBefore logs a failure that the auth service never saw.
func (in *session) failedBefore(why string) string {
	if in.set.verbose {
		in.logAs("info", "Authenticate "+sanitize(in.mech, 64)+" failed: "+why)
	}
	return why
}

// verify asks the auth service, and signs in.
func (in *session) verify(mech, authzid, user, password string) (outcome, string) {
	ans := in.srv.Authenticate(Request{
		Protocol: in.listen.protocol, Mechanism: mech, Authzid: authzid, User: user, Password: password,
		RemoteIP: in.authIP(), Session: in.sessionID(), At: in.now().Add(in.c.Passed()),
	})
	if err := in.c.Wait(ans.Before); err != nil {
		return outGone, ""
	}
	if ans.User != "" {
		in.user = ans.User
	}
	if !ans.OK {
		if in.srv.bugs.Has(bug.ClosesAfterFailedLogin) {
			return outSilentGone, ""
		}
		if ans.Temporary {
			in.last = failTemporary
			return outTemporary, "Temporary authentication failure. [" + in.srv.host + ":" + in.now().Format("2006-01-02 15:04:05") + "]"
		}
		return outFailed, "Authentication failed."
	}
	in.successes++
	k := in.who()
	if !in.srv.connect(k, in.set.maxUserIP) {
		return outLimit, "Maximum number of connections from user+IP exceeded (mail_max_userip_connections=" + itoa(in.set.maxUserIP) + ")"
	}
	in.mailPID = in.srv.pid()
	if in.srv.c.series == "2.4" {
		in.logAs("info", "Logged in")
	} else {
		in.logAs("info", "Login")
	}
	return outSignedIn, ""
}

// authIP is the address that the auth service is told.
func (in *session) authIP() netip.Addr {
	if in.srv.bugs.Has(bug.FailedLoginLoggedWithProxy) {
		return in.real.Addr()
	}
	return in.recordedIP()
}

func (in *session) who() whoKey {
	return whoKey{in.listen.protocol, in.user, in.ip}
}

// tooMany ends a session that was one too many.
func (in *session) tooMany(text string) {
	if in.srv.c.series == "2.4" {
		in.end(text)
		return
	}
	in.logAs("info", "Disconnected: "+text)
}

// mailLog logs a line of the process that serves the user.
func (in *session) mailLog(service, message string) {
	process := service + "(" + sanitize(in.user, 64) + ")<" + itoa(in.mailPID) + "><" + in.sessionID() + ">"
	in.srv.write(process, info, message)
}

func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

func isEOF(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

func tlsSecurity(s *tls.ConnectionState) string {
	name, bits := link.Cipher(s)
	return link.Protocol(s) + " with cipher " + name + " (" + itoa(bits) + "/" + itoa(bits) + " bits)"
}
