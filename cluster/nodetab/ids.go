package nodetab

import "github.com/neozodb/neo/cluster/proto"

// maxPerType is the number of ids of one type of node.
const maxPerType = 1<<28 - 1

// NewID returns the id for a node that identifies itself. The requested id
// (0: none) is granted if it is of the right type and belongs to nobody, or to
// a node with this very address. Otherwise the smallest id of the type is chosen
// that nobody has, or that a node with this address has. It returns 0 if the
// type has no id left.
func (t *Table) NewID(typ proto.NodeType, requested proto.NodeID, addr proto.Address) proto.NodeID {
	free := func(id proto.NodeID) bool {
		n := t.byID[id]
		return n == nil || !addr.IsZero() && n.Addr == addr
	}
	if requested != 0 && requested.Type() == typ && requested >= typ.ID(1) && requested <= typ.ID(maxPerType) && free(requested) {
		return requested
	}
	for n := 1; n <= maxPerType; n++ {
		if id := typ.ID(n); free(id) {
			return id
		}
	}
	return 0
}
