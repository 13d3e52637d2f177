package verify

import (
	"math/rand/v2"
	"testing"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store/memstore"
)

// An older manifest that is missing is not needed: a keeper deletes all but those that proofs name, and a
// copy has not all from the first. Wherever it is, no chain is broken.
func TestMissingManifest(t *testing.T) {
	for _, seq := range []int64{64, 65, 66} { // about as many are read at once
		mem := memstore.New(memstore.Options{})
		repo := backuptest.New(t, mem, false)
		for _, tr := range history(rand.New(rand.NewPCG(1, 1)), 70) {
			repo.Tail(tr)
			repo.Manifest(false, false)
		}
		key := snapshot.ManifestKey(repo.Lineage, seq)
		if err := mem.Delete(t.Context(), []string{key}); err != nil {
			t.Fatal(err)
		}
		var found []Finding
		if _, err := Check(t.Context(), backup.Config{Store: mem, Trusted: repo.Trusted}, CheckOptions{Report: func(f Finding) { found = append(found, f) }}); err != nil {
			t.Fatal(err)
		}
		if len(found) > 0 {
			t.Errorf("without manifest %d: %+v", seq, found)
		}
	}
}
