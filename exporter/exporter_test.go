package exporter

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

// slice is a history in memory. It fails after failAt transactions if that is not 0.
type slice struct {
	txns   []txn.Transaction
	failAt int
}

var errBroken = errors.New("broken")

func (s slice) Transactions(_ context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		n := 0
		for i := range s.txns {
			t := s.txns[i]
			if t.TID <= after || t.TID > upTo {
				continue
			}
			if n++; n == s.failAt {
				yield(nil, errBroken)
				return
			}
			if !yield(&t, nil) {
				return
			}
		}
	}
}

func (s slice) LastTID(context.Context) (tid.TID, error) {
	if len(s.txns) == 0 {
		return 0, nil
	}
	return s.txns[len(s.txns)-1].TID, nil
}

func record(oid tid.OID, data string) txn.Record { return txn.Record{OID: oid, Data: []byte(data)} }

func transaction(t tid.TID, records ...txn.Record) txn.Transaction {
	for i := range records {
		records[i].TID = t
	}
	return txn.Transaction{TID: t, Status: ' ', Description: fmt.Appendf(nil, "number %d", t), Records: txn.Slice(records)}
}

// sample is a history of n transactions.
func sample(n int) slice {
	var s slice
	for i := range n {
		t := transaction(tid.TID(10*i+10), record(tid.OID(i%7), fmt.Sprintf("data %d", i)), record(tid.OID(100+i), "new"))
		if i%5 == 3 {
			t = transaction(t.TID) // without records
		}
		s.txns = append(s.txns, t)
	}
	return s
}

func TestCompare(t *testing.T) {
	same := CompareOptions{}
	back := record(1, "x")
	back.DataTID = 5
	other := back
	other.DataTID = 6
	gone := txn.Record{OID: 1}
	packed := transaction(10, record(1, "x"))
	packed.Status = 'p'
	named := transaction(10)
	named.User = []byte("me")
	for _, tt := range []struct {
		name string
		a, b []txn.Transaction
		opt  CompareOptions
		want []string
	}{
		{"equal", sample(20).txns, sample(20).txns, same, nil},
		{"shorter", sample(3).txns, sample(2).txns, same, []string{"transaction 000000000000001e: missing in the second"}},
		{"hole", sample(3).txns, append(sample(1).txns, sample(3).txns[2]), same, []string{"transaction 0000000000000014: missing in the second"}},
		{"longer", sample(2).txns, sample(3).txns, same, []string{"transaction 000000000000001e: missing in the first"}},
		{"interleaved", []txn.Transaction{transaction(1), transaction(3)}, []txn.Transaction{transaction(2), transaction(3)}, same,
			[]string{"transaction 0000000000000001: missing in the second", "transaction 0000000000000002: missing in the first"}},
		{"metadata", []txn.Transaction{named}, []txn.Transaction{transaction(10)}, same, []string{`transaction 000000000000000a: user "", not "me"`}},
		{"status", []txn.Transaction{packed}, []txn.Transaction{transaction(10, record(1, "x"))}, same, []string{"transaction 000000000000000a: status ' ', not 'p'"}},
		{"any status", []txn.Transaction{packed}, []txn.Transaction{transaction(10, record(1, "x"))}, CompareOptions{AnyStatus: true}, nil},
		{"data", []txn.Transaction{transaction(10, record(1, "x"))}, []txn.Transaction{transaction(10, record(1, "y"))}, same,
			[]string{"transaction 000000000000000a: object 0000000000000001: other data of 1 bytes"}},
		{"size", []txn.Transaction{transaction(10, record(1, "x"))}, []txn.Transaction{transaction(10, record(1, "yy"))}, same,
			[]string{"transaction 000000000000000a: object 0000000000000001: 2 bytes of data, not 1"}},
		{"deletion", []txn.Transaction{transaction(10, gone)}, []txn.Transaction{transaction(10, record(1, ""))}, same,
			[]string{"transaction 000000000000000a: object 0000000000000001: no data in the first"}},
		{"link", []txn.Transaction{transaction(10, back)}, []txn.Transaction{transaction(10, record(1, "x"))}, same,
			[]string{"transaction 000000000000000a: object 0000000000000001: data of transaction 0000000000000000, not 0000000000000005"}},
		{"full data for a link", []txn.Transaction{transaction(10, back)}, []txn.Transaction{transaction(10, record(1, "x"))}, CompareOptions{FullData: true}, nil},
		{"order", []txn.Transaction{transaction(10, record(1, "x"), record(2, "y"))}, []txn.Transaction{transaction(10, record(2, "y"), record(1, "x"))}, same,
			[]string{"transaction 000000000000000a: object 0000000000000001: object 0000000000000002 in its place"}},
		{"any order", []txn.Transaction{transaction(10, record(1, "x"), record(2, "y"))}, []txn.Transaction{transaction(10, record(2, "y"), record(1, "x"))}, CompareOptions{AnyOrder: true}, nil},
		{"last of two", []txn.Transaction{transaction(10, record(1, "x"), record(1, "y"))}, []txn.Transaction{transaction(10, record(1, "y"))}, CompareOptions{AnyOrder: true}, nil},
		{"each of two", []txn.Transaction{transaction(10, record(1, "x"), record(2, "z"), record(1, "y"))}, []txn.Transaction{transaction(10, record(1, "x"), record(1, "y"), record(2, "z"))}, CompareOptions{AnyOrder: true, EachRecord: true}, nil},
		{"one of two", []txn.Transaction{transaction(10, record(1, "x"), record(1, "y"))}, []txn.Transaction{transaction(10, record(1, "y"))}, CompareOptions{AnyOrder: true, EachRecord: true},
			[]string{"transaction 000000000000000a: object 0000000000000001: other data of 1 bytes", "transaction 000000000000000a: object 0000000000000001: missing in the second"}},
		{"any link", []txn.Transaction{transaction(10, back)}, []txn.Transaction{transaction(10, other)}, CompareOptions{AnyLink: true}, nil},
		{"full data for another link", []txn.Transaction{transaction(10, back)}, []txn.Transaction{transaction(10, other)}, CompareOptions{FullData: true},
			[]string{"transaction 000000000000000a: object 0000000000000001: data of transaction 0000000000000006, not 0000000000000005"}},
		{"packed", []txn.Transaction{transaction(10, record(1, "x"), record(2, "y"))}, []txn.Transaction{transaction(10, record(2, "Y"))}, CompareOptions{AnyOrder: true, Packed: true},
			[]string{"transaction 000000000000000a: object 0000000000000002: other data of 1 bytes"}},
		{"packed first", []txn.Transaction{transaction(10, record(2, "y"))}, []txn.Transaction{transaction(10, record(1, "x"), record(2, "y"))}, CompareOptions{AnyOrder: true, Packed: true},
			[]string{"transaction 000000000000000a: object 0000000000000001: missing in the first"}},
		{"sets", []txn.Transaction{transaction(10, record(1, "x"), record(2, "y"))}, []txn.Transaction{transaction(10, record(3, "z"), record(2, "Y"))}, CompareOptions{AnyOrder: true},
			[]string{"transaction 000000000000000a: object 0000000000000001: missing in the second", "transaction 000000000000000a: object 0000000000000002: other data of 1 bytes", "transaction 000000000000000a: object 0000000000000003: missing in the first"}},
		{"records", []txn.Transaction{transaction(10, record(1, "x"), record(2, "y"))}, []txn.Transaction{transaction(10, record(1, "x"))}, same,
			[]string{"transaction 000000000000000a: object 0000000000000002: missing in the second"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for d, err := range Compare(t.Context(), slice{txns: tt.a}, slice{txns: tt.b}, 0, tid.Max, tt.opt, nil) {
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, d.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("differences (-want +got):\n%s", diff)
			}
		})
	}
	for d, err := range Compare(t.Context(), slice{sample(5).txns, 3}, sample(5), 0, tid.Max, same, nil) {
		if !errors.Is(err, errBroken) {
			t.Errorf("broken source: %v, %v", d, err)
		}
	}
}

// An export that fails at any transaction goes on from there, and at no time is a
// part of it taken for the whole.
func TestToFileResumes(t *testing.T) {
	const n = 12
	want := filepath.Join(t.TempDir(), "want.fs")
	if _, err := ToFile(t.Context(), sample(n), want, FileOptions{}); err != nil {
		t.Fatal(err)
	}
	for failAt := 1; failAt <= n; failAt++ {
		path := filepath.Join(t.TempDir(), "Data.fs")
		src := sample(n)
		src.failAt = failAt
		last, err := ToFile(t.Context(), src, path, FileOptions{})
		if !errors.Is(err, errBroken) || last != tid.TID(10*(failAt-1)) {
			t.Fatalf("failure at transaction %d: last %v, %v", failAt, last, err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("an incomplete file has the final name: %v", err)
		}
		var after tid.TID
		if _, err := ToFile(t.Context(), sample(n), path, FileOptions{Opened: func(a, _ tid.TID) { after = a }}); err != nil {
			t.Fatal(err)
		}
		if after != last {
			t.Errorf("went on after %v, want %v", after, last)
		}
		same(t, path, want)
	}
}

func same(t *testing.T, path, want string) {
	t.Helper()
	a, errA := os.ReadFile(path)
	b, errB := os.ReadFile(want)
	if errA != nil || errB != nil || string(a) != string(b) {
		t.Errorf("%s: %d bytes, want %d (%v, %v)", path, len(a), len(b), errA, errB)
	}
}

func TestToFileAppends(t *testing.T) {
	dir := t.TempDir()
	path, want := filepath.Join(dir, "Data.fs"), filepath.Join(dir, "want.fs")
	for _, n := range []int{3, 3, 200, 300} {
		if last, err := ToFile(t.Context(), sample(n), path, FileOptions{}); err != nil || last != tid.TID(10*n) {
			t.Fatalf("%d transactions: %v, %v", n, last, err)
		}
	}
	if _, err := ToFile(t.Context(), sample(300), want, FileOptions{}); err != nil {
		t.Fatal(err)
	}
	same(t, path, want)
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for d, err := range Compare(t.Context(), sample(300), r, 0, tid.Max, CompareOptions{}, nil) {
		t.Errorf("%v, %v", d, err)
	}

	// Not on top of something else.
	changed := sample(300)
	changed.txns[290] = transaction(changed.txns[290].TID, record(1, "changed"))
	hole := sample(300)
	hole.txns = append(hole.txns[:295], hole.txns[296:]...)
	early := sample(310)
	early.txns[305] = transaction(early.txns[305].TID, record(1, "x"))
	for _, tt := range []struct {
		name string
		src  slice
		opt  FileOptions
		want string
	}{
		{"other data", changed, FileOptions{}, "transaction 0000000000000b5e"},
		{"missing transaction", hole, FileOptions{}, "missing in the source"},
		{"shorter source", sample(299), FileOptions{}, "later than what is to be copied"},
		{"earlier moment", sample(300), FileOptions{UpTo: 2500}, "later than what is to be copied"},
		{"empty source", slice{}, FileOptions{}, "later than what is to be copied"},
	} {
		_, err := ToFile(t.Context(), tt.src, path, tt.opt)
		if np, ok := errors.AsType[*NotPrefixError](err); !ok || np.Last != 3000 || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
		same(t, path, want)
	}
}

func TestToFileUpTo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	last, err := ToFile(t.Context(), sample(20), path, FileOptions{UpTo: 95})
	if err != nil || last != 90 {
		t.Fatalf("last %v, %v", last, err)
	}
	var told []string
	last, err = ToFile(t.Context(), sample(20), path, FileOptions{Progress: func(last tid.TID, txns, records, bytes int64) {
		told = append(told, fmt.Sprintf("%d %d %d %d", last, txns, records, bytes))
	}})
	if err != nil || last != 200 || len(told) != 11 || told[10] != "200 11 18 89" {
		t.Errorf("last %v, %v, progress %q", last, err, told)
	}
}

// An export that is killed while it appends to a file goes on from there, and the
// file can be read at any time.
func TestToFileKilledWhileAppending(t *testing.T) {
	dir := t.TempDir()
	path, want := filepath.Join(dir, "Data.fs"), filepath.Join(dir, "want.fs")
	// Larger than what is written to the file at once.
	src := sample(12)
	for i := range src.txns[5:] {
		at := src.txns[5+i].TID
		src.txns[5+i] = transaction(at, record(tid.OID(i), strings.Repeat("x", 700<<10)))
	}
	for name, n := range map[string]int{path: 5, want: 12} {
		if _, err := ToFile(t.Context(), slice{txns: src.txns[:n]}, name, FileOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	_, err := ToFile(t.Context(), src, path, FileOptions{Progress: func(last tid.TID, _, _, _ int64) {
		n++
		b, err := os.ReadFile(path) // as it is if the process is killed now
		if err != nil {
			t.Error(err)
			return
		}
		killed := filepath.Join(t.TempDir(), "Data.fs")
		if err := os.WriteFile(killed, b, 0o600); err != nil {
			t.Error(err)
			return
		}
		if _, err := ToFile(t.Context(), src, killed, FileOptions{}); err != nil {
			t.Errorf("killed after transaction %v: %v", last, err)
			return
		}
		same(t, killed, want)
	}})
	if err != nil || n != 7 {
		t.Errorf("%d transactions appended, %v", n, err)
	}
}

// What another export has left is in the way, and is named.
func TestToFileRestOfAnother(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	broken, other := sample(12), sample(12)
	broken.failAt = 6
	other.txns[2] = transaction(other.txns[2].TID, record(1, "other"))
	if _, err := ToFile(t.Context(), broken, path, FileOptions{}); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	if _, err := ToFile(t.Context(), other, path, FileOptions{}); err == nil || !strings.Contains(err.Error(), path+".part: the destination") {
		t.Error(err)
	}
}

// What an interrupted export has left may have been written with other options.
func TestToFileResumesWithOtherOptions(t *testing.T) {
	src, broken := sample(12), sample(12)
	broken.failAt = 6
	for _, tt := range []struct {
		name          string
		first, second FileOptions
		err           string // of the second
	}{
		{"magic", FileOptions{}, FileOptions{Magic: fsformat.FS21}, ""},
		{"magic kept", FileOptions{Magic: fsformat.FS21}, FileOptions{}, ""},
		{"packed", FileOptions{PackedUpTo: 80}, FileOptions{PackedUpTo: 80}, ""},
		{"packed later", FileOptions{PackedUpTo: 30}, FileOptions{PackedUpTo: 80}, "Data.fs.part: it has transaction 0000000000000028 already"},
		{"not packed", FileOptions{}, FileOptions{PackedUpTo: 80}, "Data.fs.part: it has transaction 000000000000000a already"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			path, want := filepath.Join(dir, "Data.fs"), filepath.Join(dir, "want.fs")
			if _, err := ToFile(t.Context(), broken, path, tt.first); !errors.Is(err, errBroken) {
				t.Fatal(err)
			}
			_, err := ToFile(t.Context(), src, path, tt.second)
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Errorf("error %v, want ...%s...", err, tt.err)
				}
				tt.second.Restart = true
				_, err = ToFile(t.Context(), src, path, tt.second)
			}
			if err != nil {
				t.Fatal(err)
			}
			if tt.second.Magic == "" {
				tt.second.Magic = tt.first.Magic
			}
			if _, err := ToFile(t.Context(), src, want, tt.second); err != nil {
				t.Fatal(err)
			}
			same(t, path, want)
		})
	}
}

// A file from which a cluster was filled has more than the cluster if an object is
// twice in a transaction; the last record counts. It is brought up to date.
func TestToFileLastRecordCounts(t *testing.T) {
	twice, once := sample(5), sample(7)
	twice.txns[2] = transaction(30, record(1, "first"), record(2, "other"), record(1, "last"))
	once.txns[2] = transaction(30, record(2, "other"), record(1, "last")) // in the order of the answers
	for _, tt := range []struct {
		name     string
		dst, src slice
	}{{"twice in the file", twice, once}, {"twice in the source", slice{txns: once.txns[:5]}, slice{txns: append(twice.txns[:5:5], once.txns[5:]...)}}} {
		path := filepath.Join(t.TempDir(), "Data.fs")
		if _, err := ToFile(t.Context(), tt.dst, path, FileOptions{}); err != nil {
			t.Fatal(err)
		}
		if last, err := ToFile(t.Context(), tt.src, path, FileOptions{}); last != 70 || err != nil {
			t.Errorf("%s: last %v, %v", tt.name, last, err)
		}
	}
	wrong := sample(7)
	wrong.txns[2] = transaction(30, record(2, "other"), record(1, "first"))
	path := filepath.Join(t.TempDir(), "Data.fs")
	if _, err := ToFile(t.Context(), twice, path, FileOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := ToFile(t.Context(), wrong, path, FileOptions{}); !errors.As(err, new(*NotPrefixError)) {
		t.Errorf("the first of two records was taken for the last: %v", err)
	}
}

// After a pack of the source, a file is refused with the reason. A full export replaces it,
// and whenever that fails the old one is there as it was.
func TestToFileFull(t *testing.T) {
	const n = 12
	dir := t.TempDir()
	path, old, want := filepath.Join(dir, "Data.fs"), filepath.Join(dir, "old.fs"), filepath.Join(dir, "want.fs")
	packed := sample(n)
	packed.txns = append(packed.txns[:4], packed.txns[5:]...)
	packed.txns[5] = transaction(packed.txns[5].TID, record(6, "data 6")) // without its second record
	for name, src := range map[string]slice{path: sample(n), old: sample(n), want: packed} {
		if _, err := ToFile(t.Context(), src, name, FileOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ToFile(t.Context(), packed, path, FileOptions{}); err == nil || !strings.Contains(err.Error(), "missing in the source; the source was packed") {
		t.Fatal(err)
	}
	for failAt := 1; failAt < n; failAt++ {
		broken := packed
		broken.failAt = failAt
		if _, err := ToFile(t.Context(), broken, path, FileOptions{Full: true, Restart: true}); !errors.Is(err, errBroken) {
			t.Fatalf("failure at transaction %d: %v", failAt, err)
		}
		same(t, path, old)
		same(t, path+".index", old+".index")
	}
	var after tid.TID
	if _, err := ToFile(t.Context(), packed, path, FileOptions{Full: true, Opened: func(a, _ tid.TID) { after = a }}); err != nil {
		t.Fatal(err)
	}
	if after == tid.Zero {
		t.Error("the interrupted one was not continued")
	}
	same(t, path, want)
	same(t, path+".index", want+".index")
	if fi, err := os.Stat(path); err != nil || fi.Mode().Perm() != 0o640 {
		t.Errorf("%v, %v, want the permissions of the one before", fi, err)
	}
	if _, err := os.Stat(path + ".part"); !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
	// It is up to date now, and can be written where none is.
	if _, err := ToFile(t.Context(), packed, path, FileOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := ToFile(t.Context(), packed, filepath.Join(dir, "new.fs"), FileOptions{Full: true}); err != nil {
		t.Error(err)
	}
	same(t, filepath.Join(dir, "new.fs"), want)
	// Nothing but a Data.fs is replaced.
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("years of work"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ToFile(t.Context(), packed, text, FileOptions{Full: true}); !errors.As(err, new(*fsformat.MagicError)) {
		t.Error(err)
	}
	if b, err := os.ReadFile(text); string(b) != "years of work" {
		t.Errorf("%q, %v", b, err)
	}
}

func openFile(t *testing.T, path string, opt fsformat.Options) *fsformat.Reader {
	t.Helper()
	r, err := fsformat.Open(path, opt)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// A file whose ids do not increase is copied whole, with other ids, or not at all,
// also if it was in order when the copy began.
func TestToFileOutOfOrder(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "Data.fs")
	const name = "../testdata/fs/damaged/tsreduction.fs"
	_, err := ToFile(t.Context(), openFile(t, name, fsformat.Options{}), path, FileOptions{})
	if !errors.Is(err, fsformat.ErrOrder) || !strings.Contains(err.Error(), name+": offset 415: transaction 03a0000000000032: its id is not above that of the previous transaction, 03a0000000000064") {
		t.Errorf("error %v", err)
	}
	if left, _ := filepath.Glob(path + "*"); len(left) != 1 || left[0] != path+".lock" {
		t.Errorf("left: %q", left)
	}
	for range 2 {
		r := openFile(t, name, fsformat.Options{Renumber: true})
		last, err := ToFile(t.Context(), r, path, FileOptions{})
		if last != 0x03a0000000000066 || err != nil {
			t.Fatalf("last %v, %v", last, err)
		}
		n := 0
		for d, err := range Compare(t.Context(), r, openFile(t, path, fsformat.Options{}), 0, tid.Max, CompareOptions{}, func(tid.TID, int64, int64, int64) { n++ }) {
			t.Errorf("%v, %v", d, err)
		}
		if n != 5 {
			t.Errorf("%d transactions are in both", n)
		}
	}

	// The copy ends before the clock was set back, behind, or in between; or it was
	// made by a program that stopped where a greater id came.
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []int64{141, 278, 415} {
		part := filepath.Join(t.TempDir(), "Data.fs")
		if err := os.WriteFile(part, whole[:end], 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := ToFile(t.Context(), openFile(t, name, fsformat.Options{}), part, FileOptions{})
		if !errors.Is(err, fsformat.ErrOrder) {
			t.Errorf("from %d: %v", end, err)
		}
		if b, _ := os.ReadFile(part); int64(len(b)) != end {
			t.Errorf("from %d: %d bytes", end, len(b))
		}
		if _, err := ToFile(t.Context(), openFile(t, name, fsformat.Options{Renumber: true}), part, FileOptions{}); err != nil {
			t.Errorf("from %d: %v", end, err)
		}
		same(t, part, path)
	}
}

// A file has a lower id somewhere behind the last transaction of its copy: what is
// between is not left out.
func TestToFileOutOfOrderBehindTheCopy(t *testing.T) {
	good := sample(400)
	for _, tt := range []struct {
		name string
		n    int       // copied before
		ids  []tid.TID // of what comes then
	}{
		{"lower", 300, []tid.TID{3010, 3020, 1005, 3040}},
		{"the same as the last", 300, []tid.TID{3010, 3000, 3040}},
		{"lower, all", 300, []tid.TID{1005, 1015}},
		{"lower at once", 300, []tid.TID{1005, 3040}},
		{"lower at the end", 3, []tid.TID{40, 50, 25}},
		{"the same in the middle", 3, []tid.TID{40, 30, 50}},
	} {
		dir := t.TempDir()
		path, dst := filepath.Join(dir, "Source.fs"), filepath.Join(dir, "Data.fs")
		for _, name := range []string{path, dst} {
			if _, err := ToFile(t.Context(), slice{txns: good.txns[:tt.n]}, name, FileOptions{}); err != nil {
				t.Fatal(err)
			}
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range tt.ids {
			b = id.Append(b) // without records
			b = append(b, 0, 0, 0, 0, 0, 0, 0, 23, ' ', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 23)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ToFile(t.Context(), openFile(t, path, fsformat.Options{}), dst, FileOptions{}); !errors.Is(err, fsformat.ErrOrder) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if r := openFile(t, dst, fsformat.Options{}); r.Size() != int64(len(b)-31*len(tt.ids)) {
			t.Errorf("%s: the copy has %d bytes", tt.name, r.Size())
		}
		r := openFile(t, path, fsformat.Options{Renumber: true})
		if _, err := ToFile(t.Context(), r, dst, FileOptions{}); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		for d, err := range Compare(t.Context(), r, openFile(t, dst, fsformat.Options{}), 0, tid.Max, CompareOptions{}, nil) {
			t.Errorf("%s: %v, %v", tt.name, d, err)
		}
	}
}

// linked is a history without the data that records share with earlier ones.
type linked struct {
	slice
	load func(oid tid.OID, at tid.TID) ([]byte, error)
}

func (l *linked) Linked(load func(oid tid.OID, at tid.TID) ([]byte, error)) { l.load = load }

func (l *linked) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for t, err := range l.slice.Transactions(ctx, after, upTo) {
			if err == nil {
				records := t.Records
				t.Records = func(yield func(*txn.Record, error) bool) {
					for r := range records {
						var err error
						if r.DataTID != 0 {
							r.Data, err = l.load(r.OID, r.DataTID)
						}
						if !yield(r, err) || err != nil {
							return
						}
					}
				}
			}
			if !yield(t, err) {
				return
			}
		}
	}
}

// A source without the data of links gets them from the file, also when a copy goes on.
func TestToFileLinked(t *testing.T) {
	gone := txn.Record{OID: 2, TID: 20}
	s := slice{txns: []txn.Transaction{
		transaction(10, record(1, "one"), record(2, "two")),
		transaction(20, record(1, "more"), gone),
		transaction(30, txn.Record{OID: 1, DataTID: 10, Data: []byte("one")}, txn.Record{OID: 2, DataTID: 20}),
		transaction(40, txn.Record{OID: 2, DataTID: 10, Data: []byte("two")}, txn.Record{OID: 1, DataTID: 30, Data: []byte("one")}),
	}}
	dir := t.TempDir()
	whole, other := filepath.Join(dir, "whole.fs"), filepath.Join(dir, "other.fs")
	if _, err := ToFile(t.Context(), s, whole, FileOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, upTo := range []tid.TID{20, 30, 40} {
		l := &linked{slice: s}
		if _, err := ToFile(t.Context(), l, other, FileOptions{UpTo: upTo}); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(other)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

// A new file is looked at before it gets its name, and does not get it after an error.
func TestToFileCopied(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.fs")
	s := sample(20)
	called := 0
	look := func(fail error) func(context.Context, string, tid.TID) error {
		return func(ctx context.Context, name string, last tid.TID) error {
			called++
			if name != path+".part" || last != s.txns[19].TID {
				t.Errorf("%s up to %v", name, last)
			}
			r, err := fsformat.Open(name, fsformat.Options{})
			if err != nil {
				return err
			}
			defer r.Close()
			if got, err := r.LastTID(ctx); err != nil || got != last {
				t.Errorf("the file ends with %v (%v), not %v", got, err, last)
			}
			return fail
		}
	}
	if _, err := ToFile(t.Context(), s, path, FileOptions{Copied: look(errBroken)}); !errors.Is(err, errBroken) {
		t.Errorf("error %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file is there: %v", err)
	}
	if _, err := ToFile(t.Context(), s, path, FileOptions{Copied: look(nil)}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil || called != 2 {
		t.Errorf("%v, called %d times", err, called)
	}
}
