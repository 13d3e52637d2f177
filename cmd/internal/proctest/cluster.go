package proctest

import (
	"crypto/tls"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/link"
)

// Cluster is a cluster of real processes with SQLite databases in one directory.
type Cluster struct {
	Name     string
	Masters  string // addresses of the masters
	Admin    string // address of the admin
	Dir      string
	Master   *Process
	Standby  []*Process // masters beside the first
	Storages []*Process
	AdminP   *Process
	extra    []string // options for neoctl, such as TLS
	tls      *tls.Config
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
	TLS        []string // the three options of TLS, for every node, neoctl and clients
	Standby    int      // masters beside the first
	Master     []string // more options for the masters, such as those of a backup
	Admin      []string // more options for the admin
	State      string   // to wait for; default RUNNING

	Databases [][]string // adapter and database of each storage, instead of new ones in Dir
}

// StartCluster starts a new cluster and waits until it is RUNNING, or as [Options].State says.
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
		Name:  o.Name,
		Dir:   dir,
		extra: append(slices.Clone(o.Extra), o.TLS...),
		Admin: fmt.Sprintf("127.0.0.1:%d", FreePort(t)),
	}
	var binds []string
	for range 1 + o.Standby {
		binds = append(binds, fmt.Sprintf("127.0.0.1:%d", FreePort(t)))
	}
	c.Masters = strings.Join(binds, " ")
	if len(o.TLS) == 6 {
		var err error
		if c.tls, err = link.LoadTLS(o.TLS[1], o.TLS[3], o.TLS[5]); err != nil {
			t.Fatal(err)
		}
	}
	common := append([]string{"-c", o.Name, "-m", c.Masters}, c.extra...)
	with := func(args ...string) []string { return append(append([]string{}, common...), args...) }
	logTo := func(name string, args []string) []string {
		if o.Logs {
			args = append(args, "-l", filepath.Join(dir, name+".log"))
		}
		return args
	}
	for i, bind := range binds {
		name := "master"
		if i > 0 {
			name += fmt.Sprint(i + 1)
		}
		m := Start(t, "neomaster", logTo(name, append(with("-b", bind, "-A", fmt.Sprint(o.Storages),
			"-p", fmt.Sprint(o.Partitions), "-r", fmt.Sprint(o.Replicas)), o.Master...))...)
		if i == 0 {
			c.Master = m
		} else {
			c.Standby = append(c.Standby, m)
		}
	}
	for i := range o.Storages {
		name := fmt.Sprintf("s%d", i+1)
		database := o.Storage
		if o.Databases != nil {
			database = o.Databases[i]
		}
		if database == nil {
			database = []string{"-a", "SQLite", "-d", filepath.Join(dir, name+".sqlite")}
		}
		c.Storages = append(c.Storages, Start(t, "neostorage", logTo(name, with(database...))...))
	}
	c.AdminP = Start(t, "neoadmin", logTo("admin", append(with("-b", c.Admin), o.Admin...))...)
	if o.State == "" {
		o.State = "RUNNING"
	}
	c.WaitState(t, o.State, patience)
	return c
}

// Nodes returns every process.
func (c *Cluster) Nodes() []*Process {
	return slices.Concat([]*Process{c.Master}, c.Standby, []*Process{c.AdminP}, c.Storages)
}

// Ctl runs neoctl and returns what it printed.
func (c *Cluster) Ctl(t testing.TB, args ...string) (stdout, stderr string, status int) {
	t.Helper()
	return Run(t, "neoctl", slices.Concat([]string{"-a", c.Admin}, c.extra, args)...)
}

// WaitState waits until the cluster reports a state.
func (c *Cluster) WaitState(t testing.TB, want string, limit time.Duration) {
	t.Helper()
	var out, errOut string
	for deadline := time.Now().Add(limit); ; time.Sleep(50 * time.Millisecond) {
		if out, errOut, _ = c.Ctl(t, "print", "cluster"); strings.TrimSpace(out) == want {
			return
		}
		if time.Now().After(deadline) {
			break
		}
	}
	t.Fatalf("the cluster is not %s after %v: %s%s", want, limit, out, errOut)
}
