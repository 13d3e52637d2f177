package latency

import (
	"slices"
	"testing"
	"time"
)

func TestHistogram(t *testing.T) {
	if !slices.IsSorted(Bounds[:]) {
		t.Fatalf("bounds are not ascending: %v", Bounds)
	}
	var h Histogram
	for _, d := range []time.Duration{-time.Second, 0, Bounds[0], Bounds[0] + 1, time.Second, time.Hour} {
		h.Observe(d)
	}
	s := h.Snapshot()
	want := Bounds[0] + Bounds[0] + 1 + time.Second + time.Hour
	if s.Count != 6 || s.Sum != want {
		t.Errorf("%d in %v, want 6 in %v", s.Count, s.Sum, want)
	}
	for i, b := range Bounds {
		n := uint64(3)
		if i > 0 {
			n = 4
		}
		if b >= time.Second {
			n = 5
		}
		if s.Within[i] != n {
			t.Errorf("%d within %v, want %d", s.Within[i], b, n)
		}
	}
}

func BenchmarkObserve(b *testing.B) { // once for each commit
	var h Histogram
	for b.Loop() {
		h.Observe(3 * time.Millisecond)
	}
}
