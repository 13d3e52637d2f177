// Package fsformat reads and writes Data.fs, the file of ZODB's FileStorage:
// transactions one after the other, each with its data records, in which
// everything ever committed can be found again.
//
// A [Reader] never writes to its file, never holds more than one record of it in
// memory, and tolerates another process appending to it. A [Writer] appends
// whole transactions; until the last byte of one is on disk, every reader and
// every restart sees none of it. [Check] verifies all that can be verified,
// [Salvage] recovers what is intact from a damaged file.
//
// # Invariant
//
// Nothing is dropped in silence. What follows the last finished transaction is a
// [Tail] with its length and its reason. Anything else that cannot be what a
// writer wrote is a [CorruptError] naming the offset, the transaction and the
// object, and ends the iteration, the load or the scan that met it. Ids that do not
// increase are one of kind [ErrOrder]; Options.Renumber reads such a file whole. What
// can be read although it is damaged, and would not be seen in a copy, is
// reported by [Checked].
//
// # Format
//
// All integers are big-endian; positions are absolute.
//
//	offset 0: "FS21" (Python 2) or "FS30" (Python 3), then transactions
//
//	transaction   0  8  tid, increasing
//	              8  8  length of this record without the last 8 bytes
//	             16  1  status: ' ' committed, 'p' packed, 'c' voted only, 'u' undone in place
//	             17  2  length of user
//	             19  2  length of description
//	             21  2  length of extension
//	             23     user, description, extension, data records
//	                 8  the length again
//
//	data record   0  8  oid
//	              8  8  tid of the transaction
//	             16  8  position of the previous record of this object, or 0
//	             24  8  position of the transaction
//	             32  2  always 0
//	             34  8  length of the data, or 0
//	             42     the data; if its length is 0, 8 bytes: the position of an
//	                    earlier record whose data this one has, or 0: no object
package fsformat
