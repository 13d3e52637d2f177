package mysqldb

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/mysqldb/mysqltest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

// lockedBuffer is written by a log and read by a test.
type lockedBuffer struct {
	m sync.Mutex
	b bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.m.Lock()
	defer l.m.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.m.Lock()
	defer l.m.Unlock()
	return l.b.String()
}

func TestExclusiveUse(t *testing.T) {
	d := newTestDatabase(t)
	db := d.mustOpen(Options{})
	if _, err := d.open(Options{}); !errors.Is(err, backend.ErrLocked) || !strings.Contains(err.Error(), "database is locked") {
		t.Errorf("second use: %v, want %v", err, backend.ErrLocked)
	}
	// The Python implementation takes the same lock.
	if got := d.query("SELECT IS_FREE_LOCK('" + d.name + ".neostorage')"); got[0] != "0" {
		t.Errorf("lock is free: %v", got)
	}
	must(t, newTestDatabase(t).mustOpen(Options{}).Close())
	must(t, db.SetName("still writable"))
	must(t, db.Close())
	must(t, d.mustOpen(Options{}).Close())
}

// A server that cannot do what is needed is refused with what to do about it, and one that may
// lose commits is warned of.
func TestSettings(t *testing.T) {
	s := mysqltest.Get(t)
	global := func(name, value string) {
		t.Helper()
		old := s.Query(t, "", "SELECT @@GLOBAL."+name)[0]
		s.Exec(t, "", "SET GLOBAL "+name+" = "+value)
		t.Cleanup(func() { s.Exec(t, "", "SET GLOBAL "+name+" = "+old) })
	}
	t.Run("max_allowed_packet", func(t *testing.T) {
		const advice = "set max_allowed_packet = 64M in section [mysqld]"
		db := newTestDatabase(t).mustOpen(Options{})
		must(t, backendtest.PrepareSample(db))
		d := newTestDatabase(t)
		s.Exec(t, "", "SET GLOBAL max_allowed_packet = 16777216")
		defer s.Exec(t, "", "SET GLOBAL max_allowed_packet = 67108864")
		if _, err := d.open(Options{}); err == nil || !strings.Contains(err.Error(), advice) {
			t.Errorf("error %v", err)
		}
		// Of a database that is in use: no connection is opened that could not read everything.
		if _, err := db.GetObject(t.Context(), 1, none, none); err == nil || !strings.Contains(err.Error(), advice) {
			t.Errorf("load: %v", err)
		}
	})
	global("read_only", "ON")
	for _, engine := range []string{InnoDB, RocksDB} {
		d := newTestDatabase(t)
		var log lockedBuffer
		must(t, d.mustOpen(Options{Engine: engine, Log: slog.New(slog.NewTextHandler(&log, nil))}).Close())
		for _, want := range []string{"commits are not durable", strings.ToLower(engine) + "_flush_log_at_trx_commit=2", "read-only", d.name} {
			if !strings.Contains(log.String(), want) {
				t.Errorf("%s: no word of %q in\n%s", engine, want, &log)
			}
		}
	}
}

// What connections set does not depend on the defaults of the server.
func TestSessions(t *testing.T) {
	d := newTestDatabase(t)
	d.mustOpen(Options{}) // holds the lock
	d.exec("SET GLOBAL sql_select_limit = 1; SET GLOBAL sql_safe_updates = 1")
	defer d.exec("SET GLOBAL sql_select_limit = DEFAULT; SET GLOBAL sql_safe_updates = 0")
	d2, err := newDialect(newTestDatabase(t).url(), Options{Engine: RocksDB})
	must(t, err)
	for _, role := range []sqldb.Role{sqldb.Writer, sqldb.Reader} {
		dc, err := d2.Connect(t.Context(), role)
		must(t, err)
		isolation := map[sqldb.Role]string{sqldb.Writer: "READ-COMMITTED", sqldb.Reader: "REPEATABLE-READ"}[role]
		for name, want := range map[string]string{
			"autocommit": "0", "wait_timeout": "2147483", "tx_isolation": isolation, "character_set_client": "binary", "rocksdb_max_row_locks": "1073741824",
			"tx_read_only": fmt.Sprint(role), "max_allowed_packet": "67108864", "sql_select_limit": "18446744073709551615", "sql_safe_updates": "0",
		} {
			if row, err := query(dc, "SELECT @@SESSION."+name); err != nil || row[0] != want {
				t.Errorf("role %d: %s is %q, %v, want %s", role, name, row, err, want)
			}
		}
		if row, err := query(dc, "SELECT @@SESSION.sql_mode"); err != nil || !strings.Contains(row[0], "STRICT_ALL_TABLES") || !strings.Contains(row[0], "NO_ENGINE_SUBSTITUTION") {
			t.Errorf("sql_mode %q, %v", row, err)
		}
		defer dc.Close()
	}
}

func TestRefusedServers(t *testing.T) {
	s := mysqltest.Get(t)
	d := newTestDatabase(t)
	s.Exec(t, "", "CREATE USER IF NOT EXISTS poor@localhost IDENTIFIED BY 'secret'")
	none := filepath.Join(t.TempDir(), "s")
	for database, want := range map[string]string{
		"root@nothing" + s.Socket:           "create it with CREATE DATABASE `nothing`",
		"poor:secret@" + d.name + s.Socket:  "GRANT ALL ON `" + d.name + "`.*",
		"poor:secret2@" + d.name + s.Socket: "Access denied",
		"root@x" + none:                     "is the server running? --wait waits for it",
		"//127.0.0.1:1/x?password=secret":   "is the server running?",
	} {
		if _, err := Open(t.Context(), database, Options{}); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v, want %q and no password", database, err, want)
		}
	}
	for engine, want := range map[string]string{"TokuDB": "MariaDB has removed it", "MyISAM": "want InnoDB or RocksDB"} {
		if _, err := d.open(Options{Engine: engine}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("engine %s: %v", engine, err)
		}
	}
}

// A password of any characters, and a connection by TCP.
func TestPasswordAndTCP(t *testing.T) {
	s := mysqltest.Get(t)
	var port int
	for try := 0; ; try++ { // another process may take the port meanwhile
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(t, err)
		port = l.Addr().(*net.TCPAddr).Port
		must(t, l.Close())
		s.Stop()
		if err = s.Start("--skip-networking=0", "--bind-address=127.0.0.1", fmt.Sprint("--port=", port)); err == nil {
			break
		}
		if try == 5 {
			t.Fatal(err)
		}
	}
	defer func() {
		s.Stop()
		must(t, s.Start())
	}()
	name := s.Database(t)
	s.Exec(t, "", "CREATE USER neo IDENTIFIED BY 'p@s:s/%'; GRANT ALL ON "+name+".* TO neo")
	for _, database := range []string{
		"neo:p@s:s/%@" + name + s.Socket,
		fmt.Sprintf("//127.0.0.1:%d/%s?user=neo&password=p%%40s:s/%%25&tls=preferred", port, name),
	} {
		db, err := Open(t.Context(), database, Options{})
		if err != nil {
			t.Errorf("%s: %v", database, err)
			continue
		}
		host, err := os.Hostname()
		if topology := db.Topology(); err != nil || len(topology) != 2 || topology[0] != host {
			t.Errorf("topology %q", topology)
		}
		must(t, db.Close())
	}
}

// The server is waited for as long as was asked.
func TestWait(t *testing.T) {
	s := mysqltest.Get(t)
	name := s.Database(t)
	s.Stop()
	if _, err := Open(t.Context(), s.String(name), Options{}); err == nil || !lost(err) {
		t.Errorf("without waiting: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Open(ctx, s.String(name), Options{Wait: -1}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("until the context ends: %v", err)
	}
	done := make(chan error)
	go func() {
		db, err := Open(t.Context(), s.String(name), Options{Wait: 5 * time.Minute})
		if err == nil {
			err = db.Close()
		}
		done <- err
	}()
	must(t, s.Start())
	must(t, <-done)
}

// work commits transactions until something fails, or acked wants no more.
func work(db *sqldb.DB, from tid.TID, acked func(tid.TID) bool) error {
	for n := from; ; n += 4 {
		var stores []backend.Store
		var oids []tid.OID
		for oid := range tid.OID(20) {
			text := fmt.Sprintf("%d at %d %s", oid, n, strings.Repeat("x", 900))
			id, err := db.HoldData(100+oid, proto.ObjectData{Checksum: sha(text), Data: []byte(text)}, none)
			if err != nil {
				return err
			}
			stores = append(stores, backend.Store{OID: 100 + oid, Data: id})
			oids = append(oids, 100+oid)
		}
		for _, f := range []func() error{
			func() error { return db.Vote(n, stores, &backend.Meta{OIDs: oids}, nil) }, db.CommitVotes,
			func() error { return db.Lock(n, n, false) }, db.CommitVotes,
			func() error { return db.Unlock(n, n, true, true, false) },
		} {
			if err := f(); err != nil {
				return err
			}
		}
		if !acked(n) { // the lock was durable
			return nil
		}
	}
}

// checkWork checks, after the end of a process, that all transactions up to the last acknowledged one are
// there and whole.
func checkWork(t *testing.T, db *sqldb.DB, first, acked tid.TID) {
	t.Helper()
	found, err := db.Unfinished()
	must(t, err)
	for ttid, final := range found {
		if final.OK {
			must(t, db.Validate(ttid, final.V))
		}
	}
	must(t, db.DropUnfinished())
	ids, err := db.LastIDs(t.Context())
	if err != nil || ids.TID.V < acked {
		t.Fatalf("last transaction %d, %v, but %d was acknowledged", ids.TID.V, err, acked)
	}
	for n := first; n <= ids.TID.V; n += 4 {
		m, err := db.Transaction(t.Context(), n)
		if err != nil || len(m.OIDs) != 20 {
			t.Fatalf("transaction %d: %v", n, err)
		}
		for _, oid := range m.OIDs {
			o, err := db.GetObject(t.Context(), oid, proto.Some(n), none)
			if err != nil || !strings.HasPrefix(string(o.Data), fmt.Sprintf("%d at %d ", oid-100, n)) {
				t.Fatalf("object %d at %d: %v", oid, n, err)
			}
		}
	}
	for id, err := range db.Orphans(t.Context()) {
		t.Errorf("orphan %v, %v", id, err)
	}
}

// Whatever was acknowledged before the server went away is there afterwards, in whole transactions. Nothing
// that was pending is repeated: the writer ends with an error, unless there was none.
func TestServerGoesAway(t *testing.T) {
	s := mysqltest.Get(t)
	durable := []string{"--rocksdb-flush-log-at-trx-commit=1", "--innodb-flush-log-at-trx-commit=1"}
	s.Stop()
	must(t, s.Start(durable...))
	defer func() {
		s.Stop()
		must(t, s.Start())
	}()
	kill := func(string) {
		s.Kill()
		must(t, s.Start(durable...))
	}
	for way, away := range map[string]func(name string){
		"killed": kill,
		"restarted": func(string) {
			s.Stop()
			must(t, s.Start(durable...))
		},
		"connections killed": func(name string) { s.Disconnect(t, name) },
	} {
		for _, engine := range []string{InnoDB, RocksDB} {
			t.Run(way+" "+engine, func(t *testing.T) {
				name := s.Database(t)
				db, err := Open(t.Context(), s.String(name), Options{Engine: engine})
				must(t, err)
				must(t, backendtest.PrepareSample(db))
				const first = 8
				var acked, stop atomic.Uint64
				enough, ended := make(chan struct{}), make(chan error, 1)
				go func() {
					ended <- work(db, first, func(n tid.TID) bool {
						acked.Store(uint64(n))
						if n == first+30*4 {
							close(enough)
						}
						return stop.Load() == 0 || n < tid.TID(stop.Load())
					})
				}()
				select {
				case <-enough:
				case err := <-ended:
					t.Fatal(err)
				}
				away(name)
				stop.Store(acked.Load() + 30*4)
				switch err = <-ended; {
				case err == nil:
					t.Log("nothing was uncommitted at that moment: the writer has gone on")
				case !lost(err) || !strings.Contains(err.Error(), name):
					t.Errorf("error %v, want one of a lost connection that names the database", err)
				case db.Commit() == nil:
					t.Error("a commit succeeded after that")
				}
				_ = db.Close() // in vain, unless it has gone on
				db, err = Open(t.Context(), s.String(name), Options{})
				must(t, err)
				checkWork(t, db, first, tid.TID(acked.Load()))
				must(t, db.Close())
			})
		}
	}
}

// A server whose commits are not durable may have lost some when it was restarted: the node does not go
// on, as if it had all that it acknowledged.
func TestRestartedServerMayHaveLost(t *testing.T) {
	s := mysqltest.Get(t)
	for durable, want := range map[int]bool{1: true, 2: false} {
		option := fmt.Sprint("--innodb-flush-log-at-trx-commit=", durable)
		s.Stop()
		must(t, s.Start(option))
		name := s.Database(t)
		var log lockedBuffer
		db, err := Open(t.Context(), s.String(name), Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
		must(t, err)
		must(t, backendtest.PrepareSample(db))
		s.Kill()
		must(t, s.Start(option))
		o, err := db.GetObject(t.Context(), 1, none, none)
		if went := err == nil && o.Serial == 4; went != want || !want && !strings.Contains(err.Error(), "restarted") {
			t.Errorf("%s: load: %+v, %v", option, o, err)
		}
		if err := db.SetName("x"); (err == nil) != want {
			t.Errorf("%s: commit: %v", option, err)
		}
		if strings.Contains(log.String(), "may have lost what was committed: start the storage again") == want {
			t.Errorf("%s: log\n%s", option, &log)
		}
		_ = db.Close() // in vain, unless it has gone on
	}
	s.Stop()
	must(t, s.Start())
}

// Ids of connections begin anew when the server is restarted: that of another process, which has the
// lock by then, is not ended.
func TestLockIsOfAnotherProcess(t *testing.T) {
	s := mysqltest.Get(t)
	const durable = "--innodb-flush-log-at-trx-commit=1"
	s.Stop()
	must(t, s.Start(durable))
	name := s.Database(t)
	for range 20 { // for an id that the next server comes to only later
		s.Query(t, "", "SELECT 1")
	}
	d, err := newDialect(s.String(name), Options{})
	must(t, err)
	db, err := sqldb.Open(t.Context(), d, sqldb.Options{})
	must(t, err)
	must(t, backendtest.PrepareSample(db))
	time.Sleep(4 * time.Second) // the time of a start is in seconds
	s.Stop()
	must(t, s.Start(durable))
	plain, err := newDialect(s.String(name), Options{})
	must(t, err)
	var other driver.Conn
	for same := false; !same; {
		other, err = plain.Connect(t.Context(), sqldb.Reader)
		must(t, err)
		defer other.Close()
		row, err := query(other, "SELECT CONNECTION_ID()")
		must(t, err)
		same = row[0] == fmt.Sprint(d.session.Load())
	}
	if row, err := query(other, "SELECT GET_LOCK(?, 0)", name+".neostorage"); err != nil || row[0] != "1" {
		t.Fatal(row, err)
	}
	if err := db.SetName("x"); err == nil {
		t.Error("written without the lock")
	}
	if _, err := query(other, "SELECT 1"); err != nil {
		t.Errorf("the other process has lost its connection: %v", err)
	}
	_ = db.Close() // in vain
	s.Stop()
	must(t, s.Start())
}

// A node that has nothing uncommitted goes on when its connections were cut off.
func TestIdleNodeGoesOn(t *testing.T) {
	d := newTestDatabase(t)
	db := d.mustOpen(Options{})
	must(t, backendtest.PrepareSample(db))
	d.Disconnect(t, d.name)
	if o, err := db.GetObject(t.Context(), 1, none, none); err != nil || o.Serial != 4 {
		t.Errorf("load: %+v, %v", o, err)
	}
	must(t, db.SetName("x"))
	if _, err := d.open(Options{}); !errors.Is(err, backend.ErrLocked) {
		t.Errorf("the lock is lost: %v", err)
	}
}

// A node whose connection was lost does not go on with a database that another one has used meanwhile: what it has
// in memory, such as the next ids, is of another time.
func TestAnotherProcessMeanwhile(t *testing.T) {
	d := newTestDatabase(t)
	db := d.mustOpen(Options{})
	must(t, backendtest.PrepareSample(db))
	must(t, db.Commit())
	d.Disconnect(t, d.name)
	other := d.mustOpen(Options{})
	must(t, other.Close())
	if err := db.SetName("x"); err == nil || !strings.Contains(err.Error(), "another process has used it") {
		t.Errorf("writing ended with %v", err)
	}
	_ = db.Close() // in vain
	db = d.mustOpen(Options{})
	if cfg, err := db.Config(); err != nil || cfg.Name == "x" {
		t.Errorf("%+v, %v", cfg, err)
	}
}

// A lock that another program holds for too long ends the node; nothing is lost.
func TestLockWait(t *testing.T) {
	d := newTestDatabase(t)
	s := d.Server
	s.Exec(t, "", "SET GLOBAL innodb_lock_wait_timeout = 1")
	defer s.Exec(t, "", "SET GLOBAL innodb_lock_wait_timeout = 50")
	db := d.mustOpen(Options{})
	must(t, errors.Join(backendtest.PrepareSample(db), db.SetName("a")))
	other, err := newDialect(newTestDatabase(t).url(), Options{})
	must(t, err)
	dc, err := other.Connect(t.Context(), sqldb.Writer)
	must(t, err)
	defer dc.Close()
	must(t, exec(dc, "UPDATE "+d.name+".config SET value = 'y' WHERE name = 'name'"))
	if err := db.SetName("x"); code(err) != 1205 {
		t.Errorf("error %v, want that of a lock wait timeout", err)
	}
	if err := db.Commit(); code(err) != 1205 {
		t.Errorf("commit after that: %v", err)
	}
	_ = db.Close() // in vain
	must(t, exec(dc, "ROLLBACK"))
	db = d.mustOpen(Options{})
	must(t, backendtest.CheckSample(db, 8, false))
}

// A connection that has nothing to do keeps no old snapshot, which would keep the server from purging,
// also while nothing is committed.
func TestIdleReadersHoldNothing(t *testing.T) {
	d := newTestDatabase(t)
	db := d.mustOpen(Options{})
	must(t, backendtest.PrepareSample(db))
	open := func() int {
		q := "SELECT 1 FROM information_schema.innodb_trx JOIN information_schema.processlist ON id = trx_mysql_thread_id WHERE db = '" + d.name + "'"
		return len(d.query(q))
	}
	// The server answers from memory while it is asked more often than each tenth of a second.
	for begin, n := time.Now(), 0; n != 1; time.Sleep(300 * time.Millisecond) {
		if _, err := db.GetObject(t.Context(), 1, none, none); err != nil {
			t.Fatal(err)
		}
		if n = open(); time.Since(begin) > time.Minute { // it may have ended already
			t.Fatalf("%d transactions, want that of the reader", n)
		}
	}
	for begin := time.Now(); open() > 0; time.Sleep(300 * time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			t.Fatal("it does not end")
		}
	}
	if o, err := db.GetObject(t.Context(), 1, none, none); err != nil || o.Serial != 4 {
		t.Errorf("load: %+v, %v", o, err)
	}
}

// A server may have a binary log, in any format but STATEMENT.
func TestBinaryLog(t *testing.T) {
	s := mysqltest.New(t, "", "--log-bin=binlog", "--binlog-format=MIXED", "--server-id=1")
	for _, format := range []string{"MIXED", "ROW", "STATEMENT"} {
		s.Exec(t, "", "SET GLOBAL binlog_format = "+format)
		for _, engine := range []string{InnoDB, RocksDB} {
			name := s.Database(t)
			db, err := Open(t.Context(), s.String(name), Options{Engine: engine})
			if format == "STATEMENT" {
				if err == nil || !strings.Contains(err.Error(), "set binlog_format = MIXED") {
					t.Errorf("%s: %v", engine, err)
				}
				continue
			}
			must(t, err)
			must(t, backendtest.PrepareSample(db))
			var acked tid.TID
			if err := work(db, 8, func(n tid.TID) bool { acked = n; return n < 100 }); err != nil {
				t.Fatalf("%s %s: %v", format, engine, err)
			}
			must(t, errors.Join(db.DeleteObject(100, 12), db.AddTransaction(200, backend.Meta{User: make([]byte, 1<<16)}, nil), db.Commit(), db.Close()))
			db, err = Open(t.Context(), s.String(name), Options{})
			must(t, err)
			if m, err := db.Transaction(t.Context(), acked); err != nil || len(m.OIDs) != 20 {
				t.Errorf("%s %s: %v, %v", format, engine, m, err)
			}
			must(t, errors.Join(db.Erase(), db.Close()))
		}
	}
}
