package pickle

import (
	"encoding/binary"
	"math"
	"strconv"
	"unicode/utf8"
)

// A machine executes the two pickles of a record on a stack of symbols. It knows
// of each value only what a reference can be made of.
type machine struct {
	data  []byte
	cells []cell
	ents  []entry // what tuples and lists hold, three places for each
	stack []entry
	marks []int32 // heights of the stack
	memo  []entry
	far   map[uint32]entry // slots that a memo in order would not have
	slots uint32           // how many are taken
	aux   []byte           // strings that are not in data as they are

	// reference is called at each BINPERSID, at offset q, with what it refers to.
	reference func(q int, pid entry) error
	// persID is called at each PERSID, at offset q.
	persID func(q int, line []byte) error
	mute   bool // neither is

	// python makes the machine take what Python's unpickler takes, and refuse what it
	// refuses. Without, it refuses what no pickler writes, and takes a value that it
	// need not understand as it is.
	python   bool
	protocol uint8 // python: the highest one of all instructions
	foreign  int   // python: offset after the first byte string with bytes above 127, or 0
}

type cellKind uint8

const (
	opaque cellKind = iota // may be anything
	noneCell
	atomCell // a number, or a string that is not looked at
	dictCell
	longTuple // of more than three entries
	longList
	stringCell
	classCell  // a GLOBAL instruction
	namedClass // STACK_GLOBAL, of two strings
	tupleCell
	listCell
)

// Values that references cannot be made of share these cells.
const (
	anything int32 = iota
	none
	atom
	dict
	manyValues  // a tuple of more than three
	manyMutable // one that has a list or a dict in it
	manyItems   // a list of more than three
)

var sharedCells = [...]cell{
	anything:    {},
	none:        {kind: noneCell},
	atom:        {kind: atomCell},
	dict:        {kind: dictCell, mutable: true},
	manyValues:  {kind: longTuple},
	manyMutable: {kind: longTuple, mutable: true},
	manyItems:   {kind: longList, mutable: true},
}

// A cell is a value.
type cell struct {
	kind    cellKind
	op      byte  // that made it
	n       uint8 // of a tuple or list: how many entries
	mutable bool  // a list, a dict, or a tuple of one: no key of a dict
	off     int32 // string: of its payload in data, or -1-offset in aux; class: of the instruction; else of the entries
	len     int32 // string, class: length in bytes
	pushes  int32 // how often it was pushed
	slot    int32 // class, named class: slot of the memo it was put into last, or -1
}

// An entry is a cell on the stack, in the memo or in a container.
type entry struct {
	cell int32
	end  int32 // offset after the instruction that pushed it and a PUT behind it
}

const (
	maxSize = math.MaxInt32 - 1
	// maxString is the longest string that is looked at, which the name of a
	// database might be.
	maxString = 255
	maxMemo   = 1 << 16 // slots above the number taken go to a map
)

func (m *machine) reset(data []byte) {
	m.data = data
	m.cells = append(m.cells[:0], sharedCells[:]...)
	m.ents, m.stack, m.marks = m.ents[:0], m.stack[:0], m.marks[:0]
	m.memo, m.aux, m.slots = m.memo[:0], m.aux[:0], 0
	m.far = nil
	m.protocol, m.foreign = 0, 0
}

// runRecord executes both pickles and returns the value of the first, valid as
// long as m is not reset, and the offset after the second.
func (m *machine) runRecord(data []byte) (class entry, end int, err error) {
	if len(data) > maxSize {
		return entry{}, 0, errorAt(0, "a record of %d bytes is too large", len(data))
	}
	m.reset(data)
	class, end, err = m.run(0)
	if err == nil {
		_, end, err = m.run(end)
	}
	return class, end, err
}

// run executes the pickle at pos and returns its value and the offset after it.
func (m *machine) run(pos int) (entry, int, error) {
	m.stack, m.marks = m.stack[:0], m.marks[:0]
	for {
		op, arg, argEnd, next, err := instruction(m.data, pos)
		if err != nil {
			return entry{}, 0, err
		}
		if op == opStop {
			if left := len(m.stack) + len(m.marks); left != 1 && !m.python || len(m.stack) == 0 {
				return entry{}, 0, errorAt(pos, "STOP with %d values on the stack", left)
			}
			return m.stack[len(m.stack)-1], next, nil
		}
		if m.python {
			if err := m.refused(op, pos, arg, argEnd); err != nil {
				return entry{}, 0, err
			}
		}
		if err := m.step(op, pos, arg, argEnd, next); err != nil {
			return entry{}, 0, err
		}
		pos = next
	}
}

func (m *machine) step(op byte, pos, arg, argEnd, next int) error {
	switch op {
	case opMark:
		m.marks = append(m.marks, int32(len(m.stack)))
	case opInt, opBinInt, opBinInt1, opBinInt2, opLong, opLong1, opLong4, opFloat, opBinFloat, opNewTrue, opNewFalse:
		m.push(atom, next)
	case opNone:
		m.push(none, next)
	case opEmptyDict:
		m.push(dict, next)
	case opEmptyTuple:
		m.push(manyValues, next)
	case opEmptySet, opExt1, opExt2, opExt4, opByteArray8, opNextBuffer:
		m.push(anything, next)
	case opBinString, opShortBinString, opBinUnicode, opShortBinUnicode, opBinUnicode8, opBinBytes, opShortBinBytes, opBinBytes8:
		if argEnd-arg > maxString {
			m.push(atom, next)
			break
		}
		m.push(m.newCell(cell{kind: stringCell, op: op, off: int32(arg), len: int32(argEnd - arg)}), next)
	case opString:
		m.pushEscaped(op, next, func(b []byte) ([]byte, bool) { return unquote(b, m.data[arg:argEnd]) })
	case opUnicode:
		m.pushEscaped(op, next, func(b []byte) ([]byte, bool) { return rawUnicode(b, m.data[arg:argEnd]) })
	case opGlobal:
		m.push(m.newCell(cell{kind: classCell, op: op, off: int32(pos), len: int32(next - pos), slot: -1}), next)
	case opEmptyList:
		m.push(m.newContainer(listCell, op, nil), next)
	case opTuple1, opTuple2, opTuple3:
		n := int(op-opTuple1) + 1
		if err := m.need(pos, n); err != nil {
			return err
		}
		at := len(m.stack) - n
		c := m.newContainer(tupleCell, op, m.stack[at:])
		m.stack = m.stack[:at]
		m.push(c, next)
	case opTuple, opList, opDict, opFrozenSet, opObj, opInst:
		at, err := m.popMark(pos)
		if err != nil {
			return err
		}
		c := anything
		switch items := m.stack[at:]; {
		case op == opTuple && len(items) <= 3:
			c = m.newContainer(tupleCell, op, items)
		case op == opTuple && m.anyMutable(items):
			c = manyMutable
		case op == opTuple:
			c = manyValues
		case op == opList && len(items) <= 3:
			c = m.newContainer(listCell, op, items)
		case op == opList:
			c = manyItems
		case op == opDict:
			c = dict
		case op == opObj && len(items) == 0:
			return errorAt(pos, "OBJ without a class")
		}
		m.stack = m.stack[:at]
		m.push(c, next)
	case opReduce, opNewObj, opStackGlobal:
		if err := m.need(pos, 2); err != nil {
			return err
		}
		at := len(m.stack) - 2
		c := m.combine(op, m.stack[at], m.stack[at+1])
		m.stack = m.stack[:at]
		m.push(c, next)
	case opNewObjEx:
		if err := m.need(pos, 3); err != nil {
			return err
		}
		m.stack = m.stack[:len(m.stack)-3]
		m.push(anything, next)
	case opBinPersID:
		if err := m.need(pos, 1); err != nil {
			return err
		}
		pid := m.pop()
		if m.reference != nil && !m.mute {
			if err := m.reference(pos, pid); err != nil {
				return err
			}
		}
		m.push(anything, next)
	case opPersID:
		if m.persID != nil && !m.mute {
			if err := m.persID(pos, m.data[arg:argEnd]); err != nil {
				return err
			}
		}
		m.push(anything, next)
	case opAppend:
		if err := m.need(pos, 2); err != nil {
			return err
		}
		m.extend(m.stack[len(m.stack)-2], m.stack[len(m.stack)-1:])
		m.pop()
	case opAppends, opSetItems, opAddItems:
		at, err := m.popMark(pos)
		if err != nil {
			return err
		}
		if at == m.floor() {
			return errorAt(pos, "opcode 0x%02x without a container", op)
		}
		if op == opAppends {
			m.extend(m.stack[at-1], m.stack[at:])
		}
		m.stack = m.stack[:at]
	case opSetItem:
		if err := m.need(pos, 3); err != nil {
			return err
		}
		m.stack = m.stack[:len(m.stack)-2]
	case opBuild:
		if err := m.need(pos, 2); err != nil {
			return err
		}
		m.pop()
	case opPop:
		if k := len(m.marks); k > 0 && int(m.marks[k-1]) == len(m.stack) {
			m.marks = m.marks[:k-1]
			break
		}
		if err := m.need(pos, 1); err != nil {
			return err
		}
		m.pop()
	case opPopMark:
		at, err := m.popMark(pos)
		if err != nil {
			return err
		}
		m.stack = m.stack[:at]
	case opDup:
		if err := m.need(pos, 1); err != nil {
			return err
		}
		m.again(m.stack[len(m.stack)-1], next)
	case opPut, opBinPut, opLongBinPut, opMemoize:
		if err := m.need(pos, 1); err != nil {
			return err
		}
		slot := m.slots
		if op != opMemoize {
			var err error
			if slot, err = m.slot(op, pos, arg, argEnd); err != nil {
				return err
			}
		}
		m.put(slot, pos, next)
	case opGet, opBinGet, opLongBinGet:
		slot, err := m.slot(op, pos, arg, argEnd)
		if err != nil {
			return err
		}
		e, ok := m.get(slot)
		if !ok {
			return errorAt(pos, "nothing was put into slot %d of the memo", slot)
		}
		m.again(e, next)
	case opProto:
		if m.data[arg] > maxProtocol {
			return errorAt(pos, "unknown protocol %d", m.data[arg])
		}
	case opFrame:
	case opReadonlyBuffer:
		return m.need(pos, 1)
	default:
		return errorAt(pos, "unknown opcode 0x%02x", op)
	}
	return nil
}

func (m *machine) newCell(c cell) int32 {
	m.cells = append(m.cells, c)
	return int32(len(m.cells) - 1)
}

func (m *machine) newContainer(kind cellKind, op byte, items []entry) int32 {
	off := len(m.ents)
	m.ents = append(m.ents, entry{}, entry{}, entry{})
	copy(m.ents[off:], items)
	mutable := kind == listCell || m.anyMutable(items)
	return m.newCell(cell{kind: kind, op: op, n: uint8(len(items)), mutable: mutable, off: int32(off)})
}

func (m *machine) anyMutable(items []entry) bool {
	for _, e := range items {
		if m.cells[e.cell].mutable {
			return true
		}
	}
	return false
}

// push pushes a new value.
func (m *machine) push(c int32, next int) {
	m.cells[c].pushes = 1
	m.stack = append(m.stack, entry{c, int32(next)})
}

// again pushes a value that exists.
func (m *machine) again(e entry, next int) {
	m.cells[e.cell].pushes++
	m.stack = append(m.stack, entry{e.cell, int32(next)})
}

func (m *machine) pop() entry {
	e := m.stack[len(m.stack)-1]
	m.stack = m.stack[:len(m.stack)-1]
	return e
}

// floor is the height of the stack below which nothing may be popped. To Python,
// marks are no floor.
func (m *machine) floor() int {
	if k := len(m.marks); k > 0 && !m.python {
		return int(m.marks[k-1])
	}
	return 0
}

func (m *machine) need(pos, n int) error {
	if len(m.stack)-m.floor() < n {
		return errorAt(pos, "opcode 0x%02x needs %d values on the stack", m.data[pos], n)
	}
	return nil
}

// popMark removes the topmost mark and returns its height.
func (m *machine) popMark(pos int) (int, error) {
	k := len(m.marks)
	if k == 0 {
		return 0, errorAt(pos, "opcode 0x%02x without a mark", m.data[pos])
	}
	at := int(m.marks[k-1])
	m.marks = m.marks[:k-1]
	if at > len(m.stack) { // only where marks are no floor
		if op := m.data[pos]; op != opDict && op != opPopMark {
			return 0, errorAt(pos, "opcode 0x%02x with a mark above the stack", op)
		}
		at = len(m.stack)
	}
	return at, nil
}

// extend appends to a list. What is in it is forgotten at the fourth entry.
func (m *machine) extend(list entry, items []entry) {
	c := &m.cells[list.cell]
	if c.kind != listCell {
		return
	}
	if int(c.n)+len(items) > 3 {
		c.kind = longList
		return
	}
	copy(m.ents[int(c.off)+int(c.n):], items)
	c.n += uint8(len(items))
}

// entries returns what a tuple or list holds.
func (m *machine) entries(c *cell) []entry { return m.ents[c.off : c.off+int32(c.n)] }

// str returns the bytes of a string.
func (m *machine) str(c *cell) []byte {
	if c.off < 0 {
		return m.aux[-1-c.off:][:c.len]
	}
	return m.data[c.off:][:c.len]
}

func (m *machine) slot(op byte, pos, arg, argEnd int) (uint32, error) {
	switch op {
	case opBinPut, opBinGet:
		return uint32(m.data[arg]), nil
	case opLongBinPut, opLongBinGet:
		return binary.LittleEndian.Uint32(m.data[arg:]), nil
	}
	line := string(m.data[arg:argEnd])
	if m.python {
		line = decimal(line)
	}
	n, err := strconv.ParseUint(line, 10, 32)
	if err != nil {
		return 0, errorAt(pos, "%.20q is no slot of the memo", m.data[arg:argEnd])
	}
	return uint32(n), nil
}

func (m *machine) get(slot uint32) (entry, bool) {
	if slot < uint32(len(m.memo)) {
		e := m.memo[slot]
		return e, e.end != 0
	}
	e, ok := m.far[slot]
	return e, ok
}

func (m *machine) put(slot uint32, pos, next int) {
	top := &m.stack[len(m.stack)-1]
	if int(top.end) == pos {
		top.end = int32(next)
	}
	if c := &m.cells[top.cell]; c.kind == classCell || c.kind == namedClass {
		c.slot = int32(min(slot, math.MaxInt32))
	}
	if _, taken := m.get(slot); !taken {
		m.slots++
	}
	switch {
	case slot < uint32(len(m.memo)):
		m.memo[slot] = *top
	case slot <= m.slots+maxMemo && m.far == nil:
		for uint32(len(m.memo)) <= slot {
			m.memo = append(m.memo, entry{})
		}
		m.memo[slot] = *top
	default:
		if m.far == nil {
			m.far = make(map[uint32]entry)
		}
		m.far[slot] = *top
	}
}

// combine is the value of an opcode that makes one of two.
func (m *machine) combine(op byte, a, b entry) int32 {
	fn, args := &m.cells[a.cell], &m.cells[b.cell]
	switch {
	case op == opStackGlobal && fn.kind == stringCell && args.kind == stringCell:
		c := m.newContainer(namedClass, op, []entry{a, b})
		m.cells[c].slot = -1
		return c
	case op == opReduce && fn.kind == classCell && args.kind == tupleCell && args.n == 2 &&
		string(m.data[fn.off:][:fn.len]) == "c_codecs\nencode\n":
		return m.encoded(args)
	}
	return 0
}

// encoded is bytes as Python 3 pickles them for protocols below 3:
// _codecs.encode(text, "latin1").
func (m *machine) encoded(args *cell) int32 {
	e := m.entries(args)
	text, codec := &m.cells[e[0].cell], &m.cells[e[1].cell]
	if text.kind != stringCell || codec.kind != stringCell {
		return 0
	}
	if s := string(m.str(codec)); s != "latin1" && s != "latin-1" {
		return 0
	}
	off := len(m.aux)
	for b := m.str(text); len(b) > 0; {
		r, n := utf8.DecodeRune(b)
		if r > 0xff || r == utf8.RuneError && n == 1 {
			m.aux = m.aux[:off]
			return 0
		}
		// m.str(text) may be a part of aux, which stays valid if aux moves.
		m.aux = append(m.aux, byte(r))
		b = b[n:]
	}
	return m.newCell(cell{kind: stringCell, op: opReduce, off: int32(-1 - off), len: int32(len(m.aux) - off)})
}

// pushEscaped pushes a string of which data has an escaped form.
func (m *machine) pushEscaped(op byte, next int, decode func([]byte) ([]byte, bool)) {
	off := len(m.aux)
	aux, ok := decode(m.aux)
	if !ok || len(aux)-off > maxString {
		m.aux = aux[:off]
		m.push(atom, next)
		return
	}
	m.aux = aux
	m.push(m.newCell(cell{kind: stringCell, op: op, off: int32(-1 - off), len: int32(len(aux) - off)}), next)
}
