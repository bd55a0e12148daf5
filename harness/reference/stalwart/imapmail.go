package stalwart

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"log"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-imap/v2"
	"github.com/emersion/go-imap/v2/imapserver"

	"github.com/mailproof/mailproof/harness/reference/source/link"
	"github.com/mailproof/mailproof/harness/reference/source/mailbox"
)

// imapService is go-imap's server, which is given sessions that are signed in
// already.
type imapService struct {
	p      *process
	server *imapserver.Server
	conns  chan *mailConn
	stopc  chan struct{}
	once   sync.Once
	done   chan struct{}
}

func newIMAPService(p *process) *imapService {
	m := &imapService{p: p, conns: make(chan *mailConn), stopc: make(chan struct{}), done: make(chan struct{})}
	m.server = imapserver.New(&imapserver.Options{
		NewSession: func(c *imapserver.Conn) (imapserver.Session, *imapserver.GreetingData, error) {
			mc := c.NetConn().(*mailConn)
			return mc.user.Session(), &imapserver.GreetingData{PreAuth: true}, nil
		},
		Caps: imap.CapSet{
			imap.CapIMAP4rev1: {}, imap.CapNamespace: {}, imap.CapUIDPlus: {}, imap.CapESearch: {}, imap.CapSearchRes: {},
			imap.CapListExtended: {}, imap.CapListStatus: {}, imap.CapMove: {}, imap.CapStatusSize: {}, imap.CapBinary: {},
			imap.CapChildren: {}, imap.CapLiteralPlus: {}, imap.CapSpecialUse: {},
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
	m.once.Do(func() {
		close(m.stopc)
		<-m.done
		m.server.Close()
	})
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

// serve serves a session that is signed in until it ends.
func (m *imapService) serve(in *session) {
	user := m.p.srv.store.User(in.who.name)
	if user == nil { // the fallback administrator has no mail
		in.c.Line("* BYE The account has no mailboxes.")
		return
	}
	in.c.Patient(false)
	in.c.SetTimeout(in.core.imapSignedIn)
	c := &mailConn{in: in, user: user, ended: make(chan struct{}), greeting: true}
	c.Conn = in.c.Session()
	c.br = in.c.Reader()
	select {
	case m.conns <- c:
		<-c.ended
	case <-m.stopc:
	}
}

// mailConn is the connection that go-imap's server sees. It keeps that
// server's greeting from the client, and answers itself what go-imap answers
// differently, or not at all.
type mailConn struct {
	net.Conn
	br    *bufio.Reader
	in    *session
	user  *mailbox.User
	ended chan struct{}
	once  sync.Once

	mu       sync.Mutex // held while something is written
	greeting bool       // go-imap's greeting has not been written yet

	rest    []byte
	literal int  // octets of a literal that are still to come
	inside  bool // the next line belongs to the command before
	idling  bool
	err     error
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
		if b, c.greeting = b[i+1:], false; len(b) == 0 {
			return n, nil
		}
	}
	if _, err := c.Conn.Write(b); err != nil {
		return 0, err
	}
	return n, nil
}

// say writes lines of our own.
func (c *mailConn) say(lines ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.Conn.Write([]byte(strings.Join(lines, "\r\n") + "\r\n"))
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

// fail remembers why the input ended, and tells the client if it was not it.
func (c *mailConn) fail(err error) {
	if err == nil || c.err != nil {
		return
	}
	switch stopping, late := c.in.gone(err); {
	case stopping:
		c.say("* BYE Server shutting down.")
	case late:
		c.in.log(evTimeout)
		c.say("* BYE Connection timed out.")
	}
	c.err = err
}

// line reads one line with its end.
func (c *mailConn) line() ([]byte, error) {
	var long []byte
	for {
		b, err := c.br.ReadSlice('\n')
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
	i := bytes.LastIndexByte(line, '{')
	if i < 0 || !bytes.HasSuffix(line, []byte("}")) {
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
	name, _, _ := strings.Cut(rest, " ")
	began := c.in.srv.now()
	took := func() field { return field{"elapsed", c.in.srv.now().Sub(began)} }
	switch strings.ToUpper(name) {
	case "IDLE":
		c.idling = true
	case "CAPABILITY":
		c.in.log(evIMAPCaps, field{"tls", c.in.isTLS}, field{"strict", !c.in.core.imapPlain}, took())
		c.say("* CAPABILITY "+c.in.imapCapability(true), tag+" OK CAPABILITY completed")
		return true
	case "NOOP":
		c.in.log(evIMAPNoop, took())
	case "LOGOUT":
		c.in.log(evIMAPLogout, took())
		c.say("* BYE Stalwart IMAP4rev2 bids you farewell.", tag+" OK LOGOUT completed")
		c.fail(io.EOF)
		return true
	case "ID":
		if c.literal > 0 { // go-imap reads it, and says what it says
			return false
		}
		c.in.log(evIMAPID, took())
		c.say("* ID "+imapID, tag+" OK ID completed")
		return true
	case "LOGIN", "AUTHENTICATE":
		c.in.log(evIMAPError, field{"details", "Already authenticated."}, field{"id", tag})
		c.say(tag + " NO Already authenticated.")
		return true
	}
	return false
}
