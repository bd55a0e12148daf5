package containers

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"

	"github.com/moby/moby/api/pkg/stdcopy"
)

const (
	// maxLine bounds one line of a log; what is longer is cut into several.
	maxLine = 64 << 10
	// maxBehind bounds what a reader of a log may leave unread.
	maxBehind = 32 << 20
	// remembered is how many lines a log keeps for whoever asks what it said last.
	remembered = 200
)

// A journal is everything that a container writes to its standard streams, in
// whole lines, for as many readers as there are.
type journal struct {
	done chan struct{} // closed when the container writes no more

	mu      sync.Mutex
	ended   bool
	last    []string
	readers map[*reader]bool
}

func newJournal() *journal {
	return &journal{done: make(chan struct{}), readers: map[*reader]bool{}}
}

// follow reads a container's multiplexed output until it ends.
func (j *journal) follow(r io.Reader) {
	defer func() {
		j.mu.Lock()
		j.ended = true
		for rd := range j.readers {
			rd.end(io.EOF)
		}
		j.mu.Unlock()
		close(j.done)
	}()
	// Each stream has its own unfinished line.
	out, errs := &liner{j: j}, &liner{j: j}
	stdcopy.StdCopy(out, errs, r) // it ends with the container, or when we let go
	out.flush()
	errs.flush()
}

type liner struct {
	j    *journal
	part []byte
}

func (l *liner) Write(p []byte) (int, error) {
	n := len(p)
	for len(p) > 0 {
		line, rest, ended := bytes.Cut(p, []byte{'\n'})
		for l.part = append(l.part, line...); len(l.part) >= maxLine; {
			l.j.add(string(l.part[:maxLine]))
			l.part = l.part[:copy(l.part, l.part[maxLine:])]
		}
		if ended {
			l.flush()
		}
		p = rest
	}
	return n, nil
}

func (l *liner) flush() {
	if len(l.part) > 0 {
		l.j.add(strings.TrimSuffix(string(l.part), "\r"))
		l.part = l.part[:0]
	}
}

func (j *journal) add(line string) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.last) == remembered {
		j.last = j.last[:copy(j.last, j.last[1:])]
	}
	j.last = append(j.last, line)
	for rd := range j.readers {
		rd.push(line)
	}
}

// tail is the last n lines.
func (j *journal) tail(n int) string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Join(j.last[max(0, len(j.last)-n):], "\n")
}

// open reads whole lines, from now on.
func (j *journal) open(ctx context.Context) (io.ReadCloser, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ended {
		return nil, errors.New("the container has ended, and its log with it")
	}
	rd := &reader{j: j}
	rd.more = sync.NewCond(&rd.mu)
	j.readers[rd] = true
	rd.stop = context.AfterFunc(ctx, func() { rd.end(ctx.Err()) })
	return rd, nil
}

// A reader is one reader of a journal.
type reader struct {
	j    *journal
	stop func() bool

	mu   sync.Mutex
	more *sync.Cond
	buf  []byte
	err  error
}

func (r *reader) push(line string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	if len(r.buf)+len(line) > maxBehind {
		r.err = fmt.Errorf("the log is read too slowly: more than %d octets are waiting", maxBehind)
	} else {
		r.buf = append(append(r.buf, line...), '\n')
	}
	r.more.Broadcast()
}

func (r *reader) end(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		r.err = err
	}
	r.more.Broadcast()
}

func (r *reader) Read(b []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.buf) == 0 && r.err == nil {
		r.more.Wait()
	}
	if len(r.buf) == 0 {
		return 0, r.err
	}
	n := copy(b, r.buf)
	r.buf = r.buf[n:]
	if len(r.buf) == 0 {
		r.buf = nil
	}
	return n, nil
}

func (r *reader) Close() error {
	r.stop()
	r.end(io.ErrClosedPipe)
	r.j.mu.Lock()
	defer r.j.mu.Unlock()
	delete(r.j.readers, r)
	return nil
}

// eachLine hands out whole lines until each says that it is done, or an error.
func eachLine(r io.Reader, each func(string) (done bool, err error)) error {
	sc := bufio.NewScanner(r)
	sc.Buffer(make([]byte, 0, 4096), maxLine+16)
	for sc.Scan() {
		if done, err := each(sc.Text()); done || err != nil {
			return err
		}
	}
	return sc.Err()
}
