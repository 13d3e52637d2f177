package pending

import (
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// read is a request that waits for the end of commits.
type read struct {
	req    Request
	packet proto.Packet
	ready  func() bool
}

// ObjectLocked reports whether a commit of the object is being completed: what
// is its last revision is not certain. It may be called from any goroutine.
func (m *Manager) ObjectLocked(oid tid.OID) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	_, ok := m.readLocks[oid]
	return ok
}

// TransactionLocked reports whether a transaction up to t is being completed: it
// may not be in the final tables yet. It may be called from any goroutine.
func (m *Manager) TransactionLocked(t tid.TID) bool {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.lockedMin <= t
}

// WaitObject delays a request until [Manager.ObjectLocked] is false.
func (m *Manager) WaitObject(r Request, p proto.Packet, oid tid.OID) {
	m.wait(r, p, func() bool { return !m.ObjectLocked(oid) })
}

// WaitTransaction delays a request until the transactions up to t that are being
// completed now have been: of those that are locked later, whoever asked could
// not know yet.
func (m *Manager) WaitTransaction(r Request, p proto.Packet, t tid.TID) {
	last := tid.Zero
	for _, txn := range m.txns {
		if txn.final <= t {
			last = max(last, txn.final)
		}
	}
	m.wait(r, p, func() bool { return !m.TransactionLocked(last) })
}

func (m *Manager) wait(r Request, p proto.Packet, ready func() bool) {
	if ready() { // it was unlocked meanwhile
		m.effects = append(m.effects, Effect{Kind: Retry, Request: r, Packet: p})
		return
	}
	m.reads = append(m.reads, read{r, p, ready})
}

// runReads lets the requests go on that need not wait any more.
func (m *Manager) runReads() {
	kept := m.reads[:0]
	for _, r := range m.reads {
		if r.ready() {
			m.effects = append(m.effects, Effect{Kind: Retry, Request: r.req, Packet: r.packet})
		} else {
			kept = append(kept, r)
		}
	}
	clear(m.reads[len(kept):])
	m.reads = kept
}
