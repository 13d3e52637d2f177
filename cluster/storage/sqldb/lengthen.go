package sqldb

import (
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
)

// minList is from how many bytes a list of object ids may need a longer column.
const minList = 8 * (maxOIDs + 1)

// lengthen makes columns longer for metadata that is copied from elsewhere, where it was
// committed: a vote with it would have been refused. The caller holds w.
func (db *DB) lengthen(w *work) error {
	limit := db.d.MaxMeta()
	if limit == 0 {
		return nil
	}
	for _, t := range w.trans {
		m := t.meta
		if max(len(m.User), len(m.Description), len(m.Extension)) <= limit && 8*len(m.OIDs) < minList {
			continue
		}
		sizes := map[string]int{"user": len(m.User), "description": len(m.Description), "ext": len(m.Extension), "oids": 8 * len(m.OIDs)}
		if err := db.lengthenFor(t.tid, tTrans, sizes); err != nil {
			return err
		}
	}
	for _, p := range w.packs {
		if n := 8 * len(p.OIDs); n >= minList {
			if err := db.lengthenFor(p.id, tPack, map[string]int{"oids": n}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (db *DB) lengthenFor(t tid.TID, table string, sizes map[string]int) error {
	q, err := db.d.Lengthen(db.conn, table, sizes)
	if err != nil {
		return fmt.Errorf("transaction %v: %w", t, err)
	}
	if q == "" {
		return nil
	}
	db.log.Info("making columns longer: with many transactions it takes minutes", "database", db.d.Name(), "table", table, "tid", t)
	return db.d.Copying(db.conn, func() error { return db.conn.ExecOnce(q) })
}
