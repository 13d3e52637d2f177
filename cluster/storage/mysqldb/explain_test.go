package mysqldb

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/go-sql-driver/mysql"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/sqldb"
	"github.com/neozodb/neo/cluster/tid"
)

// recorded is a dialect that remembers the statements that its connections run, each with
// its first arguments.
type recorded struct {
	*dialect
	m     sync.Mutex
	texts []string
	args  map[string][]driver.Value
}

func (r *recorded) Connect(ctx context.Context, role sqldb.Role) (driver.Conn, error) {
	dc, err := r.dialect.Connect(ctx, role)
	return recordedConn{dc, r}, err
}

type recordedConn struct {
	driver.Conn
	r *recorded
}

func (c recordedConn) Prepare(q string) (driver.Stmt, error) {
	s, err := c.Conn.Prepare(q)
	return recordedStmt{s, c.r, q}, err
}

type recordedStmt struct {
	driver.Stmt
	r *recorded
	q string
}

func (s recordedStmt) Query(args []driver.Value) (driver.Rows, error) {
	s.r.note(s.q, args)
	//lint:ignore SA1019 as package sqldb does
	return s.Stmt.Query(args)
}

func (s recordedStmt) Exec(args []driver.Value) (driver.Result, error) {
	s.r.note(s.q, args)
	//lint:ignore SA1019 as package sqldb does
	return s.Stmt.Exec(args)
}

func (r *recorded) note(q string, args []driver.Value) {
	r.m.Lock()
	defer r.m.Unlock()
	if _, ok := r.args[q]; !ok {
		r.texts = append(r.texts, q)
		r.args[q] = slices.Clone(args)
	}
}

// start forgets what was recorded.
func (r *recorded) start() {
	r.m.Lock()
	defer r.m.Unlock()
	r.texts, r.args = nil, map[string][]driver.Value{}
}

// step is how the server reads one table.
type step struct {
	table, kind, key, keyLen, extra string
}

// explain returns how the server carries out a statement.
func explain(t *testing.T, dc driver.Conn, q string, args []driver.Value) (plan []step) {
	t.Helper()
	s, err := dc.Prepare("EXPLAIN " + q)
	must(t, err)
	defer s.Close()
	//lint:ignore SA1019 as package sqldb does
	rows, err := s.Query(args)
	must(t, err)
	defer rows.Close()
	names := rows.Columns()
	for {
		v := make([]driver.Value, len(names))
		if err := rows.Next(v); err == io.EOF {
			return plan
		} else if err != nil {
			t.Fatal(err)
		}
		text := func(name string) string {
			b, _ := v[slices.Index(names, name)].([]byte)
			return string(b)
		}
		plan = append(plan, step{text("table"), text("type"), text("key"), text("key_len"), text("Extra")})
	}
}

// good reports that a step reads what it needs, and little more.
func (s step) good(q string) bool {
	if strings.Contains(s.extra, "Using filesort") && !strings.HasPrefix(s.table, "<derived") ||
		strings.Contains(s.extra, "Using temporary") && !strings.Contains(q, "DISTINCT") {
		return false
	}
	switch s.kind {
	case "", "const", "eq_ref": // no table is read; by its key
		return true
	case "ref", "range", "index_subquery":
	default:
		return strings.HasPrefix(s.table, "<derived") // some rows, in memory
	}
	length, _ := strconv.Atoi(s.keyLen) // SMALLINT 2, BIGINT 8
	switch s.table {
	case "obj", "o", "n":
		return (s.key == "PRIMARY" || s.key == "tid") && length >= 2+8 || s.key == "data_id"
	case "trans": // all of a partition only as far as LIMIT
		return s.key == "PRIMARY" && (length >= 2+8 || strings.Contains(q, "ORDER BY tid DESC LIMIT"))
	}
	return s.key == "PRIMARY"
}

// Each statement that is run often, or on a large table, uses the index that it needs.
func TestIndices(t *testing.T) {
	for _, engine := range []string{InnoDB, RocksDB} {
		t.Run(engine, func(t *testing.T) { testIndices(t, engine) })
	}
}

func testIndices(t *testing.T, engine string) {
	const np, objects, revisions = 3, 900, 4
	d := newTestDatabase(t)
	md, err := newDialect(d.url(), Options{Engine: engine})
	must(t, err)
	r := &recorded{dialect: md}
	r.start()
	db, err := sqldb.Open(t.Context(), r, sqldb.Options{})
	must(t, err)
	defer func() { must(t, db.Close()) }()
	must(t, db.SetID(1))
	var cells []proto.CellChange
	for p := range np {
		cells = append(cells, proto.CellChange{Partition: p, ID: 1, State: proto.UpToDate})
	}
	must(t, db.ChangePartitionTable(1, 0, cells, true, 0))
	for rev := range tid.TID(revisions) {
		for oid := range tid.OID(objects) {
			at := 1000*rev + tid.TID(oid) + 1000
			data := fmt.Sprintf("%d at %d", oid, at)
			must(t, db.AddObject(oid, at, proto.ObjectData{Checksum: sha(data), Data: []byte(data)}, none))
			must(t, db.AddTransaction(at, backend.Meta{OIDs: []tid.OID{oid}, TTID: at - 1}, nil))
		}
	}
	must(t, db.Commit())
	d.exec("ANALYZE TABLE obj, data, trans")
	connector, err := mysql.NewConnector(md.cfg)
	must(t, err)
	conn, err := connector.Connect(t.Context())
	must(t, err)
	if engine == RocksDB {
		must(t, exec(conn, rocksSettings))
	}
	defer conn.Close()

	ctx := context.Background()
	fails := func(_ any, err error) error { return err }
	at, before := proto.Some(tid.TID(2003)), proto.Some(tid.TID(2500))
	vote := func(ttid tid.TID) error {
		id, err := db.HoldData(3, proto.ObjectData{Checksum: sha("x"), Data: []byte("x")}, none)
		return errors.Join(err, db.Vote(ttid, []backend.Store{{OID: 3, Data: id}}, &backend.Meta{OIDs: []tid.OID{3}}, nil), db.Commit())
	}
	n := 0
	for _, tt := range []struct {
		name string
		run  func() error
	}{
		{"GetObject", func() error { return fails(db.GetObject(ctx, 3, none, none)) }},
		{"GetObject at", func() error { return fails(db.GetObject(ctx, 3, at, none)) }},
		{"GetObject before", func() error { return fails(db.GetObject(ctx, 3, none, before)) }},
		{"GetObjects", func() (err error) {
			keys := []backend.ObjectKey{{OID: 3, At: at}, {OID: 3, At: proto.Some(tid.TID(1003))}}
			db.GetObjects(ctx, keys, func(_ int, _ *backend.Object, e error) bool { err = errors.Join(err, e); return true })
			return err
		}},
		{"FetchObject", func() error { return fails(db.FetchObject(ctx, 3, 2003)) }},
		{"LastObjectTID", func() error { return fails(db.LastObjectTID(ctx, 3)) }},
		{"History", func() error { return fails(db.History(ctx, 3, 1, 5)) }},
		{"UndoHistory", func() error { return fails(db.UndoHistory(ctx, 3, 2003)) }},
		{"Transaction", func() error { return fails(db.Transaction(ctx, 2003)) }},
		{"FinalTID", func() error { return fails(db.FinalTID(ctx, 2002)) }},
		{"LastIDs", func() error { return fails(db.LastIDs(ctx)) }},
		{"TIDs", func() error { return fails(db.TIDs(ctx, []int{0, 1, 2}, 5, 20)) }},
		{"TIDsFrom", func() error { return fails(db.TIDsFrom(ctx, 0, 1500, 3000, 20)) }},
		{"RecordsFrom", func() error { return fails(db.RecordsFrom(ctx, 0, 1500, 3000, 0, 20)) }},
		{"RecordBefore", func() error { _, _, err := db.RecordBefore(ctx, 3, 3000); return err }},
		{"OIDsFrom", func() error { _, _, err := db.OIDsFrom(ctx, 0, 20, 600, 4000); return err }},
		{"vote and undo", func() error {
			_, err := db.HoldData(3, proto.ObjectData{}, proto.Some(tid.TID(2003)))
			return errors.Join(err, vote(9000))
		}},
		{"lock and unlock", func() error {
			return errors.Join(db.Lock(9000, 9000, false), db.Commit(), db.Unlock(9000, 9000, true, true, false), db.Commit())
		}},
		{"abort", func() error { return errors.Join(vote(9003), db.Abort(9003), db.Commit()) }},
		{"pack", func() error { _, _, err := db.Pack(0, 3000, nil, 0, proto.Some(tid.OID(600)), 20); return err }},
		{"pack of listed objects", func() error {
			_, _, err := db.Pack(0, 3000, []tid.OID{300, 303}, 0, proto.Opt[tid.OID]{}, 20)
			return err
		}},
		{"delete", func() error { return errors.Join(db.DeleteObject(3, 2003), db.DeleteTransaction(2003)) }},
		{"orphans", func() error {
			for _, err := range db.Orphans(ctx) {
				return err
			}
			return nil
		}},
		{"truncate", func() error { return errors.Join(db.SetTruncateTID(proto.Some(tid.TID(4800))), db.Truncate()) }},
		{"drop", func() error {
			err := db.ChangePartitionTable(2, 0, []proto.CellChange{{Partition: 2, ID: 1, State: proto.Discarded}, {Partition: 2, ID: 2, State: proto.UpToDate}}, false, 0)
			_, derr := db.DropPartition(2, 50)
			return errors.Join(err, derr, db.Commit())
		}},
	} {
		r.start()
		must(t, tt.run())
		for _, q := range r.texts {
			if !large.MatchString(q) || strings.HasPrefix(q, "INSERT") || strings.HasPrefix(q, "REPLACE") {
				continue
			}
			n++
			for _, s := range explain(t, conn, q, r.args[q]) {
				if !s.good(q) {
					t.Errorf("%s: %+v of %s", tt.name, s, q)
				}
			}
		}
	}
	if n < 30 {
		t.Errorf("only %d statements", n)
	}
}

// large matches statements about tables that may be large.
var large = regexp.MustCompile(`\b(t?obj|t?trans|data)\b`)
