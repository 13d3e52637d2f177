package storage

import (
	"context"
	"fmt"
	"runtime/debug"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// localDatabase is what the transactions in progress need of a backend.
type localDatabase struct {
	backend.Backend
	ctx context.Context // of the node
}

// LastObjectTID is answered from what is local: see [backend.Reading].
func (d localDatabase) LastObjectTID(oid tid.OID) (proto.Opt[tid.TID], error) {
	return d.Backend.LastObjectTID(d.ctx, oid)
}

// prepare lets a database of which not all is local learn what a request will be
// checked against. It runs on the goroutine of the connection.
func (n *Node) prepare(p proto.Packet) {
	switch p := p.(type) {
	case *proto.AskStoreObject:
		n.remote.Prepare(n.ctx, p.OID)
	case *proto.AskCheckCurrentSerial:
		n.remote.Prepare(n.ctx, p.OID)
	}
}

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
		err := r.Run(f.ctx)
		switch {
		case f.ctx.Err() != nil:
			f.n.log.Info("the work of the database is interrupted", "state", r.Progress().State, "tid", r.Progress().Last, "err", err)
		case err != nil:
			f.n.log.Error("the work of the database has failed: it is begun again when the node becomes operational", "state", r.Progress().State, "tid", r.Progress().Last, "err", err)
		default:
			f.n.log.Info("the work of the database is done", "state", r.Progress().State, "tid", r.Progress().Last)
		}
	})
}
