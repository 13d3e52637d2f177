package side

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"strings"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
	"github.com/neozodb/neo/fsformat/pickle"
)

// CountBlobs counts the records of blobs behind a transaction, as they are read: those of a transaction
// once, however often it is read.
func (f *File) CountBlobs(after tid.TID) { f.after, f.counting, f.blobs = after, true, 0 }

// Transactions implements [txn.History], and counts the records of blobs.
func (f *File) Transactions(ctx context.Context, after, upTo tid.TID) iter.Seq2[*txn.Transaction, error] {
	all := f.Checked.Transactions(ctx, after, upTo)
	if !f.counting {
		return all
	}
	return func(yield func(*txn.Transaction, error) bool) {
		for t, err := range all {
			if err == nil && t.Records != nil && t.TID > f.after {
				counted := *t
				counted.Records = f.countRecords(t)
				t = &counted
			}
			if !yield(t, err) {
				return
			}
		}
	}
}

func (f *File) countRecords(t *txn.Transaction) iter.Seq2[*txn.Record, error] {
	at, records := t.TID, t.Records
	return func(yield func(*txn.Record, error) bool) {
		n := int64(0)
		for r, err := range records {
			// The class is named first.
			if err == nil && bytes.Contains(r.Data[:min(len(r.Data), 64)], []byte("ZODB.blob")) && pickle.IsBlob(r.Data) {
				n++
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
		if at > f.after {
			f.after = at
			f.blobs += n
		}
	}
}

// TellBlobs says on stderr, after a copy, what [TellBlobs] says.
func (f *File) TellBlobs(dir string) error { return TellBlobs(f.env.Stderr, f.Name(), dir, f.blobs) }

// TellBlobs says how many records of blobs of a Data.fs were copied, and that the files
// with their data stay where they are. dir is the directory of these; "": one of the usual
// name beside the Data.fs, if there is one.
func TellBlobs(w io.Writer, file, dir string, records int64) error {
	if dir == "" {
		for _, name := range []string{"blobstorage", "blobs"} {
			d := filepath.Join(filepath.Dir(file), name)
			if info, err := os.Stat(d); err == nil && info.IsDir() {
				dir = d
				break
			}
		}
	}
	files, size, err := blobFiles(dir)
	if err != nil {
		return fmt.Errorf("blobs: %w", err)
	}
	if records == 0 && files == 0 {
		return nil
	}
	where := "no directory of theirs is beside it"
	if dir != "" {
		where = fmt.Sprintf("%s has %s, %.1f MB", dir, count(files, "file"), float64(size)/1e6)
	}
	fmt.Fprintf(w, "warning: %s: %s copied, but not the files with their data, which a cluster cannot have: %s; keep them\n",
		file, count(records, "record of a blob", "records of blobs"), where)
	return nil
}

// blobFiles counts the files of blobs in a directory, and their bytes. There are none in "".
func blobFiles(dir string) (files, size int64, err error) {
	if dir == "" {
		return 0, 0, nil
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.HasSuffix(path, ".blob") {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) { // packed meanwhile
			return nil
		}
		if err == nil {
			files++
			size += info.Size()
		}
		return err
	})
	return files, size, err
}

// count returns a number with its noun.
func count(n int64, one string, more ...string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, append(more, one+"s")[0])
}
