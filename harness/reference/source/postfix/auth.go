package postfix

import (
	"encoding/base64"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/dovecot"
)

// mechanisms are what the auth service offers.
func (in *session) mechanisms() []string { return in.srv.dovecot.Config().Mechanisms() }

// saslActivate asks the auth service for its mechanisms. The process dies if
// there is no such service.
func (in *session) saslActivate() bool {
	why := ""
	if !in.srv.dovecot.Config().HasAuthSocket(in.set.saslSocket) {
		why = "no SASL authentication mechanisms"
		in.log("warning: SASL: Connect to ", in.set.saslSocket, " failed: No such file or directory")
	} else if len(in.mechanisms()) == 0 {
		why = "no SASL authentication mechanisms"
	}
	if why != "" {
		in.log("fatal: ", why)
		in.srv.exited(in.pid)
		in.dead = true
		return false
	}
	in.saslActive = true
	in.saslReply, in.saslLastUser = "", ""
	return true
}

// saslReset forgets who had signed in.
func (in *session) saslReset() {
	in.saslActive = false
	in.saslUser, in.saslMethod, in.saslSender = "", "", ""
}

// signedIn says whether the client counts as one that has signed in.
func (in *session) signedIn() bool {
	if in.srv.bugs.Has(bug.XCLIENTAuthenticates) && in.claimed.Load() != nil && in.xclientUsed {
		return true
	}
	if in.saslMethod == "" || strings.EqualFold(in.saslMethod, "anonymous") {
		return false
	}
	// 3.7 honours nobody where SASL is off, not even XCLIENT's LOGIN.
	return in.saslActive || in.srv.c.release == Trixie
}

func (in *session) authCmd(args []token) outcome {
	set := in.set
	if n, over := in.limited(set.authRate, func(e *events) *int { return &e.auths }); over {
		in.log("warning: AUTH command rate limit exceeded: ", itoa(n), " from ", in.client(), " for service ", set.name)
		return in.fail("450 4.7.1 Error: too many AUTH commands from ", in.addr)
	}
	switch {
	case set.heloRequired && !in.hasHelo:
		return in.fail("503 5.5.1 Error: send HELO/EHLO first")
	case !in.saslActive || set.discard["AUTH"]:
		return in.fail("503 5.5.1 Error: authentication not enabled")
	case in.inMail:
		return in.fail("503 5.5.1 Error: MAIL transaction in progress")
	case in.milterRefuses != "":
		return in.fail(in.milterAnswer())
	case set.authOnly && !in.c.Secure():
		return in.fail("504 5.5.4 Encryption required for requested authentication mechanism")
	case in.saslUser != "":
		return in.fail("503 5.5.1 Error: already authenticated")
	case len(args) < 2 || len(args) > 3:
		return in.fail("501 5.5.4 Syntax: AUTH mechanism")
	}
	method := args[1].text
	response, given := "", len(args) == 3
	if given {
		response = args[2].text
	}
	known := slices.ContainsFunc(in.mechanisms(), func(m string) bool { return strings.EqualFold(m, method) })
	switch {
	case !known:
		why := "Invalid authentication mechanism"
		if in.srv.c.release == Trixie {
			why += ": '" + printable(method, '?') + "'"
		}
		return in.authFailed(method, why, "")
	case given && !isBase64(response):
		return in.authFailed(method, "Invalid base64 data in initial response", "")
	case given && in.srv.bugs.Has(bug.SASLIRRefused) && strings.EqualFold(method, "PLAIN"):
		return in.fail("501 5.5.4 Syntax: AUTH mechanism")
	}
	switch strings.ToUpper(method) {
	case "PLAIN":
		return in.authPlain(method, response, given)
	case "LOGIN":
		return in.authLogin(method, response, given)
	}
	// The auth service offers others, but nobody here speaks them.
	return in.authFailed(method, "", "")
}

// challenge sends one and reads the response.
func (in *session) challenge(method, text string) (string, outcome) {
	in.reply("334 ", text)
	if err := in.read(in.set.saslLimit); err != nil {
		return "", gone
	}
	switch {
	case in.line == "*":
		in.log("warning: ", in.client(), ": SASL ", clip(method, 100), " authentication aborted")
		return "", in.fail("501 5.7.0 Authentication aborted")
	case len(in.line) >= in.set.saslLimit:
		return "", in.fail("500 5.5.6 SASL response limit exceeded")
	case !isBase64(in.line):
		return "", in.authFailed(method, "Invalid base64 data in continued response", in.saslLastUser)
	}
	return in.line, done
}

func (in *session) authPlain(method, response string, given bool) outcome {
	if !given {
		var o outcome
		if response, o = in.challenge(method, ""); o != done {
			return o
		}
	}
	raw, ok := decode64(response)
	authzid, user, password, ok2 := dovecot.Plain(raw)
	if !ok || !ok2 {
		// The auth service knows nothing to look up.
		in.c.Wait(in.srv.dovecot.Config().FailureDelay())
		return in.authFailed(method, "", "")
	}
	return in.authDecide(method, authzid, user, password)
}

func (in *session) authLogin(method, response string, given bool) outcome {
	var o outcome
	if !given {
		if response, o = in.challenge(method, "VXNlcm5hbWU6"); o != done {
			return o
		}
	}
	user, ok := decode64(response)
	if !ok {
		return in.authFailed(method, "", "")
	}
	response, o = in.challenge(method, "UGFzc3dvcmQ6")
	if o != done {
		return o
	}
	password, ok := decode64(response)
	if !ok {
		return in.authFailed(method, "", "")
	}
	return in.authDecide(method, "", string(user), string(password))
}

func (in *session) authDecide(method, authzid, user, password string) outcome {
	bugs := in.srv.bugs
	rip := in.ip
	if bugs.Has(bug.FailedLoginLoggedWithProxy) || bugs.Has(bug.LogsProxyAddress) {
		rip = in.c.Peer.Addr()
	}
	ans := in.srv.dovecot.Authenticate(dovecot.Request{
		Mechanism: strings.ToUpper(method), Authzid: authzid, User: user, Password: password, RemoteIP: rip,
		At: in.srv.now().Add(in.c.Passed()),
	})
	if in.c.Wait(ans.Before) != nil {
		return gone
	}
	switch {
	case ans.OK:
		in.reply("235 2.7.0 Authentication successful")
		in.saslUser, in.saslMethod = printable(ans.User, '?'), printable(method, '?')
		return done
	case bugs.Has(bug.ClosesAfterFailedLogin):
		return silence
	case ans.Temporary:
		in.authWarning(method, "Temporary authentication failure", ans.User)
		return in.fail("454 4.7.0 Temporary authentication failure: (reason unavailable)")
	}
	return in.authFailed(method, "", ans.User)
}

func (in *session) authWarning(method, reason, user string) {
	if user == "" {
		user = "(unavailable)"
	}
	who := in.client()
	if in.srv.bugs.Has(bug.FailedLoginLoggedWithProxy) {
		who = in.peer
	}
	in.log("warning: ", who, ": SASL ", clip(method, 100), " authentication failed: ", reason, ", sasl_username=", clip(printable(user, '?'), 100))
}

// authFailed refuses credentials.
func (in *session) authFailed(method, reason, user string) outcome {
	if reason == "" {
		reason = "(reason unavailable)"
	}
	in.saslLastUser = user
	in.authWarning(method, reason, user)
	return in.fail("535 5.7.8 Error: authentication failed: ", reason)
}

func isBase64(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !(c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '+' || c == '/' || c == '=') {
			return false
		}
	}
	return true
}

func decode64(s string) ([]byte, bool) {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		b, err = base64.RawStdEncoding.DecodeString(s)
	}
	return b, err == nil
}
