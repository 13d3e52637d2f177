package repair

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/feed/feedtest"
	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/backup/restore"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/backup/verify"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// On a bucket that keeps versions, an object that was overwritten or deleted is read all the same, which is reported; a repair
// stores it again, after which nothing has to be reported.
func TestVersions(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		proto := newWorld(t, encrypted, memstore.Options{Versioned: true})
		for i, key := range proto.needed() {
			for _, deleted := range []bool{false, true} {
				if !*all && deleted != (i%2 == 0) != encrypted {
					continue
				}
				w := proto.clone(t)
				last := key == w.repo.Now().Tails[len(w.repo.Now().Tails)-1].Key
				if deleted {
					w.delete(key)
				} else if b := w.get(key); i%4 < 2 {
					w.flip(key, len(b)-150)
				} else {
					w.overwrite(key, []byte("nothing"))
				}
				k, err := snapshot.ParseKey(key)
				w.must(err)
				hidden := deleted && (last || k.Kind == snapshot.KindManifest) // lists do not show it
				if !hidden {
					w.equal(w.list)
					r, keys := w.open()
					s, err := r.State(t.Context(), w.repo.Lineage, nil)
					w.must(err)
					w.transactions(r, keys, s, 0, s.Head())
					if list := r.Tampered(); len(list) != 1 || list[0].Key != key {
						t.Errorf("%s: %v", key, list)
					}
				}
				p := w.fix(nil)
				if !hidden {
					w.needs(p, key, Version)
				}
				w.equal(w.list)
				r, keys := w.open()
				s, err := r.State(t.Context(), w.repo.Lineage, nil)
				w.must(err)
				w.transactions(r, keys, s, 0, s.Head())
				if list := r.Tampered(); len(list) > 0 {
					t.Errorf("after the repair: %v, steps %v", list, p.Steps)
				}
				if p, err := Repair(t.Context(), w.with(nil)); err != nil || p.Needed() {
					t.Errorf("%v %v", p.Steps, err)
				}
				if t.Failed() {
					t.Fatalf("%s, deleted: %v, encrypted: %v, plan %v", key, deleted, encrypted, p.Steps)
				}
			}
		}
	}
}

// A state from which the newest manifest and the tails after the one before it were deleted looks whole. Where this host has seen
// more, or the store has kept versions, what is gone is not given up in silence, and its numbers are not used again.
func TestRolledBack(t *testing.T) {
	for _, versioned := range []bool{false, true} {
		for _, encrypted := range []bool{false, true} {
			w := unpruned(t, encrypted, memstore.Options{Versioned: versioned})
			s := w.repo.Now()
			seq, last := s.Manifest.Seq, s.Chain().N
			seen := func(o *Options) { o.SeenManifest, o.SeenTail = seq, last }
			if versioned {
				seen = func(*Options) {}
			}
			w.delete(snapshot.ManifestKey(w.repo.Lineage, seq))
			r, _ := w.open()
			old, err := r.State(t.Context(), w.repo.Lineage, nil)
			w.must(err)
			for i, tail := range old.Tails {
				w.delete(tail.Key)
				for v, err := range w.mem.Versions(t.Context(), tail.Key) {
					if w.must(err); versioned && i == 2 { // for good
						w.must(w.mem.DeleteVersions(t.Context(), []store.Version{v}))
					}
				}
			}
			r, _ = w.open()
			if old, err = r.State(t.Context(), w.repo.Lineage, nil); err != nil || old.Head() >= s.Head() || old.Manifest.Seq != seq-1 {
				t.Fatalf("%v %v", old, err)
			}
			w.refuses(seen)
			w.repair(func(o *Options) { seen(o); w.fromSource(o) })
			w.whole()
			if now := w.repo.Now(); now.Manifest.Seq != seq+1 || now.Chain().N < last {
				t.Errorf("manifest %d, tail %d, there were %d and %d", now.Manifest.Seq, now.Chain().N, seq, last)
			}
		}
	}
}

// What takes the place of a lost page has the holes of all its parts, also one that begins with the history.
func TestHolesOfPage(t *testing.T) {
	part := func(from, to tid.TID) *entry {
		return &entry{hole: snapshot.Hole{From: from, To: to}, make: func(context.Context) ([]snapshot.Item, error) { return nil, nil }}
	}
	for _, list := range [][]*entry{
		{part(0, 90), part(0, 0), part(30, 90)},
		{part(0, 0), part(30, 90), part(0, 90)},
	} {
		if got := together(&entry{upto: 100}, list).hole; got != (snapshot.Hole{From: 0, To: 90}) {
			t.Errorf("the hole is %v, want 0 to 90", got)
		}
	}
}

// What was merged into a segment stands for it as long as a keeper has not deleted it, unless that is about to happen.
func TestSmaller(t *testing.T) {
	w := unpruned(t, true, memstore.Options{})
	first := w.segments()[0]
	w.flip(first.Key, 500)
	p, err := Repair(t.Context(), w.with(nil))
	w.must(err)
	w.needs(p, first.Key, Smaller)

	doom := &snapshot.Doom{Repo: w.repo.Marker.ID, Created: time.Now(), Policy: 1, Objects: []snapshot.Doomed{{Key: snapshot.TailKey(w.repo.Lineage, 1), Why: "superseded"}}}
	b, err := doom.Sign(w.repo.Keeper)
	w.must(err)
	key := snapshot.Key{Kind: snapshot.KindDoom, Time: time.Now()}.String()
	w.repo.Put(key, b)
	w.refuses(nil)
	if _, err := p.Apply(t.Context()); !errors.Is(err, ErrDoomed) { // it was planned before
		t.Errorf("Apply: %v, want %v", err, ErrDoomed)
	}
	v, err := snapshot.Sign(&snapshot.Void{Repo: w.repo.Marker.ID, Created: time.Now(), List: key}, w.repo.Keeper)
	w.must(err)
	w.repo.Put(key+".void", v)
	w.needs(w.repair(nil), first.Key, Smaller)
	w.whole()
}

// Two objects that changed places, an older manifest in the place of the newest one, a segment that was forged with the public
// recipient, a note that another key has signed: all are found, none is used.
func TestForged(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		proto := newWorld(t, encrypted, memstore.Options{})
		segments := proto.segments()
		newest := snapshot.ManifestKey(proto.repo.Lineage, proto.repo.Now().Manifest.Seq)
		old := unpruned(t, encrypted, memstore.Options{})
		for name, damage := range map[string]func(w *world) (keys []string){
			"swapped segments": func(w *world) []string {
				a, b := w.get(segments[0].Key), w.get(segments[1].Key)
				w.overwrite(segments[0].Key, b)
				w.overwrite(segments[1].Key, a)
				return []string{segments[0].Key, segments[1].Key}
			},
			"swapped tails": func(w *world) []string {
				k1, k2 := snapshot.TailKey(w.repo.Lineage, 8), snapshot.TailKey(w.repo.Lineage, 9)
				a, b := w.get(k1), w.get(k2)
				w.overwrite(k1, b)
				w.overwrite(k2, a)
				return []string{k1, k2}
			},
			"an older manifest": func(w *world) []string {
				w.overwrite(newest, old.get(snapshot.ManifestKey(old.repo.Lineage, 2)))
				return []string{newest}
			},
			"a manifest that another key signed": func(w *world) []string {
				private, _, err := snapshot.GenerateKey("test", snapshot.Writer)
				w.must(err)
				other, err := snapshot.NewSigner(private)
				w.must(err)
				m := *w.repo.Now().Manifest
				b, err := m.Sign(other)
				w.must(err)
				w.overwrite(newest, b)
				return []string{newest}
			},
			"a forged segment": func(w *world) []string {
				plain, written := w.repo.Plain(0, 0, proto.list[:3])
				var to snapshot.Recipient
				var kid snapshot.KID
				if encrypted {
					epochs, err := w.repo.Epochs(t.Context())
					w.must(err)
					to, err = snapshot.ParseRecipient(epochs[0].Recipient)
					w.must(err)
					kid = epochs[0].KID
				}
				var b bytes.Buffer
				_, err := snapshot.Seal(&b, bytes.NewReader(plain), to, kid)
				w.must(err)
				_ = written
				w.overwrite(segments[0].Key, b.Bytes())
				return []string{segments[0].Key}
			},
		} {
			w := proto.clone(t)
			keys := damage(w)
			list := w.found()
			for _, key := range keys {
				if !slices.ContainsFunc(list, func(f verify.Finding) bool { return f.Key == key }) {
					t.Errorf("%s: %s is not found: %v", name, key, list)
				}
			}
			w.refuses(nil)
			p := w.fix(w.fromSource)
			w.whole()
			if t.Failed() {
				t.Fatalf("%s, encrypted: %v: %v", name, encrypted, p.Steps)
			}
		}
	}
}

// With all manifests spoiled, and with all deleted, the history is found again: with the source, with a copy, or if what is not signed is
// accepted. What was forged is not taken for it.
func TestRecover(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		proto := newWorld(t, encrypted, memstore.Options{})
		full := unpruned(t, encrypted, memstore.Options{})
		for name, set := range map[string]func(w *world, o *Options){
			"source": func(w *world, o *Options) { w.fromSource(o) }, "copy": func(w *world, o *Options) { w.fromCopy(o) },
			"unsigned": func(_ *world, o *Options) { o.AcceptUnsigned = true },
		} {
			for _, p := range []*world{proto, full} {
				for _, deleted := range []bool{false, true} {
					w := p.clone(t)
					n := int64(0)
					for key := range w.objects() {
						if k, err := snapshot.ParseKey(key); err == nil && k.Kind == snapshot.KindManifest {
							n = max(n, k.N)
							if deleted {
								w.delete(key)
							} else {
								w.overwrite(key, []byte("spoiled"))
							}
						}
					}
					if len(w.found()) == 0 {
						t.Error("nothing is found")
					}
					if _, err := Repair(t.Context(), w.with(nil)); !errors.Is(err, ErrNoManifest) {
						t.Errorf("Repair: %v", err)
					}
					r, err := Recover(t.Context(), w.with(nil))
					w.must(err)
					if _, err := r.Apply(t.Context()); p == proto && !errors.Is(err, ErrRefused) {
						t.Errorf("without source: %v %v", err, r.Steps)
					}
					if p != proto && r.Err() == nil {
						continue // tails name all of it; it was applied
					}
					r, err = Recover(t.Context(), w.with(func(o *Options) { set(w, o); o.SeenManifest, o.SeenTail = n, 9 }))
					w.must(err)
					if r.Seq != n+1 || r.Tail != 9 {
						t.Errorf("manifest %d, tail %d, want %d, 9", r.Seq, r.Tail, n+1)
					}
					if (len(r.Unsigned) > 0) != (name == "unsigned") {
						t.Errorf("unsigned: %v", r.Unsigned)
					}
					w.apply(r)
					w.whole()
					if t.Failed() {
						for _, s := range r.Steps {
							t.Log(s)
						}
						t.Fatalf("%s, encrypted: %v, deleted: %v, pruned: %v", name, encrypted, deleted, p == proto)
					}
				}
			}
		}
	}
}

// What the last tail had is not given up in silence when the manifests are gone too: its number tells of it, or what this host has seen.
func TestRecoverEnd(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		for _, deleted := range []bool{false, true} {
			w := unpruned(t, encrypted, memstore.Options{})
			s := w.repo.Now()
			seen := func(o *Options) { o.SeenManifest, o.SeenTail = s.Manifest.Seq, s.Chain().N }
			last := snapshot.TailKey(w.repo.Lineage, s.Chain().N)
			if deleted {
				w.delete(last)
			} else {
				w.overwrite(last, []byte("nothing"))
			}
			for n := range s.Manifest.Seq {
				w.overwrite(snapshot.ManifestKey(w.repo.Lineage, n+1), []byte("spoiled"))
			}
			plan := func(set func(*Options)) *Plan {
				t.Helper()
				p, err := Recover(t.Context(), w.with(func(o *Options) {
					if deleted {
						seen(o)
					}
					set(o)
				}))
				w.must(err)
				return p
			}
			if p := plan(func(*Options) {}); !errors.Is(p.Err(), ErrRefused) {
				t.Errorf("deleted: %v, without a source: %v", deleted, p.Steps)
			}
			if p := plan(func(o *Options) { o.AcceptGaps = true }); p.Err() != nil || p.Head >= s.Head() {
				t.Errorf("deleted: %v, with gaps: %v %v", deleted, p.Err(), p.Steps)
			}
			w.apply(plan(w.fromSource))
			w.whole()
		}
	}
}

// A segment that was made with the public recipient, wider than all others, is not taken while signed notes name the same
// range; and without them it is one that the source does not have.
func TestRecoverForged(t *testing.T) {
	for _, named := range []bool{true, false} {
		w := newWorld(t, true, memstore.Options{})
		epochs, err := w.repo.Epochs(t.Context())
		w.must(err)
		to, err := snapshot.ParseRecipient(epochs[0].Recipient)
		w.must(err)
		forged := history(rand.New(rand.NewPCG(7, 7)), 60)
		plain, written := w.repo.Plain(0, 0, forged)
		var b bytes.Buffer
		st, err := snapshot.Seal(&b, bytes.NewReader(plain), to, epochs[0].KID)
		w.must(err)
		l := written.Line(st)
		w.repo.Put(l.Key, b.Bytes())
		m := w.repo.Now().Manifest
		if !named {
			w.overwrite(snapshot.ManifestKey(w.repo.Lineage, m.Seq), []byte("spoiled"))
		} else { // an older manifest is good
			c := *m
			c.Seq, c.Prev = m.Seq+1, w.repo.Now().Hash
			w.repo.Put(snapshot.ManifestKey(w.repo.Lineage, c.Seq), []byte("spoiled"))
		}
		p, err := Recover(t.Context(), w.with(w.fromSource))
		w.must(err)
		w.apply(p)
		w.whole()
		if slices.Contains(p.Unsigned, l.Key) {
			t.Errorf("named: %v: %v", named, p.Steps)
		}
	}
}

// Without the identity a segment that was deleted is copied as it is. One that was overwritten needs it.
func TestWithoutIdentity(t *testing.T) {
	w := newWorld(t, true, memstore.Options{})
	first := w.segments()[0]
	b := w.get(first.Key)
	without := func(o *Options) {
		w.fromCopy(o)
		o.Keys = nil
	}
	w.overwrite(first.Key, []byte("spoiled"))
	w.refuses(without)
	w.delete(first.Key)
	w.needs(w.repair(without), first.Key, Copy)
	if !bytes.Equal(w.get(first.Key), b) {
		t.Error("it has other bytes")
	}
	w.whole()
	id, err := age.GenerateX25519Identity()
	w.must(err)
	w.overwrite(first.Key, []byte("spoiled"))
	w.refuses(func(o *Options) {
		w.fromCopy(o)
		o.Keys = o.Repo.Unlock(id)
	})
}

// A source that was packed gives what is left: the range becomes a hole, and nothing that was deleted rises from the dead.
func TestReduced(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		proto := newWorld(t, encrypted, memstore.Options{})
		for i, l := range proto.segments() {
			if l.After == l.Upto {
				continue // with the one before
			}
			w := proto.clone(t)
			w.delete(l.Key)
			if l.Offset() > 0 {
				w.repo.Put(l.Key, nil) // the last tail too
			}
			src := sourceOf(w.list)
			pack := w.list[40].TID
			src.Pack(pack)
			p, err := Repair(t.Context(), w.with(func(o *Options) { o.Source = src }))
			w.must(err)
			if l.After >= pack {
				continue
			}
			if l.Offset() == 0 {
				w.needs(p, "", Reduced)
			}
			w.apply(p)
			r, keys := w.open()
			s, err := r.State(t.Context(), w.repo.Lineage, nil)
			w.must(err)
			if len(s.Holes()) != 1 || s.Holes()[0].To != pack || s.Holes()[0].From > l.After {
				t.Errorf("segment %d: holes %v, want one up to %v from %v", i, s.Holes(), pack, l.After)
			}
			if list := w.found(); len(list) > 0 {
				t.Errorf("segment %d: %v", i, list)
			}
			want := stateAt(w.list)
			got := stateAt(collect(w, r, keys, s))
			for _, tr := range w.list {
				if s.Exact(tr.TID) != nil {
					continue
				}
				if g, x := got(tr.TID), want(tr.TID); !slices.Equal(g, x) {
					t.Fatalf("segment %d at %v:\n%v\nwant\n%v", i, tr.TID, g, x)
				}
			}
		}
	}
}

func collect(w *world, r *backup.Repository, keys *backup.Keys, s *backup.State) (list []*txn.Transaction) {
	w.t.Helper()
	for t, err := range r.Transactions(w.t.Context(), keys, s, 0, s.Head(), backup.FetchOptions{Scratch: w.t.TempDir()}, nil) {
		w.must(err)
		c := *t
		var records []txn.Record
		for rec, err := range t.Records {
			w.must(err)
			n := *rec
			n.Data = bytes.Clone(rec.Data)
			records = append(records, n)
		}
		c.Records = txn.Slice(records)
		list = append(list, &c)
	}
	return list
}

// stateAt returns what objects there are at a time; "?" for a copy of what is not there.
func stateAt(list []*txn.Transaction) func(at tid.TID) []string {
	return func(at tid.TID) []string {
		type rev struct {
			oid tid.OID
			at  tid.TID
		}
		revs, now := map[rev]string{}, map[tid.OID]string{}
		for _, t := range list {
			if t.TID > at {
				break
			}
			for r := range t.Records {
				data := ""
				if r.DataTID != 0 {
					d, ok := revs[rev{r.OID, r.DataTID}]
					if data = d; !ok {
						data = "?"
					}
				} else if r.Data != nil {
					data = fmt.Sprintf("%x", snapshot.Sum(r.Data))
				}
				revs[rev{r.OID, t.TID}], now[r.OID] = data, data
			}
		}
		var out []string
		for oid, data := range now {
			if data != "" {
				out = append(out, fmt.Sprintf("%v %s", oid, data))
			}
		}
		slices.Sort(out)
		return out
	}
}

// What cannot be repaired is a gap if that is accepted: what is before it stays restorable, what comes after it needs to be asked
// for.
func TestGap(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		proto := newWorld(t, encrypted, memstore.Options{})
		for i, l := range proto.segments() {
			w := proto.clone(t)
			w.overwrite(l.Key, []byte("spoiled"))
			w.refuses(nil)
			p := w.repair(func(o *Options) { o.AcceptGaps = true })
			w.needs(p, "", Gap)
			if list := w.found(); len(list) > 0 {
				// Copies of what is in the gap are in vain.
				for _, f := range list {
					if !strings.Contains(f.Text, "which is not in the backup") {
						t.Errorf("segment %d: %v", i, f)
					}
				}
			}
			r, keys := w.open()
			s, err := r.State(t.Context(), w.repo.Lineage, nil)
			w.must(err)
			if last := l.Upto == w.list[59].TID; last != (s.Head() != w.list[59].TID) {
				t.Errorf("segment %d: head %v", i, s.Head())
			} else if last {
				continue // there is no later moment
			}
			after := tid.Zero
			for part, err := range r.Parts(t.Context(), s, 0, tid.Max) {
				w.must(err)
				if part.Gap != nil {
					after = part.Gap.After
					if after > l.After || part.Gap.Upto < l.Upto {
						t.Errorf("segment %d: the gap is %v to %v", i, after, part.Gap.Upto)
					}
				}
			}
			if got := w.transactions(r, keys, s, 0, after); after > 0 && len(got) == 0 {
				t.Errorf("segment %d: nothing is restorable", i)
			}
			var gap error
			for _, err := range r.Transactions(t.Context(), keys, s, 0, s.Head(), backup.FetchOptions{Scratch: t.TempDir()}, nil) {
				gap = err
			}
			if !errors.Is(gap, backup.ErrIncomplete) {
				t.Errorf("segment %d: %v", i, gap)
			}
			if t.Failed() {
				t.Fatalf("%v", p.Steps)
			}
		}
	}
}

// The notes of the repository that were deleted come from a copy, its keys from a copy or a version.
func TestNotes(t *testing.T) {
	w := newWorld(t, true, memstore.Options{})
	for _, key := range []string{"l/0001", "keys/0001.0001", "keys/0001.pub"} {
		w := w.clone(t)
		w.delete(key)
		p := w.repair(w.fromCopy)
		w.needs(p, key, Copy)
		w.whole()
	}
	v := newWorld(t, true, memstore.Options{Versioned: true})
	v.flip("keys/0001.0001", 30)
	v.needs(v.repair(nil), "keys/0001.0001", Version)
	v.whole()
}

// Another source than the one that was backed up repairs nothing.
func TestOtherSource(t *testing.T) {
	w := newWorld(t, false, memstore.Options{})
	w.delete(w.segments()[0].Key)
	w.refuses(func(o *Options) { o.Source = sourceOf(history(rand.New(rand.NewPCG(9, 9)), 70)) })
	w.refuses(func(o *Options) { o.Source = feedtest.New("empty") })
	src := sourceOf(w.list) // of a packed Data.fs no trace is left of what the pack dropped
	src.SetSource(snapshot.Source{Kind: feed.KindFile, Name: "Data.fs"})
	src.Pack(w.list[30].TID)
	w.refuses(func(o *Options) { o.Source = src })
}

// Small segments and those behind tails are merged; the content is the same, and tails can go.
func TestCompact(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		w := newWorld(t, encrypted, memstore.Options{})
		p, err := Compact(t.Context(), w.with(nil))
		w.must(err)
		if !p.Needed() || p.Damage() {
			t.Fatalf("%+v", p)
		}
		w.apply(p)
		w.whole()
		s := w.repo.Now()
		if len(s.Tails) != 0 {
			t.Errorf("%d tails are left", len(s.Tails))
		}
		for _, l := range w.segments() {
			if l.Offset() != 0 {
				t.Errorf("%s is behind a tail", l.Key)
			}
		}
		if p, err = Compact(t.Context(), w.with(nil)); err != nil || p.Needed() && len(w.segments()) < 3 {
			t.Errorf("%v %v", p.Steps, err)
		}
		// With a damaged segment nothing is published.
		w = newWorld(t, encrypted, memstore.Options{})
		w.flip(w.segments()[7].Key, -100)
		before := w.repo.Now().Manifest.Seq
		if p, err = Compact(t.Context(), w.with(nil)); err == nil {
			_, err = p.Apply(t.Context())
		}
		if !errors.Is(err, snapshot.ErrCorrupt) || w.repo.Now().Manifest.Seq != before {
			t.Errorf("%v", err)
		}
	}
}

// Random combinations of damages are made whole, by the source or by a copy; without them exactly the gaps that are named are
// missing. Nothing is ever wrong afterwards.
func TestRandom(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		for _, o := range []memstore.Options{{}, {Versioned: true}} {
			proto := newWorld(t, encrypted, o)
			for seed := range *seeds {
				r := rand.New(rand.NewPCG(uint64(seed), 3))
				w := proto.clone(t)
				keys := w.needed()
				var done []string
				for range 1 + r.IntN(6) {
					key := keys[r.IntN(len(keys))]
					b := w.get(key)
					if len(b) < 10 {
						continue
					}
					switch r.IntN(4) {
					case 0:
						w.delete(key)
					case 1:
						w.overwrite(key, b[:r.IntN(len(b))])
					case 2:
						if b := w.get(keys[r.IntN(len(keys))]); b != nil {
							w.overwrite(key, b)
						}
					default:
						w.flip(key, r.IntN(len(b)))
					}
					done = append(done, key)
				}
				means := []func(*Options){w.fromSource, w.fromCopy, func(o *Options) { o.AcceptGaps, o.AcceptUnsigned = true, true }}[seed%3]
				set := func(o *Options) { means(o); o.SeenManifest, o.SeenTail = 4, 9 }
				p := w.fix(set)
				if s, err := Repair(t.Context(), w.with(set)); err != nil {
					t.Fatal(err)
				} else if s.Needed() { // what was hidden behind something else
					w.apply(s)
				}
				r2, keys2 := w.open()
				s, err := r2.State(t.Context(), w.repo.Lineage, nil)
				w.must(err)
				// The last tails may have been deleted: the writer reads them again.
				var gaps []snapshot.Gap
				for part, err := range r2.Parts(t.Context(), s, 0, tid.Max) {
					w.must(err)
					if part.Gap != nil {
						gaps = append(gaps, *part.Gap)
					}
				}
				var got, want []string
				for tr, err := range r2.Transactions(t.Context(), keys2, s, 0, s.Head(), backup.FetchOptions{Scratch: t.TempDir(), SkipGaps: true}, nil) {
					w.must(err)
					got = append(got, text(tr))
				}
				for _, tr := range w.list {
					if tr.TID <= s.Head() && !slices.ContainsFunc(gaps, func(g snapshot.Gap) bool { return g.After < tr.TID && tr.TID <= g.Upto }) {
						want = append(want, text(tr))
					}
				}
				if !slices.Equal(got, want) {
					t.Errorf("%d transactions, want %d; gaps %v", len(got), len(want), gaps)
				}
				if seed%3 != 2 && (len(gaps) > 0 || len(got) < 52) {
					t.Errorf("%d transactions, gaps %v", len(got), gaps)
				}
				if list := w.found(); !o.Versioned && seed%3 != 2 && len(list) > 0 {
					t.Errorf("%v", list)
				}
				if t.Failed() {
					for _, s := range p.Steps {
						t.Log(s)
					}
					t.Fatalf("seed %d, encrypted: %v, versioned: %v: %v", seed, encrypted, o.Versioned, done)
				}
			}
		}
	}
}

// A writer goes on after repairs and compactions that take place while it runs, without being opened again: what it adds
// continues what the new manifest says.
func TestWriterGoesOn(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		mem := memstore.New(memstore.Options{})
		w := &world{t: t, mem: mem, source: sourceOf(nil), repo: backuptest.New(t, mem, encrypted)}
		r := rand.New(rand.NewPCG(5, 5))
		commit := func(wr *writer.Writer, n int) {
			t.Helper()
			var last tid.TID
			for range n {
				last = w.source.Commit(feedtest.Transaction{User: "u", Records: []txn.Record{{OID: tid.OID(r.IntN(9)), Data: bytes.Repeat([]byte{byte(r.Uint32())}, 3000)}}})
				for wr.Stats().Head < last {
					time.Sleep(time.Millisecond)
					if t.Context().Err() != nil {
						t.Fatal("the writer does not go on")
					}
				}
			}
			w.list = nil
			for tr, err := range w.source.Full().Transactions(t.Context(), 0, tid.Max) {
				w.must(err)
				w.list = append(w.list, tr)
			}
		}
		follow := func() (*writer.Writer, func()) {
			t.Helper()
			repo, err := backup.Open(t.Context(), backup.Config{Store: mem, Trusted: w.repo.Trusted})
			w.must(err)
			wr, err := writer.Open(t.Context(), writer.Options{Repo: repo, Signer: w.repo.Signer, Feed: w.source.Reopen(), StateDir: t.TempDir(), Interval: time.Millisecond, Heartbeat: time.Hour, SegmentSize: 60 << 10})
			w.must(err)
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- wr.Follow(ctx) }()
			return wr, func() {
				t.Helper()
				cancel()
				if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
					t.Errorf("the writer ended: %v", err)
				}
				w.must(wr.Close())
			}
		}
		wr, stop := follow()
		commit(wr, 10)
		for round := range 8 {
			commit(wr, 20)
			lines := w.segments()
			l := lines[r.IntN(len(lines))]
			switch k := r.IntN(4); {
			case k == 0 && round%3 != 2 && len(w.repo.Now().Tails) > 2: // the chain is broken
				w.delete(w.repo.Now().Tails[1].Key)
			case k == 1:
				w.delete(l.Key)
			default:
				w.flip(l.Key, -120)
			}
			if round%3 != 2 {
				p, err := Repair(t.Context(), w.with(w.fromSource))
				w.must(err)
				commit(wr, 1) // between plan and deed
				_, err = p.Apply(t.Context())
				for errors.Is(err, ErrChanged) { // the writer may publish a manifest as well
					p, err = Repair(t.Context(), w.with(w.fromSource))
					w.must(err)
					_, err = p.Apply(t.Context())
				}
				w.must(err)
				w.equal(w.list)
			}
			if round == 4 {
				w.repair(w.fromSource)
				p, err := Compact(t.Context(), w.with(nil))
				w.must(err)
				commit(wr, 1)
				w.apply(p)
				w.equal(w.list)
			}
		}
		w.repair(w.fromSource)
		commit(wr, 70) // the writer publishes by itself
		stop()
		w.whole()
		wr, stop = follow() // on another host
		commit(wr, 3)
		stop()
		w.whole()
	}
}

// A writer goes on after a catalog page was overwritten and repaired: it makes no page with the same lines again, whose key is
// taken.
func TestWriterAfterPage(t *testing.T) {
	mem := memstore.New(memstore.Options{})
	w := &world{t: t, mem: mem, source: feedtest.New("prod"), repo: backuptest.New(t, mem, true)}
	take := func(n int) {
		t.Helper()
		for range n {
			data := make([]byte, 3000)
			for i := range data {
				data[i] = byte(rand.Uint32())
			}
			w.source.Put(1, string(data))
		}
		repo, err := backup.Open(t.Context(), backup.Config{Store: mem, Trusted: w.repo.Trusted})
		w.must(err)
		wr, err := writer.Open(t.Context(), writer.Options{Repo: repo, Signer: w.repo.Signer, Feed: w.source.Reopen(), StateDir: t.TempDir(), SegmentSize: 2 << 10})
		w.must(err)
		w.must(wr.Snapshot(t.Context(), 0, ""))
		w.must(wr.Close())
		w.list = nil
		for tr, err := range w.source.Full().Transactions(t.Context(), 0, tid.Max) {
			w.must(err)
			w.list = append(w.list, tr)
		}
	}
	take(70)
	page := w.repo.Now().Manifest.Items[0].Page
	if page == nil || page.N < 64 {
		t.Fatalf("no page: %+v", w.repo.Now().Manifest.Items[0])
	}
	w.overwrite(page.Key, []byte("spoiled"))
	w.needs(w.repair(nil), page.Key, Listed)
	w.whole()
	take(1)
	w.whole()
	if again := w.repo.Now().Manifest.Items[0].Page; again == nil || again.Key == page.Key {
		t.Errorf("the page is %+v", again)
	}
}

// A restore of a moment after a gap has to be asked for. What is in the gap is missing, all else is there, and what may have
// changed in it is listed.
func TestRestoreWithGap(t *testing.T) {
	proto := newWorld(t, true, memstore.Options{})
	for _, l := range proto.segments()[:8] {
		w := proto.clone(t)
		w.delete(l.Key)
		w.repair(func(o *Options) { o.AcceptGaps = true })
		r, keys := w.open()
		s, err := r.State(t.Context(), w.repo.Lineage, nil)
		w.must(err)
		var gap snapshot.Gap
		for part, err := range r.Parts(t.Context(), s, 0, tid.Max) {
			w.must(err)
			if part.Gap != nil {
				gap = *part.Gap
			}
		}
		src := &restore.Source{Repo: r, Keys: keys, State: s, Fetch: backup.FetchOptions{Scratch: t.TempDir()}}
		path := filepath.Join(t.TempDir(), "out.fs")
		if _, err := src.ToFile(t.Context(), path, restore.FileOptions{}); !errors.Is(err, backup.ErrIncomplete) {
			t.Errorf("without more: %v", err)
		}
		src.AllowGaps = true
		res, err := src.ToFile(t.Context(), path, restore.FileOptions{})
		w.must(err)
		got := backuptest.ReadFile(t, path)
		var want []*txn.Transaction
		lost := map[tid.OID]map[tid.TID]bool{} // copies of what is lost
		newest := map[tid.OID]tid.TID{}
		for _, tr := range w.list {
			if tr.TID > gap.After && tr.TID <= gap.Upto {
				for _, rec := range recordsOf(tr) {
					if lost[rec.OID] == nil {
						lost[rec.OID] = map[tid.TID]bool{}
					}
					lost[rec.OID][tr.TID] = true
				}
				continue
			}
			want = append(want, tr)
			for _, rec := range recordsOf(tr) {
				newest[rec.OID] = tr.TID
			}
		}
		if !res.Compared || len(got) != len(want) {
			t.Fatalf("%+v, %d transactions, want %d", res, len(got), len(want))
		}
		unknown := map[string]bool{}
		for i, tr := range want {
			g, x := recordsOf(got[i]), recordsOf(tr)
			if got[i].TID != tr.TID || len(g) != len(x) {
				t.Fatalf("transaction %v with %d records, want %v with %d", got[i].TID, len(g), tr.TID, len(x))
			}
			for j := range x {
				data := x[j].Data
				if x[j].DataTID != 0 && lost[x[j].OID][x[j].DataTID] {
					data = nil
					lost[x[j].OID][tr.TID] = true
					if newest[x[j].OID] == tr.TID {
						unknown[x[j].OID.String()] = true
					}
				}
				if !bytes.Equal(g[j].Data, data) || (g[j].Data == nil) != (data == nil) {
					t.Errorf("object %v in transaction %v: %d bytes, want %d", x[j].OID, tr.TID, len(g[j].Data), len(data))
				}
			}
		}
		for oid, at := range newest {
			if at <= gap.After {
				unknown[oid.String()] = true
			}
		}
		b, err := os.ReadFile(path + ".unknown")
		w.must(err)
		for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
			if oid, _, _ := strings.Cut(line, " "); oid != "#" {
				if !unknown[oid] {
					t.Errorf("listed: %s", line)
				}
				delete(unknown, oid)
			}
		}
		if len(unknown) > 0 {
			t.Errorf("not listed: %v", unknown)
		}
		// What is read at random is right, or an error.
		d, err := reader.Open(t.Context(), r, keys, s, reader.Options{})
		w.must(err)
		refused := 0
		for oid := range tid.OID(20) {
			var want []byte
			datas := map[tid.TID][]byte{}
			for _, tr := range w.list {
				for _, rec := range recordsOf(tr) {
					if rec.OID == oid {
						want = rec.Data
						if rec.DataTID != 0 {
							want = datas[rec.DataTID]
						}
						datas[tr.TID] = want
					}
				}
			}
			rev, err := d.LoadBefore(t.Context(), oid, tid.Max)
			switch {
			case errors.Is(err, txn.ErrNoSuchObject) && want == nil:
			case errors.Is(err, backup.ErrIncomplete):
				refused++
			case errors.Is(err, snapshot.ErrCorrupt): // it copies what is lost
				refused++
			case err != nil || !bytes.Equal(rev.Data, want):
				t.Errorf("object %v: %d bytes, want %d, %v", oid, len(rev.Data), len(want), err)
			}
		}
		w.must(d.Close())
		if refused == 20 {
			t.Error("nothing can be read at random")
		}
		if before := gap.After; before > 0 { // a moment before it is restored as ever
			src := &restore.Source{Repo: r, Keys: keys, State: s, At: before}
			_, err := src.ToFile(t.Context(), filepath.Join(t.TempDir(), "before.fs"), restore.FileOptions{})
			w.must(err)
		}
	}
}

// After repairs of different kinds, a restore at any moment writes the same bytes as one of the undamaged repository.
func TestRestoreAfterRepair(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		proto := newWorld(t, encrypted, memstore.Options{})
		file := func(w *world, at tid.TID) []byte {
			t.Helper()
			r, keys := w.open()
			s, err := r.State(t.Context(), w.repo.Lineage, nil)
			w.must(err)
			path := filepath.Join(t.TempDir(), "out.fs")
			_, err = (&restore.Source{Repo: r, Keys: keys, State: s, At: at}).ToFile(t.Context(), path, restore.FileOptions{})
			w.must(err)
			b, err := os.ReadFile(path)
			w.must(err)
			return b
		}
		w := proto.clone(t)
		for i, l := range w.segments() {
			switch i % 3 {
			case 0:
				w.flip(l.Key, -100)
			case 1:
				w.delete(l.Key)
			}
		}
		w.overwrite(snapshot.ManifestKey(w.repo.Lineage, proto.repo.Now().Manifest.Seq), []byte("spoiled"))
		w.fix(w.fromSource)
		w.whole()
		n := 20
		if !encrypted && !*all {
			n = 5
		}
		for range n {
			at := proto.list[rand.IntN(len(proto.list))].TID
			if !bytes.Equal(file(w, at), file(proto, at)) {
				t.Errorf("the files at %v differ", at)
			}
		}
	}
}

// If the last tail is damaged while a writer runs, the writer has another chain than the one that is repaired, and ends. After one more
// repair a new start goes on, and nothing is lost.
func TestLastTailWhileWriting(t *testing.T) {
	mem := memstore.New(memstore.Options{})
	w := &world{t: t, mem: mem, source: feedtest.New("prod"), repo: backuptest.New(t, mem, true)}
	start := func() *writer.Writer {
		t.Helper()
		repo, err := backup.Open(t.Context(), backup.Config{Store: mem, Trusted: w.repo.Trusted})
		w.must(err)
		wr, err := writer.Open(t.Context(), writer.Options{Repo: repo, Signer: w.repo.Signer, Feed: w.source.Reopen(), StateDir: t.TempDir(), Interval: time.Millisecond})
		w.must(err)
		return wr
	}
	wr := start()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- wr.Follow(ctx) }()
	put := func() {
		t.Helper()
		last := w.source.Put(1, strings.Repeat("x", 100))
		for wr.Stats().Head < last && len(done) == 0 {
			time.Sleep(time.Millisecond)
		}
	}
	for range 5 {
		put()
	}
	tails := w.repo.Now().Tails
	w.flip(tails[len(tails)-1].Key, 10)
	w.repair(w.fromSource)
	for len(done) == 0 && ctx.Err() == nil { // until a manifest is due
		put()
	}
	if err := <-done; err == nil || ctx.Err() != nil {
		t.Fatalf("the writer ended with %v, %v", err, ctx.Err())
	}
	w.must(wr.Close())
	w.repair(w.fromSource)
	wr = start()
	w.must(wr.Snapshot(t.Context(), 0, ""))
	w.must(wr.Close())
	for tr, err := range w.source.Full().Transactions(t.Context(), 0, tid.Max) {
		w.must(err)
		w.list = append(w.list, tr)
	}
	w.whole()
}

// Segments of the parent of a fork, one of which is used up to a moment only, are repaired where the fork uses them.
func TestFork(t *testing.T) {
	for _, encrypted := range []bool{false, true} {
		list := history(rand.New(rand.NewPCG(4, 4)), 30)
		w := &world{t: t, mem: memstore.New(memstore.Options{}), list: list[:15], source: sourceOf(list[:15])}
		w.repo = backuptest.New(t, w.mem, encrypted)
		keys := w.repo.Listed(list[:10], list[10:20], list[20:])
		w.repo.Manifest(false, false)
		w.repo.ForkAt(list[14])
		w.equal(w.list)
		w.copy = w.clone(t).mem
		for _, key := range keys[:2] {
			w.flip(key, -100)
		}
		w.refuses(nil)
		w.needs(w.repair(w.fromCopy), keys[1], Copy)
		w.whole()
		w.delete(w.segments()[0].Key)
		w.repair(w.fromSource)
		w.whole()
	}
}
