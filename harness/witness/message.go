package witness

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/mail"
	"strconv"
	"strings"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

// maxMessage is the largest message that is read back, in octets.
const maxMessage = 8 << 20

// A Mailbox reads one account's mail with an IMAP client that is not ours
// (go-imap), so that what the harness sent and what it reads back do not share
// a mistake. It is used by one goroutine.
type Mailbox struct {
	c       *imapclient.Client
	arrived chan struct{}
	stop    func() bool
}

// OpenMailbox signs in on a connection that is inside TLS already, and selects
// INBOX. It owns the connection from then on. When ctx ends, so does every
// operation.
func OpenMailbox(ctx context.Context, conn net.Conn, user, password string) (*Mailbox, error) {
	return openMailbox(ctx, conn, user, password, func(o *imapclient.Options) (*imapclient.Client, error) {
		return imapclient.New(conn, o), nil
	})
}

// OpenMailboxStartTLS is [OpenMailbox] on a connection in clear text, which is
// brought inside TLS first.
func OpenMailboxStartTLS(ctx context.Context, conn net.Conn, cfg *tls.Config, user, password string) (*Mailbox, error) {
	return openMailbox(ctx, conn, user, password, func(o *imapclient.Options) (*imapclient.Client, error) {
		o.TLSConfig = cfg
		return imapclient.NewStartTLS(conn, o)
	})
}

func openMailbox(ctx context.Context, conn net.Conn, user, password string, connect func(*imapclient.Options) (*imapclient.Client, error)) (*Mailbox, error) {
	m := &Mailbox{arrived: make(chan struct{}, 1)}
	m.stop = context.AfterFunc(ctx, func() { conn.Close() })
	fail := func(what string, err error) (*Mailbox, error) {
		m.stop()
		if m.c != nil {
			m.c.Close()
		}
		conn.Close()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("reading the mailbox: %s: %w", what, err)
	}
	var err error
	m.c, err = connect(&imapclient.Options{
		UnilateralDataHandler: &imapclient.UnilateralDataHandler{
			Mailbox: func(*imapclient.UnilateralDataMailbox) {
				select {
				case m.arrived <- struct{}{}:
				default:
				}
			},
		},
	})
	if err != nil {
		return fail("STARTTLS", err)
	}
	if err := m.c.WaitGreeting(); err != nil {
		return fail("greeting", err)
	}
	if err := m.c.Login(user, password).Wait(); err != nil {
		return fail("sign-in", err)
	}
	if _, err := m.c.Select("INBOX", nil).Wait(); err != nil {
		return fail("select INBOX", err)
	}
	return m, nil
}

// Close ends the session.
func (m *Mailbox) Close() error {
	m.stop()
	return m.c.Close()
}

// Message returns the message with the Message-ID (without brackets) as a
// record, or nil if no mailbox of the account has it. It looks into INBOX
// first and into the others only when it is not there.
func (m *Mailbox) Message(messageID string) (*Record, error) {
	// A search sees the mailbox as it was when the server last told of it: a
	// NOOP makes it tell (RFC 9051, section 6.1.2).
	if err := m.c.Noop().Wait(); err != nil {
		return nil, fmt.Errorf("reading the mailbox: noop: %w", err)
	}
	r, err := m.find("INBOX", messageID)
	if r != nil || err != nil {
		return r, err
	}
	boxes, err := m.c.List("", "*", nil).Collect()
	if err != nil {
		return nil, fmt.Errorf("reading the mailbox: list: %w", err)
	}
	for _, b := range boxes {
		if strings.EqualFold(b.Mailbox, "INBOX") || noSelect(b.Attrs) {
			continue
		}
		if _, err := m.c.Select(b.Mailbox, &imap.SelectOptions{ReadOnly: true}).Wait(); err != nil {
			continue
		}
		if r, err = m.find(b.Mailbox, messageID); r != nil || err != nil {
			break
		}
	}
	if _, serr := m.c.Select("INBOX", nil).Wait(); serr != nil && err == nil {
		err = fmt.Errorf("reading the mailbox: select INBOX: %w", serr)
	}
	return r, err
}

func noSelect(attrs []imap.MailboxAttr) bool {
	for _, a := range attrs {
		if a == imap.MailboxAttrNoSelect || a == imap.MailboxAttrNonExistent {
			return true
		}
	}
	return false
}

// lookedThrough is how many of the newest messages are looked through where
// the server's own search finds nothing.
const lookedThrough = 100

// uids finds the messages with a Message-ID in the selected mailbox. Stalwart
// searches some header fields alone, and this one is not among them: there the
// newest messages are looked through.
func (m *Mailbox) uids(messageID string) ([]imap.UID, error) {
	id := "<" + messageID + ">"
	data, err := m.c.UIDSearch(&imap.SearchCriteria{Header: []imap.SearchCriteriaHeaderField{{Key: "Message-ID", Value: id}}}, nil).Wait()
	if err != nil {
		return nil, err
	}
	if uids := data.AllUIDs(); len(uids) > 0 {
		return uids, nil
	}
	box := m.c.Mailbox()
	if box == nil || box.NumMessages == 0 {
		return nil, nil
	}
	first := uint32(1)
	if box.NumMessages > lookedThrough {
		first = box.NumMessages - lookedThrough + 1
	}
	var newest imap.SeqSet
	newest.AddRange(first, box.NumMessages)
	section := &imap.FetchItemBodySection{Specifier: imap.PartSpecifierHeader, HeaderFields: []string{"Message-ID"}, Peek: true}
	msgs, err := m.c.Fetch(newest, &imap.FetchOptions{UID: true, BodySection: []*imap.FetchItemBodySection{section}}).Collect()
	if err != nil {
		return nil, err
	}
	var uids []imap.UID
	for _, msg := range msgs {
		_, value, _ := strings.Cut(string(msg.FindBodySection(section)), ":")
		if strings.Join(strings.Fields(value), " ") == id {
			uids = append(uids, msg.UID)
		}
	}
	return uids, nil
}

func (m *Mailbox) find(box, messageID string) (*Record, error) {
	uids, err := m.uids(messageID)
	if err != nil {
		return nil, fmt.Errorf("reading the mailbox: search in %s: %w", box, err)
	}
	if len(uids) == 0 {
		return nil, nil
	}
	section := &imap.FetchItemBodySection{Peek: true}
	msgs, err := m.c.Fetch(imap.UIDSetNum(uids[0]), &imap.FetchOptions{UID: true, BodySection: []*imap.FetchItemBodySection{section}}).Collect()
	if err != nil {
		return nil, fmt.Errorf("reading the mailbox: fetch in %s: %w", box, err)
	}
	if len(msgs) == 0 {
		return nil, nil
	}
	raw := msgs[0].FindBodySection(section)
	if len(raw) > maxMessage {
		return nil, fmt.Errorf("reading the mailbox: the message is larger than %d octets", maxMessage)
	}
	return messageRecord(box, len(uids), raw)
}

// messageRecord turns a message into a record: its header fields by their
// canonical names, and mailbox, count, size, body and body-sha256.
func messageRecord(box string, count int, raw []byte) (*Record, error) {
	r := &Record{Kind: "message"}
	r.set("mailbox", box)
	r.set("count", strconv.Itoa(count))
	r.set("size", strconv.Itoa(len(raw)))
	msg, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("reading the mailbox: the message cannot be parsed: %w", err)
	}
	for k, vs := range msg.Header {
		for _, v := range vs {
			r.add(k, v)
		}
	}
	_, body, _ := bytes.Cut(raw, []byte("\r\n\r\n"))
	r.set("body", string(body))
	sum := BodySum(body)
	r.set("body-sha256", hex.EncodeToString(sum[:]))
	for _, v := range r.Fields["Received"] {
		r.Lines = append(r.Lines, "Received: "+v)
	}
	return r, nil
}

// BodySum is the SHA-256 of a body whose last line has its end: Stalwart drops
// the one before the dot that ends DATA, and DKIM takes no notice of it
// (RFC 6376, section 3.4.3).
func BodySum(body []byte) [sha256.Size]byte {
	if len(body) > 0 && !bytes.HasSuffix(body, []byte("\r\n")) {
		body = append(bytes.Clone(body), '\r', '\n')
	}
	return sha256.Sum256(body)
}

// ErrNoMessage says that the message had not arrived in time.
var ErrNoMessage = errors.New("the message did not arrive")

// Await waits until the message is there. While it is not, it lets the server
// tell of arrivals (IDLE, RFC 2177) instead of asking again and again. done
// ends the waiting early: after it is closed one last look decides.
func (m *Mailbox) Await(ctx context.Context, messageID string, done <-chan struct{}) (*Record, error) {
	for {
		// What arrives while the mailbox is looked at is found by the next look:
		// only a look that begins after the end of the waiting is the last one.
		last := false
		select {
		case <-done:
			last = true
		default:
		}
		r, err := m.Message(messageID)
		if r != nil || err != nil {
			return r, err
		}
		if last || ctx.Err() != nil {
			return nil, ErrNoMessage
		}
		idle, err := m.c.Idle()
		if err != nil {
			return nil, fmt.Errorf("reading the mailbox: idle: %w", err)
		}
		select {
		case <-m.arrived:
		case <-done:
		case <-ctx.Done():
		}
		if err := errors.Join(idle.Close(), idle.Wait()); err != nil {
			if ctx.Err() != nil {
				return nil, ErrNoMessage
			}
			return nil, fmt.Errorf("reading the mailbox: idle: %w", err)
		}
	}
}

// Remove deletes the message from INBOX for good.
func (m *Mailbox) Remove(messageID string) error {
	uids, err := m.uids(messageID)
	if err != nil {
		return fmt.Errorf("removing a message: %w", err)
	}
	if len(uids) == 0 {
		return nil
	}
	set := imap.UIDSetNum(uids...)
	if err := m.c.Store(set, &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}, Silent: true}, nil).Close(); err != nil {
		return fmt.Errorf("removing a message: %w", err)
	}
	if err := m.c.Expunge().Close(); err != nil {
		return fmt.Errorf("removing a message: %w", err)
	}
	return nil
}
