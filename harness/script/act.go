package script

import (
	"slices"
	"strings"
)

// An Act changes the source while it runs, as the operator who follows a guide
// would. What an execution has changed it puts back at its end.
//
//	source insert NAME = VALUE   stores a setting; stored is not in force
//	source clear PREFIX          removes every setting that begins so
//	source guide                 stores what the guide asks for
//	source unguide               removes it again
//	source reload [rejects]      brings into force what can be without a restart
//	source restart               ends every session and starts the source again
//	source unblock               removes every ban the source has come to
type Act struct {
	Pos
	Verb  string
	Name  Template // insert, clear
	Value Template // insert
	// Rejects says that the reload must be rejected.
	Rejects bool
}

func (a *Act) String() string {
	s := "source " + a.Verb
	if !a.Name.Empty() {
		s += " " + a.Name.src
	}
	if a.Verb == "insert" {
		s += " = " + a.Value.src
	}
	if a.Rejects {
		s += " rejects"
	}
	return s
}

// actVerbs are the verbs of [Act]. None is changed after it is made.
var actVerbs = []string{"insert", "clear", "guide", "unguide", "reload", "restart", "unblock"}

// act parses what follows "source".
func (p *parser) act(pos Pos, rest string, col int) Step {
	verb, args, _ := strings.Cut(rest, " ")
	a := &Act{Pos: pos, Verb: verb}
	if !contains(actVerbs, verb) {
		p.add(pos, col, nearest(verb, actVerbs), "%q is nothing that can be done to a source", verb)
		return nil
	}
	switch verb {
	case "insert":
		name, value, ok := strings.Cut(args, " = ")
		if !ok {
			// An empty value.
			name, ok = strings.CutSuffix(args, " =")
		}
		if !ok || name == "" || strings.Contains(name, " ") && !strings.Contains(name, "${") {
			p.add(pos, col, "write: source insert NAME = VALUE", "insert is not complete")
			return nil
		}
		a.Name = p.template(pos, name, col)
		if value != "" {
			a.Value = p.template(pos, value, col)
		}
	case "clear":
		if args == "" {
			p.add(pos, col, "write: source clear PREFIX", "clear needs the beginning of the names that it removes")
			return nil
		}
		a.Name = p.template(pos, args, col)
	case "reload":
		if a.Rejects = args == "rejects"; args != "" && !a.Rejects {
			p.add(pos, col, `write "source reload" or "source reload rejects"`, "unexpected %q", args)
		}
	default:
		if args != "" {
			p.add(pos, col, "", "%s takes nothing", verb)
		}
	}
	return a
}

// ofOneAddress says whether an act touches only the bans of some address: it
// disturbs nobody else.
func (a *Act) ofOneAddress() bool {
	switch a.Verb {
	case "insert", "clear":
		return strings.HasPrefix(a.Name.src, "server.blocked-ip.${client.")
	case "reload":
		return true
	}
	return false
}

// checkAct looks for acts that would disturb what runs beside them.
func (c *checker) checkAct(a *Act) {
	c.templ(a.Pos, a.Name, false)
	c.templ(a.Pos, a.Value, true) // what is stored may be a password
	if (c.s.Isolation != Alone || c.s.AloneAt != "") && !a.ofOneAddress() {
		c.add(a.Pos, 0, `add "isolation: alone" to the header`, "%s disturbs what runs beside it", a)
	}
	if a.Verb == "restart" && !contains(c.s.Hazards, "restart") {
		c.add(a.Pos, 0, `add "hazards: restart" to the header`, "a restart must be named")
	}
	if slices.Contains(c.s.Needs, "dovecot-postfix") {
		c.add(a.Pos, 0, "leave dovecot-postfix out of needs", "no settings of a dovecot-postfix source can be changed while it runs")
	}
}
