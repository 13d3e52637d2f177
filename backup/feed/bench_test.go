package feed_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// BenchmarkClusterRead is the first backup of a cluster: how long the storages and the
// network are busy with it.
func BenchmarkClusterRead(b *testing.B) {
	c := newCluster(b, simple.Config{Partitions: 12, Storages: 3})
	a := c.c.NewAppender(b.Context(), client.AppenderOptions{})
	rnd := rand.New(rand.NewPCG(1, 0))
	for i := range 3000 {
		var records []txn.Record
		for j := range 4 {
			var data bytes.Buffer // compressible as texts are
			for data.Len() < 1500 {
				fmt.Fprintf(&data, "word%d ", int(rnd.ExpFloat64()*1000))
			}
			records = append(records, txn.Record{OID: tid.OID(4*i + j), Data: data.Bytes()})
		}
		if err := a.Append(&txn.Transaction{TID: tid.TID(1+i) << 32, Records: txn.Slice(records)}); err != nil {
			b.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		b.Fatal(err)
	}
	f := c.open(b)
	defer f.Close()
	benchmarkRead(b, f)
}

func benchmarkRead(b *testing.B, f feed.Feed) {
	last, _, err := f.Last(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		n := 0
		for t, err := range f.Read(b.Context(), 0, last) {
			if err != nil {
				b.Fatal(err)
			}
			for r, err := range t.Records {
				if err != nil {
					b.Fatal(err)
				}
				n += len(r.Data)
			}
		}
		b.SetBytes(int64(n))
	}
}
