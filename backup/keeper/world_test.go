package keeper

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
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
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var (
	seeds     = flag.Int("seeds", 2, "random runs of each test that has them")
	firstSeed = flag.Uint64("first-seed", 1, "seed of the first random run")
	steps     = flag.Int("steps", 60, "steps of a random run, some four days each")
	verbose   = flag.Bool("verbose", false, "print what writers and keepers log")
)

// world is a source, a repository with its writer, and keepers. Its time is that of
// testing/synctest, or the real one.
type world struct {
	t     *testing.T
	mem   *memstore.Store
	skew  time.Duration
	repo  *backuptest.Repo
	feed  *feedtest.Memory
	dir   string
	noted map[snapshot.ID]bool // lineages that have or had a note
	rnd   *rand.Rand
	log   *slog.Logger
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{t: t, feed: feedtest.New("prod"), dir: t.TempDir(), noted: map[snapshot.ID]bool{}, rnd: rand.New(rand.NewPCG(seed, 7)), log: slog.New(slog.DiscardHandler)}
	if *verbose {
		w.log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	w.mem = memstore.New(memstore.Options{Now: w.now})
	w.repo = backuptest.New(t, w.mem, seed%2 == 0)
	return w
}

// newRepo makes another repository, in the store that the world has now.
func newRepo(w *world) *backuptest.Repo { return backuptest.New(w.t, w.mem, false) }

// now is the time of the store.
func (w *world) now() time.Time { return time.Now().Add(w.skew) }

// keeper returns a keeper whose calls go to s.
func (w *world) keeper(s store.Store, settings Settings) *Keeper {
	w.t.Helper()
	r, err := backup.Open(w.t.Context(), backup.Config{Store: s, Trusted: w.repo.Trusted, Log: w.log})
	if err != nil {
		w.t.Fatal(err)
	}
	return New(Options{Repo: r, Signer: w.repo.Keeper, Settings: settings, Log: w.log, Now: w.now})
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// write calls do with a writer.
func (w *world) write(do func(wr *writer.Writer) error) {
	w.t.Helper()
	wr, err := writer.Open(w.t.Context(), writer.Options{Repo: w.repo.Repository, Signer: w.repo.Signer, Feed: w.feed.Reopen(), StateDir: w.dir, SegmentSize: 1 << 20, Log: w.log})
	w.must(err)
	w.must(errors.Join(do(wr), wr.Close()))
}

// snapshot commits and backs up. With a manifest all tails are summed up.
func (w *world) snapshot(n int) {
	w.t.Helper()
	w.change(n)
	w.write(func(wr *writer.Writer) error { return wr.Snapshot(w.t.Context(), tid.Zero, "") })
}

// follow backs up for a while, which leaves tails.
func (w *world) follow(n int) {
	w.t.Helper()
	w.write(func(wr *writer.Writer) error {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Duration(n)*2*time.Second)
		defer cancel()
		go func() {
			for range n {
				w.change(1)
				time.Sleep(1500 * time.Millisecond)
			}
		}()
		if err := wr.Follow(ctx); !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		return nil
	})
}

func (w *world) rebase() {
	w.t.Helper()
	w.write(func(wr *writer.Writer) error { return wr.Rebase(w.t.Context()) })
}

// change commits some transactions.
func (w *world) change(n int) {
	for range n {
		data := make([]byte, 100+w.rnd.IntN(3000))
		for i := range data {
			data[i] = byte(w.rnd.Uint32())
		}
		w.feed.Commit(feedtest.Transaction{Description: fmt.Sprint(w.rnd.IntN(1000)), Records: []txn.Record{{OID: tid.OID(w.rnd.IntN(20)), Data: data}}})
	}
}

func (w *world) current() *snapshot.Lineage {
	w.t.Helper()
	l, err := w.repo.Current(w.t.Context())
	w.must(err)
	return l
}

func (w *world) state(id snapshot.ID) *backup.State {
	w.t.Helper()
	s, err := w.repo.State(w.t.Context(), id, nil)
	w.must(err)
	return s
}

// fork makes a lineage of the beginning of the current one.
func (w *world) fork() {
	w.t.Helper()
	old := w.current()
	s := w.state(old.Lineage)
	var txns []*txn.Transaction
	for t, err := range w.feed.Full().Transactions(w.t.Context(), 0, s.Head()) {
		w.must(err)
		c := *t
		txns = append(txns, &c)
	}
	if len(txns) == 0 {
		return
	}
	at := txns[w.rnd.IntN(len(txns))]
	m := &snapshot.Manifest{Repo: w.repo.Marker.ID, Lineage: snapshot.NewID(), Seq: 1, Created: time.Now().UTC().Truncate(time.Second), Writer: "host/1/fork", Source: s.Manifest.Source, Tip: snapshot.Tip(at)}
	for p, err := range w.repo.Parts(w.t.Context(), s, 0, at.TID) {
		w.must(err)
		l := *p.Segment
		if l.End() > at.TID {
			l.Clip = at.TID
		}
		m.Items = append(m.Items, snapshot.Item{Segment: &l})
	}
	m.SumUp()
	m.MaxOID = max(m.MaxOID, s.MaxOID())
	b, err := m.Sign(w.repo.Signer)
	w.must(err)
	w.repo.Put(snapshot.ManifestKey(m.Lineage, 1), b)
	w.must(w.repo.NewLineage(w.t.Context(), w.repo.Signer, &snapshot.Lineage{Repo: m.Repo, K: old.K + 1, Lineage: m.Lineage, Parent: old.Lineage, At: at.TID, Created: m.Created, Why: "fork"}))
}

// prove stores a proof of a lineage, after comparing it.
func (w *world) prove(id snapshot.ID, result string) {
	w.t.Helper()
	s := w.state(id)
	w.compare(s)
	p := &snapshot.Proof{Repo: w.repo.Marker.ID, Lineage: id, Seq: s.Manifest.Seq, Manifest: s.Hash, Tail: s.Chain().N, Chain: s.Chain().Hash, TID: s.Head(), Time: time.Now().UTC().Truncate(time.Second), Mode: "read", Compared: snapshot.Compared{Source: "none"}, Result: result}
	if result != snapshot.ResultOK {
		p.Reason = "test"
	}
	b, err := snapshot.Sign(p, w.repo.Driver)
	w.must(err)
	w.repo.Put(snapshot.Key{Kind: snapshot.KindProof, Lineage: id, Time: p.Time, Upto: p.TID}.String(), b)
}

// compare restores all of a state and compares it with the source.
func (w *world) compare(s *backup.State) {
	w.t.Helper()
	ctx := w.t.Context()
	text := func(t *txn.Transaction) string {
		var b strings.Builder
		fmt.Fprintf(&b, "%v %s", t.TID, t.Description)
		for r, err := range t.Records {
			w.must(err)
			fmt.Fprintf(&b, " %v %x", r.OID, snapshot.Sum(r.Data))
		}
		return b.String()
	}
	var got, want []string
	for t, err := range w.repo.Transactions(ctx, w.repo.Keys, s, 0, s.Head(), backup.FetchOptions{Scratch: w.dir}, nil) {
		if err != nil {
			w.t.Fatalf("lineage %v: %v", s.Lineage, err)
		}
		got = append(got, text(t))
	}
	for t, err := range w.feed.Full().Transactions(ctx, 0, s.Head()) {
		w.must(err)
		want = append(want, text(t))
	}
	if !slices.Equal(got, want) {
		w.t.Fatalf("lineage %v: %d transactions up to %v, want %d", s.Lineage, len(got), s.Head(), len(want))
	}
}

// keys returns what is stored.
func (w *world) keys() map[string]store.Info {
	w.t.Helper()
	m := map[string]store.Info{}
	for info, err := range w.mem.List(w.t.Context(), "", "") {
		w.must(err)
		m[info.Key] = info
	}
	return m
}

// guard is a store that fails the test if something is deleted that must stay. It knows the rules by itself.
type guard struct {
	store.Wrapped
	w       *world
	mu      sync.Mutex
	deleted map[string]bool
	order   []string // of deletions

	at                   time.Time // for which these are known
	protected, announced map[string]string
}

func (w *world) guard() *guard {
	return &guard{Wrapped: store.Wrapped{Store: w.mem}, w: w, deleted: map[string]bool{}}
}

func (g *guard) Delete(ctx context.Context, keys []string) error {
	g.check(keys)
	return g.Wrapped.Delete(ctx, keys)
}

func (g *guard) DeleteVersions(ctx context.Context, versions []store.Version) error {
	var keys []string
	for _, v := range versions {
		keys = append(keys, v.Key)
	}
	g.check(keys)
	return g.Wrapped.DeleteVersions(ctx, versions)
}

func (g *guard) check(keys []string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	have := g.w.keys()
	if at := g.w.now(); !at.Equal(g.at) { // time stands still while a keeper works
		g.at, g.protected, g.announced = at, g.w.protected(have), g.w.announced(have)
	}
	for _, key := range keys {
		info, ok := have[key]
		if !ok {
			continue
		}
		if why, ok := g.protected[key]; ok {
			g.w.t.Errorf("%s is deleted: %s", key, why)
		}
		if age := g.w.now().Sub(info.Modified); age < 24*time.Hour {
			g.w.t.Errorf("%s is deleted, %v old", key, age)
		}
		if g.announced[key] == "" {
			g.w.t.Errorf("%s is deleted, and no doom list announced it a day ago", key)
		}
		g.deleted[key] = true
		g.order = append(g.order, key)
	}
}

// announced are the keys that a doom list names which is a day old and not void.
func (w *world) announced(have map[string]store.Info) map[string]string {
	m := map[string]string{}
	for key, info := range have {
		k, err := snapshot.ParseKey(key)
		if err != nil || k.Kind != snapshot.KindDoom || w.now().Sub(info.Modified) < 24*time.Hour {
			continue
		}
		if _, void := have[key+".void"]; void {
			continue
		}
		d, err := w.repo.Doom(w.t.Context(), key)
		if errors.Is(err, store.ErrNotFound) || errors.Is(err, snapshot.ErrCorrupt) {
			continue // the other keeper was faster, or it was stored damaged
		}
		w.must(err)
		for _, o := range d.Objects {
			m[o.Key] = key
		}
	}
	return m
}

// protected are the keys that §10.2 of the specification protects, with the reason: found out by
// rules that are written down here once more, in a simple way.
func (w *world) protected(have map[string]store.Info) map[string]string {
	ctx := w.t.Context()
	m := map[string]string{}
	var policy *snapshot.Policy
	forgotten := map[int64]bool{}
	notes := map[int64]*snapshot.Lineage{}
	proofs := map[snapshot.ID][]*backup.StoredProof{}
	for _, key := range slices.Sorted(maps.Keys(have)) {
		k, err := snapshot.ParseKey(key)
		w.must(err)
		read := func(n snapshot.Note) error {
			b, _, err := store.ReadAll(ctx, w.mem, key, 1<<26)
			if errors.Is(err, store.ErrNotFound) { // the other keeper was faster
				return err
			}
			w.must(err)
			return snapshot.Open(b, key, w.repo.Marker.ID, n, w.repo.Trusted)
		}
		switch k.Kind {
		case snapshot.KindMarker, snapshot.KindEpoch, snapshot.KindWrap:
			m[key] = "it is the marker or a key"
		case snapshot.KindPolicy:
			p := &snapshot.Policy{}
			if read(p) == nil {
				policy = p
				m[key] = "it may be the policy in force"
			}
		case snapshot.KindLineage:
			n := &snapshot.Lineage{}
			if err := read(n); err == nil {
				notes[n.K], w.noted[n.Lineage] = n, true
			} else if !errors.Is(err, store.ErrNotFound) {
				w.must(err)
			}
		case snapshot.KindProof:
			p := &snapshot.Proof{}
			if read(p) == nil && p.Result == snapshot.ResultOK {
				proofs[k.Lineage] = append(proofs[k.Lineage], &backup.StoredProof{Proof: p, Key: key, Modified: have[key].Modified})
			}
		case snapshot.KindDoom:
			if _, void := have[key+".void"]; !void {
				d, err := w.repo.Doom(ctx, key)
				if errors.Is(err, store.ErrNotFound) || errors.Is(err, snapshot.ErrCorrupt) {
					continue
				}
				w.must(err)
				for _, o := range d.Objects {
					if lk, _ := snapshot.ParseKey(o.Key); lk.Kind == snapshot.KindLineage && strings.HasPrefix(o.Why, "forgotten") {
						forgotten[lk.N] = true
					}
				}
			}
		}
	}
	if policy == nil {
		for key := range have {
			m[key] = "no policy is in force"
		}
		return m
	}
	var newest *backup.StoredProof
	for _, n := range notes { // of what has a note
		for _, p := range proofs[n.Lineage] {
			if newest == nil || p.Modified.After(newest.Modified) {
				newest = p
			}
		}
	}
	ks := slices.Sorted(maps.Keys(notes))
	for i, k := range ks {
		n := notes[k]
		why := ""
		var first time.Time
		for _, later := range ks[i+1:] {
			for _, p := range proofs[notes[later].Lineage] {
				if first.IsZero() || p.Modified.Before(first) {
					first = p.Modified
				}
			}
		}
		switch {
		case i == len(ks)-1:
			why = "the lineage is current"
		case slices.ContainsFunc(policy.Holds, func(h snapshot.Hold) bool { return h.Lineage == n.Lineage }):
			why = "a hold pins it"
		case first.IsZero():
			why = "no later lineage was proved"
		case !forgotten[k] && w.now().Before(first.AddDate(0, 0, int(policy.KeepLineagesDays))):
			why = "the lineage is kept still"
		case newest != nil && newest.Lineage == n.Lineage:
			why = "the newest proof is of it"
		default:
			continue
		}
		m[snapshot.Key{Kind: snapshot.KindLineage, N: k}.String()] = why
		s := w.state(n.Lineage)
		m[snapshot.ManifestKey(n.Lineage, s.Manifest.Seq)] = why
		w.refers(m, s, why)
	}
	if newest != nil {
		why := "the newest proof needs it"
		key := snapshot.ManifestKey(newest.Lineage, newest.Seq)
		b, _, err := store.ReadAll(ctx, w.mem, key, 1<<26)
		w.must(err)
		mf, err := snapshot.OpenManifest(b, key, w.repo.Marker.ID, w.repo.Trusted)
		w.must(err)
		s := &backup.State{Lineage: newest.Lineage, Manifest: mf}
		for n := mf.Tail + 1; n <= newest.Tail; n++ {
			t, err := w.repo.Repository.Tail(ctx, newest.Lineage, n)
			w.must(err)
			s.Tails = append(s.Tails, t)
		}
		m[key] = why
		w.refers(m, s, why)
	}
	for key, info := range have {
		k, err := snapshot.ParseKey(key)
		w.must(err)
		if k.Lineage != (snapshot.ID{}) && !w.noted[k.Lineage] && w.now().Sub(info.Modified) < 7*24*time.Hour {
			for other := range have {
				if strings.HasPrefix(other, k.Lineage.String()) {
					m[other] = "a lineage is being filled"
				}
			}
		}
	}
	return m
}

// refers adds what a state refers to.
func (w *world) refers(m map[string]string, s *backup.State, why string) {
	for _, i := range s.Manifest.Items {
		if i.Page != nil {
			m[i.Page.Key] = why
		}
	}
	for _, r := range s.Manifest.Reserved {
		m[r.Key] = why
	}
	for _, t := range s.Tails {
		m[t.Key] = why
	}
	for p, err := range w.repo.Parts(w.t.Context(), s, 0, tid.Max) {
		w.must(err)
		if p.Segment != nil {
			m[p.Segment.Key] = why
		}
	}
}

// goingOf returns what goes by the plan of a keeper, with the reasons.
func (w *world) goingOf(k *Keeper) (map[string]string, *PruneReport) {
	w.t.Helper()
	v, err := k.look(w.t.Context(), PruneOptions{})
	w.must(err)
	p := &pruning{k: k, o: PruneOptions{ForceShare: DefaultShare}}
	rep := p.plan(v)
	m := map[string]string{}
	for d := range v.list.going() {
		m[d.key.String()] = fmt.Sprint(d.reason, " ", d.listed)
	}
	return m, rep
}

// put stores an object that nothing names.
func (w *world) stray(lineage snapshot.ID) string {
	w.t.Helper()
	b := make([]byte, 500)
	for i := range b {
		b[i] = byte(w.rnd.Uint32())
	}
	head := tid.FromTime(time.Now())
	key := snapshot.SegmentKey(lineage, head, head+1, snapshot.Sum(b))
	w.must(w.mem.Put(w.t.Context(), key, bytes.NewReader(b), int64(len(b)), store.PutOptions{Create: true}))
	return key
}
