package restore

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/store/memstore"
)

// A lineage that ends within segments of its parent, and goes on, is restored as any other.
func TestForks(t *testing.T) {
	for seed := range uint64(8) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		s := newSample(t, rnd, 40, false)
		plain := backuptest.New(t, memstore.New(memstore.Options{}), false)
		plain.Tail(s.list...)
		repo := backuptest.New(t, memstore.New(memstore.Options{}), seed%2 == 0)
		repo.Tail(s.list[:7]...)
		repo.ForkWithin(rnd, s.list[7:12])
		repo.Listed(s.list[12:15], s.list[15:20])
		repo.ForkWithin(rnd, s.list[20:22])
		repo.Tail(s.list[22:30]...)
		repo.Manifest(false, false)
		repo.Tail(s.list[30:]...)
		want, err := os.ReadFile(s.path)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range []int{10, 12, 13, 21, 22, len(s.list)} { // at a fork, before, and after
			at := s.list[n-1].TID
			path := filepath.Join(t.TempDir(), "out.fs")
			res, err := source(repo, at).ToFile(t.Context(), path, FileOptions{})
			if err != nil || !res.Compared {
				t.Fatalf("seed %d: file at %v: %+v, %v", seed, at, res, err)
			}
			got, err := os.ReadFile(path)
			if err != nil || !bytes.HasPrefix(want, got) || n == len(s.list) && len(got) != len(want) || res.Txns != int64(n) {
				t.Errorf("seed %d: the file at %v is not the beginning of the source (%d transactions, %v)", seed, at, res.Txns, err)
			}
			dirs := []string{t.TempDir(), t.TempDir()}
			for i, r := range []*backuptest.Repo{repo, plain} {
				res, err := source(r, at).ToTables(t.Context(), TablesOptions{Cluster: "c", Partitions: 3, Nodes: 1, Dir: dirs[i]})
				if err != nil || res.Txns != int64(n) || !res.Compared {
					t.Fatalf("seed %d: tables at %v: %+v, %v", seed, at, res, err)
				}
			}
			if !maps.EqualFunc(digests(t, dirs[0], 1, 3), digests(t, dirs[1], 1, 3), slices.Equal) {
				t.Errorf("seed %d: the tables at %v differ from those of a repository without forks", seed, at)
			}
		}
	}
}
