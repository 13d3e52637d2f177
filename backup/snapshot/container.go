package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"sync"

	"github.com/klauspost/compress/zstd"

	"github.com/neozodb/neo/cluster/tid"
)

// Magics of the skippable frames of a segment.
const (
	frameHeader    = 0x184D2A5A
	frameBlock     = 0x184D2A5B
	frameDirectory = 0x184D2A5C
	frameTable     = 0x184D2A5D
	frameFooter    = 0x184D2A5E

	frameHead = 8 // magic and length

	headerMagic  = "NEOBKSG1"
	footerMagic  = "NEOBKFT1"
	headerLen    = 72
	footerLen    = 160
	footerFrame  = frameHead + footerLen
	textStart    = frameHead + headerLen
	minContainer = textStart + 2*frameHead + footerFrame

	flagContinues = 1
	flagContinued = 2
)

// Limits of a reader.
const (
	maxFrameText = 4 << 20  // text of a frame
	maxBlock     = 64 << 10 // entries of an index block
	maxDirectory = 64 << 20 // directory, frame table
)

// Header says what a segment is.
type Header struct {
	Repo      ID
	Lineage   ID
	After     tid.TID // exclusive
	Upto      tid.TID // inclusive
	ExactFrom tid.TID // of the source while it was read
	Continues bool    // begins within transaction Upto, which is also After
	Continued bool    // ends within transaction Upto
}

func (h *Header) append(b []byte) []byte {
	b = appendFrameHead(b, frameHeader, headerLen)
	b = append(b, headerMagic...)
	b = append(b, h.Repo[:]...)
	b = append(b, h.Lineage[:]...)
	b = h.After.Append(b)
	b = h.Upto.Append(b)
	b = h.ExactFrom.Append(b)
	var flags byte
	if h.Continues {
		flags |= flagContinues
	}
	if h.Continued {
		flags |= flagContinued
	}
	return append(b, flags, 0, 0, 0, 0, 0, 0, 0)
}

func (h *Header) check() error {
	switch {
	case h.Upto < h.After || h.Upto > tid.Max:
		return fmt.Errorf("%v to %v is no range", h.After, h.Upto)
	case h.Continues && h.After != h.Upto:
		return fmt.Errorf("it goes on with transaction %v, but begins after %v", h.Upto, h.After)
	}
	return nil
}

// parseHeader reads the first 80 bytes of a segment.
func parseHeader(b []byte, name string) (h Header, err error) {
	c, err := skippable(b, name, 0, frameHeader, headerLen, "header")
	if err != nil {
		return h, err
	}
	if err := checkMagic(c, name, frameHead, headerMagic); err != nil {
		return h, err
	}
	h.Repo = ID(c[8:24])
	h.Lineage = ID(c[24:40])
	h.After = tid.FromBytes(c[40:])
	h.Upto = tid.FromBytes(c[48:])
	h.ExactFrom = tid.FromBytes(c[56:])
	h.Continues = c[64]&flagContinues != 0
	h.Continued = c[64]&flagContinued != 0
	if c[64]&^(flagContinues|flagContinued) != 0 || !bytes.Equal(c[65:], make([]byte, 7)) {
		return h, corrupt(name, frameHead+64, "unknown flags %x in the header", c[64:])
	}
	if err := h.check(); err != nil {
		return h, corrupt(name, frameHead+40, "header: %w", err)
	}
	return h, nil
}

// Footer says where things are in a segment, and what it sums up to.
type Footer struct {
	IndexAt         int64 // first index block
	DirectoryAt     int64
	DirectoryLength int64
	TableAt         int64
	TableLength     int64
	Text            int64 // bytes of text
	Txns            int64 // that begin in it
	Records         int64
	MaxOID          tid.OID // 0 if there is no record
	First, Last     tid.TID // 0 if there is no transaction
	Raw             Hash    // of the text
	Meta            Hash    // of directory and frame table
}

// MetaLength returns how many bytes of the plaintext from its end a reader needs
// before it can find anything: directory, frame table and footer.
func (f *Footer) MetaLength() int64 { return f.DirectoryLength + f.TableLength + footerFrame }

func (f *Footer) append(b []byte) []byte {
	b = appendFrameHead(b, frameFooter, footerLen)
	b = append(b, footerMagic...)
	be := binary.BigEndian
	b = be.AppendUint64(b, uint64(f.IndexAt))
	b = be.AppendUint64(b, uint64(f.DirectoryAt))
	b = be.AppendUint32(b, uint32(f.DirectoryLength))
	b = be.AppendUint64(b, uint64(f.TableAt))
	b = be.AppendUint32(b, uint32(f.TableLength))
	b = be.AppendUint64(b, uint64(f.Text))
	b = be.AppendUint64(b, uint64(f.Txns))
	b = be.AppendUint64(b, uint64(f.Records))
	b = f.MaxOID.Append(b)
	b = f.First.Append(b)
	b = f.Last.Append(b)
	b = append(b, f.Raw[:]...)
	b = append(b, f.Meta[:]...)
	return be.AppendUint64(b, 0)
}

// parseFooter reads the last 168 bytes of a segment of that size.
func parseFooter(b []byte, name string, size int64) (f Footer, err error) {
	at := size - footerFrame
	c, err := skippable(b, name, at, frameFooter, footerLen, "footer")
	if err != nil {
		return f, err
	}
	if err := checkMagic(c, name, at+frameHead, footerMagic); err != nil {
		return f, err
	}
	be := binary.BigEndian
	var big bool
	number := func(off int) int64 {
		n := be.Uint64(c[off:])
		big = big || n > math.MaxInt64/8
		return int64(n)
	}
	f.IndexAt = number(8)
	f.DirectoryAt = number(16)
	f.DirectoryLength = int64(be.Uint32(c[24:]))
	f.TableAt = number(28)
	f.TableLength = int64(be.Uint32(c[36:]))
	f.Text = number(40)
	f.Txns = number(48)
	f.Records = number(56)
	f.MaxOID = tid.OID(be.Uint64(c[64:]))
	f.First = tid.FromBytes(c[72:])
	f.Last = tid.FromBytes(c[80:])
	f.Raw = Hash(c[88:120])
	f.Meta = Hash(c[120:152])
	switch {
	case big || be.Uint64(c[152:]) != 0:
		return f, corrupt(name, at, "numbers in the footer are out of range")
	case f.IndexAt < textStart || f.IndexAt > f.DirectoryAt ||
		f.DirectoryLength < frameHead || f.DirectoryLength > maxDirectory || f.DirectoryAt != f.TableAt-f.DirectoryLength ||
		f.TableLength < frameHead || f.TableLength > maxDirectory || f.TableAt != at-f.TableLength:
		return f, corrupt(name, at, "the offsets in the footer do not fit a segment of %d bytes: it is cut, longer or damaged", size)
	case f.First > f.Last || f.Last > tid.Max || (f.First == 0) != (f.Text == 0):
		return f, corrupt(name, at, "transactions %v to %v with %d records cannot be", f.First, f.Last, f.Records)
	}
	return f, nil
}

func appendFrameHead(b []byte, magic uint32, n int) []byte {
	b = binary.LittleEndian.AppendUint32(b, magic)
	return binary.LittleEndian.AppendUint32(b, uint32(n))
}

// skippable returns the content of the skippable frame that is all of b. want is the
// length of the content, -1 any.
func skippable(b []byte, name string, off int64, magic uint32, want int, what string) ([]byte, error) {
	if len(b) < frameHead || binary.LittleEndian.Uint32(b) != magic {
		return nil, corrupt(name, off, "no %s of a segment is there", what)
	}
	n := int64(binary.LittleEndian.Uint32(b[4:]))
	if n != int64(len(b)-frameHead) || want >= 0 && n != int64(want) {
		return nil, corrupt(name, off, "the %s has %d bytes", what, n)
	}
	return b[frameHead:], nil
}

// checkMagic refuses other versions of the format by name.
func checkMagic(c []byte, name string, off int64, want string) error {
	got := string(c[:8])
	switch {
	case got == want:
		return nil
	case got[:7] == want[:7] && got[7] > want[7] && got[7] <= '9':
		return &VersionError{Name: name, What: "segment", Got: int64(got[7] - '0'), Known: int64(want[7] - '0')}
	}
	return corrupt(name, off, "%.8q instead of %s", got, want)
}

// uvarint reads an unsigned LEB128 without needless bytes. It returns n ≤ 0 if there
// is none.
func uvarint(b []byte) (uint64, int) {
	v, n := binary.Uvarint(b)
	if n > 1 && b[n-1] == 0 {
		return 0, 0
	}
	return v, n
}

// EntryKind is what a revision is.
type EntryKind uint8

// The kinds of revisions.
const (
	HasData EntryKind = 0 // data
	NoData  EntryKind = 1 // none: a deletion, or a copy of a revision without data
	Copied  EntryKind = 2 // the data of an earlier revision
)

// Entry is a revision in the index of a segment.
type Entry struct {
	OID  tid.OID
	TID  tid.TID
	Pos  int64 // of its line in the text
	Kind EntryKind
}

// compare orders entries as an index does: ascending by oid, descending by tid.
func (e Entry) compare(o Entry) int {
	switch {
	case e.OID < o.OID:
		return -1
	case e.OID > o.OID:
		return 1
	case e.TID > o.TID:
		return -1
	case e.TID < o.TID:
		return 1
	}
	return 0
}

const maxEntry = 3*binary.MaxVarintLen64 - 2

// appendEntry appends an entry of a block after that of oid prev.
func appendEntry(b []byte, e Entry, prev tid.OID) []byte {
	b = binary.AppendUvarint(b, uint64(e.OID-prev))
	b = e.TID.Append(b)
	return binary.AppendUvarint(b, uint64(e.Pos)<<2|uint64(e.Kind))
}

// parseBlock reads the entries of an index block.
func parseBlock(b []byte, f *Footer) ([]Entry, error) {
	var list []Entry
	var prev Entry
	for len(b) > 0 {
		delta, n := uvarint(b)
		if n <= 0 || len(b) < n+8 {
			return nil, fmt.Errorf("entry %d is cut or no number", len(list))
		}
		e := Entry{OID: prev.OID + tid.OID(delta), TID: tid.FromBytes(b[n:])}
		b = b[n+8:]
		v, n := uvarint(b)
		if n <= 0 {
			return nil, fmt.Errorf("entry %d is cut or no number", len(list))
		}
		b = b[n:]
		e.Pos, e.Kind = int64(v>>2), EntryKind(v&3)
		switch {
		case uint64(e.OID) < delta:
			return nil, fmt.Errorf("the object id of entry %d is out of range", len(list))
		case len(list) > 0 && prev.compare(e) >= 0:
			return nil, fmt.Errorf("entry %d is out of order", len(list))
		case e.OID > f.MaxOID || e.TID < f.First || e.TID > f.Last || e.Pos >= f.Text || e.Kind > Copied:
			return nil, fmt.Errorf("entry %d (object %v, transaction %v, place %d, kind %d) is not within the segment", len(list), e.OID, e.TID, e.Pos, e.Kind)
		}
		list = append(list, e)
		prev = e
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("it has no entry")
	}
	return list, nil
}

// block is an entry of the directory.
type block struct {
	first Entry // without place and kind
	at    int64
	len   int64
	sum   [16]byte
}

func appendBlock(b []byte, d *block) []byte {
	b = d.first.OID.Append(b)
	b = d.first.TID.Append(b)
	b = binary.AppendUvarint(b, uint64(d.at))
	b = binary.AppendUvarint(b, uint64(d.len))
	return append(b, d.sum[:]...)
}

// parseDirectory reads the directory: the blocks fill what is between IndexAt and
// DirectoryAt.
func parseDirectory(b []byte, f *Footer) ([]block, error) {
	list := make([]block, 0, len(b)/34)
	at := f.IndexAt
	for len(b) > 0 {
		var d block
		i := len(list)
		if len(b) < 16 {
			return nil, fmt.Errorf("entry %d of the directory is cut", i)
		}
		d.first = Entry{OID: tid.OIDFromBytes(b), TID: tid.FromBytes(b[8:])}
		b = b[16:]
		var v [2]uint64
		for j := range v {
			var n int
			if v[j], n = uvarint(b); n <= 0 {
				return nil, fmt.Errorf("entry %d of the directory is cut or no number", i)
			}
			b = b[n:]
		}
		if len(b) < 16 {
			return nil, fmt.Errorf("entry %d of the directory is cut", i)
		}
		d.sum = [16]byte(b[:16])
		b = b[16:]
		if v[0] != uint64(at) || v[1] <= frameHead || v[1] > uint64(f.DirectoryAt-at) || v[1] > frameHead+2*maxBlock {
			return nil, fmt.Errorf("index block %d (%d bytes at %d) is not where it should be", i, v[1], v[0])
		}
		if i > 0 && list[i-1].first.compare(d.first) >= 0 {
			return nil, fmt.Errorf("index block %d is out of order", i)
		}
		d.at, d.len = at, int64(v[1])
		at += d.len
		list = append(list, d)
	}
	if at != f.DirectoryAt {
		return nil, fmt.Errorf("the index blocks end at %d, not at %d", at, f.DirectoryAt)
	}
	return list, nil
}

// frame is an entry of the frame table.
type frame struct {
	pos  int64 // of its text in the whole
	text int64 // length of text
	at   int64
	len  int64
	tid  tid.TID // first transaction that touches it
	sum  [16]byte
}

func appendFrame(b []byte, f *frame) []byte {
	b = binary.AppendUvarint(b, uint64(f.text))
	b = binary.AppendUvarint(b, uint64(f.len))
	b = f.tid.Append(b)
	return append(b, f.sum[:]...)
}

// parseTable reads the frame table: the frames fill what is before the index.
func parseTable(b []byte, f *Footer) ([]frame, error) {
	list := make([]frame, 0, len(b)/26)
	at, pos := int64(textStart), int64(0)
	for len(b) > 0 {
		i := len(list)
		var v [2]uint64
		for j := range v {
			var n int
			if v[j], n = uvarint(b); n <= 0 {
				return nil, fmt.Errorf("entry %d of the frame table is cut or no number", i)
			}
			b = b[n:]
		}
		if len(b) < 24 {
			return nil, fmt.Errorf("entry %d of the frame table is cut", i)
		}
		fr := frame{pos: pos, at: at, tid: tid.FromBytes(b), sum: [16]byte(b[8:24])}
		b = b[24:]
		switch {
		case v[0] < 1 || v[0] > maxFrameText || v[1] < 1 || v[1] > uint64(f.IndexAt-at) || v[1] > 2*maxFrameText:
			return nil, fmt.Errorf("frame %d (%d bytes of text in %d) cannot be", i, v[0], v[1])
		case fr.tid < f.First || fr.tid > f.Last || i > 0 && fr.tid < list[i-1].tid:
			return nil, fmt.Errorf("frame %d begins with transaction %v, out of order", i, fr.tid)
		}
		fr.text, fr.len = int64(v[0]), int64(v[1])
		at += fr.len
		pos += fr.text
		list = append(list, fr)
	}
	if at != f.IndexAt || pos != f.Text {
		return nil, fmt.Errorf("the frames end at %d with %d bytes of text, not at %d with %d", at, pos, f.IndexAt, f.Text)
	}
	return list, nil
}

func shortSum(b []byte) [16]byte {
	sum := sha256.Sum256(b)
	return [16]byte(sum[:16])
}

// Level is how hard zstd tries.
type Level string

// The levels. The zero Level is Fastest.
const (
	Fastest Level = "fastest"
	Default Level = "default"
	Better  Level = "better"
)

var encoders sync.Map // of *zstd.Encoder by zstd.EncoderLevel

// encoder returns an encoder for EncodeAll, which may be called concurrently.
func encoder(l Level) (*zstd.Encoder, error) {
	level := zstd.SpeedFastest
	switch l {
	case "", Fastest:
	case Default:
		level = zstd.SpeedDefault
	case Better:
		level = zstd.SpeedBetterCompression
	default:
		return nil, fmt.Errorf("level %.20q: want %s, %s or %s", string(l), Fastest, Default, Better)
	}
	if e, ok := encoders.Load(level); ok {
		return e.(*zstd.Encoder), nil
	}
	e, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(level), zstd.WithSingleSegment(true), zstd.WithEncoderCRC(true), zstd.WithWindowSize(maxFrameText))
	if err != nil {
		return nil, err
	}
	kept, _ := encoders.LoadOrStore(level, e)
	return kept.(*zstd.Encoder), nil
}

var decoder = sync.OnceValue(func() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderMaxMemory(maxFrameText), zstd.WithDecodeAllCapLimit(true), zstd.WithDecoderConcurrency(0))
	if err != nil {
		panic(err) // the options are constant
	}
	return d
})

// decompress appends to dst the content of b, which is exactly one zstd frame with
// size and checksum, of at most limit bytes of content.
func decompress(dst, b []byte, limit int) ([]byte, error) {
	var h zstd.Header
	if err := h.Decode(b); err != nil {
		return nil, fmt.Errorf("no zstd frame: %w", err)
	}
	if h.Skippable || !h.HasFCS || !h.HasCheckSum || h.DictionaryID != 0 {
		return nil, fmt.Errorf("not a zstd frame with size and checksum")
	}
	if h.FrameContentSize == 0 || h.FrameContentSize > uint64(limit) {
		return nil, fmt.Errorf("a zstd frame with %d bytes of content, want 1 to %d", h.FrameContentSize, limit)
	}
	if n := frameLength(b, h.HeaderSize); n != len(b) {
		return nil, fmt.Errorf("a zstd frame of %d bytes, want %d", n, len(b))
	}
	n := int(h.FrameContentSize)
	if cap(dst) < n {
		dst = make([]byte, 0, n)
	}
	out, err := decoder().DecodeAll(b, dst[:0:n])
	if err != nil {
		return nil, err
	}
	if len(out) != n {
		return nil, fmt.Errorf("a zstd frame with %d bytes of content says %d", len(out), n)
	}
	return out, nil
}

// frameLength returns the length of the zstd frame with which b begins, by its blocks;
// -1 if it is cut.
func frameLength(b []byte, head int) int {
	for at := head; at+3 <= len(b); {
		h := uint32(b[at]) | uint32(b[at+1])<<8 | uint32(b[at+2])<<16
		n := int(h >> 3)
		if h>>1&3 == 1 { // one byte, repeated
			n = 1
		}
		if at += 3 + n; h&1 != 0 {
			if at+4 > len(b) {
				return -1
			}
			return at + 4 // checksum
		}
	}
	return -1
}
