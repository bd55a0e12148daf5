package witness

import "strings"

// prefix splits a log line into the program that wrote it, its process id and
// its message. It knows the forms in which Dovecot and Postfix reach a file, a
// pipe or syslog:
//
//	2026-11-23T14:59:12.658761 imap-login: Info: …             Dovecot, log_timestamp set
//	Nov 23 14:59:12 imap-login: Info: …                        Dovecot, default log_timestamp
//	Nov 23 14:59:12 host postfix/smtpd[214]: …                 Postfix, and syslog's old form
//	2026-11-23T14:59:12.658761+00:00 host dovecot: imap-login: …   syslog's new form
//
// The time and the host are skipped strictly by their form, so that nothing
// that a client chose can stand where the program's name is read.
func prefix(line string) (program, pid, message string, ok bool) {
	rest, stamped := skipTime(line)
	if !stamped {
		return "", "", "", false
	}
	// "host program[pid]: message" or "program: message".
	first, after, found := strings.Cut(rest, " ")
	if !found {
		return "", "", "", false
	}
	if !strings.HasSuffix(first, ":") {
		// A login process of Dovecot writes "imap(user)<pid><session>: " as its
		// first word; a host never holds a parenthesis.
		if strings.ContainsAny(first, "()<>[]:") {
			return "", "", "", false
		}
		rest = after
		if first, after, found = strings.Cut(rest, " "); !found || !strings.HasSuffix(first, ":") {
			return "", "", "", false
		}
	}
	program = strings.TrimSuffix(first, ":")
	if i := strings.IndexByte(program, '['); i > 0 && strings.HasSuffix(program, "]") {
		pid = program[i+1 : len(program)-1]
		program = program[:i]
	}
	return program, pid, after, true
}

// skipTime skips a time stamp and the space after it.
func skipTime(line string) (rest string, ok bool) {
	if len(line) > 20 && line[4] == '-' && line[7] == '-' && line[10] == 'T' && isDigits(line[:4]) {
		i := strings.IndexByte(line, ' ')
		if i < 19 || i > 40 {
			return "", false
		}
		return line[i+1:], true
	}
	// "Nov 23 14:59:12 " or "Nov  3 14:59:12 ".
	if len(line) > 16 && line[3] == ' ' && line[6] == ' ' && line[9] == ':' && line[12] == ':' && line[15] == ' ' && isDigits(line[7:9]) {
		return line[16:], true
	}
	return "", false
}

func isDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}
