package zlib

import (
	"bytes"
	stdzlib "compress/zlib"
	"encoding/base64"
	"errors"
	"fmt"
	"hash/adler32"
	"io"
	"math/rand/v2"
	"os"
	"testing"

	"github.com/klauspost/compress/zlib"
)

// inputs are records of many kinds and sizes.
func inputs() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300<<10)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	text, err := os.ReadFile("decompress.go")
	if err != nil {
		panic(err)
	}
	gauss := make([]byte, 200<<10)
	for i := range gauss {
		gauss[i] = byte(int(r.NormFloat64() * .8))
	}
	all := map[string][]byte{
		"nothing":        {},
		"all bytes":      {},
		"zeros":          make([]byte, 300<<10),
		"text":           text,
		"text many":      bytes.Repeat(text, 8),
		"noise":          noise,
		"few values":     gauss,
		"base64":         []byte(base64.StdEncoding.EncodeToString(noise[:50000])),
		"far repetition": append(append(bytes.Clone(noise[:32<<10]), noise[:32<<10]...), noise[:40<<10]...),
		"two values":     bytes.ReplaceAll(bytes.Clone(gauss), []byte{0xff}, []byte{1}),
	}
	for i := range 256 {
		all["all bytes"] = append(all["all bytes"], byte(i))
	}
	// Counts that grow like Fibonacci numbers make codes that are too long.
	var deep []byte
	for i, a, b := 0, 1, 1; len(deep) < 60000; i, a, b = i+1, b, a+b {
		deep = append(deep, bytes.Repeat([]byte{byte(i * 7)}, a)...)
	}
	r.Shuffle(len(deep), func(i, j int) { deep[i], deep[j] = deep[j], deep[i] })
	all["deep code"] = deep
	for n := 0; n < 300; n += 1 + n/8 {
		all[fmt.Sprint("text of ", n)] = text[n*3 : n*4]
		all[fmt.Sprint("noise of ", n)] = noise[:n]
		all[fmt.Sprint("few values of ", n)] = gauss[:n]
	}
	for i := range 15 {
		n := r.IntN(5000)
		at := r.IntN(len(text) - n)
		all[fmt.Sprint("part of text ", i)] = text[at : at+n]
	}
	const blockSize = 1<<16 - 1 // of what is stored
	for _, n := range []int{blockSize - 1, blockSize, blockSize + 1, 2 * blockSize} {
		all[fmt.Sprint("zeros of ", n)] = make([]byte, n)
		all[fmt.Sprint("noise to ", n)] = noise[:n]
		all[fmt.Sprint("few values to ", n)] = gauss[:n]
	}
	return all
}

func standard(t testing.TB, level int, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := stdzlib.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	w.Close() // a buffer takes everything
	return buf.Bytes()
}

func klauspost(t testing.TB, level int, b []byte) []byte {
	t.Helper()
	var buf bytes.Buffer
	w, err := zlib.NewWriterLevel(&buf, level)
	if err != nil {
		t.Fatal(err)
	}
	w.Write(b)
	w.Close() // a buffer takes everything
	return buf.Bytes()
}

func expand(b []byte) ([]byte, error) {
	r, err := stdzlib.NewReader(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// What others compress, at any level, one record after the other.
func TestDecompress(t *testing.T) {
	var d Decompressor
	for name, b := range inputs() {
		for _, level := range []int{-2, 0, 1, 6} {
			for _, packed := range [][]byte{standard(t, level, b), klauspost(t, level, b)} {
				got, err := d.Append([]byte("before"), packed, len(b))
				if err != nil || !bytes.Equal(got[6:], b) || string(got[:6]) != "before" {
					t.Errorf("%s, level %d: %d bytes of %d, %v", name, level, len(got)-6, len(b), err)
				}
			}
		}
	}
}

func TestChecksum(t *testing.T) {
	big := bytes.Repeat([]byte{0xff}, 1<<20)
	for n := 0; n <= len(big); n += 1 + n/3 {
		if got, want := checksum(big[:n]), adler32.Checksum(big[:n]); got != want {
			t.Errorf("of %d bytes 255: %x, want %x", n, got, want)
		}
	}
	for name, b := range inputs() {
		if got, want := checksum(b), adler32.Checksum(b); got != want {
			t.Errorf("%s: %x, want %x", name, got, want)
		}
	}
}

func TestLimit(t *testing.T) {
	var d Decompressor
	for _, n := range []int{1, 100, 400, 5000, 1 << 20} {
		packed := standard(t, 6, make([]byte, n))
		for _, room := range []int{0, n} {
			got, err := d.Append(make([]byte, 3, 3+room), packed, n-1)
			if !errors.Is(err, ErrTooLong) || len(got) != 3 {
				t.Errorf("%d zeros with room for %d: %d bytes, %v", n, room, len(got), err)
			}
			if got, err = d.Append(make([]byte, 3, 3+room), packed, n); err != nil || len(got) != 3+n {
				t.Errorf("%d zeros with room for %d: %d bytes, %v", n, room, len(got), err)
			}
		}
	}
}

// A stream that is cut off anywhere is refused, and what follows one is not read.
func TestEnd(t *testing.T) {
	var d Decompressor
	for name, b := range inputs() {
		if len(b) == 0 || len(b) > 5000 {
			continue
		}
		packed := standard(t, 6, b)
		for n := 0; n < len(packed); n += 1 + n/40 {
			if _, err := d.Append(nil, packed[:n], len(b)); err == nil {
				t.Errorf("%s: %d bytes of %d are accepted", name, n, len(packed))
			}
		}
		got, err := d.Append(nil, append(packed, "garbage that follows"...), len(b))
		if err != nil || !bytes.Equal(got, b) {
			t.Errorf("%s with garbage: %v", name, err)
		}
	}
}

func FuzzDecompress(f *testing.F) {
	for _, b := range inputs() {
		if len(b) < 2000 {
			f.Add(klauspost(f, 5, b))
			f.Add(standard(f, 9, b))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 20
		var d Decompressor
		got, err := d.Append(nil, b, limit)
		if errors.Is(err, ErrTooLong) {
			return
		}
		want, wantErr := expand(b)
		if (err == nil) != (wantErr == nil) {
			t.Fatalf("%x: %v, with the standard library %v", b, err, wantErr)
		}
		if err == nil && !bytes.Equal(got, want) {
			t.Errorf("%x: %x, with the standard library %x", b, got, want)
		}
	})
}

// The record of every load.
func BenchmarkDecompress(b *testing.B) {
	text := inputs()["text"]
	for _, n := range []int{200, 1500, 20000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			packed := standard(b, 6, text[:min(n, len(text))])
			var d Decompressor
			var out []byte
			b.SetBytes(int64(n))
			for b.Loop() {
				var err error
				if out, err = d.Append(out[:0], packed, 1<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
