package script_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/mailproof/mailproof/harness/script"
	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"
)

const header = `id: imap-id.sample
claim: Something is so.
requirements: C-04
means: Something else.
needs: dovecot-postfix
over: imap imaps
witness: effect

`

const body = `# it happens
open A imap source from proxy
A must <- * OK {}
`

func lib(t *testing.T) *script.Library {
	t.Helper()
	l, err := script.NewLibrary(map[string][]byte{
		"_fragments/greet.txtar": []byte("param name=client\nparam must\n# says it\n$CONN -> $must ID (\"$name\")\n$CONN <- $must OK {}\n"),
	})
	assert.NilError(t, err)
	return l
}

func TestParseAcceptsTheSmallestScenario(t *testing.T) {
	s, err := script.Parse("imap-id/sample.txtar", []byte(header+body), nil)
	assert.NilError(t, err)
	assert.Equal(t, s.ID, "imap-id.sample")
	assert.Equal(t, s.Risk(), script.R0)
	assert.Equal(t, s.Driver(), "as-proxy")
	assert.Equal(t, len(s.Assertions()), 1)
}

// A scenario may want to be alone at one kind of source.
func TestAloneAtAKind(t *testing.T) {
	for value, at := range map[string][2]bool{"account": {false, false}, "address": {false, false}, "alone": {true, true}, "alone@dovecot-postfix": {true, false}} {
		s, err := script.Parse("s.txtar", []byte(header[:len(header)-1]+"isolation: "+value+"\n\n"+body), nil)
		assert.NilError(t, err)
		assert.Equal(t, [2]bool{s.IsAlone("dovecot-postfix"), s.IsAlone("stalwart")}, at, value)
	}
}

// Every fault names file, line and column, and says what would be right.
func TestParseNamesWhatIsWrong(t *testing.T) {
	for name, tc := range map[string]struct{ text, want string }{
		"header key":           {strings.Replace(header, "claim:", "clam:", 1) + body, `s.txtar:2:1: unknown header key "clam"; did you mean "claim"?`},
		"key twice":            {"id: a.b\n" + header + body, `s.txtar:2:1: the key "id" stands already on line 1`},
		"no colon":             {"id: a.b\nnonsense\n\n" + body, `s.txtar:2:1: "nonsense" is no header line`},
		"missing claim":        {strings.Replace(header, "claim: Something is so.\n", "", 1) + body, `the header has no "claim"`},
		"claim no sentence":    {strings.Replace(header, "so.", "so", 1) + body, "the claim is no sentence"},
		"id form":              {strings.Replace(header, "imap-id.sample", "Sample", 1) + body, `"Sample" is no scenario id`},
		"requirement form":     {strings.Replace(header, "C-04", "C4", 1) + body, `"C4" is no requirement id; a letter A to K`},
		"endpoint":             {strings.Replace(header, "imaps", "imapz", 1) + body, `"imapz" is no endpoint; did you mean "imap"?`},
		"mixed endpoints":      {strings.Replace(header, "imaps", "pop3", 1) + body, "the endpoints do not all speak imap"},
		"need":                 {strings.Replace(header, "needs: dovecot-postfix", "needs: dovecot", 1) + body, `"dovecot" is no need`},
		"family":               {header[:len(header)-1] + "families: ip5\n\n" + body, `"ip5" is no address family`},
		"hazard":               {header[:len(header)-1] + "hazards: fire\n\n" + body, `"fire" is no hazard`},
		"isolation":            {header[:len(header)-1] + "isolation: none\n\n" + body, `"none" is no isolation`},
		"isolation at":         {header[:len(header)-1] + "isolation: alone@postfix\n\n" + body, `"alone@postfix" is no isolation`},
		"level":                {header[:len(header)-1] + "level: perhaps\n\n" + body, `"perhaps" is no level`},
		"no steps":             {header, "the scenario has no steps"},
		"step before phase":    {header + "open A imap source from proxy\n" + "A must <- * OK {}\n", `steps stand before the first phase`},
		"unknown step":         {header + "# x\nopne A imap source from proxy\n" + "A <- * OK {}\n", `s.txtar:10:1: "opne" begins no step; did you mean "open"?`},
		"unknown vantage":      {header + "# x\nopen A imap source from proxi\n", `unknown vantage "proxi"; did you mean "proxy"?`},
		"unknown protocol":     {header + "# x\nopen A imp source from proxy\n", `unknown protocol "imp"; did you mean "imap"?`},
		"unknown target":       {header + "# x\nopen A imap server from proxy\n", `unknown target "server"`},
		"wrong protocol":       {header + "# x\nopen A imap source.smtp from proxy\n", `the endpoint "smtp" does not speak imap`},
		"open incomplete":      {header + "# x\nopen A imap\n", "open is not complete"},
		"tls mode":             {header + "# x\nopen A imap source from proxy tls maybe\n", `unknown TLS mode "maybe"`},
		"header form":          {header + "# x\nopen A imap source from proxy announce proxy-v3\n", `unknown header form "proxy-v3"; did you mean "proxy-v`},
		"proxy as client":      {header + "# x\nopen A imap proxy from proxy\n", "the proxy is not a client of itself"},
		"no such connection":   {header + "# x\nopen A imap source from proxy\nA must <- * OK {}\nB <- * OK {}\n", "there is no connection B; open are: A"},
		"open twice":           {header + body + "open A imap source from proxy\n", "the connection A is open already"},
		"closed before":        {header + body + "close A\nA <- a1 OK {}\n", "the connection A was closed before"},
		"direction":            {header + body + "A <= x\n", `"<=" is no direction`},
		"pattern missing":      {header + body + "A <-\n", "the pattern is missing"},
		"hole unclosed":        {header + body + "A <- a1 OK {x\n", "s.txtar:12:12: a hole has no end"},
		"holes side by side":   {header + body + "A <- a1 OK {x}{y}\n", "two holes side by side"},
		"capture type":         {header + body + "A <- a1 OK {x:ipp}\n", `"ipp" is no type of capture; did you mean "ip"?`},
		"equal unknown":        {header + body + "A <- a1 OK {=x}\n", `nothing was captured as "x"`},
		"reference unclosed":   {header + body + "A -> a1 NOOP ${token\n", "a reference has no end"},
		"unknown variable":     {header + body + "A -> a1 ID (\"${tokn}\")\n", `s.txtar:12:14: there is no variable "tokn"; did you mean "token"?`},
		"secret in pattern":    {header + body + "A -> a1 NOOP\nA <- a1 OK ${secret.alice}\n", "${secret.alice} cannot stand here; secrets can only be sent"},
		"sasl without account": {header + body + "A -> a1 AUTHENTICATE PLAIN ${sasl.plain}\nA <- a1 OK {}\n", "write ${sasl.plain alice}"},
		"address function":     {header + body + "A -> a1 ID (\"${xclient proxi}\")\nA <- a1 OK {}\n", `"proxi" is no address; did you mean "proxy"?`},
		"unknown verb":         {header + body + "A -> a1 XYZZY\nA <- a1 OK {}\n", `"XYZZY" is no verb of imap`},
		"some without status":  {header + body + "A <~ * CAPABILITY {}\n", `no "<-" follows on A`},
		"none then send":       {header + body + "A <! * BYE {}\nA -> a1 NOOP\nA <- a1 OK {}\n", `no "<-" follows on A`},
		"must on none":         {header + body + "A must <! * BYE {}\nA <- a1 OK {}\n", `"<!" is an assertion already`},
		"must on send":         {header + body + "A must -> a1 NOOP\n", `"must" and "within" go with replies`},
		"duration":             {header + body + "A within soon <- a1 OK {}\n", `"soon" is no duration`},
		"duration too long":    {header + body + "A within 10m <- a1 OK {}\n", "10m0s is not allowed"},
		"closed alone":         {header + "# x\nopen A imap source from proxy\nA <x\n", `"<x" has no positive control`},
		"shape":                {header + body + "shape A onebyte\n", `unknown shape "onebyte"; did you mean "one-byte"?`},
		"fragment":             {header + body + "use gret A must=x\n", `unknown fragment "gret"; did you mean "greet"?`},
		"fragment parameter":   {header + body + "use greet A must=x nane=y\n", `the fragment "greet" has no parameter "nane"; it has: must name`},
		"fragment needs":       {header + body + "use greet A\n", `the fragment "greet" needs the parameter "must"`},
		"fragment fault":       {header + body + "use greet A must=${tokn}\n", `_fragments/greet.txtar:4:6: there is no variable "tokn"; did you mean "token"? (used at s.txtar:12)`},
		"loop form":            {header + body + "for n in 1-3 {\n}\n", "the loop is not complete; write: for n in 1..51 {"},
		"loop too long":        {header + body + "for n in 1..999 {\nA -> a$n NOOP\n}\n", "1..999 is not allowed; at most 300 repetitions"},
		"block unclosed":       {header + body + "if ip4 {\nA -> a1 NOOP\n", "the block has no end"},
		"condition":            {header + body + "if dovecot-postfix@sid {\nA -> a1 NOOP\n}\n", `unknown condition "dovecot-postfix@sid"`},
		"phase in block":       {header + body + "if ip4 {\n# no\nA -> a1 NOOP\nA <- a1 OK {}\n}\n", "a phase cannot begin inside a block"},
		"witness kind":         {header + body + "witness logon join user=${user.alice} {\n expect rip=${client}\n}\n", `unknown kind of witness "logon"; did you mean "login"?`},
		"witness join":         {header + body + "witness login join rip=${client} {\n expect user=${user.alice}\n}\n", `a login cannot be joined by "rip=${client}"`},
		"witness no expect":    {header + body + "witness login join user=${user.alice} {\n forbid rip=${proxy}\n}\n", "the witness expects nothing"},
		"witness field":        {header + body + "witness login join user=${user.alice} {\n expect ip=${client}\n}\n", `a login has no field "ip"; did you mean "rip"?`},
		"witness joined value": {header + body + "witness login join session=${token} {\n expect session=${token}\n}\n", "the record is joined by the very value that is expected"},
		"witness line":         {header + body + "witness login join user=${user.alice} {\n want rip=${client}\n}\n", `"want rip=${client}" is no line of a witness`},
		"witness undeclared":   {header + body + "witness login join user=${user.alice} {\n expect rip=${client}\n}\n", `a step has the witness "log"`},
		"witness declared":     {strings.Replace(header, "witness: effect", "witness: effect log", 1) + body, `the header names the witness "log", and no step has it`},
		"unused file":          {header + body + "-- message --\nhello\n", `the file "message" is never sent`},
		"too much filler":      {header + body + "A -> X ${filler 9000}\n", "a number of octets from 1 to 8192 is wanted"},
		"filler of what":       {header + body + "A -> X ${filler much}\n", "a number of octets from 1 to 8192 is wanted"},
		"filler of nothing":    {header + body + "A -> X ${filler}\n", "${filler} has not the right arguments"},
		"missing file":         {header + body + "A -> ${octets message}\n", `there is no file "message"`},
		"nothing can fail":     {header + "# x\nopen A imap source from proxy\nA <- * OK {}\n", "nothing in the scenario can fail its claim"},
		"no facet endpoint":    {strings.Replace(header, "over: imap imaps\n", "", 1) + body, "the scenario has no facet's endpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := script.Parse("s.txtar", []byte(tc.text), lib(t))
			assert.Assert(t, err != nil, "the scenario was accepted")
			assert.Assert(t, cmp.Contains(err.Error(), tc.want))
			for _, e := range script.Errors(err) {
				assert.Assert(t, e.Pos.File != "" && e.Pos.Line > 0, "no place: %v", e)
			}
		})
	}
}

func TestFragmentsAndLoopsAreWrittenOut(t *testing.T) {
	s, err := script.Parse("s.txtar", []byte(header+body+`use greet A must=g1 name="a b"
for n in 2..3 {
  A -> a$n NOOP
  A <- a$n OK {}
}
if starttls {
  A -> b NOOP
  A <- b OK {}
} else {
  A -> c NOOP
  A <- c OK {}
}
`), lib(t))
	assert.NilError(t, err)
	assert.Equal(t, s.Expanded(), `# it happens
open A imap source from proxy
A must <- * OK {}
A -> g1 ID ("a b")
A <- g1 OK {}
A -> a2 NOOP
A <- a2 OK {}
A -> a3 NOOP
A <- a3 OK {}
if starttls {
  A -> b NOOP
  A <- b OK {}
} else {
  A -> c NOOP
  A <- c OK {}
}
`)
}

// Risk and blame come from the verbs, and from nothing that a scenario declares.
func TestRiskAndBlameAreComputed(t *testing.T) {
	h := strings.Replace(header, "over: imap imaps", "over: smtp", 1)
	for _, tc := range []struct {
		steps string
		risk  script.Risk
		blame map[string]script.Blame
	}{
		{"A -> EHLO x\nA <- 250 {}\n", script.R0, map[string]script.Blame{"stranger": {Peak: 1}}},
		{"A -> AUTH PLAIN ${sasl.wrong alice}\nA <- 535 {}\n", script.R1, map[string]script.Blame{"stranger": {FailedSignIns: 1, Peak: 1}}},
		{"A -> RCPT TO:<a@b>\nA <- 550 {}\n", script.R3, map[string]script.Blame{"stranger": {BadRecipients: 1, Peak: 1}}},
		{"A -> XCLIENT ADDR=x\nA <- 501 {}\n", script.R0, map[string]script.Blame{"stranger": {ProtocolErrors: 1, Peak: 1}}},
		{"A -> DATA\nA <- 354 {}\n", script.R4, map[string]script.Blame{"stranger": {Peak: 1}}},
		{"open B smtp source from stranger\nB <- 220 {}\nclose B\nopen C smtp source from proxy\nC <- 220 {}\n", script.R0,
			map[string]script.Blame{"stranger": {Peak: 2}, "proxy": {Peak: 1}}},
		{"if ip4 {\nA -> RCPT TO:<a@b>\nA <- 550 {}\n} else {\nA -> AUTH PLAIN ${sasl.wrong alice}\nA <- 535 {}\nA -> AUTH PLAIN ${sasl.wrong alice}\nA <- 535 {}\n}\n", script.R3,
			map[string]script.Blame{"stranger": {FailedSignIns: 2, Peak: 1}}},
	} {
		s, err := script.Parse("s.txtar", []byte(h+"# x\nopen A smtp source from stranger\nA must <- 220 {}\n"+tc.steps), nil)
		assert.NilError(t, err)
		assert.Equal(t, s.Risk(), tc.risk, tc.steps)
		assert.DeepEqual(t, s.Blame(), tc.blame)
	}
}

type mapEnv map[string]string

func (m mapEnv) Lookup(r script.Ref) (string, string, error) {
	v, ok := m[r.Name]
	if !ok {
		return "", "", errors.New("unknown")
	}
	if strings.HasPrefix(r.Name, "secret.") {
		return v, strings.TrimPrefix(r.Name, "secret."), nil
	}
	return v, "", nil
}

func TestPatterns(t *testing.T) {
	env := mapEnv{"client": "203.0.113.9", "x": "abc"}
	for _, tc := range []struct {
		pattern, text string
		ok            bool
		caps          map[string]string
	}{
		{"* OK {}", "* OK ready", true, nil},
		{"* OK {}", "* BYE ready", false, nil},
		{"a1 OK {text}", "a1 OK [CAPABILITY x] done", true, map[string]string{"text": "[CAPABILITY x] done"}},
		{"{a} b {c}", "a b b b c", true, map[string]string{"a": "a", "c": "b b c"}},
		{"{ip:ip}:{n:int}", "203.0.113.9:25", true, map[string]string{"ip": "203.0.113.9", "n": "25"}},
		{"{ip:ip}:{n:int}", "localhost:25", false, nil},
		{"{w:word} x", "two words x", false, nil},
		{"${client}", "203.0.113.9", true, nil},
		{"${client}", "203.0.113.90", false, nil},
		{"{=x}d", "abcd", true, nil},
		{`\{12\}`, "{12}", true, nil},
		{"554 {} || 454 {}", "454 no", true, nil},
		{"554 {} || 454 {}", "450 no", false, nil},
		{"250 {} ADDR {}", "250 XCLIENT NAME ADDR PROTO", true, nil},
		{"ok {}", "OK yes", true, nil}, // letters are compared without their case
	} {
		s, err := script.Parse("s.txtar", []byte(header+body+"A <- {x} y\nA <- "+tc.pattern+"\n"), nil)
		assert.NilError(t, err, tc.pattern)
		var pat script.Pattern
		s.Walk(func(st script.Step) {
			if r, ok := st.(*script.Reply); ok {
				pat = r.Pattern
			}
		})
		caps, ok, err := pat.Match(tc.text, env, true)
		assert.NilError(t, err)
		assert.Equal(t, ok, tc.ok, "%q against %q", tc.pattern, tc.text)
		if ok {
			assert.DeepEqual(t, caps, tc.caps)
		}
	}
}

func TestSecretsAreShownByName(t *testing.T) {
	s, err := script.Parse("s.txtar", []byte(header+body+"A -> a1 LOGIN x ${secret.alice}\nA <- a1 OK {}\n"), nil)
	assert.NilError(t, err)
	s.Walk(func(st script.Step) {
		if snd, ok := st.(*script.Send); ok {
			actual, shown, err := snd.Text.Expand(mapEnv{"secret.alice": "hunter2"})
			assert.NilError(t, err)
			assert.Equal(t, actual, "a1 LOGIN x hunter2")
			assert.Equal(t, shown, "a1 LOGIN x <secret:alice>")
		}
	})
}

func FuzzParse(f *testing.F) {
	f.Add(header + body)
	f.Add(header + body + "witness login join user=${user.alice} {\n expect rip=${client}\n}\n")
	f.Add(header + body + "for n in 1..3 {\nA -> a$n NOOP\n}\n-- m --\nx\n")
	f.Add(header + body + "if ip4 {\n} else {\n}\n")
	f.Fuzz(func(t *testing.T, text string) {
		s, err := script.Parse("s.txtar", []byte(text), nil)
		if err != nil {
			for _, e := range script.Errors(err) {
				if e.Pos.Line < 1 {
					t.Fatalf("an error without a line: %v", e)
				}
			}
			return
		}
		// What parses can be rendered, and its plan and risk computed.
		_ = s.Expanded()
		_ = s.Risk()
		_ = s.Blame()
	})
}
