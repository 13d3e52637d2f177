package exporter

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat"
)

// group is how many bytes of an export are made durable at once.
const group = 16 << 20

// recent is how many transactions at the end of a destination are compared with
// the source before anything is appended.
const recent = 128

// FileOptions configures [ToFile]. A zero field takes the documented default.
type FileOptions struct {
	UpTo       tid.TID        // default: everything
	Magic      fsformat.Magic // of a new file; default: FS30
	PackedUpTo tid.TID        // see fsformat.WriterOptions
	// Restart discards what an interrupted export left in PATH.part. Default: the
	// export goes on after it.
	Restart bool
	// Full writes a new file whatever there is, and replaces an existing one when it
	// is complete. Default: an existing file is brought up to date.
	Full     bool
	Progress Progress // default: none
	// Copied is told the name under which the file is while it is written, when all is
	// copied and durable. A new file gets its own name only after that, and keeps this
	// one if the result is an error. Default: none.
	Copied func(ctx context.Context, name string, last tid.TID) error
	// Opened is told where the copy begins, Zero for an empty file. Default: none.
	Opened func(after, upTo tid.TID)
}

// ToFile brings a Data.fs up to date with src: it is created, or what it lacks is
// appended. While a new file is not complete it is called PATH.part. An existing
// one that is not the beginning of src is a [NotPrefixError], and stays as it is;
// FileOptions.Full replaces it.
// It returns the last transaction of the file.
//
// After an error, what was copied and is durable stays, and another call goes on
// from there.
func ToFile(ctx context.Context, src txn.History, path string, opt FileOptions) (tid.TID, error) {
	upTo, err := src.LastTID(ctx)
	if err != nil {
		return tid.Zero, fmt.Errorf("export to %s: %w", path, err)
	}
	if opt.UpTo != tid.Zero {
		upTo = min(upTo, opt.UpTo)
	}
	w, name, err := openWriter(ctx, path, opt)
	if err != nil {
		return tid.Zero, fmt.Errorf("export to %s: %w", path, err)
	}
	last := w.LastTID()
	if c, ok := src.(linker); ok {
		c.Linked(w.LoadSerial)
	}
	if err := checkEnd(ctx, src, name, last, upTo); err != nil {
		if last == tid.Zero && name != path { // nothing is in it
			return last, errors.Join(fmt.Errorf("export to %s: %w", path, err), w.Abort(), os.Remove(name))
		}
		return last, errors.Join(fmt.Errorf("export to %s: %w", name, err), w.Abort())
	}
	if c, ok := src.(knower); ok {
		c.Known(w.Has)
	}
	if opt.Opened != nil {
		opt.Opened(last, upTo)
	}
	last, err = Copy(ctx, w, src, last, upTo, opt.Progress)
	if err != nil {
		// What is whole shall not have to be copied again.
		flushed := w.Flush()
		if errors.Is(err, flushed) {
			flushed = nil
		}
		return w.Durable(), errors.Join(fmt.Errorf("export to %s: %w", path, err), flushed, w.Abort())
	}
	if opt.Copied != nil {
		if err := w.Flush(); err != nil {
			return w.Durable(), errors.Join(fmt.Errorf("export to %s: %w", path, err), w.Abort())
		}
		if err := opt.Copied(ctx, name, last); err != nil {
			return last, errors.Join(fmt.Errorf("export to %s: %w", path, err), w.Abort())
		}
	}
	if err := w.Close(); err != nil {
		return w.Durable(), fmt.Errorf("export to %s: %w", path, err)
	}
	return last, nil
}

// knower is a source that asks which objects the destination has: an object that is
// in it cannot be new in what is copied. See [fsformat.Checked].
type knower interface {
	Known(func(tid.OID) bool)
}

// linker is a source without the data that records share with earlier ones: it asks the
// destination, which has all that was copied before. load returns nil data for a
// revision without data.
type linker interface {
	Linked(load func(oid tid.OID, at tid.TID) ([]byte, error))
}

// openWriter also returns the name of the file while it is written.
func openWriter(ctx context.Context, path string, opt FileOptions) (*fsformat.Writer, string, error) {
	o := fsformat.WriterOptions{Magic: opt.Magic, Group: group, PackedUpTo: opt.PackedUpTo, Resume: !opt.Restart, Replace: opt.Full}
	switch _, err := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist), err == nil && opt.Full:
		w, err := fsformat.Create(path, o)
		return w, path + ".part", err
	case err != nil:
		return nil, "", err
	}
	w, err := fsformat.OpenAppend(ctx, path, o)
	return w, path, err
}

// checkEnd verifies that the end of an existing file is in the source.
func checkEnd(ctx context.Context, src Source, name string, last, upTo tid.TID) error {
	if last == tid.Zero {
		return Follows(ctx, src, nil, tid.Zero, tid.Zero, CompareOptions{})
	}
	if last > upTo {
		if err := Follows(ctx, src, nil, tid.Zero, tid.Zero, CompareOptions{}); err != nil {
			return err // the last transaction is not the greatest
		}
		return &NotPrefixError{last, Difference{TID: last, What: "later than what is to be copied"}, whyAhead}
	}
	r, err := fsformat.Open(name, fsformat.Options{})
	if err != nil {
		return err
	}
	defer r.Close() // only read
	after, err := beforeLatest(ctx, r, recent)
	if err != nil {
		return err
	}
	return Follows(ctx, src, r, after, last, throughCluster) // as one of them may have come
}
