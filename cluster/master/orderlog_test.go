package master

import (
	"slices"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
)

// What an operator orders is in the log, also what is refused; what only asks is not.
func TestOrdersAreLogged(t *testing.T) {
	storages := []proto.NodeID{1, 2}
	for _, tt := range []struct {
		pkt  proto.Packet
		want string // "": nothing
	}{
		{&proto.SetClusterState{State: proto.Stopping}, "set cluster STOPPING"},
		{&proto.SetNodeState{ID: 2, State: proto.NodeDown}, "kill S2"},
		{&proto.SetNodeState{ID: 2, State: proto.NodeUnknown}, "drop S2"},
		{&proto.AddPendingNodes{IDs: storages}, "add S1 S2"},
		{&proto.TweakPartitionTable{IDs: storages[1:]}, "tweak S2"},
		{&proto.TweakPartitionTable{DryRun: true}, ""},
		{&proto.SetNumReplicas{Replicas: 2}, "set replicas 2"},
		{&proto.Truncate{TID: 0x40660ee3597d844}, "truncate 040660ee3597d844"},
		{&proto.Repair{IDs: storages}, "prune_orphan 0 S1 S2"},
		{&proto.Repair{IDs: storages, DryRun: true}, "prune_orphan 1 S1 S2"},
		{&proto.CheckReplicas{}, "check"},
	} {
		now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		m := NewMachine(now, Settings{Cluster: "test", Addr: simAddr(1), Partitions: 1})
		admin := &peer{role: member, node: &proto.Node{Type: proto.Admin, ID: proto.NodeID(-0x30<<24 + 1)}}
		m.adminPacket(admin, 1, tt.pkt)
		var got []any
		for _, e := range m.out {
			if e.Op == Log && e.Line.Text == "operator orders" {
				got = append(got, e.Line.Attrs...)
			}
		}
		want := []any{"order", tt.want, "node", "A1"}
		if tt.want == "" {
			want = nil
		}
		if !slices.Equal(got, want) {
			t.Errorf("%T: logged %v, want %v", tt.pkt, got, want)
		}
	}
}
