package following

import (
	"math"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/internal/messagetest"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

var full = []Message{
	{Topic: Wanted},
	{Topic: Reported, Report: Report{
		Backup: 1, Readable: 2, Upstream: tid.Max, Bound: 3, Due: time.Hour, Hold: proto.Some(tid.TID(0)), Delay: time.Minute, Closed: true,
		Opens: time.Unix(1700000000, 5).UTC(), Linked: true, Rate: 50 << 20, Gap: [2]tid.TID{4, 5}, Note: "why"}},
	{Topic: Reported},
	{Topic: Ordered, Number: -5, Order: Order{Kind: Hold, TID: proto.Some(tid.TID(9))}},
	{Topic: Ordered, Order: Order{Kind: Hold}},
	{Topic: Ordered, Number: 1, Order: Order{Kind: RunNow}},
	{Topic: Answered, Number: math.MaxInt64, Text: "no"},
	{Topic: Agreed, Terms: Terms{Rate: 1 << 40, Packs: 8, Hold: proto.Some(tid.TID(7)), Paused: true}},
	{Topic: Agreed, Terms: Terms{Hold: proto.Some(tid.Max)}},
	{Topic: Agreed},
	{Topic: Known},
	{Topic: Reported, Cluster: "other"},
	{Topic: Recorded, Stored: Stored{TID: 3, Gap: [2]tid.TID{1, 2}}},
}

var messages = messagetest.Kind[Message]{Extension: Extension, Parse: Parse, Packet: (*Message).Packet, Samples: full}

// A message arrives as it was sent, and one that makes no sense is refused.
func TestMessage(t *testing.T) {
	messages.Test(t)
	bad := Report{Due: -1, Delay: -1, Rate: -1, Opens: time.Unix(-1, 0)}
	if m, ok, err := Parse(messagetest.Wire(t, bad.Packet())); !ok || err != nil || m.Report != (Report{}) {
		t.Errorf("%+v, %v", m, err)
	}
	if !Understands(map[string]proto.Value{Extension: int64(1)}) || Understands(map[string]proto.Value{Extension: "1"}) || Understands(nil) {
		t.Error("who understands messages is not known")
	}
}

func FuzzParse(f *testing.F) {
	messages.Fuzz(f, func(m *Message) {
		_ = m.Report.String()
		_ = m.Order.String()
	})
}

func TestText(t *testing.T) {
	for _, tt := range []struct {
		r    Report
		want string
	}{
		{Report{}, "due not known, NOT CONNECTED to the upstream master"},
		{Report{Linked: true, Upstream: 5, Bound: 5, Readable: 5}, "due 0 s"},
		{Report{Linked: true, Upstream: 5, Bound: 5, Readable: 4}, "due ε"},
		{Report{Linked: true, Upstream: 5, Bound: 5, Readable: 4, Due: 90 * time.Minute, Delay: time.Hour, Rate: 50 << 20}, "due 1 h 30 min, delay 1 h 0 min, at most 50 MiB/s"},
		{Report{Linked: true, Upstream: 5, Hold: proto.Some(tid.TID(4)), Closed: true, Opens: time.Unix(1700000000, 0)}, "due 0 s, held at 0000000000000004, closed until 2023-11-14 22:13 UTC"},
		{Report{Linked: true, Upstream: 5, Closed: true, Gap: [2]tid.TID{1, 3}, Note: "a\n b"}, "due 0 s, closed, nothing can be kept before 0000000000000003, a b"},
	} {
		if got := tt.r.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	for want, o := range map[string]Order{
		"hold": {}, "hold 0000000000000010": {TID: proto.Some(tid.TID(16))}, "release": {Kind: Release}, "run-now": {Kind: RunNow},
	} {
		if got := o.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
