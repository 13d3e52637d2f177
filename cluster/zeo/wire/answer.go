package wire

import "fmt"

// maxAnswerValues bounds the values of a message of the server, which may list many
// revisions at once.
const maxAnswerValues = 1 << 20

// Answer is a message of the server: the answer to a call, or a notification. It
// refers to the frame it came in and is valid until the next one is decoded.
type Answer struct {
	Notice bool   // a notification: of ID, Flag and Value only Value is set
	ID     int64  // of the call
	Flag   int64  // FlagResult or FlagException
	Name   []byte // of the notification
	Value  Value  // result, exception, or arguments
}

// AnswerDecoder decodes the frames that a client gets after the handshake. The ids of
// its calls must be ints.
type AnswerDecoder struct {
	Msgpack bool // not pickles

	m     MsgpackDecoder
	p     PickleDecoder
	frame []byte
}

// Decode reads a frame into a.
func (d *AnswerDecoder) Decode(frame []byte, a *Answer) error {
	var v Value
	var err error
	d.frame = frame
	if d.Msgpack {
		d.m.most = maxAnswerValues
		v, err = d.m.Decode(frame)
	} else {
		d.p.most = maxAnswerValues
		v, err = d.p.Decode(frame, false)
	}
	if err != nil {
		return err
	}
	parts, ok := v.List()
	if !ok || len(parts) != 4 {
		return fmt.Errorf("%w: want (id, flag, name, value)", ErrBadMessage)
	}
	*a = Answer{Value: parts[3]}
	if a.Name, ok = TextOrBytes(&parts[2]); !ok {
		return fmt.Errorf("%w: method name", ErrBadMessage)
	}
	if string(a.Name) != ".reply" {
		// A call that wants an answer gets none: it may stand in place of one.
		if async, ok := parts[1].Truth(); !ok || !async {
			return fmt.Errorf("%w: call of %.40q by the server", ErrBadMessage, a.Name)
		}
		a.Notice = true
		return nil
	}
	id, flag := &parts[0], &parts[1]
	if id.Kind != KindInt || flag.Kind != KindInt || flag.Int() != FlagResult && flag.Int() != FlagException {
		return fmt.Errorf("%w: answer to no call of ours", ErrBadMessage)
	}
	a.ID, a.Flag, a.Name = id.Int(), flag.Int(), nil
	return nil
}

// Extension returns the dict v of the answer as a pickle that stands for itself, empty
// for an empty one. Of pickles the very bytes are kept. The error is [ErrBadMessage] if
// v is no dict, or if it has objects and refers to what stands elsewhere.
func (d *AnswerDecoder) Extension(v *Value) ([]byte, error) {
	if v.Kind != KindDict {
		return nil, fmt.Errorf("%w: extension: want a dict", ErrBadMessage)
	}
	if len(v.Box.Items) == 0 {
		return nil, nil
	}
	if !d.Msgpack && v.start >= 0 && !d.p.shared {
		b := append(make([]byte, 0, int(v.end-v.start)+3), 0x80, 3)
		b = append(b, d.frame[v.start:v.end]...)
		return append(b, '.'), nil
	}
	if d.p.objects {
		return nil, fmt.Errorf("%w: extension with objects that are shared", ErrBadMessage)
	}
	return PickleDict(v.Box.Items)
}

// PickleDict returns a dict of keys and values in turn as a pickle, empty without any.
func PickleDict(items []Value) ([]byte, error) {
	if len(items) == 0 {
		return nil, nil
	}
	e := Encoder{B: []byte{0x80, 3}}
	budget := MaxValues
	dict := Value{Kind: KindDict, Box: &Box{items}, start: -1}
	if err := e.Value(&dict, 0, &budget); err != nil {
		return nil, err
	}
	return append(e.B, '.'), nil
}

// BeginCall opens the frame of a call; the tuple of its arguments has to follow.
func (e *Encoder) BeginCall(id int64, async bool, method string) int {
	at := e.BeginFrame()
	if e.Msgpack {
		e.B = append(e.B, 0x94)
	} else {
		e.B = append(e.B, 0x80, 3, '(')
	}
	e.Int(id)
	e.Bool(async)
	e.Text(method)
	return at
}

// Heartbeat writes the frame that tells a server that its client is alive.
func (e *Encoder) Heartbeat() {
	at := e.BeginFrame()
	if e.Msgpack {
		e.B = append(e.B, 0x94)
	} else {
		e.B = append(e.B, 0x80, 3, '(')
	}
	e.Int(-1)
	e.Int(0)
	e.Text(".reply")
	e.Null()
	e.EndMessage(at)
}
