package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/neozodb/neo/cluster/client"
	"github.com/neozodb/neo/cluster/conf"
	"github.com/neozodb/neo/cluster/moment"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/status"
	"github.com/neozodb/neo/cluster/tid"
)

// packing is an order to pack.
type packing struct {
	at     moment.Moment // Latest: all history
	wait   bool
	dryRun bool
}

// parsePack reads [--at TIME] [--wait] [--dry-run].
func parsePack(args []string) (order, error) {
	p := packing{at: moment.Moment{Latest: true}}
	for len(args) > 0 {
		switch word := args[0]; {
		case word == "--wait":
			p.wait = true
		case word == "--dry-run":
			p.dryRun = true
		case word == "--at" || strings.HasPrefix(word, "--at="):
			value, ok := strings.CutPrefix(word, "--at=")
			if !ok {
				if len(args) < 2 {
					return nil, errors.New("--at needs a time or a TID")
				}
				value, args = args[1], args[1:]
			}
			var err error
			if p.at, err = moment.Parse(value, time.Now()); err != nil {
				return nil, fmt.Errorf("--at: %w", err)
			}
		default:
			return nil, fmt.Errorf("unexpected %q%s", word, conf.DidYouMean(word, []string{"--at", "--wait", "--dry-run"}))
		}
		args = args[1:]
	}
	if p.dryRun {
		if p.wait {
			return nil, errors.New("--dry-run has nothing to --wait for")
		}
		return p.tell, nil
	}
	if p.at.Latest || p.at.TID >= tid.FromTime(time.Now()) {
		how := "pack"
		if p.wait {
			how += " --wait"
		}
		return erasing(p.give, how, func(ctx context.Context, c *session) (string, error) {
			plan, err := p.plan(ctx, c)
			if err != nil {
				return "", err
			}
			return "All history is deleted, and nothing that was committed until now can be undone: every object keeps only what it is at " + idAndTimeUTC(plan.upTo) +
				".\nTo keep the last day: neoctl pack --at 'yesterday " + time.Now().UTC().Format("15:04") + "'", nil
		}), nil
	}
	return p.give, nil
}

// packPlan is what an order to pack does.
type packPlan struct {
	status *status.Status
	upTo   tid.TID
}

// plan finds out what the order does, and whether the cluster can be packed.
func (p *packing) plan(ctx context.Context, c *session) (*packPlan, error) {
	s, err := status.Collect(ctx, c.Client)
	switch {
	case err != nil:
		return nil, err
	case s.Unknown != "":
		return nil, proto.Errorf(proto.NotReady, "%s", s.Unknown)
	case s.State == proto.BackingUp.String() || s.State == proto.StartingBackup.String() || s.State == proto.StoppingBackup.String():
		return nil, proto.Errorf(proto.Denied, "the cluster is %s: a backup is packed as its upstream cluster is: give the order there", s.State)
	case s.State != proto.Running.String():
		return nil, proto.Errorf(proto.Denied, "the cluster is %s: only a RUNNING one can be packed", s.State)
	case s.Last == nil:
		return nil, proto.Errorf(proto.Denied, "the database is empty: there is nothing to pack")
	}
	plan := &packPlan{s, tid.TID(s.Last.TID)}
	if !p.at.Latest {
		plan.upTo = min(plan.upTo, p.at.TID)
	}
	return plan, nil
}

// storages are those with cells, by whether they execute pack orders, by name.
func (p *packPlan) storages() (packing, idle []string) {
	for i := range p.status.Nodes {
		n := &p.status.Nodes[i]
		switch {
		case n.Type != proto.Storage.String() || len(n.Cells) == 0:
		case n.PackDisabled:
			idle = append(idle, n.Name())
		case !n.Running():
			packing = append(packing, n.Name()+", once it runs again")
		default:
			packing = append(packing, n.Name())
		}
	}
	return packing, idle
}

// tell says what the order would do.
func (p *packing) tell(ctx context.Context, c *session) (string, error) {
	plan, err := p.plan(ctx, c)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Would delete what was replaced or deleted up to %s, in %s.\n", idAndTimeUTC(plan.upTo), counted(len(plan.status.Partitions.Rows), "partition"))
	packing, idle := plan.storages()
	for _, n := range packing {
		fmt.Fprintf(&b, "would pack: %s\n", n)
	}
	for _, n := range idle {
		fmt.Fprintf(&b, "would keep its history: %s, which runs with --disable-pack\n", n)
	}
	if k := plan.status.Pack; k != nil && !k.Done {
		fmt.Fprintf(&b, "An earlier order, of %s, is not executed yet: this one would follow it.\n", shortTime(k.Order.Time))
	}
	b.WriteString("Nothing was done.\n")
	return b.String(), nil
}

// give orders to pack. An order is a transaction, so it is a client that gives it.
func (p *packing) give(ctx context.Context, c *session) (string, error) {
	plan, err := p.plan(ctx, c)
	if err != nil {
		return "", err
	}
	cluster, masters, err := c.masters(ctx, plan.status)
	if err != nil {
		return "", err
	}
	cl, err := client.Open(ctx, client.Config{Cluster: cluster, Masters: masters, TLS: c.link.TLS, Log: c.link.Log, Record: c.link.Record, CacheSize: 1 << 20})
	if err != nil {
		return "", fmt.Errorf("connecting to cluster %q: %w", cluster, err)
	}
	defer cl.Close()
	order, err := cl.Pack(ctx, plan.upTo)
	if err != nil {
		return "", err
	}
	if order == tid.Zero {
		return "There is nothing to pack.\n", nil
	}
	text := fmt.Sprintf("Pack up to %s ordered by transaction %v.\n", idAndTimeUTC(plan.upTo), order)
	_, idle := plan.storages()
	for _, n := range idle {
		text += fmt.Sprintf("%s keeps its history: it runs with --disable-pack.\n", n)
	}
	if !p.wait {
		return text + "It goes on in the storages: neoctl status tells when it is done.\n", nil
	}
	if err := cl.WaitForPack(ctx, order); err != nil {
		return "", &interrupted{text, fmt.Errorf("waiting for the pack, which goes on: %w", err)}
	}
	return text + "Done.\n", nil
}

// masters returns the name of the cluster and its masters: as the admin tells them, or as the
// configuration file does.
func (c *session) masters(ctx context.Context, s *status.Status) (cluster string, list []proto.Address, err error) {
	cluster = s.Cluster
	if cluster == "" {
		cluster = c.o.cluster
	}
	if cluster == "" {
		return "", nil, errors.New("this admin, of the Python implementation or an older one, does not tell the name of the cluster, which an order to pack needs: give the configuration file of the cluster with -f")
	}
	nodes, err := c.Nodes(ctx, proto.Some(proto.Master))
	if err != nil {
		return "", nil, err
	}
	primary, err := c.Primary(ctx)
	if err != nil {
		return "", nil, err
	}
	slices.SortStableFunc(nodes, func(a, b proto.Node) int {
		switch primary {
		case a.ID:
			return -1
		case b.ID:
			return 1
		}
		return 0
	})
	for _, n := range nodes {
		if !n.Addr.IsZero() {
			list = append(list, n.Addr)
		}
	}
	if len(list) > 0 {
		return cluster, list, nil
	}
	addresses, err := conf.ParseMasters(c.o.masters)
	if err == nil {
		addresses, err = conf.ResolveAll(ctx, addresses)
	}
	for _, a := range addresses {
		list = append(list, proto.Address(a))
	}
	if err == nil && len(list) == 0 {
		err = errors.New("no master is known")
	}
	return cluster, list, err
}
