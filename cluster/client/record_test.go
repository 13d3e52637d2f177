package client

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// What does not get smaller is stored as it is, most of it without trying.
func TestPack(t *testing.T) {
	random := make([]byte, 4000)
	rand.NewChaCha8([32]byte{}).Read(random)
	text := bytes.Repeat([]byte("persistent.mapping "), 200)
	p := packer{level: DefaultLevel}
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
			o := p.pack(tt.data)
			if smaller := o.Compression != compressNone; smaller != tt.smaller {
				t.Errorf("compressed: %v, want %v", smaller, tt.smaller)
			}
			if got, err := decode(&o); err != nil || !bytes.Equal(got, tt.data) {
				t.Errorf("got %d bytes, %v; want the %d that were packed", len(got), err, len(tt.data))
			}
		})
	}
}
