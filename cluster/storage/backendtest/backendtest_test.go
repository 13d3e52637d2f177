package backendtest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

func TestMemory(t *testing.T) {
	Run(t, func(*testing.T) Database { return NewMemory() })
}

// counting is a wrapper that replaces the reads of a database, and counts loads.
type counting struct {
	backend.Reading
	loads *atomic.Int64
}

func (c counting) GetObject(ctx context.Context, oid tid.OID, at, before proto.Opt[tid.TID]) (backend.Object, error) {
	c.loads.Add(1)
	return c.Reading.GetObject(ctx, oid, at, before)
}

func (c counting) GetObjects(ctx context.Context, keys []backend.ObjectKey, f func(i int, o *backend.Object, err error) bool) {
	backend.GetEach(ctx, c, keys, f)
}

type wrapped struct {
	Database
	loads *atomic.Int64
}

func (d wrapped) Open() (backend.Backend, error) {
	b, err := d.Database.Open()
	return backend.Parts{Reading: counting{b, d.loads}, Writing: b, Keeping: b}, err
}

// A database of which one group is replaced by a wrapper keeps all promises.
func TestWrapper(t *testing.T) {
	var loads atomic.Int64
	t.Run("Suite", func(t *testing.T) {
		Run(t, func(*testing.T) Database { return wrapped{NewMemory(), &loads} })
	})
	if loads.Load() == 0 {
		t.Error("no load came to the wrapper")
	}
}

// preparing is a database that has to learn the last revision of an object, each time.
type preparing struct {
	backend.Backend
	known *sync.Map
}

func (b preparing) LastObjectTID(ctx context.Context, oid tid.OID) (proto.Opt[tid.TID], error) {
	if _, known := b.known.LoadAndDelete(oid); !known {
		return proto.Opt[tid.TID]{}, backend.ErrNotPrepared
	}
	return b.Backend.LastObjectTID(ctx, oid)
}

func (b preparing) Prepare(_ context.Context, oid tid.OID) error {
	b.known.Store(oid, true)
	return nil
}

type prepared struct{ Database }

func (d prepared) Open() (backend.Backend, error) {
	b, err := d.Database.Open()
	return preparing{b, &sync.Map{}}, err
}

// The suite asks a database of which not all is local as the node does.
func TestPreparing(t *testing.T) {
	Run(t, func(*testing.T) Database { return prepared{NewMemory()} })
}

// Simulations use the memory model with a clock that stands still while anybody
// works.
func TestMemoryInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := NewMemory()
		b, err := d.Open()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.Open(); !errors.Is(err, backend.ErrLocked) {
			t.Errorf("second use: %v", err)
		}
		if err := PrepareSample(b); err != nil {
			t.Fatal(err)
		}
		end := make(chan error)
		go func() {
			time.Sleep(time.Hour)
			end <- CommitSample(b, 8)
		}()
		if err := <-end; err != nil {
			t.Error(err)
		}
		if err := d.Crash(); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(); err == nil {
			t.Error("a backend that crashed goes on")
		}
		b, err = d.Open()
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckSample(b, 8, true); err != nil {
			t.Error(err)
		}
		if n := d.Commits(); n != 5 {
			t.Errorf("%d commits, want 5: node id, table, vote, lock, unlock", n)
		}
	})
}

// A suite that a broken backend passes is worth nothing.
func TestFailAt(t *testing.T) {
	d := NewMemory()
	b, err := d.Open()
	if err != nil {
		t.Fatal(err)
	}
	if err := PrepareSample(b); err != nil {
		t.Fatal(err)
	}
	f := FailAt(b, 5)
	if err := CommitSample(f, 8); !errors.Is(err, ErrFault) || !f.Fired() {
		t.Errorf("CommitSample: %v", err)
	}
	if err := f.Commit(); !errors.Is(err, ErrFault) {
		t.Errorf("commit after a fault: %v", err)
	}
	if err := CheckSample(b, 8, true); err == nil {
		t.Error("a lost transaction was not noticed")
	}
	if err := b.AddObject(1, 12, rec("damage"), none); err != nil {
		t.Fatal(err)
	}
	if err := CheckSample(b, 8, false); err == nil {
		t.Error("a damaged object was not noticed")
	}
}
