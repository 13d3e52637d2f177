package sqldb

import "github.com/neozodb/neo/cluster/tid"

// greatest is an upper bound of the object ids of a partition: above it nothing was
// ever stored. Most objects of an import are new, and so are many of each
// application; the store of each asks for its last revision.
type greatest struct {
	oid   tid.OID
	some  bool // there is one; else oid means nothing
	known bool // what is in SQL is taken into account
}

// raise notes that an object of a partition exists. The caller holds m.
func (db *DB) raise(partition int, oid tid.OID) {
	g := db.top[partition]
	if !g.some || oid > g.oid {
		g.oid, g.some = oid, true
		db.top[partition] = g
	}
}

// isNew reports that an object has no revision, committed or not. false: it may
// have.
func (db *DB) isNew(partition int, oid tid.OID) (bool, error) {
	db.m.RLock()
	g := db.top[partition]
	db.m.RUnlock()
	if !g.known {
		// What is added from the flush on raises it.
		err := db.readMain(func(c *Conn) error {
			return c.Each("SELECT MAX(oid) FROM obj {pk:obj} WHERE `partition` = ?", func(r *Row) error {
				db.m.Lock()
				defer db.m.Unlock()
				if !r.Null(0) {
					db.raise(partition, tid.OID(r.Int(0)))
				}
				g = db.top[partition]
				g.known = true
				db.top[partition] = g
				return nil
			}, int64(partition))
		})
		if err != nil {
			return false, err
		}
	}
	return !g.some || oid > g.oid, nil
}
