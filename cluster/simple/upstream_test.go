package simple

import (
	"context"
	"strings"
	"testing"
	"time"

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
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := Partitions(ctx, master.Upstream{Cluster: "up", Masters: []proto.Address{unreachable}}, link.Config{}); err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("without a master: %v", err)
	}
}
