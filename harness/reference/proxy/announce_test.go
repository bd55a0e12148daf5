package proxy

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
)

var interactive = []Protocol{IMAP, POP3, Submission, ManageSieve}

// publicName is the listener of a protocol and mode.
func publicName(p Protocol, m TLSMode) string {
	names := map[Protocol]string{IMAP: "imap", POP3: "pop3", Submission: "submission", ManageSieve: "sieve"}
	if m == Implicit {
		return names[p] + "s"
	}
	return names[p]
}

// expected is every octet that must reach a source: sections 3.1 to 3.5 of the
// requirements.
func expected(p Protocol, m TLSMode, f Forwarding, client, public netip.AddrPort, id, user, pass string) string {
	starttls := map[Protocol]string{
		IMAP:        "P1 STARTTLS\r\n[TLS]",
		POP3:        "CAPA\r\nSTLS\r\n[TLS]",
		Submission:  "EHLO laptop.test\r\nSTARTTLS\r\n[TLS]EHLO laptop.test\r\n",
		ManageSieve: "STARTTLS\r\n[TLS]",
	}[p]
	attributes := fmt.Sprintf("XCLIENT ADDR=%s PORT=%d DESTADDR=%s DESTPORT=%d SESSION=%s TTL=6 CLIENT-TRANSPORT=TLS\r\n",
		client.Addr(), client.Port(), public.Addr(), public.Port(), id)
	prefix := ""
	if client.Addr().Is6() {
		prefix = "IPV6:"
	}
	announced := map[Protocol]string{
		IMAP: fmt.Sprintf(`F1 ID ("x-originating-ip" "%s" "x-originating-port" "%d" "x-connected-ip" "%s" "x-connected-port" "%d" "x-proxy-ttl" "6" "x-session-id" "%s" "x-client-transport" "TLS")`+"\r\n",
			client.Addr(), client.Port(), public.Addr(), public.Port(), id),
		POP3: attributes,
		Submission: fmt.Sprintf("XCLIENT ADDR=%s%s PORT=%d DESTADDR=%s%s DESTPORT=%d HELO=laptop.test PROTO=ESMTP\r\nEHLO laptop.test\r\n",
			prefix, client.Addr(), client.Port(), prefix, public.Addr(), public.Port()),
		ManageSieve: attributes,
	}[p]
	var b strings.Builder
	if f == ForwardPROXY {
		b.WriteString(proxyV2(client, public))
	}
	switch {
	case m == STARTTLS:
		b.WriteString(starttls)
	case m == Implicit:
		b.WriteString("[TLS]")
	}
	if m != STARTTLS && p == Submission {
		b.WriteString("EHLO laptop.test\r\n")
	}
	if f == ForwardXCLIENT {
		b.WriteString(announced)
	}
	b.WriteString(plainCommand(p, user, pass))
	return b.String()
}

// Every protocol, both ways to TLS on both legs, every way to announce, and
// clients of IPv4, IPv6 and IPv4 on a dual-stack socket,
// I-02, I-06, I-09 to I-12.
func TestOctetsAtTheSource(t *testing.T) {
	for _, f := range []Forwarding{ForwardXCLIENT, ForwardPROXY, ForwardNone} {
		for _, m := range []TLSMode{Implicit, STARTTLS, Plain} {
			for _, p := range interactive {
				for _, from := range []netip.Addr{client4, client6, mapped(client4)} {
					for _, public := range []TLSMode{Implicit, STARTTLS} {
						name := fmt.Sprintf("%s/%s/%s/from %s/public %s", p, f, m, from, public)
						t.Run(name, func(t *testing.T) {
							l := newLab(t, labConfig(f, m))
							s := l.source(source4, p, m, f, "")
							c := l.signIn(from, publicName(p, public), "Alice@Example.org", "pässword")
							c.until(success(p))
							c.send("QUIT NOW\r\n")
							c.want("ECHO QUIT NOW")
							c.conn.Close()
							got := s.received()
							at := c.raw.RemoteAddr().String()
							want := expected(p, m, f, unmapped(c.local()), unmapped(netip.MustParseAddrPort(at)), sessionID(got), "Alice@Example.org", "pässword")
							assert.Equal(t, got, want+"QUIT NOW\r\n")
							assert.Assert(t, !strings.Contains(got, "::ffff:"))
							assert.Assert(t, !strings.Contains(l.log.String(), "peer=[::ffff:"), "%s", l.log)
							assert.Assert(t, !strings.Contains(l.log.String(), "pässword"))
							if f == ForwardXCLIENT && p != Submission {
								assert.Assert(t, goodSessionID(sessionID(got)), "%q", sessionID(got))
							}
						})
					}
				}
			}
		}
	}
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// goodSessionID is what I-13 and fact 8 of the sources want of one.
func goodSessionID(id string) bool {
	return id != "" && len(id) <= 32 && strings.Trim(id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.-") == ""
}

// I-10, B-03: of the attributes only the advertised ones are sent, in any
// case, and LOGIN never (I-09).
func TestAdvertisedAttributesOnly(t *testing.T) {
	for fault, want := range map[string]string{
		"some attributes":  "XCLIENT ADDR=203.0.113.7 HELO=laptop.test\r\n",
		"other attributes": "XCLIENT ADDR=203.0.113.7 PORT=%d SESSION=%s TTL=6 HELO=laptop.test PROTO=ESMTP\r\n",
	} {
		t.Run(fault, func(t *testing.T) {
			l := newLab(t, labConfig(ForwardXCLIENT, STARTTLS))
			s := l.source(source4, Submission, STARTTLS, ForwardXCLIENT, fault)
			c := l.signIn(client4, "submission", "alice@example.org", "secret")
			c.until("235")
			c.conn.Close()
			got := s.received()
			if strings.Contains(want, "%") {
				want = fmt.Sprintf(want, c.local().Port(), sessionID(got))
			}
			assert.Assert(t, strings.Contains(got, want), "%q", got)
			assert.Equal(t, strings.Count(got, "XCLIENT"), 1)
			assert.Assert(t, !strings.Contains(got, "LOGIN="))
		})
	}
}

// the HELO name is announced only where it can stand in an attribute;
// EHLO repeats it as it was (J-05).
func TestEHLONames(t *testing.T) {
	for name, attribute := range map[string]string{
		"laptop":                 " HELO=laptop",
		"x_y":                    " HELO=x_y",
		"[192.168.1.5]":          " HELO=[192.168.1.5]",
		"[IPv6:2001:db8::1]":     " HELO=[IPv6:2001:db8::1]",
		"Alices computer":        "",
		"a=b":                    "",
		"x+2E":                   "",
		strings.Repeat("n", 200): " HELO=" + strings.Repeat("n", 200),
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
			s := l.source(source4, Submission, Implicit, ForwardXCLIENT, "")
			c := l.call(client4, "submissions")
			c.line()
			c.send("EHLO " + name + "\r\n")
			c.until("250 ")
			c.send(plainCommand(Submission, "a@b", "secret"))
			c.until("235")
			c.conn.Close()
			got := s.received()
			assert.Equal(t, strings.Count(got, "EHLO "+name+"\r\n"), 2, "%q", got)
			assert.Assert(t, strings.Contains(got, "DESTPORT=465"+attribute+" PROTO=ESMTP\r\n"), "%q", got)
		})
	}
}

// I-10, I-11 and the rule to fail closed: an announcement that is not offered
// is not made, and no credentials follow where it was not offered or accepted.
// I-18: nor where TLS was not offered or not agreed to. I-19: nor where
// something came in clear text behind the agreement. I-21: the reply.
func TestNoCredentials(t *testing.T) {
	for _, p := range interactive {
		for _, fault := range []string{"no announcement", "announcement refused", "silent", "no starttls", "starttls refused", "residue", "bye", "ehlo refused"} {
			if fault == "ehlo refused" && p != Submission {
				continue
			}
			t.Run(string(p)+"/"+fault, func(t *testing.T) {
				cfg := labConfig(ForwardXCLIENT, STARTTLS)
				if fault == "silent" {
					cfg.Server.BackendTimeout = 50_000_000 // 50 ms
				}
				l := newLab(t, cfg)
				s := l.source(source4, p, STARTTLS, ForwardXCLIENT, fault)
				c := l.signIn(client4, publicName(p, Implicit), "alice@example.org", "secret")
				c.want(unavailableReply(p))
				c.end()
				got := s.received()
				assert.Assert(t, !strings.Contains(got, plainResponse("alice@example.org", "secret")), "%q", got)
				assert.Assert(t, !strings.Contains(got, "AUTH"), "%q", got)
				switch fault {
				case "no announcement":
					assert.Assert(t, !strings.Contains(got, "XCLIENT") && !strings.Contains(got, " ID "), "%q", got)
					line := l.log.wait(t, "backend unavailable")
					assert.Assert(t, strings.Contains(line, "must hold 192.0.2.2, the address this proxy connects from"), line)
				case "no starttls":
					assert.Assert(t, !strings.Contains(got, "STARTTLS") && !strings.Contains(got, "STLS"), "%q", got)
				}
				assert.Assert(t, !strings.Contains(l.log.String(), "secret"))
			})
		}
	}
}

// A client leg without TLS is announced as what it is.
func TestInsecureClient(t *testing.T) {
	cfg := labConfig(ForwardXCLIENT, Implicit)
	cfg.Capabilities = map[Protocol]Capabilities{POP3: {AllowCleartext: true}}
	l := newLab(t, cfg)
	s := l.source(source4, POP3, Implicit, ForwardXCLIENT, "")
	c := l.dial(client4, "pop3")
	c.talk("+OK...\n> USER alice@example.org\n+OK\n> PASS secret\n+OK Logged in.")
	c.conn.Close()
	assert.Assert(t, strings.Contains(s.received(), " TTL=6 CLIENT-TRANSPORT=insecure\r\n"))
}

// C-01: where an IMAP greeting has no capabilities they are asked for.
func TestIMAPGreetingWithoutCapabilities(t *testing.T) {
	l := newLab(t, labConfig(ForwardXCLIENT, STARTTLS))
	s := l.source(source4, IMAP, STARTTLS, ForwardXCLIENT, "no code")
	c := l.signIn(client4, "imaps", "alice@example.org", "secret")
	c.until("a1 OK")
	c.conn.Close()
	got := s.received()
	assert.Assert(t, strings.HasPrefix(got, "P0 CAPABILITY\r\nP1 STARTTLS\r\n[TLS]F1 ID "), "%q", got)
}

// The forwarding of one endpoint overrides the destination's.
func TestForwardingPerProtocol(t *testing.T) {
	cfg := labConfig(ForwardXCLIENT, STARTTLS)
	cfg.Destinations[0].Endpoints[IMAP] = Endpoint{Port: 143, TLS: STARTTLS, Forwarding: ForwardPROXY}
	l := newLab(t, cfg)
	imap := l.source(source4, IMAP, STARTTLS, ForwardPROXY, "")
	pop := l.source(source4, POP3, STARTTLS, ForwardXCLIENT, "")
	c := l.signIn(client4, "imaps", "alice@example.org", "secret")
	c.until("a1 OK")
	c.conn.Close()
	assert.Assert(t, strings.HasPrefix(imap.received(), proxyV2(c.local(), netip.AddrPortFrom(public4, 993))+"P1 STARTTLS"))
	c = l.signIn(client4, "pop3s", "alice@example.org", "secret")
	c.until("+OK Logged")
	c.conn.Close()
	assert.Assert(t, strings.Contains(pop.received(), "XCLIENT ADDR=203.0.113.7 "))
}

// I-13: session ids do not repeat, in one proxy or from one start to the next.
func TestSessionIDs(t *testing.T) {
	seen := map[string]bool{}
	for range 2 {
		l := newLab(t, labConfig(ForwardXCLIENT, Plain))
		for range 50 {
			s := l.source(source4, POP3, Plain, ForwardXCLIENT, "")
			c := l.signIn(client4, "pop3s", "alice@example.org", "secret")
			c.until("+OK")
			c.conn.Close()
			id := sessionID(s.received())
			assert.Assert(t, goodSessionID(id), "%q", id)
			assert.Assert(t, !seen[id], "%q came twice", id)
			seen[id] = true
			s.close()
		}
		assert.NilError(t, l.stop())
	}
}
