package admin

import (
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// What a check has found is told to the operators that follow it, and stays in the
// summary, also over the loss of the master, until a check is clean.
func TestCheckReports(t *testing.T) {
	m := newMaster(t, func(p proto.Packet) proto.Packet {
		if _, ok := p.(*proto.AskLastTransaction); ok {
			return &proto.AnswerLastTransaction{TID: 5}
		}
		return nil
	})
	n, _ := start(t, m, nil)
	c := dial(t, n)
	warned := func() bool {
		p := call[*proto.AnswerMonitorInformation](t, c, &proto.AskMonitorInformation{})
		return strings.Contains(p.Summary, "\nCHECK: replicas differ (3 differences; partition 1; node S2)")
	}
	m.send((&check.Report{Check: 7, Partition: check.None, Partitions: []int{1, 2}, Max: 9}).Packet())
	m.send((&check.Report{Check: 7, Partition: 1, State: check.Compared, Max: 9, Total: 3, Nodes: []proto.NodeID{2}}).Packet())
	until(t, "the summary warns", warned)

	events := make(chan *check.Report, 100)
	follower, err := link.Dial(t.Context(), n.Addr(), link.Config{Deliver: func(ev link.Event) {
		if p, ok := ev.Packet.(*proto.NotifyMonitorInformation); ok {
			r, _, err := check.Parse(p)
			if err != nil {
				t.Error(err)
			}
			events <- r
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer follower.Close()
	next := func(check int64, partition int, state check.State) *check.Report {
		t.Helper()
		r := <-events
		if r.Check != check || r.Partition != partition || r.State != state {
			t.Fatalf("got %+v, want check %d, partition %d, %v", r, check, partition, state)
		}
		return r
	}
	follower.Send((&check.Report{Check: 8, Partition: check.None}).Packet())
	next(8, check.None, check.Failed) // unknown
	follower.Send((&check.Report{Check: 7, Partition: check.None}).Packet())
	next(7, check.None, check.Begun)
	if r := next(7, 1, check.Compared); r.Total != 3 {
		t.Errorf("%+v", r)
	}
	next(7, 2, check.Begun)
	m.send((&check.Report{Check: 9, Partition: check.None, Partitions: []int{0}}).Packet()) // of another check
	m.send((&check.Report{Check: 7, Partition: 2, State: check.Comparing, Max: 9, Rows: 4}).Packet())
	if r := next(7, 2, check.Comparing); r.Rows != 4 {
		t.Errorf("%+v", r)
	}
	follower.Send((&check.Report{Check: 7, Partition: check.None, State: check.Repair, Nodes: []proto.NodeID{2}}).Packet())
	until(t, "the order is passed on", func() bool { return m.received((&proto.NotifyMonitorInformation{}).Code()) })

	m.hangUp()
	if r := next(7, 2, check.Failed); !strings.Contains(r.Note, "master was lost") {
		t.Errorf("%+v", r)
	}
	c = dial(t, n)
	until(t, "the summary still warns", warned)
	m.send((&check.Report{Check: 10, Partition: 1, State: check.Compared, Max: 9}).Packet())
	until(t, "the summary is clean", func() bool { return !warned() })
}
