// Package txntest has the suite of what every [txn.Database] promises, and a
// database in memory to compare with.
package txntest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Open makes a database with exactly the given history.
type Open func(t *testing.T, history txn.History) txn.Database

// Run checks all promises of [txn.Database] on histories that each database made by
// open has to take.
func Run(t *testing.T, open Open) {
	for _, tt := range []struct {
		name string
		make func() *Memory
	}{
		{"Empty", func() *Memory { return &Memory{} }},
		{"Small", Small},
		{"Random", func() *Memory { return Random(1, 300, 40) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			want := tt.make()
			got := open(t, want)
			t.Run("History", func(t *testing.T) { testHistory(t, got, want) })
			t.Run("Load", func(t *testing.T) { testLoad(t, got, want) })
			t.Run("Revisions", func(t *testing.T) { testRevisions(t, got, want) })
			t.Run("Backwards", func(t *testing.T) { testBackwards(t, got, want) })
			t.Run("OIDs", func(t *testing.T) { testOIDs(t, got, want) })
			t.Run("Cancelled", func(t *testing.T) { testCancelled(t, got, want) })
		})
	}
}

// Small is a history that has one of each kind: creation, change, deletion, an undo,
// an undo of a deletion, an undone creation, and a transaction without records.
func Small() *Memory {
	m := &Memory{}
	for i, records := range [][]txn.Record{
		{{OID: 0, Data: []byte("root")}},
		{{OID: 1, Data: []byte("one")}, {OID: 2, Data: []byte("two")}},
		{{OID: 1, Data: []byte("one, changed")}},
		{},
		{{OID: 1, Data: []byte("one"), DataTID: at(1)}}, // undo
		{{OID: 2}},                                      // deleted
		{{OID: 2, Data: []byte("two"), DataTID: at(1)}}, // undo of that
		{{OID: 3, Data: []byte("three")}, {OID: 4, Data: bytes.Repeat([]byte("a long one "), 3000)}}, // compressible
		{{OID: 3}}, // creation undone
		{{OID: 0, Data: []byte("root again")}},
	} {
		m.add(at(i), fmt.Sprintf("user %d", i), fmt.Sprintf("description %d", i), records)
	}
	return m
}

// Random is a history of n transactions on about so many objects.
func Random(seed uint64, n, objects int) *Memory {
	rnd := rand.New(rand.NewPCG(seed, 0))
	m := &Memory{}
	type revision struct {
		serial tid.TID
		data   []byte
	}
	of := map[tid.OID][]revision{}
	for i := range n {
		var records []txn.Record
		for range rnd.IntN(6) {
			oid := tid.OID(rnd.IntN(objects))
			if slices.ContainsFunc(records, func(r txn.Record) bool { return r.OID == oid }) {
				continue
			}
			r := txn.Record{OID: oid}
			before := of[oid]
			switch k := rnd.IntN(10); {
			case k == 0 && len(before) > 0:
				// deleted
			case k < 3 && len(before) > 1 && before[len(before)-2].data != nil:
				b := before[len(before)-2]
				r.Data, r.DataTID = b.data, b.serial
			default:
				r.Data = make([]byte, 1+rnd.IntN(2000))
				for j := range r.Data {
					r.Data[j] = byte(rnd.IntN(4))
				}
			}
			records = append(records, r)
			of[oid] = append(before, revision{at(i), r.Data})
		}
		m.add(at(i), "", fmt.Sprint(i), records)
	}
	return m
}

// at returns the id of transaction i of the histories: seconds of the year 2020.
func at(i int) tid.TID { return 0x03d2_1d9c_0000_0000 + tid.TID(i)<<26 }

func (m *Memory) add(t tid.TID, user, description string, records []txn.Record) {
	for i := range records {
		records[i].TID = t
	}
	err := m.Append(&txn.Transaction{
		TID: t, Status: txn.Committed, User: []byte(user), Description: []byte(description),
		Records: txn.Slice(records),
	})
	if err != nil {
		panic(err) // ours: the ids grow
	}
}

// last returns the last transaction of the model.
func last(t *testing.T, want *Memory) tid.TID {
	t.Helper()
	l, err := want.LastTID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func testHistory(t *testing.T, got txn.Database, want *Memory) {
	ctx := t.Context()
	l := last(t, want)
	if g, err := got.LastTID(ctx); g != l || err != nil {
		t.Fatalf("LastTID = %v, %v, want %v", g, err, l)
	}
	n := len(want.transactions)
	for _, r := range [][2]tid.TID{{0, l}, {0, tid.Max}, {l, tid.Max}, {at(n / 3), at(n / 2)}, {at(n/3) - 1, at(n / 3)}, {at(n/3) + 1, at(n/3) + 2}} {
		var w []*txn.Transaction
		for tr := range want.Transactions(ctx, r[0], r[1]) {
			w = append(w, tr)
		}
		i := 0
		for tr, err := range got.Transactions(ctx, r[0], r[1]) {
			if err != nil {
				t.Fatalf("Transactions(%v, %v): %v", r[0], r[1], err)
			}
			if i >= len(w) {
				t.Fatalf("Transactions(%v, %v): %v is one too many", r[0], r[1], tr.TID)
			}
			sameTransaction(t, tr, w[i])
			i++
		}
		if i != len(w) {
			t.Errorf("Transactions(%v, %v): %d transactions, want %d", r[0], r[1], i, len(w))
		}
	}
	for range got.Transactions(ctx, 0, l) {
		break // must be possible
	}
}

func sameTransaction(t *testing.T, got, want *txn.Transaction) {
	t.Helper()
	if got.TID != want.TID || got.Status != want.Status || !bytes.Equal(got.User, want.User) ||
		!bytes.Equal(got.Description, want.Description) || !bytes.Equal(got.Extension, want.Extension) {
		t.Errorf("transaction %v %q %q %q %q, want %v %q %q %q %q", got.TID, got.Status, got.User, got.Description, got.Extension,
			want.TID, want.Status, want.User, want.Description, want.Extension)
	}
	var w []txn.Record
	for r := range want.Records {
		w = append(w, *r)
	}
	i := 0
	if got.Records != nil {
		for r, err := range got.Records {
			if err != nil {
				t.Fatalf("transaction %v: %v", got.TID, err)
			}
			if i >= len(w) {
				t.Fatalf("transaction %v: the record of %v is one too many", got.TID, r.OID)
			}
			if r.OID != w[i].OID || r.TID != want.TID || r.DataTID != w[i].DataTID ||
				!bytes.Equal(r.Data, w[i].Data) || (r.Data == nil) != (w[i].Data == nil) {
				t.Errorf("transaction %v: record %+v, want %+v", got.TID, *r, w[i])
			}
			i++
		}
	}
	if i != len(w) {
		t.Errorf("transaction %v has %d records, want %d", got.TID, i, len(w))
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

func testLoad(t *testing.T, got txn.Database, want *Memory) {
	ctx := t.Context()
	moments := []tid.TID{1, at(0), tid.Max}
	for i := range want.transactions {
		tr := &want.transactions[i]
		if i%max(1, len(want.transactions)/20) == 0 {
			moments = append(moments, tr.TID, tr.TID+1)
		}
		for _, r := range tr.records {
			w, wErr := want.LoadAt(ctx, r.OID, tr.TID)
			g, err := got.LoadAt(ctx, r.OID, tr.TID)
			if (err == nil) != (wErr == nil) || err != nil && kind(err) != "not found" && kind(err) != "no such object" ||
				!bytes.Equal(g.Data, w.Data) || err == nil && g.Serial != tr.TID {
				t.Errorf("LoadAt(%v, %v) = %q at %v, %v, want %q, %v", r.OID, tr.TID, g.Data, g.Serial, err, w.Data, wErr)
			}
		}
	}
	for oid := tid.OID(0); oid < 50; oid++ {
		for _, before := range moments {
			w, wErr := want.LoadBefore(ctx, oid, before)
			g, err := got.LoadBefore(ctx, oid, before)
			if kind(err) != kind(wErr) || !bytes.Equal(g.Data, w.Data) || err == nil && (g.Serial != w.Serial || g.Next != w.Next) {
				t.Errorf("LoadBefore(%v, %v) = %d bytes at %v until %v, %v, want %d bytes at %v until %v, %v",
					oid, before, len(g.Data), g.Serial, g.Next, err, len(w.Data), w.Serial, w.Next, wErr)
			}
		}
		if g, err := got.LoadAt(ctx, oid, at(0)+7); kind(err) != "not found" && kind(err) != "no such object" {
			t.Errorf("LoadAt(%v) of a transaction that does not exist = %q, %v", oid, g.Data, err)
		}
	}
}

func testRevisions(t *testing.T, got txn.Database, want *Memory) {
	for oid := tid.OID(0); oid < 50; oid++ {
		for _, n := range []int{1, 3, 1000} {
			w, wErr := want.Revisions(t.Context(), oid, n)
			g, err := got.Revisions(t.Context(), oid, n)
			if kind(err) != kind(wErr) || len(g) != len(w) {
				t.Errorf("Revisions(%v, %d): %d, %v, want %d, %v", oid, n, len(g), err, len(w), wErr)
				continue
			}
			for i := range g {
				sameInfo(t, &g[i], &w[i])
				r, err := want.LoadAt(t.Context(), oid, w[i].TID)
				deleted := err != nil
				if deleted && g[i].Size != 0 || !deleted && g[i].Size == 0 && !want.shares(oid, r.Serial) {
					t.Errorf("Revisions(%v, %d): transaction %v has size %d, want %d", oid, n, g[i].TID, g[i].Size, w[i].Size)
				}
			}
		}
	}
}

func sameInfo(t *testing.T, got, want *txn.Info) {
	t.Helper()
	if got.TID != want.TID || got.Status != want.Status || !bytes.Equal(got.User, want.User) ||
		!bytes.Equal(got.Description, want.Description) || !bytes.Equal(got.Extension, want.Extension) {
		t.Errorf("transaction %v %q %q %q, want %v %q %q %q", got.TID, got.Status, got.User, got.Description,
			want.TID, want.Status, want.User, want.Description)
	}
	for _, oid := range got.OIDs {
		if !slices.Contains(want.OIDs, oid) {
			t.Errorf("transaction %v did not change %v", got.TID, oid)
		}
	}
}

func testBackwards(t *testing.T, got txn.Database, want *Memory) {
	i := len(want.transactions)
	for info, err := range got.Backwards(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if i--; i < 0 {
			t.Fatalf("transaction %v is one too many", info.TID)
		}
		w := want.transactions[i].info()
		sameInfo(t, info, &w)
	}
	if i != 0 {
		t.Errorf("%d transactions are missing", i)
	}
	for range got.Backwards(t.Context()) {
		break // must be possible
	}
}

func testOIDs(t *testing.T, got txn.Database, want *Memory) {
	ctx := t.Context()
	n := len(want.transactions)
	for _, moment := range []tid.TID{at(0) - 1, at(0), at(n / 2), at(n), tid.Max} {
		for _, from := range []tid.OID{0, 3, 1000} {
			var g, w []tid.OID
			for oid := range want.OIDs(ctx, moment, from) {
				w = append(w, oid)
			}
			for oid, err := range got.OIDs(ctx, moment, from) {
				if err != nil {
					t.Fatal(err)
				}
				g = append(g, oid)
			}
			if !slices.Equal(g, w) {
				t.Errorf("OIDs(%v, %v) = %v, want %v", moment, from, g, w)
			}
		}
	}
}

// A read whose context has ended gives its error or the right answer, and returns.
func testCancelled(t *testing.T, got txn.Database, want *Memory) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	n := 0
	for tr, err := range got.Transactions(ctx, 0, tid.Max) {
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Errorf("Transactions: %v, want %v", err, context.Canceled)
			}
			return
		}
		sameTransaction(t, tr, &want.transactions[n].Transaction)
		n++
	}
	if n != len(want.transactions) {
		t.Errorf("Transactions ended after %d of %d without an error", n, len(want.transactions))
	}
}
