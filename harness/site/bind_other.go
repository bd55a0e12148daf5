//go:build !unix

package site

import "strings"

// isLocal says whether a dial failed on this machine: it does not have the
// address that was to be dialled from.
func isLocal(err error) bool { return strings.Contains(err.Error(), "requested address is not valid") }
