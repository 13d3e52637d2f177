package pickle

import (
	"bytes"
	"encoding/binary"
)

// RefKind tells what a reference means.
type RefKind uint8

const (
	Strong     RefKind = iota // (oid, class), or the oid alone
	Weak                      // ['w', (oid,)] or ['w', (oid, database)]
	WeakLegacy                // [oid]
	Multi                     // ['m', (database, oid, class)]: another database
	MultiOID                  // ['n', (database, oid)]: another database, no class
)

func (k RefKind) String() string {
	switch k {
	case Strong:
		return "strong"
	case Weak:
		return "weak"
	case WeakLegacy:
		return "weak-legacy"
	case Multi:
		return "multi"
	}
	return "multi-oid"
}

// Ref is a reference from a record to an object. Only strong ones keep the object
// alive.
type Ref struct {
	Kind     RefKind
	OID      uint64
	Database []byte // of the object; empty: the same. A part of the record or of the Scanner
}

// Scanner finds the references and the class of records. It may be reused, which
// saves allocations, by one goroutine.
type Scanner struct {
	// Python makes References refuse a record that Python's unpickler, as ZODB uses
	// it, refuses whatever the classes are, and no other: text that is no UTF-8, a
	// key without a value, an unquoted string, a list as a key. Default: what is in
	// values that are no references is not looked at.
	Python bool

	m      machine
	refs   []Ref
	untold bool
}

// References returns the references of a record in the order they are pickled,
// repetitions included. The result is valid until the next call. The record must
// not be wrapped, see [Unwrap].
func (s *Scanner) References(record []byte) ([]Ref, error) {
	s.refs, s.untold = s.refs[:0], false
	if s.m.reference == nil {
		s.m.reference = s.found
		s.m.persID = s.foundText
	}
	s.m.python = s.Python
	_, _, err := s.m.runRecord(record)
	s.m.python = false
	return s.refs, err
}

// Len returns where the second pickle of a record ends.
func (s *Scanner) Len(record []byte) (int, error) {
	s.m.mute = true
	_, end, err := s.m.runRecord(record)
	s.m.mute = false
	return end, err
}

// Protocol returns the highest pickle protocol that an instruction of the last
// record belongs to, if it is above 3, what ZODB reads; otherwise 0. It needs
// Python, as does ByteStrings.
func (s *Scanner) Protocol() int {
	if s.m.protocol <= zodbProtocol {
		return 0
	}
	return int(s.m.protocol)
}

// Untold reports whether the last record has a persistent reference that is made by
// calling something, and is therefore not known.
func (s *Scanner) Untold() bool { return s.untold }

// ByteStrings reports whether the last record has a str of Python 2 with bytes
// above 127, which ZODB on Python 3 does not load.
func (s *Scanner) ByteStrings() bool { return s.m.foreign != 0 }

func (s *Scanner) found(q int, e entry) error {
	p, ok := s.m.match(e)
	if !ok && s.Python && s.m.untold(e) {
		s.untold = true
		return nil
	}
	if !ok {
		return errorAt(q, "a persistent reference of unknown form")
	}
	ref := Ref{Kind: p.kind, OID: s.m.oid(p.oid)}
	if p.hasDB {
		ref.Database = s.m.str(&s.m.cells[p.db.cell])
	}
	s.refs = append(s.refs, ref)
	return nil
}

func (s *Scanner) foundText(q int, line []byte) error {
	if len(line) != 8 {
		return errorAt(q, "a persistent reference of unknown form: %.20q", line)
	}
	s.refs = append(s.refs, Ref{OID: binary.BigEndian.Uint64(line)})
	return nil
}

// A pid is a persistent reference taken apart.
type pid struct {
	kind      RefKind
	oid       entry
	db, class entry
	hasDB     bool
	hasClass  bool
}

func (m *machine) oid(e entry) uint64 { return binary.BigEndian.Uint64(m.str(&m.cells[e.cell])) }

func (m *machine) isOID(e entry) bool {
	c := &m.cells[e.cell]
	return c.kind == stringCell && c.len == 8
}

func (m *machine) isString(e entry) bool { return m.cells[e.cell].kind == stringCell }

// match recognises the forms of persistent references.
func (m *machine) match(e entry) (p pid, ok bool) {
	c := &m.cells[e.cell]
	switch {
	case m.isOID(e):
		return pid{kind: Strong, oid: e}, true
	case c.kind == tupleCell && c.n == 2:
		in := m.entries(c)
		return pid{kind: Strong, oid: in[0], class: in[1], hasClass: true}, m.isOID(in[0])
	case c.kind == listCell && c.n == 1:
		in := m.entries(c)
		return pid{kind: WeakLegacy, oid: in[0]}, m.isOID(in[0])
	case c.kind == listCell && c.n == 2:
		in := m.entries(c)
		letter, args := &m.cells[in[0].cell], &m.cells[in[1].cell]
		if letter.kind != stringCell || letter.len != 1 || args.kind != tupleCell {
			return p, false
		}
		a := m.entries(args)
		switch l := m.str(letter)[0]; {
		case l == 'w' && len(a) == 1:
			return pid{kind: Weak, oid: a[0]}, m.isOID(a[0])
		case l == 'w' && len(a) == 2:
			return pid{kind: Weak, oid: a[0], db: a[1], hasDB: true}, m.isOID(a[0]) && m.isString(a[1])
		case l == 'n' && len(a) == 2:
			return pid{kind: MultiOID, oid: a[1], db: a[0], hasDB: true}, m.isOID(a[1]) && m.isString(a[0])
		case l == 'm' && len(a) == 3:
			return pid{kind: Multi, oid: a[1], db: a[0], class: a[2], hasDB: true, hasClass: true}, m.isOID(a[1]) && m.isString(a[0])
		}
	}
	return p, false
}

// Class returns the module and the name of the class of a record. They are parts
// of the record or of s, valid until the next call. Both are empty if the class is
// itself a persistent object.
func (s *Scanner) Class(record []byte) (module, name []byte, err error) {
	if module, name, ok := plainClass(record); ok {
		return module, name, nil
	}
	if len(record) > maxSize {
		return nil, nil, errorAt(0, "a record of %d bytes is too large", len(record))
	}
	s.m.reset(record)
	s.m.mute = true
	top, _, err := s.m.run(0)
	s.m.mute = false
	if err != nil {
		return nil, nil, err
	}
	m := &s.m
	c := &m.cells[top.cell]
	if c.kind == tupleCell && c.n > 0 {
		c = &m.cells[m.entries(c)[0].cell]
	}
	switch c.kind {
	case classCell:
		module, name, _ = globalNames(m.data[c.off+1 : c.off+c.len-1])
	case namedClass, tupleCell:
		in := m.entries(c)
		if len(in) != 2 || !m.isString(in[0]) || !m.isString(in[1]) {
			return nil, nil, errorAt(0, "the first pickle names no class")
		}
		module, name = m.str(&m.cells[in[0].cell]), m.str(&m.cells[in[1].cell])
	default:
		if bytes.IndexByte(record, opBinPersID) < 0 {
			return nil, nil, errorAt(0, "the first pickle names no class")
		}
	}
	return module, name, nil
}

// plainClass is [Scanner.Class] for the usual form.
func plainClass(b []byte) (module, name []byte, ok bool) {
	if len(b) > 2 && b[0] == opProto && b[1] <= maxProtocol {
		b = b[2:]
	}
	if len(b) > 0 && b[0] == opMark {
		b = b[1:]
	}
	if len(b) == 0 || b[0] != opGlobal {
		return nil, nil, false
	}
	return globalNames(b[1:])
}

// globalNames splits the operand of GLOBAL. What follows it is ignored.
func globalNames(b []byte) (module, name []byte, ok bool) {
	module, rest, ok := bytes.Cut(b, []byte{'\n'})
	if !ok {
		return nil, nil, false
	}
	name, _, _ = bytes.Cut(rest, []byte{'\n'})
	return module, name, true
}

// IsBlob reports whether a record is that of a ZODB blob: its data is then in a
// file of its own.
func IsBlob(record []byte) bool {
	module, name, ok := plainClass(record)
	return ok && string(module) == "ZODB.blob" && string(name) == "Blob"
}
