package pickle

import (
	"fmt"
	"io"
	"math"
	"math/big"
	"strconv"
	"unicode"
	"unicode/utf8"
)

// Format writes v much as Python's repr would, over several lines where that helps,
// and nothing after about max bytes (0: a megabyte).
func Format(w io.Writer, v Value, max int) error {
	if max == 0 {
		max = 1 << 20
	}
	f := formatter{max: max}
	f.value(v, 0)
	if len(f.b) > f.max {
		f.b = append(f.b[:f.max], " ... (cut)"...)
	}
	_, err := w.Write(f.b)
	return err
}

type formatter struct {
	b   []byte
	max int
}

// deepest is where the display of nested values ends, cycles included.
const deepest = 50

func (f *formatter) value(v Value, depth int) {
	if len(f.b) > f.max {
		return
	}
	if depth > deepest {
		f.b = append(f.b, "..."...)
		return
	}
	switch v := v.(type) {
	case nil:
		f.b = append(f.b, "None"...)
	case bool:
		if v {
			f.b = append(f.b, "True"...)
		} else {
			f.b = append(f.b, "False"...)
		}
	case int64:
		f.b = strconv.AppendInt(f.b, v, 10)
	case *big.Int:
		if v.BitLen() > 16<<10 { // slow to convert, and nobody reads it
			f.b = fmt.Appendf(f.b, "<int of %d bits>", v.BitLen())
		} else {
			f.b = v.Append(f.b, 10)
		}
	case float64:
		f.float(v)
	case string:
		f.text(v)
	case []byte:
		f.b = append(f.b, 'b')
		f.bytes(v)
	case ByteString:
		f.bytes([]byte(v))
	case Tuple:
		f.items("(", ")", v, depth)
		if len(v) == 1 {
			f.b = append(f.b[:len(f.b)-1], ",)"...)
		}
	case *List:
		f.items("[", "]", v.Items, depth)
	case *Set:
		f.set(v, depth)
	case *Dict:
		f.dict(v, depth)
	case Global:
		f.b = fmt.Appendf(f.b, "<%s.%s>", printable(v.Module), printable(v.Name))
	case PersID:
		f.b = append(f.b, "<reference "...)
		f.value(v.ID, depth+1)
		f.b = append(f.b, '>')
	case *Object:
		f.object(v, depth)
	default:
		f.b = fmt.Appendf(f.b, "<%T>", v)
	}
}

func (f *formatter) float(v float64) {
	switch {
	case math.IsInf(v, 0), math.IsNaN(v), v != math.Trunc(v), math.Abs(v) >= 1e16:
		f.b = strconv.AppendFloat(f.b, v, 'g', -1, 64)
	default:
		f.b = strconv.AppendFloat(f.b, v, 'f', 1, 64)
	}
}

func (f *formatter) set(v *Set, depth int) {
	switch {
	case v.Frozen:
		f.items("frozenset({", "})", v.Items, depth)
	case len(v.Items) == 0:
		f.b = append(f.b, "set()"...)
	default:
		f.items("{", "}", v.Items, depth)
	}
}

func (f *formatter) object(v *Object, depth int) {
	f.value(v.Class, depth+1)
	if args, ok := v.Args.(Tuple); ok {
		f.items("(", ")", args, depth)
	} else {
		f.value(v.Args, depth+1)
	}
	if len(v.Items) > 0 {
		f.items(" items [", "]", v.Items, depth)
	}
	if v.HasState {
		f.b = append(f.b, " state "...)
		f.value(v.State, depth+1)
	}
}

// wide is how many items fit on a line.
const wide = 4

func (f *formatter) items(open, closing string, items []Value, depth int) {
	f.b = append(f.b, open...)
	for i, v := range items {
		if len(f.b) > f.max {
			return
		}
		if i > 0 {
			f.b = append(f.b, ',')
		}
		f.space(i, len(items), depth)
		f.value(v, depth+1)
	}
	if len(items) > wide {
		f.newline(depth)
	}
	f.b = append(f.b, closing...)
}

func (f *formatter) dict(v *Dict, depth int) {
	f.b = append(f.b, '{')
	for i, it := range v.Items {
		if len(f.b) > f.max {
			return
		}
		if i > 0 {
			f.b = append(f.b, ',')
		}
		f.space(i, len(v.Items), depth)
		f.value(it.Key, depth+1)
		f.b = append(f.b, ": "...)
		f.value(it.Value, depth+1)
	}
	if len(v.Items) > wide {
		f.newline(depth)
	}
	f.b = append(f.b, '}')
}

func (f *formatter) space(i, n, depth int) {
	switch {
	case n > wide:
		f.newline(depth + 1)
	case i > 0:
		f.b = append(f.b, ' ')
	}
}

func (f *formatter) newline(depth int) {
	f.b = append(f.b, '\n')
	for range depth {
		f.b = append(f.b, "  "...)
	}
}

func (f *formatter) text(s string) {
	f.b = append(f.b, '\'')
	for i := 0; i < len(s) && len(f.b) <= f.max; {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			f.b = fmt.Appendf(f.b, `\x%02x`, s[i])
		case !f.escape(r) && !unicode.IsPrint(r):
			f.b = fmt.Appendf(f.b, `\u%04x`, r)
		case !f.escaped(r):
			f.b = append(f.b, s[i:i+n]...)
		}
		i += n
	}
	f.b = append(f.b, '\'')
}

func (f *formatter) bytes(s []byte) {
	f.b = append(f.b, '\'')
	for _, c := range s {
		if len(f.b) > f.max {
			return
		}
		switch {
		case f.escaped(rune(c)):
		case c < ' ' || c > '~':
			f.b = fmt.Appendf(f.b, `\x%02x`, c)
		default:
			f.b = append(f.b, c)
		}
	}
	f.b = append(f.b, '\'')
}

// escape reports whether r has an escape of its own.
func (f *formatter) escape(r rune) bool {
	switch r {
	case '\\', '\'', '\n', '\r', '\t':
		return true
	}
	return false
}

// escaped writes r if it has an escape of its own.
func (f *formatter) escaped(r rune) bool {
	switch r {
	case '\\', '\'':
		f.b = append(f.b, '\\', byte(r))
	case '\n':
		f.b = append(f.b, `\n`...)
	case '\r':
		f.b = append(f.b, `\r`...)
	case '\t':
		f.b = append(f.b, `\t`...)
	default:
		return false
	}
	return true
}

// printable is a name without what a terminal would obey.
func printable(s string) string {
	q := strconv.Quote(s)
	return q[1 : len(q)-1]
}
