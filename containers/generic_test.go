package containers

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
)

//go:embed testdata/generic/start.sh
var genericStart string

//go:embed testdata/generic/smtpd.conf
var genericSMTPD string

//go:embed testdata/generic/imapd.conf
var genericIMAPD string

//go:embed testdata/generic/cyrus.conf
var genericCyrus string

// genericRecipe is the image of a server that the project knows nothing of:
// OpenSMTPD and Cyrus as Debian ships them.
func genericRecipe() recipe {
	names := []string{"ca-certificates", "cyrus-imapd", "cyrus-pop3d", "libsasl2-modules", "netbase", "nftables", "opensmtpd", "rsyslog", "sasl2-bin"}
	h := sha256.New()
	fmt.Fprintln(h, "1", "trixie", names, leftOut())
	return recipe{"mailproof/opensmtpd-cyrus", "trixie", fmt.Sprintf("%x", h.Sum(nil))[:12], names}
}

// A strange source is an OpenSMTPD and a Cyrus at the addresses of the lab's
// source of an index.
type strange struct {
	index     int
	container string
	accounts  []run.Account
}

// fence is a packet filter that lets only the proxy reach the submission ports:
// OpenSMTPD takes a PROXY header from whoever connects.
func fence() string {
	hosts := fixtures.Hosts()
	p := hosts[slices.IndexFunc(hosts, func(h fixtures.Host) bool { return h.Vantage == run.Proxy })]
	return fmt.Sprintf(`table inet fence {
  chain in {
    type filter hook input priority 0;
    tcp dport 587 ip saddr != %s reject with tcp reset
    tcp dport 587 ip6 saddr != %s reject with tcp reset
  }
}
`, p.IP4, p.IP6)
}

// standStrange starts one on a lab's engine; the lab removes it with itself.
func standStrange(ctx context.Context, t *testing.T, l *Lab, index int, accounts []run.Account, fenced bool) *strange {
	t.Helper()
	image, err := l.e.releaseImage(ctx, genericRecipe(), l.progress)
	assert.NilError(t, err)
	s := &strange{index: index, container: fmt.Sprintf("mailproof-strange%d", index), accounts: accounts}
	var users, recipients strings.Builder
	for _, a := range accounts {
		fmt.Fprintf(&users, "%s %s\n", a.Address, a.Password)
		fmt.Fprintf(&recipients, "%s\n", a.Address)
	}
	cert, key, err := l.ca.Leaf(fixtures.SourceHost(index), sourcePairs(index)...)
	assert.NilError(t, err)
	rules := ""
	if fenced {
		rules = fence()
	}
	names := strings.NewReplacer("@domain@", fixtures.Domain, "@host@", fixtures.SourceHost(index))
	text := func(path, text string) file { return file{path, 0o644, []byte(names.Replace(text))} }
	var joints []joint
	for _, n := range fixtures.Networks() {
		joints = append(joints, joint{l.networkName(n.Name), n.Source(index)})
	}
	c, err := l.e.create(ctx, spec{name: s.container, image: image, cmd: []string{"/bin/sh", "/mailproof/start"}, joints: joints,
		labels: l.labels(), host: fixtures.SourceHost(index), caps: []string{"NET_ADMIN"},
		files: []file{text("/mailproof/start", genericStart), text("/etc/smtpd.conf", genericSMTPD), text("/etc/imapd.conf", genericIMAPD), text("/etc/cyrus.conf", genericCyrus),
			{"/mailproof/cert.pem", 0o644, cert}, {"/mailproof/key.pem", 0o644, key}, {"/mailproof/fence", 0o644, []byte(rules)},
			{"/mailproof/accounts", 0o600, []byte(users.String())}, {"/mailproof/recipients", 0o644, []byte(recipients.String())}}})
	assert.NilError(t, err)
	assert.NilError(t, l.e.start(ctx, c.GetContainerID()))
	at := fixtures.NetworkNamed(fixtures.ClientNet).Source(index)
	for _, port := range []uint16{25, 143, 993, 995} {
		assert.NilError(t, awaitAnswer(ctx, l, netip.AddrPortFrom(at.IP4, port)))
	}
	return s
}

// awaitAnswer waits until a port takes connections.
func awaitAnswer(ctx context.Context, l *Lab, to netip.AddrPort) error {
	ctx, cancel := context.WithTimeout(ctx, startFor)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond) // the servers tell nobody when they listen
	defer tick.Stop()
	for {
		c, err := l.Target().Vantages[run.Client].Dial(ctx, to)
		if err == nil {
			return c.Close()
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer: %w", to, err)
		}
	}
}

// declared writes the site file of one, as its operator would: announces says
// how it is told of clients.
func (f *foreign) declared(s *strange, announces string) string {
	at := fixtures.NetworkNamed(fixtures.ProxyNet).Source(s.index)
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
	fmt.Fprintf(&b, "\n[source.old]\nkind = \"generic\"\nannounces = %s\nip4 = %q\nip6 = %q\ntls = \"name:%s,ca:%s\"\n", announces, at.IP4, at.IP6, fixtures.SourceHost(s.index), ca)
	fmt.Fprintf(&b, "log = \"command:docker logs --follow --tail 0 %s 2>&1\"\n", s.container)
	for _, e := range harness.Endpoints() {
		if e.Name != "submissions" { // see testdata/generic/smtpd.conf
			fmt.Fprintf(&b, "%s = %d\n", e.Name, e.Port)
		}
	}
	for n, a := range s.accounts {
		key := fmt.Sprintf("MAILPROOF_TEST_%d_%d", s.index, n)
		f.env[key] = a.Password
		fmt.Fprintf(&b, "\n[account.probe%d]\naddress = %q\npassword = \"env:%s\"\n", n, a.Address, key)
	}
	return b.String()
}

// How an OpenSMTPD with proxy-v2 and a Cyrus are really told of clients, and
// two ways of getting that wrong.
const (
	truth     = `{ imap = "none", imaps = "none", pop3 = "none", pop3s = "none", sieve = "none", submission = "proxy" }`
	tooLittle = `"none"`
	tooMuch   = `"proxy"`
)

// An OpenSMTPD and a Cyrus, of which mailproof knows nothing, are judged by
// what is declared of them; a declaration that is wrong is found out.
func TestOpenSMTPDAndCyrus(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 6*time.Minute)
	specs := []harness.SourceSpec{spec1("trixie", "trixie", fixtures.Instrumented)}
	// One of each declaration, side by side: most of the time each waits.
	cases := []struct {
		name, announces string
		fenced          bool
	}{{"declared truthfully", truth, true}, {"declared as none", tooLittle, true}, {"declared as proxy", tooMuch, true}, {"without a fence", truth, false}}
	told := []fixtures.Forwarding{fixtures.ForwardingOf(fixtures.DovecotPostfix)}
	var mapping strings.Builder
	accounts := make([][]run.Account, len(cases))
	for i := range cases {
		told = append(told, fixtures.Forwarding{Mail: "none", Submission: "proxy"})
		accounts[i] = harness.NewAccountPool(i + 1).All()[:24]
		for _, a := range accounts[i] {
			fmt.Fprintf(&mapping, "%q = %q\n", a.Address, fixtures.Destination(i+1))
		}
	}
	proxy := ReferenceProxy(specs)
	proxy.Config = fixtures.ProxyConfigTo(told, "cert = \""+ProxyCertPath+"\"\nkey = \""+ProxyKeyPath+"\"", "source = \"inline\"\n[mapping.inline]\n"+mapping.String())
	l := startLab(ctx, t, Options{Sources: specs, Proxy: proxy})
	for _, f := range l.Failures() {
		t.Fatal(f)
	}
	f := &foreign{lab: l, dir: t.TempDir(), via: map[string]string{}, env: map[string]string{}, slots: make(chan struct{}, len(cases))}
	assert.NilError(t, os.WriteFile(filepath.Join(f.dir, "ca.pem"), l.ca.PEM(), 0o600))
	for _, h := range fixtures.Hosts() {
		own := fixtures.NetworkNamed(h.Network)
		f.via[h.Vantage] = serveSOCKS(ctx, t, h.Vantage, l.Target().Vantages[h.Vantage], func(a netip.Addr) netip.Addr {
			for i := range len(told) {
				if p := fixtures.NetworkNamed(fixtures.ProxyNet).Source(i); a == p.IP4 || a == p.IP6 {
					return own.Source(i).Of(string(run.FamilyOf(a)))
				}
			}
			return a
		})
	}
	sites := make([]string, len(cases))
	for i, c := range cases {
		sites[i] = f.declared(standStrange(ctx, t, l, i+1, accounts[i], c.fenced), c.announces)
	}
	judged := make([]func(*testing.T) *result.Run, len(cases))
	for i, c := range cases {
		opts := append(everything(), harness.Jobs(12))
		if c.announces != truth {
			opts = []harness.Option{harness.Allow(run.Allowances()...), harness.Jobs(12)}
		}
		judged[i] = f.start(ctx, t, sites[i], opts...)
	}

	t.Run(cases[0].name, func(t *testing.T) {
		found := judged[0](t)
		tell(t, found)
		assert.Equal(t, found.Answer.Verdict, result.Ready, found.Answer.Sentence)
	})
	for i, code := range map[int]string{1: "MP-DECLARED-NONE", 2: "MP-DECLARED-PROXY"} {
		t.Run(cases[i].name, func(t *testing.T) {
			found := judged[i](t)
			for _, d := range found.Diagnoses {
				t.Logf("%s %s; %s", d.Code, d.Title, strings.Join(d.DiscriminatedBy, "; "))
			}
			t.Logf("%s (%.1f s)", found.Answer.Sentence, found.Seconds)
			assert.Equal(t, found.Answer.Verdict, result.NotReady, found.Answer.Sentence)
			assert.Assert(t, len(found.Diagnoses) > 0)
			assert.Equal(t, found.Diagnoses[0].Code, code)
			assert.Assert(t, !slices.ContainsFunc(found.Results, func(r result.Result) bool { return r.Verdict == result.Error }))
		})
	}
	// What is true of OpenSMTPD itself: it asks nobody who sends a header.
	t.Run(cases[3].name, func(t *testing.T) {
		found := judged[3](t)
		tell(t, found)
		assert.Equal(t, found.Answer.Verdict, result.NotReady, found.Answer.Sentence)
		assert.Equal(t, found.Diagnoses[0].Code, "DX-27", found.Answer.Sentence)
		for i := range found.Results {
			if r := &found.Results[i]; r.Verdict == result.Fail && r.Level == result.Must {
				assert.Check(t, strings.HasPrefix(r.ID, "trust.forged-submission-"), "%s fails as well", r.Key())
			}
		}
	})
}
