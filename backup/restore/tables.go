package restore

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/snapshot"
	"github.com/neozodb/neo/cluster/deflate"
	"github.com/neozodb/neo/cluster/parttab"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/adapter"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/importer/state"
)

// Tables is the database of a storage node, which need not be complete.
type Tables interface {
	backend.Backend
	backend.Importing
}

// TablesOptions say how the tables of storage nodes are restored. Cluster, Partitions, Nodes
// and Dir or Open are required; other zero fields take the default.
type TablesOptions struct {
	Cluster    string // its name
	Partitions int
	Replicas   int // copies beside the first
	Nodes      int // of the cluster, numbered from 1: S1, S2, …
	// Only are the nodes whose tables are written; the others are for other processes.
	// Default: all.
	Only []int
	// Dir is where the databases are: storage1.sqlite, storage2.sqlite, …
	Dir string
	// Open opens the database of a node, creating it if need be, also if it is not
	// complete. Default: SQLite in Dir.
	Open     func(ctx context.Context, node int) (Tables, error)
	Level    int      // of zlib, 1 to 9; negative: none; default: [deflate.DefaultLevel]
	NoVerify bool     // the tables are not read again at the end
	Progress Progress // default: none
}

func (o *TablesOptions) setDefaults() error {
	switch {
	case o.Cluster == "":
		return errors.New("the name of the cluster is missing")
	case o.Partitions < 1 || o.Nodes < 1:
		return fmt.Errorf("%d partitions on %d nodes: want at least one of each", o.Partitions, o.Nodes)
	case o.Replicas < 0 || o.Replicas >= o.Nodes:
		return fmt.Errorf("%d replicas need at least %d nodes, not %d", o.Replicas, o.Replicas+1, o.Nodes)
	case o.Level > 9:
		return fmt.Errorf("zlib level %d: want 1 to 9", o.Level)
	}
	if o.Level == 0 {
		o.Level = deflate.DefaultLevel
	}
	o.Level = max(o.Level, 0)
	if len(o.Only) == 0 {
		for i := range o.Nodes {
			o.Only = append(o.Only, i+1)
		}
	}
	for i, n := range o.Only {
		if n < 1 || n > o.Nodes || slices.Contains(o.Only[:i], n) {
			return fmt.Errorf("node %d: want 1 to %d, each once", n, o.Nodes)
		}
	}
	if o.Open == nil {
		dir := o.Dir
		if dir == "" {
			return errors.New("the directory of the databases is missing")
		}
		o.Open = func(ctx context.Context, node int) (Tables, error) {
			db, err := adapter.Open(ctx, adapter.Config{Adapter: adapter.SQLite, Database: filepath.Join(dir, fmt.Sprintf("storage%d.sqlite", node)), HalfImported: true})
			if err != nil {
				return nil, err
			}
			return db.(Tables), nil // each native backend is one
		}
	}
	return nil
}

// ToTables writes the tables of storage nodes, which then are those of a cluster that
// was stopped. Several processes may write those of different nodes: with the same
// options they agree about the partitions. Tables are not to be used by a node until all
// is written and compared: a node refuses them. An interrupted restore goes on.
//
// As in every cluster, of several records of an object in a transaction the last one is kept.
func (s *Source) ToTables(ctx context.Context, o TablesOptions) (res *Result, err error) {
	if err := o.setDefaults(); err != nil {
		return nil, err
	}
	if err := s.noGaps(); err != nil {
		return nil, err
	}
	plan, err := s.check(ctx)
	if err != nil {
		return nil, err
	}
	if plan.MaxOID > tid.MaxOID {
		return nil, fmt.Errorf("object %v: a cluster cannot be relied on to hold ids above %v: restore to a Data.fs", plan.MaxOID, tid.MaxOID)
	}
	table, err := o.table()
	if err != nil {
		return nil, err
	}
	w := &tables{s: s, o: &o, plan: plan, table: table}
	defer func() {
		for _, n := range w.nodes {
			err = errors.Join(err, n.db.Close())
		}
	}()
	if err := w.open(ctx); err != nil {
		return nil, err
	}
	if o.Dir != "" {
		if err := space(o.Dir, w.need()); err != nil {
			return nil, err
		}
	}
	for _, n := range w.nodes {
		if n.complete {
			continue
		}
		if err := n.begin(ctx); err != nil {
			return nil, fmt.Errorf("node %d: %w", n.n, err)
		}
	}
	res = &Result{At: s.at(), Resumed: w.least()}
	if err := w.write(ctx, res); err != nil {
		return nil, err
	}
	if !o.NoVerify {
		if err := w.verify(ctx, res); err != nil {
			return nil, err
		}
		res.Compared = true
	}
	for _, n := range w.nodes {
		if n.complete {
			continue
		}
		if err := n.finish(); err != nil {
			return nil, fmt.Errorf("node %d: %w", n.n, err)
		}
		s.log().Info("the tables of a node are restored", "node", n.id, "last", res.Last)
	}
	return res, nil
}

// table returns the partition table: which node has which partition.
func (o *TablesOptions) table() (*parttab.Managed, error) {
	var ids []proto.NodeID
	for i := range o.Nodes {
		ids = append(ids, proto.Storage.ID(i+1))
	}
	t := &parttab.Managed{}
	_, err := t.Make(o.Partitions, o.Replicas, ids, func(proto.NodeID) []string { return nil })
	return t, err
}

// changes returns the table as rows in a state.
func changes(t *parttab.Managed, state proto.CellState) []proto.CellChange {
	var list []proto.CellChange
	for p, row := range t.Rows() {
		for _, c := range row {
			list = append(list, proto.CellChange{Partition: p, ID: c.ID, State: state})
		}
	}
	return list
}

// tables is a restore to tables.
type tables struct {
	s     *Source
	o     *TablesOptions
	plan  *Plan
	table *parttab.Managed
	nodes []*tablesNode
	parts []tid.TID // the ends of the parts, in their order
}

// tablesNode is the database of a node.
type tablesNode struct {
	w    *tables
	n    int
	id   proto.NodeID
	db   Tables
	mine []bool // by partition
	done tid.TID
	// begun: an earlier call began to write it. complete: it also ended that.
	begun, complete bool
	at              tid.TID  // of that call
	sums            []rowSum // what the repository has, by part

	ahead chan *batch
	bytes int64 // since the last commit
	saved time.Time
}

// guard is what the row zodb of a database has while it is being restored: no node
// starts with it.
type guard struct {
	checkpoint
	Cluster    string `json:"cluster"`
	Partitions int    `json:"partitions"`
	Replicas   int    `json:"replicas"`
	Nodes      int    `json:"nodes"`
	Node       int    `json:"node"`
}

func (w *tables) guard(n int) guard {
	return guard{w.s.checkpoint(), w.o.Cluster, w.o.Partitions, w.o.Replicas, w.o.Nodes, n}
}

// open opens the databases and makes sure that they may be written, before any is.
func (w *tables) open(ctx context.Context) error {
	for _, i := range w.o.Only {
		n := &tablesNode{w: w, n: i, id: proto.Storage.ID(i), mine: make([]bool, w.o.Partitions)}
		for p, row := range w.table.Rows() {
			n.mine[p] = slices.ContainsFunc(row, func(c proto.Cell) bool { return c.ID == n.id })
		}
		db, err := w.o.Open(ctx, i)
		if err != nil {
			return fmt.Errorf("node %d: %w", i, err)
		}
		n.db = db
		w.nodes = append(w.nodes, n)
		if err := n.look(ctx); err != nil {
			return fmt.Errorf("node %d: %w", i, err)
		}
	}
	return w.together()
}

// together makes sure that a node which is complete is one of a restore that has not completed the
// others: it was stopped while it did.
func (w *tables) together() error {
	i := slices.IndexFunc(w.nodes, func(n *tablesNode) bool { return n.complete })
	if i < 0 {
		return nil
	}
	done := w.nodes[i]
	for _, n := range w.nodes {
		if !n.begun {
			continue
		}
		if n.at != w.s.at() {
			return fmt.Errorf("%w: node %d is restored up to %v already: restore the others up to the same (--at %v)", ErrForeign, done.n, n.at, n.at)
		}
		return nil
	}
	return fmt.Errorf("node %d: %w: the database is that of node %v of cluster %q: restore to another one", done.n, ErrNotEmpty, done.id, w.o.Cluster)
}

// need is about how many bytes tables take.
func (w *tables) need() int64 {
	cells := 0
	for _, n := range w.nodes {
		for _, mine := range n.mine {
			if mine {
				cells++
			}
		}
	}
	// Values are compressed worse than in a backup, rows have an index or two.
	all := w.plan.Bytes*2 + w.plan.Records*150
	if w.o.Level == 0 {
		all = w.plan.Text + w.plan.Records*150
	}
	have := int64(0)
	if w.plan.Txns > 0 && w.least() > 0 {
		have = all // how much of it is there is not known: the database will say if it has no room
	}
	return max(all*int64(cells)/int64(w.o.Partitions)-have, 0)
}

// least returns the transaction up to which all nodes have everything.
func (w *tables) least() tid.TID {
	t := tid.Max
	for _, n := range w.nodes {
		t = min(t, n.done)
	}
	return t
}

// look finds out what a database has.
func (n *tablesNode) look(ctx context.Context) error {
	row, err := n.db.ImportState()
	if err != nil {
		return err
	}
	if !row.OK {
		cfg, err := n.db.Config()
		if err != nil {
			return err
		}
		cells, err := n.db.Cells()
		if err != nil {
			return err
		}
		if n.isComplete(&cfg, cells) {
			n.complete, n.done = true, tid.Max
			return ctx.Err()
		}
		if cfg.Name != "" || cfg.ID != 0 || len(cells) > 0 {
			return fmt.Errorf("%w: the database is that of node %v of cluster %q: restore to another one", ErrNotEmpty, cfg.ID, cfg.Name)
		}
		return ctx.Err()
	}
	text, ok := strings.CutPrefix(row.V, state.Restoring)
	if !ok {
		return fmt.Errorf("%w: an import into the database is not finished", ErrNotEmpty)
	}
	var g guard
	if err := json.Unmarshal([]byte(text), &g); err != nil {
		return fmt.Errorf("%w, which cannot be read: %w: remove the database", ErrForeign, err)
	}
	if err := n.w.s.same(&g.checkpoint); err != nil {
		return fmt.Errorf("%w: remove the database to give that up", err)
	}
	want := n.w.guard(n.n)
	have := g
	g.checkpoint, want.checkpoint = checkpoint{}, checkpoint{}
	if g != want {
		return fmt.Errorf("%w: of node %d of %d of cluster %q with %d partitions and %d replicas: remove the database to give that up", ErrForeign, g.Node, g.Nodes, g.Cluster, g.Partitions, g.Replicas)
	}
	if have.At > n.w.s.at() {
		return fmt.Errorf("%w: up to %v, which is later than %v: remove the database to give that up", ErrForeign, have.At, n.w.s.at())
	}
	n.begun, n.at = true, have.At
	progress, err := n.db.ImportProgress()
	if err == nil && progress.OK {
		n.done, err = tid.Parse(progress.V)
	}
	return err
}

// isComplete reports whether a database is as finish leaves it. Once a cluster has used it
// without the others, the table has another version.
func (n *tablesNode) isComplete(cfg *backend.Config, cells []backend.Cell) bool {
	order := func(a, b proto.CellChange) int {
		return cmp.Or(cmp.Compare(a.Partition, b.Partition), cmp.Compare(a.ID, b.ID))
	}
	var have []proto.CellChange
	for _, c := range cells {
		have = append(have, proto.CellChange{Partition: c.Partition, ID: c.ID, State: c.State})
	}
	want := changes(n.w.table, proto.UpToDate)
	slices.SortFunc(want, order)
	slices.SortFunc(have, order)
	return cfg.Name == n.w.o.Cluster && cfg.ID == n.id && cfg.Replicas == n.w.o.Replicas && cfg.PTID == n.w.table.PTID() && slices.Equal(have, want)
}

// begin makes a database ready to be written: with a table of which no cell is readable.
func (n *tablesNode) begin(ctx context.Context) error {
	b, err := json.Marshal(n.w.guard(n.n))
	if err != nil {
		return err
	}
	if err := n.db.SetImportState(proto.Some(state.Restoring + string(b))); err != nil {
		return err
	}
	if err := n.db.ChangePartitionTable(0, n.w.o.Replicas, changes(n.w.table, proto.OutOfDate), true, tid.Zero); err != nil {
		return err
	}
	if err := n.db.Commit(); err != nil {
		return err
	}
	return n.clean(ctx)
}

// cleanAtOnce is how many rows are deleted at once.
const cleanAtOnce = 1000

// clean deletes what was written after the last checkpoint.
func (n *tablesNode) clean(ctx context.Context) error {
	for p := range n.mine {
		for {
			tids, err := n.db.TIDsFrom(ctx, p, n.done+1, tid.Max, cleanAtOnce)
			if err != nil {
				return err
			}
			if len(tids) == 0 {
				break
			}
			for _, t := range tids {
				if err := n.db.DeleteTransaction(t); err != nil {
					return err
				}
			}
		}
		for {
			keys, err := n.db.RecordsFrom(ctx, p, n.done+1, tid.Max, 0, cleanAtOnce)
			if err != nil {
				return err
			}
			if len(keys) == 0 {
				break
			}
			for _, k := range keys {
				if err := n.db.DeleteObject(k.OID, k.TID); err != nil {
					return err
				}
			}
		}
	}
	return n.db.Commit()
}

// finish makes the tables those of a node. The last commit takes the guard away.
func (n *tablesNode) finish() error {
	if err := n.db.SetName(n.w.o.Cluster); err != nil {
		return err
	}
	// The rows of the node shall be made as its own.
	if err := n.db.ChangePartitionTable(0, n.w.o.Replicas, nil, true, tid.Zero); err != nil {
		return err
	}
	if err := n.db.SetID(n.id); err != nil {
		return err
	}
	if err := n.db.ChangePartitionTable(n.w.table.PTID().V, n.w.o.Replicas, changes(n.w.table, proto.UpToDate), true, tid.Zero); err != nil {
		return err
	}
	if err := n.db.SetImportProgress(proto.Opt[string]{}); err != nil {
		return err
	}
	if err := n.db.SetImportState(proto.Opt[string]{}); err != nil {
		return err
	}
	return n.db.Commit()
}

// A row of the tables, on its way.
type row struct {
	tid  tid.TID
	oid  tid.OID // of a record
	from tid.TID // whose data it has; Zero: none
	data []byte  // nil: none
	kind snapshot.EntryKind
	pack proto.ObjectData
	sum  [sha256.Size]byte // of data
	meta *backend.Meta     // of a transaction, which is whole with it
	part int
}

// batch is some rows, which one goroutine packs.
type batch struct {
	rows  []row
	bytes int
	ready chan struct{}
	size  int64        // of the budget
	users atomic.Int32 // nodes that have not taken it
}

const (
	batchBytes   = 1 << 20
	batchRows    = 4096
	batchesAhead = 16
	// bytesAhead bounds what is read and not written yet. A longer batch, which is one
	// record, is alone.
	bytesAhead  = 64 << 20
	rowBytes    = 256 // of a row without data
	commitBytes = 64 << 20
	commitEvery = time.Second
)

// write reads the history and writes it to all nodes.
func (w *tables) write(ctx context.Context, res *Result) error {
	g, ctx := errgroup.WithContext(ctx)
	packing := make(chan *batch, runtime.GOMAXPROCS(0))
	budget := semaphore.NewWeighted(bytesAhead)
	packer := &deflate.Packer{Level: w.o.Level}
	for range runtime.GOMAXPROCS(0) {
		g.Go(func() error {
			for b := range packing {
				b.pack(packer)
			}
			return nil
		})
	}
	for _, n := range w.nodes {
		n.ahead = make(chan *batch, batchesAhead)
		n.saved = time.Now()
		g.Go(func() error {
			taken := func(b *batch) {
				if b.users.Add(-1) == 0 {
					budget.Release(b.size)
				}
			}
			if err := n.run(ctx, taken); err != nil {
				return fmt.Errorf("node %d: %w", n.n, err)
			}
			return nil
		})
	}
	g.Go(func() error {
		defer func() {
			close(packing)
			for _, n := range w.nodes {
				close(n.ahead)
			}
		}()
		send := func(b *batch) error {
			b.ready = make(chan struct{})
			b.size = min(int64(b.bytes+len(b.rows)*rowBytes), bytesAhead)
			b.users.Store(int32(len(w.nodes)))
			if err := budget.Acquire(ctx, b.size); err != nil {
				return err
			}
			select {
			case packing <- b:
			case <-ctx.Done():
				return ctx.Err()
			}
			for _, n := range w.nodes {
				select {
				case n.ahead <- b:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		}
		return w.read(ctx, res, send)
	})
	return g.Wait()
}

func (b *batch) pack(p *deflate.Packer) {
	for i := range b.rows {
		if r := &b.rows[i]; r.data != nil {
			r.sum = sha256.Sum256(r.data)
			r.pack = p.Pack(r.data)
		}
	}
	close(b.ready)
}

// read makes rows of the segments. Without verification it begins where all nodes are;
// else what they have is proved as well.
func (w *tables) read(ctx context.Context, res *Result, send func(*batch) error) error {
	after := tid.Zero
	if w.o.NoVerify {
		after = w.least()
	}
	b := &batch{}
	put := func(r row) error {
		b.rows = append(b.rows, r)
		if b.bytes += len(r.data); b.bytes < batchBytes && len(b.rows) < batchRows {
			return nil
		}
		full := b
		b = &batch{}
		return send(full)
	}
	var t *txn.Transaction
	var oids []tid.OID
	cut := false // t goes on in another segment
	for f, err := range w.s.Repo.FetchParts(ctx, w.s.Keys, w.s.State, after, w.s.at(), w.s.Fetch) {
		if err != nil {
			return err
		}
		if f.Part.Gap != nil {
			return fmt.Errorf("%v to %v: %w", f.Part.Gap.After, f.Part.Gap.Upto, backup.ErrIncomplete)
		}
		h, err := f.Header()
		if err != nil {
			return err
		}
		if h.Continues != cut {
			return fmt.Errorf("%s: %w: the other part of transaction %v", f.Name(), backup.ErrIncomplete, h.After)
		}
		cut = cut || h.Continued
		last, err := lastRecords(f.Reader)
		if err != nil {
			return err
		}
		part := len(w.parts)
		end := min(f.Part.Segment.End(), w.s.at())
		w.parts = append(w.parts, end)
		cutNext := h.Continued
		for ev, err := range f.Walk() {
			if err != nil {
				return err
			}
			switch {
			case ev.Txn != nil:
				if ev.Txn.TID > end {
					cutNext = false
					goto next // the rest is not used, nor the end of its last transaction
				}
				t, oids = ev.Txn, nil
				res.Last = t.TID
			case ev.Record != nil:
				r := ev.Record
				if !last.has(ev.Pos) {
					w.s.log().Warn("an object is twice in a transaction: the last record counts, as in every cluster", "tid", r.TID, "oid", r.OID)
					continue
				}
				oids = append(oids, r.OID)
				res.Records++
				x := row{tid: r.TID, oid: r.OID, from: r.DataTID, kind: r.Kind, part: part}
				if r.Kind == snapshot.HasData {
					x.data = append(make([]byte, 0, len(r.Data)), r.Data...)
				}
				if err := put(x); err != nil {
					return err
				}
			default:
				if cut {
					if err := once(t.TID, oids); err != nil {
						return err
					}
				}
				m := &backend.Meta{Packed: t.Status == txn.Packed, TTID: t.TID, OIDs: oids,
					User: slices.Clone(t.User), Description: slices.Clone(t.Description), Extension: slices.Clone(t.Extension)}
				res.Txns++
				cut = false
				if err := put(row{tid: t.TID, meta: m, part: part}); err != nil {
					return err
				}
			}
		}
	next:
		cut = cutNext
		res.Segments++
		f := f.Footer()
		res.Bytes += f.Text
		if w.o.Progress != nil {
			w.o.Progress(Writing, res.Last, res.Bytes, w.plan.Text)
		}
	}
	if cut {
		return fmt.Errorf("%w: the end of transaction %v", backup.ErrIncomplete, t.TID)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return send(b)
}

// once returns an error if an object is twice in a transaction that is cut: which record counts is
// known only within a segment.
func once(t tid.TID, oids []tid.OID) error {
	sorted := slices.Sorted(slices.Values(oids))
	for i := 1; i < len(sorted); i++ {
		if sorted[i] == sorted[i-1] {
			return fmt.Errorf("object %v is twice in transaction %v, which is cut between segments: restore to a Data.fs", sorted[i], t)
		}
	}
	return nil
}

// lasts are the places of the records that count, nil if all do.
type lasts []int64

func (l lasts) has(pos int64) bool {
	if l == nil {
		return true
	}
	_, found := slices.BinarySearch(l, pos)
	return found
}

// lastRecords returns the records of a segment of which no later one in the same
// transaction is about the same object: the index has those.
func lastRecords(r *snapshot.Reader) (lasts, error) {
	n := int64(0)
	for _, err := range r.Entries() {
		if err != nil {
			return nil, err
		}
		n++
	}
	if f := r.Footer(); n == f.Records {
		return nil, nil
	}
	l := make(lasts, 0, n)
	for e, err := range r.Entries() {
		if err != nil {
			return nil, err
		}
		l = append(l, e.Pos)
	}
	slices.Sort(l)
	return l, nil
}

// run writes what belongs to a node.
func (n *tablesNode) run(ctx context.Context, taken func(*batch)) error {
	np := len(n.mine)
	last := n.done
	for b := range n.ahead {
		select {
		case <-b.ready:
		case <-ctx.Done():
			return ctx.Err()
		}
		for i := range b.rows {
			r := &b.rows[i]
			if err := n.row(ctx, r, np); err != nil {
				return err
			}
			if r.meta != nil && r.tid > last { // never if it is complete
				last = r.tid
				if n.bytes >= commitBytes || time.Since(n.saved) >= commitEvery {
					if err := n.save(last); err != nil {
						return err
					}
				}
			}
		}
		taken(b)
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if n.complete {
		return nil
	}
	return n.save(last)
}

// save makes all that was written durable.
func (n *tablesNode) save(last tid.TID) error {
	if err := n.db.SetImportProgress(proto.Some(last.String())); err != nil {
		return err
	}
	n.bytes, n.saved = 0, time.Now()
	return n.db.Commit()
}

// row writes a row, unless it is that of another node or here already.
func (n *tablesNode) row(ctx context.Context, r *row, np int) error {
	for len(n.sums) <= r.part {
		n.sums = append(n.sums, rowSum{})
	}
	sum := &n.sums[r.part]
	if r.meta != nil {
		if !n.mine[r.tid.Partition(np)] {
			return nil
		}
		sum.transaction(r.tid, r.meta)
		if r.tid <= n.done {
			return nil
		}
		n.bytes += int64(100 + len(r.meta.OIDs)*8)
		return n.db.AddTransaction(r.tid, *r.meta, nil)
	}
	if !n.mine[r.oid.Partition(np)] {
		return nil
	}
	sum.record(r.oid, r.tid, r.kind != snapshot.NoData, r.from, r.sum)
	if r.tid <= n.done {
		return nil
	}
	if r.from != tid.Zero {
		// The row takes the data of that revision, which must be there.
		o, err := n.db.FetchObject(ctx, r.oid, r.from)
		if err != nil {
			return fmt.Errorf("object %v of transaction %v, a copy of that of %v: %w", r.oid, r.tid, r.from, err)
		}
		if deflate.Absent(&o.ObjectData) != (r.kind == snapshot.NoData) {
			return fmt.Errorf("object %v of transaction %v: %w: the one of %v, which it copies, is not of that kind", r.oid, r.tid, ErrDifferent, r.from)
		}
		return n.db.AddObject(r.oid, r.tid, o.ObjectData, proto.Some(r.from))
	}
	n.bytes += int64(100 + len(r.pack.Data))
	return n.db.AddObject(r.oid, r.tid, r.pack, proto.Opt[tid.TID]{})
}

// rowSum is a digest of rows in any order: the sum of their hashes, in four parts of 64 bits.
type rowSum struct {
	n   int64
	sum [4]uint64
}

func (s *rowSum) add(b []byte) {
	h := sha256.Sum256(b)
	for i := range s.sum {
		s.sum[i] += binary.BigEndian.Uint64(h[8*i:])
	}
	s.n++
}

// record adds a row of table obj. sum is that of its own data, zero if it has none or
// shares those of an earlier revision.
func (s *rowSum) record(oid tid.OID, t tid.TID, exists bool, from tid.TID, sum [sha256.Size]byte) {
	b := make([]byte, 0, 64)
	b = append(b, 'o')
	b = binary.BigEndian.AppendUint64(b, uint64(oid))
	b = binary.BigEndian.AppendUint64(b, uint64(t))
	b = binary.BigEndian.AppendUint64(b, uint64(from))
	if exists {
		b = append(b, 1)
	}
	s.add(append(b, sum[:]...))
}

// transaction adds a row of table trans.
func (s *rowSum) transaction(t tid.TID, m *backend.Meta) {
	b := []byte{'t'}
	b = binary.BigEndian.AppendUint64(b, uint64(t))
	if m.Packed {
		b = append(b, 1)
	}
	for _, f := range [][]byte{m.User, m.Description, m.Extension} {
		b = binary.BigEndian.AppendUint64(b, uint64(len(f)))
		b = append(b, f...)
	}
	for _, oid := range m.OIDs {
		b = binary.BigEndian.AppendUint64(b, uint64(oid))
	}
	s.add(b)
}

// verify reads the tables and compares them with what was read from the repository.
func (w *tables) verify(ctx context.Context, res *Result) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(max(runtime.GOMAXPROCS(0), 2))
	var m sync.Mutex
	parts, all := int64(0), int64(len(w.nodes)*w.o.Partitions)
	tell := func(n int64) { // that so many more partitions of nodes are read
		m.Lock()
		defer m.Unlock()
		if parts += n; w.o.Progress != nil {
			w.o.Progress(Comparing, res.Last, res.Bytes*parts/all, res.Bytes)
		}
	}
	tell(0)
	for _, n := range w.nodes {
		g.Go(func() error {
			if err := n.verify(ctx, tell); err != nil {
				return fmt.Errorf("node %d: %w", n.n, err)
			}
			return nil
		})
	}
	return g.Wait()
}

// readAtOnce is how many rows are read at once.
const readAtOnce = 1000

func (n *tablesNode) verify(ctx context.Context, tell func(int64)) error {
	got := make([]rowSum, len(n.w.parts))
	part := func(t tid.TID) (*rowSum, error) {
		i, _ := slices.BinarySearch(n.w.parts, t) // of parts with the same end, the first
		if i == len(got) {
			return nil, fmt.Errorf("%w: transaction %v is in no segment", ErrDifferent, t)
		}
		return &got[i], nil
	}
	for p := range n.mine {
		for min := tid.Zero; ; {
			tids, err := n.db.TIDsFrom(ctx, p, min, tid.Max, readAtOnce)
			if err != nil {
				return err
			}
			for _, t := range tids {
				m, _, err := n.db.FetchTransaction(ctx, t)
				if err != nil {
					return err
				}
				s, err := part(t)
				if err != nil {
					return err
				}
				s.transaction(t, &m)
				min = t + 1
			}
			if len(tids) < readAtOnce {
				break
			}
		}
		var from backend.Key
		for {
			keys, err := n.db.RecordsFrom(ctx, p, from.TID, tid.Max, from.OID, readAtOnce)
			if err != nil {
				return err
			}
			for _, k := range keys {
				s, err := part(k.TID)
				if err == nil {
					err = n.reread(ctx, s, k)
				}
				if err != nil {
					return err
				}
				from = backend.Key{TID: k.TID, OID: k.OID + 1}
			}
			if len(keys) < readAtOnce {
				break
			}
		}
		tell(1)
	}
	// A transaction that is cut counts for the first of its parts.
	want := make([]rowSum, len(got))
	for i := range n.sums {
		j, _ := slices.BinarySearch(n.w.parts, n.w.parts[i])
		want[j].n += n.sums[i].n
		for k := range want[j].sum {
			want[j].sum[k] += n.sums[i].sum[k]
		}
	}
	for i := range want {
		if want[i] != got[i] {
			return fmt.Errorf("%w: the tables have %d rows of the segment that ends with %v, the repository %d, and they are not the same", ErrDifferent, got[i].n, n.w.parts[i], want[i].n)
		}
	}
	return nil
}

// reread adds a record as it is in the tables.
func (n *tablesNode) reread(ctx context.Context, s *rowSum, k backend.Key) error {
	o, err := n.db.FetchObject(ctx, k.OID, k.TID)
	if err != nil {
		return err
	}
	absent := deflate.Absent(&o.ObjectData)
	var sum [sha256.Size]byte
	switch {
	case o.DataSerial != tid.Zero:
		first, err := n.db.FetchObject(ctx, k.OID, o.DataSerial)
		if err != nil {
			return err
		}
		if first.Checksum != o.Checksum || first.Compression != o.Compression {
			return fmt.Errorf("%w: object %v of transaction %v has other data than that of %v", ErrDifferent, k.OID, k.TID, o.DataSerial)
		}
	case !absent:
		data, err := deflate.Unpack(&o.ObjectData)
		if err != nil {
			return fmt.Errorf("object %v of transaction %v: %w", k.OID, k.TID, err)
		}
		sum = sha256.Sum256(data)
	}
	s.record(k.OID, k.TID, !absent, o.DataSerial, sum)
	return nil
}
