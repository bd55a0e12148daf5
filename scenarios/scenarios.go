// Package scenarios holds the claims that mailproof judges, one file each, in
// folders named after what they are about, and the fragments that they share.
// The files are embedded: an operator's binary needs no others.
//
// The package promises that every embedded scenario parses, that ids are
// unique, and that the order is that of the ids.
package scenarios

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/mailproof/mailproof/harness/script"
)

//go:embed _fragments/*.txtar */*.txtar
var embedded embed.FS

// All parses the embedded scenarios. Their paths are those of this project's
// repository, so that whatever reads a report finds the file.
func All() ([]*script.Scenario, error) { return load(embedded, nil, "scenarios/") }

// Library parses the embedded fragments.
func Library() (*script.Library, error) { return library(embedded, nil) }

// Load parses the scenarios of a file system with a folder for each group and
// a folder "_fragments". Fragments that it lacks are taken from lib's files.
func Load(fsys fs.FS, extra fs.FS) ([]*script.Scenario, error) { return load(fsys, extra, "") }

func load(fsys fs.FS, extra fs.FS, prefix string) ([]*script.Scenario, error) {
	lib, err := library(fsys, extra)
	if err != nil {
		return nil, err
	}
	files, err := fs.Glob(fsys, "*/*.txtar")
	if err != nil {
		return nil, err
	}
	var all []*script.Scenario
	var errs []error
	seen := make(map[string]string)
	for _, f := range files {
		if strings.HasPrefix(f, "_fragments/") {
			continue
		}
		text, err := fs.ReadFile(fsys, f)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s, err := script.Parse(prefix+f, text, lib)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if first, dup := seen[s.ID]; dup {
			errs = append(errs, fmt.Errorf("%s: the id %s is taken by %s", prefix+f, s.ID, first))
			continue
		}
		seen[s.ID] = prefix + f
		all = append(all, s)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	slices.SortFunc(all, func(a, b *script.Scenario) int { return strings.Compare(a.ID, b.ID) })
	return all, nil
}

func library(systems ...fs.FS) (*script.Library, error) {
	files := make(map[string][]byte)
	for _, fsys := range slices.Backward(systems) {
		if fsys == nil {
			continue
		}
		names, err := fs.Glob(fsys, "_fragments/*.txtar")
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			text, err := fs.ReadFile(fsys, n)
			if err != nil {
				return nil, err
			}
			files[path.Clean(n)] = text
		}
	}
	return script.NewLibrary(files)
}

// ReadDir parses an operator's own scenarios in a folder, as [LoadDir] does.
// Their paths begin with the folder, so that whatever reads a report or an
// error finds the file.
func ReadDir(dir string) ([]*script.Scenario, error) {
	return load(os.DirFS(dir), embedded, filepath.ToSlash(filepath.Clean(dir))+"/")
}

// LoadDir parses an operator's own scenarios, which may use our fragments.
func LoadDir(fsys fs.FS) ([]*script.Scenario, error) { return Load(fsys, embedded) }
