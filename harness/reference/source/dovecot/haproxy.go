package dovecot

import (
	"errors"

	"github.com/mailproof/mailproof/harness/reference/source/haproxy"
	"github.com/mailproof/mailproof/harness/reference/source/link"
)

// haproxyHeader reads the PROXY header that must come first on the listener,
// and says whether the session may go on. Dovecot demands the header in one
// segment; how octets were cut does not matter here.
func (in *session) haproxyHeader() bool {
	c := in.srv.c
	rip := in.real.Addr().String()
	write := func(severity, text string) { in.srv.write(in.process(), severity, "haproxy: "+text) }
	if !contains(c.haproxyTrusted, in.real.Addr()) {
		write(warning, "Client not trusted (rip="+rip+")")
		return false
	}
	if err := in.c.ReadQuiet(c.haproxyTimeout); err != nil {
		if link.IsTimeout(err) {
			write(failure, "Client timed out (rip="+rip+")")
		} else {
			write(info, "Client disconnected (rip="+rip+"): Connection reset by peer")
		}
		return false
	}
	h, err := haproxy.Read(in.c.Reader())
	var bad *haproxy.Error
	switch {
	case errors.As(err, &bad) && bad.NoHeader:
		write(failure, "Client disconnected: Failed to read valid HAproxy data (rip="+rip+")")
		in.c.Reset()
		return false
	case errors.As(err, &bad):
		in.srv.write(in.process(), failure, "haproxy("+bad.Version+"): Client disconnected: "+bad.Why+" (rip="+rip+")")
		return false
	case err != nil:
		write(info, "Client disconnected: Failed to read full header (rip="+rip+")")
		return false
	}
	if h.Source.IsValid() {
		in.ip, in.port = h.Source.Addr(), h.Source.Port()
		in.lip, in.lport = h.Dest.Addr(), h.Dest.Port()
	}
	in.proxyTLS = h.TLS
	if c.series == "2.4" && h.ALPN {
		// 2.4.1 compares with memory that it has given back.
		in.srv.write(in.process(), failure, "HAproxy application protocol mismatch (requested '')")
		return false
	}
	return true
}
