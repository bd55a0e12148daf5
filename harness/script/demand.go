package script

// A Demand is what one execution of a scenario asks of a target. Where an if
// has two arms the larger counts.
type Demand struct {
	Connections int
	SignIns     int            // with right credentials
	Failing     map[string]int // sign-ins that are to fail, by the account they are for
	Messages    int            // that are sent whole
	Mailboxes   int            // that are read back: a connection and a sign-in each
}

// Refs lists every reference of the scenario, in the order of its steps.
func (s *Scenario) Refs() []Ref {
	var rs []Ref
	s.refs(func(r Ref) { rs = append(rs, r) })
	return rs
}

// Demand counts what the scenario asks for.
func (s *Scenario) Demand() Demand {
	c := &counter{protocol: map[string]string{}}
	d := Demand{Failing: map[string]int{}}
	for _, p := range s.Phases {
		d = d.plus(c.steps(p.Steps))
	}
	return d
}

type counter struct {
	protocol map[string]string // of each connection
	named    map[string]string
}

func (c *counter) steps(steps []Step) Demand {
	d := Demand{Failing: map[string]int{}}
	for _, st := range steps {
		switch st := st.(type) {
		case *Open:
			c.protocol[st.Name] = st.Protocol
			d.Connections++
		case *Send:
			c.send(st, &d)
		case *Witness:
			if st.Kind == "message" {
				d.Mailboxes++
			}
		case *If:
			d = d.plus(larger(c.steps(st.Then), c.steps(st.Else)))
		}
	}
	return d
}

// send counts what one line is: a sign-in is counted where the credentials go.
func (c *counter) send(st *Send, d *Demand) {
	if st.Raw {
		return
	}
	for _, r := range st.Text.Refs() {
		switch r.Name {
		case "sasl.wrong":
			d.Failing[r.Args[0]]++
		case "wrong":
			d.Failing[c.named[st.Name]]++
		case "sasl.plain", "sasl.secret":
			d.SignIns++
		default:
			if u, ok := r.user(); ok {
				if r.secret() {
					d.SignIns++
				} else {
					if c.named == nil {
						c.named = map[string]string{}
					}
					c.named[st.Name] = u
				}
			}
		}
	}
	switch verbOf(c.protocol[st.Name], st.Text.src) {
	case "DATA", "BDAT":
		if c.protocol[st.Name] == "smtp" {
			d.Messages++
		}
	}
}

func (d Demand) plus(o Demand) Demand {
	sum := Demand{d.Connections + o.Connections, d.SignIns + o.SignIns, map[string]int{}, d.Messages + o.Messages, d.Mailboxes + o.Mailboxes}
	for _, m := range []map[string]int{d.Failing, o.Failing} {
		for k, n := range m {
			sum.Failing[k] += n
		}
	}
	return sum
}

func larger(a, b Demand) Demand {
	max := Demand{max(a.Connections, b.Connections), max(a.SignIns, b.SignIns), map[string]int{}, max(a.Messages, b.Messages), max(a.Mailboxes, b.Mailboxes)}
	for _, m := range []map[string]int{a.Failing, b.Failing} {
		for k, n := range m {
			if n > max.Failing[k] {
				max.Failing[k] = n
			}
		}
	}
	return max
}

// WrongSignIns is how many sign-ins of the scenario are to fail.
func (d Demand) WrongSignIns() int {
	n := 0
	for _, k := range d.Failing {
		n += k
	}
	return n
}
