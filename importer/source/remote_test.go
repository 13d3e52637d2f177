package source

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

// fake is a connection to a database that can be cut.
type fake struct {
	txn.Database
	records int  // how many of a transaction it gives before it is lost; 0: all
	short   bool // it ends iterations early
	hangs   bool // it does not answer loads
	lost    chan struct{}
}

func newFake(db txn.Database) *fake { return &fake{Database: db, lost: make(chan struct{})} }

func (f *fake) serves(context.Context) error { return nil }
func (f *fake) Done() <-chan struct{}        { return f.lost }
func (f *fake) close()                       {}

func (f *fake) Err() error {
	select {
	case <-f.lost:
		return txn.ErrUnavailable
	default:
		return nil
	}
}

func (f *fake) LoadBefore(ctx context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	if f.hangs {
		<-ctx.Done()
		return txn.Revision{}, ctx.Err()
	}
	return f.Database.LoadBefore(ctx, oid, before)
}

func (f *fake) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		n := 0
		for t, err := range f.Database.Transactions(ctx, after, upTo) {
			if n++; f.short && n == 3 {
				return
			}
			if f.Err() != nil {
				yield(nil, fmt.Errorf("cut: %w", txn.ErrUnavailable))
				return
			}
			c := *t
			all := t.Records
			c.Records = func(yield func(*txn.Record, error) bool) {
				n := 0
				for r, err := range all {
					if n++; f.records > 0 && n > f.records {
						if f.Err() == nil {
							close(f.lost)
						}
						yield(nil, fmt.Errorf("cut: %w", txn.ErrUnavailable))
						return
					}
					if !yield(r, err) {
						return
					}
				}
			}
			if !yield(&c, err) {
				return
			}
		}
	}
}

// over is a remote whose connections are made one after the other.
func over(t *testing.T, patience time.Duration, conns ...*fake) *remote {
	t.Helper()
	r := newRemote("main", "server x", Options{Log: slog.New(slog.DiscardHandler), Patience: patience}, func(context.Context) (connection, error) {
		if len(conns) == 0 {
			return nil, errors.New("nothing listens")
		}
		c := conns[0]
		conns = conns[1:]
		return c, nil
	})
	if err := r.open(t.Context(), false, func(error) bool { return true }); err != nil {
		t.Fatal(err)
	}
	return r
}

func oneTransaction(t *testing.T, oids ...tid.OID) *txntest.Memory {
	t.Helper()
	m := new(txntest.Memory)
	var records []txn.Record
	for _, oid := range oids {
		records = append(records, txn.Record{OID: oid, TID: 1 << 40, Data: fmt.Append(nil, oid)})
	}
	if err := m.Append(&txn.Transaction{TID: 1 << 40, Status: txn.Committed, Records: txn.Slice(records)}); err != nil {
		t.Fatal(err)
	}
	return m
}

// The records of a transaction go on behind those that were given, and what was packed
// meanwhile is noticed.
func TestRecordsAreResumed(t *testing.T) {
	for _, tt := range []struct {
		name         string
		first, other []tid.OID
		want         string
	}{
		{"Same", []tid.OID{1, 2, 3, 4}, []tid.OID{1, 2, 3, 4}, ""},
		{"LaterPacked", []tid.OID{1, 2, 3, 4}, []tid.OID{1, 2, 4}, ""},
		{"EarlierPacked", []tid.OID{1, 2, 3, 4}, []tid.OID{2, 3, 4}, "has other records"},
		{"AllPacked", []tid.OID{1, 2, 3, 4}, nil, "has other records"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				first := newFake(oneTransaction(t, tt.first...))
				first.records = 2
				r := over(t, time.Minute, first, newFake(oneTransaction(t, tt.other...)))
				defer r.Close()
				var got []tid.OID
				var failed error
				for tr, err := range r.Transactions(t.Context(), 0, tid.Max) {
					if err != nil {
						t.Fatal(err)
					}
					for rec, err := range tr.Records {
						if failed = err; err == nil {
							got = append(got, rec.OID)
						}
					}
				}
				if tt.want != "" {
					if failed == nil || !strings.Contains(failed.Error(), tt.want) {
						t.Errorf("records: %v", failed)
					}
					return
				}
				if failed != nil || fmt.Sprint(got) != fmt.Sprint(append(tt.first[:2:2], tt.other[2:]...)) {
					t.Errorf("records %v, %v", got, failed)
				}
			})
		})
	}
}

// An iteration that ends before the last transaction is an error, not the end.
func TestIterationEndsEarly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(txntest.Small())
		f.short = true
		r := over(t, time.Minute, f)
		defer r.Close()
		n := 0
		var failed error
		for _, err := range r.Transactions(t.Context(), 0, tid.Max) {
			if failed = err; err == nil {
				n++
			}
		}
		if n != 2 || failed == nil || !strings.Contains(failed.Error(), "look for damage") {
			t.Errorf("after %d transactions: %v", n, failed)
		}
	})
}

// A server that does not answer is waited for as long as patience lasts, and no other
// read waits with it.
func TestServerHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(txntest.Small())
		f.hangs = true
		r := over(t, 20*time.Second, f)
		defer r.Close()
		began := time.Now()
		done := make(chan error)
		go func() {
			_, err := r.LoadBefore(t.Context(), 0, tid.Max)
			done <- err
		}()
		if _, err := r.LoadAt(t.Context(), 0, 1); !errors.Is(err, txn.ErrNotFound) || time.Since(began) > 0 {
			t.Errorf("another read: %v, after %v", err, time.Since(began))
		}
		err := <-done
		if !errors.Is(err, txn.ErrUnavailable) || !strings.Contains(err.Error(), "no answer within 20s") || time.Since(began) != 20*time.Second {
			t.Errorf("load: %v, after %v", err, time.Since(began))
		}
	})
}

// After Close reads fail at once.
func TestClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := over(t, time.Minute, newFake(txntest.Small()))
		if err := errors.Join(r.Close(), r.Close()); err != nil {
			t.Error(err)
		}
		if _, err := r.LoadBefore(t.Context(), 0, tid.Max); !errors.Is(err, txn.ErrUnavailable) || !errors.Is(err, ErrClosed) {
			t.Errorf("load: %v", err)
		}
		for _, err := range r.OIDs(t.Context(), tid.Max, 0) {
			if !errors.Is(err, ErrClosed) {
				t.Errorf("objects: %v", err)
			}
		}
	})
}
