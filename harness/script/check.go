package script

import (
	"slices"
	"strings"
)

func sortStrings(s []string) { slices.Sort(s) }

// connState is what the checker knows of a connection at a step.
type connState struct {
	open     *Open
	pending  []Pos // <~ and <! that still wait for their <-
	replied  bool
	closed   bool
	lastSent string
}

// check looks for what parses and still cannot be meant.
func (p *parser) check(s *Scenario) {
	c := &checker{parser: p, s: s, vars: map[string]bool{}, conns: map[string]*connState{}, replied: map[string]bool{}, usedFiles: map[string]bool{}}
	if group, _, _ := strings.Cut(s.ID, "."); strings.Contains(s.Path, "/") {
		dir := s.Path[:strings.LastIndexByte(s.Path, '/')]
		if i := strings.LastIndexByte(dir, '/'); i >= 0 {
			dir = dir[i+1:]
		}
		if dir != group {
			p.add(Pos{File: s.Path, Line: s.Lines["id"]}, 0, "the id begins with its folder's name", "the scenario %q stands in the folder %q", s.ID, dir)
		}
	}
	c.facets()
	for _, ph := range s.Phases {
		if ph.Title == "" && len(ph.Steps) > 0 {
			p.add(ph.Steps[0].At(), 0, `begin with "# what this part does"`, "steps stand before the first phase")
		}
		c.steps(ph.Steps)
	}
	for name, st := range c.conns {
		c.flush(name, st)
	}
	c.closedNeedsPositive()
	for name := range s.Files {
		if !c.usedFiles[name] {
			p.add(Pos{File: s.Path, Line: 1}, 0, "", "the file %q is never sent", name)
		}
	}
	if len(s.Assertions()) == 0 {
		p.add(Pos{File: s.Path, Line: 1}, 0, `mark a reply with "must", or add a witness`, "nothing in the scenario can fail its claim")
	}
	c.header()
}

type checker struct {
	*parser
	s         *Scenario
	vars      map[string]bool // captured so far
	conns     map[string]*connState
	replied   map[string]bool // endpoints that answered a <-
	closed    []*Closed
	closedOn  []string
	usedFiles map[string]bool
}

func (c *checker) facets() {
	proto := ""
	for _, e := range c.s.Over {
		if q := endpointProtocol(e); proto == "" {
			proto = q
		} else if q != proto {
			c.add(Pos{File: c.s.Path, Line: c.s.Lines["over"]}, 0, "write one scenario for each protocol", "the endpoints do not all speak %s", proto)
			return
		}
	}
	c.s.Walk(func(st Step) {
		o, ok := st.(*Open)
		if !ok || o.Endpoint != "" {
			return
		}
		if len(c.s.Over) == 0 {
			c.add(o.Pos, 0, `name an endpoint ("source.imap"), or add "over:" to the header`, "the scenario has no facet's endpoint")
		} else if o.Protocol != proto {
			c.add(o.Pos, 0, "open it as "+proto, "the facet's endpoints do not speak %s", o.Protocol)
		}
	})
}

func (c *checker) header() {
	has := map[string]bool{}
	c.s.Walk(func(st Step) {
		switch st := st.(type) {
		case *Witness:
			if st.Kind == "message" {
				has["message"] = true
			} else {
				has["log"] = true
			}
		case *Reply:
			if st.Must && st.Kind == Some || st.Kind == None {
				has["capability"] = true
			}
			if st.Must && st.Kind == Status {
				has["effect"] = true
			}
		case *Closed:
			has["effect"] = true
		}
	})
	pos := Pos{File: c.s.Path, Line: c.s.Lines["witness"]}
	for _, w := range c.s.Witness {
		if !has[w] {
			c.add(pos, 0, "", "the header names the witness %q, and no step has it", w)
		}
	}
	for _, w := range []string{"log", "message"} {
		if has[w] && !contains(c.s.Witness, w) {
			c.add(pos, 0, "name it in the header", "a step has the witness %q", w)
		}
	}
}

func (c *checker) steps(steps []Step) {
	for _, st := range steps {
		c.step(st)
	}
}

func (c *checker) step(st Step) {
	pos := st.At()
	switch st := st.(type) {
	case *Open:
		if old := c.conns[st.Name]; old != nil && !old.closed {
			c.add(pos, 0, "close it first, or give the new one another name", "the connection %s is open already", st.Name)
		}
		c.templ(pos, st.For, false)
		c.templ(pos, st.Src, false)
		c.templ(pos, st.Dst, false)
		c.conns[st.Name] = &connState{open: st}
		c.vars["local "+st.Name] = true
	case *Send:
		if cs := c.conn(pos, st.Name); cs != nil {
			c.flush(st.Name, cs)
			cs.lastSent = st.Text.src
			c.verb(st, cs)
		}
		c.templ(pos, st.Text, true)
	case *Reply:
		cs := c.conn(pos, st.Name)
		c.pattern(pos, st.Pattern)
		if cs == nil {
			return
		}
		if st.Kind == Status {
			cs.pending, cs.replied = nil, true
			c.replied[c.endpoint(cs.open)] = true
		} else {
			cs.pending = append(cs.pending, pos)
		}
		for _, name := range st.Pattern.Captures() {
			c.vars[name] = true
		}
	case *Closed:
		if cs := c.conn(pos, st.Name); cs != nil {
			c.flush(st.Name, cs)
			c.closed = append(c.closed, st)
			c.closedOn = append(c.closedOn, c.endpoint(cs.open))
			cs.closed = true
		}
	case *Upgrade:
		if cs := c.conn(pos, st.Name); cs != nil {
			c.flush(st.Name, cs)
		}
	case *Shape:
		c.conn(pos, st.Name)
	case *Close:
		if cs := c.conn(pos, st.Name); cs != nil {
			c.flush(st.Name, cs)
			cs.closed = !st.Half
		}
	case *Act:
		c.checkAct(st)
	case *Witness:
		c.witness(st)
	case *If:
		before := c.snapshot()
		c.steps(st.Then)
		after := c.snapshot()
		c.conns = before
		c.steps(st.Else)
		// What either arm opened or closed is so afterwards.
		for n, cs := range after {
			if c.conns[n] == nil {
				c.conns[n] = cs
			}
			c.conns[n].closed = c.conns[n].closed && cs.closed
		}
	}
}

func (c *checker) snapshot() map[string]*connState {
	m := make(map[string]*connState, len(c.conns))
	for n, cs := range c.conns {
		dup := *cs
		m[n] = &dup
	}
	return m
}

func (c *checker) endpoint(o *Open) string {
	e := o.Endpoint
	if e == "" {
		e = "*"
	}
	return o.Target + "." + e + " " + o.Protocol
}

func (c *checker) conn(pos Pos, name string) *connState {
	cs := c.conns[name]
	switch {
	case cs == nil:
		var open []string
		for n := range c.conns {
			open = append(open, n)
		}
		sortStrings(open)
		want := "open it first"
		if len(open) > 0 {
			want = "open are: " + strings.Join(open, " ")
		}
		c.add(pos, 0, want, "there is no connection %s", name)
	case cs.closed:
		c.add(pos, 0, "open another", "the connection %s was closed before", name)
		return nil
	}
	return cs
}

// flush reports <~ and <! that no <- follows.
func (c *checker) flush(name string, cs *connState) {
	for _, pos := range cs.pending {
		c.add(pos, 0, `"<~" and "<!" stand before the "<-" that reads the reply`, "no %q follows on %s", "<-", name)
	}
	cs.pending = nil
}

func (c *checker) closedNeedsPositive() {
	for i, st := range c.closed {
		if !c.replied[c.closedOn[i]] {
			c.add(st.Pos, 0, `add a connection to the same port that gets a reply ("<-")`, `"<x" has no positive control`)
		}
	}
}

func (c *checker) witness(w *Witness) {
	for _, j := range w.Joins {
		c.templ(w.Pos, j.Value, false)
		if j.Field == "peer" {
			name := j.Value.src
			if c.conns[name] == nil {
				c.add(w.Pos, j.Col, "name a connection: peer=A", "there is no connection %q", name)
			}
		}
	}
	expects := 0
	for _, want := range w.Wants {
		c.pattern(want.Pos, want.Pattern)
		for _, name := range want.Pattern.Captures() {
			c.vars[name] = true
		}
		if !want.Forbid {
			expects++
		}
		// The token is never the value under test: a record that was joined by
		// a value says nothing about that value.
		for _, j := range w.Joins {
			if len(w.Joins) == 1 && !want.Forbid && want.Field == j.Field && want.Pattern.src == j.Value.src {
				c.add(want.Pos, 0, "join by something else, or add a fallback", "the record is joined by the very value that is expected (%s)", j.Field)
			}
		}
	}
	if expects == 0 {
		c.add(w.Pos, 0, `add an "expect": absence is judged from a record that is there`, "the witness expects nothing")
	}
}

func (c *checker) templ(pos Pos, t Template, sends bool) {
	for _, part := range t.parts {
		if part.ref != nil {
			c.ref(pos, *part.ref, part.col, sends)
		}
	}
}

func (c *checker) pattern(pos Pos, p Pattern) {
	for _, a := range concatTemplates(p.alts, p.open) {
		for _, part := range a.parts {
			switch {
			case part.ref != nil:
				c.ref(pos, *part.ref, part.col, false)
			case part.wild != nil && part.wild.equal && !c.vars[part.wild.name]:
				c.add(pos, part.col, "capture it before, as {"+part.wild.name+"}", "nothing was captured as %q", part.wild.name)
			}
		}
	}
}

// ref checks that a reference can have a value where it stands.
func (c *checker) ref(pos Pos, r Ref, col int, sends bool) {
	if r.secret() && !sends {
		c.add(pos, col, "secrets can only be sent", "%s cannot stand here", r)
		return
	}
	if f, ok := r.file(); ok {
		c.usedFiles[f] = true
		t, ok := c.s.Files[f]
		if !ok {
			c.add(pos, col, `add it below, after a line "-- `+f+` --"`, "there is no file %q", f)
			return
		}
		for _, inner := range t.Refs() {
			if _, nested := inner.file(); nested && inner.Name != "size" {
				c.add(pos, col, "", "the file %q refers to another file", f)
			} else {
				c.ref(pos, inner, col, sends)
			}
		}
		return
	}
	if c.vars[r.Name] && len(r.Args) == 0 {
		return
	}
	want := func(args int, form string) {
		if len(r.Args) != args {
			c.add(pos, col, "write "+form, "%s has not the right arguments", r)
		}
	}
	switch r.Name {
	case "local", "local-port":
		want(1, "${"+r.Name+" A}")
		if len(r.Args) == 1 && !c.vars["local "+r.Args[0]] {
			c.add(pos, col, "open it first", "there is no connection %s", r.Args[0])
		}
		return
	case "basic", "basic-wrong", "sub-address", "sasl.plain", "sasl.wrong", "sasl.user", "sasl.secret":
		want(1, "${"+r.Name+" alice}")
		return
	case "xclient", "ip4", "ip6":
		want(1, "${"+r.Name+" client}")
		if len(r.Args) == 1 && !isAddressName(r.Args[0]) {
			c.add(pos, col, nearest(r.Args[0], addressNames), "%q is no address", r.Args[0])
		}
		return
	case "size", "octets", "data", "sha256":
		want(1, "${"+r.Name+" FILE}")
		return
	case "filler":
		want(1, "${filler 1000}")
		if len(r.Args) == 1 {
			if _, err := r.Filler(); err != nil {
				c.add(pos, col, "write ${filler 1000}", "%s", err)
			}
		}
		return
	}
	if len(r.Args) > 0 {
		c.add(pos, col, "", "%s takes no arguments", r)
		return
	}
	var names []string
	for _, v := range Variables() {
		if prefix, ok := strings.CutSuffix(v.Name, "*"); ok {
			if strings.HasPrefix(r.Name, prefix) && len(r.Name) > len(prefix) {
				return
			}
			continue
		}
		if v.Name == r.Name {
			return
		}
		names = append(names, v.Name)
	}
	for v := range c.vars {
		if !strings.Contains(v, " ") {
			names = append(names, v)
		}
	}
	sortStrings(names)
	c.add(pos, col, nearest(r.Name, names), "there is no variable %q", r.Name)
}

var addressNames = []string{"client", "proxy", "relay", "neighbour", "stranger", "forged", "public"}

func isAddressName(s string) bool {
	return contains(addressNames, s) || strings.HasPrefix(s, "client.")
}

// verb refuses commands outside the closed vocabulary.
func (c *checker) verb(st *Send, cs *connState) {
	if st.Raw || cs.open == nil {
		return
	}
	v := verbOf(cs.open.Protocol, st.Text.src)
	if v == "" || strings.HasPrefix(v, "${") {
		return
	}
	if _, ok := verbs(cs.open.Protocol)[v]; !ok {
		// Inside an AUTH dialogue a bare response is no command.
		if isAuthResponse(st.Text) {
			return
		}
		c.add(st.Pos, 0, "the verbs of each protocol are listed in docs/scenarios.md", "%q is no verb of %s that a scenario may send", v, cs.open.Protocol)
	}
}

func isAuthResponse(t Template) bool {
	for _, p := range t.parts {
		if p.ref == nil || !strings.HasPrefix(p.ref.Name, "sasl.") {
			return false
		}
	}
	return len(t.parts) > 0
}
