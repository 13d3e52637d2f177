package proctest

import (
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var chaosMinutes = flag.Float64("chaos-minutes", 0.5, "how long TestChaos disturbs its cluster")

// machine is one node on a host of its own.
type machine struct {
	*host
	*Process
}

// fault is one way in which a machine fails, and how it comes back.
type fault struct {
	name string
	fail func(testing.TB, machine)
	back func(testing.TB, machine)
}

var faults = []fault{
	{"kill", func(_ testing.TB, m machine) { m.Kill() }, func(t testing.TB, m machine) {
		if err := m.Restart(); err != nil {
			t.Fatal(err)
		}
	}},
	{"hang", func(_ testing.TB, m machine) { m.Hang() }, func(_ testing.TB, m machine) { m.Continue() }},
	{"cut", func(t testing.TB, m machine) { m.cut(t) }, func(t testing.TB, m machine) { m.mend(t) }},
}

// Three masters and four storages with one replica, each on a host of its own, are
// killed, stopped and cut off at random moments, sometimes two at a time, while
// clients commit. Every acknowledged transaction must be there afterwards, and the
// two copies of each partition equal.
func TestChaos(t *testing.T) {
	seed := *crashSeed
	if seed == 0 {
		seed = rand.Uint64()
	}
	t.Logf("-crash-seed=%d", seed)
	rnd := rand.New(rand.NewPCG(seed, 2))

	n := newNetwork(t)
	const port = "10000"
	var hosts []*host
	var masters []string
	for range 3 {
		h := n.add(t)
		hosts, masters = append(hosts, h), append(masters, h.addr+":"+port)
	}
	c := &Cluster{Name: "test", Masters: strings.Join(masters, " "), Dir: t.TempDir()}
	common := func(h *host, more ...string) []string {
		return append([]string{"-c", c.Name, "-m", c.Masters, "-b", h.addr + ":" + port}, more...)
	}
	const storages, partitions = 4, 12
	var nodes []machine
	for _, h := range hosts {
		nodes = append(nodes, machine{h, h.start(t, "neomaster",
			common(h, "-A", fmt.Sprint(storages), "-p", fmt.Sprint(partitions), "-r", "1")...)})
	}
	var databases []string
	for i := range storages {
		h := n.add(t)
		databases = append(databases, filepath.Join(c.Dir, fmt.Sprintf("s%d.sqlite", i+1)))
		nodes = append(nodes, machine{h, h.start(t, "neostorage", common(h, "-a", "SQLite", "-d", databases[i])...)})
	}
	h := n.add(t)
	c.Admin = h.addr + ":" + port
	admin := h.start(t, "neoadmin", common(h)...)
	all := []*Process{admin}
	for _, m := range nodes {
		all = append(all, m.Process)
	}
	c.WaitState(t, "RUNNING", patience)

	w := startWorkload(t, c, 4)

	longest := map[string]time.Duration{} // by what failed
	count := map[string]int{}
	for until := time.Now().Add(time.Duration(*chaosMinutes * float64(time.Minute))); time.Now().Before(until); {
		w.longestPause()
		victims := rnd.Perm(len(nodes))[:1+rnd.IntN(3)/2] // two of them one time in three
		var backs []func()
		var what []string
		for _, v := range victims {
			f, m := faults[rnd.IntN(len(faults))], nodes[v]
			wantRunning(t, []*Process{m.Process})
			f.fail(t, m)
			backs = append(backs, func() { f.back(t, m) })
			what = append(what, f.name+" "+m.Name)
			time.Sleep(time.Duration(rnd.IntN(200)) * time.Millisecond)
		}
		lasts := 20 * time.Second
		if rnd.IntN(2) == 0 {
			lasts = time.Second
		}
		time.Sleep(time.Duration(rnd.Int64N(int64(lasts))))
		for _, back := range backs {
			back()
		}
		slices.Sort(what)
		kind := strings.Join(what, " and ")
		before := w.acknowledged()
		for deadline := time.Now().Add(patience); w.acknowledged() < before+10; time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				out, errOut, _ := c.Ctl(t, "print", "node")
				pt, _, _ := c.Ctl(t, "print", "pt")
				t.Fatalf("nothing is committed any more after %s\n%s%s%s", kind, out, errOut, pt)
			}
		}
		longest[kind] = max(longest[kind], w.longestPause())
		count[kind]++
		// The next fault finds two copies again.
		c.waitUpToDate(t, 2*time.Minute)
		wantRunning(t, all)
	}
	seen := w.stop()
	for _, kind := range slices.Sorted(maps.Keys(longest)) {
		t.Logf("%3d × %-34s longest pause %v", count[kind], kind, longest[kind].Round(time.Millisecond))
	}

	db := c.verify(t, seen)
	// Orderly: a storage completes first what is only locked.
	for _, m := range nodes[3:] {
		if err := m.Stop(t); err != nil {
			t.Errorf("%s: %v", m.Name, err)
		}
	}
	if out := python(t, sameCopies, append([]string{"2"}, databases...)...); out != fmt.Sprintf("%d partitions\n", partitions) {
		t.Errorf("the copies are not equal:\n%s", out)
	}
	t.Logf("%d transactions acknowledged, %d attempted, %d in the database", w.acknowledged(), len(seen.Attempts), len(db))
}

// sameCopies prints how many partitions the databases have, if each of them is in
// as many as the first argument tells, and all of them are equal.
const sameCopies = `
import collections, hashlib, sqlite3, sys
copies = collections.defaultdict(dict)
want = int(sys.argv[1])
for path in sys.argv[2:]:
    db = sqlite3.connect(path)
    nid, = db.execute("SELECT value FROM config WHERE name = 'nid'").fetchone()
    for partition, in db.execute("SELECT partition FROM pt WHERE nid = ? AND tid = -1", (nid,)).fetchall():
        rows = db.execute("SELECT tid, oids, user, description, ext FROM trans WHERE partition = ? ORDER BY tid",
                          (partition,)).fetchall()
        rows += db.execute("SELECT oid, tid, value_tid, hash, compression, value FROM obj LEFT JOIN data"
                           " ON data_id = data.id WHERE partition = ? ORDER BY tid, oid", (partition,)).fetchall()
        copies[partition][path] = rows
for partition, by in sorted(copies.items()):
    if len(by) != want:
        print(partition, 'is in', sorted(by))
        continue
    (pa, a), *others = by.items()
    for pb, b in others:
        if a != b:
            print('partition', partition, 'of', pa, 'and', pb, 'differ:', sorted(set(a) ^ set(b), key=repr)[:10])
print(len(copies), 'partitions')
`
