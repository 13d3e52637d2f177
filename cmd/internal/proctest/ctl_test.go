package proctest

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// waitClients waits until the master has noticed that all clients but some have gone. A backup is a
// client of its upstream cluster.
func (c *Cluster) waitClients(t testing.TB, n int) {
	t.Helper()
	waitFor(t, fmt.Sprint(n, " clients"), func() bool {
		out, _, status := c.Ctl(t, "print", "node", "client")
		return status == 0 && strings.Count(out, "CLIENT") == n
	})
}

// What neoctl prints, of a cluster with two storages, has its documented form.
func TestCtlOutput(t *testing.T) {
	t.Parallel()
	file := filepath.Join(samples, "02-undo.fs")
	list := places(t, file)
	c := StartCluster(t, Options{Storages: 2, Partitions: 12, Replicas: 1})
	c.migrate(t, file)
	c.waitClients(t, 0)
	const (
		date    = `\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d{6})?`
		address = `127\.0\.0\.1:\d+`
		admin   = `A1 \| ADMIN   \| ` + address + ` +\| RUNNING \| ` + date + `\n`
		master  = `M1 \| MASTER  \| ` + address + ` +\| RUNNING \| None\n`
		s1      = `S1 \| STORAGE \| ` + address + ` +\| RUNNING \| ` + date + `\n`
		s2      = `S2 \| STORAGE \| ` + address + ` +\| RUNNING \| ` + date + `\n`
	)
	head := `# ptid: \d+, replicas: 1\n`
	row := func(n string) string { return n + ` \| S1 - UP_TO_DATE \| S2 - UP_TO_DATE \|\n` }
	last := list[len(list)-1].tid.String()
	for _, x := range []struct{ command, want string }{
		{"print cluster", `RUNNING\n`},
		{"print ids", `last_oid = 0x[0-9a-f]+\nlast_tid = 0x` + strings.TrimLeft(last, "0") + ` \(` + date + `\)\nlast_ptid = \d+\n`},
		{"print pt", head + ` +10v *\nS1 R U{10}\.?U{2}\nS2 R U{10}\.?U{2}\n`},
		{"print pt 10", head + row("010") + row("011")},
		{"print pt 0 2", head + row("000") + row("001")},
		{"print pt 3 4 S2", head + row("003")},
		{"print node", admin + master + s1 + s2},
		{"print node storage", s1 + s2},
		{"print node MASTER", `M1 \| MASTER \| ` + address + ` \| RUNNING \| None\n`},
		{"print node Admin", `A1 \| ADMIN \| ` + address + ` \| RUNNING \| ` + date + `\n`},
		{"print node client", `Empty list!\n`},
		{"print primary", `M1\n`},
		{"print summary", `# \{\}\nRUNNING; UP_TO_DATE=24; ltid=` + last + ` \(` + date + `\)\n`},
		{"add all", `No node added\n`},
		{"tweak", `No change done\.\n`},
		{"tweak -n", `No change done\.\n`},
		{"check :", `\d+ transactions and records of 12 partitions compared: no difference found\n`},
		{"check 0:S1 1:", `\d+ transactions and records of 2 partitions compared: no difference found\n`},
		{"flush_log", ``},
		{"prune_orphan 1 all", `\n`},
		{"set replicas 1", `\n`},
		{"", `(?s).*print cluster.*truncate.*`},
	} {
		out, errOut, status := c.Ctl(t, strings.Fields(x.command)...)
		if status != 0 || errOut != "" || !regexp.MustCompile(`^(?:`+x.want+`)$`).MatchString(out) {
			t.Errorf("neoctl %s: exit status %d, stderr %q, printed\n%swant\n%s", x.command, status, errOut, out, x.want)
		}
	}

	// A storage ends, and it shows everywhere.
	out, _, status := c.Ctl(t, "kill", "S2")
	if out != "state changed\n" || status != 0 {
		t.Errorf("kill S2 printed %q, exit status %d", out, status)
	}
	ended := 0
	for deadline := time.Now().Add(patience); ended == 0 && time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		for _, p := range c.Storages {
			if !p.Running() {
				ended++
				if err := p.Wait(t, time.Second); err != nil {
					t.Errorf("the storage that was killed ended with %v", err)
				}
			}
		}
	}
	if ended != 1 {
		t.Fatal("no storage has ended")
	}
	for _, x := range []struct{ command, want string }{
		{"kill S2", `node already in DOWN state\n`},
		{"print pt", head + ` +10v *\nS1 R U{10}\.?U{2}\nS2 D O{10}\.?O{2}\n`},
		{"print summary", `# \{"problem": \[null\]\}\nRUNNING; OUT_OF_DATE=12, UP_TO_DATE=12; DOWN=1; ltid=.*\n`},
		{"print node storage", `S1 \| STORAGE \| ` + address + ` \| RUNNING \| ` + date + `\nS2 \| STORAGE \| ` + address + ` \| DOWN +\| .*\n`},
		{"set replicas 0", `\n`},
		{"drop S2 --yes", `node permanently removed\n`},
		{"print pt 0 1", `# ptid: \d+, replicas: 0\n000 \| S1 - UP_TO_DATE \|\n`},
		{"print summary", `# \{\}\nRUNNING; UP_TO_DATE=12; ltid=.*\n`},
		{"truncate --yes tid:0x" + list[0].tid.String(), ``},
	} {
		out, errOut, status := c.Ctl(t, strings.Fields(x.command)...)
		if status != 0 || errOut != "" || !regexp.MustCompile(`^(?:`+x.want+`)$`).MatchString(out) {
			t.Errorf("neoctl %s: exit status %d, stderr %q, printed\n%swant\n%s", x.command, status, errOut, out, x.want)
		}
	}
	// What was truncated is the beginning.
	b := read(t, file)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if out, _, _ := c.Ctl(t, "print", "ids"); strings.Contains(out, strings.TrimLeft(list[0].tid.String(), "0")) {
			break
		}
	}
	c.WaitState(t, "RUNNING", patience)
	truncated := filepath.Join(t.TempDir(), "truncated.fs")
	c.export(t, truncated)
	sameBytes(t, truncated, b[:list[0].end])
}
