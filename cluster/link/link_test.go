package link

import (
	"context"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// serveObjects answers AskObject with data of 2 kB.
func serveObjects(data []byte) func(Event) {
	return func(ev Event) {
		if q, ok := ev.Packet.(*proto.AskObject); ok {
			ev.Conn.Answer(ev.ID, &proto.AnswerObject{OID: q.OID, Serial: 1, ObjectData: proto.ObjectData{Data: data}})
		}
	}
}

func BenchmarkCallLoopback(b *testing.B) { // every load that misses the cache
	ctx := context.Background()
	l, err := Listen(ctx, proto.Address{Host: "127.0.0.1"}, Config{Deliver: serveObjects(make([]byte, 2048))}, func(*Conn) {})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(ctx, l.Addr(), Config{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		p, err := c.Call(ctx, &proto.AskObject{OID: tid.OID(42), Before: proto.Some(tid.Max)})
		if err != nil {
			b.Fatal(err)
		}
		if len(p.(*proto.AnswerObject).Data) != 2048 {
			b.Fatal("data is missing")
		}
	}
	b.SetBytes(2048)
	c.Close()
	<-c.Done()
}

func BenchmarkPipelinedStores(b *testing.B) { // a commit of many objects
	ctx := context.Background()
	deliver := func(ev Event) {
		if _, ok := ev.Packet.(*proto.AskStoreObject); ok {
			ev.Conn.Answer(ev.ID, &proto.AnswerStoreObject{})
		}
	}
	l, err := Listen(ctx, proto.Address{Host: "127.0.0.1"}, Config{Deliver: deliver}, func(*Conn) {})
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close()
	window := make(chan struct{}, 256)
	c, err := Dial(ctx, l.Addr(), Config{Deliver: func(ev Event) {
		if ev.Packet != nil {
			<-window
		}
	}})
	if err != nil {
		b.Fatal(err)
	}
	p := &proto.AskStoreObject{ObjectData: proto.ObjectData{Data: make([]byte, 2048)}}
	b.SetBytes(2048)
	b.ReportAllocs()
	for b.Loop() {
		window <- struct{}{}
		c.Ask(p, nil)
	}
	c.Close()
	<-c.Done()
}
