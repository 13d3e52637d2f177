package proto

import (
	"fmt"
	"math"

	"github.com/neozodb/neo/cluster/msgpack"
)

// ErrShort reports that more bytes are needed.
var ErrShort = msgpack.ErrShort

// AnswerBit is set in the code of answers and of Error.
const AnswerBit = 0x8000

// Append appends a whole packet, [id, code, arguments], to b.
func Append(b []byte, id uint32, p Packet) []byte {
	b = append(b, 0x93)
	b = msgpack.AppendUint(b, uint64(id))
	b = msgpack.AppendUint(b, uint64(p.Code()))
	return p.appendArgs(b)
}

// Decode reads the packet at the start of b and returns the number of bytes it
// takes. The error is [ErrShort] if b ends inside the packet.
func Decode(b []byte) (id uint32, p Packet, n int, err error) {
	id, p, n, err = decode(b)
	if err == ErrShort {
		// A count that exceeds the bytes left may also be a lie inside a
		// complete packet.
		var s msgpack.Scanner
		if n, _, serr := s.Scan(b); n > 0 || serr != nil {
			return 0, nil, 0, errTruncated
		}
	}
	return id, p, n, err
}

var errTruncated = fmt.Errorf("packet with a count that exceeds its size")

func decode(b []byte) (id uint32, p Packet, n int, err error) {
	d := decoder{msgpack.NewDecoder(b)}
	if !d.tuple(3) {
		return 0, nil, 0, d.Err()
	}
	id = uint32(d.uint(math.MaxUint32))
	code := uint16(d.uint(math.MaxUint16))
	if err := d.Err(); err != nil {
		return 0, nil, 0, err
	}
	p = decodeArgs(code, &d)
	if p == nil {
		return 0, nil, 0, fmt.Errorf("unknown packet code 0x%04x", code)
	}
	switch err := d.Err(); {
	case err == ErrShort:
		return 0, nil, 0, ErrShort
	case err != nil:
		return 0, nil, 0, fmt.Errorf("%s: %w", CodeName(code), err)
	}
	return id, p, d.Offset(), nil
}

// DecodeArgs reads the arguments of the packet with a code, as a log keeps them.
func DecodeArgs(code uint16, b []byte) (Packet, error) {
	d := decoder{msgpack.NewDecoder(b)}
	p := decodeArgs(code, &d)
	if p == nil {
		return nil, fmt.Errorf("unknown packet code 0x%04x", code)
	}
	if d.Err() == nil && d.Len() > 0 {
		d.Fail("%d bytes after the arguments", d.Len())
	}
	if err := d.Err(); err != nil {
		return nil, fmt.Errorf("%s: %w", CodeName(code), err)
	}
	return p, nil
}

// CodeName returns the name of the packet with this code, "AskObject", or its
// hexadecimal number.
func CodeName(code uint16) string {
	if s, ok := LookupCode(code); ok {
		return s
	}
	return fmt.Sprintf("packet 0x%04x", code)
}

// LookupCode returns the name of the packet with this code if there is one.
func LookupCode(code uint16) (name string, ok bool) {
	if code == codeError {
		return "Error", true
	}
	if i := int(code&^AnswerBit) - 1; i >= 0 && i < len(names) {
		name = names[i][code>>15]
	}
	return name, name != ""
}

// Names returns the names of all packets, in the order of their codes.
func Names() []string {
	list := []string{"Error"}
	for _, n := range names {
		for _, s := range n {
			if s != "" {
				list = append(list, s)
			}
		}
	}
	return list
}

// IsAnswer reports whether p answers a request: an Error does too, usually.
func IsAnswer(p Packet) bool { return p.Code()&AnswerBit != 0 }

// Keep reports whether a request that was completely received must be processed
// even if its connection is closed meanwhile. If a commit were dropped on some
// of the nodes that received it, it would be half done.
func Keep(p Packet) bool {
	switch p.(type) {
	case *AskFinishTransaction, *AskLockInformation, *SetNodeState, *AddPendingNodes, *SetNumReplicas, *SetClusterState:
		return true
	}
	return false
}

func (p *Error) appendArgs(b []byte) []byte {
	b = msgpack.AppendArray(b, 2)
	b = msgpack.AppendUint(b, uint64(p.ErrCode)) // not an extension
	return msgpack.AppendBin(b, p.Message)
}

func (p *Error) decodeArgs(d *decoder) {
	if !d.tuple(2) {
		return
	}
	p.ErrCode = ErrorCode(d.uint(math.MaxUint8))
	p.Message = d.string()
}
