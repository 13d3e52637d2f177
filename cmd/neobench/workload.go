package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// figures are what one workload measured.
type figures struct {
	name      string
	ops       int
	elapsed   time.Duration
	latencies []time.Duration
	conflicts int
}

func (f *figures) rate() float64 { return float64(f.ops) / f.elapsed.Seconds() }

func (f *figures) quantile(q float64) time.Duration {
	if len(f.latencies) == 0 {
		return 0
	}
	slices.Sort(f.latencies)
	return f.latencies[min(len(f.latencies)-1, int(float64(len(f.latencies))*q))]
}

func (f *figures) String() string {
	s := fmt.Sprintf("%-28s %9.0f /s   p50 %8v   p99 %8v", f.name, f.rate(), f.quantile(.5).Round(time.Microsecond), f.quantile(.99).Round(time.Microsecond))
	if f.conflicts > 0 {
		s += fmt.Sprintf("   %d conflicts", f.conflicts)
	}
	return s
}

// target is a cluster to measure.
type target struct {
	cfg client.Config
}

// body returns a record whose bytes compress about half, different for each n.
func body(size, n int) []byte {
	r := rand.New(rand.NewPCG(uint64(n), 1))
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(max(0, min(255, 128+r.NormFloat64()*4)))
	}
	return b
}

// commits measures clients that commit transactions of some objects each. With
// hot > 0, one object of each transaction is one of that many shared ones, so
// that transactions conflict and are tried again.
func (g target) commits(ctx context.Context, clients, txns, objects, size, hot int) (*figures, error) {
	f := &figures{name: fmt.Sprintf("commit, %d clients", clients)}
	if hot > 0 {
		f.name += fmt.Sprintf(", %d hot", hot)
	}
	var shared []tid.OID
	bodies := make([][]byte, 16)
	for i := range bodies {
		bodies[i] = body(size, i)
	}
	if hot > 0 {
		cl, err := client.Open(ctx, g.cfg)
		if err != nil {
			return nil, err
		}
		defer cl.Close()
		if shared, err = cl.NewOIDs(ctx, hot); err != nil {
			return nil, err
		}
		if _, err := store(ctx, cl, shared, func(tid.OID) tid.TID { return tid.Zero }, bodies); err != nil {
			return nil, err
		}
	}
	var mu sync.Mutex
	err := parallel(ctx, g.cfg, clients, f, func(ctx context.Context, i int, cl *client.Client) error {
		var lat []time.Duration
		conflicts := 0
		var oids []tid.OID
		for len(oids) < txns*objects {
			more, err := cl.NewOIDs(ctx, 100)
			if err != nil {
				return err
			}
			oids = append(oids, more...)
		}
		r := rand.New(rand.NewPCG(uint64(i), 2))
		for n := range txns {
			start := time.Now()
			set := oids[n*objects : (n+1)*objects]
			for {
				serials := map[tid.OID]tid.TID{}
				if hot > 0 {
					oid := shared[r.IntN(hot)]
					_, serial, err := cl.Load(ctx, oid)
					if err != nil {
						return err
					}
					set = append(slices.Clone(oids[n*objects:(n+1)*objects-1]), oid)
					serials[oid] = serial
				}
				_, err := store(ctx, cl, set, func(o tid.OID) tid.TID { return serials[o] }, bodies)
				var conflict *txn.ConflictError
				if errors.As(err, &conflict) {
					conflicts++
					continue
				}
				if err != nil {
					return err
				}
				break
			}
			lat = append(lat, time.Since(start))
		}
		mu.Lock()
		defer mu.Unlock()
		f.latencies = append(f.latencies, lat...)
		f.ops += txns
		f.conflicts += conflicts
		return nil
	})
	return f, err
}

func store(ctx context.Context, cl *client.Client, oids []tid.OID, serial func(tid.OID) tid.TID, bodies [][]byte) (tid.TID, error) {
	txn, err := cl.Begin(ctx, client.BeginOptions{Description: []byte("bench")})
	if err != nil {
		return 0, err
	}
	for i, oid := range oids {
		if err = txn.Store(ctx, oid, serial(oid), bodies[i%len(bodies)]); err != nil {
			break
		}
	}
	if err == nil {
		_, err = txn.Vote(ctx)
	}
	if err == nil {
		return txn.Finish(ctx, nil)
	}
	return 0, errors.Join(err, txn.Abort(ctx))
}

// loads measures clients that load random objects, none of them cached.
func (g target) loads(ctx context.Context, clients, n int, oids []tid.OID) (*figures, error) {
	f := &figures{name: fmt.Sprintf("load, %d clients", clients)}
	cfg := g.cfg
	cfg.CacheSize = 1 // nothing fits
	var mu sync.Mutex
	err := parallel(ctx, cfg, clients, f, func(ctx context.Context, i int, cl *client.Client) error {
		r := rand.New(rand.NewPCG(uint64(i), 3))
		lat := make([]time.Duration, 0, n)
		for range n {
			oid := oids[r.IntN(len(oids))]
			start := time.Now()
			if _, _, err := cl.Load(ctx, oid); err != nil {
				return err
			}
			lat = append(lat, time.Since(start))
		}
		mu.Lock()
		defer mu.Unlock()
		f.latencies = append(f.latencies, lat...)
		f.ops += n
		return nil
	})
	return f, err
}

// parallel opens clients, starts them together and measures until the last ends.
func parallel(ctx context.Context, cfg client.Config, clients int, f *figures, work func(context.Context, int, *client.Client) error) error {
	var wg sync.WaitGroup
	errs := make([]error, clients)
	list := make([]*client.Client, clients)
	for i := range list {
		cl, err := client.Open(ctx, cfg)
		if err != nil {
			return err
		}
		defer cl.Close()
		list[i] = cl
	}
	start := time.Now()
	for i, cl := range list {
		wg.Go(func() { errs[i] = work(ctx, i, cl) })
	}
	wg.Wait()
	f.elapsed = time.Since(start)
	return errors.Join(errs...)
}

// someOIDs returns at most n objects of the cluster.
func (g target) someOIDs(ctx context.Context, n int) ([]tid.OID, error) {
	cl, err := client.Open(ctx, g.cfg)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	last, err := cl.LastTID(ctx)
	if err != nil {
		return nil, err
	}
	var oids []tid.OID
	for oid, err := range cl.OIDs(ctx, last, 0) {
		if err != nil {
			return nil, err
		}
		if oids = append(oids, oid); len(oids) == n {
			break
		}
	}
	return oids, nil
}
