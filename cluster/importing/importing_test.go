package importing

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
	{Topic: Gone, Node: 3},
	{Topic: Known},
	{Topic: Reported, Node: 1, Report: Report{
		State: Comparing, Last: 5, End: tid.Max, Transactions: 1 << 40, Records: 7, Bytes: 8, Position: 9, Size: 10, Rate: 1.5e6, Left: time.Hour,
		Slow: "source", Limit: 11, Compared: 4, ComparedAt: time.Unix(1700000000, 5).UTC(), Differences: 12, WriteBack: 13, Behind: 14, Note: "why"}},
	{Topic: Reported, Node: 2},
	{Topic: Ordered, Node: 1, Number: -5, Order: Order{Kind: Limit, Rate: 1 << 40}},
	{Topic: Ordered, Order: Order{Kind: Skip, TID: 9, OID: proto.Some(tid.OID(0))}},
	{Topic: Answered, Number: math.MaxInt64, Text: "no"},
}

var messages = messagetest.Kind[Message]{Extension: Extension, Parse: Parse, Packet: (*Message).Packet, Samples: full, Optional: []string{"oid"}}

// A message arrives as it was sent, and one that makes no sense is refused.
func TestMessage(t *testing.T) {
	messages.Test(t)
	for _, bad := range []Report{{Rate: math.NaN()}, {Rate: math.Inf(1)}, {Rate: -1, Left: -1, Position: -1}} {
		if m, ok, err := Parse(messagetest.Wire(t, bad.Packet(1))); !ok || err != nil || m.Report != (Report{}) {
			t.Errorf("%+v: %+v, %v", bad, m, err)
		}
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
		{Report{}, "waiting"},
		{Report{State: Copying, Position: 1234e6, Size: 2730e6, Rate: 34e6, Left: 41 * time.Second, Note: "old"}, "copying: 45.2 % (1.2 of 2.7 GB), 34 MB/s, 41 s left"},
		{Report{State: Copying, Position: 1999000, Size: 2e6}, "copying: 99.9 % (2.0 of 2.0 MB)"},
		{Report{State: Copying, Position: 500e3, Size: 2e9}, "copying: 0.0 % (500 kB of 2.0 GB)"},
		{Report{State: Copying, Transactions: 12345, Rate: 1e3}, "copying: 12,345 transactions, 1.0 kB/s"},
		{Report{State: Paused, Position: 3, Size: 4, Rate: 9}, "paused: 75.0 % (3 of 4 B)"},
		{Report{State: Failed, Position: 3, Size: 4, Note: "x is damaged"}, "FAILED: 75.0 % (3 of 4 B), x is damaged"},
		{Report{State: Comparing, Rate: 5e6, Left: 26 * time.Hour}, "comparing: everything is copied, 5.0 MB/s, 26 h 0 min left"},
		{Report{State: Different, Differences: 1}, "DIFFERENT: 1 difference"},
		{Report{State: Done}, "done: " + DoneNote},
		{Report{State: Done, Note: "switch"}, "done: switch"},
	} {
		if got := tt.r.String(); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	for d, want := range map[time.Duration]string{1: "1 s", 59 * time.Second: "59 s", 59600 * time.Millisecond: "1 min", 59*time.Minute + 40*time.Second: "1 h 0 min", 76 * time.Hour: "3 d 4 h"} {
		if got := Duration(d); got != want {
			t.Errorf("%v: got %q, want %q", d, got, want)
		}
	}
	for o, want := range map[Order]string{
		{Kind: Pause}: "pause", {Kind: Limit, Rate: 20 << 20}: "limit 20 MiB/s", {Kind: Limit}: "limit none",
		{Kind: Skip, TID: 16}: "skip 0000000000000010", {Kind: Skip, TID: 16, OID: proto.Some(tid.OID(1))}: "skip 0000000000000010:0000000000000001",
	} {
		if got := o.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
