package script

import (
	"fmt"
	"strings"
)

// Risk is what a scenario could do to a server, computed from its verbs.
type Risk uint8

// The risks.
const (
	R0 Risk = iota // connects, greets, announces
	R1             // signs in
	R2             // reads mailbox data
	R3             // MAIL and RCPT, but no DATA
	R4             // delivers a marked message
	R5             // changes mailboxes, filters or settings
)

// String is "R0" to "R5".
func (r Risk) String() string { return fmt.Sprintf("R%d", uint8(r)) }

// Says is the risk in words.
func (r Risk) Says() string {
	return [...]string{"connects and greets", "signs in", "reads mailbox data",
		"names senders and recipients but sends no message", "delivers a marked message",
		"changes mailboxes, filters or settings"}[r]
}

// ParseRisk reads "R0" to "R5".
func ParseRisk(s string) (Risk, error) {
	if len(s) == 2 && (s[0] == 'R' || s[0] == 'r') && s[1] >= '0' && s[1] <= '5' {
		return Risk(s[1] - '0'), nil
	}
	return 0, fmt.Errorf("%q is no risk: R0 to R5", s)
}

// verbs lists the commands of a protocol that a scenario may send, with the
// risk of each.
func verbs(protocol string) map[string]Risk {
	switch protocol {
	case "imap":
		return imapVerbs
	case "pop3":
		return pop3Verbs
	case "managesieve":
		return sieveVerbs
	case "smtp":
		return smtpVerbs
	case "http":
		return httpVerbs
	}
	return nil
}

// The verbs of RFC 3501 and 2971, RFC 1939, 2449 and 5034, RFC 5804, RFC 5321,
// 3030 and 4954, and XCLIENT. None of them is changed after it is made.
var (
	imapVerbs = map[string]Risk{
		"CAPABILITY": R0, "NOOP": R0, "LOGOUT": R0, "ID": R0, "STARTTLS": R0,
		"LOGIN": R1, "AUTHENTICATE": R1, "ENABLE": R1,
		"SELECT": R2, "EXAMINE": R2, "LIST": R2, "LSUB": R2, "STATUS": R2, "FETCH": R2, "SEARCH": R2, "UID": R5, "IDLE": R2, "DONE": R2, "NAMESPACE": R2,
		"APPEND": R5, "STORE": R5, "EXPUNGE": R5, "CREATE": R5, "DELETE": R5, "RENAME": R5, "COPY": R5, "MOVE": R5, "SUBSCRIBE": R5, "UNSUBSCRIBE": R5, "CLOSE": R5,
	}
	pop3Verbs = map[string]Risk{
		"CAPA": R0, "NOOP": R0, "QUIT": R0, "STLS": R0, "XCLIENT": R0,
		"AUTH": R1, "USER": R1, "PASS": R1,
		"STAT": R2, "LIST": R2, "RETR": R2, "TOP": R2, "UIDL": R2, "RSET": R2,
		"DELE": R5,
	}
	sieveVerbs = map[string]Risk{
		"CAPABILITY": R0, "NOOP": R0, "LOGOUT": R0, "STARTTLS": R0, "XCLIENT": R0,
		"AUTHENTICATE": R1,
		"LISTSCRIPTS":  R2, "GETSCRIPT": R2, "HAVESPACE": R2,
		"PUTSCRIPT": R5, "SETACTIVE": R5, "DELETESCRIPT": R5, "RENAMESCRIPT": R5,
	}
	smtpVerbs = map[string]Risk{
		"EHLO": R0, "HELO": R0, "NOOP": R0, "RSET": R0, "QUIT": R0, "STARTTLS": R0, "XCLIENT": R0, "HELP": R0,
		"AUTH": R1,
		"MAIL": R3, "RCPT": R3, "VRFY": R3,
		"DATA": R4, "BDAT": R4,
	}
	httpVerbs = map[string]Risk{
		"GET": R0, "HEAD": R0, "OPTIONS": R0, "PROPFIND": R2, "POST": R2,
	}
)

// verbOf is the command word of a line, in upper case.
func verbOf(protocol, line string) string {
	words := strings.Fields(line)
	if protocol == "imap" {
		if len(words) < 2 {
			return ""
		}
		words = words[1:]
	}
	if len(words) == 0 {
		return ""
	}
	return strings.ToUpper(words[0])
}

// Risk is the highest risk among the scenario's steps.
func (s *Scenario) Risk() Risk {
	protocol := map[string]string{}
	r := R0
	s.Walk(func(st Step) {
		switch st := st.(type) {
		case *Act:
			r = R5
		case *Open:
			protocol[st.Name] = st.Protocol
		case *Send:
			if st.Raw {
				// Mail: its DATA or BDAT was counted. HTTP: the file is a request.
				if protocol[st.Name] == "http" {
					r = max(r, s.requestRisk(st))
				}
				return
			}
			r = max(r, verbs(protocol[st.Name])[verbOf(protocol[st.Name], st.Text.src)])
		}
	})
	return r
}

// requestRisk is the risk of a request that stands in a file: that of its
// method, and at least R1 where it carries credentials.
func (s *Scenario) requestRisk(st *Send) Risk {
	name, ok := "", false
	for _, ref := range st.Text.Refs() {
		name, ok = ref.file()
	}
	if !ok {
		return R0
	}
	t := s.Files[name]
	method, _, _ := strings.Cut(t.src, " ")
	r := httpVerbs[method]
	for _, ref := range t.Refs() {
		if ref.secret() {
			r = max(r, R1)
		}
	}
	return r
}

// Blame is what a scenario could make the target hold against one vantage.
type Blame struct {
	FailedSignIns  int // logins with a wrong password
	ProtocolErrors int // commands that are expected to be refused
	BadRecipients  int // recipients that are expected to be refused
	Peak           int // connections open at the same time
}

// Zero says that there is nothing to hold against the vantage but connections.
func (b Blame) Zero() bool {
	return b.FailedSignIns == 0 && b.ProtocolErrors == 0 && b.BadRecipients == 0
}

// Add sums blame; peaks of different scenarios may coincide.
func (b Blame) Add(o Blame) Blame {
	return Blame{b.FailedSignIns + o.FailedSignIns, b.ProtocolErrors + o.ProtocolErrors, b.BadRecipients + o.BadRecipients, b.Peak + o.Peak}
}

// Blame computes the scenario's blame by vantage. Where an if has two arms the
// worse counts.
func (s *Scenario) Blame() map[string]Blame {
	b := &blamer{by: map[string]Blame{}, open: map[string]bool{}, conns: map[string]*Open{}, sent: map[string]string{}}
	for _, p := range s.Phases {
		b.steps(p.Steps)
	}
	return b.by
}

type blamer struct {
	by    map[string]Blame
	conns map[string]*Open
	open  map[string]bool
	sent  map[string]string
}

func (b *blamer) steps(steps []Step) {
	for _, st := range steps {
		switch st := st.(type) {
		case *Open:
			b.conns[st.Name], b.open[st.Name] = st, true
			n := 0
			for name, open := range b.open {
				if open && b.conns[name].Vantage == st.Vantage {
					n++
				}
			}
			bl := b.by[st.Vantage]
			bl.Peak = max(bl.Peak, n)
			if st.Announce != "" && st.Refusable {
				bl.ProtocolErrors++ // to a source that takes no header it is garbage
			}
			b.by[st.Vantage] = bl
		case *Send:
			o := b.conns[st.Name]
			if o == nil {
				continue
			}
			b.sent[st.Name] = st.Text.src
			for _, r := range st.Text.Refs() {
				if r.Name == "sasl.wrong" || r.Name == "basic-wrong" || r.Name == "wrong" {
					bl := b.by[o.Vantage]
					bl.FailedSignIns++
					b.by[o.Vantage] = bl
					b.sent[st.Name] = ""
				}
			}
		case *Reply:
			o := b.conns[st.Name]
			if o == nil || st.Kind != Status || !refuses(st.Pattern) {
				continue
			}
			bl := b.by[o.Vantage]
			switch verbOf(o.Protocol, b.sent[st.Name]) {
			case "RCPT":
				bl.BadRecipients++
			case "", "AUTH", "AUTHENTICATE", "LOGIN", "PASS":
			default:
				bl.ProtocolErrors++
			}
			b.by[o.Vantage] = bl
		case *Closed:
			b.open[st.Name] = false
		case *Close:
			if !st.Half {
				b.open[st.Name] = false
			}
		case *If:
			other := &blamer{by: map[string]Blame{}, conns: b.conns, open: b.open, sent: map[string]string{}}
			for k, v := range b.sent {
				other.sent[k] = v
			}
			other.steps(st.Else)
			mine := &blamer{by: map[string]Blame{}, conns: b.conns, open: b.open, sent: b.sent}
			mine.steps(st.Then)
			for v, bl := range mine.by {
				b.by[v] = merge(b.by[v], bl)
			}
			for v, bl := range other.by {
				if m, ok := mine.by[v]; !ok || worse(bl, m) {
					if ok {
						b.by[v] = Blame{b.by[v].FailedSignIns - m.FailedSignIns, b.by[v].ProtocolErrors - m.ProtocolErrors, b.by[v].BadRecipients - m.BadRecipients, b.by[v].Peak}
					}
					b.by[v] = merge(b.by[v], bl)
				}
			}
		}
	}
}

// merge sums blame within one scenario, where the peak is a peak.
func merge(a, b Blame) Blame {
	s := a.Add(b)
	s.Peak = max(a.Peak, b.Peak)
	return s
}

func worse(a, b Blame) bool {
	return a.FailedSignIns+a.ProtocolErrors+a.BadRecipients > b.FailedSignIns+b.ProtocolErrors+b.BadRecipients
}

// refuses says whether a pattern expects a negative reply.
func refuses(p Pattern) bool {
	for _, a := range p.alts {
		t := strings.TrimSpace(a.src)
		if strings.HasPrefix(t, "4") || strings.HasPrefix(t, "5") || strings.HasPrefix(t, "-ERR") || strings.HasPrefix(t, "NO") || strings.HasPrefix(t, "BAD") || strings.HasPrefix(t, "BYE") {
			return true
		}
		if words := strings.Fields(t); len(words) > 1 && (words[1] == "NO" || words[1] == "BAD" || words[1] == "BYE") {
			return true
		}
	}
	return false
}
