package main

import (
	"bytes"
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cmd/internal/cli"
)

func runCtl(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	var out, errOut bytes.Buffer
	env := &cli.Env{Args: args, Stdout: &out, Stderr: &errOut}
	code = cli.Run(t.Context(), env, newCommand)
	return out.String(), errOut.String(), code
}

// startCluster runs a cluster and returns the address of its admin.
func startCluster(t *testing.T, cfg simple.Config) string {
	t.Helper()
	cfg.Dir = t.TempDir()
	c, err := simple.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	if err := c.WaitRunning(t.Context()); err != nil {
		t.Fatal(err)
	}
	return c.Admin().String()
}

// erases begins what is said before something is erased.
const erases = "*** THIS ERASES DATA FOR GOOD ***\n\n"

var place = regexp.MustCompile(`\([^ ()]+, [^ ()]*/storage\d\.sqlite\)`)

// anonymous leaves the machine and the directory of this run out.
func anonymous(s string) string { return place.ReplaceAllString(s, "(HOST, DB)") }

// An operator's session with a real cluster, as text: what is printed and the exit
// code are those of the Python implementation.
func TestSession(t *testing.T) {
	admin := startCluster(t, simple.Config{Storages: 2, Replicas: 1, Partitions: 12})
	for _, tt := range []struct {
		args           string
		stdout, stderr string
		code           int
	}{
		{"print cluster", "RUNNING\n", "", 0},
		{"print primary", "M1\n", "", 0},
		{"print ids", "last_oid = 0x0\nlast_tid = 0x0 (1900-01-01 00:00:00)\nlast_ptid = 1\n", "", 0},
		{"print pt", "# ptid: 1, replicas: 1\n             10v\nS1 R UUUUUUUUUUUU\nS2 R UUUUUUUUUUUU\n", "", 0},
		{"print pt 2 4", "# ptid: 1, replicas: 1\n002 | S1 - UP_TO_DATE | S2 - UP_TO_DATE |\n003 | S1 - UP_TO_DATE | S2 - UP_TO_DATE |\n", "", 0},
		{"print node client", "Empty list!\n", "", 0},
		{"print summary", "# {}\nRUNNING; UP_TO_DATE=24; ltid=0000000000000000 (1900-01-01 00:00:00)\n", "", 0},
		{"set cluster running", "", "RUNNING does not lead to RUNNING\n", 1},
		{"start", "", "RUNNING does not lead to VERIFYING\n", 1},
		{"add all", "No node added\n", "", 0},
		{"tweak", "No change done.\n", "", 0},
		{"tweak -n", "No change done.\n", "", 0},
		{"kill S7", "", "unknown node\n", 1},
		{"drop S1", "", "a running node must be stopped before removal\n", 1},
		{"set replicas 1", "\n", "", 0},
		{"check 0: 1:S1", "0 transactions and records of 2 partitions compared: no difference found\n", "", 0},
		{"check", "0 transactions and records of 12 partitions compared: no difference found\n", "", 0},
		{"check :", "0 transactions and records of 12 partitions compared: no difference found\n", "", 0},
		{"check :S2 tid:1 1700000000", "0 transactions and records of 12 partitions compared: no difference found\n", "", 0},
		{"check : tid:1", "There is nothing to check up to the last transaction.\n", "", 0},
		{"check 0:S7", "", "S7 is not a storage that can be reached\n", 1},
		{"check 12:", "", "no partition 12\n", 1},
		{"repair --from S1 S2", "0 transactions and records of 12 partitions compared: no difference found\nNothing to repair.\n", "", 0},
		{"repair --from S1 S7", "", "S1 has no partition in common with the nodes to be repaired: see neoctl print pt\n", 1},
		{"prune_orphan 1 all", "\n", "", 0},
		{"prune_orphan 0 S1 S2", "", erases + "Data that nothing refers to are deleted in the databases of S1 (HOST, DB), S2 (HOST, DB).\n" +
			"neoctl prune_orphan 1 only writes to the logs of the storages what they are.\n\nNothing was done. To go on: neoctl prune_orphan 0 S1 S2 --yes\n", 1},
		{"prune_orphan 0 S1 S2 --yes", "\n", "", 0},
		{"--yes prune_orphan 0 all", "\n", "", 0},
		{"set replicas 5", "", "5 replicas need 6 storages: there are 2, S1, S2\n", 1},
		{"add S9", "", "unknown node: S9; pending: none\n", 1},
		{"add S1 S9", "", "unknown node: S9; pending: none\n", 1},
		{"flush_log", "", "", 0},
		{"kill S2", "state changed\n", "warning: only S1 (HOST, DB) has a readable copy of partitions 0-11 now\n", 0},
		{"kill S2", "node already in DOWN state\n", "", 0},
		{"check :", "partitions 0-11: only S1 has it: only checksums were verified; the copy of S2 is not readable: it was not compared\n" +
			"0 transactions and records of 12 partitions compared: no difference found\n", "", 0},
		{"check 3:S2", "partition 3: NOT COMPARED to the end: S2 has no readable copy\n" +
			"0 transactions and records of 0 partitions compared: no difference found; 1 partition could not be compared\n", "", 3},
		{"repair --from S1 --partition 3 S2", "partition 3: only S1 has it: only checksums were verified; the copy of S2 is not readable: it was not compared\n" +
			"0 transactions and records of 1 partition compared: no difference found\n" +
			"partition 3: the copy of S2 is OUT_OF_DATE: it is replicated when S2 runs, and can be repaired then\nNothing to repair.\n", "", 3},
		{"kill S1", "", "Refuse to drop nodes that contain the only readable copies of partition 0\n", 1},
		{"tweak", "", "tweak: down nodes must be listed explicitly: S2 is DOWN\n", 1},
		{"drop S2", "", erases + "S2 (HOST, DB) is removed from the cluster for good, with its copies of partitions 0-11.\n" +
			"What only its database has is lost to the cluster, and the storage cannot come back with it.\n\nNothing was done. To go on: neoctl drop S2 --yes\n", 1},
		{"drop S2 --yes", "node permanently removed\n", "", 0},
		{"print pt", "# ptid: 4, replicas: 1\n             10v\nS1 R UUUUUUUUUUUU\n", "", 0},
		{"foo bar", "", "invalid command: foo bar\n", 2},
		{"print", "", "invalid command: print; it goes on with cluster, node, pt, ids, primary, summary, import, backup\n", 2},
		{"print nodes", "", "invalid command: print nodes; did you mean \"print node\"?\n", 2},
		{"twek -n", "", "invalid command: twek -n; did you mean \"tweak\"?\n", 2},
		{"stauts", "", "invalid command: stauts; did you mean \"status\"?\n", 2},
		{"set cluster STOPPING", "Cluster state changed\n", "", 0},
	} {
		stdout, stderr, code := runCtl(t, append([]string{"-a", admin}, strings.Fields(tt.args)...)...)
		stdout, stderr = anonymous(stdout), anonymous(stderr)
		if stdout != tt.stdout || stderr != tt.stderr || code != tt.code {
			t.Errorf("neoctl %s:\n got %q, %q, exit %d\nwant %q, %q, exit %d", tt.args, stdout, stderr, code, tt.stdout, tt.stderr, tt.code)
		}
	}
	deadline := time.Now().Add(2 * time.Minute)
	for {
		_, stderr, code := runCtl(t, "-a", admin, "print", "cluster")
		if code == 1 && strings.HasPrefix(stderr, "ERROR: not connected: ") {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after the end of the cluster: %q, exit %d", stderr, code)
		}
	}
}

func TestWrongUsage(t *testing.T) {
	for _, args := range []string{
		"print node nothing", "print pt x", "print pt 1 2 3", "print pt 1 2 S1 S2", "print cluster now", "set cluster", "set cluster x", "set replicas", "set replicas -1",
		"set replicas many", "add", "add s1", "add all S1", "kill", "kill S1 S2", "kill all", "drop 1", "tweak S1 -n", "check 1", "repair", "repair S1", "repair --from S1", "repair --from", "repair --from S1 S1", "repair --from S1 --from S2 S3",
		"repair --from S1 --partition x S2", "repair --from S1 --all S2", "check x:", "check 0:x",
		"check 0: 1 2 3", "prune_orphan", "prune_orphan 2 all", "prune_orphan 0", "truncate", "truncate x", "truncate tid:0x8000000000000000", "flush_log now",
	} {
		stdout, stderr, code := runCtl(t, append([]string{"-a", "127.0.0.1:1"}, strings.Fields(args)...)...)
		if code != 2 || stdout != "" || !strings.HasPrefix(stderr, "usage: neoctl") {
			t.Errorf("neoctl %s: %q, %q, exit %d", args, stdout, stderr, code)
		}
	}
}

func TestUsage(t *testing.T) {
	stdout, _, code := runCtl(t)
	if code != 0 || !strings.Contains(stdout, "tweak [-n] [NODE...]") {
		t.Errorf("without command: exit %d, %q", code, stdout)
	}
	stdout, _, code = runCtl(t, "--help")
	if code != 0 || !strings.Contains(stdout, "Exit status: 0 done") {
		t.Errorf("--help: exit %d, %q", code, stdout)
	}
}

func TestNodeTable(t *testing.T) {
	addr := func(port uint16) proto.Address { return proto.Address{Host: "127.0.0.1", Port: port} }
	got := nodeTable([]proto.Node{
		{Type: proto.Master, Addr: addr(10001), State: proto.NodeDown},
		{Type: proto.Storage, ID: 1, Addr: addr(20000), State: proto.NodePending, IDTimestamp: proto.Some(1795205301.636045)},
		{Type: proto.Master, ID: proto.Master.ID(1), Addr: addr(10000), State: proto.NodeRunning},
		{Type: proto.Client, ID: proto.Client.ID(1), State: proto.NodeRunning, IDTimestamp: proto.Some(1795205518.0)},
		{Type: proto.Admin, ID: proto.Admin.ID(1), Addr: addr(9999), State: proto.NodeRunning, IDTimestamp: proto.Some(1795205301.634908)},
	})
	want := `A1   | ADMIN   | 127.0.0.1:9999  | RUNNING | 2026-11-20 20:08:21.634908
C1   | CLIENT  |                 | RUNNING | 2026-11-20 20:11:58
M1   | MASTER  | 127.0.0.1:10000 | RUNNING | None
S1   | STORAGE | 127.0.0.1:20000 | PENDING | 2026-11-20 20:08:21.636045
None | MASTER  | 127.0.0.1:10001 | DOWN    | None
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestIDText(t *testing.T) {
	for _, tt := range []struct {
		ids  ctl.LastIDs
		want string
	}{
		{ctl.LastIDs{LastOID: proto.Some(tid.OID(100)), LastTID: proto.Some(tid.TID(0x40d265a1099e841)), PTID: proto.Some(uint64(18))},
			"last_oid = 0x64\nlast_tid = 0x40d265a1099e841 (2026-11-20 20:10:03.890906)\nlast_ptid = 18\n"},
		{ctl.LastIDs{BackupTID: proto.Some(tid.TID(0x40d265b8671e27b)), LastTID: proto.Some(tid.TID(0x40d265b8671e27b)), PTID: proto.Some(uint64(1))},
			"backup_tid = 0x40d265b8671e27b (2026-11-20 20:11:31.510514)\nlast_tid = 0x40d265b8671e27b (2026-11-20 20:11:31.510514)\nlast_ptid = 1\n"},
		{ctl.LastIDs{}, "last_oid = None\nlast_tid = None\nlast_ptid = None\n"},
	} {
		if got := idText(&tt.ids); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
}

func TestSummaryText(t *testing.T) {
	got, err := summaryText(&proto.AnswerMonitorInformation{
		Warning: []proto.Opt[string]{proto.Some("a"), proto.Some(`b"`)}, Problem: []proto.Opt[string]{{}}, Summary: "RECOVERING",
	}, `[[null,1.5]]`)
	want := `# {"warning": ["a", "b\""], "problem": [null], "due": [[null,1.5]]}` + "\nRECOVERING\n"
	if got != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestShown(t *testing.T) {
	rows := [][]proto.Cell{{{ID: 1, State: proto.UpToDate}, {ID: 3, State: proto.OutOfDate}}, nil}
	nodes := []proto.Node{
		{ID: 1, State: proto.NodeDown}, {ID: 2, State: proto.NodeRunning}, {ID: 4, State: proto.NodePending},
	}
	var got []string
	for _, n := range shown(rows, nodes) {
		got = append(got, n.ID.String()+" "+n.State.String())
	}
	if diff := cmp.Diff([]string{"S1 DOWN", "S2 RUNNING", "S3 UNKNOWN"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, want := rowTable(7, rows), "007 | S1 - UP_TO_DATE | S3 - OUT_OF_DATE |\n008 |\n"; got != want {
		t.Errorf("rows %q, want %q", got, want)
	}
}
