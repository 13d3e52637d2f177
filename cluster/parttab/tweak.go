package parttab

import (
	"errors"
	"fmt"
	"slices"

	"github.com/neozodb/neo/cluster/proto"
)

// ErrNoNode reports that there is no node to put cells on.
var ErrNoNode = errors.New("no storage node is available")

// Topology tells where a node is, from the outside in: (host, device), say. nil
// when nothing is known about the node.
type Topology func(proto.NodeID) []string

// Make creates the first table: np partitions of replicas+1 copies on nodes, all
// cells readable, version 1. Nodes that get no cell do not become members.
// spread is false if the copies could not be spread over the topology.
func (m *Managed) Make(np, replicas int, nodes []proto.NodeID, where Topology) (spread bool, err error) {
	m.Reset(np, replicas)
	for _, id := range nodes {
		m.AddMember(id)
	}
	_, spread, err = m.tweak(nil, where, proto.UpToDate)
	if err != nil {
		return false, err
	}
	for id := range m.members {
		if !m.HasCells(id) {
			delete(m.members, id)
		}
	}
	m.ptid = proto.Some(uint64(1))
	return spread, nil
}

// Tweak distributes the partitions over the members that are not ignored: each
// gets the same number of cells, give or take one, and each partition has
// replicas+1 cells that are not feeding, on distinct nodes. Cells of ignored
// nodes are neither touched nor counted. As many readable copies as possible,
// up to the wanted number, are kept until replication has replaced them.
//
// It moves heuristically few cells, and none if the table already fits. It fails
// with ErrNoNode, or ErrNotOperational; the table is then unchanged. spread is
// false if the copies could not be spread over the topology.
func (m *Managed) Tweak(ignored []proto.NodeID, where Topology, running func(proto.NodeID) bool) (changes []proto.CellChange, spread bool, err error) {
	trial := m.Clone()
	changes, spread, err = trial.tweak(ignored, where, proto.OutOfDate)
	if err != nil {
		return nil, false, err
	}
	if !trial.Operational(running) {
		return nil, false, fmt.Errorf("tweaking the partition table: %w", ErrNotOperational)
	}
	*m = *trial
	return changes, spread, nil
}

// column is a set of partitions that one node should have, ascending.
type column struct {
	partitions []int
	left       int // how many more nodes may take it
}

// choice is a node with the columns it may take, best first.
type choice struct {
	id      proto.NodeID
	options []int // indexes of columns
	stake   cost  // negative: how much the choice of the column matters
}

// cost counts the cells a node would lose, readable ones first.
type cost [2]int

func (m *Managed) tweak(ignored []proto.NodeID, where Topology, fresh proto.CellState) (changes []proto.CellChange, spread bool, err error) {
	nodes := slices.DeleteFunc(m.Members(), func(id proto.NodeID) bool { return slices.Contains(ignored, id) })
	if len(nodes) == 0 {
		return nil, false, ErrNoNode
	}
	copies := min(m.replicas+1, len(nodes))
	columns := idealColumns(len(m.rows), copies, len(nodes))
	limits := newLimits(nodes, where, copies)

	current := m.cellsOf(nodes)
	for {
		if s := firstSolution(columns, limits, len(m.rows), m.keepAll(nodes, current, columns)); s != nil {
			return m.assign(s, columns, copies, current, fresh), limits.ok(copies), nil
		}
		if s := firstSolution(columns, limits, len(m.rows), m.leastMoves(nodes, current, columns)); s != nil {
			return m.assign(s, columns, copies, current, fresh), limits.ok(copies), nil
		}
		// Without limits the second way always succeeds.
		limits = nil
	}
}

// idealColumns deals np·copies cells to n columns in turn, so that consecutive
// partitions are on different nodes, and returns the distinct columns, longest
// first.
func idealColumns(np, copies, n int) []column {
	dealt := make([][]int, n)
	for j := range np * copies {
		dealt[j%n] = append(dealt[j%n], j/copies)
	}
	slices.SortFunc(dealt, func(a, b []int) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return slices.Compare(a, b)
	})
	var columns []column
	for _, d := range dealt {
		if k := len(columns); k > 0 && slices.Equal(columns[k-1].partitions, d) {
			columns[k-1].left++
		} else {
			columns = append(columns, column{d, 1})
		}
	}
	return columns
}

// cellsOf returns the state of each cell of the nodes, by partition.
func (m *Managed) cellsOf(nodes []proto.NodeID) map[proto.NodeID]map[int]proto.CellState {
	cells := make(map[proto.NodeID]map[int]proto.CellState, len(nodes))
	for _, id := range nodes {
		cells[id] = map[int]proto.CellState{}
	}
	for p, row := range m.rows {
		for _, c := range row {
			if of := cells[c.ID]; of != nil {
				of[p] = c.State
			}
		}
	}
	return cells
}

// keepAll lets each node choose among the columns that include all its cells,
// except those it only feeds others from. nil if some node has no such column.
func (m *Managed) keepAll(nodes []proto.NodeID, current map[proto.NodeID]map[int]proto.CellState, columns []column) []choice {
	choices := make([]choice, 0, len(nodes))
	for _, id := range nodes {
		kept := 0
		for _, s := range current[id] {
			if s != proto.Feeding {
				kept++
			}
		}
		c := choice{id: id}
		for i, col := range columns {
			has := 0
			for _, p := range col.partitions {
				if s, ok := current[id][p]; ok && s != proto.Feeding {
					has++
				}
			}
			if has == kept {
				c.options = append(c.options, i)
			}
		}
		if c.options == nil {
			return nil
		}
		choices = append(choices, c)
	}
	return choices
}

// leastMoves orders the columns of each node by what it would lose, and lets
// those with most at stake choose first.
func (m *Managed) leastMoves(nodes []proto.NodeID, current map[proto.NodeID]map[int]proto.CellState, columns []column) []choice {
	choices := make([]choice, 0, len(nodes))
	for _, id := range nodes {
		total := cost{}
		for _, s := range current[id] {
			total[costIndex(s)]++
		}
		costs := make([]cost, len(columns))
		options := make([]int, len(columns))
		for i, col := range columns {
			options[i] = i
			costs[i] = total
			for _, p := range col.partitions {
				if s, ok := current[id][p]; ok {
					costs[i][costIndex(s)]--
				}
			}
		}
		slices.SortStableFunc(options, func(a, b int) int { return slices.Compare(costs[a][:], costs[b][:]) })
		best, worst := costs[options[0]], costs[options[len(options)-1]]
		choices = append(choices, choice{id, options, cost{best[0] - worst[0], best[1] - worst[1]}})
	}
	slices.SortStableFunc(choices, func(a, b choice) int { return slices.Compare(a.stake[:], b.stake[:]) })
	return choices
}

func costIndex(s proto.CellState) int {
	if s.Readable() {
		return 0
	}
	return 1
}

// assignment is a column given to a node.
type assignment struct {
	id     proto.NodeID
	column int
}

// searchBudget bounds the steps of a search, which is exponential when the
// limits of the topology leave few solutions or none. A cluster of 100 nodes
// without dead ends needs 100 steps.
const searchBudget = 200_000

// firstSolution gives each node, in order, its first option that leaves a
// solution to the others. nil if there is none within the budget.
func firstSolution(columns []column, limits *limits, np int, choices []choice) []assignment {
	if choices == nil {
		return nil
	}
	left := make([]int, len(columns))
	for i, c := range columns {
		left[i] = c.left
	}
	use := limits.start(np)
	solution := make([]assignment, 0, len(choices))
	budget := searchBudget
	var search func(k int) bool
	search = func(k int) bool {
		if k == len(choices) {
			return true
		}
		for _, i := range choices[k].options {
			if left[i] == 0 {
				continue
			}
			if budget--; budget < 0 {
				return false
			}
			if !use.take(choices[k].id, columns[i].partitions) {
				continue
			}
			left[i]--
			solution = append(solution, assignment{choices[k].id, i})
			if search(k + 1) {
				return true
			}
			solution = solution[:k]
			left[i]++
			use.giveBack(choices[k].id, columns[i].partitions)
		}
		return false
	}
	if search(0) {
		return solution
	}
	return nil
}

// assign gives the nodes their columns and discards, or keeps for feeding, their
// other cells. Changes are in the order of the solution, then by partition.
func (m *Managed) assign(solution []assignment, columns []column, copies int, current map[proto.NodeID]map[int]proto.CellState, fresh proto.CellState) []proto.CellChange {
	var changes []proto.CellChange
	missing := make([]int, len(m.rows))
	for p := range missing {
		missing[p] = copies
	}
	surplus := make([][]proto.NodeID, len(m.rows))
	for _, a := range solution {
		cells := current[a.id]
		for _, p := range columns[a.column].partitions {
			state, ok := cells[p]
			switch {
			case !ok:
				state = fresh
				m.change(&changes, p, a.id, state)
			case state == proto.Feeding:
				state = proto.UpToDate
				m.change(&changes, p, a.id, state)
			}
			if state.Readable() {
				missing[p]--
			}
		}
		for p := range cells {
			if _, found := slices.BinarySearch(columns[a.column].partitions, p); !found {
				surplus[p] = append(surplus[p], a.id)
			}
		}
	}
	for p, ids := range surplus {
		for _, id := range ids {
			state := current[id][p]
			if missing[p] > 0 && state.Readable() {
				missing[p]--
				if state != proto.Feeding {
					m.change(&changes, p, id, proto.Feeding)
				}
			} else {
				m.change(&changes, p, id, proto.Discarded)
			}
		}
	}
	return changes
}
