// Package nodetab holds who is in the cluster and in which state, as the primary
// master publishes it.
//
// A [Table] is a value owned by one goroutine: no I/O, no clock, no locks.
//
// # Invariant
//
// An id and an address each belong to at most one node.
package nodetab

import (
	"cmp"
	"iter"
	"maps"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
)

// Table is a set of nodes, found by id or by address. The zero Table is empty.
type Table struct {
	byID   map[proto.NodeID]*proto.Node
	byAddr map[proto.Address]*proto.Node
}

// ByID returns the node with this id, or nil.
func (t *Table) ByID(id proto.NodeID) *proto.Node { return t.byID[id] }

// ByAddr returns the node that listens at this address, or nil.
func (t *Table) ByAddr(a proto.Address) *proto.Node { return t.byAddr[a] }

// Running reports whether the node is known and RUNNING.
func (t *Table) Running(id proto.NodeID) bool {
	n := t.byID[id]
	return n != nil && n.State == proto.NodeRunning
}

// Class is a kind of node in a state.
type Class struct {
	Type  proto.NodeType
	State proto.NodeState
}

// Count returns how many nodes there are of each class.
func (t *Table) Count() map[Class]int {
	n := map[Class]int{}
	for node := range t.Nodes() {
		n[Class{node.Type, node.State}]++
	}
	return n
}

// Nodes yields every node, sorted by id, those without id last by address.
func (t *Table) Nodes() iter.Seq[*proto.Node] {
	set := map[*proto.Node]bool{}
	for _, n := range t.byID {
		set[n] = true
	}
	for _, n := range t.byAddr {
		set[n] = true
	}
	list := slices.SortedFunc(maps.Keys(set), func(a, b *proto.Node) int {
		if (a.ID == 0) != (b.ID == 0) {
			return cmp.Compare(b2i(a.ID == 0), b2i(b.ID == 0))
		}
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.Addr.Host, b.Addr.Host), cmp.Compare(a.Addr.Port, b.Addr.Port))
	})
	return slices.Values(list)
}

// OfType returns the nodes of one type, in the order of [Table.Nodes].
func (t *Table) OfType(typ proto.NodeType) []*proto.Node {
	var list []*proto.Node
	for n := range t.Nodes() {
		if n.Type == typ {
			list = append(list, n)
		}
	}
	return list
}

// Put adds or replaces a node. A node that holds the same address or the same id
// is changed in place, so that pointers to it stay valid; another holder of the
// id loses it. It returns the stored node.
func (t *Table) Put(in proto.Node) *proto.Node {
	if t.byID == nil {
		t.byID = map[proto.NodeID]*proto.Node{}
		t.byAddr = map[proto.Address]*proto.Node{}
	}
	var n *proto.Node
	if !in.Addr.IsZero() {
		n = t.byAddr[in.Addr]
	}
	if n == nil && in.ID != 0 {
		n = t.byID[in.ID]
	}
	if n == nil {
		n = &proto.Node{}
	} else {
		t.unlink(n)
	}
	if other := t.byID[in.ID]; in.ID != 0 && other != nil {
		t.unlink(other)
		other.ID = 0
		if !other.Addr.IsZero() {
			t.byAddr[other.Addr] = other
		}
	}
	*n = in
	if n.ID != 0 {
		t.byID[n.ID] = n
	}
	if !n.Addr.IsZero() {
		t.byAddr[n.Addr] = n
	}
	return n
}

// Remove forgets a node.
func (t *Table) Remove(n *proto.Node) { t.unlink(n) }

func (t *Table) unlink(n *proto.Node) {
	if n.ID != 0 && t.byID[n.ID] == n {
		delete(t.byID, n.ID)
	}
	if !n.Addr.IsZero() && t.byAddr[n.Addr] == n {
		delete(t.byAddr, n.Addr)
	}
}

// Update applies a NotifyNodeInformation. An UNKNOWN node is forgotten. With
// complete, as for the first one on a link, nodes that are not listed are
// forgotten too, unless keep wants them (storages of a stored partition table).
// It returns the nodes forgotten, in their last form.
func (t *Table) Update(nodes []proto.Node, complete bool, keep func(*proto.Node) bool) []proto.Node {
	var gone []proto.Node
	listed := map[*proto.Node]bool{}
	for _, in := range nodes {
		n := t.Put(in)
		if in.State == proto.NodeUnknown {
			t.Remove(n)
			gone = append(gone, *n)
			continue
		}
		listed[n] = true
	}
	if complete {
		for n := range t.Nodes() {
			if !listed[n] && (keep == nil || !keep(n)) {
				t.Remove(n)
				gone = append(gone, *n)
			}
		}
	}
	return gone
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}
