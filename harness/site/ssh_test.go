package site

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"gotest.tools/v3/assert"
	"gotest.tools/v3/assert/cmp"

	"github.com/mailproof/mailproof/harness/run"
	"github.com/mailproof/mailproof/harness/site/sshdtest"
)

// asSSH makes the test's own executable a program that behaves as ssh does.
const asSSH = "MAILPROOF_TEST_AS_SSH"

// pretendSSH is what ssh says and does, by the case that is played.
func pretendSSH(what string) {
	switch what {
	case "refused":
		fmt.Fprintln(os.Stderr, "debug1: Connection established.")
		fmt.Fprintln(os.Stderr, "channel 0: open failed: connect failed: Connection refused")
		fmt.Fprintln(os.Stderr, "stdio forwarding failed")
		os.Exit(255)
	case "password":
		fmt.Fprintln(os.Stderr, "debug2: we did not send a packet, disable method")
		fmt.Fprintln(os.Stderr, "root@host: Permission denied (publickey,password).")
		os.Exit(255)
	case "forbidden":
		fmt.Fprintln(os.Stderr, "channel 0: open failed: administratively prohibited: open failed")
		os.Exit(255)
	case "hangs":
		time.Sleep(time.Minute)
	case "echo", "lost":
		fmt.Fprintln(os.Stderr, "debug2: channel 0: open confirm rwindow 2097152 rmax 32768")
		var b [5]byte
		io.ReadFull(os.Stdin, b[:])
		os.Stdout.Write(b[:])
		if what == "lost" {
			fmt.Fprintln(os.Stderr, "Timeout, server host not responding.")
			os.Exit(255)
		}
		os.Exit(0)
	}
	os.Exit(3)
}

func somewhere() netip.AddrPort { return netip.MustParseAddrPort("203.0.113.9:143") }

func pretended(t *testing.T, what string) (net.Conn, error) {
	t.Helper()
	t.Setenv(asSSH, what)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	return dialSSH(ctx, os.Args[0], "host", netip.MustParseAddr("203.0.113.1"), somewhere())
}

func TestSSHTellsWhatFailed(t *testing.T) {
	_, err := pretended(t, "refused")
	assert.Assert(t, errors.Is(err, syscall.ECONNREFUSED), "%v", err)
	for what, words := range map[string]string{"password": "Permission denied", "forbidden": "administratively prohibited"} {
		_, err := pretended(t, what)
		var gone *run.VantageError
		assert.Assert(t, errors.As(err, &gone), "%s: %v", what, err)
		assert.Check(t, cmp.Contains(err.Error(), words))
	}
	_, err = pretended(t, "hangs")
	assert.Assert(t, errors.Is(err, context.DeadlineExceeded), "%v", err)
}

func TestSSHCarriesAConnection(t *testing.T) {
	for what, lost := range map[string]bool{"echo": false, "lost": true} {
		c, err := pretended(t, what)
		assert.NilError(t, err)
		assert.Equal(t, c.LocalAddr().String(), "203.0.113.1:0")
		_, err = c.Write([]byte("hello"))
		assert.NilError(t, err)
		got, err := io.ReadAll(c)
		assert.Equal(t, string(got), "hello")
		var gone *run.VantageError
		assert.Equal(t, errors.As(err, &gone), lost, "%s: %v", what, err)
		assert.NilError(t, c.Close())
		assert.NilError(t, c.Close())
	}
}

func TestSSHReadHasDeadlines(t *testing.T) {
	c, err := pretended(t, "echo")
	assert.NilError(t, err)
	defer c.Close()
	assert.NilError(t, c.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	_, err = c.Read(make([]byte, 1))
	assert.Assert(t, errors.Is(err, os.ErrDeadlineExceeded), "%v", err)
}

// What OpenSSH itself says, in the version that is installed.
func TestOpenSSH(t *testing.T) {
	server := sshdtest.Start(t)
	program := filepath.Join(server.Client(t, "user"), "ssh")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "* OK ready\r\n")
			io.Copy(c, c)
			c.Close()
		}
	}()
	to := l.Addr().(*net.TCPAddr).AddrPort()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := dialSSH(ctx, program, "127.0.0.1", netip.MustParseAddr("127.0.0.1"), to)
	assert.NilError(t, err)
	_, err = c.Write([]byte("a1 NOOP\r\n"))
	assert.NilError(t, err)
	assert.NilError(t, c.(*sshConn).CloseWrite())
	got, err := io.ReadAll(c)
	assert.NilError(t, err)
	assert.Equal(t, string(got), "* OK ready\r\na1 NOOP\r\n")
	assert.NilError(t, c.Close())

	dead, err := net.Listen("tcp", "127.0.0.1:0")
	assert.NilError(t, err)
	nobody := dead.Addr().(*net.TCPAddr).AddrPort()
	dead.Close()
	_, err = dialSSH(ctx, program, "127.0.0.1", netip.MustParseAddr("127.0.0.1"), nobody)
	assert.Assert(t, errors.Is(err, syscall.ECONNREFUSED), "%v", err)

	// It would ask for a password now: nobody is asked.
	stranger := filepath.Join(server.Client(t, "host"), "ssh")
	_, err = dialSSH(ctx, stranger, "127.0.0.1", netip.MustParseAddr("127.0.0.1"), to)
	var gone *run.VantageError
	assert.Assert(t, errors.As(err, &gone), "%v", err)
	assert.Check(t, cmp.Contains(err.Error(), "Permission denied"))
}
