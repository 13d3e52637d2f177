// Package snapshot holds the formats of a backup repository as plain values: what an
// object of it is called, and what its bytes say.
//
// A repository keeps lineages, histories that only grow. Their transactions are in
// segments, write-once objects that hold all transactions of a range of TIDs. Each
// step of the log is a [Tail]: a signed note with a small segment behind it, or one
// that names segments stored before. A [Manifest] sums up all tails up to one of
// them. Other notes are the [Marker] of the repository, the [Epoch] of its encryption
// key, the [Lineage], and what is said about keeping, deleting and proving:
// [Policy], [Doom], [Void] and [Proof].
//
// Nothing here does I/O but through the io.Reader, io.ReaderAt or io.WriterAt that it
// is given. Nothing knows a clock, a store or a log.
//
// # Invariant
//
// What was encoded is never encoded otherwise by a later version: a new form has a
// greater number of version, and a reader that does not know it refuses it, naming
// both numbers. No decoder skips what it does not know, with three exceptions: keys of
// JSON that begin with x-, lines of index runs, and lines of blobs, which the caller
// finds in Reserved and must not restore without. No length that is read is trusted
// before it was compared with what is there.
//
// # Notes
//
// A note is a text of JSON lines, an empty line and Ed25519 signatures, in the format
// of golang.org/x/mod/sumdb/note. It is valid with a trusted signature of the [Role]
// that writes such notes.
//
// # Segments
//
// A segment is a zstd stream, in an age file unless the repository is not encrypted.
// Its frames contain the text of a dump ([github.com/neozodb/neo/fsformat/zdump]), so
// that "age -d | zstd -d" gives what any reader of such dumps takes. Skippable frames
// say what it is and where each record is:
//
//	skippable 0x184D2A5A  header (72 bytes)
//	zstd frame × n        text, ≤ 4 MiB each; the first is at 80
//	skippable 0x184D2A5B  index block × m (one zstd frame each)
//	skippable 0x184D2A5C  directory of the index blocks
//	skippable 0x184D2A5D  table of the zstd frames
//	skippable 0x184D2A5E  footer (160 bytes), always the last 168 bytes
//
// The magic and the length of a skippable frame are little-endian, as zstd demands; all
// else is big-endian. Offsets count from the start of the plaintext and lead to the
// magic of a frame; lengths and hashes of frames include magic and length.
//
//	header   0  8  "NEOBKSG1"           footer   0  8  "NEOBKFT1"
//	         8 16  id of the repository          8  8  offset of the first index block,
//	        24 16  lineage                             of the directory if there is none
//	        40  8  after (exclusive)            16  8  offset of the directory
//	        48  8  upto (inclusive)             24  4  its length
//	        56  8  exact_from                   28  8  offset of the frame table
//	        64  1  flags: 1 continues,          36  4  its length
//	               2 continued                  40  8  length of the text
//	        65  7  zero                         48  8  transactions
//	                                            56  8  records
//	                                            64  8  greatest oid, 0 if there is no record
//	                                            72  8  first tid, 0 if there is none
//	                                            80  8  last tid, 0 if there is none
//	                                            88 32  SHA-256 of the text
//	                                           120 32  SHA-256 of the contents of
//	                                                   directory and frame table
//	                                           152  8  zero
//
// With uv an unsigned LEB128 of at most 10 bytes without needless ones:
//
//	frame table, per frame      uv length of text, uv stored length,
//	                            8 tid of the first transaction that touches it,
//	                            16 first bytes of the SHA-256 of the frame
//	index entry                 uv oid minus that of the entry before (first: the oid),
//	                            8 tid, uv 4 × place of the line in the text + kind
//	directory, per block        8 oid, 8 tid of its first entry, uv offset, uv length,
//	                            16 first bytes of the SHA-256 of its skippable frame
//
// Entries ascend by oid; those of one oid descend by tid. Kinds are 0 data, 1 no data
// (a deletion, or a copy of such a revision), 2 a copy of an earlier revision that has
// data. A transaction that is cut between records goes on in a segment whose after and
// upto are both its tid.
package snapshot
