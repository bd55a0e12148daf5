package dovecot

import (
	"encoding/base64"
	"encoding/binary"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/mailbox"
)

// A Delivery is one message that LMTP is given for some recipients.
type Delivery struct {
	Client     string // the name in LHLO
	From       string // the envelope sender, "" for the null sender
	Recipients []string
	Message    []byte // with CRLF
	MessageID  string // with its brackets, or ""
	Date       string // as a Received field writes it
}

// A DeliveryReply is LMTP's answer for one recipient.
type DeliveryReply struct {
	OK   bool
	Text string // with its code
}

// Deliver plays one LMTP session from Postfix through the unix socket.
func (s *Server) Deliver(d Delivery) []DeliveryReply {
	pid := itoa(s.pid())
	s.write("lmtp("+pid+")", info, "Connect from local")
	id := s.lmtpID()
	replies := make([]DeliveryReply, len(d.Recipients))
	users := make([]*mailbox.User, len(d.Recipients))
	known, only := 0, ""
	for i, rcpt := range d.Recipients {
		if users[i] = s.store.User(rcpt); users[i] != nil {
			known++
			only = rcpt
		}
	}
	head := "Return-Path: <" + d.From + ">\r\n"
	if known == 1 {
		head += "Delivered-To: " + only + "\r\n"
	}
	head += "Received: from " + d.Client + "\r\n\tby " + s.host + " with LMTP\r\n\tid " + id + "\r\n\t(envelope-from <" + d.From + ">)"
	if known == 1 {
		head += "\r\n\tfor <" + only + ">"
	}
	head += "; " + d.Date + "\r\n"
	text := append(append(make([]byte, 0, len(head)+len(d.Message)), head...), d.Message...)
	box := mailbox.Inbox
	if s.bugs.Has(bug.DeliversToJunk) {
		box = mailbox.Junk
	}
	msgid := d.MessageID
	if msgid == "" {
		msgid = "unspecified"
	}
	session, n := id, 1
	for i, rcpt := range d.Recipients {
		u := users[i]
		if u == nil {
			replies[i] = DeliveryReply{Text: "550 5.1.1 <" + rcpt + "> User doesn't exist: " + rcpt}
			continue
		}
		if n > 1 {
			session = id + ":R" + itoa(n)
		}
		n++
		if !s.bugs.Has(bug.AcceptsThenDrops) {
			u.Deliver(box, text, s.now())
			if s.bugs.Has(bug.DeliversTwice) {
				u.Deliver(box, text, s.now())
			}
		}
		s.write("lmtp("+sanitize(rcpt, 64)+")<"+pid+"><"+session+">", info, "msgid="+sanitize(msgid, 200)+": saved mail to "+box)
		replies[i] = DeliveryReply{OK: true, Text: "250 2.0.0 <" + rcpt + "> " + session + " Saved"}
	}
	s.write("lmtp("+pid+")", info, "Disconnect from local: Logged out (state=READY)")
	return replies
}

// lmtpID makes a session id of LMTP: 16 octets in base64.
func (s *Server) lmtpID() string {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:], uint64(s.now().UnixNano()))
	binary.LittleEndian.PutUint64(b[8:], s.lmtp.Add(1)|0xb98ce50f<<32)
	return base64.RawStdEncoding.EncodeToString(b[:])
}
