package writer

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/backup/store/storeurl"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

// A Data.fs that is packed between two snapshots, and while a writer has it open.
func TestFilePacked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	replace := func(name string) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join("../../testdata/fs", name+".fs"))
		if err == nil {
			err = os.WriteFile(path+".pack", b, 0o600)
		}
		if err == nil {
			err = os.Rename(path+".pack", path)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	replace("05-before-pack")
	repo := backuptest.New(t, memstore.New(memstore.Options{}), true)
	dir := t.TempDir()
	open := func(rebase bool) (*Writer, error) {
		f, err := feed.OpenFile(t.Context(), path, feed.FileOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return Open(t.Context(), Options{Repo: repo.Repository, Signer: repo.Signer, Feed: f, StateDir: dir, RebaseOnPack: rebase, SegmentSize: 4 << 10, limits: few})
	}
	check := func(lineages int) {
		t.Helper()
		list, err := repo.Lineages(t.Context())
		if err != nil || len(list) != lineages {
			t.Fatalf("%d lineages, %v, want %d", len(list), err, lineages)
		}
		s, err := repo.State(t.Context(), list[len(list)-1].Lineage, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := collect(t, repo.Transactions(t.Context(), repo.Keys, s, 0, s.Head(), backup.FetchOptions{Scratch: dir}, nil))
		r, err := fsformat.Open(path, fsformat.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		want := collect(t, r.Transactions(t.Context(), 0, tid.Max))
		if len(got) != len(want) {
			t.Fatalf("%d transactions, the file has %d", len(got), len(want))
		}
		for i := range got {
			if g, w := got[i].String(), want[i].String(); g != w {
				t.Errorf("transaction\n%s\nwant\n%s", g, w)
			}
		}
	}
	w, err := open(false)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Snapshot(t.Context(), 0, ""); err != nil {
		t.Fatal(err)
	}
	check(1)
	replace("05-packed")
	refused := func(err error) {
		t.Helper()
		if !errors.Is(err, ErrDiverged) || !errors.Is(err, feed.ErrPacked) || !strings.Contains(err.Error(), "rebase") {
			t.Errorf("got %v, want an ErrDiverged because of a pack", err)
		}
	}
	refused(w.Snapshot(t.Context(), 0, ""))
	refused(w.Follow(t.Context()))
	w.Close()
	_, err = open(false)
	refused(err)
	if w, err = open(true); err != nil {
		t.Fatal(err)
	}
	if err := w.Snapshot(t.Context(), 0, ""); err != nil {
		t.Fatal(err)
	}
	w.Close()
	check(2)
	if w, err = open(false); err != nil { // the mark is that of the packed file
		t.Fatal(err)
	}
	if err := w.Snapshot(t.Context(), 0, ""); err != nil {
		t.Fatal(err)
	}
	w.Close()
	check(2)
}

// The main way on real servers.
func TestServers(t *testing.T) {
	for name, start := range map[string]func(testing.TB) *storetest.Server{
		"MinIO": storetest.MinIO, "versitygw": storetest.VersityGW, "moto": storetest.Moto, "gofakes3": storetest.GoFakeS3,
	} {
		t.Run(name, func(t *testing.T) {
			server := start(t)
			env := map[string]string{}
			for _, s := range server.Env() {
				k, v, _ := strings.Cut(s, "=")
				env[k] = v
			}
			s, err := storeurl.Open(server.URL(server.Bucket(t, false), "some/prefix"), func(k string) string { return env[k] })
			if err != nil {
				t.Fatal(err)
			}
			s = store.Retry(s, store.RetryOptions{})
			w := newWorldIn(t, 1, true, s)
			for i := range 6 {
				w.change(8)
				wr, err := w.open(t.Context(), s, w.dir)
				if err != nil {
					t.Fatal(err)
				}
				if i == 4 {
					err = wr.Rebase(t.Context())
				} else {
					err = wr.Snapshot(t.Context(), 0, "")
				}
				if err != nil {
					t.Fatal(err)
				}
				wr.Close()
			}
			w.check(w.last())
		})
	}
}

// A pack up to now can remove the last transaction of the repository. An earlier one that is still
// there shows that it is the same database; without any, the operator has to say so.
func TestFilePackedBeyondHead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	write := func(list ...*txn.Transaction) {
		t.Helper()
		w, err := fsformat.Create(path+".pack", fsformat.WriterOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range list {
			if err := w.Append(x); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".pack", path); err != nil {
			t.Fatal(err)
		}
	}
	of := func(id tid.TID, status byte, oid tid.OID) *txn.Transaction {
		x := backuptest.Txn(id, txn.Record{OID: oid, Data: []byte("\x80\x03cm\nC\nq\x00.\x80\x03}q\x01.")})
		x.Status = status
		return x
	}
	const one, two, three = 0x03f0000000000001, 0x03f0000100000002, 0x03f0000200000003
	write(of(one, txn.Committed, 1))
	repo := backuptest.New(t, memstore.New(memstore.Options{}), true)
	dir := t.TempDir()
	take := func(o Options) error {
		f, err := feed.OpenFile(t.Context(), path, feed.FileOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		o.Repo, o.Signer, o.Feed, o.StateDir, o.limits = repo.Repository, repo.Signer, f, dir, few
		w, err := Open(t.Context(), o)
		if err != nil {
			return err
		}
		defer w.Close()
		return w.Snapshot(t.Context(), 0, "")
	}
	if err := take(Options{RebaseOnPack: true}); err != nil {
		t.Fatal(err)
	}
	r, err := fsformat.OpenAppend(t.Context(), path, fsformat.WriterOptions{})
	if err == nil {
		err = errors.Join(r.Append(of(two, txn.Committed, 2)), r.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := take(Options{RebaseOnPack: true}); err != nil {
		t.Fatal(err)
	}
	lineages := func(want int) {
		t.Helper()
		list, err := repo.Lineages(t.Context())
		if err != nil || len(list) != want {
			t.Fatalf("%d lineages, %v, want %d", len(list), err, want)
		}
	}
	lineages(1)
	write(of(one, txn.Packed, 1), of(three, txn.Packed, 2))
	// Not that it is another database: that it was packed, and what helps.
	if err := take(Options{}); !errors.Is(err, ErrDiverged) || !errors.Is(err, feed.ErrPacked) || !strings.Contains(err.Error(), "rebase") {
		t.Errorf("without rebase: %v", err)
	}
	if err := take(Options{RebaseOnPack: true}); err != nil {
		t.Fatal(err)
	}
	lineages(2)
	const four = 0x03f0000300000004
	write(of(four, txn.Packed, 2))
	if err := take(Options{RebaseOnPack: true}); !errors.Is(err, ErrDiverged) || !strings.Contains(err.Error(), "--assume-same-history") {
		t.Errorf("nothing in common: %v", err)
	}
	lineages(2)
	if err := take(Options{RebaseOnPack: true, AssumeSameHistory: true}); err != nil {
		t.Fatal(err)
	}
	lineages(3)
}

// A pack beyond the head is found too by a writer that has lost its state directory: it begins a
// new lineage as any other.
func TestFilePackedStateLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	repo := backuptest.New(t, memstore.New(memstore.Options{}), true)
	sample := func(name string) []byte {
		b, err := os.ReadFile(filepath.Join("../../testdata/fs", name+".fs"))
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	open := func(content []byte, o Options) (*Writer, error) {
		t.Helper()
		err := errors.Join(os.WriteFile(path+".pack", content, 0o600), os.Rename(path+".pack", path))
		if err != nil {
			t.Fatal(err)
		}
		f, err := feed.OpenFile(t.Context(), path, feed.FileOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		o.Repo, o.Signer, o.Feed, o.StateDir, o.limits = repo.Repository, repo.Signer, f, t.TempDir(), few
		return Open(t.Context(), o)
	}
	// The head is a transaction that the pack keeps, with one after it that it keeps as well.
	packed, err := fsformat.Open("../../testdata/fs/05-packed.fs", fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer packed.Close()
	history := collect(t, packed.Transactions(t.Context(), 0, tid.Max))
	w, err := open(sample("05-before-pack"), Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Snapshot(t.Context(), history[0].TID, ""); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := open(sample("05-packed"), Options{}); !errors.Is(err, ErrDiverged) || !errors.Is(err, feed.ErrPacked) {
		t.Errorf("without rebase: %v", err)
	}
	if w, err = open(sample("05-packed"), Options{RebaseOnPack: true}); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := w.Snapshot(t.Context(), 0, ""); err != nil {
		t.Fatal(err)
	}
	if head := w.Stats().Head; head != history[len(history)-1].TID || w.Lineage().K != 2 {
		t.Errorf("head %v in lineage %d", head, w.Lineage().K)
	}
}

// A first backup of a file that was packed before, killed after its first tail, goes on where it was.
func TestFirstBackupOfPackedFileKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "Data.fs")
	fs, err := fsformat.Create(path, fsformat.WriterOptions{})
	if err != nil {
		t.Fatal(err)
	}
	rnd := newRand(1, 0)
	var last tid.TID
	for i := range 12 {
		data := make([]byte, 8<<10)
		for j := range data {
			data[j] = byte(rnd.Uint32())
		}
		last = tid.TID(0x03f0000000000001 + i<<32)
		x := backuptest.Txn(last, txn.Record{OID: tid.OID(i), Data: data})
		x.Status = txn.Packed
		if err := fs.Append(x); err != nil {
			t.Fatal(err)
		}
	}
	if err := fs.Close(); err != nil {
		t.Fatal(err)
	}
	m := memstore.New(memstore.Options{})
	repo := backuptest.New(t, m, true)
	dir := t.TempDir()
	open := func(s store.Store) *Writer {
		t.Helper()
		f, err := feed.OpenFile(t.Context(), path, feed.FileOptions{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		r, err := backup.Open(t.Context(), backup.Config{Store: s, Trusted: repo.Trusted})
		if err != nil {
			t.Fatal(err)
		}
		w, err := Open(t.Context(), Options{Repo: r, Signer: repo.Signer, Feed: f, StateDir: dir, SegmentSize: 4 << 10, limits: few})
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	var dead atomic.Bool
	w := open(storetest.NewFaulty(m, func(_ context.Context, c storetest.Call) storetest.Fault {
		k, err := snapshot.ParseKey(c.Key)
		if c.Op != "put" || err != nil || !dead.Load() && k.Kind != snapshot.KindTail {
			return storetest.Fault{}
		}
		if dead.Swap(true) {
			return storetest.Fault{Err: errors.New("killed")}
		}
		return storetest.Fault{}
	}))
	if err := w.Snapshot(t.Context(), 0, ""); err == nil || w.Stats().Head == 0 || w.Stats().Head >= last {
		t.Fatalf("head %v, %v", w.Stats().Head, err)
	}
	w.Close()
	w = open(m)
	defer w.Close()
	if err := w.Snapshot(t.Context(), 0, ""); err != nil {
		t.Fatal(err)
	}
	if w.Stats().Head != last || w.Lineage().K != 1 {
		t.Errorf("head %v in lineage %d", w.Stats().Head, w.Lineage().K)
	}
}
