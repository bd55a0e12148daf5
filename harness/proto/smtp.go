package proto

// smtp reads all lines of one reply (RFC 5321, section 4.2.1).
func (r *unitReader) smtp() error {
	code := ""
	for {
		line, err := r.line()
		if err != nil {
			return err
		}
		if len(line) < 3 || !isReplyCode(line[:3]) || len(line) > 3 && line[3] != ' ' && line[3] != '-' {
			return r.malformed(line, `a reply code and " " or "-"`)
		}
		if code != "" && line[:3] != code {
			return r.malformed(line, "another line of the reply "+code)
		}
		code = line[:3]
		more := len(line) > 3 && line[3] == '-'
		if len(line) > 3 {
			line = code + " " + line[4:]
		}
		if !more {
			r.end(line)
			return nil
		}
		r.u.Lines = append(r.u.Lines, line)
	}
}

func isReplyCode(s string) bool {
	return s[0] >= '2' && s[0] <= '5' && s[1] >= '0' && s[1] <= '9' && s[2] >= '0' && s[2] <= '9'
}
