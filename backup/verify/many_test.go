package verify

import (
	"context"
	"iter"
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
)

// crowded is a store with many superseded tails.
type crowded struct {
	store.Wrapped
	lineage snapshot.ID
	n       int64
	listed  func()
}

func (c *crowded) List(ctx context.Context, prefix, after string) iter.Seq2[store.Info, error] {
	all := c.Wrapped.Store.List(ctx, prefix, after)
	if prefix != "" {
		return all // what is needed is the same
	}
	return func(yield func(store.Info, error) bool) {
		tails := func() bool {
			for n := range c.n {
				key := snapshot.TailKey(c.lineage, n+1)
				if !yield(store.Info{Key: key, Size: 4000, Modified: time.Unix(n, 0), ETag: key[len(key)-10:]}, nil) {
					return false
				}
			}
			c.listed()
			return true
		}
		first := snapshot.TailKey(c.lineage, c.n)
		done := false
		for info, err := range all {
			if !done && info.Key > first {
				if done = true; !tails() {
					return
				}
			}
			if !yield(info, err) {
				return
			}
		}
	}
}

// Superseded objects take no memory: a writer makes millions of them in some months.
func TestManySuperseded(t *testing.T) {
	const n = 300_000
	mem := memstore.New(memstore.Options{})
	repo := backuptest.New(t, mem, false)
	list := history(rand.New(rand.NewPCG(1, 4)), 40)
	for _, tr := range list[:30] {
		repo.Tail(tr)
	}
	repo.Manifest(false, false)
	for _, tr := range list[30:] {
		repo.Tail(tr)
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	s := &crowded{Wrapped: store.Wrapped{Store: mem}}
	for i := range s.lineage {
		s.lineage[i] = 0xff
	}
	look := func(n int64) (sum *Summary, used int64) {
		t.Helper()
		before := heap()
		s.n, s.listed = n, func() { used = heap() - before }
		var found []Finding
		sum, err := Check(t.Context(), backup.Config{Store: s, Trusted: repo.Trusted}, CheckOptions{Report: func(f Finding) { found = append(found, f) }})
		if err != nil || len(found) > 0 {
			t.Fatal(found, err)
		}
		return sum, used
	}
	few, little := look(1)
	many, much := look(n)
	if l := many.Lineages[0]; l.Tail != 40 || l.Head != list[39].TID {
		t.Errorf("%+v", many)
	}
	if many.Spare != few.Spare+n-1 || many.SpareSize != few.SpareSize+4000*(n-1) || many.Objects != few.Objects+n-1 {
		t.Errorf("with one: %+v, with %d: %+v", few, n, many)
	}
	if much-little > 8*n {
		t.Errorf("%d superseded tails take %d bytes", n, much-little)
	}
}
