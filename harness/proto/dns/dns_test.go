package dns_test

import (
	"context"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/harness/proto/dns"
)

const text = `
# a zone
host.example A 192.0.2.1
host.example AAAA 2001:db8::1
192.0.2.1 PTR host.example
2001:db8::1 PTR host.example
example MX 10 host.example
example TXT v=spf1 -all
long.example TXT ` + "k=" + longText + `
away.example SERVFAIL
silent.example SILENT
192.0.2.1 LISTED list.example
2001:db8::1 LISTED list.example
`

const longText = "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789" +
	"0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789" +
	"0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"

func parsed(t *testing.T) *dns.Zone {
	t.Helper()
	z, err := dns.ParseZone("zone.txt", text)
	assert.NilError(t, err)
	return z
}

// The standard library's own resolver reads what a zone is served as, over
// datagrams and connections alike.
func TestAResolverReadsTheZone(t *testing.T) {
	defer goleak.VerifyNone(t)
	z := parsed(t)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	p, err := net.ListenPacket("udp", "127.0.0.1:0")
	assert.NilError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	served := make(chan error, 1)
	go func() { served <- z.Serve(ctx, p, l) }()
	for _, network := range []string{"udp", "tcp"} {
		r := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
			at := p.LocalAddr().String()
			if network == "tcp" {
				at = l.Addr().String()
			}
			var d net.Dialer
			return d.DialContext(ctx, network, at)
		}}
		for _, c := range []struct {
			ask  func() ([]string, error)
			want string
		}{
			{func() ([]string, error) { return r.LookupHost(ctx, "HOST.example.") }, "192.0.2.1 2001:db8::1"},
			{func() ([]string, error) { return r.LookupAddr(ctx, "192.0.2.1") }, "host.example."},
			{func() ([]string, error) { return r.LookupAddr(ctx, "2001:db8::1") }, "host.example."},
			{func() ([]string, error) { return r.LookupTXT(ctx, "example.") }, "v=spf1 -all"},
			{func() ([]string, error) { return r.LookupHost(ctx, "1.2.0.192.list.example.") }, "127.0.0.2"},
			{func() ([]string, error) { return r.LookupTXT(ctx, "long.example.") }, "k=" + longText},
			{func() ([]string, error) {
				mx, err := r.LookupMX(ctx, "example.")
				if err != nil {
					return nil, err
				}
				return []string{mx[0].Host}, nil
			}, "host.example."},
		} {
			got, err := c.ask()
			assert.NilError(t, err, "%s, %s", network, c.want)
			assert.Equal(t, strings.Join(got, " "), c.want)
		}
		for name, notFound := range map[string]bool{"nobody.example.": true, "away.example.": false} {
			_, err := r.LookupTXT(ctx, name)
			var de *net.DNSError
			assert.Assert(t, cmp.ErrorType(err, de))
			assert.Equal(t, err.(*net.DNSError).IsNotFound, notFound, name)
		}
	}
	cancel()
	assert.NilError(t, <-served)
}

func TestWhatIsNoQuestion(t *testing.T) {
	z := parsed(t)
	question := []byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04host\x07example\x00\x00\x01\x00\x01")
	assert.Equal(t, z.Answer(question, 512)[3], byte(0))
	for name, c := range map[string]struct {
		query string
		code  int // -1 for no reply
	}{
		"nothing":             {"", -1},
		"a reply":             {"\x12\x34\x81\x00" + string(question[4:]), -1},
		"another operation":   {"\x12\x34\x21\x00" + string(question[4:]), 4},
		"no question":         {string(question[:4]) + "\x00\x00" + string(question[6:]), 1},
		"two questions":       {string(question[:4]) + "\x00\x02" + string(question[6:]), 1},
		"nobody answers":      {"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06SILENT\x07example\x00\x00\x01\x00\x01", -1},
		"cut off":             {string(question[:20]), 1},
		"cut off at its type": {string(question[:len(question)-2]), 1},
		"a compressed name":   {string(question[:12]) + "\xC0\x0C\x00\x01\x00\x01", 1},
		"another class":       {string(question[:len(question)-1]) + "\x03", 4},
		"the root":            {string(question[:12]) + "\x00\x00\x01\x00\x01", 3},
		"an unknown type":     {string(question[:len(question)-3]) + "\x63\x00\x01", 0},
		"a name above":        {string(question[:12]) + "\x04arpa\x00\x00\x0c\x00\x01", 0},
	} {
		reply := z.Answer([]byte(c.query), 512)
		if c.code < 0 {
			assert.Assert(t, reply == nil, name)
			continue
		}
		assert.Assert(t, len(reply) >= 12, name)
		assert.Equal(t, int(reply[3]), c.code, name)
	}
	cut := z.Answer(question, 40)
	assert.Equal(t, cut[2]&0x02, byte(0x02), "it is marked as cut off")
	assert.Assert(t, len(cut) <= 40)
}

func TestZonesThatAreWrong(t *testing.T) {
	for line, want := range map[string]string{
		"host.example":                           "is no type of record",
		"host.example CNAME other":               "is no type of record",
		"host.example LISTED list.example":       "is no type of record",
		"host.example A 2001:db8::1":             "is no address",
		"host.example AAAA 192.0.2.1":            "is no address",
		"host.example MX host.example":           "is no preference",
		"192.0.2.1 PTR a..b":                     "is no name",
		strings.Repeat("a", 64) + " A 192.0.2.1": "is no name",
	} {
		_, err := dns.ParseZone("zone.txt", "\n"+line)
		assert.Assert(t, cmp.ErrorContains(err, want), line)
		assert.Assert(t, cmp.ErrorContains(err, "zone.txt:2: "), line)
	}
}

func TestReverse(t *testing.T) {
	assert.Equal(t, dns.Reverse(netip.MustParseAddr("::ffff:192.0.2.1")), "1.2.0.192.in-addr.arpa")
	assert.Assert(t, strings.HasPrefix(dns.Reverse(netip.MustParseAddr("2001:db8::1")), "1.0.0.0."))
}

func FuzzAnswer(f *testing.F) {
	z, err := dns.ParseZone("zone.txt", text)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x04host\x07example\x00\x00\x01\x00\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if reply := z.Answer(b, 512); len(reply) > 512 {
			t.Errorf("%d octets", len(reply))
		}
	})
}
