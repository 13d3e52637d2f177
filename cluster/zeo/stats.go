package zeo

import (
	"encoding/json"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

// stats counts what one storage did for its clients.
type stats struct {
	start     time.Time
	loads     atomic.Int64
	stores    atomic.Int64
	commits   atomic.Int64
	aborts    atomic.Int64
	active    atomic.Int64 // transactions begun
	conflicts atomic.Int64
	resolved  atomic.Int64 // never by the server: clients resolve
	waiting   atomic.Int64 // votes waiting for the storage

	mu     sync.Mutex
	locked map[*transaction]time.Time // since when they hold locks
}

func (s *stats) lock(t *transaction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locked == nil {
		s.locked = make(map[*transaction]time.Time)
	}
	s.locked[t] = time.Now()
}

func (s *stats) unlock(t *transaction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.locked, t)
}

// over ends a transaction, once.
func (s *stats) over(t *transaction) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.locked, t)
	if !t.counted {
		t.counted = true
		s.active.Add(-1)
	}
}

// committed ends a transaction before its client can know that it is committed.
func (s *stats) committed(t *transaction) {
	s.commits.Add(1)
	s.over(t)
}

// lockTime returns when the oldest lock was taken, the zero time if there is none.
func (s *stats) lockTime() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	var oldest time.Time
	for _, t := range s.locked {
		if oldest.IsZero() || t.Before(oldest) {
			oldest = t
		}
	}
	return oldest
}

// status is what server_status returns, under the names of the Python server.
type status struct {
	Connections int      `json:"connections"`
	Loads       int64    `json:"loads"`
	Stores      int64    `json:"stores"`
	Commits     int64    `json:"commits"`
	Aborts      int64    `json:"aborts"`
	Active      int64    `json:"active_txns"`
	LockTime    *float64 `json:"lock_time"` // seconds since the epoch
	Conflicts   int64    `json:"conflicts"`
	Resolved    int64    `json:"conflicts_resolved"`
	Start       string   `json:"start"`
	Waiting     int64    `json:"waiting"`
	Timeouts    bool     `json:"timeout-thread-is-alive"`
	Last        string   `json:"last-transaction"`
}

func (s *sequencer) status() status {
	st := &s.stats
	s.mu.Lock()
	n := len(s.conns)
	s.mu.Unlock()
	r := status{
		Connections: n,
		Loads:       st.loads.Load(),
		Stores:      st.stores.Load(),
		Commits:     st.commits.Load(),
		Aborts:      st.aborts.Load(),
		Active:      st.active.Load(),
		Conflicts:   st.conflicts.Load(),
		Resolved:    st.resolved.Load(),
		Start:       st.start.Format(time.ANSIC),
		Waiting:     st.waiting.Load(),
		Timeouts:    true,
		Last:        s.last().String(),
	}
	if t := st.lockTime(); !t.IsZero() {
		f := float64(t.UnixMicro()) / 1e6
		r.LockTime = &f
	}
	return r
}

func encodeStatus(e *wire.Encoder, r *status) {
	e.BeginDict(13)
	for _, f := range []struct {
		name string
		n    int64
	}{
		{"connections", int64(r.Connections)},
		{"loads", r.Loads},
		{"stores", r.Stores},
		{"commits", r.Commits},
		{"aborts", r.Aborts},
		{"active_txns", r.Active},
		{"conflicts", r.Conflicts},
		{"conflicts_resolved", r.Resolved},
		{"waiting", r.Waiting},
	} {
		e.Text(f.name)
		e.Int(f.n)
	}
	e.Text("lock_time")
	if r.LockTime == nil {
		e.Null()
	} else {
		e.Float(*r.LockTime)
	}
	e.Text("start")
	e.Text(r.Start)
	e.Text("timeout-thread-is-alive")
	e.Bool(r.Timeouts)
	e.Text("last-transaction")
	e.Text(r.Last)
	e.EndDict(13)
}

// statusJSON is the answer to ruok: the status of each storage.
func (s *Server) statusJSON() []byte {
	all := make(map[string]status)
	for name, seq := range s.storages {
		all[name] = seq.status()
	}
	b, err := json.Marshal(all)
	if err != nil {
		panic("zeo: " + err.Error()) // numbers and text only
	}
	return b
}

// StorageStats is what a server has done for the clients of one of its storages since it was
// started, and what they do now.
type StorageStats struct {
	Connections   int
	Loads, Stores int64 // objects
	Commits       int64 // transactions
	Aborts        int64
	Conflicts     int64         // objects that clients had to resolve
	Active        int64         // transactions begun
	Waiting       int64         // votes that wait for the storage
	Locked        time.Duration // since when the oldest transaction that holds locks does so; 0: none does
	LastTID       tid.TID
	OutOfService  bool // the database is out of reach: there are no connections
}

// Stats returns the state of each storage, by name. It waits for nothing.
func (s *Server) Stats() map[string]StorageStats {
	all := make(map[string]StorageStats, len(s.storages))
	for name, q := range s.storages {
		st := &q.stats
		q.mu.Lock()
		n, out := len(q.conns), q.out
		q.mu.Unlock()
		r := StorageStats{
			Connections: n, Loads: st.loads.Load(), Stores: st.stores.Load(), Commits: st.commits.Load(), Aborts: st.aborts.Load(),
			Conflicts: st.conflicts.Load(), Active: st.active.Load(), Waiting: st.waiting.Load(), LastTID: q.last(), OutOfService: out,
		}
		if t := st.lockTime(); !t.IsZero() {
			r.Locked = time.Since(t)
		}
		all[name] = r
	}
	return all
}
