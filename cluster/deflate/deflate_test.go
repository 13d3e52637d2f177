package deflate

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/neozodb/neo/cluster/proto"
)

// What does not get smaller is stored as it is, most of it without trying.
func TestPack(t *testing.T) {
	random := make([]byte, 4000)
	rand.NewChaCha8([32]byte{}).Read(random)
	text := bytes.Repeat([]byte("persistent.mapping "), 200)
	p := Packer{Level: DefaultLevel}
	for _, tt := range []struct {
		name    string
		data    []byte
		smaller bool
	}{
		{"random", random, false},
		{"short and random", random[:20], false},
		{"text", text, true},
		{"short text", text[:200], true},
		{"half random", append(random[:2000:2000], text[:2000]...), true},
		{"other half random", append(text[:2000:2000], random[:2000]...), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			o := p.Pack(tt.data)
			if smaller := o.Compression != None; smaller != tt.smaller {
				t.Errorf("compressed: %v, want %v", smaller, tt.smaller)
			}
			if got, err := Unpack(&o); err != nil || !Valid(&o) || !bytes.Equal(got, tt.data) {
				t.Errorf("got %d bytes, %v; want the %d that were packed", len(got), err, len(tt.data))
			}
		})
	}
}

// A record that is kept keeps no buffer that it shares with others, and nothing that is
// appended to it is written to one.
func TestUnpackAliases(t *testing.T) {
	for size, alias := range map[int]bool{1: false, proto.MaxChunk - 1: false, proto.MaxChunk: true} {
		buf := make([]byte, size+10)
		got, err := Unpack(&proto.ObjectData{Data: buf[:size]})
		if err != nil || len(got) != size || cap(got) < size {
			t.Fatalf("%d bytes: %d bytes, %v", size, len(got), err)
		}
		if (&got[0] == &buf[0]) != alias {
			t.Errorf("%d bytes: aliases the buffer: %v, want %v", size, !alias, alias)
		}
		if _ = append(got, 1); buf[size] != 0 {
			t.Errorf("%d bytes: the buffer was written", size)
		}
	}
}
