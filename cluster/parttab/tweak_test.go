package parttab

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/proto"
)

func storages(n int) []proto.NodeID {
	ids := make([]proto.NodeID, n)
	for i := range ids {
		ids[i] = proto.NodeID(i + 1)
	}
	return ids
}

func allRun(proto.NodeID) bool { return true }

// rows prints a table as one word per partition, one letter per node.
func rows(t *Table, n int) string {
	var words []string
	for _, row := range t.Rows() {
		word := []byte(strings.Repeat(".", n))
		for _, c := range row {
			word[c.ID-1] = Letter(c.State)
		}
		words = append(words, string(word))
	}
	return strings.Join(words, "|")
}

// parseRows is the inverse of rows.
func parseRows(s string) [][]proto.Cell {
	var out [][]proto.Cell
	for word := range strings.SplitSeq(s, "|") {
		var row []proto.Cell
		for i, c := range word {
			for _, state := range []proto.CellState{proto.OutOfDate, proto.UpToDate, proto.Feeding, proto.Corrupted} {
				if byte(c) == Letter(state) {
					row = append(row, proto.Cell{ID: proto.NodeID(i + 1), State: state})
				}
			}
		}
		out = append(out, row)
	}
	return out
}

func managed(replicas int, picture string, members int) *Managed {
	m := &Managed{}
	m.Load(proto.Some(uint64(1)), replicas, parseRows(picture))
	for _, id := range storages(members) {
		m.AddMember(id)
	}
	return m
}

// replicate makes all outdated cells readable.
func replicate(t *testing.T, m *Managed) {
	t.Helper()
	for p := range m.NP() {
		for _, c := range slices.Clone(m.Row(p)) {
			if c.State == proto.OutOfDate {
				m.SetUpdatable(c.ID, []int{p})
				if _, err := m.SetUpToDate(c.ID, p); err != nil {
					t.Fatal(err)
				}
				m.DiscardFed(p)
			}
		}
	}
}

func placed(paths ...string) Topology {
	return func(id proto.NodeID) []string { return strings.Split(paths[id-1], ",") }
}

func TestMake(t *testing.T) {
	for _, tt := range []struct {
		np, nr, n int
		where     Topology
		want      string
	}{
		{6, 1, 3, nil, "UU.|U.U|.UU|UU.|U.U|.UU"},
		{5, 1, 4, nil, "UU..|..UU|UU..|..UU|UU.."},
		{7, 2, 5, nil, "UUU..|U..UU|.UUU.|UU..U|..UUU|UUU..|U..UU"},
		{9, 1, 9, placed("0", "0", "0", "1", "1", "1", "2", "2", "2"),
			"U..U.....|.U....U..|..U.U....|.....U.U.|U.......U|.U.U.....|..U...U..|....U..U.|.....U..U"},
		{4, 1, 4, placed("h1,a", "h1,b", "h2,c", "h2,d"), "U.U.|.U.U|U.U.|.U.U"},
	} {
		t.Run(tt.want, func(t *testing.T) {
			var m Managed
			spread, err := m.Make(tt.np, tt.nr, storages(tt.n), tt.where)
			if err != nil {
				t.Fatal(err)
			}
			if got := rows(&m.Table, tt.n); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if got, want := spread, tt.where != nil; got != want {
				t.Errorf("spread over the topology: %v, want %v", got, want)
			}
			if m.PTID() != proto.Some(uint64(1)) {
				t.Errorf("a new table has id %v", m.PTID())
			}
		})
	}
}

func TestMakeForgetsNodesWithoutCell(t *testing.T) {
	var m Managed
	if _, err := m.Make(2, 0, storages(5), nil); err != nil {
		t.Fatal(err)
	}
	if got := m.Members(); !slices.Equal(got, storages(2)) {
		t.Errorf("members are %v, want S1 S2", got)
	}
}

func TestTweak(t *testing.T) {
	for _, tt := range []struct {
		name                     string
		np, nr, before, after    int // nodes before and after
		newNR                    int
		ignored                  []proto.NodeID
		want, wantWhenReplicated string
	}{
		{"third node", 6, 0, 2, 3, 0, nil, "U..|.U.|F.O|OF.|FO.|.FO", "U..|.U.|..U|U..|.U.|..U"},
		{"from 1 to 3 nodes", 6, 1, 1, 3, 1, nil, "UO.|U.O|FOO|UO.|U.O|FOO", "UU.|U.U|.UU|UU.|U.U|.UU"},
		{"from 2 to 4 nodes", 7, 1, 2, 4, 1, nil, "UU..|FFOO|UU..|FFOO|UU..|FFOO|UU..", "UU..|..UU|UU..|..UU|UU..|..UU|UU.."},
		{"fewer replicas", 6, 1, 3, 3, 0, nil, "U..|..U|.U.|U..|..U|.U.", "U..|..U|.U.|U..|..U|.U."},
		{"more replicas", 6, 0, 3, 3, 1, nil, "U.O|OU.|.OU|U.O|OU.|.OU", "U.U|UU.|.UU|U.U|UU.|.UU"},
		{"without S1", 6, 0, 3, 3, 0, []proto.NodeID{1}, "UO.|.FO|.OF|U.O|.U.|..U", "UU.|..U|.U.|U.U|.U.|..U"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := &Managed{}
			if _, err := m.Make(tt.np, tt.nr, storages(tt.before), nil); err != nil {
				t.Fatal(err)
			}
			for _, id := range storages(tt.after) {
				m.AddMember(id)
			}
			m.SetReplicas(tt.newNR)
			before := m.Clone()
			changes, _, err := m.Tweak(tt.ignored, nil, allRun)
			if err != nil {
				t.Fatal(err)
			}
			if got := rows(&m.Table, tt.after); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			// The changes, as broadcast, make the same table.
			p := &proto.NotifyPartitionChanges{PTID: before.Number(0) + 1, Replicas: tt.newNR, Cells: changes}
			if err := before.Apply(p, true); err != nil {
				t.Fatal(err)
			}
			if got := rows(&before.Table, tt.after); got != tt.want {
				t.Errorf("the changes lead to %s", got)
			}
			if again, _, err := m.Clone().Tweak(tt.ignored, nil, allRun); err != nil || len(again) > 0 {
				t.Errorf("a second tweak changes %v, %v", again, err)
			}
			replicate(t, m)
			if got := rows(&m.Table, tt.after); got != tt.wantWhenReplicated {
				t.Errorf("replicated\ngot  %s\nwant %s", got, tt.wantWhenReplicated)
			}
		})
	}
}

// The order of changes is part of the broadcast: additions by node, then what
// is discarded or kept for feeding, by partition.
func TestTweakOrder(t *testing.T) {
	m := managed(0, "U.|U.|U.|U.", 2)
	changes, _, err := m.Tweak(nil, nil, allRun)
	if err != nil {
		t.Fatal(err)
	}
	want := []proto.CellChange{
		{Partition: 1, ID: 2, State: proto.OutOfDate},
		{Partition: 3, ID: 2, State: proto.OutOfDate},
		{Partition: 1, ID: 1, State: proto.Feeding},
		{Partition: 3, ID: 1, State: proto.Feeding},
	}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Errorf("changes (-want +got):\n%s", diff)
	}
}

func TestTweakRefuses(t *testing.T) {
	m := managed(0, "U.|.U", 2)
	if _, _, err := m.Tweak(storages(2), nil, allRun); !errors.Is(err, ErrNoNode) {
		t.Errorf("tweak without nodes: %v", err)
	}
	_, _, err := m.Tweak([]proto.NodeID{1}, nil, func(id proto.NodeID) bool { return id == 2 })
	if !errors.Is(err, ErrNotOperational) {
		t.Errorf("tweak of a table that misses a node: %v", err)
	}
	if got := rows(&m.Table, 2); got != "U.|.U" {
		t.Errorf("a refused tweak left %s", got)
	}
}

// Copies go to different hosts, and if there are not enough hosts, to different
// devices, evenly over the hosts.
func TestTopology(t *testing.T) {
	for _, tt := range []struct {
		name   string
		nr     int
		paths  []string
		spread bool
	}{
		{"one device", 1, []string{"h,d", "h,d", "h,d"}, false},
		{"two devices", 1, []string{"h,d1", "h,d2", "h,d1", "h,d2"}, true},
		{"three copies on two hosts", 2, []string{"h1,a", "h1,b", "h2,a", "h2,b"}, true},
		{"uneven hosts", 1, []string{"h1,a", "h1,b", "h1,c", "h2,a"}, false},
		{"uneven hosts, but enough", 1, []string{"h1,a", "h1,b", "h2,a", "h3,a"}, true},
		{"unknown place", 1, []string{"h1,a", ""}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m Managed
			where := placed(tt.paths...)
			spread, err := m.Make(12, tt.nr, storages(len(tt.paths)), where)
			if err != nil {
				t.Fatal(err)
			}
			if spread != tt.spread {
				t.Fatalf("spread = %v: %s", spread, rows(&m.Table, len(tt.paths)))
			}
			if !spread {
				return
			}
			hosts := map[string]bool{}
			for _, p := range tt.paths {
				hosts[strings.Split(p, ",")[0]] = true
			}
			most := (tt.nr + len(hosts)) / len(hosts)
			for p, row := range m.Rows() {
				on, place := map[string]int{}, map[string]bool{}
				for _, c := range row {
					on[where(c.ID)[0]]++
					place[tt.paths[c.ID-1]] = true
				}
				for h, n := range on {
					if n > most {
						t.Errorf("partition %d has %d copies on %s", p, n, h)
					}
				}
				if len(place) != len(row) {
					t.Errorf("partition %d has copies in the same place: %v", p, row)
				}
			}
		})
	}
}

// A search that finds nothing ends soon.
func TestSearchIsBounded(t *testing.T) {
	var m Managed
	n := 40
	paths := make([]string, n)
	for i := range paths {
		paths[i] = fmt.Sprintf("h%d", i%7)
	}
	if _, err := m.Make(1000, 2, storages(n), placed(paths...)); err != nil {
		t.Fatal(err)
	}
	for i := range paths {
		paths[i] = fmt.Sprintf("h%d", i*3/n)
	}
	if _, _, err := m.Tweak(nil, placed(paths...), allRun); err != nil {
		t.Fatal(err)
	}
	checkShares(t, &m, nil)
}

// checkShares verifies what Tweak promises about the cells that are not feeding.
func checkShares(t *testing.T, m *Managed, ignored []proto.NodeID) {
	t.Helper()
	nodes := slices.DeleteFunc(m.Members(), func(id proto.NodeID) bool { return slices.Contains(ignored, id) })
	want := min(m.Replicas()+1, len(nodes))
	share := map[proto.NodeID]int{}
	for p, row := range m.Rows() {
		n := 0
		for _, c := range row {
			if slices.Contains(nodes, c.ID) && c.State != proto.Feeding {
				n++
				share[c.ID]++
			}
		}
		if n != want {
			t.Errorf("partition %d has %d cells, want %d: %v", p, n, want, row)
		}
	}
	least, most := 1<<30, 0
	for _, id := range nodes {
		least, most = min(least, share[id]), max(most, share[id])
	}
	if most > least+1 {
		t.Errorf("nodes have from %d to %d cells", least, most)
	}
}

// Whatever happens to a cluster, a tweak keeps its promises and every change
// keeps the database readable.
func TestPromisesOnRandomHistories(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 0))
		var m Managed
		n := 1 + r.IntN(6)
		if _, err := m.Make(1+r.IntN(30), r.IntN(3), storages(n), nil); err != nil {
			t.Fatal(err)
		}
		readable := func(p int) int {
			k := 0
			for _, c := range m.Row(p) {
				if c.State.Readable() {
					k++
				}
			}
			return k
		}
		for step := range 30 {
			before := make([]int, m.NP())
			for p := range before {
				before[p] = readable(p)
			}
			var kind string
			switch r.IntN(5) {
			case 0:
				kind = "tweak"
				m.SetReplicas(r.IntN(3))
				n++
				m.AddMember(proto.NodeID(n))
				var ignored []proto.NodeID
				if r.IntN(2) == 0 {
					ignored = m.Members()[:1]
				}
				if _, _, err := m.Tweak(ignored, nil, allRun); err != nil {
					t.Fatal(err)
				}
				checkShares(t, &m, ignored)
				clone := m.Clone()
				if again, _, err := clone.Tweak(ignored, nil, allRun); err != nil || len(again) > 0 {
					t.Errorf("seed %d step %d: a second tweak changes %v, %v", seed, step, again, err)
				}
				if ignored == nil {
					for p := range before {
						if got := readable(p); got < min(m.Replicas()+1, before[p]) {
							t.Errorf("seed %d step %d: tweak left %d of %d readable cells in partition %d", seed, step, got, before[p], p)
						}
					}
				}
			case 1:
				kind = "lose"
				ids := m.Members()
				lost := ids[r.IntN(len(ids))]
				m.Outdate(lost, func(id proto.NodeID) bool { return id != lost })
			case 2:
				kind = "drop"
				ids := m.Members()
				if _, err := m.DropNodes([]proto.NodeID{ids[r.IntN(len(ids))]}); err != nil && !errors.Is(err, ErrNotOperational) {
					t.Fatal(err)
				}
			default:
				kind = "replicate"
				for range 5 {
					p := r.IntN(m.NP())
					for _, c := range slices.Clone(m.Row(p)) {
						if c.State == proto.OutOfDate {
							m.SetUpdatable(c.ID, []int{p})
							if _, err := m.SetUpToDate(c.ID, p); err != nil {
								t.Fatal(err)
							}
							m.DiscardFed(p)
						}
					}
					if got := readable(p); got < min(before[p], m.Replicas()+1) {
						t.Errorf("seed %d step %d: a replication left %d of %d readable cells", seed, step, got, before[p])
					}
				}
			}
			if kind == "lose" && !m.Operational(allRun) {
				t.Fatalf("seed %d step %d: lost the last readable cell", seed, step)
			}
			if !m.Operational(allRun) {
				t.Fatalf("seed %d step %d: %s made the database unreadable", seed, step, kind)
			}
		}
	}
}

func BenchmarkTweakOf5000Partitions(b *testing.B) { // the master stands still meanwhile
	for b.Loop() {
		var m Managed
		if _, err := m.Make(5000, 1, storages(20), nil); err != nil {
			b.Fatal(err)
		}
		m.AddMember(21)
		if _, _, err := m.Tweak(nil, nil, allRun); err != nil {
			b.Fatal(err)
		}
	}
}
