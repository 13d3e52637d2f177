package nodelog

import (
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"net/url"
	"path/filepath"
	"time"
)

// protocolText is protocol.py, compressed: what the Python implementation's
// neolog executes to decode packets.
//
//go:embed protocol.py.bz2
var protocolText []byte

// The tables, as the Python implementation has them.
var tables = []string{
	`CREATE TABLE IF NOT EXISTS log (date REAL PRIMARY KEY, node INTEGER, level INTEGER NOT NULL, pathname TEXT, lineno INTEGER, msg TEXT) WITHOUT ROWID`,
	`CREATE TABLE IF NOT EXISTS packet (date REAL PRIMARY KEY, node INTEGER, msg_id INTEGER NOT NULL, code INTEGER NOT NULL, peer TEXT NOT NULL, body BLOB) WITHOUT ROWID`,
	`CREATE TABLE IF NOT EXISTS node (id INTEGER PRIMARY KEY, name TEXT, cluster TEXT, nid INTEGER)`,
	`CREATE TABLE IF NOT EXISTS protocol (date REAL PRIMARY KEY, text BLOB NOT NULL) WITHOUT ROWID`,
}

// database is one log file.
type database struct {
	db    *sql.DB
	nodes map[identity]int64 // rows of table node
}

// openSQL opens a file with one connection. mode is that of SQLite URIs.
func openSQL(path, mode string) (*sql.DB, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("node log: %w", err)
	}
	uri := url.URL{Scheme: "file", Path: abs, RawQuery: "mode=" + mode}
	db, err := sql.Open(driverName, uri.String())
	if err != nil {
		return nil, fmt.Errorf("node log %s: %w", path, err)
	}
	db.SetMaxOpenConns(1)
	return db, nil
}

func openDatabase(path string, unbuffered bool, now time.Time) (*database, error) {
	db, err := openSQL(path, "rwc")
	if err != nil {
		return nil, err
	}
	d := &database{db, map[identity]int64{}}
	if err := d.prepare(unbuffered, now); err != nil {
		return nil, errors.Join(fmt.Errorf("node log %s: %w", path, err), db.Close())
	}
	return d, nil
}

func (d *database) prepare(unbuffered bool, now time.Time) error {
	// In memory, because the file may be renamed while it is open: a journal
	// beside it would not be found by its name.
	pragmas := []string{`PRAGMA busy_timeout = 10000`, `PRAGMA journal_mode = MEMORY`}
	if unbuffered {
		pragmas = append(pragmas, `PRAGMA synchronous = OFF`)
	}
	for _, s := range pragmas {
		if _, err := d.db.Exec(s); err != nil {
			return err
		}
	}
	for _, table := range []string{"log", "packet"} {
		if err := d.renameOld(table); err != nil {
			return err
		}
	}
	for _, s := range tables {
		if _, err := d.db.Exec(s); err != nil {
			return err
		}
	}
	if err := d.loadNodes(); err != nil {
		return err
	}
	return d.addProtocol(now)
}

// renameOld puts aside a table in the format with a column "name", which neolog
// goes on to read as log1 or packet1.
func (d *database) renameOld(table string) error {
	var n int
	err := d.db.QueryRow(`SELECT count(*) FROM pragma_table_info(?) WHERE name = 'name'`, table).Scan(&n)
	if err == nil && n > 0 {
		_, err = d.db.Exec(`ALTER TABLE ` + table + ` RENAME TO ` + table + `1`)
	}
	return err
}

func (d *database) loadNodes() error {
	rows, err := d.db.Query(`SELECT id, name, cluster, nid FROM node`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var id int64
		var name, cluster sql.NullString
		var nid sql.NullInt32
		if err := rows.Scan(&id, &name, &cluster, &nid); err != nil {
			return err
		}
		d.nodes[identity{name.String, cluster.String, nid.Int32, true}] = id
	}
	return rows.Err()
}

// addProtocol says from which date packets are of our protocol.
func (d *database) addProtocol(now time.Time) error {
	var last []byte
	date := unix(now)
	err := d.db.QueryRow(`SELECT text FROM protocol ORDER BY date DESC LIMIT 1`).Scan(&last)
	switch {
	case errors.Is(err, sql.ErrNoRows):
		date = 0
	case err != nil:
		return err
	case string(last) == string(protocolText):
		return nil
	}
	_, err = d.db.Exec(`INSERT OR REPLACE INTO protocol VALUES (?, ?)`, date, protocolText)
	return err
}

// write adds entries, all or none.
func (d *database) write(entries []entry) (err error) {
	if len(entries) == 0 {
		return nil
	}
	tx, err := d.db.Begin()
	if err != nil {
		return err
	}
	added := map[identity]int64{}
	defer func() {
		if err != nil {
			err = errors.Join(err, tx.Rollback())
			for id := range added {
				delete(d.nodes, id)
			}
		}
	}()
	logs, err := tx.Prepare(`INSERT OR IGNORE INTO log VALUES (?, ?, ?, ?, ?, ?)`)
	if err != nil {
		return err
	}
	packets, err := tx.Prepare(`INSERT OR IGNORE INTO packet VALUES (?, ?, ?, ?, ?, ?)`)
	if err != nil {
		return err
	}
	for i := range entries {
		e := &entries[i]
		node, err := d.nodeRow(tx, *e.node, added)
		if err != nil {
			return err
		}
		if p := e.packet; p != nil {
			peer := "< " + p.Peer
			if p.Sent {
				peer = "> " + p.Peer
			}
			err = insert(packets, e.date, node, p.MsgID, p.Code, peer, p.Body)
		} else {
			err = insert(logs, e.date, node, e.record.level, e.record.path, e.record.line, e.record.msg)
		}
		if err != nil {
			return err
		}
	}
	return tx.Commit()
}

// insert adds a row, at the next free date if another one has this date.
func insert(s *sql.Stmt, date float64, values ...any) error {
	for {
		res, err := s.Exec(append([]any{date}, values...)...)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); n > 0 || err != nil {
			return err
		}
		date = math.Nextafter(date, math.Inf(1))
	}
}

// nodeRow returns the row of table node for an identity, adding it if needed.
func (d *database) nodeRow(tx *sql.Tx, id identity, added map[identity]int64) (any, error) {
	if !id.known {
		return nil, nil
	}
	if row, ok := d.nodes[id]; ok {
		return row, nil
	}
	row := int64(len(d.nodes)) // from 0, never deleted
	_, err := tx.Exec(`INSERT INTO node VALUES (?, ?, ?, ?)`, row,
		sql.NullString{String: id.name, Valid: id.name != ""},
		sql.NullString{String: id.cluster, Valid: id.cluster != ""},
		sql.NullInt32{Int32: id.nid, Valid: id.nid != 0})
	if err != nil {
		return nil, err
	}
	d.nodes[id], added[id] = row, row
	return row, nil
}

// retire closes a file that was rotated. Without packets it needs no protocol.
func (d *database) retire() error {
	var one int
	err := d.db.QueryRow(`SELECT 1 FROM packet LIMIT 1`).Scan(&one)
	if errors.Is(err, sql.ErrNoRows) {
		if _, err = d.db.Exec(`DROP TABLE protocol`); err == nil {
			_, err = d.db.Exec(`VACUUM`)
		}
	}
	return errors.Join(err, d.close())
}

func (d *database) close() error { return d.db.Close() }
