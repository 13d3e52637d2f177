package side

import (
	"fmt"
	"strings"
	"testing"

	"github.com/neozodb/neo/fsformat"
)

// Many damaged records are not each worth a line, but all are counted.
func TestWrong(t *testing.T) {
	for _, n := range []int{0, 1, maxWarnings, maxWarnings + 500} {
		var out strings.Builder
		w := Wrong{Out: &out, File: "Data.fs"}
		for i := range n {
			if err := w.Report(&fsformat.CorruptError{File: "Data.fs", Offset: int64(i), Problem: "wrong"}); err != nil {
				t.Fatal(err)
			}
		}
		w.Done("a copy")
		lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
		want := fmt.Sprintf("warning: Data.fs: %d records have wrong pointers", n)
		if n == 1 {
			want = "warning: Data.fs: 1 record has a wrong pointer"
		}
		switch {
		case n == 0 && out.String() != "":
			t.Errorf("none: %s", out.String())
		case n > 0 && !strings.HasPrefix(lines[len(lines)-1], want):
			t.Errorf("%d: %q, want %q", n, lines[len(lines)-1], want)
		case n > maxWarnings && (len(lines) != maxWarnings+2 || !strings.Contains(lines[maxWarnings], "only counted")):
			t.Errorf("%d: %d lines, %q", n, len(lines), lines[maxWarnings])
		}
	}
}
