package sqlitedb

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/importer/state"
)

// States of an import of two sources whose last transactions are 400 and 401, as the
// programs that begin imports write them.
var importStates = map[string]string{
	"ours": `{"root": {"oid": 0, "ltid": 400, "mapping": {}, "shift_oid": 0, "next_oid": 7}, "it's": {"oid": 1, "ltid": 401, "mapping": {}, "shift_oid": 7, "next_oid": 2}}`,
	"Python 2": "(dp0\nS'root'\np1\nccopy_reg\n_reconstructor\np2\n(cneo.storage.database.importer\nZODB\np3\nc__builtin__\nobject\np4\nNtp5\nRp6\n" +
		"(dp7\nS'oid'\np8\nI0\nsS'ltid'\np9\nL400L\nsS'mapping'\np10\n(dp11\nsS'shift_oid'\np12\nI0\nsS'next_oid'\np13\nI7\nsbs" +
		"S'it\\'s'\np14\n(ineo.storage.database.importer\nZODB\np15\n(dp16\ng9\nI401\nsg8\nI1\nsg10\n(dp17\nsg12\nI7\nsg13\nI2\nsbs.",
	"Python 3": `b"\x80\x03}q\x00(X\x04\x00\x00\x00rootq\x01cneo.storage.database.importer\nZODB\nq\x02)\x81q\x03}q\x04` +
		`(X\x03\x00\x00\x00oidq\x05K\x00X\x04\x00\x00\x00ltidq\x06M\x90\x01X\x07\x00\x00\x00mappingq\x07}q\x08X\t\x00\x00\x00shift_oidq\tK\x00X\x08\x00\x00\x00next_oidq\nK\x07ub` +
		`X\x04\x00\x00\x00it'sq\x0bh\x02)\x81q\x0c}q\r(h\x05K\x01h\x06M\x91\x01h\x07}q\x0eh\tK\x07h\nK\x02ubu."`,
}

// A database into which an import has not come to its end hides what is missing:
// only the importer may open it.
func TestHalfImported(t *testing.T) {
	for name, state := range importStates {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "db")
			refused := func(when string) {
				t.Helper()
				db, err := Open(context.Background(), path, Options{})
				if err == nil {
					mustClose(t, db)
				}
				if !errors.Is(err, backend.ErrHalfImported) || !strings.Contains(err.Error(), "adapter Importer") || !strings.Contains(err.Error(), path) {
					t.Errorf("%s: error %v, want %v", when, err, backend.ErrHalfImported)
				}
			}
			db := mustOpen(t, path, Options{})
			must(t, db.SetImportState(proto.Some(state)))
			must(t, db.Close())
			refused("before the first transaction")

			db = mustOpen(t, path, Options{HalfImported: true})
			must(t, db.SetID(3))
			cells := []proto.CellChange{{Partition: 0, ID: 3, State: proto.UpToDate}, {Partition: 1, ID: 3, State: proto.UpToDate}}
			must(t, db.ChangePartitionTable(1, 0, cells, true, 0))
			add := func(at tid.TID) { must(t, db.AddTransaction(at, backend.Meta{TTID: at}, nil)) }
			add(400)
			add(999) // of a client
			must(t, db.Close())
			refused("before the last transaction")

			db = mustOpen(t, path, Options{HalfImported: true})
			add(401)
			must(t, db.Close())
			db = mustOpen(t, path, Options{})

			// Deleted by order, or given away with its partition: nothing is missing.
			must(t, db.SetTruncateTID(proto.Some[tid.TID](400)))
			must(t, db.Truncate())
			must(t, db.Close())
			db = mustOpen(t, path, Options{})
			must(t, db.SetImportState(proto.Some(state)))
			must(t, db.Close())
			refused("without the last transaction")
			db = mustOpen(t, path, Options{HalfImported: true})
			must(t, db.ChangePartitionTable(2, 0, []proto.CellChange{{Partition: 1, ID: 4, State: proto.UpToDate}, {Partition: 1, ID: 3, State: proto.Discarded}}, false, 0))
			must(t, db.Close())
			mustClose(t, mustOpen(t, path, Options{}))
		})
	}
}

// A state that cannot be read says nothing about what is missing.
func TestUnreadableImportState(t *testing.T) {
	for _, state := range []string{"", "{", "(dp0", "I1\n.", `b'\x80`, `{"root": {}}`, `{}`, `{"root": {"ltid": 401}}`, `b'}q'`} {
		path := filepath.Join(t.TempDir(), "db")
		db := mustOpen(t, path, Options{})
		must(t, db.SetImportState(proto.Some(state)))
		must(t, db.Close())
		if db, err := Open(context.Background(), path, Options{}); !errors.Is(err, backend.ErrHalfImported) {
			t.Errorf("state %q: %v, want %v", state, err, backend.ErrHalfImported)
			if err == nil {
				mustClose(t, db)
			}
		}
	}
}

// A database into which a backup is being restored is not that of a node, whatever it has,
// until the row is gone.
func TestHalfRestored(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	db := mustOpen(t, path, Options{})
	must(t, db.SetImportState(proto.Some(state.Restoring+`{"v":1}`)))
	must(t, db.SetID(3))
	must(t, db.ChangePartitionTable(1, 0, []proto.CellChange{{Partition: 0, ID: 3, State: proto.OutOfDate}}, true, 0))
	must(t, db.Close())
	if db, err := Open(context.Background(), path, Options{}); !errors.Is(err, backend.ErrHalfImported) || !strings.Contains(err.Error(), "neobackup restore") || !strings.Contains(err.Error(), path) {
		if err == nil {
			mustClose(t, db)
		}
		t.Errorf("error %v, want %v", err, backend.ErrHalfImported)
	}
	db = mustOpen(t, path, Options{HalfImported: true})
	must(t, db.SetImportState(proto.Opt[string]{}))
	must(t, db.Close())
	mustClose(t, mustOpen(t, path, Options{}))
}
