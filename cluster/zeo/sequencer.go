package zeo

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/socket"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

// sequencer serves one storage: it puts the commits in order into the output of
// every connection, and remembers the last ones.
type sequencer struct {
	name   string
	st     Storage
	cache  Cacher       // nil: st has none
	ahead  AsyncStorage // nil: st cannot
	feat   Features
	log    *slog.Logger
	stats  stats
	claims claims
	age    time.Duration // cache verification beyond the history; 0: none

	// head is the last transaction announced. It changes before the announcement
	// enters any output, so that an answer which was computed earlier can tell.
	head atomic.Uint64

	mu     sync.Mutex // never held while waiting for anything
	ready  bool       // Watch has returned
	out    bool       // the storage is out of service
	lost   bool       // it was, at least once
	missed tid.TID    // last transaction announced meanwhile
	early  []Change   // announced before ready
	recent history
	filled chan struct{} // closed when recent reaches as far back as it will
	conns  map[*conn]struct{}
	frames [2]wire.Encoder // an announcement in both encodings
	due    []*output       // to be sent by the goroutine that holds the lock, once it is released
}

func newSequencer(name string, st Storage, cfg *Config, log *slog.Logger) *sequencer {
	s := &sequencer{
		name:  name,
		st:    st,
		feat:  st.Features(),
		log:   log.With("storage", name),
		age:   cfg.InvalidationAge,
		conns: make(map[*conn]struct{}),
	}
	s.cache, _ = st.(Cacher)
	s.ahead, _ = st.(AsyncStorage)
	s.recent.limit = cfg.InvalidationQueueSize
	s.filled = make(chan struct{})
	s.frames[1].Msgpack = true
	s.stats.start = time.Now()
	return s
}

// firstChanges is of how many transactions it is known from the beginning what they
// changed. It is learned of the others while clients are served already.
const firstChanges = 32

// start learns the last transaction, and what the ones before it changed. fill is to
// be run on a goroutine of its own, if it is not nil.
func (s *sequencer) start(ctx context.Context) (fill func(ctx context.Context), err error) {
	base, more, err := s.begin(ctx)
	if err != nil {
		return nil, err
	}
	if !more {
		close(s.filled)
		return nil, nil
	}
	return func(ctx context.Context) { s.fill(ctx, base) }, nil
}

// fill learns what the transactions up to base changed, as many as are kept.
func (s *sequencer) fill(ctx context.Context, base tid.TID) {
	defer close(s.filled)
	known, before, err := s.changes(ctx, s.st.(Changer), s.recent.limit)
	if err != nil {
		if ctx.Err() == nil {
			s.log.Warn("recent changes cannot be listed: clients that were away have to verify their caches", "err", err)
		}
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.recent.extend(base, before, known)
}

// begin is start with the changes of firstChanges transactions. more: there are others,
// up to base.
func (s *sequencer) begin(ctx context.Context) (base tid.TID, more bool, err error) {
	last, err := s.st.Watch(ctx, s)
	if err != nil {
		return tid.Zero, false, err
	}
	base = last
	var known []Change
	if c, ok := s.st.(Changer); ok && last != tid.Zero {
		if known, base, err = s.changes(ctx, c, min(firstChanges, s.recent.limit)); err != nil {
			return tid.Zero, false, fmt.Errorf("recent changes: %w", err)
		}
		base = min(base, last)
		more = base != tid.Zero && len(known) < s.recent.limit
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.lost && !s.out: // Back has said where to go on
	case s.lost: // and will say it
		s.recent.reset(last)
		s.head.Store(uint64(last))
	default:
		s.recent.reset(base)
		for _, c := range known {
			if c.TID <= last {
				s.recent.add(c.TID, c.OIDs)
			}
		}
		s.head.Store(uint64(last))
	}
	s.ready = true
	for _, c := range s.early {
		if c.TID > s.last() {
			s.commitLocked(c.TID, c.OIDs, nil)
		}
	}
	s.early = nil
	return base, more, nil
}

// changes asks for what was committed last, again and again while the storage is
// out of service: a server that starts at a bad moment must not end.
func (s *sequencer) changes(ctx context.Context, c Changer, n int) ([]Change, tid.TID, error) {
	var wait socket.Waiting
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		known, base, err := c.Changes(ctx, tid.Zero, n)
		if !errors.Is(err, txn.ErrUnavailable) {
			if err == nil {
				wait.Over(s.log, "the storage is there")
			}
			return known, base, err
		}
		wait.Failed(s.log, "the storage is out of service", "err", err)
		select {
		case <-ctx.Done():
			return nil, tid.Zero, fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-time.After(pause):
		}
	}
}

func (s *sequencer) last() tid.TID { return tid.TID(s.head.Load()) }

// Committed implements [Watcher].
func (s *sequencer) Committed(t tid.TID, oids []tid.OID) {
	own := append([]tid.OID(nil), oids...)
	s.mu.Lock()
	if s.ready {
		s.commitLocked(t, own, nil)
	} else {
		s.early = append(s.early, Change{t, own})
	}
	s.unlockAndSend()
}

// unlockAndSend sends announcements without waiting for any client, after the lock
// was released.
func (s *sequencer) unlockAndSend() {
	due := s.due
	s.due = nil
	s.mu.Unlock()
	if len(due) == 0 {
		return
	}
	for i, o := range due {
		o.send()
		due[i] = nil
	}
	s.mu.Lock()
	if s.due == nil {
		s.due = due[:0]
	}
	s.mu.Unlock()
}

// commit announces a transaction of c to all others; answer appends what c gets
// instead. It is called by [Txn].Finish.
func (s *sequencer) commit(t tid.TID, oids []tid.OID, c *conn, answer func(*wire.Encoder)) {
	s.mu.Lock()
	s.commitLocked(t, oids, c)
	e := c.out.lock()
	answer(e)
	c.out.unlock()
	s.due = append(s.due, c.out)
	last := len(s.due) - 1
	s.due[0], s.due[last] = s.due[last], s.due[0] // the client that waits comes first
	s.unlockAndSend()
}

func (s *sequencer) commitLocked(t tid.TID, oids []tid.OID, except *conn) {
	if s.out { // no connection is open; Back says where to go on
		s.missed = max(s.missed, t)
		return
	}
	if t <= s.last() {
		s.log.Warn("transaction is not after the last one", "tid", t, "last", s.last())
		return
	}
	oids = s.recent.add(t, oids)
	s.head.Store(uint64(t))
	var made [2]bool
	for c := range s.conns {
		if c == except {
			continue
		}
		i := 0
		if c.msgpack {
			i = 1
		}
		f := &s.frames[i]
		if !made[i] {
			made[i] = true
			f.B = f.B[:0]
			at := f.BeginNotice("invalidateTransaction")
			f.BeginTuple(2)
			f.TID(t)
			f.OIDs(oids)
			f.EndTuple(2)
			f.EndMessage(at)
		}
		e := c.out.lock()
		e.B = append(e.B, f.B...)
		c.out.unlock()
		s.due = append(s.due, c.out)
	}
	for i := range s.frames {
		if cap(s.frames[i].B) > roomy {
			s.frames[i].B = nil
		}
	}
}

// Lost implements [Watcher]: clients have to verify their caches later.
func (s *sequencer) Lost() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.out, s.lost, s.missed = true, true, tid.Zero
	s.closeAllLocked("storage is out of service")
}

// Back implements [Watcher]. Last may be before the last one announced: the
// database was truncated. Clients that have seen more refuse the server then,
// which is the best they can do.
func (s *sequencer) Back(last tid.TID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last = max(last, s.missed)
	if !s.out || last != s.last() {
		s.closeAllLocked("transactions were missed")
		s.recent.reset(last)
		s.head.Store(uint64(last))
	}
	s.out = false
}

func (s *sequencer) closeAllLocked(why string) {
	if len(s.conns) > 0 {
		s.log.Warn("closing all connections", "why", why, "connections", len(s.conns))
	}
	for c := range s.conns {
		c.out.close()
		c.cancel() // the reader may wait for calls, and not learn of it
	}
}

// register adds c and appends the answer to its output, so that everything
// announced from then on comes after.
func (s *sequencer) register(c *conn, id *wire.MsgID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.out {
		return false
	}
	s.conns[c] = struct{}{}
	e := c.out.lock()
	at := e.BeginReply(id, wire.FlagResult)
	e.TID(s.last())
	e.EndMessage(at)
	c.out.unlock()
	return true
}

func (s *sequencer) unregister(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// inOrder appends an answer such that all that was committed is before it, and all
// that it does not know of after it. The caller flushes it.
func (s *sequencer) inOrder(c *conn, answer func(e *wire.Encoder, last tid.TID)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := c.out.lock()
	answer(e, s.last())
	c.out.unlock()
}

// since appends the answer to getInvalidations: what changed after t. The caller
// flushes it.
func (s *sequencer) since(ctx context.Context, c *conn, id *wire.MsgID, t tid.TID) error {
	older, from, err := s.changesBeyond(ctx, t)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	newer, known := s.recent.after(from)
	e := c.out.lock()
	defer c.out.unlock()
	at := e.BeginReply(id, wire.FlagResult)
	if known {
		e.BeginTuple(2)
		e.TID(s.last())
		e.OIDs(union(append(older, newer...)))
		e.EndTuple(2)
	} else {
		e.Null()
	}
	e.EndMessage(at)
	return nil
}

// changesBeyond returns what changed after t up to from, which is t itself unless
// t is older than the history but not too old.
func (s *sequencer) changesBeyond(ctx context.Context, t tid.TID) ([]Change, tid.TID, error) {
	_, head, known := s.after(t)
	if !known {
		select {
		case <-s.filled:
		case <-ctx.Done():
			return nil, t, ctx.Err()
		}
		_, head, known = s.after(t)
	}
	changer, ok := s.st.(Changer)
	if known || !ok || s.age <= 0 || time.Since(t.Time()) > s.age {
		return nil, t, nil
	}
	const most = 1 << 20
	changes, from, err := changer.Changes(ctx, t, most)
	if err != nil {
		return nil, t, err
	}
	if len(changes) == 0 || from != t {
		return nil, t, nil
	}
	// Of what came meanwhile one part may be listed and another not: the history
	// has it all.
	changes = slices.DeleteFunc(changes, func(c Change) bool { return c.TID > head })
	return changes, head, nil
}

// after returns what changed after t as far as the history tells, and the last
// transaction.
func (s *sequencer) after(t tid.TID) (changes []Change, head tid.TID, known bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	changes, known = s.recent.after(t)
	return changes, s.last(), known
}

// settle tells what a revision, found when the last transaction was head, has
// become. It returns the present head, and false if the revision must be loaded
// anew.
func (s *sequencer) settle(oid tid.OID, r *txn.Revision, head tid.TID) (tid.TID, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next, known := s.recent.nextChange(oid, max(head, r.Serial))
	if !known {
		return s.last(), false
	}
	if r.Next == tid.Zero {
		r.Next = next
	}
	return s.last(), true
}

// recover announces what was committed up to t by storages that can list it, t
// itself with the answer for c. It reports whether it could.
func (s *sequencer) recover(ctx context.Context, t tid.TID, c *conn, answer func(*wire.Encoder)) bool {
	changer, ok := s.st.(Changer)
	if !ok {
		return false
	}
	const most = 1 << 16
	before := s.last()
	changes, from, err := changer.Changes(ctx, before, most)
	if err != nil || from != before {
		return false
	}
	s.mu.Lock()
	defer s.unlockAndSend()
	if _, here := s.conns[c]; !here || s.out || s.last() >= t {
		return false
	}
	for _, ch := range changes {
		switch {
		case ch.TID <= s.last():
		case ch.TID == t:
			s.commitLocked(t, ch.OIDs, c)
			e := c.out.lock()
			answer(e)
			c.out.unlock()
			s.due = append(s.due, c.out)
			return true
		case ch.TID < t:
			s.commitLocked(ch.TID, ch.OIDs, nil)
		}
	}
	return false
}

// info tells sizes to all clients.
func (s *sequencer) info() {
	s.mu.Lock()
	defer s.unlockAndSend()
	for c := range s.conns {
		e := c.out.lock()
		s.appendInfo(e)
		c.out.unlock()
		s.due = append(s.due, c.out)
	}
}

func (s *sequencer) appendInfo(e *wire.Encoder) {
	at := e.BeginNotice("info")
	e.BeginTuple(1)
	e.BeginDict(2)
	objects, bytes := s.st.Size()
	e.Text("length")
	e.Int(objects)
	e.Text("size")
	e.Int(bytes)
	e.EndDict(2)
	e.EndTuple(1)
	e.EndMessage(at)
}
