package proctest

import (
	"bytes"
	"context"
	"crypto/sha1"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/go-sql-driver/mysql"
	"github.com/google/go-cmp/cmp"
	_ "modernc.org/sqlite"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/storage/mysqldb/mysqltest"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// How the rows of the Python implementation were recorded: see testdata/sql/README.md.
var (
	rowsCluster = flag.String("rows-cluster", "", "TestEqualRows: run the workload in the cluster NAME@MASTER, and nothing else")
	rowsOf      = flag.String("rows-of", "", "TestEqualRows: write the rows of a stopped storage (a file of SQLite, or USER@DATABASE/SOCKET) to -rows-to, and nothing else")
	rowsTo      = flag.String("rows-to", "", "see -rows-of")
)

// second is a TID in the second n of 2020.
func second(n int) tid.TID {
	return tid.FromTime(time.Date(2020, 1, 1, 0, 0, n, 0, time.UTC)) + tid.TID(n)
}

// incompressible returns n bytes that are always the same.
func incompressible(n int) []byte {
	b, x := make([]byte, n), uint32(1)
	for i := range b {
		x = x*1664525 + 1013904223
		b[i] = byte(x >> 24)
	}
	return b
}

// runRows commits transactions of all kinds with imposed TIDs, so that all rows are the same wherever it is run:
// creation, change, conflict, undo, undone creation, deletion, abort after the vote, values that are long, empty and equal, a
// partial pack and a pack.
func runRows(t *testing.T, cl *client.Client) {
	ctx := t.Context()
	n := 0
	begin := func(o client.BeginOptions) *client.Txn {
		t.Helper()
		n++
		o.TID = second(n)
		tx, err := cl.Begin(ctx, o)
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	finish := func(tx *client.Txn, errs ...error) tid.TID {
		t.Helper()
		at, err := tx.Finish(ctx, nil)
		if err = errors.Join(errors.Join(errs...), err); err != nil {
			t.Fatal(err)
		}
		return at
	}
	text := func(s string) []byte { return bytes.Repeat([]byte(s), 40) }

	tx := begin(client.BeginOptions{User: []byte("a user"), Description: []byte("creation"), Extension: []byte("\x80\x03}q\x00.")})
	first := finish(tx, tx.Store(ctx, 0, 0, []byte("root")), tx.Store(ctx, 1, 0, text("one ")), tx.Store(ctx, 2, 0, text("two ")),
		tx.Store(ctx, 3, 0, incompressible(1000)), tx.Store(ctx, 4, 0, text("one ")))
	tx = begin(client.BeginOptions{Description: []byte("é change")})
	second := finish(tx, tx.Store(ctx, 1, first, text("uno ")), tx.Store(ctx, 2, first, text("due ")), tx.CheckCurrent(ctx, 3, first))

	// A conflict: the store is refused, and repeated on top of what is there.
	tx = begin(client.BeginOptions{Description: []byte("conflict")})
	if err := errors.Join(tx.Store(ctx, 1, first, text("mine ")), tx.Store(ctx, 5, 0, text("five "))); err != nil {
		t.Fatal(err)
	}
	var conflict *txn.ConflictError
	if _, err := tx.Vote(ctx); !errors.As(err, &conflict) {
		t.Fatalf("vote: %v", err)
	}
	if err := tx.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	tx = begin(client.BeginOptions{Description: []byte("merged")})
	merged := finish(tx, tx.Store(ctx, 1, second, text("merged ")), tx.Store(ctx, 5, 0, text("five ")))

	tx = begin(client.BeginOptions{Description: []byte("undo")})
	_, err := tx.Undo(ctx, merged) // object 1 is as before, and the creation of 5 is undone
	undone := finish(tx, err)
	tx = begin(client.BeginOptions{Description: []byte("deletion")})
	deleted := finish(tx, tx.Delete(ctx, 4, first))
	tx = begin(client.BeginOptions{Description: []byte("long")})
	long := finish(tx, tx.Store(ctx, 6, 0, incompressible(16<<20+5)), tx.Store(ctx, 7, 0, []byte{}), tx.Store(ctx, 1, undone, text("last ")))
	tx = begin(client.BeginOptions{Description: []byte("aborted after the vote")})
	if err := tx.Store(ctx, 2, second, text("never ")); err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Vote(ctx); err != nil {
		t.Fatal(err)
	}
	if err := tx.Abort(ctx); err != nil {
		t.Fatal(err)
	}
	// The partial pack names an object of each partition: else a storage of the Python implementation ends on MySQL.
	for _, oids := range [][]tid.OID{{0, 1, 2, 3, 4}, nil} {
		tx = begin(client.BeginOptions{Description: []byte("IStorage.pack")})
		tx.SetPackOrder(map[bool]tid.TID{true: second, false: deleted}[oids != nil], oids)
		order := finish(tx)
		wait, cancel := context.WithTimeout(ctx, patience)
		if err := cl.WaitForPack(wait, order); err != nil {
			t.Fatal(err)
		}
		cancel()
	}
	tx = begin(client.BeginOptions{Description: []byte("after the packs")})
	finish(tx, tx.Store(ctx, 2, second, text("two again ")), tx.Store(ctx, 6, long, []byte("short")))
	cl.ClearCache()
	for _, oid := range []tid.OID{2, 6} { // a load waits until the storage has been told to unlock
		if _, err := cl.LoadBefore(ctx, oid, tid.Max); err != nil {
			t.Fatal(err)
		}
	}
}

// rowsQueries are what is compared: the order of the rows, and of the columns, matters. Keys of table config that the
// Python implementation does not know are left out.
var rowsQueries = []string{
	"SELECT name, value FROM config WHERE name IN ('version', 'name', 'nid', 'ptid', 'replicas', 'backup_tid', 'truncate_tid', 'zodb', 'partitions') ORDER BY name",
	"SELECT * FROM pt ORDER BY 1, 2",
	"SELECT * FROM pack ORDER BY 1",
	"SELECT * FROM trans ORDER BY 1, 2",
	"SELECT * FROM obj ORDER BY 1, 2, 3",
	"SELECT * FROM data ORDER BY id",
	"SELECT * FROM bigdata ORDER BY id",
	"SELECT * FROM ttrans",
	"SELECT * FROM tobj",
	"SELECT * FROM todel",
}

// rows returns all rows of a stopped storage as text. Of long values the SHA-1 is shown.
func rows(t testing.TB, database string) string {
	t.Helper()
	var db *sql.DB
	var err error
	isMySQL := strings.Contains(database, "@")
	if isMySQL {
		cfg := mysql.NewConfig()
		user, rest, _ := strings.Cut(database, "@")
		i := strings.Index(rest, "/")
		cfg.User, cfg.Net, cfg.DBName, cfg.Addr = user, "unix", rest[:i], rest[i:]
		db, err = sql.Open("mysql", cfg.FormatDSN())
	} else {
		db, err = sql.Open("sqlite", database)
	}
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var b strings.Builder
	for _, q := range rowsQueries {
		table := strings.Fields(q[strings.Index(q, "FROM ")+5:])[0]
		if !isMySQL && (table == "bigdata" || table == "todel") {
			continue
		}
		list, err := db.QueryContext(t.Context(), q)
		if err != nil {
			t.Fatalf("%s: %v", q, err)
		}
		columns, err := list.Columns()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%s: %s\n", table, strings.Join(columns, " "))
		values, into := make([]any, len(columns)), make([]any, len(columns))
		for i := range values {
			into[i] = &values[i]
		}
		for list.Next() {
			if err := list.Scan(into...); err != nil {
				t.Fatal(err)
			}
			for i, v := range values {
				switch v := v.(type) {
				case nil:
					b.WriteString(" NULL")
				case []byte:
					switch name := columns[i]; {
					case name != "hash" && name != "oids" && name != "user" && name != "description" && name != "ext" && table != "data" && table != "bigdata",
						name == "id" || name == "compression":
						fmt.Fprintf(&b, " %s", v) // a number, or of table config
					case len(v) > 64:
						fmt.Fprintf(&b, " %d:%x", len(v), sha1.Sum(v))
					default:
						fmt.Fprintf(&b, " x%x", v)
					}
				case bool:
					fmt.Fprintf(&b, " %d", map[bool]int{true: 1}[v])
				default:
					fmt.Fprintf(&b, " %v", v)
				}
			}
			b.WriteString("\n")
		}
		if err := errors.Join(list.Err(), list.Close()); err != nil {
			t.Fatal(err)
		}
	}
	return b.String()
}

// The same workload leaves the same rows, in all tables, as with the Python implementation, which were recorded.
func TestEqualRows(t *testing.T) {
	switch {
	case *rowsCluster != "":
		name, master, _ := strings.Cut(*rowsCluster, "@")
		cl, err := Connect(t.Context(), &Cluster{Name: name, Masters: master})
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		runRows(t, cl)
		return
	case *rowsOf != "":
		if err := os.WriteFile(*rowsTo, []byte(rows(t, *rowsOf)), 0o666); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Parallel()
	for _, engine := range []string{"SQLite", "InnoDB", "RocksDB"} {
		t.Run(engine, func(t *testing.T) {
			t.Parallel()
			o := Options{Name: "rows", Partitions: 5}
			var database string
			recorded := "rows-mysql.txt" // of InnoDB and RocksDB, which were equal
			if engine == "SQLite" {
				o.Dir = t.TempDir()
				database, recorded = filepath.Join(o.Dir, "s1.sqlite"), "rows-sqlite.txt"
			} else {
				s := mysqltest.New(t, "")
				database = s.String(s.Database(t))
				o.Storage = []string{"-a", "MySQL", "-d", database, "-e", engine}
			}
			c := StartCluster(t, o)
			cl, err := Connect(t.Context(), c)
			if err != nil {
				t.Fatal(err)
			}
			runRows(t, cl)
			cl.Close()
			if err := c.Storages[0].Stop(t); err != nil {
				t.Fatal(err)
			}
			want := string(read(t, filepath.Join("..", "..", "..", "testdata", "sql", recorded)))
			if diff := cmp.Diff(want, rows(t, database)); diff != "" {
				t.Errorf("rows differ (-python +ours):\n%s", diff)
			}
		})
	}
}
