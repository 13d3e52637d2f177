package client_test

import (
	"testing"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

// A cluster with a given history keeps all promises of a readable database.
func TestDatabase(t *testing.T) {
	txntest.Run(t, func(t *testing.T, history txn.History) txn.Database {
		r := &rig{t: t, net: memnet.New(1), shape: shape{partitions: 5, replicas: 1, storages: 3}}
		r.startMaster()
		for i := range r.shape.storages {
			r.storages = append(r.storages, &node{mem: backendtest.NewMemory()})
			r.startStorage(i)
		}
		t.Cleanup(func() { // after the clients
			for _, n := range r.storages {
				n.stop()
			}
			r.master.stop()
		})
		a := r.open(nil).NewAppender(t.Context(), client.AppenderOptions{})
		for tr, err := range history.Transactions(t.Context(), tid.Zero, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			if err := a.Append(tr); err != nil {
				t.Fatal(err)
			}
		}
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		return r.open(nil)
	})
}
