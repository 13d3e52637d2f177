package status

import (
	"cmp"
	"context"
	"errors"
	"math"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/neozodb/neo/cluster/ctl"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/vitals"
)

// Collect asks an admin how its cluster is. An admin without primary master gives a status
// too, with Unknown; an error is one of the connection, for which there is [Unreachable].
func Collect(ctx context.Context, c *ctl.Client) (*Status, error) {
	s := newStatus(c.Addr().String())
	v, err := c.Vitals(ctx)
	if err != nil {
		return nil, err
	}
	s.Cluster = v.Cluster
	for _, part := range []func(context.Context, *ctl.Client, *ctl.Vitals) error{
		s.states, s.table, s.ids, s.summary, s.imports, s.backups,
	} {
		err := part(ctx, c, v)
		if refused, ok := errors.AsType[*proto.Error](err); ok {
			s.Unknown = strings.TrimSuffix(refused.Message, ".")
			break
		}
		if err != nil {
			return nil, err
		}
	}
	s.vitals(v)
	return s, nil
}

// Unreachable is the status of a cluster whose admin cannot be asked.
func Unreachable(admin string, err error) *Status {
	s := newStatus(admin)
	s.Unknown = "the admin at " + admin + " cannot be asked: " + why(err)
	return s
}

// why is an error of a connection in words, without the addresses that are known.
func why(err error) string {
	if errors.Is(err, context.DeadlineExceeded) {
		return "it has not answered in time"
	}
	if code, ok := errors.AsType[syscall.Errno](err); ok {
		return code.Error()
	}
	return err.Error()
}

// newStatus returns one whose lists are empty and not null in JSON.
func newStatus(admin string) *Status {
	return &Status{
		Format: Format, Time: time.Now().UTC(), Admin: admin, Nodes: []Node{}, Partitions: Partitions{Rows: [][]Cell{}}, Replication: []Replication{},
		Imports: []Import{}, Backups: []Backup{}, Warnings: []string{}, Problems: []string{},
	}
}

// states finds the state of the cluster and of its nodes.
func (s *Status) states(ctx context.Context, c *ctl.Client, _ *ctl.Vitals) error {
	state, err := c.ClusterState(ctx)
	if err != nil {
		return err
	}
	s.State = state.String()
	primary, err := c.Primary(ctx)
	if err != nil {
		return err
	}
	s.Primary = primary.String()
	nodes, err := c.Nodes(ctx, proto.Opt[proto.NodeType]{})
	if err != nil {
		return err
	}
	s.Nodes = NodesOf(nodes)
	return nil
}

// NodesOf returns nodes as the protocol knows them, by type and number.
func NodesOf(nodes []proto.Node) []Node {
	list := make([]Node, 0, len(nodes))
	nodes = slices.Clone(nodes)
	slices.SortStableFunc(nodes, func(a, b proto.Node) int {
		without := func(n proto.Node) int {
			if n.ID == 0 {
				return 1
			}
			return 0
		}
		return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(without(a), without(b)), cmp.Compare(a.ID, b.ID), cmp.Compare(a.Addr.String(), b.Addr.String()))
	})
	for _, n := range nodes {
		o := Node{Type: n.Type.String(), State: n.State.String()}
		if n.ID != 0 {
			o.ID = n.ID.String()
		}
		if !n.Addr.IsZero() {
			o.Address = n.Addr.String()
		}
		// When it identified itself; what became of it later is in vitals.
		if n.IDTimestamp.OK && (n.State == proto.NodeRunning || n.State == proto.NodePending) {
			o.Since = known(unixTime(n.IDTimestamp.V))
		}
		list = append(list, o)
	}
	return list
}

// unixTime converts seconds since 1970 to the nearest microsecond; zero if no calendar has them.
func unixTime(s float64) time.Time {
	if !(s >= 0 && s < 1<<37) { // beyond the year 6000
		return time.Time{}
	}
	sec, frac := math.Modf(s)
	return time.Unix(int64(sec), 0).Add(time.Duration(math.RoundToEven(frac*1e6)) * time.Microsecond).UTC()
}

// table gets the partition table.
func (s *Status) table(ctx context.Context, c *ctl.Client, _ *ctl.Vitals) error {
	p, err := c.PartitionTable(ctx, 0, 0, 0)
	if err != nil {
		return err
	}
	s.Partitions = PartitionsOf(p)
	for i, row := range s.Partitions.Rows {
		for _, cell := range row {
			n := s.Node(cell.Node)
			if n != nil {
				if n.Cells == nil {
					n.Cells = map[string]int{}
				}
				n.Cells[cell.State]++
			}
			if cell.State == proto.OutOfDate.String() {
				s.Replication = append(s.Replication, Replication{Partition: i, Node: cell.Node, Running: n != nil && n.Running()})
			}
		}
	}
	return nil
}

// PartitionsOf returns a partition table as the protocol knows it.
func PartitionsOf(p *proto.AnswerPartitionList) Partitions {
	t := Partitions{Replicas: p.Replicas, Rows: make([][]Cell, 0, len(p.Rows))}
	if p.PTID.OK {
		t.ID = &p.PTID.V
	}
	for _, row := range p.Rows {
		cells := make([]Cell, 0, len(row))
		for _, c := range row {
			cells = append(cells, Cell{c.ID.String(), c.State.String()})
		}
		t.Rows = append(t.Rows, cells)
	}
	return t
}

// ids gets where the database is. A cluster that is not operational does not know.
func (s *Status) ids(ctx context.Context, c *ctl.Client, _ *ctl.Vitals) error {
	if s.State != proto.Running.String() && s.State != proto.StartingBackup.String() && s.State != proto.BackingUp.String() && s.State != proto.StoppingBackup.String() {
		return nil
	}
	ids, err := c.LastIDs(ctx)
	if refused, ok := errors.AsType[*proto.Error](err); ok && refused.ErrCode != proto.NotReady {
		return nil // it has left that state meanwhile
	}
	if err != nil {
		return err
	}
	if ids.LastOID.OK {
		oid := OID(ids.LastOID.V)
		s.LastOID = &oid
	}
	s.Last, s.Backup = MomentOf(ids.LastTID.V), MomentOf(ids.BackupTID.V)
	return nil
}

// summary gets what the admin says.
func (s *Status) summary(ctx context.Context, c *ctl.Client, _ *ctl.Vitals) error {
	p, err := c.Summary(ctx)
	if err != nil {
		return err
	}
	for _, list := range []struct {
		names []proto.Opt[string]
		to    *[]string
	}{{p.Warning, &s.Warnings}, {p.Problem, &s.Problems}} {
		for _, n := range list.names {
			*list.to = append(*list.to, n.V)
		}
	}
	s.Summary = p.Summary
	return nil
}

func (s *Status) imports(ctx context.Context, c *ctl.Client, _ *ctl.Vitals) error {
	list, err := c.Imports(ctx)
	if err != nil && !errors.Is(err, ctl.ErrNoImport) {
		return err
	}
	for _, i := range list {
		s.Imports = append(s.Imports, ImportOf(i))
	}
	return nil
}

// ImportOf returns an import as a status has it.
func ImportOf(i ctl.Import) Import {
	r := Import{
		Node: i.Node.String(), State: i.State.String(), LastTID: ID(i.Last), EndTID: ID(i.End), Transactions: i.Transactions, Records: i.Records, Bytes: i.Bytes,
		Skipped: i.Skipped, Twice: i.Twice, Blobs: i.Blobs, Rate: i.Rate, Slow: known(i.Slow), Limit: known(i.Limit), Bad: i.State.Bad(), Note: i.Note,
	}
	if i.Size > 0 {
		r.Position, r.Size = &i.Position, &i.Size
	}
	if i.Left > 0 {
		r.Left = known(i.Left.Seconds())
	}
	if i.Compared != tid.Zero {
		r.ComparedTID, r.Differences, r.ComparedAt = known(ID(i.Compared)), &i.Differences, moment(i.ComparedAt)
	}
	if i.WriteBack != tid.Zero {
		r.WriteBackTID, r.Behind = known(ID(i.WriteBack)), &i.Behind
	}
	return r
}

func (s *Status) backups(ctx context.Context, c *ctl.Client, _ *ctl.Vitals) error {
	list, err := c.Backups(ctx)
	if err != nil && !errors.Is(err, ctl.ErrNoBackup) {
		return err
	}
	for _, b := range list {
		s.Backups = append(s.Backups, BackupOf(b))
	}
	return nil
}

// BackupOf returns how far a backup is as a status has it.
func BackupOf(b ctl.Backup) Backup {
	r := Backup{
		Cluster: b.Cluster, BackupTID: ID(b.Report.Backup), ReadableTID: ID(b.Readable), UpstreamTID: known(ID(b.Upstream)), WantedTID: known(ID(b.Bound)),
		Behind: b.Readable < b.Bound, Delay: b.Delay.Seconds(), Closed: b.Closed, Opens: moment(b.Opens), Linked: b.Linked, Rate: known(b.Rate), Gap: []ID{}, Note: b.Note,
	}
	if b.Upstream != tid.Zero {
		due := b.Due.Seconds()
		r.Due = &due
	}
	if b.Hold.OK {
		hold := ID(b.Hold.V)
		r.HoldTID = &hold
	}
	if b.InGap() {
		r.Gap = []ID{ID(b.Gap[0]), ID(b.Gap[1])}
	}
	return r
}

// NamedNodes is NodesOf with what the nodes tell of themselves; v may be nil.
func NamedNodes(nodes []proto.Node, v *ctl.Vitals) []Node {
	list := NodesOf(nodes)
	if v == nil {
		return list
	}
	byName := map[string]vitals.Node{}
	for id, n := range v.Nodes {
		byName[id.String()] = n
	}
	for i := range list {
		if n, ok := byName[list[i].ID]; ok {
			list[i].named(&n)
		}
	}
	return list
}

// named adds what a node tells of itself but its counters.
func (n *Node) named(v *vitals.Node) {
	if !v.Since.IsZero() && !n.Running() {
		n.Since = moment(v.Since)
	}
	if v.Known {
		n.Host, n.Adapter, n.Database, n.Version, n.Started = v.Host, v.Adapter, v.Database, v.Version, moment(v.Started)
		n.PackDisabled = v.PackDisabled
	}
}

// vitals adds what nodes tell of themselves.
func (s *Status) vitals(v *ctl.Vitals) {
	var loads float64
	for id, n := range v.Nodes {
		o := s.Node(id.String())
		if o == nil {
			continue
		}
		o.named(&n)
		if !n.Known || !o.Running() {
			continue
		}
		switch o.Type {
		case proto.Storage.String():
			o.Commits, o.CommitsPerSecond, o.Loads, o.LoadsPerSecond = &n.Commits, &n.CommitRate, &n.Loads, &n.LoadRate
			loads += n.LoadRate
			s.LoadsPerSecond = &loads
			s.copying(o.ID, n.Copy)
		case proto.Master.String():
			if o.ID == s.Primary {
				o.Commits, o.CommitsPerSecond = &n.Commits, &n.CommitRate
				s.CommitsPerSecond = o.CommitsPerSecond
			}
		}
	}
	if c := v.Check; c != nil {
		s.Check = &Check{Begun: moment(c.Begun), Ended: moment(c.Ended), Complete: c.Complete, Partitions: c.Partitions, Rows: c.Rows,
			Differences: c.Differences, Nodes: []string{}, Differ: append([]int{}, c.Differ...)}
		for _, id := range c.Nodes {
			s.Check.Nodes = append(s.Check.Nodes, id.String())
		}
	}
	if k := v.Pack; k.Order != tid.Zero {
		s.Pack = &Pack{Order: *MomentOf(k.Order), Partial: k.Partial, Done: k.Done, Signed: k.Signed, UpTo: MomentOf(k.UpTo), Waiting: []string{}}
		for _, id := range k.Waiting {
			s.Pack.Waiting = append(s.Pack.Waiting, id.String())
		}
	}
}

// copying notes how far the cell is that a storage replicates.
func (s *Status) copying(node string, c vitals.Copy) {
	for i := range s.Replication {
		if r := &s.Replication[i]; r.Node == node && r.Partition == c.Partition && c.Active {
			r.Active, r.Reached, r.End = true, MomentOf(c.Reached), MomentOf(c.End)
		}
	}
}

// known returns nil for what is not known, which is zero.
func known[T comparable](v T) *T {
	var zero T
	if v == zero {
		return nil
	}
	return &v
}

// moment returns nil for a time that is not known.
func moment(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	t = t.UTC()
	return &t
}
