package metrics

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/zeo"
)

var (
	mZEOClients   = gauge("zeo_clients", "ZEO clients that are connected.", "storage")
	mZEOLoads     = counter("zeo_loads_total", "Objects loaded by ZEO clients.", "storage")
	mZEOStores    = counter("zeo_stores_total", "Objects stored by ZEO clients.", "storage")
	mZEOCommits   = counter("zeo_transactions_committed_total", "Transactions of ZEO clients that were committed.", "storage")
	mZEOAborts    = counter("zeo_transactions_aborted_total", "Transactions of ZEO clients that were aborted.", "storage")
	mZEOConflicts = counter("zeo_conflicts_total", "Conflicts that ZEO clients had to resolve.", "storage")
	mZEOActive    = gauge("zeo_transactions_active", "Transactions that ZEO clients have begun.", "storage")
	mZEOWaiting   = gauge("zeo_votes_waiting", "Votes that wait for the cluster.", "storage")
	mZEOLocked    = gauge("zeo_oldest_lock_seconds", "For how long the oldest transaction has held locks; 0 if none does.", "storage")
	mZEOOut       = gauge("zeo_out_of_service", "1 while the cluster is out of reach: ZEO clients are disconnected.", "storage")
	mZEOLast      = gauge("zeo_last_transaction_timestamp_seconds", "Time of the last transaction that ZEO clients were told.", "storage")

	mClientConnected = gauge("client_connected", "1 if the client is connected to the primary master of a running cluster.", "storage")
	mClientStorages  = gauge("client_storages", "Storages that the client can ask.", "storage")
	mCacheHits       = counter("client_cache_hits_total", "Loads served by the cache.", "storage")
	mCacheMisses     = counter("client_cache_misses_total", "Loads not served by the cache.", "storage")
	mCacheBytes      = gauge("client_cache_bytes", "Data in the cache.", "storage")
	mCacheMax        = gauge("client_cache_max_bytes", "Limit of the cache.", "storage")
	mCacheObjects    = gauge("client_cache_objects", "Objects that the cache knows.", "storage")
	mClientCommits   = counter("client_transactions_committed_total", "Transactions of the client that were committed.", "storage")
	mClientAborts    = counter("client_transactions_aborted_total", "Transactions of the client that were aborted.", "storage")
	mClientConflicts = counter("client_conflicts_total", "Objects to be stored on a revision that is not the last one.", "storage")
	mInvalidations   = counter("client_invalidations_total", "Transactions of others that the client was told.", "storage")
	mInvalidated     = counter("client_invalidated_objects_total", "Objects that they have changed.", "storage")
	mClientLastSeen  = gauge("client_last_transaction_timestamp_seconds", "Time of the last transaction that the client knows.", "storage")
)

// Client is a client of a cluster through which ZEO clients are served.
type Client interface{ Stats() client.Stats }

// ZEO watches a server. clients are those of its storages that are in a cluster, by name.
// Cluster is that of the server as a whole, "" if it has none.
func ZEO(cluster, version string, s *zeo.Server, clients map[string]Client) *Node {
	return &Node{cluster: cluster, typ: "zeo", version: version, busy: true, look: func(context.Context) (string, func(*emitter), bool, error) {
		stats, of := s.Stats(), make(map[string]client.Stats, len(clients))
		var err error
		for _, name := range slices.Backward(slices.Sorted(maps.Keys(clients))) {
			of[name] = clients[name].Stats()
			if !of[name].Connected || stats[name].OutOfService {
				err = fmt.Errorf("storage %s: not connected to a running cluster", name)
			}
		}
		return "zeo", func(e *emitter) {
			for name, st := range stats {
				e := *e
				e.cluster = of[name].Cluster // none of a file
				e.zeo(name, &st)
				if client, ok := of[name]; ok {
					e.client(name, &client)
				}
			}
		}, false, err
	}}
}

func (e *emitter) zeo(name string, s *zeo.StorageStats) {
	e.set(mZEOClients, float64(s.Connections), name)
	e.set(mZEOLoads, float64(s.Loads), name)
	e.set(mZEOStores, float64(s.Stores), name)
	e.set(mZEOCommits, float64(s.Commits), name)
	e.set(mZEOAborts, float64(s.Aborts), name)
	e.set(mZEOConflicts, float64(s.Conflicts), name)
	e.set(mZEOActive, float64(s.Active), name)
	e.set(mZEOWaiting, float64(s.Waiting), name)
	e.set(mZEOLocked, s.Locked.Seconds(), name)
	e.flag(mZEOOut, s.OutOfService, name)
	e.time(mZEOLast, s.LastTID, name)
}

func (e *emitter) client(name string, s *client.Stats) {
	e.flag(mClientConnected, s.Connected, name)
	e.set(mClientStorages, float64(s.Storages), name)
	e.set(mCacheHits, float64(s.Hits), name)
	e.set(mCacheMisses, float64(s.Misses), name)
	e.set(mCacheBytes, float64(s.CacheSize), name)
	e.set(mCacheMax, float64(s.MaxSize), name)
	e.set(mCacheObjects, float64(s.CacheObjects), name)
	e.set(mClientCommits, float64(s.Commits), name)
	e.set(mClientAborts, float64(s.Aborts), name)
	e.set(mClientConflicts, float64(s.Conflicts), name)
	e.set(mInvalidations, float64(s.Invalidations), name)
	e.set(mInvalidated, float64(s.Invalidated), name)
	e.time(mClientLastSeen, s.LastTID, name)
	of := &emitter{e.ch, e.cluster, "zeo/" + name}
	of.traffic(&s.Traffic)
}
