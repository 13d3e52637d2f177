package fsformat

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
)

// retag returns a file whose transactions have other ids.
func retag(t *testing.T, file []byte, ids []tid.TID) []byte {
	t.Helper()
	b := bytes.Clone(file)
	for tr, err := range openBytes(t, file).Scan(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		binary.BigEndian.PutUint64(b[tr.Head.Pos:], uint64(ids[0]))
		for rec, err := range tr.Places {
			if err != nil {
				t.Fatal(err)
			}
			binary.BigEndian.PutUint64(b[rec.Pos+8:], uint64(ids[0]))
		}
		ids = ids[1:]
	}
	return b
}

// content is what a reader yields of a file, with the transactions named by their
// places in a list of ids.
func content(t *testing.T, r *Reader, after tid.TID, ids []tid.TID) (out []any) {
	t.Helper()
	number := map[tid.TID]int{0: -1}
	for i, id := range ids {
		number[id] = i
	}
	for tr, err := range r.Transactions(t.Context(), after, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, number[tr.TID], string(tr.Description))
		for rec, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, rec.OID, number[rec.TID], number[rec.DataTID], string(rec.Data))
		}
	}
	return out
}

// Whatever the ids of a file: its transactions arrive in its order, with increasing
// ids and with the links between them; or the file is refused.
func TestRenumber(t *testing.T) {
	file := readFile(t, samples+"02-undo.fs")
	var ids []tid.TID
	for tr, err := range openBytes(t, file).Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, tr.TID)
	}
	want := content(t, openBytes(t, file), 0, ids)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		old := make([]tid.TID, len(ids))
		for i := range old {
			old[i] = ids[0] + tid.TID(rng.IntN(2*len(ids)))
		}
		b := retag(t, file, old)
		var renumbered []Renumbered
		fresh := make([]tid.TID, len(old))
		for i, last := 0, tid.Zero; i < len(old); i++ {
			fresh[i] = max(old[i], last+1)
			last = fresh[i]
			if fresh[i] != old[i] {
				renumbered = append(renumbered, Renumbered{0, old[i], fresh[i]})
			}
		}
		r, err := NewReader(bytes.NewReader(b), int64(len(b)), "Data.fs", Options{Renumber: true})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, content(t, r, 0, fresh)); diff != "" {
			t.Fatalf("ids %v (-want +got):\n%s", old, diff)
		}
		got, err := r.Renumbered(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got = slices.Clone(got)
		for i := range got {
			if h := parseHeader(b[got[i].Pos:], got[i].Pos); h.TID != got[i].Old {
				t.Errorf("ids %v: at %d there is transaction %v, not %v", old, got[i].Pos, h.TID, got[i].Old)
			}
			got[i].Pos = 0
		}
		if diff := cmp.Diff(renumbered, got); diff != "" {
			t.Errorf("ids %v (-want +got):\n%s", old, diff)
		}
		if last, err := r.LastTID(t.Context()); last != fresh[len(fresh)-1] || err != nil {
			t.Errorf("ids %v: last %v, %v", old, last, err)
		}
		// From anywhere, in both directions.
		for i, id := range fresh {
			if n := len(content(t, r, id, fresh)); i == len(fresh)-1 && n != 0 || i < len(fresh)-1 && n == 0 {
				t.Errorf("ids %v: %d items after %v", old, n, id)
			}
		}
		i := len(fresh)
		for tr, err := range r.ScanBackwards(t.Context()) {
			if i--; err != nil || tr.TID != fresh[i] {
				t.Fatalf("ids %v backwards: %v, want %v; %v", old, tr.TID, fresh[i], err)
			}
		}
		// Loads know the new ids, too.
		if _, err := r.UseIndex(t.Context(), t.TempDir()+"/none", nil); err != nil {
			t.Fatal(err)
		}
		for oid := range tid.OID(3) {
			history, err := chainOf(t, r, oid)
			if err != nil {
				t.Fatalf("ids %v: %v", old, err)
			}
			for k, rev := range history {
				if k > 0 && rev.TID >= history[k-1].TID {
					t.Errorf("ids %v: object %v: revision %v after %v", old, oid, rev.TID, history[k-1].TID)
				}
			}
		}
		// Without the option: all of it, or an error.
		plain := openBytes(t, b)
		err = plain.CheckOrder(t.Context(), 0)
		if e, ok := errors.AsType[*CorruptError](err); len(renumbered) > 0 && (!ok || !errors.Is(err, ErrOrder) || e.Offset == 0 || e.TID == 0) || len(renumbered) == 0 && err != nil {
			t.Errorf("ids %v: %v", old, err)
		}
		last, err := plain.LastTID(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, err = range plain.Transactions(t.Context(), 0, last) {
			if err != nil {
				break
			}
			n++
		}
		if n < len(old) && !errors.Is(err, ErrOrder) {
			t.Errorf("ids %v: %d transactions up to the last one, %v; %v", old, n, last, err)
		}
	}
}

func TestRenumberEndsWithTheGreatestID(t *testing.T) {
	b := put64(readFile(t, samples+"damaged/tsreduction.fs"), 4, uint64(tid.Max))
	b = put64(b, 4+23+8, uint64(tid.Max))
	r, err := NewReader(bytes.NewReader(b), int64(len(b)), "Data.fs", Options{Renumber: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Tail(t.Context()); !errors.Is(err, ErrOrder) {
		t.Error(err)
	}
}

// A file undone in place has ids that nothing is said about.
func TestOrderWithUndoneTransactions(t *testing.T) {
	b := bytes.Clone(readFile(t, samples+"damaged/tsreduction.fs"))
	b[278+16] = 'u' // the third, whose id is the greatest
	r := openBytes(t, b)
	if err := r.CheckOrder(t.Context(), 0); !errors.Is(err, ErrOrder) {
		t.Error(err)
	}
	last, _ := r.LastTID(t.Context())
	var err error
	for _, err = range r.Transactions(t.Context(), 0, last) {
	}
	if !errors.Is(err, ErrOrder) {
		t.Error(err)
	}
}

// A transaction that a server finishes after the last one was found is not out of order.
func TestFinishedSince(t *testing.T) {
	b := readFile(t, samples+"02-undo.fs")
	whole := openSample(t, "02-undo")
	var heads []Header
	for tr, err := range whole.Scan(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, tr.Head)
	}
	last := heads[len(heads)-1]
	b[last.Pos+16] = statusVoted
	r, err := NewReader(bytes.NewReader(b), int64(len(b)), "Data.fs", Options{})
	if err != nil {
		t.Fatal(err)
	}
	tail, err := r.Tail(t.Context())
	if err != nil || tail.End != last.Pos {
		t.Fatalf("Tail = %+v, %v", tail, err)
	}
	b[last.Pos+16] = last.Status
	n := 0
	for _, err := range r.Transactions(t.Context(), 0, tail.LastTID) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != len(heads)-1 {
		t.Errorf("%d transactions up to the last one that was found, want %d", n, len(heads)-1)
	}
}
