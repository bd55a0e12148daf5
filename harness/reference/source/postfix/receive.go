package postfix

import (
	"bytes"
	"io"
	"strconv"
	"strings"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/link"
)

// maxMessage bounds what one message may take of memory, whatever
// message_size_limit says.
const maxMessage = 64 << 20

const tooBig = "552 5.3.4 Error: message file too big"

func (in *session) dataCmd(args []token) outcome {
	switch {
	case in.inBDAT || in.badBDAT:
		return in.fail("503 5.5.1 Error: DATA after BDAT")
	case in.rcptCount == 0 && !in.inMail:
		return in.fail("503 5.5.1 Error: need RCPT command")
	case in.rcptCount == 0 || in.badRcpts > 0 && in.srv.bugs.Has(bug.OneBadRefusesAll):
		return in.fail("554 5.5.1 Error: no valid recipients")
	case len(args) != 1:
		return in.fail("501 5.5.4 Syntax: DATA")
	}
	if r := in.checkData(); r != "" {
		return in.fail(r)
	}
	in.reply("354 End data with <CR><LF>.<CR><LF>")
	in.where = afterData
	if !in.receive() {
		return gone
	}
	in.where = afterMessage
	return in.finish(false)
}

// receive reads a message to its end.
func (in *session) receive() bool {
	br := in.c.Reader()
	strict := in.set.bareLF != "no"
	begun, bareBefore := true, false // at the beginning of a line
	for {
		in.c.SetTimeout(in.set.timeout)
		b, err := br.ReadSlice('\n')
		if err != nil && !isBufferFull(err) {
			in.lost(err)
			return false
		}
		whole := err == nil
		line, bare := b, false
		if whole {
			if line = b[:len(b)-1]; len(line) > 0 && line[len(line)-1] == '\r' {
				line = line[:len(line)-1]
			} else {
				bare = true
			}
		}
		if bare {
			in.bare()
		}
		if begun && len(line) > 0 && line[0] == '.' {
			if whole && len(line) == 1 {
				if !strict || !bare && !bareBefore {
					return true
				}
				continue // no end, and no line either
			}
			if !in.srv.bugs.Has(bug.DotStuffingKept) {
				line = line[1:]
			}
		}
		in.keepLine(line, begun, whole)
		begun = whole
		if whole {
			bareBefore = bare
		}
	}
}

// bare notes that a line ended in LF alone.
func (in *session) bare() {
	switch in.set.bareLF {
	case "note":
		in.noted = true
	case "reject":
		in.failure = "bare <LF> received"
	}
}

// keepLine adds a line, or a part of one, to the message.
func (in *session) keepLine(line []byte, begun, whole bool) {
	if begun && !in.sawFirst {
		if bytes.HasPrefix(bytes.TrimLeft(line, ">"), []byte("From ")) {
			in.body = append(in.body, "X-Mailbox-Line: "...)
		}
		in.sawFirst = true
	}
	n := len(line)
	if whole {
		n += 2
	}
	limit := in.set.sizeLimit
	if limit <= 0 || limit > maxMessage {
		limit = maxMessage
	}
	if in.failure == tooBig {
		return
	}
	if in.size+n > limit {
		in.failure = tooBig
		in.log("warning: ", in.queueIDOr(), ": queue file size limit exceeded")
		in.body = nil
		return
	}
	in.size += n
	in.body = append(in.body, line...)
	if whole {
		in.body = append(in.body, "\r\n"...)
	}
}

// lost remembers why the client's input ended.
func (in *session) lost(err error) {
	if link.IsTimeout(err) {
		in.reason = timedOut
		in.c.Line("421 4.4.2 ", in.set.myhostname, " Error: timeout exceeded")
		return
	}
	in.reason = lostConnection
}

func (in *session) bdatCmd(args []token) outcome {
	set := in.set
	if set.discard["CHUNKING"] {
		return in.fail("521 5.5.1 Error: command not implemented")
	}
	var size int64
	ok := len(args) == 2 || len(args) == 3 && strings.EqualFold(args[2].text, "LAST")
	if ok {
		var err error
		if size, err = strconv.ParseInt(args[1].text, 10, 63); err != nil || !allDigits(args[1].text) {
			ok = false
		}
	}
	if !ok {
		in.log("warning: ", in.queueIDOr(), ": malformed BDAT command syntax from ", in.client(), ": ", clip(printable(in.line, '?'), 100))
		return in.fail("521 5.5.4 Syntax: BDAT count [LAST]")
	}
	last := len(args) == 3
	switch {
	case size == 0 && !last:
		in.log("warning: ", in.queueIDOr(), ": null BDAT request from ", in.client())
		return in.skip(size, last, "551 5.7.1 Null BDAT request")
	case in.badBDAT:
		return in.skip(size, last, "551 5.0.0 Discarded "+strconv.FormatInt(size, 10)+" bytes after earlier error")
	}
	if !in.inBDAT {
		switch {
		case in.rcptCount == 0 && !in.inMail:
			return in.skip(size, last, "503 5.5.1 Error: need RCPT command")
		case in.rcptCount == 0 || in.badRcpts > 0 && in.srv.bugs.Has(bug.OneBadRefusesAll):
			return in.skip(size, last, "554 5.5.1 Error: no valid recipients")
		}
		if r := in.checkData(); r != "" {
			return in.skip(size, last, r)
		}
	}
	limit := int64(set.sizeLimit)
	if limit <= 0 || limit > maxMessage {
		limit = maxMessage
	}
	if int64(in.size) > limit-size {
		in.log("warning: ", in.queueIDOr(), ": BDAT request from ", in.client(), " exceeds message size limit")
		return in.skip(size, last, "552 5.3.4 Chunk exceeds message size limit")
	}
	in.inBDAT, in.where = true, afterBDAT
	if !in.chunk(int(size), last) {
		return gone
	}
	if last {
		in.where = afterMessage
		return in.finish(true)
	}
	if in.failure != "" {
		in.finish(true)
		in.badBDAT = true
		return failed
	}
	in.reply("250 2.0.0 Ok: ", strconv.FormatInt(size, 10), " bytes")
	return done
}

// chunk reads one chunk. Lines may go on in the next.
func (in *session) chunk(size int, last bool) bool {
	buf := make([]byte, min(size, 32<<10))
	for size > 0 {
		in.c.SetTimeout(in.set.timeout)
		n, err := io.ReadFull(in.c.Reader(), buf[:min(size, len(buf))])
		size -= n
		in.lines(buf[:n])
		if err != nil {
			in.lost(err)
			return false
		}
	}
	if last && len(in.tail) > 0 {
		in.keepLine(in.tail, true, true)
		in.tail = in.tail[:0]
	}
	return true
}

// lines takes octets of a chunk, line by line.
func (in *session) lines(b []byte) {
	for {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			if in.failure != tooBig {
				in.tail = append(in.tail, b...)
			}
			return
		}
		line := b[:i]
		if len(in.tail) > 0 {
			in.tail = append(in.tail, line...)
			line = in.tail
		}
		b = b[i+1:]
		if n := len(line); n > 0 && line[n-1] == '\r' {
			line = line[:n-1]
		} else {
			in.bare()
		}
		in.keepLine(line, true, true)
		in.tail = in.tail[:0]
	}
}

// skip reads a chunk that is not wanted, and refuses it.
func (in *session) skip(size int64, last bool, text string) outcome {
	limit := int64(in.set.sizeLimit)
	cut := in.srv.c.release == Trixie && limit > 0 && (int64(in.size)+size)*2 > limit*3
	if !cut {
		in.size += int(min(size, maxMessage))
		for size > 0 {
			in.c.SetTimeout(in.set.timeout)
			n, err := io.CopyN(io.Discard, in.c.Reader(), min(size, 1<<20))
			size -= n
			if err != nil {
				in.where = "BDAT"
				in.lost(err)
				return gone
			}
		}
	}
	out := in.fail(text)
	if cut {
		in.log("warning: ", in.queueIDOr(), ": too much BDAT content -- disabling further input from ", in.client())
		in.reason = lostConnection
		return gone
	}
	if !last {
		in.badBDAT = true
		return out
	}
	in.resetMail()
	if in.srv.c.release == Trixie {
		in.resetRecipients()
	}
	return out
}

// finish takes or refuses a message that has come to its end.
func (in *session) finish(chunked bool) outcome {
	if in.failure == "" {
		if r := in.checkEnd(); r != "" {
			in.reply(r)
			in.resetMail()
			in.resetRecipients()
			return failed
		}
	}
	if in.failure == "" {
		in.failure = in.submit(chunked)
	}
	id, size := in.queueID, in.size
	out := done
	switch {
	case in.failure == "":
		in.queueID = "" // it is not given up, it is delivered
		in.errors, in.junk = 0, 0
		if chunked {
			in.reply("250 2.0.0 Ok: ", strconv.Itoa(size), " bytes queued as ", id)
		} else {
			in.reply("250 2.0.0 Ok: queued as ", id)
		}
	case in.failure == "bare <LF> received":
		in.whatsup("reject", in.failure, nil, nil)
		in.reply("550 5.5.2 ", in.set.myhostname, " Error: bare <LF> received")
		out = failed
	default:
		in.reply(in.failure)
		out = failed
	}
	in.resetMail()
	in.resetRecipients()
	return out
}
