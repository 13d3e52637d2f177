package storage

import (
	"context"
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/pending"
	"github.com/neozodb/neo/cluster/tid"
)

// maxList bounds the answers that are lists, in items.
const maxList = 1 << 20

// access is what the loads of a client may see, and must wait for.
type access struct {
	txns     *pending.Manager
	readOnly bool // of a backup cluster: nothing after the backup TID
}

// limit returns the greatest TID that may be seen by a request that names none.
func (n *Node) limit(a *access) tid.TID {
	if a.readOnly {
		if b := n.backupTID.Load(); b != nil {
			return *b
		}
	}
	return tid.Max
}

// limitOf returns the greatest TID up to which a client that names one sees a partition:
// where its cell is. What the master tells clients may be further than all cells of this
// node are, if it has just told the others that nothing has changed in them.
func (n *Node) limitOf(a *access, partition int) tid.TID {
	if a.readOnly && n.backupTID.Load() != nil {
		if l := n.reached.Load(); l != nil && partition >= 0 && partition < len(*l) {
			return (*l)[partition]
		}
	}
	return n.limit(a)
}

// limitOfLoad is limit or limitOf for a load.
func (n *Node) limitOfLoad(a *access, p *proto.AskObject) tid.TID {
	if !p.At.OK && !p.Before.OK {
		return n.limit(a)
	}
	return n.limitOf(a, p.OID.Partition(n.partitions()))
}

type readResult int

const (
	notRead readResult = iota // another kind of packet
	served
	mustWait // until a commit is completed
)

// needs tells what a read must not overlap with: a commit of an object, or of
// transactions up to a TID, that is being completed. Zero values: none.
//
// A client that was told of a commit may ask for it before this node is told to
// complete it, hence also for transactions and the undo log.
func (n *Node) needs(a *access, p proto.Packet) (oid proto.Opt[tid.OID], last tid.TID) {
	switch p := p.(type) {
	case *proto.AskObject:
		return proto.Some(p.OID), 0
	case *proto.AskObjectHistory:
		return proto.Some(p.OID), 0
	case *proto.AskTransactionInformation:
		last = p.TID
	case *proto.AskTIDs:
		last = tid.Max
	case *proto.AskTIDsFrom:
		last = p.Max
	case *proto.AskOIDsFrom:
		last = p.At
	}
	return oid, min(last, n.limit(a))
}

// mustWaitFor reports whether a read must wait.
func (n *Node) mustWaitFor(a *access, p proto.Packet) bool {
	oid, last := n.needs(a, p)
	if oid.OK {
		return a.txns.ObjectLocked(oid.V)
	}
	return last != tid.Zero && a.txns.TransactionLocked(last)
}

// read answers a request that only needs committed data. waited: it need not
// wait any more. It runs on any goroutine but that of Run, until ctx ends.
func (n *Node) read(ctx context.Context, a *access, conn *link.Conn, id uint32, p proto.Packet, waited bool) readResult {
	if !waited && n.mustWaitFor(a, p) {
		return mustWait
	}
	var (
		answer proto.Packet
		what   tid.OID
		err    error
	)
	switch p := p.(type) {
	case *proto.AskObject:
		n.vitals.loads.Add(1)
		what = p.OID
		answer, err = n.object(ctx, n.limitOfLoad(a, p), p)
	case *proto.AskObjectHistory:
		what = p.OID
		answer, err = n.history(ctx, n.limit(a), p)
	case *proto.AskTransactionInformation:
		answer, err = n.transaction(ctx, n.limitOf(a, p.TID.Partition(n.partitions())), p)
	case *proto.AskTIDs:
		answer, err = n.tids(ctx, n.limit(a), p)
	case *proto.AskTIDsFrom:
		answer, err = n.tidsFrom(ctx, n.limitOf(a, p.Partition), p)
	case *proto.AskOIDsFrom:
		answer, err = n.oidsFrom(ctx, n.limitOf(a, p.Partition), p)
	default:
		return notRead
	}
	if err == nil {
		conn.Answer(id, answer)
	} else {
		n.finishRead(ctx, conn, id, nil, what, err)
	}
	return served
}

// isRead reports whether read answers a request.
func isRead(p proto.Packet) bool {
	switch p.(type) {
	case *proto.AskObject, *proto.AskObjectHistory, *proto.AskTransactionInformation, *proto.AskTIDs, *proto.AskTIDsFrom, *proto.AskOIDsFrom:
		return true
	}
	return false
}

// finishRead sends an answer, or the error that goes for it. ctx is that of the read: what fails
// after its end is not answered.
func (n *Node) finishRead(ctx context.Context, conn *link.Conn, id uint32, p proto.Packet, what fmt.Stringer, err error) {
	if err == nil {
		conn.Answer(id, p)
		return
	}
	e, ok := errors.AsType[*proto.Error](err)
	if !ok {
		if e = wireError(err, what); e == nil {
			if ctx.Err() == nil {
				n.fail(err)
			}
			return
		}
		if _, corrupt := errors.AsType[*backend.CorruptError](err); corrupt {
			n.counts.damaged.Add(1)
			n.log.Error("stored data are damaged", "err", err)
		}
	}
	answer(conn, id, e)
}

// partitions returns how many there are.
func (n *Node) partitions() int {
	if r := n.readable.Load(); r != nil {
		return max(len(*r), 1)
	}
	return 1
}

// isReadable reports whether this node has a readable cell of a partition.
func (n *Node) isReadable(partition int) bool {
	r := n.readable.Load()
	return r != nil && partition >= 0 && partition < len(*r) && (*r)[partition]
}

// checkReadable gives the error of a partition that is not readable.
func (n *Node) checkReadable(partition int) error {
	if !n.isReadable(partition) {
		return backend.ErrNonReadable
	}
	return nil
}

func (n *Node) object(ctx context.Context, limit tid.TID, p *proto.AskObject) (proto.Packet, error) {
	if p.OID > tid.MaxOID {
		return nil, backend.ErrNoSuchObject
	}
	at, before := when(limit, p)
	o, err := n.db.GetObject(ctx, p.OID, at, before)
	if err != nil {
		return nil, err
	}
	n.counts.loaded.Add(uint64(len(o.Data)))
	return answerObject(limit, p.OID, &o), nil
}

// when returns which revision a load wants that may see nothing after limit.
func when(limit tid.TID, p *proto.AskObject) (at, before proto.Opt[tid.TID]) {
	at, before = p.At, p.Before
	switch {
	case at.OK:
		if at.V > limit {
			at.V = tid.Zero // the object exists, or not, but not at that time
		}
	case before.OK:
		before.V = min(before.V, limit+1, tid.Max)
	case limit < tid.Max:
		before = proto.Some(limit + 1)
	}
	return at, before
}

func answerObject(limit tid.TID, oid tid.OID, o *backend.Object) *proto.AnswerObject {
	answer := &proto.AnswerObject{OID: oid, Serial: o.Serial, ObjectData: o.ObjectData}
	if o.Next != tid.Zero && o.Next <= limit {
		answer.NextSerial = proto.Some(o.Next)
	}
	if o.DataSerial != tid.Zero {
		answer.DataSerial = proto.Some(o.DataSerial)
	}
	return answer
}

func (n *Node) history(ctx context.Context, limit tid.TID, p *proto.AskObjectHistory) (proto.Packet, error) {
	if p.First < 0 || p.First >= p.Last {
		return nil, proto.Errorf(proto.ProtocolError, "history from %d to %d", p.First, p.Last)
	}
	if p.OID > tid.MaxOID {
		return nil, backend.ErrNotFound
	}
	skip := 0
	if limit < tid.Max {
		for {
			revs, err := n.db.History(ctx, p.OID, skip, 100)
			if err != nil {
				return nil, err
			}
			hidden := 0
			for hidden < len(revs) && revs[hidden].TID > limit {
				hidden++
			}
			skip += hidden
			if hidden < 100 {
				break
			}
		}
	}
	revs, err := n.db.History(ctx, p.OID, skip+p.First, min(p.Last-p.First, maxList))
	if err != nil {
		return nil, err
	}
	if len(revs) == 0 {
		return nil, backend.ErrNotFound
	}
	return &proto.AnswerObjectHistory{OID: p.OID, History: revs}, nil
}

func (n *Node) transaction(ctx context.Context, limit tid.TID, p *proto.AskTransactionInformation) (proto.Packet, error) {
	notFound := proto.Errorf(proto.TIDNotFound, "%v", p.TID)
	if p.TID > limit {
		return nil, notFound
	}
	m, err := n.db.Transaction(ctx, p.TID)
	if errors.Is(err, backend.ErrNotFound) {
		return nil, notFound
	}
	if err != nil {
		return nil, err
	}
	return &proto.AnswerTransactionInformation{TID: p.TID, User: m.User, Description: m.Description,
		Extension: m.Extension, Packed: m.Packed, OIDs: m.OIDs}, nil
}

func (n *Node) tids(ctx context.Context, limit tid.TID, p *proto.AskTIDs) (proto.Packet, error) {
	if p.First < 0 || p.First >= p.Last {
		return nil, proto.Errorf(proto.ProtocolError, "transactions from %d to %d", p.First, p.Last)
	}
	var partitions []int
	if p.Partition != proto.InvalidPartition {
		if err := n.checkReadable(int(p.Partition)); err != nil {
			return nil, err
		}
		partitions = []int{int(p.Partition)}
	} else if r := n.readable.Load(); r != nil {
		for i, ok := range *r {
			if ok {
				partitions = append(partitions, i)
			}
		}
	}
	if len(partitions) == 0 {
		return &proto.AnswerTIDs{}, nil
	}
	list, err := n.db.TIDs(ctx, partitions, p.First, min(p.Last-p.First, maxList))
	if err != nil {
		return nil, err
	}
	for len(list) > 0 && list[0] > limit {
		list = list[1:]
	}
	return &proto.AnswerTIDs{TIDs: list}, nil
}

func (n *Node) tidsFrom(ctx context.Context, limit tid.TID, p *proto.AskTIDsFrom) (proto.Packet, error) {
	if p.Length < 1 {
		return nil, proto.Errorf(proto.ProtocolError, "%d transactions", p.Length)
	}
	last := min(p.Max, limit)
	var list []tid.TID
	if p.Min <= last {
		if err := n.checkReadable(p.Partition); err != nil {
			return nil, err
		}
		var err error
		if list, err = n.db.TIDsFrom(ctx, p.Partition, p.Min, last, min(p.Length, maxList)); err != nil {
			return nil, err
		}
	}
	// The partition may have been dropped meanwhile.
	if err := n.checkReadable(p.Partition); err != nil {
		return nil, err
	}
	return &proto.AnswerTIDsFrom{TIDs: list}, nil
}

func (n *Node) oidsFrom(ctx context.Context, limit tid.TID, p *proto.AskOIDsFrom) (proto.Packet, error) {
	if p.Length < 1 {
		return nil, proto.Errorf(proto.ProtocolError, "%d objects", p.Length)
	}
	if err := n.checkReadable(p.Partition); err != nil {
		return nil, err
	}
	if p.Min > tid.MaxOID {
		return &proto.AnswerOIDsFrom{}, nil
	}
	next, oids, err := n.db.OIDsFrom(ctx, p.Partition, min(p.Length, maxList), p.Min, min(p.At, limit))
	if err != nil {
		return nil, err
	}
	return &proto.AnswerOIDsFrom{Next: next, OIDs: oids}, nil
}
