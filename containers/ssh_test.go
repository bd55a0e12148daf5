package containers

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"gotest.tools/v3/assert"

	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/script"
)

// sshRecipe is the image of a host of which nothing but its sshd is looked at.
func sshRecipe() recipe {
	names := []string{"openssh-server"}
	h := sha256.New()
	fmt.Fprintln(h, "1", "trixie", names, leftOut())
	return recipe{"mailproof/sshd", "trixie", fmt.Sprintf("%x", h.Sum(nil))[:12], names}
}

const sshdConfig = `HostKey /mailproof/host
AuthorizedKeysFile /mailproof/authorized
StrictModes no
UsePAM no
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin yes
MaxStartups 200
`

// An sshHost is a container with an sshd, on the network of another container.
type sshHost struct {
	alias string         // what the client's configuration calls it
	on    string         // the container whose network it has
	sees  string         // the container whose processes it sees, and through them its files; "" for its own
	at    netip.AddrPort // where a client reaches it
}

// keyPair makes a key with no passphrase and returns its path and its public half.
func keyPair(t *testing.T, dir, name string) (path string, public []byte) {
	t.Helper()
	path = filepath.Join(dir, name)
	out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", path).CombinedOutput()
	assert.NilError(t, err, string(out))
	public, err = os.ReadFile(path + ".pub")
	assert.NilError(t, err)
	return path, public
}

// standSSH starts the hosts on a lab's engine, which removes them with itself,
// and returns a program named ssh that knows them and reads no other
// configuration. Keys live as long as the test.
func standSSH(ctx context.Context, t *testing.T, l *Lab, hosts ...sshHost) string {
	t.Helper()
	ssh, err := exec.LookPath("ssh")
	if err != nil {
		t.Skip("there is no ssh here: apt install openssh-client")
	}
	image, err := l.e.releaseImage(ctx, sshRecipe(), l.progress)
	assert.NilError(t, err)
	dir := t.TempDir()
	user, authorized := keyPair(t, dir, "user")
	known := filepath.Join(dir, "known")
	var config, keys strings.Builder
	for _, h := range hosts {
		path, public := keyPair(t, dir, "host-"+h.alias)
		host, err := os.ReadFile(path)
		assert.NilError(t, err)
		c, err := l.e.create(ctx, spec{name: "mailproof-ssh-" + h.alias, image: image, cmd: []string{"/usr/sbin/sshd", "-D", "-e", "-f", "/mailproof/sshd"}, ns: h.on, pid: h.sees, labels: l.labels(),
			files: []file{{"/mailproof/sshd", 0o644, []byte(sshdConfig)}, {"/mailproof/host", 0o600, host}, {"/mailproof/authorized", 0o644, authorized}, {"/run/sshd/.keep", 0o644, nil}}})
		assert.NilError(t, err)
		assert.NilError(t, l.e.start(ctx, c.GetContainerID()))
		assert.NilError(t, awaitAnswer(ctx, l, h.at))
		_, port, err := net.SplitHostPort(forward(ctx, t, l.Target().Vantages[run.Client], h.at))
		assert.NilError(t, err)
		fmt.Fprintf(&config, "Host %s\n HostName 127.0.0.1\n Port %s\n HostKeyAlias %s\n", h.alias, port, h.alias)
		fmt.Fprintf(&keys, "%s %s", h.alias, public)
	}
	fmt.Fprintf(&config, "Host *\n User root\n IdentityFile %s\n IdentitiesOnly yes\n UserKnownHostsFile %s\n GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n", user, known)
	assert.NilError(t, os.WriteFile(known, []byte(keys.String()), 0o600))
	assert.NilError(t, os.WriteFile(filepath.Join(dir, "config"), []byte(config.String()), 0o600))
	program := filepath.Join(dir, "ssh")
	assert.NilError(t, os.WriteFile(program, []byte("#!/bin/sh\nexec "+ssh+" -F "+filepath.Join(dir, "config")+" \"$@\"\n"), 0o700))
	return program
}

// forward listens on this machine's loopback for what a vantage is to carry on.
func forward(ctx context.Context, t *testing.T, v run.Vantage, to netip.AddrPort) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if up, err := v.Dial(ctx, to); err == nil {
					defer up.Close()
					carry(c.(*net.TCPConn), up)
				}
			})
		}
	})
	t.Cleanup(func() { l.Close(); wg.Wait() })
	return l.Addr().String()
}

// The proxy's host and the source's are reached by OpenSSH alone: the proxy's
// vantage is "ssh:", and the source's log a command over it.
func TestForeignServersOverSSH(t *testing.T) {
	rehearsal(t) // its image takes a minute where it is not there yet; ./cmd/mailproof has an sshd on the loopback in every run
	ctx := within(t, 8*time.Minute)
	f := standForeign(ctx, t, shipped(t, "trixie"))
	container := "mailproof-source0-" + plainName(f.lab.Target().Sources[0].Name)
	f.ssh = standSSH(ctx, t, f.lab,
		sshHost{alias: "proxyhost", on: "mailproof-" + run.Proxy, at: netip.AddrPortFrom(fixtures.Public().IP4, 22)},
		sshHost{alias: "oldhost", on: container, sees: container, at: netip.AddrPortFrom(fixtures.NetworkNamed(fixtures.ClientNet).Source(0).IP4, 22)})
	text := f.site(t, 0)
	var out []string
	for _, line := range strings.Split(text, "\n") {
		switch {
		case strings.HasPrefix(line, "proxy = "):
			h, _ := fixtures.HostOf(run.Proxy)
			line = fmt.Sprintf("proxy = { by = \"ssh:proxyhost\", ip4 = %q, ip6 = %q }", h.IP4, h.IP6)
		case strings.HasPrefix(line, "log = "):
			line = fmt.Sprintf("log = \"command:%s -o BatchMode=yes oldhost tail -s 0.1 -n 0 -F /proc/1/root/var/log/mail.log\"", f.ssh)
		}
		out = append(out, line)
	}
	text = strings.Join(out, "\n")
	found := f.judge(ctx, t, text, func(o *run.Options) { o.MaxRisk, o.Brief = script.R1, true })
	t.Logf("%s; %+v in %.1f s", found.Answer.Sentence, found.Counts, found.Seconds)
	assert.Equal(t, found.Answer.Verdict, result.NotFullyJudged, found.Answer.Sentence)
	assert.Equal(t, found.Counts.Fail+found.Counts.Error, 0)
	witnessed := 0
	for i := range found.Results {
		if r := &found.Results[i]; r.Facet.Driver == "as-proxy" && r.Verdict == result.Pass && len(r.Witness) > 0 {
			witnessed++
		}
	}
	assert.Check(t, witnessed > 10, "%d claims of the proxy's were witnessed", witnessed)

	found = f.judge(ctx, t, text, append(everything(), harness.Jobs(8))...)
	tell(t, found)
	assert.Equal(t, found.Answer.Sentence, "ready to cut over")

	// A host that is not known is told of, and nothing waits for an answer.
	found = f.judge(ctx, t, strings.Replace(text, "ssh:proxyhost", "ssh:elsewhere", 1), harness.Select("lifecycle.greeting-imap"))
	assert.Equal(t, found.Counts.Pass+found.Counts.Fail, 0, "%+v", found.Counts)
	assert.Check(t, strings.Contains(found.Answer.Sentence, "a way to the vantage proxy that works"), found.Answer.Sentence)
}
