package simple

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/neozodb/neo/cluster/bootstrap"
	"github.com/neozodb/neo/cluster/link"
	"github.com/neozodb/neo/cluster/master"
	"github.com/neozodb/neo/cluster/proto"
)

// ErrNotBackup reports a cluster that follows no other one, although its configuration
// names one that it is a backup of.
var ErrNotBackup = errors.New("the database is not a backup: the cluster has left backup mode, or was not made with it")

// seekInterval is how long a round over the masters of an upstream cluster takes at least.
const seekInterval = 200 * time.Millisecond

// Partitions asks the primary master of an upstream cluster how many partitions there
// are. It tries the masters until ctx ends, and the error says then what was wrong last.
// A refusal that will not change, such as for another name, is returned at once.
func Partitions(ctx context.Context, up master.Upstream, cfg link.Config) (int, error) {
	masters := bootstrap.NewMasters(up.Masters...)
	var last error
	for {
		round := time.NewTimer(seekInterval)
		for _, addr := range masters.List() {
			n, err := partitionsAt(ctx, addr, up.Cluster, masters, cfg)
			if err == nil {
				return n, nil
			}
			e, refused := errors.AsType[*proto.Error](err)
			if refused && e.ErrCode == proto.ProtocolError {
				return 0, fmt.Errorf("upstream cluster %q: %w", up.Cluster, err)
			}
			if _, secondary := errors.AsType[*bootstrap.NotPrimaryError](err); ctx.Err() == nil && (last == nil || !secondary) {
				last = err
			}
		}
		select {
		case <-round.C:
		case <-ctx.Done():
			if last == nil {
				last = context.Cause(ctx)
			}
			return 0, fmt.Errorf("upstream cluster %q: %w", up.Cluster, last)
		}
	}
}

// partitionsAt asks one master.
func partitionsAt(ctx context.Context, addr proto.Address, cluster string, masters *bootstrap.Masters, cfg link.Config) (int, error) {
	told := make(chan int, 1)
	lost := make(chan error, 1)
	cfg.Deliver = func(ev link.Event) {
		switch p := ev.Packet.(type) {
		case nil:
			if ev.End() {
				lost <- ev.Err
			}
		case *proto.SendPartitionTable:
			select {
			case told <- len(p.Rows):
			default: // the first one counts
			}
		default:
			link.HandleBase(ev) // the rest is no concern of ours
		}
	}
	r, err := bootstrap.Identify(ctx, addr, bootstrap.Config{Masters: masters, Link: cfg,
		Identify: proto.RequestIdentification{Type: proto.Client, Cluster: cluster, Extra: map[string]proto.Value{"read_only": true}}})
	if err != nil {
		return 0, err
	}
	defer func() {
		r.Conn.Close()
		<-r.Conn.Done()
	}()
	select {
	case n := <-told:
		return n, nil
	case err := <-lost:
		return 0, fmt.Errorf("master %v: %w", addr, err)
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
}
