package fsformat

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

func appendAll(t *testing.T, w *Writer, r *Reader, after, upTo tid.TID) {
	t.Helper()
	for tr, err := range r.Transactions(t.Context(), after, upTo) {
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Append(tr); err != nil {
			t.Fatal(err)
		}
	}
}

// A file may be copied in as many parts as one likes.
func TestAppendContinues(t *testing.T) {
	for _, name := range []string{"01-basic", "02-undo", "03-creation-undone", "06-metadata", "07-btrees-refs"} {
		for _, group := range []int64{0, 1 << 20} {
			t.Run(fmt.Sprint(name, group), func(t *testing.T) {
				r := openSample(t, name)
				path := filepath.Join(t.TempDir(), "Data.fs")
				writeFile(t, path, nil)
				for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
					if err != nil {
						t.Fatal(err)
					}
					w, err := OpenAppend(t.Context(), path, WriterOptions{Group: group, NoSync: true})
					if err != nil {
						t.Fatal(err)
					}
					if err := w.Append(tr); err != nil {
						t.Fatal(err)
					}
					if err := w.Close(); err != nil {
						t.Fatal(err)
					}
					if w.Durable() != tr.TID || w.LastTID() != tr.TID {
						t.Errorf("durable up to %v, last %v, want %v", w.Durable(), w.LastTID(), tr.TID)
					}
				}
				if diff := cmp.Diff(hex.Dump(readFile(t, samples+name+".fs")), hex.Dump(readFile(t, path))); diff != "" {
					t.Errorf("file (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(hex.Dump(readFile(t, samples+name+".fs.index")), hex.Dump(readFile(t, path+".index"))); diff != "" {
					t.Errorf("index (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// Whenever the power fails, the next opening shows a number of whole transactions,
// never fewer than were said to be durable.
func TestTornWritesAreCutOff(t *testing.T) {
	source := openSample(t, "02-undo")
	whole := readFile(t, samples+"02-undo.fs")
	boundaries := map[int64]tid.TID{magicLen: 0}
	for tr, err := range source.Scan(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		boundaries[tr.Head.End()] = tr.TID
	}
	dir := t.TempDir()
	path := filepath.Join(dir, "Data.fs")
	last := tid.TID(0)
	for n := magicLen; n <= len(whole); n++ {
		if at, ok := boundaries[int64(n)]; ok {
			last = at
		}
		for name, file := range map[string][]byte{
			"cut":            whole[:n],
			"zeros":          append(bytes.Clone(whole[:n]), make([]byte, 50)...),
			"header of c":    append(bytes.Clone(whole[:n]), "\x03\xff\x00\x00\x00\x00\x00\x00\x40\x00\x00\x00\x00\x00\x00\x00c\x00\x00\x00\x00\x00\x00"...),
			"a whole c":      append(bytes.Clone(whole[:n]), voted()...),
			"one byte more":  append(bytes.Clone(whole[:n]), 0),
			"seven and more": append(bytes.Clone(whole[:n]), make([]byte, 22)...),
		} {
			if _, ok := boundaries[int64(n)]; !ok && name != "cut" {
				continue
			}
			writeFile(t, path, file)
			w, err := OpenAppend(t.Context(), path, WriterOptions{NoSync: true})
			if err != nil {
				t.Fatalf("%s at %d: %v", name, n, err)
			}
			if w.LastTID() != last {
				t.Errorf("%s at %d: last transaction %v, want %v", name, n, w.LastTID(), last)
			}
			if cut := w.Cut(); cut.Ignored > 0 {
				if saved := readFile(t, cut.Reason); !bytes.Equal(saved, file[cut.End:]) {
					t.Errorf("%s at %d: saved %x, want %x", name, n, saved, file[cut.End:])
				}
				if err := os.Remove(cut.Reason); err != nil {
					t.Fatal(err)
				}
			}
			appendAll(t, w, source, last, tid.Max)
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			if got := readFile(t, path); !bytes.Equal(got, whole) {
				t.Fatalf("%s at %d: the completed file differs:\n%s", name, n, cmp.Diff(hex.Dump(whole), hex.Dump(got)))
			}
			if err := os.Remove(path + ".index"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				t.Fatal(err)
			}
		}
	}
}

// voted is a complete transaction that was not finished.
func voted() []byte {
	return []byte("\x03\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x17c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x17")
}

// Whenever a writer is killed, what is left of its group is an incomplete end.
func TestKilledWhileAppending(t *testing.T) {
	source := openSample(t, "02-undo")
	dir := t.TempDir()
	path := filepath.Join(dir, "Data.fs")
	want := readFile(t, samples+"02-undo.fs")
	const begun = tid.TID(0x03f6420004444444)
	for _, group := range []int64{0, 200, 1 << 20} {
		writeFile(t, path, want[:643])
		w, err := OpenAppend(t.Context(), path, WriterOptions{Group: group})
		if err != nil {
			t.Fatal(err)
		}
		states := 0
		restart := func() {
			t.Helper()
			states++
			left := readFile(t, path)
			killed := filepath.Join(dir, "killed.fs")
			writeFile(t, killed, left)
			again, err := OpenAppend(t.Context(), killed, WriterOptions{Group: group, NoSync: true})
			if err != nil {
				t.Errorf("group %d, state %d: %v", group, states, err)
				return
			}
			if again.LastTID() < w.Durable() {
				t.Errorf("group %d, state %d: last %v, durable %v", group, states, again.LastTID(), w.Durable())
			}
			appendAll(t, again, source, again.LastTID(), tid.Max)
			if err := again.Close(); err != nil {
				t.Error(err)
			}
			if got := readFile(t, killed); !bytes.Equal(got, want) {
				t.Errorf("group %d, state %d: the file differs", group, states)
			}
		}
		w.onWritten = restart
		for tr, err := range source.Transactions(t.Context(), begun, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			if err := w.Append(tr); err != nil {
				t.Fatal(err)
			}
			restart()
			// One that fails, after some of it has been written.
			err := w.Append(&txn.Transaction{TID: tid.Max, Records: func(yield func(*txn.Record, error) bool) {
				if yield(&txn.Record{OID: 1, Data: make([]byte, flushSize+1)}, nil) {
					restart()
					yield(nil, errors.New("boom"))
				}
			}})
			if err == nil {
				t.Fatal("a transaction that cannot be read is appended")
			}
			restart()
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if got := readFile(t, path); !bytes.Equal(got, want) || states < 10 {
			t.Errorf("group %d: the file differs, or %d states", group, states)
		}
	}
}

func TestUnfinishedGroupIsSeenByNobody(t *testing.T) {
	source := openSample(t, "02-undo")
	path := filepath.Join(t.TempDir(), "Data.fs")
	w, err := Create(path, WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	appendAll(t, w, source, 0, 0x03f6420004444444)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	appendAll(t, w, source, 0x03f6420004444444, tid.Max)
	if err := w.writeOut(); err != nil { // and here the power fails
		t.Fatal(err)
	}
	if w.Durable() != 0x03f6420004444444 {
		t.Errorf("durable up to %v", w.Durable())
	}
	torn := readFile(t, path+".part")
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file has its name already: %v", err)
	}
	if err := w.Abort(); err != nil {
		t.Fatal(err)
	}
	if aborted := readFile(t, path+".part"); !bytes.Equal(aborted, readFile(t, samples+"02-undo.fs")[:len(aborted)]) || len(aborted) != 643 {
		t.Errorf("an aborted Create leaves %d bytes, want what is durable: 643", len(aborted))
	}
	writeFile(t, path+".part", torn)
	w, err = Create(path, WriterOptions{Resume: true})
	if err != nil {
		t.Fatal(err)
	}
	if w.LastTID() != 0x03f6420004444444 || w.Cut().End != 643 {
		t.Errorf("resumed after %v, cut at %d", w.LastTID(), w.Cut().End)
	}
	appendAll(t, w, source, w.LastTID(), tid.Max)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(hex.Dump(readFile(t, samples+"02-undo.fs")), hex.Dump(readFile(t, path))); diff != "" {
		t.Errorf("file (-want +got):\n%s", diff)
	}
	if _, err := Create(path, WriterOptions{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("creating what exists: %v", err)
	}
}

func TestOnlyOneWriter(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	w, err := Create(path, WriterOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	var locked *LockedError
	if _, err := Create(path, WriterOptions{}); !errors.As(err, &locked) {
		t.Fatalf("a second writer: %v, want a LockedError", err)
	}
	want := fmt.Sprintf("%s.lock is locked by process %d: the file is open for writing", path, os.Getpid())
	if locked.Error() != want {
		t.Errorf("error %q, want %q", locked, want)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w, err = OpenAppend(t.Context(), path, WriterOptions{})
	if err != nil {
		t.Fatalf("after the first has closed: %v", err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

// An index that is stored on the way covers what was appended, and a file without a usable one
// gets one.
func TestSaveIndex(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	w, err := Create(path, WriterOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	add := func(at tid.TID) {
		t.Helper()
		if err := w.Append(&txn.Transaction{TID: at, Records: txn.Slice([]txn.Record{{OID: tid.OID(at), Data: []byte("data")}})}); err != nil {
			t.Fatal(err)
		}
	}
	covers := func(last tid.TID) {
		t.Helper()
		r, err := Open(path, Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		x, err := r.ReadIndex(path + ".index")
		if err != nil || x.End != r.Size() {
			t.Fatalf("the stored index covers %+v (%v) of %d bytes", x, err, r.Size())
		}
		if _, ok := x.Get(tid.OID(last)); !ok {
			t.Errorf("object %v is not in the index", last)
		}
	}
	add(10)
	if err := w.SaveIndex(); err != nil { // the file has not its name yet
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	covers(10)
	if err := os.WriteFile(path+".index", []byte("garbage"), 0o666); err != nil {
		t.Fatal(err)
	}
	if w, err = OpenAppend(t.Context(), path, WriterOptions{Group: 1 << 20, NoSync: true}); err != nil {
		t.Fatal(err)
	}
	if err := w.SaveIndex(); err != nil {
		t.Fatal(err)
	}
	covers(10)
	add(20)
	if err := w.SaveIndex(); err != nil {
		t.Fatal(err)
	}
	covers(20)
	add(30)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	covers(30)
}

func TestAppendRefuses(t *testing.T) {
	boom := errors.New("boom")
	path := filepath.Join(t.TempDir(), "Data.fs")
	w, err := Create(path, WriterOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	good := func(at tid.TID) *txn.Transaction {
		return &txn.Transaction{TID: at, Records: txn.Slice([]txn.Record{{OID: 1, Data: []byte("data")}})}
	}
	if err := w.Append(good(10)); err != nil {
		t.Fatal(err)
	}
	name := path + ".part"
	for _, tt := range []struct {
		what string
		t    *txn.Transaction
		want string
	}{
		{"same tid", good(10), ": its id is not above that of the last one, 000000000000000a"},
		{"status", &txn.Transaction{TID: 11, Status: 'x'}, ": invalid status 'x'"},
		{"long user", &txn.Transaction{TID: 11, User: make([]byte, 65536)}, ": user of 65536 bytes, more than 65535"},
		{"empty data", &txn.Transaction{TID: 11, Records: txn.Slice([]txn.Record{{OID: 2, Data: []byte("x")}, {OID: 1, Data: []byte{}}})},
			": object 0000000000000001: its data is empty, which a Data.fs cannot tell from a back-pointer"},
		{"broken source", &txn.Transaction{TID: 11, Records: func(yield func(*txn.Record, error) bool) {
			if yield(&txn.Record{OID: 3, Data: make([]byte, 3<<20)}, nil) {
				yield(nil, boom)
			}
		}}, ": boom"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			size := w.Size()
			err := w.Append(tt.t)
			if err == nil || err.Error() != fmt.Sprintf("%s: appending transaction %v%s", name, tt.t.TID, tt.want) {
				t.Errorf("error %v, want ...%s", err, tt.want)
			}
			if w.Size() != size {
				t.Errorf("the file has grown from %d to %d", size, w.Size())
			}
		})
	}
	if err := w.Append(good(11)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if sum, err := Check(t.Context(), r, CheckOptions{Structure: true}, func(p Problem) { t.Error(p) }); err != nil || sum.Transactions != 2 || sum.Objects != 1 {
		t.Errorf("%+v, %v", sum, err)
	}
	if err := w.Append(good(12)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("appending to a closed writer: %v", err)
	}
}

// A source may say that data are those of an earlier transaction when they are not.
func TestFalseCopiesAreWrittenInFull(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	w, err := Create(path, WriterOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<17)
	other := bytes.Clone(large)
	other[len(other)-1] = 'x'
	for _, tr := range []txn.Transaction{
		{TID: 1, Records: txn.Slice([]txn.Record{{OID: 1, Data: []byte("one")}, {OID: 2, Data: large}})},
		{TID: 2, Records: txn.Slice([]txn.Record{{OID: 1}, {OID: 2, Data: []byte("small")}})},
		{TID: 3, Records: txn.Slice([]txn.Record{{OID: 1, Data: []byte("one"), DataTID: 1}, {OID: 2, Data: large, DataTID: 1}})},
		{TID: 4, Records: txn.Slice([]txn.Record{{OID: 1, Data: []byte("two"), DataTID: 1}, {OID: 2, Data: other, DataTID: 1}})},
		{TID: 5, Records: txn.Slice([]txn.Record{{OID: 1, DataTID: 2}, {OID: 2, Data: large, DataTID: 3}, {OID: 3, Data: []byte("x"), DataTID: 1}})},
	} {
		if err := w.Append(&tr); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var got strings.Builder
	for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		for rec, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&got, "%d: %d from %d, %d bytes\n", tr.TID, rec.OID, rec.DataTID, len(rec.Data))
			if rec.OID == 2 && tr.TID == 4 && !bytes.Equal(rec.Data, other) {
				t.Error("the data of object 2 in transaction 4 are not those that were given")
			}
		}
	}
	want := `1: 1 from 0, 3 bytes
1: 2 from 0, 2097152 bytes
2: 1 from 0, 0 bytes
2: 2 from 0, 5 bytes
3: 1 from 1, 3 bytes
3: 2 from 1, 2097152 bytes
4: 1 from 0, 3 bytes
4: 2 from 0, 2097152 bytes
5: 1 from 2, 0 bytes
5: 2 from 3, 2097152 bytes
5: 3 from 0, 1 bytes
`
	if diff := cmp.Diff(want, got.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	data, err := readBack(r, 2, 5)
	if err != nil || !bytes.Equal(data, large) {
		t.Errorf("object 2 has %d bytes, %v", len(data), err)
	}
}

func readBack(r *Reader, oid tid.OID, at tid.TID) ([]byte, error) {
	x, err := r.ReadIndex(r.Name() + ".index")
	if err != nil {
		return nil, err
	}
	r.SetIndex(x)
	rev, err := r.LoadAt(context.Background(), oid, at)
	return rev.Data, err
}
