package restore

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

var seeds = flag.Int("restore.seeds", 6, "random histories to restore")

// sample is a history: as a Data.fs, and its transactions.
type sample struct {
	path string
	list []*txn.Transaction
}

// newSample makes a Data.fs with data, deletions, undos, transactions without records, objects
// that are twice in a transaction.
func newSample(t testing.TB, r *rand.Rand, n int, twice bool) *sample {
	t.Helper()
	s := &sample{path: filepath.Join(t.TempDir(), "source.fs")}
	w, err := fsformat.Create(s.path, fsformat.WriterOptions{NoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Abort()
	revisions := map[tid.OID][]tid.TID{}
	at := tid.TID(1000)
	for i := range n {
		at += tid.TID(1 + r.IntN(50))
		tr := &txn.Transaction{TID: at, Status: txn.Committed, User: []byte("user"), Description: fmt.Appendf(nil, "transaction %d \"ä\"", i)}
		if i < n/10 {
			tr.Status = txn.Packed
		}
		if r.IntN(4) == 0 {
			tr.Extension = []byte("\x80\x03}q\x00.")
		}
		var records []txn.Record
		for range r.IntN(6) {
			rec := txn.Record{OID: tid.OID(r.IntN(30)), TID: at}
			again := slices.ContainsFunc(records, func(o txn.Record) bool { return o.OID == rec.OID })
			if again && !twice {
				continue
			}
			old := revisions[rec.OID]
			switch k := r.IntN(8); {
			case k == 0:
			case k == 1 && len(old) > 0:
				rec.DataTID = old[r.IntN(len(old))]
				if rec.Data, err = w.LoadSerial(rec.OID, rec.DataTID); err != nil {
					t.Fatal(err)
				}
			default:
				rec.Data = bytes.Repeat(fmt.Appendf(nil, "%d/%d/%d ", rec.OID, i, r.Uint64()), 1+r.IntN(60))
			}
			records = append(records, rec)
		}
		tr.Records = txn.Slice(records)
		if err := w.Append(tr); err != nil {
			t.Fatal(err)
		}
		for _, rec := range records {
			if old := revisions[rec.OID]; len(old) == 0 || old[len(old)-1] != at {
				revisions[rec.OID] = append(old, at)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	s.list = backuptest.ReadFile(t, s.path)
	return s
}

func records(t testing.TB, tr *txn.Transaction) []txn.Record {
	t.Helper()
	var list []txn.Record
	for r, err := range tr.Records {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, *r)
	}
	return list
}

// repository stores a history in all forms that a repository has.
func repository(t testing.TB, s store.Store, r *rand.Rand, list []*txn.Transaction) *backuptest.Repo {
	t.Helper()
	repo := backuptest.New(t, s, r.IntN(2) == 0)
	pages := true
	for len(list) > 0 {
		take := func() []*txn.Transaction {
			n := min(len(list), 1+r.IntN(8))
			some := list[:n]
			list = list[n:]
			return some
		}
		switch k := r.IntN(7); {
		case k < 3:
			repo.Tail(take()...)
		case k == 3:
			lists := [][]*txn.Transaction{take()}
			for len(list) > 0 && len(lists) < 3 {
				lists = append(lists, take())
			}
			repo.Listed(lists...)
		case k == 4:
			recs := records(t, list[0])
			if len(recs) < 2 {
				repo.Tail(list[0])
			} else {
				repo.Cut(list[0], recs[:1], recs[1:])
			}
			list = list[1:]
		case k == 5:
			repo.Heartbeat()
		default:
			merge := r.IntN(3) > 0
			repo.Manifest(merge && pages, merge && pages)
			pages = pages && merge // tails that stay cannot be in pages
		}
	}
	return repo
}

func (s *sample) export(t testing.TB, at tid.TID) []byte {
	t.Helper()
	f, err := fsformat.Open(s.path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := filepath.Join(t.TempDir(), "export.fs")
	if _, err := exporter.ToFile(t.Context(), f, path, exporter.FileOptions{UpTo: at}); err != nil {
		t.Fatal(err)
	}
	return read(t, path)
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func source(repo *backuptest.Repo, at tid.TID) *Source {
	return &Source{Repo: repo.Repository, Keys: repo.Keys, State: repo.Now(), At: at}
}

// A restore at any TID has the bytes of an export at that TID, however the repository
// keeps the history, and each later one can be had by appending.
func TestFile(t *testing.T) {
	for seed := range *seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			r := rand.New(rand.NewPCG(uint64(seed), 1))
			s := newSample(t, r, 60, true)
			repo := repository(t, memstore.New(memstore.Options{}), r, s.list)
			grown := filepath.Join(t.TempDir(), "grown.fs")
			at := []tid.TID{s.list[0].TID - 1, s.list[0].TID, repo.Now().Head()}
			for range 6 {
				at = append(at, s.list[r.IntN(len(s.list))].TID-tid.TID(r.IntN(2)))
			}
			slices.Sort(at)
			for _, at := range at {
				want := s.export(t, at)
				for _, path := range []string{filepath.Join(t.TempDir(), "out.fs"), grown} {
					res, err := source(repo, at).ToFile(t.Context(), path, FileOptions{Append: path == grown})
					if err != nil {
						t.Fatalf("at %v: %v", at, err)
					}
					if got := read(t, path); !bytes.Equal(got, want) {
						t.Fatalf("at %v: %d bytes, want %d", at, len(got), len(want))
					}
					var last tid.TID
					n := int64(0)
					for _, tr := range s.list {
						if tr.TID <= at {
							last = tr.TID
							n++
						}
					}
					if !res.Compared || res.Last != last || res.Txns != n {
						t.Errorf("at %v: %+v, want %d transactions up to %v", at, res, n, last)
					}
					if left, _ := filepath.Glob(path + ".*"); len(left) != 2 { // .index, .lock
						t.Errorf("left: %v", left)
					}
				}
			}
		})
	}
}

// A target that exists, or in which something else has begun, stays as it is.
func TestFileRefused(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	s := newSample(t, r, 30, false)
	repo := repository(t, memstore.New(memstore.Options{}), r, s.list)
	other := newSample(t, r, 30, false)
	dir := t.TempDir()
	path := filepath.Join(dir, "out.fs")
	try := func(what string, o FileOptions, want error, text string) {
		t.Helper()
		before, _ := filepath.Glob(filepath.Join(dir, "*"))
		_, err := source(repo, 0).ToFile(t.Context(), path, o)
		if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: %v", what, err)
		}
		after, _ := filepath.Glob(filepath.Join(dir, "*"))
		if !slices.Equal(before, after) {
			t.Errorf("%s: left %v", what, after)
		}
	}
	copyFile(t, other.path, path)
	try("existing", FileOptions{}, ErrNotEmpty, "exists")
	if _, err := source(repo, 0).ToFile(t.Context(), path, FileOptions{Append: true}); !errors.As(err, new(*exporter.NotPrefixError)) {
		t.Errorf("append to another database: %v", err)
	}
	if !bytes.Equal(read(t, path), read(t, other.path)) {
		t.Error("the other database was changed")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	copyFile(t, other.path, path+".part")
	try("unknown part", FileOptions{}, ErrForeign, "is not what a restore has left")
	b, err := json.Marshal(checkpoint{Version: 1, Repo: snapshot.NewID().String(), Lineage: repo.Lineage.String()})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path+".restore", b, 0o600); err != nil {
		t.Fatal(err)
	}
	try("part of another repository", FileOptions{}, ErrForeign, "of repository")
	if err := os.WriteFile(path+".restore", []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	try("unreadable checkpoint", FileOptions{}, ErrForeign, "cannot be read")
	if _, err := source(repo, 0).ToFile(t.Context(), path, FileOptions{Restart: true}); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, path), s.export(t, tid.Max)) {
		t.Error("not what was backed up")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	defer func() { freeIn = free }()
	freeIn = func(string) int64 { return 1000 }
	try("no space", FileOptions{}, ErrSpace, "has 1000")
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	if err := os.WriteFile(to, read(t, from), 0o600); err != nil {
		t.Fatal(err)
	}
}

// What prevents a restore is known before the first byte, and the plan says it.
func TestNotRestorable(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	s := newSample(t, r, 40, false)
	repo := backuptest.New(t, memstore.New(memstore.Options{}), true)
	repo.Tail(s.list[:10]...)
	repo.TailExact(s.list[18].TID, s.list[10:20]...)
	repo.Tail(s.list[20:]...)
	try := func(src *Source, want error, text string) *Plan {
		t.Helper()
		dir := t.TempDir()
		_, err := src.ToFile(t.Context(), filepath.Join(dir, "out.fs"), FileOptions{})
		if !errors.Is(err, want) || !strings.Contains(err.Error(), text) {
			t.Errorf("%v, want %v with %q", err, want, text)
		}
		if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
		p, err := src.Plan(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := try(source(repo, s.list[12].TID), backup.ErrNotExact, s.list[18].TID.String())
	if p.Exact || p.Before != s.list[9].TID || p.After != s.list[18].TID {
		t.Errorf("plan: %+v", p)
	}
	p = try(source(repo, s.list[39].TID+1), backup.ErrNotExact, "ends with")
	if p.Exact {
		t.Errorf("plan: %+v", p)
	}
	src := source(repo, 0)
	src.Keys = repo.Unlock()
	p = try(src, backup.ErrKeys, "epoch 0001")
	if len(p.Epochs) != 1 || p.Epochs[0].Opens || p.Epochs[0].Problem == "" || p.Epochs[0].Objects != 3 {
		t.Errorf("plan: %+v", p)
	}
	src = source(repo, 0)
	state := *src.State
	m := *state.Manifest
	m.Reserved = []snapshot.Reserved{{Kind: snapshot.ReservedBlob}}
	state.Manifest = &m
	src.State = &state
	p = try(src, ErrBlobs, "blobs")
	if !p.Blobs || !p.Exact || p.Objects != 3 || p.Txns != 40 || p.Bytes == 0 || p.Text == 0 {
		t.Errorf("plan: %+v", p)
	}
	src.WithoutBlobs = true
	if _, err := src.ToFile(t.Context(), filepath.Join(t.TempDir(), "out.fs"), FileOptions{}); err != nil {
		t.Error(err)
	}
}

// An interrupted restore goes on where it was, wherever it was interrupted, and nothing that was
// stored wrongly comes into a file.
func TestFileInterrupted(t *testing.T) {
	for seed := range max(*seeds/3, 2) {
		r := rand.New(rand.NewPCG(uint64(seed), 3))
		s := newSample(t, r, 60, true)
		mem := memstore.New(memstore.Options{})
		repo := repository(t, mem, r, s.list)
		want := s.export(t, tid.Max)
		path := filepath.Join(t.TempDir(), "out.fs")
		ended := false
		for n := 1; !ended; n += 1 + r.IntN(3) {
			f := storetest.FailAt(mem, n, storetest.Fault{Err: storetest.ErrFault, Cut: r.IntN(2) == 0})
			src := source(repo, 0)
			src.Fetch.Parallel = 1
			failing, err := backup.Open(t.Context(), backup.Config{Store: f, Trusted: repo.Trusted})
			if err == nil {
				src.Repo = failing
				_, err = src.ToFile(t.Context(), path, FileOptions{})
			}
			if ended = f.Fired() == 0; ended != (err == nil) {
				t.Fatalf("call %d: %v", n, err)
			}
			if !ended {
				if _, err := os.Stat(path); err == nil {
					t.Fatalf("call %d: a file that is not complete has its name", n)
				}
			}
		}
		if !bytes.Equal(read(t, path), want) {
			t.Error("not what was backed up")
		}
	}
}

// Whatever byte of what is stored is another one, a restore gives the right file or an error.
func TestFileDamaged(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	s := newSample(t, r, 40, true)
	for range max(*seeds*3, 20) {
		mem := memstore.New(memstore.Options{})
		repo := repository(t, mem, r, s.list)
		keys := storetest.Keys(t, mem, "", "")
		key := keys[r.IntN(len(keys))]
		mem.Corrupt(key, func(b []byte) []byte {
			switch r.IntN(3) {
			case 0:
				return b[:r.IntN(len(b))]
			case 1:
				return append(b, 'x')
			}
			b[r.IntN(len(b))] ^= 1 << r.IntN(8)
			return b
		})
		path := filepath.Join(t.TempDir(), "out.fs")
		err := func() error {
			again, err := backup.Open(t.Context(), backup.Config{Store: mem, Trusted: repo.Trusted})
			if err != nil {
				return err
			}
			l, err := again.Current(t.Context())
			if err != nil {
				return err
			}
			state, err := again.State(t.Context(), l.Lineage, nil)
			if err != nil {
				return err
			}
			keys := again.Unlock()
			if repo.Identity != nil {
				keys = again.Unlock(repo.Identity)
			}
			_, err = (&Source{Repo: again, Keys: keys, State: state}).ToFile(t.Context(), path, FileOptions{})
			return err
		}()
		switch _, stat := os.Stat(path); {
		case err == nil && !bytes.Equal(read(t, path), s.export(t, tid.Max)):
			t.Errorf("%s damaged: another file, without error", key)
		case err != nil && stat == nil:
			t.Errorf("%s damaged: %v, and a file", key, err)
		case err != nil && !errors.Is(err, snapshot.ErrCorrupt) && !errors.Is(err, snapshot.ErrUntrusted) && !errors.Is(err, snapshot.ErrVersion) &&
			!errors.Is(err, backup.ErrKeys) && !errors.Is(err, backup.ErrNoRepository) && !errors.Is(err, backup.ErrIncomplete):
			t.Errorf("%s damaged: %v", key, err)
		}
	}
}

// A target that is not what the repository has is found when it is read again.
func TestCompare(t *testing.T) {
	r := rand.New(rand.NewPCG(11, 2))
	s := newSample(t, r, 50, false)
	for _, form := range []uint64{1, 2, 3} {
		repo := repository(t, memstore.New(memstore.Options{}), rand.New(rand.NewPCG(form, 0)), s.list)
		for _, at := range []tid.TID{0, s.list[37].TID} {
			for i := range s.list {
				if at != 0 && s.list[i].TID > at {
					break
				}
				for _, kind := range []string{"missing", "more", "description", "status", "record missing", "data", "link"} {
					list, ok := changed(t, s.list, i, kind)
					if !ok {
						continue
					}
					src := source(repo, at)
					err := src.compare(t.Context(), target{name: "target", Source: list, last: list.LastTID, load: load(list)}, &Result{}, 0, nil)
					if !errors.Is(err, ErrDifferent) {
						t.Fatalf("form %d, at %v, transaction %d %s: %v", form, at, i, kind, err)
					}
				}
			}
			list := backuptest.History(s.list)
			if at != 0 {
				list = list[:38]
			}
			if err := source(repo, at).compare(t.Context(), target{name: "target", Source: list, last: list.LastTID, load: load(list)}, &Result{}, 0, nil); err != nil {
				t.Errorf("the same: %v", err)
			}
		}
	}
}

// load returns a record of a history, the last one of a transaction that has several.
func load(list backuptest.History) func(oid tid.OID, at tid.TID) ([]byte, error) {
	return func(oid tid.OID, at tid.TID) (data []byte, err error) {
		for _, t := range list {
			if t.TID == at {
				for r := range t.Records {
					if r.OID == oid {
						data = r.Data
					}
				}
			}
		}
		return data, nil
	}
}

// changed returns a history with another transaction i.
func changed(t testing.TB, list []*txn.Transaction, i int, kind string) (backuptest.History, bool) {
	m := slices.Clone(backuptest.History(list))
	c := *list[i]
	m[i] = &c
	recs := slices.Clone(records(t, &c))
	switch kind {
	case "missing":
		return slices.Delete(m, i, i+1), true
	case "more":
		if i+1 < len(m) && m[i+1].TID == c.TID+1 {
			return m, false
		}
		return slices.Insert(m, i+1, &txn.Transaction{TID: c.TID + 1, Status: txn.Committed, Records: txn.Slice(nil)}), i+1 < len(m)
	case "description":
		c.Description = []byte("x")
	case "status":
		c.Status = 'p' ^ ' ' ^ c.Status
	case "record missing":
		if len(recs) == 0 {
			return m, false
		}
		recs = recs[1:]
	case "data":
		if len(recs) == 0 || recs[0].DataTID != 0 || recs[0].Data == nil {
			return m, false
		}
		recs[0].Data = append([]byte("x"), recs[0].Data[1:]...)
	case "link":
		if len(recs) == 0 || recs[0].DataTID == 0 {
			return m, false
		}
		recs[0].DataTID = 0
	}
	c.Records = txn.Slice(recs)
	return m, true
}

// A repository without transactions gives an empty Data.fs, and empty tables.
func TestEmpty(t *testing.T) {
	repo := backuptest.New(t, memstore.New(memstore.Options{}), true)
	repo.Heartbeat()
	path := filepath.Join(t.TempDir(), "out.fs")
	res, err := source(repo, 0).ToFile(t.Context(), path, FileOptions{})
	if err != nil || res.Last != 0 || !res.Compared || string(read(t, path)) != "FS30" {
		t.Errorf("%+v, %v", res, err)
	}
	res, err = source(repo, 0).ToTables(t.Context(), TablesOptions{Cluster: "c", Partitions: 2, Nodes: 1, Dir: t.TempDir()})
	if err != nil || res.Last != 0 || !res.Compared {
		t.Errorf("%+v, %v", res, err)
	}
}
