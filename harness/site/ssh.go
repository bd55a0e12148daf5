package site

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// dialSSH connects through the system's OpenSSH: "ssh -W" forwards one
// connection over its standard input and output. With BatchMode it asks
// nothing: a key that is not there, or a host that is not known, is an error.
//
// OpenSSH tells whether the connection stands only in its debugging words; of
// these nothing is kept but the reason of a failure.
func dialSSH(ctx context.Context, program, host string, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	cmd := exec.Command(program, "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=2",
		"-o", "LogLevel=DEBUG2", "-a", "-x", "-T", "-W", to.String(), "--", host)
	ownGroup(cmd)
	cmd.WaitDelay = time.Second
	c := &sshConn{cmd: cmd, local: netip.AddrPortFrom(from, 0), remote: to, done: make(chan struct{}), decided: make(chan struct{})}
	childIn, in, err := os.Pipe()
	if err != nil {
		return nil, gone(err)
	}
	out, childOut, err := os.Pipe()
	if err != nil {
		childIn.Close()
		in.Close()
		return nil, gone(err)
	}
	c.in, c.out = in, out
	errs, childErr, err := os.Pipe()
	if err == nil {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = childIn, childOut, childErr
		err = cmd.Start()
		childErr.Close()
		if err != nil {
			errs.Close()
		}
	}
	childIn.Close()
	childOut.Close()
	if err != nil {
		in.Close()
		out.Close()
		return nil, gone(fmt.Errorf("ssh: %w", err))
	}
	go func() {
		defer close(c.done)
		c.listen(errs)
		errs.Close()
		c.cmd.Wait()
		c.decide(nil)
	}()
	select {
	case <-c.decided:
	case <-ctx.Done():
		c.Close()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: ctx.Err()}
	}
	if err := c.outcome(); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// An sshConn is one connection over the pipes of an ssh process.
type sshConn struct {
	cmd           *exec.Cmd
	in, out       *os.File
	local, remote netip.AddrPort
	done          chan struct{} // closed when the process has ended
	decided       chan struct{} // closed when the dial has an outcome

	mu      sync.Mutex
	opened  bool
	once    bool
	failure error
	words   string // what ssh said last that is no debugging
	closing sync.Once
}

func (c *sshConn) decide(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.once {
		return
	}
	c.once = true
	c.failure = err
	close(c.decided)
}

// listen reads what ssh says until it ends.
func (c *sshConn) listen(r io.Reader) {
	s := bufio.NewScanner(io.LimitReader(r, 4<<20))
	for s.Scan() {
		line := strings.TrimSpace(s.Text())
		switch {
		case strings.Contains(line, "open confirm"):
			c.mu.Lock()
			c.opened = true
			c.mu.Unlock()
			c.decide(nil)
		case strings.Contains(line, "open failed:"):
			_, why, _ := strings.Cut(line, "open failed:")
			c.decide(c.forwardFailed(strings.TrimSpace(why)))
		case strings.HasPrefix(line, "debug"), line == "":
		default:
			c.mu.Lock()
			c.words = line[:min(len(line), 300)]
			c.mu.Unlock()
		}
	}
	io.Copy(io.Discard, r)
}

// forwardFailed is what the far end of ssh said of the connection it tried.
func (c *sshConn) forwardFailed(why string) error {
	for words, no := range map[string]syscall.Errno{"Connection refused": syscall.ECONNREFUSED, "No route to host": syscall.EHOSTUNREACH,
		"Network is unreachable": syscall.ENETUNREACH, "Connection timed out": syscall.ETIMEDOUT, "Connection reset": syscall.ECONNRESET} {
		if strings.Contains(why, words) {
			return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(c.remote), Err: os.NewSyscallError("connect", no)}
		}
	}
	return gone(fmt.Errorf("ssh does not forward: %s", why))
}

func (c *sshConn) outcome() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.failure != nil || c.opened {
		return c.failure
	}
	return gone(c.ended())
}

// ended says how ssh ended; mu is held and the process gone.
func (c *sshConn) ended() error {
	if c.words != "" {
		return errors.New("ssh: " + c.words)
	}
	return fmt.Errorf("ssh ended: %v", c.cmd.ProcessState)
}

// Read reads what the server sent. ssh cannot tell a reset from an end.
func (c *sshConn) Read(b []byte) (int, error) {
	n, err := c.out.Read(b)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	<-c.done
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cmd.ProcessState != nil && c.cmd.ProcessState.ExitCode() == 255 {
		return n, gone(c.ended())
	}
	return n, io.EOF
}

func (c *sshConn) Write(b []byte) (int, error) {
	n, err := c.in.Write(b)
	if errors.Is(err, syscall.EPIPE) {
		err = &net.OpError{Op: "write", Net: "tcp", Err: syscall.ECONNRESET}
	}
	return n, err
}

// CloseWrite sends FIN and keeps reading.
func (c *sshConn) CloseWrite() error { return c.in.Close() }

// Reset ends the connection; ssh has no RST.
func (c *sshConn) Reset() error { return c.Close() }

// Close ends ssh and waits until it has ended.
func (c *sshConn) Close() error {
	c.closing.Do(func() {
		c.in.Close()
		killGroup(c.cmd)
		<-c.done
		c.out.Close()
	})
	return nil
}

func (c *sshConn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *sshConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *sshConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
func (c *sshConn) SetReadDeadline(t time.Time) error  { return c.out.SetReadDeadline(t) }
func (c *sshConn) SetWriteDeadline(t time.Time) error { return c.in.SetWriteDeadline(t) }
