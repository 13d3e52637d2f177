package simple

import (
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/testlog"
	"github.com/neozodb/neo/cluster/txn"
)

// An upstream master of a newer version of the protocol is not followed: the log says
// so, with its address, once.
func TestBackupOfNewerProtocol(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	tried := make(chan struct{}, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				if _, err := c.Write([]byte("\x92\xa3NEO\x06")); err != nil {
					return
				}
				buf := make([]byte, 100)
				for err == nil {
					_, err = c.Read(buf)
				}
				select {
				case tried <- struct{}{}:
				default:
				}
			}()
		}
	}()
	a := l.Addr().(*net.TCPAddr)
	var log testlog.Buffer
	down, _ := run(t, Config{Dir: t.TempDir(), Name: "down", Partitions: 4, Log: log.Logger(),
		Upstream: master.Upstream{Cluster: "up", Masters: []proto.Address{{Host: "127.0.0.1", Port: uint16(a.Port)}}, Backup: true}})
	op := dial(t, down)
	await(t, op, proto.StartingBackup)
	for range 4 {
		select {
		case <-tried:
		case <-time.After(2 * time.Minute):
			t.Fatal("the upstream master is not tried again")
		}
	}
	const want = "peer speaks version 6 of the protocol, not 5"
	if n := strings.Count(log.String(), want); n != 1 || !strings.Contains(log.String(), a.String()) {
		t.Errorf("%q is said %d times:\n%s", want, n, log.String())
	}
	if n := strings.Count(log.String(), "upstream cluster: "); n != 1 {
		t.Errorf("%d lines about the upstream cluster:\n%s", n, log.String())
	}
	await(t, op, proto.StartingBackup)
	if _, err := op.SetClusterState(t.Context(), proto.StoppingBackup); err == nil || !strings.Contains(err.Error(), "nothing is backed up yet") {
		t.Errorf("leaving: %v", err)
	}
}

// A backup cluster takes no writes, whether a client says that it only reads or not, and
// whatever node it asks.
func TestBackupTakesNoWrites(t *testing.T) {
	up, _ := start(t, Config{Dir: t.TempDir(), Name: "up", Partitions: 1})
	last := store(t, open(t, up, client.Config{}), "x", 1)
	down, _ := run(t, backupOf(up, Config{Dir: t.TempDir(), Partitions: 1, Upstream: master.Upstream{Backup: true}}))
	op := dial(t, down)
	await(t, op, proto.BackingUp)
	awaitBackup(t, op, last)
	nodes, err := op.Nodes(t.Context(), proto.Opt[proto.NodeType]{})
	if err != nil {
		t.Fatal(err)
	}
	var masterAddr, storageAddr proto.Address
	for _, n := range nodes {
		switch n.Type {
		case proto.Master:
			masterAddr = n.Addr
		case proto.Storage:
			storageAddr = n.Addr
		}
	}
	// Our client.
	if c, err := client.Open(t.Context(), client.Config{Cluster: "down", Masters: []proto.Address{masterAddr}}); err == nil {
		_, err = c.Begin(t.Context(), client.BeginOptions{})
		c.Close()
		if !errors.Is(err, txn.ErrReadOnly) {
			t.Errorf("a client that may write begins: %v", err)
		}
	} else if !errors.Is(err, txn.ErrReadOnly) {
		t.Errorf("a client that may write: %v", err)
	}
	// Any other one.
	stamps := make(chan proto.Opt[float64], 10)
	dial := func(a proto.Address) *link.Conn {
		t.Helper()
		c, err := link.Dial(t.Context(), a, link.Config{Deliver: func(ev link.Event) {
			if p, ok := ev.Packet.(*proto.NotifyNodeInformation); ok && len(stamps) == 0 {
				stamps <- p.Nodes[0].IDTimestamp // the first one is about the client itself
				return
			}
			link.HandleBase(ev)
		}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		return c
	}
	refused := func(what string, c *link.Conn, req proto.Request) {
		t.Helper()
		var e *proto.Error
		a, err := c.Call(t.Context(), req)
		if !errors.As(err, &e) || e.ErrCode != proto.ReadOnlyAccess {
			t.Errorf("%s: %T, %v", what, a, err)
		} else {
			t.Logf("%s: %s", what, e.Message)
		}
	}
	identify := proto.RequestIdentification{Type: proto.Client, Cluster: "down", Extra: map[string]proto.Value{}}
	refused("a client that may write", dial(masterAddr), &identify)
	identify.Extra["read_only"] = true
	c := dial(masterAddr)
	a, err := c.Call(t.Context(), &identify)
	if err != nil {
		t.Fatal(err)
	}
	refused("begin", c, &proto.AskBeginTransaction{})
	refused("new oids", c, &proto.AskNewOIDs{Count: 1})
	refused("finish", c, &proto.AskFinishTransaction{TTID: last + 1})
	identify.ID, identify.IDTimestamp = a.(*proto.AcceptIdentification).YourID, <-stamps
	var s *link.Conn
	for i := 0; ; i++ { // until the master has told the storage of the client
		s = dial(storageAddr)
		if _, err = s.Call(t.Context(), &identify); err == nil {
			break
		}
		if i == 6000 {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	refused("store", s, &proto.AskStoreObject{OID: 2, TTID: last + 1})
	if ids, err := op.LastIDs(t.Context()); err != nil || ids.LastTID.V != last {
		t.Errorf("afterwards: %+v, %v", ids, err)
	}
}
