package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/reference/memnet"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/wire"
	"github.com/mailproof/mailproof/reports"
	"github.com/mailproof/mailproof/scenarios"
)

// sought finds passwords in text, however they are written there.
type sought struct{ all *strings.Replacer }

const leaked = "\x00LEAK\x00"

// seek looks for each password: plain, quoted, as URLs write it, and in base64
// wherever in a SASL response it begins. The first octets of a password are
// enough: one that was cut has leaked as well.
func seek(passwords []string) sought {
	const enough = 12
	var pairs []string
	add := func(form string) { pairs = append(pairs, form, leaked) }
	for _, p := range passwords {
		p = p[:min(len(p), enough)]
		for _, form := range []string{p, strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(p), url.QueryEscape(p), url.PathEscape(p)} {
			add(form)
		}
		// In base64 three octets are four letters: what does not depend on the
		// neighbours is left, for each of the three places to begin.
		for shift := range 3 {
			b := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("\x00", shift) + p))
			add(b[(shift*4+2)/3 : (shift+len(p))*4/3])
		}
	}
	return sought{strings.NewReplacer(pairs...)}
}

// in says what stands around the first password in a text, or "".
func (s sought) in(text string) string {
	replaced := s.all.Replace(text)
	i := strings.Index(replaced, leaked)
	if i < 0 {
		return ""
	}
	return fmt.Sprintf("%q", replaced[max(0, i-200):min(len(replaced), i+60)])
}

// artefacts are everything that a run leaves or says, by name.
func artefacts(t *testing.T, found *result.Run) map[string]string {
	t.Helper()
	dir := t.TempDir()
	texts := make(map[string]string)
	for _, verbose := range []bool{false, true} {
		var out, errw bytes.Buffer
		show := reports.NewConsole(&errw, reports.ConsoleOptions{Verbose: verbose})
		show.Begin(len(found.Results))
		for i := range found.Results {
			show.Result(found.Results[i])
		}
		c := runCmd{Verbose: verbose, JSON: "-", JUnit: filepath.Join(dir, "junit"), HTML: filepath.Join(dir, "html"), Markdown: filepath.Join(dir, "markdown")}
		_ = c.finish(t.Context(), &console{out: &out, err: &errw}, show, found)
		texts[fmt.Sprintf("console, verbose %v", verbose)] = errw.String()
		texts["json"] = out.String()
	}
	for _, name := range []string{"junit", "html", "markdown"} {
		texts[name] = readFile(t, filepath.Join(dir, name))
	}
	var b strings.Builder
	for i := range found.Results {
		b.WriteString(found.Results[i].Transcript)
		b.WriteString(harness.Describe(&found.Results[i]))
	}
	texts["transcripts"] = b.String()
	return texts
}

// failing are sources that fail at everything to do with credentials, so that
// every dialogue with a password in it becomes evidence.
func failing() []harness.SourceSpec {
	base := harness.SourceSpec{Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.Instrumented}
	var specs []harness.SourceSpec
	for _, bugs := range [][]string{{"logs-proxy-address", "xclient-keeps-auth"}, {"accepts-any-password", "proxy-joins-refused"}, {"wrong-password-temporary-failure"},
		{"closes-after-failed-login-silently"}, {"sasl-ir-refused"}, {"log-drops-lines"}} {
		s := base
		s.Name, s.Bugs = strings.Join(bugs, " "), bugs
		specs = append(specs, s)
	}
	for _, name := range []string{"trust-missing", "no-sasl-plain"} {
		s := base
		s.Name = name
		if err := layNamed(&s, name); err != nil {
			panic(err)
		}
		specs = append(specs, s)
	}
	return specs
}

func layNamed(s *harness.SourceSpec, name string) error {
	d, err := fixtures.DefectNamed(name)
	if err != nil {
		return err
	}
	l, err := d.Layer(s.Version)
	s.Layers = append(s.Layers, l)
	return err
}

// The whole corpus runs at sources that fail it, and no password of any
// account is in anything that is written.
func TestNoArtefactHasAPassword(t *testing.T) {
	lab, err := harness.StartReference(t.Context(), failing(), true)
	assert.NilError(t, err)
	defer lab.Close(context.Background())
	target := lab.Target()
	var passwords []string
	for _, s := range target.Sources {
		for _, a := range s.Accounts.(*harness.AccountPool).All() {
			passwords = append(passwords, a.Password)
		}
		// A server that logs what it is given, as auth_verbose_passwords does.
		s.Logs = map[string]run.LogFunc{"mail": given(s.Logs["mail"], s.Accounts.(*harness.AccountPool).All())}
	}
	look := seek(passwords)
	// What fails here fails whatever is waited for.
	dl := wire.Lab()
	dl.Reply, dl.Witness, dl.Close = 4*time.Second, time.Second, time.Second
	found, err := harness.Run(t.Context(), target, func(o *run.Options) { o.Deadlines = dl })
	assert.NilError(t, err)
	assert.Assert(t, found.Counts.Fail > 200, "%+v", found.Counts)
	texts := artefacts(t, found)
	shown := strings.Count(texts["transcripts"], "<secret:")
	assert.Assert(t, shown > 500, "only %d secrets are shown as such: the run had few in it", shown)

	for _, args := range [][]string{{"plan", "-v", "--lab", "reference"}, {"plan", "--json", "--lab", "reference"}, {"list", "--json"}} {
		texts[strings.Join(args, " ")] = mailproof(t, args...).out
	}
	all, err := scenarios.All()
	assert.NilError(t, err)
	rows, err := scenarios.Requirements(all)
	assert.NilError(t, err)
	for _, s := range all {
		var b bytes.Buffer
		explain(&b, s, rows, nil)
		texts["explain "+s.ID] = b.String()
	}
	for name, text := range texts {
		assert.Assert(t, text != "", name)
		assert.Equal(t, look.in(text), "", name)
	}

	// The test finds what is planted: in each artefact, and in each form.
	victim := target.Sources[0].Accounts.(*harness.AccountPool).All()[7]
	worst := slices.IndexFunc(found.Results, func(r result.Result) bool { return r.Verdict == result.Fail && r.Level == result.Must })
	found.Results, worst = found.Results[worst:worst+1], 0 // one result is enough to plant in
	clean := found.Results[worst].Findings[0].Found
	for form, text := range spellings(victim) {
		found.Results[worst].Findings[0].Found = "it said " + text
		assert.Assert(t, look.in(harness.Describe(&found.Results[worst])) != "", form)
	}
	found.Results[worst].Findings[0].Found = clean
	found.Problems = append(found.Problems, result.Problem{Source: "planted", Stage: "start", Where: "here", Words: "it said " + victim.Password})
	found.Results[worst].Transcript += "A    +0.0 -> " + victim.Password + "\n"
	for name, text := range artefacts(t, found) {
		assert.Assert(t, look.in(text) != "", "%s: what was planted was not found", name)
	}
}

// spellings are the forms in which a password may appear.
func spellings(a run.Account) map[string]string {
	b64 := base64.StdEncoding.EncodeToString
	return map[string]string{
		"plain":                     a.Password,
		"base64":                    b64([]byte(a.Password)),
		"SASL PLAIN":                b64([]byte("\x00" + a.Address + "\x00" + a.Password)),
		"SASL PLAIN, authorization": b64([]byte(a.Address + "\x00" + a.Address + "\x00" + a.Password)),
		"SASL PLAIN, another":       b64([]byte("x\x00" + a.Address + "\x00" + a.Password)),
		"SASL PLAIN, yet another":   b64([]byte("xy\x00" + a.Address + "\x00" + a.Password)),
		"HTTP basic":                b64([]byte(a.Address + ":" + a.Password)),
		"query":                     url.QueryEscape(a.Password),
		"path":                      url.PathEscape(a.Password),
		"cut":                       a.Password[:14],
	}
}

// given adds the password to each line of a log that names its account.
func given(open run.LogFunc, accounts []run.Account) run.LogFunc {
	var pairs []string
	for _, a := range accounts {
		pairs = append(pairs, "user=<"+a.Address+">,", "user=<"+a.Address+">, given="+a.Password+",")
		pairs = append(pairs, "sasl_username="+a.Address, "sasl_username="+a.Address+", given="+base64.StdEncoding.EncodeToString([]byte("\x00"+a.Address+"\x00"+a.Password)))
	}
	with := strings.NewReplacer(pairs...)
	return func(ctx context.Context) (io.ReadCloser, error) {
		in, err := open(ctx)
		if err != nil {
			return nil, err
		}
		pr, pw := io.Pipe()
		var wg sync.WaitGroup
		wg.Go(func() {
			buf, rest := make([]byte, 64<<10), ""
			for {
				n, err := in.Read(buf)
				lines := rest + string(buf[:n])
				end := strings.LastIndexByte(lines, '\n') + 1
				rest = lines[end:]
				if end > 0 {
					io.WriteString(pw, with.Replace(lines[:end]))
				}
				if err != nil {
					pw.CloseWithError(err)
					return
				}
			}
		})
		return &stream{pr, func() { in.Close(); pr.Close(); wg.Wait() }}, nil
	}
}

type stream struct {
	io.Reader
	close func()
}

func (s *stream) Close() error { s.close(); return nil }

// nasty are accounts whose passwords have every character that some protocol
// writes in another way.
type nasty struct{ next atomic.Int64 }

const canary = `c4n"ry\q7+/%&`

func (n *nasty) Own() bool { return true }

func (n *nasty) Take(_ context.Context, k int) ([]run.Account, func(), error) {
	as := make([]run.Account, k)
	for i := range as {
		x := n.next.Add(1)
		as[i] = run.Account{Address: fmt.Sprintf("n%d@%s", x, fixtures.Domain), Password: fmt.Sprintf("%s =ü%d", canary, x)}
	}
	return as, func() {}, nil
}

// A server that says back what it is told, whole, in pieces and at every
// place where something is cut, gets no password into any artefact.
func TestAServerThatSaysBackWhatItIsTold(t *testing.T) {
	target, err := harness.Blueprint("reference", []harness.SourceSpec{{Name: "parrot", Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.Instrumented}}, false)
	assert.NilError(t, err)
	ca, err := fixtures.NewAuthority()
	assert.NilError(t, err)
	cert, err := ca.Certificate(fixtures.SourceHost(0))
	assert.NilError(t, err)
	network := memnet.New()
	for _, h := range fixtures.Hosts() {
		target.Vantages[h.Vantage] = vantageAt{network, h.Pair}
	}
	src := target.Sources[0]
	src.Accounts = &nasty{}
	var told logged
	src.Logs = map[string]run.LogFunc{"mail": told.open}
	var serving sync.WaitGroup
	var turn atomic.Int64
	for _, e := range src.Endpoints {
		for _, n := range fixtures.Networks() {
			for _, a := range []netip.Addr{n.Source(0).IP4, n.Source(0).IP6} {
				l, err := network.Listen(netip.AddrPortFrom(a, e.Port))
				assert.NilError(t, err)
				l.Serve(func(c net.Conn) {
					serving.Go(func() {
						(&parrot{c: c, raw: c.(*memnet.Conn), e: e, tls: &tls.Config{Certificates: []tls.Certificate{cert}}, turn: &turn, log: &told}).serve()
					})
				})
			}
		}
	}
	defer serving.Wait()
	// The parrot's silences cost no time; only its log has to be waited for.
	waits := wire.Lab()
	waits.Witness = 100 * time.Millisecond
	// Every run is told the same, and says it back in other ways.
	var found *result.Run
	for i := range 25 {
		more, err := harness.Run(t.Context(), target, harness.Select("lifecycle.sign-in-*", "client-address.failed-*", "client-address.imap", "client-address.pop3", "client-address.sieve", "imap-id.*"),
			func(o *run.Options) { o.Jobs, o.Deadlines = 64, waits })
		assert.NilError(t, err)
		for k := range more.Results {
			more.Results[k].Source = fmt.Sprintf("parrot %d", i)
		}
		if found != nil {
			more.Results = append(found.Results, more.Results...)
		}
		found = more
	}
	assert.Assert(t, turn.Load() > 500, "only %d passwords were told", turn.Load())
	look := seek([]string{canary})
	texts := artefacts(t, found)
	assert.Assert(t, strings.Count(texts["transcripts"], "<secret:") > 100)
	for name, text := range texts {
		assert.Equal(t, look.in(text), "", name)
	}
}

// vantageAt dials from a host of a test's network.
type vantageAt struct {
	net *memnet.Network
	fixtures.Pair
}

func (v vantageAt) Addr(f run.Family) netip.Addr { return v.Of(string(f)) }

func (v vantageAt) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	return memnet.Host{Net: v.net, Addr: v.Of(string(run.FamilyOf(to.Addr())))}.Dial(ctx, to)
}

// logged is a log that a test writes.
type logged struct {
	mu sync.Mutex
	to []*io.PipeWriter
}

func (l *logged) open(context.Context) (io.ReadCloser, error) {
	pr, pw := io.Pipe()
	l.mu.Lock()
	l.to = append(l.to, pw)
	l.mu.Unlock()
	return pr, nil
}

func (l *logged) line(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, w := range l.to {
		io.WriteString(w, text+"\n")
	}
}

// parrot is a server that is right until it is told credentials.
type parrot struct {
	c    net.Conn
	raw  *memnet.Conn
	e    run.Endpoint
	tls  *tls.Config
	turn *atomic.Int64
	log  *logged
}

func (p *parrot) say(s string) bool {
	_, err := io.WriteString(p.c, s)
	return err == nil
}

func (p *parrot) serve() {
	defer func() { p.c.Close() }()
	if p.e.TLS == "implicit" {
		p.c = tls.Server(p.c, p.tls)
	}
	if !p.say(map[string]string{"imap": "* OK [CAPABILITY IMAP4rev1 STARTTLS ID SASL-IR AUTH=PLAIN] ready\r\n", "pop3": "+OK ready\r\n",
		"managesieve": "\"SASL\" \"PLAIN\"\r\n\"XCLIENT\" \"ADDR PORT SESSION\"\r\n\"STARTTLS\"\r\nOK \"ready\"\r\n", "smtp": "220 ready\r\n"}[p.e.Protocol]) {
		return
	}
	buf, rest := make([]byte, 4096), ""
	for {
		line, more, whole := strings.Cut(rest, "\r\n")
		if !whole {
			n, err := p.c.Read(buf)
			if err != nil {
				return
			}
			rest += string(buf[:n])
			continue
		}
		rest = more
		if !p.answer(line) {
			return
		}
	}
}

func (p *parrot) answer(line string) bool {
	tag, command := "", line
	if p.e.Protocol == "imap" {
		tag, command, _ = strings.Cut(line, " ")
	}
	verb, _, _ := strings.Cut(strings.ToUpper(command), " ")
	good := map[string]string{"imap": tag + " OK done\r\n", "pop3": "+OK done\r\n", "managesieve": "OK \"done\"\r\n", "smtp": "250 done\r\n"}[p.e.Protocol]
	switch {
	case strings.HasPrefix(verb, "AUTH"), verb == "LOGIN", verb == "PASS", verb == "USER", len(line) > 20 && !strings.Contains(line, " "):
		return p.back(tag, line)
	case verb == "STARTTLS", verb == "STLS":
		if p.e.Protocol == "smtp" {
			good = "220 go\r\n"
		}
		if !p.say(good) {
			return false
		}
		p.c = tls.Server(p.c, p.tls)
		if p.e.Protocol == "managesieve" {
			return p.say("\"SASL\" \"PLAIN\"\r\n\"XCLIENT\" \"ADDR PORT SESSION\"\r\nOK \"again\"\r\n")
		}
		return true
	case verb == "EHLO":
		return p.say("250-parrot\r\n250-SIZE 10240000\r\n250-STARTTLS\r\n250-AUTH PLAIN LOGIN\r\n250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT\r\n250 CHUNKING\r\n")
	case verb == "XCLIENT" && p.e.Protocol == "smtp":
		return p.say("220 again\r\n")
	case verb == "CAPA":
		return p.say("+OK\r\nXCLIENT ADDR PORT SESSION\r\nSTLS\r\nSASL PLAIN\r\n.\r\n")
	}
	return p.say(good)
}

// back says what it was told, in one of many ways.
func (p *parrot) back(tag, line string) bool {
	n := p.turn.Add(1) * 2654435761 >> 7 & 0xffffff
	said := line
	for _, w := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(` "`, r) }) {
		if b, err := base64.StdEncoding.DecodeString(w); err == nil && len(b) > 8 {
			text := string(b)
			user := strings.Split(text, "\x00")
			p.log.line(fmt.Sprintf("2026-11-24T13:00:14.684120 imap-login: Info: Login: user=<%s>, method=PLAIN, rip=203.0.113.10, lip=203.0.113.100, given=%s, session=<%s>",
				user[min(1, len(user)-1)], user[len(user)-1], user[len(user)-1]))
			said = []string{line, text, user[len(user)-1], url.QueryEscape(user[len(user)-1])}[n%4]
		}
	}
	said = strings.NewReplacer("\r", "", "\n", "", "\x00", "\x01").Replace(said)
	status := map[string]string{"imap": tag + " NO ", "pop3": "-ERR ", "managesieve": "NO ", "smtp": "535 "}[p.e.Protocol]
	// The places where something is cut, so that it falls upon a password.
	fill := []int{0, 40, 80, 100, 110, 180, 190, 280, 380, 1980, 16 << 10}[n/64%11]
	said = strings.Repeat("-", fill) + said
	if n/1024%7 != 5 {
		// Nothing comes after this, and nobody has to wait for it.
		defer p.raw.Lag(time.Hour)
	}
	switch n / 1024 % 7 {
	case 0: // an answer
		if p.e.Protocol == "managesieve" {
			said = `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(said) + `"`
		}
		return p.say(status + said + "\r\n")
	case 1: // no answer of the protocol
		return p.say("?" + said + "\r\n")
	case 2: // half a line
		p.say(status + said)
		return false
	case 3: // a line that is too long
		p.say(status + strings.Repeat(said+" ", 1+70000/(len(said)+1)) + "\r\n")
		return false
	case 4: // a line before the answer
		more := map[string]string{"imap": "* ", "pop3": "+OK ", "managesieve": "", "smtp": "535-"}[p.e.Protocol]
		return p.say(more + said + "\r\n" + status + "\"no\"\r\n")
	case 5: // an answer that is taken for good
		return p.say(map[string]string{"imap": tag + " OK ", "pop3": "+OK ", "managesieve": "OK ", "smtp": "235 "}[p.e.Protocol] + "\"" + strings.ReplaceAll(said, `"`, "'") + "\"\r\n")
	default: // a literal
		return p.say(fmt.Sprintf("* BYE {%d}\r\n%s\r\n", len(said), said))
	}
}
