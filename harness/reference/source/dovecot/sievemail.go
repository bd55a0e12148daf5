package dovecot

import (
	"errors"
	"fmt"
	"strings"

	"github.com/mailproof/mailproof/harness/proto"
	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/source/mailbox"
)

var scriptLimits = proto.CommandLimits{Line: link.MaxLine, Literal: mailbox.MaxScript, Total: mailbox.MaxScript + link.MaxLine}

// mail serves the signed-in session until it ends.
func (s *sieveLogin) mail() {
	defer s.srv.disconnect(s.who())
	in, out := s.c.Counts()
	s.c.SetTimeout(mailTimeout)
	s.ok("Logged in.")
	u := s.srv.store.User(s.user)
	reason, tail := s.scripts(u)
	in2, out2 := s.c.Counts()
	service := "managesieve"
	if s.srv.c.series == "2.4" {
		service = "sieve"
	}
	s.mailLog(service, fmt.Sprintf("Disconnected: %s bytes=%d/%d", reason, in2-in-tail, out2-out))
}

// scripts answers commands and says why it stopped, and how many octets at
// the end Dovecot does not count.
func (s *sieveLogin) scripts(u *mailbox.User) (reason string, tail int) {
	bad := 0
	for {
		tokens, _, err := proto.ReadCommand(s.c.Reader(), scriptLimits, nil)
		var syntax *proto.SyntaxError
		switch {
		case errors.As(err, &syntax):
			tokens = nil
		case errors.Is(err, proto.ErrTooLong):
			s.bye("Too long argument.")
			return "Too long argument", 0
		case link.IsTimeout(err):
			s.bye("Disconnected for inactivity")
			return "Disconnected for inactivity", 0
		case err != nil:
			return disconnectReason(err), 0
		}
		name := ""
		if len(tokens) > 0 && tokens[0].Kind == proto.Atom {
			name = strings.ToUpper(tokens[0].Text)
			tokens = tokens[1:]
		}
		words := strings0(tokens)
		switch {
		case name == "LOGOUT":
			s.ok("Logout completed.")
			return "Logged out", 2
		case name == "CAPABILITY":
			s.c.Line(`"IMPLEMENTATION" "`, s.implementation(), `"`)
			s.c.Line(`"SIEVE" "`, s.set.sieve, `"`)
			s.c.Line(`"MAXREDIRECTS" "4"`)
			s.c.Line(`"NOTIFY" "mailto"`)
			s.c.Line(`"VERSION" "1.0"`)
			s.ok("Capability completed.")
		case name == "NOOP":
			s.noop(tokens)
		case name == "LISTSCRIPTS":
			names, active := u.Scripts()
			for _, n := range names {
				if n == active {
					s.c.Line(proto.Quote(n), " ACTIVE")
				} else {
					s.c.Line(proto.Quote(n))
				}
			}
			s.ok("Listscripts completed.")
		case name == "GETSCRIPT" && len(words) == 1:
			text, found := u.Script(words[0])
			if !found {
				s.missing()
				break
			}
			s.c.Line("{", itoa(len(text)), "}")
			s.c.Write(text)
			s.c.Line()
			s.ok("Getscript completed.")
		case name == "PUTSCRIPT" && len(words) == 2:
			if !u.PutScript(words[0], []byte(words[1])) {
				s.c.Line(`NO (QUOTA/MAXSCRIPTS) "Quota exceeded"`)
				break
			}
			s.ok("PUTSCRIPT completed.")
		case name == "CHECKSCRIPT" && len(words) == 1:
			s.ok("Script checked successfully.")
		case name == "HAVESPACE" && len(tokens) == 2:
			s.ok("Putscript would succeed.")
		case name == "SETACTIVE" && len(words) == 1:
			if !u.Activate(words[0]) {
				s.missing()
				break
			}
			s.ok("Setactive completed.")
		case name == "DELETESCRIPT" && len(words) == 1:
			switch found, active := u.DeleteScript(words[0]); {
			case !found:
				s.missing()
			case active:
				s.c.Line(`NO (ACTIVE) "Cannot delete the active Sieve script."`)
			default:
				s.ok("Deletescript completed.")
			}
		case name == "XCLIENT" && s.srv.bugs.Has(bug.SieveXCLIENTAfterLogin):
			s.trusted, s.believed = true, true
			s.xclient(tokens)
			s.again()
		default:
			why := "Unknown command."
			switch name {
			case "GETSCRIPT", "PUTSCRIPT", "CHECKSCRIPT", "SETACTIVE", "DELETESCRIPT", "HAVESPACE":
				why = "Invalid arguments."
			}
			if name == "" {
				s.no("Error in MANAGESIEVE command: " + why)
			} else {
				s.no("Error in MANAGESIEVE command " + sanitize(name, 40) + ": " + why)
			}
			if bad++; bad >= maxBadMail {
				s.bye("Too many invalid MANAGESIEVE commands.")
				return "Too many invalid MANAGESIEVE commands.", 0
			}
			continue
		}
		bad = 0
	}
}

func (s *sieveLogin) missing() {
	s.c.Line(`NO (NONEXISTENT) "Script does not exist."`)
}

// strings0 returns the texts of tokens that are all strings, or nil.
func strings0(ts []proto.Token) []string {
	out := make([]string, 0, len(ts))
	for _, t := range ts {
		if !t.IsString() {
			return nil
		}
		out = append(out, t.Text)
	}
	return out
}
