package proctest

import (
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// The commands of docs/first-cluster.md make a cluster with two copies of a Data.fs, and start it again.
func TestFirstClusterGuide(t *testing.T) {
	t.Parallel()
	out := followGuide(t, "first-cluster.md", "127.0.0.1:9999", "127.0.0.1:10000", "127.0.0.1:9999", "127.0.0.1:8100")
	says(t, "the guide", out, "S1 R UUUUUUUUUUUU\nS2 R UUUUUUUUUUUU")
}

// The commands of docs/grow.md add a storage, remove another one, and change the number of copies.
func TestGrowGuide(t *testing.T) {
	t.Parallel()
	out := followGuide(t, "grow.md", "127.0.0.1:9999", "127.0.0.1:10000", "127.0.0.1:9999")
	says(t, "the guide", out, "S3 R ", `S2 R U{12}\nS3 R U{12}`)
}

// The commands of docs/replace.md bring back a storage that was killed, and replace one that is lost.
func TestReplaceGuide(t *testing.T) {
	t.Parallel()
	out := followGuide(t, "replace.md", "127.0.0.1:9999", "127.0.0.1:10000", "127.0.0.1:9999")
	says(t, "the guide", out, "degraded: exit status 1", `S1 R U{12}\nS3 R U{12}`)
}

// The commands of docs/check.md compare the copies of a cluster, and repair one from the other.
func TestCheckGuide(t *testing.T) {
	t.Parallel()
	out := followGuide(t, "check.md", "127.0.0.1:9999", "127.0.0.1:10000", "127.0.0.1:9999")
	says(t, "the guide", out, "of 12 partitions compared: no difference found")
}

// Each message that docs/troubleshooting.md explains is one that a program, or the system, prints.
func TestTroubleshooting(t *testing.T) {
	t.Parallel()
	var source strings.Builder
	for _, dir := range []string{"cluster", "cmd", "importer", "exporter", "fsformat", "backup"} {
		err := filepath.WalkDir(filepath.Join("../../..", dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			source.Write(read(t, path))
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	text := source.String()
	foreign := []string{"no space left on device", "address already in use", "POSKeyError", "ConflictError"}
	rows := regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(string(read(t, "../../../docs/troubleshooting.md")), -1)
	if len(rows) < 25 {
		t.Fatalf("%d messages in the page", len(rows))
	}
	for _, row := range rows {
		if slices.Contains(foreign, row[1]) {
			continue
		}
		for part := range strings.SplitSeq(row[1], "…") {
			if part = strings.TrimSpace(part); part != "" && !strings.Contains(text, part) {
				t.Errorf("no program says %q", part)
			}
		}
	}
}
