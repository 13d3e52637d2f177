package sqldb

import (
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// truncatePeriod bounds what one SQL transaction of a truncation deletes.
const truncatePeriod = 10 * time.Second

// Truncate implements [backend.Keeping]. It deletes the newest records first,
// so that an interruption leaves the database cut at a later TID.
func (db *DB) Truncate() error {
	cfg, err := db.Config()
	if err != nil || !cfg.TruncateTID.OK {
		return err
	}
	cut := cfg.TruncateTID.V
	l := db.layout.Load()
	committed := time.Now()
	for p, mine := range l.assigned {
		if !mine {
			continue
		}
		for more := true; more; {
			err := db.delete(func(c *Conn) (err error) {
				more, err = db.truncateSlice(c, p, l.np, cut)
				return err
			})
			if err != nil {
				return err
			}
			if time.Since(committed) > truncatePeriod {
				if err := db.Commit(); err != nil {
					return err
				}
				committed = time.Now()
			}
		}
	}
	err = db.delete(func(c *Conn) error {
		if _, err := c.Exec("UPDATE pt SET tid = ? WHERE nid = ? AND tid > ?", int64(cut), int64(l.id), int64(cut)); err != nil {
			return err
		}
		if err := forgetCutImport(c, cut); err != nil {
			return err
		}
		return setConfig(c, keyTruncate, proto.Opt[string]{})
	})
	if err != nil {
		return err
	}
	return db.Commit()
}

// truncateSlice deletes some records after cut; at last the transactions.
func (db *DB) truncateSlice(c *Conn, p, np int, cut tid.TID) (more bool, err error) {
	var keys []backend.Key
	err = c.Each("SELECT tid, oid FROM obj {tid:obj} WHERE `partition` = ? AND tid > ? ORDER BY tid DESC LIMIT ?", func(r *Row) error {
		keys = append(keys, backend.Key{TID: tid.TID(r.Int(0)), OID: tid.OID(r.Int(1))})
		return nil
	}, int64(p), int64(cut), int64(eachChunk))
	if err != nil {
		return false, err
	}
	var ids []backend.DataID
	for _, k := range keys {
		if ids, err = deleteRecord(c, p, k.OID, k.TID, ids); err != nil {
			return false, err
		}
	}
	if _, err := db.prune(c, ids); err != nil {
		return false, err
	}
	if len(keys) == eachChunk {
		return true, nil
	}
	if _, err := c.Exec("DELETE FROM trans WHERE `partition` = ? AND tid > ?", int64(p), int64(cut)); err != nil {
		return false, err
	}
	_, err = c.Exec("DELETE FROM pack WHERE tid > ? AND tid % ? = ?", int64(cut), int64(np), int64(p))
	return false, err
}
