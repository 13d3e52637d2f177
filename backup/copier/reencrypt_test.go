package copier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// pair is a source, a repository that backs it up, and another one that copies that.
type pair struct {
	t          *testing.T
	rnd        *rand.Rand
	source     *feedtest.Memory
	from, to   *backuptest.Repo
	store      *memstore.Store // of to
	dir, dirTo string
	revisions  map[tid.OID][]tid.TID
}

func newPair(t *testing.T, seed uint64) *pair {
	t.Helper()
	s := memstore.New(memstore.Options{})
	return &pair{t: t, rnd: rand.New(rand.NewPCG(seed, 7)), source: feedtest.New("prod"), store: s, from: backuptest.New(t, memstore.New(memstore.Options{}), seed%3 != 0),
		to: backuptest.New(t, s, seed%2 == 0), dir: t.TempDir(), dirTo: t.TempDir(), revisions: map[tid.OID][]tid.TID{}}
}

// change commits data, deletions and copies.
func (p *pair) change(n int) {
	for range n {
		var x feedtest.Transaction
		x.Description = fmt.Sprint("change ", p.rnd.IntN(1000))
		used := map[tid.OID]bool{}
		for range p.rnd.IntN(4) {
			oid := tid.OID(p.rnd.IntN(9))
			if used[oid] {
				continue
			}
			used[oid] = true
			r := txn.Record{OID: oid}
			switch old := p.revisions[oid]; {
			case p.rnd.IntN(6) == 0:
			case p.rnd.IntN(4) == 0 && len(old) > 0:
				r.DataTID = old[p.rnd.IntN(len(old))]
			default:
				r.Data = bytes.Repeat([]byte{byte(p.rnd.IntN(256))}, p.rnd.IntN(300))
			}
			x.Records = append(x.Records, r)
		}
		at := p.source.Commit(x)
		for oid := range used {
			p.revisions[oid] = append(p.revisions[oid], at)
		}
	}
}

// pack packs the source; nothing copies what that may remove.
func (p *pair) pack() {
	p.source.Pack(p.last())
	clear(p.revisions)
}

func (p *pair) last() tid.TID {
	p.t.Helper()
	last, err := p.source.Full().LastTID(p.t.Context())
	if err != nil {
		p.t.Fatal(err)
	}
	return last
}

// backUp stores what the source has.
func (p *pair) backUp(do func(w *writer.Writer) error) {
	p.t.Helper()
	w, err := writer.Open(p.t.Context(), writer.Options{Repo: p.from.Repository, Signer: p.from.Signer, Feed: p.source.Reopen(), StateDir: p.dir, SegmentSize: 6 << 10})
	if err != nil {
		p.t.Fatal(err)
	}
	defer w.Close()
	if err := do(w); err != nil {
		p.t.Fatal(err)
	}
}

func (p *pair) snapshot() {
	p.t.Helper()
	p.backUp(func(w *writer.Writer) error { return w.Snapshot(p.t.Context(), 0, "") })
}

// copy copies the repository, through a way to the store of the copy.
func (p *pair) copy(s store.Store, change func(*ReencryptOptions)) error {
	p.t.Helper()
	repo, err := backup.Open(p.t.Context(), backup.Config{Store: s, Trusted: p.to.Trusted})
	if err != nil {
		return err
	}
	o := ReencryptOptions{From: p.from.Repository, Keys: p.from.Keys, Feed: FeedOptions{Fetch: backup.FetchOptions{Scratch: p.dirTo}},
		Writer: writer.Options{Repo: repo, Signer: p.to.Signer, StateDir: p.dirTo, SegmentSize: 5 << 10, RebaseOnPack: true}}
	if change != nil {
		change(&o)
	}
	_, err = Reencrypt(p.t.Context(), o)
	return err
}

func current(t *testing.T, r *backuptest.Repo) (*snapshot.Lineage, *backup.State) {
	t.Helper()
	l, err := r.Current(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s, err := r.State(t.Context(), l.Lineage, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l, s
}

// dump is the history of a repository as text.
func dump(t *testing.T, r *backuptest.Repo, s *backup.State) (list []string) {
	t.Helper()
	for tr, err := range r.Transactions(t.Context(), r.Keys, s, 0, tid.Max, backup.FetchOptions{Scratch: t.TempDir()}, nil) {
		if err != nil {
			t.Fatal(err)
		}
		text := fmt.Sprintf("%v %q %q %q %c", tr.TID, tr.User, tr.Description, tr.Extension, tr.Status)
		for rec, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			text += fmt.Sprintf(" %v from %v %x %t", rec.OID, rec.DataTID, rec.Data, rec.Data == nil)
		}
		list = append(list, text)
	}
	return list
}

// equal makes sure that the copy has the history of the repository up to where that is exact, with the
// same holes.
func (p *pair) equal() {
	p.t.Helper()
	t := p.t
	l, from := current(t, p.from)
	_, to := current(t, p.to)
	end := exactEnd(from)
	if to.Head() != end {
		t.Fatalf("the copy ends with %v, want %v of %v", to.Head(), end, from.Head())
	}
	got, want := dump(t, p.to, to), dump(t, p.from, from)
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("transaction\n%s\nwant\n%s", got[i], want[i])
		}
	}
	if end == from.Head() && len(got) != len(want) {
		t.Fatalf("%d transactions, want %d", len(got), len(want))
	}
	for at := range p.tids() {
		if a, b := from.Exact(at), to.Exact(at); at <= end && (a == nil) != (b == nil) {
			t.Fatalf("exact at %v: %v in the copy, %v in the repository: %v and %v", at, b, a, to.Holes(), from.Holes())
		}
	}
	if src := to.Manifest.Source; src.Kind != KindCopy || src.Name != "test/"+l.Lineage.String() {
		t.Errorf("the source is %+v", src)
	}
	if p.to.Marker.ID == p.from.Marker.ID {
		t.Error("both are the same repository")
	}
}

// tids yields the transactions of the source and what lies between.
func (p *pair) tids() func(yield func(tid.TID) bool) {
	return func(yield func(tid.TID) bool) {
		for tr, err := range p.source.Full().Transactions(p.t.Context(), 0, tid.Max) {
			if err != nil {
				p.t.Fatal(err)
			}
			if !yield(tr.TID) || !yield(tr.TID+1) {
				return
			}
		}
	}
}

// A copy with other keys has the same history and the same holes, also after packs, and a later one goes on.
func TestReencrypt(t *testing.T) {
	holes := 0
	for seed := range uint64(*seeds) {
		p := newPair(t, seed)
		for range 4 {
			for range 1 + p.rnd.IntN(4) {
				p.change(1 + p.rnd.IntN(20))
				if p.rnd.IntN(3) > 0 {
					p.snapshot()
				}
				if p.rnd.IntN(3) == 0 {
					p.pack()
				}
			}
			p.snapshot()
			if err := p.copy(p.store, nil); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			p.equal()
			_, s := current(t, p.from)
			holes += len(s.Holes())
			if p.rnd.IntN(3) == 0 {
				p.dirTo = t.TempDir() // the state directory is lost
			}
		}
	}
	if holes < 3 {
		t.Errorf("only %d holes were copied", holes)
	}
}

// Whatever call is the last one, the next copy goes on, and has exactly the same holes.
func TestReencryptInterrupted(t *testing.T) {
	for _, after := range []bool{false, true} {
		p := newPair(t, 4)
		p.change(10)
		p.snapshot()
		p.change(10)
		p.pack()
		p.snapshot()
		p.change(10)
		p.snapshot()
		for n, done := 1, false; !done; n += 1 + n/8 {
			p.store = memstore.New(memstore.Options{})
			p.to, p.dirTo = backuptest.New(t, p.store, true), t.TempDir()
			err := p.copy(storetest.DieAt(p.store, n, after), nil)
			if done = err == nil; !done {
				if !errors.Is(err, storetest.ErrFault) {
					t.Fatalf("call %d: %v", n, err)
				}
				if err := p.copy(p.store, nil); err != nil {
					t.Fatalf("after call %d: %v", n, err)
				}
			}
			p.equal()
		}
	}
}

// After a fork of the repository, the copy is forked too; after a rebase, it begins a new lineage as well, and
// nothing that was deleted comes back.
func TestReencryptLineages(t *testing.T) {
	p := newPair(t, 1)
	p.change(10)
	keep := p.source.Put(5, "stays")
	p.source.Put(100, "is deleted")
	p.change(5)
	p.snapshot()
	if err := p.copy(p.store, nil); err != nil {
		t.Fatal(err)
	}
	p.equal()
	_, before := current(t, p.to)

	// A fork before what was copied.
	p.source.Truncate(keep)
	f, err := writer.PlanFork(t.Context(), writer.ForkOptions{Options: writer.Options{Repo: p.from.Repository, Signer: p.from.Signer, Feed: p.source.Reopen(), StateDir: p.dir}, Keys: p.from.Keys})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Close()
	p.source.Commit(feedtest.Transaction{Description: "another history", Records: []txn.Record{{OID: 100, Data: []byte("is deleted later")}}})
	p.change(3)
	p.snapshot()
	if err := p.copy(p.store, nil); !errors.Is(err, writer.ErrDiverged) || errors.Is(err, ErrOther) {
		t.Fatalf("after a fork of the repository: %v", err)
	}
	from, err := OpenFeed(t.Context(), p.from.Repository, p.from.Keys, FeedOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if f, err = writer.PlanFork(t.Context(), writer.ForkOptions{Options: writer.Options{Repo: p.to.Repository, Signer: p.to.Signer, Feed: from, StateDir: p.dirTo}, Keys: p.to.Keys}); err != nil || f.At != keep {
		t.Fatalf("%+v, %v", f, err)
	}
	if _, err := f.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if err := p.copy(p.store, nil); err != nil {
		t.Fatal(err)
	}
	p.equal()
	if s, err := p.to.State(t.Context(), before.Lineage, nil); err != nil || s.Head() != before.Head() {
		t.Errorf("the lineage before: %v, %v", s, err)
	}

	// A fork after what was copied is no matter.
	p.change(2)
	p.snapshot()
	last := p.last()
	p.change(2)
	p.snapshot()
	p.source.Truncate(last)
	if f, err = writer.PlanFork(t.Context(), writer.ForkOptions{Options: writer.Options{Repo: p.from.Repository, Signer: p.from.Signer, Feed: p.source.Reopen(), StateDir: p.dir}, Keys: p.from.Keys}); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	f.Close()
	p.change(2)
	p.snapshot()
	k, _ := current(t, p.to)
	if err := p.copy(p.store, nil); err != nil {
		t.Fatal(err)
	}
	p.equal()
	if now, _ := current(t, p.to); now.K != k.K {
		t.Errorf("lineage %d, was %d", now.K, k.K)
	}

	// A deletion that the pack of the source removes, and a rebase of the repository.
	p.source.Delete(100)
	p.change(2)
	p.pack()
	p.change(2)
	p.backUp(func(w *writer.Writer) error { return w.Rebase(t.Context()) })
	err = p.copy(p.store, func(o *ReencryptOptions) { o.Writer.RebaseOnPack = false })
	if !errors.Is(err, writer.ErrDiverged) || !strings.Contains(err.Error(), "was copied from test/") {
		t.Errorf("after a rebase: %v", err)
	}
	if err := p.copy(p.store, nil); err != nil {
		t.Fatal(err)
	}
	p.equal()
	if now, _ := current(t, p.to); now.K != k.K+1 || now.Why != "rebase" {
		t.Errorf("lineage %+v", now)
	}
}

// What is no copy, and what cannot be copied, is refused.
func TestReencryptRefused(t *testing.T) {
	p := newPair(t, 1)
	p.change(4)
	p.snapshot()
	p.to.Tail(backuptest.Txn(5, txn.Record{OID: 1, Data: []byte("x")}))
	if err := p.copy(p.store, nil); !errors.Is(err, ErrOther) {
		t.Errorf("another backup: %v", err)
	}
	o := ReencryptOptions{From: p.from.Repository, Keys: p.from.Keys, Writer: writer.Options{Repo: p.from.Repository, Signer: p.from.Signer, StateDir: p.dirTo}}
	if _, err := Reencrypt(context.Background(), o); !errors.Is(err, ErrOther) {
		t.Errorf("into itself: %v", err)
	}
	p.store = memstore.New(memstore.Options{})
	p.to = backuptest.New(t, p.store, false)
	if err := p.copy(p.store, func(o *ReencryptOptions) { o.Keys = p.from.Unlock() }); !errors.Is(err, backup.ErrKeys) {
		t.Errorf("without identity: %v", err)
	}
}

// A copy that takes longer than a keeper waits goes on with what the newest manifest has.
func TestReencryptMeanwhile(t *testing.T) {
	disturbed := 0
	for seed := range uint64(*seeds) {
		w := newWorld(t, seed)
		w.grow(12)
		changes := 0
		faulty := storetest.NewFaulty(w.from, func(_ context.Context, c storetest.Call) storetest.Fault {
			w.mu.Lock()
			defer w.mu.Unlock()
			if k, err := snapshot.ParseKey(c.Key); c.Op == "get" && err == nil && k.Kind == snapshot.KindSegment && changes < 3 && w.rnd.IntN(2) == 0 {
				changes++
				w.repo.Tail(w.more(1)...)
				w.repo.Manifest(true, false)
				w.repo.Tail(w.more(1)...)
				w.repo.Manifest(true, false)
				w.prune()
			}
			return storetest.Fault{}
		})
		repo, err := backup.Open(t.Context(), backup.Config{Store: faulty, Trusted: w.repo.Trusted})
		if err != nil {
			t.Fatal(err)
		}
		keys := repo.Unlock()
		if w.repo.Identity != nil {
			keys = repo.Unlock(w.repo.Identity)
		}
		to := backuptest.New(t, memstore.New(memstore.Options{}), true)
		o := ReencryptOptions{From: repo, Keys: keys, Feed: FeedOptions{Fetch: backup.FetchOptions{Scratch: w.dir, Parallel: 1}}, Writer: writer.Options{Repo: to.Repository, Signer: to.Signer, StateDir: t.TempDir()}}
		if _, err := Reencrypt(t.Context(), o); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		disturbed += changes
		_, s := current(t, to)
		_, from := current(t, w.repo)
		got, want := dump(t, to, s), dump(t, w.repo, from)
		if len(got) == 0 || len(got) > len(want) {
			t.Fatalf("seed %d: %d transactions, the repository has %d", seed, len(got), len(want))
		}
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("seed %d: transaction\n%s\nwant\n%s", seed, got[i], want[i])
			}
		}
	}
	if disturbed == 0 {
		t.Error("nothing came meanwhile")
	}
}
