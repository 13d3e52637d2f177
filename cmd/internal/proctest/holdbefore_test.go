package proctest

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/clustertest"
	"github.com/neozodb/neo/cluster/tid"
)

// A mistake is made in the upstream cluster, and noticed before it reaches a delayed
// backup. The script of the runbook keeps it away: the backup gets everything before it
// and nothing more, whatever is started again, until it is released.
func TestHoldBefore(t *testing.T) {
	o := Options{Name: "up", Storages: 2, Partitions: 6, TLS: certificates(t)}
	up := StartCluster(t, o)
	w := startWorkload(t, up, 2)
	w.wait(t, 20, patience, "at the beginning")
	o.Name, o.Replicas, o.Master = "down", 1, []string{"--backup-delay", "4s"}
	down := startBackup(t, up, o)
	options := append([]string{"-a", down.Admin}, down.extra...)
	tide := down.watchBackup(t)
	early := w.times()[9].tid
	for deadline := time.Now().Add(patience); tide.reached() < early; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the backup is at %v and has not got %v, which is due", tide.reached(), early)
		}
	}

	t.Setenv("WAIT", "yes")
	if out, err := runbook(t, "hold-before.sh", append([]string{"0x" + early.String()}, options...)...); err == nil {
		t.Errorf("a hold before what the backup has:\n%s", out)
	} else {
		t.Logf("too late: %s", out)
	}
	for _, bad := range []string{"0x", "0xyz", "yesterday", ""} {
		if out, err := runbook(t, "hold-before.sh", append([]string{bad}, options...)...); err == nil || !strings.HasPrefix(out, "error: ") {
			t.Errorf("a hold before %q: %v\n%s", bad, err, out)
		}
	}
	var mistake tid.TID
	var out string
	waitFor(t, "a hold before a mistake", func() bool {
		mistake = w.lastAcknowledged()
		var err error
		if out, err = runbook(t, "hold-before.sh", append([]string{"0x" + mistake.String()}, options...)...); err != nil {
			t.Logf("%v\n%s", err, out) // it was too late
		}
		return err == nil
	})
	t.Log(out)
	says(t, "hold-before.sh", out, `held at: +`+(mistake-1).String())
	held := func(when string) {
		t.Helper()
		cl, err := down.connect(t.Context(), true)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		defer cl.Close()
		got, err := clustertest.Dump(t.Context(), cl)
		if err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if want := before(t, up, mistake); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the backup has %d transactions, and the upstream cluster %d before the mistake", when, len(got), len(want))
		}
	}
	held("held")
	must(t, "neoexport", slices.Concat(down.extra, []string{"-q", "-c", down.Name, down.Masters, filepath.Join(t.TempDir(), "before.fs")})...)
	for _, p := range down.Nodes() {
		p.Kill()
	}
	for _, p := range down.Nodes() {
		if err := p.Restart(); err != nil {
			t.Fatal(err)
		}
	}
	down.WaitState(t, "BACKINGUP", patience)
	for range 100 {
		time.Sleep(50 * time.Millisecond)
		if at := tide.reached(); at >= mistake {
			t.Fatalf("the backup went beyond its hold, to %v, when it was started again", at)
		}
	}
	if out, _, _ := down.Ctl(t, "print", "backup"); !strings.Contains(out, `"hold_tid":"`+(mistake-1).String()) {
		t.Errorf("the hold is lost:\n%s", out)
	}
	held("started again")

	w.stop()
	if out, errOut, status := down.Ctl(t, "backup", "release"); status != 0 {
		t.Fatalf("release: %s%s", out, errOut)
	}
	for deadline := time.Now().Add(patience); tide.reached() < w.lastAcknowledged(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the backup is at %v and has not got %v after the release", tide.reached(), w.lastAcknowledged())
		}
	}
}

// before returns what a cluster has before a transaction.
func before(t testing.TB, c *Cluster, at tid.TID) []clustertest.Stored {
	t.Helper()
	cl, err := Connect(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	db, err := clustertest.Dump(t.Context(), cl)
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(db, func(s clustertest.Stored) bool { return s.TID >= at })
}
