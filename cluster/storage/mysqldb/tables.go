package mysqldb

import (
	"strings"

	"github.com/neozodb/neo/cluster/storage/sqldb"
)

// tables are the definitions, in the order of creation. Names, columns and their order, keys
// and column families are those of the Python implementation. The comment of an index is
// left out unless the engine is RocksDB.
var tables = []struct{ name, def string }{
	{"config", `(
	name VARBINARY(255) NOT NULL PRIMARY KEY,
	value VARBINARY(255) NULL)`},
	{"pt", "(\n\t`partition`" + ` SMALLINT UNSIGNED NOT NULL,
	nid INT NOT NULL,
	tid BIGINT NOT NULL,
	pack BIGINT UNSIGNED,
	PRIMARY KEY (` + "`partition`" + `, nid))`},
	{"pack", `(
	tid BIGINT UNSIGNED NOT NULL,
	approved BOOLEAN, -- NULL if not signed
	partial BOOLEAN NOT NULL,
	oids MEDIUMBLOB, -- same format as trans.oids
	pack_tid BIGINT UNSIGNED,
	PRIMARY KEY (tid))`},
	{"trans", "(\n\t`partition`" + ` SMALLINT UNSIGNED NOT NULL,
	tid BIGINT UNSIGNED NOT NULL,
	packed BOOLEAN NOT NULL,
	oids MEDIUMBLOB NOT NULL,
	user BLOB NOT NULL,
	description BLOB NOT NULL,
	ext BLOB NOT NULL,
	ttid BIGINT UNSIGNED NOT NULL,
	PRIMARY KEY (` + "`partition`" + `, tid){cf_neo_append_meta})`},
	{"obj", "(\n\t`partition`" + ` SMALLINT UNSIGNED NOT NULL,
	oid BIGINT UNSIGNED NOT NULL,
	tid BIGINT UNSIGNED NOT NULL,
	data_id BIGINT UNSIGNED,
	value_tid BIGINT UNSIGNED,
	PRIMARY KEY (` + "`partition`, oid, tid){rev:cf_neo_obj_pk},\n\tKEY tid (`partition`" + `, tid, oid){cf_neo_append_meta},
	KEY data_id (data_id){cf_neo_append_meta})`},
	{"data", `(
	id BIGINT UNSIGNED NOT NULL,
	hash BINARY(20) NOT NULL,
	compression TINYINT UNSIGNED,
	value MEDIUMBLOB NOT NULL,
	PRIMARY KEY (id){cf_neo_append}{dedup})`},
	{"bigdata", `(
	id INT UNSIGNED NOT NULL AUTO_INCREMENT,
	value MEDIUMBLOB NOT NULL,
	PRIMARY KEY (id){cf_neo_append})`},
	{"ttrans", "(\n\t`partition`" + ` SMALLINT UNSIGNED NOT NULL,
	tid BIGINT UNSIGNED,
	packed BOOLEAN NOT NULL,
	oids MEDIUMBLOB NOT NULL,
	user BLOB NOT NULL,
	description BLOB NOT NULL,
	ext BLOB NOT NULL,
	ttid BIGINT UNSIGNED NOT NULL,
	PRIMARY KEY (ttid){cf_neo_no_comp})`},
	{"tobj", "(\n\t`partition`" + ` SMALLINT UNSIGNED NOT NULL,
	oid BIGINT UNSIGNED NOT NULL,
	tid BIGINT UNSIGNED NOT NULL,
	data_id BIGINT UNSIGNED,
	value_tid BIGINT UNSIGNED,
	PRIMARY KEY (tid, oid){cf_neo_no_comp})`},
	{"todel", `(
	data_id BIGINT UNSIGNED NOT NULL,
	PRIMARY KEY (data_id){cf_neo_no_comp})`},
}

// families are the column families of RocksDB.
var families = []string{"cf_neo_append_meta", "rev:cf_neo_obj_pk", "cf_neo_append", "cf_neo_no_comp"}

// rocksComments and noComments replace the names of column families in definitions.
var rocksComments, noComments = func() (rocks, none *strings.Replacer) {
	var r, n []string
	for _, f := range families {
		r = append(r, "{"+f+"}", " COMMENT '"+f+"'")
		n = append(n, "{"+f+"}", "")
	}
	return strings.NewReplacer(r...), strings.NewReplacer(n...)
}()

// Tables implements sqldb.Dialect.
func (d *dialect) Tables() []string {
	var names []string
	for _, t := range tables {
		names = append(names, t.name)
	}
	return names
}

// CreateTable implements sqldb.Dialect.
func (d *dialect) CreateTable(table, as string, dedup bool) string {
	unique := ""
	if dedup {
		unique = ",\n\tUNIQUE KEY hash (hash, compression){cf_neo_no_comp}"
	}
	comments := noComments
	if d.tables == RocksDB {
		comments = rocksComments
	}
	for _, t := range tables {
		if t.name == table {
			def := strings.Replace(t.def, "{dedup}", unique, 1)
			return "CREATE TABLE " + as + " " + comments.Replace(def) + " ENGINE = " + d.tables
		}
	}
	panic("mysqldb: no table " + table)
}

// Indices implements sqldb.Dialect: tables are created with their keys.
func (d *dialect) Indices(string, bool) []string { return nil }

// Columns implements sqldb.Dialect.
func (d *dialect) Columns(c *sqldb.Conn, table string) ([]string, error) {
	q := "SELECT column_name FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = ? ORDER BY ordinal_position"
	var names []string
	err := c.Each(q, func(r *sqldb.Row) error {
		names = append(names, r.Text(0))
		return nil
	}, table)
	return names, err
}

// Deduplicates implements sqldb.Dialect.
func (d *dialect) Deduplicates(c *sqldb.Conn) (bool, error) {
	q := "SELECT 1 FROM information_schema.statistics WHERE table_schema = DATABASE() AND table_name = 'data' AND index_name = 'hash' AND non_unique = 0"
	return c.One(q, func(*sqldb.Row) error { return nil })
}
