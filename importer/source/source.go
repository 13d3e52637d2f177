// Package source opens what is imported: a Data.fs, a storage of a ZEO server, another
// cluster, a backup repository.
//
// Nothing is ever written to a source. What is read of one that is on another machine
// waits while it cannot be reached, and an iteration goes on where it was cut.
package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
	"github.com/neozodb/neo/importer/config"
)

var (
	// ErrEmpty reports a source without any transaction.
	ErrEmpty = errors.New("can not import empty storage")
	// ErrChanged reports a source that is not what it was when it was opened, or has
	// less: a file that was truncated or written over, an older copy behind a server.
	// Such an error is a [txn.ErrUnavailable] as well: the source may be put back.
	ErrChanged = errors.New("the source is not what it was")
)

// DefaultPatience is the Patience of Options without one.
const DefaultPatience = 20 * time.Second

// Options configures a [Source]. A zero field takes the documented default.
type Options struct {
	Log *slog.Logger // default: discard

	// Progress is told how far the reading of a Data.fs without a usable index is, in
	// bytes. Default: none.
	Progress func(pos, size int64)

	// Writable is for a source that the caller, by other means, writes to: a Data.fs is
	// then not locked, since the caller has its lock, and may grow.
	Writable bool

	// Lazy opens a source on a server although the server cannot be reached: reads wait
	// for it, see Patience. Default: Open waits until it can be reached.
	Lazy bool

	// Patience is how long a read waits for a server that cannot be reached, and
	// for the answer about one object. The error is then a [txn.ErrUnavailable]. Default:
	// DefaultPatience.
	Patience time.Duration
}

// Python returns which Python reads and writes a source, 2 or 3, and 0 where that is not
// known: only a Data.fs tells it.
func Python(s Source) int {
	f, ok := s.(*file)
	switch {
	case !ok:
		return 0
	case f.r.Magic() == fsformat.FS21:
		return 2
	}
	return 3
}

// Extent is how far a source goes.
type Extent struct {
	Next tid.OID // the first object id above all of those up to Last
	Last tid.TID // the last transaction
}

// Source is an open source: a database in its own numbers, whatever its kind.
type Source interface {
	txn.Database
	io.Closer

	// Extent returns how far the source goes now. The error is [ErrEmpty] if it has no
	// transaction. It may be slow if a ZEO server is read-only.
	Extent(ctx context.Context) (Extent, error)

	// Position returns where in the size bytes of the source a transaction begins, or
	// would begin. ok is false where that is not known: in a source on a server.
	Position(t tid.TID) (pos, size int64, ok bool)

	// Trouble returns what an operator has to know of the source now, in a sentence that
	// says what to do. nil: it serves.
	Trouble() error
}

// Indexed is implemented by a source that finds the records of an object on this machine,
// without reading others.
type Indexed interface {
	// LastRevision returns the last transaction that changed an object, be it by a deletion:
	// Zero if there is none. known is false if that cannot be read now.
	LastRevision(oid tid.OID) (last tid.TID, known bool)
	// DataTID returns the [txn.Record.DataTID] of the record that transaction at made of an
	// object. [txn.ErrNotFound].
	DataTID(ctx context.Context, oid tid.OID, at tid.TID) (tid.TID, error)
}

// Open opens a source. section is its name in the configuration, for messages. ctx
// limits the opening.
func Open(ctx context.Context, section string, s config.Storage, opt Options) (Source, error) {
	if opt.Log == nil {
		opt.Log = slog.New(slog.DiscardHandler)
	}
	if opt.Patience == 0 {
		opt.Patience = DefaultPatience
	}
	opt.Log = opt.Log.With("source", section)
	var src Source
	var err error
	switch {
	case s.File != nil:
		src, err = openFile(ctx, section, s.File, opt)
	case s.ZEO != nil:
		src, err = openZEO(ctx, section, s.ZEO, opt)
	case s.NEO != nil:
		src, err = openNEO(ctx, section, s.NEO, opt)
	case s.Backup != nil:
		src, err = openBackup(ctx, section, s.Backup, opt)
	default:
		err = errors.New("it has no storage")
	}
	if err != nil {
		return nil, fmt.Errorf("source %s: %w", section, err)
	}
	return src, nil
}

// next returns the id after the greatest one.
func next(greatest tid.OID) (tid.OID, error) {
	if greatest >= tid.MaxOID {
		return 0, fmt.Errorf("object %v cannot be imported: object ids must be below %v", greatest, tid.MaxOID)
	}
	return greatest + 1, nil
}

// answered reports whether an error is an answer about what was asked for, or that of the
// context, and says nothing of the source.
func answered(ctx context.Context, err error) bool {
	return err == nil || errors.Is(err, txn.ErrNotFound) || errors.Is(err, txn.ErrNoSuchObject) || ctx.Err() != nil
}

// changedError is an [ErrChanged].
type changedError struct{ text string }

func (e *changedError) Error() string { return e.text }

func (e *changedError) Unwrap() []error { return []error{ErrChanged, txn.ErrUnavailable} }
