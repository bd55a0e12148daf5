package proto_test

import (
	"bufio"
	"errors"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mailproof/mailproof/harness/proto"
	"github.com/mailproof/mailproof/harness/reference/memnet"
	"github.com/mailproof/mailproof/harness/wire"
	"gotest.tools/v3/assert"
)

// conversation plays what a server says, cut into pieces of n octets.
func conversation(t testing.TB, p proto.Protocol, says string, n int) *proto.Conversation {
	t.Helper()
	a, b := memnet.Pipe(netip.MustParseAddrPort("203.0.113.10:1"), netip.MustParseAddrPort("203.0.113.100:2"))
	c := wire.New(t.Context(), a, "A", nil, wire.Lab(), wire.Shape{})
	go func() {
		for len(says) > 0 {
			m := min(n, len(says))
			if _, err := io.WriteString(b, says[:m]); err != nil {
				return
			}
			says = says[m:]
		}
		b.Close()
	}()
	t.Cleanup(func() { c.Close(); b.Close() })
	return proto.NewConversation(p, c)
}

func TestUnitsAreReadWholeHoweverTheyAreCut(t *testing.T) {
	type unit struct {
		status string
		lines  int
	}
	for name, tc := range map[string]struct {
		p    proto.Protocol
		sent []string
		says string
		want []unit
	}{
		"imap": {proto.IMAP, nil, "* OK [CAPABILITY IMAP4rev1 ID] ready\r\n* ID (\"name\" {7}\r\nDove\r\nc)\r\nF1 OK ID completed.\r\n+ \r\na1 OK done\r\n* BYE out\r\n",
			[]unit{{"* OK [CAPABILITY IMAP4rev1 ID] ready", 1}, {"F1 OK ID completed.", 2}, {"+ ", 1}, {"a1 OK done", 1}, {"* BYE out", 1}}},
		"pop3": {proto.POP3, []string{"CAPA", "UIDL 1", "AUTH PLAIN x"}, "+OK hi\r\n+OK list\r\nSASL PLAIN\r\n..dot\r\n.\r\n+OK 1 abc\r\n+ \r\n-ERR no\r\n",
			[]unit{{"+OK hi", 1}, {"+OK list", 3}, {"+OK 1 abc", 1}, {"+ ", 1}, {"-ERR no", 1}}},
		"managesieve": {proto.ManageSieve, nil, "\"IMPLEMENTATION\" \"x\"\r\n\"SIEVE\" {3}\r\na\r\n\r\nOK \"ready.\"\r\nNO {5}\r\nno\r\n!\r\nBAD \"what\"\r\nBYE\r\n",
			[]unit{{`OK "ready."`, 3}, {"NO {5}\r\nno\r\n!", 1}, {`BAD "what"`, 1}, {"BYE", 1}}},
		"smtp": {proto.SMTP, nil, "220-two\r\n220 lines\r\n250-a\r\n250-b\r\n250 c\r\n354\r\n",
			[]unit{{"220 lines", 2}, {"250 c", 3}, {"354", 1}}},
	} {
		for _, n := range []int{1, 3, 1 << 20} {
			v := conversation(t, tc.p, tc.says, n)
			for _, s := range tc.sent {
				v.Sent(s)
			}
			for i, want := range tc.want {
				u, err := v.Next(time.Second)
				assert.NilError(t, err, "%s in pieces of %d: unit %d", name, n, i)
				assert.Equal(t, u.Status, want.status, name)
				assert.Equal(t, len(u.Lines), want.lines, name)
			}
			_, err := v.Next(time.Second)
			var closed *wire.Closed
			assert.Assert(t, errors.As(err, &closed), "%s: %v", name, err)
		}
	}
}

func TestWhatIsNoUnitIsMalformed(t *testing.T) {
	for _, tc := range []struct {
		p    proto.Protocol
		says string
	}{
		{proto.IMAP, "+OK POP3 here\r\n"},
		{proto.IMAP, "* OK x\r\n(a) OK\r\n"},
		{proto.IMAP, "* OK x\r\nlonely\r\n"},
		{proto.POP3, "* OK IMAP here\r\n"},
		{proto.ManageSieve, "+OK\r\n"},
		{proto.ManageSieve, "\r\n"},
		{proto.SMTP, "2 x\r\n"},
		{proto.SMTP, "999 x\r\n"},
		{proto.SMTP, "250_x\r\n"},
		{proto.SMTP, "250-x\r\n251 y\r\n"},
		{proto.SMTP, "\x16\x03\x01\x02\x00\x01\r\n"},
	} {
		v := conversation(t, tc.p, tc.says, 1<<20)
		var err error
		for err == nil {
			_, err = v.Next(time.Second)
		}
		var m *proto.Malformed
		assert.Assert(t, errors.As(err, &m), "%s %q: %v", tc.p, tc.says, err)
	}
}

func TestReadersAreBounded(t *testing.T) {
	for name, says := range map[string]string{
		"lines":   "220 x\r\n" + strings.Repeat("250-x\r\n", proto.MaxUnitLines+2),
		"literal": "220 x\r\n",
	} {
		v := conversation(t, proto.SMTP, says, 1<<20)
		var err error
		for err == nil {
			_, err = v.Next(time.Second)
		}
		if name == "lines" {
			var long *wire.TooLong
			assert.Assert(t, errors.As(err, &long), "%v", err)
		}
	}
	v := conversation(t, proto.IMAP, "* OK x\r\n* X {999999999}\r\n", 1<<20)
	_, err := v.Next(time.Second)
	assert.NilError(t, err)
	_, err = v.Next(time.Second)
	var long *wire.TooLong
	assert.Assert(t, errors.As(err, &long), "%v", err)
}

func TestBareLineFeedsAreNoticed(t *testing.T) {
	v := conversation(t, proto.SMTP, "220-a\r\n220 b\n", 1<<20)
	u, err := v.Next(time.Second)
	assert.NilError(t, err)
	assert.Assert(t, u.Bare)
}

func announcement(addr string) proto.Announcement {
	a := netip.MustParseAddr(addr)
	dest := "203.0.113.11"
	if a.Is6() && !a.Is4In6() {
		dest = "2001:db8:100::11"
	}
	return proto.Announcement{Client: netip.AddrPortFrom(a, 40001), Dest: netip.AddrPortFrom(netip.MustParseAddr(dest), 993),
		Session: "Pabc", TTL: 6, Transport: "TLS", HELO: "laptop", Proto: "ESMTP"}
}

// Each server has a syntax of its own.
func TestAnnouncements(t *testing.T) {
	four, six, mapped := announcement("198.51.100.7"), announcement("2001:db8::7"), announcement("::ffff:198.51.100.7")
	assert.Equal(t, four.XCLIENT(proto.POP3, nil), "XCLIENT ADDR=198.51.100.7 PORT=40001 DESTADDR=203.0.113.11 DESTPORT=993 SESSION=Pabc TTL=6 CLIENT-TRANSPORT=TLS")
	assert.Equal(t, six.XCLIENT(proto.ManageSieve, nil), "XCLIENT ADDR=2001:db8::7 PORT=40001 DESTADDR=2001:db8:100::11 DESTPORT=993 SESSION=Pabc TTL=6 CLIENT-TRANSPORT=TLS")
	postfix := map[string]bool{"NAME": true, "ADDR": true, "PROTO": true, "HELO": true, "REVERSE_NAME": true, "PORT": true, "LOGIN": true, "DESTADDR": true, "DESTPORT": true}
	offered := func(s string) bool { return postfix[s] }
	assert.Equal(t, six.XCLIENT(proto.SMTP, offered), "XCLIENT ADDR=IPV6:2001:db8::7 PORT=40001 DESTADDR=IPV6:2001:db8:100::11 DESTPORT=993 HELO=laptop PROTO=ESMTP")
	assert.Equal(t, mapped.XCLIENT(proto.SMTP, offered), four.XCLIENT(proto.SMTP, offered))
	assert.Equal(t, mapped.ID("F1"), four.ID("F1"))
	assert.Equal(t, four.ID("F1"), `F1 ID ("x-originating-ip" "198.51.100.7" "x-originating-port" "40001" "x-connected-ip" "203.0.113.11" "x-connected-port" "993" "x-proxy-ttl" "6" "x-session-id" "Pabc" "x-client-transport" "TLS")`)
	four.HELO = "two words"
	assert.Assert(t, !strings.Contains(four.XCLIENT(proto.SMTP, nil), "HELO"))
}

func TestProxyHeaders(t *testing.T) {
	src, dst := netip.MustParseAddrPort("198.51.100.7:40001"), netip.MustParseAddrPort("203.0.113.11:993")
	src6, dst6 := netip.MustParseAddrPort("[2001:db8::7]:40001"), netip.MustParseAddrPort("[2001:db8::11]:993")
	enc := func(h proto.ProxyHeader) string {
		b, err := h.Encode()
		assert.NilError(t, err)
		return string(b)
	}
	assert.Equal(t, enc(proto.ProxyHeader{Form: proto.ProxyV1, Src: src, Dst: dst}), "PROXY TCP4 198.51.100.7 203.0.113.11 40001 993\r\n")
	assert.Equal(t, enc(proto.ProxyHeader{Form: proto.ProxyV1, Src: src6, Dst: dst6}), "PROXY TCP6 2001:db8::7 2001:db8::11 40001 993\r\n")
	assert.Equal(t, enc(proto.ProxyHeader{Form: proto.ProxyV1Unknown}), "PROXY UNKNOWN\r\n")
	const sig = "\r\n\r\n\x00\r\nQUIT\n"
	assert.Equal(t, enc(proto.ProxyHeader{Form: proto.ProxyV2, Src: src, Dst: dst}), sig+"\x21\x11\x00\x0c"+"\xc6\x33\x64\x07\xcb\x00\x71\x0b\x9c\x41\x03\xe1")
	assert.Equal(t, len(enc(proto.ProxyHeader{Form: proto.ProxyV2, Src: src6, Dst: dst6})), 52)
	assert.Equal(t, enc(proto.ProxyHeader{Form: proto.ProxyV2Local}), sig+"\x20\x00\x00\x00")
	assert.Equal(t, enc(proto.ProxyHeader{Form: proto.ProxyV2Unspec}), sig+"\x21\x00\x00\x00")
	withSSL := enc(proto.ProxyHeader{Form: proto.ProxyV2, Src: src, Dst: dst, TLVs: []proto.TLV{proto.SSLTLV("TLSv1.3")}})
	assert.Assert(t, strings.HasSuffix(withSSL, "\x20\x00\x0f\x01\x00\x00\x00\x00\x21\x00\x07TLSv1.3"))
	_, err := proto.ProxyHeader{Form: proto.ProxyV2, Src: src, Dst: dst6}.Encode()
	assert.ErrorContains(t, err, "not of one family")
	for _, f := range proto.HeaderForms() {
		_, err := proto.ProxyHeader{Form: f, Src: src, Dst: dst}.Encode()
		assert.NilError(t, err, string(f))
	}
	assert.Assert(t, enc(proto.ProxyHeader{Form: proto.BrokenV2Signature, Src: src, Dst: dst})[11] != '\n')
}

var limits = proto.CommandLimits{Line: 200, Literal: 100, Total: 400}

func TestReadCommand(t *testing.T) {
	asked := 0
	proceed := func() error { asked++; return nil }
	br := bufio.NewReader(strings.NewReader("a1 LOGIN {5}\r\nal(ce {3+}\r\np\"w\r\na2 ID (\"x\" NIL \"y\" \"q\\\"z\")\r\nbroken \"\r\nAUTHENTICATE \"PLAIN\" \"AGE=\"\r\n"))
	ts, line, err := proto.ReadCommand(br, limits, proceed)
	assert.NilError(t, err)
	assert.Equal(t, line, "a1 LOGIN {5}")
	assert.Equal(t, asked, 1)
	assert.DeepEqual(t, ts, []proto.Token{{Kind: proto.Atom, Text: "a1"}, {Kind: proto.Atom, Text: "LOGIN"}, {Kind: proto.Literal, Text: "al(ce"}, {Kind: proto.Literal, Text: "p\"w"}})
	ts, _, err = proto.ReadCommand(br, limits, nil)
	assert.NilError(t, err)
	attrs, err := proto.ParseIDParams(ts[2:])
	assert.NilError(t, err)
	assert.DeepEqual(t, attrs, []proto.Attribute{{Name: "x"}, {Name: "y", Value: `q"z`}})
	_, _, err = proto.ReadCommand(br, limits, nil)
	var syntax *proto.SyntaxError
	assert.Assert(t, errors.As(err, &syntax), "%v", err)
	ts, _, err = proto.ReadCommand(br, limits, nil) // the next command can be read
	assert.NilError(t, err)
	assert.Equal(t, len(ts), 3)

	for _, long := range []string{strings.Repeat("x", 300) + "\r\n", "a {200+}\r\n", "a {999999999}\r\n"} {
		_, _, err = proto.ReadCommand(bufio.NewReader(strings.NewReader(long)), limits, proceed)
		assert.Assert(t, errors.Is(err, proto.ErrTooLong), "%q: %v", long[:8], err)
	}
	_, _, err = proto.ReadCommand(bufio.NewReader(strings.NewReader("a {3}\r\nxyz\r\n")), limits, nil)
	assert.Assert(t, errors.As(err, &syntax), "%v", err)
	_, _, err = proto.ReadCommand(bufio.NewReader(strings.NewReader("unfinished")), limits, nil)
	assert.Assert(t, errors.Is(err, io.ErrUnexpectedEOF), "%v", err)
}

func TestParseIDParamsRefuses(t *testing.T) {
	for _, line := range []string{`"a" "b"`, `("a")`, `(a "b")`, `("a" b)`, ``} {
		ts, _, err := proto.ReadCommand(bufio.NewReader(strings.NewReader(line+"\r\n")), limits, nil)
		assert.NilError(t, err)
		_, err = proto.ParseIDParams(ts)
		assert.Assert(t, err != nil, "%q was taken", line)
	}
}

func TestParseAttributes(t *testing.T) {
	attrs, bad := proto.ParseAttributes("ADDR=1.2.3.4 junk =x SESSION=a=b")
	assert.DeepEqual(t, attrs, []proto.Attribute{{Name: "ADDR", Value: "1.2.3.4"}, {Name: "SESSION", Value: "a=b"}})
	assert.DeepEqual(t, bad, []string{"junk", "=x"})
}

func FuzzUnits(f *testing.F) {
	f.Add("imap", "* OK x\r\na1 OK y\r\n")
	f.Add("pop3", "+OK x\r\n+OK\r\n.\r\n")
	f.Add("managesieve", "\"SIEVE\" {1}\r\na\r\nOK\r\n")
	f.Add("smtp", "250-x\r\n250 y\r\n")
	f.Fuzz(func(t *testing.T, p, says string) {
		if !proto.Protocol(p).Known() {
			return
		}
		v := conversation(t, proto.Protocol(p), says, 7)
		v.Sent("CAPA")
		for i := 0; i < 100; i++ {
			u, err := v.Next(time.Second)
			if err != nil {
				return
			}
			if u.Status == "" && p != "imap" {
				t.Fatalf("a unit without a status: %q", says)
			}
		}
	})
}

func FuzzReadCommand(f *testing.F) {
	f.Add("a1 ID (\"x\" {3+}\r\nabc)\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		br := bufio.NewReader(strings.NewReader(text))
		for i := 0; i < 100; i++ {
			ts, _, err := proto.ReadCommand(br, limits, func() error { return nil })
			var syntax *proto.SyntaxError
			if err != nil && !errors.As(err, &syntax) {
				return
			}
			_, _ = proto.ParseIDParams(ts)
		}
	})
}
