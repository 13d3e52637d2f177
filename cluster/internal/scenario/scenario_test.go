package scenario

import (
	"strings"
	"testing"
)

func TestLines(t *testing.T) {
	const text = "# two\na b\n    former\n\nc\n"
	got := Lines(text, func(c string) []string { return strings.Fields(c) })
	if want := "# two\na b\n    a\n    b\n\nc\n    c\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if again := Lines(got, func(c string) []string { return strings.Fields(c) }); again != got {
		t.Errorf("played again: %q, want %q", again, got)
	}
}

func TestBlocks(t *testing.T) {
	const text = "# nothing\n\na # b\nc\n----\nformer\n\n\nd\n"
	play := func(commands []string) []string { return []string{strings.Join(commands, "+")} }
	got := Blocks(text, play)
	if want := "# nothing\n\na # b\nc\n----\na+c\n\n\nd\n----\nd\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if again := Blocks(got, play); again != got {
		t.Errorf("played again: %q, want %q", again, got)
	}
}
