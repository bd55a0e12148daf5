package site

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// secretFor bounds a command that prints a password.
const secretFor = 20 * time.Second

// shell is a command of the operator's, run by the system's shell. It gets no
// input, and ends with its whole process group.
func shell(ctx context.Context, command string) *exec.Cmd {
	c := exec.CommandContext(ctx, "/bin/sh", "-c", command)
	ownGroup(c)
	c.Cancel = func() error { return killGroup(c) }
	c.WaitDelay = time.Second
	return c
}

// output runs a command and returns at most limit octets of what it prints.
func output(ctx context.Context, command string, limit int) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, secretFor)
	defer cancel()
	c := shell(ctx, command)
	r, err := c.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(r, int64(limit)))
	if len(text) == limit {
		killGroup(c)
	}
	if werr := c.Wait(); err == nil && len(text) < limit {
		err = werr
	}
	if cerr := ctx.Err(); cerr != nil {
		err = cerr
	}
	if err != nil {
		return nil, fmt.Errorf("the command failed: %w", err)
	}
	return text, nil
}

// lastWords keeps the end of what a program says on its standard error, as far
// as it may be shown.
type lastWords struct {
	mu   sync.Mutex
	tail []byte
}

const maxWords = 4096

func (w *lastWords) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tail = append(w.tail, b...)
	if n := len(w.tail) - maxWords; n > 0 {
		w.tail = append(w.tail[:0], w.tail[n:]...)
	}
	return len(b), nil
}

// String is the last line, unless it may be somebody's: a line of a log, with
// an address or a name in it, is never kept.
func (w *lastWords) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	lines := bytes.Split(bytes.TrimSpace(w.tail), []byte("\n"))
	last := strings.TrimSpace(string(lines[len(lines)-1]))
	if len(last) > 200 || strings.ContainsAny(last, "@<>=[") {
		return ""
	}
	return last
}

// A stream is the output of a command that goes on.
type stream struct {
	cmd    *exec.Cmd
	out    *os.File
	words  *lastWords
	cancel context.CancelFunc
	done   chan struct{}
	err    error // of Wait, once done is closed
}

// follow starts a command that prints a log.
func follow(ctx context.Context, command string) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s := &stream{words: &lastWords{}, cancel: cancel, done: make(chan struct{})}
	r, w, err := os.Pipe()
	if err != nil {
		cancel()
		return nil, err
	}
	s.out = r
	s.cmd = shell(ctx, command)
	s.cmd.Stdout, s.cmd.Stderr = w, s.words
	err = s.cmd.Start()
	w.Close()
	if err != nil {
		cancel()
		r.Close()
		return nil, err
	}
	go func() {
		defer close(s.done)
		s.err = s.cmd.Wait()
	}()
	return s, nil
}

func (s *stream) Read(b []byte) (int, error) {
	n, err := s.out.Read(b)
	if !errors.Is(err, io.EOF) {
		return n, err
	}
	<-s.done
	how := "with status 0"
	if s.err != nil {
		how = "with " + s.err.Error()
	}
	if w := s.words.String(); w != "" {
		how += ", saying " + w
	}
	return n, fmt.Errorf("the command ended %s", how)
}

// Close ends the command and waits for it.
func (s *stream) Close() error {
	s.cancel()
	<-s.done
	return s.out.Close()
}
