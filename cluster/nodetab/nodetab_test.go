package nodetab

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/neozodb/neo/cluster/proto"
)

func addr(port uint16) proto.Address { return proto.Address{Host: "127.0.0.1", Port: port} }

func TestNewID(t *testing.T) {
	var tab Table
	for _, tt := range []struct {
		name      string
		typ       proto.NodeType
		requested proto.NodeID
		addr      proto.Address
		want      string
	}{
		{"first of a type", proto.Client, 0, proto.Address{}, "C1"},
		{"requested, free", proto.Storage, 7, addr(1), "S7"},
		{"requested, taken, another address", proto.Storage, 2, addr(9), "S1"},
		{"requested, taken by this address", proto.Storage, 2, addr(2), "S2"},
		{"none requested, known address", proto.Storage, 0, addr(3), "S1"}, // smaller and free
		{"requested of another type", proto.Client, 5, proto.Address{}, "C1"},
		{"temporary id for a storage", proto.Storage, proto.Client.ID(3), addr(9), "S1"},
		{"clients without address share nothing", proto.Client, proto.Client.ID(2), proto.Address{}, "C1"},
		{"admin", proto.Admin, proto.Admin.ID(4), addr(10), "A4"},
	} {
		tab = Table{}
		tab.Put(proto.Node{Type: proto.Storage, ID: 2, Addr: addr(2)})
		tab.Put(proto.Node{Type: proto.Storage, ID: 3, Addr: addr(3)})
		tab.Put(proto.Node{Type: proto.Client, ID: proto.Client.ID(2)})
		t.Run(tt.name, func(t *testing.T) {
			if got := tab.NewID(tt.typ, tt.requested, tt.addr); got.String() != tt.want {
				t.Errorf("got %v, want %s", got, tt.want)
			}
		})
	}
}

func names(t *Table) []string {
	var list []string
	for n := range t.Nodes() {
		list = append(list, n.ID.String()+" "+n.Addr.String())
	}
	return list
}

func TestUpdate(t *testing.T) {
	var tab Table
	tab.Put(proto.Node{Type: proto.Master, Addr: addr(1)})
	tab.Put(proto.Node{Type: proto.Storage, ID: 1, Addr: addr(11), State: proto.NodeDown})
	tab.Put(proto.Node{Type: proto.Storage, ID: 2, Addr: addr(12)})
	gone := tab.Update([]proto.Node{
		{Type: proto.Master, ID: proto.Master.ID(1), Addr: addr(1), State: proto.NodeRunning},
		{Type: proto.Storage, ID: 1, Addr: addr(12), State: proto.NodeRunning}, // S2's address: S2 becomes S1
	}, true, func(n *proto.Node) bool { return n.Type == proto.Storage })
	if len(gone) != 0 {
		t.Errorf("forgotten: %v", gone)
	}
	want := []string{"M1 127.0.0.1:1", "S1 127.0.0.1:12", "None 127.0.0.1:11"}
	if diff := cmp.Diff(want, names(&tab)); diff != "" {
		t.Errorf("nodes (-want +got):\n%s", diff)
	}
	if tab.ByID(2) != nil || tab.ByID(1).Addr != addr(12) || !tab.Running(1) {
		t.Error("ids are not those of the list")
	}
	gone = tab.Update([]proto.Node{{Type: proto.Storage, ID: 1, Addr: addr(12), State: proto.NodeUnknown}}, false, nil)
	if len(gone) != 1 || gone[0].ID != 1 || tab.ByID(1) != nil {
		t.Errorf("forgotten: %v", gone)
	}
	tab.Update(nil, true, nil)
	if left := slices.Collect(tab.Nodes()); len(left) != 0 {
		t.Errorf("left after an empty complete list: %v", left)
	}
}

func TestPutKeepsPointers(t *testing.T) {
	var tab Table
	n := tab.Put(proto.Node{Type: proto.Storage, ID: 1, Addr: addr(1)})
	if tab.Put(proto.Node{Type: proto.Storage, ID: 4, Addr: addr(1), State: proto.NodeRunning}) != n {
		t.Error("a node found by address was replaced")
	}
	if tab.ByID(1) != nil || tab.ByID(4) != n || !tab.Running(4) {
		t.Error("the old id is still known")
	}
	tab.Remove(n)
	if tab.ByAddr(addr(1)) != nil || tab.ByID(4) != nil {
		t.Error("a removed node is still known")
	}
}
