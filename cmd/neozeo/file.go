package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sort"
	"sync"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/fsformat"
)

// fileStorage is a Data.fs, as long as it was when it was opened, as a
// [zeo.Storage] that can only be read.
type fileStorage struct {
	r    *fsformat.Reader
	oids func() []tid.OID // made when first needed
}

func openFile(ctx context.Context, path string) (*fileStorage, error) {
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		return nil, err
	}
	// Clients take the last transaction for the greatest: what is above it they would
	// not see.
	err = r.CheckOrder(ctx, tid.Zero)
	if errors.Is(err, fsformat.ErrOrder) {
		err = fmt.Errorf("%w; neoexport --renumber makes a file of it whose ids increase", err)
	}
	if err == nil {
		_, err = r.UseIndex(ctx, path+".index", nil)
	}
	if err != nil {
		r.Close() // read only: nothing to lose
		return nil, err
	}
	return &fileStorage{r, sync.OnceValue(func() []tid.OID { return r.Index().OIDs() })}, nil
}

func (s *fileStorage) Close() error { return s.r.Close() }

func (s *fileStorage) Features() zeo.Features {
	return zeo.Features{
		Name: s.r.Name(), ReadOnly: true, Undo: true, Iterate: true, Objects: true, Local: true,
	}
}

func (s *fileStorage) Size() (objects, bytes int64) { return int64(s.r.Index().Len()), s.r.Size() }

func (s *fileStorage) Watch(ctx context.Context, _ zeo.Watcher) (tid.TID, error) {
	return s.r.LastTID(ctx)
}

func (s *fileStorage) Sync(context.Context) error { return nil }

func (s *fileStorage) LoadBefore(_ context.Context, oid tid.OID, before tid.TID) (zeo.Revision, error) {
	data, at, end, err := s.r.LoadBefore(oid, before)
	if errors.Is(err, fsformat.ErrNotFound) {
		if _, exists := s.r.Index().Get(oid); exists && at == tid.Zero {
			return zeo.Revision{}, zeo.ErrTooEarly
		}
		return zeo.Revision{}, zeo.ErrNoSuchObject
	}
	return zeo.Revision{Data: data, Serial: at, Next: end}, err
}

func (s *fileStorage) LoadSerial(_ context.Context, oid tid.OID, serial tid.TID) ([]byte, error) {
	data, err := s.r.LoadSerial(oid, serial)
	if errors.Is(err, fsformat.ErrNotFound) {
		err = zeo.ErrNoSuchObject
	}
	return data, err
}

func (s *fileStorage) History(ctx context.Context, oid tid.OID, n int) ([]zeo.Meta, error) {
	if n <= 0 {
		return nil, nil
	}
	revisions, err := s.r.History(ctx, oid, n)
	if errors.Is(err, fsformat.ErrNotFound) {
		return nil, zeo.ErrNoSuchObject
	}
	if err != nil {
		return nil, err
	}
	list := make([]zeo.Meta, len(revisions))
	for i := range revisions {
		r := &revisions[i]
		t, err := s.r.TransactionAt(r.TxnPos)
		if err != nil {
			return nil, err
		}
		list[i] = zeo.Meta{TID: r.TID, User: t.User, Description: t.Description, Extension: t.Extension, Size: r.DataLen}
	}
	return list, nil
}

func (s *fileStorage) UndoLog(ctx context.Context, first, last int, accept func(*zeo.Meta) bool) ([]zeo.Meta, error) {
	var list []zeo.Meta
	const chunk = 64
	for skip, n := 0, 0; n < last; skip += chunk {
		part, err := s.r.UndoLog(ctx, skip, chunk)
		if err != nil {
			return nil, err
		}
		for _, u := range part {
			m := zeo.Meta{TID: u.TID, User: u.User, Description: u.Description, Extension: u.Extension, Size: u.Size}
			if n == last || !accept(&m) {
				continue
			}
			if n >= first {
				list = append(list, m)
			}
			n++
		}
		if len(part) < chunk {
			break
		}
	}
	return list, nil
}

func (s *fileStorage) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return s.r.Transactions(ctx, after, upTo)
}

// mostChanges bounds what is asked for at once about the past.
const mostChanges = 4096

// Changes implements [zeo.Changer].
func (s *fileStorage) Changes(ctx context.Context, after tid.TID, n int) ([]zeo.Change, tid.TID, error) {
	n = min(n, mostChanges)
	var list []zeo.Change
	for t, err := range s.r.Backwards(ctx) {
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
		c := zeo.Change{TID: t.TID}
		for r, err := range t.Places {
			if err != nil {
				return nil, after, err
			}
			c.OIDs = append(c.OIDs, r.OID)
		}
		list = append(list, c)
	}
	for i, j := 0, len(list)-1; i < j; i, j = i+1, j-1 {
		list[i], list[j] = list[j], list[i]
	}
	return list, after, nil
}

func (s *fileStorage) NextObject(ctx context.Context, from tid.OID) (tid.OID, zeo.Revision, error) {
	oids := s.oids()
	for i := sort.Search(len(oids), func(i int) bool { return oids[i] >= from }); i < len(oids); i++ {
		r, err := s.LoadBefore(ctx, oids[i], tid.Max)
		if err == nil || !errors.Is(err, zeo.ErrNoSuchObject) {
			return oids[i], r, err
		}
	}
	return 0, zeo.Revision{}, zeo.ErrNoSuchObject
}

func (s *fileStorage) NewOIDs(context.Context, int) ([]tid.OID, error) { return nil, zeo.ErrReadOnly }

func (s *fileStorage) Begin(context.Context, zeo.Begin) (zeo.Txn, error) { return nil, zeo.ErrReadOnly }

func (s *fileStorage) Pack(context.Context, tid.TID) error {
	return fmt.Errorf("pack: %w", zeo.ErrReadOnly)
}
