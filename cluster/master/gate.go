package master

import "github.com/neozodb/neo/cluster/tid"

// bound returns the last transaction of the upstream cluster that is wanted by now: no
// order to fetch goes beyond it.
func (m *Machine) bound() tid.TID { return m.ids.committed }
