package zeo

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Reader is any database as a [Storage] that can only be read, and that does not
// change: nothing is announced.
type Reader struct {
	db       txn.Database
	features Features
	objects  int64
	bytes    int64
	listed   listing
}

var _ interface {
	Storage
	Changer
} = (*Reader)(nil)

// ReaderConfig describes a database to [NewReader].
type ReaderConfig struct {
	Name           string // shown to clients
	Local          bool   // see [Features]
	Objects, Bytes int64  // see [Storage.Size]
}

// NewReader returns a storage that reads db.
func NewReader(db txn.Database, cfg ReaderConfig) *Reader {
	return &Reader{
		db:       db,
		features: Features{Name: cfg.Name, ReadOnly: true, Undo: true, Iterate: true, Objects: true, Local: cfg.Local},
		objects:  cfg.Objects,
		bytes:    cfg.Bytes,
	}
}

// Features implements [Storage].
func (s *Reader) Features() Features { return s.features }

// Size implements [Storage].
func (s *Reader) Size() (objects, bytes int64) { return s.objects, s.bytes }

// Watch implements [Storage].
func (s *Reader) Watch(ctx context.Context, _ Watcher) (tid.TID, error) { return s.db.LastTID(ctx) }

// Sync implements [Storage].
func (s *Reader) Sync(context.Context) error { return nil }

// LoadBefore implements [Storage].
func (s *Reader) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	return s.db.LoadBefore(ctx, oid, before)
}

// LoadAt implements [Storage].
func (s *Reader) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	return s.db.LoadAt(ctx, oid, at)
}

// Revisions implements [Storage].
func (s *Reader) Revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	return s.db.Revisions(ctx, oid, n)
}

// Transactions implements [Storage].
func (s *Reader) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return s.db.Transactions(ctx, after, upTo)
}

// UndoLog implements [Storage]. It ends at the first packed transaction.
func (s *Reader) UndoLog(ctx context.Context, first, last int, accept func(*txn.Info) bool) ([]txn.Info, error) {
	return txn.Select(func(yield func(*txn.Info, error) bool) {
		for info, err := range s.db.Backwards(ctx) {
			if err == nil && info.Status == txn.Packed || !yield(info, err) {
				return
			}
		}
	}, first, last, accept)
}

// mostChanges bounds what is asked for at once about the past.
const mostChanges = 4096

// Changes implements [Changer]. It asks for the metadata of transactions only,
// newest first.
func (s *Reader) Changes(ctx context.Context, after tid.TID, n int) ([]Change, tid.TID, error) {
	n = min(n, mostChanges)
	var list []Change
	for t, err := range s.db.Backwards(ctx) {
		if err != nil {
			return nil, after, err
		}
		if t.TID <= after {
			break
		}
		if len(list) == n {
			after = t.TID
			break
		}
		list = append(list, Change{TID: t.TID, OIDs: slices.Clone(t.OIDs)})
	}
	slices.Reverse(list)
	return list, after, nil
}

// listing is a part of the ids of the objects, in ascending order, which serves the
// clients that go from one object to the next.
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
	listingAge  = 5 * time.Second // before a client that is under way sees what was created
)

// next returns the first object whose id is not less than from.
func (l *listing) next(ctx context.Context, db txn.Database, from tid.OID) (tid.OID, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	last, err := db.LastTID(ctx)
	if err != nil {
		return 0, err
	}
	begins := from == 0 && last != l.last // and must see all that is there
	if begins || from < l.from || time.Since(l.made) > listingAge || !l.end && (len(l.oids) == 0 || from > l.oids[len(l.oids)-1]) {
		oids := l.oids[:0]
		for oid, err := range db.OIDs(ctx, tid.Max, from) {
			if err != nil {
				l.made = time.Time{}
				return 0, err
			}
			if oids = append(oids, oid); len(oids) == listingSize {
				break
			}
		}
		l.from, l.oids, l.end, l.made, l.last = from, oids, len(oids) < listingSize, time.Now(), last
	}
	i, _ := slices.BinarySearch(l.oids, from)
	if i == len(l.oids) {
		return 0, txn.ErrNoSuchObject
	}
	return l.oids[i], nil
}

// NextObject implements [Storage].
func (s *Reader) NextObject(ctx context.Context, from tid.OID) (tid.OID, txn.Revision, error) {
	for {
		oid, err := s.listed.next(ctx, s.db, from)
		if err != nil {
			return 0, txn.Revision{}, err
		}
		r, err := s.db.LoadBefore(ctx, oid, tid.Max)
		if err == nil || !errors.Is(err, txn.ErrNoSuchObject) {
			return oid, r, err
		}
		if oid >= tid.MaxOID {
			return 0, txn.Revision{}, txn.ErrNoSuchObject
		}
		from = oid + 1 // deleted meanwhile
	}
}

// NewOIDs implements [Storage].
func (s *Reader) NewOIDs(context.Context, int) ([]tid.OID, error) { return nil, txn.ErrReadOnly }

// Begin implements [Storage].
func (s *Reader) Begin(context.Context, Begin) (Txn, error) { return nil, txn.ErrReadOnly }

// Pack implements [Storage].
func (s *Reader) Pack(context.Context, tid.TID) error { return fmt.Errorf("pack: %w", txn.ErrReadOnly) }
