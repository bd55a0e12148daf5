//go:build unix

package site

import (
	"errors"
	"syscall"
)

// isLocal says whether a dial failed on this machine: it does not have the
// address that was to be dialled from.
func isLocal(err error) bool {
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EMFILE)
}
