package reader_test

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

// oids returns the objects of a transaction, sorted.
func oids(t *txn.Transaction) (list []tid.OID) {
	for r := range t.Records {
		list = append(list, r.OID)
	}
	slices.Sort(list)
	return list
}

// After each Refresh the database has exactly what the repository has, whatever became of the
// segments, and the announcements have all that changed.
func TestRefresh(t *testing.T) {
	for seed := range uint64(3 + *rounds) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		list := all(t, txntest.Random(seed+10, 80, 40))
		r := backuptest.New(t, memstore.New(memstore.Options{}), seed%2 == 0)
		o := reader.Options{}
		if seed > 1 {
			o.CacheDir = t.TempDir()
		}
		d := open(t, r, o)
		segments := 0
		for done := 0; done < len(list); {
			n := min(1+rnd.IntN(9), len(list)-done)
			fill(r, rnd, list[done:done+n], &segments)
			var got []reader.Change
			last := tid.Zero
			err := d.Refresh(t.Context(), func(changes []reader.Change, l tid.TID, complete bool) {
				got, last = changes, l
				if !complete {
					t.Error("not complete")
				}
			})
			if err != nil {
				t.Fatal(err)
			}
			if at := list[done+n-1].TID; last != at || d.At() != at || len(got) != n {
				t.Fatalf("%d changes up to %v, want %d up to %v, at %v", len(got), last, n, at, d.At())
			}
			for i, c := range got {
				slices.Sort(c.OIDs)
				if want := list[done+i]; c.TID != want.TID || !slices.Equal(c.OIDs, oids(want)) {
					t.Fatalf("change %v of %v, want %v of %v", c.TID, c.OIDs, want.TID, oids(want))
				}
			}
			done += n
			want := until(t, list, list[done-1].TID)
			sameLoads(t, d, want, rnd, list, 30)
			if rnd.IntN(4) == 0 {
				if err := d.Filled(t.Context()); err != nil {
					t.Fatal(err)
				}
				sameLoads(t, d, want, rnd, list, 30)
				sameOIDs(t, d, want, 0)
			}
		}
		if err := d.Refresh(t.Context(), func([]reader.Change, tid.TID, bool) { t.Error("announced without a change") }); err != nil {
			t.Error(err)
		}
	}
}

// No load shows a transaction before it was announced, and none that began after an announcement
// is older.
func TestLoadsAndAnnouncements(t *testing.T) {
	r := backuptest.New(t, memstore.New(memstore.Options{}), false)
	at := func(i int) tid.TID { return tid.TID(1000 + i) }
	r.Tail(backuptest.Txn(at(0), txn.Record{OID: 1, Data: []byte{0}}))
	d := open(t, r, reader.Options{})
	var announced atomic.Uint64
	announced.Store(uint64(at(0)))
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				before := tid.TID(announced.Load())
				rev, err := d.LoadBefore(t.Context(), 1, tid.Max)
				after := tid.TID(announced.Load())
				if err != nil || rev.Serial < before || rev.Serial > after {
					t.Errorf("a load shows %v, %v; announced before it: %v, after it: %v", rev.Serial, err, before, after)
					return
				}
			}
		})
	}
	for i := 1; i < 100; i++ {
		r.Tail(backuptest.Txn(at(i), txn.Record{OID: 1, Data: []byte{byte(i)}}))
		if i%50 == 0 {
			r.Manifest(true, false)
		}
		err := d.Refresh(t.Context(), func(changes []reader.Change, last tid.TID, complete bool) {
			for _, c := range changes {
				announced.Store(uint64(c.TID))
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	wg.Wait()
}
