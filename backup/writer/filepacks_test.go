package writer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/fsformat/pickle"
)

// The Python program commits to a file and packs it, with garbage collection. Each line is a command; the
// answer is how many bytes the file has.
const packingPython = `
import logging, os, random, sys, transaction, ZODB
from persistent.mapping import PersistentMapping
from ZODB.Connection import TransactionMetaData
from ZODB.FileStorage import FileStorage
from ZODB.POSException import ConflictError, POSKeyError, UndoError
from ZODB.TimeStamp import TimeStamp

logging.disable(logging.CRITICAL)
path = sys.stdin.readline().rstrip('\n')
random.seed(int(sys.stdin.readline()))
db = ZODB.DB(FileStorage(path))
unlinked = []

def commit():
    conn = db.open()
    root = conn.root()
    key = 'k%d' % random.randrange(8)
    what = random.randrange(6)
    if what == 0 and key in root:
        unlinked.append(root[key]._p_oid)
        del root[key]
    elif what == 1 and key in root and 'sub' in root[key]: # moves, so that it stays reachable
        sub = root[key]['sub']
        del root[key]['sub']
        root['k%d' % random.randrange(8)] = sub
    elif what < 4 or key not in root:
        root[key] = PersistentMapping(sub=PersistentMapping(text='x%d ' % random.randrange(1000) * random.randrange(200)))
    else:
        root[key]['n'] = random.random()
    transaction.get().note('change of %s' % key)
    transaction.commit()
    conn.close()

def undo():
    log = [x for x in db.undoLog(0, 6) if 'change' in str(x['description'])] # not that of the root
    if log:
        try:
            db.undo(random.choice(log)['id'])
            transaction.commit()
        except (UndoError, KeyError): # what it had is packed, or there is a conflict
            transaction.abort()

def delete(): # as an external garbage collector does
    s = db.storage
    conn = db.open()
    linked = set()
    for v in conn.root().values():
        linked.add(v._p_oid)
        try:
            if 'sub' in v:
                linked.add(v['sub']._p_oid)
        except POSKeyError: # an undo brought back a reference to what was deleted
            pass
    conn.close()
    while unlinked:
        oid = unlinked.pop()
        if oid in linked: # by an undo
            continue
        try:
            data, serial = s.load(oid)
        except KeyError:
            continue
        t = TransactionMetaData('gc', 'deletes')
        s.tpc_begin(t)
        s.deleteObject(oid, serial, t)
        s.tpc_vote(t)
        s.tpc_finish(t)
        return

for line in sys.stdin:
    c = line.split()
    if c[0] == 'work':
        for i in range(int(c[1])):
            try:
                random.choice([commit, commit, commit, undo, delete])()
            except (ConflictError, POSKeyError):
                transaction.abort()
    else: # pack at a transaction: the time is its own
        try:
            db.pack(TimeStamp(bytes.fromhex(c[1])).timeTime())
        except Exception: # a reference to what was deleted: it stays as it was
            pass
    print(os.path.getsize(path), flush=True)
`

// packedFile is a Data.fs that Python packs.
type packedFile struct {
	t    *testing.T
	path string
	do   func(line string)

	reference string   // a file with all that was ever committed
	copies    []string // the file as it was before each pack, and is
}

func newPackedFile(t *testing.T, seed uint64) *packedFile {
	t.Helper()
	dir := t.TempDir()
	f := &packedFile{t: t, path: filepath.Join(dir, "Data.fs"), reference: filepath.Join(dir, "reference.fs"), copies: []string{filepath.Join(dir, "copy0.fs")}}
	in, out := zeotest.Program(t, packingPython)
	fmt.Fprintf(in, "%s\n%d\n", f.path, seed)
	f.do = func(line string) {
		t.Helper()
		if _, err := fmt.Fprintln(in, line); err != nil {
			t.Fatal(err)
		}
		if !out.Scan() {
			t.Fatalf("python ended at %s: %v", line, out.Err())
		}
		if n, err := strconv.Atoi(out.Text()); err != nil || n == 0 {
			t.Fatalf("python at %s: %s", line, out.Text())
		}
	}
	w, err := fsformat.Create(f.reference, fsformat.WriterOptions{})
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *packedFile) work(n int) {
	f.t.Helper()
	f.do(fmt.Sprintf("work %d", n))
	w, err := fsformat.OpenAppend(f.t.Context(), f.reference, fsformat.WriterOptions{})
	if err != nil {
		f.t.Fatal(err)
	}
	r, err := fsformat.Open(f.path, fsformat.Options{})
	if err != nil {
		f.t.Fatal(err)
	}
	defer r.Close()
	for tr, err := range r.Transactions(f.t.Context(), w.LastTID(), tid.Max) {
		if err == nil {
			err = w.Append(tr)
		}
		if err != nil {
			f.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		f.t.Fatal(err)
	}
	f.keep()
}

// keep brings the newest copy up to date.
func (f *packedFile) keep() {
	f.t.Helper()
	if err := os.WriteFile(f.copies[len(f.copies)-1], read(f.t, f.path), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// pack packs up to a transaction. It reports whether there was something to be packed.
func (f *packedFile) pack(at tid.TID) bool {
	f.t.Helper()
	before, err := os.Stat(f.path)
	if err != nil {
		f.t.Fatal(err)
	}
	f.do("pack " + at.String())
	if after, err := os.Stat(f.path); err != nil {
		f.t.Fatal(err)
	} else if os.SameFile(before, after) {
		return false
	}
	f.copies = append(f.copies, filepath.Join(filepath.Dir(f.path), fmt.Sprintf("copy%d.fs", len(f.copies))))
	f.keep()
	return true
}

// reachable returns the objects that a state holds from the root on.
func reachable(t *testing.T, state map[tid.OID]string) map[tid.OID]bool {
	t.Helper()
	var scan pickle.Scanner
	found := map[tid.OID]bool{}
	for todo := []tid.OID{0}; len(todo) > 0; {
		oid := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		data, ok := state[oid]
		if found[oid] || !ok {
			continue
		}
		found[oid] = true
		refs, err := scan.References([]byte(data))
		if err != nil {
			t.Fatalf("object %v: %v", oid, err)
		}
		for _, r := range refs {
			todo = append(todo, tid.OID(r.OID))
		}
	}
	return found
}

// A Data.fs is packed by Python with garbage collection: before its first backup, while it is followed,
// and while the writer is down. Each pack begins a lineage. Each of them, old ones too, gives at each
// exact transaction the bytes that an export of the file wrote then, with all that can be reached
// from the root as it was ever committed, and nothing that was deleted.
func TestPacksOfFile(t *testing.T) {
	for seed := *firstSeed; seed < *firstSeed+uint64(max(1, *seeds/7)); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			packsOfFile(t, seed)
		})
	}
}

func packsOfFile(t *testing.T, seed uint64) {
	rnd := newRand(seed, 3)
	f := newPackedFile(t, seed)
	m := memstore.New(memstore.Options{})
	repo := backuptest.New(t, m, seed%2 == 0)
	l := &lives{world: &world{t: t, store: m, repo: repo}, stored: map[string][32]byte{}}
	dir := t.TempDir()
	var copies []int // which copy of the file each lineage has
	open := func(rebase bool) (*Writer, func()) {
		t.Helper()
		src, err := feed.OpenFile(t.Context(), f.path, feed.FileOptions{Poll: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		w, err := Open(t.Context(), Options{Repo: repo.Repository, Signer: repo.Signer, Feed: src, StateDir: dir, RebaseOnPack: rebase, AssumeSameHistory: rebase, SegmentSize: 4 << 10, limits: few, Interval: time.Millisecond})
		if err != nil {
			src.Close()
			if !rebase && errors.Is(err, ErrDiverged) && errors.Is(err, feed.ErrPacked) {
				return nil, nil
			}
			t.Fatal(err)
		}
		return w, func() {
			if err := errors.Join(w.Close(), src.Close()); err != nil {
				t.Fatal(err)
			}
			l.unchanged()
		}
	}
	somewhere := func() tid.TID {
		r, err := fsformat.Open(f.path, fsformat.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		list := tids(t, r)
		return list[len(list)-1-rnd.IntN(min(len(list), 12))]
	}
	snapshot := func() {
		t.Helper()
		w, end := open(false)
		if w == nil {
			w, end = open(true)
		}
		defer end()
		if err := w.Snapshot(t.Context(), 0, ""); err != nil {
			t.Fatal(err)
		}
		l.acked = w.Stats().Head
		if n := len(f.copies) - 1; len(copies) == 0 || copies[len(copies)-1] != n {
			copies = append(copies, n)
		}
	}
	f.work(10 + rnd.IntN(20))
	if rnd.IntN(2) == 0 {
		f.pack(somewhere())
		f.work(5)
	}
	snapshot()
	for i := range 6 {
		switch (i + rnd.IntN(2)) % 3 {
		case 0: // the writer is down
			f.work(5 + rnd.IntN(10))
			f.pack(somewhere())
			f.work(rnd.IntN(5))
		case 1:
			f.work(rnd.IntN(20))
		case 2: // followed, and packed meanwhile
			w, end := open(false)
			if w == nil {
				w, end = open(true)
				copies = append(copies, len(f.copies)-1)
			}
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- w.Follow(ctx) }()
			r, err := fsformat.Open(f.path, fsformat.Options{})
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				f.work(1 + rnd.IntN(8))
				last, err := r.Follow(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				want, err := last.LastTID(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				for n := 0; w.Stats().Head < want; n++ {
					select {
					case err := <-done:
						t.Fatal(err)
					case <-time.After(2 * time.Millisecond):
					}
					if n > 60000 {
						t.Fatalf("%v is not acknowledged", want)
					}
				}
			}
			r.Close()
			packed := rnd.IntN(2) == 0 && f.pack(somewhere())
			if packed {
				select {
				case err := <-done:
					if !errors.Is(err, ErrDiverged) || !errors.Is(err, feed.ErrPacked) {
						t.Errorf("followed a packed file: %v", err)
					}
				case <-time.After(5 * time.Minute):
					t.Fatal("that the file was packed is not found")
				}
			}
			cancel()
			if !packed {
				if err := <-done; !errors.Is(err, context.Canceled) {
					t.Errorf("following ended with %v", err)
				}
			}
			l.acked = max(l.acked, w.Stats().Head)
			end()
		}
		snapshot()
	}
	f.work(3)
	snapshot()

	reference := backuptest.ReadFile(t, f.reference)
	all := collect(t, reference.Transactions(t.Context(), 0, tid.Max))
	notes, err := repo.Lineages(t.Context())
	if err != nil || len(notes) != len(copies) {
		t.Fatalf("%d lineages, %v, want %v", len(notes), err, copies)
	}
	restored, refused, collected := 0, 0, 0
	for k, note := range notes {
		s, err := repo.State(t.Context(), note.Lineage, nil)
		if err != nil {
			t.Fatal(err)
		}
		src, err := fsformat.Open(f.copies[copies[k]], fsformat.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer src.Close()
		for i, tr := range all {
			at := tr.TID
			if at > s.Head() || i%3 != k%3 && i < len(all)-3 {
				continue
			}
			dir := t.TempDir()
			out, want := filepath.Join(dir, "out.fs"), filepath.Join(dir, "want.fs")
			_, err := (&restore.Source{Repo: repo.Repository, Keys: repo.Keys, State: s, At: at}).ToFile(t.Context(), out, restore.FileOptions{})
			if e, ok := errors.AsType[*backup.NotExactError](err); ok {
				refused++
				if copies[k] == 0 {
					t.Errorf("a file that was never packed is not exact: %v", e)
				}
				if e.Before != 0 || s.Exact(e.After) != nil || e.After <= at {
					t.Errorf("not exact at %v: %+v", at, e)
				}
				continue
			}
			if err != nil {
				t.Fatalf("lineage %d at %v: %v", k+1, at, err)
			}
			restored++
			if _, err := exporter.ToFile(t.Context(), src, want, exporter.FileOptions{UpTo: at}); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(read(t, out), read(t, want)) {
				t.Errorf("lineage %d at %v is not what an export wrote", k+1, at)
			}
			state, ever := fileAt(t, out, at), all.at(t, at)
			for oid := range reachable(t, ever) {
				if _, ok := state[oid]; !ok {
					t.Errorf("lineage %d at %v: object %v is missing, which can be reached", k+1, at, oid)
				}
			}
			for _, oid := range slices.Sorted(maps.Keys(state)) {
				if data, ok := ever[oid]; !ok || data != state[oid] {
					t.Errorf("lineage %d at %v: object %v has %d bytes, want %d, %v", k+1, at, oid, len(state[oid]), len(data), ok)
				}
			}
			collected += len(ever) - len(state)
		}
	}
	if head := l.acked; head != all[len(all)-1].TID {
		t.Errorf("%v is acknowledged, want %v", head, all[len(all)-1].TID)
	}
	t.Logf("%d transactions, %d packs, %d lineages: %d restores were equal, without %d objects that were collected; %d refused", len(all), len(f.copies)-1, len(notes), restored, collected, refused)
}

// fileAt returns the objects of a file at a time.
func fileAt(t *testing.T, path string, at tid.TID) map[tid.OID]string {
	t.Helper()
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.UseIndex(t.Context(), path+".index", nil); err != nil {
		t.Fatal(err)
	}
	state := map[tid.OID]string{}
	for oid, err := range r.OIDs(t.Context(), at, 0) {
		if err != nil {
			t.Fatal(err)
		}
		rev, err := r.LoadBefore(t.Context(), oid, at+1)
		if err != nil {
			continue // deleted
		}
		state[oid] = string(rev.Data)
	}
	return state
}
