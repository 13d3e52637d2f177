package source_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/source"
)

func fileAt(path string) *origin {
	return &origin{storage: config.Storage{File: &config.File{Path: path}}}
}

// A file that another process has open is refused with a sentence, and while it is a
// source no other one can open it. Nothing is written beside the lock.
func TestFileIsLocked(t *testing.T) {
	path := write(t, txntest.Small())
	held, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(syscall.Flock(int(held.Fd()), syscall.LOCK_EX), os.WriteFile(path+".lock", []byte(" 4711\n"), 0o666)); err != nil {
		t.Fatal(err)
	}
	_, err = source.Open(t.Context(), "main", fileAt(path).storage, source.Options{})
	if err == nil || !strings.Contains(err.Error(), "Data.fs is in use by process 4711: stop it first") {
		t.Errorf("a file that is in use: %v", err)
	}
	held.Close()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(path + ".index"); err != nil {
		t.Fatal(err)
	}
	s := open(t, fileAt(path), source.Options{})
	if _, err := source.Open(t.Context(), "other", fileAt(path).storage, source.Options{}); err == nil || !strings.Contains(err.Error(), "is it two sources?") {
		t.Errorf("a file that is two sources: %v", err)
	}
	if _, err := fsformat.Lock(path); !errors.As(err, new(*fsformat.LockedError)) {
		t.Errorf("the file can be locked while it is a source: %v", err)
	}
	for _, err := range s.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "Data.fs" && e.Name() != "Data.fs.lock" {
			t.Errorf("%s was written", e.Name())
		}
	}
	if after, err := os.ReadFile(path); err != nil || string(after) != string(before) {
		t.Errorf("the file was changed, %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	// One that the caller writes to is locked by its writer.
	w := open(t, fileAt(path), source.Options{Writable: true})
	unlock, err := fsformat.Lock(path)
	if err != nil {
		t.Fatalf("a file that is to be written to is locked: %v", err)
	}
	defer unlock()
	if _, err := w.LoadBefore(t.Context(), 0, tid.Max); err != nil {
		t.Error(err)
	}
}

const pythonOpen = `
import sys
from ZODB.FileStorage import FileStorage
s = FileStorage(sys.argv[1])
print('open', flush=True)
sys.stdin.read()
`

// A FileStorage of Python keeps a file from being a source, and a source keeps it away.
func TestFileIsInUseByPython(t *testing.T) {
	interpreter := zeotest.Python(t)
	path := write(t, txntest.Small())
	cmd := exec.Command(interpreter, "-c", pythonOpen, path)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 16)); err != nil {
		t.Fatal(err)
	}
	_, err = source.Open(t.Context(), "main", fileAt(path).storage, source.Options{})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("is in use by process %d: stop it first", cmd.Process.Pid)) {
		t.Errorf("a file that Python has open: %v", err)
	}
	in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	open(t, fileAt(path), source.Options{})
	b, err := exec.Command(interpreter, "-c", pythonOpen, path).CombinedOutput()
	if err == nil || !strings.Contains(string(b), "LockError") {
		t.Errorf("Python opens a source: %v, %s", err, b)
	}
}

// What happens to a file while it is a source is noticed.
func TestFileChanges(t *testing.T) {
	history := txntest.Random(3, 50, 40)
	oid := existing(t, history)
	for _, tt := range []struct {
		name    string
		change  func(path string) error
		lost    string // why reads are refused
		trouble string // what is the matter although reads go on
		warned  string
	}{
		{"Truncated", func(path string) error { return os.Truncate(path, 1000) }, "the file was truncated to 1000 bytes", "", ""},
		{"CutAtItsEnd", func(path string) error { // what is loaded here is still there
			fi, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, fi.Size()-10)
		}, "the file was truncated to", "", ""},
		{"Emptied", func(path string) error { return os.Truncate(path, 0) }, "the file was truncated to 0 bytes", "", ""},
		{"WrittenOver", func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			other := make([]byte, len(b)+1000)
			copy(other, b[:100])
			return os.WriteFile(path, other, 0o666)
		}, "the file was written over", "", ""},
		{"Replaced", func(path string) error {
			if err := os.WriteFile(path+".new", []byte("FS30"), 0o666); err != nil {
				return err
			}
			return os.Rename(path+".new", path)
		}, "", "the file was replaced by another one", ""},
		{"Removed", os.Remove, "", "the file was removed", ""},
		{"Grown", func(path string) error {
			f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			_, err = f.Write(make([]byte, 77))
			return errors.Join(err, f.Close())
		}, "", "", "bytes=77"},
		{"Touched", func(path string) error { return os.Chtimes(path, time.Time{}, time.Now().Add(time.Hour)) }, "", "", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, history)
			was, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			log, lines := newLog()
			s := open(t, fileAt(path), source.Options{Log: log})
			load := func() error {
				_, err := s.LoadBefore(t.Context(), oid, tid.Max)
				return err
			}
			if err := load(); err != nil || s.Trouble() != nil {
				t.Fatal(err, s.Trouble())
			}
			if err := tt.change(path); err != nil {
				t.Fatal(err)
			}
			// Within the time between two looks, reads find it by their failure, if at all.
			for began := time.Now(); time.Since(began) < 1200*time.Millisecond; time.Sleep(50 * time.Millisecond) {
				if err := load(); err != nil && (tt.lost == "" || !errors.Is(err, source.ErrChanged)) {
					t.Fatalf("load: %v", err)
				}
			}
			err = load()
			for range 10 { // and so is each read
				if again := load(); (again == nil) != (tt.lost == "") {
					t.Errorf("load again: %v", again)
				}
			}
			var iterated error
			for _, err := range s.Transactions(t.Context(), 0, tid.Max) {
				iterated = err
			}
			trouble := s.Trouble()
			want := tt.lost + tt.trouble
			if want == "" && trouble != nil || want != "" && (trouble == nil || !strings.Contains(trouble.Error(), want) || !strings.Contains(trouble.Error(), "put ")) {
				t.Errorf("trouble: %v", trouble)
			}
			for _, err := range []error{err, iterated} {
				if tt.lost == "" && err != nil || tt.lost != "" && (!errors.Is(err, source.ErrChanged) || !errors.Is(err, txn.ErrUnavailable) || !strings.Contains(err.Error(), tt.lost) || !strings.Contains(err.Error(), path)) {
					t.Errorf("read: %v", err)
				}
			}
			if want != "" && lines.count(want) != 1 || tt.warned != "" && lines.count(tt.warned) != 1 {
				t.Errorf("logged: %q", lines.lines)
			}
			if tt.lost == "" {
				return
			}
			if err := os.WriteFile(path, was, 0o666); err != nil {
				t.Fatal(err)
			}
			if err := load(); err != nil || s.Trouble() != nil {
				t.Errorf("the file was put back: %v, %v", err, s.Trouble())
			}
		})
	}
}

// What a file is at the opening: an incomplete end, no index, a wrong one, files of
// blobs, ids that are too great, damage.
func TestFileAsItIs(t *testing.T) {
	history := txntest.Random(3, 50, 40)
	last, err := history.LastTID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tooGreat := new(txntest.Memory)
	if err := tooGreat.Append(&txn.Transaction{TID: 1 << 40, Status: txn.Committed, Records: txn.Slice([]txn.Record{{OID: 1 << 63, TID: 1 << 40, Data: []byte("x")}})}); err != nil {
		t.Fatal(err)
	}
	edit := func(f func(b []byte) []byte) func(path string) error {
		return func(path string) error {
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			return os.WriteFile(path, f(b), 0o666)
		}
	}
	noIndex := func(path string) error { return os.Remove(path + ".index") }
	for _, tt := range []struct {
		name    string
		history *txntest.Memory
		change  func(path string) error
		warned  string
		refused string
	}{
		{"Good", history, func(string) error { return nil }, "", ""},
		{"NoIndex", history, noIndex, "has no index", ""},
		{"IndexOfAnother", history, func(path string) error {
			return os.WriteFile(path+".index", []byte("\x80\x03K\x05."), 0o666)
		}, "the stored index cannot be used", ""},
		{"IncompleteEnd", history, edit(func(b []byte) []byte { return append(b, b[4:60]...) }), "bytes=56", ""},
		{"Python2", history, edit(func(b []byte) []byte { return append([]byte("FS21"), b[4:]...) }), "magic=FS21", ""},
		{"OnlyMagic", history, edit(func(b []byte) []byte { return b[:4] }), "", "can not import empty storage"},
		{"NoBytes", history, edit(func(b []byte) []byte { return nil }), "", "can not import empty storage"},
		{"NoDataFs", history, edit(func(b []byte) []byte { return []byte("hello") }), "", "not a Data.fs"},
		{"TooGreat", tooGreat, func(string) error { return nil }, "", "object 8000000000000000 cannot be imported"},
		{"Absent", history, os.Remove, "", "no such file"},
		{"Directory", history, func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o777)) }, "", "not a regular file"},
		{"DamagedWithoutIndex", history, func(path string) error {
			return errors.Join(noIndex(path), edit(func(b []byte) []byte { b[12+8]++; b[4+8+7]++; return b })(path))
		}, "", "neofs salvage"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := write(t, tt.history)
			if err := tt.change(path); err != nil {
				t.Fatal(err)
			}
			log, lines := newLog()
			o := fileAt(path)
			o.storage.File.BlobDir = "/blobs"
			if tt.refused != "" {
				s, err := source.Open(t.Context(), "main", o.storage, source.Options{Log: log})
				if err == nil {
					s.Close()
				}
				if err == nil || !strings.Contains(err.Error(), tt.refused) || !strings.Contains(err.Error(), path) || !strings.Contains(err.Error(), "source main") {
					t.Errorf("opened: %v", err)
				}
				if unlock, err := fsformat.Lock(path); errors.As(err, new(*fsformat.LockedError)) {
					t.Errorf("what was refused stays locked: %v", err)
				} else if err == nil {
					unlock()
				}
				return
			}
			told := false
			s := open(t, o, source.Options{Log: log, Progress: func(int64, int64) { told = true }})
			if tt.warned != "" && lines.count(tt.warned) != 1 || lines.count("blob_dir=/blobs") != 1 {
				t.Errorf("logged: %q", lines.lines)
			}
			if (tt.name == "NoIndex") && !told {
				t.Error("no progress was told")
			}
			if e, err := s.Extent(t.Context()); err != nil || e.Last != last || e.Next == 0 || e.Next > 40 {
				t.Errorf("extent: %+v, %v", e, err)
			}
			before := int64(-1)
			n := 0
			each(t, s, func(tr *txn.Transaction) error {
				pos, size, ok := s.Position(tr.TID)
				if !ok || pos <= before || pos >= size {
					t.Errorf("transaction %v is at %d of %d, %v; the one before at %d", tr.TID, pos, size, ok, before)
				}
				before = pos
				n++
				return nil
			})
			if n != 50 {
				t.Errorf("%d transactions", n)
			}
		})
	}
}

// A damaged record is an error of that record, and of an iteration when it comes there.
func TestDamagedRecord(t *testing.T) {
	history := txntest.Random(3, 600, 40)
	path := write(t, history)
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.UseIndex(t.Context(), "", nil); err != nil {
		t.Fatal(err)
	}
	// An old record: a damaged one among the last makes the index unusable.
	var bad fsformat.RecordHeader
	for h, err := range r.Chain(t.Context(), existing(t, history)) {
		if err == nil && h.Pos < r.Size()/2 && h.DataLen > 0 {
			bad = *h
			break
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{0xff, 0xff}, bad.Pos+34); err != nil { // length of the data
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	s := open(t, fileAt(path), source.Options{})
	check := func(what string, err error) {
		t.Helper()
		// A load names the record that leads to it as well.
		if !errors.As(err, new(*fsformat.CorruptError)) || !strings.Contains(err.Error(), fmt.Sprint(bad.Pos)) || errors.Is(err, txn.ErrUnavailable) {
			t.Errorf("%s: %v, want damage at %d", what, err, bad.Pos)
		}
	}
	_, err = s.LoadBefore(t.Context(), bad.OID, bad.TID+1)
	check("load", err)
	n := 0
	for tr, err := range s.Transactions(t.Context(), 0, tid.Max) {
		if err == nil {
			_, err = dump(tr, nil)
		}
		if err != nil {
			check("iteration", err)
			break
		}
		n++
	}
	if n == 0 || n > 500 {
		t.Errorf("the iteration has ended after %d transactions", n)
	}
	for oid := range tid.OID(40) {
		_, err := s.LoadBefore(t.Context(), oid, tid.Max)
		if errors.As(err, new(*fsformat.CorruptError)) {
			t.Errorf("object %v: %v", oid, err)
		}
	}
}
