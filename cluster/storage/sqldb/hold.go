package sqldb

import (
	"bytes"
	"database/sql/driver"
	"fmt"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// idBits is the size of the range of data ids of a partition.
const idBits = 48

// HoldData implements [backend.Writing].
func (db *DB) HoldData(oid tid.OID, d proto.ObjectData, dataSerial proto.Opt[tid.TID]) (backend.DataID, error) {
	l := db.layout.Load()
	if l.np == 0 {
		return backend.DataID{}, fmt.Errorf("store object %v: %w: there is no partition table", oid, backend.ErrNonReadable)
	}
	p := oid.Partition(l.np)
	if dataSerial.OK {
		id, found, err := db.share(p, oid, dataSerial.V, true)
		if err != nil || found {
			return id, err
		}
		if l.readable[p] {
			return backend.DataID{}, fmt.Errorf("object %v at %v: %w", oid, dataSerial.V, backend.ErrUndoPacked)
		}
	}
	return db.store(p, d, true)
}

// store stores a record; hold counts it as in use.
func (db *DB) store(p int, d proto.ObjectData, hold bool) (backend.DataID, error) {
	if d.Checksum == proto.ZeroHash {
		return backend.DataID{}, nil
	}
	if err := db.makeRoom(); err != nil {
		return backend.DataID{}, err
	}
	if db.unique.Load() {
		return db.storeUnique(p, d, hold)
	}
	db.m.Lock()
	_, ok := db.next[p]
	if !ok {
		db.m.Unlock()
		if err := db.findNext(p); err != nil {
			return backend.DataID{}, err
		}
		db.m.Lock()
	}
	defer db.m.Unlock()
	if db.err != nil {
		return backend.DataID{}, db.err
	}
	return db.addData(p, d, hold)
}

// makeRoom writes what waits in memory if there is much of it. It comes before a
// record is added: without the row that refers to it, it would be committed alone.
func (db *DB) makeRoom() error {
	db.m.RLock()
	full := db.buf.full(&db.o)
	db.m.RUnlock()
	if !full {
		return nil
	}
	db.w.Lock()
	defer db.w.Unlock()
	return db.flushSome()
}

// addData keeps a record in memory under a new id. The caller holds m.
func (db *DB) addData(p int, d proto.ObjectData, hold bool) (backend.DataID, error) {
	id := db.next[p]
	if id>>idBits != int64(p) {
		return backend.DataID{}, fmt.Errorf("database %s: no data id is left in partition %d", db.d.Name(), p)
	}
	db.next[p]++
	db.buf.add(id, d, db.unique.Load())
	if hold {
		db.held[id]++
	} else {
		db.buf.rows[id].shared = true
	}
	return backend.DataID{ID: id, OK: true}, nil
}

// findNext finds the first free data id of a partition.
func (db *DB) findNext(p int) error {
	db.w.Lock()
	defer db.w.Unlock()
	if err := db.broken(); err != nil {
		return err
	}
	return db.findNextLocked(p)
}

func (db *DB) findNextLocked(p int) error {
	db.m.RLock()
	_, ok := db.next[p]
	db.m.RUnlock()
	if ok {
		return nil
	}
	first := int64(p) << idBits
	next := first
	_, err := db.conn.One("SELECT MAX(id) FROM data WHERE id >= ? AND id <= ?", func(r *Row) error {
		if !r.Null(0) {
			next = r.Int(0) + 1
		}
		return nil
	}, first, first|(1<<idBits-1))
	if err != nil {
		return err
	}
	db.m.Lock()
	defer db.m.Unlock()
	db.next[p] = next
	return nil
}

// storeUnique stores a record once: an equal one is shared.
func (db *DB) storeUnique(p int, d proto.ObjectData, hold bool) (backend.DataID, error) {
	db.w.Lock()
	defer db.w.Unlock()
	if err := db.broken(); err != nil {
		return backend.DataID{}, err
	}
	if err := db.findNextLocked(p); err != nil {
		return backend.DataID{}, err
	}
	db.m.Lock()
	id, found := db.buf.same[dataKey{d.Checksum, d.Compression}]
	var value []byte
	if found {
		r := db.buf.rows[id]
		r.shared = true
		value = r.data.Data
	}
	db.m.Unlock()
	if !found {
		var err error
		old := proto.ObjectData{Compression: d.Compression}
		if db.conn.big && len(d.Data) >= bigValue {
			old.Compression |= bigFlag
		}
		q := "SELECT id, value FROM data WHERE hash = ? AND compression = ?"
		found, err = db.conn.One(q, func(r *Row) error {
			id, old.Data = r.Int(0), r.Bytes(1)
			return nil
		}, d.Checksum[:], int64(old.Compression))
		if err == nil && found {
			err = db.conn.complete(&old)
		}
		if err != nil {
			return backend.DataID{}, err
		}
		value = old.Data
	}
	if found && !bytes.Equal(value, d.Data) && sum(value) != d.Checksum {
		// What is there was damaged: this is what it should be, for all that refer to it.
		db.log.Warn("damaged data replaced", "data", id, "checksum", fmt.Sprintf("%x", d.Checksum))
		if err := db.writeLocked(func(c *Conn) error {
			if err := c.deleteBig("id = ?", []driver.Value{id}); err != nil {
				return err
			}
			_, value, err := c.dataValue(&d)
			if err == nil {
				_, err = c.Exec("UPDATE data SET value = ? WHERE id = ?", value, id)
			}
			return err
		}); err != nil {
			return backend.DataID{}, err
		}
		value = d.Data
	}
	if found && !bytes.Equal(value, d.Data) {
		return backend.DataID{}, db.fail(fmt.Errorf("database %s: data %d has the same checksum %x as other data", db.d.Name(), id, d.Checksum))
	}
	db.m.Lock()
	if found {
		if hold {
			db.held[id]++
		}
		db.m.Unlock()
		return backend.DataID{ID: id, OK: true}, nil
	}
	defer db.m.Unlock()
	return db.addData(p, d, hold)
}

// share finds the data of a revision of an object.
func (db *DB) share(p int, oid tid.OID, t tid.TID, hold bool) (id backend.DataID, found bool, err error) {
	db.w.Lock() // so that nothing is pruned before it is held
	defer db.w.Unlock()
	db.m.RLock()
	err = db.err
	for _, o := range []*overlay{&db.recent, &db.saving} {
		for _, r := range o.objs[oid] {
			if r.tid == t && !o.deleted && !o.written {
				// What is parked cannot be shared.
				id, found = r.data, !r.data.OK || db.parked[r.data.ID] == nil
			}
		}
	}
	db.m.RUnlock()
	if err == nil && !found {
		if err := db.flush(); err != nil {
			return id, false, err
		}
		q := "SELECT data_id FROM obj WHERE `partition` = ? AND oid = ? AND tid = ?"
		found, err = db.conn.One(q, func(r *Row) error {
			id = backend.DataID{ID: r.Int(0), OK: !r.Null(0)}
			return nil
		}, int64(p), int64(oid), int64(t))
	}
	if err != nil || !found || !id.OK {
		return id, found, err
	}
	db.m.Lock()
	defer db.m.Unlock()
	if hold {
		db.held[id.ID]++
	}
	if r := db.buf.rows[id.ID]; r != nil {
		r.shared = true
	}
	return id, true, nil
}

// release ends one protection. The caller holds m.
func (db *DB) release(id int64) {
	if n := db.held[id]; n > 1 {
		db.held[id] = n - 1
	} else {
		delete(db.held, id)
	}
}

// ReleaseData implements [backend.Writing].
func (db *DB) ReleaseData(ids []backend.DataID, prune bool) error {
	var old []backend.DataID
	db.m.Lock()
	if db.err != nil {
		db.m.Unlock()
		return db.err
	}
	for _, id := range ids {
		if !id.OK {
			continue
		}
		db.release(id.ID)
		if prune && db.held[id.ID] == 0 && !db.buf.drop(id.ID) {
			old = append(old, id)
		}
	}
	db.m.Unlock()
	if len(old) == 0 {
		return nil
	}
	_, err := db.PruneData(old)
	return err
}

// LoadData implements [backend.Writing].
func (db *DB) LoadData(id backend.DataID) (proto.ObjectData, error) {
	if !id.OK {
		return proto.ObjectData{}, nil
	}
	db.m.RLock()
	r, err := db.buf.rows[id.ID], db.err
	db.m.RUnlock()
	if err != nil {
		return proto.ObjectData{}, err
	}
	if r != nil {
		return r.data, nil
	}
	var d proto.ObjectData
	found := false
	err = db.readMain(func(c *Conn) error {
		d, found, err = readData(c, id.ID)
		return err
	})
	switch {
	case err != nil:
		return d, err
	case !found:
		return d, fmt.Errorf("database %s: data %d: %w", db.d.Name(), id.ID, backend.ErrNotFound)
	case sum(d.Data) != d.Checksum:
		return d, fmt.Errorf("database %s: data %d differs from its checksum %x", db.d.Name(), id.ID, d.Checksum)
	}
	return d, nil
}

func readData(c *Conn, id int64) (d proto.ObjectData, found bool, err error) {
	found, err = c.One("SELECT compression, hash, value FROM data WHERE id = ?", func(r *Row) error {
		d.Compression = uint8(r.Int(0))
		copy(d.Checksum[:], r.Bytes(1))
		d.Data = r.Bytes(2)
		return nil
	}, id)
	if err == nil {
		err = c.complete(&d)
	}
	return d, found, err
}

// PruneData implements [backend.Keeping].
func (db *DB) PruneData(ids []backend.DataID) (int, error) {
	n := 0
	err := db.write(func(c *Conn) (err error) {
		n, err = db.prune(c, ids)
		return err
	})
	return n, err
}
