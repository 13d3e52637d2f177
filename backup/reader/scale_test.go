package reader

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var (
	manySegments = flag.Int("reader.segments", 520, "segments of TestManySegments; 8000 are 1 TB that is stored")
	manyRecords  = flag.Int("reader.records", 300_000, "records of TestLargeIndex, on the disk 9 bytes each; 1e9 is what 1 TB may have")
)

// mostRuns is into how many runs a lookup looks with 8,000 segments: of each tier one less than become
// one of the next, and the last.
const mostRuns = 29

// inUse returns the memory that is in use.
func inUse() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// However many segments there are, a lookup with the whole index on this machine looks into a few runs, and an object
// is one request.
func TestManySegments(t *testing.T) {
	count := store.Count(memstore.New(memstore.Options{}))
	r := backuptest.New(t, count, false)
	rnd := rand.New(rand.NewPCG(1, 6))
	latest := map[tid.OID]tid.TID{}
	for i := range *manySegments {
		at := tid.TID(0x1000 + i)
		records := []txn.Record{{OID: tid.OID(i), TID: at, Data: fmt.Appendf(nil, "first %d", i)}}
		if i > 0 {
			records = append(records, txn.Record{OID: tid.OID(rnd.IntN(i)), TID: at, Data: fmt.Appendf(nil, "later %d", i)})
		}
		for _, rec := range records {
			latest[rec.OID] = at
		}
		r.Listed([]*txn.Transaction{backuptest.Txn(at, records...)})
		if i%1000 == 999 {
			r.Manifest(false, true)
		}
	}
	r.Manifest(false, true)
	before := inUse()
	d, err := Open(t.Context(), r.Repository, r.Keys, r.Now(), Options{CacheDir: t.TempDir(), CacheSize: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Filled(t.Context()); err != nil {
		t.Fatal(err)
	}
	steps := len(d.current().steps)
	if steps > mostRuns {
		t.Errorf("a lookup looks into %d runs", steps)
	}
	for i := range 200 {
		oid := tid.OID(rnd.IntN(*manySegments))
		asked := count.Stats()
		rev, err := d.LoadBefore(t.Context(), oid, tid.Max)
		if err != nil || rev.Serial != latest[oid] {
			t.Fatalf("object %v: of %v, %v, want %v", oid, rev.Serial, err, latest[oid])
		}
		if now := count.Stats(); i > 0 && now.Gets-asked.Gets > 1 || now.Lists != asked.Lists {
			t.Errorf("object %v: %d GET", oid, now.Gets-asked.Gets)
		}
	}
	t.Logf("%d segments: %d runs, %d kB of memory", *manySegments, steps, (inUse()-before)>>10)
}

// counted is a file of which reads are counted.
type counted struct {
	io.ReaderAt
	n *atomic.Int64
}

func (c counted) ReadAt(b []byte, off int64) (int, error) {
	c.n.Add(1)
	return c.ReaderAt.ReadAt(b, off)
}

// A lookup in a large index reads one block of each run, and of all others memory has only where they are.
func TestLargeIndex(t *testing.T) {
	dir := t.TempDir()
	of := ids(1)
	per := *manyRecords / mostRuns
	c := newCache(t.Context(), 4<<20, time.Minute, new(sync.WaitGroup))
	before := inUse()
	var runs []*run
	var reads atomic.Int64
	var size int64
	for i := range mostRuns {
		f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		b := bufio.NewWriterSize(f, 1<<20)
		w, err := newRunWriter(b)
		if err != nil {
			t.Fatal(err)
		}
		for k := range per {
			// Each run has another share of the objects.
			e := located{Entry: snapshot.Entry{OID: tid.OID(k*mostRuns + i), TID: tid.TID(1000 + i), Pos: int64(k) * 700}}
			if err := w.add(e); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.close(of); err != nil {
			t.Fatal(err)
		}
		if err := b.Flush(); err != nil {
			t.Fatal(err)
		}
		fi, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		size += fi.Size()
		defer f.Close() // only read from now on
		r, err := openRun(counted{f, &reads}, fi.Size(), f.Name())
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, r)
	}
	memory := inUse() - before
	if limit := int64(4<<20) + int64(per)*mostRuns/40; memory > limit { // 25 MB for 1e9 records, and what is fixed
		t.Errorf("%d records take %d bytes of memory", per*mostRuns, memory)
	}
	rnd := rand.New(rand.NewPCG(1, 7))
	begun := time.Now()
	const lookups = 200
	most := int64(0)
	for range lookups {
		k, i := rnd.IntN(per), rnd.IntN(mostRuns)
		oid := tid.OID(k*mostRuns + i)
		n := reads.Load()
		found := false
		for at, r := range runs {
			e, ok, err := r.find(context.Background(), c, oid, tid.Max)
			if err != nil || ok != (at == i) {
				t.Fatalf("run %d: %v %v, object of run %d", at, ok, err, i)
			}
			found = found || ok && e.Pos == int64(k)*700
		}
		if !found {
			t.Fatalf("object %v is not found", oid)
		}
		most = max(most, reads.Load()-n)
	}
	if most > mostRuns {
		t.Errorf("a lookup reads %d blocks", most)
	}
	t.Logf("%d records in %d runs, %d MB on the disk: %d kB of memory, %d blocks at most and %v for a lookup", per*mostRuns, mostRuns, size>>20, memory>>10, most, time.Since(begun)/lookups)
}
