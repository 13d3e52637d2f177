// Package door is the way of ZEO clients into a NEO cluster: a client of the
// cluster, as a storage that [zeo.Server] serves.
//
// # Invariant
//
// The server hears of the commits of the cluster in the order in which the master
// announces them. If some may have been missed, it is told so before it hears of a
// later one.
package door

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sort"
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
	c      *client.Client
	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	listed listing
	grace  time.Duration // see outageGrace

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

func (s *Cluster) Features() zeo.Features {
	return zeo.Features{
		Name:     "NEOStorage(" + s.c.Cluster() + ")",
		ReadOnly: s.c.ReadOnly(),
		Undo:     true,
		Iterate:  true,
		Objects:  true,
		GC:       true,
	}
}

// Size returns that nothing is known: NEO does not count.
func (s *Cluster) Size() (objects, bytes int64) { return 0, 0 }

func (s *Cluster) Watch(ctx context.Context, w zeo.Watcher) (tid.TID, error) {
	s.mu.Lock()
	s.w = w
	s.mu.Unlock()
	last, err := s.c.LastTID(ctx)
	return last, outage(err)
}

func (s *Cluster) watcher() zeo.Watcher {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.w
}

// invalidate is called in the order of the commits.
func (s *Cluster) invalidate(t tid.TID, oids []tid.OID) {
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

func (s *Cluster) Sync(ctx context.Context) error { return outage(s.c.Sync(ctx)) }

func (s *Cluster) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (zeo.Revision, error) {
	r, err := s.c.LoadBefore(ctx, oid, before)
	switch {
	case errors.Is(err, txn.ErrNoSuchObject):
		err = zeo.ErrNoSuchObject
	case errors.Is(err, txn.ErrNotFound):
		err = zeo.ErrTooEarly
	}
	return zeo.Revision(r), outage(err)
}

func (s *Cluster) Cached(oid tid.OID, before tid.TID) (zeo.Revision, bool) {
	r, ok := s.c.Cached(oid, before)
	return zeo.Revision(r), ok
}

func (s *Cluster) LoadSerial(ctx context.Context, oid tid.OID, serial tid.TID) ([]byte, error) {
	r, err := s.c.LoadAt(ctx, oid, serial)
	if errors.Is(err, txn.ErrNoSuchObject) || errors.Is(err, txn.ErrNotFound) {
		err = zeo.ErrNoSuchObject
	}
	return r.Data, outage(err)
}

func metas(infos []txn.Info) []zeo.Meta {
	list := make([]zeo.Meta, len(infos))
	for i, t := range infos {
		list[i] = zeo.Meta{TID: t.TID, User: t.User, Description: t.Description, Extension: t.Extension, Size: t.Size}
	}
	return list
}

func (s *Cluster) History(ctx context.Context, oid tid.OID, n int) ([]zeo.Meta, error) {
	revisions, err := s.c.Revisions(ctx, oid, n)
	if errors.Is(err, txn.ErrNoSuchObject) {
		return nil, zeo.ErrNoSuchObject
	}
	return metas(revisions), outage(err)
}

// packOrder is the description of the transactions that hold nothing but the order
// to pack.
const packOrder = "IStorage.pack"

func (s *Cluster) UndoLog(ctx context.Context, first, last int, accept func(*zeo.Meta) bool) ([]zeo.Meta, error) {
	infos, err := txn.Select(s.c.Backwards(ctx), first, last, func(t *txn.Info) bool {
		if t.Status == txn.Packed || len(t.OIDs) == 0 && string(t.Description) == packOrder {
			return false
		}
		return accept(&metas([]txn.Info{*t})[0])
	})
	return metas(infos), outage(err)
}

func (s *Cluster) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for t, err := range s.c.Transactions(ctx, after, upTo) {
			if !yield(t, outage(err)) {
				return
			}
		}
	}
}

// mostChanges bounds what is asked for at once about the past.
const mostChanges = 4096

// Changes asks for the metadata of transactions only, newest first.
func (s *Cluster) Changes(ctx context.Context, after tid.TID, n int) ([]zeo.Change, tid.TID, error) {
	n = min(n, mostChanges)
	var list []zeo.Change
	for t, err := range s.c.Backwards(ctx) {
		if err != nil {
			return nil, after, outage(err)
		}
		if t.TID <= after {
			break
		}
		if len(list) == n {
			after = t.TID
			break
		}
		list = append(list, zeo.Change{TID: t.TID, OIDs: t.OIDs})
	}
	slices.Reverse(list)
	return list, after, nil
}

// listing is a part of the ids of the objects, in ascending order, which serves
// those who go from one to the next.
type listing struct {
	mu   sync.Mutex
	from tid.OID
	oids []tid.OID
	end  bool // there are no more
	made time.Time
	last tid.TID // when it was made
}

const (
	listingSize = 10000
	listingAge  = 5 * time.Second // before those who are under way see what was created
)

// next returns the first object whose id is not less than from.
func (s *Cluster) next(ctx context.Context, from tid.OID) (tid.OID, error) {
	l := &s.listed
	l.mu.Lock()
	defer l.mu.Unlock()
	last, err := s.c.LastTID(ctx)
	if err != nil {
		return 0, outage(err)
	}
	begins := from == 0 && last != l.last // and must see all that is there
	if begins || from < l.from || time.Since(l.made) > listingAge || !l.end && (len(l.oids) == 0 || from > l.oids[len(l.oids)-1]) {
		oids := l.oids[:0]
		for oid, err := range s.c.OIDs(ctx, tid.Max, from) {
			if err != nil {
				l.made = time.Time{}
				return 0, outage(err)
			}
			if oids = append(oids, oid); len(oids) == listingSize {
				break
			}
		}
		l.from, l.oids, l.end, l.made, l.last = from, oids, len(oids) < listingSize, time.Now(), last
	}
	i := sort.Search(len(l.oids), func(i int) bool { return l.oids[i] >= from })
	if i == len(l.oids) {
		return 0, zeo.ErrNoSuchObject
	}
	return l.oids[i], nil
}

func (s *Cluster) NextObject(ctx context.Context, from tid.OID) (tid.OID, zeo.Revision, error) {
	for {
		oid, err := s.next(ctx, from)
		if err != nil {
			return 0, zeo.Revision{}, err
		}
		r, err := s.LoadBefore(ctx, oid, tid.Max)
		if err == nil || !errors.Is(err, zeo.ErrNoSuchObject) {
			return oid, r, err
		}
		if oid >= tid.MaxOID {
			return 0, zeo.Revision{}, zeo.ErrNoSuchObject
		}
		from = oid + 1 // deleted meanwhile
	}
}

func (s *Cluster) NewOIDs(ctx context.Context, n int) ([]tid.OID, error) {
	oids, err := s.c.NewOIDs(ctx, n)
	if errors.Is(err, txn.ErrReadOnly) {
		return nil, zeo.ErrReadOnly
	}
	return oids, outage(err)
}

func (s *Cluster) Pack(ctx context.Context, at tid.TID) error {
	id, err := s.c.Pack(ctx, at)
	if err == nil && id != tid.Zero {
		err = s.c.WaitForPack(ctx, id)
	}
	return fromClient(err)
}

func (s *Cluster) Begin(ctx context.Context, b zeo.Begin) (zeo.Txn, error) {
	if b.Status != txn.Committed && b.Status != 0 {
		return nil, fmt.Errorf("transaction with status %q: %w", b.Status, zeo.ErrUnsupported)
	}
	t, err := s.c.Begin(ctx, client.BeginOptions{
		TID: b.TID, User: b.User, Description: b.Description, Extension: b.Extension,
	})
	if err != nil {
		return nil, fromClient(err)
	}
	return &clusterTxn{s, t}, nil
}

// BeginSoon implements [zeo.Ahead].
func (s *Cluster) BeginSoon(b zeo.Begin) zeo.Beginning {
	if b.Status != txn.Committed && b.Status != 0 {
		return nil
	}
	begun := s.c.BeginSoon(client.BeginOptions{TID: b.TID, User: b.User, Description: b.Description, Extension: b.Extension})
	if begun == nil {
		return nil
	}
	return beginning{s, begun}
}

// beginning is a transaction that the master was asked for.
type beginning struct {
	s *Cluster
	b *client.Beginning
}

func (b beginning) Take() zeo.Prompt {
	t := b.b.Take()
	if t == nil {
		return nil
	}
	return &clusterTxn{b.s, t}
}

func (b beginning) Wait(ctx context.Context) (zeo.Prompt, error) {
	t, err := b.b.Wait(ctx)
	if err != nil {
		return nil, fromClient(err)
	}
	return &clusterTxn{b.s, t}, nil
}

func (b beginning) Abandon() { b.b.Abandon() }

// fromClient translates what the server acts upon.
func fromClient(err error) error {
	if c, ok := errors.AsType[*txn.ConflictError](err); ok {
		return &zeo.ConflictError{OID: c.OID, Committed: c.Committed, Base: c.Base}
	}
	if c, ok := errors.AsType[*txn.ReadConflictError](err); ok {
		return &zeo.ReadConflictError{OID: c.OID, Committed: c.Committed, Base: c.Base}
	}
	if u, ok := errors.AsType[*txn.UndoError](err); ok {
		var list []zeo.UndoFailure
		for _, f := range u.Failures {
			if f.OID == tid.InvalidOID {
				f.OID = 0
			}
			list = append(list, zeo.UndoFailure(f))
		}
		return &zeo.UndoError{Failures: list}
	}
	switch {
	case errors.Is(err, txn.ErrReadOnly):
		return zeo.ErrReadOnly
	case errors.Is(err, txn.ErrUnknownOutcome):
		return fmt.Errorf("%w: %w", zeo.ErrUnknown, err)
	}
	return outage(err)
}

// outage marks the errors of a cluster that cannot serve for the moment.
func outage(err error) error {
	if errors.Is(err, txn.ErrUnavailable) {
		return fmt.Errorf("%w: %w", zeo.ErrUnavailable, err)
	}
	return err
}

// clusterTxn is a transaction of the cluster.
type clusterTxn struct {
	s *Cluster
	t *client.Txn
}

func (t *clusterTxn) Store(ctx context.Context, oid tid.OID, base tid.TID, data []byte) error {
	return fromClient(t.t.Store(ctx, oid, base, data))
}

func (t *clusterTxn) Check(ctx context.Context, oid tid.OID, base tid.TID) error {
	return fromClient(t.t.CheckCurrent(ctx, oid, base))
}

func (t *clusterTxn) Delete(ctx context.Context, oid tid.OID, base tid.TID) error {
	return fromClient(t.t.Delete(ctx, oid, base))
}

func (t *clusterTxn) Undo(ctx context.Context, undone tid.TID) ([]tid.OID, error) {
	oids, err := t.t.Undo(ctx, undone)
	if errors.Is(err, txn.ErrNotFound) {
		return nil, &zeo.UndoError{Failures: []zeo.UndoFailure{{Reason: "Invalid transaction id"}}}
	}
	return oids, fromClient(err)
}

// Vote reports conflicts once their transactions were announced: clients load
// them at once.
func (t *clusterTxn) Vote(ctx context.Context) ([]tid.OID, []*zeo.ConflictError, error) {
	for {
		errs, err := t.t.Conflicts(ctx)
		if err != nil {
			return nil, nil, fromClient(err)
		}
		if len(errs) > 0 {
			conflicts, err := t.conflicts(ctx, errs)
			return nil, conflicts, err
		}
		changed, err := t.t.Vote(ctx)
		if _, ok := errors.AsType[*txn.ConflictError](err); ok {
			continue // one more came
		}
		return changed, nil, fromClient(err)
	}
}

func (t *clusterTxn) conflicts(ctx context.Context, errs []error) ([]*zeo.ConflictError, error) {
	var list []*zeo.ConflictError
	newest := tid.Zero
	for _, err := range errs {
		c, ok := errors.AsType[*zeo.ConflictError](fromClient(err))
		if !ok {
			return nil, fromClient(err)
		}
		list = append(list, c)
		newest = max(newest, c.Committed)
	}
	last, err := t.s.c.LastTID(ctx)
	if err == nil && last < newest {
		err = t.s.c.Sync(ctx)
	}
	return list, outage(err)
}

func (t *clusterTxn) Finish(ctx context.Context, committed func(tid.TID)) (tid.TID, error) {
	at, err := t.t.Finish(ctx, committed)
	return at, fromClient(err)
}

func (t *clusterTxn) VoteSoon(done func(bool)) { t.t.VoteSoon(done) }

func (t *clusterTxn) GiveUp() { t.t.GiveUp() }

func (t *clusterTxn) FinishSoon(committed func(tid.TID), done func(tid.TID, bool)) {
	t.t.FinishSoon(committed, done)
}

func (t *clusterTxn) Abort(ctx context.Context) error { return outage(t.t.Abort(ctx)) }
