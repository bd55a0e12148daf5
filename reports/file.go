package reports

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// FileError says that a report's file could not be written. The file that
// stood there before, if any, is untouched.
type FileError struct {
	Path string
	Err  error
}

func (e *FileError) Error() string {
	advice := "name a file that can be written"
	switch {
	case errors.Is(e.Err, syscall.ENOSPC):
		advice = "free some space there, or name another place"
	case errors.Is(e.Err, fs.ErrNotExist):
		advice = "make the directory first"
	case errors.Is(e.Err, fs.ErrPermission):
		advice = "name a place where you may write"
	}
	err := e.Err
	switch inner := err.(type) { // these would name the temporary file
	case *fs.PathError:
		err = inner.Err
	case *os.LinkError:
		err = inner.Err
	}
	return fmt.Sprintf("the report %s could not be written: %v: %s", e.Path, err, advice)
}

func (e *FileError) Unwrap() error { return e.Err }

// WriteFile writes a report so that path holds either all of it or what it
// held before: into a temporary file in the same directory, which is synced
// and renamed, and removed whatever goes wrong. A symbolic link is followed. A
// path that exists and is no regular file, such as /dev/null or a named pipe,
// is written to directly. Errors are of type [*FileError].
func WriteFile(path string, write func(io.Writer) error) error {
	if err := writeFile(path, write); err != nil {
		return &FileError{Path: path, Err: err}
	}
	return nil
}

func writeFile(path string, write func(io.Writer) error) error {
	if path == "" {
		return errors.New("it has no name")
	}
	if target, err := filepath.EvalSymlinks(path); err == nil {
		path = target
	}
	before, statErr := os.Stat(path)
	switch {
	case statErr != nil: // it is to be made
	case before.IsDir():
		return errors.New("it is a directory")
	case !before.Mode().IsRegular():
		return writeDirectly(path, write)
	}
	dir, base := filepath.Split(path)
	var mark [6]byte
	rand.Read(mark[:])
	temp := filepath.Join(dir, fmt.Sprintf(".%.200s.%x.tmp", base, mark))
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return err
	}
	kept := false
	defer func() {
		if !kept {
			f.Close()
			os.Remove(temp)
		}
	}()
	if statErr == nil {
		if err := f.Chmod(before.Mode().Perm()); err != nil {
			return err
		}
	}
	if err := buffered(f, write); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(temp, path); err != nil {
		return err
	}
	kept = true
	// The name itself is made durable where a directory can be synced.
	if d, err := os.Open(filepath.Dir(path)); err == nil {
		d.Sync()
		d.Close()
	}
	return nil
}

func writeDirectly(path string, write func(io.Writer) error) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	err = buffered(f, write)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func buffered(f io.Writer, write func(io.Writer) error) error {
	b := bufio.NewWriterSize(f, 64<<10)
	if err := write(b); err != nil {
		return err
	}
	return b.Flush()
}
