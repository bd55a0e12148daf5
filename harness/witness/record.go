// Package witness reads what a source itself says of a session: its log, and
// the messages it delivered. It turns log lines into records, and joins them
// to an execution by marks of that execution alone.
//
// It promises that a record is never joined by time or by order; that a line
// which is not joined is parsed, counted and forgotten; that a line whose
// fields contradict each other (a login name or HELO that imitates a field) is
// marked ambiguous and witnesses nothing; and that streams are followed, never
// polled. It refuses to guess: a form of line it does not know is no record.
package witness

import (
	"net/netip"
	"strings"
)

// Kind is what a record tells of.
type Kind string

// The kinds of records.
const (
	// Login is a successful sign-in, as Dovecot's login processes log it.
	Login Kind = "login"
	// FailedLogin is a refused sign-in, as Dovecot or Postfix logs it.
	FailedLogin Kind = "failed-login"
	// Aborted is a session that ended without a try.
	Aborted Kind = "aborted"
	// Transaction is one message's way through Postfix, one queue id.
	Transaction Kind = "transaction"
	// Rejection is a recipient or command that Postfix refused.
	Rejection Kind = "rejection"
	// Connection is a client's arrival at Postfix, before anything was announced.
	Connection Kind = "connection"
	// Hello is a name with which a client greets Stalwart's SMTP service. No
	// scenario asks for it: it shows that a log is read.
	Hello Kind = "hello"
)

// A Record is what one or more log lines say of one event. Field values are
// the log's own words. A field may have several values, such as the recipients
// of a message.
type Record struct {
	Kind   Kind
	Fields map[string][]string
	Lines  []string // the lines it was made of, in order
	// Peer is the address and port that really connected, where the log shows
	// it in spite of what was announced; the zero value where it does not.
	Peer netip.AddrPort
	// Ambiguous says why the line cannot be believed, or "".
	Ambiguous string
	// Lost says that the log lost a part of the line: a field that is not there
	// may have been, and its absence says nothing.
	Lost bool
	// began is the number of its first line in the log, of a [Line].
	began int
}

// Get is the first value of a field, or "".
func (r *Record) Get(field string) string {
	if v := r.Fields[field]; len(v) > 0 {
		return v[0]
	}
	return ""
}

// Has says whether the record has the field, even if it is empty.
func (r *Record) Has(field string) bool {
	_, ok := r.Fields[field]
	return ok
}

func (r *Record) set(field, value string) {
	if r.Fields == nil {
		r.Fields = make(map[string][]string, 12)
	}
	r.Fields[field] = []string{value}
}

func (r *Record) add(field, value string) {
	if r.Fields == nil {
		r.Fields = make(map[string][]string, 12)
	}
	r.Fields[field] = append(r.Fields[field], value)
}

// Key is how a record is looked up: "session=abc", "user=alice@example.test".
func Key(field, value string) string {
	switch field {
	case "user", "recipient", "sender":
		value = strings.ToLower(value)
	case "message-id":
		value = strings.Trim(value, "<>")
	}
	return field + "=" + value
}

// PeerKey is the key of the address and port that really connected.
func PeerKey(p netip.AddrPort) string {
	return "peer=" + netip.AddrPortFrom(p.Addr().Unmap(), p.Port()).String()
}

// keys lists what a record can be joined by.
func (r *Record) keys(dst []string) []string {
	if r.Kind == Line {
		return r.lineKeys(dst)
	}
	for _, f := range joinFields(r.Kind) {
		for _, v := range r.Fields[f.field] {
			if v != "" {
				dst = append(dst, Key(f.key, v))
			}
		}
	}
	if r.Peer.IsValid() {
		dst = append(dst, PeerKey(r.Peer))
	}
	return dst
}

type joinField struct{ key, field string }

func joinFields(k Kind) []joinField {
	switch k {
	case Login, FailedLogin, Aborted, Connection:
		return loginJoins
	case Transaction, Rejection:
		return transactionJoins
	case Hello:
		return helloJoins
	}
	return nil
}

// None of these is changed after it is made.
var (
	helloJoins       = []joinField{{"helo", "helo"}}
	loginJoins       = []joinField{{"session", "session"}, {"user", "user"}, {"port", "rport"}, {"port", "client-port"}}
	transactionJoins = []joinField{{"message-id", "message-id"}, {"recipient", "recipient"}, {"sender", "sender"}, {"port", "client-port"}, {"user", "user"}}
)

// JoinedBy says whether the record carries the key.
func (r *Record) JoinedBy(key string) bool {
	var buf [16]string
	for _, k := range r.keys(buf[:0]) {
		if k == key {
			return true
		}
	}
	return false
}
