package run

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/mailproof/mailproof/harness/script"
	"github.com/mailproof/mailproof/harness/witness"
)

// env gives the variables of one execution their values.
type env struct {
	target   *Target
	source   *Source
	family   Family
	token    string
	port     uint16 // announced for the client
	public   uint16 // the public port of the facet's endpoint
	wrong    string
	master   string // the password of a master user that a scenario sets
	accounts map[string]Account
	files    map[string]script.Template
	captures map[string]string
	local    func(conn string) (netip.AddrPort, bool)

	rendered map[string]string // files with their references replaced
}

// Lookup implements script.Env.
func (e *env) Lookup(r script.Ref) (value, secret string, err error) {
	if v, ok := e.captures[r.Name]; ok && len(r.Args) == 0 {
		return v, "", nil
	}
	arg := ""
	if len(r.Args) == 1 {
		arg = r.Args[0]
	}
	switch r.Name {
	case "token":
		return e.token, "", nil
	case "domain":
		return e.source.Domain, "", nil
	case "wrong":
		return e.wrong, "wrong", nil
	case "master":
		return "master-" + e.token, "", nil
	case "master-secret":
		return e.master, "master", nil
	case "basic-admin", "basic-limited-admin":
		a, who := e.source.Administrator, "administrator"
		if r.Name == "basic-limited-admin" {
			a, who = e.source.Limited, "limited-administrator"
		}
		if a == nil {
			return "", "", errNoAdministrator
		}
		return b64(a.Address + ":" + a.Password), who, nil
	case "public-name":
		if e.target.Proxy == nil || e.target.Proxy.ServerName == "" {
			return "", "", fmt.Errorf("the target names no public host")
		}
		return e.target.Proxy.ServerName, "", nil
	case "source-name":
		return e.source.ServerName, "", nil
	case "source-address":
		a := e.source.Addr(Proxy, e.family)
		if !a.IsValid() {
			return "", "", &missingVantage{Proxy, e.family}
		}
		return a.String(), "", nil
	case "sub-address":
		a, ok := e.accounts[arg]
		if !ok {
			return "", "", fmt.Errorf("there is no account %q", arg)
		}
		local, domain, _ := strings.Cut(a.Address, "@")
		return local + "+detail@" + domain, "", nil
	case "basic":
		a, ok := e.accounts[arg]
		if !ok {
			return "", "", fmt.Errorf("there is no account %q", arg)
		}
		if e.target.Limits != nil {
			return b64(mixedCase(a.Address, e.token) + ":" + a.Password), arg, nil
		}
		return b64(a.Address + ":" + a.Password), arg, nil
	case "basic-wrong":
		a, ok := e.accounts[arg]
		if !ok {
			return "", "", fmt.Errorf("there is no account %q", arg)
		}
		return b64(a.Address + ":" + e.wrong), "wrong", nil
	case "client-port":
		return strconv.Itoa(int(e.port)), "", nil
	case "public-port":
		return strconv.Itoa(int(e.public)), "", nil
	case "sasl.plain", "sasl.wrong", "sasl.user", "sasl.secret":
		a, ok := e.accounts[arg]
		if !ok {
			return "", "", fmt.Errorf("there is no account %q", arg)
		}
		switch r.Name {
		case "sasl.wrong":
			return b64("\x00" + a.Address + "\x00" + e.wrong), "wrong", nil
		case "sasl.user":
			return b64(a.Address), "", nil
		case "sasl.secret":
			return b64(a.Password), arg, nil
		}
		return b64("\x00" + a.Address + "\x00" + a.Password), arg, nil
	case "xclient":
		a, err := e.address(arg, e.family)
		if err != nil {
			return "", "", err
		}
		if a.Is6() {
			return "IPV6:" + a.String(), "", nil
		}
		return a.String(), "", nil
	case "ip4", "ip6":
		a, err := e.address(arg, Family(r.Name))
		if err != nil {
			return "", "", err
		}
		return a.String(), "", nil
	case "local", "local-port":
		if ap, ok := e.local(arg); ok {
			if r.Name == "local" {
				return ap.Addr().String(), "", nil
			}
			return strconv.Itoa(int(ap.Port())), "", nil
		}
		return "", "", fmt.Errorf("there is no connection %s", arg)
	case "filler":
		text, err := r.Filler()
		return text, "", err
	case "octets", "size", "data", "sha256":
		text, err := e.file(arg)
		if err != nil {
			return "", "", err
		}
		switch r.Name {
		case "size":
			return strconv.Itoa(len(text)), "", nil
		case "data":
			return dotStuff(text), "", nil
		case "sha256":
			_, body, _ := strings.Cut(text, "\r\n\r\n")
			sum := witness.BodySum([]byte(body))
			return hex.EncodeToString(sum[:]), "", nil
		}
		return text, "", nil
	}
	if name, ok := strings.CutPrefix(r.Name, "user."); ok {
		if a, ok := e.accounts[name]; ok {
			return a.Address, "", nil
		}
		return "", "", fmt.Errorf("there is no account %q", name)
	}
	if name, ok := strings.CutPrefix(r.Name, "secret."); ok {
		if a, ok := e.accounts[name]; ok {
			return a.Password, name, nil
		}
		return "", "", fmt.Errorf("there is no account %q", name)
	}
	a, err := e.address(r.Name, e.family)
	if err != nil {
		return "", "", err
	}
	return a.String(), "", nil
}

// mixedCase spells an account's name so that no other execution does. Stalwart
// remembers whole Authorization headers, for more than an hour, and does not
// log a sign-in again that it remembers; in names it ignores case.
func mixedCase(address, token string) string {
	sum := sha256.Sum256([]byte(token))
	b := []byte(address)
	for i, c := range b {
		if c >= 'a' && c <= 'z' && sum[i/8%len(sum)]>>(i%8)&1 == 1 {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// address is the address that a name stands for.
func (e *env) address(name string, f Family) (netip.Addr, error) {
	var a netip.Addr
	switch {
	case name == "public" && e.target.Names.Public != nil:
		a = e.target.Names.Public(f)
	case name == "forged" && e.target.Names.Forged != nil:
		a = e.target.Names.Forged(f)
	case strings.HasPrefix(name, "client.") && e.target.Names.Client != nil:
		n, err := strconv.Atoi(name[len("client."):])
		if err != nil || n < 1 || n > MaxClients {
			return a, fmt.Errorf("%q is no client: client.1 to client.%d", name, MaxClients)
		}
		a = e.target.Names.Client(f, n)
	default:
		v := e.target.Vantages[name]
		if v == nil {
			return a, &missingVantage{name, f}
		}
		a = v.Addr(f)
		if !a.IsValid() && name == Client && f != e.family && e.target.Limits != nil && e.target.Names.Client != nil {
			// In the family that the facet is not about, the client is only
			// announced: any address that is nobody's serves.
			a = e.target.Names.Client(f, MaxClients)
		}
	}
	if !a.IsValid() {
		return a, &missingVantage{name, f}
	}
	return a, nil
}

// errNoAdministrator says that the target does not name who may read every
// account of a source.
var errNoAdministrator = errors.New("it acts as the source's administrator, and the target names none: this claim is judged in labs")

// missingVantage says that a name has no address in a family on this target.
type missingVantage struct {
	name   string
	family Family
}

func (e *missingVantage) Error() string {
	return fmt.Sprintf("the target has no vantage %q with an address in %s", e.name, e.family)
}

// file is an attached file with its references replaced.
func (e *env) file(name string) (string, error) {
	if t, ok := e.rendered[name]; ok {
		return t, nil
	}
	t, ok := e.files[name]
	if !ok {
		return "", fmt.Errorf("there is no file %q", name)
	}
	text, _, err := t.Expand(e)
	if err != nil {
		return "", err
	}
	if e.rendered == nil {
		e.rendered = make(map[string]string)
	}
	e.rendered[name] = text
	return text, nil
}

// dotStuff spells a message for DATA (RFC 5321, section 4.5.2).
func dotStuff(text string) string {
	if strings.HasPrefix(text, ".") {
		text = "." + text
	}
	text = strings.ReplaceAll(text, "\r\n.", "\r\n..")
	if !strings.HasSuffix(text, "\r\n") {
		text += "\r\n"
	}
	return text + ".\r\n"
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

// name says which of the target's addresses a text is, for facts: "proxy",
// "client", "forged" …; "" when it is none of them.
func (e *env) name(text string) string {
	a, err := netip.ParseAddr(strings.Trim(text, "[]"))
	if err != nil {
		return ""
	}
	mapped := a.Is4In6()
	a = a.Unmap()
	found := ""
	f := FamilyOf(a)
	for _, v := range Vantages() {
		if w := e.target.Vantages[v]; w != nil && w.Addr(f) == a {
			found = v
		}
	}
	if found == "" {
		switch {
		case e.target.Names.Forged != nil && e.target.Names.Forged(f) == a:
			found = "forged"
		case e.target.Names.Public != nil && e.target.Names.Public(f) == a:
			found = "public"
		default:
			for n := 1; e.target.Names.Client != nil && n <= MaxClients; n++ {
				if e.target.Names.Client(f, n) == a {
					found = "client"
					break
				}
			}
		}
	}
	if found != "" && mapped {
		return found + "-mapped"
	}
	return found
}
