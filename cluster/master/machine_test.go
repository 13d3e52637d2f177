package master

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
)

// No packet from any peer, in any state, stops the master or makes it answer a
// notification of a client with an error.
func FuzzPeersCannotStopTheMaster(f *testing.F) {
	for seed := range uint64(20) {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, seed uint64) {
		r := rand.New(rand.NewPCG(seed, 2))
		s := newSim(t)
		s.command([]string{
			"running partitions=3 replicas=1 s1 s2 s3 c1 c2 a1",
			"running partitions=1 s1 c1 a1",
			"master partitions=2 masters=1,2,3",
		}[r.IntN(3)])
		s.quiet = true
		names := []string{"s1", "s2", "s3", "c1", "c2", "a1", "m2"}
		types := sortedKeys(packetTypes)
		for range 300 {
			if s.ended {
				return
			}
			name := names[r.IntN(len(names))]
			p := s.peers[name]
			switch {
			case p == nil || p.closed:
				s.identify(name, map[byte]string{'s': "storage", 'c': "client", 'a': "admin", 'm': "master"}[name[0]], identity(r, name))
			case r.IntN(20) == 0:
				s.command(name + " lost")
			case len(s.dialing) > 0 && r.IntN(5) == 0:
				a := s.dialing[0]
				s.undial(a)
				s.step(Event{Kind: ConnectFailed, Addr: a})
			case len(p.asked) > 0 && r.IntN(3) > 0:
				s.answerAnything(r, p)
			default:
				pkt := reflect.New(packetTypes[types[r.IntN(len(types))]])
				fill(r, pkt.Elem())
				s.receive(p, pkt.Interface().(proto.Packet))
			}
		}
	})
}

func identity(r *rand.Rand, name string) map[string]string {
	opts := map[string]string{}
	if r.IntN(2) == 0 {
		opts["nid"] = string("SMCA"[r.IntN(4)]) + string("123"[r.IntN(3)])
	}
	if r.IntN(4) == 0 && name[0] == 's' {
		opts["new_nid"] = "1"
		opts["port"] = "0"
	}
	if r.IntN(3) == 0 && name[0] == 'm' {
		opts["started"] = "1"
	}
	return opts
}

// answerAnything answers the oldest question, rightly, with an error, or with
// nonsense of the right type.
func (s *sim) answerAnything(r *rand.Rand, p *simPeer) {
	a := p.asked[0]
	p.asked = p.asked[1:]
	var pkt proto.Packet = proto.Errorf(proto.Denied, "no")
	switch r.IntN(8) {
	case 0:
	case 1:
		for _, typ := range packetTypes {
			if v := reflect.New(typ); v.Interface().(proto.Packet).Code() == a.req.AnswerCode() {
				fill(r, v.Elem())
				pkt = v.Interface().(proto.Packet)
			}
		}
	default:
		if _, ok := a.req.(*proto.RequestIdentification); !ok {
			pkt = (&simStore{}).answer(s.t, a.req)
		}
	}
	s.step(Event{Kind: Answered, Conn: p.conn, Packet: pkt, Request: a.req, Tag: a.tag})
}

// fill gives a value random contents, small numbers mostly.
func fill(r *rand.Rand, v reflect.Value) {
	small := func() int64 { return []int64{-1, 0, 1, 2, 3, 100, 1 << 40}[r.IntN(7)] }
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(r, v.Field(i))
		}
	case reflect.Slice:
		for range r.IntN(4) {
			e := reflect.New(v.Type().Elem()).Elem()
			fill(r, e)
			v.Set(reflect.Append(v, e))
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for range r.IntN(4) {
			k, e := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fill(r, k)
			fill(r, e)
			v.SetMapIndex(k, e)
		}
	case reflect.Pointer:
		if r.IntN(2) == 0 {
			v.Set(reflect.New(v.Type().Elem()))
			fill(r, v.Elem())
		}
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Int, reflect.Int64:
		v.SetInt(small())
	case reflect.Int32: // node id
		v.SetInt(int64(proto.NodeType(r.IntN(4)).ID(r.IntN(4))))
	case reflect.Uint8:
		v.SetUint(uint64(r.IntN(8)))
	case reflect.Uint16, reflect.Uint32:
		v.SetUint(uint64(r.IntN(4)))
	case reflect.Uint64:
		v.SetUint(uint64(small()))
	case reflect.String:
		v.SetString("x")
	}
}

// A transaction that imposes its TID is written with few allocations.
func BenchmarkCommit(b *testing.B) { // a fifth of the time between two commits of a client
	t := &testing.T{}
	s := newSim(t)
	s.command("running partitions=12 replicas=1 s1 s2 s3 c1 c2")
	m, now := s.m, time.Now()
	c, stores := s.peers["c1"].conn, []*simPeer{s.peers["s1"], s.peers["s2"], s.peers["s3"]}
	ids := map[ConnID]bool{}
	for _, p := range stores {
		ids[p.conn] = true
	}
	oids := []tid.OID{1, 2, 3}
	b.ReportAllocs()
	var asked []Effect
	for b.Loop() {
		now = now.Add(time.Microsecond)
		var ttid tid.TID
		for _, e := range m.Step(now, Event{Kind: Received, Conn: c, Packet: &proto.AskBeginTransaction{}}) {
			if a, ok := e.Packet.(*proto.AnswerBeginTransaction); ok {
				ttid = a.TTID
			}
		}
		asked = append(asked[:0], m.Step(now, Event{Kind: Received, Conn: c, Packet: &proto.AskFinishTransaction{TTID: ttid, OIDs: oids}})...)
		done := false
		for _, e := range asked {
			out := m.Step(now, Event{Kind: Answered, Conn: e.Conn, Packet: &proto.AnswerInformationLocked{TTID: ttid},
				Request: e.Packet.(proto.Request), Tag: e.Tag})
			done = done || len(out) > 0
		}
		if !done {
			b.Fatal("not committed")
		}
	}
}

// The number of objects of one transaction is bounded, like that of a pack order.
func TestFinishIsBounded(t *testing.T) {
	s := newSim(t)
	s.command("running s1 c1")
	many := make([]tid.OID, proto.MaxOIDs)
	s.m.ids.committed = 1
	for _, tt := range []struct {
		name string
		pkt  proto.AskFinishTransaction
		ok   bool
	}{
		{"objects", proto.AskFinishTransaction{OIDs: many[1:]}, true},
		{"too many objects", proto.AskFinishTransaction{OIDs: many}, false},
		{"objects to pack", proto.AskFinishTransaction{Pack: &proto.PackRequest{Time: 1, OIDs: many[1:]}}, true},
		{"too many objects to pack", proto.AskFinishTransaction{Pack: &proto.PackRequest{Time: 1, OIDs: many}}, false},
	} {
		if e := s.m.checkFinish(&tt.pkt); (e == nil) != tt.ok || e != nil && e.ErrCode != proto.ProtocolError {
			t.Errorf("%s: %v", tt.name, e)
		}
	}
}
