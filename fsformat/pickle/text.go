package pickle

import (
	"strconv"
	"unicode/utf8"
)

// unquote appends to b the bytes of a Python 2 string literal, as the opcode
// STRING has it. It reports false if s is none.
func unquote(b, s []byte) ([]byte, bool) {
	for len(s) > 0 && s[len(s)-1] == '\r' {
		s = s[:len(s)-1]
	}
	if len(s) < 2 || s[0] != s[len(s)-1] || s[0] != '\'' && s[0] != '"' {
		return b, false
	}
	s = s[1 : len(s)-1]
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		if i++; i == len(s) {
			return b, false
		}
		switch c := s[i]; c {
		case '\\', '\'', '"':
			b = append(b, c)
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'a':
			b = append(b, '\a')
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'v':
			b = append(b, '\v')
		case '\n':
		case 'x':
			if i+2 >= len(s) {
				return b, false
			}
			n, err := strconv.ParseUint(string(s[i+1:i+3]), 16, 8)
			if err != nil {
				return b, false
			}
			b = append(b, byte(n))
			i += 2
		case '0', '1', '2', '3', '4', '5', '6', '7':
			n := 0
			k := i
			for ; k < len(s) && k < i+3 && s[k] >= '0' && s[k] <= '7'; k++ {
				n = n*8 + int(s[k]-'0')
			}
			b = append(b, byte(n))
			i = k - 1
		default:
			b = append(b, '\\', c)
		}
	}
	return b, true
}

// rawUnicode appends to b the UTF-8 form of a raw-unicode-escape text, as the
// opcode UNICODE has it. Surrogates are encoded as Python's "surrogatepass" does.
func rawUnicode(b, s []byte) ([]byte, bool) {
	for i := 0; i < len(s); i++ {
		size := 0
		if s[i] == '\\' && i+1 < len(s) {
			switch s[i+1] {
			case 'u':
				size = 4
			case 'U':
				size = 8
			}
		}
		if size == 0 {
			b = utf8.AppendRune(b, rune(s[i])) // latin1
			if s[i] == '\\' && i+1 < len(s) {  // a second backslash escapes nothing either
				i++
				b = utf8.AppendRune(b, rune(s[i]))
			}
			continue
		}
		if i+2+size > len(s) {
			return b, false
		}
		n, err := strconv.ParseUint(string(s[i+2:i+2+size]), 16, 32)
		if err != nil || n > utf8.MaxRune {
			return b, false
		}
		if n >= 0xd800 && n < 0xe000 {
			b = append(b, byte(0xe0|n>>12), byte(0x80|n>>6&0x3f), byte(0x80|n&0x3f))
		} else {
			b = utf8.AppendRune(b, rune(n))
		}
		i += 1 + size
	}
	return b, true
}
