//go:build unix

package containers

import "golang.org/x/sys/unix"

// freeSpace is how many octets are free for a user at a path.
func freeSpace(path string) (uint64, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(path, &s); err != nil {
		return 0, err
	}
	return uint64(s.Bavail) * uint64(s.Bsize), nil
}
