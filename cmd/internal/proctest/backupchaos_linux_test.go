package proctest

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/clustertest"
)

var backupMinutes = flag.Float64("backup-minutes", 0.2, "how long TestBackupChaos disturbs its clusters")

// An upstream and a backup cluster of three storages each, with one replica, two masters,
// and TLS: nodes of every kind are killed on both sides, one or two at a time, while
// clients commit upstream. What clients of the backup see never goes back, nor does the backup
// TID when its masters and storages live, and in the end all copies of
// each partition are equal, those of the backup as well.
func TestBackupChaos(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-crash-seed=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 3))

	const storages, partitions, clients = 3, 12, 4
	o := Options{Name: "up", Storages: storages, Partitions: partitions, Replicas: 1, Standby: 1, TLS: certificates(t),
		Admin: []string{"--monitor-backup", "down"}, Logs: true}
	up := StartCluster(t, o)
	w := startWorkload(t, up, clients)
	rate := func(d time.Duration) float64 {
		before, start := w.acknowledged(), time.Now()
		time.Sleep(d)
		return float64(w.acknowledged()-before) / time.Since(start).Seconds()
	}
	quiet := 2 * time.Second
	if *backupMinutes >= 1 {
		quiet = 20 * time.Second
	}
	alone := rate(quiet)
	o.Name, o.Admin = "down", nil
	down := startBackup(t, up, o)
	tide, readable := down.watchBackup(t), down.watchReadable(t)
	caughtUp := func(when string, limit time.Duration) {
		t.Helper()
		want := w.lastAcknowledged()
		for deadline := time.Now().Add(limit); tide.reached() < want; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				for _, c := range []*Cluster{up, down} {
					for _, what := range []string{"ids", "node", "pt"} {
						out, errOut, _ := c.Ctl(t, "print", what)
						t.Logf("%s print %s\n%s%s", c.Name, what, out, errOut)
					}
				}
				t.Fatalf("the backup is at %v and not at %v %v after %s", tide.reached(), want, limit, when)
			}
		}
	}
	caughtUp("the start", patience)
	from := len(w.times())
	both := rate(quiet)
	caughtUp("the quiet time", patience)
	t.Logf("commits of %d clients: %.0f/s alone, %.0f/s with a backup; lag without faults: %s", clients, alone, both, percentiles(tide.lags(w.times()[from:])))
	if out, _, _ := up.Ctl(t, "print", "summary"); !strings.Contains(out, "down") {
		t.Errorf("the upstream cluster does not tell of its backup:\n%s", out)
	} else {
		t.Logf("neoctl print summary:\n%s", out)
	}

	type kind struct {
		name    string
		victims func() []*Process
	}
	var kinds []kind
	for _, c := range []*Cluster{up, down} {
		master := func() *Process { return append([]*Process{c.Master}, c.Standby...)[rnd.IntN(2)] }
		storage := func() *Process { return c.Storages[rnd.IntN(storages)] }
		kinds = append(kinds,
			kind{"master " + c.Name, func() []*Process { return []*Process{master()} }},
			kind{"storage " + c.Name, func() []*Process { return []*Process{storage()} }},
			kind{"both masters " + c.Name, func() []*Process { return []*Process{c.Master, c.Standby[0]} }},
			kind{"master and storage " + c.Name, func() []*Process { return []*Process{master(), storage()} }},
			kind{"two storages " + c.Name, func() []*Process {
				i := rnd.IntN(storages)
				return []*Process{c.Storages[i], c.Storages[(i+1)%storages]}
			}},
			kind{"admin " + c.Name, func() []*Process { return []*Process{c.AdminP} }})
	}
	kinds = append(kinds, kind{"storages up and down", func() []*Process {
		return []*Process{up.Storages[rnd.IntN(storages)], down.Storages[rnd.IntN(storages)]}
	}}, kind{"all down", func() []*Process { return down.Nodes() }})
	longest, count := map[string]time.Duration{}, map[string]int{}
	all := append(up.Nodes(), down.Nodes()...)
	from = len(w.times())
	for until := time.Now().Add(time.Duration(*backupMinutes * float64(time.Minute))); time.Now().Before(until); {
		k := kinds[rnd.IntN(len(kinds))]
		wantRunning(t, all)
		w.longestPause()
		victims := k.victims()
		t.Logf("%s: kill %s", time.Now().Format("15:04:05.000"), k.name)
		// The copy that is furthest may be among them, and a new master only knows up to
		// where each storage has all that it has to have.
		tide.excuse(slices.ContainsFunc(victims, func(p *Process) bool { return p != down.AdminP && slices.Contains(down.Nodes(), p) }))
		for _, p := range victims {
			p.Kill()
		}
		time.Sleep(time.Duration(rnd.Int64N(int64(2 * time.Second))))
		for _, p := range victims {
			if err := p.Restart(); err != nil {
				t.Fatal(err)
			}
		}
		w.wait(t, 10, patience, "after "+k.name)
		start := time.Now()
		caughtUp(k.name, patience)
		longest[k.name] = max(longest[k.name], time.Since(start))
		count[k.name]++
		// The next kill finds two copies again.
		for _, c := range []*Cluster{up, down} {
			for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
				table, whole := c.whole(t)
				if whole {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("not all cells of %s are up to date:\n%s", c.Name, table)
				}
			}
		}
	}
	seen := w.finish(t)
	caughtUp("the end", patience)
	for _, name := range slices.Sorted(maps.Keys(longest)) {
		t.Logf("%3d × %-24s caught up within %v", count[name], name, longest[name].Round(time.Millisecond))
	}
	t.Logf("lag with faults: %s", percentiles(tide.lags(w.times()[from:])))

	// Every object of the backup, then every row of all copies.
	db := up.verify(t, seen)
	cl, err := down.connect(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if got, err := clustertest.Dump(t.Context(), cl); err != nil {
		t.Error(err)
	} else if !reflect.DeepEqual(got, db) {
		t.Errorf("the backup has %d transactions, the upstream cluster %d, and they are not equal", len(got), len(db))
	}
	cl.Close()
	tide.stop()
	readable.stop()
	for _, f := range tide.wrong {
		if f.over(db) {
			t.Errorf("the backup TID went back at %v", f)
		}
	}
	for _, f := range readable.wrong {
		if f.over(db) {
			t.Errorf("clients of the backup went back at %v", f)
		}
	}
	t.Logf("when masters or storages of the backup were killed, the backup TID went back %d times", len(tide.lost))
	for _, p := range append(down.Storages, up.Storages...) {
		if err := p.Stop(t); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
	databases := []string{"4"}
	for _, c := range []*Cluster{up, down} {
		for i := range storages {
			databases = append(databases, filepath.Join(c.Dir, fmt.Sprintf("s%d.sqlite", i+1)))
		}
	}
	if out := python(t, sameCopies, databases...); out != fmt.Sprintf("%d partitions\n", partitions) {
		t.Errorf("the copies are not equal:\n%s", out)
	}
	t.Logf("%d transactions acknowledged, %d attempted, %d in the database", w.acknowledged(), len(seen.Attempts), len(db))
}
