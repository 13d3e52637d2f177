package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/status"
)

// A storage that runs with --disable-pack keeps its history, and that is told; one without cells
// has nothing to pack.
func TestPackStorages(t *testing.T) {
	cells := map[string]int{"UP_TO_DATE": 1}
	plan := packPlan{status: &status.Status{Nodes: []status.Node{
		{ID: "M1", Type: "MASTER", State: "RUNNING"},
		{ID: "S1", Type: "STORAGE", State: "RUNNING", Host: "db1", Cells: cells},
		{ID: "S2", Type: "STORAGE", State: "DOWN", Host: "db2", Cells: cells},
		{ID: "S3", Type: "STORAGE", State: "RUNNING", Host: "db3", Cells: cells, PackDisabled: true},
		{ID: "S4", Type: "STORAGE", State: "PENDING", Host: "db4"},
	}}}
	packing, idle := plan.storages()
	if diff := cmp.Diff([]string{"S1 (db1)", "S2 (db2), once it runs again"}, packing); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"S3 (db3)"}, idle); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
