package backendtest

import (
	"errors"
	"sync"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// ErrFault is the error of an operation that was made to fail.
var ErrFault = errors.New("injected fault")

// Faulty is a backend of which one writing call fails, and every call after it,
// as of a database whose disk is broken.
type Faulty struct {
	backend.Backend
	m     sync.Mutex
	left  int
	fired bool
}

// FailAt returns b with its n-th writing call (from 1) failing. The call does
// nothing then.
func FailAt(b backend.Backend, n int) *Faulty { return &Faulty{Backend: b, left: n} }

// Fired reports whether a call was made to fail.
func (f *Faulty) Fired() bool {
	f.m.Lock()
	defer f.m.Unlock()
	return f.fired
}

func (f *Faulty) step() error {
	f.m.Lock()
	defer f.m.Unlock()
	if f.left--; f.left == 0 {
		f.fired = true
	}
	if f.fired {
		return ErrFault
	}
	return nil
}

// HoldData may fail.
func (f *Faulty) HoldData(oid tid.OID, d proto.ObjectData, dataSerial proto.Opt[tid.TID]) (backend.DataID, error) {
	if err := f.step(); err != nil {
		return backend.DataID{}, err
	}
	return f.Backend.HoldData(oid, d, dataSerial)
}

// ReleaseData may fail.
func (f *Faulty) ReleaseData(ids []backend.DataID, prune bool) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Backend.ReleaseData(ids, prune)
}

// Vote may fail.
func (f *Faulty) Vote(ttid tid.TID, stores []backend.Store, meta *backend.Meta, pack *proto.PackRequest) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Backend.Vote(ttid, stores, meta, pack)
}

// Lock may fail.
func (f *Faulty) Lock(ttid, final tid.TID, approvePack bool) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Backend.Lock(ttid, final, approvePack)
}

// Unlock may fail.
func (f *Faulty) Unlock(ttid, final tid.TID, meta, objects, pack bool) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Backend.Unlock(ttid, final, meta, objects, pack)
}

// Abort may fail.
func (f *Faulty) Abort(ttid tid.TID) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Backend.Abort(ttid)
}

// Commit may fail.
func (f *Faulty) Commit() error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Backend.Commit()
}

// CommitVotes may fail.
func (f *Faulty) CommitVotes() error { return f.Commit() }

// ChangePartitionTable may fail.
func (f *Faulty) ChangePartitionTable(ptid uint64, replicas int, cells []proto.CellChange, reset bool, lastPack tid.TID) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Backend.ChangePartitionTable(ptid, replicas, cells, reset, lastPack)
}

// AddTransaction may fail.
func (f *Faulty) AddTransaction(t tid.TID, meta backend.Meta, pack *proto.PackState) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Backend.AddTransaction(t, meta, pack)
}

// AddObject may fail.
func (f *Faulty) AddObject(oid tid.OID, t tid.TID, d proto.ObjectData, dataSerial proto.Opt[tid.TID]) error {
	if err := f.step(); err != nil {
		return err
	}
	return f.Backend.AddObject(oid, t, d, dataSerial)
}
