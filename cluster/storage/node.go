package storage

import (
	"context"
	"fmt"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/nodetab"
	"github.com/neozodb/neo/cluster/pace"
	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/pending"
	"github.com/neozodb/neo/cluster/tid"
	"golang.org/x/sync/semaphore"
)

const (
	inboxSize = 512
	// bigPacket is the size in bytes from which a packet counts for maxInbox, the
	// bytes that may wait to be processed. Who sends more waits.
	bigPacket = 64 << 10
	maxInbox  = 64 << 20
	// maxOutput is how many bytes may wait for a client that does not read them,
	// before its next request is read.
	maxOutput = 32 << 20
	// commitDelay is how long what was unlocked or aborted may stay uncommitted:
	// a crash loses nothing, since verification or the next start does it again.
	commitDelay = time.Second
	// maxBatch and maxBatchAge bound how long an answer waits for company in
	// its commit, when packets never stop to arrive.
	maxBatch    = 1024
	maxBatchAge = 20 * time.Millisecond
	// maxQueued is how many answers are sent together, if packets do not stop to
	// arrive.
	maxQueued = 32
	// maxUnseen is how many packets that were at hand are processed before whatever
	// else may have happened is looked at.
	maxUnseen = 64
)

// Node is a storage node. See [New] and [Node.Run].
type Node struct {
	cfg      Config
	db       backend.Backend
	importer *importer   // nil unless db has work of its own
	remote   func() bool // not all of db is local
	log      *slog.Logger
	listener *link.Listener
	inbox    chan event
	big      *semaphore.Weighted // bytes of big packets in the inbox
	done     chan struct{}       // closed when the inbox is read no more
	failed   chan error          // an error of the database on another goroutine
	ctx      context.Context
	cancel   context.CancelFunc
	wg       sync.WaitGroup
	conns    connSet
	newIDs   []int // partitions for which NewID asks
	served   *pace.Service
	feeding  *pace.Pace // what is read for other storages
	fetching *pace.Pace // what is replicated from them
	counts   counts
	traffic  link.Traffic

	// For readers on other goroutines.
	readable  atomic.Pointer[[]bool]    // by partition
	terms     *following.Terms          // of the master of a backup cluster; nil: it has told none
	backupTID atomic.Pointer[tid.TID]   // nil: not in backup mode
	reached   atomic.Pointer[[]tid.TID] // how far each cell of a backup follows the upstream cluster, by partition; nil: not known

	vitals vitalSigns

	// Owned by Run.
	id proto.NodeID
	// announced is how far cells were in the last period of operation of a backup: a
	// master that was restarted is told again.
	announced     map[int]tid.TID
	idTimestamp   proto.Opt[float64]
	infoTimestamp proto.Opt[float64] // of the last NotifyNodeInformation of this master
	nodes         nodetab.Table
	table         parttab.Table
	master        *peer
	peers         map[*peer]bool
	clients       map[proto.NodeID]*peer
	links         map[linkKey]*peer // with other storages
	unidentified  []*identification // until the master tells about the node
	lastPack      tid.TID           // greatest approved order known
	completedPack tid.TID           // as told to the master
	noted         proto.Opt[uint64] // version of the table when the master asked whether it is stored
	session       *session          // nil unless operational
	repair        *proto.NotifyRepair
	batch         []reply
	queued        []*link.Conn // with answers that are sent together
	batchSince    time.Time
	commitTimer   *time.Timer
	timing        bool // commitTimer runs
	unseen        int  // packets processed since all else was looked at
	exit          bool
	listens       bool // the master wants to know why the node ends
}

// session is one period of operation: everything in it is volatile.
type session struct {
	txns       *pending.Manager
	replicator *replicator
	feeder     *feeder
	worker     *worker
}

// event is something for the goroutine of Run: of a connection, or a call.
type event struct {
	peer    *peer
	link    link.Event
	invalid string // why the payload of a store is refused
	waited  bool   // a read that has waited long enough
	size    int64  // bytes that count for maxInbox
	fetched bool   // of a replication, which yields to clients
	call    func() error
}

// reply is an answer that waits for a commit.
type reply struct {
	conn   *link.Conn
	id     uint32
	packet proto.Packet
}

// Addr returns the address where the node listens.
func (n *Node) Addr() proto.Address { return n.listener.Addr() }

// Close releases the address of a node that will not run.
func (n *Node) Close() {
	n.cancel()
	n.listener.Close()
}

// Run serves until ctx ends, or the master tells the node to shut down: then it
// returns nil. Any other end is an error of the database.
func (n *Node) Run(ctx context.Context) (err error) {
	n.log.Info("listening on", "addr", n.listener.Addr().String())
	n.commitTimer = time.NewTimer(commitDelay)
	n.commitTimer.Stop()
	panicked := false
	defer func() {
		n.listener.Close()
		n.cancel()
		close(n.done)
		if n.session != nil {
			n.session.feeder.stop()
		}
		n.wg.Wait()
		if err != nil {
			n.sayWhy(err)
		}
		n.conns.close()
		if n.session != nil && err == nil {
			err = n.session.drop()
		}
		if panicked {
			return // what a commit would make durable is not known
		}
		if closeErr := n.db.Commit(); err == nil && closeErr != nil {
			err = fmt.Errorf("last commit: %w", closeErr)
		}
	}()
	defer func() {
		// A state that cannot be, found by our own checks, must not be served.
		if p := recover(); p != nil {
			panicked = true
			err = fmt.Errorf("internal error: %v\n%s", p, debug.Stack())
		}
	}()
	if n.importer != nil {
		n.importer.start()
	}
	if err := n.connect(); err != nil {
		return err
	}
	for !n.exit {
		if err := n.next(ctx); err != nil {
			return err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return n.flush()
}

// next processes one event, or what can be done while there is none.
func (n *Node) next(ctx context.Context) error {
	if s := n.session; s == nil || !s.worker.overdue() {
		select {
		case e := <-n.inbox:
			if n.unseen++; n.unseen >= maxUnseen {
				if err := n.look(); err != nil {
					return err
				}
			}
			return n.handle(e)
		default:
		}
	}
	n.sendQueued()
	if len(n.batch) > 0 {
		return n.flush()
	}
	var wake <-chan time.Time
	if s := n.session; s != nil {
		busy, err := s.worker.step()
		if err != nil || busy == 0 {
			return err
		}
		if busy > 0 {
			wake = time.After(busy)
		}
	}
	select {
	case e := <-n.inbox:
		return n.handle(e)
	case <-n.commitTimer.C:
		return n.commit()
	case err := <-n.failed:
		return err
	case <-wake:
	case <-ctx.Done():
	}
	return nil
}

// look does under constant load what next does while there is no packet. It costs
// more than the look into the inbox.
func (n *Node) look() error {
	n.unseen = 0
	n.sendQueued()
	select {
	case <-n.commitTimer.C:
		return n.commit()
	case err := <-n.failed:
		return err
	default:
		return nil
	}
}

func (n *Node) handle(e event) error {
	if e.size > 0 {
		n.big.Release(e.size)
	}
	err := n.process(e)
	if err == nil && n.session != nil {
		err = n.carryOut()
	}
	if err != nil {
		return err
	}
	if len(n.batch) >= maxBatch || len(n.batch) > 0 && time.Since(n.batchSince) > maxBatchAge {
		return n.flush()
	}
	return nil
}

// process is dispatch, measured for a replication.
func (n *Node) process(e event) error {
	if !e.fetched {
		return n.dispatch(e)
	}
	begin := time.Now()
	err := n.dispatch(e)
	n.fetching.Processed(time.Since(begin))
	return err
}

// carryOut does what the transactions in progress ask for.
func (n *Node) carryOut() error {
	s := n.session
	for s == n.session {
		effects := s.txns.Effects()
		if len(effects) == 0 {
			break
		}
		for _, e := range effects {
			conn, _ := e.Request.Conn.(*link.Conn)
			switch e.Kind {
			case pending.Answer:
				n.answerSoon(conn, e.Request.ID, e.Packet)
			case pending.AnswerDurable:
				n.answerDurable(conn, e.Request.ID, e.Packet)
			case pending.NotifyMaster:
				if err := n.commit(); err != nil {
					return err
				}
				n.master.conn.Send(e.Packet)
			case pending.Prepare:
				s.feeder.prepare(e.OID)
			case pending.NotifyClient:
				if p := n.clients[e.Client]; p != nil {
					p.conn.Send(e.Packet)
				}
			case pending.Retry:
				p, _ := conn.Tag.(*peer)
				if p == nil || !n.peers[p] {
					continue
				}
				if err := n.dispatch(event{peer: p, link: link.Event{Conn: conn, ID: e.Request.ID, Packet: e.Packet}, waited: true}); err != nil {
					return err
				}
			}
		}
	}
	if s == n.session && s.txns.Dirty() && !n.timing {
		n.timing = true
		n.commitTimer.Reset(commitDelay)
	}
	return nil
}

// answer sends an answer; after a protocol error the connection ends.
func answer(conn *link.Conn, id uint32, p proto.Packet) {
	if e, ok := p.(*proto.Error); ok && e.ErrCode == proto.ProtocolError {
		conn.AbortError(id, e.ErrCode, "%s", e.Message)
		return
	}
	conn.Answer(id, p)
}

// answerSoon is answer, together with others.
func (n *Node) answerSoon(conn *link.Conn, id uint32, p proto.Packet) {
	if e, ok := p.(*proto.Error); ok && e.ErrCode == proto.ProtocolError {
		answer(conn, id, p)
		return
	}
	conn.Queue(id, p)
	n.queued = append(n.queued, conn)
	if len(n.queued) >= maxQueued {
		n.sendQueued()
	}
}

func (n *Node) sendQueued() {
	var last *link.Conn
	for i, conn := range n.queued {
		if conn != last {
			conn.Flush()
		}
		last, n.queued[i] = conn, nil
	}
	n.queued = n.queued[:0]
}

func (n *Node) answerDurable(conn *link.Conn, id uint32, p proto.Packet) {
	if len(n.batch) == 0 {
		n.batchSince = time.Now()
	}
	n.batch = append(n.batch, reply{conn, id, p})
}

// commit makes everything written so far durable, and sends the answers that
// waited for it.
func (n *Node) commit() error {
	n.commitTimer.Stop()
	n.timing = false
	return n.commitBy(n.db.Commit)
}

// commitBy commits, and sends the answers that waited for it.
func (n *Node) commitBy(commit func() error) error {
	n.sendQueued() // not to wait for the disk
	begin := time.Now()
	if err := commit(); err != nil {
		return fmt.Errorf("commit: %w", err)
	}
	n.counts.commits.Observe(time.Since(begin))
	for _, r := range n.batch {
		r.conn.Queue(r.id, r.packet)
		n.queued = append(n.queued, r.conn)
	}
	n.sendQueued()
	clear(n.batch)
	n.batch = n.batch[:0]
	return nil
}

// flush commits if an answer waits for it. What was unlocked may wait for the timer,
// or until there is much of it.
func (n *Node) flush() error {
	if len(n.batch) == 0 {
		return nil
	}
	defer n.served.Seen()
	return n.commitBy(n.db.CommitVotes)
}

// post lets the goroutine of Run do something. It may be called from any other, but
// not from itself, which would never end when the inbox is full.
func (n *Node) post(f func() error) { n.put(event{call: f}) }

func (n *Node) put(e event) {
	if e.size = packetSize(e.link.Packet); e.size > 0 && n.big.Acquire(n.ctx, e.size) != nil {
		return // the node has ended
	}
	select {
	case n.inbox <- e:
	case <-n.done:
	}
}

// packetSize returns the bytes of a packet that count for maxInbox.
func packetSize(p proto.Packet) int64 {
	size := 0
	switch p := p.(type) {
	case *proto.AskStoreObject:
		size = len(p.Data)
	case *proto.AddObject:
		size = len(p.Data)
	case *proto.AskStoreTransaction:
		size = 8*len(p.OIDs) + len(p.Extension)
	case *proto.AddTransaction:
		size = 8*len(p.OIDs) + len(p.Extension)
	}
	if size < bigPacket {
		return 0
	}
	return int64(min(size, maxInbox))
}

// fail ends Run from another goroutine.
func (n *Node) fail(err error) {
	select {
	case n.failed <- err:
	default: // one is enough
	}
}

// dispatch gives an event to the handler of its peer's role.
func (n *Node) dispatch(e event) error {
	if e.call != nil {
		return e.call()
	}
	p, ev := e.peer, e.link
	if ev.Packet == nil && ev.Asked == nil {
		return n.lost(p, ev.Err)
	}
	if p.closed || ev.Stale() {
		return nil
	}
	if ev.Asked != nil {
		return n.answered(p, ev)
	}
	switch ev.Packet.(type) {
	case *proto.Ping:
		ev.Conn.Answer(ev.ID, &proto.Pong{})
		return nil
	case *proto.FlushLog:
		if n.cfg.FlushLog != nil {
			n.cfg.FlushLog()
		}
		return nil
	case *proto.NotPrimaryMaster:
		// The end of the link, which follows, is what counts.
		n.log.Debug("ignored", "peer", p, "packet", fmt.Sprintf("%T", ev.Packet))
		return nil
	case *proto.NotifyNodeInformation:
		if p.role != masterRole { // only its word counts
			n.log.Debug("ignored", "peer", p, "packet", fmt.Sprintf("%T", ev.Packet))
			return nil
		}
	case *proto.CloseClient:
		if p.role == strangerRole {
			return n.drop(p)
		}
	case *proto.Error:
		n.log.Warn("error packet", "peer", p, "err", ev.Packet)
		return nil
	}
	switch p.role {
	case masterRole:
		return n.fromMaster(ev)
	case clientRole:
		return n.fromClient(e)
	case storageRole:
		return n.fromStorage(e)
	}
	return n.fromStranger(p, ev)
}

// unexpected ends a connection that sent what its role does not allow now.
func (n *Node) unexpected(p *peer, ev link.Event) {
	n.log.Warn("unexpected packet", "peer", p, "packet", fmt.Sprintf("%T", ev.Packet))
	if _, request := ev.Packet.(proto.Request); !request && p.role == clientRole {
		// An Error that answers nothing stops the I/O thread of Python clients.
		ev.Conn.Abort()
		return
	}
	ev.Conn.AbortError(ev.ID, proto.ProtocolError, "unexpected packet")
}
