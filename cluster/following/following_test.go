package following

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
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

// wire returns what a receiver gets.
func wire(t testing.TB, p *proto.NotifyMonitorInformation) *proto.NotifyMonitorInformation {
	t.Helper()
	_, got, _, err := proto.Decode(proto.Append(nil, 1, p))
	if err != nil {
		t.Fatal(err)
	}
	return got.(*proto.NotifyMonitorInformation)
}

// A message arrives as it was sent, and one that makes no sense is refused.
func TestMessage(t *testing.T) {
	for _, want := range full {
		got, ok, err := Parse(wire(t, want.Packet()))
		if !ok || err != nil {
			t.Fatalf("%+v: %v, %v", want, ok, err)
		}
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		for key := range want.Packet().Info {
			for _, bad := range []proto.Value{nil, "text", true, int64(math.MaxInt64), int64(math.MinInt64), []byte("x"), []byte("\xff\xff\xff\xff\xff\xff\xff\xff"), 1.5, []proto.Value{int64(1)}} {
				p := want.Packet()
				p.Info[key] = bad
				if m, ok, err := Parse(p); ok && err == nil {
					again, _, err := Parse(wire(t, m.Packet()))
					if err != nil || !cmp.Equal(m, again) {
						t.Errorf("%s: %v is accepted and becomes something else: %v (-first +second):\n%s", key, bad, err, cmp.Diff(m, again))
					}
				}
			}
			p := want.Packet()
			delete(p.Info, key)
			if m, ok, err := Parse(p); key != Extension && (!ok || err == nil) {
				t.Errorf("a message without %s is accepted: %+v", key, m)
			}
		}
	}
	for _, other := range []string{"check", "import"} {
		if _, ok, err := Parse(&proto.NotifyMonitorInformation{Info: map[string]proto.Value{other: int64(1)}}); ok || err != nil {
			t.Errorf("a message about %s is taken for one about a backup cluster: %v", other, err)
		}
	}
	bad := Report{Due: -1, Delay: -1, Rate: -1, Opens: time.Unix(-1, 0)}
	if m, ok, err := Parse(wire(t, bad.Packet())); !ok || err != nil || m.Report != (Report{}) {
		t.Errorf("%+v, %v", m, err)
	}
	if !Understands(map[string]proto.Value{Extension: int64(1)}) || Understands(map[string]proto.Value{Extension: "1"}) || Understands(nil) {
		t.Error("who understands messages is not known")
	}
}

func FuzzParse(f *testing.F) {
	for _, m := range full {
		f.Add(proto.Append(nil, 1, m.Packet()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		_, got, _, err := proto.Decode(b)
		if err != nil {
			return
		}
		p, ok := got.(*proto.NotifyMonitorInformation)
		if !ok {
			return
		}
		m, ok, err := Parse(p)
		if !ok || err != nil {
			return
		}
		_ = m.Report.String()
		_ = m.Order.String()
		again, ok, err := Parse(wire(t, m.Packet()))
		if !ok || err != nil || !cmp.Equal(m, again) {
			t.Errorf("%v, %v: %s", ok, err, cmp.Diff(m, again))
		}
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
