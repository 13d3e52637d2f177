package fsformat_test

import (
	"bufio"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/fsformat"
)

// The Python program executes a command for each line of its input and answers
// with lines, the last of which is a dot.
const pythonStorage = `
import hashlib, logging, os, sys
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.serialize import referencesf
from ZODB.utils import z64
import zc.lockfile

records = []
class Log(logging.Handler):
    def emit(self, r): records.append(r.getMessage())
logging.getLogger().addHandler(Log())
held = []

def digest(d): return None if d is None else hashlib.sha1(d).hexdigest()

def content(path):
    s = FileStorage(path, read_only=True)
    for t in s.iterator():
        print('txn', t.tid.hex(), ascii(t.status), t.user, t.description, t.extension_bytes)
        for r in t:
            print('rec', r.oid.hex(), digest(r.data), r.data_txn and r.data_txn.hex())
    for oid in sorted(s._index.keys()):
        try:
            data, tid = s.load(oid)
        except KeyError:
            print('obj', oid.hex(), 'gone')
        else:
            print('obj', oid.hex(), tid.hex(), digest(data), len(referencesf(data)))
            try:
                before = s.loadBefore(oid, tid)
            except KeyError:
                before = 'gone', None
            print('old', oid.hex(), before and (before[1] and digest(before[0])))
    print('last', s.lastTransaction().hex(), 'oids', len(s))
    s.close()

def append(path):
    s = FileStorage(path)
    t = TransactionMetaData(b'python', b'store', {})
    s.tpc_begin(t)
    s.store(s.new_oid(), z64, b'\x80\x03cm\nC\nq\x00.\x80\x03N.', '', t)
    s.tpc_vote(t)
    print(s.tpc_finish(t).hex())
    s.close()

def hold(path): held.append(FileStorage(path))
def release(path): held.pop().close()

for line in sys.stdin:
    command, path = line.rstrip('\n').split(' ', 1)
    del records[:]
    try:
        globals()[command](path)
    except zc.lockfile.LockError as e:
        print('LockError')
    for r in records:
        print('log', r)
    print('.', flush=True)
`

// python is a process that serves commands.
type python struct {
	in  io.Writer
	out *bufio.Scanner
}

func startPython(t *testing.T) *python {
	t.Helper()
	in, out := zeotest.Program(t, pythonStorage)
	return &python{in, out}
}

func (p *python) do(t *testing.T, command, path string) string {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, command, path); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for p.out.Scan() {
		if p.out.Text() == "." {
			return b.String()
		}
		fmt.Fprintln(&b, p.out.Text())
	}
	t.Fatalf("python ended at %s %s: %v", command, path, p.out.Err())
	return ""
}

const samples = "../testdata/fs/"

// readOnlyCopy has no side files of the original.
func readOnlyCopy(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(samples + name)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, b, 0o666); err != nil {
		t.Fatal(err)
	}
	return path
}

func history(t *testing.T, path string, w *fsformat.Writer) {
	t.Helper()
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for tr, err := range r.Transactions(t.Context(), w.LastTID(), tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Append(tr); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestPythonReadsWhatWasWritten(t *testing.T) {
	p := startPython(t)
	for _, name := range []string{"01-basic", "02-undo", "03-creation-undone", "04-deleted", "05-before-pack", "05-packed", "06-metadata", "07-btrees-refs", "site"} {
		t.Run(name, func(t *testing.T) {
			source := readOnlyCopy(t, name+".fs")
			want := p.do(t, "content", source)
			path := filepath.Join(t.TempDir(), "Data.fs")
			w, err := fsformat.Create(path, fsformat.WriterOptions{})
			if err != nil {
				t.Fatal(err)
			}
			history(t, source, w)
			got := p.do(t, "content", path)
			if name == "05-packed" { // the copy knows a revision that the pack has hidden
				want, got = withoutPast(want), withoutPast(got)
			}
			if diff := cmp.Diff(want, got); diff != "" || !strings.Contains(want, "obj ") {
				t.Errorf("contents (-source +copy):\n%s", diff)
			}

			// Python appends with the index written here, and the other way round.
			at, err := tid.Parse(strings.TrimSpace(p.do(t, "append", path)))
			if err != nil {
				t.Fatalf("python appends: %v", err)
			}
			w, err = fsformat.OpenAppend(t.Context(), path, fsformat.WriterOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if w.LastTID() != at || w.Cut().Ignored != 0 {
				t.Errorf("last transaction %v, want %v; %d bytes cut", w.LastTID(), at, w.Cut().Ignored)
			}
			if err := w.Close(); err != nil {
				t.Fatal(err)
			}
			r, err := fsformat.Open(path, fsformat.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			if unusable, err := r.UseIndex(t.Context(), "", nil); unusable != nil || err != nil {
				t.Errorf("the index of Python is not used: %v, %v", unusable, err)
			}
			if sum, err := fsformat.Check(t.Context(), r, fsformat.CheckOptions{}, func(p fsformat.Problem) { t.Error(p) }); err != nil || sum.LastTID != at {
				t.Errorf("%+v, %v", sum, err)
			}
		})
	}
}

// withoutPast drops the revisions before the current ones, which a pack hides, and
// what ZODB logs about that.
func withoutPast(s string) string {
	lines := strings.Split(s, "\n")
	return strings.Join(slices.DeleteFunc(lines, func(l string) bool { return strings.HasPrefix(l, "old ") || strings.HasPrefix(l, "log ") }), "\n")
}

func TestPythonRespectsTheLock(t *testing.T) {
	p := startPython(t)
	path := readOnlyCopy(t, "01-basic.fs")
	w, err := fsformat.OpenAppend(t.Context(), path, fsformat.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := p.do(t, "hold", path); !strings.Contains(got, "LockError") {
		t.Errorf("python opens a file that is being written: %q", got)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	p.do(t, "hold", path)
	if _, err := fsformat.OpenAppend(t.Context(), path, fsformat.WriterOptions{}); !errors.As(err, new(*fsformat.LockedError)) {
		t.Errorf("opening what Python writes: %v, want a LockedError", err)
	}
	p.do(t, "release", path)
}

// Until a group is durable, Python sees nothing of it, and cuts it off.
func TestPythonCutsOffAnUnfinishedGroup(t *testing.T) {
	p := startPython(t)
	path := readOnlyCopy(t, "01-basic.fs")
	before := p.do(t, "content", path)
	whole, err := os.ReadFile(samples + "02-undo.fs")
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	// What a crash leaves: transactions of which the first passes the end of the file,
	// and the last lacks its last bytes.
	group, err := hex.DecodeString("03ff0000000000004000000000000000" + "20" + "000000000000" + "0000000000000017")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(append(group, whole[4:len(whole)-8]...)); err != nil {
		t.Fatal(err)
	}
	p.do(t, "hold", path)
	p.do(t, "release", path)
	if diff := cmp.Diff(before, p.do(t, "content", path)); diff != "" {
		t.Errorf("content after the cut (-before +after):\n%s", diff)
	}
}
