// Package scenario runs scenarios that tests keep as text: commands, and what comes of them.
// With -update the tests write down what comes of them now; read the difference before it is committed.
package scenario

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the expected output of scenarios")

// Run plays each of the files that a pattern matches, as a test of its own. play returns the text
// of a file with the output as it is now, which must be the text itself.
func Run(t *testing.T, pattern string, play func(t *testing.T, text string) string) {
	t.Helper()
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenario is %s: %v", pattern, err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := play(t, string(b))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o666); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(string(b), got); diff != "" {
				t.Errorf("%s: something else comes of it (-want +got):\n%s", file, diff)
			}
		})
	}
}

// Lines plays a text with one command on each line, and indented below it the lines that come of it.
// Lines that are empty or begin with # are comments.
func Lines(text string, command func(c string) (output []string)) string {
	var out strings.Builder
	for line := range strings.Lines(text) {
		if line[0] == ' ' {
			continue // former output
		}
		out.WriteString(line)
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		for _, l := range command(line) {
			out.WriteString("    " + l + "\n")
		}
	}
	return out.String()
}

// Blocks plays a text of blocks that end with an empty line: commands, a line of dashes, and the
// lines that come of all of them. What follows # in a command is a comment.
func Blocks(text string, block func(commands []string) (output []string)) string {
	var out []string
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i := 0; i < len(lines); {
		begin := i
		for i < len(lines) && lines[i] != "----" && strings.TrimSpace(lines[i]) != "" {
			i++
		}
		out = append(out, lines[begin:i]...)
		commands := slices.Clone(lines[begin:i])
		for j, c := range commands {
			c, _, _ = strings.Cut(c, "#")
			commands[j] = strings.TrimSpace(c)
		}
		commands = slices.DeleteFunc(commands, func(c string) bool { return c == "" })
		if i < len(lines) && lines[i] == "----" {
			i++
			for i < len(lines) && lines[i] != "" {
				i++ // former output
			}
		}
		if len(commands) > 0 {
			out = append(out, "----")
			out = append(out, block(commands)...)
		}
		for i < len(lines) && lines[i] == "" {
			out = append(out, "")
			i++
		}
	}
	return strings.Join(out, "\n") + "\n"
}
