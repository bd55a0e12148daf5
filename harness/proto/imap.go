package proto

import (
	"errors"
	"strings"

	"github.com/mailproof/mailproof/harness/wire"
)

// imap reads up to and including a tagged line or a continuation request
// (RFC 3501, section 2.2). The greeting is one untagged line. After a BYE the
// close of the connection ends the unit as well.
func (r *unitReader) imap() error {
	for {
		line, err := r.logical()
		if err != nil {
			var closed *wire.Closed
			if n := len(r.u.Lines); n > 0 && errors.As(err, &closed) && isBye(r.u.Lines[n-1]) {
				r.u.Status, r.u.Ended = r.u.Lines[n-1], true
				return nil
			}
			return err
		}
		switch {
		case line == "+" || strings.HasPrefix(line, "+ "):
			r.end(line)
			return nil
		case strings.HasPrefix(line, "* "):
			if !r.v.greeted {
				r.end(line)
				return nil
			}
			r.u.Lines = append(r.u.Lines, line)
		case !r.v.greeted:
			return r.malformed(line, `an untagged greeting ("* OK", "* PREAUTH" or "* BYE")`)
		default:
			tag, rest, ok := strings.Cut(line, " ")
			if !ok || tag == "" || strings.ContainsAny(tag, "(){%*\"\\]") || rest == "" {
				return r.malformed(line, "a tagged or untagged response")
			}
			r.end(line)
			return nil
		}
	}
}

func isBye(line string) bool {
	return len(line) >= 5 && strings.EqualFold(line[:5], "* BYE")
}
