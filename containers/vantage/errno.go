package vantage

import (
	"fmt"
	"syscall"
)

// Errnos travel by Linux's numbers: the vantage runs Linux, and the harness
// may not.
var errnos = [...]struct {
	wire uint32
	no   syscall.Errno
}{
	{24, syscall.EMFILE},
	{32, syscall.EPIPE},
	{97, syscall.EAFNOSUPPORT},
	{98, syscall.EADDRINUSE},
	{99, syscall.EADDRNOTAVAIL},
	{100, syscall.ENETDOWN},
	{101, syscall.ENETUNREACH},
	{103, syscall.ECONNABORTED},
	{104, syscall.ECONNRESET},
	{110, syscall.ETIMEDOUT},
	{111, syscall.ECONNREFUSED},
	{112, syscall.EHOSTDOWN},
	{113, syscall.EHOSTUNREACH},
}

func wireErrno(no syscall.Errno) uint32 {
	for _, e := range errnos {
		if e.no == no {
			return e.wire
		}
	}
	return 0
}

// A remoteError is what went wrong at the vantage, in its own words; it
// unwraps to the system's error number, where that is a known one.
type remoteError struct {
	words string
	no    syscall.Errno
}

func (e *remoteError) Error() string { return e.words }
func (e *remoteError) Unwrap() error {
	if e.no == 0 {
		return nil
	}
	return e.no
}

func (e *remoteError) Timeout() bool   { return e.no == syscall.ETIMEDOUT }
func (e *remoteError) Temporary() bool { return e.Timeout() }

func parseFailure(payload []byte) (*remoteError, error) {
	n, words, err := cut(payload)
	if err != nil {
		return nil, err
	}
	e := &remoteError{words: fmt.Sprintf("%q", words)}
	for _, k := range errnos {
		if k.wire == n {
			e.no, e.words = k.no, k.no.Error()
		}
	}
	if e.no == 0 {
		e.words = string(words)
	}
	return e, nil
}
