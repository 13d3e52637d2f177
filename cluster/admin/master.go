package admin

import (
	"context"
	"fmt"
	"log/slog"
	"maps"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
)

// notConnected is what operators are told without a primary master. The text is
// that of the Python implementation, whose users know it.
const notConnected = "Not connected to a primary master."

// fromMaster handles an event of the link to the primary master.
func (n *Node) fromMaster(ev link.Event) error {
	if ev.End() {
		return n.masterLost(ev.Err)
	}
	if ev.Asked != nil {
		n.masterAnswered(ev)
		return nil
	}
	switch p := ev.Packet.(type) {
	case *proto.NotifyNodeInformation:
		n.nodesChanged(p)
	case *proto.SendPartitionTable:
		n.pt.Load(p.PTID, p.Replicas, p.Rows)
		n.observe()
	case *proto.NotifyPartitionChanges:
		if err := n.pt.Apply(p, false); err != nil {
			// Our view is wrong: get a whole one, from the start.
			n.log.Error("partition table out of step, connecting again", "err", err)
			n.master.Close()
			return nil
		}
		n.observe()
	case *proto.NotifyClusterInformation:
		n.setState(proto.Some(p.State))
	case *proto.NotifyUpstreamAdmin:
		n.setUpstream(p.Addr)
	case *proto.FlushLog:
		n.flushLog()
	case *proto.StopOperation, *proto.NotPrimaryMaster:
		// The cluster state, or the end of the link, tells the same.
		n.log.Debug("ignored", "packet", proto.CodeName(p.Code()), "peer", ev.Conn.String())
	case *proto.NotifyMonitorInformation:
		if !n.importMessage(p) && !n.followMessage(p) && !n.vitalsMessage(p) {
			n.checkReported(p)
		}
	default:
		n.log.Warn("packet not meant for an admin", "packet", proto.CodeName(ev.Packet.Code()), "peer", ev.Conn.String())
	}
	return nil
}

// masterAnswered handles the answer, or the loss, of a request to the master.
func (n *Node) masterAnswered(ev link.Event) {
	switch tag := ev.Asked.Tag.(type) {
	case relay:
		answerRelay(tag, ev)
	case checkTag:
		n.checkAnswered(tag, ev)
	case seeTag:
		n.saw(tag, ev)
	case nil: // our own AskClusterState
		if p, ok := ev.Packet.(*proto.AnswerClusterState); ok {
			n.setState(p.State)
		}
	}
}

// answerRelay passes an answer on to who asked.
func answerRelay(to relay, ev link.Event) {
	switch p := ev.Packet.(type) {
	case nil:
		to.conn.AnswerError(to.id, proto.ProtocolError, "the primary master was lost before it answered")
	case *proto.Error:
		if p.ErrCode == proto.ProtocolError {
			to.conn.AbortError(to.id, p.ErrCode, "%s", p.Message)
		} else {
			to.conn.Answer(to.id, p)
		}
	default:
		to.conn.Answer(to.id, p)
	}
}

// masterLost forgets what only a connected admin knows, and looks for a primary
// master again.
func (n *Node) masterLost(err error) error {
	n.master, n.masterID, n.id, n.monitor.own.seen = nil, 0, n.cfg.ID, seen{}
	if n.state.OK && n.state.V == proto.Stopping {
		n.log.Info("the cluster has stopped")
		n.stopping = true
		return nil
	}
	level := slog.LevelWarn
	if !n.state.OK { // as when masters are started together: it has become secondary
		level = slog.LevelInfo
	}
	n.log.Log(context.Background(), level, "connection to the primary master lost", "err", err)
	n.refuseWaiting()
	n.checksLost()
	n.importsLost()
	n.followLost()
	n.setState(proto.Opt[proto.ClusterState]{})
	n.search()
	return nil
}

func (n *Node) nodesChanged(p *proto.NotifyNodeInformation) {
	n.noteStates(p.Nodes)
	n.nodes.Update(p.Nodes, n.fresh, nil)
	n.fresh = false
	for _, node := range p.Nodes {
		if node.Type == proto.Master && node.State != proto.NodeUnknown {
			n.cfg.Masters.Learn(node.Addr)
			n.tellMasters()
		}
		if node.ID == n.id && node.Type == proto.Admin && (node.State == proto.NodeDown || node.State == proto.NodeUnknown) {
			n.log.Info("told to stop by the master", "state", node.State.String())
			n.stopping = true
		}
	}
	n.observe()
}

func (n *Node) setState(s proto.Opt[proto.ClusterState]) {
	if n.state != s && s.OK {
		n.log.Info("cluster state", "state", s.V.String())
	}
	n.state = s
	if s.OK && s.V == proto.Running {
		n.checks.Left()
	}
	n.observe()
}

func (n *Node) flushLog() {
	if n.cfg.FlushLog != nil {
		n.cfg.FlushLog()
	}
}

// flushAsked flushes the logs of the cluster because a peer, an operator or the
// admin of a backup, asks for it.
func (n *Node) flushAsked() {
	if n.master != nil {
		n.master.Send(&proto.FlushLog{})
	}
	n.flushLog()
}

// fromPeer handles an event of a link that was accepted.
func (n *Node) fromPeer(ev link.Event) {
	p := n.peers[ev.Conn]
	switch ev.Packet.(type) {
	case *proto.FlushLog:
		n.flushAsked()
		return
	case *proto.NotifyNodeInformation, *proto.NotPrimaryMaster:
		n.log.Debug("ignored", "packet", proto.CodeName(ev.Packet.Code()), "peer", ev.Conn.String())
		return
	}
	switch {
	case ev.End():
		delete(n.peers, ev.Conn)
		gone := func(_ int64, o importOrder) bool { return o.conn == ev.Conn }
		maps.DeleteFunc(n.monitor.imports.orders, gone)
		maps.DeleteFunc(n.monitor.following.orders, gone)
		if p.backup != nil {
			n.log.Info("backup cluster disconnected", "cluster", p.backup.name, "err", ev.Err)
			n.monitor.disconnected(p.backup)
			n.changed()
		}
	case ev.Asked != nil:
		switch tag := ev.Asked.Tag.(type) {
		case checkTag:
			n.checkAnswered(tag, ev)
		case seeTag:
			n.saw(tag, ev)
		}
	case p.backup != nil:
		n.fromBackup(ev, p.backup)
	default:
		n.fromOperator(ev)
	}
}

// fromOperator handles a packet of neoctl.
func (n *Node) fromOperator(ev link.Event) {
	c, id := ev.Conn, ev.ID
	if p, ok := ev.Packet.(*proto.RequestIdentification); ok {
		n.identify(ev, p)
		return
	}
	if p, ok := ev.Packet.(*proto.NotifyMonitorInformation); ok {
		if !n.importAsked(c, id, p) && !n.followAsked(c, id, p) && !n.vitalsAsked(c, id, p) {
			n.followCheck(c, id, p)
		}
		return
	}
	if _, ok := ev.Packet.(proto.Request); !ok {
		c.AbortError(id, proto.ProtocolError, "%s is not for an admin", proto.CodeName(ev.Packet.Code()))
		return
	}
	if n.master == nil {
		c.AnswerError(id, proto.NotReady, notConnected)
		return
	}
	switch p := ev.Packet.(type) {
	case *proto.AskClusterState:
		c.Answer(id, &proto.AnswerClusterState{State: n.state})
	case *proto.AskPrimary:
		c.Answer(id, &proto.AnswerPrimary{ID: n.masterID})
	case *proto.AskNodeList:
		c.Answer(id, &proto.AnswerNodeList{Nodes: n.nodeList(p.Type)})
	case *proto.AskPartitionList:
		answer, err := n.partitionList(p)
		if err != nil {
			c.AnswerError(id, proto.ProtocolError, "%v", err)
			return
		}
		c.Answer(id, answer)
	case *proto.AskMonitorInformation:
		n.monitor.waiting = append(n.monitor.waiting, relay{c, id})
		n.startCheck()
	case *proto.AddPendingNodes, *proto.AskLastIDs, *proto.AskLastTransaction, *proto.AskRecovery, *proto.CheckReplicas,
		*proto.Repair, *proto.SetClusterState, *proto.SetNodeState, *proto.SetNumReplicas, *proto.Truncate, *proto.TweakPartitionTable:
		n.master.Ask(p.(proto.Request), relay{c, id})
	default:
		c.AbortError(id, proto.ProtocolError, "%s is not for an admin", proto.CodeName(ev.Packet.Code()))
	}
}

func (n *Node) nodeList(typ proto.Opt[proto.NodeType]) []proto.Node {
	list := []proto.Node{}
	for node := range n.nodes.Nodes() {
		if !typ.OK || node.Type == typ.V {
			list = append(list, *node)
		}
	}
	return list
}

// partitionList returns rows [Min, Max), all if Max is 0. The node is ignored, as
// in the Python implementation.
func (n *Node) partitionList(p *proto.AskPartitionList) (*proto.AnswerPartitionList, error) {
	end := p.Max
	if end == 0 {
		end = n.pt.NP()
	}
	if p.Min < 0 || p.Min > end || end > n.pt.NP() {
		return nil, fmt.Errorf("no partitions [%d, %d) in a table of %d", p.Min, end, n.pt.NP())
	}
	return &proto.AnswerPartitionList{PTID: n.pt.PTID(), Replicas: n.pt.Replicas(), Rows: n.pt.Rows()[p.Min:end]}, nil
}
