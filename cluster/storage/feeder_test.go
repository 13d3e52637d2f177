package storage

import (
	"context"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/storage/backendtest"
	"github.com/neozodb/neo/cluster/tid"
)

// distant is a database that waits for another one, which does not answer.
type distant struct {
	backend.Backend
	waits chan struct{}
}

func (d *distant) wait(ctx context.Context) error {
	d.waits <- struct{}{}
	<-ctx.Done()
	return ctx.Err()
}

func (d *distant) CheckTIDs(ctx context.Context, _, _ int, _, _ tid.TID) (*proto.AnswerCheckTIDRange, error) {
	return nil, d.wait(ctx)
}

func (d *distant) CheckSerials(ctx context.Context, _, _ int, _, _ tid.TID, _ tid.OID) (*proto.AnswerCheckSerialRange, error) {
	return nil, d.wait(ctx)
}

// The end of an operation does not wait for what is compared for another storage, and
// that this is interrupted is no error of the database.
func TestEndOfOperationInterruptsComparison(t *testing.T) {
	for _, q := range []proto.Request{&proto.AskCheckTIDRange{Length: 10, Max: 20}, &proto.AskCheckSerialRange{Length: 10, Max: 20}} {
		r := newRig(t)
		d := &distant{waits: make(chan struct{}, 1)}
		s := r.start(1, backendtest.NewMemory(), func(c *Config) { d.Backend, c.Backend = c.Backend, d })
		other := r.scriptedStorage(2)
		s.initialize(1, table("UU", "UU"), other.node)
		s.operate()
		b := other.identify(s)
		accepted(b)
		b.Ask(q, nil)
		<-d.waits
		s.master.Send(&proto.StopOperation{})
		s.barrier()
		s.announce(proto.NodeDown)
		if err := s.wait(); err != nil {
			t.Errorf("%T: %v", q, err)
		}
	}
}
