package link

import (
	"net"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
)

// What is queued goes out with what follows, in order, or when it is flushed.
func TestQueue(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan Event, 10)
	c, err := Dial(t.Context(), address(l.Addr()), Config{Deliver: func(ev Event) { got <- ev }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	peer := New(nc, Config{Deliver: func(Event) {}})
	defer peer.Close()
	var ids []uint32
	for range 3 {
		ids = append(ids, c.Ask(&proto.AskFinalTID{}, nil))
	}
	peer.Queue(ids[0], &proto.AnswerFinalTID{})
	peer.Queue(ids[1], &proto.AnswerFinalTID{})
	select {
	case ev := <-got:
		t.Fatalf("%T was sent before the flush", ev.Packet)
	case <-time.After(50 * time.Millisecond):
	}
	if n := peer.Buffered(); n == 0 {
		t.Error("nothing is queued")
	}
	peer.Flush()
	peer.Answer(ids[2], &proto.AnswerFinalTID{})
	for _, id := range ids {
		if ev := <-got; ev.ID != id {
			t.Errorf("answer to %d, want %d", ev.ID, id)
		}
	}
	peer.Abort()
	peer.Queue(ids[0], &proto.AnswerFinalTID{}) // goes nowhere
	peer.Flush()
}
