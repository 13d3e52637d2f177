package main

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/neozodb/neo/cmd/internal/cli"
)

// terminal returns a terminal, and a function that closes it and returns what was shown on it.
func terminal(t *testing.T) (*os.File, func() string) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 120}); err != nil {
		t.Fatal(err)
	}
	shown := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(master) // it ends with an error once the other side is closed
		shown <- string(b)
	}()
	return tty, func() string {
		t.Helper()
		if err := tty.Close(); err != nil {
			t.Error(err)
		}
		defer master.Close()
		select {
		case text := <-shown:
			return text
		case <-time.After(2 * time.Minute):
			t.Fatal("the terminal does not end")
			return ""
		}
	}
}

// On a terminal, progress is a bar in one line, in bytes from its beginning, and then a summary. The
// results are on the standard output.
func TestProgressOnTerminal(t *testing.T) {
	w := newWorld(t)
	w.prepare("site.fs")
	w.env["NEOBACKUP_IDENTITY"] = w.path("op1.txt")
	for _, tt := range []struct {
		args string
		want []string // what is on the terminal, as lines
	}{
		{"snapshot", []string{`^storing: 334 transactions +100% \|█+\| \(1\.1/1\.1 MB`, `^storing: 334 transactions, 1\.1 MB in `}},
		{"restore " + w.path("x.fs"), []string{`^restoring +100% \|█+\| \(1\.1/1\.1 MB`, `^restoring: 1\.1 MB in `, `^comparing: 1\.1 MB in `}},
		{"verify", []string{`^verifying +100% \|█+\| \(\d+/\d+ kB`, `^verifying: [\d.]+ kB in `}},
		{"snapshot -q", nil},
	} {
		tty, end := terminal(t)
		var out strings.Builder
		env := &cli.Env{Args: strings.Fields(tt.args), Stdin: strings.NewReader(""), Stdout: &out, Stderr: tty, Getenv: func(k string) string { return w.env[k] }}
		code := cli.Run(t.Context(), env, newCommand)
		shown := end()
		if code != 0 || strings.Contains(out.String(), "█") {
			t.Fatalf("neobackup %s: exit code %d, %s\n%s", tt.args, code, out.String(), shown)
		}
		if tt.want == nil && shown != "" {
			t.Errorf("neobackup %s shows %q", tt.args, shown)
		}
		lines := strings.FieldsFunc(shown, func(r rune) bool { return r == '\r' || r == '\n' })
		for _, want := range tt.want {
			found := false
			for _, l := range lines {
				found = found || regexp.MustCompile(want).MatchString(l)
			}
			if !found {
				t.Errorf("neobackup %s: no line is %s in\n%q", tt.args, want, lines)
			}
		}
		for _, l := range lines {
			if strings.Contains(l, "transactions/") || strings.Contains(l, "TB/s") || strings.Contains(l, "GB/s") {
				t.Errorf("neobackup %s shows %q", tt.args, l)
			}
		}
	}
}
