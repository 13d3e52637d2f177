package importer

import (
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/importer/config"
)

func TestReadingWhileRunning(t *testing.T) {
	eachSeed(t, *seeds/4, func(t *testing.T, seed uint64) {
		w := newWorld(t, seed, memoryNative(t))
		w.commit(w.rand.IntN(6))
		if _, _, err := w.b.prepare(config.NoCompression, func() error { w.source.closed.Store(true); return nil }); err != nil {
			t.Fatal(err)
		}
		end := make(chan error)
		go func() { end <- w.b.Run(t.Context()) }()
		for range 2 {
			moments := w.moments(2)
			for oid := range tid.OID(w.objects + 5) {
				w.checkObject(oid, moments)
			}
			w.checkLists(moments)
		}
		if err := <-end; err != nil || !w.b.own.Load() {
			t.Fatalf("seed %d: %v %+v", seed, err, w.b.Progress())
		}
		moments := w.moments(2)
		for oid := range tid.OID(w.objects + 5) {
			w.checkObject(oid, moments)
		}
		w.checkTables(moments, true)
	})
}
