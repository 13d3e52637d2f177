package reader_test

import (
	"math/rand/v2"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
)

// Loads of objects of one frame, which is in memory, and of frames that are not.
func BenchmarkLoad(b *testing.B) {
	for _, bb := range []struct {
		name   string
		size   int64
		spread int
	}{{"one frame", 0, 1}, {"in memory", 256 << 20, 1000}, {"from the store", 1, 1000}} {
		b.Run(bb.name, func(b *testing.B) {
			rnd := rand.New(rand.NewPCG(1, 1))
			r := backuptest.New(b, memstore.New(memstore.Options{}), true)
			oid := func(i, j int) tid.OID { return tid.OID(i*5 + j) }
			for i := range 10 {
				r.Listed(large(rnd, i*500, 500, oid))
			}
			d := open(b, r, reader.Options{CacheDir: b.TempDir(), CacheSize: bb.size})
			if err := d.Filled(b.Context()); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := d.LoadBefore(b.Context(), tid.OID(rnd.IntN(25*bb.spread)), tid.Max); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
