package admin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/nodetab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Stats is what an admin node knows of its cluster now.
type Stats struct {
	ID        proto.NodeID
	Connected bool // to the primary master; nothing of the cluster is known otherwise
	State     proto.Opt[proto.ClusterState]
	Nodes     map[nodetab.Class]int   // nodes that are known, by class
	Cells     map[proto.CellState]int // of all storages, by state
	Down      int                     // storages that have cells and do not run
	LastTID   proto.Opt[tid.TID]      // last transaction, as of a few seconds ago

	Backups   []BackupStats                     // the backup clusters that are watched, by name
	Follows   *following.Report                 // how far this cluster, a backup, follows another one; nil: it is none
	Imports   map[proto.NodeID]importing.Report // of storages
	Checks    check.Stats
	MailFails bool // the last mail could not be sent
	Peers     int  // operators and admins of backup clusters that are connected
	Traffic   link.TrafficStats
}

// BackupStats is what is known of a backup cluster.
type BackupStats struct {
	Name      string
	Connected bool                          // its admin is
	State     proto.Opt[proto.ClusterState] // of the backup cluster
	// Lag is how late the backup is, without what a delay or a window keeps back, as of a few
	// seconds ago. Absent: not known.
	Lag proto.Opt[time.Duration]
}

// Ready returns why the admin serves no purpose now, nil if it does.
func (s *Stats) Ready() error {
	if !s.Connected {
		return errors.New("not connected to the primary master")
	}
	return nil
}

// Stats returns the present state. The error is that of ctx: the node did not answer before.
func (n *Node) Stats(ctx context.Context) (Stats, error) {
	ask := asking{make(chan Stats, 1)}
	ended := errors.New("the admin has ended")
	select {
	case n.events <- ask:
	case <-n.quit:
		return Stats{}, ended
	case <-ctx.Done():
		return Stats{}, fmt.Errorf("the admin does not answer: %w", context.Cause(ctx))
	}
	select {
	case s := <-ask.answer:
		s.Traffic = n.traffic.Stats()
		return s, nil
	case <-n.quit:
		return Stats{}, ended
	case <-ctx.Done():
		return Stats{}, fmt.Errorf("the admin does not answer: %w", context.Cause(ctx))
	}
}

// stats returns all but Traffic, and has the clusters asked for what it needs next time.
func (n *Node) stats() Stats {
	m := &n.monitor
	s := Stats{ID: n.id, Connected: n.master != nil, State: n.state, Nodes: map[nodetab.Class]int{}, Down: m.own.down,
		Cells: maps.Clone(m.own.cells), LastTID: m.own.seen.tid(), Imports: maps.Clone(m.imports.reports), Checks: n.checks.Stats(),
		MailFails: m.mailErr != nil, Peers: len(n.peers)}
	if s.Connected {
		s.Nodes = n.nodes.Count()
	}
	if m.own.inBackup() && m.own.follows != nil {
		r := *m.own.follows
		s.Follows = &r
	}
	for _, c := range m.backups {
		b := BackupStats{Name: c.name, Connected: c.conn != nil, State: c.state}
		if l := c.due(lagOf(&c.seen.status, &m.own.seen.status)); l.known {
			b.Lag = proto.Some(l.time)
		}
		s.Backups = append(s.Backups, b)
	}
	n.see()
	return s
}

// seen is what was asked of a cluster for Stats, beside the checks that lead to mails.
type seen struct {
	status
	waiting int // answers
}

// seeTag is the tag of such a question.
type seeTag struct{ cluster *cluster }

// seeEvery is the least time between two rounds of questions.
const seeEvery = 2 * time.Second

// see asks the clusters that have answered before, or were not asked, for their last transaction.
func (n *Node) see() {
	m := &n.monitor
	if time.Since(m.sawAt) < seeEvery {
		return
	}
	m.sawAt = time.Now()
	ask := func(c *cluster, conn *link.Conn) {
		if conn == nil || !c.operational() {
			c.seen.status = status{}
			return
		}
		if c.seen.waiting > 0 {
			return
		}
		reqs := []proto.Request{&proto.AskLastTransaction{}}
		if c.backingUp() {
			reqs = append(reqs, &proto.AskRecovery{})
		}
		c.seen.waiting = len(reqs)
		for _, req := range reqs {
			conn.Ask(req, seeTag{c})
		}
	}
	ask(&m.own, n.master)
	for _, c := range m.backups {
		ask(c, c.conn)
	}
}

// saw takes the answer to a question, or its loss.
func (n *Node) saw(tag seeTag, ev link.Event) {
	c := tag.cluster
	c.seen.waiting = max(c.seen.waiting-1, 0)
	switch p := ev.Packet.(type) {
	case *proto.AnswerLastTransaction:
		c.seen.ltid = proto.Some(p.TID)
	case *proto.AnswerRecovery:
		c.seen.backupTID = p.BackupTID
	default:
		c.seen.status = status{}
		return
	}
	c.seen.state = c.state
}
