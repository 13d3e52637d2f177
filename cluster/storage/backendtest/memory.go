package backendtest

import (
	"cmp"
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"sync"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
)

// Memory is a database in memory that survives [Memory.Crash] as a disk would:
// with what was committed. It is the model that other backends are compared
// with, and the database of simulations: it waits for nothing but its own short
// mutex.
type Memory struct {
	// Device tells disks apart in [backend.Keeping.Topology]. It is set
	// before Open. Default: all databases share one.
	Device string

	m       sync.Mutex
	disk    tables
	undo    []func() // what takes back the changes since the last commit
	open    *memory
	commits int
}

// NewMemory returns an empty database.
func NewMemory() *Memory {
	d := &Memory{}
	d.disk = newTables()
	return d
}

// tables are what a database consists of.
type tables struct {
	config map[string]string
	id     proto.NodeID
	moment map[string]tid.TID
	cells  map[cellKey]cellRow
	packs  map[tid.TID]proto.PackState
	trans  map[tid.TID]backend.Meta
	obj    map[tid.OID][]record // by TID
	data   map[int64]proto.ObjectData
	voted  map[tid.TID]voted
	tobj   map[tid.TID][]backend.Store
	kept   map[int]tid.TID // partitions where packs have kept deletions
}

type cellKey struct {
	partition int
	id        proto.NodeID
}

type cellRow struct {
	state proto.CellState
	tid   tid.TID
	pack  proto.Opt[tid.TID]
}

type record struct {
	tid  tid.TID
	data backend.DataID
	from tid.TID
}

type voted struct {
	meta  backend.Meta
	final proto.Opt[tid.TID]
}

func newTables() tables {
	return tables{
		config: map[string]string{}, moment: map[string]tid.TID{}, cells: map[cellKey]cellRow{},
		packs: map[tid.TID]proto.PackState{}, trans: map[tid.TID]backend.Meta{}, obj: map[tid.OID][]record{},
		data: map[int64]proto.ObjectData{}, voted: map[tid.TID]voted{}, tobj: map[tid.TID][]backend.Store{},
		kept: map[int]tid.TID{},
	}
}

// put changes a map so that a crash takes it back.
func put[K comparable, V any](d *Memory, m map[K]V, k K, v V) {
	old, ok := m[k]
	d.undo = append(d.undo, func() {
		if ok {
			m[k] = old
		} else {
			delete(m, k)
		}
	})
	m[k] = v
}

func remove[K comparable, V any](d *Memory, m map[K]V, k K) {
	if old, ok := m[k]; ok {
		d.undo = append(d.undo, func() { m[k] = old })
		delete(m, k)
	}
}

// Open opens the database. backend.ErrLocked: it is open.
func (d *Memory) Open() (backend.Backend, error) {
	d.m.Lock()
	defer d.m.Unlock()
	if d.open != nil {
		return nil, backend.ErrLocked
	}
	b := &memory{Memory: d}
	b.reset()
	d.open = b
	return b, nil
}

// Crash ends the use of the database as the death of its process would: what was
// not committed is lost.
func (d *Memory) Crash() error {
	d.m.Lock()
	defer d.m.Unlock()
	for _, f := range slices.Backward(d.undo) {
		f()
	}
	d.undo, d.open = nil, nil
	return nil
}

// Commits returns how often something was made durable.
func (d *Memory) Commits() int {
	d.m.Lock()
	defer d.m.Unlock()
	return d.commits
}

// memory is an open Memory.
type memory struct {
	*Memory
	held       map[int64]int
	next       map[int]int64
	replicated map[int]bool
	drop       map[int]bool
}

var errClosed = errors.New("database is closed")

// reset computes what is kept beside the tables.
func (b *memory) reset() {
	b.held, b.next = map[int64]int{}, map[int]int64{}
	b.replicated, b.drop = map[int]bool{}, map[int]bool{}
	for _, stores := range b.disk.tobj {
		for _, s := range stores {
			if s.Data.OK {
				b.held[s.Data.ID]++
			}
		}
	}
	for id := range b.disk.data {
		p := int(id >> 48)
		b.next[p] = max(b.next[p], id+1)
	}
}

// enter begins a call.
func (b *memory) enter() error {
	b.m.Lock()
	if b.open != b {
		b.m.Unlock()
		return errClosed
	}
	return nil
}

func (b *memory) np() int {
	np := 0
	for k := range b.disk.cells {
		np = max(np, k.partition+1)
	}
	return np
}

func (b *memory) mine(p int) (cellRow, bool) {
	row, ok := b.disk.cells[cellKey{p, b.disk.id}]
	return row, ok && b.disk.id != 0
}

func (b *memory) readable(p int) error {
	if row, ok := b.mine(p); !ok || !row.state.Readable() {
		return backend.ErrNonReadable
	}
	return nil
}

func (b *memory) readableOID(o tid.OID) (int, error) {
	np := b.np()
	if np == 0 {
		return 0, backend.ErrNonReadable
	}
	p := o.Partition(np)
	return p, b.readable(p)
}

// Close implements [backend.Keeping].
func (b *memory) Close() error {
	if err := b.enter(); err != nil {
		return nil
	}
	defer b.m.Unlock()
	b.commit()
	b.open = nil
	return nil
}

// Erase implements [backend.Keeping].
func (b *memory) Erase() error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	b.disk = newTables()
	b.undo = nil
	b.reset()
	return nil
}

// Commit implements [backend.Writing].
func (b *memory) Commit() error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	b.commit()
	return nil
}

// CommitVotes implements [backend.Writing].
func (b *memory) CommitVotes() error { return b.Commit() }

func (b *memory) commit() {
	if len(b.undo) > 0 {
		b.commits++
	}
	clear(b.undo)
	b.undo = b.undo[:0]
}

// Config implements [backend.Keeping].
func (b *memory) Config() (backend.Config, error) {
	if err := b.enter(); err != nil {
		return backend.Config{}, err
	}
	defer b.m.Unlock()
	c := backend.Config{Name: b.disk.config["name"], ID: b.disk.id}
	moment := func(key string) proto.Opt[tid.TID] {
		t, ok := b.disk.moment[key]
		return proto.Opt[tid.TID]{V: t, OK: ok}
	}
	c.BackupTID, c.TruncateTID, c.BackupHold = moment("backup"), moment("truncate"), moment("hold")
	c.BackupGap = [2]tid.TID{moment("gap begin").V, moment("gap end").V}
	if ptid := moment("ptid"); ptid.OK {
		c.PTID = proto.Some(uint64(ptid.V))
	}
	c.Replicas = int(b.disk.moment["replicas"])
	if confirmed := moment("confirmed"); confirmed.OK {
		c.Confirmed = proto.Some(uint64(confirmed.V))
	}
	return c, nil
}

// SetName implements [backend.Keeping].
func (b *memory) SetName(name string) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	put(b.Memory, b.disk.config, "name", name)
	b.commit()
	return nil
}

// SetID implements [backend.Keeping].
func (b *memory) SetID(id proto.NodeID) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	old := b.disk.id
	if old != 0 && old != id {
		for k, row := range maps.Clone(b.disk.cells) {
			if k.id == old {
				remove(b.Memory, b.disk.cells, k)
				put(b.Memory, b.disk.cells, cellKey{k.partition, id}, row)
			}
		}
	}
	b.disk.id = id
	b.undo = append(b.undo, func() { b.disk.id = old })
	b.commit()
	return nil
}

func (b *memory) setMoment(key string, t proto.Opt[tid.TID]) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	if t.OK {
		put(b.Memory, b.disk.moment, key, t.V)
	} else {
		remove(b.Memory, b.disk.moment, key)
	}
	return nil
}

// SetBackupTID implements [backend.Keeping].
func (b *memory) SetBackupTID(t proto.Opt[tid.TID]) error { return b.setMoment("backup", t) }

// SetBackupHold implements [backend.Keeping].
func (b *memory) SetBackupHold(t proto.Opt[tid.TID]) error { return b.setMoment("hold", t) }

// SetBackupGap implements [backend.Keeping].
func (b *memory) SetBackupGap(gap [2]tid.TID) error {
	return errors.Join(b.setMoment("gap begin", proto.Opt[tid.TID]{V: gap[0], OK: gap[1] != 0}),
		b.setMoment("gap end", proto.Opt[tid.TID]{V: gap[1], OK: gap[1] != 0}))
}

// SetTruncateTID implements [backend.Keeping].
func (b *memory) SetTruncateTID(t proto.Opt[tid.TID]) error { return b.setMoment("truncate", t) }

// SetConfirmed implements [backend.Keeping].
func (b *memory) SetConfirmed(ptid proto.Opt[uint64]) error {
	return b.setMoment("confirmed", proto.Opt[tid.TID]{V: tid.TID(ptid.V), OK: ptid.OK})
}

// ImportState implements [backend.Importing].
func (b *memory) ImportState() (proto.Opt[string], error) { return b.text("zodb") }

// SetImportState implements [backend.Importing].
func (b *memory) SetImportState(state proto.Opt[string]) error { return b.setText("zodb", state) }

// ImportProgress implements [backend.Importing].
func (b *memory) ImportProgress() (proto.Opt[string], error) { return b.text("import") }

// SetImportProgress implements [backend.Importing].
func (b *memory) SetImportProgress(progress proto.Opt[string]) error {
	return b.setText("import", progress)
}

func (b *memory) text(key string) (proto.Opt[string], error) {
	if err := b.enter(); err != nil {
		return proto.Opt[string]{}, err
	}
	defer b.m.Unlock()
	v, ok := b.disk.config[key]
	return proto.Opt[string]{V: v, OK: ok}, nil
}

func (b *memory) setText(key string, value proto.Opt[string]) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	if value.OK {
		put(b.Memory, b.disk.config, key, value.V)
	} else {
		remove(b.Memory, b.disk.config, key)
	}
	return nil
}

// Topology implements [backend.Keeping].
func (b *memory) Topology() []string { return []string{"memory", b.Device} }

// Cells implements [backend.Keeping].
func (b *memory) Cells() ([]backend.Cell, error) {
	if err := b.enter(); err != nil {
		return nil, err
	}
	defer b.m.Unlock()
	var cells []backend.Cell
	for k, row := range b.disk.cells {
		cells = append(cells, backend.Cell{Partition: k.partition, ID: k.id, State: row.state, TID: row.tid})
	}
	slices.SortFunc(cells, func(x, y backend.Cell) int {
		return cmp.Or(cmp.Compare(x.Partition, y.Partition), cmp.Compare(x.ID, y.ID))
	})
	return cells, nil
}

// ChangePartitionTable implements [backend.Keeping].
func (b *memory) ChangePartitionTable(ptid uint64, replicas int, cells []proto.CellChange, reset bool, lastPack tid.TID) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	listed := map[cellKey]bool{}
	for _, c := range cells {
		k := cellKey{c.Partition, c.ID}
		listed[k] = true
		mine := c.ID == b.disk.id
		if c.State == proto.Discarded {
			remove(b.Memory, b.disk.cells, k)
			if mine {
				b.drop[c.Partition] = true
			}
			continue
		}
		old, known := b.disk.cells[k]
		row := cellRow{state: c.State, pack: old.pack}
		if !known && mine {
			row.pack = proto.Some(lastPack)
			if c.State.Readable() {
				row.pack = proto.Some(tid.Zero)
			}
		}
		if mine && c.State == proto.OutOfDate {
			switch {
			case known && old.state == proto.OutOfDate:
				row.tid = old.tid
			case known && old.state.Readable():
				var ok bool
				if row.tid, ok = b.disk.moment["backup"]; !ok {
					trans, obj := b.lastTIDs(c.Partition)
					complete := max(trans, obj)
					if _, ok := b.disk.moment["truncate"]; ok {
						complete = max(min(trans, obj), 1) - 1
					}
					row.tid = min(complete, max(b.leastVoted(c.Partition), 1)-1)
				}
			}
		}
		put(b.Memory, b.disk.cells, k, row)
	}
	if reset {
		for k := range maps.Clone(b.disk.cells) {
			if !listed[k] {
				remove(b.Memory, b.disk.cells, k)
			}
		}
		for p := range b.np() {
			b.drop[p] = true
		}
	}
	for p := range maps.Clone(b.drop) {
		if _, mine := b.mine(p); mine {
			delete(b.drop, p)
		}
	}
	put(b.Memory, b.disk.moment, "ptid", tid.TID(ptid))
	put(b.Memory, b.disk.moment, "replicas", tid.TID(replicas))
	clear(b.replicated)
	return nil
}

// SetCellTID implements [backend.Keeping].
func (b *memory) SetCellTID(partition int, t tid.TID) error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.m.Unlock()
	if row, ok := b.mine(partition); ok && row.state == proto.OutOfDate {
		row.tid = t
		put(b.Memory, b.disk.cells, cellKey{partition, b.disk.id}, row)
	}
	return nil
}

// SetReplicated implements [backend.Keeping].
func (b *memory) SetReplicated(partition int) {
	if err := b.enter(); err != nil {
		return
	}
	defer b.m.Unlock()
	b.replicated[partition] = true
}

// LastTIDs implements [backend.Reading].
func (b *memory) LastTIDs(ctx context.Context, partition int) (trans, obj tid.TID, err error) {
	if err := b.enter(); err != nil {
		return 0, 0, err
	}
	defer b.m.Unlock()
	trans, obj = b.lastTIDs(partition)
	return trans, obj, nil
}

func (b *memory) lastTIDs(partition int) (trans, obj tid.TID) {
	np := b.np()
	for t := range b.disk.trans {
		if t.Partition(np) == partition {
			trans = max(trans, t)
		}
	}
	for o, recs := range b.disk.obj {
		if o.Partition(np) == partition && len(recs) > 0 {
			obj = max(obj, recs[len(recs)-1].tid)
		}
	}
	return trans, obj
}

// leastVoted returns the least TTID among unfinished transactions in a partition,
// Invalid if there is none.
func (b *memory) leastVoted(partition int) tid.TID {
	np, least := b.np(), tid.Invalid
	for ttid := range b.disk.voted {
		if ttid.Partition(np) == partition {
			least = min(least, ttid)
		}
	}
	for ttid, stores := range b.disk.tobj {
		for _, s := range stores {
			if s.OID.Partition(np) == partition {
				least = min(least, ttid)
			}
		}
	}
	return least
}

// Orphans implements [backend.Keeping].
func (b *memory) Orphans(ctx context.Context) iter.Seq2[backend.DataID, error] {
	return func(yield func(backend.DataID, error) bool) {
		if err := b.enter(); err != nil {
			yield(backend.DataID{}, err)
			return
		}
		used := b.used()
		var ids []int64
		for id := range b.disk.data {
			if !used[id] && b.held[id] == 0 {
				ids = append(ids, id)
			}
		}
		b.m.Unlock()
		slices.Sort(ids)
		for _, id := range ids {
			if err := ctx.Err(); err != nil {
				yield(backend.DataID{}, err)
				return
			}
			if !yield(backend.DataID{ID: id, OK: true}, nil) {
				return
			}
		}
	}
}

// used returns the data that records refer to.
func (b *memory) used() map[int64]bool {
	used := map[int64]bool{}
	for _, recs := range b.disk.obj {
		for _, r := range recs {
			if r.data.OK {
				used[r.data.ID] = true
			}
		}
	}
	return used
}

// PruneData implements [backend.Keeping].
func (b *memory) PruneData(ids []backend.DataID) (int, error) {
	if err := b.enter(); err != nil {
		return 0, err
	}
	defer b.m.Unlock()
	return b.prune(ids), nil
}

func (b *memory) prune(ids []backend.DataID) int {
	if len(ids) == 0 {
		return 0
	}
	used, n := b.used(), 0
	for _, id := range ids {
		if _, ok := b.disk.data[id.ID]; ok && id.OK && !used[id.ID] && b.held[id.ID] == 0 {
			remove(b.Memory, b.disk.data, id.ID)
			n++
		}
	}
	return n
}
