package proto

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"strings"

	proxyproto "github.com/pires/go-proxyproto"
)

// A HeaderForm is a form of the PROXY protocol header
// (HAProxy, proxy-protocol.txt). The forms whose names begin with "broken-"
// are not valid and exist to be refused.
type HeaderForm string

// The forms.
const (
	ProxyV1        HeaderForm = "proxy-v1"
	ProxyV2        HeaderForm = "proxy-v2"
	ProxyV1Unknown HeaderForm = "proxy-v1-unknown"
	ProxyV2Unspec  HeaderForm = "proxy-v2-unspec"
	ProxyV2Local   HeaderForm = "proxy-v2-local"
	ProxyV2Mapped  HeaderForm = "proxy-v2-mapped" // IPv4 addresses written as IPv6 (::ffff:…)
	ProxyV2TLS     HeaderForm = "proxy-v2-tls"    // with PP2_TYPE_SSL: the client spoke TLS to the proxy

	BrokenV1Port      HeaderForm = "broken-v1-port"      // a port beyond 65535
	BrokenV1Family    HeaderForm = "broken-v1-family"    // TCP4 with an IPv6 address
	BrokenV1NoCRLF    HeaderForm = "broken-v1-no-crlf"   // 200 octets and no line end
	BrokenV2Signature HeaderForm = "broken-v2-signature" // the last octet of the signature is wrong
	BrokenV2Version   HeaderForm = "broken-v2-version"   // version 3
	BrokenV2Short     HeaderForm = "broken-v2-short"     // a length shorter than the addresses
	BrokenV2Family    HeaderForm = "broken-v2-family"    // a family that does not exist
)

// HeaderForms lists every form.
func HeaderForms() []HeaderForm {
	return []HeaderForm{ProxyV1, ProxyV2, ProxyV1Unknown, ProxyV2Unspec, ProxyV2Local, ProxyV2Mapped, ProxyV2TLS,
		BrokenV1Port, BrokenV1Family, BrokenV1NoCRLF, BrokenV2Signature, BrokenV2Version, BrokenV2Short, BrokenV2Family}
}

// A ProxyHeader is one PROXY protocol header as a value.
type ProxyHeader struct {
	Form HeaderForm
	Src  netip.AddrPort // the client
	Dst  netip.AddrPort // where the client connected to
	TLVs []TLV          // version 2 only
}

// A TLV is one type-length-value of a version 2 header.
type TLV struct {
	Type  byte
	Value []byte
}

// PP2TypeSSL is the TLV that says how the client's own TLS session was.
const PP2TypeSSL = 0x20

// SSLTLV is a PP2_TYPE_SSL that says the client used TLS of the given version,
// without a client certificate.
func SSLTLV(version string) TLV {
	v := []byte{0x01, 0, 0, 0, 0}
	v = append(v, 0x21, 0, byte(len(version)))
	return TLV{Type: PP2TypeSSL, Value: append(v, version...)}
}

// Encode returns the header's octets. Addresses of version 1 and 2 headers
// must be of one family; v4-mapped addresses are written as IPv4.
func (h ProxyHeader) Encode() ([]byte, error) {
	switch h.Form {
	case ProxyV1Unknown:
		return []byte("PROXY UNKNOWN\r\n"), nil
	case BrokenV1Port:
		return fmt.Appendf(nil, "PROXY TCP4 %s %s 99999 %d\r\n", h.Src.Addr(), h.Dst.Addr(), h.Dst.Port()), nil
	case BrokenV1Family:
		return []byte("PROXY TCP4 2001:db8::1 2001:db8::2 1024 25\r\n"), nil
	case BrokenV1NoCRLF:
		return []byte("PROXY TCP4 " + strings.Repeat("1", 200)), nil
	}
	src := netip.AddrPortFrom(h.Src.Addr().Unmap(), h.Src.Port())
	dst := netip.AddrPortFrom(h.Dst.Addr().Unmap(), h.Dst.Port())
	pp := &proxyproto.Header{Version: 2, Command: proxyproto.PROXY, TransportProtocol: proxyproto.TCPv4}
	switch h.Form {
	case ProxyV1:
		pp.Version = 1
	case ProxyV2Local:
		pp.Command, pp.TransportProtocol = proxyproto.LOCAL, proxyproto.UNSPEC
	case ProxyV2Unspec:
		pp.TransportProtocol = proxyproto.UNSPEC
	}
	if pp.TransportProtocol != proxyproto.UNSPEC {
		if !src.IsValid() || !dst.IsValid() || src.Addr().Is4() != dst.Addr().Is4() {
			return nil, fmt.Errorf("%s header: source %s and destination %s are not of one family", h.Form, h.Src, h.Dst)
		}
		if src.Addr().Is6() {
			pp.TransportProtocol = proxyproto.TCPv6
		}
		pp.SourceAddr = net.TCPAddrFromAddrPort(src)
		pp.DestinationAddr = net.TCPAddrFromAddrPort(dst)
	}
	if h.Form == ProxyV2Mapped {
		pp.TransportProtocol = proxyproto.TCPv6
	}
	if h.Form == ProxyV2TLS && len(h.TLVs) == 0 {
		h.TLVs = []TLV{SSLTLV("TLSv1.3")}
	}
	if len(h.TLVs) > 0 {
		var tlvs []proxyproto.TLV
		for _, t := range h.TLVs {
			tlvs = append(tlvs, proxyproto.TLV{Type: proxyproto.PP2Type(t.Type), Value: t.Value})
		}
		if err := pp.SetTLVs(tlvs); err != nil {
			return nil, fmt.Errorf("%s header: %w", h.Form, err)
		}
	}
	b, err := pp.Format()
	if err != nil {
		return nil, fmt.Errorf("%s header: %w", h.Form, err)
	}
	switch h.Form {
	case BrokenV2Signature:
		b[11] ^= 0xff
	case BrokenV2Version:
		b[12] = 0x31
	case BrokenV2Short:
		binary.BigEndian.PutUint16(b[14:], 4)
	case BrokenV2Family:
		b[13] = 0x71
	}
	return b, nil
}
