package filestore_test

import (
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/filestore"
	"github.com/neozodb/neo/backup/store/storetest"
)

func open(t *testing.T, dir string) *filestore.Store {
	s, err := filestore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestStore(t *testing.T) {
	storetest.Suite{
		Open: func(t *testing.T) store.Store { return open(t, t.TempDir()) },
		Reopen: func(t *testing.T, s store.Store) store.Store {
			return open(t, strings.TrimPrefix(s.(*filestore.Store).String(), "file://"))
		},
	}.Run(t)
}

// The directory of other keys is no object: it is not deleted, nor missing
// afterwards.
func TestDirectoryIsNoObject(t *testing.T) {
	s := open(t, t.TempDir())
	storetest.Put(t, s, "l/0001", []byte("x"))
	if err := s.Delete(t.Context(), []string{"l", "l/0001", "l"}); err != nil {
		t.Error(err)
	}
	storetest.Put(t, s, "l/0002", []byte("x"))
}

// What a crashed writer left is removed after a day, not what another one is writing,
// and is never listed.
func TestAbandonedFiles(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	storetest.Put(t, s, "a", []byte("x"))
	tmp := filepath.Join(dir, ".tmp")
	for name, age := range map[string]time.Duration{"OLD": 25 * time.Hour, "NEW": time.Hour} {
		if err := os.WriteFile(filepath.Join(tmp, name), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-age)
		if err := os.Chtimes(filepath.Join(tmp, name), then, then); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir)
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) != 1 || left[0].Name() != "NEW" {
		t.Errorf("left: %v, %v, want NEW alone", left, err)
	}
	if keys := storetest.Keys(t, s, "", ""); !slices.Equal(keys, []string{"a"}) {
		t.Errorf("List = %q", keys)
	}
}

// A Put that ended, well or not, leaves no temporary file; what it stored is for its
// owner alone. If the directories are removed under a store, the next try makes them.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	storetest.Put(t, s, "l/a", []byte("x"))
	for _, b := range []io.ReaderAt{strings.NewReader("x"), strings.NewReader("")} {
		if err := s.Put(t.Context(), "l/a", b, 1, store.PutOptions{Create: true}); err == nil {
			t.Error("a second create succeeds")
		}
		if err := s.Put(t.Context(), "l/b", b, 5, store.PutOptions{Create: true}); err == nil {
			t.Error("a short body is stored")
		}
	}
	if left, err := os.ReadDir(filepath.Join(dir, ".tmp")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
	for name, want := range map[string]fs.FileMode{"l/a": 0o600, "l": 0o700, ".tmp": 0o700} {
		if fi, err := os.Stat(filepath.Join(dir, name)); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v, %v, want mode %o", name, fi, err, want)
		}
	}
	for _, gone := range []string{"l", ".tmp"} {
		if err := os.RemoveAll(filepath.Join(dir, gone)); err != nil {
			t.Fatal(err)
		}
		retry := store.Retry(s, store.RetryOptions{Base: time.Millisecond, Attempts: 3})
		storetest.Put(t, retry, "l/"+strings.Trim(gone, "."), []byte("x"))
	}
}
