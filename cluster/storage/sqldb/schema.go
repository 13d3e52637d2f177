package sqldb

import (
	"fmt"
	"slices"
	"strconv"

	"github.com/neozodb/neo/cluster/proto"
)

// Version of the tables. It stays at 4 as long as the Python implementation can
// use them.
const Version = 4

// create creates what is missing, after migrating what is there. The caller holds w.
func (db *DB) create() error {
	c := db.conn
	if err := db.d.Prepare(c); err != nil {
		return err
	}
	columns, err := db.d.Columns(c, tConfig)
	if err != nil {
		return err
	}
	if err := db.begin(); err != nil {
		return err
	}
	if columns != nil {
		erased, err := db.endErasure()
		if err != nil {
			return err
		}
		if erased {
			columns = nil
		}
	}
	if columns == nil {
		if err := c.ExecOnce(db.d.CreateTable(tConfig, tConfig, false)); err != nil {
			return err
		}
		if err := setConfig(c, keyVersion, proto.Some(strconv.Itoa(Version))); err != nil {
			return err
		}
	} else if err := db.migrate(); err != nil {
		return err
	}
	if err := db.begin(); err != nil {
		return err
	}
	for _, t := range db.d.Tables() {
		columns, err := db.d.Columns(c, t)
		if err != nil {
			return err
		}
		if columns == nil {
			if err := c.ExecOnce(db.d.CreateTable(t, t, db.o.Dedup && t == tData)); err != nil {
				return err
			}
		}
		for _, q := range db.d.Indices(t, columns == nil && db.o.Dedup && t == tData) {
			if err := c.ExecOnce(q); err != nil {
				return err
			}
		}
	}
	return nil
}

// endErasure ends an erasure that was interrupted, if there was one.
func (db *DB) endErasure() (bool, error) {
	begun, err := db.conn.One("SELECT 1 FROM config WHERE name = ?", func(*Row) error { return nil }, keyErasure)
	if err != nil || !begun {
		return false, err
	}
	db.log.Warn("an erasure of the database was interrupted: it is erased", "database", db.d.Name())
	if err := db.dropTables(); err != nil {
		return false, err
	}
	return true, db.d.Prepare(db.conn)
}

// dropTables drops the tables of the node, and no other. A database server waits for connections
// that have read from a table, and commits each DROP with what was before it. So the first commit has what
// the node knows of itself gone, and a mark that endErasure finds: table config, which has it, goes last.
func (db *DB) dropTables() error {
	return db.pool.pause(func() error {
		c := db.conn
		if err := setConfig(c, keyErasure, proto.Some("1")); err != nil {
			return err
		}
		if _, err := c.Exec("DELETE FROM config WHERE name NOT IN (?, ?)", keyErasure, keyVersion); err != nil {
			return err
		}
		columns, err := db.d.Columns(c, tPT)
		if err != nil {
			return err
		}
		if columns != nil {
			if _, err := c.Exec("DELETE FROM pt"); err != nil {
				return err
			}
		}
		if err := c.forget(); err != nil {
			return err
		}
		for _, t := range slices.Backward(db.d.Tables()) { // config is the first
			if err := c.ExecOnce("DROP TABLE IF EXISTS " + t); err != nil {
				return err
			}
		}
		return nil
	})
}

// migrate brings older tables to the present version.
func (db *DB) migrate() error {
	c := db.conn
	m, err := readConfig(c)
	if err != nil {
		return err
	}
	version := 0
	if s, ok := m[keyVersion]; ok {
		if version, err = strconv.Atoi(s); err != nil {
			return fmt.Errorf("database %s: version of the tables is %q", db.d.Name(), s)
		}
	}
	if version > Version {
		return fmt.Errorf("database %s: tables of version %d can not be downgraded to %d", db.d.Name(), version, Version)
	}
	columns, err := db.d.Columns(c, tObj)
	if err != nil {
		return err
	}
	if columns != nil && !slices.Contains(columns, "data_id") {
		return fmt.Errorf("database %s: the tables are of a format before NEO 1.0, which cannot be migrated", db.d.Name())
	}
	steps := []func() error{db.migrate1, db.migrate2, db.migrate3, db.migrate4}
	for ; version < Version; version++ {
		db.log.Info("migrating tables", "database", db.d.Name(), "to", version+1)
		if err := steps[version](); err != nil {
			return fmt.Errorf("migrate tables to version %d: %w", version+1, err)
		}
		if err := setConfig(c, keyVersion, proto.Some(strconv.Itoa(version+1))); err != nil {
			return err
		}
		if err := db.commitSQL(); err != nil {
			return err
		}
		if err := db.begin(); err != nil {
			return err
		}
	}
	return nil
}

// migrate1 makes ttrans.tid nullable. Unfinished data of older versions can only
// be verified by them.
func (db *DB) migrate1() error {
	for _, t := range []string{tTTrans, tTObj} {
		columns, err := db.d.Columns(db.conn, t)
		if err != nil {
			return err
		}
		if columns == nil {
			continue
		}
		found, err := db.conn.One("SELECT 1 FROM "+t+" LIMIT 1", func(*Row) error { return nil })
		if err != nil {
			return err
		}
		if found {
			return fmt.Errorf("database %s: table %s is not empty: start the older version once more, so that it finishes its transactions", db.d.Name(), t)
		}
	}
	if err := db.conn.forget(); err != nil {
		return err
	}
	return db.conn.ExecOnce("DROP TABLE IF EXISTS " + tTTrans)
}

// migrate2 changes the order of the key of obj.
func (db *DB) migrate2() error {
	return db.rebuild(tObj, "`partition`, oid, tid, data_id, value_tid", "`partition`, oid, tid, data_id, value_tid")
}

// migrate3 makes pt hold TIDs instead of states.
func (db *DB) migrate3() error {
	columns, err := db.ptColumns()
	if err != nil || !slices.Contains(columns, "rid") {
		return err
	}
	return db.rebuild(tPT, "`partition`, nid, tid", "rid, nid, CASE state WHEN 0 THEN -1 WHEN 2 THEN -2 ELSE 1 - CAST(state AS SIGNED) END")
}

// migrate4 adds pt.pack.
func (db *DB) migrate4() error {
	if err := setConfig(db.conn, "partitions", proto.Opt[string]{}); err != nil {
		return err
	}
	columns, err := db.ptColumns()
	if err != nil {
		return err
	}
	if slices.Contains(columns, "pack") {
		// The rebuild of step 3 made the column already.
		_, err := db.conn.Exec("UPDATE pt SET pack = 0 WHERE pack IS NULL AND nid = (SELECT CAST(value AS SIGNED) FROM config WHERE name = 'nid')")
		return err
	}
	return db.rebuild(tPT, "`partition`, nid, tid, pack",
		"`partition`, nid, tid, CASE WHEN nid = (SELECT CAST(value AS SIGNED) FROM config WHERE name = 'nid') THEN 0 END")
}

// ptColumns returns the columns of pt, after renaming the copy of it that an interrupted
// migration left.
func (db *DB) ptColumns() ([]string, error) {
	columns, err := db.d.Columns(db.conn, tPT)
	if err != nil || columns != nil {
		return columns, err
	}
	copied, err := db.d.Columns(db.conn, "new_"+tPT)
	if err != nil || copied == nil {
		return nil, err
	}
	return copied, db.conn.ExecOnce("ALTER TABLE new_" + tPT + " RENAME TO " + tPT)
}

// rebuild makes a table anew, with the present definition. It may be interrupted
// anywhere and started again.
func (db *DB) rebuild(table, to, from string) error {
	c, next := db.conn, "new_"+table
	old, err := db.d.Columns(c, table)
	if err != nil {
		return err
	}
	fresh, err := db.d.Columns(c, next)
	if err != nil {
		return err
	}
	if err := c.forget(); err != nil {
		return err
	}
	if old == nil && fresh == nil {
		return nil
	}
	if old != nil {
		for _, q := range []string{
			"DROP TABLE IF EXISTS " + next,
			db.d.CreateTable(table, next, false),
		} {
			if err := c.ExecOnce(q); err != nil {
				return err
			}
		}
		// A copy of which only a part is committed is made anew at the next start.
		err := db.d.Copying(c, func() error {
			return c.ExecOnce("INSERT INTO " + next + " (" + to + ") SELECT " + from + " FROM " + table)
		})
		if err != nil {
			return err
		}
		if err := c.ExecOnce("DROP TABLE " + table); err != nil {
			return err
		}
	}
	return c.ExecOnce("ALTER TABLE " + next + " RENAME TO " + table)
}
