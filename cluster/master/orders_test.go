package master

import (
	"fmt"
	"reflect"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// A master in a backup cluster, or in one that is not, obeys an order to change the state
// where that is possible, and otherwise says why not and changes nothing.
func TestOrdersOfState(t *testing.T) {
	none := func(*followWorld) {}
	const obeyed = ""
	type test struct {
		from, to proto.ClusterState
		when     string
		prepare  func(*followWorld)
		want     string
	}
	var tests []test
	states := []proto.ClusterState{proto.Recovering, proto.Verifying, proto.Running, proto.StartingBackup, proto.BackingUp, proto.StoppingBackup}
	for _, from := range append(states, proto.Stopping) {
		for _, to := range append(states, proto.ClusterState(99)) {
			x := test{from, to, "", none, fmt.Sprintf("%v does not lead to %v", from, to)}
			switch {
			case from == proto.Recovering && to == proto.Verifying:
				continue // see the election and recovery scenarios
			case from == proto.Running && to == proto.StartingBackup,
				(from == proto.StartingBackup || from == proto.BackingUp) && to == proto.StoppingBackup:
				x.want = obeyed
			}
			tests = append(tests, x)
		}
	}
	client := func(w *followWorld) *peer {
		n := w.m.nodes.Put(proto.Node{Type: proto.Client, ID: proto.Client.ID(1), State: proto.NodeRunning})
		p := &peer{conn: 50, role: member, node: n}
		w.m.peers[p.conn], w.m.links[n] = p, p
		w.m.members = append(w.m.members, p)
		return p
	}
	nothing := func(w *followWorld) {
		for r := range w.m.follow.all() {
			r.backup = tid.Zero
		}
	}
	tests = append(tests,
		test{proto.Running, proto.StartingBackup, "no upstream cluster", func(w *followWorld) { w.m.set.Upstream = Upstream{} }, "no upstream cluster to backup is configured"},
		test{proto.Running, proto.StartingBackup, "a client is there", func(w *followWorld) { client(w) }, "a client is connected"},
		test{proto.Running, proto.StartingBackup, "a transaction has outlived its client", func(w *followWorld) {
			w.m.begin(client(w), 7, &proto.AskBeginTransaction{})
		}, "a transaction is pending"},
		test{proto.StartingBackup, proto.StoppingBackup, "nothing was copied", nothing, "nothing is backed up yet: the whole database would be truncated"},
		test{proto.StartingBackup, proto.StoppingBackup, "storages are not heard yet", func(w *followWorld) { w.m.follow.told = proto.Opt[tid.TID]{} },
			"the storages have not said yet what they have: try again"},
		test{proto.BackingUp, proto.StoppingBackup, "nothing was copied", nothing, "nothing is backed up yet: the whole database would be truncated"},
	)
	for _, tt := range tests {
		name := fmt.Sprintf("%v to %v", tt.from, tt.to)
		if tt.when != "" {
			name += ", " + tt.when
		}
		t.Run(name, func(t *testing.T) {
			w := newFollowWorld(t, 1)
			m := w.m
			m.state, m.served = tt.from, tt.from != proto.Recovering && tt.from != proto.Verifying
			m.ids.committed, m.ids.known = 100, 100
			for p, row := range m.table.Rows() {
				for _, c := range row {
					m.follow.cell(p, c.ID).backup = 90
				}
			}
			if m.inBackup() {
				m.backup, m.follow.told = proto.Some(tid.TID(90)), proto.Some(tid.TID(90))
			}
			admin := &peer{conn: 99, role: member, node: m.nodes.Put(proto.Node{Type: proto.Admin, ID: proto.Admin.ID(1), State: proto.NodeRunning})}
			tt.prepare(w)
			m.out = nil
			type view struct {
				State  proto.ClusterState
				Backup proto.Opt[tid.TID]
				PTID   proto.Opt[uint64]
				Cells  []reach
				Served bool
			}
			look := func() view {
				v := view{m.state, m.backup, m.table.PTID(), nil, m.served}
				for r := range m.follow.all() {
					v.Cells = append(v.Cells, *r)
				}
				return v
			}
			before := look()
			m.adminPacket(admin, 5, &proto.SetClusterState{State: tt.to})
			answers := 0
			for _, e := range m.out {
				a, ok := e.Packet.(*proto.Error)
				if !ok || e.Conn != admin.conn {
					if tt.want != obeyed && e.Op != Log {
						t.Errorf("it does %+v", e)
					}
					continue
				}
				answers++
				switch {
				case tt.want == obeyed && (a.ErrCode != proto.Ack || a.Message != stateChanged):
					t.Errorf("answered %v %q", a.ErrCode, a.Message)
				case tt.want != obeyed && (a.ErrCode != proto.Denied || a.Message != tt.want):
					t.Errorf("answered %v %q, want %q", a.ErrCode, a.Message, tt.want)
				}
			}
			if answers != 1 {
				t.Errorf("%d answers", answers)
			}
			after := look()
			if tt.want == obeyed {
				if m.state != tt.to {
					t.Errorf("the cluster is %v", m.state)
				}
			} else if !reflect.DeepEqual(before, after) {
				t.Errorf("it was %+v\nand is  %+v", before, after)
			}
		})
	}
}

// Orders that a backup cluster does not obey: it says why, and what to do instead.
func TestOrdersInBackup(t *testing.T) {
	all := map[int]proto.Opt[proto.NodeID]{0: {}}
	for _, tt := range []struct {
		state proto.ClusterState
		order proto.Packet
		want  string
	}{
		{proto.StartingBackup, &proto.Truncate{TID: 50}, "the cluster is STARTING_BACKUP"},
		{proto.BackingUp, &proto.Truncate{TID: 50}, "the cluster is BACKINGUP"},
		{proto.StoppingBackup, &proto.Truncate{TID: 50}, "the cluster is STOPPING_BACKUP"},
		{proto.StoppingBackup, &proto.TweakPartitionTable{}, "the cluster is STOPPING_BACKUP"},
		{proto.StoppingBackup, &proto.AddPendingNodes{}, "the cluster is STOPPING_BACKUP"},
		{proto.StoppingBackup, &proto.SetNumReplicas{Replicas: 1}, "the cluster is STOPPING_BACKUP"},
		{proto.StoppingBackup, &proto.CheckReplicas{Partitions: all}, "the cluster is STOPPING_BACKUP"},
		{proto.StartingBackup, &proto.CheckReplicas{Partitions: all},
			`the upstream cluster "up" is not connected; neoctl check --local compares the replicas of this cluster only`},
		{proto.BackingUp, &proto.CheckReplicas{Partitions: map[int]proto.Opt[proto.NodeID]{0: proto.Some(proto.NodeID(1)), 9: {}}}, "no partition 9"},
	} {
		w := newFollowWorld(t, 1)
		m := w.m
		m.state, m.served = tt.state, true
		m.ids.committed, m.backup = 100, proto.Some(tid.TID(90))
		admin := &peer{conn: 99, role: member, node: m.nodes.Put(proto.Node{Type: proto.Admin, ID: proto.Admin.ID(1), State: proto.NodeRunning})}
		ptid := m.table.PTID()
		m.out = nil
		m.adminPacket(admin, 5, tt.order)
		var got []string
		for _, e := range m.out {
			if a, ok := e.Packet.(*proto.Error); ok && a.ErrCode == proto.Denied && e.Conn == admin.conn {
				got = append(got, a.Message)
			} else if e.Op != Log {
				t.Errorf("%v, %T: it does %+v", tt.state, tt.order, e)
			}
		}
		if len(got) != 1 || got[0] != tt.want {
			t.Errorf("%v, %T: answered %q, want %q", tt.state, tt.order, got, tt.want)
		}
		if m.state != tt.state || m.table.PTID() != ptid || m.backup.V != 90 {
			t.Errorf("%v, %T: something has changed", tt.state, tt.order)
		}
	}
}
