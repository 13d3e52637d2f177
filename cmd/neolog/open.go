package main

import (
	"compress/bzip2"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"github.com/neozodb/neo/cluster/nodelog"
	"github.com/ulikunitz/xz"
)

// log is a file to be shown.
type log struct {
	path   string // of the database: a temporary file if the log is compressed
	name   string // of the node, if its log does not tell
	reader *nodelog.Reader
}

func pull(ctx context.Context, l *log) (func() (*nodelog.Entry, error, bool), func()) {
	return iter.Pull2(l.reader.Entries(ctx))
}

// openLogs opens files. Those that cannot be opened are told; it fails only if no
// other can be either.
func openLogs(ctx context.Context, files []string, from time.Time, res *outcome) (logs []*log, closeAll func(), err error) {
	dir := "" // of decompressed files
	closeAll = func() {
		for _, l := range logs {
			_ = l.reader.Close() // only read
		}
		if dir != "" {
			if err := os.RemoveAll(dir); err != nil {
				res.tell(err)
			}
		}
	}
	for i, file := range files {
		l := &log{path: file, name: filepath.Base(file)}
		if expand := expanders[filepath.Ext(l.name)]; expand != nil {
			l.name = strings.TrimSuffix(l.name, filepath.Ext(l.name))
			if dir == "" {
				if dir, err = os.MkdirTemp("", "neolog-"); err != nil {
					closeAll()
					return nil, nil, err
				}
			}
			l.path = filepath.Join(dir, fmt.Sprint(i))
			if err := decompress(ctx, l.path, file, expand); err != nil {
				if ctx.Err() != nil {
					closeAll()
					return nil, nil, context.Cause(ctx)
				}
				res.tell(err)
				continue
			}
		}
		l.name = strings.TrimSuffix(l.name, filepath.Ext(l.name))
		if l.reader, err = nodelog.OpenReader(ctx, l.path); err != nil {
			if l.path != file {
				err = fmt.Errorf("%s: decompressed: %w", file, err)
			}
			res.tell(err)
			continue
		}
		l.reader.From(from)
		logs = append(logs, l)
	}
	return logs, closeAll, nil
}

// expanders decompress files, by the ends of their names.
var expanders = map[string]func(io.Reader) (io.Reader, error){
	".gz":  func(r io.Reader) (io.Reader, error) { return gzip.NewReader(r) },
	".bz2": func(r io.Reader) (io.Reader, error) { return bzip2.NewReader(r), nil },
	".xz":  func(r io.Reader) (io.Reader, error) { return xz.NewReader(r) },
	".zst": func(r io.Reader) (io.Reader, error) {
		d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1))
		if err != nil {
			return nil, err
		}
		return d.IOReadCloser(), nil
	},
}

// decompress writes a compressed file to another, for this user alone: SQLite cannot
// read a stream.
func decompress(ctx context.Context, to, from string, expand func(io.Reader) (io.Reader, error)) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close() // only read
	r, err := expand(in)
	if err != nil {
		return fmt.Errorf("%s: decompress: %w", from, err)
	}
	if c, ok := r.(io.Closer); ok {
		defer c.Close() // only read
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, readerFunc(func(b []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(b)
	}))
	if err = errors.Join(err, out.Close()); err != nil {
		return fmt.Errorf("%s: decompress to %s: %w", from, to, err)
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }
