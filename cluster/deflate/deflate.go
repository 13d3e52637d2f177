// Package deflate makes of ZODB records what storages keep, and the records of that.
package deflate

import (
	"bytes"
	"crypto/sha1"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/klauspost/compress"
	"github.com/klauspost/compress/zlib"

	"github.com/neozodb/neo/cluster/proto"
)

// Values of [proto.ObjectData.Compression].
const (
	None = 0
	Zlib = 1
)

// maxRecord bounds what one record may decompress to.
const maxRecord = 1 << 30

// DefaultLevel is the zlib level where none is asked for.
const DefaultLevel = 5

// Packer makes of ZODB records what is stored. The checksum is the SHA-1 of the bytes as
// they are stored. Its methods may be called concurrently.
type Packer struct {
	Level   int // of zlib, 1 to 9; 0: no compression
	writers sync.Pool
}

// An estimate of what compression is good for saves trying it with what is
// compressed already. It tells nothing about less than minEstimated bytes, and made
// of all bytes it would cost a fifth of the compression.
const (
	minEstimated = 256
	compressible = 0.1 // of 1; random bytes have less
)

// worthTrying guesses whether a record gets smaller by compression, by a look at
// two places of it.
func worthTrying(data []byte) bool {
	switch n := len(data); {
	case n < minEstimated:
		return n > 8 // no shorter zlib stream exists
	case n < 2*minEstimated:
		return compress.Estimate(data) >= compressible
	default:
		first, second := data[n/4:][:minEstimated], data[n-n/4-minEstimated:][:minEstimated]
		return compress.Estimate(first) >= compressible || compress.Estimate(second) >= compressible
	}
}

// scratch is a compressor with the buffer it writes to.
type scratch struct {
	buf bytes.Buffer
	w   *zlib.Writer
}

// Pack returns a record as it is stored: compressed if that makes it smaller.
// nil data is a deletion. The result aliases data if it is not compressed.
func (p *Packer) Pack(data []byte) proto.ObjectData {
	if data == nil {
		return proto.ObjectData{}
	}
	out := proto.ObjectData{Data: data}
	if p.Level > 0 && worthTrying(data) {
		s, _ := p.writers.Get().(*scratch)
		if s == nil {
			s = &scratch{}
			s.w, _ = zlib.NewWriterLevel(&s.buf, p.Level) // the level was checked
		}
		s.buf.Reset()
		s.w.Reset(&s.buf)
		// Writing to a bytes.Buffer does not fail.
		s.w.Write(data)
		s.w.Close()
		if s.buf.Len() < len(data) {
			out.Compression, out.Data = Zlib, bytes.Clone(s.buf.Bytes())
		}
		p.writers.Put(s)
	}
	out.Checksum = sha1.Sum(out.Data)
	return out
}

// Valid reports whether stored bytes have their checksum. A record without data has.
func Valid(o *proto.ObjectData) bool { return Absent(o) || sha1.Sum(o.Data) == o.Checksum }

// Absent reports a record without data: deleted, or its creation was undone.
func Absent(o *proto.ObjectData) bool {
	return len(o.Data) == 0 && o.Checksum == proto.ZeroHash
}

var readers sync.Pool // of *inflater; they hold no state between uses

type inflater struct {
	in      bytes.Reader
	zr      io.ReadCloser
	limited io.LimitedReader // of zr
	buf     bytes.Buffer
}

// Unpack returns the ZODB record of stored bytes, never nil. The result aliases them
// only if they fill the buffer that they were received in.
func Unpack(o *proto.ObjectData) ([]byte, error) {
	switch o.Compression {
	case None:
		if n := len(o.Data); n >= proto.MaxChunk {
			return o.Data[:n:n], nil
		}
		return append(make([]byte, 0, len(o.Data)), o.Data...), nil
	case Zlib:
	default:
		return nil, fmt.Errorf("decompress: unknown compression %d", o.Compression)
	}
	f, _ := readers.Get().(*inflater)
	if f == nil {
		f = &inflater{}
	}
	defer readers.Put(f)
	f.in.Reset(o.Data)
	var err error
	if f.zr == nil {
		f.zr, err = zlib.NewReader(&f.in)
	} else {
		err = f.zr.(zlib.Resetter).Reset(&f.in, nil)
	}
	if err != nil {
		f.zr = nil
		return nil, fmt.Errorf("decompress: %w", err)
	}
	f.buf.Reset()
	f.limited = io.LimitedReader{R: f.zr, N: maxRecord + 1}
	n, err := f.buf.ReadFrom(&f.limited)
	switch {
	case err != nil:
		return nil, fmt.Errorf("decompress: %w", err)
	case n > maxRecord:
		return nil, errors.New("decompress: record of more than 1 GiB")
	}
	out := append(make([]byte, 0, n), f.buf.Bytes()...)
	if f.buf.Cap() > 1<<20 {
		f.buf = bytes.Buffer{}
	}
	return out, nil
}
