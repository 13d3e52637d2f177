package proctest

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// A storage, and then the primary master, are stopped as by SIGSTOP while a client
// commits: the others go on without them long before they are continued, and the
// operator is told. When they go on, they do no harm.
func TestStoppedNodes(t *testing.T) {
	c, masters := startMasters(t, 4, "--peer-timeout", "4")
	w := startWorkload(t, c, 2)
	stopped := func(p *Process, what string, during func()) {
		t.Helper()
		w.wait(t, 10, patience, "before "+what+" was stopped")
		w.longestPause()
		p.Hang()
		w.wait(t, 20, patience, "while "+what+" is stopped")
		t.Logf("%s is stopped: longest pause %v", what, w.longestPause().Round(time.Millisecond))
		during()
		p.Continue()
		w.wait(t, 20, patience, "after "+what+" was continued")
		c.waitUpToDate(t, patience)
	}
	stopped(c.Storages[0], "a storage", func() {
		waitFor(t, "a summary with the storage that is stopped", func() bool {
			out, _, _ := c.Ctl(t, "print", "summary")
			return strings.Contains(out, "DOWN=1") && !strings.HasPrefix(out, "# {}")
		})
	})
	stopped(c.Storages[1], "the other storage", func() {})
	addr := c.primary(t)
	primary := masters[slices.IndexFunc(masters, func(p *Process) bool { return slices.Contains(p.args, addr) })]
	stopped(primary, "the primary master", func() {
		c.WaitState(t, "RUNNING", patience)
		waitFor(t, "another primary master", func() bool { return c.primary(t) != addr })
	})
	wantRunning(t, slices.Concat(masters, c.Storages, []*Process{c.AdminP}))

	seen := w.stop()
	c.verify(t, seen)
}

// waitUpToDate waits until every cell is up to date on a node that runs, and the cluster reports
// no problem.
func (c *Cluster) waitUpToDate(t testing.TB, limit time.Duration) {
	t.Helper()
	var table, summary string
	complete := func() bool {
		var whole bool
		if table, whole = c.whole(t); !whole {
			return false
		}
		summary, _, _ = c.Ctl(t, "print", "summary")
		return strings.HasPrefix(summary, "# {}\nRUNNING; UP_TO_DATE=")
	}
	for deadline := time.Now().Add(limit); !complete(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not all cells are up to date after %v:\n%s%s", limit, table, summary)
		}
	}
}

// whole returns the partition table, and whether all its storages run and all cells are
// up to date.
func (c *Cluster) whole(t testing.TB) (table string, whole bool) {
	t.Helper()
	table, _, _ = c.Ctl(t, "print", "pt")
	nodes := 0
	for line := range strings.Lines(table) {
		if f := strings.Fields(line); len(f) == 3 && f[0][0] == 'S' {
			if f[1] != "R" || strings.Trim(f[2], "U.") != "" {
				return table, false
			}
			nodes++
		}
	}
	return table, nodes > 0
}
