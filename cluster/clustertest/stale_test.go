package clustertest

import (
	"fmt"
	"log/slog"
	"os"
	"testing"
)

// The databases of any storages are replaced by any older copies of them, made while
// they were in use or not, while the storages, or all nodes, are down.
func TestStaleCopies(t *testing.T) {
	if *seed != 0 {
		SimulateStale(t, StalePlanOf(*seed), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		return
	}
	unnoticed, refused := 0, 0
	for i := range *seeds {
		s := *first + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) {
			u, r := SimulateStale(t, StalePlanOf(s), nil)
			if u {
				unnoticed++
			}
			if r {
				refused++
			}
		})
	}
	t.Logf("%d runs: the cluster refused to start in %d; in %d a loss could not be noticed, or only by a storage that came after the start", *seeds, refused, unnoticed)
	if *seeds >= 100 && (refused == 0 || unnoticed > *seeds/2) {
		t.Error("the test tests little")
	}
}
