package sqldb

import (
	"fmt"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// transaction is one that was voted.
type transaction struct {
	ttid   tid.TID
	final  tid.TID // Zero: not locked
	stores []backend.Store
	meta   *backend.Meta
	pack   *proto.PackState
	// unlocked: to be moved to the final tables.
	unlocked bool

	queued bool
	// What the temporary tables have of it.
	stored      bool    // its rows
	storedFinal tid.TID // ttrans.tid
	storedPack  bool    // approval of its pack order
}

// enqueue marks a transaction as having something to write. The caller holds m.
func (db *DB) enqueue(t *transaction) {
	if !t.queued {
		t.queued = true
		db.queue = append(db.queue, t)
	}
}

// Vote implements [backend.Writing].
func (db *DB) Vote(ttid tid.TID, stores []backend.Store, meta *backend.Meta, pack *proto.PackRequest) error {
	if err := db.checkMeta(ttid, meta, pack); err != nil {
		return err
	}
	db.m.Lock()
	if db.err != nil {
		db.m.Unlock()
		return db.err
	}
	t := &transaction{ttid: ttid, stores: stores}
	if meta != nil {
		m := *meta
		m.TTID = ttid
		t.meta = &m
	}
	if pack != nil {
		t.pack = &proto.PackState{Partial: len(pack.OIDs) > 0, OIDs: pack.OIDs, Time: pack.Time}
	}
	old := db.txns[ttid]
	db.txns[ttid] = t
	for _, s := range stores {
		if r := db.buf.rows[s.Data.ID]; r != nil && s.Data.OK {
			r.shared = true
		}
	}
	if old == nil {
		db.enqueue(t)
	}
	db.m.Unlock()
	if old == nil {
		return nil
	}
	// Voted twice: the rows of the first vote go.
	if err := db.deleteVoted(ttid); err != nil {
		return err
	}
	db.m.Lock()
	db.enqueue(t)
	db.m.Unlock()
	return nil
}

// maxOIDs is how many object ids a MEDIUMBLOB holds.
const maxOIDs = (1<<24 - 1) / 8

// checkMeta refuses metadata that a vote could not store.
func (db *DB) checkMeta(ttid tid.TID, meta *backend.Meta, pack *proto.PackRequest) error {
	limit := db.d.MaxMeta()
	if limit == 0 {
		return nil
	}
	if pack != nil && len(pack.OIDs) > maxOIDs {
		return fmt.Errorf("the pack order of transaction %v is of %d objects, more than %d: %w", ttid, len(pack.OIDs), maxOIDs, backend.ErrTooLong)
	}
	if meta == nil {
		return nil
	}
	if n := len(meta.OIDs); n > maxOIDs {
		return fmt.Errorf("transaction %v has %d objects, more than %d: %w", ttid, n, maxOIDs, backend.ErrTooLong)
	}
	for what, value := range map[string][]byte{"user": meta.User, "description": meta.Description, "extension": meta.Extension} {
		if len(value) > limit {
			return fmt.Errorf("the %s of transaction %v has %d bytes, more than %d: %w", what, ttid, len(value), limit, backend.ErrTooLong)
		}
	}
	return nil
}

// voted returns a voted transaction, if necessary from the temporary tables.
func (db *DB) voted(ttid tid.TID) (*transaction, error) {
	db.m.RLock()
	t, err := db.txns[ttid], db.err
	db.m.RUnlock()
	if t != nil || err != nil {
		return t, err
	}
	db.w.Lock()
	defer db.w.Unlock()
	if err := db.flush(); err != nil {
		return nil, err
	}
	t, err = db.load(db.conn, ttid)
	if err != nil || t == nil {
		return nil, err
	}
	db.m.Lock()
	defer db.m.Unlock()
	db.txns[ttid] = t
	return t, nil
}

// load reads a transaction from the temporary tables; nil if nothing is there.
func (db *DB) load(c *Conn, ttid tid.TID) (*transaction, error) {
	t := &transaction{ttid: ttid, stored: true}
	err := c.Each("SELECT oid, data_id, value_tid FROM tobj WHERE tid = ? ORDER BY oid", func(r *Row) error {
		t.stores = append(t.stores, backend.Store{
			OID:        tid.OID(r.Int(0)),
			Data:       backend.DataID{ID: r.Int(1), OK: !r.Null(1)},
			DataSerial: tid.TID(r.Int(2)),
		})
		return nil
	}, int64(ttid))
	if err != nil {
		return nil, err
	}
	_, err = c.One("SELECT oids, user, description, ext, packed, tid FROM ttrans WHERE ttid = ?", func(r *Row) error {
		oids, err := splitOIDs(r.Bytes(0))
		if err != nil {
			return err
		}
		t.meta = &backend.Meta{
			User: r.Bytes(1), Description: r.Bytes(2), Extension: r.Bytes(3),
			Packed: r.Int(4) != 0, TTID: ttid, OIDs: oids,
		}
		t.final = tid.TID(r.Int(5))
		t.storedFinal = t.final
		return nil
	}, int64(ttid))
	if err != nil {
		return nil, err
	}
	if t.meta != nil {
		if t.pack, err = readPack(c, ttid); err != nil {
			return nil, err
		}
	}
	if t.meta == nil && len(t.stores) == 0 {
		return nil, nil
	}
	t.storedPack = t.pack != nil && t.pack.Approved == proto.Some(true)
	return t, nil
}

// Lock implements [backend.Writing].
func (db *DB) Lock(ttid, final tid.TID, approvePack bool) error {
	t, err := db.voted(ttid)
	if err != nil {
		return err
	}
	if t == nil {
		return db.fail(notVoted(ttid))
	}
	db.m.Lock()
	defer db.m.Unlock()
	t.final = final
	if t.pack != nil && approvePack {
		t.pack.Approved = proto.Some(true)
	}
	if t.meta != nil {
		db.enqueue(t)
	}
	return nil
}

// Unlock implements [backend.Writing].
func (db *DB) Unlock(ttid, final tid.TID, meta, objects, pack bool) error {
	t, err := db.voted(ttid)
	if err != nil {
		return err
	}
	if t == nil {
		if meta || objects {
			return db.fail(notVoted(ttid))
		}
		return nil
	}
	db.m.Lock()
	if !meta {
		t.meta = nil
	}
	if !pack {
		t.pack = nil
	}
	db.unlock(t, final)
	much := db.recent.n >= db.o.MaxRecent
	db.m.Unlock()
	if much {
		return db.Commit()
	}
	return nil
}

// unlock makes a transaction part of the history. The caller holds m.
func (db *DB) unlock(t *transaction, final tid.TID) {
	t.final, t.unlocked = final, true
	np := db.layout.Load().np
	for _, s := range t.stores {
		db.recent.add(objRow{s.OID, final, s.Data, s.DataSerial}, tid.Zero)
		if np > 0 {
			db.raise(s.OID.Partition(np), s.OID)
		}
		if s.Data.OK {
			db.release(s.Data.ID)
		}
	}
	db.recent.from = min(db.recent.from, final)
	delete(db.txns, t.ttid)
	db.enqueue(t)
}

// Abort implements [backend.Writing].
func (db *DB) Abort(ttid tid.TID) error {
	db.m.Lock()
	if db.err != nil {
		db.m.Unlock()
		return db.err
	}
	t := db.txns[ttid]
	delete(db.txns, ttid)
	if t != nil && !t.stored {
		t.stores, t.meta, t.pack = nil, nil, nil
	}
	db.m.Unlock()
	// A flush under way may be writing it: wait for it in any case.
	return db.deleteVoted(ttid)
}

// deleteVoted deletes the rows of an unfinished transaction, its pack order too.
func (db *DB) deleteVoted(ttid tid.TID) error {
	return db.write(func(c *Conn) error {
		for _, q := range []string{
			"DELETE FROM pack WHERE tid = ?",
			"DELETE FROM ttrans WHERE ttid = ?",
			"DELETE FROM tobj WHERE tid = ?",
		} {
			if _, err := c.Exec(q, int64(ttid)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Unfinished implements [backend.Writing].
func (db *DB) Unfinished() (map[tid.TID]proto.Opt[tid.TID], error) {
	var found map[tid.TID]proto.Opt[tid.TID]
	err := db.readMain(func(c *Conn) error {
		found = map[tid.TID]proto.Opt[tid.TID]{}
		err := c.Each("SELECT DISTINCT tid FROM tobj", func(r *Row) error {
			found[tid.TID(r.Int(0))] = proto.Opt[tid.TID]{}
			return nil
		})
		if err != nil {
			return err
		}
		return c.Each("SELECT ttid, tid FROM ttrans", func(r *Row) error {
			found[tid.TID(r.Int(0))] = proto.Opt[tid.TID]{V: tid.TID(r.Int(1)), OK: !r.Null(1)}
			return nil
		})
	})
	return found, err
}

// Validate implements [backend.Writing].
func (db *DB) Validate(ttid, final tid.TID) error {
	t, err := db.voted(ttid)
	if err != nil || t == nil {
		return err
	}
	db.m.Lock()
	if t.pack != nil {
		t.pack.Approved = proto.Some(true)
	}
	db.unlock(t, final)
	db.m.Unlock()
	return db.Commit()
}

// DropUnfinished implements [backend.Writing].
func (db *DB) DropUnfinished() error {
	db.w.Lock()
	defer db.w.Unlock()
	var ids []backend.DataID
	err := db.writeLocked(func(c *Conn) error {
		err := c.Each("SELECT data_id FROM tobj WHERE data_id IS NOT NULL", func(r *Row) error {
			ids = append(ids, backend.DataID{ID: r.Int(0), OK: true})
			return nil
		})
		if err != nil {
			return err
		}
		for _, q := range []string{
			"DELETE FROM pack WHERE tid IN (SELECT ttid FROM ttrans)",
			"DELETE FROM ttrans",
			"DELETE FROM tobj",
		} {
			if _, err := c.Exec(q); err != nil {
				return err
			}
		}
		return db.dropStrayPacks(c)
	})
	if err != nil {
		return err
	}
	db.m.Lock()
	clear(db.txns)
	for _, id := range ids {
		db.release(id.ID)
	}
	db.m.Unlock()
	if _, err := db.prune(db.conn, ids); err != nil {
		return db.fail(err)
	}
	return db.commitLocked()
}

// DropUnfinishedPartitions implements [backend.Writing].
func (db *DB) DropUnfinishedPartitions(partitions []int) error {
	l := db.layout.Load()
	gone := map[int]bool{}
	for _, p := range partitions {
		gone[p] = true
	}
	return db.write(func(c *Conn) error {
		for p := range gone {
			for _, q := range []string{
				"DELETE FROM pack WHERE tid IN (SELECT ttid FROM ttrans WHERE `partition` = ?)",
				"DELETE FROM ttrans WHERE `partition` = ?",
				"DELETE FROM tobj WHERE `partition` = ?",
			} {
				if _, err := c.Exec(q, int64(p)); err != nil {
					return err
				}
			}
		}
		db.m.Lock()
		defer db.m.Unlock()
		for _, t := range db.txns {
			if t.meta != nil && gone[t.ttid.Partition(l.np)] {
				t.meta, t.pack = nil, nil
			}
			var kept []backend.Store
			for _, s := range t.stores {
				if !gone[s.OID.Partition(l.np)] {
					kept = append(kept, s)
				}
			}
			t.stores = kept
		}
		return nil
	})
}
