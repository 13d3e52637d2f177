package storage

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/pace"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// slowRecords is a database in which replication of a record takes recordTime.
type slowRecords struct{ backend.Backend }

const recordTime = time.Millisecond

func (s slowRecords) FetchObject(ctx context.Context, oid tid.OID, t tid.TID) (backend.Object, error) {
	time.Sleep(recordTime)
	return s.Backend.FetchObject(ctx, oid, t)
}

func (s slowRecords) AddObject(oid tid.OID, t tid.TID, d proto.ObjectData, from proto.Opt[tid.TID]) error {
	time.Sleep(recordTime)
	return s.Backend.AddObject(oid, t, d, from)
}

// waitingRecords is a database in which a record that is replicated waits as long for clients.
type waitingRecords struct{ backend.Backend }

func (s waitingRecords) FetchObject(ctx context.Context, oid tid.OID, t tid.TID) (backend.Object, error) {
	time.Sleep(recordTime)
	backend.WaitsOf(ctx).Add(recordTime)
	return s.Backend.FetchObject(ctx, oid, t)
}

func waiting(c *Config) { c.Backend = waitingRecords{c.Backend} }

func slow(c *Config) { c.Backend = slowRecords{c.Backend} }

// Whatever replication costs on the source or on the replica, it takes its share of
// the time while clients are served there, and all of it otherwise.
func TestReplicationYields(t *testing.T) {
	const (
		records = 1000
		work    = records * recordTime
		always  = time.Hour
		// What a client waits for at most: a burst, and the record under way.
		longest = pace.Burst + pace.MaxAhead*recordTime + time.Millisecond
	)
	for _, tt := range []struct {
		name      string
		slow      int // the storage that is slow, and serves clients
		share     float64
		served    time.Duration // from the beginning
		least     time.Duration
		most      time.Duration
		dontStore bool // the clients only load
		waits     bool // for clients, instead of being slow
	}{
		{name: "from a storage without clients", slow: 1, least: work, most: work * 11 / 10},
		{name: "to a storage without clients", slow: 2, least: work, most: work * 11 / 10},
		{name: "from a storage with clients", slow: 1, served: always, least: 9 * work, most: 12 * work},
		{name: "from a storage that waits for clients", slow: 1, served: always, waits: true, least: work, most: work * 11 / 10},
		{name: "to a storage with clients", slow: 2, served: always, least: 9 * work, most: 12 * work},
		{name: "from a storage with readers", slow: 1, served: always, dontStore: true, least: 9 * work, most: 12 * work},
		{name: "to a storage with clients, half of the time", slow: 2, served: always, share: 50, least: 2 * work * 9 / 10, most: 3 * work},
		{name: "from a storage with clients, not yielding", slow: 1, served: always, share: 100, least: work, most: work * 12 / 10},
		{name: "to a storage with clients, not yielding", slow: 2, served: always, share: 100, least: work, most: work * 12 / 10},
		// A tenth of a second of work in the first second, and the rest at once.
		{name: "from a storage whose clients leave", slow: 1, served: time.Second, least: work + 9*time.Second/10, most: work + 11*time.Second/10},
		{name: "to a storage whose clients leave", slow: 2, served: time.Second, least: work + 9*time.Second/10, most: work + 11*time.Second/10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				s1 := r.start(1, backendtest.NewMemory(), func(c *Config) {
					c.ReplicationShare = tt.share
					switch {
					case tt.slow == 1 && tt.waits:
						waiting(c)
					case tt.slow == 1:
						slow(c)
					}
				})
				s1.initialize(1, table("U"))
				s1.operate()
				c := s1.client(1)
				for i := range tid.TID(records / 10) {
					var oids []tid.OID
					for j := range tid.OID(10) {
						oids = append(oids, tid.OID(10*i)+j)
					}
					s1.commit(c, 10+i, 0, "text", oids...)
				}
				last := tid.TID(10 + records/10 - 1)
				time.Sleep(time.Second) // they are gone
				s2 := r.start(2, backendtest.NewMemory(), func(c *Config) {
					c.ReplicationShare = tt.share
					if tt.slow == 2 {
						slow(c)
					}
				})
				s1.announce(proto.NodeRunning, s2.node())
				s1.master.Send(&proto.NotifyPartitionChanges{PTID: 2, Replicas: 1, Cells: []proto.CellChange{{Partition: 0, ID: 2, State: proto.OutOfDate}}})
				s2.initialize(2, table("UO"), s1.node())
				s2.operate()

				s := []*testNode{s1, s2}[tt.slow-1]
				c = s.client(2)
				if tt.served > 0 { // from now on
					call[*proto.AnswerStoreObject](c, store(last+10, 2*records, 0, "x"))
				}
				begin := time.Now()
				stop, gone := make(chan struct{}), make(chan struct{})
				go func() { // a client
					defer close(gone)
					for oid := tid.OID(records); time.Since(begin) < tt.served; oid++ {
						asked := time.Now()
						var req proto.Request = &proto.AskObject{OID: 1}
						if !tt.dontStore {
							req = store(last+10, oid, 0, "x")
						}
						if _, err := try(c, req); err != nil && tt.slow == 1 {
							t.Error(err)
							return
						}
						if d := time.Since(asked); d > longest && tt.share != 100 {
							t.Errorf("a client waited for %v, want at most %v", d, longest)
						}
						select {
						case <-stop:
							return
						case <-time.After(2 * time.Millisecond):
						}
					}
				}()
				s2.unfinished(last)
				await[*proto.NotifyReplicationDone](s2)
				took := time.Since(begin)
				close(stop)
				<-gone
				t.Logf("%v for %v of work", took, work)
				if took < tt.least || took > tt.most {
					t.Errorf("replication took %v, want %v to %v", took, tt.least, tt.most)
				}
				if diff := cmp.Diff(contents(t, s1.db), contents(t, s2.db)); diff != "" {
					t.Errorf("replica (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// What a storage gives to others stays below the rate, with and without clients, but
// no time is lost.
func TestReplicationRate(t *testing.T) {
	const records, size, rate, nap = 200, 10_000, 100_000, 5 * time.Millisecond
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		s := r.run(func(c *Config) { c.ReplicationRate = rate })
		c := s.client(1)
		var oids []tid.OID
		for i := range tid.OID(records) {
			oids = append(oids, 2*i)
		}
		s.commit(c, 10, 0, strings.Repeat("x", size), oids...)
		b := s.dial("b")
		call[*proto.AcceptIdentification](b, &proto.RequestIdentification{Type: proto.Storage, Cluster: "test"})
		begin := time.Now()
		b.Ask(&proto.AskFetchObjects{Partition: 0, Length: 1000, Max: 20}, nil)
		got := 0
		for {
			switch (<-b.events).Packet.(type) {
			case *proto.AddObject:
				got++
				continue
			case *proto.AnswerFetchObjects:
			default:
				t.Fatal("not what was asked for")
			}
			break
		}
		want := records * size * time.Second / rate
		if took := time.Since(begin); got != records || took < want-2*nap || took > want+2*nap {
			t.Errorf("%d records in %v, want %d in %v", got, took, records, want)
		}
	})
}

// What a check reads of the storage's own cell counts as work for others: the next
// piece waits while clients are served.
func TestCheckYields(t *testing.T) {
	const records, work = 100, 100 * recordTime
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		s2 := r.scriptedStorage(2)
		s := r.start(1, backendtest.NewMemory(), slow)
		s.initialize(1, table("UU", "U."), s2.node)
		s.operate()
		c := s.client(1)
		var oids []tid.OID
		for i := range tid.OID(records) {
			oids = append(oids, 2*i)
		}
		s.commit(c, 10, 0, "x", oids...)
		stop, gone := make(chan struct{}), make(chan struct{})
		go func() { // a client
			defer close(gone)
			for {
				select {
				case <-stop:
					return
				case <-time.After(2 * time.Millisecond):
					if _, err := try(c, &proto.AskObject{OID: 0}); err != nil {
						t.Error(err)
						return
					}
				}
			}
		}()
		begin := time.Now()
		s.master.Send(&proto.CheckPartition{Partition: 0, Max: 20})
		s2.accept(s)
		for range 3 { // transactions, records, and for the packs
			switch ev := <-s2.events; ev.Packet.(type) {
			case *proto.AskFetchTransactions:
				ev.Conn.Answer(ev.ID, &proto.AnswerFetchTransactions{})
			case *proto.AskFetchObjects:
				ev.Conn.Answer(ev.ID, &proto.AnswerFetchObjects{})
			default:
				t.Fatalf("the check asks %T", ev.Packet)
			}
		}
		await[*proto.NotifyPartitionCorrupted](s)
		took := time.Since(begin)
		close(stop)
		<-gone
		if took < 8*work {
			t.Errorf("the check took %v beside a client, for %v of work: it does not yield", took, work)
		}
	})
}
