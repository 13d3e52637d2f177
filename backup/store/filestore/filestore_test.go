package filestore_test

import (
	"strings"
	"testing"

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
