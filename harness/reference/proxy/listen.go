package proxy

import (
	"context"
	"net"
	"net/netip"
)

// listenOn returns the Listen of real sockets. A socket for [::] takes IPv4
// connections too (RFC 3493, section 5.3), and so cannot stand beside one for
// 0.0.0.0 on the same port: then it is made for IPv6 alone.
func listenOn(listeners []Listener) func(at netip.AddrPort) (net.Listener, error) {
	v4 := make(map[uint16]bool) // ports bound on 0.0.0.0
	for _, l := range listeners {
		for _, b := range l.Binds {
			if b.Addr() == netip.IPv4Unspecified() {
				v4[b.Port()] = true
			}
		}
	}
	return func(at netip.AddrPort) (net.Listener, error) {
		network := "tcp"
		switch {
		case at.Addr().Is4():
			network = "tcp4" // "tcp" would make 0.0.0.0 a socket for both
		case at.Addr() == netip.IPv6Unspecified() && at.Port() != 0 && v4[at.Port()]:
			network = "tcp6"
		}
		return net.Listen(network, at.String())
	}
}

// dialFrom is the Dial of real sockets.
func dialFrom(ctx context.Context, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{}
	if from.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	}
	return d.DialContext(ctx, "tcp", to.String())
}

// ofThisHost says whether an address is one of this host's own.
func ofThisHost(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	if a.IsLoopback() || a.IsUnspecified() {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, own := range addrs {
		if n, err := netip.ParsePrefix(own.String()); err == nil && n.Addr().Unmap().WithZone("") == a {
			return true
		}
	}
	return false
}
