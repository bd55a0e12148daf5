package proto

import "strings"

// pop3 reads a status line, and the body that a positive status of the
// outstanding command has (RFC 1939, section 3; RFC 2449, section 5).
func (r *unitReader) pop3() error {
	line, err := r.line()
	if err != nil {
		return err
	}
	r.end(line)
	switch {
	case line == "+" || strings.HasPrefix(line, "+ "):
		return nil // a SASL continuation (RFC 5034): the command is still outstanding
	case strings.HasPrefix(line, "+OK"), strings.HasPrefix(line, "-ERR"):
	default:
		return r.malformed(line, `"+OK" or "-ERR"`)
	}
	if !r.v.greeted || len(r.v.commands) == 0 {
		return nil
	}
	command := r.v.commands[0]
	r.v.commands = r.v.commands[1:]
	if !strings.HasPrefix(line, "+OK") || !hasBody(command) {
		return nil
	}
	for {
		line, err := r.line()
		if err != nil {
			return err
		}
		if line == "." {
			return nil
		}
		r.u.Lines = append(r.u.Lines, strings.TrimPrefix(line, "."))
	}
}

// hasBody says whether a positive reply to the command is multi-line.
func hasBody(command string) bool {
	verb, arg, _ := strings.Cut(strings.TrimSpace(command), " ")
	switch verb {
	case "CAPA", "RETR", "TOP":
		return true
	case "LIST", "UIDL", "AUTH":
		return strings.TrimSpace(arg) == ""
	}
	return false
}
