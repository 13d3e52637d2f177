package client

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

const (
	compressNone = 0
	compressZlib = 1
)

// maxRecord bounds what one record may decompress to.
const maxRecord = 1 << 30

// DefaultLevel is the zlib level of Config.Level 0.
const DefaultLevel = 5

// packer turns ZODB records into what is stored and back. The checksum is the
// SHA-1 of the bytes as they are stored.
type packer struct {
	level   int // 0: no compression
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

// pack returns a record as it is stored: compressed if that makes it smaller.
// nil data is a deletion. The result may alias data.
func (p *packer) pack(data []byte) proto.ObjectData {
	if data == nil {
		return proto.ObjectData{}
	}
	out := proto.ObjectData{Data: data}
	if p.level > 0 && worthTrying(data) {
		s, _ := p.writers.Get().(*scratch)
		if s == nil {
			s = &scratch{}
			s.w, _ = zlib.NewWriterLevel(&s.buf, p.level) // the level was checked
		}
		s.buf.Reset()
		s.w.Reset(&s.buf)
		// Writing to a bytes.Buffer does not fail.
		s.w.Write(data)
		s.w.Close()
		if s.buf.Len() < len(data) {
			out.Compression, out.Data = compressZlib, bytes.Clone(s.buf.Bytes())
		}
		p.writers.Put(s)
	}
	out.Checksum = sha1.Sum(out.Data)
	return out
}

// verify checks a record against its checksum. A record without data passes.
func verify(o *proto.ObjectData) error {
	if len(o.Data) == 0 && o.Checksum == proto.ZeroHash {
		return nil
	}
	if sha1.Sum(o.Data) != o.Checksum {
		return ErrChecksum
	}
	return nil
}

// absent reports a record without data: deleted, or its creation was undone.
func absent(o *proto.ObjectData) bool {
	return len(o.Data) == 0 && o.Checksum == proto.ZeroHash
}

var readers sync.Pool // of *inflater; they hold no state between uses

type inflater struct {
	in      bytes.Reader
	zr      io.ReadCloser
	limited io.LimitedReader // of zr
	buf     bytes.Buffer
}

// unpack returns the ZODB record of stored bytes, never nil. The result aliases them
// only if they fill the buffer that they were received in.
func unpack(o *proto.ObjectData) ([]byte, error) {
	switch o.Compression {
	case compressNone:
		if n := len(o.Data); n >= proto.MaxChunk {
			return o.Data[:n:n], nil
		}
		return append(make([]byte, 0, len(o.Data)), o.Data...), nil
	case compressZlib:
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
