package zeo_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// late is a door to which commits are announced when it asks.
type late struct {
	*zeotest.Door
	mu   sync.Mutex
	w    zeo.Watcher
	held []func()
	err  error // of Sync
}

func (l *late) Watch(ctx context.Context, w zeo.Watcher) (tid.TID, error) {
	l.w = w
	return l.Door.Watch(ctx, l)
}

func (l *late) Committed(t tid.TID, oids []tid.OID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held = append(l.held, func() { l.w.Committed(t, oids) })
}

func (l *late) Lost()          { l.w.Lost() }
func (l *late) Back(t tid.TID) { l.w.Back(t) }

func (l *late) Sync(context.Context) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, announce := range l.held {
		announce()
	}
	l.held = nil
	return l.err
}

// Whoever comes is told of all that was committed before, through whatever door.
func TestRegisterKnowsEveryCommit(t *testing.T) {
	m := zeotest.NewMemory()
	door := &late{Door: m.Door()}
	behind := serve(t, m, func(cfg *zeo.Config) { cfg.Storages = map[string]zeo.Storage{"1": door} })
	at := commit(t, serve(t, m, nil).client(false), zeotest.Store{OID: 1, Data: []byte("x")})
	c := behind.client(false)
	v, err := c.Call("lastTransaction")
	if got, _ := v.([]byte); err != nil || string(got) != string(at.Bytes()) {
		t.Errorf("the last transaction is %x, %v, want %v", got, err, at)
	}
}

// missing is a door whose storage is lost while it lists what was committed last.
type missing struct {
	late
	during func()
}

func (m *missing) Changes(ctx context.Context, after tid.TID, n int) ([]zeo.Change, tid.TID, error) {
	list, from, err := m.Door.Changes(ctx, after, n)
	m.during()
	return list, from, err
}

// What is committed while a server starts and cannot be told is not left out of its
// history.
func TestCommitsMissedAtStart(t *testing.T) {
	for _, back := range []bool{true, false} {
		t.Run(fmt.Sprintf("back before the start %v", back), func(t *testing.T) {
			m := zeotest.NewMemory()
			w := serve(t, m, nil).client(false)
			first := commit(t, w, zeotest.Store{OID: 1, Data: []byte("x")})
			var second tid.TID
			door := &missing{late: late{Door: m.Door()}}
			door.during = func() {
				door.Lost()
				second = commit(t, w, zeotest.Store{OID: 1, Base: first, Data: []byte("y")})
				door.held = nil // never announced
				if back {
					door.Back(second)
				}
			}
			s := serve(t, m, func(cfg *zeo.Config) { cfg.Storages = map[string]zeo.Storage{"1": door} })
			if !back {
				door.Back(second)
			}
			c := s.client(false)
			if v, err := c.Call("lastTransaction"); err != nil || fmt.Sprint(v) != fmt.Sprint(second.Bytes()) {
				t.Errorf("the last transaction is %v, %v, want %v", v, err, second)
			}
			if v, err := c.Call("getInvalidations", first); v != nil || err != nil {
				t.Errorf("since %v: %v, %v, want that the history does not reach back", first, v, err)
			}
			third := commit(t, w, zeotest.Store{OID: 2, Data: []byte("z")})
			if err := door.Sync(t.Context()); err != nil {
				t.Fatal(err)
			}
			v, err := c.Call("getInvalidations", second)
			if want := fmt.Sprint(zeotest.Tuple{third.Bytes(), zeotest.List{tid.OID(2).Bytes()}}); err != nil || fmt.Sprint(v) != want {
				t.Errorf("since %v: %v, %v, want %v", second, v, err, want)
			}
		})
	}
}

// away is a door whose storage cannot tell what was committed last at first.
type away struct {
	*zeotest.Door
	left int // times
}

func (a *away) Changes(ctx context.Context, after tid.TID, n int) ([]zeo.Change, tid.TID, error) {
	if a.left--; a.left >= 0 {
		return nil, after, fmt.Errorf("%w: no storage", txn.ErrUnavailable)
	}
	return a.Door.Changes(ctx, after, n)
}

// A server that starts while its storage goes away waits for it.
func TestStartDuringOutage(t *testing.T) {
	m := zeotest.NewMemory()
	w := serve(t, m, nil).client(false)
	first := commit(t, w, zeotest.Store{OID: 1, Data: []byte("x")})
	second := commit(t, w, zeotest.Store{OID: 1, Base: first, Data: []byte("y")})
	door := &away{m.Door(), 3}
	c := serve(t, m, func(cfg *zeo.Config) { cfg.Storages = map[string]zeo.Storage{"1": door} }).client(false)
	v, err := c.Call("getInvalidations", first)
	if want := fmt.Sprint(zeotest.Tuple{second.Bytes(), zeotest.List{tid.OID(1).Bytes()}}); err != nil || fmt.Sprint(v) != want {
		t.Errorf("since %v: %v, %v, want %v", first, v, err, want)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	door = &away{m.Door(), 1 << 30}
	_, err = zeo.New(ctx, zeo.Config{Storages: map[string]zeo.Storage{"1": door}})
	if !errors.Is(err, txn.ErrUnavailable) {
		t.Errorf("a start that is given up: %v", err)
	}
}

// racing is a door whose list of old changes has one of two that came meanwhile.
type racing struct {
	*zeotest.Door
	during func() (left tid.TID)
}

func (r *racing) Changes(ctx context.Context, after tid.TID, n int) ([]zeo.Change, tid.TID, error) {
	left := tid.Zero
	if r.during != nil {
		left = r.during()
	}
	list, from, err := r.Door.Changes(ctx, after, n)
	list = slices.DeleteFunc(list, func(c zeo.Change) bool { return c.TID == left })
	return list, from, err
}

// longAgo is a door that lists what was committed long ago only when it is told to.
type longAgo struct {
	*zeotest.Door
	calls  atomic.Int32
	resume chan struct{}
}

func (s *longAgo) Changes(ctx context.Context, after tid.TID, n int) ([]zeo.Change, tid.TID, error) {
	if s.calls.Add(1) > 1 {
		select {
		case <-s.resume:
		case <-ctx.Done():
			return nil, after, ctx.Err()
		}
	}
	return s.Door.Changes(ctx, after, n)
}

// A server with a long history serves at once: only a client that was away waits for what was
// committed long ago.
func TestServesBeforeHistoryIsListed(t *testing.T) {
	m := zeotest.NewMemory()
	w := serve(t, m, nil).client(false)
	var tids []tid.TID
	for i := range 100 {
		tids = append(tids, commit(t, w, zeotest.Store{OID: tid.OID(i), Data: []byte("x")}))
	}
	door := &longAgo{Door: m.Door(), resume: make(chan struct{})}
	s := serve(t, m, func(cfg *zeo.Config) {
		cfg.Storages = map[string]zeo.Storage{"1": door}
		cfg.InvalidationQueueSize = 90
	})
	c := s.client(false)
	if v, err := c.Call("loadBefore", tid.OID(3), tid.Max); err != nil || v == nil {
		t.Fatalf("load: %v, %v", v, err)
	}
	since := func(c *zeotest.Client, at tid.TID) string {
		v, err := c.Call("getInvalidations", at)
		return fmt.Sprint(v, err)
	}
	want := func(from int) string {
		var oids zeotest.List
		for i := from; i <= len(tids)-1; i++ {
			oids = append(oids, tid.OID(i).Bytes())
		}
		return fmt.Sprint(zeotest.Tuple{tids[len(tids)-1].Bytes(), oids}, nil)
	}
	if got := since(c, tids[89]); got != want(90) {
		t.Errorf("since a late transaction: %v, want %v", got, want(90))
	}
	answer := make(chan string, 1)
	away := s.client(false)
	go func() { answer <- since(away, tids[20]) }()
	select {
	case got := <-answer:
		t.Errorf("a client that was away was answered before the history was listed: %v", got)
	case <-time.After(50 * time.Millisecond):
	}
	tids = append(tids, commit(t, w, zeotest.Store{OID: 100, Data: []byte("x")}))
	if err := door.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	close(door.resume)
	if got := <-answer; got != want(21) {
		t.Errorf("since an early transaction: %v, want %v", got, want(21))
	}
	if got := since(c, tids[3]); got != "<nil> <nil>" {
		t.Errorf("since a transaction before the history: %v", got)
	}
}

// What is committed while a storage lists old changes is neither left out.
func TestCommitsWhileListing(t *testing.T) {
	m := zeotest.NewMemory()
	w := serve(t, m, nil).client(false)
	first := commit(t, w, zeotest.Store{OID: 1, Data: []byte("x")})
	for i := range 4 {
		commit(t, w, zeotest.Store{OID: tid.OID(10 + i), Data: []byte("x")})
	}
	door := &racing{Door: m.Door()}
	s := serve(t, m, func(cfg *zeo.Config) {
		cfg.Storages = map[string]zeo.Storage{"1": door}
		cfg.InvalidationQueueSize, cfg.InvalidationAge = 3, time.Hour
	})
	door.during = func() tid.TID {
		left := commit(t, w, zeotest.Store{OID: 2, Data: []byte("y")})
		commit(t, w, zeotest.Store{OID: 3, Data: []byte("z")})
		return left
	}
	v, err := s.client(false).Call("getInvalidations", first)
	if err != nil || !strings.Contains(fmt.Sprint(v), fmt.Sprint(tid.OID(2).Bytes())) {
		t.Errorf("since %v: %v, %v, which is without object 2", first, v, err)
	}
}

// A server that cannot know what was committed is of no use to a client.
func TestRegisterWhileOutOfService(t *testing.T) {
	m := zeotest.NewMemory()
	door := &late{Door: m.Door(), err: errors.New("no master")}
	s := serve(t, m, func(cfg *zeo.Config) { cfg.Storages = map[string]zeo.Storage{"1": door} })
	c, err := zeotest.Dial(s.addr, false)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if v, err := c.Call("register", "1", false); err == nil {
		t.Errorf("registered: %v", v)
	}
	s.eventually("the reason is logged", func() bool { return s.log.Contains("out of service: no master") })
}
