package verify

import (
	"math/rand/v2"
	"testing"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
)

// Nothing is wrong with a lineage that ends within segments of its parent, and goes on: what the
// parent has beyond is not compared with it.
func TestForks(t *testing.T) {
	for seed := range uint64(12) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		list := history(rnd, 30)
		mem := memstore.New(memstore.Options{})
		repo := backuptest.New(t, mem, seed%2 == 0)
		repo.Tail(list[:5]...)
		repo.ForkWithin(rnd, list[5:10])
		repo.Listed(list[10:15], list[15:20])
		repo.Manifest(seed%3 == 0, false)
		repo.ForkWithin(rnd, list[20:25])
		repo.Tail(list[25:]...)
		found, err := look(t, mem, repo, t.TempDir())
		if err != nil || len(found) > 0 {
			t.Fatalf("seed %d: %v, %v", seed, found, err)
		}
		sum, err := Against(t.Context(), AgainstOptions{
			Repo: repo.Repository, Keys: repo.Keys, State: repo.Now(), Source: backuptest.History(list), UpTo: tid.Max, Fetch: backup.FetchOptions{Scratch: t.TempDir()},
			Report: func(f Finding) { t.Errorf("seed %d: %v", seed, f) },
		})
		if err != nil || sum.Txns != int64(len(list)) {
			t.Fatalf("seed %d: %+v, %v", seed, sum, err)
		}
	}
}
