package importer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/neozodb/neo/cluster/pace"
	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/merge"
	"github.com/neozodb/neo/importer/source"
	"github.com/neozodb/neo/importer/state"
)

// Config says what is imported into what. A zero field takes the documented default.
type Config struct {
	Import config.Import // required
	// Open opens the destination: required, since which adapters there are is known
	// elsewhere.
	Open func(ctx context.Context, d config.Destination) (Native, error)
	// Progress is told how far the reading of a Data.fs without a usable index is, in bytes.
	// Default: none.
	Progress func(source string, pos, size int64)
	// Advice is what the operator should do when the import has ended, as a sentence.
	// Default: to start the node with the native backend.
	Advice string
	// OpenSource opens a source. Default: [source.Open].
	OpenSource func(ctx context.Context, section string, s config.Storage, opt source.Options) (source.Source, error)
	Log        *slog.Logger // default: discard
}

// Open opens the destination and, unless the import has come to its end, the sources. The
// first time, it fixes what becomes of their object ids.
func Open(ctx context.Context, cfg Config) (_ *Backend, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	note := "" // what reports say at the end, if not the default
	if cfg.Advice == "" {
		cfg.Advice = "You should change your configuration to use the native backend and restart."
	} else {
		note = "everything is copied and equal. " + cfg.Advice
	}
	for _, w := range cfg.Import.Warnings {
		cfg.Log.Warn(w)
	}
	native, err := cfg.Open(ctx, cfg.Import.Destination)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, native.Close())
		}
	}()
	back, err := openWriteBack(cfg, native)
	if err != nil {
		return nil, err
	}
	if back != nil {
		native = back.wrap()
		defer func() {
			if err != nil {
				err = errors.Join(err, back.sink.Close())
			}
		}()
	}
	known, err := readState(native)
	if err != nil {
		return nil, err
	}
	if known != nil {
		warnings, err := config.Check(cfg.Import, known)
		if err != nil {
			return nil, err
		}
		for _, w := range warnings {
			cfg.Log.Warn(w)
		}
	}
	stored, err := native.ImportProgress()
	if err != nil {
		return nil, err
	}
	p, err := parseProgress(stored)
	if err != nil {
		return nil, err
	}
	if known != nil && finished(p) {
		b := newBackend(native, nil, known.End(), 0, cfg.Log)
		if _, _, err := b.prepare(cfg.Import.Destination.Compress, nil); err != nil {
			return nil, err
		}
		b.copying.advice, b.copying.doneNote = cfg.Advice, note
		b.finish()
		b.copying.note = note
		cfg.Log.Info("All data are imported. "+cfg.Advice+" Until then the node serves its own tables.", "tid", known.End())
		b.writesBack(back)
		if back != nil {
			if err := back.open(ctx); err != nil { // it may be gone, and nothing else needs it
				back.say(err)
			}
		}
		tellAdded(ctx, cfg, known, native)
		return b, nil
	}
	// Before the source is read: what an interrupted write has left at its end is cut off.
	if back != nil {
		if known != nil {
			back.end = known.End()
		}
		if err := back.open(ctx); err != nil {
			return nil, err
		}
	}
	src, err := openSources(ctx, cfg, known != nil)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, src.Close())
		}
	}()
	if known == nil {
		if err := refuseUsed(ctx, native); err != nil {
			return nil, err
		}
		if known, err = src.fix(ctx, cfg.Import, native); err != nil {
			return nil, err
		}
	}
	if err := src.merge(ctx, cfg.Import, known); err != nil {
		return nil, err
	}
	b := newBackend(native, src, src.End(), src.Next(), cfg.Log)
	b.copying.advice, b.copying.doneNote = cfg.Advice, note
	b.closeSource = src.Close
	_, found, err := b.prepare(cfg.Import.Destination.Compress, src.Close)
	if err != nil {
		return nil, err
	}
	if !found {
		t, err := lastCopied(ctx, native, b.end)
		if err != nil {
			return nil, err
		}
		b.advance(t)
	}
	if err := b.learnFirst(ctx); err != nil {
		return nil, err
	}
	if !found { // from now on the node starts without its sources
		if err := b.save(); err != nil {
			return nil, fmt.Errorf("recording the import: %w", err)
		}
	}
	b.writesBack(back)
	return b, nil
}

// openWriteBack returns the write-back of new transactions to the source, nil if that is not
// configured.
func openWriteBack(cfg Config, native Native) (*writeBack, error) {
	if !cfg.Import.Destination.WriteBack {
		return nil, nil
	}
	if len(cfg.Import.Sources) != 1 || cfg.Import.Sources[0].Storage.File == nil {
		return nil, errors.New("writeback is possible to a single source, which must be a Data.fs")
	}
	sink := newFileSink(cfg.Import.Sources[0].Storage.File.Path, cfg.Log)
	if cfg.Progress != nil {
		sink.progress = func(pos int64) { cfg.Progress(cfg.Import.Sources[0].Section, pos, sink.size()) }
	}
	return newWriteBack(native, sink, tid.Zero, cfg.Log, nil), nil
}

// writesBack lets w forward what clients commit after the end of the sources. nil: nothing does.
func (b *Backend) writesBack(w *writeBack) {
	if w == nil {
		return
	}
	w.end, w.pace = b.end, pace.New(b.served, writeBackShare, 0)
	b.back = w
}

// tellAdded warns of a Data.fs that has grown since its import: what was added is nowhere
// else. That it is not there any more, or is another file, does not matter.
func tellAdded(ctx context.Context, cfg Config, known state.State, native Native) {
	for _, x := range cfg.Import.Sources {
		if x.Storage.File == nil {
			continue
		}
		end := known[x.Section].LTID
		last, added, err := source.Added(ctx, x.Storage.File.Path, end)
		if err != nil {
			cfg.Log.Debug("source of a finished import", "source", x.Section, "err", err)
			continue
		}
		if added == 0 || ours(ctx, native, last) {
			continue
		}
		advice := "import the file into a new database"
		if len(known) == 1 {
			advice = "as long as no client of the cluster has committed, stop this node and start it with --extend-import; otherwise " + advice
		}
		cfg.Log.Warn("the source has grown since its import ended, and what was added is not imported: "+advice,
			"source", x.Section, "path", x.Storage.File.Path, "transactions", added, "tid", last, "end", end)
	}
}

// ours reports whether a transaction is in the native backend: it was written back.
func ours(ctx context.Context, native Native, t tid.TID) bool {
	np, err := tableSize(native)
	if err != nil || np == 0 {
		return false
	}
	found, err := native.TIDsFrom(ctx, t.Partition(np), t, t, 1)
	return err == nil && len(found) > 0
}

// readState returns the state of the import into a database, nil if there is none.
func readState(native Native) (state.State, error) {
	row, err := native.ImportState()
	if err != nil || !row.OK {
		return nil, err
	}
	s, err := state.Parse(row.V)
	if err != nil {
		return nil, fmt.Errorf("row zodb of table config: %w", err)
	}
	return s, nil
}

// refuseUsed returns an error if a database that is the destination of no import has
// transactions.
func refuseUsed(ctx context.Context, native Native) error {
	cells, err := native.Cells()
	if err != nil {
		return err
	}
	for _, c := range cells {
		t, o, err := native.LastTIDs(ctx, c.Partition)
		if err != nil {
			return err
		}
		if t = max(t, o); t != tid.Zero {
			return fmt.Errorf("the destination already has transactions, the last of partition %d is %v, and they are not from this import: "+
				"import into a new database, or start the node without the adapter Importer", c.Partition, t)
		}
	}
	return nil
}

// lastCopied returns the last transaction of the sources that is in a database which keeps no
// progress: one that the Python implementation fills, or that has not come to its first commit.
// Transactions are copied in their order.
func lastCopied(ctx context.Context, native Native, end tid.TID) (tid.TID, error) {
	np, err := tableSize(native)
	if err != nil {
		return 0, err
	}
	last := tid.Zero
	for p := range np {
		// Everything that is found lies in [low, high].
		low, high := last+1, end
		for low <= high {
			middle := low + (high-low)/2
			found, err := native.TIDsFrom(ctx, p, middle, high, 1)
			if err != nil {
				return 0, fmt.Errorf("looking for the last imported transaction: %w", err)
			}
			if len(found) == 0 {
				high = middle - 1
				continue
			}
			last = found[0]
			low = last + 1
		}
	}
	return last, nil
}

// openedSources are all sources of an import, and what they make together.
type openedSources struct {
	*merge.Database
	names []string
	list  []source.Source
	close func() error
}

// openSources opens all sources. again: the import has begun before.
func openSources(ctx context.Context, cfg Config, again bool) (_ *openedSources, err error) {
	s := &openedSources{}
	s.close = sync.OnceValue(s.closeAll)
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	open := cfg.OpenSource
	if open == nil {
		open = source.Open
	}
	for _, x := range cfg.Import.Sources {
		opt := source.Options{Log: cfg.Log, Writable: cfg.Import.Destination.WriteBack, Lazy: again}
		if cfg.Progress != nil {
			opt.Progress = func(pos, size int64) { cfg.Progress(x.Section, pos, size) }
		}
		src, err := open(ctx, x.Section, x.Storage, opt)
		if err != nil {
			return nil, err
		}
		s.names = append(s.names, x.Section)
		s.list = append(s.list, src)
	}
	return s, nil
}

// Close closes all sources, once.
func (s *openedSources) Close() error { return s.close() }

func (s *openedSources) closeAll() error {
	var errs []error
	for i, src := range s.list {
		if err := src.Close(); err != nil {
			errs = append(errs, fmt.Errorf("source %s: %w", s.names[i], err))
		}
	}
	return errors.Join(errs...)
}

// fix decides what becomes of the ids of the sources, for good.
func (s *openedSources) fix(ctx context.Context, imp config.Import, native Native) (state.State, error) {
	extents := map[string]config.Extent{}
	for i, src := range s.list {
		e, err := src.Extent(ctx)
		if err != nil {
			return nil, fmt.Errorf("source %s: %w", s.names[i], err)
		}
		extents[s.names[i]] = config.Extent{Next: e.Next, Last: e.Last}
	}
	layout, err := config.Layout(imp, extents)
	if err != nil {
		return nil, err
	}
	if err := native.SetImportState(proto.Some(layout.String())); err != nil {
		return nil, fmt.Errorf("recording the import: %w", err)
	}
	if err := native.Commit(); err != nil {
		return nil, fmt.Errorf("recording the import: %w", err)
	}
	return layout, nil
}

// merge makes one database of the sources.
func (s *openedSources) merge(ctx context.Context, imp config.Import, known state.State) (err error) {
	// The same applications read all of it: a Data.fs tells of the others, too.
	python2, python3 := false, false
	for _, src := range s.list {
		python2 = python2 || source.Python(src) == 2
		python3 = python3 || source.Python(src) == 3
	}
	var list []merge.Source
	for i, x := range imp.Sources {
		k := known[x.Section]
		python := source.Python(s.list[i])
		list = append(list, merge.Source{
			Name: x.Section, Database: s.list[i], DatabaseName: x.DatabaseName,
			Last: k.LTID, Shift: k.Shift, Next: k.Next, Mapping: k.Mapping,
			Python3: python == 3 || python == 0 && (python3 || !python2),
		})
	}
	if s.Database, err = merge.New(list); err != nil {
		return err
	}
	for i, x := range imp.Sources {
		if err := has(ctx, s.list[i], known[x.Section].LTID); err != nil {
			return fmt.Errorf("source %s: %w", x.Section, err)
		}
	}
	return nil
}

// has returns an error if a source that can be reached does not have a transaction, the last one
// to be imported: then it is another one than that with which the import began.
func has(ctx context.Context, src source.Source, last tid.TID) error {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	for t, err := range src.Transactions(ctx, last-1, last) {
		switch {
		case errors.Is(err, txn.ErrUnavailable) || ctx.Err() != nil:
			return nil // reads wait for it
		case err != nil:
			return err
		case t.TID == last:
			return nil
		}
	}
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("transaction %v, the last one of the import that has begun, is not in it: it is not the database with which the import began, or it was truncated: put that back", last)
}

// reachTimeout is how long a source is waited for before the node starts without it.
const reachTimeout = 5 * time.Second

// Position returns where a transaction is, and how much there is, in bytes of all sources.
func (s *openedSources) Position(t tid.TID) (pos, size int64, ok bool) {
	for _, src := range s.list {
		p, n, ok := src.Position(t)
		if !ok {
			return 0, 0, false
		}
		pos, size = pos+p, size+n
	}
	return pos, size, len(s.list) > 0
}
