package link

import (
	"testing"

	"github.com/neozodb/neo/cluster/internal/memnet"
	"github.com/neozodb/neo/cluster/proto"
)

// Both ends count the same, also once the connection has ended.
func TestTraffic(t *testing.T) {
	n := memnet.New(1)
	var near, far Traffic
	fin := make(inbox, 10)
	l, err := Listen(t.Context(), proto.Address{Host: "b"}, Config{Network: n.Host("b"), Traffic: &far, Deliver: func(ev Event) {
		if _, ok := ev.Packet.(*proto.AskClusterState); ok {
			ev.Conn.Answer(ev.ID, &proto.AnswerClusterState{State: proto.Some(proto.Running)})
		}
		fin <- ev
	}}, func(*Conn) {})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(t.Context(), l.Addr(), Config{Network: n.Host("a"), Traffic: &near})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := c.Call(t.Context(), &proto.AskClusterState{}); err != nil {
			t.Fatal(err)
		}
	}
	c.Send(&proto.FlushLog{})
	for range 4 {
		fin.next(t)
	}
	if open := near.Stats(); open.Connections != 1 || open.Opened != 1 {
		t.Errorf("%d connections of %d while it is open", open.Connections, open.Opened)
	}
	c.Abort()
	<-c.Done()
	fin.end(t)
	a, b := near.Stats(), far.Stats()
	for name, want := range map[string]uint64{"AskClusterState": 3, "FlushLog": 1} {
		if a.Out.Packets[name] != want || b.In.Packets[name] != want {
			t.Errorf("%s: %d sent, %d received, want %d", name, a.Out.Packets[name], b.In.Packets[name], want)
		}
	}
	if a.In.Packets["AnswerClusterState"] != 3 || b.Out.Packets["AnswerClusterState"] != 3 {
		t.Errorf("answers: %v received, %v sent", a.In.Packets, b.Out.Packets)
	}
	if a.Out.Bytes != b.In.Bytes || a.In.Bytes != b.Out.Bytes || a.In.Bytes == 0 || a.Out.Bytes == 0 {
		t.Errorf("bytes: %d sent and %d received, of which the other one received %d and sent %d", a.Out.Bytes, a.In.Bytes, b.In.Bytes, b.Out.Bytes)
	}
	if a.Connections != 0 || b.Connections != 0 || b.Opened != 1 {
		t.Errorf("%d and %d connections of %d after their end", a.Connections, b.Connections, b.Opened)
	}
}

// Each packet has a counter.
func TestTrafficCountsEachPacket(t *testing.T) {
	for code := uint16(maxCode); code < maxCode+0x20; code++ {
		for _, c := range []uint16{code, code | proto.AnswerBit} {
			if name := proto.CodeName(c); name[:min(7, len(name))] != "packet " {
				t.Errorf("%s has code %#04x, which is not below %#04x", name, c, maxCode)
			}
		}
	}
}

func BenchmarkTraffic(b *testing.B) { // two of these are the price of each packet that a node receives or sends
	var t Traffic
	c := t.begin()
	p := &proto.AskObject{}
	for b.Loop() {
		c.packet(inward, p)
	}
}
