package sqlitedb

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
)

// endless is a dialect where the search for the greatest TID of the transactions never ends.
type endless struct{ sqldb.Dialect }

func (d endless) Rewrite(query string) string {
	if strings.HasPrefix(query, "SELECT MAX(tid) FROM trans") {
		return "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) FROM n WHERE i < ?"
	}
	return d.Dialect.Rewrite(query)
}

// A statement that is running ends with the context of its read.
func TestRunningStatementEnds(t *testing.T) {
	d, err := newDialect(filepath.Join(t.TempDir(), "db"), nil)
	if err != nil {
		t.Fatal(err)
	}
	db, err := sqldb.Open(t.Context(), endless{d}, sqldb.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer mustClose(t, db)
	data := proto.ObjectData{Checksum: sha("x"), Data: []byte("x")}
	if err := errors.Join(backendtest.PrepareSample(db), db.AddObject(1, 8, data, nothing), db.Commit()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := db.LastIDs(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v, want %v", err, context.DeadlineExceeded)
	}
	if o, err := db.GetObject(t.Context(), 1, nothing, nothing); err != nil || string(o.Data) != "x" {
		t.Errorf("after that: %q, %v", o.Data, err)
	}
}
