package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// holdObjects are the methods whose arguments may hold objects in these tests.
func holdObjects(method []byte) bool {
	return string(method) == "undoInfo" || string(method) == "tpc_begin"
}

// Frames without length, as clients of ZEO 5 and 6 send them.
var clientPickles = []string{
	"8003 28 4b01 89 58 08000000 7265676973746572 58 01000000 31 4b00 86 74 2e",                                                                           // register
	"8003 28 4b02 89 58 08000000 6765745f696e666f 29 74 2e",                                                                                               // get_info
	"8003 28 43 08 0000000000000001 43 08 7fffffffffffffff 86 89 58 0a000000 6c6f61644265666f7265 43 08 0000000000000001 43 08 7fffffffffffffff 86 74 2e", // loadBefore
	"8003 28 4b00 88 58 09000000 7470635f626567696e 28 8a 06 d020f1f62e7f 43 04 75736572 43 05 6465736372 7d 28 58 01000000 6b 58 01000000 76 58 01000000 62 43 01 ff 75 4e 58 01000000 20 74 74 2e",
	"8003 28 4a ffffffff 4b00 58 06000000 2e7265706c79 4e 74 2e",             // heartbeat
	"8003 28 4b32 89 58 04000000 7061636b 47 41dac02b6bc51063 4b01 86 74 2e", // pack
}

var clientMsgpacks = []string{
	"94 01 c2 a87265676973746572 92 a131 00",
	"94 02 c2 a86765745f696e666f 90",
	"94 92 c4080000000000000001 c4087fffffffffffffff c2 aa6c6f61644265666f7265 92 c4080000000000000001 c4087fffffffffffffff",
	"94 00 c3 a97470635f626567696e 96 cf00007fb7a549f5d0 c40175 c40164 80 c0 a120",
	"94 ff 00 a62e7265706c79 c0",
}

func TestDecodeWhatClientsSend(t *testing.T) {
	for i, list := range [][]string{clientPickles, clientMsgpacks} {
		d := MessageDecoder{Msgpack: i == 1, MayHold: holdObjects}
		for _, s := range list {
			var m Message
			if err := d.Decode(unhex(t, s), &m); err != nil {
				t.Errorf("%s: %v", s, err)
			}
		}
	}
	d := MessageDecoder{MayHold: holdObjects}
	var m Message
	if err := d.Decode(unhex(t, clientPickles[2]), &m); err != nil {
		t.Fatal(err)
	}
	if !m.ID.Pair || m.ID.A[7] != 1 || m.ID.B[0] != 0x7f || m.Async || string(m.Name) != "loadBefore" {
		t.Errorf("loadBefore decoded as %+v", m)
	}
	if err := d.Decode(unhex(t, clientPickles[3]), &m); err != nil {
		t.Fatal(err)
	}
	if id, err := m.Args[0].AsInt("id"); id != 0x7f2ef6f120d0 || err != nil || !m.Async {
		t.Errorf("transaction id %#x, %v, async %v", id, err, m.Async)
	}
	// The dict is cut out of the message and stands for itself.
	ext, err := d.Extension(&m.Args[3])
	want := unhex(t, "8003 7d 28 58 01000000 6b 58 01000000 76 58 01000000 62 43 01 ff 75 2e")
	if err != nil || !reflect.DeepEqual(ext, want) {
		t.Errorf("extension % x, %v, want % x", ext, err, want)
	}
	if err := d.Decode(unhex(t, clientPickles[4]), &m); err != nil || !m.Heartbeat {
		t.Errorf("heartbeat: %+v, %v", m, err)
	}
}

// Extensions of msgpack clients become pickles.
func TestExtensionOfMsgpack(t *testing.T) {
	d := MessageDecoder{Msgpack: true, MayHold: holdObjects}
	var m Message
	frame := unhex(t, "94 00 c3 a97470635f626567696e 94 01 c40175 c40164 82 a16b a176 a162 c401ff")
	if err := d.Decode(frame, &m); err != nil {
		t.Fatal(err)
	}
	ext, err := d.Extension(&m.Args[3])
	want := unhex(t, "8003 7d 28 58 01000000 6b 58 01000000 76 58 01000000 62 43 01 ff 75 2e")
	if err != nil || !reflect.DeepEqual(ext, want) {
		t.Errorf("extension % x, %v, want % x", ext, err, want)
	}
}

func TestRefusedMessages(t *testing.T) {
	for _, tt := range []struct {
		msgpack  bool
		why, hex string
	}{
		{false, "empty", ""},
		{false, "no end", "8003 4e"},
		{false, "not a tuple", "8003 4e 2e"},
		{false, "three parts", "8003 4b01 89 58 01000000 61 87 2e"},
		{false, "bytes after the end", "8003 28 4b01 89 58 04000000 70696e67 29 74 2e 00"},
		{false, "stack underflow", "8003 85 2e"},
		{false, "pop below a mark", "8003 4e 28 85 2e"},
		{false, "length beyond the end", "8003 58 ffffffff 61 2e"},
		{false, "length of 8 bytes beyond the end", "8003 8d ffffffffffffff7f 61 2e"},
		{false, "empty memo", "8003 68 07 2e"},
		{false, "class that may do harm", "8003 28 4b01 89 58 08000000 756e646f496e666f 28 63 6f730a73797374656d0a 58 02000000 6c73 85 52 74 74 2e"},
		{false, "class where none belongs", "8003 28 4b01 89 58 04000000 70696e67 28 63 6275696c74696e730a7365740a 74 74 2e"},
		{false, "function of builtins", "8003 28 4b01 89 58 08000000 756e646f496e666f 28 63 6275696c74696e730a6576616c0a 58 01000000 31 85 52 74 74 2e"},
		{false, "persistent id", "8003 28 4b01 89 58 04000000 70696e67 28 4b01 51 74 74 2e"},
		{false, "list as id", "8003 28 5d 89 58 04000000 70696e67 29 74 2e"},
		{false, "text that is no UTF-8", "8003 28 4b01 89 58 01000000 ff 29 74 2e"},
		{true, "empty", ""},
		{true, "cut", "94 01"},
		{true, "three parts", "93 01 c2 a161"},
		{true, "more items than bytes", "dd ffffffff 01"},
		{true, "extension type", "94 01 c2 a470696e67 91 d4 01 00"},
		{true, "text that is no UTF-8", "94 01 c2 a1ff 90"},
		{true, "bytes after the end", "94 01 c2 a470696e67 90 00"},
		{true, "too deep", strings.Repeat("91", 100) + "c0"},
	} {
		d := MessageDecoder{Msgpack: tt.msgpack, MayHold: holdObjects}
		var m Message
		if err := d.Decode(unhex(t, tt.hex), &m); !errors.Is(err, ErrBadMessage) {
			t.Errorf("%s: got %v, want a malformed message", tt.why, err)
		}
	}
}

// A message can make the decoder hold only a bounded number of values, and the
// encoder write only a bounded number of them.
func TestSharedPartsDoNotExplode(t *testing.T) {
	b := []byte{0x80, 3, ']', 'q', 0}
	for i := byte(0); i < 40; i++ { // a list of twice the list before
		b = append(b, '0', ']', 'q', i+1, 'h', i, 'a', 'h', i, 'a')
	}
	b = append(b, '.')
	var d PickleDecoder
	v, err := d.Decode(b, true)
	if err != nil {
		t.Fatal(err)
	}
	var e Encoder
	budget := MaxValues
	if err := e.Value(&v, 0, &budget); !errors.Is(err, ErrTooComplex) {
		t.Errorf("encoding gave %v and %d bytes", err, len(e.B))
	}
	loop := []byte{0x80, 3, ']', 'q', 0, 'h', 0, 'a', '.'} // a list in itself
	if v, err = d.Decode(loop, true); err != nil {
		t.Fatal(err)
	}
	budget = MaxValues
	if err := e.Value(&v, 0, &budget); !errors.Is(err, ErrTooComplex) {
		t.Errorf("encoding a loop gave %v", err)
	}
	if _, err := d.Decode(append(append([]byte{0x80, 3}, strings.Repeat("N", 1<<20)...), '.'), true); !errors.Is(err, ErrTooComplex) {
		t.Errorf("a million values: %v", err)
	}
}

// What is copied of a part that is fetched again and again counts each time.
func TestCopiesOfSharedPartsCount(t *testing.T) {
	long := string(binary.LittleEndian.AppendUint32([]byte{'X'}, 100_000)) + strings.Repeat("a", 100_000)
	for _, tt := range []struct {
		name           string
		shared, copied string
		fromClient     bool
	}{
		{"dict()", "K\x01K\x02\x86q\x000(" + strings.Repeat("h\x00", 20_000) + "lq\x010cbuiltins\ndict\nq\x020", "h\x02h\x01\x85R", true},
		{"bytes as text", long + "q\x000X\x06\x00\x00\x00latin1q\x010c_codecs\nencode\nq\x020", "h\x02h\x00h\x01\x86R", false},
		{"names of classes", long + "q\x000", "h\x00h\x00\x93", false},
	} {
		var d PickleDecoder
		for n, want := range map[int]error{1: nil, 1000: ErrTooComplex} {
			b := "\x80\x03" + tt.shared + "(" + strings.Repeat(tt.copied, n) + "t."
			if _, err := d.Decode([]byte(b), tt.fromClient); !errors.Is(err, want) {
				t.Errorf("%s: %d bytes with %d copies: %v, want %v", tt.name, len(b), n, err, want)
			}
		}
	}

	// Keys that msgpack does not have become text.
	prefix := "\x80\x03cZopeUndo.Prefix\nPrefix\n)R}X\x05\x00\x00\x00valueK\x01" + long + "\x86sbq\x000"
	var d PickleDecoder
	v, err := d.Decode([]byte(prefix+"("+strings.Repeat("h\x00N", 1000)+"d."), true)
	if err != nil {
		t.Fatal(err)
	}
	e := Encoder{Msgpack: true}
	budget := MaxValues
	if err := e.Value(&v, 0, &budget); !errors.Is(err, ErrTooComplex) {
		t.Errorf("a long key, a thousand times: %v and %d bytes", err, len(e.B))
	}
}

func TestInts(t *testing.T) {
	for _, n := range []int64{0, 1, 127, 128, 255, 256, 65535, 65536, math.MaxInt32, math.MaxInt32 + 1, 1 << 40, math.MaxInt64,
		-1, -32, -33, -128, -129, -32768, -32769, math.MinInt32, math.MinInt32 - 1, -1 << 40, math.MinInt64} {
		for _, msgpack := range []bool{false, true} {
			e := Encoder{Msgpack: msgpack}
			e.Int(n)
			v, err := decodeValue(msgpack, e.B)
			if err != nil || v.Kind != KindInt || v.Int() != n {
				t.Errorf("msgpack %v: %d encoded as % x decodes as %d, %v", msgpack, n, e.B, v.Int(), err)
			}
		}
	}
}

// Ints beyond 64 bits, which extensions may hold, stay what they are where the
// encoding has them.
func TestBigInts(t *testing.T) {
	for _, tt := range []struct{ little, text string }{
		{"00000000000000000001", "4722366482869645213696"},
		{"ffffffffffffffff00", "18446744073709551615"},
		{"000000000000000080ff", "-2361183241434822606848"},
	} {
		b := unhex(t, tt.little)
		if got := decimal(b); got != tt.text {
			t.Errorf("%s is %s, want %s", tt.little, got, tt.text)
		}
		var e Encoder
		e.big(b)
		if v, err := decodeValue(false, e.B); err != nil || v.Kind != KindBig || !reflect.DeepEqual(v.B, b) {
			t.Errorf("%s decodes as %+v, %v", tt.little, v, err)
		}
		e = Encoder{Msgpack: true}
		e.big(b)
		if v, err := decodeValue(true, e.B); err != nil || v.Kind != KindText && !reflect.DeepEqual(v.B, b) {
			t.Errorf("%s decodes as %+v, %v", tt.little, v, err)
		}
	}
}

func decodeValue(msgpack bool, b []byte) (Value, error) {
	if msgpack {
		var d MsgpackDecoder
		return d.Decode(b)
	}
	var d PickleDecoder
	return d.Decode(append(append([]byte{0x80, 3}, b...), '.'), false)
}

func fuzz(f *testing.F, msgpack bool, seeds []string) {
	for _, s := range seeds {
		f.Add(unhex(f, s))
	}
	d := MessageDecoder{Msgpack: msgpack, MayHold: holdObjects}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m Message
		if d.Decode(b, &m) != nil || m.Heartbeat {
			return // refused
		}
		e := Encoder{Msgpack: msgpack}
		budget := MaxValues
		if !msgpack {
			e.B = append(e.B, 0x80, 3)
		}
		e.BeginTuple(4)
		e.id(&m.ID)
		e.Bool(m.Async)
		e.Bytes(m.Name)
		args := Value{Kind: KindTuple, Items: m.Args}
		if e.Value(&args, 0, &budget) != nil {
			return // too complex to go on
		}
		e.EndTuple(4)
		if !msgpack {
			// The mark of a tuple of four is needed, and an end.
			e.B = append(e.B, '.')
		}
		again := MessageDecoder{Msgpack: msgpack, MayHold: holdObjects}
		var n Message
		if err := again.Decode(e.B, &n); err != nil {
			t.Fatalf("%x was taken, but %x not: %v", b, e.B, err)
		}
		if n.Async != m.Async || !bytes.Equal(n.Name, m.Name) || len(n.Args) != len(m.Args) || n.ID.N != m.ID.N || n.ID.Pair != m.ID.Pair {
			t.Errorf("%x: %+v decodes again as %+v", b, m, n)
		}
		if string(m.Name) == "tpc_begin" && len(m.Args) > 3 {
			if ext, err := d.Extension(&m.Args[3]); err == nil && len(ext) > 0 {
				var p PickleDecoder
				if v, err := p.Decode(ext, false); err != nil || v.Kind != KindDict {
					t.Errorf("%x: extension %x decodes as %+v, %v", b, ext, v, err)
				}
			}
		}
	})
}

func FuzzMessagePickle(f *testing.F) { fuzz(f, false, clientPickles) }

func FuzzMessageMsgpack(f *testing.F) { fuzz(f, true, clientMsgpacks) }
