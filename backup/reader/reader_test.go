package reader_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

var rounds = flag.Int("rounds", 1, "how many times as much the random tests do")

// all returns the transactions of a history, to be used at any time.
func all(t testing.TB, h txn.History) (list []*txn.Transaction) {
	t.Helper()
	for tr, err := range h.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		c := *tr
		var records []txn.Record
		if tr.Records != nil {
			for r, err := range tr.Records {
				if err != nil {
					t.Fatal(err)
				}
				rec := *r
				if r.Data != nil {
					rec.Data = append([]byte{}, r.Data...)
				}
				records = append(records, rec)
			}
		}
		c.Records = txn.Slice(records)
		list = append(list, &c)
	}
	return list
}

// fill writes transactions into a repository, in a random form: tails, segments that tails list,
// transactions that are cut, merged segments, catalog pages.
// segments is how many there are since the last manifest.
func fill(r *backuptest.Repo, rnd *rand.Rand, list []*txn.Transaction, segments *int) {
	for len(list) > 0 {
		n := min(1+rnd.IntN(12), len(list))
		switch rnd.IntN(4) {
		case 0:
			var lists [][]*txn.Transaction
			for c := range slices.Chunk(list[:n], 1+rnd.IntN(n)) {
				lists = append(lists, c)
			}
			*segments += len(r.Listed(lists...))
		case 1:
			var records []txn.Record
			for rec := range list[0].Records {
				records = append(records, *rec)
			}
			if k := len(records); k > 1 {
				n = 1
				i := rnd.IntN(k - 1)
				j := i + 1 + rnd.IntN(k-i-1)
				*segments += len(r.Cut(list[0], records[:i], records[i:j], records[j:]))
				break
			}
			fallthrough
		default:
			r.Tail(list[:n]...)
			*segments++
		}
		list = list[n:]
		switch k := rnd.IntN(6); {
		case k == 0:
			r.Heartbeat()
		case k < 3 && *segments > 1: // merged, one segment alone would be the same
			r.Manifest(true, k == 2)
			*segments = 0
		}
	}
}

func open(t testing.TB, r *backuptest.Repo, o reader.Options) *reader.Database {
	t.Helper()
	d, err := reader.Open(t.Context(), r.Repository, r.Keys, r.Now(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

func TestDatabase(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		for _, mode := range []string{"memory", "nothing fits", "directory", "filled"} {
			if encrypted != (mode == "memory" || mode == "filled") && *rounds == 1 {
				continue
			}
			t.Run(fmt.Sprintf("encrypted=%v,%s", encrypted, mode), func(t *testing.T) {
				txntest.Run(t, func(t *testing.T, h txn.History) txn.Database {
					r := backuptest.New(t, memstore.New(memstore.Options{}), encrypted)
					list := all(t, h)
					fill(r, rand.New(rand.NewPCG(uint64(len(list)), 7)), list, new(int))
					o := reader.Options{}
					switch mode {
					case "nothing fits":
						o.CacheSize = 1
					case "directory", "filled":
						o.CacheDir = t.TempDir()
					}
					d := open(t, r, o)
					if mode == "filled" {
						if err := d.Filled(t.Context()); err != nil {
							t.Fatal(err)
						}
					}
					return d
				})
			})
		}
	}
}

// kind is what an error of a load says.
func kind(err error) string {
	switch {
	case err == nil:
		return "found"
	case errors.Is(err, txn.ErrNotFound):
		return "not found"
	case errors.Is(err, txn.ErrNoSuchObject):
		return "no such object"
	}
	return err.Error()
}

// until returns the beginning of a history.
func until(t testing.TB, list []*txn.Transaction, at tid.TID) *txntest.Memory {
	t.Helper()
	m := &txntest.Memory{}
	for _, tr := range list {
		if tr.TID <= at {
			if err := m.Append(tr); err != nil {
				t.Fatal(err)
			}
		}
	}
	return m
}

// sameLoads compares what is found of some objects.
func sameLoads(t testing.TB, got, want txn.Database, rnd *rand.Rand, list []*txn.Transaction, n int) {
	t.Helper()
	for range n {
		oid := tid.OID(rnd.IntN(45))
		before := tid.Max
		if rnd.IntN(3) > 0 {
			before = list[rnd.IntN(len(list))].TID + tid.TID(rnd.IntN(2))
		}
		w, wErr := want.LoadBefore(context.Background(), oid, before)
		g, err := got.LoadBefore(context.Background(), oid, before)
		if kind(err) != kind(wErr) || !bytes.Equal(g.Data, w.Data) || err == nil && (g.Serial != w.Serial || g.Next != w.Next) {
			t.Fatalf("LoadBefore(%v, %v) = %d bytes at %v until %v, %v, want %d bytes at %v until %v, %v",
				oid, before, len(g.Data), g.Serial, g.Next, err, len(w.Data), w.Serial, w.Next, wErr)
		}
	}
}

func TestAtEveryTransaction(t *testing.T) {
	for seed := range uint64(1 + *rounds) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		list := all(t, txntest.Random(seed, 60, 40))
		r := backuptest.New(t, memstore.New(memstore.Options{}), seed%2 == 0)
		fill(r, rnd, list, new(int))
		dir := t.TempDir()
		for _, tr := range list {
			o := reader.Options{At: tr.TID}
			if seed == 0 {
				o.CacheDir = dir
			}
			d := open(t, r, o)
			want := until(t, list, tr.TID)
			sameLoads(t, d, want, rnd, list, 60)
			sameOIDs(t, d, want, tid.OID(rnd.IntN(50)))
			if tr == list[len(list)-1] {
				sameLinks(t, d, list, true)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// sameLinks compares what is told of records without their data.
func sameLinks(t testing.TB, d *reader.Database, list []*txn.Transaction, filled bool) {
	t.Helper()
	last := map[tid.OID]tid.TID{}
	for _, tr := range list {
		for r := range tr.Records {
			last[r.OID] = tr.TID
			if from, err := d.DataTID(t.Context(), r.OID, tr.TID); from != r.DataTID || err != nil {
				t.Fatalf("DataTID(%v, %v) = %v, %v, want %v", r.OID, tr.TID, from, err, r.DataTID)
			}
		}
	}
	for oid := range tid.OID(50) {
		got, known := d.LastRevision(oid)
		if known && got != last[oid] || filled && !known {
			t.Fatalf("LastRevision(%v) = %v, %v, want %v", oid, got, known, last[oid])
		}
	}
}

func sameOIDs(t testing.TB, got, want txn.Database, from tid.OID) {
	t.Helper()
	collect := func(d txn.Database) (oids []tid.OID) {
		for oid, err := range d.OIDs(t.Context(), tid.Max, from) {
			if err != nil {
				t.Fatal(err)
			}
			oids = append(oids, oid)
		}
		return oids
	}
	if g, w := collect(got), collect(want); !slices.Equal(g, w) {
		t.Fatalf("OIDs from %v: %v, want %v", from, g, w)
	}
}
