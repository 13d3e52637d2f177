package status

import (
	"encoding/json"
	"math"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// The names of the fields are stable, and what is not known is null.
func TestJSON(t *testing.T) {
	at := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		value any
		want  string
	}{
		{ImportOf(ctl.Import{Node: 1}), `{"node":"S1","state":"waiting","last_tid":"0000000000000000","end_tid":"0000000000000000","transactions":0,"records":0,"bytes":0,` +
			`"position":null,"size":null,"rate":0,"left":null,"compared_tid":null,"compared_at":null,"differences":null,"slow":null,"limit":null,` +
			`"skipped":0,"twice":0,"blobs":0,"write_back_tid":null,"behind":null,"bad":false,"note":""}`},
		{ImportOf(ctl.Import{Node: 1, Report: importing.Report{State: importing.Different, Last: 5, End: 6, Transactions: 1, Records: 2, Bytes: 3, Position: 4, Size: 5, Rate: 1.5,
			Left: time.Minute, Compared: 7, ComparedAt: at, Differences: 8, Slow: "source", Limit: 9, Skipped: 10, Twice: 11, Blobs: 12, WriteBack: 13, Behind: 14, Note: "n"}}),
			`{"node":"S1","state":"different","last_tid":"0000000000000005","end_tid":"0000000000000006","transactions":1,"records":2,"bytes":3,` +
				`"position":4,"size":5,"rate":1.5,"left":60,"compared_tid":"0000000000000007","compared_at":"2026-11-29T12:00:00Z","differences":8,"slow":"source","limit":9,` +
				`"skipped":10,"twice":11,"blobs":12,"write_back_tid":"000000000000000d","behind":14,"bad":true,"note":"n"}`},
		{BackupOf(ctl.Backup{}), `{"cluster":"","backup_tid":"0000000000000000","readable_tid":"0000000000000000","upstream_tid":null,"wanted_tid":null,"due":null,"behind":false,` +
			`"hold_tid":null,"delay":0,"closed":false,"opens":null,"linked":false,"rate":null,"gap":[],"note":""}`},
		{BackupOf(ctl.Backup{Cluster: "b", Report: following.Report{Backup: 1, Readable: 2, Upstream: 4, Bound: 3, Due: time.Second, Hold: proto.Some(tid.TID(3)), Delay: time.Hour,
			Closed: true, Opens: at, Linked: true, Rate: 5, Gap: [2]tid.TID{6, 7}, Note: "n"}}),
			`{"cluster":"b","backup_tid":"0000000000000001","readable_tid":"0000000000000002","upstream_tid":"0000000000000004","wanted_tid":"0000000000000003","due":1,"behind":true,` +
				`"hold_tid":"0000000000000003","delay":3600,"closed":true,"opens":"2026-11-29T12:00:00Z","linked":true,"rate":5,"gap":["0000000000000006","0000000000000007"],"note":"n"}`},
	} {
		got, err := json.Marshal(tt.value)
		if err != nil || string(got) != tt.want {
			t.Errorf("%v\n got %s\nwant %s", err, got, tt.want)
		}
	}
	for _, bad := range []string{`{"tid":"5"}`, `{"tid":"xx"}`} {
		var m Moment
		if err := json.Unmarshal([]byte(bad), &m); err == nil {
			t.Errorf("%s is read as %+v", bad, m)
		}
	}
	var l Level
	if err := l.UnmarshalText([]byte("fine")); err == nil {
		t.Error("fine is a level")
	}
}

// A time of a node that no calendar has is not known; the rest is shown.
func TestImpossibleTime(t *testing.T) {
	for _, at := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e18, -1e18, -1} {
		s := Status{Nodes: NodesOf([]proto.Node{{ID: 1, State: proto.NodeRunning, IDTimestamp: proto.Some(at)}})}
		if _, err := s.JSON(); err != nil || s.Nodes[0].Since != nil {
			t.Errorf("%v: %v, %v", at, s.Nodes[0].Since, err)
		}
	}
}
