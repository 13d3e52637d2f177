package vitals

import (
	"math"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/internal/messagetest"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

var moment = time.Unix(1700000000, 5).UTC()

var samples = []Message{
	{Topic: Wanted},
	{Topic: Reported, Node: Node{ID: 2, Since: moment, Known: true, CommitRate: 1.5, LoadRate: 2.5, Report: Report{
		Self:         Self{Host: "db2", Version: "v1.2.3", Started: moment, Adapter: "SQLite", Database: "/var/lib/neo/s2.sqlite"},
		PackDisabled: true, Commits: 1 << 40, Loads: 7, Copy: Copy{true, 3, 4, tid.Max}}}},
	{Topic: Reported, Node: Node{ID: proto.Master.ID(1)}},
	{Topic: Gone, Node: Node{ID: 2, Since: moment}},
	{Topic: Packed, Pack: Pack{Order: 9, UpTo: 8, Partial: true, Signed: true, Done: true, Waiting: []proto.NodeID{1, 2}}},
	{Topic: Checked, Check: Check{Begun: moment, Ended: moment, Complete: true, Partitions: 3, Rows: 4, Differences: 5, Nodes: []proto.NodeID{1}, Differ: []int{0, 2}}},
	{Topic: Known, Cluster: "test"},
}

var messages = messagetest.Kind[Message]{Extension: Extension, Parse: Parse, Packet: (*Message).Packet, Samples: samples}

// A message arrives as it was sent, and one that makes no sense is refused.
func TestMessage(t *testing.T) {
	messages.Test(t)
	bad := Message{Topic: Reported, Node: Node{CommitRate: math.NaN(), LoadRate: math.Inf(1), Report: Report{Commits: -1, Loads: -1}}}
	if m, ok, err := Parse(messagetest.Wire(t, bad.Packet())); !ok || err != nil || m.Node != (Node{}) {
		t.Errorf("%+v, %v", m, err)
	}
}

func FuzzParse(f *testing.F) { messages.Fuzz(f, func(*Message) {}) }
