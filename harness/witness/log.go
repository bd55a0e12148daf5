package witness

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
)

// maxLine is the longest log line that is read; the rest of a longer one is
// skipped.
const maxLine = 16 << 10

// maxKept is how many records one watch keeps.
const maxKept = 512

// A Log follows one log of a source and hands each record to the watches that
// it can be joined to. Records that nobody watches for are forgotten.
type Log struct {
	name   string
	stream io.ReadCloser
	done   chan struct{}

	mu      sync.Mutex
	watches map[string][]*Watch
	err     error // why the stream ended
	lines   int
	records int
}

// Follow opens a log and follows it until Close, or until ctx ends.
func Follow(ctx context.Context, name string, open func(context.Context) (io.ReadCloser, error)) (*Log, error) {
	return followAs(ctx, name, open, knownForms())
}

// FollowLines is [Follow] for a log whose form is not known: its records are
// of the kind [Line].
func FollowLines(ctx context.Context, name string, open func(context.Context) (io.ReadCloser, error)) (*Log, error) {
	return followAs(ctx, name, open, newLineReader().read)
}

func followAs(ctx context.Context, name string, open func(context.Context) (io.ReadCloser, error), read func(line string) *Record) (*Log, error) {
	stream, err := open(ctx)
	if err != nil {
		return nil, fmt.Errorf("log %s: %w", name, err)
	}
	l := &Log{name: name, stream: stream, done: make(chan struct{}), watches: make(map[string][]*Watch)}
	stop := context.AfterFunc(ctx, func() { stream.Close() })
	go func() {
		defer close(l.done)
		defer stop()
		l.end(l.read(read))
	}()
	return l, nil
}

// Close stops following and waits until the reader has ended.
func (l *Log) Close() error {
	err := l.stream.Close()
	<-l.done
	return err
}

// Lines is how many lines have been read.
func (l *Log) Lines() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lines
}

// Err says why the log can no longer be read, or nil while it can.
func (l *Log) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}

func (l *Log) end(err error) {
	if err == nil {
		err = io.EOF
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = fmt.Errorf("log %s: the stream ended: %w", l.name, err)
	for _, ws := range l.watches {
		for _, w := range ws {
			w.wake()
		}
	}
}

// knownForms reads the lines of Dovecot, Postfix and Stalwart.
func knownForms() func(line string) *Record {
	d, p, st := dovecot{}, newPostfix(), newStalwart()
	return func(line string) *Record {
		if isStalwart(line) {
			return st.read(line)
		}
		program, pid, message, ok := prefix(line)
		if !ok {
			return nil
		}
		if r := p.read(program, pid, message, line); r != nil {
			return r
		}
		return d.read(program, message, line)
	}
}

func (l *Log) read(record func(line string) *Record) error {
	br := bufio.NewReaderSize(l.stream, maxLine)
	var keys []string
	for {
		b, err := br.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			for errors.Is(err, bufio.ErrBufferFull) {
				_, err = br.ReadSlice('\n')
			}
			if err == nil {
				continue
			}
		}
		if err != nil {
			return err // an unfinished line is no line
		}
		line := string(trimEnd(b))
		r := record(line)
		l.mu.Lock()
		l.lines++
		if r != nil {
			if r.began == 0 {
				r.began = l.lines
			}
			l.records++
			keys = r.keys(keys[:0])
			l.dispatch(r, keys)
		}
		l.mu.Unlock()
	}
}

func trimEnd(b []byte) []byte {
	for len(b) > 0 && (b[len(b)-1] == '\n' || b[len(b)-1] == '\r') {
		b = b[:len(b)-1]
	}
	return b
}

// dispatch gives a record to whoever watches for it. Postfix's transactions
// grow line by line: a watch holds one copy of each, replaced as it grows.
func (l *Log) dispatch(r *Record, keys []string) {
	for _, k := range keys {
		for _, w := range l.watches[k] {
			// What began before may be another session of the same name's.
			if r.Kind == Line && r.began <= w.since {
				continue
			}
			w.put(r)
		}
	}
}

// A Watch collects the records that carry one of its keys, from the moment
// each key was added.
type Watch struct {
	log *Log

	since int // how many lines the log had when the watch began

	mu      sync.Mutex
	keys    []string
	records []kept
	changed chan struct{}
}

type kept struct {
	id  *Record // identity of a growing record
	rec Record
}

// Watch begins to collect records with any of the keys; see [Key] and [PeerKey].
func (l *Log) Watch(keys ...string) *Watch {
	w := &Watch{log: l, changed: make(chan struct{}, 1), since: l.Lines()}
	w.Add(keys...)
	return w
}

// Add adds keys to the watch.
func (w *Watch) Add(keys ...string) {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	for _, k := range keys {
		w.log.watches[k] = append(w.log.watches[k], w)
	}
	w.mu.Lock()
	w.keys = append(w.keys, keys...)
	w.mu.Unlock()
}

// Close ends the watch.
func (w *Watch) Close() {
	w.log.mu.Lock()
	defer w.log.mu.Unlock()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range w.keys {
		ws := w.log.watches[k]
		for i, o := range ws {
			if o == w {
				ws = append(ws[:i], ws[i+1:]...)
				break
			}
		}
		if len(ws) == 0 {
			delete(w.log.watches, k)
		} else {
			w.log.watches[k] = ws
		}
	}
	w.keys = nil
}

func (w *Watch) put(r *Record) {
	w.mu.Lock()
	defer w.mu.Unlock()
	cp := r.clone()
	for i := range w.records {
		if w.records[i].id == r {
			w.records[i].rec = cp
			w.signal()
			return
		}
	}
	if len(w.records) < maxKept {
		w.records = append(w.records, kept{r, cp})
	}
	w.signal()
}

func (w *Watch) wake() {
	w.mu.Lock()
	w.signal()
	w.mu.Unlock()
}

func (w *Watch) signal() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (r *Record) clone() Record {
	c := *r
	c.Lines = append([]string(nil), r.Lines...)
	c.Fields = make(map[string][]string, len(r.Fields))
	for k, v := range r.Fields {
		c.Fields[k] = append([]string(nil), v...)
	}
	return c
}

// Records returns what was collected so far.
func (w *Watch) Records() []Record {
	w.mu.Lock()
	defer w.mu.Unlock()
	rs := make([]Record, len(w.records))
	for i := range w.records {
		rs[i] = w.records[i].rec
	}
	return rs
}

// Await waits until found accepts what was collected, and returns what it
// accepted. It returns the last error of ctx or of the log when that ends first.
func (w *Watch) Await(ctx context.Context, found func([]Record) bool) ([]Record, error) {
	for {
		rs := w.Records()
		if found(rs) {
			return rs, nil
		}
		if err := w.log.Err(); err != nil {
			return rs, err
		}
		select {
		case <-w.changed:
		case <-ctx.Done():
			return w.Records(), ctx.Err()
		}
	}
}
