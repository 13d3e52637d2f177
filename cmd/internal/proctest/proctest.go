// Package proctest runs the real programs for tests: it builds them once, starts
// them on free ports, kills and restarts them, and keeps what they print.
package proctest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/neozodb/neo/cmd/internal/ports"
)

var (
	buildOnce sync.Once
	buildDir  string
	buildErr  error
)

// Bin returns the path of one of the module's programs, built without
// instrumentation: what is tested is what users run.
func Bin(t testing.TB, name string) string {
	t.Helper()
	buildOnce.Do(func() {
		if buildDir, buildErr = os.MkdirTemp("", "neo-bin-"); buildErr != nil {
			return
		}
		if out, err := exec.Command("go", "build", "-o", buildDir, "github.com/neozodb/neo/cmd/...").CombinedOutput(); err != nil {
			buildErr = fmt.Errorf("building the programs: %w\n%s", err, out)
		}
	})
	if buildErr != nil {
		t.Fatal(buildErr)
	}
	return filepath.Join(buildDir, name)
}

// Cleanup removes the built programs. Call it at the end of TestMain.
func Cleanup() {
	if buildDir != "" {
		os.RemoveAll(buildDir)
	}
}

// FreePort is [ports.Free].
func FreePort(t testing.TB) int {
	t.Helper()
	port, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// Process is one running program, which can be killed and started again.
type Process struct {
	Name string
	path string
	args []string

	mu     sync.Mutex
	cmd    *exec.Cmd
	done   chan struct{}
	err    error
	output lockedBuffer
}

// Start starts a program of the module. It is killed when the test ends, and its
// output is logged if the test failed.
func Start(t testing.TB, program string, args ...string) *Process {
	t.Helper()
	return start(t, program, Bin(t, program), args)
}

// start starts the program at path under the name of one of the module.
func start(t testing.TB, program, path string, args []string) *Process {
	t.Helper()
	p := &Process{Name: program, path: path, args: args}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("%s %s printed:\n%s", program, strings.Join(args, " "), tail(p.Output(), 4000))
		}
	})
	if err := p.Restart(); err != nil {
		t.Fatal(err)
	}
	return p
}

// Restart starts the program again, with the same arguments, after it ended.
func (p *Process) Restart() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	cmd := exec.Command(p.path, p.args...)
	cmd.Stdout, cmd.Stderr = &p.output, &p.output
	cmd.SysProcAttr = childAttr()
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", p.Name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done = cmd, done
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(done)
	}()
	return nil
}

// Kill ends the program with SIGKILL and waits for it.
func (p *Process) Kill() { p.end(syscall.SIGKILL) }

// Hang stops the program without ending it, until [Process.Continue].
func (p *Process) Hang() { p.end(syscall.SIGSTOP) }

// Continue ends what [Process.Hang] began.
func (p *Process) Continue() { p.end(syscall.SIGCONT) }

// Stop ends the program with SIGTERM, waits for it, and returns how it ended.
func (p *Process) Stop(t testing.TB) error {
	t.Helper()
	p.end(syscall.SIGTERM)
	return p.Wait(t, patience)
}

func (p *Process) end(sig syscall.Signal) {
	p.mu.Lock()
	cmd, done := p.cmd, p.done
	p.mu.Unlock()
	select {
	case <-done:
		return
	default:
	}
	cmd.Process.Signal(sig) // fails only if the process ended meanwhile
	if sig == syscall.SIGKILL {
		<-done
	}
}

// Wait waits for the end of the program and returns its error, nil for status 0.
func (p *Process) Wait(t testing.TB, limit time.Duration) error {
	t.Helper()
	p.mu.Lock()
	done := p.done
	p.mu.Unlock()
	select {
	case <-done:
	case <-time.After(limit):
		t.Fatalf("%s still runs after %v; it printed:\n%s", p.Name, limit, tail(p.Output(), 4000))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// Running reports whether the program has not ended.
func (p *Process) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// wantRunning fails the test if one of the programs has ended by itself.
func wantRunning(t testing.TB, processes []*Process) {
	t.Helper()
	for _, p := range processes {
		if !p.Running() {
			t.Fatalf("%s has ended by itself", p.Name)
		}
	}
}

// Pid returns the process id.
func (p *Process) Pid() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.cmd.Process.Pid
}

// PeakMemory returns the greatest resident size of the running program in bytes.
func (p *Process) PeakMemory(t testing.TB) int64 {
	t.Helper()
	n, ok := p.peakMemory()
	if !ok {
		t.Fatalf("%s: no VmHWM in /proc/%d/status", p.Name, p.Pid())
	}
	return n
}

// peakMemory returns false if the program has ended.
func (p *Process) peakMemory() (int64, bool) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.Pid()))
	if err != nil {
		return 0, false
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "VmHWM:" {
			n, err := strconv.ParseInt(f[1], 10, 64)
			return n << 10, err == nil
		}
	}
	return 0, false
}

// Output returns all that the program printed so far, all starts together.
func (p *Process) Output() string { return p.output.String() }

// patience is how long a test waits for what takes a moment on a machine that has nothing else to do.
const patience = 2 * time.Minute

// runLimit is how long a program may run that has to end by itself.
const runLimit = 6 * time.Minute

// Run runs a program of the module to its end. One that does not end is made to
// tell what it waits for.
func Run(t testing.TB, program string, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	cmd := exec.Command(Bin(t, program), args...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.SysProcAttr = childAttr()
	if err := cmd.Start(); err != nil {
		t.Fatalf("%s: %v", program, err)
	}
	stuck := time.AfterFunc(runLimit, func() {
		cmd.Process.Signal(syscall.SIGABRT) // fails only if the process ended meanwhile
	})
	err := cmd.Wait()
	if !stuck.Stop() {
		t.Fatalf("%s %s does not end:\n%s", program, strings.Join(args, " "), errOut.String())
	}
	if _, ok := err.(*exec.ExitError); err != nil && !ok {
		t.Fatalf("%s: %v", program, err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func tail(s string, n int) string {
	if len(s) > n {
		return "…" + s[len(s)-n:]
	}
	return s
}
