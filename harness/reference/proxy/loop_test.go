package proxy

import (
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gotest.tools/v3/assert"
)

// loopConfig serves one protocol at an address and sends everybody on to another.
func loopConfig(at, to netip.Addr, p Protocol, f Forwarding, in Inbound) *Config {
	c := labConfig(f, Plain)
	c.Mapping = Mapping{}
	c.Listeners = []Listener{{Name: "loop", Protocol: p, TLS: Plain, Binds: []netip.AddrPort{netip.AddrPortFrom(at, 1000)}, Inbound: in}}
	if in != "" {
		c.Listeners[0].Trusted = []netip.Prefix{netip.PrefixFrom(egress4, 32), netip.PrefixFrom(other4, 32), netip.PrefixFrom(client4, 32)}
	}
	c.Capabilities = map[Protocol]Capabilities{p: {AllowCleartext: true}}
	c.Destinations = []Destination{{Name: "next", Host: to.String(), Forwarding: f, AllowPlaintext: true, Endpoints: map[Protocol]Endpoint{p: {Port: 1000, TLS: Plain}}}}
	c.Routing = Routing{Default: "next", PassThrough: "next"}
	return c
}

// I-12, LOOP: two proxies that lead to each other end in the temporary
// failure, whatever the protocol and the way of announcing.
func TestTwoProxiesInALoop(t *testing.T) {
	for _, tc := range []struct {
		name string
		p    Protocol
		f    Forwarding
		in   Inbound
		want int // connections between the two
	}{
		{"IMAP ID", IMAP, ForwardXCLIENT, "", 6},
		{"POP3 XCLIENT", POP3, ForwardXCLIENT, "", 1},
		{"submission XCLIENT", Submission, ForwardXCLIENT, "", 1},
		{"ManageSieve XCLIENT", ManageSieve, ForwardXCLIENT, "", 1},
		{"IMAP PROXY", IMAP, ForwardPROXY, InboundRequired, 2},
		{"POP3 PROXY", POP3, ForwardPROXY, InboundRequired, 2},
		{"submission PROXY", Submission, ForwardPROXY, InboundRequired, 2},
		{"ManageSieve PROXY", ManageSieve, ForwardPROXY, InboundRequired, 2},
		{"port 25 PROXY", SMTP, ForwardPROXY, InboundRequired, 2},
		{"IMAP, nothing announced", IMAP, ForwardNone, "", 15},
		{"submission, nothing announced", Submission, ForwardNone, "", 15},
		{"port 25, nothing announced", SMTP, ForwardNone, "", 15},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				// Each dials from the address that it listens on.
				a, b := egress4, other4
				l := newLab(t, labConfig(ForwardXCLIENT, Plain))
				logA, logB := newLogbook(), newLogbook()
				optA, optB := l.options(a, egress6), l.options(b, egress6)
				optA.Log, optB.Log = logA.add, logB.add
				l.serve(loopConfig(a, b, tc.p, tc.f, tc.in), optA)
				l.serve(loopConfig(b, a, tc.p, tc.f, tc.in), optB)
				nc, err := l.net.Dial(t.Context(), client4, netip.AddrPortFrom(a, 1000))
				assert.NilError(t, err)
				c := newCaller(t, nc)
				if tc.in != "" {
					c.send(proxyV2(netip.MustParseAddrPort("203.0.113.50:4444"), netip.AddrPortFrom(public4, 993)))
				}
				begun := time.Now()
				want := "421 4.3.0 backend unavailable"
				if tc.p != SMTP {
					c.greeted(tc.p)
					want = unavailableReply(tc.p)
				}
				if tc.p == Submission {
					c.send("EHLO x\r\n")
					c.until("250 ")
				}
				if tc.p != SMTP {
					c.send(plainCommand(tc.p, "alice@example.org", "secret"))
				}
				if tc.p != SMTP || tc.f == ForwardNone {
					c.want(want)
				}
				c.end()
				assert.Assert(t, time.Since(begun) < 10*time.Second)
				c.raw.Close()
				synctest.Wait()
				// Each session that an egress opened is one peer in a log.
				peers := map[string]bool{}
				for _, line := range strings.Split(logA.String()+"\n"+logB.String(), "\n") {
					for _, mark := range []string{"via=", "peer="} {
						if _, rest, ok := strings.Cut(line, mark); ok {
							peer, _, _ := strings.Cut(rest, ":")
							port, _, _ := strings.Cut(rest, ": ")
							if peer == a.String() || peer == b.String() {
								peers[port] = true
							}
							break
						}
					}
				}
				assert.Equal(t, len(peers), tc.want, "connections\n%s\n%s", logA, logB)
				if tc.f != ForwardXCLIENT || tc.p == IMAP {
					all := logA.String() + logB.String()
					assert.Assert(t, strings.Contains(all, "routing loop"), "%s", all)
				}
			})
		})
	}
}

// I-12: the time to live that a trusted proxy announced is passed on one
// lower, and what a client says of it counts for nothing.
func TestTimeToLive(t *testing.T) {
	for value, want := range map[string]string{"5": "4", "2": "1", "99": "6", "x": "6", "": "6", "999999999999999999999": "6", "1": "", "0": ""} {
		t.Run("trusted says "+value, func(t *testing.T) {
			cfg := labConfig(ForwardXCLIENT, Implicit)
			for i := range cfg.Listeners {
				cfg.Listeners[i].Trusted = []netip.Prefix{netip.PrefixFrom(client4, 32)}
			}
			l := newLab(t, cfg)
			s := l.source(source4, IMAP, Implicit, ForwardXCLIENT, "")
			c := l.call(client4, "imaps")
			c.line()
			c.talk("> i ID (\"x-originating-ip\" \"192.0.2.66\" \"X-Proxy-TTL\" \"" + value + "\")\n* ID NIL\ni OK...")
			c.send(plainCommand(IMAP, "alice@example.org", "secret"))
			if want == "" {
				c.want(unavailableReply(IMAP))
				c.end()
				assert.Equal(t, s.dials(), 0)
				l.log.wait(t, "routing loop: the announced time to live is used up")
				return
			}
			c.until("a1 OK")
			c.conn.Close()
			got := s.received()
			assert.Assert(t, strings.Contains(got, `"x-proxy-ttl" "`+want+`"`), "%q", got)
			assert.Assert(t, !strings.Contains(got, "192.0.2.66"))
		})
	}
}

// I-12: a destination that is one of our own listeners is not dialled, by its
// address or by a name.
func TestDestinationIsOurselves(t *testing.T) {
	for _, host := range []string{public4.String(), "self.example.org"} {
		t.Run(host, func(t *testing.T) {
			cfg := labConfig(ForwardXCLIENT, Implicit)
			cfg.Destinations[0].Host = host
			l := &lab{t: t, net: newLab(t, labConfig(ForwardNone, Plain)).net, log: newLogbook()}
			opt := l.options(egress4, egress6)
			opt.Resolve = resolver(map[string][]netip.Addr{"self.example.org": {public4}})
			// The other proxy of this lab holds the public ports.
			for i := range cfg.Listeners {
				cfg.Listeners[i].Binds = []netip.AddrPort{netip.AddrPortFrom(public4, innerPort(cfg.Listeners[i].Protocol, cfg.Listeners[i].TLS)+20000)}
				if cfg.Listeners[i].Name == "imaps" {
					cfg.Listeners[i].Binds = []netip.AddrPort{netip.AddrPortFrom(public4, 20993)}
				}
			}
			cfg.Destinations[0].Endpoints[IMAP] = Endpoint{Port: 20993, TLS: Implicit}
			l.p, l.stop = l.serve(cfg, opt)
			nc, err := l.net.Dial(t.Context(), client4, netip.AddrPortFrom(public4, 20993))
			assert.NilError(t, err)
			c := newCaller(t, nc)
			c.startTLS()
			c.line()
			c.send(plainCommand(IMAP, "alice@example.org", "secret"))
			c.want(unavailableReply(IMAP))
			l.log.wait(t, "routing loop: destination legacy (198.51.100.10:20993) is one of our own listeners")
		})
	}
}
