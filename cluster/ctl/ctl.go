// Package ctl puts the questions and orders of an operator to an admin node.
//
// # Invariant
//
// An order returns without error only if the master acknowledged it. A refusal is
// a [*proto.Error], whose message is meant for the operator: DENIED for an order
// that the master does not accept now, NOT_READY without a primary master.
package ctl

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// Client is a link to an admin node. It may be used by several goroutines.
type Client struct {
	conn *link.Conn
	addr proto.Address
	cfg  link.Config
	// Progress, if not nil, is called while a check is followed.
	Progress func(*check.Run)
	// Followed, if not nil, is called while imports are followed.
	Followed func([]Import)

	reports chan *proto.NotifyMonitorInformation // of the checks and imports that are followed
	closed  chan struct{}
	run     *check.Run // followed

	importing bool  // the admin knows of an import
	following bool  // the admin knows of a backup
	orders    int64 // given to imports and backups

	m      sync.Mutex
	silent bool // the admin tells nothing of nodes
}

// Dial connects to an admin node. cfg needs no Deliver.
func Dial(ctx context.Context, addr proto.Address, cfg link.Config) (*Client, error) {
	c := &Client{addr: addr, cfg: cfg, reports: make(chan *proto.NotifyMonitorInformation, 64), closed: make(chan struct{})}
	cfg.Deliver = func(ev link.Event) {
		if p, ok := ev.Packet.(*proto.NotifyMonitorInformation); ok {
			select {
			case c.reports <- p:
			case <-c.closed:
			}
			return
		}
		link.HandleBase(ev)
	}
	var err error
	if c.conn, err = link.Dial(ctx, addr, cfg); err != nil {
		return nil, err
	}
	return c, nil
}

// Addr returns the address of the admin.
func (c *Client) Addr() proto.Address { return c.addr }

// Close ends the link, once everything is sent.
func (c *Client) Close() {
	close(c.closed)
	c.conn.Abort()
	<-c.conn.Done()
}

// ask sends a request and returns its answer, which is of type A.
func ask[A proto.Packet](ctx context.Context, c *Client, req proto.Request) (A, error) {
	p, err := c.conn.Call(ctx, req)
	if err != nil {
		var none A
		return none, err
	}
	answer, ok := p.(A)
	if !ok {
		return answer, fmt.Errorf("admin answered %s by %s", proto.CodeName(req.Code()), proto.CodeName(p.Code()))
	}
	return answer, nil
}

// order sends a request that is acknowledged, and returns what the master says.
func (c *Client) order(ctx context.Context, req proto.Request) (string, error) {
	ack, err := ask[*proto.Error](ctx, c, req)
	if err != nil {
		return "", err
	}
	return ack.Message, nil
}

// ClusterState returns the state of the cluster.
func (c *Client) ClusterState(ctx context.Context) (proto.ClusterState, error) {
	p, err := ask[*proto.AnswerClusterState](ctx, c, &proto.AskClusterState{})
	if err != nil {
		return 0, err
	}
	if !p.State.OK {
		return 0, proto.Errorf(proto.NotReady, "the state of the cluster is not known yet")
	}
	return p.State.V, nil
}

// Nodes returns the nodes that the admin knows, of one type or of all.
func (c *Client) Nodes(ctx context.Context, typ proto.Opt[proto.NodeType]) ([]proto.Node, error) {
	p, err := ask[*proto.AnswerNodeList](ctx, c, &proto.AskNodeList{Type: typ})
	if err != nil {
		return nil, err
	}
	return p.Nodes, nil
}

// Storages returns the ids of all storage nodes.
func (c *Client) Storages(ctx context.Context) ([]proto.NodeID, error) {
	nodes, err := c.Nodes(ctx, proto.Some(proto.Storage))
	ids := make([]proto.NodeID, 0, len(nodes))
	for _, n := range nodes {
		ids = append(ids, n.ID)
	}
	return ids, err
}

// PartitionTable returns rows [min, max) of the partition table, all from min on
// if max is 0. The node is for admins that filter by it; ours does not.
func (c *Client) PartitionTable(ctx context.Context, min, max int, node proto.NodeID) (*proto.AnswerPartitionList, error) {
	return ask[*proto.AnswerPartitionList](ctx, c, &proto.AskPartitionList{Min: min, Max: max, ID: node})
}

// Primary returns the id of the primary master.
func (c *Client) Primary(ctx context.Context) (proto.NodeID, error) {
	p, err := ask[*proto.AnswerPrimary](ctx, c, &proto.AskPrimary{})
	if err != nil {
		return 0, err
	}
	return p.ID, nil
}

// LastIDs is where the database is. BackupTID is only present in a backup cluster,
// which then has no LastOID: it is complete up to there, and knows transactions of
// the upstream cluster up to LastTID.
type LastIDs struct {
	BackupTID proto.Opt[tid.TID]
	LastTID   proto.Opt[tid.TID]
	LastOID   proto.Opt[tid.OID]
	PTID      proto.Opt[uint64]
}

// LastIDs returns the last ids of the database.
func (c *Client) LastIDs(ctx context.Context) (*LastIDs, error) {
	r, err := ask[*proto.AnswerRecovery](ctx, c, &proto.AskRecovery{})
	if err != nil {
		return nil, err
	}
	ids := &LastIDs{BackupTID: r.BackupTID, PTID: r.PTID}
	if r.BackupTID.OK {
		p, err := ask[*proto.AnswerLastTransaction](ctx, c, &proto.AskLastTransaction{})
		if err != nil {
			return nil, err
		}
		ids.LastTID = proto.Some(p.TID)
		return ids, nil
	}
	p, err := ask[*proto.AnswerLastIDs](ctx, c, &proto.AskLastIDs{})
	if err != nil {
		return nil, err
	}
	ids.LastTID, ids.LastOID = p.LastTID, p.LastOID
	return ids, nil
}

// Summary returns how the cluster and its backups are.
func (c *Client) Summary(ctx context.Context) (*proto.AnswerMonitorInformation, error) {
	return ask[*proto.AnswerMonitorInformation](ctx, c, &proto.AskMonitorInformation{})
}

// LossError is what a start may lose. The cluster was not started.
type LossError struct{ Text string }

func (e *LossError) Error() string { return "not started, transactions may be lost: " + e.Text }

// Start starts a cluster that recovers. Where that may lose transactions it does not, and
// returns a [*LossError].
func (c *Client) Start(ctx context.Context) (string, error) {
	text, err := c.SetClusterState(ctx, proto.Verifying)
	refused, ok := errors.AsType[*proto.Error](err)
	if !ok || refused.ErrCode != proto.Denied {
		return text, err
	}
	loss, ok := strings.CutPrefix(refused.Message, proto.ConfirmStart)
	if !ok {
		return text, err
	}
	// The order must not count as the first half of one that is confirmed.
	if _, err := c.SetClusterState(ctx, proto.Running); !isDenied(err) {
		return "", errors.Join(&LossError{loss}, err)
	}
	return "", &LossError{loss}
}

// StartAnyway starts a cluster that recovers, whatever may be lost.
func (c *Client) StartAnyway(ctx context.Context) (string, error) {
	if text, err := c.SetClusterState(ctx, proto.Recovering); !isDenied(err) {
		return text, err
	}
	return c.SetClusterState(ctx, proto.Verifying)
}

func isDenied(err error) bool {
	refused, ok := errors.AsType[*proto.Error](err)
	return ok && refused.ErrCode == proto.Denied
}

// SetClusterState asks for a state: Verifying to start a cluster that recovers,
// StartingBackup, StoppingBackup, Stopping.
func (c *Client) SetClusterState(ctx context.Context, s proto.ClusterState) (string, error) {
	return c.order(ctx, &proto.SetClusterState{State: s})
}

// SetReplicas sets the number of copies beside the first. A tweak then makes them.
func (c *Client) SetReplicas(ctx context.Context, n int) (string, error) {
	return c.order(ctx, &proto.SetNumReplicas{Replicas: n})
}

// Add takes pending storages into the cluster.
func (c *Client) Add(ctx context.Context, ids []proto.NodeID) (string, error) {
	return c.order(ctx, &proto.AddPendingNodes{IDs: ids})
}

// Tweak rebalances the partition table, taking the cells of the given nodes away.
func (c *Client) Tweak(ctx context.Context, dryRun bool, ids []proto.NodeID) (*proto.AnswerTweakPartitionTable, error) {
	return ask[*proto.AnswerTweakPartitionTable](ctx, c, &proto.TweakPartitionTable{DryRun: dryRun, IDs: ids})
}

// Kill stops a storage or a secondary master.
func (c *Client) Kill(ctx context.Context, id proto.NodeID) (string, error) {
	return c.order(ctx, &proto.SetNodeState{ID: id, State: proto.NodeDown})
}

// Drop removes a storage that does not run for ever.
func (c *Client) Drop(ctx context.Context, id proto.NodeID) (string, error) {
	return c.order(ctx, &proto.SetNodeState{ID: id, State: proto.NodeUnknown})
}

// Repair makes storages delete orphan data, or only log it.
func (c *Client) Repair(ctx context.Context, dryRun bool, ids []proto.NodeID) (string, error) {
	return c.order(ctx, &proto.Repair{IDs: ids, DryRun: dryRun})
}

// Truncate cuts the database after a transaction.
func (c *Client) Truncate(ctx context.Context, t tid.TID) error {
	_, err := c.order(ctx, &proto.Truncate{TID: t})
	return err
}

// ErrNoReports is returned for a check whose result is only in the logs: the admin or
// the master is of the Python implementation.
var ErrNoReports = errors.New("this cluster does not report what a check finds: it is in the log of the master")

// ErrNothingToCheck is returned for a check of a range that is empty.
var ErrNothingToCheck = errors.New("there is nothing to check up to the last transaction")

// CheckReplicas starts a comparison of the replicas of partitions, with the cell
// of a node if one is given for a partition. A backup cluster compares with the upstream
// cluster as well where none is given; see check.Local. It returns the name of the check, which
// goes on whether it is followed or not, or ErrNoReports once it was started.
func (c *Client) CheckReplicas(ctx context.Context, partitions map[int]proto.Opt[proto.NodeID], min tid.TID, max proto.Opt[tid.TID]) (int64, error) {
	text, err := c.order(ctx, &proto.CheckReplicas{Partitions: partitions, Min: min, Max: max})
	if err != nil {
		return 0, err
	}
	if text == check.Nothing {
		return 0, ErrNothingToCheck
	}
	name, ok := strings.CutPrefix(text, check.Started)
	if !ok {
		return 0, ErrNoReports
	}
	id, err := strconv.ParseInt(name, 10, 64)
	if err != nil {
		return 0, ErrNoReports
	}
	return id, nil
}

// NamesChecks reports whether the admin and the master give a check a name: only then a
// reference may be check.Local.
func (c *Client) NamesChecks(ctx context.Context) (bool, error) {
	text, err := c.order(ctx, &proto.CheckReplicas{Partitions: map[int]proto.Opt[proto.NodeID]{}})
	return strings.HasPrefix(text, check.Started), err
}

// FollowCheck waits for the end of a check and returns what it has found.
func (c *Client) FollowCheck(ctx context.Context, id int64) (*check.Run, error) {
	c.run = &check.Run{ID: id}
	c.conn.Send((&check.Report{Check: id, Partition: check.None}).Packet())
	for len(c.run.Parts) == 0 || !c.run.Over() {
		if _, err := c.report(ctx); err != nil {
			return nil, err
		}
	}
	return c.run, nil
}

// RepairReplicas lets nodes get what differs from the reference of the check that was
// followed last, and waits for the end. What became of it is in the result of the
// check.
func (c *Client) RepairReplicas(ctx context.Context, nodes []proto.NodeID) (*check.Run, error) {
	if c.run == nil {
		return nil, errors.New("no check was followed")
	}
	waiting := map[int]bool{}
	for n, p := range c.run.Parts {
		if slices.ContainsFunc(nodes, func(id proto.NodeID) bool { return slices.Contains(p.Nodes, id) }) {
			waiting[n] = true
		}
	}
	c.conn.Send((&check.Report{Check: c.run.ID, Partition: check.None, State: check.Repair, Nodes: nodes}).Packet())
	for len(waiting) > 0 {
		r, err := c.report(ctx)
		if err != nil {
			return nil, err
		}
		if r.Partition != check.None && (r.State == check.Repaired || r.State == check.Failed) {
			delete(waiting, r.Partition)
		}
	}
	return c.run, nil
}

// report waits for the next report of the check that is followed.
func (c *Client) report(ctx context.Context) (*check.Report, error) {
	for {
		select {
		case p := <-c.reports:
			r, ok, err := check.Parse(p)
			if err != nil {
				return nil, err
			}
			if !ok || r.Check != c.run.ID {
				continue
			}
			if r.Partition == check.None && r.State == check.Failed {
				return nil, proto.Errorf(proto.Denied, "%s", r.Note)
			}
			c.run.Apply(r)
			if c.Progress != nil {
				c.Progress(c.run)
			}
			return r, nil
		case <-c.conn.Done():
			return nil, fmt.Errorf("while a check was followed, which may go on: %w", link.ErrClosed)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// FlushLog makes every node write its log. It is sent, but not acknowledged:
// Close before leaving.
func (c *Client) FlushLog() { c.conn.Send(&proto.FlushLog{}) }
