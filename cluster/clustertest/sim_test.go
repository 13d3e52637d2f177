package clustertest

import (
	"flag"
	"fmt"
	"log/slog"
	"os"
	"testing"
)

var (
	seeds = flag.Int("seeds", 200, "simulated runs of TestSimulation")
	seed  = flag.Uint64("seed", 0, "run only this seed, with its log")
	first = flag.Uint64("first-seed", 1, "first seed of TestSimulation")
)

// Clusters run in simulated time, with delays, losses and crashes from a seed;
// what their clients saw must agree with a sequential history.
func TestSimulation(t *testing.T) {
	if *seed != 0 {
		Simulate(t, PlanOf(*seed), slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})))
		return
	}
	for i := range *seeds {
		s := *first + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", s), func(t *testing.T) { Simulate(t, PlanOf(s), nil) })
	}
}
