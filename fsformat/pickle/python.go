package pickle

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode/utf8"
)

// zodbProtocol is the highest protocol that zodbpickle reads.
const zodbProtocol = 3

// refused says why Python's unpickler refuses an instruction, whatever the classes
// and functions of the pickle are. What the machine itself finds, such as a stack
// that is too short, is left to it. Python: zodbpickle's C code, with which ZODB
// loads records.
func (m *machine) refused(op byte, pos, arg, argEnd int) error {
	b := m.data[arg:argEnd]
	n := len(m.stack)
	switch op {
	case opBinUnicode, opShortBinUnicode, opBinUnicode8:
		if !validText(b) {
			return errorAt(pos, "a text that is no UTF-8")
		}
	case opBinString, opShortBinString:
		m.noteBytes(b, argEnd)
	case opString:
		if problem := m.quoted(b, argEnd); problem != "" {
			return errorAt(pos, "%s: %.20q", problem, b)
		}
	case opUnicode:
		if _, ok := rawUnicode(nil, b); !ok {
			return errorAt(pos, "a text with a broken escape: %.20q", b)
		}
	case opInt, opLong:
		if !isInteger(op, b) {
			return errorAt(pos, "no integer: %.20q", b)
		}
	case opFloat:
		if !isFloat(b) {
			return errorAt(pos, "no number: %.20q", b)
		}
	case opGlobal, opInst:
		module, name, _ := globalNames(b)
		if !validName(op, module) || !validName(op, name) {
			return errorAt(pos, "no name of a class: %.40q", b)
		}
	case opPersID:
		if len(b) == 0 {
			return errorAt(pos, "an empty persistent reference")
		}
	case opExt1, opExt2, opExt4:
		var code [4]byte
		copy(code[:], b)
		if int32(binary.LittleEndian.Uint32(code[:])) <= 0 {
			return errorAt(pos, "extension code 0")
		}
	case opReduce, opNewObj:
		if n < 2 {
			break
		}
		if args := m.kind(n - 1); args != opaque && args != tupleCell && args != longTuple {
			return errorAt(pos, "arguments that are no tuple")
		}
		if m.plain(n - 2) {
			return errorAt(pos, "a call of what is no class")
		}
	case opObj:
		if k := len(m.marks); k > 0 && int(m.marks[k-1]) < n && m.plain(int(m.marks[k-1])) {
			return errorAt(pos, "a call of what is no class")
		}
	case opBuild:
		if n >= 2 && m.plain(n-2) && m.noState(m.stack[n-1]) {
			return errorAt(pos, "a state for what is no instance")
		}
	case opAppend, opAppends:
		at := m.items(op, 1)
		if at > 0 && at < n && m.plain(at-1) && m.kind(at-1) != listCell && m.kind(at-1) != longList {
			return errorAt(pos, "items for what is no list")
		}
	case opSetItem, opSetItems:
		return m.setItems(op, pos)
	case opDict:
		if k := len(m.marks); k > 0 {
			return m.keys(pos, min(int(m.marks[k-1]), n))
		}
	case opProto:
		m.protocol = max(m.protocol, b[0])
	}
	switch {
	case op >= opShortBinUnicode && op <= opFrame:
		m.protocol = max(m.protocol, 4)
	case op > opFrame && op <= opReadonlyBuffer:
		m.protocol = max(m.protocol, 5)
	}
	return nil
}

func (m *machine) kind(i int) cellKind { return m.cells[m.stack[i].cell].kind }

// plain reports whether a value on the stack is certainly no instance and no class:
// it cannot be called and has no attributes of its own.
func (m *machine) plain(i int) bool {
	switch m.kind(i) {
	case opaque, classCell, namedClass:
		return false
	}
	return true
}

// items returns the height of the stack where the items of an instruction begin:
// behind the last mark, or the topmost n. It is negative if there are too few.
func (m *machine) items(op byte, n int) int {
	if op == opAppend || op == opSetItem {
		return len(m.stack) - n
	}
	if k := len(m.marks); k > 0 {
		return int(m.marks[k-1])
	}
	return -1
}

func (m *machine) setItems(op byte, pos int) error {
	at, n := m.items(op, 2), len(m.stack)
	if at <= 0 || at >= n {
		return nil
	}
	if (n-at)%2 != 0 {
		return errorAt(pos, "a key without a value: %d items for SETITEMS", n-at)
	}
	switch m.kind(at - 1) {
	case dictCell:
		return m.keys(pos, at)
	case listCell, longList:
		for i := at; i < n; i += 2 {
			if m.plain(i) && m.kind(i) != atomCell { // a number may be a position
				return errorAt(pos, "a key for a list")
			}
		}
	case opaque, classCell, namedClass:
	default:
		return errorAt(pos, "keys and values for what is no dict")
	}
	return nil
}

// keys verifies that the keys of a dict from a height of the stack on can be some.
func (m *machine) keys(pos, at int) error {
	for i := at; i+1 < len(m.stack); i += 2 {
		if m.cells[m.stack[i].cell].mutable {
			return errorAt(pos, "a list or a dict as a key")
		}
	}
	return nil
}

// noState reports whether a value cannot be the state of what is no instance.
func (m *machine) noState(e entry) bool {
	c := &m.cells[e.cell]
	switch c.kind {
	case opaque, noneCell, classCell, namedClass:
		return false
	case tupleCell:
		if c.n != 2 {
			return true
		}
		in := m.entries(c) // (attributes, slots)
		attributes, slots := m.cells[in[0].cell].kind, m.cells[in[1].cell].kind
		return attributes != noneCell && attributes != opaque || slots != dictCell && slots != opaque
	}
	return true
}

// validText reports whether b is UTF-8, or would be but for surrogates, which
// Python lets through.
func validText(b []byte) bool {
	if utf8.Valid(b) {
		return true
	}
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		if r == utf8.RuneError && n == 1 {
			if len(b) < 3 || b[0] != 0xed || b[1] < 0xa0 || b[1] > 0xbf || b[2] < 0x80 || b[2] > 0xbf {
				return false
			}
			n = 3
		}
		b = b[n:]
	}
	return true
}

// validName reports whether a line can be the name of a module or a class.
func validName(op byte, b []byte) bool {
	if op == opInst {
		for _, c := range b {
			if c >= 0x80 {
				return false
			}
		}
	}
	return len(b) > 0 && utf8.Valid(b)
}

// noteBytes remembers a str of Python 2 that is not ASCII.
func (m *machine) noteBytes(b []byte, end int) {
	if m.foreign != 0 {
		return
	}
	for _, c := range b {
		if c >= 0x80 {
			m.foreign = end
			return
		}
	}
}

// quoted says what is wrong with the operand of STRING, or "".
func (m *machine) quoted(b []byte, end int) string {
	if bytes.IndexByte(b, 0) >= 0 {
		return "" // what Python reads behind it is not defined
	}
	// Whether bytes above 127 are blanks depends on the compiler of Python.
	for len(b) > 0 && (b[len(b)-1] <= ' ' || b[len(b)-1] >= 0x80) {
		b = b[:len(b)-1]
	}
	if len(b) < 2 || b[0] != b[len(b)-1] || b[0] != '\'' && b[0] != '"' {
		return "a string that is not quoted"
	}
	s, ok := unquote(nil, b)
	if !ok {
		return "a string with a broken escape"
	}
	m.noteBytes(s, end)
	return ""
}

// isInteger reports whether Python takes a line for an integer: INT is read by C's
// strtol first, then as LONG.
func isInteger(op byte, b []byte) bool {
	s := string(b)
	if op == opLong {
		s = strings.TrimSuffix(s, "L")
	}
	s, _, cut := strings.Cut(s, "\x00") // what C sees of it
	if op == opInt && s == "" && cut {
		return true
	}
	s = strings.TrimLeft(s, blanks)
	if op == opInt && isC(s) {
		return true
	}
	s = strings.TrimRight(s, blanks)
	digits := strings.TrimLeft(s, "+-")
	if len(s)-len(digits) > 1 || digits == "" {
		return false
	}
	if digits[0] == '0' && strings.Trim(digits, "0_") == "" {
		return !strings.HasSuffix(digits, "_") && !strings.Contains(digits, "__") // 0_0
	}
	if len(digits) > maxDigits {
		return strings.Trim(digits, "0123456789_abcdefxoABCDEFXO") == "" // the conversion would take long
	}
	if digits[0] == '0' && len(digits) > 1 && digits[1] >= '0' && digits[1] <= '9' || strings.HasPrefix(digits, "0_") {
		return false // Python has no octal numbers of this form
	}
	_, ok := new(big.Int).SetString(digits, 0)
	return ok
}

// decimal returns the digits of what Python takes for a number, as strconv does.
func decimal(line string) string {
	s, _, _ := strings.Cut(line, "\x00")
	s = strings.TrimPrefix(strings.Trim(s, blanks), "+")
	if strings.HasPrefix(s, "_") || strings.HasSuffix(s, "_") || strings.Contains(s, "__") {
		return line
	}
	return strings.ReplaceAll(s, "_", "")
}

// untold reports whether a value may be a persistent reference, for all that is
// known of it: it, or what counts in it, is the result of a call.
func (m *machine) untold(e entry) bool {
	c := &m.cells[e.cell]
	switch {
	case c.kind == opaque:
		return true
	case c.kind == tupleCell && c.n == 2 || c.kind == listCell && c.n == 1:
		return m.cells[m.entries(c)[0].cell].kind == opaque
	case c.kind == listCell && c.n == 2:
		in := m.entries(c)
		if m.cells[in[0].cell].kind == opaque || m.cells[in[1].cell].kind == opaque {
			return true
		}
		args := &m.cells[in[1].cell]
		if args.kind != tupleCell {
			return false
		}
		for _, a := range m.entries(args)[:min(args.n, 2)] { // a third is the class
			if m.cells[a.cell].kind == opaque {
				return true
			}
		}
	}
	return false
}

const blanks = " \t\n\v\f\r"

// isC reports whether the whole of s is an integer to strtol with base 0, but for
// its size.
func isC(s string) bool {
	if s != "" && (s[0] == '+' || s[0] == '-') {
		s = s[1:]
	}
	digits := "0123456789"
	switch {
	case len(s) > 2 && s[0] == '0' && (s[1] == 'x' || s[1] == 'X'):
		s, digits = s[2:], "0123456789abcdefABCDEF"
	case len(s) > 1 && s[0] == '0':
		s, digits = s[1:], "01234567"
	}
	return s != "" && strings.Trim(s, digits) == ""
}

// isFloat reports whether Python takes a line for a floating-point number.
func isFloat(b []byte) bool {
	s, _, _ := strings.Cut(string(b), "\x00")
	if s != "" && (s[0] == '+' || s[0] == '-') {
		s = s[1:]
	}
	switch strings.ToLower(s) {
	case "inf", "infinity", "nan":
		return true
	}
	if f, err := strconv.ParseFloat(s, 64); err != nil && math.IsInf(f, 0) {
		return false // too large
	}
	s, exponent, hasExponent := cutAny(s, "eE")
	whole, fraction, _ := strings.Cut(s, ".")
	if whole+fraction == "" || !isDigits(whole) || !isDigits(fraction) {
		return false
	}
	if hasExponent {
		if exponent != "" && (exponent[0] == '+' || exponent[0] == '-') {
			exponent = exponent[1:]
		}
		return exponent != "" && isDigits(exponent)
	}
	return true
}

func isDigits(s string) bool { return strings.Trim(s, "0123456789") == "" }

func cutAny(s, chars string) (before, after string, found bool) {
	if i := strings.IndexAny(s, chars); i >= 0 {
		return s[:i], s[i+1:], true
	}
	return s, "", false
}
