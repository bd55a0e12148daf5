//go:build !linux

package vantage

import "syscall"

// oneHop does nothing here: a vantage runs Linux.
func oneHop(string, string, syscall.RawConn) error { return nil }
