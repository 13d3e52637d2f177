package clustertest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// compareUpstream has the backup compare itself with the upstream cluster, if it can.
func (f *following) compareUpstream() (run *check.Run, err error) {
	err = f.down.operate(func(ctx context.Context, c *ctl.Client) error {
		ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
		defer cancel()
		all := map[int]proto.Opt[proto.NodeID]{}
		for n := range f.plan.Partitions {
			all[n] = proto.Opt[proto.NodeID]{}
		}
		id, err := c.CheckReplicas(ctx, all, 0, proto.Opt[tid.TID]{})
		if err == nil {
			run, err = c.FollowCheck(ctx, id)
		}
		return err
	})
	return run, err
}

// differing reports what a comparison has found.
func (f *following) differing(when string, run *check.Run) {
	for _, n := range run.Partitions() {
		p := run.Parts[n]
		if p.Upstream == "" && strings.Contains(strings.Join(p.Notes, "; "), "pack") {
			continue // a cluster that was left: replicas that have not executed the same packs differ
		}
		if p.Total > 0 {
			f.t.Errorf("seed %d: %s: partition %d, compared with %q up to %v: %d differences: %v; %s", f.plan.Seed, when, n, p.Upstream, p.Max, p.Total, p.Found,
				strings.Join(p.Notes, "; "))
		}
	}
}

// checker compares the backup with the upstream cluster again and again, while both are
// disturbed and packed.
func (f *following) checker(done <-chan struct{}, round int) {
	r := rand.New(rand.NewPCG(f.plan.Seed, uint64(100+round)))
	for f.ok() {
		select {
		case <-done:
			return
		case <-time.After(time.Duration(r.IntN(2000)) * time.Millisecond):
		}
		if run, err := f.compareUpstream(); err == nil {
			f.differing("meanwhile", run)
		}
	}
}

// checkUpstream has the backup compare itself with the upstream cluster: whatever was
// packed on either side until now, nothing differs.
func (f *following) checkUpstream() {
	var run *check.Run
	f.until("the backup is compared with the upstream cluster", func() (bool, error) {
		var err error
		run, err = f.compareUpstream()
		if err != nil {
			return false, err
		}
		for n, p := range run.Parts {
			if p.State != check.Compared {
				return p.Total > 0, fmt.Errorf("partition %d: %s", n, strings.Join(p.Notes, "; "))
			}
		}
		return true, nil
	})
	if run != nil {
		for n, p := range run.Parts {
			if p.Upstream != "up" {
				f.t.Errorf("seed %d: partition %d was not compared with the upstream cluster", f.plan.Seed, n)
			}
		}
		f.differing("at the end", run)
	}
}
