package storage

import (
	"errors"
	"sync/atomic"
	"testing"

	"github.com/neozodb/neo/cluster/parting"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// fullDisk is a database that cannot commit any more.
type fullDisk struct {
	backend.Backend
	full *atomic.Bool
}

func (d fullDisk) Commit() error {
	if d.full.Load() {
		return errors.New("disk full")
	}
	return d.Backend.Commit()
}

func (d fullDisk) CommitVotes() error { return d.Commit() }

// A storage that ends by an error says why to a master that has asked for it, and to no
// other: that is the last that it sends.
func TestSaysWhyItEnds(t *testing.T) {
	for _, listens := range []bool{true, false} {
		r := newRig(t)
		var full atomic.Bool
		s := r.start(1, backendtest.NewMemory(), func(c *Config) { c.Backend = fullDisk{c.Backend, &full} })
		s.initialize(1, table("U", "U"), clientNode(1))
		s.operate()
		c := s.client(1)
		s.commit(c, 10, 0, "x", 1)
		if listens {
			s.master.Send((&parting.Message{}).Packet())
		}
		s.barrier()
		call[*proto.AnswerStoreObject](c, store(tid.TID(11), 2, 0, "y"))
		full.Store(true)
		c.Conn.Ask(&proto.AskStoreTransaction{TTID: 11, OIDs: []tid.OID{2}}, nil)
		err := s.wait()
		if err == nil {
			t.Fatal("the node has ended without an error")
		}
		var said []string
		for ev := s.next(); !ev.End(); ev = s.next() {
			if p, ok := ev.Packet.(*proto.NotifyMonitorInformation); ok {
				m, ok, err := parting.Parse(p)
				if !ok || err != nil {
					t.Errorf("%+v: %v", p, err)
					continue
				}
				said = append(said, m.Reason)
			} else if len(said) > 0 {
				t.Errorf("%T after the last words", ev.Packet)
			}
		}
		if listens && (len(said) != 1 || said[0] != err.Error()) || !listens && said != nil {
			t.Errorf("the master, that listens: %v, was told %q; the node has ended with %v", listens, said, err)
		}
		full.Store(false) // for the end of the test
	}
}
