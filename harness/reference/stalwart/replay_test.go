package stalwart_test

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// step is what one line of a recording says.
type step struct{ kind, text string }

// dialogue is one recorded conversation, or one act on the server.
type dialogue struct {
	what, from string
	port       uint16
	act        string // "restart", "METHOD PATH BODY" of the management API, or ""
	steps      []step
}

// parseRecording reads a file of testdata.
func parseRecording(t testing.TB, path string) []*dialogue {
	t.Helper()
	var out []*dialogue
	var d *dialogue
	var short []string
	what := ""
	for _, line := range strings.Split(readFile(t, path), "\n") {
		switch {
		case strings.HasPrefix(line, "= "):
			name, text, _ := strings.Cut(line[2:], " ")
			short = append(short, "<"+name+">", text)
		case strings.HasPrefix(line, "# "):
			what = line[2:]
		case strings.HasPrefix(line, "== from "):
			f := strings.Fields(line)
			port, err := strconv.ParseUint(f[4], 10, 16)
			assert.NilError(t, err)
			d = &dialogue{what: what, from: f[2], port: uint16(port)}
			out = append(out, d)
		case line == "== restart":
			out = append(out, &dialogue{what: "restart", act: "restart"})
			d = nil
		case strings.HasPrefix(line, "== api "):
			d = &dialogue{what: "api", act: line[len("== api "):]}
			out = append(out, d)
		case d == nil || line == "":
		case strings.HasPrefix(line, "== "):
			d.steps = append(d.steps, step{"=", line[3:]})
		default:
			kind, text, ok := strings.Cut(line, ": ")
			assert.Assert(t, ok || strings.HasSuffix(line, ":"), "%q", line)
			d.steps = append(d.steps, step{strings.TrimSuffix(kind, ":"), strings.NewReplacer(short...).Replace(text)})
		}
	}
	return out
}

// TestReplay speaks every recorded dialogue with the reference: what it answers
// is what the real server answered, and when.
func TestReplay(t *testing.T) {
	var logged []string
	for _, c := range []struct {
		file  string
		setUp func(*lab)
	}{
		{"direct", func(*lab) {}},
		{"trust-staged", func(l *lab) { l.guide(); l.reload() }},
		{"trust", func(l *lab) { l.guide(); l.restart() }},
		{"relay", func(*lab) {}},
		{"lifecycle", func(*lab) {}},
	} {
		t.Run(c.file, func(t *testing.T) {
			l := startLab(t, labOptions{})
			c.setUp(l)
			for _, d := range parseRecording(t, "testdata/"+c.file+".txt") {
				t.Run(d.what, func(t *testing.T) {
					lt := &lab{t: t, net: l.net, srv: l.srv, log: l.log}
					switch {
					case d.act == "restart":
						lt.restart()
					case d.act != "":
						f := append(strings.SplitN(d.act, " ", 3), "", "")
						code, body := lt.api(f[0], f[1], f[2])
						assert.Equal(t, fmt.Sprintf("%d %s", code, body), d.steps[0].text)
					default:
						converse(t, lt, d)
					}
				})
			}
			assert.NilError(t, l.srv.Close())
			logged = append(logged, l.log.end()...)
		})
	}
	logged = append(logged, limited(t)...)
	compareLog(t, logged)
}

// limited has the shipped limiter close a connection and the shipped server
// take a message, as in the recording, and returns the log.
func limited(t *testing.T) []string {
	l := startLab(t, labOptions{loud: true, now: stopped()})
	for i := range 6 {
		c := l.open(relayAt, 25)
		want := "220 old.internal.test Stalwart ESMTP at your service"
		if i == 5 {
			want = "<closed>"
		}
		assert.Equal(t, c.line(), want)
		if i == 4 {
			c.say("EHLO new.example.test", "MAIL FROM:<user@sender.example>", "RCPT TO:<alice@example.test>", "DATA", messageFor("(message d1)"))
			for {
				if s := c.reply(); strings.HasPrefix(s, "250 2.0.0") {
					break
				}
			}
		}
	}
	assert.NilError(t, l.srv.Close())
	return l.log.end()
}

// stopped is a clock that stands still.
func stopped() func() time.Time {
	at := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
	return func() time.Time { return at }
}

var logRules = []struct {
	re *regexp.Regexp
	by string
}{
	{regexp.MustCompile(`^\S+Z `), "TIME "},
	{regexp.MustCompile(`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`), "TIME"},
	{regexp.MustCompile(`elapsed = \d+ms`), "elapsed = N"},
	{regexp.MustCompile(`queueId = \d+`), "queueId = ID"},
	{regexp.MustCompile(`size = \d+`), "size = N"},
	{regexp.MustCompile(`TLS13_[A-Z0-9_]+`), "CIPHER"}, // Go has its own order of them
	{regexp.MustCompile(`(remoteIp = 172\.30\.\d\.1, remotePort = )\d+`), "${1}PORT"},
}

// compareLog looks for every line that was recorded, as often as it was. The
// recording does not hold every line that the server wrote.
func compareLog(t *testing.T, got []string) {
	t.Helper()
	have := map[string]int{}
	for _, l := range got {
		for _, r := range logRules {
			l = r.re.ReplaceAllString(l, r.by)
		}
		have[l]++
	}
	for _, line := range strings.Split(strings.TrimSpace(readFile(t, "testdata/log.txt")), "\n") {
		n, want, _ := strings.Cut(line, " ")
		count, err := strconv.Atoi(n)
		assert.NilError(t, err)
		if have[want] < count {
			t.Errorf("the log lacks a line (%d of %d):\n%s", have[want], count, want)
		}
	}
}

var queued = regexp.MustCompile(`id [0-9a-f]{14,16}\.`)

// fill puts in what a recording leaves out of what the client said.
func fill(line string) string {
	user := "alice@example.test"
	if strings.Contains(line, "<secret:bob>") {
		user = "bob@example.test"
	}
	secret := plain(user, secretOf(user))
	if strings.Contains(line, " LOGIN ") || strings.HasPrefix(line, "PASS ") {
		secret = secretOf(user)
	}
	wrong := plain("alice@example.test", "wrong")
	if strings.HasPrefix(line, "b") { // the recording attacked bob
		wrong = plain("bob@example.test", "wrong")
	}
	return strings.NewReplacer("<secret:alice>", secret, "<secret:bob>", secret, "<wrong>", wrong,
		"<secret:basic>", base64.StdEncoding.EncodeToString([]byte(user+":"+secretOf(user)))).Replace(line)
}

// converse plays the client of one dialogue.
func converse(t *testing.T, l *lab, d *dialogue) {
	c := l.open(d.from, d.port)
	defer func() { c.nc.Close() }()
	ended := false
	for i, s := range d.steps {
		if ended {
			return
		}
		late := i+1 < len(d.steps) && d.steps[i+1].text == "the answer took 5 s"
		switch s.kind {
		case "P":
			b, err := hex.DecodeString(s.text)
			assert.NilError(t, err)
			c.nc.Write(b)
		case "P1":
			b, err := hex.DecodeString(s.text)
			assert.NilError(t, err)
			for j := range b {
				c.nc.Write(b[j : j+1])
			}
		case "C":
			line := fill(s.text)
			if strings.HasPrefix(line, "(message") {
				line = messageFor(line)
			}
			io.WriteString(c.nc, line+"\r\n")
		case "S":
			if late {
				c.nc.SetReadDeadline(time.Now().Add(4900 * time.Millisecond))
				assert.Equal(t, c.line(), "<silence>", "the answer comes too early: %q", s.text)
				c.nc.SetReadDeadline(time.Now().Add(time.Minute))
			}
			if s.text == "<session>" {
				return // TestSessionDocument compares it
			}
			got := c.line()
			got, want := comparable(got), comparable(s.text)
			assert.Equal(t, got, want, "step %d of %q", i, d.what)
		case "=":
			switch s.text {
			case "tls":
				c.tls()
			case "tls fails", "tls fails with an alert":
				c.nc.SetDeadline(time.Now().Add(3 * time.Second))
				err := c.tryTLS()
				var alert *net.OpError
				assert.Assert(t, err != nil)
				if strings.HasSuffix(s.text, "alert") {
					assert.ErrorContains(t, err, "error decoding message")
				} else {
					assert.Assert(t, !strings.Contains(err.Error(), "remote error"), "%v %v", err, alert)
				}
				return
			case "closed":
				got := c.line()
				assert.Assert(t, got == "<closed>" || got == "<reset>", "%q", got)
				ended = true
			case "silence":
				c.nc.SetReadDeadline(time.Now().Add(3 * time.Second))
				assert.Equal(t, c.line(), "<silence>")
				c.nc.SetReadDeadline(time.Now().Add(time.Minute))
			}
		}
	}
}

// comparable takes out what differs from one session to the next.
func comparable(s string) string {
	s = queued.ReplaceAllString(s, "id QUEUE.")
	if strings.HasPrefix(s, "date: ") {
		return "date:"
	}
	if strings.HasPrefix(s, "content-length: ") {
		return "content-length:"
	}
	return s
}

// messageFor is the message that the recorder sent.
func messageFor(line string) string {
	m := strings.TrimSuffix(strings.TrimPrefix(line, "(message "), ")")
	if strings.Contains(m, "55 Received") {
		return strings.Repeat("Received: from a.example by b.example; Mon, 23 Nov 2026 23:00:00 +0000\r\n", 55) + "From: a@b.example\r\n\r\nx\r\n."
	}
	return "Received: from mx.sender.example (mx.sender.example [198.51.100.25]) by new.example.test; Mon, 23 Nov 2026 23:00:00 +0000\r\n" +
		"From: Sender <user@sender.example>\r\nTo: alice@example.test\r\nSubject: relay " + m + "\r\nMessage-ID: <" + m + "@probe.example>\r\nX-Conf-Token: " + m + "\r\n\r\nhello\r\n."
}
