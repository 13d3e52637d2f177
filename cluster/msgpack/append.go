// Package msgpack reads and writes the subset of MessagePack that NEO and ZEO
// put on the wire: nil, booleans, integers, 64-bit floats, binary and text
// strings, arrays, maps and extensions.
//
// Writing appends to a slice, in the shortest form. Reading works on a slice and
// returns parts of it, without copying; longer forms than necessary are accepted.
//
// # Invariant
//
// No length found in the input is believed before the bytes are there: memory is
// only ever allocated by the caller, for a count that [Decoder.Array] or
// [Decoder.Map] has compared with the number of bytes that remain. Nothing
// recurses.
//
// Source of the format: https://github.com/msgpack/msgpack/blob/master/spec.md
package msgpack

import (
	"encoding/binary"
	"math"
)

// MaxElement is the size in bytes of the longest binary or text string or
// extension that is read. Python's decoder has the same limit.
const MaxElement = 64 << 20

// AppendNil appends nil.
func AppendNil(b []byte) []byte { return append(b, 0xc0) }

// AppendBool appends a boolean.
func AppendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 0xc3)
	}
	return append(b, 0xc2)
}

// AppendUint appends an integer.
func AppendUint(b []byte, v uint64) []byte {
	switch {
	case v < 1<<7:
		return append(b, byte(v))
	case v < 1<<8:
		return append(b, 0xcc, byte(v))
	case v < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, 0xcd), uint16(v))
	case v < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, 0xce), uint32(v))
	}
	return binary.BigEndian.AppendUint64(append(b, 0xcf), v)
}

// AppendInt appends an integer.
func AppendInt(b []byte, v int64) []byte {
	switch {
	case v >= 0:
		return AppendUint(b, uint64(v))
	case v >= -1<<5:
		return append(b, byte(v))
	case v >= math.MinInt8:
		return append(b, 0xd0, byte(v))
	case v >= math.MinInt16:
		return binary.BigEndian.AppendUint16(append(b, 0xd1), uint16(v))
	case v >= math.MinInt32:
		return binary.BigEndian.AppendUint32(append(b, 0xd2), uint32(v))
	}
	return binary.BigEndian.AppendUint64(append(b, 0xd3), uint64(v))
}

// AppendFloat appends a float, always as 64 bits.
func AppendFloat(b []byte, v float64) []byte {
	return binary.BigEndian.AppendUint64(append(b, 0xcb), math.Float64bits(v))
}

// AppendBin appends a binary string.
func AppendBin[T ~string | ~[]byte](b []byte, v T) []byte {
	return append(AppendBinHeader(b, len(v)), v...)
}

// AppendBinHeader appends what precedes a binary string of n bytes.
func AppendBinHeader(b []byte, n int) []byte {
	switch {
	case n < 1<<8:
		return append(b, 0xc4, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, 0xc5), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(b, 0xc6), uint32(n))
}

// AppendStr appends a text string.
func AppendStr(b []byte, v string) []byte {
	n := len(v)
	switch {
	case n < 1<<5:
		b = append(b, 0xa0|byte(n))
	case n < 1<<8:
		b = append(b, 0xd9, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0xda), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xdb), uint32(n))
	}
	return append(b, v...)
}

// AppendArray appends what precedes the n elements of an array.
func AppendArray(b []byte, n int) []byte { return appendCount(b, n, 0x90, 0xdc) }

// AppendMap appends what precedes the n pairs of a map.
func AppendMap(b []byte, n int) []byte { return appendCount(b, n, 0x80, 0xde) }

func appendCount(b []byte, n int, fix, code byte) []byte {
	switch {
	case n < 1<<4:
		return append(b, fix|byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, code), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(b, code+1), uint32(n))
}

// AppendExt appends an extension.
func AppendExt(b []byte, typ int8, data []byte) []byte {
	n := len(data)
	switch {
	case n == 1:
		b = append(b, 0xd4)
	case n == 2:
		b = append(b, 0xd5)
	case n == 4:
		b = append(b, 0xd6)
	case n == 8:
		b = append(b, 0xd7)
	case n == 16:
		b = append(b, 0xd8)
	case n < 1<<8:
		b = append(b, 0xc7, byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, 0xc8), uint16(n))
	default:
		b = binary.BigEndian.AppendUint32(append(b, 0xc9), uint32(n))
	}
	return append(append(b, byte(typ)), data...)
}
