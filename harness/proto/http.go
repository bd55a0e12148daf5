package proto

import (
	"strconv"
	"strings"

	"github.com/mailproof/mailproof/harness/wire"
)

// http reads one response (RFC 9112): the status line, the header fields with
// their names in lower case, an empty line, and the body as lines. It knows
// that no body follows a 1xx, 204 or 304, and takes a response without a
// length as ended by the connection's end.
func (r *unitReader) http() error {
	status, err := r.line()
	if err != nil {
		return err
	}
	f := strings.SplitN(status, " ", 3)
	if len(f) < 2 || !strings.HasPrefix(f[0], "HTTP/1.") || len(f[1]) != 3 || !isStatusCode(f[1]) {
		return r.malformed(status, "HTTP/1.1 and a status code")
	}
	r.u.Lines = append(r.u.Lines, status)
	r.u.Status = status
	length, chunked, close := -1, false, f[0] == "HTTP/1.0"
	for {
		line, err := r.line()
		if err != nil {
			return err
		}
		if line == "" {
			break
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || name == "" || strings.ContainsAny(name, " \t") {
			return r.malformed(line, "a header field")
		}
		name, value = strings.ToLower(name), strings.TrimSpace(value)
		r.u.Lines = append(r.u.Lines, name+": "+value)
		switch name {
		case "content-length":
			n, err := strconv.Atoi(value)
			if err != nil || n < 0 {
				return r.malformed(line, "a length")
			}
			length = n
		case "transfer-encoding":
			chunked = strings.EqualFold(value, "chunked")
		case "connection":
			close = close || strings.EqualFold(value, "close")
		}
	}
	var body []byte
	switch {
	case f[1][0] == '1', f[1] == "204", f[1] == "304", r.v.head:
	case chunked:
		body, err = r.chunks()
	case length >= 0:
		if length > MaxUnitOctets-r.octets {
			return &wire.TooLong{Conn: r.v.c.Name(), What: "body", Limit: MaxUnitOctets}
		}
		body, err = r.v.c.ReadFull(length, r.waiting, r.d)
	case close:
		body, err = r.rest()
	}
	if err != nil {
		return err
	}
	if len(body) > 0 {
		r.u.Lines = append(r.u.Lines, "")
		r.u.Lines = append(r.u.Lines, strings.Split(strings.ReplaceAll(strings.TrimRight(string(body), "\r\n"), "\r\n", "\n"), "\n")...)
		if len(r.u.Lines) > MaxUnitLines {
			return &wire.TooLong{Conn: r.v.c.Name(), What: "reply (lines)", Limit: MaxUnitLines}
		}
	}
	return nil
}

// chunks reads a chunked body and its trailer.
func (r *unitReader) chunks() ([]byte, error) {
	var body []byte
	for {
		line, err := r.line()
		if err != nil {
			return nil, err
		}
		size, _, _ := strings.Cut(line, ";")
		n, err := strconv.ParseUint(strings.TrimSpace(size), 16, 32)
		if err != nil {
			return nil, r.malformed(line, "the size of a chunk")
		}
		if n == 0 {
			break
		}
		if int(n) > MaxUnitOctets-r.octets-len(body) {
			return nil, &wire.TooLong{Conn: r.v.c.Name(), What: "body", Limit: MaxUnitOctets}
		}
		b, err := r.v.c.ReadFull(int(n), r.waiting, r.d)
		if err != nil {
			return nil, err
		}
		body = append(body, b...)
		if end, err := r.line(); err != nil || end != "" {
			if err == nil {
				err = r.malformed(end, "the end of a chunk")
			}
			return nil, err
		}
	}
	for {
		line, err := r.line()
		if err != nil || line == "" {
			return body, err
		}
	}
}

// rest reads a body that the connection's end ends.
func (r *unitReader) rest() ([]byte, error) {
	var body []byte
	for {
		line, err := r.line()
		if err == nil {
			body = append(append(body, line...), '\n')
			continue
		}
		if closed, ok := err.(*wire.Closed); ok && !closed.Reset {
			return append(body, closed.Partial...), nil
		}
		return nil, err
	}
}

func isStatusCode(s string) bool {
	return s[0] >= '1' && s[0] <= '5' && s[1] >= '0' && s[1] <= '9' && s[2] >= '0' && s[2] <= '9'
}
