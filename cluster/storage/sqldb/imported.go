package sqldb

import (
	"fmt"
	"strings"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/importer/state"
)

// checkImported refuses a database into which an import has not come to its end.
// The last transaction of the sources is looked for where this node has to have it: a
// node gives partitions away only after the import.
func (db *DB) checkImported() error {
	row, err := db.ImportState()
	if err != nil || !row.OK {
		return err
	}
	if strings.HasPrefix(row.V, state.Restoring) {
		return fmt.Errorf("database %s: %w: a backup is being restored into it: run neobackup restore again until it is complete", db.d.Name(), backend.ErrHalfImported)
	}
	s, err := state.Parse(row.V)
	if err != nil {
		return fmt.Errorf("database %s: %w (%v): %s", db.d.Name(), backend.ErrHalfImported, err, importAdvice)
	}
	end := s.End()
	l := db.layout.Load()
	if l.np > 0 && !l.readable[end.Partition(l.np)] {
		return nil
	}
	done := false
	if l.np > 0 {
		done, err = db.conn.One("SELECT 1 FROM trans WHERE `partition` = ? AND tid = ?",
			func(*Row) error { return nil }, int64(end.Partition(l.np)), int64(end))
		if err != nil || done {
			return err
		}
	}
	return fmt.Errorf("database %s: %w: transaction %v, the last one of the sources, is not here: %s", db.d.Name(), backend.ErrHalfImported, end, importAdvice)
}

const importAdvice = "start the node with the adapter Importer until it says that all data are imported" +
	" (or, to go without what is missing, delete the row zodb of table config)"

// forgetCutImport removes the state of an import whose end a truncation deletes:
// what is missing then is missing by order.
func forgetCutImport(c *Conn, cut tid.TID) error {
	m, err := readConfig(c)
	if err != nil {
		return err
	}
	row, ok := m[keyImport]
	if !ok {
		return nil
	}
	if s, err := state.Parse(row); err != nil || s.End() <= cut {
		return nil // not readable: it was accepted as it is
	}
	return setConfig(c, keyImport, proto.Opt[string]{})
}
