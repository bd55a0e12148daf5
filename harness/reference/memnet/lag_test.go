package memnet

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"testing"
	"time"

	"gotest.tools/v3/assert"
)

func ends(t *testing.T) (client, server *Conn) {
	t.Helper()
	client, server = Pipe(netip.MustParseAddrPort("203.0.113.7:40001"), netip.MustParseAddrPort("203.0.113.10:143"))
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func read(c *Conn) (string, error) {
	b := make([]byte, 100)
	n, err := c.Read(b)
	return string(b[:n]), err
}

func TestLag(t *testing.T) {
	client, server := ends(t)
	server.Write([]byte("at once"))
	server.Lag(12 * time.Second)
	server.Write([]byte("late"))

	client.SetReadDeadline(time.Now().Add(10 * time.Second))
	began := time.Now()
	got, err := read(client)
	assert.NilError(t, err)
	assert.Equal(t, got, "at once")
	_, err = read(client)
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)

	client.SetReadDeadline(time.Now().Add(20 * time.Second))
	got, err = read(client)
	assert.NilError(t, err)
	assert.Equal(t, got, "late")
	assert.Assert(t, time.Since(began) < 5*time.Second, "nobody waits for it")

	server.Lag(time.Hour)
	client.SetReadDeadline(time.Time{})
	server.Close()
	_, err = read(client)
	assert.ErrorIs(t, err, io.EOF)
}

// A reader that already waits fails when it learns that nothing will come in time.
func TestLagWhileWaiting(t *testing.T) {
	client, server := ends(t)
	client.SetReadDeadline(time.Now().Add(time.Minute))
	failed := make(chan error, 1)
	go func() {
		_, err := read(client)
		failed <- err
	}()
	server.Lag(40 * time.Second)
	server.Lag(40 * time.Second)
	assert.ErrorIs(t, <-failed, os.ErrDeadlineExceeded)
}

func TestReadQuiet(t *testing.T) {
	client, server := ends(t)
	client.SetReadDeadline(time.Now().Add(10 * time.Second))
	got := make(chan error, 1)
	go func() {
		_, err := read(client)
		got <- err
	}()
	_, err := server.ReadQuiet(make([]byte, 10), 3*time.Second)
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded, "both ends wait: the client says nothing")
	server.Write([]byte("you were too slow"))
	assert.NilError(t, <-got, "it allowed for more than 3 s")

	go func() {
		_, err := read(client)
		got <- err
	}()
	_, err = server.ReadQuiet(make([]byte, 10), 30*time.Second)
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.ErrorIs(t, <-got, os.ErrDeadlineExceeded, "it did not allow for 30 s")

	client.Write([]byte("PROXY"))
	b := make([]byte, 10)
	n, err := server.ReadQuiet(b, time.Second)
	assert.NilError(t, err)
	assert.Equal(t, string(b[:n]), "PROXY")

	client.Close()
	_, err = server.ReadQuiet(b, time.Second)
	assert.Assert(t, errors.Is(err, io.EOF))
}

// TestPatient: whoever waits with a deadline for a server that says nothing
// before it has read something waits in vain, and finds out at once.
func TestPatient(t *testing.T) {
	client, server := ends(t)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		b := make([]byte, 10)
		for {
			n, err := server.ReadPatient(b)
			if err != nil {
				return
			}
			server.Write(b[:n])
		}
	}()
	began := time.Now()
	client.SetReadDeadline(time.Now().Add(time.Minute))
	_, err := read(client)
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	assert.Assert(t, time.Since(began) < 5*time.Second)

	// An answer that is under way is not given up.
	for range 100 {
		client.Write([]byte("x"))
		got, err := read(client)
		assert.NilError(t, err)
		assert.Equal(t, got, "x")
	}
	client.Close()
	<-ended
}

func TestCuts(t *testing.T) {
	client, server := ends(t)
	for _, s := range []string{"a", "bc", "", "def"} {
		client.Write([]byte(s))
	}
	assert.DeepEqual(t, server.Cuts(), []int{1, 3, 3, 6})
	for range 100 {
		client.Write([]byte("x"))
	}
	assert.Equal(t, len(server.Cuts()), 32)
}
