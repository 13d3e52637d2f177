package clustertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// replicas is a cluster of which storages go away and come back. At the end its
// replicas are compared record by record.
type replicas struct {
	*simulation
	fetch  int // records replicated at a time
	habits []habit
	dbs    []*replicaDB // that are open

	gone []tid.OID // objects that were deleted and packed
}

// habit is how a storage differs from ours.
type habit struct {
	dropsDeletions bool // with the objects, whatever other replicas know, as the Python implementation
	believes       bool // that it needs nothing but what follows its last transaction, as the Python implementation
}

var python = habit{dropsDeletions: true, believes: true}

// replicaDB is the database of a storage.
type replicaDB struct {
	backend.Backend
	habit
	dead atomic.Bool // nothing reaches the disk
}

func (d *replicaDB) Commit() error {
	if d.dead.Load() {
		return nil
	}
	return d.Backend.Commit()
}

func (d *replicaDB) CommitVotes() error { return d.Commit() }

func (d *replicaDB) Close() error {
	if d.dead.Load() {
		return nil
	}
	return d.Backend.Close()
}

func (d *replicaDB) Pack(partition int, t tid.TID, oids []tid.OID, keep tid.TID, after proto.Opt[tid.OID], n int) (proto.Opt[tid.OID], int, error) {
	if d.dropsDeletions {
		keep = tid.Max
	}
	return d.Backend.Pack(partition, t, oids, keep, after, n)
}

// outdated returns the own cells that are not readable.
func (d *replicaDB) outdated() (map[int]bool, error) {
	cfg, err := d.Backend.Config()
	if err != nil {
		return nil, err
	}
	cells, err := d.Backend.Cells()
	list := map[int]bool{}
	for _, c := range cells {
		if c.ID == cfg.ID && !c.State.Readable() {
			list[c.Partition] = true
		}
	}
	return list, err
}

func (d *replicaDB) PackedIDs(upToDateOnly bool) (map[int]tid.TID, error) {
	ids, err := d.Backend.PackedIDs(upToDateOnly)
	if err != nil || !d.believes || upToDateOnly {
		return ids, err
	}
	outdated, err := d.outdated()
	for p := range outdated {
		ids[p] = tid.Max // no order was missed
	}
	return ids, err
}

func (d *replicaDB) RecordBefore(ctx context.Context, oid tid.OID, before tid.TID) (tid.TID, bool, error) {
	t, deleted, err := d.Backend.RecordBefore(context.Background(), oid, before)
	return t, deleted && !d.believes, err
}

// simulateReplicas runs test on a cluster with the plan's shape.
func simulateReplicas(t *testing.T, plan Plan, fetch int, log *slog.Logger, habits []habit, test func(r *replicas)) {
	synctest.Test(t, func(t *testing.T) {
		r := &replicas{simulation: newSimulation(t, plan, log), fetch: fetch, habits: habits}
		r.dbs = make([]*replicaDB, plan.Storages)
		r.adapt = func(i int, cfg *storage.Config) {
			db := &replicaDB{Backend: cfg.Backend}
			if i < len(habits) {
				db.habit = habits[i]
			}
			r.mu.Lock()
			r.dbs[i] = db
			r.mu.Unlock()
			cfg.Backend, cfg.FetchCount = db, r.fetch
		}
		defer r.close()
		if r.start() {
			test(r)
		}
	})
}

// open connects a client without cache: other clients are not told of deletions.
func (r *replicas) open(ctx context.Context, i int) (*client.Client, error) {
	return client.Open(ctx, client.Config{
		Cluster: "sim", Masters: r.masters(), Network: r.net.Host(clientHost(i)),
		Dialer: &link.Dialer{}, Log: r.log.With("host", fmt.Sprintf("client%d", i+1)), CacheSize: 1,
	})
}

func (r *replicas) db(i int) *replicaDB {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.dbs[i]
}

// away ends a storage. If it is killed, it loses what it has not committed yet, but
// does not fail for that.
func (r *replicas) away(i int, kill bool) {
	host := storageHost(i)
	db := r.db(i)
	if kill {
		db.dead.Store(true)
		r.net.Crash(host)
	}
	r.mu.Lock()
	stop := r.nodes[host]
	r.mu.Unlock()
	stop()
	if db.dead.Load() {
		if err := r.simulation.dbs[i].Crash(); err != nil {
			r.t.Errorf("crashing database %d: %v", i, err)
		}
	} else if err := db.Close(); err != nil {
		r.t.Errorf("closing database %d: %v", i, err)
	}
}

func (r *replicas) back(i int) { r.startStorage(i, r.simulation.dbs[i]) }

// upToDate waits until all cells of all storages are readable.
func (r *replicas) upToDate() {
	for begin := time.Now(); r.ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
		missing := 0
		for i := range r.dbs {
			cells, err := r.db(i).Backend.Cells()
			if err != nil {
				missing++ // it ended
			}
			for _, c := range cells {
				if !c.State.Readable() {
					missing++
				}
			}
		}
		if missing == 0 {
			return
		}
		if time.Since(begin) > 20*time.Minute {
			r.t.Errorf("%+v: replicas are not complete: %d cells", r.plan, missing)
			return
		}
	}
}

// equal compares replicas record by record, when nothing is left to be done. No
// object that is gone may have a record anywhere.
func (r *replicas) equal() {
	r.upToDate()
	time.Sleep(5 * time.Minute) // packs end, deletions that they have kept are dropped
	if r.ctx.Err() != nil {
		return
	}
	drops := slices.ContainsFunc(r.habits, func(h habit) bool { return h.dropsDeletions })
	for p := range r.plan.Partitions {
		var first map[string]string
		for i := range r.dbs {
			db := r.db(i)
			cfg, err := db.Config()
			if err != nil {
				r.t.Errorf("database %d: %v", i, err)
				return
			}
			cells, err := db.Cells()
			if err != nil {
				r.t.Errorf("database %d: %v", i, err)
				return
			}
			if !slices.ContainsFunc(cells, func(c backend.Cell) bool {
				return c.Partition == p && c.ID == cfg.ID && c.State.Readable()
			}) {
				continue
			}
			records, err := contents(db.Backend, p, drops)
			if err != nil {
				r.t.Errorf("database %d: %v", i, err)
				return
			}
			if first == nil {
				first = records
				continue
			}
			for k, v := range records {
				if w, ok := first[k]; !ok {
					r.t.Errorf("%+v: partition %d: storage %d has %s, others have not", r.plan, p, i+1, k)
				} else if v != w {
					r.t.Errorf("%+v: partition %d: storage %d has %s as %q, others as %q", r.plan, p, i+1, k, v, w)
				}
			}
			for k := range first {
				if _, ok := records[k]; !ok {
					r.t.Errorf("%+v: partition %d: storage %d lacks %s", r.plan, p, i+1, k)
				}
			}
		}
	}
	for _, oid := range r.gone {
		for i := range r.dbs {
			if t, deleted, err := r.db(i).Backend.RecordBefore(context.Background(), oid, tid.Max); err != nil || t != tid.Zero && !(deleted && drops) {
				r.t.Errorf("%+v: %v was deleted and packed, storage %d has it at %v (%v)", r.plan, oid, i+1, t, err)
			}
		}
	}
}

// risen returns the deleted objects that a storage would load.
func (r *replicas) risen(i int) (list []tid.OID) {
	for _, oid := range r.gone {
		if t, deleted, err := r.db(i).Backend.RecordBefore(context.Background(), oid, tid.Max); err == nil && t != tid.Zero && !deleted {
			list = append(list, oid)
		}
	}
	return list
}

// contents lists what a database has of a partition. If some storages drop deletions at
// once, they may receive them again from those that keep them: a deletion of nothing may
// stay there until the next pack.
func contents(db backend.Backend, p int, drops bool) (map[string]string, error) {
	list := map[string]string{}
	tids, err := db.TIDsFrom(context.Background(), p, 0, tid.Max, 0)
	if err != nil {
		return nil, err
	}
	for _, t := range tids {
		m, _, err := db.FetchTransaction(context.Background(), t)
		if err != nil {
			return nil, err
		}
		list[fmt.Sprint("transaction ", t)] = fmt.Sprintf("%q %v %v", m.Description, m.TTID, m.OIDs)
	}
	keys, err := db.RecordsFrom(context.Background(), p, 0, tid.Max, 0, 1<<30)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		o, err := db.FetchObject(context.Background(), k.OID, k.TID)
		if err != nil {
			return nil, err
		}
		if first, _, err := db.RecordBefore(context.Background(), k.OID, k.TID); err != nil {
			return nil, err
		} else if drops && first == tid.Zero && o.Checksum == proto.ZeroHash {
			continue
		}
		list[fmt.Sprintf("object %v at %v", k.OID, k.TID)] = string(o.Data)
	}
	return list, nil
}

// write commits one transaction that writes or deletes objects, whatever they are.
func (r *replicas) write(ctx context.Context, cl *client.Client, mark string, deletion bool, oids ...tid.OID) tid.TID {
	last, err := cl.LastTID(ctx)
	if err != nil {
		r.t.Errorf("%s: %v", mark, err)
		return 0
	}
	a := r.attempt(mark)
	for _, oid := range oids {
		read, err := r.read(ctx, cl, oid, last+1)
		if err != nil {
			r.t.Errorf("%s: %v", mark, err)
			return 0
		}
		w := Write{OID: oid, Base: read.Serial, Data: fmt.Appendf(nil, "%s %v", mark, oid)}
		if deletion {
			w.Data = nil
		}
		a.Writes = append(a.Writes, w)
	}
	r.commit(ctx, cl, &a)
	r.record(a)
	if a.Outcome != Committed {
		r.t.Errorf("%s: %v", mark, a.Outcome)
	}
	return a.TID
}

// packNow orders a pack up to the last transaction, of some objects or of all.
func (r *replicas) packNow(ctx context.Context, cl *client.Client, oids ...tid.OID) {
	last, err := cl.LastTID(ctx)
	if err != nil {
		r.t.Errorf("pack: %v", err)
		return
	}
	r.mu.Lock()
	r.seen.PackedUpTo = max(r.seen.PackedUpTo, last)
	r.mu.Unlock()
	if len(oids) > 0 {
		_, err = cl.PackObjects(ctx, last, oids)
	} else {
		_, err = cl.Pack(ctx, last)
	}
	if err != nil {
		r.t.Errorf("pack: %v", err)
	}
}

// absence is a way in which a replica misses a deletion, or does not.
type absence struct {
	name string
	// rises tells whether an object rises on a storage of the Python implementation
	// beside another one.
	rises bool
	run   func(r *replicas, cl *client.Client, x []tid.OID)
}

// slow lets no more than one chunk arrive at a time.
func (r *replicas) hold(on bool) {
	if on {
		r.net.Hold(storageHost(0), storageHost(1))
	} else {
		r.net.Release(storageHost(0), storageHost(1))
	}
}

func second() { time.Sleep(time.Second) }

// The second storage misses something in each of these; objects 0 to 3 are deleted.
var absences = []absence{
	{"stopped", true, func(r *replicas, cl *client.Client, x []tid.OID) {
		r.away(1, false)
		second()
		r.write(r.ctx, cl, "delete", true, x[:4]...)
		r.packNow(r.ctx, cl)
		second()
		r.back(1)
	}},
	{"killed", true, func(r *replicas, cl *client.Client, x []tid.OID) {
		r.away(1, true)
		second()
		r.write(r.ctx, cl, "delete", true, x[:4]...)
		r.packNow(r.ctx, cl)
		second()
		r.back(1)
	}},
	{"long ago", true, func(r *replicas, cl *client.Client, x []tid.OID) {
		r.away(1, false)
		second()
		r.write(r.ctx, cl, "delete", true, x[:4]...)
		time.Sleep(10 * time.Minute)
		r.packNow(r.ctx, cl)
		time.Sleep(10 * time.Minute)
		r.write(r.ctx, cl, "later", false, x[4:]...)
		r.back(1)
	}},
	{"partial pack", true, func(r *replicas, cl *client.Client, x []tid.OID) {
		r.away(1, false)
		second()
		r.write(r.ctx, cl, "delete", true, x[:4]...)
		r.packNow(r.ctx, cl, x[:4]...)
		second()
		r.back(1)
	}},
	{"two packs", true, func(r *replicas, cl *client.Client, x []tid.OID) {
		r.away(1, false)
		second()
		r.write(r.ctx, cl, "delete", true, x[:2]...)
		r.packNow(r.ctx, cl, x[:2]...)
		second()
		r.write(r.ctx, cl, "delete more", true, x[2:4]...)
		r.packNow(r.ctx, cl)
		second()
		r.back(1)
	}},
	{"created again", false, func(r *replicas, cl *client.Client, x []tid.OID) {
		r.away(1, false)
		second()
		r.write(r.ctx, cl, "delete", true, x[:4]...)
		r.packNow(r.ctx, cl)
		second()
		for _, oid := range x[:4] {
			r.write(r.ctx, cl, fmt.Sprint("again ", oid), false, oid)
		}
		r.gone = nil
		r.back(1)
	}},
	{"creation undone", true, func(r *replicas, cl *client.Client, x []tid.OID) {
		oids, err := cl.NewOIDs(r.ctx, 4)
		if err != nil {
			r.t.Error(err)
			return
		}
		created := r.write(r.ctx, cl, "create", false, oids...)
		second()
		r.away(1, false)
		second()
		a := r.attempt("undo")
		a.Undoes = created
		r.transact(r.ctx, cl, &a, func(t *client.Txn) error {
			_, err := t.Undo(r.ctx, created)
			return err
		})
		r.record(a)
		r.packNow(r.ctx, cl)
		second()
		r.gone = oids
		r.back(1)
	}},
	{"pack while replicating", true, func(r *replicas, cl *client.Client, x []tid.OID) {
		r.away(1, false)
		second()
		for i := range 30 {
			r.write(r.ctx, cl, fmt.Sprint("before ", i), false, x...)
		}
		r.write(r.ctx, cl, "delete", true, x[:4]...)
		r.back(1)
		// Some chunks are there, not yet those with the deletions.
		for cells := 0; cells == 0 && r.ctx.Err() == nil; time.Sleep(time.Millisecond) {
			list, err := r.db(1).Backend.Cells()
			if err != nil {
				r.t.Error(err)
				return
			}
			for _, c := range list {
				if t, _, _ := r.db(1).Backend.RecordBefore(context.Background(), x[c.Partition], tid.Max); c.State == proto.OutOfDate && t > c.TID && c.TID != 0 {
					cells++
				}
			}
		}
		r.hold(true)
		r.packNow(r.ctx, cl)
		second()
		r.hold(false)
	}},
	{"deleted while replicating", true, func(r *replicas, cl *client.Client, x []tid.OID) {
		r.away(1, false)
		second()
		for i := range 30 {
			r.write(r.ctx, cl, fmt.Sprint("before ", i), false, x...)
		}
		r.hold(true)
		r.back(1)
		second()
		// The replica hears of the deletion, but not of what was before.
		r.write(r.ctx, cl, "delete", true, x[:4]...)
		second()
		r.away(1, true)
		r.hold(false)
		second()
		r.packNow(r.ctx, cl)
		second()
		r.back(1)
	}},
	{"order begun before the loss was known", true, func(r *replicas, cl *client.Client, x []tid.OID) {
		r.db(1).dead.Store(true) // its disk has gone, but it still answers
		r.write(r.ctx, cl, "delete", true, x[:4]...)
		r.packNow(r.ctx, cl)
		second()
		r.away(1, true)
		second()
		r.back(1)
	}},
	{"pack after the return", false, func(r *replicas, cl *client.Client, x []tid.OID) {
		r.away(1, false)
		second()
		r.write(r.ctx, cl, "delete", true, x[:4]...)
		r.back(1)
		r.upToDate()
		r.packNow(r.ctx, cl)
	}},
	{"deletion before the loss", false, func(r *replicas, cl *client.Client, x []tid.OID) {
		r.write(r.ctx, cl, "delete", true, x[:4]...)
		second()
		r.away(1, false)
		second()
		r.packNow(r.ctx, cl)
		second()
		r.back(1)
	}},
	{"empty replica", false, func(r *replicas, cl *client.Client, x []tid.OID) {
		r.away(1, false)
		second()
		r.write(r.ctx, cl, "delete", true, x[:4]...)
		r.packNow(r.ctx, cl)
		second()
		db, err := r.simulation.dbs[1].Open()
		if err != nil {
			r.t.Error(err)
			return
		}
		cfg, err := db.Config()
		if err = errors.Join(err, db.Erase(), db.SetName(cfg.Name), db.SetID(cfg.ID), db.Close()); err != nil {
			r.t.Error(err)
			return
		}
		r.back(1)
	}},
	{"again and again", true, func(r *replicas, cl *client.Client, x []tid.OID) {
		// Killed and back again and again, while it replicates and while packs are executed.
		for i := range 8 {
			r.away(1, i%2 == 0)
			r.write(r.ctx, cl, fmt.Sprint("before ", i), false, x...)
			if i == 3 {
				r.write(r.ctx, cl, "delete", true, x[:4]...)
				x = x[4:]
			}
			if i%2 == 1 {
				r.packNow(r.ctx, cl)
			}
			r.back(1)
			time.Sleep(time.Duration(i*i*20) * time.Millisecond)
		}
	}},
}

// What was deleted and packed while a replica was away is deleted there, too, when it is
// back, whichever of two replicas is of the Python implementation. Between two of those it rises.
func TestDeletedObjectsDoNotRise(t *testing.T) {
	for _, a := range absences {
		for name, habits := range map[string][]habit{
			"ours": nil, "from a Python source": {python}, "Python replica": {{}, python}, "Python": {python, python},
		} {
			t.Run(a.name+"/"+name, func(t *testing.T) {
				plan := Plan{Seed: 1, Storages: 2, Partitions: 2, Replicas: 1, Clients: 1, Objects: 8, Delay: 5 * time.Millisecond}
				simulateReplicas(t, plan, 10, nil, habits, func(r *replicas) {
					cl, err := r.open(r.ctx, 0)
					if err != nil {
						t.Fatal(err)
					}
					closed := sync.OnceFunc(func() { cl.Close() })
					defer closed()
					second()
					r.gone = slices.Clone(r.oids[:4])
					a.run(r, cl, r.oids)
					if name != "Python" {
						r.equal()
						closed()
						r.compare()
						return
					}
					r.upToDate()
					time.Sleep(5 * time.Minute)
					if got := len(r.risen(1)) > 0; got != a.rises {
						t.Errorf("risen: %v", r.risen(1))
					}
				})
			})
		}
	}
}
