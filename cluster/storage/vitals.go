package storage

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/vitals"
)

// vitalSigns is what the node tells of itself. It is filled from any goroutine.
type vitalSigns struct {
	commits, loads atomic.Int64
	copy           atomic.Pointer[vitals.Copy] // nil: none

	m       sync.Mutex
	conn    *link.Conn     // of a master that wants reports; nil: none does
	told    *vitals.Report // what it knows
	telling bool           // the goroutine that tells it runs
}

// vitalReport returns what there is to tell now.
func (n *Node) vitalReport() vitals.Report {
	r := vitals.Report{Self: n.cfg.Self, PackDisabled: n.cfg.DisablePack, Commits: n.vitals.commits.Load(), Loads: n.vitals.loads.Load()}
	if c := n.vitals.copy.Load(); c != nil {
		r.Copy = *c
	}
	return r
}

// vitalsWanted is called when a master wants reports; nil: a new one has not said so.
func (n *Node) vitalsWanted(conn *link.Conn) {
	v := &n.vitals
	v.m.Lock()
	defer v.m.Unlock()
	v.conn, v.told = conn, nil
	if conn == nil {
		return
	}
	n.tellVitals()
	if !v.telling {
		v.telling = true
		n.wg.Go(func() { n.keepTelling(n.ctx) })
	}
}

// keepTelling tells the master what has changed, now and then, until ctx ends.
func (n *Node) keepTelling(ctx context.Context) {
	tick := time.NewTicker(vitals.Every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			n.vitals.m.Lock()
			n.tellVitals()
			n.vitals.m.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

// tellVitals tells the master, if it wants reports and does not know this one. The caller
// holds the lock.
func (n *Node) tellVitals() {
	v := &n.vitals
	r := n.vitalReport()
	if v.conn == nil || v.told != nil && *v.told == r {
		return
	}
	v.told = &r
	v.conn.Send((&vitals.Message{Topic: vitals.Reported, Node: vitals.Node{ID: 0, Known: true, Report: r}}).Packet()) // the name is that of the connection
}

// vitalsMessage processes what the master says about reports.
func (n *Node) vitalsMessage(conn *link.Conn, msg *vitals.Message) {
	if msg.Topic != vitals.Wanted {
		n.log.Warn("unexpected message about a node", "topic", msg.Topic)
		return
	}
	n.vitalsWanted(conn)
}

// showCopy notes what is being replicated.
func (r *replicator) showCopy() {
	var c vitals.Copy
	c.Partition, c.Reached, c.End, c.Active = r.m.Copying()
	switch old := r.n.vitals.copy.Load(); {
	case old == nil && !c.Active || old != nil && *old == c:
	case !c.Active:
		r.n.vitals.copy.Store(nil)
	default:
		r.n.vitals.copy.Store(&c)
	}
}
