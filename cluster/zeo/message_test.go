package zeo

import (
	"encoding/hex"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/neozodb/neo/cluster/tid"
	"github.com/neozodb/neo/cluster/zeo/wire"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Neither do the few values that are kept or written anew of a message.
func TestSharedArgumentsDoNotExplode(t *testing.T) {
	// Pairs of the pair before.
	pairs := []byte{')'}
	for i := byte(0); i < 50; i++ {
		pairs = append(pairs, 'q', i, 'h', i, 0x86)
	}
	// One long text many times.
	texts := append([]byte{'(', 'X', 0, 0, 1, 0}, make([]byte, 1<<16)...)
	texts = append(texts, 'q', 0)
	for range 2000 {
		texts = append(texts, 'h', 0)
	}
	texts = append(texts, 't')
	for _, tt := range []struct {
		name   string
		shared []byte
	}{{"pairs", pairs}, {"texts", texts}} {
		key := slices.Concat([]byte{'}'}, tt.shared, []byte{'K', 1, 's'})
		item := slices.Concat([]byte{'}', 'K', 1}, tt.shared, []byte{'s'})
		for _, dict := range [][]byte{key, item} {
			d := wire.MessageDecoder{MayHold: mayHoldObjects}
			var m wire.Message
			frame := slices.Concat([]byte{0x80, 3, '(', 'K', 1, 0x89}, []byte("X\x08\x00\x00\x00undoInfo(K\x00K\x01"), dict, []byte("tt."))
			if err := d.Decode(frame, &m); err != nil {
				t.Fatal(err)
			}
			if _, err := cloneSpec(m.Args[2].Box.Items); !errors.Is(err, wire.ErrTooComplex) {
				t.Errorf("copying %s: %v", tt.name, err)
			}
			if _, err := d.Extension(&m.Args[2]); !errors.Is(err, wire.ErrTooComplex) {
				t.Errorf("encoding %s: %v", tt.name, err)
			}
		}
	}
	d := wire.MessageDecoder{MayHold: mayHoldObjects}
	var m wire.Message
	frame := slices.Concat([]byte{0x80, 3, '('}, pairs, []byte{0x89}, []byte("X\x04\x00\x00\x00ping)t."))
	if err := d.Decode(frame, &m); !errors.Is(err, wire.ErrTooComplex) {
		t.Errorf("pairs as the id of a message: %v", err)
	}
}

func decodeAny(msgpack bool, b []byte) (wire.Value, error) {
	if msgpack {
		var d wire.MsgpackDecoder
		return d.Decode(b)
	}
	var d wire.PickleDecoder
	return d.Decode(append(append([]byte{0x80, 3}, b...), '.'), false)
}

// The bytes of answers and notifications are those of the Python server.
func TestServerMessages(t *testing.T) {
	oid, at := tid.OID(1), tid.TID(0x040d266d8c00bb22)
	for _, tt := range []struct {
		name            string
		make            func(*wire.Encoder)
		pickle, msgpack string
	}{
		{"answer to register", func(e *wire.Encoder) {
			f := e.BeginReply(&wire.MsgID{N: 1}, wire.FlagResult)
			e.TID(tid.Zero)
			e.EndMessage(f)
		}, "0000001e 8003 28 4b01 4b00 58 06000000 2e7265706c79 43 08 0000000000000000 74 2e",
			"00000014 94 01 00 a62e7265706c79 c4080000000000000000"},
		{"error of loadBefore", func(e *wire.Encoder) {
			id := wire.MsgID{Pair: true, A: [8]byte{7: 1}, B: [8]byte{0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}}
			appendError(e, &id, keyError(oid.Bytes()))
		}, "00000055 8003 28 43 08 0000000000000001 43 08 7fffffffffffffff 86 4b02 58 06000000 2e7265706c79 58 1d000000 5a4f44422e504f53457863657074696f6e2e504f534b65794572726f72 43 08 0000000000000001 85 86 74 2e",
			"00000048 94 92 c4080000000000000001 c4087fffffffffffffff 02 a62e7265706c79 92 bd5a4f44422e504f53457863657074696f6e2e504f534b65794572726f72 91 c4080000000000000001"},
		{"invalidation", func(e *wire.Encoder) {
			f := e.BeginNotice("invalidateTransaction")
			e.BeginTuple(2)
			e.TID(at)
			e.OIDs([]tid.OID{0, 1})
			e.EndTuple(2)
			e.EndMessage(f)
		}, "00000044 8003 28 4b00 88 58 15000000 696e76616c69646174655472616e73616374696f6e 43 08 040d266d8c00bb22 5d 28 43 08 0000000000000000 43 08 0000000000000001 65 86 74 2e",
			"00000039 94 00 c3 b5696e76616c69646174655472616e73616374696f6e 92 c408040d266d8c00bb22 92 c4080000000000000000 c4080000000000000001"},
		{"info", func(e *wire.Encoder) {
			f := e.BeginNotice("info")
			e.BeginTuple(1)
			e.BeginDict(2)
			e.Text("length")
			e.Int(2)
			e.Text("size")
			e.Int(0x112)
			e.EndDict(2)
			e.EndTuple(1)
			e.EndMessage(f)
		}, "0000002e 8003 28 4b00 88 58 04000000 696e666f 7d 28 58 06000000 6c656e677468 4b02 58 04000000 73697a65 4d1201 75 85 74 2e",
			"0000001a 94 00 c3 a4696e666f 91 82 a66c656e677468 02 a473697a65 cd0112"},
	} {
		for _, msgpack := range []bool{false, true} {
			want := tt.pickle
			if msgpack {
				want = tt.msgpack
			}
			e := wire.Encoder{Msgpack: msgpack}
			tt.make(&e)
			if got := unhex(t, want); !reflect.DeepEqual(e.B, got) {
				t.Errorf("%s, msgpack %v:\ngot  %x\nwant %x", tt.name, msgpack, e.B, got)
			}
		}
	}
}

// undoInfo takes a ZopeUndo.Prefix, which is never built.
func TestPrefix(t *testing.T) {
	b := "\x80\x03(K\x01\x89X\x08\x00\x00\x00undoInfoK\x00J\xec\xff\xff\xff}X\x09\x00\x00\x00user_name" +
		"cZopeUndo.Prefix\nPrefix\n)\x81}X\x05\x00\x00\x00valueK\x04X\x04\x00\x00\x00/foo\x86sbs\x87t."
	d := wire.MessageDecoder{MayHold: mayHoldObjects}
	var m wire.Message
	if err := d.Decode([]byte(b), &m); err != nil {
		t.Fatal(err)
	}
	spec := m.Args[2].Box.Items
	for _, tt := range []struct {
		user string
		want bool
	}{{"/foo bar", true}, {"/fo", false}, {"x/foo", false}} {
		meta := meta{TID: 1, User: []byte(tt.user)}
		if got := meta.matches([]specItem{{spec[0], spec[1]}}); got != tt.want {
			t.Errorf("user %q matches: %v, want %v", tt.user, got, tt.want)
		}
	}
}

// Objects are refused where the arguments of a method hold none.
func TestObjectsWhereNoneBelong(t *testing.T) {
	for name, frame := range map[string]string{
		"ping":           "8003 28 4b01 89 58 04000000 70696e67 28 63 6275696c74696e730a7365740a 74 74 2e",
		"unknown method": "8003 28 4b01 89 58 04000000 70696e68 28 63 6275696c74696e730a7365740a 74 74 2e",
	} {
		d := wire.MessageDecoder{MayHold: mayHoldObjects}
		var m wire.Message
		if err := d.Decode(unhex(t, frame), &m); !errors.Is(err, wire.ErrBadMessage) {
			t.Errorf("%s: got %v, want a malformed message", name, err)
		}
	}
}

// What is stored by others may hold anything: it is shown as well as possible.
func TestExtensionDict(t *testing.T) {
	for _, tt := range []struct{ name, pickle, want string }{
		{"none", "", "8003 7d 2e"},
		{"plain with memo", "8002 7d 7100 58 01000000 6b 7101 4b01 73 2e", "8003 7d 58 01000000 6b 4b01 73 2e"},
		{"object", "8003 7d 58 01000000 6b 63 6f730a73797374656d0a 29 52 73 2e", "8003 7d 58 01000000 6b 58 0b000000 3c6f732073797374656d3e 73 2e"},
		{"no dict", "8003 4e 2e", "8003 7d 2e"},
		{"damaged", "8003 7d 58", "8003 7d 2e"},
	} {
		e := wire.Encoder{B: []byte{0x80, 3}}
		encodeExtension(&e, unhex(t, tt.pickle))
		e.B = append(e.B, '.')
		if want := unhex(t, tt.want); !reflect.DeepEqual(e.B, want) {
			t.Errorf("%s: got %x, want %x", tt.name, e.B, want)
		}
	}
}

// Whatever is stored as an extension, the answer that shows it can be decoded.
func FuzzExtension(f *testing.F) {
	for _, s := range []string{"8002 7d 7100 58 01000000 6b 7101 4b01 73 2e", "8004 95 0b00000000000000 7d 94 8c 01 6b 94 4b01 73 2e"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, msgpack := range []bool{false, true} {
			e := wire.Encoder{Msgpack: msgpack}
			encodeExtension(&e, b)
			e.BeginTuple(0)
			e.EndTuple(0)
			if !msgpack {
				e.B = append(e.B, 0x86)
			}
			if msgpack {
				e.B = append([]byte{0x92}, e.B...)
			}
			if _, err := decodeAny(msgpack, e.B); err != nil && !errors.Is(err, wire.ErrTooComplex) {
				t.Errorf("%x: %x: %v", b, e.B, err)
			}
			m := meta{TID: 1, Extension: b}
			e.B = e.B[:0]
			encodeMeta(&e, &m, metaUndo)
			if _, err := decodeAny(msgpack, e.B); err != nil && !errors.Is(err, wire.ErrTooComplex) {
				t.Errorf("%x: %x: %v", b, e.B, err)
			}
		}
	})
}
