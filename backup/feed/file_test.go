package feed_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/fsformat"
)

// dataFS is a file that a writer has open.
type dataFS struct {
	path string
	w    *fsformat.Writer
}

func newDataFS(t *testing.T) *dataFS {
	t.Helper()
	path := filepath.Join(t.TempDir(), "Data.fs")
	w, err := fsformat.Create(path, fsformat.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	d := &dataFS{path: path}
	d.append(t)
	return d
}

// append opens the file for appending.
func (d *dataFS) append(t *testing.T) {
	t.Helper()
	w, err := fsformat.OpenAppend(t.Context(), d.path, fsformat.WriterOptions{Group: -1})
	if err != nil {
		t.Fatal(err)
	}
	d.w = w
	t.Cleanup(func() { w.Abort() })
}

func (d *dataFS) Append(t *testing.T, list ...feedtest.Transaction) {
	t.Helper()
	for _, c := range list {
		if err := d.w.Append(&txn.Transaction{
			TID: c.TID, Status: txn.Committed, User: []byte(c.User), Description: []byte(c.Description), Extension: []byte(c.Extension),
			Records: txn.Slice(c.Records),
		}); err != nil {
			t.Fatal(err)
		}
	}
}

func (d *dataFS) Pack(*testing.T, tid.TID) (tid.TID, string) { panic("not of a file in use") }

func (d *dataFS) Open(t *testing.T) feed.Feed {
	t.Helper()
	return d.open(t)
}

func (d *dataFS) open(t *testing.T) *feed.File {
	t.Helper()
	f, err := feed.OpenFile(t.Context(), d.path, feed.FileOptions{Poll: 2 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestFile(t *testing.T) {
	feedtest.Run(t, feedtest.Options{NoEmptyRecords: true, NoPack: true, NoChecks: true},
		func(t *testing.T) feedtest.Database { return newDataFS(t) })
}

const samples = "../../testdata/fs/"

func sample(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(samples + name + ".fs")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// replace puts a new file at a path, as a pack does.
func replace(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path+".pack", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".pack", path); err != nil {
		t.Fatal(err)
	}
}

// fileOf is a feed of a new file with these bytes.
func fileOf(t *testing.T, b []byte) (f *feed.File, path string) {
	t.Helper()
	d := &dataFS{path: filepath.Join(t.TempDir(), "Data.fs")}
	if err := os.WriteFile(d.path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return another(t, d.path), d.path
}

func another(t *testing.T, path string) *feed.File {
	t.Helper()
	f := (&dataFS{path: path}).open(t)
	t.Cleanup(func() { f.Close() })
	return f
}

// tids reads a range.
func tids(t *testing.T, f feed.Feed, after tid.TID) []tid.TID {
	t.Helper()
	last, _, err := f.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	list, err := tryTIDs(t, f, after, last)
	if err != nil {
		t.Fatal(err)
	}
	return list
}

func tryTIDs(t *testing.T, f feed.Feed, after, upTo tid.TID) (list []tid.TID, err error) {
	t.Helper()
	for tr, err := range f.Read(t.Context(), after, upTo) {
		if err != nil {
			return list, err
		}
		for _, err := range tr.Records {
			if err != nil {
				return list, err
			}
		}
		list = append(list, tr.TID)
	}
	return list, nil
}

// says checks an error: of a kind, with what to do.
func says(t *testing.T, what string, err, kind error, text string) {
	t.Helper()
	if !errors.Is(err, kind) || !strings.Contains(fmt.Sprint(err), text) {
		t.Errorf("%s: %v, want %q with %q", what, err, kind, text)
	}
}

// A pack of a file that is followed is found, in the process that reads it and in the next one.
func TestFilePacked(t *testing.T) {
	f, path := fileOf(t, sample(t, "05-before-pack"))
	all := tids(t, f, 0)
	if p, err := f.Packed(t.Context()); p != tid.Zero || err != nil {
		t.Errorf("Packed = %v, %v", p, err)
	}
	last := all[len(all)-1]
	mark, err := f.Mark(t.Context(), last)
	if err != nil {
		t.Fatal(err)
	}
	replace(t, path, sample(t, "05-packed"))
	_, _, err = f.Last(t.Context())
	says(t, "Last", err, feed.ErrPacked, "neobackup rebase")
	says(t, "Wait", f.Wait(t.Context()), feed.ErrPacked, "neobackup rebase")

	f = another(t, path)
	says(t, "Resume", f.Resume(t.Context(), mark), feed.ErrPacked, "neobackup rebase")
	// Without the mark, it shows where something after what was read is packed.
	packed := tids(t, f, 0)
	p, err := f.Packed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	i, _ := slices.BinarySearch(packed, p+1)
	if i == 0 || i == len(packed) || packed[i] != p+1 {
		t.Errorf("Packed = %v of %v: it is not just before one of them", p, packed)
	}
	f = another(t, path)
	end, _, err := f.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = tryTIDs(t, f, packed[0], end)
	says(t, "Read", err, feed.ErrPacked, "neobackup rebase")
	if got, err := tryTIDs(t, f, packed[i-1], end); len(got) != len(packed)-i || err != nil {
		t.Errorf("Read of what is not packed = %v, %v", got, err)
	}

	// A first backup of a packed file that was interrupted goes on.
	f = another(t, path)
	if mark, err = f.Mark(t.Context(), packed[0]); err != nil {
		t.Fatal(err)
	}
	f = another(t, path)
	if err := f.Resume(t.Context(), mark); err != nil {
		t.Fatal(err)
	}
	if got, err := tryTIDs(t, f, packed[0], end); len(got) != len(packed)-1 || err != nil {
		t.Errorf("Read from the middle of what is packed = %v, %v", got, err)
	}
}

// A file that is another one, or has become shorter, is refused; one that only has a new
// place on the disk is not.
func TestFileChanged(t *testing.T) {
	whole := sample(t, "02-undo")
	f, path := fileOf(t, whole)
	all := tids(t, f, 0)
	mark, err := f.Mark(t.Context(), all[len(all)-1])
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(path string) error
		kind   error
	}{
		{"copied", func(path string) error { replace(t, path, whole); return nil }, nil},
		{"longer", func(path string) error { replace(t, path, append(slices.Clip(whole), "FS"...)); return nil }, nil},
		{"truncated", func(path string) error { return os.Truncate(path, int64(len(whole)-10)) }, feed.ErrChanged},
		{"empty", func(path string) error { return os.Truncate(path, 0) }, feed.ErrChanged},
		{"written over", func(path string) error { return os.WriteFile(path, sample(t, "04-deleted"), 0o600) }, feed.ErrChanged},
		{"another", func(path string) error { replace(t, path, sample(t, "04-deleted")); return nil }, feed.ErrReplaced},
		{"older", func(path string) error { replace(t, path, whole[:len(whole)-10]); return nil }, feed.ErrReplaced},
		{"something else", func(path string) error { replace(t, path, []byte("something else")); return nil }, feed.ErrReplaced},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, path := fileOf(t, whole)
			tids(t, f, 0)
			if err := tt.change(path); err != nil {
				t.Fatal(err)
			}
			last, _, err := f.Last(t.Context())
			if tt.kind != nil {
				says(t, "Last", err, tt.kind, path)
				says(t, "Wait", f.Wait(t.Context()), tt.kind, path)
			} else if err != nil || last != all[len(all)-1] {
				t.Errorf("Last = %v, %v", last, err)
			}
			if tt.name == "something else" {
				return
			}
			if err := another(t, path).Resume(t.Context(), mark); (err == nil) != (tt.kind == nil) || err != nil && !errors.Is(err, feed.ErrChanged) && !errors.Is(err, feed.ErrReplaced) {
				t.Errorf("Resume: %v", err)
			}
		})
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for i, ask := range []func() error{func() error { _, _, err := f.Last(t.Context()); return err }, func() error { return f.Wait(t.Context()) }} {
		if err := ask(); !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, txn.ErrUnavailable) {
			t.Errorf("a file that was removed: question %d: %v", i, err)
		}
	}
	replace(t, path, whole)
	if last, _, err := f.Last(t.Context()); err != nil || last != all[len(all)-1] {
		t.Errorf("Last of a file that is there again: %v, %v", last, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if _, err := feed.OpenFile(t.Context(), path, feed.FileOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("OpenFile without a file: %v", err)
	}
}

// A file that is cut off while it is read is told from one that is damaged.
func TestFileTruncatedWhileRead(t *testing.T) {
	d := newDataFS(t)
	var list []feedtest.Transaction
	for i := range 50 {
		list = append(list, feedtest.Transaction{TID: tid.TID(1+i) << 32, Records: []txn.Record{{OID: 1, Data: make([]byte, 100_000)}}})
	}
	d.Append(t, list...)
	f := d.open(t)
	defer f.Close()
	last, _, err := f.Last(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for tr, e := range f.Read(t.Context(), 0, last) {
		if err = e; err != nil {
			break
		}
		if tr.TID == 2<<32 {
			if err := os.Truncate(d.path, 1_000_000); err != nil {
				t.Fatal(err)
			}
		}
		for _, e := range tr.Records {
			err = e
		}
		if err != nil {
			break
		}
	}
	says(t, "Read", err, feed.ErrChanged, "truncated")
}

// A server writes a transaction step by step, and gives some of them up. What a feed sees is
// what was finished.
func TestFileInUse(t *testing.T) {
	whole := sample(t, "02-undo")
	r, err := fsformat.NewReader(bytes.NewReader(whole), int64(len(whole)), "", fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var ends []int64
	var want []tid.TID
	for tr, err := range r.Scan(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		ends, want = append(ends, tr.Head.End()), append(want, tr.TID)
	}
	f, path := fileOf(t, whole[:4])
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	var finished atomic.Int64 // transactions
	served := make(chan error, 1)
	go func() { // the server
		rnd := rand.New(rand.NewPCG(1, 0))
		begin := int64(4)
		served <- func() error {
			defer file.Close()
			for i := 0; i < len(ends); {
				b := slices.Clone(whole[begin:ends[i]])
				status := b[16]
				b[16] = 'c'
				for at := 0; at < len(b); {
					n := min(1+rnd.IntN(100), len(b)-at)
					if _, err := file.WriteAt(b[at:at+n], begin+int64(at)); err != nil {
						return err
					}
					at += n
					if rnd.IntN(4) == 0 {
						time.Sleep(50 * time.Microsecond)
					}
				}
				if rnd.IntN(2) == 0 { // given up
					if err := file.Truncate(begin); err != nil {
						return err
					}
					continue
				}
				if _, err := file.WriteAt([]byte{status}, begin+16); err != nil {
					return err
				}
				begin = ends[i]
				i++
				finished.Store(int64(i))
			}
			return nil
		}()
	}()
	var got []tid.TID
	after := tid.Zero
	for len(got) < len(want) {
		if err := f.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		n := int(finished.Load())
		list := tids(t, f, after)
		got = append(got, list...)
		if len(got) < n {
			t.Fatalf("%d transactions were read, %d were finished", len(got), n)
		}
		if len(got) > 0 {
			after = got[len(got)-1]
			if _, err := f.Info(t.Context(), after); err != nil {
				t.Fatal(err)
			}
			if _, err := f.Info(t.Context(), after+1); !errors.Is(err, txn.ErrNotFound) {
				t.Fatalf("Info of what comes next: %v", err)
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("transactions (-want +got):\n%s", diff)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, whole) {
		t.Errorf("the server has written something else, %v", err)
	}
}

// What a file has out of order is not backed up: there is a way to mend it.
func TestFileOrder(t *testing.T) {
	d := newDataFS(t)
	d.Append(t, feedtest.Transaction{TID: 2 << 32, Records: []txn.Record{{OID: 1, Data: []byte("1")}}})
	d.w.Abort()
	b, err := os.ReadFile(d.path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := feed.OpenFile(t.Context(), d.path, feed.FileOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.WriteFile(d.path, append(b, b[4:]...), 0o600); err != nil { // the same again
		t.Fatal(err)
	}
	_, _, err = f.Last(t.Context())
	says(t, "Last", err, fsformat.ErrOrder, "neoexport --renumber")
}

// The Python program is a server with a file in use.
const pythonServer = `
import sys, time, transaction, ZODB
from ZODB.FileStorage import FileStorage
from ZODB.utils import z64
db = None
for line in sys.stdin:
    c = line.split()
    if c[0] == 'open':
        db = ZODB.DB(FileStorage(c[1], create=False))
        conn = db.open()
    elif c[0] == 'commit':
        for i in range(int(c[1])):
            conn.root()[i % 7] = 'x' * (i * 37 % 5000)
            transaction.commit()
    elif c[0] == 'abort':
        conn.root()['a'] = 'y' * 10000
        transaction.abort()
    elif c[0] == 'pack':
        db.pack(time.time())
    print(db.storage.lastTransaction().hex(), flush=True)
`

// A file that Python's server has open is followed, until that packs it.
func TestFilePython(t *testing.T) {
	f, path := fileOf(t, nil)
	in, out := zeotest.Program(t, pythonServer)
	do := func(line string) tid.TID {
		t.Helper()
		if _, err := fmt.Fprintln(in, line); err != nil {
			t.Fatal(err)
		}
		if !out.Scan() {
			t.Fatalf("python ended at %s: %v", line, out.Err())
		}
		last, err := tid.Parse(out.Text())
		if err != nil {
			t.Fatal(err)
		}
		return last
	}
	var all []tid.TID
	after := tid.Zero
	read := func(want tid.TID) {
		t.Helper()
		all = append(all, tids(t, f, after)...)
		if after = all[len(all)-1]; after != want {
			t.Errorf("the last transaction read is %v, it should be %v", after, want)
		}
	}
	read(do("open " + path))
	for range 5 {
		read(do("commit 50"))
		read(do("abort"))
	}
	if diff := cmp.Diff(all, tids(t, another(t, path), 0)); diff != "" {
		t.Errorf("followed and read at once differ:\n%s", diff)
	}
	mark, err := f.Mark(t.Context(), after)
	if err != nil {
		t.Fatal(err)
	}
	do("pack")
	_, _, err = f.Last(t.Context())
	says(t, "Last", err, feed.ErrPacked, "neobackup rebase")
	says(t, "Resume", another(t, path).Resume(t.Context(), mark), feed.ErrPacked, "neobackup rebase")
	f, after, all = another(t, path), 0, nil
	read(do("commit 3"))
}

// What is finished between Last and Read is not read yet, and does no harm.
func TestFileFinishedMeanwhile(t *testing.T) {
	whole := sample(t, "02-undo")
	whole = whole[:len(whole):len(whole)]
	r, err := fsformat.NewReader(bytes.NewReader(whole), int64(len(whole)), "", fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var heads []fsformat.Header
	for tr, err := range r.Scan(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		heads = append(heads, tr.Head)
	}
	last := heads[len(heads)-1]
	voted := slices.Clone(whole)
	voted[last.Pos+16] = 'c'
	f, path := fileOf(t, voted)
	upTo, _, err := f.Last(t.Context())
	if want := heads[len(heads)-2].TID; upTo != want || err != nil {
		t.Fatalf("Last = %v, %v, want %v", upTo, err, want)
	}
	if err := os.WriteFile(path, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, to := range []tid.TID{upTo, last.TID, tid.Max} {
		if got, err := tryTIDs(t, f, 0, to); len(got) != len(heads)-1 || err != nil {
			t.Errorf("Read up to %v = %v, %v", to, got, err)
		}
	}
	for _, at := range []tid.TID{upTo + 1, last.TID, last.TID + 1} {
		if _, err := f.Info(t.Context(), at); !errors.Is(err, txn.ErrNotFound) {
			t.Errorf("Info(%v): %v", at, err)
		}
		if has, err := f.Has(t.Context(), 1, at); has || err != nil {
			t.Errorf("Has at %v = %v, %v", at, has, err)
		}
	}
	if got := tids(t, f, upTo); len(got) != 1 || got[0] != last.TID {
		t.Errorf("what was finished is %v", got)
	}
}
