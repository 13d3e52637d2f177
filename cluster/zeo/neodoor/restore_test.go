package neodoor

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
)

// restore copies one transaction as the server does it.
func restore(t *testing.T, s zeo.Storage, at tid.TID, status byte, records ...txn.Record) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	tx, err := s.Begin(ctx, zeo.Begin{TID: at, Status: status, Description: []byte("copied")})
	if err != nil {
		return err
	}
	for _, r := range records {
		r.TID = at
		if err := tx.(zeo.Restorer).Restore(ctx, r); err != nil {
			return errors.Join(err, tx.Abort(ctx))
		}
	}
	_, conflicts, err := tx.Vote(ctx)
	if len(conflicts) > 0 {
		t.Errorf("%v: conflicts in a copy: %v", at, conflicts)
	}
	var got tid.TID
	if err == nil {
		got, err = tx.Finish(ctx, func(tid.TID) {})
	}
	if err != nil {
		return errors.Join(err, tx.Abort(ctx))
	}
	if got != at {
		t.Errorf("transaction %v was committed as %v", at, got)
	}
	return nil
}

// A record whose serial is not the id of its transaction is refused: it would get that id.
func TestRestoreOtherSerial(t *testing.T) {
	c, err := startCluster(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Remove)
	s, err := c.open(t.Context(), false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	for _, id := range []tid.TID{tid.Zero, 100} {
		tx, err := s.Begin(t.Context(), zeo.Begin{TID: id})
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.(zeo.Restorer).Restore(t.Context(), txn.Record{OID: 1, TID: 99, Data: []byte("x")}); err == nil {
			t.Errorf("a record of 99 is taken in transaction %v", id)
		}
		if err := tx.Abort(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

// Transactions that are copied keep their ids, packed ones too, and their links to earlier
// data if these are the same. What a server does not know of an object, since it has begun
// later than the copy, it learns from the storage.
func TestRestore(t *testing.T) {
	c, err := startCluster(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Remove)
	open := func() *Cluster {
		s, err := c.open(t.Context(), false)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { s.Close() })
		return s
	}
	s := open()
	pooled, err := s.NewOIDs(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	a, b := []byte("one"), []byte("another")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(restore(t, s, 100, txn.Packed, txn.Record{OID: 1, Data: a}, txn.Record{OID: 50, Data: b}))
	must(restore(t, s, 200, txn.Committed, txn.Record{OID: 1, Data: b}))
	must(restore(t, s, 300, 0, txn.Record{OID: 1, Data: a, DataTID: 100}, txn.Record{OID: 50, Data: b, DataTID: 200}))
	other := open() // knows no revision of these objects
	must(restore(t, other, 400, txn.Committed, txn.Record{OID: 1}, txn.Record{OID: 50, Data: a, DataTID: 150}))
	must(restore(t, s, 500, txn.Committed, txn.Record{OID: 1, DataTID: 400}, txn.Record{OID: 50, Data: a, DataTID: 400})) // and this one not those of the other
	must(restore(t, s, 560, txn.Committed, txn.Record{OID: 50, Data: b, DataTID: 500}))                                   // which has other data
	must(restore(t, s, 600, txn.Committed))
	type record struct {
		oid  tid.OID
		data string
		link tid.TID
	}
	want := map[tid.TID][]record{
		100: {{1, "one", 0}, {50, "another", 0}},
		200: {{1, "another", 0}},
		300: {{1, "one", 100}, {50, "another", 0}}, // no such revision
		400: {{1, "", 0}, {50, "one", 0}},
		500: {{1, "", 400}, {50, "one", 400}},
		560: {{50, "another", 0}},
		600: nil,
	}
	n := 0
	for x, err := range open().Transactions(t.Context(), 0, tid.Max) {
		must(err)
		n++
		var got []record
		for r, err := range x.Records {
			must(err)
			got = append(got, record{r.OID, string(r.Data), r.DataTID})
		}
		if len(got) != len(want[x.TID]) || string(x.Description) != "copied" {
			t.Errorf("%v %q: %+v, want %+v", x.TID, x.Description, got, want[x.TID])
			continue
		}
		for i := range got {
			if got[i] != want[x.TID][i] {
				t.Errorf("%v: %+v, want %+v", x.TID, got[i], want[x.TID][i])
			}
		}
	}
	if n != len(want) {
		t.Errorf("%d transactions, want %d", n, len(want))
	}

	// Refused, and all clients remain connected.
	for _, at := range []tid.TID{600, 550, 1} {
		if err := restore(t, s, at, txn.Committed, txn.Record{OID: 1, Data: a}); err == nil || errors.Is(err, txn.ErrUnavailable) {
			t.Errorf("a copy of %v behind 600: %v", at, err)
		}
	}
	if err := restore(t, s, 700, 'x', txn.Record{OID: 1, Data: a}); !errors.Is(err, zeo.ErrUnsupported) {
		t.Errorf("status x: %v", err)
	}
	// Ids of objects that were copied are not given out.
	oids, err := s.NewOIDs(t.Context(), 100)
	must(err)
	for _, oid := range oids {
		if oid <= 50 {
			t.Errorf("object id %v was given out after %v, and a copied object may have it", oid, pooled)
		}
	}
}

// An application may go on after a copy: what it stores on an old revision is a conflict.
func TestRestoreAmongCommits(t *testing.T) {
	c, err := startCluster(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Remove)
	s := watch(t, c, time.Minute)
	if err := restore(t, s.Cluster, 100, txn.Packed, txn.Record{OID: 1, Data: []byte("one")}); err != nil {
		t.Fatal(err)
	}
	if err := restore(t, s.Cluster, 200, txn.Packed, txn.Record{OID: 1, Data: []byte("two")}); err != nil {
		t.Fatal(err)
	}
	tx, err := s.Begin(t.Context(), zeo.Begin{})
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Store(t.Context(), 1, 100, []byte("three")); err != nil {
		t.Fatal(err)
	}
	if _, conflicts, err := tx.Vote(t.Context()); len(conflicts) != 1 || err != nil {
		t.Errorf("a store on what was replaced: %v, %v", conflicts, err)
	}
	if err := tx.Abort(t.Context()); err != nil {
		t.Fatal(err)
	}
}
