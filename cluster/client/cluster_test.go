package client_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

var shapes = []shape{
	{partitions: 1, storages: 1},
	{partitions: 5, storages: 2},
	{partitions: 3, replicas: 1, storages: 2},
	{partitions: 4, replicas: 1, storages: 3},
}

// everywhere runs a test on clusters of several shapes.
func everywhere(t *testing.T, test func(t *testing.T, r *rig)) {
	for _, s := range shapes {
		t.Run(fmt.Sprintf("%dx%d on %d", s.partitions, s.replicas+1, s.storages), func(t *testing.T) {
			simulate(t, s, test)
		})
	}
}

func TestCommitAndLoad(t *testing.T) {
	everywhere(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		type invalidation struct {
			tid  tid.TID
			oids string
		}
		var seen []invalidation
		a := r.open(nil)
		b := r.open(func(c *client.Config) {
			c.OnInvalidate = func(t tid.TID, oids []tid.OID) { seen = append(seen, invalidation{t, fmt.Sprint(oids)}) }
		})
		big := bytes.Repeat([]byte("compressible "), 1000)
		t1 := r.commit(a, text(0, 0, "root"), text(1, 0, "one"), store{2, 0, big}, text(3, 0, ""))
		t2 := r.commit(a, text(1, t1, "ONE"))

		// Not before its invalidations are processed does a client see a commit.
		if err := b.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		equal(t, "invalidations", seen, []invalidation{{t1, fmt.Sprint([]tid.OID{0, 1, 2, 3})}, {t2, fmt.Sprint([]tid.OID{1})}})
		for _, c := range []*client.Client{a, b} {
			r.want(c, 0, "root", t1)
			r.want(c, 1, "ONE", t2)
			r.want(c, 2, string(big), t1)
			r.want(c, 3, "", t1)
			if last := must(c.LastTID(ctx))(t); last != t2 {
				t.Errorf("last TID %v, want %v", last, t2)
			}
			for range 2 { // from a storage, then from the cache
				r, err := c.LoadBefore(ctx, 1, t2)
				if string(r.Data) != "one" || r.Serial != t1 || r.Next != t2 || err != nil {
					t.Errorf("load before %v: %q %v %v %v", t2, r.Data, r.Serial, r.Next, err)
				}
			}
			if r, err := c.LoadAt(ctx, 1, t1); string(r.Data) != "one" || err != nil {
				t.Errorf("load at %v: %q %v", t1, r.Data, err)
			}
			if _, err := c.LoadAt(ctx, 0, t2); !errors.Is(err, txn.ErrNotFound) {
				t.Errorf("load of a revision that does not exist: %v", err)
			}
			if _, err := c.LoadBefore(ctx, 1, t1); !errors.Is(err, txn.ErrNotFound) {
				t.Errorf("load before the creation: %v", err)
			}
			if _, _, err := c.Load(ctx, 99); !errors.Is(err, txn.ErrNoSuchObject) {
				t.Errorf("load of an unknown object: %v", err)
			}
		}
	})
}

func TestDeleteAndCheck(t *testing.T) {
	everywhere(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		var invalid []tid.OID
		a := r.open(nil)
		b := r.open(func(c *client.Config) { c.OnInvalidate = func(_ tid.TID, oids []tid.OID) { invalid = oids } })
		t1 := r.commit(a, text(1, 0, "one"), text(2, 0, "two"), text(3, 0, "three"))
		tx := must(a.Begin(ctx, client.BeginOptions{}))(t)
		if err := errors.Join(tx.Delete(ctx, 1, t1), tx.CheckCurrent(ctx, 2, t1), tx.Store(ctx, 3, t1, []byte("THREE")), tx.CheckCurrent(ctx, 3, t1)); err != nil {
			t.Fatal(err)
		}
		t2 := must(tx.Finish(ctx, nil))(t)
		if err := b.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		equal(t, "invalidated", invalid, []tid.OID{3})
		for _, c := range []*client.Client{a, b} {
			_, _, err := c.Load(ctx, 1)
			var oe *client.ObjectError
			if !errors.Is(err, client.ErrDeleted) || !errors.As(err, &oe) || oe.TID != t2 {
				t.Errorf("load of a deleted object: %v", err)
			}
			r.want(c, 2, "two", t1)
			r.want(c, 3, "THREE", t2)
		}
		// A check fails when the object has changed.
		tx = must(a.Begin(ctx, client.BeginOptions{}))(t)
		if err := tx.CheckCurrent(ctx, 3, t1); err != nil {
			t.Fatal(err)
		}
		_, err := tx.Vote(ctx)
		var rc *txn.ReadConflictError
		if !errors.As(err, &rc) || rc.OID != 3 || rc.Committed != t2 || rc.Base != t1 {
			t.Errorf("vote over an outdated read: %v", err)
		}
		tx.Abort(ctx)
		// And nothing is left locked.
		r.commit(b, text(3, t2, "free"))
	})
}

func TestConflicts(t *testing.T) {
	everywhere(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		a := r.open(nil)
		t1 := r.commit(a, text(1, 0, "1"), text(2, 0, "2"))
		t2 := r.commit(a, text(1, t1, "1a"), text(2, t1, "2a"))

		// Without a resolver: an error, after which the object can be stored again.
		tx := must(a.Begin(ctx, client.BeginOptions{}))(t)
		for _, oid := range []tid.OID{1, 2} {
			if err := tx.Store(ctx, oid, t1, []byte("mine")); err != nil {
				t.Fatal(err)
			}
		}
		_, err := tx.Vote(ctx)
		var ce *txn.ConflictError
		if !errors.As(err, &ce) || ce.Committed != t2 || ce.Base != t1 || string(ce.Data) != "mine" {
			t.Fatalf("vote: %v", err)
		}
		list := must(tx.Conflicts(ctx))(t)
		if len(list) != 2 {
			t.Fatalf("conflicts: %v", list)
		}
		for _, err := range list {
			errors.As(err, &ce)
			if err := tx.Store(ctx, ce.OID, ce.Committed, []byte("merged")); err != nil {
				t.Fatal(err)
			}
		}
		equal(t, "resolved", must(tx.Vote(ctx))(t), []tid.OID{1, 2})
		t3 := must(tx.Finish(ctx, nil))(t)
		r.want(a, 1, "merged", t3)

		// With one.
		b := r.open(func(c *client.Config) {
			c.Resolver = func(_ context.Context, x client.Conflict) ([]byte, error) {
				if string(x.Data) == "refuse" {
					return nil, errors.New("no way")
				}
				return fmt.Appendf(nil, "%s over %v", x.Data, x.Committed), nil
			}
		})
		tx = must(b.Begin(ctx, client.BeginOptions{}))(t)
		if err := tx.Store(ctx, 1, t1, []byte("mine")); err != nil {
			t.Fatal(err)
		}
		equal(t, "resolved", must(tx.Vote(ctx))(t), []tid.OID{1})
		t4 := must(tx.Finish(ctx, nil))(t)
		r.want(b, 1, fmt.Sprintf("mine over %v", t3), t4)
		tx = must(b.Begin(ctx, client.BeginOptions{}))(t)
		if err := tx.Store(ctx, 1, t1, []byte("refuse")); err != nil {
			t.Fatal(err)
		}
		if _, err := tx.Vote(ctx); !errors.As(err, &ce) || !strings.Contains(err.Error(), "no way") {
			t.Errorf("vote: %v", err)
		}
		tx.Abort(ctx)
	})
}

// A vote is durable, and yet an abort leaves nothing of it: a client that waits for its
// objects gets them at once, and no client ever sees it.
func TestAbortAfterVote(t *testing.T) {
	everywhere(t, func(t *testing.T, r *rig) {
		a, b := r.open(nil), r.open(nil)
		t1 := r.commit(a, text(1, 0, "1"), text(2, 0, "2"), text(3, 0, "3"))
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		aborted := must(a.Begin(ctx, client.BeginOptions{}))(t)
		if err := errors.Join(aborted.Store(ctx, 1, t1, []byte("no")), aborted.Delete(ctx, 2, t1),
			aborted.CheckCurrent(ctx, 3, t1), aborted.Store(ctx, 4, 0, []byte("no"))); err != nil {
			t.Fatal(err)
		}
		must(aborted.Vote(ctx))(t)
		waiting := must(b.Begin(ctx, client.BeginOptions{}))(t)
		for oid, serial := range map[tid.OID]tid.TID{1: t1, 2: t1, 3: t1, 4: 0} {
			if err := waiting.Store(ctx, oid, serial, []byte("yes")); err != nil {
				t.Fatal(err)
			}
		}
		voted := vote(ctx, waiting)
		if len(voted) > 0 {
			t.Fatalf("voted for objects that another transaction has: %v", <-voted)
		}
		start := time.Now()
		if err := aborted.Abort(ctx); err != nil {
			t.Fatal(err)
		}
		if err := <-voted; err != nil || time.Since(start) > time.Second {
			t.Fatalf("vote %v after the abort: %v", time.Since(start), err)
		}
		for _, c := range []*client.Client{a, b} {
			if err := c.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			if last := must(c.LastTID(ctx))(t); last != t1 {
				t.Errorf("last TID %v, want %v", last, t1)
			}
			r.want(c, 1, "1", t1)
			r.want(c, 2, "2", t1)
			r.want(c, 3, "3", t1)
			if _, _, err := c.Load(ctx, 4); !errors.Is(err, txn.ErrNoSuchObject) {
				t.Errorf("load of what was never committed: %v", err)
			}
		}
		t2 := must(waiting.Finish(ctx, nil))(t)
		if err := a.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		r.want(a, 1, "yes", t2)
		r.want(a, 4, "yes", t2)
		var history []tid.TID
		for _, h := range must(a.Revisions(ctx, 1, 10))(t) {
			history = append(history, h.TID)
		}
		equal(t, "history", history, []tid.TID{t2, t1})
		var all []tid.TID
		for tr, err := range a.Transactions(ctx, 0, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, tr.TID)
		}
		equal(t, "transactions", all, []tid.TID{t1, t2})
	})
}

// Two transactions store the same two objects in opposite orders: the younger one
// gives its lock up, and stores again what the storages hand back.
func TestDeadlock(t *testing.T) {
	everywhere(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		resolver := func(_ context.Context, x client.Conflict) ([]byte, error) {
			return append(slices.Clone(x.Data), '+'), nil
		}
		with := func(c *client.Config) { c.Resolver, c.CacheSize = resolver, 1<<20 }
		a, b := r.open(with), r.open(with)
		t1 := r.commit(a, text(1, 0, "1"), text(2, 0, "2"))
		if err := b.Sync(ctx); err != nil {
			t.Fatal(err)
		}
		older := must(a.Begin(ctx, client.BeginOptions{}))(t)
		younger := must(b.Begin(ctx, client.BeginOptions{}))(t)
		big := strings.Repeat("x", 2<<20) // does not stay in the memory of the client
		if err := younger.Store(ctx, 1, t1, []byte(big)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := errors.Join(older.Store(ctx, 2, t1, []byte("a")), older.Store(ctx, 1, t1, []byte("a"))); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := younger.Store(ctx, 2, t1, []byte("b")); err != nil {
			t.Fatal(err)
		}
		t2 := must(older.Finish(ctx, nil))(t)
		resolved := must(younger.Vote(ctx))(t)
		equal(t, "resolved", slices.Sorted(slices.Values(resolved)), []tid.OID{1, 2})
		t3 := must(younger.Finish(ctx, nil))(t)
		if t3 < t2 {
			t.Errorf("%v committed after %v", t3, t2)
		}
		for _, c := range []*client.Client{a, b} {
			if err := c.Sync(ctx); err != nil {
				t.Fatal(err)
			}
			r.want(c, 1, big+"+", t3)
			r.want(c, 2, "b+", t3)
		}
	})
}

func TestUndo(t *testing.T) {
	everywhere(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		c := r.open(func(c *client.Config) {
			c.Resolver = func(_ context.Context, x client.Conflict) ([]byte, error) {
				if string(x.CommittedData) == "C" {
					return nil, errors.New("too different")
				}
				return fmt.Appendf(nil, "%s with %s", x.CommittedData, x.Data), nil
			}
		})
		undo := func(undone tid.TID) (tid.TID, error) {
			tx := must(c.Begin(ctx, client.BeginOptions{}))(t)
			if _, err := tx.Undo(ctx, undone); err != nil {
				tx.Abort(ctx)
				return 0, err
			}
			return tx.Finish(ctx, nil)
		}
		t1 := r.commit(c, text(1, 0, "A"), text(2, 0, "x"))
		t2 := r.commit(c, text(1, t1, "B"), text(2, t1, "y"))
		t3 := must(undo(t2))(t)
		r.want(c, 1, "A", t3)
		t4 := must(undo(t3))(t) // redo
		r.want(c, 1, "B", t4)
		t5 := r.commit(c, text(1, t4, "M"))
		t6 := must(undo(t4))(t) // merged
		r.want(c, 1, "M with A", t6)
		r.want(c, 2, "x", t6)
		t7 := r.commit(c, text(1, t6, "C"))
		var ue *txn.UndoError
		if _, err := undo(t5); !errors.As(err, &ue) || ue.Failures[0].OID != 1 {
			t.Errorf("undo of what cannot be merged: %v", err)
		}
		// A creation is undone, and that is undone.
		t8 := r.commit(c, text(3, 0, "new"))
		t9 := must(undo(t8))(t)
		if _, _, err := c.Load(ctx, 3); !errors.Is(err, client.ErrDeleted) {
			t.Errorf("load of an undone creation: %v", err)
		}
		t10 := must(undo(t9))(t)
		r.want(c, 3, "new", t10)
		// Several in one transaction.
		tx := must(c.Begin(ctx, client.BeginOptions{}))(t)
		for _, undone := range []tid.TID{t10, t9, t7} {
			if _, err := tx.Undo(ctx, undone); err != nil {
				t.Fatal(err)
			}
		}
		t11 := must(tx.Finish(ctx, nil))(t)
		r.want(c, 1, "M with A", t11)
		r.want(c, 3, "new", t11)
		if _, err := undo(t11 + 1); !errors.Is(err, txn.ErrNotFound) {
			t.Errorf("undo of nothing: %v", err)
		}
		// The links to the data of earlier transactions are kept.
		links := map[tid.TID]tid.TID{}
		for tr, err := range c.Transactions(ctx, 0, tid.Max) {
			if err != nil {
				t.Fatal(err)
			}
			for rec, err := range tr.Records {
				if err != nil {
					t.Fatal(err)
				}
				if rec.OID == 3 {
					links[tr.TID] = rec.DataTID
				}
			}
		}
		if links[t10] != t8 {
			t.Errorf("links of object 3: %v, want %v to lead to %v", links, t10, t8)
		}
	})
}

func TestHistory(t *testing.T) {
	everywhere(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		c := r.open(func(c *client.Config) { c.Level = client.NoCompression })
		var tids []tid.TID
		serial := tid.Zero
		for i := range 50 {
			tx := must(c.Begin(ctx, client.BeginOptions{User: []byte("me"), Description: fmt.Appendf(nil, "%d", i), Extension: []byte("ext")}))(t)
			if err := errors.Join(tx.Store(ctx, 7, serial, fmt.Appendf(nil, "%0*d", i+1, 0)), tx.Store(ctx, tid.OID(100+i), 0, []byte("new"))); err != nil {
				t.Fatal(err)
			}
			serial = must(tx.Finish(ctx, nil))(t)
			tids = append(tids, serial)
		}
		var got []string
		for _, h := range must(c.Revisions(ctx, 7, 3))(t) {
			got = append(got, fmt.Sprintf("%v %s %s %s %d", h.TID, h.User, h.Description, h.Extension, h.Size))
		}
		equal(t, "history", got, []string{
			fmt.Sprintf("%v me 49 ext 50", tids[49]), fmt.Sprintf("%v me 48 ext 49", tids[48]), fmt.Sprintf("%v me 47 ext 48", tids[47]),
		})
		if _, err := c.Revisions(ctx, 8, 3); !errors.Is(err, txn.ErrNotFound) && !errors.Is(err, txn.ErrNoSuchObject) {
			t.Errorf("history of an unknown object: %v", err)
		}
		undoLog := func(first, last int, filter func(*txn.Info) bool) (list []tid.TID) {
			for _, info := range must(txn.Select(c.Backwards(ctx), first, last, filter))(t) {
				list = append(list, info.TID)
			}
			return list
		}
		backwards := slices.Clone(tids)
		slices.Reverse(backwards)
		equal(t, "undoLog(0,20)", undoLog(0, 20, nil), backwards[:20])
		equal(t, "undoLog(5,12)", undoLog(5, 12, nil), backwards[5:12])
		equal(t, "undoLog(45,65)", undoLog(45, 65, nil), backwards[45:])
		equal(t, "undoLog(2,4) of multiples of ten", undoLog(2, 4, func(i *txn.Info) bool {
			return bytes.HasSuffix(i.Description, []byte("0"))
		}), []tid.TID{tids[20], tids[10]})

		var oids []tid.OID
		for oid, err := range c.OIDs(ctx, tids[30], 7) {
			if err != nil {
				t.Fatal(err)
			}
			if oid > 120 {
				break
			}
			oids = append(oids, oid)
		}
		want := []tid.OID{7}
		for oid := tid.OID(100); oid <= 120; oid++ {
			want = append(want, oid)
		}
		equal(t, "oids", oids, want)
		oids = nil
		for oid, err := range c.OIDs(ctx, tid.Max, 0) {
			if err != nil {
				t.Fatal(err)
			}
			oids = append(oids, oid)
		}
		if len(oids) != 51 || !slices.IsSorted(oids) {
			t.Errorf("all oids: %v", oids)
		}

		var iterated []tid.TID
		for tr, err := range c.Transactions(ctx, tids[9], tids[39]) {
			if err != nil {
				t.Fatal(err)
			}
			iterated = append(iterated, tr.TID)
			i := slices.Index(tids, tr.TID)
			if string(tr.Description) != fmt.Sprint(i) || tr.Status != txn.Committed {
				t.Errorf("transaction %v: %+v", tr.TID, tr)
			}
			if i%3 == 0 {
				continue // records that nobody looks at
			}
			for range 2 { // records may be iterated again
				var recs []tid.OID
				for rec, err := range tr.Records {
					if err != nil {
						t.Fatal(err)
					}
					if recs = append(recs, rec.OID); rec.OID == 7 && len(rec.Data) != i+1 || rec.TID != tr.TID {
						t.Errorf("record %+v", rec)
					}
					if i%5 == 0 {
						break
					}
				}
				if want := []tid.OID{7, tid.OID(100 + i)}; i%5 != 0 {
					equal(t, "records", recs, want)
				}
			}
		}
		equal(t, "iterated", iterated, tids[10:40])
	})
}

// Transactions that are committed while others are listed backwards move those, and none is
// listed twice.
func TestBackwardsWhileCommitting(t *testing.T) {
	everywhere(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		c := r.open(nil)
		commit := func() {
			tx := must(c.Begin(ctx, client.BeginOptions{}))(t)
			if err := tx.Store(ctx, must(c.NewOIDs(ctx, 1))(t)[0], 0, []byte("new")); err != nil {
				t.Fatal(err)
			}
			must(tx.Finish(ctx, nil))(t)
		}
		for range 150 {
			commit()
		}
		var last tid.TID = tid.Max
		n := 0
		for info, err := range c.Backwards(ctx) {
			if err != nil {
				t.Fatal(err)
			}
			if info.TID >= last {
				t.Fatalf("%v comes after %v", info.TID, last)
			}
			last = info.TID
			if n++; n%3 == 0 {
				commit()
			}
		}
		if n < 150 {
			t.Errorf("%d of 150 transactions are listed", n)
		}
	})
}

func TestPack(t *testing.T) {
	everywhere(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		c := r.open(nil)
		if id, err := c.Pack(ctx, tid.Zero); id != tid.Zero || err != nil {
			t.Errorf("pack of nothing: %v, %v", id, err)
		}
		t1 := r.commit(c, text(1, 0, "a"), text(2, 0, "x"))
		t2 := r.commit(c, text(1, t1, "b"), text(2, t1, "y"))
		if id, err := c.PackObjects(ctx, t2, nil); id != tid.Zero || err != nil {
			t.Errorf("partial pack of no object: %v, %v", id, err)
		}
		if last := must(c.LastTID(ctx))(t); last != t2 {
			t.Errorf("a pack of nothing was committed as %v", last)
		}
		id := must(c.PackObjects(ctx, tid.Max, []tid.OID{1}))(t)
		if err := c.WaitForPack(ctx, id); err != nil {
			t.Fatal(err)
		}
		if _, err := c.LoadAt(ctx, 1, t1); !errors.Is(err, txn.ErrNotFound) {
			t.Errorf("load of a packed revision: %v", err)
		}
		if r, err := c.LoadAt(ctx, 2, t1); string(r.Data) != "x" || err != nil {
			t.Errorf("load of a revision that was not packed: %q %v", r.Data, err)
		}
		r.want(c, 1, "b", t2)
		id = must(c.Pack(ctx, t2))(t)
		if err := c.WaitForPack(ctx, id); err != nil {
			t.Fatal(err)
		}
		if _, err := c.LoadAt(ctx, 2, t1); !errors.Is(err, txn.ErrNotFound) {
			t.Errorf("load of a packed revision: %v", err)
		}
	})
}

func TestReadOnly(t *testing.T) {
	simulate(t, shapes[0], func(t *testing.T, r *rig) {
		ctx := t.Context()
		a := r.open(nil)
		t1 := r.commit(a, text(1, 0, "a"))
		c := r.open(func(c *client.Config) { c.ReadOnly = true })
		r.want(c, 1, "a", t1)
		if _, err := c.Begin(ctx, client.BeginOptions{}); !errors.Is(err, txn.ErrReadOnly) {
			t.Errorf("begin: %v", err)
		}
		if _, err := c.NewOIDs(ctx, 1); !errors.Is(err, txn.ErrReadOnly) {
			t.Errorf("new oids: %v", err)
		}
		if _, err := c.Pack(ctx, tid.Max); !errors.Is(err, txn.ErrReadOnly) {
			t.Errorf("pack: %v", err)
		}
	})
}

func TestOpenErrors(t *testing.T) {
	simulate(t, shapes[0], func(t *testing.T, r *rig) {
		cfg := client.Config{Cluster: "other", Masters: []proto.Address{masterAddr}, Network: r.net.Host("x")}
		if c, err := client.Open(t.Context(), cfg); err == nil || !strings.Contains(err.Error(), "protocol error") {
			t.Errorf("other cluster: %v %v", c, err)
		}
		cfg.Cluster, cfg.Masters = "test", []proto.Address{{Host: "nowhere", Port: 1}}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		if c, err := client.Open(ctx, cfg); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no master: %v %v", c, err)
		}
		cfg.Masters, cfg.Level = []proto.Address{masterAddr}, 10
		if _, err := client.Open(t.Context(), cfg); err == nil {
			t.Error("level 10 was accepted")
		}
	})
}

func TestNewOIDs(t *testing.T) {
	everywhere(t, func(t *testing.T, r *rig) {
		ctx := t.Context()
		a, b := r.open(nil), r.open(nil)
		seen := map[tid.OID]bool{tid.Root: true}
		for _, n := range []int{1, 99, 1, 250, 3} {
			for _, c := range []*client.Client{a, b} {
				oids := must(c.NewOIDs(ctx, n))(t)
				if len(oids) != n {
					t.Fatalf("%d oids, want %d", len(oids), n)
				}
				for _, oid := range oids {
					if seen[oid] {
						t.Fatalf("%v given out twice", oid)
					}
					seen[oid] = true
				}
			}
		}
	})
}

// Iterations that share a budget stay within it, but for what each needs next, and
// give everything back, wherever they are left. An iteration that has just begun
// does not read much ahead.
func TestReadAheadBudget(t *testing.T) {
	everywhere(t, func(t *testing.T, r *rig) {
		const (
			size    = 100_000
			records = 4
			n       = 40
			walks   = 20
			limit   = 4 << 20
		)
		c := r.open(func(cfg *client.Config) { cfg.Level = client.NoCompression })
		oid := tid.OID(1)
		for range n {
			var stores []store
			for range records {
				stores = append(stores, store{oid, 0, bytes.Repeat([]byte("x"), size)})
				oid++
			}
			r.commit(c, stores...)
		}
		all := txn.NewReadAhead(limit, nil)
		budget := txn.NewReadAhead(limit, all)
		ctx := txn.WithReadAhead(t.Context(), budget)
		type walk struct {
			next func() (*txn.Transaction, error, bool)
			stop func()
			seen int
		}
		var list []*walk
		most := int64(0)
		for i := range walks {
			w := &walk{}
			w.next, w.stop = iter.Pull2(c.Transactions(ctx, 0, tid.Max))
			list = append(list, w)
			if _, err, ok := w.next(); err != nil || !ok {
				t.Fatal(err, ok)
			}
			w.seen++
			synctest.Wait()
			if i == 0 && budget.Used() > 20*size {
				t.Errorf("%d bytes read ahead for the first transaction", budget.Used())
			}
		}
		for range n/2 - 1 {
			for _, w := range list {
				tr, err, ok := w.next()
				if err != nil || !ok {
					t.Fatal(err, ok)
				}
				w.seen++
				for rec, err := range tr.Records {
					if err != nil || len(rec.Data) != size {
						t.Fatalf("%+v, %v", rec, err)
					}
				}
				synctest.Wait()
				most = max(most, budget.Used())
			}
		}
		// Guesses that were too small, and one record for each.
		if slack := int64(walks * 2 * size); most > limit+slack {
			t.Errorf("%d bytes were read ahead, the limit is %d", most, limit)
		}
		if most < limit/2 {
			t.Errorf("%d bytes were read ahead, though there is room for %d", most, limit)
		}
		for i, w := range list {
			if i%2 == 0 { // the others are left where they are
				for {
					_, err, ok := w.next()
					if err != nil {
						t.Fatal(err)
					}
					if !ok {
						break
					}
					w.seen++
				}
				if w.seen != n {
					t.Errorf("iteration %d has seen %d transactions of %d", i, w.seen, n)
				}
			}
			w.stop()
		}
		synctest.Wait()
		if budget.Used() != 0 || all.Used() != 0 {
			t.Errorf("%d and %d bytes are still in use", budget.Used(), all.Used())
		}
	})
}
