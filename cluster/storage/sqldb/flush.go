package sqldb

import (
	"database/sql/driver"
	"fmt"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// work is what a flush writes, in this order.
type work struct {
	data    []*dataRow
	parked  []*parked // to be moved
	tobj    []tobjRow
	ttrans  []tempRow // new rows
	locks   []tempRow // ttrans.tid, approval
	objs    []objRow
	trans   []transRow
	packs   []packRow
	renamed []*transaction // pack orders that get their final id
	gone    []tid.TID      // to delete from the temporary tables
}

type tobjRow struct {
	ttid tid.TID
	backend.Store
}

// tempRow is the metadata of an unfinished transaction, as it was when planned.
type tempRow struct {
	ttid, final tid.TID
	meta        *backend.Meta
	approved    bool
}

// The moves of so many records and transactions to the final tables may wait in
// memory.
const (
	maxDeferredRecords = 640
	maxDeferred        = 64
)

// flush writes everything that waits in memory. The caller holds w.
func (db *DB) flush() error { return db.flushInto(false, false) }

// flushSome is flush, but moves to the final tables may wait. The caller holds w.
func (db *DB) flushSome() error { return db.flushInto(false, true) }

// flushInto is flush; when a commit follows, what changed until now becomes what
// that commit saves, unless moves wait.
func (db *DB) flushInto(commit, later bool) error {
	return db.guard(func() error {
		w, err := db.take(commit, later)
		if err != nil {
			return err
		}
		if err := db.carryOut(w); err != nil {
			return db.fail(err)
		}
		db.m.Lock()
		db.buf.written(w.data)
		db.m.Unlock()
		return nil
	})
}

// take plans what flushInto carries out.
func (db *DB) take(commit, later bool) (*work, error) {
	db.m.Lock()
	defer db.m.Unlock()
	if db.err != nil {
		return nil, db.err
	}
	later = later && db.deferrable(commit)
	w := db.plan(later)
	if commit && !later {
		db.saving, db.recent = db.recent, newOverlay()
	}
	return w, nil
}

// deferrable reports whether all that unlocks have changed may stay in memory:
// there is not much of it, nothing else has changed, and the temporary tables have
// it all. What is replicated may stay as well when votes are committed, but not when
// room in memory is needed. The caller holds m.
func (db *DB) deferrable(commit bool) bool {
	if db.recent.n >= maxDeferredRecords || db.recent.deleted || db.recent.written || len(db.queue) >= maxDeferred || db.parkedBytes >= maxParked ||
		!commit && len(db.direct.objs)+len(db.direct.trans)+len(db.direct.packs) > 0 {
		return false
	}
	for _, t := range db.queue {
		if t.unlocked && (!t.stored || t.pack != nil || t.meta != nil && t.final != t.storedFinal) {
			return false
		}
	}
	return true
}

// plan takes what waits to be written; later: except for moves, and for what is
// replicated. The caller holds m.
func (db *DB) plan(later bool) *work {
	w := &work{data: db.buf.take(func(r *dataRow) bool { return later && r.late && db.held[r.id] == 0 })}
	if later {
		db.park(w.data)
	} else {
		w.objs, w.trans, w.packs = db.direct.objs, db.direct.trans, db.direct.packs
		db.direct = direct{}
		w.parked = db.unpark()
	}
	var left []*transaction
	for _, t := range db.queue {
		if later && t.unlocked {
			left = append(left, t)
			continue
		}
		t.queued = false
		if t.unlocked {
			for _, s := range t.stores {
				w.objs = append(w.objs, objRow{s.OID, t.final, s.Data, s.DataSerial})
			}
			if t.meta != nil {
				w.trans = append(w.trans, transRow{t.final, t.meta})
			}
			switch {
			case t.pack != nil && t.stored:
				w.renamed = append(w.renamed, t)
			case t.pack != nil:
				w.packs = append(w.packs, packRow{t.final, *t.pack})
			}
			if t.stored {
				w.gone = append(w.gone, t.ttid)
			}
			continue
		}
		if !t.stored {
			t.stored, t.storedFinal = true, t.final
			for _, s := range t.stores {
				if s.Data.OK {
					s.Data.ID = db.inSQL(s.Data.ID, t.ttid, s.OID)
				}
				w.tobj = append(w.tobj, tobjRow{t.ttid, s})
			}
			if t.meta != nil {
				w.ttrans = append(w.ttrans, tempRow{ttid: t.ttid, final: t.final, meta: t.meta})
			}
			if t.pack != nil {
				w.packs = append(w.packs, packRow{t.ttid, *t.pack})
				t.storedPack = t.pack.Approved.OK
			}
			continue
		}
		if t.meta != nil && t.final != t.storedFinal || t.pack != nil && t.pack.Approved.OK && !t.storedPack {
			t.storedFinal = t.final
			t.storedPack = t.pack != nil && t.pack.Approved.OK
			w.locks = append(w.locks, tempRow{t.ttid, t.final, t.meta, t.storedPack})
		}
	}
	db.queue = left
	slices.SortFunc(w.objs, func(x, y objRow) int {
		if c := cmpInt(int64(x.oid), int64(y.oid)); c != 0 {
			return c
		}
		return cmpInt(int64(x.tid), int64(y.tid))
	})
	return w
}

func (w *work) empty() bool {
	return len(w.data)+len(w.parked) == 0 && len(w.tobj) == 0 && len(w.ttrans) == 0 && len(w.locks) == 0 && len(w.objs) == 0 &&
		len(w.trans) == 0 && len(w.packs) == 0 && len(w.renamed) == 0 && len(w.gone) == 0
}

const (
	insertData  = "INSERT INTO data (id, hash, compression, value) VALUES "
	insertTObj  = "REPLACE INTO tobj (`partition`, oid, tid, data_id, value_tid) VALUES "
	insertTrans = "INSERT{ignore} INTO trans (`partition`, tid, packed, oids, user, description, ext, ttid) VALUES "
	insertObj   = "INSERT{ignore} INTO obj (`partition`, oid, tid, data_id, value_tid) VALUES "
	insertTemp  = "INSERT INTO ttrans (`partition`, tid, packed, oids, user, description, ext, ttid) VALUES "
	updateTemp  = "UPDATE ttrans SET tid = CASE ttid"
	insertPack  = "REPLACE INTO pack (tid, approved, partial, oids, pack_tid) VALUES "
)

// carryOut writes. The caller holds w.
func (db *DB) carryOut(w *work) error {
	if w.empty() {
		return nil
	}
	if err := db.begin(); err != nil {
		return err
	}
	c, np := db.conn, db.layout.Load().np
	if np == 0 {
		return fmt.Errorf("database %s: objects were stored without a partition table", db.d.Name())
	}
	if err := db.lengthen(w); err != nil { // before anything is written: it may commit
		return err
	}
	if err := c.move(w.parked, w.gone); err != nil {
		return err
	}
	if err := db.insertDataRows(c, w.data); err != nil {
		return err
	}
	in := c.inserter(insertTObj, 5, len(w.tobj))
	for _, s := range w.tobj {
		if err := in.add(0, int64(s.OID.Partition(np)), int64(s.OID), int64(s.ttid), nullID(s.Data), nullTID(s.DataSerial)); err != nil {
			return err
		}
	}
	if _, err := in.end(); err != nil {
		return err
	}
	in = c.inserter(insertTemp, 8, len(w.ttrans))
	for _, t := range w.ttrans {
		if err := in.add(metaRow(np, nullTID(t.final), t.ttid, t.meta)); err != nil {
			return err
		}
	}
	if _, err := in.end(); err != nil {
		return err
	}
	if err := c.lockRows(w.locks); err != nil {
		return err
	}
	for _, t := range w.locks {
		if t.approved {
			if _, err := c.Exec("UPDATE pack SET approved = 1 WHERE tid = ?", int64(t.ttid)); err != nil {
				return err
			}
		}
	}
	if err := db.insertFinal(c, np, w); err != nil {
		return err
	}
	for _, p := range w.packs {
		if _, err := c.Exec(insertPack+"(?,?,?,?,?)", packValues(p)...); err != nil {
			return err
		}
	}
	for _, t := range w.renamed {
		q := "UPDATE pack SET tid = ?, approved = ? WHERE tid = ?"
		if _, err := c.Exec(q, int64(t.final), nullBool(t.pack.Approved), int64(t.ttid)); err != nil {
			return err
		}
	}
	if err := c.execIn("DELETE FROM tobj WHERE tid IN ", tidValues(w.gone)); err != nil {
		return err
	}
	return c.execIn("DELETE FROM ttrans WHERE ttid IN ", tidValues(w.gone))
}

// lockRows writes the final TIDs of transactions. ttrans has no key: each statement
// reads all of it, so one is made for many transactions.
func (c *Conn) lockRows(rows []tempRow) error {
	rows = slices.DeleteFunc(slices.Clone(rows), func(t tempRow) bool { return t.meta == nil })
	for len(rows) > 0 {
		n := 1
		for n < len(rows) && n < inSize {
			n *= 8
		}
		args := make([]driver.Value, 0, 3*n)
		for i := range n {
			t := rows[min(i, len(rows)-1)]
			args = append(args, int64(t.ttid), nullTID(t.final))
		}
		for i := range n {
			args = append(args, args[2*i])
		}
		k := rowsKey{updateTemp, n}
		q, ok := c.texts[k]
		if !ok {
			q = updateTemp + strings.Repeat(" WHEN ? THEN ?", n) + " END WHERE ttid IN (" + strings.Repeat("?,", n-1) + "?)"
			c.texts[k] = q
		}
		if _, err := c.Exec(q, args...); err != nil {
			return err
		}
		rows = rows[min(n, len(rows)):]
	}
	return nil
}

func (db *DB) insertDataRows(c *Conn, rows []*dataRow) error {
	in := c.inserter(insertData, 4, len(rows))
	for _, r := range rows {
		d := &r.data
		compression, value, err := c.dataValue(d)
		if err != nil {
			return err
		}
		if err := in.add(len(value), r.at, d.Checksum[:], compression, value); err != nil {
			return err
		}
	}
	_, err := in.end()
	return err
}

// insertFinal writes to the final tables. A row that is already there must be
// equal: an interrupted replication is resumed.
func (db *DB) insertFinal(c *Conn, np int, w *work) error {
	in := c.inserter(insertTrans, 8, len(w.trans))
	for _, t := range w.trans {
		if err := in.add(metaRow(np, int64(t.tid), t.tid, t.meta)); err != nil {
			return err
		}
	}
	if n, err := in.end(); err != nil {
		return err
	} else if n != int64(len(w.trans)) {
		if err := db.checkTrans(c, np, w.trans); err != nil {
			return err
		}
	}
	in = c.inserter(insertObj, 5, len(w.objs))
	for _, o := range w.objs {
		if err := in.add(0, int64(o.oid.Partition(np)), int64(o.oid), int64(o.tid), nullID(o.data), nullTID(o.from)); err != nil {
			return err
		}
	}
	if n, err := in.end(); err != nil {
		return err
	} else if n != int64(len(w.objs)) {
		return db.checkObjs(c, np, w.objs)
	}
	return nil
}

// checkTrans compares metadata with what the table has.
func (db *DB) checkTrans(c *Conn, np int, rows []transRow) error {
	for _, t := range rows {
		m, err := readTransaction(c, t.tid.Partition(np), t.tid)
		if err != nil {
			return err
		}
		if m == nil || !equalMeta(m, t.meta) {
			return fmt.Errorf("database %s: transaction %v is already there and differs", db.d.Name(), t.tid)
		}
	}
	return nil
}

// checkObjs compares records with what the table has. A record that was already
// there keeps its data; the new copy goes.
func (db *DB) checkObjs(c *Conn, np int, rows []objRow) error {
	var spare []backend.DataID
	for _, o := range rows {
		q := "SELECT data_id, value_tid FROM obj WHERE `partition` = ? AND oid = ? AND tid = ?"
		var id backend.DataID
		var from tid.TID
		found, err := c.One(q, func(r *Row) error {
			id = backend.DataID{ID: r.Int(0), OK: !r.Null(0)}
			from = tid.TID(r.Int(1))
			return nil
		}, int64(o.oid.Partition(np)), int64(o.oid), int64(o.tid))
		if err != nil {
			return err
		}
		same := found && from == o.from && id.OK == o.data.OK
		if same && id != o.data {
			if same, err = sameData(c, id.ID, o.data.ID); err != nil {
				return err
			}
			spare = append(spare, o.data)
		}
		if !same {
			return fmt.Errorf("database %s: object %v at %v is already there and differs", db.d.Name(), o.oid, o.tid)
		}
		if id != o.data {
			db.m.Lock()
			for i, r := range db.saving.objs[o.oid] {
				if r.tid == o.tid {
					db.saving.objs[o.oid][i].data = id
				}
			}
			for i, r := range db.recent.objs[o.oid] {
				if r.tid == o.tid {
					db.recent.objs[o.oid][i].data = id
				}
			}
			db.m.Unlock()
		}
	}
	_, err := db.prune(c, spare)
	return err
}

func sameData(c *Conn, x, y int64) (bool, error) {
	var hash [2]proto.Hash
	var compression [2]int64
	for i, id := range []int64{x, y} {
		found, err := c.One("SELECT hash, compression FROM data WHERE id = ?", func(r *Row) error {
			copy(hash[i][:], r.Bytes(0))
			compression[i] = r.Int(1)
			return nil
		}, id)
		if err != nil || !found {
			return false, err
		}
	}
	return hash[0] == hash[1] && compression[0] == compression[1], nil
}

// inserter collects rows into statements of many rows.
type inserter struct {
	c       *Conn
	prefix  string
	cols    int
	left    int // rows still to come, with those collected
	args    []driver.Value
	bytes   int
	changed int64
}

// inserter returns an inserter of n rows.
func (c *Conn) inserter(prefix string, cols, n int) *inserter {
	return &inserter{c: c, prefix: prefix, cols: cols, left: n, args: c.args[:0]}
}

// add adds a row, whose long values have the given size in bytes.
func (in *inserter) add(size int, values ...driver.Value) error {
	in.args = append(in.args, values...)
	in.bytes += size
	if n := len(in.args) / in.cols; n == in.c.dialect.Rows() || in.bytes >= in.c.dialect.Bytes() {
		return in.flush()
	}
	return nil
}

// exactRows is up to how many rows an INSERT of its own is made for each number: those
// of a transaction, mostly, which a client waits for.
const exactRows = 24

// insertRows returns how many of n rows the next INSERT has.
func insertRows(n, most int) int {
	if n <= min(exactRows, most) {
		return n
	}
	for most > n {
		most /= 2
	}
	return most
}

// flush sends the rows in few statements, of a bounded number of different lengths, which stay
// prepared.
func (in *inserter) flush() error {
	args := in.args
	for len(args) > 0 {
		n := insertRows(len(args)/in.cols, in.c.dialect.Rows())
		changed, err := in.c.Exec(in.c.rows(in.prefix, in.cols, n), args[:n*in.cols]...)
		if err != nil {
			return err
		}
		in.changed += changed
		args = args[n*in.cols:]
	}
	clear(in.args)
	in.args, in.bytes = in.args[:0], 0
	in.c.args = in.args
	return nil
}

// end sends what is left and returns the number of rows inserted.
func (in *inserter) end() (int64, error) {
	err := in.flush()
	return in.changed, err
}

type rowsKey struct {
	prefix string
	n      int
}

// rows returns prefix followed by n rows of parameters.
func (c *Conn) rows(prefix string, cols, n int) string {
	k := rowsKey{prefix, n}
	if q, ok := c.texts[k]; ok {
		return q
	}
	row := "(" + strings.Repeat("?,", cols-1) + "?)"
	q := prefix + strings.Repeat(row+",", n-1) + row
	c.texts[k] = q
	return q
}

// inSize is the number of parameters of an IN list.
const inSize = 64

// execIn runs query followed by lists of values; nothing for an empty list.
func (c *Conn) execIn(query string, values []driver.Value) error {
	return eachIn(values, func(q string, part []driver.Value) error {
		_, err := c.Exec(query+q, part...)
		return err
	})
}

var inLists = map[int]string{
	1:      "(?)",
	inSize: "(" + strings.Repeat("?,", inSize-1) + "?)",
}

// eachIn calls f with parts of values and an IN list for each. The last part is
// filled up with its last value.
func eachIn(values []driver.Value, f func(q string, part []driver.Value) error) error {
	for len(values) > 0 {
		n := inSize
		if len(values) == 1 {
			n = 1
		}
		part := values[:min(n, len(values))]
		values = values[len(part):]
		if len(part) < n {
			part = slices.Clone(part)
			for len(part) < n {
				part = append(part, part[len(part)-1])
			}
		}
		if err := f(inLists[n], part); err != nil {
			return err
		}
	}
	return nil
}

func tidValues(ts []tid.TID) []driver.Value {
	vs := make([]driver.Value, len(ts))
	for i, t := range ts {
		vs[i] = int64(t)
	}
	return vs
}
