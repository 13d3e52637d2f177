package pickle

import (
	"bytes"
	"encoding/binary"
)

// Opcodes of pickle protocols 0 to 5, with the meaning zodbpickle gives to 'B'
// and 'C' in protocol 3. Names: Python's pickletools.
const (
	opMark            = '('
	opStop            = '.'
	opPop             = '0'
	opPopMark         = '1'
	opDup             = '2'
	opFloat           = 'F'
	opInt             = 'I'
	opBinInt          = 'J'
	opBinInt1         = 'K'
	opLong            = 'L'
	opBinInt2         = 'M'
	opNone            = 'N'
	opPersID          = 'P'
	opBinPersID       = 'Q'
	opReduce          = 'R'
	opString          = 'S'
	opBinString       = 'T'
	opShortBinString  = 'U'
	opUnicode         = 'V'
	opBinUnicode      = 'X'
	opAppend          = 'a'
	opBuild           = 'b'
	opGlobal          = 'c'
	opDict            = 'd'
	opEmptyDict       = '}'
	opAppends         = 'e'
	opGet             = 'g'
	opBinGet          = 'h'
	opInst            = 'i'
	opLongBinGet      = 'j'
	opList            = 'l'
	opEmptyList       = ']'
	opObj             = 'o'
	opPut             = 'p'
	opBinPut          = 'q'
	opLongBinPut      = 'r'
	opSetItem         = 's'
	opTuple           = 't'
	opEmptyTuple      = ')'
	opSetItems        = 'u'
	opBinFloat        = 'G'
	opBinBytes        = 'B'
	opShortBinBytes   = 'C'
	opProto           = 0x80
	opNewObj          = 0x81
	opExt1            = 0x82
	opExt2            = 0x83
	opExt4            = 0x84
	opTuple1          = 0x85
	opTuple2          = 0x86
	opTuple3          = 0x87
	opNewTrue         = 0x88
	opNewFalse        = 0x89
	opLong1           = 0x8a
	opLong4           = 0x8b
	opShortBinUnicode = 0x8c
	opBinUnicode8     = 0x8d
	opBinBytes8       = 0x8e
	opEmptySet        = 0x8f
	opAddItems        = 0x90
	opFrozenSet       = 0x91
	opNewObjEx        = 0x92
	opStackGlobal     = 0x93
	opMemoize         = 0x94
	opFrame           = 0x95
	opByteArray8      = 0x96
	opNextBuffer      = 0x97
	opReadonlyBuffer  = 0x98

	maxProtocol = 5
)

// operand kinds: a fixed number of bytes, or one of these.
const (
	argLine  = 100 + iota // text up to a line feed
	argLines              // two of them
	argLen1               // data after its length
	argLen4
	argLen8
	argUnknown // no such opcode
)

// operands tells what follows each opcode.
var operands = func() (t [256]uint8) {
	for i := range t {
		t[i] = argUnknown
	}
	for kind, ops := range map[uint8]string{
		0: "(.012QRbaesudlto}])N\x81\x85\x86\x87\x88\x89\x8f\x90\x91\x92\x93\x94\x97\x98",
		1: "Khq\x80\x82", 2: "M\x83", 4: "Jjr\x84", 8: "G\x95",
		argLine: "PILFSVgp", argLines: "ci",
		argLen1: "UC\x8a\x8c", argLen4: "TBX\x8b", argLen8: "\x8d\x8e\x96",
	} {
		for i := range len(ops) {
			t[ops[i]] = kind
		}
	}
	return t
}()

// instruction decodes the one at pos: its operand is b[arg:argEnd], without
// length or line feed; the next one is at next.
func instruction(b []byte, pos int) (op byte, arg, argEnd, next int, err error) {
	if pos >= len(b) {
		return 0, 0, 0, 0, errorAt(pos, "the data ends before STOP")
	}
	op = b[pos]
	p := pos + 1
	kind := operands[op]
	var n uint64
	switch kind {
	case 0:
		return op, p, p, p, nil
	case 1, 2, 4, 8:
		n = uint64(kind)
	case argLine, argLines:
		i := bytes.IndexByte(b[p:], '\n')
		if i < 0 {
			return 0, 0, 0, 0, errorAt(pos, "opcode %q without end of line", op)
		}
		end := p + i
		if kind == argLines {
			j := bytes.IndexByte(b[end+1:], '\n')
			if j < 0 {
				return 0, 0, 0, 0, errorAt(pos, "opcode %q without second end of line", op)
			}
			end += 1 + j
		}
		return op, p, end, end + 1, nil
	case argLen1:
		if p < len(b) {
			n = uint64(b[p])
		}
		p++
	case argLen4:
		if p+4 <= len(b) {
			n = uint64(binary.LittleEndian.Uint32(b[p:]))
		}
		p += 4
	case argLen8:
		if p+8 <= len(b) {
			n = binary.LittleEndian.Uint64(b[p:])
		}
		p += 8
	default:
		return 0, 0, 0, 0, errorAt(pos, "unknown opcode 0x%02x", op)
	}
	if p > len(b) || n > uint64(len(b)-p) {
		return 0, 0, 0, 0, errorAt(pos, "opcode 0x%02x passes the end of the data", op)
	}
	return op, p, p + int(n), p + int(n), nil
}
