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
		w.wait(t, 10, 30*time.Second, "before "+what+" was stopped")
		w.longestPause()
		p.Hang()
		w.wait(t, 20, time.Minute, "while "+what+" is stopped")
		t.Logf("%s is stopped: longest pause %v", what, w.longestPause().Round(time.Millisecond))
		during()
		p.Continue()
		w.wait(t, 20, time.Minute, "after "+what+" was continued")
		c.waitUpToDate(t)
	}
	stopped(c.Storages[0], "a storage", func() {
		out, _, _ := c.Ctl(t, "print", "summary")
		if !strings.Contains(out, "DOWN=1") || strings.HasPrefix(out, "# {}") {
			t.Errorf("a storage is stopped, and the summary is %q", out)
		}
	})
	stopped(c.Storages[1], "the other storage", func() {})
	addr := c.primary(t)
	primary := masters[slices.IndexFunc(masters, func(p *Process) bool { return slices.Contains(p.args, addr) })]
	stopped(primary, "the primary master", func() {
		c.WaitState(t, "RUNNING", 30*time.Second)
		if now := c.primary(t); now == addr {
			t.Errorf("%s is still primary", now)
		}
	})
	wantRunning(t, slices.Concat(masters, c.Storages, []*Process{c.AdminP}))

	seen := w.stop()
	c.verify(t, seen)
}

// waitUpToDate waits until every cell can be read.
func (c *Cluster) waitUpToDate(t testing.TB) {
	t.Helper()
	var out string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if out, _, _ = c.Ctl(t, "print", "summary"); strings.HasPrefix(out, "# {}\nRUNNING; UP_TO_DATE=") && !strings.Contains(out, "OUT") {
			return
		}
	}
	t.Fatalf("not all cells are up to date: %s", out)
}
