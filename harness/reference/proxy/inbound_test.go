package proxy

import (
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/mailproof/mailproof/harness/proto"
	"gotest.tools/v3/assert"
)

// The load balancer that stands before the proxy in these tests.
var (
	balancer4 = netip.MustParseAddr("198.51.100.77")
	far4      = netip.MustParseAddrPort("203.0.113.99:40123")
	far6      = netip.MustParseAddrPort("[2001:db8:f::99]:40123")
	vip4      = netip.MustParseAddrPort("198.51.100.200:993")
	vip6      = netip.MustParseAddrPort("[2001:db8:a::200]:993")
)

func inboundConfig(in Inbound) *Config {
	cfg := labConfig(ForwardXCLIENT, Implicit)
	for i := range cfg.Listeners {
		cfg.Listeners[i].Inbound = in
		cfg.Listeners[i].Trusted = []netip.Prefix{netip.PrefixFrom(balancer4, 32)}
	}
	return cfg
}

func header(t *testing.T, f proto.HeaderForm, src, dst netip.AddrPort) string {
	b, err := proto.ProxyHeader{Form: f, Src: src, Dst: dst}.Encode()
	assert.NilError(t, err)
	return string(b)
}

// I-31: the addresses in a trusted header are announced in place of the peer's.
func TestInboundHeaderAdopted(t *testing.T) {
	for _, in := range []Inbound{InboundOptional, InboundRequired} {
		for _, tc := range []struct {
			name     string
			form     proto.HeaderForm
			src, dst netip.AddrPort
			adopted  bool
			split    bool
		}{
			{"v1", proto.ProxyV1, far4, vip4, true, false},
			{"v1 IPv6", proto.ProxyV1, far6, vip6, true, false},
			{"v2", proto.ProxyV2, far4, vip4, true, false},
			{"v2 split", proto.ProxyV2, far4, vip4, true, true},
			{"v2 IPv6", proto.ProxyV2, far6, vip6, true, false},
			{"LOCAL", proto.ProxyV2Local, far4, vip4, false, false},
			{"UNKNOWN", proto.ProxyV1Unknown, far4, vip4, false, false},
		} {
			t.Run(string(in)+"/"+tc.name, func(t *testing.T) {
				l := newLab(t, inboundConfig(in))
				s := l.source(source4, IMAP, Implicit, ForwardXCLIENT, "")
				c := l.dial(balancer4, "imaps")
				h := header(t, tc.form, tc.src, tc.dst)
				if tc.split {
					for i := range len(h) {
						c.send(h[i : i+1])
					}
				} else {
					c.send(h)
				}
				c.startTLS()
				c.line()
				c.send(plainCommand(IMAP, "alice@example.org", "secret"))
				c.until("a1 OK")
				c.conn.Close()
				src, dst := c.local(), netip.AddrPortFrom(public4, 993)
				if tc.adopted {
					src, dst = tc.src, tc.dst
				}
				got := s.received()
				assert.Equal(t, got, expected(IMAP, Implicit, ForwardXCLIENT, src, dst, sessionID(got), "alice@example.org", "secret"))
			})
		}
	}
}

// I-31: a header may carry TLVs of more than 1 KiB, but not of any size.
func TestInboundHeaderWithTLVs(t *testing.T) {
	for size, adopted := range map[int]bool{2000: true, 5000: false} {
		l := newLab(t, inboundConfig(InboundRequired))
		b, err := proto.ProxyHeader{Form: proto.ProxyV2, Src: far4, Dst: vip4, TLVs: []proto.TLV{{Type: 0xE0, Value: make([]byte, size)}}}.Encode()
		assert.NilError(t, err)
		c := l.dial(balancer4, "imap")
		c.conn.Write(b)
		line, err := c.br.ReadString('\n')
		assert.Equal(t, strings.HasPrefix(line, "* OK"), adopted, "%d: %q, %v", size, line, err)
	}
}

// I-31: the header and what follows it may come together.
func TestInboundHeaderCoalesced(t *testing.T) {
	l := newLab(t, inboundConfig(InboundRequired))
	c := l.dial(balancer4, "imap")
	c.send(header(t, proto.ProxyV2, far4, vip4) + "a NOOP\r\nb STARTTLS\r\n")
	c.line()
	c.talk("a OK...\nb OK...\n[TLS]\n> c LOGOUT\n* BYE...\nc OK...")
}

// I-31: what must not be adopted.
func TestInboundHeaderRefused(t *testing.T) {
	v2 := func(t *testing.T, src, dst netip.AddrPort) string { return header(t, proto.ProxyV2, src, dst) }
	ap := netip.MustParseAddrPort
	for name, tc := range map[string]struct {
		in   Inbound
		from netip.Addr
		send func(t *testing.T) string
		log  string
	}{
		"required, stranger":        {InboundRequired, client4, func(t *testing.T) string { return v2(t, far4, vip4) }, "not in proxy_trusted"},
		"required, none":            {InboundRequired, balancer4, func(*testing.T) string { return "a NOOP\r\n" }, "PROXY header"},
		"broken":                    {InboundOptional, balancer4, func(t *testing.T) string { return header(t, proto.BrokenV2Short, far4, vip4) }, "PROXY header"},
		"too large":                 {InboundOptional, balancer4, func(t *testing.T) string { return v2(t, far4, vip4)[:14] + "\xff\xff" }, "PROXY header"},
		"endless v1":                {InboundOptional, balancer4, func(*testing.T) string { return "PROXY TCP4 " + strings.Repeat("1", 5000) }, "PROXY header"},
		"loopback (fact 20)":        {InboundRequired, balancer4, func(t *testing.T) string { return v2(t, ap("127.0.0.1:4000"), vip4) }, "127.0.0.1 cannot be a client's address"},
		"IPv6 loopback":             {InboundRequired, balancer4, func(t *testing.T) string { return v2(t, ap("[::1]:4000"), vip6) }, "::1 cannot be a client's address"},
		"the proxy's own (fact 20)": {InboundRequired, balancer4, func(t *testing.T) string { return v2(t, netip.AddrPortFrom(public4, 4000), vip4) }, "198.51.100.10 cannot be a client's address"},
		"unspecified":               {InboundRequired, balancer4, func(t *testing.T) string { return v2(t, ap("0.0.0.0:4000"), vip4) }, "0.0.0.0 cannot be a client's address"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, inboundConfig(tc.in))
			c := l.dial(tc.from, "imap")
			io.WriteString(c.conn, tc.send(t)) // the proxy may be faster, and gone
			b := make([]byte, 1)
			n, err := c.conn.Read(b) // the end, or a reset because something was left unread
			assert.Equal(t, n, 0)
			assert.Assert(t, err != nil)
			l.log.wait(t, tc.log)
		})
	}
}

// I-31: a header from a stranger, or where none is read, is no header: the
// protocol stumbles over it, and the session is the stranger's own.
func TestInboundHeaderUntouched(t *testing.T) {
	for name, in := range map[string]Inbound{"off": InboundOff, "optional": InboundOptional} {
		t.Run(name, func(t *testing.T) {
			cfg := inboundConfig(in)
			if in == InboundOff {
				for i := range cfg.Listeners {
					cfg.Listeners[i].Trusted = nil
				}
			}
			l := newLab(t, cfg)
			s := l.source(source4, IMAP, Implicit, ForwardXCLIENT, "")
			c := l.dial(client4, "imap")
			c.send(header(t, proto.ProxyV1, far4, vip4))
			c.line()
			c.want("PROXY BAD Command not allowed in this state.")
			c.talk("> t STARTTLS\nt OK...\n[TLS]")
			c.send(plainCommand(IMAP, "alice@example.org", "secret"))
			c.until("a1 OK")
			c.conn.Close()
			assert.Assert(t, strings.Contains(s.received(), `"x-originating-ip" "203.0.113.7"`))
		})
	}
}

// Where a header is optional, a trusted peer that sends none is served as
// itself; where the server speaks first it has to wait until none has come.
func TestInboundHeaderAbsent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, inboundConfig(InboundOptional))
		begun := time.Now()
		c := l.dial(balancer4, "imap")
		c.line()
		assert.Equal(t, time.Since(begun), headerTimeout)
		c.raw.Close()

		// A slow header is none, and what came of it is a command.
		c = l.dial(balancer4, "imap")
		c.send("PRO")
		c.line()
		c.send("X NOOP\r\n")
		c.want("PROX OK NOOP completed.")
		c.raw.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, inboundConfig(InboundRequired))
		begun := time.Now()
		c := l.dial(balancer4, "imaps")
		c.end()
		assert.Equal(t, time.Since(begun), headerTimeout)
		c.raw.Close()
	})
}

// A client on the proxy's own host must not be announced to a source
// elsewhere, where its address means the source itself.
func TestLoopbackClientIsNotAnnounced(t *testing.T) {
	for _, f := range []Forwarding{ForwardXCLIENT, ForwardPROXY, ForwardNone} {
		t.Run(string(f), func(t *testing.T) {
			l := newLab(t, labConfig(f, Implicit))
			s := l.source(source4, IMAP, Implicit, f, "")
			c := l.signIn(netip.MustParseAddr("127.0.0.1"), "imaps", "alice@example.org", "secret")
			if f == ForwardNone {
				c.until("a1 OK")
				return
			}
			c.want(unavailableReply(IMAP))
			assert.Equal(t, s.dials(), 0)
			l.log.wait(t, "the client's address 127.0.0.1 means another host there and is not announced")
		})
	}
}
