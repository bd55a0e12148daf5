//go:build !unix

package containers

import "errors"

func freeSpace(string) (uint64, error) { return 0, errors.ErrUnsupported }
