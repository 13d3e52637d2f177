package client_test

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"weak"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// liveHeap returns the bytes in use after a garbage collection.
func liveHeap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A transaction may be larger than the memory of its client: what all storages
// have is dropped, except as much as the cache may take.
func TestLargeTransaction(t *testing.T) {
	const (
		size    = 64 << 10
		records = 1024
		limit   = 8 << 20
	)
	playScript(t, 2, 10, func(t *testing.T, s *script) {
		s.take = true
		c := s.open(func(cfg *client.Config) { cfg.CacheSize, cfg.Level = 1<<20, client.NoCompression })
		tx := begin(t, c)
		before := liveHeap()
		for i := range records {
			data := make([]byte, size)
			binary.BigEndian.PutUint64(data, uint64(i))
			if err := tx.Store(t.Context(), tid.OID(i), 0, data); err != nil {
				t.Fatal(err)
			}
			if i%256 == 255 {
				tx.Flush()
				synctest.Wait() // for what is under way
				if grown := liveHeap() - before; grown > limit {
					t.Fatalf("%d KiB in use for %d KiB that were stored", grown>>10, (i+1)*size>>10)
				}
			}
		}
		if err := <-vote(t.Context(), tx); err != nil {
			t.Fatalf("vote: %v", err)
		}
		if s.taken != 2*records*size {
			t.Errorf("%d bytes were stored, want %d", s.taken, 2*records*size)
		}
		done := make(chan error, 1)
		go func() {
			at, err := tx.Finish(t.Context(), nil)
			if at != 1020 {
				t.Errorf("finished as %v", at)
			}
			done <- err
		}()
		synctest.Wait()
		if n := len(s.finish.Packet.(*proto.AskFinishTransaction).OIDs); n != records {
			t.Errorf("%d objects to be committed, want %d", n, records)
		}
		s.finish.Conn.Answer(s.finish.ID, &proto.AnswerTransactionFinished{TTID: tx.TTID(), TID: 1020})
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// However many transactions a client has ended, it keeps none of them: a copy of a
// database is as many as there are.
func TestEndedTransactionsAreForgotten(t *testing.T) {
	const ended = 10000 // transactions copied; the others are a tenth of it
	data := func(i int) []byte { return fmt.Append(nil, "record ", i) }
	type set = map[weak.Pointer[client.Txn]]bool
	stored := func(t *testing.T, c *client.Client, seen set, i int) *client.Txn {
		tx := begin(t, c)
		seen[weak.Make(tx)] = true
		if err := tx.Store(t.Context(), tid.OID(i), 0, data(i)); err != nil {
			t.Fatal(err)
		}
		return tx
	}
	for _, tt := range []struct {
		name  string
		start func(t *testing.T, c *client.Client, seen set) (step func(i int) error, end func() error)
	}{
		{"copied", func(t *testing.T, c *client.Client, seen set) (func(int) error, func() error) {
			a := c.NewAppender(t.Context(), client.AppenderOptions{})
			return func(i int) error {
				if i%10 == 0 { // each of them is under way for longer
					c.UnderWay(seen)
				}
				at := tid.TID(i + 1)
				return a.Append(&txn.Transaction{TID: at, Status: ' ', Records: txn.Slice([]txn.Record{
					{OID: tid.OID(i), TID: at, Data: data(i)},
					{OID: tid.OID(i % 100), TID: at, Data: data(-i)}, // often under way elsewhere
				})})
			}, a.Close
		}},
		{"committed", func(t *testing.T, c *client.Client, seen set) (func(int) error, func() error) {
			return func(i int) error {
				_, err := stored(t, c, seen, i).Finish(t.Context(), nil)
				return err
			}, nil
		}},
		{"committed without waiting", func(t *testing.T, c *client.Client, seen set) (func(int) error, func() error) {
			return func(i int) error {
				tx := stored(t, c, seen, i)
				done := make(chan bool, 1)
				tx.VoteAsync(func(voted bool) { done <- voted })
				if !<-done {
					_, err := tx.Vote(t.Context())
					return err
				}
				tx.FinishAsync(nil, func(_ tid.TID, finished bool) { done <- finished })
				if !<-done {
					_, err := tx.Finish(t.Context(), nil)
					return err
				}
				return nil
			}, nil
		}},
		{"aborted", func(t *testing.T, c *client.Client, seen set) (func(int) error, func() error) {
			return func(i int) error {
				tx := stored(t, c, seen, i)
				if i%2 == 0 { // after the vote
					if _, err := tx.Vote(t.Context()); err != nil {
						return err
					}
				}
				return tx.Abort(t.Context())
			}, nil
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			simulate(t, shape{partitions: 2, storages: 1}, func(t *testing.T, r *rig) {
				c, seen := r.open(nil), set{}
				step, end := tt.start(t, c, seen)
				n := ended
				if end == nil {
					n /= 10
				}
				for i := range n {
					if err := step(i); err != nil {
						t.Fatal(err)
					}
				}
				live := func() (n int) {
					synctest.Wait()
					runtime.GC()
					runtime.GC() // for what a cleanup of the first let go of
					for p := range seen {
						if p.Value() != nil {
							n++
						}
					}
					return n
				}
				// Not more than may be under way, before the end of the copy...
				if n := live(); n > 300 {
					t.Errorf("%d of %d transactions in memory", n, len(seen))
				}
				if end != nil {
					if err := end(); err != nil {
						t.Fatal(err)
					}
				}
				// ... nor than the last ones after it.
				if n := live(); n > 2 {
					t.Errorf("%d of %d transactions in memory after the end", n, len(seen))
				}
				if len(seen) < n/2 {
					t.Errorf("only %d of %d transactions were seen", len(seen), n)
				}
			})
		})
	}
}
