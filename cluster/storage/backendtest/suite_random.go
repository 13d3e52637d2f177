package backendtest

import (
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// Random work gives the same answers as the model, with commits and crashes in
// between.
func testRandomWork(e *env) {
	seed := rand.Uint64()
	e.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	model := &env{T: e.T, database: NewMemory(), fresh: e.fresh}
	model.open()
	both := []*env{e, model}
	for _, x := range both {
		x.table()
	}
	const objects = 12
	type open struct {
		ttid   tid.TID
		stores [2][]backend.Store
		locked bool
	}
	var voted []open
	crash := func() {
		for _, x := range both {
			x.crash()
			found, err := x.b.Unfinished()
			x.ok(err)
			for ttid, final := range found {
				if final.OK {
					x.ok(x.b.Validate(ttid, final.V))
				}
			}
			x.ok(x.b.DropUnfinished())
		}
		voted = nil
	}
	revisions := []tid.TID{1}
	for step := range 400 {
		switch k := r.IntN(20); {
		case k < 6: // vote
			v := open{ttid: e.next(r.IntN(np))}
			var changes []change
			for _, oid := range r.Perm(objects)[:r.IntN(4)] {
				if slices.ContainsFunc(voted, func(v open) bool {
					return slices.ContainsFunc(v.stores[0], func(s backend.Store) bool { return int(s.OID) == oid })
				}) {
					continue // locked
				}
				c := change{oid: tid.OID(oid), text: fmt.Sprintf("%d/%d", step, oid)}
				if last, err := e.lastObject(c.oid); err == nil && last.OK && r.IntN(3) == 0 {
					c.undo = last.V
				} else if r.IntN(6) == 0 {
					c.text = "-"
				}
				changes = append(changes, c)
			}
			for i, x := range both {
				v.stores[i] = x.vote(v.ttid, changes...)
			}
			voted = append(voted, v)
		case k < 10 && len(voted) > 0: // lock the oldest
			v := &voted[0]
			for _, x := range both {
				if !v.locked {
					x.ok(x.b.Lock(v.ttid, v.ttid, false))
					x.ok(x.b.Commit()) // so that an unlock that is lost is done again
				}
			}
			v.locked = true
		case k < 14 && len(voted) > 0 && voted[0].locked:
			for i, x := range both {
				x.ok(x.b.Unlock(voted[0].ttid, voted[0].ttid, true, len(voted[0].stores[i]) > 0, false))
			}
			revisions = append(revisions, voted[0].ttid)
			voted = voted[1:]
		case k == 14 && len(voted) > 0 && !voted[len(voted)-1].locked: // abort the newest
			v := voted[len(voted)-1]
			voted = voted[:len(voted)-1]
			for i, x := range both {
				x.ok(x.b.Abort(v.ttid))
				var ids []backend.DataID
				for _, s := range v.stores[i] {
					ids = append(ids, s.Data)
				}
				x.ok(x.b.ReleaseData(ids, true))
			}
		case k < 17:
			for _, x := range both {
				x.ok(x.b.Commit())
			}
		case k == 17 && step%3 == 0:
			crash()
		case k == 18 && step%2 == 0: // pack
			p, t := r.IntN(np), revisions[r.IntN(len(revisions))]
			keep := revisions[r.IntN(len(revisions))]
			for _, x := range both {
				_, _, err := x.b.Pack(p, t, nil, keep, proto.Opt[tid.OID]{}, 1000)
				x.ok(err)
				x.ok(x.b.Commit())
			}
		case k == 18: // drop what packs have kept
			p := r.IntN(np)
			for _, x := range both {
				_, _, err := x.b.DropDeletions(p, proto.Opt[tid.OID]{}, 1000)
				x.ok(err)
				x.ok(x.b.Commit())
			}
		}
		t := revisions[r.IntN(len(revisions))]
		for oid := range tid.OID(objects) {
			for _, q := range []query{{}, {at: t}, {before: t}} {
				if got, want := e.load(oid, q), model.load(oid, q); got != want {
					e.Fatalf("seed %d, step %d: object %d at %d before %d: %s, want %s", seed, step, oid, q.at, q.before, got, want)
				}
			}
		}
		if step%10 == 0 {
			e.compare(model)
		}
	}
	crash()
	e.compare(model)
	if got, want := e.orphans(), model.orphans(); got > want+len(voted) {
		e.Errorf("%d orphans, the model has %d", got, want)
	}
}

// compare compares everything that can be listed.
func (e *env) compare(model *env) {
	e.Helper()
	list := func(x *env) (texts []string) {
		add := func(what string, v any, err error) {
			x.ok(err)
			texts = append(texts, fmt.Sprintf("%s %+v", what, v))
		}
		ids, err := x.b.LastIDs(x.Context())
		add("last ids", ids, err)
		u, err := x.b.Unfinished()
		add("unfinished", u, err)
		for p := range np {
			ts, err := x.b.TIDsFrom(x.Context(), p, 0, tid.Max, 0)
			add("tids", ts, err)
			keys, err := x.b.RecordsFrom(x.Context(), p, 0, tid.Max, 0, 0)
			add("records", keys, err)
			for _, k := range keys {
				o, err := x.b.FetchObject(x.Context(), k.OID, k.TID)
				add("object", show(o), err)
				h, err := x.b.UndoHistory(x.Context(), k.OID, k.TID)
				add("undo", h, err)
			}
			for _, t := range ts {
				m, _, err := x.b.FetchTransaction(x.Context(), t)
				add("transaction", m, err)
			}
			s, err := x.b.CheckSerials(x.Context(), p, 0, 0, tid.Max, 0)
			add("digest", *s, err)
			_, oids, err := x.b.OIDsFrom(x.Context(), p, 100, 0, tid.Max)
			add("oids", oids, err)
			for _, o := range oids {
				h, err := x.b.History(x.Context(), o, 0, 100)
				add("history", h, err)
			}
		}
		return texts
	}
	e.equal("databases", list(e), list(model))
}
