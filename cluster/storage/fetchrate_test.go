package storage

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/neozodb/neo/cluster/following"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

func (s *testNode) agree(t following.Terms) {
	t.Packs = tid.Max
	s.master.Send(t.Packet())
	s.barrier()
}

func (s *testNode) heldAt() proto.Opt[tid.TID] {
	s.rig.t.Helper()
	c, err := s.db.Config()
	if err != nil {
		s.rig.t.Fatal(err)
	}
	return c.BackupHold
}

// A storage fetches as fast as the master allows, changes of that included, and nothing
// while it is told to pause.
func TestFetchRate(t *testing.T) {
	const records, size, rate = 200, 10_000, 100_000
	for _, tt := range []struct {
		name        string
		terms, then following.Terms
		least, most time.Duration
	}{
		{"limit", following.Terms{Rate: rate}, following.Terms{Rate: rate}, 18 * time.Second, 22 * time.Second},
		{"higher after 5 s", following.Terms{Rate: rate}, following.Terms{Rate: 10 * rate}, 6 * time.Second, 8 * time.Second},
		{"lower after 5 s", following.Terms{Rate: rate}, following.Terms{Rate: rate / 2}, 32 * time.Second, 38 * time.Second},
		{"limit ends after 5 s", following.Terms{Rate: rate}, following.Terms{}, 5 * time.Second, 6 * time.Second},
		{"pause ends after 5 s", following.Terms{Paused: true}, following.Terms{}, 5 * time.Second, 6 * time.Second},
		{"no limit", following.Terms{}, following.Terms{}, 0, time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				up := r.start(1, backendtest.NewMemory(), func(c *Config) { c.Cluster = "up" })
				up.initialize(1, table("U", "U"))
				up.operate()
				c := up.dial("u1")
				call[*proto.AcceptIdentification](c, &proto.RequestIdentification{Type: proto.Client, ID: clientNode(1).ID, Cluster: "up", IDTimestamp: proto.Some(101.0)})
				b := r.start(2, backendtest.NewMemory(), nil)
				b.initialize(1, table(".U", ".U"))
				b.agree(tt.terms)
				b.master.Send(&proto.StartOperation{Backup: true})
				await[*proto.NotifyReady](b)
				var oids []tid.OID
				for i := range tid.OID(records) {
					oids = append(oids, 2*i)
				}
				up.commit(c, 10, 0, strings.Repeat("x", size), oids...)
				begin := time.Now()
				changed := time.AfterFunc(5*time.Second, func() {
					then := tt.then
					then.Packs = tid.Max
					b.master.Send(then.Packet())
				})
				defer changed.Stop()
				b.replicateFrom(10, "up", up, 0, 1)
				if took := time.Since(begin); took < tt.least || took > tt.most {
					t.Errorf("%d bytes in %v", records*size, took)
				}
			})
		})
	}
}

// A storage remembers a hold until it is released, or backup mode ends, and says it when it
// comes. What it was fetching beyond is left.
func TestHoldIsKept(t *testing.T) {
	r := newRig(t)
	_, b, _ := r.backupPair()
	if h := b.heldAt(); h.OK {
		t.Errorf("held at %v", h.V)
	}
	b.agree(following.Terms{Hold: proto.Some[tid.TID](15)})
	if h := b.heldAt(); h != proto.Some[tid.TID](15) {
		t.Errorf("held at %v", h)
	}
	b.master.Send(&proto.StopOperation{})
	b.initialize(2, table(".U", ".U"))
	b.master.Send(&proto.StartOperation{Backup: true})
	await[*proto.NotifyReady](b)
	if h := b.heldAt(); h != proto.Some[tid.TID](15) {
		t.Errorf("held at %v after a restart of operation", h)
	}
	extra := map[string]proto.Value{}
	if err := (&Node{db: b.db, ctx: t.Context()}).tellState(extra); err != nil {
		t.Fatal(err)
	}
	if h, _ := extra[following.HoldKey].([]byte); string(h) != "\x00\x00\x00\x00\x00\x00\x00\x0f" {
		t.Errorf("told: %v", extra)
	}
	b.agree(following.Terms{})
	if h := b.heldAt(); h.OK {
		t.Errorf("released, but held at %v", h.V)
	}
	for _, leave := range []proto.Packet{&proto.Truncate{TID: 15}, &proto.StartOperation{}} {
		b.agree(following.Terms{Hold: proto.Some[tid.TID](16)})
		b.master.Send(&proto.StopOperation{})
		b.master.Send(leave)
		b.barrier()
		if h := b.heldAt(); h.OK {
			t.Errorf("after %T: held at %v", leave, h.V)
		}
		if _, ok := leave.(*proto.Truncate); ok {
			b.initialize(3, table(".U", ".U"))
			b.master.Send(&proto.StartOperation{Backup: true})
			await[*proto.NotifyReady](b)
		}
	}
}

// An order up to a hold overtakes what is being fetched beyond it.
func TestHoldStopsFetch(t *testing.T) {
	r := newRig(t)
	up, b, c := r.backupPair()
	up.commit(c, 10, 0, "one", 0)
	up.commit(c, 13, 10, "two", 0)
	b.agree(following.Terms{Paused: true})
	b.master.Send(&proto.Replicate{TID: 13, Upstream: "up", Sources: map[int]proto.Address{0: up.Addr()}})
	b.barrier()
	b.master.Send(&proto.Replicate{TID: 11, Upstream: "up", Sources: map[int]proto.Address{0: up.Addr()}})
	b.barrier()
	b.agree(following.Terms{})
	for {
		d := await[*proto.NotifyReplicationDone](b)
		if d.Partition == 0 {
			if d.TID != 11 {
				t.Errorf("done: %+v", d)
			}
			break
		}
	}
	b.replicateFrom(13, "up", up, 0, 1)
	if a := call[*proto.AnswerObject](b.client(1), &proto.AskObject{OID: 0}); a.Serial != 13 {
		t.Errorf("object: %+v", a)
	}
}

// A storage with a limit asks for small pieces, also of what it has in part already: what
// it has beyond a piece is neither deleted nor left out.
func TestFetchRateResumes(t *testing.T) {
	const records, size, rate = 200, 1000, 20_000
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		up := r.start(1, backendtest.NewMemory(), func(c *Config) { c.Cluster = "up" })
		up.initialize(1, table("U", "U"))
		up.operate()
		c := up.dial("u1")
		call[*proto.AcceptIdentification](c, &proto.RequestIdentification{Type: proto.Client, ID: clientNode(1).ID, Cluster: "up", IDTimestamp: proto.Some(101.0)})
		var oids []tid.OID
		for i := range tid.OID(records) {
			oids = append(oids, 2*i)
		}
		up.commit(c, 10, 0, strings.Repeat("x", size), oids...)

		db := backendtest.NewMemory()
		b := r.start(2, db, nil)
		b.initialize(1, table(".U", ".U"))
		b.agree(following.Terms{Rate: rate})
		// All that differs from upstream has the last TID here, which is looked at again.
		for i, oid := range oids {
			if i%3 == 0 {
				continue
			}
			o, err := up.db.FetchObject(t.Context(), oid, 10)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.db.AddObject(oid, 10, o.ObjectData, proto.Opt[tid.TID]{}); err != nil {
				t.Fatal(err)
			}
		}
		o, err := up.db.FetchObject(t.Context(), 0, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, oid := range []tid.OID{300 * 2, 301 * 2} { // upstream has not
			if err := b.db.AddObject(oid, 10, o.ObjectData, proto.Opt[tid.TID]{}); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.db.Commit(); err != nil {
			t.Fatal(err)
		}
		b.master.Send(&proto.StartOperation{Backup: true})
		await[*proto.NotifyReady](b)
		b.replicateFrom(10, "up", up, 0, 1)
		if diff := cmp.Diff(contents(t, up.db), contents(t, b.db)); diff != "" {
			t.Errorf("backup (-want +got):\n%s", diff)
		}
	})
}
