package storage

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// However operation ends, transactions that were not voted leave nothing in the
// database, although a commit has written their data; what was voted stays.
func TestNothingUnvotedStays(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(s *testNode)
	}{
		{"context", func(s *testNode) { s.cancel() }},
		{"told down", func(s *testNode) { s.announce(proto.NodeDown) }},
		{"stop operation", func(s *testNode) {
			s.master.Send(&proto.StopOperation{})
			s.barrier()
			s.cancel()
		}},
		{"master lost", func(s *testNode) {
			s.master.Close()
			s.connected()
			s.announce(proto.NodePending)
			s.barrier()
			s.cancel()
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			path := filepath.Join(t.TempDir(), "db")
			s := r.start(1, backendtest.NewMemory(), func(c *Config) { c.Backend = openFile(t, path) })
			s.initialize(1, table("U", "U"))
			s.operate()
			c := s.client(1)
			s.commit(c, 2, 0, "committed", 0)
			call[*proto.AnswerStoreObject](c, store(10, 1, 0, "unvoted"))
			call[*proto.AnswerStoreObject](c, store(12, 2, 0, "voted"))
			call[*proto.AnswerStoreTransaction](c, &proto.AskStoreTransaction{TTID: 12, OIDs: []tid.OID{2}})
			if n := orphans(t, crashed(t, path)); n != 1 {
				t.Fatalf("a crash leaves %d orphans, want the record that is not voted", n)
			}
			tt.end(s)
			if err := s.wait(); err != nil {
				t.Errorf("Run returned %v", err)
			}
			if n := orphans(t, crashed(t, path)); n != 0 {
				t.Errorf("%d orphans before the database is closed", n)
			}
			if err := s.db.Close(); err != nil {
				t.Fatal(err)
			}

			db := openFile(t, path)
			if n := orphans(t, db); n != 0 {
				t.Errorf("%d orphans", n)
			}
			want := map[tid.TID]proto.Opt[tid.TID]{12: {}}
			if got, err := db.Unfinished(); err != nil || !cmp.Equal(got, want) {
				t.Errorf("unfinished: %v, %v, want %v", got, err, want)
			}
			if err := db.Validate(12, 14); err != nil {
				t.Fatal(err)
			}
			for oid, want := range map[tid.OID]string{0: "committed", 2: "voted"} {
				o, err := db.GetObject(t.Context(), oid, proto.Opt[tid.TID]{}, proto.Opt[tid.TID]{})
				if err != nil || string(o.Data) != want {
					t.Errorf("object %v: %q, %v, want %q", oid, o.Data, err, want)
				}
			}
		})
	}
}

// A question that the master has not answered when it stops operation delays
// nothing: Truncate comes at once. Its answer is ignored whenever it comes.
func TestStopOperationWithOpenQuestion(t *testing.T) {
	for _, tt := range []struct {
		name   string
		asleep bool // the answer comes before the next period of operation
	}{
		{"answered while stopped", true},
		{"answered after the next question", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			// S2 would be asked for what S1 lacks, if an answer were believed.
			other, err := link.Listen(t.Context(), proto.Address{Host: "s2", Port: 1000}, link.Config{
				Network: r.net.Host("s2"),
				Deliver: func(link.Event) {},
			}, func(*link.Conn) {})
			if err != nil {
				t.Fatal(err)
			}
			defer other.Close()
			s2 := proto.Node{Type: proto.Storage, ID: 2, Addr: other.Addr(), State: proto.NodeRunning, IDTimestamp: proto.Some(2.0)}
			s := r.start(1, backendtest.NewMemory(), nil)
			s.initialize(1, table("U.", "OU"), s2)
			s.operate()
			question := func() uint32 {
				t.Helper()
				ev := s.next()
				if _, ok := ev.Packet.(*proto.AskUnfinishedTransactions); !ok {
					t.Fatalf("got %T %+v, want AskUnfinishedTransactions", ev.Packet, ev.Packet)
				}
				return ev.ID
			}
			links := func() int {
				n := make(chan int)
				s.post(func() error { n <- len(s.links); return nil })
				return <-n
			}
			ping := func() {
				t.Helper()
				s.master.Ask(&proto.Ping{}, nil)
				expect[*proto.Pong](s)
			}
			late := func(id uint32) {
				t.Helper()
				s.master.Answer(id, &proto.AnswerUnfinishedTransactions{LastTID: 50})
				ping()
				if n := links(); n != 0 {
					t.Errorf("a late answer made %d links", n)
				}
			}
			first := question()

			s.master.Send(&proto.StopOperation{})
			s.master.Send(&proto.Truncate{TID: 100})
			if a := ask[*proto.AnswerRecovery](s, &proto.AskRecovery{}); a.TruncateTID.V != 100 {
				t.Errorf("truncate TID: %+v", a)
			}
			if tt.asleep {
				late(first)
			}
			s.initialize(2, table("U.", "OU"), s2)
			s.operate()
			second := question()
			if !tt.asleep {
				late(first)
			}
			// The node is still connected, and believes the right answer.
			s.master.Answer(second, &proto.AnswerUnfinishedTransactions{LastTID: 50})
			ping()
			if n := links(); n != 1 {
				t.Errorf("%d links after the answer, want one with S2", n)
			}
		})
	}
}
