package sqldb

import (
	"slices"

	"github.com/neozodb/neo/cluster/tid"
)

// Records of a small vote go to many places in the table of data, one for each
// partition: there they cost several pages each. So they are parked behind all
// others, one after the other, and moved to their places with many more, when their
// transactions are moved to the final tables. See DESIGN.md.

const (
	// Parking pays for fewer records than this for each partition.
	maxParkedRows = 8
	// maxParkedSize is the greatest size of records written at once that are
	// parked, in bytes: greater ones fill pages wherever they are.
	maxParkedSize = 256 << 10
	// maxParked is how much is parked, in bytes, until all is moved.
	maxParked = 8 << 20
)

// parked is a record of data that SQL has under another id than its own.
type parked struct {
	id, at int64
	// The row of tobj that refers to it, if ttid is not Zero.
	ttid tid.TID
	oid  tid.OID
	// moved: SQL has it under its own id, but this is not committed yet.
	moved bool
}

// setParking finds the first free id to park under. The caller holds w.
func (db *DB) setParking() error {
	first := db.d.Parking()
	if first == 0 {
		return nil
	}
	db.parking = first
	_, err := db.conn.One("SELECT MAX(id) FROM data WHERE id >= ?", func(r *Row) error {
		if !r.Null(0) {
			db.parking = r.Int(0) + 1 // of a process that was killed
		}
		return nil
	}, first)
	return err
}

// park chooses the ids under which records are written. The caller holds w and m.
func (db *DB) park(rows []*dataRow) {
	size, np := 0, db.layout.Load().np
	for _, r := range rows {
		size += len(r.data.Data)
	}
	if db.parking == 0 || np > db.d.MaxPartition() || len(rows) >= maxParkedRows*np || size > maxParkedSize || db.unique.Load() {
		return
	}
	for _, r := range rows {
		if r.late { // several rows may refer to it, of which only one would be told of the move
			continue
		}
		r.at = db.parking
		db.parking++
		db.parked[r.id] = &parked{id: r.id, at: r.at}
	}
	db.parkedBytes += size
}

// unpark takes all that is parked, to be moved, in the order of ids. The caller
// holds w and m.
func (db *DB) unpark() []*parked {
	var list []*parked
	for _, k := range db.parked {
		if !k.moved {
			k.moved = true
			list = append(list, k)
		}
	}
	db.parkedBytes = 0
	db.moved = append(db.moved, list...)
	slices.SortFunc(list, func(x, y *parked) int { return cmpInt(x.id, y.id) })
	return list
}

// move gives parked records their own ids, and tells the temporary tables, except
// for transactions that leave them. The caller holds w.
func (c *Conn) move(list []*parked, gone []tid.TID) error {
	if len(list) == 0 {
		return nil
	}
	leaving := make(map[tid.TID]bool, len(gone))
	for _, t := range gone {
		leaving[t] = true
	}
	for _, k := range list {
		if _, err := c.Exec("UPDATE data SET id = ? WHERE id = ?", k.id, k.at); err != nil {
			return err
		}
		if k.ttid == tid.Zero || leaving[k.ttid] {
			continue
		}
		if _, err := c.Exec("UPDATE tobj SET data_id = ? WHERE tid = ? AND oid = ?", k.id, int64(k.ttid), int64(k.oid)); err != nil {
			return err
		}
	}
	return nil
}

// inSQL returns the id under which SQL has a record, which a row of tobj refers to.
// The caller holds m.
func (db *DB) inSQL(id int64, ttid tid.TID, oid tid.OID) int64 {
	k := db.parked[id]
	if k == nil || k.moved {
		return id
	}
	k.ttid, k.oid = ttid, oid
	return k.at
}

// forgetMoved is called after a commit. The caller holds m.
func (db *DB) forgetMoved() {
	for _, k := range db.moved {
		delete(db.parked, k.id)
	}
	db.moved = nil
}
