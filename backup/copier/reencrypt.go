package copier

import (
	"context"
	"errors"
	"fmt"

	"github.com/neozodb/neo/backup"
	"github.com/neozodb/neo/backup/writer"
	"github.com/neozodb/neo/cluster/tid"
)

// ReencryptOptions say what is read and how it is written. From, Keys, which open it, and what
// [writer.Open] requires but for the feed are required.
type ReencryptOptions struct {
	From   *backup.Repository
	Keys   *backup.Keys
	Feed   FeedOptions
	Writer writer.Options // of the copy, without Feed
}

// Reencrypt adds to a repository, which has keys, an identity and a name of its own, what the
// current lineage of another one has: the whole history up to the last transaction at which that is
// exact, with the same holes. It may be repeated, after any interruption as well; a later one adds what came.
// The errors are those of a writer: an ErrDiverged if From was forked before what was copied. If From
// has been rebased since, the copy begins a new lineage too, where Writer.RebaseOnPack allows it.
func Reencrypt(ctx context.Context, o ReencryptOptions) (writer.Stats, error) {
	to := o.Writer.Repo
	if o.From == nil || to == nil || o.Keys == nil {
		return writer.Stats{}, errors.New("a copy needs two repositories, and keys")
	}
	if to.Marker.ID == o.From.Marker.ID {
		return writer.Stats{}, fmt.Errorf("%w: it is the same repository: what has other keys needs a repository of its own", ErrOther)
	}
	note, err := to.Current(ctx)
	if err != nil {
		return writer.Stats{}, err
	}
	s, err := to.State(ctx, note.Lineage, nil)
	if err != nil {
		return writer.Stats{}, err
	}
	if s.Head() > tid.Zero && s.Manifest.Source.Kind != KindCopy {
		return writer.Stats{}, fmt.Errorf("%w, and no copy of this one: a backup of the %s %s", ErrOther, s.Manifest.Source.Kind, s.Manifest.Source.Name)
	}
	for _, i := range s.Manifest.Items {
		if i.Gap != nil {
			return writer.Stats{}, fmt.Errorf("transactions after %v up to %v of the copy are lost: %w: make another one", i.Gap.After, i.Gap.Upto, backup.ErrIncomplete)
		}
	}
	o.Feed.Of, o.Feed.Head = s.Manifest.Source, s.Head()
	f, err := OpenFeed(ctx, o.From, o.Keys, o.Feed)
	if err != nil {
		return writer.Stats{}, err
	}
	o.Writer.Feed = f
	w, err := writer.Open(ctx, o.Writer)
	if err != nil {
		return writer.Stats{}, err
	}
	defer w.Close() // only a lock of the state directory
	if w.Stats().Head == tid.Zero {
		// A manifest says first what is going to be copied.
		if err := w.Snapshot(ctx, 1, ""); err != nil {
			return w.Stats(), err
		}
	}
	// A range that is read across the beginning of a hole would make the hole longer.
	for _, at := range f.Stops() {
		if at <= w.Stats().Head {
			continue
		}
		if err := w.Snapshot(ctx, at, ""); err != nil {
			return w.Stats(), err
		}
	}
	err = w.Snapshot(ctx, tid.Zero, "")
	return w.Stats(), err
}
