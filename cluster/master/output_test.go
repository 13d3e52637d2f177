package master

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// A client that is stopped does not fill the memory of the master.
func TestPeerThatDoesNotRead(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		nc, err := l.Accept()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		// It says hello and then nothing is heard of it.
		other := link.New(nc, link.Config{Deliver: func(link.Event) { <-t.Context().Done() }})
		<-other.Done()
	}()
	addr := l.Addr().(*net.TCPAddr)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	conn, err := link.Dial(ctx, proto.Address{Host: "127.0.0.1", Port: addr.AddrPort().Port()}, link.Config{Deliver: func(link.Event) {}})
	if err != nil {
		t.Fatal(err)
	}
	m := &Master{conns: map[ConnID]*connection{}, cfg: Config{Log: slog.New(slog.NewTextHandler(io.Discard, nil))}}
	id := m.register(conn)
	big := &proto.InvalidateObjects{TID: 1, OIDs: make([]tid.OID, 500_000)}
	for i := range big.OIDs {
		big.OIDs[i] = tid.MaxOID
	}
	for n := 0; !conn.Closed(); n++ {
		if n == 100 {
			t.Fatalf("%d bytes wait for a peer that does not read", conn.Buffered())
		}
		m.perform([]Effect{{Op: Notify, Conn: id, Packet: big}})
	}
	select {
	case <-conn.Done():
	case <-ctx.Done():
		t.Error(errors.Join(ctx.Err(), errors.New("the link does not end")))
	}
}
