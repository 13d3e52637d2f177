package proctest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store/filestore"
	"github.com/neozodb/neo/cluster/clustertest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

// backupOf makes an encrypted backup repository of a Data.fs, and returns the section of
// importer.conf for it.
func backupOf(t *testing.T, path string, rnd *rand.Rand) (section, dir string) {
	t.Helper()
	f, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	dir = t.TempDir()
	s, err := filestore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := backuptest.New(t, s, true)
	var list []*txn.Transaction
	for tr, err := range f.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		c := *tr
		c.User, c.Description, c.Extension = bytes.Clone(tr.User), bytes.Clone(tr.Description), bytes.Clone(tr.Extension)
		var records []txn.Record
		for rec, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			k := *rec
			if rec.Data != nil {
				k.Data = append([]byte{}, rec.Data...)
			}
			records = append(records, k)
		}
		c.Records = txn.Slice(records)
		list = append(list, &c)
	}
	for len(list) > 0 {
		n := min(1+rnd.IntN(1+len(list)/3), len(list))
		if rnd.IntN(2) == 0 {
			r.Tail(list[:n]...)
		} else {
			r.Listed(list[:n])
		}
		list = list[n:]
	}
	identity := filepath.Join(t.TempDir(), "operator.txt")
	if err := os.WriteFile(identity, []byte(r.Identity.(snapshot.Identity).String()+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	section = fmt.Sprintf("<neobackup>\n    url file://%s\n    verify-keys %s\n    identity-file %s\n    state-dir %s\n  </neobackup>", dir, r.Marker.Sign[len(r.Marker.Sign)-1], identity, t.TempDir())
	return section, dir
}

// objects returns the names and sizes of all files of a directory.
func objects(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil && fi.Mode().IsRegular() {
			list = append(list, fmt.Sprint(path, " ", fi.Size(), " ", fi.ModTime().UnixNano()))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

// A cluster serves a backup repository at once, and clients commit while it is restored in
// the background. It is killed at random moments: nothing that was acknowledged may be lost, and each
// object is at each moment what it was. The repository is not written to.
func TestImportOfBackupKilled(t *testing.T) {
	seed := *importSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-import-seed=%d", seed)
	file := toImport(t, "5MB", seed)
	for round := range (*importRounds + 1) / 2 {
		t.Run(fmt.Sprintf("round=%d", round), func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, uint64(round)))
			section, dir := backupOf(t, file.path, r)
			before := objects(t, dir)
			c := startImportOf(t, section, false)
			c.killed(t, file, round, r, false, func([]clustertest.Stored) {
				if now := objects(t, dir); fmt.Sprint(now) != fmt.Sprint(before) {
					t.Errorf("the repository was changed: %q, it was %q", now, before)
				}
			})
		})
	}
}
