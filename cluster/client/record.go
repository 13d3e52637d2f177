package client

import (
	"bytes"
	"crypto/sha1"
	"fmt"
	"sync"

	deflate "github.com/klauspost/compress/zlib"

	"github.com/neozodb/neo/cluster/proto"
	"github.com/neozodb/neo/cluster/zlib"
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

// scratch is a compressor with the buffer it writes to.
type scratch struct {
	buf bytes.Buffer
	w   *deflate.Writer
}

// pack returns a record as it is stored: compressed if that makes it smaller.
// nil data is a deletion. The result may alias data.
func (p *packer) pack(data []byte) proto.ObjectData {
	if data == nil {
		return proto.ObjectData{}
	}
	out := proto.ObjectData{Data: data}
	if p.level > 0 && len(data) > 8 { // no shorter zlib stream exists
		s, _ := p.writers.Get().(*scratch)
		if s == nil {
			s = &scratch{}
			s.w, _ = deflate.NewWriterLevel(&s.buf, p.level) // the level was checked
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

var inflaters sync.Pool // of *inflater; they hold no state between uses

type inflater struct {
	z   zlib.Decompressor
	buf []byte
}

// unpack returns the ZODB record of stored bytes, never nil. The result does
// not alias them.
func unpack(o *proto.ObjectData) ([]byte, error) {
	switch o.Compression {
	case compressNone:
		return append(make([]byte, 0, len(o.Data)), o.Data...), nil
	case compressZlib:
	default:
		return nil, fmt.Errorf("decompress: unknown compression %d", o.Compression)
	}
	f, _ := inflaters.Get().(*inflater)
	if f == nil {
		f = &inflater{}
	}
	defer inflaters.Put(f)
	buf, err := f.z.Append(f.buf[:0], o.Data, maxRecord)
	if err != nil {
		return nil, fmt.Errorf("decompress: %w", err)
	}
	if f.buf = buf; cap(buf) > 1<<20 {
		f.buf = nil
	}
	return append(make([]byte, 0, len(buf)), buf...), nil
}
