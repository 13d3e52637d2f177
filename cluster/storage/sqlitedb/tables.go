package sqlitedb

import (
	"strings"

	"github.com/neozodb/neo/cluster/storage/sqldb"
)

// tables are the definitions, in the order of creation. Names, columns and their
// order are those of the Python implementation.
var tables = []struct{ name, def string }{
	{"config", `(
	name TEXT NOT NULL PRIMARY KEY,
	value TEXT) WITHOUT ROWID`},
	{"pt", `(
	partition INTEGER NOT NULL,
	nid INTEGER NOT NULL,
	tid INTEGER NOT NULL,
	pack INTEGER,
	PRIMARY KEY (partition, nid)) WITHOUT ROWID`},
	{"pack", `(
	tid INTEGER PRIMARY KEY,
	approved BOOLEAN, -- NULL if not signed
	partial BOOLEAN NOT NULL,
	oids BLOB, -- same format as trans.oids
	pack_tid INTEGER)`},
	{"trans", `(
	partition INTEGER NOT NULL,
	tid INTEGER NOT NULL,
	packed BOOLEAN NOT NULL,
	oids BLOB NOT NULL,
	user BLOB NOT NULL,
	description BLOB NOT NULL,
	ext BLOB NOT NULL,
	ttid INTEGER NOT NULL,
	PRIMARY KEY (partition, tid)) WITHOUT ROWID`},
	{"obj", `(
	partition INTEGER NOT NULL,
	oid INTEGER NOT NULL,
	tid INTEGER NOT NULL,
	data_id INTEGER,
	value_tid INTEGER,
	PRIMARY KEY (partition, oid, tid)) WITHOUT ROWID`},
	{"data", `(
	id INTEGER PRIMARY KEY,
	hash BLOB NOT NULL,
	compression INTEGER NOT NULL,
	value BLOB NOT NULL)`},
	{"ttrans", `(
	partition INTEGER NOT NULL,
	tid INTEGER,
	packed BOOLEAN NOT NULL,
	oids BLOB NOT NULL,
	user BLOB NOT NULL,
	description BLOB NOT NULL,
	ext BLOB NOT NULL,
	ttid INTEGER NOT NULL)`},
	{"tobj", `(
	partition INTEGER NOT NULL,
	oid INTEGER NOT NULL,
	tid INTEGER NOT NULL,
	data_id INTEGER,
	value_tid INTEGER,
	PRIMARY KEY (tid, oid)) WITHOUT ROWID`},
}

// Tables implements sqldb.Dialect.
func (d *dialect) Tables() []string {
	var names []string
	for _, t := range tables {
		names = append(names, t.name)
	}
	return names
}

// CreateTable implements sqldb.Dialect.
func (d *dialect) CreateTable(table, as string, _ bool) string {
	for _, t := range tables {
		if t.name == table {
			return "CREATE TABLE " + as + " " + t.def
		}
	}
	panic("sqlitedb: no table " + table)
}

// Indices implements sqldb.Dialect.
func (d *dialect) Indices(table string, dedup bool) []string {
	switch {
	case table == "obj":
		return []string{
			"CREATE INDEX IF NOT EXISTS _obj_i1 ON obj(partition, tid, oid)",
			"CREATE INDEX IF NOT EXISTS _obj_i2 ON obj(data_id)",
		}
	case table == "data" && dedup:
		return []string{"CREATE UNIQUE INDEX IF NOT EXISTS _data_i1 ON data(hash, compression)"}
	}
	return nil
}

// Columns implements sqldb.Dialect.
func (d *dialect) Columns(c *sqldb.Conn, table string) ([]string, error) {
	var names []string
	err := c.Each("SELECT name FROM pragma_table_info(?) ORDER BY cid", func(r *sqldb.Row) error {
		names = append(names, r.Text(0))
		return nil
	}, table)
	return names, err
}

// Deduplicates implements sqldb.Dialect. The name of the index does not matter.
func (d *dialect) Deduplicates(c *sqldb.Conn) (bool, error) {
	var indices []string
	err := c.Each(`SELECT name FROM pragma_index_list('data') WHERE "unique"`, func(r *sqldb.Row) error {
		indices = append(indices, r.Text(0))
		return nil
	})
	if err != nil {
		return false, err
	}
	for _, index := range indices {
		var columns []string
		err := c.Each("SELECT name FROM pragma_index_info(?) ORDER BY seqno", func(r *sqldb.Row) error {
			columns = append(columns, r.Text(0))
			return nil
		}, index)
		if err != nil {
			return false, err
		}
		if s := strings.Join(columns, ","); s == "hash,compression" || s == "hash" {
			return true, nil
		}
	}
	return false, nil
}
