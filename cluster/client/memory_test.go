package client_test

import (
	"encoding/binary"
	"runtime"
	"testing"
	"testing/synctest"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
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
