package site

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"github.com/mailproof/mailproof/harness/run"
)

// dialSOCKS connects through a SOCKS server without authentication (RFC 1928).
func dialSOCKS(ctx context.Context, server string, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", server)
	if err != nil {
		return nil, gone(fmt.Errorf("the SOCKS server %s: %w", server, err))
	}
	c := &socksConn{tcpConn: tcpConn{nc.(*net.TCPConn)}, local: netip.AddrPortFrom(from, 0), remote: to}
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(time.Unix(1, 0)) })
	err = c.ask(to)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		nc.Close()
		if ctx.Err() != nil {
			return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: ctx.Err()}
		}
		var refused *net.OpError
		if errors.As(err, &refused) && refused.Op == "dial" {
			return nil, err
		}
		return nil, gone(fmt.Errorf("the SOCKS server %s: %w", server, err))
	}
	return c, nil
}

// A socksConn is a connection through a SOCKS server.
type socksConn struct {
	tcpConn
	local, remote netip.AddrPort
}

// LocalAddr is where the server says that the connection left from; the port
// is 0 where it does not say.
func (c *socksConn) LocalAddr() net.Addr { return net.TCPAddrFromAddrPort(c.local) }

// RemoteAddr is what was dialled.
func (c *socksConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

// ask does the handshake of RFC 1928, sections 3 to 6.
func (c *socksConn) ask(to netip.AddrPort) error {
	if _, err := c.Write([]byte{5, 1, 0}); err != nil {
		return err
	}
	var b [262]byte
	if _, err := io.ReadFull(c.TCPConn, b[:2]); err != nil {
		return err
	}
	if b[0] != 5 {
		return errors.New("it does not speak SOCKS 5")
	}
	if b[1] != 0 {
		return errors.New("it wants authentication, which mailproof does not do")
	}
	req := []byte{5, 1, 0, 1}
	if to.Addr().Is6() && !to.Addr().Is4In6() {
		req[3] = 4
	}
	req = append(req, to.Addr().Unmap().AsSlice()...)
	req = append(req, byte(to.Port()>>8), byte(to.Port()))
	if _, err := c.Write(req); err != nil {
		return err
	}
	if _, err := io.ReadFull(c.TCPConn, b[:4]); err != nil {
		return err
	}
	if b[0] != 5 {
		return errors.New("its reply is none of SOCKS 5")
	}
	if b[1] != 0 {
		return c.refused(b[1], to)
	}
	size := map[byte]int{1: 4, 4: 16}[b[3]]
	if b[3] == 3 {
		if _, err := io.ReadFull(c.TCPConn, b[:1]); err != nil {
			return err
		}
		size = int(b[0])
		b[3] = 3
	} else if size == 0 {
		return fmt.Errorf("its reply has an address of type %d", b[3])
	}
	typ := b[3]
	if _, err := io.ReadFull(c.TCPConn, b[:size+2]); err != nil {
		return err
	}
	port := uint16(b[size])<<8 | uint16(b[size+1])
	if typ == 3 || port == 0 {
		return nil
	}
	// An address that is none of the vantage's is kept: it tells of translation
	// before the source does.
	if a, ok := netip.AddrFromSlice(b[:size]); ok && !a.IsUnspecified() && run.FamilyOf(a) == run.FamilyOf(to.Addr()) {
		c.local = netip.AddrPortFrom(a.Unmap(), port)
	}
	return nil
}

// refused is what a reply code says of the connection that was wanted
// (RFC 1928, section 6), or of the server itself.
func (c *socksConn) refused(code byte, to netip.AddrPort) error {
	var no syscall.Errno
	switch code {
	case 3:
		no = syscall.ENETUNREACH
	case 4, 6:
		no = syscall.EHOSTUNREACH
	case 5:
		no = syscall.ECONNREFUSED
	case 2:
		return errors.New("its rules do not let us connect to " + to.String())
	default:
		return fmt.Errorf("it refused with code %d", code)
	}
	return &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: os.NewSyscallError("connect", no)}
}
