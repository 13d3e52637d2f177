package zeo

import (
	"bytes"
	"fmt"

	"github.com/neozodb/neo/cluster/tid"
)

// message is one call of a client. It refers to the frame it came in and is valid
// until the next one is decoded.
type message struct {
	id        msgID
	heartbeat bool
	async     bool // no answer is wanted
	name      []byte
	args      []value
}

// msgID is given back as it came: an int, or for loadBefore its two arguments.
type msgID struct {
	raw  []byte // anything else, encoded
	n    int64
	pair bool
	a, b [8]byte
}

// messageDecoder decodes the frames of one connection after the handshake.
type messageDecoder struct {
	msgpack bool
	// mayHold reports whether an argument of a method may hold objects, of the few
	// classes that clients may name. nil: no argument may.
	mayHold func(method []byte) bool

	m      msgpackDecoder
	p       pickleDecoder
	frame   []byte
}

// decode reads a frame into m.
func (d *messageDecoder) decode(frame []byte, m *message) error {
	var v value
	var err error
	d.frame = frame
	if d.msgpack {
		v, err = d.m.decode(frame)
	} else {
		v, err = d.p.decode(frame, true)
	}
	if err != nil {
		return err
	}
	parts, ok := v.list()
	if !ok || len(parts) != 4 {
		return fmt.Errorf("%w: want (id, flag, name, arguments)", errBadMessage)
	}
	*m = message{}
	id := &parts[0]
	if id.kind == kindInt && id.int() == -1 {
		m.heartbeat = true
		return nil
	}
	if err := d.id(id, &m.id); err != nil {
		return err
	}
	if m.async, ok = parts[1].truth(); !ok {
		return fmt.Errorf("%w: flag", errBadMessage)
	}
	if m.name, ok = textOrBytes(&parts[2]); !ok {
		return fmt.Errorf("%w: method name", errBadMessage)
	}
	if m.args, ok = parts[3].list(); !ok {
		return fmt.Errorf("%w: arguments", errBadMessage)
	}
	if d.p.objects && (d.mayHold == nil || !d.mayHold(m.name)) {
		return fmt.Errorf("%w: object for %s", errBadMessage, m.name)
	}
	return nil
}

func (d *messageDecoder) id(v *value, id *msgID) error {
	if v.kind == kindInt {
		id.n = v.int()
		return nil
	}
	if v.kind == kindTuple && len(v.items) == 2 {
		a, b := &v.items[0], &v.items[1]
		if a.kind == kindBytes && b.kind == kindBytes && len(a.b) == 8 && len(b.b) == 8 {
			id.pair = true
			copy(id.a[:], a.b)
			copy(id.b[:], b.b)
			return nil
		}
	}
	e := encoder{msgpack: d.msgpack}
	budget := 100
	if err := e.value(v, 0, &budget); err != nil {
		return err
	}
	if !hashable(v) {
		return fmt.Errorf("%w: message id", errBadMessage)
	}
	id.raw = e.b
	return nil
}

// extension returns the dict v of the message as a pickle that stands for itself,
// empty for an empty one.
func (d *messageDecoder) extension(v *value) ([]byte, error) {
	if v.kind == kindNil || v.kind == kindDict && len(v.box.items) == 0 {
		return nil, nil
	}
	if v.kind != kindDict {
		return nil, argError("extension: want a dict")
	}
	if !d.msgpack && v.start >= 0 && !d.p.shared {
		b := make([]byte, 0, int(v.end-v.start)+3)
		b = append(b, 0x80, 3)
		b = append(b, d.frame[v.start:v.end]...)
		return append(b, '.'), nil
	}
	e := encoder{b: []byte{0x80, 3}}
	budget := maxValues
	if err := e.value(v, 0, &budget); err != nil {
		return nil, err
	}
	return append(e.b, '.'), nil
}

func textOrBytes(v *value) ([]byte, bool) {
	return v.b, v.kind == kindText || v.kind == kindBytes
}

// argError is an argument of the wrong type: builtins.TypeError to the client.
type argError string

func (e argError) Error() string { return string(e) }

func (v *value) asTID(what string) (tid.TID, error) {
	if v.kind != kindBytes || len(v.b) != 8 {
		return 0, argError(what + ": want 8 bytes")
	}
	return tid.FromBytes(v.b), nil
}

// asBase reads the revision a store starts from: None for a new object. Some
// programs give a text.
func (v *value) asBase(what string) (tid.TID, error) {
	switch {
	case v.kind == kindNil:
		return tid.Zero, nil
	case v.kind == kindText && len(v.b) == 8:
		return tid.FromBytes(v.b), nil
	}
	return v.asTID(what)
}

func (v *value) asOID() (tid.OID, error) {
	if v.kind != kindBytes || len(v.b) != 8 {
		return 0, argError("object id: want 8 bytes")
	}
	return tid.OIDFromBytes(v.b), nil
}

func (v *value) asInt(what string) (int64, error) {
	if v.kind != kindInt && v.kind != kindBool {
		return 0, argError(what + ": want an int")
	}
	return v.int(), nil
}

func (v *value) asBytes(what string) ([]byte, error) {
	b, ok := textOrBytes(v)
	if !ok {
		return nil, argError(what + ": want bytes")
	}
	return b, nil
}

// equal compares plain values as Python would, closely enough for a filter.
func (v *value) equal(w *value) bool {
	switch {
	case v.kind == kindPrefix:
		return (w.kind == kindText || w.kind == kindBytes) && bytes.HasPrefix(w.b, v.b)
	case v.kind == kindText || v.kind == kindBytes:
		return (w.kind == kindText || w.kind == kindBytes) && bytes.Equal(v.b, w.b)
	case v.kind == kindInt && w.kind == kindFloat:
		return float64(v.int()) == w.float()
	case v.kind == kindFloat && w.kind == kindInt:
		return v.float() == float64(w.int())
	case v.kind == kindFloat && w.kind == kindFloat:
		return v.float() == w.float()
	case v.kind == kindTuple && w.kind == kindTuple:
		if len(v.items) != len(w.items) {
			return false
		}
		for i := range v.items {
			if !v.items[i].equal(&w.items[i]) {
				return false
			}
		}
		return true
	}
	return v.kind == w.kind && v.n == w.n && v.kind <= kindBig && bytes.Equal(v.b, w.b)
}
