package stalwart

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// A listener is one of server.listener, as the last boot read it.
type listener struct {
	id       string
	protocol string // smtp, lmtp, imap, pop3, managesieve, http
	bind     []netip.AddrPort
	implicit bool
	tls      bool // STARTTLS is offered, or TLS implicit
	trusted  []netip.Prefix
	maxConns int
}

func (l *listener) port() uint16 {
	if len(l.bind) == 0 {
		return 0
	}
	return l.bind[0].Port()
}

// ip is what the log calls localIp: what the listener is bound to.
func (l *listener) ip() netip.Addr {
	if len(l.bind) == 0 {
		return netip.IPv6Unspecified()
	}
	return l.bind[0].Addr()
}

// listeners reads server.listener. proxy.override is not read at all: the
// networks of a listener replace the global ones wherever they are set.
func (r *configReader) listeners() []*listener {
	var out []*listener
	networks := func(key string) []netip.Prefix {
		var nets []netip.Prefix
		for _, v := range r.values(key) {
			p, err := parseNetwork(v.value)
			if err != nil {
				r.fail(v.key, "parse", err.Error())
				continue
			}
			nets = append(nets, p)
		}
		return nets
	}
	for _, id := range r.ids("server.listener") {
		at := "server.listener." + id
		l := &listener{id: id, protocol: r.text(at+".protocol", ""), tls: r.boolean(at+".tls.enable", true),
			implicit: r.boolean(at+".tls.implicit", false), maxConns: r.integer(at+".max-connections", 8192)}
		switch l.protocol {
		case "smtp", "lmtp", "imap", "pop3", "managesieve", "http":
		case "https":
			l.protocol = "http"
		case "":
			r.fail(at+".protocol", "parse", "Missing property")
			continue
		default:
			r.fail(at+".protocol", "parse", fmt.Sprintf("Invalid server protocol type %q.", l.protocol))
			continue
		}
		l.implicit = l.implicit && l.tls
		for _, b := range r.values(at + ".bind") {
			ap, err := parseBind(b.value)
			if err != nil {
				r.fail(b.key, "parse", err.Error())
				continue
			}
			l.bind = append(l.bind, ap)
		}
		if len(l.bind) == 0 {
			r.fail(at+".bind", "parse", "No 'bind' directive found for listener")
			continue
		}
		own := at + ".proxy.trusted-networks"
		if len(r.values(own)) > 0 {
			l.trusted = networks(own)
		} else {
			l.trusted = networks("server.proxy.trusted-networks")
		}
		out = append(out, l)
	}
	return out
}

func parseBind(v string) (netip.AddrPort, error) {
	if ap, err := netip.ParseAddrPort(v); err == nil {
		return ap, nil
	}
	return netip.AddrPort{}, saidf("Invalid socket address %q.", v)
}

// resolveMacros replaces %{KIND:WHAT}% in values, for the kinds that look
// knows. What cannot be resolved is an error of its key.
func (r *configReader) resolveMacros(kinds []string, look func(kind, what string) (string, error)) {
	for key, v := range r.keys {
		if !strings.Contains(v, "%{") {
			continue
		}
		var b strings.Builder
		rest := v
		for {
			before, after, ok := strings.Cut(rest, "%{")
			b.WriteString(before)
			if !ok {
				break
			}
			macro, tail, ok := strings.Cut(after, "}%")
			if !ok {
				b.WriteString("%{" + after)
				break
			}
			kind, what, _ := strings.Cut(macro, ":")
			if !slices.Contains(kinds, kind) {
				b.WriteString("%{" + macro + "}%")
			} else if value, err := look(kind, what); err != nil {
				r.fail(key, "macro", err.Error())
			} else {
				b.WriteString(value)
			}
			rest = tail
		}
		r.keys[key] = b.String()
	}
}

// advertised are the listeners of a protocol as the settings name them now, in
// the order of documents: implicit TLS first, then by port.
func advertised(keys map[string]string, protocol string) []service {
	r := &configReader{keys: keys, errors: make(map[string]problem)}
	var out []service
	for _, id := range r.ids("server.listener") {
		at := "server.listener." + id
		if r.text(at+".protocol", "") != protocol {
			continue
		}
		for _, b := range r.values(at + ".bind") {
			i := strings.LastIndexByte(b.value, ':')
			port, err := strconv.ParseUint(b.value[i+1:], 10, 16)
			if err == nil && port > 0 {
				out = append(out, service{protocol, uint16(port), r.text(at+".tls.implicit", "") == "true"})
				break
			}
		}
	}
	slices.SortFunc(out, func(a, b service) int {
		if a.implicit != b.implicit {
			if a.implicit {
				return -1
			}
			return 1
		}
		return int(a.port) - int(b.port)
	})
	return out
}

// A service is what documents say of a listener.
type service struct {
	protocol string
	port     uint16
	implicit bool
}
