package storage

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// localDatabase is what the transactions in progress need of a backend.
type localDatabase struct {
	backend.Backend
	ctx context.Context // of the node
}

// LastObjectTID implements [pending.Database]. It is answered from what is local.
func (d localDatabase) LastObjectTID(oid tid.OID) (proto.Opt[tid.TID], error) {
	return d.Backend.LastObjectTID(d.ctx, oid)
}

// Deleted implements [pending.Database]. Where not all is local, RecordBefore may wait: there
// no revision is taken for a deletion.
func (d localDatabase) Deleted(oid tid.OID, t tid.TID) (bool, error) {
	if _, remote := d.Backend.(backend.Preparing); remote {
		return false, nil
	}
	last, deleted, err := d.Backend.RecordBefore(d.ctx, oid, t+1)
	return deleted && last == t, err
}

// maxPreparing is how many objects are prepared at the same time.
const maxPreparing = 64

// prepare lets a database of which not all is local learn the last revision of an object,
// for which requests wait.
func (f *feeder) prepare(oid tid.OID) {
	f.wg.Go(func() {
		select {
		case f.preparing <- struct{}{}:
			defer func() { <-f.preparing }()
		case <-f.ctx.Done():
			return
		}
		db, ok := f.n.db.(backend.Preparing)
		if !ok {
			f.n.fail(fmt.Errorf("last revision of object %v: %w", oid, backend.ErrNotPrepared))
			return
		}
		err := db.Prepare(f.ctx, oid)
		if f.ctx.Err() != nil {
			return // the operation has ended
		}
		if err != nil {
			f.n.log.Error("the last revision of an object cannot be learned: the stores that wait for it are taken without check, and need another replica that checks them", "oid", oid, "err", err)
		}
		f.post(func() error {
			if f.n.session != f.s {
				return nil
			}
			return f.s.txns.Prepared(oid, err == nil)
		})
	})
}

// maxRemoteReads is how many reads of a connection are under way in a database of which not all
// is local.
const maxRemoteReads = 64

// remoteReads are those of a connection.
type remoteReads struct {
	slots chan struct{}
	wg    sync.WaitGroup // owned by the goroutine of the connection
}

// readRemote answers a read on a goroutine of its own: while it waits, other packets of the
// connection are processed, and its end is noticed.
func (n *Node) readRemote(p *peer, a *access, ev link.Event) {
	ctx, r := ev.Conn.Context(), &p.remote
	select {
	case r.slots <- struct{}{}:
	case <-ctx.Done():
		return
	}
	r.wg.Go(func() {
		defer func() { <-r.slots }()
		n.read(ctx, a, ev.Conn, ev.ID, ev.Packet, true)
	})
	n.throttle(ev.Conn)
}

// answering returns the context of an answer that is read on another goroutine: it ends with the
// connection that asks, and with the operation.
func (f *feeder) answering(conn *link.Conn) (context.Context, context.CancelFunc) {
	return both(f.ctx, conn.Context())
}

// both returns a context that ends when either of two ends.
func both(a, b context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(a)
	stop := context.AfterFunc(b, cancel)
	return ctx, func() {
		stop()
		cancel()
	}
}

// endIfBroken ends the node, and says so, if nothing can be written any more, because the work of the database has met
// what ended the use of the tables: there may be no other write that would find out.
func (n *Node) endIfBroken() bool {
	err := n.db.Commit()
	if err != nil {
		n.fail(fmt.Errorf("the database is of no use after an error in its own work: %w", err))
	}
	return err != nil
}

// workPause is how long after its failure the work of a database is begun again.
const workPause = 10 * time.Second

// runDatabase lets a database with work of its own do it, until the operation ends.
func (f *feeder) runDatabase() {
	r, ok := f.n.db.(backend.Runner)
	if !ok {
		return
	}
	f.wg.Go(func() {
		defer func() {
			if p := recover(); p != nil {
				f.n.fail(fmt.Errorf("internal error in the work of the database: %v\n%s", p, debug.Stack()))
			}
		}()
		for {
			err := r.Run(f.ctx)
			switch {
			case f.ctx.Err() != nil:
				f.n.log.Info("the work of the database is interrupted", "state", r.Progress().State, "tid", r.Progress().Last, "err", err)
				return
			case err == nil:
				f.n.log.Info("the work of the database is done", "state", r.Progress().State, "tid", r.Progress().Last)
				// What it has refused meanwhile is possible from now on.
				f.post(func() error {
					if f.n.session != f.s {
						return nil
					}
					return f.s.worker.begin()
				})
				return
			}
			f.n.log.Error("the work of the database has failed", "state", r.Progress().State, "tid", r.Progress().Last, "err", err)
			if f.n.endIfBroken() {
				return
			}
			f.n.log.Info("the work of the database will be begun again", "in", workPause)
			select {
			case <-time.After(workPause):
			case <-f.ctx.Done():
			}
		}
	})
}
