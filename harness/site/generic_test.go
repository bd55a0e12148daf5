package site

import (
	"context"
	"net/netip"
	"strings"
	"testing"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/harness/run"
)

// declared is the good file with a generic source in the place of its own.
func declared(announces string) string {
	return strings.Replace(good, "kind = \"dovecot-postfix\"\nversion = \"bookworm\"\n", "kind = \"generic\"\n"+announces+"\nsubmission = 587\n", 1)
}

// known is a name service that knows the proxy.
func known(context.Context, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("192.0.2.1")}, nil
}

func TestGenericSourcesAreDeclared(t *testing.T) {
	for _, tc := range []struct {
		announces                string
		imap, submission, port25 run.Announcement
		version                  string
	}{
		{`announces = "none"`, run.ByNothing, run.ByNothing, run.ByNothing, "none"},
		{`announces = "xclient"`, run.ByXCLIENT, run.ByXCLIENT, run.ByNothing, "xclient"},
		{`announces = "proxy"`, run.ByPROXY, run.ByPROXY, run.ByNothing, "proxy"},
		{`announces = { imap = "none", submission = "proxy" }`, run.ByNothing, run.ByPROXY, run.ByNothing, "mixed"},
	} {
		f, err := Parse("site.toml", []byte(declared(tc.announces)))
		assert.NilError(t, err)
		target, err := Open(t.Context(), f, Options{PlanOnly: true, Resolve: known})
		assert.NilError(t, err)
		s := target.Sources[0]
		assert.Equal(t, s.Kind, "generic")
		assert.Equal(t, s.Version, tc.version)
		assert.Equal(t, s.AnnouncedOn("imap"), tc.imap)
		assert.Equal(t, s.AnnouncedOn("submission"), tc.submission)
		assert.Equal(t, s.AnnouncedOn("smtp"), tc.port25)
		told := strings.Contains(strings.Join(target.Notices, "\n"), "is told of no client on imap")
		assert.Equal(t, told, tc.imap == run.ByNothing, "%q", target.Notices)
	}
}

func TestWrongDeclarationsOfGenericSources(t *testing.T) {
	for announces, want := range map[string]string{
		"":                              "announces is missing",
		`announces = "haproxy"`:         `site.toml:17:1: source.old.announces: "haproxy" is no announcement`,
		`announces = 3`:                 "site.toml:17:1: source.old.announces: write \"none\"",
		`announces = { imap = "none" }`: "submission is missing: how the source is told of a client there",
		`announces = { imap = "none", submission = "proxy", pop3 = "none" }`:       "the source has no such service: its port is missing",
		`announces = { imap = "none", submission = "v2" }`:                         `"v2" is no announcement`,
		`announces = { imap = "none", submission = "proxy", lmtp = "none" }`:       "unknown key",
		`announces = { imap = "none", submission = "proxy", smtp = "proxy" }`:      "port 25 is for the new server, which announces nobody",
		"announces = \"none\"\nversion = \"3.10\"":                                 "is not for sources of kind generic",
		"announces = \"none\"\nlmtp = 24":                                          "unknown key; there are",
		"announces = { imap = \"none\", submission = \"proxy\", smtp = \"none\" }": "",
	} {
		_, err := Parse("site.toml", []byte(declared(announces)))
		if want == "" {
			assert.NilError(t, err)
			continue
		}
		assert.ErrorContains(t, err, want)
	}
}
