package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/wire"
)

// stands puts a server of the test's in the place of one of the source's
// services. Its connections are closed when the test ends.
func (l *loopback) stands(t *testing.T, service string, f func(net.Conn)) {
	t.Helper()
	s, err := net.Listen("tcp", net.JoinHostPort(loopSource, "0"))
	assert.NilError(t, err)
	var mu sync.Mutex
	open := map[net.Conn]bool{}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := s.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			open[c] = true
			mu.Unlock()
			wg.Go(func() { f(c); c.Close() })
		}
	})
	t.Cleanup(func() {
		s.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	at := strings.Index(l.text, "[source.old]")
	lines := strings.Split(l.text[at:], "\n")
	for i, line := range lines {
		if strings.HasPrefix(line, service+" = ") {
			lines[i] = fmt.Sprintf("%s = %d", service, s.Addr().(*net.TCPAddr).Port)
		}
	}
	l.write(t, l.text[:at]+strings.Join(lines, "\n"))
}

// Servers that are slow, half there, too busy, or that lie: each is told of
// with what it does, and nothing takes longer than the plan says.
func TestSiteOfServersThatAreSlowBusyOrLie(t *testing.T) {
	l := startLoopback(t, "bookworm")
	cert, err := l.ca.Certificate(fixtures.SourceHost(0))
	assert.NilError(t, err)
	secure := func(f func(net.Conn)) func(net.Conn) {
		return func(c net.Conn) {
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}})
			if s.Handshake() == nil {
				f(s)
			}
		}
	}
	drain := func(c net.Conn) { io.Copy(io.Discard, c) }
	for name, tc := range map[string]struct {
		service string
		f       func(net.Conn)
		says    string // in the sentence
		found   string // by a result at that service
		only    []string
	}{
		"a byte and a pause": {"imaps", secure(func(c net.Conn) {
			tick := time.NewTicker(200 * time.Millisecond)
			defer tick.Stop()
			for _, b := range []byte("* OK [CAPABILITY IMAP4rev1 ID] a very slow server greets\r\n") {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
				<-tick.C
			}
		}), "imaps", "in the middle of the line \"* OK [CAPA", []string{"--select", "lifecycle.greeting-imap"}},
		"half open": {"imaps", func(c net.Conn) { c.(*net.TCPConn).CloseWrite(); drain(c) }, "imaps", "closed", nil},
		"too busy": {"submission", func(c net.Conn) {
			fmt.Fprint(c, "421 4.7.0 too many connections from you\r\n")
			c.(*net.TCPConn).CloseWrite()
			drain(c)
		}, "submission", "421 4.7.0 too many connections from you", nil},
		"too many": {"pop3", func(c net.Conn) {
			fmt.Fprint(c, "-ERR [SYS/TEMP] too many connections\r\n")
			c.(*net.TCPConn).CloseWrite()
			drain(c)
		}, "pop3", "too many connections", nil},
		"says OK and does nothing": {"imaps", secure(func(c net.Conn) {
			fmt.Fprint(c, "* OK [CAPABILITY IMAP4rev1 ID AUTH=PLAIN] ready\r\n")
			for s := bufio.NewScanner(c); s.Scan(); {
				tag, rest, _ := strings.Cut(s.Text(), " ")
				if strings.HasPrefix(strings.ToUpper(rest), "ID") {
					fmt.Fprint(c, "* ID (\"name\" \"liar\")\r\n")
				}
				fmt.Fprintf(c, "%s OK done\r\n", tag)
			}
		}), "imaps", "none, although lines that were caused later are there", nil},
	} {
		t.Run(name, func(t *testing.T) {
			l.stands(t, tc.service, tc.f)
			began := time.Now()
			only := tc.only
			if only == nil {
				only = []string{"--select", "lifecycle.greeting-*", "--select", "client-address.*"}
			}
			dl := wire.Site()
			dl.Greeting, dl.Witness = 5*time.Second, 5*time.Second
			s, found := l.within(t, dl, only...)
			assert.Equal(t, s.code, result.ExitFailed, s.err)
			assert.Equal(t, found.Answer.Verdict, result.NotReady, found.Answer.Sentence)
			assert.Check(t, cmp.Contains(found.Answer.Sentence, tc.says))
			told := ""
			for i := range found.Results {
				r := &found.Results[i]
				if r.Facet.Endpoint != tc.service && r.Verdict == result.Fail {
					t.Errorf("%s failed as well", r.Key())
				}
				for _, f := range r.Findings {
					told += f.Found + "\n"
				}
			}
			assert.Check(t, cmp.Contains(told, tc.found))
			if strings.HasPrefix(name, "too ") {
				assert.Equal(t, found.Diagnoses[0].Code, "MP-BUSY", found.Answer.Sentence)
			}
			t.Logf("%s (%.1f s)", found.Answer.Sentence, found.Seconds)
			assert.Check(t, time.Since(began) < 120*time.Second)
		})
	}
}

// certificate makes one of an authority that the site file does not know.
func (l *loopback) certificate(t *testing.T, name string, until time.Time) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	assert.NilError(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, NotBefore: until.Add(-24 * time.Hour), NotAfter: until,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	assert.NilError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// A certificate that is not what the site file expects is told of: what is
// wrong with it, where, and what to change.
func TestSiteWhoseCertificateIsNotWhatIsExpected(t *testing.T) {
	l := startLoopback(t, "bookworm")
	whole := l.text
	host := fixtures.SourceHost(0)
	speak := func(cert tls.Certificate) func(net.Conn) {
		return func(c net.Conn) {
			if s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{cert}}); s.Handshake() == nil {
				fmt.Fprint(s, "* OK ready\r\n")
				io.Copy(io.Discard, s)
			}
		}
	}
	good, expired, other := l.certificate(t, host, time.Now().Add(time.Hour)), l.certificate(t, host, time.Now().Add(-time.Hour)), l.certificate(t, "other.example.test", time.Now().Add(time.Hour))
	leaf, err := x509.ParseCertificate(good.Certificate[0])
	assert.NilError(t, err)
	sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	pin := base64.StdEncoding.EncodeToString(sum[:])
	none := base64.StdEncoding.EncodeToString(make([]byte, 32))
	for name, tc := range map[string]struct {
		cert                tls.Certificate
		trusts              bool // the file names the authority
		expects             string
		says, found, change string
	}{
		"expired":       {expired, true, "", "has expired, or is not valid yet", "certificate has expired", "Renew the certificate"},
		"another name":  {other, true, "", "is for another name", "other.example.test", "name:HOST"},
		"own authority": {good, false, "", "is of an authority that is not known", "unknown authority", "ca:FILE"},
		"another pin":   {good, false, "pin:sha256:" + none, "is not the pinned one", "sha256:" + pin, "put the new pin"},
	} {
		t.Run(name, func(t *testing.T) {
			l.text = whole
			at := strings.Index(whole, "[source.old]")
			old := fmt.Sprintf("tls = \"name:%s,ca:%s\"", host, filepath.Join(l.dir, "ca.pem"))
			expects := old
			if tc.trusts {
				x, err := x509.ParseCertificate(tc.cert.Certificate[0])
				assert.NilError(t, err)
				own := filepath.Join(t.TempDir(), "own.pem")
				assert.NilError(t, os.WriteFile(own, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: x.Raw}), 0o600))
				expects = fmt.Sprintf("tls = \"name:%s,ca:%s\"", host, own)
			}
			if tc.expects != "" {
				expects = fmt.Sprintf("tls = %q", tc.expects)
			}
			// Everything but imaps is left out: it is of the other authority.
			var kept []string
			for _, line := range strings.Split(strings.Replace(whole[at:], old, expects, 1), "\n") {
				service, _, _ := strings.Cut(line, " = ")
				switch service {
				case "imap", "pop3", "pop3s", "sieve", "smtp", "submission", "submissions":
				default:
					kept = append(kept, line)
				}
			}
			l.text = whole[:at] + strings.Join(kept, "\n")
			l.stands(t, "imaps", speak(tc.cert))
			s, found := l.run(t)
			assert.Equal(t, s.code, result.ExitFailed, s.err)
			assert.Equal(t, found.Answer.Verdict, result.NotReady, found.Answer.Sentence)
			assert.Check(t, cmp.Contains(found.Answer.Sentence, tc.says))
			told := ""
			for i := range found.Results {
				for _, f := range found.Results[i].Findings {
					told += f.Found + "\n"
				}
			}
			assert.Check(t, cmp.Contains(told, tc.found))
			assert.Assert(t, len(found.Diagnoses) > 0)
			assert.Equal(t, found.Diagnoses[0].Code, "DX-17")
			assert.Check(t, cmp.Contains(found.Diagnoses[0].Remedy.Text, tc.change))
			assert.Check(t, cmp.Contains(found.Diagnoses[0].Remedy.Text, "[source.old]"))
		})
	}
}

// One account among many that is locked is named, tried once, and what needs
// no account of its own is judged with the others.
func TestSiteOneOfWhoseAccountsIsLocked(t *testing.T) {
	l := startLoopback(t, "trixie")
	t.Setenv("MAILPROOF_TEST_1", loopCanary+"-of-yesterday")
	s, found := l.run(t)
	assert.Equal(t, s.code, result.ExitUnjudged, s.err)
	assert.Equal(t, found.Counts.Fail, 0, s.err)
	assert.Check(t, cmp.Contains(found.Answer.Sentence, "the right password of probe1@"))
	assert.Check(t, found.Counts.Pass > 20, "%+v", found.Counts)
	log, err := os.ReadFile(filepath.Join(l.dir, "mail.log"))
	assert.NilError(t, err)
	assert.Check(t, strings.Count(string(log), "user=<probe1@") <= 2, "the account was tried once")
}

// An interrupt in the middle: the status is 130, the reports are written, and
// what was delivered is removed.
func TestSiteInterrupted(t *testing.T) {
	l := startLoopback(t, "bookworm")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "run", "--site", l.site, "--rate", quick, "--max-risk", "R4", "--allow", strings.Join(run.Allowances(), ","), "-v", "--jobs", "1", "--json", filepath.Join(l.dir, "result.json"))
	cmd.Env = append(os.Environ(), asCommand+"=1")
	stderr, err := cmd.StderrPipe()
	assert.NilError(t, err)
	assert.NilError(t, cmd.Start())
	var text strings.Builder
	lines := bufio.NewScanner(stderr)
	lines.Buffer(nil, 1<<20)
	for sent := false; lines.Scan(); {
		text.WriteString(lines.Text() + "\n")
		if !sent && strings.Contains(lines.Text(), "relay.delivers") {
			assert.NilError(t, cmd.Process.Signal(os.Interrupt))
			sent = true
		}
	}
	io.Copy(io.Discard, stderr)
	err = cmd.Wait()
	var exit *exec.ExitError
	assert.Assert(t, errors.As(err, &exit), "%v\n%s", err, text.String())
	assert.Equal(t, exit.ExitCode(), result.ExitInterrupted, text.String())
	found := l.report(t)
	assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged)
	assert.Check(t, cmp.Contains(found.Answer.Sentence, "a run to its end"))
	assert.Check(t, cmp.Contains(strings.Join(found.Notices, "\n"), "none is left"), "%v %+v", found.Notices, found.Problems)
}

// A full disk keeps no message from being removed, and is told.
func TestSiteWhoseReportCannotBeWritten(t *testing.T) {
	l := startLoopback(t, "trixie")
	s := mailproof(t, "run", "--site", l.site, "--rate", quick, "--max-risk", "R4", "--select", "relay.delivers-data", "--json", "/dev/full", "--junit", filepath.Join(l.dir, "junit.xml"))
	assert.Equal(t, s.code, result.ExitUnjudged, s.err)
	assert.Check(t, cmp.Contains(s.err, "no space left on device"))
	assert.Check(t, cmp.Contains(s.err, "none is left"))
	_, err := os.Stat(filepath.Join(l.dir, "junit.xml"))
	assert.NilError(t, err)
}

// The log's clock is an hour off, in another zone: no line is joined by its time.
func TestSiteWhoseLogHasAnotherClock(t *testing.T) {
	l := startLoopback(t, "bookworm")
	log := filepath.Join(l.dir, "mail.log")
	l.change(t, "tail -n 0 -F "+log, "tail -n 0 -F "+log+" | sed -u -E 's/^(.{11})([0-9]{2})/\\\\101/'")
	s, found := l.run(t)
	assert.Equal(t, s.code, result.ExitUnjudged, s.err)
	assert.Equal(t, found.Counts.Fail+found.Counts.Error, 0, s.err)
	witnessed := 0
	for i := range found.Results {
		witnessed += len(found.Results[i].Witness)
	}
	assert.Check(t, witnessed > 10)
}
