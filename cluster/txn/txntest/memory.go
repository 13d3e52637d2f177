package txntest

import (
	"context"
	"fmt"
	"iter"
	"slices"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Memory is a database in memory that only grows. It is as plain as it can be: what
// other databases are compared with.
type Memory struct {
	transactions []stored
}

type stored struct {
	txn.Transaction
	records []txn.Record
}

// Append adds a transaction, whose id must be greater than all others.
func (m *Memory) Append(t *txn.Transaction) error {
	if n := len(m.transactions); n > 0 && t.TID <= m.transactions[n-1].TID {
		return fmt.Errorf("transaction %v does not come after %v", t.TID, m.transactions[n-1].TID)
	}
	s := stored{Transaction: txn.Transaction{
		TID: t.TID, Status: t.Status,
		User: slices.Clone(t.User), Description: slices.Clone(t.Description), Extension: slices.Clone(t.Extension),
	}}
	if t.Records != nil {
		for r, err := range t.Records {
			if err != nil {
				return err
			}
			c := *r
			c.Data = slices.Clone(r.Data)
			s.records = append(s.records, c)
		}
	}
	s.Records = txn.Slice(s.records)
	m.transactions = append(m.transactions, s)
	return nil
}

// Transactions implements [txn.History].
func (m *Memory) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	return func(yield func(*txn.Transaction, error) bool) {
		for i := range m.transactions {
			t := &m.transactions[i]
			if t.TID <= after || t.TID > upTo {
				continue
			}
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			if !yield(&t.Transaction, nil) {
				return
			}
		}
	}
}

// LastTID implements [txn.History].
func (m *Memory) LastTID(ctx context.Context) (tid.TID, error) {
	if len(m.transactions) == 0 {
		return tid.Zero, ctx.Err()
	}
	return m.transactions[len(m.transactions)-1].TID, ctx.Err()
}

// change is a record in its transaction.
type change struct {
	t *stored
	r *txn.Record
}

// changes returns the records of an object, oldest first.
func (m *Memory) changes(oid tid.OID) (list []change) {
	for i := range m.transactions {
		t := &m.transactions[i]
		for j := range t.records {
			if t.records[j].OID == oid {
				list = append(list, change{t, &t.records[j]})
			}
		}
	}
	return list
}

// shares reports whether a transaction gave an object the data of an earlier one.
func (m *Memory) shares(oid tid.OID, at tid.TID) bool {
	return slices.ContainsFunc(m.changes(oid), func(c change) bool { return c.t.TID == at && c.r.DataTID != tid.Zero })
}

// LoadBefore implements [txn.Database].
func (m *Memory) LoadBefore(_ context.Context, oid tid.OID, before tid.TID) (txn.Revision, error) {
	list := m.changes(oid)
	if len(list) == 0 {
		return txn.Revision{}, fmt.Errorf("object %v: %w", oid, txn.ErrNoSuchObject)
	}
	var r txn.Revision
	for _, c := range list {
		if c.t.TID >= before {
			r.Next = c.t.TID
			break
		}
		r.Serial, r.Data = c.t.TID, c.r.Data
	}
	switch {
	case r.Serial == tid.Zero:
		return txn.Revision{}, fmt.Errorf("object %v before %v: %w", oid, before, txn.ErrNotFound)
	case r.Data == nil:
		return txn.Revision{}, fmt.Errorf("object %v, deleted by %v: %w", oid, r.Serial, txn.ErrNoSuchObject)
	}
	return r, nil
}

// LoadAt implements [txn.Database].
func (m *Memory) LoadAt(_ context.Context, oid tid.OID, at tid.TID) (txn.Revision, error) {
	err := txn.ErrNoSuchObject
	for _, c := range m.changes(oid) {
		if c.t.TID == at && c.r.Data != nil {
			return txn.Revision{Data: c.r.Data, Serial: at}, nil
		}
		err = txn.ErrNotFound
	}
	return txn.Revision{}, fmt.Errorf("object %v at %v: %w", oid, at, err)
}

func (s *stored) info() txn.Info {
	i := txn.Info{TID: s.TID, Status: s.Status, User: s.User, Description: s.Description, Extension: s.Extension}
	for _, r := range s.records {
		i.OIDs = append(i.OIDs, r.OID)
	}
	return i
}

// Revisions implements [txn.Database].
func (m *Memory) Revisions(_ context.Context, oid tid.OID, n int) ([]txn.Info, error) {
	list := m.changes(oid)
	if len(list) == 0 {
		return nil, fmt.Errorf("object %v: %w", oid, txn.ErrNoSuchObject)
	}
	var infos []txn.Info
	for _, c := range slices.Backward(list) {
		if len(infos) >= n {
			break
		}
		infos = append(infos, c.t.info())
		infos[len(infos)-1].Size = int64(len(c.r.Data))
	}
	return infos, nil
}

// Backwards implements [txn.Database].
func (m *Memory) Backwards(ctx context.Context) iter.Seq2[*txn.Info, error] {
	return func(yield func(*txn.Info, error) bool) {
		for i := len(m.transactions) - 1; i >= 0; i-- {
			if err := ctx.Err(); err != nil {
				yield(nil, err)
				return
			}
			if info := m.transactions[i].info(); !yield(&info, nil) {
				return
			}
		}
	}
}

// OIDs implements [txn.Database].
func (m *Memory) OIDs(ctx context.Context, at tid.TID, from tid.OID) iter.Seq2[tid.OID, error] {
	return func(yield func(tid.OID, error) bool) {
		exists := map[tid.OID]bool{}
		for i := range m.transactions {
			if m.transactions[i].TID <= at {
				for _, r := range m.transactions[i].records {
					exists[r.OID] = r.Data != nil
				}
			}
		}
		var list []tid.OID
		for oid, yes := range exists {
			if yes && oid >= from {
				list = append(list, oid)
			}
		}
		slices.Sort(list)
		for _, oid := range list {
			if err := ctx.Err(); err != nil {
				yield(0, err)
				return
			}
			if !yield(oid, nil) {
				return
			}
		}
	}
}
