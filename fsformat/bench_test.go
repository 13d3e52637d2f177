package fsformat

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// bigFile is what benchmarks read.
var bigFile = sync.OnceValue(func() []byte { return generate(64<<20, 0) })

// generate makes a database with the sizes of a production ZODB: objects of
// exp(N(6.04, 1.56)) bytes, exp(N(1.04, 0.91)) of them in a transaction, four of
// five of them new. If large is not 0, every hundredth object has that many bytes.
func generate(size, large int) []byte {
	const seed = 1
	rng := rand.New(rand.NewPCG(seed, 0))
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	var out []byte
	out = append(out, FS30...)
	newest := map[tid.OID]int64{}
	objects := tid.OID(0)
	for t := tid.TID(0x03d6000000000000); len(out) < size; t += 1 << 24 {
		start := int64(len(out))
		out = t.Append(out)
		out = append(out, make([]byte, 8)...)
		out = append(out, " \x00\x05\x00\x04\x00\x00/ bobedit"...)
		written := map[tid.OID]int64{}
		for range max(1, int(math.Exp(1.04+0.91*rng.NormFloat64()))) {
			oid := objects
			if objects > 0 && rng.Float64() > 0.81 {
				oid = tid.OID(rng.Uint64N(uint64(objects)))
			} else {
				objects++
			}
			if written[oid] != 0 {
				continue
			}
			body := noise[rng.IntN(len(noise)/2):][:min(len(noise)/2, int(math.Exp(6.04+1.56*rng.NormFloat64())))]
			if large > 0 && oid%100 == 99 {
				body = bytes.Repeat(noise[:1<<10], large>>10)
			}
			data := []byte("\x80\x03cProducts.ERP5.Document\nPerson\nq\x00.\x80\x03}q\x01(X\x04\x00\x00\x00dataq\x02B")
			data = binary.LittleEndian.AppendUint32(data, uint32(len(body)))
			data = append(data, body...)
			data = append(data, "q\x03X\x03\x00\x00\x00refq\x04C\x08"...)
			data = tid.OID(rng.Uint64N(uint64(objects))).Append(data)
			data = append(data, "q\x05h\x00\x86Qq\x06u."...)
			rec := RecordHeader{OID: oid, TID: t, Prev: newest[oid], TxnPos: start, DataLen: int64(len(data))}
			written[oid] = int64(len(out))
			out = rec.appendTo(out)
			out = append(out, data...)
		}
		for oid, pos := range written {
			newest[oid] = pos
		}
		n := uint64(int64(len(out)) - start)
		binary.BigEndian.PutUint64(out[start+8:], n)
		out = binary.BigEndian.AppendUint64(out, n)
	}
	return out
}

func BenchmarkIndexRebuild(b *testing.B) { // the wait for a database whose index was lost
	file := bigFile()
	r := openBytes(b, file)
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.BuildIndex(b.Context(), nil); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCheck(b *testing.B) { // the nightly check of everything
	file := bigFile()
	r := openBytes(b, file)
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		sum, err := Check(b.Context(), r, CheckOptions{}, func(p Problem) { b.Fatal(p) })
		if err != nil || sum.Errors > 0 {
			b.Fatal(sum, err)
		}
	}
}

func BenchmarkTransactions(b *testing.B) { // reading for an import or a copy
	file := bigFile()
	r := openBytes(b, file)
	for _, bb := range []struct {
		name string
		of   func() txn.History
	}{
		{"plain", func() txn.History { return r }},
		{"checked", func() txn.History { return r.Checked(func(e *CorruptError) error { return e }) }},
	} {
		b.Run(bb.name, func(b *testing.B) {
			b.SetBytes(int64(len(file)))
			b.ReportAllocs()
			for b.Loop() {
				for t, err := range bb.of().Transactions(b.Context(), 0, tid.Max) {
					if err != nil {
						b.Fatal(err)
					}
					for _, err := range t.Records {
						if err != nil {
							b.Fatal(err)
						}
					}
				}
			}
		})
	}
}

func BenchmarkCheckOrder(b *testing.B) { // the wait before a copy begins
	file := bigFile()
	r := openBytes(b, file)
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		if err := r.CheckOrder(b.Context(), 0); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkAppend(b *testing.B) { // an export, without waiting for the disk
	file := bigFile()
	r := openBytes(b, file)
	b.SetBytes(int64(len(file)))
	b.ReportAllocs()
	for b.Loop() {
		w, err := Create(b.TempDir()+"/Data.fs", WriterOptions{NoSync: true})
		if err != nil {
			b.Fatal(err)
		}
		for t, err := range r.Transactions(b.Context(), 0, tid.Max) {
			if err != nil {
				b.Fatal(err)
			}
			if err := w.Append(t); err != nil {
				b.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
