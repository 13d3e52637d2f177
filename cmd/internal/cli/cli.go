// Package cli holds what all commands have in common: how they start, how they
// are told to stop, what they exit with, the options they share, and how they
// show progress.
//
// # Invariant
//
// A command exits with 0 only if it did what it was asked, 2 if it was asked
// wrongly (with its usage, or the line of its configuration file, on stderr), and 1 or a code of its own otherwise (with
// the reason on stderr). SIGINT and SIGTERM are requests to stop in order: they
// end the context of the command, which returns; one that comes later kills.
package cli

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
	"time"

	"github.com/spf13/cobra"
)

// Env is the world as a command sees it, replaced in tests.
type Env struct {
	Args   []string // without the name of the program
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	Getenv func(string) string
}

// OSEnv returns the environment of this process.
func OSEnv() *Env {
	return &Env{os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv}
}

// Exit is an error with which a command chooses its exit code. A nil Err prints
// nothing: the command has said what there is to say.
type Exit struct {
	Code int
	Err  error
}

func (e *Exit) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit code %d", e.Code)
	}
	return e.Err.Error()
}

func (e *Exit) Unwrap() error { return e.Err }

// Usagef returns the error of a command that was asked wrongly: exit code 2.
func Usagef(format string, args ...any) error {
	return &Exit{2, fmt.Errorf(format, args...)}
}

// errInterrupted is the cause of a context that ends by a signal.
var errInterrupted = errors.New("interrupted")

// Stopped turns the error of a daemon into nil if it merely returned because it
// was told to stop by SIGINT or SIGTERM.
func Stopped(ctx context.Context, err error) error {
	if interrupted(ctx, err) {
		return nil
	}
	return err
}

// interrupted reports whether an error is nothing but the end of the context by a
// signal.
func interrupted(ctx context.Context, err error) bool {
	return errors.Is(err, errInterrupted) || errors.Is(err, context.Canceled) && errors.Is(context.Cause(ctx), errInterrupted)
}

// Main runs a command as this process. It does not return.
func Main(build func(*Env) *cobra.Command) {
	os.Exit(runWithSignals(build))
}

// sameSignal is how long after a signal another one is taken for the same request;
// one that comes later kills.
const sameSignal = time.Second

func runWithSignals(build func(*Env) *cobra.Command) int {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	c := make(chan os.Signal, 1)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM)
	go func() { // ends with the process
		<-c
		cancel(errInterrupted)
		// Programs like timeout send a signal both to us and to our group.
		time.Sleep(sameSignal)
		signal.Stop(c)
	}()
	return Run(ctx, OSEnv(), build)
}

// Run runs a command and returns its exit code. The context is that of the
// command; see [Main] for what ends it in a process.
func Run(ctx context.Context, env *Env, build func(*Env) *cobra.Command) int {
	root := build(env)
	root.SilenceErrors, root.SilenceUsage = true, true
	root.CompletionOptions.HiddenDefaultCmd = true
	if root.Version == "" {
		root.Version = Version()
	}
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	started := false
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return flagError(err) })
	forEachCommand(root, func(c *cobra.Command) {
		// "[options]" says it already.
		c.DisableFlagsInUseLine = c.DisableFlagsInUseLine || strings.Contains(c.Use, "[options]")
		if run := c.RunE; run != nil {
			c.RunE = func(cmd *cobra.Command, args []string) error {
				started = true
				return run(cmd, args)
			}
		}
		if stopsAtFirstWord(c) {
			c.Flags().SetInterspersed(false)
		}
		c.Flags().SortFlags = false
	})
	if len(env.Args) == 2 && env.Args[0] == manualCommand {
		return report(ctx, env, root, writeManual(root, env.Args[1], env.Getenv("MANUAL_DATE")))
	}
	args, err := expandOptions(root, env.Args)
	cmd := root
	if err == nil {
		root.SetArgs(append([]string{}, args...)) // nil would mean os.Args
		cmd, err = root.ExecuteContextC(ctx)
		if err != nil && !started {
			err = &Exit{2, err} // cobra did not understand the arguments
		}
	}
	return report(ctx, env, cmd, err)
}

// report prints an error and returns the exit code.
func report(ctx context.Context, env *Env, cmd *cobra.Command, err error) int {
	if err == nil {
		return 0
	}
	exit := &Exit{1, err}
	errors.As(err, &exit)
	if _, ok := errors.AsType[*badConfig](err); ok {
		fmt.Fprintf(env.Stderr, "%s: error: %v\n", cmd.CommandPath(), err)
		return 2
	}
	switch {
	case exit.Err == nil:
	case exit.Code == 2:
		fmt.Fprintf(env.Stderr, "usage: %s\n%s: error: %v\nSee %s --help.\n", cmd.UseLine(), cmd.CommandPath(), err, cmd.CommandPath())
	case interrupted(ctx, err):
		fmt.Fprintln(env.Stderr, "interrupted")
	default:
		fmt.Fprintf(env.Stderr, "error: %v\n", err)
	}
	return exit.Code
}

func forEachCommand(c *cobra.Command, do func(*cobra.Command)) {
	do(c)
	for _, sub := range c.Commands() {
		forEachCommand(sub, do)
	}
}

// version is set by builds of a release.
var version string

// Version returns the version of the module this program was built from: that of its release; or a
// tag, or the time and the commit, with +dirty if what was built was not committed.
func Version() string {
	if version != "" {
		return version
	}
	info, ok := debug.ReadBuildInfo()
	if !ok || info.Main.Version == "" {
		return "(devel)"
	}
	return info.Main.Version
}

// ExitStatus is the end of a help text: what the exit codes of all commands mean.
const ExitStatus = "\n\nExit status: 0 done; 1 failed, the reason is on stderr; 2 wrong usage or configuration."
