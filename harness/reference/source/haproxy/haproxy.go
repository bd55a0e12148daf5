// Package haproxy reads the PROXY protocol header of a connection, versions 1
// and 2, as the servers that are played read it (HAProxy, proxy-protocol.txt).
package haproxy

import (
	"bufio"
	"encoding/binary"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// A Header is what a header said. The zero addresses say that it named none.
type Header struct {
	Source, Dest netip.AddrPort
	Local        bool // LOCAL: the proxy speaks for itself
	TLS          bool // PP2_TYPE_SSL: the client used TLS
	ALPN         bool // PP2_TYPE_ALPN is there
}

// An Error says what was wrong with a header.
type Error struct {
	Version  string // "v1", "v2"
	Why      string
	NoHeader bool // what came is no header at all
}

func (e *Error) Error() string { return "PROXY header " + e.Version + ": " + e.Why }

const (
	signature = "\r\n\r\n\x00\r\nQUIT\n"
	maxV1     = 108
	maxV2     = 1500
)

// Read reads a header.
func Read(br *bufio.Reader) (Header, error) {
	b, err := br.Peek(1)
	if err != nil {
		return Header{}, err
	}
	switch b[0] {
	case 'P':
		return readV1(br)
	case '\r':
		return readV2(br)
	}
	return Header{}, &Error{NoHeader: true, Why: "no header"}
}

func readV1(br *bufio.Reader) (Header, error) {
	if b, err := br.Peek(6); err != nil || string(b) != "PROXY " {
		return Header{}, &Error{Version: "v1", NoHeader: true, Why: "no header"}
	}
	var line []byte
	for len(line) < maxV1 {
		c, err := br.ReadByte()
		if err != nil {
			return Header{}, err
		}
		if line = append(line, c); c == '\n' {
			break
		}
	}
	text, ok := strings.CutSuffix(string(line), "\r\n")
	if !ok {
		return Header{}, &Error{Version: "v1", Why: "Header line has no end"}
	}
	f := strings.Split(text, " ")
	if f[1] == "UNKNOWN" {
		return Header{}, nil
	}
	if f[1] != "TCP4" && f[1] != "TCP6" {
		return Header{}, &Error{Version: "v1", Why: "Unknown proxied protocol"}
	}
	if len(f) != 6 {
		return Header{}, &Error{Version: "v1", Why: "Fields are missing or too many"}
	}
	src, err1 := endpoint(f[2], f[4], f[1] == "TCP4")
	dst, err2 := endpoint(f[3], f[5], f[1] == "TCP4")
	if !err1 || !err2 {
		return Header{}, &Error{Version: "v1", Why: "Proxied address or port is invalid"}
	}
	return Header{Source: src, Dest: dst}, nil
}

func endpoint(addr, port string, v4 bool) (netip.AddrPort, bool) {
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Is4() != v4 || a.Zone() != "" {
		return netip.AddrPort{}, false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(a, uint16(n)), true
}

func readV2(br *bufio.Reader) (Header, error) {
	if b, err := br.Peek(len(signature)); err != nil || string(b) != signature {
		return Header{}, &Error{Version: "v2", NoHeader: true, Why: "no header"}
	}
	var fixed [16]byte
	if _, err := io.ReadFull(br, fixed[:]); err != nil {
		return Header{}, err
	}
	n := int(binary.BigEndian.Uint16(fixed[14:]))
	if n > maxV2 {
		return Header{}, &Error{Version: "v2", Why: "Too long header"}
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(br, body); err != nil {
		return Header{}, err
	}
	if fixed[12]>>4 != 2 {
		return Header{}, &Error{Version: "v2", Why: "Unsupported protocol version"}
	}
	switch fixed[12] & 0x0f {
	case 0: // LOCAL
		return Header{Local: true}, nil
	case 1:
	default:
		return Header{}, &Error{Version: "v2", Why: "Invalid command"}
	}
	if fixed[13]&0x0f != 1 && fixed[13] != 0 {
		return Header{}, &Error{Version: "v2", Why: "Not using TCP"}
	}
	var h Header
	size := 0
	switch fixed[13] >> 4 {
	case 0: // UNSPEC: the connection's own addresses stay
		return h, nil
	case 1:
		size = 4
	case 2:
		size = 16
	default:
		return Header{}, &Error{Version: "v2", Why: "Unknown address family"}
	}
	if len(body) < 2*size+4 {
		return Header{}, &Error{Version: "v2", Why: "Addresses are incomplete"}
	}
	src, _ := netip.AddrFromSlice(body[:size])
	dst, _ := netip.AddrFromSlice(body[size : 2*size])
	h.Source = netip.AddrPortFrom(src, binary.BigEndian.Uint16(body[2*size:]))
	h.Dest = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(body[2*size+2:]))
	for tlv := body[2*size+4:]; len(tlv) > 0; {
		if len(tlv) < 3 || len(tlv)-3 < int(binary.BigEndian.Uint16(tlv[1:])) {
			return Header{}, &Error{Version: "v2", Why: "Invalid TLV: Truncated data"}
		}
		n := int(binary.BigEndian.Uint16(tlv[1:]))
		switch value := tlv[3 : 3+n]; tlv[0] {
		case 0x01:
			h.ALPN = true
		case 0x20:
			h.TLS = len(value) > 0 && value[0]&1 != 0
		}
		tlv = tlv[3+n:]
	}
	return h, nil
}
