package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/status"
	"github.com/neozodb/neo/cluster/tid"
)

// oneNode reads the only argument of an order about a node.
func oneNode(args []string) (proto.NodeID, error) {
	if err := atMost(args, 1, 1); err != nil {
		return 0, err
	}
	return parseNodeID(args[0])
}

// stateChanged is what the master says to an order that changed the state of a node.
const stateChanged = "state changed"

// parseKill reads NODE.
func parseKill(args []string) (order, error) {
	id, err := oneNode(args)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, c *session) (string, error) {
		text, err := c.Kill(ctx, id)
		if err != nil {
			return "", err
		}
		if text == stateChanged {
			err = warnOfLastCopies(ctx, c)
		}
		return text + "\n", err
	}, nil
}

// warnOfLastCopies tells which partitions have only one readable copy now, as the next loss
// would be one of data, or at least of service.
func warnOfLastCopies(ctx context.Context, c *session) error {
	state, err := c.ClusterState(ctx)
	if err != nil || state != proto.Running {
		return nil // the order was carried out, and it is not about that
	}
	s, err := status.Collect(ctx, c.Client)
	if err != nil {
		return nil
	}
	last := map[string][]int{}
	for p, row := range s.Partitions.Rows {
		readable := ""
		for i := range row {
			if n := s.Node(row[i].Node); n == nil || !n.Running() || !row[i].Readable() {
				continue
			}
			if readable != "" {
				readable = ""
				break
			}
			readable = row[i].Node
		}
		if readable != "" && len(row) > 1 {
			last[readable] = append(last[readable], p)
		}
	}
	for i := range s.Nodes {
		if list := last[s.Nodes[i].ID]; list != nil {
			fmt.Fprintf(c.env.Stderr, "warning: only %s has a readable copy of %s now\n", s.Nodes[i].Name(), status.PartitionNames(list))
		}
	}
	return nil
}

// parseDrop reads NODE.
func parseDrop(args []string) (order, error) {
	id, err := oneNode(args)
	if err != nil {
		return nil, err
	}
	do := acknowledged(func(ctx context.Context, c *session) (string, error) { return c.Drop(ctx, id) })
	return erasing(do, "drop "+id.String(), func(ctx context.Context, c *session) (string, error) { return dropLoss(ctx, c, id) }), nil
}

// dropLoss tells what goes with a storage; "" if it is nothing, or the master refuses to
// drop it.
func dropLoss(ctx context.Context, c *session, id proto.NodeID) (string, error) {
	nodes, err := namedNodes(ctx, c, proto.Some(proto.Storage))
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(nodes, func(n status.Node) bool { return n.ID == id.String() })
	if i < 0 || nodes[i].Running() {
		return "", nil
	}
	table, err := c.PartitionTable(ctx, 0, 0, 0)
	if err != nil {
		return "", err
	}
	var cells []int
	for p, row := range table.Rows {
		if slices.ContainsFunc(row, func(c proto.Cell) bool { return c.ID == id }) {
			cells = append(cells, p)
		}
	}
	if cells == nil {
		return "", nil
	}
	what := "copies"
	if len(cells) == 1 {
		what = "copy"
	}
	return fmt.Sprintf("%s is removed from the cluster for good, with its %s of %s.\nWhat only its database has is lost to the cluster, and the storage cannot come back with it.",
		nodes[i].Name(), what, status.PartitionNames(cells)), nil
}

// parseTruncate reads TID.
func parseTruncate(args []string) (order, error) {
	if err := atMost(args, 1, 1); err != nil {
		return nil, err
	}
	t, err := parseTID(args[0])
	if err != nil {
		return nil, err
	}
	do := func(ctx context.Context, c *session) (string, error) { return "", c.Truncate(ctx, t) }
	return erasing(do, "truncate "+quote(args[0]), func(ctx context.Context, c *session) (string, error) { return truncateLoss(ctx, c, t) }), nil
}

// quote makes a word of a command line of what may have spaces.
func quote(s string) string {
	if strings.ContainsAny(s, " \t") {
		return "'" + s + "'"
	}
	return s
}

// truncateLoss tells what is cut off; "" if it is nothing, or the master refuses to.
func truncateLoss(ctx context.Context, c *session, t tid.TID) (string, error) {
	state, err := c.ClusterState(ctx)
	if err != nil || state != proto.Running {
		return "", err
	}
	ids, err := c.LastIDs(ctx)
	if err != nil || !ids.LastTID.OK || t >= ids.LastTID.V {
		return "", err
	}
	return fmt.Sprintf("All transactions after %s are deleted in all storages: the last one is %s.", idAndTimeUTC(t), idAndTimeUTC(ids.LastTID.V)), nil
}

// pruneLoss tells what prune_orphan 0 deletes.
func pruneLoss(ctx context.Context, c *session, ids []proto.NodeID) (string, error) {
	ids, err := storages(ctx, c, ids)
	if err != nil {
		return "", err
	}
	name, err := nodeNames(ctx, c)
	if err != nil {
		return "", err
	}
	var names []string
	for _, id := range ids {
		names = append(names, name(id))
	}
	return fmt.Sprintf("Data that nothing refers to are deleted in the databases of %s.\nneoctl prune_orphan 1 only writes to the logs of the storages what they are.", strings.Join(names, ", ")), nil
}

// enoughStorages refuses a number of replicas that there are too few storages for.
func enoughStorages(ctx context.Context, c *session, replicas int) error {
	nodes, err := c.Nodes(ctx, proto.Some(proto.Storage))
	if err != nil {
		return err
	}
	var names []string
	for _, n := range nodes {
		if n.State != proto.NodeUnknown {
			names = append(names, n.ID.String())
		}
	}
	if replicas < len(names) || replicas == 0 {
		return nil
	}
	slices.Sort(names)
	return proto.Errorf(proto.Denied, "%d replicas need %d storages: there %s %s", replicas, replicas+1, isAre(len(names)), list(names, "none"))
}

func isAre(n int) string {
	if n == 1 {
		return "is 1,"
	}
	return fmt.Sprintf("are %d,", n)
}

// list joins words, or says that there is none.
func list(words []string, none string) string {
	if len(words) == 0 {
		return none
	}
	return strings.Join(words, ", ")
}

// knownStorages refuses nodes that there are not.
func knownStorages(ctx context.Context, c *session, ids []proto.NodeID) error {
	nodes, err := c.Nodes(ctx, proto.Some(proto.Storage))
	if err != nil {
		return err
	}
	var pending []string
	for _, n := range nodes {
		if n.State == proto.NodePending {
			pending = append(pending, n.ID.String())
		}
	}
	slices.Sort(pending)
	for _, id := range ids {
		if !slices.ContainsFunc(nodes, func(n proto.Node) bool { return n.ID == id }) {
			return proto.Errorf(proto.Denied, "unknown node: %v; pending: %s", id, list(pending, "none"))
		}
	}
	return nil
}
