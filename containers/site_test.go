package containers

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/harness/site"
)

// A socksVantage is a SOCKS server (RFC 1928) through which a site's file
// reaches one of the lab's vantages. A site names one address of a source, and
// the lab's source has one in each network: the server dials the one in its own.
type socksVantage struct {
	name string
	v    run.Vantage
	l    net.Listener
	to   func(netip.Addr) netip.Addr
	wg   sync.WaitGroup
}

func serveSOCKS(ctx context.Context, t *testing.T, name string, v run.Vantage, to func(netip.Addr) netip.Addr) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	s := &socksVantage{name: name, v: v, l: l, to: to}
	s.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.wg.Go(func() { s.serve(ctx, c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { l.Close(); s.wg.Wait() })
	return l.Addr().String()
}

func (s *socksVantage) serve(ctx context.Context, c *net.TCPConn) {
	defer c.Close()
	var b [22]byte
	if _, err := io.ReadFull(c, b[:3]); err != nil {
		return
	}
	c.Write([]byte{5, 0})
	if _, err := io.ReadFull(c, b[:4]); err != nil {
		return
	}
	size := 4
	if b[3] == 4 {
		size = 16
	}
	if _, err := io.ReadFull(c, b[:size+2]); err != nil {
		return
	}
	a, _ := netip.AddrFromSlice(b[:size])
	up, err := s.v.Dial(ctx, netip.AddrPortFrom(s.to(a), uint16(b[size])<<8|uint16(b[size+1])))
	if err != nil {
		code := byte(1)
		switch {
		case errors.Is(err, syscall.ECONNREFUSED):
			code = 5
		case errors.Is(err, syscall.EHOSTUNREACH):
			code = 4
		case errors.Is(err, syscall.ENETUNREACH):
			code = 3
		}
		c.Write([]byte{5, code, 0, 1, 0, 0, 0, 0, 0, 0})
		return
	}
	defer up.Close()
	local := up.LocalAddr().(*net.TCPAddr).AddrPort()
	reply := []byte{5, 0, 0, 1}
	if local.Addr().Unmap().Is6() {
		reply[3] = 4
	}
	reply = append(reply, local.Addr().Unmap().AsSlice()...)
	c.Write(append(reply, byte(local.Port()>>8), byte(local.Port())))
	carry(c, up)
}

// carry copies both ways until both have ended.
func carry(c *net.TCPConn, up net.Conn) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		io.Copy(up, c)
		up.(interface{ CloseWrite() error }).CloseWrite()
	}()
	if _, err := io.Copy(c, up); err != nil {
		c.SetLinger(0)
	}
	c.CloseWrite()
	up.Close()
	c.SetReadDeadline(time.Unix(1, 0))
	<-done
}

// A foreign is a lab whose sources stand as an operator's own servers do: each
// is reached through a site file alone, its log through a command.
type foreign struct {
	lab *Lab
	dir string
	via map[string]string // SOCKS servers by vantage
	env map[string]string
	ssh string // the program that is used as ssh; empty for the system's

	slots chan struct{} // taken by what is judged beside others
}

func standForeign(ctx context.Context, t *testing.T, specs ...harness.SourceSpec) *foreign {
	t.Helper()
	l := startLab(ctx, t, Options{Sources: specs, Proxy: ReferenceProxy(specs)})
	for _, f := range l.Failures() {
		t.Fatal(f)
	}
	f := &foreign{lab: l, dir: t.TempDir(), via: map[string]string{}, env: map[string]string{}, slots: make(chan struct{}, 6)}
	assert.NilError(t, os.WriteFile(filepath.Join(f.dir, "ca.pem"), l.ca.PEM(), 0o600))
	for _, h := range fixtures.Hosts() {
		f.via[h.Vantage] = serveSOCKS(ctx, t, h.Vantage, l.Target().Vantages[h.Vantage], func(a netip.Addr) netip.Addr {
			for i := range specs {
				p := fixtures.NetworkNamed(fixtures.ProxyNet).Source(i)
				if a == p.IP4 || a == p.IP6 {
					return l.Target().Sources[i].Addr(h.Vantage, run.FamilyOf(a))
				}
			}
			return a
		})
	}
	return f
}

// site writes the file for source i.
func (f *foreign) site(t *testing.T, i int) string {
	t.Helper()
	src := f.lab.Target().Sources[i]
	at := fixtures.NetworkNamed(fixtures.ProxyNet).Source(i)
	ca := filepath.Join(f.dir, "ca.pem")
	var b strings.Builder
	fmt.Fprintf(&b, "domain = %q\n\n[proxy]\nip4 = %q\nip6 = %q\ntls = \"name:%s,ca:%s\"\n", fixtures.Domain, fixtures.Public().IP4, fixtures.Public().IP6, fixtures.PublicHost, ca)
	for _, e := range harness.ProxyEndpoints() {
		fmt.Fprintf(&b, "%s = %d\n", e.Name, e.Port)
	}
	b.WriteString("\n[vantage]\n")
	for _, h := range fixtures.Hosts() {
		fmt.Fprintf(&b, "%s = { by = \"socks5:%s\", ip4 = %q, ip6 = %q }\n", h.Vantage, f.via[h.Vantage], h.IP4, h.IP6)
	}
	fmt.Fprintf(&b, "\n[source.old]\nkind = %q\nversion = %q\nip4 = %q\nip6 = %q\ntls = \"name:%s,ca:%s\"\n", src.Kind, src.Version, at.IP4, at.IP6, fixtures.SourceHost(i), ca)
	fmt.Fprintf(&b, "log = \"command:docker logs --follow --tail 0 %s 2>&1\"\n", fmt.Sprintf("mailproof-source%d-%s", i, plainName(src.Name)))
	for _, e := range harness.SourceEndpoints(src.Kind) {
		fmt.Fprintf(&b, "%s = %d\n", e.Name, e.Port)
	}
	for n, a := range src.Accounts.(*harness.AccountPool).All()[:20] {
		key := fmt.Sprintf("MAILPROOF_TEST_%d_%d", i, n)
		f.env[key] = a.Password
		fmt.Fprintf(&b, "\n[account.probe%d]\naddress = %q\npassword = \"env:%s\"\n", n, a.Address, key)
	}
	return b.String()
}

func (f *foreign) judge(ctx context.Context, t *testing.T, text string, opts ...harness.Option) *result.Run {
	t.Helper()
	found, err := f.try(ctx, text, opts...)
	assert.NilError(t, err)
	return found
}

// try judges what a site file describes.
func (f *foreign) try(ctx context.Context, text string, opts ...harness.Option) (*result.Run, error) {
	file, err := site.Parse(filepath.Join(f.dir, "site.toml"), []byte(text))
	if err != nil {
		return nil, err
	}
	target, err := site.Open(ctx, file, site.Options{SSH: f.ssh, Env: func(name string) (string, bool) { v, ok := f.env[name]; return v, ok }})
	if err != nil {
		return nil, err
	}
	return harness.Run(ctx, target, append([]harness.Option{harness.Rate(500)}, opts...)...)
}

// start judges what a site file describes beside others, six of them at a
// time at most, and gives back who waits for the result. Most of the time each
// waits for its server: the tests' own number at a time is for tests that compute.
func (f *foreign) start(ctx context.Context, t *testing.T, text string, opts ...harness.Option) (judged func(*testing.T) *result.Run) {
	var found *result.Run
	var err error
	done := make(chan struct{})
	t.Cleanup(func() { <-done })
	go func() {
		defer close(done)
		f.slots <- struct{}{}
		defer func() { <-f.slots }()
		found, err = f.try(ctx, text, opts...)
	}()
	return func(t *testing.T) *result.Run {
		t.Helper()
		<-done
		assert.NilError(t, err)
		return found
	}
}

// shipped is a source as Debian ships it, with the guide's recipe and either a
// defect or our remedies: a remedy would mend some of the defects.
func shipped(t *testing.T, release string, defects ...string) harness.SourceSpec {
	t.Helper()
	remedies, err := fixtures.Remedies(fixtures.DovecotPostfix, release)
	assert.NilError(t, err)
	s := spec1(strings.Join(append([]string{release}, defects...), "-"), release, fixtures.AsShipped)
	if len(defects) == 0 {
		s.Layers = append(s.Layers, remedies)
	}
	for _, name := range defects {
		d, err := fixtures.DefectNamed(name)
		assert.NilError(t, err)
		layer, err := d.Layer(release)
		assert.NilError(t, err)
		s.Layers = append(s.Layers, layer)
	}
	return s
}

func everything() []harness.Option {
	return []harness.Option{harness.MaxRisk(script.R4), harness.Allow(run.Allowances()...)}
}

func tell(t *testing.T, found *result.Run) {
	t.Helper()
	t.Logf("%s; %d results in %.1f s", found.Answer.Sentence, len(found.Results), found.Seconds)
	for _, p := range found.Problems {
		t.Logf("problem: %s: %s", p.Where, p.Words)
	}
	for i := range found.Results {
		if r := &found.Results[i]; r.Verdict != result.Pass && r.Verdict != result.Unsupported && (r.Level == result.Must || r.Verdict != result.Fail) {
			t.Logf("%s: %s %s%s", r.Key(), r.Verdict, r.Reason, harness.Describe(r))
		}
	}
}

// rehearsal skips a test that takes minutes, unless it is asked for.
func rehearsal(t *testing.T) {
	t.Helper()
	if os.Getenv("MAILPROOF_REHEARSE") == "" {
		t.Skip("this rehearsal needs images of its own and takes minutes: make rehearse runs it")
	}
	NeedEngine(t)
}

// Servers of a stranger's, as Debian ships them and reached by nothing but a
// site file, side by side. Good ones of both releases are ready; where a
// vantage, the log or the accounts are missing, that is what is named; and each
// of a dozen misconfigurations is found out, its cause first.
func TestForeignServers(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 6*time.Minute)
	defects := []struct{ name, code string }{
		{"trust-missing", "DX-14"}, {"trust-missing-postfix", "DX-14"}, {"submissions-forgotten", "DX-14"},
		{"trust-subnet", "DX-27"}, {"trust-everyone", "DX-27"}, {"trust-new-server-included", "MP-TRUST-NEW-SERVER"},
		{"inet-protocols-ipv4", "DX-19"}, {"haproxy-listener", "DX-02"}, {"smtpd-upstream-proxy", "DX-06"},
		{"relay-refused", "DX-08"}, {"open-relay", "MP-OPEN-RELAY"}, {"proxy-in-mynetworks", "DX-28"}, {"no-sasl-plain", "MP-SASL-PLAIN"},
	}
	releases := fixtures.Releases(fixtures.DovecotPostfix)
	var specs []harness.SourceSpec
	for _, r := range releases {
		specs = append(specs, shipped(t, r))
	}
	looked := shipped(t, "trixie")
	looked.Name += "-looked-at"
	specs = append(specs, looked)
	for _, d := range defects {
		specs = append(specs, shipped(t, "trixie", d.name))
	}
	f := standForeign(ctx, t, specs...)
	sites := make([]string, len(specs))
	for i := range specs {
		sites[i] = f.site(t, i)
	}
	var good, bad []func(*testing.T) *result.Run
	for i := range releases {
		good = append(good, f.start(ctx, t, sites[i], append(everything(), harness.Jobs(16))...))
	}
	for i := range defects {
		// No sign-in needs to fail for this, and nothing to be flooded.
		bad = append(bad, f.start(ctx, t, sites[len(releases)+1+i], harness.MaxRisk(script.R4), harness.Allow(run.AllowProtocolErrors, run.AllowBadRecipients), harness.Jobs(16)))
	}
	// One server is looked at again and again, and never twice at a time.
	looks := sites[len(releases)]
	for _, c := range []struct{ without, names string }{
		{"", "--max-risk R4"},
		{"client = ", "client to [vantage]"}, {"proxy = ", "proxy to [vantage]"}, {"relay = ", "relay to [vantage]"},
		{"neighbour = ", "neighbour to [vantage]"}, {"stranger = ", "stranger to [vantage]"},
		{"log = ", "to [source.old]"}, {"[account.", "1 account of old"},
	} {
		t.Run("first look "+strings.TrimRight(strings.Replace("without "+c.without, "[", "", 1), ". ="), func(t *testing.T) {
			var kept []string
			for _, l := range strings.Split(looks, "\n") {
				if c.without == "[account." && strings.HasPrefix(l, c.without) {
					break // the accounts stand last
				}
				if c.without == "" || !strings.HasPrefix(l, c.without) {
					kept = append(kept, l)
				}
			}
			found := f.judge(ctx, t, strings.Join(kept, "\n"), func(o *run.Options) { o.MaxRisk, o.Brief = script.R1, true })
			t.Logf("%s; %+v in %.1f s", found.Answer.Sentence, found.Counts, found.Seconds)
			assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged, found.Answer.Sentence)
			assert.Check(t, strings.Contains(found.Answer.Sentence, c.names), found.Answer.Sentence)
			assert.Check(t, found.Counts.Pass > 0 && found.Counts.Fail+found.Counts.Error == 0, "%+v", found.Counts)
		})
	}
	for i, d := range defects {
		t.Run(d.name, func(t *testing.T) {
			found := bad[i](t)
			t.Logf("%s (%.1f s)", found.Answer.Sentence, found.Seconds)
			assert.Equal(t, found.Answer.Verdict, result.NotReady, found.Answer.Sentence)
			assert.Assert(t, len(found.Diagnoses) > 0, found.Answer.Sentence)
			assert.Equal(t, found.Diagnoses[0].Code, d.code, found.Answer.Sentence)
		})
	}
	for i, r := range releases {
		t.Run("good "+r, func(t *testing.T) {
			found := good[i](t)
			tell(t, found)
			assert.Equal(t, found.Answer.Verdict, result.Ready, found.Answer.Sentence)
			assert.Check(t, slices.ContainsFunc(found.Notices, func(n string) bool { return strings.Contains(n, "none is left") }), "%q", found.Notices)
		})
	}
}
