package cli

import (
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	var p pace
	wide := false
	for i, step := range []struct {
		used time.Duration // of 100 ms
		wide bool
		next time.Duration
	}{
		{0, false, idlePeriod},
		{50 * time.Millisecond, false, busyPeriod},
		{80 * time.Millisecond, false, busyPeriod},
		{90 * time.Millisecond, true, busyPeriod},
		{180 * time.Millisecond, true, busyPeriod},
		{70 * time.Millisecond, true, busyPeriod},
		{59 * time.Millisecond, false, busyPeriod},
		{70 * time.Millisecond, false, busyPeriod},
		{100 * time.Millisecond, true, busyPeriod},
		{time.Millisecond, false, idlePeriod},
	} {
		wide = p.wide(wide, step.used, 100*time.Millisecond)
		if next := p.next(); wide != step.wide || next != step.next {
			t.Errorf("step %d: all processors %v, again after %v, want %v, %v", i, wide, next, step.wide, step.next)
		}
	}
	if p.wide(false, 0, 0) {
		t.Error("all processors for nothing in no time")
	}
}
