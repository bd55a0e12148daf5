package dovecot

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/source/mailbox"
)

// pop3Mail is a session of the pop3 service.
type pop3Mail struct {
	*pop3Login
	user     *mailbox.User
	messages []mailbox.Message
	deleted  []bool
	top      int
	topped   int
	retr     int
	retrs    int
}

// mailTimeout is how long the mail services keep a client that says nothing.
const mailTimeout = 30 * time.Minute

const maxBadMail = 20

// mail serves the signed-in session until it ends.
func (s *pop3Login) mail() {
	defer s.srv.disconnect(s.who())
	m := &pop3Mail{pop3Login: s, user: s.srv.store.User(s.session.user)}
	m.messages = m.user.Messages(mailbox.Inbox)
	m.deleted = make([]bool, len(m.messages))
	s.c.SetTimeout(mailTimeout)
	s.c.Line("+OK Logged in.")
	reason := m.serve()
	size := 0
	for _, msg := range m.messages {
		size += len(msg.Octets)
	}
	s.mailLog("pop3", fmt.Sprintf("Disconnected: %s top=%d/%d, retr=%d/%d, del=%d/%d, size=%d",
		reason, m.topped, m.top, m.retrs, m.retr, m.gone(), len(m.messages), size))
}

func (m *pop3Mail) gone() int {
	n := 0
	for _, d := range m.deleted {
		if d {
			n++
		}
	}
	return n
}

// serve answers commands and says why it stopped.
func (m *pop3Mail) serve() string {
	bad := 0
	for {
		line, err := m.c.ReadLine(link.MaxLine)
		switch {
		case err == link.ErrTooLong:
			m.c.Line("-ERR Input line too long, aborting.")
			return "Input line too long"
		case link.IsTimeout(err):
			m.c.Line("-ERR Disconnected for inactivity.")
			return "Inactivity"
		case err != nil:
			return disconnectReason(err)
		}
		name, args, _ := strings.Cut(line, " ")
		switch upper := strings.ToUpper(name); upper {
		case "CAPA":
			m.c.Line("+OK")
			m.c.Line(pop3Caps)
			m.c.Line(".")
		case "NOOP":
			m.c.Line("+OK")
		case "STAT":
			n, size := 0, 0
			for i, msg := range m.messages {
				if !m.deleted[i] {
					n++
					size += len(msg.Octets)
				}
			}
			m.c.Line("+OK ", itoa(n), " ", itoa(size))
		case "LIST":
			m.list(args, " messages:", func(i int) string { return itoa(len(m.messages[i].Octets)) })
		case "UIDL":
			m.list(args, "", func(i int) string {
				return fmt.Sprintf("%08x%08x", m.messages[i].UID, mailbox.UIDValidity)
			})
		case "RETR":
			m.retrieve(args, -1)
		case "TOP":
			n, lines, _ := strings.Cut(args, " ")
			k, err := strconv.Atoi(lines)
			if err != nil || k < 0 {
				m.c.Line("-ERR Invalid size: ", lines)
				break
			}
			m.retrieve(n, k)
		case "DELE":
			if i, ok := m.number(args); ok {
				m.deleted[i] = true
				m.c.Line("+OK Marked to be deleted.")
			}
		case "RSET":
			clear(m.deleted)
			m.c.Line("+OK")
		case "QUIT":
			var uids []uint32
			for i, d := range m.deleted {
				if d {
					uids = append(uids, m.messages[i].UID)
				}
			}
			if len(uids) > 0 {
				m.user.Remove(mailbox.Inbox, uids...)
				m.c.Line("+OK Logging out, messages deleted.")
			} else {
				m.c.Line("+OK Logging out.")
			}
			return "Logged out"
		default:
			if upper == "XCLIENT" && m.srv.bugs.Has(bug.POP3XCLIENTAfterLogin) {
				m.believed = true
				said, _ := m.xclientArgs(args)
				m.announce(said)
				m.again()
				m.c.Line("+OK Updated")
				break
			}
			m.c.Line("-ERR Unknown command: ", upper)
			if bad++; bad > maxBadMail {
				m.c.Line("-ERR Too many bad commands.")
				return "Too many bad commands"
			}
			continue
		}
		bad = 0
	}
}

// again records the session once more: bugs that believe what is announced
// after the login do.
func (in *session) again() {
	if in.srv.c.series == "2.4" {
		in.logAs("info", "Logged in")
	} else {
		in.logAs("info", "Login")
	}
}

func (m *pop3Mail) list(args, title string, value func(i int) string) {
	if args != "" {
		if i, ok := m.number(args); ok {
			m.c.Line("+OK ", itoa(i+1), " ", value(i))
		}
		return
	}
	if title != "" {
		m.c.Line("+OK ", itoa(len(m.messages)-m.gone()), title)
	} else {
		m.c.Line("+OK")
	}
	for i := range m.messages {
		if !m.deleted[i] {
			m.c.Line(itoa(i+1), " ", value(i))
		}
	}
	m.c.Line(".")
}

// number reads a message number and answers it unless it is one.
func (m *pop3Mail) number(s string) (int, bool) {
	n, err := strconv.ParseUint(s, 10, 31)
	switch {
	case err != nil:
		m.c.Line("-ERR Invalid message number: ", s)
	case n == 0 || int(n) > len(m.messages):
		m.c.Line("-ERR There's no message ", s, ".")
	case m.deleted[n-1]:
		m.c.Line("-ERR Message is deleted.")
	default:
		return int(n) - 1, true
	}
	return 0, false
}

// retrieve sends a message: all of it, or its header and some lines.
func (m *pop3Mail) retrieve(number string, lines int) {
	i, ok := m.number(number)
	if !ok {
		return
	}
	text := m.messages[i].Octets
	if lines < 0 {
		m.c.Line("+OK ", itoa(len(text)), " octets")
		m.retrs++
		m.retr += len(text)
	} else {
		text = head(text, lines)
		m.c.Line("+OK")
		m.topped++
		m.top += len(text)
	}
	for len(text) > 0 {
		line := text
		if j := bytes.IndexByte(text, '\n'); j >= 0 {
			line, text = text[:j], text[j+1:]
		} else {
			text = nil
		}
		line = bytes.TrimSuffix(line, []byte("\r"))
		if len(line) > 0 && line[0] == '.' {
			m.c.Write([]byte("."))
		}
		m.c.Write(line)
		m.c.Line()
	}
	m.c.Line(".")
}

// head returns the header and the first lines of the body.
func head(text []byte, lines int) []byte {
	end := bytes.Index(text, []byte("\r\n\r\n"))
	if end < 0 {
		return text
	}
	end += 4
	for ; lines > 0 && end < len(text); lines-- {
		j := bytes.IndexByte(text[end:], '\n')
		if j < 0 {
			return text
		}
		end += j + 1
	}
	return text[:end]
}
