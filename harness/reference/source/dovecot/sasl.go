package dovecot

import (
	"errors"
	"strings"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/link"
)

// errAborted says that the client broke the exchange off.
var errAborted = errors.New("aborted by the client")

// sasl signs in with PLAIN or LOGIN. ask sends a challenge (base64, or empty)
// and returns the client's response; it may return errAborted.
func (in *session) sasl(mech, initial string, hasInitial bool, ask func(challenge string) (string, error)) (outcome, string) {
	if out, text, ok := in.begin(mech); !ok {
		return out, text
	}
	if hasInitial && in.srv.bugs.Has(bug.SASLIRRefused) {
		in.last = failBase64
		return outBase64, "Initial response is not supported."
	}
	mech = strings.ToUpper(mech)
	next := func(challenge string) ([]byte, outcome, string, bool) {
		response, first := initial, hasInitial
		if !first {
			var err error
			response, err = ask(challenge)
			if response == "*" {
				err = errAborted
			}
			switch {
			case errors.Is(err, errAborted):
				in.aborted = true
				if in.srv.c.series == "2.4" {
					in.failedBefore("Aborted")
				}
				return nil, outAborted, "Authentication aborted by client.", false
			case errors.Is(err, link.ErrTooLong):
				in.end("Authentication response too large")
				return nil, outGone, "", false
			case err != nil:
				in.unfinished = true
				in.end(disconnectReason(err))
				return nil, outGone, "", false
			}
		}
		if hasInitial && response == "=" {
			response = ""
		}
		hasInitial = false
		b, ok := decode64(response)
		switch {
		case ok:
			return b, 0, "", true
		case !first: // the login process sees it
			in.unfinished = in.srv.c.series == "2.4"
			return nil, outMechanism, in.failedBefore("Invalid base64 in response"), false
		}
		in.last = failBase64
		const why = "Invalid base64 data in initial response"
		in.srv.authService(in.set, Request{Mechanism: mech, RemoteIP: in.authIP(), Session: in.sessionID()}, why)
		return nil, outBase64, why, false
	}
	if mech == "LOGIN" {
		user, out, text, ok := next("VXNlcm5hbWU6")
		if !ok {
			return out, text
		}
		password, out, text, ok := next("UGFzc3dvcmQ6")
		if !ok {
			return out, text
		}
		return in.verify(mech, "", string(user), string(password))
	}
	response, out, text, ok := next("")
	if !ok {
		return out, text
	}
	authzid, user, password, ok := Plain(response)
	if !ok {
		if in.set.verbose {
			in.srv.authLine(in.set, Request{Mechanism: mech, RemoteIP: in.authIP(), Session: in.sessionID()}, "", nil, "invalid input")
		}
		return outFailed, "Authentication failed."
	}
	return in.verify(mech, authzid, user, password)
}
