package site

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/mailproof/mailproof/harness/manage"
)

// How a Stalwart's management API is asked for what was logged. It has no way
// to be told of new lines: it is asked again and again, for the newest ones.
const (
	askEvery  = 300 * time.Millisecond
	fewLines  = 100  // asked for first
	manyLines = 3000 // where those do not reach back to what is known
	askFor    = 15 * time.Second
)

// An apiLog is what a Stalwart logs, as its management API tells it: only GET
// is asked, and of /api/logs alone.
type apiLog struct {
	c      *manage.Client
	ctx    context.Context
	cancel context.CancelFunc
	r      *io.PipeReader
	done   chan struct{}
	once   sync.Once
}

// followAPI begins with the newest lines that are there, and gives what comes
// after them. That the API cannot be asked at all is an error.
func followAPI(ctx context.Context, c *manage.Client) (io.ReadCloser, error) {
	l := &apiLog{c: c, done: make(chan struct{})}
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	first, err := l.ask(fewLines)
	if err != nil {
		l.cancel()
		c.Close()
		return nil, err
	}
	r, w := io.Pipe()
	l.r = r
	go func() {
		defer close(l.done)
		w.CloseWithError(l.follow(w, first))
	}()
	return l, nil
}

func (l *apiLog) ask(n int) ([]string, error) {
	ctx, cancel := context.WithTimeout(l.ctx, askFor)
	defer cancel()
	lines, err := l.c.Logs(ctx, "", n)
	var no *manage.Error
	switch {
	case err == nil:
		return lines, nil
	case errors.As(err, &no) && no.Code == "unsupported":
		return nil, fmt.Errorf("%w: the API reads a log file, and this Stalwart writes none: set tracer.log.type = \"log\" with a path, or read its log by file or by command", err)
	case errors.As(err, &no) && (no.Status == http.StatusForbidden || no.Status == http.StatusUnauthorized):
		return nil, fmt.Errorf("%w: log-secret must be an API key, or with log-user a password, of somebody with the permission logs-view", err)
	}
	return nil, err
}

// follow writes new lines until it cannot.
func (l *apiLog) follow(w io.Writer, known []string) error {
	tick := time.NewTicker(askEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-l.ctx.Done():
			return os.ErrClosed
		}
		fresh, all, err := l.news(known)
		if err != nil {
			if l.ctx.Err() != nil {
				return os.ErrClosed
			}
			return err
		}
		for _, line := range fresh {
			if _, err := io.WriteString(w, line+"\n"); err != nil {
				return err
			}
		}
		known = all[max(0, len(all)-fewLines):]
	}
}

// news asks for the newest lines, and returns those that follow what is known.
func (l *apiLog) news(known []string) (fresh, all []string, err error) {
	for _, n := range []int{fewLines, manyLines} {
		all, err = l.ask(n)
		if err != nil {
			return nil, nil, err
		}
		if at, ok := continues(known, all); ok {
			return all[at:], all, nil
		}
		if len(all) < n {
			return all, all, nil // the log was begun anew
		}
	}
	return nil, nil, fmt.Errorf("between two looks it grew by more than %d lines, and some were missed", manyLines)
}

// continues finds what is known in what was told now, and returns where the
// news begin. Lines have no number: the longest end of what is known that
// stands in the list decides, as late as it can stand.
func continues(known, now []string) (at int, ok bool) {
	if len(known) == 0 {
		return 0, true
	}
	for at := len(now); at > 0; at-- {
		if n := min(at, len(known)); slices.Equal(now[at-n:at], known[len(known)-n:]) {
			return at, true
		}
	}
	return 0, false
}

func (l *apiLog) Read(b []byte) (int, error) { return l.r.Read(b) }

// Close ends the asking and waits for it.
func (l *apiLog) Close() error {
	l.once.Do(func() {
		l.cancel()
		l.r.CloseWithError(os.ErrClosed)
		<-l.done
		l.c.Close()
	})
	return nil
}
