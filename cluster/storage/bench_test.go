package storage

import (
	"context"
	"crypto/sha1"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/sqlitedb"
	"github.com/neozodb/neo/cluster/tid"
)

// benchNode runs a node with an SQLite database on the loopback interface, and
// returns the links of its master and of a client.
func benchNode(b *testing.B, fromClient, fromMaster func(link.Event)) (client, master *link.Conn) {
	b.Helper()
	conns := make(chan *link.Conn, 1)
	ready := make(chan bool)
	loopback := proto.Address{Host: "127.0.0.1"}
	masters, err := link.Listen(b.Context(), loopback, link.Config{Deliver: func(ev link.Event) {
		switch ev.Packet.(type) {
		case *proto.RequestIdentification:
			ev.Conn.Answer(ev.ID, &proto.AcceptIdentification{Type: proto.Master, ID: proto.Master.ID(1), YourID: 1})
			ev.Conn.Send(&proto.NotifyNodeInformation{Timestamp: 1, Nodes: []proto.Node{
				{Type: proto.Storage, ID: 1, State: proto.NodeRunning, IDTimestamp: proto.Some(0.5)}, clientNode(1)}})
			ev.Conn.Send(&proto.SendPartitionTable{PTID: proto.Some[uint64](1), Rows: table("U", "U", "U", "U", "U", "U", "U", "U", "U", "U", "U", "U")})
			ev.Conn.Send(&proto.StartOperation{})
			conns <- ev.Conn
		case *proto.NotifyReady:
			ready <- true
		default:
			if !ev.End() {
				fromMaster(ev)
			}
		}
	}}, func(*link.Conn) {})
	if err != nil {
		b.Fatal(err)
	}
	db, err := sqlitedb.Open(context.Background(), filepath.Join(b.TempDir(), "neo.sqlite"), sqlitedb.Options{})
	if err != nil {
		b.Fatal(err)
	}
	n, err := New(Config{Cluster: "test", Bind: loopback, Masters: bootstrap.NewMasters(masters.Addr()), Backend: db})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- n.Run(ctx) }()
	b.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
		if err := db.Close(); err != nil {
			b.Error(err)
		}
		masters.Close()
	})
	master = <-conns
	<-ready
	client, err = link.Dial(b.Context(), n.Addr(), link.Config{Deliver: fromClient})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := client.Call(b.Context(), &proto.RequestIdentification{Type: proto.Client, ID: clientNode(1).ID, Cluster: "test",
		IDTimestamp: proto.Some(101.0)}); err != nil {
		b.Fatal(err)
	}
	return client, master
}

// BenchmarkImport commits small transactions one after the other in a window, as
// an import with imposed TIDs does.
func BenchmarkImport(b *testing.B) {
	for _, size := range []int{300, 3000} {
		b.Run(fmt.Sprintf("10x%d", size), func(b *testing.B) {
			const window, objects = 64, 10
			slots := make(chan bool, window)
			var client, master *link.Conn
			client, master = benchNode(b, func(ev link.Event) {
				if a, ok := ev.Packet.(*proto.AnswerStoreTransaction); ok {
					t := ev.Asked.Tag.(tid.TID)
					master.Ask(&proto.AskLockInformation{TTID: t, TID: t}, t)
				} else if e, ok := ev.Packet.(*proto.Error); ok {
					b.Error(e, a)
				}
			}, func(ev link.Event) {
				if a, ok := ev.Packet.(*proto.AnswerInformationLocked); ok {
					master.Send(&proto.NotifyUnlockInformation{TTID: a.TTID})
					<-slots
				}
			})
			d := make([]byte, size)
			rnd := rand.NewChaCha8([32]byte{})
			rnd.Read(d)
			sum := sha1.Sum(d)
			b.SetBytes(int64(objects * size))
			b.ReportAllocs()
			t, oid := tid.TID(1000), tid.OID(0)
			for b.Loop() {
				slots <- true
				oids := make([]tid.OID, objects)
				for i := range oids {
					oid++
					oids[i] = oid
					client.Ask(&proto.AskStoreObject{OID: oid, ObjectData: proto.ObjectData{Checksum: sum, Data: d}, TTID: t}, nil)
				}
				client.Ask(&proto.AskStoreTransaction{TTID: t, User: []byte("u"), OIDs: oids}, t)
				t++
			}
			for range window {
				slots <- true
			}
		})
	}
}

// BenchmarkLoad is what every load costs that misses the cache of a client.
func BenchmarkLoad(b *testing.B) {
	var client, master *link.Conn
	locked := make(chan bool)
	client, master = benchNode(b, func(link.Event) {}, func(ev link.Event) {
		if a, ok := ev.Packet.(*proto.AnswerInformationLocked); ok {
			master.Send(&proto.NotifyUnlockInformation{TTID: a.TTID})
			locked <- true
		}
	})
	oids := make([]tid.OID, 1000)
	d := data(string(make([]byte, 2000)))
	for i := range oids {
		oids[i] = tid.OID(i)
		if _, err := client.Call(b.Context(), &proto.AskStoreObject{OID: oids[i], ObjectData: d, TTID: 12}); err != nil {
			b.Fatal(err)
		}
	}
	if _, err := client.Call(b.Context(), &proto.AskStoreTransaction{TTID: 12, OIDs: oids}); err != nil {
		b.Fatal(err)
	}
	master.Ask(&proto.AskLockInformation{TTID: 12, TID: 12}, nil)
	<-locked
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		i++
		if _, err := client.Call(b.Context(), &proto.AskObject{OID: tid.OID(i % 1000), Before: proto.Some[tid.TID](100)}); err != nil {
			b.Fatal(err)
		}
	}
}
