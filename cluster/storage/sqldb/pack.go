package sqldb

import (
	"database/sql/driver"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

func scanPack(r *Row, id tid.TID) (*proto.PackState, error) {
	p := &proto.PackState{Partial: r.Int(1) != 0, Time: tid.TID(r.Int(3))}
	if !r.Null(0) {
		p.Approved = proto.Some(r.Int(0) != 0)
	}
	if p.Partial {
		oids, err := splitOIDs(r.Bytes(2))
		if err != nil {
			return nil, fmt.Errorf("pack order %v: %w", id, err)
		}
		p.OIDs = oids
	}
	return p, nil
}

// readPack returns the pack order of a transaction, nil if it has none.
func readPack(c *Conn, id tid.TID) (*proto.PackState, error) {
	var p *proto.PackState
	_, err := c.One("SELECT approved, partial, oids, pack_tid FROM pack WHERE tid = ?", func(r *Row) (err error) {
		p, err = scanPack(r, id)
		return err
	}, int64(id))
	return p, err
}

// PackOrders implements [backend.Keeping]. The orders of transactions that were
// never finished do not count: the Python implementation leaves them behind.
func (db *DB) PackOrders(min tid.TID) ([]proto.PackOrder, error) {
	l := db.layout.Load()
	var orders []proto.PackOrder
	if l.np == 0 {
		return nil, nil
	}
	q := "SELECT pack.approved, pack.partial, pack.oids, pack.pack_tid, pack.tid FROM pack" +
		" JOIN trans ON trans.`partition` = pack.tid % ? AND trans.tid = pack.tid WHERE pack.tid >= ? ORDER BY pack.tid"
	err := db.readMain(func(c *Conn) error {
		orders = nil
		return c.Each(q, func(r *Row) error {
			id := tid.TID(r.Int(4))
			if !l.readable[id.Partition(l.np)] {
				return nil
			}
			p, err := scanPack(r, id)
			if err != nil {
				return err
			}
			orders = append(orders, proto.PackOrder{ID: id, Approved: p.Approved, Partial: p.Partial, OIDs: p.OIDs, Time: p.Time})
			return nil
		}, int64(l.np), clampTID(min))
	})
	return orders, err
}

// SignPackOrders implements [backend.Keeping].
func (db *DB) SignPackOrders(approved, rejected []tid.TID) (missing []tid.TID, changed bool, err error) {
	err = db.write(func(c *Conn) error {
		for i, ids := range [][]tid.TID{rejected, approved} {
			for _, id := range ids {
				signed := false
				found, err := c.One("SELECT approved FROM pack WHERE tid = ?", func(r *Row) error {
					signed = !r.Null(0) && r.Int(0) == int64(i)
					return nil
				}, int64(id))
				if err != nil {
					return err
				}
				if !found {
					missing = append(missing, id)
					continue
				}
				if signed {
					continue
				}
				if _, err := c.Exec("UPDATE pack SET approved = ? WHERE tid = ?", int64(i), int64(id)); err != nil {
					return err
				}
				changed = true
			}
		}
		return nil
	})
	return missing, changed, err
}

// dropStrayPacks deletes pack orders of readable partitions that belong to no
// transaction: they would never go, and keep later orders from being
// approved.
func (db *DB) dropStrayPacks(c *Conn) error {
	l := db.layout.Load()
	if l.np == 0 {
		return nil
	}
	var stray []tid.TID
	q := "SELECT pack.tid FROM pack LEFT JOIN trans ON trans.`partition` = pack.tid % ? AND trans.tid = pack.tid WHERE trans.tid IS NULL"
	err := c.Each(q, func(r *Row) error {
		if id := tid.TID(r.Int(0)); l.readable[id.Partition(l.np)] {
			stray = append(stray, id)
		}
		return nil
	}, int64(l.np))
	if err != nil {
		return err
	}
	return c.execIn("DELETE FROM pack WHERE tid IN ", tidValues(stray))
}

// PackedIDs implements [backend.Keeping].
func (db *DB) PackedIDs(upToDateOnly bool) (map[int]tid.TID, error) {
	ids := map[int]tid.TID{}
	err := db.readMain(func(c *Conn) error {
		return c.Each("SELECT `partition`, pack, tid FROM pt WHERE nid = ? AND pack IS NOT NULL", func(r *Row) error {
			if !upToDateOnly || r.Int(2) == -int64(proto.UpToDate) {
				ids[int(r.Int(0))] = tid.TID(r.Int(1))
			}
			return nil
		}, int64(db.layout.Load().id))
	})
	return ids, err
}

// SetPacked implements [backend.Keeping].
func (db *DB) SetPacked(partition int, id tid.TID) error {
	return db.write(func(c *Conn) error {
		me := int64(db.layout.Load().id)
		_, order, err := packedUpTo(c)
		if err != nil {
			return err
		}
		if id > order {
			// What others have packed would be taken for our own from now on.
			var others tid.TID
			err := c.Each("SELECT MAX(pack) FROM pt WHERE nid = ? AND pack > ?", func(r *Row) error {
				others = tid.TID(r.Int(0))
				return nil
			}, me, int64(order))
			if err != nil {
				return err
			}
			if others != tid.Zero {
				if err := notePacked(c, others); err != nil {
					return err
				}
			}
			if err := setConfig(c, keyPackedOrder, proto.Some(id.String())); err != nil {
				return err
			}
		}
		_, err = c.Exec("UPDATE pt SET pack = ? WHERE `partition` = ? AND nid = ?", int64(id), int64(partition), me)
		return err
	})
}

// LowerPacked implements [backend.Keeping].
func (db *DB) LowerPacked(partition int, id tid.TID) error {
	return db.write(func(c *Conn) error {
		_, order, err := packedUpTo(c)
		if err != nil {
			return err
		}
		if id > order {
			if err := notePacked(c, id); err != nil {
				return err
			}
		}
		_, err = c.Exec("UPDATE pt SET pack = ? WHERE `partition` = ? AND nid = ? AND pack > ?",
			int64(id), int64(partition), int64(db.layout.Load().id), int64(id))
		return err
	})
}

// packedUpTo returns up to where records may have been lost, as far as this program
// knows, and the last order taken into account.
func packedUpTo(c *Conn) (t, order tid.TID, err error) {
	m, err := readConfig(c)
	if err != nil {
		return 0, 0, err
	}
	own, err := moment(m, keyPacked)
	if err != nil {
		return 0, 0, err
	}
	last, err := moment(m, keyPackedOrder)
	return own.V, last.V, err
}

// notePacked remembers up to where records may have been lost. The time of an order is
// stored with its transaction, which may be on other nodes only.
func notePacked(c *Conn, t tid.TID) error {
	was, _, err := packedUpTo(c)
	if err != nil || was >= t {
		return err
	}
	return setConfig(c, keyPacked, proto.Some(t.String()))
}

// PackedUpTo implements [backend.Keeping]. Where others have packed, nothing tells
// more than the id of the order.
func (db *DB) PackedUpTo(oid tid.OID) (t tid.TID, err error) {
	l := db.layout.Load()
	err = db.readMain(func(c *Conn) error {
		own, order, err := packedUpTo(c)
		if err != nil {
			return err
		}
		t = own
		return c.Each("SELECT pack FROM pt WHERE `partition` = ? AND nid = ? AND pack > ?", func(r *Row) error {
			t = max(t, tid.TID(r.Int(0)))
			return nil
		}, int64(oid.Partition(max(l.np, 1))), int64(l.id), int64(order))
	})
	return t, err
}

// packable is an object that may have history to drop.
type packable struct {
	oid     tid.OID
	upTo    tid.TID // records before this go
	records int     // up to the time of the pack
	last    tid.TID // of them, or the first
	deleted bool    // by that one
}

// Pack implements [backend.Keeping].
func (db *DB) Pack(partition int, t tid.TID, oids []tid.OID, keep tid.TID, after proto.Opt[tid.OID], n int) (last proto.Opt[tid.OID], deleted int, err error) {
	l := db.layout.Load()
	if partition < 0 || partition >= l.np {
		return last, 0, backend.ErrNonReadable
	}
	n = max(n, 1)
	if oids != nil {
		var mine []tid.OID
		for _, o := range oids {
			if o.Partition(l.np) == partition && (!after.OK || o > after.V) {
				mine = append(mine, o)
			}
		}
		slices.Sort(mine)
		mine = slices.Compact(mine)
		if len(mine) == 0 {
			return last, 0, nil
		}
		if len(mine) > n {
			mine = mine[:n]
			last = proto.Some(mine[n-1])
		}
		oids = mine
	}
	err = db.write(func(c *Conn) error {
		if err := notePacked(c, t); err != nil {
			return err
		}
		var work []packable
		kept := false
		visit := func(w packable) {
			if w.deleted && w.last > keep {
				kept = true
			} else if w.deleted {
				w.upTo++ // its last record goes, too
			} else if w.records == 1 {
				return
			}
			work = append(work, w)
		}
		if oids != nil {
			for _, o := range oids {
				if _, err := packables(c, packOne, 0, visit, int64(partition), int64(o), clampTID(t), int64(1), int64(partition)); err != nil {
					return err
				}
			}
		} else {
			from := int64(0)
			if after.OK {
				from = int64(after.V) + 1
			}
			var err error
			if last, err = packables(c, packMany, n, visit, int64(partition), from, clampTID(t), int64(n), int64(partition)); err != nil {
				return err
			}
		}
		if kept {
			if err := noteKept(c, partition, t); err != nil {
				return err
			}
		}
		deleted, err = db.dropHistory(c, partition, work)
		return err
	})
	return last, deleted, err
}

// dropHistory deletes records of objects, and data that nothing else refers to.
func (db *DB) dropHistory(c *Conn, partition int, work []packable) (deleted int, err error) {
	var ids []backend.DataID
	for _, w := range work {
		err := c.Each("SELECT DISTINCT data_id FROM obj {pk:obj} WHERE `partition` = ? AND oid = ? AND tid < ? AND data_id IS NOT NULL", func(r *Row) error {
			ids = append(ids, backend.DataID{ID: r.Int(0), OK: true})
			return nil
		}, int64(partition), int64(w.oid), int64(w.upTo))
		if err != nil {
			return deleted, err
		}
		k, err := c.Exec("DELETE FROM obj WHERE `partition` = ? AND oid = ? AND tid < ?", int64(partition), int64(w.oid), int64(w.upTo))
		if err != nil {
			return deleted, err
		}
		deleted += int(k)
	}
	_, err = db.prune(c, ids)
	return deleted, err
}

// keptDeletions returns what is stored under keyKept: partitions and times.
func keptDeletions(c *Conn) (map[int]tid.TID, error) {
	m, err := readConfig(c)
	if err != nil {
		return nil, err
	}
	kept := map[int]tid.TID{}
	for _, word := range strings.Fields(m[keyKept]) {
		p, at, _ := strings.Cut(word, ":")
		n, err := strconv.Atoi(p)
		if err != nil {
			return nil, fmt.Errorf("configuration value %s: %w", keyKept, err)
		}
		if kept[n], err = tid.Parse(at); err != nil {
			return nil, fmt.Errorf("configuration value %s: %w", keyKept, err)
		}
	}
	return kept, nil
}

func setKept(c *Conn, kept map[int]tid.TID) error {
	var words []string
	for _, p := range slices.Sorted(maps.Keys(kept)) {
		words = append(words, fmt.Sprintf("%d:%v", p, kept[p]))
	}
	return setConfig(c, keyKept, proto.Opt[string]{V: strings.Join(words, " "), OK: len(words) > 0})
}

// noteKept remembers that deletions up to t are kept in a partition.
func noteKept(c *Conn, partition int, t tid.TID) error {
	kept, err := keptDeletions(c)
	if err != nil || kept[partition] >= t {
		return err
	}
	kept[partition] = t
	return setKept(c, kept)
}

// KeptDeletions implements [backend.Keeping].
func (db *DB) KeptDeletions() (kept map[int]tid.TID, err error) {
	err = db.readMain(func(c *Conn) error {
		kept, err = keptDeletions(c)
		return err
	})
	return kept, err
}

// NoteKept implements [backend.Keeping].
func (db *DB) NoteKept(partition int, t tid.TID) error {
	return db.write(func(c *Conn) error { return noteKept(c, partition, t) })
}

// DropDeletions implements [backend.Keeping].
func (db *DB) DropDeletions(partition int, after proto.Opt[tid.OID], n int) (last proto.Opt[tid.OID], deleted int, err error) {
	n = max(n, 1)
	err = db.write(func(c *Conn) error {
		kept, err := keptDeletions(c)
		if err != nil {
			return err
		}
		t, ok := kept[partition]
		if !ok {
			return nil
		}
		var work []packable
		visit := func(w packable) {
			if w.deleted {
				w.upTo++
				work = append(work, w)
			}
		}
		from := int64(0)
		if after.OK {
			from = int64(after.V) + 1
		}
		if last, err = packables(c, firstMany, n, visit, int64(partition), from, clampTID(t), int64(n), int64(partition)); err != nil {
			return err
		}
		if deleted, err = db.dropHistory(c, partition, work); err != nil || last.OK {
			return err
		}
		delete(kept, partition)
		return setKept(c, kept)
	})
	return last, deleted, err
}

const (
	packMany = "SELECT x.n, x.oid, x.tid, o.data_id FROM (SELECT COUNT(*) AS n, oid, MAX(tid) AS tid FROM obj {pk:obj}" +
		" WHERE `partition` = ? AND oid >= ? AND tid <= ? GROUP BY oid ORDER BY oid LIMIT ?) AS x" +
		" CROSS JOIN obj AS o {pk:obj} ON o.`partition` = ? AND o.oid = x.oid AND o.tid = x.tid ORDER BY x.oid"
	firstMany = "SELECT x.n, x.oid, x.tid, o.data_id FROM (SELECT COUNT(*) AS n, oid, MIN(tid) AS tid FROM obj {pk:obj}" +
		" WHERE `partition` = ? AND oid >= ? AND tid <= ? GROUP BY oid ORDER BY oid LIMIT ?) AS x" +
		" CROSS JOIN obj AS o {pk:obj} ON o.`partition` = ? AND o.oid = x.oid AND o.tid = x.tid ORDER BY x.oid"
	packOne = "SELECT x.n, x.oid, x.tid, o.data_id FROM (SELECT COUNT(*) AS n, oid, MAX(tid) AS tid FROM obj {pk:obj}" +
		" WHERE `partition` = ? AND oid = ? AND tid <= ? GROUP BY oid LIMIT ?) AS x" +
		" CROSS JOIN obj AS o {pk:obj} ON o.`partition` = ? AND o.oid = x.oid AND o.tid = x.tid"
)

// packables visits the objects that have records. It examines about n
// records and returns the last object examined unless all were.
func packables(c *Conn, q string, n int, visit func(packable), args ...driver.Value) (last proto.Opt[tid.OID], err error) {
	objects, records := 0, 0
	err = c.Each(q, func(r *Row) error {
		if n > 0 && records >= n {
			return errStop // last is set: go on from there
		}
		objects++
		records += int(r.Int(0))
		t := tid.TID(r.Int(2))
		w := packable{oid: tid.OID(r.Int(1)), upTo: t, records: int(r.Int(0)), last: t, deleted: r.Null(3)}
		visit(w)
		if n > 0 && (records >= n || objects >= n) {
			last = proto.Some(w.oid)
		}
		return nil
	}, args...)
	return last, err
}

// DropPartition implements [backend.Keeping].
func (db *DB) DropPartition(partition, n int) (finished bool, err error) {
	l := db.layout.Load()
	if partition >= 0 && partition < l.np && l.assigned[partition] {
		return true, nil
	}
	n = max(n, 1)
	err = db.write(func(c *Conn) error {
		if _, dropping := db.drop[partition]; !dropping {
			finished = true // assigned again, or done
			return nil
		}
		var keys []backend.Key
		err := eachRecord(c, partition, 0, tid.Max, 0, n, func(t tid.TID, o tid.OID) {
			keys = append(keys, backend.Key{TID: t, OID: o})
		})
		if err != nil {
			return err
		}
		var ids []backend.DataID
		for _, k := range keys {
			if ids, err = deleteRecord(c, partition, k.OID, k.TID, ids); err != nil {
				return err
			}
		}
		if _, err := db.prune(c, ids); err != nil || len(keys) > 0 {
			return err
		}
		last := int64(math.MaxInt64) // of the transactions to be deleted now
		more, err := c.One("SELECT tid FROM trans {pk:trans} WHERE `partition` = ? ORDER BY tid LIMIT 1 OFFSET ?", func(r *Row) error {
			last = r.Int(0)
			return nil
		}, int64(partition), int64(n-1))
		if err != nil {
			return err
		}
		if _, err := c.Exec("DELETE FROM trans WHERE `partition` = ? AND tid <= ?", int64(partition), last); err != nil || more {
			return err
		}
		if _, err := c.Exec("DELETE FROM pack WHERE tid % ? = ?", int64(l.np), int64(partition)); err != nil {
			return err
		}
		delete(db.drop, partition)
		finished = true
		return nil
	})
	return finished, err
}

// UnassignedPartitions implements [backend.Keeping].
func (db *DB) UnassignedPartitions() ([]int, error) {
	db.w.Lock()
	defer db.w.Unlock()
	if err := db.broken(); err != nil {
		return nil, err
	}
	var ps []int
	for p := range db.drop {
		ps = append(ps, p)
	}
	slices.Sort(ps)
	return ps, nil
}
