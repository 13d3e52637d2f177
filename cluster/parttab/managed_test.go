package parttab

import (
	"errors"
	"slices"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
)

func TestOutdate(t *testing.T) {
	for _, tt := range []struct {
		name, before, want string
		lost               proto.NodeID
		down               []proto.NodeID
	}{
		{"a replica takes over", "UU|UU", "OU|OU", 1, []proto.NodeID{1}},
		{"the last copy is kept", "UU|U.", "OU|U.", 1, []proto.NodeID{1}},
		{"feeding cells go", "FU.|F.O", ".U.|F.O", 1, []proto.NodeID{1}},
		{"outdated and corrupted cells stay", "OU|CU", "OU|CU", 1, []proto.NodeID{1}},
		{"one lost earlier", "UUU|UU.", "OOU|OU.", 2, []proto.NodeID{1, 2}},
		{"at startup", "UU.|U.U|.UU", "OU.|O.U|.UU", 0, []proto.NodeID{1}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := managed(1, tt.before, 3)
			m.Outdate(tt.lost, func(id proto.NodeID) bool { return !slices.Contains(tt.down, id) })
			width := 3
			if len(tt.want) > 2 && tt.want[2] == '|' {
				width = 2
			}
			if got := rows(&m.Table, width); got != tt.want {
				t.Errorf("%s became %s, want %s", tt.before, got, tt.want)
			}
		})
	}
}

func TestSetUpToDate(t *testing.T) {
	for _, tt := range []struct {
		name         string
		replicas     int
		before, want string
	}{
		{"feeding cell goes when all are readable", 0, "FO.|UU.", ".U.|UU."},
		{"feeding cells stay while copies are missing", 2, "FUOO|U...", "FUUO|U..."},
		{"one feeding cell too many goes, of the node being emptied first", 1, "FFOO|UF..", "F.UO|UF.."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := managed(tt.replicas, tt.before, 4)
			id := proto.NodeID(slices.IndexFunc([]byte(tt.before), func(b byte) bool { return b == 'O' }) + 1)
			m.SetUpdatable(id, []int{0, 1})
			if _, err := m.SetUpToDate(id, 0); err != nil {
				t.Fatal(err)
			}
			m.DiscardFed(0)
			if got := rows(&m.Table, len(tt.want)/2); got != tt.want {
				t.Errorf("%s became %s, want %s", tt.before, got, tt.want)
			}
		})
	}
}

// A report of a replication counts only if the node has asked for unfinished
// transactions since the cell was assigned.
func TestLateReplicationReportIsIgnored(t *testing.T) {
	m := managed(0, "UO", 2)
	report := func() int {
		t.Helper()
		changes, err := m.SetUpToDate(2, 0)
		if err != nil {
			t.Fatal(err)
		}
		return len(changes)
	}
	if report() != 0 {
		t.Error("a report without a question changed the table")
	}
	m.SetUpdatable(2, []int{0})
	if _, err := m.DropNodes([]proto.NodeID{2}); err != nil {
		t.Fatal(err)
	}
	if _, err := m.SetUpToDate(2, 0); !errors.Is(err, ErrNotAssigned) {
		t.Errorf("report for a cell that is gone: %v", err)
	}
	m.AddCells(2, []int{0})
	if report() != 0 {
		t.Error("a report from before the cell was assigned again changed the table")
	}
	m.SetUpdatable(2, []int{0})
	if report() == 0 {
		t.Error("a proper report was ignored")
	}
	for _, p := range []int{-1, 1} {
		if _, err := m.SetUpToDate(2, p); !errors.Is(err, ErrNotAssigned) {
			t.Errorf("report for partition %d: %v", p, err)
		}
	}
}

func TestDropNodes(t *testing.T) {
	m := managed(1, "UU.|FO.|O.U", 3)
	if _, err := m.DropNodes([]proto.NodeID{3}); !errors.Is(err, ErrNotOperational) {
		t.Errorf("dropping the last readable copy: %v", err)
	}
	if _, err := m.DropNodes([]proto.NodeID{1}); !errors.Is(err, ErrNotOperational) {
		t.Errorf("dropping a node whose other copy is outdated: %v", err)
	}
	if got := rows(&m.Table, 3); got != "UU.|FO.|O.U" {
		t.Errorf("refused drops left %s", got)
	}
	if _, err := m.DropNodes([]proto.NodeID{2}); err != nil {
		t.Error(err)
	}
	if got := rows(&m.Table, 3); got != "U..|U..|O.U" {
		t.Errorf("left %s: the feeding cell should have been taken back", got)
	}
	if got := m.Members(); !slices.Equal(got, []proto.NodeID{1, 3}) {
		t.Errorf("members are %v", got)
	}
}

func TestText(t *testing.T) {
	m := managed(1, "UU.|UF.|.UO|UU.|CU.|UU.|UU.|UU.|UU.|UU.|U.O|UU.", 3)
	nodes := []proto.Node{{ID: 3, State: proto.NodePending}, {ID: 1, State: proto.NodeRunning}, {ID: 2, State: proto.NodeDown}}
	want := "             10v\n" +
		"S1 R UU.UCUUUUUUU\n" +
		"S2 D UFUUUUUUUU.U\n" +
		"S3 P ..O.......O."
	if got := Text(m.Rows(), nodes); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if got := Text(nil, nil); got != "" {
		t.Errorf("text of no table: %q", got)
	}
}

func TestCheckRefusesUnsoundRows(t *testing.T) {
	for _, rows := range [][][]proto.Cell{
		nil,
		{{{ID: 1, State: proto.Discarded}}},
		{{{ID: -1, State: proto.UpToDate}}},
		{{{ID: 1}, {ID: 2}, {ID: 1}}},
	} {
		if Check(rows) == nil {
			t.Errorf("rows %v are accepted", rows)
		}
	}
	if err := Check(parseRows("UO|FC")); err != nil {
		t.Error(err)
	}
}

func TestSuspend(t *testing.T) {
	for _, tt := range []struct {
		row  string
		id   proto.NodeID
		want string // "": refused
	}{
		{"UU", 2, "UO"},
		{"UO", 1, ""}, // the last readable one
		{"UU.", 3, ""},
		{"UF", 2, ""},
		{"FU", 2, "FO"},
		{"UC", 2, ""},
	} {
		m := managed(1, tt.row, 3)
		changes := m.Suspend(tt.id, 0, allRun)
		if tt.want == "" {
			if changes != nil {
				t.Errorf("%s: %v is taken out of service", tt.row, tt.id)
			}
			continue
		}
		if got := rows(&m.Table, 3); len(changes) != 1 || changes[0].State != proto.OutOfDate || got[:2] != tt.want {
			t.Errorf("%s: %v, now %s, want %s", tt.row, changes, got, tt.want)
		}
		// Its replication makes it readable again, once it has asked.
		m.SetUpdatable(tt.id, []int{0})
		if changes, err := m.SetUpToDate(tt.id, 0); len(changes) == 0 || err != nil {
			t.Errorf("%s: not readable again: %v, %v", tt.row, changes, err)
		}
	}
	m := managed(1, "UU", 2)
	if changes := m.Suspend(2, 0, func(id proto.NodeID) bool { return id == 2 }); changes != nil {
		t.Error("the last one that runs is taken out of service")
	}
}
