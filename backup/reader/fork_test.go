package reader_test

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

// A lineage that ends within segments of its parent, and goes on, is a history as any other: what
// the parent has beyond is not in it.
func TestForks(t *testing.T) {
	for seed := range uint64(12 * *rounds) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		list := all(t, txntest.Random(seed, 60, 40))
		r := backuptest.New(t, memstore.New(memstore.Options{}), seed%2 == 0)
		rest := list
		for range 1 + rnd.IntN(3) { // a fork of a fork as well
			n := 1 + rnd.IntN(len(rest)/2)
			k := rnd.IntN(n)
			if k > 0 {
				fill(r, rnd, rest[:k], new(int))
			}
			r.ForkWithin(rnd, rest[k:n])
			rest = rest[n:]
		}
		fill(r, rnd, rest, new(int))
		o := reader.Options{}
		if seed%3 == 0 {
			o.CacheDir = t.TempDir()
		}
		d := open(t, r, o)
		if seed%3 < 2 {
			if err := d.Filled(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		want := until(t, list, tid.Max)
		sameLoads(t, d, want, rnd, list, 400)
		sameOIDs(t, d, want, 0)
		sameLinks(t, d, list, false)
		same(t, all(t, d), list)
		s := r.Now()
		same(t, whole{r, s, d}.transactions(t), list)
		// The last transaction up to any moment.
		for i, tr := range list {
			upTo := tid.Max
			if i+1 < len(list) {
				upTo = list[i+1].TID - 1
			}
			got, err := r.LastTransaction(t.Context(), r.Keys, s, upTo)
			if err != nil || got == nil || got.TID != tr.TID || !bytes.Equal(got.Description, tr.Description) {
				t.Fatalf("seed %d: the last transaction up to %v is %v, %v, want %v", seed, upTo, got, err, tr.TID)
			}
		}
	}
}

// whole reads whole segments.
type whole struct {
	r *backuptest.Repo
	s *backup.State
	d *reader.Database
}

func (w whole) transactions(t *testing.T) []*txn.Transaction {
	m := &txntest.Memory{}
	resolve := func(oid tid.OID, at tid.TID) ([]byte, error) {
		rev, err := w.d.LoadAt(t.Context(), oid, at)
		if kind(err) == "no such object" {
			return nil, nil
		}
		return rev.Data, err
	}
	for tr, err := range w.r.Transactions(t.Context(), w.r.Keys, w.s, 0, tid.Max, backup.FetchOptions{Scratch: t.TempDir()}, resolve) {
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Append(tr); err != nil {
			t.Fatal(err)
		}
	}
	return all(t, m)
}

func same(t *testing.T, got, want []*txn.Transaction) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d transactions, want %d", len(got), len(want))
	}
	for i := range got {
		if got[i].TID != want[i].TID || !bytes.Equal(got[i].Description, want[i].Description) {
			t.Fatalf("transaction %v, want %v", got[i].TID, want[i].TID)
		}
		var g, w []txn.Record
		for r := range got[i].Records {
			g = append(g, *r)
		}
		for r := range want[i].Records {
			w = append(w, *r)
		}
		if len(g) != len(w) {
			t.Fatalf("transaction %v has %d records, want %d", got[i].TID, len(g), len(w))
		}
		for j := range g {
			if g[j].OID != w[j].OID || g[j].DataTID != w[j].DataTID || !bytes.Equal(g[j].Data, w[j].Data) {
				t.Fatalf("object %v in transaction %v: %+v, want %+v", w[j].OID, got[i].TID, g[j], w[j])
			}
		}
	}
}
