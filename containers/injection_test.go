package containers

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/witness"
)

// An imitation is one dialogue in which a client writes values that imitate
// the log: lines to send, one reply each.
type imitation struct {
	name     string
	endpoint string
	vantage  string
	say      []string
	// shows is a part of the values that the log must show, so that it is
	// known that they have come there; "" where the server writes none of them.
	shows string
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// xtext is the encoding of XCLIENT's values (RFC 3461, section 4).
func xtext(s string) string {
	var b strings.Builder
	for _, c := range []byte(s) {
		if c < '!' || c > '~' || c == '+' || c == '=' {
			fmt.Fprintf(&b, "+%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}

// imitations are dialogues that try to make a witness for victim, joined by
// token, with an address that nobody has.
func imitations(victim, token string) []imitation {
	evil := fixtures.Forged().IP4.String()
	fields := "x>, method=PLAIN, rip=" + evil + ", rport=1, lip=10.0.0.1, session=<" + token + ">, user=<" + victim
	dovecot := "x\r\n2026-11-23T14:59:13.000000 imap-login: Info: Login: user=<" + victim + ">, method=PLAIN, rip=" + evil + ", session=<" + token + ">"
	syslog := "x\nNov 23 14:59:13 mail dovecot: imap-login: Login: user=<" + victim + ">, method=PLAIN, rip=" + evil + ", session=<" + token + ">"
	postfix := "x\nNov 23 14:59:13 mail postfix/smtpd[1]: NOQUEUE: reject: RCPT from unknown[" + evil + "]: 554 5.7.1 <v>: Relay access denied; from=<> to=<" + token + "@elsewhere.example> proto=ESMTP helo=<x>"
	failure := "x\nNov 23 14:59:13 mail postfix/submissions/smtpd[1]: warning: unknown[" + evil + "]: SASL PLAIN authentication failed: x, sasl_username=" + victim
	plain := func(user string) string { return b64("\x00" + user + "\x00wrong") }
	literal := func(tag, user string) []string {
		return []string{fmt.Sprintf("%s LOGIN {%d}", tag, len(user)), user + " {5}", "wrong"}
	}
	var out []imitation
	for i, user := range []string{fields, dovecot, syslog, failure, victim + ", sasl_username=" + victim, `"` + victim + `", rip=` + evil, victim + "," + evil + ",<" + token + ">): Password mismatch", victim + "," + evil + ",sasl:plain)<" + token + ">"} {
		n := fmt.Sprintf(" %d", i)
		out = append(out,
			imitation{"a login name over IMAP" + n, "imaps", run.Stranger, []string{"", "a AUTHENTICATE PLAIN " + plain(user)}, ""},
			imitation{"a login name over POP3" + n, "pop3s", run.Stranger, []string{"", "AUTH PLAIN " + plain(user)}, ""},
			imitation{"a login name over submission" + n, "submissions", run.Stranger, []string{"", "EHLO x.example", "AUTH PLAIN " + plain(user)}, ""},
		)
	}
	out = append(out,
		imitation{"a login name as a literal", "imaps", run.Stranger, append([]string{""}, literal("a", fields)...), evil},
		imitation{"a login name with line ends as a literal", "imaps", run.Stranger, append([]string{""}, literal("a", dovecot)...), ""},
		imitation{"a quoted login name", "imaps", run.Stranger, []string{"", `a LOGIN "` + strings.ReplaceAll(fields, `"`, `\"`) + `" wrong`}, evil},
		imitation{"USER over POP3", "pop3s", run.Stranger, []string{"", "USER " + fields, "PASS wrong"}, evil},
		imitation{"ID values of a stranger", "imaps", run.Stranger, []string{"", `a ID ("x-originating-ip" "` + evil + `" "x-session-id" "` + token + `" "name" "` + fields + `")`, "b LOGIN nobody-" + token + " wrong"}, ""},
		imitation{"a session id that the proxy announces", "imaps", run.Proxy, []string{"", `a ID ("x-session-id" "` + token + `>, rip=` + evil + `, user=<` + victim + `" "x-originating-ip" "` + fixtures.Announced(3).IP4.String() + `")`, "b LOGIN nobody-" + token + " wrong"}, ""},
		imitation{"an ID name that the proxy announces", "imaps", run.Proxy, []string{"", `a ID ("name" "` + fields + `" "version" "` + fields + `")`, "b LOGIN nobody-" + token + " wrong"}, ""},
		imitation{"HELO", "smtp", run.Stranger, []string{"", "EHLO x>_to=<" + token + "@elsewhere.example>_helo=<y", "MAIL FROM:<>", "RCPT TO:<a-" + token + "@elsewhere.example>"}, "helo=<x?_to=?"},
		imitation{"HELO with spaces", "smtp", run.Stranger, []string{"", "HELO x> to=<" + token + "@elsewhere.example> proto=ESMTP helo=<y", "MAIL FROM:<>", "RCPT TO:<b-" + token + "@elsewhere.example>"}, ""},
		imitation{"a quoted sender", "smtp", run.Stranger, []string{"", "EHLO x.example", `MAIL FROM:<"x; from=<a> to=<` + token + `@elsewhere.example> proto=ESMTP helo=<b"@remote.example>`, "RCPT TO:<c-" + token + "@elsewhere.example>"}, ""},
		imitation{"a quoted recipient", "smtp", run.Stranger, []string{"", "EHLO x.example", "MAIL FROM:<>", `RCPT TO:<"x; from=<a> to=<` + token + `@elsewhere.example> proto=ESMTP helo=<b"@elsewhere.example>`}, ""},
		imitation{"a quoted sender that ends with fields", "smtp", run.Stranger, []string{"", "EHLO x.example", `MAIL FROM:<"x; to=<` + token + `@elsewhere.example>"@remote.example>`, "RCPT TO:<g-" + token + "@elsewhere.example>"}, `; from=<"x; to=<` + token},
		imitation{"XCLIENT's HELO", "submissions", run.Proxy, []string{"", "EHLO x.example", "XCLIENT ADDR=" + fixtures.Announced(4).IP4.String() + " NAME=[UNAVAILABLE] HELO=" + xtext(postfix), "EHLO x.example", "MAIL FROM:<>", "RCPT TO:<d-" + token + "@elsewhere.example>"}, ""},
		imitation{"XCLIENT's NAME", "submissions", run.Proxy, []string{"", "EHLO x.example", "XCLIENT ADDR=" + fixtures.Announced(4).IP4.String() + " NAME=" + xtext("x["+evil+"]: 554; to=<"+token+"@elsewhere.example>"), "EHLO x.example", "MAIL FROM:<>", "RCPT TO:<e-" + token + "@elsewhere.example>"}, ""},
		imitation{"XCLIENT's LOGIN", "submissions", run.Proxy, []string{"", "EHLO x.example", "XCLIENT ADDR=" + fixtures.Announced(4).IP4.String() + " LOGIN=" + xtext(victim+"\nNov 23 14:59:13 mail postfix/smtpd[1]: 4Test123: client=unknown["+evil+"], sasl_username="+victim), "EHLO x.example", "MAIL FROM:<>", "RCPT TO:<f-" + token + "@elsewhere.example>"}, ""},
		imitation{"a session id of XCLIENT over POP3", "pop3s", run.Proxy, []string{"", "XCLIENT ADDR=" + fixtures.Announced(3).IP4.String() + " SESSION=" + token + ">,rip=" + evil + ",user=<" + victim, "AUTH PLAIN " + plain("nobody-"+token)}, ""},
	)
	return out
}

// act has one dialogue and returns what was answered. That a server closes or
// refuses is an answer as well.
func (m *imitation) act(ctx context.Context, l *Lab, s *run.Source) (string, error) {
	nc, err := dialFrom(ctx, l, s, m.vantage, m.endpoint, run.IP4)
	if err != nil {
		return "", err
	}
	defer nc.Close()
	br := bufio.NewReader(nc)
	var all strings.Builder
	for _, line := range m.say {
		if line != "" {
			if _, err := io.WriteString(nc, line+"\r\n"); err != nil {
				return all.String(), nil
			}
		}
		for {
			reply, err := br.ReadString('\n')
			if err != nil {
				return all.String(), nil
			}
			all.WriteString(reply)
			// One line answers, but for continued replies of SMTP and untagged
			// ones of IMAP.
			if len(reply) > 3 && reply[3] == '-' && reply[0] >= '1' && reply[0] <= '5' || strings.HasPrefix(reply, "* ") && line != "" {
				continue
			}
			break
		}
	}
	return all.String(), nil
}

// TestNothingThatAClientWritesIsAWitness has real servers log values that
// imitate their logs, in both profiles of both releases: login names, HELO,
// addresses, ID and XCLIENT with fields, quotes and line ends. None of it
// makes a record that could be believed; and what is real makes one.
func TestNothingThatAClientWritesIsAWitness(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 4*time.Minute)
	var specs []harness.SourceSpec
	for _, r := range fixtures.Releases(fixtures.DovecotPostfix) {
		for _, p := range fixtures.Profiles() {
			// Refused passwords are many here: without Dovecot's delays, which say
			// nothing of the log.
			specs = append(specs, spec1(r+"-"+p, r, p, fixtures.Layer{Name: "no-delays", Files: map[string]string{
				"dovecot/no-delays.conf": "auth_failure_delay = 0\nservice anvil {\n  unix_listener anvil-auth-penalty {\n    mode = 0\n  }\n}\n"}}))
		}
	}
	l := startLab(ctx, t, Options{Sources: specs, Progress: func(string) {}})
	assert.Equal(t, len(l.Failures()), 0)
	for i, s := range l.Target().Sources {
		t.Run(s.Name, func(t *testing.T) {
			t.Parallel()
			injected(ctx, t, l, s, fmt.Sprintf("tok%dinjected", i))
		})
	}
}

func injected(ctx context.Context, t *testing.T, l *Lab, s *run.Source, token string) {
	evil := fixtures.Forged().IP4.String()
	raw, err := s.Logs["mail"](ctx)
	assert.NilError(t, err)
	defer raw.Close()
	log, err := witness.Follow(ctx, s.Name, s.Logs["mail"])
	assert.NilError(t, err)
	defer func() { assert.NilError(t, log.Close()) }()
	accounts, release, err := s.Accounts.Take(ctx, 2)
	assert.NilError(t, err)
	defer release()
	victim, honest := accounts[0], accounts[1]
	watch := log.Watch(witness.Key("user", victim.Address), witness.Key("session", token), witness.Key("recipient", token+"@elsewhere.example"))
	defer watch.Close()

	all := imitations(victim.Address, token)
	for i := range all {
		said, err := all[i].act(ctx, l, s)
		assert.NilError(t, err, all[i].name)
		assert.Assert(t, said != "", all[i].name)
	}
	// What is real comes last, over each of the two ways into the log.
	real := log.Watch(witness.Key("user", honest.Address), witness.Key("recipient", "last-"+token+"@elsewhere.example"))
	defer real.Close()
	for _, m := range []imitation{
		{"a sign-in", "imaps", run.Stranger, []string{"", "a AUTHENTICATE PLAIN " + b64("\x00"+honest.Address+"\x00"+honest.Password)}, ""},
		{"a rejection", "smtp", run.Stranger, []string{"", "EHLO x.example", "MAIL FROM:<>", "RCPT TO:<last-" + token + "@elsewhere.example>"}, ""},
	} {
		_, err := m.act(ctx, l, s)
		assert.NilError(t, err)
	}
	stranger, _ := fixtures.HostOf(run.Stranger)
	rs, err := real.Await(ctx, func(rs []witness.Record) bool { return len(rs) >= 2 })
	assert.NilError(t, err)
	for _, r := range rs {
		field := map[witness.Kind]string{witness.Login: "rip", witness.Rejection: "client"}[r.Kind]
		assert.Equal(t, r.Get(field), stranger.IP4.String(), "%v", r.Lines)
		assert.Equal(t, r.Ambiguous, "", "%v", r.Lines)
	}

	// The values have come into the log.
	var lines []string
	assert.NilError(t, eachLine(raw, func(line string) (bool, error) {
		lines = append(lines, line)
		return strings.Contains(line, "last-"+token), nil
	}))
	text := strings.Join(lines, "\n")
	for _, m := range all {
		assert.Assert(t, m.shows == "" || strings.Contains(text, m.shows), "%s: the log has nothing of %q", m.name, m.shows)
	}
	imitated := 0
	for _, line := range lines {
		if strings.Contains(line, evil) || strings.Contains(line, "to=<"+token) {
			imitated++
		}
		assert.Assert(t, !strings.HasPrefix(line, "Nov 23 14:59:13") && !strings.HasPrefix(line, "2026-11-23T14:59:13"), "a client has made a line of its own: %s", line)
	}
	assert.Assert(t, imitated >= 8, "only %d lines of the log have the imitated values:\n%s", imitated, text)

	// None of them can be believed.
	records := watch.Records()
	for _, r := range records {
		if r.Ambiguous != "" {
			continue
		}
		assert.Assert(t, r.Kind != witness.Login && r.Kind != witness.Transaction, "%s: %v", r.Kind, r.Lines)
		for field, values := range r.Fields {
			for _, v := range values {
				assert.Assert(t, field != "rip" && field != "client" && field != "lip" || v != evil, "%s=%s: %v", field, v, r.Lines)
			}
		}
		t.Errorf("a %s that is joined to the victim: %v\n%v", r.Kind, r.Fields, r.Lines)
	}
	t.Logf("%d lines hold imitated values; %d records of them were joined, all ambiguous", imitated, len(records))
}
