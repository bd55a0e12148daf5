package postfix

import (
	"strconv"
	"strings"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/link"
)

// helloName takes the name of a HELO or EHLO command, however many words it is.
func helloName(args []token) string {
	if len(args) == 2 {
		return args[1].text
	}
	parts := make([]string, 0, len(args)-1)
	for _, a := range args[1:] {
		parts = append(parts, a.text)
	}
	return strings.Join(parts, " ")
}

// internal says whether a name is what a rule about HELO names may not like:
// an address literal, without a dot, or of an internal network.
func internal(name string) bool {
	return strings.HasPrefix(name, "[") || !strings.Contains(strings.Trim(name, "."), ".") || strings.HasSuffix(name, ".internal")
}

func unqualified(name string) string {
	return "504 5.5.2 <" + name + ">: Helo command rejected: need fully-qualified hostname"
}

// greetedAs begins a session anew with a name, or says why not.
func (in *session) greetedAs(args []token) (refused string) {
	name := helloName(args)
	if !in.set.delayReject {
		if r := in.checkHELO(name); r != "" {
			return r
		}
	}
	if in.srv.bugs.Has(bug.AddressLiteralRefused) && internal(name) {
		return unqualified(name)
	}
	in.resetMail()
	in.resetRecipients()
	in.setHELO(neuter(printable(name, '?')))
	return ""
}

func (in *session) setHELO(name string) {
	in.hasHelo, in.helo = true, name
	if in.firstHelo == "" {
		in.firstHelo = name
	}
	if in.srv.bugs.Has(bug.HELOLost) {
		in.helo = in.firstHelo
	}
}

func (in *session) heloCmd(args []token) outcome {
	if len(args) < 2 {
		return in.fail("501 Syntax: HELO hostname")
	}
	if r := in.greetedAs(args); r != "" {
		return in.fail(r)
	}
	in.reply("250 ", in.set.myhostname)
	return done
}

const (
	xclientLine  = "XCLIENT NAME ADDR PROTO HELO REVERSE_NAME PORT LOGIN DESTADDR DESTPORT"
	xforwardLine = "XFORWARD NAME ADDR PROTO HELO SOURCE PORT IDENT"
)

func (in *session) ehloCmd(args []token) outcome {
	if len(args) < 2 {
		return in.fail("501 Syntax: EHLO hostname")
	}
	if r := in.greetedAs(args); r != "" {
		return in.fail(r)
	}
	in.proto = "ESMTP"
	set := in.set
	var buf [16]string
	lines := append(buf[:0], set.myhostname)
	offer := func(keyword, line string, ok bool) {
		if ok && !set.discard[keyword] {
			lines = append(lines, line)
		}
	}
	size := "SIZE"
	if set.sizeLimit > 0 {
		size += " " + strconv.Itoa(set.sizeLimit)
	}
	offer("PIPELINING", "PIPELINING", true)
	offer("SIZE", size, true)
	offer("VRFY", "VRFY", set.vrfy)
	offer("ETRN", "ETRN", true)
	offer("STARTTLS", "STARTTLS", set.tlsOffered && !in.c.Secure())
	if in.saslActive {
		offer("AUTH", "AUTH "+strings.Join(in.mechanisms(), " "), true)
	}
	if !set.discard["XCLIENT"] && in.broken(set.xclient) {
		in.log("warning: don't know if EHLO feature XCLIENT should be announced to ", in.client())
		return in.dataError()
	}
	offer("XCLIENT", xclientLine, in.xclientOK || in.srv.bugs.Has(bug.AdvertisesXCLIENTToNeighbour))
	if !set.discard["XFORWARD"] && in.broken(set.xforward) {
		in.log("warning: don't know if EHLO feature XFORWARD should be announced to ", in.client())
		return in.dataError()
	}
	offer("XFORWARD", xforwardLine, in.xforwardOK)
	offer("ENHANCEDSTATUSCODES", "ENHANCEDSTATUSCODES", true)
	offer("8BITMIME", "8BITMIME", true)
	offer("DSN", "DSN", true)
	offer("SMTPUTF8", "SMTPUTF8", set.utf8)
	offer("CHUNKING", "CHUNKING", true)
	for i, l := range lines {
		if i < len(lines)-1 {
			in.reply("250-", l)
		} else {
			in.reply("250 ", l)
		}
	}
	return done
}

// dataError ends the session because a table or a list cannot be read.
func (in *session) dataError() outcome {
	in.log(in.queueIDOr(), ": reject: ", in.where, " from ", in.client(), ": 421 4.3.0 ", in.set.myhostname, " Server local data error")
	in.reply("421 4.3.0 ", in.set.myhostname, " Server local data error")
	return gone
}

func (in *session) noopCmd([]token) outcome {
	in.reply("250 2.0.0 Ok")
	return done
}

func (in *session) quitCmd([]token) outcome {
	in.reply("221 2.0.0 Bye")
	return done
}

func (in *session) helpCmd([]token) outcome {
	in.reply("214 2.0.0 Commands: AUTH BDAT DATA EHLO ETRN HELO HELP MAIL NOOP QUIT RCPT RSET STARTTLS VRFY XCLIENT XFORWARD")
	return done
}

func (in *session) etrnCmd(args []token) outcome {
	if !in.hasHelo && in.set.heloRequired {
		return in.fail("503 Error: send HELO/EHLO first")
	}
	if in.inMail {
		return in.fail("503 Error: MAIL transaction in progress")
	}
	if len(args) != 2 {
		return in.fail("500 Syntax: ETRN domain")
	}
	name := strings.TrimPrefix(strings.TrimPrefix(args[1].text, "@"), "#")
	if !validHostname(name) {
		return in.fail("501 Error: invalid parameter syntax")
	}
	// fast_flush_domains is $relay_domains.
	if ok, _ := in.set.relayDomains.match(name); !ok {
		return in.fail("459 <" + args[1].text + ">: service unavailable")
	}
	in.reply("250 Queuing started")
	return done
}

func (in *session) starttlsCmd(args []token) outcome {
	switch {
	case len(args) != 1:
		return in.fail("501 5.5.4 Syntax: STARTTLS")
	case in.milterRefuses != "":
		return in.fail(in.milterAnswer())
	case in.c.Secure():
		return in.fail("554 5.5.1 Error: TLS already active")
	case !in.set.tlsOffered || in.set.discard["STARTTLS"]:
		return in.fail("502 5.5.1 Error: command not implemented")
	}
	in.reply("220 2.0.0 Ready to start TLS")
	in.hasHelo, in.helo = false, ""
	in.resetMail()
	in.resetRecipients()
	if !in.startTLS(link.Discard) || in.srv.bugs.Has(bug.STARTTLSThenCloses) {
		return gone
	}
	return done
}
