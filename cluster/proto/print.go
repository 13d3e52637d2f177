package proto

import (
	"encoding/hex"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Lengths above which Args abridges.
const (
	maxItems = 8
	maxBytes = 64
)

// Args returns the arguments of a packet for a log, "OID=… At=None": long lists
// are abridged, data is reduced to its size.
func Args(p Packet) string {
	s := printer{maxItems: maxItems, maxBytes: maxBytes}
	printFields(&s, reflect.ValueOf(p).Elem())
	return s.String()
}

// AllArgs is Args with all that there is. What data returns is shown for the data of
// an object.
func AllArgs(p Packet, data func(*ObjectData) string) string {
	s := printer{maxItems: math.MaxInt, maxBytes: math.MaxInt, data: data}
	printFields(&s, reflect.ValueOf(p).Elem())
	return s.String()
}

type printer struct {
	strings.Builder
	maxItems, maxBytes int
	data               func(*ObjectData) string // nil: its size
}

func printFields(s *printer, v reflect.Value) {
	if o, ok := v.Interface().(ObjectData); ok && s.data != nil {
		s.WriteString(s.data(&o))
		return
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		if i > 0 {
			s.WriteByte(' ')
		}
		if f.Anonymous {
			printFields(s, v.Field(i))
			continue
		}
		s.WriteString(f.Name)
		s.WriteByte('=')
		if f.Name == "Data" && f.Type.Kind() == reflect.Slice {
			fmt.Fprintf(s, "(%d bytes)", v.Field(i).Len())
			continue
		}
		printValue(s, v.Field(i))
	}
}

func printValue(s *printer, v reflect.Value) {
	if !v.IsValid() {
		s.WriteString("None")
		return
	}
	switch x := v.Interface().(type) {
	case Hash:
		s.WriteString(hex.EncodeToString(x[:]))
		return
	case Address:
		if x.IsZero() {
			s.WriteString("None")
			return
		}
		s.WriteString(x.String())
		return
	case fmt.Stringer:
		s.WriteString(x.String())
		return
	case string:
		printBytes(s, x)
		return
	case []byte:
		printBytes(s, string(x))
		return
	case Raw:
		s.WriteString("0x")
		s.WriteString(hex.EncodeToString(x[:min(len(x), s.maxBytes)]))
		return
	case float64:
		s.WriteString(strconv.FormatFloat(x, 'f', -1, 64))
		return
	}
	switch v.Kind() {
	case reflect.Interface:
		printValue(s, v.Elem())
	case reflect.Pointer:
		if v.IsNil() {
			s.WriteString("None")
			return
		}
		printValue(s, v.Elem())
	case reflect.Struct:
		if ok := v.FieldByName("OK"); ok.IsValid() && v.NumField() == 2 { // Opt
			if !ok.Bool() {
				s.WriteString("None")
				return
			}
			printValue(s, v.Field(0))
			return
		}
		s.WriteByte('(')
		printFields(s, v)
		s.WriteByte(')')
	case reflect.Slice:
		s.WriteByte('[')
		for i := range min(v.Len(), s.maxItems) {
			if i > 0 {
				s.WriteByte(' ')
			}
			printValue(s, v.Index(i))
		}
		if n := v.Len() - s.maxItems; n > 0 {
			fmt.Fprintf(s, " +%d", n)
		}
		s.WriteByte(']')
	case reflect.Map:
		s.WriteByte('{')
		keys := v.MapKeys()
		slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(s.text(a), s.text(b)) })
		for i, k := range keys[:min(len(keys), s.maxItems)] {
			if i > 0 {
				s.WriteByte(' ')
			}
			s.WriteString(s.text(k))
			s.WriteByte(':')
			printValue(s, v.MapIndex(k))
		}
		if n := len(keys) - s.maxItems; n > 0 {
			fmt.Fprintf(s, " +%d", n)
		}
		s.WriteByte('}')
	default:
		fmt.Fprint(s, v.Interface())
	}
}

func (s *printer) text(v reflect.Value) string {
	t := printer{maxItems: s.maxItems, maxBytes: s.maxBytes, data: s.data}
	printValue(&t, v)
	return t.String()
}

func printBytes(s *printer, v string) {
	if len(v) > s.maxBytes {
		fmt.Fprintf(s, "%q+%d", v[:s.maxBytes], len(v)-s.maxBytes)
		return
	}
	fmt.Fprintf(s, "%q", v)
}
