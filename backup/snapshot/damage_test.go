package snapshot

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Exactly those revisions are lost that cannot be loaded any more.
func TestDamage(t *testing.T) {
	var list []transaction
	for i := range 30 {
		at := tid.TID(10 + i)
		tr := transaction{txn: txn.Transaction{TID: at, Status: ' '}}
		for j := range 4 {
			size := 20 << 10
			if i == 7 && j == 1 {
				size = 3 << 20 // of several frames
			}
			tr.records = append(tr.records, Record{OID: tid.OID(j*100 + i), TID: at, Data: bytes.Repeat(fmt.Appendf(nil, "%d %d ", i, j), size/4)})
		}
		list = append(list, tr)
	}
	b, w := write(t, testHeader, 1000, list)
	good := openSegment(t, b)
	var entries []Entry
	for e, err := range good.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, e)
	}
	for at := int64(textStart); at < w.Footer.DirectoryAt; at += 1 + int64(len(b)/40) {
		c := slices.Clone(b)
		c[at] ^= 0x10
		s := openSegment(t, c)
		d, err := s.Damage(1000)
		if err != nil || d.Frames+d.Blocks != 1 || d.Err == nil {
			t.Fatalf("byte %d: %+v, %v", at, d, err)
		}
		for _, e := range entries {
			if _, err := s.Load(e); (err != nil) != slices.Contains(d.Lost, e) && d.Blocks == 0 {
				t.Fatalf("byte %d: object %v, transaction %v: lost %v, %v", at, e.OID, e.TID, slices.Contains(d.Lost, e), err)
			}
		}
	}
	if d, err := good.Damage(1000); err != nil || d.Err != nil || len(d.Lost) > 0 {
		t.Errorf("of a good one: %+v, %v", d, err)
	}
}
