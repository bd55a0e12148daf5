package proto

import (
	"errors"
	"strings"

	"github.com/mailproof/mailproof/harness/wire"
)

// managesieve reads up to and including an OK, NO or BYE line (RFC 5804,
// section 4), or the BAD that some servers send instead of NO. A quoted
// string alone on a line is a SASL challenge and a unit of its own when no
// capability can stand there.
func (r *unitReader) managesieve() error {
	for {
		line, err := r.logical()
		if err != nil {
			var closed *wire.Closed
			if n := len(r.u.Lines); n > 0 && errors.As(err, &closed) && strings.HasPrefix(r.u.Lines[n-1], "BYE") {
				r.u.Status, r.u.Ended = r.u.Lines[n-1], true
				return nil
			}
			return err
		}
		word, _, _ := strings.Cut(line, " ")
		switch strings.ToUpper(word) {
		case "OK", "NO", "BYE", "BAD":
			r.end(line)
			return nil
		}
		switch {
		case line == "":
			return r.malformed(line, "a response or a capability")
		case line[0] == '"' || line[0] == '{':
			r.u.Lines = append(r.u.Lines, line)
		default:
			return r.malformed(line, `a quoted capability, "OK", "NO" or "BYE"`)
		}
	}
}
