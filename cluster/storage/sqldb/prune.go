package sqldb

import (
	"context"
	"database/sql/driver"
	"iter"
	"slices"

	"github.com/neozodb/neo/cluster/storage/backend"
)

// prune deletes those of the given data that neither a counter nor a record
// refers to. Everything in memory was written before. The caller holds w.
func (db *DB) prune(c *Conn, ids []backend.DataID) (int, error) {
	list := make([]int64, 0, len(ids))
	db.m.RLock()
	waiting := db.waiting()
	for _, id := range ids {
		if id.OK && db.held[id.ID] == 0 && !waiting[id.ID] {
			list = append(list, id.ID)
		}
	}
	db.m.RUnlock()
	slices.Sort(list)
	list = slices.Compact(list)
	values := make([]driver.Value, len(list))
	for i, id := range list {
		values[i] = id
	}
	n := 0
	err := eachIn(values, func(in string, part []driver.Value) error {
		where := "id IN " + in + " AND NOT EXISTS (SELECT 1 FROM obj WHERE obj.data_id = data.id)"
		if err := c.deleteBig(where, part); err != nil {
			return err
		}
		changed, err := c.Exec("DELETE FROM data WHERE "+where, part...)
		n += int(changed)
		return err
	})
	return n, err
}

// waiting returns the data of records that are not written yet and that nothing protects any
// more: a transaction may be unlocked, or a record be added, while a flush is under way. The
// caller holds m.
func (db *DB) waiting() map[int64]bool {
	ids := map[int64]bool{}
	for _, t := range db.queue {
		if t.unlocked {
			for _, s := range t.stores {
				if s.Data.OK {
					ids[s.Data.ID] = true
				}
			}
		}
	}
	for _, o := range db.direct.objs {
		if o.data.OK {
			ids[o.data.ID] = true
		}
	}
	return ids
}

// Orphans implements [backend.Keeping].
func (db *DB) Orphans(ctx context.Context) iter.Seq2[backend.DataID, error] {
	return func(yield func(backend.DataID, error) bool) {
		for next, more := int64(0), true; more; {
			if err := ctx.Err(); err != nil {
				yield(backend.DataID{}, err)
				return
			}
			var ids []int64
			n, from := 0, next
			err := db.readMain(func(c *Conn) error {
				ids, n = nil, 0
				q := "SELECT id, EXISTS (SELECT 1 FROM obj WHERE obj.data_id = data.id) FROM data WHERE id >= ? ORDER BY id LIMIT ?"
				return c.Each(q, func(r *Row) error {
					n++
					next = r.Int(0) + 1
					if r.Int(1) == 0 {
						ids = append(ids, r.Int(0))
					}
					return nil
				}, from, int64(eachChunk))
			})
			if err != nil {
				yield(backend.DataID{}, err)
				return
			}
			db.m.RLock()
			waiting := db.waiting()
			ids = slices.DeleteFunc(ids, func(id int64) bool { return db.held[id] > 0 || waiting[id] })
			db.m.RUnlock()
			for _, id := range ids {
				if !yield(backend.DataID{ID: id, OK: true}, nil) {
					return
				}
			}
			more = n == eachChunk
		}
	}
}
