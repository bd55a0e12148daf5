package postfix

import (
	"bytes"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/haproxy"
	"github.com/mailproof/mailproof/harness/reference/source/link"
)

// unknown stands for a client's name that is not known, and for other things
// of a client that are not.
const unknown = "unknown"

// nameStatus says how it came that a name is or is not known.
type nameStatus int

const (
	nameOK nameStatus = iota
	nameTemporary
	nameUnknown
)

// Where a session is, as the log names it.
const (
	afterConnect = "CONNECT"
	afterData    = "DATA content"
	afterBDAT    = "BDAT content"
	afterMessage = "END-OF-MESSAGE"
	inUnknown    = "UNKNOWN"
)

// Why a session ended.
const (
	lostConnection = "lost connection"
	timedOut       = "timeout"
	tooManyErrors  = "too many errors"
)

// session is one connection to an smtpd.
type session struct {
	srv *Server
	set *service
	c   *link.Conn
	pid int

	// Who the client is: the peer, or whom the peer announced.
	name, reverse     string
	nameIs, reverseIs nameStatus
	ip                netip.Addr // invalid when it is not known
	addr, rfcAddr     string     // as the log and as a header write it
	port              string
	destAddr          string
	namaddr           string // name[addr]:port, for the log
	claimed           atomic.Pointer[netip.Addr]
	peer              string // namaddr of the connection itself
	peerName          string
	counted           netip.Prefix // who anvil was told of the connection; invalid if nobody
	peerRange         netip.Prefix

	xclientOK, xforwardOK bool
	helo                  string
	hasHelo               bool
	firstHelo             string
	proto                 string // "SMTP", "ESMTP"
	where                 string
	denied                string // the refusal that the client was greeted with
	errors, junk          int
	hangup                bool
	pipelined             bool // said too much too early, and it was logged
	noted                 bool // bare line feeds came
	reason                string
	stats                 [commandCount + 1]tally
	tokens                []token
	line                  string // the command as it came

	saslActive   bool
	saslUser     string
	saslMethod   string
	saslSender   string
	saslReply    string
	saslLastUser string

	xf            *forwarded
	xclientUsed   bool   // an XCLIENT was obeyed
	milterRefuses string // what milters that are not there make of a message
	dead          bool   // the process has died

	mail
	checks
}

// tally counts one kind of command.
type tally struct{ good, all int }

// outcome is what a command did.
type outcome int

const (
	done    outcome = iota // it succeeded
	failed                 // it failed, and counts as an error
	greet                  // the session goes back to its greeting
	gone                   // the connection is of no more use
	silence                // the connection is closed without another word
)

// errGone says that the client went away; why stands in session.reason.
var errGone = errors.New("the client is gone")

func newSession(s *Server, set *service, c *link.Conn, pid int) *session {
	return &session{srv: s, set: set, c: c, pid: pid, proto: "SMTP", where: afterConnect}
}

func (in *session) log(parts ...string) { in.srv.write(in.set.program, in.pid, parts...) }

// reply sends one reply. Clients that made many errors wait for it.
func (in *session) reply(parts ...string) {
	if in.errors >= in.set.softErrors {
		in.c.Wait(in.set.errorSleep)
	}
	if in.set.softBounce && len(parts[0]) > 0 && parts[0][0] == '5' {
		text := []byte(strings.Join(parts, ""))
		if text[0] = '4'; len(text) > 4 && text[4] == '5' {
			text[4] = '4'
		}
		parts = []string{string(text)}
	}
	in.c.Line(parts...)
	if strings.HasPrefix(parts[0], "421") || strings.HasPrefix(parts[0], "521") {
		in.hangup = true
	}
}

// fail replies and says that the command failed.
func (in *session) fail(parts ...string) outcome {
	in.reply(parts...)
	return failed
}

// serve talks SMTP until the client or the server has enough.
func (in *session) serve() {
	bad := in.identify()
	in.log("connect from ", in.namaddr)
	in.xclientOK = in.matches(in.set.xclient)
	in.xforwardOK = in.matches(in.set.xforward)
	switch {
	case bad:
		in.reply("421 4.3.0 ", in.set.myhostname, " Server local error")
	case in.set.wrapper && !in.startTLS(link.Feed):
	default:
		for in.talk() == greet {
		}
	}
	in.disconnect()
}

// identify finds out who the client is, and says whether a PROXY header that
// had to be there was not.
func (in *session) identify() (bad bool) {
	peer := in.c.Peer
	from, to := peer, in.c.Host
	if in.set.haproxy {
		h, err := in.proxyHeader()
		switch {
		case err != "":
			in.log("warning: haproxy read: ", err)
			bad = true
		case h.Source.IsValid():
			from, to = h.Source, h.Dest
		}
	}
	in.ip = from.Addr()
	in.addr = in.ip.String()
	in.rfcAddr = in.addr
	if in.ip.Is6() {
		in.rfcAddr = "IPv6:" + in.addr
	}
	in.port = strconv.Itoa(int(from.Port()))
	in.destAddr = to.Addr().String()
	in.name, in.reverse = unknown, unknown
	in.nameIs, in.reverseIs = nameUnknown, nameUnknown
	if in.set.peername {
		// Nobody but /etc/hosts answers for names.
		in.nameIs, in.reverseIs = nameTemporary, nameTemporary
		if n, ok := in.srv.hostname(in.ip); ok {
			in.name, in.reverse, in.nameIs, in.reverseIs = n, n, nameOK, nameOK
		}
	}
	in.peerRange = in.set.rangeOf(in.srv.c.release, in.ip)
	in.peerName = in.name
	in.peer = in.describe(in.name, in.addr, in.port)
	in.rename()
	return bad
}

// proxyHeader reads what smtpd_upstream_proxy_protocol demands.
func (in *session) proxyHeader() (haproxy.Header, string) {
	if err := in.c.ReadQuiet(in.set.haproxyTimeout); link.IsTimeout(err) {
		return haproxy.Header{}, "timeout error"
	}
	raw, _ := in.c.Reader().Peek(min(in.c.Buffered(), 512))
	if i := bytes.IndexByte(raw, '\n'); i >= 0 && raw[0] != '\r' {
		raw = raw[:i+1]
	}
	text, version1 := escape(raw), len(raw) > 0 && raw[0] == 'P'
	h, err := haproxy.Read(in.c.Reader())
	var bad *haproxy.Error
	why := ""
	switch {
	case err == nil && (h.Source.IsValid() || h.Local):
		return h, ""
	case err == nil && version1:
		why = "bad or missing protocol type"
	case err == nil:
		why = "unsupported network protocol"
	case errors.As(err, &bad) && bad.NoHeader && len(raw) < 16:
		why = "short protocol header"
	case errors.As(err, &bad) && bad.NoHeader:
		why = "unrecognized protocol header"
	case errors.As(err, &bad):
		why = strings.ToLower(bad.Why)
	default:
		return h, "EOF"
	}
	return haproxy.Header{}, why + ": " + text
}

// describe writes name[addr] or name[addr]:port.
func (in *session) describe(name, addr, port string) string {
	if in.set.clientPort {
		return name + "[" + addr + "]:" + port
	}
	return name + "[" + addr + "]"
}

// rename writes anew who the client is, after something of it has changed.
func (in *session) rename() {
	bugs := in.srv.bugs
	addr, port := in.addr, in.port
	if bugs.Has(bug.IPv4RecordedAsMapped) && in.ip.Is4() && in.claimed.Load() != nil {
		addr = "::ffff:" + addr
	}
	if bugs.Has(bug.DropsPort) {
		port = strconv.Itoa(int(in.c.Peer.Port()))
	}
	in.namaddr = in.describe(in.name, addr, port)
	if bugs.Has(bug.LogsProxyAddress) {
		in.namaddr = in.peer
	}
}

// client is who the log says the client is.
func (in *session) client() string {
	if in.srv.bugs.Has(bug.MixesUpSessions) {
		if a, ok := in.srv.other(in); ok {
			return in.describe(in.name, a.String(), in.port)
		}
	}
	return in.namaddr
}

// matches says whether the client is on a list, and logs what is wrong with
// the list. A list that cannot be read has nobody on it.
func (in *session) matches(l *matchList) bool {
	ok, trouble := l.match(in.name, in.ip, in.addr)
	for _, t := range trouble {
		in.log("warning: ", t)
	}
	return ok
}

// broken says whether a list cannot be read as far as it matters to the client.
func (in *session) broken(l *matchList) bool {
	_, trouble := l.match(in.name, in.ip, in.addr)
	return len(trouble) > 0
}

// startTLS makes the session a TLS session. It is over if that fails. residue
// says what becomes of octets that came before.
func (in *session) startTLS(residue link.Residue) bool {
	if err := in.c.StartTLS(in.srv.tls, residue); err != nil {
		what := "-1"
		switch {
		case link.IsTimeout(err):
			what = "Connection timed out"
		case isEOF(err):
			what = "lost connection"
		case isReset(err):
			what = "Connection reset by peer"
		}
		in.log("SSL_accept error from ", in.client(), ": ", what)
		if what == "-1" {
			in.log("warning: TLS library problem: error:0A00010B:SSL routines::wrong version number:../ssl/record/ssl3_record.c:354:")
		}
		in.reason = lostConnection
		return false
	}
	if in.set.tlsLog > 0 {
		in.log("Anonymous TLS connection established from ", in.client(), ": ", in.describeTLS())
	}
	if in.set.sasl {
		in.saslReset()
		return in.saslActivate()
	}
	return true
}

// talk greets the client and obeys it. It returns greet when an XCLIENT has
// made it another client.
func (in *session) talk() outcome {
	set, bugs := in.set, in.srv.bugs
	if !set.wrapper && !in.pipelined && in.saysTooMuch() && set.forbidPipelining {
		in.reply("554 5.5.0 Error: SMTP protocol synchronization")
		return gone
	}
	if !in.admit() {
		return gone
	}
	in.denied = ""
	if bugs.Has(bug.GreetingLate) && in.where == afterConnect {
		in.c.Wait(8 * time.Second)
	}
	if bugs.Has(bug.TurnsAway) {
		in.reply("421 4.7.0 ", set.myhostname, " Error: too many connections from ", in.addr)
		return gone
	}
	refused := ""
	if !set.delayReject {
		refused = in.checkClient()
	}
	switch {
	case refused != "":
		in.denied = refused
		in.reply(refused)
		in.errors++
	case len(set.milters) > 0 && !in.milterGreeting():
		if in.hangup {
			return gone
		}
	default:
		in.reply("220 ", set.banner)
	}
	if set.sasl && !in.saslActive && !in.c.Secure() && !set.authOnly {
		if !in.saslActivate() {
			return gone
		}
	}
	for !in.hangup {
		if in.errors >= set.hardErrors {
			in.reason = tooManyErrors
			in.reply("421 4.7.0 ", set.myhostname, " Error: too many errors")
			break
		}
		if err := in.read(set.lineLimit); err != nil {
			return gone
		}
		switch o := in.obey(); o {
		case greet, gone, silence:
			return o
		}
	}
	return gone
}

// milterGreeting plays milters of which none can be reached: no milter is ever
// there. It says whether the client is greeted as usual.
func (in *session) milterGreeting() bool {
	for _, m := range in.set.milters {
		in.log("warning: connect to Milter service ", m, ": Connection refused")
	}
	switch in.set.milterAction {
	case "accept":
		return true
	case "reject":
		in.reply("554 ", in.set.myhostname, " ESMTP not accepting connections")
		in.errors++
		in.milterRefuses = "550 5.5.0 Service unavailable"
		return false
	case "shutdown":
		in.reply("421 ", in.set.myhostname, " Service unavailable - try again later")
		in.hangup = true
		return false
	}
	in.milterRefuses = "451 4.7.1 Service unavailable - try again later"
	return true
}

// milterAnswer is what an absent milter makes of STARTTLS and AUTH.
func (in *session) milterAnswer() string {
	if strings.HasPrefix(in.milterRefuses, "4") {
		return "454 4.3.0 Try again later"
	}
	return in.milterRefuses
}

// saysTooMuch says whether the client has spoken when it was not its turn, and
// logs that.
func (in *session) saysTooMuch() bool {
	n := in.c.Buffered()
	if n == 0 {
		return false
	}
	b, _ := in.c.Reader().Peek(min(n, 100))
	in.log("improper command pipelining after ", in.where, " from ", in.client(), ": ", escape(b))
	in.pipelined = true
	return true
}

// admit enforces what smtpd_client_connection_*_limit say. Hosts that may use
// XCLIENT are not counted.
func (in *session) admit() bool {
	set := in.set
	if in.xclientOK || in.matches(set.exempt) {
		return true
	}
	who := in.anvilClient()
	open, rate := in.srv.connected(set, who)
	in.counted = who
	over, what := 0, ""
	switch {
	case set.connections > 0 && open > set.connections:
		over, what = open, "concurrency"
	case set.connectionRate > 0 && rate > set.connectionRate:
		over, what = rate, "rate"
	default:
		return true
	}
	in.log("warning: Connection ", what, " limit exceeded: ", strconv.Itoa(over), " from ", in.client(), " for service ", set.name)
	in.reply("421 4.7.0 ", set.myhostname, " Error: too many connections from ", in.addr)
	return false
}

// anvilClient is what the client is counted as: 3.7 goes by the announced
// address, 3.10 by the connection's.
func (in *session) anvilClient() netip.Prefix {
	if in.srv.c.release == Trixie {
		return in.peerRange
	}
	return in.set.rangeOf(in.srv.c.release, in.ip)
}

// limited counts an event and says whether there were too many.
func (in *session) limited(limit int, which func(*events) *int) (n int, over bool) {
	if limit <= 0 || in.xclientOK || in.matches(in.set.exempt) {
		return 0, false
	}
	n = in.srv.did(in.set, in.anvilClient(), which)
	return n, n > limit
}

// read reads one line. What is longer than the limit is cut off.
func (in *session) read(limit int) error {
	in.c.SetTimeout(in.set.timeout)
	line, _, err := in.readLine(limit)
	switch {
	case err == nil:
		in.line = line
		return nil
	case link.IsTimeout(err):
		in.reason = timedOut
		in.c.Line("421 4.4.2 ", in.set.myhostname, " Error: timeout exceeded")
	default:
		in.reason = lostConnection
	}
	return errGone
}

// readLine reads a line that ends in LF or CRLF.
func (in *session) readLine(limit int) (line string, bare bool, err error) {
	br := in.c.Reader()
	var long []byte
	for {
		b, err := br.ReadSlice('\n')
		if err == nil && long == nil {
			n := len(b) - 1
			bare = n == 0 || b[n-1] != '\r'
			if !bare {
				n--
			}
			if n <= limit {
				return string(b[:n]), bare, nil
			}
		}
		if room := limit - len(long); room > 0 {
			long = append(long, b[:min(len(b), room)]...)
		}
		if err == nil {
			if n := len(long); n < limit { // it was whole
				long = long[:n-1]
				if n > 1 && long[n-2] == '\r' {
					return string(long[:n-2]), false, nil
				}
				return string(long), true, nil
			}
			in.log("warning: ", in.client(), ": request longer than ", strconv.Itoa(limit), ": ", clip(printable(string(long), '?'), 30), "...")
			return string(long), false, nil
		}
		if !isBufferFull(err) {
			return "", false, err
		}
	}
}

// A command of SMTP.
type command struct {
	name   string
	run    func(*session, []token) outcome
	limit  bool // counts as junk
	preTLS bool // allowed before TLS that is required
	last   bool // ends a group of pipelined commands
}

const commandCount = 16

// commands are in the order in which the log counts them.
var commands = [commandCount]command{
	{"HELO", (*session).heloCmd, true, true, true},
	{"EHLO", (*session).ehloCmd, true, true, true},
	{"XCLIENT", (*session).xclientCmd, false, true, false},
	{"XFORWARD", (*session).xforwardCmd, false, false, false},
	{"STARTTLS", (*session).starttlsCmd, false, true, false},
	{"AUTH", (*session).authCmd, false, false, false},
	{"MAIL", (*session).mailCmd, false, false, false},
	{"RCPT", (*session).rcptCmd, false, false, false},
	{"DATA", (*session).dataCmd, false, false, true},
	{"BDAT", (*session).bdatCmd, false, false, false},
	{"RSET", (*session).rsetCmd, true, false, false},
	{"NOOP", (*session).noopCmd, true, true, true},
	{"VRFY", (*session).vrfyCmd, true, false, true},
	{"ETRN", (*session).etrnCmd, true, false, false},
	{"QUIT", (*session).quitCmd, false, true, false},
	{"HELP", (*session).helpCmd, false, true, false},
}

// find returns the index of a command, or that of unknown ones. HELP came
// with 3.9.
func (in *session) find(word string) int {
	for i := range commands {
		if strings.EqualFold(word, commands[i].name) && (i < len(commands)-1 || in.srv.c.release == Trixie) {
			return i
		}
	}
	return len(commands)
}

// obey runs one command.
func (in *session) obey() outcome {
	set := in.set
	malformed := func(text string) outcome {
		in.reply(text)
		in.errors++
		if in.srv.c.release == Trixie {
			in.where = inUnknown
			in.stats[len(commands)].all++
		}
		return failed
	}
	if set.utf8 && !utf8.ValidString(in.line) {
		return malformed("500 5.5.2 Error: bad UTF-8 syntax")
	}
	in.tokens = tokenize(in.line, in.tokens[:0])
	if len(in.tokens) == 0 {
		return malformed("500 5.5.2 Error: bad syntax")
	}
	word := in.tokens[0].text
	i := in.find(word)
	in.stats[i].all++
	if i == len(commands) {
		in.where = inUnknown
		if isHeader(word) || in.forbidden(word) {
			in.log("warning: non-SMTP command from ", in.client(), ": ", clip(escape([]byte(in.line)), 100))
			in.reply("221 2.7.0 Error: I can break rules, too. Goodbye.")
			return gone
		}
	}
	quit := i < len(commands) && commands[i].name == "QUIT"
	switch {
	case in.denied != "" && !quit:
		if strings.HasPrefix(in.denied[1:], "21") {
			in.reply(in.denied)
			return failed
		}
		in.reply("503 5.7.0 Error: access denied for ", in.client())
		in.errors++
		return failed
	case i == len(commands):
		in.reply("500 5.5.2 Error: command not recognized")
		in.errors++
		return failed
	}
	cmd := &commands[i]
	if set.tlsRequired && !in.c.Secure() && !cmd.preTLS {
		in.reply("530 5.7.0 Must issue a STARTTLS command first")
		in.errors++
		return failed
	}
	in.where = cmd.name
	if (in.proto != "ESMTP" || cmd.last) && !in.pipelined && in.saysTooMuch() && set.forbidPipelining {
		in.reply("554 5.5.0 Error: SMTP protocol synchronization")
		return gone
	}
	o := cmd.run(in, in.tokens)
	switch o {
	case done:
		in.stats[i].good++
	case failed:
		in.errors++
	default:
		return o
	}
	if cmd.limit {
		if in.junk++; in.junk > set.junkLimit+1 {
			in.errors++
		}
	}
	if quit {
		return gone
	}
	return o
}

func (in *session) forbidden(word string) bool {
	for _, f := range in.set.forbidden {
		if strings.EqualFold(word, f) {
			return true
		}
	}
	_, ok, _ := in.set.forbiddenMaps.find(word, false)
	return ok
}

// disconnect logs how the session ended. A process that has died logs nothing.
func (in *session) disconnect() {
	if in.counted.IsValid() {
		in.srv.disconnected(in.set, in.counted)
	}
	if in.dead {
		return
	}
	if in.reason != "" {
		id := ""
		if in.srv.c.release == Trixie {
			id = in.queueIDOr() + ": "
		}
		switch {
		case in.where == afterData:
			in.log(id, in.reason, " after DATA (", strconv.Itoa(in.size), " bytes) from ", in.client())
		case in.where == afterBDAT:
			in.log(id, in.reason, " after BDAT (", strconv.Itoa(in.size), " bytes) from ", in.client())
		case in.where != afterMessage || in.reason != lostConnection:
			in.log(id, in.reason, " after ", in.where, " from ", in.client())
		}
	}
	in.resetMail()
	in.log("disconnect from ", in.client(), in.tallies())
}

// tallies counts what commands there were.
func (in *session) tallies() string {
	b := make([]byte, 0, 96)
	count := func(name string, t tally) {
		b = append(append(append(b, ' '), name...), '=')
		b = strconv.AppendInt(b, int64(t.good), 10)
		if t.good != t.all {
			b = strconv.AppendInt(append(b, '/'), int64(t.all), 10)
		}
	}
	var sum tally
	for i, t := range in.stats {
		if t.all == 0 {
			continue
		}
		name := "unknown"
		if i < len(commands) {
			name = strings.ToLower(commands[i].name)
		}
		count(name, t)
		sum.good += t.good
		sum.all += t.all
	}
	count("commands", sum)
	if sum.all == 0 {
		b = append(b, "/0"...)
	}
	if in.noted {
		b = append(b, " notes=bare_lf"...)
	}
	return string(b)
}
