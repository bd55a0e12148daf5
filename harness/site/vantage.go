package site

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"github.com/mailproof/mailproof/harness/run"
)

// A vantage makes connections the way that its operator named.
type vantage struct {
	name     string
	ip4, ip6 netip.Addr
	portless bool
	dial     func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error)
}

// Addr is the address that servers see.
func (v *vantage) Addr(f run.Family) netip.Addr {
	if f == run.IP6 {
		return v.ip6
	}
	return v.ip4
}

// Portless says whether connections may not know the port that they leave from.
func (v *vantage) Portless() bool { return v.portless }

// Dial connects from the vantage.
func (v *vantage) Dial(ctx context.Context, to netip.AddrPort) (net.Conn, error) {
	c, err := v.dial(ctx, v.Addr(run.FamilyOf(to.Addr())), to)
	var gone *run.VantageError
	if errors.As(err, &gone) && gone.Vantage == "" {
		gone.Vantage = v.name
	}
	return c, err
}

// gone says that a vantage itself failed. Who dialled fills its name in.
func gone(err error) error { return &run.VantageError{Err: err} }

// A tcpConn is a connection of this machine's own.
type tcpConn struct{ *net.TCPConn }

// Reset aborts the connection with RST.
func (c tcpConn) Reset() error {
	c.SetLinger(0)
	return c.Close()
}

// dialFrom connects from an address of this machine; the zero address leaves
// the choice to the system.
func dialFrom(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		if isLocal(err) {
			return nil, gone(err)
		}
		return nil, err
	}
	return tcpConn{c.(*net.TCPConn)}, nil
}

// outgoing is the address that this machine would connect from. Nothing is
// sent to find that out.
func outgoing(to netip.Addr) netip.Addr {
	c, err := net.Dial("udp", netip.AddrPortFrom(to, 9).String())
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	ap, err := netip.ParseAddrPort(c.LocalAddr().String())
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// by makes the way of connecting that a reach names.
func (r Reach) by(o Options) func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error) {
	switch r.How {
	case "socks5":
		return func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
			return dialSOCKS(ctx, r.What, from, to)
		}
	case "ssh":
		return func(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
			return dialSSH(ctx, o.ssh(), r.What, from, to)
		}
	case "local":
		return func(ctx context.Context, _ netip.Addr, to netip.AddrPort) (net.Conn, error) {
			return dialFrom(ctx, netip.Addr{}, to)
		}
	}
	if o.Dial != nil {
		return o.Dial
	}
	return dialFrom
}
