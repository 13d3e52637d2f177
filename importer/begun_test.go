package importer

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "modernc.org/sqlite" // with -race the product has another driver

	"github.com/neozodb/neo/cluster/deflate"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/sqlitedb"
	"github.com/neozodb/neo/cluster/testlog"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/importer/config"
)

// fillBegun makes the database of an import by the Python implementation, as it is when the
// storage is killed: of the sources, it has what is before a transaction, and data that
// nothing refers to yet.
func fillBegun(t *testing.T, path, rows string, cut, end tid.TID) {
	t.Helper()
	db, err := sqlitedb.Open(t.Context(), path, sqlitedb.Options{HalfImported: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	q, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	between := fmt.Sprintf(" WHERE tid >= %d AND tid <= %d;", cut, end)
	if _, err := q.Exec("DELETE FROM config;" + rows + "DELETE FROM trans" + between + "DELETE FROM obj" + between); err != nil {
		t.Fatal(err)
	}
}

// openBegun opens a database with a Data.fs as its source.
func openBegun(t *testing.T, path, source string) (*Backend, *testlog.Buffer) {
	t.Helper()
	l := &testlog.Buffer{}
	b, err := Open(t.Context(), Config{
		Import: config.Import{
			Destination: config.Destination{Section: "neo", Compress: -1},
			Sources:     []config.Source{{Section: "root", Storage: config.Storage{File: &config.File{Path: source}}}},
		},
		Open: func(ctx context.Context, _ config.Destination) (Native, error) {
			return sqlitedb.Open(ctx, path, sqlitedb.Options{HalfImported: true})
		},
		Log: slog.New(slog.NewTextHandler(l, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	return b, l
}

// shows verifies that a backend, at whatever stage, has the history of the sources.
func (w want) shows(t *testing.T, b *Backend) {
	t.Helper()
	ctx := t.Context()
	var n int
	for p := range testPartitions {
		tids, err := b.TIDsFrom(ctx, p, 0, b.end, 0)
		if err != nil {
			t.Fatal(err)
		}
		n += len(tids)
	}
	if n != len(w.metas) {
		t.Fatalf("%d transactions, want %d", n, len(w.metas))
	}
	for id, m := range w.metas {
		got, err := b.Transaction(ctx, id)
		if err != nil || !bytes.Equal(got.Description, m.Description) || got.Packed != m.Packed || fmt.Sprint(got.OIDs) != fmt.Sprint(m.OIDs) {
			t.Fatalf("transaction %v: %+v, %v, want %+v", id, got, err, m)
		}
	}
	for k, r := range w.records {
		o, err := b.GetObject(ctx, k.OID, proto.Some(k.TID), proto.Opt[tid.TID]{})
		if err != nil || o.Serial != k.TID || o.DataSerial != r.DataTID || deflate.Absent(&o.ObjectData) != (r.Data == nil) {
			t.Fatalf("object %v at %v: %+v, %v, want %+v", k.OID, k.TID, o, err, r)
		}
	}
}

// An import that the Python implementation has begun, and that was killed after any
// transaction, is finished with the history of the source, and what clients have committed
// meanwhile stays.
func TestBegunByPython(t *testing.T) {
	for _, name := range []string{"03-creation-undone", "05-before-pack", "05-packed"} {
		t.Run(name, func(t *testing.T) {
			rows, err := os.ReadFile(filepath.Join("testdata", name+".sql"))
			if err != nil {
				t.Fatal(err)
			}
			b, err := os.ReadFile(filepath.Join("../testdata/fs", name+".fs"))
			if err != nil {
				t.Fatal(err)
			}
			dir := t.TempDir()
			source := filepath.Join(dir, "Data.fs")
			if err := os.WriteFile(source, b, 0o600); err != nil {
				t.Fatal(err)
			}
			r, err := fsformat.Open(source, fsformat.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			end, err := r.LastTID(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var tids []tid.TID
			for tr, err := range r.Transactions(t.Context(), 0, end) {
				if err != nil {
					t.Fatal(err)
				}
				tids = append(tids, tr.TID)
			}
			w := wanted(t, r, end)
			for i, cut := range append(tids, end+1) {
				last := tid.Zero
				if i > 0 {
					last = tids[i-1]
				}
				path := filepath.Join(dir, fmt.Sprint(i))
				fillBegun(t, path, string(rows), cut, end)
				if cut <= end {
					if db, err := sqlitedb.Open(t.Context(), path, sqlitedb.Options{}); !errors.Is(err, backend.ErrHalfImported) {
						t.Fatalf("cut at %v: opened without the importer: %v, %v", cut, db, err)
					}
				}
				b, l := openBegun(t, path, source)
				if got := tid.TID(b.done.Load()); got != last || b.end != end {
					t.Errorf("cut at %v: the import goes on after %v up to %v, want %v and %v", cut, got, b.end, last, end)
				}
				w.shows(t, b)
				finishes(t, b, l)
				w.shows(t, b)
				if strings.Contains(l.String(), "level=ERROR") {
					t.Errorf("cut at %v:\n%s", cut, l)
				}
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}

				db, err := sqlitedb.Open(t.Context(), path, sqlitedb.Options{})
				if err != nil {
					t.Fatal(err)
				}
				// The second transaction of the client is as it was, too.
				pending, err := db.Unfinished()
				if err != nil || len(pending) != 1 {
					t.Errorf("cut at %v: transactions that are not finished: %v, %v", cut, pending, err)
				}
				w.andLater(t, db, end).same(t, db)
				if err := db.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// andLater adds what clients have committed after the end of the sources: one transaction.
func (w want) andLater(t *testing.T, native Native, end tid.TID) want {
	t.Helper()
	ctx := t.Context()
	all := want{map[tid.TID]backend.Meta{}, map[backend.Key]txn.Record{}}
	for id, m := range w.metas {
		all.metas[id] = m
	}
	for k, r := range w.records {
		all.records[k] = r
	}
	for p := range testPartitions {
		tids, err := native.TIDsFrom(ctx, p, end+1, tid.Max, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, id := range tids {
			m, err := native.Transaction(ctx, id)
			if err != nil || string(m.Description) != "later 0" || len(m.OIDs) != 2 {
				t.Fatalf("transaction %v: %+v, %v", id, m, err)
			}
			all.metas[id] = m
			for _, oid := range m.OIDs {
				o, err := native.FetchObject(ctx, oid, id)
				if err != nil {
					t.Fatal(err)
				}
				data, err := deflate.Unpack(&o.ObjectData)
				if err != nil || len(data) == 0 {
					t.Fatalf("object %v at %v: %v", oid, id, err)
				}
				all.records[backend.Key{TID: id, OID: oid}] = txn.Record{OID: oid, TID: id, Data: data}
			}
		}
	}
	if len(all.metas) != len(w.metas)+1 {
		t.Errorf("%d transactions of clients, want 1", len(all.metas)-len(w.metas))
	}
	return all
}
