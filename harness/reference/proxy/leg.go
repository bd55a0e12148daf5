package proxy

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"github.com/mailproof/mailproof/harness/proto"
)

// Bounds of what is read before a session is joined, in octets.
const (
	maxLine    = 16 << 10 // one line; bearer tokens are the longest
	maxLiteral = 16 << 10
	maxCommand = 48 << 10
)

// Bounds of a closing connection: how long, and how much, is read and thrown
// away so that the last reply is not lost to a reset.
const (
	lingerTime   = 2 * time.Second
	lingerOctets = 256 << 10
)

// A leg is one of the two connections of a session.
type leg struct {
	raw    net.Conn // the transport, which is closed, reset and half closed
	conn   net.Conn // what is read and written: raw, a PROXY reader on it, or TLS
	br     *bufio.Reader
	secure bool
}

func newLeg(raw, conn net.Conn) *leg {
	return &leg{raw: raw, conn: conn, br: bufio.NewReader(conn)}
}

// line reads one line without its end.
func (l *leg) line() (string, error) { return proto.ReadLine(l.br, maxLine) }

// say writes text as it is.
func (l *leg) say(text string) error {
	_, err := io.WriteString(l.conn, text)
	return err
}

// residue is how many octets were read from the network and not yet by us.
func (l *leg) residue() int { return l.br.Buffered() }

// server takes the server's part in a TLS handshake. What arrived in clear
// text and was not read is thrown away.
func (l *leg) server(cfg *tls.Config) error { return l.upgrade(tls.Server(l.conn, cfg)) }

// client takes the client's part in a TLS handshake.
func (l *leg) client(cfg *tls.Config) error { return l.upgrade(tls.Client(l.conn, cfg)) }

func (l *leg) upgrade(t *tls.Conn) error {
	if err := t.Handshake(); err != nil {
		return fmt.Errorf("TLS handshake: %w", err)
	}
	l.conn, l.secure = t, true
	l.br.Reset(t)
	return nil
}

// closeWrite ends our direction: the peer reads everything written and then the end.
func (l *leg) closeWrite() {
	if t, ok := l.conn.(*tls.Conn); ok {
		t.CloseWrite()
	}
	if c, ok := l.raw.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
}

// reset aborts the connection with RST.
func (l *leg) reset() {
	switch c := l.raw.(type) {
	case interface{ Reset() error }:
		c.Reset()
	case *net.TCPConn:
		c.SetLinger(0)
		c.Close()
	default:
		c.Close()
	}
}

// finish closes the connection after a last reply. Closing while octets of the
// peer are unread would reset the connection and may lose that reply, so they
// are read, within bounds.
func (l *leg) finish() {
	l.raw.SetDeadline(time.Now().Add(lingerTime))
	l.closeWrite()
	io.CopyN(io.Discard, l.raw, lingerOctets)
	l.raw.Close()
}

// endpoint is an address and port as it is announced: IPv4 never in its
// IPv6-mapped form, and without a zone.
func endpoint(a net.Addr) netip.AddrPort {
	var ap netip.AddrPort
	if t, ok := a.(*net.TCPAddr); ok {
		ap = t.AddrPort()
	} else {
		ap, _ = netip.ParseAddrPort(a.String())
	}
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
