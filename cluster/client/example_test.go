package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/simple"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// An object is stored in a cluster of one process, changed, and loaded as it is and as it
// was. Of two transactions that change the same revision, the second one is refused.
func Example() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cluster, err := simple.New(simple.Config{Dir: dir, Name: "example"})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- cluster.Run(ctx) }()
	defer func() {
		stop()
		if err := <-ended; err != nil {
			log.Fatal(err)
		}
	}()
	if err := cluster.WaitRunning(ctx); err != nil {
		log.Fatal(err)
	}

	c, err := client.Open(ctx, client.Config{Cluster: "example", Masters: []proto.Address{cluster.Master()}})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	// commit stores one object on top of its revision serial, Zero for a new object.
	commit := func(oid tid.OID, serial tid.TID, data string) (tid.TID, error) {
		t, err := c.Begin(ctx, client.BeginOptions{Description: []byte("example")})
		if err != nil {
			return tid.Zero, err
		}
		defer t.Abort(ctx) // nothing happens if it is committed
		if err := t.Store(ctx, oid, serial, []byte(data)); err != nil {
			return tid.Zero, err
		}
		if _, err := t.Vote(ctx); err != nil {
			return tid.Zero, err
		}
		return t.Finish(ctx, nil)
	}
	oids, err := c.NewOIDs(ctx, 1)
	if err != nil {
		log.Fatal(err)
	}
	oid := oids[0]
	first, err := commit(oid, tid.Zero, "first")
	if err != nil {
		log.Fatal(err)
	}
	second, err := commit(oid, first, "second")
	if err != nil {
		log.Fatal(err)
	}
	_, err = commit(oid, first, "third")
	conflict, ok := errors.AsType[*txn.ConflictError](err)
	fmt.Println("conflict:", ok && conflict.Base == first && conflict.Committed == second)

	now, serial, err := c.Load(ctx, oid)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, current: %v\n", now, serial == second)
	then, err := c.LoadBefore(ctx, oid, second)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, replaced: %v\n", then.Data, then.Next == second)
	// Output:
	// conflict: true
	// second, current: true
	// first, replaced: true
}
