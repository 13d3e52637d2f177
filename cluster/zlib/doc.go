// Package zlib decompresses records that are in memory, as zlib streams (RFC 1950,
// RFC 1951).
//
// Records of a database are small, a kilobyte or two: what a stream costs before
// its first byte counts as much as what each byte costs. So this works on whole
// slices, and keeps its tables for the next record.
//
// # Invariant
//
// [Decompressor.Append] accepts exactly the streams that zlib accepts.
package zlib

// Sizes of the alphabets, in symbols.
const (
	numLit   = 286 // literals, end of block, lengths
	numDist  = 30
	numCodes = 19 // of the lengths of codes
	maxBits  = 15 // of a code
)

const endOfBlock = 256

// maxMatch is the longest copy.
const maxMatch = 258

// codeOrder is the order in which the lengths of the codes of lengths are sent.
var codeOrder = [numCodes]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// A range of lengths or distances that share a symbol: the least, and how many
// bits say which.
type span struct {
	base  uint16
	extra uint8
}

var (
	lengthSpans [29]span
	distSpans   [numDist]span
)

func init() {
	base := uint16(3)
	for i := range lengthSpans {
		extra := uint8(max(0, i/4-1))
		lengthSpans[i] = span{base, extra}
		base += 1 << extra
	}
	lengthSpans[28] = span{maxMatch, 0}
	base = 1
	for i := range distSpans {
		extra := uint8(max(0, i/2-1))
		distSpans[i] = span{base, extra}
		base += 1 << extra
	}
	initDecode()
}
