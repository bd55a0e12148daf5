package postfix

import (
	"net/netip"
	"strconv"
	"strings"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
)

// attribute reads one NAME=value of XCLIENT or XFORWARD.
func attribute(word string) (name, value, wrong string) {
	name, raw, ok := strings.Cut(word, "=")
	switch {
	case !ok || raw == "":
		return "", "", "501 5.5.4 Error: attribute=value expected"
	case len(raw) > 255:
		return "", "", "501 5.5.4 Error: attribute value too long"
	}
	value, _ = unxtext(raw)
	return name, printable(value, '?'), ""
}

func unavailable(v string) bool { return strings.EqualFold(v, "[UNAVAILABLE]") }

// peerStatus reads what may stand for a name.
func peerStatus(v string) nameStatus {
	switch {
	case unavailable(v):
		return nameUnknown
	case strings.EqualFold(v, "[TEMPUNAVAIL]"):
		return nameTemporary
	}
	return nameOK
}

// inetOK says whether inet_protocols has the family of an address.
func (s *service) inetOK(a netip.Addr) bool { return a.Is4() && s.inet4 || a.Is6() && s.inet6 }

func goodPort(v string) bool { return allDigits(v) && len(v) <= 5 }

// xclientCmd makes the client another one. Attributes are taken one by one:
// when one is wrong, those before it stay, but the name that the log uses is
// only changed at the end.
func (in *session) xclientCmd(args []token) outcome {
	set, bugs := in.set, in.srv.bugs
	switch {
	case in.inMail:
		return in.fail("503 5.5.1 Error: MAIL transaction in progress")
	case len(args) < 2:
		return in.fail("501 5.5.4 Syntax: XCLIENT attribute=value...")
	case in.broken(set.xclient):
		in.log("warning: don't know if command XCLIENT should be allowed from ", in.client())
		return in.dataError()
	case !in.xclientOK:
		if bugs.Has(bug.LogsAnnouncedFromAnyone) {
			in.believe(args[1:])
		}
		return in.fail("550 5.7.0 Error: insufficient authorization")
	}
	gotHELO, gotProto, gotLogin, renamed := false, false, false, false
	for _, a := range args[1:] {
		name, v, wrong := attribute(a.text)
		if wrong != "" {
			return in.fail(wrong)
		}
		bad := func() outcome {
			return in.fail("501 5.5.4 Bad ", strings.ToUpper(name), " syntax: ", v)
		}
		switch strings.ToUpper(name) {
		case "NAME":
			status := peerStatus(v)
			if status == nameOK && !validHostname(v) {
				return bad()
			}
			if status != nameOK {
				v = unknown
			} else {
				in.reverse, in.reverseIs = v, nameOK
			}
			in.name, in.nameIs, renamed = v, status, true
		case "REVERSE_NAME":
			status := peerStatus(v)
			if status == nameOK && !validHostname(v) {
				return bad()
			}
			if status != nameOK {
				v = unknown
			}
			in.reverse, in.reverseIs = v, status
		case "ADDR":
			if unavailable(v) {
				in.ip, in.addr, in.rfcAddr = netip.Addr{}, unknown, unknown
			} else {
				ip, ok := announced(v)
				if v = neuter(v); !ok || !set.inetOK(ip) {
					if bugs.Has(bug.XCLIENTBadAddressCloses) {
						return silence
					}
					if bugs.Has(bug.XCLIENTBadAddressSpoils) {
						in.xclientOK = false
					}
					return bad()
				}
				in.setAddr(ip)
			}
			renamed = true
		case "PORT":
			if unavailable(v) {
				v = unknown
			} else if !goodPort(v) {
				return bad()
			}
			in.port, renamed = v, true
		case "HELO":
			if unavailable(v) {
				in.hasHelo, in.helo = false, ""
			} else if len(v) > 255 {
				return bad()
			} else {
				in.setHELO(neuter(v))
			}
			gotHELO = true
		case "PROTO":
			if !strings.EqualFold(v, "SMTP") && !strings.EqualFold(v, "ESMTP") {
				return bad()
			}
			in.proto, gotProto = strings.ToUpper(v), true
		case "LOGIN":
			if !unavailable(v) {
				in.saslUser, in.saslMethod, gotLogin = v, "XCLIENT", true
			}
		case "DESTADDR":
			if unavailable(v) {
				in.destAddr = unknown
			} else {
				ip, ok := announced(v)
				if v = neuter(v); !ok || !set.inetOK(ip) {
					return bad()
				}
				in.destAddr = ip.String()
			}
		case "DESTPORT":
			if !unavailable(v) && !goodPort(v) {
				return bad()
			}
		default:
			if bugs.Has(bug.XCLIENTUnknownHalfApplied) && renamed {
				in.rename()
			}
			if !bugs.Has(bug.XCLIENTUnknownApplied) {
				return in.fail("501 5.5.4 Bad XCLIENT attribute name: ", name)
			}
		}
	}
	if renamed {
		in.rename()
	}
	in.xclientUsed = true
	in.xclientOK = in.matches(set.xclient) || bugs.Has(bug.XCLIENTSecondAccepted)
	if bugs.Has(bug.XCLIENTDropsTLS) {
		in.c.Forget()
	}
	if !gotHELO {
		in.hasHelo, in.helo = false, ""
	}
	if !gotProto {
		in.proto = "SMTP"
	}
	in.saslAfterXCLIENT(gotLogin)
	in.resetMail()
	in.resetRecipients()
	return greet
}

// setAddr makes an address the client's.
func (in *session) setAddr(ip netip.Addr) {
	in.ip, in.addr = ip, ip.String()
	in.rfcAddr = in.addr
	if ip.Is6() {
		in.rfcAddr = "IPv6:" + in.addr
	}
	in.claimed.Store(&ip)
}

// saslAfterXCLIENT forgets who had signed in, unless LOGIN said who has.
func (in *session) saslAfterXCLIENT(login bool) {
	if in.srv.bugs.Has(bug.XCLIENTKeepsAuth) {
		return
	}
	user, method := in.saslUser, in.saslMethod
	active := in.saslActive
	in.saslReset()
	if active {
		in.saslActivate()
	}
	if login {
		in.saslUser, in.saslMethod = user, method
	}
}

// believe records what a host announces that may not: a bug.
func (in *session) believe(args []token) {
	for _, a := range args {
		name, v, _ := attribute(a.text)
		switch strings.ToUpper(name) {
		case "ADDR":
			if ip, ok := announced(v); ok {
				in.claimed.Store(&ip)
				in.namaddr = in.describe(in.name, ip.String(), in.port)
			}
		case "PORT":
			if ip := in.claimed.Load(); ip != nil && goodPort(v) {
				in.namaddr = in.describe(in.name, ip.String(), v)
			}
		}
	}
}

// forwarded is what XFORWARD said. It is for the log alone.
type forwarded struct {
	name, addr, port, ident string
}

func (in *session) xforwardCmd(args []token) outcome {
	switch {
	case in.inMail:
		return in.fail("503 5.5.1 Error: MAIL transaction in progress")
	case len(args) < 2:
		return in.fail("501 5.5.4 Syntax: XFORWARD attribute=value...")
	case in.broken(in.set.xforward):
		in.log("warning: don't know if command XFORWARD should be allowed from ", in.client())
		return in.dataError()
	case !in.xforwardOK:
		return in.fail("550 5.7.0 Error: insufficient authorization")
	}
	xf := forwarded{name: unknown, addr: unknown, port: unknown}
	if in.xf != nil {
		xf = *in.xf
	}
	for _, a := range args[1:] {
		name, v, wrong := attribute(a.text)
		if wrong != "" {
			return in.fail(wrong)
		}
		bad := func() outcome { return in.fail("501 5.5.4 Bad ", strings.ToUpper(name), " syntax: ", v) }
		switch strings.ToUpper(name) {
		case "NAME":
			if v = neuter(v); unavailable(v) {
				v = unknown
			} else if !validHostname(v) {
				return bad()
			}
			xf.name = v
		case "ADDR":
			if unavailable(v) {
				v = unknown
			} else {
				ip, ok := announced(v)
				if v = neuter(v); !ok || !in.set.inetOK(ip) {
					return bad()
				}
				v = ip.String()
			}
			xf.addr = v
		case "PORT":
			if unavailable(v) {
				v = unknown
			} else if !goodPort(v) {
				return bad()
			}
			xf.port = v
		case "PROTO":
			if len(v) > 64 {
				return bad()
			}
		case "IDENT":
			if v = neuter(v); unavailable(v) {
				v = ""
			}
			xf.ident = v
		case "SOURCE":
			if !unavailable(v) && !strings.EqualFold(v, "LOCAL") && !strings.EqualFold(v, "REMOTE") {
				return bad()
			}
		case "HELO":
		default:
			return in.fail("501 5.5.4 Bad XFORWARD attribute name: ", name)
		}
	}
	in.xf = &xf
	in.reply("250 2.0.0 Ok")
	return done
}

func itoa(n int) string { return strconv.Itoa(n) }
