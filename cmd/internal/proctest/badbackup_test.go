package proctest

import (
	"fmt"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/tid"
)

// once fails the test if a process has printed a line several times, but for its time and
// for numbers of connections.
func once(t testing.TB, p *Process) {
	t.Helper()
	number := regexp.MustCompile(`connection \d+|127\.0\.0\.1:\d+->`)
	count := map[string]int{}
	for line := range strings.Lines(p.Output()) {
		if len(line) > 25 && line[:2] == "20" {
			line = line[25:]
		}
		count[number.ReplaceAllString(line, "…")]++
	}
	for line, n := range count {
		if n > 1 {
			t.Errorf("%s printed %d times: %s", p.Name, n, line)
		}
	}
}

// A backup whose upstream cluster is not as it should be says so once, goes on looking,
// and changes nothing.
func TestBackupBadUpstream(t *testing.T) {
	t.Parallel()
	own := certificates(t)
	for _, test := range []struct {
		name     string
		up, down Options
		cluster  string // that the backup names
		says     string // by the master of the backup
	}{
		{"down", Options{}, Options{}, "up", `upstream cluster: the master at 127\.0\.0\.1:\d+ cannot be reached`},
		{"name", Options{}, Options{}, "other", `upstream cluster: .*this is cluster \\?"up\\?", not \\?"other`},
		{"partitions", Options{}, Options{Partitions: 6}, "up",
			`upstream cluster: it has 4 partitions, and this cluster 6: a backup needs as many as the upstream cluster`},
		{"upstream without TLS", Options{}, Options{TLS: own}, "up", `(?i)tls`},
		{"backup without TLS", Options{TLS: own}, Options{}, "up", `the master at .* hangs up before this cluster can follow it; it may require TLS`},
		{"another authority", Options{TLS: own}, Options{TLS: certificates(t)}, "up", `(?i)certificate`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.up.Name = "up"
			unused := fmt.Sprintf("127.0.0.1:%d", FreePort(t)) // as a second master
			up := StartCluster(t, test.up)
			if test.name == "down" {
				up.Master.Kill()
			}
			test.down.Name, test.down.State = "down", "STARTING_BACKUP"
			test.down.Master = []string{"-C", test.cluster, "-M", up.Masters + " " + unused, "-B"}
			down := StartCluster(t, test.down)
			before, _, _ := down.Ctl(t, "print", "ids")
			told := regexp.MustCompile(test.says)
			end := time.Now().Add(patience)
			for later := false; time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
				if !later && told.MatchString(down.Master.Output()) {
					later, end = true, time.Now().Add(4*time.Second) // for more of the same
				}
				if out, errOut, _ := down.Ctl(t, "print", "cluster"); out != "STARTING_BACKUP\n" {
					t.Fatalf("the backup is %s%s", out, errOut)
				}
			}
			if out, _, _ := down.Ctl(t, "print", "ids"); out != before {
				t.Errorf("ids before\n%sand now\n%s", before, out)
			}
			wantRunning(t, down.Nodes())
			says(t, "neomaster", down.Master.Output(), test.says)
			nodes := down.Nodes()
			if test.name != "down" { // else they say that they have no master, each time it has changed why
				nodes = append(nodes, up.Nodes()...)
			}
			for _, p := range nodes {
				once(t, p)
			}
			if test.name == "down" {
				if err := up.Master.Restart(); err != nil {
					t.Fatal(err)
				}
				down.WaitState(t, "BACKINGUP", patience)
			}
		})
	}
}

// A storage of a backup does not take the database of the upstream cluster, be it in use
// or not, nor one that another storage has.
func TestBackupDatabaseTwice(t *testing.T) {
	t.Parallel()
	up := StartCluster(t, Options{Name: "up"})
	up.migrate(t, filepath.Join(samples, "02-undo.fs"))
	down := startBackup(t, up, Options{Name: "down"})
	database := filepath.Join(up.Dir, "s1.sqlite")
	for _, c := range []*Cluster{up, down} {
		refused(t, 1, []string{`^error: database is locked`, `s1\.sqlite is used by another process`}, "neostorage", "-c", "down", "-m", down.Masters, "-a", "SQLite", "-d", filepath.Join(c.Dir, "s1.sqlite"))
	}
	if err := up.Storages[0].Stop(t); err != nil {
		t.Fatal(err)
	}
	before := read(t, database)
	refused(t, 1, []string{`up`}, "neostorage", "-c", "down", "-m", down.Masters, "-a", "SQLite", "-d", database)
	sameBytes(t, database, before)
	if err := up.Storages[0].Restart(); err != nil {
		t.Fatal(err)
	}
	up.WaitState(t, "RUNNING", patience)
	down.WaitState(t, "BACKINGUP", patience)
}

// The clock of the upstream cluster is a day ahead of that of the backup, or was a day
// behind: transactions are as they are there. What is committed after the promotion
// comes after them.
func TestBackupClocks(t *testing.T) {
	t.Parallel()
	for name, off := range map[string]time.Duration{"ahead": 24 * time.Hour, "behind": -24 * time.Hour} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stdout, _, status := Run(t, "neofs", "dump", filepath.Join(samples, "01-basic.fs"))
			if status != 0 {
				t.Fatal("neofs dump failed")
			}
			last := tid.FromTime(time.Now().Add(off))
			next := last.Add(-1000)
			text := regexp.MustCompile(`(?m)^txn [0-9a-f]{16} `).ReplaceAllStringFunc(stdout, func(string) string {
				next = next.Add(1)
				return "txn " + next.String() + " "
			})
			file := filepath.Join(t.TempDir(), "shifted.fs")
			must(t, "neofs", "restore", "--input", write(t, "dump", []byte(text)), file)

			up := StartCluster(t, Options{Name: "up"})
			up.migrate(t, file)
			down := startBackup(t, up, Options{Name: "down"})
			want := strings.TrimPrefix(fmt.Sprintf("%#x", uint64(next)), "0x")
			for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
				if out, _, _ := down.Ctl(t, "print", "ids"); strings.Contains(out, "backup_tid = 0x"+want) {
					break
				} else if time.Now().After(deadline) {
					t.Fatalf("the backup has not got %s:\n%s", want, out)
				}
			}
			if out, _, _ := down.Ctl(t, "print", "summary"); !strings.Contains(out, next.String()) {
				t.Errorf("the summary does not tell %v:\n%s", next, out)
			}
			up.Master.Kill()
			if out, err := runbook(t, "promote.sh", "-a", down.Admin); err != nil || !strings.Contains(out, "lost: nothing") {
				t.Fatalf("%v\n%s", err, out)
			}
			w := startWorkload(t, down, 1)
			w.wait(t, 1, patience, "after the promotion")
			w.stop()
			if first := w.times()[0].tid; first <= next {
				t.Errorf("%v was committed after %v", first, next)
			}
			out := filepath.Join(t.TempDir(), "out.fs")
			down.export(t, out)
			if source := read(t, file); string(read(t, out)[:len(source)]) != string(source) {
				t.Error("the export does not begin with what the upstream cluster had")
			}
		})
	}
}
