package script

import (
	"slices"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/result"
)

// A Scenario is one parsed and checked scenario.
type Scenario struct {
	Header
	Phases []Phase
	Files  map[string]Template // what follows "-- name --", with references
	// Concerns names the kind of source that a requirement is about, where it
	// is about one kind alone.
	Concerns map[string]string
	Path     string // of the scenario's file
	Source   string // its text
}

// A Header is what stands above the first phase.
type Header struct {
	ID           string
	Claim        string       // one sentence that a manager understands
	Level        result.Level // from the requirement
	Requirements []string     // rows of the requirements catalogue
	Spec         string       // document, section and level, or the vendor's page
	Means        string       // what a failure means for the operator
	Needs        []string     // what the target must be declared to have
	Over         []string     // endpoints that the scenario runs over, one facet each
	Families     []string     // ip4, ip6
	Isolation    Isolation
	AloneAt      string   // the kind of source that it must be alone at; "" for every kind
	Witness      []string // log, message, capability, effect
	Hazards      []string // ban, flood, loop, restart
	Lines        map[string]int
}

// RequirementsOf lists the rows that the scenario judges at a source of a kind.
func (s *Scenario) RequirementsOf(kind string) []string {
	out := make([]string, 0, len(s.Requirements))
	for _, id := range s.Requirements {
		if of := s.Concerns[id]; of == "" || of == kind {
			out = append(out, id)
		}
	}
	return out
}

// Isolation is what a scenario must not share while it runs.
type Isolation string

// The isolations. Account: the accounts it uses are its own. Address: nothing
// else acts from the addresses that it acts from, against the same source.
// Alone: nothing else runs against the same source.
const (
	OwnAccount Isolation = "account"
	OwnAddress Isolation = "address"
	Alone      Isolation = "alone"
)

// IsAlone says whether nothing else may run against a source of a kind while
// the scenario does.
func (s *Scenario) IsAlone(kind string) bool {
	return s.Isolation == Alone && (s.AloneAt == "" || s.AloneAt == kind)
}

// Vantages lists whom the scenario acts as against a source: its own vantages,
// and the proxy where it acts through it.
func (s *Scenario) Vantages() []string {
	var out []string
	s.Walk(func(st Step) {
		if o, ok := st.(*Open); ok {
			out = append(out, o.Vantage)
			if o.Target == "proxy" {
				out = append(out, "proxy")
			}
		}
	})
	slices.Sort(out)
	return slices.Compact(out)
}

// A Phase is a titled group of steps.
type Phase struct {
	Title string
	Pos   Pos
	Steps []Step
}

// A Step is one thing that a scenario does or wants.
type Step interface{ At() Pos }

// Open makes a connection.
type Open struct {
	Pos
	Name     string
	Protocol string
	Target   string // "source" or "proxy": whose endpoint
	Endpoint string // the endpoint's name; "" for the facet's own
	Vantage  string
	TLS      string // "none", "implicit" or "": as the endpoint is declared
	// For is the client that the connection is made for: where the source is
	// told of clients by PROXY header, one of version 2 comes first.
	For      Template
	Shape    string // how it writes from the first octet on, or ""
	Announce string // a PROXY header's form, or ""
	Src, Dst Template
	// Refusable says that the source may turn this connection away at any
	// step: then the claim holds, and the scenario ends.
	Refusable bool
}

// Send sends a line, or the octets of a file.
type Send struct {
	Pos
	Name string
	Text Template
	Raw  bool // nothing is added: the text is only ${octets FILE} or ${data FILE}
}

// ReplyKind is which part of a reply unit a [Reply] is about.
type ReplyKind uint8

// The kinds of replies.
const (
	Status ReplyKind = iota // <- the line that decides; reads the unit
	Some                    // <~ one of the lines of the unit that the next <- reads
	None                    // <! none of them
)

// Reply wants something of a reply unit.
type Reply struct {
	Pos
	Name    string
	Kind    ReplyKind
	Pattern Pattern
	Must    bool // an assertion, and not only a condition for going on
	Within  time.Duration
}

// Closed wants the peer to close.
type Closed struct {
	Pos
	Name   string
	Within time.Duration
}

// Upgrade does the TLS handshake on a connection in clear text.
type Upgrade struct {
	Pos
	Name string
}

// Close closes a connection; Half keeps reading.
type Close struct {
	Pos
	Name string
	Half bool
}

// Shape changes how a connection's writes reach the network.
type Shape struct {
	Pos
	Name  string
	Shape string
}

// Witness wants a record of the source, or a delivered message.
type Witness struct {
	Pos
	Kind   string // login, failed-login, transaction, rejection, message
	User   string // message: whose mailbox
	Joins  []Join // the first is primary, the others are fallbacks
	Wants  []Want
	Within time.Duration
}

// A Join is how a record is known to be ours.
type Join struct {
	Field string
	Value Template
	Col   int
}

// A Want is one line of a witness block.
type Want struct {
	Pos
	Forbid  bool
	Field   string
	Pattern Pattern
}

// Barrier makes the source write a line of ours to its log and waits for it.
type Barrier struct {
	Pos
}

// If chooses by what the target was declared to be, or by the facet.
type If struct {
	Pos
	Conds []string // kind, kind@version, ip4, ip6, starttls, implicit, endpoint names, profiles: any of them
	Then  []Step
	Else  []Step
}

// At is the step's place.
func (p Pos) At() Pos { return p }

// An Assertion is one line of a scenario that must be seen to fail somewhere.
type Assertion struct {
	Pos  Pos
	Text string
}

// Key names an assertion within its scenario: its place, and the place where
// its fragment was used.
func (a Assertion) Key() string { return a.Pos.String() }

// Assertions lists the scenario's assertions: expect, forbid, <!, <x, and the
// replies marked must. Lines that a loop repeats are one.
func (s *Scenario) Assertions() []Assertion { return s.AssertionsAt() }

// A Release is a kind of source and its version.
type Release struct{ Kind, Version string }

// AssertionsAt lists those that can be met at sources of the given releases;
// all of them where none is given.
func (s *Scenario) AssertionsAt(releases ...Release) []Assertion {
	if len(releases) > 0 && !s.meant(releases) {
		return nil
	}
	var as []Assertion
	seen := make(map[string]bool)
	add := func(pos Pos, text string) {
		a := Assertion{pos, text}
		if !seen[a.Key()] {
			seen[a.Key()] = true
			as = append(as, a)
		}
	}
	s.reach(releases, func(st Step) {
		switch st := st.(type) {
		case *Reply:
			switch {
			case st.Kind == None:
				add(st.Pos, st.Name+" <! "+st.Pattern.src)
			case st.Must:
				arrow := " must <- "
				if st.Kind == Some {
					arrow = " must <~ "
				}
				add(st.Pos, st.Name+arrow+st.Pattern.src)
			}
		case *Closed:
			add(st.Pos, st.Name+" <x")
		case *Witness:
			for _, w := range st.Wants {
				verb := "expect "
				if w.Forbid {
					verb = "forbid "
				}
				add(w.Pos, verb+w.Field+"="+w.Pattern.src)
			}
		}
	})
	return as
}

// meant says whether the scenario is about one of the releases.
func (s *Scenario) meant(releases []Release) bool {
	named := false
	for _, n := range s.Needs {
		kind, what, _ := strings.Cut(n, "@")
		if !contains(kinds, kind) {
			continue
		}
		named = true
		for _, r := range releases {
			if r.Kind == kind && (what == "" || what == r.Version || contains(profiles, what)) {
				return true
			}
		}
	}
	return !named
}

// reach calls f for every step that some source of the releases may run.
func (s *Scenario) reach(releases []Release, f func(Step)) {
	var visit func([]Step)
	visit = func(steps []Step) {
		for _, st := range steps {
			f(st)
			i, ok := st.(*If)
			if !ok {
				continue
			}
			then, other := len(releases) == 0, len(releases) == 0
			for _, r := range releases {
				yes, maybe := i.at(r)
				then, other = then || yes || maybe, other || !yes
			}
			if then {
				visit(i.Then)
			}
			if other {
				visit(i.Else)
			}
		}
	}
	for _, p := range s.Phases {
		visit(p.Steps)
	}
}

// at says whether a condition holds at a release whatever the facet and the
// profile, or may hold for some.
func (i *If) at(r Release) (yes, maybe bool) {
	for _, c := range i.Conds {
		kind, what, _ := strings.Cut(c, "@")
		switch {
		case !contains(kinds, kind):
			maybe = true
		case kind != r.Kind:
		case what == "" || what == r.Version:
			yes = true
		case contains(profiles, what):
			maybe = true
		}
	}
	return yes, maybe
}

// Walk calls f for every step, both arms of every if included.
func (s *Scenario) Walk(f func(Step)) {
	for _, p := range s.Phases {
		walk(p.Steps, f)
	}
}

func walk(steps []Step, f func(Step)) {
	for _, st := range steps {
		f(st)
		if i, ok := st.(*If); ok {
			walk(i.Then, f)
			walk(i.Else, f)
		}
	}
}

// Driver is how the scenario reaches its source: through the public proxy, as
// the proxy, or directly.
func (s *Scenario) Driver() string {
	driver := "direct"
	s.Walk(func(st Step) {
		o, ok := st.(*Open)
		switch {
		case !ok:
		case o.Target == "proxy":
			driver = "through"
		case o.Vantage == "proxy" && driver == "direct":
			driver = "as-proxy"
		}
	})
	return driver
}

// Users lists the accounts that the scenario refers to, in order.
func (s *Scenario) Users() []string {
	var users []string
	seen := make(map[string]bool)
	add := func(u string) {
		if u != "" && !seen[u] {
			seen[u] = true
			users = append(users, u)
		}
	}
	s.refs(func(r Ref) {
		if u, ok := r.user(); ok {
			add(u)
		}
	})
	s.Walk(func(st Step) {
		if w, ok := st.(*Witness); ok && w.Kind == "message" {
			add(w.User)
		}
	})
	return users
}

// refs calls f for every reference of the scenario.
func (s *Scenario) refs(f func(Ref)) {
	each := func(rs []Ref) {
		for _, r := range rs {
			f(r)
		}
	}
	s.Walk(func(st Step) {
		switch st := st.(type) {
		case *Open:
			each(st.For.Refs())
			each(st.Src.Refs())
			each(st.Dst.Refs())
		case *Act:
			each(st.Name.Refs())
			each(st.Value.Refs())
		case *Send:
			each(st.Text.Refs())
		case *Reply:
			each(st.Pattern.Refs())
		case *Witness:
			for _, j := range st.Joins {
				each(j.Value.Refs())
			}
			for _, w := range st.Wants {
				each(w.Pattern.Refs())
			}
		}
	})
	for _, t := range s.Files {
		each(t.Refs())
	}
}

// A ReplyPlace is a step at which a wire defect can be injected.
type ReplyPlace struct {
	Pos   Pos
	Close bool // the step wants the peer to close
}

// ReplyPlaces lists the places of "<-" and "<x" that run at a STARTTLS or
// clear-text facet of IPv4 at a source of that kind, version and profile.
// Lines that a loop repeats are one place.
func (s *Scenario) ReplyPlaces(kind, version, profile string) []ReplyPlace {
	var out []ReplyPlace
	seen := make(map[string]bool)
	var visit func([]Step)
	visit = func(steps []Step) {
		for _, st := range steps {
			place := ReplyPlace{Pos: st.At()}
			switch st := st.(type) {
			case *Reply:
				if st.Kind != Status {
					continue
				}
			case *Closed:
				place.Close = true
			case *If:
				if s.holdsFor(st.Conds, kind, version, profile) {
					visit(st.Then)
				} else {
					visit(st.Else)
				}
				continue
			default:
				continue
			}
			if key := place.Pos.String(); !seen[key] {
				seen[key] = true
				out = append(out, place)
			}
		}
	}
	for _, p := range s.Phases {
		visit(p.Steps)
	}
	return out
}

// holdsFor says whether a condition holds at the facet that [Scenario.ReplyPlaces] is about.
func (s *Scenario) holdsFor(conds []string, kind, version, profile string) bool {
	starttls := len(s.Over) == 0
	endpoint := ""
	for _, e := range s.Over {
		switch e {
		case "imap", "pop3", "sieve", "smtp", "submission":
			if !starttls {
				starttls, endpoint = true, e
			}
		}
	}
	for _, c := range conds {
		if c == kind || c == kind+"@"+version || c == kind+"@"+profile || c == profile || c == "ip4" || c == "starttls" && starttls || c == endpoint && c != "" {
			return true
		}
	}
	return false
}
