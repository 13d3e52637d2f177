package client_test

import (
	"context"
	"crypto/rand"
	"sync/atomic"
	"testing"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

const (
	benchTxns    = 500
	benchObjects = 10 // of 2 KiB in each transaction
)

// benchCluster runs a cluster with data on loopback.
func benchCluster(b *testing.B) func(client.Config) *client.Client {
	b.Helper()
	c, err := simple.New(simple.Config{Dir: b.TempDir(), Name: "bench", Partitions: 4, Storages: 1})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		<-done
	})
	if err := c.WaitRunning(ctx); err != nil {
		b.Fatal(err)
	}
	open := func(cfg client.Config) *client.Client {
		cfg.Cluster, cfg.Masters = "bench", []proto.Address{c.Master()}
		cl, err := client.Open(ctx, cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { cl.Close() })
		return cl
	}
	a := open(client.Config{Level: client.NoCompression}).NewAppender(ctx, client.AppenderOptions{})
	for i := range benchTxns {
		if err := a.Append(benchTxn(i)); err != nil {
			b.Fatal(err)
		}
	}
	if err := a.Close(); err != nil {
		b.Fatal(err)
	}
	return open
}

func benchTxn(i int) *txn.Transaction {
	var recs []txn.Record
	for j := range benchObjects {
		data := make([]byte, 2048)
		rand.Read(data)
		recs = append(recs, txn.Record{OID: tid.OID(i*benchObjects + j), TID: tid.TID(i + 1), Data: data})
	}
	return &txn.Transaction{TID: tid.TID(i + 1), Status: ' ', Records: txn.Slice(recs)}
}

// What a page view costs whose objects are not in the cache.
func BenchmarkLoad(b *testing.B) {
	open := benchCluster(b)
	c := open(client.Config{CacheSize: 1})
	b.SetBytes(2048)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, _, err := c.Load(b.Context(), tid.OID(i*7919%(benchTxns*benchObjects))); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// The same with many readers at once.
func BenchmarkLoadParallel(b *testing.B) {
	open := benchCluster(b)
	c := open(client.Config{CacheSize: 1})
	b.SetBytes(2048)
	b.SetParallelism(4)
	var next atomic.Int64
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, _, err := c.Load(b.Context(), tid.OID(next.Add(7919)%(benchTxns*benchObjects))); err != nil {
				b.Error(err)
				return
			}
		}
	})
}

// What a page view costs whose objects are in the cache.
func BenchmarkLoadCached(b *testing.B) {
	open := benchCluster(b)
	c := open(client.Config{})
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		if _, _, err := c.Load(b.Context(), tid.OID(i%1000)); err != nil {
			b.Fatal(err)
		}
		i++
	}
}

// What an edit costs.
func BenchmarkCommit(b *testing.B) {
	open := benchCluster(b)
	c := open(client.Config{})
	data := make([]byte, 2048)
	rand.Read(data)
	serial := tid.TID(1)
	b.ReportAllocs()
	for b.Loop() {
		t, err := c.Begin(b.Context(), client.BeginOptions{})
		if err != nil {
			b.Fatal(err)
		}
		if err := t.Store(b.Context(), 0, serial, data); err != nil {
			b.Fatal(err)
		}
		if serial, err = t.Finish(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

// How long a backup by export takes.
func BenchmarkTransactions(b *testing.B) {
	open := benchCluster(b)
	c := open(client.Config{})
	b.SetBytes(benchTxns * benchObjects * 2048)
	for b.Loop() {
		n := 0
		for t, err := range c.Transactions(b.Context(), 0, tid.Max) {
			if err != nil {
				b.Fatal(err)
			}
			for _, err := range t.Records {
				if err != nil {
					b.Fatal(err)
				}
				n++
			}
		}
		if n != benchTxns*benchObjects {
			b.Fatalf("%d records", n)
		}
	}
}
