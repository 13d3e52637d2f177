package merge_test

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"path/filepath"
	"slices"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/pickle"
	"github.com/neozodb/neo/importer/merge"
)

func mustNew(t testing.TB, sources ...merge.Source) *merge.Database {
	t.Helper()
	d, err := merge.New(sources)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// grow adds what nothing may see to a source: changes of all that it has, a deletion, new
// objects, and a transaction without records.
func grow(t testing.TB, m *txntest.Memory, next tid.OID) {
	t.Helper()
	last, err := m.LastTID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range tid.TID(4) {
		tr := txn.Transaction{TID: last + 1 + i, Status: txn.Committed, Description: []byte("later")}
		var records []txn.Record
		for oid := range next + 3 {
			switch i {
			case 0, 1:
				records = append(records, txn.Record{OID: oid, TID: tr.TID, Data: []byte("later")})
			case 2:
				records = append(records, txn.Record{OID: oid, TID: tr.TID})
			}
		}
		tr.Records = txn.Slice(records)
		if err := m.Append(&tr); err != nil {
			t.Fatal(err)
		}
	}
}

// copyOf returns a history in memory.
func copyOf(t testing.TB, h txn.History) *txntest.Memory {
	t.Helper()
	m := &txntest.Memory{}
	for tr, err := range h.Transactions(t.Context(), tid.Zero, tid.Max) {
		if err == nil {
			err = m.Append(tr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func lastOf(t testing.TB, h txn.History) tid.TID {
	t.Helper()
	last, err := h.LastTID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return last
}

// file writes a history to a Data.fs and opens it.
func file(t testing.TB, h txn.History) *fsformat.Reader {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Data.fs")
	w, err := fsformat.Create(path, fsformat.WriterOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	for tr, err := range h.Transactions(t.Context(), tid.Zero, tid.Max) {
		if err == nil {
			err = w.Append(tr)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return openFile(t, path)
}

func openFile(t testing.TB, path string) *fsformat.Reader {
	t.Helper()
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	if _, err := r.UseIndex(t.Context(), "", nil); err != nil {
		t.Fatal(err)
	}
	return r
}

// objects is above all ids of the histories of txntest, and of what it asks for.
const objects = 60

func TestOneSource(t *testing.T) {
	txntest.Run(t, func(t *testing.T, h txn.History) txn.Database {
		return mustNew(t, merge.Source{Name: "root", Database: copyOf(t, h), Last: lastOf(t, h), Next: objects})
	})
}

func TestOneSourceThatHasGrown(t *testing.T) {
	for _, next := range []tid.OID{objects, 41} {
		txntest.Run(t, func(t *testing.T, h txn.History) txn.Database {
			m := copyOf(t, h)
			last := lastOf(t, m)
			grow(t, m, objects)
			return mustNew(t, merge.Source{Name: "root", Database: m, Last: last, Next: next})
		})
	}
}

func TestOneFileThatHasGrown(t *testing.T) {
	txntest.Run(t, func(t *testing.T, h txn.History) txn.Database {
		m := copyOf(t, h)
		last := lastOf(t, m)
		grow(t, m, objects)
		return mustNew(t, merge.Source{Name: "root", Database: file(t, m), Last: last, Next: objects})
	})
}

// A history that is split by object id is merged again.
func TestSplit(t *testing.T) {
	for _, tt := range []struct {
		shifts []tid.OID
		grown  bool
		files  bool
	}{
		{shifts: []tid.OID{0, 2}},
		{shifts: []tid.OID{0, 20}, grown: true},
		{shifts: []tid.OID{0, 1, 3, 3, 25, 100}, grown: true},
		{shifts: []tid.OID{0, 20}, grown: true, files: true},
		{shifts: []tid.OID{0}, grown: true}, // rewritten because of a mount point
	} {
		t.Run(fmt.Sprint(tt), func(t *testing.T) {
			txntest.Run(t, func(t *testing.T, h txn.History) txn.Database {
				s := split(t, h, tt.shifts)
				var sources []merge.Source
				for i, m := range s.parts {
					src := merge.Source{
						Name: fmt.Sprintf("part%d", i), Database: m, Last: lastOf(t, m), Shift: tt.shifts[i],
						Next: append(tt.shifts[1:], 1000)[i] - tt.shifts[i],
					}
					if i == 0 {
						src.Mapping = map[tid.OID]tid.OID{0: 7}
					}
					if tt.grown {
						grow(t, m, src.Next)
					}
					if tt.files {
						src.Database = file(t, m)
					}
					sources = append(sources, src)
				}
				slices.Reverse(sources) // New orders them
				s.Database = mustNew(t, sources...)
				return s
			})
		})
	}
}

// A splitHistory shows the merged database of the parts of a history as if their records were
// those of the history. In the parts each is a pickle with a reference to the object
// itself, which must have become one to its merged number.
type splitHistory struct {
	txn.Database
	parts  []*txntest.Memory
	shifts []tid.OID
	order  map[tid.TID][]tid.OID // of the records of a transaction
}

var recordClass = pickle.Global{Module: "m", Name: "C"}

func makeRecord(t testing.TB, protocol int, state pickle.Value) []byte {
	t.Helper()
	b, err := pickle.Append(nil, protocol, recordClass)
	if err == nil {
		b, err = pickle.Append(b, protocol, state)
	}
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func part(shifts []tid.OID, oid tid.OID) int {
	i := 0
	for i+1 < len(shifts) && shifts[i+1] <= oid {
		i++
	}
	return i
}

func split(t *testing.T, h txn.History, shifts []tid.OID) *splitHistory {
	t.Helper()
	s := &splitHistory{shifts: shifts, order: map[tid.TID][]tid.OID{}}
	for range shifts {
		s.parts = append(s.parts, &txntest.Memory{})
	}
	for tr, err := range h.Transactions(t.Context(), tid.Zero, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		records := make([][]txn.Record, len(shifts))
		for r := range tr.Records {
			i := part(shifts, r.OID)
			own := *r
			own.OID -= shifts[i]
			if own.Data != nil {
				own.Data = makeRecord(t, 3, pickle.Tuple{r.Data, pickle.PersID{ID: pickle.Tuple{own.OID.Bytes(), recordClass}}})
			}
			records[i] = append(records[i], own)
			s.order[tr.TID] = append(s.order[tr.TID], r.OID)
		}
		for i, rs := range records {
			if len(rs) == 0 && (i > 0 || len(s.order[tr.TID]) > 0) {
				continue
			}
			p := *tr
			p.Records = txn.Slice(rs)
			if err := s.parts[i].Append(&p); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

// unwrap returns what was put into a record, if its reference is right.
func (s *splitHistory) unwrap(oid tid.OID, data []byte) ([]byte, error) {
	if data == nil {
		return nil, nil
	}
	_, state, err := pickle.DecodeRecord(data)
	if err != nil {
		return nil, err
	}
	fields := state.(pickle.Tuple)
	want := oid
	if oid == 0 {
		want = 7 // a mount point
	}
	ref := fields[1].(pickle.PersID).ID
	if pair, ok := ref.(pickle.Tuple); ok && want == oid {
		ref = pair[0]
	}
	if got, ok := ref.([]byte); !ok || !bytes.Equal(got, want.Bytes()) {
		return nil, fmt.Errorf("object %v refers to %v, want %v", oid, fields[1], want)
	}
	return fields[0].([]byte), nil
}

func (s *splitHistory) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	r, err := s.Database.LoadBefore(ctx, oid, before)
	if err == nil {
		r.Data, err = s.unwrap(oid, r.Data)
	}
	return r, err
}

func (s *splitHistory) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	r, err := s.Database.LoadAt(ctx, oid, at)
	if err == nil {
		r.Data, err = s.unwrap(oid, r.Data)
	}
	return r, err
}

// Transactions gives the records the order they had, and fails unless they were in that of the
// parts.
func (s *splitHistory) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for tr, err := range s.Database.Transactions(ctx, after, upTo) {
			if err != nil {
				yield(nil, err)
				return
			}
			want := slices.Clone(s.order[tr.TID])
			slices.SortStableFunc(want, func(a, b tid.OID) int { return part(s.shifts, a) - part(s.shifts, b) })
			records := make([]txn.Record, len(want))
			n := 0
			for r, err := range tr.Records {
				if err == nil && (n >= len(want) || r.OID != want[n]) {
					err = fmt.Errorf("transaction %v: record %d is one of %v, want %v", tr.TID, n, r.OID, want)
				}
				own := tid.OID(0)
				if err == nil {
					own = r.OID
					c := *r
					c.Data, err = s.unwrap(own, r.Data)
					records[slices.Index(s.order[tr.TID], own)] = c
				}
				if err != nil {
					yield(nil, err)
					return
				}
				n++
			}
			out := *tr
			out.Records = txn.Slice(records[:n])
			if !yield(&out, nil) {
				return
			}
		}
	}
}
