package stalwart

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// maxAPIBody bounds the body of a call of the management API, in octets.
const maxAPIBody = 1 << 20

func failed(e manageError) *response { return jsonValue(e) }

// api answers the management API. What goes wrong is answered with HTTP 200
// and an error in the body.
func (in *session) api(r *request, p []string) *response {
	who, refusal := in.authorize(r, true)
	if refusal != nil {
		return refusal
	}
	if !who.admin {
		in.process.log(evUnauthorized, "", field{"details", strings.Join(p, "-")})
		return forbidden()
	}
	if len(r.body) > maxAPIBody {
		return badParameters("JSON deserialization failed")
	}
	at := func(i int) string {
		if i < len(p) {
			s, err := url.PathUnescape(p[i])
			if err != nil {
				return p[i]
			}
			return s
		}
		return ""
	}
	get := r.method == "GET"
	switch at(0) {
	case "settings":
		return in.apiSettings(r, at(1))
	case "reload":
		if get {
			return in.apiReload(r, at(1))
		}
	case "principal":
		return in.apiPrincipal(r, at(1), len(p) > 1)
	case "logs":
		if get {
			return in.apiLogs(r)
		}
	case "restart":
		if get {
			return failed(manageError{Error: "unsupported", Details: "Restart is not yet supported"})
		}
	case "dns":
		if get && at(1) == "records" && at(2) != "" {
			return dataOf(in.dnsRecords(at(2)))
		}
	case "store":
		if get && at(1) == "purge" {
			if at(2) == "in-memory" && at(4) != "" {
				in.srv.counts.purge(at(4))
			}
			return dataOf(nil)
		}
	case "queue":
		if get && at(1) == "messages" {
			return dataOf(struct {
				Items  []string `json:"items"`
				Total  int      `json:"total"`
				Status bool     `json:"status"`
			}{[]string{}, 0, true})
		}
		if get && at(1) == "status" {
			return dataOf(true)
		}
	}
	in.log(evNotFound)
	return notFound()
}

// An update is one operation on settings.
type update struct {
	Type        string       `json:"type"`
	Keys        []string     `json:"keys"`
	Prefix      *string      `json:"prefix"`
	Filter      *string      `json:"filter"`
	Values      *[][2]string `json:"values"`
	AssertEmpty *bool        `json:"assert_empty"`
}

// parseUpdates reads the operations of one call.
func parseUpdates(body []byte) ([]update, error) {
	var list []update
	d := json.NewDecoder(bytes.NewReader(body))
	if err := d.Decode(&list); err != nil {
		return nil, err
	}
	for _, u := range list {
		ok := false
		switch u.Type {
		case "delete":
			ok = u.Keys != nil
		case "clear":
			ok = u.Prefix != nil
		case "insert":
			ok = u.Values != nil && u.AssertEmpty != nil
		}
		if !ok {
			return nil, fmt.Errorf("no operation %q", u.Type)
		}
	}
	return list, nil
}

// orderedPairs is JSON's object with its keys in the order given.
type orderedPairs []pair

func (o orderedPairs) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, p := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		k, err := encode(p.key)
		if err != nil {
			return nil, err
		}
		v, err := encode(p.value)
		if err != nil {
			return nil, err
		}
		b.Write(k)
		b.WriteByte(':')
		b.Write(v)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

func dotted(prefix string) string {
	if prefix != "" && !strings.HasSuffix(prefix, ".") {
		return prefix + "."
	}
	return prefix
}

// page cuts a list as page and limit say.
func page[T any](r *request, list []T) []T {
	limit, _ := strconv.Atoi(r.query.Get("limit"))
	n, _ := strconv.Atoi(r.query.Get("page"))
	if limit <= 0 {
		return list
	}
	from := min(max(n-1, 0)*limit, len(list))
	return list[from:min(from+limit, len(list))]
}

func (in *session) apiSettings(r *request, what string) *response {
	set := in.srv.settings
	switch {
	case what == "list" && r.method == "GET":
		all := set.list(dotted(r.query.Get("prefix")), true)
		return dataOf(struct {
			Total int          `json:"total"`
			Items orderedPairs `json:"items"`
		}{len(all), page(r, all)})
	case what == "group" && r.method == "GET":
		return in.apiGroup(r)
	case what == "keys" && r.method == "GET":
		var out orderedPairs
		for _, k := range strings.Split(r.query.Get("keys"), ",") {
			if v, ok := set.get(k); ok {
				out = append(out, pair{k, v})
			}
		}
		if v := r.query.Get("prefixes"); v != "" {
			for _, p := range strings.Split(v, ",") {
				out = append(out, set.list(dotted(p), false)...)
			}
		}
		return dataOf(out)
	case what == "" && r.method == "POST":
		list, err := parseUpdates(r.body)
		if err != nil {
			in.log(evBadParameters, field{"details", "JSON deserialization failed"})
			return badParameters("JSON deserialization failed")
		}
		for _, u := range list {
			if e := in.update(u); e != nil {
				return failed(*e)
			}
		}
		in.srv.inserted(in.process)
		return dataOf(nil)
	case what != "" && r.method == "DELETE":
		set.clear(what)
		in.srv.inserted(in.process)
		return dataOf(nil)
	}
	in.log(evNotFound)
	return notFound()
}

// update does one operation. Those before it stay done if it fails.
func (in *session) update(u update) *manageError {
	set := in.srv.settings
	switch u.Type {
	case "delete":
		for _, k := range u.Keys {
			set.clear(k)
		}
	case "clear":
		if u.Filter == nil {
			set.clearPrefix(*u.Prefix)
			break
		}
		for _, p := range set.list(*u.Prefix, false) {
			if strings.Contains(strings.ToLower(p.key), *u.Filter) || strings.Contains(strings.ToLower(p.value), *u.Filter) {
				set.clear(p.key)
			}
		}
	case "insert":
		if *u.AssertEmpty {
			taken := false
			if u.Prefix != nil {
				taken = len(set.list(*u.Prefix+".", true)) > 0
			} else if len(*u.Values) > 0 {
				_, taken = set.get((*u.Values)[0][0])
			}
			if taken {
				return &manageError{Error: "assertFailed"}
			}
		}
		for _, v := range *u.Values {
			key := v[0]
			if u.Prefix != nil {
				key = *u.Prefix + "." + key
			}
			set.set(key, v[1])
		}
	}
	return nil
}

func (in *session) apiGroup(r *request) *response {
	prefix, suffix := dotted(r.query.Get("prefix")), r.query.Get("suffix")
	if suffix != "" && !strings.HasPrefix(suffix, ".") {
		suffix = "." + suffix
	}
	all := in.srv.settings.list(prefix, true)
	items := []orderedPairs{}
	for _, p := range all {
		if suffix == "" {
			items = append(items, orderedPairs{{"_id", p.key}, {"_value", p.value}})
			continue
		}
		id, ok := strings.CutSuffix(p.key, suffix)
		if !ok || id == "" {
			continue
		}
		record := orderedPairs{{"_id", id}}
		for _, o := range all {
			if k, ok := strings.CutPrefix(o.key, id+"."); ok {
				record = append(record, pair{k, o.value})
			}
		}
		items = append(items, record)
	}
	return dataOf(struct {
		Total int            `json:"total"`
		Items []orderedPairs `json:"items"`
	}{len(items), page(r, items)})
}

func (in *session) apiReload(r *request, what string) *response {
	type result struct {
		Warnings map[string]problem `json:"warnings"`
		Errors   map[string]problem `json:"errors"`
	}
	errs := map[string]problem{}
	switch what {
	case "server.blocked-ip":
		rd := &configReader{keys: in.srv.settings.all(), errors: errs}
		in.srv.setBlocked(in.process, rd.addresses(strings.TrimSuffix(blockedPrefix, ".")))
	case "certificate":
		rd := &configReader{keys: in.srv.settings.all(), errors: errs}
		rd.resolveMacros([]string{"env", "file", "cfg"}, in.srv.macro(rd.keys))
		if certs := rd.certificates(); len(errs) == 0 && len(certs) > 0 {
			in.certificates.Store(&certs)
		}
	case "lookup":
	default:
		_, dry := r.query["dry-run"]
		if e := in.srv.reload(in.process, dry); e != nil {
			errs = e
		}
	}
	return dataOf(result{map[string]problem{}, errs})
}

func (in *session) apiLogs(r *request) *response {
	if in.core.tracing.file.off {
		return failed(manageError{Error: "unsupported", Details: "Tracer log path not configured"})
	}
	limit := 100
	if n, err := strconv.Atoi(r.query.Get("limit")); err == nil && n > 0 {
		limit = n
	}
	n, _ := strconv.Atoi(r.query.Get("page"))
	total, lines := in.srv.journal.find(r.query.Get("filter"), max(n-1, 0)*limit, limit)
	type entry struct {
		Timestamp string `json:"timestamp"`
		Level     string `json:"level"`
		Event     string `json:"event"`
		EventID   string `json:"event_id"`
		Details   string `json:"details"`
	}
	items := []entry{}
	for _, l := range lines {
		at, rest, _ := strings.Cut(l, " ")
		lvl, rest, _ := strings.Cut(rest, " ")
		words, rest, ok := strings.Cut(rest, " (")
		id, details, ok2 := strings.Cut(rest, ")")
		if ok && ok2 {
			items = append(items, entry{at, lvl, words, id, strings.TrimSpace(details)})
		}
	}
	return dataOf(struct {
		Items []entry `json:"items"`
		Total int     `json:"total"`
	}{items, total})
}

// principalSet is a principal as the management API reads it: lists may be
// single strings.
type principalSet struct {
	Type        string `json:"type"`
	Name        string `json:"name"`
	Description string `json:"description"`
	Quota       int    `json:"quota"`
	Secrets     some   `json:"secrets"`
	Emails      some   `json:"emails"`
	Roles       some   `json:"roles"`
	MemberOf    some   `json:"memberOf"`
	Disabled    some   `json:"disabledPermissions"`
	Members     some   `json:"members"`
}

type some []string

func (s *some) UnmarshalJSON(b []byte) error {
	var one string
	if json.Unmarshal(b, &one) == nil {
		*s = some{one}
		return nil
	}
	var many []string
	if err := json.Unmarshal(b, &many); err != nil {
		return err
	}
	*s = many
	return nil
}

// kinds are the types of principals.
var kinds = []string{"individual", "group", "list", "domain", "tenant", "role", "apiKey", "oauthClient", "resource", "location", "other"}

// shownPrincipal is a principal as the management API writes it. Secrets are
// written as they are stored, as the real one does.
type shownPrincipal struct {
	ID          int      `json:"id"`
	Type        string   `json:"type"`
	Name        string   `json:"name"`
	Description string   `json:"description,omitempty"`
	Quota       int      `json:"quota,omitempty"`
	Emails      []string `json:"emails,omitempty"`
	Secrets     []string `json:"secrets,omitempty"`
	Roles       []string `json:"roles,omitempty"`
	MemberOf    []string `json:"memberOf,omitempty"`
	Members     []string `json:"members,omitempty"`
}

func shown(p *principal) shownPrincipal {
	return shownPrincipal{p.id, p.kind, p.name, p.description, p.quota, p.emails, p.secrets, p.roles, p.memberOf, p.members}
}

func (in *session) apiPrincipal(r *request, name string, named bool) *response {
	dir := in.srv.dir
	bad := func() *response {
		in.log(evBadParameters, field{"details", "JSON deserialization failed"})
		return badParameters("JSON deserialization failed")
	}
	switch {
	case (!named || name == "deploy") && r.method == "POST":
		var set principalSet
		if err := json.Unmarshal(r.body, &set); err != nil || !slices.Contains(kinds, set.Type) {
			return bad()
		}
		id, e := dir.create(&principal{kind: set.Type, name: set.Name, description: set.Description, quota: set.Quota, secrets: set.Secrets,
			emails: set.Emails, roles: set.Roles, memberOf: set.MemberOf, members: set.Members, disabled: set.Disabled})
		if e != nil {
			return failed(*e)
		}
		if _, ok := in.srv.settings.get("report.domain"); set.Type == "domain" && !ok {
			in.srv.settings.set("report.domain", strings.ToLower(set.Name))
		}
		return dataOf(id)
	case !named && r.method == "GET":
		var only []string
		v := r.query.Get("types")
		if v == "" {
			v = r.query.Get("type")
		}
		for _, k := range strings.Split(v, ",") {
			if slices.Contains(kinds, k) {
				only = append(only, k)
			}
		}
		all := dir.list(only, r.query.Get("filter"))
		items := []shownPrincipal{}
		for _, p := range page(r, all) {
			items = append(items, shown(p))
		}
		return dataOf(struct {
			Items []shownPrincipal `json:"items"`
			Total int              `json:"total"`
		}{items, len(all)})
	}
	p := dir.byNameOrID(name)
	if p == nil {
		return failed(manageError{Error: "notFound", Item: name})
	}
	switch r.method {
	case "GET":
		return dataOf(shown(p))
	case "DELETE":
		dir.remove(p.id)
		return dataOf(nil)
	case "PATCH":
		var changes []struct {
			Action, Field string
			Value         json.RawMessage
		}
		if err := json.Unmarshal(r.body, &changes); err != nil {
			return bad()
		}
		for _, c := range changes {
			if !patch(p, c.Action, c.Field, c.Value) {
				return bad()
			}
		}
		if e := dir.replace(p); e != nil {
			return failed(*e)
		}
		return dataOf(nil)
	}
	in.log(evNotFound)
	return notFound()
}

// patch changes one field of a principal, and says whether it can.
func patch(p *principal, action, name string, raw json.RawMessage) bool {
	lists := map[string]*[]string{"secrets": &p.secrets, "emails": &p.emails, "roles": &p.roles, "memberOf": &p.memberOf, "members": &p.members, "disabledPermissions": &p.disabled}
	if list, ok := lists[name]; ok {
		var v some
		if json.Unmarshal(raw, &v) != nil {
			return false
		}
		switch action {
		case "set":
			*list = v
		case "addItem":
			*list = append(slices.Clone(*list), v...)
		case "removeItem":
			*list = slices.DeleteFunc(slices.Clone(*list), func(s string) bool { return slices.Contains(v, s) })
		default:
			return false
		}
		return true
	}
	if action != "set" {
		return false
	}
	switch name {
	case "name":
		return json.Unmarshal(raw, &p.name) == nil
	case "description":
		return json.Unmarshal(raw, &p.description) == nil
	case "quota":
		return json.Unmarshal(raw, &p.quota) == nil
	}
	return false
}
