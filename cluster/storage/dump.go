package storage

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/storage/backend"
)

// dumpTimeout is how long a dump waits for the node to have time for it.
const dumpTimeout = 5 * time.Second

// Dump writes the state of a running node, for operators.
func (n *Node) Dump(w io.Writer) {
	done := make(chan string, 1)
	n.post(func() error { done <- n.state(); return nil })
	select {
	case s := <-done:
		io.WriteString(w, s)
	case <-n.done:
	case <-time.After(dumpTimeout):
		fmt.Fprintf(w, "the node is busy for more than %v\n", dumpTimeout)
	}
}

func (n *Node) state() string {
	s := fmt.Sprintf("%v at %v, ptid %d, operational: %v, connections: %d, answers waiting for a commit: %d\n",
		n.id, n.Addr(), n.table.PTID().V, n.session != nil, len(n.peers), len(n.batch))
	for node := range n.nodes.Nodes() {
		s += fmt.Sprintf("node %v %v %v %v\n", node.ID, node.Type, node.Addr, node.State)
	}
	for i, row := range n.table.Rows() {
		s += fmt.Sprintf("partition %d:", i)
		for _, c := range row {
			s += fmt.Sprintf(" %v %v", c.ID, c.State)
		}
		s += "\n"
	}
	if n.session == nil {
		return s
	}
	transactions, delayed := n.session.txns.Len()
	s += fmt.Sprintf("transactions in progress: %d, delayed requests: %d\n", transactions, delayed)
	if r, ok := n.db.(backend.Runner); ok {
		p := r.Progress()
		s += fmt.Sprintf("import: %v, up to %v of %v\n", &p, p.Last, p.End)
	}
	todo := n.session.replicator.m.Todo()
	for _, p := range slices.Sorted(maps.Keys(todo)) {
		s += fmt.Sprintf("to replicate: partition %d up to %v\n", p, todo[p])
	}
	return s
}
