package wire

import (
	"bytes"
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
)

// Message is one call of a client. It refers to the frame it came in and is valid
// until the next one is decoded.
type Message struct {
	ID        MsgID
	Heartbeat bool   // no call: only Heartbeat is set
	Async     bool   // no answer is wanted
	Name      []byte // of the method
	Args      []Value
}

// MsgID is the id of a call. It is given back as it came: an int, or for loadBefore
// its two arguments.
type MsgID struct {
	N    int64
	Pair bool // the id is (A, B)
	A, B [8]byte

	raw []byte // anything else, encoded
}

// MessageDecoder decodes the frames of one connection after the handshake.
type MessageDecoder struct {
	Msgpack bool // not pickles
	// MayHold reports whether an argument of a method may hold objects, of the few
	// classes that clients may name. nil: no argument may.
	MayHold func(method []byte) bool

	m     MsgpackDecoder
	p     PickleDecoder
	frame []byte
}

// Decode reads a frame into m.
func (d *MessageDecoder) Decode(frame []byte, m *Message) error {
	var v Value
	var err error
	d.frame = frame
	if d.Msgpack {
		v, err = d.m.Decode(frame)
	} else {
		v, err = d.p.Decode(frame, true)
	}
	if err != nil {
		return err
	}
	parts, ok := v.List()
	if !ok || len(parts) != 4 {
		return fmt.Errorf("%w: want (id, flag, name, arguments)", ErrBadMessage)
	}
	*m = Message{}
	id := &parts[0]
	if id.Kind == KindInt && id.Int() == -1 {
		m.Heartbeat = true
		return nil
	}
	if err := d.id(id, &m.ID); err != nil {
		return err
	}
	if m.Async, ok = parts[1].Truth(); !ok {
		return fmt.Errorf("%w: flag", ErrBadMessage)
	}
	if m.Name, ok = TextOrBytes(&parts[2]); !ok {
		return fmt.Errorf("%w: method name", ErrBadMessage)
	}
	if m.Args, ok = parts[3].List(); !ok {
		return fmt.Errorf("%w: arguments", ErrBadMessage)
	}
	if d.p.objects && (d.MayHold == nil || !d.MayHold(m.Name)) {
		return fmt.Errorf("%w: object for %s", ErrBadMessage, m.Name)
	}
	return nil
}

func (d *MessageDecoder) id(v *Value, id *MsgID) error {
	if v.Kind == KindInt {
		id.N = v.Int()
		return nil
	}
	if v.Kind == KindTuple && len(v.Items) == 2 {
		a, b := &v.Items[0], &v.Items[1]
		if a.Kind == KindBytes && b.Kind == KindBytes && len(a.B) == 8 && len(b.B) == 8 {
			id.Pair = true
			copy(id.A[:], a.B)
			copy(id.B[:], b.B)
			return nil
		}
	}
	e := Encoder{Msgpack: d.Msgpack}
	budget := 100
	if err := e.Value(v, 0, &budget); err != nil {
		return err
	}
	if !hashable(v) {
		return fmt.Errorf("%w: message id", ErrBadMessage)
	}
	id.raw = e.B
	return nil
}

// Extension returns the dict v of the message as a pickle that stands for itself,
// empty for an empty one.
func (d *MessageDecoder) Extension(v *Value) ([]byte, error) {
	if v.Kind == KindNil || v.Kind == KindDict && len(v.Box.Items) == 0 {
		return nil, nil
	}
	if v.Kind != KindDict {
		return nil, ArgError("extension: want a dict")
	}
	if !d.Msgpack && v.start >= 0 && !d.p.shared {
		b := make([]byte, 0, int(v.end-v.start)+3)
		b = append(b, 0x80, 3)
		b = append(b, d.frame[v.start:v.end]...)
		return append(b, '.'), nil
	}
	e := Encoder{B: []byte{0x80, 3}}
	budget := MaxValues
	if err := e.Value(v, 0, &budget); err != nil {
		return nil, err
	}
	return append(e.B, '.'), nil
}

// TextOrBytes returns the bytes of a text or of bytes, false for anything else.
func TextOrBytes(v *Value) ([]byte, bool) {
	return v.B, v.Kind == KindText || v.Kind == KindBytes
}

// ArgError is an argument of the wrong type: builtins.TypeError to the client.
type ArgError string

// Error implements error.
func (e ArgError) Error() string { return string(e) }

// AsTID returns v as a transaction id, or an [ArgError] that names what.
func (v *Value) AsTID(what string) (tid.TID, error) {
	if v.Kind != KindBytes || len(v.B) != 8 {
		return 0, ArgError(what + ": want 8 bytes")
	}
	return tid.FromBytes(v.B), nil
}

// AsBase reads the revision a store starts from: None for a new object. Some
// programs give a text.
func (v *Value) AsBase(what string) (tid.TID, error) {
	switch {
	case v.Kind == KindNil:
		return tid.Zero, nil
	case v.Kind == KindText && len(v.B) == 8:
		return tid.FromBytes(v.B), nil
	}
	return v.AsTID(what)
}

// AsOID returns v as an object id, or an [ArgError].
func (v *Value) AsOID() (tid.OID, error) {
	if v.Kind != KindBytes || len(v.B) != 8 {
		return 0, ArgError("object id: want 8 bytes")
	}
	return tid.OIDFromBytes(v.B), nil
}

// AsInt returns v as an int, or an [ArgError] that names what.
func (v *Value) AsInt(what string) (int64, error) {
	if v.Kind != KindInt && v.Kind != KindBool {
		return 0, ArgError(what + ": want an int")
	}
	return v.Int(), nil
}

// AsBytes returns the bytes of a text or of bytes, or an [ArgError] that names what.
func (v *Value) AsBytes(what string) ([]byte, error) {
	b, ok := TextOrBytes(v)
	if !ok {
		return nil, ArgError(what + ": want bytes")
	}
	return b, nil
}

// Equal compares plain values as Python would, closely enough for a filter.
func (v *Value) Equal(w *Value) bool {
	switch {
	case v.Kind == KindPrefix:
		return (w.Kind == KindText || w.Kind == KindBytes) && bytes.HasPrefix(w.B, v.B)
	case v.Kind == KindText || v.Kind == KindBytes:
		return (w.Kind == KindText || w.Kind == KindBytes) && bytes.Equal(v.B, w.B)
	case v.Kind == KindInt && w.Kind == KindFloat:
		return float64(v.Int()) == w.Float()
	case v.Kind == KindFloat && w.Kind == KindInt:
		return v.Float() == float64(w.Int())
	case v.Kind == KindFloat && w.Kind == KindFloat:
		return v.Float() == w.Float()
	case v.Kind == KindTuple && w.Kind == KindTuple:
		if len(v.Items) != len(w.Items) {
			return false
		}
		for i := range v.Items {
			if !v.Items[i].Equal(&w.Items[i]) {
				return false
			}
		}
		return true
	}
	return v.Kind == w.Kind && v.n == w.n && v.Kind <= KindBig && bytes.Equal(v.B, w.B)
}
