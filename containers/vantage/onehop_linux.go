package vantage

import (
	"strings"
	"syscall"
)

// oneHop keeps a connection on the network that the vantage stands in: its
// packets may pass no router. A container engine's bridges hold IPv4 networks
// apart, but some forward IPv6 between them.
func oneHop(network, _ string, c syscall.RawConn) error {
	var set error
	err := c.Control(func(fd uintptr) {
		if strings.HasSuffix(network, "6") {
			set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IPV6, syscall.IPV6_UNICAST_HOPS, 1)
		} else {
			set = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_IP, syscall.IP_TTL, 1)
		}
	})
	if err != nil {
		return err
	}
	return set
}
