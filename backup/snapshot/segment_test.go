package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"filippo.io/age"
	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/zdump"
)

var (
	testRepo    = ID{0xaa, 1}
	testLineage = ID{0xbb, 2}
	testHeader  = Header{Repo: testRepo, Lineage: testLineage}
)

// transaction is a transaction with its records.
type transaction struct {
	txn     txn.Transaction
	records []Record
}

// write writes a segment with the transactions and returns its plaintext.
func write(t testing.TB, h Header, upto tid.TID, list []transaction) ([]byte, *Written) {
	t.Helper()
	var b Buffer
	w, err := NewSegmentWriter(&b, h, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list {
		tr := &list[i]
		if !h.Continues {
			if err := w.Begin(&tr.txn); err != nil {
				t.Fatal(err)
			}
		}
		for _, r := range tr.records {
			if err := w.Record(r); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.End(); err != nil {
			t.Fatal(err)
		}
	}
	wr, err := w.Close(upto, h.ExactFrom)
	if err != nil {
		t.Fatal(err)
	}
	if wr.Size != int64(len(b.Bytes())) {
		t.Fatalf("size %d, want %d", wr.Size, len(b.Bytes()))
	}
	return b.Bytes(), wr
}

func openSegment(t testing.TB, b []byte) *Reader {
	t.Helper()
	r, err := NewReader(bytes.NewReader(b), int64(len(b)), "segment")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// unzstd is what "zstd -d" gives for a segment.
func unzstd(t testing.TB, b []byte) []byte {
	t.Helper()
	d, err := zstd.NewReader(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	text, err := io.ReadAll(d)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// sample is a history with all kinds of records.
func sample() []transaction {
	return []transaction{
		{txn.Transaction{TID: 0x10, Status: ' ', Description: []byte("initial \"database\"")},
			[]Record{{OID: 0, TID: 0x10, Data: []byte("root")}, {OID: 5, TID: 0x10, Data: []byte("five")}, {OID: 3, TID: 0x10, Data: []byte{}}}},
		{txn.Transaction{TID: 0x20, Status: 'p', User: []byte("/ Ärger\n"), Extension: []byte("\x80\x02}q\x00.")}, nil},
		{txn.Transaction{TID: 0x30, Status: ' '},
			[]Record{{OID: 5, TID: 0x30, Kind: NoData}, {OID: 3, TID: 0x30, Data: []byte("a\n\nobj b")}, {OID: 7, TID: 0x30, Data: []byte("1")}, {OID: 7, TID: 0x30, Data: []byte("2")}}},
		{txn.Transaction{TID: 0x40, Status: ' '},
			[]Record{{OID: 5, TID: 0x40, Kind: Copied, DataTID: 0x10}, {OID: 3, TID: 0x40, Kind: Copied, DataTID: 0x10}}},
		{txn.Transaction{TID: 0x50, Status: ' '},
			[]Record{{OID: 5, TID: 0x50, Kind: NoData, DataTID: 0x30}}},
	}
}

func records(list []transaction) []Record {
	var all []Record
	for _, tr := range list {
		all = append(all, tr.records...)
	}
	return all
}

func walk(t testing.TB, r *Reader) []transaction {
	t.Helper()
	var list []transaction
	for ev, err := range r.Walk() {
		switch {
		case err != nil:
			t.Fatal(err)
		case ev.Txn != nil:
			list = append(list, transaction{txn: *ev.Txn})
		case ev.Record != nil:
			rec := *ev.Record
			rec.Data = bytes.Clone(rec.Data)
			if rec.Kind == HasData && rec.Data == nil {
				rec.Data = []byte{}
			}
			list[len(list)-1].records = append(list[len(list)-1].records, rec)
		}
	}
	return list
}

func TestSegmentIsReadAsItWasWritten(t *testing.T) {
	want := sample()
	b, wr := write(t, testHeader, 0x58, want)
	r := openSegment(t, b)
	if err := r.Check(nil); err != nil {
		t.Fatal(err)
	}
	if got, err := r.Written(); err != nil || !cmp.Equal(got, wr) {
		t.Errorf("read %+v, %v, written %+v", got, err, wr)
	}
	equal := cmp.Options{cmp.AllowUnexported(transaction{}), cmp.Transformer("t", func(t txn.Transaction) string {
		return fmt.Sprintf("%v %c %q %q %q", t.TID, t.Status, t.User, t.Description, t.Extension)
	})}
	if diff := cmp.Diff(want, walk(t, r), equal); diff != "" {
		t.Errorf("segment (-written +read):\n%s", diff)
	}
	for e, err := range r.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		rec, err := r.Load(e)
		if err != nil {
			t.Fatal(err)
		}
		var last Record
		for _, w := range records(want) {
			if w.OID == e.OID && w.TID == e.TID {
				last = w
			}
		}
		if diff := cmp.Diff(last, *rec); diff != "" {
			t.Errorf("object %v, transaction %v (-want +got):\n%s", e.OID, e.TID, diff)
		}
	}
	for _, tt := range []struct {
		oid          tid.OID
		before, want tid.TID
	}{{5, 0x11, 0x10}, {5, 0x10, 0}, {5, 0x50, 0x40}, {5, tid.Max, 0x50}, {4, tid.Max, 0}, {7, 0x31, 0x30}, {8, tid.Max, 0}, {0, tid.Max, 0x10}, {0, 0, 0}} {
		e, err := r.Find(tt.oid, tt.before)
		if tt.want == 0 && !errors.Is(err, ErrNotFound) || tt.want != 0 && (err != nil || e.TID != tt.want || e.OID != tt.oid) {
			t.Errorf("object %v before %v: %+v, %v, want %v", tt.oid, tt.before, e, err, tt.want)
		}
	}
	for _, tt := range []struct {
		oid         tid.OID
		after, want tid.TID
	}{{5, 0, 0x10}, {5, 0x10, 0x30}, {5, 0x50, 0}, {4, 0, 0}, {9, 0, 0}} {
		e, err := r.Next(tt.oid, tt.after)
		if tt.want == 0 && !errors.Is(err, ErrNotFound) || tt.want != 0 && (err != nil || e.TID != tt.want || e.OID != tt.oid) {
			t.Errorf("object %v after %v: %+v, %v, want %v", tt.oid, tt.after, e, err, tt.want)
		}
	}
}

// The text of a segment is a dump of the same transactions, without this package.
func TestSegmentIsAStreamOfZstd(t *testing.T) {
	b, wr := write(t, testHeader, 0x50, sample())
	text := unzstd(t, b)
	if Sum(text) != wr.Footer.Raw {
		t.Error("the hash of the text is another one")
	}
	want := `txn 0000000000000010 " "
user ""
description "initial \"database\""
extension ""
obj 0000000000000000 4 null:00
root
obj 0000000000000005 4 null:00
five
obj 0000000000000003 0 null:00


txn 0000000000000020 "p"
user "/ Ärger\n"
description ""
extension "\x80\x02}q\x00."

txn 0000000000000030 " "
user ""
description ""
extension ""
obj 0000000000000005 delete
obj 0000000000000003 8 null:00
a

obj b
obj 0000000000000007 1 null:00
1
obj 0000000000000007 1 null:00
2

txn 0000000000000040 " "
user ""
description ""
extension ""
obj 0000000000000005 from 0000000000000010
obj 0000000000000003 from 0000000000000010

txn 0000000000000050 " "
user ""
description ""
extension ""
obj 0000000000000005 from 0000000000000030

`
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("text (-want +got):\n%s", diff)
	}
}

// big makes transactions whose texts end frames in all ways.
func big(seed uint64, n int) []transaction {
	rnd := rand.New(rand.NewPCG(seed, 1))
	words := strings.Fields("the segment of a backup has frames that end where a transaction ends or a record or neither")
	data := func(n int) []byte {
		b := make([]byte, 0, n+16)
		for len(b) < n {
			b = append(append(b, words[rnd.IntN(len(words))]...), ' ')
		}
		return b[:n]
	}
	var list []transaction
	for i := range n {
		at := tid.TID(0x1000 + i*16)
		tr := transaction{txn: txn.Transaction{TID: at, Status: ' '}}
		for range rnd.IntN(20) {
			r := Record{OID: tid.OID(rnd.IntN(500)), TID: at}
			switch rnd.IntN(8) {
			case 0:
				r.Kind = NoData
			case 1:
				r.Kind, r.DataTID = Copied, at-16
			case 2:
				r.Kind, r.DataTID = NoData, at-16
			default:
				r.Data = data(rnd.IntN(40 << rnd.IntN(10)))
			}
			tr.records = append(tr.records, r)
		}
		if i%40 == 7 {
			tr.records = append(tr.records, Record{OID: tid.OID(rnd.IntN(500)), TID: at, Data: data(3<<20 + rnd.IntN(3<<20))})
		}
		list = append(list, tr)
	}
	return list
}

func TestLongSegments(t *testing.T) {
	for seed := range uint64(3) {
		list := big(seed, 120)
		b, _ := write(t, testHeader, 0x10000, list)
		r := openSegment(t, b)
		if len(r.frames) < 10 {
			t.Errorf("%d frames", len(r.frames))
		}
		if err := r.Check(nil); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		n := 0
		for e, err := range r.Entries() {
			if err != nil {
				t.Fatal(err)
			}
			if found, err := r.Find(e.OID, e.TID+1); err != nil || found != e {
				t.Fatalf("seed %d: found %+v, %v, want %+v", seed, found, err, e)
			}
			if n++; n%37 == 0 {
				if _, err := r.Load(e); err != nil {
					t.Fatalf("seed %d: %v", seed, err)
				}
			}
		}
		// The same whatever the concurrency.
		var one Buffer
		w, _ := NewSegmentWriter(&one, testHeader, WriterOptions{Concurrency: 1})
		for i := range list {
			w.Begin(&list[i].txn)
			for _, rec := range list[i].records {
				w.Record(rec)
			}
			w.End()
		}
		if _, err := w.Close(0x10000, 0); err != nil || !bytes.Equal(one.Bytes(), b) {
			t.Errorf("seed %d: %v, or with one frame at a time the bytes differ", seed, err)
		}
	}
}

func TestFramesEndWhereTheyShould(t *testing.T) {
	at := tid.TID(1)
	data := func(n int) []byte { return bytes.Repeat([]byte{'x'}, n) }
	r := func(n int) Record { return Record{OID: 1, TID: at, Data: data(n)} }
	for _, tt := range []struct {
		name    string
		records []Record
		want    int
	}{
		{"a short transaction", []Record{r(10)}, 1},
		{"many records below 1 MiB", []Record{r(300 << 10), r(300 << 10), r(300 << 10)}, 1},
		{"records after 1 MiB", []Record{r(600 << 10), r(600 << 10), r(300 << 10), r(10)}, 3},
		{"a record of 4 MiB", []Record{r(4 << 20)}, 5},
		{"a record of nearly 1 MiB", []Record{r(1<<20 - 200)}, 1},
	} {
		b, _ := write(t, testHeader, at, []transaction{{txn.Transaction{TID: at, Status: ' '}, tt.records}})
		rd := openSegment(t, b)
		if err := rd.Check(nil); err != nil || len(rd.frames) != tt.want {
			t.Errorf("%s: %d frames, want %d, %v", tt.name, len(rd.frames), tt.want, err)
		}
	}
}

func TestEmptySegment(t *testing.T) {
	b, wr := write(t, Header{Repo: testRepo, Lineage: testLineage, After: 5, ExactFrom: 9}, 9, nil)
	r := openSegment(t, b)
	if err := r.Check(nil); err != nil || len(b) != minContainer || wr.Footer.Text != 0 {
		t.Errorf("%d bytes, %+v, %v", len(b), wr, err)
	}
}

// A transaction that is cut between records is in two segments, whose texts joined are
// one dump, and which are merged into one.
func TestCutTransaction(t *testing.T) {
	whole := sample()
	last := &whole[2]
	want, _ := write(t, testHeader, 0x30, whole[:3])

	var first Buffer
	w, _ := NewSegmentWriter(&first, testHeader, WriterOptions{})
	for i := range whole[:3] {
		w.Begin(&whole[i].txn)
		for j, r := range whole[i].records {
			if i == 2 && j == 3 {
				break
			}
			w.Record(r)
		}
		if i < 2 {
			w.End()
		}
	}
	wr, err := w.Close(0x30, 0)
	if err != nil || !wr.Header.Continued || wr.Header.Continues {
		t.Fatalf("%+v, %v", wr, err)
	}
	h := testHeader
	h.After, h.Continues = 0x30, true
	second, wr := write(t, h, 0x30, []transaction{{records: last.records[3:]}})
	if !wr.Header.Continues || wr.Header.Continued || wr.Footer.Txns != 0 {
		t.Fatalf("%+v", wr)
	}
	if got := append(unzstd(t, first.Bytes()), unzstd(t, second)...); !bytes.Equal(got, unzstd(t, want)) {
		t.Errorf("the texts are\n%s", got)
	}
	var merged Buffer
	m, _ := NewSegmentWriter(&merged, testHeader, WriterOptions{})
	for _, b := range [][]byte{first.Bytes(), second} {
		r := openSegment(t, b)
		if err := r.Check(nil); err != nil {
			t.Fatal(err)
		}
		if err := m.Copy(r); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Close(0x30, 0); err != nil || !bytes.Equal(merged.Bytes(), want) {
		t.Errorf("%v, or the merged segment is not the whole one", err)
	}
	// A continuation without a record: only the end of the transaction.
	end, _ := write(t, h, 0x30, []transaction{{}})
	if err := openSegment(t, end).Check(nil); err != nil {
		t.Error(err)
	}
}

// Merged segments are what one writer would have written.
func TestMerge(t *testing.T) {
	list := big(9, 90)
	want, _ := write(t, testHeader, 0x10000, list)
	var out Buffer
	m, _ := NewSegmentWriter(&out, testHeader, WriterOptions{})
	after := tid.TID(0)
	for i := 0; i < len(list); i += 10 {
		h := testHeader
		h.After = after
		part := list[i:min(i+10, len(list))]
		after = part[len(part)-1].txn.TID
		b, _ := write(t, h, after, part)
		if err := m.Copy(openSegment(t, b)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := m.Close(0x10000, 0); err != nil || !bytes.Equal(out.Bytes(), want) {
		t.Errorf("%v, or the merged segment differs", err)
	}
	h := testHeader
	h.Lineage = ID{9}
	foreign, _ := write(t, h, 0x50, sample())
	m, _ = NewSegmentWriter(&out, testHeader, WriterOptions{})
	if err := m.Copy(openSegment(t, foreign)); err == nil {
		t.Error("a segment of another lineage is merged")
	}
}

func TestWriterRefuses(t *testing.T) {
	ok := txn.Transaction{TID: 5, Status: ' '}
	for _, tt := range []struct {
		name string
		do   func(w *SegmentWriter) error
		want string
	}{
		{"a transaction not after the range", func(w *SegmentWriter) error { return w.Begin(&txn.Transaction{TID: 2}) }, "transaction 0000000000000002 after 0000000000000002"},
		{"a second transaction in one", func(w *SegmentWriter) error { w.Begin(&ok); return w.Begin(&txn.Transaction{TID: 6}) }, "begins within"},
		{"a long user", func(w *SegmentWriter) error {
			return w.Begin(&txn.Transaction{TID: 5, User: make([]byte, 1<<16)})
		}, "its user of 65536 bytes"},
		{"a record of no transaction", func(w *SegmentWriter) error { return w.Record(Record{OID: 1, TID: 5, Kind: NoData}) }, "outside of a transaction"},
		{"a record of another transaction", func(w *SegmentWriter) error { w.Begin(&ok); return w.Record(Record{OID: 1, TID: 6, Kind: NoData}) }, "a record of transaction"},
		{"data that is not said", func(w *SegmentWriter) error {
			w.Begin(&ok)
			return w.Record(Record{OID: 1, TID: 5, Kind: NoData, Data: []byte("x")})
		}, "do not fit"},
		{"no data", func(w *SegmentWriter) error { w.Begin(&ok); return w.Record(Record{OID: 1, TID: 5}) }, "do not fit"},
		{"a copy of the future", func(w *SegmentWriter) error {
			w.Begin(&ok)
			return w.Record(Record{OID: 1, TID: 5, Kind: Copied, DataTID: 5})
		}, "not earlier"},
		{"a range that ends before its transactions", func(w *SegmentWriter) error { w.Begin(&ok); w.End(); _, err := w.Close(4, 0); return err }, "closing"},
		{"no end", func(w *SegmentWriter) error { w.Begin(&ok); _, err := w.Close(6, 0); return err }, "closing"},
		{"a call after an error", func(w *SegmentWriter) error { w.End(); return w.Begin(&ok) }, "outside of one"},
	} {
		h := testHeader
		h.After = 2
		w, err := NewSegmentWriter(&Buffer{}, h, WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if err := tt.do(w); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
		}
	}
}

// Every byte of a segment is covered: by a hash, or by what it must be.
func TestDamagedSegments(t *testing.T) {
	b, _ := write(t, testHeader, 0x50, sample())
	for i := range b {
		d := bytes.Clone(b)
		d[i] ^= 0x41
		err := checkAll(d)
		// Ids and the range of a header say what it is for. The note that refers to the
		// segment has a hash of all.
		if i >= frameHead+8 && i < frameHead+64 && err == nil {
			continue
		}
		if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrVersion) {
			t.Errorf("byte %d changed: %v", i, err)
		}
	}
	for n := range b {
		if err := checkAll(b[:n]); !errors.Is(err, ErrCorrupt) {
			t.Errorf("cut to %d bytes: %v", n, err)
		}
	}
	if err := checkAll(append(bytes.Clone(b), 0)); !errors.Is(err, ErrCorrupt) {
		t.Errorf("one byte longer: %v", err)
	}
}

func checkAll(b []byte) error {
	r, err := NewReader(bytes.NewReader(b), int64(len(b)), "segment")
	if err != nil {
		return err
	}
	return r.Check(nil)
}

func TestNewerSegmentsAreRefusedByVersion(t *testing.T) {
	b, _ := write(t, testHeader, 0x50, sample())
	b = bytes.Replace(b, []byte(footerMagic), []byte("NEOBKFT2"), 1)
	_, err := NewReader(bytes.NewReader(b), int64(len(b)), "s")
	if want := "s: version 2 of the format (segment), this program knows version 1: use a newer neobackup, which wrote it"; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

// The samples of Data.fs files come back from segments as they are.
func TestSamples(t *testing.T) {
	names, err := filepath.Glob("../../testdata/fs/*.zdump")
	if err != nil || len(names) < 11 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		name = strings.TrimSuffix(name, ".zdump") + ".fs"
		b, last := fromFile(t, name)
		r := openSegment(t, b)
		if err := r.Check(nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		path := filepath.Join(t.TempDir(), "Data.fs")
		w, err := fsformat.Create(path, fsformat.WriterOptions{NoSync: true})
		if err != nil {
			t.Fatal(err)
		}
		var at tid.TID
		for tr, err := range zdump.Read(bytes.NewReader(unzstd(t, b)), w.LoadSerial) {
			if err == nil {
				err = w.Append(tr)
			}
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			at = tr.TID
		}
		if err := w.Close(); err != nil || at != last {
			t.Fatalf("%s: up to %v, want %v, %v", name, at, last, err)
		}
		again, _ := fromFile(t, path)
		if !bytes.Equal(again, b) {
			t.Errorf("%s: what was restored from a segment gives another segment", name)
		}
	}
}

// fromFile returns a segment of all that a Data.fs has.
func fromFile(t testing.TB, path string) ([]byte, tid.TID) {
	t.Helper()
	f, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b Buffer
	w, err := NewSegmentWriter(&b, testHeader, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var last tid.TID
	for tr, err := range f.Transactions(t.Context(), 0, tid.Max) {
		if err == nil {
			err = w.Begin(tr)
		}
		if err != nil {
			t.Fatal(err)
		}
		last = tr.TID
		for r, err := range tr.Records {
			if err == nil {
				err = w.Record(RecordOf(r, true))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		if err := w.End(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.Close(last, 0); err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), last
}

// counted counts reads and what they read, and fails when told.
type counted struct {
	r    io.ReaderAt
	n    int
	size int64
	err  error
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	c.n++
	c.size += int64(len(p))
	if c.err != nil {
		return 0, c.err
	}
	return c.r.ReadAt(p, off)
}

func TestEncryptedSegmentsAreReadAtRandom(t *testing.T) {
	id, to, err := GenerateEpoch(nil)
	if err != nil {
		t.Fatal(err)
	}
	plaintext, _ := write(t, testHeader, 0x10000, big(4, 60))
	for _, size := range []int{0, 1, ageChunk - 1, ageChunk, ageChunk + 1, 3 * ageChunk, len(plaintext)} {
		want := plaintext[:size]
		var b bytes.Buffer
		st, err := Seal(&b, bytes.NewReader(want), to, 1)
		header, n := st.Header, st.Bytes
		if st.SHA256 != Sum(b.Bytes()) || st.KID != 1 {
			t.Errorf("stored %+v", st)
		}
		if err != nil || n != int64(b.Len()) || len(header) != 184 || !bytes.HasPrefix(b.Bytes(), header) {
			t.Fatalf("header of %d bytes, %d bytes, %v", len(header), n, err)
		}
		if h, err := HeaderOf(bytes.NewReader(b.Bytes()), "s"); err != nil || !bytes.Equal(h, header) {
			t.Errorf("header %x, %v, want %x", h, err, header)
		}
		key, err := FileKey(header, "s", id)
		if err != nil {
			t.Fatal(err)
		}
		suffix := b.Bytes()[max(0, b.Len()-ageSealed):]
		src := &counted{r: bytes.NewReader(b.Bytes())}
		s := Sealed{Key: "s", Size: n, Header: header, FileKey: key, Suffix: suffix}
		p, got, err := s.Open(src)
		if err != nil || got != int64(size) || src.n != 0 {
			t.Fatalf("%d bytes, %d reads, %v", got, src.n, err)
		}
		for _, r := range [][2]int{{0, size}, {0, 10}, {size / 2, 70_000}, {size - 5, 10}, {size, 1}, {ageChunk - 3, 6}} {
			if r[0] < 0 {
				continue
			}
			src.n = 0
			buf := make([]byte, r[1])
			n, err := p.ReadAt(buf, int64(r[0]))
			rest := want[min(r[0], size):min(r[0]+r[1], size)]
			if n != len(rest) || !bytes.Equal(buf[:n], rest) || (n < r[1]) != (err == io.EOF) || n == r[1] && err != nil {
				t.Fatalf("%d bytes at %d of %d: %d, %v", r[1], r[0], size, n, err)
			}
			if src.n > 1 {
				t.Errorf("%d reads for %d bytes at %d", src.n, r[1], r[0])
			}
		}
		if size == len(plaintext) {
			r, err := NewReader(p, got, "s")
			if err != nil {
				t.Fatal(err)
			}
			if err := r.Check(nil); err != nil {
				t.Error(err)
			}
			src.err = errors.New("connection reset")
			if err := r.Check(nil); err == nil || errors.Is(err, ErrCorrupt) || !errors.Is(err, src.err) {
				t.Errorf("error of the store: %v", err)
			}
			src.err = nil
			d := bytes.Clone(b.Bytes())
			d[len(d)/2] ^= 1
			p, _, err := s.Open(bytes.NewReader(d))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := p.ReadAt(make([]byte, size), 0); !errors.Is(err, ErrCorrupt) {
				t.Errorf("a changed bit: %v", err)
			}
			s.Suffix = nil
			s.Size--
			if _, _, err := s.Open(bytes.NewReader(d)); !errors.Is(err, ErrCorrupt) {
				t.Errorf("one byte less: %v", err)
			}
		}
	}
}

func TestEncryptedSegmentsAreReadConcurrently(t *testing.T) {
	id, to, err := GenerateEpoch(nil)
	if err != nil {
		t.Fatal(err)
	}
	plaintext, _ := write(t, testHeader, 0x10000, big(5, 30))
	var b bytes.Buffer
	st, err := Seal(&b, bytes.NewReader(plaintext), to, 1)
	if err != nil {
		t.Fatal(err)
	}
	key, err := FileKey(st.Header, "s", id)
	if err != nil {
		t.Fatal(err)
	}
	p, size, err := (&Sealed{Key: "s", Size: st.Bytes, Header: st.Header, FileKey: key}).Open(bytes.NewReader(b.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	r, err := NewReader(p, size, "s")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 1))
			for range 20 {
				e, err := r.Find(tid.OID(rnd.IntN(500)), tid.Max)
				if err == nil {
					_, err = r.Load(e)
				}
				if err != nil && !errors.Is(err, ErrNotFound) {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if err := r.Check(nil); err != nil {
		t.Error(err)
	}
}

func TestWrap(t *testing.T) {
	operator, to, _ := GenerateEpoch(nil)
	other, _, _ := GenerateEpoch(nil)
	epoch, recipient, err := GenerateEpoch([]Recipient{to})
	if err != nil {
		t.Fatal(err)
	}
	b, err := Wrap(epoch, []Recipient{to})
	if err != nil {
		t.Fatal(err)
	}
	got, err := Unwrap(b, "keys/0001.0001", recipient.String(), operator)
	if err != nil || got.String() != epoch.String() {
		t.Fatalf("%v, %v", got, err)
	}
	_, err = Unwrap(b, "keys/0001.0001", recipient.String(), other)
	if _, ok := errors.AsType[*age.NoIdentityMatchError](err); !ok || !strings.HasPrefix(err.Error(), "keys/0001.0001: no identity") {
		t.Errorf("another identity: %v", err)
	}
	if _, err := Unwrap(b, "k", to.String(), operator); !errors.Is(err, ErrCorrupt) {
		t.Errorf("foreign wrap: %v", err)
	}
	if _, err := Wrap(epoch, nil); err == nil {
		t.Error("wrapped to none")
	}
	h, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	id, r, err := GenerateEpoch([]Recipient{h.Recipient()})
	if err != nil || !strings.HasPrefix(r.String(), "age1pq1") {
		t.Fatalf("recipient %v, %v", r, err)
	}
	if b, err = Wrap(id, []Recipient{h.Recipient()}); err != nil {
		t.Fatal(err)
	}
	if got, err := Unwrap(b, "k", r.String(), h); err != nil || got.String() != id.String() {
		t.Errorf("hybrid: %v", err)
	}
	if p, err := ParseRecipient(r.String()); err != nil || p.String() != r.String() {
		t.Errorf("%v, %v", p, err)
	}
}
