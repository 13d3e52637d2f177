// Package admin is the admin node: it watches the cluster through the primary
// master, answers operators from what it sees, passes their orders on to the
// master, and compares the cluster with its backups.
//
// One goroutine, [Node.Run], owns everything a node knows; links, timers and mails
// send it events.
//
// # Invariant
//
// Each request of an operator gets exactly one answer, whatever happens to the
// master meanwhile, unless the operator has gone. Without a primary master every
// request is refused: nothing is answered from a view that may be out of date.
package admin

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/nodetab"
	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/vitals"
)

// Config configures an admin node. A zero field takes the documented default.
type Config struct {
	Cluster string             // name shared by every node; required
	Bind    proto.Address      // where to listen; port 0: any
	Masters *bootstrap.Masters // known masters, at least one; required
	ID      proto.NodeID       // default: the master chooses
	// Backups names the backup clusters that may report to this one.
	Backups []string
	// MaxLag is how late a backup may be before it counts as a warning. Default: 0.
	MaxLag time.Duration
	// Self is what the node tells of itself to operators. Default: nothing.
	Self vitals.Self
	// Mail sends the summary when something changes. Default: no mails.
	Mail func(ctx context.Context, subject, body string) error
	// MailInterval is the least time between two mails: what changes meanwhile is
	// in the next one. Default: DefaultMailInterval.
	MailInterval time.Duration
	TLS          *tls.Config // default: plain connections
	// Record is told of every packet of every connection. Default: nobody is.
	Record func(sent bool, peer string, id uint32, p proto.Packet)
	// Lookup is asked for more masters, and MastersKnown told of those that are
	// known now. Both may be nil.
	Lookup       func(context.Context) ([]proto.Address, error)
	MastersKnown func([]proto.Address)
	// Identified is told the id of the node, and FlushLog called when an operator
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

// Node is an admin node. Its methods but Run and Addr belong to Run.
type Node struct {
	cfg      Config
	log      *slog.Logger
	listener *link.Listener
	events   chan any
	quit     chan struct{} // closed when nobody reads events any more
	work     tasks

	id       proto.NodeID // as the master assigned it, or wanted
	master   *link.Conn   // nil: not connected
	masterID proto.NodeID
	fresh    bool // the next NotifyNodeInformation is the first of its link
	state    proto.Opt[proto.ClusterState]
	nodes    nodetab.Table
	pt       parttab.Table

	peers    map[*link.Conn]*peer // operators, and admins of backup clusters
	upstream upstream
	monitor  monitor
	checks   check.Board // of replicas
	vitals   vitalBoard
	stopping bool // told to stop by the cluster
	traffic  link.Traffic
}

// peer is who is at the other end of a link that was accepted.
type peer struct {
	backup  *cluster       // nil: an operator
	checks  map[int64]bool // that the operator follows
	imports bool           // the operator follows the imports
}

// relay is the tag of a request that was passed on to the master.
type relay struct {
	conn *link.Conn
	id   uint32
}

// What Run is sent beside link.Event.
type (
	acceptedBy struct{ res *bootstrap.Result } // by the primary master
	searchEnds struct{ err error }             // the search for it
	incoming   struct{ conn *link.Conn }
	dialled    struct { // the admin of the upstream cluster
		conn *link.Conn
		to   proto.Address
	}
	mailed  struct{ err error }
	asking  struct{ answer chan Stats } // has room for the answer
	dumping struct {
		w    io.Writer
		done chan struct{}
	}
)

// New makes a node, which listens at once but answers only once it runs.
func New(cfg Config) (*Node, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Dialer == nil {
		cfg.Dialer = &link.Dialer{}
	}
	n := &Node{
		cfg: cfg, log: cfg.Log, id: cfg.ID,
		events: make(chan any, 64), quit: make(chan struct{}),
		peers: map[*link.Conn]*peer{},
	}
	if n.cfg.MailInterval == 0 {
		n.cfg.MailInterval = DefaultMailInterval
	}
	n.monitor.init(cfg.Cluster, cfg.Backups, cfg.MaxLag)
	var err error
	n.listener, err = link.Listen(context.Background(), cfg.Bind, n.linkConfig(), n.accept)
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Addr returns the address that the node listens at.
func (n *Node) Addr() proto.Address { return n.listener.Addr() }

func (n *Node) linkConfig() link.Config {
	return link.Config{TLS: n.cfg.TLS, Log: n.log, Record: n.cfg.Record, Network: n.cfg.Network, Traffic: &n.traffic,
		PeerTimeout: cmp.Or(n.cfg.PeerTimeout, link.DefaultPeerTimeout),
		Deliver:     func(ev link.Event) { n.send(ev) }}
}

// send passes an event to Run, or drops it once Run has ended.
func (n *Node) send(ev any) (sent bool) {
	select {
	case n.events <- ev:
		return true
	case <-n.quit:
		return false
	}
}

// accept is called by the listener.
func (n *Node) accept(c *link.Conn) {
	if !n.send(incoming{c}) {
		n.discard(c)
	}
}

// discard ends a link that nobody wants any more.
func (n *Node) discard(c *link.Conn) {
	c.Close()
	n.work.start(func(context.Context) { <-c.Done() })
}

// Run serves until ctx ends, whose error it then returns; or until the cluster
// stops, or the node is told to, when it returns nil. Other errors do not go away
// by themselves: another cluster name, or an id that is refused.
//
// It may be called once.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	n.work.ctx = ctx
	n.log.Info("listening on", "addr", n.listener.Addr().String())
	n.search()
	err := n.loop(ctx)
	cancel()
	return errors.Join(err, n.close())
}

func (n *Node) loop(ctx context.Context) error {
	for !n.stopping {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case ev := <-n.events:
			if err := n.handle(ev); err != nil {
				return err
			}
		case <-n.monitor.timeout:
			n.checkTimedOut()
		case <-n.monitor.again:
			n.monitor.again = nil
			n.startCheck()
		case <-n.monitor.floor:
			n.monitor.floor = nil
			if n.monitor.held.news != "" && n.monitor.mailErr == nil {
				n.startCheck()
			}
		}
	}
	return nil
}

// close ends all links and waits for everything that was started.
func (n *Node) close() error {
	close(n.quit)
	err := n.listener.Close()
	n.work.wait()
	// What was sent before nobody listened may hold links too.
	for len(n.events) > 0 {
		switch ev := (<-n.events).(type) {
		case incoming:
			n.peers[ev.conn] = &peer{}
		case dialled:
			n.peers[ev.conn] = &peer{}
		case acceptedBy:
			n.peers[ev.res.Conn] = &peer{}
		case dumping:
			close(ev.done)
		}
	}
	for _, c := range []*link.Conn{n.master, n.upstream.conn} {
		if c != nil {
			n.peers[c] = &peer{}
		}
	}
	for c := range n.peers {
		c.Abort()
	}
	for c := range n.peers {
		<-c.Done()
	}
	return err
}

// search looks for the primary master; acceptedBy and then events of the link
// come if it is found, searchEnds in any case.
func (n *Node) search() {
	id := n.id
	n.work.start(func(ctx context.Context) {
		backups := make([]string, 0, len(n.cfg.Backups))
		res, err := bootstrap.Find(ctx, bootstrap.Config{
			Masters: n.cfg.Masters,
			Lookup:  n.cfg.Lookup,
			Identify: proto.RequestIdentification{
				Type: proto.Admin, ID: id, Addr: n.Addr(), Cluster: n.cfg.Cluster,
				Extra: map[string]proto.Value{"backup": append(backups, n.cfg.Backups...), check.Extension: 1, importing.Extension: 1, following.Extension: 1, vitals.Extension: 1},
			},
			Link:     n.linkConfig(),
			Dialer:   n.cfg.Dialer,
			Accepted: func(r *bootstrap.Result) { n.send(acceptedBy{r}) },
			Log:      n.log,
		})
		if !n.send(searchEnds{err}) && res != nil {
			res.Conn.Abort() // nobody has heard of it
			<-res.Conn.Done()
		}
	})
}

func (n *Node) handle(ev any) error {
	switch ev := ev.(type) {
	case link.Event:
		return n.handleLink(ev)
	case acceptedBy:
		n.connected(ev.res)
	case searchEnds:
		return ev.err
	case incoming:
		n.peers[ev.conn] = &peer{}
	case dialled:
		n.upstreamDialled(ev)
	case mailed:
		n.mailEnded(ev.err)
	case asking:
		ev.answer <- n.stats()
	case dumping:
		n.dump(ev.w)
		close(ev.done)
	default:
		panic(fmt.Sprintf("admin: unknown event %T", ev))
	}
	return nil
}

func (n *Node) handleLink(ev link.Event) error {
	if ev.Stale() || link.HandleBase(ev) {
		return nil
	}
	switch {
	case ev.Conn == n.master:
		return n.fromMaster(ev)
	case ev.Conn == n.upstream.conn:
		n.fromUpstream(ev)
	case n.peers[ev.Conn] != nil:
		n.fromPeer(ev)
	}
	return nil
}

// connected takes over a new link to the primary master.
func (n *Node) connected(r *bootstrap.Result) {
	n.master, n.masterID, n.id = r.Conn, r.MasterID, r.ID
	n.fresh = true
	n.master.SetPeer(fmt.Sprintf("%v (%v)", r.MasterID, r.Conn.RemoteAddr()))
	if n.cfg.Identified != nil {
		n.cfg.Identified(r.ID)
	}
	n.log.Info("ready", "node", n.id.String(), "master", n.masterID.String())
	n.tellMasters()
	n.master.Ask(&proto.AskClusterState{}, nil)
}

// tellMasters reports the masters that are known.
func (n *Node) tellMasters() {
	if n.cfg.MastersKnown != nil {
		n.cfg.MastersKnown(n.cfg.Masters.List())
	}
}

// dump writes the state of the node as text.
func (n *Node) dump(w io.Writer) {
	state := "unknown"
	if n.state.OK {
		state = n.state.V.String()
	}
	fmt.Fprintf(w, "admin %v of cluster %q at %v, primary master %v, state %s\n", n.id, n.cfg.Cluster, n.Addr(), n.masterID, state)
	for node := range n.nodes.Nodes() {
		fmt.Fprintf(w, "%v %v %v %v\n", node.ID, node.Type, node.Addr, node.State)
	}
	var storages []proto.Node
	for _, s := range n.nodes.OfType(proto.Storage) {
		storages = append(storages, *s)
	}
	fmt.Fprintf(w, "%s\n%d links of operators and backups\n%s\n", parttab.Text(n.pt.Rows(), storages), len(n.peers), n.monitor.report().text)
}

// Dump writes the state of the node as text, for an operator who looks for the
// cause of a trouble. It returns without text if the node does not run.
func (n *Node) Dump(w io.Writer) {
	d := dumping{w, make(chan struct{})}
	n.send(d)
	select {
	case <-d.done:
	case <-n.quit:
	}
}
