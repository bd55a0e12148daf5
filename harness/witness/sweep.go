package witness

import (
	"errors"
	"fmt"
	"strings"

	"github.com/emersion/go-imap/v2"
)

// maxSwept bounds how many messages one sweep of a mailbox removes.
const maxSwept = 1000

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
	ours := &imap.SearchCriteria{Text: []string{mark}}
	search := func() ([]imap.UID, error) {
		data, err := m.c.UIDSearch(ours, nil).Wait()
		if err != nil {
			return nil, err
		}
		return data.AllUIDs(), nil
	}
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
