package sqlitedb

import (
	"context"
	"database/sql/driver"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

var update = flag.Bool("update", false, "rewrite golden files")

const samples = "../../../testdata/sql/"

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// script runs statements on a file with the settings of SQLite, which are also
// those of the Python implementation.
func script(t *testing.T, path, text string) {
	t.Helper()
	dc, err := openDriver(name{path: path}.dsn())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := dc.(driver.ExecerContext).ExecContext(context.Background(), text, nil); err != nil {
		t.Fatal(err)
	}
	if err := dc.Close(); err != nil {
		t.Fatal(err)
	}
}

// query returns the rows of a query as text.
func query(t *testing.T, path, text string) []string {
	t.Helper()
	dc, err := openDriver(name{path: path}.dsn())
	if err != nil {
		t.Fatal(err)
	}
	defer dc.Close()
	rows, err := dc.(driver.QueryerContext).QueryContext(context.Background(), text, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var lines []string
	for {
		values := make([]driver.Value, len(rows.Columns()))
		if err := rows.Next(values); err == io.EOF {
			return lines
		} else if err != nil {
			t.Fatal(err)
		}
		var texts []string
		for _, v := range values {
			if b, ok := v.([]byte); ok {
				v = string(b)
			}
			texts = append(texts, fmt.Sprint(v))
		}
		lines = append(lines, strings.Join(texts, " "))
	}
}

// schema describes the tables of a file as text.
func schema(t *testing.T, path string) string {
	var b strings.Builder
	for _, table := range query(t, path, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name") {
		rowid := "rowid"
		if strings.HasSuffix(query(t, path, "SELECT wr FROM pragma_table_list WHERE name = '"+table+"'")[0], "1") {
			rowid = "without rowid"
		}
		fmt.Fprintf(&b, "%s (%s)\n", table, rowid)
		for _, c := range query(t, path, `SELECT name, type, "notnull", pk, dflt_value FROM pragma_table_info('`+table+"')") {
			fmt.Fprintf(&b, "\t%s\n", c)
		}
		for _, i := range query(t, path, `SELECT name, "unique", origin FROM pragma_index_list('`+table+"') ORDER BY name") {
			columns := query(t, path, "SELECT name FROM pragma_index_info('"+strings.Fields(i)[0]+"')")
			fmt.Fprintf(&b, "\tindex %s: %s\n", i, strings.Join(columns, ","))
		}
	}
	return b.String()
}

func mustOpen(t *testing.T, path string, o Options) *sqldb.DB {
	t.Helper()
	db, err := Open(context.Background(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// mustOpenSample makes the database of backendtest.PrepareSample.
func mustOpenSample(t *testing.T, path string, opts Options) *sqldb.DB {
	t.Helper()
	db := mustOpen(t, path, opts)
	must(t, backendtest.PrepareSample(db))
	return db
}

// mustAdd adds a transaction that writes one object, and commits nothing.
func mustAdd(t *testing.T, db *sqldb.DB, oid tid.OID, at tid.TID, data string) {
	t.Helper()
	must(t, db.AddObject(oid, at, proto.ObjectData{Checksum: sha(data), Data: []byte(data)}, nothing))
	must(t, db.AddTransaction(at, backend.Meta{OIDs: []tid.OID{oid}, TTID: at}, nil))
}

func mustClose(t *testing.T, db *sqldb.DB) {
	t.Helper()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// The tables are a contract with the Python implementation.
func TestSchema(t *testing.T) {
	dir := t.TempDir()
	ours, python, dedup := filepath.Join(dir, "ours"), filepath.Join(dir, "python"), filepath.Join(dir, "dedup")
	mustClose(t, mustOpen(t, ours, Options{}))
	script(t, python, readFile(t, samples+"neoppod-sqlite.sql"))
	got := schema(t, ours)
	if diff := cmp.Diff(schema(t, python), got); diff != "" {
		t.Errorf("tables differ from those of the Python implementation (-python +ours):\n%s", diff)
	}
	mustClose(t, mustOpen(t, dedup, Options{Dedup: true}))
	got += "\nwith dedup\n\n" + schema(t, dedup)
	golden := samples + "schema-sqlite.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o666); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(readFile(t, golden), got); diff != "" {
		t.Errorf("schema changed (-want +got):\n%s", diff)
	}
	if mode := query(t, ours, "PRAGMA journal_mode"); mode[0] != "wal" {
		t.Errorf("journal_mode %s", mode)
	}
	if size := query(t, ours, "PRAGMA page_size"); size[0] != "8192" {
		t.Errorf("page_size %s", size)
	}
	for _, p := range []string{"user_version", "application_id"} {
		if v := query(t, ours, "PRAGMA "+p); v[0] != "0" {
			t.Errorf("%s is %s", p, v)
		}
	}
}

// A database of the Python implementation opens as it is, and goes on.
func TestPythonDatabase(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	script(t, path, readFile(t, samples+"neoppod-sqlite.sql"))
	db := mustOpen(t, path, Options{})
	cfg, err := db.Config()
	if want := (backend.Config{Name: "sample", ID: 1, PTID: proto.Some(uint64(1))}); err != nil || cfg != want {
		t.Errorf("Config: %+v, %v, want %+v", cfg, err, want)
	}
	const (
		created = tid.TID(291935456464947763)
		changed = tid.TID(291935456465335020)
		undone  = tid.TID(291935456466422222)
		last    = tid.TID(291935456466879095)
		deleted = tid.TID(291935456467199400)
	)
	none := proto.Opt[tid.TID]{}
	o, err := db.GetObject(t.Context(), 1, none, proto.Some(last))
	if err != nil || o.Serial != undone || o.Next != last || o.DataSerial != created || o.Compression != 1 {
		t.Errorf("undone revision: %+v, %v", o, err)
	}
	first, err := db.GetObject(t.Context(), 1, proto.Some(created), none)
	if err != nil || first.Next != changed || first.Checksum != o.Checksum {
		t.Errorf("first revision: %+v, %v", first, err)
	}
	gone, err := db.GetObject(t.Context(), 2, none, none)
	if err != nil || gone.Serial != deleted || gone.Checksum != proto.ZeroHash || gone.Data != nil {
		t.Errorf("deleted object: %+v, %v", gone, err)
	}
	m, err := db.Transaction(t.Context(), created)
	if err != nil || string(m.User) != "/ joe" || string(m.Description) != "create" || len(m.OIDs) != 2 {
		t.Errorf("transaction: %+v, %v", m, err)
	}
	ids, err := db.LastIDs(t.Context())
	if want := (backend.LastIDs{TID: proto.Some(deleted), OID: proto.Some(tid.OID(2)), First: 291935456464505174}); err != nil || ids != want {
		t.Errorf("LastIDs: %+v, %v", ids, err)
	}
	h, err := db.UndoHistory(t.Context(), 1, changed)
	want := backend.UndoHistory{Found: true, Prev: proto.Some(created), Later: []backend.Later{{TID: undone, DataSerial: created}, {TID: last}}}
	if diff := cmp.Diff(want, h); diff != "" || err != nil {
		t.Errorf("UndoHistory: %v\n%s", err, diff)
	}
	// New data goes behind what is there.
	id, err := db.HoldData(1, proto.ObjectData{Checksum: sha("new"), Data: []byte("new")}, none)
	if want := (backend.DataID{ID: 1<<48 + 3, OK: true}); err != nil || id != want {
		t.Errorf("HoldData: %v, %v", id, err)
	}
	ttid := deleted + 3
	for _, err := range []error{
		db.Vote(ttid, []backend.Store{{OID: 1, Data: id}}, &backend.Meta{OIDs: []tid.OID{1}}, nil), db.Commit(),
		db.Lock(ttid, ttid, false), db.Unlock(ttid, ttid, true, true, false), db.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	db = mustOpen(t, path, Options{})
	if o, err := db.GetObject(t.Context(), 1, none, none); err != nil || string(o.Data) != "new" || o.Serial != ttid {
		t.Errorf("after reopening: %+v, %v", o, err)
	}
	mustClose(t, db)
	if size := query(t, path, "PRAGMA page_size"); size[0] != "4096" {
		t.Errorf("page_size %s of an old file", size)
	}
}

func TestMigration(t *testing.T) {
	old := readFile(t, samples+"version0-sqlite.sql")
	const (
		newObj = "CREATE TABLE new_obj (partition INTEGER NOT NULL, oid INTEGER NOT NULL, tid INTEGER NOT NULL," +
			" data_id INTEGER, value_tid INTEGER, PRIMARY KEY (partition, oid, tid)) WITHOUT ROWID;"
		version2 = newObj + "INSERT INTO new_obj SELECT * FROM obj; DROP TABLE obj; ALTER TABLE new_obj RENAME TO obj;"
		states   = "CASE state WHEN 0 THEN -1 WHEN 2 THEN -2 ELSE 1-state END"
	)
	// A migration may have been interrupted anywhere by the Python implementation,
	// which commits after each statement.
	for state, more := range map[string]string{
		"version 0": "",
		"rebuilding obj, copy not complete": "INSERT INTO config VALUES ('version', '1'); DROP TABLE ttrans;" +
			newObj +
			"INSERT INTO new_obj VALUES (0, 2, 10, 1, NULL)",
		"obj dropped, copy not renamed": "INSERT INTO config VALUES ('version', '1'); DROP TABLE ttrans;" +
			newObj +
			"INSERT INTO new_obj SELECT * FROM obj; DROP TABLE obj",
		"pt of version 3 done, version not stored": version2 + "INSERT INTO config VALUES ('version', '2');" +
			"CREATE TABLE new_pt (partition INTEGER NOT NULL, nid INTEGER NOT NULL, tid INTEGER NOT NULL, PRIMARY KEY (partition, nid)) WITHOUT ROWID;" +
			"INSERT INTO new_pt SELECT rid, nid, " + states + " FROM pt; DROP TABLE pt; ALTER TABLE new_pt RENAME TO pt",
		"pt of version 3 done, copy not renamed": version2 + "INSERT INTO config VALUES ('version', '2');" +
			"CREATE TABLE new_pt (partition INTEGER NOT NULL, nid INTEGER NOT NULL, tid INTEGER NOT NULL, pack INTEGER, PRIMARY KEY (partition, nid)) WITHOUT ROWID;" +
			"INSERT INTO new_pt SELECT rid, nid, " + states + ", NULL FROM pt; DROP TABLE pt",
		"pt of version 4 done, version not stored": version2 + "INSERT INTO config VALUES ('version', '3');" +
			"CREATE TABLE new_pt (partition INTEGER NOT NULL, nid INTEGER NOT NULL, tid INTEGER NOT NULL, pack INTEGER, PRIMARY KEY (partition, nid)) WITHOUT ROWID;" +
			"INSERT INTO new_pt SELECT rid, nid, " + states + ", CASE nid WHEN 2 THEN 0 END FROM pt; DROP TABLE pt; ALTER TABLE new_pt RENAME TO pt",
	} {
		t.Run(state, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			script(t, path, old+more)
			db := mustOpen(t, path, Options{})
			cells, err := db.Cells()
			want := []backend.Cell{
				{Partition: 0, ID: 2, State: proto.UpToDate}, {Partition: 0, ID: 3, State: proto.Feeding},
				{Partition: 1, ID: 2, State: proto.OutOfDate}, {Partition: 1, ID: 3, State: proto.UpToDate},
				{Partition: 1, ID: 4, State: proto.Corrupted},
			}
			if diff := cmp.Diff(want, cells); diff != "" || err != nil {
				t.Errorf("Cells: %v\n%s", err, diff)
			}
			packed, err := db.PackedIDs(false)
			if diff := cmp.Diff(map[int]tid.TID{0: 0, 1: 0}, packed); diff != "" || err != nil {
				t.Errorf("PackedIDs: %v\n%s", err, diff)
			}
			o, err := db.GetObject(t.Context(), 2, proto.Opt[tid.TID]{}, proto.Opt[tid.TID]{})
			if err != nil || o.Serial != 12 || o.DataSerial != 10 || string(o.Data) != "a" {
				t.Errorf("object: %+v, %v", o, err)
			}
			mustClose(t, db)
			if got := query(t, path, "SELECT value FROM config WHERE name IN ('version', 'partitions')"); len(got) != 1 || got[0] != "4" {
				t.Errorf("version %v", got)
			}
			if got := query(t, path, "SELECT name FROM pragma_table_info('obj') WHERE pk ORDER BY pk"); strings.Join(got, " ") != "partition oid tid" {
				t.Errorf("key of obj: %v", got)
			}
			if got := query(t, path, "SELECT sql FROM sqlite_master WHERE name = '_obj_i1'"); !strings.Contains(got[0], "(partition, tid, oid)") {
				t.Errorf("index of obj: %v", got)
			}
			mustClose(t, mustOpen(t, path, Options{}))
		})
	}
}

// The Python implementation leaves the pack orders of aborted transactions behind.
func TestStrayPackOrders(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	script(t, path, readFile(t, samples+"neoppod-sqlite.sql")+`
		UPDATE pt SET tid = 0 WHERE partition = 2;
		INSERT INTO pack VALUES (291935456467199400, 1, 0, NULL, 5), (300000000000000000, NULL, 0, NULL, 6),
			(300000000000000001, NULL, 1, X'0000000000000001', 6), (300000000000000002, NULL, 0, NULL, 6)`)
	db := mustOpen(t, path, Options{})
	orders, err := db.PackOrders(0)
	want := []proto.PackOrder{{ID: 291935456467199400, Approved: proto.Some(true), Time: 5}}
	if diff := cmp.Diff(want, orders); diff != "" || err != nil {
		t.Errorf("PackOrders: %v\n%s", err, diff)
	}
	if err := db.DropUnfinished(); err != nil {
		t.Fatal(err)
	}
	mustClose(t, db)
	// Of a partition that is not readable, the transaction may still be to come.
	if got := query(t, path, "SELECT tid FROM pack"); strings.Join(got, " ") != "291935456467199400 300000000000000002" {
		t.Errorf("left: %v", got)
	}
}

func TestRefusedDatabases(t *testing.T) {
	old := readFile(t, samples+"version0-sqlite.sql")
	for want, text := range map[string]string{
		"can not be downgraded":     "CREATE TABLE config (name TEXT NOT NULL PRIMARY KEY, value TEXT); INSERT INTO config VALUES ('version', '5')",
		"table ttrans is not empty": old + "INSERT INTO ttrans VALUES (0, 14, 0, X'', X'', X'', X'', 14)",
		"table tobj is not empty":   old + "INSERT INTO tobj VALUES (0, 2, 14, NULL, NULL)",
		"before NEO 1.0":            "CREATE TABLE config (name TEXT NOT NULL PRIMARY KEY, value TEXT); CREATE TABLE obj (partition INTEGER, oid INTEGER, tid INTEGER, hash BLOB)",
		"partition 40000 is beyond": readFile(t, samples+"neoppod-sqlite.sql") + "INSERT INTO pt VALUES (40000, 1, -1, 0)",
		"nid is \"x\"":              readFile(t, samples+"neoppod-sqlite.sql") + "UPDATE config SET value = 'x' WHERE name = 'nid'",
	} {
		path := filepath.Join(t.TempDir(), "db")
		script(t, path, text)
		db, err := Open(context.Background(), path, Options{})
		if err == nil {
			mustClose(t, db)
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%v, want an error that says %q and names the file", err, want)
		}
		// The lock was released.
		if _, err := Open(context.Background(), path, Options{}); errors.Is(err, backend.ErrLocked) {
			t.Error(err)
		}
	}
}
