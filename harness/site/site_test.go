package site

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/harness/reference/proxy"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/scenarios"
)

func TestMain(m *testing.M) {
	if what := os.Getenv(asSSH); what != "" {
		pretendSSH(what)
	}
	goleak.VerifyTestMain(m)
}

const good = `domain = "example.org"

[proxy]
host = "mail.example.org"
ip4 = "192.0.2.1"
imap = 143
imaps = 993

[vantage]
proxy = "bind:192.0.2.2,2001:db8::2"
client = { by = "socks5:127.0.0.1:1080", ip4 = "198.51.100.7" }
relay = { by = "ssh:root@new", ip6 = "2001:db8::9" }
neighbour = "none"

[source.old]
kind = "dovecot-postfix"
version = "bookworm"
ip4 = "192.0.2.10"
tls = "unchecked:self-signed until the cutover"
imap = 143
smtp = 25
log = "command: ssh old journalctl -f -n 0"

[account.one]
address = "probe1@example.org"
password = "env:PROBE1"

[account.two]
source = "old"
address = "probe2@example.org"
password = "file:/run/secrets/probe2"
shared = true

[exclude]
"relay.size" = { reason = "known", until = 2027-01-31 }
`

func TestParse(t *testing.T) {
	f, err := Parse("site.toml", []byte(good))
	assert.NilError(t, err)
	assert.Equal(t, f.Domain, "example.org")
	assert.Equal(t, f.Proxy.TLS.Name, "mail.example.org")
	assert.Equal(t, len(f.Proxy.Endpoints), 2)
	assert.Equal(t, len(f.Vantages), 3)
	assert.Equal(t, f.Vantages["proxy"].IP6, netip.MustParseAddr("2001:db8::2"))
	assert.Equal(t, f.Vantages["relay"].What, "root@new")
	s := f.Sources[0]
	assert.Equal(t, s.Log, Log{How: "command", What: "ssh old journalctl -f -n 0"})
	assert.Equal(t, len(s.Accounts), 2)
	assert.Assert(t, s.Accounts[1].Shared)
	assert.Equal(t, f.Exclude[0].Until, time.Date(2027, 1, 31, 0, 0, 0, 0, time.UTC))
}

// Every mistake is told with its line and column, and none is read over.
func TestParseRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ old, new, want string }{
		"syntax":            {`domain = "example.org"`, `domain = `, "site.toml:1:1"},
		"no domain":         {`domain = "example.org"`, ``, "domain is missing"},
		"unknown key":       {`kind = "dovecot-postfix"`, "kind = \"dovecot-postfix\"\ncolour = \"red\"", "site.toml:17:1: source.old.colour: unknown key; there are host"},
		"unknown table":     {"[exclude]", "[sources]\n[exclude]", "sources: unknown key; there are domain, proxy"},
		"plain password":    {"env:PROBE1", "hunter2-secret", "site.toml:26:1: account.one.password: a password does not stand here"},
		"secret's kind":     {"env:PROBE1", "vault:PROBE1", "write env:NAME, file:PATH or command:COMMAND"},
		"port":              {"imaps = 993", "imaps = 99300", "site.toml:7:1: proxy.imaps: must be a port, 1 to 65535"},
		"port as text":      {"imaps = 993", `imaps = "993"`, "must be a port"},
		"kind":              {`"dovecot-postfix"`, `"exchange"`, `unknown kind "exchange"`},
		"kind undeclared":   {`"dovecot-postfix"`, `"generic"`, "announces is missing"},
		"other's version":   {`"dovecot-postfix"`, `"stalwart"`, `unknown version "bookworm"; there are 0.15.5`},
		"log of another":    {"command: ssh old", "api:http://old:8080/#", "write file:PATH or command:COMMAND"},
		"log key of none":   {`version = "bookworm"`, "version = \"bookworm\"\nlog-secret = \"env:X\"", "log-secret: unknown key"},
		"version":           {`"bookworm"`, `"sid"`, `unknown version "sid"`},
		"family":            {`ip4 = "192.0.2.10"`, `ip4 = "2001:db8::1"`, "no address of this family"},
		"same vantage":      {`neighbour = "none"`, `neighbour = "bind:192.0.2.2"`, "has the same address as the vantage proxy"},
		"unknown vantage":   {`neighbour = "none"`, `neighbor = "none"`, "vantage.neighbor: unknown key"},
		"ssh option":        {"ssh:root@new", "ssh:-oProxyCommand=x", "no host of ssh's"},
		"ssh no address":    {`{ by = "ssh:root@new", ip6 = "2001:db8::9" }`, `"ssh:new"`, "the address that servers see is missing"},
		"socks no port":     {"socks5:127.0.0.1:1080", "socks5:127.0.0.1", "is no address and port"},
		"no way":            {`neighbour = "none"`, `neighbour = "carrier-pigeon"`, "is no way to reach a vantage"},
		"log":               {"command: ssh old", "syslog: ssh old", "write file:PATH or command:COMMAND"},
		"no tls":            {"tls = \"unchecked:self-signed until the cutover\"\n", "", "tls is missing"},
		"unchecked why":     {"unchecked:self-signed until the cutover", "unchecked:", "the reason is missing"},
		"pin":               {"unchecked:self-signed until the cutover", "pin:sha256:abc", "is no pin"},
		"exclusion why":     {`reason = "known", `, ``, "reason is missing"},
		"exclusion forever": {`, until = 2027-01-31`, ``, "until is missing"},
		"exclusion's day":   {`until = 2027-01-31`, `until = "2027-01-31"`, "must be a day without quotation marks"},
		"account's source":  {`source = "old"`, `source = "new"`, "there is no [source.new]"},
		"account twice":     {"probe2@", "probe1@", "is named twice"},
		"injection":         {"probe2@example.org", `probe2\r\nQUIT@example.org`, "must be one line"},
		"many lines":        {`"command: ssh old journalctl -f -n 0"`, "\"command: a\\nb\"", "must be one line"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(good, tc.old, tc.new, 1)
			assert.Assert(t, text != good)
			_, err := Parse("site.toml", []byte(text))
			var all Errors
			assert.Assert(t, errors.As(err, &all), "%v", err)
			assert.Check(t, cmp.Contains(err.Error(), tc.want))
			for _, e := range all {
				assert.Check(t, e.Line > 0 && e.Column > 0, e.Error())
			}
			assert.Check(t, !strings.Contains(err.Error(), "hunter2"), "a password was repeated")
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add("[source.a]\nimap = 1\n[[account]]\n")
	f.Fuzz(func(t *testing.T, text string) {
		file, err := Parse("site.toml", []byte(text))
		if (file == nil) == (err == nil) {
			t.Fatalf("%v and %v", file, err)
		}
	})
}

func TestSecrets(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret")
	assert.NilError(t, os.WriteFile(path, []byte("from a file\r\nsecond line\n"), 0o600))
	o := Options{Env: func(name string) (string, bool) { return "from the environment", name == "HERE" }}
	for ref, want := range map[string]string{"env:HERE": "from the environment", "file:" + path: "from a file", "command:echo from a command": "from a command"} {
		s, err := parseSecret(ref)
		assert.NilError(t, err)
		got, err := s.read(t.Context(), o)
		assert.NilError(t, err)
		assert.Equal(t, got, want)
	}
	for ref, want := range map[string]string{"env:NOWHERE": "the environment has no NOWHERE", "file:" + dir + "/none": "no such file", "command:exit 3": "exit status 3", "command:true": "gave nothing",
		"command:head -c 9999 /dev/zero | tr '\\0' x": "gave more than 4096 octets", "command:printf 'half secret'; exit 1": "exit status 1"} {
		s, err := parseSecret(ref)
		assert.NilError(t, err)
		_, err = s.read(t.Context(), o)
		assert.ErrorContains(t, err, want)
		assert.Check(t, !strings.Contains(err.Error(), "half secret: "), err.Error())
	}
}

func TestSecretCommandThatHangsIsEnded(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := Secret{"command", "sleep 60 & sleep 60"}.read(ctx, Options{})
	assert.Assert(t, errors.Is(err, context.DeadlineExceeded), "%v", err)
}

// readLine reads one line, or fails after five seconds.
func readLine(t *testing.T, r io.Reader) string {
	t.Helper()
	got := make(chan string, 1)
	go func() {
		var b [1]byte
		line := ""
		for {
			if _, err := r.Read(b[:]); err != nil || b[0] == '\n' {
				got <- line
				return
			}
			line += string(b[:])
		}
	}()
	select {
	case s := <-got:
		return s
	case <-time.After(5 * time.Second):
		t.Fatal("no line came")
	}
	return ""
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	assert.NilError(t, err)
	_, err = f.WriteString(text)
	assert.NilError(t, errors.Join(err, f.Close()))
}

func TestLogFileIsFollowedFromItsEndAndAcrossRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "mail.log")
	appendTo(t, path, "old line\n")
	r, err := openTail(t.Context(), path)
	assert.NilError(t, err)
	appendTo(t, path, "one\n")
	assert.Equal(t, readLine(t, r), "one")
	assert.NilError(t, os.Rename(path, path+".1"))
	appendTo(t, path+".1", "two, still to the old file\n")
	assert.Equal(t, readLine(t, r), "two, still to the old file")
	appendTo(t, path, "three, of the new file\n")
	assert.Equal(t, readLine(t, r), "three, of the new file")
	assert.NilError(t, os.Truncate(path, 0))
	time.AfterFunc(3*lookEvery, func() { appendTo(t, path, "four\n") })
	assert.Equal(t, readLine(t, r), "four")
	assert.NilError(t, r.Close())
	_, err = r.Read(make([]byte, 1))
	assert.Assert(t, err != nil)
	_, err = openTail(t.Context(), path+".none")
	assert.Assert(t, errors.Is(err, os.ErrNotExist))
}

func TestLogCommandThatDiesSaysHow(t *testing.T) {
	r, err := follow(t.Context(), "echo a line; echo 'ssh: connect to host old port 22: Connection refused' >&2; exit 255")
	assert.NilError(t, err)
	defer r.Close()
	assert.Equal(t, readLine(t, r), "a line")
	_, err = r.Read(make([]byte, 1))
	assert.ErrorContains(t, err, "the command ended with exit status 255")
	assert.ErrorContains(t, err, "Connection refused")
}

// A line of a log on standard error is somebody's, and is not repeated.
func TestLogCommandsWordsAreNotRepeatedIfTheyMayBeALog(t *testing.T) {
	r, err := follow(t.Context(), "echo 'Nov 24 imap-login: Login: user=<alice@example.org>' >&2; exit 1")
	assert.NilError(t, err)
	defer r.Close()
	_, err = r.Read(make([]byte, 1))
	assert.ErrorContains(t, err, "exit status 1")
	assert.Check(t, !strings.Contains(err.Error(), "alice"))
}

func TestLogCommandIsEndedWithItsChildren(t *testing.T) {
	r, err := follow(t.Context(), "sleep 61 & sleep 62")
	assert.NilError(t, err)
	began := time.Now()
	assert.NilError(t, r.Close())
	assert.Assert(t, time.Since(began) < 5*time.Second)
}

// ---- SOCKS

// socksServer answers every client with the octets, after it has said hello.
func socksServer(t *testing.T, method byte, reply []byte, after string) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			var b [64]byte
			io.ReadFull(c, b[:3])
			c.Write([]byte{5, method})
			if method == 0 {
				io.ReadFull(c, b[:10])
				c.Write(reply)
				io.WriteString(c, after)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
	return l.Addr().String()
}

func TestSOCKS(t *testing.T) {
	from, to := netip.MustParseAddr("203.0.113.1"), netip.MustParseAddrPort("203.0.113.9:143")
	ok := func(addr ...byte) []byte { return append([]byte{5, 0, 0, 1}, addr...) }
	c, err := dialSOCKS(t.Context(), socksServer(t, 0, ok(203, 0, 113, 1, 0x80, 1), "* OK\r\n"), from, to)
	assert.NilError(t, err)
	assert.Equal(t, c.LocalAddr().String(), "203.0.113.1:32769")
	assert.Equal(t, c.RemoteAddr().String(), to.String())
	got, err := io.ReadAll(c)
	assert.NilError(t, err)
	assert.Equal(t, string(got), "* OK\r\n")
	assert.NilError(t, c.Close())

	// OpenSSH's own server does not say where a connection leaves from.
	c, err = dialSOCKS(t.Context(), socksServer(t, 0, ok(0, 0, 0, 0, 0, 0), ""), from, to)
	assert.NilError(t, err)
	assert.Equal(t, c.LocalAddr().String(), "203.0.113.1:0")
	assert.NilError(t, c.Close())

	for name, tc := range map[string]struct {
		method byte
		reply  []byte
		no     syscall.Errno
		words  string
	}{
		"refused":       {0, []byte{5, 5, 0, 1, 0, 0, 0, 0, 0, 0}, syscall.ECONNREFUSED, ""},
		"unreachable":   {0, []byte{5, 4, 0, 1, 0, 0, 0, 0, 0, 0}, syscall.EHOSTUNREACH, ""},
		"not allowed":   {0, []byte{5, 2, 0, 1, 0, 0, 0, 0, 0, 0}, 0, "its rules do not let us"},
		"failure":       {0, []byte{5, 1, 0, 1, 0, 0, 0, 0, 0, 0}, 0, "refused with code 1"},
		"wants a login": {2, nil, 0, "wants authentication"},
		"ends":          {0, []byte{5}, 0, "EOF"},
		"other":         {0, []byte("HTTP/1.1 400"), 0, "none of SOCKS 5"},
	} {
		_, err := dialSOCKS(t.Context(), socksServer(t, tc.method, tc.reply, ""), from, to)
		var gone *run.VantageError
		assert.Assert(t, err != nil, name)
		assert.Equal(t, errors.As(err, &gone), tc.no == 0, "%s: %v", name, err)
		if tc.no != 0 {
			assert.Assert(t, errors.Is(err, tc.no), "%s: %v", name, err)
		}
		assert.Check(t, cmp.Contains(err.Error(), tc.words))
	}
}

// ---- the target

func opened(t *testing.T, text string, o Options) (*run.Target, error) {
	t.Helper()
	f, err := Parse("site.toml", []byte(text))
	assert.NilError(t, err)
	if o.Resolve == nil {
		o.Resolve = func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
		}
	}
	if o.Env == nil {
		o.Env = func(name string) (string, bool) { return "secret of one", name == "PROBE1" }
	}
	return Open(t.Context(), f, o)
}

func TestOpenTellsWhatIsMissing(t *testing.T) {
	target, err := opened(t, good, Options{})
	assert.NilError(t, err)
	assert.Equal(t, target.Kind, "site")
	assert.Equal(t, target.Sources[0].Origin, result.FromSite)
	assert.Equal(t, len(target.Problems), 1) // /run/secrets/probe2 is not there
	assert.Check(t, cmp.Contains(target.Problems[0].Words, "probe2@example.org"))
	assert.Equal(t, target.Sources[0].Accounts.(*pool).Len(), 1)
	assert.Assert(t, target.Vantages["neighbour"] == nil)
	assert.Equal(t, target.Vantages["client"].Addr(run.IP4), netip.MustParseAddr("198.51.100.7"))
	assert.Check(t, !target.Vantages["client"].Addr(run.IP6).IsValid())
	assert.Check(t, cmp.Contains(strings.Join(target.Notices, "\n"), "the certificate of old is not checked: self-signed"))

	target, err = opened(t, good, Options{PlanOnly: true, Env: func(string) (string, bool) { t.Error("a plan read a password"); return "", false }})
	assert.NilError(t, err)
	assert.Equal(t, len(target.Problems), 0)
	assert.Equal(t, target.Sources[0].Accounts.(*pool).Len(), 2)
}

func TestOpenWithANameServiceThatDisagrees(t *testing.T) {
	other := func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("192.0.2.99")}, nil
	}
	target, err := opened(t, good, Options{Resolve: other})
	assert.NilError(t, err)
	assert.Equal(t, target.Proxy.Addr(run.IP4), netip.MustParseAddr("192.0.2.1"))
	assert.Check(t, cmp.Contains(strings.Join(target.Notices, "\n"), "the name service says 192.0.2.99 for mail.example.org"))
	broken := func(context.Context, string) ([]netip.Addr, error) { return nil, errors.New("no such host") }
	_, err = opened(t, strings.Replace(good, "ip4 = \"192.0.2.1\"\n", "", 1), Options{Resolve: broken})
	assert.ErrorContains(t, err, "proxy.host: mail.example.org cannot be resolved: no such host")
}

func TestExclusionsEnd(t *testing.T) {
	f, err := Parse("site.toml", []byte(good))
	assert.NilError(t, err)
	all := func(string) bool { return true }
	on := func(day string) time.Time { d, _ := time.Parse(time.DateOnly, day); return d.Add(23 * time.Hour) }
	out, ended, err := f.Excluded(on("2027-01-31"), all)
	assert.NilError(t, err)
	assert.Equal(t, len(out), 1)
	assert.Equal(t, len(ended), 0)
	out, ended, err = f.Excluded(on("2027-02-01"), all)
	assert.NilError(t, err)
	assert.Equal(t, len(out), 0)
	assert.Check(t, cmp.Contains(strings.Join(ended, ""), "ended on 2027-01-31"))
	_, _, err = f.Excluded(on("2027-01-31"), func(string) bool { return false })
	assert.ErrorContains(t, err, "there is no such scenario")
}

func TestAVantageWhoseAddressThisMachineDoesNotHave(t *testing.T) {
	v := &vantage{name: "proxy", ip4: netip.MustParseAddr("192.0.2.77"), dial: Reach{How: "bind"}.by(Options{})}
	_, err := v.Dial(t.Context(), netip.MustParseAddrPort("127.0.0.1:1"))
	var gone *run.VantageError
	assert.Assert(t, errors.As(err, &gone), "%v", err)
	assert.Equal(t, gone.Vantage, "proxy")
}

// A draft names what the proxy's configuration says, and is no site file
// before it has been filled in.
func TestDraft(t *testing.T) {
	text := `[server]
hostname = "mail.example.org"
[tls.certificate.a]
cert = "a"
key = "b"
default = true
[routing]
default_destination = "old"
[mapping]
source = "inline"
[mapping.inline]
"a@example.org" = "old"
[destination.old]
host = "10.0.0.5"
tls_server_name = "old.example.org"
forwarding = "xclient"
[destination.old.protocol]
imap = { port = 143, tls = "starttls" }
submission = { port = 465, tls = "implicit" }
[listener.imaps]
protocol = "imap"
bind = ["192.0.2.1:993"]
tls = "implicit"
`
	cfg, err := proxy.ParseConfig("proxy.toml", []byte(text))
	assert.NilError(t, err)
	draft := Draft(cfg)
	for _, want := range []string{`host = "mail.example.org"`, "imaps = 993", "[source.old]", `ip4 = "10.0.0.5"`, "submissions = 465", `tls = "name:old.example.org"`} {
		assert.Check(t, cmp.Contains(draft, want))
	}
	_, err = Parse("site.toml", []byte(draft))
	assert.ErrorContains(t, err, "FILL-IN")
	_, err = Parse("site.toml", []byte(strings.NewReplacer(`domain = "FILL-IN"`, `domain = "example.org"`, `version = "FILL-IN"`, `version = "trixie"`, `address = "FILL-IN"`, `address = "p@example.org"`).Replace(draft)))
	assert.NilError(t, err, fmt.Sprint(draft))
}

// The template of the documentation is a site file.
func TestTheDocumentedTemplateCanBeRead(t *testing.T) {
	text, err := os.ReadFile("../../docs/site.md")
	assert.NilError(t, err)
	_, rest, ok := strings.Cut(string(text), "```toml\n")
	assert.Assert(t, ok)
	template, _, ok := strings.Cut(rest, "```\n")
	assert.Assert(t, ok)
	_, err = Parse("site.toml", []byte(template))
	assert.NilError(t, err)
}

// A name with addresses of the other family alone leaves open what has nowhere
// to go from, and says which vantage lacks an address.
func TestANameOfTheOtherFamily(t *testing.T) {
	six := func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("2001:db8::25")}, nil
	}
	text := strings.Replace(stalwartSite, "ip4 = \"192.0.2.1\"\n", "", 1)
	assert.Assert(t, text != stalwartSite)
	target, err := opened(t, text, Options{Resolve: six, PlanOnly: true})
	assert.NilError(t, err)
	assert.Check(t, !target.Proxy.Addr(run.IP4).IsValid())
	assert.Equal(t, target.Proxy.Addr(run.IP6), netip.MustParseAddr("2001:db8::25"))
	all, err := scenarios.All()
	assert.NilError(t, err)
	p, err := run.MakePlan(target, run.Options{Scenarios: all, Select: []string{"proxy.imap"}, MaxRisk: script.R1})
	assert.NilError(t, err)
	said := ""
	for _, it := range p.Items {
		said += strings.Join(append(it.NotRun, it.Blocked), "\n")
	}
	assert.Check(t, cmp.Contains(said, "add ip6 to the vantage client"))
}

const stalwartSite = `domain = "example.org"
[proxy]
host = "mail.example.org"
ip4 = "192.0.2.1"
imaps = 993
[vantage]
proxy = "bind:192.0.2.2"
client = { by = "socks5:127.0.0.1:1080", ip4 = "198.51.100.7" }
[source.old]
kind = "stalwart"
version = "0.15.5"
host = "old.example.org"
ip4 = "192.0.2.10"
imaps = 993
https = 443
http = 8080
log = "api:https://old.example.org:8443"
log-secret = "env:LOGS"
log-from = "client"
[account.one]
address = "probe1@example.org"
password = "env:PROBE1"
`

func TestAStalwartsFile(t *testing.T) {
	f, err := Parse("site.toml", []byte(stalwartSite))
	assert.NilError(t, err)
	s := f.Sources[0]
	assert.Equal(t, s.Kind+"@"+s.Version, "stalwart@0.15.5")
	assert.Equal(t, len(s.Endpoints), 3)
	a := s.Log.API
	a.At = Place{}
	assert.Equal(t, a, API{Secure: true, Host: "old.example.org", Port: 8443, Secret: Secret{"env", "LOGS"}, From: "client"})
	target, err := opened(t, stalwartSite, Options{PlanOnly: true})
	assert.NilError(t, err)
	assert.Equal(t, target.Sources[0].Announces, run.ByPROXY)
	assert.Equal(t, target.Sources[0].Admin, nil)

	for name, tc := range map[string]struct{ old, new, want string }{
		"no scheme":     {"api:https://old.example.org:8443", "api:old.example.org", "write api:http://HOST:PORT or api:https://HOST:PORT"},
		"with a path":   {"org:8443\"", "org:8443/api\"", "write api:http://HOST:PORT"},
		"with a secret": {"https://old.", "https://admin:hunter2@old.", "write api:http://HOST:PORT"},
		"no secret":     {"log-secret = \"env:LOGS\"\n", "", "log-secret is missing"},
		"plain secret":  {"env:LOGS", "hunter2", "a password does not stand here"},
		"from a proxy":  {"log-from = \"client\"", "log-from = \"proxy\"", "kept for what a proxy"},
		"from nowhere":  {"log-from = \"client\"", "log-from = \"moon\"", "there is no vantage \"moon\""},
		"by another":    {"api:https://old.example.org:8443", "file:/var/log/stalwart", "belongs to log = \"api:…\""},
		"announces":     {"version = \"0.15.5\"", "version = \"0.15.5\"\nannounces = \"proxy\"", "stalwart takes a PROXY header"},
		"version":       {"0.15.5", "0.16", "there are 0.15.5"},
		"a level":       {"log-from", "log-level = \"trace\"\nlog-from", "unknown level \"trace\""},
		"of no log":     {"log = \"api:https://old.example.org:8443\"\nlog-secret = \"env:LOGS\"\nlog-from = \"client\"", "log-level = \"debug\"", "log-level: there is no log"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.Replace(stalwartSite, tc.old, tc.new, 1)
			assert.Assert(t, text != stalwartSite)
			_, err := Parse("site.toml", []byte(text))
			assert.ErrorContains(t, err, tc.want)
			assert.Check(t, !strings.Contains(err.Error(), "hunter2"), err.Error())
		})
	}
}

// A Stalwart's API numbers no lines: what follows those that are known is found
// by them.
func TestWhatIsNewInALog(t *testing.T) {
	for _, tc := range []struct {
		known, now string
		at         int
		ok         bool
	}{
		{"", "abc", 0, true}, {"abc", "abc", 3, true}, {"abc", "abcd", 3, true}, {"abc", "bcde", 2, true}, {"abc", "cdef", 1, true},
		{"abc", "xyz", 0, false}, {"aa", "aaa", 3, true}, {"abc", "", 0, false},
	} {
		at, ok := continues(strings.Split(tc.known, "")[:len(tc.known)], strings.Split(tc.now, "")[:len(tc.now)])
		assert.Check(t, at == tc.at && ok == tc.ok, "%q %q: %d %v", tc.known, tc.now, at, ok)
	}
}
