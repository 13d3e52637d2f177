package writer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

// packable is a source that is packed while it is backed up. The model has all that was ever
// committed, and what the packs that the source had would have left of it.
type packable interface {
	sync(t *testing.T) // commits what the model has and the source has not
	pack(t *testing.T, upTo tid.TID)
	open(t *testing.T) feed.Feed
}

// lives are the lives of a source and of the writers that back it up, with what must come of them.
type lives struct {
	*world // its feed is the model
	source packable

	pack     tid.TID // the greatest one
	acked    tid.TID
	lineages []*lived // the last one is current
	stored   map[string][sha256.Size]byte
	rebases  int
}

// lived is a lineage as it must be.
type lived struct {
	head  tid.TID
	holes []snapshot.Hole
	clean tid.TID // what is up to here was read before there was any pack
	loose bool    // it was packed while it was read: holes may be smaller
}

func newLives(w *world, source packable) *lives {
	l := &lives{world: w, source: source, stored: map[string][sha256.Size]byte{}, lineages: []*lived{{}}}
	w.packed, w.least = true, 1 // a Data.fs has no records of no bytes
	w.setup = func(o *Options) {
		o.Feed = source.open(w.t)
		o.Interval = time.Millisecond
	}
	return l
}

// commit commits transactions. Some only check objects, some bring back what was there before a
// pack, as far as the pack has left it.
func (l *lives) commit(n int) {
	l.t.Helper()
	for range n {
		if l.rnd.IntN(4) > 0 {
			l.change(1)
			continue
		}
		oid := tid.OID(l.rnd.IntN(12))
		t := feedtest.Transaction{Description: "checks", Checked: []tid.OID{oid}}
		if l.rnd.IntN(2) == 0 {
			t.Records = []txn.Record{{OID: (oid + 1) % 12}} // and deletes another
		}
		l.feed.Commit(t)
	}
	l.source.sync(l.t)
}

// packAt packs at a time, if there is anything.
func (l *lives) packAt(upTo tid.TID) {
	l.t.Helper()
	if upTo == 0 {
		return
	}
	l.source.pack(l.t, upTo)
	l.pack = max(l.pack, upTo)
}

// somewhere is when a transaction was committed, often the last one, or after it.
func (l *lives) somewhere() tid.TID {
	last := l.last()
	switch {
	case last == 0:
		return 0
	case l.rnd.IntN(4) == 0:
		return last
	case l.rnd.IntN(4) == 0:
		return last + 1<<25 // before the next one
	}
	list := tids(l.t, l.feed.Full())
	return list[l.rnd.IntN(len(list))]
}

func tids(t *testing.T, h txn.History) (list []tid.TID) {
	for tr, err := range h.Transactions(t.Context(), 0, tid.Max) {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, tr.TID)
	}
	return list
}

// read says that a lineage was brought from its head to the last transaction.
func (l *lives) read(e *lived, while func()) {
	if while != nil {
		pack := l.pack
		while()
		e.loose = e.loose || l.pack != pack
	}
	last := l.last()
	if last == e.head {
		return
	}
	if l.pack > e.head {
		e.holes = snapshot.AddHole(slices.Clone(e.holes), snapshot.Hole{From: e.head, To: min(l.pack, last)})
	}
	if l.pack == 0 {
		e.clean = last
	}
	e.head = last
}

// now is the current lineage.
func (l *lives) now() *lived { return l.lineages[len(l.lineages)-1] }

// do opens a writer and closes it at the end.
func (l *lives) do(f func(*Writer)) {
	l.t.Helper()
	w, err := l.open(l.t.Context(), l.store, l.dir)
	if err != nil {
		l.t.Fatal(err)
	}
	f(w)
	l.acked = max(l.acked, acked(w))
	if err := w.Close(); err != nil {
		l.t.Fatal(err)
	}
	l.unchanged()
}

// snapshot catches up.
func (l *lives) snapshot() {
	l.t.Helper()
	l.do(func(w *Writer) {
		l.read(l.now(), nil)
		if err := w.Snapshot(l.t.Context(), 0, ""); err != nil {
			l.t.Fatal(err)
		}
	})
}

// follow catches up, and goes on while steps commit and pack.
func (l *lives) follow(steps int) {
	l.t.Helper()
	l.do(func(w *Writer) {
		ctx, cancel := context.WithCancel(l.t.Context())
		done := make(chan error, 1)
		go func() { done <- w.Follow(ctx) }()
		wait := func() {
			l.t.Helper()
			l.read(l.now(), nil)
			for i := 0; acked(w) < l.last(); i++ {
				select {
				case err := <-done:
					l.t.Fatalf("following has ended: %v", err)
				case <-time.After(2 * time.Millisecond):
				}
				if i > 60000 {
					l.t.Fatalf("%v is not acknowledged, only %v", l.last(), acked(w))
				}
			}
		}
		wait()
		for range steps {
			if l.rnd.IntN(4) == 0 {
				at, last, e := l.somewhere(), l.last(), l.now() // all of it is stored
				l.packAt(at)
				// What the source commits for a pack may be read before or after it.
				e.loose = e.loose || at > e.head && l.last() > last
				if l.rnd.IntN(2) == 0 {
					continue
				}
			}
			l.commit(1 + l.rnd.IntN(4))
			wait()
		}
		wait()
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			l.t.Fatal(err)
		}
	})
}

// rebase begins a new lineage. while is done before each of its first steps.
func (l *lives) rebase(while func()) {
	l.t.Helper()
	l.do(func(w *Writer) {
		old, next := l.now(), &lived{}
		l.rebases++
		begin := l.last()
		var n atomic.Int64 // the chain before is followed at the same time
		n.Store(l.rnd.Int64N(4))
		l.feed.BeforeStep(func(tid.TID) {
			if n.Add(-1) == -1 {
				while()
			}
		})
		if err := w.Rebase(l.t.Context()); err != nil {
			l.t.Fatal(err)
		}
		l.feed.BeforeStep(nil)
		if l.last() != begin { // how much of it came to the old one is not known
			old.loose = true
		}
		s, err := l.repo.State(l.t.Context(), w.Lineage().Parent, nil)
		if err != nil {
			l.t.Fatal(err)
		}
		l.read(old, nil)
		old.head = s.Head()
		l.read(next, nil)
		l.lineages = append(l.lineages, next)
	})
}

// unchanged verifies that all that was ever stored is as it was.
func (l *lives) unchanged() {
	l.t.Helper()
	left := len(l.stored)
	for info, err := range l.store.List(l.t.Context(), "", "") {
		if err != nil {
			l.t.Fatal(err)
		}
		b, _, err := store.ReadAll(l.t.Context(), l.store, info.Key, 1<<30)
		if err != nil {
			l.t.Fatal(err)
		}
		sum := sha256.Sum256(b)
		if old, ok := l.stored[info.Key]; ok {
			left--
			if old != sum {
				l.t.Fatalf("%s has changed", info.Key)
			}
		}
		l.stored[info.Key] = sum
	}
	if left > 0 {
		l.t.Fatalf("%d objects are gone", left)
	}
}

// verify compares all lineages with what was ever committed: each at every n-th transaction, and at
// the ends of all holes.
func (l *lives) verify(every int) (restored, refused int) {
	t := l.t
	t.Helper()
	if n := l.rebases + 1; n != len(l.lineages) {
		t.Fatalf("%d lineages are expected, want %d", len(l.lineages), n)
	}
	notes, err := l.repo.Lineages(t.Context())
	if err != nil || len(notes) != len(l.lineages) {
		t.Fatalf("%d lineages, %v, want %d", len(notes), err, len(l.lineages))
	}
	reference := unpacked{l.feed.Full()}
	all := tids(t, reference)
	for k, note := range notes {
		e := l.lineages[k]
		l.checkLineage(note.Lineage, 0)
		s, err := l.repo.State(t.Context(), note.Lineage, nil)
		if err != nil {
			t.Fatal(err)
		}
		if s.Head() != e.head {
			t.Errorf("lineage %d ends with %v, want %v", k+1, s.Head(), e.head)
		}
		for _, h := range s.Holes() {
			if !slices.ContainsFunc(e.holes, func(w snapshot.Hole) bool { return w.From <= h.From && h.To <= w.To }) {
				t.Errorf("lineage %d has the hole %v, want %v", k+1, h, e.holes)
			}
		}
		if !e.loose && !slices.Equal(s.Holes(), e.holes) {
			t.Errorf("lineage %d has the holes %v, want %v", k+1, s.Holes(), e.holes)
		}
		var ats []tid.TID
		for i, at := range all {
			if i%every == k%every || at == e.head {
				ats = append(ats, at)
			}
		}
		for _, h := range s.Holes() {
			ats = append(ats, h.From, h.From+1, h.To-1, h.To)
		}
		slices.Sort(ats)
		for _, at := range slices.Compact(ats) {
			if at == 0 {
				continue
			}
			if l.restore(s, at, reference, at <= e.clean) {
				restored++
			} else {
				refused++
			}
		}
	}
	if head := l.now().head; head < l.acked || head != l.last() {
		t.Errorf("the current lineage ends with %v; %v was acknowledged, the source has %v", head, l.acked, l.last())
	}
	return restored, refused
}

// restore restores into a file and compares it with a history; if clean is set, byte by byte with its
// export. It reports false if that was refused, as it must be in a hole and beyond the head.
func (l *lives) restore(s *backup.State, at tid.TID, reference txn.History, clean bool) bool {
	t := l.t
	t.Helper()
	dir := t.TempDir()
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "out.fs")
	src := &restore.Source{Repo: l.repo.Repository, Keys: l.repo.Keys, State: s, At: at}
	_, err := src.ToFile(t.Context(), path, restore.FileOptions{})
	hole, in := snapshot.Hole{}, false
	for _, h := range s.Holes() {
		if h.From < at && at < h.To {
			hole, in = h, true
		}
	}
	if in || at > s.Head() {
		e, ok := errors.AsType[*backup.NotExactError](err)
		if !ok {
			t.Fatalf("restored at %v, which is in the hole %v or beyond %v: %v", at, hole, s.Head(), err)
		}
		before, after := hole.From, hole.To
		if !in {
			before, after = s.Head(), 0
		}
		if after > s.Head() {
			after = 0
		}
		if e.TID != at || e.Before != before || e.After != after {
			t.Errorf("not exact at %v: %+v, want %v and %v", at, e, before, after)
		}
		if list, err := os.ReadDir(dir); err != nil || len(list) > 0 {
			t.Errorf("a refused restore left %v, %v", list, err)
		}
		return false
	}
	if err != nil {
		t.Fatalf("restore at %v: %v", at, err)
	}
	f, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.UseIndex(t.Context(), path+".index", nil); err != nil {
		t.Fatal(err)
	}
	want := collect(t, reference.Transactions(t.Context(), 0, at))
	state := want.at(t, at)
	for oid := range tid.OID(16) {
		rev, err := f.LoadBefore(t.Context(), oid, at+1)
		if err != nil && !errors.Is(err, txn.ErrNoSuchObject) && !errors.Is(err, txn.ErrNotFound) {
			t.Fatal(err)
		}
		data, ok := state[oid]
		if exists := err == nil; exists != ok || string(rev.Data) != data {
			t.Fatalf("lineage %v at %v: object %v is %.8x/%d (%v), want %.8x/%d (%v)", s.Lineage, at, oid, rev.Data, len(rev.Data), exists, data, len(data), ok)
		}
		if ok && rev.Serial != want.newest(oid) {
			t.Fatalf("lineage %v at %v: object %v is of %v, want %v", s.Lineage, at, oid, rev.Serial, want.newest(oid))
		}
	}
	if clean {
		if _, err := exporter.ToFile(t.Context(), reference, path+".want", exporter.FileOptions{UpTo: at}); err != nil {
			t.Fatal(err)
		}
		a, b := read(t, path), read(t, path+".want")
		if !bytes.Equal(a, b) {
			t.Fatalf("lineage %v at %v: the file has %d bytes, an export before all packs %d", s.Lineage, at, len(a), len(b))
		}
	}
	return true
}

// unpacked is a history as it was before any pack.
type unpacked struct{ txn.History }

func (u unpacked) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for t, err := range u.History.Transactions(ctx, after, upTo) {
			if err == nil {
				t.Status = txn.Committed
			}
			if !yield(t, err) {
				return
			}
		}
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// newest is the last transaction that changed an object.
func (h history) newest(oid tid.OID) (at tid.TID) {
	for _, s := range h {
		for _, r := range s.records {
			if r.OID == oid {
				at = s.TID
			}
		}
	}
	return at
}

// inMemorySource is the model itself.
type inMemorySource struct{ *feedtest.Memory }

func (m inMemorySource) sync(*testing.T)                 {}
func (m inMemorySource) pack(_ *testing.T, upTo tid.TID) { m.Pack(upTo) }
func (m inMemorySource) open(*testing.T) feed.Feed       { return m.Reopen() }

// Packs before, during and after a writer follows, while it is down, and while a new lineage is filled
// under commits. Undos and deletions are on either side of them. Each lineage has exactly the holes that
// these packs must make; elsewhere each restore gives what was committed; nothing that is
// stored changes.
func TestPacks(t *testing.T) {
	restored, refused, rebases := 0, 0, 0
	for seed := *firstSeed; seed < *firstSeed+uint64(max(1, *seeds/2)); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			var l *lives
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, seed, seed%2 == 0)
				w.size = 4<<10 + w.rnd.Int64N(16<<10)
				l = newLives(w, inMemorySource{w.feed})
				l.run(6 + w.rnd.IntN(10))
				l.repo = w.repo
			})
			l.t = t
			every := 1
			if len(tids(t, l.feed.Full())) > 60 {
				every = 50
			}
			a, b := l.verify(every)
			restored, refused, rebases = restored+a, refused+b, rebases+l.rebases
		})
	}
	t.Logf("%d restores were equal, %d refused, %d lineages after others", restored, refused, rebases)
	if restored == 0 || refused == 0 || rebases == 0 {
		t.Error("something never happened")
	}
}

// run lets a source and its writers live for a while.
func (l *lives) run(steps int) {
	l.t.Helper()
	if l.rnd.IntN(2) == 0 {
		l.commit(10)
		if l.rnd.IntN(2) == 0 {
			l.packAt(l.somewhere()) // before the first backup
		}
	}
	for range steps {
		switch l.rnd.IntN(8) {
		case 0: // the writer is down
			l.commit(l.rnd.IntN(12))
			l.packAt(l.somewhere())
			l.commit(l.rnd.IntN(4))
		case 1:
			l.commit(l.rnd.IntN(12))
			l.snapshot()
		case 2, 3, 4:
			l.follow(l.rnd.IntN(8))
		case 5: // packed while it is read
			l.commit(3 + l.rnd.IntN(12))
			n := l.rnd.IntN(5)
			l.do(func(w *Writer) {
				l.read(l.now(), func() {
					l.feed.BeforeStep(func(tid.TID) {
						if n == 0 {
							l.packAt(l.somewhere())
						}
						n--
					})
					if err := w.Snapshot(l.t.Context(), 0, ""); err != nil {
						l.t.Fatal(err)
					}
					l.feed.BeforeStep(nil)
				})
			})
		case 6:
			l.rebase(func() { l.commit(1 + l.rnd.IntN(5)) })
		case 7: // the host is lost
			if err := os.RemoveAll(l.dir); err != nil {
				l.t.Fatal(err)
			}
		}
	}
	l.commit(2)
	l.snapshot()
}

// clusterSource is a running cluster.
type clusterSource struct {
	c       *client.Client
	config  client.Config
	model   *feedtest.Memory
	synced  tid.TID
	serials map[tid.OID]tid.TID
}

func newClusterSource(t *testing.T, model *feedtest.Memory, cfg simple.Config) *clusterSource {
	t.Helper()
	cfg.Dir, cfg.Name = t.TempDir(), "test"
	s, err := simple.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := s.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}
	c := &clusterSource{config: client.Config{Cluster: s.Name(), Masters: []proto.Address{s.Master()}}, model: model, serials: map[tid.OID]tid.TID{}}
	if c.c, err = client.Open(t.Context(), c.config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.c.Close() })
	return c
}

func (c *clusterSource) sync(t *testing.T) {
	t.Helper()
	for _, s := range collect(t, c.model.Full().Transactions(t.Context(), c.synced, tid.Max)) {
		if err := c.commit(t.Context(), &s); err != nil {
			t.Fatalf("transaction %v: %v", s.TID, err)
		}
		c.synced = s.TID
	}
}

func (c *clusterSource) commit(ctx context.Context, s *stored) error {
	x, err := c.c.Begin(ctx, client.BeginOptions{TID: s.TID, User: s.User, Description: s.Description, Extension: s.Extension})
	if err != nil {
		return err
	}
	for _, r := range s.records {
		if r.DataTID != tid.Zero {
			err = x.StoreUndo(ctx, r.OID, c.serials[r.OID], r.Data, r.DataTID)
		} else {
			err = x.Store(ctx, r.OID, c.serials[r.OID], r.Data)
		}
		if err != nil {
			return err
		}
	}
	if _, err := x.Vote(ctx); err != nil {
		return err
	}
	at, err := x.Finish(ctx, nil)
	for _, r := range s.records {
		c.serials[r.OID] = at
	}
	return err
}

// pack packs some time after the last transaction: storages keep deletions for a while.
func (c *clusterSource) pack(t *testing.T, upTo tid.TID) {
	t.Helper()
	last, err := c.model.Full().LastTID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.model.Commit(feedtest.Transaction{TID: last + 10<<32, Description: "later"})
	c.sync(t)
	order, err := c.c.Pack(t.Context(), upTo)
	if err == nil {
		err = c.c.WaitForPack(t.Context(), order)
	}
	if err != nil {
		t.Fatal(err)
	}
	c.model.Commit(feedtest.Transaction{TID: order, Description: "IStorage.pack"})
	c.synced = order
	c.model.Pack(upTo)
}

func (c *clusterSource) open(t *testing.T) feed.Feed {
	t.Helper()
	f, err := feed.OpenCluster(t.Context(), feed.ClusterOptions{Client: c.config, Repository: "prod", Poll: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// The same with clusters.
func TestPacksOfCluster(t *testing.T) {
	for i, cfg := range []simple.Config{{Partitions: 1}, {Partitions: 5, Storages: 3, Replicas: 1}} {
		t.Run(fmt.Sprintf("%d partitions", cfg.Partitions), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, *firstSeed+uint64(i), i == 0)
			l := newLives(w, newClusterSource(t, w.feed, cfg))
			l.run(12)
			restored, refused := l.verify(3)
			t.Logf("%d transactions; %d restores were equal, %d refused; %d lineages after others", len(tids(t, w.feed.Full())), restored, refused, l.rebases)
		})
	}
}
