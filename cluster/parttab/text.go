package parttab

import (
	"fmt"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/proto"
)

// Letter returns the letter of a cell in the text form of a table.
func Letter(s proto.CellState) byte {
	switch s {
	case proto.UpToDate:
		return 'U'
	case proto.OutOfDate:
		return 'O'
	case proto.Feeding:
		return 'F'
	case proto.Corrupted:
		return 'C'
	}
	return '.'
}

// Text returns a picture of rows: one line per node of nodes, sorted by id, with
// its id, the letter of its state and one letter per partition:
//
//	S1 R UU.UU.
//	S2 R U.UU.U
//
// With more than 10 partitions, a line above marks partitions 10, 20, and so on
// with a v. There is no final newline.
func Text(rows [][]proto.Cell, nodes []proto.Node) string {
	nodes = slices.Clone(nodes)
	slices.SortFunc(nodes, func(a, b proto.Node) int { return int(a.ID) - int(b.ID) })
	line := make(map[proto.NodeID]int, len(nodes))
	pictures := make([][]byte, len(nodes))
	width := 0
	for i, n := range nodes {
		line[n.ID] = i
		pictures[i] = []byte(strings.Repeat(".", len(rows)))
		width = max(width, len(n.ID.String()))
	}
	for p, row := range rows {
		for _, c := range row {
			if i, ok := line[c.ID]; ok {
				pictures[i][p] = Letter(c.State)
			}
		}
	}
	var out []string
	if len(rows) > 10 {
		var b strings.Builder
		b.WriteString(strings.Repeat(" ", width+4))
		for p := 10; p < len(rows); p += 10 {
			fmt.Fprintf(&b, "%9dv", p)
		}
		out = append(out, b.String())
	}
	for i, n := range nodes {
		out = append(out, fmt.Sprintf("%-*s %c %s", width, n.ID, n.State.String()[0], pictures[i]))
	}
	return strings.Join(out, "\n")
}
