package main

import (
	"slices"
	"sync"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/zeotest"
)

func testDoors(t *testing.T, c *testCluster) {
	masters := c.masters[0].String()
	var clients []*zeotest.Client
	for range 2 {
		addr := start(t, &options{cluster: "test", masters: masters}).String()
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
