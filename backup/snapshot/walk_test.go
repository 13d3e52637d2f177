package snapshot

import (
	"bytes"
	"cmp"
	"slices"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// after is walk of WalkAfter, in which copies have no kind of their own.
func after(t *testing.T, r *Reader, at tid.TID) (list []transaction, ends int) {
	t.Helper()
	for ev, err := range r.WalkAfter(at) {
		switch {
		case err != nil:
			t.Fatal(err)
		case ev.Txn != nil:
			list = append(list, transaction{txn: *ev.Txn})
		case ev.Record != nil:
			rec := *ev.Record
			rec.Data = bytes.Clone(rec.Data)
			if len(list) == 0 {
				list = append(list, transaction{})
			}
			list[len(list)-1].records = append(list[len(list)-1].records, rec)
		default:
			ends++
		}
	}
	return list, ends
}

func sameRecord(a, b Record) bool {
	return a.OID == b.OID && a.TID == b.TID && a.Kind == b.Kind && a.DataTID == b.DataTID && bytes.Equal(a.Data, b.Data)
}

func plainKinds(list []transaction) (plain []transaction) {
	for _, tr := range list {
		c := transaction{txn: tr.txn}
		for _, r := range tr.records {
			if r.DataTID != 0 {
				r.Kind = Copied
			}
			c.records = append(c.records, r)
		}
		plain = append(plain, c)
	}
	return plain
}

// counting counts the bytes that are read before limit.
type counting struct {
	*bytes.Reader
	limit, n int64
}

func (c *counting) ReadAt(b []byte, off int64) (int, error) {
	if off < c.limit {
		c.n += int64(len(b))
	}
	return c.Reader.ReadAt(b, off)
}

func TestWalkAfter(t *testing.T) {
	for _, list := range [][]transaction{sample(), big(1, 120), big(2, 120), fakes()} {
		b, w := write(t, testHeader, 0x10000, list)
		c := &counting{Reader: bytes.NewReader(b), limit: w.Footer.IndexAt}
		r := openSegment(t, b).With(c)
		want := plainKinds(list)
		for i := len(list); i >= 0; i -= 1 + i/9 {
			at := tid.Zero
			if i > 0 {
				at = list[i-1].txn.TID
			}
			c.n = 0
			got, ends := after(t, r, at)
			if len(got) != len(want[i:]) || ends != len(got) {
				t.Fatalf("after %v: %d transactions with %d ends, want %d", at, len(got), ends, len(want[i:]))
			}
			for j := range got {
				if !slices.EqualFunc(got[j].records, want[i+j].records, sameRecord) || got[j].txn.TID != want[i+j].txn.TID || !bytes.Equal(got[j].txn.Description, want[i+j].txn.Description) {
					t.Fatalf("after %v: transaction %v is another one", at, want[i+j].txn.TID)
				}
			}
			if i == len(list)-1 && len(r.frames) > 20 && c.n > w.Footer.IndexAt/2 {
				t.Errorf("%d of %d bytes are read for the last transaction", c.n, w.Footer.IndexAt)
			}
		}
		// Backwards, frame by frame.
		found := 0
		for hi := r.f.Last; hi > 0; {
			lo := r.FrameBefore(hi + 1)
			n := 0
			for ev, err := range r.WalkAfter(lo - 1) {
				if err != nil {
					t.Fatal(err)
				}
				if ev.Txn != nil && ev.Txn.TID > hi {
					break
				}
				if ev.Txn != nil {
					n++
				}
			}
			if n == 0 {
				t.Fatalf("no transaction in %v to %v", lo, hi)
			}
			found += n
			hi = lo - 1
			if lo == r.f.First {
				break
			}
		}
		if found != len(list) {
			t.Errorf("%d transactions backwards, want %d", found, len(list))
		}
	}
}

// fakes are transactions with records that look like transactions where a frame begins.
func fakes() (list []transaction) {
	at := tid.TID(0x100)
	add := func(records ...Record) {
		for i := range records {
			records[i].TID = at
		}
		list = append(list, transaction{txn.Transaction{TID: at, Status: ' '}, records})
		at += 0x10
	}
	piece := func(s string) []byte {
		// "obj 0000000000000000 N null:00\n" has 24 bytes and the digits of N.
		b := make([]byte, 3<<20)
		for i := range b {
			b[i] = 'x'
		}
		for n := 1; n <= 2; n++ {
			copy(b[n<<20-len("obj 0000000000000000 3145728 null:00\n"):], s)
		}
		return b
	}
	add(Record{OID: 1, Data: []byte("one")})
	add(Record{OID: 0, Data: piece("txn 0000000000000100 \" \"\nuser \"\"\ndescription \"\"\nextension \"\"\n\n")})
	add(Record{OID: 0, Data: piece("obj 0000000000000000 delete\n")}, Record{OID: 1, Data: []byte("two")})
	add(Record{OID: 0, Data: piece("\n")})
	add(Record{OID: 1, Data: []byte("three")})
	return list
}

func TestWalkAfterOfCutTransactions(t *testing.T) {
	whole := sample()
	h := testHeader
	h.After, h.Continues = 0x30, true
	b, _ := write(t, h, 0x30, []transaction{{records: whole[2].records[3:]}})
	if got, ends := after(t, openSegment(t, b), 0x2f); len(got) != 1 || got[0].txn.TID != 0 || len(got[0].records) != 1 || ends != 1 {
		t.Errorf("%+v, %d ends", got, ends)
	}
	if got, ends := after(t, openSegment(t, b), 0x30); len(got) != 0 || ends != 0 {
		t.Errorf("%+v, %d ends", got, ends)
	}
}

func TestEntriesFrom(t *testing.T) {
	b, _ := write(t, testHeader, 0x10000, manyEntries(50_000))
	r := openSegment(t, b)
	var all []Entry
	for e, err := range r.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, e)
	}
	if r.Blocks() < 5 {
		t.Fatalf("%d blocks", r.Blocks())
	}
	for _, from := range []tid.OID{0, 1, 7, 999, 1000, 4999, 5000} {
		i, _ := slices.BinarySearchFunc(all, from, func(e Entry, oid tid.OID) int { return cmp.Compare(e.OID, oid) })
		seq := r.EntriesFrom(from)
		for range 2 { // it can be used again
			n := i
			for e, err := range seq {
				if err != nil || e != all[n] {
					t.Fatalf("from %v: %+v, %v, want %+v", from, e, err, all[n])
				}
				n++
			}
			if n != len(all) {
				t.Errorf("from %v: %d entries, want %d", from, n-i, len(all)-i)
			}
		}
	}
}

// manyEntries is a history of small records.
func manyEntries(n int) (list []transaction) {
	for i := range n / 50 {
		at := tid.TID(0x100 + i)
		tr := transaction{txn: txn.Transaction{TID: at, Status: ' '}}
		for j := range 50 {
			tr.records = append(tr.records, Record{OID: tid.OID((i*50 + j*101) % 5000), TID: at, Data: []byte{byte(i)}})
		}
		list = append(list, tr)
	}
	return list
}
