package cli

import (
	"runtime"
	"testing"
)

// Calm makes collections rarer, and takes no memory by itself.
func TestCalm(t *testing.T) {
	var sink []byte
	collections := func() int {
		runtime.GC()
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 256 {
			sink = make([]byte, 1<<20)
		}
		runtime.ReadMemStats(&after)
		return int(after.NumGC - before.NumGC)
	}
	without := collections()
	Calm()
	defer func() { ballast = nil }()
	with := collections()
	if with > 12 || 2*with > without {
		t.Errorf("%d collections for 256 MiB of garbage, %d before", with, without)
	}
	_ = sink
}
