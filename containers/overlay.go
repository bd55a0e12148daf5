package containers

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/mailproof/mailproof/fixtures"
)

// OverlayName is what the layer of an overlay is called.
const OverlayName = "overlay"

// The bounds of an overlay.
const (
	maxOverlayFile  = 1 << 20
	maxOverlayTotal = 16 << 20
	maxOverlayFiles = 500
)

// ReadOverlay reads an operator's own configuration from a folder, to be laid
// over a source:
//
//	dovecot/*.conf      included last, in lexical order
//	postfix/main.cf     name = value
//	postfix/master.cf   entries, and service/type/parameter=value
//	stalwart/*.toml     keys, those of the file and those of the database alike
//	anything else       copied, and reachable under @overlay@/
//
// It reads everything, and checks what can be checked without a server, so
// that a mistake is named before anything starts: a file that cannot be read,
// a name between two @ that the lab does not have, a line that Postfix would
// not read, keys that are no TOML. Links are followed only to files.
func ReadOverlay(dir string) (fixtures.Layer, error) {
	l := fixtures.Layer{Name: OverlayName, Files: map[string]string{}}
	info, err := os.Stat(dir)
	if err != nil {
		return l, fmt.Errorf("overlay: %w", err)
	}
	if !info.IsDir() {
		return l, fmt.Errorf("overlay: %s is a file: name the folder that holds dovecot/, postfix/, stalwart/ and the like", dir)
	}
	total := 0
	err = filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		rel = filepath.ToSlash(rel)
		text, err := readOverlayFile(p)
		if err != nil {
			return err
		}
		if total += len(text); total > maxOverlayTotal || len(l.Files) >= maxOverlayFiles {
			return fmt.Errorf("%s: the overlay is too large: at most %d files and %d octets are laid", p, maxOverlayFiles, maxOverlayTotal)
		}
		l.Files[rel] = text
		return nil
	})
	if err != nil {
		return l, fmt.Errorf("overlay: %w", err)
	}
	if len(l.Files) == 0 {
		return l, fmt.Errorf("overlay: %s is empty: there is nothing to lay", dir)
	}
	return l, checkOverlay(dir, l)
}

func readOverlayFile(p string) (string, error) {
	info, err := os.Stat(p)
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is no file: %s", p, info.Mode().Type())
	}
	f, err := os.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxOverlayFile+1))
	if err != nil {
		return "", err
	}
	if len(b) > maxOverlayFile {
		return "", fmt.Errorf("%s is larger than %d octets", p, maxOverlayFile)
	}
	return string(b), nil
}

// checkOverlay finds what is wrong whatever server it is laid over.
func checkOverlay(dir string, l fixtures.Layer) error {
	names := fixtures.LabNames(0)
	names["overlay"] = "/overlay"
	var errs []error
	for _, p := range l.Paths() {
		if !fixtures.IsConfig(p) {
			if strings.HasPrefix(p, "stalwart/") {
				errs = append(errs, fmt.Errorf("overlay: %s would only be copied: Stalwart's keys stand as stalwart/NAME.toml", filepath.Join(dir, p)))
			}
			if (strings.HasPrefix(p, "dovecot/") || strings.HasPrefix(p, "postfix/")) && filepath.Ext(p) == ".conf" {
				errs = append(errs, fmt.Errorf("overlay: %s would only be copied: Dovecot's files stand as dovecot/NAME.conf, Postfix's as postfix/main.cf and postfix/master.cf", filepath.Join(dir, p)))
			}
			continue
		}
		at := filepath.Join(dir, filepath.FromSlash(p))
		text, err := names.Expand(at, l.Files[p])
		if err == nil && p == "postfix/main.cf" {
			_, err = fixtures.ParseMain(at, text)
		}
		if err == nil && p == "postfix/master.cf" {
			_, err = fixtures.ParseMaster(at, text)
		}
		if err == nil && strings.HasPrefix(p, "stalwart/") {
			err = fixtures.Keys{}.ParseKeys(at, text)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("overlay: %w", err))
		}
	}
	return errors.Join(errs...)
}
