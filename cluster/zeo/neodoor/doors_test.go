package neodoor

import (
	"errors"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

// serve lets ZEO clients into a cluster until the test ends.
func serve(t *testing.T, c *testCluster) (addr string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), client.Config{Cluster: "test", Masters: c.masters, CacheSize: 1 << 20, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	server, err := zeo.New(t.Context(), zeo.Config{Storages: map[string]zeo.Storage{"1": s}, Log: testLog(t)})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		server.Close()
		if err := errors.Join(<-served, s.Close()); err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String()
}

// A cluster that is served twice shows all clients one order.
func TestTwoDoors(t *testing.T) {
	c, err := startCluster(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Remove)
	var clients []*zeotest.Client
	for range 2 {
		addr := serve(t, c)
		for i := range 2 {
			c, err := zeotest.Register(addr, i == 1)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(c.Close)
			clients = append(clients, c)
		}
	}
	const commits = 40
	seen := make([][]tid.TID, len(clients))
	announced := func(m zeotest.Message) (tid.TID, bool) {
		if m.Name != "invalidateTransaction" {
			return 0, false
		}
		return tid.FromBytes(m.Args.(zeotest.Tuple)[0].([]byte)), true
	}
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			base := tid.Zero
			for range commits {
				at, err := c.Commit(zeotest.Store{OID: tid.OID(i + 1), Base: base, Data: []byte("x")})
				if err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				base = at
				for _, n := range c.Notices {
					if other, ok := announced(n); ok {
						seen[i] = append(seen[i], other)
					}
				}
				c.Notices = nil
				seen[i] = append(seen[i], at)
				// What is committed can be loaded at once, by everybody.
				data, serial, next, err := c.LoadBefore(tid.OID(i+1), tid.Max)
				if err != nil || serial != at || next != tid.Zero || string(data) != "x" {
					t.Errorf("client %d after commit %v: %q, %v, %v, %v", i, at, data, serial, next, err)
				}
			}
		})
	}
	wg.Wait()
	for i, c := range clients {
		// A ping is a barrier, through the master.
		if _, err := c.Call("ping"); err != nil {
			t.Fatal(err)
		}
		for _, n := range c.Notices {
			if at, ok := announced(n); ok {
				seen[i] = append(seen[i], at)
			}
		}
		if len(seen[i]) != commits*len(clients) || !slices.IsSorted(seen[i]) || !slices.Equal(seen[i], seen[0]) {
			t.Errorf("client %d saw %d transactions, want %d as client 0", i, len(seen[i]), commits*len(clients))
		}
	}
}

// A pack is a transaction as well: a client that heard of it through one door would
// refuse another that did not.
func TestPackAtTwoDoors(t *testing.T) {
	c, err := startCluster(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Remove)
	doors := []string{serve(t, c), serve(t, c)}
	z, err := zeotest.Register(doors[0], false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(z.Close)
	if _, err := z.Commit(zeotest.Store{OID: 1, Data: []byte("x")}); err != nil {
		t.Fatal(err)
	}
	if _, err := z.Call("pack", float64(time.Now().Unix()), true); err != nil {
		t.Fatal(err)
	}
	var last []any
	for _, addr := range doors {
		z, err := zeotest.Dial(addr, true)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(z.Close)
		at, err := z.Call("register", "1", false)
		if err != nil {
			t.Fatal(err)
		}
		last = append(last, at)
	}
	if !cmp.Equal(last[0], last[1]) {
		t.Errorf("after a pack the last transaction is %x where it was ordered, %x elsewhere", last[0], last[1])
	}
}

// When the master is gone no client can commit; once there is one again, all goes on,
// and no commit is lost that was answered.
func TestMasterRestarts(t *testing.T) {
	c, err := startCluster(t)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Remove)
	addr := serve(t, c)
	client, err := zeotest.Register(addr, false)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	base, err := client.Commit(zeotest.Store{OID: 1, Data: []byte("0")})
	if err != nil {
		t.Fatal(err)
	}
	for n := byte(1); n <= 3; n++ {
		// A transaction whose master goes between vote and finish is not committed.
		if _, err := client.Vote(7, zeotest.Store{OID: 1, Base: base, Data: []byte("lost")}); err != nil {
			t.Fatal(err)
		}
		master := c.masters[0]
		c.stopMaster()
		if err := c.startMaster(master); err != nil {
			t.Fatal(err)
		}
		if v, err := client.Call("tpc_finish", 7); err == nil {
			t.Errorf("tpc_finish returned %v", v)
		}
		client.Close()
		for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(50 * time.Millisecond) {
			if client, err = zeotest.Register(addr, n%2 == 0); err == nil {
				var at tid.TID
				if at, err = client.Commit(zeotest.Store{OID: 1, Base: base, Data: []byte{'0' + n}}); err == nil {
					base = at
					break
				}
				client.Close()
			}
			if time.Now().After(deadline) {
				t.Fatalf("no commit after the master was started again: %v", err)
			}
		}
		data, serial, _, err := client.LoadBefore(1, tid.Max)
		if string(data) != string([]byte{'0' + n}) || serial != base || err != nil {
			t.Errorf("after restart %d: %q at %v, %v", n, data, serial, err)
		}
	}
	client.Close()
}
