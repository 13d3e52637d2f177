package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/nodetab"
	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// view is what requests need to know of the cluster. It is never changed: news
// from the master makes another one.
type view struct {
	session *session
	id      proto.NodeID
	stamp   proto.Opt[float64] // our id_timestamp, the proof of identity to storages
	rows    [][]proto.Cell
	running map[proto.NodeID]proto.Address // storages
}

// np returns the number of partitions.
func (v *view) np() int { return len(v.rows) }

// operational reports whether every partition can be read.
func (v *view) operational() bool {
	for _, row := range v.rows {
		if !slices.ContainsFunc(row, func(c proto.Cell) bool {
			_, ok := v.running[c.ID]
			return ok && c.State.Readable()
		}) {
			return false
		}
	}
	return len(v.rows) > 0
}

// replaceable reports whether every partition that a storage serves can be read from
// another one.
func (v *view) replaceable(id proto.NodeID) bool {
	for _, row := range v.rows {
		if slices.ContainsFunc(row, func(c proto.Cell) bool { return c.ID == id && c.State.Readable() }) &&
			!slices.ContainsFunc(row, func(c proto.Cell) bool {
				_, ok := v.running[c.ID]
				return ok && c.ID != id && c.State.Readable()
			}) {
			return false
		}
	}
	return true
}

// session is one link to a primary master. Its tables are changed only by the
// goroutine that reads the link.
type session struct {
	c    *Client
	conn *link.Conn
	id   proto.NodeID

	mu       sync.Mutex
	nodes    nodetab.Table
	pt       parttab.Table
	stamp    proto.Opt[float64]
	informed bool // the complete list of nodes has come
	ready    bool // AskLastTransaction is answered: invalidations count
	lost     bool
}

// connecting is an attempt to find a primary master that callers wait for.
type connecting struct {
	done chan struct{}
	view *view
	err  error
}

// connected returns the view of the cluster, connecting to the primary master if
// needed. Only what can not get better by waiting is an error.
func (c *Client) connected(ctx context.Context) (*view, error) {
	if v := c.view.Load(); v != nil {
		return v, nil
	}
	c.mu.Lock()
	if v := c.view.Load(); v != nil {
		c.mu.Unlock()
		return v, nil
	}
	if c.ctx.Err() != nil {
		c.mu.Unlock()
		return nil, ErrClosed
	}
	a := c.connecting
	if a == nil {
		a = &connecting{done: make(chan struct{})}
		c.connecting = a
		c.wg.Go(func() { c.connect(a) })
	}
	c.mu.Unlock()
	select {
	case <-a.done:
		return a.view, a.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// connect looks for the primary master until it serves us.
func (c *Client) connect(a *connecting) {
	v, err := c.findMaster()
	if err != nil && c.ctx.Err() != nil {
		err = ErrClosed
	}
	c.mu.Lock()
	a.view, a.err = v, err
	c.connecting = nil
	c.mu.Unlock()
	close(a.done)
}

func (c *Client) findMaster() (*view, error) {
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		v, err := c.tryMaster()
		if v != nil || err != nil {
			return v, err
		}
		select {
		case <-time.After(pause):
		case <-c.ctx.Done():
			return nil, c.ctx.Err()
		}
	}
}

// waits tells the user of the client why it waits, and the end of that. It is called by
// one goroutine at a time.
func (c *Client) waits(why error) {
	if c.cfg.OnWait == nil || why == nil && !c.waiting {
		return
	}
	c.waiting = why != nil
	c.cfg.OnWait(why)
}

// tryMaster returns neither a view nor an error if it is worth trying again.
func (c *Client) tryMaster() (*view, error) {
	s := &session{c: c}
	identify := proto.RequestIdentification{
		Type:    proto.Client,
		ID:      c.NodeID(),
		Cluster: c.cfg.Cluster,
		Extra:   map[string]proto.Value{},
	}
	if c.cfg.ReadOnly {
		identify.Extra["read_only"] = true
	}
	if c.cfg.Backup != "" {
		identify.Extra["backup"] = []byte(c.cfg.Backup)
	}
	found, err := bootstrap.Find(c.ctx, bootstrap.Config{
		Masters:  c.masters,
		Identify: identify,
		Link:     c.links(s.deliver),
		Accepted: func(r *bootstrap.Result) {
			s.conn, s.id = r.Conn, r.ID // nobody else knows the session yet
			r.Conn.SetPeer(r.MasterID.String())
		},
		Refused: func(addr proto.Address, err error) { c.waits(err) },
		Dialer:  c.cfg.Dialer,
		Log:     c.log,
	})
	if err != nil {
		return nil, fmt.Errorf("find the primary master: %w", fromWire(err))
	}
	answered := make(chan error, 1)
	found.Conn.Ask(&proto.AskLastTransaction{}, &lastTIDAsked{s, answered})
	select {
	case err = <-answered:
	case <-found.Conn.Done():
		select {
		case err = <-answered:
		default:
			err = link.ErrClosed
		}
	case <-c.ctx.Done():
		found.Conn.Close()
		return nil, c.ctx.Err()
	}
	if err != nil {
		found.Conn.Close()
		if pe, ok := errors.AsType[*proto.Error](err); ok && pe.ErrCode == proto.ReadOnlyAccess {
			return nil, fromWire(err)
		}
		c.wait.Failed(c.log, "the primary master does not serve", "master", found.MasterID, "err", err)
		return nil, nil
	}
	v := c.view.Load()
	if v == nil || v.session != s || !v.operational() {
		found.Conn.Close()
		c.masterLost(s, errors.New("partition table is not operational"))
		c.wait.Failed(c.log, "the cluster is not operational", "master", found.MasterID)
		return nil, nil
	}
	c.wait.Over(c.log, "the cluster serves")
	c.waits(nil)
	c.log.Info("connected", "master", found.MasterID, "id", found.ID, "last_tid", tid.TID(c.last.Load()))
	return v, nil
}

// lastTIDAsked is the tag of the AskLastTransaction that follows identification.
type lastTIDAsked struct {
	s    *session
	done chan<- error
}

func (a *lastTIDAsked) answered(ev link.Event) {
	switch p := ev.Packet.(type) {
	case *proto.AnswerLastTransaction:
		a.s.begin(p.TID)
		a.done <- nil
	case *proto.Error:
		a.done <- p
	default:
		a.done <- ev.Err
	}
}

// asked is what the tags of requests are: they take the answer, or the loss of
// the link, on the goroutine that reads it.
type asked interface{ answered(ev link.Event) }

// deliver handles what arrives on the link to the master, in order.
func (s *session) deliver(ev link.Event) {
	if ev.Asked != nil {
		if a, ok := ev.Asked.Tag.(asked); ok {
			a.answered(ev)
		}
		return
	}
	if ev.End() {
		s.c.masterLost(s, ev.Err)
		return
	}
	if s.c.base(ev) {
		return
	}
	var err error
	switch p := ev.Packet.(type) {
	case *proto.NotifyNodeInformation:
		err = s.nodeInformation(p)
	case *proto.SendPartitionTable:
		s.update(func() { s.pt.Load(p.PTID, p.Replicas, p.Rows) })
	case *proto.NotifyPartitionChanges:
		s.update(func() { err = s.pt.Apply(p, false) })
	case *proto.InvalidateObjects:
		s.mu.Lock()
		ready := s.ready
		s.mu.Unlock()
		if ready {
			s.c.invalidate(p.TID, p.OIDs)
		}
	case *proto.InvalidatePartitions:
		if s.c.cfg.Backup == "" {
			err = fmt.Errorf("unexpected packet %T", p)
			break
		}
		s.mu.Lock()
		ready := s.ready
		s.mu.Unlock()
		if ready {
			s.c.invalidateAll(p.TID)
		}
	case *proto.NotifyPackSigned:
		if s.c.cfg.Backup == "" {
			err = fmt.Errorf("unexpected packet %T", p)
		} // the backup asks for the orders, see PackOrders
	case *proto.NotifyClusterInformation:
		s.c.log.Debug("cluster state", "state", p.State)
	case *proto.StopOperation:
		s.c.log.Info("the master stops the operation of the cluster")
	case *proto.Error:
		s.c.log.Warn("error from master that answers nothing", "err", p)
	default:
		err = fmt.Errorf("unexpected packet %T", p)
	}
	if err != nil {
		s.c.log.Error("master breaks the protocol", "err", err)
		ev.Conn.AbortError(ev.ID, proto.ProtocolError, "%v", err)
		s.c.masterLost(s, err)
	}
}

// nodeInformation applies news about nodes. The first one is the complete list,
// with ourselves in front.
func (s *session) nodeInformation(p *proto.NotifyNodeInformation) error {
	s.mu.Lock()
	first := !s.informed
	s.informed = true
	if first {
		if len(p.Nodes) == 0 || p.Nodes[0].ID != s.id {
			s.mu.Unlock()
			return errors.New("the first node information does not begin with this client")
		}
		s.stamp = p.Nodes[0].IDTimestamp
	}
	s.mu.Unlock()
	s.update(func() { s.nodes.Update(p.Nodes, first, nil) })
	masters := false
	for _, n := range p.Nodes {
		switch {
		case n.Type == proto.Storage && n.State != proto.NodeRunning:
			s.c.closeStorage(n.ID, fmt.Errorf("the master says that %v is %v", n.ID, n.State))
		case n.Type == proto.Master && !n.Addr.IsZero():
			s.c.masters.Learn(n.Addr)
			masters = true
		}
	}
	if masters && s.c.cfg.SaveMasters != nil {
		if err := s.c.cfg.SaveMasters(s.c.masters.List()); err != nil {
			s.c.log.Warn("masters not saved", "err", err)
		}
	}
	return nil
}

// update changes the tables and shows the new ones to requests.
func (s *session) update(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	if s.ready && !s.lost {
		s.publishLocked()
	}
}

func (s *session) publishLocked() {
	v := &view{session: s, id: s.id, stamp: s.stamp, running: map[proto.NodeID]proto.Address{}}
	v.rows = s.pt.Clone().Rows()
	for n := range s.nodes.Nodes() {
		if n.Type == proto.Storage && n.State == proto.NodeRunning {
			v.running[n.ID] = n.Addr
		}
	}
	s.c.view.Store(v)
}

// begin makes the session the one in use: its master told the last transaction.
func (s *session) begin(last tid.TID) {
	c := s.c
	c.mu.Lock()
	c.id = s.id
	c.oids = nil
	c.mu.Unlock()
	c.resync(last)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ready = true
	if !s.lost {
		s.publishLocked()
	}
}

// masterLost forgets the cluster: nothing is known of it without a master.
// Transactions that began on the link can no longer be committed.
func (c *Client) masterLost(s *session, why error) {
	s.mu.Lock()
	again := s.lost
	s.lost = true
	used := s.ready
	s.mu.Unlock()
	if !again && used && c.ctx.Err() == nil && c.cfg.OnLost != nil {
		c.cfg.OnLost() // before the view ends, after which anybody may connect anew
	}
	s.mu.Lock()
	if v := c.view.Load(); v != nil && v.session == s {
		c.view.Store(nil)
	}
	s.mu.Unlock()
	if again {
		return
	}
	c.mu.Lock()
	c.oids = nil
	var failed []*Txn
	for _, t := range c.txns {
		if t.session == s {
			failed = append(failed, t)
		}
	}
	var finishing []*finishAsked
	for a := range c.finishing {
		if a.t.session == s {
			finishing = append(finishing, a)
		}
	}
	c.mu.Unlock()
	if c.ctx.Err() == nil {
		c.log.Warn("lost the primary master", "err", why)
	}
	for _, t := range failed {
		t.fail(ErrMasterLost)
	}
	for _, a := range finishing {
		a.giveUp()
	}
	// Storages drop us as soon as the master does; identities are per master.
	c.closeStorages(ErrMasterLost)
}

// askMaster makes a request to the primary master, once.
func askMaster[A proto.Packet](ctx context.Context, c *Client, req proto.Request) (A, error) {
	var none A
	v, err := c.connected(ctx)
	if err != nil {
		return none, err
	}
	p, err := v.session.conn.Call(ctx, req)
	if err != nil {
		return none, c.masterError(ctx, err)
	}
	a, ok := p.(A)
	if !ok {
		return none, fmt.Errorf("master answered %T with %T", req, p)
	}
	return a, nil
}
