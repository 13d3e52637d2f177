package proctest

import (
	"crypto/tls"
	"io"
	"math/rand/v2"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// address returns that of a node as the cluster knows it.
func (c *Cluster) address(t testing.TB, node string) string {
	t.Helper()
	out, errOut, _ := c.Ctl(t, "print", "node")
	m := regexp.MustCompile(`(?m)^` + node + ` *\| [A-Z]+ *\| (\S+)`).FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no node %s in\n%s%s", node, out, errOut)
	}
	return m[1]
}

// alive checks that a cluster that holds a file still gives it back.
func (c *Cluster) alive(t testing.TB, file string) {
	t.Helper()
	for _, p := range c.Nodes() {
		if !p.Running() {
			t.Errorf("%s has ended", p.Name)
		}
	}
	out := filepath.Join(t.TempDir(), "alive.fs")
	c.export(t, out)
	sameBytes(t, out, read(t, file))
}

// Mistakes of whoever starts programs: each is told and ends the program, and
// leaves the cluster as it was.
func TestWrongStarts(t *testing.T) {
	t.Parallel()
	file := filepath.Join(samples, "02-undo.fs")
	c := StartCluster(t, Options{})
	c.migrate(t, file)
	database := filepath.Join(c.Dir, "s1.sqlite")
	fresh := func() string { return filepath.Join(t.TempDir(), "new.sqlite") }
	out := filepath.Join(t.TempDir(), "out.fs")
	storage := c.address(t, "S1")
	wrong := []string{`this is cluster "test", not "other"`, regexp.QuoteMeta(c.Masters) + `|open cluster other`}
	inUse := func(address string) []string {
		return []string{`listening at ` + regexp.QuoteMeta(address), `address already in use`}
	}
	for _, x := range []struct {
		status  int
		says    []string
		command string
	}{
		{1, wrong, "neomigrate -q -c other " + file + " " + c.Masters},
		{1, wrong, "neoexport -q -c other " + c.Masters + " " + out},
		{1, wrong, "neostorage -c other -m " + c.Masters + " -a SQLite -d " + fresh()},
		{1, wrong, "neoadmin -c other -b 127.0.0.1:0 -m " + c.Masters},
		{1, []string{`^error: database is locked\n` + regexp.QuoteMeta(database) + ` is used by another process`}, "neostorage -c test -m " + c.Masters + " -a SQLite -d " + database},
		{1, []string{`^error: database is locked\n` + regexp.QuoteMeta(database) + ` is used by another process`}, "neostorage --reset -c test -m " + c.Masters + " -a SQLite -d " + database},
		{1, inUse(c.Masters), "neomaster -c test -m " + c.Masters + " -b " + c.Masters},
		{1, inUse(storage), "neostorage -c test -m " + c.Masters + " -a SQLite -d " + fresh() + " -b " + storage},
		{1, inUse(c.Admin), "neoadmin -c test -m " + c.Masters + " -b " + c.Admin},
		{1, []string{`no/such/dir/s\.sqlite`, `no such file or directory`}, "neostorage -c test -m " + c.Masters + " -a SQLite -d /no/such/dir/s.sqlite"},
		{1, []string{`02-undo\.fs`, `not an SQLite file`}, "neostorage -c test -m " + c.Masters + " -a SQLite -d " + write(t, "02-undo.fs", read(t, file))},
		{2, []string{`unknown adapter "Oracle"`}, "neostorage -c test -m " + c.Masters + " -a Oracle -d " + database},
		{2, []string{`--database`}, "neostorage -c test"},
		{2, []string{`--cluster`}, "neomaster"},
		{2, []string{`partitions must be more than zero`}, "neomaster -c x -p 0"},
		{2, []string{`replicas must be a positive integer`}, "neomaster -c x -r -1"},
		{1, []string{`^ERROR: not connected: connecting to 127\.0\.0\.1:1: .*connection refused`}, "neoctl -a 127.0.0.1:1 print cluster"},
		{1, []string{`^ERROR: .*identification expected`}, "neoctl -a " + c.Masters + " print cluster"},
		{2, []string{`invalid command`}, "neoctl -a " + c.Admin + " print everything"},
		{2, []string{`unknown cluster state: "ON"`}, "neoctl -a " + c.Admin + " set cluster ON"},
		{2, []string{`unknown node type: "router"`}, "neoctl -a " + c.Admin + " print node router"},
		{1, []string{`(?i)unknown node`}, "neoctl -a " + c.Admin + " kill S9"},
		{1, []string{`can not kill primary master`}, "neoctl -a " + c.Admin + " kill M1"},
		{1, []string{`only readable copies|must be stopped`}, "neoctl -a " + c.Admin + " drop S1 --yes"},
	} {
		f := strings.Fields(x.command)
		refused(t, x.status, x.says, f[0], f[1:]...)
	}
	c.alive(t, file)

	// The database of another cluster, once nobody uses it.
	c.Storages[0].Kill()
	refused(t, 1, []string{`the database belongs to cluster "test", not "other"`}, "neostorage", "-c", "other", "-m", c.Masters, "-a", "SQLite", "-d", database)
	if err := c.Storages[0].Restart(); err != nil {
		t.Fatal(err)
	}
	c.WaitState(t, "RUNNING", patience)
	c.alive(t, file)
}

// Whatever strangers send to the ports of nodes, the nodes live on.
func TestForeignBytes(t *testing.T) {
	t.Parallel()
	file := filepath.Join(samples, "02-undo.fs")
	c := StartCluster(t, Options{})
	c.migrate(t, file)
	ports := map[string]string{"master": c.Masters, "admin": c.Admin, "storage": c.address(t, "S1")}
	rnd := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 1<<20)
	for i := range noise {
		noise[i] = byte(rnd.Uint32())
	}
	for node, address := range ports {
		for name, content := range map[string][]byte{
			"nothing":                   {},
			"an HTTP request":           []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
			"random bytes":              noise,
			"a handshake, then noise":   append([]byte("\x92\xa3NEO"), noise...),
			"zeros":                     make([]byte, 1<<16),
			"an array of 2^32 elements": []byte("\xdd\xff\xff\xff\xff"),
			"half a TLS hello":          {0x16, 3, 1, 2, 0},
		} {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				t.Fatalf("%s after %s: %v", node, name, err)
			}
			conn.SetDeadline(time.Now().Add(patience))
			conn.Write(content) // the node may hang up meanwhile
			if len(content) > 5 {
				// It hangs up by itself.
				if _, err := io.Copy(io.Discard, conn); err != nil && strings.Contains(err.Error(), "timeout") {
					t.Errorf("the %s still listens after %s", node, name)
				}
			}
			conn.Close()
		}
		conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			conn.Close()
			t.Errorf("the %s speaks TLS", node)
		}
	}
	c.alive(t, file)
	for _, p := range c.Nodes() {
		if n := p.PeakMemory(t); n > memoryLimit {
			t.Errorf("%s needed %d MB", p.Name, n>>20)
		}
		says(t, p.Name, p.Output())
	}
	// Many connections that say nothing do not keep a client out.
	for range 200 {
		conn, err := net.Dial("tcp", c.Masters)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	c.alive(t, file)
	if n := strings.Count(c.Master.Output(), "\n"); n > 200 {
		t.Errorf("the master wrote %d lines about strangers", n)
	}
	// Nor do they hold up the end.
	for _, p := range c.Nodes() {
		if err := p.Stop(t); err != nil {
			t.Errorf("%s: %v", p.Name, err)
		}
	}
}
