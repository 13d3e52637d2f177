// Package zdump writes and reads the text form of zodbtools' "zodb dump": every
// transaction with all its records, in full, so that a database can be inspected,
// compared and made again from it.
//
// # Format
//
//	txn <tid> <quoted status>
//	user <quoted>
//	description <quoted>
//	extension <quoted>
//	obj <oid> delete                            the object does not exist any more
//	obj <oid> from <tid>                        the data it has in that transaction
//	obj <oid> <size> <hash>:<digest>, LF, data, LF
//	obj <oid> <size> <hash>:<digest> -          without the data
//
// Objects are in ascending order; an empty line ends a transaction. Ids are 16
// hexadecimal digits.
package zdump

import (
	"bufio"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
	"unicode"
	"unicode/utf8"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/txn"
)

// Writer writes transactions.
type Writer struct {
	w        *bufio.Writer
	hashOnly bool
	line     []byte
	order    []place
}

// place is where a record comes in the order of its transaction.
type place struct {
	oid   tid.OID
	n     int // in the order of the source
	size  int
	taken *txn.Record
}

// chunk is how many bytes of data are held at most, beside the greatest record,
// to bring the objects of a transaction in order.
const chunk = 64 << 20

// NewWriter returns a writer. With hashOnly, data are left out and only their
// digests written: enough to compare, not to restore.
func NewWriter(w io.Writer, hashOnly bool) *Writer {
	return &Writer{w: bufio.NewWriterSize(w, 64<<10), hashOnly: hashOnly}
}

// Write writes a transaction.
func (w *Writer) Write(t *txn.Transaction) error {
	w.line = AppendHead(w.line[:0], t)
	w.w.Write(w.line) // an error stays until Flush
	if err := w.records(t); err != nil {
		return fmt.Errorf("dumping transaction %v: %w", t.TID, err)
	}
	return w.w.WriteByte('\n')
}

// AppendHead appends the lines with which a transaction begins.
func AppendHead(b []byte, t *txn.Transaction) []byte {
	b = append(b, "txn "...)
	b = append(b, t.TID.String()...)
	b = append(appendQuoted(append(b, ' '), []byte{t.Status}), '\n')
	return AppendMetadata(b, t)
}

// AppendMetadata appends those of them that say what a transaction is about: user,
// description and extension.
func AppendMetadata(b []byte, t *txn.Transaction) []byte {
	b = appendQuoted(append(b, "user "...), t.User)
	b = appendQuoted(append(b, "\ndescription "...), t.Description)
	b = appendQuoted(append(b, "\nextension "...), t.Extension)
	return append(b, '\n')
}

// Flush writes what is buffered.
func (w *Writer) Flush() error { return w.w.Flush() }

// records writes the objects in order. The source has them in another: it is read
// as often as needed to hold no more than a chunk at a time, which is once more in
// practice.
func (w *Writer) records(t *txn.Transaction) error {
	if t.Records == nil {
		return nil
	}
	w.order = w.order[:0]
	sorted := true
	for rec, err := range t.Records {
		if err != nil {
			return err
		}
		if n := len(w.order); n > 0 && w.order[n-1].oid > rec.OID {
			sorted = false
		}
		w.order = append(w.order, place{oid: rec.OID, n: len(w.order), size: len(rec.Data)})
	}
	if sorted {
		for rec, err := range t.Records {
			if err != nil {
				return err
			}
			if err := w.record(rec); err != nil {
				return err
			}
		}
		return nil
	}
	slices.SortStableFunc(w.order, func(a, b place) int {
		switch {
		case a.oid < b.oid:
			return -1
		case a.oid > b.oid:
			return 1
		}
		return a.n - b.n
	})
	for rest := w.order; len(rest) > 0; {
		n, size := 0, 0
		byPlace := map[int]*place{}
		for n < len(rest) && (n == 0 || size+rest[n].size <= chunk) {
			size += rest[n].size
			byPlace[rest[n].n] = &rest[n]
			n++
		}
		i := 0
		for rec, err := range t.Records {
			if err != nil {
				return err
			}
			if p := byPlace[i]; p != nil {
				c := *rec
				c.Data = slices.Clone(rec.Data)
				p.taken = &c
			}
			i++
		}
		for i := range rest[:n] {
			p := &rest[i]
			if p.taken == nil {
				return fmt.Errorf("object %v has disappeared since it was first read", p.oid)
			}
			if err := w.record(p.taken); err != nil {
				return err
			}
			p.taken = nil
		}
		rest = rest[n:]
	}
	return nil
}

func (w *Writer) record(rec *txn.Record) error {
	b := append(w.line[:0], "obj "...)
	b = append(b, rec.OID.String()...)
	switch {
	case rec.Data == nil:
		b = append(b, " delete\n"...)
	case rec.DataTID != 0:
		b = append(b, " from "...)
		b = append(b, rec.DataTID.String()...)
		b = append(b, '\n')
	default:
		sum := sha1.Sum(rec.Data)
		b = strconv.AppendInt(append(b, ' '), int64(len(rec.Data)), 10)
		b = hex.AppendEncode(append(b, " sha1:"...), sum[:])
		if w.hashOnly {
			b = append(b, " -\n"...)
			break
		}
		b = append(b, '\n')
		w.w.Write(b)
		w.w.Write(rec.Data)
		b = append(b[:0], '\n')
	}
	w.line = b
	_, err := w.w.Write(b)
	return err
}

// appendQuoted appends b in quotes, with what is not printable escaped, as
// pygolang's strconv does.
func appendQuoted(out, b []byte) []byte {
	out = append(out, '"')
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		switch {
		case r == '\\' || r == '"':
			out = append(out, '\\', byte(r))
		case r == '\t':
			out = append(out, `\t`...)
		case r == '\n':
			out = append(out, `\n`...)
		case r == '\r':
			out = append(out, `\r`...)
		case r >= 0x20 && r < 0x7f,
			r >= 0x80 && (r != utf8.RuneError || n > 1) && unicode.In(r, unicode.L, unicode.N, unicode.P, unicode.S):
			out = append(out, b[:n]...)
		default:
			for _, c := range b[:n] {
				out = fmt.Appendf(out, `\x%02x`, c)
			}
		}
		b = b[n:]
	}
	return append(out, '"')
}
