package proctest

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/clustertest"
	"github.com/neozodb/neo/cluster/tid"
)

// runbook runs a script of contrib/backup with the programs under test.
// It answers no question.
func runbook(t testing.TB, script string, args ...string) (out string, err error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "sh", append([]string{"../../../contrib/backup/" + script}, args...)...)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(Bin(t, "neoctl"))+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = childAttr()
	b, err := cmd.CombinedOutput()
	return string(b), err
}

// All masters of the upstream cluster are killed under load, and the backup is promoted by
// the script of the runbook. The new cluster has exactly what the script says: a prefix of
// what the upstream cluster has, once that is there again. Other scripts make the old
// cluster a backup of the new one, and move back to it.
func TestPromote(t *testing.T) {
	o := Options{Name: "up", Storages: 3, Partitions: 6, Replicas: 1, Standby: 1, TLS: certificates(t)}
	up := StartCluster(t, o)
	o.Name = "down"
	down := startBackup(t, up, o)
	with := func(c *Cluster) []string { return append([]string{"-a", c.Admin}, c.extra...) }
	out, err := runbook(t, "promote.sh", with(up)...)
	if err == nil || !strings.Contains(out, "error: ") {
		t.Errorf("promotion of the upstream cluster: %v\n%s", err, out)
	}
	w := startWorkload(t, up, 4)
	w.wait(t, 200, patience, "at the beginning")
	tide := down.watchBackup(t)
	waitFor(t, "a backup of the beginning", func() bool { return tide.reached() >= w.times()[99].tid })
	tide.stop()

	start := time.Now()
	up.Master.Kill()
	up.Standby[0].Kill()
	out, err = runbook(t, "promote.sh", with(down)...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	script := time.Since(start)
	seen := w.stop()
	says(t, "promote.sh", out, `(?m)^kept: everything up to 0x[0-9a-f]+ \(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\)$`, `(?m)^lost: `, `(?m)^The cluster is RUNNING\.$`)
	after := startWorkload(t, down, 1)
	after.wait(t, 1, patience, "on the promoted cluster")
	first := time.Since(start)
	more := after.stop()
	t.Logf("%sfrom the kill of the masters to RUNNING %v, to the first commit %v", out, script.Round(time.Millisecond), first.Round(time.Millisecond))

	// The old cluster, with the new one as upstream.
	for _, p := range []*Process{up.Master, up.Standby[0]} {
		p.args = append(p.args, "-C", down.Name, "-M", down.Masters)
		if err := p.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	up.WaitState(t, "RUNNING", patience)
	old := up.verify(t, seen)
	cl, err := Connect(t.Context(), down)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	got, err := clustertest.Dump(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	told := regexp.MustCompile(`kept: everything up to (0x[0-9a-f]+)`).FindStringSubmatch(out)[1]
	kept, err := strconv.ParseUint(told, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	upTo := func(db []clustertest.Stored) int {
		n := slices.IndexFunc(db, func(s clustertest.Stored) bool { return s.TID > tid.TID(kept) })
		if n < 0 {
			return len(db)
		}
		return n
	}
	n := upTo(old)
	if n < 100 || n != upTo(got) || !reflect.DeepEqual(got[:n], old[:n]) {
		t.Errorf("the promoted cluster kept %d of the %d transactions of the upstream cluster, and not the first %d", upTo(got), len(old), n)
	}
	t.Logf("%d of %d transactions were kept", n, len(old))
	for i, err := range clustertest.Verify(more, got[upTo(got):]) {
		t.Error(err)
		if i == 20 {
			break
		}
	}

	rejoin := append([]string{told, up.Admin}, up.extra...)
	if n < len(old) {
		if out, err := runbook(t, "rejoin.sh", rejoin...); err == nil || !strings.Contains(out, "error: nothing was changed") {
			t.Errorf("the old cluster, which has more than the new one: %v\n%s", err, out)
		}
		t.Setenv("REMOVE", "yes")
	}
	if out, err := runbook(t, "rejoin.sh", rejoin...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	after = startWorkload(t, down, 1)
	after.wait(t, 10, patience, "with the old cluster as its backup")
	after.finish(t)
	// Back to the first cluster, once no client is left.
	want, err := clustertest.Dump(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	move := append([]string{down.Admin, up.Admin}, up.extra...)
	if out, err := runbook(t, "switch.sh", move...); err == nil || !strings.Contains(out, "error: stop the applications first") {
		t.Errorf("a client is connected: %v\n%s", err, out)
	}
	up.WaitState(t, "BACKINGUP", 0)
	cl.Close()
	down.waitClients(t, 1)
	if out, err := runbook(t, "switch.sh", move...); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	back, err := Connect(t.Context(), up)
	if err != nil {
		t.Fatal(err)
	}
	defer back.Close()
	if got, err := clustertest.Dump(t.Context(), back); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%d transactions after the way back, and %d before, %v", len(got), len(want), err)
	}
}

// The backup of a cluster is behind its repository when the cluster is lost. The promoted cluster gets what
// the repository has more, whole and equal, and goes on.
func TestPromoteWithRepository(t *testing.T) {
	up := StartCluster(t, Options{Name: "up", Storages: 2, Partitions: 6, Replicas: 1})
	down := startBackup(t, up, Options{Name: "down", Storages: 1, Partitions: 6})
	r := newRepository(t, "neo://"+up.Name+"@"+up.Masters, "", "--set", "interval=100ms")
	follow := Start(t, "neobackup", "follow", "-f", r.conf)
	w := startWorkload(t, up, 2)
	w.wait(t, 100, patience, "with the backup")
	down.Storages[0].Kill()
	w.wait(t, 100, patience, "without the backup")
	seen := w.finish(t)
	for deadline := time.Now().Add(patience); r.head(t) < w.lastAcknowledged(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("follow does not reach what is committed")
		}
	}
	if err := follow.Stop(t); err != nil {
		t.Fatal(err)
	}
	want := up.verify(t, seen)
	exported := read(t, r.restore(t))
	for _, p := range append(up.Storages, up.Master) {
		p.Kill()
	}

	if err := down.Storages[0].Restart(); err != nil {
		t.Fatal(err)
	}
	var out string
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		var err error
		if out, err = runbook(t, "promote.sh", "-a", down.Admin); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v\n%s", err, out)
		}
	}
	told := regexp.MustCompile(`kept: everything up to (0x[0-9a-f]+)`).FindStringSubmatch(out)[1]
	kept, err := strconv.ParseUint(told, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	if head := r.head(t); tid.TID(kept) >= head {
		t.Fatalf("the backup is not behind: it kept up to %v, the repository has %v", tid.TID(kept), head)
	}
	target := "neo://" + down.Name + "@" + down.Masters
	if _, errs, status := Run(t, "neobackup", "restore", "-f", r.conf, "--identity", r.identity, target); status == 0 {
		t.Errorf("without --append: %s", errs)
	}
	t.Log(r.run(t, "restore", "--identity", r.identity, "--append", target))
	path := filepath.Join(t.TempDir(), "down.fs")
	must(t, "neoexport", "-q", "-c", down.Name, down.Masters, path)
	if got := read(t, path); !bytes.Equal(got, exported) {
		t.Errorf("the promoted cluster has %d bytes, the repository %d: they differ", len(got), len(exported))
	}
	cl, err := Connect(t.Context(), down)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if got, err := clustertest.Dump(t.Context(), cl); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%d transactions, want %d, %v", len(got), len(want), err)
	}
	after := startWorkload(t, down, 1)
	after.wait(t, 10, patience, "after the restore")
	after.stop()
}
