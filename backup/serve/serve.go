// Package serve is the way of ZEO clients into a backup repository: a [reader.Database]
// as a storage that [zeo.Server] serves. Clients have to ask for a read-only storage (read-only or
// read-only-fallback), as with every ZEO server that takes no commits. What comes into the repository
// meanwhile is announced to the clients, if that is wanted.
package serve

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
)

// Options say how a repository is served.
type Options struct {
	// Follow is how often the repository is asked for what is new; 0: never.
	Follow time.Duration

	TLS *tls.Config  // default: plain connections
	Log *slog.Logger // default: discard
}

const (
	// firstChanges is of how many transactions it is read at the start what they changed.
	firstChanges = 256
	// lookAtLineage is how often it is asked whether the repository goes on in another lineage.
	lookAtLineage = time.Minute
)

// Serve serves a database on listeners until ctx ends, or until one of them fails. It
// closes the listeners, not the database.
func Serve(ctx context.Context, db *reader.Database, listeners []net.Listener, o Options) error {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := NewStorage(db, o.Log)
	server, err := zeo.New(ctx, zeo.Config{Storages: map[string]zeo.Storage{"1": s}, TLS: o.TLS, ReadOnly: true, Log: o.Log})
	if err != nil {
		for _, l := range listeners {
			err = errors.Join(err, l.Close())
		}
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer server.Close()
	defer cancel()
	if o.Follow > 0 {
		wg.Go(func() { s.Follow(ctx, o.Follow) })
	}
	failed := make(chan error, len(listeners))
	for _, l := range listeners {
		wg.Go(func() { failed <- server.Serve(l) })
	}
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// Storage is a database as a [zeo.Storage], which can be watched once.
type Storage struct {
	*zeo.Reader
	db  *reader.Database
	log *slog.Logger

	mu sync.Mutex
	w  zeo.Watcher
}

var _ interface {
	zeo.Storage
	zeo.Changer
} = (*Storage)(nil)

// NewStorage returns a storage that reads db. log may be nil.
func NewStorage(db *reader.Database, log *slog.Logger) *Storage {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Storage{Reader: zeo.NewReader(db, zeo.ReaderConfig{Name: "neobackup(" + db.Name() + ")"}), db: db, log: log}
}

// Watch implements [zeo.Storage].
func (s *Storage) Watch(ctx context.Context, w zeo.Watcher) (tid.TID, error) {
	s.mu.Lock()
	s.w = w
	s.mu.Unlock()
	return s.db.LastTID(ctx)
}

// Changes implements [zeo.Changer]. It lists few, since each costs reading what was changed, and
// what can be read: a server must start although an older segment is missing.
func (s *Storage) Changes(ctx context.Context, after tid.TID, n int) ([]zeo.Change, tid.TID, error) {
	n = min(n, firstChanges)
	from, all := s.db.At(), true
	var list []zeo.Change
	for t, err := range s.db.Backwards(ctx) {
		if ctx.Err() != nil {
			return nil, after, ctx.Err()
		}
		if err != nil {
			s.log.Warn("earlier changes cannot be read: clients that were away have to verify their caches", "tid", from, "err", err)
			all = false
			break
		}
		if t.TID <= after {
			break
		}
		if len(list) == n {
			all = false
			break
		}
		list = append(list, zeo.Change{TID: t.TID, OIDs: slices.Clone(t.OIDs)})
		from = t.TID - 1
	}
	if all {
		from = after
	}
	slices.Reverse(list)
	return list, from, nil
}

// LoadBefore implements [zeo.Storage]. A store that does not answer is the trouble of this load
// alone: the client stays connected.
func (s *Storage) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	r, err := s.Reader.LoadBefore(ctx, oid, before)
	return r, s.answer(ctx, err)
}

// LoadAt implements [zeo.Storage].
func (s *Storage) LoadAt(ctx context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	r, err := s.Reader.LoadAt(ctx, oid, at)
	return r, s.answer(ctx, err)
}

// Revisions implements [zeo.Storage].
func (s *Storage) Revisions(ctx context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	list, err := s.Reader.Revisions(ctx, oid, n)
	return list, s.answer(ctx, err)
}

// NextObject implements [zeo.Storage].
func (s *Storage) NextObject(ctx context.Context, from tid.OID) (tid.OID, txn.Revision, error) {
	oid, r, err := s.Reader.NextObject(ctx, from)
	return oid, r, s.answer(ctx, err)
}

// UndoLog implements [zeo.Storage].
func (s *Storage) UndoLog(ctx context.Context, first, last int, accept func(*txn.Info) bool) ([]txn.Info, error) {
	list, err := s.Reader.UndoLog(ctx, first, last, accept)
	return list, s.answer(ctx, err)
}

// answer returns the error that a client gets, and logs one that is trouble of the repository.
func (s *Storage) answer(ctx context.Context, err error) error {
	if err == nil || errors.Is(err, txn.ErrNotFound) || errors.Is(err, txn.ErrNoSuchObject) || ctx.Err() != nil {
		return err
	}
	s.log.Error("a client gets an error", "err", err)
	if errors.Is(err, txn.ErrUnavailable) {
		return errors.New(err.Error()) // it would disconnect the client
	}
	return err
}

// Follow asks the repository for what is new, in an interval, and announces it, until ctx
// ends. The context is that of a server that watches.
func (s *Storage) Follow(ctx context.Context, interval time.Duration) {
	t := time.NewTicker(interval)
	defer t.Stop()
	var trouble string
	var looked time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		err := s.db.Refresh(ctx, s.announce)
		if err == nil && time.Since(looked) >= lookAtLineage {
			looked = time.Now()
			err = s.lineage(ctx)
		}
		switch {
		case ctx.Err() != nil:
			return
		case err != nil && err.Error() != trouble:
			trouble = err.Error()
			s.log.Error("the repository cannot be followed, trying again", "err", err)
		case err == nil && trouble != "":
			trouble = ""
			s.log.Info("the repository is followed again", "tid", s.db.At())
		}
	}
}

// lineage returns an error if nothing will come any more.
func (s *Storage) lineage(ctx context.Context) error {
	l, err := s.db.Repository().Current(ctx)
	if err == nil && l.Lineage != s.db.State().Lineage {
		err = fmt.Errorf("lineage %v is not the current one any more, and nothing is added to it: start again to serve %v, in which the repository goes on", s.db.State().Lineage, l.Lineage)
	}
	return err
}

// announce is called by Refresh: no read begins meanwhile.
func (s *Storage) announce(changes []reader.Change, last tid.TID, complete bool) {
	s.mu.Lock()
	w := s.w
	s.mu.Unlock()
	if w == nil {
		return
	}
	if !complete {
		w.Back(last) // clients connect again, and verify their caches
		return
	}
	for _, c := range changes {
		w.Committed(c.TID, c.OIDs)
	}
}
