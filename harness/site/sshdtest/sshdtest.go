// Package sshdtest runs the system's own sshd on this machine's loopback, for
// tests of what goes over OpenSSH. It promises that the server and its keys are
// gone when the test ends, and that nothing of the user's own ssh
// configuration is read.
package sshdtest

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

// Required is the environment variable that makes tests fail, and not be
// skipped, where there is no OpenSSH.
const Required = "MAILPROOF_REQUIRE_SSH"

// A Server is a running sshd.
type Server struct {
	dir   string
	port  int
	known string
	name  string
}

func missing(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv(Required) != "" {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

type words struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (w *words) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.Write(b)
}

func (w *words) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}

// Start starts sshd on 127.0.0.1, with the keys "host" and "user", of which it
// lets the latter in. Without sshd the test is skipped; see [Required].
func Start(t testing.TB) *Server {
	t.Helper()
	const sshd = "/usr/sbin/sshd"
	if _, err := exec.LookPath(sshd); err != nil {
		missing(t, "there is no sshd here: apt install openssh-server")
	}
	if _, err := exec.LookPath("ssh"); err != nil {
		missing(t, "there is no ssh here: apt install openssh-client")
	}
	s := &Server{dir: t.TempDir()}
	for _, key := range []string{"host", "user"} {
		out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(s.dir, key)).CombinedOutput()
		assert.NilError(t, err, string(out))
	}
	public, err := os.ReadFile(filepath.Join(s.dir, "user.pub"))
	assert.NilError(t, err)
	host, err := os.ReadFile(filepath.Join(s.dir, "host.pub"))
	assert.NilError(t, err)
	me, err := user.Current()
	assert.NilError(t, err)
	s.name = me.Username
	free, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	s.port = free.Addr().(*net.TCPAddr).Port
	free.Close()
	keys := s.write(t, "authorized", string(public), 0o600)
	s.known = s.write(t, "known", fmt.Sprintf("[127.0.0.1]:%d %s", s.port, host), 0o600)
	config := s.write(t, "sshd", fmt.Sprintf("ListenAddress 127.0.0.1\nPort %d\nHostKey %s\nAuthorizedKeysFile %s\nStrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nPasswordAuthentication yes\nMaxStartups 200\n",
		s.port, filepath.Join(s.dir, "host"), keys), 0o600)
	server := exec.Command(sshd, "-D", "-e", "-f", config)
	said := &words{}
	server.Stderr = said
	os.MkdirAll("/run/sshd", 0o755) // where a machine has never run one
	assert.NilError(t, server.Start())
	t.Cleanup(func() { server.Process.Kill(); server.Wait() })
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.Now().Add(10 * time.Second); ; <-tick.C {
		c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", s.port))
		if err == nil {
			c.Close()
			return s
		}
		if time.Now().After(deadline) {
			missing(t, "sshd does not start here (it needs root, or a privilege separation folder): %s", said)
		}
	}
}

func (s *Server) write(t testing.TB, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(s.dir, name)
	assert.NilError(t, os.WriteFile(path, []byte(text), mode))
	return path
}

// Client writes a program named ssh that knows the server and uses one of its
// keys, in a folder of its own, and returns that folder. The key "host" is one
// that the server does not let in.
func (s *Server) Client(t testing.TB, key string) string {
	t.Helper()
	config := s.write(t, "config-"+key, fmt.Sprintf("Host *\n User %s\n HostName 127.0.0.1\n Port %d\n IdentityFile %s\n IdentitiesOnly yes\n UserKnownHostsFile %s\n HostKeyAlias [127.0.0.1]:%d\n",
		s.name, s.port, filepath.Join(s.dir, key), s.known, s.port), 0o600)
	ssh, err := exec.LookPath("ssh")
	assert.NilError(t, err)
	bin := filepath.Join(s.dir, "bin-"+key)
	assert.NilError(t, os.MkdirAll(bin, 0o700))
	s.write(t, filepath.Join("bin-"+key, "ssh"), "#!/bin/sh\nexec "+ssh+" -F "+config+" \"$@\"\n", 0o700)
	return bin
}
