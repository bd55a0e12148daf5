package stalwart

import (
	"crypto/subtle"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// A principal is an entry of the directory: an account, a domain, a group.
type principal struct {
	id          int
	kind        string
	name        string
	description string
	emails      []string
	secrets     []string
	roles       []string
	memberOf    []string
	members     []string
	disabled    []string // permissions
	quota       int
	admin       bool
}

// maxPrincipals bounds the directory.
const maxPrincipals = 1 << 16

func sameSecret(stored, given string) bool {
	return stored != "" && subtle.ConstantTimeCompare([]byte(strings.TrimPrefix(stored, "{PLAIN}")), []byte(given)) == 1
}

func (p *principal) hasSecret(given string) bool {
	return slices.ContainsFunc(p.secrets, func(s string) bool { return sameSecret(s, given) })
}

// primary is the first address of an account, or its name.
func (p *principal) primary() string {
	if len(p.emails) > 0 {
		return p.emails[0]
	}
	return ""
}

// account is the account's id as JMAP spells it.
func (p *principal) account() string {
	if p.admin && p.id == 0 { // the fallback administrator
		return jmapID(1<<32 - 1)
	}
	return jmapID(p.id)
}

const jmapDigits = "abcdefghijklmnopqrstuvwxyz792013"

func jmapID(n int) string {
	if n <= 0 {
		return "a"
	}
	var b []byte
	for ; n > 0; n >>= 5 {
		b = append(b, jmapDigits[n&31])
	}
	slices.Reverse(b)
	return string(b)
}

// directory is the internal directory. It outlives restarts.
type directory struct {
	mu   sync.Mutex
	next int
	all  []*principal
}

func newDirectory() *directory { return &directory{next: 1} }

// A manageError is what the management API answers with HTTP 200.
type manageError struct {
	Error   string  `json:"error"`
	Field   string  `json:"field,omitempty"`
	Value   string  `json:"value,omitempty"`
	Item    string  `json:"item,omitempty"`
	Details string  `json:"details,omitempty"`
	Reason  *string `json:"reason,omitempty"`
}

// named returns a copy of the principal of that name, or nil.
func (d *directory) named(name string) *principal {
	d.mu.Lock()
	defer d.mu.Unlock()
	if p := d.find(strings.ToLower(name)); p != nil {
		c := *p
		return &c
	}
	return nil
}

func (d *directory) find(name string) *principal {
	for _, p := range d.all {
		if p.name == name {
			return p
		}
	}
	return nil
}

// byNameOrID returns the principal that a path of the management API names.
func (d *directory) byNameOrID(s string) *principal {
	if p := d.named(s); p != nil {
		return p
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.all {
		if p.id == n {
			c := *p
			return &c
		}
	}
	return nil
}

// exists says whether there is an account of that name: for the mail store.
func (d *directory) exists(name string) (string, bool) {
	p := d.named(name)
	return "", p != nil && p.kind == "individual"
}

func (d *directory) isLocal(domain string) bool {
	p := d.named(domain)
	return p != nil && p.kind == "domain"
}

// recipient returns the account that an address belongs to: the address
// itself, without what follows a plus, or the domain's catch-all.
func (d *directory) recipient(address string, sub bool) *principal {
	address = strings.ToLower(address)
	user, domain, ok := strings.Cut(address, "@")
	if i := strings.LastIndexByte(address, '@'); ok {
		user, domain = address[:i], address[i+1:]
	}
	base := user
	if sub {
		base, _, _ = strings.Cut(user, "+")
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, want := range []string{address, base + "@" + domain, "@" + domain} {
		for _, p := range d.all {
			if slices.Contains(p.emails, want) {
				c := *p
				return &c
			}
		}
	}
	return nil
}

// create adds a principal. What is wrong with it is returned.
func (d *directory) create(p *principal) (int, *manageError) {
	p.name = strings.ToLower(strings.TrimSpace(p.name))
	if p.name == "" {
		return 0, &manageError{Error: "fieldMissing", Field: "name"}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.find(p.name) != nil {
		return 0, &manageError{Error: "fieldAlreadyExists", Field: "name", Value: p.name}
	}
	if e := d.checkEmails(p, nil); e != nil {
		return 0, e
	}
	if len(d.all) >= maxPrincipals {
		return 0, &manageError{Error: "other", Details: "Quota exceeded"}
	}
	p.id = d.next
	d.next++
	p.admin = slices.Contains(p.roles, "admin")
	d.all = append(d.all, p)
	return p.id, nil
}

// checkEmails brings addresses into their form. The caller holds d.mu.
func (d *directory) checkEmails(p, old *principal) *manageError {
	for i, e := range p.emails {
		e = strings.ToLower(e)
		p.emails[i] = e
		for _, o := range d.all {
			if o != old && slices.Contains(o.emails, e) {
				return &manageError{Error: "fieldAlreadyExists", Field: "emails", Value: e}
			}
		}
		domain := d.find(domainPart(e))
		if domain == nil || domain.kind != "domain" {
			return &manageError{Error: "notFound", Item: domainPart(e)}
		}
	}
	return nil
}

// replace puts a changed principal in the place of the one with its id.
func (d *directory) replace(p *principal) *manageError {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i, o := range d.all {
		if o.id != p.id {
			continue
		}
		p.name = strings.ToLower(p.name)
		if n := d.find(p.name); n != nil && n != o {
			return &manageError{Error: "fieldAlreadyExists", Field: "name", Value: p.name}
		}
		if e := d.checkEmails(p, o); e != nil {
			return e
		}
		p.admin = slices.Contains(p.roles, "admin")
		d.all[i] = p
		return nil
	}
	return &manageError{Error: "notFound", Item: p.name}
}

func (d *directory) remove(id int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all = slices.DeleteFunc(d.all, func(p *principal) bool { return p.id == id })
}

// list returns the principals of some kinds, all if none is named.
func (d *directory) list(kinds []string, filter string) []*principal {
	d.mu.Lock()
	defer d.mu.Unlock()
	var out []*principal
	for _, p := range d.all {
		if (len(kinds) == 0 || slices.Contains(kinds, p.kind)) && (filter == "" || strings.Contains(p.name, strings.ToLower(filter))) {
			c := *p
			out = append(out, &c)
		}
	}
	return out
}
