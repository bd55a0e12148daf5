// Package mailbox is the mail store of a reference source: one set of
// mailboxes for IMAP, POP3 and delivery, and the Sieve scripts beside them.
//
// IMAP is go-imap's in-memory backend; POP3 sees the same INBOX, in the same
// order, without what IMAP has expunged. Nothing is kept on disk.
package mailbox

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"
	"github.com/emersion/go-imap/v2/imapserver/imapmemserver"
)

// Inbox is the mailbox that every account has from the start. Junk comes into
// being when something is put into it.
const (
	Inbox = "INBOX"
	Junk  = "Junk"
)

// A Layout is how a server names its mailboxes.
type Layout struct {
	Delim rune  // what separates the parts of a name
	Boxes []Box // what every account has from the start, beside INBOX
	// Indexed are the fields, in lower case, that SEARCH HEADER finds; nil is
	// all of them.
	Indexed []string
}

// A Box is a mailbox that every account has from the start.
type Box struct {
	Name string
	Use  imap.MailboxAttr
}

// Maildir is the layout of Dovecot with maildirs.
func Maildir() Layout { return Layout{Delim: '.'} }

// UIDValidity is the INBOX's, for every account.
const UIDValidity = 1

// A Store is the accounts of a source. Accounts come into being when they are
// first used.
type Store struct {
	layout   Layout
	password func(user string) (string, bool)
	mu       sync.Mutex
	users    map[string]*User
}

// New returns a store of the accounts that password knows, of maildirs.
func New(password func(user string) (string, bool)) *Store {
	return NewLaid(Maildir(), password)
}

// NewLaid returns a store with a layout of its own.
func NewLaid(layout Layout, password func(user string) (string, bool)) *Store {
	return &Store{layout: layout, password: password, users: make(map[string]*User)}
}

// Password returns the password of an account. Names are compared without
// their case, as Dovecot does by default.
func (s *Store) Password(user string) (string, bool) {
	return s.password(strings.ToLower(user))
}

// User returns an account, or nil if there is none of that name.
func (s *Store) User(name string) *User {
	name = strings.ToLower(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	u := s.users[name]
	if u == nil {
		if _, ok := s.password(name); !ok {
			return nil
		}
		u = s.newUser(name)
		s.users[name] = u
	}
	return u
}

// Adopt makes an account of a name that somebody has signed in with, if there
// is none of it: userdb static has everybody.
func (s *Store) Adopt(name string) {
	name = strings.ToLower(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.users[name] == nil && len(s.users) < MaxUsers {
		s.users[name] = s.newUser(name)
	}
}

// MaxUsers is how many accounts may come of names that are none.
const MaxUsers = 1 << 16

// A User is one account.
type User struct {
	Name string

	layout Layout
	mem    *imapmemserver.User

	mu         sync.Mutex // held while messages come into a mailbox
	boxes      []string
	subscribed []string
	bodies     map[string]map[imap.UID][]byte
	scripts    []script
	grown      chan struct{} // closed when a mailbox grows next
}

// script is one Sieve script.
type script struct {
	name   string
	text   []byte
	active bool
}

func (s *Store) newUser(name string) *User {
	u := &User{Name: name, layout: s.layout, mem: imapmemserver.NewUser(name, ""), bodies: make(map[string]map[imap.UID][]byte), grown: make(chan struct{})}
	u.create(Inbox)
	for _, b := range s.layout.Boxes {
		u.create(b.Name)
		u.subscribed = append(u.subscribed, b.Name)
	}
	return u
}

// create makes a mailbox. The caller holds u.mu, or is alone.
func (u *User) create(box string) error {
	box = strings.TrimRight(canonical(box), string(u.layout.Delim))
	if err := u.mem.Create(box, nil); err != nil {
		return err
	}
	u.boxes = append(u.boxes, box)
	slices.Sort(u.boxes)
	return nil
}

// Deliver puts a message into a mailbox, which is made if it is not there.
func (u *User) Deliver(box string, message []byte, at time.Time) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	data, err := u.mem.Append(box, bytes.NewReader(message), &imap.AppendOptions{Time: at})
	if err != nil {
		u.create(box)
		if data, err = u.mem.Append(box, bytes.NewReader(message), &imap.AppendOptions{Time: at}); err != nil {
			return fmt.Errorf("deliver to %s of %s: %w", box, u.Name, err)
		}
	}
	u.keep(box, data.UID, message)
	return nil
}

// keep remembers a message's octets. The caller holds u.mu.
func (u *User) keep(box string, uid imap.UID, message []byte) {
	box = canonical(box)
	if u.bodies[box] == nil {
		u.bodies[box] = make(map[imap.UID][]byte)
	}
	u.bodies[box][uid] = message
	close(u.grown)
	u.grown = make(chan struct{})
}

// growth is closed when a mailbox of the account grows next.
func (u *User) growth() <-chan struct{} {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.grown
}

func canonical(box string) string {
	if strings.EqualFold(box, Inbox) {
		return Inbox
	}
	return box
}

// A Message is one message of a mailbox.
type Message struct {
	UID    uint32
	Octets []byte // not to be changed
}

// Messages lists a mailbox in its order. A mailbox that is not there is empty.
func (u *User) Messages(box string) []Message {
	s := imapmemserver.NewUserSession(u.mem)
	if _, err := s.Select(box, nil); err != nil {
		return nil
	}
	defer s.Close()
	data, err := s.Search(imapserver.NumKindUID, &imap.SearchCriteria{}, &imap.SearchOptions{})
	if err != nil {
		return nil
	}
	uids, _ := data.All.(imap.UIDSet)
	nums, _ := uids.Nums()
	u.mu.Lock()
	defer u.mu.Unlock()
	list := make([]Message, 0, len(nums))
	for _, uid := range nums {
		if b, ok := u.bodies[canonical(box)][uid]; ok {
			list = append(list, Message{UID: uint32(uid), Octets: b})
		}
	}
	return list
}

// Remove expunges messages from a mailbox.
func (u *User) Remove(box string, uids ...uint32) error {
	s := imapmemserver.NewUserSession(u.mem)
	if _, err := s.Select(box, nil); err != nil {
		return fmt.Errorf("remove from %s of %s: %w", box, u.Name, err)
	}
	defer s.Close()
	var set imap.UIDSet
	for _, uid := range uids {
		set.AddNum(imap.UID(uid))
	}
	if err := s.Store(nil, set, &imap.StoreFlags{Op: imap.StoreFlagsAdd, Silent: true, Flags: []imap.Flag{imap.FlagDeleted}}, &imap.StoreOptions{}); err != nil {
		return fmt.Errorf("remove from %s of %s: %w", box, u.Name, err)
	}
	return s.Expunge(nil, &set)
}

// Session returns an IMAP session of the account, signed in.
func (u *User) Session() imapserver.Session {
	return &session{UserSession: imapmemserver.NewUserSession(u.mem), user: u}
}

// session keeps POP3's view true while messages come in by IMAP.
type session struct {
	*imapmemserver.UserSession
	user *User
	box  string
}

func (s *session) Login(string, string) error { return imapserver.ErrAuthFailed }

// Idle tells of what has come. The library's own loses what comes between its
// answer to IDLE and its first look.
func (s *session) Idle(w *imapserver.UpdateWriter, stop <-chan struct{}) error {
	for {
		grown := s.user.growth()
		if err := s.UserSession.Poll(w, true); err != nil {
			return err
		}
		select {
		case <-grown:
		case <-stop:
			return nil
		}
	}
}

func (s *session) Append(box string, r imap.LiteralReader, options *imap.AppendOptions) (*imap.AppendData, error) {
	var b bytes.Buffer
	if _, err := b.ReadFrom(r); err != nil {
		return nil, err
	}
	s.user.mu.Lock()
	defer s.user.mu.Unlock()
	data, err := s.UserSession.Append(box, bytes.NewReader(b.Bytes()), options)
	if err == nil {
		s.user.keep(box, data.UID, b.Bytes())
	}
	return data, err
}

func (s *session) Select(box string, options *imap.SelectOptions) (*imap.SelectData, error) {
	data, err := s.UserSession.Select(box, options)
	if err == nil {
		s.box = box
		data.Flags = []imap.Flag{imap.FlagAnswered, imap.FlagFlagged, imap.FlagDeleted, imap.FlagSeen, imap.FlagDraft}
		data.PermanentFlags = append(slices.Clone(data.Flags), imap.FlagWildcard)
	}
	return data, err
}

func (s *session) Copy(set imap.NumSet, dest string) (*imap.CopyData, error) {
	s.user.mu.Lock()
	defer s.user.mu.Unlock()
	data, err := s.UserSession.Copy(set, dest)
	if err == nil {
		s.copied(data, dest)
	}
	return data, err
}

// Move is COPY and EXPUNGE in one: the backend tells where the messages went
// only to the client, so they are found by the UIDs they were to get.
func (s *session) Move(w *imapserver.MoveWriter, set imap.NumSet, dest string) error {
	s.user.mu.Lock()
	defer s.user.mu.Unlock()
	kind, criteria := imapserver.NumKindUID, &imap.SearchCriteria{}
	switch set := set.(type) {
	case imap.SeqSet:
		criteria.SeqNum = []imap.SeqSet{slices.Clone(set)}
	case imap.UIDSet:
		criteria.UID = []imap.UIDSet{slices.Clone(set)}
	}
	found, err := s.UserSession.Search(kind, criteria, &imap.SearchOptions{})
	if err != nil {
		return err
	}
	status, err := s.UserSession.Status(dest, &imap.StatusOptions{UIDNext: true})
	if err == nil {
		data := &imap.CopyData{}
		data.SourceUIDs, _ = found.All.(imap.UIDSet)
		from, _ := data.SourceUIDs.Nums()
		for i := range from {
			data.DestUIDs.AddNum(status.UIDNext + imap.UID(i))
		}
		defer s.copied(data, dest)
	}
	return s.UserSession.Move(w, set, dest)
}

// Search finds what the layout's index holds.
func (s *session) Search(kind imapserver.NumKind, criteria *imap.SearchCriteria, options *imap.SearchOptions) (*imap.SearchData, error) {
	if s.user.layout.Indexed != nil && slices.ContainsFunc(criteria.Header, func(h imap.SearchCriteriaHeaderField) bool {
		return !slices.Contains(s.user.layout.Indexed, strings.ToLower(h.Key))
	}) {
		never := &imap.SearchCriteria{Not: []imap.SearchCriteria{{}}}
		return s.UserSession.Search(kind, never, options)
	}
	return s.UserSession.Search(kind, criteria, options)
}

// List lists mailboxes with the layout's delimiter, and their flags.
func (s *session) List(w *imapserver.ListWriter, ref string, patterns []string, options *imap.ListOptions) error {
	if len(patterns) == 0 {
		return w.WriteList(&imap.ListData{Attrs: []imap.MailboxAttr{imap.MailboxAttrNoSelect}, Delim: s.user.layout.Delim})
	}
	s.user.mu.Lock()
	boxes := slices.Clone(s.user.boxes)
	subscribed := slices.Clone(s.user.subscribed)
	s.user.mu.Unlock()
	for _, box := range boxes {
		if !slices.ContainsFunc(patterns, func(p string) bool { return imapserver.MatchList(box, s.user.layout.Delim, ref, p) }) {
			continue
		}
		data := imap.ListData{Mailbox: box, Delim: s.user.layout.Delim, Attrs: []imap.MailboxAttr{imap.MailboxAttrHasNoChildren}}
		if slices.ContainsFunc(boxes, func(b string) bool { return strings.HasPrefix(b, box+string(s.user.layout.Delim)) }) {
			data.Attrs[0] = imap.MailboxAttrHasChildren
		}
		if slices.Contains(subscribed, box) {
			data.Attrs = append(data.Attrs, imap.MailboxAttrSubscribed)
		} else if options.SelectSubscribed {
			continue
		}
		use := slices.IndexFunc(s.user.layout.Boxes, func(b Box) bool { return b.Name == box })
		if use >= 0 {
			data.Attrs = append(data.Attrs, s.user.layout.Boxes[use].Use)
		} else if options.SelectSpecialUse {
			continue
		}
		if options.ReturnStatus != nil {
			status, err := s.UserSession.Status(box, options.ReturnStatus)
			if err != nil {
				return err
			}
			data.Status = status
		}
		if err := w.WriteList(&data); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) Create(box string, _ *imap.CreateOptions) error {
	s.user.mu.Lock()
	defer s.user.mu.Unlock()
	return s.user.create(box)
}

func (s *session) Delete(box string) error {
	s.user.mu.Lock()
	defer s.user.mu.Unlock()
	box = canonical(box)
	if err := s.UserSession.Delete(box); err != nil {
		return err
	}
	s.user.boxes = slices.DeleteFunc(s.user.boxes, func(b string) bool { return b == box })
	delete(s.user.bodies, box)
	return nil
}

func (s *session) Rename(box, name string, options *imap.RenameOptions) error {
	s.user.mu.Lock()
	defer s.user.mu.Unlock()
	box = canonical(box)
	if err := s.UserSession.Rename(box, name, options); err != nil {
		return err
	}
	if box == Inbox { // its messages move, it stays
		s.user.create(Inbox)
	} else {
		s.user.boxes = slices.DeleteFunc(s.user.boxes, func(b string) bool { return b == box })
	}
	s.user.boxes = append(s.user.boxes, name)
	slices.Sort(s.user.boxes)
	s.user.bodies[name] = s.user.bodies[box]
	delete(s.user.bodies, box)
	return nil
}

func (s *session) Subscribe(box string) error {
	s.user.mu.Lock()
	defer s.user.mu.Unlock()
	if box = canonical(box); !slices.Contains(s.user.subscribed, box) {
		s.user.subscribed = append(s.user.subscribed, box)
	}
	return nil
}

func (s *session) Unsubscribe(box string) error {
	s.user.mu.Lock()
	defer s.user.mu.Unlock()
	s.user.subscribed = slices.DeleteFunc(s.user.subscribed, func(b string) bool { return b == canonical(box) })
	return nil
}

func (s *session) Namespace() (*imap.NamespaceData, error) {
	return &imap.NamespaceData{Personal: []imap.NamespaceDescriptor{{Delim: s.user.layout.Delim}}}, nil
}

// copied remembers messages under their new UIDs. The caller holds user.mu.
func (s *session) copied(data *imap.CopyData, dest string) {
	from, _ := data.SourceUIDs.Nums()
	to, _ := data.DestUIDs.Nums()
	for i := range min(len(from), len(to)) {
		if b, ok := s.user.bodies[canonical(s.box)][from[i]]; ok {
			s.user.keep(dest, to[i], b)
		}
	}
}

// Limits of what one account may store of Sieve scripts.
const (
	MaxScripts = 64
	MaxScript  = 1 << 20 // octets
)

// Scripts lists the names of the Sieve scripts and says which is active.
func (u *User) Scripts() (names []string, active string) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.scripts {
		names = append(names, s.name)
		if s.active {
			active = s.name
		}
	}
	return names, active
}

// Script returns a Sieve script.
func (u *User) Script(name string) ([]byte, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, s := range u.scripts {
		if s.name == name {
			return s.text, true
		}
	}
	return nil, false
}

// PutScript stores a Sieve script, which is not checked. It says whether there
// was room for it.
func (u *User) PutScript(name string, text []byte) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i := range u.scripts {
		if u.scripts[i].name == name {
			u.scripts[i].text = text
			return true
		}
	}
	if len(u.scripts) >= MaxScripts {
		return false
	}
	u.scripts = append(u.scripts, script{name: name, text: text})
	return true
}

// Activate makes one script the active one, or none when name is empty. It
// says whether there is such a script.
func (u *User) Activate(name string) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if name != "" && !slices.ContainsFunc(u.scripts, func(s script) bool { return s.name == name }) {
		return false
	}
	for i := range u.scripts {
		u.scripts[i].active = name != "" && u.scripts[i].name == name
	}
	return true
}

// DeleteScript removes a script. It says whether the script was there, and
// whether it is active and was therefore kept.
func (u *User) DeleteScript(name string) (found, active bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for i, s := range u.scripts {
		if s.name == name {
			if s.active {
				return true, true
			}
			u.scripts = slices.Delete(u.scripts, i, i+1)
			return true, false
		}
	}
	return false, false
}
