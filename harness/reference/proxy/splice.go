package proxy

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const spliceBuffer = 32 << 10

// splice joins two legs until both directions have ended. The end of one
// direction is passed on as such and leaves the other open; an abort of either
// connection aborts the other. It returns the octets that went from a to b and
// from b to a, and whether it ended the session because nothing had moved for
// the time called idle.
func splice(a, b *leg, idle time.Duration, buffers *sync.Pool) (up, down int64, silent bool) {
	watch := newWatch(idle, func() {
		a.raw.Close()
		b.raw.Close()
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		down = pump(b, a, watch, buffers)
	}()
	up = pump(a, b, watch, buffers)
	<-done
	silent = watch.stop()
	b.finish()
	a.finish()
	return up, down, silent
}

// pump copies one direction until it ends.
func pump(from, to *leg, watch *watch, buffers *sync.Pool) (n int64) {
	// What was read and not used stands in the reader, and goes first.
	if held := from.br.Buffered(); held > 0 {
		b, _ := from.br.Peek(held)
		m, err := to.conn.Write(b)
		n += int64(m)
		if err != nil {
			return n
		}
	}
	buf := buffers.Get().(*[]byte)
	defer buffers.Put(buf)
	for {
		m, err := from.conn.Read(*buf)
		if m > 0 {
			watch.touch()
			w, werr := to.conn.Write((*buf)[:m])
			n += int64(w)
			if werr != nil {
				// The other direction sees how the peer went, after what the
				// peer had still to say.
				return n
			}
			watch.touch()
		}
		switch {
		case err == nil:
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
			to.closeWrite()
			return n
		default:
			to.reset()
			return n
		}
	}
}

// A watch calls a function once it has not been touched for a while.
type watch struct {
	begun time.Time
	last  atomic.Int64 // nanoseconds since begun

	mu    sync.Mutex
	timer *time.Timer
	fired bool
	over  bool
}

func newWatch(idle time.Duration, end func()) *watch {
	w := &watch{begun: time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.timer = time.AfterFunc(idle, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.over {
			return
		}
		if left := idle - (time.Since(w.begun) - time.Duration(w.last.Load())); left > 0 {
			w.timer.Reset(left)
			return
		}
		w.fired = true
		end()
	})
	return w
}

func (w *watch) touch() { w.last.Store(int64(time.Since(w.begun))) }

// stop ends the watch and says whether it had called its function.
func (w *watch) stop() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.over = true
	w.timer.Stop()
	return w.fired
}
