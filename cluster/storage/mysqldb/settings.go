package mysqldb

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/storage/sqldb"
)

// minPacket is what the Python implementation demands: it sends a value of 16 MiB in twice
// as many bytes.
const minPacket = 32769 << 10

// serverSettings are what checkServer looks at.
const serverSettings = "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('version', 'max_allowed_packet', 'read_only', 'log_bin', 'binlog_format'," +
	" 'sync_binlog', 'innodb_flush_log_at_trx_commit', 'rocksdb_flush_log_at_trx_commit')"

// checkServer refuses a server that cannot do what is needed.
func (d *dialect) checkServer(dc driver.Conn, role sqldb.Role) error {
	rows, err := queryAll(dc, serverSettings)
	if err != nil {
		return err
	}
	v := map[string]string{}
	for _, r := range rows {
		v[strings.ToLower(r[0])] = r[1]
	}
	if n, err := strconv.ParseInt(v["max_allowed_packet"], 10, 64); err != nil || n < minPacket {
		return fmt.Errorf("max_allowed_packet of the server is %s, but values need at least %d: set max_allowed_packet = 64M in section [mysqld] of its configuration, and restart it", v["max_allowed_packet"], minPacket)
	}
	if isOn(v["log_bin"]) && v["binlog_format"] == "STATEMENT" {
		return errors.New("binlog_format of the server is STATEMENT, with which it refuses changes of a connection that reads what is committed: set binlog_format = MIXED (or ROW) in section [mysqld] of its configuration, and restart it")
	}
	if isOn(v["read_only"]) && role == sqldb.Writer {
		d.log.Warn("the database server is read-only: it refuses changes of ordinary users (SET GLOBAL read_only = OFF)", "database", d.Name())
	}
	if role == sqldb.Writer && d.tables != "" {
		d.volatile.Store(len(d.volatileSettings(v)) > 0)
	}
	_, rocks := v["rocksdb_flush_log_at_trx_commit"]
	d.rocks.Store(rocks)
	d.maria.Store(strings.Contains(v["version"], "MariaDB"))
	return nil
}

// checkRestart returns when the server was started, in seconds since 1970, and whether that was after a
// writing connection was made, whose id was session. A restarted server that may have lost what was committed is refused. The
// node is to end: its next start finds out what is there, and it gets the rest from its replicas.
func (d *dialect) checkRestart(dc driver.Conn, session uint64) (started int64, restarted bool, err error) {
	row, err := query(dc, "SHOW GLOBAL STATUS LIKE 'Uptime'")
	if err != nil {
		return 0, false, err
	}
	uptime, err := strconv.ParseInt(row[1], 10, 64)
	if err != nil {
		return 0, false, fmt.Errorf("uptime of the server: %w", err)
	}
	if row, err = query(dc, "SELECT CONNECTION_ID()"); err != nil {
		return 0, false, err
	}
	id, err := strconv.ParseUint(row[0], 10, 64)
	if err != nil {
		return 0, false, fmt.Errorf("connection id: %w", err)
	}
	started = time.Now().Unix() - uptime
	// Both are whole seconds. Ids of connections begin anew.
	restarted = session != 0 && (id < session || max(started-d.started.Load(), d.started.Load()-started) > 2)
	if restarted && d.volatile.Load() {
		d.uncertain.Store(true)
	}
	if d.uncertain.Load() {
		return 0, false, errors.New("the database server was restarted, and with its settings may have lost what was committed: start the storage again, so that it gets that from its replicas")
	}
	return started, restarted, nil
}

func isOn(v string) bool { return v == "ON" || v == "1" }

// Prepare implements sqldb.Dialect: new tables get the engine of those that are there.
func (d *dialect) Prepare(c *sqldb.Conn) error {
	known := d.Tables()
	for _, t := range d.Tables() {
		known = append(known, "new_"+t) // of a migration that was interrupted
	}
	engines := map[string]string{} // a table of each
	err := c.Each("SELECT table_name, engine FROM information_schema.tables WHERE table_schema = DATABASE() ORDER BY table_name", func(r *sqldb.Row) error {
		if t := r.Text(0); slices.Contains(known, t) {
			engines[canonical(r.Text(1))] = t
		}
		return nil
	})
	if err != nil {
		return err
	}
	d.tables = d.engine
	for engine, table := range engines {
		switch engine {
		case InnoDB, RocksDB:
			d.tables = engine
		case "":
			return fmt.Errorf("database %s: the server has not loaded the engine of table %s: %s", d.Name(), table, rocksAdvice)
		case "TokuDB":
			return fmt.Errorf("database %s: table %s is of TokuDB, which is not supported because MariaDB has removed it: convert all tables with ALTER TABLE %s ENGINE = %s", d.Name(), table, table, d.engine)
		default:
			return fmt.Errorf("database %s: table %s is of %s, which cannot undo a transaction that was cut off: convert it with ALTER TABLE %s ENGINE = %s", d.Name(), table, engine, table, d.engine)
		}
	}
	if len(engines) > 1 {
		return fmt.Errorf("database %s: table %s is of InnoDB and table %s of RocksDB, but all must be of one engine: convert them with ALTER TABLE … ENGINE = …", d.Name(), engines[InnoDB], engines[RocksDB])
	}
	if d.tables != d.engine {
		d.log.Info("the tables keep their engine", "database", d.Name(), "engine", d.tables)
	}
	found := false
	err = c.Each("SELECT engine FROM information_schema.engines WHERE support IN ('YES', 'DEFAULT')", func(r *sqldb.Row) error {
		found = found || canonical(r.Text(0)) == d.tables
		return nil
	})
	if err != nil {
		return err
	}
	if !found {
		return fmt.Errorf("database %s: the server has no engine %s: %s", d.Name(), d.tables, rocksAdvice)
	}
	return d.checkDurable(c)
}

const rocksAdvice = "install its plugin (package mariadb-plugin-rocksdb, plugin-load-add = ha_rocksdb.so in section [mysqld]), or choose --engine InnoDB for a new database"

// canonical returns the name of an engine as it is written here.
func canonical(engine string) string {
	for _, e := range []string{InnoDB, RocksDB, "TokuDB"} {
		if strings.EqualFold(e, engine) {
			return e
		}
	}
	return engine
}

// checkDurable warns if what was committed may be lost at a power cut: the node would then differ
// from its replicas.
func (d *dialect) checkDurable(c *sqldb.Conn) error {
	v := map[string]string{}
	err := c.Each(serverSettings, func(r *sqldb.Row) error {
		v[strings.ToLower(r.Text(0))] = r.Text(1)
		return nil
	})
	if err != nil {
		return err
	}
	settings := d.volatileSettings(v)
	d.volatile.Store(len(settings) > 0)
	for _, s := range settings {
		d.log.Warn(fmt.Sprintf("commits are not durable: what was committed may be lost at a power cut, unless %s is 1 (in section [mysqld] of the server's configuration)", s), "database", d.Name(), s, v[s])
	}
	return nil
}

// volatileSettings returns which settings make commits not durable.
func (d *dialect) volatileSettings(v map[string]string) []string {
	settings := []string{strings.ToLower(d.tables) + "_flush_log_at_trx_commit"}
	if isOn(v["log_bin"]) {
		settings = append(settings, "sync_binlog")
	}
	return slices.DeleteFunc(settings, func(s string) bool { return v[s] == "1" })
}
