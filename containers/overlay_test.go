package containers

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"
)

func overlay(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for p, text := range files {
		at := filepath.Join(dir, p)
		assert.NilError(t, os.MkdirAll(filepath.Dir(at), 0o755))
		assert.NilError(t, os.WriteFile(at, []byte(text), 0o644))
	}
	return dir
}

func TestOverlayIsRead(t *testing.T) {
	l, err := ReadOverlay(overlay(t, map[string]string{
		"dovecot/10-ours.conf": "login_trusted_networks = @proxy4@\n",
		"postfix/main.cf":      "smtpd_banner = x\n",
		"postfix/master.cf":    "submission/inet/x=y\n",
		"stalwart/ours.toml":   "http.url = \"'https://@publichost@'\"\n[server.listener.imap.proxy]\ntrusted-networks = [\"@proxy4@/32\"]\n",
		"maps/access":          "anything @proxy5@\n",
	}))
	assert.NilError(t, err)
	assert.DeepEqual(t, l.Paths(), []string{"dovecot/10-ours.conf", "maps/access", "postfix/main.cf", "postfix/master.cf", "stalwart/ours.toml"})
}

func TestOverlayMistakesAreNamed(t *testing.T) {
	for _, c := range []struct {
		files map[string]string
		want  string
	}{
		{map[string]string{"dovecot/x.conf": "a\nb = @proxy5@\n"}, "dovecot/x.conf:2: unknown name @proxy5@"},
		{map[string]string{"postfix/main.cf": "this is no setting\n"}, "postfix/main.cf:1: "},
		{map[string]string{"postfix/master.cf": "smtp inet\n"}, "postfix/master.cf:1: "},
		{map[string]string{"dovecot/conf.d/x.conf": ""}, "would only be copied"},
		{map[string]string{"stalwart/x.toml": "a = 1\na = 2\n"}, "stalwart/x.toml: "},
		{map[string]string{"stalwart/x.toml": "a = \"@proxy5@\"\n"}, "stalwart/x.toml:1: unknown name @proxy5@"},
		{map[string]string{"stalwart/config.json": ""}, "would only be copied"},
		{map[string]string{"big": strings.Repeat("x", maxOverlayFile+1)}, "is larger than"},
		{nil, "is empty"},
	} {
		_, err := ReadOverlay(overlay(t, c.files))
		assert.Assert(t, cmp.ErrorContains(err, c.want))
	}
	_, err := ReadOverlay(filepath.Join(t.TempDir(), "not-there"))
	assert.Assert(t, cmp.ErrorContains(err, "no such file or directory"))
	file := filepath.Join(t.TempDir(), "f")
	assert.NilError(t, os.WriteFile(file, nil, 0o644))
	_, err = ReadOverlay(file)
	assert.Assert(t, cmp.ErrorContains(err, "is a file"))
	dir := overlay(t, map[string]string{"postfix/main.cf": ""})
	assert.NilError(t, os.Symlink("/dev/zero", filepath.Join(dir, "zero")))
	_, err = ReadOverlay(dir)
	assert.Assert(t, cmp.ErrorContains(err, "is no file"))
	assert.NilError(t, os.Remove(filepath.Join(dir, "zero")))
	assert.NilError(t, os.Symlink("/not/there", filepath.Join(dir, "gone")))
	_, err = ReadOverlay(dir)
	assert.Assert(t, cmp.ErrorContains(err, "no such file or directory"))
}
