package storage

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/check"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/importing"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/parting"
	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/pending"
	"github.com/neozodb/neo/cluster/storage/replica"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/vitals"
)

// connect starts to look for the primary master.
func (n *Node) connect() error {
	p := &peer{role: masterRole}
	devices := []proto.Value{}
	for _, s := range n.db.Topology() {
		devices = append(devices, []byte(s))
	}
	newIDs := []proto.Value{}
	for _, i := range n.newIDs {
		newIDs = append(newIDs, int64(i))
	}
	ask := proto.RequestIdentification{Type: proto.Storage, ID: n.id, Addr: n.Addr(), Cluster: n.cfg.Cluster,
		Extra: map[string]proto.Value{"devpath": devices, "new_nid": newIDs, check.Extension: check.Version, following.Extension: 1, vitals.Extension: 1, parting.Extension: 1}}
	if n.importer != nil {
		ask.Extra[importing.Extension] = 1
	}
	n.noted, n.listens = proto.Opt[uint64]{}, false
	if err := n.tellState(ask.Extra); err != nil {
		return err
	}
	if len(n.newIDs) > 0 {
		ask.Addr = proto.Address{}
	}
	cfg := bootstrap.Config{
		Masters: n.cfg.Masters,
		Lookup:  n.cfg.Lookup,
		Accepted: func(found *bootstrap.Result) {
			n.conns.add(found.Conn)
			n.post(func() error { return n.connected(p, found) })
		},
		Identify: ask,
		Link: n.linkConfig(func(ev link.Event) {
			if ev.End() {
				n.conns.remove(ev.Conn)
			}
			n.put(event{peer: p, link: ev})
		}),
		Dialer: n.cfg.Dialer,
		Log:    n.log,
	}
	again := n.infoTimestamp.OK
	giveUp := time.Now().Add(noticeTimeout)
	n.wg.Go(func() {
		last := ""
		for n.ctx.Err() == nil {
			_, err := bootstrap.Find(n.ctx, cfg)
			switch {
			case err == nil || n.ctx.Err() != nil:
			case again || alreadyConnected(err) && time.Now().Before(giveUp):
				// It has accepted us before, in this process or in the last one, and may
				// not have noticed yet that it ended.
				if text := err.Error(); text != last {
					last = text
					n.log.Info("refused by the primary master, trying again", "err", err)
				}
				continue
			default:
				n.fail(err)
			}
			return
		}
	})
	return nil
}

// noticeTimeout is how long a master may take to notice that a connection has ended:
// by TCP, 150 s at most; our own masters ask, and know within seconds.
const noticeTimeout = 3 * time.Minute

// alreadyConnected reports whether a master refuses a node because it is still
// connected. The protocol has no code for that.
func alreadyConnected(err error) bool {
	e, ok := errors.AsType[*proto.Error](err)
	return ok && e.ErrCode == proto.ProtocolError && strings.Contains(e.Message, "already connected")
}

// connected begins the initialization with a primary master.
func (n *Node) connected(p *peer, found *bootstrap.Result) error {
	p.conn, p.id, p.identified = found.Conn, found.MasterID, true
	n.master = p
	n.peers[p] = true
	p.named()
	if n.importer != nil {
		n.importer.wanted(nil)
	}
	n.vitalsWanted(nil)
	n.log.Debug("connected to the primary master", "master", found.MasterID, "node", found.ID)
	n.idTimestamp, n.infoTimestamp = proto.Opt[float64]{}, proto.Opt[float64]{}
	if found.ID == 0 {
		return errors.New("the master gave no node id")
	}
	stored, err := n.db.Config()
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	n.id = found.ID
	if n.cfg.Identified != nil {
		n.cfg.Identified(n.id)
	}
	if stored.ID != n.id {
		if err := n.db.SetID(n.id); err != nil {
			return fmt.Errorf("writing the node id: %w", err)
		}
	}
	return n.loadTable()
}

// loadTable reads the partition table of the database.
func (n *Node) loadTable() error {
	stored, err := n.db.Config()
	if err != nil {
		return fmt.Errorf("reading the configuration: %w", err)
	}
	cells, err := n.db.Cells()
	if err != nil {
		return fmt.Errorf("reading the partition table: %w", err)
	}
	np := 0
	for _, c := range cells {
		np = max(np, c.Partition+1)
	}
	rows := make([][]proto.Cell, np)
	for _, c := range cells {
		rows[c.Partition] = append(rows[c.Partition], proto.Cell{ID: c.ID, State: c.State})
		if n.nodes.ByID(c.ID) == nil {
			n.nodes.Put(proto.Node{Type: proto.Storage, ID: c.ID, State: proto.NodeDown})
		}
	}
	n.table.Load(stored.PTID, stored.Replicas, rows)
	n.backupTID.Store(backup(stored.BackupTID))
	n.updateReadable()
	return nil
}

// updateReadable publishes which partitions may be read here.
func (n *Node) updateReadable() {
	r := make([]bool, n.table.NP())
	for i := range r {
		r[i] = n.table.Cell(i, n.id).Readable()
	}
	n.readable.Store(&r)
}

// fromMaster processes a packet of the primary master.
func (n *Node) fromMaster(ev link.Event) error {
	switch q := ev.Packet.(type) {
	case *proto.NotifyNodeInformation:
		return n.nodeInformation(ev, q)
	case *proto.NotifyClusterInformation:
		if n.session == nil {
			return nil
		}
		switch q.State {
		case proto.StartingBackup:
			return n.session.replicator.tell(replica.Event{Kind: replica.UpstreamLost})
		case proto.StoppingBackup:
			return n.session.replicator.tell(replica.Event{Kind: replica.BackupStopped})
		}
		return nil
	case *proto.NotifyPartitionChanges:
		return n.partitionChanges(ev, q)
	case *proto.NotifyPackSigned:
		return n.packSigned(q)
	case *proto.NotifyRepair:
		return n.repairOrdered(q)
	case *proto.AskFinalTID:
		final, err := n.db.FinalTID(n.ctx, q.TTID)
		n.finishRead(n.ctx, ev.Conn, ev.ID, &proto.AnswerFinalTID{TID: final}, q.TTID, err)
		return nil
	case *proto.AskTransactionInformation: // of the master of a backup cluster
		a, err := n.transaction(n.ctx, tid.Max, q)
		n.finishRead(n.ctx, ev.Conn, ev.ID, a, q.TID, err)
		return nil
	case *proto.AskPackOrders:
		n.note(q.Min)
		orders, err := n.db.PackOrders(q.Min)
		n.finishRead(n.ctx, ev.Conn, ev.ID, &proto.AnswerPackOrders{Orders: orders}, q.Min, err)
		return nil
	case *proto.StopOperation:
		n.log.Info("operation stopped by the master")
		if err := n.leaveOperation(); err != nil {
			return err
		}
		n.closeAll()
		return nil
	case *proto.NotifyTransactionFinished:
		return n.transactionFinished(q.TTID, proto.Some(q.Max))
	case *proto.AbortTransaction:
		return n.transactionFinished(q.TTID, proto.Opt[tid.TID]{})
	case *proto.CloseClient:
		return n.drop(n.master)
	case *proto.NotifyMonitorInformation:
		if _, ok, err := parting.Parse(q); ok && err == nil {
			n.listens = true
			return nil
		}
		if msg, ok, err := importing.Parse(q); err != nil {
			n.log.Error("message of the master not understood", "err", err)
			return nil
		} else if ok {
			n.importMessage(ev.Conn, msg)
			return nil
		}
		if msg, ok, err := vitals.Parse(q); err != nil {
			n.log.Error("message of the master not understood", "err", err)
			return nil
		} else if ok {
			n.vitalsMessage(ev.Conn, msg)
			return nil
		}
		if msg, ok, err := following.Parse(q); err != nil {
			n.log.Error("message of the master not understood", "err", err)
			return nil
		} else if ok {
			return n.followingMessage(msg)
		}
		r, ok, err := check.Parse(q)
		if err != nil {
			n.log.Error("order of the master not understood", "err", err)
		} else if ok && n.session != nil {
			return n.session.replicator.tell(replica.Event{Kind: replica.CheckAnnounced, Report: r})
		}
		return nil
	}
	if n.session == nil {
		return n.initialization(ev)
	}
	return n.operation(ev)
}

// transactionFinished processes the end of a transaction as the master tells it.
func (n *Node) transactionFinished(ttid tid.TID, max proto.Opt[tid.TID]) error {
	if n.session == nil {
		return nil
	}
	if err := n.session.txns.Abort(ttid); err != nil {
		return err
	}
	return n.session.replicator.transactionEnded(ttid, max)
}

// initialization processes what is allowed before the node is operational.
func (n *Node) initialization(ev link.Event) error {
	conn := ev.Conn
	switch q := ev.Packet.(type) {
	case *proto.SendPartitionTable:
		return n.partitionTable(ev, q)
	case *proto.Truncate:
		// Only recorded: data are cut when every node has recorded it, else a
		// crash could leave replicas that are cut differently.
		if err := n.db.SetBackupTID(proto.Opt[tid.TID]{}); err != nil {
			return err
		}
		n.backupTID.Store(nil)
		n.announced = nil
		if err := errors.Join(n.db.SetBackupGap([2]tid.TID{}), n.db.SetBackupHold(proto.Opt[tid.TID]{})); err != nil {
			return err
		}
		if err := n.db.SetTruncateTID(proto.Some(q.TID)); err != nil {
			return err
		}
		return n.commit()
	case *proto.AskRecovery:
		c, err := n.db.Config()
		if err != nil {
			return err
		}
		conn.Answer(ev.ID, &proto.AnswerRecovery{PTID: c.PTID, BackupTID: c.BackupTID, TruncateTID: c.TruncateTID})
		return nil
	case *proto.AskPartitionTable:
		conn.Answer(ev.ID, &proto.AnswerPartitionTable{PTID: n.table.PTID(), Replicas: n.table.Replicas(), Rows: n.table.Clone().Rows()})
		return nil
	case *proto.AskLockedTransactions:
		list, err := n.db.Unfinished()
		if err != nil {
			return fmt.Errorf("unfinished transactions: %w", err)
		}
		conn.Answer(ev.ID, &proto.AnswerLockedTransactions{TIDs: list})
		return nil
	case *proto.ValidateTransaction:
		n.log.Info("transaction validated", "ttid", q.TTID, "tid", q.TID)
		if err := n.db.Validate(q.TTID, q.TID); err != nil {
			return fmt.Errorf("validating transaction %v as %v: %w", q.TTID, q.TID, err)
		}
		return nil
	case *proto.AskLastIDs:
		return n.lastIDs(ev)
	case *proto.AskCheckTIDRange, *proto.AskCheckSerialRange:
		n.compared(ev)
		return nil
	case *proto.StartOperation:
		return n.startOperation(q.Backup)
	}
	n.unexpected(n.master, ev)
	return nil
}

func (n *Node) lastIDs(ev link.Event) error {
	if err := n.truncate(); err != nil {
		return err
	}
	if !n.cfg.DisablePack {
		if err := n.notifyPacked(true); err != nil {
			return err
		}
	}
	last, err := n.db.LastIDs(n.ctx)
	if err != nil {
		if e := wireError(err, tid.Zero); e != nil {
			answer(ev.Conn, ev.ID, e)
			return nil
		}
		return fmt.Errorf("last ids: %w", err)
	}
	ev.Conn.Answer(ev.ID, &proto.AnswerLastIDs{LastTID: last.TID, LastOID: last.OID, FirstTID: last.First})
	return nil
}

// truncate executes a recorded order to cut the database.
func (n *Node) truncate() error {
	c, err := n.db.Config()
	if err != nil {
		return err
	}
	if !c.TruncateTID.OK {
		return nil
	}
	n.log.Warn("truncating the database", "after", c.TruncateTID.V)
	if err := n.db.Truncate(); err != nil {
		return fmt.Errorf("truncating after %v: %w", c.TruncateTID.V, err)
	}
	return nil
}

// operation processes what is allowed while the node is operational.
func (n *Node) operation(ev link.Event) error {
	s := n.session
	r := pending.Request{Conn: ev.Conn, ID: ev.ID}
	switch q := ev.Packet.(type) {
	case *proto.AskLockInformation:
		return s.txns.Lock(r, q)
	case *proto.NotifyUnlockInformation:
		n.vitals.commits.Add(1)
		return s.txns.Unlock(r, q.TTID)
	case *proto.StartOperation:
		if !q.Backup {
			if !n.noted.OK {
				break
			}
			if err := n.confirm(); err != nil {
				return err
			}
			return n.commit()
		}
		if err := n.setBackup(true, false); err != nil {
			return err
		}
		return s.replicator.tellBackup(replica.Event{Kind: replica.BackupBegun})
	case *proto.Replicate:
		return s.replicator.tell(replica.Event{Kind: replica.BackupOrdered, Packet: q})
	case *proto.CheckPartition:
		return s.replicator.tell(replica.Event{Kind: replica.CheckOrdered, Packet: q})
	}
	n.unexpected(n.master, ev)
	return nil
}

// nodeInformation learns about nodes. The first one of a master is complete, and
// begins with this node.
func (n *Node) nodeInformation(ev link.Event, q *proto.NotifyNodeInformation) error {
	first := !n.infoTimestamp.OK
	if !first && q.Timestamp <= n.infoTimestamp.V {
		n.log.Info("node information is not newer than the last one", "timestamp", q.Timestamp, "last", n.infoTimestamp.V)
	}
	n.infoTimestamp = proto.Some(q.Timestamp)
	if first && len(q.Nodes) > 0 && q.Nodes[0].ID == n.id {
		n.idTimestamp = q.Nodes[0].IDTimestamp
	}
	gone := n.nodes.Update(q.Nodes, first, func(node *proto.Node) bool {
		return node.Type == proto.Storage && n.table.HasCells(node.ID)
	})
	for _, node := range q.Nodes {
		if node.ID == n.id {
			switch node.State {
			case proto.NodeDown:
				n.log.Info("shut down by the master")
				n.exit = true
				return nil
			case proto.NodeUnknown:
				n.log.Warn("dropped from the cluster: erasing the database")
				n.exit = true
				if n.session != nil {
					n.session.feeder.stop()
					n.session = nil // nothing of it is left to be released
				}
				if err := n.db.Erase(); err != nil {
					return fmt.Errorf("erasing the database: %w", err)
				}
				return nil
			}
		}
		if node.Type == proto.Client && node.State != proto.NodeRunning && n.session != nil {
			if err := n.session.txns.ClientGone(node.ID); err != nil {
				return err
			}
		}
	}
	for _, node := range gone {
		if node.Type == proto.Client && n.session != nil {
			if err := n.session.txns.ClientGone(node.ID); err != nil {
				return err
			}
		}
		for _, p := range []*peer{n.clients[node.ID], n.links[linkKey{id: node.ID}]} {
			if node.ID != 0 && p != nil {
				if err := n.drop(p); err != nil {
					return err
				}
			}
		}
	}
	if n.cfg.MastersKnown != nil {
		for _, m := range n.nodes.OfType(proto.Master) {
			n.cfg.Masters.Learn(m.Addr)
		}
		n.cfg.MastersKnown(n.cfg.Masters.List())
	}
	return n.retryIdentifications()
}

// cells returns the changes that make a table.
func allCells(rows [][]proto.Cell) []proto.CellChange {
	var list []proto.CellChange
	for i, row := range rows {
		for _, c := range row {
			list = append(list, proto.CellChange{Partition: i, ID: c.ID, State: c.State})
		}
	}
	return list
}

// partitionTable takes the whole table.
func (n *Node) partitionTable(ev link.Event, q *proto.SendPartitionTable) error {
	old := n.table.Clone()
	n.table.Load(q.PTID, q.Replicas, q.Rows)
	if !n.table.Filled() || !q.PTID.OK {
		n.table = *old
		ev.Conn.AbortError(ev.ID, proto.ProtocolError, "the partition table is not filled")
		return nil
	}
	if was := old.PTID(); was.OK && was.V >= q.PTID.V && old.HasCells(n.id) && !n.table.HasCells(n.id) {
		n.table = *old
		return &SupersededError{Cluster: n.cfg.Cluster, Theirs: q.PTID.V, Ours: was.V}
	}
	if err := n.db.ChangePartitionTable(q.PTID.V, q.Replicas, allCells(q.Rows), true, n.lastPack); err != nil {
		return fmt.Errorf("storing partition table %d: %w", q.PTID.V, err)
	}
	if err := n.keepConfirmed(q.PTID.V); err != nil {
		return err
	}
	for _, i := range n.doubtful(old) {
		n.log.Info("cell will be compared from the beginning: others may have gone on without it", "partition", i)
		if err := n.db.SetCellTID(i, tid.Zero); err != nil {
			return fmt.Errorf("storing the state of partition %d: %w", i, err)
		}
	}
	n.updateReadable()
	return n.commit()
}

// doubtful returns the own outdated cells that may hold transactions which the
// rest of the cluster lost: it came back from a copy that this node knew to be
// outdated, or from an older partition table. To replicate what follows the last
// transaction here is not enough for them.
func (n *Node) doubtful(old *parttab.Table) []int {
	was := old.PTID()
	if !was.OK {
		return nil
	}
	is := n.table.PTID()
	stale := was.V > is.V || is.V-was.V >= parttab.Leap || was.V == is.V && !slices.EqualFunc(old.Rows(), n.table.Rows(), sameRow)
	var list []int
	for i := range n.table.NP() {
		if i >= old.NP() || n.table.Cell(i, n.id) != proto.OutOfDate || old.Cell(i, n.id) == proto.Discarded {
			continue
		}
		overtaken := old.Cell(i, n.id).Readable() && slices.ContainsFunc(n.table.Row(i), func(c proto.Cell) bool {
			return c.State.Readable() && old.Cell(i, c.ID) == proto.OutOfDate
		})
		if stale || overtaken {
			list = append(list, i)
		}
	}
	return list
}

// sameRow reports whether two rows have the same cells, in any order.
func sameRow(a, b []proto.Cell) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(c proto.Cell) bool { return !slices.Contains(b, c) })
}

// partitionChanges applies a change of the partition table.
func (n *Node) partitionChanges(ev link.Event, q *proto.NotifyPartitionChanges) error {
	refused := n.refused(q)
	if err := n.table.Apply(q, true); err != nil {
		ev.Conn.AbortError(ev.ID, proto.ProtocolError, "%v", err)
		return nil
	}
	if err := n.db.ChangePartitionTable(q.PTID, q.Replicas, q.Cells, false, n.lastPack); err != nil {
		return fmt.Errorf("storing change %d of the partition table: %w", q.PTID, err)
	}
	for _, i := range refused {
		n.log.Info("cell will be compared from the beginning: another copy has transactions that are not here", "partition", i)
		if err := n.db.SetCellTID(i, tid.Zero); err != nil {
			return fmt.Errorf("storing the state of partition %d: %w", i, err)
		}
	}
	n.updateReadable()
	if s := n.session; s != nil {
		s.txns.TableChanged()
		s.worker.tableChanged(q.Cells)
		if err := s.replicator.tell(replica.Event{Kind: replica.TableChanged, Changes: q.Cells}); err != nil {
			return err
		}
	}
	// At once: verification relies on the table being stored before what is
	// locked after it.
	if err := n.commit(); err != nil {
		return err
	}
	// A cell that was given away may have been the one that packs still waited for.
	if n.session != nil && slices.ContainsFunc(q.Cells, func(c proto.CellChange) bool { return c.ID == n.id && c.State == proto.Discarded }) {
		return n.notifyPacked(false)
	}
	return nil
}

// followingMessage processes what the master says of a backup cluster.
func (n *Node) followingMessage(msg *following.Message) error {
	if msg.Topic != following.Agreed {
		n.log.Warn("unexpected message about a backup cluster", "topic", msg.Topic)
		return nil
	}
	n.terms = &msg.Terms
	if err := n.keepHold(n.terms.Hold); err != nil {
		return err
	}
	if n.session == nil {
		return nil
	}
	if err := n.session.replicator.askWaiting(); err != nil {
		return err
	}
	return n.session.replicator.tell(replica.Event{Kind: replica.PackAllowed, PackOrder: proto.Some(n.terms.Packs)})
}

// keepHold remembers up to where the cluster may follow the upstream cluster.
func (n *Node) keepHold(h proto.Opt[tid.TID]) error {
	c, err := n.db.Config()
	if err != nil || c.BackupHold == h {
		return err
	}
	n.log.Info("hold of the backup changed", "tid", h)
	if err := n.db.SetBackupHold(h); err != nil {
		return fmt.Errorf("storing the hold of the backup: %w", err)
	}
	return n.commit()
}

// setBackup enters or leaves backup mode. A database that follows from the beginning of an
// operation, and did not before, has nothing that is known to be complete: an order to
// leave backup mode may have been interrupted.
func (n *Node) setBackup(on, restarted bool) error {
	c, err := n.db.Config()
	if err != nil {
		return err
	}
	if on == c.BackupTID.OK {
		n.backupTID.Store(backup(c.BackupTID))
		return nil
	}
	var t proto.Opt[tid.TID]
	if on {
		last, err := n.db.LastIDs(n.ctx)
		if err != nil {
			return fmt.Errorf("last ids: %w", err)
		}
		if !restarted {
			t = proto.Some(last.TID.V)
		} else if t = proto.Some(tid.Zero); last.TID.V != tid.Zero {
			n.log.Warn("this database was not in backup mode, but the cluster is: all of it is compared with the upstream cluster")
		}
	}
	if err := n.db.SetBackupTID(t); err != nil {
		return fmt.Errorf("storing the backup TID: %w", err)
	}
	if err := n.db.SetBackupGap([2]tid.TID{}); err != nil {
		return fmt.Errorf("deleting the gap of the backup: %w", err)
	}
	if !on {
		if err := n.keepHold(proto.Opt[tid.TID]{}); err != nil {
			return err
		}
	}
	n.backupTID.Store(backup(t))
	return n.commit()
}

// startOperation makes the node operational. Nothing else is processed before
// it ends: a store accepted before would lose its vote.
func (n *Node) startOperation(inBackup bool) error {
	// Left by a truncation that this node missed: keeping the order would cut
	// the whole cluster when it restarts some day.
	if err := n.truncate(); err != nil {
		return err
	}
	if err := n.setBackup(inBackup, true); err != nil {
		return err
	}
	if err := n.confirm(); err != nil {
		return err
	}
	n.master.conn.Send(&proto.NotifyReady{})
	s := &session{txns: pending.New(localDatabase{n.db, n.ctx}, n.table.NP())}
	s.feeder = newFeeder(n, s)
	s.replicator = newReplicator(n, s)
	s.worker = newWorker(n, s)
	n.session = s
	if err := s.replicator.begin(); err != nil {
		return err
	}
	if err := n.db.DropUnfinished(); err != nil {
		return fmt.Errorf("deleting unfinished transactions: %w", err)
	}
	n.log.Info("ready", "node", n.id, "ptid", n.table.PTID().V, "backup", inBackup)
	s.feeder.runDatabase()
	return s.worker.begin()
}

// leaveOperation drops everything volatile.
func (n *Node) leaveOperation() error {
	n.lastPack, n.completedPack, n.terms = tid.Zero, tid.Zero, nil
	s := n.session
	if s == nil {
		return nil
	}
	if err := n.commit(); err != nil {
		return err
	}
	n.sessionEnds(s)
	n.session = nil
	n.announced = s.replicator.m.Announced()
	s.feeder.stop()
	s.worker.stop()
	if err := s.drop(); err != nil {
		return err
	}
	return n.commit()
}

// drop releases what the transactions that were not voted hold, which would
// otherwise stay in the database for ever. The caller commits.
func (s *session) drop() error {
	if err := s.txns.Drop(); err != nil {
		return fmt.Errorf("releasing data of aborted transactions: %w", err)
	}
	return nil
}

// answered processes an answer to a question of ours.
func (n *Node) answered(p *peer, ev link.Event) error {
	if p.role == storageRole && !p.identified {
		return n.linkAnswered(p, ev)
	}
	q, ok := ev.Asked.Tag.(question)
	if !ok || q.session != n.session || n.session == nil {
		return nil // of a former period of operation
	}
	return q.then(ev)
}

// question is the tag of our requests: who waits for the answer.
type question struct {
	session *session
	then    func(link.Event) error
}

// linkAnswered ends the identification to another storage.
func (n *Node) linkAnswered(p *peer, ev link.Event) error {
	a, ok := ev.Packet.(*proto.AcceptIdentification)
	if !ok || a.Type != proto.Storage || a.ID != p.key.id || p.key.id != 0 && a.YourID != n.id {
		return n.drop(p)
	}
	p.identified = true
	p.named()
	if s := n.session; s != nil {
		return s.replicator.tell(replica.Event{Kind: replica.LinkReady, Link: p})
	}
	return n.drop(p)
}

// sayWhyLimit is how long the master may take to be told why the node ends.
const sayWhyLimit = time.Second

// sayWhy tells the master, last of all, why the node ends.
func (n *Node) sayWhy(err error) {
	if n.master == nil || !n.listens || n.master.conn.Closed() {
		return
	}
	n.master.conn.Send((&parting.Message{Reason: err.Error()}).Packet())
	n.master.conn.Abort()
	select {
	case <-n.master.conn.Done():
	case <-time.After(sayWhyLimit):
	}
}
