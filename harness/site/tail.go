package site

import (
	"context"
	"io"
	"os"
	"time"
)

// lookEvery is how often a log file is looked at for more. Operating systems
// tell of changes each in their own way, and network file systems not at all.
const lookEvery = 50 * time.Millisecond

// A tail follows a log file from its present end on, also when it is rotated:
// moved away and made anew, or cut to nothing.
type tail struct {
	path  string
	ctx   context.Context
	stop  context.CancelFunc
	tick  *time.Ticker
	f     *os.File
	at    int64
	ended chan struct{}
}

func openTail(ctx context.Context, path string) (io.ReadCloser, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	at, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return nil, err
	}
	t := &tail{path: path, f: f, at: at, tick: time.NewTicker(lookEvery), ended: make(chan struct{}, 1)}
	t.ctx, t.stop = context.WithCancel(context.WithoutCancel(ctx))
	return t, nil
}

// Read returns what was written since. It belongs to one goroutine, and Close
// may be called by another.
func (t *tail) Read(b []byte) (int, error) {
	t.ended <- struct{}{}
	defer func() { <-t.ended }()
	for {
		if t.ctx.Err() != nil {
			return 0, os.ErrClosed
		}
		n, err := t.f.Read(b)
		if n > 0 {
			t.at += int64(n)
			return n, nil
		}
		if err != nil && err != io.EOF {
			return 0, err
		}
		again, err := t.rotated()
		if err != nil {
			return 0, err
		}
		if again {
			continue
		}
		select {
		case <-t.tick.C:
		case <-t.ctx.Done():
		}
	}
}

// rotated goes on with the file that now has the name, once everything of the
// old one was read.
func (t *tail) rotated() (bool, error) {
	now, err := os.Stat(t.path)
	if err != nil {
		return false, nil // between two files
	}
	mine, err := t.f.Stat()
	if err != nil {
		return false, err
	}
	if os.SameFile(now, mine) {
		if now.Size() >= t.at {
			return false, nil
		}
		t.at = 0
		_, err := t.f.Seek(0, io.SeekStart)
		return err == nil, err
	}
	f, err := os.Open(t.path)
	if err != nil {
		return false, nil
	}
	t.f.Close()
	t.f, t.at = f, 0
	return true, nil
}

// Close ends the following.
func (t *tail) Close() error {
	t.stop()
	t.ended <- struct{}{}
	defer func() { <-t.ended }()
	t.tick.Stop()
	return t.f.Close()
}
