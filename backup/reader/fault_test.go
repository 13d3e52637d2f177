package reader_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

// spoiled is a store of which one object has a byte that differs.
type spoiled struct {
	store.Wrapped
	key  string
	at   int64
	mask byte
}

func (s *spoiled) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, store.Info, error) {
	body, info, err := s.Wrapped.Get(ctx, key, off, n)
	if err != nil || key != s.key {
		return body, info, err
	}
	from, _ := store.Span(off, n, info.Size)
	b, err := io.ReadAll(body)
	if i := s.at - from; err == nil && i >= 0 && i < int64(len(b)) {
		b[i] ^= s.mask
	}
	return io.NopCloser(bytes.NewReader(b)), info, errors.Join(err, body.Close())
}

// A bit that has turned over gives errors that name the object of the repository, or nothing,
// and never other data.
func TestBitFlips(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		s := &spoiled{Wrapped: store.Wrapped{Store: memstore.New(memstore.Options{})}}
		r := backuptest.New(t, s, encrypted)
		list := all(t, txntest.Random(5, 60, 15))
		keys := r.Listed(list[:20], list[20:40])
		r.Manifest(false, false)
		keys = append(keys, r.Tail(list[40:]...))
		want := until(t, list, tid.Max)
		rnd := rand.New(rand.NewPCG(1, 1))
		state := r.Now()
		failures := 0
		for range 60 * *rounds {
			s.key = keys[rnd.IntN(2)]
			_, info, err := s.Wrapped.Get(t.Context(), s.key, 0, 0)
			if err != nil {
				t.Fatal(err)
			}
			if s.at, s.mask = rnd.Int64N(info.Size), 1<<rnd.IntN(8); rnd.IntN(3) == 0 {
				s.at = max(0, info.Size-1-rnd.Int64N(600)) // directory, table, footer
			}
			d, err := reader.Open(t.Context(), r.Repository, r.Keys, state, reader.Options{CacheSize: 1})
			if err != nil {
				t.Fatal(err)
			}
			for oid := range tid.OID(16) {
				for _, before := range []tid.TID{list[20].TID, list[45].TID, tid.Max} {
					w, wErr := want.LoadBefore(t.Context(), oid, before)
					g, err := d.LoadBefore(t.Context(), oid, before)
					if errors.Is(err, snapshot.ErrCorrupt) {
						if failures++; !strings.Contains(err.Error(), s.key) || !strings.Contains(err.Error(), oid.String()) {
							t.Fatalf("the error does not name %s and %v: %v", s.key, oid, err)
						}
						continue
					}
					if kind(err) != kind(wErr) || !bytes.Equal(g.Data, w.Data) || err == nil && (g.Serial != w.Serial || g.Next != w.Next) {
						t.Fatalf("encrypted %v, byte %d of %s: object %v before %v is %q at %v until %v, %v", encrypted, s.at, s.key, oid, before, g.Data, g.Serial, g.Next, err)
					}
				}
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if failures < 60 {
			t.Errorf("%d failures only", failures)
		}
	}
}

// Of a segment that was overwritten or deleted on a bucket that keeps versions, the right version is read, which is told.
func TestVersions(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		for _, damage := range []string{"other bytes", "deleted", "a frame"} {
			s := memstore.New(memstore.Options{Versioned: true})
			r := backuptest.New(t, s, encrypted)
			list := all(t, txntest.Random(5, 60, 15))
			key := r.Listed(list)[0]
			r.Manifest(false, false)
			b := storetest.Get(t, s, key)
			switch damage {
			case "deleted":
				without(t, s, key)
			case "a frame":
				b[len(b)/3] ^= 1
				fallthrough
			default:
				if damage != "a frame" {
					b = bytes.Repeat([]byte("!"), len(b))
				}
				if err := s.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), store.PutOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			d, err := reader.Open(t.Context(), r.Repository, r.Keys, r.Now(), reader.Options{CacheSize: 1})
			if err != nil {
				t.Fatal(err)
			}
			want := until(t, list, tid.Max)
			for oid := range tid.OID(16) {
				w, wErr := want.LoadBefore(t.Context(), oid, tid.Max)
				g, err := d.LoadBefore(t.Context(), oid, tid.Max)
				if kind(err) != kind(wErr) || !bytes.Equal(g.Data, w.Data) {
					t.Errorf("%s, encrypted %v: object %v: %q, %v, want %q, %v", damage, encrypted, oid, g.Data, err, w.Data, wErr)
				}
			}
			if list := r.Tampered(); len(list) != 1 || list[0].Key != key {
				t.Errorf("%s, encrypted %v: %v", damage, encrypted, list)
			}
			if err := d.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// without deletes objects.
func without(t *testing.T, s store.Store, keys ...string) {
	t.Helper()
	if err := s.Delete(t.Context(), keys); err != nil {
		t.Fatal(err)
	}
}

// Of a segment that is missing, only what can be known from it alone is lost. The error names it.
func TestMissing(t *testing.T) {
	rec := func(oid tid.OID, data string) txn.Record { return txn.Record{OID: oid, Data: []byte(data)} }
	for _, what := range []string{"segment", "page"} {
		s := memstore.New(memstore.Options{})
		r := backuptest.New(t, s, true)
		keys := r.Listed([]*txn.Transaction{backuptest.Txn(0x10, rec(1, "one"), rec(2, "two"))})
		r.Manifest(false, false)
		keys = append(keys, r.Listed([]*txn.Transaction{backuptest.Txn(0x20, rec(2, "two again"))})...)
		r.Manifest(false, true) // the first segment is in a page
		r.Tail(backuptest.Txn(0x30, rec(3, "three")))
		lost := keys[0]
		if what == "page" {
			lost = storetest.Keys(t, s, snapshot.Prefix(snapshot.KindPage, r.Lineage), "")[0]
		}
		without(t, s, lost)
		again, err := backup.Open(t.Context(), r.Config)
		if err != nil {
			t.Fatal(err)
		}
		d, err := reader.Open(t.Context(), again, again.Unlock(r.Identity), r.Now(), reader.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		for oid, want := range map[tid.OID]string{2: "two again", 3: "three"} {
			if g, err := d.LoadBefore(t.Context(), oid, tid.Max); string(g.Data) != want || err != nil {
				t.Errorf("%s: object %v: %q, %v", what, oid, g.Data, err)
			}
		}
		damaged := func(err error) bool {
			return errors.Is(err, backup.ErrIncomplete) && strings.Contains(err.Error(), lost)
		}
		for _, oid := range []tid.OID{1, 4} {
			if oid == 4 && what == "segment" {
				continue // greater than all that the segment has
			}
			if g, err := d.LoadBefore(t.Context(), oid, tid.Max); !damaged(err) {
				t.Errorf("%s: object %v: %q, %v", what, oid, g.Data, err)
			}
		}
		if _, err := d.LoadBefore(t.Context(), 2, 0x20); !damaged(err) {
			t.Errorf("%s: the revision before: %v", what, err)
		}
		n := 0
		for tr, err := range d.Backwards(t.Context()) {
			if n++; n < 3 && (err != nil || tr.TID != tid.TID(0x40-0x10*n)) || n == 3 && !damaged(err) {
				t.Errorf("%s: backwards: %v, %v", what, tr, err)
			}
		}
		for tr, err := range d.Transactions(t.Context(), 0, tid.Max) {
			if !damaged(err) {
				t.Errorf("%s: transaction %v, %v", what, tr, err)
			}
		}
		for tr, err := range d.Transactions(t.Context(), 0x10, tid.Max) {
			if err != nil {
				t.Errorf("%s: transaction %v, %v", what, tr, err)
			}
		}
		for oid, err := range d.OIDs(t.Context(), tid.Max, 0) {
			if !damaged(err) {
				t.Errorf("%s: object %v exists, %v", what, oid, err)
			}
		}
	}
}

// What a merge has made superfluous may be deleted while it is read.
func TestPruned(t *testing.T) {
	for _, filled := range []bool{false, true} {
		s := memstore.New(memstore.Options{})
		r := backuptest.New(t, s, true)
		// More than what is read with the directory.
		list := large(rand.New(rand.NewPCG(8, 8)), 0, 100, func(i, j int) tid.OID { return tid.OID((i*5 + j) % 43) })
		keys := r.Listed(list[:30], list[30:60])
		d := open(t, r, reader.Options{CacheSize: 1, CacheDir: t.TempDir()})
		if filled {
			if err := d.Filled(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		r.Listed(list[60:])
		r.Manifest(true, false)
		without(t, s, keys...)
		want := until(t, list, list[59].TID)
		sameLoads(t, d, want, rand.New(rand.NewPCG(1, 1)), list, 100)
		n := 0
		for tr, err := range d.Transactions(t.Context(), 0, tid.Max) {
			if err != nil || tr.TID != list[n].TID {
				t.Fatalf("transaction %v, %v", tr, err)
			}
			n++
		}
		if n != 60 || d.At() != list[59].TID {
			t.Errorf("%d transactions up to %v", n, d.At())
		}
	}
}

// Each call fails now and then, bodies end early: with a store that repeats, nothing is to be
// seen of it.
func TestStoreThatFailsNowAndThen(t *testing.T) {
	var mu sync.Mutex
	rnd := rand.New(rand.NewPCG(4, 4))
	var on atomic.Bool
	f := storetest.NewFaulty(memstore.New(memstore.Options{}), func(_ context.Context, c storetest.Call) storetest.Fault {
		mu.Lock()
		defer mu.Unlock()
		if !on.Load() || rnd.IntN(3) > 0 {
			return storetest.Fault{}
		}
		if rnd.IntN(2) == 0 {
			return storetest.Fault{Err: &store.TemporaryError{Err: errors.New("503"), SlowDown: rnd.IntN(2) == 0}}
		}
		return storetest.Fault{Cut: true, Err: &store.TemporaryError{Err: errors.New("reset")}}
	})
	r := backuptest.New(t, store.Retry(f, store.RetryOptions{Base: time.Microsecond, Max: time.Millisecond}), true)
	list := all(t, txntest.Random(8, 150, 30))
	for c := range slices.Chunk(list, 15) {
		r.Listed(c)
	}
	on.Store(true)
	want := until(t, list, tid.Max)
	for _, o := range []reader.Options{{CacheSize: 1}, {CacheDir: t.TempDir()}} {
		d := open(t, r, o)
		sameLoads(t, d, want, rand.New(rand.NewPCG(2, 2)), list, 150)
		sameOIDs(t, d, want, 0)
	}
	if f.Fired() < 100 {
		t.Errorf("%d faults", f.Fired())
	}
}

// silent is a store that does not answer while it is on.
type silent struct {
	store.Wrapped
	on atomic.Bool
}

func (s *silent) Get(ctx context.Context, key string, off, n int64) (io.ReadCloser, store.Info, error) {
	if s.on.Load() {
		<-ctx.Done()
		return nil, store.Info{}, ctx.Err()
	}
	return s.Wrapped.Get(ctx, key, off, n)
}

// A read of a store that does not answer ends with its context, or in time.
func TestSilentStore(t *testing.T) {
	s := &silent{Wrapped: store.Wrapped{Store: memstore.New(memstore.Options{})}}
	r := backuptest.New(t, s, true)
	r.Listed([]*txn.Transaction{backuptest.Txn(0x10, txn.Record{OID: 1, Data: []byte("one")})})
	state := r.Now()
	s.on.Store(true)
	d, err := reader.Open(t.Context(), r.Repository, r.Keys, state, reader.Options{ReadTimeout: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := d.LoadBefore(ctx, 1, tid.Max); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, txn.ErrUnavailable) {
		t.Errorf("with a context that ends: %v", err)
	}
	if _, err := d.LoadBefore(t.Context(), 1, tid.Max); !errors.Is(err, txn.ErrUnavailable) {
		t.Errorf("after the timeout: %v", err)
	}
	for oid, err := range d.OIDs(t.Context(), tid.Max, 0) {
		if !errors.Is(err, txn.ErrUnavailable) {
			t.Errorf("object %v, %v", oid, err)
		}
	}
	s.on.Store(false)
	if rev, err := d.LoadBefore(t.Context(), 1, tid.Max); string(rev.Data) != "one" || err != nil {
		t.Errorf("%q, %v", rev.Data, err)
	}
	s.on.Store(true)
	blocked := make(chan error)
	go func() {
		_, err := d.LoadBefore(context.Background(), 1, 0x11)
		blocked <- err
	}()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if err := <-blocked; err != nil && !errors.Is(err, txn.ErrUnavailable) {
		t.Errorf("a read at Close: %v", err)
	}
	if _, err := d.LoadBefore(t.Context(), 9, 0x11); err == nil {
		t.Error("a read after Close")
	}
}

// The files of the index may be damaged or deleted at any time.
func TestIndexFiles(t *testing.T) {
	s := memstore.New(memstore.Options{})
	r := backuptest.New(t, s, true)
	list := all(t, txntest.Random(9, 400, 40))
	for c := range slices.Chunk(list, 4) { // 100 segments: they are merged
		r.Listed(c)
	}
	want := until(t, list, tid.Max)
	dir := t.TempDir()
	rnd := rand.New(rand.NewPCG(3, 3))
	files := func() (paths []string) {
		t.Helper()
		found, err := filepath.Glob(filepath.Join(dir, "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range found {
			fi, err := os.Stat(p)
			if err != nil {
				t.Fatal(err)
			}
			if fi.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %v", p, fi.Mode())
			}
			if strings.HasPrefix(filepath.Base(p), "index-") {
				paths = append(paths, p)
			}
		}
		return paths
	}
	for round := range 4 + 4**rounds {
		d, err := reader.Open(t.Context(), r.Repository, r.Keys, r.Now(), reader.Options{CacheDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		sameLoads(t, d, want, rnd, list, 40)
		if err := d.Filled(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := len(files()); n > 20 {
			t.Errorf("%d index files for 100 segments", n)
		}
		if round%2 == 0 { // while they are open
			damage(t, rnd, files())
		}
		sameLoads(t, d, want, rnd, list, 100)
		sameOIDs(t, d, want, tid.OID(rnd.IntN(40)))
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if round%2 == 1 { // before they are opened
			damage(t, rnd, files())
		}
		if round == 6 {
			if err := os.RemoveAll(dir); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// damage changes a byte of some files, cuts others, and deletes one.
func damage(t *testing.T, rnd *rand.Rand, paths []string) {
	t.Helper()
	for i, p := range paths {
		b, err := os.ReadFile(p)
		if err != nil {
			t.Fatal(err)
		}
		switch {
		case i == 0:
			err = os.Remove(p)
		case i%3 == 0:
			err = os.Truncate(p, rnd.Int64N(int64(len(b))))
		default:
			b[rnd.IntN(len(b))] ^= 1 << rnd.IntN(8)
			err = os.WriteFile(p, b, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}
