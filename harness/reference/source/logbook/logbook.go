// Package logbook is the one log of a reference source: whole lines in one
// order, however many write, and any number of followers who each see every
// line that is written after they came.
//
// A follower who falls more than [MaxBehind] lines behind is told so with an
// error, and not given a log with a hole in it.
package logbook

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

// MaxBehind is how many lines a follower may fall behind.
const MaxBehind = 1 << 20

// MaxLine is the longest line in octets; longer ones are cut, as log daemons do.
const MaxLine = 8 << 10

// A Book is a log.
type Book struct {
	mu     sync.Mutex
	cond   *sync.Cond
	last   *line
	closed bool
	// delay holds every line back from its followers.
	delay time.Duration
	drop  bool
}

// line is a line of the log and, once it is written, the next one.
type line struct {
	text []byte // with its end
	at   time.Time
	n    int64
	next *line
}

// New returns an empty log. Lines reach followers after delay; drop keeps
// them from it altogether.
func New(delay time.Duration, drop bool) *Book {
	b := &Book{last: &line{}, delay: delay, drop: drop}
	b.cond = sync.NewCond(&b.mu)
	return b
}

// Append adds one line; text is without its end and is not kept. A line end or
// NUL inside it becomes "?": a line of the log is a line.
func (b *Book) Append(now time.Time, text []byte) {
	if b.drop {
		return
	}
	l := &line{text: make([]byte, 0, min(len(text), MaxLine)+1), at: now}
	for _, c := range text[:min(len(text), MaxLine)] {
		if c == '\n' || c == '\r' || c == 0 {
			c = '?'
		}
		l.text = append(l.text, c)
	}
	l.text = append(l.text, '\n')
	b.mu.Lock()
	l.n = b.last.n + 1
	b.last.next = l
	b.last = l
	b.cond.Broadcast()
	b.mu.Unlock()
}

// Close ends the log: followers read what there is and then EOF.
func (b *Book) Close() {
	b.mu.Lock()
	b.closed = true
	b.cond.Broadcast()
	b.mu.Unlock()
}

// Follow returns the log from now on. The stream ends when it is closed, when
// ctx ends or when the log is closed.
func (b *Book) Follow(ctx context.Context) io.ReadCloser {
	f := &follower{book: b, ctx: ctx}
	b.mu.Lock()
	f.at = b.last
	b.mu.Unlock()
	f.stop = context.AfterFunc(ctx, f.wake)
	return f
}

// follower reads the log.
type follower struct {
	book   *Book
	ctx    context.Context
	stop   func() bool
	closed bool // guarded by book.mu
	at     *line
	rest   []byte // what did not fit of the line at
}

func (f *follower) wake() {
	f.book.mu.Lock()
	f.book.cond.Broadcast()
	f.book.mu.Unlock()
}

// Read returns as many whole lines as fit, and at least a part of one.
func (f *follower) Read(p []byte) (int, error) {
	if len(f.rest) > 0 {
		n := copy(p, f.rest)
		f.rest = f.rest[n:]
		return n, nil
	}
	if len(p) == 0 {
		return 0, nil
	}
	b := f.book
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for {
		switch {
		case f.closed:
			return 0, io.ErrClosedPipe
		case f.ctx.Err() != nil:
			return 0, f.ctx.Err()
		}
		if behind := b.last.n - f.at.n; behind > MaxBehind {
			return 0, fmt.Errorf("the log's reader is %d lines behind", behind)
		}
		for next := f.at.next; next != nil; next = f.at.next {
			if b.delay > 0 {
				if wait := time.Until(next.at.Add(b.delay)); wait > 0 {
					if n == 0 {
						t := time.AfterFunc(wait, f.wake)
						b.cond.Wait()
						t.Stop()
					}
					break
				}
			}
			if n > 0 && len(next.text) > len(p)-n {
				return n, nil
			}
			f.at = next
			m := copy(p[n:], next.text)
			n += m
			if m < len(next.text) {
				f.rest = next.text[m:]
				return n, nil
			}
		}
		if n > 0 {
			return n, nil
		}
		if f.at.next != nil {
			continue // held back a moment ago
		}
		if b.closed {
			return 0, io.EOF
		}
		b.cond.Wait()
	}
}

// Close ends the stream.
func (f *follower) Close() error {
	f.stop()
	f.book.mu.Lock()
	f.closed = true
	f.book.cond.Broadcast()
	f.book.mu.Unlock()
	return nil
}
