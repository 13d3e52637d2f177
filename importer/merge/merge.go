// Package merge makes one database of several that are mounted into each other.
package merge

import (
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Source is one of the databases.
type Source struct {
	Name     string       // for errors
	Database txn.Database // its own numbers; it may grow
	// DatabaseName is what references from other databases call it. Default: Name.
	DatabaseName string
	Last         tid.TID             // later transactions are not there
	Shift        tid.OID             // added to its object ids
	Next         tid.OID             // the first number above all of its objects, own numbers
	Mapping      map[tid.OID]tid.OID // mount points: own number to merged number of what is mounted there
}

// Database is the merged database, a [txn.Database]. It never changes.
type Database struct {
	sources []Source // by Shift
}

var _ = txn.Database(nil)
