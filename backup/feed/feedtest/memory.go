// Package feedtest has a feed in memory, for the tests of what reads feeds, and the
// suite of what every feed promises.
package feedtest

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/neozodb/neo/backup/feed"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

// ErrClosed reports the use of a feed after Close.
var ErrClosed = errors.New("the feed is closed")

// Transaction is a transaction to be committed.
type Transaction struct {
	TID                          tid.TID // greater than all others; Zero: Memory.Commit chooses
	User, Description, Extension string
	Records                      []txn.Record // the TID of each is set; with DataTID, Memory sets Data too
	Checked                      []tid.OID    // objects that were only checked, after the records
}

// Memory is a source in memory that behaves as a cluster: it takes commits, undos,
// deletions and packs at any time, and is a feed of its own. It is safe for concurrent use.
type Memory struct {
	mu      sync.Mutex
	source  snapshot.Source
	history []*transaction // in the order of TIDs
	last    tid.TID
	told    tid.TID // by Last
	packed  tid.TID
	changed chan struct{} // closed at each change
	err     error         // what every call returns
	closed  bool
	before  func(t tid.TID)
}

var _ feed.Feed = (*Memory)(nil)

// transaction is what is left of a transaction, and what was committed.
type transaction struct {
	txn.Transaction
	oids []tid.OID    // written or checked
	left []txn.Record // in the order of oids
	full []txn.Record
}

// New returns an empty source of kind cluster.
func New(name string) *Memory {
	return &Memory{source: snapshot.Source{Kind: feed.KindCluster, Name: name, NP: 1}, changed: make(chan struct{})}
}

// first is the TID of the first transaction that Commit makes: a moment of 2020.
const first tid.TID = 0x03d2_1d9c_0000_0000

// Commit commits transactions and returns the TID of the last one.
func (m *Memory) Commit(list ...Transaction) tid.TID {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, t := range list {
		m.commitLocked(t)
	}
	m.wakeLocked()
	return m.last
}

func (m *Memory) commitLocked(t Transaction) {
	if t.TID == tid.Zero {
		t.TID = max(first, m.last+1<<26)
	}
	if t.TID <= m.last {
		panic(fmt.Sprintf("transaction %v does not come after %v", t.TID, m.last))
	}
	c := &transaction{Transaction: txn.Transaction{
		TID: t.TID, Status: txn.Committed,
		User: []byte(t.User), Description: []byte(t.Description), Extension: []byte(t.Extension),
	}}
	for _, r := range t.Records {
		r.TID = t.TID
		if r.DataTID != tid.Zero {
			r.Data = m.committedLocked(r.OID, r.DataTID)
		}
		c.oids = append(c.oids, r.OID)
		c.full = append(c.full, r)
	}
	c.left = slices.Clone(c.full)
	c.oids = append(c.oids, t.Checked...)
	m.history = append(m.history, c)
	m.last = t.TID
}

func (m *Memory) committedLocked(oid tid.OID, at tid.TID) []byte {
	for _, c := range m.history {
		for _, r := range c.full {
			if c.TID == at && r.OID == oid {
				return r.Data
			}
		}
	}
	panic(fmt.Sprintf("object %v has no revision at %v", oid, at))
}

// Put commits one transaction with one record and returns its TID.
func (m *Memory) Put(oid tid.OID, data string) tid.TID {
	return m.Commit(Transaction{Description: fmt.Sprintf("put %v", oid), Records: []txn.Record{{OID: oid, Data: []byte(data)}}})
}

// Delete commits the deletion of an object.
func (m *Memory) Delete(oid tid.OID) tid.TID {
	return m.Commit(Transaction{Description: fmt.Sprintf("delete %v", oid), Records: []txn.Record{{OID: oid}}})
}

// Undo commits a transaction that gives each object of transaction t the data that it had
// before.
func (m *Memory) Undo(t tid.TID) tid.TID {
	m.mu.Lock()
	defer m.mu.Unlock()
	before := map[tid.OID]tid.TID{}
	for _, c := range m.history {
		if c.TID == t {
			u := Transaction{Description: fmt.Sprintf("undo %v", t)}
			for _, r := range c.full {
				u.Records = append(u.Records, txn.Record{OID: r.OID, DataTID: before[r.OID]})
			}
			m.commitLocked(u)
			m.wakeLocked()
			return m.last
		}
		for _, r := range c.full {
			before[r.OID] = c.TID
		}
	}
	panic(fmt.Sprintf("there is no transaction %v", t))
}

// Pack removes what was superseded at a TID, and what was deleted then, as storages do.
// The transactions stay.
func (m *Memory) Pack(upTo tid.TID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.packed = max(m.packed, upTo)
	newest := map[tid.OID]*txn.Record{}
	for _, c := range m.history {
		for i := range c.left {
			if c.TID <= upTo {
				newest[c.left[i].OID] = &c.left[i]
			}
		}
	}
	for _, c := range m.history {
		if c.TID > upTo {
			break
		}
		var left []txn.Record
		for i := range c.left {
			if r := &c.left[i]; newest[r.OID] == r && r.Data != nil {
				left = append(left, *r)
			}
		}
		c.left = left
		c.Status = txn.Packed
	}
	m.wakeLocked()
}

// Truncate removes all transactions after one, as if the source were an older one.
func (m *Memory) Truncate(after tid.TID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.history = slices.DeleteFunc(m.history, func(c *transaction) bool { return c.TID > after })
	m.last = tid.Zero
	if n := len(m.history); n > 0 {
		m.last = m.history[n-1].TID
	}
	m.wakeLocked()
}

// BeforeStep makes Read call a function before each transaction, without a lock, to commit,
// pack or fail while something reads; nil ends that. Several readers call it at the same time.
func (m *Memory) BeforeStep(f func(t tid.TID)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.before = f
}

// step reports whether there was something to do before a transaction is read.
func (m *Memory) step(t tid.TID) bool {
	m.mu.Lock()
	f := m.before
	m.mu.Unlock()
	if f != nil {
		f(t)
	}
	return f != nil
}

// Fail makes every call return an error, until it is nil again.
func (m *Memory) Fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
	m.wakeLocked()
}

// SetSource replaces what Source returns.
func (m *Memory) SetSource(s snapshot.Source) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.source = s
}

// Full returns a copy of the history as if it had never been packed.
func (m *Memory) Full() *txntest.Memory {
	return m.copy(func(c *transaction) []txn.Record { return c.full })
}

// Left returns a copy of the history as packs have left it.
func (m *Memory) Left() *txntest.Memory {
	return m.copy(func(c *transaction) []txn.Record { return c.left })
}

func (m *Memory) copy(records func(*transaction) []txn.Record) *txntest.Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	full := new(txntest.Memory)
	for _, c := range m.history {
		t := c.Transaction
		t.Records = txn.Slice(records(c))
		if err := full.Append(&t); err != nil {
			panic(err) // ours: the ids grow
		}
	}
	return full
}

func (m *Memory) wakeLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *Memory) stateLocked(ctx context.Context) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case m.closed:
		return ErrClosed
	}
	return m.err
}

// Source implements [feed.Feed].
func (m *Memory) Source() snapshot.Source {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.source
}

// Last implements [feed.Feed].
func (m *Memory) Last(ctx context.Context) (tid.TID, time.Time, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.stateLocked(ctx); err != nil {
		return 0, time.Time{}, err
	}
	if m.last < m.told {
		return 0, time.Time{}, fmt.Errorf("%w: its last transaction was %v, and is %v", feed.ErrChanged, m.told, m.last)
	}
	m.told = m.last
	return m.last, time.Now(), nil
}

// Info implements [feed.Feed].
func (m *Memory) Info(ctx context.Context, t tid.TID) (*txn.Transaction, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.stateLocked(ctx); err != nil {
		return nil, err
	}
	for _, c := range m.history {
		if c.TID == t {
			return &txn.Transaction{
				TID: t, Status: c.Status,
				User: slices.Clone(c.User), Description: slices.Clone(c.Description), Extension: slices.Clone(c.Extension),
			}, nil
		}
	}
	return nil, fmt.Errorf("transaction %v: %w", t, txn.ErrNotFound)
}

// Read implements [feed.Feed].
func (m *Memory) Read(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for at := after; ; {
			t, err := m.next(ctx, at, upTo)
			if err == nil && t != nil && m.step(t.TID) {
				t, err = m.next(ctx, at, upTo)
			}
			if err != nil {
				yield(nil, err)
				return
			}
			if t == nil || !yield(t, nil) {
				return
			}
			at = t.TID
		}
	}
}

// next returns the first transaction of (after, upTo], nil if there is none.
func (m *Memory) next(ctx context.Context, after, upTo tid.TID) (*txn.Transaction, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.stateLocked(ctx); err != nil {
		return nil, err
	}
	for _, c := range m.history {
		if c.TID <= after || c.TID > upTo {
			continue
		}
		t := c.Transaction
		var records []txn.Record
		for _, oid := range c.oids {
			i := slices.IndexFunc(c.left, func(r txn.Record) bool { return r.OID == oid })
			if i >= 0 {
				records = append(records, c.left[i])
			} else if c.TID <= m.packed && !m.existsLocked(oid, m.packed) {
				records = append(records, txn.Record{OID: oid, TID: c.TID})
			}
		}
		t.Records = func(yield func(*txn.Record, error) bool) {
			for i := range records {
				r := records[i]
				if err := ctx.Err(); err != nil {
					yield(nil, err)
					return
				}
				if !yield(&r, nil) {
					return
				}
			}
		}
		return &t, nil
	}
	return nil, nil
}

// existsLocked reports whether there is data of an object at a TID.
func (m *Memory) existsLocked(oid tid.OID, at tid.TID) (exists bool) {
	for _, c := range m.history {
		for _, r := range c.left {
			if r.OID == oid && c.TID <= at {
				exists = r.Data != nil
			}
		}
	}
	return exists
}

// Packed implements [feed.Feed].
func (m *Memory) Packed(ctx context.Context) (tid.TID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.packed, m.stateLocked(ctx)
}

// Has implements [feed.Feed].
func (m *Memory) Has(ctx context.Context, oid tid.OID, at tid.TID) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range m.history {
		if c.TID == at && slices.ContainsFunc(c.left, func(r txn.Record) bool { return r.OID == oid }) {
			return true, m.stateLocked(ctx)
		}
	}
	return false, m.stateLocked(ctx)
}

// Mark implements [feed.Feed].
func (m *Memory) Mark(ctx context.Context, t tid.TID) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return "memory " + m.source.Name, m.stateLocked(ctx)
}

// Resume implements [feed.Feed].
func (m *Memory) Resume(ctx context.Context, mark string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.stateLocked(ctx); err != nil {
		return err
	}
	if name, ok := strings.CutPrefix(mark, "memory "); ok && name != m.source.Name {
		return fmt.Errorf("%w: this is %q, the mark is %q", feed.ErrChanged, m.source.Name, mark)
	}
	return nil
}

// Wait implements [feed.Feed].
func (m *Memory) Wait(ctx context.Context) error {
	for {
		m.mu.Lock()
		err, something, changed := m.stateLocked(ctx), m.last != m.told, m.changed
		m.mu.Unlock()
		if err != nil || something {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// Close implements [feed.Feed]. What is in memory stays: Reopen makes the feed usable
// again.
func (m *Memory) Close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed = true
	m.wakeLocked()
	return nil
}

// Reopen makes the feed one that was just opened.
func (m *Memory) Reopen() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.closed, m.told = false, tid.Zero
	return m
}
