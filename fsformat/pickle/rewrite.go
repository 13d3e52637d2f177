package pickle

import (
	"cmp"
	"encoding/binary"
	"slices"
)

// Mapping tells what references are to become.
type Mapping interface {
	// Local returns the new id of an object of the database of the record, and
	// whether it is a mount point: the object found there is then of another class.
	Local(oid uint64) (n uint64, mount bool)
	// Foreign returns the new id of an object of the named database, and whether it is
	// a mount point of that. ok is false for a database that is not merged: the reference
	// stays as it is.
	Foreign(database string, oid uint64) (n uint64, mount, ok bool)
}

// Rewriter changes the references of records and nothing else. It may be reused,
// which saves allocations, by one goroutine.
//
// Nothing is unpickled and no slot of the memo moves: sharing, the kinds of strings
// and integers, and the protocol of the pickles survive. The 8 bytes of an object
// id are overwritten where they stand if nothing but references uses them; where
// the same string is plain data too, POP and a new one are inserted after each use
// in a reference.
type Rewriter struct {
	// Python3 tells that what reads the records is Python 3. It takes an object id that
	// Python 2 has pickled, as a str, only if all bytes are below 128. A new one that is
	// not so becomes bytes, which ZODB before 5.4 on Python 2 does not know. Default: it
	// stays a str.
	Python3 bool

	m       machine
	mapping Mapping
	uses    []use
	edits   []edit
	lits    []byte
	out     []byte

	inPlace, inserted, reshaped int // of the last record, for tests
}

// A use is an object id in a reference whose form stays.
type use struct {
	cell, end int32
	n         uint64
}

// An edit replaces del bytes at off by lits[from:to].
type edit struct {
	off, del, from, to int
}

// Rewrite returns the record with its references mapped: the record itself if none
// changes, otherwise bytes that are valid until the next call. It refuses, with an
// error, what it does not understand wholly. A wrapped record, see [Unwrap], is
// unwrapped, and wrapped again if it changed.
func (rw *Rewriter) Rewrite(record []byte, mapping Mapping) ([]byte, error) {
	plain, wrapped, err := Unwrap(record)
	if err != nil {
		return nil, err
	}
	rw.mapping = mapping
	rw.uses, rw.edits, rw.lits = rw.uses[:0], rw.edits[:0], rw.lits[:0]
	rw.inPlace, rw.inserted, rw.reshaped = 0, 0, 0
	if rw.m.reference == nil {
		rw.m.reference = rw.found
		rw.m.persID = func(q int, _ []byte) error {
			return errorAt(q, "a persistent reference as text, which ZODB never writes")
		}
	}
	if _, _, err := rw.m.runRecord(plain); err != nil {
		return nil, err
	}
	rw.decideUses()
	if len(rw.edits) == 0 {
		return record, nil
	}
	rw.apply(plain)
	if wrapped {
		return wrap(rw.out, record)
	}
	return rw.out, nil
}

// found decides about the reference at q.
func (rw *Rewriter) found(q int, e entry) error {
	m := &rw.m
	p, ok := m.match(e)
	if !ok {
		return errorAt(q, "a persistent reference of unknown form")
	}
	if c := &m.cells[e.cell]; c.kind != stringCell {
		if c.pushes != 1 {
			return errorAt(q, "a persistent reference that is used more than once")
		}
		if c.kind == listCell && c.n == 2 && m.cells[m.entries(c)[1].cell].pushes != 1 {
			return errorAt(q, "a part of a persistent reference that is used more than once")
		}
	}
	old := m.oid(p.oid)
	if p.hasDB {
		n, mount, ok := rw.mapping.Foreign(string(m.str(&m.cells[p.db.cell])), old)
		if !ok {
			return nil
		}
		from := rw.begin()
		switch p.kind {
		case MultiOID:
			rw.literal(p.oid, n)
		case Multi:
			at := len(rw.lits)
			rw.lits = append(rw.lits, opMark)
			rw.literal(p.oid, n)
			if mount || !rw.class(p.class) {
				rw.lits = rw.lits[:at]
				rw.literal(p.oid, n)
				break
			}
			rw.lits = append(rw.lits, opTuple)
		case Weak:
			rw.lits = append(rw.lits, "(X\x01\x00\x00\x00w("...)
			rw.literal(p.oid, n)
			rw.lits = append(rw.lits, opTuple, opList)
		}
		rw.insert(q, from)
		rw.reshaped++
		return nil
	}
	n, mount := rw.mapping.Local(old)
	if mount && p.hasClass {
		from := rw.begin()
		rw.literal(p.oid, n)
		rw.insert(q, from)
		rw.reshaped++
		return nil
	}
	rw.uses = append(rw.uses, use{p.oid.cell, p.oid.end, n})
	return nil
}

// begin starts an insertion that replaces the top of the stack.
func (rw *Rewriter) begin() int {
	from := len(rw.lits)
	rw.lits = append(rw.lits, opPop)
	return from
}

func (rw *Rewriter) insert(off, from int) {
	rw.edits = append(rw.edits, edit{off, 0, from, len(rw.lits)})
}

// literal writes an object id in a way the readers of the record know, since it
// has the old one so.
func (rw *Rewriter) literal(old entry, n uint64) {
	op := byte(opShortBinString)
	switch rw.m.cells[old.cell].op {
	case opShortBinBytes, opBinBytes, opBinBytes8:
		op = opShortBinBytes
	default:
		if rw.Python3 && !isASCII(n) {
			op = opShortBinBytes
		}
	}
	rw.lits = binary.BigEndian.AppendUint64(append(rw.lits, op, 8), n)
}

// isASCII reports whether all bytes of an object id are below 128.
func isASCII(n uint64) bool { return n&0x8080808080808080 == 0 }

// class writes a class again. It returns false if that is not possible.
func (rw *Rewriter) class(e entry) bool {
	m := &rw.m
	c := &m.cells[e.cell]
	if c.kind != classCell && c.kind != namedClass {
		return false
	}
	if c.slot >= 0 {
		if in, ok := m.get(uint32(c.slot)); ok && in.cell == e.cell {
			if c.slot < 256 {
				rw.lits = append(rw.lits, opBinGet, byte(c.slot))
			} else {
				rw.lits = binary.LittleEndian.AppendUint32(append(rw.lits, opLongBinGet), uint32(c.slot))
			}
			return true
		}
	}
	if c.kind == namedClass {
		for _, name := range m.entries(c) {
			s := m.str(&m.cells[name.cell])
			rw.lits = append(append(rw.lits, opShortBinUnicode, byte(len(s))), s...)
		}
		rw.lits = append(rw.lits, opStackGlobal)
		return true
	}
	rw.lits = append(rw.lits, m.data[c.off:][:c.len]...)
	return true
}

// decideUses makes the edits of the references whose form stays.
func (rw *Rewriter) decideUses() {
	m := &rw.m
	slices.SortStableFunc(rw.uses, func(a, b use) int { return int(a.cell) - int(b.cell) })
	for rest := rw.uses; len(rest) > 0; {
		k := 1
		for k < len(rest) && rest[k].cell == rest[0].cell {
			k++
		}
		uses := rest[:k]
		rest = rest[k:]
		c := &m.cells[uses[0].cell]
		old, n := m.oid(entry{cell: uses[0].cell}), uses[0].n
		same, changed := true, false
		for _, u := range uses {
			same = same && u.n == n
			changed = changed || u.n != old
		}
		if !changed {
			continue
		}
		from := len(rw.lits)
		switch c.op {
		case opShortBinString, opBinString, opShortBinBytes, opBinBytes:
			if same && int(c.pushes) == len(uses) {
				if rw.Python3 && c.op == opShortBinString {
					rw.literal(entry{cell: uses[0].cell}, n) // of the same length
					rw.edits = append(rw.edits, edit{int(c.off) - 2, 10, from, len(rw.lits)})
					rw.inPlace++
					continue
				}
				if rw.Python3 && c.op == opBinString && !isASCII(n) {
					break
				}
				rw.lits = binary.BigEndian.AppendUint64(rw.lits, n)
				rw.edits = append(rw.edits, edit{int(c.off), 8, from, len(rw.lits)})
				rw.inPlace++
				continue
			}
		}
		for _, u := range uses {
			from := rw.begin()
			rw.literal(entry{cell: u.cell}, u.n)
			rw.insert(int(u.end), from)
			rw.inserted++
		}
	}
}

func (rw *Rewriter) apply(record []byte) {
	// What is inserted comes before what is replaced at the same place.
	slices.SortStableFunc(rw.edits, func(a, b edit) int { return cmp.Or(a.off-b.off, a.del-b.del) })
	rw.out = rw.out[:0]
	pos := 0
	for _, e := range rw.edits {
		rw.out = append(rw.out, record[pos:e.off]...)
		rw.out = append(rw.out, rw.lits[e.from:e.to]...)
		pos = e.off + e.del
	}
	rw.out = append(rw.out, record[pos:]...)
}
