package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"unicode/utf8"
)

// PickleDecoder reads pickles made of plain values. It builds no objects: what
// is of a class becomes an opaque value, and clients may name only a few. Its
// memory is bounded by the number of values.
type PickleDecoder struct {
	b     []byte
	pos   int
	stack []Value
	marks []int
	memo  map[int64]Value
	arena []Value // items of tuples
	count int

	objects bool // something was of a class
	shared  bool // something was fetched from the memo
	most    int  // values; 0: MaxValues
}

// Names a client may use in a message: those the Python server accepts, less what
// could be called with an effect when the stored extension is read.
func allowedFromClient(name []byte) bool {
	switch string(name) {
	case "ZopeUndo.Prefix Prefix", "zodbpickle binary",
		"builtins dict", "__builtin__ dict", "builtins set", "builtins frozenset", "builtins bytearray", "builtins complex", "builtins object",
		"__builtin__ set", "__builtin__ frozenset", "__builtin__ bytearray", "__builtin__ complex", "__builtin__ object",
		"copy_reg _reconstructor":
		return true
	}
	return false
}

// Decode returns the value of the pickle b. It refers to b and to the decoder and
// is valid until the next decode. fromClient: only the classes that a client may
// name are taken.
func (d *PickleDecoder) Decode(b []byte, fromClient bool) (Value, error) {
	d.b, d.pos, d.count = b, 0, 0
	d.stack, d.marks, d.arena = d.stack[:0], d.marks[:0], d.arena[:0]
	if cap(d.arena) > 4096 {
		d.arena, d.stack = nil, nil
	}
	if len(d.memo) > 0 {
		clear(d.memo)
	}
	d.objects, d.shared = false, false
	for {
		if d.pos >= len(d.b) {
			return Value{}, d.errorf("pickle without end")
		}
		op := d.b[d.pos]
		d.pos++
		if op == '.' {
			break
		}
		if err := d.step(op, fromClient); err != nil {
			return Value{}, err
		}
	}
	if len(d.stack) != 1 || len(d.marks) != 0 {
		return Value{}, d.errorf("%d values and %d marks at the end", len(d.stack), len(d.marks))
	}
	if d.pos != len(d.b) {
		return Value{}, d.errorf("bytes after the end")
	}
	return d.stack[0], nil
}

func (d *PickleDecoder) errorf(format string, args ...any) error {
	return fmt.Errorf("%w: pickle, offset %d: %s", ErrBadMessage, d.pos, fmt.Sprintf(format, args...))
}

func (d *PickleDecoder) take(n uint64) ([]byte, error) {
	if n > uint64(len(d.b)-d.pos) {
		return nil, d.errorf("%d bytes announced, %d left", n, len(d.b)-d.pos)
	}
	p := d.b[d.pos : d.pos+int(n) : d.pos+int(n)]
	d.pos += int(n)
	return p, nil
}

// size reads a little-endian length of w bytes.
func (d *PickleDecoder) size(w uint64) (uint64, error) {
	p, err := d.take(w)
	if err != nil {
		return 0, err
	}
	var n uint64
	for i := len(p) - 1; i >= 0; i-- {
		n = n<<8 | uint64(p[i])
	}
	return n, nil
}

func (d *PickleDecoder) sized(w uint64) ([]byte, error) {
	n, err := d.size(w)
	if err != nil {
		return nil, err
	}
	return d.take(n)
}

func (d *PickleDecoder) line() ([]byte, error) {
	for i := d.pos; i < len(d.b) && i < d.pos+1024; i++ {
		if d.b[i] == '\n' {
			p := d.b[d.pos:i]
			d.pos = i + 1
			return p, nil
		}
	}
	return nil, d.errorf("line without end")
}

func (d *PickleDecoder) push(v Value) error {
	if err := d.spend(1); err != nil {
		return err
	}
	d.stack = append(d.stack, v)
	return nil
}

// spend counts n values. What is copied of what may come from the memo counts too:
// a few bytes fetch it again and again.
func (d *PickleDecoder) spend(n int) error {
	if d.count += n; d.count > bound(d.most) {
		return ErrTooComplex
	}
	return nil
}

// floor is what the stack may not be popped below: the last mark.
func (d *PickleDecoder) floor() int {
	if n := len(d.marks); n > 0 {
		return d.marks[n-1]
	}
	return 0
}

func (d *PickleDecoder) pop(n int) ([]Value, error) {
	at := len(d.stack) - n
	if at < d.floor() {
		return nil, d.errorf("stack is too short")
	}
	p := d.stack[at:]
	d.stack = d.stack[:at]
	return p, nil
}

func (d *PickleDecoder) popMark() ([]Value, error) {
	if len(d.marks) == 0 {
		return nil, d.errorf("no mark")
	}
	at := d.floor()
	d.marks = d.marks[:len(d.marks)-1]
	p := d.stack[at:]
	d.stack = d.stack[:at]
	return p, nil
}

// keep copies values that were on the stack.
func (d *PickleDecoder) keep(items []Value) []Value {
	at := len(d.arena)
	d.arena = append(d.arena, items...)
	return d.arena[at:len(d.arena):len(d.arena)]
}

func (d *PickleDecoder) tuple(items []Value) error {
	return d.push(Value{Kind: KindTuple, Items: d.keep(items)})
}

// opaque pushes an object that is not built.
func (d *PickleDecoder) opaque(class *Value) error {
	if class.Kind != KindGlobal && class.Kind != KindOpaque {
		return d.errorf("call of what is no class")
	}
	return d.push(Value{Kind: KindOpaque, B: class.B})
}

func (d *PickleDecoder) step(op byte, fromClient bool) error {
	switch op {
	case 0x80: // PROTO
		p, err := d.take(1)
		if err != nil {
			return err
		}
		if p[0] > 5 {
			return d.errorf("protocol %d", p[0])
		}
		return nil
	case 0x95: // FRAME
		_, err := d.take(8)
		return err
	case '(':
		if len(d.marks) >= bound(d.most) {
			return ErrTooComplex
		}
		d.marks = append(d.marks, len(d.stack))
		return nil
	case 'N':
		return d.push(Value{})
	case 0x88:
		return d.push(boolValue(true))
	case 0x89:
		return d.push(boolValue(false))
	case 'K', 'M', 'J':
		w := uint64(1)
		switch op {
		case 'M':
			w = 2
		case 'J':
			w = 4
		}
		return d.smallInt(w)
	case 0x8a, 0x8b: // LONG1, LONG4
		w := uint64(1)
		if op == 0x8b {
			w = 4
		}
		p, err := d.sized(w)
		if err != nil {
			return err
		}
		return d.long(p)
	case 'I', 'L', 'F':
		return d.textNumber(op)
	case 'G':
		p, err := d.take(8)
		if err != nil {
			return err
		}
		return d.push(FloatValue(math.Float64frombits(binary.BigEndian.Uint64(p))))
	case 'X', 0x8c, 0x8d:
		p, err := d.sized(width(op, 0x8c, 0x8d))
		if err != nil {
			return err
		}
		if !utf8.Valid(p) {
			return d.errorf("text is not UTF-8")
		}
		return d.push(Value{Kind: KindText, B: p})
	case 'C', 'B', 0x8e, 'U', 'T', 0x96: // bytes, str of Python 2, bytearray
		w := width(op, 'C', 0x8e)
		switch op {
		case 'U':
			w = 1
		case 0x96:
			w = 8
		}
		p, err := d.sized(w)
		if err != nil {
			return err
		}
		return d.push(Value{Kind: KindBytes, B: p})
	case ')':
		return d.push(Value{Kind: KindTuple})
	case 0x85, 0x86, 0x87:
		items, err := d.pop(int(op) - 0x84)
		if err != nil {
			return err
		}
		return d.tuple(items)
	case 't':
		items, err := d.popMark()
		if err != nil {
			return err
		}
		return d.tuple(items)
	case ']', '}', 0x8f: // EMPTY_LIST, EMPTY_DICT, EMPTY_SET
		k := KindList
		if op == '}' {
			k = KindDict
		}
		return d.push(Value{Kind: k, Box: new(Box), start: int32(d.pos - 1), end: int32(d.pos)})
	case 'l', 'd', 0x91: // LIST, DICT, FROZENSET
		items, err := d.popMark()
		if err != nil {
			return err
		}
		k := KindList
		if op == 'd' {
			k = KindDict
			if len(items)%2 != 0 {
				return d.errorf("key without value")
			}
		}
		return d.push(Value{Kind: k, Box: &Box{append([]Value(nil), items...)}, start: -1})
	case 'a', 'e', 0x90, 's', 'u':
		return d.grow(op)
	case '0': // POP
		_, err := d.pop(1)
		return err
	case 'q', 'r', 'p', 0x94:
		return d.put(op)
	case 'h', 'j', 'g':
		return d.get(op)
	case 'c', 0x93:
		return d.global(op, fromClient)
	case 'R', 0x81: // REDUCE, NEWOBJ
		p, err := d.pop(2)
		if err != nil {
			return err
		}
		return d.call(p[0], p[1])
	case 'b': // BUILD
		p, err := d.pop(2)
		if err != nil {
			return err
		}
		return d.build(p[0], p[1])
	}
	return d.errorf("opcode %#02x", op)
}

func width(op, one, eight byte) uint64 {
	switch op {
	case one:
		return 1
	case eight:
		return 8
	}
	return 4
}

func (d *PickleDecoder) smallInt(w uint64) error {
	n, err := d.size(w)
	if err != nil {
		return err
	}
	if w == 4 {
		return d.push(IntValue(int64(int32(n))))
	}
	return d.push(IntValue(int64(n)))
}

// long reads a two's complement, little-endian.
func (d *PickleDecoder) long(p []byte) error {
	if len(p) > 8 {
		return d.push(Value{Kind: KindBig, B: p})
	}
	var n int64
	for i, c := range p {
		n |= int64(c) << (8 * i)
	}
	if len(p) > 0 && len(p) < 8 && p[len(p)-1]&0x80 != 0 {
		n |= -1 << (8 * len(p))
	}
	return d.push(IntValue(n))
}

func (d *PickleDecoder) textNumber(op byte) error {
	p, err := d.line()
	if err != nil {
		return err
	}
	if op == 'F' {
		f, err := strconv.ParseFloat(string(p), 64)
		if err != nil {
			return d.errorf("float %q", p)
		}
		return d.push(FloatValue(f))
	}
	if op == 'I' && (string(p) == "00" || string(p) == "01") {
		return d.push(boolValue(p[1] == '1'))
	}
	if op == 'L' && len(p) > 0 && p[len(p)-1] == 'L' {
		p = p[:len(p)-1]
	}
	n, err := strconv.ParseInt(string(p), 10, 64)
	if err == nil {
		return d.push(IntValue(n))
	}
	if errors.Is(err, strconv.ErrRange) {
		return d.push(Value{Kind: KindOpaque, B: p})
	}
	return d.errorf("int %q", p)
}

// grow adds to the container below.
func (d *PickleDecoder) grow(op byte) error {
	var items []Value
	var err error
	switch op {
	case 'a':
		items, err = d.pop(1)
	case 's':
		items, err = d.pop(2)
	default:
		items, err = d.popMark()
	}
	if err != nil {
		return err
	}
	if len(d.stack) <= d.floor() {
		return d.errorf("no container")
	}
	top := &d.stack[len(d.stack)-1]
	isDict := op == 's' || op == 'u'
	switch {
	case top.Kind == KindOpaque: // a subclass
		return nil
	case top.Kind == KindDict && isDict:
		if len(items)%2 != 0 {
			return d.errorf("key without value")
		}
	case top.Kind == KindList && !isDict:
	default:
		return d.errorf("wrong container")
	}
	top.Box.Items = append(top.Box.Items, items...)
	if top.start >= 0 {
		top.end = int32(d.pos)
	}
	return nil
}

func (d *PickleDecoder) put(op byte) error {
	var n int64
	switch op {
	case 'q', 'r':
		w := uint64(1)
		if op == 'r' {
			w = 4
		}
		u, err := d.size(w)
		if err != nil {
			return err
		}
		n = int64(u)
	case 0x94:
		n = int64(len(d.memo))
	default:
		p, err := d.line()
		if err != nil {
			return err
		}
		if n, err = strconv.ParseInt(string(p), 10, 64); err != nil {
			return d.errorf("memo %q", p)
		}
	}
	if len(d.stack) <= d.floor() {
		return d.errorf("nothing to memoize")
	}
	if d.memo == nil {
		d.memo = make(map[int64]Value)
	}
	if len(d.memo) >= bound(d.most) {
		return ErrTooComplex
	}
	top := &d.stack[len(d.stack)-1]
	top.end = max(top.end, int32(d.pos))
	d.memo[n] = *top
	return nil
}

func (d *PickleDecoder) get(op byte) error {
	var n int64
	switch op {
	case 'h', 'j':
		w := uint64(1)
		if op == 'j' {
			w = 4
		}
		u, err := d.size(w)
		if err != nil {
			return err
		}
		n = int64(u)
	default:
		p, err := d.line()
		if err != nil {
			return err
		}
		if n, err = strconv.ParseInt(string(p), 10, 64); err != nil {
			return d.errorf("memo %q", p)
		}
	}
	v, ok := d.memo[n]
	if !ok {
		return d.errorf("memo %d is empty", n)
	}
	d.shared = true
	v.start = -1
	return d.push(v)
}

func (d *PickleDecoder) global(op byte, fromClient bool) error {
	var module, name []byte
	if op == 'c' {
		var err error
		if module, err = d.line(); err != nil {
			return err
		}
		if name, err = d.line(); err != nil {
			return err
		}
	} else {
		p, err := d.pop(2)
		if err != nil {
			return err
		}
		if p[0].Kind != KindText || p[1].Kind != KindText {
			return d.errorf("class without name")
		}
		module, name = p[0].B, p[1].B
	}
	if err := d.spend((len(module) + len(name)) >> 8); err != nil {
		return err
	}
	full := make([]byte, 0, len(module)+1+len(name))
	full = append(append(append(full, module...), ' '), name...)
	if fromClient && !allowedFromClient(full) {
		return d.errorf("class %q", full)
	}
	d.objects = true
	return d.push(Value{Kind: KindGlobal, B: full})
}

// call gives bytes and dicts their value and leaves the rest unbuilt.
func (d *PickleDecoder) call(class, args Value) error {
	if class.Kind == KindGlobal && args.Kind == KindTuple {
		switch {
		case string(class.B) == "zodbpickle binary" && len(args.Items) == 1 && args.Items[0].Kind == KindBytes:
			return d.push(args.Items[0])
		case len(args.Items) == 1 && (string(class.B) == "builtins dict" || string(class.B) == "__builtin__ dict"):
			list, _ := args.Items[0].List()
			if err := d.spend(2 * len(list)); err != nil {
				return err
			}
			if items, ok := pairs(&args.Items[0]); ok {
				return d.push(Value{Kind: KindDict, Box: &Box{items}, start: -1})
			}
		case string(class.B) == "_codecs encode" && len(args.Items) == 2 && args.Items[0].Kind == KindText:
			if err := d.spend(len(args.Items[0].B) >> 8); err != nil {
				return err
			}
			if latin, ok := latin1(args.Items[0].B); ok {
				return d.push(Value{Kind: KindBytes, B: latin})
			}
		}
	}
	return d.opaque(&class)
}

// pairs returns the keys and values, in turn, of what dict() is called with.
func pairs(v *Value) ([]Value, bool) {
	list, ok := v.List()
	if !ok {
		return nil, false
	}
	items := make([]Value, 0, 2*len(list))
	for i := range list {
		p, ok := list[i].List()
		if !ok || len(p) != 2 {
			return nil, false
		}
		items = append(items, p...)
	}
	return items, true
}

func latin1(utf []byte) ([]byte, bool) {
	b := make([]byte, 0, len(utf))
	for _, r := range string(utf) {
		if r > 255 {
			return nil, false
		}
		b = append(b, byte(r))
	}
	return b, true
}

// build gives a ZopeUndo.Prefix its value: {"value": (length, path)}.
func (d *PickleDecoder) build(object, state Value) error {
	if object.Kind != KindOpaque {
		return d.errorf("state of what is no object")
	}
	if string(object.B) == "ZopeUndo.Prefix Prefix" && state.Kind == KindDict {
		for i := 0; i+1 < len(state.Box.Items); i += 2 {
			k, v := &state.Box.Items[i], &state.Box.Items[i+1]
			if string(k.B) == "value" && v.Kind == KindTuple && len(v.Items) == 2 {
				return d.push(Value{Kind: KindPrefix, B: v.Items[1].B})
			}
		}
	}
	return d.push(object)
}
