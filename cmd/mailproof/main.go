// Command mailproof judges whether a mail server is ready to stand behind a
// migration proxy.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/mailproof/mailproof/harness/result"
	"github.com/mailproof/mailproof/harness/wire"
)

// version is set by the linker for releases.
var version = "devel"

func main() {
	// A run holds a few megabytes and lives for seconds: to collect garbage less
	// often saves a sixth of its time.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// cli is the command line contract.
type cli struct {
	List    listCmd    `cmd:"" help:"List scenarios, defects, requirements or the ledger of what is not judged."`
	Explain explainCmd `cmd:"" help:"Print a scenario as it will run, or what a diagnosis code means."`
	Lint    lintCmd    `cmd:"" help:"Check scenario files."`
	Plan    planCmd    `cmd:"" help:"Print what a run would connect to and send, without doing it."`
	Run     runCmd     `cmd:"" help:"Judge a target."`
	Prove   proveCmd   `cmd:"" help:"Show that every assertion can fail: run the scenarios against known-bad sources."`
	Doctor  doctorCmd  `cmd:"" help:"Say what this machine can judge, and what is missing."`
	Init    initCmd    `cmd:"" help:"Write a site.toml from your proxy's configuration."`
	Report  reportCmd  `cmd:"" help:"Merge or compare JSON reports."`
	Proxy   proxyCmd   `cmd:"" help:"Run the reference proxy by itself."`
	Vantage vantageCmd `cmd:"" hidden:"" help:"Serve a vantage over standard input and output (inside a lab's containers)."`
	Version bool       `name:"version" help:"Print the version."`
}

// console is where a command talks: data on out, words for people on err.
type console struct {
	in  io.Reader
	out io.Writer
	err io.Writer
	// deadlines are those of a run at a site; the zero value is wire.Site().
	deadlines wire.Deadlines
}

// A usageError is a wrong flag, name or file: exit status 2.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// An exitError carries the status of a run that reported everything already.
type exitError struct{ code int }

func (e exitError) Error() string { return fmt.Sprintf("exit status %d", e.code) }

// Main runs one command line and returns the process status.
func Main(ctx context.Context, args []string, in io.Reader, out, errw io.Writer) int {
	return (&console{in: in, out: out, err: errw}).do(ctx, args)
}

// do runs one command line.
func (con *console) do(ctx context.Context, args []string) int {
	out, errw := con.out, con.err
	var c cli
	parser, err := kong.New(&c, kong.Name("mailproof"),
		kong.Description("Protocol-level conformance tests for mail servers that are about to be migrated."),
		kong.Writers(out, errw), kong.Exit(func(int) { panic(helpShown{}) }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}), kong.UsageOnError())
	if err != nil {
		fmt.Fprintln(errw, "mailproof:", err)
		return result.ExitUsage
	}
	if len(args) == 1 && args[0] == "--version" {
		fmt.Fprintln(out, "mailproof", versionText())
		return result.ExitOK
	}
	k, help, err := parse(parser, args)
	if help {
		return result.ExitOK
	}
	if err != nil {
		fmt.Fprintf(errw, "mailproof: %v\n", err)
		fmt.Fprintln(errw, "mailproof: `mailproof --help` lists the commands and flags")
		return result.ExitUsage
	}
	k.BindTo(ctx, (*context.Context)(nil))
	return status(k.Run(con), errw)
}

type helpShown struct{}

// parse keeps kong from ending the process after it has shown help.
func parse(p *kong.Kong, args []string) (k *kong.Context, help bool, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(helpShown); !ok {
				panic(r)
			}
			help = true
		}
	}()
	k, err = p.Parse(args)
	return k, false, err
}

// status turns a command's error into the process status, and says it.
func status(err error, errw io.Writer) int {
	var exit exitError
	var usage usageError
	switch {
	case err == nil:
		return result.ExitOK
	case errors.As(err, &exit):
		return exit.code
	case errors.As(err, &usage):
		fmt.Fprintf(errw, "mailproof: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nmailproof: "))
		return result.ExitUsage
	case errors.Is(err, context.Canceled):
		fmt.Fprintln(errw, "mailproof: interrupted")
		return result.ExitInterrupted
	}
	fmt.Fprintf(errw, "mailproof: %v\n", err)
	return result.ExitUnjudged
}

// tool is what reports say of the program that wrote them.
func tool() result.Tool {
	t := result.Tool{Version: version, Commit: "unknown"}
	if info, ok := debug.ReadBuildInfo(); ok {
		if version == "devel" && info.Main.Version != "" && info.Main.Version != "(devel)" {
			t.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				t.Commit = s.Value
			}
		}
	}
	return t
}

func versionText() string {
	t := tool()
	return fmt.Sprintf("%s (commit %s)", t.Version, t.Commit)
}
