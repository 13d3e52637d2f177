package importer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/importer/source"
)

// linked is implemented by a source that finds the record of one object in a transaction
// without reading the others.
type linked interface {
	// DataTID returns the [txn.Record.DataTID] of the record that transaction at made of an
	// object. There is such a record. errors.ErrUnsupported where it cannot be found so.
	DataTID(ctx context.Context, oid tid.OID, at tid.TID) (tid.TID, error)
}

// indexed is implemented by a source that has an index of its objects in memory or on a
// disk of this machine.
type indexed interface {
	// LastRevision returns the last transaction that changed an object, be it by a deletion: Zero
	// if there is none. It does not wait for another machine. known is false where that would be
	// needed.
	LastRevision(oid tid.OID) (last tid.TID, known bool)
}

const (
	// patience is how long a read waits for a source that does not answer.
	patience = 20 * time.Second
	// pause is the time between two attempts to reach a source.
	pause = 500 * time.Millisecond
	// silence is how long it is not said again that a source does not answer.
	silence = 10 * time.Minute
	// maxRevisions is how many objects are kept of which the last revision is known, twice.
	maxRevisions = 1 << 15
	// blockTIDs is how many ids of transactions are read and kept together.
	blockTIDs = 4096
	// maxBlocks is how many such blocks are kept.
	maxBlocks = 16
	// maxNewest is how many ids of the newest transactions are kept.
	maxNewest = 1 << 15
	// maxTransactions is how many transactions are kept without their data, and maxObjects
	// how many objects all of them have, the last one apart.
	maxTransactions = 32
	maxObjects      = 1 << 18
)

// sources asks the sources of an import, which never change: nothing that it has learned
// ever becomes wrong. Its errors are those of package backend.
type sources struct {
	db   txn.Database
	end  tid.TID
	log  *slog.Logger
	wait time.Duration // patience, except in tests
	rest time.Duration // pause

	descending chan struct{} // held while the newest transactions are read

	m         sync.Mutex
	said      time.Time // when it was said last that a source does not answer
	told      time.Time // when damage was told last, which toldText was about
	toldText  string
	last, was map[tid.OID]tid.TID
	blocks    []block   // of ids, those used last at the end
	newest    []tid.TID // the newest transactions, descending; what is in it never changes
	allNewest bool      // there are no others
	txns      map[tid.TID]*transaction
	order     []tid.TID // of txns, those used last at the end
	size      int       // of txns, in objects
}

// block is the transactions of the sources in (after, upTo].
type block struct {
	after, upTo tid.TID
	tids        []tid.TID
}

// transaction is a transaction of the sources without its data.
type transaction struct {
	done chan struct{} // closed when what follows is known
	err  error
	meta backend.Meta
	from map[tid.OID]tid.TID // the DataTIDs of its records that have one
	// twice are the objects that have more than one record in it: the last one counts.
	twice map[tid.OID]bool
	size  int // in objects, as counted in the size of all
}

func newSources(db txn.Database, end tid.TID, log *slog.Logger) *sources {
	return &sources{db: db, end: end, log: log, wait: patience, rest: pause,
		descending: make(chan struct{}, 1),
		last:       map[tid.OID]tid.TID{}, txns: map[tid.TID]*transaction{}}
}

// absent reports whether a source has answered that it does not have something.
func absent(err error) bool {
	return errors.Is(err, txn.ErrNotFound) || errors.Is(err, txn.ErrNoSuchObject)
}

// unreachable reports whether a source may answer the same question later.
func unreachable(err error) bool {
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return true
	}
	return errors.Is(err, txn.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded)
}

// ask asks a source by f until it answers, as long as the patience and ctx last. Where
// quick is set, an answer that takes longer is none. An error that it returns is one
// of the source that is no reason to ask again, or [backend.ErrNonReadable], or that of ctx.
func ask[T any](ctx context.Context, s *sources, quick bool, f func(ctx context.Context) (T, error)) (T, error) {
	var none T
	limited := ctx
	if quick {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, s.wait)
		defer cancel()
	}
	for begin := time.Now(); ; {
		v, err := f(limited)
		switch {
		case err == nil:
			return v, nil
		case ctx.Err() != nil:
			return none, ctx.Err()
		case errors.Is(err, source.ErrClosed):
			// All is imported: the answer is in the tables, for whatever asks again.
			return none, fmt.Errorf("the import has ended meanwhile: %w: %w", backend.ErrNonReadable, err)
		case absent(err) || !unreachable(err):
			return v, err
		}
		left := s.wait - time.Since(begin)
		if left <= 0 || limited.Err() != nil {
			s.complain(err)
			return none, fmt.Errorf("a source of the import does not answer: %w: %w", backend.ErrNonReadable, err)
		}
		select {
		case <-time.After(min(s.rest, left)):
		case <-ctx.Done():
			return none, ctx.Err()
		}
	}
}

// complain says that a source does not answer, unless that was said lately.
func (s *sources) complain(err error) {
	s.m.Lock()
	defer s.m.Unlock()
	if now := time.Now(); s.said.IsZero() || now.Sub(s.said) >= silence {
		s.said = now
		s.log.Error("a source of the import does not answer: what is not copied yet cannot be read; see that its server runs and can be reached from here",
			"err", err)
	}
}

// damaged returns the answer for an object that a source cannot read.
func (s *sources) damaged(ctx context.Context, oid tid.OID, t tid.TID, err error) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, backend.ErrNonReadable) {
		return err
	}
	return &backend.CorruptError{OID: oid, TID: t, Detail: "in a source of the import: " + err.Error()}
}

// unlisted returns the answer for a list that a source cannot give.
func (s *sources) unlisted(ctx context.Context, what string, err error) error {
	if err == nil || ctx.Err() != nil || errors.Is(err, backend.ErrNonReadable) {
		return err
	}
	s.m.Lock()
	now := time.Now()
	if text := what + ": " + err.Error(); text != s.toldText || now.Sub(s.told) >= silence {
		s.told, s.toldText = now, text
		s.log.Error("a source of the import is damaged", "what", what, "err", err)
	}
	s.m.Unlock()
	return fmt.Errorf("%s: a source of the import is damaged: %w: %w", what, backend.ErrNonReadable, err)
}

// learn keeps the last revision of an object, Zero: it has none.
func (s *sources) learn(oid tid.OID, last tid.TID) {
	s.m.Lock()
	defer s.m.Unlock()
	if s.last[oid] = last; len(s.last) >= maxRevisions {
		s.was, s.last = s.last, make(map[tid.OID]tid.TID, maxRevisions)
	}
}

// known returns the last revision of an object, Zero if it has none, where no other machine
// need be asked for it.
func (s *sources) known(oid tid.OID) (tid.TID, bool) {
	if x, ok := s.db.(indexed); ok {
		if t, known := x.LastRevision(oid); known {
			return t, true
		}
	}
	s.m.Lock()
	defer s.m.Unlock()
	t, ok := s.last[oid]
	if !ok {
		t, ok = s.was[oid]
	}
	return t, ok
}

// lastRevision returns the last revision of an object, Zero if it has none.
func (s *sources) lastRevision(ctx context.Context, oid tid.OID) (tid.TID, error) {
	if t, ok := s.known(oid); ok {
		return t, nil
	}
	list, err := s.revisions(ctx, oid, 1)
	if err != nil || len(list) == 0 {
		return tid.Zero, err
	}
	return list[0].TID, nil
}

// revisions returns the last n transactions that changed an object, newest first.
func (s *sources) revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	list, err := ask(ctx, s, true, func(ctx context.Context) ([]txn.Info, error) { return s.db.Revisions(ctx, oid, n) })
	switch {
	case absent(err):
		list, err = nil, nil
	case err != nil:
		return nil, s.damaged(ctx, oid, tid.Zero, err)
	}
	last := tid.Zero
	if len(list) > 0 {
		last = list[0].TID
	}
	s.learn(oid, last)
	return list, nil
}

// downTo returns the transactions that changed an object, newest first: at least those
// after a TID, and the last one before.
func (s *sources) downTo(ctx context.Context, oid tid.OID, t tid.TID) ([]txn.Info, error) {
	for n := 4; ; n *= 8 {
		list, err := s.revisions(ctx, oid, n)
		if err != nil || len(list) < n || list[n-1].TID < t {
			return list, err
		}
	}
}

// before returns the last revision of an object before a TID, without data if it is a
// deletion. [backend.ErrNotFound], [backend.ErrNoSuchObject].
func (s *sources) before(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	before = min(before, s.end+1)
	rev, err := ask(ctx, s, true, func(ctx context.Context) (txn.Revision, error) { return s.db.LoadBefore(ctx, oid, before) })
	switch {
	case err == nil && rev.Next == tid.Zero:
		s.learn(oid, rev.Serial)
		return rev, nil
	case err == nil || !absent(err):
		return rev, s.damaged(ctx, oid, before-1, err)
	}
	// It may also have been deleted before. A transaction that deletes an object is told by
	// its history alone.
	list, err := s.downTo(ctx, oid, before)
	if err != nil {
		return txn.Revision{}, err
	}
	rev = txn.Revision{}
	for _, i := range list {
		if i.TID < before {
			rev.Serial = i.TID
			return rev, nil
		}
		rev.Next = i.TID
	}
	if len(list) > 0 {
		return txn.Revision{}, fmt.Errorf("object %v before %v: %w", oid, before, backend.ErrNotFound)
	}
	return txn.Revision{}, fmt.Errorf("object %v: %w", oid, backend.ErrNoSuchObject)
}

// hidden returns the revision of an object that a transaction has made, if no load finds
// it: a pack of a Data.fs keeps records for the sake of later ones that share their data, and cuts
// the way to them through the revisions of the object. They are part of the history.
func (s *sources) hidden(ctx context.Context, oid tid.OID, at tid.TID) (rev txn.Revision, ok bool, err error) {
	t, err := s.transaction(ctx, at)
	switch {
	case errors.Is(err, backend.ErrNotFound):
		return rev, false, nil
	case err != nil && (ctx.Err() != nil || unreachable(err)):
		return rev, false, err
	case err != nil: // perhaps it has the record
		return rev, false, &backend.CorruptError{OID: oid, TID: at, Detail: "in a source of the import: " + err.Error()}
	case !slices.Contains(t.meta.OIDs, oid):
		return rev, false, nil
	}
	rev, err = ask(ctx, s, true, func(ctx context.Context) (txn.Revision, error) {
		rev := txn.Revision{Serial: at}
		for x, err := range s.db.Transactions(ctx, at-1, at) {
			if err != nil {
				return rev, err
			}
			if x.TID != at || x.Records == nil {
				continue
			}
			for r, err := range x.Records {
				if err != nil {
					return rev, err
				}
				if r.OID == oid { // the last one counts
					rev.Data = bytes.Clone(r.Data)
				}
			}
		}
		return rev, nil
	})
	if err == nil {
		rev.Next, err = s.next(ctx, oid, at)
	}
	return rev, err == nil, s.damaged(ctx, oid, at, err)
}

// next returns the revision of an object that follows a TID, Zero if there is none.
func (s *sources) next(ctx context.Context, oid tid.OID, t tid.TID) (tid.TID, error) {
	if last, ok := s.known(oid); ok && last <= t {
		return tid.Zero, nil
	}
	if t >= s.end {
		return tid.Zero, nil
	}
	list, err := s.downTo(ctx, oid, t)
	next := tid.Zero
	for _, i := range list {
		if i.TID <= t {
			break
		}
		next = i.TID
	}
	return next, err
}

// cheapDataTID is dataTID where the source need not be searched for it, otherwise Zero.
func (s *sources) cheapDataTID(ctx context.Context, oid tid.OID, at tid.TID) (tid.TID, error) {
	if t, err := s.linkedDataTID(ctx, oid, at); !errors.Is(err, errors.ErrUnsupported) {
		return t, err
	}
	s.m.Lock()
	t := s.txns[at]
	s.m.Unlock()
	if t == nil {
		return tid.Zero, nil
	}
	select {
	case <-t.done:
		return t.from[oid], nil
	default:
		return tid.Zero, nil
	}
}

// linkedDataTID is dataTID if the source is [linked], otherwise errors.ErrUnsupported.
func (s *sources) linkedDataTID(ctx context.Context, oid tid.OID, at tid.TID) (tid.TID, error) {
	x, ok := s.db.(linked)
	if !ok {
		return tid.Zero, errors.ErrUnsupported
	}
	t, err := ask(ctx, s, true, func(ctx context.Context) (tid.TID, error) { return x.DataTID(ctx, oid, at) })
	switch {
	case errors.Is(err, errors.ErrUnsupported):
		return tid.Zero, errors.ErrUnsupported
	case absent(err):
		return tid.Zero, nil // a pack of a server has left the record alone
	}
	return t, s.damaged(ctx, oid, at, err)
}

// dataTID returns the transaction that the data of a record were taken from, Zero if
// they are its own.
func (s *sources) dataTID(ctx context.Context, oid tid.OID, at tid.TID) (tid.TID, error) {
	if t, err := s.linkedDataTID(ctx, oid, at); !errors.Is(err, errors.ErrUnsupported) {
		return t, err
	}
	t, err := s.transaction(ctx, at)
	switch {
	case errors.Is(err, backend.ErrNotFound):
		return tid.Zero, nil // a pack of a server has left the record alone
	case err != nil && (ctx.Err() != nil || unreachable(err)):
		return tid.Zero, err
	case err != nil:
		return tid.Zero, nil // another record of the transaction is damaged: this one has its data
	}
	return t.from[oid], nil
}

// transaction returns a transaction. [backend.ErrNotFound].
func (s *sources) transaction(ctx context.Context, at tid.TID) (*transaction, error) {
	for {
		s.m.Lock()
		t := s.txns[at]
		mine := t == nil
		if mine {
			t = &transaction{done: make(chan struct{})}
			s.txns[at] = t
		} else {
			s.order = slices.DeleteFunc(s.order, func(x tid.TID) bool { return x == at })
		}
		s.order = append(s.order, at)
		s.makeRoom()
		s.m.Unlock()
		if mine {
			s.read(ctx, at, t)
			if t.err != nil {
				return nil, t.err
			}
			return t, nil
		}
		select {
		case <-t.done:
			if t.err == nil {
				return t, nil
			}
			// Perhaps only the context of who asked has ended.
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// read completes t.
func (s *sources) read(ctx context.Context, at tid.TID, t *transaction) {
	defer close(t.done)
	read, err := ask(ctx, s, false, func(ctx context.Context) (transaction, error) { return s.readTransaction(ctx, at) })
	if t.err = s.unlisted(ctx, fmt.Sprintf("transaction %v", at), err); absent(err) {
		t.err = fmt.Errorf("transaction %v: %w", at, backend.ErrNotFound)
	}
	t.meta, t.from, t.twice = read.meta, read.from, read.twice
	s.m.Lock()
	defer s.m.Unlock()
	switch {
	case s.txns[at] != t: // there was no room
	case t.err != nil:
		s.forget(at)
	default:
		t.size = len(t.meta.OIDs)
		s.size += t.size
		s.makeRoom()
	}
}

// makeRoom forgets transactions, but the one used last. s.m is held.
func (s *sources) makeRoom() {
	for len(s.order) > 1 && (len(s.order) > maxTransactions || s.size > maxObjects) {
		s.forget(s.order[0])
	}
}

// forget forgets a transaction. s.m is held.
func (s *sources) forget(at tid.TID) {
	s.size -= s.txns[at].size
	delete(s.txns, at)
	s.order = slices.DeleteFunc(s.order, func(x tid.TID) bool { return x == at })
}

func (s *sources) readTransaction(ctx context.Context, at tid.TID) (t transaction, err error) {
	for x, err := range s.db.Transactions(ctx, at-1, at) {
		if err != nil {
			return t, err
		}
		if x.TID != at {
			continue
		}
		t.meta = backend.Meta{
			User: clone(x.User), Description: clone(x.Description), Extension: clone(x.Extension),
			Packed: x.Status == txn.Packed, TTID: at,
		}
		t.from = map[tid.OID]tid.TID{}
		if x.Records != nil {
			for r, err := range x.Records {
				if err != nil {
					return t, err
				}
				t.meta.OIDs = append(t.meta.OIDs, r.OID)
				delete(t.from, r.OID)
				if r.DataTID != tid.Zero {
					t.from[r.OID] = r.DataTID
				}
			}
		}
		t.meta.OIDs, t.twice = lastOfEach(t.meta.OIDs)
		return t, nil
	}
	return t, txn.ErrNotFound
}

// lastOfEach returns ids without all but the last of those that are equal, and which are more
// than one.
func lastOfEach(oids []tid.OID) (list []tid.OID, twice map[tid.OID]bool) {
	sorted := slices.Sorted(slices.Values(oids))
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			if twice == nil {
				twice = map[tid.OID]bool{}
			}
			twice[sorted[i]] = true
		}
	}
	if twice == nil {
		return oids, nil
	}
	seen := map[tid.OID]bool{}
	for _, oid := range slices.Backward(oids) {
		if twice[oid] && seen[oid] {
			continue
		}
		seen[oid] = true
		list = append(list, oid)
	}
	slices.Reverse(list)
	return list, twice
}

func clone(b []byte) []byte { return append([]byte{}, b...) }

// first returns the first transaction, [tid.Max] if there is none.
func (s *sources) first(ctx context.Context) (tid.TID, error) {
	return ask(ctx, s, true, func(ctx context.Context) (tid.TID, error) {
		for t, err := range s.db.Transactions(ctx, tid.Zero, s.end) {
			if err != nil {
				return tid.Zero, err
			}
			return t.TID, nil
		}
		return tid.Max, nil
	})
}

// ascend calls f with the transactions in (after, upTo], oldest first, until it returns
// false.
func (s *sources) ascend(ctx context.Context, after, upTo tid.TID, f func(t tid.TID) bool) error {
	for upTo = min(upTo, s.end); after < upTo; {
		b, err := s.block(ctx, after)
		if err != nil {
			return err
		}
		i, found := slices.BinarySearch(b.tids, after)
		if found {
			i++
		}
		for _, t := range b.tids[i:] {
			if t > upTo || !f(t) {
				return nil
			}
		}
		after = b.upTo
	}
	return nil
}

// block returns transactions after a TID and perhaps some before. All partitions are listed
// one after the other, and what is read for one serves the others.
func (s *sources) block(ctx context.Context, after tid.TID) (block, error) {
	s.m.Lock()
	for i, b := range s.blocks {
		if b.after <= after && after < b.upTo {
			s.blocks = append(slices.Delete(s.blocks, i, i+1), b)
			s.m.Unlock()
			return b, nil
		}
	}
	s.m.Unlock()
	b, err := ask(ctx, s, false, func(ctx context.Context) (block, error) {
		b := block{after: after, upTo: s.end}
		for t, err := range s.db.Transactions(ctx, after, s.end) {
			if err != nil {
				return b, err
			}
			if b.tids = append(b.tids, t.TID); len(b.tids) == blockTIDs {
				b.upTo = t.TID
				break
			}
		}
		return b, nil
	})
	if err != nil {
		return b, s.unlisted(ctx, fmt.Sprintf("transactions after %v", after), err)
	}
	s.m.Lock()
	defer s.m.Unlock()
	if s.blocks = append(s.blocks, b); len(s.blocks) > maxBlocks {
		s.blocks = slices.Delete(s.blocks, 0, 1)
	}
	return b, nil
}

// descend returns the ids of transactions after a TID that f accepts, newest first, at most n.
// All partitions are listed one after the other, in parts that begin with the newest: what is read
// for one serves the others.
func (s *sources) descend(ctx context.Context, after tid.TID, n int, f func(t tid.TID) bool) ([]tid.TID, error) {
	var list []tid.TID
	// enough reports whether t is not wanted, and nothing after it.
	enough := func(t tid.TID) bool {
		if len(list) == n || t <= after {
			return true
		}
		if f(t) {
			list = append(list, t)
		}
		return len(list) == n
	}
	var newest []tid.TID
	known := func() bool {
		s.m.Lock()
		var all bool
		newest, all = s.newest, s.allNewest
		s.m.Unlock()
		list = list[:0]
		return slices.ContainsFunc(newest, enough) || all
	}
	if known() {
		return list, nil
	}
	select {
	case s.descending <- struct{}{}:
		defer func() { <-s.descending }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if known() {
		return list, nil
	}
	had := len(list)
	_, err := ask(ctx, s, false, func(ctx context.Context) (bool, error) {
		list = list[:had]
		read, more := newest[:len(newest):len(newest)], maxNewest
		keep := func(all bool) {
			s.m.Lock()
			defer s.m.Unlock()
			if len(read) > len(s.newest) || all {
				s.newest, s.allNewest = read, all
			}
		}
		for i, err := range s.db.Backwards(ctx) {
			if err != nil {
				return false, err
			}
			if len(newest) > 0 && i.TID >= newest[len(newest)-1] {
				continue
			}
			if len(read) < maxNewest {
				read = append(read, i.TID)
			}
			if enough(i.TID) {
				// Some more, for the next part of this list or another one.
				if more = min(more, 2*len(read)); len(read) >= more || len(read) == maxNewest {
					keep(false)
					return true, nil
				}
			}
		}
		keep(len(read) < maxNewest)
		return true, nil
	})
	return list, s.unlisted(ctx, "last transactions", err)
}

// objects returns the objects from an id on that exist at a TID and that f accepts, ascending,
// at most n, those below to.
func (s *sources) objects(ctx context.Context, at tid.TID, from, to tid.OID, n int, f func(oid tid.OID) bool) ([]tid.OID, error) {
	list, err := ask(ctx, s, false, func(ctx context.Context) ([]tid.OID, error) {
		var list []tid.OID
		for oid, err := range s.db.OIDs(ctx, min(at, s.end), from) {
			if err != nil {
				return nil, err
			}
			if oid >= to || len(list) == n {
				break
			}
			if f(oid) {
				list = append(list, oid)
			}
		}
		return list, nil
	})
	return list, s.unlisted(ctx, fmt.Sprintf("objects from %v on", from), err)
}
