package storage

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/pace"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/vitals"
	"golang.org/x/sync/semaphore"
)

// ErrEmpty reports that a database to be cloned has no assigned cell.
var ErrEmpty = errors.New("database is empty")

// DefaultReplicationShare is how many percent of the time replication takes while
// clients are served, if Config.ReplicationShare is 0.
const DefaultReplicationShare = 10

// Config configures a storage node. A zero field takes the documented default.
type Config struct {
	Cluster string             // name shared by every node; required
	Bind    proto.Address      // where to listen; port 0: any
	Masters *bootstrap.Masters // known masters, at least one; required
	Backend backend.Backend    // required; the caller closes it after Run
	ID      proto.NodeID       // of a new database; default: the master chooses
	// NewID asks the master for a new node id for a copied database, after which
	// Run ends.
	NewID bool
	// DisablePack pretends that pack orders are executed.
	DisablePack bool
	// DisableDrop keeps the data of discarded cells.
	DisableDrop bool
	// Self is what the node tells of itself to operators. Default: nothing.
	Self vitals.Self
	// FetchCount is how many transactions or records a replica asks for at a time.
	// Default: 1000.
	FetchCount int
	// ReplicationShare is how many percent of the time replication, in either
	// direction, takes while clients are served; 100: it does not yield to them.
	// Default: DefaultReplicationShare. Without clients it takes all of the time.
	ReplicationShare float64
	// ReplicationRate is how many bytes per second are given to other storages.
	// Default: no limit.
	ReplicationRate int64
	TLS             *tls.Config // default: plain connections
	// Record is told of every packet of every connection. It may be nil.
	Record func(sent bool, peer string, id uint32, p proto.Packet)
	// Lookup is asked for more masters, and MastersKnown told of those that are
	// known now. Both may be nil.
	Lookup       func(context.Context) ([]proto.Address, error)
	MastersKnown func([]proto.Address)
	// Identified is told the id of the node, and FlushLog called when another node
	// asks for it; it must not block. Both may be nil.
	Identified func(proto.NodeID)
	FlushLog   func()
	// PeerTimeout is how long another node may give no sign of life before it is given
	// up; negative: no limit. See link.Config. Default: link.DefaultPeerTimeout.
	PeerTimeout time.Duration
	Network     link.Network // default: TCP
	Dialer      *link.Dialer // shared by the process; default: one of its own
	Log         *slog.Logger // default: discard
}

// New makes a node of a database. It listens at once, but refuses all peers
// until Run has made it operational.
func New(cfg Config) (*Node, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dialer == nil {
		cfg.Dialer = &link.Dialer{}
	}
	if cfg.ReplicationShare == 0 {
		cfg.ReplicationShare = DefaultReplicationShare
	}
	if !(cfg.ReplicationShare > 0 && cfg.ReplicationShare <= 100) {
		return nil, fmt.Errorf("replication share of %g percent is not above 0 and up to 100", cfg.ReplicationShare)
	}
	if cfg.ReplicationRate < 0 {
		return nil, fmt.Errorf("replication rate of %d bytes per second is negative", cfg.ReplicationRate)
	}
	if cfg.FetchCount <= 0 {
		cfg.FetchCount = fetchCount
	}
	stored, err := cfg.Backend.Config()
	if err != nil {
		return nil, fmt.Errorf("reading the configuration of the database: %w", err)
	}
	switch stored.Name {
	case cfg.Cluster:
	case "":
		if err := cfg.Backend.SetName(cfg.Cluster); err != nil {
			return nil, fmt.Errorf("writing the cluster name to the database: %w", err)
		}
	default:
		return nil, fmt.Errorf("the database belongs to cluster %q, not %q", stored.Name, cfg.Cluster)
	}
	n := &Node{
		cfg:     cfg,
		db:      cfg.Backend,
		log:     cfg.Log,
		id:      stored.ID,
		inbox:   make(chan event, inboxSize),
		done:    make(chan struct{}),
		failed:  make(chan error, 1),
		big:     semaphore.NewWeighted(maxInbox),
		clients: map[proto.NodeID]*peer{},
		links:   map[linkKey]*peer{},
		peers:   map[*peer]bool{},
	}
	if n.id == 0 {
		n.id = cfg.ID
	}
	if cfg.NewID {
		if n.newIDs, err = ownPartitions(n.db, stored.ID); err != nil {
			return nil, err
		}
		if len(n.newIDs) == 0 {
			return nil, ErrEmpty
		}
		n.id = 0
	}
	n.served = pace.NewService()
	n.feeding = pace.New(n.served, cfg.ReplicationShare/100, cfg.ReplicationRate)
	n.fetching = pace.New(n.served, cfg.ReplicationShare/100, 0)
	n.ctx, n.cancel = context.WithCancel(context.Background())
	if db, ok := n.db.(backend.Runner); ok {
		n.importer = newImporter(n, db)
	}
	_, preparing := n.db.(backend.Preparing)
	n.remote = func() bool { return preparing }
	if db, ok := n.db.(backend.Local); preparing && ok {
		n.remote = func() bool { return !db.Local() }
	}
	incoming := n.linkConfig(n.deliver)
	incoming.Idle = n.idle
	if n.listener, err = link.Listen(n.ctx, cfg.Bind, incoming, n.accept); err != nil {
		n.cancel()
		return nil, err
	}
	return n, nil
}

func (n *Node) linkConfig(deliver func(link.Event)) link.Config {
	return link.Config{TLS: n.cfg.TLS, Deliver: deliver, Log: n.log, Record: n.cfg.Record, Network: n.cfg.Network, Traffic: &n.traffic,
		PeerTimeout: cmp.Or(n.cfg.PeerTimeout, link.DefaultPeerTimeout)}
}

// ownPartitions returns the partitions assigned to a node in its database.
func ownPartitions(db backend.Backend, id proto.NodeID) ([]int, error) {
	cells, err := db.Cells()
	if err != nil {
		return nil, fmt.Errorf("reading the partition table of the database: %w", err)
	}
	var list []int
	for _, c := range cells {
		if c.ID == id {
			list = append(list, c.Partition)
		}
	}
	return list, nil
}

// backup returns a copy of an optional TID for readers on other goroutines.
func backup(t proto.Opt[tid.TID]) *tid.TID {
	if !t.OK {
		return nil
	}
	return &t.V
}
