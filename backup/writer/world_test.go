package writer

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var (
	seeds     = flag.Int("seeds", 15, "random runs of each test that has them")
	firstSeed = flag.Uint64("first-seed", 1, "seed of the first random run")
	verbose   = flag.Bool("verbose", false, "print what writers log")
)

// few are limits that short histories reach.
var few = limits{tails: 3, bytes: 1 << 20, age: 24 * time.Hour, fanOut: 3, page: 3, text: 3 << 10, batch: 2}

// world is a source, a repository and a host that backs it up.
type world struct {
	t     *testing.T
	store *memstore.Store
	repo  *backuptest.Repo
	feed  *feedtest.Memory
	dir   string // of the host
	rnd   *rand.Rand
	log   *slog.Logger

	encrypted bool
	packed    bool  // the history that is stored may lack what packs removed
	forked    bool  // segments may have more than is used of them
	size      int64 // of segments
	least     int   // bytes of a record
	setup     func(*Options)
}

func newWorld(t *testing.T, seed uint64, encrypted bool) *world {
	t.Helper()
	m := memstore.New(memstore.Options{})
	w := newWorldIn(t, seed, encrypted, m)
	w.store = m
	return w
}

// newWorldIn makes a world whose repository is in any store.
func newWorldIn(t *testing.T, seed uint64, encrypted bool, s store.Store) *world {
	t.Helper()
	w := &world{t: t, feed: feedtest.New("prod"), dir: t.TempDir(), rnd: newRand(seed, 0), encrypted: encrypted, size: 6 << 10, log: slog.New(slog.DiscardHandler)}
	if *verbose {
		w.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w.repo = backuptest.New(t, s, encrypted)
	return w
}

// newRand returns random numbers for several goroutines.
func newRand(seed, stream uint64) *rand.Rand {
	return rand.New(&lockedSource{source: rand.NewPCG(seed, stream)})
}

type lockedSource struct {
	mu     sync.Mutex
	source rand.Source
}

func (s *lockedSource) Uint64() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.source.Uint64()
}

// open opens a writer whose calls go to s, which is a way to the store of the world.
func (w *world) open(ctx context.Context, s store.Store, dir string) (*Writer, error) {
	repo, err := backup.Open(ctx, backup.Config{Store: s, Trusted: w.repo.Trusted})
	if err != nil {
		return nil, err
	}
	o := Options{Repo: repo, Signer: w.repo.Signer, Feed: w.feed.Reopen(), StateDir: dir, SegmentSize: w.size, limits: few, Log: w.log}
	if w.setup != nil {
		w.setup(&o)
	}
	return Open(ctx, o)
}

// must opens a writer without faults.
func (w *world) must() *Writer {
	w.t.Helper()
	wr, err := w.open(w.t.Context(), w.store, w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	return wr
}

// change commits some transactions at random: data of some size, deletions, copies, empty
// ones, and now and then a large one.
func (w *world) change(n int) {
	for range n {
		t := feedtest.Transaction{User: "u", Description: fmt.Sprintf("change %d", w.rnd.IntN(1000)), Extension: strings.Repeat("x", w.rnd.IntN(20))}
		records := w.rnd.IntN(4)
		size := 200
		if w.rnd.IntN(12) == 0 {
			records = 4 + w.rnd.IntN(20)
			size = 2000
		}
		used := map[tid.OID]bool{}
		for range records {
			oid := tid.OID(w.rnd.IntN(12))
			if used[oid] {
				continue
			}
			used[oid] = true
			r := txn.Record{OID: oid}
			switch old := w.revisions(oid); {
			case w.rnd.IntN(8) == 0:
			case w.rnd.IntN(5) == 0 && len(old) > 0:
				r.DataTID = old[w.rnd.IntN(len(old))]
			default:
				r.Data = make([]byte, w.rnd.IntN(size)+w.least)
				for i := range r.Data {
					r.Data[i] = byte(w.rnd.Uint32())
				}
			}
			t.Records = append(t.Records, r)
		}
		w.feed.Commit(t)
	}
}

// revisions are those of an object that are still in the source.
func (w *world) revisions(oid tid.OID) (list []tid.TID) {
	for t, err := range w.feed.Left().Transactions(w.t.Context(), 0, tid.Max) {
		if err != nil {
			w.t.Fatal(err)
		}
		for r := range t.Records {
			if r.OID == oid {
				list = append(list, t.TID)
			}
		}
	}
	return list
}

// history is a list of transactions with their records.
type history []stored

type stored struct {
	txn.Transaction
	records []txn.Record
}

func collect(t *testing.T, seq func(yield func(*txn.Transaction, error) bool)) (h history) {
	t.Helper()
	for tr, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		s := stored{Transaction: txn.Transaction{TID: tr.TID, User: slices.Clone(tr.User), Description: slices.Clone(tr.Description), Extension: slices.Clone(tr.Extension)}}
		for r, err := range tr.Records {
			if err != nil {
				t.Fatal(err)
			}
			c := *r
			c.Data = bytes.Clone(r.Data)
			s.records = append(s.records, c)
		}
		h = append(h, s)
	}
	return h
}

func (s *stored) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v %q %q %q", s.TID, s.User, s.Description, s.Extension)
	for _, r := range s.records {
		switch {
		case r.DataTID != 0:
			fmt.Fprintf(&b, " %v from %v", r.OID, r.DataTID)
		case r.Data == nil:
			fmt.Fprintf(&b, " %v delete", r.OID)
		default:
			fmt.Fprintf(&b, " %v %.8x/%d", r.OID, r.Data, len(r.Data))
		}
	}
	return b.String()
}

// at returns the objects at a time.
func (h history) at(t *testing.T, upTo tid.TID) map[tid.OID]string {
	t.Helper()
	revision := map[tid.OID]map[tid.TID][]byte{}
	state := map[tid.OID]string{}
	for _, s := range h {
		if s.TID > upTo {
			break
		}
		for _, r := range s.records {
			data := r.Data
			if revision[r.OID] == nil {
				revision[r.OID] = map[tid.TID][]byte{}
			}
			if r.DataTID != 0 {
				d, ok := revision[r.OID][r.DataTID]
				if !ok {
					t.Fatalf("object %v in transaction %v is copied from %v, which is not there", r.OID, s.TID, r.DataTID)
				}
				data = d
			}
			revision[r.OID][s.TID] = data
			if data == nil {
				delete(state, r.OID)
			} else {
				state[r.OID] = string(data)
			}
		}
	}
	return state
}

// check compares the current lineage with the source. Everything up to acked must be there.
func (w *world) check(acked tid.TID) *backup.State {
	w.t.Helper()
	return w.checkLineage(snapshot.ID{}, acked)
}

func (w *world) checkLineage(id snapshot.ID, acked tid.TID) *backup.State {
	w.t.Helper()
	t := w.t
	ctx := context.WithoutCancel(t.Context())
	if id == (snapshot.ID{}) {
		note, err := w.repo.Current(ctx)
		if err != nil {
			t.Fatal(err)
		}
		id = note.Lineage
	}
	s, err := w.repo.State(ctx, id, nil)
	if err != nil {
		t.Fatal(err)
	}
	head := s.Head()
	if head < acked {
		t.Fatalf("the repository has transactions up to %v, but %v was acknowledged", head, acked)
	}
	got := collect(t, w.repo.Transactions(ctx, w.repo.Keys, s, 0, head, backup.FetchOptions{Scratch: w.dir}, nil))
	want := collect(t, w.feed.Full().Transactions(ctx, 0, head))
	if len(want) > 0 && want[len(want)-1].TID != head {
		t.Fatalf("the head is %v, which is no transaction of the source", head)
	}
	if len(got) != len(want) {
		t.Fatalf("the repository has %d transactions up to %v, want %d", len(got), head, len(want))
	}
	exact := 0
	for i := range got {
		if got[i].TID != want[i].TID || snapshot.Tip(&got[i].Transaction) != snapshot.Tip(&want[i].Transaction) {
			t.Fatalf("got transaction %v, want %v", &got[i], &want[i])
		}
		if !w.packed {
			if g, w := got[i].String(), want[i].String(); g != w {
				t.Fatalf("transaction\n%s\nwant\n%s", g, w)
			}
		}
		if err := s.Exact(got[i].TID); err != nil {
			if !w.packed {
				t.Fatal(err)
			}
			continue
		}
		exact++
		if w.packed {
			g, x := got.at(t, got[i].TID), want.at(t, got[i].TID)
			for oid := range x {
				if g[oid] != x[oid] {
					t.Fatalf("object %v at %v: %.8x/%d, want %.8x/%d", oid, got[i].TID, g[oid], len(g[oid]), x[oid], len(x[oid]))
				}
			}
			if len(g) != len(x) {
				t.Fatalf("%d objects at %v, want %d", len(g), got[i].TID, len(x))
			}
		}
	}
	if len(got) > 0 {
		tip := snapshot.Tip(&want[len(want)-1].Transaction)
		if s.Tip() != tip {
			t.Fatalf("the tip is %v, want %v", s.Tip(), tip)
		}
	}
	var max tid.OID
	for _, s := range want {
		for _, r := range s.records {
			if r.OID > max {
				max = r.OID
			}
		}
	}
	if got := s.MaxOID(); !w.packed && (got < max || got > max && !w.forked) {
		t.Fatalf("the greatest oid is %v, want %v", got, max)
	}
	return s
}

// acked returns what a writer has acknowledged, zero if there is none.
func acked(w *Writer) tid.TID {
	if w == nil {
		return 0
	}
	return w.Stats().Head
}

// killed reports whether an error is that of a store that died.
func isAny(err error, list ...error) bool {
	return slices.ContainsFunc(list, func(e error) bool { return errors.Is(err, e) })
}
