package run

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/mailproof/mailproof/harness/proto"
	"github.com/mailproof/mailproof/harness/wire"
	"github.com/mailproof/mailproof/harness/witness"
)

// barrier makes the source write a line of ours to its log now, and waits for
// it. For sign-ins it is a sign-in with an account of its own, for Postfix a
// recipient that is refused; both from the client's vantage. An error says why
// the log proves nothing.
func (r *runner) barrier(ctx context.Context, it *item, kind string) error {
	l := r.log(it.source)
	if l == nil {
		return errors.New(r.noLog(it.source))
	}
	var err error
	switch {
	case r.care != nil:
		err = r.siteBarrier(ctx, it, kind, l)
	case kind == "login", kind == "failed-login":
		err = r.loginBarrier(ctx, it, l)
	default:
		err = r.recipientBarrier(ctx, it, l)
	}
	if err != nil {
		if lerr := r.logErr(it.source); lerr != nil {
			return fmt.Errorf("%w: to judge this claim, make the log readable for the whole run", lerr)
		}
		err = fmt.Errorf("the log of %s proves nothing: %w", it.source.Name, err)
		var unseen *unseenLine
		if errors.As(err, &unseen) && context.Cause(ctx) != nil && !errors.Is(context.Cause(ctx), context.Canceled) {
			r.setSilent(it.source, err.Error())
		}
		return err
	}
	return nil
}

// unseenLine says that a line of ours did not appear in a log.
type unseenLine struct{ what string }

func (e *unseenLine) Error() string { return e.what + " did not appear in it" }

// loginBarrier signs in over whichever IMAP or POP3 endpoint lets it.
func (r *runner) loginBarrier(ctx context.Context, it *item, l *witness.Log) error {
	if it.source.Accounts == nil {
		return errors.New("there is no account to sign in with")
	}
	list, release, err := it.source.Accounts.Take(ctx, 1)
	if err != nil {
		return err
	}
	defer release()
	last := errors.New("the source has no IMAP or POP3 endpoint")
	for _, endpoint := range []string{"imaps", "imap", "pop3s", "pop3"} {
		if _, ok := it.source.Endpoint(endpoint); !ok {
			continue
		}
		w := l.Watch(witness.Key("user", list[0].Address))
		err := r.signIn(ctx, it.source, endpoint, list[0], w)
		if err == nil {
			_, err = w.Await(ctx, func(rs []witness.Record) bool { return len(rs) > 0 })
			w.Close()
			if err != nil {
				return &unseenLine{"a sign-in of our own over " + endpoint}
			}
			return nil
		}
		w.Close()
		last = fmt.Errorf("the sign-in that was to show it over %s: %w", endpoint, err)
		if ctx.Err() != nil {
			break
		}
	}
	return last
}

// signIn signs in and out on one endpoint. Its transcript is not kept: it is
// there to keep the password out of errors.
func (r *runner) signIn(ctx context.Context, s *Source, endpoint string, a Account, w *witness.Watch) error {
	nc, ep, err := r.direct(ctx, s, endpoint, IP4)
	if err != nil {
		return err
	}
	d := r.barrierDeadlines()
	tr := wire.NewTranscript(wire.NewRedactor(wire.Secret{Name: "barrier", Value: a.Password}))
	c := wire.New(ctx, nc, "barrier", tr, d, wire.Shape{})
	defer c.Close()
	cfg := r.ownTLS(s, endpoint)
	if ep.TLS == "implicit" {
		if err := c.StartTLS(cfg); err != nil {
			return err
		}
	}
	v := proto.NewConversation(proto.Protocol(ep.Protocol), c)
	say := func(line, want string) error {
		if line != "" {
			v.Sent(line)
			if err := c.SendLine("", line); err != nil {
				return err
			}
		}
		u, err := v.Next(d.Reply)
		if err != nil {
			return err
		}
		if len(u.Status) < len(want) || u.Status[:len(want)] != want {
			return &refusedError{cut(tr.Redact(u.Status), 100)}
		}
		return nil
	}
	plain := b64("\x00" + a.Address + "\x00" + a.Password)
	if ep.Protocol == "imap" {
		return steps(c, cfg, ep.TLS == "starttls", say, "* OK", "s STARTTLS", "s OK", "l AUTHENTICATE PLAIN "+plain, "l OK", "q LOGOUT", "q OK")
	}
	return steps(c, cfg, ep.TLS == "starttls", say, "+OK", "STLS", "+OK", "AUTH PLAIN "+plain, "+OK", "QUIT", "+OK")
}

// A refusedError is a reply that was not hoped for.
type refusedError struct{ status string }

func (e *refusedError) Error() string { return fmt.Sprintf("the source answered %q", e.status) }

func steps(c *wire.Conn, cfg *tls.Config, upgrade bool, say func(line, want string) error, greeting, starttls, started, auth, authed, quit, bye string) error {
	if err := say("", greeting); err != nil {
		return err
	}
	if upgrade {
		if err := say(starttls, started); err != nil {
			return err
		}
		if err := c.StartTLS(cfg); err != nil {
			return err
		}
	}
	if err := say(auth, authed); err != nil {
		return err
	}
	return say(quit, bye)
}

// recipientBarrier has a recipient refused by Postfix on port 25, or on the
// submission service where that is all there is.
func (r *runner) recipientBarrier(ctx context.Context, it *item, l *witness.Log) error {
	return r.refusedRecipient(ctx, it.source, l, 0)
}

// refusedRecipient does so, and waits for its line as long as is said; 0 leaves
// that to the context.
func (r *runner) refusedRecipient(ctx context.Context, s *Source, l *witness.Log, wait time.Duration) error {
	n := r.barriers.Add(1)
	rcpt := fmt.Sprintf("barrier-%s%s@elsewhere.example", r.seed, base36(n))
	w := l.Watch(witness.Key("recipient", rcpt))
	defer w.Close()
	nc, _, err := r.direct(ctx, s, "smtp", IP4)
	if err != nil {
		return err
	}
	d := r.barrierDeadlines()
	c := wire.New(ctx, nc, "barrier", nil, d, wire.Shape{})
	defer c.Close()
	v := proto.NewConversation(proto.SMTP, c)
	if _, err := v.Next(d.Greeting); err != nil {
		return err
	}
	for _, line := range []string{"EHLO barrier.example", "MAIL FROM:<>", "RCPT TO:<" + rcpt + ">", "RSET", "QUIT"} {
		if err := c.SendLine("", line); err != nil {
			return err
		}
		if _, err := v.Next(d.Reply); err != nil {
			return err
		}
	}
	if wait > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, wait)
		defer cancel()
	}
	if _, err := w.Await(ctx, func(rs []witness.Record) bool { return len(rs) > 0 }); err != nil {
		return &unseenLine{"a recipient of our own that was refused"}
	}
	return nil
}

func (r *runner) barrierDeadlines() wire.Deadlines {
	d := r.opts.Deadlines
	d.Greeting = min(d.Greeting, 10*time.Second)
	return d
}

// mailbox opens an account's mailbox with the independent reader, from the
// client's vantage.
func (r *runner) mailbox(ctx context.Context, it *item, a Account) (*witness.Mailbox, error) {
	last := errors.New("the source has no IMAP endpoint")
	for _, endpoint := range []string{"imaps", "imap"} {
		if _, ok := it.source.Endpoint(endpoint); !ok {
			continue
		}
		nc, ep, err := r.direct(ctx, it.source, endpoint, Family(it.facet.Family))
		if err != nil {
			last = err
			continue
		}
		cfg := r.ownTLS(it.source, endpoint)
		if ep.TLS == "starttls" {
			box, err := witness.OpenMailboxStartTLS(ctx, nc, cfg, a.Address, a.Password)
			if err == nil {
				return box, nil
			}
			last = err
			continue
		}
		t := tls.Client(nc, cfg)
		hctx, cancel := context.WithTimeout(ctx, r.opts.Deadlines.Handshake)
		err = t.HandshakeContext(hctx)
		cancel()
		if err != nil {
			nc.Close()
			last = err
			continue
		}
		box, err := witness.OpenMailbox(ctx, t, a.Address, a.Password)
		if err == nil {
			return box, nil
		}
		last = err
	}
	return nil, last
}
