package client

import (
	"sync/atomic"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/tid"
)

// counts are what a client counts, beside its cache.
type counts struct {
	commits, aborts, conflicts atomic.Uint64
	invalidations, invalidated atomic.Uint64
}

// Stats is what a client knows now and has counted since it was opened.
type Stats struct {
	Cluster   string
	Connected bool    // to the primary master of an operational cluster
	LastTID   tid.TID // last transaction whose invalidations were processed
	Storages  int     // that can be asked now

	// The cache: how many loads it has served and not served, its size and its limit in bytes, and
	// the objects that it knows.
	Hits, Misses       uint64
	CacheSize, MaxSize int
	CacheObjects       int

	Commits       uint64 // transactions of this client
	Aborts        uint64
	Conflicts     uint64 // objects that were to be stored on a revision which is not the last one
	Invalidations uint64 // transactions of others
	Invalidated   uint64 // objects that they changed
	Traffic       link.TrafficStats
}

// Stats returns the present state. It waits for nothing.
func (c *Client) Stats() Stats {
	n := &c.counts
	s := Stats{
		Cluster: c.cfg.Cluster, LastTID: tid.TID(c.last.Load()), MaxSize: c.cfg.CacheSize,
		Commits: n.commits.Load(), Aborts: n.aborts.Load(), Conflicts: n.conflicts.Load(),
		Invalidations: n.invalidations.Load(), Invalidated: n.invalidated.Load(), Traffic: c.traffic.Stats(),
	}
	if v := c.view.Load(); v != nil {
		s.Connected, s.Storages = v.operational(), len(v.running)
	}
	c.cacheMu.Lock()
	defer c.cacheMu.Unlock()
	s.Hits, s.Misses, s.CacheSize, s.CacheObjects = c.cache.hits, c.cache.misses, c.cache.size, len(c.cache.oids)
	return s
}
