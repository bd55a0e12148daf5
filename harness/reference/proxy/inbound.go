package proxy

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	proxyproto "github.com/pires/go-proxyproto"
)

// headerTimeout is how long a PROXY header is waited for. A client of a
// protocol in which the server speaks first is silent for as long, where the
// header is optional and its peer is trusted but sends none.
const headerTimeout = 5 * time.Second

// inbound reads a PROXY header where the listener wants one, and adopts the
// addresses in it. A header from a peer that is not trusted is left where it
// is, for the protocol to stumble over.
func (s *session) inbound() error {
	if s.ln.Inbound == InboundOff {
		return nil
	}
	policy := proxyproto.USE // what there is; the package's own default is REQUIRE
	switch trusted := s.ln.trusts(s.via.Addr()); {
	case !trusted && s.ln.Inbound == InboundRequired:
		return fmt.Errorf("a PROXY header is required and the peer is not in proxy_trusted")
	case !trusted:
		return nil
	case s.ln.Inbound == InboundRequired:
		policy = proxyproto.REQUIRE
	}
	wait := min(headerTimeout, s.ln.PreauthTimeout)
	pc := proxyproto.NewConn(s.client.raw, proxyproto.WithPolicy(policy), proxyproto.SetReadHeaderTimeout(wait))
	if _, err := pc.Read(nil); err != nil {
		return fmt.Errorf("PROXY header: %w", err)
	}
	s.preauthDeadline() // the reader had its own
	s.mu.Lock()
	s.client = newLeg(s.client.raw, pc)
	s.mu.Unlock()
	h := pc.ProxyHeader()
	if h == nil || h.Command.IsLocal() || h.SourceAddr == nil {
		return nil // nobody's address: the peer speaks for itself
	}
	src, ok1 := h.SourceAddr.(*net.TCPAddr)
	dst, ok2 := h.DestinationAddr.(*net.TCPAddr)
	if !ok1 || !ok2 {
		return fmt.Errorf("PROXY header: no TCP addresses")
	}
	peer := endpoint(src)
	if a := peer.Addr(); !outside(a) || s.p.own(a) {
		return fmt.Errorf("PROXY header: %s cannot be a client's address", a)
	}
	s.peer, s.local, s.header = peer, endpoint(dst), true
	return nil
}

// outside says whether an address can be that of somebody elsewhere.
func outside(a netip.Addr) bool {
	return !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast()
}

// own says whether an address is the proxy's.
func (p *Proxy) own(a netip.Addr) bool {
	for _, b := range p.bound {
		if b.Addr.Addr().Unmap() == a {
			return true
		}
	}
	return ofThisHost(a)
}
