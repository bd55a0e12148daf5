package script

import (
	"fmt"
	"strings"
)

// Expanded is the scenario's steps as they will run: fragments and loops
// written out, both arms of every if. It is what "explain" and "plan" show and
// what the plan's hash covers. Variables, captures and secrets are symbolic.
func (s *Scenario) Expanded() string {
	var b strings.Builder
	for i, p := range s.Phases {
		if i > 0 {
			b.WriteByte('\n')
		}
		if p.Title != "" {
			b.WriteString("# " + p.Title + "\n")
		}
		renderSteps(&b, p.Steps, "")
	}
	for _, name := range s.fileNames() {
		fmt.Fprintf(&b, "\n-- %s --\n%s", name, strings.ReplaceAll(s.Files[name].src, "\r\n", "\n"))
	}
	return b.String()
}

func (s *Scenario) fileNames() []string {
	var names []string
	for n := range s.Files {
		names = append(names, n)
	}
	sortStrings(names)
	return names
}

func renderSteps(b *strings.Builder, steps []Step, indent string) {
	for _, st := range steps {
		switch st := st.(type) {
		case *If:
			fmt.Fprintf(b, "%sif %s {\n", indent, strings.Join(st.Conds, ", "))
			renderSteps(b, st.Then, indent+"  ")
			if len(st.Else) > 0 {
				b.WriteString(indent + "} else {\n")
				renderSteps(b, st.Else, indent+"  ")
			}
			b.WriteString(indent + "}\n")
		case *Witness:
			fmt.Fprintf(b, "%s%s {\n", indent, st)
			for _, w := range st.Wants {
				fmt.Fprintf(b, "%s  %s\n", indent, w)
			}
			b.WriteString(indent + "}\n")
		default:
			fmt.Fprintf(b, "%s%s\n", indent, st)
		}
	}
}

func (o *Open) String() string {
	s := fmt.Sprintf("open %s %s %s", o.Name, o.Protocol, o.Target)
	if o.Endpoint != "" {
		s += "." + o.Endpoint
	}
	s += " from " + o.Vantage
	if !o.For.Empty() {
		s += " for " + o.For.src
	}
	if o.Shape != "" {
		s += " shape " + o.Shape
	}
	if o.TLS != "" {
		s += " tls " + o.TLS
	}
	if o.Announce != "" {
		s += " announce " + o.Announce
		if !o.Src.Empty() {
			s += " " + o.Src.src + " " + o.Dst.src
		}
	}
	if o.Refusable {
		s += " unless refused"
	}
	return s
}

func (s *Send) String() string { return s.Name + " -> " + s.Text.src }

func (r *Reply) String() string {
	s := r.Name
	if r.Must {
		s += " must"
	}
	if r.Within > 0 {
		s += " within " + r.Within.String()
	}
	return s + " " + r.Arrow() + " " + r.Pattern.src
}

// Arrow is how the reply's kind is written.
func (r *Reply) Arrow() string { return [...]string{"<-", "<~", "<!"}[r.Kind] }

func (c *Closed) String() string {
	if c.Within > 0 {
		return c.Name + " within " + c.Within.String() + " <x"
	}
	return c.Name + " <x"
}

func (u *Upgrade) String() string { return "upgrade " + u.Name }

func (c *Close) String() string {
	if c.Half {
		return "shut " + c.Name
	}
	return "close " + c.Name
}

func (s *Shape) String() string { return "shape " + s.Name + " " + s.Shape }

func (b *Barrier) String() string { return "barrier" }

func (i *If) String() string { return "if " + strings.Join(i.Conds, ", ") }

func (w *Witness) String() string {
	s := "witness " + w.Kind
	if w.User != "" {
		s += " " + w.User
	}
	for i, j := range w.Joins {
		word := " or "
		if i == 0 {
			word = " join "
		}
		s += word + j.Field + "=" + j.Value.src
	}
	if w.Within > 0 {
		s += " within " + w.Within.String()
	}
	return s
}

func (w Want) String() string {
	verb := "expect "
	if w.Forbid {
		verb = "forbid "
	}
	return verb + w.Field + "=" + w.Pattern.src
}
