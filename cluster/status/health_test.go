package status

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// sample is a cluster of two storages and as many copies.
func sample() *Status {
	row := func() []Cell { return []Cell{{"S1", "UP_TO_DATE"}, {"S2", "UP_TO_DATE"}} }
	return &Status{State: "RUNNING", Primary: "M1", Partitions: Partitions{Replicas: 1, Rows: [][]Cell{row(), row(), row(), row()}}, Nodes: []Node{
		{ID: "M1", Type: "MASTER", State: "RUNNING", Address: "10.0.0.1:10000"},
		{ID: "S1", Type: "STORAGE", State: "RUNNING", Address: "10.0.0.1:20000", Host: "db1", Database: "/var/lib/neo/s1.sqlite"},
		{ID: "S2", Type: "STORAGE", State: "RUNNING", Address: "10.0.0.2:20000", Host: "db2", Database: "/var/lib/neo/s2.sqlite"},
	}}
}

// Each thing that is wrong has its level, and a reason that names what it is about.
func TestHealth(t *testing.T) {
	since := time.Date(2026, 11, 29, 18, 51, 52, 0, time.UTC)
	down := func(s *Status, i int) { s.Nodes[i].State, s.Nodes[i].Since = "DOWN", &since }
	lost := "S2 (db2, /var/lib/neo/s2.sqlite) is DOWN since 2026-11-29 18:51:52 UTC"
	for _, tt := range []struct {
		name   string
		change func(*Status)
		want   Health
	}{
		{"well", func(*Status) {}, Health{OK, []string{}}},
		{"a storage is lost", func(s *Status) { down(s, 2) }, Health{Degraded, []string{"partitions 0-3 have one readable copy of 2: " + lost}}},
		{"its cells are out of date too", func(s *Status) {
			down(s, 2)
			s.Partitions.Rows[3][1].State = "OUT_OF_DATE"
		}, Health{Degraded, []string{"partitions 0-3 have one readable copy of 2: " + lost}}},
		{"a cell is replicated", func(s *Status) { s.Partitions.Rows[3][1].State = "OUT_OF_DATE" },
			Health{Degraded, []string{"partition 3 has one readable copy of 2: S2 (db2, /var/lib/neo/s2.sqlite) is OUT_OF_DATE"}}},
		{"both are lost", func(s *Status) { down(s, 1); down(s, 2) }, Health{Down, []string{
			"partitions 0-3 have no readable copy of 2: S1 (db1, /var/lib/neo/s1.sqlite) is DOWN since 2026-11-29 18:51:52 UTC, " + lost}}},
		{"one partition is lost", func(s *Status) {
			down(s, 2)
			s.Partitions.Rows[1][0].State = "CORRUPTED"
		}, Health{Down, []string{
			"partition 1 has no readable copy of 2: S1 (db1, /var/lib/neo/s1.sqlite) is CORRUPTED, " + lost,
			"partitions 0, 2-3 have one readable copy of 2: " + lost}}},
		{"a storage that the admin does not know", func(s *Status) { s.Nodes = s.Nodes[:2] }, Health{Degraded, []string{"partitions 0-3 have one readable copy of 2: S2 is UNKNOWN"}}},
		{"too few cells", func(s *Status) { s.Partitions.Replicas = 2 }, Health{Degraded, []string{
			"partitions 0-3 have 2 readable copies of 3: no storage is to have another one (neoctl tweak)"}}},
		{"a cell is moved to another storage", func(s *Status) {
			s.Partitions.Rows[0] = []Cell{{"S1", "FEEDING"}, {"S2", "UP_TO_DATE"}, {"S3", "OUT_OF_DATE"}}
			s.Nodes = append(s.Nodes, Node{ID: "S3", Type: "STORAGE", State: "RUNNING", Host: "db3"})
		}, Health{Degraded, []string{"partition 0 has enough readable copies, but S3 (db3) is OUT_OF_DATE"}}},
		{"recovering", func(s *Status) { s.State = "RECOVERING"; s.Partitions.Rows = nil }, Health{Down, []string{"the cluster is RECOVERING"}}},
		{"a new cluster", func(s *Status) { s.State = "RECOVERING"; s.Partitions.Rows = make([][]Cell, 4) }, Health{Down, []string{
			"the cluster is RECOVERING, and no storage that is there has a partition table: if the cluster is new, neoctl start makes one of the storages that there are then; if not, start those that are missing"}}},
		{"no admin", func(s *Status) { *s = *Unreachable("h:1", cmpErr("refused")) }, Health{Down, []string{"the admin at h:1 cannot be asked: refused"}}},
		{"a master is lost", func(s *Status) {
			s.Nodes = append(s.Nodes, Node{Type: "MASTER", State: "DOWN", Address: "10.0.0.2:10000"})
		},
			Health{Degraded, []string{"the master 10.0.0.2:10000 is DOWN"}}},
		{"an import failed", func(s *Status) { s.Imports = []Import{{Node: "S1", State: "failed", Bad: true}} },
			Health{Degraded, []string{"the import of S1 (db1, /var/lib/neo/s1.sqlite) has stopped (failed): neoctl print import"}}},
		{"replicas differ", func(s *Status) { s.Check = &Check{Differ: []int{0, 1, 3}} },
			Health{Degraded, []string{"the last check of replicas found differences in partitions 0-1, 3 (neoctl check, neoctl repair)"}}},
		{"a replica of one partition differs", func(s *Status) { s.Check = &Check{Differ: []int{2}} },
			Health{Degraded, []string{"the last check of replicas found differences in partition 2 (neoctl check, neoctl repair)"}}},
		{"a check is over", func(s *Status) { s.Check = &Check{Ended: &time.Time{}, Complete: true} }, Health{OK, []string{}}},
		{"a check goes on", func(s *Status) { s.Check = &Check{} }, Health{OK, []string{}}},
		{"a check that goes on finds differences", func(s *Status) { s.Check = &Check{Differences: 2} },
			Health{Degraded, []string{"the check of replicas that goes on has found differences (neoctl status)"}}},
		{"a check is not complete", func(s *Status) { s.Check = &Check{Ended: &time.Time{}} },
			Health{Degraded, []string{"the last check of replicas could not compare everything (neoctl check)"}}},
		{"a check is not complete, and replicas differ", func(s *Status) { s.Check = &Check{Ended: &time.Time{}, Differences: 1, Differ: []int{2, 3}} }, Health{Degraded, []string{
			"the last check of replicas found differences in partitions 2-3 (neoctl check, neoctl repair)",
			"the last check of replicas could not compare everything (neoctl check)"}}},
		{"a backup is late", func(s *Status) { s.Warnings = []string{"b"} }, Health{Degraded, []string{`the backup cluster "b" is not well, or late`}}},
		{"the admin knows more", func(s *Status) { s.Problems, s.Summary = []string{""}, "RUNNING\n\nmail not sent" },
			Health{Degraded, []string{"the admin reports a problem: RUNNING mail not sent"}}},
		{"a backup cluster", func(s *Status) { s.State = "BACKINGUP"; s.Backups = []Backup{{Linked: true}} }, Health{OK, []string{}}},
		{"a backup cluster alone", func(s *Status) { s.State = "BACKINGUP"; s.Backups = []Backup{{}} },
			Health{Degraded, []string{"the master of the upstream cluster is not connected"}}},
	} {
		s := sample()
		tt.change(s)
		if diff := cmp.Diff(tt.want, s.Health()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, diff)
		}
	}
}

type cmpErr string

func (e cmpErr) Error() string { return string(e) }

// Why the admin cannot be asked is told in words.
func TestUnreachable(t *testing.T) {
	for _, x := range []struct {
		err  error
		want string
	}{
		{fmt.Errorf("asking 10.0.0.1:9999: %w", context.DeadlineExceeded), "it has not answered in time"},
		{&net.OpError{Op: "dial", Net: "tcp", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}, "connection refused"},
		{errors.New("the peer hung up"), "the peer hung up"},
	} {
		h := Unreachable("10.0.0.1:9999", x.err).Health()
		if want := "the admin at 10.0.0.1:9999 cannot be asked: " + x.want; h.Level != Down || len(h.Reasons) != 1 || h.Reasons[0] != want {
			t.Errorf("%v: %v, want %q", x.err, h, want)
		}
	}
}

// One partition is named in the singular.
func TestPartitionNames(t *testing.T) {
	for want, list := range map[string][]int{"partition 2": {2}, "partitions 0-1": {0, 1}, "partitions 0-2, 5, 7-8": {0, 1, 2, 5, 7, 8}} {
		if got := PartitionNames(list); got != want {
			t.Errorf("%v: %q, want %q", list, got, want)
		}
	}
}
