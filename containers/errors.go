package containers

import (
	"fmt"
	"strings"

	"github.com/mailproof/mailproof/harness/result"
)

// The stages that a start can fail in, as reports name them.
const (
	StageEngine  = "engine"
	StageImage   = "image"
	StageOverlay = "overlay" // a layer cannot be read or laid
	StageStart   = "start"   // the server refuses its configuration, or ends
	StageVantage = "vantage"
	StageNetwork = "network"
	StageProxy   = "proxy"
)

// A StartError says that a source, or the proxy, did not start. It stands in
// place of everything that would have been judged there.
type StartError struct {
	Source string // as named in the options; "" for the proxy
	Stage  string
	Where  string // a file of a layer, a container, an image, a command
	Words  string // what happened, in the words of whoever refused
}

func (e *StartError) Error() string {
	who := e.Source
	if who == "" {
		who = "the proxy"
	}
	return fmt.Sprintf("%s did not start: %s: %s: %s", who, e.Stage, e.Where, firstLines(e.Words, 40))
}

// Problem is the error as a run reports it.
func (e *StartError) Problem() result.Problem {
	return result.Problem{Source: e.Source, Stage: e.Stage, Where: e.Where, Words: e.Words}
}

// An EngineError says that there is no container engine to work with, and
// what would help.
type EngineError struct {
	Words string
	Help  string // a command
	Err   error
}

func (e *EngineError) Error() string {
	s := "no container engine: " + e.Words
	if e.Help != "" {
		s += "; this would help: " + e.Help
	}
	return s
}
func (e *EngineError) Unwrap() error { return e.Err }

// A KeptError says that a lab that was started with Keep stands on the engine.
type KeptError struct {
	Owner  string
	Remove string // the command that removes it
}

func (e *KeptError) Error() string {
	return fmt.Sprintf("a lab that was kept by %s stands on this engine; remove it with: %s", e.Owner, e.Remove)
}

func firstLines(s string, n int) string {
	lines := strings.SplitN(strings.TrimRight(s, "\n"), "\n", n+1)
	if len(lines) > n {
		lines = append(lines[:n], "…")
	}
	return strings.Join(lines, "\n")
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimRight(s, "\n"), "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return strings.Join(lines, "\n")
}
