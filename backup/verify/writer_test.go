package verify

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
)

var histories = flag.Int("verify.histories", 6, "random histories to back up and verify")

// Nothing is found in what the writer of backups stores, whatever a cluster does meanwhile, and
// nothing differs from the source but what packs have removed.
func TestWritten(t *testing.T) {
	for seed := range *histories {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(seed), 9))
			m := feedtest.New("source")
			mem := memstore.New(memstore.Options{})
			repo := backuptest.New(t, mem, r.IntN(2) == 0)
			dir, stateDir := t.TempDir(), t.TempDir()
			take := func() {
				w, err := writer.Open(t.Context(), writer.Options{Repo: repo.Repository, Signer: repo.Signer, Feed: m, StateDir: dir})
				if err == nil {
					err = errors.Join(w.Snapshot(t.Context(), 0, ""), w.Close())
				}
				if err != nil {
					t.Fatal(err)
				}
				if found, err := look(t, mem, repo, stateDir); err != nil || len(found) > 0 {
					t.Fatal(found, err)
				}
				var found []Finding
				sum, err := Against(t.Context(), AgainstOptions{Repo: repo.Repository, Keys: repo.Keys, State: repo.Now(), Source: FromFeed(m), Packed: m.Packed, Report: func(f Finding) { found = append(found, f) }})
				if err != nil || len(found) > 0 {
					t.Fatalf("%+v %v %v", sum, found, err)
				}
			}
			var tids []tid.TID
			for range 60 {
				oid := tid.OID(r.IntN(12))
				switch k := r.IntN(10); {
				case k < 6:
					tids = append(tids, m.Put(oid, fmt.Sprint(r.Uint64())))
				case k < 7:
					tids = append(tids, m.Delete(oid))
				case k < 8 && len(tids) > 0:
					m.Put(oid, "before an undo")
					tids = append(tids, m.Undo(tids[len(tids)-1]))
				case k < 9 && len(tids) > 0:
					m.Pack(tids[r.IntN(len(tids))])
				default:
					take()
				}
			}
			take()
		})
	}
}
