package client_test

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// A client that makes a backup is told of transactions, and nothing that its cache has is older
// than they are.
func TestBackup(t *testing.T) {
	simulate(t, shape{partitions: 2, storages: 1}, func(t *testing.T, r *rig) {
		var mu sync.Mutex
		var told []tid.TID
		b := r.open(func(cfg *client.Config) {
			cfg.Backup = "prod"
			cfg.OnInvalidate = func(t tid.TID, oids []tid.OID) {
				mu.Lock()
				defer mu.Unlock()
				if oids == nil {
					told = append(told, t)
				}
			}
		})
		if !b.ReadOnly() {
			t.Error("a client that makes a backup may write")
		}
		c := r.open(nil)
		first := r.commit(c, text(1, 0, "a"), text(2, 0, "b"))
		synctest.Wait()
		r.want(b, 1, "a", first)
		second := r.commit(c, text(1, first, "changed"))
		synctest.Wait()
		r.want(b, 1, "changed", second)
		r.want(b, 2, "b", first)
		order := must(c.Pack(t.Context(), second))(t)
		if err := c.WaitForPack(t.Context(), order); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		mu.Lock()
		equal(t, "told", told, []tid.TID{first, second, order})
		mu.Unlock()
		if last := must(b.LastTID(t.Context()))(t); last != order {
			t.Errorf("LastTID = %v, want %v", last, order)
		}
		if last := must(b.AskLastTID(t.Context()))(t); last != order {
			t.Errorf("AskLastTID = %v, want %v", last, order)
		}
		orders := must(b.PackOrders(t.Context(), 0))(t)
		if len(orders) != 1 || orders[0].ID != order || orders[0].Time != second || !orders[0].Approved.V {
			t.Errorf("PackOrders = %+v", orders)
		}
		if orders = must(b.PackOrders(t.Context(), order+1))(t); len(orders) != 0 {
			t.Errorf("PackOrders after the order = %+v", orders)
		}
		if has := must(b.HasRevision(t.Context(), 1, first))(t); has {
			t.Error("a revision that was packed is still there")
		}
		if has := must(b.HasRevision(t.Context(), 1, second))(t); !has {
			t.Error("the current revision is not there")
		}
		if _, err := b.Begin(t.Context(), client.BeginOptions{}); !errors.Is(err, txn.ErrReadOnly) {
			t.Errorf("Begin: %v", err)
		}
	})
}

// An iteration asks about what has no record, in the order of the objects.
func TestMissingRecords(t *testing.T) {
	simulate(t, shape{partitions: 2, storages: 1}, func(t *testing.T, r *rig) {
		c := r.open(nil)
		first := r.commit(c, text(1, 0, "a"), text(2, 0, "b"), text(3, 0, "c"))
		second := r.commit(c, text(1, first, "a2"), text(3, first, "c2"))
		if err := c.WaitForPack(t.Context(), must(c.Pack(t.Context(), second))(t)); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var asked []tid.OID
		for tr, err := range c.TransactionsWith(t.Context(), 0, second, func(at tid.TID, oid tid.OID, since time.Time) (*txn.Record, error) {
			if at != first || since.Before(began) || since.After(time.Now()) {
				t.Errorf("asked about object %v at %v, missing at %v", oid, at, since)
			}
			asked = append(asked, oid)
			if oid == 3 {
				return nil, nil
			}
			return &txn.Record{OID: oid, TID: at, Data: []byte("instead")}, nil
		}) {
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				var got []string
				for rec, err := range tr.Records {
					if err != nil {
						t.Fatal(err)
					}
					got = append(got, rec.OID.String()[15:]+string(rec.Data))
				}
				want := []string{"1instead", "2b"}
				if tr.TID == second {
					want = []string{"1a2", "3c2"}
				}
				equal(t, "records", got, want)
			}
		}
		equal(t, "asked", asked, []tid.OID{1, 3})
		gone := errors.New("gone")
		for tr, err := range c.TransactionsWith(t.Context(), 0, first, func(tid.TID, tid.OID, time.Time) (*txn.Record, error) { return nil, gone }) {
			if err != nil {
				t.Fatal(err)
			}
			err = nil
			for _, e := range tr.Records {
				err = e
			}
			if !errors.Is(err, gone) {
				t.Errorf("records: %v", err)
			}
		}
	})
}
