package backendtest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// CommitSample carries one transaction of three objects through b: a new object,
// a changed one and an undo. [CheckSample] tells what became of it.
func CommitSample(b backend.Backend, ttid tid.TID) error {
	meta := &backend.Meta{User: []byte("u"), Description: []byte("sample"), Extension: []byte{}, TTID: ttid}
	var stores []backend.Store
	for oid, text := range []string{"new", "changed", "undone"} {
		var from proto.Opt[tid.TID]
		if oid == 2 {
			from = proto.Some(tid.TID(4))
		}
		id, err := b.HoldData(tid.OID(oid), rec(text), from)
		if err != nil {
			return err
		}
		stores = append(stores, backend.Store{OID: tid.OID(oid), Data: id, DataSerial: from.V})
		meta.OIDs = append(meta.OIDs, tid.OID(oid))
	}
	for _, step := range []func() error{
		func() error { return b.Vote(ttid, stores, meta, nil) },
		b.Commit,
		func() error { return b.Lock(ttid, ttid, false) },
		b.Commit,
		func() error { return b.Unlock(ttid, ttid, true, true, false) },
		b.Commit,
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// PrepareSample makes the database that CommitSample works on.
func PrepareSample(b backend.Backend) error {
	var cells []proto.CellChange
	for p := range np {
		cells = append(cells, proto.CellChange{Partition: p, ID: me, State: proto.UpToDate})
	}
	if err := b.SetID(me); err != nil {
		return err
	}
	if err := b.ChangePartitionTable(1, 0, cells, true, 0); err != nil {
		return err
	}
	for oid := tid.OID(1); oid <= 2; oid++ {
		if err := b.AddObject(oid, 4, rec("old"), proto.Opt[tid.TID]{}); err != nil {
			return err
		}
	}
	meta := backend.Meta{User: []byte{}, Description: []byte{}, Extension: []byte{}, TTID: 4, OIDs: []tid.OID{1, 2}}
	if err := b.AddTransaction(4, meta, nil); err != nil {
		return err
	}
	return b.Commit()
}

// CheckSample checks that the transaction of CommitSample is there whole or not
// at all, finishing it like the verification of a cluster; with committed it must be
// there. Nothing else may have changed.
func CheckSample(b backend.Backend, ttid tid.TID, committed bool) error {
	unfinished, err := b.Unfinished()
	if err != nil {
		return err
	}
	if final, ok := unfinished[ttid]; ok && final.OK {
		if err := b.Validate(ttid, final.V); err != nil {
			return err
		}
	}
	if err := b.DropUnfinished(); err != nil {
		return err
	}
	_, err = b.Transaction(context.Background(), ttid)
	there := err == nil
	if err != nil && !errors.Is(err, backend.ErrNotFound) {
		return err
	}
	if committed && !there {
		return fmt.Errorf("transaction %v is lost", ttid)
	}
	for oid, want := range []struct{ before, after string }{
		{"", fmt.Sprintf("%d new", ttid)}, {"4 old", fmt.Sprintf("%d changed", ttid)}, {"4 old", fmt.Sprintf("%d as 4 old", ttid)},
	} {
		o, err := b.GetObject(context.Background(), tid.OID(oid), proto.Opt[tid.TID]{}, proto.Opt[tid.TID]{})
		if err != nil && !errors.Is(err, backend.ErrNoSuchObject) {
			return err
		}
		got := ""
		if err == nil {
			got = show(o)
		}
		expect := want.before
		if there {
			expect = want.after
		}
		if got != expect {
			return fmt.Errorf("object %d is %q, want %q (transaction there: %v)", oid, got, expect, there)
		}
	}
	return nil
}

// Every operation of a commit fails once, in turn. Whatever the point of failure,
// reopening shows the transaction whole or not at all.
func testEveryOperationFailsOnce(e *env) {
	e.ok(e.b.Close())
	for n := 1; ; n++ {
		e.database = e.fresh(e.T)
		e.open()
		e.ok(PrepareSample(e.b))
		faulty := FailAt(e.b, n)
		err := CommitSample(faulty, 8)
		e.crash()
		if cerr := CheckSample(e.b, 8, err == nil); cerr != nil {
			e.Errorf("after operation %d failed with %v: %v", n, err, cerr)
		}
		if !faulty.Fired() {
			e.ok(err)
			if n < 8 {
				e.Errorf("only %d operations", n-1)
			}
			return // n is past the last operation: every point has been tried
		}
		e.ok(e.b.Close())
	}
}

// Loads go on while transactions are committed, and see each of them at once.
func testConcurrency(e *env) {
	e.table()
	const objects, rounds = 8, 25
	var g sync.WaitGroup
	var m sync.Mutex
	var latest tid.TID // of which the unlock has returned
	stop := make(chan struct{})
	for i := range 3 {
		g.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				m.Lock()
				at := latest
				m.Unlock()
				oid := tid.OID((n + i) % objects)
				o, err := e.b.GetObject(e.Context(), oid, none, none)
				switch {
				case at == 0 && errors.Is(err, backend.ErrNoSuchObject):
				case err != nil:
					e.Errorf("load of %d after %d: %v", oid, at, err)
					return
				case o.Serial < at || string(o.Data) != fmt.Sprintf("%d at %d", oid, o.Serial):
					e.Errorf("load of %d after %d: %s", oid, at, show(o))
					return
				}
				if at > 0 {
					b, err := e.b.GetObject(e.Context(), oid, none, proto.Some(at))
					if at > 4 && (err != nil || b.Serial != at-4 || b.Next != at) {
						e.Errorf("load of %d before %d: %s, %v", oid, at, show(b), err)
						return
					}
					last, err := e.lastObject(oid)
					if err != nil || last.V < at {
						e.Errorf("last revision of %d after %d: %v, %v", oid, at, last, err)
						return
					}
				}
			}
		})
	}
	for range rounds {
		t := e.next(0)
		var changes []change
		for o := range objects {
			changes = append(changes, change{oid: tid.OID(o), text: fmt.Sprintf("%d at %d", o, t)})
		}
		e.commit(t, t, changes...)
		m.Lock()
		latest = t
		m.Unlock()
	}
	e.ok(e.b.Commit())
	close(stop)
	g.Wait()
}

// Nodes carry out many transactions at once.
func testConcurrentTransactions(e *env) {
	e.table()
	const workers, rounds = 4, 12
	var g sync.WaitGroup
	for w := range workers {
		g.Go(func() {
			for n := range rounds {
				t := tid.TID((n+1)*np*workers + w*np)
				var stores []backend.Store
				for i := range 5 {
					oid := tid.OID(100*w + i)
					id, err := e.b.HoldData(oid, rec(fmt.Sprintf("%d at %d", oid, t)), none)
					if err != nil {
						e.Error(err)
						return
					}
					stores = append(stores, backend.Store{OID: oid, Data: id})
				}
				ok := true
				steps := []func() error{
					func() error { return e.b.Vote(t, stores, &backend.Meta{TTID: t}, nil) },
					e.b.Commit,
					func() error { return e.b.Lock(t, t, false) },
					e.b.Commit,
					func() error { return e.b.Unlock(t, t, true, true, false) },
				}
				if n%4 == 3 {
					var ids []backend.DataID
					for _, s := range stores {
						ids = append(ids, s.Data)
					}
					steps = append(steps[:2+n/4%2], func() error { return e.b.Abort(t) },
						func() error { return e.b.ReleaseData(ids, true) })
				}
				for _, step := range steps {
					if err := step(); err != nil {
						e.Error(err)
						ok = false
					}
				}
				if o, err := e.b.GetObject(e.Context(), tid.OID(100*w), none, none); !ok || err != nil || o.Serial != t && n%4 != 3 {
					e.Errorf("worker %d, transaction %d: %s, %v", w, t, show(o), err)
					return
				}
			}
		})
	}
	g.Wait()
	e.ok(e.b.Commit())
	e.crash()
	e.unfinished(map[tid.TID]proto.Opt[tid.TID]{})
	e.equal("orphans", e.orphans(), 0)
	for w := range workers {
		for i := range 5 {
			revs, err := e.b.History(e.Context(), tid.OID(100*w+i), 0, 100)
			e.ok(err)
			e.equal("revisions", len(revs), rounds-rounds/4)
			for _, r := range revs {
				o, err := e.b.GetObject(e.Context(), tid.OID(100*w+i), proto.Some(r.TID), none)
				if want := fmt.Sprintf("%d at %d", 100*w+i, r.TID); err != nil || string(o.Data) != want {
					e.Errorf("%s, %v, want %s", show(o), err, want)
				}
			}
		}
	}
}

// What was unlocked is seen at once. If it was not committed, a crash makes it
// unfinished again, with its final TID, whatever was committed since.
func testDeferredUnlock(e *env) {
	e.table()
	const n = 40
	finals := map[tid.TID]tid.TID{}
	var last tid.TID
	for i := range n {
		t := e.next(0)
		last = t
		finals[t] = t
		e.commit(t, t, change{oid: 1, text: fmt.Sprint(i)}, change{oid: tid.OID(10 + i), text: "new"})
		e.loads(1, query{}, e.load(1, query{at: t}))
		if i > 0 {
			o, err := e.b.GetObject(e.Context(), 1, none, proto.Some(t))
			e.ok(err)
			e.equal("next revision", o.Next, t)
		}
		m, err := e.b.Transaction(e.Context(), t)
		if i%10 == 9 { // this may write what waits
			e.ok(err)
			e.equal("objects", m.OIDs, []tid.OID{1, tid.OID(10 + i)})
		}
	}
	voted := e.next(0)
	e.vote(voted, change{oid: 2, text: "voted"})
	e.ok(e.b.CommitVotes())
	want := e.load(1, query{})
	e.crash()
	found, err := e.b.Unfinished()
	e.ok(err)
	e.equal("vote", found[voted], proto.Opt[tid.TID]{})
	if _, ok := found[voted]; !ok {
		e.Error("a vote was lost")
	}
	delete(found, voted)
	for ttid, final := range found {
		e.equal(fmt.Sprint("final TID of ", ttid), final, proto.Some(finals[ttid]))
		e.ok(e.b.Validate(ttid, final.V))
	}
	e.ok(e.b.DropUnfinished())
	e.loads(1, query{}, want)
	for i := range n {
		if got := e.load(tid.OID(10+i), query{}); got == "no such object" {
			e.Errorf("object %d of transaction %d was lost", 10+i, i)
		}
	}
	if _, err := e.b.Transaction(e.Context(), last); err != nil {
		e.Error(err)
	}
	e.equal("orphans", e.orphans(), 0)
}
