package cli

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// Status shows on stderr how something is that goes on elsewhere: in a line that
// changes on a terminal, in one every few seconds anywhere else, and at once
// when its state changes. It is for one goroutine.
type Status struct {
	// Every is the time between two lines when not on a terminal. Default: 5 s.
	Every time.Duration

	w     io.Writer
	fd    int // of a terminal; -1: it is none
	shown bool
	state string
	last  time.Time
}

// NewStatus returns a Status that has shown nothing yet.
func NewStatus(env *Env) *Status {
	return &Status{w: env.Stderr, fd: terminal(env)}
}

// OnTerminal reports whether a person reads what is written to stderr.
func OnTerminal(env *Env) bool { return terminal(env) >= 0 }

// terminal returns the file descriptor of stderr if it is a terminal, and -1 otherwise.
func terminal(env *Env) int {
	if f, ok := env.Stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		return int(f.Fd())
	}
	return -1
}

// Show shows a line of text. state tells lines apart that must not be left out.
func (s *Status) Show(state, text string) {
	text = strings.Join(strings.Fields(text), " ")
	if s.fd >= 0 {
		s.shown = true
		// A line that is wrapped could not be replaced.
		if width, _, err := term.GetSize(s.fd); err == nil {
			if r := []rune(text); len(r) >= width && width > 1 {
				text = string(r[:width-1])
			}
		}
		fmt.Fprintf(s.w, "\r\x1b[K%s", text)
		return
	}
	if state == s.state && time.Since(s.last) < cmp.Or(s.Every, 5*time.Second) {
		return
	}
	s.state, s.last = state, time.Now()
	fmt.Fprintln(s.w, text)
}

// End completes the line.
func (s *Status) End() {
	if s.shown {
		s.shown = false
		fmt.Fprintln(s.w)
	}
}
