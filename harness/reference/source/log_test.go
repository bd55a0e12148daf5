package source_test

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/reference/source"
)

// TestSessionIDsAreDovecots: time, port and address, in base64.
func TestSessionIDsAreDovecots(t *testing.T) {
	l := startLab(t, labOptions{})
	c := l.open("client", "imap")
	port := c.nc.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort().Port()
	c.line()
	c.say("a1 LOGOUT")
	line := l.log.await(t, "imap-login: ", "session=<")
	_, id, _ := strings.Cut(line, "session=<")
	b, err := base64.RawStdEncoding.DecodeString(strings.TrimSuffix(id, ">"))
	assert.NilError(t, err)
	assert.Equal(t, len(b), 12)
	assert.Equal(t, binary.LittleEndian.Uint16(b[6:]), port)
	assert.DeepEqual(t, b[8:], fixtures.Hosts()[0].IP4.AsSlice())
}

// TestNamesInTheLog: what a client says stands in the log as the real servers
// write it, and makes no line of its own.
func TestNamesInTheLog(t *testing.T) {
	for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
		l := startLab(t, labOptions{release: release})
		c := l.open("client", "imaps")
		c.line()
		c.say("a1 LOGIN {7+}\r\nx\ry\x01<>z wrong")
		c.line()
		c.nc.Close()
		l.log.await(t, "auth failed", "user=<x?y?<>z>")

		c = l.open("client", "smtp")
		c.reply()
		c.ask("EHLO a\x01b(c)<d>;\"e\\f@g")
		c.ask("MAIL FROM:<a@b.test>")
		c.ask("RCPT TO:<x@remote.example>")
		l.log.await(t, "NOQUEUE: reject: ", "helo=<a?b?c??d???e?f?g>")

		c = l.open("client", "submissions")
		c.reply()
		c.ask("EHLO x.test")
		c.ask("AUTH PLAIN " + plain("x\ny>, method=PLAIN", "wrong"))
		l.log.await(t, "SASL PLAIN authentication failed: (reason unavailable), sasl_username=x?y>, method=PLAIN")
	}
}

// TestAnnouncedSessionsAreWrittenAsTheyCame: Dovecot does not escape them, and
// a forged element can be put there by whoever is trusted.
func TestAnnouncedSessionsAreWrittenAsTheyCame(t *testing.T) {
	l := startLab(t, labOptions{})
	c := l.open("proxy", "imaps")
	c.line()
	c.say(`f1 ID ("x-originating-ip" "198.51.100.21" "x-session-id" "a>, rip=192.0.2.166, session=<b")`)
	c.line()
	c.line()
	c.say("f2 AUTHENTICATE PLAIN " + plain(alice, secret))
	l.log.await(t, "Logged in: user=<"+alice+">", "session=<a>, rip=192.0.2.166, session=<b>")
}

func TestLogHasManyFollowersAndEnds(t *testing.T) {
	src, err := source.New(configOf(t, labOptions{}))
	assert.NilError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	one, err := src.Log(ctx)
	assert.NilError(t, err)
	two, err := src.Log(context.Background())
	assert.NilError(t, err)
	l := &lab{t: t, src: src}
	l.net = startOn(t, src)
	c := l.open("client", "imap")
	c.line()
	c.say("a1 LOGOUT")
	c.line()
	c.line()
	cancel()
	_, err = io.ReadAll(one)
	assert.ErrorIs(t, err, context.Canceled)
	late, err := src.Log(context.Background())
	assert.NilError(t, err)
	assert.NilError(t, src.Close())
	b, err := io.ReadAll(two)
	assert.NilError(t, err)
	assert.Assert(t, strings.Contains(string(b), "imap-login: Info: Login aborted: Logged out"), "%s", b)
	assert.Assert(t, strings.HasSuffix(string(b), "\n"))
	b, err = io.ReadAll(late)
	assert.NilError(t, err)
	assert.Assert(t, !strings.Contains(string(b), "starting up"), "a follower sees nothing from before")
	_, err = src.Log(ctx)
	assert.ErrorIs(t, err, context.Canceled)
}

// TestCloseEndsEverything: sessions in every state end with the source.
func TestCloseEndsEverything(t *testing.T) {
	l := startLab(t, labOptions{})
	var all []*client
	for _, endpoint := range []string{"imap", "imaps", "pop3", "sieve", "smtp", "submissions"} {
		c := l.open("client", endpoint)
		c.line()
		all = append(all, c)
	}
	in := l.open("client", "imaps")
	in.line()
	in.say("a1 LOGIN "+alice+" "+secret, "a2 SELECT INBOX", "a3 IDLE")
	for !strings.HasPrefix(in.line(), "+ ") {
	}
	data := relayed(l, "relay")
	data.ask("RCPT TO:<" + alice + ">")
	data.ask("DATA")
	data.say("half a mess")
	start := time.Now()
	assert.NilError(t, l.src.Close())
	assert.Assert(t, time.Since(start) < 2*time.Second)
	for _, c := range append(all, in, data) {
		for s := ""; !strings.HasPrefix(s, "<"); s = c.line() {
		}
	}
	assert.ErrorContains(t, l.src.Start(context.Background(), l.listen), "was started before")
}
