package reports

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"gotest.tools/v3/assert"
)

// A device stays a device: nothing is renamed over it.
func TestWriteFileToADevice(t *testing.T) {
	before, err := os.Stat("/dev/full")
	assert.NilError(t, err)
	err = WriteFile("/dev/full", text("x"))
	assert.Error(t, err, "the report /dev/full could not be written: no space left on device: free some space there, or name another place")
	after, err := os.Stat("/dev/full")
	assert.NilError(t, err)
	assert.Assert(t, os.SameFile(before, after))
	assert.NilError(t, WriteFile("/dev/null", text("x")))
	info, err := os.Stat("/dev/null")
	assert.NilError(t, err)
	assert.Assert(t, info.Mode()&os.ModeDevice != 0)
}

// A disk that fills up while the report is written leaves the old report and
// no temporary file.
func TestWriteFileOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=64k"); err != nil {
		if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.EACCES) {
			t.Skipf("a small file system cannot be mounted here (%v): run the tests as root to fill a real disk", err)
		}
		t.Fatal(err)
	}
	defer func() { assert.NilError(t, syscall.Unmount(dir, 0)) }()
	path := filepath.Join(dir, "run.json")
	assert.NilError(t, WriteFile(path, text("one")))
	err := WriteFile(path, func(w io.Writer) error {
		_, err := io.WriteString(w, strings.Repeat("x", 1<<20))
		return err
	})
	assert.Assert(t, errors.Is(err, syscall.ENOSPC), "%v", err)
	assert.ErrorContains(t, err, path)
	got, err := os.ReadFile(path)
	assert.NilError(t, err)
	assert.Equal(t, string(got), "one")
	onlyThese(t, dir, "run.json")
}
