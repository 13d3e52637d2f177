package sqldb

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// readTransaction returns the metadata of a committed transaction, nil if there is none.
func readTransaction(c *Conn, p int, t tid.TID) (*backend.Meta, error) {
	var m *backend.Meta
	q := "SELECT oids, user, description, ext, packed, ttid FROM trans WHERE `partition` = ? AND tid = ?"
	_, err := c.One(q, func(r *Row) error {
		oids, err := splitOIDs(r.Bytes(0))
		if err != nil {
			return fmt.Errorf("transaction %v: %w", t, err)
		}
		m = &backend.Meta{
			User: r.Bytes(1), Description: r.Bytes(2), Extension: r.Bytes(3),
			Packed: r.Int(4) != 0, TTID: tid.TID(r.Int(5)), OIDs: oids,
		}
		return nil
	}, int64(p), int64(t))
	return m, err
}

// Transaction implements [backend.Reading].
func (db *DB) Transaction(ctx context.Context, t tid.TID) (backend.Meta, error) {
	p, err := db.layout.Load().transaction(t)
	if err != nil {
		return backend.Meta{}, err
	}
	var m *backend.Meta
	err = db.read(ctx, t, func(c *Conn) (err error) {
		m, err = readTransaction(c, p, t)
		return err
	})
	if err != nil {
		return backend.Meta{}, err
	}
	if m == nil {
		return backend.Meta{}, db.still(p, fmt.Errorf("transaction %v: %w", t, backend.ErrNotFound))
	}
	return *m, nil
}

// FinalTID implements [backend.Reading].
func (db *DB) FinalTID(ctx context.Context, ttid tid.TID) (proto.Opt[tid.TID], error) {
	var found proto.Opt[tid.TID]
	p, err := db.layout.Load().transaction(ttid)
	if err != nil {
		return found, err
	}
	err = db.readLong(ctx, tid.Max, func(c *Conn) error {
		return c.Each("SELECT tid FROM trans {pk:trans} WHERE `partition` = ? AND tid >= ? AND ttid = ? LIMIT 1", func(r *Row) error {
			found = proto.Some(tid.TID(r.Int(0)))
			return nil
		}, int64(p), int64(ttid), int64(ttid))
	})
	return found, db.still(p, err)
}

// maxima returns the greatest ids of a partition.
func maxima(c *Conn, p int) (trans, obj, first proto.Opt[tid.TID], oid proto.Opt[tid.OID], err error) {
	for _, q := range []struct {
		text string
		set  func(v int64)
	}{
		{"SELECT MAX(tid) FROM trans {pk:trans} WHERE `partition` = ?", func(v int64) { trans = proto.Some(tid.TID(v)) }},
		{"SELECT MIN(tid) FROM trans {pk:trans} WHERE `partition` = ?", func(v int64) { first = proto.Some(tid.TID(v)) }},
		{"SELECT MAX(tid) FROM obj {tid:obj} WHERE `partition` = ?", func(v int64) { obj = proto.Some(tid.TID(v)) }},
		{"SELECT MAX(oid) FROM obj {pk:obj} WHERE `partition` = ?", func(v int64) { oid = proto.Some(tid.OID(v)) }},
	} {
		err = c.Each(q.text, func(r *Row) error {
			if !r.Null(0) {
				q.set(r.Int(0))
			}
			return nil
		}, int64(p))
		if err != nil {
			return
		}
	}
	return
}

// LastIDs implements [backend.Reading].
func (db *DB) LastIDs(ctx context.Context) (backend.LastIDs, error) {
	ids := backend.LastIDs{First: tid.Max}
	err := db.readLong(ctx, tid.Max, func(c *Conn) error {
		for _, p := range db.layout.Load().readables() {
			trans, obj, first, oid, err := maxima(c, p)
			if err != nil {
				return err
			}
			for _, t := range []proto.Opt[tid.TID]{trans, obj} {
				if t.OK && (!ids.TID.OK || t.V > ids.TID.V) {
					ids.TID = t
				}
			}
			if oid.OK && (!ids.OID.OK || oid.V > ids.OID.V) {
				ids.OID = oid
			}
			if first.OK {
				ids.First = min(ids.First, first.V)
			}
		}
		return nil
	})
	return ids, err
}

// LastTIDs implements [backend.Reading].
func (db *DB) LastTIDs(ctx context.Context, partition int) (trans, obj tid.TID, err error) {
	err = db.readLong(ctx, tid.Max, func(c *Conn) error {
		t, o, _, _, err := maxima(c, partition)
		trans, obj = t.V, o.V
		return err
	})
	return trans, obj, err
}

// TIDs implements [backend.Reading].
func (db *DB) TIDs(ctx context.Context, partitions []int, skip, n int) ([]tid.TID, error) {
	l := db.layout.Load()
	for _, p := range partitions {
		if err := l.check(p); err != nil {
			return nil, err
		}
	}
	var tids []tid.TID
	err := db.readLong(ctx, tid.Max, func(c *Conn) error {
		tids = nil
		for _, p := range partitions {
			err := c.Each("SELECT tid FROM trans {pk:trans} WHERE `partition` = ? ORDER BY tid DESC LIMIT ?", func(r *Row) error {
				tids = append(tids, tid.TID(r.Int(0)))
				return nil
			}, int64(p), int64(skip)+int64(n))
			if err != nil {
				return err
			}
			slices.SortFunc(tids, func(x, y tid.TID) int { return cmp.Compare(y, x) })
			tids = tids[:min(len(tids), skip+n)]
		}
		return nil
	})
	for _, p := range partitions {
		err = db.still(p, err)
	}
	return tids[min(skip, len(tids)):], err
}

// TIDsFrom implements [backend.Reading].
func (db *DB) TIDsFrom(ctx context.Context, partition int, min, max tid.TID, n int) ([]tid.TID, error) {
	var tids []tid.TID
	err := db.readLong(ctx, max, func(c *Conn) error {
		tids = nil
		return c.Each(tidsFrom, func(r *Row) error {
			tids = append(tids, tid.TID(r.Int(0)))
			return nil
		}, int64(partition), clampTID(min), clampTID(max), limit(n))
	})
	return tids, err
}

const tidsFrom = "SELECT tid FROM trans {pk:trans} WHERE `partition` = ? AND tid >= ? AND tid <= ? ORDER BY tid LIMIT ?"

// limit returns what LIMIT needs: without bound if n is not positive.
func limit(n int) int64 {
	if n <= 0 {
		return 1<<63 - 1
	}
	return int64(n)
}

// History implements [backend.Reading].
func (db *DB) History(ctx context.Context, oid tid.OID, skip, n int) ([]proto.Revision, error) {
	p, err := db.layout.Load().object(oid)
	if err != nil {
		return nil, err
	}
	var revs []proto.Revision
	q := "SELECT o.tid, LENGTH(d.value), d.compression, CASE WHEN LENGTH(d.value) = 8 THEN d.value END FROM obj AS o {pk:obj} LEFT JOIN data AS d ON d.id = o.data_id" +
		" WHERE o.`partition` = ? AND o.oid = ? ORDER BY o.tid DESC LIMIT ? OFFSET ?"
	err = db.readObject(ctx, oid, func(c *Conn) error {
		revs = nil
		return c.Each(q, func(r *Row) error {
			size := r.Int(1)
			if c.isBig(r.Int(2)) {
				if ref, ok := parseReference(r.Bytes(3)); ok {
					size = ref.length
				}
			}
			revs = append(revs, proto.Revision{TID: tid.TID(r.Int(0)), Size: int(size)})
			return nil
		}, int64(p), int64(oid), int64(n), int64(skip))
	})
	return revs, db.still(p, err)
}

// readObject runs f on a connection that sees all records of an object.
func (db *DB) readObject(ctx context.Context, oid tid.OID, f func(c *Conn) error) error {
	added, aside, err := db.changes(oid)
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return ctx.Err()
	case aside && len(added) == 0:
		return db.pool.useFor(ctx, true, f)
	}
	return db.readMain(f)
}

// OIDsFrom implements [backend.Reading].
func (db *DB) OIDsFrom(ctx context.Context, partition, n int, min tid.OID, at tid.TID) (next proto.Opt[tid.OID], oids []tid.OID, err error) {
	l := db.layout.Load()
	if err := l.check(partition); err != nil {
		return next, nil, err
	}
	q := "SELECT x.oid, o.data_id FROM (SELECT oid, MAX(tid) AS tid FROM obj {pk:obj}" +
		" WHERE `partition` = ? AND oid >= ? AND tid <= ? GROUP BY oid ORDER BY oid LIMIT ?) AS x" +
		" CROSS JOIN obj AS o {pk:obj} ON o.`partition` = ? AND o.oid = x.oid AND o.tid = x.tid ORDER BY x.oid"
	found := 0
	var lastOID tid.OID
	err = db.readLong(ctx, at, func(c *Conn) error {
		found, oids = 0, nil
		return c.Each(q, func(r *Row) error {
			found++
			lastOID = tid.OID(r.Int(0))
			if !r.Null(1) {
				oids = append(oids, lastOID)
			}
			return nil
		}, int64(partition), clampTID(tid.TID(min)), clampTID(at), int64(n), int64(partition))
	})
	if err = db.still(partition, err); err != nil {
		return next, nil, err
	}
	if found == n && n > 0 {
		next = proto.Some(lastOID + tid.OID(l.np))
	}
	return next, oids, err
}

// UndoHistory implements [backend.Reading].
func (db *DB) UndoHistory(ctx context.Context, oid tid.OID, undone tid.TID) (backend.UndoHistory, error) {
	var h backend.UndoHistory
	p, err := db.layout.Load().object(oid)
	if err != nil {
		return h, err
	}
	err = db.readObject(ctx, oid, func(c *Conn) error {
		h = backend.UndoHistory{}
		i := 0
		err := c.Each("SELECT tid FROM obj {pk:obj} WHERE `partition` = ? AND oid = ? AND tid <= ? ORDER BY tid DESC LIMIT 2", func(r *Row) error {
			t := tid.TID(r.Int(0))
			if i++; i == 1 {
				h.Found = t == undone
			} else {
				h.Prev = proto.Some(t)
			}
			return nil
		}, int64(p), int64(oid), clampTID(undone))
		if err != nil || !h.Found {
			return err
		}
		return c.Each("SELECT tid, value_tid FROM obj {pk:obj} WHERE `partition` = ? AND oid = ? AND tid > ? ORDER BY tid", func(r *Row) error {
			h.Later = append(h.Later, backend.Later{TID: tid.TID(r.Int(0)), DataSerial: tid.TID(r.Int(1))})
			return nil
		}, int64(p), int64(oid), clampTID(undone))
	})
	if err = db.still(p, err); err != nil || !h.Found {
		return backend.UndoHistory{}, err
	}
	return h, nil
}
