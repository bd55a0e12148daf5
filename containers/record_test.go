package containers

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/run"
)

var record = flag.Bool("record", false, "write the dialogues of the real servers to the reference servers' testdata")

// recorded is where the dialogues stand.
const recorded = "../harness/reference/testdata/recorded"

// TestRecord speaks the dialogues of testdata/dialogues with each release and
// profile, and writes down what was said and logged. It judges nothing.
func TestRecord(t *testing.T) {
	if !*record {
		t.Skip("it writes files: run it with -record, on a machine with an engine")
	}
	for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
		for _, profile := range fixtures.Profiles() {
			t.Run(release+"/"+profile, func(t *testing.T) { recordOne(t, release, profile) })
		}
	}
}

func recordOne(t *testing.T, release, profile string) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	// Each is source 0 of a lab of its own, so that addresses are the same in all.
	l, err := Start(ctx, Options{
		Program: os.Getenv("MAILPROOF_PROGRAM"),
		Sources: []harness.SourceSpec{{Name: release, Kind: fixtures.DovecotPostfix, Version: release, Profile: profile}},
	})
	assert.NilError(t, err)
	defer func() { assert.NilError(t, l.Close(ctx)) }()
	assert.Equal(t, len(l.Failures()), 0, "%v", l.Failures())
	files, err := filepath.Glob("testdata/dialogues/*.txt")
	assert.NilError(t, err)
	assert.Assert(t, len(files) > 0)
	src := l.Target().Sources[0]
	r := &recorder{t: t, ctx: ctx, l: l, src: src}
	log, err := src.Logs["mail"](ctx)
	assert.NilError(t, err)
	defer log.Close()
	go eachLine(log, func(line string) (bool, error) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.log = append(r.log, line)
		if r.more != nil {
			close(r.more)
			r.more = nil
		}
		return false, nil
	})
	// What the start of the lab is still logging belongs to no dialogue.
	r.await(1<<30, regexp.MustCompile("^$"))
	dir := filepath.Join(recorded, release, profile)
	assert.NilError(t, os.MkdirAll(dir, 0o755))
	for _, f := range files {
		b, err := os.ReadFile(f)
		assert.NilError(t, err)
		assert.NilError(t, os.WriteFile(filepath.Join(dir, filepath.Base(f)), []byte(r.speak(string(b))), 0o644))
	}
}

type recorder struct {
	t   *testing.T
	ctx context.Context
	l   *Lab
	src *run.Source

	mu   sync.Mutex
	log  []string
	more chan struct{}
}

// speak runs the dialogues of one file and returns them as they went.
func (r *recorder) speak(text string) string {
	var out strings.Builder
	fmt.Fprintf(&out, "# %s. Recorded from the real servers by \"go test ./containers -run TestRecord -record\".\n", r.src.Software)
	out.WriteString("# C: said by the client, S: by the server, L: logged meanwhile. <secret:…> stands for credentials.\n")
	var block []string
	flush := func() {
		if len(block) > 0 {
			out.WriteString(r.dialogue(block))
		}
		block = nil
	}
	for _, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(line, "== ") {
			flush()
		}
		if line != "" && line[0] != '#' {
			block = append(block, line)
		}
	}
	flush()
	return out.String()
}

// A dialogue is a heading "== what: from VANTAGE to ENDPOINT [ip6]" and steps:
// "> line" sends and reads what answers it, ">> line" sends and reads nothing,
// "tls" upgrades, "read" reads one more reply, "close", "fin" and "log REGEXP".
func (r *recorder) dialogue(lines []string) string {
	var out strings.Builder
	head := strings.TrimPrefix(lines[0], "== ")
	what, where, _ := strings.Cut(head, ": ")
	f := strings.Fields(where)
	if len(f) < 4 {
		r.t.Fatalf("%q is no heading", head)
	}
	from, endpoint, family := f[1], f[3], run.IP4
	if len(f) > 4 {
		family = run.Family(f[4])
	}
	ep, ok := r.src.Endpoint(endpoint)
	if !ok {
		r.t.Fatalf("%s: no endpoint %s", head, endpoint)
	}
	accounts, release, err := r.src.Accounts.Take(r.ctx, 2)
	assert.NilError(r.t, err)
	defer release()
	r.mu.Lock()
	first := len(r.log)
	r.mu.Unlock()
	nc, err := r.l.Target().Vantages[from].Dial(r.ctx, netip.AddrPortFrom(r.src.Addr(from, family), ep.Port))
	assert.NilError(r.t, err)
	s := &spoken{nc: nc, protocol: ep.Protocol, patience: 4 * time.Second}
	if r.src.Profile == fixtures.AsShipped {
		s.patience = 20 * time.Second // Dovecot makes who fails wait up to 15 seconds
	}
	nc.SetDeadline(time.Now().Add(90 * time.Second))
	_, port, _ := net.SplitHostPort(nc.LocalAddr().String())
	cfg := &tls.Config{RootCAs: r.src.Roots, ServerName: r.src.ServerName}
	mode := ep.TLS
	if ep.TLS == "implicit" {
		assert.NilError(r.t, s.upgrade(cfg), "%s", head)
	} else if !strings.Contains(strings.Join(lines, "\n"), "\ntls") {
		mode = "none"
	}
	fmt.Fprintf(&out, "\n== from %s to %s tls %s %s\n# %s\n", from, endpoint, mode, family, what)
	say := func(prefix string, ls ...string) {
		for _, x := range ls {
			fmt.Fprintf(&out, "%s: %s\n", prefix, x)
		}
	}
	s.br = bufio.NewReader(s.nc)
	if from != "silent" && !strings.Contains(lines[0], "speaks first") {
		say("S", s.reply("")...)
	}
	for _, line := range lines[1:] {
		verb, arg, _ := strings.Cut(line, " ")
		for i, name := range []string{"alice", "bob"} {
			arg = strings.ReplaceAll(arg, "${"+name+"}", accounts[i].Address)
			arg = strings.ReplaceAll(arg, "${password "+name+"}", accounts[i].Password)
			arg = strings.ReplaceAll(arg, "${plain "+name+"}", base64.StdEncoding.EncodeToString([]byte("\x00"+accounts[i].Address+"\x00"+accounts[i].Password)))
			arg = strings.ReplaceAll(arg, "${wrong "+name+"}", base64.StdEncoding.EncodeToString([]byte("\x00"+accounts[i].Address+"\x00wrong")))
		}
		switch verb {
		case ">", ">>":
			arg = strings.ReplaceAll(arg, `\0`, "\x00")
			say("C", strings.Split(arg, `\n`)...)
			if _, err := io.WriteString(s.nc, strings.ReplaceAll(arg, `\n`, "\r\n")+"\r\n"); err != nil {
				say("S", "<"+ending(err)+">")
				continue
			}
			if verb == ">" {
				parts := strings.Split(arg, `\n`)
				last := parts[len(parts)-1]
				if strings.HasSuffix(parts[0], "+}") {
					last = parts[0] // the rest is its literal
				}
				say("S", s.reply(last)...)
			}
		case "octets": // without a line end
			say("C", arg+" <no line end>")
			io.WriteString(s.nc, arg)
		case "tls":
			if err := s.upgrade(cfg); err != nil {
				say("S", "<"+ending(err)+">")
				continue
			}
			out.WriteString("== tls\n")
			s.br = bufio.NewReader(s.nc)
			if ep.Protocol == "managesieve" {
				say("S", s.reply("")...)
			}
		case "read":
			say("S", s.reply("")...)
		case "close":
			s.nc.Close()
		case "log":
			re := regexp.MustCompile(strings.ReplaceAll(arg, "PORT", port))
			if !r.await(first, re) {
				say("#", "no line matches "+arg)
				r.t.Logf("%s: no log line matches %s", head, arg)
			}
		default:
			r.t.Fatalf("%s: unknown step %q", head, line)
		}
	}
	s.nc.Close()
	r.mu.Lock()
	ls := append([]string(nil), r.log[first:]...)
	r.mu.Unlock()
	say("L", ls...)
	text := out.String()
	for i, name := range []string{"alice", "bob"} {
		a := accounts[i]
		text = strings.ReplaceAll(text, base64.StdEncoding.EncodeToString([]byte("\x00"+a.Address+"\x00"+a.Password)), "<secret:plain-"+name+">")
		text = strings.ReplaceAll(text, base64.StdEncoding.EncodeToString([]byte("\x00"+a.Address+"\x00wrong")), "<secret:wrong-"+name+">")
		text = strings.ReplaceAll(text, a.Password, "<secret:"+name+">")
		text = strings.ReplaceAll(text, a.Address, name+"@"+fixtures.Domain)
		local, _, _ := strings.Cut(a.Address, "@")
		text = strings.ReplaceAll(text, local, name)
	}
	return text
}

// await waits until a line of the log, from the first on, matches.
func (r *recorder) await(first int, re *regexp.Regexp) bool {
	late := time.After(5 * time.Second)
	for {
		r.mu.Lock()
		for _, l := range r.log[min(first, len(r.log)):] {
			if re.MatchString(l) {
				r.mu.Unlock()
				return true
			}
		}
		if r.more == nil {
			r.more = make(chan struct{})
		}
		more := r.more
		r.mu.Unlock()
		select {
		case <-more:
		case <-late:
			return false
		}
	}
}

type spoken struct {
	nc       net.Conn
	br       *bufio.Reader
	protocol string
	patience time.Duration // after which silence is silence
	tag      string        // of the IMAP command that is not answered yet
}

func (s *spoken) upgrade(cfg *tls.Config) error {
	tc := tls.Client(s.nc, cfg)
	if err := tc.Handshake(); err != nil {
		return err
	}
	s.nc = tc
	return nil
}

var (
	smtpEnd  = regexp.MustCompile(`^\d{3}( |$)`)
	sieveEnd = regexp.MustCompile(`^(OK|NO|BYE|BAD)\b`)
	popMulti = regexp.MustCompile(`(?i)^(CAPA|LIST|UIDL|RETR \d+|TOP .*|AUTH)$`)
)

// reply reads what answers a command, or a greeting, to its end.
func (s *spoken) reply(command string) []string {
	var out []string
	if s.tag == "" {
		s.tag, _, _ = strings.Cut(command, " ")
	}
	silence := s.patience
	for {
		s.nc.SetReadDeadline(time.Now().Add(silence))
		line, err := s.br.ReadString('\n')
		s.nc.SetReadDeadline(time.Now().Add(90 * time.Second))
		line = strings.TrimRight(line, "\r\n")
		if line != "" || err == nil {
			out = append(out, line)
		}
		if err != nil {
			s.tag = ""
			return append(out, "<"+ending(err)+">")
		}
		switch s.protocol {
		case "imap":
			if strings.HasPrefix(line, "+") {
				return out
			}
			if command == "" || strings.HasPrefix(line, s.tag+" ") || strings.HasPrefix(line, "* BAD Error") {
				s.tag = ""
				return out
			}
		case "pop3":
			if len(out) == 1 && (!strings.HasPrefix(line, "+OK") || !popMulti.MatchString(command)) || line == "." {
				return out
			}
		case "smtp":
			if smtpEnd.MatchString(line) {
				return out
			}
		case "managesieve":
			if sieveEnd.MatchString(line) || line == `""` { // or a challenge
				return out
			}
		}
	}
}

// ending names how a connection has ended, or that nothing came.
func ending(err error) string {
	var ne net.Error
	switch {
	case errors.Is(err, io.EOF):
		return "closed"
	case errors.Is(err, syscall.ECONNRESET):
		return "reset"
	case errors.As(err, &ne) && ne.Timeout():
		return "silence"
	}
	return err.Error()
}
