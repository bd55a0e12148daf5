package proxy

import (
	"context"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// RunFile serves the configuration in a file on real sockets until ctx ends,
// and writes its log to w, one line with its time (RFC 3339, UTC) for each
// event. It returns once every session is over: nil after ctx ended, or why it
// could not begin or go on.
func RunFile(ctx context.Context, path string, w io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("proxy configuration: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(f, MaxConfig+1))
	f.Close()
	if err != nil {
		return fmt.Errorf("proxy configuration: %w", err)
	}
	cfg, err := ParseConfig(path, text)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	log := func(line string) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(w, "%s %s\n", time.Now().UTC().Format("2006-01-02T15:04:05.000Z"), line)
	}
	p, err := New(cfg, Options{Log: log})
	if err != nil {
		return err
	}
	if err := p.Serve(ctx); err != nil {
		return err
	}
	log("every session is over")
	return nil
}
