package site

import (
	"encoding/base64"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/reference/proxy"
)

// Draft is a site file to begin with, from a proxy's configuration: what
// stands there is taken over, and what does not (accounts, vantages, logs, the
// domain) is left as a line to fill in. Until that is done it is no site file
// that can be read.
func Draft(c *proxy.Config) string {
	var b strings.Builder
	put := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	put("# A draft from %s. Fill in every FILL-IN; docs/site.md explains each line.", c.File)
	put("domain = \"FILL-IN\"          # the mail domain that the sources are final for")
	put("")
	put("[proxy]                     # as clients reach it")
	if c.Server.Hostname != "" {
		put("host = %q", c.Server.Hostname)
	} else {
		put("host = \"FILL-IN\"")
	}
	for _, f := range []string{"ip4", "ip6"} {
		if a := boundTo(c, f == "ip4"); a.IsValid() {
			put("%s = %q", f, a)
		}
	}
	for _, l := range c.Listeners {
		if name := endpointOf(string(l.Protocol), string(l.TLS)); name != "" && len(l.Binds) > 0 {
			put("%s = %d", name, l.Binds[0].Port())
		}
	}
	put("")
	put("[vantage]                   # no two may have the same address; what is \"none\" is said to be missing")
	put("proxy = \"local\"             # mailproof runs on the proxy's own host")
	put("client = \"none\"             # FILL-IN: { by = \"socks5:127.0.0.1:1080\", ip4 = \"…\" }, where a user would sit")
	put("relay = \"none\"              # FILL-IN: { by = \"ssh:newserver\", ip4 = \"…\" }")
	put("neighbour = \"none\"          # FILL-IN: another host in the proxy's network")
	put("stranger = \"none\"           # FILL-IN: a host elsewhere")
	for _, d := range c.Destinations {
		put("")
		put("[source.%s]", plain(d.Name))
		put("kind = \"dovecot-postfix\"    # FILL-IN if it is another")
		put("version = \"FILL-IN\"         # bookworm (Dovecot 2.3) or trixie (Dovecot 2.4)")
		switch a, err := netip.ParseAddr(d.Host); {
		case err != nil:
			put("host = %q", d.Host)
		case a.Is4():
			put("ip4 = %q", a)
		default:
			put("ip6 = %q", a)
		}
		switch {
		case d.AllowInvalid:
			put("tls = \"unchecked:the proxy accepts any certificate (allow_invalid_certs)\"")
		case len(d.PinSHA256) > 0:
			put("tls = \"pin:sha256:%s\"", base64.StdEncoding.EncodeToString(d.PinSHA256))
		case d.ServerName != "":
			put("tls = \"name:%s\"", d.ServerName)
		}
		var protocols []string
		for p := range d.Endpoints {
			protocols = append(protocols, string(p))
		}
		slices.Sort(protocols)
		for _, p := range protocols {
			e := d.Endpoints[proxy.Protocol(p)]
			if name := endpointOf(p, string(e.TLS)); name != "" {
				put("%s = %d", name, e.Port)
			}
			if e.Forwarding == proxy.ForwardPROXY || e.Forwarding == "" && d.Forwarding != proxy.ForwardXCLIENT {
				put("# the proxy announces by %s here; dovecot-postfix is judged with ID and XCLIENT (forwarding = \"xclient\")", orDefault(string(e.Forwarding), string(d.Forwarding)))
			}
		}
		put("smtp = 25                   # where the new server relays to")
		put("log = \"command:ssh %s journalctl -f -n 0 -o short-iso\" # FILL-IN: or file:/var/log/mail.log", plain(d.Name))
		put("")
		put("[account.%s-1]              # a mailbox that nobody else uses; two or more, each fails to sign in twice at most", plain(d.Name))
		put("source = %q", plain(d.Name))
		put("address = \"FILL-IN\"")
		put("password = \"env:MAILPROOF_%s_1\"", strings.ToUpper(strings.ReplaceAll(plain(d.Name), "-", "_")))
	}
	return b.String()
}

func orDefault(words ...string) string {
	for _, w := range words {
		if w != "" {
			return w
		}
	}
	return "a PROXY header"
}

// boundTo is the first address of a family that the proxy listens on, unless
// it listens on all.
func boundTo(c *proxy.Config, four bool) netip.Addr {
	for _, l := range c.Listeners {
		for _, b := range l.Binds {
			if a := b.Addr().Unmap(); a.Is4() == four && !a.IsUnspecified() {
				return a
			}
		}
	}
	return netip.Addr{}
}

// endpointOf is what a site file calls a protocol with a TLS mode.
func endpointOf(protocol, mode string) string {
	implicit := mode == string(proxy.Implicit)
	switch protocol {
	case "imap", "pop3":
		if implicit {
			return protocol + "s"
		}
		return protocol
	case "submission":
		if implicit {
			return "submissions"
		}
		return "submission"
	case "managesieve":
		if !implicit {
			return "sieve"
		}
	}
	return "" // port 25 of the proxy is the new server's
}

// plain makes a name fit for a table of a site file.
func plain(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, s)
}
