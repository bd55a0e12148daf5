package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/reference/proxy"
	"github.com/mailproof/mailproof/harness/reference/source"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/wire"
)

// The addresses of a site on this machine's loopback.
const (
	loopClient, loopProxy, loopRelay = "127.0.0.11", "127.0.0.12", "127.0.0.13"
	loopNeighbour, loopStranger      = "127.0.0.14", "127.0.0.15"
	loopSource, loopPublic           = "127.0.0.100", "127.0.0.101"
	loopCanary                       = "canary-Zk7qWv93xH" // begins every password
)

// quick is the pace of tests: nobody is to be spared.
const quick = "1000"

// A loopback is a reference source and the reference proxy on real sockets,
// with the site file by which they are judged.
type loopback struct {
	ca   *fixtures.Authority
	dir  string
	site string // its path
	text string
}

// ports gives each address and port that a server asks for a free port of
// this machine's.
type ports struct {
	mu   sync.Mutex
	real map[uint16]uint16
}

func (p *ports) listen(host string) func(netip.AddrPort) (net.Listener, error) {
	return func(at netip.AddrPort) (net.Listener, error) {
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			return nil, err
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.real[at.Port()] = l.Addr().(*net.TCPAddr).AddrPort().Port()
		return l, nil
	}
}

func startLoopback(t *testing.T, release string, defects ...string) *loopback {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has all of 127.0.0.0/8 on its loopback")
	}
	ca, err := fixtures.NewAuthority()
	assert.NilError(t, err)
	l := &loopback{ca: ca, dir: t.TempDir()}

	names := fixtures.LabNames(0)
	for name, a := range map[string]string{"client4": loopClient, "proxy4": loopProxy, "relay4": loopRelay, "neighbour4": loopNeighbour, "stranger4": loopStranger, "proxynet4": "127.0.0.0/24"} {
		names[name] = a
	}
	names["overlay"] = "/etc/mailproof"
	layers, err := fixtures.Base(fixtures.DovecotPostfix, release, fixtures.AsShipped)
	assert.NilError(t, err)
	for _, more := range []func(string, string) (fixtures.Layer, error){fixtures.GuideRecipe, fixtures.Remedies} {
		layer, err := more(fixtures.DovecotPostfix, release)
		assert.NilError(t, err)
		layers = append(layers, layer)
	}
	for _, name := range defects {
		d, err := fixtures.DefectNamed(name)
		assert.NilError(t, err)
		layer, err := d.Layer(release)
		assert.NilError(t, err)
		layers = append(layers, layer)
	}
	// On this machine everybody stands in the networks that Debian trusts.
	layers = append(layers, fixtures.Layer{Name: "loopback", Files: map[string]string{"postfix/main.cf": "mynetworks = @relay4@\n"}})
	passwords := map[string]string{}
	mapping := map[string]string{}
	var accounts strings.Builder
	for i := range 20 {
		address, password := fmt.Sprintf("probe%d@%s", i, fixtures.Domain), fmt.Sprintf("%s-%d", loopCanary, i)
		passwords[address], mapping[address] = password, fixtures.Destination(0)
		key := fmt.Sprintf("MAILPROOF_TEST_%d", i)
		t.Setenv(key, password)
		fmt.Fprintf(&accounts, "\n[account.probe%d]\naddress = %q\npassword = \"env:%s\"\n", i, address, key)
	}
	cert, err := ca.Certificate(fixtures.SourceHost(0))
	assert.NilError(t, err)
	cfg := source.Config{Release: release, Hostname: fixtures.SourceHost(0), Certificate: cert, Addrs: []netip.Addr{netip.MustParseAddr(loopSource)},
		Users: func(user string) (string, bool) { p, ok := passwords[user]; return p, ok }, Delay: shortened}
	for i, layer := range layers {
		laid := source.Layer{Name: layer.Name, Dir: fmt.Sprintf("/etc/mailproof/%d", i), Files: map[string]string{}}
		for file, text := range layer.Files {
			if fixtures.IsConfig(file) {
				text, err = names.Expand(file, text)
				assert.NilError(t, err)
			}
			laid.Files[file] = text
		}
		cfg.Layers = append(cfg.Layers, laid)
	}
	src, err := source.New(cfg)
	assert.NilError(t, err)
	at := &ports{real: map[uint16]uint16{}}
	assert.NilError(t, src.Start(context.Background(), at.listen(loopSource)))
	log := followInto(t, src, filepath.Join(l.dir, "mail.log"))
	t.Cleanup(func() { assert.Check(t, src.Close()); log() })

	public := startLoopProxy(t, ca, mapping, at)

	var b strings.Builder
	assert.NilError(t, os.WriteFile(filepath.Join(l.dir, "ca.pem"), ca.PEM(), 0o600))
	fmt.Fprintf(&b, "domain = %q\n\n[proxy]\nip4 = %q\ntls = \"name:%s,ca:%s\"\n", fixtures.Domain, loopPublic, fixtures.PublicHost, filepath.Join(l.dir, "ca.pem"))
	for _, e := range harness.ProxyEndpoints() {
		fmt.Fprintf(&b, "%s = %d\n", e.Name, public.real[e.Port])
	}
	fmt.Fprintf(&b, "\n[vantage]\nclient = \"bind:%s\"\nproxy = \"bind:%s\"\nrelay = \"bind:%s\"\nneighbour = \"bind:%s\"\nstranger = \"bind:%s\"\n", loopClient, loopProxy, loopRelay, loopNeighbour, loopStranger)
	fmt.Fprintf(&b, "\n[source.old]\nkind = \"dovecot-postfix\"\nversion = %q\nip4 = %q\ntls = \"name:%s,ca:%s\"\nlog = \"command:tail -n 0 -F %s\"\n", release, loopSource, fixtures.SourceHost(0), filepath.Join(l.dir, "ca.pem"), filepath.Join(l.dir, "mail.log"))
	for _, e := range harness.Endpoints() {
		fmt.Fprintf(&b, "%s = %d\n", e.Name, at.real[e.Port])
	}
	l.text = b.String() + accounts.String()
	l.write(t, l.text)
	return l
}

// shortened passes a twentieth of the time that a server lets pass on purpose:
// after a failed sign-in that is seconds.
func shortened(ctx context.Context, _ net.Conn, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d / 20):
		return nil
	}
}

func (l *loopback) write(t *testing.T, text string) {
	t.Helper()
	l.site = filepath.Join(l.dir, "site.toml")
	assert.NilError(t, os.WriteFile(l.site, []byte(text), 0o600))
}

// followInto writes a source's log to a file.
func followInto(t *testing.T, src *source.Source, path string) (wait func()) {
	t.Helper()
	f, err := os.Create(path)
	assert.NilError(t, err)
	in, err := src.Log(context.Background())
	assert.NilError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer f.Close()
		s := bufio.NewScanner(in)
		for s.Scan() {
			fmt.Fprintln(f, s.Text())
		}
	}()
	return func() { in.Close(); <-done }
}

// startLoopProxy serves the reference proxy on real sockets.
func startLoopProxy(t *testing.T, ca *fixtures.Authority, mapping map[string]string, source *ports) *ports {
	t.Helper()
	text := fixtures.ProxyConfig([]string{fixtures.DovecotPostfix}, "cert = \"unused\"\nkey = \"unused\"", "source = \"inline\"\n[mapping.inline]\n")
	text = strings.ReplaceAll(text, fixtures.NetworkNamed(fixtures.ProxyNet).Source(0).IP4.String(), loopSource)
	cfg, err := proxy.ParseConfig("proxy.toml", []byte(text))
	assert.NilError(t, err)
	cert, err := ca.Certificate(fixtures.PublicHost)
	assert.NilError(t, err)
	for i := range cfg.Certificates {
		cfg.Certificates[i].Loaded = &cert
	}
	for i := range cfg.Listeners {
		cfg.Listeners[i].Binds = cfg.Listeners[i].Binds[:1]
	}
	cfg.Mapping.Inline = mapping
	at := &ports{real: map[uint16]uint16{}}
	p, err := proxy.New(cfg, proxy.Options{Roots: ca.Pool(), Listen: at.listen(loopPublic),
		Dial: func(ctx context.Context, _ netip.Addr, to netip.AddrPort) (net.Conn, error) {
			d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(loopProxy), 0))}
			return d.DialContext(ctx, "tcp", net.JoinHostPort(loopSource, fmt.Sprint(source.real[to.Port()])))
		}})
	assert.NilError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- p.Serve(ctx) }()
	t.Cleanup(func() { cancel(); assert.Check(t, <-ended) })
	<-p.Ready()
	return at
}

func (l *loopback) run(t *testing.T, args ...string) (said, *result.Run) {
	t.Helper()
	return l.within(t, wire.Deadlines{}, args...)
}

// within runs with deadlines of the test's own.
func (l *loopback) within(t *testing.T, dl wire.Deadlines, args ...string) (said, *result.Run) {
	t.Helper()
	s := mailproofWithin(t.Context(), dl, nil, append([]string{"run", "--site", l.site, "--rate", quick, "--json", filepath.Join(l.dir, "result.json")}, args...)...)
	found := l.report(t)
	assert.Assert(t, !strings.Contains(s.out+s.err, loopCanary), "a password was told")
	return s, found
}

// report reads what the last run wrote.
func (l *loopback) report(t *testing.T) *result.Run {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(l.dir, "result.json"))
	assert.NilError(t, err)
	assert.Assert(t, !strings.Contains(string(text), loopCanary), "a password was told")
	var found result.Run
	assert.NilError(t, json.Unmarshal(text, &found))
	return &found
}

func TestSiteFirstLook(t *testing.T) {
	l := startLoopback(t, "bookworm")
	plan := mailproof(t, "plan", "--site", l.site, "--rate", quick, "--json")
	assert.Equal(t, plan.code, result.ExitOK, plan.err)
	var p run.Plan
	assert.NilError(t, json.Unmarshal([]byte(plan.out), &p))
	assert.Assert(t, p.Demand.Connections <= 60 && p.Demand.SignIns+p.Demand.FailedSignIns <= 25 && p.Demand.UnknownUsers == 0 && p.Demand.Messages == 0, "%+v", *p.Demand)
	for _, v := range []string{run.Proxy, run.Relay} {
		assert.Assert(t, p.Blame[v].Zero(), "%s: %+v", v, p.Blame[v])
	}
	s, found := l.run(t, "--approve", p.SHA256[:12])
	t.Logf("%+v\n%s", *p.Demand, s.err)
	assert.Equal(t, s.code, result.ExitUnjudged)
	assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged, found.Answer.Sentence)
	assert.Check(t, cmp.Contains(found.Answer.Sentence, "--max-risk R4"))
	assert.Equal(t, found.Counts.Fail+found.Counts.Error, 0)
}

func TestSiteReadyOnSockets(t *testing.T) {
	l := startLoopback(t, "trixie")
	s, found := l.run(t, "--max-risk", "R4", "--allow", strings.Join(run.Allowances(), ","))
	t.Log(s.err)
	assert.Equal(t, found.Answer.Verdict, result.Ready, found.Answer.Sentence)
	assert.Equal(t, s.code, result.ExitOK)
}

// change gives the site file another text in one place.
func (l *loopback) change(t *testing.T, old, text string) {
	t.Helper()
	changed := strings.Replace(l.text, old, text, 1)
	assert.Assert(t, changed != l.text, "the site file has no %q", old)
	l.write(t, changed)
}

// A server that misbehaves is told of, and nothing hangs past its deadlines.
func TestSiteOfServersThatMisbehave(t *testing.T) {
	l := startLoopback(t, "bookworm")
	var imaps string
	for _, line := range strings.Split(l.text[strings.Index(l.text, "[source.old]"):], "\n") {
		if strings.HasPrefix(line, "imaps = ") {
			imaps = line
		}
	}
	serve := func(t *testing.T, f func(net.Conn)) string {
		s, err := net.Listen("tcp", net.JoinHostPort(loopSource, "0"))
		assert.NilError(t, err)
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				c, err := s.Accept()
				if err != nil {
					return
				}
				wg.Go(func() { f(c); c.Close() })
			}
		})
		t.Cleanup(func() { s.Close(); wg.Wait() })
		return fmt.Sprintf("imaps = %d", s.Addr().(*net.TCPAddr).Port)
	}
	drain := func(c net.Conn) { bufio.NewReader(c).WriteTo(discard{}) }
	for name, tc := range map[string]struct {
		f      func(net.Conn)
		says   string
		silent bool // and is waited for
	}{
		"speaks no TLS":  {func(c net.Conn) { fmt.Fprint(c, "* OK hello\r\n"); drain(c) }, "DX-17", false},
		"never speaks":   {drain, "imaps", true},
		"closes at once": {func(net.Conn) {}, "DX-02", false},
		"resets": {func(c net.Conn) { // once the client has spoken: before, its connect may fail instead
			c.Read(make([]byte, 1))
			c.(*net.TCPConn).SetLinger(0)
		}, "DX-02", false},
		"says endless junk": {func(c net.Conn) {
			for {
				if _, err := c.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}, "DX-17", false},
	} {
		t.Run(name, func(t *testing.T) {
			at := strings.Index(l.text, "[source.old]")
			l.write(t, l.text[:at]+strings.Replace(l.text[at:], imaps, serve(t, tc.f), 1))
			dl := wire.Site()
			if tc.silent {
				dl.Handshake = 3 * time.Second
			}
			s, found := l.within(t, dl)
			assert.Equal(t, s.code, result.ExitFailed, s.err)
			assert.Equal(t, found.Answer.Verdict, result.NotReady)
			assert.Check(t, cmp.Contains(found.Answer.Sentence, tc.says))
			assert.Check(t, found.Seconds < 60, "%.1f s", found.Seconds)
		})
	}
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// A source that is down altogether is no list of failures.
func TestSiteThatIsDown(t *testing.T) {
	l := startLoopback(t, "bookworm")
	l.change(t, fmt.Sprintf("ip4 = %q\ntls = \"name:%s", loopSource, fixtures.SourceHost(0)), fmt.Sprintf("ip4 = \"127.0.0.200\"\ntls = \"name:%s", fixtures.SourceHost(0)))
	s, found := l.run(t)
	assert.Equal(t, s.code, result.ExitUnjudged, s.err)
	assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged)
	assert.Check(t, cmp.Contains(s.err, "is down: no declared endpoint of it accepts a connection"))
	assert.Equal(t, found.Counts.Fail, 0)
}

// A certificate that is not what the file expects fails the claim, in its words.
func TestSiteWithAnotherCertificate(t *testing.T) {
	l := startLoopback(t, "bookworm")
	l.change(t, "name:"+fixtures.SourceHost(0), "name:other.example.test")
	_, found := l.run(t)
	assert.Equal(t, found.Answer.Verdict, result.NotReady)
	assert.Check(t, cmp.Contains(found.Answer.Sentence, "DX-17"))
}

// An account that is locked, or whose password is wrong, is told apart from a
// server that refuses everybody.
func TestSiteWhoseAccountIsLocked(t *testing.T) {
	l := startLoopback(t, "bookworm")
	for i := range 20 {
		t.Setenv(fmt.Sprintf("MAILPROOF_TEST_%d", i), loopCanary+"-of-yesterday")
	}
	s, found := l.run(t)
	t.Log(found.Answer.Sentence)
	assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged)
	assert.Check(t, cmp.Contains(found.Answer.Sentence, "the right password of probe0@"))
	assert.Equal(t, found.Counts.Fail, 0, s.err)
	log, err := os.ReadFile(filepath.Join(l.dir, "mail.log"))
	assert.NilError(t, err)
	all := 0
	for i := range 20 {
		refused := len(regexp.MustCompile(fmt.Sprintf(`auth failed, 1 attempts in \d+ secs\): user=<probe%d@`, i)).FindAll(log, -1))
		assert.Check(t, refused <= 2, "probe%d was refused %d times", i, refused)
		all += refused
	}
	assert.Check(t, all > 0, "the log names no refused sign-in")
}

func TestSiteUsage(t *testing.T) {
	l := startLoopback(t, "bookworm")
	for name, tc := range map[string]struct {
		args []string
		want string
	}{
		"no file":       {[]string{"run", "--site", l.site + ".none"}, "no such file"},
		"a lab as well": {[]string{"run", "--site", l.site, "--lab", "reference"}, "a site is no lab"},
		"a defect":      {[]string{"plan", "--site", l.site, "--defect", "trust-missing"}, "are for labs"},
		"keep":          {[]string{"run", "--site", l.site, "--keep"}, "nothing is started for a site"},
		"rate":          {[]string{"run", "--site", l.site, "--rate=-1"}, "it must be above 0"},
		"rate of a lab": {[]string{"plan", "--lab", "reference", "--rate", "3"}, "it is for --site"},
		"allow":         {[]string{"run", "--site", l.site, "--allow", "everything"}, "no such hazard"},
		"hash":          {[]string{"run", "--site", l.site, "--approve", "0123456789ab"}, "look at the plan again"},
		"proxy config":  {[]string{"init", "--proxy-config", l.site}, "the format has no such key here"},
	} {
		t.Run(name, func(t *testing.T) {
			s := mailproof(t, tc.args...)
			assert.Equal(t, s.code, result.ExitUsage, s.err)
			assert.Check(t, cmp.Contains(s.err, tc.want))
		})
	}
	l.change(t, "[vantage]", "[vantages]")
	s := mailproof(t, "run", "--site", l.site)
	assert.Equal(t, s.code, result.ExitUsage)
	assert.Check(t, cmp.Contains(s.err, l.site+":"))
	assert.Check(t, cmp.Contains(s.err, "vantages: unknown key"))
}
