package proctest

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Cluster is a cluster of real processes with SQLite databases in one directory.
type Cluster struct {
	Name     string
	Masters  string // address of the master
	Admin    string // address of the admin
	Dir      string
	Master   *Process
	Storages []*Process
	AdminP   *Process
	extra    []string // options for neoctl, such as TLS
}

// Options shape a [Cluster].
type Options struct {
	Name       string // default "test"
	Storages   int    // default 1
	Partitions int    // default 4
	Replicas   int
	Dir        string   // of the databases; default: a temporary one
	Extra      []string // more options for every node and neoctl, such as TLS
	Storage    []string // adapter and database of a single storage, instead of a new one in Dir
	Logs       bool     // each node keeps a log in Dir: master.log, s1.log, admin.log
}

// StartCluster starts a new cluster and waits until it is RUNNING.
func StartCluster(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Name == "" {
		o.Name = "test"
	}
	o.Storages, o.Partitions = max(o.Storages, 1), max(o.Partitions, 4)
	dir := o.Dir
	if dir == "" {
		dir = t.TempDir()
	}
	c := &Cluster{
		Name:    o.Name,
		Dir:     dir,
		extra:   o.Extra,
		Masters: fmt.Sprintf("127.0.0.1:%d", FreePort(t)),
		Admin:   fmt.Sprintf("127.0.0.1:%d", FreePort(t)),
	}
	common := append([]string{"-c", o.Name, "-m", c.Masters}, o.Extra...)
	with := func(args ...string) []string { return append(append([]string{}, common...), args...) }
	logTo := func(name string, args []string) []string {
		if o.Logs {
			args = append(args, "-l", filepath.Join(dir, name+".log"))
		}
		return args
	}
	c.Master = Start(t, "neomaster", logTo("master", with("-b", c.Masters, "-A", fmt.Sprint(o.Storages),
		"-p", fmt.Sprint(o.Partitions), "-r", fmt.Sprint(o.Replicas)))...)
	for i := range o.Storages {
		name := fmt.Sprintf("s%d", i+1)
		database := o.Storage
		if database == nil {
			database = []string{"-a", "SQLite", "-d", filepath.Join(dir, name+".sqlite")}
		}
		c.Storages = append(c.Storages, Start(t, "neostorage", logTo(name, with(database...))...))
	}
	c.AdminP = Start(t, "neoadmin", logTo("admin", with("-b", c.Admin))...)
	c.WaitState(t, "RUNNING", 30*time.Second)
	return c
}

// Nodes returns every process.
func (c *Cluster) Nodes() []*Process { return append([]*Process{c.Master, c.AdminP}, c.Storages...) }

// Ctl runs neoctl and returns what it printed.
func (c *Cluster) Ctl(t testing.TB, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	return Run(t, "neoctl", slices.Concat([]string{"-a", c.Admin}, c.extra, args)...)
}

// WaitState waits until the cluster reports a state.
func (c *Cluster) WaitState(t testing.TB, want string, limit time.Duration) {
	t.Helper()
	var out, errOut string
	for deadline := time.Now().Add(limit); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		if out, errOut, _ = c.Ctl(t, "print", "cluster"); strings.TrimSpace(out) == want {
			return
		}
	}
	t.Fatalf("the cluster is not %s after %v: %s%s", want, limit, out, errOut)
}
