package zeo

import (
	"context"
	"iter"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// ahead is a storage with transactions 1, 2... of three records each, that reads
// 1 MiB ahead in each iteration.
type ahead struct {
	Storage
	n     tid.TID
	under atomic.Int32 // iterations under way
}

const aheadBytes = 1 << 20

func (s *ahead) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		budget := txn.ReadAheadOf(ctx)
		s.under.Add(1)
		took := budget.Take(aheadBytes)
		defer func() {
			s.under.Add(-1)
			if took {
				budget.Give(aheadBytes)
			}
		}()
		for at := after + 1; at <= min(upTo, s.n); at++ {
			records := []txn.Record{{OID: 1, TID: at}, {OID: 2, TID: at}, {OID: 3, TID: at}}
			if !yield(&txn.Transaction{TID: at, Records: txn.Slice(records)}, nil) {
				return
			}
		}
	}
}

// iterateRounds lets the iterations of many connections advance in turn, and checks
// that each sees everything, in order.
func iterateRounds(t *testing.T, conns, each int) (limits *iterationLimits, list []*iterators, st *ahead) {
	const rounds = 3
	st = &ahead{n: rounds}
	limits = newIterationLimits()
	for range conns {
		it := &iterators{}
		it.init(t.Context(), limits)
		list = append(list, it)
	}
	records := make([]map[int64]int64, conns) // of each iteration
	for round := range rounds + 1 {
		for c, it := range list {
			if round == 0 {
				records[c] = map[int64]int64{}
			}
			for i := range int64(each) {
				id := 2 * i // an iteration over transactions, then one over records
				if round == 0 {
					if got, err := it.start(0, tid.Max); got != id || err != nil {
						t.Fatalf("iteration %d is started as %d, %v", id, got, err)
					}
				} else if r := records[c][id]; r != 0 { // the rest of the last transaction
					for want := tid.OID(2); want <= 4; want++ {
						if err := it.nextRecord(st, r, func(rec *txn.Record) {
							if want == 4 && rec != nil || want < 4 && (rec == nil || rec.OID != want || rec.TID != tid.TID(round)) {
								t.Errorf("record %+v, want %v of %d", rec, want, round)
							}
						}); err != nil {
							t.Fatal(err)
						}
					}
				}
				if round == rounds {
					if err := it.nextTxn(st, id, func(next *txn.Transaction) {
						if next != nil {
							t.Errorf("%v after the last transaction", next.TID)
						}
					}); err != nil {
						t.Fatal(err)
					}
					continue
				}
				at := tid.TID(round + 1)
				if err := it.nextTxn(st, id, func(next *txn.Transaction) {
					if next == nil || next.TID != at {
						t.Fatalf("transaction %v, want %v", next, at)
					}
				}); err != nil {
					t.Fatal(err)
				}
				// The records are begun now, and read once the transaction was left.
				r, err := it.startRecords(id, at)
				if err != nil {
					t.Fatal(err)
				}
				records[c][id] = r
				if err := it.nextRecord(st, r, func(rec *txn.Record) {
					if rec == nil || rec.OID != 1 || rec.TID != at {
						t.Errorf("first record %+v of %v", rec, at)
					}
				}); err != nil {
					t.Fatal(err)
				}
				if it.live > liveIterations {
					t.Fatalf("%d iterations of a connection are live", it.live)
				}
			}
			if used := txn.ReadAheadOf(it.ctx).Used(); used > readAheadConn {
				t.Fatalf("%d bytes read ahead for a connection", used)
			}
		}
		if most := liveTotal + conns; int(limits.live.Load()) > most || int(st.under.Load()) > most {
			t.Fatalf("%d iterations are live, %d under way, want at most %d", limits.live.Load(), st.under.Load(), most)
		}
		if limits.ahead.Used() > readAheadTotal {
			t.Fatalf("%d bytes read ahead", limits.ahead.Used())
		}
	}
	return limits, list, st
}

// Iterations that are open hold nothing but their position, however many there are:
// few are live for a connection, and in a server.
func TestParkedIterations(t *testing.T) {
	for _, tt := range []struct {
		name        string
		conns, each int
	}{
		{"one connection", 1, maxIterators / 2},
		{"many connections", 300, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			limits, list, st := iterateRounds(t, tt.conns, tt.each)
			for _, it := range list {
				it.closeAll()
			}
			if limits.live.Load() != 0 || st.under.Load() != 0 || limits.ahead.Used() != 0 {
				t.Errorf("at the end %d are live, %d under way, %d bytes are used", limits.live.Load(), st.under.Load(), limits.ahead.Used())
			}
		})
	}
}

// An iteration that is not used for a while is parked, and goes on where it was.
func TestIdleIterationIsParked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &ahead{n: 3}
		it := &iterators{}
		it.init(t.Context(), newIterationLimits())
		defer it.closeAll()
		id, err := it.start(0, tid.Max)
		if err != nil {
			t.Fatal(err)
		}
		step := func(want tid.TID) {
			t.Helper()
			if err := it.nextTxn(st, id, func(next *txn.Transaction) {
				if next == nil || next.TID != want {
					t.Errorf("got %v, want transaction %v", next, want)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		live := func(want int) {
			t.Helper()
			synctest.Wait()
			if int(st.under.Load()) != want || int(it.limits.live.Load()) != want || it.limits.ahead.Used() != int64(want*aheadBytes) {
				t.Errorf("%d under way, %d live, %d bytes; want %d", st.under.Load(), it.limits.live.Load(), it.limits.ahead.Used(), want)
			}
		}
		step(1)
		live(1)
		r, err := it.startRecords(id, 1)
		if err != nil {
			t.Fatal(err)
		}
		record := func(want tid.OID) {
			t.Helper()
			if err := it.nextRecord(st, r, func(rec *txn.Record) {
				if rec == nil || rec.OID != want {
					t.Errorf("got %+v, want record %v", rec, want)
				}
			}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(parkAfter - time.Second)
		record(1)
		time.Sleep(parkAfter - time.Second)
		live(1) // its records are in use
		time.Sleep(2 * parkAfter)
		live(0)
		record(2) // from an iteration of its own
		live(1)
		time.Sleep(2 * parkAfter)
		live(0)
		step(2)
		live(1)
	})
}
