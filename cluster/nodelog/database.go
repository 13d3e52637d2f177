package nodelog

import (
	"database/sql"
	_ "embed"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"path/filepath"
	"slices"
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
	path  string
	file  os.FileInfo // to see that another one has taken its path
	db    *sql.DB
	nodes map[nodeKey]int64 // rows of table node
}

// Result codes of SQLite.
const (
	codeError    = 1
	codeCorrupt  = 11
	codeFormat   = 24
	codeNotADB   = 26
	codeRollback = 8 | 3<<8 // a file that is only read needs to be rolled back
	codeMoved    = 8 | 4<<8 // the file is no longer at its path
)

// isDamage reports whether an error comes from what is in the file.
func isDamage(err error) bool {
	switch resultCode(err) & 0xff {
	case codeError, codeCorrupt, codeFormat, codeNotADB: // the first is of a wrong schema
		return true
	}
	return false
}

// errForeign reports a file that is a database of another kind, which a log must
// not touch.
var errForeign = errors.New("this is not a log database")

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

// openDatabase opens a log, creating it for its owner alone if needed. The journal
// gets the permissions of the file.
func openDatabase(path string, unbuffered bool, now time.Time) (*database, error) {
	if err := create(path); err != nil {
		return nil, fmt.Errorf("node log: %w", err)
	}
	file, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("node log: %w", err)
	}
	if !file.Mode().IsRegular() {
		return nil, fmt.Errorf("node log %s: not a regular file", path)
	}
	db, err := openSQL(path, "rw")
	if err != nil {
		return nil, err
	}
	d := &database{path: path, file: file, db: db, nodes: map[nodeKey]int64{}}
	if err := d.prepare(unbuffered, now); err != nil {
		return nil, errors.Join(fmt.Errorf("node log %s: %w", path, err), db.Close())
	}
	return d, nil
}

// create makes an empty file if there is none. It looks into one that is there
// only before this process has opened it as a database: to close it later would
// end the locks that SQLite has on it.
func create(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return f.Close()
}

// moved reports whether the file is no longer at its path.
func (d *database) moved() bool {
	now, err := os.Stat(d.path)
	return err != nil || !os.SameFile(now, d.file)
}

// putAside renames a damaged log with its journal, and returns the new name.
func putAside(path string, now time.Time) (string, error) {
	base := path + ".damaged-" + now.Format("20060102-150405")
	name := base
	for i := 2; ; i++ {
		if _, err := os.Lstat(name); errors.Is(err, os.ErrNotExist) {
			break
		}
		name = fmt.Sprintf("%s-%d", base, i)
	}
	if err := os.Rename(path, name); err != nil {
		return "", err
	}
	// Those of the old file would be taken for those of the new one.
	for _, suffix := range []string{"-journal", "-wal", "-shm"} {
		if err := os.Rename(path+suffix, name+suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
	}
	return name, nil
}

func (d *database) prepare(unbuffered bool, now time.Time) error {
	// A journal beside the file, so that a process that is killed leaves a whole
	// one. SQLite refuses to write once the file was renamed.
	pragmas := []string{`PRAGMA busy_timeout = 10000`, `PRAGMA journal_mode = DELETE`, `PRAGMA synchronous = NORMAL`}
	if unbuffered {
		pragmas = append(pragmas, `PRAGMA synchronous = OFF`)
	}
	for _, s := range pragmas {
		if _, err := d.db.Exec(s); err != nil {
			return err
		}
	}
	if err := d.checkTables(); err != nil {
		return err
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

// checkTables refuses the database of something else.
func (d *database) checkTables() error {
	rows, err := d.db.Query(`SELECT name FROM sqlite_master WHERE type = 'table'`)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		if !slices.Contains([]string{"log", "packet", "node", "protocol", "log1", "packet1"}, name) {
			return fmt.Errorf("%w: it has a table %q; choose another file for the log", errForeign, name)
		}
	}
	return rows.Err()
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
		d.nodes[nodeKey{name, cluster, nid}] = id
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
	added := map[nodeKey]bool{}
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
		node, err := d.nodeRow(tx, e.node, added)
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

// nodeKey is a row of table node.
type nodeKey struct {
	name, cluster sql.NullString
	nid           sql.NullInt32
}

// key returns the row of an identity. The Python implementation's neolog fails on
// a node id before it has met a packet, and here records are there without their
// packets: the id is written as the name that neolog would show for it.
func (id *identity) key() nodeKey {
	name := id.name
	if id.nid != 0 {
		name = nodeName(id.nid)
	}
	return nodeKey{
		name:    sql.NullString{String: name, Valid: name != ""},
		cluster: sql.NullString{String: id.cluster, Valid: id.cluster != ""},
	}
}

// nodeRow returns the row of table node for an identity, adding it if needed.
func (d *database) nodeRow(tx *sql.Tx, id *identity, added map[nodeKey]bool) (any, error) {
	if !id.known {
		return nil, nil
	}
	key := id.key()
	if row, ok := d.nodes[key]; ok {
		return row, nil
	}
	row := int64(len(d.nodes)) // from 0, never deleted
	if _, err := tx.Exec(`INSERT INTO node VALUES (?, ?, ?, ?)`, row, key.name, key.cluster, key.nid); err != nil {
		return nil, err
	}
	d.nodes[key], added[key] = row, true
	return row, nil
}

// inMemory keeps the journal in memory from now on: the only way to write to a
// file that was renamed.
func (d *database) inMemory() error {
	_, err := d.db.Exec(`PRAGMA journal_mode = MEMORY`)
	return err
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
