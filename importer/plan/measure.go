package plan

import (
	"bytes"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"github.com/neozodb/neo/cluster/deflate"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/storage/adapter"
	"github.com/neozodb/neo/cluster/storage/backend"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/importer/config"
)

// Estimate is what an import is expected to take, from a sample that was really imported.
type Estimate struct {
	Bytes        int64         `json:"bytes"` // of the sources
	SampleBytes  int64         `json:"sample_bytes"`
	Transactions int64         `json:"sample_transactions"`
	Records      int64         `json:"sample_records"`
	Places       int           `json:"sample_places"` // parts of the sources that it is made of
	Took         time.Duration `json:"sample_ns"`
	// Reading, Packing and Writing are the parts of Took: reading the source, compression and
	// checksums, the database.
	Reading time.Duration `json:"sample_reading_ns"`
	Packing time.Duration `json:"sample_packing_ns"`
	Writing time.Duration `json:"sample_writing_ns"`
	// Each is the likely value between two that it should not pass.
	Duration    Range `json:"duration_s"`
	Destination Range `json:"destination_bytes"`
	Memory      int64 `json:"memory_bytes"` // of the storage node, about
	Free        int64 `json:"free_bytes"`   // where the destination will be; negative: not known
}

// Range is a value and how sure it is.
type Range struct {
	Low    float64 `json:"low"`
	Likely float64 `json:"likely"`
	High   float64 `json:"high"`
}

// What the uncertainty is made of, beside the differences between the parts of the sample.
const (
	// An import compresses on several processors, while others read and write; and tables that
	// have grown beyond the caches are slower than those of a sample.
	faster, slower   = 0.6, 2.5
	smaller, greater = 0.9, 1.3
	// Memory of a node without its data: caches, queues, the runtime.
	baseMemory = 120 << 20
)

// measure imports a sample into a database that is thrown away.
func (m *maker) measure(ctx context.Context) (err error) {
	var n int64
	var parts []part
	for _, s := range m.plan.Sources {
		if s.file == nil || len(s.file.places) == 0 || s.file.end <= s.file.places[0] {
			continue
		}
		for i, pos := range s.file.places {
			end := s.file.end
			if i+1 < len(s.file.places) {
				end = s.file.places[i+1]
			}
			parts = append(parts, part{s: s, shift: tid.OID(n), pos: pos, end: end})
		}
		n += int64(min(s.Next, 1<<40))
	}
	if len(parts) == 0 {
		return nil
	}
	beside := filepath.Dir(m.cfg.Destination.Database)
	if m.cfg.Destination.Adapter != adapter.SQLite {
		beside = ""
	} else if _, err := os.Stat(beside); err != nil {
		beside = ""
	}
	dir, err := os.MkdirTemp(beside, ".neomigrate-plan-")
	if err != nil && beside != "" {
		dir, err = os.MkdirTemp("", "neomigrate-plan-")
	}
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	e, err := m.sample(ctx, filepath.Join(dir, "sample.sqlite"), parts)
	if err != nil || e == nil {
		return err
	}
	for _, s := range m.plan.Sources {
		if !s.Read {
			m.plan.note("", "", "%s is not in the estimate", s.Where)
		}
	}
	objects, largest := int64(0), int64(0)
	for _, s := range m.plan.Sources {
		objects += s.Objects
		largest = max(largest, s.LargestData)
	}
	e.Memory = baseMemory + 24*objects + 4*largest
	e.Free = free(filepath.Dir(m.cfg.Destination.Database))
	m.plan.Estimate = e
	if m.cfg.Destination.Adapter == adapter.SQLite {
		if _, err := os.Stat(m.cfg.Destination.Database); err == nil {
			m.plan.must("", "another --destination; or remove it, if nothing in it is needed", "%s, which is to receive the data, exists", m.cfg.Destination.Database)
		}
		if e.Free >= 0 && float64(e.Free) < e.Destination.High {
			level := Note
			if float64(e.Free) < e.Destination.Likely {
				level = Must
			}
			m.plan.find(level, "", "--destination on a larger disk", "the import may need %s, and %s has %s free", size(e.Destination.High), filepath.Dir(m.cfg.Destination.Database), size(float64(e.Free)))
		}
	}
	return nil
}

// nodeID is that of a storage.
const nodeID = proto.NodeID(1)

// part is a piece of a file from which a sample is taken.
type part struct {
	s        *Source
	shift    tid.OID
	pos, end int64

	read, stored int64 // bytes of the file, and of the records in the database
	took         time.Duration
}

// sample imports a part of each piece.
func (m *maker) sample(ctx context.Context, path string, parts []part) (_ *Estimate, err error) {
	empty, err := emptyDatabase(ctx, path)
	if err != nil {
		return nil, err
	}
	db, err := adapter.Open(ctx, adapter.Config{Adapter: adapter.SQLite, Database: path})
	if err != nil {
		return nil, err
	}
	closed := false
	defer func() {
		if !closed {
			err = errors.Join(err, db.Close())
		}
	}()
	w := sampler{ctx: ctx, db: db, e: &Estimate{}, packer: deflate.Packer{Level: level(m.cfg.Destination.Compress)}}
	share := m.cfg.Sample / time.Duration(len(parts))
	start := time.Now()
	for i := range parts {
		if err := w.part(&parts[i], share); err != nil {
			return nil, err
		}
	}
	t := time.Now()
	closed = true
	if err := db.Close(); err != nil { // commits
		return nil, err
	}
	w.e.Writing += time.Since(t)
	w.e.Took = time.Since(start)
	if w.e.SampleBytes == 0 {
		return nil, nil
	}
	filled, err := filesSize(path)
	if err != nil {
		return nil, err
	}
	total := int64(0)
	for i := range parts {
		total += parts[i].end - parts[i].pos
		if parts[i].read > 0 {
			w.e.Places++
		}
	}
	w.e.Bytes = total
	w.e.extrapolate(float64(empty), float64(max(filled-empty, 0)), parts)
	return w.e, nil
}

// extrapolate sets the ranges. empty are the bytes of a destination without data, stored
// those that the sample takes.
func (e *Estimate) extrapolate(empty, stored float64, parts []part) {
	scale := float64(e.Bytes) / float64(e.SampleBytes)
	// Reading, compressing and writing overlap, as far as there are processors.
	procs := max(1, runtime.GOMAXPROCS(0))
	slowest := max(e.Reading, e.Writing, e.Packing/time.Duration(procs), e.Took/time.Duration(min(procs, 4)))
	likely := slowest.Seconds() * scale
	// The sample takes as long as it is told to, not as many bytes: the parts differ in how
	// fast they went.
	var speeds, ratios []float64
	for _, p := range parts {
		if p.read > 0 && p.took > 0 {
			speeds = append(speeds, p.took.Seconds()/float64(p.read))
			ratios = append(ratios, float64(p.stored)/float64(p.read))
		}
	}
	whole := scale < 1.01
	spread := func(values []float64) float64 {
		if whole {
			return 0
		}
		return 2 * relativeError(values)
	}
	d := spread(speeds)
	e.Duration = Range{likely * faster / (1 + d), likely, e.Took.Seconds() * scale * slower * (1 + d)}
	d = spread(ratios)
	e.Destination = Range{empty + stored*scale*smaller/(1+d), empty + stored*scale, empty + stored*scale*greater*(1+d)}
}

// relativeError is the standard error of the mean, relative to it.
func relativeError(values []float64) float64 {
	if len(values) < 2 {
		return 1
	}
	var sum, squares float64
	for _, v := range values {
		sum += v
	}
	mean := sum / float64(len(values))
	for _, v := range values {
		squares += (v - mean) * (v - mean)
	}
	if mean == 0 {
		return 0
	}
	return math.Sqrt(squares/float64(len(values)-1)/float64(len(values))) / mean
}

// emptyDatabase makes the database of a node that has all partitions, and returns how many
// bytes it takes.
func emptyDatabase(ctx context.Context, path string) (int64, error) {
	db, err := adapter.Open(ctx, adapter.Config{Adapter: adapter.SQLite, Database: path})
	if err != nil {
		return 0, err
	}
	const partitions = 12 // as neosimple and most clusters
	var cells []proto.CellChange
	for p := range partitions {
		cells = append(cells, proto.CellChange{Partition: p, ID: nodeID, State: proto.UpToDate})
	}
	if err := errors.Join(db.SetID(nodeID), db.ChangePartitionTable(1, 0, cells, true, 0), db.Commit(), db.Close()); err != nil {
		return 0, err
	}
	return filesSize(path)
}

// filesSize returns the bytes of a database with what is beside it.
func filesSize(path string) (n int64, err error) {
	list, err := os.ReadDir(filepath.Dir(path))
	for _, f := range list {
		if info, e := f.Info(); e == nil {
			n += info.Size()
		} else if !errors.Is(e, os.ErrNotExist) { // removed meanwhile
			err = errors.Join(err, e)
		}
	}
	return n, err
}

// level returns a level of a configuration as a packer takes it, as an import does.
func level(compress int) int {
	switch compress {
	case config.NoCompression:
		return 0
	case -1:
		return deflate.DefaultLevel
	}
	return compress
}

type sampler struct {
	ctx    context.Context
	db     backend.Backend
	e      *Estimate
	packer deflate.Packer
	last   tid.TID
}

// part imports from the beginning of a piece, for some time.
func (w *sampler) part(p *part, share time.Duration) error {
	start := time.Now()
	defer func() { p.took = time.Since(start) }()
	for pos := p.pos; pos < p.end && (pos == p.pos || time.Since(start) < share); {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		from := time.Now()
		t, err := p.s.file.r.TransactionAt(pos)
		w.e.Reading += time.Since(from)
		if errors.As(err, new(*fsformat.CorruptError)) {
			return nil // has been told
		}
		if err != nil {
			return err
		}
		if t.Status == 'u' { // undone in place: no part of the database
		} else if err := w.transaction(p, t); err != nil {
			if errors.As(err, new(*fsformat.CorruptError)) {
				return nil
			}
			return err
		}
		w.e.SampleBytes += t.Head.End() - pos
		p.read += t.Head.End() - pos
		pos = t.Head.End()
	}
	return nil
}

func (w *sampler) transaction(p *part, t *fsformat.Transaction) error {
	// Pieces of several sources come one after the other: the ids increase nevertheless.
	w.last = max(w.last+1, t.TID)
	meta := backend.Meta{User: bytes.Clone(t.User), Description: bytes.Clone(t.Description), Extension: bytes.Clone(t.Extension), TTID: w.last}
	at := time.Now()
	lap := func(d *time.Duration) {
		now := time.Now()
		*d += now.Sub(at)
		at = now
	}
	for r, err := range t.Records {
		lap(&w.e.Reading)
		if err != nil {
			return err
		}
		oid := min(r.OID, 1<<40) + p.shift
		if slices.Contains(meta.OIDs[max(0, len(meta.OIDs)-64):], oid) {
			continue
		}
		w.e.Records++
		meta.OIDs = append(meta.OIDs, oid)
		var d proto.ObjectData
		if r.DataTID == tid.Zero && r.Data != nil { // otherwise it shares a row
			d = w.packer.Pack(r.Data)
			if d.Compression == deflate.None {
				d.Data = bytes.Clone(d.Data) // which is valid until the next record
			}
		}
		p.stored += int64(len(d.Data)) + 60
		lap(&w.e.Packing)
		if err := w.db.AddObject(oid, w.last, d, proto.Opt[tid.TID]{}); err != nil {
			return err
		}
		lap(&w.e.Writing)
	}
	p.stored += int64(len(meta.User)+len(meta.Description)+len(meta.Extension)+8*len(meta.OIDs)) + 30
	w.e.Transactions++
	err := w.db.AddTransaction(w.last, meta, nil)
	lap(&w.e.Writing)
	return err
}
