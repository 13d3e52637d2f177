package snapshot

import (
	"io"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
)

// The first snapshot of a database, and every merge.
func BenchmarkWrite(b *testing.B) {
	list := big(1, 400)
	var n int64
	for b.Loop() {
		w, err := NewSegmentWriter(&Buffer{}, testHeader, WriterOptions{})
		if err != nil {
			b.Fatal(err)
		}
		for i := range list {
			w.Begin(&list[i].txn)
			for _, r := range list[i].records {
				w.Record(r)
			}
			w.End()
		}
		if _, err := w.Close(0x10000, 0); err != nil {
			b.Fatal(err)
		}
		n = w.Text()
	}
	b.SetBytes(n)
}

// Restores.
func BenchmarkWalk(b *testing.B) {
	plaintext, _ := write(b, testHeader, 0x10000, big(1, 400))
	r := openSegment(b, plaintext)
	b.SetBytes(r.Footer().Text)
	for b.Loop() {
		for _, err := range r.Walk() {
			if err != nil {
				b.Fatal(err)
			}
		}
	}
}

// "zstd -d" is the bound of BenchmarkWalk.
func BenchmarkText(b *testing.B) {
	plaintext, _ := write(b, testHeader, 0x10000, big(1, 400))
	r := openSegment(b, plaintext)
	b.SetBytes(r.Footer().Text)
	for b.Loop() {
		if _, err := io.Copy(io.Discard, r.Text()); err != nil {
			b.Fatal(err)
		}
	}
}

// Each object that a client loads from a snapshot.
func BenchmarkFindAndLoad(b *testing.B) {
	plaintext, _ := write(b, testHeader, 0x10000, big(1, 400))
	r := openSegment(b, plaintext)
	oid := tid.OID(0)
	for b.Loop() {
		e, err := r.Find(oid, tid.Max)
		if err == nil {
			_, err = r.Load(e)
		}
		if err != nil && err != ErrNotFound {
			b.Fatal(err)
		}
		oid = (oid + 1) % 500
	}
}
