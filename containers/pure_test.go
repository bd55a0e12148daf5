package containers

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"io"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
)

func TestAccountsAreHandedOutOldestFirst(t *testing.T) {
	p := harness.NewAccountPool(3)
	ctx := context.Background()
	first, release, err := p.Take(ctx, 2)
	assert.NilError(t, err)
	assert.Assert(t, strings.HasSuffix(first[0].Address, "03a000@example.test"))
	assert.Assert(t, first[0].Password != first[1].Password)
	_, releaseAll, err := p.Take(ctx, len(p.All())-2)
	assert.NilError(t, err)
	late, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	_, _, err = p.Take(late, 1)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	got := make(chan string)
	go func() {
		a, r, err := p.Take(ctx, 1)
		if err != nil {
			got <- err.Error()
			return
		}
		defer r()
		got <- a[0].Address
	}()
	release()
	release() // once is enough
	assert.Equal(t, <-got, first[0].Address)
	releaseAll()
	_, _, err = p.Take(ctx, len(p.All())+1)
	assert.Assert(t, cmp.ErrorContains(err, "400 accounts"))
	assert.Assert(t, p.Own())
}

// stdFrame is a piece of a container's multiplexed output.
func stdFrame(stream byte, text string) []byte {
	b := []byte{stream, 0, 0, 0}
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	return append(b, text...)
}

func TestJournalYieldsWholeLines(t *testing.T) {
	j := newJournal()
	r, err := j.open(context.Background())
	assert.NilError(t, err)
	pr, pw := io.Pipe()
	go j.follow(pr)
	for _, f := range [][]byte{
		stdFrame(1, "one\ntw"), stdFrame(2, "err"), stdFrame(1, "o\n"), stdFrame(2, "or\r\n"),
		stdFrame(1, strings.Repeat("x", maxLine+5)+"\n"), stdFrame(1, "unfinished"),
	} {
		pw.Write(f)
	}
	pw.Close()
	<-j.done
	b, err := io.ReadAll(r)
	assert.NilError(t, err)
	want := "one\ntwo\nerror\n" + strings.Repeat("x", maxLine) + "\nxxxxx\nunfinished\n"
	assert.Assert(t, string(b) == want, "%d octets, %d wanted", len(b), len(want))
	assert.NilError(t, r.Close())
	assert.Equal(t, j.tail(1), "unfinished")
	_, err = j.open(context.Background())
	assert.Assert(t, cmp.ErrorContains(err, "has ended"))
}

func TestJournalReadersStartWhereTheyOpen(t *testing.T) {
	j := newJournal()
	j.add("before")
	ctx, cancel := context.WithCancel(context.Background())
	r, err := j.open(ctx)
	assert.NilError(t, err)
	j.add("after")
	b := make([]byte, 100)
	n, err := r.Read(b)
	assert.NilError(t, err)
	assert.Equal(t, string(b[:n]), "after\n")
	cancel()
	_, err = r.Read(b)
	assert.ErrorIs(t, err, context.Canceled)
	assert.NilError(t, r.Close())

	// Who does not read is told so, and holds no more than its bound.
	slow, err := j.open(context.Background())
	assert.NilError(t, err)
	for range maxBehind/1024 + 1 {
		j.add(strings.Repeat("x", 1024))
	}
	_, err = io.Copy(io.Discard, slow)
	assert.Assert(t, cmp.ErrorContains(err, "read too slowly"))
	slow.Close()
	assert.Equal(t, len(j.readers), 0)
}

func TestLayersAreLaid(t *testing.T) {
	ca, err := fixtures.NewAuthority()
	assert.NilError(t, err)
	layers, err := layersOf(4, harness.SourceSpec{Name: "x", Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.Instrumented, Layers: []fixtures.Layer{{Name: "Our own!", Files: map[string]string{
		"dovecot/b.conf":    "# @overlay@ @source@",
		"dovecot/a.conf":    "",
		"postfix/main.cf":   "x = it's\n",
		"postfix/master.cf": "uucp/unix = -\na/inet/b=c\nz inet n - y - - smtpd\n -o q=r",
		"etc/hosts":         "@proxy6@ p",
		"map":               "@proxy5@",
	}}}})
	assert.NilError(t, err)
	files, err := lay(4, "x", layers, harness.NewAccountPool(4), ca)
	assert.NilError(t, err)
	at := map[string]string{}
	for _, f := range files {
		at[f.path] = string(f.data)
	}
	dir := "/etc/mailproof/04-our-own"
	assert.Equal(t, at[dir+"/dovecot/b.conf"], "# "+dir+" source4.example.test")
	assert.Equal(t, at[dir+"/map"], "@proxy5@")
	assert.Equal(t, at["/mailproof/hosts"], "2001:db8:113::10 p\n")
	local := at["/etc/dovecot/local.conf"]
	assert.Assert(t, strings.Index(local, "01-as-shipped") < strings.Index(local, "02-instrumented"))
	assert.Assert(t, strings.HasSuffix(local, "!include "+dir+"/dovecot/a.conf\n!include "+dir+"/dovecot/b.conf\n"))
	assert.Assert(t, cmp.Contains(at["/mailproof/configure"], `'x = it'\''s'`))
	assert.Assert(t, cmp.Contains(at["/mailproof/configure"], `lay 'postfix/master.cf of the layer Our own!' -MX 'uucp/unix'`))
	assert.Assert(t, cmp.Contains(at["/mailproof/configure"], ` -P 'a/inet/b=c'`))
	assert.Assert(t, cmp.Contains(at["/mailproof/configure"], ` -M 'z/inet=z inet n - y - - smtpd -o q=r'`))
	assert.Assert(t, cmp.Contains(at["/etc/dovecot/conf.d/auth-system.conf.ext"], "passwd-file"))
	block, _ := pem.Decode([]byte(at["/etc/ssl/certs/mail.pem"]))
	cert, err := x509.ParseCertificate(block.Bytes)
	assert.NilError(t, err)
	_, err = cert.Verify(x509.VerifyOptions{Roots: ca.Pool(), DNSName: "source4.example.test"})
	assert.NilError(t, err)
	tar := tarOf(files)
	assert.Assert(t, bytes.Contains(tar, []byte("mailproof/start")))
}

func TestLayersOfAnotherKindAreRefused(t *testing.T) {
	for files, want := range map[string]string{
		"stalwart/x.toml": "another kind",
		"postfix/main.cf": "is no setting",
		"dovecot/x.conf":  "unknown name @moon@",
	} {
		s := harness.SourceSpec{Name: "x", Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.AsShipped, Layers: []fixtures.Layer{{Name: "l", Files: map[string]string{files: "@moon@"}}}}
		if files != "dovecot/x.conf" {
			s.Layers[0].Files[files] = "nothing"
		}
		ca, err := fixtures.NewAuthority()
		assert.NilError(t, err)
		layers, err := layersOf(0, s)
		if err == nil {
			_, err = lay(0, "x", layers, harness.NewAccountPool(0), ca)
		}
		var se *StartError
		assert.Assert(t, cmp.ErrorContains(err, want))
		assert.Assert(t, cmp.ErrorType(err, se))
	}
}

func TestSecretsAreTakenOut(t *testing.T) {
	got := withoutSecrets("a = b\ndoveadm_password = hunter2\n  -o x_password=y z\nssl_key = </etc/ssl/private/k\nauth_verbose_passwords = no\n")
	assert.Equal(t, got, "a = b\ndoveadm_password = (a secret, removed)\n  -o x_password= (a secret, removed)\nssl_key = </etc/ssl/private/k\nauth_verbose_passwords = no\n")
}

func TestOverlapIsNamed(t *testing.T) {
	_, name := overlapping([]netip.Prefix{netip.MustParsePrefix("10.0.0.1/8"), netip.MustParsePrefix("198.51.100.7/24")})
	assert.Equal(t, name, fixtures.ClientNet)
	_, name = overlapping([]netip.Prefix{netip.MustParsePrefix("192.0.2.2/24"), netip.MustParsePrefix("fe80::1/64")})
	assert.Equal(t, name, "")
}

func TestBuildersWordsAreKept(t *testing.T) {
	out := strings.Repeat(`{"stream":"line\n"}`+"\n", 100) + `{"stream":"E: no such package\n"}` + "\n" + `{"error":"returned a non-zero code: 100"}` + "\n"
	words, err := buildOutput(strings.NewReader(out))
	assert.Assert(t, cmp.ErrorContains(err, "non-zero code: 100"))
	assert.Equal(t, len(strings.Split(words, "\n")), 40)
	assert.Assert(t, strings.HasSuffix(words, "E: no such package"))
	var tl tail
	for range 5000 {
		io.WriteString(&tl, "a line of some length, said again and again\n")
	}
	io.WriteString(&tl, "the end\n")
	assert.Equal(t, len(strings.Split(tl.String(), "\n")), 40)
	assert.Assert(t, strings.HasSuffix(tl.String(), "the end"))
}

func TestAnEngineThatDoesNotAnswerIsNamed(t *testing.T) {
	t.Setenv("DOCKER_HOST", "unix:///not/there.sock")
	_, err := Start(context.Background(), Options{Sources: []harness.SourceSpec{{Name: "x", Kind: fixtures.DovecotPostfix, Version: "trixie", Profile: fixtures.AsShipped}}})
	var ee *EngineError
	assert.Assert(t, errors.As(err, &ee), "%v", err)
	assert.Assert(t, cmp.Contains(err.Error(), "DOCKER_HOST=unix:///not/there.sock"))
	cs := Doctor(context.Background())
	assert.Equal(t, cs[0].Name, "engine")
	assert.Assert(t, !cs[0].OK)
	assert.Equal(t, cs[0].Help, "unset DOCKER_HOST")
}

func TestOptionsThatMakeNoLabAreRefused(t *testing.T) {
	_, err := Start(context.Background(), Options{})
	assert.Assert(t, cmp.ErrorContains(err, "at least one source"))
	many := make([]harness.SourceSpec, fixtures.MaxSources+1)
	_, err = Start(context.Background(), Options{Sources: many})
	assert.Assert(t, cmp.ErrorContains(err, "at most 20 sources"))
	_, err = Start(context.Background(), Options{Sources: []harness.SourceSpec{{Name: "x", Kind: "exim", Version: "4"}}})
	assert.Assert(t, cmp.ErrorContains(err, "no configuration of a source of kind"))
}

func TestAProgramThatDoesNotRunAloneIsRefused(t *testing.T) {
	assert.Assert(t, cmp.ErrorContains(runsAlone("/etc/passwd", "amd64"), "is no Linux executable"))
	exe, err := exec.LookPath("sh")
	assert.NilError(t, err)
	assert.Assert(t, cmp.ErrorContains(runsAlone(exe, runtime.GOARCH), "is linked dynamically"))
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	assert.Assert(t, cmp.ErrorContains(runsAlone(exe, other), "the engine's architecture is "+other))
}
