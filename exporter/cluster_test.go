package exporter

import (
	"errors"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/cluster/txn/txntest"
)

// pipeline is an appender to a database in memory that takes so many transactions.
type pipeline struct {
	*txntest.Memory
	t    *testing.T
	room int
	err  error
}

func (p *pipeline) Append(t *txn.Transaction) error {
	if p.room--; p.room < 0 {
		p.err = errBroken // as of a transaction under way
		return errBroken
	}
	return p.Memory.Append(t)
}

func (p *pipeline) LastTID() tid.TID {
	last, err := p.Memory.LastTID(p.t.Context())
	if err != nil {
		p.t.Error(err)
	}
	return last
}

func (p *pipeline) Close() error { return p.err }

// A cluster gets what it lacks of the source, if it holds the beginning of it.
func TestToCluster(t *testing.T) {
	const n = 12
	ctx := t.Context()
	dst := &txntest.Memory{}
	var begins []tid.TID
	room := 5
	try := func(src slice, opt ClusterOptions) error {
		opt.Opened = func(last, _ tid.TID) error {
			begins = append(begins, last)
			return nil
		}
		return ToCluster(ctx, src, dst, func() Appender { return &pipeline{Memory: dst, t: t, room: room} }, opt)
	}
	same := func(want slice) {
		t.Helper()
		last, err := want.LastTID(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for d, err := range Compare(ctx, want, dst, 0, max(last, 1000), CompareOptions{}, nil) {
			t.Errorf("after the copy: %v, %v", d, err)
		}
	}
	// Interrupted, and gone on with.
	err := try(sample(n), ClusterOptions{Recent: 3})
	stopped, ok := errors.AsType[*InterruptedError](err)
	if !ok || stopped.Last != 50 || !errors.Is(err, errBroken) {
		t.Fatalf("a copy that fails: %v", err)
	}
	same(sample(5))
	room = n
	if err := try(sample(n), ClusterOptions{Recent: 3}); err != nil {
		t.Fatal(err)
	}
	same(sample(n))
	if len(begins) != 2 || begins[0] != 0 || begins[1] != 50 {
		t.Errorf("the copies begin after %v, want 0 and 50", begins)
	}
	// Nothing is appended to what is something else, as far as it is compared.
	other := sample(n + 3)
	other.txns[n-3] = transaction(other.txns[n-3].TID, record(1, "something else"))
	for _, tt := range []struct {
		name   string
		src    slice
		opt    ClusterOptions
		prefix bool
	}{
		{"another history", other, ClusterOptions{}, false},
		{"another history, within what is recent", other, ClusterOptions{Recent: 3}, false},
		{"less than before", sample(n - 2), ClusterOptions{}, false},
		{"another history, of which the cluster goes on", slice{txns: other.txns[:n-2]}, ClusterOptions{Continued: true}, false},
		{"less than before, of which the cluster goes on", sample(n - 2), ClusterOptions{Continued: true}, true},
		{"the same", sample(n), ClusterOptions{}, true},
	} {
		if err := try(tt.src, tt.opt); errors.As(err, new(*NotPrefixError)) == tt.prefix || tt.prefix && err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
		same(sample(n))
	}
	// What comes before is believed.
	if err := try(other, ClusterOptions{Recent: 2}); err != nil {
		t.Errorf("another history, before what is recent: %v", err)
	}
	// Nothing is copied if the caller does not want it.
	refused := errors.New("refused")
	err = ToCluster(ctx, sample(n+9), dst, nil, ClusterOptions{Recent: 2, Opened: func(tid.TID, tid.TID) error { return refused }})
	if !errors.Is(err, refused) {
		t.Errorf("a copy that the caller refuses: %v", err)
	}
}
