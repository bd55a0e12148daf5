package wire_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/mailproof/mailproof/harness/reference/memnet"
	"github.com/mailproof/mailproof/harness/wire"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"
)

func deadlines() wire.Deadlines { return wire.Lab() }

func pipe(t *testing.T, shape wire.Shape, secrets ...wire.Secret) (*wire.Conn, net.Conn, *wire.Transcript) {
	t.Helper()
	c, s := memnet.Pipe(netip.MustParseAddrPort("203.0.113.10:40000"), netip.MustParseAddrPort("203.0.113.100:143"))
	tr := wire.NewTranscript(wire.NewRedactor(secrets...))
	conn := wire.New(t.Context(), c, "A", tr, deadlines(), shape)
	t.Cleanup(func() { conn.Close(); s.Close() })
	return conn, s, tr
}

func TestLinesAndTheirEnds(t *testing.T) {
	c, s, tr := pipe(t, wire.Shape{})
	io.WriteString(s, "* OK ready\r\nbare\n")
	assert.NilError(t, c.Await(time.Second))
	l, err := c.ReadLine("a line", time.Second)
	assert.NilError(t, err)
	assert.DeepEqual(t, l, wire.Line{Text: "* OK ready"})
	l, err = c.ReadLine("a line", time.Second)
	assert.NilError(t, err)
	assert.DeepEqual(t, l, wire.Line{Text: "bare", Bare: true})
	assert.Assert(t, cmp.Contains(tr.String(), "<- * OK ready\n"))
}

func TestEndsOfTheConversationAreTyped(t *testing.T) {
	var closed *wire.Closed
	var timeout *wire.Timeout
	var long *wire.TooLong

	c, s, _ := pipe(t, wire.Shape{})
	io.WriteString(s, "half a li")
	s.Close()
	assert.NilError(t, c.Await(time.Second))
	_, err := c.ReadLine("a reply", time.Second)
	assert.Assert(t, errors.As(err, &closed), "%v", err)
	assert.Equal(t, closed.Reset, false)
	assert.Equal(t, closed.Partial, "half a li")

	c, s, _ = pipe(t, wire.Shape{})
	s.(*memnet.Conn).Reset()
	assert.NilError(t, c.Await(time.Second))
	_, err = c.ReadLine("a reply", time.Second)
	assert.Assert(t, errors.As(err, &closed) && closed.Reset, "%v", err)

	c, _, _ = pipe(t, wire.Shape{})
	assert.NilError(t, c.Await(time.Millisecond))
	_, err = c.ReadLine("a reply", time.Millisecond)
	assert.Assert(t, errors.As(err, &timeout), "%v", err)

	c, s, _ = pipe(t, wire.Shape{})
	go func() {
		for {
			if _, err := s.Write(bytes.Repeat([]byte("x"), 8<<10)); err != nil {
				return
			}
		}
	}()
	assert.NilError(t, c.Await(time.Second))
	_, err = c.ReadLine("a reply", time.Second)
	assert.Assert(t, errors.As(err, &long), "%v", err)
}

func TestAContextThatEndsEndsTheWait(t *testing.T) {
	a, b := memnet.Pipe(netip.MustParseAddrPort("203.0.113.10:1"), netip.MustParseAddrPort("203.0.113.100:2"))
	defer b.Close()
	ctx, cancel := context.WithCancel(t.Context())
	c := wire.New(ctx, a, "A", nil, wire.Lab(), wire.Shape{})
	defer c.Close()
	assert.NilError(t, c.Await(time.Minute))
	time.AfterFunc(5*time.Millisecond, cancel)
	_, err := c.ReadLine("a reply", time.Minute)
	assert.Assert(t, errors.Is(err, context.Canceled), "%v", err)
}

// recorder remembers how writes were cut.
type recorder struct {
	net.Conn
	writes []string
}

func (r *recorder) Write(b []byte) (int, error) {
	r.writes = append(r.writes, string(b))
	return len(b), nil
}

func TestShapes(t *testing.T) {
	for name, want := range map[string][]string{
		"normal":     {"ab\r\n", "cd\r\n"},
		"one-byte":   {"a", "b", "\r", "\n", "c", "d", "\r", "\n"},
		"split-crlf": {"ab\r", "\n", "cd\r", "\n"},
		"joined":     {"ab\r\ncd\r\n"},
		"paused":     {"ab\r\n", "cd\r\n"},
	} {
		a, b := memnet.Pipe(netip.MustParseAddrPort("203.0.113.10:1"), netip.MustParseAddrPort("203.0.113.100:2"))
		rec := &recorder{Conn: a}
		shape, ok := wire.ShapeNamed(name)
		assert.Assert(t, ok)
		c := wire.New(t.Context(), rec, "A", nil, wire.Lab(), shape)
		assert.NilError(t, c.SendLine("ab", "ab"))
		assert.NilError(t, c.SendLine("cd", "cd"))
		assert.NilError(t, c.Await(time.Second))
		assert.DeepEqual(t, rec.writes, want)
		b.Close()
		c.Close()
	}
	_, ok := wire.ShapeNamed("round")
	assert.Assert(t, !ok)
}

func TestTranscriptsNameSecretsOnly(t *testing.T) {
	secret := `pa"ss\w/ö+rd!`
	c, s, tr := pipe(t, wire.Shape{}, wire.Secret{Name: "alice", Value: secret})
	for _, form := range []string{
		secret,
		base64.StdEncoding.EncodeToString([]byte(secret)),
		base64.StdEncoding.EncodeToString([]byte("\x00alice@example.test\x00" + secret)),
		base64.RawStdEncoding.EncodeToString([]byte("xx\x00a\x00" + secret)),
		"AUTH=" + base64.StdEncoding.EncodeToString([]byte(secret+"tail of it")),
		`"pa\"ss\\w/ö+rd!"`,
		"https://u:pa%22ss%5Cw%2F%C3%B6+rd%21@host/",
	} {
		io.WriteString(s, "you said "+form+"\r\n")
		assert.NilError(t, c.Await(time.Second))
		_, err := c.ReadLine("an echo", time.Second)
		assert.NilError(t, err)
	}
	text := tr.String()
	assert.Equal(t, strings.Count(text, "<secret:alice>"), 7, text)
	assert.Assert(t, !strings.Contains(text, "ss\\w"), text)
}

func TestVisible(t *testing.T) {
	assert.Equal(t, wire.Visible("plain ä"), "plain ä")
	assert.Equal(t, wire.Visible("\x1b[2J\r\n\x00\xff\u202e\u200b"), `\x1b[2J\r\n\x00\xff\u202e\u200b`)
}

func certificate(t testing.TB) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	assert.NilError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)},
		&x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
	assert.NilError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestStartTLS(t *testing.T) {
	c, s, tr := pipe(t, wire.Shape{})
	go func() {
		srv := tls.Server(s, &tls.Config{Certificates: []tls.Certificate{certificate(t)}})
		io.WriteString(srv, "inside\r\n")
	}()
	assert.NilError(t, c.StartTLS(&tls.Config{InsecureSkipVerify: true}))
	assert.Assert(t, c.TLS())
	assert.NilError(t, c.Await(time.Second))
	l, err := c.ReadLine("a line", time.Second)
	assert.NilError(t, err)
	assert.Equal(t, l.Text, "inside")
	assert.Assert(t, cmp.Contains(tr.String(), "<~ inside"))
}

// What a man in the middle puts behind the reply to STARTTLS never enters the
// session.
func TestClearTextResidueIsRefused(t *testing.T) {
	c, s, _ := pipe(t, wire.Shape{})
	io.WriteString(s, "220 go\r\n250 injected\r\n")
	assert.NilError(t, c.Await(time.Second))
	_, err := c.ReadLine("a line", time.Second)
	assert.NilError(t, err)
	var residue *wire.Residue
	err = c.StartTLS(&tls.Config{InsecureSkipVerify: true})
	assert.Assert(t, errors.As(err, &residue), "%v", err)
	assert.Equal(t, residue.Octets, len("250 injected\r\n"))
}

func TestAFailedHandshakeIsATLSError(t *testing.T) {
	c, s, _ := pipe(t, wire.Shape{})
	io.WriteString(s, "this is no TLS at all\r\n")
	var failed *wire.TLSError
	err := c.StartTLS(&tls.Config{InsecureSkipVerify: true})
	assert.Assert(t, errors.As(err, &failed), "%v", err)
	var record tls.RecordHeaderError
	assert.Assert(t, errors.As(err, &record), "%v", err)
}

func TestWaitClose(t *testing.T) {
	c, s, _ := pipe(t, wire.Shape{})
	s.Close()
	extra, reset, err := c.WaitClose(time.Second)
	assert.NilError(t, err)
	assert.Equal(t, extra, "")
	assert.Equal(t, reset, false)

	c, s, _ = pipe(t, wire.Shape{})
	io.WriteString(s, "more\r\n")
	extra, _, err = c.WaitClose(time.Second)
	assert.NilError(t, err)
	assert.Equal(t, extra, "more")

	c, _, _ = pipe(t, wire.Shape{})
	_, _, err = c.WaitClose(time.Millisecond)
	var timeout *wire.Timeout
	assert.Assert(t, errors.As(err, &timeout), "%v", err)
}

func TestATranscriptIsBounded(t *testing.T) {
	tr := wire.NewTranscript(nil)
	for range 5000 {
		tr.Add("A", wire.Received, false, strings.Repeat("x", 5000))
	}
	assert.Equal(t, tr.Len(), 4000)
	assert.Assert(t, cmp.Contains(tr.String(), "1000 more events were not kept"))
	assert.Assert(t, len(tr.Events()[0].Text) < 2100)
}

func FuzzRedactor(f *testing.F) {
	f.Add("AGFsaWNlAGh1bnRlcjIyCg==", "hunter22")
	f.Fuzz(func(t *testing.T, text, secret string) {
		if len(secret) < 4 || strings.Contains("<secret:x>", secret) {
			return
		}
		r := wire.NewRedactor(wire.Secret{Name: "x", Value: secret})
		out := r.Redact(text + secret + base64.StdEncoding.EncodeToString([]byte("\x00u\x00"+secret)))
		if strings.Contains(out, base64.StdEncoding.EncodeToString([]byte("\x00u\x00"+secret))) {
			t.Fatalf("the SASL form of %q survived in %q", secret, out)
		}
	})
}
