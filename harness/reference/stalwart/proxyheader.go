package stalwart

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"strconv"
	"strings"
)

// A header is what a PROXY protocol header said (HAProxy, proxy-protocol.txt).
// Invalid addresses say that it named none.
type header struct {
	src, dst netip.AddrPort
	local    bool
	// tls is PP2_TYPE_SSL with the client bit; version and cipher are what it
	// says of the client's session.
	tls             bool
	version, cipher string
	size            int
	v1              bool
}

// The words of the log for a connection that did not begin with a header.
var (
	errHeader = errors.New("invalid proxy header")
	errEnded  = errors.New("end of stream")
)

const (
	signatureV2 = "\r\n\r\n\x00\r\nQUIT\n"
	leastV1     = 15 // as long as PROXY UNKNOWN and its line end
	mostV1      = 107
)

// readHeader reads the header that a trusted peer must begin with. It waits as
// long as the peer says nothing, takes no octet of what follows, and is as
// strict as 0.15: version 1 is looked at from its 15th octet on, version 2
// from its 16th, checksums are not verified and TLVs need not be whole.
func readHeader(br *bufio.Reader) (header, error) {
	b, err := br.Peek(1)
	if err != nil {
		return header{}, errEnded
	}
	switch b[0] {
	case 'P':
		return readV1(br)
	case '\r':
		return readV2(br)
	}
	return header{}, errHeader
}

func readV1(br *bufio.Reader) (header, error) {
	line := make([]byte, leastV1, mostV1)
	if _, err := io.ReadFull(br, line); err != nil {
		return header{}, errEnded
	}
	if !bytes.HasPrefix(line, []byte("PROXY ")) {
		return header{}, errHeader
	}
	for i := bytes.IndexByte(line, '\r'); ; i = bytes.IndexByte(line, '\r') {
		if i >= 0 && i+1 < len(line) {
			if line[i+1] != '\n' {
				return header{}, errHeader
			}
			if i+2 < len(line) {
				// The line ended before its 15th octet: what follows would be lost.
				return header{}, errHeader
			}
			break
		}
		if len(line) >= mostV1 {
			return header{}, errHeader
		}
		c, err := br.ReadByte()
		if err != nil {
			return header{}, errEnded
		}
		line = append(line, c)
	}
	h := header{size: len(line), v1: true}
	f := strings.Split(strings.TrimSuffix(string(line), "\r\n"), " ")
	if f[1] == "UNKNOWN" {
		return h, nil
	}
	if len(f) != 6 || f[1] != "TCP4" && f[1] != "TCP6" {
		return header{}, errHeader
	}
	var err1, err2 error
	h.src, err1 = endpointV1(f[2], f[4], f[1] == "TCP4")
	h.dst, err2 = endpointV1(f[3], f[5], f[1] == "TCP4")
	if err1 != nil || err2 != nil {
		return header{}, errHeader
	}
	return h, nil
}

func endpointV1(addr, port string, v4 bool) (netip.AddrPort, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil || a.Is4() != v4 || a.Zone() != "" {
		return netip.AddrPort{}, errHeader
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return netip.AddrPortFrom(a, uint16(n)), err
}

func readV2(br *bufio.Reader) (header, error) {
	var fixed [16]byte
	if _, err := io.ReadFull(br, fixed[:]); err != nil {
		return header{}, errEnded
	}
	if string(fixed[:12]) != signatureV2 || fixed[12]>>4 != 2 || fixed[12]&0x0f > 1 {
		return header{}, errHeader
	}
	addresses := 0
	switch fixed[13] {
	case 0x00:
	case 0x11, 0x12:
		addresses = 12
	case 0x21, 0x22:
		addresses = 36
	case 0x31, 0x32:
		addresses = 216
	default:
		return header{}, errHeader
	}
	body := make([]byte, binary.BigEndian.Uint16(fixed[14:]))
	if _, err := io.ReadFull(br, body); err != nil {
		return header{}, errEnded
	}
	if len(body) < addresses {
		return header{}, errHeader
	}
	h := header{size: len(fixed) + len(body), local: fixed[12]&0x0f == 0}
	if n := (addresses - 4) / 2; n == 4 || n == 16 {
		src, _ := netip.AddrFromSlice(body[:n])
		dst, _ := netip.AddrFromSlice(body[n : 2*n])
		h.src = netip.AddrPortFrom(src, binary.BigEndian.Uint16(body[2*n:]))
		h.dst = netip.AddrPortFrom(dst, binary.BigEndian.Uint16(body[2*n+2:]))
	}
	if h.local {
		h.src, h.dst = netip.AddrPort{}, netip.AddrPort{}
	}
	eachTLV(body[addresses:], func(kind byte, value []byte) {
		if kind != 0x20 || len(value) < 5 || value[0]&1 == 0 {
			return
		}
		h.tls, h.version, h.cipher = true, "unknown", "unknown"
		eachTLV(value[5:], func(kind byte, value []byte) {
			switch kind {
			case 0x21:
				h.version = string(value)
			case 0x23:
				h.cipher = string(value)
			}
		})
	})
	return h, nil
}

// eachTLV calls f for every whole TLV.
func eachTLV(b []byte, f func(kind byte, value []byte)) {
	for len(b) >= 3 {
		n := int(binary.BigEndian.Uint16(b[1:]))
		if len(b)-3 < n {
			return
		}
		f(b[0], b[3:3+n])
		b = b[3+n:]
	}
}
