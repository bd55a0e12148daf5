package containers

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// program is the command that stands at the vantages, and module where it
// is built from.
const (
	program = "github.com/mailproof/mailproof/cmd/mailproof"
	module  = "github.com/mailproof/mailproof"
)

// maxProgram bounds the executable that is put into an image, in octets.
const maxProgram = 256 << 20

// findProgram returns the path of an executable of this program that runs in
// an empty Linux container: this very executable where it is one, otherwise
// one that "go build" makes in dir. What it made there is the caller's.
func findProgram(ctx context.Context, arch, dir string, progress func(string)) (string, error) {
	exe, err := os.Executable()
	if err == nil {
		if isProgram(exe) && runsAlone(exe, arch) == nil {
			return exe, nil
		}
	}
	progress("building the vantages' program")
	out := filepath.Join(dir, "mailproof")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", out, program)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOFLAGS=-buildvcs=false")
	ownGroup(cmd)
	cmd.Cancel = func() error { return endGroup(cmd, false) }
	cmd.WaitDelay = 5 * time.Second
	defer endGroup(cmd, true)
	b, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("building the vantages' program: this executable is none that runs in an empty %s container (a static build is: CGO_ENABLED=0 go build %s), and there is no go command", arch, program)
	}
	if err != nil {
		what := fmt.Sprintf("building the vantages' program: this executable is none that runs in an empty %s container, so \"go build\" was asked for one and failed; take a static executable (make build, or CGO_ENABLED=0 go build %s), or work in a module that requires %s", arch, program, module)
		return "", &buildError{what, lastLines(string(b), 40), err}
	}
	return out, nil
}

// isProgram says whether an executable is this module's command.
func isProgram(path string) bool {
	bi, err := buildinfo.ReadFile(path)
	return err == nil && bi.Path == program
}

// runsAlone says why an executable does not run in an empty Linux container of
// the architecture; nil when it does.
func runsAlone(path, arch string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("%s is no Linux executable: %w", path, err)
	}
	defer f.Close()
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	if want, ok := machines[arch]; !ok || f.Machine != want {
		return fmt.Errorf("%s is for %s, and the engine's architecture is %s", path, strings.TrimPrefix(f.Machine.String(), "EM_"), arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return fmt.Errorf("%s is linked dynamically", path)
		}
	}
	return nil
}

func readProgram(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var b bytes.Buffer
	if n, err := io.Copy(&b, io.LimitReader(f, maxProgram+1)); err != nil || n > maxProgram {
		return nil, errors.Join(err, fmt.Errorf("%s: %d octets could be read, at most %d are taken", path, n, maxProgram))
	}
	return b.Bytes(), nil
}
