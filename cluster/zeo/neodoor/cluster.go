// Package neodoor is the way of ZEO clients into a NEO cluster: a client of the
// cluster, as a storage that [zeo.Server] serves.
//
// # Invariant
//
// The server hears of the commits of the cluster in the order in which the master
// announces them. If some may have been missed, it is told so before it hears of a
// later one.
package neodoor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
)

// Cluster is a NEO cluster as a [zeo.Storage], which can be watched once. All ZEO
// clients share its one connection, so that the order in which the master announces
// commits is the order in which they see them.
type Cluster struct {
	*zeo.Reader // what is read, but the undo log
	c           *client.Client
	ctx         context.Context // ends with Close
	cancel      context.CancelFunc
	grace       time.Duration // see outageGrace
	size        size

	mu      sync.Mutex
	w       zeo.Watcher
	wg      sync.WaitGroup
	outages int  // how many times the master was lost or the history interrupted
	told    bool // the watcher was told of one, and not yet of its end
}

// outageGrace is how long the watcher is not told that the master is lost. ZEO clients
// remain connected if there is one again by then, and nothing was committed meanwhile.
const outageGrace = 3 * time.Second

// Open connects to a cluster, and waits until it serves. The context limits the wait;
// the callbacks of the configuration are taken.
func Open(ctx context.Context, cfg client.Config) (*Cluster, error) {
	s := &Cluster{grace: outageGrace}
	s.ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	cfg.OnInvalidate = s.invalidate
	cfg.OnLost = s.lost
	cfg.OnReset = s.reset
	c, err := client.Open(ctx, cfg)
	if err != nil {
		s.cancel()
		return nil, err
	}
	s.mu.Lock()
	s.c = c
	s.mu.Unlock()
	s.Reader = zeo.NewReader(c, zeo.ReaderConfig{})
	first, cancel := context.WithTimeout(ctx, sampleWait)
	defer cancel()
	if s.size.sample(first, c, sampleFirst) != nil {
		s.resize() // takes its time
	}
	return s, nil
}

// Close disconnects from the cluster. The server comes first.
func (s *Cluster) Close() error {
	s.mu.Lock()
	s.w = nil
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	return s.c.Close()
}

// Features implements [zeo.Storage].
func (s *Cluster) Features() zeo.Features {
	return zeo.Features{
		Name:     "NEOStorage(" + s.c.Cluster() + ")",
		ReadOnly: s.c.ReadOnly(),
		Undo:     true,
		Iterate:  true,
		Objects:  true,
		Restore:  true,
		GC:       true,
	}
}

// Watch implements [zeo.Storage].
func (s *Cluster) Watch(ctx context.Context, w zeo.Watcher) (tid.TID, error) {
	s.mu.Lock()
	s.w = w
	s.mu.Unlock()
	last, err := s.c.LastTID(ctx)
	return last, err
}

func (s *Cluster) watcher() zeo.Watcher {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w
}

// invalidate is called in the order of the commits.
func (s *Cluster) invalidate(t tid.TID, oids []tid.OID) {
	s.size.committed(0, 0)
	if w := s.watcher(); w != nil {
		w.Committed(t, oids)
	}
}

// lost is called when there is no master any more. Nothing is missed if another one
// knows of no other commits: reset is not called then.
func (s *Cluster) lost() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outageLocked(s.grace)
}

// reset is called when commits may have been missed, once there is a master.
func (s *Cluster) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.outageLocked(0)
}

// outageLocked tells the watcher of an outage after a while, and of its end. It takes
// the place of an outage that has not ended.
func (s *Cluster) outageLocked(grace time.Duration) {
	if s.w == nil || s.c == nil { // Watch connects anew, and has to wait
		return
	}
	s.outages++
	now := s.outages
	tell := func() {
		if s.outages == now && s.w != nil {
			s.told = true
			s.w.Lost()
		}
	}
	var late *time.Timer
	if grace == 0 {
		tell()
	} else {
		late = time.AfterFunc(grace, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			tell()
		})
	}
	s.wg.Go(func() {
		if late != nil {
			defer late.Stop()
		}
		s.endOutage(now)
	})
}

// endOutage connects to a master, unless there is one, and tells the watcher.
func (s *Cluster) endOutage(now int) {
	for pause := time.Millisecond; ; pause = min(2*pause, time.Second) {
		last, err := s.lastTID()
		s.mu.Lock()
		outdated := s.outages != now || s.w == nil
		if !outdated && err == nil {
			s.outages++ // nothing is to be told of this one any more
			if s.told {
				s.told = false
				s.w.Back(last)
			}
		}
		s.mu.Unlock()
		if outdated || err == nil {
			return
		}
		select {
		case <-time.After(pause):
		case <-s.ctx.Done():
			return
		}
	}
}

// lastTID returns the last commit once all that came before it is known.
func (s *Cluster) lastTID() (tid.TID, error) {
	if err := s.c.Sync(s.ctx); err != nil {
		return 0, err
	}
	return s.c.LastTID(s.ctx)
}

// Sync implements [zeo.Storage].
func (s *Cluster) Sync(ctx context.Context) error { return s.c.Sync(ctx) }

// Cached implements [zeo.Cacher].
func (s *Cluster) Cached(oid tid.OID, before tid.TID) (txn.Revision, bool) {
	return s.c.Cached(oid, before)
}

// packOrder is the description of the transactions that hold nothing but the order
// to pack.
const packOrder = "IStorage.pack"

// UndoLog implements [zeo.Storage].
func (s *Cluster) UndoLog(ctx context.Context, first, last int, accept func(*txn.Info) bool) ([]txn.Info, error) {
	return txn.Select(s.c.Backwards(ctx), first, last, func(t *txn.Info) bool {
		return t.Status != txn.Packed && (len(t.OIDs) > 0 || string(t.Description) != packOrder) && accept(t)
	})
}

// NewOIDs implements [zeo.Storage].
func (s *Cluster) NewOIDs(ctx context.Context, n int) ([]tid.OID, error) { return s.c.NewOIDs(ctx, n) }

// Pack implements [zeo.Storage].
func (s *Cluster) Pack(ctx context.Context, at tid.TID) error {
	id, err := s.c.Pack(ctx, at)
	if err == nil && id != tid.Zero {
		err = s.c.WaitForPack(ctx, id)
	}
	return err
}

// Begin implements [zeo.Storage].
func (s *Cluster) Begin(ctx context.Context, b zeo.Begin) (zeo.Txn, error) {
	opt, err := beginOptions(&b)
	if err != nil {
		return nil, err
	}
	if b.TID != tid.Zero {
		// Masters of the Python implementation hang up, to the loss of all clients.
		last, err := s.c.LastTID(ctx)
		if err != nil {
			return nil, err
		}
		if b.TID <= last {
			return nil, fmt.Errorf("transaction %v cannot be copied behind the last one, %v: the cluster must be empty, or have nothing but what comes before", b.TID, last)
		}
	}
	t, err := s.c.Begin(ctx, opt)
	if err != nil {
		return nil, err
	}
	return &clusterTxn{s: s, t: t, id: b.TID}, nil
}

// beginOptions returns how a transaction is begun in the cluster, which cannot be told that
// one was packed: it becomes an ordinary one.
func beginOptions(b *zeo.Begin) (client.BeginOptions, error) {
	opt := client.BeginOptions{TID: b.TID, User: b.User, Description: b.Description, Extension: b.Extension, NoCache: b.TID != tid.Zero}
	switch b.Status {
	case 0, txn.Committed:
	case txn.Packed:
		if b.TID == tid.Zero {
			return opt, fmt.Errorf("transaction with status %q and without id: %w", b.Status, zeo.ErrUnsupported)
		}
	default:
		return opt, fmt.Errorf("transaction with status %q: %w", b.Status, zeo.ErrUnsupported)
	}
	return opt, nil
}

// BeginAsync implements [zeo.AsyncStorage].
func (s *Cluster) BeginAsync(b zeo.Begin) zeo.PendingBegin {
	opt, err := beginOptions(&b)
	if err != nil { // for Begin to say
		return nil
	}
	begun := s.c.BeginAsync(opt)
	if begun == nil {
		return nil
	}
	return beginning{s, begun, b.TID}
}

// beginning is a transaction that the master was asked for.
type beginning struct {
	s  *Cluster
	b  *client.PendingBegin
	id tid.TID // that the transaction shall have
}

func (b beginning) Take() zeo.AsyncTxn {
	t := b.b.Take()
	if t == nil {
		return nil
	}
	return &clusterTxn{s: b.s, t: t, id: b.id}
}

func (b beginning) Wait(ctx context.Context) (zeo.AsyncTxn, error) {
	t, err := b.b.Wait(ctx)
	if err != nil {
		return nil, err
	}
	return &clusterTxn{s: b.s, t: t, id: b.id}, nil
}

func (b beginning) Abandon() { b.b.Abandon() }

// clusterTxn is a transaction of the cluster.
type clusterTxn struct {
	s  *Cluster
	t  *client.Txn
	id tid.TID // that it shall have; Zero: the next one

	objects, bytes int64 // that it creates
}

func (t *clusterTxn) Store(ctx context.Context, oid tid.OID, base tid.TID, data []byte) error {
	if base == tid.Zero {
		t.objects++
		t.bytes += int64(len(data))
	}
	return t.t.Store(ctx, oid, base, data)
}

func (t *clusterTxn) Check(ctx context.Context, oid tid.OID, base tid.TID) error {
	return t.t.CheckCurrent(ctx, oid, base)
}

func (t *clusterTxn) Delete(ctx context.Context, oid tid.OID, base tid.TID) error {
	t.objects--
	return t.t.Delete(ctx, oid, base)
}

// Restore implements [zeo.Restorer].
func (t *clusterTxn) Restore(ctx context.Context, r txn.Record) error {
	if r.TID != t.id {
		return fmt.Errorf("object %v cannot be copied with serial %v: its transaction is to have id %v, and both are the same in a cluster", r.OID, r.TID, t.id)
	}
	created, err := t.t.Restore(ctx, r.OID, r.Data, r.DataTID)
	if created && r.Data != nil {
		t.objects++
		t.bytes += int64(len(r.Data))
	}
	return err
}

func (t *clusterTxn) Undo(ctx context.Context, undone tid.TID) ([]tid.OID, error) {
	oids, err := t.t.Undo(ctx, undone)
	if errors.Is(err, txn.ErrNotFound) {
		return nil, &txn.UndoError{TID: undone, Failures: []txn.UndoFailure{{OID: tid.InvalidOID, Reason: "Invalid transaction id"}}}
	}
	return oids, err
}

// Vote reports conflicts once their transactions were announced: clients load
// them at once.
func (t *clusterTxn) Vote(ctx context.Context) ([]tid.OID, []*txn.ConflictError, error) {
	for {
		errs, err := t.t.Conflicts(ctx)
		if err != nil {
			return nil, nil, err
		}
		if len(errs) > 0 {
			conflicts, err := t.conflicts(ctx, errs)
			return nil, conflicts, err
		}
		changed, err := t.t.Vote(ctx)
		if _, ok := errors.AsType[*txn.ConflictError](err); ok {
			continue // one more came
		}
		return changed, nil, err
	}
}

func (t *clusterTxn) conflicts(ctx context.Context, errs []error) ([]*txn.ConflictError, error) {
	var list []*txn.ConflictError
	newest := tid.Zero
	for _, err := range errs {
		c, ok := errors.AsType[*txn.ConflictError](err)
		if !ok {
			return nil, err
		}
		list = append(list, c)
		newest = max(newest, c.Committed)
	}
	last, err := t.s.c.LastTID(ctx)
	if err == nil && last < newest {
		err = t.s.c.Sync(ctx)
	}
	return list, err
}

func (t *clusterTxn) Finish(ctx context.Context, committed func(tid.TID)) (tid.TID, error) {
	return t.t.Finish(ctx, t.counted(committed))
}

// counted is committed, and counts.
func (t *clusterTxn) counted(committed func(tid.TID)) func(tid.TID) {
	return func(at tid.TID) {
		t.s.size.committed(t.objects, t.bytes)
		committed(at)
	}
}

func (t *clusterTxn) VoteAsync(done func(bool)) { t.t.VoteAsync(done) }

func (t *clusterTxn) GiveUp() { t.t.GiveUp() }

func (t *clusterTxn) FinishAsync(committed func(tid.TID), done func(tid.TID, bool)) {
	t.t.FinishAsync(t.counted(committed), done)
}

func (t *clusterTxn) Abort(ctx context.Context) error { return t.t.Abort(ctx) }

// Stats returns what the client of the cluster has counted. See [client.Client.Stats].
func (s *Cluster) Stats() client.Stats { return s.c.Stats() }
