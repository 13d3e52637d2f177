package importer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/exporter"
	"github.com/neozodb/neo/fsformat"
)

const (
	// sinkGroup is how many bytes are written back at once, at most.
	sinkGroup = 16 << 20
	// indexGap is how many bytes a file has more than its stored index covers, at least, when
	// the index is stored again; of a big file it is the part 1/indexPart.
	indexGap  = 64 << 20
	indexPart = 20
	// checkedLast is how many transactions at the end of a file are compared with ours.
	checkedLast = 128
)

// fileSink is a Data.fs that new transactions are written back to.
type fileSink struct {
	path string
	log  *slog.Logger
	// progress is told how far the reading of a file without a usable index is. nil: none.
	progress fsformat.Progress

	w       *fsformat.Writer // nil: not open
	info    os.FileInfo
	indexed int64 // size of the file when its index was stored
}

func newFileSink(path string, log *slog.Logger) *fileSink {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &fileSink{path: path, log: log}
}

// Open implements [Sink].
func (f *fileSink) Open(ctx context.Context) (tid.TID, error) {
	// The lock has been kept until now.
	if err := f.abort(); err != nil {
		f.log.Warn("close the source", "path", f.path, "err", err)
	}
	w, err := fsformat.OpenAppend(ctx, f.path, fsformat.WriterOptions{Group: sinkGroup, Progress: f.progress})
	if l, ok := errors.AsType[*fsformat.LockedError](err); ok {
		return 0, fmt.Errorf("%s is in use by process %s: stop it first: with writeback nothing else may write to it: %w", f.path, l.PID, err)
	}
	if err != nil {
		return 0, err
	}
	f.w = w
	if cut := w.Cut(); cut.Ignored > 0 {
		f.log.Warn("the end of the source was no finished transaction: it was saved and cut off", "path", f.path, "offset", cut.End, "bytes", cut.Ignored, "saved", cut.Reason)
	}
	f.info, err = os.Stat(f.path)
	if err == nil {
		err = f.same()
	}
	if err != nil {
		return 0, errors.Join(err, f.abort())
	}
	f.indexed = f.info.Size()
	f.saveIndex() // a new one, if there was none
	return w.LastTID(), nil
}

// size returns the length of the file, 0 if it is not there.
func (f *fileSink) size() int64 {
	fi, err := os.Stat(f.path)
	if err != nil {
		return 0
	}
	return fi.Size()
}

func (f *fileSink) saveIndex() {
	if err := f.w.SaveIndex(); err != nil {
		f.log.Warn("the index of the source could not be stored: the next start reads more of the file", "path", f.path, "err", err)
	}
}

// same returns an error if the file at the path is not what was written. Nothing may be
// buffered.
func (f *fileSink) same() error {
	fi, err := os.Stat(f.path)
	switch {
	case err != nil:
		return fmt.Errorf("%s was removed: put it back: %w", f.path, err)
	case !os.SameFile(fi, f.info):
		return fmt.Errorf("%s was replaced by another file while it was written to", f.path)
	case fi.Size() != f.w.Size():
		return fmt.Errorf("%s was written to or truncated by another program: it has %d bytes, not %d", f.path, fi.Size(), f.w.Size())
	}
	return nil
}

// Check implements [Sink]. A pack on either side may have removed records, and one of the
// file whole transactions.
func (f *fileSink) Check(ctx context.Context, after tid.TID, ours exporter.Source) error {
	r, err := fsformat.Open(f.path, fsformat.Options{})
	if err != nil {
		return err
	}
	defer r.Close() // only read
	last, n := f.w.LastTID(), 0
	for i, err := range r.Backwards(ctx) {
		if err != nil {
			return err
		}
		if n++; i.TID <= after || n > checkedLast {
			after = max(after, i.TID)
			break
		}
	}
	opt := exporter.CompareOptions{AnyStatus: true, AnyOrder: true, AnyLink: true, FullData: true}
	for d, err := range exporter.Compare(ctx, r, ours, after, last, opt, nil) {
		switch {
		case err != nil:
			return err
		case d.What == exporter.MissingInFirst, d.Record && d.What == exporter.MissingInSecond:
		case d.What == exporter.MissingInSecond:
			return &ForeignError{f.path, fmt.Sprintf("transaction %v", d.TID)}
		default:
			return &ForeignError{f.path, d.String()}
		}
	}
	return nil
}

// Append implements [Sink].
func (f *fileSink) Append(t *txn.Transaction) error {
	if f.w == nil {
		return fmt.Errorf("%s: %w", f.path, os.ErrClosed)
	}
	if f.w.Durable() == f.w.LastTID() {
		if err := f.same(); err != nil {
			return err
		}
	}
	return f.w.Append(t)
}

// Flush implements [Sink].
func (f *fileSink) Flush() error {
	if f.w == nil {
		return fmt.Errorf("%s: %w", f.path, os.ErrClosed)
	}
	if err := f.w.Flush(); err != nil {
		return err
	}
	if err := f.same(); err != nil {
		return err
	}
	if size := f.w.Size(); size-f.indexed >= max(indexGap, size/indexPart) {
		f.indexed = size
		f.saveIndex()
	}
	return nil
}

// Close implements [Sink].
func (f *fileSink) Close() error {
	if f.w == nil {
		return nil
	}
	w := f.w
	f.w = nil
	return w.Close()
}

// abort releases the file as it is.
func (f *fileSink) abort() error {
	if f.w == nil {
		return nil
	}
	w := f.w
	f.w = nil
	return w.Abort()
}
