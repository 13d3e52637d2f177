package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/fsformat"
)

// fileStorage is a Data.fs, as long as it was when it was opened.
type fileStorage struct {
	*zeo.Reader
	r *fsformat.Reader
}

// Close closes the file.
func (s fileStorage) Close() error { return s.r.Close() }

func openFile(ctx context.Context, path string) (fileStorage, error) {
	r, err := fsformat.Open(path, fsformat.Options{})
	if err != nil {
		return fileStorage{}, err
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
		return fileStorage{}, err
	}
	st := zeo.NewReader(r, zeo.ReaderConfig{Name: r.Name(), Local: true, Objects: int64(r.Index().Len()), Bytes: r.Size()})
	return fileStorage{st, r}, nil
}
