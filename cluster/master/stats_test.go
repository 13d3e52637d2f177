package master

import (
	"testing"

	"github.com/neozodb/neo/cluster/proto"
)

func TestReady(t *testing.T) {
	for _, tt := range []struct {
		s    Stats
		want string // "": ready
	}{
		{Stats{Primary: true, State: proto.Running, PTID: proto.Some[uint64](1), Partitions: 12}, ""},
		{Stats{Primary: true, State: proto.BackingUp, PTID: proto.Some[uint64](1), Partitions: 12}, ""},
		{Stats{Primary: true, State: proto.Running, PTID: proto.Some[uint64](1), Partitions: 12, Lacking: 12}, ""},
		{Stats{Primary: true, State: proto.Recovering}, "the cluster is RECOVERING"},
		{Stats{Primary: true, State: proto.Stopping, PTID: proto.Some[uint64](1), Partitions: 12}, "the cluster is STOPPING"},
		{Stats{Primary: true, State: proto.Recovering, PTID: proto.Some[uint64](1), Partitions: 12, Unreadable: 3},
			"the cluster is RECOVERING: 3 of 12 partitions have no readable cell on a running storage"},
		{Stats{Following: true, State: proto.Recovering}, ""},
		{Stats{}, "not connected to the primary master"},
	} {
		got := ""
		if err := tt.s.Ready(); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.s, got, tt.want)
		}
	}
}
