package reader_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/neozodb/neo/backup/backuptest"
	"github.com/neozodb/neo/backup/reader"
	"github.com/neozodb/neo/backup/store"
	"github.com/neozodb/neo/backup/store/memstore"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// What is read after Close from indexes that are on this machine is an error, at once.
func TestClosedWithIndexes(t *testing.T) {
	for _, dir := range []string{"", t.TempDir()} {
		r := backuptest.New(t, memstore.New(memstore.Options{}), true)
		r.Listed([]*txn.Transaction{backuptest.Txn(0x10, txn.Record{OID: 1, Data: []byte("one")})})
		d, err := reader.Open(t.Context(), r.Repository, r.Keys, r.Now(), reader.Options{CacheDir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Filled(t.Context()); err != nil {
			t.Fatal(err)
		}
		next := func(yield func(error) bool) {
			for _, err := range d.OIDs(t.Context(), tid.Max, 0) {
				if !yield(err) {
					return
				}
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		for name, read := range map[string]func(context.Context) error{
			"LoadBefore": func(ctx context.Context) error { _, err := d.LoadBefore(ctx, 1, tid.Max); return err },
			"LoadAt":     func(ctx context.Context) error { _, err := d.LoadAt(ctx, 1, 0x10); return err },
			"OIDs": func(context.Context) (err error) {
				for err = range next {
				}
				return err
			},
		} {
			done := make(chan error, 1)
			go func() { done <- read(context.Background()) }()
			select {
			case err := <-done:
				if dir == "" && name == "OIDs" && err == nil {
					continue // all of it was in memory
				}
				if !errors.Is(err, txn.ErrUnavailable) {
					t.Errorf("%s, directory %q: %v", name, dir, err)
				}
			case <-time.After(2 * time.Minute):
				t.Fatalf("%s, directory %q, does not return", name, dir)
			}
		}
	}
}

// Waiting for the index of a store that does not answer ends with that, also if reading it has begun
// before.
func TestFilledOfASilentStore(t *testing.T) {
	s := &silent{Wrapped: store.Wrapped{Store: memstore.New(memstore.Options{})}}
	r := backuptest.New(t, s, true)
	r.Listed([]*txn.Transaction{backuptest.Txn(0x10, txn.Record{OID: 1, Data: []byte("one")})})
	state := r.Now()
	s.on.Store(true)
	for range 10 {
		d, err := reader.Open(t.Context(), r.Repository, r.Keys, state, reader.Options{ReadTimeout: 20 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		if err := d.Filled(ctx); !errors.Is(err, txn.ErrUnavailable) {
			t.Errorf("%v", err)
		}
		cancel()
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
}
