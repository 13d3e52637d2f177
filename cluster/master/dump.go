package master

import (
	"fmt"
	"io"

	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
)

// dump writes the state for an operator who reads the log.
func (m *Machine) dump(w io.Writer) {
	role := "primary"
	if m.second != nil {
		role = fmt.Sprintf("secondary of %v (identified: %v)", m.second.target, m.second.identified)
	}
	fmt.Fprintf(w, "master %v of %q at %v: %s, %v\n", m.self.ID, m.set.Cluster, m.self.Addr, role, m.state)
	var storages []proto.Node
	for n := range m.nodes.Nodes() {
		fmt.Fprintf(w, "  %v %v %v %v\n", n.ID, n.Type, n.Addr, n.State)
		if n.Type == proto.Storage {
			storages = append(storages, *n)
		}
	}
	if id := m.table.PTID(); id.OK {
		fmt.Fprintf(w, "partition table %d, replicas %d\n%s\n", id.V, m.table.Replicas(), parttab.Text(m.table.Rows(), storages))
	}
	fmt.Fprintf(w, "last tid %v, last oid %v, %d transactions, %d to commit, %d requests delayed\n",
		m.ids.committed, m.ids.oid, len(m.txns.pending), len(m.txns.queue), len(m.txns.delayed))
	for _, ttid := range m.txns.ttids() {
		t := m.txns.pending[ttid]
		fmt.Fprintf(w, "  %v tid %v prepared %v waiting for %v\n", t.ttid, t.tid, t.prepared, t.waiting)
	}
}
