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

func text(s string) func(io.Writer) error {
	return func(w io.Writer) error {
		_, err := io.WriteString(w, s)
		return err
	}
}

// onlyThese asserts what a directory holds, so that no temporary file remains.
func onlyThese(t *testing.T, dir string, names ...string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	assert.NilError(t, err)
	have := []string{}
	for _, e := range entries {
		have = append(have, e.Name())
	}
	if names == nil {
		names = []string{}
	}
	assert.DeepEqual(t, have, names)
}

func TestWriteFileReplacesAsAWhole(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run.json")
	assert.NilError(t, WriteFile(path, text("one")))
	assert.NilError(t, os.Chmod(path, 0o640))
	assert.NilError(t, WriteFile(path, text("two")))
	got, err := os.ReadFile(path)
	assert.NilError(t, err)
	assert.Equal(t, string(got), "two")
	info, err := os.Stat(path)
	assert.NilError(t, err)
	assert.Equal(t, info.Mode().Perm(), os.FileMode(0o640))
	onlyThese(t, dir, "run.json")
}

func TestWriteFileKeepsWhatStoodThere(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "run.json")
	assert.NilError(t, WriteFile(path, text("one")))
	err := WriteFile(path, func(w io.Writer) error {
		if _, err := io.WriteString(w, "half of"); err != nil {
			return err
		}
		return syscall.ENOSPC
	})
	assert.Error(t, err, "the report "+path+" could not be written: no space left on device: free some space there, or name another place")
	assert.Assert(t, errors.Is(err, syscall.ENOSPC))
	got, err := os.ReadFile(path)
	assert.NilError(t, err)
	assert.Equal(t, string(got), "one")
	onlyThese(t, dir, "run.json")
}

func TestWriteFileAfterAPanicLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	func() {
		defer func() { assert.Equal(t, recover(), "broken renderer") }()
		WriteFile(filepath.Join(dir, "run.json"), func(io.Writer) error { panic("broken renderer") })
	}()
	onlyThese(t, dir)
}

func TestWriteFileSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	missing := filepath.Join(dir, "none", "run.json")
	for path, want := range map[string]string{
		missing: "the report " + missing + " could not be written: no such file or directory: make the directory first",
		dir:     "the report " + dir + " could not be written: it is a directory: name a file that can be written",
		"":      "the report  could not be written: it has no name: name a file that can be written",
	} {
		err := WriteFile(path, text("x"))
		assert.Error(t, err, want)
		var fe *FileError
		assert.Assert(t, errors.As(err, &fe))
		assert.Equal(t, fe.Path, path)
	}
	onlyThese(t, dir)
}

func TestWriteFileFollowsLinks(t *testing.T) {
	dir := t.TempDir()
	path, link := filepath.Join(dir, "run.json"), filepath.Join(dir, "last.json")
	assert.NilError(t, os.WriteFile(path, []byte("one"), 0o600))
	assert.NilError(t, os.Symlink(path, link))
	assert.NilError(t, WriteFile(link, text("two")))
	got, err := os.ReadFile(path)
	assert.NilError(t, err)
	assert.Equal(t, string(got), "two")
	info, err := os.Lstat(link)
	assert.NilError(t, err)
	assert.Assert(t, info.Mode()&os.ModeSymlink != 0)
	onlyThese(t, dir, "last.json", "run.json")
}

func TestWriteFileWithALongName(t *testing.T) {
	dir := t.TempDir()
	name := strings.Repeat("n", 250) + ".xml"
	assert.NilError(t, WriteFile(filepath.Join(dir, name), text("x")))
	onlyThese(t, dir, name)
}
