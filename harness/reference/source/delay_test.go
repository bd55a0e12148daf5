package source_test

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/reference/source"
)

// wrong tries a wrong password on one connection and returns the answer.
func wrong(c *client, tag string) string {
	c.say(tag + " LOGIN " + alice + " wrong")
	return c.line()
}

func imaps(l *lab) *client {
	c := l.open("client", "imaps")
	c.line()
	return c
}

// TestDelaysCostNobodyTime: auth_failure_delay and the penalty are kept, and
// only a client with a deadline finds out.
func TestDelaysCostNobodyTime(t *testing.T) {
	for _, release := range fixtures.Releases(fixtures.DovecotPostfix) {
		l := startLab(t, labOptions{release: release, profile: fixtures.AsShipped})
		start := time.Now()
		c := imaps(l)
		// 2 seconds, and then 4 of the penalty and 2 again: 8 of the 10.
		assert.Equal(t, wrong(c, "a1"), "a1 NO [AUTHENTICATIONFAILED] Authentication failed.")
		c.say("a2 LOGIN " + alice + " wrong2")
		assert.Equal(t, c.line(), "a2 NO [AUTHENTICATIONFAILED] Authentication failed.")
		// 8 and 2 are too late.
		assert.Equal(t, wrong(c, "a3"), "<silence>")
		assert.Assert(t, time.Since(start) < 2*time.Second, "%s", time.Since(start))

		// Sessions side by side are not each other's past.
		c = imaps(l)
		assert.Equal(t, wrong(c, "a1"), "a1 NO [AUTHENTICATIONFAILED] Authentication failed.")
	}
}

// TestPenaltiesEnd: anvil-auth-penalty without permissions ends them, and a
// right password does.
func TestPenaltiesEnd(t *testing.T) {
	off := layer("dovecot/90-test.conf", "service anvil {\n  unix_listener anvil-auth-penalty {\n    mode = 0\n  }\n}\n")
	l := startLab(t, labOptions{profile: fixtures.AsShipped, layers: []source.Layer{off}, patient: 7 * time.Second})
	c := imaps(l)
	for _, tag := range []string{"a1", "a2", "a3"} {
		assert.Equal(t, wrong(c, tag), tag+" NO [AUTHENTICATIONFAILED] Authentication failed.")
	}
	l = startLab(t, labOptions{profile: fixtures.AsShipped, patient: 7 * time.Second})
	c = imaps(l)
	wrong(c, "a1")
	c.say("a2 LOGIN " + alice + " " + secret)
	s := c.line()
	assert.Assert(t, strings.HasPrefix(s, "a2 OK "), s)
}

// TestDelaysCanBeWaitedFor: a lab on real sockets has its own way to pass time.
func TestDelaysCanBeWaitedFor(t *testing.T) {
	var waited atomic.Int64
	l := startLab(t, labOptions{profile: fixtures.AsShipped, delay: func(_ context.Context, _ net.Conn, d time.Duration) error {
		waited.Add(int64(d))
		return nil
	}})
	c := imaps(l)
	wrong(c, "a1")
	assert.Equal(t, time.Duration(waited.Load()), 2*time.Second)
}

// TestErrorsAreSlowedDown: after ten errors Postfix takes a second for each.
func TestErrorsAreSlowedDown(t *testing.T) {
	l := startLab(t, labOptions{patient: 900 * time.Millisecond})
	c := l.open("client", "smtp")
	c.reply()
	for range 10 {
		assert.Equal(t, c.ask("FROB"), "500 5.5.2 Error: command not recognized")
	}
	assert.Equal(t, c.ask("FROB"), "<silence>")
}
