package sqldb

import (
	"slices"

	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

const (
	// tidyFrom is how many transactions have to wait in order to be moved while
	// nothing else is to be done: with fewer, places would be written too often.
	tidyFrom = 64
	// tidyRows is how many records are moved at a time. A vote that comes meanwhile
	// waits for them.
	tidyRows = 24
)

// round is a number of transactions on their way to the final tables, in the order
// of places rather than of transactions.
type round struct {
	txns []*transaction
	rows []moving // left
}

type moving struct {
	t *transaction
	backend.Store
	partition int
}

// Tidy implements [backend.Tidying]. After each call, whatever is committed is
// complete: a record is in one of the tables. What a crash leaves of a transaction
// in the temporary ones, verification moves, as for any that is locked.
func (db *DB) Tidy() (bool, error) {
	if !db.w.TryLock() {
		return false, nil
	}
	defer db.w.Unlock()
	if err := db.broken(); err != nil {
		return false, err
	}
	if db.round == nil && !db.beginRound() {
		return false, nil
	}
	if err := db.begin(); err != nil {
		return false, db.fail(err)
	}
	if len(db.round.rows) > 0 {
		return true, db.fail(db.moveRows())
	}
	return true, db.fail(db.endRound())
}

// beginRound collects what is to be moved, if it is enough. The caller holds w.
func (db *DB) beginRound() bool {
	db.m.Lock()
	defer db.m.Unlock()
	if len(db.queue) < tidyFrom || !db.deferrable() {
		return false
	}
	np, r := db.layout.Load().np, &round{}
	for _, t := range db.queue {
		if !t.unlocked {
			continue
		}
		r.txns = append(r.txns, t)
		for _, s := range t.stores {
			r.rows = append(r.rows, moving{t, s, s.OID.Partition(np)})
		}
	}
	if len(r.txns) < tidyFrom {
		return false
	}
	slices.SortFunc(r.rows, func(x, y moving) int {
		if x.partition != y.partition {
			return x.partition - y.partition
		}
		return cmpInt(x.Data.ID, y.Data.ID)
	})
	db.round = r
	return true
}

// moveRows moves the next records of the round. The caller holds w.
func (db *DB) moveRows() error {
	r, c, np := db.round, db.conn, db.layout.Load().np
	rows := r.rows[:min(tidyRows, len(r.rows))]
	r.rows = r.rows[len(rows):]
	var data []*parked
	objs := make([]objRow, len(rows))
	db.m.Lock()
	for i, x := range rows {
		objs[i] = objRow{x.OID, x.t.final, x.Data, x.DataSerial}
		if k := db.parked[x.Data.ID]; x.Data.OK && k != nil && !k.moved {
			data = append(data, k)
			db.unparked(k)
		}
		db.waiting--
		x.t.stores = slices.DeleteFunc(x.t.stores, func(s backend.Store) bool { return s.OID == x.OID })
	}
	db.m.Unlock()
	for _, k := range data {
		if err := c.move(k); err != nil {
			return err
		}
	}
	sortObjs(objs)
	if err := db.insertObjs(c, np, objs); err != nil {
		return err
	}
	for _, x := range rows {
		if _, err := c.Exec("DELETE FROM tobj WHERE tid = ? AND oid = ?", int64(x.t.ttid), int64(x.OID)); err != nil {
			return err
		}
	}
	return nil
}

// endRound moves the metadata of the round. The caller holds w.
func (db *DB) endRound() error {
	var gone []tid.TID
	var trans []transRow
	moved := make(map[*transaction]bool, len(db.round.txns))
	for _, t := range db.round.txns {
		moved[t] = true
		if t.meta != nil {
			gone = append(gone, t.ttid)
			trans = append(trans, transRow{t.final, t.meta})
		}
	}
	db.round = nil
	db.m.Lock()
	db.queue = slices.DeleteFunc(db.queue, func(t *transaction) bool {
		if moved[t] {
			t.queued = false
		}
		return moved[t]
	})
	db.m.Unlock()
	if err := db.insertTrans(db.conn, db.layout.Load().np, trans); err != nil {
		return err
	}
	return db.conn.execIn("DELETE FROM ttrans WHERE ttid IN ", tidValues(gone))
}
