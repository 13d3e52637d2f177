package repair

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/store/storetest"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var (
	seeds = flag.Int("repair.seeds", 6, "random combinations of damages")
	all   = flag.Bool("repair.all", false, "damage all classes of bytes of all objects, not some")
)

// history returns n transactions with data, deletions and copies of earlier revisions.
func history(r *rand.Rand, n int) []*txn.Transaction {
	type revision struct {
		at   tid.TID
		data []byte
	}
	old := map[tid.OID][]revision{}
	var list []*txn.Transaction
	at := tid.TID(100)
	for range n {
		at += tid.TID(2 + r.IntN(9))
		var records []txn.Record
		for range 2 + r.IntN(5) {
			rec := txn.Record{OID: tid.OID(r.IntN(20))}
			if slices.ContainsFunc(records, func(o txn.Record) bool { return o.OID == rec.OID }) {
				continue
			}
			switch k := r.IntN(6); {
			case k == 0:
			case k == 1 && len(old[rec.OID]) > 0:
				from := old[rec.OID][r.IntN(len(old[rec.OID]))]
				rec.DataTID, rec.Data = from.at, from.data
			default:
				rec.Data = make([]byte, 1+r.IntN(2000))
				for i := range rec.Data {
					rec.Data[i] = byte(r.Uint32())
				}
			}
			records = append(records, rec)
			old[rec.OID] = append(old[rec.OID], revision{at, rec.Data})
		}
		list = append(list, backuptest.Txn(at, records...))
	}
	return list
}

func recordsOf(t *txn.Transaction) []txn.Record {
	var list []txn.Record
	for r := range t.Records {
		list = append(list, *r)
	}
	return list
}

// sourceOf returns a source with a history.
func sourceOf(list []*txn.Transaction) *feedtest.Memory {
	m := feedtest.New("prod")
	for _, t := range list {
		m.Commit(feedtest.Transaction{TID: t.TID, User: string(t.User), Description: string(t.Description), Extension: string(t.Extension), Records: recordsOf(t)})
	}
	return m
}

// world is a repository with pages, sealed, merged and open segments, a transaction that is cut, and tails of all kinds; its
// source, and a copy of it from before the damage.
type world struct {
	t      *testing.T
	mem    *memstore.Store
	repo   *backuptest.Repo
	list   backuptest.History
	source *feedtest.Memory
	copy   *memstore.Store

	options memstore.Options
}

func newWorld(t *testing.T, encrypted bool, o memstore.Options) *world {
	t.Helper()
	w := unpruned(t, encrypted, o)
	needed := map[string]bool{snapshot.MarkerKey: true}
	s := w.repo.Now()
	needed[snapshot.ManifestKey(w.repo.Lineage, s.Manifest.Seq)] = true
	for _, i := range s.Manifest.Items {
		if i.Page != nil {
			needed[i.Page.Key] = true
		}
	}
	for _, t := range s.Tails {
		needed[t.Key] = true
	}
	for _, l := range w.segments() {
		needed[l.Key] = true
	}
	var spare []store.Version
	for _, m := range []*memstore.Store{w.mem, w.copy} {
		for v, err := range m.Versions(t.Context(), w.repo.Lineage.String()) {
			w.must(err)
			if !needed[v.Key] {
				spare = append(spare, v)
				w.must(m.Delete(t.Context(), []string{v.Key}))
			}
		}
	}
	if o.Versioned {
		for v, err := range w.mem.Versions(t.Context(), w.repo.Lineage.String()) {
			w.must(err)
			if !needed[v.Key] {
				w.must(w.mem.DeleteVersions(t.Context(), []store.Version{v}))
			}
		}
	}
	if len(spare) == 0 {
		t.Fatal("nothing is superseded")
	}
	return w
}

// unpruned has all that was superseded, too.
func unpruned(t *testing.T, encrypted bool, o memstore.Options) *world {
	t.Helper()
	list := history(rand.New(rand.NewPCG(1, 1)), 60)
	w := &world{t: t, options: o, mem: memstore.New(o), list: list, source: sourceOf(list)}
	w.repo = backuptest.New(t, w.mem, encrypted)
	repo := w.repo
	repo.Tail(list[:5]...)
	repo.Tail(list[5:10]...)
	repo.Manifest(true, false)
	repo.Listed(list[10:18], list[18:25])
	repo.Manifest(true, true)
	repo.Tail(list[25:30]...)
	repo.Manifest(false, true) // a segment behind a tail
	recs := recordsOf(list[30])
	if len(recs) < 2 {
		t.Fatal("a transaction with one record")
	}
	repo.Cut(list[30], recs[:1], recs[1:])
	repo.Listed(list[31:40], list[40:45])
	repo.Heartbeat()
	repo.Tail(list[45:52]...)
	repo.Tail(list[52:]...)
	w.copy = memstore.New(memstore.Options{})
	for info, err := range w.mem.List(t.Context(), "", "") {
		w.must(err)
		b := storetest.Get(t, w.mem, info.Key)
		w.must(w.copy.Put(t.Context(), info.Key, bytes.NewReader(b), int64(len(b)), store.PutOptions{Create: true}))
	}
	return w
}

// clone returns the world with another store of the same objects, of which nothing was damaged.
func (w *world) clone(t *testing.T) *world {
	t.Helper()
	c := *w
	c.t, c.mem = t, memstore.New(w.options)
	for key, b := range w.objects() {
		w.must(c.mem.Put(t.Context(), key, bytes.NewReader(b), int64(len(b)), store.PutOptions{Create: true}))
	}
	repo := *w.repo
	var err error
	repo.Repository, err = backup.Open(t.Context(), backup.Config{Store: c.mem, Trusted: w.repo.Trusted})
	w.must(err)
	repo.Keys = c.unlock(repo.Repository)
	c.repo = &repo
	return &c
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// overwrite puts other bytes under a key.
func (w *world) overwrite(key string, b []byte) {
	w.t.Helper()
	w.must(w.mem.Put(w.t.Context(), key, bytes.NewReader(b), int64(len(b)), store.PutOptions{}))
}

func (w *world) flip(key string, at int) {
	w.t.Helper()
	b := storetest.Get(w.t, w.mem, key)
	if at < 0 {
		at += len(b)
	}
	b[at] ^= 1
	w.overwrite(key, b)
}

func (w *world) delete(key string) {
	w.t.Helper()
	w.must(w.mem.Delete(w.t.Context(), []string{key}))
}

// open opens the repository as it is now.
func (w *world) open() (*backup.Repository, *backup.Keys) {
	w.t.Helper()
	r, err := backup.Open(w.t.Context(), backup.Config{Store: w.mem, Trusted: w.repo.Trusted})
	w.must(err)
	return r, w.unlock(r)
}

func (w *world) unlock(r *backup.Repository) *backup.Keys {
	if w.repo.Identity == nil {
		return r.Unlock()
	}
	return r.Unlock(w.repo.Identity)
}

// with returns options; the set function adds the means.
func (w *world) with(set func(*Options)) Options {
	w.t.Helper()
	r, keys := w.open()
	o := Options{Repo: r, Signer: w.repo.Signer, Lineage: w.repo.Lineage, Keys: keys, Scratch: w.t.TempDir()}
	if set != nil {
		set(&o)
	}
	return o
}

func (w *world) fromCopy(o *Options) {
	r, err := backup.Open(w.t.Context(), backup.Config{Store: w.copy, Trusted: w.repo.Trusted})
	w.must(err)
	o.From = r
}

func (w *world) fromSource(o *Options) { o.Source = w.source.Reopen() }

// repair repairs, and returns the plan.
func (w *world) repair(set func(*Options)) *Plan {
	w.t.Helper()
	p, err := Repair(w.t.Context(), w.with(set))
	w.must(err)
	w.apply(p)
	return p
}

func (w *world) apply(p *Plan) {
	w.t.Helper()
	before := w.objects()
	if _, err := p.Apply(w.t.Context()); err != nil {
		for _, s := range p.Steps {
			w.t.Log(s)
		}
		w.t.Fatal(err)
	}
	for key, b := range before {
		if now := w.get(key); !bytes.Equal(now, b) {
			w.t.Errorf("%s was changed or deleted", key)
		}
	}
}

func (w *world) get(key string) []byte {
	b, _, err := store.ReadAll(w.t.Context(), w.mem, key, 1<<30)
	if err != nil {
		return nil
	}
	return b
}

func (w *world) objects() map[string][]byte {
	all := map[string][]byte{}
	for info, err := range w.mem.List(w.t.Context(), "", "") {
		w.must(err)
		all[info.Key] = w.get(info.Key)
	}
	return all
}

// found returns what check and verify find that is damage.
func (w *world) found() (list []verify.Finding) {
	w.t.Helper()
	report := func(f verify.Finding) {
		if !f.Warning {
			list = append(list, f)
		}
	}
	_, err := verify.Check(w.t.Context(), backup.Config{Store: w.mem, Trusted: w.repo.Trusted}, verify.CheckOptions{Report: report})
	w.must(err)
	r, err := backup.Open(w.t.Context(), backup.Config{Store: w.mem, Trusted: w.repo.Trusted})
	if err != nil {
		return list
	}
	s, err := r.State(w.t.Context(), w.repo.Lineage, nil)
	if s == nil {
		if len(list) == 0 {
			w.t.Errorf("check finds nothing, but: %v", err)
		}
		return list
	}
	_, err = verify.Read(w.t.Context(), verify.ReadOptions{Repo: r, Keys: w.unlock(r), State: s, Scratch: w.t.TempDir(), Report: report})
	w.must(err)
	return list
}

// whole fails unless everything is there and nothing is wrong.
func (w *world) whole() {
	w.t.Helper()
	w.equal(w.list)
	if list := w.found(); len(list) > 0 {
		w.t.Errorf("after the repair: %v", list)
	}
	r, _ := w.open()
	if _, err := r.State(w.t.Context(), w.repo.Lineage, nil); err != nil || len(r.Tampered()) > 0 {
		w.t.Errorf("%v %v", r.Tampered(), err)
	}
	// Nothing is left to do.
	p, err := Repair(w.t.Context(), w.with(nil))
	w.must(err)
	if p.Needed() || p.Err() != nil {
		w.t.Errorf("a repaired repository needs %v", p.Steps)
	}
}

// equal fails unless the repository has exactly this history.
func (w *world) equal(want []*txn.Transaction) *backup.State {
	w.t.Helper()
	r, keys := w.open()
	s, err := r.State(w.t.Context(), w.repo.Lineage, nil)
	w.must(err)
	if s.Head() != want[len(want)-1].TID {
		w.t.Fatalf("the head is %v, want %v", s.Head(), want[len(want)-1].TID)
	}
	if len(s.Holes()) > 0 {
		w.t.Errorf("holes %v", s.Holes())
	}
	if tip := snapshot.Tip(want[len(want)-1]); s.Tip() != tip {
		w.t.Errorf("the tip is %v, want %v", s.Tip(), tip)
	}
	got := w.transactions(r, keys, s, 0, s.Head())
	if len(got) != len(want) {
		w.t.Fatalf("%d transactions, want %d", len(got), len(want))
	}
	for i, t := range want {
		if g, x := got[i], text(t); g != x {
			w.t.Fatalf("transaction %v:\n%s\nwant\n%s", t.TID, g, x)
		}
	}
	return s
}

func (w *world) transactions(r *backup.Repository, keys *backup.Keys, s *backup.State, after, upTo tid.TID) (list []string) {
	w.t.Helper()
	for t, err := range r.Transactions(w.t.Context(), keys, s, after, upTo, backup.FetchOptions{Scratch: w.t.TempDir()}, nil) {
		w.must(err)
		list = append(list, text(t))
	}
	return list
}

// text is a transaction with its records as a segment has them.
func text(t *txn.Transaction) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v %q %q %q", t.TID, t.User, t.Description, t.Extension)
	for r, err := range t.Records {
		if err != nil {
			return err.Error()
		}
		rec := snapshot.RecordOf(r, true)
		if r.DataTID != 0 {
			rec = snapshot.Record{OID: r.OID, DataTID: r.DataTID}
		}
		fmt.Fprintf(&b, "\n%v from %v: %x/%d %v", rec.OID, rec.DataTID, snapshot.Sum(rec.Data), len(rec.Data), rec.Data == nil)
	}
	return b.String()
}

// segments returns the lines of the repository, as they were.
func (w *world) segments() (list []snapshot.Segment) {
	w.t.Helper()
	for p, err := range w.repo.Parts(w.t.Context(), w.repo.Now(), 0, tid.Max) {
		w.must(err)
		list = append(list, *p.Segment)
	}
	return list
}

// needs fails unless a plan uses a means for a key; "" for any.
func (w *world) needs(p *Plan, key string, means Means) {
	w.t.Helper()
	if !slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Means == means && (key == "" || s.Key == key) }) {
		w.t.Errorf("no step %v of %s in %v", means, key, p.Steps)
	}
}

// refuses fails unless a repair without more is refused, and nothing is written.
func (w *world) refuses(set func(*Options)) {
	w.t.Helper()
	p, err := Repair(w.t.Context(), w.with(set))
	if errors.Is(err, ErrNoManifest) {
		return
	}
	w.must(err)
	before := len(w.objects())
	if _, err := p.Apply(w.t.Context()); !errors.Is(err, ErrRefused) {
		w.t.Errorf("Apply: %v, steps %v", err, p.Steps)
	}
	if now := len(w.objects()); now != before {
		w.t.Errorf("%d objects were stored", now-before)
	}
}

// A repository without damage needs nothing.
func TestNothing(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		w := newWorld(t, encrypted, memstore.Options{})
		w.whole()
	}
}

// Each segment that is overwritten, cut, swapped or deleted is found and named, is not restored, and is made whole from a copy, and
// from the source with the same digest, under a new key.
func TestSegments(t *testing.T) {
	damages := map[string]func(w *world, key string){
		"overwritten": func(w *world, key string) { w.flip(key, -200) },
		"cut":         func(w *world, key string) { b := w.get(key); w.overwrite(key, b[:len(b)-1]) },
		"longer":      func(w *world, key string) { w.overwrite(key, append(w.get(key), 0)) },
		"deleted":     func(w *world, key string) { w.delete(key) },
	}
	for _, encrypted := range []bool{false, true} {
		proto := newWorld(t, encrypted, memstore.Options{})
		for name, damage := range damages {
			for _, means := range []Means{Copy, Source} {
				t.Run(fmt.Sprintf("%s/%v/encrypted=%v", name, means, encrypted), func(t *testing.T) {
					n := len(proto.segments())
					for i := range n {
						if !*all && (i+len(name)+len(means))%3 != 0 {
							continue
						}
						w := proto.clone(t)
						l := w.segments()[i]
						damage(w, l.Key)
						last := name == "deleted" && i == n-1 // only a host that has seen it knows
						if means == Source && last {
							continue // the next run of the writer reads it again
						}
						if list := w.found(); !last && !slices.ContainsFunc(list, func(f verify.Finding) bool { return f.Key == l.Key }) {
							t.Errorf("%s is not found: %v", l.Key, list)
						}
						set := w.fromCopy
						if means == Source {
							set = w.fromSource
						}
						if !last {
							w.refuses(nil)
						}
						p, err := Repair(t.Context(), w.with(set))
						w.must(err)
						if l.Offset() == 0 {
							w.needs(p, l.Key, means)
						}
						w.apply(p)
						w.whole()
						if t.Failed() {
							for _, s := range p.Steps {
								t.Log(s)
							}
							t.Fatalf("segment %d of %d: %s", i, n, l.Key)
						}
					}
				})
			}
		}
	}
}

// All objects of a repository that are needed, with the classes of their bytes.
func (w *world) needed() (keys []string) {
	w.t.Helper()
	s := w.repo.Now()
	keys = append(keys, snapshot.ManifestKey(w.repo.Lineage, s.Manifest.Seq))
	for _, i := range s.Manifest.Items {
		if i.Page != nil {
			keys = append(keys, i.Page.Key)
		}
	}
	for _, t := range s.Tails {
		keys = append(keys, t.Key)
	}
	for _, l := range w.segments() {
		keys = append(keys, l.Key)
	}
	slices.Sort(keys)
	return slices.Compact(keys)
}

// fix repairs or recovers, whatever is needed.
func (w *world) fix(set func(*Options)) *Plan {
	w.t.Helper()
	p, err := Repair(w.t.Context(), w.with(set))
	if errors.Is(err, ErrNoManifest) {
		p, err = Recover(w.t.Context(), w.with(set))
	}
	w.must(err)
	w.apply(p)
	return p
}

// Each class of bytes of each object: the note, its signature, the age header, the header, frames, index, directory, frame table and
// footer of a segment. What is damaged is made whole from a copy, and from the source.
func TestBytes(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		proto := newWorld(t, encrypted, memstore.Options{})
		adopted := map[string]int{} // tails of which only what is behind the note counts
		for _, i := range proto.repo.Now().Manifest.Items {
			if i.Segment != nil && i.Segment.Offset() > 0 {
				adopted[i.Segment.Key] = int(i.Segment.Offset())
			}
		}
		for _, means := range []Means{Copy, Source} {
			t.Run(fmt.Sprintf("%v/encrypted=%v", means, encrypted), func(t *testing.T) {
				n := len(proto.needed())
				for i := range n {
					b := len(proto.get(proto.needed()[i]))
					at := []int{0, 20, 90, b / 3, b * 2 / 3, b - 250, b - 100, b - 1} // of segments: header, frames, index, directory and table, footer
					k, err := snapshot.ParseKey(proto.needed()[i])
					proto.must(err)
					if k.Kind != snapshot.KindSegment && k.Kind != snapshot.KindTail {
						at = []int{b / 2, b - 10}
					} else if k.Kind == snapshot.KindSegment && testing.Short() {
						at = at[:3]
					}
					if k.Kind == snapshot.KindTail {
						if note, err := snapshot.SplitTail(proto.get(proto.needed()[i]), ""); err == nil {
							at = append(at, int(note)-10, int(note)+10)
						}
					}
					if !*all { // others in each means and form
						some := rand.New(rand.NewPCG(uint64(i), uint64(len(means))))
						some.Shuffle(len(at), func(i, j int) { at[i], at[j] = at[j], at[i] })
						at = at[:1]
					}
					for _, at := range at {
						w := proto.clone(t)
						key := w.needed()[i]
						size := len(w.get(key))
						if at = max(0, min(at, size-1)); at < adopted[key] {
							continue
						}
						beat := slices.ContainsFunc(w.repo.Now().Tails, func(t *backup.StoredTail) bool { return t.Key == key && t.Heartbeat() })
						w.flip(key, at)
						if list := w.found(); !slices.ContainsFunc(list, func(f verify.Finding) bool { return f.Key == key }) {
							t.Errorf("%s byte %d is not found: %v", key, at, list)
						}
						set := w.fromCopy
						if means == Source {
							set = w.fromSource
						}
						if k.Kind == snapshot.KindPage || beat {
							set = nil // nothing is lost
						} else {
							w.refuses(nil)
						}
						p := w.fix(set)
						w.whole()
						if t.Failed() {
							for _, s := range p.Steps {
								t.Log(s)
							}
							t.Fatalf("object %d of %d: %s, byte %d of %d", i, n, key, at, size)
						}
					}
				}
			})
		}
	}
}
