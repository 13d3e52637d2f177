package importer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/importer/config"
	"github.com/neozodb/neo/importer/state"
)

// Extension is what [Extend] has done.
type Extension struct {
	Was, End tid.TID // the last transaction of the source before and now; equal: nothing was added
}

// String says in a sentence what comes of it.
func (x Extension) String() string {
	if x.End == x.Was {
		return fmt.Sprintf("The source ends at transaction %v, as when its import began: nothing was added.", x.Was)
	}
	return fmt.Sprintf("The source went up to transaction %v when its import began, and goes up to %v now: the next start with the adapter Importer imports what is between.", x.Was, x.End)
}

// Extend makes an import go on to where its source ends now: the source was written to
// after the import began, the cluster was not. The next [Open] copies what was added. It is
// possible with a single source, since the ids that were added to one of several may be those of
// the next. The destination and the source are closed again.
//
// Nothing is changed unless the native backend has all partitions, and neither transactions
// nor pack orders of its own, and the source still has the last transaction of the import.
func Extend(ctx context.Context, cfg Config) (x Extension, err error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if len(cfg.Import.Sources) != 1 {
		return x, fmt.Errorf("an import of %d sources cannot be extended: the ids of objects that were added to one may be those of the next. Import them into a new database", len(cfg.Import.Sources))
	}
	native, err := cfg.Open(ctx, cfg.Import.Destination)
	if err != nil {
		return x, err
	}
	defer func() { err = errors.Join(err, native.Close()) }()
	known, err := readState(native)
	switch {
	case err != nil:
		return x, err
	case known == nil:
		return x, errors.New("no import into the database has begun that could be extended: the next start imports all that is in the source")
	}
	if _, err := config.Check(cfg.Import, known); err != nil {
		return x, err
	}
	x.Was = known.End()
	p, err := unused(ctx, native, x.Was)
	if err != nil {
		return x, err
	}
	sources, err := openSources(ctx, cfg, false)
	if err != nil {
		return x, err
	}
	defer func() { err = errors.Join(err, sources.Close()) }()
	section := cfg.Import.Sources[0].Section
	e, err := sources.list[0].Extent(ctx)
	if err == nil {
		err = has(ctx, sources.list[0], x.Was)
	}
	if err != nil {
		return x, fmt.Errorf("source %s: %w", section, err)
	}
	s := known[section]
	if e.Next < s.Next {
		e.Next = s.Next // given out, and packed away since
	}
	x.End = e.Last
	if x.End == x.Was {
		return x, nil
	}
	layout, err := config.Layout(cfg.Import, map[string]config.Extent{section: {Next: e.Next, Last: e.Last}})
	if err != nil {
		return x, err
	}
	if now := layout[section]; now.Shift != s.Shift || len(now.Mapping)+len(s.Mapping) > 0 || s.OID != now.OID {
		return x, errors.New("the state of the import is not that of a single source: it cannot be extended")
	}
	return x, extend(native, p, layout)
}

// unused returns the stored progress of an import, or an error if what the destination has
// beside it forbids that its source goes on after end.
func unused(ctx context.Context, native Native, end tid.TID) (p progress, err error) {
	stored, err := native.ImportProgress()
	if err == nil {
		p, err = parseProgress(stored)
	}
	if err != nil {
		return p, err
	}
	if p.Verdict == different {
		return p, errors.New("the copy differs from the source: that must be decided first, see \"neoctl print import\"")
	}
	cells, err := native.Cells()
	if err != nil {
		return p, err
	}
	if len(cells) > 0 {
		if err := (&Backend{native: native}).checkTable(nil, false); err != nil {
			return p, fmt.Errorf("the import cannot be extended any more: %w", err)
		}
	}
	const late = "the import cannot be extended any more: what was added to the source is before it or beside it. Import into a new database, or go on without what was added"
	voted, err := native.Unfinished()
	if err != nil {
		return p, err
	}
	if len(voted) > 0 {
		return p, fmt.Errorf("the database has %d transactions of clients that are not finished: %s", len(voted), late)
	}
	for _, c := range cells { // a pack order is a transaction, too
		trans, obj, err := native.LastTIDs(ctx, c.Partition)
		if err != nil {
			return p, err
		}
		if t := max(trans, obj); t > end {
			return p, fmt.Errorf("clients have written to the database, transaction %v is after %v, the last one of the import: %s", t, end, late)
		}
	}
	return p, nil
}

// extend stores a new state. The progress is first: with the old state it only means that the copy
// is compared once more.
func extend(native Native, p progress, layout state.State) error {
	if p.TID != 0 {
		p.Verdict, p.Differences = "", 0
		if err := native.SetImportProgress(proto.Some(p.String())); err != nil {
			return err
		}
		if err := native.Commit(); err != nil {
			return err
		}
	}
	if err := native.SetImportState(proto.Some(layout.String())); err != nil {
		return err
	}
	return native.Commit()
}
