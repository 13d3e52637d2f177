package source_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/source"
)

// A Data.fs tells which Python it is for.
func TestPython(t *testing.T) {
	for name, want := range map[string]int{"01-basic.fs": 3, "10-legacy-fs21.fs": 2} {
		b, err := os.ReadFile(filepath.Join("../../testdata/fs", name))
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := source.Open(t.Context(), "root", config.Storage{File: &config.File{Path: path}}, source.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if got := source.Python(s); got != want {
			t.Errorf("%s is of Python %d, want %d", name, got, want)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
}
