package zeo_test

import (
	"context"
	"errors"
	"sync"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
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
	s.eventually("the reason is logged", func() bool { return s.log.contains("out of service: no master") })
}
