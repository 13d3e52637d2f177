package sqldb

import (
	"context"
	"crypto/sha1"
	"fmt"
	"hash"
	"strconv"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// FetchTransaction implements [backend.Reading].
func (db *DB) FetchTransaction(ctx context.Context, t tid.TID) (backend.Meta, *proto.PackState, error) {
	l := db.layout.Load()
	if l.np == 0 {
		return backend.Meta{}, nil, backend.ErrNonReadable
	}
	var m *backend.Meta
	var pack *proto.PackState
	err := db.read(ctx, t, func(c *Conn) (err error) {
		pack = nil
		if m, err = readTransaction(c, t.Partition(l.np), t); err != nil || m == nil {
			return err
		}
		pack, err = readPack(c, t)
		return err
	})
	if err != nil {
		return backend.Meta{}, nil, err
	}
	if m == nil {
		return backend.Meta{}, nil, fmt.Errorf("transaction %v: %w", t, backend.ErrNotFound)
	}
	return *m, pack, nil
}

// RecordsFrom implements [backend.Reading].
func (db *DB) RecordsFrom(ctx context.Context, partition int, min, max tid.TID, minOID tid.OID, n int) ([]backend.Key, error) {
	var keys []backend.Key
	err := db.readLong(ctx, max, func(c *Conn) error {
		keys = nil
		return eachRecord(c, partition, min, max, minOID, n, func(t tid.TID, o tid.OID) {
			keys = append(keys, backend.Key{TID: t, OID: o})
		})
	})
	return keys, err
}

// eachRecord calls f with at most n records in the order of (TID, OID). Two
// queries: with OR, SQLite scans.
func eachRecord(c *Conn, p int, min, max tid.TID, minOID tid.OID, n int, f func(tid.TID, tid.OID)) error {
	if min > max {
		return nil
	}
	found := 0
	visit := func(r *Row) error {
		found++
		f(tid.TID(r.Int(0)), tid.OID(r.Int(1)))
		return nil
	}
	left := limit(n)
	err := c.Each("SELECT tid, oid FROM obj {tid:obj} WHERE `partition` = ? AND tid = ? AND oid >= ? ORDER BY oid LIMIT ?",
		visit, int64(p), int64(min), int64(minOID), left)
	if left -= int64(found); err != nil || left <= 0 {
		return err
	}
	return c.Each("SELECT tid, oid FROM obj {tid:obj} WHERE `partition` = ? AND tid > ? AND tid <= ? ORDER BY tid, oid LIMIT ?",
		visit, int64(p), clampTID(min), clampTID(max), left)
}

// RecordBefore implements [backend.Reading].
func (db *DB) RecordBefore(ctx context.Context, oid tid.OID, before tid.TID) (t tid.TID, deleted bool, err error) {
	np := db.layout.Load().np
	if np == 0 {
		return 0, false, nil
	}
	err = db.read(ctx, before, func(c *Conn) error {
		t, deleted = 0, false
		_, err := c.One("SELECT tid, data_id FROM obj {pk:obj} WHERE `partition` = ? AND oid = ? AND tid < ? ORDER BY tid DESC LIMIT 1", func(r *Row) error {
			t, deleted = tid.TID(r.Int(0)), r.Null(1)
			return nil
		}, int64(oid.Partition(np)), int64(oid), clampTID(before))
		return err
	})
	return t, deleted, err
}

// ReadCommitted tells that reads need not see what is added up to a TID before it is
// committed, and do not wait for what is being written. [DB.FetchObject] and the links of
// records see everything anyway. Zero: so do all reads, as is the default.
func (db *DB) ReadCommitted(upTo tid.TID) {
	db.m.Lock()
	defer db.m.Unlock()
	db.committedUpTo = upTo
}

// AddTransaction implements [backend.Writing]. meta must not change after the call.
func (db *DB) AddTransaction(t tid.TID, meta backend.Meta, pack *proto.PackState) error {
	db.m.Lock()
	defer db.m.Unlock()
	if db.err != nil {
		return db.err
	}
	db.direct.trans = append(db.direct.trans, transRow{t, &meta})
	if pack != nil {
		db.direct.packs = append(db.direct.packs, packRow{t, *pack})
	}
	if t > db.committedUpTo {
		db.recent.from = min(db.recent.from, t)
	}
	return nil
}

// AddObject implements [backend.Writing].
func (db *DB) AddObject(oid tid.OID, t tid.TID, d proto.ObjectData, dataSerial proto.Opt[tid.TID]) error {
	l := db.layout.Load()
	if l.np == 0 {
		return backend.ErrNonReadable
	}
	p := oid.Partition(l.np)
	var id backend.DataID
	found := false
	var err error
	if dataSerial.OK {
		id, found, err = db.share(p, oid, dataSerial.V, true)
	}
	if err == nil && !found {
		id, err = db.store(p, d, true)
	}
	if err != nil {
		return err
	}
	db.m.Lock()
	o := objRow{oid, t, id, dataSerial.V}
	db.direct.objs = append(db.direct.objs, o)
	db.recent.add(o, db.committedUpTo)
	db.raise(p, oid)
	if id.OK {
		if r := db.buf.rows[id.ID]; r != nil {
			r.shared, r.late = true, true
		}
		db.release(id.ID)
	}
	much := db.recent.n >= db.o.MaxRecent
	db.m.Unlock()
	if much {
		return db.Commit()
	}
	return nil
}

// DeleteTransaction implements [backend.Writing].
func (db *DB) DeleteTransaction(t tid.TID) error {
	np := db.layout.Load().np
	if np == 0 {
		return nil
	}
	return db.delete(func(c *Conn) error {
		if _, err := c.Exec("DELETE FROM trans WHERE `partition` = ? AND tid = ?", int64(t.Partition(np)), int64(t)); err != nil {
			return err
		}
		_, err := c.Exec("DELETE FROM pack WHERE tid = ?", int64(t))
		return err
	})
}

// DeleteObject implements [backend.Writing].
func (db *DB) DeleteObject(oid tid.OID, t tid.TID) error {
	np := db.layout.Load().np
	if np == 0 {
		return nil
	}
	return db.delete(func(c *Conn) error {
		ids, err := deleteRecord(c, oid.Partition(np), oid, t, nil)
		if err == nil {
			_, err = db.prune(c, ids)
		}
		return err
	})
}

// deleteRecord deletes one record and appends its data to ids.
func deleteRecord(c *Conn, p int, oid tid.OID, t tid.TID, ids []backend.DataID) ([]backend.DataID, error) {
	err := c.Each("SELECT data_id FROM obj WHERE `partition` = ? AND oid = ? AND tid = ?", func(r *Row) error {
		ids = append(ids, backend.DataID{ID: r.Int(0), OK: !r.Null(0)})
		return nil
	}, int64(p), int64(oid), int64(t))
	if err == nil {
		_, err = c.Exec("DELETE FROM obj WHERE `partition` = ? AND oid = ? AND tid = ?", int64(p), int64(oid), int64(t))
	}
	return ids, err
}

// delete is write for functions that delete history: until the next commit,
// reads use the writing connection.
func (db *DB) delete(f func(c *Conn) error) error {
	return db.write(func(c *Conn) error {
		db.m.Lock()
		db.recent.deleted = true
		db.recent.from = tid.Zero
		db.m.Unlock()
		return f(c)
	})
}

// digest is the SHA-1 of decimal numbers joined by commas.
type digest struct {
	h hash.Hash
	n int
	b []byte
}

func (d *digest) add(v uint64) {
	if d.h == nil {
		d.h = sha1.New()
	}
	if d.n++; d.n > 1 {
		d.b = append(d.b, ',')
	}
	d.b = strconv.AppendUint(d.b, v, 10)
	if len(d.b) > 4000 {
		d.h.Write(d.b)
		d.b = d.b[:0]
	}
}

// sum returns ZeroHash if nothing was added.
func (d *digest) sum() (h proto.Hash) {
	if d.h != nil {
		d.h.Write(d.b)
		d.h.Sum(h[:0])
	}
	return h
}

// CheckTIDs implements [backend.Reading].
func (db *DB) CheckTIDs(ctx context.Context, partition, n int, min, max tid.TID) (*proto.AnswerCheckTIDRange, error) {
	a := &proto.AnswerCheckTIDRange{}
	var d digest
	err := db.readLong(ctx, max, func(c *Conn) error {
		d, *a = digest{}, proto.AnswerCheckTIDRange{}
		return c.Each(tidsFrom, func(r *Row) error {
			a.Last = tid.TID(r.Int(0))
			d.add(uint64(a.Last))
			return nil
		}, int64(partition), clampTID(min), clampTID(max), limit(n))
	})
	a.Count, a.Checksum = d.n, d.sum()
	return a, err
}

// CheckSerials implements [backend.Reading].
func (db *DB) CheckSerials(ctx context.Context, partition, n int, min, max tid.TID, minOID tid.OID) (*proto.AnswerCheckSerialRange, error) {
	a := &proto.AnswerCheckSerialRange{}
	var tids, oids digest
	err := db.readLong(ctx, max, func(c *Conn) error {
		tids, oids, *a = digest{}, digest{}, proto.AnswerCheckSerialRange{}
		return eachRecord(c, partition, min, max, minOID, n, func(t tid.TID, o tid.OID) {
			a.LastTID, a.LastOID = t, o
			tids.add(uint64(t))
			oids.add(uint64(o))
		})
	})
	a.Count, a.TIDChecksum, a.OIDChecksum = tids.n, tids.sum(), oids.sum()
	return a, err
}
