package check

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/internal/messagetest"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

var full = Report{
	Check: math.MaxInt64, Partition: 7, State: Comparing, Partitions: []int{0, 5}, Reference: 3, Min: 4, Max: tid.Max, Rows: 1 << 40, Total: 300,
	Found: []Difference{
		{7, Missing, 9, proto.Some(tid.OID(0)), 2}, {7, Damaged, 10, proto.Opt[tid.OID]{}, 3},
	},
	Nodes: []proto.NodeID{2, 3}, Stuck: []proto.NodeID{2}, Note: "why", Upstream: "up", Faulty: true,
}

var reports = messagetest.Kind[Report]{Extension: Extension, Parse: Parse, Packet: (*Report).Packet,
	Samples: []Report{full, {Check: -1, Partition: None}}, Optional: []string{"upstream", "faulty"}}

// A report arrives as it was sent, and one that makes no sense is refused.
func TestReport(t *testing.T) { reports.Test(t) }

func FuzzParse(f *testing.F) {
	reports.Fuzz(f, func(r *Report) {
		var b Board
		b.Apply(r)
		b.Summary()
		for _, d := range r.Found {
			_ = d.String()
		}
		for _, rep := range b.Replay() {
			var b2 Board
			b2.Apply(rep)
		}
	})
}

func done(id int64, partition int, min, max tid.TID, total int, nodes ...proto.NodeID) *Report {
	return &Report{Check: id, Partition: partition, State: Compared, Min: min, Max: max, Total: total, Nodes: nodes}
}

// What a check has found stays on the board until another one that covers it finds
// nothing.
func TestBoard(t *testing.T) {
	var b Board
	want := func(s string) {
		t.Helper()
		if got := b.Summary(); got != s {
			t.Errorf("got %q, want %q", got, s)
		}
	}
	want("")
	b.Apply(&Report{Check: 1, Partition: None, Partitions: []int{0, 1}, Max: 100})
	b.Apply(&Report{Check: 1, Partition: 0, State: Comparing, Max: 100, Total: 2, Nodes: []proto.NodeID{2}})
	if r := b.Run(1); r.Over() || len(r.Parts) != 2 {
		t.Errorf("%+v", r)
	}
	want("")
	b.Apply(done(1, 0, 0, 100, 3, 2))
	want("CHECK: replicas differ (3 differences; partition 0; node S2)")
	b.Apply(done(1, 1, 0, 100, 1, 1))
	if !b.Run(1).Over() {
		t.Error("the check is not over")
	}
	want("CHECK: replicas differ (4 differences; partitions 0, 1; nodes S1, S2)")
	b.Apply(done(2, 0, 50, 200, 0)) // of a part
	b.Apply(done(3, 0, 0, 99, 0))
	b.Apply(&Report{Check: 4, Partition: 0, State: Failed, Max: 200, Note: "S2 was lost"})
	want("CHECK: replicas differ (4 differences; partitions 0, 1; nodes S1, S2)")
	b.Apply(done(5, 0, 0, 200, 0))
	want("CHECK: replicas differ (1 difference; partition 1; node S1)")

	// Who comes later is told the same.
	b.Apply(&Report{Check: 6, Partition: None, Partitions: []int{1, 2}, Max: 300})
	b.Apply(&Report{Check: 6, Partition: 1, State: Compared, Reference: 2, Max: 300, Total: 1, Nodes: []proto.NodeID{1},
		Found: []Difference{{1, Extra, 5, proto.Some(tid.OID(1)), 1}}})
	b.Apply(&Report{Check: 6, Partition: 1, State: Repairing, Reference: 2, Nodes: []proto.NodeID{1}})
	var other Board
	for _, r := range b.Replay() {
		other.Apply(r)
	}
	if diff := cmp.Diff(b.Run(6), other.Run(6)); diff != "" || other.Summary() != b.Summary() {
		t.Errorf("after a replay: %q, want %q (-want +got):\n%s", other.Summary(), b.Summary(), diff)
	}
	for _, r := range b.Lost("gone") {
		b.Apply(r)
	}
	for n, p := range b.Run(6).Parts {
		if p.State != Failed || !strings.Contains(strings.Join(p.Notes, " "), "gone") {
			t.Errorf("partition %d: %+v", n, p)
		}
	}
	b.Apply(done(7, 1, 0, 300, 0))
	want("")

	// Nothing grows.
	for i := range int64(1000) {
		b.Apply(done(100+i, 3, 0, 300, 0))
	}
	if len(b.Runs()) > maxRuns {
		t.Errorf("%d checks are remembered", len(b.Runs()))
	}
	for range 3 * MaxFound {
		b.Apply(&Report{Check: 5000, Partition: 3, State: Comparing, Total: 1, Found: []Difference{{3, Extra, 5, proto.Opt[tid.OID]{}, 1}}})
	}
	if n := len(b.Run(5000).Parts[3].Found); n != MaxFound {
		t.Errorf("%d differences are listed", n)
	}
}

// What a comparison with the upstream cluster has found is not settled by one of the
// replicas, unless the cluster is no backup any more. What is damaged upstream is named.
func TestBoardUpstream(t *testing.T) {
	for _, left := range []bool{false, true} {
		var b Board
		r := done(1, 0, 0, 100, 3, 2)
		r.Upstream, r.Faulty = "up", true
		b.Apply(r)
		found := b.Summary()
		if want := "CHECK: replicas differ (3 differences; partition 0; nodes S2, upstream cluster)"; found != want {
			t.Errorf("got %q, want %q", found, want)
		}
		var admin Board // of an admin that comes
		for _, r := range b.Replay() {
			admin.Apply(r)
		}
		for name, b := range map[string]*Board{"master": &b, "admin": &admin} {
			if left {
				b.Left()
			}
			b.Apply(done(2, 0, 0, 100, 0))
			if got := b.Summary(); (got == "") != left || !left && got != found {
				t.Errorf("%s, backup mode left %v: after a check of the replicas %q", name, left, got)
			}
			again := done(3, 0, 0, 100, 0)
			again.Upstream = "up"
			b.Apply(again)
			if got := b.Summary(); got != "" {
				t.Errorf("%s: after a check with the upstream cluster %q", name, got)
			}
		}
	}
	if got := (Difference{Partition: 1, Kind: Damaged, TID: 5}).String(); got != "partition 1: upstream cluster: damaged metadata, tid 0x0000000000000005" {
		t.Error(got)
	}
}
