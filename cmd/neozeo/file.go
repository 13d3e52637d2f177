package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/fsformat"
)

// fileStorage is a Data.fs, as long as it was when it was opened, as a
// [zeo.Storage] that can only be read.
type fileStorage struct{ r *fsformat.Reader }

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
	return &fileStorage{r}, nil
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

func (s *fileStorage) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (zeo.Revision, error) {
	r, err := s.r.LoadBefore(ctx, oid, before)
	switch {
	case errors.Is(err, txn.ErrNotFound):
		err = zeo.ErrTooEarly
	case errors.Is(err, txn.ErrNoSuchObject):
		err = zeo.ErrNoSuchObject
	}
	return zeo.Revision(r), err
}

func (s *fileStorage) LoadSerial(ctx context.Context, oid tid.OID, serial tid.TID) ([]byte, error) {
	r, err := s.r.LoadAt(ctx, oid, serial)
	if errors.Is(err, txn.ErrNotFound) || errors.Is(err, txn.ErrNoSuchObject) {
		err = zeo.ErrNoSuchObject
	}
	return r.Data, err
}

func meta(i *txn.Info) zeo.Meta {
	return zeo.Meta{TID: i.TID, User: bytes.Clone(i.User), Description: bytes.Clone(i.Description), Extension: bytes.Clone(i.Extension), Size: i.Size}
}

func (s *fileStorage) History(ctx context.Context, oid tid.OID, n int) ([]zeo.Meta, error) {
	revisions, err := s.r.Revisions(ctx, oid, n)
	if errors.Is(err, txn.ErrNoSuchObject) {
		return nil, zeo.ErrNoSuchObject
	}
	var list []zeo.Meta
	for i := range revisions {
		list = append(list, meta(&revisions[i]))
	}
	return list, err
}

func (s *fileStorage) UndoLog(ctx context.Context, first, last int, accept func(*zeo.Meta) bool) ([]zeo.Meta, error) {
	var list []zeo.Meta
	n := 0
	for info, err := range s.r.Backwards(ctx) {
		if err != nil {
			return nil, err
		}
		if n >= last || info.Status == txn.Packed {
			break
		}
		m := meta(info)
		if !accept(&m) {
			continue
		}
		if n >= first {
			list = append(list, m)
		}
		n++
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
		list = append(list, zeo.Change{TID: t.TID, OIDs: slices.Clone(t.OIDs)})
	}
	slices.Reverse(list)
	return list, after, nil
}

func (s *fileStorage) NextObject(ctx context.Context, from tid.OID) (tid.OID, zeo.Revision, error) {
	for oid, err := range s.r.OIDs(ctx, tid.Max, from) {
		if err != nil {
			return 0, zeo.Revision{}, err
		}
		r, err := s.LoadBefore(ctx, oid, tid.Max)
		return oid, r, err
	}
	return 0, zeo.Revision{}, zeo.ErrNoSuchObject
}

func (s *fileStorage) NewOIDs(context.Context, int) ([]tid.OID, error) { return nil, zeo.ErrReadOnly }

func (s *fileStorage) Begin(context.Context, zeo.Begin) (zeo.Txn, error) { return nil, zeo.ErrReadOnly }

func (s *fileStorage) Pack(context.Context, tid.TID) error {
	return fmt.Errorf("pack: %w", zeo.ErrReadOnly)
}
