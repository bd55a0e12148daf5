package containers

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"
)

// maxStatic is what the static program may weigh, in octets.
const maxStatic = 30 << 20

// The program that an operator copies to a host: one static file below thirty
// megabytes, that reads a site, plans and runs as nobody, on a file system that
// is read-only and holds nothing else: no libc, no /tmp, no /etc.
func TestStaticProgramNeedsNothingBesideIt(t *testing.T) {
	NeedEngine(t)
	ctx := within(t, 3*time.Minute)
	dir := t.TempDir()
	path := filepath.Join(dir, "mailproof")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "../cmd/mailproof")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+runtime.GOARCH)
	out, err := build.CombinedOutput()
	assert.NilError(t, err, string(out))
	info, err := os.Stat(path)
	assert.NilError(t, err)
	assert.Check(t, info.Size() < maxStatic, "%d octets", info.Size())
	program, err := elf.Open(path)
	assert.NilError(t, err)
	defer program.Close()
	for _, p := range program.Progs {
		assert.Check(t, p.Type != elf.PT_INTERP, "it wants a loader")
	}

	text, err := os.ReadFile(path)
	assert.NilError(t, err)
	site := `domain = "example.org"
[proxy]
ip4 = "127.0.0.2"
tls = "name:mail.example.org"
imaps = 993
[vantage]
proxy = "bind:127.0.0.1"
client = "bind:127.0.0.3"
[source.old]
kind = "dovecot-postfix"
version = "bookworm"
ip4 = "127.0.0.4"
tls = "unchecked:nobody answers there"
imaps = 993
[account.one]
address = "probe1@example.org"
password = "env:PROBE1"
`
	var fs bytes.Buffer
	w := tar.NewWriter(&fs)
	for _, f := range []struct {
		name string
		mode int64
		text []byte
	}{{"mailproof", 0o755, text}, {"site.toml", 0o644, []byte(site)}} {
		assert.NilError(t, w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.text))}))
		_, err := w.Write(f.text)
		assert.NilError(t, err)
	}
	assert.NilError(t, w.Close())
	ref := fmt.Sprintf("mailproof/static-test:%d", os.Getpid())
	docker := func(in io.Reader, args ...string) (string, error) {
		c := exec.CommandContext(ctx, "docker", args...)
		c.Stdin = in
		out, err := c.CombinedOutput()
		return string(out), err
	}
	said, err := docker(&fs, "import", "-", ref)
	assert.NilError(t, err, said)
	t.Cleanup(func() { docker(nil, "rmi", "--force", ref) })
	inside := func(args ...string) (string, int) {
		said, err := docker(nil, append([]string{"run", "--rm", "--read-only", "--network", "none", "--cap-drop", "ALL", "--user", "65534:65534", "--env", "PROBE1=secret", ref, "/mailproof"}, args...)...)
		code := 0
		if err != nil {
			code = err.(*exec.ExitError).ExitCode()
		}
		return said, code
	}
	said, code := inside("--version")
	assert.Equal(t, code, 0, said)
	said, code = inside("plan", "--site", "/site.toml")
	assert.Equal(t, code, 0, said)
	assert.Check(t, cmp.Contains(said, "in all: "))
	said, code = inside("run", "--site", "/site.toml")
	assert.Equal(t, code, 1, said)
	assert.Check(t, strings.Contains(said, "is down") && strings.Contains(said, "nothing answers at the proxy on imaps"), said)
	said, code = inside("run", "--lab", "reference", "--select", "relay.greets")
	assert.Equal(t, code, 0, said)
}
