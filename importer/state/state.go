// Package state is the row zodb of table config: which sources an import has, and
// what it makes of their object ids. It is written once, before the first transaction is
// copied; with another one references would lead to wrong objects.
package state

import "github.com/neozodb/neo/cluster/tid"

// Source is what an import never changes about one of its sources.
type Source struct {
	OID     tid.OID             `json:"oid"`       // that mount points of the parent lead to, in its own numbers
	LTID    tid.TID             `json:"ltid"`      // last transaction to import
	Mapping map[tid.OID]tid.OID `json:"mapping"`   // mount points: own number to merged number of what is mounted there
	Shift   tid.OID             `json:"shift_oid"` // added to its object ids
	Next    tid.OID             `json:"next_oid"`  // the first number above all of its objects, own numbers
}

// State is all sources by the names of their sections.
type State map[string]Source
