package snapshot

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/neozodb/neo/cluster/tid"
)

// KID is the number of an epoch: that of its note and of its wraps. 0 is none.
type KID uint16

// String returns 4 hexadecimal digits.
func (k KID) String() string { return fmt.Sprintf("%04x", uint16(k)) }

// position is a number of 8 hexadecimal digits, so that the length of what contains
// it does not depend on it.
type position uint32

// Hole is an open interval of TIDs at which a restore is not exact.
type Hole struct{ From, To tid.TID }

// Hold keeps the newest lineage in which a TID is exact.
type Hold struct {
	Lineage ID
	TID     tid.TID
	Label   string
}

// maxNumber limits integers to those that every JSON reader keeps.
const maxNumber = 1<<53 - 1

// field is a key of a line and where it belongs.
type field struct {
	name     string
	optional bool // left out if zero
	v        reflect.Value
}

// fields returns the fields of the struct that p points to, in their order, those of
// embedded structs in place.
func fields(p reflect.Value) []field {
	var list []field
	s := p.Elem()
	for i := range s.NumField() {
		f := s.Type().Field(i)
		if f.Anonymous {
			list = append(list, fields(s.Field(i).Addr())...)
			continue
		}
		tag := f.Tag.Get("json")
		if tag == "" || tag == "-" {
			continue
		}
		name, opt, _ := strings.Cut(tag, ",")
		list = append(list, field{name, opt == "omitempty", s.Field(i)})
	}
	return list
}

// appendLine appends the struct that p points to as a line, with its LF.
func appendLine(b []byte, p any) ([]byte, error) {
	b, err := appendObject(b, reflect.ValueOf(p))
	return append(b, '\n'), err
}

func appendObject(b []byte, p reflect.Value) ([]byte, error) {
	b = append(b, '{')
	first := true
	for _, f := range fields(p) {
		if f.optional && f.v.IsZero() || f.v.Kind() == reflect.Slice && f.optional && f.v.Len() == 0 {
			continue
		}
		if !first {
			b = append(b, ',')
		}
		first = false
		b = append(strconv.AppendQuote(b, f.name), ':')
		var err error
		if b, err = appendValue(b, f.v); err != nil {
			return b, fmt.Errorf("key %q: %w", f.name, err)
		}
	}
	return append(b, '}'), nil
}

func appendString(b []byte, s string) ([]byte, error) {
	if !utf8.ValidString(s) {
		return b, fmt.Errorf("%q is no valid UTF-8", s)
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return b, err
	}
	return append(b, bytes.TrimSuffix(out.Bytes(), []byte{'\n'})...), nil
}

func appendQuotedASCII(b []byte, s string) []byte {
	return append(append(append(b, '"'), s...), '"')
}

func appendValue(b []byte, v reflect.Value) ([]byte, error) {
	switch x := v.Interface().(type) {
	case string:
		return appendString(b, x)
	case bool:
		return strconv.AppendBool(b, x), nil
	case int64:
		if x < 0 || x > maxNumber {
			return b, fmt.Errorf("%d is not in [0, 2^53)", x)
		}
		return strconv.AppendInt(b, x, 10), nil
	case tid.TID:
		return appendQuotedASCII(b, x.String()), nil
	case tid.OID:
		return appendQuotedASCII(b, x.String()), nil
	case ID:
		return appendQuotedASCII(b, x.String()), nil
	case KID:
		return appendQuotedASCII(b, x.String()), nil
	case position:
		return fmt.Appendf(b, `"%08x"`, uint32(x)), nil
	case Hash:
		if x == (Hash{}) {
			return append(b, `""`...), nil
		}
		return appendQuotedASCII(b, x.String()), nil
	case time.Time:
		return appendQuotedASCII(b, x.UTC().Format(timeForm)), nil
	case []byte:
		return appendQuotedASCII(b, base64.StdEncoding.EncodeToString(x)), nil
	case []string:
		return appendList(b, x, appendString)
	case []KID:
		return appendList(b, x, func(b []byte, k KID) ([]byte, error) { return appendQuotedASCII(b, k.String()), nil })
	case []Hole:
		return appendList(b, x, func(b []byte, h Hole) ([]byte, error) {
			return fmt.Appendf(b, `["%v","%v"]`, h.From, h.To), nil
		})
	case []Hold:
		return appendList(b, x, func(b []byte, h Hold) ([]byte, error) {
			b, err := appendString(fmt.Appendf(b, `["%v","%v",`, h.Lineage, h.TID), h.Label)
			return append(b, ']'), err
		})
	}
	if v.Kind() == reflect.Struct {
		return appendObject(b, v.Addr())
	}
	panic(fmt.Sprintf("snapshot: no form for %v", v.Type()))
}

func appendList[T any](b []byte, list []T, one func([]byte, T) ([]byte, error)) ([]byte, error) {
	b = append(b, '[')
	for i, x := range list {
		if i > 0 {
			b = append(b, ',')
		}
		var err error
		if b, err = one(b, x); err != nil {
			return b, err
		}
	}
	return append(b, ']'), nil
}

// parseLine reads a line, without its LF, into the struct that p points to. All that
// is not optional must be there; what is not known must begin with x-.
func parseLine(line []byte, p any) error {
	return parseFields(line, fields(reflect.ValueOf(p)))
}

// parseFirst reads the first line of a note, which begins with the fields of head.
func parseFirst(line []byte, p any) error {
	var h head
	return parseFields(line, append(fields(reflect.ValueOf(&h)), fields(reflect.ValueOf(p))...))
}

func parseFields(line []byte, list []field) error {
	d := json.NewDecoder(bytes.NewReader(line))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("%.60q is no JSON object", line)
	}
	seen := map[string]bool{}
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return fmt.Errorf("%.60q: %w", line, err)
		}
		name, _ := t.(string)
		if seen[name] {
			return fmt.Errorf("key %.40q occurs twice", name)
		}
		seen[name] = true
		var raw json.RawMessage
		if err := d.Decode(&raw); err != nil {
			return fmt.Errorf("key %.40q: %w", name, err)
		}
		known := false
		for _, f := range list {
			if f.name != name {
				continue
			}
			known = true
			if err := parseValue(raw, f.v); err != nil {
				return fmt.Errorf("key %q: %w", name, err)
			}
		}
		if !known && !strings.HasPrefix(name, "x-") {
			return fmt.Errorf("unknown key %.40q", name)
		}
	}
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("%.60q: %w", line, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON object")
	}
	for _, f := range list {
		if !f.optional && !seen[f.name] {
			return fmt.Errorf("key %q is missing", f.name)
		}
	}
	return nil
}

func parseString(raw json.RawMessage) (string, error) {
	if len(raw) == 0 || raw[0] != '"' {
		return "", fmt.Errorf("%.40q is no string", raw)
	}
	var s string
	err := json.Unmarshal(raw, &s)
	return s, err
}

func parseValue(raw json.RawMessage, v reflect.Value) error {
	switch p := v.Addr().Interface().(type) {
	case *bool:
		if s := string(raw); s != "true" && s != "false" {
			return fmt.Errorf("%.40q is neither true nor false", raw)
		}
		*p = string(raw) == "true"
		return nil
	case *int64:
		n, err := strconv.ParseUint(string(raw), 10, 64)
		if err != nil || n > maxNumber {
			return fmt.Errorf("%.40q is no integer in [0, 2^53)", raw)
		}
		*p = int64(n)
		return nil
	case *[]string:
		return parseList(raw, p, parseString)
	case *[]KID:
		return parseList(raw, p, func(raw json.RawMessage) (k KID, err error) {
			return k, parseValue(raw, reflect.ValueOf(&k).Elem())
		})
	case *[]Hole:
		return parseList(raw, p, func(raw json.RawMessage) (h Hole, err error) {
			var f []string
			if err := parseList(raw, &f, parseString); err != nil {
				return h, err
			}
			if len(f) != 2 {
				return h, fmt.Errorf("%.60q: want two transaction ids", raw)
			}
			var e1, e2 error
			h.From, e1 = parseTID(f[0])
			h.To, e2 = parseTID(f[1])
			return h, errors.Join(e1, e2)
		})
	case *[]Hold:
		return parseList(raw, p, func(raw json.RawMessage) (h Hold, err error) {
			var f []string
			if err := parseList(raw, &f, parseString); err != nil {
				return h, err
			}
			if len(f) != 3 {
				return h, fmt.Errorf("%.90q: want lineage, transaction id and label", raw)
			}
			var e1, e2 error
			h.Lineage, e1 = ParseID(f[0])
			h.TID, e2 = parseTID(f[1])
			h.Label = f[2]
			return h, errors.Join(e1, e2)
		})
	}
	if v.Kind() == reflect.Struct && v.Type() != reflect.TypeFor[time.Time]() {
		return parseFields(raw, fields(v.Addr()))
	}
	s, err := parseString(raw)
	if err != nil {
		return err
	}
	switch p := v.Addr().Interface().(type) {
	case *string:
		*p = s
	case *tid.TID:
		*p, err = parseTID(s)
	case *tid.OID:
		*p, err = parseOID(s)
	case *ID:
		*p, err = ParseID(s)
	case *Hash:
		if s != "" {
			*p, err = ParseHash(s)
		}
	case *KID:
		n, ok := parseNumber(s, 4)
		if !ok || n > math.MaxUint16 {
			return fmt.Errorf("%.40q is no number of an epoch", s)
		}
		*p = KID(n)
	case *position:
		n, ok := parseNumber(s, 8)
		if !ok {
			return fmt.Errorf("%.40q is no position of 8 hexadecimal digits", s)
		}
		*p = position(n)
	case *time.Time:
		*p, err = parseTime(timeForm, s)
	case *[]byte:
		*p, err = base64.StdEncoding.Strict().DecodeString(s)
	default:
		panic(fmt.Sprintf("snapshot: no form for %v", v.Type()))
	}
	return err
}

func parseList[T any](raw json.RawMessage, p *[]T, one func(json.RawMessage) (T, error)) error {
	var list []json.RawMessage
	if len(raw) == 0 || raw[0] != '[' {
		return fmt.Errorf("%.40q is no list", raw)
	}
	if err := json.Unmarshal(raw, &list); err != nil {
		return err
	}
	*p = nil
	for _, raw := range list {
		x, err := one(raw)
		if err != nil {
			return err
		}
		*p = append(*p, x)
	}
	return nil
}

func valueOf(p any) reflect.Value { return reflect.ValueOf(p) }
