package sqldbtest

import (
	"crypto/sha1"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

const (
	benchPartitions = 12
	benchSize       = 2000
	benchObjects    = 10 // per transaction
)

// records are values that do not compress, made once.
func records() []proto.ObjectData {
	r := rand.NewChaCha8([32]byte{})
	ds := make([]proto.ObjectData, 1024)
	for i := range ds {
		data := make([]byte, benchSize)
		r.Read(data)
		binary.BigEndian.PutUint32(data, uint32(i))
		ds[i] = proto.ObjectData{Checksum: sha1.Sum(data), Data: data}
	}
	return ds
}

// loader stores objects, one transaction after the other.
type loader struct {
	db   *sqldb.DB
	recs []proto.ObjectData
	oid  tid.OID
	ttid tid.TID
}

func newLoader(b *testing.B, db *sqldb.DB) *loader {
	var cells []proto.CellChange
	for p := range benchPartitions {
		cells = append(cells, proto.CellChange{Partition: p, ID: 1, State: proto.UpToDate})
	}
	check(b, db.SetID(1))
	check(b, db.ChangePartitionTable(1, 0, cells, true, 0))
	return &loader{db: db, recs: records()}
}

func (l *loader) vote(b *testing.B, n int) tid.TID {
	l.ttid += benchPartitions
	stores := make([]backend.Store, n)
	oids := make([]tid.OID, n)
	for i := range stores {
		l.oid++
		id, err := l.db.HoldData(l.oid, l.recs[int(l.oid)%len(l.recs)], proto.Opt[tid.TID]{})
		if err != nil {
			b.Fatal(err)
		}
		stores[i] = backend.Store{OID: l.oid, Data: id}
		oids[i] = l.oid
	}
	meta := &backend.Meta{User: []byte("u"), Description: []byte("/some/path"), TTID: l.ttid, OIDs: oids}
	if err := l.db.Vote(l.ttid, stores, meta, nil); err != nil {
		b.Fatal(err)
	}
	return l.ttid
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}

// importObjects stores b.N objects, 64 transactions in flight.
func importObjects(b *testing.B, l *loader, n int) {
	const window = 64
	for left := n; left > 0; {
		var ttids []tid.TID
		for len(ttids) < window && left > 0 {
			k := min(left, benchObjects)
			ttids = append(ttids, l.vote(b, k))
			left -= k
		}
		check(b, l.db.Commit())
		for _, t := range ttids {
			check(b, l.db.Lock(t, t, false))
		}
		check(b, l.db.Commit())
		for _, t := range ttids {
			check(b, l.db.Unlock(t, t, true, true, false))
		}
	}
	check(b, l.db.Commit())
}

// BenchImport: a migration into a cluster is as fast as its storages: objects of 2 kB, ten in
// a transaction, 64 transactions in flight, every vote and lock durable.
func BenchImport(b *testing.B, db *sqldb.DB) {
	l := newLoader(b, db)
	b.SetBytes(benchSize)
	b.ReportAllocs()
	b.ResetTimer()
	importObjects(b, l, b.N)
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "objects/s")
}

// BenchGetObject: every load that misses the caches of clients.
func BenchGetObject(b *testing.B, db *sqldb.DB) {
	const n = 50000
	l := newLoader(b, db)
	importObjects(b, l, n)
	for _, name := range []string{"Serial", "Parallel"} {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(benchSize)
			b.ReportAllocs()
			load := func(r *rand.Rand) {
				o, err := l.db.GetObject(b.Context(), tid.OID(r.IntN(n)+1), proto.Opt[tid.TID]{}, proto.Some(l.ttid+1))
				if err != nil || len(o.Data) != benchSize {
					b.Error(o, err)
				}
			}
			if name == "Serial" {
				r := rand.New(rand.NewPCG(1, 2))
				for b.Loop() {
					load(r)
				}
			} else {
				b.SetParallelism(1)
				b.RunParallel(func(pb *testing.PB) {
					r := rand.New(rand.NewPCG(rand.Uint64(), 2))
					for pb.Next() {
						load(r)
					}
				})
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "loads/s")
		})
	}
}

// BenchCommit: the latency of a lone writer: vote and lock are each waited for.
func BenchCommit(b *testing.B, db *sqldb.DB) {
	l := newLoader(b, db)
	b.ReportAllocs()
	b.ResetTimer()
	for b.Loop() {
		t := l.vote(b, benchObjects)
		check(b, l.db.CommitVotes())
		check(b, l.db.Lock(t, t, false))
		check(b, l.db.CommitVotes())
		check(b, l.db.Unlock(t, t, true, true, false))
	}
}
