package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
)

const sampleFile = "../../testdata/fs/site.fs"

// world is a repository of a Data.fs in all forms that one has.
type world struct {
	t    testing.TB
	mem  *memstore.Store
	repo *backuptest.Repo
	list backuptest.History
	o    Options
	// keys of what is stored: a segment in a catalog page, one in the manifest, tails.
	paged, listed, tails []string
}

func newWorld(t testing.TB) *world {
	t.Helper()
	return newWorldIn(t, memstore.Options{})
}

func newWorldIn(t testing.TB, o memstore.Options) *world {
	t.Helper()
	w := &world{t: t, mem: memstore.New(o), list: backuptest.ReadFile(t, sampleFile)}
	w.repo = backuptest.New(t, w.mem, true)
	l := w.list
	w.paged = w.repo.Listed(l[:90], l[90:160])
	w.repo.Manifest(true, false)
	w.repo.Manifest(false, true)
	w.listed = w.repo.Listed(l[160:220], l[220:260])
	w.repo.Manifest(false, false)
	w.tails = append(w.tails, w.repo.Tail(l[260:300]...), w.repo.Tail(l[300:320]...), w.repo.Heartbeat(), w.repo.Tail(l[320:]...))
	w.o = Options{
		Store: w.mem, Trusted: w.repo.Trusted, Identities: []age.Identity{w.repo.Identity}, Signer: w.repo.Driver,
		Sample: 100, Scratch: t.TempDir(), Rand: rand.New(rand.NewPCG(1, 2)),
		Source: func(ctx context.Context) (feed.Feed, error) {
			return feed.OpenFile(ctx, sampleFile, feed.FileOptions{})
		},
	}
	return w
}

func (w *world) head() tid.TID { return w.list[len(w.list)-1].TID }

// run runs a drill, and makes sure that nothing is left of it but the proof it tells of.
func (w *world) run(ctx context.Context, o Options) (*Result, error) {
	w.t.Helper()
	before := len(w.proofs())
	res, err := Run(ctx, o)
	entries, readErr := os.ReadDir(o.Scratch)
	if readErr != nil {
		w.t.Fatal(readErr)
	}
	for _, e := range entries {
		if res == nil || res.Kept != filepath.Join(o.Scratch, e.Name()) {
			w.t.Errorf("%s is left in scratch", e.Name())
		}
	}
	now := w.proofs()
	if res != nil && res.Key != "" {
		before++
		if now[0].Key != res.Key || now[0].Result != res.Proof.Result {
			w.t.Errorf("the newest proof is %s %s, not %s", now[0].Key, now[0].Result, res.Key)
		}
	}
	if len(now) != before {
		w.t.Errorf("%d proofs, want %d", len(now), before)
	}
	if err == nil && (res.Key == "" || res.Proof.Result != snapshot.ResultOK) || err != nil && res != nil && res.Key != "" && res.Proof.Result != snapshot.ResultFailed {
		w.t.Errorf("result %+v, error %v", res.Proof, err)
	}
	return res, err
}

func (w *world) proofs() []*backup.StoredProof {
	w.t.Helper()
	list, err := w.repo.Proofs(context.WithoutCancel(w.t.Context()), w.repo.Lineage)
	if err != nil {
		w.t.Fatal(err)
	}
	return list
}

// A drill of each mode passes on a repository that is as it was written, and says so.
func TestPasses(t *testing.T) {
	for _, mode := range []Mode{File, Cluster, Read} {
		t.Run(string(mode), func(t *testing.T) {
			w := newWorld(t)
			o := w.o
			o.Mode, o.Sample = mode, 0
			res, err := w.run(t.Context(), o)
			if err != nil {
				t.Fatal(err)
			}
			p, state := res.Proof, w.repo.Now()
			if p.TID != w.head() || !res.Head || p.Seq != state.Manifest.Seq || p.Manifest != state.Hash || p.Tail != state.Chain().N || p.Chain != state.Chain().Hash || p.Mode != string(mode) {
				t.Errorf("proof %+v", p)
			}
			if c := p.Compared; c.Segments < 5 || c.Txns != int64(len(w.list)) || c.Records != 2142 || c.Bytes < 100e3 || c.Source != digest {
				t.Errorf("compared %+v; %s", c, res.Source)
			}
			if p.Gets == 0 || p.BytesRead < 100e3 || len(p.Epochs) != 1 {
				t.Errorf("figures %+v", p)
			}
			if res.Objects == 0 || res.Existing == 0 || res.References == 0 || res.Dangling != 0 || len(res.Warnings) > 0 {
				t.Errorf("result %+v", res)
			}
			proven, err := w.repo.Proven(t.Context(), w.repo.Lineage)
			if err != nil || proven == nil || proven.Key != res.Key {
				t.Errorf("proven: %+v, %v", proven, err)
			}
		})
	}
}

// get returns an object, put replaces one.
func (w *world) get(key string) []byte {
	w.t.Helper()
	b, _, err := store.ReadAll(w.t.Context(), w.mem, key, 1<<30)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

func (w *world) put(key string, b []byte) {
	w.t.Helper()
	if err := w.mem.Put(w.t.Context(), key, bytes.NewReader(b), int64(len(b)), store.PutOptions{}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) remove(keys ...string) {
	w.t.Helper()
	if err := w.mem.Delete(w.t.Context(), keys); err != nil {
		w.t.Fatal(err)
	}
}

// flip changes a byte of an object: at a place in it if that is not negative, else from its end.
func (w *world) flip(key string, at int) {
	w.t.Helper()
	b := bytes.Clone(w.get(key))
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	w.put(key, b)
}

// swap exchanges two objects.
func (w *world) swap(a, b string) {
	x, y := bytes.Clone(w.get(a)), bytes.Clone(w.get(b))
	w.put(a, y)
	w.put(b, x)
}

// segments returns the keys of the segments that the state needs, which are objects of their own.
func (w *world) segments() []string {
	w.t.Helper()
	var keys []string
	for part, err := range w.repo.Parts(w.t.Context(), w.repo.Now(), 0, tid.Max) {
		if err != nil {
			w.t.Fatal(err)
		}
		if part.Segment.Offset() == 0 {
			keys = append(keys, part.Segment.Key)
		}
	}
	return keys
}

// keysOf returns the keys of the stored objects of a kind.
func (w *world) keysOf(kind snapshot.Kind) []string {
	w.t.Helper()
	var keys []string
	for info, err := range w.mem.List(w.t.Context(), snapshot.Prefix(kind, w.repo.Lineage), "") {
		if err != nil {
			w.t.Fatal(err)
		}
		if k, err := snapshot.ParseKey(info.Key); err == nil && k.Kind == kind {
			keys = append(keys, info.Key)
		}
	}
	return keys
}

// A drill of each mode fails for each kind of damage, and its proof says so; what was proven
// before is not touched.
func TestDamage(t *testing.T) {
	manifest := func(w *world) string { return snapshot.ManifestKey(w.repo.Lineage, w.repo.Now().Manifest.Seq) }
	damage := []struct {
		name string
		do   func(w *world)
		want error
	}{
		{"age header", func(w *world) { w.flip(w.segments()[0], 30) }, snapshot.ErrCorrupt},
		{"nonce", func(w *world) { w.flip(w.segments()[1], 190) }, snapshot.ErrCorrupt},
		{"text", func(w *world) { w.flip(w.segments()[0], 400) }, snapshot.ErrCorrupt},
		{"footer", func(w *world) { w.flip(w.segments()[0], -40) }, snapshot.ErrCorrupt},
		{"last byte", func(w *world) { w.flip(w.segments()[2], -1) }, snapshot.ErrCorrupt},
		{"in a tail", func(w *world) { w.flip(w.tails[1], -200) }, snapshot.ErrCorrupt},
		{"note of a tail", func(w *world) { w.flip(w.tails[0], 200) }, errBroken},
		{"truncated", func(w *world) { k := w.segments()[0]; b := w.get(k); w.put(k, b[:len(b)-1]) }, snapshot.ErrCorrupt},
		{"longer", func(w *world) { k := w.segments()[0]; w.put(k, append(bytes.Clone(w.get(k)), 0)) }, snapshot.ErrCorrupt},
		{"empty", func(w *world) { w.put(w.segments()[0], nil) }, snapshot.ErrCorrupt},
		{"missing segment", func(w *world) { w.remove(w.segments()[1]) }, backup.ErrIncomplete},
		{"missing page", func(w *world) { w.remove(w.keysOf(snapshot.KindPage)...) }, backup.ErrIncomplete},
		{"damaged page", func(w *world) { w.flip(w.keysOf(snapshot.KindPage)[0], 100) }, snapshot.ErrCorrupt},
		{"missing tail", func(w *world) { w.remove(w.tails[1]) }, errBroken},
		{"missing last tail", func(w *world) { w.remove(w.tails[3]) }, ErrDamaged},
		{"missing last manifest and tails", func(w *world) { w.remove(manifest(w)); w.remove(w.tails...) }, ErrDamaged},
		{"damaged manifest", func(w *world) { w.flip(manifest(w), 500) }, snapshot.ErrCorrupt},
		{"swapped segments", func(w *world) { s := w.segments(); w.swap(s[0], s[1]) }, snapshot.ErrCorrupt},
		{"swapped tails", func(w *world) { w.swap(w.tails[0], w.tails[1]) }, errBroken},
		{"older manifest", func(w *world) {
			w.put(manifest(w), w.get(snapshot.ManifestKey(w.repo.Lineage, 2)))
		}, snapshot.ErrCorrupt},
		{"missing wrap", func(w *world) { w.remove(w.keysOf(snapshot.KindWrap)...) }, backup.ErrIncomplete},
		{"damaged wrap", func(w *world) { w.flip(w.keysOf(snapshot.KindWrap)[0], -3) }, snapshot.ErrCorrupt},
		{"missing epoch", func(w *world) { w.remove(w.keysOf(snapshot.KindEpoch)...) }, backup.ErrIncomplete},
	}
	for i, d := range damage {
		t.Run(d.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.o.Mode, w.o.Source = File, nil
			var first string // the proof of an earlier drill
			if d.want == ErrDamaged || i%8 == 1 {
				res, err := w.run(t.Context(), w.o)
				if err != nil {
					t.Fatal(err)
				}
				first = res.Key
			}
			d.do(w)
			w.o.At = Head
			for _, mode := range []Mode{File, Read} {
				w.o.Mode = mode
				res, err := w.run(t.Context(), w.o)
				if err == nil || d.want == errBroken && !as[*backup.BrokenError](err) || d.want != errBroken && !errors.Is(err, d.want) && (mode == File || !errors.Is(err, ErrDamaged)) {
					t.Fatalf("%s: %v, want %v", mode, err, d.want)
				}
				if res.Key == "" || res.Proof.Reason == "" {
					t.Errorf("%s: no proof says so: %+v", mode, res.Proof)
				}
			}
			if d.want == ErrDamaged { // newer objects are missing: known and accepted, once
				w.o.AcceptOlder = true
				if res, err := w.run(t.Context(), w.o); err != nil || len(res.Warnings) == 0 {
					t.Errorf("accepted: %v", err)
				}
				w.o.AcceptOlder = false
				if _, err := w.run(t.Context(), w.o); err != nil {
					t.Errorf("after it was accepted: %v", err)
				}
				return
			}
			if p, err := w.repo.Proven(t.Context(), w.repo.Lineage); err != nil || first != "" && (p == nil || p.Key != first) || first == "" && p != nil {
				t.Errorf("proven: %+v, %v", p, err)
			}
		})
	}
}

var errBroken = errors.New("broken")

func as[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// An object that was overwritten in a store that keeps versions can be restored, and a drill that had to
// read an older version has failed all the same.
func TestTampered(t *testing.T) {
	for _, mode := range []Mode{File, Read} {
		w := newWorldIn(t, memstore.Options{Versioned: true})
		w.o.Mode, w.o.Source = mode, nil
		w.flip(w.segments()[0], 5000)
		res, err := w.run(t.Context(), w.o)
		if !errors.Is(err, ErrDamaged) || res.Key == "" || !as[*FindingsError](err) || res.Found != 1 || res.Findings[0].Key != w.segments()[0] {
			t.Errorf("%s: %v, %+v", mode, err, res)
		}
	}
}

// A fork, which uses a part of a segment of its parent, is drilled like any lineage, and its
// parent still is. One says nothing of the other.
func TestFork(t *testing.T) {
	for seed, mode := range []Mode{File, Cluster, Read} {
		w := &world{t: t, mem: memstore.New(memstore.Options{}), list: backuptest.ReadFile(t, sampleFile)[:60]}
		w.repo = backuptest.New(t, w.mem, true)
		w.repo.Tail(w.list[:20]...)
		old := w.repo.Lineage
		l := w.repo.ForkWithin(rand.New(rand.NewPCG(uint64(seed), 5)), w.list[20:40])
		w.repo.Tail(w.list[40:]...)
		path := filepath.Join(t.TempDir(), "Data.fs")
		write(t, w.list, path)
		w.o = Options{
			Store: w.mem, Trusted: w.repo.Trusted, Identities: []age.Identity{w.repo.Identity}, Signer: w.repo.Driver, Scratch: t.TempDir(), Mode: mode, At: Head,
			Source: func(ctx context.Context) (feed.Feed, error) { return feed.OpenFile(ctx, path, feed.FileOptions{}) },
		}
		res, err := w.run(t.Context(), w.o)
		if err != nil || res.K != l.K || res.Proof.TID != w.head() || res.Proof.Compared.Source != digest {
			t.Errorf("%s: %v, %+v", mode, err, res)
		}
		w.o.Source, w.o.Lineage = nil, old
		w.repo.Lineage = old // whose proofs are counted
		if res, err := w.run(t.Context(), w.o); err != nil || res.K != 1 {
			t.Errorf("%s, parent: %v", mode, err)
		}
	}
}

// denying is a store that takes no locks from this host.
type denying struct{ store.Store }

func (s denying) Put(ctx context.Context, key string, body io.ReaderAt, size int64, o store.PutOptions) error {
	if !o.Retain.IsZero() {
		return fmt.Errorf("%s: %w", key, store.ErrDenied)
	}
	return s.Store.Put(ctx, key, body, size, o)
}

// A proof is locked as what the writer stores, if that is permitted.
func TestLock(t *testing.T) {
	w := newWorldIn(t, memstore.Options{Versioned: true})
	w.o.Mode, w.o.Source, w.o.Lock, w.o.LockDays = Read, nil, store.Compliance, 3
	res, err := w.run(t.Context(), w.o)
	if err != nil {
		t.Fatal(err)
	}
	r, err := store.GetRetention(t.Context(), w.mem, res.Key, "")
	if left := time.Until(r.Until); err != nil || r.Mode != store.Compliance || left < 71*time.Hour || left > 73*time.Hour {
		t.Errorf("%+v, %v", r, err)
	}
	w.o.Store = denying{w.mem}
	if res, err := w.run(t.Context(), w.o); err != nil || len(res.Warnings) != 1 {
		t.Errorf("without permission: %v, %+v", err, res)
	}
}
