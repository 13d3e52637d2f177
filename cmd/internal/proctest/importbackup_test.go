package proctest

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store/filestore"
	"github.com/neozodb/neo/cluster/clustertest"
)

// backupOf makes an encrypted backup repository of a Data.fs, and returns the section of
// importer.conf for it.
func backupOf(t *testing.T, path string, rnd *rand.Rand) (section, dir string) {
	t.Helper()
	dir = t.TempDir()
	s, err := filestore.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := backuptest.New(t, s, true)
	list := backuptest.ReadFile(t, path)
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
