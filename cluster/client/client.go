package client

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/deflate"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/socket"
	"github.com/neozodb/neo/cluster/tid"
)

// DefaultCacheSize is the cache of a Config without CacheSize, in bytes.
const DefaultCacheSize = 20 << 20

// DefaultLevel is the zlib level of Config.Level 0.
const DefaultLevel = deflate.DefaultLevel

// NoCompression in Config.Level stores records as they are.
const NoCompression = -1

// Config configures a client. A zero field takes the documented default.
type Config struct {
	Cluster string          // name shared by every node; required
	Masters []proto.Address // master nodes; required
	TLS     *tls.Config     // default: plain TCP

	// Level is the zlib level of stored records, 1 to 9, or NoCompression.
	// Default: DefaultLevel. A record that does not get smaller is stored as it is.
	Level int

	ReadOnly bool

	// Backup is the name of what the client makes a backup for, as masters see it. The
	// client is then read-only, and OnInvalidate is told of transactions without
	// their objects: the master names partitions to it. Default: none.
	Backup string

	// CacheSize is the size in bytes of the cache, and of the data of a
	// transaction that may wait for the answers of storages.
	// Default: DefaultCacheSize.
	CacheSize int

	// IgnoreWrongChecksum returns a damaged record that no replica has in good
	// order, decompressed if possible, instead of ErrChecksum.
	IgnoreWrongChecksum bool

	// Resolver merges conflicting changes. Default: every conflict is an error.
	Resolver Resolver

	// OnInvalidate is told of the objects that another client changed, and of our own
	// orders to pack, without object, in the order of TIDs, before LastTID names the
	// transaction. OnLost is told that the master was lost: the client connects again
	// when it is used, and until then commits are missed. OnReset is told, once it is
	// connected again, that anything may have changed. They are called by goroutines
	// that read from the master: they must neither block nor call the client.
	OnInvalidate func(t tid.TID, oids []tid.OID)
	OnLost       func()
	OnReset      func()

	// OnWait is told why the client cannot go on yet, while it connects anew: what a master
	// answers, or that none is reached. With nil it is told that the cluster serves again.
	// It must not block. Default: nothing is told.
	OnWait func(why error)

	// SaveMasters is given the known masters after a master was announced; see
	// conf.MasterList. Default: they are not saved.
	SaveMasters func([]proto.Address) error

	Log *slog.Logger // default: discard

	// FlushLog is called when the master asks for the logs. It must not block.
	// Default: there is none to flush.
	FlushLog func()

	// Record sees every packet; see link.Config. Default: none.
	Record func(sent bool, peer string, id uint32, p proto.Packet)

	// PeerTimeout is how long a node may give no sign of life before it is given
	// up; negative: no limit. See link.Config. Default: link.DefaultPeerTimeout.
	PeerTimeout time.Duration
	Dialer      *link.Dialer // shared by the process; default: one of its own
	Network     link.Network // default: TCP
}

// Client is a connection to a cluster. All methods may be called concurrently.
type Client struct {
	cfg     Config
	log     *slog.Logger
	packer  deflate.Packer
	masters *bootstrap.Masters
	counts  counts
	traffic link.Traffic

	ctx    context.Context // ends with Close
	cancel context.CancelFunc
	wg     sync.WaitGroup // goroutines that connect

	view atomic.Pointer[view] // nil: no usable master
	wait socket.Waiting       // of the goroutine that connects

	mu         sync.Mutex
	id         proto.NodeID // last id that a master gave us
	connecting *connecting  // nil: no call connects to a master
	waiting    bool         // OnWait was told why; of the goroutine that connects
	txns       map[tid.TID]*Txn
	finishing  map[*finishAsked]struct{} // without a caller that waits
	storages   storages

	cacheMu sync.Mutex
	cache   *cache
	loading map[tid.OID]*loading
	lastTID tid.TID
	known   bool // lastTID was told by a master

	last atomic.Uint64 // lastTID, for readers without the lock
	told atomic.Uint64 // what OnInvalidate or onFinish was told last: lastTID, or soon

	restored restoredSerials

	oidTurn chan struct{} // held while oids are asked for
	oids    []tid.OID     // reserve, under mu
	lastOID tid.OID       // greatest oid given out, under mu
}

// Open connects to a cluster and waits until it can serve. ctx limits the wait,
// not the life of the client.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	if cfg.Cluster == "" || len(cfg.Masters) == 0 {
		return nil, errors.New("open cluster: its name and its masters are required")
	}
	level := cfg.Level
	switch {
	case level == 0:
		level = DefaultLevel
	case level == NoCompression:
		level = 0
	case level < 0 || level > 9:
		return nil, fmt.Errorf("open cluster %s: compression level %d is not in 1..9", cfg.Cluster, level)
	}
	cfg.ReadOnly = cfg.ReadOnly || cfg.Backup != ""
	if cfg.CacheSize == 0 {
		cfg.CacheSize = DefaultCacheSize
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dialer == nil {
		cfg.Dialer = &link.Dialer{}
	}
	c := &Client{
		cfg:       cfg,
		log:       cfg.Log,
		packer:    deflate.Packer{Level: level},
		masters:   bootstrap.NewMasters(cfg.Masters...),
		txns:      map[tid.TID]*Txn{},
		finishing: map[*finishAsked]struct{}{},
		cache:     newCache(cfg.CacheSize),
		loading:   map[tid.OID]*loading{},
		oidTurn:   make(chan struct{}, 1),
	}
	c.storages.init()
	c.ctx, c.cancel = context.WithCancel(context.Background())
	if _, err := c.connected(ctx); err != nil {
		c.Close()
		return nil, fmt.Errorf("open cluster %s: %w", cfg.Cluster, err)
	}
	return c, nil
}

// Close ends all links and waits for the goroutines of the client and of its
// links. Calls that are under way fail.
func (c *Client) Close() error {
	c.mu.Lock() // a call that connects has started its goroutine, or sees the end
	c.cancel()
	c.mu.Unlock()
	var ends []<-chan struct{}
	// Twice: a goroutine may have connected before it saw the end.
	for range 2 {
		if v := c.view.Load(); v != nil {
			v.session.conn.Close()
			c.masterLost(v.session, ErrClosed)
			ends = append(ends, v.session.conn.Done())
		}
		ends = append(ends, c.closeStorages(ErrClosed)...)
		c.wg.Wait()
	}
	for _, end := range ends {
		<-end
	}
	return nil
}

// links is the configuration of links whose events go to deliver.
func (c *Client) links(deliver func(link.Event)) link.Config {
	return link.Config{TLS: c.cfg.TLS, Deliver: deliver, Log: c.log, Record: c.cfg.Record, Network: c.cfg.Network, Traffic: &c.traffic,
		PeerTimeout: cmp.Or(c.cfg.PeerTimeout, link.DefaultPeerTimeout)}
}

// base handles what every node may be told on any link, and reports whether the
// event needs nothing more.
func (c *Client) base(ev link.Event) bool {
	if link.HandleBase(ev) {
		return true
	}
	switch p := ev.Packet.(type) {
	case *proto.FlushLog:
		if c.cfg.FlushLog != nil {
			c.cfg.FlushLog()
		}
	case *proto.NotPrimaryMaster:
		// The peer hangs up next, and the other masters are asked then.
		c.masters.Learn(p.Masters...)
		c.log.Debug("not the primary master any more", "peer", ev.Conn.String())
	default:
		return false
	}
	return true
}

// Cluster returns the name of the cluster.
func (c *Client) Cluster() string { return c.cfg.Cluster }

// ReadOnly reports whether the client may only read.
func (c *Client) ReadOnly() bool { return c.cfg.ReadOnly }

// NodeID returns the id that the master gave to this client.
func (c *Client) NodeID() proto.NodeID {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.id
}

// LastTID returns the last transaction whose invalidations were processed.
// There is no round trip unless the master has to be connected again.
func (c *Client) LastTID(ctx context.Context) (tid.TID, error) {
	if _, err := c.connected(ctx); err != nil {
		return tid.Zero, err
	}
	return tid.TID(c.last.Load()), nil
}

// LastOID asks the master for the greatest object id given out, and whether there is
// one. A cluster in backup mode refuses: the error is a [txn.ErrReadOnly].
func (c *Client) LastOID(ctx context.Context) (oid tid.OID, ok bool, err error) {
	v, err := c.connected(ctx)
	if err != nil {
		return 0, false, err
	}
	p, err := v.session.conn.Call(ctx, &proto.AskLastIDs{})
	if err != nil {
		return 0, false, c.masterError(ctx, err)
	}
	a, ok := p.(*proto.AnswerLastIDs)
	if !ok {
		return 0, false, fmt.Errorf("master answered %T to AskLastIDs", p)
	}
	return a.LastOID.V, a.LastOID.OK && a.LastOID.V != tid.InvalidOID, nil
}

// Sync waits until every commit that was finished before, by any client, has
// been processed here.
func (c *Client) Sync(ctx context.Context) error {
	v, err := c.connected(ctx)
	if err != nil {
		return err
	}
	return c.ping(ctx, v)
}

func (c *Client) ping(ctx context.Context, v *view) error {
	if _, err := v.session.conn.Call(ctx, &proto.Ping{}); err != nil {
		return c.masterError(ctx, err)
	}
	return nil
}

// masterError says what became of a call to the master.
func (c *Client) masterError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if _, ok := errors.AsType[*proto.Error](err); ok {
		return fromWire(err)
	}
	if c.ctx.Err() != nil {
		return ErrClosed
	}
	return fmt.Errorf("%w: %w", ErrMasterLost, err)
}

// CacheStats describes the cache in one line, for logs.
func (c *Client) CacheStats() string {
	c.cacheMu.Lock()
	defer c.cacheMu.Unlock()
	return c.cache.String()
}

// ClearCache forgets every cached revision, for example after a pack.
func (c *Client) ClearCache() {
	c.cacheMu.Lock()
	defer c.cacheMu.Unlock()
	c.cache.clear()
}
