package proxy

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/mailproof/mailproof/harness/reference/memnet"
	proxyproto "github.com/pires/go-proxyproto"
	"gotest.tools/v3/assert"
)

// After the sign-in the connections are one: each end's half close leaves the
// other direction open, and a reset goes through.
func TestJoinedSession(t *testing.T) {
	for _, m := range []TLSMode{Plain, Implicit} {
		name := map[TLSMode]string{Plain: "imap", Implicit: "imaps"}[m]
		start := func(t *testing.T) (*lab, *fakeSource, *caller) {
			cfg := labConfig(ForwardXCLIENT, m)
			if m == Plain {
				cfg.Capabilities = map[Protocol]Capabilities{IMAP: {AllowCleartext: true}}
			}
			l := newLab(t, cfg)
			s := l.source(source4, IMAP, m, ForwardXCLIENT, "")
			c := l.call(client4, name)
			c.line()
			c.send(plainCommand(IMAP, "alice@example.org", "secret"))
			c.until("a1 OK")
			return l, s, c
		}
		t.Run(string(m)+"/the client's end", func(t *testing.T) {
			_, s, c := start(t)
			c.send("one\r\n")
			c.conn.(interface{ CloseWrite() error }).CloseWrite()
			if m == Implicit {
				c.raw.(interface{ CloseWrite() error }).CloseWrite()
			}
			c.want("ECHO one")
			c.end()
			s.waitFor("the end", func(sc *sourceConn) bool { return errors.Is(sc.err, io.EOF) })
		})
		t.Run(string(m)+"/the source's end", func(t *testing.T) {
			_, s, c := start(t)
			c.send("HALF\r\n")
			c.want("half")
			c.end()
			c.send("still here\r\n")
			s.waitFor("what came after", func(sc *sourceConn) bool { return strings.HasSuffix(sc.got.String(), "still here\r\n") })
			c.conn.Close()
			s.received()
		})
		t.Run(string(m)+"/the source says goodbye", func(t *testing.T) {
			_, _, c := start(t)
			c.send("BYE\r\n")
			c.want("bye")
			c.end()
		})
		t.Run(string(m)+"/the client resets", func(t *testing.T) {
			_, s, c := start(t)
			c.raw.(interface{ Reset() error }).Reset()
			s.waitFor("the reset", func(sc *sourceConn) bool { return errors.Is(sc.err, syscall.ECONNRESET) })
		})
		t.Run(string(m)+"/the source resets", func(t *testing.T) {
			_, _, c := start(t)
			c.send("RESET\r\n")
			_, err := c.br.ReadByte()
			assert.Assert(t, errors.Is(err, syscall.ECONNRESET), "%v", err)
		})
	}
}

// A connection that is closed after a last reply still takes what its client
// sends, within bounds, so that the reply is not lost to a reset.
func TestLastReplyIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := memnet.Pipe(netip.AddrPortFrom(client4, 4000), netip.AddrPortFrom(public4, 143))
		done := make(chan time.Duration)
		go func() {
			begun := time.Now()
			l := newLeg(server, server)
			l.say("NO\r\n")
			l.finish()
			done <- time.Since(begun)
		}()
		synctest.Wait()
		_, err := client.Write(make([]byte, 100<<10))
		assert.NilError(t, err)
		synctest.Wait()
		_, err = client.Write([]byte("more"))
		assert.NilError(t, err)
		b, err := io.ReadAll(client)
		assert.NilError(t, err)
		assert.Equal(t, string(b), "NO\r\n")
		assert.Equal(t, <-done, lingerTime) // the client never closed
	})
}

// I-34: a joined session may be silent for bridge_idle, and is closed then.
func TestIdleSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
		s := l.source(source4, IMAP, Implicit, ForwardXCLIENT, "")
		c := l.signIn(client4, "imaps", "alice@example.org", "secret")
		c.until("a1 OK")
		c.raw.SetDeadline(time.Time{})
		s.mu.Lock()
		s.conns[0].raw.SetDeadline(time.Time{})
		s.mu.Unlock()
		time.Sleep(29 * time.Minute)
		c.send("still\r\n")
		c.want("ECHO still")
		begun := time.Now()
		io.ReadAll(c.conn)
		assert.Equal(t, time.Since(begun), 30*time.Minute)
		l.log.wait(t, "closed: nothing moved for 30m0s")
		c.raw.Close()
	})
}

// I-30: port 25 is passed through octet for octet, the PROXY header first, and
// whoever speaks early is heard.
func TestPassThrough(t *testing.T) {
	payload := make([]byte, 3<<20)
	rand.Read(payload)
	copy(payload, "EHLO early\r\nXCLIENT ADDR=192.0.2.66\r\n\x00\x00")
	reply := bytes.Repeat([]byte("y\x00\r\r\n"), 300_000)
	for _, f := range []Forwarding{ForwardPROXY, ForwardNone} {
		for _, from := range []netip.Addr{client4, client6, mapped(client4)} {
			t.Run(fmt.Sprintf("%s/%s", f, from), func(t *testing.T) {
				cfg := labConfig(ForwardXCLIENT, Implicit)
				cfg.Destinations[2].Forwarding = f
				l := newLab(t, cfg)
				nl, err := l.net.Listen(netip.AddrPortFrom(other4, 25))
				assert.NilError(t, err)
				defer nl.Close()
				got := make(chan []byte, 1)
				go func() {
					nc, err := nl.Accept()
					if err != nil {
						return
					}
					defer nc.Close()
					done := make(chan struct{})
					go func() {
						defer close(done)
						nc.Write(reply)
						nc.(interface{ CloseWrite() error }).CloseWrite()
					}()
					b, _ := io.ReadAll(nc)
					got <- b
					<-done
				}()
				c := l.dial(from, "smtp")
				sent := make(chan error, 1)
				go func() {
					_, err := c.raw.Write(payload)
					c.raw.(interface{ CloseWrite() error }).CloseWrite()
					sent <- err
				}()
				back, err := io.ReadAll(c.raw)
				assert.NilError(t, err)
				assert.NilError(t, <-sent)
				assert.Equal(t, sha256.Sum256(back), sha256.Sum256(reply))
				want := payload
				if f == ForwardPROXY {
					at := unmapped(c.raw.RemoteAddr().(*net.TCPAddr).AddrPort())
					want = append([]byte(proxyV2(unmapped(c.local()), at)), payload...)
				}
				b := <-got
				assert.Equal(t, len(b), len(want))
				assert.Equal(t, sha256.Sum256(b), sha256.Sum256(want))
			})
		}
	}
}

// I-21: where the pass-through destination is down the sending server is told
// to come again.
func TestPassThroughUnavailable(t *testing.T) {
	l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
	c := l.dial(client4, "smtp")
	c.send("EHLO early\r\n")
	c.want("421 4.3.0 backend unavailable")
	c.end()
}

// A mailbox records what an independent SMTP server was told.
type mailbox struct {
	mu    sync.Mutex
	mails []mail
}

type mail struct{ peer, helo, from, to, data string }

func (b *mailbox) NewSession(c *smtp.Conn) (smtp.Session, error) {
	return &mailSession{b: b, m: mail{peer: c.Conn().RemoteAddr().String(), helo: c.Hostname()}, c: c}, nil
}

type mailSession struct {
	b *mailbox
	c *smtp.Conn
	m mail
}

func (s *mailSession) Mail(from string, _ *smtp.MailOptions) error {
	s.m.from = from
	return nil
}

func (s *mailSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.m.to = to
	return nil
}

func (s *mailSession) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	s.m.data = string(b)
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.mails = append(s.b.mails, s.m)
	return err
}

func (s *mailSession) Reset()        {}
func (s *mailSession) Logout() error { return nil }

// an independent server behind an independent reader of the header sees
// the sending server's own address, and gets the mail whole.
func TestPassThroughToSMTPServer(t *testing.T) {
	l := newLab(t, labConfig(ForwardXCLIENT, Implicit))
	nl, err := l.net.Listen(netip.AddrPortFrom(other4, 25))
	assert.NilError(t, err)
	box := &mailbox{}
	srv := smtp.NewServer(box)
	srv.Domain = "mx.example.org"
	srv.ReadTimeout, srv.WriteTimeout = 10*time.Second, 10*time.Second
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv.Serve(&proxyproto.Listener{Listener: nl, ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return proxyproto.REQUIRE, nil }})
	}()
	defer func() {
		srv.Close()
		<-served
	}()
	c := l.dial(client6, "smtp")
	c.talk(`
		220 mx.example.org...
		> EHLO sender.test`)
	c.until("250 ")
	c.talk(`
		> MAIL FROM:<a@sender.test>
		250...
		> RCPT TO:<b@example.org>
		250...
		> DATA
		354...
		> Subject: x
		> 
		> ..stuffed
		> .
		250...
		> QUIT
		221...`)
	c.end()
	box.mu.Lock()
	defer box.mu.Unlock()
	assert.Equal(t, len(box.mails), 1)
	assert.Equal(t, box.mails[0], mail{peer: c.local().String(), helo: "sender.test", from: "a@sender.test", to: "b@example.org", data: "Subject: x\r\n\r\n.stuffed\r\n"})
}
