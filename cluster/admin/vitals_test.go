package admin

import (
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/vitals"
)

// A rate is what was done between two reports of the same process of a node, over no less than
// half an interval and no more than what counts as lately.
func TestRates(t *testing.T) {
	start := time.Date(2026, 11, 29, 12, 0, 0, 0, time.UTC)
	var v vital
	for _, tt := range []struct {
		after   time.Duration // since the last report
		process time.Time
		commits int64
		want    float64
	}{
		{0, start, 1000, 0},                           // what was done before is not lately
		{5 * time.Second, start, 1050, 10},            // 50 in 5 s
		{time.Millisecond, start, 1060, 10},           // too soon to tell
		{5 * time.Second, start, 1110, 60 / 5.001},    // all since the last rate
		{time.Hour, start, 1135, 25 / 12.5},           // after nothing for long
		{5 * time.Second, start.Add(time.Hour), 7, 0}, // another process
		{5 * time.Second, start.Add(time.Hour), 17, 2},
		{5 * time.Second, start.Add(time.Hour), 3, 0}, // it cannot have done less
	} {
		now := v.at.Add(tt.after)
		if v.at.IsZero() {
			now = start
		}
		v.reported(&vitals.Report{Self: vitals.Self{Started: tt.process}, Commits: tt.commits}, now)
		if d := v.CommitRate - tt.want; d > 1e-9 || d < -1e-9 {
			t.Errorf("%d commits after %v: %v per second, want %v", tt.commits, tt.after, v.CommitRate, tt.want)
		}
	}
}
