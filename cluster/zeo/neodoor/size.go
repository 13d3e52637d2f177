package neodoor

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// No node of a cluster counts objects or bytes. What clients are shown is estimated: of
// object ids chosen at random among those that were given out, how many have a current
// revision, and of how many bytes. What is committed here is added until the next sample.
const (
	sampleSize  = 256 // ids; if no more were given out, all of them: nothing is estimated then
	sampleFirst = 64  // ids of the first sample, which Open waits for
	sampleWait  = 500 * time.Millisecond
	sampleLimit = time.Minute      // of all others
	sampleEvery = 30 * time.Second // at most, while clients ask
	sampleAtOne = 8                // loads at a time
)

// size is an estimate of how much is in a cluster.
type size struct {
	objects, bytes atomic.Int64
	commits        atomic.Int64 // since the start, of any client
	sampling       atomic.Bool
	mu             sync.Mutex
	at             int64     // commits at the last sample
	next           time.Time // of the next one; zero: there was none
}

// committed counts a transaction, and what it has created if it is ours.
func (z *size) committed(objects, bytes int64) {
	z.commits.Add(1)
	if objects != 0 || bytes != 0 {
		z.objects.Add(objects)
		z.bytes.Add(bytes)
	}
}

// due reports whether another sample is to be made, and by its caller.
func (z *size) due() bool {
	z.mu.Lock()
	defer z.mu.Unlock()
	return (z.commits.Load() != z.at || z.next.IsZero()) && time.Now().After(z.next) && z.sampling.CompareAndSwap(false, true)
}

// sample makes an estimate from n object ids.
func (z *size) sample(ctx context.Context, c *client.Client, n int) error {
	at := z.commits.Load()
	last, ok, err := c.LastOID(ctx)
	if err != nil {
		return err
	}
	ids := int64(0)
	if ok {
		ids = int64(min(last, tid.MaxOID-1)) + 1
	}
	g, loading := errgroup.WithContext(ctx)
	g.SetLimit(sampleAtOne)
	var objects, bytes atomic.Int64
	all := ids <= int64(n)
	if all {
		n = int(ids)
	}
	for i := range n {
		oid := tid.OID(i)
		if !all {
			oid = tid.OID(rand.Int64N(ids))
		}
		g.Go(func() error {
			r, err := c.LoadBefore(loading, oid, tid.Max)
			switch {
			case err == nil:
				objects.Add(1)
				bytes.Add(int64(len(r.Data)))
			case !errors.Is(err, txn.ErrNoSuchObject) && !errors.Is(err, txn.ErrNotFound) && !errors.Is(err, client.ErrChecksum):
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	each := 1.
	if n > 0 {
		each = float64(ids) / float64(n)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	z.objects.Store(int64(each * float64(objects.Load())))
	z.bytes.Store(int64(each * float64(bytes.Load())))
	if z.at = at; all || n >= sampleSize { // else a better one follows
		z.next = time.Now().Add(sampleEvery)
	}
	return nil
}

// Size implements [zeo.Storage]: an estimate, of the current revisions.
func (s *Cluster) Size() (objects, bytes int64) {
	s.resize()
	return max(0, s.size.objects.Load()), max(0, s.size.bytes.Load())
}

// resize lets a sample be made if one is due.
func (s *Cluster) resize() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil || !s.size.due() {
		return
	}
	s.wg.Go(func() {
		defer s.size.sampling.Store(false)
		ctx, cancel := context.WithTimeout(s.ctx, sampleLimit)
		defer cancel()
		_ = s.size.sample(ctx, s.c, sampleSize) // the estimate stays as it is, until the next one
	})
}
