package dovecot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"

	"github.com/mailproof/mailproof/harness/proto"
	"github.com/mailproof/mailproof/harness/reference/source/bug"
	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/source/mailbox"
)

// imapService is the imap service: go-imap's server, which is given sessions
// that are signed in already.
type imapService struct {
	srv    *Server
	server *imapserver.Server
	conns  chan *mailConn
	stopc  chan struct{}
	done   chan struct{}
}

func newIMAPService(s *Server) *imapService {
	m := &imapService{srv: s, conns: make(chan *mailConn), stopc: make(chan struct{}), done: make(chan struct{})}
	m.server = imapserver.New(&imapserver.Options{
		NewSession: func(c *imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
			mc := c.NetConn().(*mailConn)
			return mc.user.Session(), &imapserver.GreetingData{PreAuth: true}, nil
		},
		Caps: imap.CapSet{
			imap.CapIMAP4rev1: {}, imap.CapNamespace: {}, imap.CapUIDPlus: {}, imap.CapESearch: {}, imap.CapSearchRes: {},
			imap.CapListExtended: {}, imap.CapListStatus: {}, imap.CapMove: {}, imap.CapStatusSize: {}, imap.CapBinary: {},
			imap.CapChildren: {}, imap.CapLiteralPlus: {},
		},
		// What go-imap would say of a client that left is in the log already.
		Logger: log.New(io.Discard, "", 0),
	})
	return m
}

func (m *imapService) start() {
	go func() {
		defer close(m.done)
		m.server.Serve(&handover{m})
	}()
}

func (m *imapService) stop() {
	close(m.stopc)
	<-m.done
	m.server.Close()
}

// handover is the listener of go-imap's server.
type handover struct{ m *imapService }

func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.m.conns:
		return c, nil
	case <-h.m.stopc:
		return nil, net.ErrClosed
	}
}

func (h *handover) Close() error   { return nil }
func (h *handover) Addr() net.Addr { return &net.TCPAddr{} }

// serve answers the login and serves the session until it ends.
func (m *imapService) serve(s *imapLogin, tag string) {
	defer m.srv.disconnect(s.who())
	c := &mailConn{login: s, user: m.srv.store.User(s.user), ended: make(chan struct{}), greeting: true}
	c.Conn = s.c.Session()
	c.br = s.c.Reader()
	caps := strings.Join(s.set.postLogin, " ")
	if s.plainCaps {
		c.say("* CAPABILITY "+caps, tag+" OK Logged in")
	} else {
		c.say(tag + " OK [CAPABILITY " + caps + "] Logged in")
	}
	select {
	case m.conns <- c:
		<-c.ended
	case <-m.stopc:
	}
	s.mailLog("imap", c.farewell())
}

// mailConn is the connection that go-imap's server sees. It keeps the
// server's greeting from the client, and answers itself what go-imap words
// differently from Dovecot, or not at all.
type mailConn struct {
	net.Conn
	br    *bufio.Reader
	login *imapLogin
	user  *mailbox.User
	ended chan struct{}
	once  sync.Once

	mu       sync.Mutex // of the fields that writing needs
	greeting bool       // the server's greeting has not been written yet
	out      int        // octets written to the client

	in        int // octets read from the client
	rest      []byte
	literal   int  // octets of a literal that are still to come
	inside    bool // the next line belongs to the command before
	idling    bool
	idLogged  bool
	loggedOut bool
	command   string // the last one
	began     time.Time
	err       error
}

// Close is the last that go-imap's server does with a connection.
func (c *mailConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { close(c.ended) })
	return err
}

// The client's patience is its own: a session ends with the source.
func (c *mailConn) SetReadDeadline(time.Time) error  { return nil }
func (c *mailConn) SetWriteDeadline(time.Time) error { return nil }
func (c *mailConn) SetDeadline(time.Time) error      { return nil }

func (c *mailConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := len(b)
	if c.greeting {
		i := bytes.IndexByte(b, '\n')
		if i < 0 {
			return n, nil
		}
		b, c.greeting = b[i+1:], false
		if len(b) == 0 {
			return n, nil
		}
	}
	c.out += len(b)
	if _, err := c.Conn.Write(b); err != nil {
		return 0, err
	}
	return n, nil
}

// say writes lines of our own.
func (c *mailConn) say(lines ...string) {
	text := strings.Join(lines, "\r\n") + "\r\n"
	c.mu.Lock()
	defer c.mu.Unlock()
	c.out += len(text)
	c.Conn.Write([]byte(text))
}

// Read gives the server one line, or a part of a literal, at a time: it asks
// for more only when it has answered what went before.
func (c *mailConn) Read(p []byte) (int, error) {
	for {
		if len(c.rest) > 0 {
			n := copy(p, c.rest)
			c.rest = c.rest[n:]
			return n, nil
		}
		if c.err != nil {
			return 0, c.err
		}
		if c.literal > 0 {
			n, err := c.br.Read(p[:min(len(p), c.literal)])
			c.literal -= n
			c.in += n
			c.fail(err)
			if n > 0 {
				return n, nil
			}
			continue
		}
		line, err := c.line()
		if err != nil {
			c.fail(err)
			continue
		}
		begins := !c.inside && !c.idling
		c.inside, c.idling = false, false
		if n, ok := literalSize(line); ok {
			c.literal, c.inside = n, true
		}
		if begins && c.own(line) {
			continue
		}
		c.rest = line
	}
}

func (c *mailConn) fail(err error) {
	if err != nil && c.err == nil {
		c.err = err
	}
}

// line reads one line with its end.
func (c *mailConn) line() ([]byte, error) {
	var long []byte
	for {
		b, err := c.br.ReadSlice('\n')
		c.in += len(b)
		switch {
		case err == nil && long == nil:
			return append([]byte(nil), b...), nil
		case err == nil:
			return append(long, b...), nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
		if long = append(long, b...); len(long) > link.MaxLine {
			return nil, link.ErrTooLong
		}
	}
}

// literalSize reads the size of a literal that a line ends with.
func literalSize(line []byte) (int, bool) {
	line = bytes.TrimRight(line, "\r\n")
	if !bytes.HasSuffix(line, []byte("}")) {
		return 0, false
	}
	i := bytes.LastIndexByte(line, '{')
	if i < 0 {
		return 0, false
	}
	digits := bytes.TrimSuffix(line[i+1:len(line)-1], []byte("+"))
	if len(digits) == 0 || len(digits) > 9 {
		return 0, false
	}
	n := 0
	for _, d := range digits {
		if d < '0' || d > '9' {
			return 0, false
		}
		n = n*10 + int(d-'0')
	}
	return n, true
}

// own answers a command that is not go-imap's, and says whether it did.
func (c *mailConn) own(line []byte) bool {
	text := strings.TrimRight(string(line), "\r\n")
	tag, rest, _ := strings.Cut(text, " ")
	name, args, _ := strings.Cut(rest, " ")
	name = strings.ToUpper(name)
	c.command, c.began = name, c.login.now()
	const took = " (0.001 + 0.000 secs)."
	switch name {
	case "IDLE":
		c.idling = true
		return false
	case "CAPABILITY":
		c.say("* CAPABILITY "+strings.Join(c.login.set.postLogin, " "), tag+" OK Capability completed"+took)
		return true
	case "LOGOUT":
		c.in -= len(line) - len(text)
		c.loggedOut = true
		c.say("* BYE Logging out", tag+" OK Logout completed"+took)
		c.fail(io.EOF)
		return true
	case "ID":
		tokens, ok := c.idTokens(args)
		if !ok {
			return true
		}
		c.id(tokens)
		c.say("* ID "+c.login.set.idSend, tag+" OK ID completed"+took)
		return true
	}
	return false
}

// idTokens reads the rest of an ID command, literals and all.
func (c *mailConn) idTokens(args string) ([]proto.Token, bool) {
	if !c.inside {
		tokens, _, err := proto.ReadCommand(bufio.NewReader(strings.NewReader(args+"\r\n")), imapLimits, nil)
		return tokens, err == nil || !errors.Is(err, io.EOF)
	}
	c.inside, c.literal = false, 0
	sync := !strings.HasSuffix(args, "+}")
	if sync {
		c.say("+ OK")
	}
	src := bufio.NewReader(io.MultiReader(strings.NewReader(strings.TrimSuffix(strings.TrimSuffix(args, "}"), "+")+"+}\r\n"), c.br))
	tokens, _, err := proto.ReadCommand(src, imapLimits, func() error { c.say("+ OK"); return nil })
	if n := src.Buffered(); n > 0 && err == nil {
		// What came behind the command is the next one's.
		ahead, _ := src.Peek(n)
		c.br = bufio.NewReader(io.MultiReader(bytes.NewReader(bytes.Clone(ahead)), c.br))
	}
	var syntax *proto.SyntaxError
	if err != nil && !errors.As(err, &syntax) {
		c.fail(err)
		return nil, false
	}
	return tokens, true
}

// id logs an ID, as 2.3 does, and changes nothing.
func (c *mailConn) id(tokens []proto.Token) {
	s := c.login
	pairs, _ := idPairs(tokens)
	if s.srv.bugs.Has(bug.IDAfterLoginCounts) {
		var said announced
		for _, p := range pairs {
			said.take(strings.ToLower(p.key), p.value, s.srv.c.series == "2.4")
		}
		s.believed = true
		said.hasSession = false // it is the same session, of another client
		s.announceID(said)
		if s.srv.c.series == "2.4" {
			s.logAs("info", "Logged in")
		} else {
			s.logAs("info", "Login")
		}
	}
	if c.idLogged || s.srv.c.series == "2.4" || len(s.set.idLog) == 0 {
		return
	}
	c.idLogged = true
	var b strings.Builder
	for _, p := range pairs {
		if !wantsKey(s.set.idLog, p.key) {
			continue
		}
		if b.Len() > 0 {
			b.WriteString(", ")
		}
		value := "NIL"
		if !p.null {
			value = sanitize(p.value, 80)
		}
		b.WriteString(sanitize(p.key, maxIDKey) + "=" + value)
	}
	if b.Len() > 0 {
		s.mailLog("imap", "ID sent: "+b.String())
	}
}

// farewell words the end of the session.
func (c *mailConn) farewell() string {
	reason := "Logged out"
	if !c.loggedOut {
		reason = "Connection closed"
		switch {
		case c.command == "":
			reason += " (No commands sent)"
		case c.idling:
			d := c.login.now().Sub(c.began).Seconds()
			reason += fmt.Sprintf(" (IDLE running for 0.001 + waiting input for %.3f secs, 2 B in + 10 B out, state=wait-input)", d)
		default:
			reason += fmt.Sprintf(" (%s finished %.3f secs ago)", sanitize(c.command, 40), c.login.now().Sub(c.began).Seconds())
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return fmt.Sprintf("Disconnected: %s in=%d out=%d deleted=0 expunged=0 trashed=0 hdr_count=0 hdr_bytes=0 body_count=0 body_bytes=0", reason, c.in, c.out)
}
