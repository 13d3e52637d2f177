package parttab

import (
	"fmt"
	"strings"

	"github.com/neozodb/neo/cluster/proto"
)

// limits say how many copies of a partition may be in the same place, such as a
// host, or a device of it. A nil *limits allows everything.
type limits struct {
	depth []limit
	path  map[proto.NodeID][]int // per depth, the number of the place of the node
}

// limit: of the places under the same parent, none may hold more than most
// copies of a partition, and at most full of them may hold most.
type limit struct {
	most, full int
	parent     []int // of each place of this depth, its place one depth above
}

// newLimits looks for the depth at which the copies of a partition can all be in
// different places. It returns nil if there is none, or if the nodes are so
// unevenly spread that equal shares would not fit.
func newLimits(nodes []proto.NodeID, where Topology, copies int) *limits {
	if copies <= 1 || where == nil {
		return nil
	}
	paths := make([][]string, len(nodes))
	depth := -1
	for i, id := range nodes {
		paths[i] = where(id)
		if depth < 0 || len(paths[i]) < depth {
			depth = len(paths[i])
		}
	}
	l := &limits{path: map[proto.NodeID][]int{}}
	for d := 1; d <= depth; d++ {
		place := map[string]int{}
		var parent, count []int
		for i, id := range nodes {
			// Components are quoted by their length, so that joined paths stay distinct.
			var key strings.Builder
			for _, part := range paths[i][:d] {
				fmt.Fprintf(&key, "%d:%s", len(part), part)
			}
			n, ok := place[key.String()]
			if !ok {
				n = len(place)
				place[key.String()] = n
				count = append(count, 0)
				above := 0
				if d > 1 {
					above = l.path[id][d-2]
				}
				parent = append(parent, above)
			}
			count[n]++
			l.path[id] = append(l.path[id], n)
		}
		even, largest := true, 0
		for _, c := range count {
			even = even && c == count[0]
			largest = max(largest, c)
		}
		if !even && largest*copies > len(nodes) {
			return nil
		}
		places := len(place)
		lim := limit{copies / places, places, parent}
		if r := copies % places; r > 0 {
			lim.most, lim.full = copies/places+1, r
		}
		l.depth = append(l.depth, lim)
		if places >= copies {
			return l
		}
	}
	return nil
}

// ok reports whether the copies were spread, as far as there is more than one.
func (l *limits) ok(copies int) bool { return l != nil || copies <= 1 }

// usage counts, during a search, the copies in each place.
type usage struct {
	*limits
	held [][]int32 // per depth, [partition*places + place]: copies
	full [][]int32 // per depth, [partition*places + place above]: places that hold the most
}

func (l *limits) start(np int) *usage {
	u := &usage{limits: l}
	if l == nil {
		return u
	}
	for d := range l.depth {
		u.held = append(u.held, make([]int32, np*u.places(d)))
		u.full = append(u.full, make([]int32, np*u.places(d-1)))
	}
	return u
}

func (u *usage) places(d int) int {
	if d < 0 {
		return 1
	}
	return len(u.depth[d].parent)
}

// take puts a copy of each partition on a node, or does nothing and returns
// false if that is against the limits.
func (u *usage) take(id proto.NodeID, partitions []int) bool {
	if u.limits == nil {
		return true
	}
	for _, p := range partitions {
		for d, lim := range u.depth {
			n := u.path[id][d]
			held := u.held[d][p*u.places(d)+n]
			if int(held) >= lim.most || int(held)+1 == lim.most && int(u.full[d][p*u.places(d-1)+lim.parent[n]]) >= lim.full {
				return false
			}
		}
	}
	u.add(id, partitions, 1)
	return true
}

func (u *usage) giveBack(id proto.NodeID, partitions []int) {
	if u.limits != nil {
		u.add(id, partitions, -1)
	}
}

func (u *usage) add(id proto.NodeID, partitions []int, by int32) {
	for _, p := range partitions {
		for d, lim := range u.depth {
			n := u.path[id][d]
			held := &u.held[d][p*u.places(d)+n]
			full := &u.full[d][p*u.places(d-1)+lim.parent[n]]
			if int(max(*held, *held+by)) == lim.most {
				*full += by
			}
			*held += by
		}
	}
}
