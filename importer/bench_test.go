package importer

import (
	"context"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/pace"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/sqlitedb"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

// benchFile makes a Data.fs of about so many megabytes with the sizes of a production
// ZODB, whose records compress to a third; NEO_BENCH_FS names another file.
func benchFile(b *testing.B) *fsformat.Reader {
	b.Helper()
	path := os.Getenv("NEO_BENCH_FS")
	if path == "" {
		size := int64(100)
		if s, err := strconv.Atoi(os.Getenv("NEO_BENCH_MB")); err == nil {
			size = int64(s)
		}
		path = filepath.Join(b.TempDir(), "Data.fs")
		makeFile(b, path, size<<20)
	}
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.Close() })
	return r
}

func makeFile(b *testing.B, path string, size int64) {
	b.Helper()
	rng := rand.New(rand.NewPCG(1, 0))
	noise := make([]byte, 4<<20)
	for i := range noise {
		noise[i] = byte(int(rng.NormFloat64() * 0.8))
	}
	w, err := fsformat.Create(path, fsformat.WriterOptions{})
	if err != nil {
		b.Fatal(err)
	}
	objects := tid.OID(0)
	for id := tid.TID(0x03d6000000000000); w.Size() < size; id += 1 << 24 {
		var records []txn.Record
		seen := map[tid.OID]bool{}
		for range max(1, int(math.Exp(1.04+0.91*rng.NormFloat64()))) {
			oid := objects
			if objects > 0 && rng.Float64() > 0.81 {
				oid = tid.OID(rng.Uint64N(uint64(objects)))
			} else {
				objects++
			}
			if seen[oid] {
				continue
			}
			seen[oid] = true
			n := min(len(noise)/2, int(math.Exp(6.04+1.56*rng.NormFloat64())))
			data := []byte("\x80\x03cProducts.ERP5.Document\nPerson\nq\x00.\x80\x03}q\x01(X\x04\x00\x00\x00dataq\x02B")
			data = binary.LittleEndian.AppendUint32(data, uint32(n))
			data = append(data, noise[rng.IntN(len(noise)/2):][:n]...)
			data = append(data, "q\x03X\x03\x00\x00\x00refq\x04C\x08"...)
			data = tid.OID(rng.Uint64N(uint64(objects))).Append(data)
			data = append(data, "q\x05h\x00\x86Qq\x06u."...)
			records = append(records, txn.Record{OID: oid, TID: id, Data: data})
		}
		if err := w.Append(&txn.Transaction{TID: id, Status: ' ', User: []byte("bob"), Description: []byte("/erp5/person_module/edit"), Records: txn.Slice(records)}); err != nil {
			b.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		b.Fatal(err)
	}
}

func benchNative(b *testing.B) Native {
	native, err := sqlitedb.Open(b.Context(), filepath.Join(b.TempDir(), "db"), sqlitedb.Options{HalfImported: true})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := native.Close(); err != nil {
			b.Error(err)
		}
	})
	var changes []proto.CellChange
	for p := range 12 {
		changes = append(changes, proto.CellChange{Partition: p, ID: 1, State: proto.UpToDate})
	}
	if err := native.SetID(1); err != nil {
		b.Fatal(err)
	}
	if err := native.ChangePartitionTable(1, 0, changes, true, 0); err != nil {
		b.Fatal(err)
	}
	return native
}

// How long a site is served from its sources.
func BenchmarkCopy(b *testing.B) {
	r := benchFile(b)
	b.SetBytes(r.Size())
	b.ReportAllocs()
	for b.Loop() {
		c, _ := importOf(b, r, benchNative(b))
		if err := c.copyAll(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// How long it takes then until the sources are not needed any more.
func BenchmarkCompare(b *testing.B) {
	r := benchFile(b)
	c, _ := importOf(b, r, benchNative(b))
	if err := c.copyAll(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(r.Size())
	b.ReportAllocs()
	for b.Loop() {
		if err := c.compareAll(b.Context()); err != nil || c.copying.p.Verdict != equal {
			b.Fatal(err, c.copying.p)
		}
	}
}

// What a client feels that loads objects one after the other, with a pause for its own work.
func BenchmarkLoadBesideCopy(b *testing.B) {
	r := benchFile(b)
	native := benchNative(b)
	half := tid.TID(0)
	var keys []backend.Key
	for tr, err := range r.Transactions(b.Context(), 0, tid.Max) {
		if err != nil {
			b.Fatal(err)
		}
		for rec, err := range tr.Records {
			if err != nil {
				b.Fatal(err)
			}
			keys = append(keys, backend.Key{TID: tr.TID, OID: rec.OID})
		}
		if half = tr.TID; len(keys) >= 20000 {
			break
		}
	}
	c, _ := importOf(b, r, native)
	end := c.end
	c.end = half
	if err := c.copyAll(b.Context()); err != nil {
		b.Fatal(err)
	}
	c.end = end
	client := func(n int, stop <-chan struct{}) (latency []time.Duration) {
		rng := rand.New(rand.NewPCG(1, 2))
		for range n {
			select {
			case <-stop:
				return latency
			case <-time.After(500 * time.Microsecond):
			}
			k := keys[rng.IntN(len(keys))]
			begin := time.Now()
			c.served.Seen()
			if _, err := native.GetObject(b.Context(), k.OID, proto.Opt[tid.TID]{}, some(k.TID+1)); err != nil {
				b.Error(err)
			}
			latency = append(latency, time.Since(begin))
		}
		return latency
	}
	report := func(name string, l []time.Duration) {
		slices.Sort(l)
		b.ReportMetric(float64(l[len(l)/2].Microseconds()), name+"-median-µs")
		b.ReportMetric(float64(l[len(l)*99/100].Microseconds()), name+"-p99-µs")
	}
	share := copyShare
	if s, err := strconv.ParseFloat(os.Getenv("NEO_BENCH_SHARE"), 64); err == nil {
		share = s
	}
	c.copying.pace = pace.New(c.served, share, 0)
	for b.Loop() {
		report("alone", client(2000, nil))
		before := c.Progress().Bytes
		ctx, cancel := context.WithCancel(b.Context())
		stop := make(chan struct{})
		ended := make(chan error)
		begin := time.Now()
		go func() {
			ended <- c.copyAll(ctx)
			close(stop)
		}()
		time.Sleep(300 * time.Millisecond) // what is read ahead
		l := client(4000, stop)
		took := time.Since(begin)
		moved := c.Progress().Bytes - before
		report("beside", l)
		b.ReportMetric(float64(moved)/took.Seconds()/1e6, "copy-MB/s")
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			b.Fatal(err)
		}
	}
}
