// Package wire reads and writes what ZEO clients and servers say to each other:
// frames, and in them messages of plain values as pickles or as msgpack. Nothing that
// a peer sends is ever built as an object, and memory is bounded by what has come.
//
// Values are decoded without copies: they refer to the frame and to the decoder.
package wire
