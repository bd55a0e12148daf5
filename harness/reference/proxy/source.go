package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/mailproof/mailproof/harness/proto"
)

// A source is the leg to a destination.
type source struct {
	*leg
	dest *destination
	ep   Endpoint
	addr netip.AddrPort
	from netip.AddrPort // our own end
}

// An Untrusted error says that a destination does not take our word for who
// the client is, so that no credentials were sent to it.
type Untrusted struct {
	Destination string
	Addr        netip.AddrPort // the destination's
	From        netip.Addr     // the address it knows us by
	Why         string
	Remedy      string
}

func (e *Untrusted) Error() string {
	return fmt.Sprintf("destination %s (%s): %s: %s", e.Destination, e.Addr, e.Why, e.Remedy)
}

// A Loop error says that a session would come back to the proxy.
type Loop struct{ Why string }

func (e *Loop) Error() string {
	return "routing loop: " + e.Why + ": look for a destination that leads back here"
}

// reach connects to the account's destination and prepares it for the credentials.
func (s *session) reach(ctx context.Context, d dialogue, account string) (*source, error) {
	dest := s.p.router.fallback
	if account != "" {
		if !routable(account) {
			return nil, errors.New("the login name holds a control character, a space or a quotation mark, and is not routed")
		}
		dest = s.p.router.route(account)
	}
	src, err := s.connect(ctx, dest)
	if err != nil {
		return nil, err
	}
	if err := d.prepare(src); err != nil {
		return nil, err
	}
	if !src.secure && !dest.AllowPlaintext {
		return nil, fmt.Errorf("destination %s (%s): the connection is not encrypted", dest.Name, src.addr)
	}
	return src, nil
}

// connect dials a destination, writes the PROXY header where that is how it is
// told of the client, and begins TLS where that comes first.
func (s *session) connect(ctx context.Context, dest *destination) (*source, error) {
	ep, ok := dest.Endpoints[s.ln.Protocol]
	if !ok {
		return nil, fmt.Errorf("destination %s has no protocol %q, and accounts are mapped to it", dest.Name, s.ln.Protocol)
	}
	if s.ttl < 2 {
		return nil, &Loop{Why: "the announced time to live is used up"}
	}
	src, err := s.dial(ctx, dest, ep)
	if err != nil {
		return nil, err
	}
	if limit, ok := ctx.Deadline(); ok {
		src.raw.SetDeadline(limit)
	}
	if ep.Forwarding == ForwardPROXY {
		if err := s.writeHeader(src); err != nil {
			return nil, fmt.Errorf("destination %s (%s): PROXY header: %w", dest.Name, src.addr, err)
		}
	}
	if ep.TLS == Implicit {
		if err := src.client(dest.tls); err != nil {
			return nil, src.failed(err)
		}
	}
	return src, nil
}

func (s *session) dial(ctx context.Context, dest *destination, ep Endpoint) (*source, error) {
	addrs := []netip.Addr{}
	if a, err := netip.ParseAddr(dest.Host); err == nil {
		addrs = append(addrs, a)
	} else if addrs, err = s.p.opt.Resolve(ctx, dest.Host); err != nil {
		return nil, fmt.Errorf("destination %s: %w", dest.Name, err)
	}
	err := fmt.Errorf("destination %s: %s has no address", dest.Name, dest.Host)
	for _, a := range addrs {
		to := netip.AddrPortFrom(a.Unmap(), ep.Port)
		if s.p.ours(to) {
			return nil, &Loop{Why: fmt.Sprintf("destination %s (%s) is one of our own listeners", dest.Name, to)}
		}
		if ep.Forwarding != ForwardNone && !outside(s.peer.Addr()) && !a.IsLoopback() {
			return nil, fmt.Errorf("destination %s (%s): the client's address %s means another host there and is not announced: let it connect to another address of this host", dest.Name, to, s.peer.Addr())
		}
		s.p.remember(a)
		var nc net.Conn
		if nc, err = s.p.opt.Dial(ctx, dest.from(a), to); err != nil {
			err = fmt.Errorf("destination %s: %w", dest.Name, err)
			continue
		}
		src := &source{leg: newLeg(nc, nc), dest: dest, ep: ep, addr: to, from: endpoint(nc.LocalAddr())}
		if err := s.adopt(src.leg); err != nil {
			return nil, err
		}
		return src, nil
	}
	return nil, err
}

// from is the next of the destination's source_ips in the family of an
// address; zero where there is none.
func (d *destination) from(to netip.Addr) netip.Addr {
	var fit []netip.Addr
	family := 0
	if !to.Unmap().Is4() {
		family = 1
	}
	for _, a := range d.SourceIPs {
		if a.Is4() == to.Unmap().Is4() {
			fit = append(fit, a)
		}
	}
	if len(fit) == 0 {
		return netip.Addr{}
	}
	return fit[int(d.next[family].Add(1)-1)%len(fit)]
}

// writeHeader announces the client with a PROXY header: version 2 if both ends
// of its connection are of one family, and the line that declares no address
// if they are not.
func (s *session) writeHeader(src *source) error {
	h := proto.ProxyHeader{Form: proto.ProxyV2, Src: s.peer, Dst: s.local}
	if s.peer.Addr().Is4() != s.local.Addr().Is4() {
		h = proto.ProxyHeader{Form: proto.ProxyV1Unknown}
	}
	b, err := h.Encode()
	if err != nil {
		return err
	}
	_, err = src.raw.Write(b)
	return err
}

// failed words an error of the destination's.
func (src *source) failed(err error) error {
	return fmt.Errorf("destination %s (%s): %w", src.dest.Name, src.addr, err)
}

func (src *source) failedf(format string, args ...any) error {
	return src.failed(fmt.Errorf(format, args...))
}

// untrusted says that the announcement was not offered or not accepted.
func (src *source) untrusted(setting, format string, args ...any) error {
	return &Untrusted{
		Destination: src.dest.Name, Addr: src.addr, From: src.from.Addr(),
		Why:    fmt.Sprintf(format, args...),
		Remedy: fmt.Sprintf("%s there must hold %s, the address this proxy connects from", setting, src.from.Addr()),
	}
}

// startTLS begins TLS after the destination agreed to it. What it sent in
// clear text behind its agreement could be anybody's.
func (src *source) startTLS() error {
	if n := src.residue(); n > 0 {
		return src.failedf("%d octets came in clear text after the reply to STARTTLS: somebody may stand between", n)
	}
	if err := src.client(src.dest.tls); err != nil {
		return src.failed(err)
	}
	return nil
}

// dialogue lines to and from the destination

func (src *source) send(line string) error {
	if err := src.say(line + "\r\n"); err != nil {
		return src.failed(err)
	}
	return nil
}

func (src *source) read(waiting string) (string, error) {
	l, err := src.line()
	if err != nil {
		return "", src.failedf("waiting for %s: %w", waiting, err)
	}
	return l, nil
}

// clip shortens what a source said for the log. It is used before credentials
// are sent only: a reply to them might repeat them.
func clip(s string) string {
	if len(s) > 120 {
		s = s[:120] + "…"
	}
	return fmt.Sprintf("%q", s)
}
