package merge_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
	"github.com/neozodb/neo/fsformat/pickle"
	"github.com/neozodb/neo/importer/merge"
)

// memory makes a history of transactions 10, 20, …
func memory(t testing.TB, transactions ...[]txn.Record) *txntest.Memory {
	t.Helper()
	m := &txntest.Memory{}
	for i, records := range transactions {
		at := tid.TID(i+1) * 10
		for j := range records {
			records[j].TID = at
		}
		if err := m.Append(&txn.Transaction{TID: at, Status: txn.Committed, Records: txn.Slice(records)}); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestNewRefuses(t *testing.T) {
	m := &txntest.Memory{}
	a := merge.Source{Name: "a", Database: m, Next: 10}
	b := merge.Source{Name: "b", Database: m, Next: 10, Shift: 10}
	for _, tt := range []struct {
		name string
		make func(a, b *merge.Source)
		want string
	}{
		{"overlap", func(_, b *merge.Source) { b.Shift = 9 }, "sources a and b have object ids in common: from 0000000000000000 to 000000000000000a, and from 0000000000000009 to 0000000000000013"},
		{"same name", func(_, b *merge.Source) { b.Name = "a" }, "source a: another one has the same name"},
		{"same database name", func(_, b *merge.Source) { b.DatabaseName = "a" }, `sources a and b: both are called "a" by other databases, so it is not known which one a reference means`},
		{"no database", func(a, _ *merge.Source) { a.Database = nil }, "source a: it has no database"},
		{"no end", func(_, b *merge.Source) { b.Last = tid.Invalid }, "source b: ffffffffffffffff is no id of a last transaction"},
		{"too many", func(_, b *merge.Source) { b.Shift = tid.MaxOID - 10 }, "source b: its object ids, up to 000000000000000a and shifted by 7ffffffffffffff5, would pass 7f00000000000000"},
		{"overflow", func(_, b *merge.Source) { b.Shift, b.Next = 10, tid.InvalidOID-3 }, "source b: its object ids, up to fffffffffffffffc and shifted by 000000000000000a, would pass 7f00000000000000"},
		{"mount point that is no object", func(a, _ *merge.Source) { a.Mapping = map[tid.OID]tid.OID{10: 12} }, "source a: mount point 000000000000000a is none of its objects, which are below 000000000000000a"},
		{"mount of nothing", func(a, _ *merge.Source) { a.Mapping = map[tid.OID]tid.OID{1: 20} }, "source a: mount point 0000000000000001 leads to 0000000000000014, which is an object of no source"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			a, b := a, b
			tt.make(&a, &b)
			if _, err := merge.New([]merge.Source{a, b}); err == nil || err.Error() != tt.want {
				t.Errorf("error %v, want %s", err, tt.want)
			}
		})
	}
	if _, err := merge.New(nil); err == nil {
		t.Error("no sources are taken")
	}
	d := mustNew(t, b, a)
	if d.Next() != 20 || d.End() != 0 {
		t.Errorf("Next = %v, End = %v", d.Next(), d.End())
	}
}

// A single source gives its own bytes, and costs nothing for each record.
func TestOneSourceIsGivenAsItIs(t *testing.T) {
	records := make([]txn.Record, 5000)
	for i := range records {
		records[i] = txn.Record{OID: tid.OID(i), Data: []byte("no pickle")}
	}
	records[3].Data, records[4].Data = nil, []byte{}
	m := memory(t, records)
	d := mustNew(t, merge.Source{Name: "root", Database: m, Last: 10, Next: 5000})
	var own []*byte
	for tr := range m.Transactions(t.Context(), 0, tid.Max) {
		for r := range tr.Records {
			if len(r.Data) > 0 {
				own = append(own, &r.Data[0])
			}
		}
	}
	read := func() {
		n := 0
		for tr, err := range d.Transactions(t.Context(), 0, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			for r, err := range tr.Records {
				if err != nil {
					t.Fatal(err)
				}
				if len(r.Data) > 0 {
					if &r.Data[0] != own[n] {
						t.Fatalf("the data of %v were copied", r.OID)
					}
					n++
				}
			}
		}
		if n != len(own) {
			t.Fatalf("%d records, want %d", n, len(own))
		}
	}
	if n := testing.AllocsPerRun(5, read); n > 100 {
		t.Errorf("%v allocations for %d records", n, len(records))
	}
	rev, err := d.LoadBefore(t.Context(), 7, tid.Max)
	if err != nil || &rev.Data[0] != own[5] {
		t.Errorf("LoadBefore: %q, %v, want the data of the source", rev.Data, err)
	}
}

// Rewriting allocates nothing for each record.
func TestMergingAllocatesNothingForRecords(t *testing.T) {
	records := make([]txn.Record, 2000)
	for i := range records {
		oid := tid.OID(i)
		records[i] = txn.Record{OID: oid, Data: makeRecord(t, 3, pickle.PersID{ID: pickle.Tuple{oid.Bytes(), recordClass}})}
	}
	d := mustNew(t, merge.Source{Name: "b", Database: memory(t, records), Last: 10, Shift: 7, Next: 2000})
	if n := testing.AllocsPerRun(5, func() {
		for tr := range d.Transactions(t.Context(), 0, tid.Max) {
			for _, err := range tr.Records {
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	}); n > 200 {
		t.Errorf("%v allocations for %d records", n, len(records))
	}
}

func TestBadRecord(t *testing.T) {
	good := func(data string) []byte { return makeRecord(t, 3, []byte(data)) }
	bad := []byte("cm\nC\n.\xff")
	root := memory(t,
		[]txn.Record{{OID: 0, Data: good("root")}},
		[]txn.Record{{OID: 1, Data: good("one")}})
	child := memory(t,
		[]txn.Record{{OID: 0, Data: good("child")}, {OID: 1, Data: bad}, {OID: 2, Data: good("two")}},
		[]txn.Record{{OID: 1, Data: bad, DataTID: 10}},
		[]txn.Record{{OID: 1, Data: good("mended")}, {OID: 2, Data: good("two again")}})
	d := mustNew(t,
		merge.Source{Name: "root", Database: root, Last: 20, Next: 5},
		merge.Source{Name: "child", Database: child, Last: 30, Shift: 5, Next: 5})

	const message = "source child: object 0000000000000006, there 0000000000000001, in transaction 000000000000000a: rewriting its references: pickle: offset 6: unknown opcode 0xff"
	check := func(what string, err error) {
		t.Helper()
		r, ok := errors.AsType[*merge.RecordError](err)
		if !ok || err.Error() != message || r.Source != "child" || r.OID != 1 || r.Merged != 6 || r.TID != 10 {
			t.Errorf("%s: %v, want %s", what, err, message)
		}
		if _, ok := errors.AsType[*pickle.Error](err); !ok {
			t.Errorf("%s: %v does not say why", what, err)
		}
	}
	_, err := d.LoadBefore(t.Context(), 6, 11)
	check("LoadBefore", err)
	_, err = d.LoadAt(t.Context(), 6, 10)
	check("LoadAt", err)
	for _, oid := range []tid.OID{0, 1, 5, 6, 7} {
		if _, err := d.LoadBefore(t.Context(), oid, tid.Max); err != nil {
			t.Errorf("object %v: %v", oid, err)
		}
	}
	if list, err := d.Revisions(t.Context(), 6, 10); len(list) != 3 || err != nil {
		t.Errorf("Revisions: %v, %v", list, err)
	}

	read := func(opt merge.ScanOptions) (out []string, err error) {
		for tr, err := range d.Scan(t.Context(), 0, tid.Max, opt) {
			if err != nil {
				return out, err
			}
			for r, err := range tr.Records {
				if err != nil {
					return out, err
				}
				what := "deleted"
				if r.Data != nil {
					_, state, err := pickle.DecodeRecord(r.Data)
					if err != nil {
						t.Fatal(err)
					}
					what = fmt.Sprintf("%s", state)
				}
				out = append(out, fmt.Sprintf("%d/%d/%d=%s", tr.TID, r.OID, r.DataTID, what))
			}
		}
		return out, nil
	}
	got, err := read(merge.ScanOptions{})
	check("Scan", err)
	if s := strings.Join(got, " "); s != "10/0/0=root 10/5/0=child" {
		t.Errorf("before the bad record: %s", s)
	}
	var asked []string
	got, err = read(merge.ScanOptions{OnBad: func(r *merge.RecordError) ([]byte, bool) {
		asked = append(asked, fmt.Sprintf("%s %d %d %d", r.Source, r.OID, r.Merged, r.TID))
		return nil, true
	}})
	if s := strings.Join(got, " "); err != nil || s != "10/0/0=root 10/5/0=child 10/7/0=two 20/1/0=one 30/6/0=mended 30/7/0=two again" {
		t.Errorf("bad records left out: %s, %v", s, err)
	}
	if s := strings.Join(asked, ", "); s != "child 1 6 10, child 1 6 20" {
		t.Errorf("asked about %s", s)
	}
	got, err = read(merge.ScanOptions{OnBad: func(r *merge.RecordError) ([]byte, bool) {
		if r.TID == 10 {
			return good("instead"), false
		}
		return nil, false
	}})
	if s := strings.Join(got, " "); err != nil || s != "10/0/0=root 10/5/0=child 10/6/0=instead 10/7/0=two 20/1/0=one 20/6/0=deleted 30/6/0=mended 30/7/0=two again" {
		t.Errorf("bad records replaced: %s, %v", s, err)
	}
}

// A reference to a number above all objects leads to nothing, before and after. It must not
// lead to an object of the next source, nor to one that clients create.
func TestDanglingReferences(t *testing.T) {
	rec := func(oid tid.OID) []byte { return makeRecord(t, 3, pickle.PersID{ID: oid.Bytes()}) }
	root := memory(t, []txn.Record{{OID: 0, Data: rec(5)}, {OID: 1, Data: rec(tid.InvalidOID)}, {OID: 2, Data: rec(4)}})
	child := memory(t, []txn.Record{{OID: 0, Data: rec(5)}, {OID: 1, Data: makeRecord(t, 3,
		pickle.PersID{ID: []pickle.Value{"n", pickle.Tuple{"root", tid.OID(9).Bytes()}}})}})
	d := mustNew(t,
		merge.Source{Name: "root", Database: root, Last: 10, Next: 5},
		merge.Source{Name: "child", Database: child, Last: 10, Shift: 5, Next: 5})
	var notes merge.Notes
	var got []string
	for tr, err := range d.Scan(t.Context(), 0, tid.Max, merge.ScanOptions{Notes: &notes}) {
		if err != nil {
			t.Fatal(err)
		}
		for r, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			_, state, err := pickle.DecodeRecord(r.Data)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%x", state.(pickle.PersID).ID))
		}
	}
	if s := strings.Join(got, " "); s != "7f00000000000005 7f000000000000ff 0000000000000004 7f0000000000000a 7f00000000000009" {
		t.Errorf("references to %s", s)
	}
	if notes.Dangling != 4 {
		t.Errorf("notes %+v", notes)
	}
}

func TestNotes(t *testing.T) {
	ref := func(db string) []byte {
		return makeRecord(t, 3, pickle.PersID{ID: []pickle.Value{"n", pickle.Tuple{db, tid.OID(1).Bytes()}}})
	}
	make := func(transactions ...txn.Transaction) *txntest.Memory {
		m := &txntest.Memory{}
		for _, tr := range transactions {
			if err := m.Append(&tr); err != nil {
				t.Fatal(err)
			}
		}
		return m
	}
	many := []txn.Record{{OID: 0, Data: ref("x")}}
	for i := range 1010 {
		many = append(many, txn.Record{OID: tid.OID(i + 1), Data: ref(fmt.Sprint("db", i))})
	}
	a := make(txn.Transaction{TID: 1, User: []byte("u")}, txn.Transaction{TID: 2}, txn.Transaction{TID: 3, Records: txn.Slice(many)})
	b := make(txn.Transaction{TID: 1, User: []byte("u")}, txn.Transaction{TID: 2, Description: []byte("d")}, txn.Transaction{TID: 3, Extension: []byte("e")}, txn.Transaction{TID: 4})
	d := mustNew(t,
		merge.Source{Name: "a", Database: a, Last: 3, Next: 2000},
		merge.Source{Name: "b", Database: b, Last: 4, Shift: 2000, Next: 1})
	var notes merge.Notes
	for tr, err := range d.Scan(t.Context(), 0, tid.Max, merge.ScanOptions{Notes: &notes}) {
		if err != nil {
			t.Fatal(err)
		}
		for _, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if notes.Joined != 3 || notes.Dropped != 2 || notes.FirstDropped != 2 || notes.Foreign["x"] != 1 || notes.Foreign[merge.OtherNames] != 11 || len(notes.Foreign) != 1001 {
		t.Errorf("%d joined, %d dropped from %v on, %d names, %d others", notes.Joined, notes.Dropped, notes.FirstDropped, len(notes.Foreign), notes.Foreign[merge.OtherNames])
	}
}

// An object that is twice in a transaction of a source stays so, in order: the last counts.
func TestTwiceInATransaction(t *testing.T) {
	rec := func(s string) []byte { return makeRecord(t, 3, &pickle.List{Items: []pickle.Value{[]byte(s)}}) }
	a := memory(t, []txn.Record{{OID: 0, Data: rec("a")}})
	b := memory(t, []txn.Record{{OID: 1, Data: rec("first")}, {OID: 0, Data: rec("b")}, {OID: 1, Data: rec("last")}})
	d := mustNew(t,
		merge.Source{Name: "a", Database: a, Last: 10, Next: 1},
		merge.Source{Name: "b", Database: b, Last: 10, Shift: 1, Next: 2})
	got := strings.Join(lines(t, d, 0, tid.Max, false), "\n")
	want := fmt.Sprintf("data %x", "first")
	if i, j := strings.Index(got, want), strings.Index(got, fmt.Sprintf("data %x", "last")); i < 0 || j < i {
		t.Errorf("%s\nwant the first of two, then the last", got)
	}
}

// No revisions are none, whatever the number that is asked for.
func TestNoRevisions(t *testing.T) {
	m := memory(t, []txn.Record{{OID: 0, Data: []byte("x")}})
	d := mustNew(t, merge.Source{Name: "a", Database: m, Last: 10, Next: 1})
	for _, n := range []int{0, -1} {
		if list, err := d.Revisions(t.Context(), 0, n); len(list) != 0 || err != nil {
			t.Errorf("Revisions(0, %d) = %v, %v", n, list, err)
		}
	}
}

// What has no references is not rewritten: a record of no bytes, and a deletion.
func TestRecordsWithoutBytes(t *testing.T) {
	m := memory(t, []txn.Record{{OID: 0, Data: []byte{}}, {OID: 1}})
	d := mustNew(t, merge.Source{Name: "a", Database: m, Last: 10, Shift: 3, Next: 2})
	n := 0
	for tr := range d.Transactions(t.Context(), 0, tid.Max) {
		for r, err := range tr.Records {
			if err != nil || len(r.Data) != 0 || (r.Data == nil) != (r.OID == 4) {
				t.Errorf("%+v, %v", r, err)
			}
			n++
		}
	}
	if rev, err := d.LoadBefore(t.Context(), 3, tid.Max); n != 2 || err != nil || rev.Data == nil || len(rev.Data) != 0 {
		t.Errorf("%d records, then %+v, %v", n, rev, err)
	}
}

// A transaction of several sources is as large as its parts.
func TestBackwardsAddsSizes(t *testing.T) {
	a, b := file(t, memory(t, nil, nil)), file(t, memory(t, nil, nil))
	sizes := func(db txn.Database) (out []int64) {
		for info, err := range db.Backwards(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, info.Size)
		}
		return out
	}
	d := mustNew(t, merge.Source{Name: "a", Database: a, Last: 20, Next: 1}, merge.Source{Name: "b", Database: b, Last: 10, Shift: 1, Next: 1})
	own, got := sizes(a), sizes(d)
	if own[0] == 0 || len(got) != 2 || got[0] != own[0] || got[1] != 2*own[1] {
		t.Errorf("sizes %v, want those of %v, the second twice", got, own)
	}
}

// A broken is a database that gives what it has been told to give.
type broken struct {
	*txntest.Memory
	ids   []tid.TID
	err   error
	begun *int // iterations that have not ended
}

func (b broken) Transactions(context.Context, tid.TID, tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		if b.begun != nil {
			*b.begun++
			defer func() { *b.begun-- }()
		}
		for _, id := range b.ids {
			if !yield(&txn.Transaction{TID: id}, nil) {
				return
			}
		}
		if b.err != nil {
			yield(nil, b.err)
		}
	}
}

func (b broken) Backwards(context.Context) iter.Seq2[*txn.Info, error] {
	return func(yield func(*txn.Info, error) bool) {
		if b.begun != nil {
			*b.begun++
			defer func() { *b.begun-- }()
		}
		for _, id := range b.ids {
			if !yield(&txn.Info{TID: id}, nil) {
				return
			}
		}
		if b.err != nil {
			yield(nil, b.err)
		}
	}
}

func TestErrorsNameTheSource(t *testing.T) {
	boom := errors.New("boom")
	for _, tt := range []struct {
		name    string
		forward []tid.TID
		err     error
		want    string
	}{
		{"error", []tid.TID{1}, boom, "source b: boom"},
		{"equal ids", []tid.TID{1, 2, 2}, nil, "source b: transaction 0000000000000002 comes after 0000000000000002: the ids must increase"},
		{"decreasing ids", []tid.TID{1, 5, 2}, nil, "source b: transaction 0000000000000002 comes after 0000000000000005: the ids must increase"},
		{"an id above what was asked for", []tid.TID{1, 11}, nil, "source b: transaction 000000000000000b comes after 0000000000000001, though only those up to 000000000000000a were asked for"},
	} {
		for _, alone := range []bool{true, false} {
			t.Run(fmt.Sprint(tt.name, alone), func(t *testing.T) {
				b := merge.Source{Name: "b", Database: broken{ids: tt.forward, err: tt.err}, Last: 10, Next: 10}
				sources := []merge.Source{b}
				if !alone {
					sources = append(sources, merge.Source{Name: "a", Database: memory(t, nil, nil), Last: 20, Shift: 10, Next: 5})
				}
				var err error
				for _, err = range mustNew(t, sources...).Transactions(t.Context(), 0, tid.Max) {
				}
				if err == nil || err.Error() != tt.want || tt.err != nil && !errors.Is(err, tt.err) {
					t.Errorf("error %v, want %s", err, tt.want)
				}
			})
		}
	}
	for _, alone := range []bool{true, false} {
		sources := []merge.Source{{Name: "b", Database: broken{ids: []tid.TID{2, 3}}, Last: 10, Next: 10}}
		if !alone {
			sources = append(sources, merge.Source{Name: "a", Database: memory(t, nil), Last: 20, Shift: 10, Next: 5})
		}
		var err error
		for _, err = range mustNew(t, sources...).Backwards(t.Context()) {
		}
		if want := "source b: transaction 0000000000000003 comes before 0000000000000002: the ids must increase"; err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}

		// An object whose number the mapping has given to another source.
		sources[0].Database = memory(t, []txn.Record{{OID: 0, Data: makeRecord(t, 3, nil)}, {OID: 10, Data: makeRecord(t, 3, nil)}})
		d := mustNew(t, sources...)
		for tr := range d.Transactions(t.Context(), 0, tid.Max) {
			for _, err = range tr.Records {
			}
			break
		}
		const beyond = "source b: object 000000000000000a %s: when the import began, all of its objects were below 000000000000000a: check the source, and begin the import again"
		if want := fmt.Sprintf(beyond, "in transaction 000000000000000a"); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
		for _, err = range d.OIDs(t.Context(), tid.Max, 0) {
			if err != nil {
				break
			}
		}
		if want := fmt.Sprintf(beyond, "at 000000000000000a"); err == nil || err.Error() != want {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	d := mustNew(t, merge.Source{Name: "a", Database: memory(t, nil), Last: 10, Next: 5},
		merge.Source{Name: "b", Database: memory(t, nil), Last: 10, Next: 10, Shift: 10})
	for oid, want := range map[tid.OID]string{
		7:  "object 0000000000000007 is of no source: no such object",
		20: "object 0000000000000014 is of no source: no such object",
		12: "source b: object 000000000000000c, there 0000000000000002: object 0000000000000002: no such object",
	} {
		if _, err := d.LoadBefore(t.Context(), oid, tid.Max); err == nil || err.Error() != want || !errors.Is(err, txn.ErrNoSuchObject) {
			t.Errorf("LoadBefore(%d): %v, want %s", oid, err, want)
		}
	}
}

// When a reader stops, no source goes on, nor after an error of one.
func TestSourcesAreStopped(t *testing.T) {
	begun, most := 0, 0
	var sources []merge.Source
	for i := range 3 {
		b := broken{ids: []tid.TID{1, 2, 3}, begun: &begun}
		sources = append(sources, merge.Source{Name: fmt.Sprint(i), Database: b, Last: 3, Shift: tid.OID(i), Next: 1})
	}
	d := mustNew(t, sources...)
	for range d.Transactions(t.Context(), 0, tid.Max) {
		most = max(most, begun)
		break
	}
	for range d.Transactions(t.Context(), 0, tid.Max) {
	}
	if begun != 0 || most != 3 {
		t.Errorf("%d of %d sources go on", begun, most)
	}
	for i := range sources {
		b := sources[i].Database.(broken)
		b.ids = []tid.TID{3, 2, 1}
		sources[i].Database = b
	}
	d = mustNew(t, sources...)
	for range d.Backwards(t.Context()) {
		most = begun
		break
	}
	if begun != 0 || most != 3 {
		t.Errorf("Backwards: %d of %d sources go on", begun, most)
	}
	for _, err := range d.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			most = 0
		}
	}
	if begun != 0 || most != 0 {
		t.Errorf("%d sources go on after an error", begun)
	}
}

func BenchmarkTransactions(b *testing.B) {
	m := txntest.Random(1, 2000, 500)
	f := file(b, m)
	read := func(b *testing.B, h txn.History) {
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			for tr, err := range h.Transactions(b.Context(), 0, tid.Max) {
				if err != nil {
					b.Fatal(err)
				}
				for r, err := range tr.Records {
					if err != nil {
						b.Fatal(err)
					}
					n += len(r.Data)
				}
			}
			b.SetBytes(int64(n))
		}
	}
	b.Run("direct", func(b *testing.B) { read(b, f) })
	b.Run("one source", func(b *testing.B) {
		read(b, mustNew(b, merge.Source{Name: "root", Database: f, Last: tid.Max, Next: 500}))
	})
	var sources []merge.Source
	for i := range 2 {
		var transactions [][]txn.Record
		for range 500 {
			var records []txn.Record
			for oid := range tid.OID(4) {
				var state pickle.Tuple
				for k := range tid.OID(5) {
					state = append(state, bytes.Repeat([]byte("x"), 100), pickle.PersID{ID: pickle.Tuple{k.Bytes(), recordClass}})
				}
				records = append(records, txn.Record{OID: oid, Data: makeRecord(b, 3, state)})
			}
			transactions = append(transactions, records)
		}
		sources = append(sources, merge.Source{
			Name: fmt.Sprint(i), Database: file(b, memory(b, transactions...)), Last: tid.Max, Shift: tid.OID(i) * 5, Next: 5,
		})
	}
	b.Run("two, direct", func(b *testing.B) { read(b, sources[1].Database) })
	b.Run("two sources", func(b *testing.B) { read(b, mustNew(b, sources...)) })
}
