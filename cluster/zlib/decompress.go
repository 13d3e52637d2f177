package zlib

import (
	"encoding/binary"
	"errors"
	"math/bits"
)

// Errors of [Decompressor.Append].
var (
	ErrFormat   = errors.New("not a zlib stream, or damaged")
	ErrChecksum = errors.New("the checksum of a zlib stream differs")
	ErrTooLong  = errors.New("a zlib stream is longer than allowed")
)

// An entry of a decoding table says how many bits of input it takes (bits 0-4),
// and what they mean:
//
//	literal  bit 31, and the byte in bits 16-23
//	special  bit 15: bit 14 a table for longer codes, at the index in bits 16-30,
//	         for the number of bits in 8-12; bit 13 the end of the block; else no code
//	copy     the least length or distance in bits 16-30, the number of extra bits
//	         in 8-12
const (
	entryLiteral = 1 << 31
	entrySpecial = 1 << 15
	entryTable   = 1 << 14
	entryEnd     = 1 << 13
)

// Bits of a code that the first table decides, and sizes of the tables with those
// for longer codes, as computed by `enough` of zlib.
const (
	litBits   = 9
	distBits  = 7
	codeBits  = 7
	litTable  = 854 // 9 bits, 286 symbols: 852
	distTable = 402 // 7 bits, 30 symbols: at most 400
)

// litEntries and distEntries are the entries of symbols, without the bits taken.
var (
	litEntries  [288]uint32
	distEntries [32]uint32
	codeEntries [numCodes]uint32
	fixedLit    [1 << litBits]uint32
	fixedDist   [1 << 5]uint32
)

func initDecode() {
	for i := range litEntries {
		switch {
		case i < endOfBlock:
			litEntries[i] = entryLiteral | uint32(i)<<16
		case i == endOfBlock:
			litEntries[i] = entrySpecial | entryEnd
		case i < numLit:
			s := lengthSpans[i-endOfBlock-1]
			litEntries[i] = uint32(s.base)<<16 | uint32(s.extra)<<8
		default:
			litEntries[i] = entrySpecial
		}
	}
	for i := range distEntries {
		distEntries[i] = entrySpecial
		if i < numDist {
			distEntries[i] = uint32(distSpans[i].base)<<16 | uint32(distSpans[i].extra)<<8
		}
	}
	for i := range codeEntries {
		codeEntries[i] = uint32(i) << 16
	}
	var lens [288]uint8
	for i := range lens {
		lens[i] = fixedLength(i)
	}
	var sorted [288]uint16
	if _, ok := buildTable(fixedLit[:], litBits, lens[:], litEntries[:], &sorted); !ok {
		panic("zlib: fixed code")
	}
	for i := range 32 {
		lens[i] = 5
	}
	if _, ok := buildTable(fixedDist[:], 5, lens[:32], distEntries[:], &sorted); !ok {
		panic("zlib: fixed code")
	}
}

// fixedLength is the length of the fixed code of a literal or length.
func fixedLength(i int) uint8 {
	switch {
	case i < 144:
		return 8
	case i < 256:
		return 9
	case i < 280:
		return 7
	}
	return 8
}

// Decompressor decompresses records, one after the other. Its zero value is ready.
type Decompressor struct {
	lit    [litTable]uint32
	dist   [distTable]uint32
	codes  [1 << codeBits]uint32
	lens   [320]uint8
	sorted [288]uint16
}

// Append appends what the zlib stream src contains to dst. What follows the
// stream is ignored. At most limit bytes are appended, more is [ErrTooLong]; dst
// is then, as after every error, returned without them.
func (d *Decompressor) Append(dst, src []byte, limit int) ([]byte, error) {
	if len(src) < 6 || src[0]&15 != 8 || src[0]>>4 > 7 || src[1]&32 != 0 || binary.BigEndian.Uint16(src)%31 != 0 {
		return dst, ErrFormat
	}
	start := len(dst)
	s := stream{in: src, at: 2, out: dst[:cap(dst)], n: start, start: start, limit: limit}
	for last := false; !last; {
		s.refill()
		last = s.buf&1 != 0
		kind := s.buf >> 1 & 3
		s.drop(3)
		ok := false
		switch kind {
		case 0:
			ok = s.stored()
		case 1:
			ok = s.block(fixedLit[:], litBits, fixedDist[:], 5)
		case 2:
			ok = d.tables(&s)
			if ok {
				ok = s.block(d.lit[:], litBits, d.dist[:], distBits)
			}
		}
		switch {
		case s.long:
			return dst, ErrTooLong
		case !ok || s.count < 0:
			return dst, ErrFormat
		}
	}
	// What was taken ahead of need goes back.
	at := s.at - s.count>>3
	if at+4 > len(src) {
		return dst, ErrFormat
	}
	out := s.out[:s.n]
	if binary.BigEndian.Uint32(src[at:]) != checksum(out[start:]) {
		return dst, ErrChecksum
	}
	return out, nil
}

// stream is what is being decompressed. Beyond the end of the input there are
// zero bits, up to a point: count falls below 0 when they are used.
type stream struct {
	in    []byte
	at    int    // of the next byte of in
	buf   uint64 // bits taken from in, the next one lowest
	count int    // of bits in buf that are from in
	out   []byte
	n     int // bytes written
	start int
	limit int
	long  bool // out would exceed limit
}

// refill makes at least 56 bits available.
func (s *stream) refill() {
	if s.at+8 <= len(s.in) && s.count >= 0 {
		s.buf |= binary.LittleEndian.Uint64(s.in[s.at:]) << s.count
		s.at += (63 - s.count) >> 3
		s.count |= 56
		return
	}
	for s.at < len(s.in) && s.count >= 0 && s.count < 56 {
		s.buf |= uint64(s.in[s.at]) << s.count
		s.at++
		s.count += 8
	}
}

func (s *stream) drop(n int) {
	s.buf >>= n
	s.count -= n
}

// grow makes room for n more bytes of output, unless they are too many.
func (s *stream) grow(n int) bool {
	if s.n-s.start+n > s.limit {
		s.long = true
		return false
	}
	if s.n+n > len(s.out) {
		more := max(n, 2*(len(s.in)-s.at), s.n, 512) + maxMatch
		b := append(s.out[:s.n], make([]byte, min(more, max(n, s.limit+maxMatch))+8)...)
		s.out = b[:cap(b)]
	}
	return true
}

// stored copies a block that is not compressed.
func (s *stream) stored() bool {
	s.drop(s.count & 7)
	if s.count < 0 {
		return false
	}
	s.at -= s.count >> 3
	s.buf, s.count = 0, 0
	if s.at+4 > len(s.in) {
		return false
	}
	n := int(binary.LittleEndian.Uint16(s.in[s.at:]))
	if n^0xffff != int(binary.LittleEndian.Uint16(s.in[s.at+2:])) {
		return false
	}
	s.at += 4
	if s.at+n > len(s.in) || !s.grow(n) {
		return false
	}
	copy(s.out[s.n:], s.in[s.at:s.at+n])
	s.n += n
	s.at += n
	return true
}

// tables reads the codes of a block.
func (d *Decompressor) tables(s *stream) bool {
	s.refill()
	nlit := int(s.buf&31) + 257
	ndist := int(s.buf>>5&31) + 1
	ncode := int(s.buf>>10&15) + 4
	s.drop(14)
	if nlit > numLit || ndist > numDist {
		return false
	}
	lens := d.lens[:numCodes]
	clear(lens)
	for i := range ncode {
		if i == 14 { // 42 bits are gone
			s.refill()
		}
		lens[codeOrder[i]] = uint8(s.buf & 7)
		s.drop(3)
	}
	// No lone code here: it could not describe a code of its own.
	if complete, ok := buildTable(d.codes[:], codeBits, lens, codeEntries[:], &d.sorted); !ok || !complete {
		return false
	}
	lens = d.lens[:nlit+ndist]
	for i := 0; i < len(lens); {
		s.refill()
		e := d.codes[s.buf&(1<<codeBits-1)]
		s.drop(int(e & 31))
		v := e >> 16
		if v < 16 {
			lens[i] = uint8(v)
			i++
			continue
		}
		var n int
		var l uint8
		switch v {
		case 16:
			if i == 0 {
				return false
			}
			l = lens[i-1]
			n = 3 + int(s.buf&3)
			s.drop(2)
		case 17:
			n = 3 + int(s.buf&7)
			s.drop(3)
		default:
			n = 11 + int(s.buf&127)
			s.drop(7)
		}
		if i+n > len(lens) || s.count < 0 {
			return false
		}
		for ; n > 0; n-- {
			lens[i] = l
			i++
		}
	}
	if s.count < 0 || lens[endOfBlock] == 0 {
		return false
	}
	if _, ok := buildTable(d.lit[:], litBits, lens[:nlit], litEntries[:], &d.sorted); !ok {
		return false
	}
	_, ok := buildTable(d.dist[:], distBits, lens[nlit:], distEntries[:], &d.sorted)
	return ok
}

// buildTable makes the decoding table of the code with the given lengths. ok:
// they are a code; complete: no sequence of bits is left over. As in zlib, the
// only other codes are a single one of one bit and none at all.
func buildTable(table []uint32, tableBits int, lens []uint8, entries []uint32, sorted *[288]uint16) (complete, ok bool) {
	var count [maxBits + 1]int
	for _, l := range lens {
		count[l]++
	}
	longest := maxBits
	for longest > 0 && count[longest] == 0 {
		longest--
	}
	var offset [maxBits + 2]int
	left := 1
	for l := 1; l <= maxBits; l++ {
		offset[l+1] = offset[l] + count[l]
		if left = left<<1 - count[l]; left < 0 {
			return false, false
		}
	}
	if left > 0 {
		if longest > 1 {
			return false, false
		}
		fill := uint32(entrySpecial)
		for i := range table[:1<<tableBits] {
			table[i] = fill
		}
		if longest == 1 {
			for s, l := range lens {
				if l == 1 {
					for i := 0; i < 1<<tableBits; i += 2 {
						table[i] = entries[s] | 1
					}
				}
			}
		}
		return false, true
	}
	for s, l := range lens {
		if l != 0 {
			sorted[offset[l]] = uint16(s)
			offset[l]++
		}
	}
	// Codes in order, their bits reversed, are those of each length after the
	// other; the table so far is repeated for each further bit.
	syms := sorted[:]
	code, l := 0, 1
	for count[l] == 0 {
		l++
	}
	end := 1 << l
	for {
		if l > tableBits {
			break
		}
		for n := count[l]; n > 0; n-- {
			table[code] = entries[syms[0]] | uint32(l)
			syms = syms[1:]
			if code == end-1 {
				for ; l < tableBits; l++ {
					copy(table[end:], table[:end])
					end <<= 1
				}
				return true, true
			}
			bit := 1 << (bits.Len(uint(code^(end-1))) - 1)
			code = code&(bit-1) | bit
		}
		for {
			if l++; l <= tableBits {
				copy(table[end:], table[:end])
				end <<= 1
			}
			if count[l] != 0 {
				break
			}
		}
	}
	// Longer codes: a table for each beginning.
	end = 1 << tableBits
	prefix, begin, sub := -1, 0, 0
	for {
		if p := code & (1<<tableBits - 1); p != prefix {
			prefix = p
			begin = end
			sub = l - tableBits
			space := count[l]
			for space < 1<<sub {
				sub++
				space = space<<1 + count[tableBits+sub]
			}
			end = begin + 1<<sub
			table[prefix] = entrySpecial | entryTable | uint32(begin)<<16 | uint32(sub)<<8 | uint32(tableBits)
		}
		e := entries[syms[0]] | uint32(l-tableBits)
		syms = syms[1:]
		for i := begin + code>>tableBits; i < end; i += 1 << (l - tableBits) {
			table[i] = e
		}
		if code == 1<<l-1 {
			return true, true
		}
		bit := 1 << (bits.Len(uint(code^(1<<l-1))) - 1)
		code = code&(bit-1) | bit
		count[l]--
		for count[l] == 0 {
			l++
		}
	}
}

// block decompresses the rest of a block.
func (s *stream) block(lit []uint32, litBits int, dist []uint32, distBits int) bool {
	in, at, buf, count := s.in, s.at, s.buf, uint(s.count)
	out, n := s.out, s.n
	litMask, distMask := uint64(1)<<litBits-1, uint64(1)<<distBits-1
	if s.count < 0 {
		return false
	}
	room := min(len(out), s.start+s.limit) - slack
	// As long as there is enough of input and room, nothing else is checked.
	for at+8 <= len(in) {
		if n > room {
			s.n, s.at = n, at
			if s.start+s.limit-n < slack || !s.grow(slack) {
				s.long = false
				break
			}
			out = s.out
			room = min(len(out), s.start+s.limit) - slack
		}
		buf |= binary.LittleEndian.Uint64(in[at:]) << (count & 63)
		at += int((63 - count) >> 3)
		count |= 56
		e := lit[buf&litMask]
		for e&entryLiteral != 0 && count >= 2*maxBits {
			out[n] = byte(e >> 16)
			n++
			buf >>= e & 31
			count -= uint(e & 31)
			e = lit[buf&litMask]
		}
		if e&entryLiteral != 0 {
			out[n] = byte(e >> 16)
			n++
			buf >>= e & 31
			count -= uint(e & 31)
			continue
		}
		if count < 20+28 { // a length with its extra bits, a distance with its
			if at+8 > len(in) {
				break // e was not taken yet
			}
			buf |= binary.LittleEndian.Uint64(in[at:]) << (count & 63)
			at += int((63 - count) >> 3)
			count |= 56
		}
		if e&entrySpecial != 0 {
			if e&entryTable != 0 {
				buf >>= e & 31
				count -= uint(e & 31)
				e = lit[e>>16+uint32(buf)&(1<<(e>>8&31)-1)]
			}
			if e&entryLiteral != 0 {
				out[n] = byte(e >> 16)
				n++
				buf >>= e & 31
				count -= uint(e & 31)
				continue
			}
			if e&entrySpecial != 0 {
				buf >>= e & 31
				s.at, s.buf, s.count, s.n = at, buf, int(count)-int(e&31), n
				return e&entryEnd != 0
			}
		}
		buf >>= e & 31
		count -= uint(e & 31)
		extra := e >> 8 & 31
		length := int(e>>16) + int(buf&(1<<extra-1))
		buf >>= extra
		count -= uint(extra)

		e = dist[buf&distMask]
		if e&entrySpecial != 0 {
			if e&entryTable == 0 {
				return false
			}
			buf >>= e & 31
			count -= uint(e & 31)
			e = dist[e>>16+uint32(buf)&(1<<(e>>8&31)-1)]
			if e&entrySpecial != 0 {
				return false
			}
		}
		buf >>= e & 31
		count -= uint(e & 31)
		extra = e >> 8 & 31
		back := int(e>>16) + int(buf&(1<<extra-1))
		buf >>= extra
		count -= uint(extra)
		if back > n-s.start {
			return false
		}
		if back >= 8 && length <= 16 {
			to, from := out[n:n+16], out[n-back:]
			binary.LittleEndian.PutUint64(to, binary.LittleEndian.Uint64(from))
			binary.LittleEndian.PutUint64(to[8:], binary.LittleEndian.Uint64(from[8:]))
		} else {
			repeat(out[n-back:n+length], back)
		}
		n += length
	}
	s.at, s.buf, s.count, s.n = at, buf, int(count), n
	return s.carefully(lit, litMask, dist, distMask)
}

// slack is room for a copy, and for the literals of 64 bits before it.
const slack = maxMatch + 64

// repeat continues b, of which the first n bytes are given, with period n.
func repeat(b []byte, n int) {
	if len(b) <= 2*n {
		copy(b[n:], b)
		return
	}
	if n == 1 {
		v := b[0]
		for i := range b {
			b[i] = v
		}
		return
	}
	for n < len(b) {
		n += copy(b[n:], b[:n])
	}
}

// carefully is the rest of block near the ends of input and of room.
func (s *stream) carefully(lit []uint32, litMask uint64, dist []uint32, distMask uint64) bool {
	for s.count >= 0 {
		s.refill()
		e := lit[s.buf&litMask]
		if e&(entrySpecial|entryTable) == entrySpecial|entryTable && e&entryLiteral == 0 {
			s.drop(int(e & 31))
			e = lit[e>>16+uint32(s.buf)&(1<<(e>>8&31)-1)]
		}
		s.drop(int(e & 31))
		if s.count < 0 {
			return false
		}
		switch {
		case e&entryLiteral != 0:
			if !s.grow(1) {
				return false
			}
			s.out[s.n] = byte(e >> 16)
			s.n++
			continue
		case e&entrySpecial != 0:
			return e&entryEnd != 0
		}
		extra := e >> 8 & 31
		length := int(e>>16) + int(s.buf&(1<<extra-1))
		s.drop(int(extra))
		s.refill()
		e = dist[s.buf&distMask]
		if e&(entrySpecial|entryTable) == entrySpecial|entryTable {
			s.drop(int(e & 31))
			e = dist[e>>16+uint32(s.buf)&(1<<(e>>8&31)-1)]
		}
		if e&entrySpecial != 0 {
			return false
		}
		s.drop(int(e & 31))
		extra = e >> 8 & 31
		back := int(e>>16) + int(s.buf&(1<<extra-1))
		s.drop(int(extra))
		if s.count < 0 || back > s.n-s.start || !s.grow(length) {
			return false
		}
		repeat(s.out[s.n-back:s.n+length], back)
		s.n += length
	}
	return false
}
