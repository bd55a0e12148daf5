package witness

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapclient"
)

// Bounds of one sweep of a mailbox: how many messages it removes, how many it
// looks at, and how much of each that may carry the mark beyond its subject.
const (
	maxSwept   = 1000
	maxLooked  = 20000
	maxOctets  = 64 << 10
	sweepSince = -2 // days: what we sent is not older, whatever the server's clock
)

// Sweep removes every message that carries a mark, from every mailbox of the
// account, and looks again: found is how many there were, left how many are
// there still. Messages without the mark are not touched, not even those that
// their owner has marked as deleted.
func (m *Mailbox) Sweep(mark string) (found, left int, err error) {
	if len(mark) < 12 {
		return 0, 0, errors.New("sweeping a mailbox: the mark is too short to be ours alone")
	}
	if err := m.c.Noop().Wait(); err != nil {
		return 0, 0, fmt.Errorf("sweeping a mailbox: noop: %w", err)
	}
	list, err := m.c.List("", "*", nil).Collect()
	if err != nil {
		return 0, 0, fmt.Errorf("sweeping a mailbox: list: %w", err)
	}
	boxes := []string{"INBOX"}
	for _, b := range list {
		if !strings.EqualFold(b.Mailbox, "INBOX") && !noSelect(b.Attrs) {
			boxes = append(boxes, b.Mailbox)
		}
	}
	var failed []error
	for _, box := range boxes {
		f, l, err := m.sweepBox(box, mark)
		found, left = found+f, left+l
		if err != nil {
			failed = append(failed, fmt.Errorf("sweeping %s: %w", box, err))
		}
	}
	return found, left, errors.Join(failed...)
}

func (m *Mailbox) sweepBox(box, mark string) (found, left int, err error) {
	if _, err := m.c.Select(box, nil).Wait(); err != nil {
		return 0, 0, err
	}
	search := func() ([]imap.UID, error) { return m.marked(mark) }
	uids, err := search()
	if err != nil || len(uids) == 0 {
		return 0, 0, err
	}
	if len(uids) > maxSwept {
		return len(uids), len(uids), fmt.Errorf("%d messages carry the mark, which is more than a run can have sent", len(uids))
	}
	set := imap.UIDSetNum(uids...)
	if err := m.c.Store(set, &imap.StoreFlags{Op: imap.StoreFlagsAdd, Flags: []imap.Flag{imap.FlagDeleted}, Silent: true}, nil).Close(); err != nil {
		return len(uids), len(uids), err
	}
	if m.c.Caps().Has(imap.CapUIDPlus) {
		err = m.c.UIDExpunge(set).Close()
	} else {
		// A plain EXPUNGE takes all that is marked as deleted: it is used only
		// where that is ours alone.
		data, serr := m.c.UIDSearch(&imap.SearchCriteria{Flag: []imap.Flag{imap.FlagDeleted}}, nil).Wait()
		switch {
		case serr != nil:
			err = serr
		case len(data.AllUIDs()) != len(uids):
			err = errors.New("the server cannot remove single messages (no UIDPLUS), and others are marked as deleted beside ours")
		default:
			err = m.c.Expunge().Close()
		}
	}
	if err != nil {
		return len(uids), len(uids), err
	}
	rest, err := search()
	return len(uids), len(rest), err
}

// marked finds the messages of the selected mailbox that carry a mark. What a
// server finds for a text is not enough: Stalwart searches whole words, in an
// index that is written later. So the subjects of all that came in the last
// days are looked at; and what was found for the text is looked into, so that
// nothing is taken for ours on a server's word.
func (m *Mailbox) marked(mark string) ([]imap.UID, error) {
	recent, err := m.c.UIDSearch(&imap.SearchCriteria{Since: time.Now().AddDate(0, 0, sweepSince)}, nil).Wait()
	if err != nil {
		return nil, err
	}
	found, err := m.c.UIDSearch(&imap.SearchCriteria{Text: []string{mark}}, nil).Wait()
	if err != nil {
		return nil, err
	}
	in := map[imap.UID]bool{}
	subject := &imap.FetchItemBodySection{Specifier: imap.PartSpecifierHeader, HeaderFields: []string{"Subject"}, Peek: true}
	if err := m.look(recent.AllUIDs(), subject, mark, in); err != nil {
		return nil, err
	}
	var rest []imap.UID
	for _, u := range found.AllUIDs() {
		if !in[u] {
			rest = append(rest, u)
		}
	}
	if err := m.look(rest, &imap.FetchItemBodySection{Peek: true, Partial: &imap.SectionPartial{Size: maxOctets}}, mark, in); err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(in)), nil
}

// look adds those of the messages in a section of which the mark stands.
func (m *Mailbox) look(uids []imap.UID, section *imap.FetchItemBodySection, mark string, in map[imap.UID]bool) error {
	switch {
	case len(uids) == 0:
		return nil
	case len(uids) > maxLooked:
		return fmt.Errorf("%d messages came in the last days, and no more than %d are looked at: name accounts that nobody else uses", len(uids), maxLooked)
	}
	cmd := m.c.Fetch(imap.UIDSetNum(uids...), &imap.FetchOptions{UID: true, BodySection: []*imap.FetchItemBodySection{section}})
	defer cmd.Close()
	for msg := cmd.Next(); msg != nil; msg = cmd.Next() {
		uid, marked := imap.UID(0), false
		for item := msg.Next(); item != nil; item = msg.Next() {
			switch item := item.(type) {
			case imapclient.FetchItemDataUID:
				uid = item.UID
			case imapclient.FetchItemDataBodySection:
				if item.Literal == nil {
					continue
				}
				text, err := io.ReadAll(io.LimitReader(item.Literal, maxOctets))
				if err != nil {
					return err
				}
				io.Copy(io.Discard, item.Literal)
				marked = bytes.Contains(text, []byte(mark))
			}
		}
		if marked && uid != 0 {
			in[uid] = true
		}
	}
	return cmd.Close()
}
