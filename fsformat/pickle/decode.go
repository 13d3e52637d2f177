package pickle

import (
	"encoding/binary"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Decode reads the pickle at the beginning of b and returns its value and its
// length. Nothing is called: instances are described by an [*Object]. What it
// allocates is proportional to b.
func Decode(b []byte) (v Value, n int, err error) {
	d := decoder{data: b}
	return d.run(0)
}

// DecodeRecord reads the two pickles of a ZODB record.
func DecodeRecord(b []byte) (class, state Value, err error) {
	d := decoder{data: b}
	class, n, err := d.run(0)
	if err == nil {
		state, _, err = d.run(n)
	}
	return class, state, err
}

type decoder struct {
	data  []byte
	stack []Value
	marks []int
	memo  map[uint32]Value
	bytes int // how many were made of texts, which may be the same one each time
}

// maxLatin1 is how many bytes are made of each byte of a pickle.
const maxLatin1 = 16

// maxDigits is the longest decimal integer, whose conversion is slow.
const maxDigits = 5000

func (d *decoder) run(pos int) (Value, int, error) {
	d.stack, d.marks = d.stack[:0], d.marks[:0]
	for {
		op, arg, argEnd, next, err := instruction(d.data, pos)
		if err != nil {
			return nil, 0, err
		}
		if op == opStop {
			if len(d.stack) != 1 || len(d.marks) != 0 {
				return nil, 0, errorAt(pos, "STOP with %d values on the stack", len(d.stack)+len(d.marks))
			}
			return d.stack[0], next, nil
		}
		if problem := d.step(op, d.data[arg:argEnd]); problem != "" {
			return nil, 0, errorAt(pos, "opcode 0x%02x: %s", op, problem)
		}
		pos = next
	}
}

const tooFew = "too few values on the stack"

func (d *decoder) has(n int) bool {
	floor := 0
	if k := len(d.marks); k > 0 {
		floor = d.marks[k-1]
	}
	return len(d.stack)-floor >= n
}

func (d *decoder) push(v Value) string {
	d.stack = append(d.stack, v)
	return ""
}

func (d *decoder) pop() Value {
	v := d.stack[len(d.stack)-1]
	d.stack = d.stack[:len(d.stack)-1]
	return v
}

// popMark returns the values above the topmost mark, valid until the next push.
func (d *decoder) popMark() ([]Value, bool) {
	k := len(d.marks)
	if k == 0 {
		return nil, false
	}
	items := d.stack[d.marks[k-1]:]
	d.stack = d.stack[:d.marks[k-1]]
	d.marks = d.marks[:k-1]
	return items, true
}

func clone(items []Value) []Value { return append([]Value(nil), items...) }

// tuple is never nil: the empty tuple is a value.
func tuple(items []Value) Tuple { return append(make(Tuple, 0, len(items)), items...) }

// step executes an instruction. It returns what is wrong with it, or "".
func (d *decoder) step(op byte, arg []byte) string {
	switch op {
	case opProto:
		if arg[0] > maxProtocol {
			return "unknown protocol"
		}
		return ""
	case opFrame:
		return ""
	case opMark:
		d.marks = append(d.marks, len(d.stack))
		return ""
	case opNone:
		return d.push(nil)
	case opNewTrue:
		return d.push(true)
	case opNewFalse:
		return d.push(false)
	case opBinInt:
		return d.push(int64(int32(binary.LittleEndian.Uint32(arg))))
	case opBinInt1:
		return d.push(int64(arg[0]))
	case opBinInt2:
		return d.push(int64(binary.LittleEndian.Uint16(arg)))
	case opLong1, opLong4:
		return d.push(littleEndian(arg))
	case opInt, opLong:
		return d.decimal(op, arg)
	case opFloat:
		f, err := strconv.ParseFloat(strings.TrimSpace(string(arg)), 64)
		if err != nil && !math.IsInf(f, 0) {
			return "no number"
		}
		return d.push(f)
	case opBinFloat:
		return d.push(math.Float64frombits(binary.BigEndian.Uint64(arg)))
	case opBinUnicode, opShortBinUnicode, opBinUnicode8:
		return d.push(string(arg))
	case opUnicode:
		s, ok := rawUnicode(nil, arg)
		if !ok {
			return "a broken escape"
		}
		return d.push(string(s))
	case opString:
		s, ok := unquote(nil, arg)
		if !ok {
			return "no string literal"
		}
		return d.push(ByteString(s))
	case opBinString, opShortBinString:
		return d.push(ByteString(arg))
	case opBinBytes, opShortBinBytes, opBinBytes8, opByteArray8:
		return d.push(append([]byte{}, arg...))
	case opGlobal:
		module, name, _ := globalNames(arg)
		return d.push(Global{string(module), string(name)})
	case opStackGlobal:
		if !d.has(2) {
			return tooFew
		}
		name, ok1 := Text(d.pop())
		module, ok2 := Text(d.pop())
		if !ok1 || !ok2 {
			return "names that are no text"
		}
		return d.push(Global{module, name})
	case opExt1, opExt2, opExt4:
		return "extension registry is not supported"
	case opNextBuffer, opReadonlyBuffer:
		return "out-of-band data is not supported"
	case opBinPersID:
		if !d.has(1) {
			return tooFew
		}
		return d.push(PersID{d.pop()})
	case opPersID:
		return d.push(PersID{string(arg)})
	case opPop:
		if k := len(d.marks); k > 0 && d.marks[k-1] == len(d.stack) {
			d.marks = d.marks[:k-1]
			return ""
		}
		if !d.has(1) {
			return tooFew
		}
		d.pop()
		return ""
	case opPopMark:
		if _, ok := d.popMark(); !ok {
			return "no mark"
		}
		return ""
	case opDup:
		if !d.has(1) {
			return tooFew
		}
		return d.push(d.stack[len(d.stack)-1])
	case opPut, opBinPut, opLongBinPut, opMemoize, opGet, opBinGet, opLongBinGet:
		return d.remember(op, arg)
	}
	return d.build(op, arg)
}

// build executes the instructions that make containers and instances.
func (d *decoder) build(op byte, arg []byte) string {
	switch op {
	case opEmptyTuple:
		return d.push(Tuple{})
	case opEmptyList:
		return d.push(&List{})
	case opEmptyDict:
		return d.push(&Dict{})
	case opEmptySet:
		return d.push(&Set{})
	case opTuple1, opTuple2, opTuple3:
		n := int(op-opTuple1) + 1
		if !d.has(n) {
			return tooFew
		}
		at := len(d.stack) - n
		t := tuple(d.stack[at:])
		d.stack = d.stack[:at]
		return d.push(t)
	case opTuple, opList, opDict, opFrozenSet, opObj, opInst:
		items, ok := d.popMark()
		if !ok {
			return "no mark"
		}
		switch op {
		case opTuple:
			return d.push(tuple(items))
		case opList:
			return d.push(&List{clone(items)})
		case opFrozenSet:
			return d.push(&Set{clone(items), true})
		case opInst:
			module, name, _ := globalNames(arg)
			return d.push(&Object{Class: Global{string(module), string(name)}, Args: tuple(items)})
		case opObj:
			if len(items) == 0 {
				return "no class"
			}
			return d.push(&Object{Class: items[0], Args: tuple(items[1:])})
		}
		dict := &Dict{}
		if len(items)%2 != 0 {
			return "a key without value"
		}
		dict.add(items)
		return d.push(dict)
	case opAppend, opSetItem:
		n := 1
		if op == opSetItem {
			n = 2
		}
		if !d.has(n + 1) {
			return tooFew
		}
		at := len(d.stack) - n
		items := d.stack[at:]
		d.stack = d.stack[:at]
		return d.extend(op == opSetItem, false, items)
	case opAppends, opSetItems, opAddItems:
		items, ok := d.popMark()
		if !ok {
			return "no mark"
		}
		if !d.has(1) {
			return tooFew
		}
		return d.extend(op == opSetItems, op == opAddItems, items)
	case opReduce, opNewObj:
		if !d.has(2) {
			return tooFew
		}
		args, class := d.pop(), d.pop()
		v := call(class, args)
		if b, ok := v.([]byte); ok {
			if d.bytes += len(b); d.bytes > maxLatin1*len(d.data) {
				return "it makes too many bytes of the same text"
			}
		}
		return d.push(v)
	case opNewObjEx:
		if !d.has(3) {
			return tooFew
		}
		kwargs, args, class := d.pop(), d.pop(), d.pop()
		return d.push(&Object{Class: class, Args: Tuple{args, kwargs}})
	case opBuild:
		if !d.has(2) {
			return tooFew
		}
		state := d.pop()
		o, ok := d.stack[len(d.stack)-1].(*Object)
		if !ok {
			return "a state for something that is no instance"
		}
		o.State, o.HasState = state, true
		return ""
	}
	return "unknown opcode"
}

func (d *Dict) add(items []Value) {
	for i := 0; i+1 < len(items); i += 2 {
		d.Items = append(d.Items, Item{items[i], items[i+1]})
	}
}

// extend adds to the container on top of the stack.
func (d *decoder) extend(pairs, set bool, items []Value) string {
	if pairs && len(items)%2 != 0 {
		return "a key without value"
	}
	switch c := d.stack[len(d.stack)-1].(type) {
	case *List:
		if !pairs && !set {
			c.Items = append(c.Items, items...)
			return ""
		}
	case *Dict:
		if pairs {
			c.add(items)
			return ""
		}
	case *Set:
		if set {
			c.Items = append(c.Items, items...)
			return ""
		}
	case *Object: // a subclass of a container
		c.Items = append(c.Items, items...)
		return ""
	}
	return "items for something that cannot take them"
}

// call is the value of class(*args), where it is a plain one.
func call(class, args Value) Value {
	g, ok := class.(Global)
	t, ok2 := args.(Tuple)
	if ok && ok2 {
		switch {
		case g == Global{"_codecs", "encode"} && len(t) == 2:
			text, ok := t[0].(string)
			codec, ok2 := Text(t[1])
			if b, ok3 := latin1(text); ok && ok2 && ok3 && (codec == "latin1" || codec == "latin-1") {
				return b
			}
		case (g == Global{"__builtin__", "bytes"} || g == Global{"builtins", "bytes"}) && len(t) == 0:
			return []byte{}
		}
	}
	return &Object{Class: class, Args: args}
}

func latin1(s string) ([]byte, bool) {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if r > 0xff || r == utf8.RuneError && n == 1 {
			return nil, false
		}
		b = append(b, byte(r))
		i += n
	}
	return b, true
}

func (d *decoder) remember(op byte, arg []byte) string {
	var slot uint32
	switch op {
	case opMemoize:
		slot = uint32(len(d.memo))
	case opBinPut, opBinGet:
		slot = uint32(arg[0])
	case opLongBinPut, opLongBinGet:
		slot = binary.LittleEndian.Uint32(arg)
	default:
		n, err := strconv.ParseUint(string(arg), 10, 32)
		if err != nil {
			return "no slot of the memo"
		}
		slot = uint32(n)
	}
	switch op {
	case opGet, opBinGet, opLongBinGet:
		v, ok := d.memo[slot]
		if !ok {
			return "nothing was put into this slot of the memo"
		}
		return d.push(v)
	}
	if !d.has(1) {
		return tooFew
	}
	if d.memo == nil {
		d.memo = make(map[uint32]Value)
	}
	d.memo[slot] = d.stack[len(d.stack)-1]
	return ""
}

// decimal pushes the operand of INT or LONG.
func (d *decoder) decimal(op byte, arg []byte) string {
	s := strings.TrimSpace(string(arg))
	if op == opInt && s == "01" {
		return d.push(true)
	}
	if op == opInt && s == "00" {
		return d.push(false)
	}
	if op == opLong {
		s = strings.TrimSuffix(s, "L")
	}
	if len(s) > maxDigits {
		return "a number with too many digits"
	}
	n, ok := new(big.Int).SetString(s, 10)
	if !ok {
		return "no number"
	}
	return d.push(bigValue(n))
}

// littleEndian is a number in two's complement, the least byte first.
func littleEndian(b []byte) Value {
	if len(b) == 0 {
		return int64(0)
	}
	be := make([]byte, len(b))
	for i, c := range b {
		be[len(b)-1-i] = c
	}
	n := new(big.Int).SetBytes(be)
	if be[0] >= 0x80 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(b))))
	}
	return bigValue(n)
}
