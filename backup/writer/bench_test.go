package writer

import (
	"fmt"
	"os"
	"testing"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store/filestore"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// BenchmarkFirstSnapshot watches how long the first backup of a database takes: that of
// NEO_BENCH_FS, a Data.fs, or of words in memory.
func BenchmarkFirstSnapshot(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		s, err := filestore.Open(b.TempDir())
		if err != nil {
			b.Fatal(err)
		}
		repo := backuptest.New(b, s, true)
		var f feed.Feed
		if path := os.Getenv("NEO_BENCH_FS"); path != "" {
			info, err := os.Stat(path)
			if err != nil {
				b.Fatal(err)
			}
			b.SetBytes(info.Size())
			if f, err = feed.OpenFile(b.Context(), path, feed.FileOptions{}); err != nil {
				b.Fatal(err)
			}
		} else {
			m := feedtest.New("prod")
			var list []feedtest.Transaction
			for i := range 2000 {
				t := feedtest.Transaction{Description: "bench"}
				for j := range 5 {
					t.Records = append(t.Records, txn.Record{OID: tid.OID(5*i + j), Data: fmt.Appendf(nil, "%d %d %0800d", i, j, i*j)})
				}
				list = append(list, t)
			}
			m.Commit(list...)
			f = m
		}
		w, err := Open(b.Context(), Options{Repo: repo.Repository, Signer: repo.Signer, Feed: f, StateDir: b.TempDir()})
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := w.Snapshot(b.Context(), 0, ""); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		w.Close()
		f.Close()
		b.StartTimer()
	}
}

// BenchmarkFlush watches what each interval of a busy source costs: one transaction.
func BenchmarkFlush(b *testing.B) {
	repo := backuptest.New(b, memstore.New(memstore.Options{}), true)
	m := feedtest.New("prod")
	r, err := backup.Open(b.Context(), backup.Config{Store: repo.Store, Trusted: repo.Trusted})
	if err != nil {
		b.Fatal(err)
	}
	w, err := Open(b.Context(), Options{Repo: r, Signer: repo.Signer, Feed: m, StateDir: b.TempDir(), Level: snapshot.Fastest})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	for b.Loop() {
		b.StopTimer()
		t := m.Put(1, "some data of an object")
		b.StartTimer()
		if err := w.chain.flush(b.Context(), t, t.Time(), true); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := w.chain.quiesce(); err != nil {
		b.Fatal(err)
	}
}
