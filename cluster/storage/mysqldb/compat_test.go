package mysqldb

import (
	"bytes"
	"context"
	"crypto/sha1"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/mysqldb/mysqltest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

var update = flag.Bool("update", false, "rewrite golden files")

const samples = "../../../testdata/sql/"

var none proto.Opt[tid.TID]

func sha(s string) proto.Hash { return sha1.Sum([]byte(s)) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func readFile(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	must(t, err)
	return string(b)
}

// testDatabase is a database of the server that the tests share.
type testDatabase struct {
	*mysqltest.Server
	t    *testing.T
	name string
}

func newTestDatabase(t *testing.T) testDatabase {
	t.Helper()
	s := mysqltest.Get(t)
	return testDatabase{s, t, s.Database(t)}
}

func (d testDatabase) exec(statements string)      { d.t.Helper(); d.Exec(d.t, d.name, statements) }
func (d testDatabase) query(query string) []string { d.t.Helper(); return d.Query(d.t, d.name, query) }
func (d testDatabase) url() string                 { return d.String(d.name) }
func (d testDatabase) open(o Options) (*sqldb.DB, error) {
	return Open(context.Background(), d.url(), o)
}

func (d testDatabase) mustOpen(o Options) *sqldb.DB {
	d.t.Helper()
	db, err := d.open(o)
	must(d.t, err)
	d.t.Cleanup(func() {
		if err := db.Close(); err != nil {
			d.t.Error(err)
		}
	})
	return db
}

var anyCharset = regexp.MustCompile(` DEFAULT CHARSET=\w+( COLLATE=\w+)?`)

// schema describes the tables as text, apart from the character set, which no column has.
func (d testDatabase) schema() string {
	d.t.Helper()
	var b strings.Builder
	for _, table := range d.query("SHOW TABLES") {
		create := d.query("SHOW CREATE TABLE `" + table + "`")[0]
		fmt.Fprintln(&b, anyCharset.ReplaceAllString(strings.TrimPrefix(create, table+" "), ""))
	}
	return b.String()
}

// The tables are a contract with the Python implementation.
func TestSchema(t *testing.T) {
	got := ""
	for _, engine := range []string{InnoDB, RocksDB} {
		ours, python, dedup := newTestDatabase(t), newTestDatabase(t), newTestDatabase(t)
		must(t, ours.mustOpen(Options{Engine: engine}).Close())
		python.exec(readFile(t, samples+"neoppod-"+strings.ToLower(engine)+".sql"))
		schema := ours.schema()
		if diff := cmp.Diff(python.schema(), schema); diff != "" {
			t.Errorf("%s: tables differ from those of the Python implementation (-python +ours):\n%s", engine, diff)
		}
		must(t, dedup.mustOpen(Options{Engine: engine, Dedup: true}).Close())
		got += schema + "\nwith dedup\n\n" + dedup.query("SHOW CREATE TABLE data")[0] + "\n\n"
	}
	got = anyCharset.ReplaceAllString(got, "")
	golden := samples + "schema-mysql.golden"
	if *update {
		must(t, os.WriteFile(golden, []byte(got), 0o666))
	}
	if diff := cmp.Diff(readFile(t, golden), got); diff != "" {
		t.Errorf("schema changed (-want +got):\n%s", diff)
	}
}

// A database of the Python implementation opens as it is, and goes on. Its last transaction, a
// deletion, was locked, but not moved, when the process ended.
func TestPythonDatabase(t *testing.T) {
	for _, engine := range []string{"innodb", "rocksdb"} {
		d := newTestDatabase(t)
		d.exec(readFile(t, samples+"neoppod-"+engine+".sql"))
		ids := strings.Fields(strings.Join(d.query("SELECT tid FROM obj WHERE oid = 1 ORDER BY tid"), " "))
		pending := strings.Fields(d.query("SELECT ttid, tid FROM ttrans")[0])
		at := func(s string) tid.TID {
			var n uint64
			_, err := fmt.Sscan(s, &n)
			must(t, err)
			return tid.TID(n)
		}
		created, changed, undone, last := at(ids[0]), at(ids[1]), at(ids[2]), at(ids[3])
		ttid, deleted := at(pending[0]), at(pending[1])
		db := d.mustOpen(Options{})
		cfg, err := db.Config()
		if want := (backend.Config{Name: "bench", ID: 1, PTID: proto.Some(uint64(1))}); err != nil || cfg != want {
			t.Errorf("Config: %+v, %v, want %+v", cfg, err, want)
		}
		o, err := db.GetObject(t.Context(), 1, none, proto.Some(last))
		if err != nil || o.Serial != undone || o.Next != last || o.DataSerial != created || o.Compression != 1 || sha1.Sum(o.Data) != o.Checksum {
			t.Errorf("undone revision: %+v, %v", o, err)
		}
		first, err := db.GetObject(t.Context(), 1, proto.Some(created), none)
		if err != nil || first.Next != changed || first.Checksum != o.Checksum {
			t.Errorf("first revision: %+v, %v", first, err)
		}
		found, err := db.Unfinished()
		if diff := cmp.Diff(map[tid.TID]proto.Opt[tid.TID]{ttid: proto.Some(deleted)}, found); diff != "" || err != nil {
			t.Errorf("Unfinished: %v, %v", diff, err)
		}
		must(t, db.Validate(ttid, deleted))
		must(t, db.DropUnfinished())
		if o, err := db.GetObject(t.Context(), 2, none, none); err != nil || o.Serial != deleted || o.Checksum != proto.ZeroHash {
			t.Errorf("deleted object: %+v, %v", o, err)
		}
		for id, err := range db.Orphans(t.Context()) {
			t.Errorf("orphan %v, %v", id, err)
		}
		// New data goes behind what is there.
		id, err := db.HoldData(1, proto.ObjectData{Checksum: sha("new"), Data: []byte("new")}, none)
		if want := (backend.DataID{ID: 1<<48 + 3, OK: true}); err != nil || id != want {
			t.Errorf("HoldData: %v, %v", id, err)
		}
		next := deleted + 3
		must(t, db.Vote(next, []backend.Store{{OID: 1, Data: id}}, &backend.Meta{OIDs: []tid.OID{1}}, nil))
		must(t, errors.Join(db.Commit(), db.Lock(next, next, false), db.Unlock(next, next, true, true, false), db.Close()))
		db = d.mustOpen(Options{})
		if o, err := db.GetObject(t.Context(), 1, none, none); err != nil || string(o.Data) != "new" || o.Serial != next {
			t.Errorf("after reopening: %+v, %v", o, err)
		}
	}
}

func TestMigration(t *testing.T) {
	old := readFile(t, samples+"version0-mysql.sql")
	const (
		newObj = "CREATE TABLE new_obj (`partition` SMALLINT UNSIGNED NOT NULL, oid BIGINT UNSIGNED NOT NULL, tid BIGINT UNSIGNED NOT NULL," +
			" data_id BIGINT UNSIGNED, value_tid BIGINT UNSIGNED, PRIMARY KEY (`partition`, oid, tid), KEY tid (`partition`, tid, oid), KEY (data_id)) ENGINE = InnoDB;"
		version2 = newObj + "INSERT INTO new_obj SELECT * FROM obj; DROP TABLE obj; ALTER TABLE new_obj RENAME TO obj;"
		newPT    = "CREATE TABLE new_pt (`partition` SMALLINT UNSIGNED NOT NULL, nid INT NOT NULL, tid BIGINT NOT NULL, "
		states   = "CASE state WHEN 0 THEN -1 WHEN 2 THEN -2 ELSE 1 - CAST(state AS SIGNED) END"
	)
	// A migration may have been interrupted anywhere: each statement that changes a table is
	// committed with what was before it.
	for state, more := range map[string]string{
		"version 0": "",
		"rebuilding obj, copy not complete": "INSERT INTO config VALUES ('version', '1'); DROP TABLE ttrans;" +
			newObj + "INSERT INTO new_obj VALUES (0, 2, 10, 1, NULL)",
		"obj dropped, copy not renamed": "INSERT INTO config VALUES ('version', '1'); DROP TABLE ttrans;" +
			newObj + "INSERT INTO new_obj SELECT * FROM obj; DROP TABLE obj",
		"pt of version 3 done, version not stored": version2 + "INSERT INTO config VALUES ('version', '2');" +
			newPT + "PRIMARY KEY (`partition`, nid)) ENGINE = InnoDB; INSERT INTO new_pt SELECT rid, nid, " + states + " FROM pt; DROP TABLE pt; ALTER TABLE new_pt RENAME TO pt",
		"pt of version 4 done, version not stored": version2 + "INSERT INTO config VALUES ('version', '3');" +
			newPT + "pack BIGINT UNSIGNED, PRIMARY KEY (`partition`, nid)) ENGINE = InnoDB;" +
			"INSERT INTO new_pt SELECT rid, nid, " + states + ", CASE nid WHEN 2 THEN 0 END FROM pt; DROP TABLE pt; ALTER TABLE new_pt RENAME TO pt",
	} {
		t.Run(state, func(t *testing.T) {
			d := newTestDatabase(t)
			d.exec(old + more)
			checkMigrated(d, d.mustOpen(Options{Engine: RocksDB})) // the tables keep their engine
		})
	}
}

// A migration that is interrupted at any of its statements goes on at the next start.
func TestMigrationInterrupted(t *testing.T) {
	for n, done := 0, false; !done; n++ {
		d := newTestDatabase(t)
		d.exec(readFile(t, samples+"version0-mysql.sql"))
		md, err := newDialect(d.url(), Options{})
		must(t, err)
		x := &interrupted{dialect: md, left: n}
		db, err := sqldb.Open(t.Context(), x, sqldb.Options{})
		if done = err == nil; done {
			x.left = 1 << 30
			must(t, db.Close())
			if n < 20 {
				t.Errorf("a migration has only %d statements", n)
			}
		} else if !errors.Is(err, errInterrupted) {
			t.Fatalf("statement %d: %v", n, err)
		}
		checkMigrated(d, d.mustOpen(Options{}))
	}
}

// An erasure that is interrupted at any of its statements has not begun, or ends at the next start.
func TestErasureInterrupted(t *testing.T) {
	for n, done := 0, false; !done; n++ {
		d := newTestDatabase(t)
		md, err := newDialect(d.url(), Options{})
		must(t, err)
		x := &interrupted{dialect: md, left: 1 << 30}
		db, err := sqldb.Open(t.Context(), x, sqldb.Options{})
		must(t, err)
		must(t, backendtest.PrepareSample(db))
		must(t, db.Commit())
		x.left = n
		err = db.Erase()
		if done = err == nil; !done && !errors.Is(err, errInterrupted) {
			t.Fatalf("statement %d: %v", n, err)
		}
		x.left = 1 << 30
		_ = db.Close() // in vain, unless it was erased
		db = d.mustOpen(Options{})
		cfg, err := db.Config()
		must(t, err)
		if cfg.ID != 0 {
			if err := backendtest.CheckSample(db, 8, false); err != nil {
				t.Errorf("statement %d: neither there nor erased: %v", n, err)
			}
		} else {
			for _, table := range []string{"pt", "trans", "obj", "data"} {
				if got := d.query("SELECT COUNT(*) FROM " + table)[0]; got != "0" {
					t.Errorf("statement %d: erased, but table %s has %s rows", n, table, got)
				}
			}
			if got := d.query("SELECT name FROM config"); strings.Join(got, " ") != "opened version" {
				t.Errorf("statement %d: configuration %v", n, got)
			}
		}
		must(t, db.Close())
	}
}

func checkMigrated(d testDatabase, db *sqldb.DB) {
	t := d.t
	t.Helper()
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
	o, err := db.GetObject(t.Context(), 2, none, none)
	if err != nil || o.Serial != 12 || o.DataSerial != 10 || string(o.Data) != "a" {
		t.Errorf("object: %+v, %v", o, err)
	}
	must(t, db.Close())
	if got := d.query("SELECT name, value FROM config WHERE name IN ('version', 'partitions')"); len(got) != 1 || got[0] != "version 4" {
		t.Errorf("version %v", got)
	}
	if got := d.query("SELECT column_name FROM information_schema.statistics WHERE table_schema = DATABASE() AND table_name = 'obj' AND index_name = 'PRIMARY' ORDER BY seq_in_index"); strings.Join(got, " ") != "partition oid tid" {
		t.Errorf("key of obj: %v", got)
	}
	if got := d.query("SELECT DISTINCT engine FROM information_schema.tables WHERE table_schema = DATABASE()"); len(got) != 1 || got[0] != "InnoDB" {
		t.Errorf("engines %v", got)
	}
	must(t, d.mustOpen(Options{}).Close())
}

func TestRefusedDatabases(t *testing.T) {
	old := readFile(t, samples+"version0-mysql.sql")
	python := readFile(t, samples+"neoppod-innodb.sql")
	config := "CREATE TABLE config (name VARBINARY(255) NOT NULL PRIMARY KEY, value VARBINARY(255)) ENGINE = "
	for want, text := range map[string]string{
		"can not be downgraded":               config + "InnoDB; INSERT INTO config VALUES ('version', '5')",
		"table ttrans is not empty":           old + "INSERT INTO ttrans VALUES (0, 14, 0, X'', X'', X'', X'', 14)",
		"table tobj is not empty":             old + "INSERT INTO tobj VALUES (0, 2, 14, NULL, NULL)",
		"before NEO 1.0":                      config + "InnoDB; CREATE TABLE obj (`partition` INT, oid BIGINT, tid BIGINT, hash BLOB)",
		"partition 40000 is beyond":           python + "INSERT INTO pt VALUES (40000, 1, -1, 0)",
		"nid is \"x\"":                        python + "UPDATE config SET value = 'x' WHERE name = 'nid'",
		"ALTER TABLE config ENGINE = RocksDB": config + "MyISAM",
		"must be of one engine":               config + "InnoDB; CREATE TABLE pack (tid BIGINT UNSIGNED NOT NULL PRIMARY KEY) ENGINE = RocksDB",
	} {
		d := newTestDatabase(t)
		d.exec(text)
		db, err := d.open(Options{Engine: RocksDB})
		if err == nil {
			must(t, db.Close())
		}
		if err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), d.name) {
			t.Errorf("%v, want an error that says %q and names the database", err, want)
		}
		// The lock was released.
		if _, err := d.open(Options{}); errors.Is(err, backend.ErrLocked) {
			t.Error(err)
		}
	}
}

// Whether data is deduplicated, and by which engine they are stored, is decided by the
// tables, which an erase makes anew.
func TestErase(t *testing.T) {
	d := newTestDatabase(t)
	made := func() string {
		return d.query("SELECT engine FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = 'data'")[0] +
			strings.Join(d.query("SELECT ' dedup' FROM information_schema.statistics WHERE table_schema = DATABASE() AND index_name = 'hash' AND seq_in_index = 1"), "")
	}
	for _, tt := range []struct {
		o     Options
		erase bool
		want  string
	}{
		{Options{Dedup: true}, false, "InnoDB dedup"},
		{Options{}, false, "InnoDB dedup"},
		{Options{Engine: RocksDB}, false, "InnoDB dedup"},
		{Options{Engine: RocksDB}, true, "ROCKSDB"},
		{Options{Dedup: true}, false, "ROCKSDB"},
		{Options{Dedup: true}, true, "InnoDB dedup"},
	} {
		db := d.mustOpen(tt.o)
		must(t, backendtest.PrepareSample(db))
		if _, err := db.GetObject(t.Context(), 1, none, none); err != nil { // a reader has the tables open
			t.Fatal(err)
		}
		if tt.erase {
			must(t, db.Erase())
			if cfg, err := db.Config(); err != nil || cfg.PTID.OK {
				t.Errorf("erased: %+v, %v", cfg, err)
			}
		}
		must(t, db.Close())
		if got := made(); got != tt.want {
			t.Errorf("%+v, erase %v: %q, want %q", tt.o, tt.erase, got, tt.want)
		}
	}
	if got := d.query("SHOW TABLES"); len(got) != len(tables) {
		t.Errorf("tables %v", got)
	}
}

// A value of table config may be longer than its column.
func TestLongConfiguration(t *testing.T) {
	d := newTestDatabase(t)
	db := d.mustOpen(Options{})
	must(t, backendtest.PrepareSample(db))
	for _, n := range []int{255, 256, 65000, 70000} {
		state := strings.Repeat("é", n/2) + strings.Repeat("x", n%2)
		must(t, db.SetImportProgress(proto.Some(state)))
		must(t, db.Commit())
		if got, err := db.ImportProgress(); err != nil || got.V != state {
			t.Errorf("%d bytes: %d, %v", n, len(got.V), err)
		}
	}
	if got := d.query("SELECT column_type FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = 'config'"); strings.Join(got, " ") != "varbinary(255) mediumblob" {
		t.Errorf("columns %v", got)
	}
}

// Metadata may be as long as in a Data.fs, and lists of objects as a column has room for. What is longer is
// refused with the vote, and the database goes on.
func TestLongMetadata(t *testing.T) {
	db := newTestDatabase(t).mustOpen(Options{})
	must(t, backendtest.PrepareSample(db))
	long := bytes.Repeat([]byte("x"), 65535)
	must(t, db.Vote(8, nil, &backend.Meta{User: long, Description: long, Extension: long}, nil))
	must(t, errors.Join(db.Lock(8, 8, false), db.Unlock(8, 8, true, false, false), db.Commit()))
	if m, err := db.Transaction(t.Context(), 8); err != nil || !bytes.Equal(m.Description, long) {
		t.Errorf("%d bytes, %v", len(m.Description), err)
	}
	if err := db.Vote(12, nil, &backend.Meta{Description: append(long, 'x')}, nil); !errors.Is(err, backend.ErrTooLong) {
		t.Errorf("error %v, want %v", err, backend.ErrTooLong)
	}
	many := make([]tid.OID, 1<<21)
	must(t, db.Vote(12, nil, &backend.Meta{OIDs: many[1:]}, &proto.PackRequest{OIDs: many[1:], Time: 8}))
	must(t, errors.Join(db.Commit(), db.Abort(12), db.Commit()))
	for _, err := range []error{
		db.Vote(16, nil, &backend.Meta{OIDs: many}, nil),
		db.Vote(16, nil, &backend.Meta{}, &proto.PackRequest{OIDs: many, Time: 8}),
	} {
		if !errors.Is(err, backend.ErrTooLong) {
			t.Errorf("error %v, want %v", err, backend.ErrTooLong)
		}
	}
	must(t, db.Commit())
	if found, err := db.Unfinished(); err != nil || len(found) > 0 {
		t.Errorf("unfinished: %v, %v", found, err)
	}
}

// What is copied from elsewhere was committed there, in databases with room for it: the columns get
// longer. Readers go on, and so does what is pending.
func TestLongMetadataIsCopied(t *testing.T) {
	for _, engine := range []string{InnoDB, RocksDB} {
		t.Run(engine, func(t *testing.T) {
			d := newTestDatabase(t)
			db := d.mustOpen(Options{Engine: engine})
			must(t, backendtest.PrepareSample(db))
			must(t, db.Vote(100, nil, &backend.Meta{Description: []byte("pending")}, nil))
			read := func() {
				t.Helper()
				if _, err := db.Transaction(t.Context(), 4); err != nil {
					t.Fatal(err)
				}
			}
			read() // this connection has seen the table as it was
			data := bytes.Repeat([]byte("x"), 17<<20)
			many := make([]tid.OID, 1<<21+5)
			for i := range many {
				many[i] = tid.OID(i)
			}
			wide := map[tid.TID]backend.Meta{
				8:  {User: data[:65536], Description: []byte{}, Extension: []byte{}, TTID: 8, OIDs: []tid.OID{}},
				12: {User: []byte{}, Description: data[:70000], Extension: data, TTID: 12, OIDs: []tid.OID{}},
				16: {User: []byte{}, Description: []byte{}, Extension: []byte{}, TTID: 16, OIDs: many},
			}
			for _, at := range []tid.TID{8, 12, 16} {
				var pack *proto.PackState
				if at == 16 {
					pack = &proto.PackState{Partial: true, OIDs: many, Time: 8}
				}
				must(t, db.AddTransaction(at, wide[at], pack))
				must(t, db.Commit())
				read()
			}
			must(t, db.AddTransaction(12, wide[12], nil)) // comes again
			must(t, db.Commit())
			check := func(db *sqldb.DB) {
				t.Helper()
				for at, want := range wide {
					m, pack, err := db.FetchTransaction(t.Context(), at)
					same := bytes.Equal(m.User, want.User) && bytes.Equal(m.Description, want.Description) && bytes.Equal(m.Extension, want.Extension)
					if err != nil || !same || !slices.Equal(m.OIDs, want.OIDs) {
						t.Errorf("transaction %v differs, %v", at, err)
					}
					if at == 16 && (pack == nil || len(pack.OIDs) != len(many)) {
						t.Errorf("pack order %.100v", pack)
					}
				}
				if found, err := db.Unfinished(); err != nil || len(found) != 1 {
					t.Errorf("unfinished: %v, %v", found, err)
				}
			}
			check(db)
			must(t, db.Close())
			db = d.mustOpen(Options{})
			check(db)
			q := "SELECT column_name, column_type, is_nullable FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name IN ('trans', 'pack') AND column_type LIKE '%blob' ORDER BY 1, 2"
			want := "description mediumblob NO,ext longblob NO,oids longblob NO,oids longblob YES,user mediumblob NO"
			if got := strings.Join(d.query(q), ","); got != want {
				t.Errorf("columns %s, want %s", got, want)
			}
			// The server takes no row of this size.
			must(t, db.AddTransaction(20, backend.Meta{Description: bytes.Repeat(data, 4)}, nil))
			if err := db.Commit(); err == nil || !strings.Contains(err.Error(), tid.TID(20).String()) || !strings.Contains(err.Error(), "set max_allowed_packet = 69M") {
				t.Errorf("error %v", err)
			}
			_ = db.Close() // in vain
			check(d.mustOpen(Options{}))
		})
	}
}

// A table is copied in many SQL transactions where one would not fit in memory.
func TestCopyingInParts(t *testing.T) {
	d := newTestDatabase(t)
	must(t, d.mustOpen(Options{Engine: RocksDB}).Close())
	d.exec("INSERT INTO trans SELECT 0, seq, 0, X'', X'', X'', X'', seq FROM seq_1_to_5000")
	md, err := newDialect(d.url(), Options{Engine: RocksDB})
	must(t, err)
	c, err := sqldb.Connect(t.Context(), md, sqldb.Writer)
	must(t, err)
	defer c.Close()
	must(t, md.Prepare(c))
	// So many changes are too many for one.
	must(t, c.ExecOnce("SET SESSION rocksdb_max_row_locks = 2000"))
	q, err := md.Lengthen(c, "trans", map[string]int{"user": 1 << 16})
	must(t, err)
	if err := c.ExecOnce(q); err == nil {
		t.Error("the table was copied in one SQL transaction")
	}
	must(t, md.Copying(c, func() error { return c.ExecOnce(q) }))
	must(t, c.ExecOnce(md.CreateTable("trans", "new_trans", false)))
	must(t, md.Copying(c, func() error { return c.ExecOnce("INSERT INTO new_trans SELECT * FROM trans") }))
	if got := d.query("SELECT COUNT(*) FROM new_trans")[0]; got != "5000" {
		t.Errorf("%s rows", got)
	}
}
