package script

import (
	"strings"
	"testing"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"
)

const actHead = `id: lifecycle.x
claim: A claim.
requirements: H-01
means: Something.
needs: stalwart@instrumented
families: ip4
witness: effect
hazards: restart
isolation: alone

# the only phase
`

func TestActsAreParsedAndShown(t *testing.T) {
	steps := `source insert http.url = 'https://x'
source insert server.blocked-ip.${client.41} =
source clear server.listener.imap.proxy.
source guide
source reload
source reload rejects
source restart
source unblock
source unguide
open A imap source.imap from proxy for ${client.7} shape one-byte
A must <- * OK {}
`
	s, err := Parse("lifecycle/x.txtar", []byte(actHead+steps), nil)
	assert.NilError(t, err)
	assert.Equal(t, s.Risk(), R5)
	for _, line := range strings.Split(strings.TrimSpace(steps), "\n") {
		assert.Assert(t, cmp.Contains(s.Expanded(), strings.TrimSpace(line)))
	}
	for _, c := range []struct{ from, to, want string }{
		{"source guide", "source guid", "guid"},
		{"source guide", "source guide x", "guide takes nothing"},
		{"source reload rejects", "source reload refuses", "unexpected"},
		{"source insert http.url = 'https://x'", "source insert http.url", "insert is not complete"},
		{"source clear server.listener.imap.proxy.", "source clear", "clear needs"},
		{"isolation: alone\n", "", "disturbs what runs beside it"},
		{"hazards: restart\n", "", "a restart must be named"},
		{"needs: stalwart@instrumented", "needs: dovecot-postfix stalwart", "no settings of a dovecot-postfix source"},
		{"needs: stalwart@instrumented", "needs: stalwart@sometimes", "stalwart@sometimes"},
		{"shape one-byte", "shape round", "unknown shape"},
		{"${client.7}", "${nobody}", "there is no variable"},
	} {
		_, err := Parse("lifecycle/x.txtar", []byte(strings.Replace(actHead+steps, c.from, c.to, 1)), nil)
		assert.Assert(t, cmp.ErrorContains(err, c.want), c.to)
	}
}

// An assertion in an arm that no source of what is proved can come to is none
// that must be seen to fail there.
func TestAssertionsAtReleases(t *testing.T) {
	text := strings.Replace(actHead, "needs: stalwart@instrumented", "needs: dovecot-postfix stalwart", 1) + `open A imap source.imap from proxy for ${client}
if dovecot-postfix@trixie {
  A must <- * OK one
} else {
  A must <- * OK other
}
if stalwart@as-shipped {
  A must <- * OK shipped
}
if ip4 {
  A must <- * OK four
} else {
  A must <- * OK six
}
`
	s, err := Parse("lifecycle/x.txtar", []byte(text), nil)
	assert.NilError(t, err)
	at := func(rs ...Release) string {
		var out []string
		for _, a := range s.AssertionsAt(rs...) {
			out = append(out, a.Text[strings.LastIndexByte(a.Text, ' ')+1:])
		}
		return strings.Join(out, " ")
	}
	assert.Equal(t, at(), "one other shipped four six")
	assert.Equal(t, at(Release{"dovecot-postfix", "trixie"}), "one four six")
	assert.Equal(t, at(Release{"dovecot-postfix", "bookworm"}), "other four six")
	assert.Equal(t, at(Release{"stalwart", "0.15.5"}), "other shipped four six")
	assert.Equal(t, at(Release{"generic", ""}), "")
}

func TestRequirementsOfAKind(t *testing.T) {
	s := &Scenario{Header: Header{Requirements: []string{"A-01", "A-03", "A-15"}}, Concerns: map[string]string{"A-01": "stalwart", "A-03": "dovecot-postfix"}}
	assert.DeepEqual(t, s.RequirementsOf("stalwart"), []string{"A-01", "A-15"})
	assert.DeepEqual(t, s.RequirementsOf("dovecot-postfix"), []string{"A-03", "A-15"})
}
