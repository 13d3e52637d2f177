package fsformat

import (
	"encoding/binary"

	"github.com/neozodb/neo/cluster/tid"
)

// Magic is the first four bytes of a Data.fs.
type Magic string

const (
	FS21 Magic = "FS21" // written by Python 2; Python 3 refuses it
	FS30 Magic = "FS30" // written by Python 3
)

const (
	magicLen     = 4
	txnHeaderLen = 23
	recHeaderLen = 42
	trailerLen   = 8 // the length of a transaction, again
	pointerLen   = 8

	// minRecordPos is the lowest position a data record can have.
	minRecordPos = magicLen + txnHeaderLen
	maxMetaLen   = 1<<16 - 1
	// maxPos is the end of what an index can address.
	maxPos = 1 << 48

	statusVoted  = 'c'
	statusUndone = 'u'
)

// Header is the head of a transaction record.
type Header struct {
	Pos    int64 // where the record begins
	Len    int64 // of the record, without the 8 bytes that repeat it
	TID    tid.TID
	Status byte // ' ', 'p', 'c' or 'u' in an intact file

	userLen, descLen, extLen int
	stored                   tid.TID // TID as it is in the file; see Options.Renumber
	junk                     int64   // bytes before the first record that belong to nothing; only [Salvage] sees them
}

// End returns the position after the record: that of the next one.
func (h *Header) End() int64 { return h.Pos + h.Len + trailerLen }

// metaLen returns the length of user, description and extension.
func (h *Header) metaLen() int { return h.userLen + h.descLen + h.extLen }

// First returns the position of the first data record, or where it would be.
func (h *Header) First() int64 { return h.Pos + txnHeaderLen + int64(h.metaLen()) + h.junk }

func (h *Header) lenOK() bool {
	return h.Len >= int64(txnHeaderLen+h.metaLen()) && h.Len <= maxPos
}

// validStatus reports whether s may be that of a finished transaction.
func validStatus(s byte) bool { return s == ' ' || s == 'p' || s == statusUndone }

func parseHeader(b []byte, pos int64) Header {
	_ = b[txnHeaderLen-1]
	t := tid.FromBytes(b)
	return Header{
		Pos:     pos,
		TID:     t,
		stored:  t,
		Len:     int64(binary.BigEndian.Uint64(b[8:])),
		Status:  b[16],
		userLen: int(binary.BigEndian.Uint16(b[17:])),
		descLen: int(binary.BigEndian.Uint16(b[19:])),
		extLen:  int(binary.BigEndian.Uint16(b[21:])),
	}
}

// RecordHeader is the head of a data record.
type RecordHeader struct {
	Pos      int64 // where the record begins
	OID      tid.OID
	TID      tid.TID
	Prev     int64 // previous record of the object when this one was written, or 0
	TxnPos   int64 // of the transaction
	DataLen  int64 // 0: Back counts
	Back     int64 // record that has the data, 0 if there is none; only if DataLen is 0
	versions uint16
}

// End returns the position after the record.
func (h *RecordHeader) End() int64 {
	if h.DataLen == 0 {
		return h.Pos + recHeaderLen + pointerLen
	}
	return h.Pos + recHeaderLen + h.DataLen
}

// DataPos returns the position of the data, if DataLen is not 0.
func (h *RecordHeader) DataPos() int64 { return h.Pos + recHeaderLen }

// parseRecordHeader reads all but Back.
func parseRecordHeader(b []byte, pos int64) RecordHeader {
	_ = b[recHeaderLen-1]
	return RecordHeader{
		Pos:      pos,
		OID:      tid.OIDFromBytes(b),
		TID:      tid.FromBytes(b[8:]),
		Prev:     int64(binary.BigEndian.Uint64(b[16:])),
		TxnPos:   int64(binary.BigEndian.Uint64(b[24:])),
		versions: binary.BigEndian.Uint16(b[32:]),
		DataLen:  int64(binary.BigEndian.Uint64(b[34:])),
	}
}

func (h *RecordHeader) appendTo(b []byte) []byte {
	b = h.OID.Append(b)
	b = h.TID.Append(b)
	b = binary.BigEndian.AppendUint64(b, uint64(h.Prev))
	b = binary.BigEndian.AppendUint64(b, uint64(h.TxnPos))
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint64(b, uint64(h.DataLen))
	if h.DataLen == 0 {
		b = binary.BigEndian.AppendUint64(b, uint64(h.Back))
	}
	return b
}
