//go:build unix

package sqlitedb

import (
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// What a storage keeps is for the one who runs it: the database and all files that
// SQLite makes beside it, whatever the umask allows.
func TestDatabaseIsPrivate(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	dir := t.TempDir()
	mustOpenSample(t, filepath.Join(dir, "s.sqlite"), Options{})
	n := 0
	if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		n++
		file, err := os.Stat(path)
		if err == nil && file.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, file.Mode())
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if n < 3 {
		t.Errorf("%d files, want the database with its -wal and -shm", n)
	}
}
