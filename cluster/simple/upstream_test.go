package simple

import (
	"context"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
)

// The partitions of an upstream cluster are asked of the masters that answer. Without one
// the error says why.
func TestPartitions(t *testing.T) {
	up, _ := start(t, Config{Dir: t.TempDir(), Name: "up", Partitions: 5})
	unreachable := proto.Address{Host: "127.0.0.1", Port: 1}
	n, err := Partitions(t.Context(), master.Upstream{Cluster: "up", Masters: []proto.Address{unreachable, up.Master()}}, link.Config{})
	if n != 5 || err != nil {
		t.Errorf("%d partitions, %v", n, err)
	}
	if _, err := Partitions(t.Context(), master.Upstream{Cluster: "other", Masters: []proto.Address{up.Master()}}, link.Config{}); err == nil ||
		!strings.Contains(err.Error(), `upstream cluster "other": `) || !strings.Contains(err.Error(), `this is cluster "up"`) {
		t.Errorf("another name: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	tries := 0
	refusing := refusingNetwork(func() error {
		if tries++; tries == 2 {
			cancel()
		}
		return syscall.ECONNREFUSED
	})
	if _, err := Partitions(ctx, master.Upstream{Cluster: "up", Masters: []proto.Address{unreachable}}, link.Config{Network: refusing}); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("without a master: %v", err)
	}
}

// refusingNetwork is a network without hosts.
type refusingNetwork func() error

func (f refusingNetwork) Dial(context.Context, string) (net.Conn, error) { return nil, f() }

func (f refusingNetwork) Listen(context.Context, string) (net.Listener, error) { return nil, f() }
