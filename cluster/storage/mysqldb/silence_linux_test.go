package mysqldb

import (
	"errors"
	"fmt"
	"os"
	osexec "os/exec"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/storage/mysqldb/mysqltest"
	"github.com/neozodb/neo/cluster/storage/sqldb"
)

// ip runs the program of iproute2, by which a test makes a machine of its own for the server.
func ip(t *testing.T, args string) {
	t.Helper()
	if out, err := osexec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		mysqltest.Missing(t, "making a network (run this test as root, with iproute2): ip %s: %v: %s", args, err, out)
	}
}

// A server whose machine is cut off without a word, as by a loss of power, holds up nothing for long. A statement that
// the server takes long for is not ended.
func TestSilentServer(t *testing.T) {
	pid := os.Getpid()
	ns, link := fmt.Sprintf("mysqltest-%d", pid), fmt.Sprintf("m%x", pid)
	subnet := fmt.Sprintf("10.%d.%d", 192+pid>>8%60, pid%256)
	host := subnet + ".2"
	ip(t, "netns add "+ns)
	t.Cleanup(func() { ip(t, "netns del "+ns) })
	ip(t, "link add "+link+" type veth peer name eth0 netns "+ns)
	ip(t, "addr add "+subnet+".1/24 dev "+link)
	ip(t, "link set "+link+" up")
	ip(t, "-n "+ns+" addr add "+host+"/24 dev eth0")
	ip(t, "-n "+ns+" link set eth0 up")

	s := mysqltest.New(t, "", "--innodb-flush-log-at-trx-commit=1", "--skip-networking=0", "--bind-address=0.0.0.0", "--port=3306")
	s.Stop()
	s.Wrap = []string{"ip", "netns", "exec", ns}
	must(t, s.Start())
	name := s.Database(t)
	s.Exec(t, "", "CREATE USER neo IDENTIFIED BY 'x'; GRANT ALL ON "+name+".* TO neo")
	open := func() (*dialect, *sqldb.DB, error) {
		t.Helper()
		d, err := newDialect(fmt.Sprintf("//%s/%s?user=neo&password=x", host, name), Options{})
		must(t, err)
		d.silence = time.Second
		db, err := sqldb.Open(t.Context(), d, sqldb.Options{})
		return d, db, err
	}
	d, db, err := open()
	must(t, err)
	must(t, backendtest.PrepareSample(db))
	must(t, db.Commit())

	slow, err := d.Connect(t.Context(), sqldb.Reader)
	must(t, err)
	if row, err := query(slow, "SELECT SLEEP(3)"); err != nil || row[0] != "0" {
		t.Errorf("a long statement: %v, %v", row, err)
	}

	ended := make(chan error, 3)
	go func() { _, err := query(slow, "SELECT SLEEP(600)"); ended <- err }() // waits for an answer
	time.Sleep(200 * time.Millisecond)
	ip(t, "-n "+ns+" addr del "+host+"/24 dev eth0")
	go func() { ended <- db.SetName("x") }()
	go func() { _, err := db.GetObject(t.Context(), 1, none, none); ended <- err }()
	for range cap(ended) {
		select {
		case err := <-ended:
			if err == nil {
				t.Error("no error without a server")
			}
		case <-time.After(2 * time.Minute): // far less than the quarter of an hour of the system
			t.Fatal("a server that is silent is waited for")
		}
	}
	_ = errors.Join(slow.Close(), db.Close()) // in vain
	ip(t, "-n "+ns+" addr add "+host+"/24 dev eth0")

	// The server has noticed nothing: it is told which connection to end.
	if _, _, err := open(); err != nil {
		if !errors.Is(err, backend.ErrLocked) || !strings.Contains(err.Error(), "from "+subnet+".1:") || !strings.Contains(err.Error(), "end it with KILL ") {
			t.Fatal(err)
		}
		s.Disconnect(t, name)
	}
	_, db, err = open()
	must(t, err)
	if o, err := db.GetObject(t.Context(), 1, none, none); err != nil || o.Serial != 4 {
		t.Errorf("load: %+v, %v", o, err)
	}
	must(t, db.Close())
}
