package site

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/BurntSushi/toml"
	"github.com/mailproof/mailproof/fixtures"
	"github.com/mailproof/mailproof/harness/reference/proxy"
	"github.com/mailproof/mailproof/harness/run"
)

// maxFile bounds a site file, in octets.
const maxFile = 1 << 20

// A File is a site.toml that has been read and checked. Nothing that it names
// has been opened, resolved or dialled.
type File struct {
	Name     string
	Domain   string
	Proxy    *Public // nil when no proxy stands there yet
	Sources  []*Source
	Vantages map[string]Reach // by the vantage's name; those that are not named are missing
	Exclude  []Exclusion
}

// A Place is a line and column of a file, from 1.
type Place struct{ Line, Column int }

// A Host is where something is reached.
type Host struct {
	Name      string // to be resolved, or ""
	IP4, IP6  netip.Addr
	Endpoints []run.Endpoint
	TLS       Expect
	At        Place
}

// A Public is the proxy as clients reach it.
type Public struct{ Host }

// A Source is one mail system, as its operator declares it.
type Source struct {
	Host
	Label    string // the name of its table
	Kind     string // "dovecot-postfix", "stalwart" or "generic"
	Version  string // "bookworm", "trixie"; "0.15.5"; "" of a generic one
	Log      Log
	Accounts []Account
	Detailed bool // a Stalwart's log is at DEBUG
	// Announces is how a generic source is told of clients, by its services.
	Announces map[string]run.Announcement
}

// A Log says where a source's mail log is read. The zero Log says nowhere.
type Log struct {
	How  string // "file", "command" or, of a Stalwart, "api"
	What string
	API  API // of "api"
}

// An Account is a mailbox that the operator lets mailproof use.
type Account struct {
	Label    string
	Address  string
	Password Secret
	Shared   bool // somebody else signs in to it as well
	At       Place
}

// A Reach is how connections are made from a vantage.
type Reach struct {
	How      string       // "local", "bind", "socks5" or "ssh"
	What     string       // an address and port, or a host of ssh's
	Bind     []netip.Addr // for bind
	IP4, IP6 netip.Addr   // what servers see; for local and bind they may be found out
	At       Place
}

// An Exclusion leaves one scenario out until a day.
type Exclusion struct {
	ID     string
	Reason string
	Until  time.Time // the last day on which it counts, in UTC
	At     Place
}

// An Error is one thing that is wrong with a site file.
type Error struct {
	File         string
	Line, Column int
	Key          string
	Why          string
}

func (e *Error) Error() string {
	key := ""
	if e.Key != "" {
		key = e.Key + ": "
	}
	return fmt.Sprintf("%s:%d:%d: %s%s", e.File, e.Line, e.Column, key, e.Why)
}

// Errors is everything that is wrong with a site file, in its order.
type Errors []*Error

func (es Errors) Error() string {
	lines := make([]string, len(es))
	for i, e := range es {
		lines[i] = e.Error()
	}
	return strings.Join(lines, "\n")
}

// defaultPorts are the services' names and their usual ports.
func services() []run.Endpoint {
	return []run.Endpoint{
		{Name: "imap", Protocol: "imap", Port: 143, TLS: "starttls"},
		{Name: "imaps", Protocol: "imap", Port: 993, TLS: "implicit"},
		{Name: "pop3", Protocol: "pop3", Port: 110, TLS: "starttls"},
		{Name: "pop3s", Protocol: "pop3", Port: 995, TLS: "implicit"},
		{Name: "sieve", Protocol: "managesieve", Port: 4190, TLS: "starttls"},
		{Name: "smtp", Protocol: "smtp", Port: 25, TLS: "starttls"},
		{Name: "submission", Protocol: "smtp", Port: 587, TLS: "starttls"},
		{Name: "submissions", Protocol: "smtp", Port: 465, TLS: "implicit"},
	}
}

// Parse reads a site file. An error is always [Errors].
func Parse(name string, text []byte) (*File, error) {
	p := &parser{file: name}
	if len(text) > maxFile {
		return nil, Errors{{File: name, Line: 1, Column: 1, Why: fmt.Sprintf("is larger than %d octets", maxFile)}}
	}
	var doc map[string]any
	if _, err := toml.Decode(string(text), &doc); err != nil {
		e := &Error{File: name, Line: 1, Column: 1, Why: "not TOML: " + err.Error()}
		var pe toml.ParseError
		if errors.As(err, &pe) {
			e.Line, e.Column = proxy.PlaceOf(string(text), pe.Position.Start)
			e.Why = "not TOML: " + pe.Message
		}
		return nil, Errors{e}
	}
	p.places = proxy.LocateKeys(string(text))
	f := p.document(table{p: p, m: doc})
	if len(p.errs) > 0 {
		slices.SortStableFunc(p.errs, func(a, b *Error) int {
			if a.Line != b.Line {
				return a.Line - b.Line
			}
			return a.Column - b.Column
		})
		return nil, p.errs
	}
	return f, nil
}

type parser struct {
	file   string
	places proxy.Places
	errs   Errors
}

func (p *parser) wrong(path []string, format string, args ...any) {
	line, column := p.places.Of(path...)
	p.errs = append(p.errs, &Error{File: p.file, Line: line, Column: column, Key: strings.Join(path, "."), Why: fmt.Sprintf(format, args...)})
}

func (p *parser) place(path []string) Place {
	line, column := p.places.Of(path...)
	return Place{line, column}
}

// A table is one table of the document. Whatever is not asked for is unknown.
type table struct {
	p    *parser
	path []string
	m    map[string]any
}

func (t table) key(name string) []string { return append(slices.Clone(t.path), name) }

func (t table) wrong(name, format string, args ...any) { t.p.wrong(t.key(name), format, args...) }

// known refuses the keys that are not in the list.
func (t table) known(names ...string) {
	for _, k := range sortedKeys(t.m) {
		if !slices.Contains(names, k) {
			t.wrong(k, "unknown key; there are %s", strings.Join(names, ", "))
		}
	}
}

func (t table) text(name string) string {
	v, ok := t.m[name]
	if !ok {
		return ""
	}
	s, ok := v.(string)
	if !ok {
		t.wrong(name, "must be a text in quotation marks")
		return ""
	}
	if s == "" {
		t.wrong(name, "is empty")
	}
	if strings.ContainsAny(s, "\r\n\x00") {
		t.wrong(name, "must be one line")
		return ""
	}
	return s
}

func (t table) needed(name, what string) string {
	if _, ok := t.m[name]; !ok {
		t.p.wrong(t.path, "%s is missing: %s", name, what)
		return ""
	}
	return t.text(name)
}

func (t table) flag(name string) bool {
	v, ok := t.m[name]
	if !ok {
		return false
	}
	b, ok := v.(bool)
	if !ok {
		t.wrong(name, "must be true or false")
	}
	return b
}

func (t table) addr(name string, want run.Family) netip.Addr {
	s := t.text(name)
	if s == "" {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		t.wrong(name, "%q is no address", s)
		return netip.Addr{}
	}
	if run.FamilyOf(a) != want || a.Is4In6() {
		t.wrong(name, "%s is no address of this family", s)
		return netip.Addr{}
	}
	return a
}

// sub is a table below, and whether it is there.
func (t table) sub(name string) (table, bool) {
	v, ok := t.m[name]
	if !ok {
		return table{}, false
	}
	m, ok := v.(map[string]any)
	if !ok {
		t.wrong(name, "must be a table: [%s]", strings.Join(t.key(name), "."))
		return table{}, false
	}
	return table{p: t.p, path: t.key(name), m: m}, true
}

func (p *parser) document(t table) *File {
	t.known("domain", "proxy", "vantage", "source", "account", "exclude")
	f := &File{Name: p.file, Domain: t.needed("domain", "the mail domain that the sources are final for"), Vantages: map[string]Reach{}}
	if f.Domain != "" && (strings.ContainsAny(f.Domain, " @/:<>") || !strings.Contains(f.Domain, ".")) {
		t.wrong("domain", "%q is no mail domain", f.Domain)
	}
	if pt, ok := t.sub("proxy"); ok {
		pt.known(append(hostKeys(), endpointNames()...)...)
		f.Proxy = &Public{pt.host(services())}
	}
	if vt, ok := t.sub("vantage"); ok {
		vt.known(run.Vantages()...)
		for _, name := range run.Vantages() {
			if r, ok := vt.reach(name); ok {
				f.Vantages[name] = r
			}
		}
	}
	p.distinct(f)
	if st, ok := t.sub("source"); ok {
		for _, name := range sortedKeys(st.m) {
			if s, ok := st.sub(name); ok {
				f.Sources = append(f.Sources, s.source(name))
			}
		}
	}
	if len(f.Sources) == 0 {
		p.wrong([]string{"source"}, "no source is named: write [source.NAME]")
	}
	if at, ok := t.sub("account"); ok {
		for _, name := range sortedKeys(at.m) {
			if a, ok := at.sub(name); ok {
				a.account(f, name)
			}
		}
	}
	if et, ok := t.sub("exclude"); ok {
		for _, id := range sortedKeys(et.m) {
			if e, ok := et.sub(id); ok {
				f.Exclude = append(f.Exclude, e.exclusion(id))
			}
		}
	}
	return f
}

func hostKeys() []string { return []string{"host", "ip4", "ip6", "tls"} }

func endpointNames() []string {
	var names []string
	for _, e := range services() {
		names = append(names, e.Name)
	}
	return names
}

func (t table) host(services []run.Endpoint) Host {
	h := Host{Name: t.text("host"), IP4: t.addr("ip4", run.IP4), IP6: t.addr("ip6", run.IP6), At: t.p.place(t.path)}
	if strings.ContainsAny(h.Name, " /:@") {
		t.wrong("host", "%q is no host name; ports stand beside their services: imaps = 993", h.Name)
	}
	if h.Name == "" && !h.IP4.IsValid() && !h.IP6.IsValid() && len(t.m) > 0 {
		t.p.wrong(t.path, "where it is reached is missing: host, or ip4 and ip6")
	}
	for _, e := range services {
		v, ok := t.m[e.Name]
		if !ok {
			continue
		}
		n, ok := v.(int64)
		if !ok || n < 1 || n > 65535 {
			t.wrong(e.Name, "must be a port, 1 to 65535")
			continue
		}
		e.Port = uint16(n)
		h.Endpoints = append(h.Endpoints, e)
	}
	if len(h.Endpoints) == 0 {
		t.p.wrong(t.path, "no service is named: imap = 143, imaps = 993 and so on")
	}
	h.TLS = t.expect(h.Name)
	return h
}

func (t table) source(label string) *Source {
	kind := t.needed("kind", "dovecot-postfix, stalwart or generic")
	t.known(append(append(hostKeys(), "kind", "version", "announces", "log"), keysOf(kind)...)...)
	s := &Source{Label: label, Kind: kind, Host: t.host(servicesOf(kind))}
	if strings.ContainsAny(label, " @/:") {
		t.p.wrong(t.path, "%q is no name for a source: letters, digits and hyphens", label)
	}
	switch s.Kind {
	case "dovecot-postfix":
		releases := fixtures.Releases(s.Kind)
		s.Version = t.needed("version", "the Debian release whose Dovecot and Postfix it is most like: "+strings.Join(releases, " or ")+" (Dovecot 2.3 or 2.4)")
		if s.Version != "" && !slices.Contains(releases, s.Version) {
			t.wrong("version", "unknown version %q; there are %s", s.Version, strings.Join(releases, ", "))
		}
		if _, ok := t.m["announces"]; ok {
			t.wrong("announces", "is for sources of kind generic; dovecot-postfix takes ID and XCLIENT")
		}
	case fixtures.Stalwart:
		t.stalwart(s)
	case generic:
		t.generic(s)
	case "":
	default:
		t.wrong("kind", "unknown kind %q; there are dovecot-postfix, stalwart and generic", s.Kind)
	}
	if l := t.text("log"); l != "" {
		how, what, ok := strings.Cut(l, ":")
		what = strings.TrimSpace(what)
		if how == "api" && kind == fixtures.Stalwart {
			s.Log = Log{how, what, t.api(what)}
			return s
		}
		if !ok || how != "file" && how != "command" || what == "" {
			t.wrong("log", "write file:PATH or command:COMMAND")
		}
		s.Log = Log{How: how, What: what}
	}
	return s
}

func (t table) account(f *File, label string) {
	t.known("source", "address", "password", "shared")
	a := Account{Label: label, Address: t.needed("address", "the mailbox's address"), Shared: t.flag("shared"), At: t.p.place(t.path)}
	if a.Address != "" && (strings.Count(a.Address, "@") != 1 || strings.ContainsAny(a.Address, " <>\"\\(){}")) {
		t.wrong("address", "%q is no address that can be used as a user name", a.Address)
	}
	if ref := t.needed("password", "where it is kept: env:NAME, file:PATH or command:COMMAND"); ref != "" {
		var err error
		if a.Password, err = parseSecret(ref); err != nil {
			t.wrong("password", "%v", err)
		}
	}
	name := t.text("source")
	for _, s := range f.Sources {
		if s.Label == name || name == "" && len(f.Sources) == 1 {
			for _, o := range s.Accounts {
				if strings.EqualFold(o.Address, a.Address) {
					t.wrong("address", "%s is named twice", a.Address)
				}
			}
			s.Accounts = append(s.Accounts, a)
			return
		}
	}
	switch {
	case name != "":
		t.wrong("source", "there is no [source.%s]", name)
	case len(f.Sources) > 1:
		t.p.wrong(t.path, "source is missing: which of the sources has this account")
	}
}

func (t table) exclusion(id string) Exclusion {
	t.known("reason", "until")
	e := Exclusion{ID: id, Reason: t.needed("reason", "why this scenario does not count here"), At: t.p.place(t.path)}
	switch v := t.m["until"].(type) {
	case time.Time:
		e.Until = time.Date(v.Year(), v.Month(), v.Day(), 0, 0, 0, 0, time.UTC)
	case nil:
		t.p.wrong(t.path, "until is missing: the last day on which it counts, as 2027-01-31")
	default:
		t.wrong("until", "must be a day without quotation marks: 2027-01-31")
	}
	return e
}

// reach reads how a vantage is reached: a text, or a table with by and the
// addresses that servers see.
func (t table) reach(name string) (Reach, bool) {
	v, ok := t.m[name]
	if !ok {
		return Reach{}, false
	}
	r := Reach{At: t.p.place(t.key(name))}
	by := ""
	switch v := v.(type) {
	case string:
		by = v
	case map[string]any:
		st := table{p: t.p, path: t.key(name), m: v}
		st.known("by", "ip4", "ip6")
		by = st.needed("by", "local, bind:ADDRESS, socks5:ADDRESS:PORT, ssh:HOST or none")
		r.IP4, r.IP6 = st.addr("ip4", run.IP4), st.addr("ip6", run.IP6)
		if by == "" {
			return r, false
		}
	default:
		t.wrong(name, "must be a text: local, bind:ADDRESS, socks5:ADDRESS:PORT, ssh:HOST or none")
		return r, false
	}
	how, what, _ := strings.Cut(by, ":")
	r.How, r.What = how, what
	declared := r.IP4.IsValid() || r.IP6.IsValid()
	switch how {
	case "none":
		return r, false
	case "local":
		if what != "" {
			t.wrong(name, "local takes nothing behind it")
		}
	case "bind":
		for _, w := range strings.Split(what, ",") {
			a, err := netip.ParseAddr(strings.TrimSpace(w))
			if err != nil {
				t.wrong(name, "%q is no address: write bind:ADDRESS, or bind:ADDRESS,ADDRESS for both families", w)
				return r, false
			}
			a = a.Unmap()
			at := &r.IP4
			if a.Is6() {
				at = &r.IP6
			}
			if !at.IsValid() {
				*at = a
			}
			r.Bind = append(r.Bind, a)
		}
	case "socks5":
		if ap, err := netip.ParseAddrPort(what); err != nil || ap.Port() == 0 {
			t.wrong(name, "%q is no address and port: write socks5:127.0.0.1:1080", what)
			return r, false
		}
		if !declared {
			t.wrong(name, "the address that servers see is missing: %s = { by = %q, ip4 = \"…\" }", name, by)
			return r, false
		}
	case "ssh":
		if what == "" || strings.HasPrefix(what, "-") || strings.ContainsAny(what, " \t'\"\\$`;&|<>") {
			t.wrong(name, "%q is no host of ssh's: write ssh:HOST or ssh:USER@HOST", what)
			return r, false
		}
		if !declared {
			t.wrong(name, "the address that servers see is missing: %s = { by = %q, ip4 = \"…\" }", name, by)
			return r, false
		}
	default:
		t.wrong(name, "%q is no way to reach a vantage: local, bind:ADDRESS, socks5:ADDRESS:PORT, ssh:HOST or none", by)
		return r, false
	}
	return r, true
}

// distinct refuses two vantages with one address: a rig in which they share
// one proves nothing about trust.
func (p *parser) distinct(f *File) {
	for i, name := range run.Vantages() {
		r, ok := f.Vantages[name]
		if !ok {
			continue
		}
		for _, before := range run.Vantages()[:i] {
			o, ok := f.Vantages[before]
			if !ok {
				continue
			}
			same := r.How == "local" && o.How == "local" ||
				r.IP4.IsValid() && r.IP4 == o.IP4 || r.IP6.IsValid() && r.IP6 == o.IP6
			if same {
				p.wrong([]string{"vantage", name}, "has the same address as the vantage %s: a source cannot tell them apart, and nothing would be proved", before)
			}
		}
	}
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
